/* make bench: 2,000 files of 1 KiB into a sandbox behind a line with a round trip of 25 ms, against `tar c | tar x` over
   a plain TCP connection on the same line. Prints the best of three of each and their ratio; then the way back.

       bench_tree [files] [bytes of each] [round trip ms]

   The line is a relay in a process of its own: it hands on every byte half a round trip after it came, and a new
   connection costs a whole one; it does not limit how much flows. E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY name the
   server, which must be on this machine; E2B_ENVD_URL an envd instead. */
#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

static uint64_t now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static void die(const char *what) {
  fprintf(stderr, "bench_tree: %s: %s\n", what, strerror(errno));
  exit(1);
}

/* ---- the line ---- */

typedef struct chunk {
  struct chunk *next;
  uint64_t due;
  size_t at, len; /* len 0: the end */
  char data[1];
} chunk;

typedef struct way { /* one direction of a connection */
  int from, to;
  bool read_ended, ended;
  chunk *first, *last;
} way;

typedef struct line {
  struct line *next;
  way ways[2];
  uint64_t open_at; /* the connection is made on the far side */
} line;

static int local_socket(uint16_t port, bool listening, uint16_t *bound) {
  struct sockaddr_in at;
  socklen_t len = sizeof at;
  int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
  memset(&at, 0, sizeof at);
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  at.sin_port = htons(port);
  if (fd < 0) die("socket");
  (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (listening) {
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 256) || getsockname(fd, (struct sockaddr *)&at, &len))
      die("listen");
    *bound = ntohs(at.sin_port);
  } else if (connect(fd, (struct sockaddr *)&at, sizeof at)) {
    die("connect");
  }
  return fd;
}

static void way_read(way *w, uint64_t due) {
  char buf[65536];
  ssize_t n = recv(w->from, buf, sizeof buf, MSG_DONTWAIT);
  chunk *c;
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n < 0) n = 0;
  c = (chunk *)malloc(sizeof *c + (size_t)n);
  if (!c) die("malloc");
  c->next = NULL;
  c->due = due;
  c->at = 0;
  c->len = (size_t)n;
  if (n) memcpy(c->data, buf, (size_t)n);
  if (w->last) w->last->next = c; else w->first = c;
  w->last = c;
  w->read_ended = n == 0;
}

static void way_write(way *w, uint64_t now) {
  while (w->first && w->first->due <= now) {
    chunk *c = w->first;
    ssize_t n = c->len ? send(w->to, c->data + c->at, c->len - c->at, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n < 0) n = (ssize_t)(c->len - c->at); /* nobody wants it */
    c->at += (size_t)n;
    if (c->at < c->len) return;
    if (!c->len) {
      (void)shutdown(w->to, SHUT_WR);
      w->ended = true;
    }
    w->first = c->next;
    if (!w->first) w->last = NULL;
    free(c);
  }
}

