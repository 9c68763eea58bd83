/* make soak SECONDS=600: everything at once on one thread, for as long as you like, over a network that fails.

       soak [seconds [seed]]

   Clients, sandboxes, commands, input, terminals, files, trees, watches and code, at random, half of it through a relay of
   this program's own that cuts, resets, stalls and dribbles; canceled and freed at random in the middle. What succeeded is
   compared byte by byte with what it should be; what failed must have a reason; what nothing disturbed has to succeed; what
   was started has to end. Every few seconds all of it is ended and there must be nothing left: no operation, no descriptor,
   no block of memory, no sandbox, no process in one.

   E2B_URLS and E2B_API_KEY name local servers on this machine (tests/with_servers.sh). The seed decides what is tried, not what
   the network makes of it. Prints a table of what became of it
   all and last "N passed, N failed, N skipped": operations and rests. */
#include <stddef.h>
static void *soak_malloc(size_t size);
static void *soak_realloc(void *ptr, size_t size);
static void soak_free(void *ptr);
#define E2B_MALLOC(size) soak_malloc(size)
#define E2B_REALLOC(ptr, size) soak_realloc(ptr, size)
#define E2B_FREE(ptr) soak_free(ptr)
#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <time.h>
#include <unistd.h>
#if defined(__GLIBC__)
  #include <malloc.h>
#endif

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- chance, time, memory ---------------------------------------------------------------------------------------- */

static uint64_t chance_state;

static uint64_t chance_next(uint64_t *state) { /* splitmix64 */
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/* 0 .. n - 1 */
static unsigned chance(unsigned n) {
  return (unsigned)(chance_next(&chance_state) % n);
}

/* Up to `most`, small ones as likely as large ones. */
static size_t chance_size(size_t most) {
  size_t n = 1;
  while (n < most && chance(6) != 0) n *= 2;
  return n == 1 ? chance(3) : n / 2 + chance((unsigned)(n < most ? n : most) - (unsigned)(n / 2) + 1);
}

static uint64_t now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

/* E2B_MALLOC with a head that knows the size. */
#define HEAD 16
static long heap_bytes, heap_blocks;

static void *heap_keep(uint8_t *block, size_t size) {
  if (!block) return NULL;
  memcpy(block, &size, sizeof size);
  __atomic_add_fetch(&heap_bytes, (long)size, __ATOMIC_RELAXED);
  __atomic_add_fetch(&heap_blocks, 1, __ATOMIC_RELAXED);
  return block + HEAD;
}

static void heap_forget(uint8_t *block) {
  size_t size;
  memcpy(&size, block, sizeof size);
  __atomic_sub_fetch(&heap_bytes, (long)size, __ATOMIC_RELAXED);
  __atomic_sub_fetch(&heap_blocks, 1, __ATOMIC_RELAXED);
}

static void *soak_malloc(size_t size) {
  return heap_keep((uint8_t *)malloc(size + HEAD), size);
}

static void *soak_realloc(void *ptr, size_t size) {
  uint8_t *block = (uint8_t *)ptr - HEAD;
  if (!ptr) return soak_malloc(size);
  heap_forget(block);
  return heap_keep((uint8_t *)realloc(block, size + HEAD), size);
}

static void soak_free(void *ptr) {
  if (!ptr) return;
  heap_forget((uint8_t *)ptr - HEAD);
  free((uint8_t *)ptr - HEAD);
}

/* All that malloc has given out, mbedTLS' part included; 0 where nobody knows. */
static size_t heap_all(void) {
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
  return mallinfo2().uordblks;
#else
  return 0;
#endif
}

/* AddressSanitizer keeps what was freed. */
#if defined(__SANITIZE_ADDRESS__)
  #define RSS_TELLS false
#elif defined(__has_feature)
  #if __has_feature(address_sanitizer)
    #define RSS_TELLS false
  #endif
#endif
#ifndef RSS_TELLS
  #define RSS_TELLS true
#endif

static long resident_kib(void) {
  char text[4096];
  FILE *f = fopen("/proc/self/status", "r");
  long kib = 0;
  while (f && fgets(text, sizeof text, f))
    if (strncmp(text, "VmRSS:", 6) == 0) kib = strtol(text + 6, NULL, 10);
  if (f) fclose(f);
  return kib;
}

static int open_fds(void) {
  int count = 0;
  DIR *dir = opendir("/proc/self/fd");
  while (dir && readdir(dir)) count++;
  if (dir) closedir(dir);
  return count;
}

/* ---- what went wrong --------------------------------------------------------------------------------------------- */

static long passed, failed;

static void wrong(const char *what, const char *format, ...) {
  char text[600];
  va_list args;
  va_start(args, format);
  (void)vsnprintf(text, sizeof text, format, args);
  va_end(args);
  failed++;
  if (failed <= 50) printf("not ok - %s: %s\n", what, text);
  fflush(stdout);
}

/* ---- the relay --------------------------------------------------------------------------------------------------- */

typedef struct target {
  char url[200], relay_url[200];
  uint16_t port;
  bool tls, http2;
  int listener;
} target;

#define TARGETS 8
static target targets[TARGETS];
static unsigned target_count;

typedef enum plan { PLAN_PASS, PLAN_CUT, PLAN_RESET, PLAN_STALL, PLAN_STALL_RESET, PLAN_HALF, PLAN_DRIBBLE, PLAN_COUNT } plan;
static const char *const plan_names[PLAN_COUNT] = { "passed on", "cut", "reset", "stalled", "stalled, then reset", "half closed", "dribbled" };
static unsigned long plan_counts[PLAN_COUNT];

/* Two sockets, 0 the client's, 1 the server's, and what was read from each and not yet written to the other. */
typedef struct tunnel {
  int fd[2];
  uint8_t *data[2];
  size_t len[2], off[2];
  bool ended[2], shut[2]; /* nothing more comes from it; nothing more goes to it */
  plan plan;
  int64_t left;           /* bytes until the plan strikes, < 0 = never */
  uint64_t asleep_until;
} tunnel;

#define TUNNELS 400
#define TUNNEL_BUF 16384
static tunnel tunnels[TUNNELS];
static unsigned tunnel_count;

static bool listen_at(target *t) {
  struct sockaddr_in at;
  socklen_t len = sizeof at;
  memset(&at, 0, sizeof at);
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  t->listener = socket(AF_INET, SOCK_STREAM, 0);
  if (t->listener < 0 || bind(t->listener, (struct sockaddr *)&at, sizeof at) || listen(t->listener, 256) ||
      getsockname(t->listener, (struct sockaddr *)&at, &len) || fcntl(t->listener, F_SETFL, O_NONBLOCK))
    return false;
  (void)snprintf(t->relay_url, sizeof t->relay_url, "%s://localhost:%u", t->tls ? "https" : "http", (unsigned)ntohs(at.sin_port));
  return true;
}

static void tunnel_close(tunnel *t, bool reset) {
  struct linger now = { 1, 0 };
  int i;
  if (reset) (void)setsockopt(t->fd[0], SOL_SOCKET, SO_LINGER, &now, sizeof now);
  for (i = 0; i < 2; i++) {
    close(t->fd[i]);
    free(t->data[i]);
  }
  *t = tunnels[--tunnel_count];
}

static void relay_accept(target *target) {
  struct sockaddr_in to;
  tunnel t;
  int i;
  memset(&t, 0, sizeof t);
  t.fd[0] = accept(target->listener, NULL, NULL);
  if (t.fd[0] < 0) return;
  t.fd[1] = socket(AF_INET, SOCK_STREAM, 0);
  memset(&to, 0, sizeof to);
  to.sin_family = AF_INET;
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  to.sin_port = htons(target->port);
  if (tunnel_count == TUNNELS || t.fd[1] < 0 || connect(t.fd[1], (struct sockaddr *)&to, sizeof to) != 0) {
    if (t.fd[1] >= 0) close(t.fd[1]);
    close(t.fd[0]);
    return;
  }
  for (i = 0; i < 2; i++) {
    (void)fcntl(t.fd[i], F_SETFL, O_NONBLOCK);
    t.data[i] = (uint8_t *)malloc(TUNNEL_BUF);
  }
  t.plan = chance(3) ? PLAN_PASS : (plan)(1 + chance(PLAN_COUNT - 1));
  t.left = t.plan == PLAN_PASS || t.plan == PLAN_DRIBBLE ? -1 : (int64_t)chance_size((size_t)1 << 21);
  plan_counts[t.plan]++;
  tunnels[tunnel_count++] = t;
}

/* The plan of this tunnel has come due. False when it is gone. */
static bool tunnel_strike(tunnel *t) {
  t->left = -1;
  switch (t->plan) {
    case PLAN_CUT: tunnel_close(t, false); return false;
    case PLAN_RESET: tunnel_close(t, true); return false;
    case PLAN_STALL:
      t->asleep_until = now_ms() + 50 + chance(4000);
      t->plan = PLAN_PASS;
      return true;
    case PLAN_STALL_RESET:
      t->asleep_until = now_ms() + 50 + chance(2000);
      t->plan = PLAN_RESET;
      t->left = 0;
      return true;
    case PLAN_HALF:
      (void)shutdown(t->fd[0], SHUT_WR);
      t->shut[0] = true;
      return true;
    default: return true;
  }
}

/* One direction, as far as it goes without waiting. False when the tunnel is gone. */
static bool tunnel_move(tunnel *t, int from) {
  int to = !from;
  ssize_t n;
  if (t->len[from] == t->off[from] && !t->ended[from]) {
    size_t cap = t->plan == PLAN_DRIBBLE ? 1 + chance(50) : TUNNEL_BUF;
    n = recv(t->fd[from], t->data[from], cap, 0);
    t->off[from] = 0;
    t->len[from] = n > 0 ? (size_t)n : 0;
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) t->ended[from] = true;
  }
  if (t->left >= 0 && (size_t)t->left <= t->len[from] - t->off[from]) {
    n = t->left > 0 && !t->shut[to] ? send(t->fd[to], t->data[from] + t->off[from], (size_t)t->left, MSG_NOSIGNAL) : 0;
    if (n > 0) t->off[from] += (size_t)n;
    return tunnel_strike(t);
  }
  if (t->len[from] > t->off[from]) {
    n = t->shut[to] ? (ssize_t)(t->len[from] - t->off[from]) /* nobody reads it any more */
                    : send(t->fd[to], t->data[from] + t->off[from], t->len[from] - t->off[from], MSG_NOSIGNAL);
    if (n > 0) {
      t->off[from] += (size_t)n;
      if (t->left >= 0) t->left -= n;
    } else if (n < 0 && errno != EAGAIN && errno != EINTR) {
      tunnel_close(t, true);
      return false;
    }
  }
  if (t->ended[from] && t->off[from] == t->len[from] && !t->shut[to]) {
    (void)shutdown(t->fd[to], SHUT_WR);
    t->shut[to] = true;
  }
  return true;
}

