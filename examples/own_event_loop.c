/* cc -std=c99 -I. examples/own_event_loop.c llhttp.c api.c http.c -lmbedtls -lmbedx509 -lmbedcrypto -lpthread -o own_loop
   E2B_API_KEY=... ./own_loop

   The client as a guest in an event loop that is there already, here epoll (Linux): the loop waits for the client's
   descriptors together with its own, and calls e2b_client_process when something is ready or time is up. Environment as
   for quickstart.c. Prints

       one: 1 from the sandbox
       two: 2 from the sandbox
       three: 3 from the sandbox
       the loop's own timer ticked meanwhile: yes */

#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <stdio.h>
#include <string.h>
#include <errno.h>
#include <unistd.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

#define FDS 64

typedef struct loop {
  int epoll, timer;
  unsigned ticks;
  e2b_pollfd known[FDS]; /* what the client wanted last time */
  size_t known_count;
} loop;

static int failed(const char *what, const e2b_error *err) {
  fprintf(stderr, "%s: %s: %s\n", what, e2b_err_name(err->code), err->message);
  return 1;
}

static bool loop_open(loop *l) {
  struct itimerspec every = { { 0, 20000000 }, { 0, 20000000 } }; /* 20 ms */
  struct epoll_event event = { 0, { 0 } };
  memset(l, 0, sizeof *l);
  l->epoll = epoll_create1(EPOLL_CLOEXEC);
  l->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  event.events = EPOLLIN;
  event.data.fd = l->timer;
  return l->epoll >= 0 && l->timer >= 0 && timerfd_settime(l->timer, 0, &every, NULL) == 0 &&
         epoll_ctl(l->epoll, EPOLL_CTL_ADD, l->timer, &event) == 0;
}

/* Tells epoll what the client waits for now. A descriptor may have been closed and its number used again since, so epoll
 * is asked each time whether it knows it. */
static void loop_update(loop *l, e2b_client *client) {
  e2b_pollfd wanted[FDS];
  size_t count = e2b_client_fds(client, wanted, FDS), i, k;
  for (i = 0; i < l->known_count; i++) {
    for (k = 0; k < count && wanted[k].fd != l->known[i].fd; k++) continue;
    if (k == count) (void)epoll_ctl(l->epoll, EPOLL_CTL_DEL, (int)l->known[i].fd, NULL);
  }
  for (i = 0; i < count; i++) {
    struct epoll_event event = { 0, { 0 } };
    event.events = (wanted[i].events & E2B_FD_READ ? (uint32_t)EPOLLIN : 0u) |
                   (wanted[i].events & E2B_FD_WRITE ? (uint32_t)EPOLLOUT : 0u);
    event.data.fd = (int)wanted[i].fd;
    if (epoll_ctl(l->epoll, EPOLL_CTL_MOD, event.data.fd, &event) != 0 && errno == ENOENT)
      (void)epoll_ctl(l->epoll, EPOLL_CTL_ADD, event.data.fd, &event);
    l->known[i] = wanted[i];
  }
  l->known_count = count;
}

/* One turn: waits, does what is the loop's own, and hands the rest to the client. */
static void loop_turn(loop *l, e2b_client *client) {
  struct epoll_event events[FDS];
  e2b_pollfd ready[FDS];
  size_t ready_count = 0;
  int i, n;
  loop_update(l, client);
  n = epoll_wait(l->epoll, events, FDS, e2b_client_next_timeout(client));
  for (i = 0; i < n; i++) {
    uint64_t expired;
    if (events[i].data.fd == l->timer) {
      if (read(l->timer, &expired, sizeof expired) == (ssize_t)sizeof expired) l->ticks++;
      continue;
    }
    ready[ready_count].fd = events[i].data.fd;
    ready[ready_count].events = 0;
    ready[ready_count].revents = (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) ? E2B_FD_READ : 0u) |
                                 (events[i].events & (EPOLLOUT | EPOLLHUP | EPOLLERR) ? E2B_FD_WRITE : 0u);
    ready_count++;
  }
  /* Also when nothing is ready: a deadline of the client may have passed. */
  (void)e2b_client_process(client, ready, ready_count, 0);
}

/* Runs the loop until the operation is complete, as a real program would run it for ever. */
static e2b_err loop_until(loop *l, e2b_client *client, e2b_op op, e2b_error *err) {
  e2b_err rc;
  while ((rc = e2b_op_poll(client, op, err)) == E2B_PENDING) loop_turn(l, client);
  return rc;
}

static int use(loop *l, e2b_client *client, e2b_sandbox *sandbox) {
  static const char *const names[] = { "one", "two", "three" };
  e2b_command_result results[3];
  e2b_op ops[3];
  e2b_error err;
  int i, status = 0;
  memset(results, 0, sizeof results);
  memset(ops, 0, sizeof ops); /* a stale one does no harm, should a start fail */
  for (i = 0; i < 3; i++) { /* all three at the same time */
    char command[80];
    e2b_run_opts opts = { 0 };
    opts.call.op = &ops[i];
    (void)snprintf(command, sizeof command, "sleep 0.1; echo %d from the sandbox", i + 1);
    if (e2b_commands_run(sandbox, command, &opts, &results[i], &err) != E2B_PENDING) status = failed("start", &err);
  }
  for (i = 0; i < 3; i++) {
    if (loop_until(l, client, ops[i], &err) == E2B_OK) printf("%s: %s", names[i], results[i].stdout_data.ptr);
    else status = failed("run", &err);
    e2b_mem_free(&results[i].mem);
  }
  return status;
}

int main(void) {
  e2b_error err;
  e2b_op op;
  e2b_sandbox *sandbox = NULL;
  e2b_sandbox_opts opts = { 0 };
  e2b_call call = { 0 };
  loop l;
  int status;
  e2b_client *client = e2b_client_create(NULL, &err);
  if (!client) return failed("client", &err);
  if (!loop_open(&l)) {
    perror("epoll");
    return 1;
  }
  opts.call.op = call.op = &op;
  if (e2b_sandbox_create(client, NULL, &opts, &sandbox, &err) != E2B_PENDING ||
      loop_until(&l, client, op, &err) != E2B_OK) {
    status = failed("create", &err);
  } else {
    status = use(&l, client, sandbox);
    if (e2b_sandbox_close(sandbox, &call, &err) != E2B_PENDING || loop_until(&l, client, op, &err) != E2B_OK)
      status = failed("close", &err);
  }
  printf("the loop's own timer ticked meanwhile: %s\n", l.ticks > 0 ? "yes" : "no");
  e2b_client_free(client);
  close(l.timer);
  close(l.epoll);
  return status;
}
