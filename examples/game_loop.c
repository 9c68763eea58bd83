/* cc -std=c99 -I. examples/game_loop.c llhttp.c api.c http.c -lmbedtls -lmbedx509 -lmbedcrypto -lpthread -o game_loop
   E2B_API_KEY=... ./game_loop

   60 frames a second that must not stutter: each frame gives the client half a millisecond (e2b_client_pump), and nothing
   else of it ever waits. Meanwhile a sandbox is made, four commands run in it, four files of 8 MiB are downloaded, and the
   sandbox is ended, all from the same thread. Environment as for quickstart.c. Prints the following, and then lines
   beginning with '#' that have times of your machine: how long the client took of how many frames.

       sandbox created
       command 0: 0 squared is 0
       command 1: 1 squared is 1
       command 2: 2 squared is 4
       command 3: 3 squared is 9
       downloaded 4 files, 33554432 bytes
       sandbox closed */

#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <stdio.h>
#include <time.h>

#define JOBS 4
#define FILE_BYTES 8388608u
#define FRAME_US 16667u
#define BUDGET_US 500u

typedef enum step { STEP_CREATE, STEP_COMMANDS, STEP_DOWNLOADS, STEP_CLOSE, STEP_END } step;

typedef struct game {
  e2b_client *client;
  e2b_sandbox *sandbox;
  step next;
  unsigned under_way;
  bool failed, over;
  e2b_command_result results[JOBS];
  uint64_t bytes;
} game;

static uint64_t now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static void report(game *g, const e2b_error *err) {
  fprintf(stderr, "%s: %s\n", e2b_err_name(err->code), err->message);
  g->failed = true;
}

/* Called from e2b_client_pump, like all callbacks: on this thread. */
static void on_done(void *user, const e2b_error *err) {
  game *g = (game *)user;
  g->under_way--;
  if (err->code != E2B_OK) report(g, err);
}

static int on_bytes(void *user, const char *data, size_t len) {
  (void)data; /* a texture, a level, ... */
  ((game *)user)->bytes += len;
  return 0;
}

/* What every start of an operation ends with. */
static void started(game *g, e2b_err rc, const e2b_error *err) {
  if (rc == E2B_PENDING) g->under_way++;
  else report(g, err);
}

static e2b_call call_of(game *g) {
  e2b_call call = { 0 };
  call.on_done = on_done;
  call.user = g;
  return call;
}

static void start_commands(game *g) {
  e2b_error err;
  unsigned i;
  for (i = 0; i < JOBS; i++) {
    char command[160];
    e2b_run_opts opts = { 0 };
    opts.call = call_of(g);
    (void)snprintf(command, sizeof command, "head -c %u /dev/zero > /tmp/level%u; sleep 0.2; echo %u squared is $((%u * %u))",
                   FILE_BYTES, i, i, i, i);
    started(g, e2b_commands_run(g->sandbox, command, &opts, &g->results[i], &err), &err);
  }
}

static void start_downloads(game *g) {
  e2b_error err;
  unsigned i;
  for (i = 0; i < JOBS; i++) {
    char path[40];
    e2b_files_opts opts = { 0 };
    opts.call = call_of(g);
    (void)snprintf(path, sizeof path, "/tmp/level%u", i);
    started(g, e2b_files_download(g->sandbox, path, on_bytes, g, &opts, &err), &err);
  }
}

/* Once a step is complete: shows what came of it and starts the next. */
static void advance(game *g) {
  e2b_sandbox_opts opts = { 0 };
  e2b_call call = call_of(g);
  e2b_error err;
  unsigned i;
  opts.call = call;
  switch (g->next) {
  case STEP_CREATE:
    started(g, e2b_sandbox_create(g->client, NULL, &opts, &g->sandbox, &err), &err);
    break;
  case STEP_COMMANDS:
    printf("sandbox created\n");
    start_commands(g);
    break;
  case STEP_DOWNLOADS:
    for (i = 0; i < JOBS; i++) printf("command %u: %s", i, g->results[i].stdout_data.ptr);
    start_downloads(g);
    break;
  case STEP_CLOSE:
    printf("downloaded %u files, %lu bytes\n", (unsigned)JOBS, (unsigned long)g->bytes);
    started(g, e2b_sandbox_close(g->sandbox, &call, &err), &err);
    break;
  case STEP_END:
    printf("sandbox closed\n");
    g->over = true;
    return;
  }
  g->next = (step)(g->next + 1);
}

/* The rest of the frame: here nothing but waiting for its end. */
static void render(uint64_t frame_end) {
  uint64_t now = now_us();
  struct timespec t;
  if (now >= frame_end) return;
  t.tv_sec = 0;
  t.tv_nsec = (long)(frame_end - now) * 1000;
  (void)nanosleep(&t, NULL);
}

static void print_histogram(const unsigned *counts, const uint64_t *limits, size_t count, unsigned frames, uint64_t worst) {
  size_t i;
  printf("# %u frames; the client took up to\n", frames);
  for (i = 0; i < count; i++) {
    unsigned stars = (counts[i] * 50u + frames - 1) / frames;
    printf("# %6lu us %5u %.*s\n", (unsigned long)limits[i], counts[i], (int)stars,
           "**************************************************");
  }
  printf("# %6lu us at most\n", (unsigned long)worst);
}

int main(void) {
  static const uint64_t limits[] = { 50, 100, 250, 500, 750, 1000, 2000, 5000, 16667, 1000000 };
  unsigned counts[sizeof limits / sizeof limits[0]] = { 0 }, frames = 0, i;
  uint64_t worst = 0, frame = now_us();
  game g = { 0 };
  e2b_error err;
  bool good;
  g.client = e2b_client_create(NULL, &err);
  if (!g.client) {
    fprintf(stderr, "%s: %s\n", e2b_err_name(err.code), err.message);
    return 1;
  }
  while (g.under_way || !(g.over || g.failed)) {
    uint64_t from = now_us(), took;
    (void)e2b_client_pump(g.client, BUDGET_US); /* true = there is more to do: as much as the frame allows */
    if (g.under_way == 0 && !g.failed) advance(&g);
    took = now_us() - from;
    worst = took > worst ? took : worst;
    for (i = 0; i + 1 < sizeof limits / sizeof limits[0] && took > limits[i];) i++;
    counts[i]++;
    frames++;
    frame += FRAME_US;
    render(frame);
  }
  good = g.over && !g.failed && g.bytes == (uint64_t)JOBS * FILE_BYTES;
  for (i = 0; i < JOBS; i++) e2b_mem_free(&g.results[i].mem);
  e2b_client_free(g.client); /* had something failed, this would end the rest; the sandbox would end by itself later */
  print_histogram(counts, limits, sizeof limits / sizeof limits[0], frames, worst);
  return good ? 0 : 1;
}