static void relay_step(void) {
  unsigned i;
  uint64_t now = now_ms();
  for (i = 0; i < target_count; i++) relay_accept(&targets[i]);
  for (i = 0; i < tunnel_count;) {
    tunnel *t = &tunnels[i];
    if (t->asleep_until > now) {
      i++;
      continue;
    }
    if (!tunnel_move(t, 0) || !tunnel_move(t, 1)) continue; /* another one has come to this place */
    if (t->ended[0] && t->off[0] == t->len[0] && (t->ended[1] || t->plan == PLAN_HALF)) tunnel_close(t, false);
    else i++;
  }
}

static size_t relay_fds(struct pollfd *out) {
  size_t count = 0;
  unsigned i;
  int k;
  uint64_t now = now_ms();
  for (i = 0; i < target_count; i++) {
    out[count].fd = targets[i].listener;
    out[count++].events = POLLIN;
  }
  for (i = 0; i < tunnel_count; i++)
    for (k = 0; k < 2; k++) {
      const tunnel *t = &tunnels[i];
      short events = 0;
      if (t->asleep_until > now) continue;
      if (t->len[k] == t->off[k] && !t->ended[k]) events |= POLLIN;
      if (t->len[!k] > t->off[!k]) events |= POLLOUT;
      if (!events) continue;
      out[count].fd = t->fd[k];
      out[count++].events = events;
    }
  return count;
}

/* ---- clients and sandboxes --------------------------------------------------------------------------------------- */

typedef struct box {
  e2b_sandbox *handle; /* NULL = none */
  bool disturbed;      /* killed, or about to be */
  bool busy;           /* a create or close is under way */
} box;

#define BOXES 3
typedef struct member {
  e2b_client *client; /* NULL = none */
  target *at;
  bool relayed;
  bool limited;       /* to few connections, which what streams may hold for ever */
  box boxes[BOXES];
  char config[100];   /* what is special about it */
  uint64_t until;     /* freed then, whatever is under way */
} member;

#define MEMBERS 5
static member members[MEMBERS];
static char marker[40]; /* in the environment of every process of ours in a sandbox */
static const char *api_key, *ca_file;
static int32_t fair_ms = 120000; /* the deadline of what nothing disturbs */
static char scratch[64]; /* a directory of ours */

static e2b_client_config config_for(const target *at, bool relayed) {
  e2b_client_config config;
  memset(&config, 0, sizeof config);
  config.no_env = true;
  config.api_key = api_key;
  config.api_url = config.sandbox_url = relayed ? at->relay_url : at->url;
  if (at->tls) config.tls.ca_file = ca_file;
  config.http_version = at->http2 ? 2 : 0;
  return config;
}

static void member_make(member *m) {
  static const uint32_t windows[] = { 0, 4096, 16384, 262144 }, buffers[] = { 0, 1024, 4096, 65536 };
  e2b_client_config config;
  e2b_error err;
  memset(m, 0, sizeof *m);
  m->at = &targets[chance(target_count)];
  m->relayed = chance(3) != 0;
  config = config_for(m->at, m->relayed);
  config.stream_buffer_size = windows[chance(4)];
  config.io_buffer_size = buffers[chance(4)];
  if (chance(3) == 0) config.codec = E2B_CODEC_JSON;
  m->limited = chance(4) == 0;
  if (m->limited) config.max_connections = 2 + chance(6);
  if (chance(4) == 0) config.max_idle_connections = 1;
  (void)snprintf(m->config, sizeof m->config, "stream %lu, io %lu, %s, connections %lu, idle %lu", (unsigned long)config.stream_buffer_size,
                 (unsigned long)config.io_buffer_size, config.codec ? "json" : "protobuf", (unsigned long)config.max_connections,
                 (unsigned long)config.max_idle_connections);
  m->until = now_ms() + 500 + chance(12000);
  m->client = e2b_client_create(&config, &err);
  if (!m->client) wrong("e2b_client_create", "%s", err.message);
}

/* ---- jobs -------------------------------------------------------------------------------------------------------- */

typedef enum kind {
  JOB_NONE, JOB_CREATE, JOB_CLOSE, JOB_RUN, JOB_PUSHED, JOB_PULLED, JOB_INPUT, JOB_PTY, JOB_FILE, JOB_TREE, JOB_WATCH, JOB_CODE, JOB_LIST,
  JOB_KINDS
} kind;
static const char *const kind_names[JOB_KINDS] = { "", "create", "close", "run", "pushed output", "pulled output", "input", "pty",
                                                   "file", "tree", "watch", "code", "list" };

