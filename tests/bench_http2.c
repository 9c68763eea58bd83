/* make bench-http2: what HTTP/2 is for, measured through nghttpx over TLS in front of the local server, from one thread.
 *
 *   many: 1,000 commands at once in 1,000 sandboxes, over one connection
 *   fair: how long small calls take beside a download that its reader takes slowly
 *   far:  a download over a path with a round trip of 25 ms, against HTTP/1.1 without that delay
 *
 *   E2B_FRONT_RUN=build/bench_http2 bash tests/http2.sh build nghttpx [-- sandboxes MiB]
 *
 * E2B_FRONT_URL and E2B_FRONT_CA name the server. Prints last "N passed, N failed, 0 skipped". Wanted: one
 * connection; not more than three times as long and 20 ms; 0.8 of the speed. */
#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

static const char *front_url;
static unsigned under_way, failed_calls, passed, failed;

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void judge(bool ok) {
  if (ok) passed++;
  else failed++;
  printf("  %s\n", ok ? "ok" : "NOT OK");
}

static void say_error(const e2b_error *err) {
  if (failed_calls++ < 5) fprintf(stderr, "%s: %s\n", e2b_err_name(err->code), err->message);
}

static void on_done(void *user, const e2b_error *err) {
  (void)user;
  under_way--;
  if (err->code != E2B_OK) say_error(err);
}

static void settle(e2b_client *client) {
  while (under_way) e2b_client_poll(client, -1);
}

static e2b_client *client_to(const char *url, uint8_t http_version) {
  e2b_client_config config;
  e2b_error err;
  e2b_client *client;
  memset(&config, 0, sizeof config);
  config.no_env = true;
  config.api_key = "test-key";
  config.api_url = config.sandbox_url = url;
  config.tls.ca_file = getenv("E2B_FRONT_CA");
  config.http_version = http_version;
  config.request_timeout_ms = 120000;
  client = e2b_client_create(&config, &err);
  if (!client) {
    fprintf(stderr, "%s\n", err.message);
    exit(1);
  }
  return client;
}

/* ---- many ---- */

static void bench_many(unsigned count) {
  e2b_client *client = client_to(front_url, 2);
  e2b_sandbox **sandboxes = (e2b_sandbox **)calloc(count, sizeof *sandboxes);
  e2b_command_result *results = (e2b_command_result *)calloc(count, sizeof *results);
  e2b_client_stats stats;
  e2b_error err;
  double from, created, ran;
  unsigned i, good = 0;
  from = now_ms();
  for (i = 0; i < count; i++) {
    e2b_sandbox_opts opts;
    memset(&opts, 0, sizeof opts);
    opts.call.on_done = on_done;
    under_way++;
    if (e2b_sandbox_create(client, NULL, &opts, &sandboxes[i], &err) != E2B_PENDING) on_done(NULL, &err);
    if (under_way >= 100) while (under_way >= 100) e2b_client_poll(client, -1);
  }
  settle(client);
  created = now_ms();
  for (i = 0; i < count; i++) {
    e2b_run_opts opts;
    memset(&opts, 0, sizeof opts);
    opts.call.on_done = on_done;
    under_way++;
    if (!sandboxes[i] || e2b_commands_run(sandboxes[i], "echo $$", &opts, &results[i], &err) != E2B_PENDING) on_done(NULL, &err);
  }
  settle(client);
  ran = now_ms();
  e2b_client_get_stats(client, &stats);
  for (i = 0; i < count; i++) {
    if (results[i].mem.ptr) good++;
    e2b_mem_free(&results[i].mem);
    under_way++;
    {
      e2b_call call;
      memset(&call, 0, sizeof call);
      call.on_done = on_done;
      if (!sandboxes[i] || e2b_sandbox_kill(sandboxes[i], &call, NULL, &err) != E2B_PENDING) on_done(NULL, &err);
    }
    while (under_way >= 100) e2b_client_poll(client, -1);
  }
  settle(client);
  printf("many: %u commands at once in %u sandboxes: created in %.1f s, ran in %.1f s, connections made: %u, most memory: %lu KB\n", good,
         count, (created - from) / 1e3, (ran - created) / 1e3, (unsigned)stats.connections_made, (unsigned long)(stats.mem_peak / 1024));
  judge(good == count && stats.connections_made == 1);
  e2b_client_free(client);
  free(sandboxes);
  free(results);
}

/* ---- fair ---- */

typedef struct reader {
  e2b_client *client;
  e2b_op op;
  uint64_t bytes;
  bool slow, paused, done;
  double resume_at;
} reader;

static int take(void *user, const char *data, size_t len) {
  reader *r = (reader *)user;
  (void)data;
  r->bytes += len;
  if (!r->slow) return 0;
  r->paused = true;
  r->resume_at = now_ms() + 5;
  return E2B_PAUSE;
}

