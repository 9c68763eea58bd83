/* cc -std=c99 -I. examples/own_ca_and_proxy.c llhttp.c api.c http.c -lmbedtls -lmbedx509 -lmbedcrypto -lpthread -o own_ca
   E2B_API_KEY=... ./own_ca CA.pem [http://user:password@proxy:3128]

   A service with a CA of its own, behind an HTTP proxy. The CA is trusted besides those of the system; without a second
   argument the proxy comes from HTTPS_PROXY, if there is one. Environment as for quickstart.c. Prints

       trusting the certificates of CA.pem
       hello through TLS */

#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <stdio.h>

static int failed(const char *what, const e2b_error *err) {
  fprintf(stderr, "%s: %s: %s\n", what, e2b_err_name(err->code), err->message);
  return 1;
}

static int use(e2b_client *client) {
  e2b_error err;
  e2b_sandbox *sandbox;
  e2b_command_result result = { 0 };
  int status = 0;
  if (e2b_sandbox_create(client, NULL, NULL, &sandbox, &err) != E2B_OK) return failed("create", &err);
  if (e2b_commands_run(sandbox, "echo hello through TLS", NULL, &result, &err) == E2B_OK)
    printf("%s", result.stdout_data.ptr);
  else
    status = failed("run", &err);
  e2b_mem_free(&result.mem);
  if (e2b_sandbox_close(sandbox, NULL, &err) != E2B_OK) status = failed("close", &err);
  return status;
}

int main(int argc, char **argv) {
  e2b_error err;
  e2b_client *client;
  e2b_client_config config = { 0 };
  int status;
  if (argc < 2) {
    fprintf(stderr, "usage: own_ca CA.pem [http://user:password@proxy:3128]\n");
    return 2;
  }
  config.tls.ca_file = argv[1];
  config.tls.ca_add = true; /* false: only these, which is stricter where all servers have certificates of this CA */
  if (argc > 2) config.proxy_url = argv[2]; /* for all servers; exceptions would go into config.no_proxy */

  client = e2b_client_create(&config, &err);
  if (!client) return failed("client", &err);
  printf("trusting the certificates of %s\n", argv[1]);
  status = use(client);
  e2b_client_free(client);
  return status;
}