typedef struct job {
  kind kind;
  unsigned stage, way, number;
  member *m;
  box *b;
  e2b_op op;
  bool pending, by_callback, pulling, dropped; /* dropped: its sandbox handle is gone, and with that handle, stream, watch */
  bool disturbed;     /* by us; besides what happens to its client and its box */
  bool paused, next_in_callback;
  int completions;
  e2b_error err;
  uint64_t started, cancel_at, resume_at;
  e2b_err first;      /* of a file: what became of the write */
  size_t size, at, lines;
  uint32_t pid;
  uint8_t *data;
  char path[80], local[120];
  bool answer;
  e2b_command_handle *handle;
  e2b_file_stream *stream;
  e2b_watch_handle *watch;
  e2b_command_result result;
  e2b_buf back;
  e2b_execution execution;
  e2b_sandbox_list list;
  e2b_entry_list entries;
  e2b_process_list processes;
  e2b_write_info info;
  e2b_bulk_stats stats;
} job;

#define JOBS 40
static job jobs[JOBS];
static unsigned job_number;
static unsigned long outcomes[JOB_KINDS][200]; /* by code + 100 */
static char nonces[4096][40];                  /* of creates that may have been done */
static const target *nonce_targets[4096];
static unsigned nonce_numbers[4096], nonce_count;

static unsigned gave_up; /* calls that nghttpx answered itself */

/* nghttpx says 502 when a connection of its own to the server, which it had kept, is lost under a request that it will not repeat:
 * no fault of ours, and told as it is. Now and then. */
static bool front_gave_up(const job *j) {
  return j->m->at->http2 && j->err.code == E2B_ERR_UNAVAILABLE && j->err.http_status == 502 && strstr(j->err.message, "nghttpx");
}

static bool job_fair(const job *j) {
  return !j->disturbed && !j->m->relayed && !j->m->limited && !(j->b && j->b->disturbed) && !j->dropped;
}

static void job_wrong(const job *j, const char *what, const char *more) {
  wrong(kind_names[j->kind], "job %u, way %u, stage %u, size %lu, at %lu, %s%s, http%s%s (%s): %s: %s", j->number, j->way, j->stage,
        (unsigned long)j->size, (unsigned long)(j->lines ? j->lines : j->at), j->m->relayed ? "relayed" : "direct", j->disturbed ? ", disturbed" : "",
        j->m->at->tls ? "s" : "", j->m->at->http2 ? " (2)" : "", j->m->config, what, more);
}

/* What may become of a call that something disturbed. */
static bool may_fail_with(e2b_err code) {
  static const e2b_err good[] = { E2B_ERR_CANCELED, E2B_ERR_TIMEOUT, E2B_ERR_IDLE_TIMEOUT, E2B_ERR_CONNECT, E2B_ERR_TLS, E2B_ERR_CLOSED,
                                  E2B_ERR_IO, E2B_ERR_TRUNCATED, E2B_ERR_NOT_FOUND, E2B_ERR_UNAVAILABLE, E2B_ERR_SANDBOX_GONE };
  size_t i;
  for (i = 0; i < COUNT(good); i++)
    if (code == good[i]) return true;
  return false;
}

static void local_remove(const char *path) {
  char name[400];
  struct dirent *entry;
  DIR *dir = opendir(path);
  while (dir && (entry = readdir(dir)) != NULL) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    (void)snprintf(name, sizeof name, "%.120s/%.255s", path, entry->d_name);
    local_remove(name);
  }
  if (dir) closedir(dir);
  (void)remove(path);
}

/* The end of a job: counts its outcome, judges it, lets go of all it has. */
static void job_end(job *j, e2b_err code) {
  bool ok = true;
  outcomes[j->kind][code + 100]++;
  if (code < 0 && front_gave_up(j)) {
    gave_up++;
  } else if (code < 0 && job_fair(j)) {
    job_wrong(j, e2b_err_name(code), j->err.message);
    ok = false;
  } else if (code < 0 && !may_fail_with(code)) {
    job_wrong(j, e2b_err_name(code), j->err.message);
    ok = false;
  }
  if (!j->dropped) {
    if (chance(4)) e2b_command_handle_free(j->handle);
    if (chance(4)) e2b_file_stream_free(j->stream);
    if (chance(4)) e2b_watch_handle_stop(j->watch); /* what is left is freed with the sandbox */
  }
  e2b_mem_free(&j->result.mem);
  e2b_mem_free(&j->back.mem);
  e2b_mem_free(&j->execution.mem);
  e2b_mem_free(&j->list.mem);
  e2b_mem_free(&j->entries.mem);
  e2b_mem_free(&j->processes.mem);
  e2b_mem_free(&j->info.mem);
  free(j->data);
  if (j->local[0]) local_remove(j->local);
  if (j->b && (j->kind == JOB_CREATE || j->kind == JOB_CLOSE)) j->b->busy = false;
  if (ok) passed++;
  memset(j, 0, sizeof *j);
}

static void job_next(job *j, e2b_err code);

/* Callbacks come once, and not after a cancel. */
static void on_job(void *user, const e2b_error *err) {
  job *j = (job *)user;
  if (!j->pending || j->completions++) {
    wrong("e2b_done_fn", "called once too often: %s", err->message);
    return;
  }
  j->err = *err;
  j->pending = false;
  if (j->next_in_callback && !j->dropped && j->m->client) job_next(j, err->code);
}

/* How the next call of a job is done. */
static e2b_call job_call(job *j, bool short_one) {
  e2b_call call;
  memset(&call, 0, sizeof call);
  j->by_callback = chance(2) == 0;
  j->next_in_callback = chance(2) == 0;
  call.op = &j->op;
  if (j->by_callback) call.on_done = on_job;
  call.user = j;
  call.timeout_ms = call.idle_ms = fair_ms;
  if (j->m->relayed || j->m->limited) {
    call.timeout_ms = 4000 + (int)chance(8000);
    call.idle_ms = 500 + (int)chance(4000);
  }
  if (short_one && chance(12) == 0) {
    j->disturbed = true;
    call.timeout_ms = 1 + (int)chance_size(300);
  }
  if (short_one && chance(12) == 0) {
    j->disturbed = true;
    j->cancel_at = now_ms() + chance_size(1000);
  }
  return call;
}

/* After a call: its return code. */
static void job_started(job *j, e2b_err code, const e2b_error *err) {
  if (code == E2B_PENDING) {
    j->pending = true;
    j->completions = 0;
    return;
  }
  j->err = *err;
  if (code >= 0) job_wrong(j, "a call did not wait", e2b_err_name(code));
  job_end(j, code);
}

static uint8_t *noise(size_t size, uint64_t seed) {
  uint8_t *data = (uint8_t *)malloc(size + 8);
  size_t i;
  for (i = 0; i < size; i += 8) {
    uint64_t x = chance_next(&seed);
    memcpy(data + i, &x, 8);
  }
  return data;
}

/* Compares with what `seq 1 lines` prints, from byte j->at on. False at the first difference. */
static bool sequence_is(job *j, const char *data, size_t len) {
  char line[24];
  size_t i = 0, n;
  while (i < len) {
    if (j->stage >= 1000000) return false;
    n = (size_t)snprintf(line, sizeof line, "%lu\n", (unsigned long)j->lines + 1);
    for (; i < len && j->at < n; i++, j->at++)
      if (data[i] != line[j->at]) return false;
    if (j->at == n) {
      j->at = 0;
      j->lines++;
    }
  }
  return true;
}

/* ---- commands ---- */

static e2b_run_opts run_opts(job *j) {
  e2b_run_opts opts;
  memset(&opts, 0, sizeof opts);
  opts.call = job_call(j, true);
  opts.run_timeout_ms = 100000;
  return opts;
}

static void run_start(job *j) {
  e2b_run_opts opts = run_opts(j);
  char command[120];
  e2b_error err;
  j->size = chance_size(60000);
  (void)snprintf(command, sizeof command, "seq 1 %lu; echo err%u >&2; exit %u", (unsigned long)j->size, j->number, j->number % 4);
  job_started(j, e2b_commands_run(j->b->handle, command, &opts, &j->result, &err), &err);
}

