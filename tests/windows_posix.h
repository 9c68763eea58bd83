/* What the tests use of POSIX, on Windows: sockets are plain ints, failures are in errno, pipes are pairs of sockets. Included
 * behind e2b.h, which must see Windows as it is. Threads come with MinGW (-lpthread). */
#include <dirent.h>
#include <direct.h>
#include <errno.h>
#include <io.h>
#include <process.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#include <psapi.h>
#include <sys/stat.h>

#define SOCK_CLOEXEC 0
#define O_CLOEXEC 0
#define MSG_NOSIGNAL 0
#define MSG_DONTWAIT 0x40000000
#define SHUT_RD SD_RECEIVE
#define SHUT_WR SD_SEND
#define SHUT_RDWR SD_BOTH
typedef ULONG nfds_t;

static void posix_errno(void) {
  static const int codes[][2] = { { WSAEWOULDBLOCK, EAGAIN }, { WSAECONNRESET, ECONNRESET }, { WSAECONNABORTED, ECONNRESET },
                                  { WSAEINPROGRESS, EINPROGRESS }, { WSAENOTSOCK, EBADF }, { WSAESHUTDOWN, EPIPE } };
  int code = WSAGetLastError();
  size_t i;
  errno = EIO;
  for (i = 0; i < E2B__COUNT(codes); i++)
    if (codes[i][0] == code) errno = codes[i][1];
}

/* 0 and more is a success. */
static int posix_result(int rc) {
  if (rc < 0) posix_errno();
  return rc;
}

static bool posix_is_socket(int fd) {
  int type, len = (int)sizeof type;
  return fd >= 0 && getsockopt((SOCKET)fd, SOL_SOCKET, SO_TYPE, (char *)&type, &len) == 0;
}

static int posix_socket(int family, int type, int protocol) {
  WSADATA data;
  if (WSAStartup(MAKEWORD(2, 2), &data) != 0) return -1;
  return posix_result((int)socket(family, type, protocol));
}

static int posix_accept(int fd, struct sockaddr *addr, socklen_t *len) {
  return posix_result((int)accept((SOCKET)fd, addr, len));
}

static int posix_connect(int fd, const struct sockaddr *addr, socklen_t len) {
  return posix_result(connect((SOCKET)fd, addr, len));
}

static int posix_close(int fd) {
  return posix_is_socket(fd) ? posix_result(closesocket((SOCKET)fd)) : _close(fd);
}

static int posix_nonblocking(int fd, u_long on) {
  return posix_result(ioctlsocket((SOCKET)fd, (long)FIONBIO, &on));
}

/* A socket that waits for nothing, once: nobody else uses it meanwhile, and none is non-blocking before. */
static ssize_t posix_send(int fd, const void *buf, size_t len, int flags) {
  int n;
  if (flags & MSG_DONTWAIT) (void)posix_nonblocking(fd, 1);
  n = posix_result(send((SOCKET)fd, (const char *)buf, (int)len, flags & ~MSG_DONTWAIT));
  if (flags & MSG_DONTWAIT) (void)posix_nonblocking(fd, 0);
  return n;
}

static ssize_t posix_recv(int fd, void *buf, size_t cap, int flags) {
  int n;
  if (flags & MSG_DONTWAIT) (void)posix_nonblocking(fd, 1);
  n = posix_result(recv((SOCKET)fd, (char *)buf, (int)cap, flags & ~MSG_DONTWAIT));
  if (flags & MSG_DONTWAIT) (void)posix_nonblocking(fd, 0);
  return n;
}

static ssize_t posix_write(int fd, const void *buf, size_t len) {
  return posix_is_socket(fd) ? posix_send(fd, buf, len, 0) : _write(fd, buf, (unsigned)len);
}

static int posix_setsockopt(int fd, int level, int option, const void *value, socklen_t len) {
  return posix_result(setsockopt((SOCKET)fd, level, option, (const char *)value, len));
}

static int posix_getsockopt(int fd, int level, int option, void *value, socklen_t *len) {
  return posix_result(getsockopt((SOCKET)fd, level, option, (char *)value, len));
}

static int posix_poll(struct pollfd *fds, nfds_t count, int timeout_ms) {
  if (count) return posix_result(WSAPoll(fds, count, timeout_ms));
  Sleep((DWORD)timeout_ms);
  return 0;
}

