/* cc -std=c99 -I. examples/code_interpreter.c llhttp.c api.c http.c -lmbedtls -lmbedx509 -lmbedcrypto -lpthread -o code_interpreter
   E2B_API_KEY=... ./code_interpreter

   Runs Python in the code interpreter of a sandbox, which remembers what earlier runs defined: what the code prints comes
   as it is printed, the value of its last expression comes back as text and more, an exception as an answer. Environment
   as for quickstart.c. Prints

       printed: counting
       printed: 3 numbers
       text: 42
       html: <b>42</b>
       run 3 raised ZeroDivisionError: division by zero */

#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <stdio.h>

static int failed(const char *what, const e2b_error *err) {
  fprintf(stderr, "%s: %s: %s\n", what, e2b_err_name(err->code), err->message);
  return 1;
}

static int on_event(void *user, const e2b_code_event *event) {
  (void)user;
  if (event->kind == E2B_CODE_STDOUT) printf("printed: %s", event->text.ptr);
  return 0; /* go on; < 0 would interrupt the code */
}

static int use(e2b_sandbox *sandbox) {
  static const char define[] = "import time\n"
                               "print('counting')\n"
                               "numbers = [6, 7, 42]\n"
                               "time.sleep(0.2)\n"
                               "print(len(numbers), 'numbers')\n";
  static const char show[] = "class Bold:\n"
                             "  def __init__(self, value): self.value = value\n"
                             "  def __repr__(self): return str(self.value)\n"
                             "  def _repr_html_(self): return f'<b>{self.value}</b>'\n"
                             "Bold(numbers[0] * numbers[1])\n";
  e2b_error err;
  e2b_run_code_opts opts = { 0 };
  e2b_execution execution = { 0 };
  e2b_err rc;

  opts.on_event = on_event;
  if (e2b_code_run(sandbox, define, &opts, NULL, &err) != E2B_OK) return failed("run 1", &err);

  rc = e2b_code_run(sandbox, show, NULL, &execution, &err);
  if (rc == E2B_OK) printf("text: %s\nhtml: %s\n", e2b_execution_text(&execution), execution.results[0].html.ptr);
  e2b_mem_free(&execution.mem);
  if (rc != E2B_OK) return failed("run 2", &err);

  rc = e2b_code_run(sandbox, "numbers[0] / 0", NULL, &execution, &err);
  if (rc == E2B_CODE_FAILED)
    printf("run %d raised %s: %s\n", (int)execution.execution_count, execution.error->name, execution.error->value);
  e2b_mem_free(&execution.mem);
  return rc == E2B_CODE_FAILED ? 0 : failed("run 3", &err);
}

int main(void) {
  e2b_error err;
  e2b_sandbox *sandbox;
  int status = 1;
  e2b_client *client = e2b_client_create(NULL, &err);
  if (!client) return failed("client", &err);

  if (e2b_sandbox_create(client, "code-interpreter-v1", NULL, &sandbox, &err) != E2B_OK) {
    failed("create", &err);
  } else {
    status = use(sandbox);
    if (e2b_sandbox_close(sandbox, NULL, &err) != E2B_OK) status = failed("close", &err);
  }
  e2b_client_free(client);
  return status;
}