static line *line_new(line *next, int listener, uint16_t target, uint64_t round_trip) {
  line *l;
  int on = 1, near = accept(listener, NULL, NULL);
  if (near < 0) return next;
  (void)setsockopt(near, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  l = (line *)calloc(1, sizeof *l);
  if (!l) die("calloc");
  l->ways[0].from = l->ways[1].to = near;
  l->ways[0].to = l->ways[1].from = local_socket(target, false, NULL);
  l->open_at = now_us() + round_trip;
  l->next = next;
  return l;
}

/* Never returns. */
static void relay(int listener, uint16_t target, uint64_t round_trip) {
  line *lines = NULL, **at;
  for (;;) {
    struct pollfd fds[512];
    size_t n = 0;
    uint64_t now = now_us(), next = now + 1000000;
    line *l;
    int i;
    fds[n].fd = listener;
    fds[n++].events = POLLIN;
    for (l = lines; l; l = l->next)
      for (i = 0; i < 2 && n < 510; i++) {
        const way *w = &l->ways[i];
        if (!w->read_ended) {
          fds[n].fd = w->from;
          fds[n++].events = POLLIN;
        }
        if (w->first && w->first->due > now && w->first->due < next) next = w->first->due;
        if (w->first && w->first->due <= now) {
          fds[n].fd = w->to;
          fds[n++].events = POLLOUT;
        }
      }
    (void)poll(fds, (nfds_t)n, (int)((next - now + 999) / 1000u));
    if (fds[0].revents) lines = line_new(lines, listener, target, round_trip);
    now = now_us();
    for (at = &lines; (l = *at) != NULL;) {
      for (i = 0; i < 2; i++) {
        way *w = &l->ways[i];
        if (!w->read_ended) way_read(w, (now < l->open_at ? l->open_at : now) + round_trip / 2);
        way_write(w, now);
      }
      if (!l->ways[0].ended || !l->ways[1].ended) {
        at = &l->next;
        continue;
      }
      *at = l->next;
      close(l->ways[0].from);
      close(l->ways[0].to);
      free(l);
    }
  }
}

static pid_t relay_start(uint16_t target, uint64_t round_trip, uint16_t *port) {
  int listener = local_socket(0, true, port);
  pid_t pid = fork();
  if (pid < 0) die("fork");
  if (pid == 0) relay(listener, target, round_trip);
  close(listener);
  return pid;
}

/* ---- both sides ---- */

static pid_t tar(const char *how, const char *dir, int fd, int fd_is) {
  pid_t pid = fork();
  if (pid < 0) die("fork");
  if (pid == 0) {
    dup2(fd, fd_is);
    execlp("tar", "tar", how, "-", "-C", dir, fd_is == 1 ? "." : (char *)NULL, (char *)NULL);
    _exit(127);
  }
  close(fd);
  return pid;
}

/* Milliseconds, or < 0. */
static double run_tar(const char *from, const char *to, uint64_t round_trip) {
  uint16_t target = 0, port = 0;
  int status[2] = { 1, 1 }, listener = local_socket(0, true, &target);
  pid_t line = relay_start(target, round_trip, &port), in, out;
  uint64_t start;
  if (mkdir(to, 0777)) die(to);
  start = now_us();
  out = tar("cf", from, local_socket(port, false, NULL), 1);
  in = tar("xf", to, accept(listener, NULL, NULL), 0);
  (void)waitpid(out, &status[0], 0);
  (void)waitpid(in, &status[1], 0);
  start = now_us() - start;
  kill(line, SIGTERM);
  (void)waitpid(line, NULL, 0);
  close(listener);
  return status[0] || status[1] ? -1 : (double)start / 1000;
}

static e2b_sandbox *sandbox_through(e2b_client *client, e2b_sandbox *original, e2b_error *err) {
  e2b_sandbox *sandbox = NULL;
  e2b_attach_opts attach;
  memset(&attach, 0, sizeof attach);
  attach.access_token = original ? original->access_token : NULL;
  attach.envd_version = original ? e2b_sandbox_envd_version(original) : NULL;
  (void)e2b_sandbox_attach(client, original ? e2b_sandbox_id(original) : "bench", &attach, &sandbox, err);
  return sandbox;
}

/* Up (or down) once with a client and connections of its own. */
static double run_ours(bool up, const char *local, const char *remote, uint16_t port, e2b_sandbox *original,
                       uint64_t files) {
  char url[64];
  e2b_client_config config;
  e2b_bulk_stats stats;
  e2b_error err;
  e2b_client *client;
  e2b_sandbox *sandbox;
  uint64_t start = now_us();
  e2b_err code = E2B_ERR_SERVICE;
  memset(&config, 0, sizeof config);
  memset(&stats, 0, sizeof stats);
  (void)snprintf(url, sizeof url, "http://127.0.0.1:%u", (unsigned)port);
  config.sandbox_url = url;
  client = e2b_client_create(&config, &err);
  sandbox = client ? sandbox_through(client, original, &err) : NULL;
  if (sandbox && up) code = e2b_files_upload_tree(sandbox, local, remote, NULL, &stats, &err);
  if (sandbox && !up) code = e2b_files_download_tree(sandbox, remote, local, NULL, &stats, &err);
  start = now_us() - start;
  e2b_client_free(client);
  if (code || stats.files_done != files) {
    fprintf(stderr, "bench_tree: %llu files: %s\n", (unsigned long long)stats.files_done, err.message);
    return -1;
  }
  return (double)start / 1000;
}

static void make_tree(const char *dir, int files, size_t size) {
  char path[300];
  char *data = (char *)malloc(size + 1);
  int i;
  if (!data || mkdir(dir, 0777)) die(dir);
  for (i = 0; i < files; i++) {
    FILE *f;
    size_t k;
    (void)snprintf(path, sizeof path, "%s/d%d", dir, i / 100);
    if (i % 100 == 0 && mkdir(path, 0777)) die(path);
    (void)snprintf(path, sizeof path, "%s/d%d/file-%d", dir, i / 100, i);
    for (k = 0; k < size; k++) data[k] = (char)(k * 31u + (size_t)i);
    f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f)) die(path);
  }
  free(data);
}

