/* cc -O2 -I. examples/local_server.c llhttp.c api.c http.c -lmbedtls -lmbedx509 -lmbedcrypto -lpthread -o local_server

   A small E2B host on this machine, for development, demos and tests without an account. One process, one thread, one
   port: the control plane (create, list, kill, pause, snapshots, metrics, logs ...), the envd of every sandbox (commands,
   files) and the servers that run in it, reached by host name, path prefix or routing headers. It is real: processes,
   pipes, terminals, signals, files. Only rules for the network are kept and shown, but not enforced.
   port: the control plane (create, list, kill, pause ...), the envd of every sandbox (commands, files) and its code
   interpreter (where there is a python3), reached by host name, path prefix or routing headers. It is real: processes,
   pipes, terminals, signals, files.

   IT ISOLATES NOTHING. A "sandbox" is a home directory and a list of processes that run as you, on your files. Serve
   only yourself, on the loopback interface. `local_server --help` lists the options. Linux; mbedTLS 2.28 or 3.x.

   The file reads bottom-up; search for the text after the bar:
     the machine      | >>>> basics       | >>>> timers       | >>>> events       | >>>> gunzip       | >>>> paths
     http             | >>>> connections  | >>>> replies
     sandboxes, rpc   | >>>> sandboxes    | >>>> rpc
     envd             | >>>> processes    | >>>> process service              | >>>> filesystem service
                      | >>>> file transfer                | >>>> envd                         | >>>> code interpreter
     the edge         | >>>> life cycle   | >>>> snapshots    | >>>> control plane                | >>>> kruise
                      | >>>> relay        | >>>> routing
     running it       | >>>> tls          | >>>> http input   | >>>> main */

#define _GNU_SOURCE
#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <grp.h>
#include <llhttp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#if !E2B__MBEDTLS4
  #include <mbedtls/ctr_drbg.h>
  #include <mbedtls/ecp.h>
  #include <mbedtls/entropy.h>
#endif
#include <mbedtls/md.h>
#include <mbedtls/pk.h>
#include <mbedtls/ssl.h>
#include <mbedtls/ssl_ticket.h>
#include <mbedtls/x509_crt.h>
#if defined(MBEDTLS_PSA_CRYPTO_C)
  #include <psa/crypto.h>
#endif

#define ENVD_VERSION "0.6.13"
#define KRUISE_ENVD_VERSION "0.2.10" /* what OpenKruise says whatever it runs; with --kruise our envd lacks what that one lacks */
#define ENVD_PORT 49983

#define HEAD_MAX ((size_t)64 << 10)     /* request line and headers */
#define BODY_MAX ((size_t)64 << 20)     /* a request that is held in memory; uploads are not */
#define INPUT_MAX ((size_t)64 << 10)    /* bytes of a request kept unread while its predecessor is being answered */
#define OUTPUT_MAX ((size_t)256 << 20)  /* an answer that is held in memory; downloads are not */
#define OUTPUT_HIGH ((size_t)256 << 10) /* streams stop above this */
#define OUTPUT_LOW ((size_t)64 << 10)   /* and go on below */
#define SCRATCH_MAX ((size_t)4 << 20)   /* what is kept of the memory for encoding */
#define IO_CHUNK ((size_t)64 << 10)
#define STD_CHUNK ((size_t)32 << 10)    /* as envd */
#define PTY_CHUNK ((size_t)16 << 10)
#define PAIRS_MAX 10000u                /* environment variables, metadata */
#define RETAIN_MS (30 * 1000)           /* how long the exit of a process can be asked for */
#define IDLE_MS (640 * 1000)            /* as envd */
#define TIMEOUT_DEFAULT_S 15            /* life of a sandbox whose creator does not say */
#define TIMEOUT_MAX_S (24 * 3600)
#define AUTO_RESUME_S 300
#define LOGS_MAX 1000                   /* entries kept of a sandbox */
#define METRICS_EVERY_MS 5000
#define METRICS_MAX 720                 /* samples kept: an hour */
#define DIAL_TRIES 5                    /* a server that was just started may need a moment */
#define DIAL_EVERY_MS 100

/* ================================================================================================================== */
/* >>>> basics */
/* ================================================================================================================== */

/* Doubly linked, circular; the head is a node of its own. A node that is in no list points to itself. */
typedef struct node {
  struct node *prev, *next;
} node;

#define OWNER(ptr, type, member) ((type *)(void *)((char *)(ptr) - offsetof(type, member)))

typedef struct timer timer;
typedef struct watch watch;
typedef struct watcher watcher;
typedef struct conn conn;
typedef struct exchange exchange;
typedef struct sandbox sandbox;
typedef struct process process;
typedef struct rpc rpc;

#define SANDBOX_BUCKETS 1024
#define EVENTS_MAX 256

/* A sample of this machine, which is that of every sandbox. Sizes in bytes. */
typedef struct metric {
  e2b__timestamp time;
  double cpu_used_pct;
  int64_t mem_total, mem_used, mem_cache, disk_total, disk_used;
} metric;

static struct server {
  e2b__mem mem;
  /* options */
  const char *listen_address, *port_file, *ca_file, *root_option, *default_user;
  e2b__list api_keys, templates; /* const char * */
  e2b__arena arena;              /* of the two lists */
  bool tls, exit_with_stdin, real_home, log;
  bool kruise;           /* be OpenKruise Agents, not E2B */
  int64_t token_life_s;  /* of a traffic token */
  char host[256]; /* of listen_address */
  /* the machine */
  char root[PATH_MAX]; /* the home directories of the sandboxes */
  bool root_is_ours;
  struct rlimit files; /* as we found it */
  int epoll, spare_fd;
  struct epoll_event events[EVENTS_MAX];
  int event_count;
  timer **timers; /* a binary heap, the first is due first */
  size_t timer_count, timer_cap;
  bool stop;
  char input[IO_CHUNK]; /* what a client just sent */
  char chunk[IO_CHUNK]; /* what a process or a file just gave */
  e2b__buf scratch;     /* what is just being encoded */
  /* connections */
  node conns, touched, graveyard;
  /* sandboxes */
  node sandboxes; /* newest last */
  node processes; /* of all of them, without those whose end is out */
  sandbox *buckets[SANDBOX_BUCKETS];
  uint64_t sequence, tokens_issued;
  node snapshots; /* newest last */
  metric metrics[METRICS_MAX]; /* a ring */
  size_t metric_count;         /* ever taken */
  timer *metrics_timer;
  uint8_t secret[32]; /* signs traffic tokens */
  node graves; /* directories that could not be removed at once */
  /* tls */
#if !E2B__MBEDTLS4
  mbedtls_entropy_context entropy;
  mbedtls_ctr_drbg_context drbg;
#endif
  mbedtls_pk_context ca_key, key;
  mbedtls_x509_crt cert;
  mbedtls_ssl_config tls_config;
  mbedtls_ssl_ticket_context tickets;
} server;

E2B__PRINTF(1, 2)
static void die(const char *format, ...) {
  va_list args;
  (void)fprintf(stderr, "local_server: ");
  va_start(args, format);
  (void)vfprintf(stderr, format, args);
  va_end(args);
  (void)fputc('\n', stderr);
  exit(1);
}

/* Zeroed memory. A development server that has none left just ends. */
static void *xalloc(size_t size) {
  void *ptr = calloc(1, size);
  if (!ptr) die("out of memory");
  return ptr;
}

static char *xdup(const char *text) {
  char *copy = (char *)xalloc(strlen(text) + 1);
  memcpy(copy, text, strlen(text));
  return copy;
}

static int64_t now_ms(void) {
  struct timespec t;
  (void)clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static e2b__timestamp wall_clock(void) {
  struct timespec t;
  e2b__timestamp stamp;
  (void)clock_gettime(CLOCK_REALTIME, &t);
  stamp.seconds = t.tv_sec;
  stamp.nanos = (int32_t)(t.tv_nsec / 1000000 * 1000000);
  return stamp;
}

static void random_bytes(void *out, size_t len) {
  if (getrandom(out, len, 0) != (ssize_t)len) die("getrandom: %s", strerror(errno));
}

/* `len` random characters of [a-z0-9] and a NUL. */
static void random_name(char *out, size_t len) {
  static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
  size_t i;
  random_bytes(out, len);
  for (i = 0; i < len; i++) out[i] = letters[(uint8_t)out[i] % 36u];
  out[len] = 0;
}

static void list_init(node *head) {
  head->prev = head->next = head;
}

static bool list_empty(const node *head) {
  return head->next == head;
}

static void list_push(node *head, node *item) {
  item->prev = head->prev;
  item->next = head;
  head->prev->next = item;
  head->prev = item;
}

static void list_remove(node *item) {
  item->prev->next = item->next;
  item->next->prev = item->prev;
  list_init(item);
}

static void buf_vprintf(e2b__buf *buf, const char *format, va_list args) {
  va_list again;
  uint8_t *to;
  int len;
  va_copy(again, args);
  len = vsnprintf(NULL, 0, format, again);
  va_end(again);
  to = len < 0 ? NULL : e2b__buf_reserve(buf, (size_t)len + 1);
  if (!to) return;
  (void)vsnprintf((char *)to, (size_t)len + 1, format, args);
  buf->len += (size_t)len;
}

E2B__PRINTF(2, 3)
static void buf_printf(e2b__buf *buf, const char *format, ...) {
  va_list args;
  va_start(args, format);
  buf_vprintf(buf, format, args);
  va_end(args);
}

static e2b_str buf_str(const e2b__buf *buf) {
  return e2b__str_n((const char *)buf->data, buf->len);
}

static bool str_same(e2b_str a, e2b_str b) {
  return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

/* A NUL-terminated copy. NULL when there is no room or a NUL inside, which no path, argument or name may have. */
static const char *arena_text(e2b__arena *arena, e2b_str text) {
  char *copy;
  if (text.len && memchr(text.ptr, 0, text.len)) return NULL;
  copy = (char *)e2b__arena_alloc(arena, text.len + 1);
  if (copy && text.len) memcpy(copy, text.ptr, text.len);
  return copy;
}

/* The text of an errno as Go writes it, "no such file or directory". Valid until the next call. */
static const char *errno_text(int code) {
  static char text[128];
  (void)snprintf(text, sizeof text, "%s", strerror(code));
  if (islower((unsigned char)text[1])) text[0] = (char)tolower((unsigned char)text[0]);
  return text;
}

/* Environment variables, metadata: names and values of our own, each name once. */
typedef struct pairs {
  e2b_kv *items;
  size_t count, cap;
} pairs;

static void pairs_set(pairs *p, const char *key, const char *value) {
  size_t i = 0;
  while (i < p->count && strcmp(p->items[i].key, key) != 0) i++;
  if (i < p->count) {
    free((void *)(uintptr_t)p->items[i].value);
  } else {
    if (p->count == p->cap) {
      p->cap = p->cap ? p->cap * 2 : 8;
      p->items = (e2b_kv *)realloc(p->items, p->cap * sizeof *p->items);
      if (!p->items) die("out of memory");
    }
    p->items[p->count++].key = xdup(key);
  }
  p->items[i].value = xdup(value);
}

static const char *pairs_get(const pairs *p, const char *key) {
  size_t i;
  for (i = 0; i < p->count; i++)
    if (strcmp(p->items[i].key, key) == 0) return p->items[i].value;
  return NULL;
}

/* Takes over a decoded map. False when there are too many, or a name or value cannot be a C string. */
static bool pairs_set_all(pairs *p, const e2b__list *map, e2b__arena *arena) {
  const e2b__pair *pair = (const e2b__pair *)map->items;
  size_t i;
  if (map->count > PAIRS_MAX) return false;
  for (i = 0; i < map->count; i++) {
    const char *key = arena_text(arena, pair[i].key), *value = arena_text(arena, pair[i].value);
    if (!key || !value) return false;
    pairs_set(p, key, value);
  }
  return true;
}

static void pairs_remove(pairs *p, size_t at) {
  free((void *)(uintptr_t)p->items[at].key);
  free((void *)(uintptr_t)p->items[at].value);
  p->count--;
  memmove(p->items + at, p->items + at + 1, (p->count - at) * sizeof *p->items);
}

static e2b_kvs pairs_view(const pairs *p) {
  e2b_kvs view;
  view.items = p->items;
  view.count = p->count;
  return view;
}

static void pairs_free(pairs *p) {
  size_t i;
  for (i = 0; i < p->count; i++) {
    free((void *)(uintptr_t)p->items[i].key);
    free((void *)(uintptr_t)p->items[i].value);
  }
  free(p->items);
  memset(p, 0, sizeof *p);
}

/* ================================================================================================================== */
/* >>>> timers */
/* ================================================================================================================== */

/* Part of what it belongs to; `fire` finds that by OWNER. */
struct timer {
  int64_t due;
  size_t slot; /* 1 + place in the heap, 0 = not set */
  void (*fire)(timer *t);
};

static void timer_place(timer *t, size_t slot) {
  server.timers[slot - 1] = t;
  t->slot = slot;
}

/* Moves what is in `slot` up or down to where the heap is in order. */
static void timer_sift(size_t slot) {
  timer *t = server.timers[slot - 1];
  while (slot > 1 && t->due < server.timers[slot / 2 - 1]->due) {
    timer_place(server.timers[slot / 2 - 1], slot);
    slot /= 2;
  }
  for (;;) {
    size_t child = slot * 2;
    if (child < server.timer_count && server.timers[child]->due < server.timers[child - 1]->due) child++;
    if (child > server.timer_count || server.timers[child - 1]->due >= t->due) break;
    timer_place(server.timers[child - 1], slot);
    slot = child;
  }
  timer_place(t, slot);
}

static void timer_stop(timer *t) {
  size_t slot = t->slot;
  timer *last;
  if (!slot) return;
  last = server.timers[--server.timer_count];
  t->slot = 0;
  if (last == t) return;
  timer_place(last, slot);
  timer_sift(slot);
}

static void timer_set(timer *t, int64_t due, void (*fire)(timer *t)) {
  t->due = due;
  t->fire = fire;
  if (!t->slot) {
    if (server.timer_count == server.timer_cap) {
      server.timer_cap = server.timer_cap ? server.timer_cap * 2 : 256;
      server.timers = (timer **)realloc(server.timers, server.timer_cap * sizeof *server.timers);
      if (!server.timers) die("out of memory");
    }
    timer_place(t, ++server.timer_count);
  }
  timer_sift(t->slot);
}

static void timers_run(void) {
  int64_t now = now_ms();
  while (server.timer_count && server.timers[0]->due <= now) {
    timer *t = server.timers[0];
    timer_stop(t);
    t->fire(t);
  }
}

/* How long epoll_wait may sleep. */
static int timers_wait_ms(void) {
  int64_t left;
  if (!server.timer_count) return -1;
  left = server.timers[0]->due - now_ms();
  return left <= 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

/* ================================================================================================================== */
/* >>>> events */
/* ================================================================================================================== */

/* A file descriptor in the epoll set. Part of what it belongs to; `ready` finds that by OWNER. */
struct watch {
  int fd;
  uint32_t events; /* waited for; 0 = not in the set */
  void (*ready)(watch *w, uint32_t events);
};

static void watch_init(watch *w, int fd, void (*ready)(watch *w, uint32_t events)) {
  w->fd = fd;
  w->events = 0;
  w->ready = ready;
}

/* False when this kind of file cannot be waited for. */
static bool watch_want(watch *w, uint32_t events) {
  struct epoll_event event;
  int op = !events ? EPOLL_CTL_DEL : w->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  if (w->fd < 0 || events == w->events) return true;
  memset(&event, 0, sizeof event);
  event.events = events;
  event.data.ptr = w;
  w->events = events;
  return epoll_ctl(server.epoll, op, w->fd, &event) == 0;
}

/* Also forgets what this turn of the loop has still to report about it. */
static void watch_close(watch *w) {
  int i;
  if (w->fd < 0) return;
  (void)watch_want(w, 0);
  for (i = 0; i < server.event_count; i++)
    if (server.events[i].data.ptr == w) server.events[i].data.ptr = NULL;
  (void)close(w->fd);
  w->fd = -1;
}

static bool set_nonblocking(int fd) {
  int flags = fcntl(fd, F_GETFL);
  return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

/* ================================================================================================================== */
/* >>>> gunzip */
/* ================================================================================================================== */

/* A gzip stream (RFC 1951, 1952), fed in pieces of any size. A step (a header, the tables of a block, a symbol) is
 * taken when all its bits are there; otherwise it is begun anew with the next piece, so nothing is kept half way. */
#define GUNZIP_WINDOW 32768u
#define GUNZIP_BITS 15
#define GUNZIP_HEAD_MAX ((size_t)64 << 10)

typedef struct huffman {
  uint16_t counts[GUNZIP_BITS + 1]; /* codes of each length */
  uint16_t symbols[288];            /* in the order of their codes */
} huffman;

typedef enum gunzip_state { GUNZIP_HEAD, GUNZIP_BLOCK, GUNZIP_STORED, GUNZIP_CODES, GUNZIP_TRAILER } gunzip_state;

typedef struct gunzip {
  gunzip_state state;
  bool last, bad, starved, any; /* starved: the bits ran out; any: a member was complete */
  e2b__buf in;
  size_t bit;     /* the next one in `in` */
  size_t stored;  /* bytes left of a stored block */
  huffman literals, distances;
  uint32_t crc, size;
  uint32_t at, flushed; /* in the window */
  uint8_t window[GUNZIP_WINDOW];
  bool (*sink)(void *user, const char *data, size_t len); /* false = stop */
  void *user;
} gunzip;

static gunzip *gunzip_new(bool (*sink)(void *user, const char *data, size_t len), void *user) {
  gunzip *g = (gunzip *)xalloc(sizeof *g);
  e2b__buf_init(&g->in, &server.mem, BODY_MAX);
  g->sink = sink;
  g->user = user;
  return g;
}

static void gunzip_free(gunzip *g) {
  if (!g) return;
  e2b__buf_free(&g->in);
  free(g);
}

static uint32_t gunzip_bits(gunzip *g, unsigned count) {
  uint32_t value = 0;
  unsigned i;
  if (g->starved || g->in.len * 8 - g->bit < count) {
    g->starved = true;
    return 0;
  }
  for (i = 0; i < count; i++, g->bit++) value |= ((uint32_t)g->in.data[g->bit / 8] >> (g->bit % 8) & 1u) << i;
  return value;
}

/* Lengths of codes -> canonical code. False when they cannot be one; a single code may be incomplete. */
static bool huffman_build(huffman *h, const uint8_t *lengths, unsigned count) {
  uint16_t offsets[GUNZIP_BITS + 1];
  unsigned i;
  int left = 1;
  memset(h, 0, sizeof *h);
  for (i = 0; i < count; i++) h->counts[lengths[i]]++;
  h->counts[0] = 0;
  offsets[1] = 0;
  for (i = 1; i <= GUNZIP_BITS; i++) {
    left = left * 2 - h->counts[i];
    if (left < 0) return false;
    if (i < GUNZIP_BITS) offsets[i + 1] = (uint16_t)(offsets[i] + h->counts[i]);
  }
  for (i = 0; i < count; i++)
    if (lengths[i]) h->symbols[offsets[lengths[i]]++] = (uint16_t)i;
  return true;
}

static unsigned huffman_symbol(gunzip *g, const huffman *h) {
  int code = 0, first = 0, index = 0;
  unsigned length;
  for (length = 1; length <= GUNZIP_BITS && !g->starved; length++) {
    code |= (int)gunzip_bits(g, 1);
    if (g->starved) return 0;
    if (code - first < h->counts[length]) return h->symbols[index + code - first];
    index += h->counts[length];
    first = (first + h->counts[length]) * 2;
    code *= 2;
  }
  g->bad = !g->starved;
  return 0;
}

static void gunzip_flush(gunzip *g) {
  static const uint32_t nibbles[16] = { 0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
    0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278,
    0xbdbdf21c };
  uint32_t i, crc = ~g->crc;
  for (i = g->flushed; i < g->at; i++) {
    crc ^= g->window[i];
    crc = crc >> 4 ^ nibbles[crc & 15u];
    crc = crc >> 4 ^ nibbles[crc & 15u];
  }
  g->crc = ~crc;
  g->size += g->at - g->flushed;
  if (g->at > g->flushed && !g->sink(g->user, (const char *)g->window + g->flushed, g->at - g->flushed)) g->bad = true;
  g->flushed = g->at;
  if (g->at == GUNZIP_WINDOW) g->at = g->flushed = 0;
}

static void gunzip_put(gunzip *g, uint8_t byte) {
  g->window[g->at++] = byte;
  if (g->at == GUNZIP_WINDOW) gunzip_flush(g);
}

/* Header of a member: 10 bytes, extra field, two optional strings, optional checksum. */
static void gunzip_head(gunzip *g) {
  unsigned flags, i, strings;
  bool ok = gunzip_bits(g, 16) == 0x8b1f && gunzip_bits(g, 8) == 8;
  flags = gunzip_bits(g, 8);
  for (i = 0; i < 6; i++) (void)gunzip_bits(g, 8);
  if (flags & 4)
    for (i = gunzip_bits(g, 16); i > 0; i--) (void)gunzip_bits(g, 8);
  strings = (flags >> 3 & 1u) + (flags >> 4 & 1u);
  while (strings && !g->starved)
    if (gunzip_bits(g, 8) == 0) strings--;
  if (flags & 2) (void)gunzip_bits(g, 16);
  if (g->starved ? g->in.len > GUNZIP_HEAD_MAX : !ok || (flags & 0xe0)) g->bad = true;
  g->state = GUNZIP_BLOCK;
  g->crc = g->size = 0;
  g->last = false;
}

/* The two codes of a block with dynamic codes. */
static void gunzip_tables(gunzip *g) {
  static const uint8_t order[19] = { 16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15 };
  uint8_t lengths[320];
  unsigned i, literals = gunzip_bits(g, 5) + 257, distances = gunzip_bits(g, 5) + 1, codes = gunzip_bits(g, 4) + 4;
  memset(lengths, 0, sizeof lengths);
  for (i = 0; i < codes; i++) lengths[order[i]] = (uint8_t)gunzip_bits(g, 3);
  if (g->starved) return;
  g->bad = literals > 286 || !huffman_build(&g->literals, lengths, 19);
  memset(lengths, 0, sizeof lengths);
  for (i = 0; i < literals + distances && !g->bad && !g->starved;) {
    unsigned symbol = huffman_symbol(g, &g->literals), repeat = 1;
    uint8_t length = (uint8_t)symbol;
    if (symbol >= 16) {
      length = symbol == 16 && i ? lengths[i - 1] : 0;
      repeat = symbol == 16 ? 3 + gunzip_bits(g, 2) : symbol == 17 ? 3 + gunzip_bits(g, 3) : 11 + gunzip_bits(g, 7);
      if (symbol == 16 && i == 0) g->bad = true;
    }
    if (i + repeat > literals + distances) g->bad = true;
    while (repeat-- && !g->bad) lengths[i++] = length;
  }
  if (g->bad || g->starved) return;
  g->bad = !lengths[256] || !huffman_build(&g->literals, lengths, literals) ||
           !huffman_build(&g->distances, lengths + literals, distances);
  g->state = GUNZIP_CODES;
}

static void gunzip_block(gunzip *g) {
  uint8_t lengths[288];
  unsigned type;
  g->last = gunzip_bits(g, 1) != 0;
  type = gunzip_bits(g, 2);
  if (g->starved) return;
  if (type == 0) {
    unsigned length, complement;
    g->bit = (g->bit + 7) / 8 * 8;
    length = gunzip_bits(g, 16);
    complement = gunzip_bits(g, 16);
    g->bad = !g->starved && (length ^ complement) != 0xffff;
    g->stored = length;
    g->state = GUNZIP_STORED;
  } else if (type == 1) {
    memset(lengths, 8, 144);
    memset(lengths + 144, 9, 112);
    memset(lengths + 256, 7, 24);
    memset(lengths + 280, 8, 8);
    (void)huffman_build(&g->literals, lengths, 288);
    memset(lengths, 5, 30);
    (void)huffman_build(&g->distances, lengths, 30);
    g->state = GUNZIP_CODES;
  } else if (type == 2) {
    gunzip_tables(g);
  } else {
    g->bad = true;
  }
}

static void gunzip_stored(gunzip *g) {
  while (g->stored && g->bit / 8 < g->in.len && !g->bad) {
    gunzip_put(g, g->in.data[g->bit / 8]);
    g->bit += 8;
    g->stored--;
  }
  if (g->stored) g->starved = true;
  else g->state = g->last ? GUNZIP_TRAILER : GUNZIP_BLOCK;
}

/* One symbol: a byte, a copy of earlier bytes, or the end of the block. */
static void gunzip_symbol(gunzip *g) {
  static const uint16_t length_base[29] = { 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67,
    83, 99, 115, 131, 163, 195, 227, 258 };
  static const uint8_t length_bits[29] = { 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5,
    5, 5, 0 };
  static const uint16_t distance_base[30] = { 1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513,
    769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577 };
  unsigned symbol = huffman_symbol(g, &g->literals), length, code;
  uint32_t distance;
  if (g->starved || g->bad) return;
  if (symbol < 256) {
    gunzip_put(g, (uint8_t)symbol);
  } else if (symbol == 256) {
    g->state = g->last ? GUNZIP_TRAILER : GUNZIP_BLOCK;
  } else if (symbol > 285) {
    g->bad = true;
  } else {
    length = length_base[symbol - 257] + gunzip_bits(g, length_bits[symbol - 257]);
    code = huffman_symbol(g, &g->distances);
    if (g->starved || g->bad) return;
    if (code >= E2B__COUNT(distance_base)) {
      g->bad = true;
      return;
    }
    distance = distance_base[code] + gunzip_bits(g, code < 2 ? 0 : code / 2 - 1);
    if (g->starved) return;
    if (distance > g->size + (g->at - g->flushed)) g->bad = true;
    while (length-- && !g->bad) gunzip_put(g, g->window[(g->at - distance) % GUNZIP_WINDOW]);
  }
}

static void gunzip_trailer(gunzip *g) {
  uint32_t crc, size;
  gunzip_flush(g);
  g->bit = (g->bit + 7) / 8 * 8;
  crc = gunzip_bits(g, 32);
  size = gunzip_bits(g, 32);
  if (g->starved) return;
  g->bad = g->bad || crc != g->crc || size != g->size;
  g->any = true;
  g->at = g->flushed = 0;
  g->state = GUNZIP_HEAD;
}

/* False when this is not gzip, or the sink refused. */
static bool gunzip_feed(gunzip *g, const void *data, size_t len) {
  static void (*const steps[])(gunzip *) = { gunzip_head, gunzip_block, gunzip_stored, gunzip_symbol, gunzip_trailer };
  e2b__buf_put(&g->in, data, len);
  g->starved = false;
  while (!g->bad && !g->starved && !g->in.err) {
    size_t before = g->bit;
    gunzip_state state = g->state;
    if (state == GUNZIP_HEAD && g->bit == g->in.len * 8) break;
    steps[state](g);
    if (g->starved && state != GUNZIP_STORED) {
      g->bit = before;
      g->state = state;
    }
  }
  gunzip_flush(g);
  e2b__buf_drop(&g->in, g->bit / 8);
  g->bit %= 8;
  return !g->bad && !g->in.err;
}

/* Nothing was cut off. */
static bool gunzip_complete(const gunzip *g) {
  return !g->bad && g->any && g->state == GUNZIP_HEAD && g->in.len == 0;
}

static bool gunzip_to_buf(void *user, const char *data, size_t len) {
  e2b__buf *out = (e2b__buf *)user;
  e2b__buf_put(out, data, len);
  return !out->err;
}

static bool gunzip_all(const void *data, size_t len, e2b__buf *out) {
  gunzip *g = gunzip_new(gunzip_to_buf, out);
  bool ok = gunzip_feed(g, data, len) && gunzip_complete(g);
  gunzip_free(g);
  return ok;
}

/* ================================================================================================================== */
/* >>>> paths */
/* ================================================================================================================== */

/* The Unix user on whose behalf something is done. */
typedef struct account {
  uid_t uid;
  gid_t gid;
  char name[64];
  char home[PATH_MAX];
} account;

/* False when there is no such user, or we may not act as it: without root we are just ourselves. */
static bool user_find(const char *name, account *out) {
  struct passwd *entry = getpwnam(name);
  if (!entry || strlen(name) >= sizeof out->name || (geteuid() != 0 && entry->pw_uid != geteuid())) return false;
  out->uid = entry->pw_uid;
  out->gid = entry->pw_gid;
  (void)snprintf(out->name, sizeof out->name, "%s", name);
  (void)snprintf(out->home, sizeof out->home, "%s", entry->pw_dir);
  return true;
}

/* Lexical, as filepath.Clean of Go: no "//", no ".", no "..". `path` is absolute. */
static void path_clean(char *path) {
  char *from = path, *to = path;
  while (*from) {
    size_t len;
    while (*from == '/') from++;
    len = strcspn(from, "/");
    if (len == 2 && from[0] == '.' && from[1] == '.') {
      while (to > path && *--to != '/') {}
    } else if (len && !(len == 1 && from[0] == '.')) {
      *to++ = '/';
      memmove(to, from, len);
      to += len;
    }
    from += len;
  }
  if (to == path) *to++ = '/';
  *to = 0;
}

/* What a client's path means: absolute as it is, "~" and all else below the home directory, "" the default directory.
 * False with the reason in `why`. */
static bool path_resolve(const account *who, const char *workdir, e2b_str text, char out[PATH_MAX], char why[256]) {
  char path[PATH_MAX];
  int len;
  if (text.len == 0 && e2b__given(workdir)) text = e2b__str(workdir);
  if (text.len >= sizeof path || (text.len && memchr(text.ptr, 0, text.len))) {
    (void)snprintf(why, 256, "%s", text.len >= sizeof path ? "path is too long" : "path has a NUL byte in it");
    return false;
  }
  if (text.len) memcpy(path, text.ptr, text.len);
  path[text.len] = 0;
  if (path[0] == '~' && path[1] && path[1] != '/' && path[1] != '\\') {
    (void)snprintf(why, 256, "failed to expand path '%.80s' for user '%s': cannot expand user-specific home dir", path,
                   who->name);
    return false;
  }
  if (path[0] == '/') {
    memcpy(out, path, text.len + 1);
    return true;
  }
  len = snprintf(out, PATH_MAX, "%s/%s", who->home, path[0] == '~' ? path + 1 : path);
  if (len < 0 || len >= PATH_MAX) {
    (void)snprintf(why, 256, "path is too long");
    return false;
  }
  path_clean(out);
  return true;
}

static const char *path_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash && slash[1] ? slash + 1 : path;
}

/* The directory a path lies in, "/" for that itself. */
static void path_parent(const char *path, char out[PATH_MAX]) {
  char *slash;
  (void)snprintf(out, PATH_MAX, "%s", path);
  path_clean(out);
  slash = strrchr(out, '/');
  slash[slash == out] = 0;
}

/* Makes a directory and what is missing above it; new ones belong to the user. */
static bool make_dirs(const char *path, const account *who, char why[256]) {
  char part[PATH_MAX];
  struct stat info;
  char *slash;
  (void)snprintf(part, sizeof part, "%s", path);
  path_clean(part);
  for (slash = part; slash; ) {
    slash = strchr(slash + 1, '/');
    if (slash) *slash = 0;
    if (stat(part, &info) == 0) {
      if (!S_ISDIR(info.st_mode)) {
        (void)snprintf(why, 256, "path is a file: %.200s", part);
        return false;
      }
    } else if (errno != ENOENT) {
      (void)snprintf(why, 256, "failed to stat directory: stat %.150s: %s", part, errno_text(errno));
      return false;
    } else if ((mkdir(part, 0755) != 0 && errno != EEXIST) || chown(part, who->uid, who->gid) != 0) {
      (void)snprintf(why, 256, "failed to create directory: mkdir %.150s: %s", part, errno_text(errno));
      return false;
    }
    if (slash) *slash = '/';
  }
  return true;
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *at) {
  E2B__UNUSED(info);
  E2B__UNUSED(type);
  E2B__UNUSED(at);
  return remove(path) != 0 && errno != ENOENT ? -1 : 0;
}

/* A file, or a directory with all in it; nothing there is fine. False with errno set. */
static bool remove_tree(const char *path) {
  return nftw(path, remove_one, 32, FTW_DEPTH | FTW_PHYS) == 0 || errno == ENOENT;
}

/* ================================================================================================================== */
/* >>>> connections */
/* ================================================================================================================== */

/* What works on a request. Functions may be NULL. `gone` comes exactly once, when the exchange is over or its
 * connection lost, and frees `state`. Nothing but `gone` is called after the answer was complete. */
typedef struct handler {
  void (*body)(exchange *x, const char *data, size_t len);
  void (*end)(exchange *x);   /* the request is complete */
  void (*drain)(exchange *x); /* there is room for output again; asked for with exchange.stalled */
  void (*hangup)(exchange *x);/* the client closed its side before the answer was complete */
  void (*gone)(exchange *x);
} handler;

/* One request and its answer. */
struct exchange {
  conn *conn;
  const handler *handler;
  void *state;
  void (*answer)(exchange *x); /* of requests that are held in memory */
  sandbox *sandbox; /* the data plane of which it is for; its end cuts the connection */
  node in_sandbox;
  e2b__buf target;
  e2b__headers headers;
  e2b__buf body;
  const char *method;
  const char *path;  /* in target; after routing without the prefix that led here */
  const char *query; /* in target, "" when there is none */
  e2b__buf extra;    /* header lines of the answer, each ended by CR LF */
  bool asked;        /* the request is complete */
  bool head_sent, chunked, answered;
  bool stalled;      /* waits for room */
  bool full;         /* has taken enough of the request for now */
  bool expects;      /* the client holds the body back until it is asked for */
  bool keep_alive, http10, head_only;
  bool relayed;      /* a server in the sandbox answers: nothing is added to its headers */
};

struct conn {
  watch watch;
  node in_conns, in_touched;
  timer timer; /* idle, or lingering after an error */
  mbedtls_ssl_context *tls;
  size_t tls_retry;  /* a write that has to be repeated with this length */
  bool handshake;    /* under way */
  bool want_write;   /* to wait for */
  bool paused;       /* the parser, at the end of a request */
  bool eof, closing, lingering, broken, dead;
  llhttp_t parser;
  e2b__buf field, value; /* the header line that is coming in */
  e2b__buf in;           /* read, but not parsed yet */
  e2b__buf out;
  size_t out_at;         /* before it: sent */
  int file;              /* a file to send after `out`, or -1 */
  int64_t file_at, file_left;
  exchange *exchange;    /* NULL between requests */
};

/* The loop looks after it at the end of this turn. */
static void conn_touch(conn *c) {
  if (!c->dead && c->in_touched.next == &c->in_touched) list_push(&server.touched, &c->in_touched);
}

/* It is closed at the end of this turn. */
static void conn_break(conn *c) {
  c->broken = true;
  conn_touch(c);
}

static void conn_put(conn *c, const void *data, size_t len) {
  e2b__buf_put(&c->out, data, len);
  if (c->out.err) c->broken = true;
  conn_touch(c);
}

static size_t conn_pending(const conn *c) {
  return c->out.len - c->out_at;
}

static exchange *exchange_new(conn *c) {
  exchange *x = (exchange *)xalloc(sizeof *x);
  x->conn = c;
  list_init(&x->in_sandbox);
  e2b__buf_init(&x->target, &server.mem, HEAD_MAX);
  e2b__headers_init(&x->headers, &server.mem, HEAD_MAX);
  e2b__buf_init(&x->body, &server.mem, BODY_MAX);
  e2b__buf_init(&x->extra, &server.mem, HEAD_MAX);
  return x;
}

static void exchange_free(exchange *x) {
  if (!x) return;
  x->conn->exchange = NULL;
  if (x->handler && x->handler->gone) x->handler->gone(x);
  list_remove(&x->in_sandbox);
  e2b__buf_free(&x->target);
  e2b__headers_free(&x->headers);
  e2b__buf_free(&x->body);
  e2b__buf_free(&x->extra);
  free(x);
}

static const char *header(const exchange *x, const char *name) {
  return e2b__headers_get(&x->headers, name);
}

/* Streams ask before they produce; `false` means that drain will be called. */
static bool exchange_has_room(exchange *x) {
  if (conn_pending(x->conn) < OUTPUT_HIGH) return true;
  x->stalled = true;
  return false;
}

static void conn_drop_file(conn *c) {
  if (c->file >= 0) (void)close(c->file);
  c->file = -1;
  c->file_left = 0;
}

/* At once, and without the end of an answer that is under way: the peer shall see that it was cut. The memory lives
 * until the end of this turn of the loop. */
static void conn_close(conn *c) {
  if (c->dead) return;
  c->dead = true;
  exchange_free(c->exchange);
  if (c->tls) {
    if (!c->handshake) (void)mbedtls_ssl_close_notify(c->tls);
    mbedtls_ssl_free(c->tls);
    free(c->tls);
  }
  conn_drop_file(c);
  watch_close(&c->watch);
  timer_stop(&c->timer);
  e2b__buf_free(&c->field);
  e2b__buf_free(&c->value);
  e2b__buf_free(&c->in);
  e2b__buf_free(&c->out);
  list_remove(&c->in_touched);
  list_remove(&c->in_conns);
  list_push(&server.graveyard, &c->in_conns);
}

/* > 0 bytes, 0 the end, E2B_IO_AGAIN, or another negative number: broken. */
static int conn_recv(conn *c, void *data, size_t cap) {
  int n;
  if (!c->tls) {
    n = (int)recv(c->watch.fd, data, cap, 0);
    return n >= 0 ? n : errno == EAGAIN || errno == EINTR ? E2B_IO_AGAIN : -1;
  }
  n = mbedtls_ssl_read(c->tls, (unsigned char *)data, cap);
  if (n == MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY || n == 0) return 0;
  if (n == MBEDTLS_ERR_SSL_WANT_READ || n == MBEDTLS_ERR_SSL_WANT_WRITE) return E2B_IO_AGAIN;
  return n > 0 ? n : -1;
}

static int conn_send(conn *c, const void *data, size_t len) {
  int n;
  if (!c->tls) {
    n = (int)send(c->watch.fd, data, len, MSG_NOSIGNAL);
    return n >= 0 ? n : errno == EAGAIN || errno == EINTR ? E2B_IO_AGAIN : -1;
  }
  if (c->tls_retry) len = c->tls_retry;
  n = mbedtls_ssl_write(c->tls, (const unsigned char *)data, len);
  c->tls_retry = n == MBEDTLS_ERR_SSL_WANT_READ || n == MBEDTLS_ERR_SSL_WANT_WRITE ? len : 0;
  if (c->tls_retry) return E2B_IO_AGAIN;
  return n > 0 ? n : -1;
}

/* The next piece of the file that follows `out`: straight to the socket, or for TLS into `out`. Same results as
 * conn_send. A file that has become shorter breaks the connection, for the length was promised. */
static int conn_send_file(conn *c) {
  size_t want = c->file_left < (int64_t)IO_CHUNK ? (size_t)c->file_left : IO_CHUNK;
  off_t at = (off_t)c->file_at;
  ssize_t n;
  if (c->tls) {
    n = pread(c->file, server.chunk, want, at);
    if (n > 0) e2b__buf_put(&c->out, server.chunk, (size_t)n);
  } else {
    n = sendfile(c->watch.fd, c->file, &at, c->file_left < 1 << 20 ? (size_t)c->file_left : (size_t)1 << 20);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return E2B_IO_AGAIN;
  }
  if (n <= 0) return -1;
  c->file_at += n;
  c->file_left -= n;
  if (c->file_left == 0) conn_drop_file(c);
  return (int)n;
}

/* Sends what it can: false when the connection is broken. Large answers come back for their next turn. */
static bool conn_flush(conn *c) {
  int turns, n;
  for (turns = 0; turns < 8 && (conn_pending(c) || c->file >= 0); turns++) {
    if (conn_pending(c)) {
      n = conn_send(c, c->out.data + c->out_at, conn_pending(c));
      if (n > 0) c->out_at += (size_t)n;
    } else {
      c->out.len = c->out_at = 0;
      n = conn_send_file(c);
    }
    if (n == E2B_IO_AGAIN) break;
    if (n < 0) return false;
  }
  if (!conn_pending(c)) {
    c->out.len = c->out_at = 0;
  } else if (c->out_at > OUTPUT_HIGH) {
    e2b__buf_drop(&c->out, c->out_at);
    c->out_at = 0;
  }
  return true;
}

/* ================================================================================================================== */
/* >>>> replies */
/* ================================================================================================================== */

static const char *status_text(int status) {
  static const struct { int status; const char *text; } texts[] = { { 200, "OK" }, { 201, "Created" },
    { 202, "Accepted" },
    { 204, "No Content" }, { 206, "Partial Content" }, { 301, "Moved Permanently" },
    { 302, "Found" }, { 303, "See Other" }, { 304, "Not Modified" }, { 307, "Temporary Redirect" },
    { 308, "Permanent Redirect" }, { 400, "Bad Request" }, { 401, "Unauthorized" },
    { 403, "Forbidden" }, { 404, "Not Found" }, { 405, "Method Not Allowed" }, { 409, "Conflict" },
    { 413, "Content Too Large" }, { 415, "Unsupported Media Type" }, { 416, "Range Not Satisfiable" },
    { 429, "Too Many Requests" }, { 431, "Request Header Fields Too Large" }, { 499, "Client Closed Request" },
    { 500, "Internal Server Error" }, { 501, "Not Implemented" }, { 502, "Bad Gateway" },
    { 503, "Service Unavailable" }, { 504, "Gateway Timeout" }, { 507, "Insufficient Storage" } };
  size_t i;
  for (i = 0; i < E2B__COUNT(texts); i++)
    if (texts[i].status == status) return texts[i].text;
  return "Unknown";
}

/* A header of the answer to come; names and values are ours and clean. */
E2B__PRINTF(2, 3)
static void reply_header(exchange *x, const char *format, ...) {
  va_list args;
  va_start(args, format);
  buf_vprintf(&x->extra, format, args);
  va_end(args);
  e2b__buf_text(&x->extra, "\r\n");
}

static void http_date(int64_t unix_time, char out[40]) {
  time_t t = (time_t)unix_time;
  struct tm parts;
  memset(&parts, 0, sizeof parts);
  (void)gmtime_r(&t, &parts);
  (void)strftime(out, 40, "%a, %d %b %Y %H:%M:%S GMT", &parts);
}

#define LENGTH_UNKNOWN (-1) /* chunked */
#define LENGTH_NONE (-2)    /* a status without body */

static void reply_head(exchange *x, int status, const char *type, int64_t length) {
  e2b__buf *out = &x->conn->out;
  char date[40];
  http_date(wall_clock().seconds, date);
  buf_printf(out, "HTTP/1.1 %d %s\r\nDate: %s\r\n", status, status_text(status), date);
  if (type) buf_printf(out, "Content-Type: %s\r\n", type);
  if (length >= 0) buf_printf(out, "Content-Length: %lld\r\n", (long long)length);
  x->chunked = length == LENGTH_UNKNOWN && !x->http10;
  if (x->chunked) e2b__buf_text(out, "Transfer-Encoding: chunked\r\n");
  if ((length == LENGTH_UNKNOWN && x->http10) || x->expects) x->keep_alive = false;
  if (!x->keep_alive) e2b__buf_text(out, "Connection: close\r\n");
  if (header(x, "origin") && !x->relayed)
    e2b__buf_text(out, "Access-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: X-Next-Token, Content-Length, "
                       "Content-Disposition\r\n");
  e2b__buf_str(out, buf_str(&x->extra));
  e2b__buf_text(out, "\r\n");
  x->head_sent = true;
  conn_put(x->conn, NULL, 0);
  if (server.log) (void)fprintf(stderr, "%s %s %d\n", x->method, x->path ? x->path : "-", status);
}

/* What follows of the request is read and thrown away. */
static void reply_done(exchange *x) {
  x->answered = true;
  x->full = false;
  conn_touch(x->conn);
}

static void reply(exchange *x, int status, const char *type, const void *body, size_t len) {
  reply_head(x, status, type, status == 204 ? LENGTH_NONE : (int64_t)len);
  if (!x->head_only) conn_put(x->conn, body, len);
  reply_done(x);
}

static void reply_buf(exchange *x, int status, const char *type, e2b__buf *body) {
  if (body->err) reply(x, 500, "text/plain; charset=utf-8", "too large\n", 10);
  else reply(x, status, type, body->data, body->len);
  e2b__buf_free(body);
}

static void reply_empty(exchange *x, int status) {
  reply(x, status, NULL, NULL, 0);
}

static void reply_text(exchange *x, int status, const char *text) {
  reply_header(x, "X-Content-Type-Options: nosniff");
  reply(x, status, "text/plain; charset=utf-8", text, strlen(text));
}

/* {"code":status,"message":...}: the shape of the control plane's errors and of envd's plain HTTP endpoints */
E2B__PRINTF(3, 4)
static void reply_error(exchange *x, int status, const char *format, ...) {
  e2b__buf message, body;
  e2b__json_writer w;
  va_list args;
  e2b__buf_init(&message, &server.mem, OUTPUT_MAX);
  e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
  va_start(args, format);
  buf_vprintf(&message, format, args);
  va_end(args);
  w.out = &body;
  w.comma = false;
  e2b__json_begin(&w, '{');
  e2b__json_key(&w, "code");
  e2b__json_i64(&w, status);
  e2b__json_key(&w, "message");
  e2b__json_str(&w, buf_str(&message));
  e2b__json_end(&w, '}');
  e2b__buf_byte(&body, '\n');
  e2b__buf_free(&message);
  reply_buf(x, status, "application/json; charset=utf-8", &body);
}

static void reply_chunk(exchange *x, const void *data, size_t len) {
  if (!len || x->head_only) return;
  if (x->chunked) buf_printf(&x->conn->out, "%zx\r\n", len);
  conn_put(x->conn, data, len);
  if (x->chunked) conn_put(x->conn, "\r\n", 2);
}

static void reply_end(exchange *x) {
  if (x->chunked && !x->head_only) conn_put(x->conn, "0\r\n\r\n", 5);
  reply_done(x);
}

/* The rest of the answer is `len` bytes of a file, which is taken over. */
static void reply_file(exchange *x, int fd, int64_t from, int64_t len) {
  x->conn->file = fd;
  x->conn->file_at = from;
  x->conn->file_left = len;
  if (len == 0 || x->head_only) conn_drop_file(x->conn);
  reply_done(x);
}

static void reply_method_not_allowed(exchange *x, const char *allow) {
  reply_header(x, "Allow: %s", allow);
  reply_empty(x, 405);
}

/* %XX, and '+' as a space in a form. False when it is malformed. */
static bool percent_decode(e2b_str text, bool form, e2b__buf *out) {
  size_t i;
  for (i = 0; i < text.len; i++) {
    int high, low;
    if (form && text.ptr[i] == '+') {
      e2b__buf_byte(out, ' ');
    } else if (text.ptr[i] != '%') {
      e2b__buf_byte(out, (uint8_t)text.ptr[i]);
    } else {
      high = text.len - i > 2 ? e2b__hex_value(text.ptr[i + 1]) : -1;
      low = high >= 0 ? e2b__hex_value(text.ptr[i + 2]) : -1;
      if (low < 0) return false;
      e2b__buf_byte(out, (uint8_t)(high * 16 + low));
      i += 2;
    }
  }
  return !out->err;
}

/* The next piece up to `mark`; the rest stays in *text. */
static e2b_str str_cut(e2b_str *text, char mark) {
  const char *end = text->len ? (const char *)memchr(text->ptr, mark, text->len) : NULL;
  e2b_str piece = e2b__str_n(text->ptr, end ? (size_t)(end - text->ptr) : text->len);
  size_t used = end ? piece.len + 1 : piece.len;
  text->ptr += used;
  text->len -= used;
  return piece;
}

/* A parameter of the query, decoded into `out` and NUL-terminated. False when it is absent (or malformed). */
static bool query_get(const exchange *x, const char *name, e2b__buf *out) {
  e2b_str rest = e2b__str(x->query);
  out->len = 0;
  while (rest.len) {
    e2b_str value = str_cut(&rest, '&'), key = str_cut(&value, '=');
    if (e2b__str_eq(key, name)) return percent_decode(value, true, out) && e2b__buf_cstr(out) != NULL;
  }
  return false;
}

/* Decimal digits and nothing else. */
static bool parse_i64(const char *text, int64_t *out) {
  char *end;
  if (!e2b__is_digit(text[text[0] == '-'])) return false;
  errno = 0;
  *out = strtoll(text, &end, 10);
  return errno == 0 && *end == 0;
}

/* ================================================================================================================== */
/* >>>> sandboxes */
/* ================================================================================================================== */

struct sandbox {
  char id[24];
  node in_all;
  sandbox *next_in_bucket;
  uint64_t number; /* in the order of creation: what pages are cut by */
  char *template_id;
  char *home;
  char *token;       /* envd's access token, NULL = none */
  char *default_user, *workdir; /* set by /init, or NULL */
  pairs metadata, env;
  e2b__timestamp started, ends;
  timer life;
  bool paused, auto_pause, auto_resume;
  bool jwt, never_ends; /* with --kruise */
  bool used;       /* has ever started a process */
  node processes;  /* oldest first */
  node contexts;   /* of the code interpreter, oldest first */
  node watchers;
  node exchanges;
  char *snapshot;  /* the id of the one it was made from, or NULL */
  char *network, *allow_internet; /* JSON as last set, or NULL; nothing here enforces it */
  char *traffic_token;            /* ports other than envd's want it; NULL = they are public */
  char *mask_host;                /* the Host that servers in the sandbox see, or NULL = what the client sent */
  node logs;       /* oldest first */
  size_t log_count;
};

/* What the service remembers of a sandbox's life. */
typedef struct log_entry {
  node in_logs;
  e2b__timestamp time;
  const char *level; /* static */
  pairs fields;
  char message[];
} log_entry;

static void log_free(log_entry *entry) {
  list_remove(&entry->in_logs);
  pairs_free(&entry->fields);
  free(entry);
}

/* Field by field may be added to what is returned. */
E2B__PRINTF(3, 4)
static log_entry *sandbox_log(sandbox *s, const char *level, const char *format, ...) {
  char message[256];
  log_entry *entry;
  va_list args;
  va_start(args, format);
  (void)vsnprintf(message, sizeof message, format, args);
  va_end(args);
  entry = (log_entry *)xalloc(sizeof *entry + strlen(message) + 1);
  memcpy(entry->message, message, strlen(message));
  entry->time = wall_clock();
  entry->level = level;
  list_push(&s->logs, &entry->in_logs);
  if (++s->log_count > LOGS_MAX) {
    log_free(OWNER(s->logs.next, log_entry, in_logs));
    s->log_count--;
  }
  return entry;
}

static size_t sandbox_bucket(const char *id) {
  uint32_t hash = 2166136261u;
  while (*id) hash = (hash ^ (uint8_t)*id++) * 16777619u;
  return hash % SANDBOX_BUCKETS;
}

static sandbox *sandbox_find(e2b_str id) {
  char name[24];
  sandbox *s;
  if (id.len == 0 || id.len >= sizeof name) return NULL;
  memcpy(name, id.ptr, id.len);
  name[id.len] = 0;
  s = server.buckets[sandbox_bucket(name)];
  while (s && strcmp(s->id, name) != 0) s = s->next_in_bucket;
  return s;
}

/* The user of a request that names one, or else the default. The home of the default user is the sandbox's own. The users
 * that OpenKruise's images have are all the same to us. */
static bool sandbox_user(const sandbox *s, const char *name, account *out) {
  if (name && server.kruise && (strcmp(name, "root") == 0 || strcmp(name, "node") == 0 || strcmp(name, "user") == 0))
    name = NULL;
  if (name) return user_find(name, out);
  if (!user_find(s->default_user ? s->default_user : server.default_user, out)) return false;
  if (!server.real_home) (void)snprintf(out->home, sizeof out->home, "%s", s->home);
  return true;
}

/* ================================================================================================================== */
/* >>>> rpc */
/* ================================================================================================================== */

/* The Connect protocol, server side. Codes by number: wire name and HTTP status of a unary answer. */
static const struct { const char *name; int status; } rpc_codes[] = { { "ok", 200 }, { "canceled", 499 },
  { "unknown", 500 }, { "invalid_argument", 400 }, { "deadline_exceeded", 504 }, { "not_found", 404 },
  { "already_exists", 409 }, { "permission_denied", 403 }, { "resource_exhausted", 429 },
  { "failed_precondition", 400 }, { "aborted", 409 }, { "out_of_range", 400 }, { "unimplemented", 501 },
  { "internal", 500 }, { "unavailable", 503 }, { "data_loss", 500 }, { "unauthenticated", 401 } };

typedef enum rpc_kind { RPC_UNARY, RPC_SERVER_STREAM, RPC_CLIENT_STREAM } rpc_kind;

typedef struct rpc_method {
  const char *path;
  rpc_kind kind;
  const e2b__message *request;
  void (*run)(rpc *r, const void *request); /* for each message of a client stream, once otherwise */
  void (*drain)(rpc *r);                    /* of streams: there is room again */
  void (*gone)(rpc *r);                     /* of those that wait: lets go of what it waits for */
} rpc_method;

/* One call: the state of its exchange. */
struct rpc {
  exchange *x;
  const rpc_method *method;
  bool json, gzip, ended;
  bool busy;           /* in the loop over the messages of a client stream */
  account who;
  size_t at;           /* in x->body: the next envelope */
  e2b__arena arena;    /* of the request, or the current message */
  timer deadline;
  int64_t timeout_ms;  /* -1 = none */
  /* Start and Connect: */
  process *process;    /* whose output it sends */
  node in_process;
  timer keepalive;
  int64_t keepalive_ms;
  /* SendInput, StreamInput, CloseStdin: */
  struct input *input; /* waits for room in the process's pipe */
  watcher *watcher;    /* WatchDir: whose events it sends */
  pid_t selected;      /* StreamInput: where it goes */
};

static const char *rpc_content_type(const rpc *r) {
  if (r->method->kind == RPC_UNARY) return r->json ? "application/json" : "application/proto";
  return r->json ? "application/connect+json" : "application/connect+proto";
}

static void rpc_stop(rpc *r) {
  timer_stop(&r->deadline);
  timer_stop(&r->keepalive);
  if (!r->ended && r->method->gone) r->method->gone(r);
  r->ended = true;
}

/* Encodes into server.scratch behind `room` bytes. */
static e2b__buf *rpc_encode(const rpc *r, const e2b__message *m, const void *message, size_t room) {
  static const char zeros[5] = { 0, 0, 0, 0, 0 };
  e2b__buf *out = &server.scratch;
  if (out->err || out->cap > SCRATCH_MAX) e2b__buf_free(out);
  out->len = 0;
  e2b__buf_put(out, zeros, room);
  if (m && r->json) e2b__json_encode(m, message, out);
  else if (m) e2b__pb_encode(m, message, out);
  return out;
}

static void rpc_put_envelope(rpc *r, uint8_t flags, e2b__buf *envelope) {
  size_t len = envelope->len - 5;
  if (!r->x->head_sent) reply_head(r->x, 200, rpc_content_type(r), LENGTH_UNKNOWN);
  envelope->data[0] = flags;
  envelope->data[1] = (uint8_t)(len >> 24 & 0xff);
  envelope->data[2] = (uint8_t)(len >> 16 & 0xff);
  envelope->data[3] = (uint8_t)(len >> 8 & 0xff);
  envelope->data[4] = (uint8_t)(len & 0xff);
  reply_chunk(r->x, envelope->data, envelope->len);
}

/* One message of a stream. */
static void rpc_send(rpc *r, const e2b__message *m, const void *message) {
  e2b__buf *envelope;
  if (r->ended) return;
  envelope = rpc_encode(r, m, message, 5);
  if (envelope->err) conn_break(r->x->conn);
  else rpc_put_envelope(r, 0, envelope);
}

/* {"code":"not_found","message":"..."} */
static void rpc_put_error(e2b__json_writer *w, int code, e2b_str message) {
  e2b__json_begin(w, '{');
  e2b__json_key(w, "code");
  e2b__json_str(w, e2b__str(rpc_codes[code].name));
  e2b__json_key(w, "message");
  e2b__json_str(w, message);
  e2b__json_end(w, '}');
}

/* The end of a stream: an envelope of JSON, whatever the codec. code 0 = success. */
static void rpc_end_stream(rpc *r, int code, e2b_str message) {
  e2b__buf *envelope = rpc_encode(r, NULL, NULL, 5);
  e2b__json_writer w;
  w.out = envelope;
  w.comma = false;
  e2b__json_begin(&w, '{');
  if (code) {
    e2b__json_key(&w, "error");
    rpc_put_error(&w, code, message);
  }
  e2b__json_end(&w, '}');
  if (envelope->err) conn_break(r->x->conn);
  else rpc_put_envelope(r, 2, envelope);
  reply_end(r->x);
}

E2B__PRINTF(3, 4)
static void rpc_fail(rpc *r, int code, const char *format, ...) {
  e2b__buf message, body;
  e2b__json_writer w;
  va_list args;
  if (r->ended) return;
  rpc_stop(r);
  e2b__buf_init(&message, &server.mem, OUTPUT_MAX);
  va_start(args, format);
  buf_vprintf(&message, format, args);
  va_end(args);
  if (r->method->kind != RPC_UNARY) {
    rpc_end_stream(r, code, buf_str(&message));
  } else {
    e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
    w.out = &body;
    w.comma = false;
    rpc_put_error(&w, code, buf_str(&message));
    reply_buf(r->x, rpc_codes[code].status, "application/json", &body);
  }
  e2b__buf_free(&message);
}

/* Success: the only message of a unary call or client stream. */
static void rpc_reply(rpc *r, const e2b__message *m, const void *message) {
  e2b__buf *body;
  if (r->ended) return;
  if (r->method->kind == RPC_CLIENT_STREAM) {
    rpc_send(r, m, message);
    rpc_stop(r);
    rpc_end_stream(r, 0, e2b__str(""));
    return;
  }
  body = rpc_encode(r, m, message, 0);
  rpc_stop(r);
  if (body->err) reply_text(r->x, 500, "too large\n");
  else reply(r->x, 200, rpc_content_type(r), body->data, body->len);
}

static void rpc_reply_empty(rpc *r) {
  e2b__empty none;
  none.none = 0;
  rpc_reply(r, &e2b__msg_empty, &none);
}

/* Success of a server stream. */
static void rpc_finish(rpc *r) {
  if (r->ended) return;
  rpc_stop(r);
  rpc_end_stream(r, 0, e2b__str(""));
}

static void rpc_deadline(timer *t) {
  rpc_fail(OWNER(t, rpc, deadline), E2B_CONNECT_DEADLINE_EXCEEDED, "context deadline exceeded");
}

/* A request message of `data`, which JSON is decoded in. NULL: failed, and answered. */
static void *rpc_decode(rpc *r, uint8_t *data, size_t len) {
  static uint8_t none[1];
  const e2b__message *m = r->method->request;
  void *message;
  e2b_err err;
  e2b__arena_free(&r->arena);
  e2b__arena_init(&r->arena, &server.mem, BODY_MAX);
  message = e2b__arena_alloc(&r->arena, m->size);
  if (!message) die("out of memory");
  if (r->json && len == 0) {
    rpc_fail(r, E2B_CONNECT_INVALID_ARGUMENT, "unmarshal message: zero-length payload is not a valid JSON object");
    return NULL;
  }
  err = r->json ? e2b__json_decode(m, (char *)data, len, &r->arena, message)
                : e2b__pb_decode(m, len ? data : none, len, &r->arena, message);
  if (!err) return message;
  rpc_fail(r, err == E2B_ERR_LIMIT ? E2B_CONNECT_RESOURCE_EXHAUSTED : E2B_CONNECT_INVALID_ARGUMENT,
           "unmarshal message: %s", err == E2B_ERR_LIMIT ? "too large" : "it is malformed");
  return NULL;
}

/* Replaces the body by what it unpacks to. False: failed, and answered. */
static bool rpc_unpack(rpc *r, e2b__buf *packed, size_t from, size_t len) {
  e2b__buf plain;
  e2b__buf_init(&plain, &server.mem, BODY_MAX);
  if (!gunzip_all(packed->data + from, len, &plain)) {
    e2b__buf_free(&plain);
    rpc_fail(r, E2B_CONNECT_INVALID_ARGUMENT, "decompress: the message is not gzip");
    return false;
  }
  packed->len = from;
  e2b__buf_put(packed, plain.data, plain.len);
  e2b__buf_free(&plain);
  return !packed->err;
}

/* The next envelope of a request: 1 = *payload, 0 = not complete yet, -1 = failed, and answered. */
static int rpc_take_envelope(rpc *r, e2b_str *payload) {
  e2b__buf *body = &r->x->body;
  const uint8_t *head;
  size_t len, left = body->len - r->at;
  if (left < 5) return 0;
  head = body->data + r->at;
  len = (size_t)head[1] << 24 | (size_t)head[2] << 16 | (size_t)head[3] << 8 | head[4];
  if (len > BODY_MAX) {
    rpc_fail(r, E2B_CONNECT_RESOURCE_EXHAUSTED, "message size %zu is larger than %zu", len, BODY_MAX);
    return -1;
  }
  if (head[0] & ~1u || (head[0] == 1 && !r->gzip && len)) {
    rpc_fail(r, E2B_CONNECT_INTERNAL, head[0] & ~1u ? "protocol error: invalid envelope flags" :
             "protocol error: sent compressed message without compression support");
    return -1;
  }
  if (left - 5 < len) return 0;
  *payload = e2b__str_n((const char *)head + 5, len);
  r->at += 5 + len;
  return 1;
}

/* What came cannot be a complete request: one message was due, or an envelope was cut off. */
static void rpc_fail_envelopes(rpc *r, const char *what) {
  size_t left = r->x->body.len - r->at;
  if (!left) rpc_fail(r, E2B_CONNECT_UNIMPLEMENTED, "unary request has %s messages", what);
  else if (left < 5) rpc_fail(r, E2B_CONNECT_INVALID_ARGUMENT, "protocol error: incomplete envelope: unexpected EOF");
  else {
    const uint8_t *head = r->x->body.data + r->at;
    size_t len = (size_t)head[1] << 24 | (size_t)head[2] << 16 | (size_t)head[3] << 8 | head[4];
    rpc_fail(r, E2B_CONNECT_INVALID_ARGUMENT, "protocol error: promised %zu bytes in enveloped message, got %zu bytes",
             len, left - 5);
  }
}

/* The whole request of a unary call or server stream is there. */
static void rpc_run_once(rpc *r) {
  e2b__buf *body = &r->x->body;
  size_t from = 0, len = body->len;
  bool packed = r->gzip;
  e2b_str payload;
  void *request;
  if (r->method->kind == RPC_SERVER_STREAM) {
    int got = rpc_take_envelope(r, &payload);
    if (got < 0) return;
    if (got == 0) {
      rpc_fail_envelopes(r, "zero");
      return;
    }
    if (r->at != body->len) {
      rpc_fail(r, E2B_CONNECT_UNIMPLEMENTED, "unary request has multiple messages");
      return;
    }
    from = 5;
    len = payload.len;
    packed = body->data[0] == 1;
  }
  if (packed && len) {
    if (!rpc_unpack(r, body, from, len)) return;
    len = body->len - from;
  }
  request = rpc_decode(r, body->data ? body->data + from : NULL, len);
  if (request) r->method->run(r, request);
}

/* Takes the messages of a client stream one by one; `run` may make it wait. */
static void rpc_run_stream(rpc *r) {
  e2b_str payload;
  r->busy = true;
  while (!r->ended && !r->input) {
    void *message;
    if (rpc_take_envelope(r, &payload) <= 0) break;
    message = rpc_decode(r, (uint8_t *)(uintptr_t)payload.ptr, payload.len);
    if (message) r->method->run(r, message);
  }
  r->busy = false;
  if (r->ended) return;
  if (!r->input) {
    e2b__buf_drop(&r->x->body, r->at);
    r->at = 0;
  }
  r->x->full = r->x->body.len > INPUT_MAX;
  conn_touch(r->x->conn);
  if (!r->x->asked || r->input) return;
  if (r->x->body.len) rpc_fail_envelopes(r, "");
  else rpc_reply_empty(r);
}

static void rpc_on_body(exchange *x, const char *data, size_t len) {
  rpc *r = (rpc *)x->state;
  e2b__buf_put(&x->body, data, len);
  if (x->body.err) rpc_fail(r, E2B_CONNECT_RESOURCE_EXHAUSTED, "the request is larger than %zu bytes", BODY_MAX);
  else if (r->method->kind == RPC_CLIENT_STREAM) rpc_run_stream(r);
}

static void rpc_on_end(exchange *x) {
  rpc *r = (rpc *)x->state;
  if (r->method->kind == RPC_CLIENT_STREAM) rpc_run_stream(r);
  else rpc_run_once(r);
}

static void rpc_on_drain(exchange *x) {
  rpc *r = (rpc *)x->state;
  if (!r->ended && r->method->drain) r->method->drain(r);
}

static void rpc_on_hangup(exchange *x) {
  if (((rpc *)x->state)->method->kind == RPC_SERVER_STREAM) conn_break(x->conn);
}

static void rpc_on_gone(exchange *x) {
  rpc *r = (rpc *)x->state;
  rpc_stop(r);
  e2b__arena_free(&r->arena);
  free(r);
}

static const handler rpc_handler = { rpc_on_body, rpc_on_end, rpc_on_drain, rpc_on_hangup, rpc_on_gone };

/* Reads the headers that belong to the protocol. False: failed, and answered. */
static bool rpc_read_headers(rpc *r) {
  const char *version = header(r->x, "connect-protocol-version"), *timeout = header(r->x, "connect-timeout-ms");
  const char *packed = header(r->x, r->method->kind == RPC_UNARY ? "content-encoding" : "connect-content-encoding");
  const char *ping = header(r->x, "keepalive-ping-interval");
  int64_t number;
  r->timeout_ms = -1;
  r->keepalive_ms = 90 * 1000;
  if (ping && parse_i64(ping, &number)) r->keepalive_ms = (number < 1 ? 1 : number > 86400 ? 86400 : number) * 1000;
  r->gzip = packed && strcmp(packed, "gzip") == 0 && r->method->kind != RPC_CLIENT_STREAM;
  if (packed && !r->gzip && strcmp(packed, "identity") != 0) {
    rpc_fail(r, E2B_CONNECT_UNIMPLEMENTED, "unknown compression \"%s\": supported encodings are %s", packed,
             r->method->kind == RPC_CLIENT_STREAM ? "identity" : "gzip");
    return false;
  }
  if (version && strcmp(version, "1") != 0) {
    rpc_fail(r, E2B_CONNECT_INVALID_ARGUMENT, "Connect-Protocol-Version must be \"1\": got \"%s\"", version);
    return false;
  }
  if (!e2b__given(timeout)) return true;
  if (strlen(timeout) > 10 || !parse_i64(timeout, &number) || number < 0) {
    rpc_fail(r, E2B_CONNECT_INVALID_ARGUMENT, strlen(timeout) > 10 ? "parse timeout: \"%s\" has >10 digits" :
             "parse timeout: strconv.ParseInt: parsing \"%s\": invalid syntax", timeout);
    return false;
  }
  r->timeout_ms = number;
  timer_set(&r->deadline, now_ms() + number, rpc_deadline);
  return true;
}

/* The user named by Authorization: Basic, decoded; NULL = none was named. Other schemes are ignored, as envd does. */
static const char *basic_user(const exchange *x, char out[256]) {
  const char *value = header(x, "authorization");
  size_t len;
  char *colon;
  if (!value || strlen(value) < 6 || !e2b__str_eq_nocase(e2b__str_n(value, 6), "basic ")) return NULL;
  (void)snprintf(out, 256, "%s", value + 6);
  if (!e2b__base64_decode_in_place(out, strlen(out), &len)) return NULL;
  out[len < 255 ? len : 255] = 0;
  colon = strchr(out, ':');
  if (!colon) return NULL;
  *colon = 0;
  return out;
}

/* json or proto, by the content type and the kind of the method. False: 415 was answered. */
static bool rpc_codec(exchange *x, const rpc_method *method, bool *json) {
  const char *unary = "application/json, application/json; charset=utf-8, application/proto";
  const char *stream = "application/connect+json, application/connect+json; charset=utf-8, application/connect+proto";
  const char *prefix = method->kind == RPC_UNARY ? "application/" : "application/connect+";
  e2b_str type = e2b__str(header(x, "content-type")), codec;
  type = e2b__str_trim(str_cut(&type, ';'));
  if (type.len > strlen(prefix) && e2b__str_eq_nocase(e2b__str_n(type.ptr, strlen(prefix)), prefix)) {
    codec = e2b__str_n(type.ptr + strlen(prefix), type.len - strlen(prefix));
    *json = e2b__str_eq_nocase(codec, "json");
    if (*json || e2b__str_eq_nocase(codec, "proto")) return true;
  }
  reply_header(x, "Accept-Post: %s", method->kind == RPC_UNARY ? unary : stream);
  reply_empty(x, 415);
  return false;
}

/* The head of a call is there. */
static void rpc_begin(exchange *x, const rpc_method *method) {
  char name[256];
  const char *given = basic_user(x, name);
  bool json;
  rpc *r;
  if (strcmp(x->method, "POST") != 0) {
    reply_method_not_allowed(x, "POST");
    return;
  }
  if (!rpc_codec(x, method, &json)) return;
  r = (rpc *)xalloc(sizeof *r);
  r->x = x;
  r->method = method;
  r->json = json;
  list_init(&r->in_process);
  e2b__arena_init(&r->arena, &server.mem, BODY_MAX);
  x->state = r;
  x->handler = &rpc_handler;
  if (!given && server.kruise) {
    rpc_fail(r, E2B_CONNECT_UNAUTHENTICATED, "no user specified");
    return;
  }
  if (!sandbox_user(x->sandbox, given, &r->who)) {
    rpc_fail(r, E2B_CONNECT_UNAUTHENTICATED, "invalid %susername: '%s'", given ? "" : "default ",
             given ? given : x->sandbox->default_user ? x->sandbox->default_user : server.default_user);
    return;
  }
  (void)rpc_read_headers(r);
}

/* ================================================================================================================== */
/* >>>> processes */
/* ================================================================================================================== */

typedef enum output_kind { OUTPUT_STDOUT, OUTPUT_STDERR, OUTPUT_PTY } output_kind;

/* Our end of a pipe or terminal a process writes to. */
typedef struct output {
  watch watch;
  process *process;
  output_kind kind;
} output;

/* A write to a process, in the order of arrival; it may take long, for the process may not read. */
typedef struct input {
  node in_process;
  rpc *rpc; /* to be answered; NULL when the client has gone */
  e2b__buf data;
  size_t at;
  bool close; /* end of file instead of data */
} input;

struct process {
  node in_sandbox, in_all;
  sandbox *sandbox;
  pid_t pid;
  bool pty;
  bool reaped, ended; /* ended: the end event is out, its record is kept for a while */
  bool cut;           /* killed by request: children that hold the pipes are not waited for */
  int64_t cut_left;   /* what may still be read then */
  int status;         /* of waitpid */
  output out[2];
  watch in;           /* fd < 0: not open */
  node inputs, streams;
  timer deadline, retain;
  e2b__buf body;      /* of the Start request; `request` points into it and the arena */
  e2b__arena arena;
  e2b__start_request request;
  char end_text[96];
};

static void process_read(output *o);
static void contexts_reaped(pid_t pid);

static bool process_outputs_open(const process *p) {
  return p->out[0].watch.fd >= 0 || p->out[1].watch.fd >= 0;
}

/* Every stream has room; the others are told to call when they have. No stream: output is thrown away. */
static bool process_has_room(process *p) {
  bool room = true;
  node *n;
  for (n = p->streams.next; n != &p->streams; n = n->next)
    if (!exchange_has_room(OWNER(n, rpc, in_process)->x)) room = false;
  return room;
}

static void process_send(process *p, const e2b__event_response *event) {
  node *n, *next;
  for (n = p->streams.next; n != &p->streams; n = next) {
    next = n->next;
    rpc_send(OWNER(n, rpc, in_process), &e2b__msg_event_response, event);
  }
}

static void stream_keepalive(timer *t) {
  rpc *r = OWNER(t, rpc, keepalive);
  e2b__event_response event;
  memset(&event, 0, sizeof event);
  event.has_event = event.event.has_keepalive = true;
  rpc_send(r, &e2b__msg_event_response, &event);
  timer_set(&r->keepalive, now_ms() + r->keepalive_ms, stream_keepalive);
}

static void process_send_data(process *p, output_kind kind, const char *data, size_t len) {
  e2b__event_response event;
  e2b__data_event *out = &event.event.data;
  int64_t now = now_ms();
  node *n;
  memset(&event, 0, sizeof event);
  event.has_event = event.event.has_data = true;
  out->has_stdout_data = kind == OUTPUT_STDOUT;
  out->has_stderr_data = kind == OUTPUT_STDERR;
  out->has_pty = kind == OUTPUT_PTY;
  out->stdout_data = out->stderr_data = out->pty = e2b__str_n(data, len);
  process_send(p, &event);
  for (n = p->streams.next; n != &p->streams; n = n->next) {
    rpc *r = OWNER(n, rpc, in_process);
    timer_set(&r->keepalive, now + r->keepalive_ms, stream_keepalive);
  }
}

static void input_free(input *i) {
  list_remove(&i->in_process);
  if (i->rpc) i->rpc->input = NULL;
  e2b__buf_free(&i->data);
  free(i);
}

/* Answers who waits for this write. why: NULL = it is done. */
static void input_done(input *i, const process *p, const char *why) {
  rpc *r = i->rpc;
  bool close = i->close;
  input_free(i);
  if (!r) return;
  if (why)
    rpc_fail(r, E2B_CONNECT_INTERNAL, "error writing to %s: error writing to %s of process '%d': %s%s",
             p->pty ? "tty" : "stdin", p->pty ? "tty" : "stdin", (int)p->pid, p->pty ? "" : "write |1: ", why);
  else if (close || r->method->kind == RPC_UNARY) rpc_reply_empty(r);
  else if (!r->busy) rpc_run_stream(r);
}

/* Writes what the process takes; the rest waits for room. */
static void process_pump(process *p) {
  while (!list_empty(&p->inputs)) {
    input *i = OWNER(p->inputs.next, input, in_process);
    ssize_t n = 0;
    if (i->close) {
      watch_close(&p->in);
    } else if (i->at < i->data.len) {
      if (p->in.fd < 0) errno = EPIPE;
      n = p->in.fd < 0 ? -1 : write(p->in.fd, i->data.data + i->at, i->data.len - i->at);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) {
        (void)watch_want(&p->in, EPOLLOUT);
        return;
      }
      if (n > 0) i->at += (size_t)n;
      if (n > 0 && i->at < i->data.len) continue;
    }
    input_done(i, p, n < 0 ? errno_text(errno) : NULL);
  }
  (void)watch_want(&p->in, 0);
}

static void process_in_ready(watch *w, uint32_t events) {
  E2B__UNUSED(events);
  process_pump(OWNER(w, process, in));
}

/* Queues a write, or with data NULL the end of the input, for the call `r`, which is answered when it is done. */
static void process_write(process *p, rpc *r, const e2b_str *data) {
  input *i = (input *)xalloc(sizeof *i);
  e2b__buf_init(&i->data, &server.mem, BODY_MAX);
  if (data) e2b__buf_str(&i->data, *data);
  i->close = !data;
  i->rpc = r;
  r->input = i;
  list_push(&p->inputs, &i->in_process);
  if (p->inputs.next == &i->in_process) process_pump(p);
}

/* "exit status 3" or "signal: killed", as Go has it. */
static void process_end_event(process *p, e2b__end_event *end) {
  memset(end, 0, sizeof *end);
  if (WIFSIGNALED(p->status)) {
    char name[64];
    (void)snprintf(name, sizeof name, "%s", strsignal(WTERMSIG(p->status)));
    if (islower((unsigned char)name[1])) name[0] = (char)tolower((unsigned char)name[0]);
    (void)snprintf(p->end_text, sizeof p->end_text, "signal: %s%s", name, WCOREDUMP(p->status) ? " (core dumped)" : "");
    end->exit_code = -1;
  } else {
    (void)snprintf(p->end_text, sizeof p->end_text, "exit status %d", WEXITSTATUS(p->status));
    end->exit_code = WEXITSTATUS(p->status);
    end->exited = true;
  }
  end->status = end->error = e2b__str(p->end_text);
  end->has_error = end->exit_code != 0;
}

static void process_free(process *p) {
  int i;
  while (!list_empty(&p->inputs)) input_free(OWNER(p->inputs.next, input, in_process));
  while (!list_empty(&p->streams)) {
    rpc *r = OWNER(p->streams.next, rpc, in_process);
    list_remove(&r->in_process);
    r->process = NULL;
  }
  for (i = 0; i < 2; i++) watch_close(&p->out[i].watch);
  watch_close(&p->in);
  timer_stop(&p->deadline);
  timer_stop(&p->retain);
  list_remove(&p->in_sandbox);
  list_remove(&p->in_all);
  e2b__arena_free(&p->arena);
  e2b__buf_free(&p->body);
  free(p);
}

static void process_forget(timer *t) {
  process_free(OWNER(t, process, retain));
}

static void stream_send_end(rpc *r, process *p) {
  e2b__event_response event;
  memset(&event, 0, sizeof event);
  event.has_event = event.event.has_end = true;
  process_end_event(p, &event.event.end);
  rpc_send(r, &e2b__msg_event_response, &event);
  rpc_finish(r);
}

static void process_log(process *p, const char *what) {
  log_entry *entry = sandbox_log(p->sandbox, "info", "process %s", what);
  char text[32];
  (void)snprintf(text, sizeof text, "%ld", (long)p->pid);
  pairs_set(&entry->fields, "pid", text);
  if (!p->reaped) return;
  (void)snprintf(text, sizeof text, "%d", WIFEXITED(p->status) ? WEXITSTATUS(p->status) : -1);
  pairs_set(&entry->fields, "exit_code", text);
}

/* The end event, once the process is reaped and its output complete. */
static void process_check_end(process *p) {
  if (p->ended || !p->reaped || process_outputs_open(p)) return;
  p->ended = true;
  process_log(p, "ended");
  timer_stop(&p->deadline);
  watch_close(&p->in);
  process_pump(p); /* fails the writes that wait */
  while (!list_empty(&p->streams)) stream_send_end(OWNER(p->streams.next, rpc, in_process), p);
  list_remove(&p->in_all);
  timer_set(&p->retain, now_ms() + (server.kruise ? 0 : RETAIN_MS), process_forget);
}

/* Reads until the pipe is empty or the streams are full. A process that was cut has said all it will. */
static void process_read(output *o) {
  process *p = o->process;
  size_t cap = o->kind == OUTPUT_PTY ? PTY_CHUNK : STD_CHUNK;
  bool last = p->cut && p->reaped;
  int turns;
  for (turns = 0; turns < 8 || last; turns++) {
    ssize_t n;
    if (!process_has_room(p)) {
      (void)watch_want(&o->watch, 0);
      return;
    }
    n = read(o->watch.fd, server.chunk, cap);
    if (n < 0 && (errno == EAGAIN || errno == EINTR) && !last) return;
    if (n > 0) process_send_data(p, o->kind, server.chunk, (size_t)n);
    if (last) p->cut_left -= n > 0 ? n : 0;
    if (n <= 0 || (last && p->cut_left <= 0)) {
      watch_close(&o->watch);
      process_check_end(p);
      return;
    }
    if ((size_t)n < cap && !last) return;
  }
}

static void process_out_ready(watch *w, uint32_t events) {
  E2B__UNUSED(events);
  process_read(OWNER(w, output, watch));
}

/* Goes on after streams were full or went away. */
static void process_resume(process *p) {
  int i;
  for (i = 0; i < 2; i++) {
    output *o = &p->out[i];
    if (o->watch.fd < 0 || o->watch.events || !process_has_room(p)) continue;
    (void)watch_want(&o->watch, EPOLLIN);
    process_read(o);
  }
}

/* After it was reaped or cut. */
static void process_settle(process *p) {
  int i;
  for (i = 0; i < 2 && p->cut && p->reaped; i++)
    if (p->out[i].watch.fd >= 0) process_read(&p->out[i]);
  process_check_end(p);
}

/* False with errno when it has ended already. */
static bool process_signal(process *p, int number) {
  p->cut = true;
  p->cut_left = 256 << 10;
  errno = ESRCH;
  if (!p->reaped) return kill(p->pid, number) == 0;
  process_settle(p);
  return true;
}

static void process_deadline(timer *t) {
  (void)process_signal(OWNER(t, process, deadline), SIGKILL);
}

/* SIGCHLD: some children have ended. Those we do not know were orphans of our processes. */
static void processes_reap(void) {
  int status;
  pid_t pid;
  while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
    node *n = server.processes.next;
    while (n != &server.processes && (OWNER(n, process, in_all)->pid != pid || OWNER(n, process, in_all)->reaped))
      n = n->next;
    if (n == &server.processes) contexts_reaped(pid);
    if (n == &server.processes) continue;
    OWNER(n, process, in_all)->reaped = true;
    OWNER(n, process, in_all)->status = status;
    process_settle(OWNER(n, process, in_all));
  }
}

/* What a child needs to become the process: all prepared, for between fork and exec little is allowed. */
typedef struct launch {
  const account *who;
  const char *cwd;
  char **argv, **envp;
  gid_t groups[64];
  int group_count;
  int std[3];   /* the child's ends; for a terminal three times the same */
  int ours[3];  /* ours: stdin, stdout, stderr; -1 = none */
  int fail[2];  /* a pipe that carries the errno when the child does not get as far as exec */
  bool pty;
} launch;

static void launch_close(launch *l, bool ours) {
  int i, j;
  for (i = 0; i < 3; i++) {
    for (j = 0; j < i; j++)
      if (l->std[j] == l->std[i]) l->std[i] = -1;
    if (l->std[i] >= 0) (void)close(l->std[i]);
    if (ours && l->ours[i] >= 0) (void)close(l->ours[i]);
    l->std[i] = -1;
  }
}

/* The other side of fork. */
static void launch_child(const launch *l) {
  struct sigaction standard;
  sigset_t none;
  int i, number;
  memset(&standard, 0, sizeof standard);
  standard.sa_handler = SIG_DFL;
  for (i = 1; i < NSIG; i++) (void)sigaction(i, &standard, NULL); /* a server in the background has SIGINT ignored */
  (void)sigemptyset(&none);
  (void)sigprocmask(SIG_SETMASK, &none, NULL);
  (void)setrlimit(RLIMIT_NOFILE, &server.files);
  (void)setsid();
  if (l->pty) (void)ioctl(l->std[0], TIOCSCTTY, 0);
  for (i = 0; i < 3; i++) (void)dup2(l->std[i], i);
  if ((geteuid() == 0 && (setgroups((size_t)l->group_count, l->groups) != 0 || setgid(l->who->gid) != 0 ||
                          setuid(l->who->uid) != 0)) || chdir(l->cwd) != 0) {
    number = errno;
    i = (int)write(l->fail[1], &number, sizeof number);
    _exit(i < 0 ? 126 : 127);
  }
  (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* should we crash */
  environ = l->envp;
  (void)execvp(l->argv[0], l->argv);
  number = errno;
  (void)dprintf(2, "'%s': %s\n", l->argv[0], strerror(number));
  _exit(number == ENOENT ? 127 : 126);
}

/* A pipe for each of the three; `in` without one is /dev/null. */
static bool launch_open_pipes(launch *l, bool with_input) {
  int fds[2], i;
  for (i = 0; i < 3; i++) {
    if (i == 0 && !with_input) {
      l->std[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
      if (l->std[0] < 0) return false;
      continue;
    }
    if (pipe2(fds, O_CLOEXEC) != 0) return false;
    l->std[i] = fds[i > 0];
    l->ours[i] = fds[i == 0];
    if (!set_nonblocking(l->ours[i])) return false;
  }
  return true;
}

/* A terminal: we read and write its other end, through two descriptors since each is waited for on its own. */
static bool launch_open_pty(launch *l, const e2b__pty *pty) {
  struct winsize size;
  char name[64];
  int fd;
  memset(&size, 0, sizeof size);
  size.ws_col = (unsigned short)pty->size.cols;
  size.ws_row = (unsigned short)pty->size.rows;
  l->pty = true;
  l->ours[1] = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (l->ours[1] < 0 || grantpt(l->ours[1]) != 0 || unlockpt(l->ours[1]) != 0 ||
      ptsname_r(l->ours[1], name, sizeof name) != 0 || !set_nonblocking(l->ours[1]))
    return false;
  l->ours[0] = fcntl(l->ours[1], F_DUPFD_CLOEXEC, 3);
  fd = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (fd < 0 || l->ours[0] < 0) return false;
  l->std[0] = l->std[1] = l->std[2] = fd;
  return (geteuid() != 0 || fchown(fd, l->who->uid, (gid_t)-1) == 0) && ioctl(fd, TIOCSWINSZ, &size) == 0;
}

/* PATH and who one is, then the sandbox's variables, then those of the request; the last one wins. */
static bool launch_environment(launch *l, const sandbox *s, const e2b__process_config *config, e2b__arena *arena) {
  pairs env;
  const char *path = getenv("PATH");
  size_t i;
  bool ok;
  memset(&env, 0, sizeof env);
  pairs_set(&env, "PATH", path ? path : "/usr/local/bin:/usr/bin:/bin");
  pairs_set(&env, "HOME", l->who->home);
  pairs_set(&env, "USER", l->who->name);
  pairs_set(&env, "LOGNAME", l->who->name);
  for (i = 0; i < s->env.count; i++) pairs_set(&env, s->env.items[i].key, s->env.items[i].value);
  ok = pairs_set_all(&env, &config->envs, arena);
  l->envp = (char **)e2b__arena_alloc(arena, (env.count + 1) * sizeof *l->envp);
  for (i = 0; i < env.count && ok && l->envp; i++) {
    size_t size = strlen(env.items[i].key) + strlen(env.items[i].value) + 2;
    l->envp[i] = (char *)e2b__arena_alloc(arena, size);
    if (!l->envp[i]) ok = false;
    else (void)snprintf(l->envp[i], size, "%s=%s", env.items[i].key, env.items[i].value);
  }
  pairs_free(&env);
  return ok && l->envp;
}

static bool launch_arguments(launch *l, const e2b__process_config *config, e2b__arena *arena) {
  const e2b_str *args = (const e2b_str *)config->args.items;
  size_t i;
  l->argv = (char **)e2b__arena_alloc(arena, (config->args.count + 2) * sizeof *l->argv);
  if (!l->argv) return false;
  for (i = 0; i < config->args.count + 1; i++) {
    l->argv[i] = (char *)(uintptr_t)arena_text(arena, i ? args[i - 1] : config->cmd);
    if (!l->argv[i]) return false;
  }
  return true;
}

/* fork and exec. 0 or an errno; on success *pid is set and our ends are in l->ours. */
static int launch_run(launch *l, pid_t *pid) {
  int failure = 0;
  ssize_t n;
  l->group_count = (int)E2B__COUNT(l->groups);
  if (getgrouplist(l->who->name, l->who->gid, l->groups, &l->group_count) < 0) l->group_count = 1;
  if (pipe2(l->fail, O_CLOEXEC) != 0) return errno;
  *pid = fork();
  if (*pid == 0) launch_child(l);
  if (*pid < 0) failure = errno;
  (void)close(l->fail[1]);
  do n = read(l->fail[0], &failure, sizeof failure);
  while (n < 0 && errno == EINTR);
  (void)close(l->fail[0]);
  return failure;
}

/* Starts the process of a Start request, whose memory goes to the new record. NULL: failed, and answered. */
static process *process_start(rpc *r, const e2b__start_request *request, const char *cwd) {
  process *p;
  launch l;
  pid_t pid = 0;
  int i, failure = 0;
  bool ok;
  memset(&l, 0, sizeof l);
  for (i = 0; i < 3; i++) l.std[i] = l.ours[i] = -1;
  l.who = &r->who;
  l.cwd = cwd;
  if (!launch_arguments(&l, &request->process, &r->arena) ||
      !launch_environment(&l, r->x->sandbox, &request->process, &r->arena)) {
    rpc_fail(r, E2B_CONNECT_INVALID_ARGUMENT, "error starting process: too many arguments or variables, or one with a "
                                              "NUL byte in it");
    return NULL;
  }
  ok = request->has_pty ? launch_open_pty(&l, &request->pty)
                        : launch_open_pipes(&l, !request->has_stdin_open || request->stdin_open || server.kruise);
  failure = ok ? launch_run(&l, &pid) : errno;
  launch_close(&l, failure != 0);
  if (failure) {
    rpc_fail(r, E2B_CONNECT_INVALID_ARGUMENT, "error starting %s '%s': fork/exec in '%s': %s",
             request->has_pty ? "pty with command" : "process", l.argv[0], cwd, errno_text(failure));
    return NULL;
  }
  p = (process *)xalloc(sizeof *p);
  p->sandbox = r->x->sandbox;
  p->pid = pid;
  p->pty = l.pty;
  p->request = *request;
  p->arena = r->arena;
  p->body = r->x->body;
  e2b__arena_init(&r->arena, &server.mem, BODY_MAX);
  e2b__buf_init(&r->x->body, &server.mem, BODY_MAX);
  list_init(&p->inputs);
  list_init(&p->streams);
  watch_init(&p->in, l.ours[0], process_in_ready);
  for (i = 0; i < 2; i++) {
    p->out[i].process = p;
    p->out[i].kind = l.pty ? OUTPUT_PTY : i ? OUTPUT_STDERR : OUTPUT_STDOUT;
    watch_init(&p->out[i].watch, l.ours[i + 1], process_out_ready);
    (void)watch_want(&p->out[i].watch, EPOLLIN);
  }
  list_push(&p->sandbox->processes, &p->in_sandbox);
  list_push(&server.processes, &p->in_all);
  p->sandbox->used = true;
  process_log(p, "started");
  return p;
}

/* Sends a signal to every process that belongs to a sandbox: the sessions of those it started, and whoever else carries
 * its id in the environment, for daemons leave their session. True when there was one. */
static bool sandbox_signal(const sandbox *s, int number) {
  char mark[64], name[64];
  struct dirent *entry;
  node *n;
  DIR *proc;
  bool found = false;
  if (!s->used) return false;
  for (n = s->processes.next; n != &s->processes; n = n->next)
    if (!OWNER(n, process, in_sandbox)->reaped && kill(-OWNER(n, process, in_sandbox)->pid, number) == 0) found = true;
  proc = opendir("/proc");
  (void)snprintf(mark, sizeof mark, "E2B_SANDBOX_ID=%s", s->id);
  while (proc && (entry = readdir(proc)) != NULL) {
    ssize_t len = 0;
    int fd, pid = (int)strtol(entry->d_name, NULL, 10);
    if (pid <= 0 || pid == getpid()) continue;
    (void)snprintf(name, sizeof name, "/proc/%d/environ", pid);
    fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) len = read(fd, server.chunk, sizeof server.chunk);
    if (fd >= 0) (void)close(fd);
    if (len > 0 && memmem(server.chunk, (size_t)len, mark, strlen(mark) + 1) && kill(pid, number) == 0) found = true;
  }
  if (proc) (void)closedir(proc);
  return found;
}

/* ================================================================================================================== */
/* >>>> process service */
/* ================================================================================================================== */

/* The process a selector names. NULL: failed, and answered. `ended`: one whose end is retained will do. */
static process *process_select(rpc *r, const e2b__process_selector *selector, bool has_selector, bool ended) {
  node *n, *all = &r->x->sandbox->processes;
  process *found = NULL;
  if (!has_selector || (!selector->has_pid && !selector->has_tag)) {
    rpc_fail(r, E2B_CONNECT_UNIMPLEMENTED, "invalid input type *process.ProcessSelector");
    return NULL;
  }
  for (n = all->next; n != all; n = n->next) {
    process *p = OWNER(n, process, in_sandbox);
    bool fits = selector->has_pid ? (uint32_t)p->pid == selector->pid
                                  : p->request.has_tag && str_same(p->request.tag, selector->tag);
    if (fits && !p->ended) return p;
    if (fits && ended) found = p;
  }
  if (!found && selector->has_pid) rpc_fail(r, E2B_CONNECT_NOT_FOUND, "process with pid %u not found", selector->pid);
  else if (!found) rpc_fail(r, E2B_CONNECT_NOT_FOUND, "process with tag %.*s not found", (int)selector->tag.len,
                            selector->tag.ptr);
  return found;
}

/* The first event, and from now on the output. */
static void stream_attach(rpc *r, process *p) {
  e2b__event_response event;
  memset(&event, 0, sizeof event);
  event.has_event = event.event.has_start = true;
  event.event.start.pid = (uint32_t)p->pid;
  rpc_send(r, &e2b__msg_event_response, &event);
  if (p->ended) {
    stream_send_end(r, p);
    return;
  }
  r->process = p;
  list_push(&p->streams, &r->in_process);
  timer_set(&r->keepalive, now_ms() + r->keepalive_ms, stream_keepalive);
}

static void stream_drain(rpc *r) {
  if (r->process) process_resume(r->process);
}

static void stream_gone(rpc *r) {
  process *p = r->process;
  r->process = NULL;
  list_remove(&r->in_process);
  if (p) process_resume(p);
}

/* A new process takes over its pid and its tag from those that have ended. */
static void process_supersede(const process *new_one) {
  node *n, *next, *all = &new_one->sandbox->processes;
  for (n = all->next; n != all; n = next) {
    process *p = OWNER(n, process, in_sandbox);
    bool same_tag = p->request.has_tag && new_one->request.has_tag && str_same(p->request.tag, new_one->request.tag);
    next = n->next;
    if (p->ended && (p->pid == new_one->pid || same_tag)) process_free(p);
  }
}

static void run_start(rpc *r, const void *message) {
  const e2b__start_request *request = (const e2b__start_request *)message;
  char cwd[PATH_MAX], why[256];
  struct stat info;
  process *p;
  if (!path_resolve(&r->who, r->x->sandbox->workdir, request->process.cwd, cwd, why)) {
    rpc_fail(r, E2B_CONNECT_INVALID_ARGUMENT, "%s", why);
    return;
  }
  if (stat(cwd, &info) != 0 && errno == ENOENT) {
    rpc_fail(r, E2B_CONNECT_INVALID_ARGUMENT, "cwd '%s' does not exist", cwd);
    return;
  }
  p = process_start(r, request, cwd);
  if (!p) return;
  process_supersede(p);
  /* a little later than the stream's own deadline, which so ends first */
  if (r->timeout_ms > 0) timer_set(&p->deadline, r->deadline.due + 1, process_deadline);
  stream_attach(r, p);
}

static void run_connect(rpc *r, const void *message) {
  const e2b__selector_request *request = (const e2b__selector_request *)message;
  process *p = process_select(r, &request->process, request->has_process, true);
  if (p) stream_attach(r, p);
}

static void run_list(rpc *r, const void *message) {
  node *n, *all = &r->x->sandbox->processes;
  e2b__process_list list;
  E2B__UNUSED(message);
  memset(&list, 0, sizeof list);
  for (n = all->next; n != all; n = n->next) {
    const process *p = OWNER(n, process, in_sandbox);
    e2b__process_info *info;
    if (p->ended) continue;
    info = (e2b__process_info *)e2b__list_add(&list.processes, sizeof *info, &r->arena);
    if (!info) break;
    info->config = p->request.process;
    info->has_config = true;
    info->pid = (uint32_t)p->pid;
    info->tag = p->request.tag;
    info->has_tag = p->request.has_tag;
  }
  rpc_reply(r, &e2b__msg_process_list, &list);
}

/* A write to standard input or to the terminal, whichever the process has. */
static void process_input(rpc *r, process *p, const e2b__process_input *in, bool has_input) {
  if (!has_input || (!in->has_stdin_data && !in->has_pty)) {
    rpc_fail(r, E2B_CONNECT_UNIMPLEMENTED, "invalid input type <nil>");
  } else if (in->has_pty && !p->pty) {
    rpc_fail(r, E2B_CONNECT_INTERNAL, "error writing to tty: tty not assigned to process — input should be written "
                                      "to the stdin, not the tty");
  } else if (in->has_stdin_data && p->pty) {
    rpc_fail(r, E2B_CONNECT_INTERNAL, "error writing to stdin: tty assigned to process — input should be written "
                                      "to the pty, not the stdin");
  } else if (p->in.fd < 0) {
    rpc_fail(r, E2B_CONNECT_INTERNAL, "error writing to stdin: stdin not enabled or closed");
  } else {
    process_write(p, r, in->has_pty ? &in->pty : &in->stdin_data);
  }
}

static void run_send_input(rpc *r, const void *message) {
  const e2b__send_input_request *request = (const e2b__send_input_request *)message;
  process *p = process_select(r, &request->process, request->has_process, false);
  if (p) process_input(r, p, &request->input, request->has_input);
}

/* Each message selects a process or is for the one selected, found anew by its pid, for it may have ended. */
static void run_stream_input(rpc *r, const void *message) {
  const e2b__stream_input_request *request = (const e2b__stream_input_request *)message;
  e2b__process_selector selector;
  process *p;
  if (request->has_start) {
    p = process_select(r, &request->start.process, request->start.has_process, false);
    if (p) r->selected = p->pid;
  } else if (request->has_data) {
    memset(&selector, 0, sizeof selector);
    selector.pid = (uint32_t)r->selected;
    selector.has_pid = r->selected != 0;
    p = process_select(r, &selector, true, false);
    if (p) process_input(r, p, &request->data.input, request->data.has_input);
  } else if (!request->has_keepalive) {
    rpc_fail(r, E2B_CONNECT_UNIMPLEMENTED, "invalid event type <nil>");
  }
}

/* The client of a write has gone; the write goes on. */
static void input_gone(rpc *r) {
  if (r->input) r->input->rpc = NULL;
  r->input = NULL;
}

static void run_close_stdin(rpc *r, const void *message) {
  const e2b__selector_request *request = (const e2b__selector_request *)message;
  process *p = process_select(r, &request->process, request->has_process, false);
  if (!p) return;
  if (p->pty)
    rpc_fail(r, E2B_CONNECT_UNKNOWN, "error closing stdin: cannot close stdin for PTY process — send Ctrl+D (0x04) "
                                     "instead");
  else
    process_write(p, r, NULL);
}

static void run_send_signal(rpc *r, const void *message) {
  const e2b__send_signal_request *request = (const e2b__send_signal_request *)message;
  process *p = process_select(r, &request->process, request->has_process, false);
  if (!p) return;
  if (request->signal != E2B__SIGNAL_KILL && request->signal != E2B__SIGNAL_TERM)
    rpc_fail(r, E2B_CONNECT_UNIMPLEMENTED, "invalid signal: %d", (int)request->signal);
  else if (!process_signal(p, request->signal))
    rpc_fail(r, E2B_CONNECT_INTERNAL, "error sending signal: os: process already finished");
  else
    rpc_reply_empty(r);
}

static void run_update(rpc *r, const void *message) {
  const e2b__update_request *request = (const e2b__update_request *)message;
  process *p = process_select(r, &request->process, request->has_process, false);
  struct winsize size;
  if (!p) return;
  if (request->has_pty && !p->pty) {
    rpc_fail(r, E2B_CONNECT_INTERNAL, "error resizing tty: tty not assigned to process");
    return;
  }
  memset(&size, 0, sizeof size);
  size.ws_col = (unsigned short)request->pty.size.cols;
  size.ws_row = (unsigned short)request->pty.size.rows;
  if (request->has_pty && ioctl(p->in.fd, TIOCSWINSZ, &size) != 0)
    rpc_fail(r, E2B_CONNECT_INTERNAL, "error resizing tty: %s", errno_text(errno));
  else
    rpc_reply_empty(r);
}

/* ================================================================================================================== */
/* >>>> filesystem service */
/* ================================================================================================================== */

#define METADATA_PREFIX "user.e2b." /* of the extended attributes that hold a file's metadata */
#define METADATA_MAX 4096u

/* Go's file-mode text: "drwxr-xr-x", "Lrwxrwxrwx", "dtrwxrwxrwx", "Dcrw-rw-rw-". */
static void mode_text(mode_t mode, char out[16]) {
  static const char rights[] = "rwxrwxrwx";
  size_t n = 0;
  int i;
  if (S_ISDIR(mode)) out[n++] = 'd';
  if (S_ISLNK(mode)) out[n++] = 'L';
  if (S_ISBLK(mode) || S_ISCHR(mode)) out[n++] = 'D';
  if (S_ISFIFO(mode)) out[n++] = 'p';
  if (S_ISSOCK(mode)) out[n++] = 'S';
  if (mode & S_ISUID) out[n++] = 'u';
  if (mode & S_ISGID) out[n++] = 'g';
  if (S_ISCHR(mode)) out[n++] = 'c';
  if (mode & S_ISVTX) out[n++] = 't';
  if (n == 0) out[n++] = '-';
  for (i = 0; i < 9; i++) out[n++] = mode >> (8 - i) & 1 ? rights[i] : '-';
  out[n] = 0;
}

static int32_t file_type(mode_t mode) {
  return S_ISREG(mode) ? E2B__FILE_TYPE_FILE : S_ISDIR(mode) ? E2B__FILE_TYPE_DIRECTORY : 0;
}

/* Both remember the last answer: a directory is mostly one user's. */
static e2b_str owner_name(uid_t uid, e2b__arena *arena) {
  static char name[64];
  static uid_t last = (uid_t)-1;
  if (uid != last || !name[0]) {
    struct passwd *entry = getpwuid(uid);
    if (entry) (void)snprintf(name, sizeof name, "%s", entry->pw_name);
    else (void)snprintf(name, sizeof name, "%lu", (unsigned long)uid);
    last = uid;
  }
  return e2b__str(arena_text(arena, e2b__str(name)));
}

static e2b_str group_name(gid_t gid, e2b__arena *arena) {
  static char name[64];
  static gid_t last = (gid_t)-1;
  if (gid != last || !name[0]) {
    struct group *entry = getgrgid(gid);
    if (entry) (void)snprintf(name, sizeof name, "%s", entry->gr_name);
    else (void)snprintf(name, sizeof name, "%lu", (unsigned long)gid);
    last = gid;
  }
  return e2b__str(arena_text(arena, e2b__str(name)));
}

/* The file's metadata; names without the prefix. What cannot be read is left out. */
static void metadata_read(const char *path, e2b__arena *arena, e2b__list *out) {
  char names[4096], value[METADATA_MAX];
  ssize_t len = listxattr(path, names, sizeof names), at, size;
  const size_t prefix = strlen(METADATA_PREFIX);
  for (at = 0; at < len; at += (ssize_t)strlen(names + at) + 1) {
    e2b__pair *pair;
    if (strncmp(names + at, METADATA_PREFIX, prefix) != 0) continue;
    size = getxattr(path, names + at, value, sizeof value);
    pair = size < 0 ? NULL : (e2b__pair *)e2b__list_add(out, sizeof *pair, arena);
    if (!pair) continue;
    pair->key = e2b__str(arena_text(arena, e2b__str(names + at + prefix)));
    pair->value = e2b__str(arena_text(arena, e2b__str_n(value, (size_t)size)));
  }
}

/* 0 or an errno. The texts are in the arena; when that is full, arena->err says so. */
static int entry_read(const char *path, e2b__arena *arena, e2b__entry_info *out) {
  struct stat info, target;
  char mode[16], resolved[PATH_MAX];
  memset(out, 0, sizeof *out);
  if (lstat(path, &info) != 0) return errno;
  target = info;
  if (S_ISLNK(info.st_mode)) {
    out->has_symlink_target = true;
    if (!realpath(path, resolved)) (void)snprintf(resolved, sizeof resolved, "%s", path);
    out->symlink_target = e2b__str(arena_text(arena, e2b__str(resolved)));
    if (stat(resolved, &target) != 0 || S_ISLNK(target.st_mode)) memset(&target, 0, sizeof target);
  }
  mode_text(info.st_mode, mode);
  out->path = e2b__str(arena_text(arena, e2b__str(path)));
  out->name = e2b__str(out->path.ptr ? path_name(out->path.ptr) : NULL);
  out->type = file_type(target.st_mode);
  out->size = (int64_t)info.st_size;
  out->mode = (uint32_t)target.st_mode & 0777u;
  out->permissions = e2b__str(arena_text(arena, e2b__str(mode)));
  out->owner = owner_name(info.st_uid, arena);
  out->group = group_name(info.st_gid, arena);
  out->modified_time.seconds = info.st_mtim.tv_sec;
  out->modified_time.nanos = (int32_t)info.st_mtim.tv_nsec;
  out->has_modified_time = info.st_mtim.tv_sec || info.st_mtim.tv_nsec;
  if (!server.kruise) metadata_read(path, arena, &out->metadata);
  else if (S_ISLNK(info.st_mode) && !target.st_mode) out->has_symlink_target = false;
  return 0;
}

/* Answers with the entry at `path`. */
static void reply_entry(rpc *r, const char *path) {
  e2b__entry_response response;
  int failure;
  memset(&response, 0, sizeof response);
  response.has_entry = true;
  failure = entry_read(path, &r->arena, &response.entry);
  if (failure)
    rpc_fail(r, failure == ENOENT ? E2B_CONNECT_NOT_FOUND : E2B_CONNECT_INTERNAL, "%s: lstat %s: %s",
             failure == ENOENT ? "file not found" : "error getting file info", path, errno_text(failure));
  else
    rpc_reply(r, &e2b__msg_entry_response, &response);
}

/* False: failed, and answered. */
static bool rpc_path(rpc *r, e2b_str text, char path[PATH_MAX]) {
  char why[256];
  if (path_resolve(&r->who, r->x->sandbox->workdir, text, path, why)) return true;
  rpc_fail(r, E2B_CONNECT_INVALID_ARGUMENT, "%s", why);
  return false;
}

static void run_stat(rpc *r, const void *message) {
  char path[PATH_MAX];
  if (rpc_path(r, ((const e2b__path_request *)message)->path, path)) reply_entry(r, path);
}

static void run_make_dir(rpc *r, const void *message) {
  char path[PATH_MAX], why[256];
  struct stat info;
  if (!rpc_path(r, ((const e2b__path_request *)message)->path, path)) return;
  if (stat(path, &info) == 0) {
    if (S_ISDIR(info.st_mode)) rpc_fail(r, E2B_CONNECT_ALREADY_EXISTS, "directory already exists: %s", path);
    else rpc_fail(r, E2B_CONNECT_INVALID_ARGUMENT, "path already exists but it is not a directory: %s", path);
  } else if (errno != ENOENT) {
    rpc_fail(r, E2B_CONNECT_INTERNAL, "error getting file info: stat %s: %s", path, errno_text(errno));
  } else if (!make_dirs(path, &r->who, why)) {
    rpc_fail(r, E2B_CONNECT_INTERNAL, "%s", why);
  } else if (server.kruise) {
    e2b__entry_response response;
    memset(&response, 0, sizeof response);
    response.has_entry = true;
    response.entry.name = e2b__str(path_name(path));
    response.entry.path = e2b__str(path);
    response.entry.type = file_type(S_IFDIR);
    rpc_reply(r, &e2b__msg_entry_response, &response);
  } else {
    reply_entry(r, path);
  }
}

static void run_move(rpc *r, const void *message) {
  const e2b__move_request *request = (const e2b__move_request *)message;
  char from[PATH_MAX], to[PATH_MAX], parent[PATH_MAX], why[256];
  if (!rpc_path(r, request->source, from) || !rpc_path(r, request->destination, to)) return;
  path_parent(to, parent);
  if (!make_dirs(parent, &r->who, why)) {
    rpc_fail(r, E2B_CONNECT_INTERNAL, "%s", why);
  } else if (rename(from, to) != 0) {
    rpc_fail(r, errno == ENOENT ? E2B_CONNECT_NOT_FOUND : E2B_CONNECT_INTERNAL, "%s: rename %s %s: %s",
             errno == ENOENT ? "source file not found" : "error renaming", from, to, errno_text(errno));
  } else {
    reply_entry(r, to);
  }
}

/* What nobody means to remove on a machine that is his own: the root, and all above the sandboxes. */
static bool is_precious(const char *path) {
  char clean[PATH_MAX];
  size_t len;
  (void)snprintf(clean, sizeof clean, "%s", path);
  path_clean(clean);
  len = strlen(clean);
  return len == 1 || (strncmp(server.root, clean, len) == 0 && (server.root[len] == '/' || !server.root[len]));
}

static void run_remove(rpc *r, const void *message) {
  char path[PATH_MAX];
  if (!rpc_path(r, ((const e2b__path_request *)message)->path, path)) return;
  if (is_precious(path))
    rpc_fail(r, E2B_CONNECT_INTERNAL, "error removing file or directory: %s: this is your own machine", path);
  else if (!remove_tree(path))
    rpc_fail(r, E2B_CONNECT_INTERNAL, "error removing file or directory: %s: %s", path, errno_text(errno));
  else
    rpc_reply_empty(r);
}

static int by_name(const struct dirent **a, const struct dirent **b) {
  return strcmp((*a)->d_name, (*b)->d_name);
}

static int not_dots(const struct dirent *entry) {
  return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

/* A directory being listed: where it is, and what it is called in the answer. Both grow and shrink on the way. */
typedef struct dir_walk {
  char real[PATH_MAX], shown[PATH_MAX];
  e2b__arena *arena;
  e2b__list *entries;
} dir_walk;

static bool path_append(char path[PATH_MAX], const char *name) {
  size_t len = strcmp(path, "/") ? strlen(path) : 0;
  int n = snprintf(path + len, PATH_MAX - len, "/%s", name);
  return n > 0 && (size_t)n < PATH_MAX - len;
}

/* In lexical order, each directory before its content; links are not followed. 0 or an errno; what disappears meanwhile
 * is left out. */
static int list_dir(dir_walk *w, uint32_t depth) {
  size_t real_len = strlen(w->real), shown_len = strlen(w->shown);
  struct dirent **names = NULL;
  e2b__entry_info entry, *slot;
  int i, failure = 0, count = scandir(w->real, &names, not_dots, by_name);
  if (count < 0) return errno == ENOENT ? 0 : errno;
  for (i = 0; i < count; i++) {
    bool fits = path_append(w->real, names[i]->d_name) && path_append(w->shown, names[i]->d_name);
    free(names[i]);
    if (!failure && fits && entry_read(w->real, w->arena, &entry) == 0) {
      entry.path = e2b__str(arena_text(w->arena, e2b__str(w->shown)));
      entry.name = e2b__str(entry.path.ptr ? path_name(entry.path.ptr) : NULL);
      slot = (e2b__entry_info *)e2b__list_add(w->entries, sizeof *slot, w->arena);
      if (slot) *slot = entry;
      else failure = EFBIG;
      if (!failure && depth > 1 && entry.type == E2B__FILE_TYPE_DIRECTORY && !entry.has_symlink_target)
        failure = list_dir(w, depth - 1);
    }
    w->real[real_len] = w->shown[shown_len] = 0;
  }
  free(names);
  return failure;
}

static void run_list_dir(rpc *r, const void *message) {
  const e2b__list_dir_request *request = (const e2b__list_dir_request *)message;
  e2b__list_dir_response response;
  e2b__arena arena;
  struct stat info;
  dir_walk w;
  int failure;
  if (!rpc_path(r, request->path, w.shown)) return;
  if (!realpath(w.shown, w.real)) {
    if (errno == ENOENT)
      rpc_fail(r, E2B_CONNECT_NOT_FOUND, "path not found: lstat %s: %s", w.shown, errno_text(errno));
    else if (errno == ELOOP)
      rpc_fail(r, E2B_CONNECT_FAILED_PRECONDITION, "cyclic symlink or chain >255 links at \"%s\"", w.shown);
    else
      rpc_fail(r, E2B_CONNECT_INTERNAL, "error resolving symlink: lstat %s: %s", w.shown, errno_text(errno));
    return;
  }
  if (stat(w.real, &info) != 0 || !S_ISDIR(info.st_mode)) {
    rpc_fail(r, E2B_CONNECT_INVALID_ARGUMENT, "path is not a directory: %s", w.real);
    return;
  }
  path_clean(w.shown);
  memset(&response, 0, sizeof response);
  e2b__arena_init(&arena, &server.mem, OUTPUT_MAX);
  w.arena = &arena;
  w.entries = &response.entries;
  failure = list_dir(&w, request->depth ? request->depth : 1);
  if (failure || arena.err)
    rpc_fail(r, E2B_CONNECT_INTERNAL, "error reading directory %s: %s", w.real, errno_text(failure ? failure : EFBIG));
  else
    rpc_reply(r, &e2b__msg_list_dir_response, &response);
  e2b__arena_free(&arena);
}

/* ---- what happens in directories: inotify ---- */

/* A directory of a watcher: the inotify descriptor, and what its events are called. */
typedef struct watched_dir {
  int number;
  char *path; /* absolute; `rel` of it is what clients see */
} watched_dir;

/* What one WatchDir, or one CreateWatcher, looks at. */
struct watcher {
  node in_sandbox;
  watch watch;
  rpc *rpc;         /* the stream its events go to; NULL = they are kept until somebody asks */
  char id[24];
  char *root;
  bool recursive, include_entry;
  watched_dir *dirs;
  size_t count, cap;
  uint32_t cookie;  /* of the last directory that was moved away */
  e2b__arena arena; /* of what is kept */
  e2b__list events; /* e2b__filesystem_event */
  char failure[80]; /* "" = none */
};

static void watcher_free(watcher *w) {
  list_remove(&w->in_sandbox);
  watch_close(&w->watch);
  while (w->count) free(w->dirs[--w->count].path);
  free(w->dirs);
  free(w->root);
  e2b__arena_free(&w->arena);
  free(w);
}

/* The watch is of no use any more: the stream ends, or whoever asks next is told. */
static void watcher_fail(watcher *w, const char *why) {
  (void)snprintf(w->failure, sizeof w->failure, "watcher error: %s", why);
  (void)watch_want(&w->watch, 0);
  if (w->rpc) rpc_fail(w->rpc, E2B_CONNECT_INTERNAL, "%s", w->failure);
}

static void watch_keepalive(timer *t);

/* False when the watcher has ended with this, and may be gone. */
static bool watcher_emit(watcher *w, const char *path, int32_t type) {
  size_t root = strlen(w->root);
  bool wants_entry = w->include_entry && type != E2B__EVENT_TYPE_REMOVE && type != E2B__EVENT_TYPE_RENAME;
  e2b__filesystem_event event, *kept;
  e2b__watch_dir_response response;
  e2b__arena arena;
  rpc *r = w->rpc;
  memset(&event, 0, sizeof event);
  e2b__arena_init(&arena, &server.mem, BODY_MAX);
  event.type = type;
  event.name = e2b__str(!path[root] ? "." : path + root + (strcmp(w->root, "/") != 0));
  if (wants_entry) event.has_entry = entry_read(path, r ? &arena : &w->arena, &event.entry) == 0;
  if (r) {
    memset(&response, 0, sizeof response);
    response.has_filesystem = true;
    response.filesystem = event;
    rpc_send(r, &e2b__msg_watch_dir_response, &response);
    timer_set(&r->keepalive, now_ms() + r->keepalive_ms, watch_keepalive);
  } else {
    event.name = e2b__str(arena_text(&w->arena, event.name));
    kept = (e2b__filesystem_event *)e2b__list_add(&w->events, sizeof *kept, &w->arena);
    if (kept) *kept = event;
    else watcher_fail(w, "too many events");
  }
  e2b__arena_free(&arena);
  return r ? !r->ended : !w->failure[0];
}

static void watch_keepalive(timer *t) {
  rpc *r = OWNER(t, rpc, keepalive);
  e2b__watch_dir_response response;
  memset(&response, 0, sizeof response);
  response.has_keepalive = true;
  rpc_send(r, &e2b__msg_watch_dir_response, &response);
  timer_set(&r->keepalive, now_ms() + r->keepalive_ms, watch_keepalive);
}

/* Adds a directory and, of a recursive watcher, those in it. `tell`: what lies in it is news. 0 or an errno; *open is false
 * when the watcher has ended meanwhile. */
static int watcher_add(watcher *w, const char *path, bool tell, bool *open) {
  const uint32_t mask = IN_CREATE | IN_MODIFY | IN_DELETE | IN_DELETE_SELF | IN_MOVED_TO | IN_MOVED_FROM | IN_MOVE_SELF | IN_ATTRIB;
  int number = inotify_add_watch(w->watch.fd, path, mask), i, count;
  struct dirent **names = NULL;
  char child[PATH_MAX];
  struct stat info;
  size_t at;
  if (number < 0) return errno;
  for (at = 0; at < w->count && w->dirs[at].number != number; at++) {}
  if (at == w->cap) {
    w->cap = w->cap * 2 + 4;
    w->dirs = (watched_dir *)realloc(w->dirs, w->cap * sizeof *w->dirs);
    if (!w->dirs) die("out of memory");
  }
  if (at < w->count) free(w->dirs[at].path);
  else w->count++;
  w->dirs[at].number = number;
  w->dirs[at].path = xdup(path);
  if (!w->recursive) return 0;
  count = scandir(path, &names, not_dots, by_name);
  for (i = 0; i < count; i++) {
    (void)snprintf(child, sizeof child, "%s", path);
    if (*open && path_append(child, names[i]->d_name) && lstat(child, &info) == 0) {
      if (tell) *open = watcher_emit(w, child, E2B__EVENT_TYPE_CREATE);
      if (*open && S_ISDIR(info.st_mode)) (void)watcher_add(w, child, tell, open);
    }
    free(names[i]);
  }
  free(names);
  return 0;
}

/* Forgets a directory that moved away, and all below it. */
static void watcher_forget(watcher *w, const char *path) {
  size_t i = 0, len = strlen(path);
  while (i < w->count) {
    char *other = w->dirs[i].path;
    if (strncmp(other, path, len) != 0 || (other[len] && other[len] != '/')) {
      i++;
      continue;
    }
    (void)inotify_rm_watch(w->watch.fd, w->dirs[i].number);
    free(other);
    w->dirs[i] = w->dirs[--w->count];
  }
}

/* False when the watcher has ended. */
static bool watcher_event(watcher *w, const struct inotify_event *e) {
  static const struct { uint32_t bits; int32_t type; } kinds[] = {
    { IN_CREATE | IN_MOVED_TO, E2B__EVENT_TYPE_CREATE }, { IN_MOVED_FROM | IN_MOVE_SELF, E2B__EVENT_TYPE_RENAME },
    { IN_ATTRIB, E2B__EVENT_TYPE_CHMOD }, { IN_MODIFY, E2B__EVENT_TYPE_WRITE },
    { IN_DELETE | IN_DELETE_SELF, E2B__EVENT_TYPE_REMOVE } };
  char path[PATH_MAX];
  bool open = true, self, dir = (e->mask & IN_ISDIR) != 0;
  size_t i, at;
  if (e->mask & IN_Q_OVERFLOW) {
    watcher_fail(w, "fsnotify: queue or buffer overflow");
    return false;
  }
  for (at = 0; at < w->count && w->dirs[at].number != e->wd; at++) {}
  if (at == w->count) return true;
  (void)snprintf(path, sizeof path, "%s", w->dirs[at].path);
  self = strcmp(path, w->root) == 0;
  if (e->mask & (IN_IGNORED | IN_DELETE_SELF)) {
    free(w->dirs[at].path);
    w->dirs[at] = w->dirs[--w->count];
  }
  if (e->mask & IN_IGNORED || (e->mask & (IN_DELETE_SELF | IN_MOVE_SELF) && !self)) return true; /* the parent tells */
  if (e->mask & IN_MOVE_SELF) watcher_forget(w, path);
  if (e->len && !path_append(path, e->name)) return true;
  for (i = 0; open && i < E2B__COUNT(kinds); i++)
    if (e->mask & kinds[i].bits) open = watcher_emit(w, path, kinds[i].type);
  if (!open || !dir || !w->recursive) return open;
  if (e->mask & IN_MOVED_FROM) {
    watcher_forget(w, path);
    w->cookie = e->cookie;
  }
  if (e->mask & (IN_CREATE | IN_MOVED_TO)) (void)watcher_add(w, path, !e->cookie || e->cookie != w->cookie, &open);
  return open;
}

static void watcher_read(watcher *w) {
  static union { struct inotify_event first; char bytes[65536]; } chunk;
  ssize_t n, at;
  while (!w->rpc || exchange_has_room(w->rpc->x)) {
    n = read(w->watch.fd, chunk.bytes, sizeof chunk.bytes);
    if (n <= 0) {
      (void)watch_want(&w->watch, EPOLLIN);
      return;
    }
    for (at = 0; at < n; ) {
      const struct inotify_event *e = (const struct inotify_event *)(const void *)(chunk.bytes + at);
      if (!watcher_event(w, e)) return;
      at += (ssize_t)(sizeof *e + e->len);
    }
  }
  (void)watch_want(&w->watch, 0); /* until there is room */
}

static void watcher_ready(watch *ready, uint32_t events) {
  E2B__UNUSED(events);
  watcher_read(OWNER(ready, watcher, watch));
}

/* NFS, SMB and FUSE do not report what others do to them. */
static bool is_network_mount(const char *path) {
  static const unsigned long kinds[] = { 0x6969, 0xff534d42, 0x517b, 0xfe534d42, 0x65735546 };
  struct statfs info;
  size_t i;
  if (statfs(path, &info) != 0) return false;
  for (i = 0; i < E2B__COUNT(kinds); i++)
    if (((unsigned long)info.f_type & 0xffffffffu) == kinds[i]) return true;
  return false;
}

/* The watcher a request describes. NULL: failed, and answered. */
static watcher *watcher_new(rpc *r, const e2b__watch_request *request) {
  char path[PATH_MAX];
  struct stat info;
  bool open = true;
  watcher *w;
  int failure;
  if (!rpc_path(r, request->path, path)) return NULL;
  if (stat(path, &info) != 0) {
    rpc_fail(r, errno == ENOENT ? E2B_CONNECT_NOT_FOUND : E2B_CONNECT_INTERNAL, "path %s not found: stat %s: %s",
             path, path, errno_text(errno));
    return NULL;
  }
  if (!S_ISDIR(info.st_mode) || (!request->allow_network_mounts && is_network_mount(path))) {
    if (!S_ISDIR(info.st_mode)) rpc_fail(r, E2B_CONNECT_INVALID_ARGUMENT, "path %s not a directory", path);
    else rpc_fail(r, E2B_CONNECT_INVALID_ARGUMENT, "cannot watch path on network filesystem: %s", path);
    return NULL;
  }
  path_clean(path);
  w = (watcher *)xalloc(sizeof *w);
  list_push(&r->x->sandbox->watchers, &w->in_sandbox);
  watch_init(&w->watch, inotify_init1(IN_NONBLOCK | IN_CLOEXEC), watcher_ready);
  w->root = xdup(path);
  w->recursive = request->recursive;
  w->include_entry = request->include_entry;
  e2b__arena_init(&w->arena, &server.mem, OUTPUT_MAX);
  failure = w->watch.fd < 0 ? errno : watcher_add(w, path, false, &open);
  if (!failure && watch_want(&w->watch, EPOLLIN)) return w;
  rpc_fail(r, E2B_CONNECT_INTERNAL, "error adding path %s to watcher: %s", path, errno_text(failure));
  watcher_free(w);
  return NULL;
}

static void run_watch_dir(rpc *r, const void *message) {
  e2b__watch_dir_response response;
  watcher *w = watcher_new(r, (const e2b__watch_request *)message);
  if (!w) return;
  w->rpc = r;
  r->watcher = w;
  memset(&response, 0, sizeof response);
  response.has_start = true;
  rpc_send(r, &e2b__msg_watch_dir_response, &response);
  timer_set(&r->keepalive, now_ms() + r->keepalive_ms, watch_keepalive);
}

static void watch_dir_drain(rpc *r) {
  if (r->watcher && !r->watcher->watch.events) watcher_read(r->watcher);
}

static void watch_dir_gone(rpc *r) {
  if (r->watcher) watcher_free(r->watcher);
  r->watcher = NULL;
}

static void run_create_watcher(rpc *r, const void *message) {
  watcher *w = watcher_new(r, (const e2b__watch_request *)message);
  e2b__watcher_id answer;
  if (!w) return;
  w->id[0] = 'w';
  random_name(w->id + 1, 20);
  answer.watcher_id = e2b__str(w->id);
  rpc_reply(r, &e2b__msg_watcher_id, &answer);
}

/* NULL: failed, and answered. */
static watcher *watcher_find(rpc *r, e2b_str id) {
  node *n, *all = &r->x->sandbox->watchers;
  for (n = all->next; n != all; n = n->next) {
    watcher *w = OWNER(n, watcher, in_sandbox);
    if (w->id[0] && e2b__str_eq(id, w->id)) return w;
  }
  rpc_fail(r, E2B_CONNECT_NOT_FOUND, "watcher with id %.*s not found", (int)id.len, id.ptr);
  return NULL;
}

static void run_get_watcher_events(rpc *r, const void *message) {
  watcher *w = watcher_find(r, ((const e2b__watcher_id *)message)->watcher_id);
  e2b__watcher_events answer;
  if (!w) return;
  if (!w->failure[0]) watcher_read(w); /* what the loop has not come to yet */
  if (w->failure[0]) {
    rpc_fail(r, E2B_CONNECT_INTERNAL, "%s", w->failure);
    return;
  }
  answer.events = w->events;
  rpc_reply(r, &e2b__msg_watcher_events, &answer);
  memset(&w->events, 0, sizeof w->events);
  e2b__arena_free(&w->arena);
}

static void run_remove_watcher(rpc *r, const void *message) {
  watcher *w = watcher_find(r, ((const e2b__watcher_id *)message)->watcher_id);
  if (!w) return;
  watcher_free(w);
  rpc_reply_empty(r);
}

static const rpc_method rpc_methods[] = {
  { "/process.Process/Start", RPC_SERVER_STREAM, &e2b__msg_start_request, run_start, stream_drain, stream_gone },
  { "/process.Process/Connect", RPC_SERVER_STREAM, &e2b__msg_selector_request, run_connect, stream_drain, stream_gone },
  { "/process.Process/List", RPC_UNARY, &e2b__msg_empty, run_list, NULL, NULL },
  { "/process.Process/SendInput", RPC_UNARY, &e2b__msg_send_input_request, run_send_input, NULL, input_gone },
  { "/process.Process/StreamInput", RPC_CLIENT_STREAM, &e2b__msg_stream_input_request, run_stream_input, NULL,
    input_gone },
  { "/process.Process/CloseStdin", RPC_UNARY, &e2b__msg_selector_request, run_close_stdin, NULL, input_gone },
  { "/process.Process/SendSignal", RPC_UNARY, &e2b__msg_send_signal_request, run_send_signal, NULL, NULL },
  { "/process.Process/Update", RPC_UNARY, &e2b__msg_update_request, run_update, NULL, NULL },
  { "/filesystem.Filesystem/Stat", RPC_UNARY, &e2b__msg_path_request, run_stat, NULL, NULL },
  { "/filesystem.Filesystem/ListDir", RPC_UNARY, &e2b__msg_list_dir_request, run_list_dir, NULL, NULL },
  { "/filesystem.Filesystem/MakeDir", RPC_UNARY, &e2b__msg_path_request, run_make_dir, NULL, NULL },
  { "/filesystem.Filesystem/Move", RPC_UNARY, &e2b__msg_move_request, run_move, NULL, NULL },
  { "/filesystem.Filesystem/Remove", RPC_UNARY, &e2b__msg_path_request, run_remove, NULL, NULL },
  { "/filesystem.Filesystem/WatchDir", RPC_SERVER_STREAM, &e2b__msg_watch_request, run_watch_dir, watch_dir_drain,
    watch_dir_gone },
  { "/filesystem.Filesystem/CreateWatcher", RPC_UNARY, &e2b__msg_watch_request, run_create_watcher, NULL, NULL },
  { "/filesystem.Filesystem/GetWatcherEvents", RPC_UNARY, &e2b__msg_watcher_id, run_get_watcher_events, NULL, NULL },
  { "/filesystem.Filesystem/RemoveWatcher", RPC_UNARY, &e2b__msg_watcher_id, run_remove_watcher, NULL, NULL },
};

static const rpc_method *rpc_find(const char *path) {
  size_t i;
  if (server.kruise && strcmp(path, "/process.Process/CloseStdin") == 0) return NULL;
  for (i = 0; i < E2B__COUNT(rpc_methods); i++)
    if (strcmp(rpc_methods[i].path, path) == 0) return &rpc_methods[i];
  return NULL;
}

/* ================================================================================================================== */
/* >>>> file transfer */
/* ================================================================================================================== */

/* v1_ + base64 of SHA-256 over "path:operation:user:token[:expiration]" */
static void file_signature(const char *path, const char *operation, const char *name, const char *token,
                           const char *expires, e2b__buf *out) {
  e2b__buf text;
  unsigned char hash[32];
  e2b__buf_init(&text, &server.mem, HEAD_MAX * 4);
  buf_printf(&text, "%s:%s:%s:%s%s%s", path, operation, name, token, expires ? ":" : "", expires ? expires : "");
  (void)e2b__sha256(text.data, text.len, hash);
  e2b__buf_text(out, "v1_");
  e2b__base64_encode(out, hash, sizeof hash, false);
  e2b__buf_free(&text);
}

/* The access token in the header, or else a signature in the query. False: 401 or 400 was answered. */
static bool file_authorized(exchange *x, const char *operation) {
  const char *given = header(x, "x-access-token"), *token = x->sandbox->token, *failure = NULL;
  e2b__buf path, name, expires, signature, expected;
  e2b__buf *all[5];
  bool has_expires, bad_expires = false;
  int64_t expiration = 0;
  size_t i;
  all[0] = &path, all[1] = &name, all[2] = &expires, all[3] = &signature, all[4] = &expected;
  for (i = 0; i < E2B__COUNT(all); i++) {
    e2b__buf_init(all[i], &server.mem, HEAD_MAX);
    (void)e2b__buf_cstr(all[i]);
  }
  has_expires = query_get(x, "signature_expiration", &expires);
  if (has_expires && !parse_i64((char *)expires.data, &expiration)) {
    bad_expires = true;
  } else if (token && e2b__given(given)) {
    if (strcmp(given, token) != 0) failure = "access token present in header but does not match";
  } else if (token && !query_get(x, "signature", &signature)) {
    failure = "missing signature query parameter";
  } else if (token) {
    (void)query_get(x, "path", &path);
    (void)query_get(x, "username", &name);
    file_signature((char *)path.data, operation, (char *)name.data, token, has_expires ? (char *)expires.data : NULL,
                   &expected);
    if (!e2b__buf_cstr(&expected) || strcmp((char *)expected.data, (char *)signature.data) != 0)
      failure = "invalid signature";
    else if (has_expires && expiration < wall_clock().seconds)
      failure = "signature is already expired";
  }
  if (bad_expires) reply_text(x, 400, "Invalid format for parameter signature_expiration\n");
  else if (failure) reply_error(x, 401, "%s", failure);
  for (i = 0; i < E2B__COUNT(all); i++) e2b__buf_free(all[i]);
  return !bad_expires && !failure;
}

/* The user of the query's `username`, or the default one. False: 401 was answered. */
static bool file_user(exchange *x, account *who) {
  e2b__buf name;
  bool given, found;
  e2b__buf_init(&name, &server.mem, HEAD_MAX);
  given = query_get(x, "username", &name);
  if (!given && server.kruise) {
    e2b__buf_free(&name);
    reply_text(x, 400, "Query argument username is required, but not found\n");
    return false;
  }
  found = sandbox_user(x->sandbox, given ? (char *)name.data : NULL, who);
  if (!found)
    reply_error(x, 401, "error looking up user '%s': user: unknown user %s", given ? (char *)name.data : "default",
                given ? (char *)name.data : "default");
  e2b__buf_free(&name);
  return found;
}

static const char *content_type(const char *path, int fd) {
  static const char *const types[][2] = { { ".css", "text/css; charset=utf-8" }, { ".gif", "image/gif" },
    { ".htm", "text/html; charset=utf-8" }, { ".html", "text/html; charset=utf-8" }, { ".jpeg", "image/jpeg" },
    { ".jpg", "image/jpeg" }, { ".js", "text/javascript; charset=utf-8" }, { ".json", "application/json" },
    { ".mjs", "text/javascript; charset=utf-8" }, { ".pdf", "application/pdf" }, { ".png", "image/png" },
    { ".svg", "image/svg+xml" }, { ".txt", "text/plain; charset=utf-8" }, { ".wasm", "application/wasm" },
    { ".webp", "image/webp" }, { ".xml", "text/xml; charset=utf-8" } };
  const char *dot = strrchr(path_name(path), '.');
  ssize_t i, len;
  size_t t;
  for (t = 0; dot && t < E2B__COUNT(types); t++)
    if (e2b__str_eq_nocase(e2b__str(dot), types[t][0])) return types[t][1];
  len = pread(fd, server.chunk, 512, 0);
  for (i = 0; i < len; i++) {
    uint8_t c = (uint8_t)server.chunk[i];
    if (c < 9 || c == 11 || (c > 13 && c < 27) || (c > 27 && c < 32)) return "application/octet-stream";
  }
  return "text/plain; charset=utf-8";
}

/* inline; filename=..., quoted or encoded (RFC 8187) as need be */
static void reply_disposition(exchange *x, const char *name) {
  bool token = e2b__header_name_ok(e2b__str(name)), ascii = e2b__header_value_ok(e2b__str(name));
  size_t i;
  e2b__buf_text(&x->extra, ascii ? "Content-Disposition: inline; filename=" :
                "Content-Disposition: inline; filename*=utf-8''");
  if (token) {
    e2b__buf_text(&x->extra, name);
  } else if (!ascii) {
    e2b__url_escape(&x->extra, e2b__str(name));
  } else {
    e2b__buf_byte(&x->extra, '"');
    for (i = 0; name[i]; i++) {
      if (name[i] == '"' || name[i] == '\\') e2b__buf_byte(&x->extra, '\\');
      e2b__buf_byte(&x->extra, (uint8_t)name[i]);
    }
    e2b__buf_byte(&x->extra, '"');
  }
  e2b__buf_text(&x->extra, "\r\n");
}

/* One range, "bytes=a-b", "bytes=a-" or "bytes=-n"; anything else is no range. 1 = use it, 0 = all, -1 = outside. */
static int parse_range(const char *text, int64_t size, int64_t *from, int64_t *len) {
  char first[32], *dash;
  int64_t a = 0, b = size - 1;
  if (!text || strncmp(text, "bytes=", 6) != 0 || strlen(text + 6) >= sizeof first) return 0;
  (void)snprintf(first, sizeof first, "%s", text + 6);
  dash = strchr(first, '-');
  if (!dash) return 0;
  *dash = 0;
  if (first[0] && (!parse_i64(first, &a) || (dash[1] && !parse_i64(dash + 1, &b)))) return 0;
  if (!first[0]) {
    if (!parse_i64(dash + 1, &b)) return 0;
    a = b > size ? 0 : size - b;
    b = size - 1;
  }
  if (b > size - 1) b = size - 1;
  if (a > b) return -1;
  *from = a;
  *len = b - a + 1;
  return 1;
}

/* Opens a file to be read and tells about it. -1: failed, and answered. */
static int download_open(exchange *x, const char *path, struct stat *info) {
  int fd = -1;
  if (stat(path, info) != 0) {
    if (errno == ENOENT) reply_error(x, 404, "path '%s' does not exist", path);
    else reply_error(x, 500, "error checking if path exists '%s': stat %s: %s", path, path, errno_text(errno));
  } else if (S_ISDIR(info->st_mode)) {
    reply_error(x, 400, "path '%s' is a directory", path);
  } else {
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) reply_error(x, 500, "error opening file '%s': open %s: %s", path, path, errno_text(errno));
  }
  return fd;
}

static void download(exchange *x, const char *path) {
  struct stat info;
  int64_t from = 0, size, len;
  char date[40];
  int range, fd = download_open(x, path, &info);
  if (fd < 0) return;
  size = len = S_ISREG(info.st_mode) ? (int64_t)info.st_size : 0;
  range = parse_range(header(x, "range"), size, &from, &len);
  if (!server.kruise) {
    reply_header(x, "Vary: Accept-Encoding");
    reply_disposition(x, path_name(path));
  }
  if (range < 0) {
    (void)close(fd);
    reply_header(x, "Content-Range: bytes */%lld", (long long)size);
    reply_text(x, 416, "invalid range: failed to overlap\n");
    return;
  }
  http_date(server.kruise ? wall_clock().seconds : (int64_t)info.st_mtim.tv_sec, date);
  reply_header(x, "Accept-Ranges: bytes");
  reply_header(x, "Last-Modified: %s", date);
  if (range) reply_header(x, "Content-Range: bytes %lld-%lld/%lld", (long long)from, (long long)(from + len - 1),
                          (long long)size);
  reply_head(x, range ? 206 : 200, content_type(path, fd), len);
  reply_file(x, fd, from, len);
}

static void files_get(exchange *x) {
  char path[PATH_MAX], why[256];
  e2b__buf text;
  account who;
  if (!file_authorized(x, "read") || !file_user(x, &who)) return;
  e2b__buf_init(&text, &server.mem, HEAD_MAX);
  if (!query_get(x, "path", &text)) (void)e2b__buf_cstr(&text);
  if (path_resolve(&who, x->sandbox->workdir, buf_str(&text), path, why)) download(x, path);
  else reply_error(x, 400, "error expanding and resolving path '%s': %s", (char *)text.data, why);
  e2b__buf_free(&text);
}

typedef enum upload_state { UPLOAD_RAW, UPLOAD_PREAMBLE, UPLOAD_BOUNDARY, UPLOAD_HEADERS, UPLOAD_PART, UPLOAD_END }
  upload_state;

/* One POST /files: writes what comes to disk and holds no more of it than a boundary. */
typedef struct upload {
  exchange *x;
  account who;
  bool has_path;
  e2b__buf path;       /* of the query */
  pairs metadata;
  upload_state state;
  gunzip *unpack;      /* the body is compressed */
  char delimiter[208]; /* CR LF "--" boundary */
  size_t delimiter_len;
  e2b__buf pending;    /* not looked at to the end: part of a delimiter or header */
  int fd;              /* the file that is being written, -1 = a part that is ignored */
  char target[PATH_MAX];
  int64_t written;
  e2b__buf done;       /* the paths so far, each NUL-terminated */
  e2b__buf answer;     /* JSON */
  e2b__json_writer w;
} upload;

static void upload_gone(exchange *x) {
  upload *u = (upload *)x->state;
  if (u->fd >= 0) (void)close(u->fd);
  gunzip_free(u->unpack);
  pairs_free(&u->metadata);
  e2b__buf_free(&u->path);
  e2b__buf_free(&u->pending);
  e2b__buf_free(&u->done);
  e2b__buf_free(&u->answer);
  free(u);
}

/* Replaces the file's metadata. A file system without extended attributes has none. False: failed, and answered. */
static bool upload_metadata(upload *u) {
  char names[4096], name[256];
  ssize_t len = flistxattr(u->fd, names, sizeof names), at;
  size_t i;
  for (at = 0; at < len; at += (ssize_t)strlen(names + at) + 1)
    if (strncmp(names + at, METADATA_PREFIX, strlen(METADATA_PREFIX)) == 0) (void)fremovexattr(u->fd, names + at);
  for (i = 0; i < u->metadata.count; i++) {
    const char *value = u->metadata.items[i].value;
    (void)snprintf(name, sizeof name, METADATA_PREFIX "%s", u->metadata.items[i].key);
    if (fsetxattr(u->fd, name, value, strlen(value), 0) == 0 || errno == ENOTSUP) continue;
    reply_error(u->x, errno == ENOSPC || errno == EDQUOT ? 507 : 500, "error writing file metadata: %s",
                errno_text(errno));
    return false;
  }
  return true;
}

/* Opens the target. False: failed, and answered. */
static bool upload_open(upload *u) {
  char parent[PATH_MAX], why[256];
  struct stat info;
  path_parent(u->target, parent);
  if (!make_dirs(parent, &u->who, why)) {
    reply_error(u->x, 500, "error ensuring directories: %s", why);
    return false;
  }
  if (stat(u->target, &info) == 0 && S_ISDIR(info.st_mode)) {
    reply_error(u->x, 400, "path is a directory: %s", u->target);
    return false;
  }
  u->fd = open(u->target, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK, 0644);
  if (u->fd < 0 || (fchown(u->fd, u->who.uid, u->who.gid) != 0 && geteuid() == 0)) {
    reply_error(u->x, errno == ENOSPC ? 507 : 500, "error opening file: open %s: %s", u->target, errno_text(errno));
    return false;
  }
  return true;
}

static void upload_write(upload *u, const uint8_t *data, size_t len) {
  while (len && u->fd >= 0 && !u->x->answered) {
    ssize_t n = write(u->fd, data, len);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == ENOSPC) {
      reply_error(u->x, 507, "attempted to write %lld bytes: not enough disk space available",
                  (long long)(u->written + (int64_t)len));
    } else if (n < 0) {
      reply_error(u->x, 500, "error writing file: write %s: %s", u->target, errno_text(errno));
    } else {
      data += n;
      len -= (size_t)n;
      u->written += n;
    }
  }
}

/* The file is complete: its line of the answer. */
static void upload_finish_file(upload *u) {
  e2b__arena arena;
  e2b__list metadata;
  const e2b__pair *pair;
  size_t i;
  if (u->fd < 0 || u->x->answered || !upload_metadata(u)) return;
  (void)close(u->fd);
  u->fd = -1;
  e2b__buf_put(&u->done, u->target, strlen(u->target) + 1);
  memset(&metadata, 0, sizeof metadata);
  e2b__arena_init(&arena, &server.mem, BODY_MAX);
  metadata_read(u->target, &arena, &metadata);
  pair = (const e2b__pair *)metadata.items;
  e2b__json_begin(&u->w, '{');
  for (i = 0; i < metadata.count; i++) {
    if (i == 0) e2b__json_key(&u->w, "metadata");
    if (i == 0) e2b__json_begin(&u->w, '{');
    e2b__json_key(&u->w, pair[i].key.ptr);
    e2b__json_str(&u->w, pair[i].value);
    if (i + 1 == metadata.count) e2b__json_end(&u->w, '}');
  }
  e2b__json_key(&u->w, "name");
  e2b__json_str(&u->w, e2b__str(path_name(u->target)));
  e2b__json_key(&u->w, "path");
  e2b__json_str(&u->w, e2b__str(u->target));
  e2b__json_key(&u->w, "type");
  e2b__json_str(&u->w, e2b__str("file"));
  e2b__json_end(&u->w, '}');
  e2b__arena_free(&arena);
}

/* A parameter of a header such as `form-data; name="file"; filename="a\"b"`, NUL-terminated in `out`. */
static bool header_parameter(e2b_str value, const char *name, e2b__buf *out) {
  (void)str_cut(&value, ';');
  while (value.len) {
    e2b_str key = e2b__str_trim(str_cut(&value, '='));
    bool wanted = e2b__str_eq_nocase(key, name);
    out->len = 0;
    value = e2b__str_trim(value);
    if (value.len && value.ptr[0] == '"') {
      size_t i = 1;
      for (; i < value.len && value.ptr[i] != '"'; i++) {
        if (value.ptr[i] == '\\' && i + 1 < value.len && (value.ptr[i + 1] == '"' || value.ptr[i + 1] == '\\')) i++;
        e2b__buf_byte(out, (uint8_t)value.ptr[i]);
      }
      value = e2b__str_n(value.ptr + i, value.len - i);
      (void)str_cut(&value, ';');
    } else {
      e2b__buf_str(out, e2b__str_trim(str_cut(&value, ';')));
    }
    if (wanted) return e2b__buf_cstr(out) != NULL;
  }
  return false;
}

/* Where the file of a part goes: the query's path, or the part's whole file name. False: failed, and answered. */
static bool upload_target(upload *u, e2b_str text) {
  char why[256];
  size_t at;
  if (!path_resolve(&u->who, u->x->sandbox->workdir, text, u->target, why)) {
    reply_error(u->x, 400, "error resolving path: %s", why);
    return false;
  }
  for (at = 0; at < u->done.len; at += strlen((char *)u->done.data + at) + 1) {
    if (strcmp((char *)u->done.data + at, u->target) != 0) continue;
    reply_error(u->x, 400, "you cannot upload multiple files to the same path '%s' in one upload request, only the "
                           "first specified file was uploaded", u->target);
    return false;
  }
  return upload_open(u);
}

/* The headers of a part: a file begins, or something to be ignored. */
static void upload_begin_part(upload *u, e2b_str headers) {
  static const char wanted[] = "content-disposition:";
  e2b_str value = e2b__str("");
  e2b__buf text;
  e2b__buf_init(&text, &server.mem, HEAD_MAX);
  while (headers.len && !value.len) {
    e2b_str line = e2b__str_trim(str_cut(&headers, '\n'));
    if (line.len && line.ptr[line.len - 1] == '\r') line.len--;
    if (line.len >= strlen(wanted) && e2b__str_eq_nocase(e2b__str_n(line.ptr, strlen(wanted)), wanted))
      value = e2b__str_n(line.ptr + strlen(wanted), line.len - strlen(wanted));
  }
  if (header_parameter(value, "name", &text) && e2b__str_eq(buf_str(&text), "file")) {
    if (u->has_path) (void)upload_target(u, buf_str(&u->path));
    else if (header_parameter(value, "filename", &text)) (void)upload_target(u, buf_str(&text));
    else reply_error(u->x, 400, "error getting multipart custom part file name: filename not found in "
                                "Content-Disposition header");
  }
  e2b__buf_free(&text);
}

/* The next delimiter in what is pending, and its end as far as it must be seen: only a line end, a blank or a dash may
 * follow. NULL: none, but the last *keep bytes may be the beginning of one. */
static const uint8_t *upload_find_delimiter(const upload *u, size_t *keep) {
  const uint8_t *at = u->pending.data, *end = at + u->pending.len;
  *keep = E2B__MIN(u->pending.len, u->delimiter_len - 1);
  for (;;) {
    at = (const uint8_t *)memmem(at, (size_t)(end - at), u->delimiter, u->delimiter_len);
    if (!at) return NULL;
    if (at + u->delimiter_len == end) {
      *keep = u->delimiter_len;
      return NULL;
    }
    if (strchr(" \t\r\n-", at[u->delimiter_len]) && at[u->delimiter_len]) return at;
    at++;
  }
}

/* Content or preamble up to the next delimiter. False: more input is needed. */
static bool upload_until_delimiter(upload *u) {
  size_t keep, len;
  const uint8_t *found = u->pending.len ? upload_find_delimiter(u, &keep) : NULL;
  if (!u->pending.len) return false;
  len = found ? (size_t)(found - u->pending.data) : u->pending.len - keep;
  if (u->state == UPLOAD_PART) upload_write(u, u->pending.data, len);
  e2b__buf_drop(&u->pending, found ? len + u->delimiter_len : len);
  if (!found) return false;
  if (u->state == UPLOAD_PART) upload_finish_file(u);
  u->state = UPLOAD_BOUNDARY;
  return true;
}

/* One step of the multipart body. False: more input is needed, or it is over. */
static bool upload_step(upload *u) {
  const uint8_t *data = u->pending.data, *end;
  size_t len = u->pending.len, blanks = 0;
  switch (u->state) {
  case UPLOAD_PREAMBLE:
  case UPLOAD_PART:
    return upload_until_delimiter(u);
  case UPLOAD_BOUNDARY:
    while (blanks < len && (data[blanks] == ' ' || data[blanks] == '\t')) blanks++;
    if (len - blanks < 2) return false;
    if (data[blanks] == '-' && data[blanks + 1] == '-') u->state = UPLOAD_END;
    else if (data[blanks] == '\r' && data[blanks + 1] == '\n') u->state = UPLOAD_HEADERS;
    else reply_error(u->x, 500, "error reading form: multipart: malformed boundary line");
    e2b__buf_drop(&u->pending, blanks); /* the line end stays: it may end an empty header block */
    return true;
  case UPLOAD_HEADERS:
    end = (const uint8_t *)memmem(data, len, "\r\n\r\n", 4);
    if (!end && len > HEAD_MAX / 4) reply_error(u->x, 500, "error reading form: multipart: header too large");
    if (!end) return false;
    u->state = UPLOAD_PART;
    upload_begin_part(u, e2b__str_n((const char *)data, (size_t)(end - data)));
    e2b__buf_drop(&u->pending, (size_t)(end - data) + 4);
    return true;
  default:
    u->pending.len = 0;
    return false;
  }
}

static bool upload_take(void *user_data, const char *data, size_t len) {
  upload *u = (upload *)user_data;
  if (u->state == UPLOAD_RAW) {
    upload_write(u, (const uint8_t *)data, len);
    return !u->x->answered;
  }
  e2b__buf_put(&u->pending, data, len);
  while (!u->x->answered && upload_step(u)) {}
  return !u->x->answered && !u->pending.err;
}

static void upload_body(exchange *x, const char *data, size_t len) {
  upload *u = (upload *)x->state;
  if (!u->unpack) (void)upload_take(u, data, len);
  else if (!gunzip_feed(u->unpack, data, len) && !x->answered)
    reply_error(x, 400, "error decompressing request body: gzip: invalid data");
}

static void upload_end(exchange *x) {
  upload *u = (upload *)x->state;
  if (u->unpack && !gunzip_complete(u->unpack))
    reply_error(x, 400, "error decompressing request body: unexpected EOF");
  else if (u->state == UPLOAD_PART)
    reply_error(x, 500, "error writing file: unexpected EOF");
  else if (u->state != UPLOAD_RAW && u->state != UPLOAD_END)
    reply_error(x, 500, "error reading form: multipart: NextPart: EOF");
  else
    upload_finish_file(u);
  if (x->answered) return;
  e2b__json_end(&u->w, ']');
  reply_buf(x, 200, "text/plain; charset=utf-8", &u->answer);
}

static const handler upload_handler = { upload_body, upload_end, NULL, NULL, upload_gone };

/* X-Metadata-<key> headers. False: failed, and answered. */
static bool upload_read_metadata(upload *u) {
  static const char prefix[] = "x-metadata-";
  size_t cursor = 0, total = 0, i;
  e2b_str name, value;
  while (e2b__headers_next(&u->x->headers, &cursor, &name, &value)) {
    const char *key = name.ptr + strlen(prefix);
    if (name.len <= strlen(prefix) || strncmp(name.ptr, prefix, strlen(prefix)) != 0 || pairs_get(&u->metadata, key))
      continue;
    for (i = 0; i < value.len && value.ptr[i] >= 0x20 && value.ptr[i] < 0x7f; i++) {}
    if (i < value.len) {
      reply_error(u->x, 400, "invalid metadata: metadata value for key \"%s\" contains non-printable-ASCII byte 0x%02x "
                             "at offset %zu", key, (unsigned)(uint8_t)value.ptr[i], i);
      return false;
    }
    if (strlen(key) > 255 - strlen(METADATA_PREFIX)) {
      reply_error(u->x, 400, "invalid metadata: metadata key \"%s\" exceeds %zu bytes", key,
                  255 - strlen(METADATA_PREFIX));
      return false;
    }
    pairs_set(&u->metadata, key, value.ptr);
    total += strlen(METADATA_PREFIX) + strlen(key) + value.len;
  }
  if (total > METADATA_MAX) reply_error(u->x, 400, "invalid metadata: total metadata size %zu exceeds %u bytes", total,
                                        METADATA_MAX);
  return total <= METADATA_MAX;
}

/* Chooses by the content type. False: failed, and answered. */
static bool upload_begin(upload *u) {
  const char *type = header(u->x, "content-type"), *encoding = header(u->x, "content-encoding");
  e2b_str rest = e2b__str(type), media = e2b__str_trim(str_cut(&rest, ';'));
  e2b__buf boundary;
  if (server.kruise && !(media.len >= 10 && e2b__str_eq_nocase(e2b__str_n(media.ptr, 10), "multipart/"))) {
    reply_error(u->x, 500, "error parsing multipart form: request Content-Type isn't multipart/form-data");
    return false;
  }
  if (server.kruise) {
    encoding = NULL; /* it knows neither compression nor metadata */
  } else if (encoding && strcmp(encoding, "gzip") == 0) {
    u->unpack = gunzip_new(upload_take, u);
  } else if (e2b__given(encoding) && strcmp(encoding, "identity") != 0) {
    reply_error(u->x, 400, "error decompressing request body: unsupported Content-Encoding: %s, supported: [gzip]",
                encoding);
    return false;
  }
  if (!server.kruise && !upload_read_metadata(u)) return false;
  if (e2b__str_eq_nocase(media, "application/octet-stream")) {
    u->state = UPLOAD_RAW;
    if (u->has_path) return upload_target(u, buf_str(&u->path));
    reply_error(u->x, 400, "path query parameter is required for raw body upload");
    return false;
  }
  if (media.len < 10 || !e2b__str_eq_nocase(e2b__str_n(media.ptr, 10), "multipart/")) {
    reply_error(u->x, 400, "unsupported content type: %s, expected multipart/form-data or application/octet-stream",
                type ? type : "");
    return false;
  }
  e2b__buf_init(&boundary, &server.mem, HEAD_MAX);
  u->state = UPLOAD_PREAMBLE;
  if (header_parameter(e2b__str(type), "boundary", &boundary) && boundary.len && boundary.len <= 200)
    u->delimiter_len = (size_t)snprintf(u->delimiter, sizeof u->delimiter, "\r\n--%s", (char *)boundary.data);
  e2b__buf_free(&boundary);
  e2b__buf_put(&u->pending, "\r\n", 2); /* so that the first delimiter is like the others */
  if (!u->delimiter_len)
    reply_error(u->x, 500, "error parsing multipart form: no multipart boundary param in Content-Type");
  return u->delimiter_len > 0;
}

static void files_post(exchange *x) {
  upload *u;
  account who;
  if (!file_authorized(x, "write") || !file_user(x, &who)) return;
  u = (upload *)xalloc(sizeof *u);
  u->x = x;
  u->who = who;
  u->fd = -1;
  e2b__buf_init(&u->path, &server.mem, HEAD_MAX);
  e2b__buf_init(&u->pending, &server.mem, BODY_MAX);
  e2b__buf_init(&u->done, &server.mem, BODY_MAX);
  e2b__buf_init(&u->answer, &server.mem, BODY_MAX);
  u->w.out = &u->answer;
  e2b__json_begin(&u->w, '[');
  u->has_path = query_get(x, "path", &u->path);
  x->state = u;
  x->handler = &upload_handler;
  (void)upload_begin(u);
}

/* ---- joining files ---- */

typedef struct compose_request {
  e2b__list sources; /* e2b_str */
  e2b_str destination, username;
  bool has_username;
} compose_request;
static const e2b__field fields_compose_request[] = {
  E2B__FIELD_LIST(compose_request, sources, "source_paths", 0, STR, NULL),
  E2B__FIELD(compose_request, destination, "destination", 0, STR),
  E2B__FIELD_HAS(compose_request, username, "username", 0, STR, 0, NULL),
};
static const e2b__message msg_compose_request = E2B__MESSAGE(compose_request, fields_compose_request);

/* The paths of the sources, each NUL-terminated. False: failed, and answered. */
static bool compose_sources(exchange *x, const account *who, const compose_request *request, const char *to,
                            e2b__buf *out) {
  const e2b_str *sources = (const e2b_str *)request->sources.items;
  char path[PATH_MAX], why[256];
  struct stat info;
  size_t i;
  for (i = 0; i < request->sources.count; i++) {
    int len = (int)sources[i].len;
    if (!path_resolve(who, x->sandbox->workdir, sources[i], path, why))
      reply_error(x, 400, "error resolving source path \"%.*s\": %s", len, sources[i].ptr, why);
    else if (strcmp(path, to) == 0)
      reply_error(x, 400, "source path \"%.*s\" cannot be the same as destination", len, sources[i].ptr);
    else if (stat(path, &info) != 0)
      reply_error(x, 404, "source file not found: %.*s", len, sources[i].ptr);
    else if (!S_ISREG(info.st_mode))
      reply_error(x, 400, "source path is not a regular file: %.*s", len, sources[i].ptr);
    else
      e2b__buf_put(out, path, strlen(path) + 1);
    if (x->answered) return false;
  }
  return !out->err;
}

/* Appends a file. 0 or an errno. */
static int compose_append(int to, const char *path) {
  int from = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), failure = 0;
  ssize_t n;
  if (from < 0) return errno;
  while ((n = sendfile(to, from, NULL, (size_t)1 << 30)) > 0) {}
  if (n < 0) failure = errno;
  (void)close(from);
  return failure;
}

/* Joins the sources in a file beside the destination, then puts it there. 0 or an errno. */
static int compose_join(const e2b__buf *sources, const char *to, const account *who) {
  char temp[PATH_MAX + 40], name[20];
  size_t at;
  int fd, failure = 0;
  random_name(name, sizeof name - 1);
  name[sizeof name - 1] = 0;
  (void)snprintf(temp, sizeof temp, "%s.e2b-compose.%s.tmp", to, name);
  fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return errno;
  if (fchown(fd, who->uid, who->gid) != 0 && geteuid() == 0) failure = errno;
  for (at = 0; !failure && at < sources->len; at += strlen((const char *)sources->data + at) + 1)
    failure = compose_append(fd, (const char *)sources->data + at);
  if (close(fd) != 0 && !failure) failure = errno;
  if (!failure && rename(temp, to) != 0) failure = errno;
  if (failure) (void)unlink(temp);
  for (at = 0; !failure && at < sources->len; at += strlen((const char *)sources->data + at) + 1)
    (void)unlink((const char *)sources->data + at);
  return failure;
}

static void compose_reply(exchange *x, const char *to) {
  e2b__buf body;
  e2b__json_writer w;
  e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
  w.out = &body;
  w.comma = false;
  e2b__json_begin(&w, '{');
  e2b__json_key(&w, "name");
  e2b__json_str(&w, e2b__str(path_name(to)));
  e2b__json_key(&w, "path");
  e2b__json_str(&w, e2b__str(to));
  e2b__json_key(&w, "type");
  e2b__json_str(&w, e2b__str("file"));
  e2b__json_end(&w, '}');
  e2b__buf_byte(&body, '\n');
  reply_buf(x, 200, "application/json", &body);
}

static void files_compose(exchange *x) {
  char to[PATH_MAX], parent[PATH_MAX], why[256];
  compose_request request;
  e2b__arena arena;
  e2b__buf sources;
  account who;
  const char *name;
  int failure;
  memset(&request, 0, sizeof request);
  e2b__arena_init(&arena, &server.mem, BODY_MAX);
  e2b__buf_init(&sources, &server.mem, BODY_MAX);
  if (!x->body.len || e2b__json_decode(&msg_compose_request, (char *)x->body.data, x->body.len, &arena,
                                       &request) != E2B_OK)
    reply_error(x, 400, "invalid request body: it is malformed");
  else if (!request.sources.count)
    reply_error(x, 400, "source_paths must not be empty");
  else if (!request.destination.len)
    reply_error(x, 400, "destination is required");
  name = request.has_username ? arena_text(&arena, request.username) : NULL;
  if (!x->answered && !sandbox_user(x->sandbox, name, &who))
    reply_error(x, 401, "error looking up user '%s': user: unknown user %s", name ? name : "default",
                name ? name : "default");
  if (!x->answered && !path_resolve(&who, x->sandbox->workdir, request.destination, to, why))
    reply_error(x, 400, "error resolving destination path: %s", why);
  if (!x->answered && compose_sources(x, &who, &request, to, &sources)) {
    path_parent(to, parent);
    if (!make_dirs(parent, &who, why)) {
      reply_error(x, 500, "error ensuring directories: %s", why);
    } else if ((failure = compose_join(&sources, to, &who)) != 0) {
      reply_error(x, failure == ENOSPC ? 507 : 500, "%s",
                  failure == ENOSPC ? "not enough disk space available" : errno_text(failure));
    } else {
      compose_reply(x, to);
    }
  }
  e2b__buf_free(&sources);
  e2b__arena_free(&arena);
}

/* ================================================================================================================== */
/* >>>> envd */
/* ================================================================================================================== */

static void envd_health(exchange *x) {
  reply_header(x, "Cache-Control: no-store");
  reply_empty(x, 204);
}

/* The value of "Name:  123 kB" in /proc/meminfo, in bytes. */
static int64_t meminfo(const char *text, const char *name) {
  const char *line = strstr(text, name);
  return line ? (int64_t)strtoll(line + strlen(name), NULL, 10) * 1024 : 0;
}

static size_t read_text(const char *path, char *out, size_t cap) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t len = fd < 0 ? 0 : read(fd, out, cap - 1);
  if (fd >= 0) (void)close(fd);
  out[len > 0 ? len : 0] = 0;
  return len > 0 ? (size_t)len : 0;
}

/* Share of all processors that was busy since the last call. */
static double cpu_used_pct(void) {
  static int64_t last_busy, last_all;
  char text[512], *at;
  int64_t value, all = 0, idle = 0, busy, spent;
  int i;
  if (!read_text("/proc/stat", text, sizeof text)) return 0;
  at = text + 4;
  for (i = 0; i < 8; i++) {
    value = strtoll(at, &at, 10);
    all += value;
    if (i == 3 || i == 4) idle += value;
  }
  busy = all - idle - last_busy;
  spent = all - last_all;
  last_busy = all - idle;
  last_all = all;
  return spent > 0 ? (double)busy * 100.0 / (double)spent : 0;
}

static void metric_take(metric *m) {
  char text[4096];
  struct statvfs disk;
  memset(m, 0, sizeof *m);
  m->time = wall_clock();
  m->cpu_used_pct = cpu_used_pct();
  (void)read_text("/proc/meminfo", text, sizeof text);
  m->mem_total = meminfo(text, "MemTotal:");
  m->mem_cache = meminfo(text, "\nCached:");
  m->mem_used = m->mem_total - meminfo(text, "MemAvailable:");
  if (statvfs(server.root, &disk) != 0) return;
  m->disk_total = (int64_t)disk.f_blocks * (int64_t)disk.f_frsize;
  m->disk_used = m->disk_total - (int64_t)disk.f_bavail * (int64_t)disk.f_frsize;
}

static void envd_metrics(exchange *x) {
  metric m;
  e2b__buf body;
  metric_take(&m);
  e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
  buf_printf(&body, "{\"ts\":%lld,\"cpu_count\":%ld,\"cpu_used_pct\":%.2f,\"mem_total_mib\":%lld,\"mem_used_mib\":%lld,"
             "\"mem_total\":%lld,\"mem_used\":%lld,\"mem_cache\":%lld,\"disk_used\":%lld,\"disk_total\":%lld}",
             (long long)m.time.seconds, sysconf(_SC_NPROCESSORS_ONLN), m.cpu_used_pct, (long long)(m.mem_total >> 20),
             (long long)(m.mem_used >> 20), (long long)m.mem_total, (long long)m.mem_used, (long long)m.mem_cache,
             (long long)m.disk_used, (long long)m.disk_total);
  reply_header(x, "Cache-Control: no-store");
  reply_buf(x, 200, "application/json", &body);
}

static void envd_envs(exchange *x) {
  e2b__buf body;
  e2b__json_writer w;
  size_t i;
  e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
  w.out = &body;
  w.comma = false;
  e2b__json_begin(&w, '{');
  for (i = 0; i < x->sandbox->env.count; i++) {
    e2b__json_key(&w, x->sandbox->env.items[i].key);
    e2b__json_str(&w, e2b__str(x->sandbox->env.items[i].value));
  }
  e2b__json_end(&w, '}');
  e2b__buf_byte(&body, '\n');
  reply_header(x, "Cache-Control: no-store");
  reply_buf(x, 200, "application/json", &body);
}

typedef struct init_request {
  e2b_str access_token, default_user, default_workdir;
  e2b__list env; /* e2b__pair */
  bool has_default_user, has_default_workdir;
} init_request;
static const e2b__field fields_init_request[] = {
  E2B__FIELD(init_request, access_token, "accessToken", 0, STR),
  E2B__FIELD_HAS(init_request, default_user, "defaultUser", 0, STR, 0, NULL),
  E2B__FIELD_HAS(init_request, default_workdir, "defaultWorkdir", 0, STR, 0, NULL),
  E2B__FIELD_LIST(init_request, env, "envVars", 0, MAP, &e2b__msg_pair),
};
static const e2b__message msg_init_request = E2B__MESSAGE(init_request, fields_init_request);

static void replace_text(char **slot, const char *text) {
  free(*slot);
  *slot = e2b__given(text) ? xdup(text) : NULL;
}

/* envd looks at the user of the Authorization header before anything else, even where it needs none. */
static void reply_bad_user(exchange *x, const char *name) {
  e2b__buf message, body;
  e2b__json_writer w;
  e2b__buf_init(&message, &server.mem, HEAD_MAX);
  e2b__buf_init(&body, &server.mem, HEAD_MAX);
  buf_printf(&message, "invalid username: '%s'", name);
  w.out = &body;
  w.comma = false;
  rpc_put_error(&w, E2B_CONNECT_UNAUTHENTICATED, buf_str(&message));
  e2b__buf_free(&message);
  reply_buf(x, 401, "application/json", &body);
}

/* What the orchestrator tells a fresh envd. Once there is a token only who knows it may do so. */
static void envd_init(exchange *x) {
  sandbox *s = x->sandbox;
  init_request request;
  e2b__arena arena;
  const char *token = NULL;
  int status = 204;
  memset(&request, 0, sizeof request);
  e2b__arena_init(&arena, &server.mem, BODY_MAX);
  reply_header(x, "X-Envd-Version: %s", server.kruise ? KRUISE_ENVD_VERSION : ENVD_VERSION);
  if (x->body.len && e2b__json_decode(&msg_init_request, (char *)x->body.data, x->body.len, &arena, &request) != E2B_OK)
    status = 400;
  if (status == 204) token = arena_text(&arena, request.access_token);
  if (status == 204 && s->token && (!token || strcmp(s->token, token) != 0)) status = 401;
  if (status == 204 && !pairs_set_all(&s->env, &request.env, &arena)) status = 400;
  if (status == 204) {
    if (e2b__given(token)) replace_text(&s->token, token);
    if (request.has_default_user) replace_text(&s->default_user, arena_text(&arena, request.default_user));
    if (request.has_default_workdir) replace_text(&s->workdir, arena_text(&arena, request.default_workdir));
  }
  e2b__arena_free(&arena);
  if (status == 204) reply_header(x, "Cache-Control: no-store");
  if (status == 401) reply_text(x, 401, "access token validation failed\n");
  else reply_empty(x, status);
}

/* A request that is held in memory: `answer` is called when all of it is there. */
static void whole_body(exchange *x, const char *data, size_t len) {
  e2b__buf_put(&x->body, data, len);
  if (x->body.err) reply_error(x, 413, "the request body is larger than %zu bytes", BODY_MAX);
}

static void whole_end(exchange *x) {
  x->answer(x);
}

static const handler whole_handler = { whole_body, whole_end, NULL, NULL, NULL };

static void answer_when_whole(exchange *x, void (*answer)(exchange *x)) {
  x->handler = &whole_handler;
  x->answer = answer;
}

typedef struct envd_route {
  const char *method, *path;
  bool open;                 /* no access token needed, or checked by itself */
  void (*run)(exchange *x);
  bool streamed;             /* takes the body as it comes */
} envd_route;

static const envd_route envd_routes[] = {
  { "GET", "/health", true, envd_health, false },
  { "GET", "/files", true, files_get, false },
  { "POST", "/files", true, files_post, true },
  { "POST", "/files/compose", false, files_compose, false },
  { "POST", "/init", true, envd_init, false },
  { "GET", "/metrics", false, envd_metrics, false },
  { "GET", "/envs", false, envd_envs, false },
};

/* The head of a request to envd is there. */
static void envd_begin(exchange *x) {
  const rpc_method *method = rpc_find(x->path);
  const char *token = header(x, "x-access-token"), *given;
  const envd_route *route = NULL;
  char allow[64] = "", name[256];
  account who;
  size_t i;
  for (i = 0; i < E2B__COUNT(envd_routes); i++) {
    if (strcmp(envd_routes[i].path, x->path) != 0) continue;
    if (strcmp(envd_routes[i].method, x->method) == 0) route = &envd_routes[i];
    (void)snprintf(allow + strlen(allow), sizeof allow - strlen(allow), "%s%s", allow[0] ? ", " : "",
                   envd_routes[i].method);
  }
  if (x->sandbox->token && (!token || strcmp(token, x->sandbox->token) != 0) && (!route || !route->open)) {
    reply_header(x, "X-Content-Type-Options: nosniff");
    reply_error(x, 401, "unauthorized access, please provide a valid access token or method signing if supported");
  } else if (method) {
    rpc_begin(x, method);
  } else if ((given = basic_user(x, name)) != NULL && !sandbox_user(x->sandbox, given, &who)) {
    reply_bad_user(x, given);
  } else if (route && route->streamed) {
    route->run(x);
  } else if (route) {
    answer_when_whole(x, route->run);
  } else if (allow[0]) {
    reply_method_not_allowed(x, allow);
  } else {
    reply_text(x, 404, "404 page not found\n");
  }
}

/* ================================================================================================================== */
/* >>>> code interpreter */
/* ================================================================================================================== */

/* Port 49999: contexts, each a python3 that lives on from run to run, and /execute, which streams what a run gives as
 * lines of JSON. As in the real one nothing here asks for the access token. Of its languages there is only Python,
 * without the magic of IPython. Where there is no python3 nobody listens on this port. */
#define CODE_PORT 49999
#define CODE_KEEPALIVE_MS 5000
#define CODE_CLOSED "Connection to the execution was closed before the execution was finished"
#define CODE_END "{\"type\": \"end_of_execution\"}\n"

/* The interpreter reads one request a line, {"code","env","cwd"}, and writes one event a line, ready for the client. */
static const char *const code_driver[] = {
  "import ast, asyncio, base64, codecs, datetime, inspect, json, linecache\n",
  "import os, signal, sys, threading, traceback, types\n",
  "\n",
  "requests, events = os.fdopen(os.dup(0), 'rb'), os.dup(1)\n",
  "os.dup2(os.open(os.devnull, os.O_RDONLY), 0)\n",
  "lock, running, count = threading.Lock(), False, 0\n",
  "mark = b'\\0e2b ' + os.urandom(8).hex().encode() + b'\\n'\n",
  "\n",
  "def clean(value):  # what JSON has no words for\n",
  "  if isinstance(value, dict):\n",
  "    return {str(key): clean(item) for key, item in value.items()}\n",
  "  if isinstance(value, (list, tuple)):\n",
  "    return [clean(item) for item in value]\n",
  "  return value if isinstance(value, (str, int, bool, type(None))) else repr(value)\n",
  "\n",
  "def emit(type, **members):\n",
  "  event = {'type': type, **members}\n",
  "  try:\n",
  "    line = json.dumps(event, allow_nan=False).encode()\n",
  "  except (TypeError, ValueError):\n",
  "    line = json.dumps(clean(event)).encode()\n",
  "  line += b'\\n'\n",
  "  with lock:\n",
  "    while line:\n",
  "      line = line[os.write(events, line):]\n",
  "\n",
  "# What is written to a descriptor, by us or by a child, becomes events. A mark in it says: so far it is out.\n",
  "class Pump(threading.Thread):\n",
  "  def __init__(self, fd, kind):\n",
  "    super().__init__(daemon=True)\n",
  "    self.fd, self.kind, self.passed = fd, kind, threading.Event()\n",
  "    self.source, end = os.pipe()\n",
  "    os.dup2(end, fd)\n",
  "    os.close(end)\n",
  "    self.start()\n",
  "\n",
  "  def run(self):\n",
  "    decoder, data = codecs.getincrementaldecoder('utf-8')('replace'), b''\n",
  "    def put(part):\n",
  "      text = decoder.decode(part)\n",
  "      if text:\n",
  "        emit(self.kind, text=text, timestamp=datetime.datetime.now(datetime.timezone.utc).isoformat())\n",
  "    while True:\n",
  "      more = os.read(self.source, 65536)\n",
  "      if not more:\n",
  "        return\n",
  "      *parts, data = (data + more).split(mark)\n",
  "      for part in parts:\n",
  "        put(part)\n",
  "        self.passed.set()\n",
  "      keep = next((n for n in range(min(len(mark) - 1, len(data)), 0, -1) if data.endswith(mark[:n])), 0)\n",
  "      put(data[:len(data) - keep])\n",
  "      data = data[len(data) - keep:]\n",
  "\n",
  "  def sync(self):\n",
  "    self.passed.clear()\n",
  "    try:\n",
  "      os.write(self.fd, mark)\n",
  "    except OSError:\n",
  "      return\n",
  "    self.passed.wait(5)\n",
  "\n",
  "pumps = Pump(1, 'stdout'), Pump(2, 'stderr')\n",
  "\n",
  "def sync():\n",
  "  for stream in sys.stdout, sys.stderr:\n",
  "    try:\n",
  "      stream.flush()\n",
  "    except Exception:\n",
  "      pass\n",
  "  for pump in pumps:\n",
  "    pump.sync()\n",
  "\n",
  "reprs = {'_repr_html_': 'text/html', '_repr_markdown_': 'text/markdown', '_repr_svg_': 'image/svg+xml',\n",
  "         '_repr_png_': 'image/png', '_repr_jpeg_': 'image/jpeg', '_repr_pdf_': 'application/pdf',\n",
  "         '_repr_latex_': 'text/latex', '_repr_json_': 'application/json',\n",
  "         '_repr_javascript_': 'application/javascript',\n",
  "         '_repr_e2b_data_': 'e2b/data', '_repr_e2b_chart_': 'e2b/chart'}\n",
  "members = {'text/plain': 'text', 'text/html': 'html', 'text/markdown': 'markdown', 'image/svg+xml': 'svg',\n",
  "           'image/png': 'png', 'image/jpeg': 'jpeg', 'application/pdf': 'pdf', 'text/latex': 'latex',\n",
  "           'application/json': 'json', 'application/javascript': 'javascript',\n",
  "           'e2b/data': 'data', 'e2b/chart': 'chart'}\n",
  "\n",
  "def formats(value):\n",
  "  bundle = {'text/plain': repr(value)}\n",
  "  if not isinstance(value, type):\n",
  "    for method, mime in reprs.items():\n",
  "      if callable(getattr(value, method, None)):\n",
  "        bundle[mime] = getattr(value, method)()\n",
  "    if callable(getattr(value, '_repr_mimebundle_', None)):\n",
  "      more = value._repr_mimebundle_(include=None, exclude=None)\n",
  "      bundle.update(more[0] if isinstance(more, tuple) else more)\n",
  "  if isinstance(value, (list, dict)):\n",
  "    try:\n",
  "      json.dumps(value)\n",
  "      bundle['application/json'] = value\n",
  "    except (TypeError, ValueError):\n",
  "      pass\n",
  "  out = {'extra': {}}\n",
  "  for mime, data in bundle.items():\n",
  "    if isinstance(data, tuple):  # with metadata\n",
  "      data = data[0]\n",
  "    if data is None:\n",
  "      continue\n",
  "    if isinstance(data, bytes):\n",
  "      data = base64.b64encode(data).decode()\n",
  "    if mime == 'text/plain' and len(data) > 1 and data[0] == data[-1] and data[0] in '\\'\"':\n",
  "      data = data[1:-1]\n",
  "    if mime in members:\n",
  "      out[members[mime]] = data\n",
  "    else:\n",
  "      out['extra'][mime] = data\n",
  "  return out\n",
  "\n",
  "def show(value, main):\n",
  "  found = formats(value)\n",
  "  sync()\n",
  "  emit('result', is_main_result=main, **found)\n",
  "\n",
  "def display(*values, **_):\n",
  "  for value in values:\n",
  "    show(value, False)\n",
  "\n",
  "main = sys.modules['__main__'] = types.ModuleType('__main__')\n",
  "main.display = display\n",
  "sys.argv = ['']\n",
  "loop = asyncio.new_event_loop()\n",
  "asyncio.set_event_loop(loop)\n",
  "\n",
  "def evaluate(tree, name, mode):\n",
  "  code = compile(tree, name, mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)\n",
  "  value = eval(code, main.__dict__)\n",
  "  return loop.run_until_complete(value) if code.co_flags & inspect.CO_COROUTINE else value\n",
  "\n",
  "def execute(source):\n",
  "  name = f'Cell In[{count}]'\n",
  "  linecache.cache[name] = len(source), None, source.splitlines(True), name\n",
  "  tree = compile(source, name, 'exec', ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)\n",
  "  last = None\n",
  "  if tree.body and isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(';'):\n",
  "    last = ast.Expression(tree.body.pop().value)\n",
  "  if tree.body:\n",
  "    evaluate(tree, name, 'exec')\n",
  "  if last:\n",
  "    value = evaluate(last, name, 'eval')\n",
  "    if value is not None:\n",
  "      main._ = value\n",
  "      show(value, True)\n",
  "\n",
  "def fail(error):\n",
  "  trace = error.__traceback__\n",
  "  while trace and trace.tb_frame.f_code.co_filename == '<string>':  # ours\n",
  "    trace = trace.tb_next\n",
  "  text = ''.join(traceback.format_exception(type(error), error, trace))\n",
  "  try:\n",
  "    value = str(error)\n",
  "  except Exception:\n",
  "    value = '<exception str() failed>'\n",
  "  sync()\n",
  "  emit('error', name=type(error).__name__, value=value, traceback=text)\n",
  "\n",
  "def interrupt(*_):\n",
  "  if running:\n",
  "    raise KeyboardInterrupt\n",
  "\n",
  "def cell(request):\n",
  "  global running, count\n",
  "  count += 1\n",
  "  emit('number_of_executions', execution_count=count)\n",
  "  before, cwd = dict(os.environ), None\n",
  "  try:\n",
  "    running = True\n",
  "    try:\n",
  "      os.environ.update(request['env'])\n",
  "      if request['cwd']:\n",
  "        cwd = os.getcwd()\n",
  "        os.chdir(request['cwd'])\n",
  "      execute(request['code'])\n",
  "    finally:\n",
  "      running = False\n",
  "  except BaseException as error:\n",
  "    fail(error)\n",
  "  for key in request['env']:\n",
  "    if key in before:\n",
  "      os.environ[key] = before[key]\n",
  "    else:\n",
  "      os.environ.pop(key, None)\n",
  "  try:\n",
  "    os.chdir(cwd or '.')\n",
  "  except OSError:\n",
  "    pass  # it is gone\n",
  "  sync()\n",
  "  emit('end_of_execution')\n",
  "\n",
  "sys.stdout = open(1, 'w', buffering=1, encoding='utf-8', errors='surrogateescape', closefd=False)\n",
  "sys.stderr = open(2, 'w', buffering=1, encoding='utf-8', errors='backslashreplace', closefd=False)\n",
  "signal.signal(signal.SIGINT, interrupt)\n",
  "for line in requests:\n",
  "  cell(json.loads(line.decode(errors='replace')))\n",
  "os._exit(0)\n",
};

/* An interpreter. Its process is started with it, and anew when it has died. */
typedef struct context {
  node in_sandbox;
  sandbox *sandbox;
  char id[32];
  char *cwd;
  bool standard;  /* the one of requests that name none */
  pid_t pid;      /* 0 = none */
  watch in, out;  /* our ends of its pipes */
  e2b__buf input; /* requests it has not read yet */
  e2b__buf line;  /* of its output: the event that is coming in */
  size_t scanned; /* of `line`: looked through for its end */
  node runs;      /* the first one is under way, the others wait */
} context;

/* A request to /execute. */
typedef struct run {
  node in_context;
  context *context;
  exchange *x;       /* NULL when the client has gone: it is being interrupted */
  e2b__buf request;  /* for the interpreter; empty when it has it */
  timer beat;        /* a keep-alive for the client; the next interrupt when it has gone */
} run;

static void run_beat(timer *t);
static void context_next(context *c);

static void run_send(run *r, const char *line, size_t len) {
  if (!r->x) return;
  reply_chunk(r->x, line, len);
  timer_set(&r->beat, now_ms() + CODE_KEEPALIVE_MS, run_beat);
}

/* What is left of a run: the client keeps an exchange that is answered. */
static void run_free(run *r) {
  if (r->x) {
    r->x->state = NULL;
    reply_end(r->x);
  }
  timer_stop(&r->beat);
  list_remove(&r->in_context);
  e2b__buf_free(&r->request);
  free(r);
}

/* The end of a run that its interpreter does not bring. */
static void run_fail(run *r, const char *name, const char *value) {
  char text[256];
  int len = snprintf(text, sizeof text,
                     "{\"type\": \"error\", \"name\": \"%s\", \"value\": \"%s\", \"traceback\": \"\"}\n", name, value);
  run_send(r, text, (size_t)len);
  run_send(r, CODE_END, sizeof CODE_END - 1);
  run_free(r);
}

static bool run_started(const run *r) {
  return r->context->runs.next == &r->in_context && !r->request.len;
}

/* Nobody wants the rest: as the Stop button of a notebook, again and again until the code lets go. */
static void run_beat(timer *t) {
  static const char line[] = "{\"type\": \"keepalive\"}\n";
  run *r = OWNER(t, run, beat);
  if (r->x) {
    run_send(r, line, sizeof line - 1);
  } else {
    if (r->context->pid) (void)kill(-r->context->pid, SIGINT);
    timer_set(&r->beat, now_ms() + 1000, run_beat);
  }
}

/* The process is gone, or shall be: what it was doing ends with an error, what waits goes to its successor. */
static void context_stop(context *c, const char *name, const char *value) {
  if (c->pid) (void)kill(-c->pid, SIGKILL);
  c->pid = 0;
  watch_close(&c->in);
  watch_close(&c->out);
  e2b__buf_free(&c->input);
  e2b__buf_free(&c->line);
  c->scanned = 0;
  if (!list_empty(&c->runs) && run_started(OWNER(c->runs.next, run, in_context)))
    run_fail(OWNER(c->runs.next, run, in_context), name, value);
}

static void context_free(context *c) {
  context_stop(c, "UnexpectedEndOfExecution", CODE_CLOSED);
  while (!list_empty(&c->runs))
    run_fail(OWNER(c->runs.next, run, in_context), "ExecutionAborted", "The context was removed");
  list_remove(&c->in_sandbox);
  free(c->cwd);
  free(c);
}

/* Writes what the interpreter takes of its requests. */
static void context_write(context *c) {
  while (c->input.len) {
    ssize_t n = write(c->in.fd, c->input.data, c->input.len);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break; /* full; or dead, which its output will say */
    e2b__buf_drop(&c->input, (size_t)n);
  }
  (void)watch_want(&c->in, c->input.len && errno == EAGAIN ? EPOLLOUT : 0);
}

static void context_in_ready(watch *w, uint32_t events) {
  E2B__UNUSED(events);
  context_write(OWNER(w, context, in));
}

/* Passes the whole lines on that have come. */
static void context_lines(context *c) {
  size_t at = 0;
  char *line, *end;
  while (at < c->line.len) {
    run *r = list_empty(&c->runs) ? NULL : OWNER(c->runs.next, run, in_context);
    size_t len;
    line = (char *)c->line.data + at;
    end = (char *)memchr(line + c->scanned, '\n', c->line.len - at - c->scanned);
    if (!end) break;
    len = (size_t)(end - line) + 1;
    at += len;
    c->scanned = 0;
    if (r && run_started(r)) run_send(r, line, len);
    if (r && run_started(r) && e2b__str_eq(e2b__str_n(line, len), CODE_END)) {
      run_free(r);
      context_next(c);
    }
  }
  e2b__buf_drop(&c->line, at);
  c->scanned = c->line.len;
}

/* Reads until there is no more, or the client has enough for now. */
static void context_read(context *c) {
  int turns;
  for (turns = 0; turns < 8 && c->out.fd >= 0; turns++) {
    run *r = list_empty(&c->runs) ? NULL : OWNER(c->runs.next, run, in_context);
    ssize_t n;
    if (r && r->x && !exchange_has_room(r->x)) {
      (void)watch_want(&c->out, 0);
      return;
    }
    n = read(c->out.fd, server.chunk, sizeof server.chunk);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n > 0) e2b__buf_put(&c->line, server.chunk, (size_t)n);
    if (n <= 0 || c->line.err) {
      context_stop(c, "ContextRestarting", "Context was restarted");
      context_next(c);
      return;
    }
    context_lines(c);
  }
}

static void context_out_ready(watch *w, uint32_t events) {
  E2B__UNUSED(events);
  context_read(OWNER(w, context, out));
}

/* SIGCHLD: the process has no number any more. Its output may still be read. */
static void contexts_reaped(pid_t pid) {
  node *n, *k;
  for (n = server.sandboxes.next; n != &server.sandboxes; n = n->next) {
    sandbox *s = OWNER(n, sandbox, in_all);
    for (k = s->contexts.next; k != &s->contexts; k = k->next)
      if (OWNER(k, context, in_sandbox)->pid == pid) OWNER(k, context, in_sandbox)->pid = 0;
  }
}

/* The arguments of the interpreter; the code is too long for one literal. */
static bool code_arguments(launch *l, e2b__arena *arena) {
  e2b__buf code;
  size_t i;
  e2b__buf_init(&code, &server.mem, BODY_MAX);
  for (i = 0; i < E2B__COUNT(code_driver); i++) e2b__buf_text(&code, code_driver[i]);
  l->argv = (char **)e2b__arena_alloc(arena, 4 * sizeof *l->argv);
  if (l->argv) {
    l->argv[0] = (char *)(uintptr_t)"python3";
    l->argv[1] = (char *)(uintptr_t)"-c";
    l->argv[2] = (char *)(uintptr_t)arena_text(arena, buf_str(&code));
  }
  e2b__buf_free(&code);
  return l->argv && l->argv[2];
}

/* Starts the process of a context. False with the reason in `why`. */
static bool context_start(context *c, char why[256]) {
  e2b__process_config config;
  e2b__arena arena;
  account who;
  struct stat dir;
  launch l;
  int i, failure = ENOMEM;
  memset(&config, 0, sizeof config);
  memset(&l, 0, sizeof l);
  for (i = 0; i < 3; i++) l.std[i] = l.ours[i] = -1;
  l.who = &who;
  e2b__arena_init(&arena, &server.mem, BODY_MAX);
  if (!sandbox_user(c->sandbox, NULL, &who))
    failure = EPERM;
  else if (code_arguments(&l, &arena) && launch_environment(&l, c->sandbox, &config, &arena))
    failure = launch_open_pipes(&l, true) ? 0 : errno;
  l.cwd = stat(c->cwd, &dir) == 0 && S_ISDIR(dir.st_mode) ? c->cwd : who.home; /* %cd to nowhere leaves one there */
  if (!failure) { /* what goes wrong before our code runs is for whoever runs this server */
    (void)close(l.std[2]);
    (void)close(l.ours[2]);
    l.ours[2] = -1;
    l.std[2] = fcntl(2, F_DUPFD_CLOEXEC, 3);
    failure = l.std[2] < 0 ? errno : launch_run(&l, &c->pid);
  }
  launch_close(&l, failure != 0);
  e2b__arena_free(&arena);
  if (failure) {
    c->pid = 0;
    (void)snprintf(why, 256, "cannot start python3 in '%.100s': %s", c->cwd, errno_text(failure));
    return false;
  }
  watch_init(&c->in, l.ours[0], context_in_ready);
  watch_init(&c->out, l.ours[1], context_out_ready);
  (void)watch_want(&c->out, EPOLLIN);
  c->sandbox->used = true;
  return true;
}

/* NULL with the reason in `why`. */
static context *context_new(sandbox *s, e2b_str cwd, bool standard, char why[256]) {
  context *c;
  char path[PATH_MAX];
  account who;
  if (!sandbox_user(s, NULL, &who)) {
    (void)snprintf(why, 256, "no such user");
    return NULL;
  }
  if (!path_resolve(&who, s->workdir, cwd, path, why)) return NULL;
  c = (context *)xalloc(sizeof *c);
  c->sandbox = s;
  c->standard = standard;
  c->cwd = xdup(path);
  random_name(c->id, 24);
  c->in.fd = c->out.fd = -1;
  e2b__buf_init(&c->input, &server.mem, OUTPUT_MAX);
  e2b__buf_init(&c->line, &server.mem, OUTPUT_MAX);
  list_init(&c->runs);
  list_push(&s->contexts, &c->in_sandbox);
  if (context_start(c, why)) return c;
  context_free(c);
  return NULL;
}

/* Gives the interpreter the next run, when it is free; a dead one is replaced. */
static void context_next(context *c) {
  char why[256];
  run *r;
  while (!list_empty(&c->runs) && !run_started(r = OWNER(c->runs.next, run, in_context))) {
    if (c->out.fd >= 0 || context_start(c, why)) {
      e2b__buf_str(&c->input, buf_str(&r->request));
      e2b__buf_free(&r->request);
      context_write(c);
      return;
    }
    run_fail(r, "ContextRestarting", "The context could not be restarted");
  }
}

static void run_drain(exchange *x) {
  run *r = (run *)x->state;
  if (!r || r->context->out.fd < 0) return;
  (void)watch_want(&r->context->out, EPOLLIN);
  context_read(r->context);
}

static void run_hangup(exchange *x) {
  conn_break(x->conn);
}

static void run_gone(exchange *x) {
  run *r = (run *)x->state;
  context *c;
  if (!r) return;
  c = r->context;
  r->x = NULL;
  if (!run_started(r)) {
    run_free(r);
    return;
  }
  run_beat(&r->beat);
  if (c->out.fd >= 0) (void)watch_want(&c->out, EPOLLIN);
}

static const handler run_handler = { whole_body, NULL, run_drain, run_hangup, run_gone };

static context *context_find(sandbox *s, e2b_str id) {
  node *n;
  for (n = s->contexts.next; n != &s->contexts; n = n->next)
    if (e2b__str_eq(id, OWNER(n, context, in_sandbox)->id)) return OWNER(n, context, in_sandbox);
  return NULL;
}

/* The context of requests that name none. */
static context *context_standard(sandbox *s, char why[256]) {
  node *n;
  for (n = s->contexts.next; n != &s->contexts; n = n->next)
    if (OWNER(n, context, in_sandbox)->standard) return OWNER(n, context, in_sandbox);
  return context_new(s, e2b__str(""), true, why);
}

typedef struct execute_request {
  e2b_str code, context_id, language, cwd;
  e2b__list env; /* e2b__pair */
  bool has_code;
} execute_request;
static const e2b__field fields_execute_request[] = {
  E2B__FIELD_HAS(execute_request, code, "code", 0, STR, 0, NULL),
  E2B__FIELD(execute_request, context_id, "context_id", 0, STR),
  E2B__FIELD(execute_request, language, "language", 0, STR),
  E2B__FIELD(execute_request, cwd, "cwd", 0, STR),
  E2B__FIELD_LIST(execute_request, env, "env_vars", 0, MAP, &e2b__msg_pair),
};
static const e2b__message msg_execute_request = E2B__MESSAGE(execute_request, fields_execute_request);

static void reply_code_invalid(exchange *x, const char *where, const char *message) {
  e2b__buf body;
  e2b__buf_init(&body, &server.mem, HEAD_MAX);
  buf_printf(&body, "{\"detail\":[{\"type\":\"invalid\",\"loc\":[\"body\"%s%s%s],\"msg\":\"%s\"}]}",
             where[0] ? ",\"" : "", where, where[0] ? "\"" : "", message);
  reply_buf(x, 422, "application/json", &body);
}

static bool code_knows(e2b_str language) {
  return !language.len || e2b__str_eq_nocase(language, "python") || e2b__str_eq_nocase(language, "python3");
}

E2B__PRINTF(3, 4)
static void reply_code_error(exchange *x, int status, const char *format, ...) {
  e2b__buf text;
  va_list args;
  e2b__buf_init(&text, &server.mem, HEAD_MAX);
  va_start(args, format);
  buf_vprintf(&text, format, args);
  va_end(args);
  reply_buf(x, status, "text/plain; charset=utf-8", &text);
}

/* Lines up a run; from here on its events are the answer. */
static void code_run(exchange *x, context *c, const execute_request *request) {
  const e2b__pair *env = (const e2b__pair *)request->env.items;
  run *r = (run *)xalloc(sizeof *r);
  e2b__json_writer w;
  size_t i;
  e2b__buf_init(&r->request, &server.mem, OUTPUT_MAX);
  w.out = &r->request;
  w.comma = false;
  e2b__json_begin(&w, '{');
  e2b__json_key(&w, "code");
  e2b__json_str(&w, request->code);
  e2b__json_key(&w, "cwd");
  e2b__json_str(&w, request->cwd);
  e2b__json_key(&w, "env");
  e2b__json_begin(&w, '{');
  for (i = 0; i < request->env.count; i++) {
    e2b__json_key_str(&w, env[i].key);
    e2b__json_str(&w, env[i].value);
  }
  e2b__json_end(&w, '}');
  e2b__json_end(&w, '}');
  e2b__buf_byte(&r->request, '\n');
  r->context = c;
  r->x = x;
  list_push(&c->runs, &r->in_context);
  x->handler = &run_handler;
  x->state = r;
  reply_head(x, 200, NULL, LENGTH_UNKNOWN);
  timer_set(&r->beat, now_ms() + CODE_KEEPALIVE_MS, run_beat);
  context_next(c);
}

static void code_execute(exchange *x) {
  execute_request request;
  e2b__arena arena;
  context *c = NULL;
  char why[256] = "";
  memset(&request, 0, sizeof request);
  e2b__arena_init(&arena, &server.mem, BODY_MAX);
  if (e2b__json_decode(&msg_execute_request, (char *)x->body.data, x->body.len, &arena, &request) != E2B_OK)
    reply_code_invalid(x, "", "Input should be a valid JSON object");
  else if (!request.has_code)
    reply_code_invalid(x, "code", "Field required");
  else if (request.context_id.len && request.language.len)
    reply_text(x, 400, "Only one of context_id or language can be provided");
  else if (!code_knows(request.language))
    reply_code_error(x, 500, "Failed to create context: no kernel for '%.*s' on this server", (int)request.language.len,
                     request.language.ptr);
  else if (request.context_id.len && (c = context_find(x->sandbox, request.context_id)) == NULL)
    reply_code_error(x, 404, "Context %.*s not found", (int)request.context_id.len, request.context_id.ptr);
  else if (!c && (c = context_standard(x->sandbox, why)) == NULL)
    reply_code_error(x, 500, "Failed to create context: %s", why);
  else
    code_run(x, c, &request);
  e2b__arena_free(&arena);
}

static void json_context(e2b__json_writer *w, const context *c) {
  e2b__json_begin(w, '{');
  e2b__json_key(w, "id");
  e2b__json_str(w, e2b__str(c->id));
  e2b__json_key(w, "language");
  e2b__json_str(w, e2b__str("python"));
  e2b__json_key(w, "cwd");
  e2b__json_str(w, e2b__str(c->cwd));
  e2b__json_end(w, '}');
}

static void code_create_context(exchange *x) {
  execute_request request;
  e2b__arena arena;
  e2b__buf body;
  e2b__json_writer w;
  context *c = NULL;
  char why[256] = "";
  memset(&request, 0, sizeof request);
  e2b__arena_init(&arena, &server.mem, BODY_MAX);
  e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
  w.out = &body;
  w.comma = false;
  if (e2b__json_decode(&msg_execute_request, (char *)x->body.data, x->body.len, &arena, &request) != E2B_OK) {
    reply_code_invalid(x, "", "Input should be a valid JSON object");
  } else if (!code_knows(request.language)) {
    reply_code_error(x, 500, "Failed to create context: no kernel for '%.*s' on this server", (int)request.language.len,
                     request.language.ptr);
  } else if ((c = context_new(x->sandbox, request.cwd, false, why)) == NULL) {
    reply_code_error(x, 500, "Failed to create context: %s", why);
  } else {
    json_context(&w, c);
    reply_buf(x, 200, "application/json", &body);
  }
  e2b__arena_free(&arena);
}

static void code_list_contexts(exchange *x) {
  e2b__buf body;
  e2b__json_writer w;
  char why[256];
  node *n;
  (void)context_standard(x->sandbox, why);
  e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
  w.out = &body;
  w.comma = false;
  e2b__json_begin(&w, '[');
  for (n = x->sandbox->contexts.next; n != &x->sandbox->contexts; n = n->next)
    json_context(&w, OWNER(n, context, in_sandbox));
  e2b__json_end(&w, ']');
  reply_buf(x, 200, "application/json", &body);
}

static void code_health(exchange *x) {
  reply(x, 200, "application/json", "\"OK\"", 4);
}

/* /contexts/<id> and /contexts/<id>/restart */
static void code_context(exchange *x) {
  e2b_str rest = e2b__str(x->path + strlen("/contexts/")), name = str_cut(&rest, '/');
  bool restart = e2b__str_eq(rest, "restart");
  e2b__buf id;
  context *c;
  e2b__buf_init(&id, &server.mem, HEAD_MAX);
  if (!percent_decode(name, false, &id)) id.len = 0;
  c = context_find(x->sandbox, buf_str(&id));
  if (rest.len && !restart) {
    reply(x, 404, "application/json", "{\"detail\":\"Not Found\"}", 22);
  } else if (strcmp(x->method, restart ? "POST" : "DELETE") != 0) {
    reply(x, 405, "application/json", "{\"detail\":\"Method Not Allowed\"}", 31);
  } else if (!c) {
    reply_code_error(x, 404, "Context %.*s not found", (int)id.len, (const char *)id.data);
  } else {
    if (restart) context_stop(c, "UnexpectedEndOfExecution", CODE_CLOSED);
    if (restart)
      context_next(c);
    else
      context_free(c);
    reply(x, 200, "application/json", "null", 4);
  }
  e2b__buf_free(&id);
}

/* The head of a request to the code interpreter is there. */
static void code_begin(exchange *x) {
  bool post = strcmp(x->method, "POST") == 0, get = strcmp(x->method, "GET") == 0;
  if (post && strcmp(x->path, "/execute") == 0)
    answer_when_whole(x, code_execute);
  else if (post && strcmp(x->path, "/contexts") == 0)
    answer_when_whole(x, code_create_context);
  else if (get && strcmp(x->path, "/contexts") == 0)
    answer_when_whole(x, code_list_contexts);
  else if (get && strcmp(x->path, "/health") == 0)
    answer_when_whole(x, code_health);
  else if (strncmp(x->path, "/contexts/", 10) == 0)
    answer_when_whole(x, code_context);
  else if (strcmp(x->path, "/execute") == 0 || strcmp(x->path, "/contexts") == 0 || strcmp(x->path, "/health") == 0)
    reply(x, 405, "application/json", "{\"detail\":\"Method Not Allowed\"}", 31);
  else
    reply(x, 404, "application/json", "{\"detail\":\"Not Found\"}", 22);
}

/* Whether there is a python3. */
static bool code_available(void) {
  const char *path = getenv("PATH");
  e2b_str rest = e2b__str(path ? path : "/usr/local/bin:/usr/bin:/bin");
  char name[PATH_MAX];
  while (rest.len) {
    e2b_str dir = str_cut(&rest, ':');
    if (snprintf(name, sizeof name, "%.*s/python3", (int)dir.len, dir.ptr) < (int)sizeof name &&
        access(name, X_OK) == 0)
      return true;
  }
  return false;
}

/* ================================================================================================================== */
/* >>>> life cycle */
/* ================================================================================================================== */

/* A directory that is still being written to by processes that are just being killed. */
typedef struct grave {
  node in_graves;
  timer timer;
  int tries;
  char path[];
} grave;

static void grave_try(timer *t) {
  grave *g = OWNER(t, grave, timer);
  if (!remove_tree(g->path) && ++g->tries < 50) {
    timer_set(&g->timer, now_ms() + 100, grave_try);
    return;
  }
  list_remove(&g->in_graves);
  free(g);
}

static void bury_dir(const char *path) {
  size_t len = strlen(path);
  grave *g = (grave *)xalloc(sizeof *g + len + 1);
  memcpy(g->path, path, len);
  list_push(&server.graves, &g->in_graves);
  grave_try(&g->timer);
}

/* As when a machine goes away: everything that talks to the sandbox is cut off in the middle. */
static void sandbox_cut(sandbox *s) {
  while (!list_empty(&s->exchanges)) conn_close(OWNER(s->exchanges.next, exchange, in_sandbox)->conn);
}

static void sandbox_kill(sandbox *s) {
  sandbox **slot = &server.buckets[sandbox_bucket(s->id)];
  int tries;
  while (*slot != s) slot = &(*slot)->next_in_bucket;
  *slot = s->next_in_bucket;
  sandbox_cut(s);
  for (tries = 0; tries < 4 && sandbox_signal(s, SIGKILL); tries++) processes_reap();
  while (!list_empty(&s->processes)) process_free(OWNER(s->processes.next, process, in_sandbox));
  while (!list_empty(&s->contexts)) context_free(OWNER(s->contexts.next, context, in_sandbox));
  while (!list_empty(&s->watchers)) watcher_free(OWNER(s->watchers.next, watcher, in_sandbox));
  timer_stop(&s->life);
  list_remove(&s->in_all);
  bury_dir(s->home);
  while (!list_empty(&s->logs)) log_free(OWNER(s->logs.next, log_entry, in_logs));
  free(s->snapshot);
  free(s->network);
  free(s->allow_internet);
  free(s->traffic_token);
  free(s->mask_host);
  pairs_free(&s->metadata);
  pairs_free(&s->env);
  free(s->template_id);
  free(s->home);
  free(s->token);
  free(s->default_user);
  free(s->workdir);
  free(s);
}

static void sandbox_pause(sandbox *s) {
  sandbox_cut(s);
  (void)sandbox_signal(s, SIGSTOP);
  (void)sandbox_signal(s, SIGSTOP); /* those that were born meanwhile */
  timer_stop(&s->life);
  s->paused = true;
  (void)sandbox_log(s, "info", "sandbox paused");
}

static void sandbox_expire(timer *t) {
  sandbox *s = OWNER(t, sandbox, life);
  if (s->auto_pause) sandbox_pause(s);
  else sandbox_kill(s);
}

/* From now on it lives that long. */
static void sandbox_set_life(sandbox *s, int64_t seconds) {
  s->ends = wall_clock();
  s->ends.seconds += seconds;
  timer_set(&s->life, now_ms() + seconds * 1000, sandbox_expire);
}

/* The same, if that is longer than it would anyway. */
static void sandbox_extend_life(sandbox *s, int64_t seconds) {
  if (s->life.due < now_ms() + seconds * 1000) sandbox_set_life(s, seconds);
}

static void sandbox_resume(sandbox *s, int64_t seconds) {
  s->paused = false;
  sandbox_set_life(s, seconds);
  (void)sandbox_signal(s, SIGCONT);
  (void)sandbox_log(s, "info", "sandbox resumed");
}

/* As long as there are sandboxes. */
static void metrics_tick(timer *t) {
  if (list_empty(&server.sandboxes)) return;
  metric_take(&server.metrics[server.metric_count++ % METRICS_MAX]);
  timer_set(t, now_ms() + METRICS_EVERY_MS, metrics_tick);
}

/* NULL when its home directory could not be made. */
static sandbox *sandbox_create(const char *template_id, int64_t seconds) {
  sandbox *s = (sandbox *)xalloc(sizeof *s);
  char home[PATH_MAX];
  account owner;
  if (server.kruise) {
    memcpy(s->id, "default--", 9);
    random_name(s->id + 9, 13);
  } else {
    s->id[0] = 'i';
    random_name(s->id + 1, 20);
  }
  if (snprintf(home, sizeof home, "%s/%s", server.root, s->id) >= (int)sizeof home || mkdir(home, 0755) != 0 ||
      !user_find(server.default_user, &owner) || chown(home, owner.uid, owner.gid) != 0) {
    free(s);
    return NULL;
  }
  s->home = xdup(home);
  s->template_id = xdup(template_id);
  s->number = ++server.sequence;
  s->started = wall_clock();
  list_init(&s->processes);
  list_init(&s->contexts);
  list_init(&s->watchers);
  list_init(&s->exchanges);
  list_init(&s->logs);
  if (list_empty(&server.sandboxes)) timer_set(server.metrics_timer, now_ms() + METRICS_EVERY_MS, metrics_tick);
  list_push(&server.sandboxes, &s->in_all);
  (void)sandbox_log(s, "info", "sandbox started from %.100s", template_id);
  s->next_in_bucket = server.buckets[sandbox_bucket(s->id)];
  server.buckets[sandbox_bucket(s->id)] = s;
  pairs_set(&s->env, "E2B_SANDBOX", "true");
  pairs_set(&s->env, "E2B_SANDBOX_ID", s->id);
  pairs_set(&s->env, "E2B_TEMPLATE_ID", template_id);
  sandbox_set_life(s, seconds);
  return s;
}

/* ================================================================================================================== */
/* >>>> snapshots */
/* ================================================================================================================== */

/* A template made from a sandbox: a copy of its home and its settings. What ran in it is not part of it. */
typedef struct snapshot {
  node in_all;
  uint64_t number;     /* in the order of creation: what pages are cut by */
  char id[24];         /* of the template */
  char *name;          /* NULL = none */
  char tag[64];
  char *sandbox_id;    /* it was made from */
  char *dir;
  char *default_user, *workdir;
  pairs env;
} snapshot;

#define SNAPSHOT_TEAM "local/"

static void snapshot_free(snapshot *n) {
  list_remove(&n->in_all);
  if (n->dir) bury_dir(n->dir);
  pairs_free(&n->env);
  free(n->name);
  free(n->sandbox_id);
  free(n->dir);
  free(n->default_user);
  free(n->workdir);
  free(n);
}

/* "<template id>:<tag>", or with a name "local/<name>:<tag>" */
static void snapshot_ref(const snapshot *n, char out[256]) {
  (void)snprintf(out, 256, "%s%s:%s", n->name ? SNAPSHOT_TEAM : "", n->name ? n->name : n->id, n->tag);
}

/* Cuts "[local/]name[:tag]"; the tag stays empty when there is none. */
static void snapshot_cut(e2b_str ref, e2b_str *name, e2b_str *tag) {
  size_t team = strlen(SNAPSHOT_TEAM);
  if (ref.len > team && memcmp(ref.ptr, SNAPSHOT_TEAM, team) == 0) ref = e2b__str_n(ref.ptr + team, ref.len - team);
  *tag = ref;
  *name = str_cut(tag, ':');
}

static bool snapshot_is(const snapshot *n, e2b_str name, e2b_str tag) {
  if (tag.len && !e2b__str_eq(tag, n->tag)) return false;
  return e2b__str_eq(name, n->id) || (n->name && e2b__str_eq(name, n->name));
}

/* Without a tag the default one is meant. */
static snapshot *snapshot_find(e2b_str ref) {
  e2b_str name, tag;
  node *n;
  snapshot_cut(ref, &name, &tag);
  if (!tag.len) tag = e2b__str("default");
  for (n = server.snapshots.next; n != &server.snapshots; n = n->next)
    if (snapshot_is(OWNER(n, snapshot, in_all), name, tag)) return OWNER(n, snapshot, in_all);
  return NULL;
}

static bool snapshot_in_use(const snapshot *n) {
  const node *at;
  char ref[256];
  snapshot_ref(n, ref);
  for (at = server.sandboxes.next; at != &server.sandboxes; at = at->next) {
    const char *from = OWNER(at, sandbox, in_all)->snapshot;
    if (from && strcmp(from, ref) == 0) return true;
  }
  return false;
}

/* All that is in one directory to another, with owners, times and attributes. */
static bool copy_tree(const char *from, const char *to) {
  char all[PATH_MAX + 4];
  int status = -1;
  pid_t pid;
  (void)snprintf(all, sizeof all, "%s/.", from);
  pid = fork();
  if (pid == 0) {
    (void)execlp("cp", "cp", "-a", "--", all, to, (char *)NULL);
    _exit(127);
  }
  while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
  return pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* The sandbox stands still while it is copied. NULL when that failed. */
static snapshot *snapshot_create(sandbox *s, e2b_str name, e2b_str tag) {
  snapshot *n = (snapshot *)xalloc(sizeof *n);
  char dir[PATH_MAX];
  size_t i;
  list_init(&n->in_all);
  random_name(n->id, 20);
  n->number = ++server.sequence;
  (void)snprintf(n->tag, sizeof n->tag, "%.*s", (int)tag.len, tag.ptr);
  n->sandbox_id = xdup(s->id);
  if (s->default_user) n->default_user = xdup(s->default_user);
  if (s->workdir) n->workdir = xdup(s->workdir);
  for (i = 0; i < s->env.count; i++) pairs_set(&n->env, s->env.items[i].key, s->env.items[i].value);
  if (name.len) {
    n->name = (char *)xalloc(name.len + 1);
    memcpy(n->name, name.ptr, name.len);
  }
  if (snprintf(dir, sizeof dir, "%s/snapshot-%s", server.root, n->id) < (int)sizeof dir && mkdir(dir, 0700) == 0) {
    bool copied;
    n->dir = xdup(dir);
    (void)sandbox_signal(s, SIGSTOP);
    copied = copy_tree(s->home, dir);
    (void)sandbox_signal(s, SIGCONT);
    if (copied) {
      list_push(&server.snapshots, &n->in_all);
      return n;
    }
  }
  snapshot_free(n);
  return NULL;
}

/* Makes a new sandbox what the snapshot's was. */
static bool snapshot_restore(const snapshot *n, sandbox *s) {
  char ref[256];
  size_t i;
  snapshot_ref(n, ref);
  s->snapshot = xdup(ref);
  if (n->default_user) s->default_user = xdup(n->default_user);
  if (n->workdir) s->workdir = xdup(n->workdir);
  for (i = 0; i < n->env.count; i++)
    if (!pairs_get(&s->env, n->env.items[i].key)) pairs_set(&s->env, n->env.items[i].key, n->env.items[i].value);
  return copy_tree(n->dir, s->home);
}

/* ================================================================================================================== */
/* >>>> control plane */
/* ================================================================================================================== */

static void json_pair(e2b__json_writer *w, const char *key, const char *value) {
  e2b__json_key(w, key);
  e2b__json_str(w, e2b__str(value));
}

static void json_time(e2b__json_writer *w, const char *key, e2b__timestamp t) {
  e2b__buf text;
  e2b__buf_init(&text, &server.mem, 64);
  e2b__time_format(t, &text);
  e2b__json_key(w, key);
  e2b__json_str(w, buf_str(&text));
  e2b__buf_free(&text);
}

/* What is JSON already, if it is there. */
static void json_given(e2b__json_writer *w, const char *key, const char *json) {
  if (!json) return;
  e2b__json_key(w, key);
  e2b__json_raw(w, e2b__str(json));
}

typedef enum sandbox_view { VIEW_CREATED, VIEW_DETAIL, VIEW_LISTED } sandbox_view;

static void json_sandbox(e2b__json_writer *w, const sandbox *s, sandbox_view view) {
  e2b__json_begin(w, '{');
  json_pair(w, "sandboxID", s->id);
  json_pair(w, "templateID", s->template_id);
  json_pair(w, "alias", s->template_id);
  json_pair(w, "clientID", "6532622b");
  json_pair(w, "envdVersion", ENVD_VERSION);
  if (s->token && view != VIEW_LISTED) json_pair(w, "envdAccessToken", s->token);
  if (s->traffic_token && view == VIEW_CREATED) json_pair(w, "trafficAccessToken", s->traffic_token);
  if (view != VIEW_CREATED) {
    json_time(w, "startedAt", s->started);
    json_time(w, "endAt", s->ends);
    e2b__json_key(w, "cpuCount");
    e2b__json_i64(w, (int64_t)sysconf(_SC_NPROCESSORS_ONLN));
    e2b__json_key(w, "memoryMB");
    e2b__json_i64(w, ((int64_t)sysconf(_SC_PHYS_PAGES) * (int64_t)sysconf(_SC_PAGESIZE)) >> 20);
    e2b__json_key(w, "diskSizeMB");
    e2b__json_i64(w, 10240);
    json_pair(w, "state", s->paused ? "paused" : "running");
    e2b__json_kvs(w, "metadata", pairs_view(&s->metadata));
  }
  if (view == VIEW_DETAIL) {
    e2b__json_key(w, "lifecycle");
    e2b__json_begin(w, '{');
    json_pair(w, "onTimeout", s->auto_pause ? "pause" : "kill");
    e2b__json_key(w, "autoResume");
    e2b__json_bool(w, s->auto_resume);
    e2b__json_end(w, '}');
    json_given(w, "network", s->network);
    json_given(w, "allowInternetAccess", s->allow_internet);
  }
  e2b__json_end(w, '}');
}

static void reply_sandbox(exchange *x, int status, const sandbox *s, sandbox_view view) {
  e2b__buf body;
  e2b__json_writer w;
  e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
  w.out = &body;
  w.comma = false;
  json_sandbox(&w, s, view);
  reply_buf(x, status, "application/json; charset=utf-8", &body);
}

/* All request bodies of the life cycle in one: what a call has no use for is ignored. */
typedef struct auto_resume_option {
  bool enabled;
} auto_resume_option;
static const e2b__field fields_auto_resume_option[] = {
  E2B__FIELD(auto_resume_option, enabled, "enabled", 0, BOOL),
};
static const e2b__message msg_auto_resume_option = E2B__MESSAGE(auto_resume_option, fields_auto_resume_option);

typedef struct life_request {
  e2b_str template_id;
  int64_t timeout, duration;
  e2b__list metadata, env; /* e2b__pair */
  auto_resume_option auto_resume;
  bool auto_pause, secure, has_timeout, has_duration, has_auto_resume;
  e2b_str network;             /* JSON text */
  e2b_str allow_internet;      /* "true", "false" or "" */
} life_request;
static const e2b__field fields_life_request[] = {
  E2B__FIELD(life_request, template_id, "templateID", 0, STR),
  E2B__FIELD_HAS(life_request, timeout, "timeout", 0, I64, 0, NULL),
  E2B__FIELD_HAS(life_request, duration, "duration", 0, I64, 0, NULL),
  E2B__FIELD_LIST(life_request, metadata, "metadata", 0, MAP, &e2b__msg_pair),
  E2B__FIELD_LIST(life_request, env, "envVars", 0, MAP, &e2b__msg_pair),
  E2B__FIELD_HAS(life_request, auto_resume, "autoResume", 0, MSG, 0, &msg_auto_resume_option),
  E2B__FIELD(life_request, auto_pause, "autoPause", 0, BOOL),
  E2B__FIELD(life_request, secure, "secure", 0, BOOL),
  E2B__FIELD(life_request, network, "network", 0, RAW),
  E2B__FIELD(life_request, allow_internet, "allow_internet_access", 0, TEXT),
};
static const e2b__message msg_life_request = E2B__MESSAGE(life_request, fields_life_request);

/* Decodes and checks the body. False: failed, and answered. The arena is the caller's to free in both cases. */
static bool read_life_request(exchange *x, bool body_required, e2b__arena *arena, life_request *out) {
  e2b__arena_init(arena, &server.mem, BODY_MAX);
  memset(out, 0, sizeof *out);
  if ((x->body.len || body_required) &&
      e2b__json_decode(&msg_life_request, (char *)x->body.data, x->body.len, arena, out) != E2B_OK) {
    reply_error(x, 400, "validation error: request body is not valid");
    return false;
  }
  if (out->timeout < 0 || out->timeout > TIMEOUT_MAX_S) {
    reply_error(x, 400, "Timeout cannot be %s", out->timeout < 0 ? "negative" : "greater than 24 hours");
    return false;
  }
  return true;
}

/* ---- network: kept and shown, but not enforced ---- */

typedef struct network_request {
  e2b__list allow_out, deny_out; /* e2b_str */
  e2b_str rules, egress_proxy;   /* JSON text */
  e2b_str allow_internet;        /* of an update */
  bool allow_public_traffic, has_allow_public_traffic; /* of a creation */
  e2b_str mask_request_host;
} network_request;
static const e2b__field fields_network_request[] = {
  E2B__FIELD_LIST(network_request, allow_out, "allowOut", 0, STR, NULL),
  E2B__FIELD_LIST(network_request, deny_out, "denyOut", 0, STR, NULL),
  E2B__FIELD(network_request, rules, "rules", 0, RAW),
  E2B__FIELD(network_request, egress_proxy, "egressProxy", 0, RAW),
  E2B__FIELD(network_request, allow_internet, "allow_internet_access", 0, TEXT),
  E2B__FIELD_HAS(network_request, allow_public_traffic, "allowPublicTraffic", 0, BOOL, 0, NULL),
  E2B__FIELD(network_request, mask_request_host, "maskRequestHost", 0, STR),
};
static const e2b__message msg_network_request = E2B__MESSAGE(network_request, fields_network_request);

/* An address, or a block of them. */
static bool is_cidr(e2b_str text) {
  int64_t bits = 0;
  char number[4] = "0";
  e2b_str rest = text, address = str_cut(&rest, '/');
  bool block = address.len != text.len;
  if (block && (rest.len == 0 || rest.len > 3)) return false;
  if (block) (void)snprintf(number, sizeof number, "%.*s", (int)rest.len, rest.ptr);
  if (!parse_i64(number, &bits) || bits < 0) return false;
  return e2b__host_is_ipv4(address) ? bits <= 32 : e2b__host_is_ipv6(address) && bits <= 128;
}

/* The status and words of a refusal; 0 = fine. */
static int network_refusal(const network_request *n, const char **why) {
  const e2b_str *allow = (const e2b_str *)n->allow_out.items, *deny = (const e2b_str *)n->deny_out.items;
  bool denies_all = false, names = false;
  size_t i;
  for (i = 0; i < n->deny_out.count; i++) {
    *why = "denyOut takes addresses and CIDR blocks only";
    if (!is_cidr(deny[i])) return 400;
    if (e2b__str_eq(deny[i], "0.0.0.0/0")) denies_all = true;
  }
  for (i = 0; i < n->allow_out.count; i++)
    if (!is_cidr(allow[i])) names = true;
  *why = "when names are allowed, denyOut has to have 0.0.0.0/0";
  if (names && !denies_all) return 400;
  *why = "an egress proxy is not available here";
  return n->egress_proxy.len && !e2b__str_eq(n->egress_proxy, "null") ? 403 : 0;
}

static void json_texts(e2b__json_writer *w, const char *key, const e2b__list *list) {
  size_t i;
  if (!list->count) return;
  e2b__json_key(w, key);
  e2b__json_begin(w, '[');
  for (i = 0; i < list->count; i++) e2b__json_str(w, ((const e2b_str *)list->items)[i]);
  e2b__json_end(w, ']');
}

/* Replaces all that was set before. */
static void network_set(sandbox *s, const network_request *n, e2b_str allow_internet) {
  e2b__buf text;
  e2b__json_writer w;
  bool any = n->allow_out.count || n->deny_out.count || n->rules.len;
  e2b__buf_init(&text, &server.mem, BODY_MAX);
  w.out = &text;
  w.comma = false;
  e2b__json_begin(&w, '{');
  json_texts(&w, "allowOut", &n->allow_out);
  json_texts(&w, "denyOut", &n->deny_out);
  if (n->rules.len) {
    e2b__json_key(&w, "rules");
    e2b__json_raw(&w, n->rules);
  }
  e2b__json_end(&w, '}');
  replace_text(&s->network, any ? e2b__buf_cstr(&text) : NULL);
  e2b__buf_free(&text);
  e2b__buf_put(&text, allow_internet.ptr, allow_internet.len);
  replace_text(&s->allow_internet, allow_internet.len ? e2b__buf_cstr(&text) : NULL);
  e2b__buf_free(&text);
}

/* Decodes and checks. False: failed, and answered. */
static bool network_read(exchange *x, char *json, size_t len, e2b__arena *arena, network_request *out) {
  const char *why = "validation error: request body is not valid";
  int status = 400;
  if (e2b__json_decode(&msg_network_request, json, len, arena, out) == E2B_OK) status = network_refusal(out, &why);
  if (status) reply_error(x, status, "%s", why);
  return !status;
}

static void sandbox_network(exchange *x, sandbox *s) {
  network_request request;
  e2b__arena arena;
  e2b__arena_init(&arena, &server.mem, BODY_MAX);
  if (s->paused) {
    reply_error(x, 409, "sandbox \"%s\" is paused", s->id);
  } else if (network_read(x, (char *)x->body.data, x->body.len, &arena, &request)) {
    network_set(s, &request, request.allow_internet);
    (void)sandbox_log(s, "info", "network rules changed");
    reply_empty(x, 204);
  }
  e2b__arena_free(&arena);
}

static bool template_known(e2b_str name) {
  const char *const *known = (const char *const *)server.templates.items;
  size_t i;
  for (i = 0; i < server.templates.count; i++)
    if (e2b__str_eq(name, known[i])) return true;
  return false;
}

/* What a creation asks for besides template and time. False: failed, and answered. */
static bool sandbox_configure(exchange *x, sandbox *s, const life_request *request, const network_request *network,
                              e2b__arena *arena) {
  char token[33];
  if (!pairs_set_all(&s->metadata, &request->metadata, arena) || !pairs_set_all(&s->env, &request->env, arena)) {
    reply_error(x, 400, "validation error: metadata or envVars are too many, or have a NUL character in them");
    return false;
  }
  s->auto_pause = request->auto_pause;
  s->auto_resume = request->auto_resume.enabled;
  if (request->secure || strncmp(x->path, "/v2/", 4) == 0) { /* the newer call knows only secure ones */
    random_name(token, 32);
    s->token = xdup(token);
  }
  network_set(s, network, request->allow_internet);
  if (network->mask_request_host.len) s->mask_host = xdup(arena_text(arena, network->mask_request_host));
  if (network->has_allow_public_traffic && !network->allow_public_traffic) {
    random_name(token, 32);
    s->traffic_token = xdup(token);
  }
  return true;
}

/* Makes the sandbox of a checked request. NULL: failed, and answered. */
static sandbox *sandbox_make(exchange *x, const life_request *request, const network_request *network,
                             e2b__arena *arena) {
  const snapshot *from = template_known(request->template_id) ? NULL : snapshot_find(request->template_id);
  sandbox *s = sandbox_create(from ? from->id : arena_text(arena, request->template_id),
                              request->has_timeout ? request->timeout : TIMEOUT_DEFAULT_S);
  if (!s) {
    reply_error(x, 500, "cannot make a home directory in %s: %s", server.root, errno_text(errno));
    return NULL;
  }
  if (from && !snapshot_restore(from, s)) {
    reply_error(x, 500, "cannot copy the snapshot's files");
  } else if (sandbox_configure(x, s, request, network, arena)) {
    return s;
  }
  sandbox_kill(s);
  return NULL;
}

static void sandboxes_create(exchange *x) {
  e2b__arena arena;
  life_request request;
  network_request network;
  sandbox *s = NULL;
  bool ok = read_life_request(x, true, &arena, &request);
  memset(&network, 0, sizeof network);
  if (ok && request.network.len)
    ok = network_read(x, (char *)request.network.ptr, request.network.len, &arena, &network);
  if (ok && request.has_timeout && request.timeout == 0) {
    reply_error(x, 400, "Timeout must be greater than 0");
  } else if (ok && !template_known(request.template_id) && !snapshot_find(request.template_id)) {
    reply_error(x, 404, "template '%.*s' not found", (int)request.template_id.len,
                request.template_id.len ? request.template_id.ptr : "");
  } else if (ok) {
    s = sandbox_make(x, &request, &network, &arena);
  }
  if (s) reply_sandbox(x, 201, s, VIEW_CREATED);
  e2b__arena_free(&arena);
}

/* The metadata filter has been encoded three times; the query's own layer is gone here already. False: malformed. */
static bool parse_metadata_filter(const e2b__buf *text, pairs *out) {
  e2b__buf whole, key, value;
  e2b_str rest;
  bool ok;
  e2b__buf_init(&whole, &server.mem, HEAD_MAX);
  e2b__buf_init(&key, &server.mem, HEAD_MAX);
  e2b__buf_init(&value, &server.mem, HEAD_MAX);
  ok = percent_decode(buf_str(text), true, &whole);
  rest = buf_str(&whole);
  while (ok && rest.len) {
    e2b_str right = str_cut(&rest, '&'), left = str_cut(&right, '=');
    key.len = value.len = 0;
    ok = left.ptr + left.len != right.ptr + right.len && !(right.len && memchr(right.ptr, '=', right.len)) &&
         percent_decode(left, true, &key) && percent_decode(right, true, &value) && e2b__buf_cstr(&key) &&
         e2b__buf_cstr(&value);
    if (ok) pairs_set(out, (char *)key.data, (char *)value.data);
  }
  e2b__buf_free(&whole);
  e2b__buf_free(&key);
  e2b__buf_free(&value);
  return ok;
}

/* Page tokens: the order and the number of the last item, as base64. */
static bool page_read(e2b__buf *token, char order, uint64_t *after) {
  int64_t number;
  size_t len = 0;
  if (!e2b__base64_decode_in_place((char *)token->data, token->len, &len)) len = 0;
  token->data[len] = 0;
  if (len < 3 || token->data[0] != (uint8_t)order || token->data[1] != ':') return false;
  if (!parse_i64((char *)token->data + 2, &number) || number < 1) return false;
  *after = (uint64_t)number;
  return true;
}

static void page_write(exchange *x, char order, uint64_t last) {
  e2b__buf token;
  char plain[40];
  (void)snprintf(plain, sizeof plain, "%c:%llu", order, (unsigned long long)last);
  e2b__buf_init(&token, &server.mem, 256);
  e2b__base64_encode(&token, (const uint8_t *)plain, strlen(plain), true);
  reply_header(x, "X-Next-Token: %.*s", (int)token.len, (char *)token.data);
  e2b__buf_free(&token);
}

/* What a list asks for. */
typedef struct list_query {
  bool running, paused, ascending, paged;
  int64_t limit;
  uint64_t after; /* the number of the last sandbox of the page before; 0 = the first page */
  pairs metadata;
  e2b__buf template_id;       /* NUL-terminated; empty = any */
  e2b__timestamp started_after;
} list_query;

/* False: failed, and answered. */
static bool parse_list_query(exchange *x, e2b__buf *text, list_query *q) {
  const char *wrong = NULL;
  q->running = q->paused = true;
  q->limit = 100;
  q->ascending = query_get(x, "order", text) && strcmp((char *)text->data, "asc") == 0;
  if (query_get(x, "state", text)) {
    e2b_str rest = buf_str(text);
    q->running = q->paused = false;
    while (rest.len) {
      e2b_str state = str_cut(&rest, ',');
      if (e2b__str_eq(state, "running")) q->running = true;
      else if (e2b__str_eq(state, "paused")) q->paused = true;
      else wrong = "state";
    }
  }
  if (query_get(x, "limit", text) && (!parse_i64((char *)text->data, &q->limit) || q->limit < 1 || q->limit > 100))
    wrong = "limit";
  if (query_get(x, "nextToken", text) && text->len) {
    if (!page_read(text, q->ascending ? 'a' : 'd', &q->after)) wrong = "nextToken";
  }
  if (query_get(x, "template", text)) e2b__buf_text(&q->template_id, (char *)text->data);
  if (query_get(x, "startedAfter", text) && !e2b__time_parse(buf_str(text), &q->started_after)) wrong = "startedAfter";
  if (query_get(x, "metadata", text) && !parse_metadata_filter(text, &q->metadata)) wrong = "metadata";
  if (wrong) reply_error(x, 400, "validation error: parameter \"%s\" in query has an error", wrong);
  return !wrong;
}

static bool list_matches(const list_query *q, const sandbox *s) {
  size_t i;
  if (s->paused ? !q->paused : !q->running) return false;
  if (q->template_id.len && !e2b__str_eq(buf_str(&q->template_id), s->template_id)) return false;
  if (s->started.seconds < q->started_after.seconds ||
      (s->started.seconds == q->started_after.seconds && s->started.nanos < q->started_after.nanos))
    return false;
  for (i = 0; i < q->metadata.count; i++) {
    const char *value = pairs_get(&s->metadata, q->metadata.items[i].key);
    if (!value || strcmp(value, q->metadata.items[i].value) != 0) return false;
  }
  return true;
}

static void reply_list(exchange *x, const list_query *q) {
  e2b__buf body;
  e2b__json_writer w;
  node *n = q->ascending ? server.sandboxes.next : server.sandboxes.prev;
  const sandbox *last = NULL;
  int64_t count = 0, running = 0;
  bool more = false;
  e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
  w.out = &body;
  w.comma = false;
  e2b__json_begin(&w, '[');
  for (; n != &server.sandboxes; n = q->ascending ? n->next : n->prev) {
    const sandbox *s = OWNER(n, sandbox, in_all);
    if (!list_matches(q, s)) continue;
    if (!s->paused) running++;
    if (q->after && (q->ascending ? s->number <= q->after : s->number >= q->after)) continue;
    if (q->paged && count == q->limit) {
      more = true;
      continue;
    }
    json_sandbox(&w, s, VIEW_LISTED);
    last = s;
    count++;
  }
  e2b__json_end(&w, ']');
  if (q->paged && q->running) reply_header(x, "X-Total-Running: %lld", (long long)running);
  if (more) page_write(x, q->ascending ? 'a' : 'd', last->number);
  reply_buf(x, 200, "application/json; charset=utf-8", &body);
}

static void sandboxes_list(exchange *x) {
  list_query q;
  e2b__buf text;
  memset(&q, 0, sizeof q);
  e2b__buf_init(&text, &server.mem, HEAD_MAX);
  e2b__buf_init(&q.template_id, &server.mem, HEAD_MAX);
  if (parse_list_query(x, &text, &q)) {
    q.paged = strncmp(x->path, "/v2/", 4) == 0;
    if (!q.paged) q.paused = false; /* the old call knows only running ones */
    reply_list(x, &q);
  }
  e2b__buf_free(&text);
  e2b__buf_free(&q.template_id);
  pairs_free(&q.metadata);
}

static void sandbox_get(exchange *x, sandbox *s) {
  reply_sandbox(x, 200, s, VIEW_DETAIL);
}

static void sandbox_delete(exchange *x, sandbox *s) {
  sandbox_kill(s);
  reply_empty(x, 204);
}

static void sandbox_timeout(exchange *x, sandbox *s) {
  e2b__arena arena;
  life_request request;
  bool ok = read_life_request(x, true, &arena, &request);
  if (ok && s->paused) {
    reply_error(x, 404, "sandbox \"%s\" is paused, it has no timeout", s->id);
  } else if (ok) {
    sandbox_set_life(s, request.timeout);
    reply_empty(x, 204);
  }
  e2b__arena_free(&arena);
}

static void sandbox_refresh(exchange *x, sandbox *s) {
  e2b__arena arena;
  life_request request;
  bool ok = read_life_request(x, false, &arena, &request);
  if (ok && (request.duration < 0 || request.duration > 3600)) {
    reply_error(x, 400, "validation error: duration must be between 0 and 3600");
  } else if (ok) {
    if (!s->paused) sandbox_extend_life(s, E2B__MAX(request.duration, (int64_t)15));
    reply_empty(x, 204);
  }
  e2b__arena_free(&arena);
}

static void sandbox_pause_call(exchange *x, sandbox *s) {
  if (s->paused) {
    reply_error(x, 409, "sandbox \"%s\" is already paused", s->id);
    return;
  }
  sandbox_pause(s);
  reply_empty(x, 204);
}

static void sandbox_resume_call(exchange *x, sandbox *s) {
  e2b__arena arena;
  life_request request;
  bool ok = read_life_request(x, false, &arena, &request);
  if (ok && !s->paused) {
    reply_error(x, 409, "sandbox \"%s\" is already running", s->id);
  } else if (ok) {
    sandbox_resume(s, request.has_timeout ? request.timeout : TIMEOUT_DEFAULT_S);
    reply_sandbox(x, 201, s, VIEW_CREATED);
  }
  e2b__arena_free(&arena);
}

static void sandbox_connect(exchange *x, sandbox *s) {
  e2b__arena arena;
  life_request request;
  bool ok = read_life_request(x, true, &arena, &request), resumed = s->paused;
  if (ok) {
    if (s->paused) sandbox_resume(s, request.timeout);
    else sandbox_extend_life(s, request.timeout);
    reply_sandbox(x, resumed ? 201 : 200, s, VIEW_CREATED);
  }
  e2b__arena_free(&arena);
}

/* ---- metrics and logs ---- */

/* A number of the query, or `fallback` when it is absent. False: failed, and answered. */
static bool query_number(exchange *x, const char *name, int64_t low, int64_t high, int64_t fallback, int64_t *out) {
  e2b__buf text;
  bool ok = true;
  *out = fallback;
  e2b__buf_init(&text, &server.mem, HEAD_MAX);
  if (query_get(x, name, &text)) ok = parse_i64((char *)text.data, out) && *out >= low && *out <= high;
  e2b__buf_free(&text);
  if (!ok) reply_error(x, 400, "validation error: parameter \"%s\" in query has an error", name);
  return ok;
}

static void json_metric(e2b__json_writer *w, const metric *m) {
  char pct[32];
  (void)snprintf(pct, sizeof pct, "%.2f", m->cpu_used_pct);
  e2b__json_begin(w, '{');
  json_time(w, "timestamp", m->time);
  e2b__json_key(w, "timestampUnix");
  e2b__json_i64(w, m->time.seconds);
  e2b__json_key(w, "cpuCount");
  e2b__json_i64(w, (int64_t)sysconf(_SC_NPROCESSORS_ONLN));
  e2b__json_key(w, "cpuUsedPct");
  e2b__json_raw(w, e2b__str(pct));
  e2b__json_key(w, "memUsed");
  e2b__json_i64(w, m->mem_used);
  e2b__json_key(w, "memTotal");
  e2b__json_i64(w, m->mem_total);
  e2b__json_key(w, "memCache");
  e2b__json_i64(w, m->mem_cache);
  e2b__json_key(w, "diskUsed");
  e2b__json_i64(w, m->disk_used);
  e2b__json_key(w, "diskTotal");
  e2b__json_i64(w, m->disk_total);
  e2b__json_end(w, '}');
}

/* The samples of its life, and one of now. */
static void sandbox_metrics(exchange *x, sandbox *s) {
  int64_t start, end;
  e2b__buf body;
  e2b__json_writer w;
  size_t i;
  if (!query_number(x, "start", 0, INT64_MAX, 0, &start)) return;
  if (!query_number(x, "end", 0, INT64_MAX, INT64_MAX, &end)) return;
  start = E2B__MAX(start, s->started.seconds);
  if (!s->paused) metric_take(&server.metrics[server.metric_count++ % METRICS_MAX]);
  e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
  w.out = &body;
  w.comma = false;
  e2b__json_begin(&w, '[');
  for (i = server.metric_count > METRICS_MAX ? server.metric_count - METRICS_MAX : 0; i < server.metric_count; i++) {
    const metric *m = &server.metrics[i % METRICS_MAX];
    if (m->time.seconds >= start && m->time.seconds <= end) json_metric(&w, m);
  }
  e2b__json_end(&w, ']');
  reply_buf(x, 200, "application/json; charset=utf-8", &body);
}

static int64_t log_ms(const log_entry *entry) {
  return entry->time.seconds * 1000 + entry->time.nanos / 1000000;
}

/* Which of them a call wants. */
typedef struct log_query {
  bool forward;
  int64_t limit, cursor; /* ms */
  int level;
  e2b__buf search;
} log_query;

static int log_level(const char *name) {
  static const char *const names[] = { "debug", "info", "warn", "error" };
  int i;
  for (i = 0; i < 4; i++)
    if (strcmp(names[i], name) == 0) return i;
  return -1;
}

static bool log_matches(const log_query *q, const log_entry *entry) {
  if (q->cursor && (q->forward ? log_ms(entry) < q->cursor : log_ms(entry) > q->cursor)) return false;
  return log_level(entry->level) >= q->level && (!q->search.len || strstr(entry->message, (char *)q->search.data));
}

static void json_log(e2b__json_writer *w, const log_entry *entry) {
  size_t i;
  e2b__json_begin(w, '{');
  json_time(w, "timestamp", entry->time);
  json_pair(w, "level", entry->level);
  json_pair(w, "message", entry->message);
  e2b__json_key(w, "fields");
  e2b__json_begin(w, '{');
  for (i = 0; i < entry->fields.count; i++) json_pair(w, entry->fields.items[i].key, entry->fields.items[i].value);
  e2b__json_end(w, '}');
  e2b__json_end(w, '}');
}

/* "name":[...] of the entries asked for; `old`: as the first version of the call has them. */
static void json_logs(e2b__json_writer *w, const char *name, const sandbox *s, const log_query *q, bool old) {
  const node *n = q->forward ? s->logs.next : s->logs.prev;
  int64_t left = q->limit;
  e2b__json_key(w, name);
  e2b__json_begin(w, '[');
  for (; n != &s->logs && left; n = q->forward ? n->next : n->prev) {
    const log_entry *entry = OWNER(n, log_entry, in_logs);
    if (!log_matches(q, entry)) continue;
    left--;
    if (old) {
      e2b__json_begin(w, '{');
      json_time(w, "timestamp", entry->time);
      json_pair(w, "line", entry->message);
      e2b__json_end(w, '}');
    } else {
      json_log(w, entry);
    }
  }
  e2b__json_end(w, ']');
}

static void reply_logs(exchange *x, const sandbox *s, const log_query *q, bool old) {
  e2b__buf body;
  e2b__json_writer w;
  e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
  w.out = &body;
  w.comma = false;
  e2b__json_begin(&w, '{');
  if (old) json_logs(&w, "logs", s, q, true);
  json_logs(&w, old ? "logEntries" : "logs", s, q, false);
  e2b__json_end(&w, '}');
  reply_buf(x, 200, "application/json; charset=utf-8", &body);
}

static void sandbox_logs_old(exchange *x, sandbox *s) {
  log_query q;
  memset(&q, 0, sizeof q);
  q.forward = true;
  if (query_number(x, "start", 0, INT64_MAX, 0, &q.cursor) && query_number(x, "limit", 0, INT64_MAX, 1000, &q.limit))
    reply_logs(x, s, &q, true);
}

static void sandbox_logs(exchange *x, sandbox *s) {
  log_query q;
  e2b__buf text;
  const char *wrong = NULL;
  memset(&q, 0, sizeof q);
  e2b__buf_init(&q.search, &server.mem, HEAD_MAX);
  e2b__buf_init(&text, &server.mem, HEAD_MAX);
  if (query_get(x, "direction", &text)) {
    q.forward = strcmp((char *)text.data, "forward") == 0;
    if (!q.forward && strcmp((char *)text.data, "backward") != 0) wrong = "direction";
  }
  if (query_get(x, "level", &text) && (q.level = log_level((char *)text.data)) < 0) wrong = "level";
  (void)query_get(x, "search", &q.search);
  if (q.search.len > 256) wrong = "search";
  if (wrong)
    reply_error(x, 400, "validation error: parameter \"%s\" in query has an error", wrong);
  else if (query_number(x, "cursor", 0, INT64_MAX, 0, &q.cursor) && query_number(x, "limit", 0, 1000, 1000, &q.limit))
    reply_logs(x, s, &q, false);
  e2b__buf_free(&text);
  e2b__buf_free(&q.search);
}

/* ---- snapshots ---- */

static void json_snapshot(e2b__json_writer *w, const snapshot *n) {
  char ref[256];
  snapshot_ref(n, ref);
  e2b__json_begin(w, '{');
  json_pair(w, "snapshotID", ref);
  e2b__json_key(w, "names");
  e2b__json_begin(w, '[');
  if (n->name) e2b__json_str(w, e2b__str(ref));
  e2b__json_end(w, ']');
  e2b__json_end(w, '}');
}

typedef struct snapshot_request {
  e2b_str name;
} snapshot_request;
static const e2b__field fields_snapshot_request[] = {
  E2B__FIELD(snapshot_request, name, "name", 0, STR),
};
static const e2b__message msg_snapshot_request = E2B__MESSAGE(snapshot_request, fields_snapshot_request);

static bool snapshot_word_ok(e2b_str word) {
  size_t i;
  for (i = 0; i < word.len; i++)
    if (!e2b__is_alnum(word.ptr[i]) && word.ptr[i] != '-' && word.ptr[i] != '_' && word.ptr[i] != '.') return false;
  return word.len < 64;
}

static void sandbox_snapshot(exchange *x, sandbox *s) {
  snapshot_request request;
  e2b__arena arena;
  e2b_str name, tag;
  snapshot *made, *old = NULL;
  e2b__arena_init(&arena, &server.mem, BODY_MAX);
  memset(&request, 0, sizeof request);
  if (e2b__json_decode(&msg_snapshot_request, (char *)x->body.data, x->body.len, &arena, &request) != E2B_OK) {
    reply_error(x, 400, "validation error: request body is not valid");
  } else if (snapshot_cut(request.name, &name, &tag), !snapshot_word_ok(name) || !snapshot_word_ok(tag)) {
    reply_error(x, 400, "invalid snapshot name");
  } else if (s->paused) {
    reply_error(x, 409, "sandbox \"%s\" is paused", s->id);
  } else {
    if (name.len) old = snapshot_find(request.name);
    made = snapshot_create(s, name, tag.len ? tag : e2b__str("default"));
    if (!made) {
      reply_error(x, 500, "cannot copy the sandbox's files");
    } else {
      e2b__buf body;
      e2b__json_writer w;
      if (old) snapshot_free(old);
      (void)sandbox_log(s, "info", "snapshot %s taken", made->id);
      e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
      w.out = &body;
      w.comma = false;
      json_snapshot(&w, made);
      reply_buf(x, 201, "application/json; charset=utf-8", &body);
    }
  }
  e2b__arena_free(&arena);
}

/* Newest first. */
static void reply_snapshots(exchange *x, const e2b__buf *sandbox_id, const e2b__buf *name, int64_t limit,
                            uint64_t after) {
  e2b__buf body;
  e2b__json_writer w;
  const node *at;
  const snapshot *last = NULL;
  e2b_str want, tag;
  int64_t count = 0;
  bool more = false;
  snapshot_cut(buf_str(name), &want, &tag);
  e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
  w.out = &body;
  w.comma = false;
  e2b__json_begin(&w, '[');
  for (at = server.snapshots.prev; at != &server.snapshots && !more; at = at->prev) {
    const snapshot *n = OWNER(at, snapshot, in_all);
    if (after && n->number >= after) continue;
    if (sandbox_id->len && !e2b__str_eq(buf_str(sandbox_id), n->sandbox_id)) continue;
    if (want.len && !snapshot_is(n, want, tag)) continue;
    more = count == limit;
    if (more) break;
    json_snapshot(&w, n);
    last = n;
    count++;
  }
  e2b__json_end(&w, ']');
  if (more) page_write(x, 's', last->number);
  reply_buf(x, 200, "application/json; charset=utf-8", &body);
}

static void snapshots_list(exchange *x) {
  e2b__buf sandbox_id, name, token;
  uint64_t after = 0;
  int64_t limit;
  e2b__buf_init(&sandbox_id, &server.mem, HEAD_MAX);
  e2b__buf_init(&name, &server.mem, HEAD_MAX);
  e2b__buf_init(&token, &server.mem, HEAD_MAX);
  (void)query_get(x, "sandboxID", &sandbox_id);
  (void)query_get(x, "name", &name);
  if (query_get(x, "nextToken", &token) && token.len && !page_read(&token, 's', &after))
    reply_error(x, 400, "validation error: parameter \"nextToken\" in query has an error");
  else if (query_number(x, "limit", 1, 100, 100, &limit))
    reply_snapshots(x, &sandbox_id, &name, limit, after);
  e2b__buf_free(&sandbox_id);
  e2b__buf_free(&name);
  e2b__buf_free(&token);
}

/* DELETE /templates/<snapshot id>; other templates cannot be deleted. */
static void template_delete(exchange *x) {
  e2b__buf ref;
  snapshot *n = NULL;
  e2b__buf_init(&ref, &server.mem, HEAD_MAX);
  if (percent_decode(e2b__str(x->path + strlen("/templates/")), false, &ref)) n = snapshot_find(buf_str(&ref));
  e2b__buf_free(&ref);
  if (!n) {
    reply_error(x, 404, "template not found");
  } else if (snapshot_in_use(n)) {
    reply_error(x, 400, "cannot delete the snapshot: there are sandboxes using it");
  } else {
    snapshot_free(n);
    reply_empty(x, 204);
  }
}

/* {id} in a path is a sandbox, which has to exist. */
static const struct {
  const char *method, *path;
  void (*run)(exchange *x);
  void (*run_on)(exchange *x, sandbox *s);
} control_routes[] = {
  { "POST", "/sandboxes", sandboxes_create, NULL },
  { "POST", "/v2/sandboxes", sandboxes_create, NULL },
  { "GET", "/sandboxes", sandboxes_list, NULL },
  { "GET", "/v2/sandboxes", sandboxes_list, NULL },
  { "GET", "/sandboxes/{id}", NULL, sandbox_get },
  { "DELETE", "/sandboxes/{id}", NULL, sandbox_delete },
  { "POST", "/sandboxes/{id}/timeout", NULL, sandbox_timeout },
  { "POST", "/sandboxes/{id}/refreshes", NULL, sandbox_refresh },
  { "POST", "/sandboxes/{id}/pause", NULL, sandbox_pause_call },
  { "POST", "/sandboxes/{id}/resume", NULL, sandbox_resume_call },
  { "POST", "/sandboxes/{id}/connect", NULL, sandbox_connect },
  { "POST", "/v2/sandboxes/{id}/connect", NULL, sandbox_connect },
  { "GET", "/sandboxes/{id}/metrics", NULL, sandbox_metrics },
  { "GET", "/sandboxes/{id}/logs", NULL, sandbox_logs_old },
  { "GET", "/v2/sandboxes/{id}/logs", NULL, sandbox_logs },
  { "PUT", "/sandboxes/{id}/network", NULL, sandbox_network },
  { "POST", "/sandboxes/{id}/snapshots", NULL, sandbox_snapshot },
  { "GET", "/snapshots", snapshots_list, NULL },
  { "DELETE", "/templates/{id}", template_delete, NULL },
};

/* Segment by segment; what stands for {id} goes to *id. */
static bool route_matches(const char *pattern, const char *path, e2b_str *id) {
  e2b_str a = e2b__str(pattern), b = e2b__str(path);
  id->len = 0;
  while (a.len && b.len) {
    e2b_str want = str_cut(&a, '/'), have = str_cut(&b, '/');
    if (e2b__str_eq(want, "{id}") && have.len) *id = have;
    else if (!str_same(want, have)) return false;
  }
  return a.len == 0 && b.len == 0;
}

/* [a-z0-9], perhaps with the old "-client" behind it, which is cut off. */
static bool sandbox_id_ok(e2b_str *id) {
  size_t i;
  const char *dash = id->len ? (const char *)memchr(id->ptr, '-', id->len) : NULL;
  if (dash) id->len = (size_t)(dash - id->ptr);
  for (i = 0; i < id->len; i++)
    if (!e2b__is_digit(id->ptr[i]) && (id->ptr[i] < 'a' || id->ptr[i] > 'z')) return false;
  return id->len > 0;
}

/* The whole request is there. */
static void control_answer(exchange *x) {
  e2b__buf decoded;
  sandbox *s;
  e2b_str id;
  size_t i;
  for (i = 0; i < E2B__COUNT(control_routes); i++)
    if (strcmp(control_routes[i].method, x->method) == 0 && route_matches(control_routes[i].path, x->path, &id)) break;
  if (i == E2B__COUNT(control_routes)) {
    reply_error(x, 404, "no matching operation was found: %s %s", x->method, x->path);
    return;
  }
  if (control_routes[i].run) {
    control_routes[i].run(x);
    return;
  }
  e2b__buf_init(&decoded, &server.mem, HEAD_MAX);
  if (percent_decode(id, false, &decoded)) id = buf_str(&decoded);
  s = sandbox_id_ok(&id) ? sandbox_find(id) : NULL;
  if (s) control_routes[i].run_on(x, s);
  else if (!sandbox_id_ok(&id)) reply_error(x, 400, "Invalid sandbox ID");
  else reply_error(x, 404, "sandbox \"%.*s\" doesn't exist or you don't have access to it", (int)id.len, id.ptr);
  e2b__buf_free(&decoded);
}

/* The head of a request to the control plane is there. */
static void control_begin(exchange *x) {
  const char *const *keys = (const char *const *)server.api_keys.items;
  const char *key = header(x, "x-api-key");
  size_t i = 0;
  if (strcmp(x->path, "/health") == 0) {
    reply_text(x, 200, "Health check successful\n");
    return;
  }
  while (key && i < server.api_keys.count && strcmp(keys[i], key) != 0) i++;
  if (!key || i == server.api_keys.count)
    reply_error(x, 401, "Unauthorized, please check your credentials: %s the header X-API-Key",
                key ? "this server does not know the key in" : "there is no key in");
  else
    answer_when_whole(x, control_answer);
}

/* ================================================================================================================== */
/* >>>> kruise */
/* ================================================================================================================== */

/* With --kruise: the control plane and the gateway of OpenKruise Agents, with their own paths, answers and errors. */

#define KRUISE_OWN "e2b.agents.kruise.io/"
#define KRUISE_LIFE_MAX_S 2592000
#define KRUISE_RESUME_MIN_S 300

/* The id of the request: the client's, or 32 hexadecimal digits. */
static void kruise_request_id(const exchange *x, char out[40]) {
  const char *given = header(x, "x-request-id");
  uint8_t random[16];
  size_t i;
  if (given && *given && strlen(given) < 40) {
    (void)snprintf(out, 40, "%s", given);
    return;
  }
  random_bytes(random, sizeof random);
  for (i = 0; i < sizeof random; i++) (void)snprintf(out + 2 * i, 3, "%02x", random[i]);
}

/* {"code":...,"headers":null,"message":...,"request_id":...}. The code is 0 where the handler thought of none: HTTP says 500. */
E2B__PRINTF(3, 4)
static void kruise_error(exchange *x, int code, const char *format, ...) {
  e2b__buf message, body;
  e2b__json_writer w;
  char id[40];
  va_list args;
  e2b__buf_init(&message, &server.mem, OUTPUT_MAX);
  e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
  va_start(args, format);
  buf_vprintf(&message, format, args);
  va_end(args);
  kruise_request_id(x, id);
  w.out = &body;
  w.comma = false;
  e2b__json_begin(&w, '{');
  e2b__json_key(&w, "code");
  e2b__json_i64(&w, code);
  e2b__json_key(&w, "headers");
  e2b__buf_text(&body, "null");
  w.comma = true;
  e2b__json_key(&w, "message");
  e2b__json_str(&w, buf_str(&message));
  json_pair(&w, "request_id", id);
  e2b__json_end(&w, '}');
  e2b__buf_byte(&body, '\n');
  e2b__buf_free(&message);
  reply_buf(x, code ? code : 500, "application/json", &body);
}

static void kruise_reply(exchange *x, int status, e2b__buf *body) {
  char id[40];
  kruise_request_id(x, id);
  reply_header(x, "X-Request-ID: %s", id);
  if (!body) {
    reply_empty(x, status);
    return;
  }
  e2b__buf_byte(body, '\n');
  reply_buf(x, status, "application/json", body);
}

/* ---- traffic tokens: JWT, HS256 with a secret of this run ---- */

static void base64url_put(e2b__buf *out, const void *data, size_t len) {
  size_t from = out->len, i;
  e2b__base64_encode(out, (const uint8_t *)data, len, false);
  for (i = from; i < out->len; i++) {
    if (out->data[i] == '+') out->data[i] = '-';
    if (out->data[i] == '/') out->data[i] = '_';
  }
}

/* HMAC-SHA-256 by its definition: mbedTLS has a function for it in 2.28 and 3.x, and another one in 4.x. */
static void hmac_sha256(const uint8_t key[32], const char *text, size_t len, uint8_t mac[32]) {
  uint8_t block[64], outer[64 + 32];
  e2b__buf inner;
  size_t i;
  for (i = 0; i < sizeof block; i++) {
    uint8_t byte = i < 32 ? key[i] : 0;
    block[i] = byte ^ 0x36;
    outer[i] = byte ^ 0x5c;
  }
  e2b__buf_init(&inner, &server.mem, HEAD_MAX * 4);
  e2b__buf_put(&inner, block, sizeof block);
  e2b__buf_put(&inner, text, len);
  (void)e2b__sha256(inner.data, inner.len, outer + 64);
  (void)e2b__sha256(outer, sizeof outer, mac);
  e2b__buf_free(&inner);
}

static void token_sign(const char *text, size_t len, e2b__buf *out) {
  uint8_t mac[32];
  hmac_sha256(server.secret, text, len, mac);
  base64url_put(out, mac, sizeof mac);
}

/* "trafficAccessToken" and its expiration, into an object. */
static void json_traffic_token(e2b__json_writer *w, const sandbox *s) {
  e2b__timestamp now = wall_clock(), until = now;
  e2b__buf token, claims;
  e2b__buf_init(&token, &server.mem, HEAD_MAX);
  e2b__buf_init(&claims, &server.mem, HEAD_MAX);
  until.nanos = 0;
  until.seconds += server.token_life_s;
  base64url_put(&token, "{\"alg\":\"HS256\",\"typ\":\"JWT\"}", 27);
  buf_printf(&claims, "{\"iss\":\"local_server\",\"sub\":\"%s\",\"iat\":%lld,\"nbf\":%lld,\"exp\":%lld,"
             "\"jti\":\"%llu\",\"sandbox\":{\"sandboxId\":\"%s\",\"sandboxUid\":\"%llu\"}}", s->id, (long long)now.seconds,
             (long long)now.seconds, (long long)until.seconds, (unsigned long long)++server.tokens_issued, s->id,
             (unsigned long long)s->number);
  e2b__buf_byte(&token, '.');
  base64url_put(&token, claims.data, claims.len);
  claims.len = 0;
  token_sign((char *)token.data, token.len, &claims);
  e2b__buf_byte(&token, '.');
  e2b__buf_str(&token, buf_str(&claims));
  e2b__json_key(w, "trafficAccessToken");
  e2b__json_str(w, buf_str(&token));
  json_time(w, "trafficAccessTokenExpiration", until);
  e2b__buf_free(&token);
  e2b__buf_free(&claims);
}

typedef struct token_claims {
  e2b_str subject;
  int64_t expires;
} token_claims;
static const e2b__field fields_token_claims[] = {
  E2B__FIELD(token_claims, subject, "sub", 0, STR),
  E2B__FIELD(token_claims, expires, "exp", 0, I64),
};
static const e2b__message msg_token_claims = E2B__MESSAGE(token_claims, fields_token_claims);

/* Signed here, for this sandbox, and not expired. */
static bool token_good(const char *token, const sandbox *s) {
  const char *end = strrchr(token, '.'), *dot = strchr(token, '.');
  e2b__buf text;
  e2b__arena arena;
  token_claims claims;
  size_t len;
  bool good;
  if (!end || dot == end) return false;
  e2b__buf_init(&text, &server.mem, HEAD_MAX);
  e2b__arena_init(&arena, &server.mem, BODY_MAX);
  token_sign(token, (size_t)(end - token), &text);
  good = e2b__str_eq(buf_str(&text), end + 1);
  text.len = 0;
  e2b__buf_put(&text, dot + 1, (size_t)(end - dot - 1));
  good = good && e2b__base64_decode_in_place((char *)text.data, text.len, &len) &&
         e2b__json_decode(&msg_token_claims, (char *)text.data, len, &arena, &claims) == E2B_OK &&
         e2b__str_eq(claims.subject, s->id) && claims.expires > wall_clock().seconds;
  e2b__arena_free(&arena);
  e2b__buf_free(&text);
  return good;
}

/* ---- sandboxes in JSON ---- */

static void json_kruise_time(e2b__json_writer *w, const char *key, e2b__timestamp t) {
  t.nanos = 0;
  json_time(w, key, t);
}

/* The host of the request: under /kruise it is the domain of all sandboxes. */
static e2b_str kruise_domain(const exchange *x) {
  e2b_str host = e2b__str(header(x, "host"));
  if (host.len && host.ptr[host.len - 1] == '.') host.len--;
  return host;
}

static void json_kruise(e2b__json_writer *w, const exchange *x, const sandbox *s, sandbox_view view) {
  pairs shown;
  char resource[64];
  size_t i;
  memset(&shown, 0, sizeof shown);
  for (i = 0; i < s->metadata.count; i++) pairs_set(&shown, s->metadata.items[i].key, s->metadata.items[i].value);
  (void)snprintf(resource, sizeof resource, "default/%s", s->id + 9); /* without "default--" */
  pairs_set(&shown, KRUISE_OWN "sandbox-resource", resource);
  e2b__json_begin(w, '{');
  json_pair(w, "templateID", s->template_id);
  json_pair(w, "sandboxID", s->id);
  json_pair(w, "alias", "");
  json_pair(w, "clientID", "");
  json_pair(w, "envdVersion", KRUISE_ENVD_VERSION);
  if (view != VIEW_LISTED) json_pair(w, "envdAccessToken", s->token);
  if (view == VIEW_CREATED && s->jwt) json_traffic_token(w, s);
  e2b__json_key(w, "domain");
  e2b__json_str(w, kruise_domain(x));
  json_kruise_time(w, "startedAt", s->started);
  if (s->never_ends) json_pair(w, "endAt", "0001-01-01T00:00:00Z");
  else json_kruise_time(w, "endAt", s->ends);
  e2b__json_key(w, "cpuCount");
  e2b__json_i64(w, 0); /* half a CPU, in whole ones */
  e2b__json_key(w, "memoryMB");
  e2b__json_i64(w, 512);
  e2b__json_key(w, "diskSizeMB");
  e2b__json_i64(w, 0);
  e2b__json_kvs(w, "metadata", pairs_view(&shown));
  json_pair(w, "state", s->paused ? "paused" : "running");
  e2b__json_end(w, '}');
  pairs_free(&shown);
}

static void kruise_reply_sandbox(exchange *x, int status, const sandbox *s, sandbox_view view) {
  e2b__buf body;
  e2b__json_writer w;
  e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
  w.out = &body;
  w.comma = false;
  json_kruise(&w, x, s, view);
  kruise_reply(x, status, &body);
}

/* ---- calls ---- */

/* A Kubernetes qualified name: [DNS subdomain/]name. */
static bool qualified_name_ok(const char *key) {
  const char *slash = strchr(key, '/'), *name = slash ? slash + 1 : key, *at;
  size_t len = strlen(name);
  for (at = key; slash && at < slash; at++)
    if (!e2b__is_digit(*at) && (*at < 'a' || *at > 'z') && *at != '-' && *at != '.') return false;
  for (at = name; *at; at++)
    if (!e2b__is_alnum(*at) && !strchr("-_.", *at)) return false;
  return slash != key && len > 0 && len <= 63 && e2b__is_alnum(name[0]) && e2b__is_alnum(name[len - 1]);
}

/* Decodes the body. What is malformed was not thought of: 500, code 0. */
static bool kruise_read(exchange *x, e2b__arena *arena, life_request *out) {
  e2b__arena_init(arena, &server.mem, BODY_MAX);
  if (e2b__json_decode(&msg_life_request, (char *)x->body.data, x->body.len, arena, out) == E2B_OK) return true;
  kruise_error(x, 0, "%s", x->body.len ? "invalid character in request body" : "EOF");
  return false;
}

/* Takes metadata over: keys of its own are extensions, the others annotations. False: failed, and answered. */
static bool kruise_metadata(exchange *x, sandbox *s) {
  size_t i = 0;
  while (i < s->metadata.count) {
    e2b_kv item = s->metadata.items[i];
    bool own = strncmp(item.key, KRUISE_OWN, strlen(KRUISE_OWN)) == 0;
    if (!own && (!qualified_name_ok(item.key) || strncmp(item.key, "agents.kruise.io/", 17) == 0)) {
      kruise_error(x, 400, "Forbidden metadata key [%s]: must be a qualified name outside agents.kruise.io", item.key);
      return false;
    }
    if (own && strcmp(item.key + strlen(KRUISE_OWN), "never-timeout") == 0) s->never_ends = strcmp(item.value, "true") == 0;
    else if (own) {
      kruise_error(x, 400, "Forbidden metadata key [%s]: this server does not have that extension", item.key);
      return false;
    }
    if (strcmp(item.key, E2B_JWT_AUTH_METADATA_KEY) == 0) s->jwt = strcmp(item.value, "true") == 0;
    if (own) pairs_remove(&s->metadata, i);
    else i++;
  }
  if (s->never_ends) timer_stop(&s->life);
  return true;
}

static void kruise_create(exchange *x, sandbox *unused) {
  e2b__arena arena;
  life_request request;
  sandbox *s = NULL;
  char token[33];
  bool ok = kruise_read(x, &arena, &request);
  E2B__UNUSED(unused);
  if (ok && request.timeout && (request.timeout < 30 || request.timeout > KRUISE_LIFE_MAX_S)) {
    kruise_error(x, 400, "timeout should between 30 and %d", KRUISE_LIFE_MAX_S);
  } else if (ok && !template_known(request.template_id)) {
    kruise_error(x, 400, "Template %.*s not found", (int)request.template_id.len,
                 request.template_id.len ? request.template_id.ptr : "");
  } else if (ok) {
    s = sandbox_create(arena_text(&arena, request.template_id), request.timeout ? request.timeout : 300);
    if (!s) kruise_error(x, 0, "cannot make a home directory in %s: %s", server.root, errno_text(errno));
  }
  if (s && (!pairs_set_all(&s->metadata, &request.metadata, &arena) || !pairs_set_all(&s->env, &request.env, &arena))) {
    sandbox_kill(s);
    s = NULL;
    kruise_error(x, 0, "metadata or envVars are too many, or have a NUL character in them");
  }
  if (s && !kruise_metadata(x, s)) {
    sandbox_kill(s);
    s = NULL;
  }
  if (s) {
    s->auto_pause = request.auto_pause;
    random_name(token, 32);
    s->token = xdup(token); /* always */
    kruise_reply_sandbox(x, 201, s, VIEW_CREATED);
  }
  e2b__arena_free(&arena);
}

static void kruise_get(exchange *x, sandbox *s) {
  kruise_reply_sandbox(x, 200, s, VIEW_DETAIL);
}

static void kruise_delete(exchange *x, sandbox *s) {
  sandbox_kill(s);
  kruise_reply(x, 204, NULL);
}

static void kruise_timeout(exchange *x, sandbox *s) {
  e2b__arena arena;
  life_request request;
  bool ok = kruise_read(x, &arena, &request);
  if (ok && (request.timeout < 1 || request.timeout > KRUISE_LIFE_MAX_S)) {
    kruise_error(x, 0, "timeout should between 1 and %d", KRUISE_LIFE_MAX_S);
  } else if (ok && s->paused) {
    kruise_error(x, 0, "sandbox %s is not running", s->id);
  } else if (ok) {
    sandbox_set_life(s, request.timeout);
    kruise_reply(x, 204, NULL);
  }
  e2b__arena_free(&arena);
}

static void kruise_pause(exchange *x, sandbox *s) {
  if (!s->paused) sandbox_pause(s);
  kruise_reply(x, 204, NULL);
}

/* Connect says what it found, resume nothing. */
static void kruise_wake(exchange *x, sandbox *s, bool connect) {
  e2b__arena arena;
  life_request request;
  bool ok = kruise_read(x, &arena, &request), resumed = s->paused;
  if (ok && (request.timeout < 1 || request.timeout > KRUISE_LIFE_MAX_S)) {
    kruise_error(x, connect ? 400 : 0, "timeout should between 1 and %d", KRUISE_LIFE_MAX_S);
  } else if (ok) {
    if (resumed) sandbox_resume(s, E2B__MAX(request.timeout, (int64_t)KRUISE_RESUME_MIN_S));
    else if (!s->never_ends) sandbox_extend_life(s, request.timeout);
    if (connect) kruise_reply_sandbox(x, resumed ? 201 : 200, s, VIEW_DETAIL); /* without a traffic token */
    else kruise_reply(x, 204, NULL);
  }
  e2b__arena_free(&arena);
}

static void kruise_connect(exchange *x, sandbox *s) {
  kruise_wake(x, s, true);
}

static void kruise_resume(exchange *x, sandbox *s) {
  kruise_wake(x, s, false);
}

static void kruise_traffic_token(exchange *x, sandbox *s) {
  e2b__buf body;
  e2b__json_writer w;
  if (!s->jwt) {
    kruise_error(x, 409, "sandbox %s has not enabled JWT auth", s->id);
    return;
  }
  e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
  w.out = &body;
  w.comma = false;
  e2b__json_begin(&w, '{');
  json_traffic_token(&w, s);
  e2b__json_end(&w, '}');
  kruise_reply(x, 200, &body);
}

/* Decoded twice, the query's layer included, then cut: no key or value can have a '&' in it. */
static bool kruise_filter(e2b__buf *text, pairs *out) {
  e2b__buf whole;
  e2b_str rest;
  bool ok;
  e2b__buf_init(&whole, &server.mem, HEAD_MAX);
  ok = percent_decode(buf_str(text), true, &whole) && e2b__buf_cstr(&whole);
  rest = buf_str(&whole);
  while (ok && rest.len) {
    e2b_str value = str_cut(&rest, '&'), key = str_cut(&value, '=');
    ((char *)(uintptr_t)key.ptr)[key.len] = 0;
    ((char *)(uintptr_t)value.ptr)[value.len] = 0;
    pairs_set(out, key.ptr, value.ptr);
  }
  e2b__buf_free(&whole);
  return ok;
}

/* Names that mean nothing else are metadata to be filtered by. */
static void kruise_filter_names(const exchange *x, pairs *out) {
  static const char *const known[] = { "metadata", "state", "limit", "nextToken" };
  e2b_str rest = e2b__str(x->query);
  e2b__buf key, value;
  e2b__buf_init(&key, &server.mem, HEAD_MAX);
  e2b__buf_init(&value, &server.mem, HEAD_MAX);
  while (rest.len) {
    e2b_str right = str_cut(&rest, '&'), left = str_cut(&right, '=');
    size_t i;
    for (i = 0; i < E2B__COUNT(known) && !e2b__str_eq(left, known[i]); i++) {}
    key.len = value.len = 0;
    if (i == E2B__COUNT(known) && percent_decode(left, true, &key) && percent_decode(right, true, &value) &&
        e2b__buf_cstr(&key) && e2b__buf_cstr(&value))
      pairs_set(out, (char *)key.data, (char *)value.data);
  }
  e2b__buf_free(&key);
  e2b__buf_free(&value);
}

/* False: failed, and answered. */
static bool kruise_list_query(exchange *x, e2b__buf *text, list_query *q) {
  const char *wrong = NULL;
  int64_t number;
  q->running = q->paused = q->ascending = q->paged = true;
  q->limit = 100;
  if (query_get(x, "state", text) && text->len) {
    e2b_str rest = buf_str(text);
    q->running = q->paused = false;
    while (rest.len) {
      e2b_str state = str_cut(&rest, ',');
      if (e2b__str_eq(state, "running")) q->running = true;
      else if (e2b__str_eq(state, "paused")) q->paused = true;
      else wrong = "state";
    }
  }
  if (query_get(x, "limit", text) && (!parse_i64((char *)text->data, &q->limit) || q->limit < 1 || q->limit > 100))
    wrong = "limit";
  if (query_get(x, "nextToken", text) && text->len) {
    size_t len = 0;
    if (!e2b__base64_decode_in_place((char *)text->data, text->len, &len)) len = 0;
    text->data[len] = 0;
    if (!parse_i64((char *)text->data, &number) || number < 1) wrong = "nextToken";
    else q->after = (uint64_t)number;
  }
  if (query_get(x, "metadata", text) && !kruise_filter(text, &q->metadata)) wrong = "metadata";
  kruise_filter_names(x, &q->metadata);
  if (wrong) kruise_error(x, 400, "invalid %s", wrong);
  return !wrong;
}

static void kruise_list(exchange *x, sandbox *unused) {
  list_query q;
  e2b__buf text, body;
  e2b__json_writer w;
  node *n;
  int64_t count = 0;
  uint64_t last = 0;
  bool ok, more = false;
  E2B__UNUSED(unused);
  memset(&q, 0, sizeof q);
  e2b__buf_init(&text, &server.mem, HEAD_MAX);
  e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
  w.out = &body;
  w.comma = false;
  ok = kruise_list_query(x, &text, &q);
  e2b__json_begin(&w, '[');
  for (n = server.sandboxes.next; ok && n != &server.sandboxes && !more; n = n->next) { /* oldest first */
    const sandbox *s = OWNER(n, sandbox, in_all);
    if (!list_matches(&q, s) || s->number <= q.after) continue;
    more = count == q.limit;
    if (more) continue;
    json_kruise(&w, x, s, VIEW_LISTED);
    last = s->number;
    count++;
  }
  e2b__json_end(&w, ']');
  if (more) {
    text.len = 0;
    e2b__buf_u64(&text, last);
    e2b__buf_text(&x->extra, "x-next-token: ");
    base64url_put(&x->extra, text.data, text.len);
    e2b__buf_text(&x->extra, "\r\n");
  }
  if (ok) kruise_reply(x, 200, &body);
  else e2b__buf_free(&body);
  e2b__buf_free(&text);
  pairs_free(&q.metadata);
}

/* Every route also answers for the paths below it; the longest that fits is it. */
static const struct {
  const char *method, *path;
  void (*run)(exchange *x, sandbox *s);
} kruise_routes[] = {
  { "POST", "/sandboxes/{id}/timeout", kruise_timeout },
  { "POST", "/sandboxes/{id}/pause", kruise_pause },
  { "POST", "/sandboxes/{id}/resume", kruise_resume },
  { "POST", "/sandboxes/{id}/connect", kruise_connect },
  { "POST", "/sandboxes/{id}/traffic-access-token", kruise_traffic_token },
  { "GET", "/sandboxes/{id}", kruise_get },
  { "DELETE", "/sandboxes/{id}", kruise_delete },
  { "POST", "/sandboxes", kruise_create },
  { "GET", "/v2/sandboxes", kruise_list },
};

static bool kruise_matches(const char *pattern, const char *path, e2b_str *id) {
  e2b_str a = e2b__str(pattern), b = e2b__str(path);
  id->len = 0;
  while (a.len) {
    e2b_str want = str_cut(&a, '/'), have = str_cut(&b, '/');
    if (e2b__str_eq(want, "{id}") && have.len) *id = have;
    else if (!str_same(want, have)) return false;
  }
  return true;
}

/* The whole request is there, and its key was good. */
static void kruise_answer(exchange *x) {
  const char *allow = NULL;
  e2b__buf decoded;
  e2b_str id;
  sandbox *s = NULL;
  size_t i;
  for (i = 0; i < E2B__COUNT(kruise_routes); i++) {
    if (!kruise_matches(kruise_routes[i].path, x->path, &id)) continue;
    if (strcmp(kruise_routes[i].method, x->method) == 0) break;
    if (!allow && !strstr(kruise_routes[i].path, "{id}")) allow = kruise_routes[i].method;
  }
  if (i == E2B__COUNT(kruise_routes)) {
    if (allow) reply_header(x, "Allow: %s", allow);
    reply_text(x, allow ? 405 : 404, allow ? "Method Not Allowed\n" : "404 page not found\n");
    return;
  }
  e2b__buf_init(&decoded, &server.mem, HEAD_MAX);
  if (id.len && percent_decode(id, false, &decoded)) s = sandbox_find(buf_str(&decoded));
  if (id.len && !s) kruise_error(x, 404, "sandbox owned by user %s not found", decoded.len ? (char *)e2b__buf_cstr(&decoded) : "");
  else kruise_routes[i].run(x, s);
  e2b__buf_free(&decoded);
}

/* ---- the key, and the gateway ---- */

/* Whether `given` is `key`, or the form of it that E2B's clients accept. */
static bool kruise_key_is(const char *key, const char *given) {
  char encoded[2200];
  size_t len = e2b_encode_for_e2b_sdk(key, encoded, sizeof encoded);
  return strcmp(key, given) == 0 || (len > 0 && len < sizeof encoded && strcmp(encoded, given) == 0);
}

static void kruise_begin(exchange *x) {
  const char *const *keys = (const char *const *)server.api_keys.items;
  const char *key = header(x, "x-api-key");
  size_t i = 0;
  while (key && i < server.api_keys.count && !kruise_key_is(keys[i], key)) i++;
  if (!key || i == server.api_keys.count) kruise_error(x, 401, "Invalid API Key");
  else answer_when_whole(x, kruise_answer);
}

/* Lets a request through to a port of a sandbox? False: it was answered. */
static bool kruise_gateway(exchange *x, const sandbox *s, e2b_str id, int64_t port) {
  const char *token = header(x, "x-access-token"), *traffic = header(x, E2B_TRAFFIC_TOKEN_HEADER);
  e2b__buf text;
  if (s && !s->paused) {
    if (s->jwt ? traffic && token_good(traffic, s) : port != ENVD_PORT || (token && strcmp(token, s->token) == 0)) return true;
    if (s->jwt) reply_text(x, 403, "forbidden: invalid or missing traffic access token\n");
    else reply_text(x, 401, "unauthorized: invalid or missing access token\n");
    return false;
  }
  e2b__buf_init(&text, &server.mem, HEAD_MAX);
  buf_printf(&text, "%ssandbox not found: %.*s\n", s ? "healthy " : "", (int)id.len, id.ptr);
  reply_text(x, 502, (char *)e2b__buf_cstr(&text));
  e2b__buf_free(&text);
  return false;
}

/* ================================================================================================================== */
/* >>>> relay */
/* ================================================================================================================== */

/* A request for a port of a sandbox, handed on to the server that listens there, on a connection of its own. */
typedef struct relay {
  exchange *x;
  uint16_t port;
  watch upstream;
  timer retry;
  int tries;
  bool connecting, connected, chunked; /* chunked: the request's body */
  e2b__buf out; /* of the request, not sent yet */
  size_t out_at;
  e2b__h1 h1;
} relay;

/* ---- who listens ---- */

#define RELAY_SOCKETS 16

/* Listening sockets of a port of this machine. */
typedef struct listeners {
  unsigned long inodes[RELAY_SOCKETS];
  bool ipv6[RELAY_SOCKETS];
  int count;
} listeners;

static void listeners_read(listeners *l, const char *path, bool ipv6, uint16_t port) {
  char line[512];
  FILE *file = fopen(path, "re");
  while (file && l->count < RELAY_SOCKETS && fgets(line, sizeof line, file)) {
    unsigned local_port, state;
    unsigned long inode;
    if (sscanf(line, " %*d: %*[0-9A-Fa-f]:%x %*[0-9A-Fa-f]:%*x %x %*s %*s %*s %*s %*s %lu", &local_port, &state,
               &inode) != 3)
      continue;
    if (local_port != port || state != 10) continue;
    l->ipv6[l->count] = ipv6;
    l->inodes[l->count++] = inode;
  }
  if (file) (void)fclose(file);
}

/* Whether a process belongs to a sandbox: by its environment, or by its session. */
static bool sandbox_has_process(const sandbox *s, pid_t pid) {
  char mark[64], name[64];
  const node *n;
  pid_t session = getsid(pid);
  size_t len;
  for (n = s->processes.next; n != &s->processes; n = n->next)
    if (OWNER(n, process, in_sandbox)->pid == session && !OWNER(n, process, in_sandbox)->reaped) return true;
  (void)snprintf(mark, sizeof mark, "E2B_SANDBOX_ID=%s", s->id);
  (void)snprintf(name, sizeof name, "/proc/%ld/environ", (long)pid);
  len = read_text(name, server.chunk, sizeof server.chunk);
  return len && memmem(server.chunk, len, mark, strlen(mark) + 1) != NULL;
}

/* Which of the sockets a process has open; -1 = none. */
static int listeners_of(const listeners *l, pid_t pid) {
  char name[300], link[64];
  struct dirent *entry;
  DIR *dir;
  int found = -1, i;
  (void)snprintf(name, sizeof name, "/proc/%ld/fd", (long)pid);
  dir = opendir(name);
  while (dir && found < 0 && (entry = readdir(dir)) != NULL) {
    unsigned long inode;
    ssize_t len;
    (void)snprintf(name, sizeof name, "/proc/%ld/fd/%.20s", (long)pid, entry->d_name);
    len = readlink(name, link, sizeof link - 1);
    if (len <= 0) continue;
    link[len] = 0;
    if (sscanf(link, "socket:[%lu]", &inode) != 1) continue;
    for (i = 0; i < l->count && found < 0; i++)
      if (l->inodes[i] == inode) found = i;
  }
  if (dir) (void)closedir(dir);
  return found;
}

/* Sandboxes share the ports of this machine; a port is a sandbox's when one of its processes listens there. */
static bool sandbox_listens(const sandbox *s, uint16_t port, bool *ipv6) {
  listeners l;
  struct dirent *entry;
  DIR *proc;
  int found = -1;
  memset(&l, 0, sizeof l);
  listeners_read(&l, "/proc/net/tcp", false, port);
  listeners_read(&l, "/proc/net/tcp6", true, port);
  if (!l.count || !s->used) return false;
  proc = opendir("/proc");
  while (proc && found < 0 && (entry = readdir(proc)) != NULL) {
    pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
    if (pid > 0 && pid != getpid() && sandbox_has_process(s, pid)) found = listeners_of(&l, pid);
  }
  if (proc) (void)closedir(proc);
  if (found >= 0) *ipv6 = l.ipv6[found];
  return found >= 0;
}

/* ---- the answer ---- */

static void reply_edge_error(exchange *x, e2b_str id, const char *message, int64_t port);

static void relay_hang_up(relay *r) {
  timer_stop(&r->retry);
  watch_close(&r->upstream);
}

/* There is no answer, or no more of it. */
static void relay_fail(relay *r) {
  exchange *x = r->x;
  relay_hang_up(r);
  if (x->answered) return;
  if (x->head_sent) conn_break(x->conn);
  else if (r->connected) reply_text(x, 502, "the server in the sandbox gave no valid answer\n");
  else reply_edge_error(x, e2b__str(x->sandbox->id), "The sandbox is running but port is not open", r->port);
}

/* Headers that are about one connection, or that we write ourselves. */
static bool relay_drops(e2b_str name, const e2b__headers *all) {
  static const char *const names[] = { "connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade",
    "proxy-authenticate", "proxy-authorization", "proxy-connection", "content-length", "content-type", "date" };
  size_t i;
  for (i = 0; i < E2B__COUNT(names); i++)
    if (e2b__str_eq(name, names[i])) return true;
  return e2b__headers_has_token(all, "connection", name.ptr);
}

static e2b_err relay_on_head(void *owner, int status, const e2b__headers *headers) {
  exchange *x = ((relay *)owner)->x;
  const char *length = e2b__headers_get(headers, "content-length");
  e2b_str name, value;
  size_t cursor = 0;
  int64_t len = LENGTH_UNKNOWN;
  if (length && !parse_i64(length, &len)) return E2B_ERR_PROTOCOL;
  if (status == 204 || status == 304 || (x->head_only && !length)) len = LENGTH_NONE;
  while (e2b__headers_next(headers, &cursor, &name, &value))
    if (!relay_drops(name, headers)) reply_header(x, "%s: %s", name.ptr, value.ptr);
  reply_head(x, status, e2b__headers_get(headers, "content-type"), len);
  return E2B_OK;
}

static e2b_err relay_on_body(void *owner, const uint8_t *data, size_t len) {
  reply_chunk(((relay *)owner)->x, data, len);
  return E2B_OK;
}

static const e2b__h1_events relay_events = { relay_on_head, relay_on_body };

static void relay_want(relay *r) {
  bool room = conn_pending(r->x->conn) < OUTPUT_HIGH, more = r->connecting || r->out_at < r->out.len;
  if (!room) r->x->stalled = true; /* drain will be called */
  if (!watch_want(&r->upstream, (uint32_t)((room ? EPOLLIN : 0) | (more ? EPOLLOUT : 0)))) relay_fail(r);
}

static void relay_read(relay *r) {
  size_t used;
  ssize_t n = recv(r->upstream.fd, server.chunk, sizeof server.chunk, 0);
  e2b_err code;
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n > 0) code = e2b__h1_feed(&r->h1, (const uint8_t *)server.chunk, (size_t)n, &used);
  else code = n == 0 ? e2b__h1_finish(&r->h1) : E2B_ERR_CLOSED;
  if (code) {
    relay_fail(r);
  } else if (r->h1.complete) {
    relay_hang_up(r);
    reply_end(r->x);
  }
}

/* ---- the request ---- */

static void relay_write(relay *r) {
  ssize_t n;
  while (r->connected && r->out_at < r->out.len) {
    n = send(r->upstream.fd, r->out.data + r->out_at, r->out.len - r->out_at, MSG_NOSIGNAL);
    if (n <= 0) break; /* an answer may be there all the same: reading tells */
    r->out_at += (size_t)n;
  }
  if (r->out_at == r->out.len) r->out.len = r->out_at = 0;
  if (r->out.len - r->out_at < OUTPUT_LOW && r->x->full) {
    r->x->full = false;
    conn_touch(r->x->conn);
  }
}

static void relay_ready(watch *w, uint32_t events) {
  relay *r = OWNER(w, relay, upstream);
  int error = 0;
  socklen_t len = sizeof error;
  if (r->connecting) {
    if (getsockopt(w->fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0 || error) {
      relay_fail(r);
      return;
    }
    r->connecting = false;
    r->connected = true;
  }
  relay_write(r);
  if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) relay_read(r);
  if (w->fd >= 0) relay_want(r);
}

static bool relay_connect(relay *r, bool ipv6) {
  struct sockaddr_storage to;
  socklen_t len;
  int fd = socket(ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  memset(&to, 0, sizeof to);
  if (ipv6) {
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&to;
    in6->sin6_family = AF_INET6;
    in6->sin6_addr = in6addr_loopback;
    in6->sin6_port = htons(r->port);
    len = sizeof *in6;
  } else {
    struct sockaddr_in *in = (struct sockaddr_in *)&to;
    in->sin_family = AF_INET;
    in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    in->sin_port = htons(r->port);
    len = sizeof *in;
  }
  if (fd < 0) return false;
  if (connect(fd, (struct sockaddr *)&to, len) != 0 && errno != EINPROGRESS) {
    (void)close(fd);
    return false;
  }
  watch_init(&r->upstream, fd, relay_ready);
  r->connecting = true;
  relay_want(r);
  return true;
}

/* Tries a few times: perhaps the server is just starting. */
static void relay_dial(timer *t) {
  relay *r = OWNER(t, relay, retry);
  bool ipv6;
  if (sandbox_listens(r->x->sandbox, r->port, &ipv6) && relay_connect(r, ipv6)) return;
  if (++r->tries < DIAL_TRIES) timer_set(&r->retry, now_ms() + DIAL_EVERY_MS, relay_dial);
  else relay_fail(r);
}

/* Hands a piece of the body on. */
static void relay_body(exchange *x, const char *data, size_t len) {
  relay *r = (relay *)x->state;
  if (r->chunked) buf_printf(&r->out, "%zx\r\n", len);
  e2b__buf_put(&r->out, data, len);
  if (r->chunked) e2b__buf_text(&r->out, "\r\n");
  if (r->out.err) {
    reply_error(x, 413, "no room for the request");
    relay_hang_up(r);
    return;
  }
  relay_write(r);
  if (r->out.len - r->out_at >= OUTPUT_HIGH) x->full = true;
  if (r->connected && r->upstream.fd >= 0) relay_want(r);
}

static void relay_end(exchange *x) {
  relay *r = (relay *)x->state;
  if (!r->chunked) return;
  e2b__buf_text(&r->out, "0\r\n\r\n");
  relay_write(r);
  if (r->connected && r->upstream.fd >= 0) relay_want(r);
}

static void relay_drain(exchange *x) {
  relay *r = (relay *)x->state;
  if (r->upstream.fd >= 0) relay_want(r);
}

static void relay_hangup(exchange *x) {
  conn_break(x->conn);
}

static void relay_gone(exchange *x) {
  relay *r = (relay *)x->state;
  relay_hang_up(r);
  e2b__h1_free(&r->h1);
  e2b__buf_free(&r->out);
  free(r);
}

static const handler relay_handler = { relay_body, relay_end, relay_drain, relay_hangup, relay_gone };

/* The request as the server in the sandbox sees it. */
static void relay_put_head(relay *r) {
  exchange *x = r->x;
  const char *length = header(x, "content-length"), *type = header(x, "content-type"), *host = header(x, "host");
  e2b_str name, value;
  size_t cursor = 0;
  if (x->sandbox->mask_host) host = x->sandbox->mask_host;
  r->chunked = header(x, "transfer-encoding") != NULL;
  buf_printf(&r->out, "%s %s%s%s HTTP/1.1\r\nhost: %s\r\nconnection: close\r\n", x->method, x->path,
             x->query[0] ? "?" : "", x->query, host ? host : "localhost");
  while (e2b__headers_next(&x->headers, &cursor, &name, &value)) {
    if (relay_drops(name, &x->headers) || e2b__str_eq(name, "host") || e2b__str_eq(name, "expect") ||
        e2b__str_eq(name, "e2b-traffic-access-token"))
      continue;
    buf_printf(&r->out, "%s: %s\r\n", name.ptr, value.ptr);
  }
  if (type) buf_printf(&r->out, "content-type: %s\r\n", type);
  if (length && !r->chunked) buf_printf(&r->out, "content-length: %s\r\n", length);
  if (r->chunked) e2b__buf_text(&r->out, "transfer-encoding: chunked\r\n");
  e2b__buf_text(&r->out, "\r\n");
}

/* The head of a request for a port of x->sandbox is there. */
static void relay_begin(exchange *x, uint16_t port) {
  const char *token = header(x, "e2b-traffic-access-token");
  relay *r;
  if (x->sandbox->traffic_token && (!token || strcmp(token, x->sandbox->traffic_token) != 0)) {
    reply_error(x, 403, "%s traffic access token for sandbox \"%s\"", token ? "invalid" : "missing", x->sandbox->id);
    return;
  }
  r = (relay *)xalloc(sizeof *r);
  r->x = x;
  r->port = port;
  r->upstream.fd = -1;
  e2b__buf_init(&r->out, &server.mem, OUTPUT_MAX);
  e2b__h1_init(&r->h1, &server.mem, HEAD_MAX, &relay_events, r);
  e2b__h1_begin(&r->h1, x->head_only, false);
  x->state = r;
  x->handler = &relay_handler;
  x->relayed = true;
  relay_put_head(r);
  relay_dial(&r->retry);
}

/* ================================================================================================================== */
/* >>>> routing */
/* ================================================================================================================== */

/* {"sandboxId":...,"message":...,"port":...,"code":502}: what E2B's edge says. port 0 = not about a port. */
static void reply_edge_error(exchange *x, e2b_str id, const char *message, int64_t port) {
  e2b__buf body;
  e2b__json_writer w;
  e2b__buf_init(&body, &server.mem, OUTPUT_MAX);
  w.out = &body;
  w.comma = false;
  e2b__json_begin(&w, '{');
  e2b__json_key(&w, "sandboxId");
  e2b__json_str(&w, id);
  json_pair(&w, "message", message);
  if (port) e2b__json_key(&w, "port");
  if (port) e2b__json_i64(&w, port);
  e2b__json_key(&w, "code");
  e2b__json_i64(&w, 502);
  e2b__json_end(&w, '}');
  reply_buf(x, 502, "application/json; charset=utf-8", &body);
}

/* Where a request wants to go. */
typedef struct destination {
  e2b_str id;      /* empty = the control plane */
  e2b_str port;
} destination;

/* /kruise/<id>/<port>/..., the private protocol of OpenKruise */
static bool route_by_kruise_path(exchange *x, destination *to) {
  e2b_str rest = e2b__str(x->path);
  if (strncmp(x->path, "/kruise/", 8) != 0 || strncmp(x->path, "/kruise/api/", 12) == 0) return false;
  (void)str_cut(&rest, '/');
  (void)str_cut(&rest, '/');
  to->id = str_cut(&rest, '/');
  to->port = str_cut(&rest, '/');
  x->path = to->port.ptr[to->port.len] ? (const char *)to->port.ptr + to->port.len : "/";
  return true;
}

/* <port>-<id>.<anything> */
static bool route_by_host(const exchange *x, destination *to) {
  e2b_str host = e2b__str(header(x, "host")), label = str_cut(&host, '.'), port = str_cut(&label, '-');
  size_t i;
  if (!host.len || !label.len || !port.len) return false;
  for (i = 0; i < port.len; i++)
    if (!e2b__is_digit(port.ptr[i])) return false;
  to->id = label;
  to->port = port;
  return true;
}

/* /<id>/..., when such a sandbox lives: a base URL for sandboxes with the id appended. Such requests name their port in
 * a header, and perhaps the id as well. */
static bool route_by_id_path(exchange *x, destination *to) {
  e2b_str rest = e2b__str(x->path + 1), id = str_cut(&rest, '/');
  const char *port = header(x, "e2b-sandbox-port"), *given = header(x, "e2b-sandbox-id");
  if (!sandbox_find(id) && !(given && e2b__str_eq(id, given))) return false;
  to->id = id;
  to->port = e2b__str(port ? port : "49983");
  x->path += 1 + id.len;
  if (!*x->path) x->path = "/";
  return true;
}

/* The control plane when nothing names a sandbox. False: failed, and answered. */
static bool route_find(exchange *x, destination *to) {
  const char *id = header(x, "e2b-sandbox-id"), *port = header(x, "e2b-sandbox-port");
  memset(to, 0, sizeof *to);
  if (server.kruise) {
    if (route_by_kruise_path(x, to) || strncmp(x->path, "/kruise/api/", 12) == 0) return true;
    reply_text(x, strcmp(x->path, "/health") == 0 ? 200 : 404, strcmp(x->path, "/health") == 0 ? "OK" : "404 page not found\n");
    return false;
  }
  if (route_by_kruise_path(x, to) || route_by_host(x, to) || route_by_id_path(x, to)) return true;
  if (!id && !port) return true;
  to->id = e2b__str(id);
  to->port = e2b__str(port);
  if (!id || !port) reply_text(x, 400, "missing header\n");
  return id && port;
}

static bool is_preflight(const exchange *x) {
  return strcmp(x->method, "OPTIONS") == 0 && header(x, "origin") && header(x, "access-control-request-method");
}

/* Browsers ask first. */
static void reply_preflight(exchange *x) {
  const char *headers = header(x, "access-control-request-headers");
  reply_header(x, "Access-Control-Allow-Methods: %s", header(x, "access-control-request-method"));
  if (headers) reply_header(x, "Access-Control-Allow-Headers: %s", headers);
  reply_header(x, "Access-Control-Max-Age: 7200");
  reply_header(x, "Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers");
  reply_empty(x, 204);
}

static void route_to_sandbox(exchange *x, const destination *to) {
  e2b_str id = to->id;
  int64_t port = 0;
  size_t i;
  sandbox *s;
  for (i = 0; i < to->port.len && e2b__is_digit(to->port.ptr[i]) && port < 65536; i++)
    port = port * 10 + (to->port.ptr[i] - '0');
  if (!server.kruise && !sandbox_id_ok(&id)) {
    reply_text(x, 400, "Invalid sandbox ID\n");
    return;
  }
  if (i != to->port.len || port < 1 || port > 65535) {
    reply_text(x, 400, "Invalid sandbox port\n");
    return;
  }
  s = sandbox_find(id);
  if (server.kruise && !kruise_gateway(x, s, id, port)) return;
  if (s && s->paused && s->auto_resume) sandbox_resume(s, AUTO_RESUME_S);
  if (!s || s->paused) {
    reply_edge_error(x, id, "The sandbox was not found", 0);
  } else {
    x->sandbox = s;
    list_push(&s->exchanges, &x->in_sandbox);
    if (port == ENVD_PORT && is_preflight(x)) reply_preflight(x);
    else if (port == ENVD_PORT) envd_begin(x);
    else if (port == CODE_PORT && code_available()) code_begin(x);
    else relay_begin(x, (uint16_t)port);
  }
}

/* The head of a request is there: finds who answers it, or answers it. */
static void route(exchange *x) {
  char *query = strchr((char *)x->target.data, '?');
  destination to;
  if (query) *query++ = 0;
  x->path = (const char *)x->target.data;
  x->query = query ? query : "";
  if (x->path[0] != '/') {
    reply_text(x, 400, "bad request target\n");
  } else if (route_find(x, &to)) {
    if (!to.id.len && strncmp(x->path, "/kruise/api/", 12) == 0) x->path += 11;
    if (to.id.len) route_to_sandbox(x, &to);
    else if (server.kruise) kruise_begin(x);
    else if (is_preflight(x)) reply_preflight(x);
    else control_begin(x);
  }
}

/* ================================================================================================================== */
/* >>>> tls */
/* ================================================================================================================== */

static void tls_check(int result, const char *what) {
  if (result < 0) die("TLS: %s failed: -0x%04x", what, (unsigned)-result);
}

static int tls_send(void *user, const unsigned char *data, size_t len) {
  ssize_t n = send(((conn *)user)->watch.fd, data, len, MSG_NOSIGNAL);
  if (n < 0) return errno == EAGAIN || errno == EINTR ? MBEDTLS_ERR_SSL_WANT_WRITE : -1;
  return (int)n;
}

static int tls_recv(void *user, unsigned char *data, size_t len) {
  ssize_t n = recv(((conn *)user)->watch.fd, data, len, 0);
  if (n < 0) return errno == EAGAIN || errno == EINTR ? MBEDTLS_ERR_SSL_WANT_READ : -1;
  return (int)n;
}

static void tls_open(conn *c) {
  c->tls = (mbedtls_ssl_context *)xalloc(sizeof *c->tls);
  c->handshake = true;
  mbedtls_ssl_init(c->tls);
  tls_check(mbedtls_ssl_setup(c->tls, &server.tls_config), "ssl_setup");
  mbedtls_ssl_set_bio(c->tls, c, tls_send, tls_recv, NULL);
}

static void tls_new_key(mbedtls_pk_context *key) {
#if E2B__MBEDTLS4
  psa_key_attributes_t attributes = PSA_KEY_ATTRIBUTES_INIT;
  psa_key_id_t id = 0;
  psa_set_key_type(&attributes, PSA_KEY_TYPE_ECC_KEY_PAIR(PSA_ECC_FAMILY_SECP_R1));
  psa_set_key_bits(&attributes, 256);
  psa_set_key_algorithm(&attributes, PSA_ALG_ECDSA(PSA_ALG_ANY_HASH));
  psa_set_key_usage_flags(&attributes, PSA_KEY_USAGE_SIGN_HASH | PSA_KEY_USAGE_COPY | PSA_KEY_USAGE_EXPORT);
  tls_check((int)psa_generate_key(&attributes, &id), "making a key");
  mbedtls_pk_init(key);
  tls_check(mbedtls_pk_copy_from_psa(id, key), "taking the key");
  tls_check((int)psa_destroy_key(id), "dropping the key");
#else
  mbedtls_pk_init(key);
  tls_check(mbedtls_pk_setup(key, mbedtls_pk_info_from_type(MBEDTLS_PK_ECKEY)), "pk_setup");
  tls_check(mbedtls_ecp_gen_key(MBEDTLS_ECP_DP_SECP256R1, mbedtls_pk_ec(*key), mbedtls_ctr_drbg_random, &server.drbg),
            "making a key");
#endif
}

static void tls_random_serial(mbedtls_x509write_cert *cert) {
  unsigned char serial[16];
  random_bytes(serial, sizeof serial);
  serial[0] = (unsigned char)(serial[0] >> 1 | 1);
#if MBEDTLS_VERSION_NUMBER >= 0x03040000
  tls_check(mbedtls_x509write_crt_set_serial_raw(cert, serial, sizeof serial), "serial number");
#else
  mbedtls_mpi number;
  mbedtls_mpi_init(&number);
  tls_check(mbedtls_mpi_read_binary(&number, serial, sizeof serial), "serial number");
  tls_check(mbedtls_x509write_crt_set_serial(cert, &number), "serial number");
  mbedtls_mpi_free(&number);
#endif
}

/* One certificate, valid from yesterday for thirty days, as PEM. Signed by the CA; the CA's own when key is its key. */
static void tls_write_cert(mbedtls_pk_context *key, const char *subject, bool ca, unsigned char pem[4096]) {
  /* SEQUENCE of dNSName localhost, dNSName *.localhost, iPAddress 127.0.0.1, iPAddress ::1 */
  static const unsigned char names[] = { 0x30, 0x30,
    0x82, 9, 'l', 'o', 'c', 'a', 'l', 'h', 'o', 's', 't',
    0x82, 11, '*', '.', 'l', 'o', 'c', 'a', 'l', 'h', 'o', 's', 't',
    0x87, 4, 127, 0, 0, 1, 0x87, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 };
  mbedtls_x509write_cert cert;
  char from[32], to[32];
  time_t start = time(NULL) - 86400, end = start + 31 * 86400;
  struct tm parts;
  (void)strftime(from, sizeof from, "%Y%m%d%H%M%S", gmtime_r(&start, &parts));
  (void)strftime(to, sizeof to, "%Y%m%d%H%M%S", gmtime_r(&end, &parts));
  mbedtls_x509write_crt_init(&cert);
  mbedtls_x509write_crt_set_version(&cert, MBEDTLS_X509_CRT_VERSION_3);
  mbedtls_x509write_crt_set_md_alg(&cert, MBEDTLS_MD_SHA256);
  mbedtls_x509write_crt_set_subject_key(&cert, key);
  mbedtls_x509write_crt_set_issuer_key(&cert, &server.ca_key);
  tls_check(mbedtls_x509write_crt_set_subject_name(&cert, subject), "subject");
  tls_check(mbedtls_x509write_crt_set_issuer_name(&cert, "CN=e2b local_server throw-away CA"), "issuer");
  tls_random_serial(&cert);
  tls_check(mbedtls_x509write_crt_set_validity(&cert, from, to), "validity");
  tls_check(mbedtls_x509write_crt_set_basic_constraints(&cert, ca, -1), "basic constraints");
  tls_check(mbedtls_x509write_crt_set_subject_key_identifier(&cert), "subject key identifier");
  tls_check(mbedtls_x509write_crt_set_authority_key_identifier(&cert), "authority key identifier");
  tls_check(mbedtls_x509write_crt_set_key_usage(&cert, ca ? MBEDTLS_X509_KU_KEY_CERT_SIGN
                                                          : MBEDTLS_X509_KU_DIGITAL_SIGNATURE), "key usage");
  if (!ca) /* subjectAltName */
    tls_check(mbedtls_x509write_crt_set_extension(&cert, "\x55\x1d\x11", 3, 0, names, sizeof names), "names");
#if E2B__MBEDTLS4
  tls_check(mbedtls_x509write_crt_pem(&cert, pem, 4096), "writing it");
#else
  tls_check(mbedtls_x509write_crt_pem(&cert, pem, 4096, mbedtls_ctr_drbg_random, &server.drbg), "writing it");
#endif
  mbedtls_x509write_crt_free(&cert);
}

/* A CA that lives as long as this process, and our certificate by it. */
static void tls_setup(void) {
  static const char *protocols[] = { "http/1.1", NULL };
  unsigned char pem[4096];
  FILE *file;
#if defined(MBEDTLS_PSA_CRYPTO_C)
  tls_check((int)psa_crypto_init(), "psa_crypto_init"); /* TLS 1.3 needs it */
#endif
#if !E2B__MBEDTLS4
  mbedtls_entropy_init(&server.entropy);
  mbedtls_ctr_drbg_init(&server.drbg);
  tls_check(mbedtls_ctr_drbg_seed(&server.drbg, mbedtls_entropy_func, &server.entropy, NULL, 0), "seeding");
#endif
  tls_new_key(&server.ca_key);
  tls_new_key(&server.key);
  tls_write_cert(&server.ca_key, "CN=e2b local_server throw-away CA", true, pem);
  if (server.ca_file) {
    file = fopen(server.ca_file, "w");
    if (!file || fputs((char *)pem, file) < 0 || fclose(file) != 0) die("%s: %s", server.ca_file, strerror(errno));
  }
  tls_write_cert(&server.key, "CN=localhost", false, pem);
  mbedtls_x509_crt_init(&server.cert);
  tls_check(mbedtls_x509_crt_parse(&server.cert, pem, strlen((char *)pem) + 1), "reading our certificate");
  mbedtls_ssl_config_init(&server.tls_config);
  tls_check(mbedtls_ssl_config_defaults(&server.tls_config, MBEDTLS_SSL_IS_SERVER, MBEDTLS_SSL_TRANSPORT_STREAM,
                                        MBEDTLS_SSL_PRESET_DEFAULT), "configuration");
#if !E2B__MBEDTLS4
  mbedtls_ssl_conf_rng(&server.tls_config, mbedtls_ctr_drbg_random, &server.drbg);
#endif
  tls_check(mbedtls_ssl_conf_own_cert(&server.tls_config, &server.cert, &server.key), "own_cert");
  tls_check(mbedtls_ssl_conf_alpn_protocols(&server.tls_config, protocols), "ALPN");
  mbedtls_ssl_ticket_init(&server.tickets);
#if E2B__MBEDTLS4
  tls_check(mbedtls_ssl_ticket_setup(&server.tickets, PSA_ALG_GCM, PSA_KEY_TYPE_AES, 256, 86400), "session tickets");
#else
  tls_check(mbedtls_ssl_ticket_setup(&server.tickets, mbedtls_ctr_drbg_random, &server.drbg, MBEDTLS_CIPHER_AES_256_GCM,
                                     86400), "session tickets");
#endif
  mbedtls_ssl_conf_session_tickets_cb(&server.tls_config, mbedtls_ssl_ticket_write, mbedtls_ssl_ticket_parse,
                                      &server.tickets);
}

static void tls_cleanup(void) {
  mbedtls_ssl_config_free(&server.tls_config);
  mbedtls_ssl_ticket_free(&server.tickets);
  mbedtls_x509_crt_free(&server.cert);
  mbedtls_pk_free(&server.key);
  mbedtls_pk_free(&server.ca_key);
#if !E2B__MBEDTLS4
  mbedtls_ctr_drbg_free(&server.drbg);
  mbedtls_entropy_free(&server.entropy);
#endif
}

/* ================================================================================================================== */
/* >>>> http input */
/* ================================================================================================================== */

static int on_begin(llhttp_t *parser) {
  conn *c = (conn *)parser->data;
  c->exchange = exchange_new(c);
  timer_stop(&c->timer);
  return 0;
}

static int on_url(llhttp_t *parser, const char *at, size_t len) {
  conn *c = (conn *)parser->data;
  e2b__buf_put(&c->exchange->target, at, len);
  return c->exchange->target.err ? -1 : 0;
}

static int on_field(llhttp_t *parser, const char *at, size_t len) {
  conn *c = (conn *)parser->data;
  e2b__buf_put(&c->field, at, len);
  return c->field.err ? -1 : 0;
}

static int on_value(llhttp_t *parser, const char *at, size_t len) {
  conn *c = (conn *)parser->data;
  e2b__buf_put(&c->value, at, len);
  return c->value.err ? -1 : 0;
}

/* Of trailers, which come after the head, nothing is kept. */
static int on_value_end(llhttp_t *parser) {
  conn *c = (conn *)parser->data;
  exchange *x = c->exchange;
  if (!x->method) e2b__headers_add(&x->headers, buf_str(&c->field), e2b__str_trim(buf_str(&c->value)));
  c->field.len = c->value.len = 0;
  return x->headers.text.err ? -1 : 0;
}

static int on_head(llhttp_t *parser) {
  conn *c = (conn *)parser->data;
  exchange *x = c->exchange;
  const char *expect = header(x, "expect");
  if (!e2b__buf_cstr(&x->target)) return -1;
  x->method = llhttp_method_name((llhttp_method_t)parser->method);
  x->keep_alive = llhttp_should_keep_alive(parser) != 0;
  x->http10 = parser->http_major == 1 && parser->http_minor == 0;
  if (x->http10) x->keep_alive = false;
  x->head_only = parser->method == HTTP_HEAD;
  x->expects = expect && e2b__str_eq_nocase(e2b__str(expect), "100-continue");
  parser->upgrade = 0; /* every protocol but this one is declined by ignoring the offer */
  route(x);
  if (x->answered || !x->expects) return 0;
  conn_put(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
  x->expects = false;
  return 0;
}

static int on_body(llhttp_t *parser, const char *at, size_t len) {
  exchange *x = ((conn *)parser->data)->exchange;
  if (!x->answered && x->handler && x->handler->body) x->handler->body(x, at, len);
  return 0;
}

/* The parser stops here until the answer is out: requests are worked on one after the other. */
static int on_end(llhttp_t *parser) {
  conn *c = (conn *)parser->data;
  exchange *x = c->exchange;
  x->asked = true;
  c->paused = true;
  if (!x->answered && x->handler && x->handler->end) x->handler->end(x);
  return HPE_PAUSED;
}

static const llhttp_settings_t *http_settings(void) {
  static llhttp_settings_t settings;
  if (!settings.on_body) {
    llhttp_settings_init(&settings);
    settings.on_message_begin = on_begin;
    settings.on_url = on_url;
    settings.on_header_field = on_field;
    settings.on_header_value = on_value;
    settings.on_header_value_complete = on_value_end;
    settings.on_headers_complete = on_head;
    settings.on_body = on_body;
    settings.on_message_complete = on_end;
  }
  return &settings;
}

/* Answers what is no HTTP, or too much of it, and hangs up. */
static void conn_refuse(conn *c) {
  exchange *x = c->exchange ? c->exchange : exchange_new(c);
  bool large = c->field.err || c->value.err || x->target.err || x->headers.text.err;
  c->exchange = x;
  if (!x->method) x->method = "-";
  x->keep_alive = false;
  x->asked = true;
  if (x->head_sent && !x->answered) c->broken = true;
  else if (!x->answered) reply_text(x, large ? 431 : 400, large ? "header fields too large\n" : "bad request\n");
  conn_touch(c);
}

/* Parses what it may. Returns how much; the rest is for later. */
static size_t conn_parse(conn *c, const char *data, size_t len) {
  llhttp_errno_t result;
  if (c->paused) return 0;
  if (c->closing || c->broken) return len;
  result = llhttp_execute(&c->parser, data, len);
  if (result == HPE_OK) return len;
  if (result == HPE_PAUSED && c->paused) return (size_t)(llhttp_get_error_pos(&c->parser) - data);
  conn_refuse(c);
  return len;
}

static bool conn_wants_input(const conn *c) {
  if (c->lingering) return !c->eof;
  return !c->eof && !c->closing && c->in.len < INPUT_MAX && !(c->exchange && c->exchange->full);
}

/* The client closed its side. Whoever waits for an answer may still get it; streams end. */
static void conn_input_ended(conn *c) {
  exchange *x = c->exchange;
  c->eof = true;
  if (!x) c->closing = true;
  else if (!x->asked) c->broken = true;
  else if (!x->answered && x->handler->hangup) x->handler->hangup(x);
}

static void conn_read(conn *c) {
  int turns, n;
  for (turns = 0; turns < 4 && conn_wants_input(c) && !c->broken; turns++) {
    size_t used;
    n = conn_recv(c, server.input, sizeof server.input);
    if (n == 0) conn_input_ended(c);
    if (n < 0 && n != E2B_IO_AGAIN) c->broken = true;
    if (n <= 0) break;
    used = c->lingering ? (size_t)n : conn_parse(c, server.input, (size_t)n);
    if (used < (size_t)n) e2b__buf_put(&c->in, server.input + used, (size_t)n - used);
    if (!c->tls && (size_t)n < sizeof server.input) break;
  }
  conn_touch(c);
}

static void conn_expire(timer *t) {
  conn_close(OWNER(t, conn, timer));
}

static void conn_handshake(conn *c) {
  int result = mbedtls_ssl_handshake(c->tls);
  c->want_write = result == MBEDTLS_ERR_SSL_WANT_WRITE;
  if (result == 0) c->handshake = false;
  else if (result != MBEDTLS_ERR_SSL_WANT_READ && result != MBEDTLS_ERR_SSL_WANT_WRITE) c->broken = true;
}

static void conn_ready(watch *w, uint32_t events) {
  conn *c = OWNER(w, conn, watch);
  if (c->handshake) conn_handshake(c);
  if (!c->handshake && !c->broken && (events & ~(uint32_t)EPOLLOUT) && conn_wants_input(c)) conn_read(c);
  else if (events & (EPOLLERR | EPOLLHUP)) c->broken = true;
  conn_touch(c);
}

/* The answer is out and the request read: on to the next one. */
static void conn_next(conn *c) {
  bool keep = c->exchange->keep_alive && !c->eof;
  exchange_free(c->exchange);
  c->paused = false;
  if (!keep) {
    c->closing = true;
    return;
  }
  llhttp_resume(&c->parser);
  timer_set(&c->timer, now_ms() + IDLE_MS, conn_expire);
  if (c->in.cap > INPUT_MAX / 16 && !c->in.len) e2b__buf_free(&c->in);
}

/* After the last answer: a second in which what still comes is thrown away, for a reset could overtake the answer. */
static void conn_linger(conn *c) {
  if (c->eof) {
    c->broken = true;
  } else if (!c->lingering) {
    if (c->tls) (void)mbedtls_ssl_close_notify(c->tls);
    (void)shutdown(c->watch.fd, SHUT_WR);
    c->lingering = true;
    timer_set(&c->timer, now_ms() + 1000, conn_expire);
  }
}

static bool exchange_over(const exchange *x) {
  return x && x->answered && (x->asked || x->expects) && x->conn->file < 0;
}

/* Everything that follows from what happened to a connection in this turn. */
static void conn_settle(conn *c) {
  while (exchange_over(c->exchange) && !c->broken) {
    conn_next(c);
    if (!c->closing && c->in.len) e2b__buf_drop(&c->in, conn_parse(c, (const char *)c->in.data, c->in.len));
  }
  if (!c->broken && !c->handshake && !conn_flush(c)) c->broken = true;
  if (c->closing && !conn_pending(c) && c->file < 0) conn_linger(c);
  if (c->broken) {
    conn_close(c);
    return;
  }
  if (c->exchange && c->exchange->stalled && conn_pending(c) < OUTPUT_LOW) {
    c->exchange->stalled = false;
    if (!c->exchange->answered && c->exchange->handler->drain) c->exchange->handler->drain(c->exchange);
  }
  if (c->tls && !c->handshake && conn_wants_input(c) && mbedtls_ssl_get_bytes_avail(c->tls)) conn_read(c);
  if (exchange_over(c->exchange)) conn_touch(c); /* the file is out */
  (void)watch_want(&c->watch, (uint32_t)((c->handshake || conn_wants_input(c) ? EPOLLIN | EPOLLRDHUP : 0) |
                                         (conn_pending(c) || c->file >= 0 || c->want_write ? EPOLLOUT : 0)));
}

/* Those that were touched so far; what they touch in turn has to wait for the others. */
static void conns_settle(void) {
  const node *n;
  size_t count = 0;
  for (n = server.touched.next; n != &server.touched; n = n->next) count++;
  for (; count && !list_empty(&server.touched); count--) {
    conn *c = OWNER(server.touched.next, conn, in_touched);
    list_remove(&c->in_touched);
    conn_settle(c);
  }
  while (!list_empty(&server.graveyard)) {
    conn *c = OWNER(server.graveyard.next, conn, in_conns);
    list_remove(&c->in_conns);
    free(c);
  }
}

static void conn_open(int fd) {
  conn *c = (conn *)xalloc(sizeof *c);
  int on = 1;
  (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  list_init(&c->in_touched);
  list_push(&server.conns, &c->in_conns);
  c->file = -1;
  e2b__buf_init(&c->field, &server.mem, HEAD_MAX);
  e2b__buf_init(&c->value, &server.mem, HEAD_MAX);
  e2b__buf_init(&c->in, &server.mem, INPUT_MAX + IO_CHUNK);
  e2b__buf_init(&c->out, &server.mem, OUTPUT_MAX);
  llhttp_init(&c->parser, HTTP_REQUEST, http_settings());
  c->parser.data = c;
  watch_init(&c->watch, fd, conn_ready);
  timer_set(&c->timer, now_ms() + IDLE_MS, conn_expire);
  if (server.tls) tls_open(c);
  conn_touch(c);
}

/* A new client. When there are no descriptors left, one that is kept in reserve serves to turn it away. */
static void listener_ready(watch *w, uint32_t events) {
  int turns;
  E2B__UNUSED(events);
  for (turns = 0; turns < 64; turns++) {
    int fd = accept4(w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      conn_open(fd);
    } else if ((errno == EMFILE || errno == ENFILE) && server.spare_fd >= 0) {
      (void)close(server.spare_fd);
      fd = accept(w->fd, NULL, NULL);
      if (fd >= 0) (void)close(fd);
      server.spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    } else {
      return;
    }
  }
}

/* ================================================================================================================== */
/* >>>> main */
/* ================================================================================================================== */

static const char usage[] =
  "usage: local_server [options]\n"
  "\n"
  "An E2B host on this machine: sandboxes, commands and files over the E2B protocols, for development, demos, tests.\n"
  "It isolates nothing: commands run as you (root's may ask for another user), on your files.\n"
  "\n"
  "  --listen ADDR:PORT   where to listen; port 0 = any free one (default 127.0.0.1:0)\n"
  "  --port-file FILE     write the port there once it is open\n"
  "  --api-key KEY        a key clients must have; may be repeated (default e2b_0123456789abcdef)\n"
  "  --template NAME      a template besides base, code-interpreter and code-interpreter-v1; may be repeated\n"
  "  --user NAME          the default user of sandboxes (default: who runs this)\n"
  "  --root DIR           where sandboxes have their home directories (default: a temporary one, removed at the end)\n"
  "  --real-home          no home directories of their own: $HOME and relative paths are those of the user\n"
  "  --kruise             be OpenKruise Agents: everything under /kruise, its answers and errors, envd 0.2.10, traffic tokens\n"
  "  --token-life SECONDS how long a traffic token is good, with --kruise (default: a hundred years)\n"
  "  --tls                serve https, by a CA that is made at the start and thrown away at the end\n"
  "  --ca-out FILE        write that CA's certificate there, for clients to trust\n"
  "  --exit-with-stdin    end when standard input does, so that a test never leaves this behind\n"
  "  --log                a line per request on standard error\n"
  "  --help               this\n";

static void add_text(e2b__list *list, const char *text) {
  const char **slot = (const char **)e2b__list_add(list, sizeof *slot, &server.arena);
  if (!slot) die("too many options");
  *slot = text;
}

static bool parse_flag(const char *arg) {
  if (strcmp(arg, "--tls") == 0) server.tls = true;
  else if (strcmp(arg, "--real-home") == 0) server.real_home = true;
  else if (strcmp(arg, "--exit-with-stdin") == 0) server.exit_with_stdin = true;
  else if (strcmp(arg, "--log") == 0) server.log = true;
  else if (strcmp(arg, "--kruise") == 0) server.kruise = true;
  else return false;
  return true;
}

static bool parse_option(const char *arg, const char *value) {
  if (strcmp(arg, "--listen") == 0) server.listen_address = value;
  else if (strcmp(arg, "--port-file") == 0) server.port_file = value;
  else if (strcmp(arg, "--api-key") == 0) add_text(&server.api_keys, value);
  else if (strcmp(arg, "--template") == 0) add_text(&server.templates, value);
  else if (strcmp(arg, "--user") == 0) server.default_user = value;
  else if (strcmp(arg, "--root") == 0) server.root_option = value;
  else if (strcmp(arg, "--ca-out") == 0) server.ca_file = value;
  else if (strcmp(arg, "--token-life") == 0) return parse_i64(value, &server.token_life_s) && server.token_life_s > 0;
  else return false;
  return true;
}

static void parse_options(int argc, char **argv) {
  int i;
  server.listen_address = "127.0.0.1:0";
  server.token_life_s = (int64_t)100 * 365 * 24 * 3600;
  random_bytes(server.secret, sizeof server.secret);
  add_text(&server.templates, "base");
  add_text(&server.templates, "code-interpreter");
  add_text(&server.templates, "code-interpreter-v1");
  for (i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--help") == 0) {
      (void)fputs(usage, stdout);
      exit(0);
    }
    if (parse_flag(argv[i])) continue;
    if (i + 1 < argc && parse_option(argv[i], argv[i + 1])) i++;
    else die("%s: not an option, or its value is missing; see --help", argv[i]);
  }
  if (!server.api_keys.count) add_text(&server.api_keys, "e2b_0123456789abcdef");
}

/* The directory of the sandboxes, and the user they have. */
static void prepare_root(void) {
  struct passwd *entry = getpwuid(geteuid());
  account who;
  if (!server.default_user) server.default_user = entry ? xdup(entry->pw_name) : "";
  if (!user_find(server.default_user, &who)) die("user '%s' is unknown, or we may not act as it", server.default_user);
  if (server.root_option) {
    if (mkdir(server.root_option, 0755) != 0 && errno != EEXIST) die("%s: %s", server.root_option, strerror(errno));
    if (!realpath(server.root_option, server.root)) die("%s: %s", server.root_option, strerror(errno));
  } else {
    (void)snprintf(server.root, sizeof server.root, "/tmp/e2b-local-XXXXXX");
    if (!mkdtemp(server.root)) die("%s: %s", server.root, strerror(errno));
    server.root_is_ours = true;
  }
  (void)chmod(server.root, 0755);
}

/* Opens the listening socket and gives its port. */
static int open_listener(int *port) {
  char bound[16], *host = server.host;
  const char *colon = strrchr(server.listen_address, ':');
  struct addrinfo hints, *found = NULL;
  struct sockaddr_storage address;
  socklen_t len = sizeof address;
  size_t host_len = colon ? (size_t)(colon - server.listen_address) : 0;
  int fd, on = 1;
  if (host_len == 0 || host_len >= sizeof server.host) die("--listen %s: not ADDR:PORT", server.listen_address);
  memcpy(host, server.listen_address, host_len);
  memset(&hints, 0, sizeof hints);
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  if (getaddrinfo(host, colon + 1, &hints, &found) != 0) die("--listen %s: no such address", server.listen_address);
  fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (fd < 0 || bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1024) != 0)
    die("--listen %s: %s", server.listen_address, strerror(errno));
  freeaddrinfo(found);
  if (getsockname(fd, (struct sockaddr *)&address, &len) != 0 ||
      getnameinfo((struct sockaddr *)&address, len, NULL, 0, bound, sizeof bound, NI_NUMERICSERV) != 0)
    die("getsockname: %s", strerror(errno));
  *port = (int)strtol(bound, NULL, 10);
  return fd;
}

/* The file appears complete or not at all: who sees it may connect. */
static void write_port_file(int port) {
  char temporary[PATH_MAX];
  FILE *file;
  if (!server.port_file) return;
  (void)snprintf(temporary, sizeof temporary, "%s.tmp", server.port_file);
  file = fopen(temporary, "w");
  if (!file || fprintf(file, "%d\n", port) < 0 || fclose(file) != 0 || rename(temporary, server.port_file) != 0)
    die("%s: %s", server.port_file, strerror(errno));
}

static void signal_ready(watch *w, uint32_t events) {
  struct signalfd_siginfo info;
  E2B__UNUSED(events);
  while (read(w->fd, &info, sizeof info) == (ssize_t)sizeof info) {
    if (info.ssi_signo == SIGCHLD) processes_reap();
    else server.stop = true;
  }
}

static void stdin_ready(watch *w, uint32_t events) {
  ssize_t n = read(w->fd, server.chunk, sizeof server.chunk);
  E2B__UNUSED(events);
  if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) server.stop = true;
}

static int open_signals(void) {
  sigset_t set;
  (void)signal(SIGPIPE, SIG_IGN);
  (void)sigemptyset(&set);
  (void)sigaddset(&set, SIGCHLD);
  (void)sigaddset(&set, SIGINT);
  (void)sigaddset(&set, SIGTERM);
  (void)sigaddset(&set, SIGHUP);
  (void)sigprocmask(SIG_BLOCK, &set, NULL);
  return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

static void run_loop(void) {
  while (!server.stop) {
    int i;
    server.event_count = epoll_wait(server.epoll, server.events, EVENTS_MAX,
                                    list_empty(&server.touched) ? timers_wait_ms() : 0);
    for (i = 0; i < server.event_count; i++) {
      watch *w = (watch *)server.events[i].data.ptr;
      if (w) w->ready(w, server.events[i].events);
    }
    server.event_count = 0;
    timers_run();
    conns_settle();
  }
}

static void clean_up(void) {
  int tries;
  pid_t child = 0;
  while (!list_empty(&server.sandboxes)) sandbox_kill(OWNER(server.sandboxes.next, sandbox, in_all));
  while (!list_empty(&server.snapshots)) snapshot_free(OWNER(server.snapshots.next, snapshot, in_all));
  while (!list_empty(&server.conns)) conn_close(OWNER(server.conns.next, conn, in_conns));
  conns_settle();
  for (tries = 0; tries < 100 && (child = waitpid(-1, NULL, WNOHANG)) >= 0; tries += child == 0)
    if (child == 0) (void)poll(NULL, 0, 10);
  while (!list_empty(&server.graves)) {
    grave *g = OWNER(server.graves.next, grave, in_graves);
    (void)remove_tree(g->path);
    timer_stop(&g->timer);
    list_remove(&g->in_graves);
    free(g);
  }
  if (server.root_is_ours) (void)remove_tree(server.root);
  if (server.port_file) (void)unlink(server.port_file);
  if (server.tls) tls_cleanup();
  e2b__arena_free(&server.arena);
  e2b__buf_free(&server.scratch);
  timer_stop(server.metrics_timer);
  free(server.metrics_timer);
  free(server.timers);
}

/* Prepares this process: descriptors 0 to 2 are something, many more may be open, orphans come to us. */
static void prepare_process(void) {
  struct rlimit all;
  int fd;
  do fd = open("/dev/null", O_RDWR | O_CLOEXEC);
  while (fd >= 0 && fd <= 2);
  server.spare_fd = fd;
  (void)umask(022);
  (void)prctl(PR_SET_CHILD_SUBREAPER, 1);
  (void)getrlimit(RLIMIT_NOFILE, &server.files);
  all = server.files;
  all.rlim_cur = all.rlim_max;
  (void)setrlimit(RLIMIT_NOFILE, &all);
  e2b__mem_init(&server.mem, NULL);
  e2b__arena_init(&server.arena, &server.mem, BODY_MAX);
  e2b__buf_init(&server.scratch, &server.mem, OUTPUT_MAX);
  list_init(&server.conns);
  list_init(&server.touched);
  list_init(&server.graveyard);
  list_init(&server.sandboxes);
  list_init(&server.snapshots);
  list_init(&server.processes);
  list_init(&server.graves);
  server.metrics_timer = (timer *)xalloc(sizeof *server.metrics_timer);
}

int main(int argc, char **argv) {
  static watch listener, signals, standard_input;
  int port;
  prepare_process();
  parse_options(argc, argv);
  server.epoll = epoll_create1(EPOLL_CLOEXEC);
  if (server.epoll < 0) die("epoll: %s", strerror(errno));
  if (server.tls) tls_setup();
  watch_init(&listener, open_listener(&port), listener_ready);
  watch_init(&signals, open_signals(), signal_ready);
  watch_init(&standard_input, server.exit_with_stdin ? 0 : -1, stdin_ready);
  if (!watch_want(&listener, EPOLLIN) || !watch_want(&signals, EPOLLIN)) die("epoll: %s", strerror(errno));
  if (!watch_want(&standard_input, EPOLLIN)) die("--exit-with-stdin: standard input has to be a pipe or a terminal");
  prepare_root();
  write_port_file(port);
  (void)printf("listening on %s://%s:%d\n", server.tls ? "https" : "http", server.host, port);
  (void)printf("API key %s; homes in %s; user %s; NO ISOLATION: commands run on this machine, as you\n",
               *(const char **)server.api_keys.items, server.root, server.default_user);
  (void)fflush(stdout);
  run_loop();
  clean_up();
  return 0;
}
