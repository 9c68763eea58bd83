/* cc -std=c99 -I. examples/own_transport.c llhttp.c api.c http.c -lmbedtls -lmbedx509 -lmbedcrypto -lpthread -o own_transport
   E2B_API_KEY=... ./own_transport

   For targets without sockets or malloc: a transport of your own carries the bytes, and the client lives in one static
   block. The transport here is written over POSIX sockets, so that it runs on a PC; a modem, lwIP or a serial line would
   have the same six functions. (mbedTLS has allocator settings of its own, and the few bytes that are shared between
   threads come from E2B_MALLOC; see SWITCHES in e2b.h.) Environment as for quickstart.c. Prints, the numbers being those
   of your build,

       hello over a transport of our own
       21 bytes written, read back: 21
       connections opened and closed: 1, 1
       # memory: at most 14464 of 131072 bytes, now 0 */

#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/socket.h>

#define LINES 4 /* a modem has so many, too */

typedef struct line {
  int fd; /* -1 = free */
} line;

typedef struct modem {
  line lines[LINES];
  unsigned opened, closed;
} modem;

static uint8_t memory[131072];

/* A modem looks names up by itself (E2B_TRANSPORT_HAS_DNS). getaddrinfo stands for that; it blocks, which yours must not. */
static int modem_open(void *user, const e2b_endpoint *to, void **conn) {
  modem *m = (modem *)user;
  struct addrinfo hints, *list = NULL;
  char port[8];
  line *l = NULL;
  int i, rc;
  for (i = 0; i < LINES; i++)
    if (m->lines[i].fd < 0) l = &m->lines[i];
  if (!l) return -EMFILE;
  memset(&hints, 0, sizeof hints);
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  (void)snprintf(port, sizeof port, "%u", (unsigned)to->port);
  if (getaddrinfo(to->host, port, &hints, &list) != 0) return -EHOSTUNREACH;
  l->fd = socket(AF_INET, SOCK_STREAM, 0);
  rc = l->fd < 0 || fcntl(l->fd, F_SETFL, O_NONBLOCK) != 0 ? -1 : connect(l->fd, list->ai_addr, list->ai_addrlen);
  freeaddrinfo(list);
  if (rc != 0 && errno != EINPROGRESS) {
    rc = -errno;
    if (l->fd >= 0) close(l->fd);
    l->fd = -1;
    return rc;
  }
  m->opened++;
  *conn = l;
  return rc == 0 ? 0 : E2B_IO_AGAIN;
}

static int modem_ready(void *user, void *conn) {
  struct pollfd p = { 0, POLLOUT, 0 };
  int code = 0;
  socklen_t len = sizeof code;
  (void)user;
  p.fd = ((line *)conn)->fd;
  if (poll(&p, 1, 0) <= 0) return E2B_IO_AGAIN;
  return getsockopt(p.fd, SOL_SOCKET, SO_ERROR, &code, &len) == 0 ? -code : -errno;
}

static int modem_rx(void *user, void *conn, void *buf, size_t cap) {
  ssize_t n = recv(((line *)conn)->fd, buf, cap, 0);
  (void)user;
  if (n > 0) return (int)n;
  if (n == 0) return E2B_IO_EOF;
  return errno == EAGAIN || errno == EINTR ? E2B_IO_AGAIN : -errno;
}

static int modem_tx(void *user, void *conn, const void *buf, size_t len) {
  ssize_t n = send(((line *)conn)->fd, buf, len, MSG_NOSIGNAL);
  (void)user;
  if (n >= 0) return n > 0 ? (int)n : E2B_IO_AGAIN;
  return errno == EAGAIN || errno == EINTR ? E2B_IO_AGAIN : -errno;
}

static void modem_shut(void *user, void *conn) {
  close(((line *)conn)->fd);
  ((line *)conn)->fd = -1;
  ((modem *)user)->closed++;
}

/* Sleeps until one of the lines may have something, for the blocking calls; a microcontroller would wait for an interrupt. */
static void modem_wait(void *user, int timeout_ms) {
  modem *m = (modem *)user;
  struct pollfd fds[LINES];
  nfds_t count = 0;
  int i;
  for (i = 0; i < LINES; i++) {
    if (m->lines[i].fd < 0) continue;
    fds[count].fd = m->lines[i].fd;
    fds[count].events = POLLIN;
    fds[count++].revents = 0;
  }
  (void)poll(fds, count, timeout_ms < 0 || timeout_ms > 10 ? 10 : timeout_ms); /* 10 ms: what waits to write is not listed */
}

static int failed(const char *what, const e2b_error *err) {
  fprintf(stderr, "%s: %s: %s\n", what, e2b_err_name(err->code), err->message);
  return 1;
}

static int use(e2b_sandbox *sandbox) {
  static const char text[] = "kept in a fixed block";
  char storage[2048];
  e2b_mem fixed = E2B_MEM_FIXED(storage); /* results in memory of ours: nothing is allocated for them */
  e2b_command_result result = { 0 };
  e2b_buf file = { 0 };
  e2b_error err;
  result.mem = file.mem = fixed;
  if (e2b_commands_run(sandbox, "echo hello over a transport of our own", NULL, &result, &err) != E2B_OK)
    return failed("run", &err);
  printf("%s", result.stdout_data.ptr);
  if (e2b_files_write_text(sandbox, "/tmp/own_transport.txt", text, NULL, NULL, &err) != E2B_OK) return failed("write", &err);
  if (e2b_files_read_text(sandbox, "/tmp/own_transport.txt", NULL, &file, &err) != E2B_OK) return failed("read", &err);
  printf("%u bytes written, read back: %u\n", (unsigned)strlen(text), (unsigned)file.len);
  return strcmp((const char *)file.data, text) != 0;
}

int main(void) {
  modem m;
  e2b_transport transport = { 0 };
  e2b_fixed_heap heap;
  e2b_client_config config = { 0 };
  e2b_client *client;
  e2b_sandbox *sandbox;
  e2b_error err;
  int i, status;
  memset(&m, 0, sizeof m);
  for (i = 0; i < LINES; i++) m.lines[i].fd = -1;
  transport.open_fn = modem_open;
  transport.ready_fn = modem_ready;
  transport.rx_fn = modem_rx;
  transport.tx_fn = modem_tx;
  transport.shut_fn = modem_shut;
  transport.wait_fn = modem_wait;
  transport.user = &m;
  transport.flags = E2B_TRANSPORT_HAS_DNS; /* with E2B_TRANSPORT_HAS_TLS too, it would do TLS for us */
  config.transport = &transport;
  config.allocator = e2b_fixed_heap_init(&heap, memory, sizeof memory);
  config.io_buffer_size = 4096;
  config.stream_buffer_size = 8192;
  config.max_message_bytes = 32768;
  config.max_connections = LINES;

  client = e2b_client_create(&config, &err);
  if (!client) return failed("client", &err);
  if (e2b_sandbox_create(client, NULL, NULL, &sandbox, &err) != E2B_OK) {
    status = failed("create", &err);
  } else {
    status = use(sandbox);
    if (e2b_sandbox_close(sandbox, NULL, &err) != E2B_OK) status = failed("close", &err);
  }
  e2b_client_free(client);
  printf("connections opened and closed: %u, %u\n", m.opened, m.closed);
  printf("# memory: at most %lu of %lu bytes, now %lu\n", (unsigned long)heap.peak, (unsigned long)heap.size,
         (unsigned long)heap.used);
  return status || m.opened != m.closed || heap.used != 0;
}