static void run_done(job *j, e2b_err code) {
  char want[40];
  const e2b_command_result *r = &j->result;
  (void)snprintf(want, sizeof want, "err%u\n", j->number);
  if (r->stdout_data.ptr && !sequence_is(j, r->stdout_data.ptr, r->stdout_data.len)) job_wrong(j, "its output is not what it wrote", e2b_err_name(code));
  if (code == E2B_OK || code == E2B_COMMAND_EXIT) {
    if (j->lines != j->size || j->at) job_wrong(j, "a part of its output is missing", e2b_err_name(code));
    if (strcmp(r->stderr_data.ptr, want) != 0) job_wrong(j, "stderr", r->stderr_data.ptr);
    if (r->exit_code != (int32_t)(j->number % 4) || (code == E2B_OK) != (r->exit_code == 0)) job_wrong(j, "exit code", r->status);
  }
  job_end(j, code);
}

static int pushed(void *user, const char *data, size_t len) {
  job *j = (job *)user;
  if (!sequence_is(j, data, len)) job_wrong(j, "its output is not what it wrote", "pushed");
  if (chance(20)) return 0;
  j->paused = true;
  j->resume_at = now_ms() + chance(30);
  return E2B_PAUSE;
}

static void pushed_start(job *j) {
  e2b_run_opts opts = run_opts(j);
  char command[120];
  e2b_error err;
  j->size = chance_size(200000);
  opts.on_stdout = pushed;
  opts.output_user = j;
  opts.no_collect = true;
  (void)snprintf(command, sizeof command, "seq 1 %lu", (unsigned long)j->size);
  job_started(j, e2b_commands_run(j->b->handle, command, &opts, NULL, &err), &err);
}

static void pushed_done(job *j, e2b_err code) {
  if (code == E2B_OK && (j->lines != j->size || j->at)) job_wrong(j, "a part of its output is missing", "pushed");
  job_end(j, code);
}

static void pulled_start(job *j) {
  e2b_run_opts opts = run_opts(j);
  char command[120];
  e2b_error err;
  j->size = chance_size(200000);
  (void)snprintf(command, sizeof command, "seq 1 %lu", (unsigned long)j->size);
  job_started(j, e2b_commands_start(j->b->handle, command, &opts, &j->handle, &err), &err);
}

/* Takes what is there. */
static void pulled_pull(job *j) {
  e2b_command_event event;
  e2b_err code;
  int events;
  for (events = 0; events < 8; events++) {
    if (chance(2000) == 0) {
      j->disturbed = true;
      if (chance(2)) e2b_command_handle_disconnect(j->handle);
      else {
        e2b_command_handle_free(j->handle);
        j->handle = NULL;
        job_end(j, E2B_ERR_CANCELED);
        return;
      }
    }
    code = e2b_command_handle_next(j->handle, 0, &event, &j->err);
    if (code == E2B_PENDING) return;
    if (code == E2B_OK && event.kind == E2B_EVENT_STDOUT && !sequence_is(j, event.data, event.len)) job_wrong(j, "its output is not what it wrote", "pulled");
    if (code == E2B_OK && event.kind == E2B_EVENT_EXIT) {
      j->answer = true;
      if (event.exit_code != 0 || j->lines != j->size || j->at) job_wrong(j, "a part of its output is missing", "pulled");
    }
    if (code == E2B_OK) continue;
    if (code == E2B_EOF && !j->answer) job_wrong(j, "the end without an exit", "pulled");
    job_end(j, code == E2B_EOF ? E2B_OK : code);
    return;
  }
}

static void input_start(job *j) {
  e2b_run_opts opts = run_opts(j);
  e2b_error err;
  j->size = chance_size((size_t)1 << 19);
  j->data = noise(j->size, j->number);
  opts.stdin_open = true;
  job_started(j, e2b_commands_start(j->b->handle, "sha256sum", &opts, &j->handle, &err), &err);
}

static void input_next(job *j, e2b_err code) {
  e2b_call call;
  e2b_error err;
  uint8_t hash[32];
  char hex[65];
  int i;
  if (code < 0 || j->stage == 4) {
    if (code == E2B_OK) {
      (void)e2b__sha256(j->data, j->size, hash);
      for (i = 0; i < 32; i++) (void)snprintf(hex + 2 * i, 3, "%02x", hash[i]);
      if (strncmp(j->result.stdout_data.ptr, hex, 64) != 0) job_wrong(j, "what was sent is not what arrived", j->result.stdout_data.ptr);
    }
    job_end(j, code);
    return;
  }
  call = job_call(j, j->stage == 1);
  if (j->stage == 1) code = e2b_command_handle_send_stdin(j->handle, j->data, j->size, &call, &err);
  if (j->stage == 2) code = e2b_command_handle_close_stdin(j->handle, &call, &err);
  if (j->stage == 3) code = e2b_command_handle_wait(j->handle, &call, &j->result, &err);
  job_started(j, code, &err);
}

static void pty_start(job *j) {
  e2b_pty_opts opts;
  e2b_error err;
  memset(&opts, 0, sizeof opts);
  opts.call = job_call(j, true);
  opts.run_timeout_ms = 60000;
  job_started(j, e2b_pty_create(j->b->handle, &opts, &j->handle, &err), &err);
}

static void pty_next(job *j, e2b_err code) {
  e2b_call call;
  e2b_error err;
  if (code < 0 || j->stage == 3) {
    (void)snprintf(j->local, sizeof j->local, "%u", j->number * 7 + 11);
    if (code == E2B_OK && !strstr(j->result.stdout_data.ptr, j->local)) job_wrong(j, "the shell did not answer", j->result.stdout_data.ptr);
    j->local[0] = 0;
    job_end(j, code);
    return;
  }
  call = job_call(j, false);
  if (j->stage == 1) {
    j->data = (uint8_t *)malloc(80);
    (void)snprintf((char *)j->data, 80, "echo $((%u * 7 + 11)); exit 0\n", j->number);
    code = e2b_pty_send_input(j->b->handle, e2b_command_handle_pid(j->handle), j->data, strlen((char *)j->data), &call, &err);
  } else
    code = e2b_command_handle_wait(j->handle, &call, &j->result, &err);
  job_started(j, code, &err);
}

/* ---- files ---- */

static int file_source(void *user, void *buf, size_t cap) {
  job *j = (job *)user;
  size_t n = j->size - j->at < cap ? j->size - j->at : cap;
  if (n > 100 && chance(10) == 0) n = 1 + chance(100);
  memcpy(buf, j->data + j->at, n);
  j->at += n;
  return (int)n;
}

static int file_sink(void *user, const char *data, size_t len) {
  job *j = (job *)user;
  if (j->at + len > j->size || memcmp(j->data + j->at, data, len) != 0) j->answer = true; /* it differs */
  j->at += len;
  return 0;
}

static void file_start(job *j) {
  e2b_files_opts opts;
  e2b_error err;
  e2b_err code;
  memset(&opts, 0, sizeof opts);
  opts.call = job_call(j, true);
  j->size = chance_size(chance(20) ? (size_t)1 << 19 : (size_t)6 << 20);
  j->data = noise(j->size, j->number);
  j->way = chance(8);
  opts.atomic = (j->way & 4) != 0;
  (void)snprintf(j->path, sizeof j->path, "soak-%u", j->number);
  if ((j->way & 3) == 0) code = e2b_files_write(j->b->handle, j->path, j->data, j->size, &opts, &j->info, &err);
  else if ((j->way & 3) == 3) code = e2b_files_write_stream(j->b->handle, j->path, (int64_t)j->size, &opts, &j->stream, &err);
  else code = e2b_files_upload(j->b->handle, j->path, file_source, j, (j->way & 3) == 1 ? (int64_t)j->size : -1, &opts, &j->info, &err);
  job_started(j, code, &err);
}

