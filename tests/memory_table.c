/* make memory: measures what things take of the heap and writes the table of README.md.

       memory_table [-q] [--write README.md | --check README.md]

     -q   transfers of 32 MiB instead of 1 GiB, which must not make a difference

   --check says whether README.md still tells the truth: exit code 1 when a figure is more than a tenth off.

   E2B_URLS and E2B_API_KEY name local servers (tests/with_servers.sh). What is ours goes through the client's allocator and
   E2B_MALLOC, which count exactly what was asked for. mbedTLS has malloc of its own, which this program takes the place of: for
   glibc. Figures of handles, operations, connections and streams are the average of 16 more of them. */
#include <stddef.h>
static void *table_malloc(size_t size);
static void *table_realloc(void *ptr, size_t size);
static void table_free(void *ptr);
#define E2B_MALLOC(size) table_malloc(size)
#define E2B_REALLOC(ptr, size) table_realloc(ptr, size)
#define E2B_FREE(ptr) table_free(ptr)
#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- counting ---------------------------------------------------------------------------------------------------- */

typedef struct heap {
  long now, peak;
} heap;

static heap ours, others; /* through the hooks; by malloc itself */

static void heap_add(heap *h, long size) {
  long now = __atomic_add_fetch(&h->now, size, __ATOMIC_RELAXED);
  if (now > h->peak) h->peak = now;
}

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *ptr, size_t size);
extern void *__libc_memalign(size_t align, size_t size);
extern void __libc_free(void *ptr);

static void *others_keep(void *ptr) {
  if (ptr) heap_add(&others, (long)malloc_usable_size(ptr));
  return ptr;
}

static void others_forget(void *ptr) {
  if (ptr) heap_add(&others, -(long)malloc_usable_size(ptr));
}

void *malloc(size_t size) {
  return others_keep(__libc_malloc(size));
}

void *calloc(size_t count, size_t size) {
  return others_keep(__libc_calloc(count, size));
}

void *realloc(void *ptr, size_t size) {
  others_forget(ptr);
  return others_keep(__libc_realloc(ptr, size));
}

void free(void *ptr) {
  others_forget(ptr);
  __libc_free(ptr);
}

#define HEAD 16 /* in front of each block of ours: its size */

static void *table_malloc(size_t size) {
  uint8_t *block = (uint8_t *)__libc_malloc(size + HEAD);
  if (!block) return NULL;
  memcpy(block, &size, sizeof size);
  heap_add(&ours, (long)size);
  return block + HEAD;
}

static void table_free(void *ptr) {
  size_t size;
  if (!ptr) return;
  memcpy(&size, (uint8_t *)ptr - HEAD, sizeof size);
  heap_add(&ours, -(long)size);
  __libc_free((uint8_t *)ptr - HEAD);
}

static void *table_realloc(void *ptr, size_t size) {
  size_t old;
  uint8_t *block;
  if (!ptr) return table_malloc(size);
  memcpy(&old, (uint8_t *)ptr - HEAD, sizeof old);
  block = (uint8_t *)__libc_realloc((uint8_t *)ptr - HEAD, size + HEAD);
  if (!block) return NULL;
  memcpy(block, &size, sizeof size);
  heap_add(&ours, (long)size - (long)old);
  return block + HEAD;
}

typedef struct mark {
  long ours, others;
} mark;

