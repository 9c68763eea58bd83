/* cc -std=c99 -I. examples/pty_shell.c llhttp.c api.c http.c -lmbedtls -lmbedx509 -lmbedcrypto -lpthread -o pty_shell
   E2B_API_KEY=... ./pty_shell [sandbox id]

   A shell in a sandbox on your terminal: a new sandbox, killed at the end, or one that runs. Keys go there unchanged, the
   size of the window too. Input may also come from a pipe: its lines are typed, and `exit` after the last one:

       echo 'uname -a' | ./pty_shell

   Exit code: the shell's. Environment as for quickstart.c. POSIX only. One loop waits for all: the client's descriptors,
   standard input and the signal that the window changed. */

#define E2B_IMPLEMENTATION
#include "e2b.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#define FDS_MAX 32

typedef struct shell {
  e2b_client *client;
  e2b_sandbox *sandbox;
  uint32_t pid;
  bool terminal;          /* input is one */
  bool sending, eof;      /* a write is under way: no further input is read; no input is left */
  bool over;
  char input[4096];
  e2b_error err, input_err;
} shell;

static int window_changed[2]; /* a pipe: signal handler to loop */

static void on_window_change(int number) {
  int saved = errno;
  (void)number;
  if (write(window_changed[1], "", 1) < 0) errno = 0; /* it is full: the loop knows */
  errno = saved;
}

static int failed(const char *what, const e2b_error *err) {
  fprintf(stderr, "%s: %s: %s\r\n", what, e2b_err_name(err->code), err->message);
  return 1;
}

static int show(void *user, const char *data, size_t len) {
  (void)user;
  while (len > 0) {
    ssize_t n = write(STDOUT_FILENO, data, len);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -1; /* nobody looks */
    data += n;
    len -= (size_t)n;
  }
  return 0;
}

static void ended(void *user, const e2b_error *err) {
  shell *s = (shell *)user;
  s->over = true;
  s->err = *err;
}

static void sent(void *user, const e2b_error *err) {
  shell *s = (shell *)user;
  s->sending = false;
  s->input_err = *err;
  if (err->code) s->eof = true; /* the shell is gone, which `ended` will say */
}

static void resized(void *user, const e2b_error *err) {
  (void)user;
  (void)err;
}

static void send_input(shell *s, size_t len) {
  e2b_call call = { 0 };
  call.on_done = sent;
  call.user = s;
  s->sending = true;
  if (e2b_pty_send_input(s->sandbox, s->pid, s->input, len, &call, &s->input_err) != E2B_PENDING) sent(s, &s->input_err);
}

static void read_input(shell *s) {
  ssize_t n = read(STDIN_FILENO, s->input, sizeof s->input);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
  if (n <= 0) {
    s->eof = true;
    n = snprintf(s->input, sizeof s->input, "exit\n");
  }
  send_input(s, (size_t)n);
}

static void read_size(uint16_t *cols, uint16_t *rows) {
  struct winsize size;
  *cols = *rows = 0; /* the default */
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || !size.ws_col || !size.ws_row) return;
  *cols = size.ws_col;
  *rows = size.ws_row;
}

static void send_size(shell *s) {
  e2b_call call = { 0 };
  uint16_t cols, rows;
  char bytes[64];
  while (read(window_changed[0], bytes, sizeof bytes) == (ssize_t)sizeof bytes) continue;
  read_size(&cols, &rows);
  call.on_done = resized;
  if (cols) e2b_pty_resize(s->sandbox, s->pid, cols, rows, &call, NULL);
}