/* Reads back what was written, or perhaps not: an atomic write is all there or not at all. */
static void file_read_back(job *j, e2b_err written) {
  e2b_files_opts opts;
  e2b_error err;
  e2b_err code;
  memset(&opts, 0, sizeof opts);
  j->first = written;
  j->stage = 2;
  j->at = 0;
  if (written < 0 && (written == E2B_ERR_CANCELED || j->dropped || !(j->way & 4))) {
    job_end(j, written);
    return;
  }
  if (!j->dropped) e2b_file_stream_free(j->stream);
  j->stream = NULL;
  opts.call = job_call(j, true);
  j->way = (j->way & 4) | chance(3);
  if ((j->way & 3) == 0) code = e2b_files_read(j->b->handle, j->path, &opts, &j->back, &err);
  else if ((j->way & 3) == 1) code = e2b_files_download(j->b->handle, j->path, file_sink, j, &opts, &err);
  else code = e2b_files_read_stream(j->b->handle, j->path, &opts, &j->stream, &err);
  job_started(j, code, &err);
}

static void file_compare(job *j, e2b_err code) {
  bool same = j->at == j->size && !j->answer;
  if (code == E2B_OK && (j->way & 3) == 0)
    same = j->back.len == j->size && (!j->size || memcmp(j->back.data, j->data, j->size) == 0);
  if (code == E2B_OK && !same) job_wrong(j, "what was read is not what was written", e2b_err_name(j->first));
  if (code < 0 && code != E2B_ERR_NOT_FOUND && j->answer) job_wrong(j, "a part of what was read is not what was written", e2b_err_name(code));
  if (j->first == E2B_OK && code == E2B_ERR_NOT_FOUND && j->err.subject == E2B_SUBJECT_FILE) job_wrong(j, "a file that was written is not there", j->err.message);
  job_end(j, j->first < 0 && code == E2B_ERR_NOT_FOUND ? j->first : code);
}

static void file_pull(job *j) {
  uint8_t buf[8192];
  size_t n;
  e2b_err code = E2B_PENDING;
  int turns;
  for (turns = 0; turns < 8; turns++) {
    if (j->stage < 2 && j->at < j->size) {
      code = e2b_file_stream_write(j->stream, 0, j->data + j->at, j->size - j->at, &n, &j->err);
      j->at += n;
    } else if (j->stage < 2) {
      code = e2b_file_stream_finish(j->stream, 0, &j->info, &j->err);
      if (code == E2B_OK) code = E2B_EOF;
    } else {
      code = e2b_file_stream_read(j->stream, 0, buf, sizeof buf, &n, &j->err);
      if (code == E2B_OK) (void)file_sink(j, (char *)buf, n);
    }
    if (code == E2B_PENDING) return;
    if (code != E2B_OK) break;
  }
  if (code == E2B_OK) return;
  j->pulling = false;
  if (code == E2B_EOF) code = E2B_OK;
  if (j->stage < 2) file_read_back(j, code);
  else file_compare(j, code);
}

static void file_next(job *j, e2b_err code) {
  if (code == E2B_OK && j->stream) j->pulling = true;
  else if (j->stage == 1) file_read_back(j, code);
  else file_compare(j, code);
}

/* ---- trees ---- */

#define TREE_FILES 6

static void tree_path(char out[160], const char *dir, int i) {
  (void)snprintf(out, 160, "%s/%sf%d", dir, i % 2 ? "sub/" : "", i);
}

static size_t tree_size(int i) {
  return (size_t)i * (size_t)i * 7001;
}

static bool tree_make(const char *dir) {
  char path[160];
  int i;
  (void)snprintf(path, sizeof path, "%s/sub", dir);
  if (mkdir(dir, 0700) || mkdir(path, 0700)) return false;
  for (i = 0; i < TREE_FILES; i++) {
    uint8_t *data = noise(tree_size(i), (uint64_t)i);
    FILE *f;
    tree_path(path, dir, i);
    f = fopen(path, "wb");
    if (!f || fwrite(data, 1, tree_size(i), f) != tree_size(i) || fclose(f)) return false;
    free(data);
  }
  return true;
}

/* Every file under its name is whole; with `all`, none is missing. */
static const char *tree_differs(const char *dir, bool all) {
  char path[160];
  int i;
  for (i = 0; i < TREE_FILES; i++) {
    size_t size = tree_size(i), n;
    uint8_t *want = noise(size, (uint64_t)i), *have = (uint8_t *)malloc(size + 1);
    FILE *f;
    bool same;
    tree_path(path, dir, i);
    f = fopen(path, "rb");
    n = f ? fread(have, 1, size + 1, f) : 0;
    same = f ? n == size && (!size || memcmp(want, have, size) == 0) : !all;
    if (f) fclose(f);
    free(want);
    free(have);
    if (!same) return f ? "a file is not what it was" : "a file is missing";
  }
  return NULL;
}

static bool tree_has_parts(const char *dir) {
  char name[400];
  struct dirent *entry;
  DIR *d = opendir(dir);
  bool has = false;
  while (d && (entry = readdir(d)) != NULL) {
    if (strncmp(entry->d_name, ".e2b-", 5) == 0) has = true;
    if (strcmp(entry->d_name, "sub") == 0) {
      (void)snprintf(name, sizeof name, "%.120s/sub", dir);
      if (tree_has_parts(name)) has = true;
    }
  }
  if (d) closedir(d);
  return has;
}

static void tree_start(job *j) {
  e2b_bulk_opts opts;
  char from[100];
  e2b_error err;
  memset(&opts, 0, sizeof opts);
  opts.call = job_call(j, true);
  opts.parallel = chance(4);
  opts.batch_bytes = chance(2) ? 0 : 1 + chance(30000);
  (void)snprintf(j->path, sizeof j->path, "tree-%u", j->number);
  (void)snprintf(from, sizeof from, "%s/tree", scratch);
  job_started(j, e2b_files_upload_tree(j->b->handle, from, j->path, &opts, &j->stats, &err), &err);
}

static void tree_next(job *j, e2b_err code) {
  e2b_bulk_opts opts;
  const char *differs;
  e2b_error err;
  if (code < 0 || j->stage == 2) {
    if (code == E2B_OK && j->stats.files_done != TREE_FILES) job_wrong(j, "not all files are said to be done", "tree");
    if (j->stage == 2 && (differs = tree_differs(j->local, code == E2B_OK)) != NULL) job_wrong(j, differs, e2b_err_name(code));
    if (j->stage == 2 && !j->m->client && tree_has_parts(j->local)) j->disturbed = true;
    else if (j->stage == 2 && tree_has_parts(j->local)) job_wrong(j, "a part of a file was left", e2b_err_name(code));
    job_end(j, code);
    return;
  }
  memset(&opts, 0, sizeof opts);
  opts.call = job_call(j, true);
  opts.parallel = chance(4);
  (void)snprintf(j->local, sizeof j->local, "%s/down-%u", scratch, j->number);
  job_started(j, e2b_files_download_tree(j->b->handle, j->path, j->local, &opts, &j->stats, &err), &err);
}

/* ---- the rest ---- */

static void watch_start(job *j) {
  e2b_watch_opts opts;
  e2b_error err;
  memset(&opts, 0, sizeof opts);
  opts.call = job_call(j, true);
  opts.polling = chance(3) == 0;
  opts.poll_interval_ms = 50;
  job_started(j, e2b_files_watch_dir(j->b->handle, ".", &opts, &j->watch, &err), &err);
}

static void watch_next(job *j, e2b_err code) {
  e2b_files_opts opts;
  e2b_error err;
  if (code < 0) {
    job_end(j, code);
    return;
  }
  if (j->stage == 2) {
    j->pulling = true;
    return;
  }
  memset(&opts, 0, sizeof opts);
  opts.call = job_call(j, false);
  (void)snprintf(j->path, sizeof j->path, "watched-%u", j->number);
  job_started(j, e2b_files_write_text(j->b->handle, j->path, "x", &opts, NULL, &err), &err);
}

