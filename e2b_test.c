/* The tests of e2b.h: `make test`, or by hand

       cc -std=c99 -I. e2b_test.c llhttp.c api.c http.c -lmbedtls -lmbedx509 -lmbedcrypto -lpthread -o build/e2b_test
       build/e2b_test [-l] [-v] [-q] [name or beginning of a name]...

     -l  list the tests      -v  name each test and print the messages of expected failures      -q  small transfers

   Tests with a '/' in their name run end to end: "http/...", "https/...", "json/..." (RPC in JSON instead of protobuf) and
   "kruise/..." (as OpenKruise Agents) against the local server, which is started from the directory of this program and
   stopped at the end; "envd/..." and "envd-json/..." against the envd at E2B_ENVD_URL (with E2B_ENVD_TOKEN when it wants
   one, and E2B_CODE_URL for a code interpreter beside it). With E2B_ENVD_URL set only those run.

   CONTENTS OF THIS FILE (search for the text after the bar)
     | >>>> checks          | >>>> heap            | >>>> loopback        | >>>> scripted peer
     | >>>> codecs          | >>>> url and http1   | >>>> http2           | >>>> network
     | >>>> client and sandbox                     | >>>> api and raw     | >>>> files
     | >>>> watch           | >>>> rpc             | >>>> openkruise      | >>>> pool
     | >>>> hosts           | >>>> end to end      | >>>> processes
     | >>>> code interpreter                       | >>>> trees           | >>>> bad input
     | >>>> network edges   | >>>> table
   A new test is a function and a line in the table at the end of the file. */

#include <stddef.h>
static void *test_malloc(size_t size);
static void *test_realloc(void *ptr, size_t size);
static void test_free(void *ptr);
#define E2B_MALLOC(size) test_malloc(size)
#define E2B_REALLOC(ptr, size) test_realloc(ptr, size)
#define E2B_FREE(ptr) test_free(ptr)
#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pwd.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

/* ================================================================================================================== */
/* >>>> checks */
/* ================================================================================================================== */

static int check_count, check_failures;
static const char *check_test = ""; /* the test under way */
static bool verbose, quick;

/* All checks give back whether they held: `if (!CHECK(x)) return;` where going on makes no sense. */
static bool check_at(bool ok, int line, const char *what) {
  check_count++;
  if (ok) return true;
  check_failures++;
  printf("%s:%d: %s: %s\n", __FILE__, line, check_test, what);
  return false;
}

static bool check_int_at(long long a, long long b, int line, const char *what) {
  char text[400];
  snprintf(text, sizeof text, "%s is %lld, not %lld", what, a, b);
  return check_at(a == b, line, text);
}

static bool check_str_at(const char *a, const char *b, int line, const char *what) {
  char text[1000];
  snprintf(text, sizeof text, "%s is %s%.400s%s, not \"%.400s\"", what, a ? "\"" : "", a ? a : "NULL", a ? "\"" : "",
           b);
  return check_at(a && strcmp(a, b) == 0, line, text);
}

static bool check_has_at(const char *text, const char *part, int line) {
  char what[1000];
  snprintf(what, sizeof what, "\"%.600s\" has no \"%.300s\"", text, part);
  return check_at(strstr(text, part) != NULL, line, what);
}

/* A call: what it returned, what it should have, and its e2b_error. A failure has to say what happened and what to do. */
static bool check_rc_at(e2b_err rc, e2b_err want, const e2b_error *err, int line, const char *what) {
  char text[800];
  bool told = rc >= 0 || (err->code == rc && strlen(err->message) >= 8);
  snprintf(text, sizeof text, "%s is %s, not %s (%s)", what, e2b_err_name(rc), e2b_err_name(want),
           rc < 0 ? err->message : "");
  if (verbose && rc < 0) printf("  %s: %s\n", e2b_err_name(rc), err->message);
  return check_at(rc == want, line, text) && check_at(told, line, "the error does not explain itself");
}

#define CHECK(condition) check_at((condition) ? true : false, __LINE__, #condition)
#define CHECK_INT(a, b) check_int_at((long long)(a), (long long)(b), __LINE__, #a)
#define CHECK_STR(a, b) check_str_at(a, b, __LINE__, #a)
#define CHECK_HAS(text, part) check_has_at(text, part, __LINE__)
#define CHECK_RC(call, want) check_rc_at(call, want, &err, __LINE__, #call) /* with an `e2b_error err` */
#define CHECK_OK(call) CHECK_RC(call, E2B_OK)

static uint64_t now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

static void sleep_ms(int ms) {
  struct timespec t;
  t.tv_sec = ms / 1000;
  t.tv_nsec = ms % 1000 * 1000000L;
  nanosleep(&t, NULL);
}

/* Open descriptors of this process; 0 where there is no /proc. */
static int open_fds(void) {
  int count = 0;
  DIR *dir = opendir("/proc/self/fd");
  if (!dir) return 0;
  while (readdir(dir)) count++;
  closedir(dir);
  return count;
}

/* ================================================================================================================== */
/* >>>> heap */
/* ================================================================================================================== */

/* An allocator that counts, fails when told to, and checks that the sizes it gets back are right. */
typedef struct test_heap {
  size_t live;     /* bytes */
  size_t calls;    /* of alloc and realloc */
  size_t fail_at;  /* this call fails; 0 = none */
  bool fail_after; /* and all after it */
  bool wrong_size; /* a block came back with another size than it was given out with */
} test_heap;

#define HEAP_HEAD 16 /* in front of each block: its size; keeps the alignment */

static bool heap_fails(test_heap *h) {
  h->calls++;
  return h->fail_at && (h->calls == h->fail_at || (h->fail_after && h->calls > h->fail_at));
}

static void *heap_keep(test_heap *h, uint8_t *block, size_t size) {
  if (!block) return NULL;
  h->live += size;
  memcpy(block, &size, sizeof size);
  return block + HEAP_HEAD;
}

static uint8_t *heap_take(test_heap *h, void *ptr, size_t size) {
  uint8_t *block = (uint8_t *)ptr - HEAP_HEAD;
  size_t kept;
  memcpy(&kept, block, sizeof kept);
  if (kept != size) h->wrong_size = true;
  return block;
}

static void *heap_alloc(void *user, size_t size) {
  test_heap *h = (test_heap *)user;
  return heap_fails(h) ? NULL : heap_keep(h, (uint8_t *)malloc(size + HEAP_HEAD), size);
}

static void *heap_realloc(void *user, void *ptr, size_t old_size, size_t new_size) {
  test_heap *h = (test_heap *)user;
  void *moved;
  if (heap_fails(h)) return NULL;
  moved = heap_keep(h, (uint8_t *)realloc(heap_take(h, ptr, old_size), new_size + HEAP_HEAD), new_size);
  if (moved) h->live -= old_size;
  return moved;
}

static void heap_free(void *user, void *ptr, size_t size) {
  test_heap *h = (test_heap *)user;
  free(heap_take(h, ptr, size));
  h->live -= size;
}

static e2b_allocator heap_allocator(test_heap *h) {
  e2b_allocator a;
  memset(h, 0, sizeof *h);
  a.alloc_fn = heap_alloc;
  a.realloc_fn = heap_realloc;
  a.free_fn = heap_free;
  a.user = h;
  return a;
}

/* The same as the sections use it. */
static void heap_mem(test_heap *h, e2b__mem *mem) {
  e2b_allocator a = heap_allocator(h);
  e2b__mem_init(mem, &a);
}

/* E2B_MALLOC: what does not come from a client's allocator. Only the thread of the tests allocates, any may free. */
static size_t malloc_calls, malloc_fail_at;

static void *test_malloc(size_t size) {
  return ++malloc_calls == malloc_fail_at ? NULL : malloc(size);
}

static void *test_realloc(void *ptr, size_t size) {
  return ++malloc_calls == malloc_fail_at ? NULL : realloc(ptr, size);
}

static void test_free(void *ptr) {
  free(ptr);
}

static void heap_check_empty_at(const test_heap *h, int line) {
  check_int_at((long long)h->live, 0, line, "bytes still allocated");
  check_at(!h->wrong_size, line, "a block was freed with a wrong size");
}
#define HEAP_CHECK_EMPTY(h) heap_check_empty_at(h, __LINE__)

/* ================================================================================================================== */
/* >>>> loopback */
/* ================================================================================================================== */

/* A socket that listens on a free port of 127.0.0.1, or -1. */
static int listen_somewhere(uint16_t *port) {
  struct sockaddr_in at;
  socklen_t len = sizeof at;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  memset(&at, 0, sizeof at);
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 256) ||
      getsockname(fd, (struct sockaddr *)&at, &len)) {
    if (fd >= 0) close(fd);
    return -1;
  }
  *port = ntohs(at.sin_port);
  return fd;
}

/* A port nobody listens on. */
static uint16_t dead_port(void) {
  uint16_t port = 0;
  close(listen_somewhere(&port));
  return port;
}

/* false = the connection is over. */
static bool send_all(int fd, const void *data, size_t len) {
  const char *at = (const char *)data;
  while (len > 0) {
    ssize_t n = send(fd, at, len, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    len -= (size_t)n;
  }
  return true;
}

/* Whatever comes, at most cap bytes; <= 0 at the end. */
static ssize_t recv_some(int fd, void *buf, size_t cap) {
  ssize_t n;
  do n = recv(fd, buf, cap, 0);
  while (n < 0 && errno == EINTR);
  return n;
}

static void reset_on_close(int fd) {
  struct linger now = { 1, 0 };
  (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

/* ================================================================================================================== */
/* >>>> scripted peer */
/* ================================================================================================================== */

/* An HTTP server on a free loopback port, on threads of its own, that gives the answers of a script in the order of the
 * requests, whichever connection they come by, and keeps what it was asked. */
#define PEER_CLOSE 1u    /* closes after the answer */
#define PEER_EARLY 2u    /* answers when it has the head, and does not read the body */
#define PEER_DRIBBLE 4u  /* byte by byte */
#define PEER_RESET 8u    /* closes with RST */
#define PEER_REPEAT 16u  /* is the answer to all further requests */
#define PEER_HANG 32u    /* says no more, but keeps the connection */
#define PEER_ENDLESS 64u /* says the last 64 bytes again and again */

#define PEER_MAX 64 /* answers of a script, requests kept */

typedef struct peer_reply {
  char *bytes;
  size_t len;
  unsigned flags;
} peer_reply;

typedef struct peer {
  int listener;
  uint16_t port;
  char url[40]; /* http://127.0.0.1:PORT */
  pthread_t thread;
  pthread_mutex_t lock;
  int stop, live, accepted;
  peer_reply replies[PEER_MAX];
  int reply_count, reply_next;
  const char *refusal;      /* the answer to requests in protobuf, outside the script; NULL = as to everything */
  const char *health;       /* the answer to GET /health, outside the script; NULL = as to everything */
  char *requests[PEER_MAX]; /* the latest ones, without those to /health; chunks as they came */
  size_t request_lens[PEER_MAX];
  int request_count;
} peer;

typedef struct peer_conn {
  peer *p;
  int fd;
} peer_conn;

static bool peer_stopping(peer *p) {
  return __atomic_load_n(&p->stop, __ATOMIC_SEQ_CST) != 0;
}

static bool peer_wait(peer_conn *conn, short events) {
  struct pollfd ready;
  ready.fd = conn->fd;
  ready.events = events;
  while (!peer_stopping(conn->p))
    if (poll(&ready, 1, 10) > 0) return true;
  return false;
}

/* Appends what arrives to *text. False at the end of the connection. */
static bool peer_more(peer_conn *conn, char **text, size_t *len) {
  ssize_t n;
  if (!peer_wait(conn, POLLIN)) return false;
  *text = (char *)realloc(*text, *len + 65537);
  n = recv_some(conn->fd, *text + *len, 65536);
  if (n <= 0) return false;
  *len += (size_t)n;
  (*text)[*len] = 0;
  return true;
}

static char *find_bytes(char *text, size_t len, const char *what) {
  size_t i, n = strlen(what);
  for (i = 0; i + n <= len; i++)
    if (memcmp(text + i, what, n) == 0) return text + i;
  return NULL;
}

/* Reads one request; with `early`, only its head. Enough of HTTP for the client, which writes header names in lower case. */
static bool peer_read(peer_conn *conn, bool early, char **text, size_t *len) {
  char *end, *value;
  size_t head, body;
  while ((end = *len ? find_bytes(*text, *len, "\r\n\r\n") : NULL) == NULL)
    if (!peer_more(conn, text, len)) return false;
  head = (size_t)(end - *text) + 4;
  if (early) return true;
  if (find_bytes(*text, head, "transfer-encoding: chunked")) {
    while (!find_bytes(*text + head - 2, *len - head + 2, "\r\n0\r\n\r\n"))
      if (!peer_more(conn, text, len)) return false;
    return true;
  }
  value = find_bytes(*text, head, "content-length: ");
  body = value ? (size_t)strtoull(value + 16, NULL, 10) : 0;
  while (*len < head + body)
    if (!peer_more(conn, text, len)) return false;
  return true;
}

/* False when the other side is gone. */
static bool peer_send(peer_conn *conn, const char *bytes, size_t len, bool dribble) {
  size_t done = 0;
  while (done < len) {
    ssize_t n;
    if (!peer_wait(conn, POLLOUT)) return false;
    n = send(conn->fd, bytes + done, dribble ? 1 : len - done, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN) return false;
    if (n > 0) done += (size_t)n;
  }
  return true;
}

/* Takes the next answer off the script. */
static bool peer_next(peer *p, peer_reply *reply) {
  bool ok;
  pthread_mutex_lock(&p->lock);
  ok = p->reply_next < p->reply_count;
  if (ok) {
    *reply = p->replies[p->reply_next];
    reply->bytes = (char *)malloc(reply->len + 1); /* the script may be cleared meanwhile */
    memcpy(reply->bytes, p->replies[p->reply_next].bytes, reply->len);
  }
  if (ok && !(reply->flags & PEER_REPEAT)) p->reply_next++;
  pthread_mutex_unlock(&p->lock);
  return ok;
}

static void peer_note(peer *p, char *text, size_t len) {
  int at;
  pthread_mutex_lock(&p->lock);
  at = p->request_count++ % PEER_MAX;
  free(p->requests[at]);
  p->requests[at] = text;
  p->request_lens[at] = len;
  pthread_mutex_unlock(&p->lock);
}

/* Gives the answer. False when the connection is to be closed. */
static bool peer_answer(peer_conn *conn, const peer_reply *reply) {
  char byte;
  if (!peer_send(conn, reply->bytes, reply->len, (reply->flags & PEER_DRIBBLE) != 0)) return false;
  while (reply->flags & PEER_ENDLESS)
    if (!peer_send(conn, reply->bytes + reply->len - 64, 64, false)) return false;
  if (reply->flags & PEER_RESET) {
    sleep_ms(20); /* a reset overtakes what was just sent */
    reset_on_close(conn->fd);
    return false;
  }
  while ((reply->flags & PEER_HANG) && !peer_stopping(conn->p)) {
    if (recv(conn->fd, &byte, 1, MSG_DONTWAIT | (reply->flags & PEER_EARLY ? MSG_PEEK : 0)) == 0) return false;
    sleep_ms(2);
  }
  return !(reply->flags & PEER_CLOSE);
}

/* One exchange. */
static bool peer_serve(peer_conn *conn) {
  peer *p = conn->p;
  peer_reply reply;
  char *text = NULL;
  size_t len = 0;
  bool more;
  if (!peer_read(conn, true, &text, &len)) {
    free(text);
    return false;
  }
  if (p->health && strncmp(text, "GET /health ", 12) == 0) {
    free(text);
    return peer_send(conn, p->health, strlen(p->health), false);
  }
  if (p->refusal && find_bytes(text, len, "proto\r\n")) { /* of its content type */
    more = peer_read(conn, false, &text, &len);
    peer_note(p, text, len);
    return more && peer_send(conn, p->refusal, strlen(p->refusal), false);
  }
  if (!peer_next(p, &reply)) {
    if (verbose) printf("  no answer is left for: %.60s\n", text);
    free(text);
    return false;
  }
  more = (reply.flags & PEER_EARLY) || peer_read(conn, false, &text, &len);
  peer_note(p, text, len);
  if (more) more = peer_answer(conn, &reply);
  free(reply.bytes);
  return more;
}

static void *peer_serve_all(void *arg) {
  peer_conn *conn = (peer_conn *)arg;
  int on = 1;
  (void)setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  while (peer_serve(conn)) continue;
  close(conn->fd);
  pthread_mutex_lock(&conn->p->lock);
  conn->p->live--;
  pthread_mutex_unlock(&conn->p->lock);
  free(conn);
  return NULL;
}

static void *peer_accept(void *arg) {
  peer *p = (peer *)arg;
  peer_conn listener;
  listener.p = p;
  listener.fd = p->listener;
  while (peer_wait(&listener, POLLIN)) {
    peer_conn *conn;
    pthread_t thread;
    int fd = accept(p->listener, NULL, NULL);
    if (fd < 0) continue;
    conn = (peer_conn *)calloc(1, sizeof *conn);
    conn->p = p;
    conn->fd = fd;
    pthread_mutex_lock(&p->lock);
    p->live++;
    p->accepted++;
    pthread_mutex_unlock(&p->lock);
    if (pthread_create(&thread, NULL, peer_serve_all, conn) == 0) pthread_detach(thread);
  }
  return NULL;
}

static void peer_start(peer *p) {
  memset(p, 0, sizeof *p);
  pthread_mutex_init(&p->lock, NULL);
  p->listener = listen_somewhere(&p->port);
  snprintf(p->url, sizeof p->url, "http://127.0.0.1:%u", (unsigned)p->port);
  CHECK(p->listener >= 0 && pthread_create(&p->thread, NULL, peer_accept, p) == 0);
}

/* Forgets the script and what was asked. */
static void peer_clear(peer *p) {
  int i;
  pthread_mutex_lock(&p->lock);
  for (i = 0; i < p->reply_count; i++) free(p->replies[i].bytes);
  for (i = 0; i < PEER_MAX; i++) free(p->requests[i]);
  memset(p->requests, 0, sizeof p->requests);
  p->reply_count = p->reply_next = p->request_count = 0;
  pthread_mutex_unlock(&p->lock);
}

/* Ends every connection and waits for the threads. */
static void peer_stop(peer *p) {
  int live = 1;
  __atomic_store_n(&p->stop, 1, __ATOMIC_SEQ_CST);
  pthread_join(p->thread, NULL);
  while (live) {
    pthread_mutex_lock(&p->lock);
    live = p->live;
    pthread_mutex_unlock(&p->lock);
    if (live) sleep_ms(1);
  }
  close(p->listener);
  peer_clear(p);
  pthread_mutex_destroy(&p->lock);
}

static void peer_say_n(peer *p, const char *bytes, size_t len, unsigned flags) {
  peer_reply *reply;
  pthread_mutex_lock(&p->lock);
  if (CHECK(p->reply_count < PEER_MAX)) {
    reply = &p->replies[p->reply_count++];
    reply->bytes = (char *)malloc(len + 1);
    memcpy(reply->bytes, bytes, len);
    reply->len = len;
    reply->flags = flags;
  }
  pthread_mutex_unlock(&p->lock);
}

static void peer_say(peer *p, const char *text, unsigned flags) {
  peer_say_n(p, text, strlen(text), flags);
}

static int peer_asked_count(peer *p) {
  int count;
  pthread_mutex_lock(&p->lock);
  count = p->request_count;
  pthread_mutex_unlock(&p->lock);
  return count;
}

/* Waits until the server has noted so many requests, whole or cut. */
static void peer_wait_asked(peer *p, int count) {
  int i;
  for (i = 0; i < 2000 && peer_asked_count(p) < count; i++) sleep_ms(1);
  CHECK_INT(peer_asked_count(p), count);
}

/* Waits until no more than so many connections are left. */
static void peer_wait_live(peer *p, int count) {
  int i, live = count + 1;
  for (i = 0; i < 5000 && live > count; i++) {
    pthread_mutex_lock(&p->lock);
    live = p->live;
    pthread_mutex_unlock(&p->lock);
    if (live > count) sleep_ms(1);
  }
}

/* A request as text, "" when there is none. */
static const char *peer_asked(peer *p, int at) {
  return at < peer_asked_count(p) ? p->requests[at % PEER_MAX] : "";
}
typedef struct done {
  int count;
  e2b_error err;
} done;

static void on_done(void *user, const e2b_error *err) {
  done *d = (done *)user;
  d->count++;
  d->err = *err;
}

/* ================================================================================================================== */
/* >>>> codecs */
/* ================================================================================================================== */

/* The same message in both encodings. Three other decoders agree with them. */
typedef struct codec_vector {
  const char *name;
  const e2b__message *message;
  const char *hex, *json;
} codec_vector;

static const codec_vector codec_vectors[] = {
  { "start_request_shell", &e2b__msg_start_request,
    "0a2a0a092f62696e2f6261736812022d6c12022d6312076563686f2068691a060a014112013122042f746d702000",
    "{\"process\":{\"cmd\":\"/bin/bash\",\"args\":[\"-l\",\"-c\",\"echo hi\"],\"envs\":{\"A\":\"1\"},\"cwd\":\"/t"
    "mp\"},\"stdin\":false}" },
  { "start_request_shell_min", &e2b__msg_start_request,
    "0a1c0a092f62696e2f6261736812022d6c12022d6312076563686f206869",
    "{\"process\":{\"cmd\":\"/bin/bash\",\"args\":[\"-l\",\"-c\",\"echo hi\"]}}" },
  { "start_request_two_envs_tag", &e2b__msg_start_request,
    "0a2c0a092f62696e2f6261736812022d6c12022d631204747275651a060a01411201311a090a05454d50545912001a036a6f622001",
    "{\"process\":{\"cmd\":\"/bin/bash\",\"args\":[\"-l\",\"-c\",\"true\"],\"envs\":{\"A\":\"1\",\"EMPTY\":\"\"}}"
    ",\"tag\":\"job\",\"stdin\":true}" },
  { "start_request_pty", &e2b__msg_start_request,
    "0a4f0a092f62696e2f6261736812022d6912022d6c1a160a045445524d120e787465726d2d323536636f6c6f721a0f0a044c414e4712"
    "07432e5554462d381a110a064c435f414c4c1207432e5554462d3812060a0408501018",
    "{\"process\":{\"cmd\":\"/bin/bash\",\"args\":[\"-i\",\"-l\"],\"envs\":{\"TERM\":\"xterm-256color\",\"LANG\":"
    "\"C.UTF-8\",\"LC_ALL\":\"C.UTF-8\"}},\"pty\":{\"size\":{\"cols\":80,\"rows\":24}}}" },
  { "start_response_start", &e2b__msg_event_response,
    "0a050a03089221",
    "{\"event\":{\"start\":{\"pid\":4242}}}" },
  { "start_response_stdout", &e2b__msg_event_response,
    "0a0712050a0368690a",
    "{\"event\":{\"data\":{\"stdout\":\"aGkK\"}}}" },
  { "start_response_stderr", &e2b__msg_event_response,
    "0a08120612046572720a",
    "{\"event\":{\"data\":{\"stderr\":\"ZXJyCg==\"}}}" },
  { "start_response_pty", &e2b__msg_event_response,
    "0a0a12081a061b5b306d2420",
    "{\"event\":{\"data\":{\"pty\":\"G1swbSQg\"}}}" },
  { "start_response_stdout_split_utf8_1", &e2b__msg_event_response,
    "0a0712050a0361f09f",
    "{\"event\":{\"data\":{\"stdout\":\"YfCf\"}}}" },
  { "start_response_stdout_split_utf8_2", &e2b__msg_event_response,
    "0a0612040a029880",
    "{\"event\":{\"data\":{\"stdout\":\"mIA=\"}}}" },
  { "start_response_stdout_empty", &e2b__msg_event_response,
    "0a0412020a00",
    "{\"event\":{\"data\":{\"stdout\":\"\"}}}" },
  { "start_response_keepalive", &e2b__msg_event_response,
    "0a022200",
    "{\"event\":{\"keepalive\":{}}}" },
  { "start_response_end_0", &e2b__msg_event_response,
    "0a131a1110011a0d65786974207374617475732030",
    "{\"event\":{\"end\":{\"exited\":true,\"status\":\"exit status 0\"}}}" },
  { "start_response_end_3", &e2b__msg_event_response,
    "0a241a22080610011a0d65786974207374617475732033220d65786974207374617475732033",
    "{\"event\":{\"end\":{\"exitCode\":3,\"exited\":true,\"status\":\"exit status 3\",\"error\":\"exit status 3\""
    "}}}" },
  { "start_response_end_killed", &e2b__msg_event_response,
    "0a241a2208011a0e7369676e616c3a206b696c6c6564220e7369676e616c3a206b696c6c6564",
    "{\"event\":{\"end\":{\"exitCode\":-1,\"status\":\"signal: killed\",\"error\":\"signal: killed\"}}}" },
  { "end_event_min", &e2b__msg_end_event,
    "08ffffffff0f",
    "{\"exitCode\":-2147483648}" },
  { "end_event_max", &e2b__msg_end_event,
    "08feffffff0f",
    "{\"exitCode\":2147483647}" },
  { "end_event_255", &e2b__msg_end_event,
    "08fe0310011a0f657869742073746174757320323535220f657869742073746174757320323535",
    "{\"exitCode\":255,\"exited\":true,\"status\":\"exit status 255\",\"error\":\"exit status 255\"}" },
  { "start_response_empty_event", &e2b__msg_event_response,
    "",
    "{}" },
  { "connect_request_pid", &e2b__msg_selector_request,
    "0a03089221",
    "{\"process\":{\"pid\":4242}}" },
  { "connect_request_tag", &e2b__msg_selector_request,
    "0a0512036a6f62",
    "{\"process\":{\"tag\":\"job\"}}" },
  { "connect_request_pid_0", &e2b__msg_selector_request,
    "0a020800",
    "{\"process\":{\"pid\":0}}" },
  { "connect_response_start", &e2b__msg_event_response,
    "0a050a03089221",
    "{\"event\":{\"start\":{\"pid\":4242}}}" },
  { "send_input_stdin", &e2b__msg_send_input_request,
    "0a0308922112080a0668656c6c6f0a",
    "{\"process\":{\"pid\":4242},\"input\":{\"stdin\":\"aGVsbG8K\"}}" },
  { "send_input_pty_ctrl_d", &e2b__msg_send_input_request,
    "0a030892211203120104",
    "{\"process\":{\"pid\":4242},\"input\":{\"pty\":\"BA==\"}}" },
  { "send_input_stdin_empty", &e2b__msg_send_input_request,
    "0a0308922112020a00",
    "{\"process\":{\"pid\":4242},\"input\":{\"stdin\":\"\"}}" },
  { "send_signal_kill", &e2b__msg_send_signal_request,
    "0a030892211009",
    "{\"process\":{\"pid\":4242},\"signal\":\"SIGNAL_SIGKILL\"}" },
  { "send_signal_term_tag", &e2b__msg_send_signal_request,
    "0a0512036a6f62100f",
    "{\"process\":{\"tag\":\"job\"},\"signal\":\"SIGNAL_SIGTERM\"}" },
  { "close_stdin", &e2b__msg_selector_request,
    "0a03089221",
    "{\"process\":{\"pid\":4242}}" },
  { "update_pty", &e2b__msg_update_request,
    "0a0308922112060a0408781028",
    "{\"process\":{\"pid\":4242},\"pty\":{\"size\":{\"cols\":120,\"rows\":40}}}" },
  { "update_pty_300x1", &e2b__msg_update_request,
    "0a0308ac0212070a0508ac021001",
    "{\"process\":{\"pid\":300},\"pty\":{\"size\":{\"cols\":300,\"rows\":1}}}" },
  { "stream_input_start", &e2b__msg_stream_input_request,
    "0a050a03089221",
    "{\"start\":{\"process\":{\"pid\":4242}}}" },
  { "stream_input_data", &e2b__msg_stream_input_request,
    "120512030a0178",
    "{\"data\":{\"input\":{\"stdin\":\"eA==\"}}}" },
  { "stream_input_keepalive", &e2b__msg_stream_input_request,
    "1a00",
    "{\"keepalive\":{}}" },
  { "process_list_request", &e2b__msg_empty,
    "",
    "{}" },
  { "process_list_response", &e2b__msg_process_list,
    "0a340a2a0a092f62696e2f6261736812022d6c12022d631207736c65657020391a060a014112013122042f746d701092211a036a6f62"
    "0a170a130a092f62696e2f6261736812022d6912022d6c1007",
    "{\"processes\":[{\"config\":{\"cmd\":\"/bin/bash\",\"args\":[\"-l\",\"-c\",\"sleep 9\"],\"envs\":{\"A\":\"1"
    "\"},\"cwd\":\"/tmp\"},\"pid\":4242,\"tag\":\"job\"},{\"config\":{\"cmd\":\"/bin/bash\",\"args\":[\"-i\",\"-l"
    "\"]},\"pid\":7}]}" },
  { "stat_request", &e2b__msg_path_request,
    "0a142f686f6d652f757365722f68656c6c6f2e747874",
    "{\"path\":\"/home/user/hello.txt\"}" },
  { "stat_response_metadata", &e2b__msg_entry_response,
    "0a640a0968656c6c6f2e74787410011a142f686f6d652f757365722f68656c6c6f2e747874200528a403320a2d72772d722d2d722d2d"
    "3a04757365724204757365724a0b08a5ebdcca0610959aef3a5a0d0a06617574686f721203616e6e5a060a016b120176",
    "{\"entry\":{\"name\":\"hello.txt\",\"type\":\"FILE_TYPE_FILE\",\"path\":\"/home/user/hello.txt\",\"size\":\""
    "5\",\"mode\":420,\"permissions\":\"-rw-r--r--\",\"owner\":\"user\",\"group\":\"user\",\"modifiedTime\":\"202"
    "6-01-02T03:04:05.123456789Z\",\"metadata\":{\"author\":\"ann\",\"k\":\"v\"}}}" },
  { "entry_info_symlink", &e2b__msg_entry_info,
    "0a046c696e6b10011a0f2f686f6d652f757365722f6c696e6b200928a403320a4c7277787277787277783a04726f6f744204726f6f74"
    "4a0608a5ebdcca0652142f686f6d652f757365722f68656c6c6f2e747874",
    "{\"name\":\"link\",\"type\":\"FILE_TYPE_FILE\",\"path\":\"/home/user/link\",\"size\":\"9\",\"mode\":420,\"pe"
    "rmissions\":\"Lrwxrwxrwx\",\"owner\":\"root\",\"group\":\"root\",\"modifiedTime\":\"2026-01-02T03:04:05Z\","
    "\"symlinkTarget\":\"/home/user/hello.txt\"}" },
  { "entry_info_broken_symlink", &e2b__msg_entry_info,
    "0a036261641a0e2f686f6d652f757365722f6261642004320a4c7277787277787277783a04726f6f744204726f6f744a0608a5ebdcca"
    "06520e2f686f6d652f757365722f626164",
    "{\"name\":\"bad\",\"path\":\"/home/user/bad\",\"size\":\"4\",\"permissions\":\"Lrwxrwxrwx\",\"owner\":\"root"
    "\",\"group\":\"root\",\"modifiedTime\":\"2026-01-02T03:04:05Z\",\"symlinkTarget\":\"/home/user/bad\"}" },
  { "entry_info_big_old", &e2b__msg_entry_info,
    "0a0362696710011a042f62696720808080801428ed03320a75727778722d78722d783a04313030314204313030314a1108ffffffffff"
    "ffffffff011080cab5ee01",
    "{\"name\":\"big\",\"type\":\"FILE_TYPE_FILE\",\"path\":\"/big\",\"size\":\"5368709120\",\"mode\":493,\"permi"
    "ssions\":\"urwxr-xr-x\",\"owner\":\"1001\",\"group\":\"1001\",\"modifiedTime\":\"1969-12-31T23:59:59.500Z\"}" },
  { "list_dir_request", &e2b__msg_list_dir_request,
    "0a0a2f686f6d652f757365721001",
    "{\"path\":\"/home/user\",\"depth\":1}" },
  { "list_dir_request_depth0", &e2b__msg_list_dir_request,
    "0a012e",
    "{\"path\":\".\"}" },
  { "list_dir_response", &e2b__msg_list_dir_response,
    "0a3d0a0364697210021a0e2f686f6d652f757365722f64697220802028ed03320a64727778722d78722d783a04757365724204757365"
    "724a0608a5ebdcca060a4d0a0968656c6c6f2e74787410011a142f686f6d652f757365722f68656c6c6f2e747874200528a403320a2d"
    "72772d722d2d722d2d3a04757365724204757365724a0b08a5ebdcca0610959aef3a",
    "{\"entries\":[{\"name\":\"dir\",\"type\":\"FILE_TYPE_DIRECTORY\",\"path\":\"/home/user/dir\",\"size\":\"4096"
    "\",\"mode\":493,\"permissions\":\"drwxr-xr-x\",\"owner\":\"user\",\"group\":\"user\",\"modifiedTime\":\"2026"
    "-01-02T03:04:05Z\"},{\"name\":\"hello.txt\",\"type\":\"FILE_TYPE_FILE\",\"path\":\"/home/user/hello.txt\",\""
    "size\":\"5\",\"mode\":420,\"permissions\":\"-rw-r--r--\",\"owner\":\"user\",\"group\":\"user\",\"modifiedTim"
    "e\":\"2026-01-02T03:04:05.123456789Z\"}]}" },
  { "list_dir_response_empty", &e2b__msg_list_dir_response,
    "",
    "{}" },
  { "make_dir_request", &e2b__msg_path_request,
    "0a0e2f686f6d652f757365722f646972",
    "{\"path\":\"/home/user/dir\"}" },
  { "move_request", &e2b__msg_move_request,
    "0a0c2f686f6d652f757365722f61120c2f686f6d652f757365722f62",
    "{\"source\":\"/home/user/a\",\"destination\":\"/home/user/b\"}" },
  { "remove_request", &e2b__msg_path_request,
    "0a0c2f686f6d652f757365722f62",
    "{\"path\":\"/home/user/b\"}" },
  { "watch_dir_request", &e2b__msg_watch_request,
    "0a0a2f686f6d652f75736572100118012001",
    "{\"path\":\"/home/user\",\"recursive\":true,\"includeEntry\":true,\"allowNetworkMounts\":true}" },
  { "watch_dir_start", &e2b__msg_watch_dir_response,
    "0a00",
    "{\"start\":{}}" },
  { "watch_dir_write", &e2b__msg_watch_dir_response,
    "120d0a0968656c6c6f2e7478741002",
    "{\"filesystem\":{\"name\":\"hello.txt\",\"type\":\"EVENT_TYPE_WRITE\"}}" },
  { "watch_dir_create_entry", &e2b__msg_watch_dir_response,
    "12610a0d6469722f68656c6c6f2e74787410011a4e0a0968656c6c6f2e74787410011a182f686f6d652f757365722f6469722f68656c"
    "6c6f2e74787428a403320a2d72772d722d2d722d2d3a04757365724204757365724a0a08a5ebdcca0610c0843d",
    "{\"filesystem\":{\"name\":\"dir/hello.txt\",\"type\":\"EVENT_TYPE_CREATE\",\"entry\":{\"name\":\"hello.txt\""
    ",\"type\":\"FILE_TYPE_FILE\",\"path\":\"/home/user/dir/hello.txt\",\"mode\":420,\"permissions\":\"-rw-r--r--"
    "\",\"owner\":\"user\",\"group\":\"user\",\"modifiedTime\":\"2026-01-02T03:04:05.001Z\"}}}" },
  { "watch_dir_keepalive", &e2b__msg_watch_dir_response,
    "1a00",
    "{\"keepalive\":{}}" },
  { "create_watcher_response", &e2b__msg_watcher_id,
    "0a0777616263313233",
    "{\"watcherId\":\"wabc123\"}" },
  { "get_watcher_events_request", &e2b__msg_watcher_id,
    "0a0777616263313233",
    "{\"watcherId\":\"wabc123\"}" },
  { "get_watcher_events_response", &e2b__msg_watcher_events,
    "0a050a016110010a050a016110050a050a01611003",
    "{\"events\":[{\"name\":\"a\",\"type\":\"EVENT_TYPE_CREATE\"},{\"name\":\"a\",\"type\":\"EVENT_TYPE_CHMOD\"},"
    "{\"name\":\"a\",\"type\":\"EVENT_TYPE_REMOVE\"}]}" },
  { "remove_watcher_request", &e2b__msg_watcher_id,
    "0a0777616263313233",
    "{\"watcherId\":\"wabc123\"}" },
};

/* ---- helpers ---- */

/* What a test needs, all over `heap`. */
typedef struct codec_bench {
  test_heap heap;
  e2b__mem mem;
  e2b__arena arena;
  e2b__buf out;
} codec_bench;

static void codec_open(codec_bench *b) {
  memset(b, 0, sizeof *b);
  heap_mem(&b->heap, &b->mem);
  e2b__arena_init(&b->arena, &b->mem, 1u << 20);
  e2b__buf_init(&b->out, &b->mem, 1u << 20);
}

static void codec_close(codec_bench *b) {
  e2b__arena_free(&b->arena);
  e2b__buf_free(&b->out);
  HEAP_CHECK_EMPTY(&b->heap);
  CHECK_INT(b->mem.now, 0);
}

/* A block of exactly this size, so that a sanitizer sees any read behind it. */
static char *codec_copy(const void *data, size_t len) {
  char *copy = (char *)malloc(len ? len : 1);
  if (!copy) abort();
  if (len) memcpy(copy, data, len);
  return copy;
}

static size_t codec_unhex(const char *hex, uint8_t *out) {
  size_t n;
  unsigned byte;
  for (n = 0; hex[2 * n] && sscanf(hex + 2 * n, "%2x", &byte) == 1; n++) out[n] = (uint8_t)byte;
  return n;
}

static const char *codec_text(e2b__buf *buf) {
  const char *text = e2b__buf_cstr(buf);
  return text ? text : "(no memory)";
}

static uint32_t codec_random(uint32_t *state) {
  *state = *state * 1664525u + 1013904223u;
  return *state >> 16;
}

/* A message of any type. */
typedef union codec_any {
  e2b__watch_dir_response a;
  e2b__start_request b;
  e2b__rest_sandbox c;
  e2b__connect_end d;
  int64_t align;
} codec_any;

static bool codec_same(codec_bench *b, const void *data, size_t len) {
  bool same = !b->out.err && b->out.len == len && (len == 0 || memcmp(b->out.data, data, len) == 0);
  b->out.len = 0;
  return same;
}

/* Names the case when it fails. */
static bool codec_case(bool ok, const char *name) {
  if (!ok) printf("failed: %s\n", name);
  return ok;
}

/* Both encodings of a decoded message are those of the vector. */
static void codec_check_encodings(codec_bench *b, const codec_vector *v, const codec_any *m) {
  uint8_t bytes[512];
  size_t len = codec_unhex(v->hex, bytes);
  CHECK(codec_case(e2b__pb_put(v->message, m, NULL) == len, v->name));
  e2b__pb_encode(v->message, m, &b->out);
  CHECK(codec_case(codec_same(b, bytes, len), v->name));
  e2b__json_encode(v->message, m, &b->out);
  CHECK(codec_case(codec_same(b, v->json, strlen(v->json)), v->name));
}

/* ---- both codecs over the vectors ---- */

static void test_codec_vectors(void) {
  size_t i;
  for (i = 0; i < E2B__COUNT(codec_vectors); i++) {
    const codec_vector *v = &codec_vectors[i];
    codec_bench b;
    codec_any m;
    uint8_t bytes[512];
    size_t len = codec_unhex(v->hex, bytes);
    char *data = codec_copy(bytes, len), *text = codec_copy(v->json, strlen(v->json));
    CHECK(v->message->size <= sizeof m);
    codec_open(&b);
    CHECK_INT(e2b__pb_decode(v->message, (const uint8_t *)data, len, &b.arena, &m), E2B_OK);
    codec_check_encodings(&b, v, &m);
    CHECK_INT(e2b__json_decode(v->message, text, strlen(v->json), &b.arena, &m), E2B_OK);
    codec_check_encodings(&b, v, &m);
    codec_close(&b);
    free(data);
    free(text);
  }
}

/* A prefix of a message is malformed or ends between two fields. A prefix of a JSON document is always malformed. */
static void test_codec_truncated(void) {
  size_t i, n;
  for (i = 0; i < E2B__COUNT(codec_vectors); i++) {
    const codec_vector *v = &codec_vectors[i];
    uint8_t bytes[512];
    size_t len = codec_unhex(v->hex, bytes);
    codec_bench b;
    codec_any m;
    e2b_err err;
    codec_open(&b);
    for (n = 0; n < len; n++) {
      char *data = codec_copy(bytes, n);
      err = e2b__pb_decode(v->message, (const uint8_t *)data, n, &b.arena, &m);
      CHECK(err == E2B_OK || err == E2B_ERR_PROTOCOL);
      if (!err) {
        e2b__pb_encode(v->message, &m, &b.out);
        CHECK(codec_same(&b, bytes, n));
      }
      free(data);
    }
    for (n = 0; n < strlen(v->json); n++) {
      char *text = codec_copy(v->json, n);
      CHECK_INT(e2b__json_decode(v->message, text, n, &b.arena, &m), E2B_ERR_PROTOCOL);
      free(text);
    }
    codec_close(&b);
  }
}

/* Nothing that a peer sends reads or writes outside: every byte changed in several ways. The sanitizers judge. */
static void test_codec_damaged(void) {
  static const uint8_t masks[] = { 0x01, 0x02, 0x04, 0x08, 0x20, 0x40, 0x80, 0xff };
  size_t i, n, k;
  for (i = 0; i < E2B__COUNT(codec_vectors); i++) {
    const codec_vector *v = &codec_vectors[i];
    uint8_t bytes[512];
    size_t len = codec_unhex(v->hex, bytes), text_len = strlen(v->json);
    codec_any m;
    for (n = 0; n < (len + text_len) * E2B__COUNT(masks); n++) {
      codec_bench b;
      bool json = n >= len * E2B__COUNT(masks);
      char *data = json ? codec_copy(v->json, text_len) : codec_copy(bytes, len);
      k = n / E2B__COUNT(masks) - (json ? len : 0);
      data[k] = (char)((uint8_t)data[k] ^ masks[n % E2B__COUNT(masks)]);
      codec_open(&b);
      if ((json ? e2b__json_decode(v->message, data, text_len, &b.arena, &m)
                : e2b__pb_decode(v->message, (const uint8_t *)data, len, &b.arena, &m)) == E2B_OK) {
        e2b__pb_encode(v->message, &m, &b.out);
        CHECK_INT(b.out.len, e2b__pb_put(v->message, &m, NULL));
        e2b__json_encode(v->message, &m, &b.out);
        CHECK_INT(b.out.err, E2B_OK);
      }
      codec_close(&b);
      free(data);
    }
  }
}

/* Writes a decoded message with its fields in descending order, and unknown fields between them. */
static void codec_put_reversed(const e2b__message *m, const void *in, e2b__mem *mem, e2b__buf *out) {
  static const char unknown[] = "\xa0\x06\x05" "\xa1\x06" "12345678" "\xa5\x06" "1234" "\xa2\x06\x02" "ab";
  size_t i, count;
  const uint8_t *value;
  for (i = m->count; i-- > 0;) {
    const e2b__field *f = &m->fields[i];
    e2b__buf_put(out, unknown, sizeof unknown - 1);
    for (count = e2b__field_values(f, in, &value); count > 0; count--, value += e2b__field_size(f)) {
      e2b__buf sub;
      if (!f->sub) {
        e2b__pb_put_value(f, value, out);
        continue;
      }
      e2b__buf_init(&sub, mem, 1u << 20);
      codec_put_reversed(f->sub, value, mem, &sub);
      e2b__pb_put_varint((uint64_t)f->number << 3 | 2, out);
      e2b__pb_put_varint(sub.len, out);
      e2b__buf_put(out, sub.data, sub.len);
      e2b__buf_free(&sub);
    }
  }
}

static void codec_put_space(e2b__buf *out, uint32_t *random) {
  while (codec_random(random) % 3 == 0) e2b__buf_byte(out, (uint8_t)" \t\r\n"[codec_random(random) % 4]);
}

/* Text with every character escaped in one of the possible ways. */
static void codec_put_escaped(e2b_str text, e2b__buf *out, uint32_t *random) {
  size_t i;
  char escape[16];
  e2b__buf_byte(out, '"');
  for (i = 0; i < text.len; i++) {
    (void)snprintf(escape, sizeof escape, codec_random(random) % 2 ? "\\u%04x" : "\\u%04X", (uint8_t)text.ptr[i]);
    if (codec_random(random) % 2 && (uint8_t)text.ptr[i] < 0x80) e2b__buf_text(out, escape);
    else if (text.ptr[i] == '/' && codec_random(random) % 2) e2b__buf_text(out, "\\/");
    else e2b__buf_byte(out, (uint8_t)text.ptr[i]);
  }
  e2b__buf_byte(out, '"');
}

/* Writes a JSON document again with random white space and escapes, and members nobody knows. */
static void codec_put_noisy(const char *json, e2b__buf *out, uint32_t *random) {
  static const char *const unknown[] = { "\"x\":null,", "\"\" :[ {\"name\" : [ ]} , \"\\ud800\"],",
      "\"y\":-1.5e+3," };
  e2b__json_reader r;
  e2b__json_token t;
  char *copy = codec_copy(json, strlen(json));
  bool in_map[64], comma = false;
  size_t depth = 0;
  e2b_str key = e2b__str("");
  memset(in_map, 0, sizeof in_map);
  e2b__json_open(&r, copy, strlen(json));
  while (e2b__json_next(&r, &t) > E2B__JSON_END) {
    bool ends = t.type == E2B__JSON_OBJECT_END || t.type == E2B__JSON_ARRAY_END;
    if (comma && !ends) e2b__buf_byte(out, ',');
    codec_put_space(out, random);
    comma = t.type != E2B__JSON_OBJECT && t.type != E2B__JSON_ARRAY && t.type != E2B__JSON_KEY;
    if (t.type == E2B__JSON_KEY) {
      if (!in_map[depth] && codec_random(random) % 2) e2b__buf_text(out, unknown[codec_random(random) % 3]);
      key = t.text;
    }
    if (t.type == E2B__JSON_KEY || t.type == E2B__JSON_STRING) codec_put_escaped(t.text, out, random);
    else e2b__buf_put(out, t.start ? t.start : r.at - 1, t.start ? (size_t)(r.at - t.start) : 1);
    codec_put_space(out, random);
    if (t.type == E2B__JSON_KEY) e2b__buf_byte(out, ':');
    if (t.type == E2B__JSON_OBJECT) in_map[++depth] = e2b__str_eq(key, "envs") || e2b__str_eq(key, "metadata");
    if (t.type == E2B__JSON_OBJECT_END) depth--;
  }
  CHECK_INT(t.type, E2B__JSON_END);
  free(copy);
}

static void test_codec_order_and_noise(void) {
  uint32_t random = 1;
  size_t i, round;
  for (i = 0; i < E2B__COUNT(codec_vectors); i++) {
    const codec_vector *v = &codec_vectors[i];
    for (round = 0; round < 8; round++) {
      codec_bench b;
      codec_any m;
      uint8_t bytes[512];
      size_t len = codec_unhex(v->hex, bytes);
      e2b__buf other;
      codec_open(&b);
      e2b__buf_init(&other, &b.mem, 1u << 20);
      CHECK_INT(e2b__pb_decode(v->message, bytes, len, &b.arena, &m), E2B_OK);
      codec_put_reversed(v->message, &m, &b.mem, &other);
      CHECK_INT(e2b__pb_decode(v->message, other.data, other.len, &b.arena, &m), E2B_OK);
      codec_check_encodings(&b, v, &m);
      e2b__buf_free(&other);
      codec_put_noisy(v->json, &other, &random);
      CHECK_INT(e2b__json_decode(v->message, (char *)other.data, other.len, &b.arena, &m), E2B_OK);
      codec_check_encodings(&b, v, &m);
      e2b__buf_free(&other);
      codec_close(&b);
    }
  }
}

static e2b_err codec_everything(codec_bench *b, const codec_vector *v) {
  codec_any m;
  uint8_t bytes[512];
  size_t len = codec_unhex(v->hex, bytes);
  char *text = codec_copy(v->json, strlen(v->json));
  e2b_err err = e2b__pb_decode(v->message, bytes, len, &b->arena, &m);
  if (!err) e2b__json_encode(v->message, &m, &b->out);
  if (!err) err = b->out.err;
  if (!err) err = e2b__json_decode(v->message, text, strlen(v->json), &b->arena, &m);
  if (!err) e2b__pb_encode(v->message, &m, &b->out);
  if (!err) err = b->out.err;
  free(text);
  return err;
}

static void test_codec_no_memory(void) {
  size_t i, fail_at;
  for (i = 0; i < E2B__COUNT(codec_vectors); i++) {
    e2b_err err = E2B_ERR_NO_MEMORY;
    for (fail_at = 1; err; fail_at++) {
      codec_bench b;
      codec_open(&b);
      b.heap.fail_at = fail_at;
      err = codec_everything(&b, &codec_vectors[i]);
      CHECK(err == E2B_ERR_NO_MEMORY || (err == E2B_OK && b.heap.calls < fail_at));
      codec_close(&b);
      if (fail_at > 100) break;
    }
    CHECK_INT(err, E2B_OK);
  }
}

/* A peer cannot make the decoder take more than the arena allows. */
static void test_codec_limits(void) {
  size_t i, count = 20000;
  uint8_t *data = (uint8_t *)malloc(count * 2);
  char *text = (char *)malloc(count * 3 + 16);
  e2b__list_dir_response list;
  e2b__process_config config;
  e2b__list items;
  codec_bench b;
  if (!data || !text) abort();
  for (i = 0; i < count; i++) {
    data[2 * i] = 0x0a;
    data[2 * i + 1] = 0;
  }
  codec_open(&b);
  CHECK_INT(e2b__pb_decode(&e2b__msg_list_dir_response, data, count * 2, &b.arena, &list), E2B_ERR_LIMIT);
  CHECK(b.mem.now <= (1u << 20) + 4096);
  codec_close(&b);
  for (i = 0; i < count; i++) data[2 * i] = 0x12;
  codec_open(&b);
  CHECK_INT(e2b__pb_decode(&e2b__msg_process_config, data, count * 2, &b.arena, &config), E2B_OK);
  CHECK_INT(config.args.count, count);
  codec_close(&b);
  text[0] = '[';
  for (i = 0; i < count; i++) memcpy(text + 1 + i * 3, "{},", 3);
  text[count * 3] = ']';
  codec_open(&b);
  CHECK_INT(e2b__json_decode_list(&e2b__msg_rest_sandbox, text, count * 3 + 1, &b.arena, &items), E2B_ERR_LIMIT);
  codec_close(&b);
  codec_open(&b);
  b.out.max = 10;
  memset(&config, 0, sizeof config);
  config.cmd = e2b__str("0123456789");
  e2b__pb_encode(&e2b__msg_process_config, &config, &b.out);
  CHECK_INT(b.out.err, E2B_ERR_LIMIT);
  codec_close(&b);
  free(data);
  free(text);
}

/* ---- protobuf ---- */

static e2b_err codec_decode_hex(codec_bench *b, const e2b__message *m, const char *hex, void *out) {
  uint8_t bytes[256];
  size_t len = codec_unhex(hex, bytes);
  uint8_t *data = (uint8_t *)e2b__arena_alloc(&b->arena, len + 1);
  if (!data) abort();
  if (len) memcpy(data, bytes, len);
  return e2b__pb_decode(m, data, len, &b->arena, out);
}

/* Decodes into `out` with the bench `b`. */
#define CODEC_READ_HEX(message, hex, out) CHECK_INT(codec_decode_hex(&b, &e2b__msg_##message, hex, &out), E2B_OK)

static void test_pb_malformed(void) {
  static const char *const bad[] = {
    "0a",                             /* no length */
    "0a05",                           /* no content */
    "0a0561626364",                   /* content too short */
    "0affffffff0f",                   /* 4 GB */
    "0affffffffffffffffff01",         /* 2^64 - 1 */
    "0a80",                           /* length ends early */
    "0a8080808080808080808000",       /* length of 11 bytes */
    "10ffffffffffffffffff02",         /* 65 bits */
    "10ffffffffffffffffff8001",       /* varint of 11 bytes */
    "1080",                           /* varint ends early */
    "80",                             /* tag ends early */
    "0001", "0200",                   /* field 0 */
    "808080808001",                   /* tag beyond 32 bits */
    "0b", "0b0c", "0c",               /* groups */
    "0e00", "0f00",                   /* unknown wire types */
    "a10600", "a50600", "a2060161ff", /* unknown fields, too short */
    "0a020a05",                       /* submessage whose length is too long */
    "0a020a0361616161",               /* the same, with bytes of the parent behind it */
    "0a041a020a05", "0a041a030a0161", /* map entry */
  };
  e2b__process_info info;
  size_t i;
  for (i = 0; i < E2B__COUNT(bad); i++) {
    codec_bench b;
    codec_open(&b);
    CHECK(codec_case(codec_decode_hex(&b, &e2b__msg_process_info, bad[i], &info) == E2B_ERR_PROTOCOL, bad[i]));
    codec_close(&b);
  }
}

static void test_pb_rules(void) {
  codec_bench b;
  codec_any any;
  e2b__process_info info;
  e2b__start_request start;
  e2b__end_event end;
  e2b__process_selector selector;
  e2b__process_event event;
  e2b__entry_info entry;
  e2b__timestamp time;
  codec_open(&b);
  CHECK_INT(e2b__pb_decode(&e2b__msg_process_info, NULL, 0, &b.arena, &info), E2B_OK); /* nothing is a message */
  CHECK(!info.has_config && info.pid == 0 && !info.has_tag);
  CODEC_READ_HEX(process_info, "1001108080808080808080800010ffffffffff0f", info);
  CHECK_INT(info.pid, UINT32_MAX);  /* the last one, cut to 32 bits; padding zeros before it */
  CODEC_READ_HEX(process_info, "12021005150102030411" "0102030405060708", info);
  CHECK_INT(info.pid, 0); /* other wire types: unknown fields */
  CODEC_READ_HEX(process_info, "0a030a0161" "0a03220162" "0a020a00", info);
  CHECK(info.has_config && info.config.cmd.len == 0 && e2b__str_eq(info.config.cwd, "b")); /* merged */
  CODEC_READ_HEX(start_request, "208001" "1a00" "1200", start);
  CHECK(start.has_stdin_open && start.stdin_open && start.has_tag && start.tag.len == 0);
  CHECK(start.has_pty && !start.pty.has_size && !start.has_process);
  CODEC_READ_HEX(end_event, "08feffffff0f", end);
  CHECK_INT(end.exit_code, INT32_MAX);
  CODEC_READ_HEX(end_event, "08ffffffff0f1008", end);
  CHECK(end.exit_code == INT32_MIN && end.exited);
  CODEC_READ_HEX(process_selector, "080512016a", selector);
  CHECK(!selector.has_pid && selector.has_tag && e2b__str_eq(selector.tag, "j"));
  CODEC_READ_HEX(process_selector, "12016a0805", selector);
  CHECK(selector.has_pid && !selector.has_tag && selector.pid == 5);
  /* end{exit 1, exited}, start, end{status}: the first end is forgotten; end, end: merged */
  CODEC_READ_HEX(process_event, "1a0408021001" "0a020805" "1a031a0178", event);
  CHECK(event.has_end && !event.has_start && event.end.exit_code == 0 && !event.end.exited);
  CODEC_READ_HEX(process_event, "1a0408021001" "1a031a0178", event);
  CHECK(event.has_end && event.end.exit_code == 1 && event.end.exited && e2b__str_eq(event.end.status, "x"));
  CODEC_READ_HEX(entry_info, "10ffffffffffffffffff01" "20ffffffffffffffffff01" "5a00", entry);
  CHECK(entry.type == -1 && entry.size == -1 && entry.metadata.count == 1);
  CHECK(((e2b__pair *)entry.metadata.items)->key.len == 0);
  e2b__pb_encode(&e2b__msg_entry_info, &entry, &b.out);
  CHECK(codec_same(&b, "\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
                       "\x5a\x04\x0a\x00\x12\x00", 28));
  CODEC_READ_HEX(timestamp, "0880808080808080808001" "1080808080f8ffffffff01", time);
  CHECK(time.seconds == INT64_MIN && time.nanos == INT32_MIN);
  CODEC_READ_HEX(rest_sandbox, "0a0161", any); /* JSON only: no field matches */
  codec_close(&b);
}

/* A submessage of 128 bytes and more has a longer length. */
static void test_pb_long(void) {
  size_t len;
  static char text[70000];
  memset(text, 'a', sizeof text);
  for (len = 120; len < sizeof text; len = len < 136 ? len + 1 : len * 3) {
    codec_bench b;
    e2b__start_request in, out;
    codec_open(&b);
    memset(&in, 0, sizeof in);
    in.has_process = true;
    in.process.cmd = e2b__str_n(text, len);
    e2b__pb_encode(&e2b__msg_start_request, &in, &b.out);
    CHECK_INT(b.out.len, e2b__pb_put(&e2b__msg_start_request, &in, NULL));
    CHECK_INT(e2b__pb_decode(&e2b__msg_start_request, b.out.data, b.out.len, &b.arena, &out), E2B_OK);
    CHECK_INT(out.process.cmd.len, len);
    codec_close(&b);
  }
}

/* ---- JSON ---- */

static bool codec_json_ok(const char *json) {
  size_t len = strlen(json);
  char *text = codec_copy(json, len);
  e2b__json_reader r;
  e2b__json_token t;
  bool ok, skipped;
  e2b__json_open(&r, text, len);
  ok = e2b__json_next(&r, &t) > E2B__JSON_END && e2b__json_skip(&r, &t) && e2b__json_next(&r, &t) == E2B__JSON_END;
  CHECK(len == 0 || memcmp(text, json, len) == 0 || json[0] == '"'); /* skipping changes nothing */
  memcpy(text, json, len);
  e2b__json_open(&r, text, len);
  while (e2b__json_next(&r, &t) > E2B__JSON_END) continue;
  skipped = ok;
  ok = t.type == E2B__JSON_END;
  CHECK(codec_case(ok == skipped, json));
  CHECK_INT(e2b__json_next(&r, &t), ok ? E2B__JSON_END : E2B__JSON_ERROR); /* stays so */
  free(text);
  return ok;
}

static void test_json_grammar(void) {
  static const char *const good[] = {
    "null", " true ", "false", "0", "-0", "1.5", "-1.25e+10", "1E5", "1e-5", "\"\"", "\"a\"", "[]", "{}", "[ ]",
    "{ }", "[1,2]", "[[],{}]", "{\"a\":1}", "{\"a\":{\"b\":[1,{\"c\":null}]},\"a\":2}", "\t\r\n[\n]\r", "{\"\":\"\"}",
    "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\"", "\"\xff\xfe\"", "\"\x7f\"", "[\"a\",-1,true,false,null,{}]"
  };
  static const char *const bad[] = {
    "", " ", "nul", "nulll", "True", "tru", "+1", "01", "-", "-01", "1.", ".5", "1e", "1e+", "0x1", "1.e5", "NaN",
    "Infinity", "\"", "\"a", "\"\\", "\"\\\"", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\\u\"", "\"a\nb\"", "\"\x01\"",
    "'a'",
    "[", "]", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1}", "[1]]", "{", "}", "{\"a\"}", "{\"a\":}", "{\"a\":1",
    "{\"a\":1,", "{\"a\":1,}", "{,}", "{a:1}", "{1:1}", "{\"a\" 1}", "{\"a\":1 \"b\":2}", "{\"a\":1]", "{\"a\"::1}",
    "{\"a\",1}", "{null:1}", "1 2", "[]x", "{}{}", ",", ":", "//", "[1]/**/", "\xef\xbb\xbf{}", "[\"a\":1]", "\f1",
    "\"\\U0041\"", "\"\\u004", "\"\\ud800\\u\"", "\"\\ud800\\u12\"", "\"\\ud800\\"
  };
  size_t i;
  for (i = 0; i < E2B__COUNT(good); i++) CHECK(codec_case(codec_json_ok(good[i]), good[i]));
  for (i = 0; i < E2B__COUNT(bad); i++) CHECK(codec_case(!codec_json_ok(bad[i]), bad[i]));
  CHECK(e2b__json_valid("{\"a\":\"\\u0041\"}", 14, '{') && e2b__json_valid(" [1] ", 5, '['));
  CHECK(!e2b__json_valid("[1]", 3, '{') && !e2b__json_valid("{}x", 3, '{') && !e2b__json_valid("", 0, '{'));
  CHECK(!e2b__json_valid("{}", 1, '{') && !e2b__json_valid(NULL, 0, '{'));
}

static void test_json_depth(void) {
  char text[160];
  size_t depth;
  for (depth = 60; depth < 70; depth++) {
    memset(text, '[', depth);
    memset(text + depth, ']', depth);
    text[depth * 2] = 0;
    CHECK_INT(codec_json_ok(text), depth <= 64);
  }
  text[0] = 0; /* alternating, so that each bit of the stack of containers is tried */
  for (depth = 0; depth < 16; depth++) memcpy(text + depth * 5, "[{\"\":", 6);
  memcpy(text + depth * 5, "1", 2);
  for (depth = 0; depth < 16; depth++) memcpy(text + 81 + depth * 2, "}]", 3);
  CHECK(codec_json_ok(text));
  text[81] = ']';
  CHECK(!codec_json_ok(text));
}

/* One string through the reader. */
static bool codec_unescapes(const char *json, const char *text, size_t len) {
  char *copy = codec_copy(json, strlen(json));
  e2b__json_reader r;
  e2b__json_token t;
  bool same;
  e2b__json_open(&r, copy, strlen(json));
  same = e2b__json_next(&r, &t) == E2B__JSON_STRING && t.text.len == len && memcmp(t.text.ptr, text, len) == 0;
  free(copy);
  return same;
}

static void test_json_strings(void) {
  CHECK(codec_unescapes("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t", 8));
  CHECK(codec_unescapes("\"a\\u0000b\"", "a\0b", 3));
  CHECK(codec_unescapes("\"\\u007f\\u0080\\u07FF\\u0800\\uffff\"", "\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf",
      11));
  CHECK(codec_unescapes("\"\\ud83d\\uDE00\"", "\xf0\x9f\x98\x80", 4));
  CHECK(codec_unescapes("\"\\ud800\\udc00\\udbff\\udfff\"", "\xf0\x90\x80\x80\xf4\x8f\xbf\xbf", 8));
  CHECK(codec_unescapes("\"\\ud800\"", "\xef\xbf\xbd", 3));            /* alone */
  CHECK(codec_unescapes("\"\\udc00\\ud800x\"", "\xef\xbf\xbd\xef\xbf\xbdx", 7)); /* the wrong way round */
  CHECK(codec_unescapes("\"\\ud800\\u0041\"", "\xef\xbf\xbd" "A", 4));
  CHECK(codec_unescapes("\"\\ud800\\ud83d\\ude00\"", "\xef\xbf\xbd\xf0\x9f\x98\x80", 7));
  CHECK(codec_unescapes("\"\\ud800\\n\"", "\xef\xbf\xbd\n", 4));
  CHECK(codec_unescapes("\"\xff\xc0\"", "\xff\xc0", 2));
}

static void test_json_integers(void) {
  static const struct {
    const char *text;
    bool ok;
    int64_t value;
  } numbers[] = {
    { "0", true, 0 }, { "-0", true, 0 }, { "7", true, 7 }, { "-1", true, -1 },
    { "9223372036854775807", true, INT64_MAX }, { "-9223372036854775808", true, INT64_MIN },
    { "-9223372036854775807", true, -INT64_MAX }, { "9007199254740993", true, 9007199254740993 },
    { "9223372036854775808", false, 0 }, { "-9223372036854775809", false, 0 }, { "18446744073709551616", false, 0 },
    { "99999999999999999999", false, 0 }, { "", false, 0 }, { "-", false, 0 }, { "+1", false, 0 },
    { "1.0", false, 0 }, { "1e3", false, 0 }, { " 1", false, 0 }, { "1 ", false, 0 }, { "--1", false, 0 },
    { "0x1", false, 0 }
  };
  size_t i;
  for (i = 0; i < E2B__COUNT(numbers); i++) {
    int64_t value = 0;
    CHECK(codec_case(e2b__json_to_i64(e2b__str(numbers[i].text), &value) == numbers[i].ok, numbers[i].text));
    CHECK_INT(value, numbers[i].value);
  }
  CHECK(!e2b__json_to_i64(e2b__str(NULL), NULL));
}

static void test_json_writer(void) {
  static const char *const texts[] = { "x", "" };
  static const e2b_kv pairs[] = { { "a", "1" }, { "q\"", "\\" } };
  codec_bench b;
  e2b__json_writer w;
  e2b_kvs kvs;
  e2b_strs strs;
  size_t fail_at;
  kvs.items = pairs;
  strs.items = texts;
  for (fail_at = 0; fail_at < 4; fail_at++) {
    codec_open(&b);
    b.heap.fail_at = fail_at;
    w.out = &b.out;
    w.comma = false;
    kvs.count = strs.count = 0;
    e2b__json_begin(&w, '{');
    e2b__json_kvs(&w, "none", kvs);
    e2b__json_strs(&w, "none", strs);
    kvs.count = strs.count = 2;
    e2b__json_kvs(&w, "kvs", kvs);
    e2b__json_strs(&w, "strs", strs);
    e2b__json_key(&w, "list");
    e2b__json_begin(&w, '[');
    e2b__json_i64(&w, INT64_MIN);
    e2b__json_bool(&w, false);
    e2b__json_raw(&w, e2b__str("{}"));
    e2b__json_str(&w, e2b__str_n("\0\x1f\n\x7f\xc3\xa4/", 7));
    e2b__json_str(&w, e2b__str(NULL));
    e2b__json_end(&w, ']');
    e2b__json_end(&w, '}');
    if (b.out.err) {
      CHECK_INT(b.out.err, E2B_ERR_NO_MEMORY);
    } else {
      CHECK_STR(codec_text(&b.out),
                "{\"kvs\":{\"a\":\"1\",\"q\\\"\":\"\\\\\"},\"strs\":[\"x\",\"\"],"
                "\"list\":[-9223372036854775808,false,{},\"\\u0000\\u001f\\u000a\x7f\xc3\xa4/\",\"\"]}");
    }
    CHECK(fail_at != 1 || b.out.err);
    codec_close(&b);
  }
}

/* ---- times, base64 ---- */

static void test_json_times(void) {
  static const struct {
    const char *text;
    int64_t seconds;
    int32_t nanos;
    const char *formatted; /* NULL = the same */
  } good[] = {
    { "1970-01-01T00:00:00Z", 0, 0, NULL },
    { "1969-12-31T23:59:59.500Z", -1, 500000000, NULL },
    { "2026-01-02T03:04:05.123456789Z", 1767323045, 123456789, NULL },
    { "2026-01-02T03:04:05.001Z", 1767323045, 1000000, NULL },
    { "2026-01-02T03:04:05.000001Z", 1767323045, 1000, NULL },
    { "2026-01-02T03:04:05.000000001Z", 1767323045, 1, NULL },
    { "2026-01-02t03:04:05.1z", 1767323045, 100000000, "2026-01-02T03:04:05.100Z" },
    { "2026-01-02T03:04:05.12345678999Z", 1767323045, 123456789, "2026-01-02T03:04:05.123456789Z" },
    { "2026-01-02T05:04:05+02:00", 1767323045, 0, "2026-01-02T03:04:05Z" },
    { "2026-01-01T21:34:05-05:30", 1767323045, 0, "2026-01-02T03:04:05Z" },
    { "2026-01-02T03:04:05-00:00", 1767323045, 0, "2026-01-02T03:04:05Z" },
    { "1972-02-29T00:00:00Z", 68169600, 0, NULL },
    { "2000-02-29T12:00:00Z", 951825600, 0, NULL },
    { "1900-02-28T23:59:59Z", -2203891201, 0, NULL },
    { "1900-03-01T00:00:00Z", -2203891200, 0, NULL },
    { "0001-01-01T00:00:00Z", -62135596800, 0, NULL },
    { "9999-12-31T23:59:59.999999999Z", 253402300799, 999999999, NULL },
    { "2016-12-31T23:59:60Z", 1483228800, 0, "2017-01-01T00:00:00Z" },
  };
  static const char *const bad[] = {
    "", "<unknown>", "2026", "2026-01-02", "2026-01-02T03:04:05", "2026-01-02 03:04:05Z", "2026-1-02T03:04:05Z",
    "2026-00-02T03:04:05Z", "2026-13-02T03:04:05Z", "2026-01-00T03:04:05Z", "2026-01-32T03:04:05Z",
    "2026-04-31T03:04:05Z", "2026-02-29T03:04:05Z", "1900-02-29T03:04:05Z", "2026-01-02T24:00:00Z",
    "2026-01-02T03:60:05Z", "2026-01-02T03:04:61Z", "2026-01-02T03:04:05.Z", "2026-01-02T03:04:05,1Z",
    "2026-01-02T03:04:05.1", "2026-01-02T03:04:05Zx", "2026-01-02T03:04:05+0200", "2026-01-02T03:04:05+24:00",
    "2026-01-02T03:04:05+02:60", "2026-01-02T03:04:05+02", "2026-01-02T03:04:05*02:00", "0000-01-01T00:00:00Z",
    "-001-01-01T00:00:00Z", "2026-01-02T-3:04:05Z", "2026-01-02T03:04:05.-1Z"
  };
  codec_bench b;
  e2b__timestamp t;
  size_t i, n;
  codec_open(&b);
  for (i = 0; i < E2B__COUNT(good); i++) {
    CHECK(codec_case(e2b__time_parse(e2b__str(good[i].text), &t), good[i].text));
    CHECK_INT(t.seconds, good[i].seconds);
    CHECK_INT(t.nanos, good[i].nanos);
    b.out.len = 0;
    e2b__time_format(t, &b.out);
    CHECK_STR(codec_text(&b.out), good[i].formatted ? good[i].formatted : good[i].text);
    for (n = 0; n < strlen(good[i].text); n++) {
      char *prefix = codec_copy(good[i].text, n);
      CHECK(!e2b__time_parse(e2b__str_n(prefix, n), &t));
      free(prefix);
    }
  }
  for (i = 0; i < E2B__COUNT(bad); i++) CHECK(codec_case(!e2b__time_parse(e2b__str(bad[i]), &t), bad[i]));
  CHECK(!e2b__time_parse(e2b__str(NULL), &t));
  for (t.nanos = 0, t.seconds = -62135596800; t.seconds < 253402300799; t.seconds += 86400 * 11 + 40000) {
    e2b__timestamp back;
    b.out.len = 0;
    e2b__time_format(t, &b.out);
    if (!e2b__time_parse(e2b__str_n((const char *)b.out.data, b.out.len), &back) || back.seconds != t.seconds) break;
  }
  CHECK(t.seconds >= 253402300799);
  t.seconds = INT64_MIN;
  t.nanos = INT32_MIN;
  b.out.len = 0;
  e2b__time_format(t, &b.out);
  CHECK_STR(codec_text(&b.out), "0001-01-01T00:00:00Z");
  t.seconds = INT64_MAX;
  t.nanos = INT32_MAX;
  b.out.len = 0;
  e2b__time_format(t, &b.out);
  CHECK_STR(codec_text(&b.out), "9999-12-31T23:59:59.999999999Z");
  codec_close(&b);
}

static bool codec_base64_is(const char *base64, const char *text) {
  char *copy = codec_copy(base64, strlen(base64));
  size_t len = 0;
  bool ok = e2b__base64_decode_in_place(copy, strlen(base64), &len);
  if (ok && text) ok = len == strlen(text) && memcmp(copy, text, len) == 0;
  free(copy);
  return ok;
}

static void test_json_base64(void) {
  static const char *const bad[] = {
    "A", "AAAAA", "=", "==", "A=", "A==", "A===", "AA=", "AAA==", "AAAA=", "AAAA==", "====", "A A=", "AA=A", "=AAA",
    "A*==", "Zg==\n", "AA==AA==", "Zm9v\xff", "AAAA===="
  };
  codec_bench b;
  uint8_t data[64];
  char *copy;
  size_t len, out_len, i;
  for (i = 0; i < E2B__COUNT(bad); i++) CHECK(codec_case(!codec_base64_is(bad[i], NULL), bad[i]));
  CHECK(codec_base64_is("", "") && codec_base64_is("Zg==", "f") && codec_base64_is("Zm8=", "fo"));
  CHECK(codec_base64_is("Zm9v", "foo") && codec_base64_is("Zm9vYg==", "foob"));
  CHECK(codec_base64_is("Zm9vYmFy", "foobar"));
  CHECK(codec_base64_is("Zg", "f") && codec_base64_is("Zm8", "fo") && codec_base64_is("Zm9vYg", "foob"));
  CHECK(codec_base64_is("+/+/", "\xfb\xff\xbf") && codec_base64_is("-_-_", "\xfb\xff\xbf"));
  codec_open(&b);
  for (len = 0; len <= sizeof data; len++) {
    for (i = 0; i < len; i++) data[i] = (uint8_t)(i * 73 + len * 31);
    for (i = 0; i < 2; i++) {
      b.out.len = 0;
      e2b__base64_encode(&b.out, data, len, i == 1);
      CHECK_INT(b.out.len, i ? (len + 2) / 3 * 4 : (len * 4 + 2) / 3);
      copy = codec_copy(b.out.data, b.out.len);
      CHECK(e2b__base64_decode_in_place(copy, b.out.len, &out_len) && out_len == len && memcmp(copy, data, len) == 0);
      free(copy);
    }
  }
  codec_close(&b);
}

/* ---- JSON messages ---- */

static e2b_err codec_decode_text(codec_bench *b, const e2b__message *m, const char *json, void *out) {
  size_t len = strlen(json);
  char *text = (char *)e2b__arena_alloc(&b->arena, len + 1);
  if (!text) abort();
  memcpy(text, json, len);
  return e2b__json_decode(m, text, len, &b->arena, out);
}

#define CODEC_READ(message, json, out) CHECK_INT(codec_decode_text(&b, &e2b__msg_##message, json, &out), E2B_OK)

static void test_json_rules(void) {
  static const struct {
    const e2b__message *message;
    const char *json;
  } bad[] = {
    { &e2b__msg_process_info, "" }, { &e2b__msg_process_info, "[]" }, { &e2b__msg_process_info, "1" },
    { &e2b__msg_process_info, "{}{}" }, { &e2b__msg_process_info, "{\"pid\":-1}" },
    { &e2b__msg_process_info, "{\"pid\":4294967296}" }, { &e2b__msg_process_info, "{\"pid\":1.5}" },
    { &e2b__msg_process_info, "{\"pid\":true}" }, { &e2b__msg_process_info, "{\"pid\":\"x\"}" },
    { &e2b__msg_process_info, "{\"pid\":{}}" }, { &e2b__msg_process_info, "{\"tag\":1}" },
    { &e2b__msg_process_info, "{\"config\":[]}" }, { &e2b__msg_process_info, "{\"config\":\"\"}" },
    { &e2b__msg_process_info, "{\"config\":{\"args\":{}}}" },
    { &e2b__msg_process_info, "{\"config\":{\"args\":[1]}}" },
    { &e2b__msg_process_info, "{\"config\":{\"args\":[null]}}" },
    { &e2b__msg_process_info, "{\"config\":{\"envs\":[]}}" },
    { &e2b__msg_process_info, "{\"config\":{\"envs\":{\"a\":1}}}" }, { &e2b__msg_process_info, "{\"x\":[}" },
    { &e2b__msg_process_list, "{\"processes\":[1]}" }, { &e2b__msg_process_list, "{\"processes\":{}}" },
    { &e2b__msg_start_request, "{\"stdin\":1}" }, { &e2b__msg_start_request, "{\"stdin\":\"true\"}" },
    { &e2b__msg_end_event, "{\"exitCode\":2147483648}" }, { &e2b__msg_end_event, "{\"exitCode\":-2147483649}" },
    { &e2b__msg_data_event, "{\"stdout\":\"*\"}" }, { &e2b__msg_data_event, "{\"stdout\":1}" },
    { &e2b__msg_entry_info, "{\"size\":9223372036854775808}" }, { &e2b__msg_entry_info, "{\"size\":\"1e3\"}" },
    { &e2b__msg_entry_info, "{\"type\":{}}" }, { &e2b__msg_entry_info, "{\"modifiedTime\":{}}" },
    { &e2b__msg_entry_info, "{\"modifiedTime\":\"<unknown>\"}" }, { &e2b__msg_rest_error, "{\"code\":{]}" },
    { &e2b__msg_rest_error, "{\"details\":[1}" }, { &e2b__msg_rest_error, "{\"message\":{}}" }
  };
  codec_bench b;
  codec_any any;
  e2b__entry_info entry;
  e2b__process_info info;
  e2b__process_event event;
  e2b__send_signal_request signal;
  size_t i;
  for (i = 0; i < E2B__COUNT(bad); i++) {
    codec_open(&b);
    CHECK(codec_case(codec_decode_text(&b, bad[i].message, bad[i].json, &any) == E2B_ERR_PROTOCOL, bad[i].json));
    codec_close(&b);
  }
  codec_open(&b);
  CODEC_READ(process_info, " null ", info);
  CODEC_READ(process_info, "{\"pid\":null,\"tag\":null,\"config\":null}", info);
  CHECK(!info.pid && !info.has_tag && !info.has_config);
  CODEC_READ(process_info, "{\"pid\":\"4294967295\",\"tag\":\"\",\"config\":{\"args\":null,\"envs\":null}}", info);
  CHECK(info.pid == UINT32_MAX && info.has_tag && info.has_config && info.config.args.count == 0);
  CODEC_READ(process_info, "{\"p\\u0069d\":1,\"pid\":2,\"pidd\":3,\"pi\":4}", info);
  CHECK_INT(info.pid, 2);
  CODEC_READ(process_event, "{\"start\":{\"pid\":1},\"end\":{\"exitCode\":-1}}", event);
  CHECK(event.has_end && !event.has_start && event.end.exit_code == -1);
  CODEC_READ(entry_info, "{\"type\":\"FILE_TYPE_SOCKET\",\"size\":-5,"
                         "\"modifiedTime\":\"1970-01-01T00:00:01+00:00\"}", entry);
  CHECK(entry.type == -1 && entry.size == -5 && entry.has_modified_time && entry.modified_time.seconds == 1);
  CODEC_READ(entry_info, "{\"type\":2,\"size\":\"-9223372036854775808\"}", entry);
  CHECK(entry.type == E2B__FILE_TYPE_DIRECTORY && entry.size == INT64_MIN);
  CODEC_READ(entry_info, "{\"type\":99999999999999999999}", entry);
  CHECK_INT(entry.type, -1);
  CODEC_READ(entry_info, "{\"modified_time\":\"1970-01-01T00:00:01Z\",\"symlink_target\":\"t\"}", entry);
  CHECK(entry.has_modified_time && entry.modified_time.seconds == 1 && e2b__str_eq(entry.symlink_target, "t"));
  CODEC_READ(entry_info, "{\"symlink_Target\":1,\"symlinktarget\":1,\"symlink__target\":1,\"symlink_\":1,"
                         "\"symlink_targe\":1,\"symlink_target_\":1,\"_symlinkTarget\":1,\"symlinkTarget\\u0000\":1}", entry);
  CHECK(!entry.has_symlink_target); /* nobody's names */
  CODEC_READ(send_signal_request, "{\"signal\":\"\"}", signal);
  CHECK_INT(signal.signal, -1); /* no hole in the names */
  signal.signal = 3;
  e2b__json_encode(&e2b__msg_send_signal_request, &signal, &b.out);
  CHECK(codec_same(&b, "{\"signal\":3}", 12));
  signal.signal = 1000;
  e2b__json_encode(&e2b__msg_send_signal_request, &signal, &b.out);
  CHECK(codec_same(&b, "{\"signal\":1000}", 15));
  signal.signal = -1;
  e2b__json_encode(&e2b__msg_send_signal_request, &signal, &b.out);
  CHECK(codec_same(&b, "{\"signal\":-1}", 13));
  codec_close(&b);
}

static void test_json_rest(void) {
  static const char sandbox_json[] =
    "{\"sandboxID\":\"ns--a\",\"alias\":\"\",\"domain\":null,\"state\":\"running\",\"startedAt\":\"<unknown>\","
    "\"cpuCount\":2,\"memoryMB\":\"512\",\"diskSizeMB\":9007199254740993,"
    "\"metadata\":{\"a\":\"1\",\"b\":\"\\u003c\",\"a\":\"2\"},"
    "\"network\":{\"allowOut\":[\"x\"]},\"volumeMounts\":[{\"name\":\"v\",\"path\":\"/v\",\"x\":0},{}]}\n";
  codec_bench b;
  e2b__rest_sandbox sandbox;
  e2b__rest_error error;
  e2b__list list;
  char text[64];
  const e2b__pair *pair;
  codec_open(&b);
  CODEC_READ(rest_sandbox, sandbox_json, sandbox);
  pair = (const e2b__pair *)sandbox.metadata.items;
  CHECK(e2b__str_eq(sandbox.sandbox_id, "ns--a") && sandbox.alias.len == 0 && sandbox.domain.len == 0);
  CHECK(e2b__str_eq(sandbox.state, "running") && e2b__str_eq(sandbox.started_at, "<unknown>"));
  CHECK(sandbox.cpu_count == 2 && sandbox.memory_mb == 512 && sandbox.disk_size_mb == 9007199254740993);
  CHECK(sandbox.metadata.count == 3 && e2b__str_eq(pair[1].value, "<") && e2b__str_eq(pair[2].value, "2"));
  CHECK_INT(sandbox.volume_mounts.count, 2);
  CHECK(e2b__str_eq(((e2b__rest_volume_mount *)sandbox.volume_mounts.items)->path, "/v"));
  sandbox.metadata.count = sandbox.volume_mounts.count = 0;
  e2b__json_encode(&e2b__msg_rest_sandbox, &sandbox, &b.out); /* numbers in REST, strings in ProtoJSON */
  CHECK_STR(codec_text(&b.out),
      "{\"sandboxID\":\"ns--a\",\"state\":\"running\",\"startedAt\":\"<unknown>\",\"cpuCount\":2,"
                                "\"memoryMB\":512,\"diskSizeMB\":9007199254740993}");
  CODEC_READ(rest_error, "{\"code\":401,\"message\":\"no\",\"port\":true,"
                         "\"details\":[{\"type\":\"\\u0041\"} , 1]}", error);
  CHECK(e2b__str_eq(error.code, "401") && e2b__str_eq(error.port, "true"));
  CHECK(e2b__str_eq(error.details, "[{\"type\":\"\\u0041\"} , 1]")); /* verbatim */
  CODEC_READ(rest_error, "{\"details\":\"\\u0041\\\"\",\"code\":{\"a\":[]},\"port\":[\"\\u0041\"],"
                         "\"message\":\"x\"}", error);
  CHECK(e2b__str_eq(error.details, "\"\\u0041\\\"\"") && error.code.len == 0 && error.port.len == 0);
  CHECK(e2b__str_eq(error.message, "x"));
  CODEC_READ(rest_error, "{\"code\":\"not_found\",\"details\":null,\"port\":3e2}", error);
  CHECK(e2b__str_eq(error.code, "not_found") && error.details.len == 0 && e2b__str_eq(error.port, "3e2"));
  strncpy(text, " [ {\"name\":\"a\"} , { } ] ", sizeof text);
  CHECK_INT(e2b__json_decode_list(&e2b__msg_rest_write_info, text, strlen(text), &b.arena, &list), E2B_OK);
  CHECK(list.count == 2 && e2b__str_eq(((e2b__rest_write_info *)list.items)->name, "a"));
  strncpy(text, "null", sizeof text);
  CHECK_INT(e2b__json_decode_list(&e2b__msg_rest_write_info, text, 4, &b.arena, &list), E2B_OK);
  CHECK_INT(list.count, 0);
  strncpy(text, "[]", sizeof text);
  CHECK_INT(e2b__json_decode_list(&e2b__msg_rest_write_info, text, 2, &b.arena, &list), E2B_OK);
  CHECK_INT(e2b__json_decode_list(&e2b__msg_rest_write_info, text, 1, &b.arena, &list), E2B_ERR_PROTOCOL);
  strncpy(text, "{}", sizeof text);
  CHECK_INT(e2b__json_decode_list(&e2b__msg_rest_write_info, text, 2, &b.arena, &list), E2B_ERR_PROTOCOL);
  strncpy(text, "[{},1]", sizeof text);
  CHECK_INT(e2b__json_decode_list(&e2b__msg_rest_write_info, text, 6, &b.arena, &list), E2B_ERR_PROTOCOL);
  CHECK_INT(e2b__json_decode_list(&e2b__msg_rest_write_info, text, 0, &b.arena, &list), E2B_ERR_PROTOCOL);
  codec_close(&b);
}

static void test_json_connect_end(void) {
  codec_bench b;
  e2b__connect_end end;
  codec_open(&b);
  CODEC_READ(connect_end, "{}", end);
  CHECK(!end.has_error && end.metadata.len == 0);
  CODEC_READ(connect_end, "{\"error\":{\"code\":\"not_found\",\"message\":\"process with pid 4242 not found\"}}", end);
  CHECK(end.has_error && e2b__str_eq(end.error.code, "not_found"));
  CHECK(e2b__str_eq(end.error.message, "process with pid 4242 not found"));
  CODEC_READ(connect_end, "{\"metadata\":{\"x-trace\":[\"a\",\"b\"]}}", end);
  CHECK(!end.has_error && e2b__str_eq(end.metadata, "{\"x-trace\":[\"a\",\"b\"]}"));
  e2b__json_encode(&e2b__msg_connect_end, &end, &b.out);
  CHECK_STR(codec_text(&b.out), "{\"metadata\":{\"x-trace\":[\"a\",\"b\"]}}");
  codec_close(&b);
}

/* The tables agree with what the codecs assume about them. */
static void test_messages_tables(void) {
  size_t i, k;
  for (i = 0; i < E2B__COUNT(codec_vectors); i++) {
    const e2b__message *m = codec_vectors[i].message;
    for (k = 0; k < m->count; k++) {
      const e2b__field *f = &m->fields[k];
      CHECK(k == 0 || f->number > m->fields[k - 1].number);
      CHECK(f->offset + e2b__field_size(f) <= m->size || f->kind <= E2B__KIND_ENUM || f->flags & E2B__REPEATED);
      CHECK(!f->oneof || f->flags & E2B__PRESENCE);
      CHECK((f->kind == E2B__KIND_ENUM) == (f->names != NULL));
      CHECK((f->kind >= E2B__KIND_MSG) == (f->sub != NULL));
      CHECK(f->kind != E2B__KIND_MAP || f->flags & E2B__REPEATED);
    }
  }
}

/* ================================================================================================================== */
/* >>>> url and http1 */
/* ================================================================================================================== */

/* ------------------------------------------------------------------------------------------------------------------ */
/* url */
/* ------------------------------------------------------------------------------------------------------------------ */

typedef struct url_case {
  const char *text;
  bool tls;
  const char *host;
  int port;
  const char *path, *host_header;
} url_case;

static const url_case url_cases[] = {
  { "http://localhost", false, "localhost", 80, "", "localhost" },
  { "http://localhost/", false, "localhost", 80, "", "localhost" },
  { "https://api.e2b.app", true, "api.e2b.app", 443, "", "api.e2b.app" },
  { "HTTPS://Api.E2B.app/", true, "Api.E2B.app", 443, "", "Api.E2B.app" },
  { "https://api.e2b.app:443", true, "api.e2b.app", 443, "", "api.e2b.app" },
  { "https://api.e2b.app:80", true, "api.e2b.app", 80, "", "api.e2b.app:80" },
  { "http://10.0.0.1:8080/a/b/", false, "10.0.0.1", 8080, "/a/b", "10.0.0.1:8080" },
  { "http://h/a//", false, "h", 80, "/a", "h" },
  { "http://h/a/%20;x=1:2", false, "h", 80, "/a/%20;x=1:2", "h" },
  { "http://[::1]:3000/x", false, "::1", 3000, "/x", "[::1]:3000" },
  { "https://[2001:db8::ffff:1.2.3.4]", true, "2001:db8::ffff:1.2.3.4", 443, "", "[2001:db8::ffff:1.2.3.4]" },
  { "https://a_b-c.example.com.", true, "a_b-c.example.com.", 443, "", "a_b-c.example.com." },
  { "http://49983-abc.sandbox.local:1", false, "49983-abc.sandbox.local", 1, "", "49983-abc.sandbox.local:1" },
  { "http://h:65535", false, "h", 65535, "", "h:65535" }
};

static const char *const url_refused[] = {
  "", "h", "localhost:80", "ftp://h", "http:/h", "http//h", "http://", "https://", "http:///a", "http://:80",
  "ws://h", "http://h:", "http://h:/", "http://h:0", "http://h:65536", "http://h:99999", "http://h:000080",
  "http://h:8a", "http://h:-1", "http://h:+1", "http://h:80:80", "http://u@h", "http://u:p@h", "http://h/a@b",
  "http://h?x", "http://h/?", "http://h#f", "http://h/#", "http://h /", " http://h", "http://h ", "http://h\t",
  "http://h\r\nx: y", "http://h/a b", "http://h/\x7f", "http://h\xc3\xa9", "http://h/\xc3\xa9", "http://h\\x",
  "http://a..b", "http://.a", "http://a..", "http://.", "http://a%41", "http://[::1", "http://::1", "http://[]",
  "http://[::1]x", "http://[::1]]", "http://[1]", "http://[fe80::1%25eth0]", "http://[::1]80", "http://h!",
  "http://[h]", "http://a/b:c@d", "https:/\\h"
};

static void test_url_parse(void) {
  char text[400];
  e2b__url url;
  e2b__mem mem;
  e2b__buf buf;
  size_t i;
  e2b__mem_init(&mem, NULL);
  for (i = 0; i < E2B__COUNT(url_cases); i++) {
    const url_case *c = &url_cases[i];
    bool ok = e2b__url_parse(c->text, &url);
    if (!ok) printf("refused: %s\n", c->text);
    CHECK(ok);
    if (!ok) continue;
    CHECK_INT(url.tls, c->tls);
    CHECK_INT(url.port, c->port);
    CHECK_INT(url.default_port, c->port == (c->tls ? 443 : 80));
    CHECK_INT(url.host_is_ipv6, strchr(c->host, ':') != NULL);
    CHECK(e2b__str_eq(url.host, c->host));
    CHECK(e2b__str_eq(url.path, c->path));
    e2b__buf_init(&buf, &mem, 1000);
    e2b__url_host_header(&buf, &url);
    CHECK_STR(e2b__buf_cstr(&buf), c->host_header);
    e2b__buf_free(&buf);
  }
  for (i = 0; i < E2B__COUNT(url_refused); i++) {
    bool ok = e2b__url_parse(url_refused[i], &url);
    if (ok) printf("accepted: %s\n", url_refused[i]);
    CHECK(!ok);
  }
  /* labels of at most 63, names of at most 253 */
  memset(text, 'a', sizeof text);
  memcpy(text, "http://", 7);
  text[7 + 63] = 0;
  CHECK(e2b__url_parse(text, &url));
  text[7 + 63] = 'a';
  text[7 + 64] = 0;
  CHECK(!e2b__url_parse(text, &url));
  for (i = 0; i < 253; i++) text[7 + i] = i % 2 ? '.' : 'a';
  text[7 + 253] = 0;
  CHECK(e2b__url_parse(text, &url));
  memcpy(text + 7 + 253, ".", 2);
  CHECK(e2b__url_parse(text, &url));
  memcpy(text + 7 + 253, "aa", 3);
  CHECK(!e2b__url_parse(text, &url));
}

static void test_url_ip(void) {
  static const char *const good[] = {
    "0.0.0.0", "127.0.0.1", "255.255.255.255", "::", "::1", "1::", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::",
    "::2:3:4:5:6:7:8", "fe80::abcd:EF01", "::ffff:1.2.3.4", "1:2:3:4:5:6:1.2.3.4", "1::1.2.3.4"
  };
  static const char *const bad[] = {
    "", "1.2.3", "1.2.3.4.", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", "1..2.3", ".1.2.3.4", "1.2.3.1234", "a.b.c.d",
    "1.2.3.4 ", ":", ":::", "1:", ":1", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1::2::3", "12345::",
    "1:2:3:4:5:6:7:1.2.3.4", "::1.2.3", "1.2.3.4::", "1.2.3.4:1::", "g::", "::1%1", "1:2:3:4::5:6:7:8", "1::2:",
    "localhost"
  };
  size_t i;
  for (i = 0; i < E2B__COUNT(good); i++) {
    if (!e2b__host_is_ip(e2b__str(good[i]))) printf("not an address: %s\n", good[i]);
    CHECK(e2b__host_is_ip(e2b__str(good[i])));
  }
  for (i = 0; i < E2B__COUNT(bad); i++) {
    if (e2b__host_is_ip(e2b__str(bad[i]))) printf("an address: %s\n", bad[i]);
    CHECK(!e2b__host_is_ip(e2b__str(bad[i])));
  }
}

static void test_url_escape(void) {
  static const char raw[] = "Az09-._~ /?#[]@!$&'()*+,;=%:\"<>\\^`{|}\x01\x7f\xc3\xa9";
  static const char escaped[] = "Az09-._~%20%2F%3F%23%5B%5D%40%21%24%26%27%28%29%2A%2B%2C%3B%3D%25%3A%22%3C%3E%5C%5E%60"
                                "%7B%7C%7D%01%7F%C3%A9";
  e2b__mem mem;
  e2b__buf buf;
  e2b__mem_init(&mem, NULL);
  e2b__buf_init(&buf, &mem, 4096);
  e2b__url_escape(&buf, e2b__str(raw));
  CHECK_STR(e2b__buf_cstr(&buf), escaped);
  buf.len = 0;
  e2b__url_escape(&buf, e2b__str_n("a\0b", 3));
  CHECK_STR(e2b__buf_cstr(&buf), "a%00b");
  buf.len = 0;
  e2b__url_escape(&buf, e2b__str("team/name:tag"));
  CHECK_STR(e2b__buf_cstr(&buf), "team%2Fname%3Atag");
  buf.len = 0;
  e2b__buf_text(&buf, "/files");
  e2b__url_query(&buf, "path", e2b__str("/a b"));
  e2b__url_query(&buf, "user", e2b__str(""));
  e2b__url_query(&buf, "n", e2b__str("=="));
  CHECK_STR(e2b__buf_cstr(&buf), "/files?path=%2Fa%20b&user=&n=%3D%3D");
  e2b__buf_free(&buf);
  e2b__url_query(&buf, "a", e2b__str("b"));
  CHECK_STR(e2b__buf_cstr(&buf), "?a=b");
  e2b__buf_free(&buf);
}

static void test_url_metadata(void) {
  static const e2b_kv plain[] = { { "app", "prod" } };
  static const e2b_kv reserved[] = { { "a/b k", "x y" } };
  static const e2b_kv several[] = { { "a", "1+1" }, { "b", NULL }, { "c&=", "100%" } };
  static const struct { const e2b_kv *items; size_t count; int layers; const char *value; } cases[] = {
    { NULL, 0, 3, "" },
    { plain, 1, 3, "app%3Dprod" },
    { plain, 1, 2, "app%3Dprod" },
    { reserved, 1, 3, "a%25252Fb%252520k%3Dx%252520y" },
    { reserved, 1, 2, "a%252Fb%2Bk%3Dx%2By" },
    { several, 3, 3, "a%3D1%25252B1%26b%3D%26c%252526%25253D%3D100%252525" },
    { several, 3, 2, "a%3D1%252B1%26b%3D%26c%2526%253D%3D100%2525" }
  };
  e2b__mem mem;
  e2b__buf buf;
  e2b_kvs filter;
  size_t i;
  e2b__mem_init(&mem, NULL);
  for (i = 0; i < E2B__COUNT(cases); i++) {
    filter.items = cases[i].items;
    filter.count = cases[i].count;
    e2b__buf_init(&buf, &mem, 4096);
    e2b__url_metadata(&buf, filter, cases[i].layers);
    CHECK_STR(e2b__buf_cstr(&buf), cases[i].value);
    e2b__buf_free(&buf);
  }
}

static void test_version_compare(void) {
  static const struct { const char *a, *b; int order; } cases[] = {
    { "", "", 0 }, { NULL, "", 0 }, { "", "0.0.1", -1 }, { "0", "", 0 }, { "0.2.10", "0.2.9", 1 },
    { "0.2.10", "0.2.10", 0 }, { "v0.2.10", "0.2.10", 0 }, { "V1", "v1.0.0", 0 }, { "1.2", "1.2.0", 0 },
    { "1.2", "1.2.1", -1 }, { "0.1.4", "0.2", -1 }, { "10.0", "9.9.9", 1 }, { "0.2.10-rc1", "0.2.10", 0 },
    { "0.3.0-beta.1", "0.2.9", 1 }, { "1.0.0+build.7", "1.0.0", 0 }, { "unknown", "0.1", -1 },
    { "v1.0.0", "0.5.7", 1 }, { "1.", "1.0", 0 }, { "1.x", "1.0", 0 }, { "99999999999999999999", "1", 1 },
    { "1..1", "1", 0 }
  };
  size_t i;
  for (i = 0; i < E2B__COUNT(cases); i++) {
    if (e2b__version_compare(cases[i].a, cases[i].b) != cases[i].order)
      printf("version case %u: %s %s\n", (unsigned)i, cases[i].a, cases[i].b);
    CHECK_INT(e2b__version_compare(cases[i].a, cases[i].b), cases[i].order);
    CHECK_INT(e2b__version_compare(cases[i].b, cases[i].a), -cases[i].order);
  }
}

static void test_header_validity(void) {
  int c;
  char text[4] = "aXb";
  CHECK(e2b__header_name_ok(e2b__str("X-API-Key")));
  CHECK(!e2b__header_name_ok(e2b__str("")));
  CHECK(e2b__header_value_ok(e2b__str("")));
  CHECK(!e2b__header_name_ok(e2b__str_n("a\0b", 3)));
  CHECK(!e2b__header_value_ok(e2b__str_n("a\0b", 3)));
  CHECK(e2b__text_ok(""));
  for (c = 1; c < 256; c++) {
    bool alnum = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    bool control = (c < 0x20 && c != '\t') || c == 0x7f;
    text[1] = (char)c;
    CHECK_INT(e2b__header_name_ok(e2b__str(text)), alnum || (c < 0x80 && strchr("!#$%&'*+-.^_`|~", c) != NULL));
    CHECK_INT(e2b__header_value_ok(e2b__str(text)), !control && c < 0x80);
    CHECK_INT(e2b__text_ok(text), !control);
  }
}

static void test_retry_after(void) {
  CHECK_INT(e2b__http_retry_after_ms(NULL), 0);
  CHECK_INT(e2b__http_retry_after_ms(""), 0);
  CHECK_INT(e2b__http_retry_after_ms("0"), 0);
  CHECK_INT(e2b__http_retry_after_ms("1"), 1000);
  CHECK_INT(e2b__http_retry_after_ms(" 120\t"), 120000);
  CHECK_INT(e2b__http_retry_after_ms("86400"), 86400000);
  CHECK_INT(e2b__http_retry_after_ms("86401"), 86400000);
  CHECK_INT(e2b__http_retry_after_ms("4294967296"), 86400000);
  CHECK_INT(e2b__http_retry_after_ms("99999999999999999999999999"), 86400000);
  CHECK_INT(e2b__http_retry_after_ms("-1"), 0);
  CHECK_INT(e2b__http_retry_after_ms("+1"), 0);
  CHECK_INT(e2b__http_retry_after_ms("1.5"), 0);
  CHECK_INT(e2b__http_retry_after_ms("1 2"), 0);
  CHECK_INT(e2b__http_retry_after_ms("Wed, 21 Oct 2026 07:28:00 GMT"), 0);
}

/* ------------------------------------------------------------------------------------------------------------------ */
/* http1: header lists and request heads */
/* ------------------------------------------------------------------------------------------------------------------ */

static void test_headers(void) {
  test_heap heap;
  e2b__mem mem;
  e2b__headers headers;
  e2b_str name, value;
  size_t cursor = 0;
  heap_mem(&heap, &mem);
  e2b__headers_init(&headers, &mem, 4096);
  CHECK(e2b__headers_get(&headers, "a") == NULL);
  CHECK(!e2b__headers_next(&headers, &cursor, &name, &value));
  e2b__headers_add(&headers, e2b__str("X-One"), e2b__str(" \tfirst \t"));
  e2b__headers_add(&headers, e2b__str("EMPTY"), e2b__str(""));
  e2b__headers_add(&headers, e2b__str("x-one"), e2b__str("second"));
  e2b__headers_add(&headers, e2b__str("last"), e2b__str("a, B ,, c"));
  CHECK_INT(headers.count, 4);
  CHECK_STR(e2b__headers_get(&headers, "x-one"), "first");
  CHECK_STR(e2b__headers_get(&headers, "empty"), "");
  CHECK_STR(e2b__headers_get(&headers, "last"), "a, B ,, c");
  CHECK(e2b__headers_get(&headers, "x-on") == NULL);
  CHECK(e2b__headers_has_token(&headers, "last", "b"));
  CHECK(e2b__headers_has_token(&headers, "last", "c"));
  CHECK(!e2b__headers_has_token(&headers, "last", "a, B"));
  CHECK(e2b__headers_has_token(&headers, "x-one", "second"));
  e2b__headers_set(&headers, "x-one", e2b__str("third"));
  CHECK_INT(headers.count, 3);
  CHECK_STR(e2b__headers_get(&headers, "x-one"), "third");
  CHECK_STR(e2b__headers_get(&headers, "empty"), "");
  CHECK_STR(e2b__headers_get(&headers, "last"), "a, B ,, c");
  e2b__headers_set(&headers, "new", e2b__str("1"));
  CHECK_INT(headers.count, 4);
  cursor = 0;
  CHECK(e2b__headers_next(&headers, &cursor, &name, &value) && e2b__str_eq(name, "empty") && value.len == 0);
  CHECK(e2b__headers_next(&headers, &cursor, &name, &value) && e2b__str_eq(name, "last"));
  CHECK(e2b__headers_next(&headers, &cursor, &name, &value) && e2b__str_eq(name, "x-one"));
  CHECK(e2b__headers_next(&headers, &cursor, &name, &value) && e2b__str_eq(value, "1"));
  CHECK(!e2b__headers_next(&headers, &cursor, &name, &value));
  CHECK_INT(headers.text.err, E2B_OK);
  e2b__headers_free(&headers);
  HEAP_CHECK_EMPTY(&heap);

  e2b__headers_init(&headers, &mem, 16);
  e2b__headers_add(&headers, e2b__str("abc"), e2b__str("0123456789"));
  CHECK_INT(headers.text.err, E2B_OK);
  e2b__headers_add(&headers, e2b__str("d"), e2b__str(""));
  CHECK_INT(headers.text.err, E2B_ERR_LIMIT);
  CHECK_INT(headers.count, 1);
  e2b__headers_free(&headers);
  heap.fail_at = heap.calls + 1;
  e2b__headers_add(&headers, e2b__str("abc"), e2b__str("0123456789"));
  CHECK_INT(headers.text.err, E2B_ERR_NO_MEMORY);
  e2b__headers_free(&headers);
  HEAP_CHECK_EMPTY(&heap);
}

static void test_headers_injection(void) {
  static const struct { const char *name; size_t name_len; const char *value; size_t value_len; } cases[] = {
    { "", 0, "v", 1 }, { "a b", 3, "v", 1 }, { "a:", 2, "v", 1 }, { "a\r\nb", 4, "v", 1 }, { "a\0", 2, "v", 1 },
    { "\xc3\xa9", 2, "v", 1 }, { "a", 1, "x\r\ny: z", 7 }, { "a", 1, "x\ny", 3 }, { "a", 1, "x\ry", 3 },
    { "a", 1, "x\0y", 3 }, { "a", 1, "\x7f", 1 }
  };
  e2b__mem mem;
  e2b__headers headers;
  e2b__buf out;
  size_t i;
  e2b__mem_init(&mem, NULL);
  for (i = 0; i < E2B__COUNT(cases); i++) {
    e2b__headers_init(&headers, &mem, 4096);
    e2b__headers_add(&headers, e2b__str("good"), e2b__str("v"));
    e2b__headers_add(&headers, e2b__str_n(cases[i].name, cases[i].name_len),
                     e2b__str_n(cases[i].value, cases[i].value_len));
    e2b__headers_add(&headers, e2b__str("good"), e2b__str("v"));
    CHECK_INT(headers.text.err, E2B_ERR_INVALID_ARGUMENT);
    CHECK_INT(headers.count, 1);
    e2b__buf_init(&out, &mem, 4096);
    e2b__h1_write_head(&out, "GET", e2b__str("/"), e2b__str("h"), &headers, -2);
    CHECK_INT(out.err, E2B_ERR_INVALID_ARGUMENT);
    CHECK_INT(out.len, 0);
    e2b__buf_free(&out);
    e2b__headers_free(&headers);
  }
}

static void test_http1_write_head(void) {
  static const struct { const char *method, *target, *host; } refused[] = {
    { "", "/", "h" }, { "G T", "/", "h" }, { "GET\r\n", "/", "h" }, { "GET", "", "h" }, { "GET", "/ HTTP/1.1", "h" },
    { "GET", "/\r\nx:y", "h" }, { "GET", "/\n", "h" }, { "GET", "/\xc3\xa9", "h" }, { "GET", "/", "" },
    { "GET", "/", "h\r\nx:y" }, { "GET", "/", "h\t" }, { "GET", "/\x7f", "h" }
  };
  test_heap heap;
  e2b__mem mem;
  e2b__headers headers;
  e2b__buf out;
  size_t i;
  long fail;
  heap_mem(&heap, &mem);
  e2b__headers_init(&headers, &mem, 4096);
  e2b__buf_init(&out, &mem, 4096);
  e2b__h1_write_head(&out, "GET", e2b__str("/a?b=c"), e2b__str("h:81"), NULL, E2B__BODY_NONE);
  CHECK_STR(e2b__buf_cstr(&out), "GET /a?b=c HTTP/1.1\r\nhost: h:81\r\n\r\n");
  e2b__headers_add(&headers, e2b__str("X-API-Key"), e2b__str("k"));
  e2b__headers_add(&headers, e2b__str("Accept"), e2b__str(""));
  out.len = 0;
  e2b__h1_write_head(&out, "POST", e2b__str("/"), e2b__str("[::1]"), &headers, 0);
  CHECK_STR(e2b__buf_cstr(&out),
    "POST / HTTP/1.1\r\nhost: [::1]\r\nx-api-key: k\r\naccept: \r\ncontent-length: 0\r\n\r\n");
  out.len = 0;
  e2b__h1_write_head(&out, "PUT", e2b__str("/"), e2b__str("h"), NULL, INT64_MAX);
  CHECK_STR(e2b__buf_cstr(&out), "PUT / HTTP/1.1\r\nhost: h\r\ncontent-length: 9223372036854775807\r\n\r\n");
  out.len = 0;
  e2b__h1_write_head(&out, "POST", e2b__str("/"), e2b__str("h"), NULL, E2B__BODY_CHUNKED);
  CHECK_STR(e2b__buf_cstr(&out), "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n");
  e2b__buf_free(&out);
  e2b__h1_write_chunk_head(&out, 1);
  e2b__h1_write_chunk_head(&out, 0x10);
  e2b__h1_write_chunk_head(&out, 0xabcdef);
  e2b__h1_write_chunk_head(&out, SIZE_MAX);
  e2b__h1_write_chunk_head(&out, 0);
  CHECK_STR(e2b__buf_cstr(&out), sizeof(size_t) == 8 ? "1\r\n10\r\nabcdef\r\nffffffffffffffff\r\n0\r\n\r\n"
                                                     : "1\r\n10\r\nabcdef\r\nffffffff\r\n0\r\n\r\n");
  e2b__buf_free(&out);
  for (i = 0; i < E2B__COUNT(refused); i++) {
    e2b__h1_write_head(&out, refused[i].method, e2b__str(refused[i].target), e2b__str(refused[i].host), NULL, -2);
    CHECK_INT(out.err, E2B_ERR_INVALID_ARGUMENT);
    CHECK_INT(out.len, 0);
    e2b__buf_free(&out);
  }
  for (fail = 1; fail < 20; fail++) {
    heap.fail_at = heap.calls + fail;
    e2b__h1_write_head(&out, "POST", e2b__str("/a/long/path/to/make/it/grow"), e2b__str("h"), &headers, 0);
    if (out.err == E2B_OK) break;
    CHECK_INT(out.err, E2B_ERR_NO_MEMORY);
    e2b__buf_free(&out);
  }
  CHECK(fail > 1 && fail < 20);
  e2b__buf_free(&out);
  e2b__headers_free(&headers);
  HEAP_CHECK_EMPTY(&heap);
}

/* ------------------------------------------------------------------------------------------------------------------ */
/* http1: responses */
/* ------------------------------------------------------------------------------------------------------------------ */

enum { H1_HEAD = 1, H1_CONNECT = 2, H1_EOF = 4 };

typedef struct h1_result {
  e2b_err err;        /* of feed; of finish when the connection is closed and feed was content */
  int status, heads;
  bool complete, keep_alive;
  size_t used;
  const char *detail;
  char fields[600];   /* "name=value\n" of the first fields */
  char body[600];
  size_t fields_len, body_len; /* the whole length, even if it is more than is kept */
  e2b_err head_err, body_err;  /* what the events return; body_err when body_err_at bytes were seen */
  size_t body_err_at;
} h1_result;

static void h1_keep(char *to, size_t cap, size_t *len, const char *text, size_t text_len) {
  size_t room = *len < cap - 1 ? cap - 1 - *len : 0;
  if (text_len && room) memcpy(to + *len, text, E2B__MIN(room, text_len));
  *len += text_len;
}

static e2b_err h1_on_head(void *owner, int status, const e2b__headers *headers) {
  h1_result *r = (h1_result *)owner;
  e2b_str name, value;
  size_t cursor = 0;
  r->status = status;
  r->heads++;
  while (e2b__headers_next(headers, &cursor, &name, &value)) {
    h1_keep(r->fields, sizeof r->fields, &r->fields_len, name.ptr, name.len);
    h1_keep(r->fields, sizeof r->fields, &r->fields_len, "=", 1);
    h1_keep(r->fields, sizeof r->fields, &r->fields_len, value.ptr, value.len);
    h1_keep(r->fields, sizeof r->fields, &r->fields_len, "\n", 1);
  }
  return r->head_err;
}

static e2b_err h1_on_body(void *owner, const uint8_t *data, size_t len) {
  h1_result *r = (h1_result *)owner;
  CHECK(len > 0 && r->heads == 1);
  h1_keep(r->body, sizeof r->body, &r->body_len, (const char *)data, len);
  return r->body_err && r->body_len >= r->body_err_at ? r->body_err : E2B_OK;
}

static const e2b__h1_events h1_events = { h1_on_head, h1_on_body };

/* Feeds one piece from memory of exactly its size, so that a sanitizer sees every byte read beyond. */
static e2b_err h1_feed_piece(e2b__h1 *h1, const char *data, size_t len, size_t *used) {
  uint8_t *copy = (uint8_t *)malloc(len ? len : 1);
  e2b_err err;
  if (len) memcpy(copy, data, len);
  err = e2b__h1_feed(h1, copy, len, used);
  free(copy);
  return err;
}

/* Parses one response that arrives in pieces of `step` bytes, the first of `first`. */
static void h1_run(e2b__h1 *h1, const char *input, size_t len, unsigned flags, size_t first, size_t step,
                   h1_result *r) {
  size_t at = 0, used, piece = first ? first : step;
  e2b__h1_begin(h1, (flags & H1_HEAD) != 0, (flags & H1_CONNECT) != 0);
  h1->owner = r;
  while (at < len && !r->err && !h1->complete) {
    piece = E2B__MIN(piece, len - at);
    r->err = h1_feed_piece(h1, input + at, piece, &used);
    CHECK(used <= piece);
    CHECK(used == piece || r->err || h1->complete);
    at += used;
    piece = step;
  }
  if ((flags & H1_EOF) && !r->err && !h1->complete) r->err = e2b__h1_finish(h1);
  r->complete = h1->complete;
  r->keep_alive = h1->keep_alive;
  r->detail = h1->detail;
  r->used = r->err ? 0 : at; /* how far it got before a failure depends on the pieces */
  CHECK_INT(h1->head_done, r->heads == 1);
  CHECK(!r->complete || !r->err);
  CHECK(!r->keep_alive || r->complete);
  CHECK((r->err != E2B_OK) == (r->detail != NULL));
  CHECK_INT(h1->started, len > 0);
}

static void h1_print(const h1_result *r) {
  printf("  error %d, status %d, complete %d, keep_alive %d, used %u, body %u \"%s\", detail \"%s\"\n", (int)r->err,
         r->status, r->complete, r->keep_alive, (unsigned)r->used, (unsigned)r->body_len, r->body,
         r->detail ? r->detail : "");
}

static bool h1_same(const h1_result *a, const h1_result *b) {
  bool same = a->err == b->err && a->status == b->status && a->heads == b->heads && a->complete == b->complete &&
              a->keep_alive == b->keep_alive && a->used == b->used && a->fields_len == b->fields_len &&
              a->body_len == b->body_len && memcmp(a->fields, b->fields, sizeof a->fields) == 0 &&
              memcmp(a->body, b->body, sizeof a->body) == 0 && !a->detail == !b->detail &&
              (!a->detail || strcmp(a->detail, b->detail) == 0);
  if (!same) {
    h1_print(a);
    h1_print(b);
  }
  return same;
}

/* Whole, byte by byte and split in two at every point: the outcome must be the same. `r` gets it. */
static void h1_parse(const char *input, size_t len, unsigned flags, uint32_t max_header_bytes, h1_result *r) {
  test_heap heap;
  e2b__mem mem;
  e2b__h1 h1;
  h1_result other;
  size_t split;
  heap_mem(&heap, &mem);
  e2b__h1_init(&h1, &mem, max_header_bytes, &h1_events, NULL);
  memset(r, 0, sizeof *r);
  h1_run(&h1, input, len, flags, 0, len, r);
  for (split = 0; split < E2B__MIN(len, (size_t)1200); split++) {
    memset(&other, 0, sizeof other);
    h1_run(&h1, input, len, flags, split, split ? len : 1, &other);
    if (!h1_same(r, &other)) {
      printf("split %u of %s\n", (unsigned)split, input);
      CHECK(false);
    }
  }
  e2b__h1_free(&h1);
  HEAP_CHECK_EMPTY(&heap);
}

typedef struct h1_case {
  const char *input;
  size_t len;
  unsigned flags;
  e2b_err err;
  int status;
  const char *body;
  size_t left_over;
  bool keep_alive;
} h1_case;

#define IN(text) text, sizeof(text) - 1
#define OK11 "HTTP/1.1 200 OK\r\n"
#define CHUNKED OK11 "Transfer-Encoding: chunked\r\n\r\n"

static const h1_case h1_good[] = {
  /* content-length */
  { IN(OK11 "Content-Length: 5\r\n\r\nhello"), 0, E2B_OK, 200, "hello", 0, true },
  { IN(OK11 "content-length:5\r\n\r\nhello"), 0, E2B_OK, 200, "hello", 0, true },
  { IN(OK11 "Content-Length:  \t005  \r\n\r\nhello"), 0, E2B_OK, 200, "hello", 0, true },
  { IN(OK11 "Content-Length: 0\r\n\r\n"), 0, E2B_OK, 200, "", 0, true },
  { IN("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"), 0, E2B_OK, 200, "", 0, true },
  { IN("HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n"), 0, E2B_OK, 200, "", 0, true },
  { IN("HTTP/1.1 404 Nicht gefunden \xc3\xa4\r\nX: \xe9\r\nContent-Length: 1\r\n\r\n\0"), 0, E2B_OK, 404, NULL, 0, true
    },
  { IN("HTTP/1.1 599 x\r\nContent-Length: 1\r\n\r\n\n"), 0, E2B_OK, 599, "\n", 0, true },
  /* chunked */
  { IN(CHUNKED "5\r\nhello\r\n0\r\n\r\n"), 0, E2B_OK, 200, "hello", 0, true },
  { IN(OK11 "Transfer-Encoding: chunked  \r\n\r\n0\r\n\r\n"), 0, E2B_OK, 200, "", 0, true },
  { IN(OK11 "transfer-encoding:CHUNKED\r\n\r\n0\r\n\r\n"), 0, E2B_OK, 200, "", 0, true },
  { IN(CHUNKED "0005\r\nhello\r\n9\r\n 0123\r\n89\r\na\r\n----------\r\n000\r\n\r\n"), 0, E2B_OK, 200,
    "hello 0123\r\n89----------", 0, true },
  { IN(CHUNKED "5;a\r\nhello\r\n1;a=b;c=\"d;\\\"e\"\r\n!\r\n0;last\r\n\r\n"), 0, E2B_OK, 200, "hello!", 0, true },
  { IN(CHUNKED "5 \t; a = b\r\nhello\r\n0 ;x\r\n\r\n"), 0, E2B_OK, 200, "hello", 0, true },
  { IN(CHUNKED "1\r\na\r\n0\r\nX-Sum: 1\r\nEmpty:\r\n\r\n"), 0, E2B_OK, 200, "a", 0, true },
  /* framing fields in trailers mean nothing */
  { IN(CHUNKED "1\r\na\r\n0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nhello"), 0,
    E2B_OK,
    200, "a", 5, true },
  /* until the connection closes */
  { IN(OK11 "\r\nhello"), H1_EOF, E2B_OK, 200, "hello", 0, false },
  { IN(OK11 "Connection: keep-alive\r\n\r\n"), H1_EOF, E2B_OK, 200, "", 0, false },
  { IN("HTTP/1.0 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), H1_EOF, E2B_OK, 200, OK11 "\r\n", 0, false },
  /* no body, whatever the head says; what follows is the next response */
  { IN(OK11 "Content-Length: 5\r\n\r\n" OK11), H1_HEAD, E2B_OK, 200, "", 17, true },
  { IN(OK11 "Transfer-Encoding: chunked\r\n\r\n" OK11), H1_HEAD, E2B_OK, 200, "", 17, true },
  { IN(OK11 "\r\n" OK11), H1_HEAD, E2B_OK, 200, "", 17, true },
  { IN("HTTP/1.1 204 No Content\r\n\r\n" OK11), 0, E2B_OK, 204, "", 17, true },
  { IN("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n" OK11), 0, E2B_OK, 204, "", 17, true },
  { IN("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n" OK11), 0, E2B_OK, 204, "", 17, true },
  { IN("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n" OK11), 0, E2B_OK, 304, "", 17, true },
  { IN("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n" OK11), 0, E2B_OK, 304, "", 17, true },
  /* to CONNECT */
  { IN("HTTP/1.0 200 Connection established\r\nProxy-agent: tinyproxy\r\n\r\n\x16\x03\x01"), H1_CONNECT, E2B_OK, 200,
    "", 3, false },
  { IN(OK11 "Content-Length: 5\r\n\r\n\x16\x03\x01"), H1_CONNECT, E2B_OK, 200, "", 3, true },
  { IN(OK11 "Transfer-Encoding: chunked\r\n\r\n\x16\x03\x01"), H1_CONNECT, E2B_OK, 200, "", 3, true },
  { IN("HTTP/1.1 407 No\r\nContent-Length: 5\r\n\r\nhello"), H1_CONNECT, E2B_OK, 407, "hello", 0, true },
  /* 1xx */
  { IN("HTTP/1.1 100 Continue\r\n\r\n" OK11 "Content-Length: 1\r\n\r\na"), 0, E2B_OK, 200, "a", 0, true },
  { IN("HTTP/1.1 103 E\r\nLink: x\r\nContent-Length: 3\r\n\r\nHTTP/1.1 102 P\r\nTransfer-Encoding: chunked\r\n\r\n" OK11
       "Content-Length: 1\r\n\r\na"), 0, E2B_OK, 200, "a", 0, true },
  { IN("HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\n" OK11 "Content-Length: 1\r\n\r\na"), 0, E2B_OK, 200, "a", 0,
    true },
  { IN("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413 Too large\r\nContent-Length: 1\r\nConnection: close\r\n\r\na"), 0,
    E2B_OK, 413, "a", 0, false },
  /* the connection afterwards */
  { IN(OK11 "Content-Length: 1\r\nConnection: close\r\n\r\na"), 0, E2B_OK, 200, "a", 0, false },
  { IN(OK11 "Content-Length: 1\r\nConnection: close \t\r\n\r\na"), 0, E2B_OK, 200, "a", 0, false },
  { IN(OK11 "Content-Length: 1\r\nconnection: foo, Close\t,x\r\n\r\nab"), 0, E2B_OK, 200, "a", 1, false },
  { IN(OK11 "Content-Length: 1\r\nConnection: x\r\nConnection: close\r\n\r\na"), 0, E2B_OK, 200, "a", 0, false },
  { IN(OK11 "Content-Length: 1\r\nConnection: closed\r\n\r\na"), 0, E2B_OK, 200, "a", 0, true },
  { IN(OK11 "Content-Length: 1\r\nConnection: keep-alive, close\r\n\r\na"), 0, E2B_OK, 200, "a", 0, false },
  { IN("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na"), 0, E2B_OK, 200, "a", 0, false },
  { IN("HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: Keep-Alive\r\n\r\na"), 0, E2B_OK, 200, "a", 0, true },
  { IN("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: Keep-Alive\r\n\r\n0\r\n\r\n"), 0, E2B_OK, 200, "",
    0, false },
  { IN(OK11 "Content-Length: 1\r\nUpgrade: h2c\r\nConnection: Upgrade, Keep-Alive\r\n\r\na"), 0, E2B_OK, 200, "a", 0,
    true },
  { IN("HTTP/1.1 426 U\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n"), 0, E2B_OK, 426, "", 0,
    true },
  { IN(OK11 "Content-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\n"), 0, E2B_OK, 200, "a", 17, true },
  { IN(CHUNKED "0\r\n\r\n\r\n"), 0, E2B_OK, 200, "", 2, true }
};

#define PROTOCOL E2B_ERR_PROTOCOL

static const h1_case h1_bad[] = {
  /* line ends: each of these means something else to a lenient parser */
  { IN("HTTP/1.1 200 OK\rX: y\r\nContent-Length: 0\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.1 200 OK\nContent-Length: 0\n\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "X: y\nContent-Length: 0\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "X: \rxTransfer-Encoding: chunked\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "X: y\rTransfer-Encoding: chunked\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Content-Length: 0\r\n\rx"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Content-Length: 0\r\n\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Content-Length: 0\r\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(CHUNKED "5\nhello\r\n0\r\n\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "5\rXhello\r\n0\r\n\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "5;a\nhello\r\n0\r\n\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "5;a\rb\r\nhello\r\n0\r\n\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "5\r\nhello\n0\r\n\r\n"), 0, PROTOCOL, 200, "hello", 0, false },
  { IN(CHUNKED "5\r\nhelloXY0\r\n\r\n"), 0, PROTOCOL, 200, "hello", 0, false },
  { IN(CHUNKED "5\r\nhello\rX0\r\n\r\n"), 0, PROTOCOL, 200, "hello", 0, false },
  { IN(CHUNKED "5\r\nhello0\r\n\r\n"), 0, PROTOCOL, 200, "hello", 0, false },
  { IN(CHUNKED "0\r\nX: y\n\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "0\r\nX: y\r\n\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "0\r\n\rx"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "0\n\n"), 0, PROTOCOL, 200, "", 0, false },
  /* fields */
  { IN(OK11 "X: y\r\n z\r\nContent-Length: 0\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "X: y\r\n\tz\r\nContent-Length: 0\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 " X: y\r\nContent-Length: 0\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "X: y\r\n \r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Content-Length : 0\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "X y: 0\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 ": y\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "X\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "X\xc3\xa9: y\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "X\0: y\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "X: a\0b\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "X: a\x7f\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "X: a\x01\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.1 200 O\0K\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(CHUNKED "0\r\nX\r\n\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "0\r\nX : y\r\n\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "0\r\nX: y\r\n z\r\n\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "0\r\nX: \0\r\n\r\n"), 0, PROTOCOL, 200, "", 0, false },
  /* framing */
  { IN(OK11 "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.1 204 N\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Content-Length: 5, 5\r\n\r\nhello"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Content-Length: -5\r\n\r\nhello"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Content-Length: +5\r\n\r\nhello"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Content-Length: 0x5\r\n\r\nhello"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Content-Length: 5 5\r\n\r\nhello"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Content-Length: 5;\r\n\r\nhello"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Content-Length:\r\n\r\nhello"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Content-Length: 18446744073709551616\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Content-Length: 184467440737095516150\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false
    },
  { IN(OK11 "Transfer-Encoding: identity\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(OK11 "Transfer-Encoding:\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(CHUNKED "\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED ";a\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED " 5\r\nhello\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "g\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "0x5\r\nhello\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "-1\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "5 5\r\nhello\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "5;\x01\r\nhello\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "10000000000000000\r\n"), 0, PROTOCOL, 200, "", 0, false },
  { IN(CHUNKED "fffffffffffffffff\r\n"), 0, PROTOCOL, 200, "", 0, false },
  /* status lines */
  { IN("RTSP/1.0 200 OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("ICE/1.0 200 OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/2.0 200 OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/0.9 200 OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/3 200 OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.2 200 OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.10 200 OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1. 200 OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("http/1.1 200 OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("\r\nHTTP/1.1 200 OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN(" HTTP/1.1 200 OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.1\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.1 \r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.1 20\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.1 2000 OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.1 200OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.1 abc OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.1 000 OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.1 099 OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.1 600 OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.1 999 OK\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false
    },
  { IN("HTTP/1.1 101 Switching Protocols\r\n\r\n"), 0, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/1.1 100 Continue\r\n\r\ngarbage"), 0, PROTOCOL, 0, "", 0, false },
  { IN("garbage and more of it"), 0, PROTOCOL, 0, "", 0, false },
  { IN("abc"), H1_EOF, PROTOCOL, 0, "", 0, false },
  { IN("HTTP/2"), H1_EOF, PROTOCOL, 0, "", 0, false },
  /* the end came too early */
  { IN(""), H1_EOF, E2B_ERR_CLOSED, 0, "", 0, false },
  { IN("H"), H1_EOF, E2B_ERR_TRUNCATED, 0, "", 0, false },
  { IN("HTTP/1."), H1_EOF, E2B_ERR_TRUNCATED, 0, "", 0, false },
  { IN(OK11), H1_EOF, E2B_ERR_TRUNCATED, 0, "", 0, false },
  { IN(OK11 "Content-Length: 5\r\n"), H1_EOF, E2B_ERR_TRUNCATED, 0, "", 0, false },
  { IN(OK11 "Content-Length: 5\r\n\r"), H1_EOF, E2B_ERR_TRUNCATED, 0, "", 0, false },
  { IN("HTTP/1.1 100 Continue\r\n\r\n"), H1_EOF, E2B_ERR_TRUNCATED, 0, "", 0, false },
  { IN(OK11 "Content-Length: 5\r\n\r\n"), H1_EOF, E2B_ERR_TRUNCATED, 200, "", 0, false },
  { IN(OK11 "Content-Length: 5\r\n\r\nhell"), H1_EOF, E2B_ERR_TRUNCATED, 200, "hell", 0, false },
  { IN(OK11 "Content-Length: 18446744073709551615\r\n\r\nhell"), H1_EOF, E2B_ERR_TRUNCATED, 200, "hell", 0, false },
  { IN(CHUNKED), H1_EOF, E2B_ERR_TRUNCATED, 200, "", 0, false },
  { IN(CHUNKED "5"), H1_EOF, E2B_ERR_TRUNCATED, 200, "", 0, false },
  { IN(CHUNKED "5\r\nhell"), H1_EOF, E2B_ERR_TRUNCATED, 200, "hell", 0, false },
  { IN(CHUNKED "ffffffffffffffff\r\nhell"), H1_EOF, E2B_ERR_TRUNCATED, 200, "hell", 0, false },
  { IN(CHUNKED "5\r\nhello"), H1_EOF, E2B_ERR_TRUNCATED, 200, "hello", 0, false },
  { IN(CHUNKED "5\r\nhello\r\n"), H1_EOF, E2B_ERR_TRUNCATED, 200, "hello", 0, false },
  { IN(CHUNKED "5\r\nhello\r\n0\r\n"), H1_EOF, E2B_ERR_TRUNCATED, 200, "hello", 0, false },
  { IN(CHUNKED "5\r\nhello\r\n0\r\nX: y\r\n"), H1_EOF, E2B_ERR_TRUNCATED, 200, "hello", 0, false }
};

static void h1_check_cases(const h1_case *cases, size_t count) {
  h1_result r;
  size_t i;
  for (i = 0; i < count; i++) {
    const h1_case *c = &cases[i];
    bool ok;
    h1_parse(c->input, c->len, c->flags, 65536, &r);
    ok = r.err == c->err && r.complete == (c->err == E2B_OK) && r.status == c->status &&
         r.keep_alive == c->keep_alive && (!c->body || strcmp(r.body, c->body) == 0) &&
         (c->err || c->len - r.used == c->left_over);
    CHECK(ok);
    if (ok) continue;
    printf("  from: %s\n", c->input);
    h1_print(&r);
  }
}

static void test_http1_responses(void) {
  h1_check_cases(h1_good, E2B__COUNT(h1_good));
  h1_check_cases(h1_bad, E2B__COUNT(h1_bad));
}

static void test_http1_fields(void) {
  h1_result r;
  h1_parse(IN(OK11 "X-UPPER:  a b \t\r\nEmpty:\r\nBlank: \t \r\nx-upper: 2:3\r\nLatin: \xe9\r\n"
                   "Content-Length: 0\r\n\r\n"), 0, 65536, &r);
  CHECK_INT(r.err, E2B_OK);
  CHECK_STR(r.fields, "x-upper=a b\nempty=\nblank=\nx-upper=2:3\nlatin=\xe9\ncontent-length=0\n");
  /* nothing of a 1xx or of trailers gets into the fields */
  h1_parse(IN("HTTP/1.1 103 E\r\nLink: x\r\nConnection: close\r\n\r\n" CHUNKED "0\r\nTrailer: 1\r\n\r\n"), 0,
           65536, &r);
  CHECK_STR(r.fields, "transfer-encoding=chunked\n");
}

static void test_http1_details(void) {
  static const struct { const char *input; size_t len; const char *part; } cases[] = {
    { IN("\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x80"), "HTTP/2 frames" },
    { IN("\0\0\x08\x07\0\0\0\0\0"), "HTTP/2 frames" },
    { IN("\x15\x03\x03\0\x02\x02\x28"), "TLS" },
    { IN("\x15\x03\x03\0"), "TLS" },
    { IN("SSH-2.0-OpenSSH_9.2p1\r\n"), "not HTTP" },
    { IN("HTTP/2.0 200 OK\r\n\r\n"), "not HTTP/1.0 or HTTP/1.1" },
    { IN("HTTP/1.1 2x0 OK\r\n\r\n"), "status line" },
    { IN(OK11 "Content-Length: 5\r\nContent-Length: 5\r\n\r\n"), "content-length" },
    { IN(OK11 "X y\r\n\r\n"), "header field" },
    { IN(CHUNKED "x\r\n"), "chunk" },
    { IN("HTTP/1.1 200"), "within the response head" },
    { IN(OK11 "Content-Length: 5\r\n\r\nhell"), "content-length bytes" },
    { IN(CHUNKED "5\r\nhell"), "within a chunk" },
    { IN(CHUNKED "5\r\nhello\r\n"), "before the last chunk" }
  };
  e2b__mem mem;
  e2b__h1 h1;
  h1_result r;
  size_t i, used;
  char excerpt[40];
  for (i = 0; i < E2B__COUNT(cases); i++) {
    h1_parse(cases[i].input, cases[i].len, H1_EOF, 65536, &r);
    if (!r.detail || !strstr(r.detail, cases[i].part))
      printf("detail: %s, not %s\n", r.detail ? r.detail : "", cases[i].part);
    CHECK(r.err != E2B_OK && r.detail && strstr(r.detail, cases[i].part));
  }
  e2b__mem_init(&mem, NULL);
  e2b__h1_init(&h1, &mem, 65536, &h1_events, NULL);
  CHECK_INT(h1_feed_piece(&h1, IN("SSH-2.0-OpenSSH_9.2p1\r\n"), &used), PROTOCOL);
  e2b__error_excerpt(excerpt, sizeof excerpt, h1.first_bytes, h1.first_len);
  CHECK_STR(excerpt, "SSH-2.0-OpenSSH_9.2p1 ");
  e2b__h1_free(&h1);
}

/* Several responses on one connection, all in one buffer. */
static void test_http1_reuse(void) {
  static const char stream[] =
    OK11 "Content-Length: 5\r\n\r\nhello"
    "HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n"
    "HTTP/1.1 103 E\r\nContent-Length: 5\r\n\r\n"
    CHUNKED "1\r\na\r\n0\r\n\r\n"
    "HTTP/1.1 304 N\r\nTransfer-Encoding: chunked\r\n\r\n"
    OK11 "Content-Length: 7\r\n\r\n" /* to HEAD */
    "HTTP/1.0 200 OK\r\n\r\nend";
  static const struct { int status; unsigned flags; const char *body; bool keep_alive; } expected[] = {
    { 200, 0, "hello", true }, { 204, 0, "", true }, { 200, 0, "a", true }, { 304, 0, "", true },
    { 200, H1_HEAD, "", true }, { 200, H1_EOF, "end", false }
  };
  test_heap heap;
  e2b__mem mem;
  e2b__h1 h1;
  h1_result r;
  size_t i, at, step;
  heap_mem(&heap, &mem);
  e2b__h1_init(&h1, &mem, 65536, &h1_events, NULL);
  CHECK_INT(heap.calls, 0);
  for (step = 1; step < sizeof stream; step++) {
    for (i = 0, at = 0; i < E2B__COUNT(expected); i++) {
      memset(&r, 0, sizeof r);
      h1_run(&h1, stream + at, sizeof stream - 1 - at, expected[i].flags, 0, step, &r);
      CHECK_INT(r.err, E2B_OK);
      CHECK(r.complete);
      CHECK_INT(r.status, expected[i].status);
      CHECK_INT(r.keep_alive, expected[i].keep_alive);
      CHECK_STR(r.body, expected[i].body);
      at += r.used;
    }
    CHECK_INT(at, sizeof stream - 1);
  }
  /* a failure does not outlive the next begin */
  memset(&r, 0, sizeof r);
  h1_run(&h1, IN(CHUNKED "5 x\r\n"), 0, 0, 100, &r);
  CHECK_INT(r.err, PROTOCOL);
  CHECK_INT(h1_feed_piece(&h1, "5\r\n", 3, &at), PROTOCOL);
  CHECK_INT(at, 0);
  CHECK_INT(e2b__h1_finish(&h1), PROTOCOL);
  memset(&r, 0, sizeof r);
  h1_run(&h1, IN(CHUNKED "5\r\nhello\r\n0\r\n\r\n"), 0, 0, 100, &r);
  CHECK_INT(r.err, E2B_OK);
  CHECK_STR(r.body, "hello");
  CHECK_INT(e2b__h1_finish(&h1), E2B_OK);
  CHECK_INT(h1_feed_piece(&h1, "more", 4, &at), E2B_OK);
  CHECK_INT(at, 0);
  CHECK_INT(h1_feed_piece(&h1, "", 0, &at), E2B_OK);
  e2b__h1_free(&h1);
  HEAP_CHECK_EMPTY(&heap);
}

static void test_http1_events_abort(void) {
  e2b__mem mem;
  e2b__h1 h1;
  h1_result r;
  size_t used;
  e2b__mem_init(&mem, NULL);
  e2b__h1_init(&h1, &mem, 65536, &h1_events, NULL);
  memset(&r, 0, sizeof r);
  r.head_err = E2B_ERR_CANCELED;
  h1_run(&h1, IN(OK11 "Content-Length: 5\r\n\r\nhello"), 0, 0, 100, &r);
  CHECK_INT(r.err, E2B_ERR_CANCELED);
  CHECK_INT(r.body_len, 0);
  memset(&r, 0, sizeof r);
  r.head_err = E2B_ERR_LIMIT;
  h1_run(&h1, IN("HTTP/1.1 204 N\r\n\r\n"), 0, 0, 100, &r);
  CHECK_INT(r.err, E2B_ERR_LIMIT);
  CHECK(!r.complete);
  memset(&r, 0, sizeof r);
  r.body_err = E2B_ERR_NO_MEMORY;
  r.body_err_at = 3;
  h1_run(&h1, IN(CHUNKED "2\r\nab\r\n2\r\ncd\r\n2\r\nef\r\n0\r\n\r\n"), 0, 0, 100, &r);
  CHECK_INT(r.err, E2B_ERR_NO_MEMORY);
  CHECK_STR(r.body, "abcd");
  CHECK_INT(h1_feed_piece(&h1, "x", 1, &used), E2B_ERR_NO_MEMORY);
  memset(&r, 0, sizeof r);
  r.body_err = E2B_ERR_CANCELED;
  r.body_err_at = 5; /* with the last byte: the error still counts */
  h1_run(&h1, IN(OK11 "Content-Length: 5\r\n\r\nhello"), 0, 0, 100, &r);
  CHECK_INT(r.err, E2B_ERR_CANCELED);
  CHECK(!r.complete);
  e2b__h1_free(&h1);
}

/* Builds long inputs: text, then `count` times another, then a tail. */
static char *h1_repeat(const char *head, const char *again, size_t count, const char *tail, size_t *len) {
  size_t head_len = strlen(head), again_len = strlen(again), tail_len = strlen(tail), i;
  char *text = (char *)malloc(head_len + again_len * count + tail_len + 1);
  memcpy(text, head, head_len);
  for (i = 0; i < count; i++) memcpy(text + head_len + again_len * i, again, again_len);
  memcpy(text + head_len + again_len * count, tail, tail_len + 1);
  *len = head_len + again_len * count + tail_len;
  return text;
}

static void test_http1_limits(void) {
  static const char end[] = "Content-Length: 0\r\n\r\n";
  static const struct { const char *head, *again; size_t count; const char *tail; uint32_t max; e2b_err err; } cases[]
    = {
    /* 17 + 21 bytes around the fields; "a:\r\n" is 4 */
    { OK11, "a:\r\n", 100, end, 438, E2B_OK },
    { OK11, "a:\r\n", 100, end, 437, E2B_ERR_LIMIT },
    { OK11, "a:\r\n", 127, end, 65536, E2B_OK },
    { OK11, "a:\r\n", 128, end, 65536, E2B_ERR_LIMIT },
    { "HTTP/1.1 200 ", "a", 2000, "", 1000, E2B_ERR_LIMIT },
    { OK11 "X: ", "a", 2000, "", 1000, E2B_ERR_LIMIT },
    { OK11, "a", 2000, "", 1000, E2B_ERR_LIMIT },
    { "HTTP/1.1 200 ", "a", 900, "\r\nContent-Length: 0\r\n\r\n", 1000, E2B_OK },
    { "HTTP/1.1 103 E\r\nX: y\r\n", "a:\r\n", 300, "\r\n", 1000, E2B_ERR_LIMIT },
    { "", "HTTP/1.1 103 E\r\nLink: 1\r\n\r\n", 16, OK11 "Content-Length: 0\r\n\r\n", 100, E2B_OK },
    { "", "HTTP/1.1 100 C\r\n\r\n", 17, OK11 "Content-Length: 0\r\n\r\n", 65536, E2B_ERR_PROTOCOL },
    /* the fields of a 1xx count on their own */
    { "HTTP/1.1 103 E\r\n", "a:\r\n", 128, "\r\n" OK11 "Content-Length: 0\r\n\r\n", 65536, E2B_OK },
    /* chunks */
    { CHUNKED "1;", "x", 2000, "\r\na\r\n0\r\n\r\n", 1000, E2B_ERR_LIMIT },
    { CHUNKED "1;", "x", 900, "\r\na\r\n0\r\n\r\n", 1000, E2B_OK },
    { CHUNKED "", "0", 2000, "1\r\na\r\n0\r\n\r\n", 1000, E2B_ERR_LIMIT },
    { CHUNKED "", "1\r\na\r\n", 2000, "0\r\n\r\n", 100, E2B_OK },
    { CHUNKED "", "1;0123456789abcdef\r\na\r\n", 2000, "0\r\n\r\n", 1000, E2B_ERR_LIMIT },
    { CHUNKED "", "8;0123456789abcdef\r\n01234567\r\n", 2000, "0\r\n\r\n", 1000, E2B_OK },
    /* trailers */
    { CHUNKED "0\r\n", "a: b\r\n", 100, "\r\n", 602, E2B_OK },
    { CHUNKED "0\r\n", "a: b\r\n", 100, "\r\n", 601, E2B_ERR_LIMIT },
    { CHUNKED "0\r\na: ", "a", 2000, "", 1000, E2B_ERR_LIMIT }
  };
  h1_result r;
  size_t i, len;
  for (i = 0; i < E2B__COUNT(cases); i++) {
    char *text = h1_repeat(cases[i].head, cases[i].again, cases[i].count, cases[i].tail, &len);
    h1_parse(text, len, 0, cases[i].max, &r);
    if (r.err != cases[i].err) printf("limit case %u: %s\n", (unsigned)i, r.detail ? r.detail : "");
    CHECK_INT(r.err, cases[i].err);
    CHECK_INT(r.complete, cases[i].err == E2B_OK);
    free(text);
  }
}

static void test_http1_no_memory(void) {
  test_heap heap;
  e2b__mem mem;
  e2b__h1 h1;
  h1_result r;
  size_t len;
  long fail;
  char *text = h1_repeat("HTTP/1.1 100 C\r\nX: y\r\n\r\n" OK11, "Name: and some value\r\n", 100,
    "Content-Length: 1\r\n\r\na", &len);
  for (fail = 1; fail < 50; fail++) {
    heap_mem(&heap, &mem);
    heap.fail_at = fail;
    e2b__h1_init(&h1, &mem, 65536, &h1_events, NULL);
    memset(&r, 0, sizeof r);
    h1_run(&h1, text, len, 0, 0, len, &r);
    if (r.err == E2B_OK) break;
    CHECK_INT(r.err, E2B_ERR_NO_MEMORY);
    CHECK(!r.complete);
    /* the connection is lost, the parser is not */
    memset(&r, 0, sizeof r);
    h1_run(&h1, text, len, 0, 0, 7, &r);
    CHECK_INT(r.err, E2B_OK);
    e2b__h1_free(&h1);
    HEAP_CHECK_EMPTY(&heap);
  }
  CHECK(fail > 5 && fail < 50);
  CHECK(r.complete);
  e2b__h1_free(&h1);
  HEAP_CHECK_EMPTY(&heap);
  free(text);
}

static size_t h1_random(uint32_t *state, size_t bound) {
  *state = *state * 1664525u + 1013904223u;
  return (size_t)(*state >> 8) % bound;
}

/* Mutated responses: no crash, and the split of the input does not change the outcome. */
static void h1_fuzz(uint32_t rounds, uint32_t seed) {
  static const char *const splices[] = {
    "\r\n", "\r", "\n", "\r\n\r\n", " ", "\t", ":", ";", ",", "0", "\x80", "\x7f", "HTTP/1.1 ",
    "Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n", "Connection: close\r\n", "1\r\n", "0\r\n\r\n", "100",
    "204", "Upgrade: x\r\n", "ffffffffffffffff", "Connection: keep-alive\r\n", "close", "\"", " \r\n"
  };
  test_heap heap;
  e2b__mem mem;
  e2b__h1 h1;
  uint32_t round, state = seed;
  heap_mem(&heap, &mem);
  e2b__h1_init(&h1, &mem, 300, &h1_events, NULL);
  for (round = 0; round < rounds; round++) {
    h1_result whole, other;
    char text[512];
    size_t pick = h1_random(&state, E2B__COUNT(h1_good) + E2B__COUNT(h1_bad)), edits = 1 + h1_random(&state, 4);
    size_t i, at, n, len;
    const h1_case *c = pick < E2B__COUNT(h1_good) ? &h1_good[pick] : &h1_bad[pick - E2B__COUNT(h1_good)];
    unsigned flags = (unsigned)h1_random(&state, 8);
    len = c->len;
    memcpy(text, c->input, len);
    for (i = 0; i < edits; i++) {
      at = h1_random(&state, len + 1);
      switch (h1_random(&state, 4)) {
        case 0: /* change a byte */
          if (at < len) text[at] = (char)h1_random(&state, 256);
          break;
        case 1: /* remove some */
          n = 1 + h1_random(&state, 4);
          n = E2B__MIN(n, len - at);
          memmove(text + at, text + at + n, len - at - n);
          len -= n;
          break;
        case 2: { /* insert a piece of syntax */
          const char *piece = splices[h1_random(&state, E2B__COUNT(splices))];
          n = strlen(piece);
          if (len + n > sizeof text) break;
          memmove(text + at + n, text + at, len - at);
          memcpy(text + at, piece, n);
          len += n;
          break;
        }
        default: /* repeat some at the end */
          n = h1_random(&state, 40);
          n = E2B__MIN(n, E2B__MIN(len - at, sizeof text - len));
          memmove(text + len, text + at, n);
          len += n;
          break;
      }
    }
    memset(&whole, 0, sizeof whole);
    h1_run(&h1, text, len, flags, 0, len ? len : 1, &whole);
    memset(&other, 0, sizeof other);
    h1_run(&h1, text, len, flags, 0, 1, &other);
    if (!h1_same(&whole, &other)) {
      printf("fuzz round %u, seed %u, byte by byte: %.*s\n", (unsigned)round, (unsigned)seed, (int)len, text);
      CHECK(false);
    }
    memset(&other, 0, sizeof other);
    at = 1 + h1_random(&state, len + 1);
    n = 1 + h1_random(&state, 16);
    h1_run(&h1, text, len, flags, at, n, &other);
    if (!h1_same(&whole, &other)) {
      printf("fuzz round %u, seed %u, in pieces: %.*s\n", (unsigned)round, (unsigned)seed, (int)len, text);
      CHECK(false);
    }
  }
  e2b__h1_free(&h1);
  HEAP_CHECK_EMPTY(&heap);
}

static void test_http1_fuzz(void) {
  h1_fuzz(40000, 1);
}

/* ================================================================================================================== */
/* >>>> http2 */
/* ================================================================================================================== */

#if !defined(E2B_NO_HTTP2)

/* Sequences of blocks, each with the fields it holds and the dynamic table after it (newest first), as "name=value\n". */
typedef struct hpack_block { const char *id; uint32_t limit; const char *hex, *fields, *table; uint32_t size; } hpack_block;
static const hpack_block hpack_blocks[] = {
  { "C.2.1", 4096, "400a637573746f6d2d6b65790d637573746f6d2d686561646572",
    "custom-key=custom-header\012",
    "custom-key=custom-header\012", 55 },
  { "C.2.2", 4096, "040c2f73616d706c652f70617468",
    ":path=/sample/path\012",
    "", 0 },
  { "C.2.3", 4096, "100870617373776f726406736563726574",
    "password=secret\012",
    "", 0 },
  { "C.2.4", 4096, "82",
    ":method=GET\012",
    "", 0 },
  { "C.3", 4096, "828684410f7777772e6578616d706c652e636f6d",
    ":method=GET\012:scheme=http\012:path=/\012:authority=www.example.com\012",
    ":authority=www.example.com\012", 57 },
  { "C.3", 4096, "828684be58086e6f2d6361636865",
    ":method=GET\012:scheme=http\012:path=/\012:authority=www.example.com\012cache-control=no-cache\012",
    "cache-control=no-cache\012:authority=www.example.com\012", 110 },
  { "C.3", 4096, "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
    ":method=GET\012:scheme=https\012:path=/index.html\012:authority=www.example.com\012custom-key=custom"
      "-value\012",
    "custom-key=custom-value\012cache-control=no-cache\012:authority=www.example.com\012", 164 },
  { "C.4", 4096, "828684418cf1e3c2e5f23a6ba0ab90f4ff",
    ":method=GET\012:scheme=http\012:path=/\012:authority=www.example.com\012",
    ":authority=www.example.com\012", 57 },
  { "C.4", 4096, "828684be5886a8eb10649cbf",
    ":method=GET\012:scheme=http\012:path=/\012:authority=www.example.com\012cache-control=no-cache\012",
    "cache-control=no-cache\012:authority=www.example.com\012", 110 },
  { "C.4", 4096, "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    ":method=GET\012:scheme=https\012:path=/index.html\012:authority=www.example.com\012custom-key=custom"
      "-value\012",
    "custom-key=custom-value\012cache-control=no-cache\012:authority=www.example.com\012", 164 },
  { "C.5", 256, "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e17687474"
      "70733a2f2f7777772e6578616d706c652e636f6d",
    ":status=302\012cache-control=private\012date=Mon, 21 Oct 2013 20:13:21 GMT\012location=https://www.e"
      "xample.com\012",
    "location=https://www.example.com\012date=Mon, 21 Oct 2013 20:13:21 GMT\012cache-control=private\012:"
      "status=302\012", 222 },
  { "C.5", 256, "4803333037c1c0bf",
    ":status=307\012cache-control=private\012date=Mon, 21 Oct 2013 20:13:21 GMT\012location=https://www.e"
      "xample.com\012",
    ":status=307\012location=https://www.example.com\012date=Mon, 21 Oct 2013 20:13:21 GMT\012cache-contr"
      "ol=private\012", 222 },
  { "C.5", 256, "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a"
      "4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
    ":status=200\012cache-control=private\012date=Mon, 21 Oct 2013 20:13:22 GMT\012location=https://www.e"
      "xample.com\012content-encoding=gzip\012set-cookie=foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; ver"
      "sion=1\012",
    "set-cookie=foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1\012content-encoding=gzip\012date"
      "=Mon, 21 Oct 2013 20:13:22 GMT\012", 215 },
  { "C.6", 256, "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae"
      "82ae43d3",
    ":status=302\012cache-control=private\012date=Mon, 21 Oct 2013 20:13:21 GMT\012location=https://www.e"
      "xample.com\012",
    "location=https://www.example.com\012date=Mon, 21 Oct 2013 20:13:21 GMT\012cache-control=private\012:"
      "status=302\012", 222 },
  { "C.6", 256, "4883640effc1c0bf",
    ":status=307\012cache-control=private\012date=Mon, 21 Oct 2013 20:13:21 GMT\012location=https://www.e"
      "xample.com\012",
    ":status=307\012location=https://www.example.com\012date=Mon, 21 Oct 2013 20:13:21 GMT\012cache-contr"
      "ol=private\012", 222 },
  { "C.6", 256, "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960"
      "d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
    ":status=200\012cache-control=private\012date=Mon, 21 Oct 2013 20:13:22 GMT\012location=https://www.e"
      "xample.com\012content-encoding=gzip\012set-cookie=foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; ver"
      "sion=1\012",
    "set-cookie=foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1\012content-encoding=gzip\012date"
      "=Mon, 21 Oct 2013 20:13:22 GMT\012", 215 },
  { "X.1", 4096, "4001610131",
    "a=1\012",
    "a=1\012", 34 },
  { "X.1", 4096, "203fe11f4001620132",
    "b=2\012",
    "b=2\012", 34 },
  { "X.1", 4096, "be",
    "b=2\012",
    "b=2\012", 34 },
  { "X.2", 64, "4001610131",
    "a=1\012",
    "a=1\012", 34 },
  { "X.2", 64, "40016b4076767676767676767676767676767676767676767676767676767676767676767676767676767676767676767676"
      "767676767676767676767676767676767676",
    "k=vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv\012",
    "", 0 },
  { "X.2", 64, "82",
    ":method=GET\012",
    "", 0 },
  { "X.3", 70, "40046e616d65027631",
    "name=v1\012",
    "name=v1\012", 38 },
  { "X.3", 70, "7e1e767676767676767676767676767676767676767676767676767676767676",
    "name=vvvvvvvvvvvvvvvvvvvvvvvvvvvvvv\012",
    "name=vvvvvvvvvvvvvvvvvvvvvvvvvvvvvv\012", 66 },
  { "X.3", 70, "be",
    "name=vvvvvvvvvvvvvvvvvvvvvvvvvvvvvv\012",
    "name=vvvvvvvvvvvvvvvvvvvvvvvvvvvvvv\012", 66 },
  { "X.4", 4096, "40016101314001610131",
    "a=1\012a=1\012",
    "a=1\012a=1\012", 68 },
  { "X.4", 4096, "bebf",
    "a=1\012a=1\012",
    "a=1\012a=1\012", 68 },
  { "X.5", 4096, "40016100",
    "a=\012",
    "a=\012", 33 },
  { "X.5", 4096, "40016180",
    "a=\012",
    "a=\012a=\012", 66 },
  { "X.5", 4096, "5080",
    "accept-encoding=\012",
    "accept-encoding=\012a=\012a=\012", 113 },
  { "X.6", 4096, "1f0886ba51d85b144f",
    "authorization=Bearer t\012",
    "", 0 },
  { "X.7", 4096, "838741891d665e81c6ba4a84ff04876103aa48cfe4a81087f2b0eb32dd4beb8e28a38801132d36e3af3e38c92165",
    ":method=POST\012:scheme=https\012:authority=api.lab.test\012:path=/sandboxes\012x-api-key=e2b_012345"
      "6789abcdef\012",
    ":authority=api.lab.test\012", 54 },
  { "X.7", 4096, "8387be04876103aa48cfe4a81087f2b0eb32dd4beb8e28a38801132d36e3af3e38c92165",
    ":method=POST\012:scheme=https\012:authority=api.lab.test\012:path=/sandboxes\012x-api-key=e2b_012345"
      "6789abcdef\012",
    ":authority=api.lab.test\012", 54 },
  { "X.8", 4096, "0001617f00787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878"
      "7878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878"
      "7878787878787878787878787878787878787878787878787878787878787878",
    "a=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
      "xxxxxxxxxxxxxxxxxxxxxxxxxxxxx\012",
    "", 0 },
  { "X.8", 4096, "0001617f01787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878"
      "7878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878"
      "787878787878787878787878787878787878787878787878787878787878787878",
    "a=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
      "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\012",
    "", 0 },
  { "X.9", 4096, "00811f850000000000",
    "a=00000000\012",
    "", 0 },
  { "X.9", 4096, "00811f85fe3f8fe3f8",
    "a=!!!!\012",
    "", 0 },
  { "X.9", 4096, "00811f81f8",
    "a=&\012",
    "", 0 },
  { "X.9", 4096, "00811f840000007f",
    "a=00000\012",
    "", 0 },
  { "X.11", 4096, "4001610131",
    "a=1\012",
    "a=1\012", 34 },
  { "X.11", 4096, "203fe11f4001620132",
    "b=2\012",
    "b=2\012", 34 },
  { "X.12", 0, "40016101314001620132",
    "a=1\012b=2\012",
    "", 0 },
  { "X.12", 0, "82",
    ":method=GET\012",
    "", 0 },
  { "X.13", 4096, "0883682f7f",
    ":status=418\012",
    "", 0 },
  { "X.13", 4096, "0803343138",
    ":status=418\012",
    "", 0 },
  { "X.14", 68, "40016101314001620132",
    "a=1\012b=2\012",
    "b=2\012a=1\012", 68 },
  { "X.14", 68, "4001630133",
    "c=3\012",
    "c=3\012b=2\012", 68 },
  { "X.14", 68, "bebf",
    "c=3\012b=2\012",
    "c=3\012b=2\012", 68 },
  { "X.15", 4096, "0001617f80007979797979797979797979797979797979797979797979797979797979797979797979797979797979797979"
      "7979797979797979797979797979797979797979797979797979797979797979797979797979797979797979797979797979"
      "797979797979797979797979797979797979797979797979797979797979797979",
    "a=yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy"
      "yyyyyyyyyyyyyyyyyyyyyyyyyyyyy\012",
    "", 0 },
};
/* X.10: one field whose value has each octet once, in Huffman code. */
static const char hpack_octets[] =
    "00811fffc803ffc7fffd8fffffe2fffffe3fffffe4fffffe5fffffe6fffffe7fffffe8ffffeafffffff3fffffa7fffffabff"
    "ffffdfffffebfffffecfffffedfffffeefffffefffffff0ffffff1ffffff2fffffffbfffffcffffffd3fffffd7fffffdbfff"
    "ffdffffffe3fffffe7fffffebfffffed4fe3f9ffaffcabf1febfafefe7fdfd2cbb00089969b71d79fb9f7fff20ffbff3ff50"
    "ddbd7f061c58f265cd9f469d5af66dddbf871e5f9cff7ff7fffc3ff9ffe45fff4719242cb34e6e9d68a6a3d7dac426defe3c"
    "faf7fffbfe7ffbffdffffffcfffe6ffff4bfff9ffffa3fffd3ffff53fffd5ffffb3fffeb7fffdaffffb7ffff73fffeeffffd"
    "effffebffffbfffffd9ffffdbfffebffffe0ffffeeffffc3ffff8bffff1ffffe4fffee7fffb1ffff97fffd9ffffcdffff9ff"
    "fffbffffdafffeeffff4ffffb7fffee7fffe8ffffd3fffdeffffd5fffeeffffbdffffe1fffdfffff7fffff5ffffecffff07f"
    "ff87fffe0ffff17fffedffff87ffff77fffeffffeaffff8bfffe3ffff93ffff87fffcbffff37ffff1fffff83ffffe1fffebf"
    "ffe3ffff3fffff2ffffa3ffffd9fffff17ffffc7fffff27ffffdefffffbffffff2fffff8fffffb7fff97fff8fffffe6fffff"
    "c1fffff87ffffe7fffffc5ffffe5fffe4ffff2fffffd1fffff4ffffffefffffe3fffffc9fffff97fffb3ffffcffffb7fffcd"
    "ffff4ffff9ffffd1ffffcffffeaffffafffffddffffeffffff4fffff5fffffabffffa7ffffd7fffff9bffffecfffffb7ffff"
    "f3fffffe8fffffd3fffffabfffff5fffffff7ffffecfffffdbfffffbbfffff7ffffff0fffffbbf";
/* What must not decode: blocks, of which the last is at fault. */
static const char *const hpack_faults[][3] = {
  { "80" }, /* E.1: index 0 */
  { "be" }, /* E.2: index beyond the dynamic table */
  { "4001610131", "bf" }, /* E.3: index beyond the dynamic table */
  { "7f000131" }, /* E.4: index beyond the dynamic table */
  { "ff" }, /* E.5: truncated integer */
  { "400161" }, /* E.6: truncated string */
  { "40016105616263" }, /* E.7: truncated string */
  { "ffffffffff7f" }, /* E.8: integer overflow */
  { "ff8080808080808080808001" }, /* E.9: integer overflow */
  { "000161821fff" }, /* E.10: huffman padding longer than 7 bits */
  { "0001618118" }, /* E.11: huffman padding is not the EOS prefix */
  { "00016184ffffffff" }, /* E.12: huffman EOS symbol */
  { "00016181ff" }, /* E.13: huffman padding longer than 7 bits */
  { "3fe21f" }, /* E.14: dynamic table size update above the limit */
  { "8220" }, /* E.15: dynamic table size update after a field */
  { "4001610131", "20", "be" }, /* E.18: index beyond the dynamic table */
};

static void hpack_collect(void *owner, e2b_str name, e2b_str value) {
  e2b__buf *text = (e2b__buf *)owner;
  e2b__buf_str(text, name);
  e2b__buf_byte(text, '=');
  e2b__buf_str(text, value);
  e2b__buf_byte(text, '\n');
}

/* With E2B_DUMP_HPACK set, what our encoder wrote goes to that file, for tests/hpack_oracle.c. */
static FILE *hpack_dump_file(void) {
  static FILE *file;
  static bool tried;
  const char *name = getenv("E2B_DUMP_HPACK");
  if (!tried && name && *name) file = fopen(name, "w");
  tried = true;
  return file;
}

static unsigned hpack_dump_new(void) {
  static unsigned count;
  if (hpack_dump_file()) fprintf(hpack_dump_file(), "new %u\n", count);
  return count++;
}

static void hpack_dump_block(unsigned id, const uint8_t *block, size_t len, const void *fields, size_t fields_len) {
  FILE *file = hpack_dump_file();
  size_t i;
  if (!file) return;
  fprintf(file, "block %u ", id);
  for (i = 0; i < len; i++) fprintf(file, "%02x", block[i]);
  fputc(' ', file);
  for (i = 0; i < fields_len; i++) fprintf(file, "%02x", ((const uint8_t *)fields)[i]);
  fputc('\n', file);
  fflush(file);
}

static bool hpack_text_is(const e2b__buf *text, const char *want) {
  return text->len == strlen(want) && (text->len == 0 || memcmp(text->data, want, text->len) == 0);
}

static void hpack_check_table(const e2b__hpack_table *table, const hpack_block *block, e2b__mem *mem) {
  e2b__buf text;
  e2b_str name, value;
  uint32_t i;
  e2b__buf_init(&text, mem, SIZE_MAX);
  for (i = 1; i <= table->count; i++) {
    CHECK(e2b__hpack_get(table, E2B__HPACK_STATIC + i, &name, &value));
    hpack_collect(&text, name, value);
  }
  CHECK(!e2b__hpack_get(table, E2B__HPACK_STATIC + i, &name, &value));
  if (!CHECK(hpack_text_is(&text, block->table))) printf("  %s\n", block->id);
  CHECK_INT(e2b__hpack_size(table), block->size);
  e2b__buf_free(&text);
}

static void test_hpack_vectors(void) {
  static e2b__hpack_decoder decoder;
  uint8_t bytes[1024];
  const char *id = "";
  e2b__buf text;
  e2b__mem mem;
  size_t i;
  int k;
  e2b__mem_init(&mem, NULL);
  e2b__buf_init(&text, &mem, SIZE_MAX);
  for (i = 0; i < E2B__COUNT(hpack_blocks); i++) {
    const hpack_block *block = &hpack_blocks[i];
    size_t len = codec_unhex(block->hex, bytes);
    if (strcmp(id, block->id) != 0) {
      e2b__hpack_decoder_init(&decoder, &mem);
      decoder.table.limit = block->limit;
    }
    id = block->id;
    text.len = 0;
    if (!CHECK_INT(e2b__hpack_decode(&decoder, bytes, len, hpack_collect, &text), E2B_OK) || !CHECK(hpack_text_is(&text, block->fields)))
      printf("  %s\n", block->id);
    hpack_check_table(&decoder.table, block, &mem);
    e2b__buf_free(&decoder.field);
  }
  e2b__hpack_decoder_init(&decoder, &mem);
  text.len = 0;
  CHECK_INT(e2b__hpack_decode(&decoder, bytes, codec_unhex(hpack_octets, bytes), hpack_collect, &text), E2B_OK);
  CHECK_INT(text.len, 2 + 256 + 1);
  for (k = 0; k < 256 && text.len == 259; k++) CHECK_INT(text.data[2 + k], k);
  e2b__buf_free(&decoder.field);
  e2b__buf_free(&text);
  CHECK_INT(mem.now, 0);
}

static void test_hpack_faults(void) {
  static e2b__hpack_decoder decoder;
  uint8_t bytes[1024];
  e2b__buf text;
  e2b__mem mem;
  size_t i, k;
  e2b__mem_init(&mem, NULL);
  e2b__buf_init(&text, &mem, SIZE_MAX);
  for (i = 0; i < E2B__COUNT(hpack_faults); i++) {
    e2b__hpack_decoder_init(&decoder, &mem);
    for (k = 0; k < 3 && hpack_faults[i][k]; k++) {
      bool last = k == 2 || !hpack_faults[i][k + 1];
      size_t len = codec_unhex(hpack_faults[i][k], bytes);
      if (!CHECK_INT(e2b__hpack_decode(&decoder, bytes, len, hpack_collect, &text), last ? E2B_ERR_PROTOCOL : E2B_OK))
        printf("  %s\n", hpack_faults[i][k]);
    }
    e2b__buf_free(&decoder.field);
  }
  /* every beginning of every block: an error or fewer fields, no more */
  for (i = 0; i < E2B__COUNT(hpack_blocks); i++) {
    size_t len = codec_unhex(hpack_blocks[i].hex, bytes);
    for (k = 0; k < len; k++) {
      uint8_t *cut = (uint8_t *)malloc(k + 1);
      memcpy(cut, bytes, k);
      e2b__hpack_decoder_init(&decoder, &mem);
      (void)e2b__hpack_decode(&decoder, cut, k, hpack_collect, &text);
      CHECK(e2b__hpack_size(&decoder.table) <= decoder.table.limit);
      e2b__buf_free(&decoder.field);
      free(cut);
    }
  }
  e2b__buf_free(&text);
  CHECK_INT(mem.now, 0);
}

static void test_hpack_integers(void) {
  static const struct { uint32_t value; unsigned prefix; const char *hex; } cases[] = {
    { 10, 5, "0a" }, { 1337, 5, "1f9a0a" }, { 0, 5, "00" }, { 30, 5, "1e" }, { 31, 5, "1f00" }, { 127, 7, "7f00" }, { 128, 7, "7f01" },
    { 254, 7, "7f7f" }, { 255, 7, "7f8001" }, { 16383, 7, "7f807f" }, { 2097151, 5, "1fe0ff7f" }, { 4294967295u, 5, "1fe0ffffff0f" }
  };
  e2b__mem mem;
  e2b__buf out;
  size_t i;
  e2b__mem_init(&mem, NULL);
  e2b__buf_init(&out, &mem, SIZE_MAX);
  for (i = 0; i < E2B__COUNT(cases); i++) {
    uint8_t bytes[16];
    size_t len = codec_unhex(cases[i].hex, bytes);
    const uint8_t *at;
    uint32_t value = 1;
    out.len = 0;
    e2b__hpack_put_int(&out, 0, cases[i].prefix, cases[i].value);
    CHECK(out.len == len && memcmp(out.data, bytes, len) == 0);
    at = bytes;
    CHECK(e2b__hpack_get_int(&at, bytes + len, cases[i].prefix, &value) && at == bytes + len);
    CHECK_INT(value, cases[i].value);
    at = bytes;
    CHECK(!e2b__hpack_get_int(&at, bytes + len - 1, cases[i].prefix, &value));
  }
  e2b__buf_free(&out);
}

/* What we write, our decoder reads; the second time repeated fields are one octet; secrets and unknown fields never enter a table. */
static void test_hpack_encoder(void) {
  static e2b__hpack_encoder encoder;
  static e2b__hpack_decoder decoder;
  static const e2b_kv fields[] = {
    { ":method", "POST" }, { ":scheme", "https" }, { ":authority", "sandbox.e2b.app" }, { ":path", "/files?signature=v1_secret" },
    { "user-agent", "e2b.h/0.1.0" }, { "content-type", "application/proto" }, { "x-api-key", "e2b_secret" },
    { "authorization", "Basic dXNlcjo=" }, { "x-access-token", "token" }, { "e2b-traffic-access-token", "token" }, { "my-header", "" }
  };
  e2b__buf out, text, want;
  e2b__mem mem;
  size_t i, first = 0;
  unsigned dump;
  int round;
  e2b__mem_init(&mem, NULL);
  e2b__buf_init(&out, &mem, SIZE_MAX);
  e2b__buf_init(&text, &mem, SIZE_MAX);
  e2b__buf_init(&want, &mem, SIZE_MAX);
  e2b__hpack_encoder_init(&encoder);
  e2b__hpack_decoder_init(&decoder, &mem);
  for (i = 0; i < E2B__COUNT(fields); i++) hpack_collect(&want, e2b__str(fields[i].key), e2b__str(fields[i].value));
  dump = hpack_dump_new();
  for (round = 0; round < 6; round++) {
    static const int limits[6][2] = { { -1, -1 }, { -1, -1 }, { 0, -1 }, { 100, -1 }, { 50, 1 << 30 }, { -1, -1 } };
    for (i = 0; i < 2 && limits[round][i] >= 0; i++) {
      e2b__hpack_encoder_limit(&encoder, (uint32_t)limits[round][i]);
      if (hpack_dump_file()) fprintf(hpack_dump_file(), "limit %u %d\n", dump, limits[round][i]);
    }
    out.len = text.len = 0;
    e2b__hpack_begin(&encoder, &out);
    for (i = 0; i < E2B__COUNT(fields); i++) e2b__hpack_encode(&encoder, &out, e2b__str(fields[i].key), e2b__str(fields[i].value));
    CHECK_INT(out.err, E2B_OK);
    CHECK_INT(e2b__hpack_decode(&decoder, out.data, out.len, hpack_collect, &text), E2B_OK);
    CHECK(text.len == want.len && memcmp(text.data, want.data, want.len) == 0);
    hpack_dump_block(dump, out.data, out.len, text.data, text.len);
    CHECK_INT(decoder.table.count, encoder.table.count);
    CHECK_INT(decoder.table.limit, encoder.table.limit);
    if (round == 0) first = out.len;
    if (round == 0) CHECK_INT(encoder.table.count, 3); /* :authority, user-agent, content-type */
    if (round == 1) CHECK(out.len + 45 < first);
    if (round == 2) CHECK(encoder.table.count == 0 && out.data[0] == 0x20);
    if (round == 4) CHECK(out.data[0] == (0x20 | 31) && encoder.table.limit == E2B__HPACK_TABLE);
  }
  e2b__buf_free(&out);
  e2b__buf_free(&text);
  e2b__buf_free(&want);
  e2b__buf_free(&decoder.field);
  CHECK_INT(mem.now, 0);
}

/* ---- frames: a script of what the server sends, and what comes of it ---- */

typedef struct h2_case {
  test_heap heap;
  e2b__mem mem, h2_mem;
  e2b__h2 h2;
  e2b__hpack_encoder encoder; /* the server's */
  e2b__buf in;                /* what the server sends */
  e2b__buf log;               /* the events, a line each; body bytes of one stream in a row are joined */
  e2b__h2_stream *streams[8];
  bool live[8];
  int reset_in;               /* an event of this stream resets it */
  e2b_err answer;             /* what the events return */
  bool in_body;
} h2_case;

static void h2_log(h2_case *c, const char *format, ...) {
  char text[300];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  if (c->in_body) e2b__buf_byte(&c->log, '\n');
  c->in_body = false;
  e2b__buf_text(&c->log, text);
}

static int h2_number(const h2_case *c, const e2b__h2_stream *stream) {
  int i;
  for (i = 0; i < 8 && c->streams[i] != stream; i++) {}
  return i;
}

static e2b_err h2_on_head(e2b__h2_stream *stream, int status, const e2b__headers *headers) {
  h2_case *c = (h2_case *)stream->owner;
  e2b_str name, value;
  size_t cursor = 0;
  h2_log(c, "%d head %d", h2_number(c, stream), status);
  while (e2b__headers_next(headers, &cursor, &name, &value)) {
    e2b__buf_byte(&c->log, ' ');
    e2b__buf_str(&c->log, name);
    e2b__buf_byte(&c->log, '=');
    e2b__buf_str(&c->log, value);
  }
  e2b__buf_byte(&c->log, '\n');
  if (h2_number(c, stream) == c->reset_in) {
    c->live[c->reset_in] = false;
    e2b__h2_reset(stream, E2B__H2_CANCEL);
  }
  return c->answer;
}

static e2b_err h2_on_body(e2b__h2_stream *stream, const uint8_t *data, size_t len) {
  h2_case *c = (h2_case *)stream->owner;
  char head[16];
  snprintf(head, sizeof head, "%d body ", h2_number(c, stream));
  if (!c->in_body) e2b__buf_text(&c->log, head);
  c->in_body = true;
  e2b__buf_put(&c->log, data, len);
  e2b__h2_refill(stream);
  return c->answer;
}

static void h2_on_end(e2b__h2_stream *stream, const e2b__h2_end *end) {
  h2_case *c = (h2_case *)stream->owner;
  int i = h2_number(c, stream);
  h2_log(c, "%d end %s%s%s%s\n", i, e2b_err_name(end->err), end->detail ? ": " : "", end->detail ? end->detail : "",
         end->unprocessed ? " (unprocessed)" : "");
  if (i < 8) c->live[i] = false;
}

static const e2b__h2_events h2_case_events = { h2_on_head, h2_on_body, h2_on_end };

static void h2_open(h2_case *c, int i, const char *method, int64_t body_len) {
  e2b__headers headers;
  e2b_err err;
  e2b__headers_init(&headers, &c->mem, 1000);
  e2b__headers_set(&headers, "x-api-key", e2b__str("secret"));
  c->streams[i] = e2b__h2_open(&c->h2, method, true, e2b__str("h"), e2b__str("/"), &headers, body_len, c, &err);
  c->live[i] = c->streams[i] != NULL;
  e2b__headers_free(&headers);
}

static void h2_begin_at(h2_case *c, int streams, long fail_at) {
  int i;
  memset(c, 0, sizeof *c);
  heap_mem(&c->heap, &c->h2_mem);
  c->heap.fail_at = (size_t)fail_at;
  c->reset_in = -1;
  e2b__mem_init(&c->mem, NULL);
  e2b__buf_init(&c->in, &c->mem, SIZE_MAX);
  e2b__buf_init(&c->log, &c->mem, SIZE_MAX);
  e2b__hpack_encoder_init(&c->encoder);
  e2b__h2_init(&c->h2, &c->h2_mem, 1000, 100000, 8192, &h2_case_events);
  for (i = 0; i < streams; i++) h2_open(c, i, "GET", E2B__BODY_NONE);
  e2b__h2_put_frame(&c->in, E2B__H2_SETTINGS, 0, 0, NULL, 0);
}

static void h2_begin(h2_case *c, int streams) {
  h2_begin_at(c, streams, 0);
}

static void h2_finish(h2_case *c) {
  e2b__h2_free(&c->h2);
  HEAP_CHECK_EMPTY(&c->heap);
  e2b__buf_free(&c->in);
  e2b__buf_free(&c->log);
  CHECK_INT(c->mem.now, 0);
}

static void h2_in(h2_case *c, int type, uint32_t flags, uint32_t id, const char *payload, size_t len) {
  e2b__h2_put_frame(&c->in, (uint8_t)type, flags, id, payload, len);
}

/* A header block "name=value\n..." encoded as one fragment. */
static void h2_block(h2_case *c, e2b__buf *block, const char *fields) {
  e2b__buf_init(block, &c->mem, SIZE_MAX);
  while (*fields) {
    const char *equals = strchr(fields + 1, '='), *end = strchr(fields, '\n');
    e2b__hpack_encode(&c->encoder, block, e2b__str_n(fields, (size_t)(equals - fields)), e2b__str_n(equals + 1, (size_t)(end - equals - 1)));
    fields = end + 1;
  }
}

static void h2_headers(h2_case *c, uint32_t flags, uint32_t id, const char *fields) {
  e2b__buf block;
  h2_block(c, &block, fields);
  h2_in(c, E2B__H2_HEADERS, flags | E2B__H2_END_HEADERS, id, (const char *)block.data, block.len);
  e2b__buf_free(&block);
}

/* Feeds what the server sends: whole (0), in pieces of `step` bytes, or in two, cut at -step. Returns the connection's fate. */
static e2b_err h2_feed(h2_case *c, int step) {
  size_t at = 0, n;
  e2b_err err = E2B_OK;
  while (at < c->in.len && !err) {
    n = step > 0 ? (size_t)step : step < 0 && at == 0 ? (size_t)-step : c->in.len - at;
    n = E2B__MIN(n, c->in.len - at);
    err = e2b__h2_feed(&c->h2, c->in.data + at, n, 1);
    at += n;
  }
  c->in.len = 0;
  if (err) e2b__h2_lost(&c->h2, err, c->h2.detail);
  if (c->in_body) e2b__buf_byte(&c->log, '\n');
  c->in_body = false;
  return err;
}

static void h2_check_log(h2_case *c, const char *want, int line) {
  const char *text = e2b__buf_cstr(&c->log);
  if (!text || !check_str_at(text, want, line, "the log")) printf("  line %d\n", line);
}
#define H2_LOG(c, want) h2_check_log(c, want, __LINE__)

/* Frames we sent: looks for one of that type, stream and (unless UINT32_MAX) first word of payload. */
static bool h2_sent(const h2_case *c, int type, uint32_t id, uint32_t word) {
  const uint8_t *at = c->h2.out.data + 24, *end = c->h2.out.data + c->h2.out.len;
  while (at + 9 <= end) {
    uint32_t size = e2b__h2_get_u32(at) >> 8;
    if (at[3] == type && e2b__h2_get_u32(at + 5) == id && (word == UINT32_MAX || (size >= 4 && e2b__h2_get_u32(at + 9) == word) ||
        (type == E2B__H2_GOAWAY && e2b__h2_get_u32(at + 13) == word)))
      return true;
    at += 9 + size;
  }
  return false;
}

static void h2_good_conversation(h2_case *c) {
  e2b__buf block;
  h2_headers(c, 0, 3, ":status=103\nlink=x\n");
  h2_headers(c, 0, 1, ":status=200\ncontent-length=11\nx=1\n");
  h2_in(c, E2B__H2_DATA, 0, 1, "hello", 5);
  h2_in(c, E2B__H2_PING, 0, 0, "12345678", 8);
  h2_in(c, 77, 0xff, 9, "unknown", 7);
  h2_in(c, E2B__H2_DATA, E2B__H2_PADDED, 1, "\003 worldppp", 10);
  h2_in(c, E2B__H2_DATA, E2B__H2_PADDED, 1, "\000", 1);
  h2_in(c, E2B__H2_DATA, E2B__H2_END_STREAM, 1, NULL, 0);
  h2_block(c, &block, ":status=404\nserver=y\nlong=0123456789012345678901234567890123456789\n");
  h2_in(c, E2B__H2_HEADERS, E2B__H2_PADDED | E2B__H2_HAS_PRIORITY, 3, "\002\0\0\0\0\020\210pp", 9);
  c->in.len -= 9 + 9;
  {
    uint8_t first[16];
    memset(first, 0, sizeof first);
    first[0] = 2; /* padding */
    first[6] = block.data[0];
    h2_in(c, E2B__H2_HEADERS, E2B__H2_PADDED | E2B__H2_HAS_PRIORITY, 3, (const char *)first, 9);
  }
  h2_in(c, E2B__H2_CONTINUATION, 0, 3, (const char *)block.data + 1, 3);
  h2_in(c, E2B__H2_CONTINUATION, 0, 3, NULL, 0);
  h2_in(c, E2B__H2_CONTINUATION, E2B__H2_END_HEADERS, 3, (const char *)block.data + 4, block.len - 4);
  e2b__buf_free(&block);
  h2_in(c, E2B__H2_PRIORITY, 0, 3, "\0\0\0\0\1", 5);
  h2_in(c, E2B__H2_DATA, 0, 3, "no", 2);
  h2_headers(c, E2B__H2_END_STREAM, 3, "grpc-status=0\n");
  h2_headers(c, E2B__H2_END_STREAM, 5, ":status=204\n");
}

/* Any split gives the same events. */
static void test_http2_splits(void) {
  h2_case c;
  int step, len;
  h2_begin(&c, 3);
  h2_good_conversation(&c);
  len = (int)c.in.len;
  h2_finish(&c);
  for (step = -len + 1; step < 40; step++) {
    h2_begin(&c, 3);
    h2_good_conversation(&c);
    CHECK_INT(h2_feed(&c, step), E2B_OK);
    H2_LOG(&c, "0 head 200 content-length=11 x=1\n0 body hello world\n0 end E2B_OK\n"
               "1 head 404 server=y long=0123456789012345678901234567890123456789\n1 body no\n1 end E2B_OK\n2 head 204\n2 end E2B_OK\n");
    CHECK(h2_sent(&c, E2B__H2_SETTINGS, 0, UINT32_MAX) && h2_sent(&c, E2B__H2_PING, 0, 0x31323334));
    CHECK_INT(c.h2.stream_count, 0);
    h2_finish(&c);
  }
}

/* Streams that are spoiled; the connection and stream 5 go on. */
static void test_http2_spoiled_streams(void) {
  static const struct { const char *head; uint32_t flags; const char *data; uint32_t data_flags; const char *log; } cases[] = {
    { ":status=200\nContent-Type=x\n", 0, "", 0, "0 end E2B_ERR_PROTOCOL: malformed header field\n" },
    { ":status=200\nconnection=close\n", 0, "", 0, "0 end E2B_ERR_PROTOCOL: malformed header field\n" },
    { ":status=200\na= x\n", 0, "", 0, "0 end E2B_ERR_PROTOCOL: malformed header field\n" },
    { "a=b\n:status=200\n", 0, "", 0, "0 end E2B_ERR_PROTOCOL: malformed header field\n" },
    { ":status=200\n:status=200\n", 0, "", 0, "0 end E2B_ERR_PROTOCOL: malformed header field\n" },
    { ":status=200\n:path=/\n", 0, "", 0, "0 end E2B_ERR_PROTOCOL: malformed header field\n" },
    { "a=b\n", 0, "", 0, "0 end E2B_ERR_PROTOCOL: the response head has no valid status\n" },
    { ":status=20\n", 0, "", 0, "0 end E2B_ERR_PROTOCOL: malformed header field\n" },
    { ":status=101\n", 0, "", 0, "0 end E2B_ERR_PROTOCOL: the response head has no valid status\n" },
    { ":status=100\n", E2B__H2_END_STREAM, "", 0, "0 end E2B_ERR_PROTOCOL: the answer ended with an interim response\n" },
    { ":status=200\ncontent-length=1\ncontent-length=2\n", 0, "", 0, "0 end E2B_ERR_PROTOCOL: malformed header field\n" },
    { ":status=200\ncontent-length=x\n", 0, "", 0, "0 end E2B_ERR_PROTOCOL: malformed header field\n" },
    { ":status=200\ncontent-length=3\n", 0, "abcd", E2B__H2_END_STREAM,
      "0 head 200 content-length=3\n0 body abc\n0 end E2B_ERR_PROTOCOL: the body is longer than its content-length\n" },
    { ":status=200\ncontent-length=5\n", 0, "abcd", E2B__H2_END_STREAM,
      "0 head 200 content-length=5\n0 body abcd\n0 end E2B_ERR_TRUNCATED: the body is not as long as its content-length\n" },
    { "", 0, "abcd", 0, "0 end E2B_ERR_PROTOCOL: data before the response head\n" }
  };
  size_t i;
  int step;
  for (i = 0; i < E2B__COUNT(cases); i++) {
    for (step = 0; step < 3; step++) {
      char want[400];
      h2_case c;
      h2_begin(&c, 2);
      if (cases[i].head[0]) h2_headers(&c, cases[i].flags, 1, cases[i].head);
      if (cases[i].data[0]) h2_in(&c, E2B__H2_DATA, cases[i].data_flags, 1, cases[i].data, strlen(cases[i].data));
      h2_in(&c, E2B__H2_DATA, 0, 1, "late", 4); /* what was on its way when we reset it */
      h2_headers(&c, E2B__H2_END_STREAM, 1, "late=1\n");
      h2_headers(&c, E2B__H2_END_STREAM, 3, ":status=200\nlate=1\n");
      CHECK_INT(h2_feed(&c, step), E2B_OK);
      snprintf(want, sizeof want, "%s1 head 200 late=1\n1 end E2B_OK\n", cases[i].log);
      H2_LOG(&c, want);
      CHECK(h2_sent(&c, E2B__H2_RST_STREAM, 1, E2B__H2_PROTOCOL_ERROR));
      h2_finish(&c);
    }
  }
}

/* What ends the connection: the frame, the code of our GOAWAY. */
static void test_http2_broken_connections(void) {
  static const struct { int type; uint32_t flags, id; const char *payload; size_t len; uint32_t code; } cases[] = {
    { E2B__H2_SETTINGS, 0, 0, "12345", 5, E2B__H2_FRAME_SIZE_ERROR },
    { E2B__H2_SETTINGS, E2B__H2_ACK, 0, "123456", 6, E2B__H2_FRAME_SIZE_ERROR },
    { E2B__H2_SETTINGS, 0, 1, NULL, 0, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_SETTINGS, 0, 0, "\0\2\0\0\0\1", 6, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_SETTINGS, 0, 0, "\0\5\0\0\077\377", 6, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_SETTINGS, 0, 0, "\0\5\1\0\0\0", 6, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_SETTINGS, 0, 0, "\0\4\200\0\0\0", 6, E2B__H2_FLOW_CONTROL_ERROR },
    { E2B__H2_PING, 0, 0, "1234567", 7, E2B__H2_FRAME_SIZE_ERROR },
    { E2B__H2_PING, 0, 1, "12345678", 8, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_GOAWAY, 0, 0, "1234567", 7, E2B__H2_FRAME_SIZE_ERROR },
    { E2B__H2_GOAWAY, 0, 1, "12345678", 8, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_WINDOW_UPDATE, 0, 0, "\0\0\0", 3, E2B__H2_FRAME_SIZE_ERROR },
    { E2B__H2_WINDOW_UPDATE, 0, 0, "\0\0\0\0", 4, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_WINDOW_UPDATE, 0, 0, "\177\377\377\377", 4, E2B__H2_FLOW_CONTROL_ERROR },
    { E2B__H2_WINDOW_UPDATE, 0, 9, "\0\0\0\1", 4, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_RST_STREAM, 0, 1, "\0\0\0", 3, E2B__H2_FRAME_SIZE_ERROR },
    { E2B__H2_RST_STREAM, 0, 0, "\0\0\0\0", 4, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_RST_STREAM, 0, 9, "\0\0\0\0", 4, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_RST_STREAM, 0, 2, "\0\0\0\0", 4, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_DATA, 0, 0, "x", 1, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_DATA, 0, 9, "x", 1, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_DATA, 0, 2, "x", 1, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_DATA, E2B__H2_PADDED, 1, NULL, 0, E2B__H2_FRAME_SIZE_ERROR },
    { E2B__H2_HEADERS, E2B__H2_END_HEADERS, 0, "\210", 1, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_HEADERS, E2B__H2_END_HEADERS, 9, "\210", 1, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_HEADERS, E2B__H2_END_HEADERS, 2, "\210", 1, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_HEADERS, E2B__H2_END_HEADERS | E2B__H2_PADDED, 1, "\1", 1, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_HEADERS, E2B__H2_END_HEADERS | E2B__H2_PADDED, 1, NULL, 0, E2B__H2_FRAME_SIZE_ERROR },
    { E2B__H2_HEADERS, E2B__H2_END_HEADERS | E2B__H2_HAS_PRIORITY, 1, "1234", 4, E2B__H2_FRAME_SIZE_ERROR },
    { E2B__H2_HEADERS, E2B__H2_END_HEADERS, 1, "\200", 1, E2B__H2_COMPRESSION_ERROR },
    { E2B__H2_CONTINUATION, E2B__H2_END_HEADERS, 1, "\210", 1, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_PUSH_PROMISE, E2B__H2_END_HEADERS, 1, "\0\0\0\2\210", 5, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_PRIORITY, 0, 0, "12345", 5, E2B__H2_PROTOCOL_ERROR },
    { E2B__H2_PRIORITY, 0, 1, "1234", 4, E2B__H2_FRAME_SIZE_ERROR }
  };
  size_t i;
  int step;
  for (i = 0; i < E2B__COUNT(cases); i++) {
    for (step = 0; step < 2; step++) {
      h2_case c;
      h2_begin(&c, 1);
      h2_in(&c, cases[i].type, cases[i].flags, cases[i].id, cases[i].payload, cases[i].len);
      if (!CHECK(h2_feed(&c, step) < 0) || !CHECK(h2_sent(&c, E2B__H2_GOAWAY, 0, cases[i].code))) printf("  case %d\n", (int)i);
      CHECK(!c.live[0] && c.h2.draining);
      h2_finish(&c);
    }
  }
}

/* Rules about what comes when. */
static void test_http2_order(void) {
  h2_case c;
  h2_begin(&c, 1); /* not HTTP/2 at all */
  c.in.len = 0;
  e2b__buf_text(&c.in, "HTTP/1.1 400 Bad Request\r\n\r\n");
  CHECK_INT(h2_feed(&c, 0), E2B_ERR_PROTOCOL);
  H2_LOG(&c, "0 end E2B_ERR_PROTOCOL: the server answered with HTTP/1: it does not speak HTTP/2 on this port\n");
  h2_finish(&c);

  h2_begin(&c, 1); /* SETTINGS must come first */
  c.in.len = 0;
  h2_headers(&c, E2B__H2_END_STREAM, 1, ":status=200\n");
  CHECK_INT(h2_feed(&c, 0), E2B_ERR_PROTOCOL);
  h2_finish(&c);

  h2_begin(&c, 2); /* nothing may come between the pieces of a head */
  h2_in(&c, E2B__H2_HEADERS, 0, 1, "\210", 1);
  h2_in(&c, E2B__H2_PING, 0, 0, "12345678", 8);
  CHECK_INT(h2_feed(&c, 0), E2B_ERR_PROTOCOL);
  h2_finish(&c);

  h2_begin(&c, 2); /* a head in between, for another stream */
  h2_in(&c, E2B__H2_HEADERS, 0, 1, "\210", 1);
  h2_in(&c, E2B__H2_CONTINUATION, E2B__H2_END_HEADERS, 3, "", 0);
  CHECK_INT(h2_feed(&c, 0), E2B_ERR_PROTOCOL);
  h2_finish(&c);

  h2_begin(&c, 1); /* data after the end */
  h2_headers(&c, E2B__H2_END_STREAM, 1, ":status=200\n");
  h2_in(&c, E2B__H2_DATA, 0, 1, "x", 1);
  CHECK_INT(h2_feed(&c, 0), E2B_ERR_PROTOCOL);
  CHECK(h2_sent(&c, E2B__H2_GOAWAY, 0, E2B__H2_STREAM_CLOSED));
  h2_finish(&c);

  h2_begin(&c, 1); /* a frame of 16385 octets: refused by its head */
  h2_in(&c, E2B__H2_DATA, 0, 1, NULL, 0);
  c.in.data[c.in.len - 8] = 0x40;
  c.in.data[c.in.len - 7] = 1;
  CHECK_INT(h2_feed(&c, 0), E2B_ERR_PROTOCOL);
  CHECK(h2_sent(&c, E2B__H2_GOAWAY, 0, E2B__H2_FRAME_SIZE_ERROR));
  h2_finish(&c);

  h2_begin(&c, 1); /* trailers that do not end the stream */
  h2_headers(&c, 0, 1, ":status=200\n");
  h2_headers(&c, 0, 1, "a=b\n");
  CHECK_INT(h2_feed(&c, 0), E2B_OK);
  H2_LOG(&c, "0 head 200\n0 end E2B_ERR_PROTOCOL: malformed trailers\n");
  h2_finish(&c);

  h2_begin(&c, 0); /* HEAD and 304: a length without a body */
  h2_open(&c, 0, "HEAD", E2B__BODY_NONE);
  h2_open(&c, 1, "GET", E2B__BODY_NONE);
  h2_headers(&c, E2B__H2_END_STREAM, 1, ":status=200\ncontent-length=9\n");
  h2_headers(&c, E2B__H2_END_STREAM, 3, ":status=304\ncontent-length=9\n");
  CHECK_INT(h2_feed(&c, 0), E2B_OK);
  H2_LOG(&c, "0 head 200 content-length=9\n0 end E2B_OK\n1 head 304 content-length=9\n1 end E2B_OK\n");
  h2_finish(&c);
}

/* GOAWAY, resets, a cut. */
static void test_http2_ends(void) {
  h2_case c;
  h2_begin(&c, 4); /* graceful: first all ids, then the real one; 1 is answered, 3 was begun, 5 and 7 were not looked at */
  h2_in(&c, E2B__H2_GOAWAY, 0, 0, "\177\377\377\377\0\0\0\0bye", 11);
  h2_in(&c, E2B__H2_GOAWAY, 0, 0, "\0\0\0\3\0\0\0\0", 8);
  h2_headers(&c, E2B__H2_END_STREAM, 1, ":status=200\n");
  CHECK_INT(h2_feed(&c, 1), E2B_OK);
  CHECK(c.h2.draining && c.live[1]);
  e2b__h2_lost(&c.h2, E2B_ERR_CLOSED, "closed");
  CHECK(strstr(e2b__buf_cstr(&c.log), "3 end E2B_ERR_CLOSED: the server closed the connection (GOAWAY) and did not look at the request (unprocessed)\n"));
  CHECK(strstr(e2b__buf_cstr(&c.log), "2 end E2B_ERR_CLOSED: the server closed the connection (GOAWAY) and did not look at the request (unprocessed)\n"));
  CHECK(strstr(e2b__buf_cstr(&c.log), "0 head 200\n0 end E2B_OK\n1 end E2B_ERR_CLOSED: closed\n"));
  h2_finish(&c);

  h2_begin(&c, 1); /* a GOAWAY cannot be taken back */
  h2_in(&c, E2B__H2_GOAWAY, 0, 0, "\0\0\0\1\0\0\0\0", 8);
  h2_in(&c, E2B__H2_GOAWAY, 0, 0, "\0\0\0\5\0\0\0\0", 8);
  CHECK_INT(h2_feed(&c, 0), E2B_ERR_PROTOCOL);
  h2_finish(&c);

  h2_begin(&c, 4);
  h2_headers(&c, 0, 3, ":status=200\n");
  h2_headers(&c, E2B__H2_END_STREAM, 5, ":status=200\n");
  h2_in(&c, E2B__H2_RST_STREAM, 0, 1, "\0\0\0\7", 4);
  h2_in(&c, E2B__H2_RST_STREAM, 0, 3, "\0\0\0\0", 4);
  h2_in(&c, E2B__H2_RST_STREAM, 0, 5, "\0\0\0\0", 4); /* after a complete answer: nothing */
  h2_in(&c, E2B__H2_RST_STREAM, 0, 7, "\0\0\0\2", 4);
  CHECK_INT(h2_feed(&c, 0), E2B_OK);
  H2_LOG(&c, "1 head 200\n2 head 200\n2 end E2B_OK\n0 end E2B_ERR_UNAVAILABLE: the server refused the request (unprocessed)\n"
             "1 end E2B_ERR_TRUNCATED: the server reset the stream\n3 end E2B_ERR_CLOSED: the server reset the stream\n");
  h2_finish(&c);

  h2_begin(&c, 2); /* cut: what was answered in part is truncated */
  h2_headers(&c, 0, 1, ":status=200\n");
  CHECK_INT(h2_feed(&c, 0), E2B_OK);
  e2b__h2_lost(&c.h2, E2B_ERR_CLOSED, "closed");
  H2_LOG(&c, "0 head 200\n1 end E2B_ERR_CLOSED: closed\n0 end E2B_ERR_TRUNCATED: the connection was cut before the end of the answer\n");
  h2_finish(&c);

  h2_begin(&c, 0); /* answered early: our upload ends */
  h2_open(&c, 0, "POST", 100);
  h2_headers(&c, E2B__H2_END_STREAM, 1, ":status=413\n");
  CHECK_INT(h2_feed(&c, 0), E2B_OK);
  H2_LOG(&c, "0 head 413\n0 end E2B_OK\n");
  CHECK(h2_sent(&c, E2B__H2_RST_STREAM, 1, E2B__H2_CANCEL));
  CHECK_INT(c.h2.senders, 0);
  h2_finish(&c);

  h2_begin(&c, 2); /* reset by the consumer, within an event */
  c.reset_in = 0;
  h2_headers(&c, 0, 1, ":status=200\n");
  h2_in(&c, E2B__H2_DATA, E2B__H2_END_STREAM, 1, "x", 1);
  h2_headers(&c, E2B__H2_END_STREAM, 3, ":status=200\n");
  CHECK_INT(h2_feed(&c, 0), E2B_OK);
  H2_LOG(&c, "0 head 200\n1 head 200\n1 end E2B_OK\n");
  CHECK(h2_sent(&c, E2B__H2_RST_STREAM, 1, E2B__H2_CANCEL));
  h2_finish(&c);

  h2_begin(&c, 1); /* refused by the consumer */
  c.answer = E2B_ERR_CANCELED;
  h2_headers(&c, 0, 1, ":status=200\n");
  CHECK_INT(h2_feed(&c, 0), E2B_OK);
  H2_LOG(&c, "0 head 200\n0 end E2B_ERR_CANCELED: stopped by the receiver of the head\n");
  h2_finish(&c);
}

/* Windows in both directions. */
static void test_http2_windows(void) {
  char bytes[2000];
  uint8_t head[9];
  h2_case c;
  int i;
  memset(bytes, 'x', sizeof bytes);
  h2_begin(&c, 1); /* within the window of 1000, then refilled as it is taken: the log tells that all came */
  h2_headers(&c, 0, 1, ":status=200\n");
  for (i = 0; i < 20; i++) h2_in(&c, E2B__H2_DATA, i == 19 ? E2B__H2_END_STREAM : 0, 1, bytes, 500);
  CHECK_INT(h2_feed(&c, 7), E2B_OK);
  CHECK_INT(c.log.len, 11 + 7 + 10000 + 1 + 13);
  CHECK(h2_sent(&c, E2B__H2_WINDOW_UPDATE, 1, 500));
  h2_finish(&c);

  h2_begin(&c, 1); /* more than it allows at once; padding counts */
  h2_headers(&c, 0, 1, ":status=200\n");
  h2_in(&c, E2B__H2_DATA, E2B__H2_PADDED, 1, bytes, 1001);
  CHECK_INT(h2_feed(&c, 0), E2B_OK);
  H2_LOG(&c, "0 head 200\n0 end E2B_ERR_PROTOCOL: more data than the stream's window allows\n");
  CHECK(h2_sent(&c, E2B__H2_RST_STREAM, 1, E2B__H2_FLOW_CONTROL_ERROR));
  h2_finish(&c);

  h2_begin(&c, 0); /* sending: the peer's settings move open windows, also below zero */
  h2_open(&c, 0, "POST", 100000);
  CHECK_INT(e2b__h2_room(c.streams[0]), 16384);
  e2b__h2_data_head(c.streams[0], head, 16384, false);
  CHECK_INT(c.streams[0]->send_window, 65535 - 16384);
  h2_in(&c, E2B__H2_SETTINGS, 0, 0, "\0\4\0\0\0\012\0\3\0\0\0\0", 12);
  CHECK_INT(h2_feed(&c, 0), E2B_OK);
  CHECK_INT(c.streams[0]->send_window, 10 - 16384);
  CHECK_INT(e2b__h2_room(c.streams[0]), 0);
  CHECK_INT(c.h2.max_streams, 0);
  h2_in(&c, E2B__H2_WINDOW_UPDATE, 0, 1, "\0\0\100\0", 4);
  CHECK_INT(h2_feed(&c, 0), E2B_OK);
  CHECK_INT(e2b__h2_room(c.streams[0]), 10);
  h2_in(&c, E2B__H2_WINDOW_UPDATE, 0, 1, "\177\377\377\377", 4);
  CHECK_INT(h2_feed(&c, 0), E2B_OK);
  H2_LOG(&c, "0 end E2B_ERR_PROTOCOL: a window grew beyond its limit\n");
  h2_finish(&c);

  h2_begin(&c, 0); /* a WINDOW_UPDATE of nothing is the stream's fault only */
  h2_open(&c, 0, "POST", 100000);
  h2_in(&c, E2B__H2_WINDOW_UPDATE, 0, 1, "\0\0\0\0", 4);
  CHECK_INT(h2_feed(&c, 0), E2B_OK);
  H2_LOG(&c, "0 end E2B_ERR_PROTOCOL: a WINDOW_UPDATE of nothing\n");
  h2_finish(&c);

  h2_begin(&c, 1); /* most of a window within a round trip: it grows */
  h2_headers(&c, 0, 1, ":status=200\n");
  CHECK_INT(h2_feed(&c, 0), E2B_OK);
  c.h2.sample_at = 0;
  h2_in(&c, E2B__H2_DATA, 0, 1, bytes, 400);
  CHECK_INT(e2b__h2_feed(&c.h2, c.in.data, c.in.len, 1000), E2B_OK);
  CHECK(c.h2.ping_waits);
  c.in.len = 0;
  h2_in(&c, E2B__H2_DATA, 0, 1, bytes, 600);
  h2_in(&c, E2B__H2_PING, E2B__H2_ACK, 0, "e2b.h\0\0\0", 8);
  CHECK_INT(e2b__h2_feed(&c.h2, c.in.data, c.in.len, 1010), E2B_OK);
  CHECK(!c.h2.ping_waits && c.h2.window == 2400);
  c.in.len = 0;
  h2_open(&c, 1, "GET", E2B__BODY_NONE); /* a new stream begins with what SETTINGS said: the server knows of no more yet */
  CHECK_INT(c.streams[1]->receive_window, 1000);
  CHECK_INT(c.h2.initial_window, 1000);
  h2_finish(&c);
}

/* Peers that want to keep us busy, or to fill our memory. */
static void test_http2_floods(void) {
  static char big[16384];
  h2_case c;
  int i, kind;
  memset(big, 'a', sizeof big);
  for (kind = 0; kind < 12; kind++) {
    h2_begin(&c, 1);
    if (kind >= 6 && kind <= 8) h2_headers(&c, 0, 1, ":status=200\n");
    if (kind == 0 || kind == 1) h2_in(&c, E2B__H2_HEADERS, 0, 1, big, kind ? 16384 : 0);
    for (i = 0; i < 1200; i++) {
      switch (kind) {
        case 0: h2_in(&c, E2B__H2_CONTINUATION, 0, 1, NULL, 0); break;
        case 1: h2_in(&c, E2B__H2_CONTINUATION, 0, 1, big, 16384); break;
        case 2: h2_in(&c, E2B__H2_PING, 0, 0, "12345678", 8); break;
        case 3: h2_in(&c, E2B__H2_SETTINGS, 0, 0, "\0\3\0\0\0\1", 6); break;
        case 4: h2_in(&c, E2B__H2_SETTINGS, 0, 0, big, 33 * 6); break;
        case 5: h2_in(&c, E2B__H2_WINDOW_UPDATE, 0, 0, "\0\0\0\1", 4); break;
        case 6: h2_in(&c, E2B__H2_DATA, 0, 1, NULL, 0); break;
        case 7: h2_in(&c, E2B__H2_DATA, E2B__H2_PADDED, 1, "\1x", 2); break; /* stays within the window: only padding */
        case 8: h2_in(&c, E2B__H2_PRIORITY, 0, 1, "12345", 5); break;
        case 9: h2_in(&c, 99, 0, 0, "x", 1); break;
        case 10: h2_headers(&c, 0, 1, ":status=100\n"); break;
        default: h2_in(&c, E2B__H2_PING, E2B__H2_ACK, 0, "12345678", 8); break;
      }
    }
    if (kind == 7) { /* the window is used up by padding that nobody can take */
      CHECK_INT(h2_feed(&c, 0), E2B_OK);
      CHECK(!c.live[0] && h2_sent(&c, E2B__H2_RST_STREAM, 1, E2B__H2_FLOW_CONTROL_ERROR));
    } else if (kind == 10) {
      CHECK_INT(h2_feed(&c, 0), E2B_OK);
      H2_LOG(&c, "0 end E2B_ERR_LIMIT: too many interim responses\n");
    } else {
      if (!CHECK_INT(h2_feed(&c, 0), E2B_ERR_LIMIT) || !CHECK(h2_sent(&c, E2B__H2_GOAWAY, 0, E2B__H2_ENHANCE_YOUR_CALM))) printf("  kind %d\n", kind);
    }
    CHECK(c.h2_mem.peak < 4u << 20 || kind == 1);
    h2_finish(&c);
  }

  h2_begin(&c, 0); /* stream after stream spoiled */
  for (i = 0; i < 8; i++) h2_open(&c, i, "GET", E2B__BODY_NONE);
  for (i = 0; i < 8; i++) h2_headers(&c, 0, (uint32_t)i * 2 + 1, "a=b\n");
  CHECK_INT(h2_feed(&c, 0), E2B_OK);
  for (i = 0; i < 3; i++) h2_open(&c, i, "GET", E2B__BODY_NONE);
  for (i = 0; i < 3; i++) h2_headers(&c, 0, (uint32_t)i * 2 + 17, "a=b\n");
  CHECK_INT(h2_feed(&c, 0), E2B_ERR_LIMIT);
  h2_finish(&c);

  h2_begin(&c, 2); /* one octet names a field of 4 KB: beyond the limit the state stays right, for the next stream */
  {
    e2b__buf block;
    char value[3001];
    memset(value, 'v', sizeof value);
    value[3000] = 0;
    e2b__buf_init(&block, &c.mem, SIZE_MAX);
    e2b__hpack_encode(&c.encoder, &block, e2b__str(":status"), e2b__str("200"));
    e2b__hpack_encode(&c.encoder, &block, e2b__str("user-agent"), e2b__str(value));
    for (i = 0; i < 5000; i++) e2b__buf_byte(&block, 0x80 | 62);
    h2_in(&c, E2B__H2_HEADERS, E2B__H2_END_HEADERS, 1, (const char *)block.data, block.len);
    block.len = 0;
    e2b__hpack_encode(&c.encoder, &block, e2b__str(":status"), e2b__str("200"));
    e2b__hpack_encode(&c.encoder, &block, e2b__str("user-agent"), e2b__str(value));
    CHECK_INT(block.len, 2);
    h2_in(&c, E2B__H2_HEADERS, E2B__H2_END_HEADERS | E2B__H2_END_STREAM, 3, (const char *)block.data, block.len);
    e2b__buf_free(&block);
  }
  CHECK_INT(h2_feed(&c, 0), E2B_OK);
  CHECK(strncmp(e2b__buf_cstr(&c.log), "0 end E2B_ERR_LIMIT: the response head is too long\n1 head 200 user-agent=vvv", 75) == 0);
  CHECK(c.h2_mem.peak < 100000);
  h2_finish(&c);
}

/* Every allocation failing in turn: an end for each stream, nothing lost. */
static void test_http2_no_memory(void) {
  long fail;
  bool met = true;
  for (fail = 1; met && fail < 200; fail++) {
    h2_case c;
    e2b_err err;
    bool opened;
    h2_begin_at(&c, 3, fail);
    opened = c.live[0] && c.live[1] && c.live[2];
    h2_good_conversation(&c);
    err = c.h2.err ? c.h2.err : h2_feed(&c, 5);
    met = c.heap.calls >= (size_t)fail;
    CHECK(!opened || err == E2B_OK || (met && err == E2B_ERR_NO_MEMORY));
    e2b__h2_lost(&c.h2, E2B_ERR_NO_MEMORY, "no memory");
    CHECK(!c.live[0] && !c.live[1] && !c.live[2]);
    h2_finish(&c);
  }
  CHECK(fail > 8 && fail < 200);
}
#endif /* E2B_NO_HTTP2 */

/* ================================================================================================================== */
/* >>>> network */
/* ================================================================================================================== */

#include <mbedtls/pem.h>
#include <mbedtls/pk.h>
#include <mbedtls/ssl_ticket.h>
#include <mbedtls/x509_crt.h>
#if !E2B__MBEDTLS4
  #include <mbedtls/ecp.h>
#endif

static char net_logged[512];

static void net_log(void *user, e2b_log_level level, const char *message) {
  E2B__UNUSED(user);
  E2B__UNUSED(level);
  (void)snprintf(net_logged, sizeof net_logged, "%s", message);
}

/* What a client has for its links. */
typedef struct net_client {
  test_heap heap;
  e2b__mem mem;
  e2b_logger logger;
  e2b__net net;
} net_client;

static void net_client_init(net_client *c, const e2b_transport *transport) {
  int sys_code;
  memset(c, 0, sizeof *c);
  heap_mem(&c->heap, &c->mem);
  c->logger.func = net_log;
  c->net.mem = &c->mem;
  c->net.logger = &c->logger;
  c->net.transport = transport ? transport : e2b__net_transport();
  c->net.alpn[0] = "http/1.1";
  c->net.waker = e2b__waker_new(&sys_code);
  CHECK(c->net.waker != NULL);
}

static void net_client_free(net_client *c) {
  e2b__net_free(&c->net);
  e2b__waker_release(c->net.waker);
  CHECK_INT(c->mem.now, 0);
  HEAP_CHECK_EMPTY(&c->heap);
}

static size_t net_polls; /* how often the tests waited */

static void net_wait(net_client *c, e2b__link *l, bool want_read, bool want_write, int timeout_ms) {
  e2b_pollfd fds[1 + E2B__LINK_FDS];
  size_t count = 1 + e2b__link_fds(l, fds + 1, E2B__LINK_FDS, want_read, want_write);
  uint64_t now = now_ms(), deadline = e2b__link_deadline(l);
  fds[0].fd = e2b__waker_fd(c->net.waker);
  fds[0].events = E2B_FD_READ;
  if (e2b__link_buffered(l)) timeout_ms = 0;
  if (deadline < now + (uint64_t)timeout_ms) timeout_ms = deadline > now ? (int)(deadline - now) : 0;
  net_polls++;
  if (e2b__net_poll(&c->net, fds, count, timeout_ms) < 0) CHECK(c->heap.fail_at != 0);
  (void)e2b__waker_drain(c->net.waker);
}

/* Steps an opening link to its end. */
static e2b_err net_drive(net_client *c, e2b__link *l, int timeout_ms, e2b_error *err) {
  uint64_t end = now_ms() + (uint64_t)timeout_ms;
  for (;;) {
    e2b_err rc = e2b__link_step(l, now_ms(), err);
    if (rc != E2B_PENDING) return rc;
    if (now_ms() >= end) return E2B_ERR_TIMEOUT;
    net_wait(c, l, true, false, 20);
  }
}

static e2b_err net_connect(net_client *c, e2b__link *l, const char *host, uint16_t port, bool tls, e2b_error *err) {
  e2b_err rc;
  memset(err, 0, sizeof *err);
  e2b__link_init(l, &c->net);
  rc = e2b__link_open(l, host, port, tls, now_ms(), err);
  return rc == E2B_OK ? net_drive(c, l, 10000, err) : rc;
}

static uint8_t net_pattern(size_t i) {
  return (uint8_t)((i * 2654435761u) >> 11);
}

/* Sends `total` bytes to an echo server, offering ever different lengths, and checks what comes back. */
static void net_echo(net_client *c, e2b__link *l, size_t total, size_t chunk) {
  static uint8_t out[65536], in[65536];
  size_t sent = 0, got = 0, i, filled = 0;
  uint64_t end = now_ms() + 60000;
  e2b_error err;
  while (got < total && now_ms() < end) {
    bool wait_read = false, wait_write = false;
    while (sent < total) {
      /* After E2B_IO_AGAIN the same bytes come again, with more behind them. */
      size_t len = E2B__MIN(total - sent, E2B__MIN(sizeof out, filled + chunk));
      int n;
      for (i = filled; i < len; i++) out[i] = net_pattern(sent + i);
      filled = len;
      n = e2b__link_write(l, out, len, &err);
      if (n == E2B_IO_AGAIN) {
        wait_write = true;
        break;
      }
      CHECK(n > 0);
      if (n <= 0) return;
      sent += (size_t)n;
      filled = 0;
    }
    for (;;) {
      int n = e2b__link_read(l, in, E2B__MIN(sizeof in, chunk), &err);
      if (n == E2B_IO_AGAIN) {
        wait_read = true;
        break;
      }
      CHECK(n > 0);
      if (n <= 0) return;
      for (i = 0; i < (size_t)n && in[i] == net_pattern(got + i); i++) continue;
      CHECK_INT(i, n);
      got += (size_t)n;
      if (got == total) break;
    }
    if (got < total && wait_read) net_wait(c, l, true, wait_write, 100);
  }
  CHECK_INT(got, total);
}

/* Certificates. */

typedef struct net_pki {
#if !E2B__MBEDTLS4
  mbedtls_entropy_context entropy;
  mbedtls_ctr_drbg_context rng;
#endif
  mbedtls_pk_context ca_key, key; /* of the CA, of all servers */
  char ca_pem[2048];
} net_pki;

static net_pki *net_the_pki;

typedef struct net_names {
  const char *subject; /* "CN=..." */
  const char *dns;     /* subject alternative name, or NULL */
  const uint8_t *ip;   /* the same as an address of 4 or 16 bytes */
  size_t ip_len;
  const char *not_before, *not_after; /* NULL = valid now */
  bool self_signed;
} net_names;

static void net_key_make(mbedtls_pk_context *key) {
  mbedtls_pk_init(key);
#if E2B__MBEDTLS4
  {
    psa_key_attributes_t attributes = PSA_KEY_ATTRIBUTES_INIT;
    psa_key_id_t id = 0;
    psa_set_key_type(&attributes, PSA_KEY_TYPE_ECC_KEY_PAIR(PSA_ECC_FAMILY_SECP_R1));
    psa_set_key_bits(&attributes, 256);
    psa_set_key_algorithm(&attributes, PSA_ALG_ECDSA(PSA_ALG_ANY_HASH));
    psa_set_key_usage_flags(&attributes, PSA_KEY_USAGE_SIGN_HASH | PSA_KEY_USAGE_COPY | PSA_KEY_USAGE_EXPORT);
    CHECK_INT(psa_generate_key(&attributes, &id), PSA_SUCCESS);
    CHECK_INT(mbedtls_pk_copy_from_psa(id, key), 0);
    CHECK_INT(psa_destroy_key(id), PSA_SUCCESS);
  }
#else
  CHECK_INT(mbedtls_pk_setup(key, mbedtls_pk_info_from_type(MBEDTLS_PK_ECKEY)), 0);
  CHECK_INT(
      mbedtls_ecp_gen_key(MBEDTLS_ECP_DP_SECP256R1, mbedtls_pk_ec(*key), mbedtls_ctr_drbg_random, &net_the_pki->rng),
      0);
#endif
}

static size_t net_san(const net_names *names, uint8_t out[64]) {
  size_t len = names->dns ? strlen(names->dns) : names->ip_len;
  out[0] = 0x30;
  out[1] = (uint8_t)(len + 2);
  out[2] = names->dns ? 0x82 : 0x87;
  out[3] = (uint8_t)len;
  memcpy(out + 4, names->dns ? (const uint8_t *)names->dns : names->ip, len);
  return len + 4;
}

/* names == NULL: the CA itself. Writes DER at the end of buf and returns its length. */
static size_t net_cert_make(const net_names *names, uint8_t *buf, size_t cap) {
  static const net_names ca = { "CN=Test CA", NULL, NULL, 0, NULL, NULL, false };
  static const uint8_t serial_bytes[2] = { 1, 7 };
  mbedtls_x509write_cert w;
  const net_names *n = names ? names : &ca;
  uint8_t san[64];
  int len;
  mbedtls_x509write_crt_init(&w);
  mbedtls_x509write_crt_set_version(&w, MBEDTLS_X509_CRT_VERSION_3);
  mbedtls_x509write_crt_set_md_alg(&w, MBEDTLS_MD_SHA256);
  mbedtls_x509write_crt_set_subject_key(&w, names ? &net_the_pki->key : &net_the_pki->ca_key);
  mbedtls_x509write_crt_set_issuer_key(&w, names && names->self_signed ? &net_the_pki->key : &net_the_pki->ca_key);
  CHECK_INT(mbedtls_x509write_crt_set_subject_name(&w, n->subject), 0);
  CHECK_INT(mbedtls_x509write_crt_set_issuer_name(&w, names && names->self_signed ? n->subject : ca.subject), 0);
#if MBEDTLS_VERSION_NUMBER >= 0x03040000
  CHECK_INT(mbedtls_x509write_crt_set_serial_raw(&w, (unsigned char *)(uintptr_t)serial_bytes, sizeof serial_bytes), 0);
#else
  {
    mbedtls_mpi serial;
    mbedtls_mpi_init(&serial);
    CHECK_INT(mbedtls_mpi_read_binary(&serial, serial_bytes, sizeof serial_bytes), 0);
    CHECK_INT(mbedtls_x509write_crt_set_serial(&w, &serial), 0);
    mbedtls_mpi_free(&serial);
  }
#endif
  CHECK_INT(mbedtls_x509write_crt_set_validity(&w, n->not_before ? n->not_before : "20200101000000",
                                               n->not_after ? n->not_after : "20500101000000"),
            0);
  CHECK_INT(mbedtls_x509write_crt_set_basic_constraints(&w, names ? 0 : 1, -1), 0);
  if (n->dns || n->ip)
    CHECK_INT(mbedtls_x509write_crt_set_extension(&w, "\x55\x1d\x11", 3, 0, san, net_san(n, san)),
              0); /* subjectAltName */
#if E2B__MBEDTLS4
  len = mbedtls_x509write_crt_der(&w, buf, cap);
#else
  len = mbedtls_x509write_crt_der(&w, buf, cap, mbedtls_ctr_drbg_random, &net_the_pki->rng);
#endif
  CHECK(len > 0);
  mbedtls_x509write_crt_free(&w);
  if (len <= 0) return 0;
  memmove(buf, buf + cap - (size_t)len, (size_t)len);
  return (size_t)len;
}

static void net_pki_open(void) {
  uint8_t der[2048];
  size_t len, written = 0;
  net_the_pki = (net_pki *)calloc(1, sizeof *net_the_pki);
#if !E2B__MBEDTLS4
  mbedtls_entropy_init(&net_the_pki->entropy);
  mbedtls_ctr_drbg_init(&net_the_pki->rng);
  CHECK_INT(mbedtls_ctr_drbg_seed(&net_the_pki->rng, mbedtls_entropy_func, &net_the_pki->entropy, NULL, 0), 0);
#endif
#if E2B__MBEDTLS3
  CHECK_INT(psa_crypto_init(), PSA_SUCCESS);
#endif
  net_key_make(&net_the_pki->ca_key);
  net_key_make(&net_the_pki->key);
  len = net_cert_make(NULL, der, sizeof der);
  CHECK_INT(mbedtls_pem_write_buffer("-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n", der, len,
                                     (unsigned char *)net_the_pki->ca_pem, sizeof net_the_pki->ca_pem, &written),
            0);
}

static void net_pki_close(void) {
  mbedtls_pk_free(&net_the_pki->ca_key);
  mbedtls_pk_free(&net_the_pki->key);
#if !E2B__MBEDTLS4
  mbedtls_ctr_drbg_free(&net_the_pki->rng);
  mbedtls_entropy_free(&net_the_pki->entropy);
#endif
  free(net_the_pki);
}

/* Servers: one thread, one connection after the other. */

typedef enum net_mode {
  NET_ECHO,        /* until the client is gone */
  NET_SAY,         /* reads something, sends `say` as it is (no TLS), closes */
  NET_HELLO_CLEAN, /* "hello", close_notify, FIN */
  NET_HELLO_CUT,   /* "hello", FIN */
  NET_RESET,       /* reads something, RST */
  NET_TICKETS_ONLY, /* handshake, then silence until the client is gone */
  NET_HTTP1_REQUIRED /* HTTP/2 that refuses the first stream with HTTP_1_1_REQUIRED; "one" to each request in HTTP/1.1 */
} net_mode;

typedef struct net_server {
  net_mode mode;
  const void *say;
  size_t say_len;
  int listener;
  uint16_t port;
  pthread_t thread;
  int stop;              /* by __atomic */
  int accepted, resumed; /* read after net_server_stop */
  char heard[2048];      /* the same: what an echo server got last, as text */
  bool tls;
  mbedtls_ssl_config conf;
  mbedtls_x509_crt cert;
  mbedtls_ssl_ticket_context tickets;
  const char *alpn[3];
#if !E2B__MBEDTLS4
  mbedtls_entropy_context entropy;
  mbedtls_ctr_drbg_context rng;
#endif
} net_server;

static void net_serve_plain(net_server *s, int fd) {
  char buf[65536];
  ssize_t n;
  if (s->mode == NET_ECHO) {
    while ((n = recv_some(fd, buf, sizeof buf)) > 0 && send_all(fd, buf, (size_t)n)) continue;
  } else if (s->mode == NET_SAY) {
    if (recv_some(fd, buf, sizeof buf) > 0) (void)send_all(fd, s->say, s->say_len);
    (void)shutdown(fd, SHUT_WR);
    while (recv_some(fd, buf, sizeof buf) > 0) continue;
  } else if (s->mode == NET_RESET) {
    (void)recv_some(fd, buf, 1);
    reset_on_close(fd);
  } else {
    (void)send_all(fd, "hello", 5);
  }
}

static int net_server_bio_rx(void *arg, unsigned char *buf, size_t cap) {
  ssize_t n = recv_some(*(int *)arg, buf, cap);
  return n >= 0 ? (int)n : MBEDTLS_ERR_NET_RECV_FAILED;
}

static int net_server_bio_tx(void *arg, const unsigned char *buf, size_t len) {
  return send_all(*(int *)arg, buf, len) ? (int)len : MBEDTLS_ERR_NET_SEND_FAILED;
}

static void net_serve_http1_required(mbedtls_ssl_context *ssl, int fd) {
  static const char http1[] = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none";
  static const char http2[] = "\0\0\0\4\0\0\0\0\0" "\0\0\4\3\0\0\0\0\1\0\0\0\15";
  const char *alpn = mbedtls_ssl_get_alpn_protocol(ssl);
  bool refuse = alpn && strcmp(alpn, "h2") == 0;
  unsigned char buf[16384];
  if (mbedtls_ssl_read(ssl, buf, sizeof buf) <= 0) return;
  (void)mbedtls_ssl_write(ssl, (const unsigned char *)(refuse ? http2 : http1),
                          refuse ? sizeof http2 - 1 : sizeof http1 - 1);
  (void)mbedtls_ssl_close_notify(ssl);
  (void)shutdown(fd, SHUT_WR);
  while (mbedtls_ssl_read(ssl, buf, sizeof buf) > 0) continue;
}

static void net_serve_tls(net_server *s, int fd) {
  mbedtls_ssl_context ssl;
  unsigned char buf[16384];
  int n, at;
  mbedtls_ssl_init(&ssl);
  if (mbedtls_ssl_setup(&ssl, &s->conf) == 0) {
    mbedtls_ssl_set_bio(&ssl, &fd, net_server_bio_tx, net_server_bio_rx, NULL);
    if (mbedtls_ssl_handshake(&ssl) == 0) {
      if (s->mode == NET_HTTP1_REQUIRED) {
        net_serve_http1_required(&ssl, fd);
      } else if (s->mode == NET_ECHO || s->mode == NET_TICKETS_ONLY) {
        while ((n = mbedtls_ssl_read(&ssl, buf, sizeof buf)) > 0) {
          snprintf(s->heard, sizeof s->heard, "%.*s", n, (const char *)buf);
          for (at = 0; at < n;) {
            int put = mbedtls_ssl_write(&ssl, buf + at, (size_t)(n - at));
            if (put <= 0) break;
            at += put;
          }
        }
      } else if (s->mode == NET_RESET) {
        (void)mbedtls_ssl_read(&ssl, buf, sizeof buf);
        reset_on_close(fd);
      } else {
        (void)mbedtls_ssl_write(&ssl, (const unsigned char *)"hello", 5);
        if (s->mode == NET_HELLO_CLEAN) (void)mbedtls_ssl_close_notify(&ssl);
        (void)shutdown(fd, SHUT_WR);
        while (recv_some(fd, buf, sizeof buf) > 0) continue;
      }
    }
  }
  mbedtls_ssl_free(&ssl);
}

static void *net_server_main(void *arg) {
  net_server *s = (net_server *)arg;
  while (!__atomic_load_n(&s->stop, __ATOMIC_SEQ_CST)) {
    struct pollfd p = { 0, POLLIN, 0 };
    int fd;
    p.fd = s->listener;
    if (poll(&p, 1, 20) <= 0) continue;
    fd = accept(s->listener, NULL, NULL);
    if (fd < 0) continue;
    s->accepted++;
    if (s->tls)
      net_serve_tls(s, fd);
    else
      net_serve_plain(s, fd);
    close(fd);
  }
  return NULL;
}

static void net_server_start(net_server *s, net_mode mode) {
  s->mode = mode;
  s->listener = listen_somewhere(&s->port);
  CHECK_INT(pthread_create(&s->thread, NULL, net_server_main, s), 0);
}

static void net_server_stop(net_server *s) {
  __atomic_store_n(&s->stop, 1, __ATOMIC_SEQ_CST);
  pthread_join(s->thread, NULL);
  close(s->listener);
}

static int net_ticket_parse(void *arg, mbedtls_ssl_session *session, unsigned char *buf, size_t len) {
  net_server *s = (net_server *)arg;
  int rc = mbedtls_ssl_ticket_parse(&s->tickets, session, buf, len);
  if (rc == 0) s->resumed++;
  return rc;
}

static int net_ticket_write(void *arg, const mbedtls_ssl_session *session, unsigned char *start,
                            const unsigned char *end, size_t *len, uint32_t *lifetime) {
  return mbedtls_ssl_ticket_write(&((net_server *)arg)->tickets, session, start, end, len, lifetime);
}

/* A TLS server with a certificate for `names`. alpn may be NULL. */
static void net_tls_server_start(net_server *s, net_mode mode, const net_names *names, const char *alpn) {
  uint8_t der[2048];
  size_t len = net_cert_make(names, der, sizeof der);
  memset(s, 0, sizeof *s);
  s->tls = true;
  mbedtls_ssl_config_init(&s->conf);
  mbedtls_x509_crt_init(&s->cert);
  mbedtls_ssl_ticket_init(&s->tickets);
  CHECK_INT(mbedtls_x509_crt_parse_der(&s->cert, der, len), 0);
  CHECK_INT(mbedtls_ssl_config_defaults(&s->conf, MBEDTLS_SSL_IS_SERVER, MBEDTLS_SSL_TRANSPORT_STREAM,
                                        MBEDTLS_SSL_PRESET_DEFAULT),
            0);
#if E2B__MBEDTLS4
  CHECK_INT(mbedtls_ssl_ticket_setup(&s->tickets, PSA_ALG_GCM, PSA_KEY_TYPE_AES, 256, 3600), 0);
#else
  mbedtls_entropy_init(&s->entropy);
  mbedtls_ctr_drbg_init(&s->rng);
  CHECK_INT(mbedtls_ctr_drbg_seed(&s->rng, mbedtls_entropy_func, &s->entropy, NULL, 0), 0);
  mbedtls_ssl_conf_rng(&s->conf, mbedtls_ctr_drbg_random, &s->rng);
  CHECK_INT(mbedtls_ssl_ticket_setup(&s->tickets, mbedtls_ctr_drbg_random, &s->rng, MBEDTLS_CIPHER_AES_256_GCM, 3600),
            0);
#endif
  CHECK_INT(mbedtls_ssl_conf_own_cert(&s->conf, &s->cert, &net_the_pki->key), 0);
  mbedtls_ssl_conf_session_tickets_cb(&s->conf, net_ticket_write, net_ticket_parse, s);
  s->alpn[0] = alpn;
  if (mode == NET_HTTP1_REQUIRED) s->alpn[1] = "http/1.1";
  if (alpn) CHECK_INT(mbedtls_ssl_conf_alpn_protocols(&s->conf, s->alpn), 0);
  net_server_start(s, mode);
}

static void net_tls_server_stop(net_server *s) {
  net_server_stop(s);
  mbedtls_ssl_config_free(&s->conf);
  mbedtls_x509_crt_free(&s->cert);
  mbedtls_ssl_ticket_free(&s->tickets);
#if !E2B__MBEDTLS4
  mbedtls_ctr_drbg_free(&s->rng);
  mbedtls_entropy_free(&s->entropy);
#endif
}

/* ---- sockets ---- */

static void test_net_clock_random(void) {
  uint64_t before = e2b__net_now_us(), ms = e2b__net_now_us() / 1000u;
  uint8_t a[16], b[16];
  sleep_ms(20);
  CHECK(e2b__net_now_us() - before >= 15000 && e2b__net_now_us() - before < 5000000);
  CHECK(e2b__net_now_us() / 1000u - ms >= 15);
  CHECK(e2b__net_random(a, sizeof a) && e2b__net_random(b, sizeof b));
  CHECK(memcmp(a, b, sizeof a) != 0);
}

static void *net_signal_later(void *arg) {
  sleep_ms(30);
  e2b__waker_signal((e2b__waker *)arg);
  return NULL;
}

static void test_net_wake(void) {
  net_client c;
  e2b__waker *w;
  e2b_pollfd fd;
  pthread_t thread;
  int i;
  net_client_init(&c, NULL);
  w = c.net.waker;
  fd.fd = e2b__waker_fd(w);
  fd.events = E2B_FD_READ;
  CHECK_INT(e2b__net_poll(&c.net, &fd, 1, 0), 0);
  CHECK(!e2b__waker_drain(w));
  pthread_create(&thread, NULL, net_signal_later, w);
  CHECK_INT(e2b__net_poll(&c.net, &fd, 1, 30000), 1);
  CHECK_INT(fd.revents, E2B_FD_READ);
  pthread_join(thread, NULL);
  CHECK(e2b__waker_drain(w));
  CHECK(!e2b__waker_drain(w));
  CHECK(!e2b__waker_interrupted(w));
  for (i = 0; i < 200000; i++) e2b__waker_signal(w); /* more than the pipe takes */
  e2b__waker_interrupt(w);
  CHECK(e2b__waker_drain(w));
  CHECK(e2b__waker_interrupted(w));
  CHECK(!e2b__waker_interrupted(w));
  CHECK_INT(e2b__net_poll(&c.net, &fd, 1, 0), 0);
  net_client_free(&c);
}

static void test_net_poll(void) {
  net_client c;
  e2b_pollfd fds[2];
  int pair[2];
  net_client_init(&c, NULL);
  CHECK_INT(e2b__net_poll(&c.net, fds, 0, 1), 0);
  CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  fds[0].fd = pair[0];
  fds[0].events = E2B_FD_READ;
  fds[1].fd = pair[1];
  fds[1].events = E2B_FD_READ | E2B_FD_WRITE;
  CHECK_INT(e2b__net_poll(&c.net, fds, 2, 0), 1);
  CHECK_INT(fds[0].revents, 0);
  CHECK_INT(fds[1].revents, E2B_FD_WRITE);
  close(pair[0]);
  CHECK(e2b__net_poll(&c.net, fds + 1, 1, 0) == 1 && (fds[1].revents & E2B_FD_READ));
  close(pair[1]);
  c.heap.fail_at = c.heap.calls + 1;
  CHECK(e2b__net_poll(&c.net, fds, 2000, 0) < 0); /* no memory */
  c.heap.fail_at = 0;
  net_client_free(&c);
}

/* ---- dns ---- */

static void test_dns_names(void) {
  static const char *const good[] = {
    "a", "a.b", "a.b.", "API.e2b.app", "49983-i_x--9.e2b.app", "1a", "127.0.0.1.nip.io", "3com.com"
  };
  static const char *const bad[] = { "",     ".",           "a..b",       ".a",        "a b",    "a/b",
                                     "a%00", "\xc3\xa4.de", "127.1",      "1.2.3.4.5", "0x7f.1", "2130706433",
                                     "a:b",  "[::1]",       "fe80::1%lo", "a\n" };
  char name[300], label[80];
  uint8_t addr[16];
  size_t i;
  for (i = 0; i < E2B__COUNT(good); i++) check_at(e2b__dns_name_ok(good[i]), __LINE__, good[i]);
  for (i = 0; i < E2B__COUNT(bad); i++) check_at(!e2b__dns_name_ok(bad[i]), __LINE__, bad[i]);
  memset(label, 'x', sizeof label);
  label[63] = 0;
  CHECK(e2b__dns_name_ok(label));
  label[63] = 'x';
  label[64] = 0;
  CHECK(!e2b__dns_name_ok(label));
  for (i = 0; i < 253; i++) name[i] = i % 2 ? '.' : 'x';
  name[253] = 0;
  CHECK(e2b__dns_name_ok(name));
  name[253] = '.';
  name[254] = 0;
  CHECK(e2b__dns_name_ok(name));
  name[254] = 'x';
  name[255] = 0;
  CHECK(!e2b__dns_name_ok(name));
  CHECK_INT(e2b__dns_literal("127.0.0.1", addr), 4);
  CHECK_INT(e2b__dns_literal("::1", addr), 16);
  CHECK_INT(e2b__dns_literal("127.1", addr), 0);
  CHECK_INT(e2b__dns_literal("localhost", addr), 0);
  CHECK(e2b__dns_name_within("localhost", "localhost") && e2b__dns_name_within("a.LocalHost.", "localhost"));
  CHECK(!e2b__dns_name_within("xlocalhost", "localhost") && !e2b__dns_name_within("localhost.x", "localhost"));
}

static void test_dns_known(void) {
  int code;
  e2b__waker *w = e2b__waker_new(&code);
  e2b__dns *d = e2b__dns_start(w, "x.localhost");
  CHECK(e2b__dns_done(d));
  CHECK_INT(d->count, 2);
  CHECK(d->addrs[0].len == 4 && d->addrs[0].bytes[0] == 127 && d->addrs[1].len == 16 && d->addrs[1].bytes[15] == 1);
  e2b__dns_release(d);
  d = e2b__dns_start(w, "10.1.2.3");
  CHECK(e2b__dns_done(d) && d->count == 1 && d->addrs[0].len == 4 && d->addrs[0].bytes[3] == 3);
  e2b__dns_release(d);
  d = e2b__dns_start(w, "nothing.invalid");
  CHECK(e2b__dns_done(d) && d->count == 0);
  e2b__dns_release(d);
  e2b__dns_release(NULL);
  e2b__waker_release(w);
}

/* A look-up that really asks the resolver, for what it answers without a network. */
static e2b__dns *net_dns_ask(e2b__waker *w) {
  e2b__dns *d = e2b__dns_start(w, "0.0.0.0");
  d->done = false;
  d->count = 0;
  (void)snprintf(d->host, sizeof d->host, "127.0.0.1");
#if E2B__THREADS
  d->waker = e2b__waker_retain(w);
  d->refs = 2;
  CHECK_INT(e2b__dns_spawn(d), 0);
#else
  e2b__dns_ask(d);
  e2b__dns_finish(d);
#endif
  return d;
}

static void test_dns_thread(void) {
  net_client c;
  e2b__dns *d;
  e2b_pollfd fd;
  int i;
  net_client_init(&c, NULL);
  d = net_dns_ask(c.net.waker);
  fd.fd = e2b__waker_fd(c.net.waker);
  fd.events = E2B_FD_READ;
  for (i = 0; i < 100 && !e2b__dns_done(d); i++) (void)e2b__net_poll(&c.net, &fd, 1, 100);
  CHECK(e2b__dns_done(d));
  CHECK(d->count >= 1);
  e2b__dns_release(d);
  for (i = 0; i < 50; i++) e2b__dns_release(net_dns_ask(c.net.waker)); /* nobody waits for these */
  net_client_free(&c);                                                 /* their waker lives on as long as they do */
  sleep_ms(200);
}

static void test_dns_interleave(void) {
  static const char *const cases[][2] = {
    { "", "" },         { "4", "4" },           { "446", "464" },         { "664", "646" },
    { "4444", "4444" }, { "444666", "464646" }, { "4466666", "4646666" }, { "64444", "64444" }
  };
  size_t i, k;
  for (i = 0; i < E2B__COUNT(cases); i++) {
    e2b__dns d;
    char got[17] = "";
    uint8_t last4 = 0, last6 = 0;
    memset(&d, 0, sizeof d);
    for (k = 0; cases[i][0][k]; k++) {
      uint8_t bytes[16] = { 0 };
      bytes[0] = (uint8_t)(k + 1);
      e2b__dns_add(&d, bytes, cases[i][0][k] == '4' ? 4 : 16);
      e2b__dns_add(&d, bytes, cases[i][0][k] == '4' ? 4 : 16); /* twice is once */
    }
    e2b__dns_interleave(&d);
    for (k = 0; k < d.count; k++) {
      uint8_t *last = d.addrs[k].len == 4 ? &last4 : &last6;
      got[k] = d.addrs[k].len == 4 ? '4' : '6';
      CHECK(d.addrs[k].bytes[0] > *last); /* the order within a family stays */
      *last = d.addrs[k].bytes[0];
    }
    CHECK_STR(got, cases[i][1]);
  }
}

/* Puts an answer into the cache, so that links find it. */
static e2b__dns *net_dns_put(net_client *c, size_t slot, const char *name, const char *const *addrs, size_t count) {
  e2b__dns *d = e2b__dns_start(c->net.waker, "0.0.0.0");
  size_t i;
  d->count = 0;
  (void)snprintf(d->host, sizeof d->host, "%s", name);
  for (i = 0; i < count; i++) {
    uint8_t bytes[16];
    uint8_t len = e2b__dns_literal(addrs[i], bytes);
    e2b__dns_add(d, bytes, len);
  }
  c->net.names[slot].dns = d;
  c->net.names[slot].expires_ms = now_ms() + 600000;
  return d;
}

static void test_dns_cache(void) {
  static const char *const addrs[] = { "10.0.0.1" };
  net_client c;
  e2b__dns *d = NULL, *e = NULL;
  char name[32];
  size_t i;
  net_client_init(&c, NULL);
  for (i = 0; i < E2B__DNS_SLOTS; i++) {
    (void)snprintf(name, sizeof name, "host%u.test", (unsigned)i);
    net_dns_put(&c, i, name, addrs, 1)->done = false;
    c.net.names[i].expires_ms = 1000 + i;
  }
  CHECK_INT(e2b__dns_get(c.net.names, c.net.waker, "HOST3.test", 5000, &d), E2B_OK); /* under way: shared */
  CHECK(d == c.net.names[3].dns);
  CHECK_INT(e2b__dns_get(c.net.names, c.net.waker, "more.invalid", 5000, &e), E2B_PENDING);
  CHECK_INT(e2b__dns_get(c.net.names, c.net.waker, "127.0.0.1", 5000, &e), E2B_OK); /* needs no slot */
  e2b__dns_release(e);
  CHECK_INT(e2b__dns_get(c.net.names, c.net.waker, "localhost", 5000, &e), E2B_OK);
  e2b__dns_release(e);
  c.net.names[3].dns->done = true;
  CHECK_INT(e2b__dns_get(c.net.names, c.net.waker, "more.invalid", 500, &e), E2B_OK); /* the done one gave way */
  CHECK(c.net.names[3].dns == e && d->refs == 1 && e->count == 0);
  e2b__dns_release(d);
  CHECK_INT(e2b__dns_get(c.net.names, c.net.waker, "more.invalid", 500, &d), E2B_OK); /* failures are not remembered */
  CHECK(d != e);
  e2b__dns_release(d);
  e2b__dns_release(e);
  d = c.net.names[5].dns;
  d->done = true;
  CHECK_INT(e2b__dns_get(c.net.names, c.net.waker, "host5.test", 1004, &e), E2B_OK);
  CHECK(d == e);
  e2b__dns_release(e);
  e2b__dns_forget(c.net.names, "host5.test");
  CHECK(c.net.names[5].dns == NULL);
  c.net.names[6].dns->done = true; /* expired: another one takes its place */
  CHECK_INT(e2b__dns_get(c.net.names, c.net.waker, "host6.invalid", 1006, &e), E2B_OK);
  CHECK(c.net.names[6].dns == NULL);
  e2b__dns_release(e);
  net_client_free(&c);
}

/* ---- link: plain ---- */

static void test_link_plain(void) {
  net_server s;
  net_client c;
  e2b__link l;
  e2b_error err;
  char byte;
  size_t fds = open_fds();
  memset(&s, 0, sizeof s);
  net_server_start(&s, NET_ECHO);
  net_client_init(&c, NULL);
  CHECK_INT(net_connect(&c, &l, "127.0.0.1", s.port, false, &err), E2B_OK);
  CHECK(l.opening == NULL && l.alpn == NULL);
  CHECK(e2b__link_alive(&l));
  net_echo(&c, &l, 8u << 20, 50000);
  CHECK(e2b__link_alive(&l));
  CHECK_INT(e2b__link_write(&l, "x", 1, &err), 1);
  sleep_ms(50);
  CHECK(!e2b__link_alive(&l)); /* an unasked byte */
  e2b__link_close(&l);
  e2b__link_close(&l);
  CHECK_INT(net_connect(&c, &l, "localhost", s.port, false, &err), E2B_OK);
  net_echo(&c, &l, 1000, 1);
  e2b__link_close(&l);
  net_server_stop(&s);
  CHECK_INT(s.accepted, 2);
  memset(&s, 0, sizeof s);
  net_server_start(&s, NET_HELLO_CUT);
  CHECK_INT(net_connect(&c, &l, "127.0.0.1", s.port, false, &err), E2B_OK);
  sleep_ms(50);
  CHECK_INT(e2b__link_read(&l, &byte, 1, &err), 1);
  CHECK_INT(byte, 'h');
  while (e2b__link_read(&l, &byte, 1, &err) == 1) continue;
  CHECK_INT(e2b__link_read(&l, &byte, 1, &err), E2B_IO_EOF);
  CHECK(!l.unclean_eof);
  e2b__link_close(&l);
  net_server_stop(&s);
  net_client_free(&c);
  CHECK_INT(open_fds(), fds);
}

static void test_link_refused(void) {
  net_client c;
  e2b__link l;
  e2b_error err;
  uint16_t port = dead_port();
  char expect[64];
  size_t fds = open_fds();
  net_client_init(&c, NULL);
  CHECK_INT(net_connect(&c, &l, "127.0.0.1", port, false, &err), E2B_ERR_CONNECT);
  CHECK_INT(err.code, E2B_ERR_CONNECT);
  CHECK_INT(err.phase, E2B_PHASE_CONNECT);
  CHECK_INT(err.sys_code, ECONNREFUSED);
  CHECK_INT(l.state, E2B__LINK_FAILED);
  (void)snprintf(expect, sizeof expect, "cannot connect to 127.0.0.1:%u (", (unsigned)port);
  CHECK_HAS(err.message, expect);
  CHECK_HAS(err.message, "127.0.0.1: connection refused");
  CHECK_INT(net_connect(&c, &l, "localhost", port, true, &err), E2B_ERR_CONNECT);
  CHECK_HAS(err.message, "127.0.0.1: connection refused; [::1]: ");
  CHECK_INT(net_connect(&c, &l, "sandbox.invalid", port, true, &err), E2B_ERR_RESOLVE);
  CHECK_INT(err.phase, E2B_PHASE_RESOLVE);
  CHECK_HAS(err.message, "\"sandbox.invalid\": there is no such name");
  CHECK_INT(net_connect(&c, &l, "bad name", port, true, &err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(net_connect(&c, &l, "127.1", port, true, &err), E2B_ERR_INVALID_ARGUMENT);
  e2b__link_close(&l);
  net_client_free(&c);
  CHECK_INT(open_fds(), fds);
}

static void test_link_dual_stack(void) {
  static const char *const addrs[] = { "::1", "127.0.0.1" };
  net_server s;
  net_client c;
  e2b__link l;
  e2b_error err;
  memset(&s, 0, sizeof s);
  net_server_start(&s, NET_ECHO);
  net_client_init(&c, NULL);
  (void)net_dns_put(&c, 0, "dual.test", addrs, 2);
  CHECK_INT(net_connect(&c, &l, "dual.test", s.port, false, &err), E2B_OK); /* the server is on IPv4 only */
  net_echo(&c, &l, 1000, 100);
  e2b__link_close(&l);
  net_server_stop(&s);
  CHECK_INT(net_connect(&c, &l, "dual.test", s.port, false, &err), E2B_ERR_CONNECT);
  CHECK_HAS(err.message, "; 127.0.0.1: connection refused");
  CHECK(c.net.names[0].dns == NULL); /* forgotten */
  net_client_free(&c);
}

static void *net_dns_answer_later(void *arg) {
  e2b__dns *d = (e2b__dns *)arg;
  static const uint8_t loopback[4] = { 127, 0, 0, 1 };
  sleep_ms(50);
  e2b__dns_add(d, loopback, 4);
  e2b__dns_finish(d);
  e2b__waker_signal(d->waker);
  e2b__dns_release(d);
  return NULL;
}

/* A name under way: links that want it share it, its end wakes them, and more names than slots have to wait. */
static void test_link_resolving(void) {
  net_server s;
  net_client c;
  e2b__link l, m, n;
  e2b_error err;
  e2b_pollfd fd;
  pthread_t thread;
  char name[32];
  size_t i;
  e2b__dns *d;
  memset(&s, 0, sizeof s);
  net_server_start(&s, NET_ECHO);
  net_client_init(&c, NULL);
  for (i = 0; i < E2B__DNS_SLOTS; i++) {
    (void)snprintf(name, sizeof name, "slow%u.test", (unsigned)i);
    d = net_dns_put(&c, i, name, NULL, 0);
    d->done = false;
    d->waker = e2b__waker_retain(c.net.waker);
  }
  e2b__link_init(&l, &c.net);
  e2b__link_init(&m, &c.net);
  e2b__link_init(&n, &c.net);
  CHECK_INT(e2b__link_open(&l, "slow2.test", s.port, false, 0, &err), E2B_OK);
  CHECK_INT(e2b__link_open(&m, "SLOW2.test", s.port, false, 0, &err), E2B_OK);
  CHECK_INT(e2b__link_open(&n, "other.invalid", s.port, false, 0, &err), E2B_OK);
  CHECK_INT(e2b__link_step(&l, 0, &err), E2B_PENDING);
  CHECK_INT(e2b__link_step(&m, 0, &err), E2B_PENDING);
  CHECK_INT(e2b__link_step(&n, 7, &err), E2B_PENDING);
  CHECK_INT(e2b__link_fds(&l, &fd, 1, true, true), 0);
  CHECK_INT(e2b__link_phase(&l), E2B_PHASE_RESOLVE);
  CHECK_INT(e2b__link_deadline(&l), E2B__NEVER);
  CHECK_INT(e2b__link_deadline(&n), 7 + E2B__LINK_RETRY_MS);
  d = c.net.names[2].dns;
  CHECK_INT(d->refs, 3);
  CHECK_INT(pthread_create(&thread, NULL, net_dns_answer_later, e2b__dns_retain(d)), 0);
  fd.fd = e2b__waker_fd(c.net.waker);
  fd.events = E2B_FD_READ;
  CHECK_INT(e2b__net_poll(&c.net, &fd, 1, 5000), 1);
  CHECK_INT(e2b__link_deadline(&l), 0);
  CHECK_INT(net_drive(&c, &l, 5000, &err), E2B_OK);
  CHECK_INT(net_drive(&c, &m, 5000, &err), E2B_OK);
  CHECK_INT(e2b__link_step(&n, c.net.names[2].expires_ms + 1, &err), E2B_ERR_RESOLVE); /* there is a slot now */
  pthread_join(thread, NULL);
  e2b__link_close(&l);
  e2b__link_close(&m);
  CHECK_INT(e2b__link_open(&l, "slow3.test", s.port, false, 0, &err), E2B_OK);
  CHECK_INT(e2b__link_step(&l, 0, &err), E2B_PENDING);
  e2b__link_close(&l); /* in the middle */
  net_client_free(&c);
  net_server_stop(&s);
}

/* SIGPIPE keeps its default disposition here: it would end the test. */
static void test_link_reset(void) {
  net_server s;
  net_client c;
  e2b__link l;
  e2b_error err;
  char buf[16];
  int n, i;
  memset(&s, 0, sizeof s);
  net_server_start(&s, NET_RESET);
  net_client_init(&c, NULL);
  CHECK_INT(net_connect(&c, &l, "127.0.0.1", s.port, false, &err), E2B_OK);
  CHECK_INT(e2b__link_write(&l, "xy", 2, &err), 2);
  sleep_ms(100);
  n = e2b__link_read(&l, buf, sizeof buf, &err);
  CHECK_INT(n, E2B_ERR_CLOSED);
  CHECK_INT(err.sys_code, ECONNRESET);
  CHECK_HAS(err.message, "connection reset by the peer");
  for (i = 0; i < 3; i++) n = e2b__link_write(&l, "xy", 2, &err);
  CHECK_INT(n, E2B_ERR_CLOSED);
  CHECK_HAS(err.message, "connection closed by the peer");
  e2b__link_close(&l);
  net_client_free(&c);
  net_server_stop(&s);
}

static void test_link_many_fds(void) {
  net_server s;
  net_client c;
  e2b__link l;
  e2b_error err;
  struct rlimit before, limit;
  int fds[1200];
  size_t i, count = 0;
  memset(&s, 0, sizeof s);
  net_server_start(&s, NET_ECHO);
  net_client_init(&c, NULL);
  CHECK_INT(getrlimit(RLIMIT_NOFILE, &before), 0);
  limit = before;
  limit.rlim_cur = E2B__MIN(before.rlim_max, (rlim_t)4096);
  if (setrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur > 1500) {
    for (i = 0; i < E2B__COUNT(fds); i++)
      if ((fds[count] = open("/dev/null", O_RDONLY)) >= 0) count++;
    CHECK_INT(net_connect(&c, &l, "127.0.0.1", s.port, false, &err), E2B_OK);
    CHECK(e2b__sock_fd(NULL, l.conn) > 1024); /* beyond what select could do */
    net_echo(&c, &l, 100000, 1000);
    e2b__link_close(&l);
  }
  limit.rlim_cur = (rlim_t)(count + 3);
  CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0); /* no descriptor is free now */
  CHECK_INT(net_connect(&c, &l, "127.0.0.1", s.port, false, &err), E2B_ERR_IO);
  CHECK_INT(err.sys_code, EMFILE);
  CHECK_HAS(err.message, "too many open files");
  CHECK_HAS(err.message, "max_connections");
  {
    int code = 0;
    CHECK(e2b__waker_new(&code) == NULL);
    CHECK_INT(code, EMFILE);
  }
  while (count) close(fds[--count]);
  CHECK_INT(setrlimit(RLIMIT_NOFILE, &before), 0);
  CHECK_INT(net_connect(&c, &l, "127.0.0.1", s.port, false, &err), E2B_OK); /* and it recovers */
  e2b__link_close(&l);
  net_client_free(&c);
  net_server_stop(&s);
}

/* ---- link: scripted transport, scripted clock ---- */

/* Addresses 10.0.0.N; plan[N] says what becomes of them: 'r' refused at once, 'f' refused later, 's' silence, 'c'
 * connected at once, 'l' connected at the second look. */
typedef struct net_script {
  const char *plan;
  char opened[32]; /* last digits of the addresses, in order */
  int open_now, looks[17];
  uint64_t now;
  const char *host;
  bool tls;
  const uint8_t *addr;
} net_script;

typedef struct net_script_conn {
  int index;
} net_script_conn;

static int net_script_open(void *user, const e2b_endpoint *to, void **conn) {
  net_script *s = (net_script *)user;
  int index = to->addr ? to->addr[3] : 0;
  char what = s->plan[index];
  net_script_conn *made;
  size_t len = strlen(s->opened);
  s->host = to->host;
  s->tls = to->tls;
  s->addr = to->addr;
  s->opened[len] = (char)('0' + index);
  s->opened[len + 1] = 0;
  if (what == 'r') return -7;
  made = (net_script_conn *)malloc(sizeof *made);
  made->index = index;
  *conn = made;
  s->open_now++;
  return what == 'c' ? 0 : E2B_IO_AGAIN;
}

static int net_script_ready(void *user, void *conn) {
  net_script *s = (net_script *)user;
  int index = ((net_script_conn *)conn)->index;
  char what = s->plan[index];
  if (++s->looks[index] < 2 || what == 's') return E2B_IO_AGAIN;
  return what == 'l' ? 0 : -9;
}

static int net_script_rx(void *user, void *conn, void *buf, size_t cap) {
  E2B__UNUSED(user);
  E2B__UNUSED(conn);
  E2B__UNUSED(cap);
  memcpy(buf, "x", 1);
  return 1;
}

static int net_script_tx(void *user, void *conn, const void *buf, size_t len) {
  E2B__UNUSED(user);
  E2B__UNUSED(conn);
  E2B__UNUSED(buf);
  E2B__UNUSED(len);
  return -42;
}

static void net_script_shut(void *user, void *conn) {
  ((net_script *)user)->open_now--;
  free(conn);
}

static const char *net_script_alpn(void *user, void *conn) {
  E2B__UNUSED(user);
  E2B__UNUSED(conn);
  return "http/1.1";
}

static e2b_transport net_script_transport(net_script *s, const char *plan, uint32_t flags) {
  e2b_transport t;
  memset(&t, 0, sizeof t);
  memset(s, 0, sizeof *s);
  s->plan = plan;
  t.open_fn = net_script_open;
  t.ready_fn = net_script_ready;
  t.rx_fn = net_script_rx;
  t.tx_fn = net_script_tx;
  t.shut_fn = net_script_shut;
  t.alpn_fn = net_script_alpn;
  t.user = s;
  t.flags = flags;
  return t;
}

/* Opens a link to a name with as many addresses as the plan has letters after its first, looking only when the link
 * wants to be looked at, or each `look` ms. Returns when it ended: the scripted clock in ms, with the code in *rc. */
static uint64_t net_script_run(net_script *s, const char *plan, uint64_t look, e2b_err *rc, e2b_error *err) {
  static const char *const all[] = { "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4",
                                     "10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.8" };
  e2b_transport t = net_script_transport(s, plan, 0);
  net_client c;
  e2b__link l;
  uint64_t now = 1000000;
  net_client_init(&c, &t);
  (void)net_dns_put(&c, 0, "many.test", all, strlen(plan) - 1);
  c.net.names[0].expires_ms = now + 1;
  e2b__link_init(&l, &c.net);
  CHECK_INT(e2b__link_open(&l, "many.test", 80, false, now, err), E2B_OK);
  CHECK_INT(e2b__link_phase(&l), E2B_PHASE_RESOLVE);
  for (;;) {
    e2b_pollfd fds[E2B__LINK_FDS];
    *rc = e2b__link_step(&l, now, err);
    CHECK(s->open_now <= E2B__LINK_FDS);
    if (*rc != E2B_PENDING || now > 1060000) break;
    CHECK_INT(e2b__link_phase(&l), E2B_PHASE_CONNECT);
    CHECK_INT(e2b__link_fds(&l, fds, E2B__LINK_FDS, true, true), 0);
    CHECK(e2b__link_deadline(&l) > now);
    now = E2B__MIN(e2b__link_deadline(&l), now + look);
  }
  if (*rc == E2B_OK) CHECK_INT(s->open_now, 1);
  e2b__link_close(&l);
  CHECK_INT(s->open_now, 0);
  net_client_free(&c);
  return now - 1000000;
}

static void test_link_happy_eyeballs(void) {
  net_script s;
  e2b_error err;
  e2b_err rc;
  CHECK_INT(net_script_run(&s, "-c", 10, &rc, &err), 0);
  CHECK_INT(rc, E2B_OK);
  CHECK_INT(net_script_run(&s, "-rrc", 10, &rc, &err), 0); /* failures make way at once */
  CHECK_INT(rc, E2B_OK);
  CHECK_STR(s.opened, "123");
  CHECK_INT(net_script_run(&s, "-ssc", 10, &rc, &err), 500); /* silence does after 250 ms */
  CHECK_INT(rc, E2B_OK);
  CHECK_STR(s.opened, "123");
  CHECK_INT(net_script_run(&s, "-sfc", 10, &rc, &err), 260 + 10); /* a late failure, at the second look */
  CHECK_INT(rc, E2B_OK);
  CHECK_INT(net_script_run(&s, "-ls", 10, &rc, &err), 20); /* the first wins, the second never starts */
  CHECK_STR(s.opened, "1");
  CHECK_INT(net_script_run(&s, "-sssscc", 10, &rc, &err), 2000); /* four in silence: the oldest gives way */
  CHECK_INT(rc, E2B_OK);
  CHECK_STR(s.opened, "12345");
  CHECK_INT(net_script_run(&s, "-rff", 10, &rc, &err), 40);
  CHECK_INT(rc, E2B_ERR_CONNECT);
  CHECK_INT(err.sys_code, -9);
  CHECK_HAS(err.message, "10.0.0.1: error -7; 10.0.0.2: error -9; 10.0.0.3: error -9");
  (void)net_script_run(&s, "-ssssssss", 1000, &rc, &err);
  CHECK_INT(rc, E2B_PENDING); /* the deadline is the caller's */
  CHECK_STR(s.opened, "12345678");
}

static void test_link_custom(void) {
  net_script s;
  e2b_transport t = net_script_transport(&s, "l", E2B_TRANSPORT_HAS_DNS | E2B_TRANSPORT_HAS_TLS);
  net_client c;
  e2b__link l;
  e2b_error err;
  char byte;
  net_client_init(&c, &t);
  e2b__link_init(&l, &c.net);
  CHECK_INT(e2b__link_open(&l, "any name at all", 443, true, 5, &err), E2B_OK);
  CHECK_INT(e2b__link_step(&l, 5, &err), E2B_PENDING);
  CHECK_INT(e2b__link_deadline(&l), E2B__NEVER);
  CHECK_STR(s.host, "any name at all");
  CHECK(s.tls && s.addr == NULL);
  CHECK_INT(e2b__link_step(&l, 6, &err), E2B_PENDING);
  CHECK_INT(e2b__link_step(&l, 6, &err), E2B_OK);
  CHECK_STR(l.alpn, "http/1.1");
  CHECK(l.tls == NULL);
  CHECK_INT(e2b__link_read(&l, &byte, 1, &err), 1);
  CHECK_INT(e2b__link_write(&l, "x", 1, &err), E2B_ERR_CLOSED);
  CHECK_INT(err.sys_code, -42);
  e2b__link_close(&l);
  CHECK_INT(s.open_now, 0);
  s.plan = "r";
  CHECK_INT(e2b__link_open(&l, "host", 443, true, 5, &err), E2B_OK);
  CHECK_INT(e2b__link_step(&l, 5, &err), E2B_ERR_CONNECT);
  CHECK_INT(err.sys_code, -7);
  net_client_free(&c);
}

/* ---- tls ---- */

static const net_names net_localhost = { "CN=localhost", "localhost", NULL, 0, NULL, NULL, false };

static void net_trust(net_client *c) {
  c->net.tls_config.ca_pem = net_the_pki->ca_pem;
}

static void test_tls_ok(void) {
  net_server s;
  net_client c;
  e2b__link l;
  e2b_error err;
  size_t fds = open_fds();
  net_tls_server_start(&s, NET_ECHO, &net_localhost, "http/1.1");
  net_client_init(&c, NULL);
  net_trust(&c);
  CHECK_INT(net_connect(&c, &l, "localhost", s.port, true, &err), E2B_OK);
  CHECK_STR(l.alpn, "http/1.1");
  CHECK(e2b__link_alive(&l));
  net_echo(&c, &l, 8u << 20, 50000);
  CHECK(e2b__link_alive(&l));
  e2b__link_close(&l);
  CHECK_INT(net_connect(&c, &l, "LOCALHOST.", s.port, true, &err), E2B_OK); /* case and a final dot do not matter */
  net_polls = 0;
  net_echo(&c, &l, 5000, 100);
  net_wait(&c, &l, true, false, 50);
  CHECK(net_polls < 200); /* no busy loop */
  e2b__link_close(&l);
  net_tls_server_stop(&s);
  net_tls_server_start(&s, NET_ECHO, &net_localhost, NULL);
  CHECK_INT(net_connect(&c, &l, "localhost", s.port, true, &err), E2B_OK);
  CHECK(l.alpn == NULL);
  e2b__link_close(&l);
  net_tls_server_stop(&s);
  net_client_free(&c);
  CHECK_INT(open_fds(), fds);
}

static void test_tls_resume(void) {
  net_server s;
  net_client c;
  e2b__link l;
  e2b_error err;
  int round, mode;
  for (mode = 0; mode < 3; mode++) {
    net_tls_server_start(&s, NET_ECHO, &net_localhost, "http/1.1");
    net_client_init(&c, NULL);
    net_trust(&c);
    c.net.tls_config.no_session_resumption = mode == 1;
    c.net.tls_config.insecure_skip_verify = mode == 2;
    for (round = 0; round < 4; round++) {
      CHECK_INT(net_connect(&c, &l, round == 3 ? "x.localhost" : "localhost", s.port, true, &err),
                round == 3 && mode != 2 ? E2B_ERR_TLS_CERTIFICATE : E2B_OK); /* another name: another session */
      if (l.state == E2B__LINK_READY) net_echo(&c, &l, 100, 100);
      e2b__link_close(&l);
    }
    net_tls_server_stop(&s);
    CHECK_INT(s.resumed, mode == 0 ? 2 : 0);
    net_client_free(&c);
  }
}

/* Saved sessions that cannot be used cost a full handshake, not the connection. */
static void test_tls_resume_corrupt(void) {
  net_server s;
  net_client c;
  e2b__link l;
  e2b_error err;
  size_t i, k;
  net_tls_server_start(&s, NET_ECHO, &net_localhost, "http/1.1");
  net_client_init(&c, NULL);
  net_trust(&c);
  CHECK_INT(net_connect(&c, &l, "localhost", s.port, true, &err), E2B_OK);
  net_echo(&c, &l, 100, 100);
  e2b__link_close(&l);
  for (i = 0; i < E2B__TLS_SESSIONS; i++)
    if (c.net.tls->sessions[i].host)
      for (k = 0; k < 8; k++) c.net.tls->sessions[i].blob[k] ^= 0xff;
  CHECK_INT(net_connect(&c, &l, "localhost", s.port, true, &err), E2B_OK);
  net_echo(&c, &l, 100, 100);
  e2b__link_close(&l);
  net_tls_server_stop(&s);
  CHECK_INT(s.resumed, 0);
  /* The server lost its ticket keys. */
  {
    uint16_t port = s.port;
    net_tls_server_start(&s, NET_ECHO, &net_localhost, "http/1.1");
    for (i = 0; i < E2B__TLS_SESSIONS; i++)
      if (c.net.tls->sessions[i].port == port) c.net.tls->sessions[i].port = s.port;
  }
  CHECK_INT(net_connect(&c, &l, "localhost", s.port, true, &err), E2B_OK);
  net_echo(&c, &l, 100, 100);
  e2b__link_close(&l);
  net_tls_server_stop(&s);
  CHECK_INT(s.resumed, 0);
  net_client_free(&c);
}

static void test_tls_session_slots(void) {
  e2b__mem mem;
  e2b__tls_shared *s;
  char host[32];
  size_t i, used = 0;
  e2b__mem_init(&mem, NULL);
  s = (e2b__tls_shared *)e2b__mem_alloc(&mem, sizeof *s);
  s->mem = &mem;
  for (i = 0; i < 3 * E2B__TLS_SESSIONS; i++) {
    e2b__tls_session *slot;
    bool once = i % 2 == 1;
    (void)snprintf(host, sizeof host, "h%u", (unsigned)(i / 3));
    slot = e2b__tls_session_slot(s, host, 443, once);
    e2b__tls_session_clear(s, slot);
    slot->host = e2b__mem_dup(&mem, host, strlen(host));
    slot->port = 443;
    slot->once = once;
    slot->stamp = ++s->stamp;
    CHECK(e2b__tls_session_find(s, host, 443) == slot);
    CHECK(e2b__tls_session_find(s, host, 444) == NULL);
  }
  for (i = 0; i < E2B__TLS_SESSIONS; i++) used += s->sessions[i].host != NULL;
  CHECK_INT(used, E2B__TLS_SESSIONS);
  for (i = 0; i < E2B__TLS_SESSIONS; i++) e2b__tls_session_clear(s, &s->sessions[i]);
  e2b__mem_free(&mem, s, sizeof *s);
  CHECK_INT(mem.now, 0);
}

/* One connection to a server with that certificate. */
static e2b_err net_certificate(const net_names *names, const char *host, bool trust, bool insecure, e2b_error *err) {
  net_server s;
  net_client c;
  e2b__link l;
  e2b_err rc;
  size_t fds = open_fds();
  net_tls_server_start(&s, NET_ECHO, names, "http/1.1");
  net_client_init(&c, NULL);
  if (trust) net_trust(&c);
  c.net.no_env = true;
  c.net.tls_config.insecure_skip_verify = insecure;
  net_logged[0] = 0;
  rc = net_connect(&c, &l, host, s.port, true, err);
  if (rc == E2B_OK) net_echo(&c, &l, 100, 50);
  if (rc != E2B_OK) CHECK(l.conn == NULL && l.tls == NULL && l.opening == NULL);
  e2b__link_close(&l);
  net_client_free(&c);
  net_tls_server_stop(&s);
  CHECK_INT(open_fds(), fds);
  return rc;
}

static void test_tls_certificates(void) {
  static const uint8_t ip4[4] = { 127, 0, 0, 1 }, other4[4] = { 127, 0, 0, 2 };
  static const net_names wrong = { "CN=other.test", "other.test", NULL, 0, NULL, NULL, false };
  static const net_names wild = { "CN=wild", "*.localhost", NULL, 0, NULL, NULL, false };
  static const net_names expired = { "CN=localhost", "localhost", NULL, 0, "20200101000000", "20210101000000", false };
  static const net_names future = { "CN=localhost", "localhost", NULL, 0, "20490101000000", "20500101000000", false };
  static const net_names ip_ok = { "CN=ip", NULL, ip4, 4, NULL, NULL, false };
  static const net_names ip_wrong = { "CN=ip", NULL, other4, 4, NULL, NULL, false };
  static const net_names ip_as_dns = { "CN=ip", "localhost", NULL, 0, NULL, NULL, false };
  static const net_names self = { "CN=localhost", "localhost", NULL, 0, NULL, NULL, true };
  e2b_error err;
  CHECK_INT(net_certificate(&net_localhost, "localhost", true, false, &err), E2B_OK);
  CHECK_STR(net_logged, "");
  CHECK_INT(net_certificate(&wrong, "localhost", true, false, &err), E2B_ERR_TLS_CERTIFICATE);
  CHECK_HAS(err.message, "localhost:");
  CHECK_HAS(err.message, "it is for another host");
  CHECK_HAS(err.message, "CN=other.test");
  CHECK_INT(err.phase, E2B_PHASE_TLS);
  CHECK(err.tls_code < 0);
  CHECK_INT(net_certificate(&expired, "localhost", true, false, &err), E2B_ERR_TLS_CERTIFICATE);
  CHECK_HAS(err.message, "it has expired");
  CHECK_INT(net_certificate(&future, "localhost", true, false, &err), E2B_ERR_TLS_CERTIFICATE);
  CHECK_HAS(err.message, "not valid yet");
  CHECK_INT(net_certificate(&self, "localhost", true, false, &err), E2B_ERR_TLS_CERTIFICATE);
  CHECK_HAS(err.message, "self-signed or its issuer is unknown");
  CHECK_HAS(err.message, "set tls.ca_file");
  CHECK_INT(net_certificate(&wild, "a.localhost", true, false, &err), E2B_OK);
  CHECK_INT(net_certificate(&wild, "a.b.localhost", true, false, &err), E2B_ERR_TLS_CERTIFICATE);
  CHECK_INT(net_certificate(&wild, "localhost", true, false, &err), E2B_ERR_TLS_CERTIFICATE);
  CHECK_INT(net_certificate(&ip_ok, "127.0.0.1", true, false, &err), E2B_OK);
  CHECK_INT(net_certificate(&ip_wrong, "127.0.0.1", true, false, &err), E2B_ERR_TLS_CERTIFICATE);
  CHECK_HAS(err.message, "it is for another host");
  CHECK_INT(net_certificate(&ip_as_dns, "127.0.0.1", true, false, &err), E2B_ERR_TLS_CERTIFICATE);
  CHECK_INT(net_certificate(&ip_ok, "localhost", true, false, &err), E2B_ERR_TLS_CERTIFICATE);
  CHECK_INT(net_certificate(&expired, "127.0.0.1", true, false, &err), E2B_ERR_TLS_CERTIFICATE);
  CHECK_HAS(err.message, "it is for another host: check the host name; it has expired");
  CHECK_INT(net_certificate(&wrong, "localhost", false, true, &err), E2B_OK);
  CHECK_HAS(net_logged, "NOT verified");
  CHECK_INT(net_certificate(&expired, "127.0.0.1", false, true, &err), E2B_OK);
  CHECK_INT(net_certificate(&self, "localhost", false, true, &err), E2B_OK);
}

/* Address literals are compared as bytes: IPv6 in any spelling. */
static void test_tls_address_names(void) {
  static const uint8_t loopback[16] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 };
  static const net_names names = { "CN=ip", NULL, loopback, 16, NULL, NULL, false };
  mbedtls_x509_crt cert;
  uint8_t der[2048], addr[16];
  size_t len = net_cert_make(&names, der, sizeof der);
  mbedtls_x509_crt_init(&cert);
  CHECK_INT(mbedtls_x509_crt_parse_der(&cert, der, len), 0);
  CHECK_INT(e2b__dns_literal("0:0::0:1", addr), 16);
  CHECK(e2b__tls_names_addr(&cert, addr, 16));
  CHECK(!e2b__tls_names_addr(&cert, addr, 4));
  addr[15] = 2;
  CHECK(!e2b__tls_names_addr(&cert, addr, 16));
  mbedtls_x509_crt_free(&cert);
}

static void test_tls_unknown_ca(void) {
  e2b_error err;
  net_names intruder = net_localhost;
  mbedtls_pk_context ours = net_the_pki->ca_key; /* a second CA of the same name */
  net_server s;
  net_client c;
  e2b__link l;
  net_key_make(&net_the_pki->ca_key);
  net_tls_server_start(&s, NET_ECHO, &intruder, NULL);
  net_client_init(&c, NULL);
  net_trust(&c);
  CHECK_INT(net_connect(&c, &l, "localhost", s.port, true, &err), E2B_ERR_TLS_CERTIFICATE);
  CHECK_HAS(err.message, "issuer is unknown");
  net_client_free(&c);
  net_tls_server_stop(&s);
  mbedtls_pk_free(&net_the_pki->ca_key);
  net_the_pki->ca_key = ours;
}

static e2b_err net_ca(const char *pem, size_t len, const char *file, e2b_error *err) {
  net_server s;
  net_client c;
  e2b__link l;
  e2b_err rc;
  net_tls_server_start(&s, NET_ECHO, &net_localhost, NULL);
  net_client_init(&c, NULL);
  c.net.tls_config.ca_pem = pem;
  c.net.tls_config.ca_pem_len = len;
  c.net.tls_config.ca_file = file;
  rc = net_connect(&c, &l, "localhost", s.port, true, err);
  if (rc == E2B_ERR_TLS) CHECK(c.net.tls == NULL); /* the next one tries again */
  e2b__link_close(&l);
  if (rc == E2B_ERR_TLS) {
    c.net.tls_config.ca_pem_len = 0;
    c.net.tls_config.ca_file = NULL;
    net_trust(&c);
    CHECK_INT(net_connect(&c, &l, "localhost", s.port, true, NULL ? NULL : err + 1), E2B_OK);
    e2b__link_close(&l);
  }
  net_client_free(&c);
  net_tls_server_stop(&s);
  return rc;
}

static void test_tls_ca(void) {
  char bundle[8192], path[] = "/tmp/e2b-test-ca-XXXXXX";
  uint8_t der[2048];
  size_t len = strlen(net_the_pki->ca_pem), der_len = net_cert_make(NULL, der, sizeof der);
  e2b_error err[2];
  int fd;
  CHECK_INT(net_ca(net_the_pki->ca_pem, 0, NULL, err), E2B_OK);
  CHECK_INT(net_ca(net_the_pki->ca_pem, len, NULL, err), E2B_OK);
  CHECK_INT(net_ca(net_the_pki->ca_pem, len + 1, NULL, err), E2B_OK);
  CHECK_INT(net_ca((const char *)der, der_len, NULL, err), E2B_OK);
  CHECK_INT(net_ca("rubbish", 0, NULL, err), E2B_ERR_TLS);
  CHECK_HAS(err[0].message, "tls.ca_pem cannot be used");
  CHECK_INT(err[0].subject, E2B_SUBJECT_OPTION);
  CHECK_INT(net_ca("\x30\x03xyz", 5, NULL, err), E2B_ERR_TLS);
  CHECK_INT(net_ca(NULL, 0, "/nonexistent/ca.pem", err), E2B_ERR_TLS);
  CHECK_HAS(err[0].message, "tls.ca_file /nonexistent/ca.pem cannot be used");
  /* One broken certificate does not spoil the others. */
  (void)snprintf(bundle, sizeof bundle, "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n%s",
                 net_the_pki->ca_pem);
  CHECK_INT(net_ca(bundle, 0, NULL, err), E2B_OK);
  bundle[70] = 0;
  fd = mkstemp(path);
  CHECK(fd >= 0);
  close(fd);
  CHECK_INT(net_ca(NULL, 0, path, err), E2B_ERR_TLS); /* empty */
  fd = open(path, O_WRONLY);
  CHECK(write(fd, net_the_pki->ca_pem, len) == (ssize_t)len);
  close(fd);
  CHECK_INT(net_ca(NULL, 0, path, err), E2B_OK);
  CHECK_INT(net_ca(bundle, 0, path, err), E2B_ERR_TLS); /* both must be usable */
  (void)setenv("SSL_CERT_FILE", path, 1);
  CHECK_INT(net_ca(NULL, 0, NULL, err), E2B_OK);
  CHECK_INT(net_ca("", 0, "", err), E2B_OK);
  (void)setenv("SSL_CERT_FILE", "/nonexistent/env.pem", 1);
  CHECK_INT(net_ca(NULL, 0, NULL, err), E2B_ERR_TLS);
  CHECK_HAS(err[0].message, "SSL_CERT_FILE /nonexistent/env.pem");
  (void)unsetenv("SSL_CERT_FILE");
  (void)unlink(path);
}

/* What servers that do not speak TLS as we want it get to hear. */
static void net_handshake_answer(const char *bytes, size_t len, const char *expect) {
  net_server s;
  net_client c;
  e2b__link l;
  e2b_error err;
  size_t fds = open_fds();
  memset(&s, 0, sizeof s);
  s.say = bytes;
  s.say_len = len;
  net_server_start(&s, NET_SAY);
  net_client_init(&c, NULL);
  net_trust(&c);
  CHECK_INT(net_connect(&c, &l, "localhost", s.port, true, &err), E2B_ERR_TLS);
  CHECK_INT(err.phase, E2B_PHASE_TLS);
  CHECK_HAS(err.message, "TLS handshake failed: ");
  CHECK_HAS(err.message, expect);
  CHECK(err.tls_code != 0);
  net_client_free(&c);
  net_server_stop(&s);
  CHECK_INT(open_fds(), fds);
}

static void test_tls_not_tls(void) {
  static const char http[] = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
  /* A ServerHello of TLS 1.0. */
  static const char tls10[] = "\x16\x03\x01\x00\x2a\x02\x00\x00\x26\x03\x01"
                              "0123456789abcdef0123456789abcdef"
                              "\x00\xc0\x2f\x00";
  net_handshake_answer(http, sizeof http - 1, "answers in plain HTTP");
  net_handshake_answer("SSH-2.0-OpenSSH_9.2\r\n", 21, "does not speak TLS: it sent \"SSH-2");
  net_handshake_answer("no", 2, "does not speak TLS: it sent \"no\"");
  net_handshake_answer("", 0, "closed the connection");
  net_handshake_answer("\x16\x03\x03", 3, "closed the connection");
  net_handshake_answer("\x15\x03\x03\x00\x02\x02\x28", 7, "shares no cipher with this client (alert 40)");
  net_handshake_answer("\x15\x03\x01\x00\x02\x02\x46", 7, "no TLS version in common");
  net_handshake_answer("\x15\x03\x03\x00\x02\x02\x70", 7, "does not know this host name");
  net_handshake_answer("\x15\x03\x03\x00\x02\x02\x7b", 7, "refused the handshake (alert 123)");
  net_handshake_answer(tls10, sizeof tls10 - 1, "no TLS version in common");
}

static void test_tls_alpn_mismatch(void) {
  net_server s;
  net_client c;
  e2b__link l;
  e2b_error err;
  net_tls_server_start(&s, NET_ECHO, &net_localhost, "h2");
  net_client_init(&c, NULL);
  net_trust(&c);
  CHECK_INT(net_connect(&c, &l, "localhost", s.port, true, &err), E2B_ERR_TLS);
  CHECK_HAS(err.message, "none of the offered protocols (ALPN)");
  net_client_free(&c);
  net_client_init(&c, NULL);
  net_trust(&c);
  c.net.alpn[0] = "h2";
  c.net.alpn[1] = "http/1.1";
  CHECK_INT(net_connect(&c, &l, "localhost", s.port, true, &err), E2B_OK);
  CHECK_STR(l.alpn, "h2");
  e2b__link_close(&l);
  net_client_free(&c);
  net_tls_server_stop(&s);
}

#if defined(MBEDTLS_SSL_PROTO_TLS1)
static void test_tls_old_server(void) {
  net_server s;
  net_client c;
  e2b__link l;
  e2b_error err;
  net_tls_server_start(&s, NET_ECHO, &net_localhost, NULL);
  net_server_stop(&s);
  mbedtls_ssl_conf_max_version(&s.conf, MBEDTLS_SSL_MAJOR_VERSION_3, MBEDTLS_SSL_MINOR_VERSION_1);
  s.stop = 0;
  net_server_start(&s, NET_ECHO);
  net_client_init(&c, NULL);
  net_trust(&c);
  CHECK_INT(net_connect(&c, &l, "localhost", s.port, true, &err), E2B_ERR_TLS);
  net_client_free(&c);
  net_tls_server_stop(&s);
}
#endif

static void test_tls_eof(void) {
  net_mode mode;
  for (mode = NET_HELLO_CLEAN; mode <= NET_RESET; mode = (net_mode)(mode + 1)) {
    net_server s;
    net_client c;
    e2b__link l;
    e2b_error err;
    char buf[16];
    int n, i;
    net_tls_server_start(&s, mode, &net_localhost, NULL);
    net_client_init(&c, NULL);
    net_trust(&c);
    CHECK_INT(net_connect(&c, &l, "localhost", s.port, true, &err), E2B_OK);
    if (mode == NET_RESET) {
      CHECK_INT(e2b__link_write(&l, "x", 1, &err), 1);
      sleep_ms(100);
      for (i = 0; i < 100 && (n = e2b__link_read(&l, buf, sizeof buf, &err)) == E2B_IO_AGAIN; i++)
        net_wait(&c, &l, true, false, 50);
      CHECK_INT(n, E2B_ERR_CLOSED);
      CHECK_INT(err.sys_code, ECONNRESET);
      CHECK_INT(e2b__link_read(&l, buf, sizeof buf, &err), E2B_ERR_CLOSED); /* and it stays so */
      CHECK_INT(e2b__link_write(&l, buf, 1, &err), E2B_ERR_CLOSED);
    } else {
      for (i = 0; i < 100 && (n = e2b__link_read(&l, buf, sizeof buf, &err)) == E2B_IO_AGAIN; i++)
        net_wait(&c, &l, true, false, 50);
      CHECK_INT(n, 5);
      for (i = 0; i < 100 && (n = e2b__link_read(&l, buf, sizeof buf, &err)) == E2B_IO_AGAIN; i++)
        net_wait(&c, &l, true, false, 50);
      CHECK_INT(n, E2B_IO_EOF);
      CHECK_INT(l.unclean_eof, mode == NET_HELLO_CUT);
    }
    CHECK(!e2b__link_alive(&l));
    e2b__link_close(&l);
    net_client_free(&c);
    net_tls_server_stop(&s);
  }
}

/* Tickets that arrive while nobody reads are no reason to drop an idle connection. */
static void test_tls_idle_tickets(void) {
  net_server s;
  net_client c;
  e2b__link l;
  e2b_error err;
  net_tls_server_start(&s, NET_TICKETS_ONLY, &net_localhost, NULL);
  net_client_init(&c, NULL);
  net_trust(&c);
  CHECK_INT(net_connect(&c, &l, "localhost", s.port, true, &err), E2B_OK);
  sleep_ms(50);
  CHECK(e2b__link_alive(&l));
  CHECK(e2b__link_alive(&l));
  CHECK(e2b__tls_session_find(c.net.tls, "localhost", s.port) != NULL);
  e2b__link_close(&l);
  net_client_free(&c);
  net_tls_server_stop(&s);
}

/* The sockets, made worse: one byte at a time with E2B_IO_AGAIN before each, and an end after so many bytes. */
typedef struct net_drip {
  bool one;
  int rx_turn, tx_turn;
  size_t rx_left, tx_left; /* until it fails */
  int failure;
} net_drip;

static int net_drip_open(void *user, const e2b_endpoint *to, void **conn) {
  E2B__UNUSED(user);
  return e2b__sock_open(NULL, to, conn);
}

static int net_drip_ready(void *user, void *conn) {
  E2B__UNUSED(user);
  return e2b__sock_ready(NULL, conn);
}

static int net_drip_rx(void *user, void *conn, void *buf, size_t cap) {
  net_drip *d = (net_drip *)user;
  int n;
  if (d->one && ++d->rx_turn % 2) return E2B_IO_AGAIN;
  if (!d->rx_left) return d->failure;
  n = e2b__sock_rx(NULL, conn, buf, d->one ? 1 : E2B__MIN(cap, d->rx_left));
  if (n > 0) d->rx_left -= (size_t)n;
  return n;
}

static int net_drip_tx(void *user, void *conn, const void *buf, size_t len) {
  net_drip *d = (net_drip *)user;
  int n;
  if (d->one && ++d->tx_turn % 2) return E2B_IO_AGAIN;
  if (!d->tx_left) return d->failure == E2B_IO_EOF ? -EPIPE : d->failure;
  n = e2b__sock_tx(NULL, conn, buf, d->one ? 1 : E2B__MIN(len, d->tx_left));
  if (n > 0) d->tx_left -= (size_t)n;
  return n;
}

static void net_drip_shut(void *user, void *conn) {
  E2B__UNUSED(user);
  e2b__sock_shut(NULL, conn);
}

static intptr_t net_drip_fd(void *user, void *conn) {
  E2B__UNUSED(user);
  return e2b__sock_fd(NULL, conn);
}

static e2b_transport net_drip_transport(net_drip *d) {
  e2b_transport t = { net_drip_open, net_drip_ready, net_drip_rx, net_drip_tx, net_drip_shut,
                      net_drip_fd,   NULL,           NULL,        NULL,        0 };
  memset(d, 0, sizeof *d);
  d->rx_left = d->tx_left = SIZE_MAX;
  t.user = d;
  return t;
}

static void test_tls_one_byte(void) {
  net_drip d;
  e2b_transport t = net_drip_transport(&d);
  net_server s;
  net_client c;
  e2b__link l;
  e2b_error err;
  int round;
  d.one = true;
  net_tls_server_start(&s, NET_ECHO, &net_localhost, NULL);
  net_client_init(&c, &t);
  net_trust(&c);
  for (round = 0; round < 2; round++) { /* the second one resumed */
    CHECK_INT(net_connect(&c, &l, "localhost", s.port, true, &err), E2B_OK);
    net_echo(&c, &l, 20000, 700);
    e2b__link_close(&l);
  }
  net_tls_server_stop(&s);
  net_client_free(&c);
}

/* A handshake cut off after every byte, by error and by end, in either direction. */
static void test_tls_cut(void) {
  net_drip d;
  e2b_transport t = net_drip_transport(&d);
  net_server s;
  size_t cut, fds = open_fds();
  int way;
  net_tls_server_start(&s, NET_ECHO, &net_localhost, NULL);
  for (way = 0; way < 4; way++) {
    for (cut = 0; cut < 3000; cut += cut < 20 ? 1 : 97) {
      net_client c;
      e2b__link l;
      e2b_error err;
      e2b_err rc;
      bool done;
      net_client_init(&c, &t);
      net_trust(&c);
      d.rx_left = way & 1 ? cut : SIZE_MAX;
      d.tx_left = way & 1 ? SIZE_MAX : cut;
      d.failure = way & 2 ? -77 : E2B_IO_EOF;
      rc = net_connect(&c, &l, "localhost", s.port, true, &err);
      CHECK(rc == E2B_OK || rc == E2B_ERR_TLS);
      if (rc == E2B_ERR_TLS && (way & 2)) CHECK_INT(err.sys_code, -77);
      if (rc == E2B_ERR_TLS) CHECK(l.conn == NULL);
      done = rc == E2B_OK;
      e2b__link_close(&l);
      net_client_free(&c);
      if (done) break;
    }
    CHECK(cut > 200);
  }
  net_tls_server_stop(&s);
  CHECK_INT(open_fds(), fds);
}

static void test_tls_no_memory(void) {
  net_server s;
  size_t fail_at, fds = open_fds();
  bool done = false;
  net_tls_server_start(&s, NET_ECHO, &net_localhost, NULL);
  for (fail_at = 1; fail_at < 100 && !done; fail_at++) {
    net_client c;
    e2b__link l;
    e2b_error err;
    e2b_err rc = E2B_OK;
    int round;
    net_client_init(&c, NULL);
    net_trust(&c);
    c.heap.fail_at = fail_at;
    for (round = 0; round < 2; round++) {
      rc = net_connect(&c, &l, "localhost", s.port, true, &err);
      CHECK(rc == E2B_OK || (rc == E2B_ERR_NO_MEMORY && err.code == rc));
      CHECK(rc == E2B_OK || l.opening == NULL);
      if (rc == E2B_OK) net_echo(&c, &l, 100, 100);
      e2b__link_close(&l);
    }
    CHECK_INT(rc, fail_at <= c.heap.calls ? rc : E2B_OK);
    done = fail_at > c.heap.calls;
    net_client_free(&c);
  }
  CHECK(done);
  net_tls_server_stop(&s);
  CHECK_INT(open_fds(), fds);
  for (fail_at = 1, done = false; fail_at < 20 && !done; fail_at++) {
    int code = -1;
    e2b__waker *w;
    e2b__dns_slot slots[E2B__DNS_SLOTS];
    e2b__dns *d = NULL;
    e2b_err rc;
    memset(slots, 0, sizeof slots);
    malloc_calls = 0;
    malloc_fail_at = fail_at;
    w = e2b__waker_new(&code);
    if (!w) {
      CHECK_INT(code, 0);
      continue;
    }
    rc = e2b__dns_get(slots, w, fail_at == 2 ? "localhost" : "a.invalid", 0, &d);
    CHECK(rc == E2B_OK || (rc == E2B_ERR_NO_MEMORY && d == NULL));
    done = malloc_calls < fail_at;
    e2b__dns_release(d);
    e2b__dns_slot_clear(&slots[0]);
    e2b__waker_release(w);
  }
  malloc_fail_at = 0;
  CHECK(done);
}

static void net_on_alarm(int signal_number) {
  E2B__UNUSED(signal_number);
}

static void test_tls_signals(void) {
  struct sigaction action, before;
  struct itimerval storm, calm;
  net_server s;
  net_client c;
  e2b__link l;
  e2b_error err;
  memset(&action, 0, sizeof action);
  action.sa_handler = net_on_alarm;
  CHECK_INT(sigaction(SIGALRM, &action, &before), 0);
  memset(&storm, 0, sizeof storm);
  memset(&calm, 0, sizeof calm);
  storm.it_interval.tv_usec = storm.it_value.tv_usec = 300;
  net_tls_server_start(&s, NET_ECHO, &net_localhost, NULL);
  net_client_init(&c, NULL);
  net_trust(&c);
  (void)setitimer(ITIMER_REAL, &storm, NULL);
  CHECK_INT(net_connect(&c, &l, "localhost", s.port, true, &err), E2B_OK);
  net_echo(&c, &l, 1u << 20, 20000);
  (void)setitimer(ITIMER_REAL, &calm, NULL);
  e2b__link_close(&l);
  net_client_free(&c);
  net_tls_server_stop(&s);
  CHECK_INT(sigaction(SIGALRM, &before, NULL), 0);
}

/* ================================================================================================================== */
/* >>>> client and sandbox */
/* ================================================================================================================== */

#define SB_HANG "hang" /* no answer */
#define SB_DROP "drop" /* the connection is closed instead */

static void sb_say(peer *s, const char *answer, bool last) {
  bool drop = strcmp(answer, SB_DROP) == 0, hang = strcmp(answer, SB_HANG) == 0;
  peer_say(s, drop || hang ? "" : answer,
           (hang ? PEER_HANG : 0) | (drop || strstr(answer, "connection: close") ? PEER_CLOSE : 0) | (last ? PEER_REPEAT : 0));
}

/* Forgets what was before, and answers with these, the last one for ever. */
static void sb_script(peer *s, const char *first, const char *second) {
  peer_clear(s);
  sb_say(s, first, !second);
  if (second) sb_say(s, second, true);
}

/* One answer; good until the 16th next. */
static const char *sb_answer(int status, const char *headers, const char *body) {
  static char texts[16][8192];
  static unsigned at;
  char *text = texts[at++ % 16];
  (void)snprintf(text, sizeof texts[0], "HTTP/1.1 %d X\r\n%scontent-length: %u\r\n\r\n%s", status, headers,
                 (unsigned)strlen(body), body);
  return text;
}

static const char *sb_json(int status, const char *body) {
  return sb_answer(status, "content-type: application/json\r\nX-Request-ID: req-1\r\n", body);
}

/* Compares a recorded request with `expected`, in which %P stands for the port; the nonce counts as 32 n. */
static void sb_check_request(int line, peer *s, int index, const char *expected) {
  char want[8192], *nonce;
  const char *have = index < s->request_count ? s->requests[index] : "(no such request)", *at;
  size_t len = 0;
  for (at = expected; *at; at++) {
    if (at[0] == '%' && at[1] == 'P') {
      len += (size_t)snprintf(want + len, sizeof want - len, "%u", (unsigned)s->port);
      at++;
    } else {
      want[len++] = *at;
    }
  }
  want[len] = 0;
  nonce = index < s->request_count ? strstr(s->requests[index], "e2b.h/nonce\":\"") : NULL;
  if (nonce && strspn(nonce + 14, "0123456789abcdef") == 32) memset(nonce + 14, 'n', 32);
  if (strcmp(have, want) != 0) printf("%s:%d:\n--- have\n%s\n--- want\n%s\n", __FILE__, line, have, want);
  CHECK(strcmp(have, want) == 0);
}
#define SB_CHECK_REQUEST(s, index, expected) sb_check_request(__LINE__, s, index, expected)

#define SB_NONCE "\"e2b.h/nonce\":\"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\""
#define SB_COMMON                                                                                                      \
  "host: 127.0.0.1:%P\r\nuser-agent: e2b.h/" E2B_VERSION "\r\naccept: application/json\r\naccept-encoding: identity\r\n"
#define SB_HEAD SB_COMMON "x-api-key: secret-key\r\n"
#define SB_BODY(len) "content-type: application/json\r\ncontent-length: " len "\r\n\r\n"

typedef struct sb_world {
  peer server;
  test_heap heap;
  e2b_client_config config;
  char api_url[64], sandbox_url[64];
  e2b_client *client;
  e2b_error err;
} sb_world;

/* A server and a client of it; what is set in `config` stays. */
static void sb_open(sb_world *w, const e2b_client_config *config) {
  memset(w, 0, sizeof *w);
  peer_start(&w->server);
  sb_say(&w->server, sb_answer(204, "", ""), true);
  if (config) w->config = *config;
  w->config.allocator = heap_allocator(&w->heap);
  w->config.no_env = true;
  if (!w->config.api_key) w->config.api_key = "secret-key";
  (void)snprintf(w->api_url, sizeof w->api_url, "http://127.0.0.1:%u", (unsigned)w->server.port);
  (void)snprintf(w->sandbox_url, sizeof w->sandbox_url, "http://127.0.0.1:%u/envd/", (unsigned)w->server.port);
  w->config.api_url = w->api_url;
  if (!w->config.sandbox_base_url) w->config.sandbox_url = w->sandbox_url;
  w->client = e2b_client_create(&w->config, &w->err);
  CHECK(w->client != NULL);
}

static void sb_close(sb_world *w) {
  e2b_client_free(w->client);
  HEAP_CHECK_EMPTY(&w->heap);
  peer_stop(&w->server);
}

static e2b_sandbox *sb_attach(sb_world *w, const char *id) {
  e2b_attach_opts opts;
  e2b_sandbox *sandbox = NULL;
  memset(&opts, 0, sizeof opts);
  opts.access_token = "envd-token";
  CHECK_INT(e2b_sandbox_attach(w->client, id, &opts, &sandbox, &w->err), E2B_OK);
  return sandbox;
}

#define SB_CREATED                                                                                                     \
  "{\"sandboxID\":\"sb1\",\"templateID\":\"tpl\",\"clientID\":\"6532622b\",\"envdVersion\":\"0.2.10\",\"alias\":\"\"," \
  "\"envdAccessToken\":\"envd-secret\",\"trafficAccessToken\":\"traffic-secret\",\"domain\":null," \
  "\"extra\":{\"a\":[1]}}\n"

/* ------------------------------------------------------------------------------------------------------------------ */
/* client */
/* ------------------------------------------------------------------------------------------------------------------ */

static void test_sandbox_names(void) {
  int code;
  CHECK_STR(e2b_err_name(E2B_OK), "E2B_OK");
  CHECK_STR(e2b_err_name(E2B_ERR_NOT_FOUND), "E2B_ERR_NOT_FOUND");
  CHECK_STR(e2b_err_name((e2b_err)-999), "unknown");
  for (code = -100; code < 10; code++) CHECK(e2b_err_name((e2b_err)code) != NULL);
  CHECK_STR(e2b_phase_name(E2B_PHASE_NONE), "none");
  CHECK_STR(e2b_phase_name(E2B_PHASE_HEADERS), "headers");
  CHECK_STR(e2b_phase_name(E2B_PHASE_DECODE), "decode");
  CHECK_STR(e2b_phase_name((e2b_phase)99), "unknown");
}

static const char *const sb_variables[] = { "E2B_API_KEY", "X_API_KEY",   "X_ACCESS_TOKEN",  "E2B_DOMAIN", "SCHEME",
                                            "PROTOCOL",    "E2B_API_URL", "E2B_SANDBOX_URL", "E2B_DEBUG" };

/* Sets "NAME=value NAME=value" and nothing else. */
static void sb_environment(const char *text) {
  char name[64], value[200];
  size_t i;
  int used;
  for (i = 0; i < E2B__COUNT(sb_variables); i++) unsetenv(sb_variables[i]);
  while (text && sscanf(text, " %63[^=]=%n", name, &used) == 1) {
    text += used;
    used = 0;
    value[0] = 0;
    if (sscanf(text, "%199[^ ]%n", value, &used) == 1) text += used;
    setenv(name, value, 1);
  }
}

static e2b_client *sb_client(const e2b_client_config *config, const char *env) {
  e2b_error err;
  e2b_client *client;
  sb_environment(env);
  client = e2b_client_create(config, &err);
  if (!client) printf("%s\n", err.message);
  CHECK(client != NULL);
  sb_environment(NULL);
  return client;
}

static const char *sb_or_null(const char *text) {
  return text ? text : "(null)";
}

static void test_client_defaults(void) {
  e2b_client *client = sb_client(NULL, NULL);
  const e2b_client_config *c = &client->config;
  e2b_client_stats stats;
  char url[100];
  CHECK(c->api_key == NULL && c->access_token == NULL && c->default_user == NULL && c->sandbox_url == NULL &&
        !c->debug);
  CHECK_STR(c->domain, "e2b.app");
  CHECK_STR(c->scheme, "https");
  CHECK_INT(c->protocol, E2B_PROTOCOL_NATIVE);
  CHECK_STR(c->api_url, "https://api.e2b.app");
  CHECK_STR(c->user_agent, "e2b.h/" E2B_VERSION);
  CHECK_INT(c->runtime_port, 49983);
  CHECK_INT(c->request_timeout_ms, 60000);
  CHECK_INT(c->connect_timeout_ms, 10000);
  CHECK_INT(c->idle_ms, 60000);
  CHECK_INT(c->keepalive_interval_s, 50);
  CHECK_INT(c->max_ops, 65536);
  CHECK_INT(c->max_connections, 1024);
  CHECK_INT(c->max_connections_per_host, 1024);
  CHECK_INT(c->max_idle_connections, 64);
  CHECK_INT(c->idle_connection_ms, 60000);
  CHECK_INT(c->io_buffer_size, 16384);
  CHECK_INT(c->max_header_bytes, 65536);
  CHECK_INT(c->max_message_bytes, 16 << 20);
  CHECK_INT(c->max_result_bytes, 64 << 20);
  CHECK_INT(c->stream_buffer_size, 65536);
  CHECK_INT(e2b_client_api_url(client, url, sizeof url), 19);
  CHECK_STR(url, "https://api.e2b.app");
  CHECK_INT(e2b_client_api_url(client, url, 6), 19);
  CHECK_STR(url, "https");
  CHECK_INT(e2b_client_api_url(client, NULL, 0), 19);
  CHECK_INT(e2b_client_sandbox_url(client, "abc", url, sizeof url), 23);
  CHECK_STR(url, "https://sandbox.e2b.app");
  CHECK_INT(e2b_client_sandbox_url(client, "abc", url, 1), 23);
  CHECK_STR(url, "");
  CHECK_INT(e2b_client_sandbox_url(client, "", url, sizeof url), 0);
  CHECK_INT(e2b_client_sandbox_url(client, NULL, url, sizeof url), 0);
  e2b_client_get_stats(client, &stats);
  CHECK(stats.mem_now > 16384 && stats.mem_peak >= stats.mem_now && stats.allocs > 3);
  CHECK_INT(stats.ops_active + stats.connections_open + stats.streams_open, 0);
  e2b_client_get_stats(client, NULL);
  e2b_client_free(client);
  e2b_client_free(NULL);
}

/* Every row of the precedence: member, environment, its older name, default. Empty is as good as none. */
static void test_client_precedence(void) {
  static const struct {
    const char *member, *env, *expected;
  } keys[] = {
    { "m", "E2B_API_KEY=e X_API_KEY=x", "m" },
    { NULL, "E2B_API_KEY=e X_API_KEY=x", "e" },
    { "", "E2B_API_KEY= X_API_KEY=x", "x" },
    { NULL, "X_API_KEY=x", "x" },
    { NULL, "E2B_API_KEY= X_API_KEY=", "(null)" },
  }, tokens[] = {
    { "m", "X_ACCESS_TOKEN=e", "m" },
    { NULL, "X_ACCESS_TOKEN=e", "e" },
    { "", "X_ACCESS_TOKEN=", "(null)" },
  }, domains[] = {
    { "m.com", "E2B_DOMAIN=e.com", "m.com" },
    { NULL, "E2B_DOMAIN=e.com:8080", "e.com:8080" },
    { "", "E2B_DOMAIN=", "e2b.app" },
  }, schemes[] = {
    { "http", "SCHEME=https", "http" },
    { "https", "SCHEME=http", "https" },
    { NULL, "SCHEME=http", "http" },
    { "", "SCHEME=", "https" },
  }, api_urls[] = {
    { "http://m/x/", "E2B_API_URL=http://e", "http://m/x" },
    { NULL, "E2B_API_URL=http://e/y//", "http://e/y" },
    { "", "E2B_API_URL= E2B_DOMAIN=d.com", "https://api.d.com" },
    { NULL, "E2B_API_URL=http://e E2B_DOMAIN=d.com", "http://e" },
    { NULL, "PROTOCOL=private SCHEME=http E2B_DOMAIN=d.com", "http://d.com/kruise/api" },
    { "http://m", "PROTOCOL=private E2B_DOMAIN=d.com", "http://m" },
  }, sandbox_urls[] = {
    { "http://m/x/", "E2B_SANDBOX_URL=http://e", "http://m/x" },
    { NULL, "E2B_SANDBOX_URL=http://e/", "http://e" },
    { "", "E2B_SANDBOX_URL=", "https://sandbox.e2b.app" },
  };
  size_t i;
#define SB_ROWS(rows, member_name, actual)                                                                             \
  for (i = 0; i < E2B__COUNT(rows); i++) {                                                                             \
    e2b_client_config config;                                                                                          \
    e2b_client *client;                                                                                                \
    memset(&config, 0, sizeof config);                                                                                 \
    config.member_name = rows[i].member;                                                                               \
    client = sb_client(&config, rows[i].env);                                                                          \
    CHECK_STR(sb_or_null(actual), rows[i].expected);                                                                   \
    e2b_client_free(client);                                                                                           \
  }
  char url[100];
  SB_ROWS(keys, api_key, client->config.api_key)
  SB_ROWS(tokens, access_token, client->config.access_token)
  SB_ROWS(domains, domain, client->config.domain)
  SB_ROWS(schemes, scheme, client->config.scheme)
  SB_ROWS(api_urls, api_url, client->config.api_url)
  SB_ROWS(sandbox_urls, sandbox_url, (e2b_client_sandbox_url(client, "id", url, sizeof url), url))
#undef SB_ROWS
}

static void test_client_environment(void) {
  static const struct {
    e2b_protocol member;
    const char *env;
    e2b_protocol expected;
  } protocols[] = {
    { E2B_PROTOCOL_DEFAULT, "PROTOCOL=private", E2B_PROTOCOL_PRIVATE },
    { E2B_PROTOCOL_DEFAULT, "PROTOCOL=Private", E2B_PROTOCOL_NATIVE },
    { E2B_PROTOCOL_DEFAULT, "PROTOCOL=native", E2B_PROTOCOL_NATIVE },
    { E2B_PROTOCOL_DEFAULT, "PROTOCOL=", E2B_PROTOCOL_NATIVE },
    { E2B_PROTOCOL_NATIVE, "PROTOCOL=private", E2B_PROTOCOL_NATIVE },
    { E2B_PROTOCOL_PRIVATE, "PROTOCOL=native", E2B_PROTOCOL_PRIVATE },
  };
  static const struct {
    bool member;
    const char *env;
    bool expected;
  } debugs[] = {
    { false, "E2B_DEBUG=true", true }, { false, "E2B_DEBUG=TRUE", true }, { false, "E2B_DEBUG=1", false },
    { false, "E2B_DEBUG=yes", false }, { false, "E2B_DEBUG=", false },    { true, "E2B_DEBUG=false", true },
  };
  static const char all[] =
      "E2B_API_KEY=k X_ACCESS_TOKEN=t E2B_DOMAIN=d.com SCHEME=http PROTOCOL=private E2B_API_URL=http://u "
      "E2B_SANDBOX_URL=http://s E2B_DEBUG=true";
  e2b_client_config config;
  e2b_client *client;
  size_t i;
  memset(&config, 0, sizeof config);
  for (i = 0; i < E2B__COUNT(protocols); i++) {
    config.protocol = protocols[i].member;
    client = sb_client(&config, protocols[i].env);
    CHECK_INT(client->config.protocol, protocols[i].expected);
    e2b_client_free(client);
  }
  memset(&config, 0, sizeof config);
  for (i = 0; i < E2B__COUNT(debugs); i++) {
    config.debug = debugs[i].member;
    client = sb_client(&config, debugs[i].env);
    CHECK_INT(client->config.debug, debugs[i].expected);
    e2b_client_free(client);
  }
  memset(&config, 0, sizeof config);
  config.no_env = true;
  client = sb_client(&config, all);
  CHECK(!client->config.api_key && !client->config.access_token && !client->config.sandbox_url &&
        !client->config.debug);
  CHECK_STR(client->config.api_url, "https://api.e2b.app");
  e2b_client_free(client);
  /* a service that members name is not redirected by URLs of the environment */
  memset(&config, 0, sizeof config);
  config.domain = "m.com";
  client = sb_client(&config, "E2B_API_URL=http://u E2B_SANDBOX_URL=http://s");
  CHECK_STR(client->config.api_url, "https://api.m.com");
  CHECK(client->config.sandbox_url == NULL);
  e2b_client_free(client);
  memset(&config, 0, sizeof config);
  config.protocol = E2B_PROTOCOL_PRIVATE;
  client = sb_client(&config, "E2B_API_URL=http://u E2B_SANDBOX_URL=http://s");
  CHECK_STR(client->config.api_url, "https://e2b.app/kruise/api");
  e2b_client_free(client);
}

static void test_client_urls(void) {
  static const struct {
    e2b_protocol protocol;
    const char *scheme, *domain, *api_url, *base_url, *sandbox_url, *id, *api, *runtime, *host;
  } rows[] = {
    { E2B_PROTOCOL_NATIVE, NULL, NULL, NULL, NULL, NULL, "id1", "https://api.e2b.app", "https://sandbox.e2b.app",
      "3000-id1.e2b.app" },
    { E2B_PROTOCOL_NATIVE, NULL, "E2B.dev", NULL, NULL, NULL, "id1", "https://api.E2B.dev", "https://sandbox.E2B.dev",
      "3000-id1.E2B.dev" },
    { E2B_PROTOCOL_NATIVE, NULL, "e2b.pro", NULL, NULL, NULL, "id1", "https://api.e2b.pro", "https://sandbox.e2b.pro",
      "3000-id1.e2b.pro" },
    { E2B_PROTOCOL_NATIVE, NULL, "e2b-staging.dev", NULL, NULL, NULL, "id1", "https://api.e2b-staging.dev",
      "https://sandbox.e2b-staging.dev", "3000-id1.e2b-staging.dev" },
    { E2B_PROTOCOL_NATIVE, NULL, "eu.e2b.app", NULL, NULL, NULL, "id1", "https://api.eu.e2b.app",
      "https://49983-id1.eu.e2b.app", "3000-id1.eu.e2b.app" },
    { E2B_PROTOCOL_NATIVE, "http", "my.corp:8080", NULL, NULL, NULL, "ns--n", "http://api.my.corp:8080",
      "http://49983-ns--n.my.corp:8080", "3000-ns--n.my.corp:8080" },
    { E2B_PROTOCOL_PRIVATE, "http", "my.corp:8080", NULL, NULL, NULL, "a/b \xc3\xbc", "http://my.corp:8080/kruise/api",
      "http://my.corp:8080/kruise/a%2Fb%20%C3%BC/49983", "my.corp:8080/kruise/a%2Fb%20%C3%BC/3000" },
    { E2B_PROTOCOL_PRIVATE, NULL, "[::1]:443", NULL, NULL, NULL, "i", "https://[::1]:443/kruise/api",
      "https://[::1]:443/kruise/i/49983", "[::1]:443/kruise/i/3000" },
    { E2B_PROTOCOL_PRIVATE, NULL, "e2b.app", NULL, NULL, NULL, "i", "https://e2b.app/kruise/api",
      "https://e2b.app/kruise/i/49983", "e2b.app/kruise/i/3000" },
    { E2B_PROTOCOL_NATIVE, NULL, "d.com", "http://127.0.0.1:1/p/", "http://127.0.0.1:2/sb/", NULL, "a%b",
      "http://127.0.0.1:1/p", "http://127.0.0.1:2/sb/a%25b", "127.0.0.1:2/sb/a%25b" },
    { E2B_PROTOCOL_NATIVE, NULL, "d.com", NULL, "http://base", "http://one", "i", "https://api.d.com", "http://base/i",
      "base/i" },
    { E2B_PROTOCOL_NATIVE, NULL, "d.com", NULL, NULL, "http://one/x", "i", "https://api.d.com", "http://one/x",
      "3000-i.d.com" },
    { E2B_PROTOCOL_NATIVE, NULL, "127.0.0.1:1", "http://127.0.0.1:1", NULL, "http://127.0.0.1:1", "i",
      "http://127.0.0.1:1", "http://127.0.0.1:1", "3000-i.127.0.0.1:1" },
  };
  char text[200];
  size_t i;
  for (i = 0; i < E2B__COUNT(rows); i++) {
    e2b_client_config config;
    e2b_client *client;
    e2b_sandbox *sandbox = NULL;
    memset(&config, 0, sizeof config);
    config.protocol = rows[i].protocol;
    config.scheme = rows[i].scheme;
    config.domain = rows[i].domain;
    config.api_url = rows[i].api_url;
    config.sandbox_base_url = rows[i].base_url;
    config.sandbox_url = rows[i].sandbox_url;
    client = sb_client(&config, NULL);
    CHECK_INT(e2b_client_api_url(client, text, sizeof text), strlen(rows[i].api));
    CHECK_STR(text, rows[i].api);
    CHECK_INT(e2b_client_sandbox_url(client, rows[i].id, text, sizeof text), strlen(rows[i].runtime));
    CHECK_STR(text, rows[i].runtime);
    if (!strchr(rows[i].id, ' ')) { /* not for a header */
      CHECK_INT(e2b_sandbox_attach(client, rows[i].id, NULL, &sandbox, NULL), E2B_OK);
      CHECK_STR(e2b_sandbox_runtime_url(sandbox), rows[i].runtime);
      CHECK_INT(e2b_sandbox_host(sandbox, 3000, text, sizeof text), strlen(rows[i].host));
      CHECK_STR(text, rows[i].host);
      CHECK_INT(e2b_sandbox_host(sandbox, 3000, text, 4), strlen(rows[i].host));
      CHECK_INT(strlen(text), 3);
      CHECK_INT(e2b_sandbox_host(sandbox, 3000, NULL, 0), strlen(rows[i].host));
    }
    e2b_client_free(client);
  }
}

static void sb_refused(const e2b_client_config *config, const char *name) {
  e2b_error err;
  CHECK(e2b_client_create(config, &err) == NULL);
  CHECK_INT(err.code, E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(err.subject, E2B_SUBJECT_OPTION);
  CHECK_INT(err.phase, E2B_PHASE_NONE);
  CHECK_HAS(err.message, name);
  CHECK(e2b_client_create(config, NULL) == NULL);
}

static void test_client_refuses(void) {
  static const e2b_kv bad_headers[][1] = {
    { { "", "x" } },
    { { NULL, "x" } },
    { { "a b", "x" } },
    { { "x", "a\r\nb: c" } },
    { { "x", "\xc3" } },
    { { "Host", "x" } },
    { { "content-length", "1" } },
    { { "Connection", "close" } },
    { { "Transfer-Encoding", "chunked" } },
    { { "a:", "b" } },
    { { "x\n", "b" } },
  };
  static const char *const bad_urls[] = { "api.e2b.app", "ftp://x",     "http://",   "http://u:p@h",
                                          "http://h?q",  "http://h/ x", "http://h:0" };
  static const char *const bad_domains[] = { "https://e2b.app", "e2b.app/", "a b",  "h:0",
                                             "h:99999",         "u@h",      "[::1", "a..b",
                                             "\xc3\xbc.de" };
  e2b_client_config zero, c;
  e2b_transport transport;
  size_t i;
  memset(&zero, 0, sizeof zero);
  zero.no_env = true;
#define SB_REFUSED(member, value) (c = zero, c.member = (value), sb_refused(&c, #member))
  SB_REFUSED(api_key, "a\nb");
  SB_REFUSED(api_key, "a\r");
  SB_REFUSED(api_key, "\xc3\xa9");
  SB_REFUSED(access_token, "a\x01");
  SB_REFUSED(user_agent, "a\nb");
  SB_REFUSED(default_user, "a:b");
  SB_REFUSED(default_user, "a\n");
  SB_REFUSED(scheme, "HTTP");
  SB_REFUSED(scheme, "ftp");
  SB_REFUSED(protocol, (e2b_protocol)7);
  SB_REFUSED(domain, "127.0.0.1:80");
  SB_REFUSED(domain, "[::1]");
  SB_REFUSED(request_timeout_ms, -2);
  SB_REFUSED(idle_ms, -5);
  SB_REFUSED(connect_timeout_ms, -1);
  SB_REFUSED(keepalive_interval_s, -1);
  SB_REFUSED(keepalive_interval_s, 3601);
  SB_REFUSED(max_ops, 65537);
  SB_REFUSED(max_connections, 1u << 20);
  SB_REFUSED(io_buffer_size, 511);
  SB_REFUSED(max_header_bytes, 255);
  SB_REFUSED(max_message_bytes, 0xffffffffu);
  SB_REFUSED(stream_buffer_size, 0xffffffffu);
  (void)(c = zero, c.allocator.alloc_fn = heap_alloc, sb_refused(&c, "allocator"), 0);
  (void)(c = zero, c.allocator.free_fn = heap_free, sb_refused(&c, "allocator"), 0);
  SB_REFUSED(tls.ca_pem, "no certificate");
  for (i = 0; i < E2B__COUNT(bad_urls); i++) {
    SB_REFUSED(api_url, bad_urls[i]);
    SB_REFUSED(sandbox_url, bad_urls[i]);
    SB_REFUSED(sandbox_base_url, bad_urls[i]);
  }
  for (i = 0; i < E2B__COUNT(bad_domains); i++) SB_REFUSED(domain, bad_domains[i]);
  for (i = 0; i < E2B__COUNT(bad_headers); i++) {
    c = zero;
    c.headers.items = bad_headers[i];
    c.headers.count = 1;
    sb_refused(&c, "headers");
  }
  memset(&transport, 0, sizeof transport);
  SB_REFUSED(transport, &transport);
#undef SB_REFUSED
  sb_environment("E2B_API_URL=nonsense");
  c = zero;
  c.no_env = false;
  sb_refused(&c, "E2B_API_URL");
  sb_environment("SCHEME=gopher");
  sb_refused(&c, "SCHEME");
  sb_environment(NULL);
}

/* The configuration is copied, and every allocation of it may fail. */
static void test_client_copies(void) {
  char key[] = "key", name[] = "X-One", value[] = "1", url[] = "http://h/x/", pem[] = "-----BEGIN CERTIFICATE-----",
       user[] = "me";
  e2b_kv headers[2];
  e2b_client_config config;
  e2b_client *client;
  e2b_error err;
  test_heap heap;
  long n, total;
  memset(&config, 0, sizeof config);
  headers[0].key = name;
  headers[0].value = value;
  headers[1].key = "y";
  headers[1].value = NULL;
  config.headers.items = headers;
  config.headers.count = 2;
  config.no_env = true;
  config.api_key = key;
  config.access_token = key;
  config.sandbox_base_url = url;
  config.default_user = user;
  config.tls.ca_pem = pem;
  config.tls.ca_file = url;
  config.allocator = heap_allocator(&heap);
  client = e2b_client_create(&config, &err);
  CHECK(client != NULL);
  total = heap.calls;
  memset(key, 'z', 3);
  memset(name, 'z', 5);
  memset(url, 'z', 11);
  memset(pem, 'z', 10);
  memset(user, 'z', 2);
  value[0] = 'z';
  headers[0].key = NULL;
  CHECK_STR(client->config.api_key, "key");
  CHECK_STR(client->config.access_token, "key");
  CHECK_STR(client->config.sandbox_base_url, "http://h/x");
  CHECK_STR(client->config.default_user, "me");
  CHECK_STR(client->config.tls.ca_pem, "-----BEGIN CERTIFICATE-----");
  CHECK_INT(client->config.tls.ca_pem_len, 27);
  CHECK_STR(client->config.headers.items[0].key, "X-One");
  CHECK_STR(client->config.headers.items[0].value, "1");
  CHECK_STR(client->config.headers.items[1].value, "");
  CHECK(client->net.tls_config.ca_pem == client->config.tls.ca_pem);
  e2b_client_free(client);
  HEAP_CHECK_EMPTY(&heap);
  headers[0].key = name;
  memcpy(url, "http://h/x/", 11);
  memcpy(pem, "-----BEGIN", 10);
  for (n = 1; n <= total; n++) {
    config.allocator = heap_allocator(&heap);
    heap.fail_at = n;
    CHECK(e2b_client_create(&config, &err) == NULL);
    CHECK_INT(err.code, E2B_ERR_NO_MEMORY);
    HEAP_CHECK_EMPTY(&heap);
  }
}

/* ------------------------------------------------------------------------------------------------------------------ */
/* requests */
/* ------------------------------------------------------------------------------------------------------------------ */

static void test_sandbox_create_minimal(void) {
  sb_world w;
  e2b_sandbox *sandbox;
  sb_open(&w, NULL);
  sb_script(&w.server, sb_json(201, SB_CREATED), NULL);
  CHECK_INT(e2b_sandbox_create(w.client, NULL, NULL, &sandbox, &w.err), E2B_OK);
  SB_CHECK_REQUEST(
      &w.server, 0,
      "POST /sandboxes HTTP/1.1\r\n" SB_HEAD SB_BODY(
          "123") "{\"templateID\":\"code-interpreter\",\"timeout\":300,\"secure\":true,\"metadata\":{" SB_NONCE "}}");
  CHECK(e2b_sandbox_client(sandbox) == w.client);
  CHECK_STR(e2b_sandbox_id(sandbox), "sb1");
  CHECK_STR(e2b_sandbox_template_id(sandbox), "tpl");
  CHECK_STR(e2b_sandbox_envd_version(sandbox), "0.2.10");
  CHECK_STR(e2b_sandbox_access_token(sandbox), "envd-secret");
  CHECK_STR(e2b_sandbox_traffic_access_token(sandbox), "traffic-secret");
  CHECK_INT(strlen(e2b_sandbox_runtime_url(sandbox)), strlen(w.sandbox_url) - 1);
  e2b_sandbox_free(sandbox);
  e2b_sandbox_free(NULL);
  CHECK(e2b_sandbox_client(NULL) == NULL);
  CHECK_STR(e2b_sandbox_id(NULL), "");
  sb_close(&w);
}

static void test_sandbox_create_everything(void) {
  static const e2b_kv metadata[] = { { "team", "a\"b\\\n" }, { "n", NULL } },
                      envs[] = { { "PATH", "/bin" }, { "E", "" } };
  static const e2b_kv headers[] = { { "X-Call", "1" }, { "User-Agent", "mine" } },
                      set_headers[] = { { "Authorization", "Bearer t" } };
  static const char *const allow[] = { "1.2.3.4", "example.com" }, *const deny[] = { "0.0.0.0/0" };
  static const e2b_volume_mount mounts[] = { { "vol", "/mnt" }, { "v2", "/m2" } };
  static const e2b_network_rule rules[] = { { "api.x.com", { set_headers, 1 } }, { "y.com", { NULL, 0 } } };
  e2b_network network;
  e2b_sandbox_opts opts;
  e2b_sandbox *sandbox = NULL;
  sb_world w;
  memset(&network, 0, sizeof network);
  network.allow_out.items = allow;
  network.allow_out.count = 2;
  network.deny_out.items = deny;
  network.deny_out.count = 1;
  network.allow_public_traffic = E2B_NO;
  network.mask_request_host = "localhost:8080";
  network.rules = rules;
  network.rule_count = 2;
  network.egress_proxy_address = "p:1";
  network.egress_proxy_username = "u";
  network.egress_proxy_password = "pw";
  memset(&opts, 0, sizeof opts);
  opts.call.headers.items = headers;
  opts.call.headers.count = 2;
  opts.timeout_s = 60;
  opts.metadata.items = metadata;
  opts.metadata.count = 2;
  opts.env_vars.items = envs;
  opts.env_vars.count = 2;
  opts.auto_pause = E2B_YES;
  opts.auto_resume = E2B_NO;
  opts.secure = E2B_NO;
  opts.allow_internet_access = E2B_YES;
  opts.network = &network;
  opts.mcp_json = "{\"browserbase\":{\"k\":\"v\"}}";
  opts.volume_mounts = mounts;
  opts.volume_mount_count = 2;
  opts.traffic_access_token = "mine";
  opts.extra_json = " {\"autoPauseMemory\": false, \"iam\":{}} ";
  sb_open(&w, NULL);
  sb_script(&w.server, sb_json(201, SB_CREATED), NULL);
  CHECK_INT(e2b_sandbox_create(w.client, "team/name:tag", &opts, &sandbox, &w.err), E2B_OK);
  SB_CHECK_REQUEST(
      &w.server, 0,
      "POST /sandboxes HTTP/1.1\r\nhost: 127.0.0.1:%P\r\naccept: application/json\r\naccept-encoding: identity\r\n"
      "x-call: 1\r\nuser-agent: mine\r\nx-api-key: secret-key\r\ncontent-type: application/json\r\n"
      "content-length: 689\r\n\r\n"
      "{\"templateID\":\"team/name:tag\",\"timeout\":60,\"autoPause\":true,\"autoResume\":{\"enabled\":false},"
      "\"secure\":false,\"allow_internet_access\":true,\"network\":{\"allowPublicTraffic\":false,"
      "\"allowOut\":[\"1.2.3.4\",\"example.com\"],\"denyOut\":[\"0.0.0.0/0\"],\"maskRequestHost\":\"localhost:8080\","
      "\"rules\":{\"api.x.com\":[{\"transform\":{\"headers\":{\"Authorization\":\"Bearer t\"}}}],\"y.com\":[{}]},"
      "\"egressProxy\":{\"address\":\"p:1\",\"username\":\"u\",\"password\":\"pw\"}},"
      "\"metadata\":{\"team\":\"a\\\"b\\\\\\u000a\",\"n\":\"\"," SB_NONCE "},"
      "\"envVars\":{\"PATH\":\"/bin\",\"E\":\"\"},\"mcp\":{\"browserbase\":{\"k\":\"v\"}},"
      "\"volumeMounts\":[{\"name\":\"vol\",\"path\":\"/mnt\"},{\"name\":\"v2\",\"path\":\"/m2\"}],"
      "\"autoPauseMemory\": false, \"iam\":{}}");
  CHECK_STR(e2b_sandbox_traffic_access_token(sandbox), "mine");
  sb_close(&w);
}

/* Every call: method, path, headers and body, byte by byte. */
static void test_sandbox_golden_requests(void) {
  static const e2b_kv metadata[] = { { "a/b k", "x y" }, { "app", "prod" } };
  e2b_create_response response;
  e2b_sandbox_info info;
  e2b_sandbox_list list;
  e2b_list_opts opts;
  e2b_sandbox *sandbox;
  e2b_sandbox_opts connect_opts;
  bool flag = false;
  sb_world w;
  sb_open(&w, NULL);
  memset(&response, 0, sizeof response);
  memset(&info, 0, sizeof info);
  memset(&list, 0, sizeof list);
  memset(&opts, 0, sizeof opts);
  memset(&connect_opts, 0, sizeof connect_opts);

  sb_script(&w.server, sb_json(200, SB_CREATED), NULL);
  CHECK_INT(e2b_sandbox_connect(w.client, "a/b \xc3\xbc%?", NULL, &sandbox, &w.err), E2B_OK);
  SB_CHECK_REQUEST(
      &w.server, 0,
      "POST /sandboxes/a%2Fb%20%C3%BC%25%3F/connect HTTP/1.1\r\n" SB_HEAD SB_BODY("15") "{\"timeout\":300}");
  connect_opts.timeout_s = 7;
  connect_opts.traffic_access_token = "t";
  CHECK_INT(e2b_sandbox_connect(w.client, "sb1", &connect_opts, &sandbox, &w.err), E2B_OK);
  SB_CHECK_REQUEST(&w.server, 1, "POST /sandboxes/sb1/connect HTTP/1.1\r\n" SB_HEAD SB_BODY("13") "{\"timeout\":7}");
  CHECK_STR(e2b_sandbox_traffic_access_token(sandbox), "t");
  CHECK_INT(e2b_api_connect_sandbox(w.client, "sb1", -1, NULL, &response, &w.err), E2B_OK);
  SB_CHECK_REQUEST(&w.server, 2, "POST /sandboxes/sb1/connect HTTP/1.1\r\n" SB_HEAD SB_BODY("15") "{\"timeout\":300}");
  CHECK_STR(response.sandbox_id, "sb1");
  CHECK_STR(response.client_id, "6532622b");
  CHECK_STR(response.envd_access_token, "envd-secret");
  CHECK_STR(response.traffic_access_token, "traffic-secret");
  CHECK_STR(response.domain, "");
  e2b_mem_free(&response.mem);
  CHECK_INT(e2b_api_create_sandbox(w.client, "t", NULL, &response, &w.err), E2B_OK);
  SB_CHECK_REQUEST(&w.server, 3,
                   "POST /sandboxes HTTP/1.1\r\n" SB_HEAD SB_BODY(
                       "108") "{\"templateID\":\"t\",\"timeout\":300,\"secure\":true,\"metadata\":{" SB_NONCE "}}");
  e2b_mem_free(&response.mem);
  CHECK_INT(e2b_sandbox_get_info(sandbox, NULL, &info, &w.err), E2B_OK);
  SB_CHECK_REQUEST(&w.server, 4, "GET /sandboxes/sb1 HTTP/1.1\r\n" SB_HEAD "\r\n");
  e2b_mem_free(&info.mem);
  CHECK_INT(e2b_api_get_info(w.client, "..a", NULL, &info, &w.err), E2B_OK);
  SB_CHECK_REQUEST(&w.server, 5, "GET /sandboxes/..a HTTP/1.1\r\n" SB_HEAD "\r\n");
  e2b_mem_free(&info.mem);

  sb_script(&w.server, sb_answer(204, "", ""), NULL);
  CHECK_INT(e2b_sandbox_set_timeout(sandbox, 0, NULL, &w.err), E2B_OK);
  SB_CHECK_REQUEST(&w.server, 0, "POST /sandboxes/sb1/timeout HTTP/1.1\r\n" SB_HEAD SB_BODY("13") "{\"timeout\":0}");
  CHECK_INT(e2b_api_set_timeout(w.client, "i", 2592000, NULL, &w.err), E2B_OK);
  SB_CHECK_REQUEST(&w.server, 1,
                   "POST /sandboxes/i/timeout HTTP/1.1\r\n" SB_HEAD SB_BODY("19") "{\"timeout\":2592000}");
  CHECK_INT(e2b_sandbox_pause(sandbox, NULL, &w.err), E2B_OK);
  SB_CHECK_REQUEST(&w.server, 2, "POST /sandboxes/sb1/pause HTTP/1.1\r\n" SB_HEAD "content-length: 0\r\n\r\n");
  CHECK_INT(e2b_api_pause(w.client, "i", NULL, &w.err), E2B_OK);
  SB_CHECK_REQUEST(&w.server, 3, "POST /sandboxes/i/pause HTTP/1.1\r\n" SB_HEAD "content-length: 0\r\n\r\n");
  CHECK_INT(e2b_sandbox_kill(sandbox, NULL, &flag, &w.err), E2B_OK);
  CHECK(flag);
  SB_CHECK_REQUEST(&w.server, 4, "DELETE /sandboxes/sb1 HTTP/1.1\r\n" SB_HEAD "\r\n");
  CHECK_INT(e2b_api_kill(w.client, "i", NULL, NULL, NULL), E2B_OK);
  SB_CHECK_REQUEST(&w.server, 5, "DELETE /sandboxes/i HTTP/1.1\r\n" SB_HEAD "\r\n");
  flag = false;
  CHECK_INT(e2b_sandbox_is_running(sandbox, NULL, &flag, &w.err), E2B_OK);
  CHECK(flag);
  SB_CHECK_REQUEST(&w.server, 6,
                   "GET /envd/health HTTP/1.1\r\n" SB_COMMON "e2b-sandbox-id: sb1\r\ne2b-sandbox-port: 49983\r\n"
                   "x-access-token: envd-secret\r\n\r\n"); /* "t" is no JWT */
  CHECK_INT(e2b_sandbox_close(sandbox, NULL, &w.err), E2B_OK);
  SB_CHECK_REQUEST(&w.server, 7, "DELETE /sandboxes/sb1 HTTP/1.1\r\n" SB_HEAD "\r\n");

  sb_script(&w.server, sb_json(200, "[]"), NULL);
  CHECK_INT(e2b_api_list(w.client, NULL, &list, &w.err), E2B_OK);
  SB_CHECK_REQUEST(&w.server, 0, "GET /v2/sandboxes HTTP/1.1\r\n" SB_HEAD "\r\n");
  CHECK_INT(list.count, 0);
  CHECK(list.next_token == NULL);
  e2b_mem_free(&list.mem);
  opts.metadata.items = metadata;
  opts.metadata.count = 2;
  opts.states = E2B_STATE_RUNNING | E2B_STATE_PAUSED;
  opts.limit = 100;
  opts.next_token = "abc=/+";
  CHECK_INT(e2b_api_list(w.client, &opts, &list, &w.err), E2B_OK);
  SB_CHECK_REQUEST(
      &w.server, 1,
      "GET /v2/sandboxes?metadata=a%25252Fb%252520k%3Dx%252520y%26app%3Dprod&state=running,paused&limit=100"
      "&nextToken=abc%3D%2F%2B HTTP/1.1\r\n" SB_HEAD "\r\n");
  e2b_mem_free(&list.mem);
  memset(&opts, 0, sizeof opts);
  opts.states = E2B_STATE_PAUSED;
  CHECK_INT(e2b_api_list(w.client, &opts, &list, &w.err), E2B_OK);
  SB_CHECK_REQUEST(&w.server, 2, "GET /v2/sandboxes?state=paused HTTP/1.1\r\n" SB_HEAD "\r\n");
  e2b_mem_free(&list.mem);
  opts.states = E2B_STATE_RUNNING;
  opts.limit = 1;
  CHECK_INT(e2b_api_list(w.client, &opts, &list, &w.err), E2B_OK);
  SB_CHECK_REQUEST(&w.server, 3, "GET /v2/sandboxes?state=running&limit=1 HTTP/1.1\r\n" SB_HEAD "\r\n");
  e2b_mem_free(&list.mem);
  sb_close(&w);
}

/* The private protocol: path prefix, two layers of encoding in the filter, the answer's domain is not used. */
static void test_sandbox_private_protocol(void) {
  static const e2b_kv metadata[] = { { "a/b k", "x y" } };
  e2b_client_config config;
  char domain[64], expected[128];
  e2b_sandbox *sandbox = NULL;
  e2b_sandbox_list list;
  e2b_list_opts opts;
  e2b_client *client;
  bool running;
  sb_world w;
  sb_open(&w, NULL);
  memset(&config, 0, sizeof config);
  memset(&opts, 0, sizeof opts);
  memset(&list, 0, sizeof list);
  (void)snprintf(domain, sizeof domain, "127.0.0.1:%u", (unsigned)w.server.port);
  config.no_env = true;
  config.protocol = E2B_PROTOCOL_PRIVATE;
  config.scheme = "http";
  config.domain = domain;
  config.runtime_port = 1234;
  client = e2b_client_create(&config, &w.err);
  sb_script(&w.server,
            sb_json(201, "{\"sandboxID\":\"default--x\",\"envdVersion\":\"0.2.10\",\"domain\":\"other.example\"}"),
            NULL);
  CHECK_INT(e2b_sandbox_create(client, "t", NULL, &sandbox, &w.err), E2B_OK);
  CHECK(strncmp(w.server.requests[0], "POST /kruise/api/sandboxes HTTP/1.1\r\n", 37) == 0);
  CHECK(strstr(w.server.requests[0], "x-api-key") == NULL);
  (void)snprintf(expected, sizeof expected, "http://%s/kruise/default--x/1234", domain);
  CHECK_STR(e2b_sandbox_runtime_url(sandbox), expected);
  CHECK_STR(e2b_sandbox_access_token(sandbox), "");
  sb_script(&w.server, sb_json(200, "[]"), sb_answer(200, "", "\"OK\""));
  opts.metadata.items = metadata;
  opts.metadata.count = 1;
  CHECK_INT(e2b_api_list(client, &opts, &list, &w.err), E2B_OK);
  SB_CHECK_REQUEST(&w.server, 0,
                   "GET /kruise/api/v2/sandboxes?metadata=a%252Fb%2Bk%3Dx%2By HTTP/1.1\r\n" SB_COMMON "\r\n");
  e2b_mem_free(&list.mem);
  CHECK_INT(e2b_sandbox_is_running(sandbox, NULL, &running, &w.err), E2B_OK);
  CHECK(running);
  SB_CHECK_REQUEST(&w.server, 1,
                   "GET /kruise/default--x/1234/health HTTP/1.1\r\n" SB_COMMON
                   "e2b-sandbox-id: default--x\r\ne2b-sandbox-port: 1234\r\n\r\n");
  e2b_client_free(client);
  sb_close(&w);
}

/* Native: the answer's domain, when there is one, is the sandbox's. */
static void test_sandbox_answer_domain(void) {
  static const struct {
    const char *answer, *runtime;
  } rows[] = {
    { "{\"sandboxID\":\"i1\",\"domain\":\"own.example:8443\"}", "https://49983-i1.own.example:8443" },
    { "{\"sandboxID\":\"i1\",\"domain\":\"\"}", "https://sandbox.e2b.app" },
    { "{\"sandboxID\":\"i1\",\"domain\":null}", "https://sandbox.e2b.app" },
    { "{\"sandboxID\":\"i1\"}", "https://sandbox.e2b.app" },
    { "{\"sandboxID\":\"i1\",\"domain\":\"e2b.dev\"}", "https://sandbox.e2b.dev" },
    { "{\"sandboxID\":\"a/../b\",\"domain\":\"own.example\"}", NULL },
    { "{\"sandboxID\":\"i1\",\"domain\":\"x/y\"}", NULL },
    { "{\"sandboxID\":\"i\\r\\n1\"}", NULL },
    { "{\"sandboxID\":\"i1\",\"envdAccessToken\":\"a\\nb\"}", NULL },
    { "{\"sandboxID\":\"i1\",\"trafficAccessToken\":\"a\\u0000b\"}", NULL },
  };
  size_t i;
  sb_world w;
  sb_open(&w, NULL);
  for (i = 0; i < E2B__COUNT(rows); i++) {
    e2b_client_config config;
    e2b_sandbox *sandbox = (e2b_sandbox *)&w;
    e2b_client *client;
    memset(&config, 0, sizeof config);
    config.no_env = true;
    config.api_url = w.api_url;
    config.access_token = "fallback";
    client = e2b_client_create(&config, &w.err);
    sb_script(&w.server, sb_json(201, rows[i].answer), NULL);
    if (rows[i].runtime) {
      CHECK_INT(e2b_sandbox_create(client, "t", NULL, &sandbox, &w.err), E2B_OK);
      CHECK_STR(e2b_sandbox_runtime_url(sandbox), rows[i].runtime);
      CHECK_STR(e2b_sandbox_access_token(sandbox), "fallback");
    } else {
      CHECK_INT(e2b_sandbox_create(client, "t", NULL, &sandbox, &w.err), E2B_ERR_PROTOCOL);
      CHECK(sandbox == NULL && w.err.maybe_done);
      CHECK_HAS(w.err.message, "runs, but");
      CHECK_INT(e2b_sandbox_connect(client, "x", NULL, &sandbox, &w.err), E2B_ERR_PROTOCOL);
      CHECK(!w.err.maybe_done);
    }
    e2b_client_free(client);
  }
  sb_close(&w);
}

static void test_sandbox_attach(void) {
  e2b_attach_opts opts;
  e2b_sandbox *sandbox, *other;
  char host[64];
  sb_world w;
  sb_open(&w, NULL);
  memset(&opts, 0, sizeof opts);
  CHECK_INT(e2b_sandbox_attach(w.client, "abc", NULL, &sandbox, &w.err), E2B_OK);
  CHECK(e2b__version_compare(e2b_sandbox_envd_version(sandbox), "0.5.7") > 0);
  CHECK_STR(e2b_sandbox_access_token(sandbox), "");
  CHECK_STR(e2b_sandbox_template_id(sandbox), "");
  opts.access_token = "tok";
  opts.base_url = "https://h:1/p//";
  opts.domain = "d.com";
  opts.envd_version = "0.1.0";
  opts.traffic_access_token = "tr";
  opts.template_id = "tp";
  CHECK_INT(e2b_sandbox_attach(w.client, "abc", &opts, &other, &w.err), E2B_OK);
  CHECK_STR(e2b_sandbox_runtime_url(other), "https://h:1/p");
  CHECK_STR(e2b_sandbox_access_token(other), "tok");
  CHECK_STR(e2b_sandbox_envd_version(other), "0.1.0");
  CHECK_STR(e2b_sandbox_traffic_access_token(other), "tr");
  CHECK_STR(e2b_sandbox_template_id(other), "tp");
  CHECK_INT(e2b_sandbox_host(other, 0, host, sizeof host), 15);
  CHECK_STR(host, "49983-abc.d.com");
  e2b_sandbox_free(sandbox);
  CHECK_INT(peer_asked_count(&w.server), 0);

#define SB_ATTACH_REFUSED(id, name)                                                                                    \
  (sandbox = other, CHECK_INT(e2b_sandbox_attach(w.client, id, &opts, &sandbox, &w.err), E2B_ERR_INVALID_ARGUMENT),    \
   CHECK(sandbox == NULL), CHECK_INT(w.err.subject, E2B_SUBJECT_OPTION), CHECK_HAS(w.err.message, name))
  SB_ATTACH_REFUSED("", "sandbox_id");
  SB_ATTACH_REFUSED(NULL, "sandbox_id");
  SB_ATTACH_REFUSED("a\nb", "sandbox_id");
  SB_ATTACH_REFUSED("\xc3\xa9", "sandbox_id");
  SB_ATTACH_REFUSED("..", "sandbox_id");
  opts.base_url = "h:1";
  SB_ATTACH_REFUSED("a", "base_url");
  opts.base_url = NULL;
  opts.domain = "https://x";
  SB_ATTACH_REFUSED("a", "domain");
  opts.domain = NULL;
  opts.access_token = "a\r\n";
  SB_ATTACH_REFUSED("a", "access_token");
  opts.access_token = NULL;
  opts.traffic_access_token = "a\r\n";
  SB_ATTACH_REFUSED("a", "traffic_access_token");
#undef SB_ATTACH_REFUSED
  CHECK_INT(e2b_sandbox_attach(NULL, "a", NULL, &sandbox, &w.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_sandbox_attach(w.client, "a", NULL, NULL, &w.err), E2B_ERR_INVALID_ARGUMENT);
  sb_close(&w);
}

static void sb_check_argument(int line, e2b_err code, const e2b_error *err, const char *name) {
  bool ok = code == E2B_ERR_INVALID_ARGUMENT && err->code == code && err->subject == E2B_SUBJECT_OPTION &&
            strstr(err->message, name);
  if (!ok) printf("%s:%d: %s: \"%s\", not about %s\n", __FILE__, line, e2b_err_name(code), err->message, name);
  CHECK(ok);
}
#define SB_ARGUMENT(call, name) sb_check_argument(__LINE__, call, &w.err, name)

static void sb_create_refused(sb_world *w, const e2b_sandbox_opts *opts, const char *name) {
  e2b_sandbox *sandbox = (e2b_sandbox *)w;
  sb_check_argument(__LINE__, e2b_sandbox_create(w->client, "t", opts, &sandbox, &w->err), &w->err, name);
  CHECK(sandbox == NULL);
}

/* What is wrong with arguments is found before any I/O. */
static void test_sandbox_arguments(void) {
  static const e2b_kv bad_key[] = { { "ok", "x" }, { "", "x" } }, control[] = { { "a\nb", "x" } },
                      bad_header[] = { { "x", "a\nb" } };
  static const e2b_network_rule twice[] = { { "h", { NULL, 0 } }, { "h", { NULL, 0 } } },
                                no_host[] = { { "", { NULL, 0 } } };
  static const char *const empty[] = { "" };
  static const char *const not_objects[] = { "[]", "x", "{", "{}x", "{\"a\":}", "null" };
  static const e2b_volume_mount mount = { "v", NULL };
  e2b_create_response response;
  e2b_sandbox_opts opts, zero;
  e2b_list_opts list_opts, list_zero;
  e2b_sandbox_info info;
  e2b_sandbox_list list;
  e2b_network network, network_zero;
  e2b_sandbox *sandbox;
  e2b_call call;
  size_t i;
  sb_world w;
  sb_open(&w, NULL);
  memset(&zero, 0, sizeof zero);
  memset(&list_zero, 0, sizeof list_zero);
  memset(&network_zero, 0, sizeof network_zero);
  memset(&response, 0, sizeof response);
  memset(&info, 0, sizeof info);
  memset(&list, 0, sizeof list);
  memset(&call, 0, sizeof call);
  call.headers.items = bad_header;
  call.headers.count = 1;
  opts = zero;
  opts.timeout_s = -1;
  sb_create_refused(&w, &opts, "timeout_s");
  opts = zero;
  opts.metadata.items = bad_key;
  opts.metadata.count = 2;
  sb_create_refused(&w, &opts, "metadata");
  opts = zero;
  opts.env_vars.items = control;
  opts.env_vars.count = 1;
  sb_create_refused(&w, &opts, "env_vars");
  opts = zero;
  opts.call = call;
  sb_create_refused(&w, &opts, "call.headers");
  opts = zero;
  opts.volume_mounts = &mount;
  opts.volume_mount_count = 1;
  sb_create_refused(&w, &opts, "volume_mounts");
  for (i = 0; i < E2B__COUNT(not_objects); i++) {
    opts = zero;
    opts.extra_json = not_objects[i];
    sb_create_refused(&w, &opts, "extra_json");
    opts = zero;
    opts.mcp_json = not_objects[i];
    sb_create_refused(&w, &opts, "mcp_json");
  }
  opts = zero;
  opts.extra_json = "{\"x\":{\"timeout\":1},\"timeout\":1}";
  sb_create_refused(&w, &opts, "extra_json has the member \"timeout\"");
  opts = zero;
  opts.network = &network;
  network = network_zero;
  network.allow_out.items = empty;
  network.allow_out.count = 1;
  sb_create_refused(&w, &opts, "allow_out");
  network = network_zero;
  network.deny_out.items = empty;
  network.deny_out.count = 1;
  sb_create_refused(&w, &opts, "deny_out");
  network = network_zero;
  network.rules = twice;
  network.rule_count = 2;
  sb_create_refused(&w, &opts, "twice");
  network = network_zero;
  network.rules = no_host;
  network.rule_count = 1;
  sb_create_refused(&w, &opts, "rules");
  network = network_zero;
  network.egress_proxy_username = "u";
  sb_create_refused(&w, &opts, "egress_proxy_address");
  SB_ARGUMENT(e2b_sandbox_create(w.client, "a\nb", NULL, &sandbox, &w.err), "template_id");
  SB_ARGUMENT(e2b_sandbox_create(w.client, "a", NULL, NULL, &w.err), "out");
  SB_ARGUMENT(e2b_sandbox_create(NULL, "a", NULL, &sandbox, &w.err), "client");
  SB_ARGUMENT(e2b_api_create_sandbox(w.client, "a", NULL, NULL, &w.err), "out");
  SB_ARGUMENT(e2b_sandbox_connect(w.client, "", NULL, &sandbox, &w.err), "sandbox_id");
  opts = zero;
  opts.timeout_s = -3;
  SB_ARGUMENT(e2b_sandbox_connect(w.client, "a", &opts, &sandbox, &w.err), "timeout_s");
  SB_ARGUMENT(e2b_api_connect_sandbox(w.client, "..", 0, NULL, &response, &w.err), "sandbox_id");
  SB_ARGUMENT(e2b_api_connect_sandbox(w.client, "a", 0, &call, &response, &w.err), "call.headers");
  SB_ARGUMENT(e2b_api_get_info(w.client, NULL, NULL, &info, &w.err), "sandbox_id");
  SB_ARGUMENT(e2b_api_get_info(w.client, "a", NULL, NULL, &w.err), "out");
  SB_ARGUMENT(e2b_api_get_info(NULL, "a", NULL, &info, &w.err), "client");
  SB_ARGUMENT(e2b_api_kill(w.client, "a\x7f", NULL, NULL, &w.err), "sandbox_id");
  SB_ARGUMENT(e2b_api_set_timeout(w.client, "a", -1, NULL, &w.err), "timeout_s");
  SB_ARGUMENT(e2b_api_pause(w.client, ".", NULL, &w.err), "sandbox_id");
  SB_ARGUMENT(e2b_sandbox_kill(NULL, NULL, NULL, &w.err), "sandbox");
  SB_ARGUMENT(e2b_sandbox_pause(NULL, NULL, &w.err), "sandbox");
  SB_ARGUMENT(e2b_sandbox_set_timeout(NULL, 1, NULL, &w.err), "sandbox");
  SB_ARGUMENT(e2b_sandbox_get_info(NULL, NULL, &info, &w.err), "sandbox");
  SB_ARGUMENT(e2b_sandbox_is_running(NULL, NULL, NULL, &w.err), "sandbox");
  SB_ARGUMENT(e2b_api_list(w.client, NULL, NULL, &w.err), "out");
  list_opts = list_zero;
  list_opts.limit = 101;
  SB_ARGUMENT(e2b_api_list(w.client, &list_opts, &list, &w.err), "limit");
  list_opts = list_zero;
  list_opts.limit = -1;
  SB_ARGUMENT(e2b_api_list(w.client, &list_opts, &list, &w.err), "limit");
  list_opts = list_zero;
  list_opts.states = 4;
  SB_ARGUMENT(e2b_api_list(w.client, &list_opts, &list, &w.err), "states");
  list_opts = list_zero;
  list_opts.next_token = "a\n";
  SB_ARGUMENT(e2b_api_list(w.client, &list_opts, &list, &w.err), "next_token");
  list_opts = list_zero;
  list_opts.metadata.items = control;
  list_opts.metadata.count = 1;
  SB_ARGUMENT(e2b_api_list(w.client, &list_opts, &list, &w.err), "metadata");
  CHECK_INT(e2b_sandbox_close(NULL, NULL, &w.err), E2B_OK);
  CHECK_INT(e2b_api_list(w.client, &list_opts, &list, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(peer_asked_count(&w.server), 0);
  CHECK_INT(w.client->op_count, 0);
  sb_close(&w);
}

/* ------------------------------------------------------------------------------------------------------------------ */
/* answers */
/* ------------------------------------------------------------------------------------------------------------------ */

static void test_sandbox_error_mapping(void) {
  static const struct {
    int status;
    const char *headers, *body;
    e2b_err code;
    e2b_subject create_subject, info_subject;
    bool create_maybe_done;
    const char *message;
  } rows[] = {
    { 400, "", "{\"code\":400,\"message\":\"template 'x' not found\"}", E2B_ERR_INVALID_ARGUMENT, E2B_SUBJECT_NONE,
      E2B_SUBJECT_NONE, false, "template 'x' not found (HTTP 400)" },
    { 401, "", "{\"code\":401,\"message\":\"Invalid API Key\"}", E2B_ERR_UNAUTHENTICATED, E2B_SUBJECT_NONE,
      E2B_SUBJECT_NONE, false, "check api_key or E2B_API_KEY" },
    { 403, "", "{\"code\":403,\"message\":\"blocked\"}", E2B_ERR_PERMISSION, E2B_SUBJECT_NONE, E2B_SUBJECT_NONE, false,
      "blocked" },
    { 404, "", "{\"code\":404,\"message\":\"nope\"}", E2B_ERR_NOT_FOUND, E2B_SUBJECT_TEMPLATE, E2B_SUBJECT_SANDBOX,
      false, "nope" },
    { 404, "", "404 page not found", E2B_ERR_NOT_FOUND, E2B_SUBJECT_TEMPLATE, E2B_SUBJECT_SANDBOX, false,
      "404 page not found" },
    { 404, "", "", E2B_ERR_NOT_FOUND, E2B_SUBJECT_TEMPLATE, E2B_SUBJECT_SANDBOX, false, "HTTP 404" },
    { 409, "", "{\"code\":409,\"message\":\"busy\"}", E2B_ERR_CONFLICT, E2B_SUBJECT_NONE, E2B_SUBJECT_NONE, false,
      "busy" },
    { 429, "", "{\"code\":429,\"message\":\"too many\"}", E2B_ERR_RATE_LIMITED, E2B_SUBJECT_NONE, E2B_SUBJECT_NONE,
      false, "too many" },
    { 429, "retry-after: 3600\r\n", "x", E2B_ERR_RATE_LIMITED, E2B_SUBJECT_NONE, E2B_SUBJECT_NONE, false, "try again" },
    { 500, "", "", E2B_ERR_SERVICE, E2B_SUBJECT_NONE, E2B_SUBJECT_NONE, true, "HTTP 500" },
    { 500, "", "{\"code\":0,\"headers\":null,\"message\":\"boom\",\"request_id\":\"r\"}", E2B_ERR_SERVICE,
      E2B_SUBJECT_NONE, E2B_SUBJECT_NONE, true, "boom" },
    { 502, "", "<html><h1>502 Bad Gateway</h1></html>", E2B_ERR_UNAVAILABLE, E2B_SUBJECT_NONE, E2B_SUBJECT_NONE, true,
      "Bad Gateway" },
    { 503, "", "{\"code\":503,\"message\":\"no capacity\",\"error_code\":\"x\"}", E2B_ERR_UNAVAILABLE, E2B_SUBJECT_NONE,
      E2B_SUBJECT_NONE, true, "no capacity" },
    { 504, "", "", E2B_ERR_UNAVAILABLE, E2B_SUBJECT_NONE, E2B_SUBJECT_NONE, true, "HTTP 504" },
    { 418, "", "teapot", E2B_ERR_SERVICE, E2B_SUBJECT_NONE, E2B_SUBJECT_NONE, false, "teapot" },
    { 301, "location: http://elsewhere/\r\n", "", E2B_ERR_SERVICE, E2B_SUBJECT_NONE, E2B_SUBJECT_NONE, false,
      "redirect" },
  };
  e2b_create_response response;
  e2b_sandbox_info info;
  e2b_sandbox *sandbox;
  size_t i;
  sb_world w;
  sb_open(&w, NULL);
  memset(&info, 0, sizeof info);
  memset(&response, 0, sizeof response);
  for (i = 0; i < E2B__COUNT(rows); i++) {
    char headers[128];
    (void)snprintf(headers, sizeof headers, "x-request-id: req-%u\r\n%s", (unsigned)i, rows[i].headers);
    sb_script(&w.server, sb_answer(rows[i].status, headers, rows[i].body), NULL);
    sandbox = (e2b_sandbox *)&w;
    CHECK_INT(e2b_sandbox_create(w.client, "t", NULL, &sandbox, &w.err), rows[i].code);
    CHECK(sandbox == NULL);
    CHECK_INT(w.err.code, rows[i].code);
    CHECK_INT(w.err.http_status, rows[i].status);
    CHECK_INT(w.err.subject, rows[i].create_subject);
    CHECK_INT(w.err.maybe_done, rows[i].create_maybe_done);
    CHECK_INT(w.err.phase, E2B_PHASE_BODY);
    CHECK_INT(strtol(w.err.request_id + 4, NULL, 10), i);
    CHECK_INT(w.err.retry_after_ms, strstr(rows[i].headers, "3600") ? 3600000 : 0);
    CHECK_HAS(w.err.message, rows[i].message);
    CHECK(strstr(w.err.message, "secret-key") == NULL);
    CHECK_INT(e2b_api_create_sandbox(w.client, "t", NULL, &response, NULL), rows[i].code);
    CHECK(response.mem.ptr == NULL && response.sandbox_id == NULL);
    CHECK_INT(e2b_api_get_info(w.client, "i", NULL, &info, &w.err), rows[i].code);
    CHECK_INT(w.err.subject, rows[i].info_subject);
    CHECK(!w.err.maybe_done && info.sandbox_id == NULL && info.mem.ptr == NULL);
    CHECK_INT(e2b_sandbox_connect(w.client, "i", NULL, &sandbox, &w.err), rows[i].code);
    CHECK_INT(w.err.subject, rows[i].info_subject);
    CHECK_INT(e2b_api_set_timeout(w.client, "i", 1, NULL, &w.err), rows[i].code);
    CHECK_INT(w.err.subject, rows[i].info_subject);
    CHECK_INT(e2b_api_pause(w.client, "i", NULL, &w.err), rows[i].status == 409 ? E2B_OK : rows[i].code);
    CHECK_INT(peer_asked_count(&w.server), 6); /* nothing is sent twice */
  }
  sb_close(&w);
}

static void test_sandbox_kill_and_pause(void) {
  static const struct {
    int status;
    e2b_err kill;
    bool killed;
    e2b_err pause;
  } rows[] = {
    { 204, E2B_OK, true, E2B_OK },
    { 200, E2B_OK, true, E2B_OK },
    { 404, E2B_OK, false, E2B_ERR_NOT_FOUND },
    { 409, E2B_ERR_CONFLICT, false, E2B_OK },
    { 401, E2B_ERR_UNAUTHENTICATED, false, E2B_ERR_UNAUTHENTICATED },
    { 500, E2B_ERR_SERVICE, false, E2B_ERR_SERVICE },
  };
  size_t i;
  bool killed;
  sb_world w;
  sb_open(&w, NULL);
  for (i = 0; i < E2B__COUNT(rows); i++) {
    e2b_sandbox *sandbox = sb_attach(&w, "i");
    sb_script(&w.server, sb_answer(rows[i].status, "", ""), NULL);
    killed = !rows[i].killed;
    CHECK_INT(e2b_sandbox_kill(sandbox, NULL, &killed, &w.err), rows[i].kill);
    CHECK_INT(killed, rows[i].killed);
    CHECK_INT(w.err.code, rows[i].kill);
    CHECK_INT(e2b_sandbox_pause(sandbox, NULL, &w.err), rows[i].pause);
    CHECK_INT(e2b_sandbox_close(sandbox, NULL, &w.err), rows[i].kill);
    CHECK(w.client->sandboxes == NULL);
  }
  sb_close(&w);
}

/* A 401 without a key says what to do. */
static void test_sandbox_no_key(void) {
  e2b_client_config config;
  e2b_sandbox_info info;
  e2b_client *client;
  sb_world w;
  sb_open(&w, NULL);
  memset(&config, 0, sizeof config);
  memset(&info, 0, sizeof info);
  config.no_env = true;
  config.api_url = w.api_url;
  client = e2b_client_create(&config, &w.err);
  sb_script(&w.server, sb_answer(401, "", "{\"code\":401,\"message\":\"no key\"}"), sb_json(200, SB_CREATED));
  CHECK_INT(e2b_api_get_info(client, "i", NULL, &info, &w.err), E2B_ERR_UNAUTHENTICATED);
  CHECK(strstr(w.server.requests[0], "x-api-key") == NULL);
  CHECK_HAS(w.err.message, "set api_key or E2B_API_KEY");
  CHECK_INT(e2b_api_get_info(client, "i", NULL, &info, &w.err), E2B_OK); /* a server without authentication */
  CHECK_INT(w.err.code, E2B_OK);
  e2b_mem_free(&info.mem);
  e2b_client_free(client);
  sb_close(&w);
}

static void test_sandbox_strange_answers(void) {
  static const struct {
    const char *body, *message;
  } rows[] = {
    { "<!doctype html><title>Welcome</title>", "Welcome" },
    { "", "nothing" },
    { "OK", "really the control plane" },
    { "null", "null" },
    { "{}", "no sandboxID" },
    { "{\"sandboxID\":\"\"}", "no sandboxID" },
    { "{\"sandboxID\":null}", "no sandboxID" },
    { "{\"sandboxID\":7}", "JSON" },
    { "{\"sandboxID\":\"i\",\"envdAccessToken\":\"hush\"", "JSON" },
    { "{\"sandboxID\":\"i\",\"envdAccessToken\":\"hush\"}x", "JSON" },
    { "[{\"envdAccessToken\":\"hush\"}]", "control plane" },
  };
  e2b_sandbox *sandbox;
  e2b_sandbox_list list;
  e2b_sandbox_info info;
  bool flag = true;
  size_t i;
  sb_world w;
  sb_open(&w, NULL);
  memset(&list, 0, sizeof list);
  memset(&info, 0, sizeof info);
  for (i = 0; i < E2B__COUNT(rows); i++) {
    sb_script(&w.server, sb_json(201, rows[i].body), NULL);
    CHECK_INT(e2b_sandbox_create(w.client, "t", NULL, &sandbox, &w.err), E2B_ERR_PROTOCOL);
    CHECK(w.err.maybe_done && w.err.phase == E2B_PHASE_DECODE && w.err.http_status == 201);
    CHECK_HAS(w.err.message, rows[i].message);
    CHECK(strstr(w.err.message, "hush") == NULL || i == 10);
  }
  sb_script(&w.server, sb_json(200, SB_CREATED), NULL); /* a deeper path answered with a sandbox, not a list */
  CHECK_INT(e2b_api_list(w.client, NULL, &list, &w.err), E2B_ERR_PROTOCOL);
  CHECK(strstr(w.err.message, "envd-secret") == NULL);
  CHECK(list.mem.ptr == NULL && list.items == NULL && list.count == 0);
  sb_script(&w.server, sb_json(200, "[]"), NULL);
  CHECK_INT(e2b_api_get_info(w.client, "i", NULL, &info, &w.err), E2B_ERR_PROTOCOL);
  sb_script(&w.server, sb_answer(200, "", "  <html>log in</html>"), NULL);
  CHECK_INT(e2b_api_kill(w.client, "i", NULL, &flag, &w.err), E2B_ERR_PROTOCOL);
  CHECK(!flag);
  CHECK_HAS(w.err.message, "log in");
  CHECK_INT(e2b_api_pause(w.client, "i", NULL, &w.err), E2B_ERR_PROTOCOL);
  CHECK_INT(e2b_api_set_timeout(w.client, "i", 1, NULL, &w.err), E2B_ERR_PROTOCOL);
  sandbox = sb_attach(&w, "i");
  CHECK_INT(e2b_sandbox_is_running(sandbox, NULL, &flag, &w.err), E2B_ERR_PROTOCOL);
  CHECK(!flag);
  sb_close(&w);
}

/* The connection ends: what may have been done is told, what is safe is sent again. */
static void test_sandbox_lost_connections(void) {
  e2b_sandbox *sandbox;
  e2b_sandbox_info info;
  bool killed;
  sb_world w;
  sb_open(&w, NULL);
  memset(&info, 0, sizeof info);
  sb_script(&w.server, SB_DROP, NULL);
  CHECK_INT(e2b_sandbox_create(w.client, "t", NULL, &sandbox, &w.err), E2B_ERR_CLOSED);
  CHECK(w.err.maybe_done && sandbox == NULL);
  CHECK_INT(peer_asked_count(&w.server), 1);
  CHECK_INT(e2b_api_kill(w.client, "i", NULL, &killed, &w.err), E2B_ERR_CLOSED);
  CHECK(!w.err.maybe_done && !killed);
  sb_script(&w.server, "HTTP/1.1 201 X\r\ncontent-length: 500\r\nconnection: close\r\n\r\n{\"sandboxID\":\"x\"", NULL);
  CHECK_INT(e2b_sandbox_create(w.client, "t", NULL, &sandbox, &w.err), E2B_ERR_TRUNCATED);
  CHECK(w.err.maybe_done && w.err.http_status == 201);
  /* a kept connection that died: delete goes out again, create does not */
  peer_clear(&w.server);
  sb_say(&w.server, sb_json(200, SB_CREATED), false);
  sb_say(&w.server, SB_DROP, false);
  sb_say(&w.server, sb_answer(204, "", ""), true);
  CHECK_INT(e2b_api_get_info(w.client, "i", NULL, &info, &w.err), E2B_OK);
  e2b_mem_free(&info.mem);
  CHECK_INT(e2b_api_kill(w.client, "i", NULL, &killed, &w.err), E2B_OK);
  CHECK(killed);
  CHECK_INT(peer_asked_count(&w.server), 3);
  sb_script(&w.server, sb_json(200, SB_CREATED), SB_DROP);
  CHECK_INT(e2b_api_get_info(w.client, "i", NULL, &info, &w.err), E2B_OK);
  e2b_mem_free(&info.mem);
  CHECK_INT(e2b_sandbox_create(w.client, "t", NULL, &sandbox, &w.err), E2B_ERR_CLOSED);
  CHECK(w.err.maybe_done);
  CHECK_INT(peer_asked_count(&w.server), 2);
  /* 429 with a wait that fits is waited for, even by create */
  sb_script(&w.server, sb_answer(429, "retry-after: 1\r\n", "{}"), sb_json(201, SB_CREATED));
  CHECK_INT(e2b_sandbox_create(w.client, "t", NULL, &sandbox, &w.err), E2B_OK);
  CHECK_INT(peer_asked_count(&w.server), 2);
  sb_close(&w);
}

static void test_sandbox_timeouts(void) {
  e2b_sandbox_opts opts;
  e2b_sandbox *sandbox;
  e2b_call call;
  sb_world w;
  sb_open(&w, NULL);
  memset(&opts, 0, sizeof opts);
  memset(&call, 0, sizeof call);
  sb_script(&w.server, SB_HANG, NULL);
  opts.call.timeout_ms = 50;
  CHECK_INT(e2b_sandbox_create(w.client, "t", &opts, &sandbox, &w.err), E2B_ERR_TIMEOUT);
  CHECK(w.err.maybe_done && sandbox == NULL && w.err.phase == E2B_PHASE_HEADERS);
  call.timeout_ms = E2B_TIMEOUT_NONE;
  call.idle_ms = 50;
  CHECK_INT(e2b_api_kill(w.client, "i", &call, NULL, &w.err), E2B_ERR_IDLE_TIMEOUT);
  sb_close(&w);
}

static void test_sandbox_info(void) {
  static const char json[] =
      "{\"sandboxID\":\"default--a\",\"templateID\":\"t\",\"clientID\":\"c\",\"envdVersion\":\"v1.0.0\","
      "\"alias\":\"al\",\"domain\":\"d.com\",\"startedAt\":\"2024-05-06T07:08:09.5+02:00\","
      "\"endAt\":\"0001-01-01T00:00:00Z\",\"cpuCount\":2,\"memoryMB\":512,\"diskSizeMB\":99999999999,"
      "\"state\":\"paused\",\"metadata\":{\"a\":\"\\u003cb\\u003e\",\"c\":\"\"},"
      "\"volumeMounts\":[{\"name\":\"v\",\"path\":\"/m\"}],\"lifecycle\":{\"onTimeout\":\"kill\"},"
      "\"envdAccessToken\":\"x\"}";
  e2b_sandbox_info info;
  sb_world w;
  sb_open(&w, NULL);
  memset(&info, 0, sizeof info);
  sb_script(&w.server, sb_json(200, json), NULL);
  CHECK_INT(e2b_api_get_info(w.client, "i", NULL, &info, &w.err), E2B_OK);
  CHECK_STR(info.sandbox_id, "default--a");
  CHECK_STR(info.template_id, "t");
  CHECK_STR(info.client_id, "c");
  CHECK_STR(info.envd_version, "v1.0.0");
  CHECK_STR(info.alias, "al");
  CHECK_STR(info.domain, "d.com");
  CHECK_STR(info.state_text, "paused");
  CHECK_INT(info.state, E2B_STATE_PAUSED);
  CHECK_INT(info.started_at_ms, 1714972089500LL);
  CHECK_INT(info.end_at_ms, 0);
  CHECK_INT(info.cpu_count, 2);
  CHECK_INT(info.memory_mb, 512);
  CHECK_INT(info.disk_size_mb, INT32_MAX);
  CHECK_INT(info.metadata.count, 2);
  CHECK_STR(info.metadata.items[0].key, "a");
  CHECK_STR(info.metadata.items[0].value, "<b>");
  CHECK_STR(info.metadata.items[1].value, "");
  CHECK_INT(info.volume_mount_count, 1);
  CHECK_STR(info.volume_mounts[0].name, "v");
  CHECK_STR(info.volume_mounts[0].path, "/m");
  e2b_mem_free(&info.mem);
  sb_script(&w.server,
            sb_json(200, "{\"sandboxID\":\"a\",\"state\":\"dead\",\"metadata\":null,\"startedAt\":\"<unknown>\"}"),
            NULL);
  CHECK_INT(e2b_api_get_info(w.client, "i", NULL, &info, &w.err), E2B_OK);
  CHECK_INT(info.state, E2B_STATE_UNKNOWN);
  CHECK_STR(info.state_text, "dead");
  CHECK_STR(info.alias, "");
  CHECK_INT(info.metadata.count, 0);
  CHECK_INT(info.started_at_ms, 0);
  e2b_client_free(w.client); /* the result outlives the client */
  CHECK_STR(info.sandbox_id, "a");
  e2b_mem_free(&info.mem);
  w.client = NULL;
  sb_close(&w);
}

static void test_sandbox_list_pages(void) {
  e2b_sandbox_list list;
  e2b_list_opts opts;
  sb_world w;
  sb_open(&w, NULL);
  memset(&list, 0, sizeof list);
  memset(&opts, 0, sizeof opts);
  sb_script(&w.server,
            sb_answer(200, "X-Next-Token: bmV4dA==\r\n",
                      "[{\"sandboxID\":\"a\",\"state\":\"running\",\"metadata\":{\"k\":\"v\"}},"
                      "{\"sandboxID\":\"b\",\"state\":\"paused\"}]"),
            sb_answer(200, "x-next-token: \r\n", "[{\"sandboxID\":\"c\"}]"));
  CHECK_INT(e2b_api_list(w.client, NULL, &list, &w.err), E2B_OK);
  CHECK_INT(list.count, 2);
  CHECK_STR(list.items[0].sandbox_id, "a");
  CHECK_STR(list.items[0].metadata.items[0].value, "v");
  CHECK_STR(list.items[1].sandbox_id, "b");
  CHECK_INT(list.items[1].state, E2B_STATE_PAUSED);
  CHECK(list.items[1].mem.ptr == NULL && !list.items[1].mem.fixed);
  CHECK_STR(list.next_token, "bmV4dA==");
  opts.next_token = list.next_token;
  {
    e2b_sandbox_list second;
    memset(&second, 0, sizeof second);
    CHECK_INT(e2b_api_list(w.client, &opts, &second, &w.err), E2B_OK);
    SB_CHECK_REQUEST(&w.server, 1, "GET /v2/sandboxes?nextToken=bmV4dA%3D%3D HTTP/1.1\r\n" SB_HEAD "\r\n");
    CHECK_INT(second.count, 1);
    CHECK(second.next_token == NULL);
    e2b_mem_free(&second.mem);
  }
  e2b_mem_free(&list.mem);
  sb_close(&w);
}

/* Storage of the caller's: large enough, and every size that is not. */
static void test_sandbox_fixed_storage(void) {
  char storage[512];
  size_t cap, needed = 1;
  sb_world w;
  sb_open(&w, NULL);
  sb_script(&w.server, sb_json(200, SB_CREATED), NULL);
  for (cap = 0; cap <= needed; cap++) { /* needed is what the first call said */
    e2b_create_response response;
    bool fits = cap == needed;
    memset(&response, 0, sizeof response);
    response.mem.ptr = storage + 1;
    response.mem.cap = cap;
    response.mem.fixed = true;
    memset(storage, 0x5a, sizeof storage);
    CHECK_INT(e2b_api_connect_sandbox(w.client, "sb1", 0, NULL, &response, &w.err),
              fits ? E2B_OK : E2B_ERR_BUFFER_TOO_SMALL);
    if (cap == 0) needed = response.mem.len;
    CHECK_INT(response.mem.len, needed);
    CHECK(response.mem.fixed && response.mem.ptr == storage + 1 && response.mem.cap == cap);
    CHECK_INT(storage[1 + cap], 0x5a);
    CHECK_INT(storage[0], 0x5a);
    if (fits) {
      CHECK_STR(response.envd_access_token, "envd-secret");
      CHECK(response.sandbox_id > storage && response.domain < storage + 1 + cap);
    } else {
      CHECK(response.sandbox_id == NULL);
      CHECK_HAS(w.err.message, "sb1");
      CHECK(!w.err.maybe_done);
    }
    e2b_mem_free(&response.mem);
  }
  {
    e2b_create_response response;
    memset(&response, 0, sizeof response);
    response.mem.fixed = true;
    CHECK_INT(e2b_api_create_sandbox(w.client, "t", NULL, &response, &w.err), E2B_ERR_BUFFER_TOO_SMALL);
    CHECK(w.err.maybe_done); /* and the message says which */
    CHECK_HAS(w.err.message, "sandbox sb1 runs, but");
  }
  {
    e2b_sandbox_list list = { E2B_MEM_FIXED(storage), NULL, 0, NULL };
    e2b_sandbox_info info = {
      E2B_MEM_FIXED(storage), 0, 0, 0, 0, 0, 0, 0, E2B_STATE_UNKNOWN, 0, 0, 0, 0, 0, { NULL, 0 }, NULL, 0,
      E2B_UNSET, E2B_UNSET
    };
    sb_script(&w.server, sb_json(200, "[{\"sandboxID\":\"a\"}]"), sb_json(200, SB_CREATED));
    CHECK_INT(e2b_api_list(w.client, NULL, &list, &w.err), E2B_OK);
    CHECK_STR(list.items[0].sandbox_id, "a");
    list.mem.cap = 20;
    CHECK_INT(e2b_api_get_info(w.client, "a", NULL, &info, &w.err), E2B_OK);
    CHECK_STR(info.template_id, "tpl");
    info.mem.cap = 3;
    CHECK_INT(e2b_api_get_info(w.client, "a", NULL, &info, &w.err), E2B_ERR_BUFFER_TOO_SMALL);
    CHECK(info.template_id == NULL && info.metadata.items == NULL);
  }
  sb_close(&w);
}

static void test_sandbox_is_running(void) {
  static const struct {
    int status;
    const char *body;
    e2b_err code;
    bool running;
  } rows[] = {
    { 204, "", E2B_OK, true },
    { 200, "\"OK\"", E2B_OK, true },
    { 502, "{\"sandboxId\":\"i\",\"message\":\"The sandbox was not found\",\"code\":502}", E2B_OK, false },
    { 502, "sandbox not found: i", E2B_OK, false },
    { 502, "", E2B_OK, false },
    { 502, "<html>Bad Gateway</html>", E2B_ERR_UNAVAILABLE, false },
    { 503, "", E2B_ERR_UNAVAILABLE, false },
    { 401, "{\"code\":401,\"message\":\"m\"}", E2B_ERR_UNAUTHENTICATED, false },
    { 404, "<html>x</html>", E2B_ERR_NOT_FOUND, false },
    { 500, "x", E2B_ERR_SERVICE, false },
  };
  e2b_sandbox *sandbox;
  bool running;
  size_t i;
  sb_world w;
  sb_open(&w, NULL);
  sandbox = sb_attach(&w, "i");
  for (i = 0; i < E2B__COUNT(rows); i++) {
    sb_script(&w.server, sb_answer(rows[i].status, "", rows[i].body), NULL);
    running = !rows[i].running;
    CHECK_INT(e2b_sandbox_is_running(sandbox, NULL, &running, &w.err), rows[i].code);
    CHECK_INT(running, rows[i].running);
    CHECK_INT(peer_asked_count(&w.server), 1);
  }
  SB_ARGUMENT(e2b_sandbox_is_running(sandbox, NULL, NULL, &w.err), "running");
  sb_close(&w);
}

/* Which secret goes where, with everything set. */
static void test_sandbox_secrets_stay_in_their_plane(void) {
  static const e2b_kv headers[] = { { "X-Extra", "1" }, { "X-API-Key", "forged" }, { "Authorization", "Bearer user" } };
  e2b_client_config config;
  e2b_sandbox *sandbox;
  bool running;
  int i;
  for (i = 0; i < 2; i++) {
    sb_world w;
    memset(&config, 0, sizeof config);
    config.access_token = "config-token";
    config.send_api_key_to_sandbox = i == 1;
    config.headers.items = headers;
    config.headers.count = i == 1 ? 3 : 1;
    sb_open(&w, &config);
    sb_script(&w.server, sb_json(201, SB_CREATED), sb_answer(204, "", ""));
    CHECK_INT(e2b_sandbox_create(w.client, "t", NULL, &sandbox, &w.err), E2B_OK);
    CHECK_INT(e2b_sandbox_is_running(sandbox, NULL, &running, &w.err), E2B_OK);
    CHECK_INT(e2b_sandbox_kill(sandbox, NULL, NULL, &w.err), E2B_OK);
    CHECK(strstr(w.server.requests[0], "x-api-key: secret-key\r\n") &&
          strstr(w.server.requests[2], "x-api-key: secret-key\r\n"));
    CHECK(!strstr(w.server.requests[0], "forged") && !strstr(w.server.requests[2], "forged"));
    CHECK(!strstr(w.server.requests[0], "config-token") && !strstr(w.server.requests[0], "access-token"));
    CHECK(!strstr(w.server.requests[2], "envd-secret") && !strstr(w.server.requests[2], "traffic-secret"));
    CHECK(!strstr(w.server.requests[2], "e2b-sandbox-"));
    CHECK(strstr(w.server.requests[1], "x-access-token: envd-secret\r\n") &&
          !strstr(w.server.requests[1], "config-token"));
    CHECK(!strstr(w.server.requests[1], "traffic")); /* it is no JWT */
    CHECK_INT(strstr(w.server.requests[1], "secret-key") != NULL, i);
    CHECK(strstr(w.server.requests[0], "x-extra: 1\r\n") && strstr(w.server.requests[1], "x-extra: 1\r\n") &&
          strstr(w.server.requests[2], "x-extra: 1\r\n"));
    sb_close(&w);
  }
}

/* ------------------------------------------------------------------------------------------------------------------ */
/* without blocking */
/* ------------------------------------------------------------------------------------------------------------------ */

typedef struct sb_done {
  int calls;
  e2b_error err;
  e2b_client *client;
  e2b_sandbox *sandbox, **free_it;
  e2b_err inner[4];
} sb_done;

static void sb_on_done(void *user, const e2b_error *err) {
  sb_done *done = (sb_done *)user;
  done->calls++;
  done->err = *err;
}

static e2b_call sb_call(sb_done *done) {
  e2b_call call;
  memset(&call, 0, sizeof call);
  memset(done, 0, sizeof *done);
  call.on_done = sb_on_done;
  call.user = done;
  return call;
}

static void sb_poll_until(e2b_client *client, const int *calls, int want) {
  int i;
  for (i = 0; i < 500 && *calls < want; i++) e2b_client_poll(client, 10);
}

/* Until the server has seen that many requests. */
static void sb_poll_requests(sb_world *w, int count) {
  int i;
  for (i = 0; i < 500 && peer_asked_count(&w->server) < count; i++) e2b_client_poll(w->client, 10);
  CHECK_INT(peer_asked_count(&w->server), count);
}

static void test_sandbox_non_blocking(void) {
  e2b_create_response response;
  e2b_sandbox_info info;
  e2b_sandbox_list list;
  e2b_list_opts list_opts;
  e2b_sandbox_opts opts;
  e2b_sandbox *sandbox;
  bool killed = true, running = false;
  sb_done done;
  e2b_call call;
  e2b_op op;
  e2b_err code = E2B_PENDING;
  int i;
  sb_world w;
  sb_open(&w, NULL);
  memset(&opts, 0, sizeof opts);
  memset(&info, 0, sizeof info);
  memset(&list, 0, sizeof list);
  memset(&list_opts, 0, sizeof list_opts);
  memset(&response, 0, sizeof response);
  sb_script(&w.server, sb_json(201, SB_CREATED), NULL);
  opts.call.op = &op;
  sandbox = (e2b_sandbox *)&w;
  CHECK_INT(e2b_sandbox_create(w.client, "t", &opts, &sandbox, &w.err), E2B_PENDING);
  CHECK(sandbox == NULL);
  CHECK_INT(w.err.code, E2B_PENDING);
  CHECK_INT(peer_asked_count(&w.server), 0);
  for (i = 0; i < 500 && code == E2B_PENDING; i++) {
    e2b_client_poll(w.client, 10);
    code = e2b_op_poll(w.client, op, &w.err);
  }
  CHECK_INT(code, E2B_OK);
  CHECK_STR(e2b_sandbox_id(sandbox), "sb1");
  CHECK_INT(e2b_op_poll(w.client, op, &w.err), E2B_ERR_BAD_STATE);

  call = sb_call(&done);
  CHECK_INT(e2b_sandbox_get_info(sandbox, &call, &info, NULL), E2B_PENDING);
  CHECK_INT(e2b_api_connect_sandbox(w.client, "x", 0, &call, &response, NULL), E2B_PENDING);
  CHECK(info.sandbox_id == NULL);
  sb_poll_until(w.client, &done.calls, 2);
  CHECK_INT(done.calls, 2);
  CHECK_INT(done.err.code, E2B_OK);
  CHECK_STR(info.sandbox_id, "sb1");
  CHECK_STR(response.sandbox_id, "sb1");
  e2b_mem_free(&info.mem);
  e2b_mem_free(&response.mem);

  sb_script(&w.server, sb_answer(404, "", "{}"), NULL);
  call = sb_call(&done);
  CHECK_INT(e2b_sandbox_kill(sandbox, &call, &killed, NULL), E2B_PENDING);
  sb_poll_until(w.client, &done.calls, 1);
  CHECK(done.err.code == E2B_OK && !killed);
  call = sb_call(&done);
  CHECK_INT(e2b_sandbox_set_timeout(sandbox, 5, &call, NULL), E2B_PENDING);
  sb_poll_until(w.client, &done.calls, 1);
  CHECK_INT(done.err.code, E2B_ERR_NOT_FOUND);
  CHECK_INT(done.err.subject, E2B_SUBJECT_SANDBOX);
  sb_script(&w.server, sb_answer(204, "", ""), NULL);
  call = sb_call(&done);
  CHECK_INT(e2b_sandbox_pause(sandbox, &call, NULL), E2B_PENDING);
  CHECK_INT(e2b_sandbox_is_running(sandbox, &call, &running, NULL), E2B_PENDING);
  sb_poll_until(w.client, &done.calls, 2);
  CHECK(done.err.code == E2B_OK && running);
  sb_script(&w.server, sb_json(200, "[]"), NULL);
  list_opts.call = sb_call(&done);
  CHECK_INT(e2b_api_list(w.client, &list_opts, &list, NULL), E2B_PENDING);
  sb_poll_until(w.client, &done.calls, 1);
  CHECK_INT(done.err.code, E2B_OK);
  e2b_mem_free(&list.mem);
  CHECK_INT(w.client->op_count, 0);
  CHECK_INT(e2b_client_drain(w.client, 0), E2B_OK);
  sb_close(&w);
}

static void test_sandbox_cancel(void) {
  e2b_client_stats stats;
  e2b_sandbox_opts opts;
  e2b_sandbox *sandbox;
  e2b_op op;
  sb_world w;
  sb_open(&w, NULL);
  memset(&opts, 0, sizeof opts);
  sb_script(&w.server, SB_HANG, NULL);
  opts.call.op = &op;
  CHECK_INT(e2b_sandbox_create(w.client, "t", &opts, &sandbox, &w.err), E2B_PENDING);
  e2b_client_poll(w.client, 10);
  e2b_client_get_stats(w.client, &stats);
  CHECK_INT(stats.ops_active, 1);
  CHECK_INT(stats.connections_open, 1);
  CHECK_INT(stats.streams_open, 1);
  e2b_op_cancel(w.client, op);
  e2b_op_cancel(w.client, op);
  e2b_client_get_stats(w.client, &stats);
  CHECK_INT(stats.ops_active, 0);
  CHECK_INT(stats.connections_open, 0);
  CHECK(sandbox == NULL);
  /* a blocking call, interrupted before it begins */
  e2b_client_interrupt(w.client);
  CHECK_INT(e2b_sandbox_create(w.client, "t", NULL, &sandbox, &w.err), E2B_ERR_CANCELED);
  sb_close(&w);
}

static void sb_on_done_inside(void *user, const e2b_error *err) {
  sb_done *done = (sb_done *)user;
  e2b_sandbox *sandbox = done->sandbox;
  bool running;
  sb_on_done(user, err);
  done->inner[0] = e2b_sandbox_kill(sandbox, NULL, NULL, NULL); /* blocking: refused */
  done->inner[1] = e2b_sandbox_is_running(sandbox, NULL, &running, NULL);
  e2b_client_free(done->client); /* refused, logged */
  done->inner[2] = e2b_sandbox_attach(done->client, "new", NULL, &sandbox, NULL);
  done->inner[3] = e2b_sandbox_close(done->sandbox, NULL, NULL); /* refused, but the handle is gone */
}

static void sb_on_log(void *user, e2b_log_level level, const char *message) {
  if (level == E2B_LOG_ERROR && strstr(message, "e2b_client_free")) ++*(int *)user;
}

static void test_sandbox_inside_callbacks(void) {
  e2b_client_config config;
  e2b_call call;
  sb_done done;
  int logged = 0;
  sb_world w;
  memset(&config, 0, sizeof config);
  config.logger.func = sb_on_log;
  config.logger.user = &logged;
  sb_open(&w, &config);
  call = sb_call(&done);
  call.on_done = sb_on_done_inside;
  done.client = w.client;
  done.sandbox = sb_attach(&w, "a");
  CHECK_INT(e2b_sandbox_pause(done.sandbox, &call, NULL), E2B_PENDING);
  sb_poll_until(w.client, &done.calls, 1);
  CHECK_INT(done.inner[0], E2B_ERR_BAD_STATE);
  CHECK_INT(done.inner[1], E2B_ERR_BAD_STATE);
  CHECK_INT(done.inner[2], E2B_OK);
  CHECK_INT(done.inner[3], E2B_ERR_BAD_STATE);
  CHECK_INT(logged, 1);
  CHECK(w.client->sandboxes && !w.client->sandboxes->next);
  CHECK_STR(e2b_sandbox_id(w.client->sandboxes), "new");
  CHECK_INT(peer_asked_count(&w.server), 1);
  sb_close(&w);
}

/* close without blocking: the handle is gone at once, the request goes on. */
static void test_sandbox_close_non_blocking(void) {
  e2b_sandbox *sandbox;
  e2b_sandbox_info info;
  sb_done done, lost;
  e2b_call call, other;
  sb_world w;
  sb_open(&w, NULL);
  memset(&info, 0, sizeof info);
  sandbox = sb_attach(&w, "a b");
  other = sb_call(&lost);
  call = sb_call(&done);
  CHECK_INT(e2b_sandbox_get_info(sandbox, &other, &info, NULL), E2B_PENDING);
  CHECK_INT(e2b_sandbox_close(sandbox, &call, &w.err), E2B_PENDING);
  CHECK(w.client->sandboxes == NULL);
  sb_poll_until(w.client, &done.calls, 1);
  CHECK_INT(done.err.code, E2B_OK);
  CHECK_INT(lost.calls, 1);
  CHECK_INT(lost.err.code, E2B_ERR_CANCELED);
  SB_CHECK_REQUEST(&w.server, 0, "DELETE /sandboxes/a%20b HTTP/1.1\r\n" SB_HEAD "\r\n");
  CHECK_INT(w.client->op_count, 0);
  sb_close(&w);
}

static void test_sandbox_free_cancels(void) {
  e2b_sandbox *one, *two;
  bool flags[2] = { false, false };
  sb_done done[2];
  e2b_call call;
  e2b_op op;
  sb_world w;
  sb_open(&w, NULL);
  sb_script(&w.server, SB_HANG, NULL);
  one = sb_attach(&w, "one");
  two = sb_attach(&w, "two");
  call = sb_call(&done[0]);
  CHECK_INT(e2b_sandbox_is_running(one, &call, &flags[0], NULL), E2B_PENDING);
  call = sb_call(&done[1]);
  CHECK_INT(e2b_sandbox_is_running(two, &call, &flags[1], NULL), E2B_PENDING);
  memset(&call, 0, sizeof call);
  call.op = &op;
  CHECK_INT(e2b_sandbox_kill(one, &call, NULL, NULL), E2B_PENDING);
  sb_poll_requests(&w, 3);
  e2b_sandbox_free(one);
  CHECK_INT(done[0].calls, 0); /* callbacks come from poll */
  e2b_client_poll(w.client, 0);
  CHECK_INT(done[0].calls, 1);
  CHECK_INT(done[0].err.code, E2B_ERR_CANCELED);
  CHECK(!done[0].err.maybe_done || done[0].err.phase >= E2B_PHASE_SEND);
  CHECK_INT(e2b_op_poll(w.client, op, &w.err), E2B_ERR_CANCELED);
  CHECK_INT(done[1].calls, 0);
  CHECK_INT(w.client->conn_count, 1);
  e2b_sandbox_free(two);
  sb_close(&w); /* with a canceled call not delivered yet */
  CHECK_INT(done[1].calls, 1);
  CHECK_INT(done[1].err.code, E2B_ERR_CANCELED);
}

static void sb_on_done_during_free(void *user, const e2b_error *err) {
  sb_done *done = (sb_done *)user;
  static sb_done unused;
  e2b_call call = sb_call(&unused);
  sb_on_done(user, err);
  done->inner[0] = e2b_api_kill(done->client, "x", &call, NULL, NULL);
  done->inner[1] = e2b_sandbox_attach(done->client, "x", NULL, &done->sandbox, NULL);
  e2b_client_free(done->client);
  if (done->free_it) e2b_sandbox_free(*done->free_it);
  done->free_it = NULL;
}

static void test_client_free_in_flight(void) {
  e2b_sandbox *sandbox, *created;
  e2b_sandbox_opts opts;
  e2b_sandbox_info info;
  sb_done done[3];
  e2b_call call;
  e2b_op op;
  int state;
  for (state = 0; state < 3; state++) { /* not started, waiting for the answer, finished but not collected */
    sb_world w;
    sb_open(&w, NULL);
    memset(&opts, 0, sizeof opts);
    memset(&info, 0, sizeof info);
    sb_script(&w.server, state == 2 ? sb_json(201, SB_CREATED) : SB_HANG, NULL);
    sandbox = sb_attach(&w, "a");
    opts.call = sb_call(&done[0]);
    opts.call.on_done = sb_on_done_during_free;
    done[0].client = w.client;
    done[0].free_it = &sandbox;
    CHECK_INT(e2b_sandbox_create(w.client, "t", &opts, &created, NULL), E2B_PENDING);
    call = sb_call(&done[1]);
    CHECK_INT(e2b_sandbox_get_info(sandbox, &call, &info, NULL), E2B_PENDING);
    memset(&call, 0, sizeof call);
    call.op = &op;
    CHECK_INT(e2b_sandbox_pause(sandbox, &call, NULL), E2B_PENDING);
    if (state == 2) done[0].free_it = NULL;
    if (state == 1) sb_poll_requests(&w, 3);
    if (state == 2) {
      CHECK_INT(e2b_client_drain(w.client, 5000), E2B_OK);
      e2b_mem_free(&info.mem);
    }
    sb_close(&w);
    CHECK_INT(done[0].calls, 1);
    CHECK_INT(done[1].calls, 1);
    CHECK_INT(done[0].err.code, state == 2 ? E2B_OK : E2B_ERR_CANCELED);
    CHECK_INT(done[1].err.code, state == 2 ? E2B_OK : E2B_ERR_CANCELED);
    CHECK_INT(done[0].inner[0], state == 2 ? E2B_PENDING : E2B_ERR_BAD_STATE);
    CHECK_INT(done[0].inner[1], state == 2 ? E2B_OK : E2B_ERR_BAD_STATE);
  }
}

/* kill and set_timeout ask nobody; everything else does. */
static void test_sandbox_debug(void) {
  e2b_client_config config;
  e2b_sandbox *sandbox;
  e2b_sandbox_info info;
  sb_done done;
  e2b_call call;
  bool killed = false;
  sb_world w;
  memset(&config, 0, sizeof config);
  memset(&info, 0, sizeof info);
  config.debug = true;
  sb_open(&w, &config);
  sandbox = sb_attach(&w, "a");
  CHECK_INT(e2b_sandbox_kill(sandbox, NULL, &killed, &w.err), E2B_OK);
  CHECK(killed);
  CHECK_INT(e2b_api_kill(w.client, "a", NULL, NULL, NULL), E2B_OK);
  CHECK_INT(e2b_sandbox_set_timeout(sandbox, 5, NULL, &w.err), E2B_OK);
  CHECK_INT(e2b_api_set_timeout(w.client, "a", 5, NULL, &w.err), E2B_OK);
  CHECK_INT(e2b_api_set_timeout(w.client, "", 5, NULL, &w.err), E2B_ERR_INVALID_ARGUMENT);
  call = sb_call(&done);
  CHECK_INT(e2b_sandbox_set_timeout(sandbox, 5, &call, &w.err), E2B_PENDING);
  CHECK_INT(done.calls, 0);
  e2b_client_poll(w.client, 0);
  CHECK(done.calls == 1 && done.err.code == E2B_OK);
  call = sb_call(&done);
  CHECK_INT(e2b_sandbox_close(sandbox, &call, &w.err), E2B_PENDING);
  e2b_client_poll(w.client, 0);
  CHECK(done.calls == 1 && done.err.code == E2B_OK);
  CHECK_INT(peer_asked_count(&w.server), 0);
  sb_script(&w.server, sb_json(200, SB_CREATED), NULL);
  CHECK_INT(e2b_sandbox_create(w.client, NULL, NULL, &sandbox, &w.err), E2B_OK);
  CHECK_INT(e2b_sandbox_get_info(sandbox, NULL, &info, &w.err), E2B_OK);
  e2b_mem_free(&info.mem);
  CHECK_INT(peer_asked_count(&w.server), 2);
  sb_close(&w);
}

/* Every allocation of a whole life fails in turn: the call says so, nothing leaks, the client stays usable. */
static void test_sandbox_no_memory(void) {
  static const e2b_kv metadata[] = { { "team", "a" } };
  e2b_sandbox_opts opts;
  e2b_create_response response;
  e2b_sandbox_info info;
  e2b_sandbox *sandbox;
  bool running, done = false;
  int survived = 0;
  size_t n;
  sb_world w;
  sb_open(&w, NULL);
  memset(&opts, 0, sizeof opts);
  opts.metadata.items = metadata;
  opts.metadata.count = 1;
  opts.traffic_access_token = "t";
  opts.extra_json = "{\"x\":1}";
  for (n = 1; !done; n++) {
    e2b_err code[6];
    e2b_client *client;
    test_heap heap;
    int failed;
    size_t i;
    memset(code, 0, sizeof code);
    memset(&info, 0, sizeof info);
    memset(&response, 0, sizeof response);
    sb_script(&w.server, sb_json(200, SB_CREATED), NULL);
    w.config.allocator = heap_allocator(&heap);
    heap.fail_at = n;
    client = e2b_client_create(&w.config, &w.err);
    CHECK(client || w.err.code == E2B_ERR_NO_MEMORY);
    if (client) {
      code[0] = e2b_sandbox_create(client, "t", &opts, &sandbox, &w.err);
      CHECK((code[0] == E2B_OK) == (sandbox != NULL));
      CHECK(code[0] == E2B_OK || strlen(w.err.message) > 0);
      if (sandbox) {
        code[1] = e2b_sandbox_get_info(sandbox, NULL, &info, &w.err);
        CHECK((code[1] == E2B_OK) == (info.sandbox_id != NULL));
        code[2] = e2b_sandbox_is_running(sandbox, NULL, &running, &w.err);
        code[3] = e2b_sandbox_set_timeout(sandbox, 1, NULL, &w.err);
        code[4] = e2b_sandbox_close(sandbox, NULL, &w.err);
      }
      code[5] = e2b_api_connect_sandbox(client, "x", 0, NULL, &response, &w.err);
    }
    for (i = 0; i < 6; i++) CHECK(code[i] == E2B_OK || code[i] == E2B_ERR_NO_MEMORY);
    done = heap.calls < n;
    for (i = 0, failed = 0; i < 6; i++) failed += code[i] != E2B_OK;
    if (!failed && client && !done)
      survived++; /* the loop can do without its array of descriptors */
    else if (client && !done)
      CHECK_INT(failed, 1);
    e2b_mem_free(&info.mem);
    e2b_mem_free(&response.mem);
    e2b_client_free(client);
    HEAP_CHECK_EMPTY(&heap);
  }
  CHECK(n > 60 && survived <= 4);
  sb_close(&w);
}

/* Handles do not pile up: the same memory after many lives as after one. */
static void test_sandbox_many_lives(void) {
  e2b_client_stats before, after;
  e2b_sandbox *sandbox;
  int i;
  sb_world w;
  sb_open(&w, NULL);
  sb_script(&w.server, sb_json(201, SB_CREATED), NULL);
  for (i = 0; i < 50; i++) {
    CHECK_INT(e2b_sandbox_create(w.client, "t", NULL, &sandbox, &w.err), E2B_OK);
    e2b_sandbox_free(sandbox);
    e2b_client_get_stats(w.client, i == 0 ? &before : &after);
  }
  CHECK_INT(after.mem_now, before.mem_now);
  CHECK_INT(after.connections_made, 1);
  CHECK_INT(after.connections_idle, 1);
  CHECK(after.bytes_rx > before.bytes_rx && after.bytes_tx > before.bytes_tx);
  sb_close(&w);
}

/* ================================================================================================================== */
/* >>>> api and raw */
/* ================================================================================================================== */

/* The rest of the control plane, the heartbeat, and requests that have no function of their own. */

static void test_api_golden_requests(void) {
  static const char *const allow[] = { "1.2.3.4" };
  e2b_network network;
  e2b_list_opts list_opts;
  e2b_sandbox_list list;
  e2b_sandbox_info info;
  e2b_metric_list metrics;
  e2b_log_list logs;
  e2b_logs_opts logs_opts;
  e2b_snapshot snapshot;
  e2b_snapshot_list snapshots;
  e2b_snapshot_list_opts snapshot_opts;
  e2b_error err;
  bool deleted = false;
  sb_world w;
  memset(&network, 0, sizeof network);
  memset(&list_opts, 0, sizeof list_opts);
  memset(&list, 0, sizeof list);
  memset(&info, 0, sizeof info);
  memset(&metrics, 0, sizeof metrics);
  memset(&logs, 0, sizeof logs);
  memset(&logs_opts, 0, sizeof logs_opts);
  memset(&snapshot, 0, sizeof snapshot);
  memset(&snapshots, 0, sizeof snapshots);
  memset(&snapshot_opts, 0, sizeof snapshot_opts);
  sb_open(&w, NULL);

  sb_script(&w.server, sb_json(200, "[]"), NULL);
  CHECK_OK(e2b_api_get_metrics(w.client, "a/b", 0, 0, NULL, &metrics, &err));
  SB_CHECK_REQUEST(&w.server, 0, "GET /sandboxes/a%2Fb/metrics HTTP/1.1\r\n" SB_HEAD "\r\n");
  e2b_mem_free(&metrics.mem);
  CHECK_OK(e2b_api_get_metrics(w.client, "i", 1700000000999, 1700000001001, NULL, &metrics, &err)); /* none is cut off */
  SB_CHECK_REQUEST(&w.server, 1, "GET /sandboxes/i/metrics?start=1700000000&end=1700000002 HTTP/1.1\r\n" SB_HEAD "\r\n");
  e2b_mem_free(&metrics.mem);
  CHECK_OK(e2b_api_get_metrics(w.client, "i", 0, 1700000001000, NULL, &metrics, &err));
  SB_CHECK_REQUEST(&w.server, 2, "GET /sandboxes/i/metrics?end=1700000001 HTTP/1.1\r\n" SB_HEAD "\r\n");
  e2b_mem_free(&metrics.mem);

  list_opts.template_id = "t/u:v";
  list_opts.started_after_ms = 1700000000123;
  list_opts.oldest_first = true;
  CHECK_OK(e2b_api_list(w.client, &list_opts, &list, &err));
  SB_CHECK_REQUEST(&w.server, 3,
                   "GET /v2/sandboxes?template=t%2Fu%3Av&startedAfter=2023-11-14T22%3A13%3A20.123Z&order=asc HTTP/1.1\r\n"
                   SB_HEAD "\r\n");
  e2b_mem_free(&list.mem);
  CHECK_RC(e2b_api_find_by_nonce(w.client, "0a1b", NULL, &info, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_SANDBOX);
  SB_CHECK_REQUEST(&w.server, 4,
                   "GET /v2/sandboxes?metadata=e2b.h%25252Fnonce%3D0a1b HTTP/1.1\r\n" SB_HEAD "\r\n");

  snapshot_opts.sandbox_id = "a/b";
  snapshot_opts.name = "n:t";
  snapshot_opts.next_token = "=";
  snapshot_opts.limit = 7;
  CHECK_OK(e2b_api_list_snapshots(w.client, NULL, &snapshots, &err));
  CHECK(snapshots.count == 0 && !snapshots.next_token);
  e2b_mem_free(&snapshots.mem);
  CHECK_OK(e2b_api_list_snapshots(w.client, &snapshot_opts, &snapshots, &err));
  SB_CHECK_REQUEST(&w.server, 5, "GET /snapshots HTTP/1.1\r\n" SB_HEAD "\r\n");
  SB_CHECK_REQUEST(&w.server, 6,
                   "GET /snapshots?sandboxID=a%2Fb&name=n%3At&limit=7&nextToken=%3D HTTP/1.1\r\n" SB_HEAD "\r\n");
  e2b_mem_free(&snapshots.mem);

  sb_script(&w.server, sb_json(200, "{\"logs\":[]}"), NULL);
  logs_opts.cursor_ms = 1700000000123;
  logs_opts.forward = true;
  logs_opts.limit = 1000;
  logs_opts.level = "warn";
  logs_opts.search = "a b&c";
  CHECK_OK(e2b_api_get_logs(w.client, "a/b", NULL, &logs, &err));
  e2b_mem_free(&logs.mem);
  CHECK_OK(e2b_api_get_logs(w.client, "i", &logs_opts, &logs, &err));
  SB_CHECK_REQUEST(&w.server, 0, "GET /v2/sandboxes/a%2Fb/logs HTTP/1.1\r\n" SB_HEAD "\r\n");
  SB_CHECK_REQUEST(&w.server, 1,
                   "GET /v2/sandboxes/i/logs?cursor=1700000000123&limit=1000&direction=forward&level=warn"
                   "&search=a%20b%26c HTTP/1.1\r\n" SB_HEAD "\r\n");
  e2b_mem_free(&logs.mem);

  sb_script(&w.server, sb_json(201, "{\"snapshotID\":\"s:t\",\"names\":null}"), NULL);
  CHECK_OK(e2b_api_create_snapshot(w.client, "i", NULL, NULL, &snapshot, &err));
  CHECK_STR(snapshot.snapshot_id, "s:t");
  CHECK_INT(snapshot.names.count, 0);
  e2b_mem_free(&snapshot.mem);
  CHECK_OK(e2b_api_create_snapshot(w.client, "i", "my \"name\"", NULL, &snapshot, &err));
  SB_CHECK_REQUEST(&w.server, 0, "POST /sandboxes/i/snapshots HTTP/1.1\r\n" SB_HEAD SB_BODY("2") "{}");
  SB_CHECK_REQUEST(&w.server, 1,
                   "POST /sandboxes/i/snapshots HTTP/1.1\r\n" SB_HEAD SB_BODY("22") "{\"name\":\"my \\\"name\\\"\"}");
  e2b_mem_free(&snapshot.mem);

  sb_script(&w.server, sb_answer(204, "", ""), NULL);
  CHECK_OK(e2b_api_delete_snapshot(w.client, "team/n:t", NULL, &deleted, &err));
  CHECK(deleted);
  SB_CHECK_REQUEST(&w.server, 0, "DELETE /templates/team%2Fn%3At HTTP/1.1\r\n" SB_HEAD "\r\n");
  CHECK_OK(e2b_api_update_network(w.client, "i", NULL, E2B_UNSET, NULL, &err));
  SB_CHECK_REQUEST(&w.server, 1, "PUT /sandboxes/i/network HTTP/1.1\r\n" SB_HEAD SB_BODY("2") "{}");
  network.allow_out.items = allow;
  network.allow_out.count = 1;
  network.egress_proxy_address = "p:1";
  CHECK_OK(e2b_api_update_network(w.client, "i", &network, E2B_NO, NULL, &err));
  SB_CHECK_REQUEST(&w.server, 2,
                   "PUT /sandboxes/i/network HTTP/1.1\r\n" SB_HEAD SB_BODY("86")
                   "{\"allowOut\":[\"1.2.3.4\"],\"egressProxy\":{\"address\":\"p:1\"},\"allow_internet_access\":false}");
  sb_close(&w);
}

/* Two layers of encoding in the filter; no filters that this service would take for metadata. */
static void test_api_private_protocol(void) {
  e2b_client_config config;
  e2b_list_opts opts;
  e2b_sandbox_list list;
  e2b_sandbox_info info;
  e2b_error err;
  sb_world w;
  memset(&config, 0, sizeof config);
  memset(&opts, 0, sizeof opts);
  memset(&list, 0, sizeof list);
  memset(&info, 0, sizeof info);
  config.protocol = E2B_PROTOCOL_PRIVATE;
  sb_open(&w, &config);
  sb_script(&w.server, sb_json(200, "[]"), NULL);
  CHECK_RC(e2b_api_find_by_nonce(w.client, "0a1b", NULL, &info, &err), E2B_ERR_NOT_FOUND);
  SB_CHECK_REQUEST(&w.server, 0, "GET /v2/sandboxes?metadata=e2b.h%252Fnonce%3D0a1b HTTP/1.1\r\n" SB_HEAD "\r\n");
  opts.oldest_first = true;
  CHECK_OK(e2b_api_list(w.client, &opts, &list, &err));
  SB_CHECK_REQUEST(&w.server, 1, "GET /v2/sandboxes HTTP/1.1\r\n" SB_HEAD "\r\n");
  e2b_mem_free(&list.mem);
  opts.template_id = "t"; /* not asked for: done by the client */
  opts.started_after_ms = 1;
  CHECK_OK(e2b_api_list(w.client, &opts, &list, &err));
  SB_CHECK_REQUEST(&w.server, 2, "GET /v2/sandboxes HTTP/1.1\r\n" SB_HEAD "\r\n");
  e2b_mem_free(&list.mem);
  sb_close(&w);
}

static void test_api_metrics(void) {
  static const struct { const char *text; double value; } numbers[] = {
    { "0", 0 }, { "12.5", 12.5 }, { "-0.25", -0.25 }, { "1e2", 100 }, { "1.5E+1", 15 }, { "25e-2", 0.25 },
    { "1e999999999999999999999", 1 }, { "0.1", 0.1 }, { "99.99", 99.99 }, { "1e-400", 0 } };
  e2b_metric_list list;
  e2b_error err;
  size_t i;
  sb_world w;
  memset(&list, 0, sizeof list);
  for (i = 0; i < E2B__COUNT(numbers); i++) {
    double got = e2b__to_double(e2b__str(numbers[i].text)), off = got - numbers[i].value;
    if (!CHECK(off < 1e-12 && off > -1e-12)) printf("  %s is read as %g\n", numbers[i].text, got);
  }
  sb_open(&w, NULL);
  sb_script(&w.server, sb_json(200, "[{\"timestamp\":\"2023-11-14T22:13:20.5Z\",\"timestampUnix\":1,\"cpuCount\":2,"
            "\"cpuUsedPct\":12.5,\"memUsed\":9007199254740993,\"memTotal\":2,\"memCache\":3,\"diskUsed\":4,"
            "\"diskTotal\":5,\"more\":[{}]},{\"timestampUnix\":1700000000,\"cpuUsedPct\":0}]"), NULL);
  CHECK_OK(e2b_api_get_metrics(w.client, "i", 0, 0, NULL, &list, &err));
  if (CHECK_INT(list.count, 2)) {
    CHECK_INT(list.items[0].timestamp_ms, 1700000000500);
    CHECK_INT(list.items[0].cpu_count, 2);
    CHECK(list.items[0].cpu_used_pct > 12.49 && list.items[0].cpu_used_pct < 12.51);
    CHECK_INT(list.items[0].mem_used, 9007199254740993);
    CHECK_INT(list.items[0].mem_total, 2);
    CHECK_INT(list.items[0].mem_cache, 3);
    CHECK_INT(list.items[0].disk_used, 4);
    CHECK_INT(list.items[0].disk_total, 5);
    CHECK_INT(list.items[1].timestamp_ms, 1700000000000);
  }
  e2b_mem_free(&list.mem);
  /* a server without metrics may answer with the sandbox */
  sb_script(&w.server, sb_json(200, SB_CREATED), NULL);
  CHECK_RC(e2b_api_get_metrics(w.client, "i", 0, 0, NULL, &list, &err), E2B_ERR_NOT_BUILT);
  sb_script(&w.server, sb_json(200, "[1]"), NULL);
  CHECK_RC(e2b_api_get_metrics(w.client, "i", 0, 0, NULL, &list, &err), E2B_ERR_PROTOCOL);
  sb_script(&w.server, sb_answer(200, "", "<html>"), NULL);
  CHECK_RC(e2b_api_get_metrics(w.client, "i", 0, 0, NULL, &list, &err), E2B_ERR_PROTOCOL);
  sb_script(&w.server, sb_json(404, "{\"code\":404,\"message\":\"no\"}"), NULL);
  CHECK_RC(e2b_api_get_metrics(w.client, "i", 0, 0, NULL, &list, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_SANDBOX);
  CHECK(list.count == 0 && !list.items);
  sb_close(&w);
}

static void test_api_logs(void) {
  e2b_log_list list;
  e2b_error err;
  sb_world w;
  memset(&list, 0, sizeof list);
  sb_open(&w, NULL);
  sb_script(&w.server, sb_json(200, "{\"logs\":[{\"timestamp\":\"2023-11-14T22:13:20Z\",\"level\":\"info\",\"message\":"
            "\"a \\\"b\\\"\",\"fields\":{\"k\":\"v\",\"k2\":\"\"}},{\"timestamp\":\"\",\"level\":\"error\",\"message\":"
            "\"\",\"fields\":{}}],\"more\":1}"), NULL);
  CHECK_OK(e2b_api_get_logs(w.client, "i", NULL, &list, &err));
  if (CHECK_INT(list.count, 2)) {
    CHECK_INT(list.items[0].timestamp_ms, 1700000000000);
    CHECK_STR(list.items[0].level, "info");
    CHECK_STR(list.items[0].message, "a \"b\"");
    if (CHECK_INT(list.items[0].fields.count, 2)) CHECK_STR(list.items[0].fields.items[0].value, "v");
    CHECK_INT(list.items[1].timestamp_ms, 0);
    CHECK_STR(list.items[1].level, "error");
  }
  e2b_mem_free(&list.mem);
  sb_script(&w.server, sb_json(200, "[" SB_CREATED "]"), NULL); /* a server that took it for a list */
  CHECK_RC(e2b_api_get_logs(w.client, "i", NULL, &list, &err), E2B_ERR_NOT_BUILT);
  sb_script(&w.server, sb_answer(404, "", "404 page not found"), NULL);
  CHECK_RC(e2b_api_get_logs(w.client, "i", NULL, &list, &err), E2B_ERR_NOT_FOUND);
  sb_close(&w);
}

static void test_api_snapshots(void) {
  e2b_snapshot snapshot;
  e2b_snapshot_list list;
  e2b_sandbox_info info;
  e2b_error err;
  bool deleted = true;
  sb_world w;
  memset(&snapshot, 0, sizeof snapshot);
  memset(&list, 0, sizeof list);
  memset(&info, 0, sizeof info);
  sb_open(&w, NULL);
  sb_script(&w.server, sb_answer(200, "x-next-token: n=\r\n", "[{\"snapshotID\":\"a:b\",\"names\":[\"x/a\",\"y\"]},"
            "{\"snapshotID\":\"c\",\"names\":[]}]"), NULL);
  CHECK_OK(e2b_api_list_snapshots(w.client, NULL, &list, &err));
  CHECK_STR(list.next_token, "n=");
  if (CHECK_INT(list.count, 2)) {
    CHECK_STR(list.items[0].snapshot_id, "a:b");
    if (CHECK_INT(list.items[0].names.count, 2)) CHECK_STR(list.items[0].names.items[1], "y");
    CHECK_STR(list.items[1].snapshot_id, "c");
    CHECK_INT(list.items[1].names.count, 0);
  }
  e2b_mem_free(&list.mem);
  sb_script(&w.server, sb_json(404, "{}"), NULL);
  CHECK_OK(e2b_api_delete_snapshot(w.client, "s", NULL, &deleted, &err));
  CHECK(!deleted);
  CHECK_OK(e2b_api_delete_snapshot(w.client, "s", NULL, NULL, NULL));
  CHECK_RC(e2b_api_create_snapshot(w.client, "s", NULL, NULL, &snapshot, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_SANDBOX);
  sb_script(&w.server, sb_json(400, "{\"code\":400,\"message\":\"in use\"}"), NULL);
  CHECK_RC(e2b_api_delete_snapshot(w.client, "s", NULL, &deleted, &err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(err.message, "in use");
  sb_script(&w.server, sb_json(201, "{\"names\":[]}"), NULL);
  CHECK_RC(e2b_api_create_snapshot(w.client, "s", NULL, NULL, &snapshot, &err), E2B_ERR_PROTOCOL);
  CHECK(err.maybe_done);
  /* made once: not sent again on a fresh connection when a kept one died. Deleting is. */
  sb_script(&w.server, sb_json(200, SB_CREATED), SB_DROP);
  CHECK_OK(e2b_api_get_info(w.client, "i", NULL, &info, &err));
  e2b_mem_free(&info.mem);
  CHECK_RC(e2b_api_create_snapshot(w.client, "s", NULL, NULL, &snapshot, &err), E2B_ERR_CLOSED);
  CHECK(err.maybe_done);
  CHECK_INT(peer_asked_count(&w.server), 2);
  peer_clear(&w.server);
  sb_say(&w.server, sb_json(200, SB_CREATED), false);
  sb_say(&w.server, SB_DROP, false);
  sb_say(&w.server, sb_answer(204, "", ""), true);
  CHECK_OK(e2b_api_get_info(w.client, "i", NULL, &info, &err));
  e2b_mem_free(&info.mem);
  CHECK_OK(e2b_api_delete_snapshot(w.client, "s", NULL, &deleted, &err));
  CHECK(deleted);
  CHECK_INT(peer_asked_count(&w.server), 3);
  sb_close(&w);
}

static void test_api_arguments(void) {
  static const e2b_kv bad_header[] = { { "x", "a\r\nb" } };
  e2b_network network;
  e2b_metric_list metrics;
  e2b_log_list logs;
  e2b_logs_opts logs_opts, logs_zero;
  e2b_snapshot snapshot;
  e2b_snapshot_list snapshots;
  e2b_snapshot_list_opts snapshot_opts;
  e2b_sandbox_info info;
  e2b_list_opts list_opts;
  e2b_sandbox_list list;
  e2b_sandbox *sandbox;
  e2b_call call;
  e2b_error err;
  char long_text[300];
  sb_world w;
  memset(&network, 0, sizeof network);
  memset(&metrics, 0, sizeof metrics);
  memset(&logs, 0, sizeof logs);
  memset(&logs_zero, 0, sizeof logs_zero);
  memset(&snapshot, 0, sizeof snapshot);
  memset(&snapshots, 0, sizeof snapshots);
  memset(&snapshot_opts, 0, sizeof snapshot_opts);
  memset(&info, 0, sizeof info);
  memset(&list_opts, 0, sizeof list_opts);
  memset(&list, 0, sizeof list);
  memset(&call, 0, sizeof call);
  memset(long_text, 'x', sizeof long_text);
  long_text[sizeof long_text - 1] = 0;
  call.headers.items = bad_header;
  call.headers.count = 1;
  sb_open(&w, NULL);
  sandbox = sb_attach(&w, "i");
#define REFUSED(what, expression)                                                                                      \
  CHECK_RC(expression, E2B_ERR_INVALID_ARGUMENT);                                                                      \
  CHECK_HAS(err.message, what);                                                                                        \
  CHECK_INT(err.subject, E2B_SUBJECT_OPTION)
  REFUSED("client", e2b_api_get_metrics(NULL, "i", 0, 0, NULL, &metrics, &err));
  REFUSED("sandbox_id", e2b_api_get_metrics(w.client, "", 0, 0, NULL, &metrics, &err));
  REFUSED("sandbox_id", e2b_api_get_metrics(w.client, "..", 0, 0, NULL, &metrics, &err));
  REFUSED("out", e2b_api_get_metrics(w.client, "i", 0, 0, NULL, NULL, &err));
  REFUSED("start_ms", e2b_api_get_metrics(w.client, "i", -1, 0, NULL, &metrics, &err));
  REFUSED("end_ms", e2b_api_get_metrics(w.client, "i", 5000, 4000, NULL, &metrics, &err));
  REFUSED("call.headers", e2b_api_get_metrics(w.client, "i", 0, 0, &call, &metrics, &err));
  REFUSED("client", e2b_api_get_logs(NULL, "i", NULL, &logs, &err));
  REFUSED("sandbox_id", e2b_api_get_logs(w.client, "a\nb", NULL, &logs, &err));
  REFUSED("out", e2b_api_get_logs(w.client, "i", NULL, NULL, &err));
  logs_opts = logs_zero;
  logs_opts.limit = 1001;
  REFUSED("limit", e2b_api_get_logs(w.client, "i", &logs_opts, &logs, &err));
  logs_opts = logs_zero;
  logs_opts.cursor_ms = -1;
  REFUSED("cursor_ms", e2b_api_get_logs(w.client, "i", &logs_opts, &logs, &err));
  logs_opts = logs_zero;
  logs_opts.level = "a\n";
  REFUSED("level", e2b_api_get_logs(w.client, "i", &logs_opts, &logs, &err));
  logs_opts = logs_zero;
  logs_opts.search = long_text;
  REFUSED("search", e2b_api_get_logs(w.client, "i", &logs_opts, &logs, &err));
  REFUSED("client", e2b_api_update_network(NULL, "i", NULL, E2B_UNSET, NULL, &err));
  REFUSED("sandbox_id", e2b_api_update_network(w.client, NULL, NULL, E2B_UNSET, NULL, &err));
  network.allow_public_traffic = E2B_NO;
  REFUSED("allow_public_traffic", e2b_api_update_network(w.client, "i", &network, E2B_UNSET, NULL, &err));
  network.allow_public_traffic = E2B_UNSET;
  network.mask_request_host = "h";
  REFUSED("mask_request_host", e2b_api_update_network(w.client, "i", &network, E2B_UNSET, NULL, &err));
  network.mask_request_host = NULL;
  network.egress_proxy_password = "p";
  REFUSED("egress_proxy_address", e2b_api_update_network(w.client, "i", &network, E2B_UNSET, NULL, &err));
  REFUSED("client", e2b_api_create_snapshot(NULL, "i", NULL, NULL, &snapshot, &err));
  REFUSED("out", e2b_api_create_snapshot(w.client, "i", NULL, NULL, NULL, &err));
  REFUSED("name", e2b_api_create_snapshot(w.client, "i", "a\nb", NULL, &snapshot, &err));
  REFUSED("client", e2b_api_list_snapshots(NULL, NULL, &snapshots, &err));
  REFUSED("out", e2b_api_list_snapshots(w.client, NULL, NULL, &err));
  snapshot_opts.limit = 101;
  REFUSED("limit", e2b_api_list_snapshots(w.client, &snapshot_opts, &snapshots, &err));
  snapshot_opts.limit = 0;
  snapshot_opts.name = "a\nb";
  REFUSED("name", e2b_api_list_snapshots(w.client, &snapshot_opts, &snapshots, &err));
  REFUSED("client", e2b_api_delete_snapshot(NULL, "s", NULL, NULL, &err));
  REFUSED("snapshot_id", e2b_api_delete_snapshot(w.client, "", NULL, NULL, &err));
  REFUSED("snapshot_id", e2b_api_delete_snapshot(w.client, "..", NULL, NULL, &err));
  REFUSED("snapshot_id", e2b_api_delete_snapshot(w.client, "a\nb", NULL, NULL, &err));
  REFUSED("client", e2b_api_find_by_nonce(NULL, "n", NULL, &info, &err));
  REFUSED("nonce", e2b_api_find_by_nonce(w.client, "", NULL, &info, &err));
  REFUSED("nonce", e2b_api_find_by_nonce(w.client, long_text, NULL, &info, &err));
  REFUSED("out", e2b_api_find_by_nonce(w.client, "n", NULL, NULL, &err));
  list_opts.started_after_ms = -1;
  REFUSED("started_after_ms", e2b_api_list(w.client, &list_opts, &list, &err));
  REFUSED("client", e2b_api_list(NULL, NULL, &list, &err));
  REFUSED("sandbox", e2b_sandbox_keep_alive(NULL, 1, NULL, NULL, &err));
  REFUSED("timeout_s", e2b_sandbox_keep_alive(sandbox, -1, NULL, NULL, &err));
  REFUSED("timeout_s", e2b_sandbox_keep_alive(sandbox, 2147484, NULL, NULL, &err));
#undef REFUSED
  CHECK_INT(peer_asked_count(&w.server), 0);
  sb_close(&w);
}

/* All of them at once, without blocking; what is canceled leaves its result alone. */
static void test_api_non_blocking(void) {
  e2b_metric_list metrics, canceled;
  e2b_log_list logs;
  e2b_logs_opts logs_opts;
  e2b_snapshot snapshot;
  e2b_snapshot_list snapshots;
  e2b_snapshot_list_opts snapshot_opts;
  e2b_sandbox_info info;
  e2b_response response;
  e2b_request_opts request_opts;
  e2b_call call;
  e2b_error err;
  e2b_op op;
  sb_done done;
  int i;
  sb_world w;
  memset(&metrics, 0, sizeof metrics);
  memset(&canceled, 0, sizeof canceled);
  memset(&logs, 0, sizeof logs);
  memset(&logs_opts, 0, sizeof logs_opts);
  memset(&snapshot, 0, sizeof snapshot);
  memset(&snapshots, 0, sizeof snapshots);
  memset(&snapshot_opts, 0, sizeof snapshot_opts);
  memset(&info, 0, sizeof info);
  memset(&response, 0, sizeof response);
  memset(&request_opts, 0, sizeof request_opts);
  sb_open(&w, NULL);
  call = sb_call(&done);
  logs_opts.call = snapshot_opts.call = request_opts.call = call;
  sb_script(&w.server, sb_json(404, "{}"), NULL);
  CHECK_INT(e2b_api_get_metrics(w.client, "i", 0, 0, &call, &metrics, &err), E2B_PENDING);
  CHECK_INT(e2b_api_get_logs(w.client, "i", &logs_opts, &logs, &err), E2B_PENDING);
  CHECK_INT(e2b_api_create_snapshot(w.client, "i", NULL, &call, &snapshot, &err), E2B_PENDING);
  CHECK_INT(e2b_api_list_snapshots(w.client, &snapshot_opts, &snapshots, &err), E2B_PENDING);
  CHECK_INT(e2b_api_find_by_nonce(w.client, "n", &call, &info, &err), E2B_PENDING);
  CHECK_INT(e2b_api_update_network(w.client, "i", NULL, E2B_UNSET, &call, &err), E2B_PENDING);
  CHECK_INT(e2b_api_request(w.client, "GET", "/", &request_opts, &response, &err), E2B_PENDING);
  CHECK_INT(done.calls, 0);
  sb_poll_until(w.client, &done.calls, 7);
  CHECK_INT(done.calls, 7);
  CHECK_INT(done.err.code, E2B_ERR_NOT_FOUND);
  CHECK_INT(e2b_api_delete_snapshot(w.client, "s", &call, NULL, &err), E2B_PENDING);
  sb_poll_until(w.client, &done.calls, 8);
  CHECK_INT(done.err.code, E2B_OK);
  e2b_mem_free(&response.mem);
  sb_script(&w.server, sb_json(200, "[{}]"), NULL);
  memset(&call, 0, sizeof call);
  call.op = &op;
  CHECK_INT(e2b_api_get_metrics(w.client, "i", 0, 0, &call, &canceled, &err), E2B_PENDING);
  e2b_op_cancel(w.client, op);
  CHECK_INT(e2b_api_get_metrics(w.client, "i", 0, 0, &call, &metrics, &err), E2B_PENDING);
  for (i = 0; i < 500 && e2b_op_poll(w.client, op, &err) == E2B_PENDING; i++) e2b_client_poll(w.client, 10);
  CHECK_INT(err.code, E2B_OK);
  CHECK_INT(metrics.count, 1);
  CHECK(!canceled.mem.ptr);
  e2b_mem_free(&metrics.mem);
  sb_close(&w);
}

/* ---- the nonce ---- */

static void sent_nonce(sb_world *w, char out[33]) {
  const char *at = strstr(peer_asked(&w->server, 0), "e2b.h/nonce\":\"");
  (void)snprintf(out, 33, "%.32s", at ? at + 14 : "");
}

static void test_create_nonce(void) {
  static const e2b_kv mine[] = { { E2B_NONCE_KEY, "job-7" } };
  e2b_sandbox_opts opts;
  e2b_create_response response;
  e2b_sandbox *sandbox;
  e2b_sandbox_info info;
  e2b_error err;
  sb_done done;
  char nonce[33], body[300];
  sb_world w;
  memset(&opts, 0, sizeof opts);
  memset(&response, 0, sizeof response);
  memset(&info, 0, sizeof info);
  sb_open(&w, NULL);
  sb_script(&w.server, SB_DROP, NULL);
  CHECK_RC(e2b_sandbox_create(w.client, "t", NULL, &sandbox, &err), E2B_ERR_CLOSED);
  sent_nonce(&w, nonce);
  CHECK_INT(strlen(nonce), 32);
  CHECK_STR(err.nonce, nonce);
  (void)snprintf(body, sizeof body, "[{\"sandboxID\":\"other\",\"metadata\":{\"e2b.h/nonce\":\"x\"}},{\"sandboxID\":\"sb7\","
                 "\"metadata\":{\"a\":\"b\",\"e2b.h/nonce\":\"%s\"}}]", nonce);
  sb_script(&w.server, sb_json(200, body), NULL);
  CHECK_OK(e2b_api_find_by_nonce(w.client, err.nonce, NULL, &info, &err));
  CHECK_STR(info.sandbox_id, "sb7");
  e2b_mem_free(&info.mem);
  /* a server that ignores the filter names others: none of them is it */
  CHECK_RC(e2b_api_find_by_nonce(w.client, "0123", NULL, &info, &err), E2B_ERR_NOT_FOUND);
  CHECK_STR(err.nonce, "");
  /* a deadline, without blocking */
  sb_script(&w.server, SB_HANG, NULL);
  opts.call = sb_call(&done);
  opts.call.timeout_ms = 100;
  CHECK_INT(e2b_api_create_sandbox(w.client, "t", &opts, &response, &err), E2B_PENDING);
  while (!done.calls) e2b_client_poll(w.client, 100);
  CHECK_INT(done.err.code, E2B_ERR_TIMEOUT);
  sent_nonce(&w, nonce);
  CHECK_STR(done.err.nonce, nonce);
  /* the caller's own is sent instead, and known to him */
  memset(&opts, 0, sizeof opts);
  opts.metadata.items = mine;
  opts.metadata.count = 1;
  sb_script(&w.server, SB_DROP, NULL);
  CHECK_RC(e2b_sandbox_create(w.client, "t", &opts, &sandbox, &err), E2B_ERR_CLOSED);
  CHECK_STR(err.nonce, "");
  CHECK_HAS(peer_asked(&w.server, 0), "\"metadata\":{\"e2b.h/nonce\":\"job-7\"}");
  /* refused for sure: nothing to look for */
  sb_script(&w.server, sb_json(400, "{}"), NULL);
  CHECK_RC(e2b_sandbox_create(w.client, "t", NULL, &sandbox, &err), E2B_ERR_INVALID_ARGUMENT);
  CHECK(!err.maybe_done);
  CHECK_STR(err.nonce, "");
  sb_close(&w);
}

/* ---- the heartbeat ---- */

static uint64_t beat_clock(void *user) {
  return *(uint64_t *)user;
}

/* Drives the client until the server was asked so often, and its answers were read. */
static void beat_until(sb_world *w, int asked) {
  int i;
  for (i = 0; i < 500 && peer_asked_count(&w->server) < asked; i++) e2b_client_poll(w->client, 10);
  CHECK_INT(peer_asked_count(&w->server), asked);
  for (i = 0; i < 500; i++) {
    e2b_client_stats stats;
    e2b_client_get_stats(w->client, &stats);
    if (!stats.streams_open) break;
    e2b_client_poll(w->client, 10);
  }
}

/* Nothing is sent although the client is driven. */
static void beat_silent(sb_world *w, int asked) {
  int i;
  for (i = 0; i < 5; i++) e2b_client_poll(w->client, 2);
  CHECK_INT(peer_asked_count(&w->server), asked);
}

/* What was logged, by level. */
typedef struct beat_log {
  int errors, warnings;
  bool secret;
} beat_log;

static void beat_logger(void *user, e2b_log_level level, const char *message) {
  beat_log *log = (beat_log *)user;
  if (level == E2B_LOG_ERROR) log->errors++;
  if (level == E2B_LOG_WARN) log->warnings++;
  if (strstr(message, "secret-key") || strstr(message, "envd-token")) log->secret = true;
}

static void beat_open(sb_world *w, uint64_t *clock, beat_log *log) {
  e2b_client_config config;
  memset(&config, 0, sizeof config);
  memset(log, 0, sizeof *log);
  config.logger.func = beat_logger;
  config.logger.user = log;
  config.now_ms_fn = beat_clock;
  config.platform_user = clock;
  *clock = 1000000;
  sb_open(w, &config);
}

static void test_heartbeat(void) {
  e2b_sandbox *sandbox;
  e2b_sandbox_info info;
  e2b_error err;
  sb_done done;
  uint64_t clock;
  beat_log log;
  sb_world w;
  memset(&done, 0, sizeof done);
  memset(&info, 0, sizeof info);
  beat_open(&w, &clock, &log);
  sandbox = sb_attach(&w, "sb1");
  sb_script(&w.server, sb_answer(204, "", ""), NULL);
  CHECK_OK(e2b_sandbox_keep_alive(sandbox, 300, sb_on_done, &done, &err));
  CHECK_INT(peer_asked_count(&w.server), 0); /* not driven: nothing */
  beat_until(&w, 1);
  SB_CHECK_REQUEST(&w.server, 0, "POST /sandboxes/sb1/timeout HTTP/1.1\r\n" SB_HEAD SB_BODY("15") "{\"timeout\":300}");
  beat_silent(&w, 1);
  CHECK(e2b_client_next_timeout(w.client) > 0); /* loops may sleep */
  clock += 99999;
  beat_silent(&w, 1);
  clock += 1;
  beat_until(&w, 2);
  CHECK_OK(e2b_client_drain(w.client, 1000)); /* it is no operation to wait for */
  CHECK_INT(peer_asked_count(&w.server), 2);
  clock += 100000;
  sb_script(&w.server, sb_answer(204, "", ""), sb_json(200, SB_CREATED)); /* a blocking call drives it too */
  beat_until(&w, 1);
  CHECK_OK(e2b_sandbox_get_info(sandbox, NULL, &info, &err));
  e2b_mem_free(&info.mem);
  /* not driven for longer than the sandbox was to live: the server has the word */
  sb_script(&w.server, sb_answer(204, "", ""), NULL);
  clock += 1000000;
  beat_until(&w, 1);
  CHECK_INT(done.calls, 0);
  CHECK_OK(e2b_sandbox_keep_alive(sandbox, 30, sb_on_done, &done, &err)); /* replaces it: 30 s from now on */
  beat_until(&w, 2);
  CHECK_HAS(peer_asked(&w.server, 1), "{\"timeout\":30}");
  clock += 10000;
  beat_until(&w, 3);
  CHECK_OK(e2b_sandbox_keep_alive(sandbox, 0, NULL, NULL, &err));
  clock += 100000;
  beat_silent(&w, 3);
  CHECK_INT(done.calls, 0);
  sb_close(&w);
}

static void test_heartbeat_lost(void) {
  static const struct { int status; e2b_err code; } rows[] = {
    { 404, E2B_ERR_NOT_FOUND }, { 401, E2B_ERR_UNAUTHENTICATED }, { 403, E2B_ERR_PERMISSION },
    { 400, E2B_ERR_INVALID_ARGUMENT } };
  e2b_sandbox *sandbox;
  e2b_error err;
  sb_done done;
  uint64_t clock;
  beat_log log;
  size_t i;
  sb_world w;
  beat_open(&w, &clock, &log);
  sandbox = sb_attach(&w, "sb1");
  for (i = 0; i < E2B__COUNT(rows); i++) {
    memset(&done, 0, sizeof done);
    sb_script(&w.server, sb_json(rows[i].status, "{\"message\":\"why not\"}"), NULL);
    CHECK_OK(e2b_sandbox_keep_alive(sandbox, 300, sb_on_done, &done, &err));
    beat_until(&w, 1);
    CHECK_INT(done.calls, 1);
    CHECK_INT(done.err.code, rows[i].code);
    CHECK_INT(done.err.http_status, rows[i].status);
    CHECK_HAS(done.err.message, "sandbox sb1 is not kept alive any more: why not");
    clock += 1000000;
    beat_silent(&w, 1);
    CHECK_INT(done.calls, 1);
  }
  /* what may pass is tried again, later and later, until the sandbox must be gone */
  memset(&done, 0, sizeof done);
  peer_clear(&w.server);
  sb_say(&w.server, sb_json(500, "{}"), false);
  sb_say(&w.server, SB_DROP, false);
  sb_say(&w.server, sb_answer(429, "retry-after: 7\r\n", ""), false);
  sb_say(&w.server, sb_answer(204, "", ""), false);
  sb_say(&w.server, sb_answer(503, "", ""), true);
  CHECK_OK(e2b_sandbox_keep_alive(sandbox, 60, sb_on_done, &done, &err));
  beat_until(&w, 1);
  clock += 999;
  beat_silent(&w, 1);
  clock += 1;
  beat_until(&w, 2); /* the kept connection died: sent again on a fresh one at once */
  beat_until(&w, 3);
  clock += 6999;
  beat_silent(&w, 3);
  clock += 1;
  beat_until(&w, 4); /* success */
  clock += 20000;
  beat_until(&w, 5);
  clock += 1000;
  beat_until(&w, 6);
  clock += 2000;
  beat_until(&w, 7);
  CHECK_INT(done.calls, 0);
  clock += 37000; /* 60 s after the success */
  beat_until(&w, 8);
  CHECK_INT(done.calls, 1);
  CHECK_INT(done.err.code, E2B_ERR_UNAVAILABLE);
  clock += 1000000;
  beat_silent(&w, 8);
  CHECK_INT(log.errors, 5);
  CHECK_INT(log.warnings, 5); /* 500, 429 and three 503; the last one is the loss */
  CHECK(!log.secret);
  CHECK_OK(e2b_sandbox_keep_alive(sandbox, 60, NULL, NULL, &err)); /* without a callback it is logged */
  sb_script(&w.server, sb_json(404, "{}"), NULL);
  beat_until(&w, 1);
  CHECK_INT(log.errors, 6);
  sb_close(&w);
}

static void beat_frees(void *user, const e2b_error *err) {
  sb_done *done = (sb_done *)user;
  sb_on_done(user, err);
  e2b_sandbox_free(done->sandbox);
}

/* Whatever ends the handle's use ends the heartbeat without a word; in its own callback everything may be freed. */
static void test_heartbeat_ends(void) {
  e2b_sandbox *sandbox;
  e2b_error err;
  sb_done done;
  uint64_t clock;
  beat_log log;
  int round;
  e2b_client_config config;
  sb_world w;
  beat_open(&w, &clock, &log);
  for (round = 0; round < 5; round++) {
    memset(&done, 0, sizeof done);
    sb_script(&w.server, sb_answer(204, "", ""), NULL);
    sandbox = sb_attach(&w, "sb1");
    CHECK_OK(e2b_sandbox_keep_alive(sandbox, 300, sb_on_done, &done, &err));
    if (round) beat_until(&w, 1);
    sb_script(&w.server, sb_answer(204, "", ""), sb_json(404, "{}"));
    if (round <= 1) e2b_sandbox_free(sandbox);
    if (round == 2) CHECK_OK(e2b_sandbox_kill(sandbox, NULL, NULL, &err));
    if (round == 3) CHECK_OK(e2b_sandbox_pause(sandbox, NULL, &err));
    if (round == 4) CHECK_OK(e2b_sandbox_close(sandbox, NULL, &err));
    clock += 1000000;
    beat_silent(&w, round <= 1 ? 0 : 1);
    CHECK_INT(done.calls, 0);
    if (round == 2 || round == 3) e2b_sandbox_free(sandbox);
  }
  memset(&done, 0, sizeof done);
  sandbox = sb_attach(&w, "sb1");
  done.sandbox = sandbox;
  sb_script(&w.server, sb_json(404, "{}"), NULL);
  CHECK_OK(e2b_sandbox_keep_alive(sandbox, 300, beat_frees, &done, &err));
  beat_until(&w, 1);
  CHECK_INT(done.calls, 1);
  sandbox = sb_attach(&w, "sb1");
  sb_script(&w.server, SB_HANG, NULL);
  CHECK_OK(e2b_sandbox_keep_alive(sandbox, 300, sb_on_done, &done, &err));
  while (peer_asked_count(&w.server) < 1) e2b_client_poll(w.client, 10);
  sb_close(&w); /* with a beat under way */
  CHECK_INT(done.calls, 1);
  memset(&config, 0, sizeof config);
  config.debug = true;
  sb_open(&w, &config);
  sandbox = sb_attach(&w, "sb1");
  CHECK_OK(e2b_sandbox_keep_alive(sandbox, 300, NULL, NULL, &err)); /* as set_timeout: nothing is sent */
  beat_silent(&w, 0);
  sb_close(&w);
}

/* ---- raw requests ---- */

/* What the callbacks of a raw request saw, and what they shall do. */
typedef struct raw_io {
  int heads, sinks, status;
  char headers[1000], body[20000];
  size_t len;
  int head_says, sink_says; /* what they return */
  size_t give, gave, at_once; /* of the source: bytes in all, so far, per call */
  int source_says;          /* instead of the end */
  int pauses;               /* so often nothing for now */
  e2b_client *client;
  e2b_op *cancel;           /* in the sink, or with cancel_in_head there */
  bool cancel_in_head;
} raw_io;

static int raw_on_head(void *user, int status, e2b_kvs headers) {
  raw_io *io = (raw_io *)user;
  size_t i;
  io->heads++;
  io->status = status;
  for (i = 0; i < headers.count; i++)
    snprintf(io->headers + strlen(io->headers), sizeof io->headers - strlen(io->headers), "%s=%s;",
             headers.items[i].key, headers.items[i].value);
  if (io->cancel_in_head) e2b_op_cancel(io->client, *io->cancel);
  return io->head_says;
}

static int raw_sink(void *user, const char *data, size_t len) {
  raw_io *io = (raw_io *)user;
  io->sinks++;
  if (io->len + len < sizeof io->body) memcpy(io->body + io->len, data, len);
  io->len += len;
  if (io->cancel && !io->cancel_in_head) e2b_op_cancel(io->client, *io->cancel);
  return io->sink_says;
}

static int raw_source(void *user, void *buf, size_t cap) {
  raw_io *io = (raw_io *)user;
  size_t n = io->give - io->gave;
  if (io->pauses > 0) {
    io->pauses--;
    return E2B_PAUSE;
  }
  if (n == 0) return io->source_says;
  if (n > cap) n = cap;
  if (io->at_once && n > io->at_once) n = io->at_once;
  memset(buf, 's', n);
  io->gave += n;
  return (int)n;
}

static e2b_request_opts raw_opts(raw_io *io, bool head, bool sink, bool source) {
  e2b_request_opts opts;
  memset(&opts, 0, sizeof opts);
  memset(io, 0, sizeof *io);
  opts.io_user = io;
  if (head) opts.on_head = raw_on_head;
  if (sink) opts.sink = raw_sink;
  if (source) opts.source = raw_source;
  return opts;
}

static void test_raw_api(void) {
  static const e2b_kv headers[] = { { "Authorization", "Bearer v" }, { "X-Api-Key", "mine" }, { "Accept", "text/*" } };
  e2b_request_opts opts;
  e2b_response r;
  e2b_error err;
  raw_io io;
  sb_world w;
  memset(&r, 0, sizeof r);
  sb_open(&w, NULL);
  sb_script(&w.server, sb_answer(200, "content-type: text/plain\r\nX-A: 1\r\nx-a: 2\r\n", "hello"), NULL);
  CHECK_OK(e2b_api_request(w.client, "GET", "/templates?teamID=a%20b", NULL, &r, &err));
  SB_CHECK_REQUEST(&w.server, 0, "GET /templates?teamID=a%20b HTTP/1.1\r\n" SB_HEAD "\r\n");
  CHECK_INT(r.status, 200);
  CHECK_STR(r.body.ptr, "hello");
  CHECK_INT(r.body.len, 5);
  if (CHECK_INT(r.headers.count, 4)) {
    CHECK_STR(r.headers.items[0].key, "content-type");
    CHECK_STR(r.headers.items[1].key, "x-a");
    CHECK_STR(r.headers.items[1].value, "1");
    CHECK_STR(r.headers.items[2].value, "2");
  }
  e2b_mem_free(&r.mem);
  opts = raw_opts(&io, false, false, false);
  opts.body = "{\"name\":\"n\"}";
  opts.body_len = 12;
  CHECK_OK(e2b_api_request(w.client, "POST", "/volumes", &opts, &r, &err));
  SB_CHECK_REQUEST(&w.server, 1, "POST /volumes HTTP/1.1\r\n" SB_HEAD SB_BODY("12") "{\"name\":\"n\"}");
  e2b_mem_free(&r.mem);
  opts.content_type = "application/octet-stream";
  opts.call.headers.items = headers;
  opts.call.headers.count = 3;
  CHECK_OK(e2b_api_request(w.client, "PUT", "/volumecontent/v/file?path=%2Fa", &opts, NULL, &err));
  SB_CHECK_REQUEST(&w.server, 2,
                   "PUT /volumecontent/v/file?path=%2Fa HTTP/1.1\r\nhost: 127.0.0.1:%P\r\nuser-agent: e2b.h/" E2B_VERSION
                   "\r\naccept-encoding: identity\r\nauthorization: Bearer v\r\naccept: text/*\r\nx-api-key: secret-key\r\n"
                   "content-type: application/octet-stream\r\ncontent-length: 12\r\n\r\n{\"name\":\"n\"}");
  CHECK_OK(e2b_api_request(w.client, "POST", "/x", NULL, NULL, &err));
  SB_CHECK_REQUEST(&w.server, 3, "POST /x HTTP/1.1\r\n" SB_HEAD "content-length: 0\r\n\r\n");
  CHECK_OK(e2b_api_request(w.client, "DELETE", "/x", NULL, NULL, NULL));
  SB_CHECK_REQUEST(&w.server, 4, "DELETE /x HTTP/1.1\r\n" SB_HEAD "\r\n");

  /* statuses are the errors they are elsewhere, and the answer is there all the same */
  sb_script(&w.server, sb_answer(404, "X-Request-ID: r1\r\n", "{\"code\":404,\"message\":\"no \\\"such\\\"\"}"), NULL);
  CHECK_RC(e2b_api_request(w.client, "GET", "/secrets/x", NULL, &r, &err), E2B_ERR_NOT_FOUND);
  CHECK_HAS(err.message, "no \"such\"");
  CHECK_STR(err.request_id, "r1");
  CHECK_INT(err.http_status, 404);
  CHECK_INT(r.status, 404);
  CHECK_STR(r.body.ptr, "{\"code\":404,\"message\":\"no \\\"such\\\"\"}");
  e2b_mem_free(&r.mem);
  sb_script(&w.server, sb_answer(302, "location: http://x/\r\n", ""), NULL);
  CHECK_RC(e2b_api_request(w.client, "GET", "/", NULL, &r, &err), E2B_ERR_SERVICE);
  CHECK_INT(r.status, 302);
  e2b_mem_free(&r.mem);
  sb_script(&w.server, sb_answer(500, "", "broken"), NULL);
  CHECK_RC(e2b_api_request(w.client, "POST", "/x", NULL, &r, &err), E2B_ERR_SERVICE);
  CHECK(err.maybe_done);
  e2b_mem_free(&r.mem);
  sb_script(&w.server, sb_answer(429, "retry-after: 1\r\n", ""), sb_answer(200, "", "later"));
  CHECK_OK(e2b_api_request(w.client, "POST", "/x", NULL, &r, &err));
  CHECK_STR(r.body.ptr, "later");
  e2b_mem_free(&r.mem);
  CHECK_INT(peer_asked_count(&w.server), 2);
  sb_script(&w.server, "HTTP/1.1 200 X\r\ncontent-length: 10\r\n\r\n", NULL);
  CHECK_OK(e2b_api_request(w.client, "HEAD", "/x", NULL, &r, &err));
  CHECK_INT(r.body.len, 0);
  CHECK_STR(r.headers.items[0].value, "10");
  e2b_mem_free(&r.mem);
  sb_close(&w);
}

static void test_raw_streams(void) {
  e2b_request_opts opts;
  e2b_response r;
  e2b_error err;
  e2b_op op;
  raw_io io;
  char chunk[5000];
  int i;
  sb_world w;
  memset(&r, 0, sizeof r);
  memset(chunk, 'b', sizeof chunk);
  chunk[sizeof chunk - 1] = 0;
  sb_open(&w, NULL);
  /* a sink and a source of a known size */
  sb_script(&w.server, sb_answer(200, "x: y\r\n", "streamed"), NULL);
  opts = raw_opts(&io, true, true, true);
  io.give = opts.source_size = 10;
  io.at_once = 3;
  CHECK_OK(e2b_api_request(w.client, "PUT", "/up", &opts, &r, &err));
  SB_CHECK_REQUEST(&w.server, 0, "PUT /up HTTP/1.1\r\n" SB_HEAD SB_BODY("10") "ssssssssss");
  CHECK_INT(io.heads, 1);
  CHECK_INT(io.status, 200);
  CHECK_STR(io.headers, "x=y;content-length=8;");
  CHECK_STR(io.body, "streamed");
  CHECK_INT(r.status, 200);
  CHECK_STR(r.body.ptr, "");
  e2b_mem_free(&r.mem);
  /* an unknown size goes in chunks */
  opts = raw_opts(&io, false, false, true);
  io.give = 3;
  opts.content_type = "a/b";
  CHECK_OK(e2b_api_request(w.client, "POST", "/up", &opts, NULL, &err));
  SB_CHECK_REQUEST(&w.server, 1, "POST /up HTTP/1.1\r\n" SB_HEAD "content-type: a/b\r\ntransfer-encoding: chunked\r\n\r\n"
                   "000003\r\nsss\r\n0\r\n\r\n");
  /* sources that end early, cancel, pause where nobody can resume */
  opts = raw_opts(&io, false, false, true);
  io.give = 3;
  opts.source_size = 5;
  CHECK_RC(e2b_api_request(w.client, "POST", "/up", &opts, NULL, &err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(err.message, "ended before the size");
  opts = raw_opts(&io, false, false, true);
  io.source_says = -1;
  CHECK_RC(e2b_api_request(w.client, "POST", "/up", &opts, NULL, &err), E2B_ERR_CANCELED);
  opts = raw_opts(&io, false, false, true);
  io.pauses = 1;
  CHECK_RC(e2b_api_request(w.client, "POST", "/up", &opts, NULL, &err), E2B_ERR_BAD_STATE);
  /* pausing with a handle */
  sb_script(&w.server, sb_answer(200, "", chunk), NULL);
  opts = raw_opts(&io, false, true, true);
  opts.call.op = &op;
  io.give = 4;
  io.pauses = 1;
  io.sink_says = E2B_PAUSE;
  CHECK_INT(e2b_api_request(w.client, "POST", "/up", &opts, &r, &err), E2B_PENDING);
  for (i = 0; i < 20; i++) e2b_client_poll(w.client, 5);
  CHECK_INT(io.gave, 0);
  for (i = 0; i < 1000 && e2b_op_poll(w.client, op, &err) == E2B_PENDING; i++) {
    e2b_op_resume(w.client, op);
    e2b_client_poll(w.client, 5);
  }
  CHECK_INT(err.code, E2B_OK);
  CHECK_INT(io.len, sizeof chunk - 1);
  e2b_mem_free(&r.mem);
  /* callbacks that cancel, by their result or by the handle */
  opts = raw_opts(&io, true, true, false);
  io.head_says = -1;
  CHECK_RC(e2b_api_request(w.client, "GET", "/", &opts, NULL, &err), E2B_ERR_CANCELED);
  CHECK_INT(io.sinks, 0);
  opts = raw_opts(&io, true, true, false);
  io.sink_says = -1;
  CHECK_RC(e2b_api_request(w.client, "GET", "/", &opts, NULL, &err), E2B_ERR_CANCELED);
  for (i = 0; i < 2; i++) {
    opts = raw_opts(&io, true, true, false);
    opts.call.op = io.cancel = &op;
    io.client = w.client;
    io.cancel_in_head = i == 1;
    CHECK_INT(e2b_api_request(w.client, "GET", "/", &opts, NULL, &err), E2B_PENDING);
    while (!io.heads || (i == 0 && !io.sinks)) e2b_client_poll(w.client, 100);
    CHECK_INT(io.sinks, i == 0 ? 1 : 0);
    CHECK_INT(e2b_op_poll(w.client, op, &err), E2B_ERR_BAD_STATE);
  }
  /* an error's body goes to the sink too; a 429 is not waited for when it was shown */
  sb_script(&w.server, sb_answer(429, "retry-after: 1\r\n", "slow down"), NULL);
  opts = raw_opts(&io, true, true, false);
  CHECK_RC(e2b_api_request(w.client, "GET", "/", &opts, &r, &err), E2B_ERR_RATE_LIMITED);
  CHECK_INT(io.heads, 1);
  CHECK_STR(io.body, "slow down");
  CHECK_INT(peer_asked_count(&w.server), 1);
  e2b_mem_free(&r.mem);
  /* an answer that is cut */
  sb_script(&w.server, "HTTP/1.1 200 X\r\ncontent-length: 500\r\nconnection: close\r\n\r\npart", NULL);
  opts = raw_opts(&io, true, true, false);
  CHECK_RC(e2b_api_request(w.client, "GET", "/", &opts, &r, &err), E2B_ERR_TRUNCATED);
  CHECK_STR(io.body, "part");
  CHECK(!r.mem.ptr);
  sb_close(&w);
}

static void test_raw_limit(void) {
  e2b_client_config config;
  e2b_request_opts opts;
  e2b_response r;
  e2b_error err;
  uint8_t storage[40];
  raw_io io;
  sb_world w;
  char body[4000];
  memset(&config, 0, sizeof config);
  memset(&r, 0, sizeof r);
  memset(body, 'x', sizeof body);
  body[sizeof body - 1] = 0;
  config.max_message_bytes = 1000;
  config.io_buffer_size = 512;
  sb_open(&w, &config);
  sb_script(&w.server, sb_answer(200, "", body), NULL);
  CHECK_RC(e2b_api_request(w.client, "GET", "/", NULL, &r, &err), E2B_ERR_LIMIT);
  CHECK_HAS(err.message, "use a sink");
  CHECK(!r.mem.ptr && !r.body.ptr);
  opts = raw_opts(&io, false, true, false);
  CHECK_OK(e2b_api_request(w.client, "GET", "/", &opts, NULL, &err));
  CHECK_INT(io.len, sizeof body - 1);
  sb_script(&w.server, sb_answer(200, "", "123456789012345678901234567890"), NULL);
  r.mem.ptr = storage;
  r.mem.cap = sizeof storage;
  r.mem.fixed = true;
  CHECK_RC(e2b_api_request(w.client, "GET", "/", NULL, &r, &err), E2B_ERR_BUFFER_TOO_SMALL);
  CHECK(r.mem.len > sizeof storage);
  sb_close(&w);
}

/* A reused connection that died: what may be repeated is, on a fresh one; the rest is not. */
static void test_raw_repeats(void) {
  static const struct { const char *method; bool source, again; } rows[] = {
    { "GET", false, true }, { "HEAD", false, true }, { "OPTIONS", false, true }, { "PUT", false, true },
    { "DELETE", false, true }, { "POST", false, false }, { "PATCH", false, false }, { "get", false, false },
    { "PUT", true, false } };
  e2b_request_opts opts;
  e2b_error err;
  raw_io io;
  size_t i;
  sb_world w;
  sb_open(&w, NULL);
  for (i = 0; i < E2B__COUNT(rows); i++) {
    e2b_err code;
    peer_clear(&w.server);
    sb_say(&w.server, sb_answer(204, "", ""), false);
    sb_say(&w.server, SB_DROP, false);
    sb_say(&w.server, sb_answer(204, "", ""), true);
    CHECK_OK(e2b_api_request(w.client, "GET", "/", NULL, NULL, &err));
    opts = raw_opts(&io, false, false, rows[i].source);
    io.give = 3;
    code = e2b_api_request(w.client, rows[i].method, "/x", &opts, NULL, &err);
    CHECK_INT(code, rows[i].again ? E2B_OK : E2B_ERR_CLOSED);
    CHECK(rows[i].again || err.maybe_done);
    CHECK_INT(peer_asked_count(&w.server), rows[i].again ? 3 : 2);
  }
  sb_close(&w);
}

static void test_raw_arguments(void) {
  static const char *const methods[] = { "", "GET ", "G\r\nX", "CONNECT", "connect", "G:T",
                                         "METHODMETHODMETHODMETHODMETHODMETHOD" };
  static const char *const paths[] = { NULL, "", "x", "http://x/", "/a b", "/a\r\nx: y", "/a\nb", "/\x7f", "/\xc3\xbc", "/a#b",
    "/..", "/.", "/a/../b", "/%2e%2E/x", "/.%2e?q", "/a/%2E" };
  static const char *const good[] = { "/", "/...", "/.a/..b/c.", "/a?x=/../b", "/%2eb", "/a//b", "//a", "/%2" };
  static const e2b_kv bad_headers[][1] = { { { "x", "a\r\nb" } }, { { "x y", "a" } }, { { "Host", "a" } },
    { { "content-length", "1" } }, { { "Transfer-Encoding", "chunked" } }, { { "Connection", "upgrade" } } };
  e2b_request_opts opts;
  e2b_sandbox *sandbox;
  e2b_response r;
  e2b_error err;
  raw_io io;
  size_t i;
  sb_world w;
  memset(&r, 0, sizeof r);
  sb_open(&w, NULL);
  sandbox = sb_attach(&w, "i");
#define REFUSED(what, method, path, opts)                                                                              \
  CHECK_RC(e2b_api_request(w.client, method, path, opts, &r, &err), E2B_ERR_INVALID_ARGUMENT);                         \
  CHECK_HAS(err.message, what);                                                                                        \
  CHECK_INT(err.subject, E2B_SUBJECT_OPTION);                                                                          \
  CHECK_RC(e2b_sandbox_request(sandbox, 3000, method, path, opts, &r, &err), E2B_ERR_INVALID_ARGUMENT);                \
  CHECK_HAS(err.message, what)
  REFUSED("method", NULL, "/", NULL);
  for (i = 0; i < E2B__COUNT(methods); i++) {
    REFUSED("method", methods[i], "/", NULL);
  }
  for (i = 0; i < E2B__COUNT(paths); i++) {
    REFUSED("path", "GET", paths[i], NULL);
  }
  for (i = 0; i < E2B__COUNT(bad_headers); i++) {
    opts = raw_opts(&io, false, false, false);
    opts.call.headers.items = bad_headers[i];
    opts.call.headers.count = 1;
    REFUSED("call.headers", "GET", "/", &opts);
  }
  opts = raw_opts(&io, false, false, false);
  opts.content_type = "a\r\nb";
  REFUSED("content_type", "POST", "/", &opts);
  opts = raw_opts(&io, false, false, false);
  opts.body_len = 1;
  REFUSED("body", "POST", "/", &opts);
  opts = raw_opts(&io, false, false, true);
  opts.body = "x";
  REFUSED("body and source", "POST", "/", &opts);
  opts = raw_opts(&io, false, false, true);
  opts.source_size = -1;
  REFUSED("source_size", "POST", "/", &opts);
#undef REFUSED
  CHECK_RC(e2b_api_request(NULL, "GET", "/", NULL, &r, &err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_RC(e2b_sandbox_request(NULL, 1, "GET", "/", NULL, &r, &err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_RC(e2b_sandbox_request(sandbox, 0, "GET", "/", NULL, &r, &err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(peer_asked_count(&w.server), 0);
  for (i = 0; i < E2B__COUNT(good); i++) {
    CHECK_OK(e2b_api_request(w.client, "GET", good[i], NULL, NULL, &err));
    CHECK_HAS(peer_asked(&w.server, (int)i), good[i]);
  }
  sb_close(&w);
}

/* Where a port is reached, and which secrets go there. */
static void test_raw_sandbox_targets(void) {
  static const e2b_kv headers[] = { { "Accept", "a/b" } };
  e2b_client_config config;
  e2b_attach_opts attach;
  e2b_request_opts opts;
  e2b_sandbox *sandbox;
  e2b_response r;
  e2b_error err;
  char domain[64];
  raw_io io;
  int i;
  sb_world w;
#define RAW_COMMON(host) \
  "host: " host "\r\nuser-agent: e2b.h/" E2B_VERSION "\r\naccept-encoding: identity\r\naccept: */*\r\ne2b-sandbox-id: sb1\r\n"
  memset(&attach, 0, sizeof attach);
  memset(&r, 0, sizeof r);
  attach.access_token = "envd-secret";
  attach.traffic_access_token = "traffic-secret";
  for (i = 0; i < 4; i++) {
    memset(&config, 0, sizeof config);
    config.send_api_key_to_sandbox = true; /* to envd, that is */
    sb_open(&w, &config);
    e2b_client_free(w.client);
    (void)snprintf(domain, sizeof domain, "localhost:%u", (unsigned)w.server.port);
    if (i > 0) w.config.sandbox_url = NULL;
    w.config.domain = domain;
    w.config.scheme = "http";
    if (i == 2) w.config.protocol = E2B_PROTOCOL_PRIVATE;
    if (i == 3) w.config.sandbox_base_url = w.api_url;
    w.client = e2b_client_create(&w.config, &err);
    CHECK_OK(e2b_sandbox_attach(w.client, "sb1", &attach, &sandbox, &err));
    CHECK_OK(e2b_sandbox_request(sandbox, 3000, "GET", "/a?b", NULL, &r, &err));
    CHECK_INT(r.status, 204);
    e2b_mem_free(&r.mem);
    if (i == 0)
      SB_CHECK_REQUEST(&w.server, 0, "GET /envd/a?b HTTP/1.1\r\n" RAW_COMMON("127.0.0.1:%P")
                       "e2b-sandbox-port: 3000\r\ne2b-traffic-access-token: traffic-secret\r\n\r\n");
    if (i == 1)
      SB_CHECK_REQUEST(&w.server, 0, "GET /a?b HTTP/1.1\r\n" RAW_COMMON("3000-sb1.localhost:%P")
                       "e2b-sandbox-port: 3000\r\ne2b-traffic-access-token: traffic-secret\r\n\r\n");
    if (i == 2)
      SB_CHECK_REQUEST(&w.server, 0, "GET /kruise/sb1/3000/a?b HTTP/1.1\r\n" RAW_COMMON("localhost:%P")
                       "e2b-sandbox-port: 3000\r\ne2b-traffic-access-token: traffic-secret\r\n\r\n");
    if (i == 3)
      SB_CHECK_REQUEST(&w.server, 0, "GET /sb1/a?b HTTP/1.1\r\n" RAW_COMMON("127.0.0.1:%P")
                       "e2b-sandbox-port: 3000\r\ne2b-traffic-access-token: traffic-secret\r\n\r\n");
    /* envd's own port: its token, and what call.headers say */
    opts = raw_opts(&io, false, false, false);
    opts.call.headers.items = headers;
    opts.call.headers.count = 1;
    opts.body = "b";
    opts.body_len = 1;
    CHECK_OK(e2b_sandbox_request(sandbox, 49983, "POST", "/init", &opts, NULL, &err));
    CHECK_HAS(peer_asked(&w.server, 1), "e2b-sandbox-port: 49983\r\nx-access-token: envd-secret\r\n");
    CHECK_HAS(peer_asked(&w.server, 1), "\r\naccept: a/b\r\n");
    CHECK_HAS(peer_asked(&w.server, 1), "content-type: application/octet-stream\r\n");
    CHECK(!strstr(peer_asked(&w.server, 1), "secret-key") && !strstr(peer_asked(&w.server, 0), "secret-key"));
    sb_close(&w);
  }
  /* an id that cannot be part of a host name */
  memset(&config, 0, sizeof config);
  config.domain = "localhost:1";
  config.scheme = "http";
  config.no_env = true;
  attach.base_url = "http://127.0.0.1:1";
  w.client = e2b_client_create(&config, &err);
  CHECK_OK(e2b_sandbox_attach(w.client, "a b", &attach, &sandbox, &err));
  CHECK_RC(e2b_sandbox_request(sandbox, 3000, "GET", "/", NULL, NULL, &err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(err.message, "sandbox_id");
  e2b_client_free(w.client);
}

/* Every status is an answer, but not what the edge says in the sandbox's stead. */
static void test_raw_sandbox_answers(void) {
  static const int statuses[] = { 200, 301, 400, 401, 404, 429, 500, 502, 503 };
  static const char closed[] = "{\"sandboxId\":\"sb1\",\"message\":\"The sandbox is running but port is not open\","
                               "\"port\":3000,\"code\":502}";
  static const char *const alike[] = { "{\"sandboxId\":\"sb1\",\"message\":\"x\",\"port\":3001,\"code\":502}",
    "{\"message\":\"x\",\"port\":3000,\"code\":502}", "<html>502</html>", "", "{\"port\":3000" };
  e2b_request_opts opts;
  e2b_sandbox *sandbox;
  e2b_response r;
  e2b_error err;
  raw_io io;
  char large[9000];
  size_t i;
  sb_world w;
  memset(&r, 0, sizeof r);
  sb_open(&w, NULL);
  sandbox = sb_attach(&w, "sb1");
  for (i = 0; i < E2B__COUNT(statuses); i++) {
    sb_script(&w.server, sb_answer(statuses[i], "retry-after: 1\r\nlocation: /\r\n", "mine"), NULL);
    CHECK_OK(e2b_sandbox_request(sandbox, 3000, "GET", "/", NULL, &r, &err));
    CHECK_INT(r.status, statuses[i]);
    CHECK_STR(r.body.ptr, "mine");
    e2b_mem_free(&r.mem);
    CHECK_INT(peer_asked_count(&w.server), 1);
  }
  sb_script(&w.server, sb_json(502, closed), NULL);
  CHECK_RC(e2b_sandbox_request(sandbox, 3000, "POST", "/", NULL, &r, &err), E2B_ERR_UNAVAILABLE);
  CHECK_INT(err.subject, E2B_SUBJECT_PORT);
  CHECK_HAS(err.message, "nothing listens on port 3000");
  CHECK(!err.maybe_done);
  CHECK_INT(r.status, 502);
  CHECK_STR(r.body.ptr, closed);
  e2b_mem_free(&r.mem);
  opts = raw_opts(&io, true, true, false);
  CHECK_RC(e2b_sandbox_request(sandbox, 3000, "GET", "/", &opts, NULL, &err), E2B_ERR_UNAVAILABLE);
  CHECK_INT(io.heads + io.sinks, 0);
  for (i = 0; i < E2B__COUNT(alike); i++) {
    sb_script(&w.server, sb_json(502, alike[i]), NULL);
    opts = raw_opts(&io, true, true, false);
    CHECK_OK(e2b_sandbox_request(sandbox, 3000, "GET", "/", &opts, &r, &err));
    CHECK_INT(io.heads, 1);
    CHECK_INT(io.status, 502);
    CHECK_STR(io.body, alike[i]);
    e2b_mem_free(&r.mem);
  }
  memset(large, 'l', sizeof large);
  large[sizeof large - 1] = 0;
  {
    static char answer[9100];
    (void)snprintf(answer, sizeof answer, "HTTP/1.1 502 X\r\ncontent-length: %u\r\n\r\n%s", (unsigned)strlen(large), large);
    sb_script(&w.server, answer, NULL);
    opts = raw_opts(&io, true, true, false);
    CHECK_OK(e2b_sandbox_request(sandbox, 3000, "GET", "/", &opts, &r, &err));
    CHECK_INT(io.heads, 1);
    CHECK_INT(io.len, strlen(large));
    e2b_mem_free(&r.mem);
    CHECK_OK(e2b_sandbox_request(sandbox, 3000, "GET", "/", NULL, &r, &err));
    CHECK_INT(r.body.len, strlen(large));
    e2b_mem_free(&r.mem);
  }
  /* the sandbox is gone: asked and said so */
  sb_script(&w.server, sb_json(502, "{\"sandboxId\":\"sb1\",\"message\":\"The sandbox was not found\",\"code\":502}"),
            sb_json(404, "{}"));
  w.server.health = "HTTP/1.1 502 X\r\ncontent-length: 22\r\n\r\nsandbox not found: sb1";
  CHECK_RC(e2b_sandbox_request(sandbox, 3000, "GET", "/", NULL, &r, &err), E2B_ERR_SANDBOX_GONE);
  CHECK_INT(r.status, 502);
  e2b_mem_free(&r.mem);
  sb_script(&w.server, SB_DROP, sb_json(200, "{\"sandboxID\":\"sb1\",\"state\":\"paused\"}"));
  CHECK_RC(e2b_sandbox_request(sandbox, 3000, "POST", "/", NULL, &r, &err), E2B_ERR_SANDBOX_PAUSED);
  CHECK(err.maybe_done && !r.mem.ptr);
  sb_close(&w);
}

/* Non-blocking, and the end of the handle under way. */
static void test_raw_non_blocking(void) {
  e2b_request_opts opts;
  e2b_sandbox *sandbox;
  e2b_response r;
  e2b_error err;
  sb_done done;
  sb_world w;
  memset(&r, 0, sizeof r);
  memset(&opts, 0, sizeof opts);
  sb_open(&w, NULL);
  sandbox = sb_attach(&w, "sb1");
  sb_script(&w.server, sb_answer(200, "", "later"), NULL);
  opts.call = sb_call(&done);
  CHECK_INT(e2b_sandbox_request(sandbox, 3000, "GET", "/", &opts, &r, &err), E2B_PENDING);
  CHECK_INT(done.calls, 0);
  sb_poll_until(w.client, &done.calls, 1);
  CHECK_INT(done.err.code, E2B_OK);
  CHECK_STR(r.body.ptr, "later");
  e2b_mem_free(&r.mem);
  sb_script(&w.server, SB_HANG, NULL);
  opts.call = sb_call(&done);
  CHECK_INT(e2b_sandbox_request(sandbox, 3000, "GET", "/", &opts, &r, &err), E2B_PENDING);
  sb_poll_requests(&w, 1);
  e2b_sandbox_free(sandbox);
  sb_poll_until(w.client, &done.calls, 1);
  CHECK_INT(done.err.code, E2B_ERR_CANCELED);
  opts.call = sb_call(&done);
  CHECK_INT(e2b_api_request(w.client, "GET", "/", &opts, &r, &err), E2B_PENDING);
  sb_poll_requests(&w, 2);
  sb_close(&w);
  CHECK_INT(done.calls, 1);
  CHECK_INT(done.err.code, E2B_ERR_CANCELED);
  CHECK(!r.mem.ptr);
}

/* Every allocation of all of them fails in turn: the call says so, nothing leaks, the others go on. */
static void test_api_no_memory(void) {
  static const e2b_kv headers[] = { { "accept", "a/b" } };
  e2b_request_opts opts;
  raw_io io;
  bool done = false;
  int survived = 0;
  size_t n;
  sb_world w;
  sb_open(&w, NULL);
  for (n = 1; !done; n++) {
    e2b_err code[10];
    e2b_metric_list metrics;
    e2b_log_list logs;
    e2b_snapshot snapshot;
    e2b_snapshot_list snapshots;
    e2b_sandbox_info info;
    e2b_response api, port;
    e2b_sandbox *sandbox = NULL;
    e2b_error err[10];
    e2b_client *client;
    test_heap heap;
    int failed = 0;
    size_t i;
    memset(code, 0, sizeof code);
    memset(&metrics, 0, sizeof metrics);
    memset(&logs, 0, sizeof logs);
    memset(&snapshot, 0, sizeof snapshot);
    memset(&snapshots, 0, sizeof snapshots);
    memset(&info, 0, sizeof info);
    memset(&api, 0, sizeof api);
    memset(&port, 0, sizeof port);
    peer_clear(&w.server);
    sb_say(&w.server, sb_json(200, "[{\"cpuUsedPct\":1}]"), true); /* a request given up before may still come, too */
    w.config.allocator = heap_allocator(&heap);
    client = e2b_client_create(&w.config, &w.err);
    if (!CHECK(client != NULL)) break;
    CHECK_INT(e2b_sandbox_attach(client, "sb1", NULL, &sandbox, &w.err), E2B_OK);
    heap.calls = 0;
    heap.fail_at = n;
#define NEXT(answer) peer_clear(&w.server); sb_say(&w.server, answer, true)
    code[0] = e2b_api_get_metrics(client, "i", 0, 0, NULL, &metrics, &err[0]);
    NEXT(sb_json(200, "{\"logs\":[{\"message\":\"m\",\"fields\":{\"a\":\"b\"}}]}"));
    code[1] = e2b_api_get_logs(client, "i", NULL, &logs, &err[1]);
    NEXT(sb_json(201, "{\"snapshotID\":\"s\",\"names\":[\"n\"]}"));
    code[2] = e2b_api_create_snapshot(client, "i", "n", NULL, &snapshot, &err[2]);
    NEXT(sb_json(200, "[{\"snapshotID\":\"s\",\"names\":[\"n\"]}]"));
    code[3] = e2b_api_list_snapshots(client, NULL, &snapshots, &err[3]);
    NEXT(sb_json(200, "[{\"sandboxID\":\"s\",\"metadata\":{\"e2b.h/nonce\":\"x\"}}]"));
    code[4] = e2b_api_find_by_nonce(client, "x", NULL, &info, &err[4]);
    NEXT(sb_answer(204, "", ""));
    code[5] = e2b_api_delete_snapshot(client, "s", NULL, NULL, &err[5]);
    code[6] = e2b_api_update_network(client, "s", NULL, E2B_YES, NULL, &err[6]);
    code[7] = e2b_sandbox_keep_alive(sandbox, 300, NULL, NULL, &err[7]);
    CHECK_INT(e2b_sandbox_keep_alive(sandbox, 0, NULL, NULL, NULL), E2B_OK);
    NEXT(sb_answer(200, "a: b\r\n", "body"));
    opts = raw_opts(&io, true, false, false);
    opts.body = "x";
    opts.body_len = 1;
    opts.call.headers.items = headers;
    opts.call.headers.count = 1;
    code[8] = e2b_api_request(client, "PUT", "/x", &opts, &api, &err[8]);
    NEXT(sb_json(502, "{\"port\":3000}"));
    opts = raw_opts(&io, true, true, true);
    io.give = 20;
    code[9] = e2b_sandbox_request(sandbox, 3000, "POST", "/x", &opts, &port, &err[9]);
#undef NEXT
    done = heap.calls < n;
    for (i = 0; i < 10; i++) {
      if (code[i] == E2B_OK) continue;
      failed++;
      CHECK_INT(code[i], E2B_ERR_NO_MEMORY);
      CHECK_INT(err[i].code, E2B_ERR_NO_MEMORY);
    }
    CHECK(failed <= 1);
    if (!failed && !done) survived++; /* the loop needs no array of descriptors; a 502 unread is the sandbox's */
    CHECK((code[0] == E2B_OK) == (metrics.items != NULL) && (code[1] == E2B_OK) == (logs.items != NULL) &&
          (code[2] == E2B_OK) == (snapshot.snapshot_id != NULL) && (code[3] == E2B_OK) == (snapshots.items != NULL) &&
          (code[4] == E2B_OK) == (info.sandbox_id != NULL) && (code[8] == E2B_OK) == (api.status == 200));
    e2b_mem_free(&metrics.mem);
    e2b_mem_free(&logs.mem);
    e2b_mem_free(&snapshot.mem);
    e2b_mem_free(&snapshots.mem);
    e2b_mem_free(&info.mem);
    e2b_mem_free(&api.mem);
    e2b_mem_free(&port.mem);
    e2b_client_free(client);
    HEAP_CHECK_EMPTY(&heap);
  }
  CHECK(n > 100 && survived <= 8);
  sb_close(&w);
}

/* ================================================================================================================== */
/* >>>> files */
/* ================================================================================================================== */

/* Says `body` with a content-length. */
static void files_say_body(peer *p, const char *status_and_headers, const void *body, size_t len,
                           unsigned flags) {
  char *all = (char *)malloc(len + 512);
  int head = snprintf(all, 512, "HTTP/1.1 %s\r\ncontent-length: %lu\r\n\r\n", status_and_headers, (unsigned long)len);
  if (len) memcpy(all + head, body, len);
  peer_say_n(p, all, (size_t)head + len, flags);
  free(all);
}

static void files_say_text(peer *p, const char *status_and_headers, const char *body, unsigned flags) {
  files_say_body(p, status_and_headers, body, strlen(body), flags);
}

#define FILES_WRITTEN "[{\"name\":\"f\",\"path\":\"/home/user/f\",\"type\":\"file\"}]"

static void files_say_written(peer *p) {
  files_say_text(p, "200 OK\r\ncontent-type: text/plain; charset=utf-8", FILES_WRITTEN, 0);
}

static void files_say_message(peer *p, const e2b__message *type, const void *message) {
  e2b__mem mem;
  e2b__buf buf;
  e2b__mem_init(&mem, NULL);
  e2b__buf_init(&buf, &mem, SIZE_MAX);
  e2b__pb_encode(type, message, &buf);
  files_say_body(p, "200 OK\r\ncontent-type: application/proto", buf.data, buf.len, 0);
  e2b__buf_free(&buf);
}

/* Compares a request with what it has to be, byte by byte; in `expected`, HOST stands for the server's address. */
static void files_check_request(peer *p, int at, const char *expected, size_t expected_len, int line) {
  char host[32], *text = (char *)malloc(expected_len + 64);
  const char *mark = strstr(expected, "HOST");
  size_t before = mark ? (size_t)(mark - expected) : 0, len;
  (void)snprintf(host, sizeof host, "127.0.0.1:%u", (unsigned)p->port);
  memcpy(text, expected, before);
  memcpy(text + before, host, strlen(host));
  memcpy(text + before + strlen(host), expected + before + 4, expected_len - before - 4);
  len = expected_len - 4 + strlen(host);
  text[len] = 0;
  if (!check_at(at < p->request_count && p->request_lens[at] == len && memcmp(p->requests[at], text, len) == 0, line,
                "the request is another"))
    printf("it is\n%s\nnot\n%s\n", peer_asked(p, at), text);
  free(text);
}
#define CHECK_REQUEST(peer, at, expected) files_check_request(peer, at, expected, sizeof(expected) - 1, __LINE__)

/* ------------------------------------------------------------------------------------------------------------------ */
/* what every test starts with */
/* ------------------------------------------------------------------------------------------------------------------ */

typedef struct files_bench {
  peer peer;
  test_heap heap;
  e2b_client_config config;
  e2b_client *client;
  e2b_sandbox *sandbox;
  e2b_error err;
} files_bench;

static void files_open(files_bench *b, const char *base_url, const char *envd_version) {
  e2b_attach_opts attach;
  char url[64];
  memset(&attach, 0, sizeof attach);
  (void)snprintf(url, sizeof url, "http://127.0.0.1:%u", (unsigned)b->peer.port);
  attach.base_url = base_url ? base_url : url;
  attach.envd_version = envd_version;
  attach.access_token = "tok";
  b->config.no_env = true;
  b->config.user_agent = "t";
  if (!b->config.idle_ms) b->config.idle_ms = 20000;
  b->config.allocator = heap_allocator(&b->heap);
  b->client = e2b_client_create(&b->config, &b->err);
  CHECK_STR(b->err.message, "");
  CHECK_INT(e2b_sandbox_attach(b->client, "sbx", &attach, &b->sandbox, &b->err), E2B_OK);
}

static void files_close(files_bench *b) {
  e2b_client_free(b->client);
  HEAP_CHECK_EMPTY(&b->heap);
}

static void files_begin(files_bench *b) {
  memset(b, 0, sizeof *b);
  peer_start(&b->peer);
  b->peer.health = "HTTP/1.1 204 No Content\r\n\r\n";
}

static void files_end(files_bench *b) {
  files_close(b);
  peer_stop(&b->peer);
}

/* Deterministic content that shows every shift and gap. */
static void files_pattern(uint8_t *to, uint64_t at, size_t len) {
  size_t i;
  for (i = 0; i < len; i++, at++) {
    uint64_t z = (at >> 3) * 0x9e3779b97f4a7c15u + 0x1234567u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    to[i] = (uint8_t)(z >> (8 * (at & 7)));
  }
}

/* Drives the client until something is so, ten seconds at most. */
#define FILES_UNTIL(client, condition)                                                                                 \
  do {                                                                                                                 \
    uint64_t files_end_ms = now_ms() + 10000;                                                                 \
    while (!(condition) && now_ms() < files_end_ms) (void)e2b_client_poll(client, 10);                        \
    CHECK(condition);                                                                                                  \
  } while (0)

/* Drives the client for so long. */
static void files_drive(e2b_client *client, int ms) {
  uint64_t end = now_ms() + (uint64_t)ms;
  while (now_ms() < end) (void)e2b_client_poll(client, 5);
}

/* ------------------------------------------------------------------------------------------------------------------ */
/* filesystem RPCs */
/* ------------------------------------------------------------------------------------------------------------------ */

static void files_make_entry(e2b__entry_info *entry, const char *path) {
  memset(entry, 0, sizeof *entry);
  entry->name = e2b__str("n");
  entry->path = e2b__str(path);
  entry->permissions = e2b__str("-rw-r--r--");
  entry->owner = e2b__str("user");
  entry->group = e2b__str("staff");
  entry->type = E2B__FILE_TYPE_FILE;
  entry->mode = 0644;
  entry->size = (int64_t)5 << 32;
  entry->has_modified_time = true;
  entry->modified_time.seconds = 1700000000;
  entry->modified_time.nanos = 5;
}

static void test_files_list(void) {
  files_bench b;
  e2b__entry_info entries[3];
  e2b__pair pair;
  e2b__list_dir_response response;
  e2b_entry_list list;
  e2b_files_opts opts;
  char storage[64];
  files_begin(&b);
  files_open(&b, NULL, NULL);
  memset(&opts, 0, sizeof opts);
  memset(&list, 0, sizeof list);
  files_make_entry(&entries[0], "/d/a");
  files_make_entry(&entries[1], "/d/b");
  files_make_entry(&entries[2], "/d/c");
  pair.key = e2b__str("k");
  pair.value = e2b__str("v");
  entries[0].metadata.items = &pair;
  entries[0].metadata.count = 1;
  entries[1].type = E2B__FILE_TYPE_DIRECTORY;
  entries[1].has_symlink_target = true;
  entries[1].symlink_target = e2b__str("/target");
  entries[1].modified_time.seconds = INT64_MAX;
  entries[2].type = 77;
  entries[2].modified_time.seconds = INT64_MIN;
  memset(&response, 0, sizeof response);
  response.entries.items = entries;
  response.entries.count = 3;
  files_say_message(&b.peer, &e2b__msg_list_dir_response, &response);
  CHECK_INT(e2b_files_list(b.sandbox, "/d", NULL, &list, &b.err), E2B_OK);
  CHECK_REQUEST(
      &b.peer, 0,
      "POST /filesystem.Filesystem/ListDir HTTP/1.1\r\nhost: HOST\r\nuser-agent: t\r\naccept: application/json\r\n"
      "accept-encoding: identity\r\ne2b-sandbox-id: sbx\r\ne2b-sandbox-port: 49983\r\nx-access-token: tok\r\n"
      "content-type: application/proto\r\nconnect-protocol-version: 1\r\ncontent-length: 6\r\n\r\n\x0a\x02/d\x10\x01");
  CHECK_INT(list.count, 3);
  CHECK_STR(list.items[0].name, "n");
  CHECK_STR(list.items[0].path, "/d/a");
  CHECK_STR(list.items[0].permissions, "-rw-r--r--");
  CHECK_STR(list.items[0].owner, "user");
  CHECK_STR(list.items[0].group, "staff");
  CHECK(list.items[0].symlink_target == NULL);
  CHECK_INT(list.items[0].type, E2B_ENTRY_FILE);
  CHECK_INT(list.items[0].size, (int64_t)5 << 32);
  CHECK_INT(list.items[0].mode, 0644);
  CHECK_INT(list.items[0].modified_time_ns, 1700000000000000005);
  CHECK_INT(list.items[0].metadata.count, 1);
  CHECK_STR(list.items[0].metadata.items[0].key, "k");
  CHECK_STR(list.items[0].metadata.items[0].value, "v");
  CHECK_INT(list.items[1].type, E2B_ENTRY_DIR);
  CHECK_STR(list.items[1].symlink_target, "/target");
  CHECK_INT(list.items[1].modified_time_ns, INT64_MAX);
  CHECK_INT(list.items[2].type, E2B_ENTRY_UNKNOWN);
  CHECK_INT(list.items[2].modified_time_ns, INT64_MIN);
  e2b_mem_free(&list.mem);

  opts.depth = 3;
  opts.user = "bob";
  peer_say(&b.peer, "HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 0\r\n\r\n", 0);
  CHECK_INT(e2b_files_list(b.sandbox, "rel", &opts, &list, NULL), E2B_OK);
  CHECK_INT(list.count, 0);
  CHECK_HAS(peer_asked(&b.peer, 1), "authorization: Basic Ym9iOg==\r\n");
  CHECK(memcmp(b.peer.requests[1] + b.peer.request_lens[1] - 7, "\x0a\x03rel\x10\x03", 7) == 0);
  e2b_mem_free(&list.mem);

  memset(&list, 0, sizeof list);
  list.mem.ptr = storage;
  list.mem.cap = sizeof storage;
  list.mem.fixed = true;
  files_say_message(&b.peer, &e2b__msg_list_dir_response, &response);
  CHECK_INT(e2b_files_list(b.sandbox, "/d", NULL, &list, &b.err), E2B_ERR_BUFFER_TOO_SMALL);
  CHECK(list.mem.len > 200 && list.count == 0 && list.items == NULL);

  files_say_text(&b.peer, "404 Not Found\r\ncontent-type: application/json",
                 "{\"code\":\"not_found\",\"message\":\"nothing there\"}", 0);
  CHECK_INT(e2b_files_list(b.sandbox, "/d", NULL, &list, &b.err), E2B_ERR_NOT_FOUND);
  CHECK_INT(b.err.subject, E2B_SUBJECT_FILE);
  CHECK_INT(b.err.connect_code, E2B_CONNECT_NOT_FOUND);
  CHECK_HAS(b.err.message, "nothing there");
  files_end(&b);
}

static void test_files_rpcs(void) {
  static const char proto[] = "HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 0\r\n\r\n";
  files_bench b;
  e2b__entry_response response;
  e2b_entry_info info;
  bool flag = true;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  memset(&info, 0, sizeof info);
  memset(&response, 0, sizeof response);
  response.has_entry = true;
  files_make_entry(&response.entry, "/x");

  files_say_message(&b.peer, &e2b__msg_entry_response, &response);
  CHECK_INT(e2b_files_get_info(b.sandbox, "/x", NULL, &info, &b.err), E2B_OK);
  CHECK_STR(info.path, "/x");
  CHECK(strncmp(peer_asked(&b.peer, 0), "POST /filesystem.Filesystem/Stat HTTP/1.1\r\n", 43) == 0);
  e2b_mem_free(&info.mem);
  peer_say(&b.peer, proto, 0); /* no entry at all */
  CHECK_INT(e2b_files_get_info(b.sandbox, "/x", NULL, &info, &b.err), E2B_ERR_PROTOCOL);
  CHECK(info.path == NULL && info.mem.ptr == NULL);

  peer_say(&b.peer, proto, 0);
  CHECK_INT(e2b_files_exists(b.sandbox, "/x", NULL, &flag, &b.err), E2B_OK);
  CHECK(flag);
  files_say_text(&b.peer, "404 Not Found\r\ncontent-type: application/json",
                 "{\"code\":\"not_found\",\"message\":\"m\"}", 0);
  CHECK_INT(e2b_files_exists(b.sandbox, "/x", NULL, &flag, &b.err), E2B_OK);
  CHECK(!flag);
  files_say_text(&b.peer, "404 Not Found\r\ncontent-type: text/html", "<html>no page</html>", 0);
  CHECK_INT(e2b_files_exists(b.sandbox, "/x", NULL, &flag, &b.err), E2B_ERR_SERVICE);
  CHECK_INT(b.err.subject, E2B_SUBJECT_NONE);
  CHECK_INT(b.err.http_status, 404);
  CHECK_HAS(b.err.message, "no page");
  files_say_text(&b.peer, "404 Not Found\r\ncontent-type: application/json", "{\"code\":404,\"message\":\"reserved\"}",
                 0);
  CHECK_INT(e2b_files_exists(b.sandbox, "/x", NULL, &flag, &b.err), E2B_ERR_SERVICE);
  files_say_text(&b.peer, "401 Unauthorized", "{\"code\":401,\"message\":\"bad token\"}", 0);
  CHECK_INT(e2b_files_exists(b.sandbox, "/x", NULL, &flag, &b.err), E2B_ERR_UNAUTHENTICATED);
  files_say_text(&b.peer, "200 OK\r\ncontent-type: text/html", "<html>hello</html>", 0);
  CHECK_INT(e2b_files_exists(b.sandbox, "/x", NULL, &flag, &b.err), E2B_ERR_PROTOCOL);
  CHECK(!flag);

  peer_say(&b.peer, proto, 0);
  CHECK_INT(e2b_files_make_dir(b.sandbox, "/x", NULL, &flag, &b.err), E2B_OK);
  CHECK(flag);
  files_say_text(&b.peer, "409 Conflict", "{\"code\":\"already_exists\"}", 0);
  CHECK_INT(e2b_files_make_dir(b.sandbox, "/x", NULL, &flag, &b.err), E2B_OK);
  CHECK(!flag);
  peer_say(&b.peer, proto, 0);
  CHECK_INT(e2b_files_make_dir(b.sandbox, "/x", NULL, NULL, NULL), E2B_OK);
  files_say_text(&b.peer, "409 Conflict", "{\"code\":\"already_exists\"}", 0);
  CHECK_INT(e2b_files_make_dir(b.sandbox, "/x", NULL, NULL, NULL), E2B_OK);

  peer_clear(&b.peer);
  files_say_message(&b.peer, &e2b__msg_entry_response, &response);
  CHECK_INT(e2b_files_rename(b.sandbox, "/a", "/x", NULL, &info, &b.err), E2B_OK);
  CHECK_STR(info.path, "/x");
  e2b_mem_free(&info.mem);
  CHECK_REQUEST(
      &b.peer, 0,
      "POST /filesystem.Filesystem/Move HTTP/1.1\r\nhost: HOST\r\nuser-agent: t\r\naccept: application/json\r\n"
      "accept-encoding: identity\r\ne2b-sandbox-id: sbx\r\ne2b-sandbox-port: 49983\r\nx-access-token: tok\r\n"
      "content-type: application/proto\r\nconnect-protocol-version: 1\r\ncontent-length: 8\r\n\r\n\x0a\x02/a\x12\x02/x");
  files_say_message(&b.peer, &e2b__msg_entry_response, &response);
  CHECK_INT(e2b_files_rename(b.sandbox, "/a", "/x", NULL, NULL, &b.err), E2B_OK);
  files_say_text(&b.peer, "404 Not Found", "{\"code\":\"not_found\"}", 0);
  CHECK_INT(e2b_files_rename(b.sandbox, "/a", "/x", NULL, &info, &b.err), E2B_ERR_NOT_FOUND);
  CHECK_INT(b.err.subject, E2B_SUBJECT_FILE);

  peer_say(&b.peer, proto, 0);
  CHECK_INT(e2b_files_remove(b.sandbox, "/x", NULL, &b.err), E2B_OK);
  files_say_text(&b.peer, "404 Not Found", "{\"code\":\"not_found\"}", 0);
  CHECK_INT(e2b_files_remove(b.sandbox, "/x", NULL, &b.err), E2B_OK);
  files_say_text(&b.peer, "404 Not Found", "gone fishing", 0);
  CHECK_INT(e2b_files_remove(b.sandbox, "/x", NULL, &b.err), E2B_ERR_SERVICE);
  files_end(&b);
}

static void test_files_arguments(void) {
  files_bench b;
  e2b_entry_list list;
  e2b_entry_info info;
  e2b_buf buf;
  e2b_files_opts opts;
  e2b_file_stream *stream = NULL;
  e2b_kv header;
  bool flag;
  size_t got;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  memset(&list, 0, sizeof list);
  memset(&info, 0, sizeof info);
  memset(&buf, 0, sizeof buf);
  memset(&opts, 0, sizeof opts);
  CHECK_INT(e2b_files_list(b.sandbox, "", NULL, &list, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(b.err.subject, E2B_SUBJECT_OPTION);
  CHECK_HAS(b.err.message, "path");
  CHECK_INT(e2b_files_list(b.sandbox, NULL, NULL, &list, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_list(b.sandbox, "a\nb", NULL, &list, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_list(b.sandbox, "a", NULL, NULL, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_list(NULL, "a", NULL, &list, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_exists(b.sandbox, "", NULL, &flag, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_exists(b.sandbox, "a", NULL, NULL, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_get_info(b.sandbox, "", NULL, &info, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_make_dir(b.sandbox, "", NULL, NULL, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_remove(b.sandbox, "", NULL, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_rename(b.sandbox, "", "x", NULL, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "old_path");
  CHECK_INT(e2b_files_rename(b.sandbox, "x", "", NULL, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "new_path");
  CHECK_INT(e2b_files_read(b.sandbox, "", NULL, &buf, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_read(b.sandbox, "x", NULL, NULL, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_write(b.sandbox, "", "x", 1, NULL, NULL, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_write(b.sandbox, "x", NULL, 1, NULL, NULL, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_download(b.sandbox, "x", NULL, NULL, NULL, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_upload(b.sandbox, "x", NULL, NULL, 1, NULL, NULL, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_read_stream(b.sandbox, "", NULL, &stream, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_read_stream(b.sandbox, "x", NULL, NULL, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_write_stream(b.sandbox, "x", -2, NULL, &stream, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_write_stream(b.sandbox, "x", INT64_MAX, NULL, &stream, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_file_stream_read(NULL, 0, &flag, 1, &got, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_file_stream_write(NULL, 0, &flag, 1, &got, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_file_stream_finish(NULL, 0, NULL, NULL), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_file_stream_size(NULL), -1);
  e2b_file_stream_free(NULL);
  opts.user = "a:b";
  CHECK_INT(e2b_files_read(b.sandbox, "x", &opts, &buf, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "user");
  CHECK_INT(e2b_files_list(b.sandbox, "x", &opts, &list, &b.err), E2B_ERR_INVALID_ARGUMENT);
  opts.user = NULL;
  header.key = "x-a";
  header.value = "a\r\nb";
  opts.call.headers.items = &header;
  opts.call.headers.count = 1;
  CHECK_INT(e2b_files_read(b.sandbox, "x", &opts, &buf, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_write_stream(b.sandbox, "x", 1, &opts, &stream, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(b.peer.accepted, 0);
  files_end(&b);
}

/* ------------------------------------------------------------------------------------------------------------------ */
/* reading */
/* ------------------------------------------------------------------------------------------------------------------ */

static void test_files_read(void) {
  files_bench b;
  e2b_files_opts opts;
  e2b_buf buf;
  char storage[8];
  files_begin(&b);
  b.config.max_result_bytes = 1000;
  files_open(&b, NULL, NULL);
  memset(&opts, 0, sizeof opts);
  memset(&buf, 0, sizeof buf);

  files_say_text(&b.peer, "200 OK", "hello", 0);
  CHECK_INT(e2b_files_read(b.sandbox, "/a b+%&#\"?\xc3\xa9", NULL, &buf, &b.err), E2B_OK);
  CHECK_REQUEST(
      &b.peer, 0,
      "GET /files?path=%2Fa%20b%2B%25%26%23%22%3F%C3%A9 HTTP/1.1\r\nhost: HOST\r\nuser-agent: t\r\naccept: application/json\r\n"
      "accept-encoding: identity\r\ne2b-sandbox-id: sbx\r\ne2b-sandbox-port: 49983\r\nx-access-token: tok\r\n\r\n");
  CHECK_INT(buf.len, 5);
  CHECK_STR((char *)buf.data, "hello");
  CHECK_INT(buf.mem.len, 6);
  CHECK_INT(b.err.code, E2B_OK);
  e2b_mem_free(&buf.mem);

  opts.user = "bob";
  files_say_text(&b.peer, "200 OK", "", 0);
  CHECK_INT(e2b_files_read(b.sandbox, "x", &opts, &buf, NULL), E2B_OK);
  CHECK_HAS(peer_asked(&b.peer, 1), "GET /files?path=x&username=bob HTTP/1.1\r\n");
  CHECK(!strstr(peer_asked(&b.peer, 1), "authorization"));
  CHECK(buf.len == 0 && buf.data && buf.data[0] == 0);
  e2b_mem_free(&buf.mem);

  peer_say(&b.peer, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
            PEER_DRIBBLE);
  CHECK_INT(e2b_files_read_text(b.sandbox, "x", NULL, &buf, NULL), E2B_OK);
  CHECK_STR((char *)buf.data, "abcde");
  e2b_mem_free(&buf.mem);
  peer_say(&b.peer, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 0);
  CHECK_INT(e2b_files_read_text(b.sandbox, "x", NULL, &buf, NULL), E2B_OK);
  CHECK(buf.len == 0 && buf.data && buf.data[0] == 0);
  e2b_mem_free(&buf.mem);

  files_say_body(&b.peer, "200 OK", "a\0b", 3, PEER_REPEAT);
  CHECK_INT(e2b_files_read(b.sandbox, "x", NULL, &buf, NULL), E2B_OK);
  CHECK(buf.len == 3 && memcmp(buf.data, "a\0b", 4) == 0);
  e2b_mem_free(&buf.mem);
  CHECK_INT(e2b_files_read_text(b.sandbox, "x", NULL, &buf, &b.err), E2B_ERR_PROTOCOL);
  CHECK_HAS(b.err.message, "byte 1 ");
  CHECK(!buf.data && !buf.mem.ptr);

  memset(storage, 'z', sizeof storage);
  buf.mem.ptr = storage;
  buf.mem.cap = 4;
  buf.mem.fixed = true;
  CHECK_INT(e2b_files_read(b.sandbox, "x", NULL, &buf, &b.err), E2B_OK);
  CHECK(buf.data == (uint8_t *)storage && buf.len == 3 && memcmp(storage, "a\0b\0zzzz", 8) == 0 && buf.mem.len == 4);
  buf.mem.cap = 3;
  CHECK_INT(e2b_files_read(b.sandbox, "x", NULL, &buf, &b.err), E2B_ERR_BUFFER_TOO_SMALL);
  CHECK(buf.mem.len == 4 && buf.len == 0 && buf.data == NULL && buf.mem.ptr == storage && buf.mem.fixed);
  CHECK_HAS(b.err.message, "needs 4 bytes, the storage given has 3");
  files_end(&b);
}

static void test_files_read_limit(void) {
  files_bench b;
  e2b_buf buf;
  uint8_t body[1001];
  files_begin(&b);
  b.config.max_result_bytes = 1000;
  files_open(&b, NULL, NULL);
  memset(&buf, 0, sizeof buf);
  memset(body, 'x', sizeof body);
  files_say_body(&b.peer, "200 OK", body, 1000, 0);
  CHECK_INT(e2b_files_read(b.sandbox, "x", NULL, &buf, &b.err), E2B_OK);
  CHECK_INT(buf.len, 1000);
  e2b_mem_free(&buf.mem);
  peer_say(&b.peer, "HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n", PEER_HANG); /* known from the head alone */
  CHECK_INT(e2b_files_read(b.sandbox, "x", NULL, &buf, &b.err), E2B_ERR_LIMIT);
  CHECK_HAS(b.err.message, "1001");
  CHECK(!b.err.maybe_done && !buf.mem.ptr);
  peer_say(&b.peer, "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n", PEER_HANG);
  CHECK(e2b_files_read(b.sandbox, "x", NULL, &buf, &b.err) < 0);
  {
    char head[] = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n";
    char all[sizeof head + sizeof body];
    memcpy(all, head, sizeof head - 1);
    memcpy(all + sizeof head - 1, body, sizeof body);
    peer_say_n(&b.peer, all, sizeof head - 1 + sizeof body, PEER_HANG);
  }
  CHECK_INT(e2b_files_read(b.sandbox, "x", NULL, &buf, &b.err), E2B_ERR_LIMIT);
  CHECK(!buf.mem.ptr);
  files_end(&b);
}

static void test_files_read_errors(void) {
  files_bench b;
  e2b_buf buf;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  memset(&buf, 0, sizeof buf);
  files_say_text(&b.peer, "404 Not Found\r\nx-request-id: r-1",
                 "{\"code\":404,\"message\":\"path '/x' does not exist\"}\n", 0);
  CHECK_INT(e2b_files_read(b.sandbox, "/x", NULL, &buf, &b.err), E2B_ERR_NOT_FOUND);
  CHECK_INT(b.err.subject, E2B_SUBJECT_FILE);
  CHECK_INT(b.err.http_status, 404);
  CHECK_STR(b.err.request_id, "r-1");
  CHECK_HAS(b.err.message, "path '/x' does not exist");
  files_say_text(&b.peer, "404 Not Found", "404 page not found\n", 0);
  CHECK_INT(e2b_files_read(b.sandbox, "/x", NULL, &buf, &b.err), E2B_ERR_SERVICE);
  CHECK_INT(b.err.subject, E2B_SUBJECT_NONE);
  files_say_text(&b.peer, "400 Bad Request", "{\"code\":400,\"message\":\"path '/x' is a directory\"}\n", 0);
  CHECK_INT(e2b_files_read(b.sandbox, "/x", NULL, &buf, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "is a directory");
  files_say_text(&b.peer, "401 Unauthorized", "{\"code\":401,\"message\":\"no token\"}\n", 0);
  CHECK_INT(e2b_files_read(b.sandbox, "/x", NULL, &buf, &b.err), E2B_ERR_UNAUTHENTICATED);
  files_say_text(&b.peer, "200 OK\r\ncontent-encoding: gzip", "\x1f\x8b", 0);
  CHECK_INT(e2b_files_read(b.sandbox, "/x", NULL, &buf, &b.err), E2B_ERR_PROTOCOL);
  CHECK_HAS(b.err.message, "compressed");
  files_say_text(&b.peer, "200 OK\r\ncontent-encoding: Identity", "ok", 0);
  CHECK_INT(e2b_files_read(b.sandbox, "/x", NULL, &buf, &b.err), E2B_OK);
  e2b_mem_free(&buf.mem);
  peer_say(&b.peer, "HTTP/1.1 200 OK\r\n\r\nhello", PEER_CLOSE);
  CHECK_INT(e2b_files_read(b.sandbox, "/x", NULL, &buf, &b.err), E2B_ERR_PROTOCOL);
  CHECK_HAS(b.err.message, "content-length");
  peer_say(&b.peer, "HTTP/1.1 204 No Content\r\n\r\n", 0);
  CHECK_INT(e2b_files_read(b.sandbox, "/x", NULL, &buf, &b.err), E2B_ERR_PROTOCOL);
  /* an edge that knows no such sandbox, asked twice; a 502 of a sandbox that lives */
  b.peer.health = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 68\r\n\r\n"
                  "{\"sandboxId\":\"sbx\",\"message\":\"The sandbox was not found\",\"code\":502}";
  files_say_text(&b.peer, "502 Bad Gateway", "<html>bad</html>", 0);
  CHECK_INT(e2b_files_read(b.sandbox, "/x", NULL, &buf, &b.err), E2B_ERR_SANDBOX_GONE);
  CHECK_INT(b.err.subject, E2B_SUBJECT_SANDBOX);
  b.peer.health = "HTTP/1.1 204 No Content\r\n\r\n";
  files_say_text(&b.peer, "502 Bad Gateway", "<html>bad</html>", 0);
  CHECK_INT(e2b_files_read(b.sandbox, "/x", NULL, &buf, &b.err), E2B_ERR_UNAVAILABLE);
  /* 429 with Retry-After is waited for; the first body must not leak into the result */
  files_say_text(&b.peer, "429 Too Many Requests\r\nretry-after: 1", "slow down", 0);
  files_say_text(&b.peer, "200 OK", "content", 0);
  CHECK_INT(e2b_files_read(b.sandbox, "/x", NULL, &buf, &b.err), E2B_OK);
  CHECK_STR((char *)buf.data, "content");
  e2b_mem_free(&buf.mem);
  files_end(&b);
}

/* Cuts an answer at every offset: never a success, and the message counts. */
static void files_cut(files_bench *b, const char *answer, size_t head, unsigned flags) {
  size_t cut, len = strlen(answer);
  for (cut = 0; cut < len; cut++) {
    e2b_buf buf;
    e2b_err code;
    char words[32];
    memset(&buf, 0, sizeof buf);
    peer_say_n(&b->peer, answer, cut, flags | PEER_REPEAT); /* nothing at all on a reused connection is asked again */
    code = e2b_files_read(b->sandbox, "/x", NULL, &buf, &b->err);
    if (cut == 0)
      CHECK(code == E2B_ERR_CLOSED || code == E2B_ERR_IO);
    else
      CHECK_INT(code, E2B_ERR_TRUNCATED);
    if (code == E2B_OK) printf("cut at %d\n", (int)cut);
    (void)snprintf(words, sizeof words, "after %d", head && cut >= head ? (int)(cut - head) : 0);
    if (head && cut >= head) CHECK_HAS(b->err.message, words);
    CHECK(!buf.data && !buf.mem.ptr);
    peer_clear(&b->peer);
  }
}

static void test_files_read_cut(void) {
  static const char plain[] = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789";
  static const char chunked[] =
      "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n";
  files_bench b;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  files_cut(&b, plain, sizeof plain - 11, PEER_CLOSE);
  files_cut(&b, chunked, 0, PEER_CLOSE);
  files_cut(&b, plain, 0, PEER_RESET);
  files_end(&b);
}

typedef struct files_sink {
  files_bench *bench;
  e2b_op op;
  uint8_t data[4096];
  size_t len;
  int calls;
  int answer;  /* from the second call on: returned */
  bool pause;  /* pauses in each call */
  bool cancel; /* cancels its operation */
  bool free_sandbox;
  bool block;   /* tries a blocking call */
  e2b_err done; /* E2B_PENDING until on_done */
  e2b_error err;
} files_sink;

static int files_on_data(void *user, const char *data, size_t len) {
  files_sink *sink = (files_sink *)user;
  sink->calls++;
  if (sink->len + len <= sizeof sink->data) memcpy(sink->data + sink->len, data, len);
  sink->len += len;
  if (sink->block) {
    bool exists;
    CHECK_INT(e2b_files_exists(sink->bench->sandbox, "/x", NULL, &exists, NULL), E2B_ERR_BAD_STATE);
  }
  if (sink->cancel) e2b_op_cancel(sink->bench->client, sink->op);
  if (sink->free_sandbox) e2b_sandbox_free(sink->bench->sandbox);
  if (sink->pause) return E2B_PAUSE;
  return sink->answer;
}

static void files_on_done(void *user, const e2b_error *err) {
  files_sink *sink = (files_sink *)user;
  CHECK_INT(sink->done, E2B_PENDING);
  sink->done = err->code;
  sink->err = *err;
}

static void files_sink_init(files_sink *sink, files_bench *bench, e2b_files_opts *opts) {
  memset(sink, 0, sizeof *sink);
  memset(opts, 0, sizeof *opts);
  sink->bench = bench;
  sink->done = E2B_PENDING;
  opts->call.op = &sink->op;
  opts->call.on_done = files_on_done;
  opts->call.user = sink;
}

static void test_files_download(void) {
  files_bench b;
  files_sink sink;
  e2b_files_opts opts;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  files_sink_init(&sink, &b, &opts);
  sink.block = true;
  files_say_text(&b.peer, "200 OK", "hello world", PEER_DRIBBLE);
  CHECK_INT(e2b_files_download(b.sandbox, "/x", files_on_data, &sink, NULL, &b.err), E2B_OK);
  CHECK(sink.len == 11 && memcmp(sink.data, "hello world", 11) == 0);
  CHECK_HAS(peer_asked(&b.peer, 0), "GET /files?path=%2Fx HTTP/1.1\r\n");

  files_sink_init(&sink, &b, &opts); /* nothing for answers that are not the file */
  files_say_text(&b.peer, "404 Not Found", "{\"message\":\"no\"}", 0);
  CHECK_INT(e2b_files_download(b.sandbox, "/x", files_on_data, &sink, NULL, &b.err), E2B_ERR_NOT_FOUND);
  files_say_text(&b.peer, "500 Oops", "no", PEER_DRIBBLE);
  CHECK_INT(e2b_files_download(b.sandbox, "/x", files_on_data, &sink, NULL, &b.err), E2B_ERR_SERVICE);
  CHECK_INT(sink.calls, 0);

  peer_say(&b.peer, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123", PEER_CLOSE);
  CHECK_INT(e2b_files_download(b.sandbox, "/x", files_on_data, &sink, NULL, &b.err), E2B_ERR_TRUNCATED);
  CHECK_HAS(b.err.message, "after 4 of 10 bytes");
  CHECK_INT(sink.len, 4);

  sink.answer = -1;
  files_say_text(&b.peer, "200 OK", "hello", 0);
  CHECK_INT(e2b_files_download(b.sandbox, "/x", files_on_data, &sink, NULL, &b.err), E2B_ERR_CANCELED);
  CHECK_HAS(b.err.message, "sink");
  sink.answer = 0;
  sink.pause = true;
  files_say_text(&b.peer, "200 OK", "hello", 0);
  CHECK_INT(e2b_files_download(b.sandbox, "/x", files_on_data, &sink, NULL, &b.err), E2B_ERR_BAD_STATE);
  CHECK_HAS(b.err.message, "E2B_PAUSE");

  files_sink_init(&sink, &b, &opts); /* without a handle nobody could resume either */
  opts.call.op = NULL;
  sink.pause = true;
  files_say_text(&b.peer, "200 OK", "hello", 0);
  CHECK_INT(e2b_files_download(b.sandbox, "/x", files_on_data, &sink, &opts, &b.err), E2B_PENDING);
  CHECK_INT(e2b_client_drain(b.client, 5000), E2B_OK);
  CHECK_INT(sink.done, E2B_ERR_BAD_STATE);

  files_sink_init(&sink, &b, &opts); /* each chunk pauses; the end waits for the rest */
  sink.pause = true;
  peer_say(&b.peer,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n4\r\nfghi\r\n0\r\n\r\n", 0);
  CHECK_INT(e2b_files_download(b.sandbox, "/x", files_on_data, &sink, &opts, &b.err), E2B_PENDING);
  FILES_UNTIL(b.client, sink.calls == 1);
  files_drive(b.client, 30);
  CHECK_INT(sink.calls, 1);
  CHECK_INT(sink.len, 3);
  CHECK_INT(sink.done, E2B_PENDING);
  e2b_op_resume(b.client, sink.op);
  FILES_UNTIL(b.client, sink.calls == 2);
  e2b_op_resume(b.client, sink.op);
  FILES_UNTIL(b.client, sink.done == E2B_OK);
  CHECK(sink.len == 9 && memcmp(sink.data, "abcdefghi", 9) == 0);

  files_sink_init(&sink, &b, &opts); /* canceled from inside */
  sink.cancel = true;
  files_say_text(&b.peer, "200 OK", "hello", PEER_DRIBBLE);
  CHECK_INT(e2b_files_download(b.sandbox, "/x", files_on_data, &sink, &opts, &b.err), E2B_PENDING);
  FILES_UNTIL(b.client, sink.calls == 1);
  files_drive(b.client, 30);
  CHECK_INT(sink.calls, 1);
  CHECK_INT(sink.done, E2B_PENDING);

  files_sink_init(&sink, &b, &opts); /* paused, then canceled */
  sink.pause = true;
  files_say_text(&b.peer, "200 OK", "hello", 0);
  CHECK_INT(e2b_files_download(b.sandbox, "/x", files_on_data, &sink, &opts, &b.err), E2B_PENDING);
  FILES_UNTIL(b.client, sink.calls == 1);
  e2b_op_cancel(b.client, sink.op);
  e2b_op_resume(b.client, sink.op);

  files_sink_init(&sink, &b, &opts); /* the sandbox freed from inside */
  sink.free_sandbox = true;
  files_say_text(&b.peer, "200 OK", "hello", PEER_DRIBBLE);
  CHECK_INT(e2b_files_download(b.sandbox, "/x", files_on_data, &sink, &opts, &b.err), E2B_PENDING);
  FILES_UNTIL(b.client, sink.calls == 1);
  files_drive(b.client, 30);
  CHECK_INT(sink.calls, 1);
  CHECK_INT(sink.done, E2B_ERR_CANCELED);
  files_end(&b);
}

/* A paused download does not time out, holds its sender back in bounded memory, and goes on. */
static void test_files_download_held(void) {
  const size_t size = 4u << 20;
  files_bench b;
  files_sink sink;
  e2b_files_opts opts;
  e2b_client_stats stats;
  uint8_t *body = (uint8_t *)malloc(size);
  files_begin(&b);
  b.config.idle_ms = 400;
  files_open(&b, NULL, NULL);
  files_pattern(body, 0, size);
  files_say_body(&b.peer, "200 OK", body, size, 0);
  files_sink_init(&sink, &b, &opts);
  sink.pause = true;
  CHECK_INT(e2b_files_download(b.sandbox, "/x", files_on_data, &sink, &opts, &b.err), E2B_PENDING);
  files_drive(b.client, 600);
  CHECK_INT(sink.calls, 1);
  CHECK_INT(sink.done, E2B_PENDING);
  e2b_client_get_stats(b.client, &stats);
  CHECK(stats.mem_now < 200000);
  sink.pause = false;
  e2b_op_resume(b.client, sink.op);
  CHECK_INT(e2b_client_drain(b.client, 10000), E2B_OK);
  CHECK_INT(sink.done, E2B_OK);
  CHECK_INT(sink.len, size);
  e2b_client_get_stats(b.client, &stats);
  CHECK(stats.mem_peak < 200000);
  peer_say(&b.peer, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123",
            PEER_HANG); /* but a silent server does end it */
  CHECK_INT(e2b_files_download(b.sandbox, "/x", files_on_data, &sink, NULL, &b.err), E2B_ERR_IDLE_TIMEOUT);
  CHECK_HAS(b.err.message, "after 4 of 10 bytes");
  free(body);
  files_end(&b);
}

/* ------------------------------------------------------------------------------------------------------------------ */
/* writing */
/* ------------------------------------------------------------------------------------------------------------------ */

#define FILES_HEAD(query, rest)                                                                                        \
  "POST /files?path=" query " HTTP/1.1\r\nhost: HOST\r\nuser-agent: t\r\naccept: application/json\r\n"                 \
  "accept-encoding: identity\r\ne2b-sandbox-id: sbx\r\ne2b-sandbox-port: 49983\r\nx-access-token: tok\r\n" rest

/* Takes a form apart: checks its frame and the file name, copies the content. Returns its length, -1 when malformed. */
static long files_form_content(peer *p, int at, const char *filename, char *out, size_t cap) {
  char boundary[64], head[512], tail[80];
  char *request = (char *)peer_asked(p, at), *body = strstr(request, "\r\n\r\n"),
       *end = request + p->request_lens[at % 64];
  char *mark = strstr(request, "content-type: multipart/form-data; boundary="),
       *length = strstr(request, "content-length: ");
  size_t n;
  if (!body || !mark || sscanf(mark + 44, "%63[^\r]", boundary) != 1) return -1;
  body += 4;
  if (length && strtoull(length + 16, NULL, 10) != (unsigned long long)(end - body)) return -1;
  (void)snprintf(head, sizeof head,
                 "--%s\r\nContent-Disposition: form-data; name=\"file\"; filename=\"%s\"\r\n"
                 "Content-Type: application/octet-stream\r\n\r\n",
                 boundary, filename);
  (void)snprintf(tail, sizeof tail, "\r\n--%s--\r\n", boundary);
  if ((size_t)(end - body) < strlen(head) + strlen(tail) || memcmp(body, head, strlen(head)) != 0) return -1;
  if (memcmp(end - strlen(tail), tail, strlen(tail)) != 0) return -1;
  body += strlen(head);
  n = (size_t)(end - body) - strlen(tail);
  if (n > cap) return -1;
  memcpy(out, body, n);
  return (long)n;
}

static void test_files_write(void) {
  files_bench b;
  e2b_write_info info;
  e2b_files_opts opts;
  char content[64], storage[4];
  files_begin(&b);
  files_open(&b, NULL, "0.5.7");
  memset(&info, 0, sizeof info);
  memset(&opts, 0, sizeof opts);
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_write(b.sandbox, "/f", "a\0b", 3, NULL, &info, &b.err), E2B_OK);
  CHECK_REQUEST(&b.peer, 0,
                FILES_HEAD("%2Ff", "content-type: application/octet-stream\r\ncontent-length: 3\r\n\r\na\0b"));
  CHECK_STR(info.path, "/home/user/f");
  CHECK_STR(info.name, "f");
  CHECK_STR(info.type, "file");
  e2b_mem_free(&info.mem);
  opts.user = "bob";
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_write_text(b.sandbox, "/f", "", &opts, NULL, NULL), E2B_OK);
  CHECK_REQUEST(&b.peer, 1,
                FILES_HEAD("%2Ff&username=bob", "content-type: application/octet-stream\r\ncontent-length: 0\r\n\r\n"));
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_write(b.sandbox, "/f", NULL, 0, NULL, NULL, NULL), E2B_OK);
  info.mem.ptr = storage;
  info.mem.cap = sizeof storage;
  info.mem.fixed = true;
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_write(b.sandbox, "/f", "x", 1, NULL, &info, &b.err), E2B_ERR_BUFFER_TOO_SMALL);
  CHECK(b.err.maybe_done && info.path == NULL && info.mem.len > 4);
  files_close(&b);

  peer_clear(&b.peer);
  files_open(&b, NULL, "0.5.6");
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_write(b.sandbox, "/d/a \"q\" \\ %41 \xc3\xa9.txt", "data\r\n--", 8, NULL, NULL, &b.err), E2B_OK);
  CHECK_INT(files_form_content(&b.peer, 0, "a \\\"q\\\" \\\\ %41 \xc3\xa9.txt", content, sizeof content), 8);
  CHECK(memcmp(content, "data\r\n--", 8) == 0);
  CHECK_HAS(peer_asked(&b.peer, 0), "POST /files?path=%2Fd%2Fa%20%22q%22%20%5C%20%2541%20%C3%A9.txt HTTP/1.1\r\n");
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_write(b.sandbox, "/d/", "", 0, NULL, NULL, &b.err), E2B_OK);
  CHECK_INT(files_form_content(&b.peer, 1, "file", content, sizeof content), 0);
  CHECK(memcmp(strstr(peer_asked(&b.peer, 0), "boundary="), strstr(peer_asked(&b.peer, 1), "boundary="), 40) != 0);
  opts.user = NULL; /* asked for, whatever the version */
  opts.octet_stream = E2B_YES;
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_write(b.sandbox, "/f", "x", 1, &opts, NULL, &b.err), E2B_OK);
  CHECK_HAS(peer_asked(&b.peer, 2), "\r\ncontent-type: application/octet-stream\r\n");
  files_close(&b);
  files_open(&b, NULL, NULL);
  opts.octet_stream = E2B_NO;
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_write(b.sandbox, "/f", "x", 1, &opts, NULL, &b.err), E2B_OK);
  CHECK_HAS(peer_asked(&b.peer, 3), "\r\ncontent-type: multipart/form-data; boundary=");
  files_end(&b);
}

static void test_files_write_answers(void) {
  static const char *const unproven[] = { "",
                                          "[]",
                                          "null",
                                          "{}",
                                          "[{}]",
                                          "[{\"path\":\"\"}]",
                                          "[{\"path\":7}]",
                                          "[{\"path\":\"/x\"}",
                                          "[{\"path\":\"/x\"}] trailing",
                                          "<html></html>",
                                          "ok",
                                          "[1]",
                                          "{\"path\":\"/x\"}" };
  files_bench b;
  e2b_write_info info;
  size_t i, cut;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  memset(&info, 0, sizeof info);
  for (i = 0; i < sizeof unproven / sizeof unproven[0]; i++) {
    files_say_text(&b.peer, "200 OK", unproven[i], 0);
    CHECK_INT(e2b_files_write(b.sandbox, "/f", "x", 1, NULL, &info, &b.err), E2B_ERR_PROTOCOL);
    CHECK(b.err.maybe_done && b.err.http_status == 200 && !info.mem.ptr);
    peer_clear(&b.peer);
  }
  for (cut = 0; cut < sizeof FILES_WRITTEN - 1; cut++) { /* a proxy's idea of a complete answer */
    files_say_body(&b.peer, "200 OK", FILES_WRITTEN, cut, 0);
    CHECK_INT(e2b_files_write(b.sandbox, "/f", "x", 1, NULL, &info, &b.err), E2B_ERR_PROTOCOL);
    peer_clear(&b.peer);
  }
  peer_say(&b.peer, "HTTP/1.1 200 OK\r\n\r\n" FILES_WRITTEN, PEER_CLOSE); /* the JSON proves itself */
  CHECK_INT(e2b_files_write(b.sandbox, "/f", "x", 1, NULL, NULL, &b.err), E2B_OK);
  peer_say(
      &b.peer,
      "HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n14\r\n[{\"path\":\"/x\",\"new\":\r\n4\r\n[]}]\r\n0\r\n\r\n",
      PEER_DRIBBLE);
  CHECK_INT(e2b_files_write(b.sandbox, "/f", "x", 1, NULL, &info, &b.err), E2B_OK);
  CHECK_STR(info.path, "/x");
  CHECK_STR(info.name, "");
  e2b_mem_free(&info.mem);
  files_say_text(&b.peer, "507 Insufficient Storage", "{\"code\":507,\"message\":\"not enough disk space available\"}",
                 0);
  CHECK_INT(e2b_files_write(b.sandbox, "/f", "x", 1, NULL, NULL, &b.err), E2B_ERR_NOT_ENOUGH_SPACE);
  CHECK_HAS(b.err.message, "disk space");
  files_say_text(&b.peer, "400 Bad Request", "{\"code\":400,\"message\":\"path is a directory: /f\"}", 0);
  CHECK_INT(e2b_files_write(b.sandbox, "/f", "x", 1, NULL, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(b.peer.reply_next, b.peer.reply_count);
  files_say_text(&b.peer, "404 Not Found", "nothing here", 0);
  CHECK_INT(e2b_files_write(b.sandbox, "/f", "x", 1, NULL, NULL, &b.err), E2B_ERR_SERVICE);
  files_end(&b);
}

/* A big body that the server refuses from its head alone: its answer counts, not the broken pipe. */
static void test_files_write_early(void) {
  const size_t size = 8u << 20;
  files_bench b;
  uint8_t *data = (uint8_t *)malloc(size);
  int i;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  files_pattern(data, 0, size);
  for (i = 0; i < 3; i++) {
    files_say_text(&b.peer, "507 Insufficient Storage", "{\"message\":\"full\"}", PEER_EARLY | PEER_HANG);
    CHECK_INT(e2b_files_write(b.sandbox, "/f", data, size, NULL, NULL, &b.err), E2B_ERR_NOT_ENOUGH_SPACE);
    files_say_text(&b.peer, "200 OK", FILES_WRITTEN, PEER_EARLY | PEER_HANG);
    CHECK_INT(e2b_files_write(b.sandbox, "/f", data, size, NULL, NULL, &b.err), E2B_ERR_PROTOCOL);
    CHECK(b.err.maybe_done);
    CHECK_HAS(b.err.message, "before it had the whole file");
  }
  peer_say(&b.peer, "", PEER_EARLY | PEER_RESET);
  CHECK(e2b_files_write(b.sandbox, "/f", data, size, NULL, NULL, &b.err) < 0);
  CHECK(b.err.code == E2B_ERR_CLOSED || b.err.code == E2B_ERR_IO);
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_write(b.sandbox, "/f", data, size, NULL, NULL, &b.err), E2B_OK);
  i = b.peer.request_count - 1;
  CHECK(b.peer.request_lens[i] > size && memcmp(b.peer.requests[i] + b.peer.request_lens[i] - size, data, size) == 0);
  free(data);
  files_end(&b);
}

static int files_const_source(void *user, void *buf, size_t cap) {
  const char **text = (const char **)user;
  size_t n = strlen(*text);
  if (n > cap) n = cap;
  memcpy(buf, *text, n);
  *text += n;
  return (int)n;
}

#define FILES_UNSUPPORTED                                                                                              \
  "{\"code\":400,\"message\":\"unsupported content type: application/octet-stream, expected multipart/form-data\"}"

static void test_files_form_fallback(void) {
  files_bench b;
  e2b_file_stream *stream = NULL;
  const char *text = "abc";
  char content[64];
  size_t took;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  files_say_text(&b.peer, "400 Bad Request", FILES_UNSUPPORTED, 0);
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_write(b.sandbox, "/d/f", "hello", 5, NULL, NULL, &b.err), E2B_OK);
  CHECK_HAS(peer_asked(&b.peer, 0), "content-type: application/octet-stream\r\n");
  CHECK_INT(files_form_content(&b.peer, 1, "f", content, sizeof content), 5);
  CHECK(memcmp(content, "hello", 5) == 0);
  files_say_written(&b.peer); /* remembered */
  CHECK_INT(e2b_files_upload(b.sandbox, "/d/f", files_const_source, &text, 3, NULL, NULL, &b.err), E2B_OK);
  CHECK_INT(files_form_content(&b.peer, 2, "f", content, sizeof content), 3);
  CHECK_INT(b.peer.request_count, 3);
  files_say_text(&b.peer, "400 Bad Request", FILES_UNSUPPORTED, 0); /* said of a form too: no circle */
  CHECK_INT(e2b_files_write(b.sandbox, "/d/f", "hello", 5, NULL, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(b.peer.request_count, 4);
  files_close(&b);

  peer_clear(&b.peer); /* an older envd's words; a source cannot be asked twice */
  files_open(&b, NULL, NULL);
  text = "abc";
  files_say_text(&b.peer, "500 Internal",
                 "{\"message\":\"error parsing multipart form: request Content-Type isn't multipart/form-data\"}", 0);
  CHECK_INT(e2b_files_upload(b.sandbox, "/d/f", files_const_source, &text, -1, NULL, NULL, &b.err), E2B_ERR_SERVICE);
  CHECK_HAS(b.err.message, "call again");
  text = "abc";
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_upload(b.sandbox, "/d/f", files_const_source, &text, -1, NULL, NULL, &b.err), E2B_OK);
  CHECK_HAS(peer_asked(&b.peer, 1), "transfer-encoding: chunked\r\n");
  CHECK_HAS(peer_asked(&b.peer, 1), "\r\n000003\r\nabc\r\n");
  CHECK_HAS(peer_asked(&b.peer, 1),
            "filename=\"f\"\r\nContent-Type: application/octet-stream\r\n\r\n\r\n000003\r\nabc\r\n");
  files_close(&b);

  peer_clear(&b.peer);
  files_open(&b, NULL, NULL);
  files_say_text(&b.peer, "400 Bad Request", FILES_UNSUPPORTED, 0);
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/d/f", 3, NULL, &stream, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_write(stream, -1, "abc", 3, &took, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_finish(stream, -1, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "call again");
  e2b_file_stream_free(stream);
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/d/f", 3, NULL, &stream, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_write(stream, -1, "abc", 3, NULL, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_finish(stream, -1, NULL, &b.err), E2B_OK);
  CHECK_INT(files_form_content(&b.peer, 1, "f", content, sizeof content), 3);
  e2b_file_stream_free(stream);
  files_end(&b);
}

/* The server closes idle connections without a word: a write that dies of it is sent again, once. */
static void test_files_write_stale(void) {
  files_bench b;
  int i;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  for (i = 0; i < 5; i++) {
    peer_clear(&b.peer);
    files_say_written(&b.peer);
    peer_say(&b.peer, "", PEER_RESET); /* the next request on that connection dies */
    files_say_written(&b.peer);
    CHECK_INT(e2b_files_write(b.sandbox, "/f", "one", 3, NULL, NULL, &b.err), E2B_OK);
    CHECK_INT(e2b_files_write(b.sandbox, "/f", "two", 3, NULL, NULL, &b.err), E2B_OK);
    CHECK_INT(b.peer.request_count, 3);
    CHECK_STR(peer_asked(&b.peer, 2) + b.peer.request_lens[2] - 3, "two");
  }
  files_end(&b);
}

typedef struct files_source {
  files_bench *bench;
  e2b_op op;
  uint64_t at, size;
  size_t most; /* per call; 0 = all there is room for */
  int calls;
  int pause_every; /* 0 = never */
  int answer;      /* when set, returned instead of data in the second call */
  bool cancel;
  e2b_err done;
} files_source;

static int files_give(void *user, void *buf, size_t cap) {
  files_source *source = (files_source *)user;
  size_t n = (size_t)E2B__MIN(source->size - source->at, (uint64_t)cap);
  source->calls++;
  if (source->cancel) e2b_op_cancel(source->bench->client, source->op);
  if (source->answer && source->calls == 2) return source->answer;
  if (source->pause_every && source->calls % source->pause_every == 0) return E2B_PAUSE;
  if (source->most && n > source->most) n = source->most;
  files_pattern((uint8_t *)buf, source->at, n);
  source->at += n;
  return (int)n;
}

static void files_source_done(void *user, const e2b_error *err) {
  ((files_source *)user)->done = err->code;
}

static void files_source_init(files_source *source, files_bench *bench, uint64_t size, e2b_files_opts *opts) {
  memset(source, 0, sizeof *source);
  memset(opts, 0, sizeof *opts);
  source->bench = bench;
  source->size = size;
  source->done = E2B_PENDING;
  opts->call.op = &source->op;
  opts->call.on_done = files_source_done;
  opts->call.user = source;
}

static void test_files_upload(void) {
  files_bench b;
  files_source source;
  e2b_files_opts opts;
  e2b_write_info info;
  uint8_t data[100];
  int i;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  memset(&info, 0, sizeof info);
  files_pattern(data, 0, sizeof data);
  files_source_init(&source, &b, 100, &opts);
  source.most = 7;
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_upload(b.sandbox, "/f", files_give, &source, 100, NULL, &info, &b.err), E2B_OK);
  CHECK_STR(info.path, "/home/user/f");
  e2b_mem_free(&info.mem);
  CHECK_HAS(peer_asked(&b.peer, 0), "content-length: 100\r\n\r\n");
  CHECK(memcmp(b.peer.requests[0] + b.peer.request_lens[0] - 100, data, 100) == 0);

  files_source_init(&source, &b, 5, &opts);
  source.most = 3;
  memcpy(data, "\r\n000003\r\n...\r\n000002\r\n..\r\n0\r\n\r\n", 32);
  files_pattern(data + 10, 0, 3);
  files_pattern(data + 23, 3, 2);
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_upload(b.sandbox, "/f", files_give, &source, -1, NULL, NULL, &b.err), E2B_OK);
  CHECK_HAS(peer_asked(&b.peer, 1), "transfer-encoding: chunked\r\n\r\n");
  CHECK(memcmp(b.peer.requests[1] + b.peer.request_lens[1] - 32, data, 32) == 0);

  files_source_init(&source, &b, 0, &opts);
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_upload(b.sandbox, "/f", files_give, &source, -1, NULL, NULL, &b.err), E2B_OK);
  CHECK_STR(peer_asked(&b.peer, 2) + b.peer.request_lens[2] - 9, "\r\n\r\n0\r\n\r\n");
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_upload(b.sandbox, "/f", files_give, &source, 0, NULL, NULL, &b.err), E2B_OK);

  files_source_init(&source, &b, 9, &opts); /* ends early */
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_upload(b.sandbox, "/f", files_give, &source, 10, NULL, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "ended before");
  CHECK(b.err.maybe_done);
  peer_wait_asked(&b.peer, 5);
  peer_clear(&b.peer);
  files_source_init(&source, &b, 11, &opts); /* ends late */
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_upload(b.sandbox, "/f", files_give, &source, 10, NULL, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "more bytes");
  CHECK(b.err.maybe_done);
  for (i = 0; i < 3; i++) { /* more than asked for, canceled, paused where nobody can resume */
    static const int answers[] = { 1 << 20, -5, E2B_PAUSE };
    static const e2b_err codes[] = { E2B_ERR_INVALID_ARGUMENT, E2B_ERR_CANCELED, E2B_ERR_BAD_STATE };
    peer_clear(&b.peer);
    files_source_init(&source, &b, 10, &opts);
    source.most = 3;
    source.answer = answers[i];
    files_say_written(&b.peer);
    CHECK_INT(e2b_files_upload(b.sandbox, "/f", files_give, &source, i == 1 ? -1 : 10, NULL, NULL, &b.err), codes[i]);
    peer_wait_asked(&b.peer, 1);
  }
  CHECK_HAS(b.err.message, "E2B_PAUSE");

  peer_clear(&b.peer);
  files_source_init(&source, &b, 50, &opts); /* paused and resumed */
  source.most = 10;
  source.pause_every = 2;
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_upload(b.sandbox, "/f", files_give, &source, 50, &opts, &info, &b.err), E2B_PENDING);
  for (i = 0; i < 200 && source.done == E2B_PENDING; i++) {
    (void)e2b_client_poll(b.client, 5);
    if (i % 4 == 3) e2b_op_resume(b.client, source.op);
  }
  CHECK_INT(source.done, E2B_OK);
  files_pattern(data, 0, 50);
  CHECK(memcmp(b.peer.requests[0] + b.peer.request_lens[0] - 50, data, 50) == 0);
  e2b_mem_free(&info.mem);

  peer_clear(&b.peer);
  files_source_init(&source, &b, 50, &opts); /* canceled from inside */
  source.cancel = true;
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_upload(b.sandbox, "/f", files_give, &source, 50, &opts, &info, &b.err), E2B_PENDING);
  FILES_UNTIL(b.client, source.calls == 1);
  files_drive(b.client, 30);
  CHECK_INT(source.calls, 1);
  CHECK_INT(source.done, E2B_PENDING);
  files_end(&b);
}

/* ------------------------------------------------------------------------------------------------------------------ */
/* streams */
/* ------------------------------------------------------------------------------------------------------------------ */

static void test_files_read_stream(void) {
  static const size_t steps[] = { 1, 7, 997, 16384, 65537, 1u << 20 };
  const size_t size = 300001;
  files_bench b;
  e2b_file_stream *stream = NULL;
  uint8_t *body = (uint8_t *)malloc(size), *buf = (uint8_t *)malloc(1u << 20);
  size_t i, got;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  files_pattern(body, 0, size);
  for (i = 0; i < sizeof steps / sizeof steps[0]; i++) {
    size_t at = 0;
    e2b_err code;
    peer_clear(&b.peer);
    files_say_body(&b.peer, "200 OK", body, size, 0);
    CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", NULL, &stream, &b.err), E2B_OK);
    CHECK_INT(e2b_file_stream_size(stream), (int64_t)size);
    while ((code = e2b_file_stream_read(stream, -1, buf, steps[i], &got, &b.err)) == E2B_OK) {
      if (at + got > size || got == 0 || got > steps[i] || memcmp(buf, body + at, got) != 0) break;
      at += got;
    }
    CHECK_INT(code, E2B_EOF);
    CHECK_INT(at, size);
    CHECK_INT(e2b_file_stream_read(stream, 0, buf, 1, &got, NULL), E2B_EOF);
    CHECK_INT(got, 0);
    CHECK_INT(e2b_file_stream_write(stream, 0, "x", 1, &got, NULL), E2B_ERR_BAD_STATE);
    CHECK_INT(e2b_file_stream_finish(stream, 0, NULL, NULL), E2B_ERR_BAD_STATE);
    e2b_file_stream_free(stream);
  }
  CHECK_INT(b.peer.accepted, 1); /* one connection did for all */

  peer_clear(&b.peer); /* an empty file; one of unknown length */
  files_say_text(&b.peer, "200 OK", "", 0);
  CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", NULL, &stream, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_size(stream), 0);
  CHECK_INT(e2b_file_stream_read(stream, -1, buf, 10, &got, &b.err), E2B_EOF);
  e2b_file_stream_free(stream);
  peer_say(&b.peer, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", PEER_DRIBBLE);
  CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", NULL, &stream, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_size(stream), -1);
  for (i = 0; i < 3; i++) {
    CHECK_INT(e2b_file_stream_read(stream, 5000, buf, 1, &got, &b.err), E2B_OK);
    CHECK_INT(buf[0], "abc"[i]);
  }
  CHECK_INT(e2b_file_stream_read(stream, 5000, buf, 10, &got, &b.err), E2B_EOF);
  e2b_file_stream_free(stream);

  files_say_text(&b.peer, "404 Not Found", "{\"message\":\"nope\"}", 0); /* what does not open */
  CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", NULL, &stream, &b.err), E2B_ERR_NOT_FOUND);
  CHECK(stream == NULL && b.err.subject == E2B_SUBJECT_FILE);
  files_say_body(&b.peer, "500 Oops", body, size, 0); /* more than the buffer holds */
  CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", NULL, &stream, &b.err), E2B_ERR_SERVICE);
  files_say_text(&b.peer, "200 OK\r\ncontent-encoding: br", "xx", 0);
  CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", NULL, &stream, &b.err), E2B_ERR_PROTOCOL);
  CHECK_HAS(b.err.message, "compressed");
  peer_say(&b.peer, "HTTP/1.1 200 OK\r\ncontent-le", PEER_CLOSE);
  CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", NULL, &stream, &b.err), E2B_ERR_TRUNCATED);
  CHECK(stream == NULL);
  b.peer.health = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 22\r\n\r\nsandbox not found: sbx";
  files_say_text(&b.peer, "502 Bad Gateway", "x", 0);
  CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", NULL, &stream, &b.err), E2B_ERR_SANDBOX_GONE);
  CHECK(stream == NULL);
  free(body);
  free(buf);
  files_end(&b);
}

static void test_files_read_stream_cut(void) {
  files_bench b;
  e2b_file_stream *stream = NULL;
  char buf[16];
  size_t got, cut;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  for (cut = 0; cut < 10; cut++) { /* what arrived comes first, then the bad news, as often as one asks */
    char answer[80];
    size_t at = 0;
    int n =
        snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n%.*s", (int)cut, "0123456789");
    e2b_err code;
    peer_say_n(&b.peer, answer, (size_t)n, PEER_CLOSE);
    CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", NULL, &stream, &b.err), E2B_OK);
    while ((code = e2b_file_stream_read(stream, -1, buf, 3, &got, &b.err)) == E2B_OK) {
      CHECK(memcmp(buf, &"0123456789"[at], got) == 0);
      at += got;
    }
    CHECK_INT(at, cut);
    CHECK_INT(code, E2B_ERR_TRUNCATED);
    (void)snprintf(answer, sizeof answer, "after %d of 10 bytes", (int)cut);
    CHECK_HAS(b.err.message, answer);
    CHECK_INT(e2b_file_stream_read(stream, 0, buf, 3, &got, &b.err), E2B_ERR_TRUNCATED);
    e2b_file_stream_free(stream);
    peer_clear(&b.peer);
  }
  files_end(&b);
}

static void files_nothing_done(void *user, const e2b_error *err) {
  (void)err;
  ++*(int *)user;
}

typedef struct files_inside {
  files_bench *bench;
  e2b_file_stream *stream;
  int what;
  int calls;
} files_inside;

/* Runs inside a turn. */
static void files_inside_done(void *user, const e2b_error *err) {
  files_inside *inside = (files_inside *)user;
  e2b_file_stream *other = NULL;
  char buf[4];
  size_t got;
  (void)err;
  inside->calls++;
  if (inside->what == 0) { /* what may and may not be done in a callback */
    CHECK_INT(e2b_file_stream_read(inside->stream, -1, buf, 4, &got, NULL), E2B_ERR_BAD_STATE);
    CHECK_INT(e2b_file_stream_read(inside->stream, 5, buf, 4, &got, NULL), E2B_ERR_BAD_STATE);
    CHECK_INT(e2b_file_stream_read(inside->stream, 0, buf, 4, &got, NULL), E2B_OK);
    CHECK_INT(got, 4);
    CHECK_INT(e2b_files_read_stream(inside->bench->sandbox, "/x", NULL, &other, NULL), E2B_ERR_BAD_STATE);
    CHECK_INT(e2b_files_write_stream(inside->bench->sandbox, "/x", 1, NULL, &other, NULL), E2B_ERR_BAD_STATE);
  }
  if (inside->what == 1) e2b_file_stream_free(inside->stream);
  if (inside->what == 2) e2b_sandbox_free(inside->bench->sandbox);
}

static void test_files_read_stream_control(void) {
  files_bench b;
  e2b_file_stream *stream = NULL;
  e2b_files_opts opts;
  files_inside inside;
  e2b_op op;
  char buf[16];
  size_t got;
  uint64_t start;
  int done = 0, i;
  bool exists;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  memset(&opts, 0, sizeof opts);

  peer_say(&b.peer, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123", PEER_HANG); /* PENDING by time */
  CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", NULL, &stream, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_read(stream, 1000, buf, 16, &got, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_read(stream, 0, buf, 16, &got, &b.err), E2B_PENDING);
  CHECK_INT(b.err.code, E2B_PENDING);
  start = now_ms();
  CHECK_INT(e2b_file_stream_read(stream, 60, buf, 16, &got, &b.err), E2B_PENDING);
  CHECK(now_ms() - start >= 55);
  e2b_client_interrupt(b.client);
  CHECK_INT(e2b_file_stream_read(stream, -1, buf, 16, &got, &b.err), E2B_ERR_CANCELED);
  CHECK_INT(e2b_file_stream_read(stream, 0, buf, 16, &got, &b.err), E2B_PENDING);
  e2b_file_stream_free(stream);
  CHECK_INT(b.client->conn_count, 0);

  peer_clear(&b.peer);
  peer_say(&b.peer, "", PEER_HANG); /* timeouts and cancelling before the head */
  opts.call.timeout_ms = 50;
  CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", &opts, &stream, &b.err), E2B_ERR_TIMEOUT);
  CHECK(stream == NULL && b.sandbox->streams == NULL);
  peer_wait_asked(&b.peer, 1);
  peer_say(&b.peer, "", PEER_HANG);
  memset(&opts, 0, sizeof opts);
  opts.call.idle_ms = 50;
  CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", &opts, &stream, &b.err), E2B_ERR_IDLE_TIMEOUT);
  CHECK(stream == NULL && b.sandbox->streams == NULL);
  peer_wait_asked(&b.peer, 2);
  peer_say(&b.peer, "", PEER_HANG);
  memset(&opts, 0, sizeof opts);
  opts.call.op = &op;
  CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", &opts, &stream, &b.err), E2B_PENDING);
  FILES_UNTIL(b.client, b.peer.request_count == 3);
  e2b_op_cancel(b.client, op);
  CHECK(stream == NULL && b.sandbox->streams == NULL && b.client->op_count == 0);

  files_say_text(&b.peer, "200 OK", "0123456789", 0); /* opened with a handle, read from inside a callback */
  CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", &opts, &stream, &b.err), E2B_PENDING);
  while (e2b_op_poll(b.client, op, &b.err) == E2B_PENDING) (void)e2b_client_poll(b.client, 100);
  CHECK_INT(b.err.code, E2B_OK);
  CHECK(stream != NULL);
  files_drive(b.client, 30);
  memset(&inside, 0, sizeof inside);
  inside.bench = &b;
  inside.stream = stream;
  memset(&opts, 0, sizeof opts);
  opts.call.on_done = files_inside_done;
  opts.call.user = &inside;
  peer_say(&b.peer, "HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 0\r\n\r\n", PEER_REPEAT);
  CHECK_INT(e2b_files_exists(b.sandbox, "/x", &opts, &exists, &b.err), E2B_PENDING);
  CHECK_INT(e2b_client_drain(b.client, 5000), E2B_OK);
  CHECK_INT(inside.calls, 1);
  CHECK_INT(e2b_file_stream_read(stream, 0, buf, 16, &got, &b.err), E2B_OK);
  CHECK(got == 6 && memcmp(buf, "456789", 6) == 0);
  CHECK_INT(e2b_file_stream_read(stream, 0, buf, 16, &got, &b.err), E2B_EOF);
  e2b_file_stream_free(stream);

  for (i = 1; i <= 2; i++) { /* freed by a callback while a read waits; with the sandbox */
    peer_clear(&b.peer);
    peer_say(&b.peer, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", PEER_HANG);
    peer_say(&b.peer, "HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 0\r\n\r\n", PEER_REPEAT);
    CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", NULL, &inside.stream, &b.err), E2B_OK);
    inside.what = i;
    CHECK_INT(e2b_files_exists(b.sandbox, "/x", &opts, &exists, &b.err), E2B_PENDING);
    CHECK_INT(e2b_file_stream_read(inside.stream, -1, buf, 16, &got, &b.err), E2B_ERR_CANCELED);
    CHECK_HAS(b.err.message, "freed");
  }
  CHECK_INT(done, 0);
  files_end(&b);
}

/* Deadlines bound the exchange, not how long the caller takes to look at what came. */
static void test_files_read_stream_deadline(void) {
  files_bench b;
  e2b_file_stream *stream = NULL;
  e2b_files_opts opts;
  char buf[16];
  size_t got;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  memset(&opts, 0, sizeof opts);
  opts.call.timeout_ms = 400;
  files_say_text(&b.peer, "200 OK", "0123456789", 0);
  CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", &opts, &stream, &b.err), E2B_OK);
  files_drive(b.client, 500);
  CHECK_INT(e2b_file_stream_read(stream, -1, buf, 16, &got, &b.err), E2B_OK);
  CHECK_INT(got, 10);
  CHECK_INT(e2b_file_stream_read(stream, -1, buf, 16, &got, &b.err), E2B_EOF);
  e2b_file_stream_free(stream);
  peer_say(&b.peer, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123", PEER_HANG);
  CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", &opts, &stream, &b.err), E2B_OK);
  files_drive(b.client, 500);
  CHECK_INT(e2b_file_stream_read(stream, -1, buf, 16, &got, &b.err), E2B_OK); /* what came before it is not lost */
  CHECK_INT(got, 4);
  CHECK_INT(e2b_file_stream_read(stream, -1, buf, 16, &got, &b.err), E2B_ERR_TIMEOUT);
  e2b_file_stream_free(stream);
  files_end(&b);
}

/* Not reading holds the sender back, in bounded memory and without an idle timeout. */
static void test_files_read_stream_held(void) {
  const size_t size = 8u << 20;
  files_bench b;
  e2b_file_stream *stream = NULL;
  e2b_client_stats stats;
  uint8_t *body = (uint8_t *)malloc(size), *buf = (uint8_t *)malloc(size);
  size_t at = 0, got;
  files_begin(&b);
  b.config.idle_ms = 400;
  files_open(&b, NULL, NULL);
  files_pattern(body, 0, size);
  files_say_body(&b.peer, "200 OK", body, size, 0);
  CHECK_INT(e2b_files_read_stream(b.sandbox, "/x", NULL, &stream, &b.err), E2B_OK);
  files_drive(b.client, 600);
  while (e2b_file_stream_read(stream, 5000, buf + at, E2B__MIN((size_t)50000, size - at + 1), &got, &b.err) == E2B_OK)
    at += got;
  CHECK_INT(b.err.code, E2B_EOF);
  CHECK(at == size && memcmp(buf, body, size) == 0);
  e2b_client_get_stats(b.client, &stats);
  CHECK(stats.mem_peak < 300000);
  e2b_file_stream_free(stream);
  free(body);
  free(buf);
  files_end(&b);
}

static void test_files_write_stream(void) {
  static const size_t steps[] = { 1, 13, 4096, 65536, 100000 };
  const size_t size = 200001;
  files_bench b;
  e2b_file_stream *stream = NULL;
  e2b_write_info info;
  uint8_t *data = (uint8_t *)malloc(size);
  size_t i, took;
  int known;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  memset(&info, 0, sizeof info);
  files_pattern(data, 0, size);
  for (known = 0; known < 2; known++) {
    for (i = 0; i < sizeof steps / sizeof steps[0]; i++) {
      size_t at = 0;
      peer_clear(&b.peer);
      files_say_written(&b.peer);
      CHECK_INT(e2b_files_write_stream(b.sandbox, "/f", known ? (int64_t)size : -1, NULL, &stream, &b.err), E2B_OK);
      CHECK_INT(e2b_file_stream_size(stream), known ? (int64_t)size : -1);
      while (at < size) {
        size_t n = E2B__MIN(steps[i], size - at);
        if (e2b_file_stream_write(stream, -1, data + at, n, &took, &b.err) != E2B_OK || took == 0 || took > n) break;
        at += took;
      }
      CHECK_INT(at, size);
      CHECK_INT(e2b_file_stream_finish(stream, -1, &info, &b.err), E2B_OK);
      CHECK_STR(info.path, "/home/user/f");
      e2b_mem_free(&info.mem);
      CHECK_INT(e2b_file_stream_finish(stream, 0, &info, &b.err), E2B_OK); /* the same again */
      CHECK_STR(info.path, "/home/user/f");
      e2b_mem_free(&info.mem);
      CHECK_INT(e2b_file_stream_write(stream, 0, "x", known ? 0 : 1, &took, &b.err), E2B_ERR_BAD_STATE);
      CHECK_INT(e2b_file_stream_read(stream, 0, &took, 1, &took, &b.err), E2B_ERR_BAD_STATE);
      if (known) {
        CHECK_HAS(peer_asked(&b.peer, 0), "content-length: 200001\r\n\r\n");
        CHECK(memcmp(b.peer.requests[0] + b.peer.request_lens[0] - size, data, size) == 0);
      } else { /* put the chunks together */
        const char *in = strstr(peer_asked(&b.peer, 0), "transfer-encoding: chunked\r\n\r\n");
        size_t sum = 0, n;
        for (in = in ? in + 30 : "0"; (n = (size_t)strtoul(in, NULL, 16)) != 0; in += 10 + n) {
          if (sum + n > size || memcmp(in + 8, data + sum, n) != 0) break;
          sum += n;
        }
        CHECK_INT(sum, size);
      }
      e2b_file_stream_free(stream);
    }
  }
  CHECK_INT(b.peer.accepted, 1);
  free(data);
  files_end(&b);
}

static void test_files_write_stream_control(void) {
  files_bench b;
  e2b_file_stream *stream = NULL;
  e2b_files_opts opts;
  e2b_op op;
  uint8_t *data = (uint8_t *)malloc(1u << 20);
  size_t took, sum;
  int i, done = 0;
  e2b_err code;
  files_begin(&b);
  b.config.stream_buffer_size = 4096;
  files_open(&b, NULL, NULL);
  memset(&opts, 0, sizeof opts);
  files_pattern(data, 0, 1u << 20);

  files_say_written(&b.peer); /* size promised and kept */
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/f", 10, NULL, &stream, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_write(stream, -1, data, 0, &took, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_write(stream, -1, data, 11, &took, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_file_stream_write(stream, -1, data, 4, NULL, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_finish(stream, -1, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "only 4 of the 10 bytes");
  CHECK_INT(e2b_file_stream_write(stream, -1, data + 4, 6, NULL, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_finish(stream, 0, NULL, &b.err), E2B_PENDING);
  while ((code = e2b_file_stream_finish(stream, 0, NULL, &b.err)) == E2B_PENDING) (void)e2b_client_poll(b.client, 20);
  CHECK_INT(code, E2B_OK);
  e2b_file_stream_free(stream);

  peer_clear(&b.peer); /* nothing waits: took, PENDING, poll */
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/f", -1, NULL, &stream, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_write(stream, 0, data, 5000, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_file_stream_write(stream, 0, data, 3000, NULL, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_write(stream, 0, data + 3000, 3000, NULL, &b.err), E2B_PENDING);
  for (sum = 3000; sum < 100000;) {
    code = e2b_file_stream_write(stream, 0, data + sum, 100000 - sum, &took, &b.err);
    if (code == E2B_OK)
      sum += took;
    else if (code == E2B_PENDING)
      (void)e2b_client_poll(b.client, 20);
    else
      break;
  }
  CHECK_INT(sum, 100000);
  CHECK_INT(e2b_file_stream_finish(stream, -1, NULL, &b.err), E2B_OK);
  e2b_file_stream_free(stream);

  peer_clear(&b.peer); /* an early refusal surfaces in a write */
  files_say_text(&b.peer, "507 Insufficient Storage", "{\"message\":\"full\"}", PEER_EARLY | PEER_HANG);
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/f", -1, NULL, &stream, &b.err), E2B_OK);
  for (i = 0; i < 1000 && (code = e2b_file_stream_write(stream, -1, data, 1u << 20, NULL, &b.err)) == E2B_OK; i++)
    continue;
  CHECK_INT(code, E2B_ERR_NOT_ENOUGH_SPACE);
  CHECK_INT(e2b_file_stream_write(stream, 0, data, 1, &took, &b.err), E2B_ERR_NOT_ENOUGH_SPACE);
  CHECK_INT(e2b_file_stream_finish(stream, 0, NULL, &b.err), E2B_ERR_NOT_ENOUGH_SPACE);
  e2b_file_stream_free(stream);
  CHECK_INT(b.client->conn_count, 0);
  files_say_text(&b.peer, "200 OK", FILES_WRITTEN, PEER_EARLY | PEER_HANG); /* and an early success is none */
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/f", 1u << 20, NULL, &stream, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_write(stream, 1000, data, 5, NULL, &b.err), E2B_OK);
  FILES_UNTIL(b.client, stream->ended);
  CHECK_INT(e2b_file_stream_finish(stream, -1, NULL, &b.err), E2B_ERR_PROTOCOL);
  CHECK(b.err.maybe_done);
  e2b_file_stream_free(stream);
  peer_say(&b.peer, "", PEER_EARLY | PEER_RESET); /* a loss is looked into */
  b.peer.health = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 22\r\n\r\nsandbox not found: sbx";
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/f", -1, NULL, &stream, &b.err), E2B_OK);
  for (i = 0; i < 1000 && (code = e2b_file_stream_write(stream, -1, data, 1u << 20, NULL, &b.err)) == E2B_OK; i++)
    continue;
  CHECK_INT(code, E2B_ERR_SANDBOX_GONE);
  e2b_file_stream_free(stream);
  b.peer.health = ""; /* freed while that goes on */
  peer_say(&b.peer, "", PEER_EARLY | PEER_RESET);
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/f", 0, NULL, &stream, &b.err), E2B_OK);
  FILES_UNTIL(b.client, stream->mourner.sandbox != NULL);
  CHECK_INT(e2b_file_stream_finish(stream, 20, NULL, &b.err), E2B_PENDING);
  CHECK(b.sandbox->probe != NULL);
  e2b_file_stream_free(stream);
  CHECK(b.sandbox->probe != NULL && b.sandbox->probe->mourners == NULL);
  e2b__probe_end(b.sandbox->probe, E2B__VERDICT_UNKNOWN);
  b.peer.health = "HTTP/1.1 204 No Content\r\n\r\n";

  peer_say(&b.peer, "", PEER_EARLY | PEER_HANG); /* a peer that takes nothing */
  opts.call.idle_ms = 100;
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/f", -1, &opts, &stream, &b.err), E2B_OK);
  for (i = 0; i < 1000 && (code = e2b_file_stream_write(stream, -1, data, 1u << 20, &took, &b.err)) == E2B_OK; i++)
    continue;
  for (; i < 100000 && code == E2B_OK; i++) code = e2b_file_stream_write(stream, -1, data, 1u << 20, &took, &b.err);
  CHECK_INT(code, E2B_ERR_IDLE_TIMEOUT);
  e2b_file_stream_free(stream);
  peer_say(&b.peer, "", PEER_EARLY | PEER_HANG); /* a part taken that the caller cannot know */
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/f", -1, NULL, &stream, &b.err), E2B_OK);
  for (i = 0; i < 1000 && (code = e2b_file_stream_write(stream, 50, data, 1u << 20, NULL, &b.err)) == E2B_OK; i++)
    continue;
  CHECK_INT(code, E2B_ERR_TIMEOUT);
  CHECK_INT(e2b_file_stream_write(stream, 50, data, 1, &took, &b.err), E2B_ERR_TIMEOUT);
  e2b_file_stream_free(stream);
  CHECK_INT(b.client->conn_count, 0);

  memset(&opts, 0, sizeof opts); /* opened without blocking; freed before its report, and canceled */
  opts.call.on_done = files_nothing_done;
  opts.call.user = &done;
  opts.call.op = &op;
  peer_say(&b.peer, "", PEER_EARLY | PEER_HANG | PEER_REPEAT);
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/f", -1, &opts, &stream, &b.err), E2B_PENDING);
  CHECK_INT(done, 0);
  (void)e2b_client_poll(b.client, 0);
  CHECK_INT(done, 1);
  CHECK(stream != NULL);
  e2b_file_stream_free(stream);
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/f", -1, &opts, &stream, &b.err), E2B_PENDING);
  e2b_file_stream_free(stream);
  (void)e2b_client_poll(b.client, 0);
  CHECK_INT(done, 2);
  CHECK(stream == NULL);
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/f", -1, &opts, &stream, &b.err), E2B_PENDING);
  e2b_op_cancel(b.client, op);
  CHECK(stream == NULL && b.sandbox->streams == NULL);
  (void)e2b_client_poll(b.client, 0);
  CHECK_INT(done, 2);
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/f", -1, NULL, &stream, &b.err), E2B_OK); /* left to the sandbox */
  free(data);
  files_end(&b);
}

/* ------------------------------------------------------------------------------------------------------------------ */
/* no memory */
/* ------------------------------------------------------------------------------------------------------------------ */

static e2b_err files_try_list(files_bench *b) {
  e2b_entry_list list;
  e2b_err code;
  memset(&list, 0, sizeof list);
  code = e2b_files_list(b->sandbox, "/d", NULL, &list, &b->err);
  e2b_mem_free(&list.mem);
  return code;
}

static e2b_err files_try_read(files_bench *b) {
  e2b_buf buf;
  e2b_err code;
  memset(&buf, 0, sizeof buf);
  code = e2b_files_read(b->sandbox, "/d", NULL, &buf, &b->err);
  CHECK(code || (buf.len == 20 && buf.data[20] == 0));
  e2b_mem_free(&buf.mem);
  return code;
}

static e2b_err files_try_write(files_bench *b) {
  e2b_write_info info;
  e2b_err code;
  memset(&info, 0, sizeof info);
  code = e2b_files_write(b->sandbox, "/d", "x", 1, NULL, &info, &b->err);
  e2b_mem_free(&info.mem);
  return code;
}

static e2b_err files_try_read_stream(files_bench *b) {
  e2b_file_stream *stream = NULL;
  char buf[64];
  size_t got, sum = 0;
  e2b_err code = e2b_files_read_stream(b->sandbox, "/d", NULL, &stream, &b->err);
  while (!code && (code = e2b_file_stream_read(stream, -1, buf, 3, &got, &b->err)) == E2B_OK) sum += got;
  CHECK(code != E2B_EOF || sum == 20);
  e2b_file_stream_free(stream);
  return code == E2B_EOF ? E2B_OK : code;
}

static e2b_err files_try_write_stream(files_bench *b) {
  e2b_file_stream *stream = NULL;
  e2b_write_info info;
  e2b_err code = e2b_files_write_stream(b->sandbox, "/d", -1, NULL, &stream, &b->err);
  memset(&info, 0, sizeof info);
  if (!code) code = e2b_file_stream_write(stream, -1, "abc", 3, NULL, &b->err);
  if (!code) code = e2b_file_stream_finish(stream, -1, &info, &b->err);
  e2b_mem_free(&info.mem);
  e2b_file_stream_free(stream);
  return code;
}

static void files_each_allocation(const char *version, e2b_err (*attempt)(files_bench *b), const char *answer,
                                  size_t len) {
  files_bench b;
  long n;
  bool reached = true;
  files_begin(&b);
  peer_say_n(&b.peer, answer, len, PEER_REPEAT);
  for (n = 1; reached && n < 1000; n++) {
    e2b_err code;
    files_open(&b, NULL, version);
    b.heap.fail_at = b.heap.calls + n;
    code = attempt(&b);
    reached = b.heap.calls >= b.heap.fail_at;
    if (code != E2B_OK && code != E2B_ERR_NO_MEMORY)
      printf("allocation %ld: %s: %s\n", n, e2b_err_name(code), b.err.message);
    CHECK(code == E2B_ERR_NO_MEMORY || code == E2B_OK);
    CHECK(reached || code == E2B_OK);
    b.heap.fail_at = 0;
    CHECK_INT(attempt(&b), E2B_OK); /* the client is as good as before */
    files_close(&b);
    memset(&b.heap, 0, sizeof b.heap);
    memset(&b.err, 0, sizeof b.err);
  }
  CHECK(n > 10 && n < 1000);
  peer_stop(&b.peer);
}

static void test_files_no_memory(void) {
  static const char content[] = "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n01234567890123456789";
  static const char chunked[] =
      "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nc\r\n012345678901\r\n8\r\n23456789\r\n0\r\n\r\n";
  static const char written[] = "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n" FILES_WRITTEN;
  static const char listed[] =
      "HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 9\r\n\r\n\x0a\x07\x0a\x01"
      "a\x1a\x02/a";
  CHECK_INT(strlen(FILES_WRITTEN), 50);
  files_each_allocation(NULL, files_try_list, listed, sizeof listed - 1);
  files_each_allocation(NULL, files_try_read, content, sizeof content - 1);
  files_each_allocation(NULL, files_try_read, chunked, sizeof chunked - 1);
  files_each_allocation(NULL, files_try_write, written, sizeof written - 1);
  files_each_allocation("0.2.10", files_try_write, written, sizeof written - 1);
  files_each_allocation(NULL, files_try_read_stream, content, sizeof content - 1);
  files_each_allocation(NULL, files_try_write_stream, written, sizeof written - 1);
}

/* ------------------------------------------------------------------------------------------------------------------ */
/* parts, metadata, atomic writes, joining, URLs */
/* ------------------------------------------------------------------------------------------------------------------ */

/* Reads a part in the three ways and compares what comes; `want` NULL: the failure `code` is expected. */
static void files_check_part(files_bench *b, uint64_t offset, uint64_t length, const char *answer, unsigned flags,
                             const char *want, e2b_err code, int line) {
  e2b_files_opts opts, none;
  files_sink sink;
  e2b_buf buf;
  e2b_file_stream *stream = NULL;
  char back[256];
  size_t got, at = 0;
  int way;
  for (way = 0; way < 3; way++) {
    e2b_err rc;
    memset(&opts, 0, sizeof opts);
    memset(&buf, 0, sizeof buf);
    opts.offset = offset;
    opts.length = length;
    files_sink_init(&sink, b, &none);
    peer_clear(&b->peer);
    peer_say(&b->peer, answer, flags);
    if (way == 0) {
      rc = e2b_files_read(b->sandbox, "/f", &opts, &buf, &b->err);
      if (want && !rc) check_str_at((const char *)buf.data, want, line, "read");
      e2b_mem_free(&buf.mem);
    } else if (way == 1) {
      rc = e2b_files_download(b->sandbox, "/f", files_on_data, &sink, &opts, &b->err);
      sink.data[sink.len] = 0;
      if (want) check_str_at((const char *)sink.data, want, line, "download");
    } else {
      rc = e2b_files_read_stream(b->sandbox, "/f", &opts, &stream, &b->err);
      while (!rc && (rc = e2b_file_stream_read(stream, -1, back + at, 3, &got, &b->err)) == E2B_OK) at += got;
      back[at] = 0;
      if (want) check_str_at(back, want, line, "stream");
      if (rc == E2B_EOF) rc = E2B_OK;
      e2b_file_stream_free(stream);
    }
    if (rc != code) printf("  way %d: %s: %s\n", way, e2b_err_name(rc), b->err.message);
    check_int_at(rc, code, line, "the result");
  }
}
#define CHECK_PART(offset, length, answer, flags, want) files_check_part(&b, offset, length, answer, flags, want, E2B_OK, __LINE__)
#define CHECK_NO_PART(offset, length, answer, code) files_check_part(&b, offset, length, answer, PEER_CLOSE, NULL, code, __LINE__)
#define PART_HEAD(range) "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes " range "\r\n"
#define PART(range, body_len, body) PART_HEAD(range) "content-length: " body_len "\r\n\r\n" body
#define PART_CHUNKED PART_HEAD("2-4/10") "transfer-encoding: chunked\r\n\r\n"
#define BEYOND(size) \
  "HTTP/1.1 416 Range Not Satisfiable\r\ncontent-range: bytes */" size "\r\ncontent-length: 3\r\n\r\nno\n"

static void test_files_parts(void) {
  files_bench b;
  e2b_files_opts opts;
  e2b_buf buf;
  e2b_client_stats stats;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  memset(&opts, 0, sizeof opts);
  memset(&buf, 0, sizeof buf);
  CHECK_PART(2, 3, PART("2-4/10", "3", "234"), 0, "234");
  CHECK_HAS(peer_asked(&b.peer, 0), "\r\nrange: bytes=2-4\r\n");
  CHECK_PART(7, 0, PART("7-9/10", "3", "789"), PEER_DRIBBLE, "789");
  CHECK_HAS(peer_asked(&b.peer, 0), "\r\nrange: bytes=7-\r\n");
  CHECK_PART(0, 0, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n01", 0, "01");
  CHECK(!strstr(peer_asked(&b.peer, 0), "range"));
  CHECK_PART(7, 9, PART("7-9/10", "3", "789"), 0, "789");   /* the file ends before the part does */
  CHECK_PART(2, 3, PART("2-4/*", "3", "234"), 0, "234");
  CHECK_PART(2, 3,
             PART_CHUNKED "3\r\n234\r\n0\r\n\r\n", 0, "234");
  CHECK_PART(2, 3, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789", PEER_DRIBBLE,
             "234"); /* a server without ranges */
  CHECK_PART(2, 3, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789", 0, "234");
  CHECK_PART(4, 0, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789", PEER_DRIBBLE, "456789");
  CHECK_PART(7, 5, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n", 0,
             "789");
  CHECK_PART(10, 1, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789", 0, ""); /* beyond the end */
  CHECK_PART(99, 0, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789", 0, "");
  CHECK_PART(10, 1,
             BEYOND("10"), 0, "");
  CHECK_PART(10, 1, "HTTP/1.1 416 Range Not Satisfiable\r\ncontent-length: 0\r\n\r\n", 0, "");
  CHECK_NO_PART(5, 1,
                BEYOND("10"), E2B_ERR_SERVICE);
  CHECK_NO_PART(0, 0,
                BEYOND("0"), E2B_ERR_SERVICE);
  CHECK_NO_PART(0, 0, PART("0-2/10", "3", "012"), E2B_ERR_PROTOCOL); /* what nobody asked for */
  CHECK_NO_PART(2, 3, PART("0-2/10", "3", "012"), E2B_ERR_PROTOCOL);
  CHECK_NO_PART(2, 3, PART("2-5/10", "4", "2345"), E2B_ERR_PROTOCOL);
  CHECK_NO_PART(2, 3, PART("2-3/10", "2", "23"), E2B_ERR_PROTOCOL);
  CHECK_NO_PART(2, 0, PART("2-8/10", "7", "2345678"), E2B_ERR_PROTOCOL);
  CHECK_NO_PART(2, 0, PART("2-8/*", "7", "2345678"), E2B_ERR_PROTOCOL);
  CHECK_NO_PART(2, 3, PART("2-4/10", "4", "2345"), E2B_ERR_PROTOCOL);
  CHECK_NO_PART(2, 3, PART("4-2/10", "3", "234"), E2B_ERR_PROTOCOL);
  CHECK_NO_PART(2, 3, PART("x2-4/10", "3", "234"), E2B_ERR_PROTOCOL);
  CHECK_NO_PART(2, 3, PART("2-18446744073709551615/10", "3", "234"), E2B_ERR_PROTOCOL);
  CHECK_NO_PART(2, 3, PART("2-99999999999999999999/10", "3", "234"), E2B_ERR_PROTOCOL);
  CHECK_NO_PART(2, 3, "HTTP/1.1 206 Partial Content\r\ncontent-length: 3\r\n\r\n234", E2B_ERR_PROTOCOL);
  CHECK_NO_PART(2, 3, "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 2-4/10\r\ncontent-length: 3\r\n\r\n23",
                E2B_ERR_TRUNCATED);
  CHECK_NO_PART(2, 3,
                PART_CHUNKED "2\r\n23\r\n0\r\n\r\n", E2B_ERR_TRUNCATED);
  CHECK_NO_PART(2, 9, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234", E2B_ERR_TRUNCATED);

  peer_clear(&b.peer); /* the rest of an endless file is not waited for, nor kept */
  peer_say(&b.peer,
           "HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n"
           "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", PEER_ENDLESS | PEER_REPEAT);
  opts.offset = 3000001;
  opts.length = 15;
  CHECK_INT(e2b_files_read(b.sandbox, "/f", &opts, &buf, &b.err), E2B_OK);
  CHECK_STR((const char *)buf.data, "123456789abcdef");
  e2b_mem_free(&buf.mem);
  e2b_client_get_stats(b.client, &stats);
  CHECK(stats.mem_peak < 300000);
  CHECK_INT(stats.connections_open, 0);
  opts.offset = (uint64_t)INT64_MAX + 1;
  CHECK_INT(e2b_files_read(b.sandbox, "/f", &opts, &buf, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "offset");
  opts.offset = 5;
  opts.length = INT64_MAX - 4;
  CHECK_INT(e2b_files_read(b.sandbox, "/f", &opts, &buf, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "length");
  files_end(&b);
}

#define WITH_K "[{\"name\":\"f\",\"path\":\"/f\",\"type\":\"file\",\"metadata\":{\"k\":\"v\",\"more\":\"x\"}}]"

static void test_files_metadata(void) {
  static const e2b_kv good[] = { { "K", "v" } };
  static const e2b_kv bad[][2] = {
    { { "", "v" }, { "b", "" } }, { { NULL, "v" }, { "b", "" } }, { { "a b", "v" }, { "b", "" } },
    { { "a:", "v" }, { "b", "" } }, { { "a\r\n", "v" }, { "b", "" } }, { { "a", "x\ny" }, { "b", "" } },
    { { "a", "x\ty" }, { "b", "" } }, { { "a", "\xc3\xa9" }, { "b", "" } }, { { "a", " x" }, { "b", "" } },
    { { "a", "x " }, { "b", "" } }, { { "a", "x" }, { "A", "y" } } };
  files_bench b;
  e2b_files_opts opts;
  e2b_write_info info;
  e2b_file_stream *stream = NULL;
  char long_key[260], big[4100];
  e2b_kv pair;
  size_t i;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  memset(&opts, 0, sizeof opts);
  memset(&info, 0, sizeof info);
  opts.metadata.items = good;
  opts.metadata.count = 1;
  files_say_text(&b.peer, "200 OK", WITH_K, 0);
  CHECK_INT(e2b_files_write(b.sandbox, "/f", "x", 1, &opts, &info, &b.err), E2B_OK);
  CHECK_HAS(peer_asked(&b.peer, 0), "\r\nx-metadata-k: v\r\n");
  CHECK(info.metadata.count == 2 && strcmp(info.metadata.items[0].key, "k") == 0 &&
        strcmp(info.metadata.items[1].value, "x") == 0);
  e2b_mem_free(&info.mem);
  files_say_written(&b.peer); /* written, but not kept: no success */
  CHECK_INT(e2b_files_write(b.sandbox, "/f", "x", 1, &opts, &info, &b.err), E2B_ERR_NOT_BUILT);
  CHECK(b.err.maybe_done && !info.mem.ptr);
  CHECK_HAS(b.err.message, "metadata");
  files_say_text(&b.peer, "200 OK", "[{\"name\":\"f\",\"path\":\"/f\",\"type\":\"file\",\"metadata\":{\"k\":\"w\"}}]",
                 0);
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/f", 0, &opts, &stream, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_finish(stream, -1, NULL, &b.err), E2B_ERR_NOT_BUILT);
  e2b_file_stream_free(stream);
  peer_clear(&b.peer);
  for (i = 0; i < E2B__COUNT(bad); i++) {
    opts.metadata.items = bad[i];
    opts.metadata.count = 2;
    CHECK_INT(e2b_files_write(b.sandbox, "/f", "x", 1, &opts, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
    CHECK_HAS(b.err.message, "metadata");
    CHECK_INT(e2b_files_write_stream(b.sandbox, "/f", 1, &opts, &stream, &b.err), E2B_ERR_INVALID_ARGUMENT);
  }
  memset(long_key, 'k', sizeof long_key);
  long_key[247] = 0;
  memset(big, 'v', sizeof big);
  pair.key = long_key;
  pair.value = "v";
  opts.metadata.items = &pair;
  opts.metadata.count = 1;
  CHECK_INT(e2b_files_write(b.sandbox, "/f", "x", 1, &opts, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  pair.key = "k";
  pair.value = big;
  big[4096 - 9 - 1 + 1] = 0;
  CHECK_INT(e2b_files_write(b.sandbox, "/f", "x", 1, &opts, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(b.peer.request_count, 0);
  big[4096 - 9 - 1] = 0;
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_write(b.sandbox, "/f", "x", 1, &opts, NULL, &b.err), E2B_ERR_NOT_BUILT);
  files_end(&b);
}

static void files_say_moved(peer *p, const char *path) {
  e2b__entry_response moved;
  memset(&moved, 0, sizeof moved);
  moved.has_entry = true;
  files_make_entry(&moved.entry, path);
  files_say_message(p, &e2b__msg_entry_response, &moved);
}

static void files_say_removed(peer *p) {
  files_say_text(p, "200 OK\r\ncontent-type: application/proto", "", 0);
}

/* The name of the temporary file in the path of an upload, decoded; the same is expected in the RPC with that
 * number. */
static void files_check_temp(files_bench *b, int rpc, const char *method, int line) {
  char temp[80] = "";
  const char *upload = peer_asked(&b->peer, 0), *text = peer_asked(&b->peer, rpc), *body = strstr(text, "\r\n\r\n");
  char first[100];
  check_at(sscanf(upload, "POST /files?path=%%2Fd%%2F%60[^& ]", temp) == 1, line, upload);
  check_at(strncmp(temp, ".e2b-", 5) == 0 && strlen(temp) == 5 + 24 + 4 && strcmp(temp + 29, ".tmp") == 0, line, temp);
  snprintf(first, sizeof first, "POST /filesystem.Filesystem/%s HTTP/1.1\r\n", method);
  check_has_at(text, first, line);
  if (check_at(body != NULL, line, "a body")) check_has_at(body + 4, temp, line);
  if (strcmp(method, "Move") == 0 && body) check_has_at(body + 4, "\x12\x04/d/f", line);
}
#define CHECK_TEMP(rpc, method) files_check_temp(&b, rpc, method, __LINE__)

static void test_files_atomic(void) {
  files_bench b;
  e2b_files_opts opts;
  e2b_write_info info;
  e2b_file_stream *stream = NULL;
  files_source source;
  files_sink sink;
  e2b_files_opts plain;
  int before;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  memset(&opts, 0, sizeof opts);
  memset(&info, 0, sizeof info);
  opts.atomic = true;
  opts.user = "bob";
  files_say_written(&b.peer);
  files_say_moved(&b.peer, "/d/f");
  CHECK_INT(e2b_files_write(b.sandbox, "/d/f", "x", 1, &opts, &info, &b.err), E2B_OK);
  CHECK_STR(info.path, "/d/f");
  CHECK_STR(info.type, "file");
  e2b_mem_free(&info.mem);
  CHECK_INT(b.peer.request_count, 2);
  CHECK_TEMP(1, "Move");
  CHECK_HAS(peer_asked(&b.peer, 0), "&username=bob ");
  CHECK_HAS(peer_asked(&b.peer, 1), "\r\nauthorization: Basic Ym9iOg==\r\n");
  CHECK_HAS(peer_asked(&b.peer, 1), "\r\ncontent-type: application/proto\r\n");
  opts.user = NULL;

  peer_clear(&b.peer); /* the upload fails: the old file is what it was */
  files_say_text(&b.peer, "507 Insufficient Storage", "{\"code\":507,\"message\":\"full\"}", 0);
  files_say_removed(&b.peer);
  CHECK_INT(e2b_files_write(b.sandbox, "/d/f", "x", 1, &opts, &info, &b.err), E2B_ERR_NOT_ENOUGH_SPACE);
  CHECK(!b.err.maybe_done && !info.mem.ptr);
  CHECK_TEMP(1, "Remove");
  CHECK(!strstr(peer_asked(&b.peer, 1), "authorization"));

  peer_clear(&b.peer); /* so does the rename */
  files_say_written(&b.peer);
  files_say_text(&b.peer, "500 Internal", "{\"code\":\"internal\",\"message\":\"error renaming: file exists\"}", 0);
  files_say_text(&b.peer, "500 Internal", "{\"code\":\"internal\",\"message\":\"no\"}", 0); /* nor can it be removed */
  CHECK_INT(e2b_files_write(b.sandbox, "/d/f", "x", 1, &opts, &info, &b.err), E2B_ERR_SERVICE);
  CHECK_HAS(b.err.message, "file exists");
  CHECK_TEMP(2, "Remove");

  peer_clear(&b.peer); /* its answer says nothing */
  files_say_written(&b.peer);
  files_say_text(&b.peer, "200 OK\r\ncontent-type: application/proto", "", 0);
  files_say_removed(&b.peer);
  CHECK_INT(e2b_files_write(b.sandbox, "/d/f", "x", 1, &opts, &info, &b.err), E2B_ERR_PROTOCOL);
  CHECK(b.err.maybe_done);
  CHECK_INT(b.peer.request_count, 3);
  peer_clear(&b.peer);
  files_say_written(&b.peer);
  files_say_text(&b.peer, "200 OK\r\ncontent-type: text/html", "<html>", 0);
  files_say_removed(&b.peer);
  CHECK_INT(e2b_files_write(b.sandbox, "/d/f", "x", 1, &opts, &info, &b.err), E2B_ERR_PROTOCOL);

  peer_clear(&b.peer); /* a server that knows JSON only */
  files_say_written(&b.peer);
  files_say_text(&b.peer, "415 Unsupported Media Type", "", 0);
  files_say_text(&b.peer, "200 OK\r\ncontent-type: application/json",
                 "{\"entry\":{\"name\":\"f\",\"path\":\"/d/f\"}}", 0);
  CHECK_INT(e2b_files_write(b.sandbox, "/d/f", "x", 1, &opts, &info, &b.err), E2B_OK);
  CHECK_STR(info.path, "/d/f");
  e2b_mem_free(&info.mem);
  CHECK_HAS(peer_asked(&b.peer, 2), "\r\n\r\n{\"source\":\"/d/.e2b-");
  b.sandbox->json = false;

  peer_clear(&b.peer); /* lost on the way: in each of the two */
  peer_say(&b.peer, "", PEER_CLOSE);
  peer_say(&b.peer, "", PEER_CLOSE); /* the second time it is not a reused connection */
  files_say_removed(&b.peer);
  CHECK_INT(e2b_files_write(b.sandbox, "/d/f", "x", 1, &opts, &info, &b.err), E2B_ERR_CLOSED);
  CHECK(!b.err.maybe_done);
  peer_wait_asked(&b.peer, 3);
  peer_clear(&b.peer);
  files_say_written(&b.peer);
  peer_say(&b.peer, "", PEER_CLOSE);
  files_say_removed(&b.peer);
  CHECK_INT(e2b_files_write(b.sandbox, "/d/f", "x", 1, &opts, &info, &b.err), E2B_ERR_CLOSED);
  CHECK(b.err.maybe_done);
  CHECK_TEMP(2, "Remove");

  peer_clear(&b.peer); /* given up: the removal follows by itself */
  files_say_text(&b.peer, "200 OK", FILES_WRITTEN, PEER_EARLY | PEER_HANG);
  files_say_removed(&b.peer);
  files_sink_init(&sink, &b, &plain);
  opts.call = plain.call;
  files_source_init(&source, &b, 1u << 20, &plain);
  CHECK_INT(e2b_files_upload(b.sandbox, "/d/f", files_give, &source, 1 << 20, &opts, NULL, &b.err), E2B_PENDING);
  FILES_UNTIL(b.client, peer_asked_count(&b.peer) == 1);
  e2b_op_cancel(b.client, sink.op);
  memset(&opts.call, 0, sizeof opts.call);
  CHECK_INT(e2b_client_drain(b.client, 10000), E2B_OK);
  CHECK_INT(b.peer.request_count, 2);
  CHECK_TEMP(1, "Remove");

  peer_clear(&b.peer); /* a deadline does the same */
  peer_say(&b.peer, "", PEER_EARLY | PEER_HANG);
  files_say_removed(&b.peer);
  opts.call.timeout_ms = 100;
  CHECK_INT(e2b_files_write(b.sandbox, "/d/f", "x", 1, &opts, NULL, &b.err), E2B_ERR_TIMEOUT);
  CHECK_INT(e2b_client_drain(b.client, 10000), E2B_OK);
  CHECK_INT(b.peer.request_count, 2);
  CHECK_TEMP(1, "Remove");
  opts.call.timeout_ms = 0;

  peer_clear(&b.peer); /* streams */
  files_say_written(&b.peer);
  files_say_moved(&b.peer, "/d/f");
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/d/f", 3, &opts, &stream, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_write(stream, -1, "abc", 3, NULL, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_finish(stream, -1, &info, &b.err), E2B_OK);
  CHECK_STR(info.path, "/d/f");
  e2b_mem_free(&info.mem);
  e2b_file_stream_free(stream);
  CHECK_TEMP(1, "Move");
  CHECK_INT(b.peer.request_count, 2);
  peer_clear(&b.peer);
  files_say_written(&b.peer);
  files_say_text(&b.peer, "404 Not Found", "{\"code\":\"not_found\",\"message\":\"source file not found\"}", 0);
  files_say_removed(&b.peer);
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/d/f", 0, &opts, &stream, &b.err), E2B_OK);
  CHECK_INT(e2b_file_stream_finish(stream, -1, &info, &b.err), E2B_ERR_NOT_FOUND);
  e2b_file_stream_free(stream);
  CHECK_INT(b.peer.request_count, 3);
  peer_clear(&b.peer); /* freed in the middle */
  peer_say(&b.peer, "", PEER_EARLY | PEER_HANG);
  files_say_removed(&b.peer);
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/d/f", -1, &opts, &stream, &b.err), E2B_OK);
  FILES_UNTIL(b.client, peer_asked_count(&b.peer) == 1);
  e2b_file_stream_free(stream);
  CHECK_INT(e2b_client_drain(b.client, 10000), E2B_OK);
  CHECK_INT(b.peer.request_count, 2);
  CHECK_TEMP(1, "Remove");

  peer_clear(&b.peer); /* what was never sent needs no removal */
  files_sink_init(&sink, &b, &plain);
  opts.call = plain.call;
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/d/f", -1, &opts, &stream, &b.err), E2B_PENDING);
  e2b_op_cancel(b.client, sink.op);
  CHECK_INT(b.client->op_count, 0);
  memset(&opts.call, 0, sizeof opts.call);
  CHECK_INT(e2b_files_write(b.sandbox, "/d/", "x", 1, &opts, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  peer_say(&b.peer, "", PEER_EARLY | PEER_HANG); /* and with the sandbox, or the client, everything ends */
  before = peer_asked_count(&b.peer);
  CHECK_INT(e2b_files_write_stream(b.sandbox, "/d/f", -1, &opts, &stream, &b.err), E2B_OK);
  FILES_UNTIL(b.client, peer_asked_count(&b.peer) > before);
  files_sink_init(&sink, &b, &plain);
  opts.call = plain.call;
  peer_say(&b.peer, "", PEER_EARLY | PEER_HANG);
  CHECK_INT(e2b_files_write(b.sandbox, "/d/f", "x", 1, &opts, NULL, &b.err), E2B_PENDING);
  FILES_UNTIL(b.client, peer_asked_count(&b.peer) > before + 1);
  e2b_sandbox_free(b.sandbox);
  b.sandbox = NULL;
  files_drive(b.client, 10);
  CHECK_INT(sink.done, E2B_ERR_CANCELED);
  CHECK_INT(b.client->op_count, 0);
  files_end(&b);
}

static void test_files_compose(void) {
  static const char *const sources[] = { "/a \"1\"", "b" };
  static const char *const broken[] = { "", "[]", "{}", "{\"path\":\"\"}", "<html>" };
  files_bench b;
  e2b_files_opts opts;
  e2b_write_info info;
  e2b_strs strs;
  size_t i;
  files_begin(&b);
  files_open(&b, NULL, "0.5.5");
  memset(&opts, 0, sizeof opts);
  memset(&info, 0, sizeof info);
  strs.items = sources;
  strs.count = 2;
  files_say_text(&b.peer, "200 OK\r\ncontent-type: application/json",
                 "{\"name\":\"c\",\"path\":\"/c\",\"type\":\"file\"}\n", 0);
  CHECK_INT(e2b_files_compose(b.sandbox, strs, "/c", NULL, &info, &b.err), E2B_OK);
  CHECK_STR(info.path, "/c");
  CHECK_STR(info.name, "c");
  e2b_mem_free(&info.mem);
  CHECK_HAS(peer_asked(&b.peer, 0), "POST /files/compose HTTP/1.1\r\n");
  CHECK_HAS(peer_asked(&b.peer, 0), "\r\nx-access-token: tok\r\n");
  CHECK_HAS(peer_asked(&b.peer, 0), "\r\n\r\n{\"source_paths\":[\"/a \\\"1\\\"\",\"b\"],\"destination\":\"/c\"}");
  opts.user = "bob";
  files_say_text(&b.peer, "404 Not Found", "{\"code\":404,\"message\":\"source file not found: b\"}", 0);
  CHECK_INT(e2b_files_compose(b.sandbox, strs, "/c", &opts, &info, &b.err), E2B_ERR_NOT_FOUND);
  CHECK_INT(b.err.subject, E2B_SUBJECT_FILE);
  CHECK_HAS(peer_asked(&b.peer, 1), "\"username\":\"bob\"}");
  files_say_text(&b.peer, "404 Not Found", "404 page not found\n", 0); /* an older envd */
  CHECK_INT(e2b_files_compose(b.sandbox, strs, "/c", NULL, &info, &b.err), E2B_ERR_NOT_BUILT);
  CHECK_HAS(b.err.message, "0.5.5");
  files_say_text(&b.peer, "405 Method Not Allowed", "", 0);
  CHECK_INT(e2b_files_compose(b.sandbox, strs, "/c", NULL, &info, &b.err), E2B_ERR_NOT_BUILT);
  files_say_text(&b.peer, "507 Insufficient Storage", "{\"code\":507,\"message\":\"full\"}", 0);
  CHECK_INT(e2b_files_compose(b.sandbox, strs, "/c", NULL, &info, &b.err), E2B_ERR_NOT_ENOUGH_SPACE);
  for (i = 0; i < E2B__COUNT(broken); i++) {
    files_say_text(&b.peer, "200 OK", broken[i], 0);
    CHECK_INT(e2b_files_compose(b.sandbox, strs, "/c", NULL, &info, &b.err), E2B_ERR_PROTOCOL);
    CHECK(b.err.maybe_done && !info.mem.ptr);
  }
  peer_say(&b.peer, "", PEER_CLOSE); /* never sent twice */
  i = (size_t)b.peer.request_count;
  CHECK_INT(e2b_files_compose(b.sandbox, strs, "/c", NULL, &info, &b.err), E2B_ERR_CLOSED);
  CHECK(b.err.maybe_done);
  CHECK_INT(b.peer.request_count, i + 1);
  strs.count = 0;
  CHECK_INT(e2b_files_compose(b.sandbox, strs, "/c", NULL, &info, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "sources");
  strs.count = 2;
  CHECK_INT(e2b_files_compose(b.sandbox, strs, "", NULL, &info, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_compose(b.sandbox, strs, "a\nb", NULL, &info, &b.err), E2B_ERR_INVALID_ARGUMENT);
  files_end(&b);
}

/* The URL of a file of sandbox "id" under a configuration. */
static const char *files_url_of(e2b_client_config *config, const char *token, const char *path, const char *user,
                                int32_t expires_s) {
  static char url[600];
  e2b_attach_opts attach;
  e2b_sandbox *sandbox = NULL;
  e2b_error err;
  e2b_client *client;
  memset(&attach, 0, sizeof attach);
  attach.access_token = token;
  config->no_env = true;
  client = e2b_client_create(config, &err);
  if (!CHECK(client != NULL) || !CHECK_OK(e2b_sandbox_attach(client, "id", &attach, &sandbox, &err))) return "";
  if (e2b_sandbox_download_url(sandbox, path, user, expires_s, url, sizeof url, &err) != strlen(url)) CHECK(false);
  e2b_client_free(client);
  return url;
}

static void test_files_urls(void) {
  static const char token[] = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0";
  static const char signature[] = "v1_gUtH%2Fs9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E";
  char expected[300], url[400], small[20];
  e2b_client_config config;
  e2b_client *client;
  e2b_sandbox *sandbox = NULL;
  e2b_attach_opts attach;
  e2b_error err;
  size_t len;
  long long now;
  memset(&config, 0, sizeof config);
  snprintf(expected, sizeof expected, "https://49983-id.e2b.app/files?path=hello.txt&username=user&signature=%s",
           signature);
  CHECK_STR(files_url_of(&config, token, "hello.txt", "user", E2B_TIMEOUT_NONE), expected);
  CHECK_STR(files_url_of(&config, NULL, "/a b", NULL, E2B_TIMEOUT_NONE),
            "https://49983-id.e2b.app/files?path=%2Fa%20b");
  config.domain = "sandboxes.example:8443";
  CHECK_STR(files_url_of(&config, NULL, "/a", "bob", E2B_TIMEOUT_NONE),
            "https://49983-id.sandboxes.example:8443/files?path=%2Fa&username=bob");
  config.protocol = E2B_PROTOCOL_PRIVATE;
  config.scheme = "http";
  CHECK_STR(files_url_of(&config, NULL, "/a", NULL, E2B_TIMEOUT_NONE),
            "http://sandboxes.example:8443/kruise/id/49983/files?path=%2Fa&username=node");
  memset(&config, 0, sizeof config);
  config.sandbox_url = "http://127.0.0.1:1/base/";
  CHECK_STR(files_url_of(&config, NULL, "/a", NULL, E2B_TIMEOUT_NONE), "http://127.0.0.1:1/base/files?path=%2Fa");
  config.sandbox_url = NULL;
  config.sandbox_base_url = "http://127.0.0.1:1/x";
  CHECK_STR(files_url_of(&config, NULL, "/a", NULL, E2B_TIMEOUT_NONE), "http://127.0.0.1:1/x/id/files?path=%2Fa");

  client = e2b_client_create(&config, &err);
  memset(&attach, 0, sizeof attach);
  attach.access_token = token;
  attach.base_url = "http://h";
  CHECK_OK(e2b_sandbox_attach(client, "id", &attach, &sandbox, &err));
  now = (long long)time(NULL);
  len = e2b_sandbox_upload_url(sandbox, NULL, NULL, 60, url, sizeof url, &err);
  CHECK(len == strlen(url) && strncmp(url, "http://h/files?signature=v1_", 28) == 0);
  CHECK(strstr(url, "&signature_expiration=") && strtoll(strstr(url, "expiration=") + 11, NULL, 10) - now - 60 <= 5);
  CHECK(strcmp(url, files_url_of(&config, token, "/a", NULL, 60)) != 0);
  CHECK_INT(e2b_sandbox_upload_url(sandbox, NULL, NULL, 60, small, sizeof small, &err), len); /* as snprintf */
  CHECK_INT(strlen(small), sizeof small - 1);
  CHECK_INT(e2b_sandbox_upload_url(sandbox, NULL, NULL, 60, NULL, 0, NULL), len);
  CHECK_INT(e2b_sandbox_download_url(sandbox, NULL, NULL, 60, url, sizeof url, &err), 0);
  CHECK(err.code == E2B_ERR_INVALID_ARGUMENT && !url[0]);
  CHECK_INT(e2b_sandbox_download_url(sandbox, "a\nb", NULL, 60, url, sizeof url, &err), 0);
  CHECK_HAS(err.message, "path");
  CHECK_INT(e2b_sandbox_download_url(sandbox, "a", "x:y", 60, url, sizeof url, &err), 0);
  CHECK_HAS(err.message, "user");
  CHECK_INT(e2b_sandbox_download_url(NULL, "a", NULL, 60, url, sizeof url, &err), 0);
  e2b_sandbox_free(sandbox);
  attach.access_token = NULL;
  CHECK_OK(e2b_sandbox_attach(client, "id", &attach, &sandbox, &err));
  CHECK_INT(e2b_sandbox_download_url(sandbox, "a", NULL, 0, url, sizeof url, &err), 0);
  CHECK_HAS(err.message, "expires_s");
  e2b_client_free(client);
}

/* ================================================================================================================== */
/* >>>> watch */
/* ================================================================================================================== */

/* Events as text, a line each. */
typedef struct watch_log {
  char text[8192];
  int count, ends;
  e2b_err end;
  int stop_after, cancel_after, free_after; /* at that event: stops `handle`, ends it by the answer, frees the sandbox */
  e2b_watch_handle *handle;
} watch_log;

static int watch_note(void *user, const e2b_fs_event *event) {
  static const char *const names[] = { "?", "CREATE", "WRITE", "REMOVE", "RENAME", "CHMOD", "GAP" };
  watch_log *log = (watch_log *)user;
  size_t len = strlen(log->text);
  if (len + strlen(event->name) + 40 > sizeof log->text) len = 0;
  snprintf(log->text + len, sizeof log->text - len, "%s %s%s\n", names[event->type], event->name,
           event->entry ? " entry" : "");
  log->count++;
  if (log->count == log->stop_after) e2b_watch_handle_stop(log->handle);
  if (log->count == log->free_after) e2b_sandbox_free(log->handle->sandbox);
  return log->count == log->cancel_after ? -1 : 0;
}

static void watch_on_end(void *user, const e2b_error *err) {
  watch_log *log = (watch_log *)user;
  log->ends++;
  log->end = err->code;
}

/* An answer with a stream of events, being put together. */
typedef struct watch_script {
  e2b__mem mem;
  e2b__buf out;
  e2b__rpc rpc;
} watch_script;

static void script_begin(watch_script *s) {
  memset(s, 0, sizeof *s);
  e2b__mem_init(&s->mem, NULL);
  e2b__buf_init(&s->out, &s->mem, SIZE_MAX);
  s->rpc.stream = true;
}

static void script_start(watch_script *s) {
  e2b__watch_dir_response response;
  memset(&response, 0, sizeof response);
  response.has_start = true;
  e2b__rpc_encode(&s->rpc, &e2b__msg_watch_dir_response, &response, &s->out);
}

static void script_keepalive(watch_script *s) {
  e2b__watch_dir_response response;
  memset(&response, 0, sizeof response);
  response.has_keepalive = true;
  e2b__rpc_encode(&s->rpc, &e2b__msg_watch_dir_response, &response, &s->out);
}

static void script_event(watch_script *s, int32_t type, const char *name, bool with_entry) {
  e2b__watch_dir_response response;
  memset(&response, 0, sizeof response);
  response.has_filesystem = true;
  response.filesystem.type = type;
  response.filesystem.name = e2b__str(name);
  response.filesystem.has_entry = with_entry;
  if (with_entry) files_make_entry(&response.filesystem.entry, "/d/x");
  e2b__rpc_encode(&s->rpc, &e2b__msg_watch_dir_response, &response, &s->out);
}

static void script_end(watch_script *s, const char *json) {
  uint8_t head[5] = { 2, 0, 0, 0, 0 };
  head[4] = (uint8_t)strlen(json);
  e2b__buf_put(&s->out, head, 5);
  e2b__buf_text(&s->out, json);
}

/* `whole`: the body is complete. */
static void script_say(watch_script *s, peer *p, bool whole, unsigned flags) {
  e2b__buf all;
  char chunk[20];
  e2b__buf_init(&all, &s->mem, SIZE_MAX);
  e2b__buf_text(&all, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: ");
  e2b__buf_text(&all, e2b__rpc_content_type(&s->rpc));
  e2b__buf_text(&all, "\r\n\r\n");
  snprintf(chunk, sizeof chunk, "%lx\r\n", (unsigned long)s->out.len);
  if (s->out.len) {
    e2b__buf_text(&all, chunk);
    e2b__buf_put(&all, s->out.data, s->out.len);
    e2b__buf_text(&all, "\r\n");
  }
  if (whole) e2b__buf_text(&all, "0\r\n\r\n");
  peer_say_n(p, (const char *)all.data, all.len, flags);
  e2b__buf_free(&all);
  e2b__buf_free(&s->out);
}

/* A stream that starts, has one event and then hangs or is cut. */
static void watch_say_one(peer *p, const char *name, unsigned flags) {
  watch_script s;
  script_begin(&s);
  script_start(&s);
  script_event(&s, 1, name, false);
  script_say(&s, p, false, flags);
}

static void watch_say_error(peer *p, bool started, const char *code) {
  char json[200];
  watch_script s;
  script_begin(&s);
  if (started) script_start(&s);
  snprintf(json, sizeof json, "{\"error\":{\"code\":\"%s\",\"message\":\"what the server says\"}}", code);
  script_end(&s, json);
  script_say(&s, p, true, 0);
}

/* Pulls so many events into the log; the last result. */
static e2b_err watch_pull(files_bench *b, e2b_watch_handle *handle, watch_log *log, int count) {
  e2b_fs_event event;
  e2b_err code = E2B_OK;
  while (log->count < count && (code = e2b_watch_handle_next(handle, 10000, &event, &b->err)) == E2B_OK)
    watch_note(log, &event);
  return code;
}

/* The bytes of a request, the messages of a stream, and its proper end. */
static void test_watch_stream(void) {
  static const char binary[] = "\0\0\0\0\x0a\x0a\x02/d\x10\x01\x18\x01\x20\x01";
  static const char json[] = "\0\0\0\0\x4c" "{\"path\":\"/d\",\"recursive\":true,\"includeEntry\":true,\"allowNetworkMounts\":true}";
  files_bench b;
  e2b_watch_handle *handle = NULL;
  e2b_watch_opts opts;
  e2b_fs_event event;
  watch_script s;
  watch_log log;
  unsigned way;
  const char *request;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  for (way = 0; way < 6; way++) { /* in both codecs, and after a server refused the first */
    const char *body = way < 2 ? binary : json;
    size_t size = way < 2 ? sizeof binary - 1 : sizeof json - 1;
    peer_clear(&b.peer);
    b.sandbox->json = way / 2 == 1;
    if (way / 2 == 2) files_say_text(&b.peer, "415 Unsupported Media Type", "", 0);
    memset(&opts, 0, sizeof opts);
    memset(&log, 0, sizeof log);
    opts.recursive = opts.include_entry = opts.allow_network_mounts = true;
    opts.user = "bob";
    script_begin(&s);
    s.rpc.json = way > 1;
    script_start(&s);
    script_event(&s, 1, "a", true);
    script_keepalive(&s);
    script_event(&s, 5, "a", false);
    script_event(&s, 2, "sub/\xc3\xa9", false);
    script_event(&s, 9, "new", false); /* of a newer server */
    script_event(&s, 4, "a", false);
    script_event(&s, 3, ".", false);
    script_event(&s, 1, "never told", false);
    script_say(&s, &b.peer, false, PEER_HANG | (way % 2 ? PEER_DRIBBLE : 0));
    CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", &opts, &handle, &b.err), E2B_OK);
    request = peer_asked(&b.peer, way / 2 == 2);
    CHECK_HAS(request, "POST /filesystem.Filesystem/WatchDir HTTP/1.1\r\n");
    CHECK_HAS(request, "\r\nauthorization: Basic Ym9iOg==\r\n");
    CHECK_HAS(request,
              way < 2 ? "\r\ncontent-type: application/connect+proto\r\n" : "\r\ncontent-type: application/connect+json\r\n");
    CHECK_HAS(request, "\r\nconnect-protocol-version: 1\r\n");
    CHECK_HAS(request, "\r\nkeepalive-ping-interval: 50\r\n");
    CHECK(!strstr(request, "timeout"));
    CHECK(memcmp(request + b.peer.request_lens[way / 2 == 2] - size, body, size) == 0);
    CHECK_INT(e2b_watch_handle_next(handle, 10000, &event, &b.err), E2B_OK);
    CHECK_INT(event.type, E2B_FS_CREATE);
    CHECK_STR(event.name, "a");
    CHECK(event.entry && event.entry->size == (int64_t)5 << 32 && strcmp(event.entry->path, "/d/x") == 0 &&
          !event.entry->mem.ptr);
    CHECK_INT(watch_pull(&b, handle, &log, 99), E2B_EOF);
    CHECK_STR(log.text, "CHMOD a\nWRITE sub/\xc3\xa9\n? new\nRENAME a\nREMOVE .\n");
    CHECK_INT(e2b_watch_handle_next(handle, 0, &event, &b.err), E2B_EOF); /* and again */
    CHECK_HAS(b.err.message, "removed or renamed");
    CHECK_INT(b.client->conn_count, b.client->idle_count); /* nothing is left open */
    e2b_watch_handle_stop(handle);
  }
  b.sandbox->json = false;
  peer_clear(&b.peer); /* the shape of a plain request; nothing there yet; stopping closes the connection */
  script_begin(&s);
  script_start(&s);
  script_say(&s, &b.peer, false, PEER_HANG);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", NULL, &handle, &b.err), E2B_OK);
  CHECK(memcmp(peer_asked(&b.peer, 0) + b.peer.request_lens[0] - 9, "\0\0\0\0\x04\x0a\x02/d", 9) == 0);
  CHECK(!strstr(peer_asked(&b.peer, 0), "authorization"));
  CHECK_INT(e2b_watch_handle_next(handle, 0, &event, &b.err), E2B_PENDING);
  CHECK_INT(e2b_watch_handle_next(handle, 20, &event, &b.err), E2B_PENDING);
  e2b_watch_handle_stop(handle);
  files_drive(b.client, 0);
  CHECK_INT(b.client->conn_count, b.client->idle_count);
  e2b_watch_handle_stop(NULL);
  files_end(&b);
}

/* A watch that cannot begin has not begun. */
static void test_watch_refused(void) {
  static const struct { const char *code; e2b_err want; } errors[] = { { "not_found", E2B_ERR_NOT_FOUND },
    { "invalid_argument", E2B_ERR_INVALID_ARGUMENT }, { "unauthenticated", E2B_ERR_UNAUTHENTICATED },
    { "internal", E2B_ERR_SERVICE },
    { "unimplemented", E2B_ERR_NOT_BUILT } };
  files_bench b;
  e2b_watch_handle *handle = NULL;
  e2b_watch_opts opts;
  watch_script s;
  e2b_op op;
  size_t i;
  int done = 0;
  files_begin(&b);
  b.config.max_message_bytes = 1000;
  files_open(&b, NULL, NULL);
  memset(&opts, 0, sizeof opts);
  for (i = 0; i < E2B__COUNT(errors); i++) {
    watch_say_error(&b.peer, false, errors[i].code);
    CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", NULL, &handle, &b.err), errors[i].want);
    CHECK_HAS(b.err.message, "what the server says");
    CHECK(!handle && !b.err.maybe_done);
  }
  CHECK_INT(b.sandbox->watches == NULL, 1);
  files_say_text(&b.peer, "401 Unauthorized", "{\"code\":401,\"message\":\"unauthorized access\"}", 0);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", NULL, &handle, &b.err), E2B_ERR_UNAUTHENTICATED);
  files_say_text(&b.peer, "404 Not Found", "404 page not found", 0);
  CHECK(e2b_files_watch_dir(b.sandbox, "/d", NULL, &handle, &b.err) < 0 && b.err.subject != E2B_SUBJECT_FILE);
  script_begin(&s);
  script_event(&s, 1, "early", false);
  script_say(&s, &b.peer, false, PEER_HANG);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", NULL, &handle, &b.err), E2B_ERR_PROTOCOL);
  script_begin(&s);
  e2b__buf_put(&s.out, "\1\0\0\0\0", 5);
  script_say(&s, &b.peer, false, PEER_HANG);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", NULL, &handle, &b.err), E2B_ERR_PROTOCOL);
  script_begin(&s);
  e2b__buf_put(&s.out, "\0\0\0\0\1\7", 6);
  script_say(&s, &b.peer, false, PEER_HANG);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", NULL, &handle, &b.err), E2B_ERR_PROTOCOL);
  script_begin(&s);
  e2b__buf_put(&s.out, "\0\0\0\4\1", 5);
  script_say(&s, &b.peer, false, PEER_HANG);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", NULL, &handle, &b.err), E2B_ERR_LIMIT);
  script_begin(&s);
  script_end(&s, "{}");
  script_say(&s, &b.peer, true, 0);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", NULL, &handle, &b.err), E2B_ERR_TRUNCATED);
  script_begin(&s);
  script_say(&s, &b.peer, true, 0);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", NULL, &handle, &b.err), E2B_ERR_TRUNCATED);
  script_begin(&s);
  script_say(&s, &b.peer, false, PEER_CLOSE);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", NULL, &handle, &b.err), E2B_ERR_TRUNCATED);
  b.peer.health = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 22\r\n\r\nsandbox not found: sbx";
  peer_say(&b.peer, "", PEER_RESET);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", NULL, &handle, &b.err), E2B_ERR_SANDBOX_GONE);
  b.peer.health = "HTTP/1.1 204 No Content\r\n\r\n";
  for (i = 0; i < 2; i++) { /* a server that says nothing */
    opts.polling = i != 0;
    peer_say(&b.peer, "", PEER_HANG);
    opts.call.timeout_ms = 50;
    CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", &opts, &handle, &b.err), E2B_ERR_TIMEOUT);
    CHECK_INT(b.err.phase, E2B_PHASE_HEADERS);
    opts.call.timeout_ms = 0;
    opts.call.idle_ms = 50;
    peer_say(&b.peer, "", PEER_HANG);
    if (!i) CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", &opts, &handle, &b.err), E2B_ERR_IDLE_TIMEOUT);
    memset(&opts, 0, sizeof opts);
    opts.polling = i != 0;
    opts.call.op = &op; /* canceled, and freed with its sandbox */
    opts.call.on_done = files_nothing_done;
    opts.call.user = &done;
    peer_say(&b.peer, "", PEER_HANG);
    CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", &opts, &handle, &b.err), E2B_PENDING);
    files_drive(b.client, 20);
    e2b_op_cancel(b.client, op);
    CHECK(!handle && !b.sandbox->watches && done == 0);
    CHECK_INT(b.client->op_count, 0);
    memset(&opts, 0, sizeof opts);
    peer_clear(&b.peer);
  }
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "", NULL, &handle, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "a\nb", NULL, &handle, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", NULL, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_watch_dir(NULL, "/d", NULL, &handle, &b.err), E2B_ERR_INVALID_ARGUMENT);
  opts.user = "a:b";
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", &opts, &handle, &b.err), E2B_ERR_INVALID_ARGUMENT);
  opts.user = NULL;
  opts.poll_interval_ms = -1;
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", &opts, &handle, &b.err), E2B_ERR_INVALID_ARGUMENT);
  opts.poll_interval_ms = 0;
  opts.on_end = watch_on_end;
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", &opts, &handle, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_watch_handle_next(NULL, 0, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  files_close(&b);
  memset(&opts, 0, sizeof opts);
  opts.recursive = true;
  files_open(&b, NULL, "0.1.3");
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", &opts, &handle, &b.err), E2B_ERR_NOT_BUILT);
  CHECK_INT(b.peer.request_count, 0);
  files_end(&b);
}

/* Every way to lose a stream that had begun: it is begun anew after a GAP, or ends, once and not in silence. */
static void test_watch_lost(void) {
  files_bench b;
  e2b_watch_handle *handle = NULL;
  e2b_watch_opts opts;
  e2b_fs_event event;
  watch_script s;
  watch_log log;
  int way, pushed;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  for (way = 0; way < 5; way++) {
    memset(&opts, 0, sizeof opts);
    memset(&log, 0, sizeof log);
    if (way == 0) {
      watch_say_one(&b.peer, "a", PEER_CLOSE);
    } else if (way == 1) {
      watch_say_one(&b.peer, "a", PEER_HANG);
      opts.call.idle_ms = 100;
    } else {
      script_begin(&s);
      script_start(&s);
      script_event(&s, 1, "a", false);
      if (way == 2) script_end(&s, "{\"error\":{\"code\":\"internal\",\"message\":\"watcher error: overflow\"}}");
      if (way == 3) script_end(&s, "{}");
      if (way == 4) e2b__buf_put(&s.out, "\0\0\0\0\1\7", 6);
      script_say(&s, &b.peer, true, 0);
    }
    watch_say_one(&b.peer, "b", PEER_HANG);
    CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", &opts, &handle, &b.err), E2B_OK);
    handle->begun_at = 0; /* so long ago that it may be begun anew at once */
    CHECK_INT(watch_pull(&b, handle, &log, 3), E2B_OK);
    CHECK_STR(log.text, "CREATE a\nGAP \nCREATE b\n");
    CHECK_INT(b.peer.request_count, 2);
    CHECK(b.peer.request_lens[0] == b.peer.request_lens[1] &&
          memcmp(b.peer.requests[0], b.peer.requests[1], b.peer.request_lens[0]) == 0);
    e2b_watch_handle_stop(handle);
    peer_clear(&b.peer);
  }
  for (way = 0; way < 6; way++) { /* it cannot be begun anew */
    static const e2b_err want[] = { E2B_ERR_NOT_FOUND, E2B_ERR_CLOSED, E2B_ERR_SANDBOX_GONE };
    pushed = way % 2;
    memset(&opts, 0, sizeof opts);
    memset(&log, 0, sizeof log);
    if (pushed) opts.on_event = watch_note;
    if (pushed) opts.on_end = watch_on_end;
    opts.event_user = &log;
    watch_say_one(&b.peer, "a", PEER_CLOSE);
    if (way / 2 == 0) watch_say_error(&b.peer, false, "not_found");
    else peer_say(&b.peer, "", PEER_CLOSE);
    if (way / 2 == 2) b.peer.health = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 22\r\n\r\nsandbox not found: sbx";
    CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", &opts, &handle, &b.err), E2B_OK);
    handle->begun_at = 0; /* so long ago that it may be begun anew at once */
    if (pushed) {
      FILES_UNTIL(b.client, log.ends);
      files_drive(b.client, 20);
      CHECK_INT(log.ends, 1);
      CHECK_INT(log.end, want[way / 2]);
      CHECK_INT(e2b_watch_handle_next(handle, 0, &event, &b.err), E2B_ERR_BAD_STATE);
    } else {
      CHECK_INT(watch_pull(&b, handle, &log, 99), want[way / 2]);
      CHECK_INT(e2b_watch_handle_next(handle, -1, &event, &b.err), want[way / 2]); /* the same again */
    }
    CHECK_STR(log.text, "CREATE a\n");
    e2b_watch_handle_stop(handle);
    peer_clear(&b.peer);
    b.peer.health = "HTTP/1.1 204 No Content\r\n\r\n";
  }
  CHECK_INT(b.client->conn_count, b.client->idle_count);
  files_end(&b);
}

static void watch_say_id(peer *p, const char *id) {
  e2b__watcher_id answer;
  answer.watcher_id = e2b__str(id);
  files_say_message(p, &e2b__msg_watcher_id, &answer);
}

/* Names of events to create, "" ends them. */
static void watch_say_polled(peer *p, const char *first, const char *second) {
  e2b__watcher_events answer;
  e2b__filesystem_event events[2];
  memset(&answer, 0, sizeof answer);
  memset(events, 0, sizeof events);
  events[0].name = e2b__str(first);
  events[1].name = e2b__str(second);
  events[0].type = events[1].type = first[0] == '.' ? 3 : 1;
  answer.events.items = events;
  answer.events.count = !first[0] ? 0 : !second[0] ? 1 : 2;
  files_say_message(p, &e2b__msg_watcher_events, &answer);
}

static void test_watch_polling(void) {
  files_bench b;
  e2b_watch_handle *handle = NULL;
  e2b_watch_opts opts;
  e2b_fs_event event;
  watch_log log;
  int pushed, before;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  for (pushed = 0; pushed < 2; pushed++) {
    memset(&opts, 0, sizeof opts);
    memset(&log, 0, sizeof log);
    opts.polling = opts.recursive = true;
    opts.poll_interval_ms = 10;
    if (pushed) opts.on_event = watch_note;
    if (pushed) opts.on_end = watch_on_end;
    opts.event_user = &log;
    watch_say_id(&b.peer, "w1");
    watch_say_polled(&b.peer, "a", "b");
    watch_say_polled(&b.peer, "", "");
    watch_say_polled(&b.peer, "c", "");
    peer_say(&b.peer, "", PEER_CLOSE); /* an answer is lost, and perhaps the events in it */
    watch_say_polled(&b.peer, "d", "");
    files_say_text(&b.peer, "404 Not Found", "{\"code\":\"not_found\",\"message\":\"watcher with id w1 not found\"}",
                   0);
    watch_say_id(&b.peer, "w2");
    files_say_text(&b.peer, "500 Internal", "{\"code\":\"internal\",\"message\":\"watcher error: overflow\"}", 0);
    watch_say_id(&b.peer, "w3"); /* its removal, and the new one: either first */
    watch_say_id(&b.peer, "w3");
    watch_say_polled(&b.peer, "e", "");
    watch_say_polled(&b.peer, ".", "");
    files_say_removed(&b.peer);
    CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", &opts, &handle, &b.err), E2B_OK);
    handle->begun_at = 0; /* so long ago that it may be begun anew at once */
    if (pushed) {
      FILES_UNTIL(b.client, log.ends);
      CHECK_INT(log.end, E2B_EOF);
    } else {
      CHECK_INT(watch_pull(&b, handle, &log, 99), E2B_EOF);
    }
    CHECK_STR(log.text, "CREATE a\nCREATE b\nCREATE c\nGAP \nCREATE d\nGAP \nGAP \nCREATE e\nREMOVE .\n");
    CHECK_INT(e2b_client_drain(b.client, 10000), E2B_OK);
    CHECK_HAS(peer_asked(&b.peer, 0), "POST /filesystem.Filesystem/CreateWatcher HTTP/1.1\r\n");
    CHECK(memcmp(peer_asked(&b.peer, 0) + b.peer.request_lens[0] - 6, "\x0a\x02/d\x10\x01", 6) == 0);
    CHECK_HAS(peer_asked(&b.peer, 1), "POST /filesystem.Filesystem/GetWatcherEvents HTTP/1.1\r\n");
    CHECK_HAS(peer_asked(&b.peer, 1), "\r\n\r\n\x0a\x02w1");
    CHECK_HAS(peer_asked(&b.peer, b.peer.request_count - 1), "POST /filesystem.Filesystem/RemoveWatcher HTTP/1.1\r\n");
    CHECK_HAS(peer_asked(&b.peer, b.peer.request_count - 1), "\x0a\x02w3");
    e2b_watch_handle_stop(handle);
    CHECK_INT(b.client->op_count, 0);
    peer_clear(&b.peer);
  }
  memset(&opts, 0, sizeof opts); /* the next question waits until the events of the last one are taken */
  opts.polling = true;
  opts.poll_interval_ms = 1;
  watch_say_id(&b.peer, "w1");
  watch_say_polled(&b.peer, "a", "b");
  watch_say_polled(&b.peer, "c", "");
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", &opts, &handle, &b.err), E2B_OK);
  CHECK_INT(e2b_client_drain(b.client, 1000), E2B_OK); /* which is no operation to wait for */
  FILES_UNTIL(b.client, handle->events.count);
  files_drive(b.client, 30);
  CHECK_INT(peer_asked_count(&b.peer), 2);
  CHECK_INT(e2b_watch_handle_next(handle, 0, &event, &b.err), E2B_OK);
  CHECK_INT(e2b_watch_handle_next(handle, 0, &event, &b.err), E2B_OK);
  CHECK_STR(event.name, "b");
  CHECK_INT(e2b_watch_handle_next(handle, 10000, &event, &b.err), E2B_OK);
  CHECK_STR(event.name, "c");
  before = peer_asked_count(&b.peer); /* opened blocking, so stopping waits for the removal */
  files_say_removed(&b.peer);
  e2b_watch_handle_stop(handle);
  CHECK_INT(peer_asked_count(&b.peer), before + 1);
  CHECK_HAS(peer_asked(&b.peer, before), "RemoveWatcher");
  CHECK_INT(b.client->op_count, 0);

  peer_clear(&b.peer); /* refused */
  files_say_text(&b.peer, "404 Not Found", "{\"code\":\"not_found\",\"message\":\"path /d not found\"}", 0);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", &opts, &handle, &b.err), E2B_ERR_NOT_FOUND);
  CHECK_INT(b.err.subject, E2B_SUBJECT_FILE);
  files_say_text(&b.peer, "404 Not Found", "nginx", 0);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", &opts, &handle, &b.err), E2B_ERR_SERVICE);
  watch_say_id(&b.peer, "w1"); /* two losses in a row end it */
  peer_say(&b.peer, "", PEER_CLOSE);
  peer_say(&b.peer, "", PEER_CLOSE);
  memset(&log, 0, sizeof log);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", &opts, &handle, &b.err), E2B_OK);
  CHECK_INT(watch_pull(&b, handle, &log, 99), E2B_ERR_CLOSED);
  CHECK_INT(log.count, 0);
  files_say_removed(&b.peer);
  e2b_watch_handle_stop(handle);
  files_end(&b);
}

/* What callbacks may do: stop, end by their answer, free the sandbox; and what dies with the client. */
static void test_watch_callbacks(void) {
  files_bench b;
  e2b_watch_handle *handle = NULL;
  e2b_watch_opts opts;
  e2b_fs_event event;
  watch_script s;
  watch_log log;
  int way, i;
  files_begin(&b);
  for (way = 0; way < 8; way++) {
    files_open(&b, NULL, NULL);
    memset(&opts, 0, sizeof opts);
    memset(&log, 0, sizeof log);
    opts.polling = (way & 1) != 0;
    opts.poll_interval_ms = 1;
    opts.on_event = watch_note;
    opts.on_end = watch_on_end;
    opts.event_user = &log;
    if (opts.polling) {
      watch_say_id(&b.peer, "w1");
      watch_say_polled(&b.peer, "a", "b");
      for (i = 0; i < 5; i++) watch_say_polled(&b.peer, "", ""); /* to whatever follows */
    } else {
      script_begin(&s);
      script_start(&s);
      script_event(&s, 1, "a", false);
      script_event(&s, 1, "b", false);
      script_event(&s, 1, "c", false);
      script_say(&s, &b.peer, false, PEER_HANG | (way & 2 ? PEER_DRIBBLE : 0));
    }
    if (way / 2 == 0) log.stop_after = 1;
    if (way / 2 == 1) log.cancel_after = 1;
    if (way / 2 == 2) log.free_after = 1;
    opts.call.on_done = files_nothing_done;
    opts.call.user = &i;
    i = 0;
    CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", &opts, &log.handle, &b.err), E2B_PENDING);
    FILES_UNTIL(b.client, log.count);
    files_drive(b.client, 10);
    CHECK_INT(log.count, way / 2 == 3 ? (opts.polling ? 2 : 3) : 1);
    CHECK_INT(log.ends, way / 2 == 1);
    if (way / 2 == 1) CHECK_INT(log.end, E2B_ERR_CANCELED);
    if (way / 2 == 1) e2b_watch_handle_stop(log.handle);
    if (way / 2 == 0) CHECK_INT(b.sandbox->watches == NULL, 1);
    files_close(&b); /* in the last round: with the watch open, which says nothing */
    CHECK_INT(log.ends, way / 2 == 1);
    peer_clear(&b.peer);
    memset(&b.heap, 0, sizeof b.heap);
  }
  files_open(&b, NULL, NULL); /* inside a callback next does not wait */
  watch_say_one(&b.peer, "a", PEER_HANG);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", NULL, &handle, &b.err), E2B_OK);
  b.client->in_turn = true;
  CHECK_INT(e2b_watch_handle_next(handle, 5, &event, &b.err), E2B_ERR_BAD_STATE);
  b.client->in_turn = false;
  e2b_client_interrupt(b.client);
  memset(&log, 0, sizeof log);
  (void)watch_pull(&b, handle, &log, 1);
  CHECK(b.err.code == E2B_ERR_CANCELED || log.count == 1);
  CHECK_INT(watch_pull(&b, handle, &log, 1), E2B_OK);
  e2b_watch_handle_stop(handle);
  files_end(&b);
}

static e2b_err watch_try_stream(files_bench *b) {
  e2b_watch_handle *handle = NULL;
  e2b_fs_event event;
  e2b_err code = e2b_files_watch_dir(b->sandbox, "/d", NULL, &handle, &b->err);
  int seen = 0;
  while (!code && (code = e2b_watch_handle_next(handle, 5000, &event, &b->err)) == E2B_OK) seen++;
  CHECK(code != E2B_EOF || seen == 3);
  e2b_watch_handle_stop(handle);
  return code == E2B_EOF ? E2B_OK : code;
}

static e2b_err files_try_part(files_bench *b) {
  e2b_files_opts opts;
  e2b_buf buf;
  e2b_err code;
  memset(&buf, 0, sizeof buf);
  memset(&opts, 0, sizeof opts);
  opts.offset = 5;
  opts.length = 3;
  code = e2b_files_read(b->sandbox, "/d", &opts, &buf, &b->err);
  CHECK(code || (buf.len == 3 && memcmp(buf.data, "567", 3) == 0));
  e2b_mem_free(&buf.mem);
  return code;
}

static e2b_err files_try_compose(files_bench *b) {
  static const char *const sources[] = { "/a", "/b" };
  e2b_write_info info;
  e2b_strs strs;
  e2b_err code;
  memset(&info, 0, sizeof info);
  strs.items = sources;
  strs.count = 2;
  code = e2b_files_compose(b->sandbox, strs, "/c", NULL, &info, &b->err);
  e2b_mem_free(&info.mem);
  return code;
}

static e2b_err files_try_url(files_bench *b) {
  size_t len = e2b_sandbox_download_url(b->sandbox, "/a", "bob", 60, NULL, 0, &b->err);
  bool exists;
  CHECK(len || b->err.code == E2B_ERR_NO_MEMORY);
  return len ? e2b_files_exists(b->sandbox, "/a", NULL, &exists, &b->err) : b->err.code;
}

/* What is asked depends on which allocation fails; the removal takes any answer. */
static e2b_err watch_try_polling(files_bench *b) {
  e2b_watch_handle *handle = NULL;
  e2b_watch_opts opts;
  e2b_fs_event event;
  e2b_err code;
  memset(&opts, 0, sizeof opts);
  opts.polling = true;
  opts.poll_interval_ms = 1;
  peer_wait_live(&b->peer, (int)b->client->conn_count); /* what was given up before may not get these answers */
  peer_clear(&b->peer);
  watch_say_id(&b->peer, "w1");
  watch_say_polled(&b->peer, "a", "");
  watch_say_polled(&b->peer, ".", "");
  files_say_removed(&b->peer);
  files_say_removed(&b->peer);
  code = e2b_files_watch_dir(b->sandbox, "/d", &opts, &handle, &b->err);
  while (!code) code = e2b_watch_handle_next(handle, 5000, &event, &b->err);
  e2b_watch_handle_stop(handle);
  CHECK_INT(e2b_client_drain(b->client, 5000), E2B_OK);
  return code == E2B_EOF ? E2B_OK : code;
}

static void test_watch_no_memory(void) {
  static const char ignored[] = "HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 0\r\n\r\n";
  static const char content[] = "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n01234567890123456789";
  static const char composed[] = "HTTP/1.1 200 OK\r\ncontent-length: 38\r\n\r\n{\"name\":\"c\",\"path\":\"/c\",\"type\":\"file\"}";
  char answer[1000];
  watch_script s;
  int head;
  script_begin(&s);
  script_start(&s);
  script_event(&s, 1, "a", true);
  script_event(&s, 2, "b", false);
  script_event(&s, 3, ".", false);
  head = snprintf(answer, sizeof answer,
                  "HTTP/1.1 200 OK\r\ncontent-type: application/connect+proto\r\ncontent-length: %lu\r\n\r\n", (unsigned long)s.out.len);
  memcpy(answer + head, s.out.data, s.out.len);
  files_each_allocation(NULL, watch_try_stream, answer, (size_t)head + s.out.len);
  e2b__buf_free(&s.out);
  files_each_allocation(NULL, watch_try_polling, ignored, sizeof ignored - 1);
  files_each_allocation(NULL, files_try_part, content, sizeof content - 1);
  files_each_allocation(NULL, files_try_compose, composed, sizeof composed - 1);
  files_each_allocation(NULL, files_try_url, ignored, sizeof ignored - 1);
}

/* A megabyte of events that nobody takes stays with the server, but for a buffer. */
static void test_watch_held(void) {
  files_bench b;
  e2b_watch_handle *handle = NULL;
  e2b_client_stats stats;
  e2b_fs_event event;
  watch_script s;
  char name[100];
  int i, count = 20000;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  script_begin(&s);
  script_start(&s);
  for (i = 0; i < count; i++) {
    snprintf(name, sizeof name, "a name that is rather long for a file, with the number %d in it", i);
    script_event(&s, 2, name, false);
  }
  script_event(&s, 4, ".", false);
  script_say(&s, &b.peer, false, PEER_HANG);
  CHECK_INT(e2b_files_watch_dir(b.sandbox, "/d", NULL, &handle, &b.err), E2B_OK);
  files_drive(b.client, 50);
  e2b_client_get_stats(b.client, &stats);
  CHECK(stats.mem_now < 200000);
  for (i = 0; i < count; i++) {
    snprintf(name, sizeof name, "a name that is rather long for a file, with the number %d in it", i);
    if (!CHECK_INT(e2b_watch_handle_next(handle, 10000, &event, &b.err), E2B_OK) || !CHECK_STR(event.name, name)) break;
  }
  CHECK_INT(e2b_watch_handle_next(handle, 10000, &event, &b.err), E2B_OK);
  CHECK_INT(e2b_watch_handle_next(handle, 10000, &event, &b.err), E2B_EOF);
  e2b_client_get_stats(b.client, &stats);
  CHECK(stats.mem_peak < 300000);
  e2b_watch_handle_stop(handle);
  files_end(&b);
}

/* ================================================================================================================== */
/* >>>> rpc */
/* ================================================================================================================== */

/* RPC in protobuf and in JSON, against a scripted envd. */

static void rpc_open(files_bench *b, e2b_codec codec) {
  files_begin(b);
  b->config.codec = codec;
  files_open(b, NULL, NULL);
}

/* A sandbox of whose codec nothing is known yet. */
static void rpc_forget(files_bench *b, e2b_codec codec) {
  files_close(b);
  memset(&b->heap, 0, sizeof b->heap);
  memset(&b->err, 0, sizeof b->err);
  b->config.codec = codec;
  files_open(b, NULL, NULL);
}

#define RPC_STREAM_MAX 4096

/* The messages of an answer, in envelopes. */
typedef struct rpc_stream {
  bool json;
  uint8_t bytes[RPC_STREAM_MAX];
  size_t len;
} rpc_stream;

static void rpc_put(rpc_stream *s, uint8_t flags, const void *payload, size_t len) {
  if (!CHECK(s->len + 5 + len <= sizeof s->bytes)) return;
  s->bytes[s->len] = flags;
  s->bytes[s->len + 1] = s->bytes[s->len + 2] = 0;
  s->bytes[s->len + 3] = (uint8_t)(len >> 8);
  s->bytes[s->len + 4] = (uint8_t)len;
  memcpy(s->bytes + s->len + 5, payload, len);
  s->len += 5 + len;
}

static void rpc_put_text(rpc_stream *s, uint8_t flags, const char *text) {
  rpc_put(s, flags, text, strlen(text));
}

/* One of the vectors, in the codec of the stream. */
static void rpc_put_vector(rpc_stream *s, const char *name) {
  uint8_t bytes[512];
  size_t i;
  for (i = 0; i < E2B__COUNT(codec_vectors) && strcmp(codec_vectors[i].name, name) != 0; i++) continue;
  if (!CHECK(i < E2B__COUNT(codec_vectors))) return;
  if (s->json) rpc_put_text(s, 0, codec_vectors[i].json);
  else rpc_put(s, 0, bytes, codec_unhex(codec_vectors[i].hex, bytes));
}

/* "hi\n" and "err\n", exit code 0. */
static void rpc_put_command(rpc_stream *s, bool json) {
  memset(s, 0, sizeof *s);
  s->json = json;
  rpc_put_vector(s, "start_response_start");
  rpc_put_vector(s, "start_response_keepalive");
  rpc_put_vector(s, "start_response_stdout");
  rpc_put_vector(s, "start_response_stderr");
  rpc_put_vector(s, "start_response_end_0");
  rpc_put_text(s, 2, "{}");
}

static void rpc_say_stream(peer *p, const rpc_stream *s, size_t len, unsigned flags) {
  files_say_body(p, s->json ? "200 OK\r\ncontent-type: application/connect+json"
                            : "200 OK\r\ncontent-type: application/connect+proto", s->bytes, len, flags);
}

static void rpc_say_command(peer *p, bool json) {
  rpc_stream s;
  rpc_put_command(&s, json);
  rpc_say_stream(p, &s, s.len, 0);
}

static void rpc_say_json(peer *p, const char *body) {
  files_say_text(p, "200 OK\r\ncontent-type: application/json", body, 0);
}

#define RPC_REFUSED                                                                                                    \
  "HTTP/1.1 415 Unsupported Media Type\r\naccept-post: application/json, application/connect+json\r\n"                 \
  "content-length: 0\r\n\r\n"

/* Runs a command that says "hi\n" and "err\n". */
static e2b_err rpc_try_run(files_bench *b) {
  static const e2b_kv envs[] = { { "A", "1" } };
  e2b_command_result result;
  e2b_run_opts opts;
  e2b_err code;
  memset(&opts, 0, sizeof opts);
  memset(&result, 0, sizeof result);
  opts.cwd = "/tmp";
  opts.envs.items = envs;
  opts.envs.count = 1;
  code = e2b_commands_run(b->sandbox, "echo hi", &opts, &result, &b->err);
  if (!code) {
    CHECK_STR(result.stdout_data.ptr, "hi\n");
    CHECK_STR(result.stderr_data.ptr, "err\n");
    CHECK_INT(result.exit_code, 0);
  }
  e2b_mem_free(&result.mem);
  return code;
}

#define RPC_HEAD(path)                                                                                                 \
  "POST " path " HTTP/1.1\r\nhost: HOST\r\nuser-agent: t\r\naccept: application/json\r\n"                              \
  "accept-encoding: identity\r\ne2b-sandbox-id: sbx\r\ne2b-sandbox-port: 49983\r\nx-access-token: tok\r\n"
#define RPC_FILES_HEAD(path) RPC_HEAD("/filesystem.Filesystem/" path)
/* A recorded request is a Start in JSON, with the body of the vector. */
static void rpc_check_start_json(peer *p, int at) {
  static const char body[] =
      "\0\0\0\0\x68{\"process\":{\"cmd\":\"/bin/bash\",\"args\":[\"-l\",\"-c\",\"echo hi\"],\"envs\":{\"A\":\"1\"},"
      "\"cwd\":\"/tmp\"},\"stdin\":false}";
  size_t len = sizeof body - 1;
  const char *text = peer_asked(p, at);
  CHECK(strncmp(text, "POST /process.Process/Start HTTP/1.1\r\n", 38) == 0);
  CHECK_HAS(text, "\r\ncontent-type: application/connect+json\r\n");
  CHECK_HAS(text, "\r\nconnect-protocol-version: 1\r\n");
  CHECK_HAS(text, "\r\nkeepalive-ping-interval: 50\r\n");
  CHECK_HAS(text, "\r\ncontent-length: 109\r\n");
  CHECK(!strstr(text, "proto\r\n"));
  if (!CHECK(at < p->request_count && p->request_lens[at] > len)) return;
  CHECK(memcmp(p->requests[at] + p->request_lens[at] - len, body, len) == 0);
}

static void test_rpc_json_unary(void) {
  files_bench b;
  e2b_entry_list list;
  e2b_process_list processes;
  bool killed = false;
  rpc_open(&b, E2B_CODEC_JSON);
  memset(&list, 0, sizeof list);
  memset(&processes, 0, sizeof processes);
  /* what servers may write: unknown members, null, numbers as text and text escaped, either spelling of names */
  files_say_text(&b.peer, "200 OK\r\ncontent-type: application/json; charset=utf-8",
                 " {\"next\":[{\"x\":[]}],\"entries\":[\n"
                 "{\"name\":\"\\u00e4\\/\",\"path\":\"/d/a\",\"type\":\"FILE_TYPE_DIRECTORY\",\"size\":\"5368709120\","
                 "\"mode\":\"493\",\"modifiedTime\":\"2026-01-02T03:04:05.5Z\",\"symlinkTarget\":null,"
                 "\"metadata\":{\"k\":\"v\"},\"inode\":7},"
                 "{\"path\":\"/d/b\",\"type\":1,\"size\":7,\"modified_time\":null,\"symlink_target\":\"/t\"},"
                 "{\"path\":\"/d/c\",\"type\":\"FILE_TYPE_SOCKET\",\"metadata\":null}]} ", 0);
  CHECK_INT(e2b_files_list(b.sandbox, "/d", NULL, &list, &b.err), E2B_OK);
  CHECK_REQUEST(&b.peer, 0, RPC_FILES_HEAD("ListDir")
                "content-type: application/json\r\nconnect-protocol-version: 1\r\ncontent-length: 23\r\n\r\n"
                "{\"path\":\"/d\",\"depth\":1}");
  if (CHECK_INT(list.count, 3)) {
    CHECK_STR(list.items[0].name, "\xc3\xa4/");
    CHECK_INT(list.items[0].type, E2B_ENTRY_DIR);
    CHECK_INT(list.items[0].size, 5368709120);
    CHECK_INT(list.items[0].mode, 0755);
    CHECK_INT(list.items[0].modified_time_ns, 1767323045500000000);
    CHECK(list.items[0].symlink_target == NULL && list.items[0].metadata.count == 1);
    CHECK_INT(list.items[1].type, E2B_ENTRY_FILE);
    CHECK_INT(list.items[1].size, 7);
    CHECK_STR(list.items[1].symlink_target, "/t");
    CHECK_INT(list.items[2].type, E2B_ENTRY_UNKNOWN);
    CHECK_STR(list.items[2].path, "/d/c");
  }
  e2b_mem_free(&list.mem);

  rpc_say_json(&b.peer, "{\"processes\":[{\"config\":{\"cmd\":\"a\",\"args\":[\"\\\"\"]},\"pid\":\"4242\",\"tag\":\"\"}]}");
  CHECK_INT(e2b_commands_list(b.sandbox, NULL, &processes, &b.err), E2B_OK);
  CHECK_HAS(peer_asked(&b.peer, 1), "content-length: 2\r\n\r\n{}");
  CHECK(processes.count == 1 && processes.items[0].pid == 4242 && processes.items[0].args.count == 1);
  e2b_mem_free(&processes.mem);

  rpc_say_json(&b.peer, "{}");
  CHECK_INT(e2b_commands_kill(b.sandbox, 4242, NULL, &killed, &b.err), E2B_OK);
  CHECK(killed);
  CHECK_HAS(peer_asked(&b.peer, 2), "\r\n\r\n{\"process\":{\"pid\":4242},\"signal\":\"SIGNAL_SIGKILL\"}");
  rpc_say_json(&b.peer, "{}");
  CHECK_INT(e2b_commands_send_stdin(b.sandbox, 4242, "a\0\xff", 3, NULL, &b.err), E2B_OK);
  CHECK_HAS(peer_asked(&b.peer, 3), "\r\n\r\n{\"process\":{\"pid\":4242},\"input\":{\"stdin\":\"YQD/\"}}");
  CHECK_INT(peer_asked_count(&b.peer), 4);
  files_end(&b);
}

/* Answers that are no answer, and that nothing may be taken for success. */
static void test_rpc_json_bad_answers(void) {
  static const char *const bad[] = {
    "", "{", "[]", "1", "{}{}", "{\"entry\":1}", "{\"entry\":{\"size\":\"x\"}}", "{\"entry\":{\"path\":1}}",
    "{\"entry\":{\"path\":\"/a\"}", "{\"entry\":{\"path\":\"/a\"}} x", "{\"entry\":{\"path\":\"/\\q\"}}", "{}", "null"
  };
  files_bench b;
  e2b_entry_info info;
  size_t i;
  rpc_open(&b, E2B_CODEC_JSON);
  for (i = 0; i < E2B__COUNT(bad); i++) {
    memset(&info, 0, sizeof info);
    rpc_say_json(&b.peer, bad[i]);
    CHECK(codec_case(e2b_files_get_info(b.sandbox, "/a", NULL, &info, &b.err) == E2B_ERR_PROTOCOL, bad[i]));
    CHECK(info.mem.ptr == NULL && b.err.message[0] && b.err.http_status == 200);
  }
  files_say_text(&b.peer, "200 OK\r\ncontent-type: application/proto", "", 0); /* the other codec */
  CHECK_INT(e2b_files_get_info(b.sandbox, "/a", NULL, &info, &b.err), E2B_ERR_PROTOCOL);
  CHECK_HAS(b.err.message, "not JSON but application/proto");
  files_say_text(&b.peer, "200 OK\r\ncontent-type: text/html", "<html>", 0);
  CHECK_INT(e2b_files_get_info(b.sandbox, "/a", NULL, &info, &b.err), E2B_ERR_PROTOCOL);
  CHECK_INT(peer_asked_count(&b.peer), (int)E2B__COUNT(bad) + 2);
  files_end(&b);
}

static void test_rpc_json_stream(void) {
  files_bench b;
  rpc_stream s;
  e2b_command_result result;
  int form;
  rpc_open(&b, E2B_CODEC_JSON);
  for (form = 0; form < 3; form++) { /* as it comes, byte by byte, in chunks */
    rpc_put_command(&s, true);
    if (form == 2) {
      char head[200], all[RPC_STREAM_MAX + 200];
      int len = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\ncontent-type: application/connect+json; charset=utf-8\r\n"
                         "transfer-encoding: chunked\r\n\r\n7\r\n");
      memcpy(all, head, (size_t)len);
      memcpy(all + len, s.bytes, 7);
      len += 7;
      len += snprintf(all + len, 40, "\r\n%x\r\n", (unsigned)(s.len - 7));
      memcpy(all + len, s.bytes + 7, s.len - 7);
      memcpy(all + len + s.len - 7, "\r\n0\r\n\r\n", 7);
      peer_say_n(&b.peer, all, (size_t)len + s.len, PEER_DRIBBLE);
    } else {
      rpc_say_stream(&b.peer, &s, s.len, form ? PEER_DRIBBLE : 0);
    }
    CHECK_INT(rpc_try_run(&b), E2B_OK);
    rpc_check_start_json(&b.peer, form);
  }
  memset(&s, 0, sizeof s);
  s.json = true;
  rpc_put_text(&s, 0, "null");
  rpc_put_text(&s, 0, " {\"event\" : {\"start\":{\"pid\":\"7\",\"x\":{}}},\"x\":null} ");
  rpc_put_text(&s, 0, "{\"event\":{\"data\":{\"stdout\":\"YQ==\"}}}");       /* padded */
  rpc_put_text(&s, 0, "{\"event\":{\"data\":{\"stdout\":\"YmM\"}}}");        /* not padded */
  rpc_put_text(&s, 0, "{\"event\":{\"data\":{\"stdout\":\"+/-_\"}}}");       /* both alphabets */
  rpc_put_text(&s, 0, "{\"event\":{\"data\":{\"stdout\":\"\\u0041A\\/\\/\"}}}");
  rpc_put_text(&s, 0, "{\"event\":{\"data\":{\"stdout\":\"\"}}}");
  rpc_put_text(&s, 0, "{\"event\":{\"data\":{\"stdout\":null,\"stderr\":\"ZQ\"}}}");
  rpc_put_text(&s, 0, "{\"event\":{\"newer\":{\"a\":[1]}}}");
  rpc_put_text(&s, 0, "{\"event\":{\"end\":{\"exit_code\":\"-1\",\"status\":\"signal: \\u006billed\",\"error\":\"e\"}}}");
  rpc_put_text(&s, 2, "{\"metadata\":{}}");
  rpc_say_stream(&b.peer, &s, s.len, 0);
  memset(&result, 0, sizeof result);
  CHECK_INT(e2b_commands_run(b.sandbox, "x", NULL, &result, &b.err), E2B_COMMAND_EXIT);
  CHECK(result.stdout_data.len == 9 && memcmp(result.stdout_data.ptr, "abc\xfb\xff\xbf\x00\x0f\xff", 9) == 0);
  CHECK_STR(result.stderr_data.ptr, "e");
  CHECK_INT(result.exit_code, -1);
  CHECK_STR(result.status, "signal: killed");
  e2b_mem_free(&result.mem);
  files_end(&b);
}

/* The same by pull, in both codecs. */
static void test_rpc_pulled(void) {
  int json;
  for (json = 0; json < 2; json++) {
    files_bench b;
    e2b_command_handle *handle = NULL;
    e2b_command_event event;
    rpc_open(&b, json ? E2B_CODEC_JSON : E2B_CODEC_PROTOBUF);
    rpc_say_command(&b.peer, json);
    CHECK_INT(e2b_commands_start(b.sandbox, "x", NULL, &handle, &b.err), E2B_OK);
    CHECK_INT(e2b_command_handle_pid(handle), 4242);
    CHECK_INT(e2b_command_handle_next(handle, 10000, &event, &b.err), E2B_OK);
    CHECK(event.kind == E2B_EVENT_STDOUT && event.len == 3 && strcmp(event.data, "hi\n") == 0);
    CHECK_INT(e2b_command_handle_next(handle, 10000, &event, &b.err), E2B_OK);
    CHECK(event.kind == E2B_EVENT_STDERR && event.len == 4 && strcmp(event.data, "err\n") == 0);
    CHECK_INT(e2b_command_handle_next(handle, 10000, &event, &b.err), E2B_OK);
    CHECK(event.kind == E2B_EVENT_EXIT && event.exit_code == 0 && event.exited);
    CHECK_INT(e2b_command_handle_next(handle, 10000, &event, &b.err), E2B_EOF);
    e2b_command_handle_free(handle);
    files_end(&b);
  }
}

/* A stream cut anywhere is never a success, whatever the codec; what arrived is kept. */
static void test_rpc_stream_cut(void) {
  int json;
  size_t n;
  for (json = 0; json < 2; json++) {
    files_bench b;
    rpc_stream s;
    rpc_open(&b, json ? E2B_CODEC_JSON : E2B_CODEC_PROTOBUF);
    rpc_put_command(&s, json);
    for (n = 0; n < s.len; n += json ? 3 : 1) {
      peer_clear(&b.peer);
      rpc_say_stream(&b.peer, &s, n, 0);
      CHECK_INT(rpc_try_run(&b), E2B_ERR_TRUNCATED);
      CHECK(b.err.message[0] != 0);
    }
    files_end(&b);
  }
}

/* Every byte changed: whatever comes of it is an error or a result, and the client stays usable. */
static void test_rpc_stream_damaged(void) {
  static const uint8_t masks[] = { 0x01, 0x20, 0x80 };
  int json;
  size_t n;
  for (json = 0; json < 2; json++) {
    files_bench b;
    rpc_stream s;
    rpc_open(&b, json ? E2B_CODEC_JSON : E2B_CODEC_PROTOBUF);
    for (n = 0;; n++) {
      e2b_command_result result;
      e2b_err code;
      rpc_put_command(&s, json);
      if (n >= s.len) break;
      s.bytes[n] ^= masks[n % E2B__COUNT(masks)];
      peer_clear(&b.peer);
      rpc_say_stream(&b.peer, &s, s.len, 0);
      memset(&result, 0, sizeof result);
      code = e2b_commands_run(b.sandbox, "x", NULL, &result, &b.err);
      CHECK(code == E2B_OK || code == E2B_COMMAND_EXIT || b.err.message[0]);
      CHECK(code != E2B_OK || result.exited);
      e2b_mem_free(&result.mem);
    }
    peer_clear(&b.peer);
    rpc_say_command(&b.peer, json);
    CHECK_INT(rpc_try_run(&b), E2B_OK);
    files_end(&b);
  }
}

/* An error says the same in both codecs. */
static void test_rpc_same_errors(void) {
  static const struct {
    const char *status, *body;
    e2b_err code;
  } unary[] = {
    { "404 Not Found\r\ncontent-type: application/json", "{\"code\":\"not_found\",\"message\":\"no such process\"}",
      E2B_ERR_NOT_FOUND },
    { "401 Unauthorized\r\ncontent-type: application/json", "{\"code\":401,\"message\":\"bad token\"}",
      E2B_ERR_UNAUTHENTICATED },
    { "429 Too Many Requests\r\ncontent-type: application/json", "{\"code\":\"resource_exhausted\"}",
      E2B_ERR_RATE_LIMITED },
    { "400 Bad Request\r\ncontent-type: text/html", "<h1>what?</h1>", E2B_ERR_INVALID_ARGUMENT },
    { "501 Not Implemented\r\ncontent-type: application/json", "{\"code\":\"unimplemented\"}", E2B_ERR_NOT_BUILT },
  };
  static const struct {
    const char *end;
    e2b_err code;
  } streams[] = {
    { "{\"error\":{\"code\":\"not_found\",\"message\":\"no \\u003cpid\\u003e\"}}", E2B_ERR_NOT_FOUND },
    { "{\"error\":{\"code\":\"deadline_exceeded\"}}", E2B_ERR_TIMEOUT },
    { "{\"error\":{\"code\":99}}", E2B_ERR_SERVICE },
    { "{\"error\"", E2B_ERR_PROTOCOL },
    { "{}", E2B_ERR_TRUNCATED }, /* no end event */
  };
  files_bench b[2];
  e2b_command_handle *handle;
  rpc_stream s;
  size_t i;
  int json;
  for (json = 0; json < 2; json++) rpc_open(&b[json], json ? E2B_CODEC_JSON : E2B_CODEC_DEFAULT);
  for (i = 0; i < E2B__COUNT(unary) + E2B__COUNT(streams); i++) {
    bool stream = i >= E2B__COUNT(unary);
    e2b_err want = stream ? streams[i - E2B__COUNT(unary)].code : unary[i].code, code;
    for (json = 0; json < 2; json++) {
      if (stream) {
        memset(&s, 0, sizeof s);
        s.json = json;
        rpc_put_text(&s, 2, streams[i - E2B__COUNT(unary)].end);
        rpc_say_stream(&b[json].peer, &s, s.len, 0);
        code = e2b_commands_start(b[json].sandbox, "x", NULL, &handle, &b[json].err);
      } else {
        files_say_text(&b[json].peer, unary[i].status, unary[i].body, 0);
        code = e2b_commands_send_stdin(b[json].sandbox, 1, "x", 1, NULL, &b[json].err);
      }
      CHECK_INT(code, want);
    }
    CHECK_STR(b[1].err.message, b[0].err.message);
    CHECK(b[0].err.code == b[1].err.code && b[0].err.subject == b[1].err.subject);
    CHECK(b[0].err.connect_code == b[1].err.connect_code && b[0].err.http_status == b[1].err.http_status);
    CHECK(b[0].err.phase == b[1].err.phase && b[0].err.maybe_done == b[1].err.maybe_done);
  }
  for (json = 0; json < 2; json++) {
    memset(&s, 0, sizeof s);
    s.json = json;
    rpc_put_vector(&s, "start_response_start");
    rpc_put_text(&s, 0, json ? "{\"event\":{\"data\":{\"stdout\":\"*\"}}}" : "\x0a\x07\x12\x05\x0a\x03hi");
    rpc_say_stream(&b[json].peer, &s, s.len, 0);
    CHECK_INT(rpc_try_run(&b[json]), E2B_ERR_PROTOCOL);
    CHECK_HAS(b[json].err.message, json ? "not valid JSON" : "not valid protobuf");
    files_end(&b[json]);
  }
}

/* A message larger than max_message_bytes ends the stream, one of just that size does not. */
static void test_rpc_message_limit(void) {
  static const char message[] = "{\"event\":{\"start\":{\"pid\":1}}}";
  char bytes[5 + 4097];
  size_t extra;
  for (extra = 0; extra < 2; extra++) {
    files_bench b;
    e2b_command_handle *handle = NULL;
    files_begin(&b);
    b.config.codec = E2B_CODEC_JSON;
    b.config.max_message_bytes = 4096;
    files_open(&b, NULL, NULL);
    memset(bytes, ' ', sizeof bytes);
    memcpy(bytes, "\0\0\0\x10", 4);
    bytes[4] = (char)extra;
    memcpy(bytes + 5, message, sizeof message - 1);
    files_say_body(&b.peer, "200 OK\r\ncontent-type: application/connect+json", bytes, 5 + 4096 + extra, PEER_HANG);
    CHECK_INT(e2b_commands_start(b.sandbox, "x", NULL, &handle, &b.err), extra ? E2B_ERR_LIMIT : E2B_OK);
    e2b_command_handle_free(handle);
    files_end(&b);
  }
}

/* A server that answers 415 gets the request once more, as JSON, and then nothing else. */
static void test_rpc_415_unary(void) {
  files_bench b;
  e2b_entry_list list;
  bool exists = true;
  rpc_open(&b, E2B_CODEC_DEFAULT);
  memset(&list, 0, sizeof list);
  peer_say(&b.peer, RPC_REFUSED, 0);
  rpc_say_json(&b.peer, "{\"entries\":[{\"path\":\"/d/a\",\"size\":\"3\"}]}");
  CHECK_INT(e2b_files_list(b.sandbox, "/d", NULL, &list, &b.err), E2B_OK);
  CHECK(list.count == 1 && list.items[0].size == 3);
  CHECK_INT(peer_asked_count(&b.peer), 2);
  CHECK_REQUEST(&b.peer, 0, RPC_FILES_HEAD("ListDir") "content-type: application/proto\r\n"
                "connect-protocol-version: 1\r\ncontent-length: 6\r\n\r\n\x0a\x02/d\x10\x01");
  CHECK_REQUEST(&b.peer, 1, RPC_FILES_HEAD("ListDir") "content-type: application/json\r\n"
                "connect-protocol-version: 1\r\ncontent-length: 23\r\n\r\n{\"path\":\"/d\",\"depth\":1}");
  e2b_mem_free(&list.mem);
  rpc_say_json(&b.peer, "{}"); /* remembered */
  CHECK_INT(e2b_files_list(b.sandbox, "/d", NULL, &list, &b.err), E2B_OK);
  CHECK_INT(peer_asked_count(&b.peer), 3);
  CHECK_HAS(peer_asked(&b.peer, 2), "content-type: application/json\r\n");
  e2b_mem_free(&list.mem);
  rpc_say_command(&b.peer, true); /* for streams too */
  CHECK_INT(rpc_try_run(&b), E2B_OK);
  CHECK_INT(peer_asked_count(&b.peer), 4);
  rpc_check_start_json(&b.peer, 3);

  rpc_forget(&b, E2B_CODEC_DEFAULT); /* an error that is an answer stays one, when it comes second */
  peer_clear(&b.peer);
  peer_say(&b.peer, RPC_REFUSED, 0);
  files_say_text(&b.peer, "404 Not Found\r\ncontent-type: application/json", "{\"code\":\"not_found\"}", 0);
  CHECK_INT(e2b_files_exists(b.sandbox, "/x", NULL, &exists, &b.err), E2B_OK);
  CHECK(!exists);
  CHECK_INT(peer_asked_count(&b.peer), 2);
  CHECK_HAS(peer_asked(&b.peer, 1), "\r\n\r\n{\"path\":\"/x\"}");
  files_end(&b);
}

/* The same for a Start: sent twice, run once. */
static void test_rpc_415_start(void) {
  files_bench b;
  rpc_stream s;
  e2b_command_handle *handle = NULL;
  int form, accepted;
  rpc_open(&b, E2B_CODEC_DEFAULT);
  rpc_put_command(&s, true);
  for (form = 0; form < 3; form++) { /* the connection stays, closes as it said, closes without a word */
    if (form) rpc_forget(&b, E2B_CODEC_DEFAULT);
    peer_clear(&b.peer);
    if (form == 1)
      peer_say(&b.peer, "HTTP/1.1 415 X\r\nconnection: close\r\ncontent-length: 4\r\n\r\nnone", PEER_CLOSE);
    else
      peer_say(&b.peer, RPC_REFUSED, form ? PEER_CLOSE : 0);
    rpc_say_stream(&b.peer, &s, s.len, 0);
    accepted = b.peer.accepted;
    CHECK_INT(rpc_try_run(&b), E2B_OK);
    CHECK_INT(b.peer.accepted, accepted + 2); /* who refuses may close without a word: a connection of its own */
    CHECK_INT(peer_asked_count(&b.peer), 2);
    CHECK_REQUEST(&b.peer, 0, RPC_HEAD("/process.Process/Start") "keepalive-ping-interval: 50\r\n"
                  "content-type: application/connect+proto\r\nconnect-protocol-version: 1\r\ncontent-length: 51\r\n\r\n"
                  "\0\0\0\0\x2e\x0a\x2a\x0a\x09/bin/bash\x12\x02-l\x12\x02-c\x12\x07" "echo hi\x1a\x06\x0a\x01"
                  "A\x12\x01" "1\"\x04/tmp\x20\0");
    rpc_check_start_json(&b.peer, 1);
    rpc_say_stream(&b.peer, &s, s.len, 0); /* remembered */
    CHECK_INT(e2b_commands_start(b.sandbox, "x", NULL, &handle, &b.err), E2B_OK);
    CHECK_INT(peer_asked_count(&b.peer), 3);
    CHECK_HAS(peer_asked(&b.peer, 2), "content-type: application/connect+json\r\n");
    e2b_command_handle_free(handle);
  }
  files_end(&b);
}

/* Who sent protobuf before the refusal was known is refused as well, and goes on as well: each call is sent twice. */
static void test_rpc_415_at_once(void) {
  files_bench b;
  rpc_stream s;
  e2b_run_opts opts;
  e2b_op ops[3];
  e2b_command_result results[3];
  e2b_err code;
  int i, json = 0;
  rpc_open(&b, E2B_CODEC_DEFAULT);
  memset(&opts, 0, sizeof opts);
  memset(results, 0, sizeof results);
  b.peer.refusal = RPC_REFUSED;
  rpc_put_command(&s, true);
  rpc_say_stream(&b.peer, &s, s.len, PEER_REPEAT);
  for (i = 0; i < 3; i++) {
    opts.call.op = &ops[i];
    CHECK_INT(e2b_commands_run(b.sandbox, "x", &opts, &results[i], &b.err), E2B_PENDING);
  }
  for (i = 0; i < 3; i++) {
    while ((code = e2b_op_poll(b.client, ops[i], &b.err)) == E2B_PENDING) (void)e2b_client_poll(b.client, -1);
    CHECK_INT(code, E2B_OK);
    CHECK_STR(results[i].stdout_data.ptr, "hi\n");
    e2b_mem_free(&results[i].mem);
  }
  CHECK_INT(peer_asked_count(&b.peer), 6);
  for (i = 0; i < 6; i++) json += strstr(peer_asked(&b.peer, i), "connect+json\r\n") ? 1 : 0;
  CHECK_INT(json, 3);
  files_end(&b);
}

/* 415 is an error where it means something else: for JSON, and when nothing but protobuf was wanted. */
static void test_rpc_415_is_final(void) {
  static const struct {
    e2b_codec codec;
    int requests;
  } cases[] = { { E2B_CODEC_DEFAULT, 2 }, { E2B_CODEC_JSON, 1 }, { E2B_CODEC_PROTOBUF, 1 } };
  files_bench b;
  bool exists;
  size_t i;
  rpc_open(&b, E2B_CODEC_DEFAULT);
  for (i = 0; i < E2B__COUNT(cases); i++) {
    rpc_forget(&b, cases[i].codec);
    peer_clear(&b.peer);
    peer_say(&b.peer, RPC_REFUSED, PEER_REPEAT);
    CHECK_INT(rpc_try_run(&b), E2B_ERR_SERVICE);
    CHECK_INT(b.err.http_status, 415);
    CHECK_HAS(b.err.message, "415");
    CHECK_INT(peer_asked_count(&b.peer), cases[i].requests);
    rpc_forget(&b, cases[i].codec);
    CHECK_INT(e2b_files_exists(b.sandbox, "/x", NULL, &exists, &b.err), E2B_ERR_SERVICE);
    CHECK_INT(peer_asked_count(&b.peer), 2 * cases[i].requests);
    peer_clear(&b.peer); /* content has no codec: nothing is sent again */
    peer_say(&b.peer, RPC_REFUSED, PEER_REPEAT);
    CHECK_INT(e2b_files_write(b.sandbox, "/x", "x", 1, NULL, NULL, &b.err), E2B_ERR_SERVICE);
    CHECK_INT(peer_asked_count(&b.peer), 1);
  }
  files_end(&b);
}

/* The second request lives within the timeout of the call, and dies with it. */
static void test_rpc_415_deadline(void) {
  files_bench b;
  e2b_run_opts opts;
  e2b_command_handle *handle = NULL;
  e2b_command_result result;
  e2b_op op;
  rpc_open(&b, E2B_CODEC_DEFAULT);
  memset(&opts, 0, sizeof opts);
  memset(&result, 0, sizeof result);
  peer_say(&b.peer, RPC_REFUSED, 0);
  peer_say(&b.peer, "", PEER_HANG);
  opts.call.timeout_ms = 300;
  CHECK_INT(e2b_commands_start(b.sandbox, "x", &opts, &handle, &b.err), E2B_ERR_TIMEOUT);
  CHECK(b.err.maybe_done && handle == NULL);
  CHECK_INT(peer_asked_count(&b.peer), 2);
  rpc_forget(&b, E2B_CODEC_DEFAULT);
  peer_clear(&b.peer);
  peer_say(&b.peer, RPC_REFUSED, 0);
  peer_say(&b.peer, "", PEER_HANG);
  opts.call.timeout_ms = 0;
  opts.call.op = &op;
  CHECK_INT(e2b_commands_run(b.sandbox, "x", &opts, &result, &b.err), E2B_PENDING);
  FILES_UNTIL(b.client, peer_asked_count(&b.peer) == 2);
  e2b_op_cancel(b.client, op);
  peer_say(&b.peer, "", PEER_HANG);
  CHECK_INT(e2b_commands_run(b.sandbox, "x", &opts, &result, &b.err), E2B_PENDING);
  FILES_UNTIL(b.client, peer_asked_count(&b.peer) == 3);
  files_end(&b); /* with a call under way */
}

static void test_rpc_codec_option(void) {
  e2b_client_config config;
  e2b_error err;
  memset(&config, 0, sizeof config);
  config.no_env = true;
  config.codec = (e2b_codec)3;
  CHECK(e2b_client_create(&config, &err) == NULL);
  CHECK_INT(err.code, E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(err.message, "codec");
}

/* Every allocation of an RPC fails once: the call fails cleanly, the next one works. */
static void rpc_each_allocation(e2b_err (*attempt)(files_bench *b), bool stream, e2b_codec codec) {
  files_bench b;
  rpc_stream s;
  size_t n;
  bool reached = true;
  files_begin(&b);
  b.config.codec = codec;
  b.peer.refusal = RPC_REFUSED;
  rpc_put_command(&s, true);
  if (stream) rpc_say_stream(&b.peer, &s, s.len, PEER_REPEAT);
  else files_say_text(&b.peer, "200 OK\r\ncontent-type: application/json", "{\"entries\":[{\"path\":\"/a\"}]}",
                      PEER_REPEAT);
  for (n = 1; reached && n < 1000; n++) {
    e2b_err code;
    files_open(&b, NULL, NULL);
    b.heap.fail_at = b.heap.calls + n;
    code = attempt(&b);
    reached = b.heap.calls >= b.heap.fail_at;
    CHECK(code == E2B_OK || (reached && code == E2B_ERR_NO_MEMORY && b.err.message[0]));
    b.heap.fail_at = 0;
    CHECK_INT(attempt(&b), E2B_OK);
    files_close(&b);
    memset(&b.heap, 0, sizeof b.heap);
    memset(&b.err, 0, sizeof b.err);
  }
  CHECK(n > 10 && n < 1000);
  peer_stop(&b.peer);
}

static void test_rpc_no_memory(void) {
  rpc_each_allocation(files_try_list, false, E2B_CODEC_JSON);
  rpc_each_allocation(files_try_list, false, E2B_CODEC_DEFAULT);
  rpc_each_allocation(rpc_try_run, true, E2B_CODEC_JSON);
  rpc_each_allocation(rpc_try_run, true, E2B_CODEC_DEFAULT);
}

/* ================================================================================================================== */
/* >>>> openkruise */
/* ================================================================================================================== */

/* Clocks that stand where a test puts them: the wall clock, and how much the other one is ahead. */
static int64_t ok_unix_s;
static uint64_t ok_ahead_ms;

static int64_t ok_unix_time(void *user) {
  (void)user;
  return ok_unix_s;
}

static uint64_t ok_now_ms(void *user) {
  (void)user;
  return now_ms() + ok_ahead_ms;
}

#define OK_NOW 1700000000

/* A JWT that nobody signed. iat 0 = without. Good until the 8th next. */
static const char *ok_jwt(long long iat, long long exp, const char *mark) {
  static char texts[8][400];
  static unsigned at;
  char *text = texts[at++ % 8], claims[160];
  e2b__mem mem;
  e2b__buf buf;
  e2b__mem_init(&mem, NULL);
  e2b__buf_init(&buf, &mem, 4096);
  if (iat) snprintf(claims, sizeof claims, "{\"iat\":%lld,\"exp\":%lld,\"m\":\"%s\"}", iat, exp, mark);
  else snprintf(claims, sizeof claims, "{\"exp\":%lld,\"m\":\"%s\"}", exp, mark);
  e2b__base64_encode(&buf, (const uint8_t *)claims, strlen(claims), false);
  snprintf(text, sizeof texts[0], "eyJhbGciOiJIUzI1NiJ9.%.*s.sig-%s", (int)buf.len, (char *)buf.data, mark);
  e2b__buf_free(&buf);
  return text;
}

/* What the control plane says to a refresh, with the time of expiry as it reports it. */
static const char *ok_refreshed(const char *token, long long reported) {
  char body[600], when[64];
  e2b__mem mem;
  e2b__buf text;
  e2b__timestamp t;
  e2b__mem_init(&mem, NULL);
  e2b__buf_init(&text, &mem, 64);
  t.seconds = reported;
  t.nanos = 0;
  e2b__time_format(t, &text);
  snprintf(when, sizeof when, "%s", (const char *)e2b__buf_cstr(&text));
  e2b__buf_free(&text);
  snprintf(body, sizeof body, "{\"trafficAccessToken\":\"%s\",\"trafficAccessTokenExpiration\":\"%s\"}\n", token, when);
  return sb_json(200, body);
}

static const char *ok_token_for(long long exp, const char *mark) {
  return ok_refreshed(ok_jwt(OK_NOW, exp, mark), exp);
}

/* A client of OpenKruise at standing clocks, and a scripted one of those. */
static void ok_open(sb_world *w) {
  e2b_client_config config;
  memset(&config, 0, sizeof config);
  ok_unix_s = OK_NOW;
  ok_ahead_ms = 0;
  config.protocol = E2B_PROTOCOL_PRIVATE;
  config.unix_time_fn = ok_unix_time;
  config.now_ms_fn = ok_now_ms;
  sb_open(w, &config);
}

static e2b_sandbox *ok_attach(sb_world *w, const char *token) {
  e2b_attach_opts opts;
  e2b_sandbox *sandbox = NULL;
  memset(&opts, 0, sizeof opts);
  opts.base_url = w->server.url;
  opts.traffic_access_token = token;
  opts.envd_version = "0.2.10";
  CHECK_INT(e2b_sandbox_attach(w->client, "ns--s", &opts, &sandbox, &w->err), E2B_OK);
  return sandbox;
}

#define OK_FLAG "\"metadata\":{\"" E2B_JWT_AUTH_METADATA_KEY "\":\"true\"}"

/* A handle that has to fetch its token. */
static e2b_sandbox *ok_connect(sb_world *w) {
  e2b_sandbox *sandbox = NULL;
  sb_script(&w->server, sb_json(200, "{\"sandboxID\":\"ns--s\",\"envdVersion\":\"0.2.10\"," OK_FLAG "}"), NULL);
  CHECK_INT(e2b_sandbox_connect(w->client, "ns--s", NULL, &sandbox, &w->err), E2B_OK);
  CHECK_INT(peer_asked_count(&w->server), 1);
  CHECK(sandbox && sandbox->traffic);
  return sandbox;
}

#define OK_REFRESH "POST /sandboxes/ns--s/traffic-access-token HTTP/1.1\r\n"

static bool ok_has_token(sb_world *w, int request, const char *mark) {
  char want[32];
  snprintf(want, sizeof want, ".sig-%s\r\n", mark);
  return strstr(peer_asked(&w->server, request), E2B_TRAFFIC_TOKEN_HEADER ": eyJ") &&
         strstr(peer_asked(&w->server, request), want);
}

static e2b_err ok_ping(sb_world *w, e2b_sandbox *sandbox) {
  bool running;
  return e2b_sandbox_is_running(sandbox, NULL, &running, &w->err);
}

static void test_traffic_jwt(void) {
  static const struct {
    const char *token;
    int64_t issued, expires; /* 0 = not a JWT */
  } rows[] = {
    { "h.eyJleHAiOjE3MDAwMDAzMDAsImlhdCI6MTcwMDAwMDAwMH0.s", 1700000000, 1700000300 },
    { "h.eyJleHAiOjE3MDAwMDAzMDAsImlhdCI6MTcwMDAwMDAwMH0=.s", 1700000000, 1700000300 }, /* padded */
    { "h.eyJleHAiOjE3MDAwMDAzMDB9", 7, 1700000300 },      /* no signature, no iat */
    { "h.eyJleHAiOjE3MDAwMDAzMDAuNX0.s", 7, 1700000300 }, /* 1700000300.5 */
    { "h.eyJleHAiOiIxNzAwMDAwMzAwIn0.s", 0, 0 },          /* a string */
    { "h.eyJhIjoxfQ.s", 0, 0 },                           /* no exp */
    { "h.WzFd.s", 0, 0 },                                 /* [1] */
    { "h.eyJleHA.s", 0, 0 },                              /* cut */
    { "h.?.s", 0, 0 },        { "h..s", 0, 0 },           { "opaque", 0, 0 }, { "a.b", 0, 0 }, { "", 0, 0 }, { ".", 0, 0 },
  };
  test_heap heap;
  e2b__mem mem;
  size_t i;
  heap_mem(&heap, &mem);
  for (i = 0; i < E2B__COUNT(rows); i++) {
    int64_t issued = 0, expires = 0;
    e2b_err code = e2b__jwt_read(&mem, e2b__str(rows[i].token), 7, &issued, &expires);
    CHECK_INT(code, rows[i].expires ? E2B_OK : E2B_ERR_PROTOCOL);
    if (code == E2B_OK) CHECK(issued == rows[i].issued && expires == rows[i].expires);
  }
  heap.calls = 0;
  heap.fail_at = 1;
  {
    int64_t issued, expires;
    CHECK_INT(e2b__jwt_read(&mem, e2b__str(rows[0].token), 7, &issued, &expires), E2B_ERR_NO_MEMORY);
  }
  HEAP_CHECK_EMPTY(&heap);
}

/* When the next token is asked for: a fifth of the life before its end, within limits, with a jitter of a tenth. */
static void test_traffic_schedule(void) {
  static const struct {
    int64_t life, ahead_min, ahead_max;
  } rows[] = { { 3153600000, 300, 330 }, { 1500, 300, 330 }, { 1000, 200, 220 }, { 300, 60, 66 }, { 100, 50, 50 },
               { 2, 1, 1 },              { 0, 0, 0 } };
  sb_world w;
  e2b_sandbox *sandbox;
  size_t i;
  int k;
  ok_open(&w);
  sandbox = ok_attach(&w, ok_jwt(OK_NOW, OK_NOW + 300, "a"));
  for (i = 0; i < E2B__COUNT(rows); i++) {
    for (k = 0; k < 20; k++) {
      int64_t expires = OK_NOW + rows[i].life, ahead;
      CHECK(e2b__traffic_set(sandbox->traffic, e2b__str("t"), OK_NOW, expires));
      ahead = expires - sandbox->traffic->refresh;
      CHECK(ahead >= rows[i].ahead_min && ahead <= rows[i].ahead_max);
    }
  }
  sb_close(&w);
}

/* Every kind of request carries the token; one that is no JWT is carried by none; a header of one's own wins. */
static void test_traffic_sent(void) {
  static const e2b_kv own[] = { { "E2B-Traffic-Access-Token", "own" } };
  e2b_process_list list = { { 0 }, NULL, 0 };
  e2b_buf buf = { { 0 }, NULL, 0 };
  e2b_file_stream *stream;
  e2b_sandbox *sandbox;
  e2b_call call = { 0 };
  bool flag;
  int i, kind;
  sb_world w;
  ok_open(&w);
  for (kind = 0; kind < 2; kind++) {
    sb_script(&w.server, sb_answer(404, "", "{}"), NULL);
    sandbox = ok_attach(&w, kind ? "opaque-token" : ok_jwt(OK_NOW, OK_NOW + 3600, "a"));
    CHECK_HAS(e2b_sandbox_traffic_access_token(sandbox), kind ? "opaque-token" : ".sig-a");
    (void)e2b_sandbox_is_running(sandbox, NULL, &flag, NULL);
    (void)e2b_commands_list(sandbox, NULL, &list, NULL);
    (void)e2b_commands_run(sandbox, "true", NULL, NULL, NULL);
    (void)e2b_commands_kill(sandbox, 1, NULL, NULL, NULL);
    (void)e2b_files_exists(sandbox, "/x", NULL, &flag, NULL);
    (void)e2b_files_read(sandbox, "/x", NULL, &buf, NULL);
    (void)e2b_files_write(sandbox, "/x", "y", 1, NULL, NULL, NULL);
    (void)e2b_files_read_stream(sandbox, "/x", NULL, &stream, NULL);
    CHECK_INT(peer_asked_count(&w.server), 8);
    for (i = 0; i < 8; i++) CHECK_INT(ok_has_token(&w, i, "a") || strstr(peer_asked(&w.server, i), "traffic"), !kind);
    call.headers.items = own;
    call.headers.count = 1;
    (void)e2b_sandbox_is_running(sandbox, &call, &flag, NULL);
    CHECK_HAS(peer_asked(&w.server, 8), "\r\ne2b-traffic-access-token: own\r\n");
    CHECK(!ok_has_token(&w, 8, "a"));
    (void)e2b_sandbox_get_info(sandbox, NULL, NULL, NULL);
    (void)e2b_sandbox_kill(sandbox, NULL, NULL, NULL); /* to the control plane: no token */
    CHECK(!strstr(peer_asked(&w.server, 9), "traffic"));
    if (kind) CHECK_INT(e2b_sandbox_refresh_traffic_access_token(sandbox, NULL, NULL, &w.err), E2B_ERR_BAD_STATE);
    e2b_sandbox_free(sandbox);
    e2b_mem_free(&list.mem);
    e2b_mem_free(&buf.mem);
  }
  sb_close(&w);
}

/* Twenty calls that need a token make one refresh, and all use what it gives. */
static void test_traffic_one_refresh(void) {
  enum { CALLS = 20 };
  e2b_call call = { 0 };
  e2b_sandbox *sandbox;
  done dones[CALLS];
  bool running[CALLS];
  int i, refreshes = 0;
  sb_world w;
  ok_open(&w);
  sandbox = ok_connect(&w);
  memset(dones, 0, sizeof dones);
  sb_script(&w.server, ok_token_for(OK_NOW + 600, "one"), sb_answer(204, "", ""));
  call.on_done = on_done;
  for (i = 0; i < CALLS; i++) {
    call.user = &dones[i];
    CHECK_INT(e2b_sandbox_is_running(sandbox, &call, &running[i], &w.err), E2B_PENDING);
  }
  CHECK_INT(e2b_client_drain(w.client, 10000), E2B_OK);
  CHECK_INT(peer_asked_count(&w.server), CALLS + 1);
  for (i = 0; i < CALLS + 1; i++) {
    if (strncmp(peer_asked(&w.server, i), OK_REFRESH, strlen(OK_REFRESH)) == 0) refreshes++;
    else CHECK(ok_has_token(&w, i, "one"));
  }
  CHECK_INT(refreshes, 1);
  SB_CHECK_REQUEST(&w.server, 0,
                   OK_REFRESH SB_HEAD "content-type: application/json\r\ncontent-length: 0\r\n\r\n"); /* no body */
  for (i = 0; i < CALLS; i++) CHECK(dones[i].count == 1 && dones[i].err.code == E2B_OK && running[i]);
  CHECK_HAS(e2b_sandbox_traffic_access_token(sandbox), ".sig-one");
  sb_close(&w);
}

/* A token that is due is used while the next one is fetched. One that is about to expire is not. */
static void test_traffic_renewal(void) {
  e2b_sandbox *sandbox;
  int tries;
  sb_world w;
  ok_open(&w);
  w.config.max_connections = 1; /* one after the other */
  w.config.unix_time_fn = ok_unix_time;
  e2b_client_free(w.client);
  w.client = e2b_client_create(&w.config, &w.err);
  sandbox = ok_attach(&w, ok_jwt(OK_NOW, OK_NOW + 1000, "a"));
  sb_script(&w.server, sb_answer(204, "", ""), NULL);
  ok_unix_s = OK_NOW + 779; /* 220 before the end at the earliest */
  CHECK_INT(ok_ping(&w, sandbox), E2B_OK);
  CHECK_INT(peer_asked_count(&w.server), 1);
  CHECK(ok_has_token(&w, 0, "a"));

  sb_script(&w.server, sb_answer(204, "", ""), ok_token_for(OK_NOW + 2000, "b"));
  ok_unix_s = OK_NOW + 801;
  CHECK_INT(ok_ping(&w, sandbox), E2B_OK);
  CHECK(ok_has_token(&w, 0, "a"));
  for (tries = 0; tries < 100 && sandbox->traffic->refreshing; tries++) (void)e2b_client_poll(w.client, 100);
  CHECK_HAS(e2b_sandbox_traffic_access_token(sandbox), ".sig-b");
  sb_script(&w.server, sb_answer(204, "", ""), NULL);
  CHECK_INT(ok_ping(&w, sandbox), E2B_OK);
  CHECK_INT(peer_asked_count(&w.server), 1);
  CHECK(ok_has_token(&w, 0, "b"));

  sb_script(&w.server, ok_token_for(OK_NOW + 3000, "c"), sb_answer(204, "", ""));
  ok_unix_s = OK_NOW + 1995;
  CHECK_INT(ok_ping(&w, sandbox), E2B_OK);
  CHECK_INT(peer_asked_count(&w.server), 2);
  CHECK(ok_has_token(&w, 1, "c"));
  sb_close(&w);
}

/* Refreshes that fail: nothing is sent without a token, the next attempt waits, and no word of the answer gets out. */
static void test_traffic_refused(void) {
  static const char *const plain[] = { "HTTP/1.1 409 X\r\ncontent-length: 12\r\n\r\nsecret-words",
                                       "HTTP/1.1 401 X\r\ncontent-length: 12\r\n\r\nsecret-words",
                                       "HTTP/1.1 404 X\r\ncontent-length: 12\r\n\r\nsecret-words",
                                       "HTTP/1.1 503 X\r\nretry-after: 7\r\ncontent-length: 12\r\n\r\nsecret-words",
                                       "HTTP/1.1 503 X\r\nretry-after: Wed, 21 Oct 2015 07:28:00 GMT\r\ncontent-length: 0\r\n\r\n",
                                       "HTTP/1.1 200 X\r\ncontent-length: 12\r\n\r\nsecret-words",
                                       "HTTP/1.1 200 X\r\ncontent-length: 2\r\n\r\n{}",
                                       SB_DROP };
  static const int statuses[] = { 409, 401, 404, 503, 503, 200, 200, 0, 200, 200, 200, 200 };
  size_t i;
  for (i = 0; i < E2B__COUNT(statuses); i++) {
    e2b_traffic_token token;
    const char *answer = i < E2B__COUNT(plain) ? plain[i] : NULL;
    bool late = i == 3; /* Retry-After */
    e2b_sandbox *sandbox;
    sb_world w;
    ok_open(&w);
    sandbox = ok_connect(&w);
    if (i == 8) answer = ok_refreshed(ok_jwt(OK_NOW, OK_NOW + 600, "secret-words"), OK_NOW + 606); /* two different ends */
    if (i == 9) answer = ok_token_for(OK_NOW, "secret-words");                                      /* over */
    if (i == 10) answer = ok_refreshed("secret-words", OK_NOW + 600);                               /* no JWT */
    if (i == 11) answer = ok_refreshed("", OK_NOW + 600);
    sb_script(&w.server, answer, NULL);
    CHECK_INT(ok_ping(&w, sandbox), E2B_ERR_TRAFFIC_TOKEN_EXPIRED);
    CHECK_INT(w.err.http_status, statuses[i]);
    CHECK_INT(w.err.retry_after_ms, late ? 7000 : 0);
    CHECK(!strstr(w.err.message, "secret-words") && !w.err.maybe_done);
    CHECK_INT(peer_asked_count(&w.server), i == 7 ? 2 : 1); /* what was cut is asked for again, once */
    sb_script(&w.server, answer, NULL);
    ok_ahead_ms = late ? 6800 : 800;
    CHECK_INT(ok_ping(&w, sandbox), E2B_ERR_TRAFFIC_TOKEN_EXPIRED);
    CHECK_INT(peer_asked_count(&w.server), 0);
    ok_ahead_ms = late ? 7100 : 1100;
    CHECK_INT(ok_ping(&w, sandbox), E2B_ERR_TRAFFIC_TOKEN_EXPIRED);
    CHECK(peer_asked_count(&w.server) > 0);
    CHECK_INT(e2b_sandbox_refresh_traffic_access_token(sandbox, NULL, NULL, &w.err), /* does not wait for the back-off */
              i == 7 ? E2B_ERR_CLOSED : E2B_ERR_TRAFFIC_TOKEN_REFRESH);
    CHECK_INT(w.err.http_status, statuses[i]);
    memset(&token, 0, sizeof token);
    CHECK_INT(e2b_api_refresh_traffic_access_token(w.client, "ns--s", NULL, &token, &w.err),
              i == 7 ? E2B_ERR_CLOSED : E2B_ERR_TRAFFIC_TOKEN_REFRESH);
    CHECK_INT(w.err.http_status, statuses[i]);
    CHECK_INT(w.err.retry_after_ms, late ? 7000 : 0);
    CHECK(!strstr(w.err.message, "secret-words") && !token.token && !token.mem.ptr);
    sb_script(&w.server, ok_token_for(OK_NOW + 600, "good"), sb_answer(204, "", ""));
    ok_ahead_ms += 60000;
    CHECK_INT(ok_ping(&w, sandbox), E2B_OK);
    CHECK(ok_has_token(&w, 1, "good"));
    sb_close(&w);
  }
}

/* 1, 2, 4 ... 30 seconds; meanwhile the old token is used, until it has expired. */
static void test_traffic_back_off(void) {
  static const uint32_t waits[] = { 1, 2, 4, 8, 16, 30, 30 };
  e2b_sandbox *sandbox;
  size_t i;
  sb_world w;
  ok_open(&w);
  sandbox = ok_attach(&w, ok_jwt(OK_NOW - 1000, OK_NOW + 20, "old"));
  w.server.health = "HTTP/1.1 204 X\r\n\r\n";
  sb_script(&w.server, sb_answer(503, "", ""), NULL);
  for (i = 0; i < E2B__COUNT(waits); i++) {
    int tries;
    CHECK_INT(ok_ping(&w, sandbox), E2B_OK); /* starts a refresh that fails */
    for (tries = 0; tries < 100 && sandbox->traffic->refreshing; tries++) (void)e2b_client_poll(w.client, 100);
    CHECK_INT(peer_asked_count(&w.server), i + 1);
    ok_ahead_ms += waits[i] * 1000 - 300;
    CHECK_INT(ok_ping(&w, sandbox), E2B_OK);
    CHECK(!sandbox->traffic->refreshing);
    ok_ahead_ms += 400;
  }
  ok_unix_s = OK_NOW + 20;
  CHECK_INT(ok_ping(&w, sandbox), E2B_ERR_TRAFFIC_TOKEN_EXPIRED);
  CHECK_HAS(w.err.message, "has expired");
  CHECK_INT(w.err.http_status, 503);
  CHECK_INT(peer_asked_count(&w.server), i + 1);
  CHECK_HAS(e2b_sandbox_traffic_access_token(sandbox), ".sig-old");
  sb_close(&w);
}

/* Refreshes that were asked for: shared, and not ended by who asked. */
static void test_traffic_forced(void) {
  e2b_call call = { 0 };
  e2b_traffic_token token;
  e2b_sandbox *sandbox;
  const char *first = NULL, *second = NULL;
  done a, b;
  e2b_op op;
  bool running;
  char storage[16];
  int tries;
  sb_world w;
  ok_open(&w);
  sandbox = ok_attach(&w, ok_jwt(OK_NOW, OK_NOW + 3600, "a"));
  sb_script(&w.server, ok_token_for(OK_NOW + 3600, "b"), NULL);
  CHECK_INT(e2b_sandbox_refresh_traffic_access_token(sandbox, NULL, &first, &w.err), E2B_OK);
  CHECK_STR(first, e2b_sandbox_traffic_access_token(sandbox));
  CHECK_HAS(first, ".sig-b");
  CHECK_INT(e2b_sandbox_refresh_traffic_access_token(sandbox, NULL, NULL, &w.err), E2B_OK);
  CHECK_INT(peer_asked_count(&w.server), 2);

  sb_script(&w.server, ok_token_for(OK_NOW + 3600, "c"), NULL);
  memset(&a, 0, sizeof a);
  memset(&b, 0, sizeof b);
  call.on_done = on_done;
  call.user = &a;
  CHECK_INT(e2b_sandbox_refresh_traffic_access_token(sandbox, &call, &first, &w.err), E2B_PENDING);
  call.user = &b;
  CHECK_INT(e2b_sandbox_refresh_traffic_access_token(sandbox, &call, &second, &w.err), E2B_PENDING);
  CHECK_INT(e2b_client_drain(w.client, 10000), E2B_OK);
  CHECK(a.count == 1 && b.count == 1 && a.err.code == E2B_OK && b.err.code == E2B_OK && first == second);
  CHECK_INT(peer_asked_count(&w.server), 1);

  sb_script(&w.server, ok_token_for(OK_NOW + 3600, "d"), NULL);
  memset(&call, 0, sizeof call);
  call.op = &op;
  first = NULL;
  CHECK_INT(e2b_sandbox_refresh_traffic_access_token(sandbox, &call, &first, &w.err), E2B_PENDING);
  e2b_op_cancel(w.client, op);
  for (tries = 0; tries < 100 && sandbox->traffic->refreshing; tries++) (void)e2b_client_poll(w.client, 100);
  CHECK_HAS(e2b_sandbox_traffic_access_token(sandbox), ".sig-d");
  CHECK(first == NULL);

  sb_script(&w.server, SB_HANG, NULL);
  memset(&call, 0, sizeof call);
  call.timeout_ms = 50;
  CHECK_INT(e2b_sandbox_refresh_traffic_access_token(sandbox, &call, NULL, &w.err), E2B_ERR_TIMEOUT);
  CHECK(sandbox->traffic->refreshing);
  CHECK_INT(e2b_sandbox_is_running(sandbox, &call, &running, &w.err), E2B_ERR_TIMEOUT);
  CHECK_INT(w.err.phase, E2B_PHASE_HEADERS); /* the old one is used: it waits at the peer, not in the queue */
  sb_script(&w.server, SB_HANG, NULL);
  e2b_sandbox_free(sandbox); /* with a refresh under way */

  memset(&token, 0, sizeof token);
  sb_script(&w.server, ok_token_for(OK_NOW + 3600, "e"), NULL);
  CHECK_INT(e2b_api_refresh_traffic_access_token(w.client, "ns--s", NULL, &token, &w.err), E2B_OK);
  CHECK_HAS(token.token, ".sig-e");
  CHECK_INT(token.expires_at_ms, (int64_t)(OK_NOW + 3600) * 1000);
  SB_CHECK_REQUEST(&w.server, 0, OK_REFRESH SB_HEAD "content-type: application/json\r\ncontent-length: 0\r\n\r\n");
  e2b_mem_free(&token.mem);
  token.mem.ptr = storage;
  token.mem.cap = sizeof storage;
  token.mem.fixed = true;
  CHECK_INT(e2b_api_refresh_traffic_access_token(w.client, "ns--s", NULL, &token, &w.err), E2B_ERR_BUFFER_TOO_SMALL);
  CHECK(token.mem.len > sizeof storage);
  CHECK_INT(e2b_api_refresh_traffic_access_token(w.client, "", NULL, &token, &w.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_api_refresh_traffic_access_token(w.client, "x", NULL, NULL, &w.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_sandbox_refresh_traffic_access_token(NULL, NULL, NULL, &w.err), E2B_ERR_INVALID_ARGUMENT);
  sb_close(&w);
}

typedef struct ok_provider {
  int calls, result;
  const char *text, *asked;
} ok_provider;

static int ok_provide(void *user, const char *sandbox_id, char *token, size_t cap) {
  ok_provider *p = (ok_provider *)user;
  size_t len = p->text ? strlen(p->text) : 0;
  p->calls++;
  CHECK_STR(sandbox_id, "ns--s");
  CHECK(cap >= 4096);
  if (len) memcpy(token, p->text, len);
  return p->text ? (int)len : p->result;
}

static void test_traffic_provider(void) {
  e2b_client_config config;
  ok_provider p;
  e2b_sandbox *sandbox;
  sb_world w;
  memset(&config, 0, sizeof config);
  memset(&p, 0, sizeof p);
  config.traffic_token_provider = ok_provide;
  config.traffic_token_user = &p;
  sb_open(&w, &config);
  sandbox = ok_attach(&w, ok_jwt(1, 2, "never"));
  p.text = "mine-1";
  CHECK_INT(ok_ping(&w, sandbox), E2B_OK);
  CHECK_HAS(peer_asked(&w.server, 0), "\r\n" E2B_TRAFFIC_TOKEN_HEADER ": mine-1\r\n");
  p.text = "mine-2";
  CHECK_INT(ok_ping(&w, sandbox), E2B_OK);
  CHECK_HAS(peer_asked(&w.server, 1), "\r\n" E2B_TRAFFIC_TOKEN_HEADER ": mine-2\r\n");
  p.text = NULL;
  CHECK_INT(ok_ping(&w, sandbox), E2B_OK);
  CHECK(!strstr(peer_asked(&w.server, 2), "traffic"));
  p.result = -5;
  CHECK_INT(ok_ping(&w, sandbox), E2B_ERR_TRAFFIC_TOKEN_REFRESH);
  CHECK_INT(w.err.sys_code, -5);
  p.result = 5000;
  CHECK_INT(ok_ping(&w, sandbox), E2B_ERR_TRAFFIC_TOKEN_REFRESH);
  p.text = "a\r\nb";
  CHECK_INT(ok_ping(&w, sandbox), E2B_ERR_TRAFFIC_TOKEN_REFRESH);
  CHECK_INT(peer_asked_count(&w.server), 3);
  CHECK(p.calls >= 6);
  CHECK_INT(e2b_sandbox_refresh_traffic_access_token(sandbox, NULL, NULL, &w.err), E2B_ERR_BAD_STATE);
  sb_close(&w);
}

/* Where the token comes from: an option, create, or nobody yet. */
static void test_traffic_seed(void) {
  char body[900];
  e2b_sandbox_opts opts;
  e2b_sandbox *sandbox;
  sb_world w;
  ok_open(&w);
  memset(&opts, 0, sizeof opts);
  snprintf(body, sizeof body, "{\"sandboxID\":\"ns--s\",\"trafficAccessToken\":\"%s\",\"trafficAccessTokenExpiration\":\"x\"," OK_FLAG "}",
           ok_jwt(OK_NOW, OK_NOW + 3600, "created"));
  sb_script(&w.server, sb_json(201, body), sb_answer(204, "", ""));
  CHECK_INT(e2b_sandbox_create(w.client, "t", NULL, &sandbox, &w.err), E2B_OK);
  CHECK_INT(ok_ping(&w, sandbox), E2B_OK);
  CHECK(ok_has_token(&w, 1, "created"));
  CHECK_INT(peer_asked_count(&w.server), 2);
  sb_script(&w.server, sb_json(201, body), sb_answer(204, "", ""));
  peer_clear(&w.server);
  opts.traffic_access_token = "a\r\nb"; /* refused before anything is created */
  CHECK_INT(e2b_sandbox_create(w.client, "t", &opts, &sandbox, &w.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_sandbox_connect(w.client, "s", &opts, &sandbox, &w.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(peer_asked_count(&w.server), 0);
  sb_script(&w.server, sb_json(201, body), sb_answer(204, "", ""));
  opts.traffic_access_token = ok_jwt(OK_NOW, OK_NOW + 3600, "option");
  CHECK_INT(e2b_sandbox_create(w.client, "t", &opts, &sandbox, &w.err), E2B_OK);
  CHECK_INT(ok_ping(&w, sandbox), E2B_OK);
  CHECK(ok_has_token(&w, 1, "option"));
  sb_script(&w.server, sb_json(200, body), NULL);
  CHECK_INT(e2b_sandbox_connect(w.client, "ns--s", &opts, &sandbox, &w.err), E2B_OK);
  CHECK_HAS(e2b_sandbox_traffic_access_token(sandbox), ".sig-option");
  CHECK_INT(peer_asked_count(&w.server), 1);

  /* an answer that says nothing of it: asked by get, whose failure does not matter */
  sb_script(&w.server, sb_json(200, "{\"sandboxID\":\"ns--s\"}"), sb_json(200, "{\"sandboxID\":\"ns--s\"," OK_FLAG "}"));
  CHECK_INT(e2b_sandbox_connect(w.client, "ns--s", NULL, &sandbox, &w.err), E2B_OK);
  CHECK(sandbox->traffic != NULL && !e2b_sandbox_traffic_access_token(sandbox)[0]);
  SB_CHECK_REQUEST(&w.server, 1, "GET /sandboxes/ns--s HTTP/1.1\r\n" SB_HEAD "\r\n");
  sb_script(&w.server, sb_json(200, "{\"sandboxID\":\"ns--s\"}"),
            sb_json(200, "{\"metadata\":{\"" E2B_JWT_AUTH_METADATA_KEY "\":\"True\"}}"));
  CHECK_INT(e2b_sandbox_connect(w.client, "ns--s", NULL, &sandbox, &w.err), E2B_OK);
  CHECK(sandbox->traffic == NULL);
  sb_script(&w.server, sb_json(200, "{\"sandboxID\":\"ns--s\"}"), sb_answer(500, "", "no"));
  CHECK_INT(e2b_sandbox_connect(w.client, "ns--s", NULL, &sandbox, &w.err), E2B_OK);
  CHECK(sandbox && sandbox->traffic == NULL);
  sb_script(&w.server, sb_json(200, "{\"sandboxID\":\"ns--s\"}"), SB_DROP);
  CHECK_INT(e2b_sandbox_connect(w.client, "ns--s", NULL, &sandbox, &w.err), E2B_OK);
  CHECK(sandbox && sandbox->traffic == NULL);
  { /* given up while it asks: no handle is left */
    e2b_sandbox_opts wait;
    memset(&wait, 0, sizeof wait);
    wait.call.timeout_ms = 100;
    sb_script(&w.server, sb_json(200, "{\"sandboxID\":\"ns--s\"}"), SB_HANG);
    CHECK_INT(e2b_sandbox_connect(w.client, "ns--s", &wait, &sandbox, &w.err), E2B_ERR_TIMEOUT);
    CHECK(sandbox == NULL);
  }
  sb_close(&w);
  { /* E2B's own: nothing is asked */
    sb_open(&w, NULL);
    sb_script(&w.server, sb_json(200, "{\"sandboxID\":\"i1\"}"), NULL);
    CHECK_INT(e2b_sandbox_connect(w.client, "i1", NULL, &sandbox, &w.err), E2B_OK);
    CHECK_INT(peer_asked_count(&w.server), 1);
    sb_close(&w);
  }
  { /* debug: never looked after */
    e2b_client_config config;
    memset(&config, 0, sizeof config);
    config.debug = true;
    config.protocol = E2B_PROTOCOL_PRIVATE;
    sb_open(&w, &config);
    sb_script(&w.server, sb_json(200, body), NULL);
    CHECK_INT(e2b_sandbox_connect(w.client, "ns--s", NULL, &sandbox, &w.err), E2B_OK);
    CHECK(sandbox->traffic == NULL);
    sb_close(&w);
  }
}

/* Every allocation fails in turn. */
static void test_traffic_no_memory(void) {
  int survived = 0;
  bool over = false;
  size_t n;
  sb_world w;
  ok_open(&w);
  for (n = 1; !over && n < 2000; n++) {
    e2b_client *client;
    e2b_sandbox *sandbox = NULL;
    e2b_traffic_token token;
    e2b_err code[4];
    test_heap heap;
    bool running;
    int failed = 0;
    size_t i;
    memset(&token, 0, sizeof token);
    memset(code, 0, sizeof code);
    peer_clear(&w.server);
    sb_say(&w.server, sb_json(200, "{\"sandboxID\":\"ns--s\"}"), false);
    sb_say(&w.server, sb_json(200, "{\"sandboxID\":\"ns--s\"," OK_FLAG "}"), false);
    sb_say(&w.server, ok_token_for(OK_NOW + 3600, "a"), true);
    w.server.health = "HTTP/1.1 204 X\r\n\r\n";
    w.config.allocator = heap_allocator(&heap);
    heap.fail_at = n;
    client = e2b_client_create(&w.config, &w.err);
    CHECK(client || w.err.code == E2B_ERR_NO_MEMORY);
    if (client) code[0] = e2b_sandbox_connect(client, "ns--s", NULL, &sandbox, &w.err);
    if (sandbox && sandbox->traffic) {
      code[1] = e2b_sandbox_is_running(sandbox, NULL, &running, &w.err);
      if (code[1] == E2B_ERR_TRAFFIC_TOKEN_EXPIRED) code[1] = sandbox->traffic->failure.code;
      ok_ahead_ms += 2000;
      code[2] = e2b_sandbox_refresh_traffic_access_token(sandbox, NULL, NULL, &w.err);
      code[3] = e2b_api_refresh_traffic_access_token(client, "ns--s", NULL, &token, &w.err);
    }
    for (i = 0; i < 4; i++) {
      CHECK(code[i] == E2B_OK || code[i] == E2B_ERR_NO_MEMORY);
      failed += code[i] != E2B_OK;
    }
    over = heap.calls < n;
    if (client && !failed && !over) survived++; /* the question by get, and the array of descriptors */
    e2b_mem_free(&token.mem);
    e2b_client_free(client);
    HEAP_CHECK_EMPTY(&heap);
  }
  CHECK(over && n > 60 && survived < 40);
  sb_close(&w);
}

/* ---- lists ---- */

typedef struct ok_listed {
  char ids[100];
  int stop_at, stop_with, count; /* stop_at 0 = never */
  e2b_client *client;            /* to cancel in the callback */
  e2b_op op;
} ok_listed;

static int ok_on_sandbox(void *user, const e2b_sandbox_info *info) {
  ok_listed *l = (ok_listed *)user;
  size_t len = strlen(l->ids);
  snprintf(l->ids + len, sizeof l->ids - len, "%s", info->sandbox_id);
  if (++l->count != l->stop_at) return 0;
  if (l->client) e2b_op_cancel(l->client, l->op);
  return l->stop_with;
}

#define OK_PAGE(token, body) sb_answer(200, "x-next-token: " token "\r\n", body)

static void test_list_all(void) {
  e2b_list_opts opts;
  ok_listed l;
  done d;
  sb_world w;
  sb_open(&w, NULL);
  memset(&opts, 0, sizeof opts);
  memset(&d, 0, sizeof d);
  opts.limit = 2;
#define OK_LIST(a, b, c)                                                                                               \
  (memset(&l, 0, sizeof l), peer_clear(&w.server), sb_say(&w.server, a, false), sb_say(&w.server, b, false),           \
   sb_say(&w.server, c, true))
  OK_LIST(OK_PAGE("t=1", "[{\"sandboxID\":\"a\"},{\"sandboxID\":\"b\"}]"), OK_PAGE("t=2", "[]"), /* an empty page is no end */
          OK_PAGE("", "[{\"sandboxID\":\"c\"}]"));
  CHECK_INT(e2b_api_list_all(w.client, &opts, ok_on_sandbox, &l, &w.err), E2B_OK);
  CHECK_STR(l.ids, "abc");
  CHECK_INT(peer_asked_count(&w.server), 3);
  SB_CHECK_REQUEST(&w.server, 0, "GET /v2/sandboxes?limit=2 HTTP/1.1\r\n" SB_HEAD "\r\n");
  SB_CHECK_REQUEST(&w.server, 1, "GET /v2/sandboxes?limit=2&nextToken=t%3D1 HTTP/1.1\r\n" SB_HEAD "\r\n");
  SB_CHECK_REQUEST(&w.server, 2, "GET /v2/sandboxes?limit=2&nextToken=t%3D2 HTTP/1.1\r\n" SB_HEAD "\r\n");

  OK_LIST(OK_PAGE("1", "[{\"sandboxID\":\"a\"}]"), OK_PAGE("2", "[{\"sandboxID\":\"b\"}]"), OK_PAGE("1", "[{\"sandboxID\":\"c\"}]"));
  CHECK_INT(e2b_api_list_all(w.client, NULL, ok_on_sandbox, &l, &w.err), E2B_ERR_PROTOCOL); /* 1, 2, 1 ... would not end */
  CHECK_STR(l.ids, "abc");
  CHECK_INT(peer_asked_count(&w.server), 3);
  OK_LIST(OK_PAGE("1", "[]"), OK_PAGE("1", "[]"), OK_PAGE("1", "[]"));
  opts.next_token = "1";
  CHECK_INT(e2b_api_list_all(w.client, &opts, ok_on_sandbox, &l, &w.err), E2B_ERR_PROTOCOL);
  CHECK_INT(peer_asked_count(&w.server), 1);
  opts.next_token = NULL;

  OK_LIST(OK_PAGE("1", "[{\"sandboxID\":\"a\"},{\"sandboxID\":\"b\"}]"), OK_PAGE("", "[]"), OK_PAGE("", "[]"));
  l.stop_at = l.stop_with = 1;
  CHECK_INT(e2b_api_list_all(w.client, NULL, ok_on_sandbox, &l, &w.err), E2B_OK);
  CHECK_STR(l.ids, "a");
  CHECK_INT(peer_asked_count(&w.server), 1);
  l.stop_at = 3;
  l.stop_with = -1;
  OK_LIST(OK_PAGE("1", "[{\"sandboxID\":\"a\"}]"), sb_answer(500, "", "no"), OK_PAGE("", "[]"));
  CHECK_INT(e2b_api_list_all(w.client, NULL, ok_on_sandbox, &l, &w.err), E2B_ERR_SERVICE);
  CHECK_STR(l.ids, "a");
  OK_LIST(OK_PAGE("1", "[{\"sandboxID\":\"a\"}]"), OK_PAGE("", "{}"), OK_PAGE("", "[]"));
  l.stop_at = 1;
  l.stop_with = -7;
  CHECK_INT(e2b_api_list_all(w.client, NULL, ok_on_sandbox, &l, &w.err), E2B_ERR_CANCELED);

  OK_LIST(OK_PAGE("1", "[{\"sandboxID\":\"a\"}]"), OK_PAGE("2", "[{\"sandboxID\":\"b\"}]"), OK_PAGE("", "[]"));
  opts.call.on_done = on_done;
  opts.call.user = &d;
  CHECK_INT(e2b_api_list_all(w.client, &opts, ok_on_sandbox, &l, &w.err), E2B_PENDING);
  CHECK_INT(e2b_client_drain(w.client, 10000), E2B_OK);
  CHECK(d.count == 1 && d.err.code == E2B_OK);
  CHECK_STR(l.ids, "ab");

  OK_LIST(OK_PAGE("1", "[{\"sandboxID\":\"a\"},{\"sandboxID\":\"b\"}]"), OK_PAGE("", "[]"), OK_PAGE("", "[]"));
  l.client = w.client;
  l.stop_at = 1;
  opts.call.op = &l.op;
  CHECK_INT(e2b_api_list_all(w.client, &opts, ok_on_sandbox, &l, &w.err), E2B_PENDING);
  CHECK_INT(e2b_client_drain(w.client, 10000), E2B_OK);
  CHECK_STR(l.ids, "a"); /* canceled in the callback: nothing comes any more */
  CHECK_INT(d.count, 1);
  CHECK_INT(peer_asked_count(&w.server), 1);
#undef OK_LIST
  CHECK_INT(e2b_api_list_all(w.client, NULL, NULL, NULL, &w.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_api_list_all(NULL, NULL, ok_on_sandbox, &l, &w.err), E2B_ERR_INVALID_ARGUMENT);
  sb_close(&w);
}

static void test_list_all_no_memory(void) {
  bool over = false;
  size_t n;
  sb_world w;
  sb_open(&w, NULL);
  for (n = 1; !over && n < 1000; n++) {
    e2b_client *client;
    e2b_list_opts opts;
    test_heap heap;
    ok_listed l;
    e2b_err code = E2B_OK;
    memset(&l, 0, sizeof l);
    memset(&opts, 0, sizeof opts);
    opts.next_token = "0";
    opts.template_id = "t";
    opts.started_after_ms = 5;
    peer_clear(&w.server);
    sb_say(&w.server, OK_PAGE("1", "[{\"sandboxID\":\"a\"}]"), false);
    sb_say(&w.server, OK_PAGE("", "[{\"sandboxID\":\"b\"}]"), true);
    w.config.allocator = heap_allocator(&heap);
    heap.fail_at = n;
    client = e2b_client_create(&w.config, &w.err);
    if (client) code = e2b_api_list_all(client, &opts, ok_on_sandbox, &l, &w.err);
    CHECK(code == E2B_ERR_NO_MEMORY || !client || strcmp(l.ids, "ab") == 0);
    over = heap.calls < n;
    e2b_client_free(client);
    HEAP_CHECK_EMPTY(&heap);
  }
  CHECK(over && n > 30);
  sb_close(&w);
}

/* What goes into the query, and on OpenKruise what must not: it is then done here. */
static void test_list_filters(void) {
  static const e2b_kv metadata[] = { { "a/b k", "x y" }, { "p", "q" } }, bad[] = { { "k", "a&b" } }, worse[] = { { "a=b", "c" } };
  e2b_sandbox_list list;
  e2b_list_opts opts;
  int kruise;
  for (kruise = 0; kruise < 3; kruise++) { /* 2: known by its URL */
    e2b_client_config config;
    char url[80];
    sb_world w;
    memset(&config, 0, sizeof config);
    memset(&list, 0, sizeof list);
    memset(&opts, 0, sizeof opts);
    if (kruise == 1) config.protocol = E2B_PROTOCOL_PRIVATE;
    sb_open(&w, &config);
    if (kruise == 2) {
      snprintf(url, sizeof url, "%s/kruise/api", w.server.url);
      e2b_client_free(w.client);
      w.config.api_url = url;
      w.client = e2b_client_create(&w.config, &w.err);
    }
    opts.metadata.items = metadata;
    opts.metadata.count = 2;
    opts.states = E2B_STATE_RUNNING;
    opts.limit = 7;
    opts.template_id = "t 1";
    opts.started_after_ms = 1700000000123;
    opts.oldest_first = true;
    opts.next_token = "n=";
    sb_script(&w.server,
              sb_json(200, "[{\"sandboxID\":\"a\",\"templateID\":\"t 1\",\"startedAt\":\"2023-11-14T22:13:21Z\"},"
                           "{\"sandboxID\":\"b\",\"templateID\":\"x\",\"alias\":\"t 1\",\"startedAt\":\"2023-11-14T22:13:20.123Z\"},"
                           "{\"sandboxID\":\"c\",\"templateID\":\"t 1\",\"startedAt\":\"2023-11-14T22:13:20Z\"},"
                           "{\"sandboxID\":\"d\",\"templateID\":\"t\",\"startedAt\":\"2023-11-14T22:13:25Z\"},"
                           "{\"sandboxID\":\"e\",\"templateID\":\"t 1\",\"startedAt\":\"<unknown>\"}]"),
              NULL);
    CHECK_INT(e2b_api_list(w.client, &opts, &list, &w.err), E2B_OK);
    CHECK_INT(list.count, kruise ? 2 : 5); /* E2B's server has filtered already */
    CHECK_STR(list.items[1].sandbox_id, "b");
    if (!kruise)
      SB_CHECK_REQUEST(&w.server, 0,
                       "GET /v2/sandboxes?metadata=a%25252Fb%252520k%3Dx%252520y%26p%3Dq&state=running&limit=7&template=t%201&"
                       "startedAfter=2023-11-14T22%3A13%3A20.123Z&order=asc&nextToken=n%3D HTTP/1.1\r\n" SB_HEAD "\r\n");
    else
      CHECK_HAS(peer_asked(&w.server, 0),
                "/v2/sandboxes?metadata=a%252Fb%2Bk%3Dx%2By%26p%3Dq&state=running&limit=7&nextToken=n%3D HTTP/1.1\r\n");
    e2b_mem_free(&list.mem);
    memset(&opts, 0, sizeof opts);
    opts.metadata.items = bad;
    opts.metadata.count = 1;
    CHECK_INT(e2b_api_list(w.client, &opts, &list, &w.err), kruise ? E2B_ERR_INVALID_ARGUMENT : E2B_OK);
    e2b_mem_free(&list.mem);
    opts.metadata.items = worse;
    CHECK_INT(e2b_api_list(w.client, &opts, &list, &w.err), kruise ? E2B_ERR_INVALID_ARGUMENT : E2B_OK);
    e2b_mem_free(&list.mem);
    opts.metadata.count = 0;
    opts.started_after_ms = -1;
    CHECK_INT(e2b_api_list(w.client, &opts, &list, &w.err), E2B_ERR_INVALID_ARGUMENT);
    opts.started_after_ms = 0;
    opts.template_id = "a\r\nb";
    CHECK_INT(e2b_api_list(w.client, &opts, &list, &w.err), E2B_ERR_INVALID_ARGUMENT);
    sb_close(&w);
  }
}

/* ---- keys, configuration, quirks ---- */

static void test_encode_key(void) {
  static const struct {
    const char *raw, *encoded;
  } rows[] = {
    { "", "e2b_6f6b61670100000000425929dd6afb855b" },
    { NULL, "e2b_6f6b61670100000000425929dd6afb855b" },
    { "admin-key", "e2b_6f6b6167010000000961646d696e2d6b6579c4341091192d130a" },
    { "5b14a58f-93f4-4d3e-9a92-2f3e0e1a9e33",
      "e2b_6f6b6167010000002435623134613538662d393366342d346433652d396139322d3266336530653161396533331d5464e1669224e7" },
  };
  char text[2200], *key = (char *)malloc(1026);
  size_t i;
  for (i = 0; i < E2B__COUNT(rows); i++) {
    size_t len = strlen(rows[i].encoded);
    CHECK_INT(e2b_encode_for_e2b_sdk(rows[i].raw, text, sizeof text), len);
    CHECK_STR(text, rows[i].encoded);
    memset(text, 'x', sizeof text);
    CHECK_INT(e2b_encode_for_e2b_sdk(rows[i].raw, text, 30), len); /* cut, and terminated */
    CHECK(strlen(text) == 29 && strncmp(text, rows[i].encoded, 29) == 0);
    CHECK_INT(e2b_encode_for_e2b_sdk(rows[i].raw, NULL, 0), len);
  }
  memset(key, 'k', 1025);
  key[1025] = 0;
  CHECK_INT(e2b_encode_for_e2b_sdk(key, text, sizeof text), 0);
  CHECK_STR(text, "");
  CHECK_INT(e2b_encode_for_e2b_sdk(key + 1, text, sizeof text), 38 + 2048);
  free(key);
}

/* Explicit URL over protocol and domain over environment over defaults, for both protocols and both schemes: every
 * combination of what is set where, with the rule written out once more. */
static void test_config_matrix(void) {
  enum { MEMBERS = 6, ROWS = 1 << 11 };
  static const char *const env_texts[] = { "SCHEME=http ", "PROTOCOL=private ", "E2B_DOMAIN=env.com:81 ", "E2B_API_URL=http://env-api ",
                                           "E2B_SANDBOX_URL=http://env-sb " };
  int row;
  for (row = 0; row < ROWS; row++) {
    bool set[MEMBERS], env[5], named, is_private;
    char variables[200] = "", api[100], runtime[100], host[100], text[200];
    const char *scheme, *domain;
    e2b_client_config config;
    e2b_client *client;
    e2b_sandbox *sandbox = NULL;
    int i;
    for (i = 0; i < MEMBERS; i++) set[i] = (row >> i & 1) != 0; /* scheme, protocol, domain, api, base, sandbox url */
    for (i = 0; i < 5; i++) env[i] = (row >> (MEMBERS + i) & 1) != 0;
    for (i = 0; i < 5; i++)
      if (env[i]) snprintf(variables + strlen(variables), sizeof variables - strlen(variables), "%s", env_texts[i]);
    memset(&config, 0, sizeof config);
    if (set[0]) config.scheme = "http";
    if (set[1]) config.protocol = E2B_PROTOCOL_PRIVATE;
    if (set[2]) config.domain = "mine.com:82";
    if (set[3]) config.api_url = "https://my-api/p/";
    if (set[4]) config.sandbox_base_url = "http://my-base/b";
    if (set[5]) config.sandbox_url = "http://my-sb";
    client = sb_client(&config, variables);
    if (!client) continue;
    named = set[0] || set[1] || set[2];
    scheme = set[0] || env[0] ? "http" : "https";
    is_private = set[1] || env[1];
    domain = set[2] ? "mine.com:82" : env[2] ? "env.com:81" : "e2b.app";
    if (set[3]) snprintf(api, sizeof api, "https://my-api/p");
    else if (!named && env[3]) snprintf(api, sizeof api, "http://env-api");
    else if (is_private) snprintf(api, sizeof api, "%s://%s/kruise/api", scheme, domain);
    else snprintf(api, sizeof api, "%s://api.%s", scheme, domain);
    if (is_private) snprintf(host, sizeof host, "%s/kruise/s1/3000", domain);
    else snprintf(host, sizeof host, "3000-s1.%s", domain);
    if (set[4]) snprintf(host, sizeof host, "my-base/b/s1");
    if (set[4]) snprintf(runtime, sizeof runtime, "http://my-base/b/s1");
    else if (set[5]) snprintf(runtime, sizeof runtime, "http://my-sb");
    else if (!named && env[4]) snprintf(runtime, sizeof runtime, "http://env-sb");
    else if (is_private) snprintf(runtime, sizeof runtime, "%s://%s/kruise/s1/49983", scheme, domain);
    else if (strcmp(domain, "e2b.app") == 0) snprintf(runtime, sizeof runtime, "https://sandbox.e2b.app");
    else snprintf(runtime, sizeof runtime, "%s://49983-s1.%s", scheme, domain);
    e2b_client_api_url(client, text, sizeof text);
    CHECK_STR(text, api);
    e2b_client_sandbox_url(client, "s1", text, sizeof text);
    CHECK_STR(text, runtime);
    CHECK_INT(e2b_sandbox_attach(client, "s1", NULL, &sandbox, NULL), E2B_OK);
    CHECK_STR(e2b_sandbox_runtime_url(sandbox), runtime);
    e2b_sandbox_host(sandbox, 3000, text, sizeof text);
    CHECK_STR(text, host);
    e2b_client_free(client);
  }
}

/* The runtime options of an attached sandbox, and auth_header. */
static void test_attach_runtime(void) {
  static const e2b_kv config_headers[] = { { "X-A", "config" }, { "X-B", "config" } },
                      headers[] = { { "x-a", "sandbox" }, { "X-C", "sandbox" } }, call_headers[] = { { "X-C", "call" } };
  e2b_client_config config;
  e2b_attach_opts opts;
  e2b_files_opts files = { 0 };
  e2b_process_list list = { { 0 }, NULL, 0 };
  e2b_sandbox *sandbox, *other;
  e2b_call call = { 0 };
  bool flag;
  char text[100];
  sb_world w;
  memset(&config, 0, sizeof config);
  memset(&opts, 0, sizeof opts);
  config.auth_header = "Bearer config";
  config.headers.items = config_headers;
  config.headers.count = 2;
  config.default_user = "me";
  sb_open(&w, &config);
  opts.base_url = w.server.url;
  opts.headers.items = headers;
  opts.headers.count = 2;
  opts.runtime_port = 4444;
  opts.access_token = "tok";
  CHECK_INT(e2b_sandbox_attach(w.client, "abc", &opts, &sandbox, &w.err), E2B_OK);
  call.headers.items = call_headers;
  call.headers.count = 1;
  CHECK_INT(e2b_sandbox_is_running(sandbox, &call, &flag, &w.err), E2B_OK);
  SB_CHECK_REQUEST(&w.server, 0,
                   "GET /health HTTP/1.1\r\n" SB_COMMON "x-b: config\r\nx-a: sandbox\r\nx-c: call\r\n"
                   "e2b-sandbox-id: abc\r\ne2b-sandbox-port: 4444\r\nx-access-token: tok\r\nauthorization: Bearer config\r\n\r\n");
  (void)e2b_commands_list(sandbox, NULL, &list, NULL);
  CHECK_HAS(peer_asked(&w.server, 1), "\r\nauthorization: Bearer config\r\n"); /* rather than default_user */
  files.user = "you";
  (void)e2b_files_exists(sandbox, "/x", &files, &flag, NULL);
  CHECK_HAS(peer_asked(&w.server, 2), "\r\nauthorization: Basic eW91Og==\r\n"); /* the call's user wins */
  CHECK(!strstr(peer_asked(&w.server, 2), "Bearer"));
  opts.auth_header = "Basic cm9vdDo=";
  CHECK_INT(e2b_sandbox_attach(w.client, "abc", &opts, &other, &w.err), E2B_OK);
  (void)e2b_commands_list(other, NULL, &list, NULL);
  CHECK_HAS(peer_asked(&w.server, 3), "\r\nauthorization: Basic cm9vdDo=\r\n");
  (void)e2b_sandbox_kill(sandbox, NULL, &flag, NULL);
  CHECK(!strstr(peer_asked(&w.server, 4), "authorization") && !strstr(peer_asked(&w.server, 4), "sandbox\r\n"));
  opts.base_url = NULL;
  opts.auth_header = NULL;
  w.config.sandbox_url = NULL;
  w.config.protocol = E2B_PROTOCOL_PRIVATE;
  e2b_client_free(w.client);
  w.client = e2b_client_create(&w.config, &w.err);
  opts.scheme = "http";
  opts.domain = "d.com";
  CHECK_INT(e2b_sandbox_attach(w.client, "abc", &opts, &sandbox, &w.err), E2B_OK);
  CHECK_STR(e2b_sandbox_runtime_url(sandbox), "http://d.com/kruise/abc/4444");
  e2b_sandbox_host(sandbox, 0, text, sizeof text);
  CHECK_STR(text, "d.com/kruise/abc/4444");
  opts.scheme = "ftp";
  CHECK_INT(e2b_sandbox_attach(w.client, "abc", &opts, &sandbox, &w.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(w.err.message, "scheme");
  opts.scheme = "https";
  opts.auth_header = "a\r\nb";
  CHECK_INT(e2b_sandbox_attach(w.client, "abc", &opts, &sandbox, &w.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(w.err.message, "auth_header");
  opts.auth_header = NULL;
  opts.headers.items = NULL;
  opts.headers.count = 0;
  CHECK_INT(e2b_sandbox_attach(w.client, "abc", &opts, &sandbox, &w.err), E2B_OK);
  CHECK_STR(e2b_sandbox_runtime_url(sandbox), "https://d.com/kruise/abc/4444");
  {
    static const e2b_kv evil[] = { { "X", "a\r\nb" } };
    opts.headers.items = evil;
    opts.headers.count = 1;
    CHECK_INT(e2b_sandbox_attach(w.client, "abc", &opts, &sandbox, &w.err), E2B_ERR_INVALID_ARGUMENT);
    CHECK_HAS(w.err.message, "headers");
  }
  memset(&config, 0, sizeof config);
  config.no_env = true;
  config.auth_header = "a\nb";
  CHECK(e2b_client_create(&config, &w.err) == NULL);
  CHECK_HAS(w.err.message, "auth_header");
  sb_close(&w);
}

/* What OpenKruise says in its own way. */
static void test_kruise_answers(void) {
  e2b_sandbox_info info;
  e2b_sandbox *sandbox;
  bool flag = true;
  sb_world w;
  ok_open(&w);
  memset(&info, 0, sizeof info);
  sb_script(&w.server,
            sb_answer(500, "", "{\"code\":0,\"headers\":null,\"message\":\"claim failed; sandboxResource=a/b\",\"request_id\":\"0123abc\"}\n"),
            NULL);
  CHECK_INT(e2b_sandbox_create(w.client, "t", NULL, &sandbox, &w.err), E2B_ERR_SERVICE); /* the status, not the code */
  CHECK_INT(w.err.http_status, 500);
  CHECK_HAS(w.err.message, "claim failed");
  CHECK_STR(w.err.request_id, "0123abc");
  CHECK(w.err.maybe_done);
  sb_script(&w.server,
            sb_json(200, "{\"templateID\":\"t\",\"sandboxID\":\"ns--s\",\"alias\":\"\",\"clientID\":\"\",\"envdVersion\":\"0.2.10\","
                         "\"startedAt\":\"<unknown>\",\"endAt\":\"0001-01-01T00:00:00Z\",\"cpuCount\":0,\"state\":\"dead\","
                         "\"network\":{\"allowOut\":null},\"metadata\":{\"a\":\"b\"}}"),
            NULL);
  CHECK_INT(e2b_api_get_info(w.client, "ns--s", NULL, &info, &w.err), E2B_OK);
  CHECK(info.started_at_ms == 0 && info.end_at_ms == 0 && info.state == E2B_STATE_UNKNOWN && info.disk_size_mb == 0);
  CHECK_STR(info.state_text, "dead");
  CHECK_STR(info.domain, "");
  e2b_mem_free(&info.mem);
  sandbox = ok_attach(&w, NULL);
  sb_script(&w.server, sb_answer(401, "content-type: text/plain\r\n", "unauthorized: invalid or missing access token\n"), NULL);
  CHECK_INT(e2b_sandbox_is_running(sandbox, NULL, &flag, &w.err), E2B_ERR_UNAUTHENTICATED);
  sb_script(&w.server, sb_answer(403, "", "forbidden\n"), NULL);
  CHECK_INT(e2b_sandbox_is_running(sandbox, NULL, &flag, &w.err), E2B_ERR_PERMISSION);
  sb_script(&w.server, sb_answer(502, "", "healthy sandbox not found: ns--s\n"), NULL);
  CHECK_INT(e2b_sandbox_is_running(sandbox, NULL, &flag, &w.err), E2B_OK);
  CHECK(!flag);
  /* a call that meets a 502 asks /health, then the control plane */
  peer_clear(&w.server);
  sb_say(&w.server, sb_answer(502, "", "API Error: healthy sandbox ns--s not found\n"), false);
  sb_say(&w.server, sb_answer(502, "", "API Error: healthy sandbox ns--s not found\n"), false);
  sb_say(&w.server, sb_json(200, "{\"sandboxID\":\"ns--s\",\"state\":\"dead\"}"), true);
  CHECK_INT(e2b_commands_run(sandbox, "true", NULL, NULL, &w.err), E2B_ERR_SANDBOX_GONE);
  peer_clear(&w.server);
  sb_say(&w.server, sb_answer(502, "", "healthy sandbox not found: ns--s\n"), false);
  sb_say(&w.server, sb_answer(502, "", "healthy sandbox not found: ns--s\n"), false);
  sb_say(&w.server, sb_json(200, "{\"sandboxID\":\"ns--s\",\"state\":\"paused\"}"), true);
  CHECK_INT(e2b_commands_run(sandbox, "true", NULL, NULL, &w.err), E2B_ERR_SANDBOX_PAUSED);
  sb_close(&w);
}

/* An envd of version 0.2.10: who is asked for, and how stdin is empty. */
static void test_kruise_old_envd(void) {
  static const char wrapped[] = "\n\x07/bin/sh\x12\x02-c\x12\x14" "exec \"$@\" </dev/null\x12\x02sh\x12\x09/bin/bash\x12\x02-l\x12\x02-c\x12\x04true";
  static const char plain[] = "\n\x09/bin/bash\x12\x02-l\x12\x02-c\x12\x04true";
  e2b_run_opts run = { 0 };
  e2b_sandbox *sandbox, *newer;
  e2b_buf buf = { { 0 }, NULL, 0 };
  e2b_attach_opts opts;
  bool flag;
  sb_world w;
  ok_open(&w);
  sandbox = ok_attach(&w, NULL);
  sb_script(&w.server, sb_answer(404, "content-type: text/plain\r\n", "404 page not found\n"), NULL);
  run.stdin_open = true;
  (void)e2b_commands_run(sandbox, "true", NULL, NULL, NULL);
  (void)e2b_commands_run(sandbox, "true", &run, NULL, NULL);
  CHECK(find_bytes(w.server.requests[0], w.server.request_lens[0], wrapped) != NULL);
  CHECK(find_bytes(w.server.requests[1], w.server.request_lens[1], plain) != NULL);
  CHECK_HAS(peer_asked(&w.server, 0), "\r\nauthorization: Basic cm9vdDo=\r\n"); /* root */
  (void)e2b_files_read(sandbox, "x", NULL, &buf, NULL);
  CHECK_HAS(peer_asked(&w.server, 2), "?path=x&username=node HTTP/1.1\r\n");
  (void)e2b_files_write(sandbox, "x", "y", 1, NULL, NULL, NULL);
  CHECK_HAS(peer_asked(&w.server, 3), "\r\ncontent-type: multipart/form-data; boundary=");
  CHECK_INT(e2b_commands_close_stdin(sandbox, 5, NULL, &w.err), E2B_ERR_NOT_BUILT); /* asked, and told so */
  CHECK_HAS(peer_asked(&w.server, 4), "POST /process.Process/CloseStdin HTTP/1.1\r\n");
  CHECK_HAS(w.err.message, "0.2.10");
  CHECK_INT(e2b_commands_kill(sandbox, 5, NULL, &flag, &w.err), E2B_ERR_SERVICE); /* no proof that it is gone */
  sb_script(&w.server, sb_answer(200, "content-type: application/proto\r\n", ""), NULL);
  CHECK_INT(e2b_commands_close_stdin(sandbox, 5, NULL, &w.err), E2B_OK); /* it can, whatever it says of itself */
  memset(&opts, 0, sizeof opts);
  opts.envd_version = "0.3.0";
  CHECK_INT(e2b_sandbox_attach(w.client, "ns--n", &opts, &newer, &w.err), E2B_OK);
  sb_script(&w.server, sb_answer(404, "", ""), NULL);
  (void)e2b_commands_run(newer, "true", NULL, NULL, NULL);
  CHECK(find_bytes(w.server.requests[0], w.server.request_lens[0], plain) != NULL);
  e2b_mem_free(&buf.mem);
  sb_close(&w);
}

/* No token, no key, and nothing of them in what is logged or said. */
typedef struct ok_log {
  char text[20000];
  size_t len;
} ok_log;

static void ok_on_log(void *user, e2b_log_level level, const char *message) {
  ok_log *log = (ok_log *)user;
  (void)level;
  log->len += (size_t)snprintf(log->text + log->len, sizeof log->text - log->len, "%s\n", message);
  if (log->len > sizeof log->text - 1000) log->len = 0;
}

static void test_traffic_secrets(void) {
  static ok_log log;
  e2b_sandbox *sandbox;
  sb_world w;
  memset(&log, 0, sizeof log);
  ok_open(&w);
  e2b_client_free(w.client);
  w.config.logger.func = ok_on_log;
  w.config.logger.user = &log;
  w.config.logger.level = E2B_LOG_DEBUG;
  w.client = e2b_client_create(&w.config, &w.err);
  sandbox = ok_attach(&w, ok_jwt(OK_NOW, OK_NOW + 5, "hidden"));
  ok_unix_s = OK_NOW + 4;
  sb_script(&w.server, ok_token_for(OK_NOW + 3600, "hidden"), sb_answer(403, "", "forbidden"));
  CHECK_INT(ok_ping(&w, sandbox), E2B_ERR_PERMISSION);
  CHECK(ok_has_token(&w, 1, "hidden"));
  CHECK(!strstr(w.err.message, "eyJ") && !strstr(log.text, "eyJ") && !strstr(log.text, "secret-key"));
  sb_close(&w);
}

/* ================================================================================================================== */
/* >>>> pool */
/* ================================================================================================================== */

#if !defined(E2B_NO_HTTP2)

/* A server of HTTP/2 in the clear on this very thread: each turn polls the client and takes in what it sent. It greets,
 * acknowledges SETTINGS and PING, and answers GET /health; the rest the tests say by hand. */
typedef struct pool_side { /* one connection as the server has it */
  int fd;                  /* -1 = closed */
  e2b__buf in;
  bool greeted;            /* the preface came */
  unsigned dump;
  uint32_t ends;           /* the client's GOAWAYs */
  int acks, pings, ping_acks;
  char frames[16];         /* the first ones that came: S A H C D W P R G */
  size_t frame_count;
  e2b__hpack_decoder decoder;
  e2b__hpack_encoder encoder;
} pool_side;

typedef struct pool_asked { /* a request */
  int side;
  uint32_t id;
  char fields[1500];        /* "name=value\n" */
  e2b__buf block, body;
  bool ended;
  long reset;               /* the code it was reset with, -1 = was not */
  uint64_t allowed;         /* by WINDOW_UPDATE */
} pool_asked;

typedef struct pool_call {
  e2b_op op;
  e2b_err done;             /* E2B_PENDING until on_done */
  e2b_error err;
  e2b_buf buf;
  size_t taken, given, size;
  bool pause;
} pool_call;

typedef struct pool_world {
  e2b__mem mem;
  int listener;
  uint16_t port;
  const char *settings;     /* payload of the greeting, in hex; NULL = says nothing by itself */
  bool deaf;                /* answers no PING */
  pool_side sides[12];
  int side_count;
  pool_asked asked[40];
  int asked_count;
  test_heap heap;
  e2b_client_config config;
  e2b_client *client;
  e2b_sandbox *sandbox;
  e2b_error err;
  uint64_t clock;
  char url[64];
} pool_world;

static void pool_write(pool_world *w, int side, int type, uint32_t flags, uint32_t id, const void *payload,
                       size_t len) {
  e2b__buf out;
  e2b__buf_init(&out, &w->mem, SIZE_MAX);
  e2b__h2_put_frame(&out, (uint8_t)type, flags, id, payload, len);
  if (w->sides[side].fd >= 0) (void)send_all(w->sides[side].fd, out.data, out.len);
  e2b__buf_free(&out);
}

static void pool_word(pool_world *w, int side, int type, uint32_t id, uint32_t word) {
  uint8_t payload[4];
  e2b__h2_put_u32(payload, word);
  pool_write(w, side, type, 0, id, payload, 4);
}

static void pool_goaway(pool_world *w, int side, uint32_t last, uint32_t code) {
  uint8_t payload[8];
  e2b__h2_put_u32(payload, last);
  e2b__h2_put_u32(payload + 4, code);
  pool_write(w, side, E2B__H2_GOAWAY, 0, 0, payload, 8);
}

static void pool_settings(pool_world *w, int side, const char *hex) {
  uint8_t payload[64];
  size_t len = codec_unhex(hex, payload);
  pool_write(w, side, E2B__H2_SETTINGS, 0, 0, payload, len);
}

static void pool_head(pool_world *w, int side, uint32_t flags, uint32_t id, const char *fields) {
  e2b__buf block;
  e2b__buf_init(&block, &w->mem, SIZE_MAX);
  while (*fields) {
    const char *equals = strchr(fields + 1, '='), *end = strchr(fields, '\n');
    e2b__hpack_encode(&w->sides[side].encoder, &block, e2b__str_n(fields, (size_t)(equals - fields)),
                      e2b__str_n(equals + 1, (size_t)(end - equals - 1)));
    fields = end + 1;
  }
  pool_write(w, side, E2B__H2_HEADERS, flags | E2B__H2_END_HEADERS, id, block.data, block.len);
  e2b__buf_free(&block);
}

/* The whole answer to the request of that index. */
static void pool_answer(pool_world *w, int at, const char *fields, const char *body) {
  pool_asked *a = &w->asked[at];
  if (!CHECK(at < w->asked_count)) return;
  pool_head(w, a->side, *body ? 0 : E2B__H2_END_STREAM, a->id, fields);
  if (*body) pool_write(w, a->side, E2B__H2_DATA, E2B__H2_END_STREAM, a->id, body, strlen(body));
}

static void pool_close(pool_world *w, int side) {
  if (w->sides[side].fd >= 0) close(w->sides[side].fd);
  w->sides[side].fd = -1;
}

static pool_asked *pool_find(pool_world *w, int side, uint32_t id) {
  int i;
  for (i = 0; i < w->asked_count; i++)
    if (w->asked[i].side == side && w->asked[i].id == id) return &w->asked[i];
  return NULL;
}

static void pool_on_field(void *owner, e2b_str name, e2b_str value) {
  pool_asked *a = (pool_asked *)owner;
  size_t len = strlen(a->fields);
  (void)snprintf(a->fields + len, sizeof a->fields - len, "%.*s=%.*s\n", (int)name.len, name.ptr, (int)value.len,
                 value.ptr);
}

static void pool_on_head(pool_world *w, int side, uint32_t flags, uint32_t id, const uint8_t *data, size_t len) {
  pool_asked *a = &w->asked[w->asked_count];
  if (!CHECK(w->asked_count < (int)E2B__COUNT(w->asked)) || !CHECK(flags & E2B__H2_END_HEADERS)) return;
  memset(a, 0, sizeof *a);
  a->side = side;
  a->id = id;
  a->reset = -1;
  a->ended = (flags & E2B__H2_END_STREAM) != 0;
  e2b__buf_init(&a->block, &w->mem, SIZE_MAX);
  e2b__buf_init(&a->body, &w->mem, SIZE_MAX);
  e2b__buf_put(&a->block, data, len);
  CHECK_INT(e2b__hpack_decode(&w->sides[side].decoder, data, len, pool_on_field, a), E2B_OK);
  hpack_dump_block(w->sides[side].dump, data, len, a->fields, strlen(a->fields));
  w->asked_count++;
  if (!strstr(a->fields, ":path=/health\n")) return;
  w->asked_count--;
  e2b__buf_free(&a->block);
  pool_head(w, side, E2B__H2_END_STREAM, id, ":status=204\n");
}

static void pool_on_frame(pool_world *w, int side, const uint8_t *frame, size_t len) {
  pool_side *s = &w->sides[side];
  uint32_t flags = frame[4], id = e2b__h2_get_u32(frame + 5);
  const uint8_t *payload = frame + E2B__H2_HEAD;
  pool_asked *a = id ? pool_find(w, side, id) : NULL;
  if (s->frame_count < sizeof s->frames - 1)
    s->frames[s->frame_count++] = frame[3] == E2B__H2_SETTINGS && flags ? 'A' : frame[3] < 10 ? "DHprSpPGWC"[frame[3]] : '?';
  switch (frame[3]) {
    case E2B__H2_HEADERS: pool_on_head(w, side, flags, id, payload, len); break;
    case E2B__H2_DATA:
      if (a) e2b__buf_put(&a->body, payload, len);
      if (a && flags & E2B__H2_END_STREAM) a->ended = true;
      break;
    case E2B__H2_SETTINGS:
      if (flags & E2B__H2_ACK) s->acks++;
      else if (w->settings) pool_write(w, side, E2B__H2_SETTINGS, E2B__H2_ACK, 0, NULL, 0);
      break;
    case E2B__H2_PING:
      if (flags & E2B__H2_ACK) s->ping_acks++;
      else if (s->pings++, !w->deaf) pool_write(w, side, E2B__H2_PING, E2B__H2_ACK, 0, payload, 8);
      break;
    case E2B__H2_RST_STREAM: if (a) a->reset = (long)e2b__h2_get_u32(payload); break;
    case E2B__H2_GOAWAY: s->ends++; break;
    case E2B__H2_WINDOW_UPDATE: if (a) a->allowed += e2b__h2_get_u32(payload); break;
    default: CHECK(false);
  }
}

static void pool_take(pool_world *w, int side) {
  pool_side *s = &w->sides[side];
  uint8_t bytes[16384];
  size_t at = 0;
  ssize_t n;
  while (s->fd >= 0 && (n = recv(s->fd, bytes, sizeof bytes, MSG_DONTWAIT)) >= 0) {
    if (n == 0) pool_close(w, side);
    e2b__buf_put(&s->in, bytes, (size_t)n);
  }
  if (!s->greeted && s->in.len >= 24) {
    CHECK(memcmp(s->in.data, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24) == 0);
    s->greeted = true;
    at = 24;
  }
  while (s->greeted && at + E2B__H2_HEAD <= s->in.len) {
    size_t len = e2b__h2_get_u32(s->in.data + at) >> 8;
    if (at + E2B__H2_HEAD + len > s->in.len) break;
    pool_on_frame(w, side, s->in.data + at, len);
    at += E2B__H2_HEAD + len;
  }
  e2b__buf_drop(&s->in, at);
}

static void pool_turn(pool_world *w) {
  struct pollfd p;
  int i;
  (void)e2b_client_poll(w->client, 1);
  p.fd = w->listener;
  p.events = POLLIN;
  while (poll(&p, 1, 0) > 0 && CHECK(w->side_count < (int)E2B__COUNT(w->sides))) {
    pool_side *s = &w->sides[w->side_count++];
    s->fd = accept(w->listener, NULL, NULL);
    s->dump = hpack_dump_new();
    e2b__buf_init(&s->in, &w->mem, SIZE_MAX);
    e2b__hpack_decoder_init(&s->decoder, &w->mem);
    e2b__hpack_encoder_init(&s->encoder);
    if (w->settings) pool_settings(w, w->side_count - 1, w->settings);
  }
  for (i = 0; i < w->side_count; i++) pool_take(w, i);
}

static void pool_turns(pool_world *w, int turns) {
  while (turns--) pool_turn(w);
}

/* Turns until it holds. */
#define POOL_UNTIL(w, condition)                                                                                       \
  do {                                                                                                                 \
    int turns_;                                                                                                        \
    for (turns_ = 0; turns_ < 5000 && !(condition); turns_++) pool_turn(w);                                            \
    CHECK(condition);                                                                                                  \
  } while (0)

static uint64_t pool_now(void *user) {
  return ((pool_world *)user)->clock;
}

static e2b_sandbox *pool_sandbox(pool_world *w, const char *id) {
  e2b_attach_opts opts;
  e2b_sandbox *sandbox = NULL;
  memset(&opts, 0, sizeof opts);
  opts.access_token = "envd-secret";
  CHECK_INT(e2b_sandbox_attach(w->client, id, &opts, &sandbox, &w->err), E2B_OK);
  return sandbox;
}

/* What is set in w->config before stays; with a clock of its own when that is not 0. */
static void pool_begin(pool_world *w) {
  e2b__mem_init(&w->mem, NULL);
  w->listener = listen_somewhere(&w->port);
  (void)snprintf(w->url, sizeof w->url, "http://127.0.0.1:%u", (unsigned)w->port);
  w->config.allocator = heap_allocator(&w->heap);
  w->config.no_env = true;
  w->config.http_version = 2;
  w->config.api_key = "api-secret";
  w->config.api_url = w->config.sandbox_url = w->url;
  if (w->clock) w->config.now_ms_fn = pool_now;
  w->config.platform_user = w;
  w->client = e2b_client_create(&w->config, &w->err);
  if (CHECK(w->client != NULL)) w->sandbox = pool_sandbox(w, "sbx1");
}

static void pool_new(pool_world *w) {
  memset(w, 0, sizeof *w);
  w->settings = "";
}

static void pool_end(pool_world *w) {
  int i;
  e2b_client_free(w->client);
  HEAP_CHECK_EMPTY(&w->heap);
  for (i = 0; i < w->side_count; i++) {
    pool_close(w, i);
    e2b__buf_free(&w->sides[i].in);
    e2b__buf_free(&w->sides[i].decoder.field);
  }
  for (i = 0; i < w->asked_count; i++) {
    e2b__buf_free(&w->asked[i].block);
    e2b__buf_free(&w->asked[i].body);
  }
  close(w->listener);
  CHECK_INT(w->mem.now, 0);
}

/* ---- calls ---- */

static void pool_done(void *user, const e2b_error *err) {
  pool_call *call = (pool_call *)user;
  call->err = *err;
  call->done = err->code;
}

static void pool_call_init(pool_call *call, e2b_files_opts *opts) {
  memset(call, 0, sizeof *call);
  memset(opts, 0, sizeof *opts);
  call->done = E2B_PENDING;
  opts->call.op = &call->op;
  opts->call.on_done = pool_done;
  opts->call.user = call;
}

static int pool_sink(void *user, const char *data, size_t len) {
  pool_call *call = (pool_call *)user;
  E2B__UNUSED(data);
  call->taken += len;
  return call->pause ? E2B_PAUSE : 0;
}

static int pool_source(void *user, void *buf, size_t cap) {
  pool_call *call = (pool_call *)user;
  size_t i, n = E2B__MIN(cap, call->size - call->given);
  for (i = 0; i < n; i++) ((uint8_t *)buf)[i] = (uint8_t)((call->given + i) % 251);
  call->given += n;
  return (int)n;
}

/* A GET of a whole file, idempotent. */
static void pool_read(pool_world *w, pool_call *call, int32_t timeout_ms) {
  e2b_files_opts opts;
  pool_call_init(call, &opts);
  opts.call.timeout_ms = timeout_ms;
  CHECK_INT(e2b_files_read(w->sandbox, "/x", &opts, &call->buf, &w->err), E2B_PENDING);
}

/* A POST that must not be sent twice. */
static void pool_move(pool_world *w, pool_call *call) {
  e2b_files_opts opts;
  pool_call_init(call, &opts);
  CHECK_INT(e2b_files_rename(w->sandbox, "/a", "/b", &opts, NULL, &w->err), E2B_PENDING);
}

static void pool_download(pool_world *w, pool_call *call, int32_t idle_ms, bool pause) {
  e2b_files_opts opts;
  pool_call_init(call, &opts);
  opts.call.idle_ms = idle_ms;
  call->pause = pause;
  CHECK_INT(e2b_files_download(w->sandbox, "/x", pool_sink, call, &opts, &w->err), E2B_PENDING);
}

static void pool_upload(pool_world *w, pool_call *call, size_t size) {
  e2b_files_opts opts;
  pool_call_init(call, &opts);
  call->size = size;
  CHECK_INT(e2b_files_upload(w->sandbox, "/x", pool_source, call, (int64_t)size, &opts, NULL, &w->err), E2B_PENDING);
}

static void pool_call_free(pool_call *call) {
  e2b_mem_free(&call->buf.mem);
}

static uint32_t pool_made(pool_world *w) {
  e2b_client_stats stats;
  e2b_client_get_stats(w->client, &stats);
  return stats.connections_made;
}

/* A first exchange, so that the client knows the server's SETTINGS: it leaves request 0. */
static void pool_warm(pool_world *w) {
  pool_call call;
  pool_read(w, &call, 0);
  POOL_UNTIL(w, w->asked_count == 1 && w->asked[0].ended);
  pool_answer(w, 0, ":status=200\n", "x");
  POOL_UNTIL(w, call.done != E2B_PENDING && w->sides[0].acks == 1);
  CHECK_INT(call.done, E2B_OK);
  pool_call_free(&call);
}

#define POOL_OK ":status=200\ncontent-type=application/proto\n"
#define POOL_WRITTEN "[{\"path\":\"/x\",\"name\":\"x\",\"type\":\"file\"}]" /* the answer to an upload */
#define POOL_REFUSED E2B__H2_REFUSED_STREAM

/* How the field with that value was written: the first octet of its representation; 0 = it is not there. */
static int pool_written_as(const pool_asked *a, const e2b__hpack_decoder *before, const char *value) {
  static e2b__hpack_decoder now, next;
  size_t at = 0, len;
  now = *before;
  e2b__buf_init(&now.field, before->field.mem, SIZE_MAX);
  while (at < a->block.len) {
    e2b__buf text;
    bool is;
    e2b__buf_init(&text, before->field.mem, SIZE_MAX);
    for (len = 1; at + len <= a->block.len; len++) { /* the shortest that decodes is one field */
      next = now;
      e2b__buf_init(&next.field, before->field.mem, SIZE_MAX);
      text.len = 0;
      is = e2b__hpack_decode(&next, a->block.data + at, len, hpack_collect, &text) == E2B_OK;
      e2b__buf_free(&next.field);
      if (is) break;
    }
    is = text.len && strstr(e2b__buf_cstr(&text), value) != NULL;
    e2b__buf_free(&text);
    if (is) return a->block.data[at];
    now = next;
    at += len;
  }
  return 0;
}

/* The order on the wire; nothing waits for the server's SETTINGS; one connection carries all; what is secret enters no table. */
static void test_pool_one_connection(void) {
  static e2b__hpack_decoder empty;
  static pool_world w;
  pool_call calls[6];
  e2b_sandbox *other;
  int i;
  pool_new(&w);
  w.settings = NULL;
  pool_begin(&w);
  other = pool_sandbox(&w, "sbx2");
  for (i = 0; i < 6; i++) {
    e2b_sandbox *first = w.sandbox;
    if (i % 2) w.sandbox = other;
    if (i < 4) pool_read(&w, &calls[i], 0); else pool_move(&w, &calls[i]);
    w.sandbox = first;
  }
  POOL_UNTIL(&w, w.asked_count == 6 && w.asked[5].ended);
  CHECK_STR(w.sides[0].frames, "SWHHHHHHDD");
  pool_settings(&w, 0, "");
  for (i = 5; i >= 0; i--) pool_answer(&w, i, POOL_OK, i < 4 ? "text" : "");
  for (i = 0; i < 6; i++) {
    POOL_UNTIL(&w, calls[i].done != E2B_PENDING);
    if (!CHECK_INT(calls[i].done, E2B_OK)) printf("  %s\n", calls[i].err.message);
    pool_call_free(&calls[i]);
  }
  POOL_UNTIL(&w, w.sides[0].acks == 1);
  CHECK(w.side_count == 1 && pool_made(&w) == 1);
  CHECK_HAS(w.asked[0].fields, ":method=GET\n:scheme=http\n:authority=127.0.0.1:");
  CHECK_HAS(w.asked[0].fields, "x-access-token=envd-secret\n");
  CHECK(strstr(w.asked[0].fields, "sbx1") && strstr(w.asked[1].fields, "sbx2"));
  e2b__hpack_decoder_init(&empty, &w.mem);
  CHECK_INT(pool_written_as(&w.asked[0], &empty, "=envd-secret") & 0xf0, 0x10);
  CHECK_INT(pool_written_as(&w.asked[0], &empty, ":path=") & 0xf0, 0x10);
  CHECK_INT(pool_written_as(&w.asked[0], &empty, "user-agent=") & 0xc0, 0x40);
  CHECK(!find_bytes(w.sides[0].decoder.table.text, w.sides[0].decoder.table.text_len, "secret"));
  pool_end(&w);
}

/* One stream at a time, then none: requests wait with their deadlines, and no connection is opened in vain. */
static void test_pool_stream_limit(void) {
  static pool_world w;
  pool_call calls[4];
  int i;
  pool_new(&w);
  w.settings = "000300000001";
  w.config.max_connections_per_host = 1;
  pool_begin(&w);
  pool_warm(&w);
  for (i = 0; i < 3; i++) pool_read(&w, &calls[i], i == 1 ? 30 : 0);
  POOL_UNTIL(&w, w.asked_count == 2);
  POOL_UNTIL(&w, calls[1].done != E2B_PENDING);
  CHECK_INT(calls[1].done, E2B_ERR_TIMEOUT);
  CHECK_INT(calls[1].err.phase, E2B_PHASE_QUEUE);
  CHECK(!calls[1].err.maybe_done);
  CHECK_INT(w.asked_count, 2);
  pool_answer(&w, 1, ":status=200\n", "");
  POOL_UNTIL(&w, w.asked_count == 3);
  pool_answer(&w, 2, ":status=200\n", "");
  POOL_UNTIL(&w, calls[2].done != E2B_PENDING);
  CHECK(calls[0].done == E2B_OK && calls[2].done == E2B_OK && pool_made(&w) == 1);
  for (i = 0; i < 3; i++) pool_call_free(&calls[i]);
  pool_end(&w);

  pool_new(&w);
  pool_begin(&w);
  pool_warm(&w);
  pool_settings(&w, 0, "000300000000");
  POOL_UNTIL(&w, w.sides[0].acks == 2);
  pool_read(&w, &calls[0], 50);
  pool_read(&w, &calls[1], 0);
  POOL_UNTIL(&w, calls[0].done != E2B_PENDING);
  CHECK_INT(calls[0].done, E2B_ERR_TIMEOUT);
  CHECK_INT(w.asked_count, 1);
  pool_settings(&w, 0, "000300000005");
  POOL_UNTIL(&w, w.asked_count == 2);
  pool_answer(&w, 1, ":status=200\n", "");
  POOL_UNTIL(&w, calls[1].done != E2B_PENDING);
  CHECK(calls[1].done == E2B_OK && pool_made(&w) == 1);
  for (i = 0; i < 2; i++) pool_call_free(&calls[i]);
  pool_end(&w);
}

/* A refused stream did nothing: whatever it was, it goes out once more, by another connection; then it is an error. */
static void test_pool_refused(void) {
  static pool_world w;
  pool_call call;
  int round, after;
  for (round = 0; round < 4; round++) { /* POST or GET, refused once or twice */
    pool_new(&w);
    pool_begin(&w);
    pool_warm(&w);
    if (round & 1) pool_read(&w, &call, 0); else pool_move(&w, &call);
    POOL_UNTIL(&w, w.asked_count == 2);
    pool_word(&w, 0, E2B__H2_RST_STREAM, w.asked[1].id, POOL_REFUSED);
    POOL_UNTIL(&w, w.asked_count == 3 && w.asked[2].ended);
    CHECK_INT(w.asked[2].side, 1);
    after = round & 2;
    if (after) pool_word(&w, 1, E2B__H2_RST_STREAM, w.asked[2].id, POOL_REFUSED);
    else pool_answer(&w, 2, POOL_OK, "");
    POOL_UNTIL(&w, call.done != E2B_PENDING);
    CHECK_INT(call.done, after ? E2B_ERR_UNAVAILABLE : E2B_OK);
    CHECK(!call.err.maybe_done);
    if (after) CHECK_HAS(call.err.message, "REFUSED_STREAM");
    CHECK_INT(w.asked_count, 3);
    pool_call_free(&call);
    pool_end(&w);
  }

  pool_new(&w); /* at once, on the first connection there ever was */
  pool_begin(&w);
  pool_move(&w, &call);
  POOL_UNTIL(&w, w.asked_count == 1);
  pool_word(&w, 0, E2B__H2_RST_STREAM, 1, POOL_REFUSED);
  POOL_UNTIL(&w, w.asked_count == 2);
  CHECK_INT(w.asked[1].side, 1);
  pool_answer(&w, 1, POOL_OK, "");
  POOL_UNTIL(&w, call.done != E2B_PENDING);
  CHECK_INT(call.done, E2B_OK);
  pool_end(&w);
}

/* A server that goes away: in peace first, then for good. */
static void test_pool_goaway(void) {
  static pool_world w;
  pool_call calls[4];
  int i;
  pool_new(&w);
  pool_begin(&w);
  pool_warm(&w);
  for (i = 0; i < 3; i++) pool_move(&w, &calls[i]); /* 3, 5, 7 */
  POOL_UNTIL(&w, w.asked_count == 4 && w.asked[3].ended);
  pool_goaway(&w, 0, 0x7fffffff, 0);
  pool_turns(&w, 5);
  CHECK(calls[0].done == E2B_PENDING && calls[2].done == E2B_PENDING);
  pool_read(&w, &calls[3], 0); /* nothing new on the old one */
  POOL_UNTIL(&w, w.asked_count == 5);
  CHECK_INT(w.asked[4].side, 1);
  pool_goaway(&w, 0, 5, 0);
  POOL_UNTIL(&w, w.asked_count == 6 && w.asked[5].ended); /* 7 was not looked at: a POST goes out again */
  CHECK(w.asked[5].side == 1 && strstr(w.asked[5].fields, "POST"));
  pool_answer(&w, 1, POOL_OK, "");
  POOL_UNTIL(&w, calls[0].done != E2B_PENDING);
  pool_close(&w, 0);
  POOL_UNTIL(&w, calls[1].done != E2B_PENDING);
  pool_answer(&w, 4, ":status=200\n", "");
  pool_answer(&w, 5, POOL_OK, "");
  POOL_UNTIL(&w, calls[2].done != E2B_PENDING && calls[3].done != E2B_PENDING);
  CHECK(calls[0].done == E2B_OK && calls[2].done == E2B_OK && calls[3].done == E2B_OK);
  CHECK(calls[1].done == E2B_ERR_CLOSED && calls[1].err.maybe_done); /* 5 may have been worked on: not sent again */
  CHECK_INT(w.asked_count, 6);
  pool_call_free(&calls[3]);
  pool_end(&w);

  pool_new(&w); /* not looked at twice: an error, and surely not done */
  pool_begin(&w);
  pool_warm(&w);
  pool_move(&w, &calls[0]);
  POOL_UNTIL(&w, w.asked_count == 2);
  pool_goaway(&w, 0, 1, E2B__H2_ENHANCE_YOUR_CALM);
  POOL_UNTIL(&w, w.asked_count == 3);
  pool_goaway(&w, 1, 0, E2B__H2_ENHANCE_YOUR_CALM);
  POOL_UNTIL(&w, calls[0].done != E2B_PENDING);
  CHECK(calls[0].done == E2B_ERR_CLOSED && !calls[0].err.maybe_done);
  CHECK_HAS(calls[0].err.message, "ENHANCE_YOUR_CALM");
  pool_end(&w);
}

/* Each code of a reset says its name; an answer that had begun is truncated. */
static void test_pool_resets(void) {
  static pool_world w;
  pool_call calls[2];
  uint32_t code;
  int at = 1;
  pool_new(&w);
  pool_begin(&w);
  pool_warm(&w);
  for (code = 0; code < 15; code++) {
    if (code == E2B__H2_REFUSED_STREAM || code == E2B__H2_HTTP_1_1_REQUIRED) continue;
    pool_move(&w, &calls[0]);
    pool_download(&w, &calls[1], 0, false);
    POOL_UNTIL(&w, w.asked_count == at + 2 && w.asked[at].ended);
    pool_head(&w, 0, 0, w.asked[at + 1].id, ":status=200\n");
    pool_word(&w, 0, E2B__H2_RST_STREAM, w.asked[at].id, code == 14 ? 99 : code);
    pool_word(&w, 0, E2B__H2_RST_STREAM, w.asked[at + 1].id, code == 14 ? 99 : code);
    POOL_UNTIL(&w, calls[0].done != E2B_PENDING && calls[1].done != E2B_PENDING);
    CHECK(calls[0].done == E2B_ERR_CLOSED && calls[0].err.maybe_done);
    CHECK(calls[1].done == E2B_ERR_TRUNCATED && !calls[1].err.maybe_done);
    CHECK_HAS(calls[0].err.message, code == 14 ? "unknown error" : e2b__h2_error_name(code));
    if (at + 2 < 38) at += 2;
    else break;
  }
  CHECK_INT(pool_made(&w), 1);
  pool_move(&w, &calls[0]); /* in the clear there is no HTTP/1.1 to fall back to */
  POOL_UNTIL(&w, w.asked_count == at + 1);
  pool_word(&w, 0, E2B__H2_RST_STREAM, w.asked[at].id, E2B__H2_HTTP_1_1_REQUIRED);
  POOL_UNTIL(&w, calls[0].done != E2B_PENDING);
  CHECK(calls[0].done == E2B_ERR_UNAVAILABLE && !calls[0].err.maybe_done);
  CHECK_HAS(calls[0].err.message, "HTTP_1_1_REQUIRED");
  pool_end(&w);
}

/* The connection breaks: each stream learns what is true for it. */
static void test_pool_lost(void) {
  static pool_world w;
  pool_call calls[4];
  int i;
  pool_new(&w);
  pool_begin(&w);
  pool_warm(&w);
  pool_download(&w, &calls[0], 0, false);
  pool_move(&w, &calls[1]);
  pool_read(&w, &calls[2], 0);
  POOL_UNTIL(&w, w.asked_count == 4 && w.asked[2].ended);
  pool_head(&w, 0, 0, w.asked[1].id, ":status=200\n");
  pool_write(&w, 0, E2B__H2_DATA, 0, w.asked[1].id, "part", 4);
  POOL_UNTIL(&w, calls[0].taken == 4);
  reset_on_close(w.sides[0].fd);
  pool_close(&w, 0);
  POOL_UNTIL(&w, w.asked_count == 5); /* the GET again: it can do no harm */
  CHECK(w.asked[4].side == 1 && strstr(w.asked[4].fields, ":method=GET\n"));
  pool_answer(&w, 4, ":status=200\n", "again");
  for (i = 0; i < 3; i++) POOL_UNTIL(&w, calls[i].done != E2B_PENDING);
  CHECK(calls[0].done == E2B_ERR_TRUNCATED && !calls[0].err.maybe_done);
  CHECK((calls[1].done == E2B_ERR_CLOSED || calls[1].done == E2B_ERR_IO) && calls[1].err.maybe_done);
  CHECK(calls[2].done == E2B_OK && calls[2].buf.len == 5);
  pool_call_free(&calls[2]);
  pool_end(&w);

  pool_new(&w); /* it had carried nothing before: no second try */
  pool_begin(&w);
  pool_read(&w, &calls[0], 0);
  POOL_UNTIL(&w, w.asked_count == 1);
  pool_close(&w, 0);
  POOL_UNTIL(&w, calls[0].done != E2B_PENDING);
  CHECK(calls[0].done < 0 && w.asked_count == 1);
  pool_end(&w);

  pool_new(&w); /* closed while it lay idle: a new one, without an error */
  pool_begin(&w);
  pool_warm(&w);
  pool_close(&w, 0);
  pool_move(&w, &calls[0]);
  POOL_UNTIL(&w, w.asked_count == 2 && w.asked[1].ended);
  CHECK_INT(w.asked[1].side, 1);
  pool_answer(&w, 1, POOL_OK, "");
  POOL_UNTIL(&w, calls[0].done != E2B_PENDING);
  CHECK_INT(calls[0].done, E2B_OK);
  pool_end(&w);

  pool_new(&w); /* a broken protocol ends them all, with our GOAWAY */
  pool_begin(&w);
  pool_warm(&w);
  pool_read(&w, &calls[0], 0);
  POOL_UNTIL(&w, w.asked_count == 2);
  pool_write(&w, 0, E2B__H2_PING, 0, 0, "short", 5);
  POOL_UNTIL(&w, calls[0].done != E2B_PENDING && w.sides[0].ends == 1);
  CHECK_INT(calls[0].done, E2B_ERR_PROTOCOL);
  CHECK_HAS(calls[0].err.message, "wrong size");
  pool_end(&w);
}

/* Canceled: the server is told, and what it had sent already does no harm, not even to the tables. */
static void test_pool_cancel(void) {
  static pool_world w;
  pool_call calls[3];
  pool_new(&w);
  pool_begin(&w);
  pool_warm(&w);
  pool_download(&w, &calls[0], 0, false);
  pool_read(&w, &calls[1], 0);
  POOL_UNTIL(&w, w.asked_count == 3);
  e2b_op_cancel(w.client, calls[0].op);
  pool_head(&w, 0, 0, w.asked[1].id, ":status=200\ncontent-type=late/late\n");
  pool_write(&w, 0, E2B__H2_DATA, 0, w.asked[1].id, "late", 4);
  pool_head(&w, 0, E2B__H2_END_STREAM, w.asked[1].id, "user-agent=trailer\n");
  pool_word(&w, 0, E2B__H2_WINDOW_UPDATE, w.asked[1].id, 1);
  pool_word(&w, 0, E2B__H2_RST_STREAM, w.asked[1].id, 0);
  pool_head(&w, 0, E2B__H2_END_STREAM, w.asked[2].id, ":status=200\ncontent-type=late/late\nuser-agent=trailer\n");
  POOL_UNTIL(&w, w.asked[1].reset >= 0 && calls[1].done != E2B_PENDING);
  CHECK_INT(w.asked[1].reset, E2B__H2_CANCEL);
  CHECK_INT(calls[0].done, E2B_PENDING);
  CHECK_INT(calls[1].done, E2B_OK);
  CHECK_INT(w.client->conns->h2->receive_window, E2B__H2_CONN_WINDOW - 5);
  CHECK_INT(w.client->conns->h2->decoder.table.count, 2);
  pool_read(&w, &calls[2], 0);
  POOL_UNTIL(&w, w.asked_count == 4);
  pool_answer(&w, 3, ":status=200\n", "");
  POOL_UNTIL(&w, calls[2].done != E2B_PENDING);
  CHECK(calls[2].done == E2B_OK && pool_made(&w) == 1);
  pool_call_free(&calls[1]);
  pool_call_free(&calls[2]);
  pool_end(&w);
}

/* A server that says nothing: after 20 s a PING, after 10 s more the end; a connection that lay idle for longer is no such case. */
static void test_pool_silence(void) {
  static pool_world w;
  pool_call calls[2];
  pool_new(&w);
  w.clock = 1000000;
  w.config.idle_ms = w.config.request_timeout_ms = 600000;
  w.config.idle_connection_ms = 600000;
  pool_begin(&w);
  pool_warm(&w);
  POOL_UNTIL(&w, !w.client->conns->h2->ping_waits); /* of measuring */
  w.sides[0].pings = 0;
  w.deaf = true;
  w.clock += 300000;
  pool_read(&w, &calls[0], 0);
  POOL_UNTIL(&w, w.asked_count == 2);
  pool_turns(&w, 5);
  CHECK(calls[0].done == E2B_PENDING && w.sides[0].pings == 0);
  w.clock += 19999;
  pool_turns(&w, 5);
  CHECK_INT(w.sides[0].pings, 0);
  w.clock += 1;
  POOL_UNTIL(&w, w.sides[0].pings == 1);
  w.clock += 9999;
  pool_turns(&w, 5);
  CHECK_INT(calls[0].done, E2B_PENDING);
  pool_write(&w, 0, E2B__H2_PING, E2B__H2_ACK, 0, "e2b.h\0\0\0", 8);
  POOL_UNTIL(&w, !w.client->conns->h2->ping_waits);
  w.clock += 20000;
  POOL_UNTIL(&w, w.sides[0].pings == 2);
  w.clock += 10000;
  POOL_UNTIL(&w, w.side_count == 2 && w.asked_count == 3); /* idempotent, and the connection was not new: once more */
  pool_turns(&w, 5);
  CHECK_INT(calls[0].done, E2B_PENDING);
  w.clock += 20000;
  POOL_UNTIL(&w, w.sides[1].pings == 1);
  w.clock += 10000;
  POOL_UNTIL(&w, calls[0].done != E2B_PENDING);
  CHECK_INT(calls[0].done, E2B_ERR_CLOSED);
  CHECK_HAS(calls[0].err.message, "PING");
  pool_end(&w);

  pool_new(&w); /* nobody looked for a minute, but the server had answered */
  w.clock = 1000000;
  w.config.idle_ms = w.config.request_timeout_ms = 600000;
  pool_begin(&w);
  pool_warm(&w);
  pool_move(&w, &calls[0]);
  POOL_UNTIL(&w, w.asked_count == 2 && w.asked[1].ended);
  w.clock += 25000;
  POOL_UNTIL(&w, w.sides[0].pings == 1);
  pool_answer(&w, 1, POOL_OK, "");
  w.clock += 60000;
  POOL_UNTIL(&w, calls[0].done != E2B_PENDING);
  CHECK_INT(calls[0].done, E2B_OK);
  pool_end(&w);
}

/* Deadlines and idle limits belong to the stream: its neighbours do not notice. */
static void test_pool_deadlines(void) {
  static pool_world w;
  pool_call calls[3];
  pool_new(&w);
  w.clock = 1000000;
  w.config.idle_ms = w.config.request_timeout_ms = 600000;
  pool_begin(&w);
  pool_warm(&w);
  pool_read(&w, &calls[0], 5000);
  pool_download(&w, &calls[1], 7000, false);
  pool_read(&w, &calls[2], 0);
  POOL_UNTIL(&w, w.asked_count == 4);
  pool_head(&w, 0, 0, w.asked[2].id, ":status=200\n");
  pool_turns(&w, 5);
  w.clock += 4999;
  pool_write(&w, 0, E2B__H2_DATA, 0, w.asked[2].id, "x", 1);
  POOL_UNTIL(&w, calls[1].taken == 1);
  CHECK_INT(calls[0].done, E2B_PENDING);
  w.clock += 1;
  POOL_UNTIL(&w, calls[0].done != E2B_PENDING && w.asked[1].reset >= 0);
  CHECK_INT(calls[0].done, E2B_ERR_TIMEOUT);
  CHECK_INT(calls[0].err.phase, E2B_PHASE_HEADERS);
  CHECK_INT(w.asked[1].reset, E2B__H2_CANCEL);
  w.clock += 6997;
  pool_turns(&w, 5);
  CHECK_INT(calls[1].done, E2B_PENDING);
  w.clock += 2;
  POOL_UNTIL(&w, calls[1].done != E2B_PENDING && w.asked[2].reset >= 0);
  CHECK_INT(calls[1].done, E2B_ERR_IDLE_TIMEOUT);
  pool_answer(&w, 3, ":status=200\n", "fine");
  POOL_UNTIL(&w, calls[2].done != E2B_PENDING);
  CHECK(calls[2].done == E2B_OK && pool_made(&w) == 1);
  pool_call_free(&calls[2]);
  pool_end(&w);
}

/* Who takes nothing is sent no more than a window, and the others go on. */
static void test_pool_paused(void) {
  static pool_world w;
  static char bytes[16384];
  pool_call calls[2];
  uint32_t window = 65536;
  int i;
  pool_new(&w);
  pool_begin(&w);
  pool_warm(&w);
  pool_download(&w, &calls[0], 0, true);
  pool_read(&w, &calls[1], 0);
  POOL_UNTIL(&w, w.asked_count == 3);
  pool_head(&w, 0, 0, w.asked[1].id, ":status=200\n");
  pool_head(&w, 0, 0, w.asked[2].id, ":status=200\n");
  for (i = 0; i < 4; i++) pool_write(&w, 0, E2B__H2_DATA, 0, w.asked[1].id, bytes, 16384);
  for (i = 0; i < 20; i++) { /* five times the window, as it is given */
    pool_write(&w, 0, E2B__H2_DATA, i == 19 ? E2B__H2_END_STREAM : 0, w.asked[2].id, bytes, 16384);
    if (i >= 1 && i < 19) POOL_UNTIL(&w, window + w.asked[2].allowed >= (uint64_t)(i + 2) * 16384);
  }
  POOL_UNTIL(&w, calls[1].done != E2B_PENDING);
  CHECK(calls[1].done == E2B_OK && calls[1].buf.len == 20 * 16384);
  CHECK_INT(w.asked[1].allowed, 0);
  CHECK(calls[0].taken > 0 && calls[0].taken < 65536 && calls[0].done == E2B_PENDING);
  calls[0].pause = false;
  e2b_op_resume(w.client, calls[0].op);
  POOL_UNTIL(&w, calls[0].taken == 65536 && w.asked[1].allowed > 0);
  pool_write(&w, 0, E2B__H2_DATA, E2B__H2_END_STREAM, w.asked[1].id, bytes, 100);
  POOL_UNTIL(&w, calls[0].done != E2B_PENDING);
  CHECK(calls[0].done == E2B_OK && calls[0].taken == 65636);
  pool_call_free(&calls[1]);
  pool_end(&w);
}

/* An upload beyond all windows, which the server moves meanwhile; one that is answered before its end. */
static void test_pool_upload(void) {
  static pool_world w;
  pool_call call;
  size_t i, size = 300000;
  pool_new(&w);
  w.settings = "000400000064"; /* 100 bytes */
  pool_begin(&w);
  pool_warm(&w);
  pool_upload(&w, &call, size);
  POOL_UNTIL(&w, w.asked_count == 2 && w.asked[1].body.len == 100);
  pool_turns(&w, 3);
  CHECK_INT(w.asked[1].body.len, 100);
  pool_settings(&w, 0, "00040000000a"); /* 90 less: below zero */
  pool_word(&w, 0, E2B__H2_WINDOW_UPDATE, w.asked[1].id, 91);
  POOL_UNTIL(&w, w.asked[1].body.len == 101);
  pool_settings(&w, 0, "000400100000"); /* now the connection's window is the limit */
  POOL_UNTIL(&w, w.asked[1].body.len == 65535);
  pool_turns(&w, 3);
  CHECK_INT(w.asked[1].body.len, 65535);
  while (w.asked[1].body.len < size && w.sides[0].fd >= 0) {
    size_t before = w.asked[1].body.len;
    pool_word(&w, 0, E2B__H2_WINDOW_UPDATE, 0, 30000);
    POOL_UNTIL(&w, w.asked[1].body.len == E2B__MIN(size, before + 30000));
    if (w.asked[1].body.len == before) break;
  }
  POOL_UNTIL(&w, w.asked[1].ended);
  for (i = 0; i < w.asked[1].body.len && w.asked[1].body.data[i] == i % 251; i++) {}
  CHECK_INT(i, size);
  CHECK_HAS(w.asked[1].fields, "content-length=300000\n");
  pool_answer(&w, 1, ":status=200\ncontent-type=application/json\n", POOL_WRITTEN);
  POOL_UNTIL(&w, call.done != E2B_PENDING);
  if (!CHECK_INT(call.done, E2B_OK)) printf("  %s\n", call.err.message);

  pool_upload(&w, &call, size);
  POOL_UNTIL(&w, w.asked_count == 3);
  pool_answer(&w, 2, ":status=413\n", "too much");
  POOL_UNTIL(&w, call.done != E2B_PENDING && w.asked[2].reset >= 0);
  CHECK_INT(call.err.http_status, 413);
  CHECK(!w.asked[2].ended && pool_made(&w) == 1);
  pool_end(&w);
}

/* The last stream a connection can have, and then another connection. */
static void test_pool_ids(void) {
  static pool_world w;
  pool_call calls[2];
  int i;
  pool_new(&w);
  pool_begin(&w);
  pool_warm(&w);
  w.client->conns->h2->next_id = E2B__H2_MAX_ID;
  for (i = 0; i < 2; i++) pool_move(&w, &calls[i]);
  POOL_UNTIL(&w, w.asked_count == 3 && w.asked[1].ended && w.asked[2].ended);
  CHECK(w.asked[1].side == 0 && w.asked[1].id == 0x7ffffffd);
  CHECK(w.asked[2].side == 1 && w.asked[2].id == 1);
  for (i = 0; i < 2; i++) pool_answer(&w, i + 1, POOL_OK, "");
  for (i = 0; i < 2; i++) POOL_UNTIL(&w, calls[i].done != E2B_PENDING);
  CHECK(calls[0].done == E2B_OK && calls[1].done == E2B_OK);
  POOL_UNTIL(&w, w.sides[0].fd < 0); /* the used up one is closed */
  pool_end(&w);
}

/* A port that speaks HTTP/1.1 only. */
static void test_pool_not_http2(void) {
  static const char *const answers[] = { "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
                                         "220 smtp.example.com ready\r\n" };
  static const char *const words[] = { "answered with HTTP/1", "does not speak HTTP/2" };
  int i;
  for (i = 0; i < 2; i++) {
    static pool_world w;
    net_server s;
    e2b_buf out;
    memset(&s, 0, sizeof s);
    s.say = answers[i];
    s.say_len = strlen(answers[i]);
    net_server_start(&s, NET_SAY);
    pool_new(&w);
    pool_begin(&w);
    e2b_client_free(w.client);
    (void)snprintf(w.url, sizeof w.url, "http://127.0.0.1:%u", (unsigned)s.port);
    w.client = e2b_client_create(&w.config, &w.err);
    w.sandbox = pool_sandbox(&w, "sbx");
    memset(&out, 0, sizeof out);
    CHECK_INT(e2b_files_read(w.sandbox, "/x", NULL, &out, &w.err), E2B_ERR_PROTOCOL);
    CHECK_HAS(w.err.message, words[i]);
    pool_end(&w);
    net_server_stop(&s);
  }
}

/* HTTP_1_1_REQUIRED over TLS: the same request by HTTP/1.1 on a connection of its own. */
static void test_pool_http1_required(void) {
  static pool_world w;
  net_server s;
  e2b_buf out;
  int version;
  uint8_t der[2048];
  size_t len = net_cert_make(NULL, der, sizeof der);
  for (version = 0; version < 3; version += 2) {
    net_tls_server_start(&s, NET_HTTP1_REQUIRED, &net_localhost, "h2");
    pool_new(&w);
    pool_begin(&w);
    e2b_client_free(w.client);
    (void)snprintf(w.url, sizeof w.url, "https://localhost:%u", (unsigned)s.port);
    w.config.http_version = (uint8_t)version;
    w.config.tls.ca_pem = (const char *)der;
    w.config.tls.ca_pem_len = len;
    w.client = e2b_client_create(&w.config, &w.err);
    w.sandbox = pool_sandbox(&w, "sbx");
    memset(&out, 0, sizeof out);
    CHECK_INT(e2b_files_read(w.sandbox, "/x", NULL, &out, &w.err), version ? E2B_ERR_UNAVAILABLE : E2B_OK);
    if (version) CHECK_HAS(w.err.message, "HTTP_1_1_REQUIRED"); /* HTTP/2 was demanded */
    else CHECK_STR((const char *)out.data, "one");
    e2b_mem_free(&out.mem);
    pool_end(&w);
    net_tls_server_stop(&s);
    CHECK(version || s.accepted == 2);
  }
}

/* Every allocation failing in turn while two requests of one connection are under way: each ends, as what it is. */
static void test_pool_no_memory(void) {
  static pool_world w;
  size_t fail;
  bool met = true;
  for (fail = 1; met && fail < 1000; fail++) {
    e2b_files_opts opts;
    pool_call calls[2];
    int i, turns, said = 0;
    pool_new(&w);
    pool_begin(&w);
    w.heap.calls = 0;
    w.heap.fail_at = fail;
    for (i = 0; i < 2; i++) {
      e2b_err rc;
      pool_call_init(&calls[i], &opts);
      calls[i].size = 70000;
      rc = i ? e2b_files_upload(w.sandbox, "/x", pool_source, &calls[i], 70000, &opts, NULL, &w.err)
             : e2b_files_read(w.sandbox, "/x", &opts, &calls[i].buf, &w.err);
      if (rc != E2B_PENDING) calls[i].done = rc;
      CHECK(rc == E2B_PENDING || rc == E2B_ERR_NO_MEMORY);
    }
    for (turns = 0; turns < 2000 && (calls[0].done == E2B_PENDING || calls[1].done == E2B_PENDING); turns++) {
      pool_turn(&w);
      for (; said < w.asked_count; said++) {
        bool post = strstr(w.asked[said].fields, ":method=POST") != NULL;
        if (!post) pool_answer(&w, said, ":status=200\ncontent-type=text/plain\nserver=x\n", "content");
        else if (w.asked[said].ended) pool_answer(&w, said, ":status=200\n", POOL_WRITTEN);
        else break;
      }
      for (i = said; i < w.asked_count; i++) {
        pool_word(&w, w.asked[i].side, E2B__H2_WINDOW_UPDATE, 0, 20000);
        pool_word(&w, w.asked[i].side, E2B__H2_WINDOW_UPDATE, w.asked[i].id, 20000);
      }
    }
    met = w.heap.calls >= fail;
    for (i = 0; i < 2; i++) {
      if (!CHECK(calls[i].done == E2B_OK || (met && calls[i].done == E2B_ERR_NO_MEMORY)))
        printf("  allocation %d, call %d: %s: %s\n", (int)fail, i, e2b_err_name(calls[i].done), calls[i].err.message);
      if (calls[i].done == E2B_OK) pool_call_free(&calls[i]);
    }
    w.heap.fail_at = 0;
    pool_end(&w);
  }
  CHECK(fail > 30 && fail < 1000);
}
#endif /* E2B_NO_HTTP2 */

/* ================================================================================================================== */
/* >>>> hosts */
/* ================================================================================================================== */

/* What the end-to-end tests run against, each in turn: the local server over http and https, and once more with RPC in
 * JSON; or an envd without a control plane, with each codec. */
typedef struct host {
  const char *name;
  bool tls, control_plane;
  e2b_codec codec;
  char url[128], ca_file[128]; /* "" = nothing to trust */
  char why_not[200];           /* why it cannot be used; "" = it can */
  pid_t pid;                   /* of the local server; 0 = not started */
  int hold;                    /* the server lives as long as this is open */
  bool kruise;                 /* it is OpenKruise Agents: another API, and an envd that lacks much */
} host;

static host hosts[] = {
  { "http", false, true, E2B_CODEC_DEFAULT, "", "", "", 0, -1, false },
  { "https", true, true, E2B_CODEC_DEFAULT, "", "", "", 0, -1, false },
  { "json", false, true, E2B_CODEC_JSON, "", "", "", 0, -1, false },
  { "kruise", false, true, E2B_CODEC_DEFAULT, "", "", "", 0, -1, true },
  { "envd", false, false, E2B_CODEC_DEFAULT, "", "", "", 0, -1, false },
  { "envd-json", false, false, E2B_CODEC_JSON, "", "", "", 0, -1, false },
  { "front", true, true, E2B_CODEC_DEFAULT, "", "", "", -1, -1, false },
};
static const char *front_url, *front_key;   /* a local server behind somebody else's proxy, see tests/http2.sh */
static uint8_t front_http_version;
static host *the_host;                      /* of the test under way */
static char server_path[512], work_dir[64]; /* the local server; where its files and ours go */

#define HOST_KEY "test-key"

static bool host_fail(host *h, const char *why) {
  snprintf(h->why_not, sizeof h->why_not, "%s", why);
  return false;
}

static void host_exec(const host *h, int stdin_fd, const char *port_file, const char *log_file) {
  const char *args[16];
  int n = 0, log = open(log_file, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  args[n++] = server_path;
  args[n++] = "--port-file";
  args[n++] = port_file;
  args[n++] = "--exit-with-stdin";
  args[n++] = "--api-key";
  args[n++] = HOST_KEY;
  if (h->kruise) {
    args[n++] = "--kruise";
    args[n++] = "--token-life";
    args[n++] = "600";
  }
  if (h->tls) {
    args[n++] = "--tls";
    args[n++] = "--ca-out";
    args[n++] = h->ca_file;
  }
  args[n] = NULL;
  dup2(stdin_fd, 0);
  dup2(log, 1);
  dup2(log, 2);
  execv(server_path, (char *const *)args);
  _exit(127);
}

/* Starts the local server once; the port file appears when it listens. */
static bool host_start(host *h) {
  char port_file[128], log_file[128], port[16] = "";
  int ends[2], tries, fd;
  if (h->pid || h->why_not[0]) return !h->why_not[0];
  if (access(server_path, X_OK) != 0) return host_fail(h, "there is no local_server beside this program");
  snprintf(port_file, sizeof port_file, "%s/%s.port", work_dir, h->name);
  snprintf(log_file, sizeof log_file, "%s/%s.log", work_dir, h->name);
  if (h->tls) snprintf(h->ca_file, sizeof h->ca_file, "%s/%s.pem", work_dir, h->name);
  if (pipe(ends) != 0) return host_fail(h, "pipe failed");
  fcntl(ends[1], F_SETFD, FD_CLOEXEC);
  h->pid = fork();
  if (h->pid == 0) host_exec(h, ends[0], port_file, log_file);
  close(ends[0]);
  h->hold = ends[1];
  for (tries = 0; tries < 1000 && !port[0]; tries++) {
    if (waitpid(h->pid, NULL, WNOHANG) != 0) break;
    fd = open(port_file, O_RDONLY);
    if (fd >= 0) {
      ssize_t n = read(fd, port, sizeof port - 1);
      port[n > 0 ? (size_t)n : 0] = 0;
      port[strcspn(port, "\r\n")] = 0;
      close(fd);
    }
    if (!port[0]) sleep_ms(20);
  }
  if (!port[0]) return host_fail(h, "the local server did not start");
  snprintf(h->url, sizeof h->url, "%s://localhost:%s", h->tls ? "https" : "http", port);
  return true;
}

/* Stops what was started: a server ends by itself when its stdin does. Its log is kept when something failed. */
static void hosts_stop(bool clean) {
  static const char *const kinds[] = { "port", "log", "pem" };
  char file[128];
  size_t i, k;
  int tries, status;
  for (i = 0; i < E2B__COUNT(hosts); i++) {
    if (hosts[i].pid <= 0) continue;
    close(hosts[i].hold);
    for (tries = 0; tries < 500 && waitpid(hosts[i].pid, &status, WNOHANG) == 0; tries++) sleep_ms(10);
    if (tries == 500) {
      printf("the local server (%s) did not end with its stdin\n", hosts[i].name);
      kill(hosts[i].pid, SIGKILL);
      waitpid(hosts[i].pid, &status, 0);
    }
    for (k = 0; clean && k < E2B__COUNT(kinds); k++) {
      snprintf(file, sizeof file, "%s/%s.%s", work_dir, hosts[i].name, kinds[k]);
      unlink(file);
    }
  }
  if (rmdir(work_dir) != 0) printf("logs of the local servers: %s\n", work_dir);
}

static e2b_client_config host_config(const host *h) {
  e2b_client_config config;
  memset(&config, 0, sizeof config);
  config.no_env = true;
  config.api_key = HOST_KEY;
  config.codec = h->codec;
  if (h->kruise) {
    config.protocol = E2B_PROTOCOL_PRIVATE;
    config.scheme = "http";
    config.domain = strstr(h->url, "//") + 2;
  } else {
    config.api_url = config.sandbox_url = h->url;
  }
  if (h->url[0] && front_url && strcmp(h->url, front_url) == 0) {
    config.api_key = front_key;
    config.http_version = front_http_version;
  }
  if (h->ca_file[0]) config.tls.ca_file = h->ca_file;
  return config;
}

/* One client, one sandbox and one directory in it, for one test. */
typedef struct fixture {
  test_heap memory; /* of the client */
  e2b_client *client;
  e2b_sandbox *sandbox;
  char dir[80];
  unsigned paths;
} fixture;

static bool fixture_open(fixture *f) {
  e2b_client_config config = host_config(the_host);
  static unsigned dirs;
  e2b_error err;
  memset(f, 0, sizeof *f);
  config.allocator = heap_allocator(&f->memory);
  f->client = e2b_client_create(&config, &err);
  if (!CHECK_OK(f->client ? E2B_OK : err.code)) return false;
  snprintf(f->dir, sizeof f->dir, "/tmp/e2b-test-%ld-%u", (long)getpid(), ++dirs);
  if (the_host->control_plane)
    CHECK_OK(e2b_sandbox_create(f->client, NULL, NULL, &f->sandbox, &err));
  else {
    e2b_attach_opts opts;
    memset(&opts, 0, sizeof opts);
    opts.base_url = the_host->url;
    opts.access_token = getenv("E2B_ENVD_TOKEN");
    opts.code_interpreter_base_url = getenv("E2B_CODE_URL");
    CHECK_OK(e2b_sandbox_attach(f->client, "test", &opts, &f->sandbox, &err));
  }
  return f->sandbox && CHECK_OK(e2b_files_make_dir(f->sandbox, f->dir, NULL, NULL, &err));
}

/* After every test the client must still work, and nothing may be left allocated. */
static void fixture_close(fixture *f) {
  e2b_error err;
  int tries;
  if (f->sandbox) {
    for (tries = 0; e2b_files_remove(f->sandbox, f->dir, NULL, &err) != E2B_OK && tries < 50; tries++)
      sleep_ms(20); /* an upload that was broken off may still be making its file */
    CHECK(tries < 50);
    if (the_host->control_plane)
      CHECK_OK(e2b_sandbox_close(f->sandbox, NULL, &err));
    else
      e2b_sandbox_free(f->sandbox);
  }
  e2b_client_free(f->client);
  HEAP_CHECK_EMPTY(&f->memory);
}

/* A path in the directory of the test; valid until four more were asked for. */
static const char *in_dir(fixture *f, const char *name) {
  static char paths[4][200];
  char *path = paths[f->paths++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", f->dir, name);
  return path;
}
/* ================================================================================================================== */
/* >>>> end to end */
/* ================================================================================================================== */

/* SHA-256, to compare with what sha256sum says in the sandbox. */
typedef struct sha256 {
  uint32_t state[8];
  uint8_t block[64];
  uint64_t len;
} sha256;

static void sha256_block(sha256 *s, const uint8_t *data) {
  static const uint32_t k[64] = { 0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
                                  0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
                                  0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
                                  0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
                                  0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
                                  0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
                                  0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
                                  0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
                                  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
                                  0xc67178f2 };
#define ROR(x, n) ((x) >> (n) | (x) << (32 - (n)))
  uint32_t w[64], v[8], a, b;
  int i;
  for (i = 0; i < 16; i++, data += 4)
    w[i] = (uint32_t)data[0] << 24 | (uint32_t)data[1] << 16 | (uint32_t)data[2] << 8 | data[3];
  for (; i < 64; i++)
    w[i] = w[i - 16] + w[i - 7] + (ROR(w[i - 15], 7) ^ ROR(w[i - 15], 18) ^ w[i - 15] >> 3) +
           (ROR(w[i - 2], 17) ^ ROR(w[i - 2], 19) ^ w[i - 2] >> 10);
  memcpy(v, s->state, sizeof v);
  for (i = 0; i < 64; i++) { /* v[(n - i) % 8] is the nth of the eight; instead of moving them all */
#define V(n) v[((n) - i) & 7]
    a = V(7) + (ROR(V(4), 6) ^ ROR(V(4), 11) ^ ROR(V(4), 25)) + ((V(4) & V(5)) ^ (~V(4) & V(6))) + k[i] + w[i];
    b = (ROR(V(0), 2) ^ ROR(V(0), 13) ^ ROR(V(0), 22)) + ((V(0) & V(1)) ^ (V(0) & V(2)) ^ (V(1) & V(2)));
    V(3) += a;
    V(7) = a + b;
#undef V
  }
  for (i = 0; i < 8; i++) s->state[i] += v[i];
#undef ROR
}

static void sha256_start(sha256 *s) {
  static const uint32_t initial[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                       0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
  memcpy(s->state, initial, sizeof initial);
  s->len = 0;
}

static void sha256_add(sha256 *s, const void *data, size_t len) {
  const uint8_t *at = (const uint8_t *)data;
  while (len > 0) {
    size_t have = (size_t)(s->len % 64), n = len < 64 - have ? len : 64 - have;
    memcpy(s->block + have, at, n);
    s->len += n;
    at += n;
    len -= n;
    if (have + n == 64) sha256_block(s, s->block);
  }
}

static void sha256_hex(sha256 *s, char out[65]) {
  static const uint8_t padding[64] = { 0x80 };
  uint64_t bits = s->len * 8;
  uint8_t count[8];
  int i;
  for (i = 0; i < 8; i++) count[i] = (uint8_t)(bits >> (56 - 8 * i));
  sha256_add(s, padding, (size_t)((119 - s->len % 64) % 64) + 1);
  sha256_add(s, count, 8);
  for (i = 0; i < 8; i++) snprintf(out + 8 * i, 9, "%08lx", (unsigned long)s->state[i]);
}

static void test_sha256(void) {
  sha256 s;
  char hex[65];
  int i;
  sha256_start(&s);
  sha256_hex(&s, hex);
  CHECK_STR(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  sha256_start(&s);
  for (i = 0; i < 1000; i++) sha256_add(&s, "0123456789", 10);
  sha256_hex(&s, hex);
  CHECK_STR(hex, "4c207598af7a20db0e3334dd044399a40e467cb81b37f7ba05a4f76dcbd8fd59");
}

/* What `seq 1 999999999` prints, to be compared with what arrives. */
typedef struct sequence {
  unsigned long number;
  char line[24];
  int at, len;
  uint64_t total; /* bytes that agreed */
  bool differs;
  int pauses; /* E2B_PAUSE is still to be returned so often */
} sequence;

static int sequence_compare(void *user, const char *data, size_t len) {
  sequence *s = (sequence *)user;
  size_t i;
  for (i = 0; i < len && !s->differs; i++) {
    if (s->at == s->len) {
      s->len = snprintf(s->line, sizeof s->line, "%lu\n", ++s->number);
      s->at = 0;
    }
    if (data[i] != s->line[s->at++]) s->differs = true;
  }
  s->total += i;
  if (s->pauses > 0) {
    s->pauses--;
    return E2B_PAUSE;
  }
  return 0;
}

static const char *sequence_command(uint64_t bytes) {
  static char command[100];
  snprintf(command, sizeof command, "seq 1 999999999 | head -c %lu", (unsigned long)bytes);
  return command;
}

/* Bytes that no compression or repetition would reproduce; the same for the same seed. */
static void noise(uint64_t *state, uint8_t *out, size_t len) {
  while (len > 0) {
    size_t n = len < 8 ? len : 8;
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    memcpy(out, state, n);
    out += n;
    len -= n;
  }
}

#define MIB ((uint64_t)1 << 20)

/* Counts completions. */
static e2b_run_opts run_with(e2b_done_fn fn, void *user) {
  e2b_run_opts opts;
  memset(&opts, 0, sizeof opts);
  opts.call.on_done = fn;
  opts.call.user = user;
  return opts;
}

/* Runs a command that must succeed; its output, valid until the next call. */
static const char *output_of(fixture *f, const char *command) {
  static char output[4096];
  e2b_command_result result;
  e2b_error err;
  memset(&result, 0, sizeof result);
  output[0] = 0;
  if (CHECK_OK(e2b_commands_run(f->sandbox, command, NULL, &result, &err)))
    snprintf(output, sizeof output, "%s", result.stdout_data.ptr);
  e2b_mem_free(&result.mem);
  return output;
}

static void check_works_at(fixture *f, int line) {
  check_str_at(output_of(f, "echo still here"), "still here\n", line, "a command afterwards");
}
#define CHECK_WORKS(f) check_works_at(f, __LINE__)

/* ---- commands ---------------------------------------------------------------------------------------------------- */

static void e2e_run(fixture *f) {
  e2b_command_result r = { 0 };
  e2b_error err;
  CHECK_OK(e2b_commands_run(f->sandbox, "echo hello; echo oops >&2", NULL, &r, &err));
  CHECK_STR(r.stdout_data.ptr, "hello\n");
  CHECK_INT(r.stdout_data.len, 6);
  CHECK_STR(r.stderr_data.ptr, "oops\n");
  CHECK_INT(r.exit_code, 0);
  CHECK(r.exited && !r.truncated);
  CHECK_STR(r.error, "");
  e2b_mem_free(&r.mem);
  CHECK_OK(e2b_commands_run(f->sandbox, "true", NULL, NULL, &err));
  CHECK_OK(e2b_commands_run(f->sandbox, "true", NULL, &r, NULL));
  CHECK_STR(r.stdout_data.ptr, "");
  e2b_mem_free(&r.mem);
}

static void e2e_run_binary(fixture *f) {
  e2b_command_result r = { 0 };
  e2b_error err;
  CHECK_OK(e2b_commands_run(f->sandbox, "printf 'a\\0b\\377\\303'; printf 'gr\xc3\xbc\xc3\x9f \"$HOME\" `' >&2", NULL,
                            &r, &err));
  CHECK(r.stdout_data.len == 5 && memcmp(r.stdout_data.ptr, "a\0b\xff\xc3", 6) == 0);
  CHECK_STR(r.stderr_data.ptr, "gr\xc3\xbc\xc3\x9f \"$HOME\" `");
  e2b_mem_free(&r.mem);
}

static void e2e_run_exit_code(fixture *f) {
  e2b_command_result r = { 0 };
  e2b_error err;
  CHECK_RC(e2b_commands_run(f->sandbox, "echo out; echo err >&2; exit 3", NULL, &r, &err), E2B_COMMAND_EXIT);
  CHECK_INT(err.code, E2B_COMMAND_EXIT);
  CHECK_INT(err.exit_code, 3);
  CHECK_INT(r.exit_code, 3);
  CHECK(r.exited);
  CHECK_STR(r.stdout_data.ptr, "out\n");
  CHECK_STR(r.stderr_data.ptr, "err\n");
  CHECK_STR(r.error, "exit status 3");
  e2b_mem_free(&r.mem);
  CHECK_RC(e2b_commands_run(f->sandbox, "no_such_command_here", NULL, &r, &err), E2B_COMMAND_EXIT);
  CHECK_INT(r.exit_code, 127);
  e2b_mem_free(&r.mem);
}

static void e2e_run_signal(fixture *f) {
  e2b_command_result r = { 0 };
  e2b_error err;
  CHECK_RC(e2b_commands_run(f->sandbox, "echo out; kill -9 $$", NULL, &r, &err), E2B_COMMAND_EXIT);
  CHECK(!r.exited);
  CHECK_INT(r.exit_code, -1);
  CHECK_STR(r.stdout_data.ptr, "out\n");
  CHECK_STR(r.error, "signal: killed");
  e2b_mem_free(&r.mem);
}

static void e2e_run_where_and_with(fixture *f) {
  static const e2b_kv pairs[] = { { "ONE", "1 \"quoted\" $x" }, { "EMPTY", "" } };
  e2b_run_opts opts = { 0 };
  e2b_command_result r = { 0 };
  e2b_error err;
  char want[200];
  opts.cwd = f->dir;
  opts.envs.items = pairs;
  opts.envs.count = 2;
  CHECK_OK(e2b_commands_run(f->sandbox, "pwd; echo \"$ONE ${EMPTY-unset}\"", &opts, &r, &err));
  snprintf(want, sizeof want, "%s\n1 \"quoted\" $x \n", f->dir);
  CHECK_STR(r.stdout_data.ptr, want);
  e2b_mem_free(&r.mem);

  opts.cwd = in_dir(f, "missing");
  CHECK_RC(e2b_commands_run(f->sandbox, "true", &opts, &r, &err), E2B_ERR_INVALID_ARGUMENT);
  CHECK(strstr(err.message, "missing"));
  e2b_mem_free(&r.mem);
  memset(&opts, 0, sizeof opts);
  opts.user = "no-such-user";
  CHECK_RC(e2b_commands_run(f->sandbox, "true", &opts, &r, &err), E2B_ERR_UNAUTHENTICATED);
  e2b_mem_free(&r.mem);
  CHECK_WORKS(f);
}

static void e2e_run_deadlines(fixture *f) {
  e2b_run_opts opts = { 0 };
  e2b_command_result r = { 0 };
  e2b_error err;
  uint64_t from;
  for (opts.call.timeout_ms = 400; opts.call.timeout_ms < 10000; opts.call.timeout_ms *= 2) { /* where starting takes longer */
    from = now_ms();
    CHECK_RC(e2b_commands_run(f->sandbox, "echo begun; sleep 12", &opts, &r, &err), E2B_ERR_TIMEOUT);
    CHECK(now_ms() - from >= (uint64_t)opts.call.timeout_ms);
    if (r.stdout_data.len) break;
    e2b_mem_free(&r.mem);
  }
  CHECK_STR(r.stdout_data.ptr, "begun\n");
  CHECK(err.maybe_done);
  e2b_mem_free(&r.mem);

  memset(&opts, 0, sizeof opts);
  opts.run_timeout_ms = 400;
  from = now_ms();
  CHECK_RC(e2b_commands_run(f->sandbox, "sleep 30", &opts, &r, &err), E2B_ERR_TIMEOUT);
  CHECK(now_ms() - from >= 390);
  e2b_mem_free(&r.mem);
  CHECK_WORKS(f);
}

static void e2e_run_stdin_is_closed(fixture *f) {
  CHECK_STR(output_of(f, "cat; echo end"), "end\n");
}

static void e2e_run_max_collect(fixture *f) {
  e2b_run_opts opts = { 0 };
  e2b_command_result r = { 0 };
  e2b_error err;
  char store[512];
  e2b_mem fixed = E2B_MEM_FIXED(store);
  opts.max_collect = 1000;
  CHECK_OK(e2b_commands_run(f->sandbox, sequence_command(100000), &opts, &r, &err));
  CHECK(r.truncated);
  CHECK_INT(r.stdout_data.len, 1000);
  CHECK(r.stdout_data.ptr && strncmp(r.stdout_data.ptr, "1\n2\n3\n", 6) == 0 && r.stdout_data.ptr[1000] == 0);
  e2b_mem_free(&r.mem);
  opts.max_collect = 0;
  opts.no_collect = true;
  CHECK_OK(e2b_commands_run(f->sandbox, "echo hello", &opts, &r, &err));
  CHECK_STR(r.stdout_data.ptr, "");
  e2b_mem_free(&r.mem);

  r.mem = fixed;
  CHECK_OK(e2b_commands_run(f->sandbox, "echo hello", NULL, &r, &err));
  CHECK_STR(r.stdout_data.ptr, "hello\n");
  CHECK(r.stdout_data.ptr >= store && r.stdout_data.ptr < store + sizeof store);
  e2b_mem_free(&r.mem);
  r.mem = fixed;
  CHECK_RC(e2b_commands_run(f->sandbox, sequence_command(1000), NULL, &r, &err), E2B_ERR_BUFFER_TOO_SMALL);
  CHECK(r.mem.len > 1000 && r.mem.len < 1500);
  CHECK_WORKS(f);
}

/* 64 MiB pushed to a callback, then pulled; in constant memory. */
static void e2e_stream_output(fixture *f) {
  uint64_t size = quick ? 4 * MIB : 64 * MIB;
  e2b_run_opts opts = { 0 };
  e2b_command_handle *handle;
  e2b_command_event event;
  e2b_client_stats stats;
  e2b_error err;
  sequence s;
  e2b_err rc;
  bool exited = false;
  memset(&s, 0, sizeof s);
  opts.on_stdout = sequence_compare;
  opts.output_user = &s;
  opts.no_collect = true;
  CHECK_OK(e2b_commands_run(f->sandbox, sequence_command(size), &opts, NULL, &err));
  CHECK_INT(s.total, size);
  CHECK(!s.differs);

  memset(&s, 0, sizeof s);
  if (!CHECK_OK(e2b_commands_start(f->sandbox, sequence_command(size), NULL, &handle, &err))) return;
  while ((rc = e2b_command_handle_next(handle, -1, &event, &err)) == E2B_OK) {
    if (event.kind == E2B_EVENT_STDOUT) sequence_compare(&s, event.data, event.len);
    if (event.kind == E2B_EVENT_EXIT) exited = CHECK_INT(event.exit_code, 0) && CHECK(event.exited);
  }
  CHECK_RC(rc, E2B_EOF);
  CHECK(exited);
  CHECK_INT(s.total, size);
  CHECK(!s.differs);
  e2b_command_handle_free(handle);
  e2b_client_get_stats(f->client, &stats);
  CHECK(stats.mem_peak < MIB);
}

/* Output nobody takes is held back at its source, and nothing of it is lost. */
static void e2e_stream_backpressure(fixture *f) {
  uint64_t size = quick ? 4 * MIB : 32 * MIB, until;
  e2b_command_handle *handle;
  e2b_command_event event;
  e2b_client_stats stats;
  e2b_error err;
  sequence s;
  e2b_err rc;
  memset(&s, 0, sizeof s);
  if (!CHECK_OK(e2b_commands_start(f->sandbox, sequence_command(size), NULL, &handle, &err))) return;
  for (until = now_ms() + 300; now_ms() < until;) e2b_client_poll(f->client, 20);
  e2b_client_get_stats(f->client, &stats);
  CHECK(stats.mem_now < MIB);
  CHECK(stats.bytes_rx < size / 2);
  CHECK_WORKS(f); /* the others are not held up */
  while ((rc = e2b_command_handle_next(handle, 1000, &event, &err)) == E2B_OK || rc == E2B_PENDING)
    if (rc == E2B_OK && event.kind == E2B_EVENT_STDOUT) sequence_compare(&s, event.data, event.len);
  CHECK_RC(rc, E2B_EOF);
  CHECK_INT(s.total, size);
  CHECK(!s.differs);
  e2b_command_handle_free(handle);
}

static void e2e_stream_pause(fixture *f) {
  uint64_t size = 2 * MIB, until, had;
  e2b_run_opts opts;
  e2b_command_handle *handle;
  e2b_command_result r = { 0 };
  e2b_error err;
  e2b_op op = { 0 };
  sequence s;
  done d = { 0 };
  memset(&s, 0, sizeof s);
  s.pauses = 3;
  opts = run_with(on_done, &d);
  opts.call.op = &op;
  opts.on_stdout = sequence_compare;
  opts.output_user = &s;
  opts.no_collect = true;
  CHECK_RC(e2b_commands_run(f->sandbox, sequence_command(size), &opts, &r, &err), E2B_PENDING);
  while (s.pauses > 0 && !d.count) {
    had = s.total;
    while (s.total == had && !d.count) e2b_client_poll(f->client, 100);
    had = s.total;
    for (until = now_ms() + 50; now_ms() < until;) e2b_client_poll(f->client, 10);
    CHECK_INT(s.total, had); /* paused is paused */
    e2b_op_resume(f->client, op);
  }
  while (!d.count) e2b_client_poll(f->client, 100);
  CHECK_OK(d.err.code);
  CHECK_INT(s.total, size);
  e2b_mem_free(&r.mem);

  memset(&s, 0, sizeof s);
  s.pauses = 1;
  memset(&opts, 0, sizeof opts);
  opts.on_stdout = sequence_compare;
  opts.output_user = &s;
  if (!CHECK_OK(e2b_commands_start(f->sandbox, sequence_command(size), &opts, &handle, &err))) return;
  while (s.pauses > 0) e2b_client_poll(f->client, 100);
  had = s.total;
  for (until = now_ms() + 50; now_ms() < until;) e2b_client_poll(f->client, 10);
  CHECK_INT(s.total, had);
  e2b_command_handle_resume(handle);
  CHECK_OK(e2b_command_handle_wait(handle, NULL, NULL, &err));
  CHECK_INT(s.total, size);
  CHECK(!s.differs);
  e2b_command_handle_free(handle);
}

static void e2e_stdin(fixture *f) {
  e2b_run_opts opts = { 0 };
  e2b_command_handle *handle;
  e2b_command_result r = { 0 };
  e2b_error err;
  uint64_t seed = 7;
  uint8_t *data = (uint8_t *)malloc(100000);
  uint32_t pid;
  opts.stdin_open = true;
  noise(&seed, data, 100000);
  if (!CHECK_OK(e2b_commands_start(f->sandbox, the_host->kruise ? "head -c 100000" : "cat", &opts, &handle, &err))) return;
  pid = e2b_command_handle_pid(handle);
  CHECK(pid > 0);
  if (the_host->kruise) CHECK_RC(e2b_commands_close_stdin(f->sandbox, pid, NULL, &err), E2B_ERR_NOT_BUILT);
  CHECK_OK(e2b_commands_send_stdin(f->sandbox, pid, data, 60000, NULL, &err));
  CHECK_OK(e2b_command_handle_send_stdin(handle, data + 60000, 40000, NULL, &err));
  if (!the_host->kruise) {
    CHECK_OK(e2b_command_handle_send_stdin(handle, "", 0, NULL, &err));
    CHECK_OK(e2b_commands_close_stdin(f->sandbox, pid, NULL, &err));
  }
  CHECK_OK(e2b_command_handle_wait(handle, NULL, &r, &err));
  CHECK(r.stdout_data.len == 100000 && memcmp(r.stdout_data.ptr, data, 100000) == 0);
  e2b_mem_free(&r.mem);
  CHECK_OK(e2b_command_handle_wait(handle, NULL, &r, &err)); /* the same again */
  CHECK_INT(r.stdout_data.len, 100000);
  e2b_mem_free(&r.mem);
  e2b_command_handle_free(handle);
  free(data);
  CHECK_RC(e2b_commands_send_stdin(f->sandbox, pid, "x", 1, NULL, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_PROCESS);

  if (!CHECK_OK(e2b_commands_start(f->sandbox, "sleep 2", NULL, &handle, &err))) return;
  if (!the_host->kruise) /* where all have a pipe */
    CHECK_RC(e2b_command_handle_send_stdin(handle, "x", 1, NULL, &err), E2B_ERR_BAD_STATE);
  CHECK_OK(e2b_command_handle_kill(handle, NULL, NULL, &err));
  e2b_command_handle_free(handle);
}

static void e2e_kill(fixture *f) {
  e2b_command_handle *handle;
  e2b_command_result r = { 0 };
  e2b_error err;
  bool killed = false;
  uint32_t pid;
  if (!CHECK_OK(e2b_commands_start(f->sandbox, "echo up; exec sleep 100", NULL, &handle, &err))) return;
  pid = e2b_command_handle_pid(handle);
  CHECK_OK(e2b_commands_kill(f->sandbox, pid, NULL, &killed, &err));
  CHECK(killed);
  CHECK_RC(e2b_command_handle_wait(handle, NULL, &r, &err), E2B_COMMAND_EXIT);
  CHECK(!r.exited);
  CHECK_INT(r.exit_code, -1);
  CHECK_STR(r.error, "signal: killed");
  e2b_mem_free(&r.mem);
  e2b_command_handle_free(handle);
  CHECK_OK(e2b_commands_kill(f->sandbox, pid, NULL, &killed, &err));
  CHECK(!killed);
  CHECK_OK(e2b_commands_kill(f->sandbox, 4000000, NULL, &killed, &err));
  CHECK(!killed);
}

/* A handle that takes its envd for an old one, as OpenKruise's always claims to be: all the same works with a new one. */
static void e2e_old_envd(fixture *f) {
  struct passwd *me = getpwuid(geteuid());
  e2b_attach_opts attach;
  e2b_run_opts opts = { 0 };
  e2b_files_opts files = { 0 };
  e2b_sandbox *old;
  e2b_command_handle *handle;
  e2b_command_result r = { 0 };
  e2b_process_list list = { { 0 }, NULL, 0 };
  e2b_buf buf = { { 0 }, NULL, 0 };
  e2b_error err;
  size_t i, found = 0;
  memset(&attach, 0, sizeof attach);
  attach.base_url = e2b_sandbox_runtime_url(f->sandbox);
  attach.access_token = e2b_sandbox_access_token(f->sandbox);
  attach.envd_version = "0.2.10";
  opts.user = files.user = the_host->kruise ? NULL : me->pw_name; /* old ones do not choose */
  if (!CHECK_OK(e2b_sandbox_attach(f->client, e2b_sandbox_id(f->sandbox), &attach, &old, &err))) return;
  CHECK_OK(e2b_commands_run(old, "cat; echo \"$0 $* it's over\"", &opts, &r, &err)); /* its stdin is empty */
  CHECK_STR(r.stdout_data.ptr, "/bin/bash  it's over\n");
  e2b_mem_free(&r.mem);
  CHECK_RC(e2b_commands_run(old, "kill -9 $$", &opts, &r, &err), E2B_COMMAND_EXIT); /* the pid is the command's */
  CHECK(!r.exited);
  e2b_mem_free(&r.mem);
  if (CHECK_OK(e2b_commands_start(old, "sleep 100", &opts, &handle, &err))) {
    CHECK_OK(e2b_commands_list(f->sandbox, NULL, &list, &err));
    for (i = 0; i < list.count; i++) {
      const e2b_process_info *p = &list.items[i];
      if (p->pid != e2b_command_handle_pid(handle)) continue;
      found++;
      CHECK_STR(p->cmd, "/bin/bash");
      CHECK(p->args.count == 3 && strcmp(p->args.items[0], "-l") == 0 && strcmp(p->args.items[2], "sleep 100") == 0);
    }
    CHECK_INT(found, 1);
    e2b_mem_free(&list.mem);
    CHECK_OK(e2b_command_handle_kill(handle, NULL, NULL, &err));
    e2b_command_handle_free(handle);
  }
  CHECK_OK(e2b_files_write(old, in_dir(f, "form"), "as a form", 9, &files, NULL, &err));
  CHECK_OK(e2b_files_read_text(old, in_dir(f, "form"), &files, &buf, &err));
  CHECK_STR((const char *)buf.data, "as a form");
  e2b_mem_free(&buf.mem);
  e2b_sandbox_free(old);
}

static void e2e_reconnect(fixture *f) {
  e2b_run_opts opts = { 0 };
  e2b_command_handle *handle, *again;
  e2b_command_result r = { 0 };
  e2b_error err;
  uint32_t pid;
  opts.stdin_open = true;
  if (!CHECK_OK(e2b_commands_start(f->sandbox, "read word; echo got $word; exit 7", &opts, &handle, &err))) return;
  pid = e2b_command_handle_pid(handle);
  e2b_command_handle_disconnect(handle);
  CHECK_INT(e2b_command_handle_pid(handle), pid);
  CHECK_RC(e2b_command_handle_wait(handle, NULL, NULL, &err), E2B_ERR_CANCELED);
  e2b_command_handle_free(handle);

  if (!CHECK_OK(e2b_commands_connect_to_process(f->sandbox, pid, NULL, &again, &err))) return;
  CHECK_INT(e2b_command_handle_pid(again), pid);
  CHECK_OK(e2b_command_handle_send_stdin(again, "it\n", 3, NULL, &err));
  CHECK_RC(e2b_command_handle_wait(again, NULL, &r, &err), E2B_COMMAND_EXIT);
  CHECK_STR(r.stdout_data.ptr, "got it\n");
  CHECK_INT(r.exit_code, 7);
  e2b_mem_free(&r.mem);
  e2b_command_handle_free(again);

  if (the_host->kruise) { /* gone is gone */
    CHECK_RC(e2b_commands_connect_to_process(f->sandbox, pid, NULL, &again, &err), E2B_ERR_NOT_FOUND);
  } else if (CHECK_OK(e2b_commands_connect_to_process(f->sandbox, pid, NULL, &again,
                                                      &err))) { /* its exit code is kept a while */
    CHECK_RC(e2b_command_handle_wait(again, NULL, &r, &err), E2B_COMMAND_EXIT);
    CHECK_INT(r.exit_code, 7);
    e2b_mem_free(&r.mem);
    e2b_command_handle_free(again);
  }
  CHECK_RC(e2b_commands_connect_to_process(f->sandbox, 4000000, NULL, &again, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_PROCESS);
  CHECK(!again);
}

static void e2e_process_list(fixture *f) {
  static const e2b_kv pair = { "KEY", "value" };
  e2b_run_opts opts = { 0 };
  e2b_command_handle *handle;
  e2b_process_list list = { { 0 }, NULL, 0 };
  e2b_error err;
  size_t i, found = 0;
  opts.tag = "a tag";
  opts.cwd = f->dir;
  opts.envs.items = &pair;
  opts.envs.count = 1;
  if (!CHECK_OK(e2b_commands_start(f->sandbox, "sleep 100", &opts, &handle, &err))) return;
  CHECK_OK(e2b_commands_list(f->sandbox, NULL, &list, &err));
  for (i = 0; i < list.count; i++) {
    const e2b_process_info *p = &list.items[i];
    if (p->pid != e2b_command_handle_pid(handle)) continue;
    found++;
    CHECK_STR(p->tag, "a tag");
    CHECK_STR(p->cmd, "/bin/bash");
    CHECK_STR(p->cwd, f->dir);
    CHECK(p->args.count == 3 && strcmp(p->args.items[0], "-l") == 0 && strcmp(p->args.items[2], "sleep 100") == 0);
    CHECK(p->envs.count == 1 && strcmp(p->envs.items[0].key, "KEY") == 0 &&
          strcmp(p->envs.items[0].value, "value") == 0);
  }
  CHECK_INT(found, 1);
  e2b_mem_free(&list.mem);
  CHECK_OK(e2b_command_handle_kill(handle, NULL, NULL, &err));
  e2b_command_handle_free(handle);
}

/* How many processes in the sandbox have this text in their command line. */
static int processes_with(fixture *f, const char *mark) {
  char command[300];
  snprintf(command, sizeof command,
           "n=0; for p in /proc/[0-9]*; do [ $p != /proc/$$ ] && grep -qsaF -e '%s' $p/cmdline && n=$((n+1)); done; echo $n", mark);
  return (int)strtol(output_of(f, command), NULL, 10);
}

/* Pulls events until the output has this in it. */
static bool wait_for_output_at(e2b_command_handle *handle, const char *text, int line) {
  static char seen[20000];
  uint64_t until = now_ms() + 10000;
  e2b_command_event event;
  e2b_error err;
  size_t len = 0;
  seen[0] = 0;
  while (!strstr(seen, text) && now_ms() < until) {
    e2b_err rc = e2b_command_handle_next(handle, 1000, &event, &err);
    if (rc != E2B_OK && rc != E2B_PENDING) break;
    if (rc != E2B_OK || event.kind == E2B_EVENT_EXIT) continue;
    event.len = event.len < sizeof seen - 1 - len ? event.len : sizeof seen - 1 - len;
    memcpy(seen + len, event.data, event.len);
    seen[len += event.len] = 0;
  }
  return check_has_at(seen, text, line);
}
#define WAIT_FOR_OUTPUT(handle, text) wait_for_output_at(handle, text, __LINE__)

static void e2e_send_signal(fixture *f) {
  e2b_command_handle *handle;
  e2b_command_result r = { 0 };
  e2b_error err;
  bool found = false;
  uint32_t pid;
  if (!CHECK_OK(e2b_commands_start(f->sandbox, "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done", NULL, &handle, &err)))
    return;
  pid = e2b_command_handle_pid(handle);
  WAIT_FOR_OUTPUT(handle, "up\n");
  CHECK_RC(e2b_commands_send_signal(f->sandbox, pid, 1, NULL, &found, &err), E2B_ERR_INVALID_ARGUMENT);
  CHECK(strstr(err.message, "signo") && !found);
  CHECK_OK(e2b_commands_send_signal(f->sandbox, pid, 15, NULL, &found, &err));
  CHECK(found);
  CHECK_RC(e2b_command_handle_wait(handle, NULL, &r, &err), E2B_COMMAND_EXIT);
  CHECK(r.exited);
  CHECK_INT(r.exit_code, 5);
  e2b_mem_free(&r.mem);
  e2b_command_handle_free(handle);
  CHECK_OK(e2b_commands_send_signal(f->sandbox, 4000000, 15, NULL, &found, &err));
  CHECK(!found);

  if (!CHECK_OK(e2b_commands_start(f->sandbox, "exec sleep 100", NULL, &handle, &err))) return;
  CHECK_OK(e2b_commands_send_signal(f->sandbox, e2b_command_handle_pid(handle), 9, NULL, NULL, &err));
  CHECK_RC(e2b_command_handle_wait(handle, NULL, &r, &err), E2B_COMMAND_EXIT);
  CHECK_STR(r.error, "signal: killed");
  e2b_mem_free(&r.mem);
  e2b_command_handle_free(handle);
}

/* Children, grandchildren, one in a session of its own, one that is stopped, and one that forks all the time. */
static void e2e_kill_tree(fixture *f) {
  char command[700], mark[40];
  e2b_command_handle *handle;
  e2b_command_result r = { 0 };
  e2b_error err;
  uint32_t killed = 0;
  pid_t other;
  int status;
  snprintf(mark, sizeof mark, "98765.%ld", (long)getpid());
  snprintf(command, sizeof command,
           "sleep %s & (sleep %s & setsid sleep %s & bash -c 'sleep %s & wait' & wait) & (kill -STOP $BASHPID; sleep %s) & "
           "bash -c 'while :; do sleep %s & sleep 0.01; done' & sleep 0.3; echo up; wait",
           mark, mark, mark, mark, mark, mark);
  if (!CHECK_OK(e2b_commands_start(f->sandbox, command, NULL, &handle, &err))) return;
  WAIT_FOR_OUTPUT(handle, "up\n");
  CHECK(processes_with(f, mark) > 10);
  CHECK_OK(e2b_commands_kill_tree(f->sandbox, e2b_command_handle_pid(handle), NULL, &killed, &err));
  CHECK(killed > 10);
  CHECK_INT(processes_with(f, mark), 0);
  CHECK_RC(e2b_command_handle_wait(handle, NULL, &r, &err), E2B_COMMAND_EXIT);
  CHECK(!r.exited);
  CHECK_STR(r.error, "signal: killed");
  e2b_mem_free(&r.mem);
  CHECK_OK(e2b_commands_kill_tree(f->sandbox, e2b_command_handle_pid(handle), NULL, &killed, &err));
  CHECK_INT(killed, 0);
  e2b_command_handle_free(handle);

  other = fork(); /* not started by this envd: not its business */
  if (other == 0) {
    sleep_ms(60000);
    _exit(0);
  }
  CHECK_OK(e2b_commands_kill_tree(f->sandbox, (uint32_t)other, NULL, &killed, &err));
  CHECK_INT(killed, 0);
  CHECK_INT(waitpid(other, &status, WNOHANG), 0);
  kill(other, SIGKILL);
  waitpid(other, &status, 0);
}

static void check_stop(fixture *f, const char *command, e2b_stopped want, const char *output, e2b_err rc) {
  e2b_stopped how = E2B_STOPPED_NOTHING;
  e2b_command_handle *handle;
  e2b_command_result r = { 0 };
  e2b_error err;
  e2b_call call = { 0 };
  done d = { 0 };
  if (!CHECK_OK(e2b_commands_start(f->sandbox, command, NULL, &handle, &err))) return;
  WAIT_FOR_OUTPUT(handle, "up\n");
  call.on_done = on_done;
  call.user = &d;
  CHECK_RC(e2b_commands_stop(f->sandbox, e2b_command_handle_pid(handle), want == E2B_STOPPED_BY_KILL ? 300 : 0, &call, &how, &err),
           E2B_PENDING);
  CHECK_RC(e2b_command_handle_wait(handle, NULL, &r, &err), rc);
  CHECK_STR(r.stdout_data.ptr, output);
  e2b_mem_free(&r.mem);
  CHECK_OK(e2b_client_drain(f->client, 10000));
  CHECK_INT(d.count, 1);
  CHECK_OK(d.err.code);
  CHECK_INT(how, want);
  e2b_command_handle_free(handle);
}

static void e2e_stop(fixture *f) {
  e2b_stopped how = E2B_STOPPED_BY_KILL;
  char command[300], mark[40];
  e2b_error err;
  snprintf(mark, sizeof mark, "87654.%ld", (long)getpid());
  /* its last words get through, and the child, which has no say, goes too */
  snprintf(command, sizeof command, "trap 'seq 100000 | tail -n 1; exit 0' TERM; sleep %s & echo up; while :; do sleep 0.05; done", mark);
  check_stop(f, command, E2B_STOPPED_BY_TERM, "100000\n", E2B_OK);
  CHECK_INT(processes_with(f, mark), 0);
  snprintf(command, sizeof command, "bash -c 'trap : TERM; echo up; while :; do sleep %s; done'; echo no", mark);
  check_stop(f, command, E2B_STOPPED_BY_KILL, "", E2B_COMMAND_EXIT);
  CHECK_INT(processes_with(f, mark), 0);
  CHECK_OK(e2b_commands_stop(f->sandbox, 4000000, 0, NULL, &how, &err));
  CHECK_INT(how, E2B_STOPPED_NOTHING);
}

/* By another client, which is gone before the command ends. */
static void e2e_start_detached(fixture *f) {
  e2b_client_config config = host_config(the_host);
  e2b_attach_opts attach;
  e2b_run_opts opts = { 0 };
  e2b_client *client = e2b_client_create(&config, NULL);
  e2b_command_handle *handle;
  e2b_command_result r = { 0 };
  e2b_sandbox *sandbox = NULL;
  e2b_error err;
  uint32_t pid = 0;
  char tag[40], command[400];
  memset(&attach, 0, sizeof attach);
  attach.base_url = e2b_sandbox_runtime_url(f->sandbox);
  attach.access_token = e2b_sandbox_access_token(f->sandbox);
  snprintf(tag, sizeof tag, "detached %ld", (long)getpid());
  opts.tag = tag;
  opts.cwd = f->dir;
  if (client && CHECK_OK(e2b_sandbox_attach(client, e2b_sandbox_id(f->sandbox), &attach, &sandbox, &err)))
    CHECK_OK(e2b_commands_start_detached(sandbox, "while [ ! -e go ]; do sleep 0.05; done; echo done | tee done; exit 6", &opts, &pid, &err));
  CHECK(pid > 0);
  e2b_client_free(client);
  if (CHECK_OK(e2b_commands_connect_to_tag(f->sandbox, tag, NULL, &handle, &err))) {
    CHECK_INT(e2b_command_handle_pid(handle), pid);
    CHECK_OK(e2b_files_write_text(f->sandbox, in_dir(f, "go"), "", NULL, NULL, &err));
    CHECK_RC(e2b_command_handle_wait(handle, NULL, &r, &err), E2B_COMMAND_EXIT);
    CHECK_INT(r.exit_code, 6);
    CHECK_STR(r.stdout_data.ptr, "done\n");
    e2b_mem_free(&r.mem);
    e2b_command_handle_free(handle);
  }
  snprintf(command, sizeof command, "cat %s", in_dir(f, "done"));
  CHECK_STR(output_of(f, command), "done\n");

  opts.output_file = "log";
  opts.tag = NULL;
  CHECK_OK(e2b_commands_start_detached(f->sandbox, "echo \"$0\" $#; echo two >&2; cat; exit 4", &opts, &pid, &err));
  if (CHECK_OK(e2b_commands_connect_to_process(f->sandbox, pid, NULL, &handle, &err))) {
    CHECK_RC(e2b_command_handle_wait(handle, NULL, &r, &err), E2B_COMMAND_EXIT);
    CHECK_INT(r.exit_code, 4);
    CHECK_STR(r.stdout_data.ptr, "");
    e2b_mem_free(&r.mem);
    e2b_command_handle_free(handle);
  }
  snprintf(command, sizeof command, "cat %s", in_dir(f, "log"));
  CHECK_STR(output_of(f, command), "/bin/bash 0\ntwo\n");
  opts.output_file = "missing/log";
  CHECK_RC(e2b_commands_start_detached(f->sandbox, "echo never > ran", &opts, &pid, &err), E2B_ERR_INVALID_ARGUMENT);
  CHECK(strstr(err.message, "missing/log") && pid == 0);
  CHECK_RC(e2b_commands_run(f->sandbox, "true", &opts, NULL, &err), E2B_ERR_INVALID_ARGUMENT);
  opts.output_file = NULL;
  opts.cwd = "/missing";
  CHECK_RC(e2b_commands_start_detached(f->sandbox, "true", &opts, &pid, &err), E2B_ERR_INVALID_ARGUMENT);
  opts.on_stdout = sequence_compare;
  CHECK_RC(e2b_commands_start_detached(f->sandbox, "true", &opts, &pid, &err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_WORKS(f);
}

/* The server's own look-up by tag may miss it when others have one. */
static void e2e_connect_to_tag(fixture *f) {
  static const char *const names[] = { "one", "two", "three", "four", "five" };
  e2b_command_handle *handles[5], *again;
  e2b_command_result r = { 0 };
  e2b_run_opts opts = { 0 };
  e2b_error err;
  char tag[120], word[20];
  size_t i;
  opts.stdin_open = true;
  opts.tag = tag;
  memset(handles, 0, sizeof handles);
  for (i = 0; i < 5; i++) {
    snprintf(tag, sizeof tag, "%s of %s", names[i], f->dir);
    CHECK_OK(e2b_commands_start(f->sandbox, "read word; echo $word; exit 9", &opts, &handles[i], &err));
  }
  for (i = 0; i < 5 && handles[i]; i++) {
    snprintf(tag, sizeof tag, "%s of %s", names[i], f->dir);
    snprintf(word, sizeof word, "%s\n", names[i]);
    if (!CHECK_OK(e2b_commands_connect_to_tag(f->sandbox, tag, NULL, &again, &err))) continue;
    CHECK_INT(e2b_command_handle_pid(again), e2b_command_handle_pid(handles[i]));
    CHECK_OK(e2b_command_handle_send_stdin(again, word, strlen(word), NULL, &err));
    CHECK_RC(e2b_command_handle_wait(again, NULL, &r, &err), E2B_COMMAND_EXIT);
    CHECK_STR(r.stdout_data.ptr, word);
    e2b_mem_free(&r.mem);
    e2b_command_handle_free(again);
    if (the_host->kruise) continue;
    if (!CHECK_OK(e2b_commands_connect_to_tag(f->sandbox, tag, NULL, &again, &err))) continue; /* its exit code is kept */
    CHECK_RC(e2b_command_handle_wait(again, NULL, &r, &err), E2B_COMMAND_EXIT);
    CHECK_INT(r.exit_code, 9);
    e2b_mem_free(&r.mem);
    e2b_command_handle_free(again);
  }
  for (i = 0; i < 5; i++) e2b_command_handle_free(handles[i]);
  CHECK_RC(e2b_commands_connect_to_tag(f->sandbox, "no such tag", NULL, &again, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_PROCESS);
  CHECK(!again);
}

/* What a handle collects is limited too. */
static void e2e_handle_max_collect(fixture *f) {
  e2b_run_opts opts = { 0 };
  e2b_command_handle *handle;
  e2b_command_result r = { 0 };
  e2b_error err;
  opts.max_collect = 10;
  if (!CHECK_OK(e2b_commands_start(f->sandbox, "seq 100; echo short >&2", &opts, &handle, &err))) return;
  CHECK_OK(e2b_command_handle_wait(handle, NULL, &r, &err));
  CHECK(r.truncated);
  CHECK_STR(r.stdout_data.ptr, "1\n2\n3\n4\n5\n");
  CHECK_STR(r.stderr_data.ptr, "short\n");
  e2b_mem_free(&r.mem);
  e2b_command_handle_free(handle);
  opts.max_collect = 0;
  if (!CHECK_OK(e2b_commands_start(f->sandbox, "seq 100", &opts, &handle, &err))) return;
  CHECK_OK(e2b_command_handle_wait(handle, NULL, &r, &err));
  CHECK(!r.truncated && r.stdout_data.len == 292);
  e2b_mem_free(&r.mem);
  e2b_command_handle_free(handle);
}

/* Gives `left` bytes of noise in pieces of all sizes, and pauses now and then. */
typedef struct noise_source {
  uint64_t seed, sizes;
  size_t left;
  sha256 sum;
  int pauses, asked;
  bool cancels;
} noise_source;

static int noise_give(void *user, void *buf, size_t cap) {
  noise_source *s = (noise_source *)user;
  size_t n = 1;
  s->asked++;
  if (s->pauses > 0 && s->asked % 3 == 1) {
    s->pauses--;
    return E2B_PAUSE;
  }
  if (s->cancels && s->asked > 5) return -1;
  noise(&s->sizes, (uint8_t *)&n, 3);
  n = (n & 0xffffff) % cap + 1;
  if (n > s->left) n = s->left;
  noise(&s->seed, (uint8_t *)buf, n);
  sha256_add(&s->sum, buf, n);
  s->left -= n;
  return (int)n;
}

/* Megabytes in one call, many calls at once, from a source that pauses: all arrive, in order. */
static void e2e_stdin_big(fixture *f) {
  size_t size = (size_t)(quick ? MIB : 8 * MIB), sizes[4], at, i;
  uint8_t *data = (uint8_t *)malloc(size);
  e2b_run_opts opts = { 0 };
  e2b_command_handle *handle;
  e2b_command_result r = { 0 };
  e2b_error err;
  e2b_call calls[7];
  e2b_op op = { 0 };
  done d[7];
  noise_source source;
  sha256 sum;
  char hex[65], cmd[80];
  uint64_t seed = 99;
  memset(calls, 0, sizeof calls);
  memset(d, 0, sizeof d);
  memset(&source, 0, sizeof source);
  noise(&seed, data, size);
  for (i = 0; i < 7; i++) {
    calls[i].on_done = on_done;
    calls[i].user = &d[i];
  }
  sizes[0] = 1;
  sizes[1] = 200000;
  sizes[2] = 65536;
  sizes[3] = size - 265537;
  opts.stdin_open = true;
  snprintf(cmd, sizeof cmd, "sleep 0.3; head -c %lu | sha256sum", (unsigned long)size + 1000003);
  if (!CHECK_OK(e2b_commands_start(f->sandbox, the_host->kruise ? cmd : "sleep 0.3; sha256sum", &opts, &handle, &err))) return;
  sha256_start(&sum);
  for (at = i = 0; i < 4; at += sizes[i++])
    CHECK_RC(e2b_command_handle_send_stdin(handle, data + at, sizes[i], &calls[i], &err), E2B_PENDING);
  sha256_add(&sum, data, size);
  source.seed = 5;
  source.sizes = 6;
  source.left = 1000000;
  source.pauses = 3;
  source.sum = sum;
  calls[4].op = &op;
  CHECK_RC(e2b_commands_send_stdin_from(f->sandbox, e2b_command_handle_pid(handle), noise_give, &source, &calls[4], &err), E2B_PENDING);
  CHECK_RC(e2b_command_handle_send_stdin(handle, "end", 3, &calls[5], &err), E2B_PENDING);
  CHECK_RC(e2b_command_handle_close_stdin(handle, &calls[6], &err), E2B_PENDING);
  CHECK_INT(source.asked, 0); /* not before poll */
  while (!d[6].count) {
    int paused = source.pauses;
    (void)e2b_client_poll(f->client, 100);
    if (source.pauses < paused) e2b_op_resume(f->client, op);
  }
  for (i = 0; i < 7; i++) CHECK(d[i].count == 1 && (d[i].err.code == E2B_OK || (the_host->kruise && i == 6)));
  CHECK_INT(d[6].err.code, the_host->kruise ? E2B_ERR_NOT_BUILT : E2B_OK);
  CHECK_INT(source.left, 0);
  sum = source.sum;
  sha256_add(&sum, "end", 3);
  sha256_hex(&sum, hex);
  CHECK_OK(e2b_command_handle_wait(handle, NULL, &r, &err));
  CHECK(strncmp(r.stdout_data.ptr, hex, 64) == 0);
  e2b_mem_free(&r.mem);
  e2b_command_handle_free(handle);
  free(data);
}

/* A write that is given up, or that cannot go on: those behind it do not begin. */
static void e2e_stdin_given_up(fixture *f) {
  size_t size = 500000;
  uint8_t *data = (uint8_t *)calloc(1, size);
  e2b_run_opts opts = { 0 };
  e2b_command_handle *handle;
  e2b_command_result r = { 0 };
  e2b_error err;
  e2b_call call = { 0 };
  noise_source source;
  done first = { 0 }, second = { 0 }, third = { 0 };
  opts.stdin_open = true;
  if (!CHECK_OK(e2b_commands_start(f->sandbox, "sleep 1.5; exec 0<&-; echo closed; sleep 100", &opts, &handle, &err))) return;
  call.on_done = on_done;
  call.user = &first;
  call.timeout_ms = 300;
  CHECK_RC(e2b_command_handle_send_stdin(handle, data, size, &call, &err), E2B_PENDING);
  call.user = &second;
  call.timeout_ms = 0;
  CHECK_RC(e2b_command_handle_send_stdin(handle, "x", 1, &call, &err), E2B_PENDING);
  call.user = &third;
  CHECK_RC(e2b_command_handle_close_stdin(handle, &call, &err), E2B_PENDING);
  CHECK_OK(e2b_client_drain(f->client, 10000));
  CHECK_INT(first.err.code, E2B_ERR_TIMEOUT); /* it does not read */
  CHECK(first.err.maybe_done);
  CHECK_INT(second.err.code, E2B_ERR_CANCELED);
  CHECK_INT(third.err.code, E2B_ERR_CANCELED);

  WAIT_FOR_OUTPUT(handle, "closed\n");
  CHECK_RC(e2b_command_handle_send_stdin(handle, data, size, NULL, &err), E2B_ERR_BAD_STATE);
  memset(&source, 0, sizeof source);
  source.seed = source.sizes = 1;
  source.pauses = 1;
  source.left = 10;
  CHECK_RC(e2b_commands_send_stdin_from(f->sandbox, e2b_command_handle_pid(handle), noise_give, &source, NULL, &err), E2B_ERR_BAD_STATE);
  CHECK(strstr(err.message, "E2B_PAUSE"));
  CHECK_OK(e2b_commands_kill_tree(f->sandbox, e2b_command_handle_pid(handle), NULL, NULL, &err));
  e2b_command_handle_free(handle);

  if (!CHECK_OK(e2b_commands_start(f->sandbox, "cat >/dev/null; echo end", &opts, &handle, &err))) return;
  if (the_host->kruise) { /* whose envd cannot end that */
    CHECK_OK(e2b_command_handle_kill(handle, NULL, NULL, &err));
    e2b_command_handle_free(handle);
    free(data);
    return;
  }
  memset(&source, 0, sizeof source);
  source.seed = source.sizes = 1;
  source.left = size;
  source.cancels = true;
  CHECK_RC(e2b_commands_send_stdin_from(f->sandbox, e2b_command_handle_pid(handle), noise_give, &source, NULL, &err), E2B_ERR_CANCELED);
  CHECK_OK(e2b_command_handle_close_stdin(handle, NULL, &err));
  CHECK_OK(e2b_command_handle_wait(handle, NULL, &r, &err));
  CHECK_STR(r.stdout_data.ptr, "end\n");
  e2b_mem_free(&r.mem);
  e2b_command_handle_free(handle);
  free(data);
}

/* ---- terminals --------------------------------------------------------------------------------------------------- */

#ifndef E2B_NO_PTY
static e2b_err pty_type(fixture *f, uint32_t pid, const char *text, e2b_error *err) {
  return e2b_pty_send_input(f->sandbox, pid, text, strlen(text), NULL, err);
}

static void e2e_pty(fixture *f) {
  static const e2b_kv pairs[] = { { "LANG", "C" }, { "PS1", "$ " }, { "MINE", "1" } };
  e2b_command_handle *handle;
  e2b_command_result r = { 0 };
  e2b_command_event event;
  e2b_pty_opts opts;
  e2b_error err;
  e2b_err rc;
  char want[200];
  uint32_t pid;
  if (!CHECK_OK(e2b_pty_create(f->sandbox, NULL, &handle, &err))) return;
  pid = e2b_command_handle_pid(handle);
  CHECK_OK(pty_type(f, pid, "stty size; tty -s && echo \"$TERM,$LANG,$LC_ALL\" | tr , =; shopt -q login_shell && echo log''in\n", &err));
  WAIT_FOR_OUTPUT(handle, "24 80\r\nxterm-256color=C.UTF-8=C.UTF-8\r\nlogin\r\n");
  CHECK_OK(e2b_pty_resize(f->sandbox, pid, 132, 43, NULL, &err));
  CHECK_OK(pty_type(f, pid, "stty size\n", &err));
  WAIT_FOR_OUTPUT(handle, "43 132\r\n");
  CHECK_OK(pty_type(f, pid, "exit 3\n", &err));
  while ((rc = e2b_command_handle_next(handle, 5000, &event, &err)) == E2B_OK) {
    CHECK(event.kind == E2B_EVENT_PTY || event.kind == E2B_EVENT_EXIT);
    if (event.kind == E2B_EVENT_EXIT) CHECK_INT(event.exit_code, 3);
  }
  CHECK_RC(rc, E2B_EOF);
  e2b_command_handle_free(handle);
  CHECK_RC(pty_type(f, pid, "x", &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_PROCESS);
  CHECK_RC(e2b_pty_resize(f->sandbox, pid, 80, 24, NULL, &err), E2B_ERR_NOT_FOUND);

  memset(&opts, 0, sizeof opts);
  opts.cols = 60;
  opts.rows = 10;
  opts.envs.items = pairs;
  opts.envs.count = 3;
  opts.cwd = f->dir;
  opts.tag = "my terminal";
  if (!CHECK_OK(e2b_pty_create(f->sandbox, &opts, &handle, &err))) return;
  pid = e2b_command_handle_pid(handle);
  CHECK_OK(pty_type(f, pid, "stty size; pwd; echo $TERM=$LANG=$MINE; echo re''ady; cat; echo ov''er; exit\n", &err));
  snprintf(want, sizeof want, "10 60\r\n%s\r\nxterm-256color=C=1\r\nready\r\n", f->dir);
  WAIT_FOR_OUTPUT(handle, want);
  CHECK_RC(e2b_commands_send_stdin(f->sandbox, pid, "x", 1, NULL, &err), E2B_ERR_BAD_STATE);
  CHECK_RC(e2b_commands_close_stdin(f->sandbox, pid, NULL, &err), the_host->kruise ? E2B_ERR_NOT_BUILT : E2B_ERR_BAD_STATE);
  CHECK_OK(pty_type(f, pid, "\x04", &err)); /* the end of what is typed */
  CHECK_OK(e2b_command_handle_wait(handle, NULL, &r, &err)); /* collects */
  CHECK_HAS(r.stdout_data.ptr, "over\r\n");
  e2b_mem_free(&r.mem);
  e2b_command_handle_free(handle);

  if (!CHECK_OK(e2b_commands_start(f->sandbox, "sleep 100", NULL, &handle, &err))) return;
  CHECK_RC(pty_type(f, e2b_command_handle_pid(handle), "x", &err), E2B_ERR_BAD_STATE);
  CHECK_RC(e2b_pty_resize(f->sandbox, e2b_command_handle_pid(handle), 80, 24, NULL, &err), E2B_ERR_BAD_STATE);
  CHECK_OK(e2b_command_handle_kill(handle, NULL, NULL, &err));
  e2b_command_handle_free(handle);
  memset(&opts, 0, sizeof opts);
  opts.user = "no-such-user";
  CHECK_RC(e2b_pty_create(f->sandbox, &opts, &handle, &err), E2B_ERR_UNAUTHENTICATED);
  opts.user = NULL;
  opts.cwd = in_dir(f, "missing");
  CHECK_RC(e2b_pty_create(f->sandbox, &opts, &handle, &err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_WORKS(f);
}

/* Keeps the end of what was pushed. */
typedef struct shown {
  char text[4000];
  size_t len;
} shown;

static int shown_add(void *user, const char *data, size_t len) {
  shown *s = (shown *)user;
  if (len > sizeof s->text / 4) {
    data += len - sizeof s->text / 4;
    len = sizeof s->text / 4;
  }
  if (s->len + len >= sizeof s->text) {
    memmove(s->text, s->text + s->len - sizeof s->text / 2, sizeof s->text / 2);
    s->len = sizeof s->text / 2;
  }
  memcpy(s->text + s->len, data, len);
  s->text[s->len += len] = 0;
  return 0;
}

static bool shown_has(fixture *f, shown *s, const char *text) {
  uint64_t until = now_ms() + 10000;
  while (!strstr(s->text, text) && now_ms() < until) (void)e2b_client_poll(f->client, 100);
  return strstr(s->text, text) != NULL;
}

/* Pushed output, a second view of the same terminal after the first was left, and its death. */
static void e2e_pty_reconnect(fixture *f) {
  static shown first, second;
  e2b_command_handle *handle, *again;
  e2b_command_result r = { 0 };
  e2b_pty_opts opts;
  e2b_error err;
  bool killed = false;
  uint32_t pid;
  memset(&opts, 0, sizeof opts);
  memset(&first, 0, sizeof first);
  memset(&second, 0, sizeof second);
  opts.on_data = shown_add;
  opts.output_user = &first;
  if (!CHECK_OK(e2b_pty_create(f->sandbox, &opts, &handle, &err))) return;
  pid = e2b_command_handle_pid(handle);
  CHECK_OK(pty_type(f, pid, "X=kept; echo 'on'e\n", &err));
  CHECK(shown_has(f, &first, "one\r\n"));
  e2b_command_handle_disconnect(handle);
  e2b_command_handle_free(handle);
  first.len = 0;

  opts.output_user = &second;
  if (!CHECK_OK(e2b_pty_connect(f->sandbox, pid, &opts, &again, &err))) return;
  CHECK_INT(e2b_command_handle_pid(again), pid);
  CHECK_OK(pty_type(f, pid, "sh -c \"echo $X; exec sleep 100\"\n", &err));
  CHECK(shown_has(f, &second, "kept\r\n"));
  CHECK_OK(pty_type(f, pid, "\x1c", &err)); /* a server started in the background has Ctrl+C ignored, and a bash this */
  CHECK_OK(pty_type(f, pid, "echo 'alive''ness'\n", &err));
  CHECK(shown_has(f, &second, "aliveness\r\n"));
  CHECK_INT(first.len, 0);
  CHECK_OK(e2b_pty_kill(f->sandbox, pid, NULL, &killed, &err));
  CHECK(killed);
  CHECK_RC(e2b_command_handle_wait(again, NULL, &r, &err), E2B_COMMAND_EXIT);
  CHECK_STR(r.error, "signal: killed");
  e2b_mem_free(&r.mem);
  e2b_command_handle_free(again);
  CHECK_OK(e2b_pty_kill(f->sandbox, pid, NULL, &killed, &err));
  CHECK(!killed);
  CHECK_RC(e2b_pty_connect(f->sandbox, 4000000, &opts, &again, &err), E2B_ERR_NOT_FOUND);
}

/* What nobody looks at is held back; much typed at once arrives whole. */
static void e2e_pty_backpressure(fixture *f) {
  uint64_t size = 4 * MIB, total = 0, until;
  e2b_command_handle *handle;
  e2b_command_event event;
  e2b_client_stats stats;
  e2b_error err;
  e2b_err rc;
  char command[200], hex[65], *text = (char *)malloc(200001);
  sha256 sum;
  uint32_t pid;
  int i;
  if (!CHECK_OK(e2b_pty_create(f->sandbox, NULL, &handle, &err))) return;
  pid = e2b_command_handle_pid(handle);
  snprintf(command, sizeof command, "stty -echo; echo 're'ady; head -c %lu /dev/zero | tr '\\0' a; exit\n", (unsigned long)size);
  CHECK_OK(pty_type(f, pid, command, &err));
  WAIT_FOR_OUTPUT(handle, "ready\r\n");
  for (until = now_ms() + 300; now_ms() < until;) e2b_client_poll(f->client, 20);
  e2b_client_get_stats(f->client, &stats);
  CHECK(stats.mem_now < MIB);
  CHECK(stats.bytes_rx < size / 2);
  while ((rc = e2b_command_handle_next(handle, 5000, &event, &err)) == E2B_OK)
    for (i = 0; event.kind == E2B_EVENT_PTY && i < (int)event.len; i++) total += event.data[i] == 'a';
  CHECK_RC(rc, E2B_EOF);
  CHECK(total > size - 4096 && total <= size + 100);
  e2b_command_handle_free(handle);

  for (i = 0; i < 200000; i++) text[i] = (char)(i % 100 == 99 ? '\n' : 'a' + i % 26);
  text[200000] = 4;
  sha256_start(&sum);
  sha256_add(&sum, text, 200000);
  sha256_hex(&sum, hex);
  if (!CHECK_OK(e2b_pty_create(f->sandbox, NULL, &handle, &err))) return;
  pid = e2b_command_handle_pid(handle);
  CHECK_OK(pty_type(f, pid, "stty -echo; echo 're'ady; sha256sum; exit\n", &err));
  WAIT_FOR_OUTPUT(handle, "ready\r\n");
  CHECK_OK(e2b_pty_send_input(f->sandbox, pid, text, 200001, NULL, &err));
  WAIT_FOR_OUTPUT(handle, hex);
  e2b_command_handle_free(handle);
  free(text);
}
#endif

/* ---- files ------------------------------------------------------------------------------------------------------- */

static void e2e_write_and_read(fixture *f) {
  static const char *const names[] = { "plain", "with blank", "gr\xc3\xbc\xc3\x9f", "50%&?=#+;'\"", "sub/dir/deep" };
  e2b_write_info info = { { 0 }, NULL, NULL, NULL, { NULL, 0 } };
  e2b_buf buf = { { 0 }, NULL, 0 };
  e2b_error err;
  uint8_t data[5000];
  uint64_t seed = 3;
  size_t i;
  noise(&seed, data, sizeof data);
  for (i = 0; i < E2B__COUNT(names); i++) {
    const char *path = in_dir(f, names[i]);
    CHECK_OK(e2b_files_write(f->sandbox, path, data, sizeof data - i, NULL, &info, &err));
    CHECK_STR(info.path, path);
    e2b_mem_free(&info.mem);
    CHECK_OK(e2b_files_read(f->sandbox, path, NULL, &buf, &err));
    CHECK(buf.len == sizeof data - i && memcmp(buf.data, data, buf.len) == 0 && buf.data[buf.len] == 0);
    e2b_mem_free(&buf.mem);
  }
  CHECK_OK(e2b_files_write(f->sandbox, in_dir(f, "plain"), "", 0, NULL, NULL, &err)); /* replaces */
  CHECK_OK(e2b_files_read(f->sandbox, in_dir(f, "plain"), NULL, &buf, &err));
  CHECK(buf.len == 0 && buf.data && buf.data[0] == 0);
  e2b_mem_free(&buf.mem);

  CHECK_OK(e2b_files_write_text(f->sandbox, in_dir(f, "text"), "one\r\ntwo\n", NULL, NULL, &err));
  CHECK_OK(e2b_files_read_text(f->sandbox, in_dir(f, "text"), NULL, &buf, &err));
  CHECK_STR((const char *)buf.data, "one\r\ntwo\n");
  e2b_mem_free(&buf.mem);
  CHECK_OK(e2b_files_write(f->sandbox, in_dir(f, "nul"), "a\0b", 3, NULL, NULL, &err));
  CHECK_RC(e2b_files_read_text(f->sandbox, in_dir(f, "nul"), NULL, &buf, &err), E2B_ERR_PROTOCOL);
  e2b_mem_free(&buf.mem);
}

static void e2e_missing_files(fixture *f) {
  const char *none = in_dir(f, "none");
  e2b_buf buf = { { 0 }, NULL, 0 };
  e2b_entry_info info;
  e2b_entry_list list = { { 0 }, NULL, 0 };
  e2b_file_stream *stream;
  e2b_error err;
  bool exists = true;
  memset(&info, 0, sizeof info);
  CHECK_RC(e2b_files_get_info(f->sandbox, none, NULL, &info, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_FILE);
  CHECK_RC(e2b_files_read(f->sandbox, none, NULL, &buf, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_FILE);
  CHECK_RC(e2b_files_list(f->sandbox, none, NULL, &list, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_FILE);
  CHECK_RC(e2b_files_rename(f->sandbox, none, in_dir(f, "other"), NULL, NULL, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_FILE);
  CHECK_RC(e2b_files_read_stream(f->sandbox, none, NULL, &stream, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_FILE);
  CHECK(!stream);
  CHECK_RC(e2b_files_read(f->sandbox, f->dir, NULL, &buf, &err), E2B_ERR_INVALID_ARGUMENT); /* a directory */
  CHECK_OK(e2b_files_exists(f->sandbox, none, NULL, &exists, &err));
  CHECK(!exists);
  CHECK_OK(e2b_files_remove(f->sandbox, none, NULL, &err));
  CHECK_WORKS(f);
}

static void e2e_directories(fixture *f) {
  e2b_files_opts opts = { 0 };
  e2b_entry_list list = { { 0 }, NULL, 0 };
  e2b_entry_info info;
  e2b_error err;
  bool created = false, exists = false;
  char want[200];
  memset(&info, 0, sizeof info);
  CHECK_OK(e2b_files_make_dir(f->sandbox, in_dir(f, "a/b/c"), NULL, &created, &err));
  CHECK(created);
  CHECK_OK(e2b_files_make_dir(f->sandbox, in_dir(f, "a/b/c"), NULL, &created, &err));
  CHECK(!created);
  CHECK_OK(e2b_files_write_text(f->sandbox, in_dir(f, "a/file"), "12345", NULL, NULL, &err));
  CHECK_RC(e2b_files_make_dir(f->sandbox, in_dir(f, "a/file"), NULL, &created, &err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_RC(e2b_files_list(f->sandbox, in_dir(f, "a/file"), NULL, &list, &err), E2B_ERR_INVALID_ARGUMENT);
  output_of(
      f, (snprintf(want, sizeof want, "ln -s b %s && chmod 640 %s", in_dir(f, "a/link"), in_dir(f, "a/file")), want));

  CHECK_OK(e2b_files_list(f->sandbox, in_dir(f, "a"), NULL, &list, &err));
  CHECK_INT(list.count, 3);
  e2b_mem_free(&list.mem);
  opts.depth = 3;
  CHECK_OK(e2b_files_list(f->sandbox, f->dir, &opts, &list, &err));
  CHECK_INT(list.count, 5);
  e2b_mem_free(&list.mem);

  CHECK_OK(e2b_files_get_info(f->sandbox, in_dir(f, "a/file"), NULL, &info, &err));
  CHECK_STR(info.name, "file");
  CHECK_STR(info.path, in_dir(f, "a/file"));
  CHECK_INT(info.type, E2B_ENTRY_FILE);
  CHECK_INT(info.size, 5);
  CHECK_INT(info.mode, 0640);
  CHECK_STR(info.permissions, "-rw-r-----");
  CHECK(info.owner[0] && info.group[0] && !info.symlink_target);
  CHECK(info.modified_time_ns / 1000000000 > 1600000000);
  e2b_mem_free(&info.mem);
  CHECK_OK(e2b_files_get_info(f->sandbox, in_dir(f, "a/link"), NULL, &info, &err));
  CHECK_INT(info.type, E2B_ENTRY_DIR); /* of its target */
  CHECK(info.symlink_target && strstr(info.symlink_target, "b"));
  e2b_mem_free(&info.mem);

  CHECK_OK(e2b_files_rename(f->sandbox, in_dir(f, "a/file"), in_dir(f, "a/renamed"), NULL, &info, &err));
  CHECK_STR(info.path, in_dir(f, "a/renamed"));
  e2b_mem_free(&info.mem);
  CHECK_OK(e2b_files_exists(f->sandbox, in_dir(f, "a/renamed"), NULL, &exists, &err));
  CHECK(exists);
  CHECK_OK(e2b_files_exists(f->sandbox, in_dir(f, "a/file"), NULL, &exists, &err));
  CHECK(!exists);
  CHECK_OK(e2b_files_remove(f->sandbox, in_dir(f, "a"), NULL, &err));
  CHECK_OK(e2b_files_exists(f->sandbox, in_dir(f, "a"), NULL, &exists, &err));
  CHECK(!exists);
}

/* 256 MiB up and down in constant memory, the content told apart by its hash. */
static void e2e_big_file(fixture *f) {
  uint64_t size = quick ? 16 * MIB : 256 * MIB, left, seed = 11;
  const char *path = in_dir(f, "big");
  static uint8_t block[100000];
  char hex[65], again[65], command[300];
  e2b_file_stream *stream;
  e2b_client_stats stats;
  e2b_error err;
  size_t got;
  sha256 sent, received;
  e2b_err rc = E2B_OK;
  sha256_start(&sent);
  sha256_start(&received);
  if (!CHECK_OK(e2b_files_write_stream(f->sandbox, path, (int64_t)size, NULL, &stream, &err))) return;
  for (left = size; left > 0 && rc == E2B_OK; left -= got) {
    got = left < sizeof block ? (size_t)left : sizeof block;
    noise(&seed, block, got);
    sha256_add(&sent, block, got);
    rc = e2b_file_stream_write(stream, -1, block, got, NULL, &err);
  }
  CHECK_OK(rc);
  CHECK_OK(e2b_file_stream_finish(stream, -1, NULL, &err));
  e2b_file_stream_free(stream);
  sha256_hex(&sent, hex);
  snprintf(command, sizeof command, "sha256sum < %s | head -c 64", path);
  CHECK_STR(output_of(f, command), hex);

  if (!CHECK_OK(e2b_files_read_stream(f->sandbox, path, NULL, &stream, &err))) return;
  CHECK(e2b_file_stream_size(stream) == (int64_t)size || e2b_file_stream_size(stream) == -1);
  while ((rc = e2b_file_stream_read(stream, -1, block, sizeof block, &got, &err)) == E2B_OK) {
    CHECK(got > 0);
    sha256_add(&received, block, got);
  }
  CHECK_RC(rc, E2B_EOF);
  CHECK_INT(received.len, size);
  sha256_hex(&received, again);
  CHECK_STR(again, hex);
  e2b_file_stream_free(stream);
  e2b_client_get_stats(f->client, &stats);
  CHECK(stats.mem_peak < MIB);
}

typedef struct transfer {
  uint64_t seed, left, total;
  int pauses;
  sha256 hash;
} transfer;

static int transfer_source(void *user, void *buf, size_t cap) {
  transfer *t = (transfer *)user;
  size_t n = t->left < cap ? (size_t)t->left : cap;
  if (t->pauses-- > 0) return E2B_PAUSE;
  noise(&t->seed, (uint8_t *)buf, n);
  sha256_add(&t->hash, buf, n);
  t->left -= n;
  return (int)n;
}

static int transfer_sink(void *user, const char *data, size_t len) {
  transfer *t = (transfer *)user;
  sha256_add(&t->hash, data, len);
  t->total += len;
  return t->pauses-- > 0 ? E2B_PAUSE : 0;
}

static void e2e_upload_and_download(fixture *f) {
  static const int64_t sizes[] = { 3 * 1048576 + 17, -1, 0, 1 };
  e2b_files_opts opts = { 0 };
  const char *path = in_dir(f, "pushed");
  transfer up, down;
  e2b_error err;
  e2b_op op;
  done d = { 0 };
  char sent[65], received[65];
  size_t i;
  for (i = 0; i < E2B__COUNT(sizes); i++) {
    memset(&up, 0, sizeof up);
    memset(&down, 0, sizeof down);
    sha256_start(&up.hash);
    sha256_start(&down.hash);
    up.seed = 5 + i;
    up.left = sizes[i] < 0 ? 1234567 : (uint64_t)sizes[i];
    CHECK_OK(e2b_files_upload(f->sandbox, path, transfer_source, &up, sizes[i], NULL, NULL, &err));
    CHECK_OK(e2b_files_download(f->sandbox, path, transfer_sink, &down, NULL, &err));
    sha256_hex(&up.hash, sent);
    sha256_hex(&down.hash, received);
    CHECK_STR(received, sent);
  }
  up.left = 10; /* less than it promises */
  up.pauses = 0;
  CHECK_RC(e2b_files_upload(f->sandbox, path, transfer_source, &up, 100, NULL, NULL, &err), E2B_ERR_INVALID_ARGUMENT);

  memset(&up, 0, sizeof up); /* both ends pause */
  memset(&down, 0, sizeof down);
  sha256_start(&up.hash);
  sha256_start(&down.hash);
  up.seed = 9;
  up.left = MIB;
  up.pauses = down.pauses = 1;
  opts.call.op = &op;
  opts.call.on_done = on_done;
  opts.call.user = &d;
  CHECK_RC(e2b_files_upload(f->sandbox, path, transfer_source, &up, (int64_t)MIB, &opts, NULL, &err), E2B_PENDING);
  while (!d.count) {
    e2b_client_poll(f->client, 20);
    e2b_op_resume(f->client, op);
  }
  CHECK_OK(d.err.code);
  d.count = 0;
  CHECK_RC(e2b_files_download(f->sandbox, path, transfer_sink, &down, &opts, &err), E2B_PENDING);
  while (!d.count) {
    e2b_client_poll(f->client, 20);
    e2b_op_resume(f->client, op);
  }
  CHECK_OK(d.err.code);
  CHECK_INT(down.total, MIB);
}

static void e2e_streams_given_up(fixture *f) {
  const char *path = in_dir(f, "half");
  e2b_file_stream *stream;
  e2b_error err;
  char buf[1000];
  size_t got;
  if (CHECK_OK(e2b_files_write_stream(f->sandbox, path, 1000000, NULL, &stream, &err))) {
    CHECK_OK(e2b_file_stream_write(stream, -1, "half", 4, NULL, &err));
    CHECK_RC(e2b_file_stream_finish(stream, -1, NULL, &err), E2B_ERR_INVALID_ARGUMENT); /* too little */
    e2b_file_stream_free(stream);
  }
  if (CHECK_OK(e2b_files_write_stream(f->sandbox, path, -1, NULL, &stream, &err))) {
    CHECK_OK(e2b_file_stream_write(stream, -1, "half", 4, NULL, &err));
    e2b_file_stream_free(stream); /* aborts */
  }
  output_of(f, (snprintf(buf, sizeof buf, "head -c 10000000 /dev/zero > %s", path), buf));
  if (CHECK_OK(e2b_files_read_stream(f->sandbox, path, NULL, &stream, &err))) {
    CHECK_OK(e2b_file_stream_read(stream, -1, buf, sizeof buf, &got, &err));
    e2b_file_stream_free(stream);
  }
  CHECK_WORKS(f);
}

/* ---- more of files ------------------------------------------------------------------------------------------------ */

static const char *files_dir; /* of the fixture: everything happens below it */

static const char *files_path(const char *name) {
  static char path[256];
  (void)snprintf(path, sizeof path, "%s/%s", files_dir, name);
  return path;
}

static void files_on_host_content(files_bench *b, bool form) {
  static const size_t sizes[] = { 0, 1, 16384, 65537, 5u << 20, 100 };
  static const char *const names[] = { "plain",
                                       "with space",
                                       "plus+and%41",
                                       "amp&eq=1",
                                       "hash#q?x",
                                       "quote\"s'",
                                       "back\\slash",
                                       "\xc3\xbcn\xc3\xaf"
                                       "c\xc3\xb6"
                                       "de \xe2\x82\xac \xf0\x9f\x98\x80",
                                       "tab\there",
                                       "semi;colon",
                                       "a/new/dir/x" };
  uint8_t *data = (uint8_t *)malloc(5u << 20);
  e2b_write_info info;
  e2b_buf buf;
  size_t i;
  memset(&info, 0, sizeof info);
  memset(&buf, 0, sizeof buf);
  files_pattern(data, 0, 5u << 20);
  b->sandbox->files_as_form = form;
  for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) { /* each overwrites the one before, the last one with less */
    CHECK_INT(e2b_files_write(b->sandbox, files_path("f"), data, sizes[i], NULL, &info, &b->err), E2B_OK);
    CHECK_STR(info.path, files_path("f"));
    e2b_mem_free(&info.mem);
    CHECK_INT(e2b_files_read(b->sandbox, files_path("f"), NULL, &buf, &b->err), E2B_OK);
    CHECK(buf.len == sizes[i] && memcmp(buf.data, data, sizes[i]) == 0 && buf.data[buf.len] == 0);
    e2b_mem_free(&buf.mem);
  }
  for (i = 0; i < sizeof names / sizeof names[0]; i++) {
    bool exists = false;
    CHECK_INT(e2b_files_write_text(b->sandbox, files_path(names[i]), names[i], NULL, &info, &b->err), E2B_OK);
    CHECK_STR(info.path ? info.path : "", files_path(names[i]));
    e2b_mem_free(&info.mem);
    CHECK_INT(e2b_files_read_text(b->sandbox, files_path(names[i]), NULL, &buf, &b->err), E2B_OK);
    CHECK_STR(buf.data ? (char *)buf.data : "", names[i]);
    e2b_mem_free(&buf.mem);
    CHECK_INT(e2b_files_exists(b->sandbox, files_path(names[i]), NULL, &exists, &b->err), E2B_OK);
    CHECK(exists);
    CHECK_INT(e2b_files_remove(b->sandbox, files_path(names[i]), NULL, &b->err), E2B_OK);
  }
  CHECK_INT(e2b_files_read(b->sandbox, files_path("none"), NULL, &buf, &b->err), E2B_ERR_NOT_FOUND);
  CHECK_INT(b->err.subject, E2B_SUBJECT_FILE);
  CHECK_INT(e2b_files_read(b->sandbox, files_dir, NULL, &buf, &b->err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_write(b->sandbox, files_dir, "x", 1, NULL, NULL, &b->err), E2B_ERR_INVALID_ARGUMENT);
  b->sandbox->files_as_form = false;
  free(data);
}

typedef struct files_verify {
  uint64_t at;
  bool wrong;
} files_verify;

static int files_verify_sink(void *user, const char *data, size_t len) {
  static uint8_t expected[1u << 16];
  files_verify *verify = (files_verify *)user;
  if (len > sizeof expected) return -1;
  files_pattern(expected, verify->at, len);
  if (memcmp(expected, data, len) != 0) verify->wrong = true;
  verify->at += len;
  return 0;
}

static long files_rss_peak;

/* Notes what of the process is in memory now. */
static long files_rss_look(void) {
  FILE *file = fopen("/proc/self/statm", "r");
  long total = 0, pages = 0, kib;
  if (file && fscanf(file, "%ld %ld", &total, &pages) != 2) pages = 0;
  if (file) fclose(file);
  kib = pages * (sysconf(_SC_PAGESIZE) / 1024);
  if (kib > files_rss_peak) files_rss_peak = kib;
  return kib;
}

static int files_bulk_give(void *user, void *buf, size_t cap) {
  if (((files_source *)user)->calls % 256 == 0) (void)files_rss_look();
  return files_give(user, buf, cap);
}

static int files_bulk_take(void *user, const char *data, size_t len) {
  if (((files_verify *)user)->at % 4194304 < len) (void)files_rss_look();
  return files_verify_sink(user, data, len);
}

static void files_on_host_bulk(files_bench *b) {
  const uint64_t size = (quick ? 16 : 256) * MIB;
  files_source source;
  files_verify verify;
  e2b_files_opts opts;
  e2b_client_stats stats;
  e2b_entry_info info;
  long before = files_rss_look();
  int known;
  files_rss_peak = 0;
  memset(&info, 0, sizeof info);
  for (known = 1; known >= 0; known--) {
    files_source_init(&source, b, size, &opts);
    CHECK_INT(e2b_files_upload(b->sandbox, files_path("big"), files_bulk_give, &source, known ? (int64_t)size : -1,
                               NULL, NULL, &b->err),
              E2B_OK);
    CHECK_INT(e2b_files_get_info(b->sandbox, files_path("big"), NULL, &info, &b->err), E2B_OK);
    CHECK_INT(info.size, size);
    e2b_mem_free(&info.mem);
    memset(&verify, 0, sizeof verify);
    CHECK_INT(e2b_files_download(b->sandbox, files_path("big"), files_bulk_take, &verify, NULL, &b->err), E2B_OK);
    CHECK(verify.at == size && !verify.wrong);
    CHECK_INT(e2b_files_remove(b->sandbox, files_path("big"), NULL, &b->err), E2B_OK);
  }
  e2b_client_get_stats(b->client, &stats);
  CHECK(stats.mem_now < 100000);
#if !defined(__SANITIZE_ADDRESS__)
  CHECK(files_rss_peak - before < 1024);
#endif
  if (verbose) printf("  resident memory grew by %ld KiB\n", files_rss_peak - before);
}

static void files_on_host_streams(files_bench *b) {
  static const size_t steps[] = { 1, 3, 1021, 65536, 200000 };
  const size_t size = 700001;
  e2b_file_stream *stream = NULL;
  uint8_t *data = (uint8_t *)malloc(size), *back = (uint8_t *)malloc(size + 1);
  size_t i, n;
  files_pattern(data, 0, size);
  for (i = 0; i < sizeof steps / sizeof steps[0]; i++) {
    size_t at = 0, len = steps[i] < 16 ? 100001 : size;
    CHECK_INT(e2b_files_write_stream(b->sandbox, files_path("s"), i % 2 ? (int64_t)len : -1, NULL, &stream, &b->err),
              E2B_OK);
    while (at < len &&
           e2b_file_stream_write(stream, -1, data + at, E2B__MIN(steps[i], len - at), &n, &b->err) == E2B_OK)
      at += n;
    CHECK_INT(at, len);
    CHECK_INT(e2b_file_stream_finish(stream, -1, NULL, &b->err), E2B_OK);
    e2b_file_stream_free(stream);
    CHECK_INT(e2b_files_read_stream(b->sandbox, files_path("s"), NULL, &stream, &b->err), E2B_OK);
    CHECK_INT(e2b_file_stream_size(stream), len);
    for (at = 0; e2b_file_stream_read(stream, -1, back + at, E2B__MIN(steps[i], size + 1 - at), &n, &b->err) == E2B_OK;)
      at += n;
    CHECK_INT(b->err.code, E2B_EOF);
    CHECK(at == len && memcmp(back, data, len) == 0);
    e2b_file_stream_free(stream);
  }
  CHECK_INT(e2b_files_read_stream(b->sandbox, files_path("none"), NULL, &stream, &b->err), E2B_ERR_NOT_FOUND);
  free(data);
  free(back);
}

/* Aborts in the middle, of every kind, leave nothing behind. */
static void files_on_host_aborts(files_bench *b) {
  const uint64_t size = (uint64_t)8 << 20;
  files_source source;
  files_sink sink;
  e2b_files_opts opts;
  e2b_file_stream *stream = NULL;
  uint8_t buf[1000];
  size_t n;
  bool exists;
  int i, fds;
  files_source_init(&source, b, size, &opts);
  CHECK_INT(e2b_files_upload(b->sandbox, files_path("big"), files_give, &source, (int64_t)size, NULL, NULL, &b->err),
            E2B_OK);
  fds = open_fds();
  for (i = 0; i < 50; i++) {
    CHECK_INT(e2b_files_read_stream(b->sandbox, files_path("big"), NULL, &stream, &b->err), E2B_OK);
    CHECK_INT(e2b_file_stream_read(stream, -1, buf, sizeof buf, &n, &b->err), E2B_OK);
    e2b_file_stream_free(stream);
    CHECK_INT(e2b_files_write_stream(b->sandbox, files_path("cut"), i % 2 ? -1 : 5000, NULL, &stream, &b->err), E2B_OK);
    CHECK_INT(e2b_file_stream_write(stream, -1, buf, sizeof buf, NULL, &b->err), E2B_OK);
    for (n = 0; n < (size_t)(i % 5); n++) (void)e2b_client_poll(b->client, 1);
    e2b_file_stream_free(stream);
    files_sink_init(&sink, b, &opts);
    sink.answer = -1;
    CHECK_INT(e2b_files_download(b->sandbox, files_path("big"), files_on_data, &sink, NULL, &b->err), E2B_ERR_CANCELED);
    files_sink_init(&sink, b, &opts);
    sink.cancel = true;
    CHECK_INT(e2b_files_download(b->sandbox, files_path("big"), files_on_data, &sink, &opts, &b->err), E2B_PENDING);
    while (!sink.calls) (void)e2b_client_poll(b->client, 100);
    files_source_init(&source, b, size, &opts);
    source.answer = -1;
    CHECK_INT(e2b_files_upload(b->sandbox, files_path("cut"), files_give, &source, (int64_t)size, NULL, NULL, &b->err),
              E2B_ERR_CANCELED);
    CHECK_INT(e2b_files_exists(b->sandbox, files_path("big"), NULL, &exists, &b->err), E2B_OK);
    CHECK(exists);
  }
  CHECK(open_fds() <= fds + 1);
  CHECK(b->client->conn_count <= 2);
  CHECK_INT(b->client->reqs == NULL, 1);
}

static files_bench files_on_fixture(fixture *f) {
  files_bench b;
  memset(&b, 0, sizeof b);
  b.client = f->client;
  b.sandbox = f->sandbox;
  files_dir = f->dir;
  return b;
}

static void e2e_files_content(fixture *f) {
  files_bench b = files_on_fixture(f);
  files_on_host_content(&b, false);
}

static void e2e_files_content_as_form(fixture *f) {
  files_bench b = files_on_fixture(f);
  files_on_host_content(&b, true);
}

static void e2e_files_streams(fixture *f) {
  files_bench b = files_on_fixture(f);
  files_on_host_streams(&b);
}

static void e2e_files_aborts(fixture *f) {
  files_bench b = files_on_fixture(f);
  files_on_host_aborts(&b);
}

static void e2e_files_bulk(fixture *f) {
  files_bench b = files_on_fixture(f);
  files_on_host_bulk(&b);
}

/* ---- parts, metadata, atomic writes, joining, URLs --------------------------------------------------------------- */

typedef struct collected {
  char data[4096];
  size_t len;
} collected;

static int collect(void *user, const char *data, size_t len) {
  collected *c = (collected *)user;
  if (len > sizeof c->data - c->len) return -1;
  memcpy(c->data + c->len, data, len);
  c->len += len;
  return 0;
}

static void e2e_files_parts(fixture *f) {
  static const struct { uint64_t offset, length; } parts[] = {
    { 0, 0 }, { 0, 1 }, { 0, 1000 }, { 0, 5000 }, { 1, 0 }, { 1, 1 }, { 999, 0 }, { 999, 1 }, { 999, 2 }, { 500, 250 },
    { 1000, 0 }, { 1000, 1 }, { 5000, 0 }, { INT64_MAX, 0 }, { 7, INT64_MAX - 7 } };
  uint8_t data[1000];
  char back[2000];
  e2b_error err;
  size_t i;
  files_pattern(data, 0, sizeof data);
  CHECK_OK(e2b_files_write(f->sandbox, in_dir(f, "f"), data, sizeof data, NULL, NULL, &err));
  CHECK_OK(e2b_files_write(f->sandbox, in_dir(f, "empty"), "", 0, NULL, NULL, &err));
  for (i = 0; i < E2B__COUNT(parts); i++) {
    uint64_t from = parts[i].offset < 1000 ? parts[i].offset : 1000, len = 1000 - from;
    e2b_buf buf = { { 0 }, NULL, 0 };
    e2b_file_stream *stream = NULL;
    e2b_files_opts opts;
    collected c;
    size_t got, at = 0;
    if (parts[i].length && parts[i].length < len) len = parts[i].length;
    memset(&opts, 0, sizeof opts);
    memset(&c, 0, sizeof c);
    opts.offset = parts[i].offset;
    opts.length = parts[i].length;
    CHECK_OK(e2b_files_read(f->sandbox, in_dir(f, "f"), &opts, &buf, &err));
    CHECK(buf.len == len && buf.data && memcmp(buf.data, data + from, (size_t)len) == 0 && buf.data[buf.len] == 0);
    e2b_mem_free(&buf.mem);
    CHECK_OK(e2b_files_download(f->sandbox, in_dir(f, "f"), collect, &c, &opts, &err));
    CHECK(c.len == len && memcmp(c.data, data + from, (size_t)len) == 0);
    CHECK_OK(e2b_files_read_stream(f->sandbox, in_dir(f, "f"), &opts, &stream, &err));
    CHECK_INT(e2b_file_stream_size(stream), len);
    while (e2b_file_stream_read(stream, -1, back + at, 77, &got, &err) == E2B_OK) at += got;
    CHECK_RC(e2b_file_stream_read(stream, 0, back, 1, &got, &err), E2B_EOF);
    CHECK(at == len && memcmp(back, data + from, at) == 0);
    e2b_file_stream_free(stream);
    if (!opts.offset && !opts.length) continue;
    CHECK_OK(e2b_files_read(f->sandbox, in_dir(f, "empty"), &opts, &buf, &err));
    CHECK_INT(buf.len, 0);
    e2b_mem_free(&buf.mem);
    CHECK_RC(e2b_files_read(f->sandbox, in_dir(f, "none"), &opts, &buf, &err), E2B_ERR_NOT_FOUND);
  }
  CHECK_WORKS(f);
}

static e2b_files_opts with_metadata(const e2b_kv *items, size_t count) {
  e2b_files_opts opts;
  memset(&opts, 0, sizeof opts);
  opts.metadata.items = items;
  opts.metadata.count = count;
  return opts;
}

static const char *value_of(e2b_kvs pairs, const char *key) {
  size_t i;
  for (i = 0; i < pairs.count; i++)
    if (strcmp(pairs.items[i].key, key) == 0) return pairs.items[i].value;
  return "(none)";
}

static void e2e_files_metadata(fixture *f) {
  static const e2b_kv items[] = { { "Author", "ann" }, { "k", "a b=c;d, \"e\" ~" }, { "empty", "" } };
  e2b_files_opts opts = with_metadata(items, 3);
  e2b_write_info written = { { 0 }, NULL, NULL, NULL, { NULL, 0 } };
  e2b_entry_list list = { { 0 }, NULL, 0 };
  e2b_file_stream *stream = NULL;
  e2b_entry_info info;
  e2b_error err;
  int form;
  memset(&info, 0, sizeof info);
  if (the_host->kruise) { /* whose envd keeps none, and says nothing of it */
    CHECK_RC(e2b_files_write(f->sandbox, in_dir(f, "f"), "x", 1, &opts, NULL, &err), E2B_ERR_NOT_BUILT);
    return;
  }
  for (form = 0; form < 2; form++) {
    opts.octet_stream = form ? E2B_NO : E2B_YES;
    opts.metadata.count = 3;
    CHECK_OK(e2b_files_write(f->sandbox, in_dir(f, "f"), "x", 1, &opts, &written, &err));
    CHECK_INT(written.metadata.count, 3);
    CHECK_STR(value_of(written.metadata, "author"), "ann");
    e2b_mem_free(&written.mem);
    CHECK_OK(e2b_files_get_info(f->sandbox, in_dir(f, "f"), NULL, &info, &err));
    CHECK_INT(info.metadata.count, 3);
    CHECK_STR(value_of(info.metadata, "k"), items[1].value);
    CHECK_STR(value_of(info.metadata, "empty"), "");
    e2b_mem_free(&info.mem);
    CHECK_OK(e2b_files_rename(f->sandbox, in_dir(f, "f"), in_dir(f, "g"), NULL, NULL, &err)); /* goes along */
    CHECK_OK(e2b_files_list(f->sandbox, f->dir, NULL, &list, &err));
    if (CHECK_INT(list.count, 1)) CHECK_STR(value_of(list.items[0].metadata, "author"), "ann");
    e2b_mem_free(&list.mem);
    opts.metadata.count = 1; /* a new write replaces all of it */
    CHECK_OK(e2b_files_write_stream(f->sandbox, in_dir(f, "g"), -1, &opts, &stream, &err));
    CHECK_OK(e2b_file_stream_write(stream, -1, "y", 1, NULL, &err));
    CHECK_OK(e2b_file_stream_finish(stream, -1, &written, &err));
    CHECK_INT(written.metadata.count, 1);
    e2b_mem_free(&written.mem);
    e2b_file_stream_free(stream);
    CHECK_OK(e2b_files_write(f->sandbox, in_dir(f, "g"), "z", 1, NULL, NULL, &err));
    CHECK_OK(e2b_files_get_info(f->sandbox, in_dir(f, "g"), NULL, &info, &err));
    CHECK_INT(info.metadata.count, 0);
    e2b_mem_free(&info.mem);
  }
}

/* What lies in the directory of the test, hidden files too. */
static const char *all_in_dir(fixture *f) {
  char command[120];
  snprintf(command, sizeof command, "cd %s && ls -A", f->dir);
  return output_of(f, command);
}

static void check_content_at(fixture *f, const char *name, const char *content, int line) {
  e2b_buf buf = { { 0 }, NULL, 0 };
  e2b_error err;
  if (CHECK_OK(e2b_files_read_text(f->sandbox, in_dir(f, name), NULL, &buf, &err)))
    check_str_at((const char *)buf.data, content, line, name);
  e2b_mem_free(&buf.mem);
}
#define CHECK_CONTENT(f, name, content) check_content_at(f, name, content, __LINE__)

static void e2e_files_atomic(fixture *f) {
  static const e2b_kv items[] = { { "k", "v" } };
  files_bench b = files_on_fixture(f);
  bool keeps = !the_host->kruise; /* metadata */
  e2b_files_opts opts = with_metadata(items, keeps ? 1 : 0), plain;
  e2b_write_info written = { { 0 }, NULL, NULL, NULL, { NULL, 0 } };
  e2b_file_stream *stream = NULL;
  files_source source;
  e2b_error err;
  char command[200];
  opts.atomic = true;
  CHECK_OK(e2b_files_write_text(f->sandbox, in_dir(f, "f"), "one", &opts, &written, &err)); /* a new file */
  CHECK_STR(written.path, in_dir(f, "f"));
  CHECK_STR(written.name, "f");
  CHECK_STR(written.type, "file");
  if (keeps) CHECK_STR(value_of(written.metadata, "k"), "v");
  e2b_mem_free(&written.mem);
  CHECK_CONTENT(f, "f", "one");
  snprintf(command, sizeof command, "ln -s f %s/link && stat -c %%a %s/f", f->dir, f->dir);
  CHECK_STR(output_of(f, command), "644\n");
  CHECK_OK(e2b_files_write_text(f->sandbox, in_dir(f, "link"), "two", &opts, NULL, &err)); /* replaces a link itself */
  CHECK_CONTENT(f, "link", "two");
  CHECK_CONTENT(f, "f", "one");

  /* the old content until the end */
  CHECK_OK(e2b_files_write_stream(f->sandbox, in_dir(f, "f"), -1, &opts, &stream, &err));
  CHECK_OK(e2b_file_stream_write(stream, -1, "three", 5, NULL, &err));
  CHECK_CONTENT(f, "f", "one");
  CHECK_OK(e2b_file_stream_finish(stream, -1, &written, &err));
  CHECK_STR(written.path, in_dir(f, "f"));
  if (keeps) CHECK_STR(value_of(written.metadata, "k"), "v");
  e2b_mem_free(&written.mem);
  e2b_file_stream_free(stream);
  CHECK_CONTENT(f, "f", "three");

  files_source_init(&source, &b, 3 * MIB, &plain); /* what fails leaves the old content and no trace */
  source.answer = -1;
  CHECK_RC(e2b_files_upload(f->sandbox, in_dir(f, "f"), files_give, &source, (int64_t)(3 * MIB), &opts, NULL, &err),
           E2B_ERR_CANCELED);
  CHECK(!err.maybe_done);
  files_source_init(&source, &b, 3 * MIB, &plain);
  CHECK_RC(e2b_files_upload(f->sandbox, in_dir(f, "f"), files_give, &source, (int64_t)(4 * MIB), &opts, NULL, &err),
           E2B_ERR_INVALID_ARGUMENT);
  CHECK_OK(e2b_files_write_stream(f->sandbox, in_dir(f, "f"), -1, &opts, &stream, &err));
  CHECK_OK(e2b_file_stream_write(stream, -1, "four", 4, NULL, &err));
  FILES_UNTIL(f->client, e2b__req_was_sent(&stream->req));
  e2b_file_stream_free(stream);
  CHECK_OK(e2b_client_drain(f->client, 10000));
  CHECK_CONTENT(f, "f", "three");
  CHECK_STR(all_in_dir(f), "f\nlink\n");
  CHECK(e2b_files_write_text(f->sandbox, f->dir, "x", &opts, NULL, &err) < 0); /* over a directory */
  snprintf(command, sizeof command, "cd %s/.. && ls -A | grep -c ^.e2b-", f->dir);
  {
    e2b_command_result result = { 0 };
    CHECK_RC(e2b_commands_run(f->sandbox, command, NULL, &result, &err), E2B_COMMAND_EXIT);
    CHECK_STR(result.stdout_data.ptr, "0\n");
    e2b_mem_free(&result.mem);
  }
  files_source_init(&source, &b, 3 * MIB, &plain);
  CHECK_OK(e2b_files_upload(f->sandbox, in_dir(f, "new/big"), files_give, &source, -1, &opts, NULL, &err));
  snprintf(command, sizeof command, "stat -c %%s %s/new/*", f->dir);
  CHECK_STR(output_of(f, command), "3145728\n");
  opts.octet_stream = E2B_NO;
  CHECK_OK(e2b_files_write_text(f->sandbox, in_dir(f, "form"), "as a form", &opts, NULL, &err));
  CHECK_CONTENT(f, "form", "as a form");
  CHECK_STR(all_in_dir(f), "f\nform\nlink\nnew\n");
  CHECK_WORKS(f);
}

static void e2e_files_compose(fixture *f) {
  char names[3][200];
  const char *sources[3];
  e2b_strs strs;
  e2b_write_info written = { { 0 }, NULL, NULL, NULL, { NULL, 0 } };
  e2b_error err;
  int i;
  for (i = 0; i < 3; i++) {
    snprintf(names[i], sizeof names[i], "%s/part \"%d\"", f->dir, i);
    sources[i] = names[i];
    CHECK_OK(e2b_files_write(f->sandbox, names[i], "a\0b", 3, NULL, NULL, &err));
  }
  strs.items = sources;
  strs.count = 3;
  CHECK_OK(e2b_files_compose(f->sandbox, strs, in_dir(f, "sub/all"), NULL, &written, &err));
  CHECK_STR(written.path, in_dir(f, "sub/all"));
  CHECK_STR(written.name, "all");
  CHECK_STR(written.type, "file");
  e2b_mem_free(&written.mem);
  CHECK_STR(all_in_dir(f), "sub\n"); /* the parts are gone */
  CHECK_OK(e2b_files_write(f->sandbox, names[0], "!", 1, NULL, NULL, &err));
  CHECK_RC(e2b_files_compose(f->sandbox, strs, in_dir(f, "sub/all"), NULL, NULL, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_FILE);
  strs.count = 1;
  CHECK_RC(e2b_files_compose(f->sandbox, strs, names[0], NULL, NULL, &err), E2B_ERR_INVALID_ARGUMENT);
  sources[0] = f->dir;
  CHECK_RC(e2b_files_compose(f->sandbox, strs, in_dir(f, "x"), NULL, NULL, &err), E2B_ERR_INVALID_ARGUMENT);
  {
    char command[120];
    snprintf(command, sizeof command, "cd %s && od -An -c sub/all && ls -A", f->dir);
    CHECK_STR(output_of(f, command), "   a  \\0   b   a  \\0   b   a  \\0   b\npart \"0\"\nsub\n");
  }
}

/* A plain HTTP client: what a browser or curl would send, without any header of ours. */
typedef struct plain_http {
  e2b__req req;
  bool done;
  e2b_error err;
} plain_http;

static void plain_on_end(e2b__req *req, const e2b_error *err) {
  plain_http *p = (plain_http *)(void *)((uint8_t *)req - offsetof(plain_http, req));
  p->done = true;
  p->err = *err;
}

/* Returns the status; the body is in `out`. `token`: in the header, NULL = none. */
static int plain_request(fixture *f, const char *method, const char *url, const char *body, const char *token,
                         char *out, size_t cap) {
  static const e2b__req_events events = { NULL, NULL, NULL, plain_on_end };
  plain_http p;
  e2b__url parts;
  char origin[600];
  const char *path = strchr(strstr(url, "://") + 3, '/');
  int status;
  memset(&p, 0, sizeof p);
  e2b__req_init(&p.req, f->client, &events);
  snprintf(origin, sizeof origin, "%.*s", (int)(path - url), url);
  if (!CHECK(e2b__url_parse(origin, &parts))) return 0;
  e2b__req_target(&p.req, &parts);
  p.req.path.len = 0;
  e2b__buf_text(&p.req.path, path);
  p.req.method = method;
  if (token) e2b__headers_set(&p.req.headers, "x-access-token", e2b__str(token));
  if (body) {
    e2b__headers_set(&p.req.headers, "content-type", e2b__str("application/octet-stream"));
    e2b__buf_text(&p.req.body, body);
    p.req.body_len = (int64_t)p.req.body.len;
  }
  f->client->now = e2b__now_ms(f->client);
  CHECK_INT(e2b__req_submit(&p.req), E2B_OK);
  FILES_UNTIL(f->client, p.done);
  CHECK_INT(p.err.code, E2B_OK);
  status = p.req.status;
  snprintf(out, cap, "%.*s", (int)p.req.rx.len, p.req.rx.len ? (const char *)p.req.rx.data : "");
  e2b__req_free(&p.req);
  return status;
}

static e2b_sandbox *direct_sandbox(fixture *f) {
  e2b_attach_opts attach;
  e2b_sandbox *direct = NULL;
  e2b_error err;
  char base[300];
  memset(&attach, 0, sizeof attach);
  snprintf(base, sizeof base, "%s/kruise/%s/49983", the_host->url, e2b_sandbox_id(f->sandbox));
  attach.base_url = the_host->control_plane ? base : the_host->url;
  attach.access_token = e2b_sandbox_access_token(f->sandbox);
  CHECK_OK(e2b_sandbox_attach(f->client, e2b_sandbox_id(f->sandbox), &attach, &direct, &err));
  return direct;
}

static void e2e_files_urls(fixture *f) {
  e2b_sandbox *direct = direct_sandbox(f); /* reached without routing headers */
  bool secure = e2b_sandbox_access_token(f->sandbox)[0] != 0;
  int32_t never = E2B_TIMEOUT_NONE, expires = secure ? 3600 : never;
  char url[1000], reply[300], *at;
  const char *user = the_host->control_plane ? NULL : "root";
  e2b_error err;
  size_t len;
  char path[200];
  snprintf(path, sizeof path, "%s/a b+c&d=\"e\" %%41 \xc3\xa9", f->dir);
  if (the_host->kruise) { /* whose envd wants the token in a header */
    e2b_sandbox_free(direct);
    return;
  }
  if (!direct) return;
  len = e2b_sandbox_upload_url(direct, path, user, expires, url, sizeof url, &err);
  CHECK(len == strlen(url) && len > 50);
  CHECK_INT(strncmp(url, e2b_sandbox_runtime_url(direct), strlen(e2b_sandbox_runtime_url(direct))), 0);
  CHECK_INT(e2b_sandbox_upload_url(direct, path, user, expires, NULL, 0, &err), len);
  CHECK_INT(plain_request(f, "POST", url, "by url", NULL, reply, sizeof reply), 200);
  CHECK_HAS(reply, "\"type\":\"file\"");
  if (secure) /* signed for the other direction */
    CHECK_INT(plain_request(f, "GET", url, NULL, NULL, reply, sizeof reply), 401);
  CHECK(e2b_sandbox_download_url(direct, path, user, never, url, sizeof url, &err) > 0);
  CHECK_INT(plain_request(f, "GET", url, NULL, NULL, reply, sizeof reply), 200);
  CHECK_STR(reply, "by url");
  CHECK(e2b_sandbox_download_url(direct, path, user, expires, url, sizeof url, &err) > 0);
  CHECK_INT(plain_request(f, "GET", url, NULL, NULL, reply, sizeof reply), 200);
  CHECK_STR(reply, "by url");
  CHECK_OK(e2b_files_write(f->sandbox, in_dir(f, "other"), "other", 5, NULL, NULL, &err));
  if (!secure) {
    CHECK_INT(e2b_sandbox_download_url(direct, path, user, 60, url, sizeof url, &err), 0);
    CHECK_INT(err.code, E2B_ERR_INVALID_ARGUMENT);
    CHECK(strstr(e2b_sandbox_download_url(direct, path, user, never, url, sizeof url, &err) ? url : "",
                 "signature") == NULL);
  } else {
    CHECK_HAS(url, "signature=v1_");
    at = strstr(url, "signature_expiration=") + 21; /* one second more than was signed */
    at[strlen(at) - 1] = at[strlen(at) - 1] == '9' ? '8' : (char)(at[strlen(at) - 1] + 1);
    CHECK_INT(plain_request(f, "GET", url, NULL, NULL, reply, sizeof reply), 401);
    CHECK_HAS(reply, "invalid signature");
    *strstr(url, "&signature_expiration=") = 0;
    CHECK_INT(plain_request(f, "GET", url, NULL, NULL, reply, sizeof reply), 401);
    CHECK(e2b_sandbox_download_url(direct, in_dir(f, "other"), user, never, url, sizeof url, &err) > 0);
    CHECK_INT(plain_request(f, "GET", url, NULL, NULL, reply, sizeof reply), 200);
    at = strstr(url, "other"); /* another path than was signed */
    memcpy(at, "othe2", 5);
    CHECK_INT(plain_request(f, "GET", url, NULL, NULL, reply, sizeof reply), 401);
    *strstr(url, "&signature=") = 0;
    CHECK_INT(plain_request(f, "GET", url, NULL, NULL, reply, sizeof reply), 401);
    CHECK_HAS(reply, "missing signature");
    CHECK(e2b_sandbox_download_url(direct, path, user, 0, url, sizeof url, &err) > 0); /* expires with this second */
    while (plain_request(f, "GET", url, NULL, NULL, reply, sizeof reply) == 200) sleep_ms(50);
    CHECK_HAS(reply, "expired");
    at = (char *)e2b_sandbox_access_token(f->sandbox); /* a token decides first */
    CHECK_INT(plain_request(f, "GET", url, NULL, at, reply, sizeof reply), 200);
  }
  e2b_sandbox_free(direct);
}

/* ---- watching ---------------------------------------------------------------------------------------------------- */

/* Pulls or drives until the log has that line, or the watch ends. Returns how the last call ended. */
static e2b_err watch_until(fixture *f, e2b_watch_handle *handle, bool pushed, watch_log *log, const char *line) {
  uint64_t end = now_ms() + 20000;
  e2b_err code = E2B_OK;
  e2b_fs_event event;
  e2b_error err;
  memset(&err, 0, sizeof err);
  while (!strstr(log->text, line) && now_ms() < end) {
    if (pushed) {
      (void)e2b_client_poll(f->client, 50);
      if (log->ends) return log->end;
      continue;
    }
    code = e2b_watch_handle_next(handle, 50, &event, &err);
    if (code == E2B_OK) watch_note(log, &event);
    if (code != E2B_OK && code != E2B_PENDING) return code;
  }
  if (!CHECK(strstr(log->text, line) != NULL)) printf("  no \"%s\" in: %s\n", line, log->text);
  return code;
}

/* All there is to see, in the four ways of seeing it. */
static void e2e_watch(fixture *f) {
  int way;
  for (way = 0; way < 4; way++) {
    bool pushed = (way & 1) != 0;
    e2b_watch_handle *handle = NULL;
    e2b_watch_opts opts;
    watch_log log;
    e2b_error err;
    e2b_err code;
    char command[400], dir[120];
    memset(&log, 0, sizeof log);
    memset(&opts, 0, sizeof opts);
    snprintf(dir, sizeof dir, "%s/watched%d", f->dir, way);
    CHECK_OK(e2b_files_make_dir(f->sandbox, dir, NULL, NULL, &err));
    opts.polling = (way & 2) != 0;
    opts.poll_interval_ms = 20;
    opts.recursive = true;
    opts.include_entry = true;
    if (pushed) opts.on_event = watch_note;
    if (pushed) opts.on_end = watch_on_end;
    opts.event_user = &log;
    if (!CHECK_OK(e2b_files_watch_dir(f->sandbox, dir, &opts, &handle, &err))) return;
    snprintf(command, sizeof command,
             "cd %s && echo x >f && chmod 600 f && mv f g && mkdir -p new && sleep 0.2 && echo y >new/h", dir);
    (void)output_of(f, command);
    (void)watch_until(f, handle, pushed, &log, "WRITE new/h entry\n");
    CHECK_HAS(log.text, "CREATE f");
    CHECK_HAS(log.text, "WRITE f");
    CHECK_HAS(log.text, "CHMOD f");
    CHECK_HAS(log.text, "RENAME f\n");
    CHECK_HAS(log.text, "CREATE g entry\n");
    CHECK_HAS(log.text, "CREATE new entry\n");
    CHECK_HAS(log.text, "CREATE new/h entry\n");
    CHECK_OK(e2b_files_remove(f->sandbox, dir, NULL, &err)); /* and the end of it, told once */
    code = watch_until(f, handle, pushed, &log, "never");
    CHECK_INT(code, E2B_EOF);
    CHECK_HAS(log.text, "REMOVE g\n");
    CHECK_HAS(log.text, "REMOVE .\n");
    CHECK(!strstr(log.text, "GAP"));
    if (pushed) {
      files_drive(f->client, 100);
      CHECK_INT(log.ends, 1);
    } else {
      e2b_fs_event event;
      CHECK_RC(e2b_watch_handle_next(handle, 0, &event, &err), E2B_EOF);
    }
    e2b_watch_handle_stop(handle);
  }
  CHECK_WORKS(f);
}

static void e2e_watch_refused(fixture *f) {
  e2b_watch_handle *handle = NULL;
  e2b_watch_opts opts;
  e2b_error err;
  int polling;
  memset(&opts, 0, sizeof opts);
  CHECK_OK(e2b_files_write_text(f->sandbox, in_dir(f, "file"), "x", NULL, NULL, &err));
  for (polling = 0; polling < 2; polling++) {
    opts.polling = polling != 0;
    opts.user = NULL;
    CHECK_RC(e2b_files_watch_dir(f->sandbox, in_dir(f, "none"), &opts, &handle, &err), E2B_ERR_NOT_FOUND);
    CHECK_INT(err.subject, E2B_SUBJECT_FILE);
    CHECK_RC(e2b_files_watch_dir(f->sandbox, in_dir(f, "file"), &opts, &handle, &err), E2B_ERR_INVALID_ARGUMENT);
    opts.user = "no-such-user";
    CHECK_RC(e2b_files_watch_dir(f->sandbox, f->dir, &opts, &handle, &err), E2B_ERR_UNAUTHENTICATED);
    CHECK(!handle && !f->sandbox->watches);
  }
  CHECK_WORKS(f);
}

/* Not recursive: nothing from below. A directory that is renamed ends it. Stopped and started without blocking. */
static void e2e_watch_control(fixture *f) {
  e2b_watch_handle *handle = NULL, *second = NULL;
  e2b_watch_opts opts;
  e2b_fs_event event;
  e2b_error err;
  watch_log log;
  done d;
  int way, fds;
  char command[300];
  CHECK_OK(e2b_files_make_dir(f->sandbox, in_dir(f, "a/below"), NULL, NULL, &err));
  fds = open_fds();
  for (way = 0; way < 4; way++) {
    memset(&opts, 0, sizeof opts);
    memset(&log, 0, sizeof log);
    memset(&d, 0, sizeof d);
    opts.polling = (way & 1) != 0;
    opts.poll_interval_ms = 20;
    opts.call.on_done = on_done;
    opts.call.user = &d;
    handle = second = NULL;
    CHECK_RC(e2b_files_watch_dir(f->sandbox, in_dir(f, "a"), &opts, &handle, &err), E2B_PENDING);
    FILES_UNTIL(f->client, d.count);
    CHECK_INT(d.err.code, E2B_OK);
    if (!CHECK(handle != NULL)) return;
    memset(&opts.call, 0, sizeof opts.call);
    CHECK_OK(e2b_files_watch_dir(f->sandbox, in_dir(f, "a"), &opts, &second, &err)); /* two of the same */
    CHECK_RC(e2b_watch_handle_next(handle, 0, &event, &err), E2B_PENDING);
    snprintf(command, sizeof command, "cd %s && echo x >a/below/deep && echo y >a/top && rm a/top a/below/deep",
             f->dir);
    (void)output_of(f, command);
    (void)watch_until(f, handle, false, &log, "REMOVE top\n");
    CHECK(strstr(log.text, "CREATE top\n") && !strstr(log.text, "deep") && !strstr(log.text, "entry"));
    e2b_watch_handle_stop(handle);
    memset(&log, 0, sizeof log);
    (void)watch_until(f, second, false, &log, "REMOVE top\n");
    if (way & 2) {
      CHECK_OK(e2b_files_rename(f->sandbox, in_dir(f, "a"), in_dir(f, "b"), NULL, NULL, &err));
      CHECK_INT(watch_until(f, second, false, &log, "never"), E2B_EOF);
      CHECK_HAS(log.text, "RENAME .\n");
      CHECK_OK(e2b_files_rename(f->sandbox, in_dir(f, "b"), in_dir(f, "a"), NULL, NULL, &err));
    }
    e2b_watch_handle_stop(second);
    CHECK_OK(e2b_client_drain(f->client, 10000));
  }
  memset(&opts, 0, sizeof opts); /* stopped from inside, and by a callback's answer */
  memset(&log, 0, sizeof log);
  opts.on_event = watch_note;
  opts.on_end = watch_on_end;
  opts.event_user = &log;
  log.stop_after = 1;
  CHECK_OK(e2b_files_watch_dir(f->sandbox, in_dir(f, "a"), &opts, &handle, &err));
  log.handle = handle;
  CHECK_OK(e2b_files_write_text(f->sandbox, in_dir(f, "a/x"), "x", NULL, NULL, &err));
  FILES_UNTIL(f->client, log.count == 1);
  files_drive(f->client, 50);
  CHECK(log.count == 1 && log.ends == 0 && !f->sandbox->watches);
  CHECK(open_fds() <= fds + 3);
  CHECK_OK(e2b_files_watch_dir(f->sandbox, f->dir, NULL, &handle, &err)); /* this one is left to the sandbox */
  CHECK_WORKS(f);
}

/* Nobody takes the events: nothing grows without bound here, and nothing is lost. */
static void e2e_watch_held(fixture *f) {
  const int files = quick ? 300 : 3000;
  e2b_watch_handle *handle = NULL;
  e2b_client_stats stats;
  e2b_fs_event event;
  e2b_error err;
  char command[200], last[40];
  int created = 0;
  CHECK_OK(e2b_files_watch_dir(f->sandbox, f->dir, NULL, &handle, &err));
  snprintf(command, sizeof command, "cd %s && for i in $(seq %d); do : >a-rather-long-file-name-$i; done", f->dir,
           files);
  (void)output_of(f, command);
  files_drive(f->client, 200);
  e2b_client_get_stats(f->client, &stats);
  CHECK(stats.mem_now < 400000);
  snprintf(last, sizeof last, "a-rather-long-file-name-%d", files);
  while (CHECK_OK(e2b_watch_handle_next(handle, 20000, &event, &err))) {
    if (event.type == E2B_FS_GAP) break;
    if (event.type == E2B_FS_CREATE) created++;
    if (event.type == E2B_FS_CREATE && strcmp(event.name, last) == 0) break;
  }
  CHECK(event.type == E2B_FS_CREATE);
  CHECK_INT(created, files);
  e2b_watch_handle_stop(handle);
}

/* A sandbox that is paused takes its watches along, and they say so. */
static void e2e_watch_paused(fixture *f) {
  int way;
  for (way = 0; way < 4; way++) {
    bool pushed = (way & 1) != 0;
    e2b_watch_handle *handle = NULL;
    e2b_sandbox *again = NULL;
    e2b_watch_opts opts;
    watch_log log;
    e2b_error err;
    memset(&opts, 0, sizeof opts);
    memset(&log, 0, sizeof log);
    opts.polling = (way & 2) != 0;
    opts.poll_interval_ms = 20;
    if (pushed) opts.on_event = watch_note;
    if (pushed) opts.on_end = watch_on_end;
    opts.event_user = &log;
    CHECK_OK(e2b_files_watch_dir(f->sandbox, f->dir, &opts, &handle, &err));
    CHECK_OK(e2b_sandbox_pause(f->sandbox, NULL, &err));
    CHECK_INT(watch_until(f, handle, pushed, &log, "never"), E2B_ERR_SANDBOX_PAUSED);
    CHECK_OK(e2b_sandbox_connect(f->client, e2b_sandbox_id(f->sandbox), NULL, &again, &err));
    e2b_sandbox_free(again);
    e2b_watch_handle_stop(handle);
  }
  CHECK_WORKS(f);
}

/* An atomic write, whose every allocation fails in turn. */
static e2b_err atomic_without_memory(fixture *f, bool streamed, e2b_error *err) {
  e2b_file_stream *stream = NULL;
  e2b_files_opts opts;
  e2b_err code;
  memset(&opts, 0, sizeof opts);
  opts.atomic = true;
  if (!streamed) return e2b_files_write(f->sandbox, in_dir(f, "f"), "abc", 3, &opts, NULL, err);
  code = e2b_files_write_stream(f->sandbox, in_dir(f, "f"), 3, &opts, &stream, err);
  if (!code) code = e2b_file_stream_write(stream, -1, "abc", 3, NULL, err);
  if (!code) code = e2b_file_stream_finish(stream, -1, NULL, err);
  e2b_file_stream_free(stream);
  return code;
}

static void e2e_files_no_memory(fixture *f) {
  e2b_error err;
  size_t n;
  int form;
  for (form = 0; form < 2; form++) {
    bool reached = true;
    for (n = 1; reached && n < 1000; n++) {
      e2b_err rc;
      f->memory.fail_at = f->memory.calls + n;
      rc = atomic_without_memory(f, form != 0, &err);
      reached = f->memory.calls >= f->memory.fail_at;
      f->memory.fail_at = 0;
      CHECK_OK(e2b_client_drain(f->client, 10000));
      if (rc != E2B_OK && !CHECK_RC(rc, E2B_ERR_NO_MEMORY)) break; /* some can be done without */
      CHECK(reached || rc == E2B_OK);
    }
    CHECK(n > 10 && n < 1000);
  }
  CHECK_CONTENT(f, "f", "abc");
}

/* ---- without blocking -------------------------------------------------------------------------------------------- */

static void e2e_op_poll(fixture *f) {
  e2b_run_opts opts = { 0 };
  e2b_files_opts files = { 0 };
  e2b_command_result r = { 0 };
  e2b_buf buf = { { 0 }, NULL, 0 };
  e2b_error err;
  e2b_op run_op = { 0 }, write_op = { 0 };
  e2b_err rc;
  opts.call.op = &run_op;
  files.call.op = &write_op;
  CHECK_RC(e2b_commands_run(f->sandbox, "echo hello; exit 5", &opts, &r, &err), E2B_PENDING);
  CHECK_RC(e2b_files_write_text(f->sandbox, in_dir(f, "op"), "text", &files, NULL, &err), E2B_PENDING);
  CHECK_RC(e2b_op_poll(f->client, run_op, &err), E2B_PENDING);
  while ((rc = e2b_op_poll(f->client, run_op, &err)) == E2B_PENDING) e2b_client_poll(f->client, 100);
  CHECK_RC(rc, E2B_COMMAND_EXIT);
  CHECK_STR(r.stdout_data.ptr, "hello\n");
  CHECK_INT(r.exit_code, 5);
  e2b_mem_free(&r.mem);
  CHECK_RC(e2b_op_poll(f->client, run_op, &err), E2B_ERR_BAD_STATE); /* once */
  while ((rc = e2b_op_poll(f->client, write_op, &err)) == E2B_PENDING) e2b_client_poll(f->client, 100);
  CHECK_OK(rc);
  CHECK_RC(e2b_files_read(f->sandbox, in_dir(f, "op"), &files, &buf, &err), E2B_PENDING);
  CHECK_OK(e2b_client_drain(f->client, 10000));
  CHECK_OK(e2b_op_poll(f->client, write_op, &err));
  CHECK_STR((const char *)buf.data, "text");
  e2b_mem_free(&buf.mem);
}

/* Every call of the data plane, started together and finished by one of the three ways to drive a client. */
typedef struct everything {
  done done[8];
  e2b_command_result run;
  e2b_command_handle *handle;
  e2b_process_list processes;
  e2b_entry_list entries;
  e2b_entry_info info;
  e2b_buf buf;
  e2b_file_stream *stream;
  bool created, exists;
} everything;

static void start_everything(fixture *f, everything *e) {
  e2b_run_opts run = run_with(on_done, NULL);
  e2b_files_opts files;
  e2b_error err;
  int i;
  memset(e, 0, sizeof *e);
  memset(&files, 0, sizeof files);
  files.call.on_done = on_done;
  run.call.user = &e->done[0];
  CHECK_RC(e2b_commands_run(f->sandbox, "sleep 0.1; echo done", &run, &e->run, &err), E2B_PENDING);
  run.call.user = &e->done[1];
  CHECK_RC(e2b_commands_start(f->sandbox, "exit 9", &run, &e->handle, &err), E2B_PENDING);
  run.call.user = &e->done[2];
  CHECK_RC(e2b_commands_list(f->sandbox, &run.call, &e->processes, &err), E2B_PENDING);
  files.call.user = &e->done[3];
  CHECK_RC(e2b_files_list(f->sandbox, f->dir, &files, &e->entries, &err), E2B_PENDING);
  files.call.user = &e->done[4];
  CHECK_RC(e2b_files_get_info(f->sandbox, f->dir, &files, &e->info, &err), E2B_PENDING);
  files.call.user = &e->done[5];
  CHECK_RC(e2b_files_read(f->sandbox, in_dir(f, "none"), &files, &e->buf, &err), E2B_PENDING);
  files.call.user = &e->done[6];
  CHECK_RC(e2b_files_exists(f->sandbox, f->dir, &files, &e->exists, &err), E2B_PENDING);
  files.call.user = &e->done[7];
  CHECK_RC(e2b_files_make_dir(f->sandbox, in_dir(f, "made"), &files, &e->created, &err), E2B_PENDING);
  for (i = 0; i < 8; i++) CHECK_INT(e->done[i].count, 0); /* never before the function returned */
}

static bool everything_done(const everything *e) {
  int i, n = 0;
  for (i = 0; i < 8; i++) n += e->done[i].count > 0;
  return n == 8;
}

static void check_everything(everything *e) {
  e2b_error err;
  int i;
  for (i = 0; i < 8; i++) {
    CHECK_INT(e->done[i].count, 1);
    err = e->done[i].err;
    CHECK_RC(err.code, i == 5 ? E2B_ERR_NOT_FOUND : E2B_OK);
  }
  CHECK_STR(e->run.stdout_data.ptr, "done\n");
  CHECK(e->created && e->exists);
  CHECK_INT(e->info.type, E2B_ENTRY_DIR);
  CHECK_RC(e2b_command_handle_wait(e->handle, NULL, NULL, &err), E2B_COMMAND_EXIT);
  CHECK_INT(err.exit_code, 9);
  e2b_command_handle_free(e->handle);
  e2b_mem_free(&e->run.mem);
  e2b_mem_free(&e->processes.mem);
  e2b_mem_free(&e->entries.mem);
  e2b_mem_free(&e->info.mem);
}

static void e2e_drive_by_poll(fixture *f) {
  everything e;
  int completed = 0;
  start_everything(f, &e);
  while (!everything_done(&e)) completed += e2b_client_poll(f->client, 1000);
  CHECK_INT(completed, 8);
  check_everything(&e);
}

static void e2e_drive_by_pump(fixture *f) {
  everything e;
  start_everything(f, &e);
  while (!everything_done(&e))
    if (!e2b_client_pump(f->client, 500)) sleep_ms(1);
  check_everything(&e);
}

static void e2e_drive_by_own_loop(fixture *f) {
  everything e;
  int turns = 0;
  start_everything(f, &e);
  while (!everything_done(&e) && CHECK(++turns < 10000)) {
    e2b_pollfd wanted[64];
    struct pollfd fds[64];
    size_t count = e2b_client_fds(f->client, wanted, 64), i;
    if (!CHECK(count <= 64)) return;
    for (i = 0; i < count; i++) {
      fds[i].fd = (int)wanted[i].fd;
      fds[i].events =
          (short)((wanted[i].events & E2B_FD_READ ? POLLIN : 0) | (wanted[i].events & E2B_FD_WRITE ? POLLOUT : 0));
      fds[i].revents = 0;
    }
    poll(fds, (nfds_t)count, e2b_client_next_timeout(f->client));
    for (i = 0; i < count; i++)
      wanted[i].revents = (fds[i].revents & (POLLIN | POLLHUP | POLLERR) ? E2B_FD_READ : 0) |
                          (fds[i].revents & POLLOUT ? E2B_FD_WRITE : 0);
    CHECK(e2b_client_process(f->client, wanted, count, 0) >= 0);
  }
  check_everything(&e);
  CHECK(turns < 1000); /* it waits, it does not spin */
}

#define CROWD 200

static void e2e_parallel_commands(fixture *f) {
  static e2b_command_result results[CROWD];
  static done dones[CROWD];
  e2b_run_opts opts;
  e2b_error err;
  char text[40];
  int i;
  memset(results, 0, sizeof results);
  memset(dones, 0, sizeof dones);
  for (i = 0; i < CROWD; i++) {
    opts = run_with(on_done, &dones[i]);
    snprintf(text, sizeof text, "echo number %d", i);
    CHECK_RC(e2b_commands_run(f->sandbox, text, &opts, &results[i], &err), E2B_PENDING);
  }
  CHECK_OK(e2b_client_drain(f->client, 120000));
  for (i = 0; i < CROWD; i++) {
    snprintf(text, sizeof text, "number %d\n", i);
    CHECK_INT(dones[i].count, 1);
    err = dones[i].err;
    CHECK_OK(err.code);
    CHECK_STR(results[i].stdout_data.ptr, text);
    e2b_mem_free(&results[i].mem);
  }
}

static void e2e_cancel(fixture *f) {
  e2b_command_result r = { 0 };
  e2b_client_stats stats;
  e2b_error err;
  e2b_op op = { 0 };
  done d = { 0 };
  int i;
  for (i = 0; i < 3; i++) { /* at once; after the head; in the middle of the output */
    e2b_run_opts opts = run_with(on_done, &d);
    uint64_t until = now_ms() + (uint64_t)(i * 60);
    opts.call.op = &op;
    CHECK_RC(e2b_commands_run(f->sandbox, "for i in $(seq 30); do echo $i; sleep 0.02; done", &opts, &r, &err),
             E2B_PENDING);
    while (now_ms() < until) e2b_client_poll(f->client, 10);
    e2b_op_cancel(f->client, op);
    e2b_op_cancel(f->client, op); /* stale: nothing */
    e2b_op_resume(f->client, op);
    CHECK_RC(e2b_op_poll(f->client, op, &err), E2B_ERR_BAD_STATE);
    CHECK_WORKS(f);
  }
  CHECK_INT(d.count, 0);
  CHECK(!r.mem.ptr);
  e2b_client_get_stats(f->client, &stats);
  CHECK_INT(stats.ops_active, 0);
}

typedef struct other_thread {
  e2b_client *client;
  void (*call)(e2b_client *client);
} other_thread;

static void *call_later(void *arg) {
  other_thread *o = (other_thread *)arg;
  sleep_ms(200);
  o->call(o->client);
  return NULL;
}

static void e2e_wake_and_interrupt(fixture *f) {
  e2b_run_opts opts;
  e2b_command_result r = { 0 };
  e2b_error err;
  other_thread other;
  pthread_t thread;
  done d = { 0 };
  uint64_t from;
  other.client = f->client;
  opts = run_with(on_done, &d);
  CHECK_RC(e2b_commands_run(f->sandbox, "sleep 3", &opts, &r, &err), E2B_PENDING);
  for (from = now_ms(); now_ms() < from + 300;) e2b_client_poll(f->client, 20);
  other.call = e2b_client_wake;
  if (!CHECK(pthread_create(&thread, NULL, call_later, &other) == 0)) return;
  e2b_client_poll(f->client, 20000);
  CHECK_INT(d.count, 0);
  pthread_join(thread, NULL);
  CHECK_OK(e2b_client_drain(f->client, 10000));
  e2b_mem_free(&r.mem);

  other.call = e2b_client_interrupt;
  if (!CHECK(pthread_create(&thread, NULL, call_later, &other) == 0)) return;
  CHECK_RC(e2b_commands_run(f->sandbox, "sleep 20", NULL, &r, &err), E2B_ERR_CANCELED);
  pthread_join(thread, NULL);
  e2b_mem_free(&r.mem);
  e2b_client_interrupt(f->client); /* none under way: the next one */
  CHECK_RC(e2b_commands_run(f->sandbox, "true", NULL, NULL, &err), E2B_ERR_CANCELED);
  CHECK_WORKS(f);
}

/* ---- callbacks --------------------------------------------------------------------------------------------------- */

typedef struct inside {
  fixture *f;
  e2b_command_handle *handle;
  e2b_err blocking, polling, started;
  e2b_error err;
  done done;
  e2b_command_result result;
  int calls;
} inside;

static int call_inside(void *user, const char *data, size_t len) {
  inside *in = (inside *)user;
  e2b_run_opts opts = run_with(on_done, &in->done);
  (void)data;
  (void)len;
  if (in->calls++) return 0;
  in->blocking = e2b_commands_run(in->f->sandbox, "true", NULL, NULL, &in->err);
  in->polling = (e2b_err)e2b_client_poll(in->f->client, 0);
  e2b_client_free(in->f->client); /* refused */
  in->started = e2b_commands_run(in->f->sandbox, "echo from inside", &opts, &in->result, NULL);
  return 0;
}

static int cancel_inside(void *user, const char *data, size_t len) {
  (void)data;
  (void)len;
  ++*(int *)user;
  return -1;
}

static int free_inside(void *user, const char *data, size_t len) {
  inside *in = (inside *)user;
  (void)data;
  (void)len;
  in->calls++;
  e2b_command_handle_free(in->handle);
  return 0;
}

static void e2e_inside_callbacks(fixture *f) {
  e2b_run_opts opts = { 0 };
  e2b_error err;
  inside in;
  int calls = 0, i;
  memset(&in, 0, sizeof in);
  in.f = f;
  opts.on_stdout = call_inside;
  opts.output_user = &in;
  CHECK_OK(e2b_commands_run(f->sandbox, "echo one", &opts, NULL, &err));
  CHECK_INT(in.blocking, E2B_ERR_BAD_STATE);
  CHECK(strlen(in.err.message) > 8);
  CHECK_INT(in.polling, E2B_ERR_BAD_STATE);
  CHECK_INT(in.started, E2B_PENDING);
  CHECK_OK(e2b_client_drain(f->client, 10000));
  CHECK_INT(in.done.count, 1);
  CHECK_STR(in.result.stdout_data.ptr, "from inside\n");
  e2b_mem_free(&in.result.mem);

  opts.on_stdout = cancel_inside;
  opts.output_user = &calls;
  CHECK_RC(e2b_commands_run(f->sandbox, "echo one; sleep 0.1; echo two; sleep 0.1; echo three", &opts, NULL, &err),
           E2B_ERR_CANCELED);
  CHECK_INT(calls, 1);

  memset(&in, 0, sizeof in);
  opts.on_stdout = free_inside;
  opts.output_user = &in;
  CHECK_OK(e2b_commands_start(f->sandbox, "sleep 0.1; echo one; sleep 0.1; echo two", &opts, &in.handle, &err));
  for (i = 0; i < 2000 && !in.calls; i++) e2b_client_poll(f->client, 10);
  for (i = 0; i < 40; i++) { /* and nothing after it */
    e2b_client_poll(f->client, 10);
    sleep_ms(5);
  }
  CHECK_INT(in.calls, 1);
  CHECK_WORKS(f);
}

/* Handles and operations that are still open when their sandbox goes. */
static void e2e_free_with_things_open(fixture *f) {
  e2b_command_handle *handle;
  e2b_file_stream *stream;
  e2b_run_opts opts;
  e2b_command_result r = { 0 };
  e2b_error err;
  e2b_attach_opts attach;
  e2b_sandbox *second = NULL;
  done d = { 0 };
  memset(&attach, 0, sizeof attach);
  attach.access_token = e2b_sandbox_access_token(f->sandbox);
  attach.base_url = e2b_sandbox_runtime_url(f->sandbox);
  if (!CHECK_OK(e2b_sandbox_attach(f->client, e2b_sandbox_id(f->sandbox), &attach, &second, &err))) return;
  opts = run_with(on_done, &d);
  CHECK_RC(e2b_commands_run(second, "sleep 1", &opts, &r, &err), E2B_PENDING);
  CHECK_OK(e2b_commands_start(second, "sleep 1", NULL, &handle, &err));
  CHECK_OK(e2b_files_write_stream(second, in_dir(f, "open"), -1, NULL, &stream, &err));
  e2b_sandbox_free(second);
  CHECK_OK(e2b_client_drain(f->client, 1000));
  CHECK_INT(d.count, 1);
  CHECK_INT(d.err.code, E2B_ERR_CANCELED);
  e2b_mem_free(&r.mem);
  CHECK_WORKS(f);
}

/* Two clients side by side on one thread. */
static void e2e_two_clients(fixture *f) {
  fixture other;
  e2b_run_opts opts;
  e2b_command_result r = { 0 };
  e2b_error err;
  done d = { 0 };
  if (fixture_open(&other)) {
    opts = run_with(on_done, &d);
    CHECK_RC(e2b_commands_run(other.sandbox, "echo other", &opts, &r, &err), E2B_PENDING);
    CHECK_WORKS(f);
    CHECK_OK(e2b_client_drain(other.client, 10000));
    CHECK_INT(d.count, 1);
    CHECK_STR(r.stdout_data.ptr, "other\n");
    e2b_mem_free(&r.mem);
  }
  fixture_close(&other);
}

/* ---- sandboxes --------------------------------------------------------------------------------------------------- */

/* examples/quickstart.c, as a test. */
static void e2e_quickstart(fixture *f) {
  e2b_sandbox *sandbox;
  e2b_command_result r = { 0 };
  e2b_sandbox_info info;
  e2b_error err;
  char id[100];
  bool created;
  memset(&info, 0, sizeof info);
  if (!CHECK_OK(e2b_sandbox_create(f->client, "code-interpreter", NULL, &sandbox, &err))) return;
  snprintf(id, sizeof id, "%s", e2b_sandbox_id(sandbox));
  CHECK_STR(e2b_sandbox_template_id(sandbox), "code-interpreter");
  CHECK(e2b_sandbox_access_token(sandbox)[0]); /* secure unless told otherwise */
  CHECK_OK(e2b_commands_run(sandbox, "echo hello", NULL, &r, &err));
  CHECK_STR(r.stdout_data.ptr, "hello\n");
  e2b_mem_free(&r.mem);
  CHECK_OK(e2b_files_make_dir(sandbox, in_dir(f, "demo"), NULL, &created, &err));
  CHECK(created);
  CHECK_OK(e2b_sandbox_close(sandbox, NULL, &err));
  CHECK_RC(e2b_api_get_info(f->client, id, NULL, &info, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_SANDBOX);
}

static void e2e_sandbox_options(fixture *f) {
  static const e2b_kv vars[] = { { "FROM_CREATE", "yes" } };
  const char *odd_key = the_host->kruise ? "example.com/run_1" : "r\xc3\xbcn"; /* keys are Kubernetes' there */
  e2b_kv metadata[2];
  e2b_sandbox_opts opts = { 0 };
  e2b_sandbox *sandbox;
  e2b_command_result r = { 0 };
  e2b_sandbox_info info;
  e2b_error err;
  int64_t end;
  size_t i, found = 0;
  memset(&info, 0, sizeof info);
  metadata[0].key = "team";
  metadata[0].value = "a&b";
  metadata[1].key = odd_key;
  metadata[1].value = "7 %";
  opts.timeout_s = 100;
  opts.metadata.items = metadata;
  opts.metadata.count = 2;
  opts.env_vars.items = vars;
  opts.env_vars.count = 1;
  if (!CHECK_OK(e2b_sandbox_create(f->client, NULL, &opts, &sandbox, &err))) return;
  CHECK_OK(e2b_commands_run(sandbox, "echo $FROM_CREATE", NULL, &r, &err));
  CHECK_STR(r.stdout_data.ptr, "yes\n");
  e2b_mem_free(&r.mem);

  CHECK_OK(e2b_sandbox_get_info(sandbox, NULL, &info, &err));
  CHECK_STR(info.sandbox_id, e2b_sandbox_id(sandbox));
  CHECK_STR(info.template_id, e2b_sandbox_template_id(sandbox));
  CHECK_STR(info.envd_version, e2b_sandbox_envd_version(sandbox));
  CHECK_INT(info.state, E2B_STATE_RUNNING);
  CHECK(info.started_at_ms > 1600000000000 && info.end_at_ms - info.started_at_ms > 95000 &&
        info.end_at_ms - info.started_at_ms < 105000);
  for (i = 0; i < info.metadata.count; i++) {
    if (strcmp(info.metadata.items[i].key, "team") == 0) found += CHECK_STR(info.metadata.items[i].value, "a&b");
    if (strcmp(info.metadata.items[i].key, odd_key) == 0) found += CHECK_STR(info.metadata.items[i].value, "7 %");
    if (strcmp(info.metadata.items[i].key, "e2b.h/nonce") == 0) found++;
  }
  CHECK_INT(found, 3);
  end = info.end_at_ms;
  e2b_mem_free(&info.mem);
  CHECK_OK(e2b_sandbox_set_timeout(sandbox, 1000, NULL, &err));
  CHECK_OK(e2b_sandbox_get_info(sandbox, NULL, &info, &err));
  CHECK(info.end_at_ms - end > 800000 && info.end_at_ms - end < 1000000);
  e2b_mem_free(&info.mem);
  CHECK_OK(e2b_sandbox_close(sandbox, NULL, &err));
}

static void e2e_sandbox_list(fixture *f) {
  static const e2b_kv marks[] = { { "mark", "list & more" } }, kruise_marks[] = { { "mark", "list + = %41 /more" } };
  e2b_sandbox_opts opts = { 0 };
  e2b_list_opts list = { 0 };
  e2b_sandbox_list page = { { 0 }, NULL, 0, NULL };
  e2b_sandbox *sandboxes[5];
  e2b_error err;
  char token[500] = "";
  size_t i, seen = 0, pages = 0;
  opts.metadata.items = the_host->kruise ? kruise_marks : marks;
  opts.metadata.count = 1;
  memset(sandboxes, 0, sizeof sandboxes);
  for (i = 0; i < 5; i++) CHECK_OK(e2b_sandbox_create(f->client, NULL, &opts, &sandboxes[i], &err));
  list.metadata = opts.metadata;
  list.limit = 2;
  do {
    list.next_token = token;
    if (!CHECK_OK(e2b_api_list(f->client, &list, &page, &err))) break;
    CHECK(page.count <= 2);
    seen += page.count;
    pages++;
    snprintf(token, sizeof token, "%s", page.next_token ? page.next_token : "");
    e2b_mem_free(&page.mem);
  } while (token[0] && pages < 10);
  CHECK_INT(seen, 5);
  CHECK_INT(pages, 3);
  list.next_token = NULL;
  list.limit = 0;
  list.states = E2B_STATE_PAUSED;
  CHECK_OK(e2b_sandbox_pause(sandboxes[0], NULL, &err));
  if (CHECK_OK(e2b_api_list(f->client, &list, &page, &err)) && CHECK_INT(page.count, 1)) {
    CHECK_STR(page.items[0].sandbox_id, e2b_sandbox_id(sandboxes[0]));
    CHECK_INT(page.items[0].state, E2B_STATE_PAUSED);
  }
  e2b_mem_free(&page.mem);
  for (i = 0; i < 5; i++) CHECK_OK(e2b_sandbox_close(sandboxes[i], NULL, &err));
  list.states = 0;
  CHECK_OK(e2b_api_list(f->client, &list, &page, &err));
  CHECK_INT(page.count, 0);
  e2b_mem_free(&page.mem);
}

/* All pages in one call, and the filters. */
static void e2e_list_all(fixture *f) {
  static const e2b_kv marks[] = { { "mark", "all" } };
  e2b_sandbox_opts opts = { 0 };
  e2b_list_opts list = { 0 };
  e2b_sandbox_info info;
  e2b_sandbox *sandboxes[5];
  char ids[5][100], oldest[100] = "";
  ok_listed l;
  e2b_error err;
  done d;
  int64_t middle = 0;
  size_t i;
  memset(&info, 0, sizeof info);
  memset(sandboxes, 0, sizeof sandboxes);
  opts.metadata.items = marks;
  opts.metadata.count = 1;
  for (i = 0; i < 5; i++) {
    if (i == 3) sleep_ms(1100); /* OpenKruise counts in seconds */
    if (!CHECK_OK(e2b_sandbox_create(f->client, i == 1 ? "base" : NULL, &opts, &sandboxes[i], &err))) return;
    snprintf(ids[i], sizeof ids[i], "%s", e2b_sandbox_id(sandboxes[i]));
    if (i == 3 && CHECK_OK(e2b_sandbox_get_info(sandboxes[i], NULL, &info, &err))) middle = info.started_at_ms;
    if (i == 3) e2b_mem_free(&info.mem);
  }
  list.metadata = opts.metadata;
  list.limit = 2;
  memset(&l, 0, sizeof l);
  CHECK_OK(e2b_api_list_all(f->client, &list, ok_on_sandbox, &l, &err));
  CHECK_INT(l.count, 5);
  list.oldest_first = true;
  memset(&l, 0, sizeof l);
  l.stop_at = l.stop_with = 1;
  CHECK_OK(e2b_api_list_all(f->client, &list, ok_on_sandbox, &l, &err));
  snprintf(oldest, sizeof oldest, "%s", ids[0]);
  CHECK_STR(l.ids, oldest);
  list.oldest_first = false;
  list.template_id = "base";
  memset(&l, 0, sizeof l);
  CHECK_OK(e2b_api_list_all(f->client, &list, ok_on_sandbox, &l, &err));
  CHECK_STR(l.ids, ids[1]);
  list.template_id = NULL;
  list.started_after_ms = middle;
  memset(&l, 0, sizeof l);
  memset(&d, 0, sizeof d);
  list.call.on_done = on_done;
  list.call.user = &d;
  CHECK_RC(e2b_api_list_all(f->client, &list, ok_on_sandbox, &l, &err), E2B_PENDING);
  CHECK_OK(e2b_client_drain(f->client, 20000));
  CHECK(d.count == 1 && d.err.code == E2B_OK);
  CHECK_INT(l.count, 2);
  for (i = 0; i < 5; i++) CHECK_OK(e2b_sandbox_close(sandboxes[i], NULL, &err));
}

/* OpenKruise's JWT mode against a gateway that checks; the tokens of this server are good for 600 s. */
static int64_t traffic_ahead_s;

static int64_t traffic_unix_time(void *user) {
  (void)user;
  return (int64_t)time(NULL) + traffic_ahead_s;
}

static void e2e_traffic_tokens(fixture *f) {
  static const e2b_kv jwt_mode[] = { { E2B_JWT_AUTH_METADATA_KEY, "true" } };
  e2b_client_config config = host_config(the_host);
  e2b_sandbox_opts opts = { 0 };
  e2b_attach_opts attach;
  e2b_command_result r = { 0 };
  fixture other;
  e2b_sandbox *again, *bare, *second;
  e2b_traffic_token token;
  char first[2000], encoded[100];
  e2b_error err;
  int tries;
  if (!the_host->kruise) { /* no such mode there */
    CHECK_RC(e2b_sandbox_refresh_traffic_access_token(f->sandbox, NULL, NULL, &err), E2B_ERR_BAD_STATE);
    return;
  }
  memset(&other, 0, sizeof other);
  memset(&attach, 0, sizeof attach);
  memset(&token, 0, sizeof token);
  memcpy(other.dir, f->dir, sizeof other.dir);
  traffic_ahead_s = 0;
  config.allocator = heap_allocator(&other.memory);
  config.unix_time_fn = traffic_unix_time;
  CHECK(e2b_encode_for_e2b_sdk(HOST_KEY, encoded, sizeof encoded) < sizeof encoded);
  config.api_key = encoded; /* the server knows this form of its key too */
  other.client = e2b_client_create(&config, &err);
  opts.metadata.items = jwt_mode;
  opts.metadata.count = 1;
  if (!CHECK(other.client != NULL) || !CHECK_OK(e2b_sandbox_create(other.client, NULL, &opts, &other.sandbox, &err))) return;
  snprintf(first, sizeof first, "%s", e2b_sandbox_traffic_access_token(other.sandbox));
  CHECK(first[0] && strchr(first, '.'));
  CHECK_WORKS(&other);
  CHECK_OK(e2b_files_write_text(other.sandbox, in_dir(&other, "jwt"), "kept", NULL, NULL, &err));

  /* without it, and with that of another sandbox: not through the gateway */
  attach.envd_version = e2b_sandbox_envd_version(other.sandbox);
  attach.access_token = e2b_sandbox_access_token(other.sandbox);
  CHECK_OK(e2b_sandbox_attach(other.client, e2b_sandbox_id(other.sandbox), &attach, &bare, &err));
  CHECK_RC(e2b_commands_run(bare, "true", NULL, NULL, &err), E2B_ERR_PERMISSION);
  CHECK_OK(e2b_sandbox_create(other.client, NULL, &opts, &second, &err));
  attach.traffic_access_token = e2b_sandbox_traffic_access_token(second);
  CHECK_OK(e2b_sandbox_attach(other.client, e2b_sandbox_id(other.sandbox), &attach, &again, &err));
  CHECK_RC(e2b_commands_run(again, "true", NULL, NULL, &err), E2B_ERR_PERMISSION);
  e2b_sandbox_free(again);
  CHECK_OK(e2b_sandbox_close(second, NULL, &err));

  /* connect gives none: it is fetched with the first call */
  CHECK_OK(e2b_sandbox_connect(other.client, e2b_sandbox_id(other.sandbox), NULL, &again, &err));
  CHECK_STR(e2b_sandbox_traffic_access_token(again), "");
  CHECK_OK(e2b_commands_run(again, "echo hello", NULL, &r, &err));
  CHECK_STR(r.stdout_data.ptr, "hello\n");
  e2b_mem_free(&r.mem);
  CHECK(e2b_sandbox_traffic_access_token(again)[0]);

  /* due: used, and replaced; asked for: replaced at once */
  traffic_ahead_s = 500;
  CHECK_WORKS(&other);
  for (tries = 0; tries < 100 && strcmp(e2b_sandbox_traffic_access_token(other.sandbox), first) == 0; tries++)
    (void)e2b_client_poll(other.client, 100);
  CHECK(strcmp(e2b_sandbox_traffic_access_token(other.sandbox), first) != 0);
  CHECK_WORKS(&other);
  traffic_ahead_s = 0;
  CHECK_OK(e2b_sandbox_refresh_traffic_access_token(other.sandbox, NULL, NULL, &err));
  CHECK_OK(e2b_api_refresh_traffic_access_token(other.client, e2b_sandbox_id(other.sandbox), NULL, &token, &err));
  CHECK(token.token[0] && token.expires_at_ms > ((int64_t)time(NULL) + 500) * 1000);
  e2b_mem_free(&token.mem);

  /* a clock beyond what the server gives: nothing is sent */
  traffic_ahead_s = 2000;
  CHECK_RC(e2b_commands_run(other.sandbox, "true", NULL, NULL, &err), E2B_ERR_TRAFFIC_TOKEN_EXPIRED);
  traffic_ahead_s = 0;
  CHECK_WORKS(&other);

  /* pause, resume, and the end of the sandbox are seen as always */
  CHECK_OK(e2b_sandbox_pause(other.sandbox, NULL, &err));
  CHECK_RC(e2b_commands_run(other.sandbox, "true", NULL, NULL, &err), E2B_ERR_SANDBOX_PAUSED);
  e2b_sandbox_free(again);
  CHECK_OK(e2b_sandbox_connect(other.client, e2b_sandbox_id(other.sandbox), NULL, &again, &err));
  CHECK_WORKS(&other);
  CHECK_OK(e2b_sandbox_kill(other.sandbox, NULL, NULL, &err));
  CHECK_RC(e2b_commands_run(other.sandbox, "true", NULL, NULL, &err), E2B_ERR_SANDBOX_GONE);
  CHECK_RC(e2b_sandbox_refresh_traffic_access_token(again, NULL, NULL, &err), E2B_ERR_TRAFFIC_TOKEN_REFRESH);
  CHECK_INT(err.http_status, 404);
  CHECK_RC(e2b_api_refresh_traffic_access_token(other.client, e2b_sandbox_id(f->sandbox), NULL, &token, &err),
           E2B_ERR_TRAFFIC_TOKEN_REFRESH);
  CHECK_INT(err.http_status, 409); /* that one is not in JWT mode */
  e2b_client_free(other.client);
  HEAP_CHECK_EMPTY(&other.memory);
}

static void e2e_pause_and_connect(fixture *f) {
  e2b_sandbox *sandbox, *again;
  e2b_error err;
  bool running = true;
  if (!CHECK_OK(e2b_sandbox_create(f->client, NULL, NULL, &sandbox, &err))) return;
  CHECK_OK(e2b_files_write_text(sandbox, in_dir(f, "kept"), "kept", NULL, NULL, &err));
  CHECK_OK(e2b_sandbox_pause(sandbox, NULL, &err));
  CHECK_OK(e2b_sandbox_pause(sandbox, NULL, &err)); /* already paused */
  CHECK_RC(e2b_commands_run(sandbox, "true", NULL, NULL, &err), E2B_ERR_SANDBOX_PAUSED);
  CHECK_OK(e2b_sandbox_is_running(sandbox, NULL, &running, &err));
  CHECK(!running);
  if (CHECK_OK(e2b_sandbox_connect(f->client, e2b_sandbox_id(sandbox), NULL, &again, &err))) {
    e2b_buf buf = { { 0 }, NULL, 0 };
    CHECK_OK(e2b_files_read_text(again, in_dir(f, "kept"), NULL, &buf, &err));
    CHECK_STR((const char *)buf.data, "kept");
    e2b_mem_free(&buf.mem);
    CHECK_OK(e2b_commands_run(sandbox, "true", NULL, NULL, &err)); /* the old handle works again */
    CHECK_OK(e2b_sandbox_is_running(sandbox, NULL, &running, &err));
    CHECK(running);
    e2b_sandbox_free(again);
  }
  CHECK_OK(e2b_sandbox_close(sandbox, NULL, &err));
  CHECK_RC(e2b_sandbox_connect(f->client, "no-such-sandbox", NULL, &again, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_SANDBOX);
}

static void e2e_dead_sandbox(fixture *f) {
  e2b_sandbox *sandbox;
  e2b_command_handle *handle;
  e2b_command_result r = { 0 };
  e2b_buf buf = { { 0 }, NULL, 0 };
  e2b_run_opts run = { 0 };
  e2b_call call = { 0 };
  e2b_client_stats before, now;
  uint64_t give_up = now_ms() + 30000;
  e2b_error err;
  e2b_op op;
  e2b_command_event event;
  bool killed = false, running = true, exists;
  if (!CHECK_OK(e2b_sandbox_create(f->client, NULL, NULL, &sandbox, &err))) return;
  run.stdin_open = true;
  CHECK_OK(e2b_commands_start(sandbox, "echo begun; read go; head -c 20000 /dev/zero; sleep 100", &run, &handle, &err));
  CHECK_OK(e2b_command_handle_next(handle, -1, &event, &err));
  call.op = &op;
  CHECK_RC(e2b_command_handle_wait(handle, &call, &r, &err), E2B_PENDING);
  e2b_client_get_stats(f->client, &before);
  CHECK_OK(e2b_commands_send_stdin(sandbox, e2b_command_handle_pid(handle), "go\n", 3, NULL, &err));
  do { /* the answer to send_stdin is less than 1000 bytes */
    (void)e2b_client_poll(f->client, 100);
    e2b_client_get_stats(f->client, &now);
  } while (now.bytes_rx - before.bytes_rx < 20000 && now_ms() < give_up);
  CHECK_OK(e2b_sandbox_kill(sandbox, NULL, &killed, &err));
  CHECK(killed);
  while (e2b_op_poll(f->client, op, &err) == E2B_PENDING) (void)e2b_client_poll(f->client, -1);
  CHECK_RC(err.code, E2B_ERR_SANDBOX_GONE); /* with its output so far */
  CHECK(r.stdout_data.len > 19000);
  e2b_mem_free(&r.mem);
  e2b_command_handle_free(handle);
  CHECK_RC(e2b_commands_run(sandbox, "true", NULL, NULL, &err), E2B_ERR_SANDBOX_GONE);
  CHECK_RC(e2b_commands_list(sandbox, NULL, (e2b_process_list *)&r, &err), E2B_ERR_SANDBOX_GONE);
  CHECK_RC(e2b_files_read(sandbox, "/etc/hostname", NULL, &buf, &err), E2B_ERR_SANDBOX_GONE);
  CHECK_RC(e2b_files_write(sandbox, "x", "x", 1, NULL, NULL, &err), E2B_ERR_SANDBOX_GONE);
  CHECK_RC(e2b_files_exists(sandbox, "x", NULL, &exists, &err), E2B_ERR_SANDBOX_GONE);
  CHECK_OK(e2b_sandbox_is_running(sandbox, NULL, &running, &err));
  CHECK(!running);
  CHECK_OK(e2b_sandbox_kill(sandbox, NULL, &killed, &err));
  CHECK(!killed);
  CHECK_RC(e2b_sandbox_set_timeout(sandbox, 100, NULL, &err), E2B_ERR_NOT_FOUND);
  CHECK_OK(e2b_sandbox_close(sandbox, NULL, &err));
  CHECK_WORKS(f);
}

static void e2e_api_by_id(fixture *f) {
  e2b_create_response created;
  e2b_sandbox_info info;
  e2b_error err;
  bool killed = false;
  char id[100];
  memset(&created, 0, sizeof created);
  memset(&info, 0, sizeof info);
  if (!CHECK_OK(e2b_api_create_sandbox(f->client, NULL, NULL, &created, &err))) return;
  snprintf(id, sizeof id, "%s", created.sandbox_id);
  CHECK_STR(created.template_id, "code-interpreter");
  CHECK(created.envd_version[0] && created.envd_access_token[0]);
  e2b_mem_free(&created.mem);
  CHECK_OK(e2b_api_set_timeout(f->client, id, 500, NULL, &err));
  CHECK_OK(e2b_api_get_info(f->client, id, NULL, &info, &err));
  CHECK(info.end_at_ms - info.started_at_ms > 490000);
  e2b_mem_free(&info.mem);
  CHECK_OK(e2b_api_pause(f->client, id, NULL, &err));
  CHECK_OK(e2b_api_connect_sandbox(f->client, id, 100, NULL, &created, &err));
  CHECK_STR(created.sandbox_id, id);
  e2b_mem_free(&created.mem);
  CHECK_OK(e2b_api_kill(f->client, id, NULL, &killed, &err));
  CHECK(killed);
  CHECK_OK(e2b_api_kill(f->client, id, NULL, &killed, &err));
  CHECK(!killed);
  CHECK_RC(e2b_api_set_timeout(f->client, id, 500, NULL, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_SANDBOX);
  CHECK_RC(e2b_api_pause(f->client, id, NULL, &err), E2B_ERR_NOT_FOUND);
}

static void e2e_refused_by_the_api(fixture *f) {
  e2b_client_config config = host_config(the_host);
  e2b_sandbox_opts opts = { 0 };
  e2b_sandbox *sandbox;
  e2b_client *client;
  e2b_error err;
  CHECK_RC(e2b_sandbox_create(f->client, "no-such-template", NULL, &sandbox, &err),
           the_host->kruise ? E2B_ERR_INVALID_ARGUMENT : E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, the_host->kruise ? E2B_SUBJECT_NONE : E2B_SUBJECT_TEMPLATE);
  CHECK(!sandbox && !err.maybe_done);
  opts.timeout_s = 2000000000;
  CHECK_RC(e2b_sandbox_create(f->client, NULL, &opts, &sandbox, &err), E2B_ERR_INVALID_ARGUMENT);
  config.api_key = "wrong-key-0123456789";
  client = e2b_client_create(&config, &err);
  if (CHECK(client != NULL)) {
    CHECK_RC(e2b_sandbox_create(client, NULL, NULL, &sandbox, &err), E2B_ERR_UNAUTHENTICATED);
    CHECK_INT(err.http_status, 401);
    CHECK(!strstr(err.message, "0123456789")); /* never a secret */
  }
  e2b_client_free(client);
  config.api_key = NULL;
  client = e2b_client_create(&config, &err);
  if (CHECK(client != NULL)) CHECK_RC(e2b_sandbox_create(client, NULL, NULL, &sandbox, &err), E2B_ERR_UNAUTHENTICATED);
  e2b_client_free(client);
  CHECK_WORKS(f);
}

static void e2e_wrong_access_token(fixture *f) {
  e2b_attach_opts attach;
  e2b_sandbox *second;
  e2b_error err;
  memset(&attach, 0, sizeof attach);
  attach.base_url = e2b_sandbox_runtime_url(f->sandbox);
  attach.access_token = "wrong";
  if (!CHECK_OK(e2b_sandbox_attach(f->client, e2b_sandbox_id(f->sandbox), &attach, &second, &err))) return;
  CHECK_RC(e2b_commands_run(second, "true", NULL, NULL, &err), E2B_ERR_UNAUTHENTICATED);
  CHECK_RC(e2b_files_write(second, "x", "x", 1, NULL, NULL, &err), E2B_ERR_UNAUTHENTICATED);
  e2b_sandbox_free(second);
  CHECK_WORKS(f);
}

/* The same server by host names and by path prefix. */
static void e2e_routes(fixture *f) {
  static const e2b_protocol protocols[] = { E2B_PROTOCOL_NATIVE, E2B_PROTOCOL_PRIVATE };
  e2b_client_config config = host_config(the_host);
  const char *authority = strstr(the_host->url, "//") + 2;
  fixture other;
  e2b_error err;
  size_t i;
  (void)f;
  for (i = the_host->kruise ? 1 : 0; i < 2; i++) {
    memset(&other, 0, sizeof other);
    config.api_url = config.sandbox_url = NULL;
    config.scheme = the_host->tls ? "https" : "http";
    config.domain = authority;
    config.protocol = protocols[i];
    config.allocator = heap_allocator(&other.memory);
    other.client = e2b_client_create(&config, &err);
    if (!CHECK(other.client != NULL)) continue;
    if (CHECK_OK(e2b_sandbox_create(other.client, NULL, NULL, &other.sandbox, &err))) {
      if (i == 0) CHECK(strstr(e2b_sandbox_runtime_url(other.sandbox), e2b_sandbox_id(other.sandbox)));
      CHECK_WORKS(&other);
      CHECK_OK(e2b_sandbox_close(other.sandbox, NULL, &err));
    }
    e2b_client_free(other.client);
    HEAP_CHECK_EMPTY(&other.memory);
  }
}

static void e2e_many_sandboxes(fixture *f) {
  enum { COUNT = 50 };
  static e2b_sandbox *sandboxes[COUNT];
  static e2b_command_result results[COUNT];
  static done dones[COUNT];
  e2b_sandbox_opts opts = { 0 };
  e2b_run_opts run;
  e2b_call kill_call = { 0 };
  e2b_error err;
  int i;
  memset(sandboxes, 0, sizeof sandboxes);
  memset(results, 0, sizeof results);
  memset(dones, 0, sizeof dones);
  opts.call.on_done = kill_call.on_done = on_done;
  for (i = 0; i < COUNT; i++) {
    opts.call.user = &dones[i];
    CHECK_RC(e2b_sandbox_create(f->client, NULL, &opts, &sandboxes[i], &err), E2B_PENDING);
  }
  CHECK_OK(e2b_client_drain(f->client, 60000));
  for (i = 0; i < COUNT; i++) {
    if (!CHECK(sandboxes[i] != NULL)) return;
    run = run_with(on_done, &dones[i]);
    CHECK_RC(e2b_commands_run(sandboxes[i], "echo hello", &run, &results[i], &err), E2B_PENDING);
  }
  CHECK_OK(e2b_client_drain(f->client, 60000));
  for (i = 0; i < COUNT; i++) {
    CHECK_STR(results[i].stdout_data.ptr, "hello\n");
    e2b_mem_free(&results[i].mem);
    kill_call.user = &dones[i];
    CHECK_RC(e2b_sandbox_close(sandboxes[i], &kill_call, &err), E2B_PENDING);
  }
  CHECK_OK(e2b_client_drain(f->client, 60000));
  for (i = 0; i < COUNT; i++) {
    CHECK_INT(dones[i].count, 3);
    CHECK_INT(dones[i].err.code, E2B_OK);
  }
}

/* 500 commands that run at once in 200 sandboxes; each then gets a line of its own and gives it back. */
static void e2e_many_streams(fixture *f) {
  enum { SANDBOXES = 200, STREAMS = 500 };
  static e2b_sandbox *sandboxes[SANDBOXES];
  static e2b_command_handle *handles[STREAMS];
  static e2b_command_result results[STREAMS];
  static char lines[STREAMS][24];
  static done dones[STREAMS];
  e2b_sandbox_opts opts = { 0 };
  e2b_call call = { 0 };
  e2b_client_stats stats;
  e2b_run_opts run;
  e2b_error err;
  bool closes = !the_host->kruise; /* it can close stdin */
  int i;
  memset(sandboxes, 0, sizeof sandboxes);
  memset(handles, 0, sizeof handles);
  memset(results, 0, sizeof results);
  memset(dones, 0, sizeof dones);
  opts.call.on_done = call.on_done = on_done;
  for (i = 0; i < SANDBOXES; i++) {
    opts.call.user = &dones[i];
    CHECK_RC(e2b_sandbox_create(f->client, NULL, &opts, &sandboxes[i], &err), E2B_PENDING);
  }
  CHECK_OK(e2b_client_drain(f->client, 120000));
  for (i = 0; i < STREAMS; i++) {
    if (!CHECK(sandboxes[i % SANDBOXES] != NULL)) return;
    run = run_with(on_done, &dones[i]);
    run.stdin_open = true;
    CHECK_RC(e2b_commands_start(sandboxes[i % SANDBOXES], closes ? "cat" : "head -n 1", &run, &handles[i], &err), E2B_PENDING);
  }
  CHECK_OK(e2b_client_drain(f->client, 120000));
  e2b_client_get_stats(f->client, &stats);
  CHECK_INT(stats.streams_open, STREAMS);
  for (i = 0; i < STREAMS; i++) {
    call.user = &dones[i];
    snprintf(lines[i], sizeof lines[i], "stream %d\n", i);
    if (!CHECK(handles[i] != NULL)) return;
    CHECK_RC(e2b_command_handle_send_stdin(handles[i], lines[i], strlen(lines[i]), &call, &err), E2B_PENDING);
  }
  CHECK_OK(e2b_client_drain(f->client, 120000));
  for (i = 0; i < STREAMS; i++) {
    call.user = &dones[i];
    if (closes) CHECK_RC(e2b_command_handle_close_stdin(handles[i], &call, &err), E2B_PENDING);
    CHECK_RC(e2b_command_handle_wait(handles[i], &call, &results[i], &err), E2B_PENDING);
  }
  CHECK_OK(e2b_client_drain(f->client, 120000));
  for (i = 0; i < STREAMS; i++) {
    CHECK_INT(dones[i].err.code, E2B_OK);
    CHECK_INT(dones[i].count, 3 + closes + (i < SANDBOXES));
    CHECK_STR(results[i].stdout_data.ptr, lines[i]);
    e2b_mem_free(&results[i].mem);
  }
  for (i = 0; i < SANDBOXES; i++) {
    call.user = &dones[i];
    CHECK_RC(e2b_sandbox_close(sandboxes[i], &call, &err), E2B_PENDING);
  }
  CHECK_OK(e2b_client_drain(f->client, 120000));
}

static e2b_err quickstart_without_memory(test_heap *h, const char *dir, e2b_error *err) {
  e2b_client_config config = host_config(the_host);
  e2b_command_result r = { 0 };
  e2b_sandbox *sandbox = NULL;
  e2b_client *client;
  e2b_err rc;
  size_t fail_at = h->fail_at;
  bool fail_after = h->fail_after;
  config.allocator = heap_allocator(h);
  h->fail_at = fail_at;
  h->fail_after = fail_after;
  client = e2b_client_create(&config, err);
  if (!client) return err->code;
  rc = e2b_sandbox_create(client, NULL, NULL, &sandbox, err);
  if (rc == E2B_OK) rc = e2b_commands_run(sandbox, "echo hello", NULL, &r, err);
  e2b_mem_free(&r.mem);
  if (rc == E2B_OK) rc = e2b_files_make_dir(sandbox, dir, NULL, NULL, err);
  h->fail_at = 0;
  if (sandbox) e2b_sandbox_close(sandbox, NULL, NULL); /* the client still works */
  e2b_client_free(client);
  return rc;
}

/* Each allocation of the quick start fails in turn, alone and with all after it. */
static void e2e_no_memory(fixture *f) {
  e2b_error err;
  test_heap h;
  size_t n;
  int after;
  for (after = 0; after < 2; after++) {
    e2b_err rc = E2B_ERR_NO_MEMORY;
    for (n = 1; rc != E2B_OK && n < 3000; n++) {
      memset(&h, 0, sizeof h);
      h.fail_at = n;
      h.fail_after = after;
      rc = quickstart_without_memory(&h, f->dir, &err);
      if (rc != E2B_OK && !CHECK_RC(rc, E2B_ERR_NO_MEMORY)) break;
      if (!CHECK_INT(h.live, 0)) break;
    }
    CHECK_INT(rc, E2B_OK);
  }
}

/* ---- TLS --------------------------------------------------------------------------------------------------------- */

static void count_warnings(void *user, e2b_log_level level, const char *message) {
  (void)message;
  if (level <= E2B_LOG_WARN) ++*(int *)user;
}

/* Not the authority that signed for it; not the name; no verification, but with a warning. */
static void e2e_certificates(fixture *f) {
  e2b_client_config config = host_config(the_host);
  const char *port = strrchr(the_host->url, ':');
  e2b_attach_opts attach;
  e2b_sandbox *sandbox;
  e2b_client *client;
  e2b_error err;
  char url[128];
  int warnings = 0;
  if (!the_host->tls) return;
  memset(&attach, 0, sizeof attach);
  config.tls.ca_file = NULL;
  config.tls.ca_pem = net_the_pki->ca_pem; /* another authority */
  client = e2b_client_create(&config, &err);
  if (CHECK(client != NULL)) {
    CHECK_RC(e2b_sandbox_create(client, NULL, NULL, &sandbox, &err), E2B_ERR_TLS_CERTIFICATE);
    CHECK(!err.maybe_done && err.tls_code != 0);
    CHECK_INT(err.phase, E2B_PHASE_TLS);
  }
  e2b_client_free(client);

  snprintf(url, sizeof url, "https://not.in.it.localhost%s", port);
  attach.base_url = url;
  attach.access_token = e2b_sandbox_access_token(f->sandbox);
  if (CHECK_OK(e2b_sandbox_attach(f->client, e2b_sandbox_id(f->sandbox), &attach, &sandbox, &err))) {
    CHECK_RC(e2b_commands_run(sandbox, "true", NULL, NULL, &err), E2B_ERR_TLS_CERTIFICATE);
    CHECK(strstr(err.message, "not.in.it.localhost"));
    e2b_sandbox_free(sandbox);
  }

  config.tls.insecure_skip_verify = true;
  config.logger.func = count_warnings;
  config.logger.user = &warnings;
  client = e2b_client_create(&config, &err);
  if (CHECK(client != NULL) && CHECK_OK(e2b_sandbox_create(client, NULL, NULL, &sandbox, &err)))
    CHECK_OK(e2b_sandbox_close(sandbox, NULL, &err));
  CHECK(warnings > 0);
  e2b_client_free(client);
  CHECK_WORKS(f);
}
/* ---- what surrounds a sandbox ------------------------------------------------------------------------------------ */

static void e2e_metrics_and_logs(fixture *f) {
  const char *id = e2b_sandbox_id(f->sandbox);
  e2b_metric_list metrics;
  e2b_logs_opts opts;
  e2b_log_list logs;
  e2b_error err;
  memset(&metrics, 0, sizeof metrics);
  memset(&logs, 0, sizeof logs);
  memset(&opts, 0, sizeof opts);
  if (CHECK_OK(e2b_api_get_metrics(f->client, id, 0, 0, NULL, &metrics, &err)) && CHECK(metrics.count > 0)) {
    const e2b_metric *m = &metrics.items[metrics.count - 1];
    int64_t taken = m->timestamp_ms;
    CHECK(m->cpu_count > 0 && m->cpu_used_pct >= 0 && m->cpu_used_pct <= 100 * m->cpu_count);
    CHECK(m->mem_total > m->mem_used && m->mem_used > 0 && m->disk_total > 0 && taken > 1600000000000);
    e2b_mem_free(&metrics.mem);
    CHECK_OK(e2b_api_get_metrics(f->client, id, taken, taken, NULL, &metrics, &err));
    CHECK(metrics.count >= 1);
    e2b_mem_free(&metrics.mem);
    CHECK_OK(e2b_api_get_metrics(f->client, id, 0, 1000, NULL, &metrics, &err)); /* 1970 */
    CHECK_INT(metrics.count, 0);
  }
  e2b_mem_free(&metrics.mem);
  CHECK_RC(e2b_api_get_metrics(f->client, "inosuchsandbox", 0, 0, NULL, &metrics, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_SANDBOX);

  (void)output_of(f, "true");
  opts.search = "process ended";
  opts.limit = 1;
  CHECK_OK(e2b_api_get_logs(f->client, id, &opts, &logs, &err));
  if (CHECK_INT(logs.count, 1)) {
    CHECK_STR(logs.items[0].level, "info");
    CHECK_HAS(logs.items[0].message, "process ended");
    CHECK(logs.items[0].timestamp_ms > 1600000000000 && logs.items[0].fields.count == 2);
  }
  e2b_mem_free(&logs.mem);
  memset(&opts, 0, sizeof opts);
  opts.forward = true;
  CHECK_OK(e2b_api_get_logs(f->client, id, &opts, &logs, &err));
  if (CHECK(logs.count > 2)) CHECK_HAS(logs.items[0].message, "sandbox started");
  e2b_mem_free(&logs.mem);
  opts.level = "error";
  CHECK_OK(e2b_api_get_logs(f->client, id, &opts, &logs, &err));
  CHECK_INT(logs.count, 0);
  e2b_mem_free(&logs.mem);
  opts.level = "loud";
  CHECK_RC(e2b_api_get_logs(f->client, id, &opts, &logs, &err), E2B_ERR_INVALID_ARGUMENT);
}

/* What the control plane says of a sandbox, as text; valid until the next call. */
static const char *detail_of(fixture *f, const char *id) {
  static char text[4000];
  char path[100];
  e2b_response r;
  e2b_error err;
  memset(&r, 0, sizeof r);
  text[0] = 0;
  snprintf(path, sizeof path, "/sandboxes/%s", id);
  if (CHECK_OK(e2b_api_request(f->client, "GET", path, NULL, &r, &err)) && CHECK_INT(r.status, 200))
    snprintf(text, sizeof text, "%s", r.body.ptr);
  e2b_mem_free(&r.mem);
  return text;
}

static void e2e_network(fixture *f) {
  static const char *const allow[] = { "8.8.8.8", "example.com" }, *const all[] = { "0.0.0.0/0" };
  static const e2b_kv headers[] = { { "X-A", "b" } };
  static const e2b_network_rule rules[] = { { "example.com", { headers, 1 } } };
  const char *id = e2b_sandbox_id(f->sandbox);
  e2b_network network;
  e2b_error err;
  memset(&network, 0, sizeof network);
  network.allow_out.items = allow;
  network.allow_out.count = 2;
  network.deny_out.items = all;
  network.deny_out.count = 1;
  network.rules = rules;
  network.rule_count = 1;
  CHECK_OK(e2b_api_update_network(f->client, id, &network, E2B_NO, NULL, &err));
  CHECK_HAS(detail_of(f, id), "\"network\":{\"allowOut\":[\"8.8.8.8\",\"example.com\"],\"denyOut\":[\"0.0.0.0/0\"],"
                              "\"rules\":{\"example.com\":[{\"transform\":{\"headers\":{\"X-A\":\"b\"}}}]}},"
                              "\"allowInternetAccess\":false");
  CHECK_OK(e2b_api_update_network(f->client, id, NULL, E2B_UNSET, NULL, &err));
  CHECK(!strstr(detail_of(f, id), "allowOut") && !strstr(detail_of(f, id), "allowInternetAccess"));
  network.deny_out.count = 0; /* names are allowed only when all else is denied */
  CHECK_RC(e2b_api_update_network(f->client, id, &network, E2B_UNSET, NULL, &err), E2B_ERR_INVALID_ARGUMENT);
  network.allow_out.count = 1;
  network.egress_proxy_address = "127.0.0.1:1";
  CHECK_RC(e2b_api_update_network(f->client, id, &network, E2B_UNSET, NULL, &err), E2B_ERR_PERMISSION);
  CHECK_RC(e2b_api_update_network(f->client, "inosuch", NULL, E2B_UNSET, NULL, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_SANDBOX);
  CHECK_WORKS(f);
}

static void e2e_snapshots(fixture *f) {
  static const e2b_kv vars[] = { { "KEPT", "yes" } };
  e2b_snapshot_list_opts list_opts;
  e2b_snapshot_list list;
  e2b_snapshot first, second;
  e2b_sandbox_opts opts;
  e2b_sandbox *source = NULL, *copy = NULL;
  e2b_buf text;
  e2b_error err;
  char name[40];
  size_t pages = 0, found = 0;
  bool deleted = false;
  memset(&list_opts, 0, sizeof list_opts);
  memset(&list, 0, sizeof list);
  memset(&first, 0, sizeof first);
  memset(&second, 0, sizeof second);
  memset(&opts, 0, sizeof opts);
  memset(&text, 0, sizeof text);
  snprintf(name, sizeof name, "snap-%ld", (long)getpid());
  opts.env_vars.items = vars;
  opts.env_vars.count = 1;
  if (!CHECK_OK(e2b_sandbox_create(f->client, NULL, &opts, &source, &err))) return;
  CHECK_OK(e2b_files_write_text(source, "sub/kept.txt", "first", NULL, NULL, &err));
  CHECK_OK(e2b_api_create_snapshot(f->client, e2b_sandbox_id(source), name, NULL, &first, &err));
  CHECK_OK(e2b_files_write_text(source, "sub/kept.txt", "second", NULL, NULL, &err));
  CHECK_OK(e2b_api_create_snapshot(f->client, e2b_sandbox_id(source), NULL, NULL, &second, &err));
  if (first.snapshot_id && second.snapshot_id) {
    CHECK(first.names.count == 1 && strstr(first.names.items[0], name) && second.names.count == 0);
    CHECK(strcmp(first.snapshot_id, second.snapshot_id) != 0);
    list_opts.sandbox_id = e2b_sandbox_id(source);
    list_opts.limit = 1;
    do { /* newest first */
      char token[200];
      CHECK_OK(e2b_api_list_snapshots(f->client, &list_opts, &list, &err));
      CHECK_INT(list.count, 1);
      if (list.count) found += strcmp(list.items[0].snapshot_id, pages ? first.snapshot_id : second.snapshot_id) == 0;
      snprintf(token, sizeof token, "%s", list.next_token ? list.next_token : "");
      list_opts.next_token = token[0] ? token : NULL;
      pages++;
      e2b_mem_free(&list.mem);
    } while (list_opts.next_token && pages < 10);
    CHECK_INT(pages, 2);
    CHECK_INT(found, 2);
    memset(&list_opts, 0, sizeof list_opts);
    list_opts.name = name;
    CHECK_OK(e2b_api_list_snapshots(f->client, &list_opts, &list, &err));
    CHECK_INT(list.count, 1);
    e2b_mem_free(&list.mem);

    /* it outlives the sandbox; those made from it are on their own */
    CHECK_OK(e2b_sandbox_close(source, NULL, &err));
    source = NULL;
    if (CHECK_OK(e2b_sandbox_create(f->client, first.snapshot_id, NULL, &copy, &err))) {
      e2b_command_result r = { 0 };
      CHECK_OK(e2b_files_read_text(copy, "sub/kept.txt", NULL, &text, &err));
      CHECK_STR((const char *)text.data, "first");
      e2b_mem_free(&text.mem);
      CHECK_OK(e2b_commands_run(copy, "echo $KEPT; echo changed > sub/kept.txt", NULL, &r, &err));
      CHECK_STR(r.stdout_data.ptr, "yes\n");
      e2b_mem_free(&r.mem);
      CHECK_RC(e2b_api_delete_snapshot(f->client, first.snapshot_id, NULL, &deleted, &err), E2B_ERR_INVALID_ARGUMENT);
      CHECK_OK(e2b_sandbox_close(copy, NULL, &err));
    }
    if (CHECK_OK(e2b_sandbox_create(f->client, name, NULL, &copy, &err))) { /* by name */
      CHECK_OK(e2b_files_read_text(copy, "sub/kept.txt", NULL, &text, &err));
      CHECK_STR((const char *)text.data, "first");
      e2b_mem_free(&text.mem);
      CHECK_OK(e2b_sandbox_close(copy, NULL, &err));
    }
    CHECK_OK(e2b_api_delete_snapshot(f->client, first.snapshot_id, NULL, &deleted, &err));
    CHECK(deleted);
    CHECK_OK(e2b_api_delete_snapshot(f->client, second.snapshot_id, NULL, &deleted, &err));
    CHECK(deleted);
    CHECK_OK(e2b_api_delete_snapshot(f->client, first.snapshot_id, NULL, &deleted, &err));
    CHECK(!deleted);
    CHECK_RC(e2b_sandbox_create(f->client, first.snapshot_id, NULL, &copy, &err), E2B_ERR_NOT_FOUND);
    CHECK_INT(err.subject, E2B_SUBJECT_TEMPLATE);
  }
  e2b_mem_free(&first.mem);
  e2b_mem_free(&second.mem);
  CHECK_OK(e2b_sandbox_close(source, NULL, &err));
  CHECK_RC(e2b_api_create_snapshot(f->client, "inosuch", NULL, NULL, &first, &err), E2B_ERR_NOT_FOUND);
}

/* Waits until the sandbox is paused by itself. */
static bool paused_by_itself(fixture *f, e2b_sandbox *sandbox) {
  e2b_sandbox_info info;
  e2b_error err;
  e2b_sandbox_state state = E2B_STATE_UNKNOWN;
  int tries;
  (void)f;
  memset(&info, 0, sizeof info);
  for (tries = 0; tries < 500 && state != E2B_STATE_PAUSED; tries++) {
    if (!CHECK_OK(e2b_sandbox_get_info(sandbox, NULL, &info, &err))) return false;
    state = info.state;
    e2b_mem_free(&info.mem);
    if (state != E2B_STATE_PAUSED) sleep_ms(20);
  }
  return CHECK_INT(state, E2B_STATE_PAUSED);
}

static void e2e_auto_pause(fixture *f) {
  e2b_sandbox_opts opts;
  e2b_sandbox_info info;
  e2b_sandbox *sandbox, *again;
  e2b_error err;
  int resume;
  memset(&opts, 0, sizeof opts);
  memset(&info, 0, sizeof info);
  for (resume = 0; resume < 2; resume++) {
    opts.timeout_s = 1;
    opts.auto_pause = E2B_YES;
    opts.auto_resume = resume ? E2B_YES : E2B_NO;
    if (!CHECK_OK(e2b_sandbox_create(f->client, NULL, &opts, &sandbox, &err))) return;
    CHECK_OK(e2b_files_write_text(sandbox, "kept", "kept", NULL, NULL, &err));
    CHECK_OK(e2b_sandbox_get_info(sandbox, NULL, &info, &err));
    CHECK_INT(info.auto_pause, E2B_YES);
    CHECK_INT(info.auto_resume, resume ? E2B_YES : E2B_NO);
    e2b_mem_free(&info.mem);
    if (paused_by_itself(f, sandbox)) {
      if (!resume) {
        CHECK_RC(e2b_commands_run(sandbox, "cat kept", NULL, NULL, &err), E2B_ERR_SANDBOX_PAUSED);
        if (CHECK_OK(e2b_sandbox_connect(f->client, e2b_sandbox_id(sandbox), NULL, &again, &err)))
          e2b_sandbox_free(again);
      }
      CHECK_OK(e2b_commands_run(sandbox, "grep -q kept kept", NULL, NULL, &err));
    }
    CHECK_OK(e2b_sandbox_close(sandbox, NULL, &err));
  }
  CHECK_OK(e2b_sandbox_get_info(f->sandbox, NULL, &info, &err));
  CHECK_INT(info.auto_pause, E2B_NO);
  e2b_mem_free(&info.mem);
}

static void e2e_keep_alive(fixture *f) {
  e2b_sandbox_opts opts;
  e2b_sandbox_info info;
  e2b_sandbox *sandbox;
  e2b_error err;
  done lost;
  uint64_t end;
  memset(&opts, 0, sizeof opts);
  memset(&info, 0, sizeof info);
  memset(&lost, 0, sizeof lost);
  opts.timeout_s = the_host->kruise ? 30 : 2;
  if (!CHECK_OK(e2b_sandbox_create(f->client, NULL, &opts, &sandbox, &err))) return;
  CHECK_OK(e2b_sandbox_keep_alive(sandbox, 2, on_done, &lost, &err));
  for (end = now_ms() + 3500; now_ms() < end;) e2b_client_poll(f->client, 100);
  CHECK_OK(e2b_sandbox_get_info(sandbox, NULL, &info, &err)); /* it would have ended */
  CHECK_INT(info.state, E2B_STATE_RUNNING);
  CHECK_INT(lost.count, 0);
  e2b_mem_free(&info.mem);
  CHECK_OK(e2b_api_kill(f->client, e2b_sandbox_id(sandbox), NULL, NULL, &err)); /* somebody else */
  for (end = now_ms() + 5000; now_ms() < end && !lost.count;) e2b_client_poll(f->client, 100);
  CHECK_INT(lost.count, 1);
  CHECK_INT(lost.err.code, E2B_ERR_NOT_FOUND);
  e2b_sandbox_free(sandbox);
}

static void e2e_find_by_nonce(fixture *f) {
  e2b_kv metadata[1];
  e2b_sandbox_opts opts;
  e2b_sandbox *sandbox;
  e2b_sandbox_info info;
  e2b_error err;
  memset(&opts, 0, sizeof opts);
  memset(&info, 0, sizeof info);
  metadata[0].key = E2B_NONCE_KEY;
  metadata[0].value = "job &%=\xc3\xbc 1";
  if (the_host->kruise) {
    CHECK_RC(e2b_api_find_by_nonce(f->client, metadata[0].value, NULL, &info, &err), E2B_ERR_INVALID_ARGUMENT);
    metadata[0].value = "job %=\xc3\xbc 1";
  }
  opts.metadata.items = metadata;
  opts.metadata.count = 1;
  if (!CHECK_OK(e2b_sandbox_create(f->client, NULL, &opts, &sandbox, &err))) return;
  if (CHECK_OK(e2b_api_find_by_nonce(f->client, metadata[0].value, NULL, &info, &err)))
    CHECK_STR(info.sandbox_id, e2b_sandbox_id(sandbox));
  e2b_mem_free(&info.mem);
  CHECK_RC(e2b_api_find_by_nonce(f->client, "job 2", NULL, &info, &err), E2B_ERR_NOT_FOUND);
  CHECK_OK(e2b_sandbox_close(sandbox, NULL, &err));
}

static void e2e_list_filters(fixture *f) {
  e2b_list_opts opts;
  e2b_sandbox_list list;
  e2b_sandbox *young;
  e2b_sandbox_info info;
  e2b_error err;
  memset(&opts, 0, sizeof opts);
  memset(&list, 0, sizeof list);
  memset(&info, 0, sizeof info);
  if (the_host->kruise) sleep_ms(1100); /* it counts in seconds */
  if (!CHECK_OK(e2b_sandbox_create(f->client, "base", NULL, &young, &err))) return;
  CHECK_OK(e2b_sandbox_get_info(young, NULL, &info, &err));
  opts.oldest_first = true;
  CHECK_OK(e2b_api_list(f->client, &opts, &list, &err));
  if (CHECK(list.count >= 2)) CHECK_STR(list.items[list.count - 1].sandbox_id, info.sandbox_id);
  e2b_mem_free(&list.mem);
  opts.oldest_first = false;
  opts.template_id = "base";
  CHECK_OK(e2b_api_list(f->client, &opts, &list, &err));
  if (CHECK(list.count >= 1)) CHECK_STR(list.items[0].template_id, "base");
  e2b_mem_free(&list.mem);
  opts.template_id = NULL;
  opts.started_after_ms = info.started_at_ms;
  CHECK_OK(e2b_api_list(f->client, &opts, &list, &err));
  if (CHECK(list.count >= 1)) CHECK_STR(list.items[0].sandbox_id, info.sandbox_id);
  e2b_mem_free(&list.mem);
  opts.started_after_ms = info.started_at_ms + 3600000;
  CHECK_OK(e2b_api_list(f->client, &opts, &list, &err));
  CHECK_INT(list.count, 0);
  e2b_mem_free(&list.mem);
  e2b_mem_free(&info.mem);
  CHECK_OK(e2b_sandbox_close(young, NULL, &err));
}

/* ---- servers in the sandbox -------------------------------------------------------------------------------------- */

/* This program as a server: says its port, then gives back what it gets. /head: the head of the request; /status/NNN:
 * that status; else the body, framed as it came. */
static void echo_body(int fd, char *body, size_t len, bool chunked, size_t left) {
  char tail[5] = "";
  for (;;) {
    ssize_t n;
    size_t i;
    if (!chunked && len > left) len = left;
    if (len && !send_all(fd, body, len)) return;
    for (i = 0; i < len; i++) {
      memmove(tail, tail + 1, 4);
      tail[4] = body[i];
    }
    left -= chunked ? 0 : len;
    if (chunked ? memcmp(tail, "0\r\n\r\n", 5) == 0 : left == 0) return;
    n = recv_some(fd, body, 65536);
    if (n <= 0) return;
    len = (size_t)n;
  }
}

static void echo_serve(int fd) {
  static char text[65537];
  char answer[300];
  size_t len = 0, head;
  char *end = NULL, *length;
  bool chunked;
  while (!end && len < sizeof text - 1) {
    ssize_t n = recv_some(fd, text + len, sizeof text - 1 - len);
    if (n <= 0) return;
    len += (size_t)n;
    text[len] = 0;
    end = find_bytes(text, len, "\r\n\r\n");
  }
  if (!end) return;
  head = (size_t)(end - text) + 4;
  chunked = find_bytes(text, head, "transfer-encoding: chunked") != NULL;
  length = find_bytes(text, head, "content-length: ");
  if (strstr(text, " /status/") && strstr(text, " /status/") < end) {
    snprintf(answer, sizeof answer, "HTTP/1.1 %.3s X\r\ncontent-length: 4\r\nx-mine: yes\r\n\r\nmine",
             strstr(text, " /status/") + 9);
    send_all(fd, answer, strlen(answer));
  } else if (strstr(text, " /head") && strstr(text, " /head") < end) {
    snprintf(answer, sizeof answer, "HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\n"); /* until it closes */
    send_all(fd, answer, strlen(answer));
    send_all(fd, text, head);
  } else {
    size_t left = length ? (size_t)strtoull(length + 16, NULL, 10) : 0;
    snprintf(answer, sizeof answer, chunked ? "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" :
             "HTTP/1.1 200 OK\r\ncontent-length: %lu\r\n\r\n", (unsigned long)left);
    send_all(fd, answer, strlen(answer));
    memmove(text, text + head, len - head);
    echo_body(fd, text, len - head, chunked, left);
  }
}

static int echo_server(void) {
  uint16_t port = 0;
  int listener = listen_somewhere(&port), fd;
  printf("%u\n", (unsigned)port);
  fflush(stdout);
  while (listener >= 0 && (fd = accept(listener, NULL, NULL)) >= 0) {
    echo_serve(fd);
    shutdown(fd, SHUT_WR);
    close(fd);
  }
  return 1;
}

/* Starts it in a sandbox; its port, or 0. The handle is to be killed. */
static uint16_t echo_start(e2b_sandbox *sandbox, e2b_command_handle **handle) {
  char self[400] = "", command[500], port[16] = "";
  ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
  e2b_command_event event;
  e2b_error err;
  *handle = NULL;
  if (!CHECK(len > 0)) return 0;
  snprintf(command, sizeof command, "exec '%s' --echo-server", self);
  if (!CHECK_OK(e2b_commands_start(sandbox, command, NULL, handle, &err))) return 0;
  while (!strchr(port, '\n') && CHECK_OK(e2b_command_handle_next(*handle, 5000, &event, &err)) &&
         CHECK_INT(event.kind, E2B_EVENT_STDOUT))
    snprintf(port + strlen(port), sizeof port - strlen(port), "%.*s", (int)event.len, event.data);
  return (uint16_t)strtoul(port, NULL, 10);
}

static void echo_stop(e2b_command_handle *handle) {
  e2b_error err;
  if (!handle) return;
  CHECK_OK(e2b_command_handle_kill(handle, NULL, NULL, &err));
  e2b_command_handle_free(handle);
}

static void e2e_port_request(fixture *f) {
  e2b_sandbox *other = NULL;
  e2b_command_handle *handle;
  e2b_request_opts opts;
  e2b_response r;
  e2b_error err;
  uint16_t port = echo_start(f->sandbox, &handle);
  memset(&r, 0, sizeof r);
  memset(&opts, 0, sizeof opts);
  if (!port) {
    echo_stop(handle);
    return;
  }
  CHECK_OK(e2b_sandbox_request(f->sandbox, port, "GET", "/head?a=%20b", NULL, &r, &err));
  CHECK_INT(r.status, 200);
  CHECK_HAS(r.body.ptr, "GET /head?a=%20b HTTP/1.1\r\n");
  CHECK_HAS(r.body.ptr, "\r\naccept: */*\r\n");
  CHECK(!strstr(r.body.ptr, e2b_sandbox_access_token(f->sandbox)) && !strstr(r.body.ptr, HOST_KEY));
  e2b_mem_free(&r.mem);
  opts.body = "hello";
  opts.body_len = 5;
  opts.content_type = "text/x-mine";
  CHECK_OK(e2b_sandbox_request(f->sandbox, port, "POST", "/", &opts, &r, &err));
  CHECK_STR(r.body.ptr, "hello");
  e2b_mem_free(&r.mem);
  CHECK_OK(e2b_sandbox_request(f->sandbox, port, "DELETE", "/head", &opts, &r, &err));
  CHECK_HAS(r.body.ptr, "content-type: text/x-mine\r\n");
  e2b_mem_free(&r.mem);
  CHECK_OK(e2b_sandbox_request(f->sandbox, port, "GET", "/status/502", NULL, &r, &err));
  CHECK_INT(r.status, 502);
  CHECK_STR(r.body.ptr, "mine");
  e2b_mem_free(&r.mem);
  CHECK_OK(e2b_sandbox_request(f->sandbox, port, "GET", "/status/418", NULL, &r, &err));
  CHECK_INT(r.status, 418);
  e2b_mem_free(&r.mem);

  /* a port is its sandbox's only, and nothing's when the server is gone */
  if (CHECK_OK(e2b_sandbox_create(f->client, NULL, NULL, &other, &err))) {
    CHECK_OK(e2b_commands_run(other, "true", NULL, NULL, &err));
    CHECK_RC(e2b_sandbox_request(other, port, "GET", "/", NULL, NULL, &err), E2B_ERR_UNAVAILABLE);
    CHECK_INT(err.subject, E2B_SUBJECT_PORT);
    CHECK_OK(e2b_sandbox_kill(other, NULL, NULL, &err));
    CHECK_RC(e2b_sandbox_request(other, port, "GET", "/", NULL, NULL, &err), E2B_ERR_SANDBOX_GONE);
    e2b_sandbox_free(other);
  }
  echo_stop(handle);
  CHECK_RC(e2b_sandbox_request(f->sandbox, port, "GET", "/", NULL, &r, &err), E2B_ERR_UNAVAILABLE);
  CHECK_INT(err.subject, E2B_SUBJECT_PORT);
  CHECK_INT(r.status, 502);
  e2b_mem_free(&r.mem);
  CHECK_WORKS(f);
}

/* Both ways at once: what goes out must come back. */
typedef struct both_ways {
  uint64_t sent, total, came, out_seed, in_seed;
  uint8_t piece[8];
  bool differs;
  int status;
} both_ways;

static int both_ways_source(void *user, void *buf, size_t cap) {
  both_ways *b = (both_ways *)user;
  size_t i, n = b->total - b->sent < cap ? (size_t)(b->total - b->sent) : cap;
  for (i = 0; i < n; i++, b->sent++) {
    if (b->sent % 8 == 0) noise(&b->out_seed, b->piece, 8); /* it comes in pieces of 8 */
    ((uint8_t *)buf)[i] = b->piece[b->sent % 8];
  }
  return (int)n;
}

static int both_ways_head(void *user, int status, e2b_kvs headers) {
  (void)headers;
  ((both_ways *)user)->status = status;
  return 0;
}

static int both_ways_sink(void *user, const char *data, size_t len) {
  both_ways *b = (both_ways *)user;
  size_t i;
  for (i = 0; i < len; i++, b->came++) {
    uint8_t piece[8];
    if (b->came % 8 == 0) b->in_seed ^= b->in_seed << 13, b->in_seed ^= b->in_seed >> 7, b->in_seed ^= b->in_seed << 17;
    memcpy(piece, &b->in_seed, 8);
    if ((uint8_t)data[i] != piece[b->came % 8]) b->differs = true;
  }
  return 0;
}

static void e2e_port_streams(fixture *f) {
  e2b_command_handle *handle;
  e2b_request_opts opts;
  both_ways b;
  e2b_error err;
  uint16_t port = echo_start(f->sandbox, &handle);
  int known;
  for (known = 0; known < 2 && port; known++) {
    e2b_client_stats stats;
    memset(&opts, 0, sizeof opts);
    memset(&b, 0, sizeof b);
    b.total = quick ? MIB : 20 * MIB;
    b.out_seed = b.in_seed = 7;
    opts.source = both_ways_source;
    opts.on_head = both_ways_head;
    opts.sink = both_ways_sink;
    opts.io_user = &b;
    opts.source_size = known ? (int64_t)b.total : 0;
    CHECK_OK(e2b_sandbox_request(f->sandbox, port, "POST", "/", &opts, NULL, &err));
    CHECK_INT(b.status, 200);
    CHECK_INT(b.came, b.total);
    CHECK(!b.differs);
    e2b_client_get_stats(f->client, &stats);
    CHECK(stats.mem_peak < 2 * MIB);
  }
  echo_stop(handle);
}

/* By host name and by path; with a port that is not public, and a host name of the creator's choice. */
static void e2e_port_routes(fixture *f) {
  static const e2b_protocol protocols[] = { E2B_PROTOCOL_NATIVE, E2B_PROTOCOL_PRIVATE };
  const char *authority = strstr(the_host->url, "//") + 2;
  e2b_command_handle *handle;
  e2b_network network;
  e2b_sandbox_opts opts;
  fixture other;
  e2b_response r;
  e2b_error err;
  size_t i;
  (void)f;
  memset(&r, 0, sizeof r);
  memset(&network, 0, sizeof network);
  memset(&opts, 0, sizeof opts);
  network.allow_public_traffic = E2B_NO;
  network.mask_request_host = "masked.example:1";
  opts.network = &network;
  for (i = 0; i < 2; i++) {
    e2b_client_config config = host_config(the_host);
    memset(&other, 0, sizeof other);
    config.api_url = config.sandbox_url = NULL;
    config.scheme = the_host->tls ? "https" : "http";
    config.domain = authority;
    config.protocol = protocols[i];
    config.allocator = heap_allocator(&other.memory);
    other.client = e2b_client_create(&config, &err);
    if (!CHECK(other.client != NULL)) continue;
    if (CHECK_OK(e2b_sandbox_create(other.client, NULL, &opts, &other.sandbox, &err))) {
      uint16_t port = echo_start(other.sandbox, &handle);
      if (port) {
        char host[200];
        e2b_sandbox_host(other.sandbox, port, host, sizeof host);
        CHECK(strstr(host, e2b_sandbox_id(other.sandbox)) && strstr(host, authority));
        CHECK(e2b_sandbox_traffic_access_token(other.sandbox)[0] != 0);
        CHECK_OK(e2b_sandbox_request(other.sandbox, port, "GET", "/head", NULL, &r, &err));
        CHECK_HAS(r.body.ptr, "GET /head HTTP/1.1\r\nhost: masked.example:1\r\n");
        CHECK(!strstr(r.body.ptr, e2b_sandbox_traffic_access_token(other.sandbox)));
        e2b_mem_free(&r.mem);
      }
      if (port) { /* without the token */
        e2b_sandbox *stranger;
        CHECK_OK(e2b_sandbox_attach(other.client, e2b_sandbox_id(other.sandbox), NULL, &stranger, &err));
        CHECK_OK(e2b_sandbox_request(stranger, port, "GET", "/head", NULL, &r, &err));
        CHECK_INT(r.status, 403);
        e2b_mem_free(&r.mem);
      }
      echo_stop(handle);
      CHECK_OK(e2b_sandbox_close(other.sandbox, NULL, &err));
    }
    e2b_client_free(other.client);
    HEAP_CHECK_EMPTY(&other.memory);
  }
}

/* envd's own port: what of it has no function here. */
static void e2e_envd_request(fixture *f) {
  e2b_request_opts opts;
  e2b_response r;
  e2b_error err;
  memset(&r, 0, sizeof r);
  memset(&opts, 0, sizeof opts);
  CHECK_OK(e2b_sandbox_request(f->sandbox, 49983, "GET", "/metrics", NULL, &r, &err));
  CHECK_INT(r.status, 200);
  CHECK_HAS(r.body.ptr, "\"mem_total\":");
  e2b_mem_free(&r.mem);
  CHECK_OK(e2b_sandbox_request(f->sandbox, 49983, "GET", "/health", NULL, &r, &err));
  CHECK_INT(r.status, 204);
  CHECK_INT(r.body.len, 0);
  e2b_mem_free(&r.mem);
  CHECK_OK(e2b_sandbox_request(f->sandbox, 49983, "GET", "/no-such-path", NULL, &r, &err));
  CHECK_INT(r.status, 404);
  e2b_mem_free(&r.mem);
  opts.content_type = "application/json";
  opts.body = "{}";
  opts.body_len = 2;
  CHECK_OK(e2b_sandbox_request(f->sandbox, 49983, "POST", "/process.Process/List", &opts, &r, &err));
  CHECK_INT(r.status, the_host->kruise ? 401 : 200); /* an old one wants a user */
  CHECK_INT(r.body.ptr[0], '{');
  e2b_mem_free(&r.mem);
  CHECK_WORKS(f);
}

static void e2e_api_request(fixture *f) {
  e2b_request_opts opts;
  e2b_response r;
  e2b_error err;
  char path[100];
  memset(&r, 0, sizeof r);
  memset(&opts, 0, sizeof opts);
  CHECK_HAS(detail_of(f, e2b_sandbox_id(f->sandbox)), "\"state\":\"running\"");
  CHECK_RC(e2b_api_request(f->client, "GET", "/no/such/call", NULL, &r, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(r.status, 404);
  CHECK_HAS(r.body.ptr, "no matching operation");
  e2b_mem_free(&r.mem);
  opts.body = "{\"duration\":60}";
  opts.body_len = strlen((const char *)opts.body);
  snprintf(path, sizeof path, "/sandboxes/%s/refreshes", e2b_sandbox_id(f->sandbox));
  CHECK_OK(e2b_api_request(f->client, "POST", path, &opts, &r, &err)); /* a call without a function of its own */
  CHECK_INT(r.status, 204);
  e2b_mem_free(&r.mem);
}
/* ================================================================================================================== */
/* >>>> processes */
/* ================================================================================================================== */

/* ---- what the peer says ---- */

static void process_say_ok(peer *p, unsigned flags) {
  files_say_body(p, "200 OK\r\ncontent-type: application/proto", "", 0, flags);
}

/* A stream of events, at most `end` with output before it. */
typedef struct process_events {
  uint32_t pid; /* 0 = no start event */
  const char *out, *err, *pty;
  bool ends;
  int32_t exit_code;
  const char *failure; /* the end of stream says so: a JSON object */
} process_events;

static void process_put(e2b__buf *out, const e2b__event_response *event) {
  e2b__rpc rpc;
  memset(&rpc, 0, sizeof rpc);
  rpc.stream = true;
  e2b__rpc_encode(&rpc, &e2b__msg_event_response, event, out);
}

static void process_say_events(peer *p, const process_events *events) {
  const char *last = events->failure ? events->failure : "{}";
  const char *texts[3];
  uint8_t head[5] = { 2, 0, 0, 0, 0 };
  e2b__event_response event;
  e2b__buf body;
  e2b__mem mem;
  int i;
  e2b__mem_init(&mem, NULL);
  e2b__buf_init(&body, &mem, SIZE_MAX);
  memset(&event, 0, sizeof event);
  event.has_event = event.event.has_start = true;
  event.event.start.pid = events->pid;
  if (events->pid) process_put(&body, &event);
  texts[0] = events->out;
  texts[1] = events->err;
  texts[2] = events->pty;
  for (i = 0; i < 3; i++) {
    e2b__data_event *data = &event.event.data;
    memset(&event, 0, sizeof event);
    event.has_event = event.event.has_data = true;
    data->stdout_data = data->stderr_data = data->pty = e2b__str(texts[i]);
    data->has_stdout_data = i == 0;
    data->has_stderr_data = i == 1;
    data->has_pty = i == 2;
    if (texts[i]) process_put(&body, &event);
  }
  memset(&event, 0, sizeof event);
  event.has_event = event.event.has_end = event.event.end.exited = true;
  event.event.end.exit_code = events->exit_code;
  event.event.end.status = e2b__str(events->exit_code ? "exit status X" : "exit status 0");
  if (events->ends) process_put(&body, &event);
  head[4] = (uint8_t)strlen(last);
  e2b__buf_put(&body, head, 5);
  e2b__buf_text(&body, last);
  files_say_body(p, "200 OK\r\ncontent-type: application/connect+proto", body.data, body.len, 0);
  e2b__buf_free(&body);
}

/* These end with their connection. */
#define PROCESS_SAYS(status, type, body) "HTTP/1.1 " status "\r\nContent-Type: " type "\r\nConnection: close\r\n\r\n" body
#define PROCESS_ERROR(status, code, message) \
  PROCESS_SAYS(status, "application/json", "{\"code\":\"" code "\",\"message\":\"" message "\"}")
#define PROCESS_NOT_FOUND PROCESS_ERROR("404 Not Found", "not_found", "no such process")
#define PROCESS_GATEWAY PROCESS_SAYS("404 Not Found", "text/html", "<h1>404 not found</h1>")

/* ---- what the peer heard ---- */

/* Decodes the body of a request: `skip` 5 for a stream's. The caller frees the arena. */
static bool process_heard(peer *p, int at, const char *method, size_t skip, const e2b__message *type, e2b__arena *arena, void *out) {
  static e2b__mem mem;
  const char *text = peer_asked(p, at);
  const char *body = strstr(text, "\r\n\r\n");
  char line[80];
  e2b__mem_init(&mem, NULL);
  e2b__arena_init(arena, &mem, SIZE_MAX / 2);
  snprintf(line, sizeof line, "POST /process.Process/%s HTTP/1.1\r\n", method);
  if (!CHECK(strncmp(text, line, strlen(line)) == 0) || !CHECK(body != NULL)) return false;
  body += 4 + skip;
  return CHECK_INT(e2b__pb_decode(type, (const uint8_t *)body, p->request_lens[at] - (size_t)(body - text), arena, out), E2B_OK);
}

/* Request `at` carries these bytes for this process. */
static void check_heard_input_at(peer *p, int at, uint32_t pid, bool pty, const void *bytes, size_t len, int line) {
  e2b__send_input_request request;
  const e2b_str *text = pty ? &request.input.pty : &request.input.stdin_data;
  e2b__arena arena;
  if (process_heard(p, at, "SendInput", 0, &e2b__msg_send_input_request, &arena, &request)) {
    check_int_at(request.process.pid, pid, line, "the pid");
    check_at(request.input.has_pty == pty && request.input.has_stdin_data == !pty, line, "stdin or pty");
    check_int_at((long long)text->len, (long long)len, line, "the length");
    check_at(text->len == len && (!len || memcmp(text->ptr, bytes, len) == 0), line, "the bytes");
  }
  e2b__arena_free(&arena);
}
#define CHECK_HEARD_INPUT(peer, at, pid, pty, bytes, len) check_heard_input_at(peer, at, pid, pty, bytes, len, __LINE__)

static bool process_heard_close(peer *p, int at, uint32_t pid) {
  e2b__selector_request request;
  e2b__arena arena;
  bool ok = process_heard(p, at, "CloseStdin", 0, &e2b__msg_selector_request, &arena, &request) && request.process.pid == pid;
  e2b__arena_free(&arena);
  return ok;
}

/* ---- input ---- */

#define PIECE 65536u

static void test_process_input_pieces(void) {
  uint8_t *data = (uint8_t *)malloc(150000);
  files_bench b;
  noise_source source;
  int i;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  process_say_ok(&b.peer, PEER_REPEAT);
  files_pattern(data, 0, 150000);
  CHECK_INT(e2b_commands_send_stdin(b.sandbox, 7, data, 150000, NULL, &b.err), E2B_OK);
  CHECK_INT(peer_asked_count(&b.peer), 3);
  for (i = 0; i < 3; i++)
    CHECK_HEARD_INPUT(&b.peer, i, 7, false, data + PIECE * (size_t)i, i < 2 ? PIECE : 150000 - 2 * PIECE);
  peer_clear(&b.peer);
  process_say_ok(&b.peer, PEER_REPEAT);
  CHECK_INT(e2b_commands_send_stdin(b.sandbox, 7, data, PIECE, NULL, &b.err), E2B_OK);
  CHECK_INT(e2b_commands_send_stdin(b.sandbox, 7, NULL, 0, NULL, &b.err), E2B_OK);
  CHECK_INT(e2b_commands_close_stdin(b.sandbox, 8, NULL, &b.err), E2B_OK);
  CHECK_INT(peer_asked_count(&b.peer), 3);
  CHECK_HEARD_INPUT(&b.peer, 0, 7, false, data, PIECE);
  CHECK_HEARD_INPUT(&b.peer, 1, 7, false, NULL, 0);
  CHECK(process_heard_close(&b.peer, 2, 8));
  CHECK_REQUEST(&b.peer, 1,
                "POST /process.Process/SendInput HTTP/1.1\r\nhost: HOST\r\nuser-agent: t\r\naccept: application/json\r\n"
                "accept-encoding: identity\r\ne2b-sandbox-id: sbx\r\ne2b-sandbox-port: 49983\r\nx-access-token: tok\r\n"
                "content-type: application/proto\r\nconnect-protocol-version: 1\r\ncontent-length: 8\r\n\r\n"
                "\x0a\x02\x08\x07\x12\x02\x0a\x00");
#ifndef E2B_NO_PTY
  CHECK_INT(e2b_pty_send_input(b.sandbox, 9, data, PIECE + 1, NULL, &b.err), E2B_OK);
  CHECK_HEARD_INPUT(&b.peer, 3, 9, true, data, PIECE);
  CHECK_HEARD_INPUT(&b.peer, 4, 9, true, data + PIECE, 1);
#endif
  /* what a source gives at once goes out at once, and an end before anything sends nothing */
  peer_clear(&b.peer);
  process_say_ok(&b.peer, PEER_REPEAT);
  memset(&source, 0, sizeof source);
  source.seed = source.sizes = 3;
  CHECK_INT(e2b_commands_send_stdin_from(b.sandbox, 7, noise_give, &source, NULL, &b.err), E2B_OK);
  CHECK_INT(peer_asked_count(&b.peer), 0);
  source.left = 300000;
  CHECK_INT(e2b_commands_send_stdin_from(b.sandbox, 7, noise_give, &source, NULL, &b.err), E2B_OK);
  CHECK_INT(peer_asked_count(&b.peer), source.asked - 2);
  files_end(&b);
  free(data);
}

static e2b_call process_call(done *d) {
  e2b_call call;
  memset(&call, 0, sizeof call);
  memset(d, 0, sizeof *d);
  call.on_done = on_done;
  call.user = d;
  return call;
}

/* Calls for one process wait for each other, those for others do not. */
static void test_process_input_order(void) {
  uint8_t *data = (uint8_t *)calloc(1, 2 * PIECE);
  done d[5];
  e2b_call call;
  e2b_op op = { 0 };
  files_bench b;
  int i, seven = 0;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  process_say_ok(&b.peer, PEER_REPEAT);
  call = process_call(&d[0]);
  CHECK_INT(e2b_commands_send_stdin(b.sandbox, 7, data, 2 * PIECE, &call, &b.err), E2B_PENDING);
  call = process_call(&d[1]);
  CHECK_INT(e2b_commands_send_stdin(b.sandbox, 7, "B", 1, &call, &b.err), E2B_PENDING);
  call = process_call(&d[2]);
  CHECK_INT(e2b_commands_send_stdin(b.sandbox, 8, "C", 1, &call, &b.err), E2B_PENDING);
  call = process_call(&d[3]);
  call.op = &op;
  CHECK_INT(e2b_commands_send_stdin(b.sandbox, 7, "D", 1, &call, &b.err), E2B_PENDING);
  call = process_call(&d[4]);
  CHECK_INT(e2b_commands_close_stdin(b.sandbox, 7, &call, &b.err), E2B_PENDING);
  e2b_op_cancel(b.client, op); /* nothing of it was sent: the others do not care */
  CHECK_INT(e2b_commands_send_stdin(b.sandbox, 8, "E", 1, NULL, &b.err), E2B_OK); /* blocking, behind C */
  CHECK(d[2].count == 1);
  CHECK_INT(e2b_client_drain(b.client, 10000), E2B_OK);
  for (i = 0; i < 5; i++) CHECK_INT(d[i].count, i != 3);
  CHECK_INT(peer_asked_count(&b.peer), 6);
  for (i = 0; i < 6; i++) {
    const char *text = peer_asked(&b.peer, i), *body = strstr(text, "\r\n\r\n");
    bool first = seven < 2;
    if (!body || body[7] != 7) continue;
    if (seven < 3) CHECK_HEARD_INPUT(&b.peer, i, 7, false, first ? (const char *)data : "B", first ? PIECE : 1);
    else CHECK(process_heard_close(&b.peer, i, 7));
    seven++;
  }
  CHECK_INT(seven, 4);
  files_end(&b);
  free(data);
}

/* Nothing is sent again, nothing overtakes what may be missing. */
static void test_process_input_broken(void) {
  static const struct {
    const char *answer; /* to the second piece */
    unsigned flags;
    e2b_err want;
    const char *says;
    bool maybe;
  } rows[] = {
    { "", PEER_CLOSE, E2B_ERR_CLOSED, "after 65536 bytes", true },
    { PROCESS_ERROR("500 Oops", "internal", "error writing to stdin: write |1: broken pipe"), PEER_CLOSE,
      E2B_ERR_BAD_STATE, "after 65536 bytes: the process reads no more", true },
    { PROCESS_ERROR("500 Oops", "internal", "error writing to stdin: stdin not enabled or closed"), PEER_CLOSE,
      E2B_ERR_BAD_STATE, "stdin_open", false },
    { PROCESS_NOT_FOUND, PEER_CLOSE, E2B_ERR_NOT_FOUND, "after 65536 bytes: no such process", false },
    { PROCESS_GATEWAY, PEER_CLOSE, E2B_ERR_SERVICE, "not an answer of envd", false },
    { "HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n", 0, E2B_ERR_UNAVAILABLE, "503", true },
    { "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n", 0, E2B_ERR_PROTOCOL, "after 65536 bytes", true },
    { "", PEER_HANG, E2B_ERR_IDLE_TIMEOUT, "after 65536 bytes", true },
    { "", PEER_HANG, E2B_ERR_TIMEOUT, "timeout", true },
  };
  uint8_t *data = (uint8_t *)calloc(1, 3 * PIECE);
  size_t i;
  for (i = 0; i < E2B__COUNT(rows); i++) {
    done first, second, third;
    e2b_call call;
    files_bench b;
    files_begin(&b);
    files_open(&b, NULL, NULL);
    process_say_ok(&b.peer, 0);
    peer_say(&b.peer, rows[i].answer, rows[i].flags);
    process_say_ok(&b.peer, PEER_REPEAT);
    call = process_call(&first);
    if (rows[i].want == E2B_ERR_IDLE_TIMEOUT) call.idle_ms = 100;
    if (rows[i].want == E2B_ERR_TIMEOUT) call.timeout_ms = 150;
    CHECK_INT(e2b_commands_send_stdin(b.sandbox, 7, data, 3 * PIECE, &call, &b.err), E2B_PENDING);
    call = process_call(&second);
    CHECK_INT(e2b_commands_send_stdin(b.sandbox, 7, "B", 1, &call, &b.err), E2B_PENDING);
    call = process_call(&third);
    CHECK_INT(e2b_commands_close_stdin(b.sandbox, 7, &call, &b.err), E2B_PENDING);
    CHECK_INT(e2b_client_drain(b.client, 10000), E2B_OK);
    CHECK_INT(first.err.code, rows[i].want);
    CHECK_HAS(first.err.message, rows[i].says);
    CHECK_INT(first.err.maybe_done, rows[i].maybe);
    CHECK_INT(second.err.code, E2B_ERR_CANCELED);
    CHECK_INT(third.err.code, E2B_ERR_CANCELED);
    CHECK_INT(peer_asked_count(&b.peer), 2);
    CHECK_INT(e2b_commands_send_stdin(b.sandbox, 7, "E", 1, NULL, &b.err), E2B_OK); /* what comes later is on its own */
    CHECK_INT(peer_asked_count(&b.peer), 3);
    files_end(&b);
  }
  free(data);
}

/* Thousands that wait do not overflow the stack, a client that is freed forgets them, a source may cancel itself. */
typedef struct process_suicide {
  e2b_client *client;
  e2b_op op;
  int asked;
} process_suicide;

static int process_cancel_me(void *user, void *buf, size_t cap) {
  process_suicide *s = (process_suicide *)user;
  memset(buf, 'x', cap);
  if (s->asked++ == 2) e2b_op_cancel(s->client, s->op);
  return 5;
}

static void test_process_input_many(void) {
  static done d[5000];
  process_suicide s;
  noise_source source;
  e2b_call call;
  files_bench b;
  done last;
  int i, canceled = 0;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  peer_say(&b.peer, PROCESS_NOT_FOUND, PEER_REPEAT | PEER_CLOSE);
  for (i = 0; i < 5000; i++) {
    call = process_call(&d[i]);
    CHECK_INT(e2b_commands_send_stdin(b.sandbox, 7, "x", 1, &call, &b.err), E2B_PENDING);
  }
  CHECK_INT(e2b_client_drain(b.client, 20000), E2B_OK);
  for (i = 1; i < 5000; i++) canceled += d[i].err.code == E2B_ERR_CANCELED;
  CHECK_INT(d[0].err.code, E2B_ERR_NOT_FOUND);
  CHECK_INT(canceled, 4999);
  CHECK_INT(peer_asked_count(&b.peer), 1);

  peer_clear(&b.peer);
  process_say_ok(&b.peer, PEER_REPEAT);
  memset(&s, 0, sizeof s);
  s.client = b.client;
  call = process_call(&d[0]);
  call.op = &s.op;
  CHECK_INT(e2b_commands_send_stdin_from(b.sandbox, 7, process_cancel_me, &s, &call, &b.err), E2B_PENDING);
  call = process_call(&last);
  CHECK_INT(e2b_commands_send_stdin(b.sandbox, 7, "x", 1, &call, &b.err), E2B_PENDING);
  CHECK_INT(e2b_client_drain(b.client, 20000), E2B_OK);
  CHECK(d[0].count == 0 && last.count == 1 && s.asked == 3);
  CHECK_INT(last.err.code, E2B_ERR_CANCELED);
  CHECK_INT(peer_asked_count(&b.peer), 2);

  /* paused, waiting and under way when all goes */
  memset(&source, 0, sizeof source);
  source.seed = source.sizes = 1;
  source.left = 10;
  source.pauses = 1;
  call = process_call(&d[0]);
  call.op = &s.op;
  CHECK_INT(e2b_commands_send_stdin_from(b.sandbox, 7, noise_give, &source, &call, &b.err), E2B_PENDING);
  call = process_call(&d[1]);
  CHECK_INT(e2b_commands_send_stdin(b.sandbox, 7, "x", 1, &call, &b.err), E2B_PENDING);
  call = process_call(&d[2]);
  CHECK_INT(e2b_commands_send_stdin(b.sandbox, 8, "x", 1, &call, &b.err), E2B_PENDING);
  FILES_UNTIL(b.client, d[2].count == 1);
  CHECK(d[0].count == 0 && d[1].count == 0 && source.pauses == 0);
  e2b_op_resume(b.client, s.op);
  files_end(&b);
  for (i = 0; i < 2; i++) CHECK(d[i].count == 1 && d[i].err.code == E2B_ERR_CANCELED);
}

/* ---- signals, and what a 404 means ---- */

static void test_process_absent(void) {
  e2b_command_handle *handle;
  e2b_error *err;
  files_bench b;
  bool found = true;
  int i;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  err = &b.err;
  for (i = 0; i < 2; i++) { /* in envd's words, then a gateway's page */
    e2b_err missing = i ? E2B_ERR_SERVICE : E2B_ERR_NOT_FOUND;
    peer_clear(&b.peer);
    peer_say(&b.peer, i ? PROCESS_GATEWAY : PROCESS_NOT_FOUND, PEER_REPEAT | PEER_CLOSE);
    found = true;
    CHECK_INT(e2b_commands_kill(b.sandbox, 7, NULL, &found, err), i ? E2B_ERR_SERVICE : E2B_OK);
    CHECK(!found);
    CHECK_INT(e2b_commands_send_signal(b.sandbox, 7, 15, NULL, &found, err), i ? E2B_ERR_SERVICE : E2B_OK);
    CHECK_INT(e2b_commands_send_stdin(b.sandbox, 7, "x", 1, NULL, err), missing);
    CHECK_INT(err->subject, i ? E2B_SUBJECT_NONE : E2B_SUBJECT_PROCESS);
    CHECK_INT(e2b_commands_close_stdin(b.sandbox, 7, NULL, err), missing);
    CHECK_INT(e2b_commands_connect_to_process(b.sandbox, 7, NULL, &handle, err), missing);
    CHECK_INT(err->http_status, 404);
    CHECK_INT(e2b_commands_run(b.sandbox, "true", NULL, NULL, err), missing);
#ifndef E2B_NO_PTY
    CHECK_INT(e2b_pty_resize(b.sandbox, 7, 1, 1, NULL, err), missing);
    CHECK_INT(e2b_pty_kill(b.sandbox, 7, NULL, &found, err), i ? E2B_ERR_SERVICE : E2B_OK);
#endif
    if (i) CHECK_HAS(err->message, "URL");
  }
  peer_clear(&b.peer);
  process_say_ok(&b.peer, 0);
  CHECK_INT(e2b_commands_send_signal(b.sandbox, 300, 15, NULL, &found, err), E2B_OK);
  CHECK(found);
  CHECK_HAS(strstr(peer_asked(&b.peer, 0), "\r\n\r\n"), "\x0a\x03\x08\xac\x02\x10\x0f");
  files_end(&b);
}

/* ---- trees ---- */

static void test_process_tree(void) {
  static const struct {
    process_events events;
    bool stop;
    e2b_err want;
    uint32_t killed;
    e2b_stopped how;
    int asked;
  } rows[] = {
    { { 5, "3 3\n", NULL, NULL, true, 0, NULL }, false, E2B_OK, 3, E2B_STOPPED_NOTHING, 2 },
    { { 5, "0 0\n", NULL, NULL, true, 0, NULL }, false, E2B_OK, 0, E2B_STOPPED_NOTHING, 2 },
    { { 5, "3 0\n", NULL, NULL, true, 0, NULL }, true, E2B_OK, 0, E2B_STOPPED_BY_TERM, 1 }, /* what it still says is not cut off */
    { { 5, "3 1\n", NULL, NULL, true, 0, NULL }, true, E2B_OK, 0, E2B_STOPPED_BY_KILL, 2 },
    { { 5, "0 0\n", NULL, NULL, true, 0, NULL }, true, E2B_OK, 0, E2B_STOPPED_NOTHING, 2 },
    { { 5, "", "there is no /proc\n", NULL, true, 1, NULL }, false, E2B_ERR_SERVICE, 0, E2B_STOPPED_NOTHING, 1 },
    { { 5, "", "'/bin/bash': No such file\n", NULL, true, 127, NULL }, true, E2B_ERR_SERVICE, 0, E2B_STOPPED_NOTHING, 1 },
    { { 5, "", NULL, NULL, true, 0, NULL }, false, E2B_ERR_SERVICE, 0, E2B_STOPPED_NOTHING, 1 },
    { { 5, "3\n", NULL, NULL, true, 0, NULL }, false, E2B_ERR_SERVICE, 0, E2B_STOPPED_NOTHING, 1 },
    { { 5, "3 3 x", NULL, NULL, true, 0, NULL }, false, E2B_ERR_SERVICE, 0, E2B_STOPPED_NOTHING, 1 },
    { { 5, "3 3\n", NULL, NULL, false, 0, NULL }, false, E2B_ERR_TRUNCATED, 0, E2B_STOPPED_NOTHING, 1 },
    { { 0, NULL, NULL, NULL, false, 0, "{\"error\":{\"code\":\"unauthenticated\",\"message\":\"invalid username: 'root'\"}}" }, false,
      E2B_ERR_UNAUTHENTICATED, 0, E2B_STOPPED_NOTHING, 1 },
  };
  static const e2b_kv pair = { "x-mine", "1" };
  size_t i;
  files_bench b;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  for (i = 0; i < E2B__COUNT(rows); i++) {
    const e2b_str *args;
    e2b__start_request request;
    e2b__arena arena;
    e2b_stopped how = E2B_STOPPED_BY_KILL;
    uint32_t killed = 77;
    e2b_call call;
    e2b_err rc;
    memset(&call, 0, sizeof call);
    call.headers.items = &pair;
    call.headers.count = 1;
    peer_clear(&b.peer);
    process_say_events(&b.peer, &rows[i].events);
    process_say_ok(&b.peer, 0);
    rc = rows[i].stop ? e2b_commands_stop(b.sandbox, 300, 1234, &call, &how, &b.err)
                      : e2b_commands_kill_tree(b.sandbox, 300, &call, &killed, &b.err);
    CHECK_INT(rc, rows[i].want);
    CHECK_INT(rows[i].stop ? (int)how : (int)killed, rows[i].stop ? (int)rows[i].how : (int)rows[i].killed);
    if (rows[i].events.err) CHECK(strncmp(strchr(b.err.message, ':') + 2, rows[i].events.err, 12) == 0);
    CHECK_INT(peer_asked_count(&b.peer), rows[i].asked);
    CHECK_HAS(peer_asked(&b.peer, 0), "\r\nauthorization: Basic cm9vdDo=\r\n"); /* root */
    CHECK_HAS(peer_asked(&b.peer, 0), "\r\nx-mine: 1\r\n");
    if (rows[i].asked == 2) CHECK_HAS(peer_asked(&b.peer, 1), "\r\nx-mine: 1\r\n");
    if (rows[i].asked == 2) CHECK_HAS(strstr(peer_asked(&b.peer, 1), "\r\n\r\n"), "\x0a\x03\x08\xac\x02\x10\x09");
    if (process_heard(&b.peer, 0, "Start", 5, &e2b__msg_start_request, &arena, &request) && CHECK_INT(request.process.args.count, 6)) {
      args = (const e2b_str *)request.process.args.items;
      CHECK(e2b__str_eq(args[4], "300") && e2b__str_eq(args[5], rows[i].stop ? "124" : "-1"));
    }
    e2b__arena_free(&arena);
  }
  CHECK_INT(e2b_commands_kill_tree(b.sandbox, 0, NULL, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_commands_stop(b.sandbox, 1, -1, NULL, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "grace_ms");
  files_end(&b);
}

/* Canceled, timed out and abandoned between the steps. */
static void test_process_tree_control(void) {
  static const process_events killed = { 5, "3 3\n", NULL, NULL, true, 0, NULL };
  uint32_t count = 9;
  e2b_call call;
  files_bench b;
  e2b_op op;
  done d;
  int i;
  for (i = 0; i < 4; i++) {
    files_begin(&b);
    files_open(&b, NULL, NULL);
    process_say_events(&b.peer, &killed);
    peer_say(&b.peer, "", PEER_HANG);
    call = process_call(&d);
    call.op = &op;
    if (i == 0) call.timeout_ms = 200;
    CHECK_INT(e2b_commands_kill_tree(b.sandbox, 7, &call, &count, &b.err), E2B_PENDING);
    if (i == 0) CHECK_INT(e2b_client_drain(b.client, 5000), E2B_OK);
    else FILES_UNTIL(b.client, peer_asked_count(&b.peer) == 2);
    if (i == 1) e2b_op_cancel(b.client, op);
    if (i == 2) e2b_sandbox_free(b.sandbox);
    if (i == 2) CHECK_INT(e2b_client_drain(b.client, 5000), E2B_OK);
    files_end(&b);
    CHECK_INT(d.count, i != 1);
    if (i != 1) CHECK_INT(d.err.code, i ? E2B_ERR_CANCELED : E2B_ERR_TIMEOUT);
  }
}

/* ---- starting and attaching ---- */

static void test_process_detached(void) {
  static const process_events started = { 300, NULL, NULL, NULL, true, 3, NULL }, opened = { 301, "\n", NULL, NULL, true, 0, NULL },
                              refused = { 302, NULL, "output_file: line 1: /x: Permission denied", NULL, true, 1, NULL },
                              silent = { 303, NULL, NULL, NULL, true, 0, NULL }, none = { 0, NULL, NULL, NULL, false, 0, NULL };
  e2b__start_request request;
  e2b__arena arena;
  const e2b_str *args;
  e2b_run_opts opts;
  uint32_t pid = 1;
  files_bench b;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  memset(&opts, 0, sizeof opts);
  opts.tag = "t";
  opts.cwd = "/w";
  opts.stdin_open = true;
  opts.run_timeout_ms = 5000;
  opts.user = "me";
  process_say_events(&b.peer, &started);
  CHECK_INT(e2b_commands_start_detached(b.sandbox, "cmd", &opts, &pid, &b.err), E2B_OK); /* how it ends is not ours to tell */
  CHECK_INT(pid, 300);
  CHECK_HAS(peer_asked(&b.peer, 0), "\r\nconnect-timeout-ms: 5000\r\n");
  CHECK_HAS(peer_asked(&b.peer, 0), "\r\nauthorization: Basic bWU6\r\n");
  if (process_heard(&b.peer, 0, "Start", 5, &e2b__msg_start_request, &arena, &request) && CHECK_INT(request.process.args.count, 3)) {
    args = (const e2b_str *)request.process.args.items;
    CHECK(e2b__str_eq(request.process.cmd, "/bin/bash") && e2b__str_eq(args[0], "-l") && e2b__str_eq(args[2], "cmd"));
    CHECK(e2b__str_eq(request.process.cwd, "/w") && e2b__str_eq(request.tag, "t") && request.stdin_open && !request.has_pty);
  }
  e2b__arena_free(&arena);

  opts.output_file = "/x";
  process_say_events(&b.peer, &opened);
  CHECK_INT(e2b_commands_start_detached(b.sandbox, "cmd", &opts, &pid, &b.err), E2B_OK);
  CHECK_INT(pid, 301);
  if (process_heard(&b.peer, 1, "Start", 5, &e2b__msg_start_request, &arena, &request) && CHECK_INT(request.process.args.count, 6)) {
    args = (const e2b_str *)request.process.args.items;
    CHECK(e2b__str_eq(args[4], "/x") && e2b__str_eq(args[5], "cmd"));
  }
  e2b__arena_free(&arena);
  process_say_events(&b.peer, &refused);
  CHECK_INT(e2b_commands_start_detached(b.sandbox, "cmd", &opts, &pid, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_STR(b.err.message, "output_file: line 1: /x: Permission denied");
  CHECK_INT(b.err.subject, E2B_SUBJECT_OPTION);
  CHECK_INT(pid, 0);
  process_say_events(&b.peer, &silent);
  CHECK_INT(e2b_commands_start_detached(b.sandbox, "cmd", &opts, &pid, &b.err), E2B_ERR_INVALID_ARGUMENT);
  opts.output_file = NULL;
  process_say_events(&b.peer, &none);
  CHECK_INT(e2b_commands_start_detached(b.sandbox, "cmd", &opts, &pid, &b.err), E2B_ERR_TRUNCATED);
  CHECK(b.err.maybe_done || pid == 0);
  files_end(&b);
}

static void test_process_tag(void) {
  static const process_events missing = { 0, NULL, NULL, NULL, false, 0, "{\"error\":{\"code\":\"not_found\",\"message\":\"no tag\"}}" },
                              attached = { 300, "out", NULL, NULL, true, 0, NULL };
  static const e2b_kv pair = { "x-mine", "1" };
  e2b__process_info infos[2];
  e2b__process_list list;
  e2b_command_handle *handle;
  e2b_command_result r = { 0 };
  e2b_run_opts opts;
  char user[8] = "me";
  files_bench b;
  e2b_call call;
  e2b_op op;
  done d;
  int i;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  memset(infos, 0, sizeof infos);
  infos[0].pid = 299;
  infos[1].pid = 300;
  infos[1].has_tag = true;
  infos[1].tag = e2b__str("mine");
  list.processes.items = infos;
  list.processes.count = 2;
  memset(&opts, 0, sizeof opts);
  opts.user = user;
  opts.call.headers.items = &pair;
  opts.call.headers.count = 1;
  process_say_events(&b.peer, &attached);
  CHECK_INT(e2b_commands_connect_to_tag(b.sandbox, "mine", &opts, &handle, &b.err), E2B_OK);
  CHECK_INT(e2b_command_handle_pid(handle), 300);
  e2b_command_handle_free(handle);
  CHECK(memcmp(strstr(peer_asked(&b.peer, 0), "\r\n\r\n") + 4, "\x00\x00\x00\x00\x08\x0a\x06\x12\x04mine", 13) == 0);

  for (i = 0; i < 2; i++) { /* one that the server overlooked, and one that does not exist */
    peer_clear(&b.peer);
    process_say_events(&b.peer, &missing);
    files_say_message(&b.peer, &e2b__msg_process_list, &list);
    process_say_events(&b.peer, &attached);
    CHECK_INT(e2b_commands_connect_to_tag(b.sandbox, i ? "yours" : "mine", &opts, &handle, &b.err), i ? E2B_ERR_NOT_FOUND : E2B_OK);
    CHECK(i ? !handle : e2b_command_handle_pid(handle) == 300);
    if (i) CHECK_HAS(b.err.message, "no tag");
    else CHECK_INT(e2b_command_handle_wait(handle, NULL, &r, &b.err), E2B_OK);
    if (!i) CHECK_STR(r.stdout_data.ptr, "out");
    e2b_mem_free(&r.mem);
    e2b_command_handle_free(handle);
    CHECK_INT(peer_asked_count(&b.peer), i ? 2 : 3);
    CHECK(strncmp(peer_asked(&b.peer, 1), "POST /process.Process/List ", 27) == 0);
    CHECK_HAS(peer_asked(&b.peer, 1), "\r\nx-mine: 1\r\n");
    if (!i) CHECK_HAS(peer_asked(&b.peer, 2), "\r\nx-mine: 1\r\n");
    if (!i) CHECK_HAS(peer_asked(&b.peer, 2), "\r\nauthorization: Basic bWU6\r\n");
  }

  /* what the caller gave is copied; canceled between the steps */
  peer_clear(&b.peer);
  process_say_events(&b.peer, &missing);
  peer_say(&b.peer, "", PEER_HANG);
  call = process_call(&d);
  call.op = &op;
  opts.call = call;
  CHECK_INT(e2b_commands_connect_to_tag(b.sandbox, "mine", &opts, &handle, &b.err), E2B_PENDING);
  memset(user, 0xff, sizeof user - 1);
  FILES_UNTIL(b.client, peer_asked_count(&b.peer) == 2);
  e2b_op_cancel(b.client, op);
  CHECK(!handle && d.count == 0);
  CHECK_INT(e2b_commands_connect_to_tag(b.sandbox, "a\nb", NULL, &handle, &b.err), E2B_ERR_INVALID_ARGUMENT);
  files_end(&b);
}

#ifndef E2B_NO_PTY
static void test_process_pty(void) {
  static const e2b_kv pairs[] = { { "LC_ALL", "de_DE.UTF-8" }, { "A", "b" } };
  static const process_events shell = { 300, NULL, NULL, "text", true, 0, NULL };
  static const char *const want[] = { "LC_ALL", "de_DE.UTF-8", "A", "b", "TERM", "xterm-256color", "LANG", "C.UTF-8" };
  e2b__start_request request;
  e2b__arena arena;
  e2b_command_handle *handle;
  e2b_command_event event;
  e2b_command_result r = { 0 };
  e2b_pty_opts opts;
  files_bench b;
  static shown s;
  size_t i;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  memset(&opts, 0, sizeof opts);
  memset(&s, 0, sizeof s);
  process_say_events(&b.peer, &shell);
  CHECK_INT(e2b_pty_create(b.sandbox, NULL, &handle, &b.err), E2B_OK);
  CHECK_INT(e2b_command_handle_next(handle, 5000, &event, &b.err), E2B_OK);
  CHECK(event.kind == E2B_EVENT_PTY && event.len == 4 && strcmp(event.data, "text") == 0);
  CHECK_INT(e2b_command_handle_next(handle, 5000, &event, &b.err), E2B_OK);
  CHECK(event.kind == E2B_EVENT_EXIT && event.exit_code == 0);
  e2b_command_handle_free(handle);
  CHECK(memcmp(strstr(peer_asked(&b.peer, 0), "\r\n\r\n") + 4 + 5, /* as the official SDKs say it, and stdin = false */
               "\x0a\x4f\x0a\x09/bin/bash\x12\x02-i\x12\x02-l\x1a\x16\x0a\x04TERM\x12\x0exterm-256color\x1a\x0f\x0a\x04LANG\x12\x07"
               "C.UTF-8\x1a\x11\x0a\x06LC_ALL\x12\x07" "C.UTF-8\x12\x06\x0a\x04\x08\x50\x10\x18\x20\x00", 91) == 0);

  opts.cols = 132;
  opts.rows = 43;
  opts.tag = "t";
  opts.cwd = "/w";
  opts.run_timeout_ms = 77;
  opts.envs.items = pairs;
  opts.envs.count = 2;
  opts.on_data = shown_add;
  opts.output_user = &s;
  process_say_events(&b.peer, &shell);
  CHECK_INT(e2b_pty_create(b.sandbox, &opts, &handle, &b.err), E2B_OK);
  CHECK_INT(e2b_command_handle_wait(handle, NULL, &r, &b.err), E2B_OK);
  CHECK_STR(s.text, "text");
  CHECK_STR(r.stdout_data.ptr, "");
  e2b_mem_free(&r.mem);
  e2b_command_handle_free(handle);
  CHECK_HAS(peer_asked(&b.peer, 1), "\r\nconnect-timeout-ms: 77\r\n");
  if (process_heard(&b.peer, 1, "Start", 5, &e2b__msg_start_request, &arena, &request) && CHECK_INT(request.process.envs.count, 4)) {
    const e2b__pair *envs = (const e2b__pair *)request.process.envs.items;
    for (i = 0; i < 4; i++) CHECK(e2b__str_eq(envs[i].key, want[2 * i]) && e2b__str_eq(envs[i].value, want[2 * i + 1]));
    CHECK(request.pty.size.cols == 132 && request.pty.size.rows == 43);
    CHECK(e2b__str_eq(request.tag, "t") && e2b__str_eq(request.process.cwd, "/w"));
  }
  e2b__arena_free(&arena);

  process_say_events(&b.peer, &shell);
  CHECK_INT(e2b_pty_connect(b.sandbox, 300, NULL, &handle, &b.err), E2B_OK);
  CHECK_INT(e2b_command_handle_wait(handle, NULL, &r, &b.err), E2B_OK);
  CHECK_STR(r.stdout_data.ptr, "text");
  e2b_mem_free(&r.mem);
  e2b_command_handle_free(handle);

  process_say_ok(&b.peer, 0);
  CHECK_INT(e2b_pty_resize(b.sandbox, 4242, 120, 40, NULL, &b.err), E2B_OK);
  CHECK_HAS(strstr(peer_asked(&b.peer, 3), "\r\n\r\n"), "\x0a\x03\x08\x92\x21\x12\x06\x0a\x04\x08\x78\x10\x28");
  CHECK_INT(e2b_pty_resize(b.sandbox, 1, 0, 1, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "cols");
  CHECK_INT(e2b_pty_resize(b.sandbox, 1, 1, 0, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  opts.run_timeout_ms = -1;
  CHECK_INT(e2b_pty_create(b.sandbox, &opts, &handle, &b.err), E2B_ERR_INVALID_ARGUMENT);
  peer_say(&b.peer, PROCESS_ERROR("500 Oops", "internal", "error resizing tty: tty not assigned to process"), PEER_CLOSE);
  CHECK_INT(e2b_pty_resize(b.sandbox, 1, 1, 1, NULL, &b.err), E2B_ERR_BAD_STATE);
  files_end(&b);
}
#endif

/* ---- without memory ---- */

static e2b_err process_try_input(files_bench *b, peer *p) {
  noise_source source;
  e2b_err code;
  memset(&source, 0, sizeof source);
  source.seed = source.sizes = 1;
  source.left = 100000;
  peer_clear(p);
  process_say_ok(p, PEER_REPEAT);
  code = e2b_commands_send_stdin_from(b->sandbox, 7, noise_give, &source, NULL, &b->err);
  if (!code) code = e2b_commands_send_stdin(b->sandbox, 7, "x", 1, NULL, &b->err);
  return code;
}

static e2b_err process_try_tree(files_bench *b, peer *p) {
  static const process_events killed = { 5, "3 3\n", NULL, NULL, true, 0, NULL };
  static const e2b_kv pair = { "x-mine", "1" };
  uint32_t count = 0;
  e2b_call call;
  e2b_err code;
  memset(&call, 0, sizeof call);
  call.headers.items = &pair;
  call.headers.count = 1;
  peer_clear(p);
  process_say_events(p, &killed);
  process_say_ok(p, PEER_REPEAT);
  code = e2b_commands_kill_tree(b->sandbox, 7, &call, &count, &b->err);
  CHECK(code || count == 3);
  return code;
}

static e2b_err process_try_attach(files_bench *b, peer *p) {
  static const process_events missing = { 0, NULL, NULL, NULL, false, 0, "{\"error\":{\"code\":\"not_found\",\"message\":\"no tag\"}}" },
                              attached = { 300, "out", NULL, NULL, true, 0, NULL }, opened = { 301, "\n", NULL, NULL, true, 0, NULL };
  e2b_command_handle *handle;
  e2b__process_info info;
  e2b__process_list list;
  e2b_run_opts opts;
  uint32_t pid;
  e2b_err code;
  memset(&info, 0, sizeof info);
  memset(&opts, 0, sizeof opts);
  info.pid = 300;
  info.has_tag = true;
  info.tag = e2b__str("mine");
  list.processes.items = &info;
  list.processes.count = 1;
  peer_clear(p);
  process_say_events(p, &missing);
  files_say_message(p, &e2b__msg_process_list, &list);
  process_say_events(p, &attached);
  process_say_events(p, &opened);
  code = e2b_commands_connect_to_tag(b->sandbox, "mine", NULL, &handle, &b->err);
  CHECK((code == E2B_OK) == (handle != NULL));
  e2b_command_handle_free(handle);
  opts.output_file = "/x";
  if (!code) code = e2b_commands_start_detached(b->sandbox, "true", &opts, &pid, &b->err);
  return code;
}

#ifndef E2B_NO_PTY
static e2b_err process_try_pty(files_bench *b, peer *p) {
  static const process_events shell = { 300, NULL, NULL, "text", true, 0, NULL };
  e2b_command_handle *handle;
  e2b_command_result r = { 0 };
  e2b_err code;
  peer_clear(p);
  process_say_events(p, &shell);
  process_say_ok(p, PEER_REPEAT);
  code = e2b_pty_create(b->sandbox, NULL, &handle, &b->err);
  if (!code) code = e2b_command_handle_wait(handle, NULL, &r, &b->err);
  e2b_mem_free(&r.mem);
  e2b_command_handle_free(handle);
  if (!code) code = e2b_pty_resize(b->sandbox, 300, 1, 1, NULL, &b->err);
  return code;
}
#endif

/* As files_each_allocation, with a script per attempt: each has a server of its own, for one cut off may still be heard by it. */
static void process_each_allocation(e2b_err (*attempt)(files_bench *b, peer *p)) {
  bool reached = true;
  long n;
  for (n = 1; reached && n < 1000; n++) {
    e2b_attach_opts attach;
    files_bench b;
    peer second;
    e2b_err code;
    files_begin(&b);
    files_open(&b, NULL, NULL);
    b.heap.fail_at = b.heap.calls + (size_t)n;
    code = attempt(&b, &b.peer);
    reached = b.heap.calls >= b.heap.fail_at;
    if (code != E2B_OK && code != E2B_ERR_NO_MEMORY) printf("allocation %ld: %s: %s\n", n, e2b_err_name(code), b.err.message);
    CHECK(code == E2B_ERR_NO_MEMORY || code == E2B_OK);
    CHECK(reached || code == E2B_OK);
    b.heap.fail_at = 0;
    peer_start(&second);
    second.health = b.peer.health;
    memset(&attach, 0, sizeof attach);
    attach.base_url = second.url;
    CHECK_INT(e2b_sandbox_attach(b.client, "sbx", &attach, &b.sandbox, &b.err), E2B_OK);
    CHECK_INT(attempt(&b, &second), E2B_OK); /* the client is as good as before */
    files_end(&b);
    peer_stop(&second);
  }
  CHECK(n > 10 && n < 1000);
}

static void test_process_no_memory(void) {
  process_each_allocation(process_try_input);
  process_each_allocation(process_try_tree);
  process_each_allocation(process_try_attach);
#ifndef E2B_NO_PTY
  process_each_allocation(process_try_pty);
#endif
}

/* ================================================================================================================== */
/* >>>> code interpreter */
/* ================================================================================================================== */

#define CODE_COUNT "{\"type\":\"number_of_executions\",\"execution_count\":3}\n"
#define CODE_OUT(text) "{\"type\":\"stdout\",\"text\":\"" text "\",\"timestamp\":\"2026-01-02T03:04:05Z\"}\n"
#define CODE_ERR(text) "{\"type\":\"stderr\",\"text\":\"" text "\"}\n"
#define CODE_RESULT(members) "{\"type\":\"result\"," members "}\n"
#define CODE_RAISED(name)                                                                                              \
  "{\"type\":\"error\",\"name\":\"" name "\",\"value\":\"v\",\"traceback\":\"line 1\\nline 2\"}\n"
#define CODE_FINISH "{\"type\":\"end_of_execution\"}\n"

/* A stream of lines as the interpreter sends it: chunked, in one chunk, without a type. */
static void code_say(peer *p, const char *lines, unsigned flags) {
  size_t len = strlen(lines);
  char *all = (char *)malloc(len + 128);
  snprintf(all, len + 128, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%lx\r\n%s\r\n0\r\n\r\n",
           (unsigned long)len, lines);
  peer_say(p, all, flags);
  free(all);
}

/* What on_event was given, as text. */
typedef struct code_log {
  char text[4096];
  size_t len;
  int pause_at, cancel_at, count; /* the nth event */
} code_log;

static void code_note(code_log *l, const char *format, ...) {
  va_list args;
  va_start(args, format);
  l->len += (size_t)vsnprintf(l->text + l->len, sizeof l->text - l->len, format, args);
  va_end(args);
}

static int code_on_event(void *user, const e2b_code_event *event) {
  code_log *l = (code_log *)user;
  switch (event->kind) {
  case E2B_CODE_STDOUT: code_note(l, "out[%s]@%s ", event->text.ptr, event->timestamp.ptr); break;
  case E2B_CODE_STDERR: code_note(l, "err[%s]@%s ", event->text.ptr, event->timestamp.ptr); break;
  case E2B_CODE_RESULT:
    code_note(l, "result[%s|%u%s] ", event->result->text.ptr, (unsigned)e2b_code_result_formats(event->result),
              event->result->is_main_result ? "|main" : "");
    break;
  case E2B_CODE_ERROR:
    code_note(l, "error[%s|%s|%s] ", event->error->name, event->error->value, event->error->traceback);
    break;
  case E2B_CODE_COUNT: code_note(l, "count[%d] ", (int)event->count); break;
  case E2B_CODE_END: code_note(l, "end "); break;
  }
  CHECK(event->text.ptr && event->timestamp.ptr && event->text.ptr[event->text.len] == 0);
  CHECK((event->kind == E2B_CODE_RESULT) == (event->result != NULL) &&
        (event->kind == E2B_CODE_ERROR) == (event->error != NULL));
  l->count++;
  return l->count == l->cancel_at ? -1 : l->count == l->pause_at ? E2B_PAUSE : 0;
}

static e2b_run_code_opts code_opts(code_log *l) {
  e2b_run_code_opts opts;
  memset(&opts, 0, sizeof opts);
  memset(l, 0, sizeof *l);
  opts.on_event = code_on_event;
  opts.event_user = l;
  return opts;
}

static void code_count_warnings(void *user, e2b_log_level level, const char *message) {
  if (level <= E2B_LOG_WARN && strstr(message, "skipped")) ++*(int *)user;
}

static void test_code_urls(void) {
  static const struct {
    e2b_protocol protocol;
    const char *scheme, *domain, *base_url, *sandbox_url, *code_url;
    unsigned port;
    const char *id, *url;
  } rows[] = {
    { E2B_PROTOCOL_NATIVE, NULL, NULL, NULL, NULL, NULL, 0, "i", "https://49999-i.e2b.app" },
    { E2B_PROTOCOL_NATIVE, "http", "my.corp:80", NULL, NULL, NULL, 50001, "ns--n", "http://50001-ns--n.my.corp:80" },
    { E2B_PROTOCOL_PRIVATE, NULL, "gw.com", NULL, NULL, NULL, 0, "a/b", "https://gw.com/kruise/a%2Fb/49999" },
    { E2B_PROTOCOL_PRIVATE, NULL, "gw.com", NULL, NULL, NULL, 7, "i", "https://gw.com/kruise/i/7" },
    { E2B_PROTOCOL_NATIVE, NULL, NULL, "http://base/", NULL, NULL, 7, "i", "http://base/i" },
    { E2B_PROTOCOL_NATIVE, NULL, NULL, NULL, "http://one/x/", NULL, 0, "i", "http://one/x" },
    { E2B_PROTOCOL_NATIVE, NULL, NULL, "http://base/", "http://one", "http://code:1/c/", 0, "i", "http://code:1/c" },
  };
  e2b_client_config config;
  e2b_client *client;
  char text[100];
  size_t i;
  for (i = 0; i < E2B__COUNT(rows); i++) {
    memset(&config, 0, sizeof config);
    config.protocol = rows[i].protocol;
    config.scheme = rows[i].scheme;
    config.domain = rows[i].domain;
    config.sandbox_base_url = rows[i].base_url;
    config.sandbox_url = rows[i].sandbox_url;
    config.code_interpreter_base_url = rows[i].code_url;
    config.code_interpreter_port = (uint16_t)rows[i].port;
    client = sb_client(&config, NULL);
    CHECK_INT(e2b_client_code_interpreter_url(client, rows[i].id, text, sizeof text), strlen(rows[i].url));
    CHECK_STR(text, rows[i].url);
    CHECK_INT(e2b_client_code_interpreter_url(client, rows[i].id, text, 6), strlen(rows[i].url));
    CHECK_INT(strlen(text), 5);
    CHECK_INT(e2b_client_code_interpreter_url(client, "", text, sizeof text), 0);
    e2b_client_free(client);
  }
  CHECK_INT(e2b_client_code_interpreter_url(NULL, "i", text, sizeof text), 0);
  CHECK_STR(text, "");
}

#define CODE_HEADERS(port)                                                                                             \
  " HTTP/1.1\r\nhost: HOST\r\nuser-agent: t\r\naccept: application/json\r\naccept-encoding: identity\r\n"              \
  "e2b-sandbox-id: sbx\r\nx-access-token: tok\r\ne2b-sandbox-port: " port "\r\n"
#define CODE_JSON(len) "content-type: application/json\r\ncontent-length: " len "\r\n\r\n"

static void test_code_requests(void) {
  static const e2b_kv envs[] = { { "A", "1" }, { "B", "\"q\"" } };
  e2b_code_context context;
  e2b_code_context_list list;
  e2b_run_code_opts opts;
  files_bench b;
  memset(&opts, 0, sizeof opts);
  memset(&context, 0, sizeof context);
  memset(&list, 0, sizeof list);
  files_begin(&b);
  b.config.code_interpreter_port = 50001;
  files_open(&b, NULL, NULL);
  code_say(&b.peer, CODE_FINISH, PEER_REPEAT);
  CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, NULL, &b.err), E2B_OK);
  opts.language = E2B_LANGUAGE_R;
  opts.cwd = "/w";
  opts.envs.items = envs;
  opts.envs.count = 2;
  opts.exec_timeout_ms = 61007;
  CHECK_INT(e2b_code_run(b.sandbox, "a\n\xc3\xbc", &opts, NULL, &b.err), E2B_OK);
  memset(&opts, 0, sizeof opts);
  opts.context_id = "c-1";
  opts.language = opts.cwd = "";
  CHECK_INT(e2b_code_run(b.sandbox, "1", &opts, NULL, &b.err), E2B_OK);
  CHECK_REQUEST(&b.peer, 0, "POST /execute" CODE_HEADERS("50001") CODE_JSON("12") "{\"code\":\"1\"}");
  CHECK_REQUEST(&b.peer, 1,
                "POST /execute" CODE_HEADERS("50001") CODE_JSON("96")
                "{\"code\":\"a\\u000a\xc3\xbc\",\"language\":\"r\",\"cwd\":\"/w\","
                "\"env_vars\":{\"A\":\"1\",\"B\":\"\\\"q\\\"\"},\"timeout\":61.007}");
  CHECK_REQUEST(&b.peer, 2,
                "POST /execute" CODE_HEADERS("50001") CODE_JSON("31") "{\"code\":\"1\",\"context_id\":\"c-1\"}");

  peer_clear(&b.peer);
  files_say_text(&b.peer, "200 OK", "{\"id\":\"c\",\"language\":\"python\",\"cwd\":\"/h\"}", 0);
  files_say_text(&b.peer, "200 OK", "{\"id\":\"d\"}", 0);
  files_say_text(&b.peer, "200 OK", "[{\"id\":\"c\",\"language\":\"python\",\"cwd\":\"/h\"},{\"id\":\"d\"}]", 0);
  files_say_text(&b.peer, "200 OK", "null", 0);
  files_say_text(&b.peer, "200 OK", "null", 0);
  CHECK_INT(e2b_code_create_context(b.sandbox, "/h", "python", NULL, &context, &b.err), E2B_OK);
  CHECK_STR(context.id, "c");
  CHECK_STR(context.language, "python");
  CHECK_STR(context.cwd, "/h");
  e2b_mem_free(&context.mem);
  CHECK_INT(e2b_code_create_context(b.sandbox, NULL, NULL, NULL, &context, &b.err), E2B_OK);
  CHECK_STR(context.cwd, "");
  e2b_mem_free(&context.mem);
  CHECK_INT(e2b_code_list_contexts(b.sandbox, NULL, &list, &b.err), E2B_OK);
  if (CHECK_INT(list.count, 2)) {
    CHECK_STR(list.items[0].cwd, "/h");
    CHECK_STR(list.items[1].id, "d");
  }
  e2b_mem_free(&list.mem);
  CHECK_INT(e2b_code_restart_context(b.sandbox, "a/b", NULL, &b.err), E2B_OK);
  CHECK_INT(e2b_code_remove_context(b.sandbox, "c", NULL, &b.err), E2B_OK);
  CHECK_REQUEST(&b.peer, 0,
                "POST /contexts" CODE_HEADERS("50001") CODE_JSON("32") "{\"cwd\":\"/h\",\"language\":\"python\"}");
  CHECK_REQUEST(&b.peer, 1, "POST /contexts" CODE_HEADERS("50001") CODE_JSON("2") "{}");
  CHECK_REQUEST(&b.peer, 2, "GET /contexts" CODE_HEADERS("50001") "\r\n");
  CHECK_REQUEST(&b.peer, 3, "POST /contexts/a%2Fb/restart" CODE_HEADERS("50001") "content-length: 0\r\n\r\n");
  CHECK_REQUEST(&b.peer, 4, "DELETE /contexts/c" CODE_HEADERS("50001") "\r\n");
  files_end(&b);
}

/* The URL of its own that a handle may have, and the traffic token. */
static void test_code_attach(void) {
  e2b_attach_opts attach;
  e2b_sandbox *sandbox = NULL;
  char url[64];
  files_bench b;
  memset(&attach, 0, sizeof attach);
  files_begin(&b);
  files_open(&b, NULL, NULL);
  code_say(&b.peer, CODE_FINISH, PEER_REPEAT);
  snprintf(url, sizeof url, "%s/code/", b.peer.url);
  attach.code_interpreter_base_url = url;
  attach.code_interpreter_port = 50002;
  attach.base_url = "http://127.0.0.1:1";
  attach.traffic_access_token = "tt";
  CHECK_INT(e2b_sandbox_attach(b.client, "s2", &attach, &sandbox, &b.err), E2B_OK);
  CHECK_INT(e2b_code_run(sandbox, "1", NULL, NULL, &b.err), E2B_OK);
  CHECK_HAS(peer_asked(&b.peer, 0), "POST /code/execute HTTP/1.1\r\n");
  CHECK_HAS(peer_asked(&b.peer, 0), "e2b-sandbox-port: 50002\r\n");
  CHECK_HAS(peer_asked(&b.peer, 0), "e2b-traffic-access-token: tt\r\n");
  CHECK(!strstr(peer_asked(&b.peer, 0), "x-api-key"));
  e2b_sandbox_free(sandbox);
  attach.code_interpreter_base_url = "ftp://x";
  CHECK_INT(e2b_sandbox_attach(b.client, "s2", &attach, &sandbox, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "code_interpreter_base_url");
  files_end(&b);
}

static void test_code_arguments(void) {
  static const e2b_kv no_name[] = { { "", "1" } }, equals[] = { { "A=", "1" } }, evil[] = { { "X-A", "1\r\nX-B: 2" } };
  e2b_code_context context;
  e2b_code_context_list list;
  e2b_run_code_opts opts;
  e2b_execution out;
  files_bench b;
  memset(&list, 0, sizeof list);
  memset(&context, 0, sizeof context);
  memset(&opts, 0, sizeof opts);
  memset(&out, 0, sizeof out);
  files_begin(&b);
  files_open(&b, NULL, NULL);
#define CODE_REFUSED(call, word)                                                                                       \
  do {                                                                                                                 \
    CHECK_INT(call, E2B_ERR_INVALID_ARGUMENT);                                                                         \
    CHECK_HAS(b.err.message, word);                                                                                    \
    CHECK_INT(b.err.subject, E2B_SUBJECT_OPTION);                                                                      \
  } while (0)
  CODE_REFUSED(e2b_code_run(NULL, "1", NULL, &out, &b.err), "sandbox");
  CODE_REFUSED(e2b_code_run(b.sandbox, NULL, NULL, &out, &b.err), "code");
  CODE_REFUSED(e2b_code_run(b.sandbox, "", NULL, &out, &b.err), "code");
  opts.context_id = "c";
  opts.language = "python";
  CODE_REFUSED(e2b_code_run(b.sandbox, "1", &opts, &out, &b.err), "language");
  memset(&opts, 0, sizeof opts);
  opts.exec_timeout_ms = -1;
  CODE_REFUSED(e2b_code_run(b.sandbox, "1", &opts, &out, &b.err), "exec_timeout_ms");
  memset(&opts, 0, sizeof opts);
  opts.envs.count = 1;
  opts.envs.items = no_name;
  CODE_REFUSED(e2b_code_run(b.sandbox, "1", &opts, &out, &b.err), "envs");
  opts.envs.items = equals;
  CODE_REFUSED(e2b_code_run(b.sandbox, "1", &opts, &out, &b.err), "envs");
  memset(&opts, 0, sizeof opts);
  opts.call.headers.count = 1;
  opts.call.headers.items = evil;
  CODE_REFUSED(e2b_code_run(b.sandbox, "1", &opts, &out, &b.err), "call.headers");
  CODE_REFUSED(e2b_code_list_contexts(b.sandbox, &opts.call, &list, &b.err), "call.headers");
  CODE_REFUSED(e2b_code_create_context(NULL, NULL, NULL, NULL, &context, &b.err), "sandbox");
  CODE_REFUSED(e2b_code_create_context(b.sandbox, NULL, NULL, NULL, NULL, &b.err), "out");
  CODE_REFUSED(e2b_code_list_contexts(b.sandbox, NULL, NULL, &b.err), "out");
  CODE_REFUSED(e2b_code_remove_context(NULL, "c", NULL, &b.err), "sandbox");
  CODE_REFUSED(e2b_code_remove_context(b.sandbox, "", NULL, &b.err), "context_id");
  CODE_REFUSED(e2b_code_remove_context(b.sandbox, "..", NULL, &b.err), "context_id");
  CODE_REFUSED(e2b_code_restart_context(b.sandbox, "a\r\nb", NULL, &b.err), "context_id");
  CHECK_INT(peer_asked_count(&b.peer), 0);
  CHECK_STR(e2b_execution_text(NULL), "");
  CHECK_INT(e2b_code_result_formats(NULL), 0);
  CHECK_STR(e2b_err_name(E2B_CODE_FAILED), "E2B_CODE_FAILED");
  files_end(&b);
}

static const char code_all[] =
    CODE_COUNT CODE_OUT("a\\n") CODE_OUT("\\ud83d\\ude00\\u00e9") CODE_ERR("e\\u0000e")
    "{\"type\":\"keepalive\"}\n{\"type\":\"of_tomorrow\",\"text\":\"x\"}\n"
    CODE_RESULT("\"text\":\"d\",\"html\":\"<b>\",\"extra\":{ },\"is_main_result\":false")
    CODE_RESULT("\"text\":\"t\",\"html\":\"h\",\"markdown\":\"m\",\"svg\":\"s\",\"png\":\"cA==\",\"jpeg\":\"ag==\","
                "\"pdf\":\"ZA==\",\"latex\":\"l\",\"json\":{\"a\":[1, null]},\"javascript\":\"j\",\"data\":{\"c\":[1]},"
                "\"chart\":{\"type\":\"bar\"},\"extra\":{\"x/y\":\"z\\n\"},\"is_main_result\":true,\"later\":[]")
    CODE_FINISH;

static void code_check_all(const e2b_execution *out) {
  const e2b_code_result *r;
  CHECK_STR(out->stdout_data.ptr, "a\n\xf0\x9f\x98\x80\xc3\xa9");
  CHECK_INT(out->stdout_data.len, 8);
  CHECK(out->stderr_data.len == 3 && memcmp(out->stderr_data.ptr, "e\0e", 4) == 0);
  CHECK(!out->error && !out->truncated);
  CHECK_INT(out->execution_count, 3);
  CHECK_STR(e2b_execution_text(out), "t");
  if (!CHECK_INT(out->result_count, 2)) return;
  CHECK_INT(e2b_code_result_formats(&out->results[0]), E2B_FORMAT_TEXT | E2B_FORMAT_HTML);
  CHECK(!out->results[0].is_main_result);
  CHECK_STR(out->results[0].chart.ptr, "");
  CHECK_STR(out->results[0].extra.ptr, "");
  r = &out->results[1];
  CHECK(r->is_main_result);
  CHECK_INT(e2b_code_result_formats(r), 8191);
  CHECK_STR(r->html.ptr, "h");
  CHECK_STR(r->markdown.ptr, "m");
  CHECK_STR(r->svg.ptr, "s");
  CHECK_STR(r->latex.ptr, "l");
  CHECK_STR(r->javascript.ptr, "j");
  CHECK_STR(r->png.ptr, "cA==");
  CHECK_STR(r->jpeg.ptr, "ag==");
  CHECK_STR(r->pdf.ptr, "ZA==");
  CHECK_STR(r->json.ptr, "{\"a\":[1, null]}");
  CHECK_STR(r->data.ptr, "{\"c\":[1]}");
  CHECK_STR(r->chart.ptr, "{\"type\":\"bar\"}");
  CHECK_STR(r->extra.ptr, "{\"x/y\":\"z\\n\"}");
}

/* Every kind of event, in one piece and byte by byte, collected and not. */
static void test_code_events(void) {
  static const char *const expected =
      "count[3] out[a\n]@2026-01-02T03:04:05Z out[\xf0\x9f\x98\x80\xc3\xa9]@2026-01-02T03:04:05Z "
      "err[e]@ result[d|3] result[t|8191|main] end ";
  e2b_run_code_opts opts;
  e2b_execution out;
  files_bench b;
  code_log l;
  int i;
  memset(&out, 0, sizeof out);
  files_begin(&b);
  files_open(&b, NULL, NULL);
  for (i = 0; i < 4; i++) {
    code_say(&b.peer, code_all, i & 1 ? PEER_DRIBBLE : 0);
    opts = code_opts(&l);
    CHECK_INT(e2b_code_run(b.sandbox, "1", &opts, i & 2 ? NULL : &out, &b.err), E2B_OK);
    CHECK_STR(l.text, expected);
    if (!(i & 2)) code_check_all(&out);
    e2b_mem_free(&out.mem);
  }
  code_say(&b.peer, code_all, 0);
  CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, &out, NULL), E2B_OK);
  code_check_all(&out);
  e2b_mem_free(&out.mem);
  files_end(&b);
}

/* An exception is an answer, whether the result is wanted or not; the last one counts. */
static void test_code_failed(void) {
  e2b_execution out;
  files_bench b;
  char storage[4096];
  memset(&out, 0, sizeof out);
  files_begin(&b);
  files_open(&b, NULL, NULL);
  code_say(&b.peer, CODE_COUNT CODE_OUT("x") CODE_RAISED("First") CODE_RAISED("NameError") CODE_FINISH, PEER_REPEAT);
  CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, &out, &b.err), E2B_CODE_FAILED);
  CHECK_INT(b.err.code, E2B_CODE_FAILED);
  CHECK_STR(b.err.message, "NameError: v");
  if (CHECK(out.error != NULL)) {
    CHECK_STR(out.error->name, "NameError");
    CHECK_STR(out.error->value, "v");
    CHECK_STR(out.error->traceback, "line 1\nline 2");
  }
  CHECK_STR(out.stdout_data.ptr, "x");
  CHECK_STR(e2b_execution_text(&out), "");
  e2b_mem_free(&out.mem);
  CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, NULL, &b.err), E2B_CODE_FAILED);
  CHECK_STR(b.err.message, "NameError: v");
  CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, NULL, NULL), E2B_CODE_FAILED);

  out.mem.ptr = storage;
  out.mem.cap = 8;
  out.mem.fixed = true;
  CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, &out, &b.err), E2B_ERR_BUFFER_TOO_SMALL);
  CHECK(out.mem.len > 8 && out.mem.len <= sizeof storage && !out.error && !out.results);
  out.mem.cap = sizeof storage;
  CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, &out, &b.err), E2B_CODE_FAILED);
  CHECK(out.error && strcmp(out.error->name, "NameError") == 0);
  files_end(&b);
}

/* An answer that is cut anywhere is never success; what came is kept. */
static void test_code_cut(void) {
  static const char lines[] =
      CODE_COUNT CODE_OUT("one") CODE_RESULT("\"text\":\"t\",\"is_main_result\":true") CODE_FINISH;
  static const char head[] = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
  char all[1024];
  size_t cut, len, out_at;
  e2b_execution out;
  files_bench b;
  memset(&out, 0, sizeof out);
  files_begin(&b);
  files_open(&b, NULL, NULL);
  len = (size_t)snprintf(all, sizeof all, "%s%lx\r\n%s\r\n0\r\n\r\n", head, (unsigned long)strlen(lines), lines);
  out_at = (size_t)(strstr(all, "\"}\n{\"type\":\"result\"") - all) + 3;
  for (cut = 0; cut <= len; cut++) {
    e2b_err code;
    peer_clear(&b.peer);
    peer_say_n(&b.peer, all, cut, PEER_CLOSE);
    code = e2b_code_run(b.sandbox, "1", NULL, &out, &b.err);
    CHECK_INT(code, cut == 0 ? E2B_ERR_CLOSED : cut == len ? E2B_OK : E2B_ERR_TRUNCATED);
    CHECK(cut == len || b.err.maybe_done);
    if (cut >= out_at)
      CHECK_STR(out.stdout_data.ptr, "one");
    else
      CHECK(!out.stdout_data.len);
    CHECK(!out.truncated && !out.error);
    e2b_mem_free(&out.mem);
  }
  /* complete for HTTP, but without the end; and cut after all was said */
  peer_clear(&b.peer);
  files_drive(b.client, 20); /* the last connection was closed after a whole answer */
  code_say(&b.peer, CODE_OUT("one") CODE_RAISED("E"), 0);
  CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, &out, &b.err), E2B_ERR_TRUNCATED);
  CHECK_STR(out.stdout_data.ptr, "one");
  CHECK(out.error != NULL);
  e2b_mem_free(&out.mem);
  code_say(&b.peer, "", 0);
  CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, &out, &b.err), E2B_ERR_TRUNCATED);
  CHECK_STR(out.stdout_data.ptr, "");
  e2b_mem_free(&out.mem);
  peer_say_n(&b.peer, all, out_at, PEER_RESET);
  CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, NULL, &b.err), E2B_ERR_TRUNCATED);
  b.peer.health = "HTTP/1.1 502 X\r\ncontent-length: 20\r\n\r\nsandbox not found: x";
  peer_say_n(&b.peer, all, out_at, PEER_CLOSE);
  CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, &out, &b.err), E2B_ERR_SANDBOX_GONE);
  CHECK_STR(out.stdout_data.ptr, "one");
  e2b_mem_free(&out.mem);
  files_end(&b);
}

/* Lines that are no events are skipped with a warning; other line ends and a last line without one are fine. */
static void test_code_malformed(void) {
  static const char *const bad[] = { "nonsense",
                                     "{",
                                     "[]",
                                     "7",
                                     "{}",
                                     "{\"type\":7}",
                                     "{\"type\":\"stdout\",\"text\":\"x\"",
                                     "{\"type\":\"result\",\"is_main_result\":\"yes\"}",
                                     "\"stdout\"",
                                     "{\"type\":\"stdout\"}}",
                                     "{\"type\":\"number_of_executions\",\"execution_count\":\"many\"}" };
  static const char *const good[] = {
    "",
    "\r",
    "{\"type\":\"stdout\"}",
    "{\"type\":\"stderr\",\"text\":null}",
    "{\"type\":\"result\",\"html\":[\"of\",\"another\",\"shape\"],\"text\":true,\"json\":null}",
    "{\"type\":\"number_of_executions\",\"execution_count\":null}"
  };
  e2b_run_code_opts opts;
  e2b_execution out;
  files_bench b;
  code_log l;
  char lines[1024];
  int warnings = 0;
  size_t i;
  memset(&out, 0, sizeof out);
  files_begin(&b);
  b.config.logger.func = code_count_warnings;
  b.config.logger.user = &warnings;
  files_open(&b, NULL, NULL);
  for (i = 0; i < E2B__COUNT(bad) + E2B__COUNT(good); i++) {
    bool is_bad = i < E2B__COUNT(bad);
    snprintf(lines, sizeof lines, "%s%s\n%s\r\n{\"type\":\"end_of_execution\"}", CODE_OUT("a"),
             is_bad ? bad[i] : good[i - E2B__COUNT(bad)], "{\"type\":\"stdout\",\"text\":\"b\"}");
    code_say(&b.peer, lines, 0);
    opts = code_opts(&l);
    warnings = 0;
    CHECK_INT(e2b_code_run(b.sandbox, "1", &opts, &out, &b.err), E2B_OK);
    if (!CHECK_INT(warnings, is_bad)) printf("%s\n", lines);
    CHECK_STR(out.stdout_data.ptr, "ab");
    CHECK_HAS(l.text, "end ");
    e2b_mem_free(&out.mem);
  }
  files_end(&b);
}

static void test_code_limits(void) {
  e2b_client_stats stats;
  e2b_execution out;
  files_bench b;
  char *lines = (char *)malloc(70000);
  size_t i, at;
  memset(&out, 0, sizeof out);
  files_begin(&b);
  b.config.max_message_bytes = 20000;
  b.config.max_result_bytes = 5000;
  files_open(&b, NULL, NULL);
  /* a line as long as allowed, one longer, one without an end */
  for (i = 0; i < 2; i++) {
    at = (size_t)snprintf(lines, 70000, "{\"type\":\"stdout\",\"text\":\"");
    memset(lines + at, 'x', 19998 + i - at);
    snprintf(lines + 19998 + i, 100, "\"}\n" CODE_FINISH);
    code_say(&b.peer, lines, 0);
    CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, &out, &b.err), i ? E2B_ERR_LIMIT : E2B_OK);
    if (i)
      CHECK_HAS(b.err.message, "max_message_bytes");
    else
      CHECK(out.truncated && out.stdout_data.len == 5000 && out.stdout_data.ptr[5000] == 0);
    e2b_mem_free(&out.mem);
  }
  peer_say(&b.peer,
           "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
           "3a\r\n[{},                                                      \r\n",
           PEER_ENDLESS);
  CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, &out, &b.err), E2B_ERR_LIMIT);
  e2b_mem_free(&out.mem);
  e2b_client_get_stats(b.client, &stats);
  CHECK(stats.mem_peak < 300000);
  /* results and output beyond the limit are dropped, an error never is */
  for (i = 0, at = 0; i < 100; i++)
    at += (size_t)snprintf(
        lines + at, 70000 - at, "%s",
        i % 2 ? CODE_OUT("0123456789012345678901234567890123456789")
              : CODE_RESULT("\"text\":\"0123456789012345678901234567890123456789\",\"is_main_result\":true"));
  snprintf(lines + at, 70000 - at, CODE_RAISED("LateError") CODE_FINISH);
  b.client->config.max_result_bytes = 1500;
  code_say(&b.peer, lines, 0);
  CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, &out, &b.err), E2B_CODE_FAILED);
  CHECK(out.truncated && out.error);
  CHECK_INT(out.stdout_data.len, 1500);
  CHECK(out.result_count > 0 && out.result_count < 50);
  CHECK_STR(e2b_execution_text(&out), "0123456789012345678901234567890123456789");
  e2b_mem_free(&out.mem);
  free(lines);
  files_end(&b);
}

/* What the interpreter, the edge and others answer instead. */
static void test_code_refused(void) {
  static const struct {
    const char *status, *body;
    e2b_err want;
    e2b_subject subject;
    const char *words;
  } rows[] = {
    { "404 X", "Context c not found", E2B_ERR_NOT_FOUND, E2B_SUBJECT_CONTEXT, "Context c not found" },
    { "404 X", "<html>404 page not found</html>", E2B_ERR_SERVICE, E2B_SUBJECT_NONE, "check its URL" },
    { "400 X", "Only one of context_id or language", E2B_ERR_INVALID_ARGUMENT, E2B_SUBJECT_NONE, "Only one" },
    { "422 X", "{\"detail\":[{\"msg\":\"Field required\"}]}", E2B_ERR_INVALID_ARGUMENT, E2B_SUBJECT_NONE,
      "Field required" },
    { "500 X", "Failed to create context: no kernel", E2B_ERR_SERVICE, E2B_SUBJECT_NONE, "no kernel" },
    { "401 X", "{\"code\":401,\"message\":\"bad token\"}", E2B_ERR_UNAUTHENTICATED, E2B_SUBJECT_NONE, "access token" },
    { "403 X", "{\"message\":\"Traffic access token is missing\"}", E2B_ERR_PERMISSION, E2B_SUBJECT_NONE, "raffic" },
    { "302 X", "", E2B_ERR_SERVICE, E2B_SUBJECT_NONE, "redirect" },
    { "502 X", "<html><h1>502 Bad Gateway</h1></html>", E2B_ERR_UNAVAILABLE, E2B_SUBJECT_NONE, "has the template one" },
    { "503 X", "sandbox gateway is not ready", E2B_ERR_UNAVAILABLE, E2B_SUBJECT_NONE, "gateway is not ready" },
    { "502 X",
      "{\"sandboxId\":\"sbx\",\"message\":\"The sandbox is running but port is not open\",\"port\":49999,\"code\":502}",
      E2B_ERR_UNAVAILABLE, E2B_SUBJECT_NONE, "its template has no code interpreter" },
  };
  e2b_code_context_list list;
  e2b_execution out;
  files_bench b;
  size_t i;
  memset(&out, 0, sizeof out);
  memset(&list, 0, sizeof list);
  files_begin(&b);
  files_open(&b, NULL, NULL);
  for (i = 0; i < E2B__COUNT(rows); i++) {
    files_say_text(&b.peer, rows[i].status, rows[i].body, 0);
    CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, &out, &b.err), rows[i].want);
    CHECK_HAS(b.err.message, rows[i].words);
    CHECK_INT(b.err.subject, rows[i].subject);
    CHECK_INT(b.err.http_status, strtol(rows[i].status, NULL, 10));
    CHECK(!out.mem.ptr && !out.results);
    files_say_text(&b.peer, rows[i].status, rows[i].body, 0);
    CHECK_INT(e2b_code_list_contexts(b.sandbox, NULL, &list, &b.err), rows[i].want);
    CHECK_HAS(b.err.message, rows[i].words);
    CHECK(!list.mem.ptr && !list.count);
  }
  files_say_text(&b.peer, "502 X", rows[10].body, 0);
  CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, &out, &b.err), E2B_ERR_UNAVAILABLE);
  CHECK(!b.err.maybe_done);
  b.peer.health = "HTTP/1.1 502 X\r\ncontent-length: 20\r\n\r\nsandbox not found: x";
  files_say_text(&b.peer, "502 X", "sandbox not found: x", 0);
  CHECK_INT(e2b_code_run(b.sandbox, "1", NULL, &out, &b.err), E2B_ERR_SANDBOX_GONE);
  CHECK_INT(b.err.subject, E2B_SUBJECT_SANDBOX);
  files_end(&b);
}

/* Successes that are none. */
static void test_code_strange_contexts(void) {
  static const char *const bodies[] = {
    "", "<html>", "7", "{}", "{\"id\":7}", "{\"id\":\"\"}", "[{\"id\":\"c\"},{}]", "{\"id\":\"c\""
  };
  e2b_code_context context;
  e2b_code_context_list list;
  files_bench b;
  char storage[64];
  size_t i;
  memset(&context, 0, sizeof context);
  memset(&list, 0, sizeof list);
  files_begin(&b);
  files_open(&b, NULL, NULL);
  for (i = 0; i < E2B__COUNT(bodies); i++) {
    files_say_text(&b.peer, "200 OK", bodies[i], 0);
    files_say_text(&b.peer, "200 OK", bodies[i], 0);
    CHECK_INT(e2b_code_create_context(b.sandbox, NULL, NULL, NULL, &context, &b.err), E2B_ERR_PROTOCOL);
    CHECK(b.err.maybe_done && !context.id && !context.mem.ptr);
    CHECK_INT(e2b_code_list_contexts(b.sandbox, NULL, &list, &b.err), E2B_ERR_PROTOCOL);
    CHECK(!b.err.maybe_done && !list.items && !list.mem.ptr);
  }
  files_say_text(&b.peer, "200 OK", "[]", 0);
  CHECK_INT(e2b_code_list_contexts(b.sandbox, NULL, &list, &b.err), E2B_OK);
  CHECK_INT(list.count, 0);
  e2b_mem_free(&list.mem);
  context.mem.ptr = storage;
  context.mem.cap = 4;
  context.mem.fixed = true;
  for (i = 0; i < 2; i++) {
    files_say_text(&b.peer, "200 OK", "{\"id\":\"c\",\"cwd\":\"/\"}", 0);
    CHECK_INT(e2b_code_create_context(b.sandbox, NULL, NULL, NULL, &context, &b.err),
              i ? E2B_OK : E2B_ERR_BUFFER_TOO_SMALL);
    context.mem.cap = sizeof storage;
  }
  CHECK_STR(context.id, "c");
  files_end(&b);
}

/* E2B_PAUSE, negative answers, and what may be done inside on_event. */
static void test_code_control(void) {
  e2b_run_code_opts opts;
  e2b_execution out;
  files_bench b;
  code_log l;
  done d;
  e2b_op op;
  int i;
  memset(&out, 0, sizeof out);
  files_begin(&b);
  files_open(&b, NULL, NULL);
  code_say(&b.peer, code_all, PEER_REPEAT);
  for (i = 1; i <= 7; i++) { /* pausing at each event in turn */
    opts = code_opts(&l);
    memset(&d, 0, sizeof d);
    opts.call.op = &op;
    opts.call.on_done = on_done;
    opts.call.user = &d;
    l.pause_at = i;
    CHECK_INT(e2b_code_run(b.sandbox, "1", &opts, &out, &b.err), E2B_PENDING);
    FILES_UNTIL(b.client, l.count == i);
    files_drive(b.client, 15);
    CHECK_INT(l.count, i);
    if (i < 7) CHECK_INT(d.count, 0);
    e2b_op_resume(b.client, op);
    FILES_UNTIL(b.client, d.count);
    CHECK_INT(d.err.code, E2B_OK);
    CHECK_INT(l.count, 7);
    code_check_all(&out);
    e2b_mem_free(&out.mem);
  }
  opts = code_opts(&l);
  l.pause_at = 2;
  CHECK_INT(e2b_code_run(b.sandbox, "1", &opts, &out, &b.err), E2B_ERR_BAD_STATE);
  CHECK_HAS(b.err.message, "E2B_PAUSE");
  CHECK_INT(l.count, 2);
  e2b_mem_free(&out.mem);
  for (i = 1; i <= 7; i++) {
    opts = code_opts(&l);
    l.cancel_at = i;
    CHECK_INT(e2b_code_run(b.sandbox, "1", &opts, &out, &b.err), E2B_ERR_CANCELED);
    CHECK_HAS(b.err.message, "on_event");
    CHECK_INT(l.count, i);
    e2b_mem_free(&out.mem);
  }
  files_end(&b);
}

typedef struct code_inside {
  e2b_client *client;
  e2b_sandbox *sandbox;
  e2b_op op;
  int at, count, what;
} code_inside;

static int code_end_inside(void *user, const e2b_code_event *event) {
  code_inside *in = (code_inside *)user;
  e2b_error err;
  if (++in->count != in->at) return 0;
  CHECK_INT(e2b_code_run(in->sandbox, "2", NULL, NULL, &err), E2B_ERR_BAD_STATE);
  if (in->what == 0) e2b_op_cancel(in->client, in->op);
  if (in->what == 1) e2b_sandbox_free(in->sandbox);
  CHECK(event->timestamp.ptr[event->timestamp.len] == 0);
  return 0;
}

static void test_code_inside_callbacks(void) {
  static const char no_end[] =
      "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" CODE_OUT("a") "{\"type\":\"end_of_execution\"}";
  e2b_run_code_opts opts;
  e2b_execution out;
  files_bench b;
  code_inside in;
  done d;
  int what, at, form;
  memset(&out, 0, sizeof out);
  for (what = 0; what < 2; what++)
    for (at = 1; at <= 2; at++)
      for (form = 0; form < 2; form++) { /* the last event in a line of its own, or at the end of everything */
        files_begin(&b);
        files_open(&b, NULL, NULL);
        if (form)
          peer_say(&b.peer, no_end, PEER_CLOSE);
        else
          code_say(&b.peer, CODE_OUT("a") CODE_FINISH, 0);
        memset(&opts, 0, sizeof opts);
        memset(&d, 0, sizeof d);
        memset(&in, 0, sizeof in);
        in.client = b.client;
        in.sandbox = b.sandbox;
        in.at = at;
        in.what = what;
        opts.on_event = code_end_inside;
        opts.event_user = &in;
        opts.call.op = &in.op;
        opts.call.on_done = on_done;
        opts.call.user = &d;
        CHECK_INT(e2b_code_run(b.sandbox, "1", &opts, &out, &b.err), E2B_PENDING);
        FILES_UNTIL(b.client, in.count == at);
        files_drive(b.client, 10);
        CHECK_INT(in.count, at);
        CHECK_INT(d.count, what);
        if (what) CHECK_INT(d.err.code, E2B_ERR_CANCELED);
        e2b_mem_free(&out.mem);
        files_end(&b);
      }
}

static void test_code_deadlines(void) {
  static const char hang[] =
      "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n27\r\n{\"type\":\"stdout\",\"text\":\"said so far\"}\n\r\n";
  e2b_run_code_opts opts;
  e2b_execution out;
  files_bench b;
  int i;
  memset(&out, 0, sizeof out);
  files_begin(&b);
  b.config.idle_ms = 30; /* not for this call */
  files_open(&b, NULL, NULL);
  for (i = 0; i < 3; i++) {
    memset(&opts, 0, sizeof opts);
    if (i == 0) opts.exec_timeout_ms = 150;
    if (i == 1) opts.call.timeout_ms = 150;
    if (i == 2) opts.call.idle_ms = 150;
    peer_say(&b.peer, hang, PEER_HANG);
    CHECK_INT(e2b_code_run(b.sandbox, "1", &opts, &out, &b.err), i == 2 ? E2B_ERR_IDLE_TIMEOUT : E2B_ERR_TIMEOUT);
    if (i == 0) CHECK_HAS(b.err.message, "exec_timeout_ms (150 ms)");
    CHECK(b.err.maybe_done);
    CHECK_STR(out.stdout_data.ptr, "said so far");
    e2b_mem_free(&out.mem);
  }
  files_end(&b);
}

static e2b_err code_try_run(files_bench *b) {
  e2b_run_code_opts opts;
  e2b_execution out;
  e2b_err code;
  code_log l;
  memset(&out, 0, sizeof out);
  opts = code_opts(&l);
  code = e2b_code_run(b->sandbox, "1", &opts, &out, &b->err);
  if (code == E2B_CODE_FAILED) {
    CHECK(out.error && strcmp(out.error->name, "E") == 0 && out.result_count == 2 && out.stdout_data.len == 8);
    code = E2B_OK;
  }
  e2b_mem_free(&out.mem);
  return code;
}

static e2b_err code_try_create(files_bench *b) {
  e2b_code_context context;
  e2b_err code;
  memset(&context, 0, sizeof context);
  code = e2b_code_create_context(b->sandbox, "/", "python", NULL, &context, &b->err);
  e2b_mem_free(&context.mem);
  return code;
}

static e2b_err code_try_list(files_bench *b) {
  e2b_code_context_list list;
  e2b_err code;
  memset(&list, 0, sizeof list);
  code = e2b_code_list_contexts(b->sandbox, NULL, &list, &b->err);
  CHECK(code || list.count == 2);
  e2b_mem_free(&list.mem);
  return code;
}

static e2b_err code_try_remove(files_bench *b) {
  return e2b_code_remove_context(b->sandbox, "c", NULL, &b->err);
}

static void test_code_no_memory(void) {
  static const char one[] = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{\"id\":\"c\"}";
  static const char two[] = "HTTP/1.1 200 OK\r\ncontent-length: 23\r\n\r\n[{\"id\":\"c\"},{\"id\":\"d\"}]";
  static const char done_so[] = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnull";
  char lines[2048];
  char all[4096];
  int size = snprintf(lines, sizeof lines, "%s%s", CODE_RAISED("E"), code_all);
  int len = snprintf(all, sizeof all, "%s64\r\n%.100s\r\n%x\r\n%s\r\n0\r\n\r\n",
                     "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", lines, (unsigned)size - 100, lines + 100);
  files_each_allocation(NULL, code_try_run, all, (size_t)len);
  files_each_allocation(NULL, code_try_create, one, sizeof one - 1);
  files_each_allocation(NULL, code_try_list, two, sizeof two - 1);
  files_each_allocation(NULL, code_try_remove, done_so, sizeof done_so - 1);
}

/* ---- end to end, with a python3 ---------------------------------------------------------------------------------- */

/* Runs code that must succeed; the text of its value, valid until the next call. */
static const char *code_text(fixture *f, const char *code, const e2b_run_code_opts *opts) {
  static char text[1000];
  e2b_execution out;
  e2b_error err;
  memset(&out, 0, sizeof out);
  text[0] = 0;
  if (CHECK_OK(e2b_code_run(f->sandbox, code, opts, &out, &err)))
    snprintf(text, sizeof text, "%s", e2b_execution_text(&out));
  e2b_mem_free(&out.mem);
  return text;
}

static e2b_run_code_opts code_in(const e2b_code_context *context) {
  e2b_run_code_opts opts;
  memset(&opts, 0, sizeof opts);
  opts.context_id = context->id;
  return opts;
}

static void e2e_code_run(fixture *f) {
  e2b_execution out;
  e2b_error err;
  int count;
  memset(&out, 0, sizeof out);
  CHECK_OK(e2b_code_run(f->sandbox, "import sys\nx = 6\nprint('out')\nprint('err', file=sys.stderr)\nx * 7", NULL, &out,
                        &err));
  CHECK_STR(e2b_execution_text(&out), "42");
  CHECK_STR(out.stdout_data.ptr, "out\n");
  CHECK_STR(out.stderr_data.ptr, "err\n");
  count = out.execution_count;
  CHECK(count > 0);
  CHECK(!out.error && !out.truncated);
  e2b_mem_free(&out.mem);
  CHECK_STR(code_text(f, "x", NULL), "6"); /* it remembers */
  CHECK_STR(code_text(f, "x = 7", NULL), "");
  CHECK_STR(code_text(f, "'gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80 \"q\" \\\\ ' + str(x)", NULL),
            "gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80 \"q\" \\\\ 7");
  CHECK_RC(e2b_code_run(f->sandbox, "print('before')\ndef f():\n  return [][1]\nf()", NULL, &out, &err),
           E2B_CODE_FAILED);
  CHECK_STR(err.message, "IndexError: list index out of range");
  CHECK_STR(out.stdout_data.ptr, "before\n");
  if (CHECK(out.error != NULL)) {
    CHECK_STR(out.error->name, "IndexError");
    CHECK_HAS(out.error->traceback, "return [][1]");
  }
  CHECK_INT(out.execution_count, count + 4);
  e2b_mem_free(&out.mem);
  CHECK_RC(e2b_code_run(f->sandbox, "1 +", NULL, NULL, &err), E2B_CODE_FAILED);
  CHECK_HAS(err.message, "SyntaxError");
  CHECK_WORKS(f);
}

static void e2e_code_formats(fixture *f) {
  e2b_execution out;
  e2b_error err;
  memset(&out, 0, sizeof out);
  CHECK_OK(e2b_code_run(f->sandbox,
                        "class R:\n"
                        "  def __repr__(self): return 'plain'\n"
                        "  def _repr_html_(self): return '<b>'\n"
                        "  def _repr_png_(self): return b'\\x89P'\n"
                        "  def _repr_json_(self): return {'a': [1, None]}\n"
                        "  def _repr_mimebundle_(self, include=None, exclude=None):\n"
                        "    return {'e2b/chart': {'type': 'bar'}, 'e2b/data': {'c': [1]}, 'x/own': 1}\n"
                        "display(R(), 'shown')\n"
                        "R()",
                        NULL, &out, &err));
  if (CHECK_INT(out.result_count, 3)) {
    const e2b_code_result *r = &out.results[2];
    CHECK(r->is_main_result && !out.results[0].is_main_result);
    CHECK_STR(out.results[1].text.ptr, "shown");
    CHECK_INT(e2b_code_result_formats(r), E2B_FORMAT_TEXT | E2B_FORMAT_HTML | E2B_FORMAT_PNG | E2B_FORMAT_JSON |
                                              E2B_FORMAT_CHART | E2B_FORMAT_DATA | E2B_FORMAT_EXTRA);
    CHECK_INT(e2b_code_result_formats(&out.results[0]), e2b_code_result_formats(r));
    CHECK_STR(r->text.ptr, "plain");
    CHECK_STR(r->png.ptr, "iVA=");
    CHECK_STR(r->json.ptr, "{\"a\": [1, null]}");
    CHECK_STR(r->chart.ptr, "{\"type\": \"bar\"}");
    CHECK_STR(r->extra.ptr, "{\"x/own\": 1}");
  }
  e2b_mem_free(&out.mem);
}

/* The code waits for a file that the callback for its first line makes: output comes while it runs. */
typedef struct code_stream {
  fixture *f;
  code_log log;
  char path[200];
} code_stream;

static int code_make_file(void *user, const e2b_code_event *event) {
  code_stream *s = (code_stream *)user;
  static done made;
  e2b_files_opts opts;
  e2b_error err;
  memset(&opts, 0, sizeof opts);
  opts.call.on_done = on_done;
  opts.call.user = &made;
  if (event->kind == E2B_CODE_STDOUT && !s->log.len)
    CHECK_INT(e2b_files_write_text(s->f->sandbox, s->path, "x", &opts, NULL, &err), E2B_PENDING);
  if (event->kind == E2B_CODE_STDOUT) code_note(&s->log, "%s", event->text.ptr);
  return 0;
}

static void e2e_code_stream(fixture *f) {
  e2b_run_code_opts opts;
  e2b_error err;
  code_stream s;
  char code[1000];
  memset(&s, 0, sizeof s);
  memset(&opts, 0, sizeof opts);
  s.f = f;
  snprintf(s.path, sizeof s.path, "%s", in_dir(f, "go on"));
  snprintf(
      code, sizeof code,
      "import os, time\nprint('waiting')\nwhile not os.path.exists('%s'): time.sleep(0.01)\nprint('went on')",
      s.path);
  opts.on_event = code_make_file;
  opts.event_user = &s;
  opts.call.timeout_ms = 20000;
  CHECK_OK(e2b_code_run(f->sandbox, code, &opts, NULL, &err));
  CHECK_STR(s.log.text, "waiting\nwent on\n");
}

typedef struct code_big {
  sequence sequence;
  int pauses, events;
} code_big;

static int code_on_big(void *user, const e2b_code_event *event) {
  code_big *big = (code_big *)user;
  if (event->kind != E2B_CODE_STDOUT) return 0;
  (void)sequence_compare(&big->sequence, event->text.ptr, event->text.len);
  big->events++;
  return big->pauses-- > 0 ? E2B_PAUSE : 0;
}

/* Much output, in constant memory, with a consumer that rests now and then. */
static void e2e_code_backpressure(fixture *f) {
  e2b_run_code_opts opts;
  e2b_client_stats stats;
  e2b_error err;
  code_big big;
  done d;
  e2b_op op;
  uint64_t size = quick ? MIB : 8 * MIB;
  char code[200];
  memset(&big, 0, sizeof big);
  memset(&opts, 0, sizeof opts);
  memset(&d, 0, sizeof d);
  big.pauses = 5;
  snprintf(code, sizeof code, "print(''.join(f'{i}\\n' for i in range(1, 1500000))[:%lu], end='')", (unsigned long)size);
  opts.on_event = code_on_big;
  opts.event_user = &big;
  opts.call.op = &op;
  opts.call.on_done = on_done;
  opts.call.user = &d;
  CHECK_RC(e2b_code_run(f->sandbox, code, &opts, NULL, &err), E2B_PENDING);
  while (!d.count) {
    int events = big.events;
    while (big.events == events && !d.count) e2b_client_poll(f->client, 100);
    if (big.pauses >= 0 && !d.count) {
      events = big.events;
      files_drive(f->client, 20);
      CHECK_INT(big.events, events); /* paused is paused */
    }
    e2b_op_resume(f->client, op);
  }
  CHECK_OK(d.err.code);
  CHECK(big.sequence.total == size && !big.sequence.differs);
  e2b_client_get_stats(f->client, &stats);
  CHECK(stats.mem_peak < 2 * MIB || !the_host->control_plane); /* the real one sends lines of megabytes */
}

static void e2e_code_contexts(fixture *f) {
  e2b_code_context a, b;
  e2b_code_context_list list;
  e2b_run_code_opts in_a, in_b;
  e2b_execution out;
  e2b_error err;
  size_t i;
  int found = 0;
  memset(&a, 0, sizeof a);
  memset(&b, 0, sizeof b);
  memset(&list, 0, sizeof list);
  memset(&out, 0, sizeof out);
  CHECK_OK(e2b_code_create_context(f->sandbox, NULL, NULL, NULL, &a, &err));
  CHECK_OK(e2b_code_create_context(f->sandbox, f->dir, E2B_LANGUAGE_PYTHON, NULL, &b, &err));
  if (!CHECK(a.id && b.id && strcmp(a.id, b.id) != 0)) return;
  CHECK_STR(b.cwd, f->dir);
  CHECK_STR(b.language, "python");
  in_a = code_in(&a);
  in_b = code_in(&b);
  CHECK_STR(code_text(f, "v = 'of a'", &in_a), "");
  CHECK_STR(code_text(f, "v = 'of b'", &in_b), "");
  CHECK_STR(code_text(f, "v", &in_a), "of a");
  CHECK_STR(code_text(f, "import os\nos.getcwd()", &in_b), f->dir);
  CHECK_OK(e2b_code_list_contexts(f->sandbox, NULL, &list, &err));
  for (i = 0; i < list.count; i++) found += strcmp(list.items[i].id, a.id) == 0 || strcmp(list.items[i].id, b.id) == 0;
  CHECK_INT(found, 2);
  e2b_mem_free(&list.mem);
  CHECK_OK(e2b_code_restart_context(f->sandbox, a.id, NULL, &err));
  CHECK_RC(e2b_code_run(f->sandbox, "v", &in_a, &out, &err), E2B_CODE_FAILED);
  CHECK_STR(out.error ? out.error->name : "", "NameError");
  CHECK_INT(out.execution_count, 1);
  e2b_mem_free(&out.mem);
  CHECK_RC(e2b_code_run(f->sandbox, "import os\nos._exit(1)", &in_a, NULL, &err), E2B_CODE_FAILED);
  CHECK_HAS(err.message, "ContextRestarting");
  CHECK_STR(code_text(f, "1 + 1", &in_a), "2");
  CHECK_OK(e2b_code_remove_context(f->sandbox, a.id, NULL, &err));
  CHECK_RC(e2b_code_remove_context(f->sandbox, a.id, NULL, &err), E2B_ERR_NOT_FOUND);
  CHECK_INT(err.subject, E2B_SUBJECT_CONTEXT);
  CHECK_RC(e2b_code_restart_context(f->sandbox, "no such", NULL, &err), E2B_ERR_NOT_FOUND);
  CHECK_RC(e2b_code_run(f->sandbox, "1", &in_a, NULL, &err), E2B_ERR_NOT_FOUND);
  CHECK_HAS(err.message, a.id);
  CHECK_STR(code_text(f, "v", &in_b), "of b");
  in_b.context_id = NULL;
  in_b.language = E2B_LANGUAGE_JAVA;
  CHECK_RC(e2b_code_run(f->sandbox, "1", &in_b, NULL, &err), E2B_ERR_SERVICE);
  CHECK_HAS(err.message, "java");
  e2b_mem_free(&a.mem);
  e2b_mem_free(&b.mem);
}

static void e2e_code_envs_and_cwd(fixture *f) {
  static const e2b_kv pairs[] = { { "E2B_TEST_ONE", "say \"one\"" }, { "E2B_SANDBOX", "other" } };
  static const char code[] = "import os\n'%s %s' % (os.environ.get('E2B_TEST_ONE'), os.environ['E2B_SANDBOX'])";
  e2b_run_code_opts opts;
  char before[200];
  memset(&opts, 0, sizeof opts);
  snprintf(before, sizeof before, "%s", code_text(f, "import os\nos.getcwd()", NULL));
  opts.envs.items = pairs;
  opts.envs.count = 2;
  CHECK_STR(code_text(f, code, &opts), "say \"one\" other");
  CHECK_STR(code_text(f, code, NULL), "None true");
  memset(&opts, 0, sizeof opts);
  opts.cwd = f->dir;
  CHECK_STR(code_text(f, "os.getcwd()", &opts), f->dir);
  CHECK_STR(code_text(f, "os.getcwd()", NULL), before);
  CHECK_STR(code_text(f, "os.environ['HOME']", NULL), before);
}

/* A run that nobody waits for any more is interrupted; the context and what it knows live on. */
static void e2e_code_interrupt(fixture *f) {
  static const char endless[] = "import time\ntry:\n  while True:\n    print('again')\n    time.sleep(0.01)\n"
                                "except KeyboardInterrupt: pass";
  static const char sleeps[] =
      "try:\n  print('begun')\n  import time\n  time.sleep(100)\nexcept KeyboardInterrupt:\n  how = 'interrupted'";
  e2b_run_code_opts opts;
  e2b_execution out;
  e2b_error err;
  code_log l;
  done d;
  e2b_op op;
  int i;
  memset(&out, 0, sizeof out);
  for (i = 0; i < 3; i++) {
    CHECK_STR(code_text(f, "how = 'new'", NULL), "");
    opts = code_opts(&l);
    if (i == 0) opts.exec_timeout_ms = 1000;
    if (i == 1) opts.call.timeout_ms = 1000;
    if (i == 2) {
      memset(&d, 0, sizeof d);
      opts.call.op = &op;
      opts.call.on_done = on_done;
      opts.call.user = &d;
      CHECK_RC(e2b_code_run(f->sandbox, sleeps, &opts, NULL, &err), E2B_PENDING);
      FILES_UNTIL(f->client, l.count == 2);
      e2b_op_cancel(f->client, op);
      CHECK_INT(d.count, 0);
    } else {
      CHECK_RC(e2b_code_run(f->sandbox, sleeps, &opts, &out, &err), E2B_ERR_TIMEOUT);
      CHECK_STR(out.stdout_data.ptr, "begun\n");
      e2b_mem_free(&out.mem);
    }
    CHECK_STR(code_text(f, "how", NULL), "interrupted");
  }
  opts = code_opts(&l);
  l.cancel_at = 2;
  CHECK_RC(e2b_code_run(f->sandbox, endless, &opts, NULL, &err), E2B_ERR_CANCELED);
  CHECK_STR(code_text(f, "6 * 7", NULL), "42");
  CHECK_WORKS(f);
}

/* Runs at the same time: in one context one after the other, in two side by side. */
static void e2e_code_at_once(fixture *f) {
  static const char append[] =
      "import time\nif 'order' not in globals(): order = []\norder.append('a')\ntime.sleep(0.1)\n"
      "order.append('b')\n''.join(order)";
  e2b_code_context other;
  e2b_run_code_opts opts[4];
  e2b_execution out[4];
  e2b_error err;
  done d[4];
  char code[2][400];
  const char *path = in_dir(f, "pair");
  int i;
  memset(d, 0, sizeof d);
  memset(opts, 0, sizeof opts);
  memset(out, 0, sizeof out);
  memset(&other, 0, sizeof other);
  if (!CHECK_OK(e2b_code_create_context(f->sandbox, NULL, NULL, NULL, &other, &err))) return;
  for (i = 0; i < 4; i++) {
    opts[i].context_id = other.id;
    opts[i].call.on_done = on_done;
    opts[i].call.user = &d[i];
    CHECK_RC(e2b_code_run(f->sandbox, append, &opts[i], &out[i], &err), E2B_PENDING);
  }
  CHECK_OK(e2b_client_drain(f->client, 20000));
  for (i = 0; i < 4; i++) {
    const char *text = e2b_execution_text(&out[i]);
    CHECK_INT(d[i].err.code, E2B_OK);
    CHECK_INT(strlen(text), (size_t)(2 * out[i].execution_count));
    CHECK(!strstr(text, "aa") && !strstr(text, "bb"));
    e2b_mem_free(&out[i].mem);
  }
  opts[0].context_id = NULL;
  snprintf(code[0], sizeof code[0], "import os, time\nwhile not os.path.exists('%s'): time.sleep(0.01)", path);
  snprintf(code[1], sizeof code[1], "open('%s', 'w').close()", path);
  for (i = 0; i < 2; i++) CHECK_RC(e2b_code_run(f->sandbox, code[i], &opts[i], NULL, &err), E2B_PENDING);
  CHECK_OK(e2b_client_drain(f->client, 20000));
  CHECK_INT(d[0].err.code, E2B_OK);
  CHECK_INT(d[1].err.code, E2B_OK);
  e2b_mem_free(&other.mem);
}

static int code_kill_inside(void *user, const e2b_code_event *event) {
  e2b_sandbox *sandbox = (e2b_sandbox *)user;
  static done killed;
  e2b_call call;
  e2b_error err;
  memset(&call, 0, sizeof call);
  call.on_done = on_done;
  call.user = &killed;
  if (event->kind == E2B_CODE_STDOUT) CHECK_INT(e2b_sandbox_kill(sandbox, &call, NULL, &err), E2B_PENDING);
  return 0;
}

static void e2e_code_dead_sandbox(fixture *f) {
  e2b_run_code_opts opts;
  e2b_execution out;
  e2b_sandbox *sandbox;
  e2b_error err;
  memset(&opts, 0, sizeof opts);
  memset(&out, 0, sizeof out);
  if (!CHECK_OK(e2b_sandbox_create(f->client, NULL, NULL, &sandbox, &err))) return;
  opts.on_event = code_kill_inside;
  opts.event_user = sandbox;
  CHECK_RC(e2b_code_run(sandbox, "print('so far')\nimport time\ntime.sleep(100)", &opts, &out, &err),
           E2B_ERR_SANDBOX_GONE);
  CHECK_STR(out.stdout_data.ptr, "so far\n");
  e2b_mem_free(&out.mem);
  CHECK_RC(e2b_code_run(sandbox, "1", NULL, NULL, &err), E2B_ERR_SANDBOX_GONE);
  e2b_sandbox_free(sandbox);
  if (!CHECK_OK(e2b_sandbox_create(f->client, NULL, NULL, &sandbox, &err))) return;
  CHECK_OK(e2b_code_run(sandbox, "x = 'kept'", NULL, NULL, &err));
  CHECK_OK(e2b_sandbox_pause(sandbox, NULL, &err));
  CHECK_RC(e2b_code_run(sandbox, "x", NULL, NULL, &err), E2B_ERR_SANDBOX_PAUSED);
  e2b_sandbox_free(sandbox);
  CHECK_WORKS(f);
}

/* A paused sandbox that is resumed has its interpreters again, with what they knew. */
static void e2e_code_resumed(fixture *f) {
  e2b_sandbox *again = NULL;
  e2b_execution out;
  e2b_error err;
  memset(&out, 0, sizeof out);
  CHECK_STR(code_text(f, "x = 'kept'", NULL), "");
  CHECK_OK(e2b_sandbox_pause(f->sandbox, NULL, &err));
  if (!CHECK_OK(e2b_sandbox_connect(f->client, e2b_sandbox_id(f->sandbox), NULL, &again, &err))) return;
  CHECK_OK(e2b_code_run(again, "x", NULL, &out, &err));
  CHECK_STR(e2b_execution_text(&out), "kept");
  e2b_mem_free(&out.mem);
  e2b_sandbox_free(again);
}

/* By host name, path and header; and a port that nobody listens on. */
static void e2e_code_routes(fixture *f) {
  const char *authority = strstr(the_host->url, "//") + 2;
  e2b_client_config config;
  fixture other;
  e2b_error err;
  int i;
  for (i = 0; i < 5; i++) {
    if (the_host->kruise && i != 1 && i != 4) continue; /* nothing is outside of /kruise */
    config = host_config(the_host);
    memset(&other, 0, sizeof other);
    config.scheme = the_host->tls ? "https" : "http";
    if (i < 2) config.api_url = config.sandbox_url = NULL;
    if (i < 2) config.domain = authority;
    if (i < 2) config.protocol = i ? E2B_PROTOCOL_PRIVATE : E2B_PROTOCOL_NATIVE;
    if (i == 2) config.sandbox_base_url = the_host->url;
    if (i == 3) config.code_interpreter_base_url = the_host->url;
    if (i == 4) config.code_interpreter_port = 50000;
    config.allocator = heap_allocator(&other.memory);
    other.client = e2b_client_create(&config, &err);
    if (!CHECK(other.client != NULL)) continue;
    if (CHECK_OK(e2b_sandbox_create(other.client, NULL, NULL, &other.sandbox, &err))) {
      if (i < 4) {
        CHECK_STR(code_text(&other, "6 * 7", NULL), "42");
      } else {
        CHECK_RC(e2b_code_run(other.sandbox, "1", NULL, NULL, &err), E2B_ERR_UNAVAILABLE);
        CHECK_HAS(err.message, "no code interpreter");
        CHECK_HAS(err.message, "50000");
        CHECK(!err.maybe_done);
      }
      CHECK_OK(e2b_sandbox_close(other.sandbox, NULL, &err));
    }
    e2b_client_free(other.client);
    HEAP_CHECK_EMPTY(&other.memory);
  }
  CHECK_WORKS(f);
}

/* ================================================================================================================== */
/* >>>> trees */
/* ================================================================================================================== */

/* ---- many files of memory, against the scripted peer ---- */

static void many_items(e2b_write_item *items, size_t count) {
  static const char *const paths[] = { "/d/a \"q\\", "/d/b", "rel/\xc3\xa9", "/d/d", "/d/e", "/d/f", "/d/g", "/d/h" };
  static const char *const contents[] = { "one", "", "three\r\n--e2b-", "four", "five", "six", "seven", "eight" };
  size_t i;
  memset(items, 0, count * sizeof *items);
  for (i = 0; i < count; i++) {
    items[i].path = paths[i];
    items[i].data = contents[i];
    items[i].len = strlen(contents[i]);
    items[i].code = E2B_ERR_SERVICE;
  }
}

static e2b_bulk_opts many_opts(uint32_t parallel) {
  e2b_bulk_opts opts;
  memset(&opts, 0, sizeof opts);
  opts.parallel = parallel;
  return opts;
}

/* Confirms files of these names. */
static void many_say_written(peer *p, const char *names) {
  char all[2000] = "[";
  size_t len = 1;
  for (; *names; names += strcspn(names, ",") + (names[strcspn(names, ",")] == ','))
    len += (size_t)snprintf(all + len, sizeof all - len,
                            "%s{\"name\":\"x\",\"path\":\"/home/user/%.*s\",\"type\":\"file\"}", len > 1 ? "," : "",
                            (int)strcspn(names, ","), names);
  (void)snprintf(all + len, sizeof all - len, "]");
  files_say_text(p, "200 OK\r\ncontent-type: text/plain; charset=utf-8", all, 0);
}

typedef struct many_progress {
  int calls, cancel_at;
  e2b_bulk_stats last;
} many_progress;

static int many_on_progress(void *user, const e2b_bulk_stats *stats) {
  many_progress *seen = (many_progress *)user;
  CHECK(stats->files_done >= seen->last.files_done && stats->files_found >= seen->last.files_found);
  seen->last = *stats;
  return ++seen->calls == seen->cancel_at ? -1 : 0;
}

/* The bytes of a request for three files, and what counts as an answer. */
static void test_many_one_request(void) {
  files_bench b;
  e2b_write_item items[3];
  e2b_bulk_opts opts = many_opts(0);
  many_progress seen;
  e2b_kv header = { "x-mine", "1" };
  char boundary[64] = "", expected[1400], want[1500];
  const char *at;
  memset(&seen, 0, sizeof seen);
  files_begin(&b);
  files_open(&b, NULL, NULL);
  opts.user = "bob";
  opts.on_progress = many_on_progress;
  opts.callback_user = &seen;
  opts.call.headers.items = &header;
  opts.call.headers.count = 1;
  many_items(items, 3);
  many_say_written(&b.peer, "d/a \\\"q\\\\,d/b,rel/\xc3\xa9");
  CHECK_INT(e2b_files_write_many(b.sandbox, items, 3, &opts, &b.err), E2B_OK);
  CHECK_INT(peer_asked_count(&b.peer), 1);
  at = strstr(peer_asked(&b.peer, 0), "boundary=");
  if (at) (void)snprintf(boundary, sizeof boundary, "%.36s", at + 9);
  (void)snprintf(expected, sizeof expected,
                 "--%s\r\nContent-Disposition: form-data; name=\"file\"; filename=\"/d/a \\\"q\\\\\"\r\n"
                 "Content-Type: application/octet-stream\r\n\r\none\r\n"
                 "--%s\r\nContent-Disposition: form-data; name=\"file\"; filename=\"/d/b\"\r\n"
                 "Content-Type: application/octet-stream\r\n\r\n\r\n"
                 "--%s\r\nContent-Disposition: form-data; name=\"file\"; filename=\"rel/\xc3\xa9\"\r\n"
                 "Content-Type: application/octet-stream\r\n\r\nthree\r\n--e2b-\r\n--%s--\r\n",
                 boundary, boundary, boundary, boundary);
  (void)snprintf(want, sizeof want, "content-length: %lu\r\n\r\n%s", (unsigned long)strlen(expected), expected);
  CHECK(strlen(boundary) == 36 && strncmp(peer_asked(&b.peer, 0), "POST /files?username=bob HTTP/1.1\r\n", 35) == 0);
  CHECK_HAS(peer_asked(&b.peer, 0), want);
  CHECK_HAS(peer_asked(&b.peer, 0), "x-mine: 1\r\n");
  CHECK_HAS(peer_asked(&b.peer, 0), "x-access-token: tok\r\n");
  CHECK(items[0].code == E2B_OK && items[1].code == E2B_OK && items[2].code == E2B_OK);
  CHECK_INT(seen.last.files_done, 3);
  CHECK_INT(seen.last.files_found, 3);
  CHECK_INT(seen.last.bytes_done, 16);
  CHECK_INT(seen.last.bytes_found, 16);
  CHECK(seen.last.all_found);
  files_end(&b);
}

/* A request that fails comes again in halves; every file gets an answer of its own. */
static void test_many_halves(void) {
  static const char no[] = "{\"code\":400,\"message\":\"path is a directory: /d/d\"}";
  files_bench b;
  e2b_write_item items[4];
  e2b_bulk_opts opts = many_opts(1);
  files_begin(&b);
  files_open(&b, NULL, NULL);
  many_items(items, 4);
  files_say_text(&b.peer, "400 Bad Request", no, 0);
  many_say_written(&b.peer, "a \\\"q\\\\,b");
  files_say_text(&b.peer, "400 Bad Request", no, 0);
  files_say_written(&b.peer);
  files_say_text(&b.peer, "400 Bad Request", no, 0);
  CHECK_INT(e2b_files_write_many(b.sandbox, items, 4, &opts, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_STR(b.err.message, "1 of 4 failed, first /d/d: path is a directory: /d/d (HTTP 400)");
  CHECK_INT(peer_asked_count(&b.peer), 5);
  CHECK(items[0].code == E2B_OK && items[1].code == E2B_OK && items[2].code == E2B_OK);
  CHECK_INT(items[3].code, E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(items[3].message, "path is a directory");
  CHECK_STR(items[0].message, "");
  CHECK(strncmp(peer_asked(&b.peer, 3), "POST /files?path=rel%2F%C3%A9 ", 30) == 0);
  CHECK(strncmp(peer_asked(&b.peer, 4), "POST /files?path=%2Fd%2Fd ", 26) == 0);
  files_end(&b);
}

/* An answer that does not name every file proves nothing: each is then sent alone, and no more requests are shared. */
static void test_many_unconfirmed(void) {
  static const char *const answers[] = { "", "b", "a \\\"q\\\\,b,c", "b,a \\\"q\\\\" };
  files_bench b;
  e2b_write_item items[4];
  e2b_bulk_opts opts = many_opts(1);
  size_t i, k;
  files_begin(&b);
  for (i = 0; i < E2B__COUNT(answers); i++) {
    peer_clear(&b.peer);
    files_open(&b, NULL, NULL);
    opts.batch_bytes = 400; /* two requests */
    many_items(items, 4);
    many_say_written(&b.peer, answers[i]);
    for (k = 0; k < 4; k++) files_say_written(&b.peer);
    CHECK_INT(e2b_files_write_many(b.sandbox, items, 4, &opts, &b.err), E2B_OK);
    CHECK_INT(peer_asked_count(&b.peer), 5);
    for (k = 0; k < 4; k++) CHECK_INT(items[k].code, E2B_OK);
    for (k = 1; k < 5; k++) CHECK_HAS(peer_asked(&b.peer, (int)k), "POST /files?path=");
    files_close(&b);
    memset(&b.heap, 0, sizeof b.heap);
  }
  peer_stop(&b.peer);
}

/* A loss on the way is tried once more; what concerns all files ends it at once; stop_on_error ends it at the first. */
static void test_many_losses(void) {
  static const char busy[] = "{\"code\":400,\"message\":\"no\"}";
  files_bench b;
  e2b_write_item items[4];
  e2b_bulk_opts opts = many_opts(1);
  int i;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  many_items(items, 2);
  peer_say(&b.peer, "", PEER_CLOSE);
  many_say_written(&b.peer, "a \\\"q\\\\,b");
  CHECK_INT(e2b_files_write_many(b.sandbox, items, 2, &opts, &b.err), E2B_OK);
  CHECK_INT(peer_asked_count(&b.peer), 2);

  peer_clear(&b.peer);
  for (i = 0; i < 4; i++) peer_say(&b.peer, "", PEER_CLOSE);
  opts.batch_bytes = 1;
  CHECK_INT(e2b_files_write_many(b.sandbox, items, 1, &opts, &b.err), E2B_ERR_CLOSED);
  CHECK_INT(items[0].code, E2B_ERR_CLOSED);

  peer_clear(&b.peer);
  files_say_text(&b.peer, "500 Internal Server Error", "{\"code\":500,\"message\":\"mkdir /d: file exists\"}", 0);
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_write_many(b.sandbox, items, 1, &opts, &b.err), E2B_OK);

  peer_clear(&b.peer);
  files_say_text(&b.peer, "401 Unauthorized", "{\"code\":401,\"message\":\"bad token\"}", 0);
  many_items(items, 4);
  CHECK_INT(e2b_files_write_many(b.sandbox, items, 4, &opts, &b.err), E2B_ERR_UNAUTHENTICATED);
  CHECK_INT(peer_asked_count(&b.peer), 1);
  CHECK_INT(items[3].code, E2B_ERR_UNAUTHENTICATED);
  CHECK_HAS(items[3].message, "not tried");
  CHECK(!strstr(items[0].message, "not tried"));

  peer_clear(&b.peer);
  files_say_written(&b.peer);
  files_say_text(&b.peer, "400 Bad Request", busy, 0);
  opts.stop_on_error = true;
  many_items(items, 4);
  CHECK_INT(e2b_files_write_many(b.sandbox, items, 4, &opts, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(peer_asked_count(&b.peer), 2);
  CHECK(items[0].code == E2B_OK && items[1].code == E2B_ERR_INVALID_ARGUMENT && items[2].code == E2B_ERR_CANCELED);
  files_end(&b);
}

/* With fewer operations allowed than it would like, it takes what it gets. */
static void test_many_max_ops(void) {
  files_bench b;
  e2b_write_item items[8];
  e2b_bulk_opts opts = many_opts(8);
  uint32_t n;
  int i;
  files_begin(&b);
  for (n = 1; n < 5; n++) {
    b.config.max_ops = n;
    files_open(&b, NULL, NULL);
    peer_clear(&b.peer);
    for (i = 0; i < 8; i++) files_say_written(&b.peer);
    many_items(items, 8);
    opts.batch_bytes = 1;
    CHECK_INT(e2b_files_write_many(b.sandbox, items, 8, &opts, &b.err), n == 1 ? E2B_ERR_BUSY : E2B_OK);
    CHECK_INT(peer_asked_count(&b.peer), n == 1 ? 0 : 8);
    files_close(&b);
    memset(&b.heap, 0, sizeof b.heap);
  }
  peer_stop(&b.peer);
}

/* One deadline, one handle, cancel from outside and from the callback. */
static void test_many_ends(void) {
  files_bench b;
  e2b_write_item items[4];
  e2b_bulk_opts opts = many_opts(2);
  many_progress seen;
  e2b_op op = { 0 };
  done d;
  memset(&d, 0, sizeof d);
  memset(&seen, 0, sizeof seen);
  files_begin(&b);
  files_open(&b, NULL, NULL);
  peer_say(&b.peer, "HTTP/1.1 200 OK\r\n", PEER_HANG | PEER_REPEAT);
  many_items(items, 4);
  opts.batch_bytes = 1;
  opts.call.timeout_ms = 50;
  CHECK_INT(e2b_files_write_many(b.sandbox, items, 4, &opts, &b.err), E2B_ERR_TIMEOUT);
  CHECK(b.err.maybe_done);
  CHECK(items[0].code == E2B_PENDING && items[3].code == E2B_PENDING);
  CHECK(peer_asked_count(&b.peer) <= 2);

  opts.call.timeout_ms = 0;
  opts.call.op = &op;
  CHECK_INT(e2b_files_write_many(b.sandbox, items, 4, &opts, &b.err), E2B_PENDING);
  files_drive(b.client, 20);
  CHECK_INT(e2b_op_poll(b.client, op, &b.err), E2B_PENDING);
  e2b_op_cancel(b.client, op);
  CHECK_INT(e2b_op_poll(b.client, op, &b.err), E2B_ERR_BAD_STATE);
  opts.call.on_done = on_done;
  opts.call.user = &d;
  CHECK_INT(e2b_files_write_many(b.sandbox, items, 4, &opts, &b.err), E2B_PENDING);
  files_drive(b.client, 20);
  e2b_sandbox_free(b.sandbox);
  FILES_UNTIL(b.client, d.count == 1);
  CHECK_INT(d.err.code, E2B_ERR_CANCELED);
  files_close(&b);

  memset(&b.heap, 0, sizeof b.heap);
  files_open(&b, NULL, NULL);
  peer_clear(&b.peer);
  files_say_written(&b.peer);
  opts = many_opts(1);
  opts.batch_bytes = 1;
  opts.on_progress = many_on_progress;
  opts.callback_user = &seen;
  seen.cancel_at = 1;
  many_items(items, 4);
  peer_say(&b.peer, "HTTP/1.1 200 OK\r\n", PEER_HANG | PEER_REPEAT);
  CHECK_INT(e2b_files_write_many(b.sandbox, items, 4, &opts, &b.err), E2B_ERR_CANCELED);
  CHECK(items[0].code == E2B_OK && items[3].code == E2B_PENDING);
  files_end(&b);
}

static void test_many_reads(void) {
  static const char gone[] = "{\"code\":404,\"message\":\"path '/b' does not exist\"}";
  files_bench b;
  e2b_read_item items[3];
  e2b_bulk_opts opts = many_opts(1);
  char small[4];
  size_t i;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  memset(items, 0, sizeof items);
  items[0].path = "/a";
  items[1].path = "/b";
  items[2].path = "/c";
  items[2].content.mem.ptr = small;
  items[2].content.mem.cap = sizeof small;
  items[2].content.mem.fixed = true;
  files_say_text(&b.peer, "200 OK", "hello", 0);
  files_say_text(&b.peer, "404 Not Found", gone, 0);
  files_say_text(&b.peer, "200 OK", "hello", 0);
  CHECK_INT(e2b_files_read_many(b.sandbox, items, 3, &opts, &b.err), E2B_ERR_NOT_FOUND);
  CHECK_HAS(b.err.message, "2 of 3 failed, first /b: ");
  CHECK_INT(b.err.subject, E2B_SUBJECT_FILE);
  CHECK_STR((const char *)items[0].content.data, "hello");
  CHECK(items[0].code == E2B_OK && items[1].code == E2B_ERR_NOT_FOUND && items[2].code == E2B_ERR_BUFFER_TOO_SMALL);
  CHECK_INT(items[2].content.mem.len, 6);
  for (i = 0; i < 3; i++) e2b_mem_free(&items[i].content.mem);
  files_end(&b);
}

static void test_many_arguments(void) {
  files_bench b;
  e2b_write_item items[2];
  e2b_read_item read;
  e2b_bulk_opts opts = many_opts(0);
  files_begin(&b);
  files_open(&b, NULL, NULL);
  many_items(items, 2);
  CHECK_INT(e2b_files_write_many(NULL, items, 2, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_write_many(b.sandbox, NULL, 2, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "items");
  items[1].path = "";
  CHECK_INT(e2b_files_write_many(b.sandbox, items, 2, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_STR(b.err.message, "items[1].path is empty");
  items[1].path = "a\r\nb";
  CHECK_INT(e2b_files_write_many(b.sandbox, items, 2, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  items[1].path = "a";
  items[1].data = NULL;
  items[1].len = 1;
  CHECK_INT(e2b_files_write_many(b.sandbox, items, 2, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_STR(b.err.message, "items[1].data is NULL");
  opts.user = "a:b";
  CHECK_INT(e2b_files_write_many(b.sandbox, items, 1, &opts, &b.err), E2B_ERR_INVALID_ARGUMENT);
  memset(&read, 0, sizeof read);
  CHECK_INT(e2b_files_read_many(b.sandbox, &read, 1, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(e2b_files_read_many(b.sandbox, NULL, 0, NULL, &b.err), E2B_OK);
  CHECK_INT(e2b_files_write_many(b.sandbox, NULL, 0, NULL, NULL), E2B_OK);
  CHECK_INT(e2b_files_upload_tree(b.sandbox, "", "/x", NULL, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "local_dir");
  CHECK_INT(e2b_files_upload_tree(b.sandbox, "/nowhere/at/all", "/x", NULL, NULL, &b.err), E2B_ERR_IO);
  CHECK_INT(b.err.sys_code, ENOENT);
  CHECK_INT(e2b_files_upload_tree(b.sandbox, ".", "", NULL, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "remote_dir");
  CHECK_INT(e2b_files_download_tree(b.sandbox, "/x", "/nowhere/at/all", NULL, NULL, &b.err), E2B_ERR_IO);
  CHECK_INT(e2b_files_download_tree(NULL, "/x", "/tmp", NULL, NULL, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_INT(peer_asked_count(&b.peer), 0);
  files_end(&b);
}

/* ---- trees, against the scripted peer ---- */

/* A new directory of this machine for a test; valid until the next one. */
static const char *tree_dir(void) {
  static char path[200];
  static unsigned count;
  (void)snprintf(path, sizeof path, "%s/tree-%u", work_dir, ++count);
  CHECK(mkdir(path, 0777) == 0);
  return path;
}

/* Runs a command line on this machine with $D as that directory; false when it fails. */
static bool tree_shell(const char *dir, const char *command) {
  bool good;
  setenv("D", dir, 1);
  good = system(command) == 0;
  unsetenv("D");
  return good;
}

static void test_tree_names(void) {
  static const struct {
    const char *name;
    bool here, windows; /* allowed */
  } names[] = {
    { "a", true, true },           { "", false, false },         { ".", false, false },        { "..", false, false },
    { "...", true, false },        { "a/b", false, false },      { "/a", false, false },       { "a\\b", true, false },
    { "..\\a", true, false },      { "C:", true, false },        { "a:b", true, false },       { "a\nb", false, false },
    { "a\x7f", false, false },     { "nul", true, false },       { "NUL.txt", true, false },   { "Con .x", true, false },
    { "com1", true, false },       { "COM0.a.b", true, false },  { "lpt9", true, false },      { "com\xc2\xb9", true, false },
    { "comx", true, true },        { "com10", true, true },      { "conin$", true, false },    { "a.", true, false },
    { "a ", true, false },         { " a", true, true },         { "\xc3\xa9", true, true },   { "a?", true, false },
    { "nulx", true, true },        { "~", true, true },          { "-rf", true, true },
  };
  char longest[300];
  size_t i;
  for (i = 0; i < E2B__COUNT(names); i++) {
    CHECK_INT(!e2b__local_refused(e2b__str(names[i].name), false), names[i].here);
    CHECK_INT(!e2b__local_refused(e2b__str(names[i].name), true), names[i].windows);
  }
  CHECK(e2b__local_refused(e2b__str_n("a\0b", 3), false) != NULL);
  memset(longest, 'a', sizeof longest);
  CHECK(e2b__local_refused(e2b__str_n(longest, 255), false) == NULL);
  CHECK(e2b__local_refused(e2b__str_n(longest, 256), false) != NULL);
}

static void tree_entry(e2b__entry_info *entry, const char *name, size_t len, int32_t type) {
  files_make_entry(entry, "/r/x");
  entry->name = e2b__str_n(name, len);
  entry->type = type;
  entry->size = 4;
}

static void tree_say_list(peer *p, e2b__entry_info *entries, size_t count) {
  e2b__list_dir_response response;
  memset(&response, 0, sizeof response);
  response.entries.items = entries;
  response.entries.count = count;
  files_say_message(p, &e2b__msg_list_dir_response, &response);
}

typedef struct tree_seen {
  int done, failed, skipped, cancel_at;
  e2b_err last;
  char message[200];
} tree_seen;

static int tree_on_file(void *user, const e2b_bulk_file *file) {
  tree_seen *seen = (tree_seen *)user;
  if (file->skipped) seen->skipped++;
  else if (file->result->code) seen->failed++;
  else seen->done++;
  if (file->result->code) seen->last = file->result->code;
  (void)snprintf(seen->message, sizeof seen->message, "%.199s", file->result->message);
  CHECK(file->name[0] != '/' && !strstr(file->name, "..") && !strstr(file->name, "//"));
  return seen->done + seen->failed + seen->skipped == seen->cancel_at ? -1 : 0;
}

static e2b_bulk_opts tree_opts(tree_seen *seen) {
  e2b_bulk_opts opts = many_opts(1);
  memset(seen, 0, sizeof *seen);
  opts.on_file = tree_on_file;
  opts.callback_user = seen;
  return opts;
}

/* A sandbox that lies in its listings. Whatever it says, nothing is written outside of the directory. */
static void test_tree_lies(void) {
  static const struct {
    const char *name;
    size_t len;
  } lies[] = {
    { "..", 2 },          { ".", 1 },     { "", 0 },    { "../../evil", 10 },      { "/tmp/evil", 9 },
    { "a/../../evil", 12 }, { "a\0/../e", 7 }, { "x\n", 2 }, { "..\0", 3 },           { "in/side", 7 },
  };
  const char *base = tree_dir();
  char target[220];
  files_bench b;
  e2b__entry_info entries[16];
  e2b_bulk_stats stats;
  tree_seen seen;
  e2b_bulk_opts opts = tree_opts(&seen);
  size_t i, n = E2B__COUNT(lies);
  (void)snprintf(target, sizeof target, "%s/target", base);
  /* links in the way: to a directory, to a file, and one that leads nowhere; a directory where a file is to be */
  CHECK(tree_shell(base, "cd \"$D\" && mkdir target outside target/taken && touch outside/kept &&"
                         " ln -s ../outside target/link && ln -s ../outside/kept target/file &&"
                         " ln -s ../outside/new target/dangling"));
  files_begin(&b);
  files_open(&b, NULL, NULL);
  for (i = 0; i < n; i++) tree_entry(&entries[i], lies[i].name, lies[i].len, (int32_t)(1 + i % 2));
  tree_entry(&entries[n], "link", 4, E2B__FILE_TYPE_DIRECTORY);
  tree_entry(&entries[n + 1], "file", 4, E2B__FILE_TYPE_FILE);
  tree_entry(&entries[n + 2], "dangling", 8, E2B__FILE_TYPE_FILE);
  tree_entry(&entries[n + 3], "taken", 5, E2B__FILE_TYPE_FILE);
  tree_say_list(&b.peer, entries, n + 4);
  files_say_text(&b.peer, "200 OK", "evil", 0);
  files_say_text(&b.peer, "200 OK", "evil", 0);
  files_say_text(&b.peer, "200 OK", "evil", 0);
  tree_entry(&entries[0], "new", 3, E2B__FILE_TYPE_FILE);
  tree_say_list(&b.peer, entries, 1); /* of target/link */
  files_say_text(&b.peer, "200 OK", "evil", 0);
  CHECK_INT(e2b_files_download_tree(b.sandbox, "/r", target, &opts, &stats, &b.err), E2B_ERR_PROTOCOL);
  CHECK_HAS(b.err.message, "12 of 14 failed, first ?: refused the name \"..\"");
  CHECK_INT(stats.files_failed, (long)n + 2); /* the directory link, the taken name */
  CHECK_INT(stats.files_done, 2);
  CHECK_INT(seen.failed, (long)n + 2);
  CHECK(tree_shell(base, "cd \"$D\" && test \"$(find . | sort | tr '\\n' ' ')\" ="
                         " \". ./outside ./outside/kept ./target ./target/dangling ./target/file ./target/link"
                         " ./target/taken \" && test ! -s outside/kept && test -L target/link && test ! -L target/file &&"
                         " test \"$(cat target/file target/dangling)\" = evilevil"));
  files_end(&b);
  CHECK(tree_shell(base, "rm -r \"$D\""));
}

/* Listings without end, more content than allowed, links, and what is neither a file nor a directory. */
static void test_tree_limits(void) {
  const char *base = tree_dir();
  files_bench b;
  e2b__entry_info entries[6];
  e2b_bulk_stats stats;
  tree_seen seen;
  e2b_bulk_opts opts = tree_opts(&seen);
  e2b__buf again, list;
  e2b__mem mem;
  e2b__list_dir_response response;
  files_begin(&b);
  files_open(&b, NULL, NULL);
  tree_entry(&entries[0], "d", 1, E2B__FILE_TYPE_DIRECTORY);
  memset(&response, 0, sizeof response);
  response.entries.items = entries;
  response.entries.count = 1;
  e2b__mem_init(&mem, NULL);
  e2b__buf_init(&again, &mem, SIZE_MAX);
  e2b__buf_text(&again, "HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: ");
  e2b__buf_init(&list, &mem, SIZE_MAX);
  e2b__pb_encode(&e2b__msg_list_dir_response, &response, &list);
  e2b__buf_u64(&again, list.len);
  e2b__buf_text(&again, "\r\n\r\n");
  e2b__buf_put(&again, list.data, list.len);
  e2b__buf_free(&list);
  peer_say_n(&b.peer, (const char *)again.data, again.len, PEER_REPEAT);
  e2b__buf_free(&again);
  CHECK_INT(e2b_files_download_tree(b.sandbox, "/r", base, &opts, &stats, &b.err), E2B_ERR_LIMIT);
  CHECK_INT(stats.dirs_found, 128);
  opts.max_files = 5;
  CHECK_INT(e2b_files_download_tree(b.sandbox, "/r", base, &opts, &stats, &b.err), E2B_ERR_LIMIT);
  CHECK_INT(stats.dirs_found, 5);
  CHECK_HAS(b.err.message, "max_files");

  peer_clear(&b.peer);
  opts = tree_opts(&seen);
  opts.max_bytes = 10;
  tree_entry(&entries[0], "a", 1, E2B__FILE_TYPE_FILE);
  tree_entry(&entries[1], "b", 1, E2B__FILE_TYPE_FILE);
  tree_entry(&entries[2], "c", 1, E2B__FILE_TYPE_FILE);
  tree_say_list(&b.peer, entries, 3);
  files_say_text(&b.peer, "200 OK", "1234", 0);
  files_say_text(&b.peer, "200 OK", "12345678", 0);
  CHECK_INT(e2b_files_download_tree(b.sandbox, "/r", base, &opts, &stats, &b.err), E2B_ERR_LIMIT);
  CHECK_INT(stats.files_done, 1);
  CHECK_INT(stats.bytes_done, 4);
  CHECK(tree_shell(base, "cd \"$D\" && rm -r d && test \"$(ls -A | tr '\\n' ' ')\" = 'a '"));

  peer_clear(&b.peer);
  opts = tree_opts(&seen);
  tree_entry(&entries[0], "in", 2, E2B__FILE_TYPE_FILE);
  tree_entry(&entries[1], "out", 3, E2B__FILE_TYPE_FILE);
  tree_entry(&entries[2], "dir", 3, E2B__FILE_TYPE_DIRECTORY);
  tree_entry(&entries[3], "fifo", 4, 0);
  tree_entry(&entries[4], "prefix", 6, E2B__FILE_TYPE_FILE);
  entries[0].path = e2b__str("/r/in");
  entries[0].has_symlink_target = entries[1].has_symlink_target = entries[2].has_symlink_target = true;
  entries[4].has_symlink_target = true;
  entries[0].symlink_target = e2b__str("/r/x/y");
  entries[1].symlink_target = e2b__str("/etc/passwd");
  entries[2].symlink_target = e2b__str("/r/x");
  entries[4].symlink_target = e2b__str("/rx/y");
  tree_say_list(&b.peer, entries, 5);
  files_say_text(&b.peer, "200 OK", "1234", 0);
  CHECK_INT(e2b_files_download_tree(b.sandbox, "/r///", base, &opts, &stats, &b.err), E2B_OK);
  CHECK_INT(stats.files_skipped, 4);
  CHECK_INT(stats.files_done, 1);
  CHECK_INT(seen.skipped, 4);
  CHECK_HAS(peer_asked(&b.peer, 1), "GET /files?path=%2Fr%2Fin ");
  CHECK(tree_shell(base, "cd \"$D\" && test \"$(ls -A | tr '\\n' ' ')\" = 'a in '"));
  files_end(&b);
  CHECK(tree_shell(base, "rm -r \"$D\""));
}

/* Downloads that break: tried once more, then nothing is there under the name nor beside it; what was there stays. */
static void test_tree_broken_downloads(void) {
  static const char cut[] = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n1234";
  const char *base = tree_dir();
  files_bench b;
  e2b__entry_info entries[2];
  e2b_bulk_stats stats;
  tree_seen seen;
  e2b_bulk_opts opts = tree_opts(&seen);
  e2b_op op;
  CHECK(tree_shell(base, "echo old >\"$D/a\""));
  files_begin(&b);
  files_open(&b, NULL, NULL);
  tree_entry(&entries[0], "a", 1, E2B__FILE_TYPE_FILE);
  tree_entry(&entries[1], "b", 1, E2B__FILE_TYPE_FILE);
  tree_say_list(&b.peer, entries, 2);
  peer_say(&b.peer, cut, PEER_CLOSE);
  files_say_text(&b.peer, "200 OK", "12345678", 0);
  peer_say(&b.peer, cut, PEER_CLOSE);
  CHECK_INT(e2b_files_download_tree(b.sandbox, "/r", base, &opts, &stats, &b.err), E2B_ERR_TRUNCATED);
  CHECK_INT(stats.files_done, 1);
  CHECK_INT(stats.files_failed, 1);
  CHECK_INT(stats.bytes_done, 8);
  CHECK_HAS(b.err.message, "1 of 2 failed, first a: after 4 of 8 bytes");
  CHECK(tree_shell(base, "cd \"$D\" && test \"$(ls -A | tr '\\n' ' ')\" = 'a b ' && test \"$(cat a)\" = old"));

  peer_clear(&b.peer);
  tree_say_list(&b.peer, entries, 2);
  peer_say(&b.peer, cut, PEER_HANG | PEER_REPEAT);
  opts.call.op = &op;
  CHECK_INT(e2b_files_download_tree(b.sandbox, "/r", base, &opts, &stats, &b.err), E2B_PENDING);
  FILES_UNTIL(b.client, stats.files_found == 2);
  files_drive(b.client, 30);
  e2b_op_cancel(b.client, op);
  CHECK(tree_shell(base, "cd \"$D\" && test \"$(ls -A | tr '\\n' ' ')\" = 'a b ' && test \"$(cat a)\" = old"));

  peer_clear(&b.peer);
  opts.call.op = NULL;
  files_say_text(&b.peer, "404 Not Found\r\ncontent-type: application/json",
                 "{\"code\":\"not_found\",\"message\":\"path not found\"}", 0);
  CHECK_INT(e2b_files_download_tree(b.sandbox, "/r", base, &opts, &stats, &b.err), E2B_ERR_NOT_FOUND);
  CHECK_INT(b.err.subject, E2B_SUBJECT_FILE);
  CHECK_HAS(b.err.message, "first /r: ");

  peer_clear(&b.peer);
  opts = tree_opts(&seen);
  seen.cancel_at = 1;
  tree_say_list(&b.peer, entries, 2);
  files_say_text(&b.peer, "200 OK", "12345678", 0);
  CHECK_INT(e2b_files_download_tree(b.sandbox, "/r", base, &opts, &stats, &b.err), E2B_ERR_CANCELED);
  CHECK_INT(seen.done, 1);
  files_end(&b);
  CHECK(tree_shell(base, "rm -r \"$D\""));
}

/* What became a link after it was found is not opened either. */
static void tree_check_opens(const char *base) {
  static const char *const names[] = { "abs", "in", "dir/b", "fifo", "d", "none", "d/b" };
  test_heap heap;
  e2b__mem mem;
  e2b__local_root root;
  e2b__local_file file;
  uint64_t size;
  size_t i;
  heap_mem(&heap, &mem);
  CHECK_INT(e2b__local_root_open(&root, &mem, base, false), 0);
  for (i = 0; i < E2B__COUNT(names); i++) {
    e2b__local_file_init(&file);
    CHECK_INT(e2b__local_open(&root, names[i], &file, &size) == 0, i == E2B__COUNT(names) - 1);
    e2b__local_close(&file);
  }
  e2b__local_root_close(&root);
  HEAP_CHECK_EMPTY(&heap);
}

/* Links of every kind, a pipe, and a name that no request can carry. */
static void test_tree_odd_uploads(void) {
  const char *base = tree_dir();
  files_bench b;
  e2b_bulk_stats stats;
  tree_seen seen;
  e2b_bulk_opts opts = tree_opts(&seen);
  CHECK(tree_shell(base, "cd \"$D\" && echo 1 >a && mkdir d && echo 2 >d/b && mkfifo fifo &&"
                         " touch \"$(printf 'bad\\nname')\" && ln -s a in && ln -s in in2 && ln -s .. up &&"
                         " ln -s /etc/passwd abs && ln -s d dir && ln -s ../x out && "
                         "ln -s d/../a round && ln -s loop loop && ln -s dir/b through"));
  files_begin(&b);
  files_open(&b, NULL, NULL);
  opts.batch_bytes = 1;
  peer_say(&b.peer, "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n" FILES_WRITTEN, PEER_REPEAT);
  CHECK_INT(e2b_files_upload_tree(b.sandbox, base, "/r/", &opts, &stats, &b.err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(b.err.message, "1 of 6 failed, first bad name: the name has a control character");
  CHECK_INT(stats.files_done, 5); /* a, d/b, in, in2, round */
  CHECK_INT(stats.files_skipped, 7);
  CHECK_INT(stats.bytes_done, 10);
  CHECK_INT(stats.dirs_found, 1);
  CHECK_INT(seen.skipped, 7);
  CHECK(stats.all_found);
  tree_check_opens(base);

  /* an envd that takes forms only: the file is read again; a directory with nothing but links is made */
  peer_clear(&b.peer);
  opts = tree_opts(&seen);
  CHECK(tree_shell(base, "rm -r \"$D\"/* && cd \"$D\" && echo 1 >a && mkdir links && ln -s / links/root"));
  files_say_text(&b.peer, "400 Bad Request",
                 "{\"code\":400,\"message\":\"unsupported content type: application/octet-stream\"}", 0);
  peer_say(&b.peer, "HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 0\r\n\r\n", 0);
  files_say_written(&b.peer);
  CHECK_INT(e2b_files_upload_tree(b.sandbox, base, "/r", &opts, &stats, &b.err), E2B_OK);
  CHECK_INT(stats.bytes_done, 2);
  CHECK_INT(stats.files_done, 1);
  CHECK_HAS(peer_asked(&b.peer, 0), "content-type: application/octet-stream");
  CHECK_HAS(peer_asked(&b.peer, 1), "POST /filesystem.Filesystem/MakeDir ");
  CHECK_HAS(peer_asked(&b.peer, 2), "content-type: multipart/form-data");
  CHECK_HAS(peer_asked(&b.peer, 2), "\r\n\r\n1\n\r\n--");
  files_end(&b);
  CHECK(tree_shell(base, "rm -r \"$D\""));
}

/* Every allocation fails once. */
static e2b_err many_try_writes(files_bench *b) {
  e2b_write_item items[2];
  e2b_err code;
  many_items(items, 2);
  items[0].path = "/a/f";
  items[1].path = "/b/f";
  code = e2b_files_write_many(b->sandbox, items, 2, NULL, &b->err);
  CHECK((code == E2B_OK) == (items[0].code == E2B_OK && items[1].code == E2B_OK));
  return code;
}

static e2b_err many_try_reads(files_bench *b) {
  e2b_read_item items[2];
  e2b_err code;
  memset(items, 0, sizeof items);
  items[0].path = items[1].path = "/x";
  code = e2b_files_read_many(b->sandbox, items, 2, NULL, &b->err);
  e2b_mem_free(&items[0].content.mem);
  e2b_mem_free(&items[1].content.mem);
  return code;
}

static char tree_local[200];

static e2b_err many_try_upload(files_bench *b) {
  e2b_bulk_stats stats;
  e2b_err code = e2b_files_upload_tree(b->sandbox, tree_local, "/r", NULL, &stats, &b->err);
  CHECK(code || stats.files_done == 2);
  return code;
}

static e2b_err many_try_download(files_bench *b) {
  e2b__entry_info entries[2];
  e2b_bulk_opts opts = many_opts(1);
  e2b_err code;
  peer_clear(&b->peer);
  tree_entry(&entries[0], "a", 1, E2B__FILE_TYPE_FILE);
  tree_entry(&entries[1], "b", 1, E2B__FILE_TYPE_FILE);
  tree_say_list(&b->peer, entries, 2);
  peer_say(&b->peer, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n1234", PEER_REPEAT);
  code = e2b_files_download_tree(b->sandbox, "/r", tree_local, &opts, NULL, &b->err);
  CHECK(tree_shell(tree_local, "! ls -A \"$D\" | grep -q part"));
  return code;
}

static void test_many_no_memory(void) {
  static const char written[] = "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n"
                                "[{\"name\":\"f\",\"path\":\"/home/user/f\",\"type\":\"file\"}"
                                ",{\"name\":\"f\",\"path\":\"/home/user/f\",\"type\":\"file\"}]";
  static const char content[] = "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n01234567890123456789";
  (void)snprintf(tree_local, sizeof tree_local, "%s", tree_dir());
  CHECK(tree_shell(tree_local, "cd \"$D\" && mkdir a b && echo x >a/f && ln -s ../a/f b/f"));
  files_each_allocation(NULL, many_try_writes, written, sizeof written - 1);
  files_each_allocation(NULL, many_try_reads, content, sizeof content - 1);
  files_each_allocation(NULL, many_try_upload, written, sizeof written - 1);
  CHECK(tree_shell(tree_local, "rm -r \"$D\"/*"));
  files_each_allocation(NULL, many_try_download, content, sizeof content - 1);
  CHECK(tree_shell(tree_local, "rm -r \"$D\""));
}

/* ---- end to end ---- */

static void e2e_write_many(fixture *f) {
  enum { COUNT = 300 };
  static e2b_write_item items[COUNT];
  static e2b_read_item back[COUNT];
  static char paths[COUNT][200];
  static uint8_t data[600000];
  e2b_bulk_opts opts = many_opts(8);
  many_progress seen;
  uint64_t seed = 7, total = 0;
  e2b_error err;
  size_t i;
  memset(&seen, 0, sizeof seen);
  memset(items, 0, sizeof items);
  memset(back, 0, sizeof back);
  noise(&seed, data, sizeof data);
  for (i = 0; i < COUNT; i++) {
    (void)snprintf(paths[i], sizeof paths[i], "%s/many/%lu/%s %lu'\"\\\xe2\x82\xac%%2f?&+.bin", f->dir,
                   (unsigned long)(i % 7), i % 2 ? "odd" : "even", (unsigned long)i);
    items[i].path = back[i].path = paths[i];
    items[i].data = data + i;
    items[i].len = i == 5 ? 500000 : i * 13 % 4000; /* one that goes alone, some that are empty */
    total += items[i].len;
  }
  opts.on_progress = many_on_progress;
  opts.callback_user = &seen;
  CHECK_OK(e2b_files_write_many(f->sandbox, items, COUNT, &opts, &err));
  CHECK_INT(seen.last.files_done, COUNT);
  CHECK_INT(seen.last.bytes_done, (long long)total);
  memset(&seen, 0, sizeof seen);
  CHECK_OK(e2b_files_read_many(f->sandbox, back, COUNT, &opts, &err));
  for (i = 0; i < COUNT; i++) {
    CHECK_INT(items[i].code, E2B_OK);
    CHECK(back[i].content.len == items[i].len && memcmp(back[i].content.data, items[i].data, items[i].len) == 0);
    e2b_mem_free(&back[i].content.mem);
  }
  /* One that cannot be written spoils nothing else. */
  items[100].path = f->dir;
  items[200].path = "~nobody-of-that-name/x";
  CHECK_RC(e2b_files_write_many(f->sandbox, items, COUNT, NULL, &err), E2B_ERR_INVALID_ARGUMENT);
  CHECK_HAS(err.message, "2 of 300 failed, first ");
  for (i = 0; i < COUNT; i++) CHECK_INT(items[i].code, i == 100 || i == 200 ? E2B_ERR_INVALID_ARGUMENT : E2B_OK);
  CHECK_HAS(items[100].message, "is a directory");
  memset(back, 0, sizeof back);
  back[0].path = paths[0];
  back[1].path = in_dir(f, "missing");
  CHECK_RC(e2b_files_read_many(f->sandbox, back, 2, NULL, &err), E2B_ERR_NOT_FOUND);
  CHECK(back[0].code == E2B_OK && back[1].code == E2B_ERR_NOT_FOUND);
  e2b_mem_free(&back[0].content.mem);
  e2b_mem_free(&back[1].content.mem);
}

/* An envd that takes forms only, and one file at a time. */
static void e2e_write_many_alone(fixture *f) {
  e2b_write_item items[3];
  e2b_bulk_opts opts = many_opts(2);
  e2b_error err;
  many_items(items, 3);
  items[0].path = in_dir(f, "x/a");
  items[1].path = in_dir(f, "x/b");
  items[2].path = in_dir(f, "y/c");
  opts.batch_bytes = 1;
  CHECK_OK(e2b_files_write_many(f->sandbox, items, 3, &opts, &err));
  CHECK_STR(output_of(f, "true"), "");
  CHECK(items[0].code == E2B_OK && items[1].code == E2B_OK && items[2].code == E2B_OK);
}

static void e2e_trees(fixture *f) {
  const char *base = tree_dir();
  char from[220], to[220], remote[200], command[400];
  e2b_bulk_stats up, down;
  tree_seen seen;
  e2b_bulk_opts opts = tree_opts(&seen);
  e2b_error err;
  (void)snprintf(from, sizeof from, "%s/from", base);
  (void)snprintf(to, sizeof to, "%s/to", base);
  (void)snprintf(remote, sizeof remote, "%s", in_dir(f, "tree of mine's"));
  CHECK(tree_shell(from, "mkdir -p \"$D/a/b/c/d\" \"$D/empty/er\" \"$D/bin\" && cd \"$D\" && echo hello >hello.txt &&"
                         " : >a/nothing && head -c 3000000 /dev/urandom >a/b/big && echo 'echo it runs' >bin/run.sh &&"
                         " chmod 755 bin/run.sh && cp bin/run.sh \"bin/it's one\" &&"
                         " for i in $(seq 400); do echo $i >a/b/c/\"file $i\"; done &&"
                         " ln -s ../../hello.txt a/b/link && ln -s /etc/passwd passwd && ln -s a loop"));
  opts.parallel = 8;
  CHECK_OK(e2b_files_upload_tree(f->sandbox, from, remote, &opts, &up, &err));
  CHECK_INT(up.files_found, 406);
  CHECK_INT(up.files_done, 406);
  CHECK_INT(up.files_skipped, 2);
  CHECK_INT(seen.done, 406);
  CHECK_INT(up.dirs_found, 7);
  CHECK(up.all_found && up.bytes_done == up.bytes_found && up.bytes_done > 3000000);
  (void)snprintf(command, sizeof command,
                 "cd '%s/tree of mine'\\''s' && bin/run.sh && './bin/it'\\''s one' && find . -type d | sort &&"
                 " test ! -x hello.txt && ln -s hello.txt link && ln -s /etc out && mkfifo fifo", f->dir);
  CHECK_STR(output_of(f, command), "it runs\nit runs\n.\n./a\n./a/b\n./a/b/c\n./a/b/c/d\n./bin\n./empty\n./empty/er\n");
  memset(&seen, 0, sizeof seen);
  CHECK_OK(e2b_files_download_tree(f->sandbox, remote, to, &opts, &down, &err));
  CHECK_INT(down.files_done, 407); /* and the link that now is in the sandbox */
  CHECK_INT(down.files_skipped, 2);
  CHECK(down.bytes_done == up.bytes_done + 6 && down.all_found);
  CHECK(tree_shell(base, "cd \"$D\" && rm from/passwd from/loop && cmp to/link to/hello.txt && rm to/link &&"
                         " diff -r from to && test -x to/bin/run.sh && test ! -x to/hello.txt && test -d to/empty/er &&"
                         " ! find to | grep -q part"));
  /* again, over what is there; without blocking */
  memset(&seen, 0, sizeof seen);
  {
    e2b_op op = { 0 };
    e2b_err rc;
    opts.call.op = &op;
    opts.no_exec_bits = true;
    CHECK_RC(e2b_files_upload_tree(f->sandbox, from, remote, &opts, &up, &err), E2B_PENDING);
    CHECK_INT(seen.done, 0);
    while ((rc = e2b_op_poll(f->client, op, &err)) == E2B_PENDING) (void)e2b_client_pump(f->client, 500);
    CHECK_OK(rc);
    CHECK_INT(seen.done, 406);
    opts.call.op = NULL;
  }
  /* one that cannot be made executable is said to be so; a file where a directory has to be fails alone */
  CHECK_STR(output_of(f, "true"), "");
  (void)snprintf(command, sizeof command, "cd '%s/tree of mine'\\''s' && rm -r a && : >a", f->dir);
  CHECK_STR(output_of(f, command), "");
  CHECK(e2b_files_upload_tree(f->sandbox, from, remote, &opts, &up, &err) < 0);
  CHECK_INT(up.files_failed, 404); /* 403 files below a, and the empty directory d */
  CHECK_INT(up.files_done, 3);
  CHECK(tree_shell(base, "rm -r \"$D\""));
}
/* ================================================================================================================== */
/* >>>> bad input */
/* ================================================================================================================== */

#define JSON_HEAD "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"

typedef struct bad_answer {
  const char *answer;
  unsigned then;
  e2b_err want;
  int status;
} bad_answer;

/* What a create may meet. Then the same client must get a good answer. */
static const bad_answer bad_answers[] = {
  { "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", PEER_CLOSE, E2B_ERR_SERVICE,
    302 },
  { "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 26\r\n\r\n<html>Welcome, log in</html>", PEER_CLOSE,
    E2B_ERR_PROTOCOL, 200 },
  { "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 24\r\n\r\n<html>Bad Gateway</html>",
    PEER_CLOSE, E2B_ERR_UNAVAILABLE, 502 },
  { "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", PEER_CLOSE, E2B_ERR_UNAVAILABLE, 503 },
  { "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", PEER_CLOSE, E2B_ERR_SERVICE, 500 },
  { "HTTP/1.1 400 Bad Request\r\nContent-Length: 34\r\n\r\n{\"code\":400,\"message\":\"not a word\"}", PEER_CLOSE,
    E2B_ERR_INVALID_ARGUMENT, 400 },
  { "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", PEER_CLOSE, E2B_ERR_UNAUTHENTICATED, 401 },
  { "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", PEER_CLOSE, E2B_ERR_PERMISSION, 403 },
  { "HTTP/1.1 409 Conflict\r\nContent-Length: 0\r\n\r\n", PEER_CLOSE, E2B_ERR_CONFLICT, 409 },
  { "HTTP/1.1 429 Slow Down\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n", PEER_CLOSE, E2B_ERR_RATE_LIMITED, 429 },
  { JSON_HEAD "Content-Length: 100\r\n\r\n{\"sandboxID\":", PEER_CLOSE, E2B_ERR_TRUNCATED, 200 },
  { JSON_HEAD "Content-Length: 100\r\n\r\n{\"sandboxID\":", PEER_RESET, E2B_ERR_TRUNCATED, 200 },
  { JSON_HEAD "Transfer-Encoding: chunked\r\n\r\nd\r\n{\"sandboxID\":\r\n", PEER_CLOSE, E2B_ERR_TRUNCATED, 200 },
  { JSON_HEAD "Content-Length: 13\r\n\r\n{\"sandboxID\":", PEER_CLOSE, E2B_ERR_PROTOCOL, 200 },
  { JSON_HEAD "Content-Length: 2\r\n\r\n{}", PEER_CLOSE, E2B_ERR_PROTOCOL, 200 },
  { JSON_HEAD "Content-Length: 4\r\n\r\nnull", PEER_CLOSE, E2B_ERR_PROTOCOL, 200 },
  { JSON_HEAD "Content-Length: 0\r\n\r\n", PEER_CLOSE, E2B_ERR_PROTOCOL, 200 },
  { "HTTP/1.1 204 No Content\r\n\r\n", PEER_CLOSE, E2B_ERR_PROTOCOL, 204 },
  { JSON_HEAD "Content-Length: 16\r\n\r\n{\"sandboxID\":17}", PEER_CLOSE, E2B_ERR_PROTOCOL, 200 },
  { "HTTP/1.1 200 OK\r\nContent-", PEER_CLOSE, E2B_ERR_TRUNCATED, 0 },
  { "SSH-2.0-OpenSSH_9.2\r\n", PEER_CLOSE, E2B_ERR_PROTOCOL, 0 },
  { "\x15\x03\x01\x00\x02\x02\x16", PEER_CLOSE, E2B_ERR_PROTOCOL, 0 },
  { "", PEER_CLOSE, E2B_ERR_CLOSED, 0 },
  { "", PEER_RESET, E2B_ERR_CLOSED, 0 },
  { "", PEER_HANG, E2B_ERR_TIMEOUT, 0 },
};

#define GOOD_LIST JSON_HEAD "Content-Length: 2\r\n\r\n[]"

static e2b_client_config peer_config(const peer *p) {
  e2b_client_config config;
  memset(&config, 0, sizeof config);
  config.no_env = true;
  config.api_key = "key";
  config.api_url = config.sandbox_url = p->url;
  return config;
}

static void check_bad_answer(const bad_answer *bad) {
  e2b_sandbox_opts opts = { 0 };
  e2b_sandbox_list list = { { 0 }, NULL, 0, NULL };
  e2b_sandbox *sandbox;
  e2b_client_config config;
  e2b_client *client;
  e2b_error err;
  test_heap h;
  peer p;
  peer_start(&p);
  peer_say_n(&p, bad->answer, bad->answer[0] == 0x15 ? 7 : strlen(bad->answer), bad->then);
  peer_say(&p, GOOD_LIST, PEER_CLOSE);
  config = peer_config(&p);
  config.allocator = heap_allocator(&h);
  client = e2b_client_create(&config, &err);
  opts.call.timeout_ms = bad->want == E2B_ERR_TIMEOUT ? 200 : 5000;
  CHECK_RC(e2b_sandbox_create(client, NULL, &opts, &sandbox, &err), bad->want);
  CHECK_INT(err.http_status, bad->status);
  CHECK(!sandbox);
  if (bad->status == 0 || bad->want == E2B_ERR_TRUNCATED) CHECK(err.maybe_done);
  if (bad->status == 401 || bad->status == 400) CHECK(!err.maybe_done);
  if (bad->status == 429) CHECK_INT(err.retry_after_ms, 3600000);
  CHECK_OK(e2b_api_list(client, NULL, &list, &err));
  e2b_mem_free(&list.mem);
  CHECK(strncmp(peer_asked(&p, 0), "POST /sandboxes HTTP/1.1\r\n", 26) == 0);
  CHECK(strncmp(peer_asked(&p, 1), "GET /v2/sandboxes HTTP/1.1\r\n", 28) == 0); /* the create was sent once */
  e2b_client_free(client);
  peer_stop(&p);
  HEAP_CHECK_EMPTY(&h);
}

static void test_bad_answers(void) {
  size_t i;
  for (i = 0; i < E2B__COUNT(bad_answers); i++) {
    int failures = check_failures;
    check_bad_answer(&bad_answers[i]);
    if (check_failures != failures) printf("  answer: %.60s\n", bad_answers[i].answer);
  }
}

static void test_endless_answers(void) {
  static const struct {
    const char *answer;
    unsigned flags;
    e2b_err want;
  } rows[] = {
    /* the last 64 bytes are what is repeated */
    { "HTTP/1.1 200 OK\r\nX-More: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", PEER_ENDLESS,
      E2B_ERR_LIMIT },
    { JSON_HEAD
      "Transfer-Encoding: chunked\r\n\r\n3a\r\n[{},                                                      \r\n",
      PEER_ENDLESS, E2B_ERR_LIMIT },
    { "HTTP/1.1 200 OK\r\nX-More: a", PEER_HANG | PEER_DRIBBLE, E2B_ERR_TIMEOUT },
  };
  e2b_sandbox_opts opts = { 0 };
  e2b_sandbox *sandbox;
  e2b_error err;
  size_t i;
  for (i = 0; i < E2B__COUNT(rows); i++) {
    e2b_sandbox_list list = { { 0 }, NULL, 0, NULL };
    e2b_client_stats stats;
    e2b_client_config config;
    e2b_client *client;
    peer p;
    peer_start(&p);
    peer_say(&p, rows[i].answer, rows[i].flags);
    peer_say(&p, GOOD_LIST, PEER_CLOSE);
    config = peer_config(&p);
    config.max_message_bytes = 100000;
    client = e2b_client_create(&config, &err);
    opts.call.timeout_ms = rows[i].want == E2B_ERR_TIMEOUT ? 150 : 10000;
    CHECK_RC(e2b_sandbox_create(client, NULL, &opts, &sandbox, &err), rows[i].want);
    e2b_client_get_stats(client, &stats);
    CHECK(stats.mem_peak < 600000);
    CHECK_OK(e2b_api_list(client, NULL, &list, &err));
    e2b_mem_free(&list.mem);
    e2b_client_free(client);
    peer_stop(&p);
  }
}

static void test_unreachable(void) {
  e2b_client_config config;
  e2b_sandbox_list list = { { 0 }, NULL, 0, NULL };
  e2b_client *client;
  e2b_error err;
  char url[64], port_text[16];
  uint16_t port = 0;
  int fd;
  port = dead_port();
  snprintf(url, sizeof url, "http://127.0.0.1:%u", (unsigned)port);
  snprintf(port_text, sizeof port_text, "%u", (unsigned)port);
  memset(&config, 0, sizeof config);
  config.no_env = true;
  config.api_key = "key";
  config.api_url = url;
  client = e2b_client_create(&config, &err);
  CHECK_RC(e2b_api_list(client, NULL, &list, &err), E2B_ERR_CONNECT);
  CHECK(strstr(err.message, port_text) && err.sys_code == ECONNREFUSED && !err.maybe_done);
  e2b_client_free(client);

  config.api_url = "http://no-such-host.invalid";
  config.connect_timeout_ms = 5000;
  client = e2b_client_create(&config, &err);
  CHECK_RC(e2b_api_list(client, NULL, &list, &err), E2B_ERR_RESOLVE);
  CHECK(strstr(err.message, "no-such-host.invalid") && !err.maybe_done);
  e2b_client_free(client);

  /* the listener is full or silent: the connection or the handshake hangs */
  fd = listen_somewhere(&port);
  snprintf(url, sizeof url, "https://127.0.0.1:%u", (unsigned)port);
  config.api_url = url;
  config.tls.ca_pem = net_the_pki->ca_pem;
  config.connect_timeout_ms = 200;
  client = e2b_client_create(&config, &err);
  CHECK_RC(e2b_api_list(client, NULL, &list, &err), E2B_ERR_TIMEOUT);
  CHECK_INT(err.phase, E2B_PHASE_TLS);
  e2b_client_free(client);
  close(fd);
}

#define REFUSED(call) CHECK_RC(call, E2B_ERR_INVALID_ARGUMENT)

/* Every public function with nothing at all, and with an object but nothing else. No I/O happens. */
static void test_null_arguments(void) {
  e2b_client_config config;
  e2b_strs strs = { NULL, 0 };
  e2b_watch_handle *watch = NULL;
  e2b_fs_event change;
  e2b_client *client;
  e2b_sandbox *sandbox = NULL, *out = NULL;
  e2b_command_handle *handle = NULL;
  e2b_file_stream *stream = NULL;
  e2b_command_result result = { 0 };
  e2b_process_list processes = { { 0 }, NULL, 0 };
  e2b_entry_list entries = { { 0 }, NULL, 0 };
  e2b_sandbox_list sandboxes = { { 0 }, NULL, 0, NULL };
  e2b_buf buf = { { 0 }, NULL, 0 };
  e2b_entry_info entry;
  e2b_sandbox_info info;
  e2b_create_response created;
  e2b_command_event event;
  e2b_client_stats stats;
  e2b_pollfd fds[4];
  e2b_error err;
  e2b_op none = { 0 };
  uint32_t pid;
  bool flag;
  char text[8];
  size_t got;
  int i;
  memset(&config, 0, sizeof config);
  memset(&entry, 0, sizeof entry);
  memset(&info, 0, sizeof info);
  memset(&created, 0, sizeof created);
  config.no_env = true;
  config.api_key = "key";
  config.api_url = config.sandbox_url = "http://127.0.0.1:1";
  client = e2b_client_create(&config, NULL);
  if (!CHECK(client != NULL) || !CHECK_OK(e2b_sandbox_attach(client, "id", NULL, &sandbox, &err))) return;

  CHECK_STR(e2b_err_name((e2b_err)12345), e2b_err_name((e2b_err)-12345));
  CHECK(e2b_connect_code_name((e2b_connect_code)99) && e2b_phase_name((e2b_phase)99));
  e2b_mem_free(NULL);
  e2b_mem_free(&result.mem);
  e2b_client_free(NULL);
  e2b_sandbox_free(NULL);
  e2b_command_handle_free(NULL);
  e2b_file_stream_free(NULL);
  e2b_client_get_stats(NULL, &stats);
  e2b_client_get_stats(client, NULL);
  e2b_client_wake(NULL);
  e2b_client_interrupt(NULL);
  e2b_op_cancel(NULL, none);
  e2b_op_cancel(client, none);
  e2b_op_resume(NULL, none);
  e2b_op_resume(client, none);
  e2b_command_handle_resume(NULL);
  e2b_command_handle_disconnect(NULL);
  e2b_command_handle_set_output(NULL, NULL, NULL, NULL);
  CHECK_INT(e2b_command_handle_pid(NULL), 0);
  CHECK_INT(e2b_file_stream_size(NULL), -1);
  CHECK_INT(e2b_client_api_url(NULL, text, sizeof text), 0);
  CHECK_STR(text, "");
  CHECK_INT(e2b_client_api_url(client, NULL, 0), 18);
  CHECK_INT(e2b_client_api_url(client, text, sizeof text), 18);
  CHECK_STR(text, "http://");
  CHECK_INT(e2b_client_sandbox_url(NULL, NULL, NULL, 0), 0);
  CHECK_INT(e2b_client_sandbox_url(client, "id", text, sizeof text), 18);
  CHECK_INT(e2b_sandbox_host(NULL, 1, text, sizeof text), 0);
  CHECK(e2b_sandbox_host(sandbox, 1, NULL, 0) > 0);
  CHECK(!e2b_sandbox_client(NULL) && e2b_sandbox_client(sandbox) == client);
  CHECK_STR(e2b_sandbox_id(NULL), "");
  CHECK_STR(e2b_sandbox_template_id(NULL), "");
  CHECK_STR(e2b_sandbox_envd_version(NULL), "");
  CHECK_STR(e2b_sandbox_access_token(NULL), "");
  CHECK_STR(e2b_sandbox_traffic_access_token(NULL), "");
  CHECK_STR(e2b_sandbox_runtime_url(NULL), "");
  CHECK_STR(e2b_sandbox_id(sandbox), "id");
  CHECK(e2b_client_poll(NULL, 0) <= 0 && e2b_client_poll(client, -1) == 0); /* nothing is under way */
  CHECK(!e2b_client_pump(NULL, 0) && !e2b_client_pump(client, 500));
  CHECK_INT(e2b_client_fds(NULL, fds, 4), 0);
  e2b_client_fds(client, NULL, 0);
  CHECK_INT(e2b_client_next_timeout(NULL), -1);
  CHECK_INT(e2b_client_next_timeout(client), -1);
  CHECK(e2b_client_process(NULL, NULL, 0, 0) <= 0 && e2b_client_process(client, NULL, 0, 0) == 0);
  CHECK_OK(e2b_client_drain(client, -1));
  CHECK(e2b_client_drain(NULL, -1) != E2B_PENDING);
  CHECK_RC(e2b_op_poll(client, none, &err), E2B_ERR_BAD_STATE);
  CHECK(e2b_op_poll(NULL, none, &err) < 0);
  CHECK_OK(e2b_sandbox_close(NULL, NULL, &err));

  for (i = 0; i < 2; i++) {
    e2b_client *c = i ? client : NULL;
    e2b_sandbox *s = i ? sandbox : NULL;
    const char *missing = i ? "" : NULL; /* with an object, "" is as bad as NULL */
    if (!i) {
      REFUSED(e2b_sandbox_create(c, NULL, NULL, &out, &err));
      REFUSED(e2b_api_list(c, NULL, &sandboxes, &err));
      REFUSED(e2b_api_create_sandbox(c, NULL, NULL, &created, &err));
      REFUSED(e2b_sandbox_get_info(s, NULL, &info, &err));
      REFUSED(e2b_sandbox_set_timeout(s, 1, NULL, &err));
      REFUSED(e2b_sandbox_pause(s, NULL, &err));
      REFUSED(e2b_sandbox_kill(s, NULL, &flag, &err));
      REFUSED(e2b_sandbox_is_running(s, NULL, &flag, &err));
      REFUSED(e2b_commands_list(s, NULL, &processes, &err));
    }
    REFUSED(e2b_sandbox_create(c, NULL, NULL, NULL, &err));
    REFUSED(e2b_sandbox_connect(c, missing, NULL, &out, &err));
    REFUSED(e2b_sandbox_connect(c, "id", NULL, NULL, &err));
    REFUSED(e2b_sandbox_attach(c, missing, NULL, &out, &err));
    REFUSED(e2b_sandbox_attach(c, "id", NULL, NULL, &err));
    REFUSED(e2b_sandbox_get_info(s, NULL, NULL, &err));
    REFUSED(e2b_sandbox_is_running(s, NULL, NULL, &err));
    REFUSED(e2b_api_list(c, NULL, NULL, &err));
    REFUSED(e2b_api_get_info(c, missing, NULL, &info, &err));
    REFUSED(e2b_api_get_info(c, "id", NULL, NULL, &err));
    REFUSED(e2b_api_kill(c, missing, NULL, &flag, &err));
    REFUSED(e2b_api_set_timeout(c, missing, 1, NULL, &err));
    REFUSED(e2b_api_pause(c, missing, NULL, &err));
    REFUSED(e2b_api_create_sandbox(c, NULL, NULL, NULL, &err));
    REFUSED(e2b_api_connect_sandbox(c, missing, 1, NULL, &created, &err));
    REFUSED(e2b_api_connect_sandbox(c, "id", 1, NULL, NULL, &err));
    REFUSED(e2b_commands_run(s, missing, NULL, &result, &err));
    REFUSED(e2b_commands_start(s, missing, NULL, &handle, &err));
    REFUSED(e2b_commands_start(s, "true", NULL, NULL, &err));
    REFUSED(e2b_commands_connect_to_process(s, 0, NULL, &handle, &err));
    REFUSED(e2b_commands_connect_to_process(s, 1, NULL, NULL, &err));
    REFUSED(e2b_commands_list(s, NULL, NULL, &err));
    REFUSED(e2b_commands_kill(s, 0, NULL, &flag, &err));
    REFUSED(e2b_commands_send_stdin(s, 0, "x", 1, NULL, &err));
    REFUSED(e2b_commands_send_stdin(s, 1, NULL, 1, NULL, &err));
    REFUSED(e2b_commands_send_stdin_from(s, 0, transfer_source, NULL, NULL, &err));
    REFUSED(e2b_commands_send_stdin_from(s, 1, NULL, NULL, NULL, &err));
    REFUSED(e2b_commands_close_stdin(s, 0, NULL, &err));
    REFUSED(e2b_commands_start_detached(s, missing, NULL, &pid, &err));
    REFUSED(e2b_commands_start_detached(s, "true", NULL, NULL, &err));
    REFUSED(e2b_commands_connect_to_tag(s, missing, NULL, &handle, &err));
    REFUSED(e2b_commands_connect_to_tag(s, "tag", NULL, NULL, &err));
    REFUSED(e2b_commands_send_signal(s, 0, 9, NULL, &flag, &err));
    REFUSED(e2b_commands_send_signal(s, 1, 0, NULL, &flag, &err));
    REFUSED(e2b_commands_kill_tree(s, 0, NULL, &pid, &err));
    REFUSED(e2b_commands_stop(s, 0, 0, NULL, NULL, &err));
    REFUSED(e2b_commands_stop(s, 1, -1, NULL, NULL, &err));
#ifndef E2B_NO_PTY
    REFUSED(e2b_pty_create(s, NULL, NULL, &err));
    REFUSED(e2b_pty_connect(s, 0, NULL, &handle, &err));
    REFUSED(e2b_pty_connect(s, 1, NULL, NULL, &err));
    REFUSED(e2b_pty_send_input(s, 0, "x", 1, NULL, &err));
    REFUSED(e2b_pty_send_input(s, 1, NULL, 1, NULL, &err));
    REFUSED(e2b_pty_resize(s, 0, 1, 1, NULL, &err));
    REFUSED(e2b_pty_kill(s, 0, NULL, &flag, &err));
#endif
    REFUSED(e2b_files_list(s, missing, NULL, &entries, &err));
    REFUSED(e2b_files_list(s, "/", NULL, NULL, &err));
    REFUSED(e2b_files_exists(s, missing, NULL, &flag, &err));
    REFUSED(e2b_files_exists(s, "/", NULL, NULL, &err));
    REFUSED(e2b_files_get_info(s, missing, NULL, &entry, &err));
    REFUSED(e2b_files_get_info(s, "/", NULL, NULL, &err));
    REFUSED(e2b_files_make_dir(s, missing, NULL, &flag, &err));
    REFUSED(e2b_files_rename(s, missing, "b", NULL, NULL, &err));
    REFUSED(e2b_files_rename(s, "a", missing, NULL, NULL, &err));
    REFUSED(e2b_files_remove(s, missing, NULL, &err));
    REFUSED(e2b_files_read(s, missing, NULL, &buf, &err));
    REFUSED(e2b_files_read(s, "a", NULL, NULL, &err));
    REFUSED(e2b_files_read_text(s, missing, NULL, &buf, &err));
    REFUSED(e2b_files_read_text(s, "a", NULL, NULL, &err));
    REFUSED(e2b_files_write(s, missing, "x", 1, NULL, NULL, &err));
    REFUSED(e2b_files_write(s, "a", NULL, 1, NULL, NULL, &err));
    REFUSED(e2b_files_write_text(s, missing, "x", NULL, NULL, &err));
    REFUSED(e2b_files_download(s, missing, transfer_sink, NULL, NULL, &err));
    REFUSED(e2b_files_download(s, "a", NULL, NULL, NULL, &err));
    REFUSED(e2b_files_upload(s, missing, transfer_source, NULL, 1, NULL, NULL, &err));
    REFUSED(e2b_files_upload(s, "a", NULL, NULL, 1, NULL, NULL, &err));
    REFUSED(e2b_files_read_stream(s, missing, NULL, &stream, &err));
    REFUSED(e2b_files_read_stream(s, "a", NULL, NULL, &err));
    REFUSED(e2b_files_write_stream(s, missing, 1, NULL, &stream, &err));
    REFUSED(e2b_files_write_stream(s, "a", 1, NULL, NULL, &err));
    REFUSED(e2b_files_write_stream(s, missing, -2, NULL, &stream, &err));
  }
  REFUSED(e2b_command_handle_next(NULL, 0, &event, &err));
  REFUSED(e2b_command_handle_wait(NULL, NULL, &result, &err));
  REFUSED(e2b_command_handle_kill(NULL, NULL, &flag, &err));
  REFUSED(e2b_command_handle_send_stdin(NULL, "x", 1, NULL, &err));
  REFUSED(e2b_command_handle_close_stdin(NULL, NULL, &err));
  REFUSED(e2b_file_stream_read(NULL, 0, text, sizeof text, &got, &err));
  REFUSED(e2b_file_stream_write(NULL, 0, text, sizeof text, &got, &err));
  REFUSED(e2b_file_stream_finish(NULL, 0, NULL, &err));
  REFUSED(e2b_files_compose(NULL, strs, "/x", NULL, NULL, &err));
  REFUSED(e2b_files_compose(sandbox, strs, "/x", NULL, NULL, &err));
  strs.count = 1;
  REFUSED(e2b_files_compose(sandbox, strs, "/x", NULL, NULL, &err));
  CHECK_INT(e2b_sandbox_download_url(NULL, "/x", NULL, E2B_TIMEOUT_NONE, text, sizeof text, &err), 0);
  CHECK_INT(e2b_sandbox_upload_url(NULL, "/x", NULL, E2B_TIMEOUT_NONE, NULL, 0, NULL), 0);
  REFUSED(e2b_files_watch_dir(NULL, "/", NULL, &watch, &err));
  REFUSED(e2b_files_watch_dir(sandbox, NULL, NULL, &watch, &err));
  REFUSED(e2b_files_watch_dir(sandbox, "/", NULL, NULL, &err));
  REFUSED(e2b_watch_handle_next(NULL, 0, &change, &err));
  e2b_watch_handle_stop(NULL);
  CHECK(!out && !handle && !stream && !result.mem.ptr && !buf.mem.ptr);
  e2b_client_get_stats(client, &stats);
  CHECK_INT(stats.ops_active + stats.connections_made, 0);
  e2b_sandbox_free(sandbox);
  e2b_client_free(client);
}

/* CR, LF and other controls in any string that becomes a header, a path or a name: refused, no I/O. */
static void test_injection(void) {
  static const char *const evil[] = { "a\r\nX-Evil: 1", "a\nb", "a\rb" };
  e2b_client_config config;
  e2b_client *client;
  e2b_sandbox *sandbox = NULL, *out;
  e2b_command_handle *handle;
  e2b_file_stream *stream;
  e2b_command_result result = { 0 };
  e2b_entry_list entries = { { 0 }, NULL, 0 };
  e2b_sandbox_list sandboxes = { { 0 }, NULL, 0, NULL };
  e2b_buf buf = { { 0 }, NULL, 0 };
  e2b_entry_info entry;
  e2b_sandbox_info info;
  e2b_create_response created;
  e2b_client_stats stats;
  e2b_error err;
  bool flag;
  size_t i;
  memset(&config, 0, sizeof config);
  memset(&entry, 0, sizeof entry);
  memset(&info, 0, sizeof info);
  memset(&created, 0, sizeof created);
  config.no_env = true;
  config.api_key = "key";
  config.api_url = config.sandbox_url = "http://127.0.0.1:1";
  client = e2b_client_create(&config, &err);
  if (!CHECK(client != NULL) || !CHECK_OK(e2b_sandbox_attach(client, "id", NULL, &sandbox, &err))) return;
  for (i = 0; i < E2B__COUNT(evil); i++) {
    e2b_kv pair;
    e2b_call call = { 0 };
    e2b_sandbox_opts opts = { 0 };
    e2b_attach_opts attach;
    e2b_run_opts run = { 0 };
#ifndef E2B_NO_PTY
    e2b_pty_opts pty;
#endif
    e2b_files_opts files = { 0 };
    e2b_list_opts list = { 0 };
    uint32_t pid;
    e2b_watch_opts watch = { 0 };
    e2b_watch_handle *watched = NULL;
    e2b_strs strs = { NULL, 0 };
    pair.key = "X-Header";
    pair.value = evil[i];
    call.headers.items = &pair;
    call.headers.count = 1;
    memset(&attach, 0, sizeof attach);
    REFUSED(e2b_sandbox_create(client, evil[i], NULL, &out, &err));
    opts.call = call;
    REFUSED(e2b_sandbox_create(client, NULL, &opts, &out, &err));
    REFUSED(e2b_sandbox_connect(client, evil[i], NULL, &out, &err));
    REFUSED(e2b_sandbox_attach(client, evil[i], NULL, &out, &err));
    attach.access_token = evil[i];
    REFUSED(e2b_sandbox_attach(client, "id", &attach, &out, &err));
    attach.access_token = NULL;
    attach.traffic_access_token = evil[i];
    REFUSED(e2b_sandbox_attach(client, "id", &attach, &out, &err));
    attach.traffic_access_token = NULL;
    attach.base_url = evil[i];
    REFUSED(e2b_sandbox_attach(client, "id", &attach, &out, &err));
    attach.base_url = NULL;
    attach.domain = evil[i];
    REFUSED(e2b_sandbox_attach(client, "id", &attach, &out, &err));
    REFUSED(e2b_sandbox_get_info(sandbox, &call, &info, &err));
    REFUSED(e2b_sandbox_kill(sandbox, &call, &flag, &err));
    REFUSED(e2b_sandbox_is_running(sandbox, &call, &flag, &err));
    list.call = call;
    REFUSED(e2b_api_list(client, &list, &sandboxes, &err));
    REFUSED(e2b_api_get_info(client, evil[i], NULL, &info, &err));
    REFUSED(e2b_api_kill(client, evil[i], NULL, &flag, &err));
    REFUSED(e2b_api_set_timeout(client, evil[i], 1, NULL, &err));
    REFUSED(e2b_api_pause(client, evil[i], NULL, &err));
    REFUSED(e2b_api_connect_sandbox(client, evil[i], 1, NULL, &created, &err));
    run.user = evil[i];
    REFUSED(e2b_commands_run(sandbox, "true", &run, &result, &err));
    REFUSED(e2b_commands_start(sandbox, "true", &run, &handle, &err));
    run.user = NULL;
    run.call = call;
    REFUSED(e2b_commands_run(sandbox, "true", &run, &result, &err));
    REFUSED(e2b_commands_kill(sandbox, 1, &call, &flag, &err));
    REFUSED(e2b_commands_kill_tree(sandbox, 1, &call, NULL, &err));
    REFUSED(e2b_commands_stop(sandbox, 1, 1, &call, NULL, &err));
    REFUSED(e2b_commands_send_stdin(sandbox, 1, "x", 1, &call, &err));
    REFUSED(e2b_commands_connect_to_tag(sandbox, "tag", &run, &handle, &err));
    REFUSED(e2b_commands_connect_to_tag(sandbox, evil[i], NULL, &handle, &err));
    memset(&run, 0, sizeof run);
    run.output_file = evil[i];
    REFUSED(e2b_commands_start_detached(sandbox, "true", &run, &pid, &err));
#ifndef E2B_NO_PTY
    memset(&pty, 0, sizeof pty);
    pty.user = evil[i];
    REFUSED(e2b_pty_create(sandbox, &pty, &handle, &err));
    pty.user = NULL;
    pty.tag = evil[i];
    REFUSED(e2b_pty_create(sandbox, &pty, &handle, &err));
    REFUSED(e2b_pty_resize(sandbox, 1, 1, 1, &call, &err));
#endif
    files.user = evil[i];
    REFUSED(e2b_files_list(sandbox, "/", &files, &entries, &err));
    REFUSED(e2b_files_read(sandbox, "/a", &files, &buf, &err));
    REFUSED(e2b_files_write(sandbox, "/a", "x", 1, &files, NULL, &err));
    REFUSED(e2b_files_read_stream(sandbox, "/a", &files, &stream, &err));
    files.user = NULL;
    files.call = call;
    REFUSED(e2b_files_get_info(sandbox, "/a", &files, &entry, &err));
    REFUSED(e2b_files_read(sandbox, "/a", &files, &buf, &err));
    REFUSED(e2b_files_write_stream(sandbox, "/a", 1, &files, &stream, &err));
    memset(&files, 0, sizeof files);
    files.metadata.items = &pair;
    files.metadata.count = 1;
    REFUSED(e2b_files_write(sandbox, "/a", "x", 1, &files, NULL, &err));
    watch.user = evil[i];
    REFUSED(e2b_files_watch_dir(sandbox, "/a", &watch, &watched, &err));
    watch.user = NULL;
    watch.call = call;
    REFUSED(e2b_files_watch_dir(sandbox, "/a", &watch, &watched, &err));
    REFUSED(e2b_files_watch_dir(sandbox, evil[i], NULL, &watched, &err));
    strs.items = &evil[i];
    strs.count = 1;
    REFUSED(e2b_files_compose(sandbox, strs, "/a", NULL, NULL, &err));
    CHECK_INT(e2b_sandbox_upload_url(sandbox, evil[i], NULL, E2B_TIMEOUT_NONE, NULL, 0, &err), 0);
    CHECK_INT(e2b_sandbox_upload_url(sandbox, "/a", evil[i], E2B_TIMEOUT_NONE, NULL, 0, &err), 0);
  }
  e2b_client_get_stats(client, &stats);
  CHECK_INT(stats.ops_active + stats.connections_made, 0);
  e2b_sandbox_free(sandbox);
  e2b_client_free(client);
}
/* ================================================================================================================== */
/* >>>> network edges */
/* ================================================================================================================== */

/* Proxies, fixed addresses, client certificates, pins, and the heap in a fixed block. */

/* ---- fixed heap ---- */

typedef struct heap_piece {
  uint8_t *ptr;
  size_t size;
  uint8_t mark;
} heap_piece;

static bool heap_piece_ok(const heap_piece *p) {
  size_t i;
  for (i = 0; i < p->size; i++)
    if (p->ptr[i] != p->mark) return false;
  return true;
}

static size_t heap_holes(const e2b_fixed_heap *heap, size_t *total) {
  const e2b__hole *at = (const e2b__hole *)heap->free_list;
  size_t count = 0;
  for (*total = 0; at; at = at->next, count++) {
    *total += at->size;
    if (at->next) CHECK((const uint8_t *)at + at->size < (const uint8_t *)at->next); /* in order, and none touch */
  }
  return count;
}

static void test_fixed_heap_random(void) {
  static uint8_t block[20011];
  heap_piece pieces[64];
  e2b_fixed_heap heap;
  e2b_allocator a = e2b_fixed_heap_init(&heap, block + 3, sizeof block - 3);
  uint32_t seed = 12345;
  size_t total, refused = 0, i;
  int round;
  memset(pieces, 0, sizeof pieces);
  CHECK((uintptr_t)heap.base % E2B_HEAP_ALIGN == 0 && heap.size % E2B_HEAP_ALIGN == 0 && heap.size > 19900);
  for (round = 0; round < 200000; round++) {
    heap_piece *p = &pieces[(seed = seed * 1664525u + 1013904223u) >> 26];
    size_t size = (seed >> 8) % 1500u;
    if (p->ptr && !CHECK(heap_piece_ok(p))) return;
    if (p->ptr && seed % 3 == 0) {
      a.free_fn(a.user, p->ptr, p->size);
      p->ptr = NULL;
      p->size = 0;
      continue;
    }
    {
      uint8_t *ptr = (uint8_t *)(p->ptr ? a.realloc_fn(a.user, p->ptr, p->size, size) : a.alloc_fn(a.user, size));
      if (!ptr) { /* the old one stays */
        refused++;
        continue;
      }
      CHECK((uintptr_t)ptr % E2B_HEAP_ALIGN == 0 && ptr >= block && ptr + size <= block + sizeof block);
      for (i = 0; p->ptr && i < E2B__MIN(size, p->size) && ptr[i] == p->mark; i++) continue;
      if (p->ptr) CHECK_INT(i, E2B__MIN(size, p->size));
      p->ptr = ptr;
      p->size = size;
      p->mark = (uint8_t)round;
      memset(ptr, p->mark, size);
    }
    if (round % 1000 == 0) {
      (void)heap_holes(&heap, &total);
      CHECK_INT(total + heap.used, heap.size);
    }
  }
  CHECK(refused > 0 && heap.peak <= heap.size && heap.peak > heap.size / 2);
  for (i = 0; i < E2B__COUNT(pieces); i++)
    if (pieces[i].ptr) a.free_fn(a.user, pieces[i].ptr, pieces[i].size);
  CHECK_INT(heap.used, 0);
  CHECK_INT(heap_holes(&heap, &total), 1); /* all of it in one piece again */
  CHECK_INT(total, heap.size);
}

static void test_fixed_heap_edges(void) {
  static uint8_t block[64 + E2B_HEAP_ALIGN];
  e2b_fixed_heap heap;
  e2b_allocator a = e2b_fixed_heap_init(&heap, block, 7); /* not one block */
  void *x, *y;
  CHECK(a.alloc_fn(a.user, 1) == NULL && a.alloc_fn(a.user, 0) == NULL);
  a = e2b_fixed_heap_init(&heap, block + (0u - (uintptr_t)block) % E2B_HEAP_ALIGN, 64);
  CHECK_INT(heap.size, 64);
  CHECK(a.alloc_fn(a.user, SIZE_MAX) == NULL && a.alloc_fn(a.user, 65) == NULL);
  x = a.alloc_fn(a.user, 16);
  y = a.alloc_fn(a.user, 16);
  CHECK(x && y && a.realloc_fn(a.user, x, 16, 33) == NULL && a.realloc_fn(a.user, y, 16, SIZE_MAX) == NULL);
  CHECK(a.realloc_fn(a.user, y, 16, 48) == y); /* into the hole behind it */
  CHECK_INT(heap.used, 64);
  CHECK(a.realloc_fn(a.user, y, 48, 1) == y);
  CHECK_INT(heap.used, 32);
  CHECK_INT(heap.peak, 64);
  a.free_fn(a.user, x, 16);
  a.free_fn(a.user, y, 1);
  CHECK(a.alloc_fn(a.user, 64) != NULL);
}

/* A client lives in one block, from a small one that does not do to one that does. */
static void e2e_fixed_heap(fixture *f) {
  static uint8_t block[512 * 1024];
  e2b_fixed_heap heap;
  e2b_client_config config = host_config(the_host);
  e2b_attach_opts attach;
  e2b_err rc = E2B_ERR_NO_MEMORY;
  size_t size, failed = 0;
  e2b_error err;
  memset(&attach, 0, sizeof attach);
  attach.base_url = e2b_sandbox_runtime_url(f->sandbox);
  attach.envd_version = e2b_sandbox_envd_version(f->sandbox);
  attach.access_token = the_host->control_plane ? e2b_sandbox_access_token(f->sandbox) : getenv("E2B_ENVD_TOKEN");
  for (size = 1024; rc != E2B_OK && size <= sizeof block; size += size / 4) {
    e2b_command_result r = { 0 };
    e2b_client *client;
    e2b_sandbox *sandbox = NULL;
    config.allocator = e2b_fixed_heap_init(&heap, block, size);
    config.io_buffer_size = 4096;
    client = e2b_client_create(&config, &err);
    rc = client ? e2b_sandbox_attach(client, e2b_sandbox_id(f->sandbox), &attach, &sandbox, &err) : err.code;
    if (rc == E2B_OK) rc = e2b_commands_run(sandbox, "echo in a block", NULL, &r, &err);
    if (rc == E2B_OK) CHECK_STR(r.stdout_data.ptr, "in a block\n");
    if (rc != E2B_OK) {
      failed++;
      CHECK_RC(rc, E2B_ERR_NO_MEMORY);
    }
    e2b_mem_free(&r.mem);
    e2b_client_free(client);
    CHECK_INT(heap.used, 0);
  }
  CHECK_OK(rc);
  CHECK(failed > 0 && heap.peak > 4096);
  if (verbose) printf("  a client in %lu bytes\n", (unsigned long)heap.peak);
}

/* ---- fixed addresses ---- */

static e2b_client *edge_client(const e2b_client_config *config, e2b_error *err) {
  e2b_client *client = e2b_client_create(config, err);
  check_rc_at(client ? E2B_OK : err->code, E2B_OK, err, __LINE__, "e2b_client_create");
  return client;
}

static void test_hosts(void) {
  static const e2b_host_entry entries[] = {
    { "api.test:443", "10.0.0.1" },  { "api.test", "10.0.0.2" },     { "*.box.test", "::1" },
    { "API.test.:443", "10.0.0.3" }, { "api.test:443", "10.0.0.4" }, { "192.0.2.1", "10.0.0.5" },
    { "[2001:db8::1]:80", "10.0.0.6" },
  };
  static const struct {
    const char *host;
    uint16_t port;
    const char *expect; /* "" = to be looked up */
  } rows[] = {
    { "api.test", 443, "10.0.0.1 10.0.0.4" }, { "API.TEST.", 443, "10.0.0.1 10.0.0.4" }, { "api.test", 80, "10.0.0.2" },
    { "x.api.test", 443, "" },  { "a.box.test", 443, "::1" }, { "a.b.box.test", 1, "::1" }, { "box.test", 443, "" },
    { "abox.test", 443, "" },   { "192.0.2.1", 9, "10.0.0.5" }, { "2001:db8:0::1", 80, "10.0.0.6" },
    { "2001:db8::1", 81, "" },  { "other.test", 443, "" },
  };
  static const e2b_host_entry any[] = { { "*", "127.0.0.1" } };
  static const e2b_host_entry bad[] = {
    { NULL, "10.0.0.1" },      { "", "10.0.0.1" },          { "a.test", NULL },         { "a.test", "" },
    { "a.test", "b.test" },    { "a.test", "10.0.0.1:80" }, { "a.test", "[::1]" },      { "a.test:0", "10.0.0.1" },
    { "a.test:70000", "::1" }, { "a b", "10.0.0.1" },       { "http://a", "10.0.0.1" }, { "*.", "10.0.0.1" },
    { "*x", "10.0.0.1" },      { "[::1", "10.0.0.1" },      { "*.1.2.3.4", "::1" },     { ":80", "10.0.0.1" },
  };
  e2b_client_config config;
  e2b_client *client;
  e2b__dns *d;
  e2b_error err;
  size_t i, k;
  memset(&config, 0, sizeof config);
  config.no_env = true;
  config.hosts = entries;
  config.host_count = E2B__COUNT(entries);
  client = edge_client(&config, &err);
  if (!client) return;
  for (i = 0; i < E2B__COUNT(rows); i++) {
    char got[200] = "", text[64];
    CHECK(e2b__hosts_find(client->net.hosts, client->net.host_count, rows[i].host, rows[i].port, &d));
    for (k = 0; d && k < d->count; k++) {
      CHECK(inet_ntop(d->addrs[k].len == 16 ? AF_INET6 : AF_INET, d->addrs[k].bytes, text, sizeof text) != NULL);
      snprintf(got + strlen(got), sizeof got - strlen(got), "%s%s", k ? " " : "", text);
    }
    if (!CHECK_STR(got, rows[i].expect)) printf("  %s:%u\n", rows[i].host, (unsigned)rows[i].port);
    e2b__dns_release(d);
  }
  e2b_client_free(client);
  config.hosts = any;
  config.host_count = 1;
  client = edge_client(&config, &err);
  CHECK(e2b__hosts_find(client->net.hosts, 1, "anything.at.all", 7, &d) && d && d->count == 1);
  e2b__dns_release(d);
  malloc_calls = 0;
  malloc_fail_at = 1;
  CHECK(!e2b__hosts_find(client->net.hosts, 1, "anything.at.all", 7, &d) && !d);
  malloc_fail_at = 0;
  e2b_client_free(client);
  config.host_count = 1;
  for (i = 0; i < E2B__COUNT(bad); i++) {
    config.hosts = &bad[i];
    sb_refused(&config, "hosts");
  }
  config.hosts = NULL;
  sb_refused(&config, "hosts");
}

/* The name stays in the Host header and in the certificate check; also when the transport resolves names itself. */
static void test_hosts_used(void) {
  static const net_names names = { "CN=api.test", "api.test", NULL, 0, NULL, NULL, false };
  e2b_host_entry entries[2];
  e2b_client_config config;
  e2b_sandbox_list list = { { 0 }, NULL, 0, NULL };
  e2b_transport t = *e2b__net_transport();
  e2b_client *client;
  net_server s;
  e2b__link l;
  e2b_error err;
  peer p;
  char url[64], host[64];
  int own_names;
  entries[0].host = "api.test";
  entries[1].host = "wrong.test";
  entries[0].address = entries[1].address = "127.0.0.1";
  for (own_names = 0; own_names < 2; own_names++) {
    peer_start(&p);
    peer_say(&p, GOOD_LIST, PEER_CLOSE);
    config = peer_config(&p);
    snprintf(url, sizeof url, "http://api.test:%u", (unsigned)p.port);
    config.api_url = url;
    config.hosts = entries;
    config.host_count = 2;
    t.flags = E2B_TRANSPORT_HAS_DNS;
    if (own_names) config.transport = &t;
    client = edge_client(&config, &err);
    CHECK_OK(e2b_api_list(client, NULL, &list, &err));
    e2b_mem_free(&list.mem);
    snprintf(host, sizeof host, "\r\nhost: api.test:%u\r\n", (unsigned)p.port);
    CHECK_HAS(peer_asked(&p, 0), host);
    e2b_client_free(client);
    peer_stop(&p);
  }
  net_tls_server_start(&s, NET_ECHO, &names, NULL);
  config.tls.ca_pem = net_the_pki->ca_pem;
  config.transport = NULL;
  client = edge_client(&config, &err);
  e2b__link_init(&l, &client->net);
  CHECK_INT(e2b__link_open(&l, "api.test", s.port, true, now_ms(), &err), E2B_OK);
  while (e2b__link_step(&l, now_ms(), &err) == E2B_PENDING) sleep_ms(1);
  CHECK_INT(l.state, E2B__LINK_READY);
  e2b__link_close(&l);
  CHECK_INT(e2b__link_open(&l, "wrong.test", s.port, true, now_ms(), &err), E2B_OK);
  while (e2b__link_step(&l, now_ms(), &err) == E2B_PENDING) sleep_ms(1);
  CHECK_INT(err.code, E2B_ERR_TLS_CERTIFICATE);
  e2b__link_close(&l);
  e2b_client_free(client);
  net_tls_server_stop(&s);
}

/* ---- which proxy ---- */

static void test_proxy_urls(void) {
  static const struct {
    const char *text, *host;
    uint16_t port;
    const char *auth;
  } good[] = {
    { "http://proxy", "proxy", 80, NULL },
    { "http://proxy:3128/", "proxy", 3128, NULL },
    { "HTTP://Proxy.corp:8080", "Proxy.corp", 8080, NULL },
    { "proxy:3128", "proxy", 3128, NULL },
    { "10.1.2.3:1", "10.1.2.3", 1, NULL },
    { "http://[::1]:8080", "::1", 8080, NULL },
    { "http://user:pass@proxy:3128", "proxy", 3128, "Basic dXNlcjpwYXNz" },
    { "user:pass@proxy", "proxy", 80, "Basic dXNlcjpwYXNz" },
    { "http://user@proxy", "proxy", 80, "Basic dXNlcjo=" },
    { "http://us%40er:p%3Aa%2Fs@s@[::1]:3", "::1", 3, "Basic dXNAZXI6cDphL3NAcw==" },
    { "http://%C3%BC:%25@p", "p", 80, "Basic w7w6JQ==" },
  };
  static const char *const bad[] = {
    "https://proxy", "socks5://proxy:1080", "socks5h://p", "http://", "http://proxy/path", "http://proxy?x",
    "http://proxy#x",
    "http://pro xy", "http://proxy:0", "http://proxy:99999", "http://proxy:x", "http://a:b@", "http://u%0d:p@proxy",
    "http://u:p%0A@proxy", "http://u%:p@proxy", "http://u%2:p@proxy", "http://u%zz:p@proxy", "http://u%3ax:p@proxy",
    "http://u\n:p@proxy", "http://[::1", "http://\xc3\xbc", "\xc3\xbc:80",
  };
  e2b_client_config config;
  e2b__proxy proxy;
  test_heap heap;
  e2b__mem mem;
  size_t i, n;
  heap_mem(&heap, &mem);
  for (i = 0; i < E2B__COUNT(good); i++) {
    CHECK_INT(e2b__proxy_parse(&mem, good[i].text, &proxy), E2B_OK);
    CHECK_STR(proxy.host, good[i].host);
    CHECK_INT(proxy.port, good[i].port);
    if (good[i].auth) CHECK_STR(proxy.auth, good[i].auth);
    else CHECK(!proxy.auth);
    e2b__proxy_free(&mem, &proxy);
  }
  memset(&config, 0, sizeof config);
  config.no_env = true;
  for (i = 0; i < E2B__COUNT(bad); i++) {
    if (!CHECK_INT(e2b__proxy_parse(&mem, bad[i], &proxy), E2B_ERR_INVALID_ARGUMENT)) printf("  %s\n", bad[i]);
    CHECK(!proxy.host && !proxy.auth);
    config.proxy_url = bad[i];
    sb_refused(&config, "proxy_url");
  }
  HEAP_CHECK_EMPTY(&heap);
  for (n = 1; n < 100; n++) {
    heap.calls = 0;
    heap.fail_at = n;
    if (e2b__proxy_parse(&mem, "http://user:pass@proxy", &proxy) == E2B_OK) break;
    CHECK(!proxy.host);
    HEAP_CHECK_EMPTY(&heap);
  }
  CHECK(n > 3 && n < 100);
  e2b__proxy_free(&mem, &proxy);
  HEAP_CHECK_EMPTY(&heap);
}

static void test_no_proxy(void) {
  static const struct {
    const char *list, *host;
    uint16_t port;
    bool direct;
  } rows[] = {
    { "", "a.test", 443, false },
    { "*", "a.test", 443, true },
    { "x, *", "a.test", 443, true },
    { "a.test", "a.test", 443, true },
    { "a.test", "A.TEST.", 443, true },
    { "A.test.", "a.test", 443, true },
    { "a.test", "b.a.test", 443, true },
    { "a.test", "ba.test", 443, false },
    { ".a.test", "a.test", 443, true },
    { ".a.test", "b.a.test", 443, true },
    { "*.a.test", "b.a.test", 443, true },
    { ".a.test", "ba.test", 443, false },
    { "test", "a.test", 443, true },
    { "a.test", "test", 443, false },
    { "b.test,a.test", "a.test", 443, true },
    { "b.test a.test", "a.test", 443, true },
    { " b.test ,\ta.test , ", "a.test", 443, true },
    { "a.test:443", "a.test", 443, true },
    { "a.test:80", "a.test", 443, false },
    { "a.test:x", "a.test", 443, false },
    { ".a.test:8080", "b.a.test", 8080, true },
    { "10.0.0.1", "10.0.0.1", 443, true },
    { "10.0.0.1:443", "10.0.0.1", 443, true },
    { "10.0.0.1:80", "10.0.0.1", 443, false },
    { "10.0.0.1", "10.0.0.11", 443, false },
    { "0.0.1", "10.0.0.1", 443, false },
    { ".1", "10.0.0.1", 443, false },
    { "10.0.0.0/8", "10.255.0.1", 443, true },
    { "10.0.0.0/8", "11.0.0.1", 443, false },
    { "10.0.0.0/8", "a.test", 443, false },
    { "192.168.1.128/25", "192.168.1.129", 1, true },
    { "192.168.1.128/25", "192.168.1.127", 1, false },
    { "0.0.0.0/0", "1.2.3.4", 1, true },
    { "1.2.3.4/32", "1.2.3.4", 1, true },
    { "1.2.3.4/33", "1.2.3.4", 1, false },
    { "1.2.3.4/", "1.2.3.4", 1, false },
    { "1.2.3.4/x", "1.2.3.4", 1, false },
    { "/8", "1.2.3.4", 1, false },
    { "::1", "::1", 1, true },
    { "0:0::1", "::1", 1, true },
    { "[::1]:80", "::1", 80, true },
    { "[::1]:80", "::1", 81, false },
    { "[::1]", "::1", 81, true },
    { "2001:db8::/32", "2001:db8:5::9", 1, true },
    { "2001:db8::/32", "2001:db9::9", 1, false },
    { "2001:db8::/32", "32.1.13.184", 1, false },
    { "0.0.0.0/0", "::1", 1, false },
    { ",,[,]:,:,.,*.,%", "a.test", 1, false },
  };
  size_t i;
  for (i = 0; i < E2B__COUNT(rows); i++)
    if (!CHECK_INT(e2b__proxy_excepted(rows[i].list, rows[i].host, rows[i].port), rows[i].direct))
      printf("  \"%s\" %s:%u\n", rows[i].list, rows[i].host, (unsigned)rows[i].port);
}

/* The proxy a client would use: "host", or "" for none. */
static const char *edge_proxy_of(e2b_client *client, const char *host, bool secure) {
  const e2b__proxy *proxy = e2b__proxy_for(&client->net.proxies, host, secure ? 443 : 80, secure);
  return proxy ? proxy->host : "";
}

static const char *const edge_variables[] = { "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY",
                                              "all_proxy",   "ALL_PROXY",   "no_proxy",   "NO_PROXY" };

static void edge_environment(const char *text) {
  size_t i;
  for (i = 0; i < E2B__COUNT(edge_variables); i++) unsetenv(edge_variables[i]);
  sb_environment(text);
}

static void test_proxy_environment(void) {
  static const struct {
    const char *env, *member, *except; /* variables; proxy_url and no_proxy */
    const char *https, *http;          /* the proxies for a.test */
  } rows[] = {
    { "", NULL, NULL, "", "" },
    { "HTTPS_PROXY=http://s:1", NULL, NULL, "s", "" },
    { "https_proxy=http://s:1 HTTPS_PROXY=http://other", NULL, NULL, "s", "" },
    { "http_proxy=http://h:1", NULL, NULL, "", "h" },
    { "HTTP_PROXY=http://h:1", NULL, NULL, "", "" },
    { "ALL_PROXY=all:1", NULL, NULL, "all", "all" },
    { "all_proxy=all:1 https_proxy=s:1", NULL, NULL, "s", "all" },
    { "ALL_PROXY=all:1 http_proxy=h:1", NULL, NULL, "all", "h" },
    { "ALL_PROXY=socks5://x https_proxy=s:1 http_proxy=h:1", NULL, NULL, "s", "h" }, /* not needed, not looked at */
    { "HTTPS_PROXY= ALL_PROXY=", NULL, NULL, "", "" },
    { "ALL_PROXY=all:1 NO_PROXY=a.test", NULL, NULL, "", "" },
    { "ALL_PROXY=all:1 no_proxy=b.test NO_PROXY=a.test", NULL, NULL, "all", "all" },
    { "ALL_PROXY=all:1 NO_PROXY=a.test:80", NULL, NULL, "all", "" },
    { "ALL_PROXY=all:1 NO_PROXY=a.test", NULL, "b.test", "all", "all" }, /* the member wins */
    { "ALL_PROXY=all:1", NULL, "*", "", "" },
    { "ALL_PROXY=all:1", "http://mine:3128", NULL, "mine", "mine" },
    { "NO_PROXY=*", "http://mine:3128", NULL, "mine", "mine" }, /* NO_PROXY belongs to the environment's proxies */
    { "", "http://mine:3128", "a.test:443", "", "mine" },
    { "ALL_PROXY=socks5://x", "mine", NULL, "mine", "mine" },
    { "ALL_PROXY=all:1", "", "", "all", "all" },
  };
  static const char *const here[] = { "localhost", "LOCALHOST.", "x.localhost", "127.0.0.1", "127.9.9.9", "::1" };
  e2b_client_config config, zero;
  e2b_transport t = *e2b__net_transport();
  e2b_client *client;
  e2b_error err;
  size_t i, k;
  bool both;
  memset(&zero, 0, sizeof zero);
  for (i = 0; i < E2B__COUNT(rows); i++) {
    edge_environment(rows[i].env);
    config = zero;
    config.proxy_url = rows[i].member;
    config.no_proxy = rows[i].except;
    client = edge_client(&config, &err);
    if (!client) continue;
    both = CHECK_STR(edge_proxy_of(client, "a.test", true), rows[i].https);
    both = CHECK_STR(edge_proxy_of(client, "a.test", false), rows[i].http) && both;
    if (!both) printf("  %s\n", rows[i].env);
    for (k = 0; k < E2B__COUNT(here); k++) /* this machine is asked through none but an explicit proxy */
      CHECK_STR(edge_proxy_of(client, here[k], false), e2b__given(rows[i].member) ? rows[i].http : "");
    e2b_client_free(client);
  }
  edge_environment("ALL_PROXY=http://u:p@all:1 NO_PROXY=x");
  config = zero;
  config.no_env = true;
  client = edge_client(&config, &err);
  CHECK_STR(edge_proxy_of(client, "a.test", true), "");
  e2b_client_free(client);
  config = zero;
  config.transport = &t; /* how a transport of yours gets out is its business */
  client = edge_client(&config, &err);
  CHECK_STR(edge_proxy_of(client, "a.test", true), "");
  e2b_client_free(client);
  config.proxy_url = "http://mine";
  client = edge_client(&config, &err);
  CHECK_STR(edge_proxy_of(client, "a.test", true), "mine");
  e2b_client_free(client);
  t.flags = E2B_TRANSPORT_HAS_TLS;
  sb_refused(&config, "proxy_url");
  config = zero;
  edge_environment("HTTPS_PROXY=socks5://user:secret@x");
  sb_refused(&config, "HTTPS_PROXY");
  CHECK(!e2b_client_create(&config, &err) && !strstr(err.message, "secret"));
  edge_environment("ALL_PROXY=https://x");
  sb_refused(&config, "ALL_PROXY");
  edge_environment("http_proxy=ftp://x");
  sb_refused(&config, "http_proxy");
  edge_environment(NULL);
}

/* ---- answers of proxies ---- */

#define EDGE_SECRET "hunter2"
#define EDGE_BASIC "dXNlcjpodW50ZXIy" /* user:hunter2 */

static char edge_logged[4096];

static void edge_log(void *user, e2b_log_level level, const char *message) {
  E2B__UNUSED(user);
  E2B__UNUSED(level);
  snprintf(edge_logged + strlen(edge_logged), sizeof edge_logged - strlen(edge_logged), "%s\n", message);
}

static void edge_check_no_secret(const e2b_error *err) {
  CHECK(!strstr(err->message, EDGE_SECRET) && !strstr(err->message, EDGE_BASIC));
  CHECK(!strstr(edge_logged, EDGE_SECRET) && !strstr(edge_logged, EDGE_BASIC));
}

/* A client of https://api.test whose proxy is `port`. */
static e2b_client_config edge_config(const char *url, uint16_t port, char proxy[64]) {
  e2b_client_config config;
  memset(&config, 0, sizeof config);
  snprintf(proxy, 64, "http://user:" EDGE_SECRET "@127.0.0.1:%u", (unsigned)port);
  config.no_env = true;
  config.api_key = "api-key";
  config.api_url = config.sandbox_url = url;
  config.proxy_url = proxy;
  config.tls.ca_pem = net_the_pki->ca_pem;
  config.logger.func = edge_log;
  config.logger.level = E2B_LOG_DEBUG;
  edge_logged[0] = 0;
  return config;
}

static void test_proxy_refusals(void) {
  static const struct {
    const char *answer;
    unsigned then;
    e2b_err want;
    int status;
    const char *says;
  } rows[] = {
    { "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n"
      "Content-Length: 5\r\n\r\nsorry",
      0, E2B_ERR_PROXY, 407, "does not accept the user or the password" },
    { "HTTP/1.0 407 No\r\n\r\n<html>a page without end", PEER_HANG, E2B_ERR_PROXY, 407, "HTTP 407" },
    { "HTTP/1.1 403 Filtered\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 0, E2B_ERR_PROXY, 403,
      "rules" },
    { "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", PEER_CLOSE, E2B_ERR_PROXY, 502,
      "cannot reach the server" },
    { "HTTP/1.1 302 Found\r\nLocation: http://login.test/\r\nContent-Length: 0\r\n\r\n", 0, E2B_ERR_PROXY, 302,
      "HTTP 302" },
    { "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\n\r\n", PEER_CLOSE, E2B_ERR_PROXY, 503, "HTTP 503" },
    { "HTTP/1.1 101 Switching Protocols\r\n\r\n", PEER_CLOSE, E2B_ERR_PROXY, 101, "" },
    { "HTTP/1.1 200 OK\r\n\r\nwelcome", PEER_HANG, E2B_ERR_PROXY, 200, "went on talking" },
    { "HTTP/1.1 200 OK\nX: y\n\n", PEER_HANG, E2B_ERR_PROXY, 0, "" },
    { "SSH-2.0-OpenSSH_9.2\r\n", PEER_HANG, E2B_ERR_PROXY, 0, "not HTTP" },
    { "\x16\x03\x01\x01\x01\x01\x01\x01\x01", PEER_HANG, E2B_ERR_PROXY, 0, "TLS" },
    { "HTTP/1.1 200 OK\r\nX-Half: ", PEER_CLOSE, E2B_ERR_PROXY, 0, "before its answer ended" },
    { "", PEER_CLOSE, E2B_ERR_PROXY, 0, "before its answer ended" },
    { "", PEER_RESET, E2B_ERR_PROXY, 0, "reset" },
    { "HTTP/1.1 200 OK\r\nX-More: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", PEER_ENDLESS,
      E2B_ERR_PROXY, 0, "" },
    { "", PEER_HANG, E2B_ERR_TIMEOUT, 0, "" },
    { "HTTP/1.1 200 OK\r\nX-Slow: ", PEER_HANG | PEER_DRIBBLE, E2B_ERR_TIMEOUT, 0, "" },
  };
  size_t i;
  for (i = 0; i < E2B__COUNT(rows); i++) {
    e2b_client_config config;
    e2b_client_stats stats;
    e2b_sandbox *sandbox;
    e2b_client *client;
    e2b_error err;
    test_heap heap;
    peer p;
    char proxy[64];
    int failures = check_failures;
    peer_start(&p);
    peer_say(&p, rows[i].answer, rows[i].then);
    config = edge_config("https://api.test", p.port, proxy);
    config.allocator = heap_allocator(&heap);
    config.connect_timeout_ms = rows[i].want == E2B_ERR_TIMEOUT ? 200 : 10000;
    client = edge_client(&config, &err);
    memset(proxy, 'x', sizeof proxy); /* it was copied */
    CHECK_RC(e2b_sandbox_create(client, NULL, NULL, &sandbox, &err), rows[i].want);
    CHECK_INT(err.http_status, rows[i].status);
    CHECK_INT(err.phase, E2B_PHASE_CONNECT);
    CHECK_HAS(err.message, rows[i].says);
    CHECK(!err.maybe_done);
    edge_check_no_secret(&err);
    CHECK_STR(peer_asked(&p, 0), "CONNECT api.test:443 HTTP/1.1\r\nhost: api.test:443\r\n"
                                 "proxy-authorization: Basic " EDGE_BASIC "\r\n\r\n");
    CHECK_INT(peer_asked_count(&p), 1); /* no key, and nothing sent twice */
    e2b_client_get_stats(client, &stats);
    CHECK(stats.connections_open == 0 && stats.mem_peak < 200000);
    e2b_client_free(client);
    peer_stop(&p);
    HEAP_CHECK_EMPTY(&heap);
    if (check_failures != failures) printf("  answer: %.60s\n", rows[i].answer);
  }
}

static void test_proxy_unreachable(void) {
  e2b_client_config config;
  e2b_sandbox *sandbox;
  e2b_client *client;
  e2b_error err;
  char proxy[64];
  config = edge_config("https://api.test", dead_port(), proxy);
  client = edge_client(&config, &err);
  CHECK_RC(e2b_sandbox_create(client, NULL, NULL, &sandbox, &err), E2B_ERR_CONNECT);
  CHECK_HAS(err.message, "cannot connect to the proxy 127.0.0.1:");
  edge_check_no_secret(&err);
  e2b_client_free(client);
  config.proxy_url = "http://nowhere.invalid:3128";
  client = edge_client(&config, &err);
  CHECK_RC(e2b_sandbox_create(client, NULL, NULL, &sandbox, &err), E2B_ERR_RESOLVE);
  CHECK_HAS(err.message, "the proxy \"nowhere.invalid\"");
  CHECK_HAS(err.message, "proxy_url");
  e2b_client_free(client);
}

/* http:// servers: the proxy is asked in its own form, on connections that are used again. */
static void test_proxy_plain(void) {
  e2b_client_config config;
  e2b_client_stats stats;
  e2b_sandbox_list list = { { 0 }, NULL, 0, NULL };
  e2b_sandbox *sandbox;
  e2b_client *client;
  e2b_error err;
  peer p;
  char proxy[64];
  static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]";
  peer_start(&p);
  peer_say(&p, answer, 0);
  peer_say(&p, answer, 0);
  peer_say(&p, "HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", 0);
  peer_say(&p, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", 0);
  config = edge_config("http://api.test:8080/base", p.port, proxy);
  config.no_proxy = "127.0.0.1";
  client = edge_client(&config, &err);
  CHECK_OK(e2b_api_list(client, NULL, &list, &err));
  e2b_mem_free(&list.mem);
  CHECK_OK(e2b_api_list(client, NULL, &list, &err));
  e2b_mem_free(&list.mem);
  CHECK_HAS(peer_asked(&p, 0), "GET http://api.test:8080/base/v2/sandboxes HTTP/1.1\r\nhost: api.test:8080\r\n");
  CHECK_HAS(peer_asked(&p, 1), "\r\nproxy-authorization: Basic " EDGE_BASIC "\r\n");
  CHECK_RC(e2b_sandbox_create(client, NULL, NULL, &sandbox, &err), E2B_ERR_PROXY);
  CHECK_INT(err.http_status, 407);
  CHECK(!err.maybe_done);
  edge_check_no_secret(&err);
  CHECK_RC(e2b_api_list(client, NULL, &list, &err), E2B_ERR_UNAVAILABLE);
  CHECK_INT(peer_asked_count(&p), 4);
  e2b_client_get_stats(client, &stats);
  CHECK_INT(stats.connections_made, 2);
  e2b_client_free(client);
  peer_clear(&p);
  /* an exception is asked directly, without the proxy's password */
  peer_say(&p, answer, 0);
  config.api_url = p.url;
  config.proxy_url = "http://user:" EDGE_SECRET "@127.0.0.1:1";
  client = edge_client(&config, &err);
  CHECK_OK(e2b_api_list(client, NULL, &list, &err));
  e2b_mem_free(&list.mem);
  CHECK(strncmp(peer_asked(&p, 0), "GET /v2/sandboxes HTTP/1.1\r\n", 28) == 0);
  CHECK(!strstr(peer_asked(&p, 0), "proxy-authorization"));
  e2b_client_free(client);
  peer_stop(&p);
}

/* ---- a proxy that works ---- */

/* An HTTP proxy on a thread per connection: whatever is asked for, it connects to one port of this machine. */
typedef struct relay {
  int listener;
  uint16_t port, to;
  pthread_t thread;
  pthread_mutex_t lock;
  int stop, live, tunnels, requests;
  char heads[65536]; /* what it was asked, one after the other */
  bool one_byte;     /* its answer to CONNECT comes in pieces */
} relay;

typedef struct relay_conn {
  relay *r;
  int fd;
} relay_conn;

static void relay_note(relay *r, const char *head, size_t len) {
  size_t used;
  pthread_mutex_lock(&r->lock);
  used = strlen(r->heads);
  if (used + len < sizeof r->heads) {
    memcpy(r->heads + used, head, len);
    r->heads[used + len] = 0;
  }
  if (strncmp(head, "CONNECT ", 8) == 0) r->tunnels++;
  else r->requests++;
  pthread_mutex_unlock(&r->lock);
}

static int relay_dial(const relay *r) {
  struct sockaddr_in at;
  int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  memset(&at, 0, sizeof at);
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  at.sin_port = htons(r->to);
  (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (connect(fd, (struct sockaddr *)&at, sizeof at) == 0) return fd;
  close(fd);
  return -1;
}

/* Turns "GET http://host/path" into "GET /path", and takes out what is for the proxy. The client sends a head in one
 * piece. */
static bool relay_forward_head(relay *r, int to, char *text, size_t len) {
  char *end = find_bytes(text, len, "\r\n\r\n"), *scheme, *path, *auth, *auth_end;
  if (!end) return false;
  relay_note(r, text, (size_t)(end - text) + 4);
  scheme = find_bytes(text, len, " http://");
  path = (char *)memchr(scheme + 8, '/', (size_t)(text + len - scheme) - 8);
  auth = find_bytes(text, len, "proxy-authorization: ");
  if (!path || !auth) return false;
  auth_end = find_bytes(auth, (size_t)(text + len - auth), "\r\n") + 2;
  return send_all(to, text, (size_t)(scheme - text) + 1) && send_all(to, path, (size_t)(auth - path)) &&
         send_all(to, auth_end, (size_t)(text + len - auth_end));
}

static bool relay_move(relay *r, int from, int to, bool plain_request) {
  static const char *const methods[] = { "GET http://", "POST http://", "PUT http://", "DELETE http://",
                                         "PATCH http://" };
  char buf[65537];
  ssize_t n = recv_some(from, buf, sizeof buf - 1);
  size_t i;
  if (n <= 0) return false;
  buf[n] = 0;
  for (i = 0; plain_request && i < E2B__COUNT(methods); i++)
    if (strncmp(buf, methods[i], strlen(methods[i])) == 0) return relay_forward_head(r, to, buf, (size_t)n);
  return send_all(to, buf, (size_t)n);
}

static void relay_pump(relay *r, int a, int b, bool plain) {
  while (!__atomic_load_n(&r->stop, __ATOMIC_SEQ_CST)) {
    struct pollfd fds[2];
    fds[0].fd = a;
    fds[1].fd = b;
    fds[0].events = fds[1].events = POLLIN;
    fds[0].revents = fds[1].revents = 0;
    if (poll(fds, 2, 20) <= 0) continue;
    if (fds[0].revents && !relay_move(r, a, b, plain)) return;
    if (fds[1].revents && !relay_move(r, b, a, false)) return;
  }
}

static void *relay_serve(void *arg) {
  static const char ok[] = "HTTP/1.0 200 Connection established\r\nProxy-Agent: test\r\n\r\n";
  relay_conn *conn = (relay_conn *)arg;
  relay *r = conn->r;
  char first[8] = "";
  struct pollfd p;
  int to = relay_dial(r), on = 1;
  bool plain = false;
  size_t i;
  (void)setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  p.fd = conn->fd;
  p.events = POLLIN;
  while (!__atomic_load_n(&r->stop, __ATOMIC_SEQ_CST) && poll(&p, 1, 20) <= 0) continue;
  if (to >= 0 && recv(conn->fd, first, sizeof first, MSG_PEEK | MSG_DONTWAIT) > 0) {
    plain = strncmp(first, "CONNECT ", 8) != 0;
    if (!plain) {
      char head[4096];
      ssize_t n = recv_some(conn->fd, head, sizeof head - 1);
      head[n > 0 ? (size_t)n : 0] = 0;
      relay_note(r, head, strlen(head));
      for (i = 0; r->one_byte && i < strlen(ok); i++) {
        (void)send_all(conn->fd, ok + i, 1);
        if (i % 8 == 0) sleep_ms(1);
      }
      if (!r->one_byte) (void)send_all(conn->fd, ok, strlen(ok));
    }
    relay_pump(r, conn->fd, to, plain);
  }
  if (to >= 0) close(to);
  close(conn->fd);
  pthread_mutex_lock(&r->lock);
  r->live--;
  pthread_mutex_unlock(&r->lock);
  free(conn);
  return NULL;
}

static void *relay_accept(void *arg) {
  relay *r = (relay *)arg;
  while (!__atomic_load_n(&r->stop, __ATOMIC_SEQ_CST)) {
    struct pollfd p;
    relay_conn *conn;
    pthread_t thread;
    int fd;
    p.fd = r->listener;
    p.events = POLLIN;
    if (poll(&p, 1, 20) <= 0 || (fd = accept(r->listener, NULL, NULL)) < 0) continue;
    conn = (relay_conn *)calloc(1, sizeof *conn);
    conn->r = r;
    conn->fd = fd;
    pthread_mutex_lock(&r->lock);
    r->live++;
    pthread_mutex_unlock(&r->lock);
    if (pthread_create(&thread, NULL, relay_serve, conn) == 0) pthread_detach(thread);
  }
  return NULL;
}

static void relay_start(relay *r, uint16_t to) {
  memset(r, 0, sizeof *r);
  r->to = to;
  pthread_mutex_init(&r->lock, NULL);
  r->listener = listen_somewhere(&r->port);
  CHECK(r->listener >= 0 && pthread_create(&r->thread, NULL, relay_accept, r) == 0);
}

static void relay_stop(relay *r) {
  int live = 1;
  __atomic_store_n(&r->stop, 1, __ATOMIC_SEQ_CST);
  pthread_join(r->thread, NULL);
  while (live) {
    pthread_mutex_lock(&r->lock);
    live = r->live;
    pthread_mutex_unlock(&r->lock);
    if (live) sleep_ms(1);
  }
  close(r->listener);
  pthread_mutex_destroy(&r->lock);
}

/* TLS goes through the tunnel, with the name of the server, which only the proxy resolves; the server gets to see
 * neither user nor password of the proxy, the proxy not the key. */
static void test_proxy_tunnel(void) {
  static const net_names names = { "CN=api.test", "api.test", NULL, 0, NULL, NULL, false };
  static relay r;
  e2b_client_config config;
  e2b_sandbox_list list = { { 0 }, NULL, 0, NULL };
  e2b_client *client;
  net_server s;
  e2b_error err;
  size_t fds = (size_t)open_fds();
  char proxy[64];
  int round;
  net_tls_server_start(&s, NET_ECHO, &names, NULL);
  for (round = 0; round < 2; round++) {
    relay_start(&r, s.port);
    r.one_byte = round == 1;
    config = edge_config("https://api.test:8443", r.port, proxy);
    client = edge_client(&config, &err);
    CHECK_RC(e2b_api_list(client, NULL, &list, &err), E2B_ERR_PROTOCOL); /* its request came back: no HTTP answer */
    edge_check_no_secret(&err);
    CHECK_STR(r.heads, "CONNECT api.test:8443 HTTP/1.1\r\nhost: api.test:8443\r\nproxy-authorization: Basic " EDGE_BASIC
                       "\r\n\r\n");
    e2b_client_free(client);
    config.api_url = "https://other.test:8443"; /* which is not in the certificate */
    client = edge_client(&config, &err);
    CHECK_RC(e2b_api_list(client, NULL, &list, &err), E2B_ERR_TLS_CERTIFICATE);
    CHECK_HAS(err.message, "other.test:8443");
    e2b_client_free(client);
    relay_stop(&r);
  }
  net_tls_server_stop(&s);
  CHECK_HAS(s.heard, "GET /v2/sandboxes HTTP/1.1\r\nhost: api.test:8443\r\n");
  CHECK_HAS(s.heard, "x-api-key: api-key");
  CHECK(!strstr(s.heard, "proxy-authorization") && !strstr(s.heard, EDGE_BASIC));
  CHECK_INT(open_fds(), fds);
}

static void test_proxy_no_memory(void) {
  static const net_names names = { "CN=api.test", "api.test", NULL, 0, NULL, NULL, false };
  static const e2b_host_entry hosts[] = { { "*", "127.0.0.1" } };
  static relay r;
  e2b_client_config config;
  e2b_client *client;
  net_server s;
  e2b_error err;
  test_heap heap;
  char proxy[64];
  size_t n;
  bool done = false;
  net_tls_server_start(&s, NET_ECHO, &names, NULL);
  relay_start(&r, s.port);
  config = edge_config("https://api.test", r.port, proxy);
  config.hosts = hosts;
  config.host_count = 1;
  config.no_proxy = "nothing";
  for (n = 1; !done && n < 200; n++) {
    e2b_err rc = E2B_ERR_NO_MEMORY;
    e2b__link l;
    config.allocator = heap_allocator(&heap);
    heap.fail_at = n;
    client = e2b_client_create(&config, &err);
    if (client) {
      e2b__link_init(&l, &client->net);
      rc = e2b__link_open(&l, "api.test", 443, true, now_ms(), &err);
      while (rc == E2B_OK && (rc = e2b__link_step(&l, now_ms(), &err)) == E2B_PENDING) {
        sleep_ms(1);
        rc = E2B_OK;
      }
      done = l.state == E2B__LINK_READY && heap.calls < n;
      if (l.state == E2B__LINK_READY) rc = E2B_OK;
      e2b__link_close(&l);
    }
    CHECK(rc == E2B_OK || (rc == E2B_ERR_NO_MEMORY && err.code == rc));
    e2b_client_free(client);
    HEAP_CHECK_EMPTY(&heap);
  }
  CHECK(done && n > 20);
  relay_stop(&r);
  net_tls_server_stop(&s);
}

/* Everything through a proxy: control plane, commands, files, streams. */
static void e2e_proxy(fixture *f) {
  static relay r;
  e2b_client_config config;
  e2b_client_stats stats;
  e2b_command_result result = { 0 };
  e2b_run_opts opts = { 0 };
  e2b_sandbox *sandbox = NULL;
  e2b_client *client;
  e2b_buf file = { { 0 }, NULL, 0 };
  e2b_attach_opts attach;
  e2b_error err;
  char proxy[64], head[64], path[200];
  static char big[300000];
  memset(&attach, 0, sizeof attach);
  attach.base_url = the_host->url;
  attach.access_token = getenv("E2B_ENVD_TOKEN");
  relay_start(&r, (uint16_t)strtoul(strrchr(the_host->url, ':') + 1, NULL, 10));
  config = edge_config(the_host->url, r.port, proxy);
  config.api_key = HOST_KEY;
  config.tls.ca_pem = NULL;
  if (the_host->tls) config.tls.ca_file = the_host->ca_file;
  if (the_host->kruise) {
    config.api_url = config.sandbox_url = NULL;
    config.protocol = E2B_PROTOCOL_PRIVATE;
    config.scheme = "http";
    config.domain = strstr(the_host->url, "//") + 2;
  }
  client = edge_client(&config, &err);
  if (the_host->control_plane)
    CHECK_OK(e2b_sandbox_create(client, NULL, NULL, &sandbox, &err));
  else
    CHECK_OK(e2b_sandbox_attach(client, "test", &attach, &sandbox, &err));
  if (sandbox) {
    CHECK_OK(e2b_commands_run(sandbox, "echo through; echo the proxy >&2", &opts, &result, &err));
    CHECK_STR(result.stdout_data.ptr, "through\n");
    e2b_mem_free(&result.mem);
    memset(big, 'z', sizeof big);
    snprintf(path, sizeof path, "%s/big", f->dir);
    CHECK_OK(e2b_files_write(sandbox, path, big, sizeof big, NULL, NULL, &err));
    CHECK_OK(e2b_files_read(sandbox, path, NULL, &file, &err));
    CHECK(file.len == sizeof big && memcmp(file.data, big, sizeof big) == 0);
    e2b_mem_free(&file.mem);
    if (the_host->control_plane) CHECK_OK(e2b_sandbox_close(sandbox, NULL, &err));
  }
  e2b_client_get_stats(client, &stats);
  e2b_client_free(client);
  relay_stop(&r);
  edge_check_no_secret(&err);
  if (the_host->tls) snprintf(head, sizeof head, "CONNECT %.40s HTTP/1.1\r\n", the_host->url + 8);
  else snprintf(head, sizeof head, "POST %.40s/", the_host->url);
  CHECK_HAS(r.heads, head);
  CHECK_INT(the_host->tls ? r.tunnels : r.requests > 2, the_host->tls ? (int)stats.connections_made : 1);
  CHECK(!the_host->tls || (r.requests == 0 && !strstr(r.heads, HOST_KEY))); /* nothing of ours in the clear */
}

/* ---- client certificates, pins, authorities ---- */

/* Demands a certificate of the test CA. The server must not have been connected to yet. */
static void edge_demand_certificate(net_server *s, mbedtls_x509_crt *ca) {
  mbedtls_x509_crt_init(ca);
  CHECK_INT(mbedtls_x509_crt_parse(ca, (const unsigned char *)net_the_pki->ca_pem, strlen(net_the_pki->ca_pem) + 1), 0);
  mbedtls_ssl_conf_ca_chain(&s->conf, ca, NULL);
  mbedtls_ssl_conf_authmode(&s->conf, MBEDTLS_SSL_VERIFY_REQUIRED);
}

/* Connects and exchanges data: with TLS 1.3 a server refuses a certificate only then. */
static e2b_err edge_exchange(const e2b_tls_config *tls, uint16_t port, int times, e2b_error *err) {
  e2b_err rc = E2B_OK;
  net_client c;
  e2b__link l;
  int n, i;
  net_client_init(&c, NULL);
  c.net.tls_config = *tls;
  for (i = 0; i < times && rc == E2B_OK; i++) {
    char byte = 'x';
    rc = net_connect(&c, &l, "localhost", port, true, err);
    if (rc == E2B_OK) {
      n = e2b__link_write(&l, &byte, 1, err);
      while (n == 1 && (n = e2b__link_read(&l, &byte, 1, err)) == E2B_IO_AGAIN) {
        net_wait(&c, &l, true, false, 100);
        n = 1;
      }
      rc = n == 1 ? E2B_OK : n == E2B_IO_EOF ? E2B_ERR_TLS : (e2b_err)n;
    }
    e2b__link_close(&l);
  }
  net_client_free(&c);
  return rc;
}

static void edge_pem(const char *begin, const char *end, const uint8_t *der, size_t len, char *out, size_t cap) {
  size_t written = 0;
  CHECK_INT(mbedtls_pem_write_buffer(begin, end, der, len, (unsigned char *)out, cap, &written), 0);
}

static void test_tls_client_certificate(void) {
  static const net_names client_names = { "CN=client", NULL, NULL, 0, NULL, NULL, false };
  static const net_names stranger = { "CN=stranger", NULL, NULL, 0, NULL, NULL, true };
  char cert_pem[2048], key_pem[2048], other_key_pem[2048], stranger_pem[2048];
  uint8_t cert[2048], key[512], strange[2048];
  size_t cert_len = net_cert_make(&client_names, cert, sizeof cert);
  size_t strange_len = net_cert_make(&stranger, strange, sizeof strange);
  int key_len = mbedtls_pk_write_key_der(&net_the_pki->key, key, sizeof key);
  mbedtls_x509_crt ca;
  e2b_tls_config tls, zero;
  net_server s;
  e2b_error err;
  edge_pem("-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n", cert, cert_len, cert_pem, sizeof cert_pem);
  edge_pem("-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n", strange, strange_len, stranger_pem,
           sizeof stranger_pem);
  CHECK(key_len > 0);
  CHECK_INT(mbedtls_pk_write_key_pem(&net_the_pki->key, (unsigned char *)key_pem, sizeof key_pem), 0);
  CHECK_INT(mbedtls_pk_write_key_pem(&net_the_pki->ca_key, (unsigned char *)other_key_pem, sizeof other_key_pem), 0);
  net_tls_server_start(&s, NET_ECHO, &net_localhost, NULL);
  edge_demand_certificate(&s, &ca);
  memset(&zero, 0, sizeof zero);
  zero.ca_pem = net_the_pki->ca_pem;

  tls = zero;
  tls.client_cert_pem = cert_pem;
  tls.client_key_pem = key_pem;
  CHECK_INT(edge_exchange(&tls, s.port, 3, &err), E2B_OK); /* twice resumed */
  tls.client_cert_pem = (const char *)cert; /* DER */
  tls.client_cert_pem_len = cert_len;
  tls.client_key_pem = (const char *)key + sizeof key - (size_t)key_len;
  tls.client_key_pem_len = (size_t)key_len;
  CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_OK);
  tls.client_cert_pem_len = strlen(cert_pem) + 1; /* PEM with its NUL counted */
  tls.client_cert_pem = cert_pem;
  CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_OK);

  tls = zero;
  tls.client_cert_pem = stranger_pem;
  tls.client_key_pem = key_pem;
#if E2B__TLS13 /* the server breaks off what is a connection to us, with or without an alert */
  CHECK(edge_exchange(&zero, s.port, 1, &err) < 0);
  CHECK(edge_exchange(&tls, s.port, 1, &err) < 0);
#else
  CHECK_INT(edge_exchange(&zero, s.port, 1, &err), E2B_ERR_TLS);
  CHECK_HAS(err.message, "client certificate");
  CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_ERR_TLS);
  CHECK_HAS(err.message, "client certificate");
#endif

  tls.client_cert_pem = cert_pem;
  tls.client_key_pem = other_key_pem;
  CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_ERR_TLS);
  CHECK_HAS(err.message, "not the key of tls.client_cert_pem");
  CHECK_INT(err.subject, E2B_SUBJECT_OPTION);
  tls.client_key_pem = "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n";
  CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_ERR_TLS);
  CHECK_HAS(err.message, "tls.client_key_pem cannot be used");
  tls.client_cert_pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
  CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_ERR_TLS);
  CHECK_HAS(err.message, "tls.client_cert_pem cannot be used");
  CHECK_INT(err.subject, E2B_SUBJECT_OPTION);
  net_tls_server_stop(&s);
  mbedtls_x509_crt_free(&ca);

  /* a server that asks for none does not mind */
  net_tls_server_start(&s, NET_ECHO, &net_localhost, NULL);
  tls.client_cert_pem = cert_pem;
  tls.client_key_pem = key_pem;
  CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_OK);
  net_tls_server_stop(&s);
}

static void edge_hex_bytes(const char *hex, uint8_t out[32]) {
  size_t i;
  for (i = 0; i < 32; i++) out[i] = (uint8_t)(e2b__hex_value(hex[2 * i]) * 16 + e2b__hex_value(hex[2 * i + 1]));
}

static void edge_pin(const mbedtls_pk_context *key, uint8_t out[32]) {
  uint8_t der[512];
  int len = mbedtls_pk_write_pubkey_der((mbedtls_pk_context *)(uintptr_t)key, der, sizeof der);
  char hex[65];
  sha256 hash;
  sha256_start(&hash);
  sha256_add(&hash, der + sizeof der - (size_t)len, (size_t)len);
  sha256_hex(&hash, hex);
  edge_hex_bytes(hex, out);
}

static void test_tls_pins(void) {
  static const net_names own = { "CN=localhost", "localhost", NULL, 0, NULL, NULL, true };
  uint8_t pins[3][32];
  e2b_tls_config tls, zero;
  net_server s;
  e2b_error err;
  memset(&zero, 0, sizeof zero);
  zero.ca_pem = net_the_pki->ca_pem;
  memset(pins, 7, sizeof pins);
  edge_pin(&net_the_pki->key, pins[2]);
  net_tls_server_start(&s, NET_ECHO, &net_localhost, NULL);
  tls = zero;
  tls.pin_sha256 = pins[0];
  tls.pin_count = 3; /* any one */
  CHECK_INT(edge_exchange(&tls, s.port, 3, &err), E2B_OK); /* resumed sessions too */
  s.heard[0] = 0;
  tls.pin_count = 2;
  CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_ERR_TLS_CERTIFICATE);
  CHECK_HAS(err.message, "tls.pin_sha256");
  CHECK_INT(err.phase, E2B_PHASE_TLS);
  edge_pin(&net_the_pki->ca_key, pins[0]); /* the server's own key counts, not its issuer's */
  CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_ERR_TLS_CERTIFICATE);
  tls.insecure_skip_verify = true; /* pins hold */
  CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_ERR_TLS_CERTIFICATE);
  CHECK_HAS(err.message, "tls.pin_sha256");
  tls.pin_count = 3;
  net_tls_server_stop(&s);
  CHECK_STR(s.heard, ""); /* not a byte of a request */
  net_tls_server_start(&s, NET_ECHO, &own, NULL);
  CHECK_INT(edge_exchange(&tls, s.port, 2, &err), E2B_OK); /* self-signed and pinned */
  tls.insecure_skip_verify = false;
  CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_ERR_TLS_CERTIFICATE); /* a pin does not replace the chain */
  CHECK_HAS(err.message, "issuer is unknown");
  net_tls_server_stop(&s);
}

static void test_tls_more_authorities(void) {
  static const net_names other = { "CN=Other CA", NULL, NULL, 0, NULL, NULL, true };
  char pem[2048], dir[] = "/tmp/e2b-test-ca-XXXXXX", file[64];
  uint8_t der[2048];
  size_t len = net_cert_make(&other, der, sizeof der);
  e2b_tls_config tls;
  net_server s;
  e2b_error err;
  FILE *out;
  edge_pem("-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n", der, len, pem, sizeof pem);
  CHECK(mkdtemp(dir) != NULL);
  snprintf(file, sizeof file, "%s/ca.pem", dir);
  out = fopen(file, "w");
  CHECK(out && fputs(net_the_pki->ca_pem, out) >= 0 && fclose(out) == 0);
  net_tls_server_start(&s, NET_ECHO, &net_localhost, NULL);
  memset(&tls, 0, sizeof tls);
  tls.ca_path = dir;
  CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_OK);
  tls.ca_path = "/nonexistent/";
  CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_ERR_TLS);
  CHECK_HAS(err.message, "tls.ca_path /nonexistent/ cannot be used");
  tls.ca_path = NULL;
  tls.ca_pem = pem; /* instead of the machine's, */
  (void)setenv("SSL_CERT_FILE", file, 1);
  CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_ERR_TLS_CERTIFICATE);
  tls.ca_add = true; /* or besides them */
  CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_OK);
  tls.ca_pem = net_the_pki->ca_pem;
  (void)unsetenv("SSL_CERT_FILE");
  CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_OK);
  net_tls_server_stop(&s);
  (void)unlink(file);
  (void)rmdir(dir);
}

static void test_tls_13_only(void) {
  e2b_client_config config;
  e2b_client *client;
  e2b_error err;
  memset(&config, 0, sizeof config);
  config.no_env = config.tls.min_tls13 = true;
  client = e2b_client_create(&config, &err);
#if E2B__TLS13
  {
    e2b_tls_config tls;
    net_server s;
    CHECK(client != NULL);
    memset(&tls, 0, sizeof tls);
    tls.ca_pem = net_the_pki->ca_pem;
    tls.min_tls13 = true;
    net_tls_server_start(&s, NET_ECHO, &net_localhost, NULL);
    CHECK_INT(edge_exchange(&tls, s.port, 2, &err), E2B_OK);
    net_tls_server_stop(&s);
    net_tls_server_start(&s, NET_ECHO, &net_localhost, NULL);
    mbedtls_ssl_conf_max_tls_version(&s.conf, MBEDTLS_SSL_VERSION_TLS1_2);
    CHECK_INT(edge_exchange(&tls, s.port, 1, &err), E2B_ERR_TLS);
    CHECK_HAS(err.message, "TLS handshake failed");
    net_tls_server_stop(&s);
  }
#else
  CHECK(!client);
  CHECK_INT(err.code, E2B_ERR_NOT_BUILT);
  CHECK_HAS(err.message, "tls.min_tls13");
#endif
  e2b_client_free(client);
}

static void test_tls_options(void) {
  static const uint8_t pin[32] = { 1 };
  e2b_transport t = *e2b__net_transport();
  e2b_client_config zero, c;
  t.flags = E2B_TRANSPORT_HAS_TLS;
  memset(&zero, 0, sizeof zero);
  zero.no_env = true;
  c = zero;
  c.tls.client_cert_pem = "-----BEGIN CERTIFICATE-----";
  sb_refused(&c, "tls.client_key_pem");
  c.tls.client_key_pem = "no key";
  sb_refused(&c, "tls.client_key_pem");
  c.tls.client_cert_pem = "no certificate";
  sb_refused(&c, "tls.client_cert_pem");
  c.tls.client_cert_pem = NULL;
  c.tls.client_key_pem = "-----BEGIN EC PRIVATE KEY-----";
  sb_refused(&c, "tls.client_cert_pem");
  c = zero;
  c.tls.pin_count = 1;
  sb_refused(&c, "tls.pin_sha256");
  c.tls.pin_sha256 = pin;
  c.transport = &t; /* which would know nothing of the pins */
  sb_refused(&c, "tls");
}

/* Everything that is copied, and every allocation of it failing. */
static void test_edges_copied(void) {
  char url[] = "http://u:p@proxy:1", list[] = "a.test", cert[] = "-----BEGIN CERT", key[] = "-----BEGIN KEY";
  char dir[] = "/dir", host[] = "x.test:5", address[] = "10.1.1.1";
  uint8_t pins[64];
  e2b_host_entry entry;
  e2b_client_config config;
  e2b_client *client;
  e2b_error err;
  test_heap heap;
  size_t n, total;
  memset(&config, 0, sizeof config);
  memset(pins, 5, sizeof pins);
  entry.host = host;
  entry.address = address;
  config.no_env = true;
  config.proxy_url = url;
  config.no_proxy = list;
  config.hosts = &entry;
  config.host_count = 1;
  config.tls.client_cert_pem = cert;
  config.tls.client_key_pem = key;
  config.tls.ca_path = dir;
  config.tls.pin_sha256 = pins;
  config.tls.pin_count = 2;
  config.allocator = heap_allocator(&heap);
  client = edge_client(&config, &err);
  total = heap.calls;
  memset(url, 'z', 5);
  memset(list, 'z', 5);
  memset(cert, 'z', 5);
  memset(key, 'z', 5);
  memset(dir, 'z', 4);
  memset(host, 'z', 5);
  memset(pins, 6, sizeof pins);
  CHECK_STR(edge_proxy_of(client, "b.test", true), "proxy");
  CHECK_STR(edge_proxy_of(client, "a.test", true), "");
  CHECK_STR(client->net.proxies.https.auth, "Basic dTpw");
  CHECK_STR(client->net.hosts[0].name, "x.test");
  CHECK_STR(client->net.tls_config.client_cert_pem, "-----BEGIN CERT");
  CHECK_STR(client->net.tls_config.client_key_pem, "-----BEGIN KEY");
  CHECK_STR(client->net.tls_config.ca_path, "/dir");
  CHECK_INT(client->net.tls_config.pin_sha256[63], 5);
  e2b_client_free(client);
  HEAP_CHECK_EMPTY(&heap);
  memcpy(url, "http:", 5);
  memcpy(cert, "-----", 5);
  memcpy(key, "-----", 5);
  memcpy(host, "y.tes", 5);
  for (n = 1; n <= total; n++) {
    config.allocator = heap_allocator(&heap);
    heap.fail_at = n;
    CHECK(e2b_client_create(&config, &err) == NULL);
    CHECK_INT(err.code, E2B_ERR_NO_MEMORY);
    HEAP_CHECK_EMPTY(&heap);
  }
}

/* ---- reading ---- */

/* A transport that counts: how often there was something to read, and how often the loop waited though the last read
 * had still given something. */
typedef struct counted {
  void *conn;
  bool again;
  unsigned reads, early_waits;
} counted;

static int counted_open(void *user, const e2b_endpoint *to, void **conn) {
  int rc = e2b__sock_open(NULL, to, conn);
  ((counted *)user)->conn = *conn;
  return rc;
}

static int counted_rx(void *user, void *conn, void *buf, size_t cap) {
  counted *c = (counted *)user;
  int n = e2b__sock_rx(NULL, conn, buf, cap);
  c->again = n <= 0;
  if (n > 0) c->reads++;
  return n;
}

static void counted_wait(void *user, int timeout_ms) {
  counted *c = (counted *)user;
  struct pollfd p;
  if (!c->again) c->early_waits++;
  p.fd = (int)e2b__sock_of(c->conn);
  p.events = POLLIN;
  poll(&p, 1, timeout_ms < 0 || timeout_ms > 20 ? 20 : timeout_ms);
}

/* TLS records that came together are read in one go, not one after each wait. */
static void e2e_reads_on(fixture *f) {
  e2b_client_config config = host_config(the_host);
  e2b_transport t = *e2b__net_transport();
  e2b_attach_opts attach;
  e2b_buf file = { { 0 }, NULL, 0 };
  e2b_sandbox *sandbox;
  e2b_client *client;
  e2b_error err;
  counted c;
  char *big = (char *)calloc(1, 4u << 20);
  memset(&c, 0, sizeof c);
  memset(&attach, 0, sizeof attach);
  CHECK_OK(e2b_files_write(f->sandbox, in_dir(f, "big"), big, 4u << 20, NULL, NULL, &err));
  t.open_fn = counted_open;
  t.rx_fn = counted_rx;
  t.wait_fn = counted_wait;
  t.fd_fn = NULL;
  t.user = &c;
  config.transport = &t;
  config.io_buffer_size = 65536; /* more than a record: a short read does not mean that there is no more */
  attach.base_url = e2b_sandbox_runtime_url(f->sandbox);
  attach.envd_version = e2b_sandbox_envd_version(f->sandbox);
  attach.access_token = the_host->control_plane ? e2b_sandbox_access_token(f->sandbox) : getenv("E2B_ENVD_TOKEN");
  client = edge_client(&config, &err);
  CHECK_OK(e2b_sandbox_attach(client, e2b_sandbox_id(f->sandbox), &attach, &sandbox, &err));
  CHECK_OK(e2b_files_read(sandbox, in_dir(f, "big"), NULL, &file, &err));
  CHECK_INT(file.len, 4u << 20);
  if (verbose) printf("  %u reads, %u waits that came early\n", c.reads, c.early_waits);
  if (the_host->tls) CHECK(c.reads > 256 && c.early_waits * 8 <= c.reads);
  e2b_mem_free(&file.mem);
  e2b_client_free(client);
  free(big);
}
/* ================================================================================================================== */
/* >>>> table */
/* ================================================================================================================== */

typedef enum test_needs {
  NEEDS_NOTHING = 0,
  NEEDS_HOST,    /* a sandbox: runs on every host */
  NEEDS_CONTENT, /* the same, but it moves file content, which knows no codec: not on the hosts of JSON */
  NEEDS_CODE,    /* a code interpreter, which knows none either */
  NEEDS_SERVER,  /* a control plane too: runs on every host that has one; not on those of JSON, as it knows no codec */
  NEEDS_PYTHON,  /* a control plane and the code interpreter of the local server */
  NEEDS_NATIVE   /* a control plane that is E2B's: what OpenKruise does not have, or our likeness of it */
} test_needs;

typedef struct test {
  const char *name;
  void (*unit)(void);
  void (*end_to_end)(fixture *f);
  test_needs needs;
} test;

#define UNIT(function) { #function, test_##function, NULL, NEEDS_NOTHING }
#define HOST(function) { #function, NULL, e2e_##function, NEEDS_HOST }
#define CONTENT(function) { #function, NULL, e2e_##function, NEEDS_CONTENT }
#define CODE(function) { #function, NULL, e2e_##function, NEEDS_CODE }
#define SERVER(function) { #function, NULL, e2e_##function, NEEDS_SERVER }
#define PYTHON(function) { #function, NULL, e2e_##function, NEEDS_PYTHON }
#define NATIVE(function) { #function, NULL, e2e_##function, NEEDS_NATIVE }

static const test tests[] = {
  UNIT(codec_vectors), UNIT(codec_truncated), UNIT(codec_damaged), UNIT(codec_order_and_noise),
  UNIT(codec_no_memory), UNIT(codec_limits), UNIT(pb_malformed), UNIT(pb_rules), UNIT(pb_long), UNIT(json_grammar),
  UNIT(json_depth), UNIT(json_strings), UNIT(json_integers), UNIT(json_writer), UNIT(json_times), UNIT(json_base64),
  UNIT(json_rules), UNIT(json_rest), UNIT(json_connect_end), UNIT(messages_tables),
  UNIT(url_parse), UNIT(url_ip), UNIT(url_escape), UNIT(url_metadata), UNIT(version_compare), UNIT(header_validity),
  UNIT(retry_after), UNIT(headers), UNIT(headers_injection), UNIT(http1_write_head), UNIT(http1_responses),
  UNIT(http1_fields), UNIT(http1_details), UNIT(http1_reuse), UNIT(http1_events_abort), UNIT(http1_limits),
  UNIT(http1_no_memory), UNIT(http1_fuzz),
#if !defined(E2B_NO_HTTP2)
  UNIT(hpack_vectors), UNIT(hpack_faults), UNIT(hpack_integers), UNIT(hpack_encoder),
  UNIT(http2_splits), UNIT(http2_spoiled_streams), UNIT(http2_broken_connections), UNIT(http2_order), UNIT(http2_ends),
  UNIT(http2_windows), UNIT(http2_floods), UNIT(http2_no_memory),
#endif
  UNIT(net_clock_random), UNIT(net_wake), UNIT(net_poll), UNIT(dns_names), UNIT(dns_known), UNIT(dns_thread),
  UNIT(dns_interleave), UNIT(dns_cache), UNIT(link_plain), UNIT(link_refused), UNIT(link_dual_stack),
  UNIT(link_resolving), UNIT(link_reset), UNIT(link_many_fds), UNIT(link_happy_eyeballs), UNIT(link_custom),
  UNIT(tls_ok), UNIT(tls_resume), UNIT(tls_resume_corrupt), UNIT(tls_session_slots), UNIT(tls_certificates),
  UNIT(tls_address_names), UNIT(tls_unknown_ca), UNIT(tls_ca), UNIT(tls_not_tls), UNIT(tls_alpn_mismatch),
#if defined(MBEDTLS_SSL_PROTO_TLS1)
  UNIT(tls_old_server),
#endif
  UNIT(tls_eof), UNIT(tls_idle_tickets), UNIT(tls_one_byte), UNIT(tls_cut), UNIT(tls_no_memory), UNIT(tls_signals),
  UNIT(sandbox_names), UNIT(client_defaults), UNIT(client_precedence), UNIT(client_environment), UNIT(client_urls),
  UNIT(client_refuses), UNIT(client_copies), UNIT(sandbox_create_minimal), UNIT(sandbox_create_everything),
  UNIT(sandbox_golden_requests), UNIT(sandbox_private_protocol), UNIT(sandbox_answer_domain), UNIT(sandbox_attach),
  UNIT(sandbox_arguments), UNIT(sandbox_error_mapping), UNIT(sandbox_kill_and_pause), UNIT(sandbox_no_key),
  UNIT(sandbox_strange_answers), UNIT(sandbox_lost_connections), UNIT(sandbox_timeouts), UNIT(sandbox_info),
  UNIT(sandbox_list_pages), UNIT(sandbox_fixed_storage), UNIT(sandbox_is_running),
  UNIT(sandbox_secrets_stay_in_their_plane), UNIT(sandbox_non_blocking), UNIT(sandbox_cancel),
  UNIT(sandbox_inside_callbacks), UNIT(sandbox_close_non_blocking), UNIT(sandbox_free_cancels),
  UNIT(client_free_in_flight), UNIT(sandbox_debug), UNIT(sandbox_no_memory), UNIT(sandbox_many_lives),
  UNIT(api_golden_requests), UNIT(api_private_protocol), UNIT(api_metrics), UNIT(api_logs), UNIT(api_snapshots),
  UNIT(api_arguments), UNIT(api_non_blocking), UNIT(create_nonce), UNIT(heartbeat), UNIT(heartbeat_lost),
  UNIT(heartbeat_ends), UNIT(raw_api),
  UNIT(raw_streams), UNIT(raw_limit), UNIT(raw_repeats), UNIT(raw_arguments), UNIT(raw_sandbox_targets),
  UNIT(raw_sandbox_answers), UNIT(raw_non_blocking), UNIT(api_no_memory),
  UNIT(files_arguments), UNIT(files_list), UNIT(files_rpcs), UNIT(files_read), UNIT(files_read_limit),
  UNIT(files_read_errors), UNIT(files_read_cut), UNIT(files_download), UNIT(files_download_held), UNIT(files_write),
  UNIT(files_write_answers), UNIT(files_write_early), UNIT(files_form_fallback), UNIT(files_write_stale),
  UNIT(files_upload), UNIT(files_read_stream), UNIT(files_read_stream_cut), UNIT(files_read_stream_control),
  UNIT(files_read_stream_deadline), UNIT(files_read_stream_held), UNIT(files_write_stream),
  UNIT(files_write_stream_control), UNIT(files_no_memory),
  UNIT(rpc_json_unary), UNIT(rpc_json_bad_answers), UNIT(rpc_json_stream), UNIT(rpc_pulled), UNIT(rpc_stream_cut),
  UNIT(rpc_stream_damaged), UNIT(rpc_same_errors), UNIT(rpc_message_limit), UNIT(rpc_415_unary), UNIT(rpc_415_start),
  UNIT(rpc_415_at_once), UNIT(rpc_415_is_final), UNIT(rpc_415_deadline), UNIT(rpc_codec_option), UNIT(rpc_no_memory),
  UNIT(process_input_pieces), UNIT(process_input_order), UNIT(process_input_broken), UNIT(process_input_many),
  UNIT(process_absent), UNIT(process_tree), UNIT(process_tree_control), UNIT(process_detached), UNIT(process_tag),
#ifndef E2B_NO_PTY
  UNIT(process_pty),
#endif
  UNIT(process_no_memory),
  UNIT(code_urls), UNIT(code_requests), UNIT(code_attach), UNIT(code_arguments), UNIT(code_events), UNIT(code_failed),
  UNIT(code_cut), UNIT(code_malformed), UNIT(code_limits), UNIT(code_refused), UNIT(code_strange_contexts),
  UNIT(code_control), UNIT(code_inside_callbacks), UNIT(code_deadlines), UNIT(code_no_memory),
  UNIT(many_one_request), UNIT(many_halves), UNIT(many_unconfirmed), UNIT(many_losses), UNIT(many_max_ops),
  UNIT(many_ends), UNIT(many_reads), UNIT(many_arguments), UNIT(many_no_memory),
  UNIT(tree_names), UNIT(tree_lies), UNIT(tree_limits), UNIT(tree_broken_downloads), UNIT(tree_odd_uploads),
  UNIT(files_parts), UNIT(files_metadata), UNIT(files_atomic), UNIT(files_compose), UNIT(files_urls),
  UNIT(watch_stream), UNIT(watch_refused), UNIT(watch_lost), UNIT(watch_polling), UNIT(watch_callbacks),
  UNIT(watch_held), UNIT(watch_no_memory),
  UNIT(traffic_jwt), UNIT(traffic_schedule), UNIT(traffic_sent), UNIT(traffic_one_refresh), UNIT(traffic_renewal),
  UNIT(traffic_refused), UNIT(traffic_back_off), UNIT(traffic_forced), UNIT(traffic_provider), UNIT(traffic_seed),
  UNIT(traffic_no_memory), UNIT(traffic_secrets), UNIT(list_all), UNIT(list_all_no_memory), UNIT(list_filters),
  UNIT(encode_key), UNIT(config_matrix), UNIT(attach_runtime), UNIT(kruise_answers), UNIT(kruise_old_envd),
#if !defined(E2B_NO_HTTP2)
  UNIT(pool_one_connection), UNIT(pool_stream_limit), UNIT(pool_refused), UNIT(pool_goaway), UNIT(pool_resets), UNIT(pool_lost),
  UNIT(pool_cancel), UNIT(pool_silence), UNIT(pool_deadlines), UNIT(pool_paused), UNIT(pool_upload), UNIT(pool_ids),
  UNIT(pool_not_http2), UNIT(pool_http1_required), UNIT(pool_no_memory),
#endif
  UNIT(bad_answers), UNIT(endless_answers), UNIT(unreachable), UNIT(null_arguments), UNIT(injection),

  UNIT(sha256),

  UNIT(fixed_heap_random), UNIT(fixed_heap_edges), UNIT(hosts), UNIT(hosts_used), UNIT(proxy_urls), UNIT(no_proxy),
  UNIT(proxy_environment), UNIT(proxy_refusals), UNIT(proxy_unreachable), UNIT(proxy_plain), UNIT(proxy_tunnel),
  UNIT(proxy_no_memory), UNIT(tls_client_certificate), UNIT(tls_pins), UNIT(tls_more_authorities), UNIT(tls_13_only),
  UNIT(tls_options), UNIT(edges_copied),

  HOST(run), HOST(run_binary), HOST(run_exit_code), HOST(run_signal), HOST(run_where_and_with), HOST(run_deadlines),
  HOST(run_stdin_is_closed), HOST(run_max_collect), HOST(stream_output), HOST(stream_backpressure), HOST(stream_pause),
  HOST(stdin), HOST(kill), HOST(old_envd), HOST(reconnect), HOST(process_list),
  HOST(send_signal), HOST(kill_tree), HOST(stop), HOST(start_detached), HOST(connect_to_tag), HOST(handle_max_collect),
  HOST(stdin_big), HOST(stdin_given_up),
#ifndef E2B_NO_PTY
  HOST(pty), HOST(pty_reconnect), HOST(pty_backpressure),
#endif
  HOST(write_and_read), HOST(missing_files), HOST(directories), CONTENT(big_file), CONTENT(upload_and_download),
  HOST(streams_given_up), CONTENT(files_content), CONTENT(files_content_as_form), CONTENT(files_streams),
  HOST(files_aborts), CONTENT(files_bulk),
  CONTENT(write_many), CONTENT(write_many_alone), HOST(trees),
  HOST(files_aborts), CONTENT(files_bulk), CONTENT(files_parts), HOST(files_metadata), HOST(files_atomic),
  CONTENT(files_compose), CONTENT(files_urls),
  HOST(watch), HOST(watch_refused), HOST(watch_control), HOST(watch_held), HOST(files_no_memory),
  HOST(op_poll), HOST(drive_by_poll), HOST(drive_by_pump), HOST(drive_by_own_loop), HOST(parallel_commands), HOST(cancel),
  HOST(wake_and_interrupt), HOST(inside_callbacks), HOST(free_with_things_open), HOST(two_clients),
  SERVER(quickstart), SERVER(sandbox_options), SERVER(sandbox_list), SERVER(list_all), SERVER(traffic_tokens), SERVER(pause_and_connect), SERVER(dead_sandbox),
  SERVER(watch_paused),
  SERVER(api_by_id), SERVER(refused_by_the_api), SERVER(wrong_access_token), SERVER(routes), SERVER(many_sandboxes), SERVER(many_streams),
  SERVER(no_memory), SERVER(certificates),
  HOST(proxy), HOST(fixed_heap), HOST(reads_on),
  NATIVE(metrics_and_logs), NATIVE(network), NATIVE(snapshots), NATIVE(auto_pause), SERVER(keep_alive),
  SERVER(find_by_nonce), SERVER(list_filters), HOST(envd_request), NATIVE(api_request), SERVER(port_request),
  SERVER(port_streams), NATIVE(port_routes),
  CODE(code_run), CODE(code_formats), CODE(code_stream), CODE(code_backpressure), CODE(code_contexts),
  CODE(code_interrupt), CODE(code_at_once), PYTHON(code_envs_and_cwd), PYTHON(code_dead_sandbox), PYTHON(code_resumed),
  PYTHON(code_routes),
};

static int passed, failed, skipped;

static bool wanted(const char *name, int count, char **filters) {
  int i;
  for (i = 0; i < count; i++)
    if (strncmp(name, filters[i], strlen(filters[i])) == 0) return true;
  return count == 0;
}

static void run_test(const test *t, const char *name) {
  int failures = check_failures, checks = check_count;
  uint64_t from = now_ms();
  fixture f;
  check_test = name;
  if (verbose) {
    printf("%s\n", name);
    fflush(stdout);
  }
  if (t->unit)
    t->unit();
  else {
    if (fixture_open(&f)) t->end_to_end(&f);
    fixture_close(&f);
  }
  if (verbose) printf("  %d checks, %lu ms\n", check_count - checks, (unsigned long)(now_ms() - from));
  fflush(stdout);
  if (check_failures == failures)
    passed++;
  else
    failed++;
}

static bool runs_on(const test *t, const host *h) {
  if (!h || t->needs == NEEDS_NOTHING) return !h && t->needs == NEEDS_NOTHING;
  if (t->needs != NEEDS_HOST && h->codec == E2B_CODEC_JSON) return false;
  if (t->needs == NEEDS_NATIVE && h->kruise) return false;
  if (t->needs == NEEDS_CODE && !h->control_plane) return getenv("E2B_CODE_URL") != NULL;
  return t->needs < NEEDS_SERVER || h->control_plane;
}

/* Of the local server's code interpreter. */
static bool lacks_python(const test *t, const host *h) {
  if ((t->needs != NEEDS_CODE && t->needs != NEEDS_PYTHON) || !h->control_plane) return false;
  return system("command -v python3 >/dev/null 2>&1") != 0;
}

/* All tests on one host, or those that need none. */
static void run_tests(host *h, bool list, int count, char **filters) {
  char name[100];
  size_t i;
  the_host = h;
  for (i = 0; i < E2B__COUNT(tests); i++) {
    const test *t = &tests[i];
    if (!runs_on(t, h)) continue;
    snprintf(name, sizeof name, "%s%s%s", h ? h->name : "", h ? "/" : "", t->name);
    if (!wanted(name, count, filters)) continue;
    if (list)
      printf("%s\n", name);
    else if (lacks_python(t, h)) {
      printf("skipped: %s (no python3)\n", name);
      skipped++;
    } else if (h && h->control_plane && !host_start(h)) {
      printf("%s: %s (%s)\n", h->pid ? "failed" : "skipped", name, h->why_not);
      if (h->pid)
        failed++;
      else
        skipped++;
    } else
      run_test(t, name);
  }
}

/* The local server lies in the directory of this program. */
static void find_server(const char *program) {
  const char *slash = strrchr(program, '/');
  int len = slash ? (int)(slash - program + 1) : 0;
  snprintf(server_path, sizeof server_path, "%.*slocal_server", len, program);
}

int main(int argc, char **argv) {
  static const char *const variables[] = { "E2B_API_KEY", "E2B_DOMAIN", "E2B_API_URL", "E2B_SANDBOX_URL", "E2B_DEBUG",
                                           "X_API_KEY",   "X_ACCESS_TOKEN", "SCHEME",  "PROTOCOL",
                                           "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy",
                                           "ALL_PROXY",   "no_proxy",       "NO_PROXY" };
  const char *envd = getenv("E2B_ENVD_URL");
  bool list = false;
  size_t i;
  int option;
  if (argc == 2 && strcmp(argv[1], "--echo-server") == 0) return echo_server();
  while ((option = getopt(argc, argv, "lvq")) != -1) {
    if (option == 'l') list = true;
    if (option == 'v') verbose = true;
    if (option == 'q') quick = true;
    if (option == '?') return 2;
  }
  argc -= optind;
  if (getenv("E2B_FRONT_URL") && *getenv("E2B_FRONT_URL")) {
    static char key[100];
    front_url = getenv("E2B_FRONT_URL");
    snprintf(key, sizeof key, "%s", getenv("E2B_API_KEY") ? getenv("E2B_API_KEY") : HOST_KEY);
    front_key = key;
    front_http_version = (uint8_t)strtol(getenv("E2B_FRONT_HTTP") ? getenv("E2B_FRONT_HTTP") : "0", NULL, 10);
  }
  for (i = 0; i < E2B__COUNT(variables); i++) unsetenv(variables[i]);
  find_server(argv[0]);
  argv += optind;
  snprintf(work_dir, sizeof work_dir, "/tmp/e2b-test-XXXXXX");
  if (!list && !mkdtemp(work_dir)) return 2;

  if (front_url) {
    host *front = &hosts[E2B__COUNT(hosts) - 1];
    snprintf(front->url, sizeof front->url, "%s", front_url);
    snprintf(front->ca_file, sizeof front->ca_file, "%s", getenv("E2B_FRONT_CA") ? getenv("E2B_FRONT_CA") : "");
    front->tls = strncmp(front_url, "https", 5) == 0;
    net_pki_open();
    run_tests(front, list, argc, argv);
    net_pki_close();
  } else if (envd && *envd) {
    for (i = 0; i < E2B__COUNT(hosts); i++) {
      if (hosts[i].control_plane) continue;
      snprintf(hosts[i].url, sizeof hosts[i].url, "%s", envd);
      run_tests(&hosts[i], list, argc, argv);
    }
  } else {
    net_pki_open();
    run_tests(NULL, list, argc, argv);
    for (i = 0; i < E2B__COUNT(hosts); i++)
      if (hosts[i].control_plane && hosts[i].pid == 0) run_tests(&hosts[i], list, argc, argv);
    net_pki_close();
  }
  if (list) return 0;
  hosts_stop(failed == 0);
  printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
  return failed ? 1 : 0;
}
