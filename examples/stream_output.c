/* cc -std=c99 -I. examples/stream_output.c llhttp.c api.c http.c -lmbedtls -lmbedx509 -lmbedcrypto -lpthread -o stream_output
   E2B_API_KEY=... ./stream_output

   Starts a command and takes its output while it runs, twice: pulled, with a loop of your own that may do other things
   in between, and pushed, to a callback. Environment as for quickstart.c. Prints

       pid is known
       out: step 1
       out: step 2
       out: step 3
       err: that was all
       exit code 3
       pushed: a
       pushed: b
       pushed: c */

#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <stdio.h>

static int failed(const char *what, const e2b_error *err) {
  fprintf(stderr, "%s: %s: %s\n", what, e2b_err_name(err->code), err->message);
  return 1;
}

static int pull(e2b_sandbox *sandbox) {
  static const char script[] = "for i in 1 2 3; do echo step $i; sleep 0.1; done; echo that was all >&2; exit 3";
  e2b_error err;
  e2b_command_event event;
  e2b_command_handle *handle;
  e2b_err rc;
  if (e2b_commands_start(sandbox, script, NULL, &handle, &err) != E2B_OK) return failed("start", &err);
  if (e2b_command_handle_pid(handle)) printf("pid is known\n");

  while ((rc = e2b_command_handle_next(handle, 50, &event, &err)) == E2B_OK || rc == E2B_PENDING) {
    if (rc == E2B_PENDING) continue; /* nothing for 50 ms: time for something else */
    if (event.kind == E2B_EVENT_STDOUT) printf("out: %.*s", (int)event.len, event.data);
    if (event.kind == E2B_EVENT_STDERR) printf("err: %.*s", (int)event.len, event.data);
    if (event.kind == E2B_EVENT_EXIT) printf("exit code %d\n", (int)event.exit_code);
  }
  e2b_command_handle_free(handle);
  return rc == E2B_EOF ? 0 : failed("next", &err);
}

static int print(void *user, const char *data, size_t len) {
  printf("%s: %.*s", (const char *)user, (int)len, data);
  return 0; /* go on; < 0 would cancel */
}

static int push(e2b_sandbox *sandbox) {
  e2b_error err;
  e2b_run_opts opts = { 0 };
  opts.on_stdout = print;
  opts.output_user = (void *)"pushed";
  opts.no_collect = true; /* the callback has it, no need to keep it: constant memory */
  if (e2b_commands_run(sandbox, "for i in a b c; do echo $i; sleep 0.1; done", &opts, NULL, &err) == E2B_OK) return 0;
  return failed("run", &err);
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
    status = pull(sandbox) || push(sandbox);
    if (e2b_sandbox_close(sandbox, NULL, &err) != E2B_OK) status = failed("close", &err);
  }
  e2b_client_free(client);
  return status;
}