static void watch_pull(job *j) {
  e2b_fs_event event;
  e2b_err code = e2b_watch_handle_next(j->watch, 0, &event, &j->err);
  bool in_gap; /* where what we wait for may have been: the relay broke the watch, or it waited too long for a connection */
  if (code == E2B_PENDING) return;
  in_gap = code == E2B_OK && event.type == E2B_FS_GAP && !job_fair(j);
  if (code == E2B_OK && !in_gap && strcmp(event.name, j->path) != 0) return;
  if (in_gap) j->disturbed = true;
  job_end(j, code == E2B_EOF ? E2B_ERR_NOT_FOUND : code);
}

static void code_start(job *j) {
  e2b_run_code_opts opts;
  char code[80];
  e2b_error err;
  memset(&opts, 0, sizeof opts);
  opts.call = job_call(j, true);
  (void)snprintf(code, sizeof code, "print(%u * 7)\n%u * 11", j->number, j->number);
  job_started(j, e2b_code_run(j->b->handle, code, &opts, &j->execution, &err), &err);
}

static void code_done(job *j, e2b_err code) {
  char out[40], text[40];
  (void)snprintf(out, sizeof out, "%u\n", j->number * 7);
  (void)snprintf(text, sizeof text, "%u", j->number * 11);
  if (code == E2B_OK && (strcmp(j->execution.stdout_data.ptr, out) != 0 || strcmp(e2b_execution_text(&j->execution), text) != 0))
    job_wrong(j, "the code gave something else", j->execution.stdout_data.ptr);
  job_end(j, code);
}

static void list_start(job *j) {
  e2b_list_opts list;
  e2b_files_opts files;
  e2b_call call = job_call(j, true);
  e2b_error err;
  e2b_err code;
  memset(&list, 0, sizeof list);
  memset(&files, 0, sizeof files);
  list.call = files.call = call;
  j->way = chance(4);
  if (j->way == 0) code = e2b_api_list(j->m->client, &list, &j->list, &err);
  else if (j->way == 1) code = e2b_files_list(j->b->handle, ".", &files, &j->entries, &err);
  else if (j->way == 2) code = e2b_commands_list(j->b->handle, &call, &j->processes, &err);
  else code = e2b_sandbox_is_running(j->b->handle, &call, &j->answer, &err);
  job_started(j, code, &err);
}

static void list_done(job *j, e2b_err code) {
  if (code == E2B_OK && j->way == 3 && !j->answer && job_fair(j)) job_wrong(j, "a sandbox that runs is said not to", "");
  if (code == E2B_OK && j->way == 0 && j->list.count == 0 && job_fair(j)) job_wrong(j, "no sandbox is listed", "");
  job_end(j, code);
}

static void create_start(job *j) {
  static e2b_kv envs[1], metadata[1];
  static char number[20];
  e2b_sandbox_opts opts;
  e2b_error err;
  memset(&opts, 0, sizeof opts);
  opts.call = job_call(j, true);
  (void)snprintf(number, sizeof number, "%u", j->number);
  envs[0].key = "E2B_SOAK";
  envs[0].value = marker;
  metadata[0].key = "job";
  metadata[0].value = number;
  opts.env_vars.items = envs;
  opts.metadata.items = metadata;
  opts.env_vars.count = opts.metadata.count = 1;
  j->b->busy = true;
  job_started(j, e2b_sandbox_create(j->m->client, NULL, &opts, &j->b->handle, &err), &err);
}

static void create_done(job *j, e2b_err code) {
  if (code == E2B_OK) j->b->disturbed = false;
  if (code < 0 && j->m->client) j->b->handle = NULL;
  if (code < 0 && j->err.maybe_done && !j->err.nonce[0]) job_wrong(j, "it may have been done, but there is no nonce", j->err.message);
  if (code < 0 && j->err.maybe_done && nonce_count < COUNT(nonces)) {
    nonce_targets[nonce_count] = j->m->at;
    nonce_numbers[nonce_count] = j->number;
    (void)snprintf(nonces[nonce_count++], sizeof nonces[0], "%s", j->err.nonce);
  }
  job_end(j, code);
}

/* The jobs of a sandbox lose its handle, and with that what they have of it. */
static void box_dropped(member *m, const box *b) {
  size_t i;
  for (i = 0; i < JOBS; i++) {
    job *j = &jobs[i];
    if (j->kind == JOB_NONE || j->m != m || (b && j->b != b) || (j->kind == JOB_CLOSE && j->b == b && b)) continue;
    j->dropped = true;
    j->handle = NULL;
    j->stream = NULL;
    j->watch = NULL;
  }
}

static void close_start(job *j) {
  e2b_call call = job_call(j, false);
  e2b_sandbox *handle = j->b->handle;
  e2b_error err;
  j->b->disturbed = j->b->busy = true;
  j->b->handle = NULL;
  box_dropped(j->m, j->b);
  job_started(j, e2b_sandbox_close(handle, &call, &err), &err);
}

/* ---- driving the jobs -------------------------------------------------------------------------------------------- */

/* A call of the job has ended. */
static void job_next(job *j, e2b_err code) {
  j->stage++;
  j->cancel_at = 0;
  if (j->dropped && code >= 0 && j->kind != JOB_CREATE && j->kind != JOB_CLOSE && j->m->client) code = E2B_ERR_CANCELED;
  switch (j->kind) {
    case JOB_CREATE: create_done(j, code); break;
    case JOB_RUN: run_done(j, code); break;
    case JOB_PUSHED: pushed_done(j, code); break;
    case JOB_PULLED:
      if (code < 0) job_end(j, code);
      else j->pulling = true;
      break;
    case JOB_INPUT: input_next(j, code); break;
    case JOB_PTY: pty_next(j, code); break;
    case JOB_FILE: file_next(j, code); break;
    case JOB_TREE: tree_next(j, code); break;
    case JOB_WATCH: watch_next(j, code); break;
    case JOB_CODE: code_done(j, code); break;
    case JOB_LIST: list_done(j, code); break;
    default: job_end(j, code); break;
  }
}

static void job_begin(job *j, member *m, box *b, kind kind) {
  memset(j, 0, sizeof *j);
  j->kind = kind;
  j->m = m;
  j->b = b;
  j->number = ++job_number;
  j->started = now_ms();
  switch (kind) {
    case JOB_CREATE: create_start(j); break;
    case JOB_CLOSE: close_start(j); break;
    case JOB_RUN: run_start(j); break;
    case JOB_PUSHED: pushed_start(j); break;
    case JOB_PULLED: pulled_start(j); break;
    case JOB_INPUT: input_start(j); break;
    case JOB_PTY: pty_start(j); break;
    case JOB_FILE: file_start(j); break;
    case JOB_TREE: tree_start(j); break;
    case JOB_WATCH: watch_start(j); break;
    case JOB_CODE: code_start(j); break;
    default: list_start(j); break;
  }
}

static void job_pull(job *j) {
  if (j->kind == JOB_PULLED) pulled_pull(j);
  else if (j->kind == JOB_FILE) file_pull(j);
  else if (j->kind == JOB_WATCH) watch_pull(j);
}

#define LONGEST_MS 400000u /* a job has at most three calls of 120 s */

static void job_step(job *j, uint64_t now) {
  e2b_err code;
  if (j->kind == JOB_NONE) return;
  if (now - j->started > LONGEST_MS) {
    job_wrong(j, "it does not end", j->pending ? "pending" : "pulling");
    exit(1);
  }
  if (j->pending && j->paused && now >= j->resume_at) {
    j->paused = false;
    e2b_op_resume(j->m->client, j->op);
  }
  if (j->pending && j->cancel_at && now >= j->cancel_at && j->kind != JOB_CREATE) {
    e2b_op_cancel(j->m->client, j->op);
    if (e2b_op_poll(j->m->client, j->op, &j->err) != E2B_ERR_BAD_STATE) job_wrong(j, "there is an operation after its cancel", "");
    j->pending = false;
    job_end(j, E2B_ERR_CANCELED);
    return;
  }
  if (j->pending && !j->by_callback) {
    code = e2b_op_poll(j->m->client, j->op, &j->err);
    if (code == E2B_PENDING) return;
    j->pending = false;
    job_next(j, code);
    return;
  }
  if (j->pending) return;
  if (j->completions && !j->pulling) { /* by a callback that left the next step to us */
    j->completions = 0;
    job_next(j, j->err.code);
  } else if (j->pulling && j->dropped)
    job_end(j, E2B_ERR_CANCELED);
  else if (j->pulling)
    job_pull(j);
}

