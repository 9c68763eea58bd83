/* cc -std=c99 -I. examples/watch.c llhttp.c api.c http.c -lmbedtls -lmbedx509 -lmbedcrypto -lpthread -o watch
   E2B_API_KEY=... ./watch

   Watches a directory of the sandbox while a command works in it, until that removes the directory. Environment as for
   quickstart.c. Prints

       create report.txt
       write report.txt, 6 bytes
       rename report.txt
       create final.txt
       remove final.txt
       remove .
       the directory is gone */

#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <stdio.h>

static int failed(const char *what, const e2b_error *err) {
  fprintf(stderr, "%s: %s: %s\n", what, e2b_err_name(err->code), err->message);
  return 1;
}

static void print(const e2b_fs_event *event) {
  switch (event->type) {
    case E2B_FS_CREATE: printf("create %s", event->name); break;
    case E2B_FS_WRITE: printf("write %s", event->name); break;
    case E2B_FS_RENAME: printf("rename %s", event->name); break;
    case E2B_FS_REMOVE: printf("remove %s", event->name); break;
    case E2B_FS_GAP: printf("something may have been missed: look at the directory itself"); break;
    default: return; /* permissions, and what newer servers may report */
  }
  if (event->entry && event->type == E2B_FS_WRITE) printf(", %ld bytes", (long)event->entry->size); /* as it was then */
  printf("\n");
}

static int watch(e2b_sandbox *sandbox) {
  static const char work[] = "cd watched && echo hello >report.txt && sleep 0.2 && mv report.txt final.txt && "
                             "sleep 0.2 && cd .. && rm -r watched";
  e2b_error err;
  e2b_fs_event event;
  e2b_watch_handle *handle;
  e2b_command_handle *command;
  e2b_watch_opts opts = { 0 };
  e2b_err rc;
  opts.include_entry = true;
  if (e2b_files_make_dir(sandbox, "watched", NULL, NULL, &err) != E2B_OK) return failed("make_dir", &err);
  if (e2b_files_watch_dir(sandbox, "watched", &opts, &handle, &err) != E2B_OK) return failed("watch_dir", &err);
  if (e2b_commands_start(sandbox, work, NULL, &command, &err) != E2B_OK) return failed("start", &err);

  while ((rc = e2b_watch_handle_next(handle, 1000, &event, &err)) == E2B_OK || rc == E2B_PENDING)
    if (rc == E2B_OK) print(&event); /* E2B_PENDING: nothing for a second, time for something else */
  e2b_watch_handle_stop(handle);
  e2b_command_handle_free(command);
  if (rc != E2B_EOF) return failed("next", &err);
  printf("the directory is gone\n");
  return 0;
}

int main(void) {
  e2b_error err;
  e2b_sandbox *sandbox;
  int status = 1;
  e2b_client *client = e2b_client_create(NULL, &err);
  if (!client) return failed("client", &err);

  if (e2b_sandbox_create(client, NULL, NULL, &sandbox, &err) != E2B_OK) {
    failed("create", &err);
  } else {
    status = watch(sandbox);
    if (e2b_sandbox_close(sandbox, NULL, &err) != E2B_OK) status = failed("close", &err);
  }
  e2b_client_free(client);
  return status;
}