static void on_taken(void *user, const e2b_error *err) {
  ((reader *)user)->done = true;
  if (err->code != E2B_OK) say_error(err);
}

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Times of small calls, sorted. */
static void small_calls(e2b_sandbox *sandbox, reader *beside, double *times, unsigned count) {
  unsigned i;
  for (i = 0; i < count; i++) {
    e2b_files_opts opts;
    e2b_error err;
    bool exists;
    double from = now_ms();
    memset(&opts, 0, sizeof opts);
    opts.call.on_done = on_done;
    under_way++;
    if (e2b_files_exists(sandbox, "/", &opts, &exists, &err) != E2B_PENDING) on_done(NULL, &err);
    while (under_way) {
      e2b_client_poll(beside->client, 1);
      if (beside->paused && now_ms() >= beside->resume_at) {
        beside->paused = false;
        e2b_op_resume(beside->client, beside->op);
      }
    }
    times[i] = now_ms() - from;
  }
  qsort(times, count, sizeof *times, compare);
}

static void make_file(e2b_sandbox *sandbox, unsigned mib) {
  char command[100];
  e2b_error err;
  snprintf(command, sizeof command, "head -c %u /dev/zero > bench.bin", mib << 20);
  if (e2b_commands_run(sandbox, command, NULL, NULL, &err)) say_error(&err);
}

static void start_download(e2b_sandbox *sandbox, reader *r) {
  e2b_files_opts opts;
  e2b_error err;
  memset(&opts, 0, sizeof opts);
  opts.call.op = &r->op;
  opts.call.on_done = on_taken;
  opts.call.user = r;
  if (e2b_files_download(sandbox, "bench.bin", take, r, &opts, &err) != E2B_PENDING) say_error(&err), r->done = true;
}

static void bench_fair(void) {
  static double alone[400], beside[400];
  reader r;
  e2b_error err;
  e2b_sandbox *sandbox = NULL;
  memset(&r, 0, sizeof r);
  r.client = client_to(front_url, 2);
  r.slow = true;
  if (e2b_sandbox_create(r.client, NULL, NULL, &sandbox, &err)) say_error(&err), exit(1);
  make_file(sandbox, 256);
  small_calls(sandbox, &r, alone, 400);
  start_download(sandbox, &r);
  while (!r.bytes && !r.done) e2b_client_poll(r.client, 10);
  small_calls(sandbox, &r, beside, 400);
  printf("fair: small calls alone p50 %.2f ms, p99 %.2f ms; beside a slow reader (%lu KB taken meanwhile) p50 %.2f ms, p99 %.2f ms\n",
         alone[200], alone[396], (unsigned long)(r.bytes / 1024), beside[200], beside[396]);
  judge(!r.done && beside[200] < alone[200] * 3 + 20);
  e2b_op_cancel(r.client, r.op);
  (void)e2b_sandbox_kill(sandbox, NULL, NULL, &err);
  e2b_client_free(r.client);
}

/* ---- far: a relay that holds every byte back, without limiting how many are on their way ---- */

#define DELAY_MS 12.5 /* one way */

typedef struct chunk {
  struct chunk *next;
  double due;
  size_t len;
  char bytes[65536];
} chunk;

typedef struct pipe_end {
  int from, to;
  pthread_mutex_t lock;
  pthread_cond_t more;
  chunk *first, *last;
} pipe_end;

static void *relay_out(void *arg) {
  pipe_end *p = (pipe_end *)arg;
  for (;;) {
    chunk *c;
    double wait;
    size_t at = 0;
    pthread_mutex_lock(&p->lock);
    while (!p->first) pthread_cond_wait(&p->more, &p->lock);
    c = p->first;
    p->first = c->next;
    pthread_mutex_unlock(&p->lock);
    wait = c->due - now_ms();
    if (wait > 0) {
      struct timespec t;
      t.tv_sec = (time_t)(wait / 1e3);
      t.tv_nsec = (long)((wait - (double)t.tv_sec * 1e3) * 1e6);
      nanosleep(&t, NULL);
    }
    if (c->len == 0) break;
    while (at < c->len) {
      ssize_t n = send(p->to, c->bytes + at, c->len - at, MSG_NOSIGNAL);
      if (n <= 0) break;
      at += (size_t)n;
    }
    free(c);
  }
  shutdown(p->to, SHUT_WR);
  return NULL;
}

static void *relay_in(void *arg) {
  pipe_end *p = (pipe_end *)arg;
  ssize_t n;
  do {
    chunk *c = (chunk *)malloc(sizeof *c);
    n = recv(p->from, c->bytes, sizeof c->bytes, 0);
    c->len = n > 0 ? (size_t)n : 0;
    c->due = now_ms() + DELAY_MS;
    c->next = NULL;
    pthread_mutex_lock(&p->lock);
    if (p->first) p->last->next = c;
    else p->first = c;
    p->last = c;
    pthread_cond_signal(&p->more);
    pthread_mutex_unlock(&p->lock);
  } while (n > 0);
  return NULL;
}