/* Two connected sockets. */
static int posix_socketpair(int pair[2]) {
  struct sockaddr_in at;
  socklen_t len = sizeof at;
  int listener = posix_socket(AF_INET, SOCK_STREAM, 0);
  memset(&at, 0, sizeof at);
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  pair[0] = posix_socket(AF_INET, SOCK_STREAM, 0);
  pair[1] = -1;
  if (bind((SOCKET)listener, (struct sockaddr *)&at, sizeof at) == 0 && listen((SOCKET)listener, 1) == 0 &&
      getsockname((SOCKET)listener, (struct sockaddr *)&at, &len) == 0 &&
      connect((SOCKET)pair[0], (struct sockaddr *)&at, sizeof at) == 0)
    pair[1] = posix_accept(listener, NULL, NULL);
  (void)closesocket((SOCKET)listener);
  return pair[1] < 0 ? -1 : 0;
}

static int posix_setenv(const char *name, const char *value) {
  return _putenv_s(name, value);
}

static int posix_mkdir(const char *path) {
  return _mkdir(path);
}

static char *posix_mkdtemp(char *path) {
  char *end = path + strlen(path) - 6;
  unsigned tries;
  for (tries = 0; tries < 1000; tries++) {
    (void)snprintf(end, 7, "%06lx", ((unsigned long)_getpid() * 4096u + (unsigned long)GetTickCount() + tries) & 0xffffffu);
    if (_mkdir(path) == 0) return path;
  }
  return NULL;
}

static bool posix_is_wine(void) {
  HMODULE ntdll = GetModuleHandleA("ntdll.dll");
  return ntdll && GetProcAddress(ntdll, "wine_get_version");
}

/* A command line for the shell of the system below Wine, which does not say how a program of that system ends: a file does. */
static int posix_system(const char *command) {
  char script[64], status[64], part[72];
  static unsigned count;
  int code = -1, tries;
  FILE *file;
  if (!posix_is_wine()) return -1;
  (void)snprintf(script, sizeof script, "/tmp/e2b-test-sh-%d-%u", _getpid(), ++count);
  (void)snprintf(status, sizeof status, "%s.status", script);
  (void)snprintf(part, sizeof part, "%s.part", script);
  file = fopen(script, "wb");
  if (!file) return -1;
  (void)fprintf(file, "(\n%s\n)\necho $? >%s && mv %s %s\n", command, part, part, status);
  (void)fclose(file);
  (void)_spawnl(_P_NOWAIT, "Z:\\bin\\sh", "sh", script, NULL);
  for (tries = 0; tries < 3000 && (file = fopen(status, "rb")) == NULL; tries++) Sleep(10);
  if (file && fscanf(file, "%d", &code) != 1) code = -1;
  if (file) (void)fclose(file);
  (void)_unlink(script);
  (void)_unlink(status);
  return code;
}

struct passwd {
  char pw_name[100];
};

static struct passwd *posix_user(void) {
  static struct passwd me;
  DWORD size = sizeof me.pw_name;
  return GetUserNameA(me.pw_name, &size) ? &me : NULL;
}

#define getpwuid(uid) posix_user()
#define socket(family, type, protocol) posix_socket(family, type, protocol)
#define accept(fd, addr, len) posix_accept(fd, addr, len)
#define connect(fd, addr, len) posix_connect(fd, addr, len)
#define close(fd) posix_close(fd)
#define send(fd, buf, len, flags) posix_send(fd, buf, len, flags)
#define recv(fd, buf, cap, flags) posix_recv(fd, buf, cap, flags)
#define write(fd, buf, len) posix_write(fd, buf, len)
#define setsockopt(fd, level, option, value, len) posix_setsockopt(fd, level, option, value, len)
#define getsockopt(fd, level, option, value, len) posix_getsockopt(fd, level, option, value, len)
#define poll(fds, count, timeout_ms) posix_poll(fds, count, timeout_ms)
#define socketpair(family, type, protocol, pair) posix_socketpair(pair)
#define pipe(pair) posix_socketpair(pair)
#define setenv(name, value, overwrite) posix_setenv(name, value)
#define unsetenv(name) posix_setenv(name, "")
#define mkdir(path, mode) posix_mkdir(path)
#define mkdtemp(path) posix_mkdtemp(path)
