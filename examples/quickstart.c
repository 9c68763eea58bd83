/* cc -std=c99 -I. examples/quickstart.c llhttp.c api.c http.c -lmbedtls -lmbedx509 -lmbedcrypto -lpthread -o quickstart
   E2B_API_KEY=... ./quickstart          (`make demo` runs it against a server on this machine)

   A sandbox from first to last: create it, run a command in it, make a directory, end it. Key, domain and URLs come from
   the environment: E2B_API_KEY, E2B_DOMAIN, or E2B_API_URL and E2B_SANDBOX_URL. Prints

       hello
       demo is there */

#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <stdio.h>

static int failed(const char *what, const e2b_error *err) {
  fprintf(stderr, "%s: %s: %s\n", what, e2b_err_name(err->code), err->message);
  return 1;
}

static int use(e2b_sandbox *sandbox) {
  e2b_error err;
  e2b_command_result result = { 0 };
  bool created;

  if (e2b_commands_run(sandbox, "echo hello", NULL, &result, &err) != E2B_OK) {
    e2b_mem_free(&result.mem); /* a command that failed has a result too */
    return failed("echo hello", &err);
  }
  printf("%s", result.stdout_data.ptr);
  e2b_mem_free(&result.mem);

  if (e2b_files_make_dir(sandbox, "demo", NULL, &created, &err) != E2B_OK) return failed("make_dir", &err);
  printf("demo %s\n", created ? "is there" : "was there already");
  return 0;
}

int main(void) {
  e2b_error err;
  e2b_sandbox *sandbox;
  int status;
  e2b_client *client = e2b_client_create(NULL, &err);
  if (!client) return failed("client", &err);

  if (e2b_sandbox_create(client, NULL, NULL, &sandbox, &err) != E2B_OK) {
    status = failed("create", &err);
  } else {
    status = use(sandbox);
    if (e2b_sandbox_close(sandbox, NULL, &err) != E2B_OK) status = failed("close", &err); /* kills the sandbox */
  }
  e2b_client_free(client);
  return status;
}