/* Frees a client with all that is under way. */
static void member_free(member *m) {
  e2b_client *client = m->client;
  size_t i;
  if (!client) return;
  box_dropped(m, NULL);
  m->client = NULL;
  for (i = 0; i < JOBS; i++)
    if (jobs[i].kind != JOB_NONE && jobs[i].m == m) jobs[i].disturbed = true;
  for (i = 0; i < BOXES; i++) m->boxes[i].disturbed = true;
  e2b_client_free(client);
  for (i = 0; i < JOBS; i++) {
    job *j = &jobs[i];
    if (j->kind == JOB_NONE || j->m != m) continue;
    if (j->pending && j->by_callback) job_wrong(j, "nobody told that it was canceled", "e2b_client_free");
    j->pending = false;
    if (j->kind == JOB_CREATE && j->completions && j->err.code < 0) create_done(j, j->err.code);
    else job_end(j, E2B_ERR_CANCELED);
  }
  memset(m, 0, sizeof *m);
}

/* Forgets a sandbox, or kills it, with all that is under way there. */
static void box_end(member *m, box *b) {
  size_t i;
  if (!b->handle || b->busy) return;
  b->disturbed = true;
  if (chance(2)) {
    for (i = 0; i < JOBS; i++)
      if (jobs[i].kind == JOB_NONE) {
        job_begin(&jobs[i], m, b, JOB_CLOSE);
        return;
      }
  }
  e2b_sandbox_free(b->handle);
  b->handle = NULL;
  box_dropped(m, b);
}

/* Perhaps begins something new. */
static void begin_something(void) {
  static const kind often[] = { JOB_RUN, JOB_RUN, JOB_PUSHED, JOB_PULLED, JOB_INPUT, JOB_PTY, JOB_FILE, JOB_FILE, JOB_FILE, JOB_TREE, JOB_WATCH, JOB_LIST, JOB_LIST };
  member *m = &members[chance(MEMBERS)];
  box *b = &m->boxes[chance(BOXES)];
  size_t i;
  if (!m->client) {
    member_make(m);
    return;
  }
  for (i = 0; i < JOBS && jobs[i].kind != JOB_NONE; i++) continue;
  if (i == JOBS || b->busy) return;
  if (!b->handle) job_begin(&jobs[i], m, b, JOB_CREATE);
  else if (chance(40) == 0) box_end(m, b);
  else job_begin(&jobs[i], m, b, chance(40) ? often[chance(COUNT(often))] : JOB_CODE);
}

/* ---- one loop for all -------------------------------------------------------------------------------------------- */

#define FDS 2000

static void turn(void) {
  static struct pollfd fds[TARGETS + 2 * TUNNELS + MEMBERS * FDS];
  static e2b_pollfd wanted[FDS];
  size_t from[MEMBERS], counts[MEMBERS], count = relay_fds(fds), i, k;
  int wait = 10;
  uint64_t now;
  for (i = 0; i < MEMBERS; i++) {
    int ms;
    from[i] = count;
    counts[i] = 0;
    if (!members[i].client) continue;
    counts[i] = e2b_client_fds(members[i].client, wanted, FDS);
    for (k = 0; k < counts[i]; k++, count++) {
      fds[count].fd = (int)wanted[k].fd;
      fds[count].events = (short)((wanted[k].events & E2B_FD_READ ? POLLIN : 0) | (wanted[k].events & E2B_FD_WRITE ? POLLOUT : 0));
    }
    ms = e2b_client_next_timeout(members[i].client);
    if (ms >= 0 && ms < wait) wait = ms;
  }
  (void)poll(fds, (nfds_t)count, wait);
  relay_step();
  for (i = 0; i < MEMBERS; i++) {
    if (!members[i].client) continue;
    for (k = 0; k < counts[i]; k++) {
      const struct pollfd *f = &fds[from[i] + k];
      wanted[k].fd = f->fd;
      wanted[k].events = 0;
      wanted[k].revents = (f->revents & (POLLIN | POLLHUP | POLLERR) ? E2B_FD_READ : 0u) | (f->revents & (POLLOUT | POLLHUP | POLLERR) ? E2B_FD_WRITE : 0u);
    }
    switch (chance(4)) {
      case 0: (void)e2b_client_pump(members[i].client, 50 + chance(1000)); break;
      case 1: (void)e2b_client_poll(members[i].client, 0); break;
      case 2: (void)e2b_client_process(members[i].client, NULL, 0, chance(2) * chance(500)); break;
      default: (void)e2b_client_process(members[i].client, wanted, counts[i], 0); break;
    }
  }
  now = now_ms();
  for (i = 0; i < JOBS; i++) job_step(&jobs[i], now);
}

static bool idle(void) {
  size_t i;
  for (i = 0; i < JOBS; i++)
    if (jobs[i].kind != JOB_NONE) return false;
  return true;
}

/* ---- rests ------------------------------------------------------------------------------------------------------- */

/* Kills what was left behind: by its nonce where a create may have been done, then all there is. */
static void clean_up(const target *at) {
  e2b_client_config config = config_for(at, false);
  e2b_error err;
  e2b_client *client = e2b_client_create(&config, &err);
  e2b_sandbox_list list;
  e2b_sandbox_info info;
  unsigned i;
  size_t k;
  char number[20];
  memset(&list, 0, sizeof list);
  memset(&info, 0, sizeof info);
  if (!client) {
    wrong("e2b_client_create", "%s", err.message);
    return;
  }
  for (i = 0; i < nonce_count; i++) {
    e2b_err code = nonce_targets[i] == at ? e2b_api_find_by_nonce(client, nonces[i], NULL, &info, &err) : E2B_ERR_NOT_FOUND;
    if (code != E2B_OK && code != E2B_ERR_NOT_FOUND) wrong("e2b_api_find_by_nonce", "%s", err.message);
    (void)snprintf(number, sizeof number, "%u", nonce_numbers[i]);
    for (k = 0; code == E2B_OK && k < info.metadata.count; k++)
      if (strcmp(info.metadata.items[k].key, "job") == 0 && strcmp(info.metadata.items[k].value, number) != 0) wrong("e2b_api_find_by_nonce", "the sandbox is another one");
    if (code == E2B_OK && e2b_api_kill(client, info.sandbox_id, NULL, NULL, &err) != E2B_OK) wrong("e2b_api_kill", "%s", err.message);
    e2b_mem_free(&info.mem);
  }
  do {
    if (e2b_api_list(client, NULL, &list, &err) != E2B_OK) {
      wrong("e2b_api_list", "%s", err.message);
      break;
    }
    for (k = 0; k < list.count; k++)
      if (e2b_api_kill(client, list.items[k].sandbox_id, NULL, NULL, &err) != E2B_OK) wrong("e2b_api_kill", "%s", err.message);
    k = list.count;
    e2b_mem_free(&list.mem);
  } while (k > 0);
  e2b_client_free(client);
}