static void relay_start(int from, int to) {
  pipe_end *p = (pipe_end *)calloc(1, sizeof *p);
  pthread_t thread;
  p->from = from;
  p->to = to;
  pthread_mutex_init(&p->lock, NULL);
  pthread_cond_init(&p->more, NULL);
  if (pthread_create(&thread, NULL, relay_in, p) || pthread_create(&thread, NULL, relay_out, p)) exit(1);
}

static int relay_listener;
static struct sockaddr_in relay_target;

static void *relay_accept(void *arg) {
  int on = 1, a;
  while ((a = accept(relay_listener, NULL, NULL)) >= 0) {
    int b = socket(AF_INET, SOCK_STREAM, 0);
    if (b < 0 || connect(b, (struct sockaddr *)&relay_target, sizeof relay_target)) exit(1);
    (void)setsockopt(a, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (void)setsockopt(b, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    relay_start(a, b);
    relay_start(b, a);
  }
  return arg;
}

/* Returns its port. */
static unsigned relay_open(unsigned target_port) {
  struct sockaddr_in at;
  socklen_t len = sizeof at;
  pthread_t thread;
  memset(&at, 0, sizeof at);
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  relay_target = at;
  relay_target.sin_port = htons((uint16_t)target_port);
  relay_listener = socket(AF_INET, SOCK_STREAM, 0);
  if (relay_listener < 0 || bind(relay_listener, (struct sockaddr *)&at, sizeof at) || listen(relay_listener, 16) ||
      getsockname(relay_listener, (struct sockaddr *)&at, &len) || pthread_create(&thread, NULL, relay_accept, NULL))
    exit(1);
  return ntohs(at.sin_port);
}

/* By a client of its own: no window has grown yet. */
static double download_mb_s(const char *url, uint8_t version, e2b_sandbox *owner, unsigned mib) {
  reader r;
  e2b_error err;
  e2b_sandbox *sandbox = NULL;
  double from, speed;
  memset(&r, 0, sizeof r);
  r.client = client_to(url, version);
  if (e2b_sandbox_connect(r.client, e2b_sandbox_id(owner), NULL, &sandbox, &err)) say_error(&err), exit(1);
  from = now_ms();
  start_download(sandbox, &r);
  while (!r.done) e2b_client_poll(r.client, -1);
  speed = (double)r.bytes / (now_ms() - from) / 1e3;
  if (r.bytes != (uint64_t)mib << 20) failed_calls++;
  e2b_client_free(r.client);
  return speed;
}

#define ROUNDS 5

static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* The one way and the other in turn: what else the machine does then falls on both. */
static void bench_far(unsigned mib) {
  e2b_client *client = client_to(front_url, 2);
  e2b_sandbox *sandbox = NULL;
  e2b_error err;
  double near[ROUNDS], far[ROUNDS], ratio;
  char url[64];
  int i;
  if (e2b_sandbox_create(client, NULL, NULL, &sandbox, &err)) say_error(&err), exit(1);
  make_file(sandbox, mib);
  snprintf(url, sizeof url, "https://localhost:%u", relay_open((unsigned)strtoul(strrchr(front_url, ':') + 1, NULL, 10)));
  for (i = 0; i < ROUNDS; i++) {
    near[i] = download_mb_s(front_url, 1, sandbox, mib);
    far[i] = download_mb_s(url, 2, sandbox, mib);
    printf("  HTTP/1.1 %.0f MB/s, HTTP/2 over %.0f ms %.0f MB/s: %.2f\n", near[i], DELAY_MS * 2, far[i], far[i] / near[i]);
  }
  qsort(near, ROUNDS, sizeof near[0], by_size);
  qsort(far, ROUNDS, sizeof far[0], by_size);
  ratio = far[ROUNDS / 2] / near[ROUNDS / 2];
  printf("far: %u MiB by HTTP/2 over a round trip of %.0f ms: %.0f MB/s; by HTTP/1.1 without it: %.0f MB/s (medians of %d); ratio %.2f\n",
         mib, DELAY_MS * 2, far[ROUNDS / 2], near[ROUNDS / 2], ROUNDS, ratio);
  judge(ratio >= 0.8);
  (void)e2b_sandbox_kill(sandbox, NULL, NULL, &err);
  e2b_client_free(client);
}

int main(int argc, char **argv) {
  front_url = getenv("E2B_FRONT_URL");
  if (!front_url || strncmp(front_url, "https://", 8) != 0) return fprintf(stderr, "bench_http2: E2B_FRONT_URL is not set\n"), 2;
  setvbuf(stdout, NULL, _IOLBF, 0);
  bench_many(argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1000);
  bench_fair();
  bench_far(argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 256);
  if (failed_calls) failed++;
  printf("%u passed, %u failed, 0 skipped\n", passed, failed);
  return failed ? 1 : 0;
}