/* One turn: waits for anything, does it. */
static void turn(shell *s) {
  e2b_pollfd ours[FDS_MAX];
  struct pollfd fds[FDS_MAX + 2];
  size_t i, count = e2b_client_fds(s->client, ours, FDS_MAX);
  if (count > FDS_MAX) count = FDS_MAX;
  for (i = 0; i < count; i++) {
    fds[i].fd = (int)ours[i].fd;
    fds[i].events = (short)((ours[i].events & E2B_FD_READ ? POLLIN : 0) | (ours[i].events & E2B_FD_WRITE ? POLLOUT : 0));
    fds[i].revents = 0;
  }
  fds[count].fd = window_changed[0];
  fds[count + 1].fd = s->eof || s->sending ? -1 : STDIN_FILENO;
  fds[count].events = fds[count + 1].events = POLLIN;
  fds[count].revents = fds[count + 1].revents = 0;
  if (poll(fds, (nfds_t)(count + 2), e2b_client_next_timeout(s->client)) > 0) {
    for (i = 0; i < count; i++) ours[i].revents = fds[i].revents ? E2B_FD_READ | E2B_FD_WRITE : 0;
    if (fds[count].revents) send_size(s);
    if (fds[count + 1].revents) read_input(s);
  } else {
    for (i = 0; i < count; i++) ours[i].revents = 0;
  }
  (void)e2b_client_process(s->client, ours, count, 0);
}

static int run(shell *s) {
  e2b_command_handle *handle;
  e2b_command_result result = { 0 };
  e2b_pty_opts opts = { 0 };
  e2b_call call = { 0 };
  e2b_error err;
  int status;
  read_size(&opts.cols, &opts.rows);
  opts.on_data = show;
  if (e2b_pty_create(s->sandbox, &opts, &handle, &err) != E2B_OK) return failed("pty", &err);
  s->pid = e2b_command_handle_pid(handle);
  call.on_done = ended;
  call.user = s;
  if (e2b_command_handle_wait(handle, &call, &result, &err) != E2B_PENDING) s->over = true;
  while (!s->over) turn(s);
  status = s->err.code == E2B_OK ? 0 : s->err.code == E2B_COMMAND_EXIT && result.exit_code > 0 ? (int)result.exit_code : 1;
  if (s->err.code < 0) failed("shell", &s->err);
  e2b_mem_free(&result.mem);
  e2b_command_handle_free(handle);
  return status;
}

/* Every key goes to the sandbox, also Ctrl+C. */
static void make_raw(struct termios *settings) {
  settings->c_iflag &= (tcflag_t) ~(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
  settings->c_oflag &= (tcflag_t)~OPOST;
  settings->c_lflag &= (tcflag_t) ~(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
  settings->c_cflag = (settings->c_cflag & (tcflag_t) ~(CSIZE | PARENB)) | CS8;
  settings->c_cc[VMIN] = 1;
  settings->c_cc[VTIME] = 0;
}

int main(int argc, char **argv) {
  static shell s;
  struct sigaction action;
  struct termios before, raw;
  e2b_error err;
  e2b_err rc;
  int status;
  if (pipe(window_changed) != 0 || fcntl(window_changed[0], F_SETFL, O_NONBLOCK) != 0 ||
      fcntl(window_changed[1], F_SETFL, O_NONBLOCK) != 0)
    return 1;
  s.client = e2b_client_create(NULL, &err);
  if (!s.client) return failed("client", &err);
  rc = argc > 1 ? e2b_sandbox_connect(s.client, argv[1], NULL, &s.sandbox, &err)
                : e2b_sandbox_create(s.client, NULL, NULL, &s.sandbox, &err);
  if (rc != E2B_OK) {
    e2b_client_free(s.client);
    return failed(argc > 1 ? "connect" : "create", &err);
  }

  s.terminal = tcgetattr(STDIN_FILENO, &before) == 0;
  if (s.terminal) {
    raw = before;
    make_raw(&raw);
    tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
    memset(&action, 0, sizeof action);
    action.sa_handler = on_window_change;
    sigaction(SIGWINCH, &action, NULL);
  }
  status = run(&s);
  if (s.terminal) tcsetattr(STDIN_FILENO, TCSADRAIN, &before);

  if (argc > 1) e2b_sandbox_free(s.sandbox);
  else if (e2b_sandbox_close(s.sandbox, NULL, &err) != E2B_OK) status = failed("close", &err);
  e2b_client_free(s.client);
  return status;
}