static mark mark_now(void) {
  mark m;
  m.ours = ours.now;
  m.others = others.now;
  ours.peak = ours.now;
  others.peak = others.now;
  return m;
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

/* One column per way to a server, and one for what of the TLS one is mbedTLS'. */
typedef enum column { H1, TLS, OF_MBEDTLS, H2, COLUMNS } column;
static const char *const headings[COLUMNS] = { "HTTP/1.1", "HTTP/1.1, TLS", "of that mbedTLS", "HTTP/2" };

typedef enum row { CLIENT, HANDLE, OPERATION, CONNECTION, COMMAND, FILE_STREAM, DOWNLOAD, UPLOAD, OUTPUT, ROWS } row;
static const char *const names[ROWS] = {
  "a client, nothing connected; TLS: with one CA certificate, which the first connection reads",
  "a sandbox's handle",
  "an operation that waits for a connection",
  "an idle connection",
  "a running command; HTTP/1.1: with the connection it has for itself, HTTP/2: a stream",
  "an open file stream, so, with its buffer of 64 KiB",
  "download of 1 GiB: the client with all it has, at its peak",
  "upload of 1 GiB, so",
  "1 GiB of a command's output, so",
};
static double table[ROWS][COLUMNS]; /* KiB */

static const column columns[3] = { H1, TLS, H2 };

static void put(row r, int way, double our_bytes, double other_bytes) {
  table[r][columns[way]] = our_bytes / 1024;
  if (way != 1) return;
  table[r][TLS] += other_bytes / 1024;
  table[r][OF_MBEDTLS] = other_bytes / 1024;
}

static void put_since(row r, int way, mark from, int count) {
  put(r, way, (double)(ours.now - from.ours) / count, (double)(others.now - from.others) / count);
}

/* ---- measuring --------------------------------------------------------------------------------------------------- */

#define MANY 16

static const char *urls[3], *api_key; /* http, https, HTTP/2 in the clear */
static char sandbox_id[100], token[200];
static uint64_t transfer_size;
#define SMALL ((uint64_t)32 << 20) /* of further tries */

static void must(e2b_err code, const e2b_error *err, int line) {
  if (code == E2B_OK || code == E2B_PENDING) return;
  fprintf(stderr, "memory_table: line %d: %s: %s\n", line, e2b_err_name(code), err->message);
  exit(1);
}
#define MUST(call) must(call, &err, __LINE__)

static e2b_client *client_for(int way) {
  e2b_client_config config;
  e2b_error err;
  e2b_client *client;
  memset(&config, 0, sizeof config);
  config.no_env = true;
  config.api_key = api_key;
  config.api_url = config.sandbox_url = urls[way];
  config.max_idle_connections = 2 * MANY;
  if (way == 1) config.tls.ca_file = getenv("NODE_EXTRA_CA_CERTS");
  if (way == 2) config.http_version = 2;
  client = e2b_client_create(&config, &err);
  must(client ? E2B_OK : err.code, &err, __LINE__);
  return client;
}

static e2b_sandbox *handle_for(e2b_client *client) {
  e2b_attach_opts opts;
  e2b_sandbox *sandbox = NULL;
  e2b_error err;
  memset(&opts, 0, sizeof opts);
  opts.access_token = token;
  MUST(e2b_sandbox_attach(client, sandbox_id, &opts, &sandbox, &err));
  return sandbox;
}

/* Each way to reach a server leads to another sandbox but for the last one. */
static e2b_sandbox *sandbox_made(e2b_client *client) {
  e2b_sandbox *sandbox = NULL;
  e2b_error err;
  e2b_sandbox_opts opts;
  memset(&opts, 0, sizeof opts);
  opts.timeout_s = 7200;
  MUST(e2b_sandbox_create(client, NULL, &opts, &sandbox, &err));
  (void)snprintf(sandbox_id, sizeof sandbox_id, "%s", e2b_sandbox_id(sandbox));
  (void)snprintf(token, sizeof token, "%s", e2b_sandbox_access_token(sandbox));
  return sandbox;
}

/* So many health checks at once: so many connections, or streams of one, which then rest. */
static void ask(e2b_client *client, e2b_sandbox *sandbox, int count) {
  bool running[MANY];
  e2b_op ops[MANY];
  e2b_call call;
  e2b_error err;
  int i;
  memset(&call, 0, sizeof call);
  for (i = 0; i < count; i++) {
    call.op = &ops[i];
    MUST(e2b_sandbox_is_running(sandbox, &call, &running[i], &err));
  }
  MUST(e2b_client_drain(client, -1));
  for (i = 0; i < count; i++) MUST(e2b_op_poll(client, ops[i], &err));
}

static void measure_client(int way) {
  e2b_client *client;
  e2b_sandbox *sandbox;
  e2b_sandbox *handles[MANY];
  e2b_op ops[MANY];
  bool running[MANY];
  e2b_call call;
  e2b_error err;
  mark from = mark_now();
  int i;
  client = client_for(way);
  put_since(CLIENT, way, from, 1);
  sandbox = handle_for(client);
  from = mark_now();
  for (i = 0; i < MANY; i++) handles[i] = handle_for(client);
  put_since(HANDLE, way, from, MANY);
  for (i = 0; i < MANY; i++) e2b_sandbox_free(handles[i]);
  memset(&call, 0, sizeof call);
  from = mark_now();
  for (i = 0; i < MANY; i++) {
    call.op = &ops[i];
    MUST(e2b_sandbox_is_running(sandbox, &call, &running[i], &err));
  }
  put_since(OPERATION, way, from, MANY);
  e2b_client_free(client);
}

static void measure_connections(int way) {
  e2b_client *client = client_for(way);
  e2b_sandbox *sandbox = handle_for(client);
  mark before = mark_now(), one;
  ask(client, sandbox, 1);
  one = mark_now();
  put_since(CONNECTION, way, before, 1);
  if (way != 2) { /* of HTTP/2 all there is is one */
    ask(client, sandbox, MANY);
    put_since(CONNECTION, way, one, MANY - 1); /* one was there already */
  }
  if (way == 1) { /* what the first one took more */
    table[CLIENT][TLS] += (double)(one.ours - before.ours + one.others - before.others) / 1024 - table[CONNECTION][TLS];
    table[CLIENT][OF_MBEDTLS] = (double)(one.others - before.others) / 1024 - table[CONNECTION][OF_MBEDTLS];
  }
  e2b_client_free(client);
}

/* Until nothing comes any more. */
static void settle(e2b_client *client) {
  e2b_client_stats stats;
  uint64_t seen = 0;
  int quiet;
  for (quiet = 0; quiet < 20; quiet++) {
    (void)e2b_client_poll(client, 20);
    e2b_client_get_stats(client, &stats);
    if (stats.bytes_rx != seen) quiet = 0;
    seen = stats.bytes_rx;
  }
}

static void measure_commands(int way) {
  e2b_client *client = client_for(way);
  e2b_sandbox *sandbox = handle_for(client);
  e2b_command_handle *commands[MANY + 1];
  e2b_error err;
  mark from;
  int i;
  MUST(e2b_commands_start(sandbox, "exec sleep 1000", NULL, &commands[MANY], &err));
  from = mark_now();
  for (i = 0; i < MANY; i++) MUST(e2b_commands_start(sandbox, "exec sleep 1000", NULL, &commands[i], &err));
  put_since(COMMAND, way, from, MANY);
  for (i = 0; i <= MANY; i++) {
    MUST(e2b_command_handle_kill(commands[i], NULL, NULL, &err));
    e2b_command_handle_free(commands[i]);
  }
  e2b_client_free(client);
}

static void measure_file_streams(int way) {
  e2b_client *client = client_for(way);
  e2b_sandbox *sandbox = handle_for(client);
  e2b_file_stream *files[MANY + 1];
  e2b_error err;
  mark from;
  int i;
  MUST(e2b_files_write_stream(sandbox, "written", -1, NULL, &files[MANY], &err));
  settle(client);
  from = mark_now();
  for (i = 0; i < MANY; i++) MUST(e2b_files_write_stream(sandbox, "written", -1, NULL, &files[i], &err));
  settle(client);
  put_since(FILE_STREAM, way, from, MANY);
  e2b_client_free(client);
}

typedef struct transfer {
  uint64_t left, seen;
} transfer;

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

/* The peak of one transfer by a client that does nothing else: all of it, client and connection included. */
static void measure_transfer(int way, int kind, uint64_t size) {
  char text[100];
  mark from = mark_now();
  e2b_client *client = client_for(way);
  e2b_sandbox *sandbox = handle_for(client);
  transfer t = { size, 0 };
  e2b_run_opts run;
  e2b_error err;
  memset(&run, 0, sizeof run);
  run.on_stdout = sink;
  run.output_user = &t;
  run.no_collect = true;
  (void)snprintf(text, sizeof text, "dd if=/dev/zero bs=1M count=%llu 2>/dev/null", (unsigned long long)(size >> 20)); /* full pipes from the start */
  if (kind == 0) MUST(e2b_files_download(sandbox, size == SMALL ? "small" : "large", sink, &t, NULL, &err));
  else if (kind == 1) MUST(e2b_files_upload(sandbox, "uploaded", source, &t, (int64_t)size, NULL, NULL, &err));
  else MUST(e2b_commands_run(sandbox, text, &run, NULL, &err));
  if (kind == 1 ? t.left : t.seen != size) must(E2B_ERR_TRUNCATED, &err, __LINE__);
  if ((double)(ours.peak - from.ours + others.peak - from.others) / 1024 > table[DOWNLOAD + kind][columns[way]]) /* of several tries */
    put((row)(DOWNLOAD + kind), way, (double)(ours.peak - from.ours), (double)(others.peak - from.others));
  if (kind == 1) MUST(e2b_files_remove(sandbox, "uploaded", NULL, &err));
  e2b_client_free(client);
}

static void measure_all(void) {
  int way, kind;
  char command[100];
  e2b_error err;
  e2b_client *makers[3];
  e2b_sandbox *made[3] = { NULL, NULL, NULL };
  (void)snprintf(command, sizeof command, "truncate -s %lu small; truncate -s %llu large", (unsigned long)SMALL, (unsigned long long)transfer_size);
  for (way = 0; way < 3; way++) {
    makers[way] = client_for(way);
    made[way] = sandbox_made(makers[way]);
    MUST(e2b_commands_run(made[way], command, NULL, NULL, &err));
    measure_client(way);
    measure_connections(way);
    measure_commands(way);
    measure_file_streams(way);
    for (kind = 0; kind < 9; kind++) measure_transfer(way, kind % 3, kind < 3 ? transfer_size : SMALL);
    MUST(e2b_sandbox_close(made[way], NULL, &err));
    e2b_client_free(makers[way]);
  }
}

/* ---- README.md --------------------------------------------------------------------------------------------------- */

#define BEGIN "<!-- memory: begin -->"
#define END "<!-- memory: end -->"

static char *read_file(const char *path) {
  FILE *f = fopen(path, "rb");
  char *text = (char *)calloc(1, 1 << 20);
  if (!f) {
    perror(path);
    exit(1);
  }
  if (fread(text, 1, (1 << 20) - 1, f) == 0) exit(1);
  fclose(f);
  return text;
}

static void table_print(FILE *to) {
  size_t r, c;
  fprintf(to, "| KiB of heap (64 bits, mbedTLS %d.%d) |", MBEDTLS_VERSION_MAJOR, MBEDTLS_VERSION_MINOR);
  for (c = 0; c < COLUMNS; c++) fprintf(to, " %s |", headings[c]);
  fprintf(to, "\n|---|---:|---:|---:|---:|\n");
  for (r = 0; r < ROWS; r++) {
    fprintf(to, "| %s |", names[r]);
    for (c = 0; c < COLUMNS; c++) fprintf(to, " %.1f |", table[r][c]);
    fprintf(to, "\n");
  }
}

static bool table_write(const char *path) {
  char *text = read_file(path), *begin = strstr(text, BEGIN "\n"), *end = strstr(text, END);
  FILE *f;
  if (!begin || !end || !(f = fopen(path, "wb"))) return false;
  fprintf(f, "%.*s%s\n", (int)(begin - text), text, BEGIN);
  table_print(f);
  fprintf(f, "%s", end);
  return fclose(f) == 0;
}

/* The figures of mbedTLS only where it is the same mbedTLS. */
static bool table_check(const char *path) {
  char *text = read_file(path), *begin = strstr(text, BEGIN), *end = strstr(text, END), *at;
  char want[200], version[40];
  bool good = begin && end, same;
  size_t r, c;
  if (!good) {
    printf("not ok - %s has no table\n", path);
    return false;
  }
  *end = 0;
  (void)snprintf(version, sizeof version, "mbedTLS %d.%d)", MBEDTLS_VERSION_MAJOR, MBEDTLS_VERSION_MINOR);
  same = strstr(begin, version) != NULL;
  for (r = 0; r < ROWS; r++) {
    (void)snprintf(want, sizeof want, "\n| %s |", names[r]);
    at = strstr(begin, want);
    if (!at) {
      printf("not ok - %s has no row \"%s\"\n", path, names[r]);
      good = false;
      continue;
    }
    at += strlen(want);
    for (c = 0; c < COLUMNS; c++, at += strcspn(at, "|") + 1) {
      double told = strtod(at, NULL), off = table[r][c] - told;
      double allowed = told / 10 + 0.06; /* what was rounded off */
      if ((c == TLS || c == OF_MBEDTLS) && !same) continue;
      if (off <= allowed && off >= -allowed) continue;
      printf("not ok - %s (%s): %.1f KiB, %s says %.1f\n", names[r], headings[c], table[r][c], path, told);
      good = false;
    }
  }
  return good;
}

int main(int argc, char **argv) {
  static char list[600];
  const char *all = getenv("E2B_URLS"), *write_to = NULL, *check = NULL;
  char *one;
  int i;
  transfer_size = (uint64_t)1 << 30;
  for (i = 1; i < argc; i++) {
    if (strcmp(argv[i], "-q") == 0) transfer_size = SMALL;
    if (strcmp(argv[i], "--write") == 0 && i + 1 < argc) write_to = argv[++i];
    if (strcmp(argv[i], "--check") == 0 && i + 1 < argc) check = argv[++i];
  }
  api_key = getenv("E2B_API_KEY");
  (void)snprintf(list, sizeof list, "%s", all ? all : "");
  for (one = list; *one; one += strlen(one) + 1) {
    size_t len = strcspn(one, " ");
    bool more = one[len] != 0;
    one[len] = 0;
    if (strncmp(one, "https:", 6) == 0) urls[1] = one;
    else if (strncmp(one, "h2:", 3) == 0) urls[2] = one + 3;
    else if (*one) urls[0] = one;
    if (!more) break;
  }
  if (!urls[0] || !urls[1] || !urls[2] || !api_key) {
    fprintf(stderr, "memory_table: needs servers over http, https and HTTP/2: tests/with_servers.sh, and nghttpx\n");
    return 2;
  }
  measure_all();
  table_print(stdout);
  if (write_to && !table_write(write_to)) return 1;
  if (check && !table_check(check)) return 1;
  return 0;
}