static bool shell(const char *format, const char *a, const char *b) {
  char command[900];
  (void)snprintf(command, sizeof command, format, a, b);
  return system(command) == 0;
}

int main(int argc, char **argv) {
  int files = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 2000;
  size_t size = argc > 2 ? (size_t)strtoul(argv[2], NULL, 10) : 1024;
  uint64_t round_trip = (argc > 3 ? strtoul(argv[3], NULL, 10) : 25) * 1000u;
  const char *envd = getenv("E2B_ENVD_URL"), *url = envd ? envd : getenv("E2B_SANDBOX_URL"), *colon;
  char base[] = "/tmp/e2b-bench-XXXXXX", from[100], to[100], remote[100];
  double best_tar = 1e9, best_up = 1e9, best_down = 1e9;
  e2b_client *client = e2b_client_create(NULL, NULL);
  e2b_sandbox *sandbox = NULL;
  e2b_error err;
  uint16_t port = 0;
  bool good = true;
  pid_t line;
  int i;
  memset(&err, 0, sizeof err);
  colon = url ? strrchr(url, ':') : NULL;
  if (!colon || !client || files < 1) {
    fprintf(stderr, "bench_tree: no E2B_SANDBOX_URL with a port: start it by tests/with_server.sh\n");
    return 1;
  }
  if (!envd && e2b_sandbox_create(client, NULL, NULL, &sandbox, &err) != E2B_OK) {
    fprintf(stderr, "bench_tree: %s\n", err.message);
    return 1;
  }
  if (!mkdtemp(base)) die(base);
  (void)snprintf(from, sizeof from, "%s/from", base);
  make_tree(from, files, size);
  line = relay_start((uint16_t)strtoul(colon + 1, NULL, 10), round_trip, &port);
  for (i = 0; i < 3 && good; i++) {
    double tar_ms, up_ms, down_ms;
    (void)snprintf(to, sizeof to, "%s/tar-%d", base, i);
    tar_ms = run_tar(from, to, round_trip);
    (void)snprintf(remote, sizeof remote, "%s/up-%d", base, i); /* the sandbox is on this machine */
    up_ms = run_ours(true, from, remote, port, sandbox, (uint64_t)files);
    (void)snprintf(to, sizeof to, "%s/down-%d", base, i);
    down_ms = run_ours(false, to, remote, port, sandbox, (uint64_t)files);
    good = tar_ms >= 0 && up_ms >= 0 && down_ms >= 0 && shell("diff -r '%s' '%s'", from, to);
    best_tar = E2B__MIN(best_tar, tar_ms);
    best_up = E2B__MIN(best_up, up_ms);
    best_down = E2B__MIN(best_down, down_ms);
  }
  kill(line, SIGTERM);
  (void)waitpid(line, NULL, 0);
  (void)shell("rm -rf '%s'%s", base, "");
  e2b_sandbox_close(sandbox, NULL, NULL);
  e2b_client_free(client);
  if (!good) {
    fprintf(stderr, "bench_tree: failed, or what arrived differs\n");
    return 1;
  }
  printf("%d files of %lu bytes, round trip %llu ms: tar %.0f ms, upload_tree %.0f ms, ratio %.2f (goal: at most 2); "
         "download_tree %.0f ms\n",
         files, (unsigned long)size, (unsigned long long)round_trip / 1000, best_tar, best_up, best_up / best_tar,
         best_down);
  return 0;
}
