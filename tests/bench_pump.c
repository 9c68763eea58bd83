/* make bench: how long one e2b_client_pump with a budget of 500 us takes while 64 downloads run, as a frame loop sees it.
   E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY name the server.     bench_pump [downloads] [MiB of each] [budget us] */
#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct bench {
  unsigned ended, failed;
  uint64_t bytes;
} bench;

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int sink(void *user, const char *data, size_t len) {
  (void)data;
  ((bench *)user)->bytes += len;
  return 0;
}

static void on_done(void *user, const e2b_error *err) {
  bench *b = (bench *)user;
  b->ended++;
  if (err->code == E2B_OK) return;
  b->failed++;
  fprintf(stderr, "%s: %s\n", e2b_err_name(err->code), err->message);
}

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static unsigned argument(int argc, char **argv, int i, unsigned otherwise) {
  return argc > i ? (unsigned)strtoul(argv[i], NULL, 10) : otherwise;
}

int main(int argc, char **argv) {
  unsigned downloads = argument(argc, argv, 1, 64), mib = argument(argc, argv, 2, 8), budget = argument(argc, argv, 3, 500), i;
  size_t count = 0, cap = 1000000;
  double *times = (double *)malloc(cap * sizeof *times), began, took;
  bench b = { 0, 0, 0 };
  e2b_error err;
  e2b_sandbox *sandbox = NULL;
  e2b_files_opts opts;
  char command[100];
  e2b_client *client = e2b_client_create(NULL, &err);
  memset(&opts, 0, sizeof opts);
  snprintf(command, sizeof command, "head -c %u /dev/zero > bench.bin", mib << 20);
  if (!times || !client || e2b_sandbox_create(client, NULL, NULL, &sandbox, &err) ||
      e2b_commands_run(sandbox, command, NULL, NULL, &err)) {
    fprintf(stderr, "%s: %s\n", e2b_err_name(err.code), err.message);
    return 1;
  }

  opts.call.on_done = on_done;
  opts.call.user = &b;
  for (i = 0; i < downloads; i++)
    if (e2b_files_download(sandbox, "bench.bin", sink, &b, &opts, &err) != E2B_PENDING) on_done(&b, &err);
  began = now_us();
  while (b.ended < downloads) {
    double from = now_us();
    bool more = e2b_client_pump(client, budget);
    took = now_us() - from;
    if (count < cap) times[count++] = took;
    if (!more) { /* the rest of a frame; short, so that the downloads keep going */
      struct timespec pause = { 0, 50000 };
      nanosleep(&pause, NULL);
    }
  }
  took = now_us() - began;

  qsort(times, count, sizeof *times, compare);
  printf("%u downloads of %u MiB, budget %u us: %lu calls, p50 %.1f us, p99 %.1f us, max %.1f us, %.0f MB/s\n", downloads, mib, budget,
         (unsigned long)count, times[count / 2], times[count - 1 - count / 100], times[count - 1], (double)b.bytes / took);
  if (b.bytes != (uint64_t)downloads * mib * 1048576u) b.failed++;
  if (e2b_sandbox_close(sandbox, NULL, &err) != E2B_OK) b.failed++;
  e2b_client_free(client);
  free(times);
  return b.failed ? 1 : 0;
}