/* Processes with our mark in their environment, this one not. */
static int marked_processes(void) {
  static char text[65536];
  char path[300], mark[60];
  struct dirent *entry;
  DIR *dir = opendir("/proc");
  int count = 0;
  size_t mark_len = (size_t)snprintf(mark, sizeof mark, "E2B_SOAK=%s", marker) + 1;
  while (dir && (entry = readdir(dir)) != NULL) {
    size_t n, i;
    FILE *f;
    if (entry->d_name[0] < '0' || entry->d_name[0] > '9') continue;
    (void)snprintf(path, sizeof path, "/proc/%.20s/environ", entry->d_name);
    f = fopen(path, "rb");
    if (!f) continue;
    n = fread(text, 1, sizeof text, f);
    fclose(f);
    for (i = 0; i + mark_len <= n; i++)
      if (memcmp(text + i, mark, mark_len) == 0) break;
    if (i + mark_len <= n) count++;
  }
  if (dir) closedir(dir);
  return count;
}

typedef struct footprint {
  int fds;
  long bytes, blocks;
  size_t malloced;
  long rss_kib;
} footprint;

static footprint footprint_now(void) {
  footprint f;
  f.fds = open_fds();
  f.bytes = __atomic_load_n(&heap_bytes, __ATOMIC_SEQ_CST);
  f.blocks = __atomic_load_n(&heap_blocks, __ATOMIC_SEQ_CST);
  f.malloced = heap_all();
  f.rss_kib = resident_kib();
  return f;
}

/* Ends everything, gently or not, and looks at what is left. */
static footprint rest(bool gently, const footprint *before) {
  footprint f;
  uint64_t from = now_ms();
  long faults = failed;
  size_t i;
  int left = 1;
  while (gently && !idle()) turn();
  for (i = 0; i < MEMBERS; i++) member_free(&members[i]);
  if (!idle()) wrong("rest", "a job has outlived its client");
  while (tunnel_count > 0 && now_ms() - from < 600000) { /* each sees that the client has gone */
    struct pollfd fds[TARGETS + 2 * TUNNELS];
    (void)poll(fds, (nfds_t)relay_fds(fds), 10);
    relay_step();
  }
  for (i = 0; i < target_count; i++) clean_up(&targets[i]);
  nonce_count = 0;
  for (i = 0; i < 3000 && (left = marked_processes()) > 0; i++) (void)poll(NULL, 0, 10);
  if (left > 0) wrong("rest", "%d processes of sandboxes that were killed still run", left);
  f = footprint_now();
  if (f.bytes || f.blocks) wrong("rest", "%ld bytes in %ld blocks are still allocated", f.bytes, f.blocks);
  if (f.fds != before->fds) wrong("rest", "%d descriptors are open, not %d", f.fds, before->fds);
  if (before->malloced && f.malloced > before->malloced + ((size_t)1 << 19)) /* malloc counts its caches too */
    wrong("rest", "malloc has given out %lu bytes, not %lu", (unsigned long)f.malloced, (unsigned long)before->malloced);
  if (failed == faults) passed++;
  return f;
}

/* ---- results ----------------------------------------------------------------------------------------------------- */

static void print_outcomes(void) {
  size_t k;
  int i;
  for (k = 1; k < JOB_KINDS; k++) {
    printf("%-14s", kind_names[k]);
    for (i = 199; i >= 0; i--)
      if (outcomes[k][i]) printf(" %s %lu", e2b_err_name((e2b_err)(i - 100)) + 4, outcomes[k][i]);
    printf("\n");
  }
  printf("connections through the relay:");
  for (k = 0; k < PLAN_COUNT; k++) printf("%s %s %lu", k ? "," : "", plan_names[k], plan_counts[k]);
  printf("\n");
}

static bool target_add(const char *url) {
  target *t = &targets[target_count];
  const char *port;
  memset(t, 0, sizeof *t);
  if (target_count == TARGETS) return false;
  if (strncmp(url, "h2:", 3) == 0) {
    t->http2 = true;
    url += 3;
  }
  t->tls = strncmp(url, "https:", 6) == 0;
  (void)snprintf(t->url, sizeof t->url, "%s", url);
  port = strrchr(url, ':');
  t->port = port ? (uint16_t)strtoul(port + 1, NULL, 10) : 0;
  target_count++;
  return t->port != 0 && listen_at(t);
}

static bool targets_open(void) {
  const char *urls = getenv("E2B_URLS");
  char one[200];
  api_key = getenv("E2B_API_KEY");
  ca_file = getenv("NODE_EXTRA_CA_CERTS");
  while (urls && *urls) {
    size_t len = strcspn(urls, " ");
    (void)snprintf(one, sizeof one, "%.*s", (int)len, urls);
    if (len && !target_add(one)) return false;
    urls += len + strspn(urls + len, " ");
  }
  return target_count > 0 && api_key;
}

int main(int argc, char **argv) {
  uint64_t seconds = argc > 1 ? strtoull(argv[1], NULL, 10) : 600, start = now_ms(), end = start + seconds * 1000;
  uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : (uint64_t)time(NULL) * 1000003u + (uint64_t)getpid();
  footprint base, warm, now;
  char dir[100];
  unsigned rests = 0;
  size_t i;
  if (getenv("SOAK_FAIR_MS")) fair_ms = (int32_t)strtol(getenv("SOAK_FAIR_MS"), NULL, 10);
  (void)signal(SIGPIPE, SIG_IGN);
  (void)snprintf(marker, sizeof marker, "%ld-%lu", (long)getpid(), (unsigned long)(seed % 1000000));
  (void)snprintf(scratch, sizeof scratch, "/tmp/e2b-soak-XXXXXX");
  if (!targets_open()) {
    fprintf(stderr, "soak: E2B_URLS and E2B_API_KEY must name local servers (tests/with_servers.sh)\n");
    return 2;
  }
  if (!mkdtemp(scratch)) return 2;
  (void)snprintf(dir, sizeof dir, "%s/tree", scratch);
  if (!tree_make(dir)) return 2;
  printf("seed %llu, %llu s", (unsigned long long)seed, (unsigned long long)seconds);
  for (i = 0; i < target_count; i++) printf(", %s%s", targets[i].url, targets[i].http2 ? " (HTTP/2)" : "");
  printf("\n");
  fflush(stdout);
  chance_state = seed;
  base = warm = now = footprint_now();
  base.malloced = 0; /* not known before the first rest */
  do {
    uint64_t until = now_ms() + 2000 + chance(10000);
    unsigned busy = 1 + chance(60);
    if (until > end) until = end;
    while (now_ms() < until) {
      turn();
      if (chance(100) < busy) begin_something();
      for (i = 0; i < MEMBERS; i++)
        if (members[i].client && now_ms() > members[i].until) member_free(&members[i]);
    }
    now = rest(chance(2) == 0, &base);
    rests++;
    if (rests == 1) base.malloced = now.malloced;
    if (now_ms() < start + (end - start) / 4 || rests == 1) warm = now;
  } while (now_ms() < end && failed < 50);
  /* What a rest leaves is the heap's own holes: those of the first quarter, and little more. */
  if (RSS_TELLS && now.rss_kib > warm.rss_kib + warm.rss_kib / 4 + 8192)
    wrong("resident set", "%ld KiB at the end, %ld after the warm-up", now.rss_kib, warm.rss_kib);
  print_outcomes();
  printf("%u jobs, %u rests in %llu s; at rest: %d descriptors (%d at the start), %ld bytes in %ld blocks of ours, %lu KiB malloced (%lu at the "
         "first rest), %ld KiB resident (%ld after the warm-up)\n",
         job_number, rests, (unsigned long long)((now_ms() - start) / 1000), now.fds, base.fds, now.bytes, now.blocks,
         (unsigned long)now.malloced / 1024, (unsigned long)base.malloced / 1024, now.rss_kib, warm.rss_kib);
  if (gave_up) printf("nghttpx gave up %u times\n", gave_up);
  if (gave_up > 1 + job_number / 1000) wrong("nghttpx", "gave up %u times in %u jobs", gave_up, job_number);
  local_remove(scratch);
  if (failed) printf("seed %llu\n", (unsigned long long)seed);
  printf("%ld passed, %ld failed, 0 skipped\n", passed, failed);
  return failed ? 1 : 0;
}
