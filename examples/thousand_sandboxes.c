/* cc -std=c99 -I. examples/thousand_sandboxes.c llhttp.c api.c http.c -lmbedtls -lmbedx509 -lmbedcrypto -lpthread -o thousand
   E2B_API_KEY=... ./thousand [sandboxes] [at a time]

   One thread, no blocking call: creates 1,000 sandboxes, 100 requests at a time, runs a command in each while all of them
   live, kills them. Environment as for quickstart.c. Fails when any of it fails. Prints, with times of your machine,

       created 1000 in 1.2 s
       ran     1000 in 3.4 s
       killed  1000 in 0.5 s */

#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef struct crowd {
  e2b_client *client;
  unsigned count, parallel;    /* what was asked for */
  unsigned next, ended, good;  /* of the phase under way */
} crowd;

typedef struct member {
  crowd *all;
  e2b_sandbox *sandbox;
  e2b_command_result result;
  bool killed;
} member;

/* Called from e2b_client_poll when a request of the phase is complete. */
static void on_done(void *user, const e2b_error *err) {
  member *m = (member *)user;
  m->all->ended++;
  if (err->code == E2B_OK) m->all->good++;
  else fprintf(stderr, "%s: %s\n", e2b_err_name(err->code), err->message);
}

static e2b_err create(member *m, const e2b_call *call, e2b_error *err) {
  e2b_sandbox_opts opts = { 0 };
  opts.call = *call;
  return e2b_sandbox_create(m->all->client, NULL, &opts, &m->sandbox, err);
}

static e2b_err run(member *m, const e2b_call *call, e2b_error *err) {
  e2b_run_opts opts = { 0 };
  opts.call = *call;
  return e2b_commands_run(m->sandbox, "echo $$", &opts, &m->result, err);
}

static e2b_err kill_it(member *m, const e2b_call *call, e2b_error *err) {
  return e2b_sandbox_kill(m->sandbox, call, &m->killed, err);
}

/* Does one thing with every sandbox, never more than `parallel` at a time. */
static bool phase(crowd *all, member *members, const char *name, e2b_err (*start)(member *, const e2b_call *, e2b_error *)) {
  struct timespec from, to;
  e2b_error err;
  all->next = all->ended = all->good = 0;
  clock_gettime(CLOCK_MONOTONIC, &from);
  while (all->ended < all->count) {
    while (all->next < all->count && all->next - all->ended < all->parallel) {
      member *m = &members[all->next++];
      e2b_call call = { 0 };
      call.on_done = on_done;
      call.user = m;
      if (start(m, &call, &err) != E2B_PENDING) on_done(m, &err);
    }
    e2b_client_poll(all->client, -1);
  }
  clock_gettime(CLOCK_MONOTONIC, &to);
  printf("%-7s %u in %.1f s\n", name, all->good,
         (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9);
  return all->good == all->count;
}

int main(int argc, char **argv) {
  e2b_error err;
  crowd all = { 0 };
  member *members;
  unsigned i;
  bool ok;
  all.count = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1000;
  all.parallel = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 100;
  members = (member *)calloc(all.count, sizeof *members);
  all.client = e2b_client_create(NULL, &err);
  if (!all.client || !members || !all.count || !all.parallel) {
    fprintf(stderr, "%s\n", all.client ? "usage: thousand [sandboxes] [at a time]" : err.message);
    return 1;
  }
  for (i = 0; i < all.count; i++) members[i].all = &all;
  ok = phase(&all, members, "created", create) && phase(&all, members, "ran", run);
  for (i = 0; i < all.count; i++) e2b_mem_free(&members[i].result.mem);
  ok = phase(&all, members, "killed", kill_it) && ok;
  e2b_client_free(all.client);
  free(members);
  return ok ? 0 : 1;
}
