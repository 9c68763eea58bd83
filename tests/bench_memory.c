/* make bench: the peak memory of streaming 1 GiB against that of streaming 1 MiB, each in a process of its own: output
   of a command, upload and download by callbacks, and one file of that size in a tree, both ways. Prints the peaks of
   the resident set and of the allocator; exit code 1 when the larger one takes more than 1 MiB more, or one fails.

       bench_memory [MiB]

   E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY name the server, which must be on this machine; E2B_ENVD_URL an envd
   instead. Needs twice the size on the disk of /tmp. */
#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define MIB ((uint64_t)1 << 20)
#define ALLOWED_KIB 1024

static char base[] = "/tmp/e2b-bench-XXXXXX";

typedef struct transfer {
  uint64_t left, seen;
} transfer;

typedef struct peak {
  long rss_kib;
  size_t heap;
  bool good;
} peak;

static int sink(void *user, const char *data, size_t len) {
  (void)data;
  ((transfer *)user)->seen += len;
  return 0;
}

static int source(void *user, void *buf, size_t cap) {
  transfer *t = (transfer *)user;
  size_t n = t->left < cap ? (size_t)t->left : cap;
  memset(buf, 'x', n);
  t->left -= n;
  return (int)n;
}

static e2b_err output(e2b_sandbox *sandbox, uint64_t size, transfer *t, e2b_error *err) {
  e2b_run_opts run;
  char command[80];
  memset(&run, 0, sizeof run);
  run.on_stdout = sink;
  run.output_user = t;
  run.no_collect = true;
  (void)snprintf(command, sizeof command, "head -c %llu /dev/zero", (unsigned long long)size);
  return e2b_commands_run(sandbox, command, &run, NULL, err);
}

static e2b_err upload(e2b_sandbox *sandbox, uint64_t size, transfer *t, e2b_error *err) {
  char path[100];
  (void)snprintf(path, sizeof path, "%s/uploaded", base);
  t->left = t->seen = size;
  return e2b_files_upload(sandbox, path, source, t, (int64_t)size, NULL, NULL, err);
}

static e2b_err download(e2b_sandbox *sandbox, uint64_t size, transfer *t, e2b_error *err) {
  char path[100];
  (void)snprintf(path, sizeof path, "%s/sparse-%llu/file", base, (unsigned long long)size);
  return e2b_files_download(sandbox, path, sink, t, NULL, err);
}

static e2b_err tree(bool up, e2b_sandbox *sandbox, uint64_t size, transfer *t, e2b_error *err) {
  char from[100], to[100];
  e2b_bulk_stats stats;
  e2b_err code;
  (void)snprintf(from, sizeof from, "%s/sparse-%llu", base, (unsigned long long)size);
  (void)snprintf(to, sizeof to, "%s/tree", base);
  code = up ? e2b_files_upload_tree(sandbox, from, to, NULL, &stats, err)
            : e2b_files_download_tree(sandbox, from, to, NULL, &stats, err);
  t->seen = stats.bytes_done;
  return code;
}

static e2b_err upload_tree(e2b_sandbox *sandbox, uint64_t size, transfer *t, e2b_error *err) {
  return tree(true, sandbox, size, t, err);
}

static e2b_err download_tree(e2b_sandbox *sandbox, uint64_t size, transfer *t, e2b_error *err) {
  return tree(false, sandbox, size, t, err);
}

static const struct {
  const char *name;
  e2b_err (*run)(e2b_sandbox *sandbox, uint64_t size, transfer *t, e2b_error *err);
} kinds[] = {
  { "output of a command", output },
  { "upload", upload },
  { "download", download },
  { "upload_tree", upload_tree },
  { "download_tree", download_tree },
};

/* One transfer with a client of its own. */
static peak measure(size_t kind, uint64_t size) {
  const char *envd = getenv("E2B_ENVD_URL");
  e2b_client *client = e2b_client_create(NULL, NULL);
  e2b_sandbox *sandbox = NULL;
  e2b_client_stats stats;
  e2b_attach_opts attach;
  struct rusage usage;
  transfer t = { 0, 0 };
  e2b_error err;
  e2b_err code;
  peak p;
  memset(&err, 0, sizeof err);
  memset(&attach, 0, sizeof attach);
  attach.base_url = envd;
  code = envd ? e2b_sandbox_attach(client, "bench", &attach, &sandbox, &err)
              : e2b_sandbox_create(client, NULL, NULL, &sandbox, &err);
  if (!code) code = kinds[kind].run(sandbox, size, &t, &err);
  (void)getrusage(RUSAGE_SELF, &usage);
  e2b_client_get_stats(client, &stats);
  p.good = code == E2B_OK && t.seen == size;
  p.rss_kib = usage.ru_maxrss;
  p.heap = stats.mem_peak;
  if (!p.good) fprintf(stderr, "bench_memory: %s: %s\n", kinds[kind].name, err.message);
  if (envd) e2b_sandbox_free(sandbox); else e2b_sandbox_close(sandbox, NULL, NULL);
  e2b_client_free(client);
  return p;
}

static peak measure_apart(size_t kind, uint64_t size) {
  peak p = { 0, 0, false };
  int fds[2];
  pid_t pid;
  if (pipe(fds) || (pid = fork()) < 0) return p;
  if (pid == 0) {
    p = measure(kind, size);
    _exit(write(fds[1], &p, sizeof p) == (ssize_t)sizeof p ? 0 : 1);
  }
  close(fds[1]);
  if (read(fds[0], &p, sizeof p) != (ssize_t)sizeof p) p.good = false;
  close(fds[0]);
  (void)waitpid(pid, NULL, 0);
  return p;
}

/* A directory with one file that takes no room on the disk. */
static bool make_sparse(uint64_t size) {
  char path[100];
  FILE *f;
  bool good;
  (void)snprintf(path, sizeof path, "%s/sparse-%llu", base, (unsigned long long)size);
  if (mkdir(path, 0777)) return false;
  (void)snprintf(path, sizeof path, "%s/sparse-%llu/file", base, (unsigned long long)size);
  f = fopen(path, "wb");
  if (!f) return false;
  good = ftruncate(fileno(f), (off_t)size) == 0;
  return fclose(f) == 0 && good;
}

int main(int argc, char **argv) {
  uint64_t big = (argc > 1 ? strtoull(argv[1], NULL, 10) : 1024) * MIB;
  char command[100];
  int bad = 0;
  size_t i;
  if (!mkdtemp(base) || !make_sparse(MIB) || !make_sparse(big)) {
    fprintf(stderr, "bench_memory: cannot write to /tmp\n");
    return 1;
  }
  for (i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
    peak small = measure_apart(i, MIB), large = measure_apart(i, big);
    long more = large.rss_kib - small.rss_kib;
    bool good = small.good && large.good && more <= ALLOWED_KIB && large.heap <= small.heap + ALLOWED_KIB * 1024;
    printf("%-20s 1 MiB: %5ld KiB resident, %4lu KiB allocated; %llu MiB: %5ld KiB, %4lu KiB; %+ld KiB%s\n",
           kinds[i].name, small.rss_kib, (unsigned long)small.heap / 1024, (unsigned long long)(big / MIB), large.rss_kib,
           (unsigned long)large.heap / 1024, more, good ? "" : " FAILED");
    if (!good) bad++;
  }
  (void)snprintf(command, sizeof command, "rm -rf '%s'", base);
  if (system(command) != 0) bad++;
  printf("%d of %d within %d KiB\n", (int)i - bad, (int)i, ALLOWED_KIB);
  return bad ? 1 : 0;
}
