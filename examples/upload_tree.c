/* cc -std=c99 -I. examples/upload_tree.c llhttp.c api.c http.c -lmbedtls -lmbedx509 -lmbedcrypto -lpthread -o upload_tree
   E2B_API_KEY=... ./upload_tree [directory [directory in the sandbox]]

   Copies a directory with everything below it into a new sandbox and shows how far it is: on a terminal with a bar,
   else with a line for every tenth that it comes further. What could not be copied is listed on stderr. Environment as
   for quickstart.c. `upload_tree examples | cat` prints (numbers differ)

       # 100 %  5 of 5 files
       copied 5 files, 195407 bytes, and 0 sub-directories; 0 failed, 0 skipped
       the sandbox counts 5 files */

#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <stdio.h>
#if defined(_WIN32)
  #include <io.h>
  #define is_terminal(fd) _isatty(fd)
#else
  #include <unistd.h>
  #define is_terminal(fd) isatty(fd)
#endif

typedef struct bar {
  bool terminal;
  int shown; /* tenths, in plain lines */
} bar;

/* The sum is known when everything was found, until then the bar stands at its beginning. */
static int on_progress(void *user, const e2b_bulk_stats *stats) {
  static const char full[] = "##################################################";
  bar *b = (bar *)user;
  int percent = 0;
  if (stats->all_found) percent = stats->bytes_found ? (int)(stats->bytes_done * 100 / stats->bytes_found) : 100;
  if (b->terminal) {
    printf("\r[%-50.*s] %3d %%  %llu of %llu files", percent / 2, full, percent, (unsigned long long)stats->files_done,
           (unsigned long long)stats->files_found);
    fflush(stdout);
  } else if (percent / 10 > b->shown) {
    b->shown = percent / 10;
    printf("# %d %%  %llu of %llu files\n", percent, (unsigned long long)stats->files_done,
           (unsigned long long)stats->files_found);
  }
  return 0; /* < 0 would cancel */
}

static int on_file(void *user, const e2b_bulk_file *file) {
  (void)user;
  if (file->skipped || file->result->code) fprintf(stderr, "\n%s: %s\n", file->name, file->result->message);
  return 0;
}

int main(int argc, char **argv) {
  const char *from = argc > 1 ? argv[1] : ".", *to = argc > 2 ? argv[2] : "uploaded";
  e2b_client *client;
  e2b_sandbox *sandbox = NULL;
  e2b_bulk_opts opts = { 0 };
  e2b_bulk_stats stats = { 0 };
  e2b_run_opts run = { 0 };
  e2b_command_result result = { 0 };
  e2b_error err;
  e2b_err code;
  bar b = { 0 };
  b.terminal = is_terminal(1) != 0;
  opts.on_progress = on_progress;
  opts.on_file = on_file;
  opts.callback_user = &b;

  client = e2b_client_create(NULL, &err);
  code = client ? e2b_sandbox_create(client, NULL, NULL, &sandbox, &err) : err.code;
  if (!code) {
    code = e2b_files_upload_tree(sandbox, from, to, &opts, &stats, &err);
    if (b.terminal) printf("\n");
    printf("copied %llu files, %llu bytes, and %llu sub-directories; %llu failed, %llu skipped\n",
           (unsigned long long)stats.files_done, (unsigned long long)stats.bytes_done,
           (unsigned long long)stats.dirs_found, (unsigned long long)stats.files_failed,
           (unsigned long long)stats.files_skipped);
  }
  if (!code) {
    e2b_kv directory = { "TO", to };
    run.envs.items = &directory;
    run.envs.count = 1;
    code = e2b_commands_run(sandbox, "echo the sandbox counts $(find \"$TO\" -type f | wc -l) files", &run, &result,
                            &err);
    if (!code) printf("%s", result.stdout_data.ptr);
  }
  if (code) fprintf(stderr, "%s: %s\n", e2b_err_name(err.code), err.message);
  e2b_mem_free(&result.mem);
  e2b_sandbox_close(sandbox, NULL, NULL);
  e2b_client_free(client);
  return code ? 1 : 0;
}
