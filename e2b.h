/* e2b.h - v0.1.0 - public domain or MIT-0, at your choice (full texts at the end of this file)

   Create and drive E2B-compatible sandboxes from C and C++: start one, run commands in it, stream their output, move
   files, kill it. Speaks to E2B's cloud, to OpenKruise Agents and to anything compatible.

   Do this in ONE C or C++ file:

       #define E2B_IMPLEMENTATION
       #include "e2b.h"

   and include it plainly everywhere else. Link with mbedTLS and llhttp:

       cc app.c llhttp.c api.c http.c -lmbedtls -lmbedx509 -lmbedcrypto -lpthread    Linux, BSD, macOS
       cc ...                         -lmbedtls -lmbedx509 -lmbedcrypto -lws2_32 -lcrypt32 -lbcrypt     Windows (MinGW)

   A whole program:

       int main(void) {
         e2b_error err;
         e2b_client *client = e2b_client_create(NULL, &err);        // key and domain from E2B_API_KEY, E2B_DOMAIN
         e2b_sandbox *sandbox = NULL;
         e2b_command_result result = {0};
         if (client && e2b_sandbox_create(client, NULL, NULL, &sandbox, &err) == E2B_OK &&
             e2b_commands_run(sandbox, "echo hello", NULL, &result, &err) == E2B_OK)
           printf("%s", result.stdout_data.ptr);
         else
           fprintf(stderr, "%s: %s\n", e2b_err_name(err.code), err.message);
         e2b_mem_free(&result.mem);
         e2b_sandbox_close(sandbox, NULL, NULL);                    // kills it and frees the handle
         e2b_client_free(client);
       }

   CONTENTS OF THIS FILE (search for the text after the bar)
     declarations     | public: basics, errors, memory, hooks, client, driving, operations, sandbox, api, commands, pty, files,
                      | code, watch
     implementation   | >>>> platform      | >>>> memory        | >>>> bytes         | >>>> errors
                      | >>>> json          | >>>> protobuf      | >>>> messages      | >>>> url
                      | >>>> http1         | >>>> hpack         | >>>> http2         | >>>> sockets
                      | >>>> dns           | >>>> tls           | >>>> proxy         | >>>> link
                      | >>>> requests      | >>>> connections   | >>>> operations    | >>>> loop
                      | >>>> answers       | >>>> traffic       | >>>> rpc           | >>>> client
                      | >>>> heartbeat     | >>>> sandbox       | >>>> api           | >>>> raw
                      | >>>> commands      | >>>> pty           | >>>> files         | >>>> code
                      | >>>> bulk          | >>>> local         | >>>> trees         | >>>> watch

   RULES THAT HOLD EVERYWHERE
     Zero means default. Every options struct may be NULL or zeroed; "" is the same as NULL.
     Return codes: 0 done, < 0 failure, > 0 an answer (E2B_PENDING, E2B_EOF, E2B_COMMAND_EXIT, E2B_CODE_FAILED). Details of
       a failure are in the e2b_error you pass, which may be NULL. A failed call leaves `*out` empty; the exceptions say so. After any
       failure the client, the sandbox and every other call stay usable.
     Results (`out`) are yours. Pass them zeroed, or with storage of your own (E2B_MEM_FIXED); free them with
       e2b_mem_free(&out.mem). Everything a result points to lies in that one block.
     Strings you pass are copied before the call returns. Bulk data (`data` of write and send_stdin) and `out` must stay
       valid until the call is complete.
     Text is UTF-8 and passed through untouched; process output and file content are bytes with a length.
     Times: _ms milliseconds, _s seconds, Unix times in UTC.

   THREADS
     A client, its sandboxes and its handles belong to one thread at a time; different clients are independent. Only
     e2b_client_wake and e2b_client_interrupt may be called from any thread. There are no mutable globals. The only thread
     this library starts is a short-lived one for a name look-up (none with E2B_NO_THREADS or a transport with its own DNS).
     One thing is shared below us: with mbedTLS 3 and 4 the state of PSA (random numbers, key slots) belongs to the
     process. Builds of mbedTLS without MBEDTLS_THREADING_C do not lock it: then clients with https must not run on two
     threads at the same time, not even different ones. Debian's and most other packaged builds have it; mbedTLS 2.28
     needs it not.

   BLOCKING OR NOT
     Every call that takes an e2b_call (alone or first in its options) blocks when neither call.op nor call.on_done is set,
     driving the client until it is finished. With either set, the same call checks its arguments, starts, and returns
     E2B_PENDING at once; e2b_client_poll, _pump or _process then drive it. Callbacks run inside those three and inside
     blocking calls, nowhere else. Inside a callback every non-blocking call is allowed, including cancel, disconnect and
     free of the object the callback belongs to; a blocking call there fails with E2B_ERR_BAD_STATE.

   SWITCHES
     E2B_STATIC               everything static: the whole library private to each file that includes it
     E2B_MALLOC/REALLOC/FREE  default allocator, all three or none; must be callable from several threads at once unless
                              E2B_NO_THREADS is defined: a name look-up and the waker are freed by whoever is last
     E2B_ASSERT(x)            for programmer errors only
     E2B_DEFAULT_DOMAIN       "e2b.app"                                   E2B_NO_THREADS       name look-ups block
     E2B_NO_PTY               leaves out e2b_pty_*
     E2B_NO_LOCAL_FILES       no e2b_files_upload_tree and _download_tree: no file of this machine is touched but the CA
                              bundle
     E2B_NO_TRAFFIC_TOKEN     no traffic tokens (OpenKruise's JWT mode)
     E2B_NO_HTTP2             HTTP/1.1 only
     E2B_ERROR_MESSAGE_MAX    the size of e2b_error.message; must be the same in every file
     E2B_NO_METRICS           without metrics and logs                    E2B_NO_SNAPSHOTS     without snapshots
     E2B_NO_CODE_INTERPRETER  leaves the code interpreter out             E2B_NO_WATCH         without e2b_files_watch_dir
     The implementation needs POSIX.1-2008 or Windows (Vista and later); in a file compiled with -std=c99 include "e2b.h"
     before any system header, it asks for what it needs. */

#if defined(E2B_IMPLEMENTATION) && !defined(E2B_IMPLEMENTATION_DONE)
  #if defined(_WIN32)
    #define E2B__WIN32 1
    #if !defined(WIN32_LEAN_AND_MEAN)
      #define WIN32_LEAN_AND_MEAN /* windows.h must not include winsock.h */
    #endif
    #if !defined(NOMINMAX)
      #define NOMINMAX
    #endif
    #if !defined(_WIN32_WINNT)
      #define _WIN32_WINNT 0x0600 /* Vista: WSAPoll, inet_pton */
    #endif
    #if defined(__MINGW32__) && !defined(__USE_MINGW_ANSI_STDIO)
      #define __USE_MINGW_ANSI_STDIO 1 /* snprintf as C99 has it */
    #endif
  #else
    #define E2B__WIN32 0
    #if defined(__APPLE__) && !defined(_DARWIN_C_SOURCE)
      #define _DARWIN_C_SOURCE 1 /* SO_NOSIGPIPE, TCP_KEEPALIVE */
    #elif defined(__STRICT_ANSI__) && !defined(_GNU_SOURCE) && !defined(_POSIX_C_SOURCE) && !defined(_XOPEN_SOURCE) && \
        (defined(__linux__) || defined(__CYGWIN__))
      #define _POSIX_C_SOURCE 200809L /* -std=c99 hides getaddrinfo and the like; the BSDs hide nothing */
    #endif
  #endif
#endif

#ifndef E2B_H
#define E2B_H

#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>

#define E2B_VERSION_MAJOR 0
#define E2B_VERSION_MINOR 1
#define E2B_VERSION_PATCH 0
#define E2B_VERSION "0.1.0"

#ifndef E2B_API
  #if defined(E2B_STATIC)
    #if defined(__GNUC__) || defined(__clang__)
      #define E2B_API static __attribute__((unused))
    #else
      #define E2B_API static
    #endif
  #elif defined(_WIN32) && defined(E2B_DLL) && defined(E2B_IMPLEMENTATION)
    #define E2B_API __declspec(dllexport)
  #elif defined(_WIN32) && defined(E2B_DLL)
    #define E2B_API __declspec(dllimport)
  #else
    #define E2B_API extern
  #endif
#endif

#ifndef E2B_ERROR_MESSAGE_MAX
  #define E2B_ERROR_MESSAGE_MAX 256
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------------------------ */
/* public: basics */
/* ------------------------------------------------------------------------------------------------------------------ */

typedef struct e2b_client e2b_client;                 /* connections, timers, operations; one thread at a time         */
typedef struct e2b_sandbox e2b_sandbox;               /* id, tokens and URLs; no socket of its own                     */
typedef struct e2b_command_handle e2b_command_handle; /* a running process and the stream of its output                */
typedef struct e2b_file_stream e2b_file_stream;       /* one upload or download in constant memory                     */

/* A run of bytes. In results ptr is never NULL and ptr[len] is 0. */
typedef struct e2b_str { const char *ptr; size_t len; } e2b_str;
typedef struct e2b_kv { const char *key, *value; } e2b_kv;
typedef struct e2b_kvs { const e2b_kv *items; size_t count; } e2b_kvs;           /* order is kept                      */
typedef struct e2b_strs { const char *const *items; size_t count; } e2b_strs;

/* For initialisers in C: opts.metadata = (e2b_kvs)E2B_KVS({ "team", "a" }, { "run", "7" }). In C++ fill items and count. */
#define E2B_KVS(...) { (const e2b_kv[]){ __VA_ARGS__ }, sizeof((const e2b_kv[]){ __VA_ARGS__ }) / sizeof(e2b_kv) }
#define E2B_STRS(...) { (const char *const[]){ __VA_ARGS__ }, sizeof((const char *const[]){ __VA_ARGS__ }) / sizeof(char *) }

typedef enum e2b_tri { E2B_UNSET = 0, E2B_YES = 1, E2B_NO = -1 } e2b_tri; /* E2B_UNSET is not sent: the server decides   */

#define E2B_TIMEOUT_DEFAULT 0
#define E2B_TIMEOUT_NONE (-1)

/* ------------------------------------------------------------------------------------------------------------------ */
/* public: errors */
/* ------------------------------------------------------------------------------------------------------------------ */

typedef enum e2b_err {
  E2B_OK = 0,
  E2B_PENDING = 1,               /* started, not finished; or a stream has nothing for you yet                          */
  E2B_EOF = 2,                   /* the stream ended, completely                                                        */
  E2B_COMMAND_EXIT = 3,          /* the command ran and failed (exit code not 0, or a signal); the result is filled     */
  E2B_CODE_FAILED = 4,           /* the code ran and raised an error; the result is filled                              */
  /* the caller */
  E2B_ERR_INVALID_ARGUMENT = -1, /* refused before any I/O, or by the server as malformed; the message names what        */
  E2B_ERR_BUSY = -2,             /* too many operations or connections, or the object is in use by another call         */
  E2B_ERR_BAD_STATE = -3,        /* not possible now: a blocking call in a callback, a handle that has ended            */
  E2B_ERR_NOT_BUILT = -4,        /* left out of this build, or not supported by this server                             */
  /* resources */
  E2B_ERR_NO_MEMORY = -10,
  E2B_ERR_BUFFER_TOO_SMALL = -11,/* your E2B_MEM_FIXED storage; mem.len says how much was needed                        */
  E2B_ERR_LIMIT = -12,           /* something a peer sent is above a limit of e2b_client_config                         */
  /* flow */
  E2B_ERR_CANCELED = -20,        /* by you: cancel, interrupt, free, or a callback that returned < 0                    */
  E2B_ERR_TIMEOUT = -21,         /* a deadline of yours passed, or the server's for the process (run_timeout_ms)        */
  E2B_ERR_IDLE_TIMEOUT = -22,    /* no progress for idle_ms                                                             */
  /* network */
  E2B_ERR_RESOLVE = -30,         /* the name has no address                                                             */
  E2B_ERR_CONNECT = -31,         /* no address accepted a connection                                                    */
  E2B_ERR_TLS = -32,             /* the TLS handshake failed                                                            */
  E2B_ERR_TLS_CERTIFICATE = -33, /* the peer's certificate is not acceptable; the message says why                      */
  E2B_ERR_CLOSED = -34,          /* the connection ended before any part of the answer                                  */
  E2B_ERR_IO = -35,              /* a local system call failed; sys_code                                                */
  E2B_ERR_PROTOCOL = -36,        /* the peer sent what is not valid HTTP, Connect, protobuf or JSON                      */
  E2B_ERR_TRUNCATED = -37,       /* the answer began but did not end properly; what arrived is kept where the call says */
  E2B_ERR_PROXY = -38,           /* the proxy refused, or is none; http_status is its answer (407: user and password)   */
  /* service */
  E2B_ERR_NOT_FOUND = -50,       /* subject says what: sandbox, file, process                                           */
  E2B_ERR_ALREADY_EXISTS = -51,
  E2B_ERR_UNAUTHENTICATED = -52, /* 401: the key or the token is missing or wrong                                       */
  E2B_ERR_PERMISSION = -53,      /* 403                                                                                 */
  E2B_ERR_RATE_LIMITED = -54,    /* 429; retry_after_ms when the server gave one                                        */
  E2B_ERR_CONFLICT = -55,        /* 409: the sandbox is changing state                                                  */
  E2B_ERR_NOT_ENOUGH_SPACE = -56,/* 507: the sandbox's disk is full                                                     */
  E2B_ERR_UNAVAILABLE = -57,     /* 502, 503, 504 and nothing more is known                                             */
  E2B_ERR_SANDBOX_GONE = -58,    /* checked: the sandbox does not run any more                                          */
  E2B_ERR_SANDBOX_PAUSED = -59,  /* checked: it is paused; e2b_sandbox_connect resumes it                               */
  E2B_ERR_SERVICE = -60,         /* any other answer that is not success                                                */
  E2B_ERR_TRAFFIC_TOKEN_EXPIRED = -80, /* nothing was sent: the sandbox's traffic token has expired and no new one is to
                                    be had; the message says why, http_status and retry_after_ms are the refresh's      */
  E2B_ERR_TRAFFIC_TOKEN_REFRESH = -81  /* no new traffic token: refused (http_status, retry_after_ms) or unusable; or
                                    traffic_token_provider failed (sys_code: what it returned)                          */
} e2b_err;

/* The Connect protocol's codes as the server sent them, 0 = none. */
typedef enum e2b_connect_code {
  E2B_CONNECT_NONE = 0,
  E2B_CONNECT_CANCELED = 1,
  E2B_CONNECT_UNKNOWN = 2,
  E2B_CONNECT_INVALID_ARGUMENT = 3,
  E2B_CONNECT_DEADLINE_EXCEEDED = 4,
  E2B_CONNECT_NOT_FOUND = 5,
  E2B_CONNECT_ALREADY_EXISTS = 6,
  E2B_CONNECT_PERMISSION_DENIED = 7,
  E2B_CONNECT_RESOURCE_EXHAUSTED = 8,
  E2B_CONNECT_FAILED_PRECONDITION = 9,
  E2B_CONNECT_ABORTED = 10,
  E2B_CONNECT_OUT_OF_RANGE = 11,
  E2B_CONNECT_UNIMPLEMENTED = 12,
  E2B_CONNECT_INTERNAL = 13,
  E2B_CONNECT_UNAVAILABLE = 14,
  E2B_CONNECT_DATA_LOSS = 15,
  E2B_CONNECT_UNAUTHENTICATED = 16
} e2b_connect_code;

/* How far a call had come when it failed. */
typedef enum e2b_phase {
  E2B_PHASE_NONE = 0, /* before any I/O */
  E2B_PHASE_QUEUE,    /* waiting for a connection */
  E2B_PHASE_RESOLVE,
  E2B_PHASE_CONNECT,
  E2B_PHASE_TLS,
  E2B_PHASE_SEND,     /* the request was going out */
  E2B_PHASE_HEADERS,  /* sent, no answer yet */
  E2B_PHASE_BODY,     /* the answer was coming in */
  E2B_PHASE_DECODE    /* the answer was complete but not understood */
} e2b_phase;

typedef enum e2b_subject {
  E2B_SUBJECT_NONE = 0,
  E2B_SUBJECT_SANDBOX,
  E2B_SUBJECT_TEMPLATE,
  E2B_SUBJECT_PROCESS,
  E2B_SUBJECT_FILE,
  E2B_SUBJECT_PORT,  /* nothing listens on that port of the sandbox */
  E2B_SUBJECT_CONTEXT, /* of the code interpreter */
  E2B_SUBJECT_OPTION /* an argument or a member of an options struct; the message names it */
} e2b_subject;

typedef struct e2b_error {
  e2b_err code;
  e2b_subject subject;           /* what the error is about                                                             */
  e2b_phase phase;
  e2b_connect_code connect_code; /* 0 when there was none                                                               */
  int http_status;               /* 0 = no response was seen                                                            */
  int sys_code;                  /* errno, WSAGetLastError, getaddrinfo or transport code; 0 = none                     */
  int tls_code;                  /* mbedTLS -0x....; 0 = none                                                           */
  int32_t exit_code;             /* with E2B_COMMAND_EXIT                                                               */
  uint32_t retry_after_ms;       /* from Retry-After; 0 = not given                                                     */
  bool maybe_done;               /* the server may have acted: look before you repeat a create, start or send_stdin     */
  char request_id[40];           /* x-request-id of the answer, "" when there was none                                  */
  char nonce[40];                /* of a create that may have been done, for e2b_api_find_by_nonce; else ""             */
  char message[E2B_ERROR_MESSAGE_MAX]; /* what happened and what to do next; always terminated, never holds a secret    */
} e2b_error;

E2B_API const char *e2b_err_name(e2b_err code);                     /* "E2B_ERR_NOT_FOUND"; never NULL                  */
E2B_API const char *e2b_connect_code_name(e2b_connect_code code);   /* "not_found"; never NULL                          */
E2B_API const char *e2b_phase_name(e2b_phase phase);                /* "headers"; never NULL                            */

/* ------------------------------------------------------------------------------------------------------------------ */
/* public: memory */
/* ------------------------------------------------------------------------------------------------------------------ */

/* All three or none. They get the context pointer first and the size on free and realloc, and return memory aligned as
 * malloc's is. Called only on the thread that uses the client. alloc_fn and realloc_fn may fail with NULL: every call then
 * ends in E2B_ERR_NO_MEMORY. */
typedef struct e2b_allocator {
  void *(*alloc_fn)(void *user, size_t size);
  void *(*realloc_fn)(void *user, void *ptr, size_t old_size, size_t new_size);
  void (*free_fn)(void *user, void *ptr, size_t size);
  void *user;
} e2b_allocator;

/* First member of every result. Zeroed: the call allocates one block with the client's allocator. E2B_MEM_FIXED(array):
 * the call writes into your array only; E2B_ERR_BUFFER_TOO_SMALL and `len` say how much it needed. */
typedef struct e2b_mem {
  void *ptr;
  size_t cap;
  size_t len; /* bytes used, or needed */
  e2b_allocator alloc;
  bool fixed;
} e2b_mem;
#define E2B_MEM_FIXED(array) { (array), sizeof(array), 0, { 0, 0, 0, 0 }, true }

/* Frees a result's block. Twice, NULL, zeroed and fixed are fine. May be called after the client is gone, as long as the
 * allocator works. */
E2B_API void e2b_mem_free(e2b_mem *mem);

/* An allocator over one block of yours, for e2b_client_config.allocator where there is no malloc, or none is wanted:
 * first fit, free neighbours merge, nothing lost per block but rounding to E2B_HEAP_ALIGN. used and peak (bytes) may be
 * read at any time, the other members are its own. For one thread at a time, like the client. `mem` must outlive all that
 * is allocated from it; it need not be aligned. Name look-ups and the waker have E2B_MALLOC (see SWITCHES), mbedTLS has
 * an allocator of its own. */
#define E2B_HEAP_ALIGN 16
typedef struct e2b_fixed_heap { void *base; size_t size; size_t used, peak; void *free_list; } e2b_fixed_heap;
E2B_API e2b_allocator e2b_fixed_heap_init(e2b_fixed_heap *heap, void *mem, size_t size);

typedef struct e2b_buf { e2b_mem mem; uint8_t *data; size_t len; } e2b_buf; /* data is never NULL in a result; data[len] == 0 */

/* Receives bytes as they arrive: raw, not terminated, cut anywhere, valid during the call only. Return 0 to go on,
 * E2B_PAUSE when you took these bytes but want no more until you resume, < 0 to cancel the operation. */
typedef int (*e2b_data_fn)(void *user, const char *data, size_t len);
/* Gives bytes: write up to cap of them and return how many, 0 at the end, E2B_PAUSE for none now, < 0 to cancel. A source that
 * cancels its own operation by other means must not write to buf after that: it may be gone. */
typedef int (*e2b_source_fn)(void *user, void *buf, size_t cap);
#define E2B_PAUSE 0x40000000

/* ------------------------------------------------------------------------------------------------------------------ */
/* public: hooks */
/* ------------------------------------------------------------------------------------------------------------------ */

typedef enum e2b_log_level { E2B_LOG_ERROR = 1, E2B_LOG_WARN, E2B_LOG_INFO, E2B_LOG_DEBUG } e2b_log_level;

typedef struct e2b_logger {
  void (*func)(void *user, e2b_log_level level, const char *message); /* keys and tokens never appear in it             */
  void *user;
  e2b_log_level level; /* what is reported; 0 = E2B_LOG_WARN                                                            */
} e2b_logger;

/* A transport of your own: a modem, lwIP, a tunnel, a test. No function may block. Negative results other than the two
 * below are your error codes and appear in e2b_error.sys_code. What e2b_endpoint points to is valid during open_fn only. */
#define E2B_IO_AGAIN (-1000)  /* would block */
#define E2B_IO_EOF (-1001)    /* the peer closed its side */

typedef struct e2b_endpoint {
  const char *host;           /* name or address literal, without brackets                                              */
  uint16_t port;
  bool tls;                   /* the origin is https                                                                    */
  const uint8_t *addr;        /* the address to connect to, network order, when names are resolved here or config.hosts
                                 has it; else NULL                                                                      */
  int addr_len;               /* 4, 16 or 0                                                                             */
} e2b_endpoint;

#define E2B_TRANSPORT_HAS_TLS 1u /* it does TLS itself when endpoint.tls is set                                         */
#define E2B_TRANSPORT_HAS_DNS 2u /* it resolves names itself                                                            */

typedef struct e2b_transport {
  int (*open_fn)(void *user, const e2b_endpoint *to, void **conn);     /* 0 connected, E2B_IO_AGAIN under way, < 0      */
  int (*ready_fn)(void *user, void *conn);                             /* 0 connected, E2B_IO_AGAIN under way, < 0      */
  int (*rx_fn)(void *user, void *conn, void *buf, size_t cap);         /* > 0 bytes, E2B_IO_AGAIN, E2B_IO_EOF, < 0      */
  int (*tx_fn)(void *user, void *conn, const void *buf, size_t len);   /* > 0 bytes, E2B_IO_AGAIN, < 0                  */
  void (*shut_fn)(void *user, void *conn);                             /* close and free; called once for each conn that
                                                                          open_fn gave, not when it failed              */
  intptr_t (*fd_fn)(void *user, void *conn);                           /* optional; < 0 = cannot be polled: the connection
                                                                          is then looked at every 20 ms                 */
  void (*wait_fn)(void *user, int timeout_ms);                         /* optional, without fd_fn: sleep until something may
                                                                          be ready. e2b_client_wake and _interrupt do not
                                                                          end it: return now and then where they are used */
  const char *(*alpn_fn)(void *user, void *conn);                      /* optional, with HAS_TLS: the protocol, or NULL */
  void *user;
  uint32_t flags;
} e2b_transport;

/* Verification of the peer's chain and name is always on unless insecure_skip_verify says otherwise. The system's
 * certificates are those of env SSL_CERT_FILE and SSL_CERT_DIR (a list with ':' between, ';' on Windows) when one of them is
 * set, else the bundle of this system, on Windows its ROOT store. */
typedef struct e2b_tls_config {
  const char *ca_pem;        /* certificates to trust instead of the system's: PEM, or one DER certificate; copied      */
  size_t ca_pem_len;         /* 0 = strlen                                                                              */
  const char *ca_file;       /* the same from a file; with ca_pem both are trusted. On Windows mbedTLS takes its name, and
                                ca_path, in the code page of the process, not in UTF-8                                  */
  const char *ca_path;       /* the same from all files of a directory                                                  */
  bool ca_add;               /* trust ca_pem, ca_file and ca_path besides the system's, not instead                     */
  const char *client_cert_pem; /* shown to servers that ask for one: PEM with its chain behind it, or DER; copied       */
  size_t client_cert_pem_len;  /* 0 = strlen                                                                            */
  const char *client_key_pem;  /* the private key to it, not encrypted; copied, wiped at the end. Both or none. What is
                                  wrong with them is E2B_ERR_TLS (subject OPTION) of the first https connection         */
  size_t client_key_pem_len;   /* 0 = strlen                                                                            */
  const uint8_t *pin_sha256; /* pin_count times 32 bytes, SHA-256 of a SubjectPublicKeyInfo in DER; copied. The server's own
                                certificate must have one of these keys, whatever else is checked; else the connection ends
                                with TLS_CERTIFICATE before a request is sent. For all https servers of the client      */
  size_t pin_count;
  bool min_tls13;            /* no TLS 1.2. NOT_BUILT where mbedTLS has no TLS 1.3 (2.28 has none)                      */
  bool insecure_skip_verify; /* accept any certificate (pins hold); a warning is logged for each connection             */
  bool no_session_resumption;
} e2b_tls_config;

/* ------------------------------------------------------------------------------------------------------------------ */
/* public: client */
/* ------------------------------------------------------------------------------------------------------------------ */

/* How calls to a sandbox are written, requests and answers alike; file content is not concerned. Results and errors are
 * the same with each. */
typedef enum e2b_codec {
  E2B_CODEC_DEFAULT = 0, /* protobuf; when the server answers HTTP 415 (which says that it did nothing), the call is sent
                            once more as JSON, within its timeout, and all later calls to this sandbox are JSON at once */
  E2B_CODEC_PROTOBUF,    /* nothing else                                                                                */
  E2B_CODEC_JSON         /* from the first call on; output takes a third more bytes on the wire                         */
} e2b_codec;

/* Where a name is found, without asking DNS; what goes into the Host header and into TLS stays the name. */
typedef struct e2b_host_entry {
  const char *host;    /* "name", "name:port" (only for that port), "*.domain" (all names below it) or "*"              */
  const char *address; /* an IPv4 or IPv6 address literal, without brackets and port                                    */
} e2b_host_entry;

typedef enum e2b_protocol {
  E2B_PROTOCOL_DEFAULT = 0,
  E2B_PROTOCOL_NATIVE,  /* <scheme>://api.<domain> and <scheme>://<port>-<id>.<domain>                                  */
  E2B_PROTOCOL_PRIVATE  /* OpenKruise: <scheme>://<domain>/kruise/api and <scheme>://<domain>/kruise/<id>/<port>        */
} e2b_protocol;

#ifndef E2B_DEFAULT_DOMAIN
  #define E2B_DEFAULT_DOMAIN "e2b.app"
#endif

/* Gives the traffic token for one request to a sandbox: writes at most cap bytes (4096) without a final NUL and returns how
 * many, 0 = none is needed, < 0 = there is none: the call ends with E2B_ERR_TRAFFIC_TOKEN_REFRESH. Must not block, and must
 * not call this library. */
typedef int (*e2b_traffic_token_fn)(void *user, const char *sandbox_id, char *token, size_t cap);

/* A member that is set wins over the environment, the environment over the default; an empty variable is as good as none.
 * With domain, scheme or protocol set here, E2B_API_URL and E2B_SANDBOX_URL do not count: they name another service. */
typedef struct e2b_client_config {
  /* the service */
  const char *api_key;          /* X-API-Key, to the control plane only; env E2B_API_KEY, then X_API_KEY                */
  const char *access_token;     /* X-Access-Token for sandboxes whose server gives none; env X_ACCESS_TOKEN             */
  const char *domain;           /* host, host:port; env E2B_DOMAIN; default E2B_DEFAULT_DOMAIN                          */
  const char *scheme;           /* "https" or "http"; env SCHEME; default "https"                                       */
  e2b_protocol protocol;        /* env PROTOCOL ("native" or "private"); default native                                 */
  const char *api_url;          /* base URL of the control plane, above all other rules; env E2B_API_URL                */
  const char *sandbox_base_url; /* base URL of envd, above all other rules: <base>/<sandbox id>                         */
  const char *sandbox_url;      /* the same for every sandbox, nothing appended, told apart by the E2b-Sandbox-Id header;
                                   env E2B_SANDBOX_URL. sandbox_base_url wins over it                                   */
  const char *code_interpreter_base_url; /* base URL of the code interpreter, above all other rules, nothing appended;
                                   NULL = with sandbox_base_url and sandbox_url the same as envd's, told apart by the
                                   E2b-Sandbox-Port header, else by the protocol, with its own port                    */
  uint16_t runtime_port;        /* envd's port inside the sandbox; 0 = 49983                                            */
  uint8_t http_version;         /* 0: HTTP/2 where an https server agrees (ALPN), else HTTP/1.1. 1: HTTP/1.1 only.
                                   2: HTTP/2 only, over http without asking ("prior knowledge")                         */
  e2b_codec codec;              /* of calls to sandboxes                                                                */
  uint16_t code_interpreter_port; /* 0 = 49999                                                                          */
  int32_t request_timeout_ms;   /* default of call.timeout_ms; 0 = 60000, E2B_TIMEOUT_NONE                              */
  int32_t connect_timeout_ms;   /* name look-up, TCP, proxy and TLS; 0 = 10000                                          */
  int32_t idle_ms;              /* default of call.idle_ms; 0 = 60000, E2B_TIMEOUT_NONE                                 */
  int32_t keepalive_interval_s; /* pings asked of command streams; three missing ones end the stream; 0 = 50, 1..3600   */
  bool debug;                   /* kill and set_timeout succeed without a request; env E2B_DEBUG "true"                 */
  const char *default_user;     /* Unix user for commands and files; NULL: none for envd >= 0.4.0, "user" for what is begun
                                   with older ones, with the private protocol what the Go client sends ("root", and
                                   "node" for content)                                                                  */
  const char *auth_header;      /* Authorization of data-plane requests ("Basic cm9vdDo="), for calls that name no user;
                                   NULL = the user above                                                                */
  e2b_traffic_token_fn traffic_token_provider; /* for all sandboxes; NULL = each one's own token, refreshed when it is a
                                   JWT (see e2b_sandbox_refresh_traffic_access_token)                                   */
  void *traffic_token_user;     /* for traffic_token_provider                                                           */
  bool send_api_key_to_sandbox; /* X-API-Key on data-plane requests too, as the Go client does; a sandbox runs untrusted
                                   code, so: off                                                                        */
  const char *user_agent;       /* NULL = "e2b.h/<version>"                                                             */
  e2b_kvs headers;              /* added to every request; they replace ours of the same name, except authentication,
                                   routing (e2b-sandbox-...) and what says how the body is written (content-type)       */
  bool no_env;                  /* do not look at environment variables                                                 */

  /* the platform */
  e2b_allocator allocator;        /* zeroed = E2B_MALLOC                                                                */
  e2b_logger logger;              /* zeroed = silent                                                                    */
  const e2b_transport *transport; /* NULL = sockets; must live as long as the client                                    */
  e2b_tls_config tls;
  const char *proxy_url;          /* http://[user:password@]host[:port], user and password percent-encoded, port 80 when
                                     not given: an HTTP proxy for all connections. It looks up the servers' names.
                                     https:// servers are reached through CONNECT: it sees their name and port, no more.
                                     http:// servers are asked in its own form of request (absolute-form), which it can
                                     read, keys included: most proxies refuse CONNECT to other ports than 443. When it
                                     refuses: E2B_ERR_PROXY.
                                     env https_proxy, HTTPS_PROXY for https:// servers, http_proxy (never HTTP_PROXY, which
                                     CGI lets strangers set) for http:// ones, all_proxy, ALL_PROXY for both. Those of the
                                     environment are not used for this machine itself, nor with a transport of yours    */
  const char *no_proxy;           /* exceptions, with commas between: "name" or ".name" (and all below it), an address, a
                                     block such as 10.0.0.0/8, each perhaps with :port, or "*".
                                     env no_proxy, NO_PROXY, with a proxy of the environment                            */
  const e2b_host_entry *hosts;    /* fixed addresses of servers and proxies; the first entry that fits decides, more of
                                     the same host and port are tried in their order; copied                            */
  size_t host_count;
  uint64_t (*now_ms_fn)(void *user); /* monotonic clock; NULL = the system's                                            */
  int64_t (*unix_time_fn)(void *user); /* wall clock, seconds: the expiry of traffic tokens; NULL = the system's        */
  void (*yield_fn)(void *user);      /* called once per turn of a blocking call: feed a watchdog, yield to an RTOS      */
  void *platform_user;               /* for now_ms_fn, unix_time_fn and yield_fn                                        */

  /* limits; 0 = default */
  uint32_t max_ops;                  /* operations under way or not yet collected with e2b_op_poll: 65536               */
  uint32_t max_connections;          /* 1024; more requests wait in a queue, with their deadlines                       */
  uint32_t max_connections_per_host; /* = max_connections: with HTTP/1.1 every open stream holds one                    */
  uint32_t max_idle_connections;     /* 64, kept for reuse                                                              */
  uint32_t idle_connection_ms;       /* 60000, then closed. One of HTTP/2 that was silent for 30 s is asked by a PING
                                        before it is used again: a request that must not be done twice waits for the
                                        answer, one that may be goes out with it; without one in 2 s both go elsewhere  */
  uint32_t io_buffer_size;           /* 16384: largest read or write, and what an active connection buffers             */
  uint32_t max_header_bytes;         /* 65536 of one response                                                           */
  uint32_t max_message_bytes;        /* 16 MiB: one answer of JSON or protobuf, one message of a stream                 */
  uint64_t max_result_bytes;         /* 64 MiB: captured output of a command (per stream), content of a file read whole */
  uint32_t stream_buffer_size;       /* 65536: output you have not taken yet before the sender is held back             */
  uint32_t max_stream_window;        /* 16 MiB, HTTP/2: what a stream may have on its way to you, when the path needs it:
                                        it begins with stream_buffer_size and grows with what is taken in a round trip  */
} e2b_client_config;

/* Copies the configuration (not the transport). No I/O, but ca_file or the system's CA bundle is read when the first
 * https connection is made. Returns NULL and *err on failure. NULL config = all defaults.
 * Errors: INVALID_ARGUMENT (a member is malformed), NO_MEMORY, IO (no wake-up pipe). */
E2B_API e2b_client *e2b_client_create(const e2b_client_config *config, e2b_error *err);

/* Cancels everything under way (on_done is called with E2B_ERR_CANCELED), frees all sandboxes and handles made with the
 * client, closes all connections. Sandboxes go on living on the server. NULL is fine. Inside a callback: does nothing but
 * log an error. */
E2B_API void e2b_client_free(e2b_client *client);

typedef struct e2b_client_stats {
  size_t mem_now, mem_peak;        /* bytes from the allocator, TLS contexts not included                               */
  uint32_t allocs;                 /* allocations since create                                                          */
  uint32_t ops_active;             /* operations under way or not collected                                             */
  uint32_t connections_open, connections_idle, streams_open;
  uint32_t connections_made;       /* since create                                                                      */
  uint64_t bytes_rx, bytes_tx;     /* HTTP bytes, before TLS                                                            */
} e2b_client_stats;
E2B_API void e2b_client_get_stats(const e2b_client *client, e2b_client_stats *out);

/* The resolved URLs, without a final slash. Return the length; write at most cap bytes, always terminated when cap > 0. */
E2B_API size_t e2b_client_api_url(const e2b_client *client, char *out, size_t cap);
E2B_API size_t e2b_client_sandbox_url(const e2b_client *client, const char *sandbox_id, char *out, size_t cap);
#ifndef E2B_NO_CODE_INTERPRETER
E2B_API size_t e2b_client_code_interpreter_url(const e2b_client *client, const char *sandbox_id, char *out, size_t cap);
#endif

/* ------------------------------------------------------------------------------------------------------------------ */
/* public: driving the client */
/* ------------------------------------------------------------------------------------------------------------------ */

/* One turn of the loop: waits up to timeout_ms for something to do (0 = not at all, -1 = as long as it takes; returns at
 * once when nothing is under way), does it, calls callbacks. Returns how many operations were completed, or
 * E2B_ERR_BAD_STATE inside a callback. */
E2B_API int e2b_client_poll(e2b_client *client, int timeout_ms);

/* For frame loops: never waits, and starts no further piece of work once budget_us have passed (one piece is at most one
 * buffer of data or one step of a TLS handshake); but each call does at least one, and connections take turns, so that
 * nobody is left out by a small budget. Returns true when work was left for the next call. */
E2B_API bool e2b_client_pump(e2b_client *client, uint32_t budget_us);

/* Polls until no operation is under way. E2B_ERR_TIMEOUT when some still are after timeout_ms (-1 = no limit). */
E2B_API e2b_err e2b_client_drain(e2b_client *client, int timeout_ms);

/* For event loops of your own: wait for these descriptors, at most e2b_client_next_timeout, then call e2b_client_process.
 * Ask again before every wait. e2b_client_fds writes up to cap entries and returns how many there are. */
#define E2B_FD_READ 1u
#define E2B_FD_WRITE 2u
typedef struct e2b_pollfd { intptr_t fd; uint32_t events, revents; } e2b_pollfd;
E2B_API size_t e2b_client_fds(e2b_client *client, e2b_pollfd *out, size_t cap);
E2B_API int e2b_client_next_timeout(e2b_client *client); /* ms; 0 = work is waiting, -1 = no timer                        */
/* ready: the entries with revents filled in (others may be left out); NULL = look at all of them. budget_us as in pump,
 * 0 = no limit. Returns as e2b_client_poll. */
E2B_API int e2b_client_process(e2b_client *client, const e2b_pollfd *ready, size_t count, uint32_t budget_us);

E2B_API void e2b_client_wake(e2b_client *client);      /* from any thread: a waiting e2b_client_poll returns            */
E2B_API void e2b_client_interrupt(e2b_client *client); /* from any thread: the blocking call under way, or else the next
                                                          one, ends with E2B_ERR_CANCELED; what comes again before that
                                                          call has returned means the same call                         */

/* ------------------------------------------------------------------------------------------------------------------ */
/* public: operations */
/* ------------------------------------------------------------------------------------------------------------------ */

typedef struct e2b_op { uint32_t id; } e2b_op; /* a value, never dangling: a stale one is recognised; 0 = none           */

/* Called once when the operation is complete, from poll, pump or process. err->code is its result: E2B_OK,
 * E2B_COMMAND_EXIT, E2B_CODE_FAILED or a failure. */
typedef void (*e2b_done_fn)(void *user, const e2b_error *err);

/* How to do a call. Every accepted call completes exactly once, and never before the function that started it returned;
 * what is wrong with its arguments is reported by that function. */
typedef struct e2b_call {
  int32_t timeout_ms;  /* the whole call: 0 = the default of that call, E2B_TIMEOUT_NONE = no limit; other negative
                          numbers are refused: what is left of a deadline may be one. The default is
                          request_timeout_ms; for e2b_commands_run, _wait and file streams there is none               */
  int32_t idle_ms;     /* no progress on the network: 0 = the default of that call (config.idle_ms; command streams:
                          three keep-alive intervals), E2B_TIMEOUT_NONE                                                 */
  e2b_kvs headers;     /* added to the requests of this call, as those of the configuration are                         */
  e2b_op *op;          /* non-blocking: receives the handle; fetch the result with e2b_op_poll                          */
  e2b_done_fn on_done; /* non-blocking: called at the end                                                               */
  void *user;          /* for on_done                                                                                   */
} e2b_call;

/* E2B_PENDING while under way; else the result, once: the handle is then released. With on_done set the result goes to
 * on_done and the handle is released by itself. Unknown or released: E2B_ERR_BAD_STATE. */
E2B_API e2b_err e2b_op_poll(e2b_client *client, e2b_op op, e2b_error *err);
/* Ends it now and releases the handle: no callback comes any more, `out` is not touched any more. What the server already
 * got cannot be taken back. A stale handle does nothing. */
E2B_API void e2b_op_cancel(e2b_client *client, e2b_op op);
/* After a callback returned E2B_PAUSE: go on. */
E2B_API void e2b_op_resume(e2b_client *client, e2b_op op);

/* ------------------------------------------------------------------------------------------------------------------ */
/* public: sandbox */
/* ------------------------------------------------------------------------------------------------------------------ */

typedef struct e2b_network_rule { const char *host; e2b_kvs set_headers; } e2b_network_rule;

typedef struct e2b_network {
  e2b_strs allow_out, deny_out;  /* addresses, CIDR blocks; allow_out also names                                        */
  e2b_tri allow_public_traffic;
  const char *mask_request_host;
  const e2b_network_rule *rules; size_t rule_count;
  const char *egress_proxy_address, *egress_proxy_username, *egress_proxy_password;
} e2b_network;

typedef struct e2b_volume_mount { const char *name, *path; } e2b_volume_mount;

typedef struct e2b_sandbox_opts {
  e2b_call call;
  int32_t timeout_s;             /* life of the sandbox; 0 = 300. connect: 0 = never shorten, extend to 300             */
  e2b_kvs metadata;              /* create */
  e2b_kvs env_vars;              /* create */
  e2b_tri auto_pause;            /* create: pause instead of kill at the end of its life                                */
  e2b_tri secure;                /* create: envd demands an access token; E2B_UNSET = E2B_YES                           */
  e2b_tri auto_resume;           /* create */
  e2b_tri allow_internet_access; /* create */
  const e2b_network *network;    /* create */
  const char *mcp_json;          /* create: a JSON object                                                               */
  const e2b_volume_mount *volume_mounts; size_t volume_mount_count; /* create                                           */
  const char *traffic_access_token; /* instead of the server's; a JWT is refreshed when it expires                      */
  const char *extra_json;        /* create: a JSON object whose members are added to the request                        */
} e2b_sandbox_opts;

typedef enum e2b_sandbox_state { E2B_STATE_UNKNOWN = 0, E2B_STATE_RUNNING = 1, E2B_STATE_PAUSED = 2 } e2b_sandbox_state;

typedef struct e2b_sandbox_info {
  e2b_mem mem;
  const char *sandbox_id, *template_id, *alias, *client_id, *envd_version, *domain; /* "" when the server gave none     */
  const char *state_text;           /* as the server spelt it                                                           */
  e2b_sandbox_state state;
  int64_t started_at_ms, end_at_ms; /* Unix time; 0 = unknown                                                           */
  int32_t cpu_count, memory_mb, disk_size_mb;
  e2b_kvs metadata;
  const e2b_volume_mount *volume_mounts; size_t volume_mount_count;
  e2b_tri auto_pause, auto_resume;  /* get_info; E2B_UNSET = the server does not say                                    */
} e2b_sandbox_info;

#define E2B_NONCE_KEY "e2b.h/nonce"

/* One page. next_token is NULL on the last one. */
typedef struct e2b_sandbox_list { e2b_mem mem; const e2b_sandbox_info *items; size_t count; const char *next_token; } e2b_sandbox_list;

/* POST /sandboxes. template_id NULL = "base" at E2B's own domains, "code-interpreter" elsewhere; a snapshot_id is a template
 * too. Sent at most once: when err->maybe_done is set, a sandbox may have been created. A nonce is added to the metadata
 * (E2B_NONCE_KEY) so that it can be found: e2b_api_find_by_nonce(client, err->nonce, ...). Metadata of yours under that key
 * is sent instead of it. The handle belongs to the client; end it with e2b_sandbox_close or e2b_sandbox_free.
 * Errors: UNAUTHENTICATED, NOT_FOUND (subject TEMPLATE), INVALID_ARGUMENT, RATE_LIMITED, the network's. */
E2B_API e2b_err e2b_sandbox_create(e2b_client *client, const char *template_id, const e2b_sandbox_opts *opts, e2b_sandbox **out, e2b_error *err);

/* Attaches to a sandbox and resumes it when it is paused (POST /sandboxes/{id}/connect). NOT_FOUND with subject SANDBOX. */
E2B_API e2b_err e2b_sandbox_connect(e2b_client *client, const char *sandbox_id, const e2b_sandbox_opts *opts, e2b_sandbox **out, e2b_error *err);

/* A handle on a sandbox you know everything about. No request. */
typedef struct e2b_attach_opts {
  const char *access_token;         /* envd's X-Access-Token; NULL = config.access_token                                */
  const char *base_url;             /* envd's URL, as it is; NULL = by the rules of the client                          */
  const char *code_interpreter_base_url; /* the same of the code interpreter; NULL = base_url, else by the rules        */
  uint16_t code_interpreter_port;   /* 0 = the client's                                                                 */
  const char *domain;               /* NULL = the client's                                                              */
  const char *scheme;               /* "https" or "http"; NULL = the client's                                           */
  uint16_t runtime_port;            /* envd's port inside the sandbox; 0 = the client's                                 */
  const char *envd_version;         /* NULL = a current one                                                             */
  const char *traffic_access_token; /* a JWT is refreshed when it expires                                               */
  const char *auth_header;          /* as in the configuration; NULL = the client's                                     */
  e2b_kvs headers;                  /* added to every request to this sandbox; they replace the client's, and those of a
                                       call replace them                                                                */
  const char *template_id;          /* only for e2b_sandbox_template_id                                                 */
} e2b_attach_opts;
E2B_API e2b_err e2b_sandbox_attach(e2b_client *client, const char *sandbox_id, const e2b_attach_opts *opts, e2b_sandbox **out, e2b_error *err);

/* Forgets the handle; the sandbox lives on. Its command handles, file streams and watches are freed with it, its pending
 * operations end with E2B_ERR_CANCELED. NULL is fine. */
E2B_API void e2b_sandbox_free(e2b_sandbox *sandbox);

/* These live as long as the handle. */
E2B_API e2b_client *e2b_sandbox_client(const e2b_sandbox *sandbox);
E2B_API const char *e2b_sandbox_id(const e2b_sandbox *sandbox);
E2B_API const char *e2b_sandbox_template_id(const e2b_sandbox *sandbox);
E2B_API const char *e2b_sandbox_envd_version(const e2b_sandbox *sandbox);
E2B_API const char *e2b_sandbox_access_token(const e2b_sandbox *sandbox);         /* "" = none                            */
/* "" = none. May change whenever the client is driven: refreshed. */
E2B_API const char *e2b_sandbox_traffic_access_token(const e2b_sandbox *sandbox);
E2B_API const char *e2b_sandbox_runtime_url(const e2b_sandbox *sandbox);
/* Host (and path, with the private protocol) under which a port of the sandbox is reached, without scheme. As
 * e2b_client_api_url. */
E2B_API size_t e2b_sandbox_host(const e2b_sandbox *sandbox, uint16_t port, char *out, size_t cap);

E2B_API e2b_err e2b_sandbox_get_info(e2b_sandbox *sandbox, const e2b_call *call, e2b_sandbox_info *out, e2b_error *err);
E2B_API e2b_err e2b_sandbox_set_timeout(e2b_sandbox *sandbox, int32_t timeout_s, const e2b_call *call, e2b_error *err);
E2B_API e2b_err e2b_sandbox_pause(e2b_sandbox *sandbox, const e2b_call *call, e2b_error *err); /* already paused = OK     */
/* killed (optional): false when it did not exist any more, which is success too. */
E2B_API e2b_err e2b_sandbox_kill(e2b_sandbox *sandbox, const e2b_call *call, bool *killed, e2b_error *err);
/* Kill and free: the handle is gone when this returns, whatever the result. NULL is fine (E2B_OK). */
E2B_API e2b_err e2b_sandbox_close(e2b_sandbox *sandbox, const e2b_call *call, e2b_error *err);
/* Asks envd's GET /health: running is false when the answer proves that it is not. */
E2B_API e2b_err e2b_sandbox_is_running(e2b_sandbox *sandbox, const e2b_call *call, bool *running, e2b_error *err);

/* A heartbeat: sets the rest of the sandbox's life to timeout_s now, and again whenever a third of that has passed, as long
 * as the client is driven (poll, pump, process, any blocking call); nobody else does it. One request at a time; failures
 * that may pass (network, 5xx, 429, 409) are logged and tried again after 1, 2, 4 .. 30 s. on_lost (optional) is called
 * once, and the heartbeat ends, when the server says that the sandbox is gone (NOT_FOUND) or refuses (UNAUTHENTICATED,
 * PERMISSION, INVALID_ARGUMENT), or when timeout_s passed without a success. Ends silently with timeout_s = 0 and with
 * pause, kill, close and free of this handle. A second call replaces the first. Returns at once, E2B_OK when it began.
 * e2b_client_poll waits for its next beat as for anything under way; e2b_client_drain does not.
 * Errors: INVALID_ARGUMENT, NO_MEMORY. */
E2B_API e2b_err e2b_sandbox_keep_alive(e2b_sandbox *sandbox, int32_t timeout_s, e2b_done_fn on_lost, void *user, e2b_error *err);

/* OpenKruise's JWT mode. A sandbox created with the metadata { E2B_JWT_AUTH_METADATA_KEY, "true" } takes requests only with
 * a token that expires. The handle keeps one and sends it with every request; it asks for another in good time, once for
 * all calls that need it. While that fails the old one is used until it expires, then calls end with
 * E2B_ERR_TRAFFIC_TOKEN_EXPIRED and are not sent. A token that is not a JWT is neither refreshed nor sent to envd. */
#define E2B_JWT_AUTH_METADATA_KEY "security.agents.kruise.io/enable-jwt-auth"
#define E2B_TRAFFIC_TOKEN_HEADER "e2b-traffic-access-token"

#ifndef E2B_NO_TRAFFIC_TOKEN
/* Gets a new token now, or shares in the refresh that is under way. token (optional) is valid until the next refresh. On
 * failure the old one stays. Errors: BAD_STATE (the sandbox has no token that can be refreshed),
 * E2B_ERR_TRAFFIC_TOKEN_REFRESH (refused), the network's. */
E2B_API e2b_err e2b_sandbox_refresh_traffic_access_token(e2b_sandbox *sandbox, const e2b_call *call, const char **token, e2b_error *err);
#endif

/* The form of an OpenKruise API key that E2B's own clients accept ("e2b_<hex>"). Returns its length; writes at most cap
 * bytes, always terminated when cap > 0. It is as secret as the key. 0 = the key is longer than 1024 bytes. */
E2B_API size_t e2b_encode_for_e2b_sdk(const char *raw_key, char *out, size_t cap);

/* ------------------------------------------------------------------------------------------------------------------ */
/* public: api - the control plane by id, without a handle */
/* ------------------------------------------------------------------------------------------------------------------ */

/* OpenKruise knows metadata, states and limit; template_id and started_after_ms are then applied to the page that came, which
 * may be left with fewer entries than the limit, or none. */
typedef struct e2b_list_opts {
  e2b_call call;
  e2b_kvs metadata;         /* all must match. OpenKruise: no '&', no '=' in keys, neither can be asked for there; under
                               api.<domain> also no '%', '+', '='                                                       */
  uint32_t states;          /* E2B_STATE_RUNNING | E2B_STATE_PAUSED; 0 = the server's default, both                     */
  const char *template_id;  /* id or alias                                                                              */
  int64_t started_after_ms; /* Unix time, inclusive; 0 = any                                                            */
  bool oldest_first;        /* instead of newest first; OpenKruise always lists the oldest first                        */
  const char *next_token;   /* of the page before                                                                       */
  int32_t limit;            /* of a page, 1..100; 0 = the server's default                                              */
} e2b_list_opts;

/* One sandbox of a list; valid during the call. Return 0 to go on, > 0 for enough (the call ends with E2B_OK), < 0 to
 * cancel. */
typedef int (*e2b_sandbox_fn)(void *user, const e2b_sandbox_info *info);

typedef struct e2b_traffic_token { e2b_mem mem; const char *token; int64_t expires_at_ms; } e2b_traffic_token;

typedef struct e2b_create_response {
  e2b_mem mem;
  const char *sandbox_id, *template_id, *alias, *client_id, *envd_version, *envd_access_token, *traffic_access_token, *domain; /* "" = none */
} e2b_create_response;

E2B_API e2b_err e2b_api_list(e2b_client *client, const e2b_list_opts *opts, e2b_sandbox_list *out, e2b_error *err);
/* All pages, from opts->next_token on, one after the other. call.timeout_ms: all of them together, the default is
 * request_timeout_ms for each. Errors: as e2b_api_list; PROTOCOL when the server gives a page token twice, which would never
 * end. */
E2B_API e2b_err e2b_api_list_all(e2b_client *client, const e2b_list_opts *opts, e2b_sandbox_fn on_sandbox, void *user, e2b_error *err);
E2B_API e2b_err e2b_api_get_info(e2b_client *client, const char *sandbox_id, const e2b_call *call, e2b_sandbox_info *out, e2b_error *err);
E2B_API e2b_err e2b_api_kill(e2b_client *client, const char *sandbox_id, const e2b_call *call, bool *killed, e2b_error *err);
E2B_API e2b_err e2b_api_set_timeout(e2b_client *client, const char *sandbox_id, int32_t timeout_s, const e2b_call *call, e2b_error *err);
E2B_API e2b_err e2b_api_pause(e2b_client *client, const char *sandbox_id, const e2b_call *call, e2b_error *err);
E2B_API e2b_err e2b_api_create_sandbox(e2b_client *client, const char *template_id, const e2b_sandbox_opts *opts, e2b_create_response *out, e2b_error *err);
/* timeout_s <= 0 = 300 */
E2B_API e2b_err e2b_api_connect_sandbox(e2b_client *client, const char *sandbox_id, int32_t timeout_s, const e2b_call *call, e2b_create_response *out, e2b_error *err);
#ifndef E2B_NO_TRAFFIC_TOKEN
/* POST /sandboxes/{id}/traffic-access-token. Errors: E2B_ERR_TRAFFIC_TOKEN_REFRESH with http_status and retry_after_ms when
 * the server refuses or what it gives is no token; the network's. */
E2B_API e2b_err e2b_api_refresh_traffic_access_token(e2b_client *client, const char *sandbox_id, const e2b_call *call, e2b_traffic_token *out, e2b_error *err);
#endif

/* The sandbox a create made whose answer was lost. nonce: err.nonce of that create. NOT_FOUND (subject SANDBOX): there is
 * none; for as long as the create may still be at work (its timeout is a good measure), ask again before you believe it. */
E2B_API e2b_err e2b_api_find_by_nonce(e2b_client *client, const char *nonce, const e2b_call *call, e2b_sandbox_info *out, e2b_error *err);

/* Replaces all rules for what a running sandbox may reach (PUT /sandboxes/{id}/network); what is not given is cleared.
 * NULL = no rules. allow_public_traffic and mask_request_host can only be set when creating: INVALID_ARGUMENT here.
 * Errors: NOT_FOUND (subject SANDBOX), CONFLICT, PERMISSION, INVALID_ARGUMENT. */
E2B_API e2b_err e2b_api_update_network(e2b_client *client, const char *sandbox_id, const e2b_network *network, e2b_tri allow_internet_access, const e2b_call *call, e2b_error *err);

#ifndef E2B_NO_METRICS
typedef struct e2b_metric {
  int64_t timestamp_ms;     /* Unix time */
  int32_t cpu_count;
  double cpu_used_pct;      /* of all of them together: 0..100 */
  int64_t mem_total, mem_used, mem_cache, disk_total, disk_used; /* bytes */
} e2b_metric;
typedef struct e2b_metric_list { e2b_mem mem; const e2b_metric *items; size_t count; } e2b_metric_list;
/* Samples between two moments (Unix time, sent in whole seconds; 0 = no bound), oldest first; a young sandbox may have none
 * yet. Errors: NOT_FOUND (subject SANDBOX), NOT_BUILT (this server has no metrics). */
E2B_API e2b_err e2b_api_get_metrics(e2b_client *client, const char *sandbox_id, int64_t start_ms, int64_t end_ms, const e2b_call *call, e2b_metric_list *out, e2b_error *err);

typedef struct e2b_log_entry {
  int64_t timestamp_ms;     /* Unix time */
  const char *level;        /* "debug", "info", "warn", "error" */
  const char *message;
  e2b_kvs fields;
} e2b_log_entry;
typedef struct e2b_log_list { e2b_mem mem; const e2b_log_entry *items; size_t count; } e2b_log_list;
typedef struct e2b_logs_opts {
  e2b_call call;
  int64_t cursor_ms;        /* Unix time to start from; 0 = the newest, with forward the oldest that is kept            */
  bool forward;             /* from the cursor on to newer entries, instead of back to older ones                       */
  int32_t limit;            /* 1..1000; 0 = the server's default                                                        */
  const char *level;        /* only this level and above; NULL = all                                                    */
  const char *search;       /* only messages with this text, at most 256 bytes; NULL = all                              */
} e2b_logs_opts;
/* What the service logged about a sandbox, in the direction asked for. Errors as e2b_api_get_metrics. */
E2B_API e2b_err e2b_api_get_logs(e2b_client *client, const char *sandbox_id, const e2b_logs_opts *opts, e2b_log_list *out, e2b_error *err);
#endif

#ifndef E2B_NO_SNAPSHOTS
/* A template made from a sandbox; it outlives the sandbox. */
typedef struct e2b_snapshot { e2b_mem mem; const char *snapshot_id; e2b_strs names; } e2b_snapshot;
/* One page. next_token is NULL on the last one. */
typedef struct e2b_snapshot_list { e2b_mem mem; const e2b_snapshot *items; size_t count; const char *next_token; } e2b_snapshot_list;
typedef struct e2b_snapshot_list_opts {
  e2b_call call;
  const char *sandbox_id;   /* only those made from this sandbox                                                        */
  const char *name;         /* only those of this name                                                                  */
  const char *next_token;   /* of the page before                                                                       */
  int32_t limit;            /* 1..100; 0 = the server's default                                                         */
} e2b_snapshot_list_opts;
/* The sandbox stands still meanwhile, which can take a minute: mind call.timeout_ms. name NULL = none; a name that exists
 * gets the new content. Sent at most once (err->maybe_done). e2b_sandbox_create(client, out->snapshot_id, ...) starts
 * sandboxes from it. Errors: NOT_FOUND (subject SANDBOX), CONFLICT, INVALID_ARGUMENT. */
E2B_API e2b_err e2b_api_create_snapshot(e2b_client *client, const char *sandbox_id, const char *name, const e2b_call *call, e2b_snapshot *out, e2b_error *err);
E2B_API e2b_err e2b_api_list_snapshots(e2b_client *client, const e2b_snapshot_list_opts *opts, e2b_snapshot_list *out, e2b_error *err);
/* deleted (optional): false when there was none, which is success too. INVALID_ARGUMENT: sandboxes still use it. */
E2B_API e2b_err e2b_api_delete_snapshot(e2b_client *client, const char *snapshot_id, const e2b_call *call, bool *deleted, e2b_error *err);
#endif

/* ------------------------------------------------------------------------------------------------------------------ */
/* public: raw requests - what has no function of its own */
/* ------------------------------------------------------------------------------------------------------------------ */

/* An answer as it came. Names of headers are in lower case; a repeated one is there repeatedly, in order. */
typedef struct e2b_response {
  e2b_mem mem;
  int status;
  e2b_kvs headers;
  e2b_str body; /* "" when it went to a sink                                                                            */
} e2b_response;

/* The head of an answer, before its body; valid during the call only. Return 0 to go on, < 0 to cancel. */
typedef int (*e2b_head_fn)(void *user, int status, e2b_kvs headers);

typedef struct e2b_request_opts {
  e2b_call call;            /* headers: as in e2b_call, but content-type is the one of the body. timeout_ms: the
                               default is request_timeout_ms, with a source or a sink none                              */
  const char *content_type; /* of the body; NULL = by call.headers, else application/json for e2b_api_request and
                               application/octet-stream for e2b_sandbox_request                                         */
  const void *body; size_t body_len; /* not copied: must stay valid until completion                                    */
  e2b_source_fn source;     /* gives the body instead                                                                   */
  int64_t source_size;      /* bytes it will give; 0 = not known: sent in chunks                                        */
  e2b_head_fn on_head;      /* optional: called before the body arrives                                                 */
  e2b_data_fn sink;         /* takes the body instead of out->body, which is limited to config.max_message_bytes        */
  void *io_user;            /* for source, on_head and sink                                                             */
} e2b_request_opts;

/* Any call of the control plane: <api_url><path> with our key, timeouts and errors. path begins with '/', is
 * percent-encoded by you (other characters than visible ASCII, '#' and dot segments are refused) and may have a query.
 * Any status but 2xx is the error our own calls would give, and *out (optional) is filled all the same. GET, HEAD, OPTIONS,
 * PUT and DELETE may be sent again on a fresh connection when a reused one was dead; others never.
 * E2B_PAUSE needs a non-blocking call with call.op, and e2b_op_resume. */
E2B_API e2b_err e2b_api_request(e2b_client *client, const char *method, const char *path, const e2b_request_opts *opts, e2b_response *out, e2b_error *err);

/* A request to a server in the sandbox, at any port, routed as e2b_sandbox_host says (or through sandbox_base_url or
 * sandbox_url when set). It carries the traffic token and, only to envd's own port (runtime_port), the access token; the
 * API key never. path as for e2b_api_request. Any status is an answer: E2B_OK. Errors: UNAVAILABLE with subject PORT when
 * the service says that nothing listens on the port (what does not know says 502, an answer); SANDBOX_GONE, _PAUSED when
 * the sandbox turns out not to run; the network's. *out (optional) is filled whenever there was an answer. */
E2B_API e2b_err e2b_sandbox_request(e2b_sandbox *sandbox, uint16_t port, const char *method, const char *path, const e2b_request_opts *opts, e2b_response *out, e2b_error *err);

/* ------------------------------------------------------------------------------------------------------------------ */
/* public: commands */
/* ------------------------------------------------------------------------------------------------------------------ */

/* A command is one string for `/bin/bash -l -c`; nothing is quoted or changed on the way. */
typedef struct e2b_run_opts {
  e2b_call call;            /* timeout_ms: run: our wait for the whole command, default none; start and
                               connect_to_process: the wait for the pid, default request_timeout_ms. A command whose wait
                               ends goes on running: bound its life with run_timeout_ms                                 */
  int32_t run_timeout_ms;   /* the server kills the process after this long: E2B_ERR_TIMEOUT; 0 = never. Its children live
                               on: to end those too, start it, wait with a timeout_ms and call e2b_commands_kill_tree   */
  e2b_kvs envs;
  const char *cwd;          /* NULL = the user's home                                                                   */
  bool stdin_open;          /* keep stdin open for e2b_commands_send_stdin; else the command reads an empty one         */
  const char *user;         /* Unix user; NULL = config.default_user                                                    */
  const char *tag;          /* a name of yours, shown by e2b_commands_list; e2b_commands_connect_to_tag finds it        */
  const char *output_file;  /* only start_detached: its stdout and stderr are appended to this file in the sandbox,
                               relative to cwd; NULL = they are discarded                                               */
  e2b_data_fn on_stdout;    /* called with output as it arrives                                                         */
  e2b_data_fn on_stderr;
  void *output_user;        /* for both                                                                                 */
  bool no_collect;          /* do not keep output for the result: constant memory. A handle's wait does not either      */
  size_t max_collect;       /* keep at most this much of each stream, then set truncated; 0 = config.max_result_bytes   */
  bool reattach;            /* when the stream of a process breaks and the sandbox is known to run, connect to the process
                               again, at most once a second. Not start_detached. What it said meanwhile is lost, and that
                               is told: result.gaps, E2B_EVENT_GAP, e2b_command_handle_gaps. Nothing is started or
                               written again. An exit in between is known for 30 s (envd 0.6.13), else TRUNCATED          */
} e2b_run_opts;

typedef struct e2b_command_result {
  e2b_mem mem;
  e2b_str stdout_data, stderr_data;
  int32_t exit_code;   /* -1 when ended by a signal                                                                     */
  bool exited;         /* false = ended by a signal                                                                     */
  bool truncated;      /* output beyond max_collect was dropped                                                         */
  const char *status;  /* the server's words: "exit status 3", "signal: killed"                                         */
  const char *error;   /* the same when it failed, else ""                                                              */
  uint32_t gaps;       /* with reattach: how often output may be missing                                                */
} e2b_command_result;

typedef struct e2b_process_info { uint32_t pid; const char *tag, *cmd, *cwd; e2b_strs args; e2b_kvs envs; } e2b_process_info;
typedef struct e2b_process_list { e2b_mem mem; const e2b_process_info *items; size_t count; } e2b_process_list;

/* Runs a command to its end. E2B_OK: exit code 0. E2B_COMMAND_EXIT: it ended otherwise. In both cases *out (optional) is
 * filled. On E2B_ERR_TRUNCATED, _SANDBOX_GONE, _TIMEOUT and other losses after the start *out holds the output so far.
 * Errors: INVALID_ARGUMENT (cwd does not exist), UNAUTHENTICATED (no such user, wrong token), SANDBOX_GONE, ... */
E2B_API e2b_err e2b_commands_run(e2b_sandbox *sandbox, const char *cmd, const e2b_run_opts *opts, e2b_command_result *out, e2b_error *err);

/* Starts a command and returns when its pid is known. The handle belongs to the sandbox; free it when done. */
E2B_API e2b_err e2b_commands_start(e2b_sandbox *sandbox, const char *cmd, const e2b_run_opts *opts, e2b_command_handle **out, e2b_error *err);

/* Starts a command that outlives this connection and this client: returns its pid and holds nothing. Bound its life with
 * run_timeout_ms, reach it again by pid or tag. Its output is discarded while nobody is attached, or goes to
 * opts->output_file: then the file is known to be open when this returns (INVALID_ARGUMENT says why it is not), and who
 * attaches sees no output and, until the end, no sign of life: give that call an idle_ms of E2B_TIMEOUT_NONE.
 * Not used of opts: no_collect, max_collect; on_stdout and on_stderr must be NULL. */
E2B_API e2b_err e2b_commands_start_detached(e2b_sandbox *sandbox, const char *cmd, const e2b_run_opts *opts, uint32_t *pid, e2b_error *err);

/* Attaches to a running process: its output from now on. A process that ended within the last 30 s gives its exit code.
 * Uses of opts: call, user, on_stdout, on_stderr, output_user, no_collect, max_collect, reattach. NOT_FOUND with subject
 * PROCESS. */
E2B_API e2b_err e2b_commands_connect_to_process(e2b_sandbox *sandbox, uint32_t pid, const e2b_run_opts *opts, e2b_command_handle **out, e2b_error *err);
/* The same by the tag it was started with; which one, when several running ones share it, is not said. */
E2B_API e2b_err e2b_commands_connect_to_tag(e2b_sandbox *sandbox, const char *tag, const e2b_run_opts *opts, e2b_command_handle **out, e2b_error *err);

E2B_API e2b_err e2b_commands_list(e2b_sandbox *sandbox, const e2b_call *call, e2b_process_list *out, e2b_error *err);
/* SIGKILL to the process itself, not to its children. killed (optional): false when there is no such process. */
E2B_API e2b_err e2b_commands_kill(e2b_sandbox *sandbox, uint32_t pid, const e2b_call *call, bool *killed, e2b_error *err);
/* signo: 15 (SIGTERM) or 9 (SIGKILL), more envd does not deliver; to the process itself, not to its children. found
 * (optional): false when there is no such process. Output it had not yet written may be lost: see e2b_commands_stop. */
E2B_API e2b_err e2b_commands_send_signal(e2b_sandbox *sandbox, uint32_t pid, int signo, const e2b_call *call, bool *found, e2b_error *err);

/* SIGKILL to the process and all its descendants; when this returns they are dead. killed (optional): how many there were,
 * 0 when there is no such process. Only for what this sandbox's envd started. A bash in the sandbox, run as root, does it:
 * it stops (SIGSTOP) whatever descends from the process or is in a session or process group of one that does, until a look
 * at /proc finds nothing new and nothing running, and only then kills; so nobody can fork away meanwhile. What had left the
 * tree before is not found: an orphan whose parent had ended, unless it shares a session or process group with one found.
 * Goes on in the sandbox when this side gives up.
 * Errors: UNAUTHENTICATED (no user root), SERVICE (no bash, no /proc). */
E2B_API e2b_err e2b_commands_kill_tree(e2b_sandbox *sandbox, uint32_t pid, const e2b_call *call, uint32_t *killed, e2b_error *err);

typedef enum e2b_stopped {
  E2B_STOPPED_NOTHING = 0, /* there was no such process */
  E2B_STOPPED_BY_TERM,     /* all ended by themselves   */
  E2B_STOPPED_BY_KILL      /* some had to be killed     */
} e2b_stopped;
/* SIGTERM to the process and all its descendants, a wait for their end of up to grace_ms (0 = 5000), then SIGKILL to those
 * that are left and their descendants; found as e2b_commands_kill_tree does. No output is lost on the way to a SIGTERM's end.
 * An interactive shell ignores SIGTERM. call.timeout_ms: default grace_ms + request_timeout_ms. */
E2B_API e2b_err e2b_commands_stop(e2b_sandbox *sandbox, uint32_t pid, int32_t grace_ms, const e2b_call *call, e2b_stopped *how, e2b_error *err);

/* Bytes for the standard input of a process, as many as you like: they go out in pieces of at most 64 KiB, each when the
 * process has taken the one before (its pipe holds another 64 KiB). Calls for the same process are done one after the other,
 * in the order they were made, e2b_commands_close_stdin among them. Nothing is sent twice: when a call ends early after a part
 * of it was sent (err->maybe_done is set, err->message says how much was taken for sure), those waiting behind it end with
 * E2B_ERR_CANCELED and nothing of them is sent. timeout_ms: default none; idle_ms: for the process to take a piece. data is not copied.
 * Errors: NOT_FOUND (subject PROCESS), BAD_STATE (its stdin is not open, or it is a PTY). */
E2B_API e2b_err e2b_commands_send_stdin(e2b_sandbox *sandbox, uint32_t pid, const void *data, size_t len, const e2b_call *call, e2b_error *err);
/* The same, of what source gives until its end; in constant memory. E2B_PAUSE needs call.op and e2b_op_resume. */
E2B_API e2b_err e2b_commands_send_stdin_from(e2b_sandbox *sandbox, uint32_t pid, e2b_source_fn source, void *user, const e2b_call *call, e2b_error *err);
/* NOT_BUILT: an envd before 0.5.2 (OpenKruise's) cannot. */
E2B_API e2b_err e2b_commands_close_stdin(e2b_sandbox *sandbox, uint32_t pid, const e2b_call *call, e2b_error *err);

typedef enum e2b_event_kind {
  E2B_EVENT_NONE = 0, E2B_EVENT_STDOUT, E2B_EVENT_STDERR, E2B_EVENT_PTY, E2B_EVENT_EXIT,
  E2B_EVENT_GAP /* with reattach: output may be missing before this one */
} e2b_event_kind;
typedef struct e2b_command_event {
  e2b_event_kind kind;
  const char *data; size_t len; /* output; valid until the next call with this handle                                   */
  int32_t exit_code;            /* with E2B_EVENT_EXIT                                                                  */
  bool exited;                  /* with E2B_EVENT_EXIT; false = ended by a signal                                       */
  const char *error;            /* with E2B_EVENT_EXIT: "" or the server's words                                        */
} e2b_command_event;

/* Output of a handle goes one of two ways. Pushed: to on_stdout (that of a PTY too) and on_stderr, from poll, pump and process.
 * Pulled: with e2b_command_handle_next, when neither callback is set. Output not taken is held back at its source: the process blocks
 * when stream_buffer_size and the network's buffers are full. */
E2B_API uint32_t e2b_command_handle_pid(const e2b_command_handle *handle);
E2B_API uint32_t e2b_command_handle_gaps(const e2b_command_handle *handle); /* as result.gaps, so far; also in callbacks */
/* E2B_OK and an event; E2B_PENDING after timeout_ms (0 = do not wait, -1 = no limit) without one; E2B_EOF after the exit
 * event; or why the stream broke. BAD_STATE: the output is pushed, or a wait collects it. Resumes what a callback paused. */
E2B_API e2b_err e2b_command_handle_next(e2b_command_handle *handle, int timeout_ms, e2b_command_event *event, e2b_error *err);
/* Sets or changes the callbacks of pushed output. */
E2B_API void e2b_command_handle_set_output(e2b_command_handle *handle, e2b_data_fn on_stdout, e2b_data_fn on_stderr, void *user);
/* Waits for the end of the process, delivering output as above (with no callbacks set it is collected, up to max_collect,
 * from the first wait on, also while none is under way).
 * Result as e2b_commands_run, and the same again when called again. One wait at a time: E2B_ERR_BUSY. */
E2B_API e2b_err e2b_command_handle_wait(e2b_command_handle *handle, const e2b_call *call, e2b_command_result *out, e2b_error *err);
E2B_API void e2b_command_handle_resume(e2b_command_handle *handle); /* after E2B_PAUSE                                   */
/* Ends the stream; the process lives on. No callback comes after this returns; a pending wait ends with CANCELED. */
E2B_API void e2b_command_handle_disconnect(e2b_command_handle *handle);
/* As e2b_commands_kill, _send_stdin and _close_stdin; once the handle knows of the exit they ask nothing of the server, where the
 * pid may be another process' by then: false, NOT_FOUND. */
E2B_API e2b_err e2b_command_handle_kill(e2b_command_handle *handle, const e2b_call *call, bool *killed, e2b_error *err);
E2B_API e2b_err e2b_command_handle_send_stdin(e2b_command_handle *handle, const void *data, size_t len, const e2b_call *call, e2b_error *err);
E2B_API e2b_err e2b_command_handle_close_stdin(e2b_command_handle *handle, const e2b_call *call, e2b_error *err);
E2B_API void e2b_command_handle_free(e2b_command_handle *handle); /* disconnects first; NULL is fine                      */

/* ------------------------------------------------------------------------------------------------------------------ */
/* public: pty */
/* ------------------------------------------------------------------------------------------------------------------ */

#ifndef E2B_NO_PTY
/* A login shell (`/bin/bash -i -l`) on a terminal of its own. Its handle is like a command's: pull E2B_EVENT_PTY events, or
 * get bytes pushed to on_data; e2b_command_handle_wait collects them as stdout_data when nobody else takes them. The same
 * backpressure holds. */
typedef struct e2b_pty_opts {
  e2b_call call;            /* timeout_ms: the wait for the pid; default request_timeout_ms                             */
  int32_t run_timeout_ms;   /* create: the server kills the shell after this long; 0 = never                            */
  uint16_t cols, rows;      /* create; 0 = 80 and 24                                                                    */
  e2b_kvs envs;             /* create; TERM=xterm-256color, LANG=C.UTF-8 and LC_ALL=C.UTF-8 unless they are in it       */
  const char *cwd;          /* create; NULL = the user's home                                                           */
  const char *user;         /* Unix user; NULL = config.default_user                                                    */
  const char *tag;          /* create                                                                                   */
  e2b_data_fn on_data;      /* called with what the terminal shows as it arrives                                        */
  void *output_user;        /* for on_data                                                                              */
  size_t max_collect;       /* as in e2b_run_opts                                                                       */
  bool reattach;            /* as in e2b_run_opts                                                                       */
} e2b_pty_opts;

/* Returns when the pid is known. The handle belongs to the sandbox; free it when done, the shell lives on. */
E2B_API e2b_err e2b_pty_create(e2b_sandbox *sandbox, const e2b_pty_opts *opts, e2b_command_handle **out, e2b_error *err);
/* Attaches to one that runs: what it shows from now on. As e2b_commands_connect_to_process; e2b_commands_connect_to_tag does
 * for PTYs too. */
E2B_API e2b_err e2b_pty_connect(e2b_sandbox *sandbox, uint32_t pid, const e2b_pty_opts *opts, e2b_command_handle **out, e2b_error *err);
/* What was typed; all that e2b_commands_send_stdin says holds. A 0x04 on an empty line is the end of the input. BAD_STATE:
 * the process has no terminal. */
E2B_API e2b_err e2b_pty_send_input(e2b_sandbox *sandbox, uint32_t pid, const void *data, size_t len, const e2b_call *call, e2b_error *err);
/* cols and rows: at least 1. BAD_STATE: the process has no terminal. */
E2B_API e2b_err e2b_pty_resize(e2b_sandbox *sandbox, uint32_t pid, uint16_t cols, uint16_t rows, const e2b_call *call, e2b_error *err);
/* SIGKILL to the shell; its terminal hangs up on what runs in the foreground. As e2b_commands_kill. */
E2B_API e2b_err e2b_pty_kill(e2b_sandbox *sandbox, uint32_t pid, const e2b_call *call, bool *killed, e2b_error *err);
#endif

/* ------------------------------------------------------------------------------------------------------------------ */
/* public: files */
/* ------------------------------------------------------------------------------------------------------------------ */

/* Paths are the sandbox's, with '/'. A relative one starts at the user's home, "~/x" works. Empty paths are refused. */
typedef enum e2b_entry_type { E2B_ENTRY_UNKNOWN = 0, E2B_ENTRY_FILE, E2B_ENTRY_DIR, E2B_ENTRY_SYMLINK } e2b_entry_type;

typedef struct e2b_entry_info {
  e2b_mem mem;
  const char *name, *path;
  const char *permissions;      /* the server's text: "-rw-r--r--", "drwxr-xr-x", "Lrwxrwxrwx"                          */
  const char *owner, *group;
  const char *symlink_target;   /* NULL when it is not a symbolic link                                                  */
  e2b_entry_type type;          /* of a link: of its target                                                             */
  int64_t size;                 /* bytes                                                                                */
  uint32_t mode;                /* permission bits                                                                      */
  int64_t modified_time_ns;     /* Unix time                                                                            */
  e2b_kvs metadata;
} e2b_entry_info;
typedef struct e2b_entry_list { e2b_mem mem; const e2b_entry_info *items; size_t count; } e2b_entry_list;
typedef struct e2b_write_info { e2b_mem mem; const char *path, *name, *type; e2b_kvs metadata; } e2b_write_info;

typedef struct e2b_files_opts {
  e2b_call call;
  const char *user;  /* Unix user: owner of what is created, home of relative paths; NULL = config.default_user          */
  uint32_t depth;    /* list: how many levels; 0 = 1                                                                    */
  uint64_t offset;   /* read, download, read_stream: begin at this byte; one beyond the end gives no bytes and E2B_OK   */
  uint64_t length;   /* the same: at most so many bytes; 0 = to the end                                                 */
  e2b_kvs metadata;  /* writes: kept with the file, replaces what it had; none given = none kept. Keys are case-insensitive
                        header names of at most 246 bytes, stored in lower case; values printable ASCII without spaces at
                        their ends; 4096 bytes in all, 9 more per key. Verified: NOT_BUILT with maybe_done when the file
                        was written but the server (envd < 0.6.2, or its file system) keeps no metadata                 */
  bool atomic;       /* writes: into a temporary file beside the target, which is renamed over it: others see the old content
                        or the new one, and after a failure the old one (the temporary is removed, if the server can still
                        be asked). The file is a new one: owned by the user, mode 0644; a symbolic link is replaced, not
                        followed. The write permission of the directory is what counts                                  */
  e2b_tri octet_stream; /* writes: E2B_YES sends the content as it is, E2B_NO as a form; E2B_UNSET: by the version of envd */
} e2b_files_opts;

/* Missing paths: NOT_FOUND with subject FILE (a missing sandbox is SANDBOX_GONE). `out` of rename and write is optional. */
E2B_API e2b_err e2b_files_list(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts, e2b_entry_list *out, e2b_error *err);
E2B_API e2b_err e2b_files_exists(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts, bool *exists, e2b_error *err);
E2B_API e2b_err e2b_files_get_info(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts, e2b_entry_info *out, e2b_error *err);
/* With parents. created (optional): false when the directory was there already. */
E2B_API e2b_err e2b_files_make_dir(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts, bool *created, e2b_error *err);
E2B_API e2b_err e2b_files_rename(e2b_sandbox *sandbox, const char *old_path, const char *new_path, const e2b_files_opts *opts, e2b_entry_info *out, e2b_error *err);
/* Directories with all they hold. A missing path is success. */
E2B_API e2b_err e2b_files_remove(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts, e2b_error *err);
/* The whole file, up to config.max_result_bytes (E2B_ERR_LIMIT above it). A directory: INVALID_ARGUMENT. */
E2B_API e2b_err e2b_files_read(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts, e2b_buf *out, e2b_error *err);
/* As e2b_files_read; E2B_ERR_PROTOCOL when the content has a NUL byte, which a C string would hide. */
E2B_API e2b_err e2b_files_read_text(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts, e2b_buf *out, e2b_error *err);
/* Creates parents, replaces the content. data is not copied: it must stay valid until completion. */
E2B_API e2b_err e2b_files_write(e2b_sandbox *sandbox, const char *path, const void *data, size_t len, const e2b_files_opts *opts, e2b_write_info *out, e2b_error *err);
E2B_API e2b_err e2b_files_write_text(e2b_sandbox *sandbox, const char *path, const char *text, const e2b_files_opts *opts, e2b_write_info *out, e2b_error *err);

/* Constant memory, pushed: the call calls you. size: bytes that source will give, -1 = unknown (sent chunked). A source that
 * ends early or late is E2B_ERR_INVALID_ARGUMENT. E2B_PAUSE needs a non-blocking call and e2b_op_resume. */
E2B_API e2b_err e2b_files_download(e2b_sandbox *sandbox, const char *path, e2b_data_fn sink, void *user, const e2b_files_opts *opts, e2b_error *err);
E2B_API e2b_err e2b_files_upload(e2b_sandbox *sandbox, const char *path, e2b_source_fn source, void *user, int64_t size, const e2b_files_opts *opts, e2b_write_info *out, e2b_error *err);

/* Constant memory, pulled: you call it. opening a read stream waits for the answer's head (missing file: NOT_FOUND); opening
 * a write stream waits for nothing. The stream belongs to the sandbox; free it when done. */
E2B_API e2b_err e2b_files_read_stream(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts, e2b_file_stream **out, e2b_error *err);
E2B_API e2b_err e2b_files_write_stream(e2b_sandbox *sandbox, const char *path, int64_t size, const e2b_files_opts *opts, e2b_file_stream **out, e2b_error *err);
E2B_API int64_t e2b_file_stream_size(const e2b_file_stream *stream); /* bytes to be had in all; -1 = unknown              */
/* timeout_ms: 0 = do not wait, -1 = no limit but idle_ms. E2B_OK with *got > 0; E2B_PENDING; E2B_EOF when all of the file, or
 * of the part asked for, was read; or a failure: TRUNCATED when it ended early. */
E2B_API e2b_err e2b_file_stream_read(e2b_file_stream *stream, int timeout_ms, void *buf, size_t cap, size_t *got, e2b_error *err);
/* E2B_OK with *took > 0 (perhaps less than len; took NULL = wait until all is taken); E2B_PENDING; or a failure. */
E2B_API e2b_err e2b_file_stream_write(e2b_file_stream *stream, int timeout_ms, const void *buf, size_t len, size_t *took, e2b_error *err);
/* Ends an upload and waits for the server's answer, without which nothing is sure. E2B_PENDING: call again. */
E2B_API e2b_err e2b_file_stream_finish(e2b_file_stream *stream, int timeout_ms, e2b_write_info *out, e2b_error *err);
E2B_API void e2b_file_stream_free(e2b_file_stream *stream); /* before its end: aborts; NULL is fine                       */

/* Joins files on the server, in the order given, into `destination`, which appears at once or not at all; the source files
 * are then removed. Needs envd 0.5.5: NOT_BUILT on older ones. Errors: INVALID_ARGUMENT (a source is no regular file, or the
 * destination), NOT_FOUND (a source is missing), NOT_ENOUGH_SPACE. Of opts: call, user. */
E2B_API e2b_err e2b_files_compose(e2b_sandbox *sandbox, e2b_strs sources, const char *destination, const e2b_files_opts *opts, e2b_write_info *out, e2b_error *err);

/* URLs that anybody can use without a token: GET the file, or POST it (as a form with a part "file", or with
 * content-type: application/octet-stream). No request is made. With a secure sandbox the URL is signed for this path, user
 * and direction. user: NULL = config.default_user. expires_s: seconds from now, 0 = it has expired when this second has
 * passed, E2B_TIMEOUT_NONE = it never does. An upload path may be NULL: the file name of the form decides.
 * As snprintf: returns the length and writes at most cap bytes, always terminated when cap > 0. 0 = failed:
 * INVALID_ARGUMENT (a bad path; expires_s in the past, or for a sandbox without a token, whose URLs nobody checks), NO_MEMORY. */
E2B_API size_t e2b_sandbox_download_url(const e2b_sandbox *sandbox, const char *path, const char *user, int32_t expires_s, char *out, size_t cap, e2b_error *err);
E2B_API size_t e2b_sandbox_upload_url(const e2b_sandbox *sandbox, const char *path, const char *user, int32_t expires_s, char *out, size_t cap, e2b_error *err);

/* ---- many files and whole trees in one call ---- */

/* How far such a call is. Counts files, but for dirs_found; done means written here, or confirmed by the server. */
typedef struct e2b_bulk_stats {
  uint64_t files_found, files_done, files_skipped;
  uint64_t files_failed;   /* also directories that could not be read or made                                         */
  uint64_t bytes_found, bytes_done;
  uint64_t dirs_found;     /* below the one that was named                                                            */
  bool all_found;          /* the _found ones are final                                                               */
} e2b_bulk_stats;

/* What became of one file of a tree; of a directory only when it failed. */
typedef struct e2b_bulk_file {
  const char *name;        /* relative to both directories, with '/'                                                  */
  uint64_t size;
  bool skipped;            /* a link that is not followed, or neither file nor directory; the message says which      */
  const e2b_error *result; /* code E2B_OK: done                                                                       */
} e2b_bulk_file;

typedef struct e2b_bulk_opts {
  e2b_call call;           /* timeout_ms: the whole of it, default none; idle_ms: each request                        */
  const char *user;        /* as in e2b_files_opts; NULL = that of content for all a tree needs, directories too      */
  uint32_t parallel;       /* requests under way at once; 0 = 32, at most config.max_connections_per_host             */
  uint32_t batch_bytes;    /* uploads: small files share a request of up to this size, and each request under way holds
                              that much memory; 0 = 262144, 1 = every file alone                                      */
  bool stop_on_error;      /* start nothing more after the first failure                                              */
  bool no_exec_bits;       /* trees: do not care which files are executable                                           */
  uint32_t max_files;      /* download_tree: files and directories it may create; 0 = 1,000,000. Their names, while they
                              wait, also have a limit: 4 times config.max_message_bytes, but not below 1 MiB          */
  uint64_t max_bytes;      /* download_tree: content in all; 0 = no limit. Beyond either: E2B_ERR_LIMIT               */
  int (*on_progress)(void *user, const e2b_bulk_stats *stats); /* at most once per turn of the loop; < 0 cancels      */
  int (*on_file)(void *user, const e2b_bulk_file *file);       /* trees: the status of each file; < 0 cancels         */
  void *callback_user;     /* for both                                                                                */
} e2b_bulk_opts;

typedef struct e2b_write_item {
  const char *path;
  const void *data;        /* not copied: must stay valid until completion                                            */
  size_t len;
  e2b_err code;            /* set by the call. E2B_OK: confirmed by the server; E2B_PENDING: it ended before */
  char message[120];       /* set by the call: why, "" with E2B_OK                                                    */
} e2b_write_item;

typedef struct e2b_read_item {
  const char *path;
  e2b_buf content;         /* free each with e2b_mem_free(&item.content.mem), also those of a call that failed        */
  e2b_err code;            /* as above                                                                                */
  char message[120];
} e2b_read_item;

/* `items` must stay valid until completion; their order means nothing, so no two should name the same file. E2B_OK: all
 * are done. Else the error of the first that failed, and how many did; the others are done nevertheless, unless what
 * failed concerns them all (the sandbox is gone, nothing connects, the token is refused). A file whose request was lost
 * on the way, or answered with HTTP 500, is tried once more. */
E2B_API e2b_err e2b_files_write_many(e2b_sandbox *sandbox, e2b_write_item *items, size_t count,
                                     const e2b_bulk_opts *opts, e2b_error *err);
E2B_API e2b_err e2b_files_read_many(e2b_sandbox *sandbox, e2b_read_item *items, size_t count,
                                    const e2b_bulk_opts *opts, e2b_error *err);

#ifndef E2B_NO_LOCAL_FILES
/* Everything below one directory goes below the other, with sub-directories, empty ones too; what is there already is
 * kept or replaced. The return code is as above. *out (optional) is kept up to date until completion and stays filled
 * after a failure. Memory: the names of what was found and not yet sent, not the content.
 * Symbolic links below the directory are never followed out of it: one to a file inside becomes a copy of that file (on
 * uploads if the link is a relative one), all others are skipped, as are sockets, pipes and devices. Times, owners and
 * permissions are not copied, but a file that its owner may execute becomes executable for all; uploads need chmod in
 * the sandbox for that, and Windows knows no such bit. */
E2B_API e2b_err e2b_files_upload_tree(e2b_sandbox *sandbox, const char *local_dir, const char *remote_dir,
                                      const e2b_bulk_opts *opts, e2b_bulk_stats *out, e2b_error *err);
/* local_dir is made when it is missing, its parent is not. Nothing a sandbox says makes this write outside of it: names
 * that are no plain file names here fail with E2B_ERR_PROTOCOL, links in the way of a directory with E2B_ERR_IO. A file
 * appears under its name when it is complete; until then it is ".e2b-<random>.part" beside it, gone if it fails. */
E2B_API e2b_err e2b_files_download_tree(e2b_sandbox *sandbox, const char *remote_dir, const char *local_dir,
                                        const e2b_bulk_opts *opts, e2b_bulk_stats *out, e2b_error *err);
#endif

#ifndef E2B_NO_CODE_INTERPRETER
/* ------------------------------------------------------------------------------------------------------------------ */
/* public: code interpreter - code in a language with a memory: variables live on from run to run */
/* ------------------------------------------------------------------------------------------------------------------ */

/* A service of its own inside the sandbox (port 49999), which only some templates have: "code-interpreter-v1" at E2B,
 * "code-interpreter" at OpenKruise. Where there is none, calls end in E2B_ERR_UNAVAILABLE and say so. */
#define E2B_LANGUAGE_PYTHON "python"
#define E2B_LANGUAGE_JAVASCRIPT "javascript"
#define E2B_LANGUAGE_TYPESCRIPT "typescript"
#define E2B_LANGUAGE_R "r"
#define E2B_LANGUAGE_JAVA "java"
#define E2B_LANGUAGE_BASH "bash"

/* What the code showed: the value of its last expression, or one display(). The same thing in every format the server has;
 * len 0 = not in this one. */
typedef struct e2b_code_result {
  e2b_str text, html, markdown, svg, latex, javascript;
  e2b_str png, jpeg, pdf;           /* base64                                                                           */
  e2b_str json, data, chart, extra; /* JSON: of the value; a table by columns; a chart's points; {"mime/type": ...}     */
  bool is_main_result;              /* the value of the last expression                                                 */
} e2b_code_result;

#define E2B_FORMAT_TEXT 1u
#define E2B_FORMAT_HTML 2u
#define E2B_FORMAT_MARKDOWN 4u
#define E2B_FORMAT_SVG 8u
#define E2B_FORMAT_LATEX 16u
#define E2B_FORMAT_JAVASCRIPT 32u
#define E2B_FORMAT_PNG 64u
#define E2B_FORMAT_JPEG 128u
#define E2B_FORMAT_PDF 256u
#define E2B_FORMAT_JSON 512u
#define E2B_FORMAT_DATA 1024u
#define E2B_FORMAT_CHART 2048u
#define E2B_FORMAT_EXTRA 4096u
E2B_API uint32_t e2b_code_result_formats(const e2b_code_result *result); /* which of them it has                         */

/* What the code raised. Trouble of the interpreter itself comes so too, under names such as "ContextRestarting". */
typedef struct e2b_execution_error { const char *name, *value, *traceback; } e2b_execution_error;

typedef struct e2b_execution {
  e2b_mem mem;
  const e2b_code_result *results; size_t result_count;
  e2b_str stdout_data, stderr_data;
  const e2b_execution_error *error; /* NULL = none                                                                      */
  int32_t execution_count;          /* how many runs the context has seen, this one included; 0 = the server did not say */
  bool truncated;                   /* results, or output of a stream, beyond config.max_result_bytes were dropped      */
} e2b_execution;
E2B_API const char *e2b_execution_text(const e2b_execution *execution); /* of the main result, "" when there is none; never NULL */

typedef enum e2b_code_event_kind {
  E2B_CODE_STDOUT = 1, /* text, timestamp */
  E2B_CODE_STDERR,     /* text, timestamp */
  E2B_CODE_RESULT,     /* result */
  E2B_CODE_ERROR,      /* error */
  E2B_CODE_COUNT,      /* count */
  E2B_CODE_END         /* the server has said all; that this was everything is known when the call is complete */
} e2b_code_event_kind;

/* Everything in it is valid during the callback only. */
typedef struct e2b_code_event {
  e2b_code_event_kind kind;
  e2b_str text, timestamp;          /* timestamp: the server's text, "" when it gave none                               */
  const e2b_code_result *result;
  const e2b_execution_error *error;
  int32_t count;
} e2b_code_event;

typedef struct e2b_run_code_opts {
  e2b_call call;           /* timeout_ms: our wait for the whole run, default none; idle_ms: default none. When either ends
                              it, or you do, the connection is closed, and with that the server interrupts the code     */
  const char *language;    /* E2B_LANGUAGE_...; NULL = the server's default, Python. Not together with context_id       */
  const char *context_id;  /* NULL = the default context of the language                                                */
  const char *cwd;         /* for servers that know it (OpenKruise); E2B's takes the directory of the context           */
  e2b_kvs envs;            /* for this run only. E2B's server does not quote them: no quotes and backslashes in values  */
  int32_t exec_timeout_ms; /* how long the code may run, from the beginning of the answer; 0 = no limit. Told to the server
                              and watched here as well: E2B_ERR_TIMEOUT                                                 */
  int (*on_event)(void *user, const e2b_code_event *event); /* as it happens; returns as e2b_data_fn does: 0, E2B_PAUSE
                              (needs call.op and e2b_op_resume), < 0                                                    */
  void *event_user;        /* for on_event                                                                              */
} e2b_run_code_opts;

/* Runs code to its end. E2B_OK: it ended well. E2B_CODE_FAILED: it raised out->error (the message has its name and value).
 * In both cases *out is filled; out NULL = keep nothing, all goes to on_event: constant memory. On E2B_ERR_TRUNCATED (the
 * server never said that the code had ended), _SANDBOX_GONE, _TIMEOUT and other losses *out holds what had come until then.
 * Lines of the answer that are not understood are skipped, with a warning in the log. Never sent twice.
 * Errors: NOT_FOUND with subject CONTEXT; INVALID_ARGUMENT; UNAVAILABLE (no interpreter in this sandbox); SERVICE (no such
 * language); LIMIT (one line of the answer is longer than config.max_message_bytes); the network's. */
E2B_API e2b_err e2b_code_run(e2b_sandbox *sandbox, const char *code, const e2b_run_code_opts *opts, e2b_execution *out, e2b_error *err);

/* A context: an interpreter with its own variables and directory. One run at a time; others wait for it. */
typedef struct e2b_code_context { e2b_mem mem; const char *id, *language, *cwd; } e2b_code_context; /* "" = the server did not say */
typedef struct e2b_code_context_list { e2b_mem mem; const e2b_code_context *items; size_t count; } e2b_code_context_list;

/* cwd and language NULL = the server's defaults, its home directory and Python. */
E2B_API e2b_err e2b_code_create_context(e2b_sandbox *sandbox, const char *cwd, const char *language, const e2b_call *call, e2b_code_context *out, e2b_error *err);
E2B_API e2b_err e2b_code_list_contexts(e2b_sandbox *sandbox, const e2b_call *call, e2b_code_context_list *out, e2b_error *err);
/* Both: NOT_FOUND with subject CONTEXT. A run that is under way there ends with an error event. */
E2B_API e2b_err e2b_code_remove_context(e2b_sandbox *sandbox, const char *context_id, const e2b_call *call, e2b_error *err);
E2B_API e2b_err e2b_code_restart_context(e2b_sandbox *sandbox, const char *context_id, const e2b_call *call, e2b_error *err); /* forgets its variables */
#endif

#ifndef E2B_NO_WATCH
/* ------------------------------------------------------------------------------------------------------------------ */
/* public: watch - what happens in a directory */
/* ------------------------------------------------------------------------------------------------------------------ */

typedef struct e2b_watch_handle e2b_watch_handle;

typedef enum e2b_fs_event_type {
  E2B_FS_UNKNOWN = 0, /* of a newer server */
  E2B_FS_CREATE,      /* also the new name of something renamed */
  E2B_FS_WRITE,
  E2B_FS_REMOVE,
  E2B_FS_RENAME,      /* the old name */
  E2B_FS_CHMOD,       /* permissions or owner */
  E2B_FS_GAP          /* events may be missing before this one: the connection or the server's watch broke and was begun anew */
} e2b_fs_event_type;

typedef struct e2b_fs_event {
  e2b_fs_event_type type;
  const char *name;            /* relative to the watched directory, "." for itself; "" with E2B_FS_GAP                 */
  const e2b_entry_info *entry; /* CREATE, WRITE and CHMOD with include_entry, when it was still there; else NULL        */
} e2b_fs_event;                /* all of it is valid until the next call with this handle, or the callback's return     */

/* < 0 ends the watch. */
typedef int (*e2b_fs_event_fn)(void *user, const e2b_fs_event *event);

typedef struct e2b_watch_opts {
  e2b_call call;               /* timeout_ms: the wait for the watch to begin, default request_timeout_ms; idle_ms: as for
                                  command streams                                                                       */
  const char *user;            /* Unix user whose home relative paths start at; NULL = config.default_user              */
  bool recursive;              /* directories below it too, also those made later. envd >= 0.1.4, else NOT_BUILT        */
  bool include_entry;          /* envd >= 0.6.3; an older one gives none                                                */
  bool allow_network_mounts;   /* envd >= 0.4.3 refuses NFS, SMB and FUSE (INVALID_ARGUMENT) unless this is set, which
                                  those before 0.6.4 do not understand                                                  */
  bool polling;                /* ask for events from time to time instead of holding a stream open                     */
  int32_t poll_interval_ms;    /* 0 = 1000; the next question waits until the events of the last one are taken          */
  e2b_fs_event_fn on_event;    /* events are pushed from poll, pump, process and blocking calls; NULL = pulled with
                                  e2b_watch_handle_next                                                                 */
  e2b_done_fn on_end;          /* with on_event: called once when the watch ends by itself, err->code as the result of
                                  e2b_watch_handle_next at the end                                                      */
  void *event_user;            /* for both                                                                              */
} e2b_watch_opts;

/* Returns when the directory is being watched: what happens from then on is reported. The handle belongs to the sandbox;
 * end it with e2b_watch_handle_stop. Events not taken are held back in at most stream_buffer_size here and then at the
 * server, which does not bound them.
 * Errors: NOT_FOUND (subject FILE), INVALID_ARGUMENT (not a directory, or on a network mount), NOT_BUILT. */
E2B_API e2b_err e2b_files_watch_dir(e2b_sandbox *sandbox, const char *path, const e2b_watch_opts *opts, e2b_watch_handle **out, e2b_error *err);

/* timeout_ms: 0 = do not wait, -1 = no limit. E2B_OK and an event; E2B_PENDING; E2B_EOF: the directory itself was removed or
 * renamed, as the event before said; or why the watch ended: it broke and could not be begun anew. */
E2B_API e2b_err e2b_watch_handle_next(e2b_watch_handle *handle, int timeout_ms, e2b_fs_event *event, e2b_error *err);

/* Ends the watch and frees the handle; no callback comes after this. NULL is fine. A polling watch also has to be removed
 * at the server: this waits for that, 5 s at most, when the watch was opened by a blocking call; otherwise it happens while
 * the client is driven. */
E2B_API void e2b_watch_handle_stop(e2b_watch_handle *handle);
#endif /* E2B_NO_WATCH */

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* E2B_H */

/* ================================================================================================================== */
/*   end of the declarations, beginning of the implementation                                                         */
/* ================================================================================================================== */

#if defined(E2B_IMPLEMENTATION) && !defined(E2B_IMPLEMENTATION_DONE)
#define E2B_IMPLEMENTATION_DONE
/* ================================================================================================================== */
/* >>>> platform */
/* ================================================================================================================== */

#include <string.h>
#include <stdlib.h>
#include <stdio.h>
#include <stdarg.h>
#include <limits.h>
#include <time.h>

#define E2B__UNUSED(x) ((void)(x))
#define E2B__COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define E2B__MIN(a, b) ((a) < (b) ? (a) : (b))
#define E2B__MAX(a, b) ((a) > (b) ? (a) : (b))
#define E2B__NEVER INT64_MAX /* a deadline that never comes, milliseconds on the client's monotonic clock */

#if defined(__GNUC__) || defined(__clang__)
  #define E2B__PRINTF(fmt_index, first_arg) __attribute__((format(printf, fmt_index, first_arg)))
  #define E2B__MAYBE_UNUSED __attribute__((unused)) /* the other direction of a codec: for tests and servers */
#else
  #define E2B__MAYBE_UNUSED
  #define E2B__PRINTF(fmt_index, first_arg)
#endif

#if defined(E2B_MALLOC) != defined(E2B_FREE) || defined(E2B_MALLOC) != defined(E2B_REALLOC)
  #error "e2b.h: define all of E2B_MALLOC(size), E2B_REALLOC(ptr, size) and E2B_FREE(ptr), or none of them"
#endif
#ifndef E2B_MALLOC
  #define E2B_MALLOC(size) malloc(size)
  #define E2B_REALLOC(ptr, size) realloc(ptr, size)
  #define E2B_FREE(ptr) free(ptr)
#endif
#ifndef E2B_ASSERT
  #include <assert.h>
  #define E2B_ASSERT(condition) assert(condition)
#endif

/* ================================================================================================================== */
/* >>>> memory */
/* ================================================================================================================== */

/* Every byte of a client comes from here: the user's allocator plus the counters of e2b_client_get_stats. */
typedef struct e2b__mem {
  e2b_allocator allocator;
  size_t now, peak;
  uint32_t allocs;
} e2b__mem;

static void *e2b__mem_default_alloc(void *user, size_t size) {
  E2B__UNUSED(user);
  return E2B_MALLOC(size);
}

static void *e2b__mem_default_realloc(void *user, void *ptr, size_t old_size, size_t new_size) {
  E2B__UNUSED(user);
  E2B__UNUSED(old_size);
  return E2B_REALLOC(ptr, new_size);
}

static void e2b__mem_default_free(void *user, void *ptr, size_t size) {
  E2B__UNUSED(user);
  E2B__UNUSED(size);
  E2B_FREE(ptr);
}

/* A zeroed allocator stands for E2B_MALLOC and friends. */
static void e2b__mem_init(e2b__mem *mem, const e2b_allocator *allocator) {
  memset(mem, 0, sizeof *mem);
  if (allocator && allocator->alloc_fn) {
    mem->allocator = *allocator;
  } else {
    mem->allocator.alloc_fn = e2b__mem_default_alloc;
    mem->allocator.realloc_fn = e2b__mem_default_realloc;
    mem->allocator.free_fn = e2b__mem_default_free;
  }
}

static void e2b__mem_count(e2b__mem *mem, size_t grown) {
  mem->now += grown;
  mem->allocs++;
  if (mem->now > mem->peak) mem->peak = mem->now;
}

/* Returns zeroed memory, or NULL. */
static void *e2b__mem_alloc(e2b__mem *mem, size_t size) {
  void *ptr = mem->allocator.alloc_fn(mem->allocator.user, size);
  if (!ptr) return NULL;
  memset(ptr, 0, size);
  e2b__mem_count(mem, size);
  return ptr;
}

/* Zeroes memory in a way the optimiser may not remove; for keys and tokens. */
static void e2b__mem_wipe(void *ptr, size_t size) {
#if defined(__GNUC__) || defined(__clang__)
  memset(ptr, 0, size);
  __asm__ __volatile__("" : : "r"(ptr) : "memory");
#else
  volatile uint8_t *byte = (volatile uint8_t *)ptr;
  while (size--) *byte++ = 0;
#endif
}

/* Everything is wiped: keys and tokens pass through requests, answers, buffers and results alike. */
static void e2b__mem_free(e2b__mem *mem, void *ptr, size_t size) {
  if (!ptr) return;
  mem->now -= size;
  e2b__mem_wipe(ptr, size);
  mem->allocator.free_fn(mem->allocator.user, ptr, size);
}

static void *e2b__heap_realloc(void *user, void *ptr, size_t old_size, size_t new_size);

#define E2B__MEM_BULK 1048576u /* what grows beyond it is output or content, and costly to copy */

/* Bytes beyond old_size are not zeroed. On failure NULL, and `ptr` stays as it was. An allocator that moves a block leaves a copy
 * behind; so it is moved here, and wiped. That of e2b_fixed_heap does so itself. */
static void *e2b__mem_realloc(e2b__mem *mem, void *ptr, size_t old_size, size_t new_size) {
  bool own = ptr && old_size <= E2B__MEM_BULK && mem->allocator.realloc_fn != e2b__heap_realloc;
  void *moved = ptr && !own ? mem->allocator.realloc_fn(mem->allocator.user, ptr, old_size, new_size)
                            : mem->allocator.alloc_fn(mem->allocator.user, new_size);
  if (!moved) return NULL;
  if (!own) mem->now -= old_size;
  e2b__mem_count(mem, new_size);
  if (!own) return moved;
  memcpy(moved, ptr, E2B__MIN(old_size, new_size));
  e2b__mem_free(mem, ptr, old_size);
  return moved;
}

/* Copies `len` bytes and adds a NUL. Free with e2b__mem_free_str. */
static char *e2b__mem_dup(e2b__mem *mem, const char *text, size_t len) {
  char *copy = (char *)e2b__mem_alloc(mem, len + 1);
  if (copy && len) memcpy(copy, text, len);
  return copy;
}

/* For strings from e2b__mem_dup (their length is their strlen). NULL is fine. */
static void e2b__mem_free_str(e2b__mem *mem, char *text) {
  if (text) e2b__mem_free(mem, text, strlen(text) + 1);
}

/* Scratch memory for decoding: taken in blocks, freed all at once. `limit` bounds what a peer can make us take. */
typedef struct e2b__arena_block {
  struct e2b__arena_block *next;
  size_t size, used; /* of the bytes behind this head */
} e2b__arena_block;

typedef struct e2b__arena {
  e2b__mem *mem;
  e2b__arena_block *blocks;
  size_t total, limit;
  e2b_err err; /* first failure: E2B_ERR_NO_MEMORY or E2B_ERR_LIMIT */
} e2b__arena;

static void e2b__arena_init(e2b__arena *arena, e2b__mem *mem, size_t limit) {
  memset(arena, 0, sizeof *arena);
  arena->mem = mem;
  arena->limit = limit;
}

/* Returns zeroed memory aligned for any member used here, or NULL with arena->err set. */
static void *e2b__arena_alloc(e2b__arena *arena, size_t size) {
  e2b__arena_block *block = arena->blocks;
  size_t want, need = (size + 15u) & ~(size_t)15u;
  void *ptr;
  if (need < size || need > arena->limit) {
    arena->err = E2B_ERR_LIMIT;
    return NULL;
  }
  if (!block || block->size - block->used < need) {
    want = E2B__MAX(need, (size_t)1024);
    if (arena->total + want > arena->limit) {
      arena->err = E2B_ERR_LIMIT;
      return NULL;
    }
    block = (e2b__arena_block *)e2b__mem_alloc(arena->mem, ((sizeof *block + 15u) & ~(size_t)15u) + want);
    if (!block) {
      arena->err = E2B_ERR_NO_MEMORY;
      return NULL;
    }
    block->size = want;
    block->next = arena->blocks;
    arena->blocks = block;
    arena->total += want;
  }
  ptr = (uint8_t *)block + ((sizeof *block + 15u) & ~(size_t)15u) + block->used;
  block->used += need;
  return ptr;
}

static void e2b__arena_free(e2b__arena *arena) {
  while (arena->blocks) {
    e2b__arena_block *next = arena->blocks->next;
    size_t size = ((sizeof *next + 15u) & ~(size_t)15u) + arena->blocks->size;
    e2b__mem_free(arena->mem, arena->blocks, size);
    arena->blocks = next;
  }
  arena->total = 0;
}

/* Builds a result in one block, in two passes of the same fill function: the first, with base == NULL, only adds up the
 * size; the second copies. Every e2b__pack_* returns the address inside the block, NULL in the first pass. */
typedef struct e2b__pack {
  uint8_t *base;
  size_t used;
} e2b__pack;

static void *e2b__pack_alloc(e2b__pack *pack, size_t size) {
  void *ptr;
  pack->used = (pack->used + 7u) & ~(size_t)7u;
  ptr = pack->base ? pack->base + pack->used : NULL;
  pack->used += size;
  return ptr;
}

/* Copies bytes and adds a NUL. */
static const char *e2b__pack_bytes(e2b__pack *pack, const char *data, size_t len) {
  char *copy = pack->base ? (char *)pack->base + pack->used : NULL;
  pack->used += len + 1;
  if (!copy) return NULL;
  if (len) memcpy(copy, data, len);
  copy[len] = 0;
  return copy;
}

static const char *e2b__pack_str(e2b__pack *pack, e2b_str text) {
  return e2b__pack_bytes(pack, text.ptr, text.len);
}

/* e2b_fixed_heap. Blocks know no size of their own: who frees one says it. What is free is a list in the order of
 * addresses; its heads lie in the free memory. */
typedef struct e2b__hole {
  struct e2b__hole *next;
  size_t size; /* a multiple of E2B_HEAP_ALIGN */
} e2b__hole;

static size_t e2b__heap_round(size_t size) {
  size_t rounded = (size + (E2B_HEAP_ALIGN - 1u)) & ~(size_t)(E2B_HEAP_ALIGN - 1u);
  return rounded < size ? SIZE_MAX & ~(size_t)(E2B_HEAP_ALIGN - 1u) : E2B__MAX(rounded, (size_t)E2B_HEAP_ALIGN);
}

static void e2b__heap_count(e2b_fixed_heap *heap, size_t taken) {
  heap->used += taken;
  if (heap->used > heap->peak) heap->peak = heap->used;
}

/* Takes `size` bytes, rounded already, from the front of the hole behind *link. */
static void *e2b__heap_cut(e2b_fixed_heap *heap, e2b__hole **link, size_t size) {
  e2b__hole *hole = *link, *rest;
  if (hole->size == size) {
    *link = hole->next;
  } else {
    rest = (e2b__hole *)(void *)((uint8_t *)hole + size);
    rest->size = hole->size - size;
    rest->next = hole->next;
    *link = rest;
  }
  e2b__heap_count(heap, size);
  return hole;
}

static void *e2b__heap_alloc(void *user, size_t size) {
  e2b_fixed_heap *heap = (e2b_fixed_heap *)user;
  e2b__hole *first = (e2b__hole *)heap->free_list, **link = &first;
  void *ptr = NULL;
  size = e2b__heap_round(size);
  while (*link && (*link)->size < size) link = &(*link)->next;
  if (*link) ptr = e2b__heap_cut(heap, link, size);
  heap->free_list = first;
  return ptr;
}

static void e2b__heap_free(void *user, void *ptr, size_t size) {
  e2b_fixed_heap *heap = (e2b_fixed_heap *)user;
  e2b__hole *made = (e2b__hole *)ptr, *before = NULL, *after = (e2b__hole *)heap->free_list;
  size = e2b__heap_round(size);
  heap->used -= size;
  for (; after && after < made; after = after->next) before = after;
  made->size = size;
  made->next = after;
  if (after && (uint8_t *)made + size == (uint8_t *)after) {
    made->size += after->size;
    made->next = after->next;
  }
  if (!before) {
    heap->free_list = made;
  } else if ((uint8_t *)before + before->size == (uint8_t *)made) {
    before->size += made->size;
    before->next = made->next;
  } else {
    before->next = made;
  }
}

/* Grows into the hole behind the block when there is one: most of what grows here is the block allocated last. */
static void *e2b__heap_realloc(void *user, void *ptr, size_t old_size, size_t new_size) {
  e2b_fixed_heap *heap = (e2b_fixed_heap *)user;
  e2b__hole *first = (e2b__hole *)heap->free_list, **link = &first;
  size_t had = e2b__heap_round(old_size), want = e2b__heap_round(new_size);
  uint8_t *end = (uint8_t *)ptr + had;
  void *moved;
  if (want <= had) {
    if (want < had) e2b__mem_wipe((uint8_t *)ptr + want, had - want);
    if (want < had) e2b__heap_free(heap, (uint8_t *)ptr + want, had - want);
    return ptr;
  }
  while (*link && (uint8_t *)*link < end) link = &(*link)->next;
  if (*link && (uint8_t *)*link == end && (*link)->size >= want - had) {
    (void)e2b__heap_cut(heap, link, want - had);
    heap->free_list = first;
    return ptr;
  }
  moved = e2b__heap_alloc(heap, new_size);
  if (!moved) return NULL;
  memcpy(moved, ptr, old_size);
  e2b__mem_wipe(ptr, old_size);
  e2b__heap_free(heap, ptr, old_size);
  return moved;
}

E2B_API e2b_allocator e2b_fixed_heap_init(e2b_fixed_heap *heap, void *mem, size_t size) {
  size_t off = (size_t)(0u - (uintptr_t)mem) & (E2B_HEAP_ALIGN - 1u);
  e2b__hole *all;
  e2b_allocator allocator;
  memset(heap, 0, sizeof *heap);
  heap->base = (uint8_t *)mem + off;
  heap->size = size > off ? (size - off) & ~(size_t)(E2B_HEAP_ALIGN - 1u) : 0;
  if (heap->size >= sizeof *all) {
    all = (e2b__hole *)heap->base;
    all->next = NULL;
    all->size = heap->size;
    heap->free_list = all;
  }
  allocator.alloc_fn = e2b__heap_alloc;
  allocator.realloc_fn = e2b__heap_realloc;
  allocator.free_fn = e2b__heap_free;
  allocator.user = heap;
  return allocator;
}

/* ================================================================================================================== */
/* >>>> bytes */
/* ================================================================================================================== */

/* A growing byte buffer with an upper bound. The first failure sticks in `err`; later writes do nothing, so a builder
 * checks once, at its end. `data` is not NUL-terminated. */
typedef struct e2b__buf {
  e2b__mem *mem;
  uint8_t *data;
  size_t len, cap;
  size_t max; /* growing past it is E2B_ERR_LIMIT */
  e2b_err err;
} e2b__buf;

static void e2b__buf_init(e2b__buf *buf, e2b__mem *mem, size_t max) {
  memset(buf, 0, sizeof *buf);
  buf->mem = mem;
  buf->max = max;
}

/* The buffer can be used again. */
static void e2b__buf_free(e2b__buf *buf) {
  e2b__mem_free(buf->mem, buf->data, buf->cap);
  buf->data = NULL;
  buf->len = buf->cap = 0;
  buf->err = E2B_OK;
}

/* Makes room for `extra` more bytes and returns where they go, or NULL with err set. The caller then adds to len. */
static uint8_t *e2b__buf_reserve(e2b__buf *buf, size_t extra) {
  size_t cap;
  uint8_t *grown;
  if (buf->err) return NULL;
  if (extra > buf->max || buf->len > buf->max - extra) {
    buf->err = E2B_ERR_LIMIT;
    return NULL;
  }
  if (buf->len + extra <= buf->cap) return buf->data + buf->len;
  cap = E2B__MAX(buf->cap + buf->cap / 2, buf->len + extra);
  cap = E2B__MIN(E2B__MAX(cap, (size_t)64), buf->max);
  grown = (uint8_t *)e2b__mem_realloc(buf->mem, buf->data, buf->cap, cap);
  if (!grown) {
    buf->err = E2B_ERR_NO_MEMORY;
    return NULL;
  }
  buf->data = grown;
  buf->cap = cap;
  return buf->data + buf->len;
}

static void e2b__buf_put(e2b__buf *buf, const void *data, size_t len) {
  uint8_t *to;
  if (!len) return;
  to = e2b__buf_reserve(buf, len);
  if (!to) return;
  memcpy(to, data, len);
  buf->len += len;
}

static void e2b__buf_byte(e2b__buf *buf, uint8_t byte) {
  uint8_t *to = e2b__buf_reserve(buf, 1);
  if (!to) return;
  *to = byte;
  buf->len++;
}

static void e2b__buf_text(e2b__buf *buf, const char *text) {
  if (text) e2b__buf_put(buf, text, strlen(text));
}

static void e2b__buf_str(e2b__buf *buf, e2b_str text) {
  e2b__buf_put(buf, text.ptr, text.len);
}

static void e2b__buf_u64(e2b__buf *buf, uint64_t value) {
  char digits[20];
  size_t at = sizeof digits;
  do {
    digits[--at] = (char)('0' + (char)(value % 10u));
    value /= 10u;
  } while (value);
  e2b__buf_put(buf, digits + at, sizeof digits - at);
}

static void e2b__buf_i64(e2b__buf *buf, int64_t value) {
  if (value < 0) e2b__buf_byte(buf, '-');
  e2b__buf_u64(buf, value < 0 ? (uint64_t)0 - (uint64_t)value : (uint64_t)value);
}

/* Removes `len` bytes at the front. */
static void e2b__buf_drop(e2b__buf *buf, size_t len) {
  if (len >= buf->len) {
    buf->len = 0;
    return;
  }
  memmove(buf->data, buf->data + len, buf->len - len);
  buf->len -= len;
}

/* Adds a NUL that does not count as length, so that the content can be read as a C string. Returns it, or NULL. */
static const char *e2b__buf_cstr(e2b__buf *buf) {
  uint8_t *end = e2b__buf_reserve(buf, 1);
  if (!end) return NULL;
  *end = 0;
  return (const char *)buf->data;
}

static e2b_str e2b__str_n(const char *ptr, size_t len) {
  e2b_str text;
  text.ptr = ptr;
  text.len = len;
  return text;
}

static e2b_str e2b__str(const char *text) {
  return e2b__str_n(text, text ? strlen(text) : 0);
}

static bool e2b__str_eq(e2b_str a, const char *b) {
  size_t len = strlen(b);
  return a.len == len && (len == 0 || memcmp(a.ptr, b, len) == 0);
}

static char e2b__ascii_lower(char c) {
  return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool e2b__str_eq_nocase(e2b_str a, const char *b) {
  size_t i, len = strlen(b);
  if (a.len != len) return false;
  for (i = 0; i < len; i++)
    if (e2b__ascii_lower(a.ptr[i]) != e2b__ascii_lower(b[i])) return false;
  return true;
}

/* NULL and "" both mean "not given" in every option of this library. */
static bool e2b__given(const char *text) {
  return text && text[0];
}
/* ================================================================================================================== */
/* >>>> errors */
/* ================================================================================================================== */

/* Fills *err from scratch (NULL is fine). Messages say what happened and what to do next, and never hold a secret. */
E2B__PRINTF(4, 5)
static void e2b__error_set(e2b_error *err, e2b_err code, e2b_phase phase, const char *format, ...) {
  va_list args;
  if (!err) return;
  memset(err, 0, sizeof *err);
  err->code = code;
  err->phase = phase;
  va_start(args, format);
  (void)vsnprintf(err->message, sizeof err->message, format, args);
  va_end(args);
}

/* Adds to the message unless it is there already, or does not fit. */
static void e2b__error_add(e2b_error *err, const char *more) {
  size_t len = strlen(err->message);
  if (strlen(more) < sizeof err->message - len && !strstr(err->message, more)) memcpy(err->message + len, more, strlen(more) + 1);
}

/* Says what to do next, as far as that depends on whether the server may have acted. For results that are final. */
static void e2b__error_advise(e2b_error *err) {
  if (err->code >= 0) return;
  if (err->maybe_done) {
    e2b__error_add(err, "; it may have been done: look before you repeat it");
    return;
  }
  switch (err->code) {
    case E2B_ERR_CLOSED: case E2B_ERR_TRUNCATED: case E2B_ERR_UNAVAILABLE: case E2B_ERR_TIMEOUT: case E2B_ERR_IDLE_TIMEOUT:
      e2b__error_add(err, "; it may be repeated");
      break;
    default: break;
  }
}

/* Printable ASCII of what a peer sent, for messages; at most cap - 1 characters, white space folded. */
static void e2b__error_excerpt(char *out, size_t cap, const uint8_t *data, size_t len) {
  size_t i, n = 0;
  for (i = 0; i < len && n + 1 < cap; i++) {
    char c = data[i] >= 0x20 && data[i] < 0x7f ? (char)data[i] : ' ';
    if (c == ' ' && (n == 0 || out[n - 1] == ' ')) continue;
    out[n++] = c;
  }
  out[n] = 0;
}

static void e2b__log(const e2b_logger *logger, e2b_log_level level, const char *format, ...) E2B__PRINTF(3, 4);
static void e2b__log(const e2b_logger *logger, e2b_log_level level, const char *format, ...) {
  char message[512];
  va_list args;
  if (!logger->func || level > (logger->level ? logger->level : E2B_LOG_WARN)) return;
  va_start(args, format);
  (void)vsnprintf(message, sizeof message, format, args);
  va_end(args);
  logger->func(logger->user, level, message);
}
/* ================================================================================================================== */
/* >>>> json */
/* ================================================================================================================== */

/* Writer: compact, places the commas. Text is taken as UTF-8 and not checked. Failures stick in out->err. */
typedef struct e2b__json_writer {
  e2b__buf *out;
  bool comma; /* the next key or value needs one */
} e2b__json_writer;

static void e2b__json_comma(e2b__json_writer *w) {
  if (w->comma) e2b__buf_byte(w->out, ',');
  w->comma = true;
}

static void e2b__json_begin(e2b__json_writer *w, char open) {
  e2b__json_comma(w);
  e2b__buf_byte(w->out, (uint8_t)open);
  w->comma = false;
}

static void e2b__json_end(e2b__json_writer *w, char close) {
  e2b__buf_byte(w->out, (uint8_t)close);
  w->comma = true;
}

static void e2b__json_str(e2b__json_writer *w, e2b_str text) {
  static const char hex[] = "0123456789abcdef";
  size_t i, plain = 0; /* start of the run that needs no escape */
  e2b__json_comma(w);
  e2b__buf_byte(w->out, '"');
  for (i = 0; i < text.len; i++) {
    uint8_t c = (uint8_t)text.ptr[i];
    if (c >= 0x20 && c != '"' && c != '\\') continue;
    e2b__buf_put(w->out, text.ptr + plain, i - plain);
    plain = i + 1;
    if (c >= 0x20) {
      e2b__buf_byte(w->out, '\\');
      e2b__buf_byte(w->out, c);
    } else {
      e2b__buf_put(w->out, "\\u00", 4);
      e2b__buf_byte(w->out, (uint8_t)hex[c >> 4]);
      e2b__buf_byte(w->out, (uint8_t)hex[c & 15]);
    }
  }
  if (plain < text.len) e2b__buf_put(w->out, text.ptr + plain, text.len - plain);
  e2b__buf_byte(w->out, '"');
}

static void e2b__json_key_str(e2b__json_writer *w, e2b_str key) {
  e2b__json_str(w, key);
  e2b__buf_byte(w->out, ':');
  w->comma = false;
}

static void e2b__json_key(e2b__json_writer *w, const char *key) {
  e2b__json_key_str(w, e2b__str(key));
}

static void e2b__json_i64(e2b__json_writer *w, int64_t value) {
  e2b__json_comma(w);
  e2b__buf_i64(w->out, value);
}

/* Splices in one value that is JSON already. */
static void e2b__json_raw(e2b__json_writer *w, e2b_str json) {
  e2b__json_comma(w);
  e2b__buf_str(w->out, json);
}

static void e2b__json_bool(e2b__json_writer *w, bool value) {
  e2b__json_raw(w, e2b__str(value ? "true" : "false"));
}

/* "key":{...}, or nothing at all when there are no pairs. */
static void e2b__json_kvs(e2b__json_writer *w, const char *key, e2b_kvs pairs) {
  size_t i;
  if (pairs.count == 0) return;
  e2b__json_key(w, key);
  e2b__json_begin(w, '{');
  for (i = 0; i < pairs.count; i++) {
    e2b__json_key(w, pairs.items[i].key);
    e2b__json_str(w, e2b__str(pairs.items[i].value));
  }
  e2b__json_end(w, '}');
}

/* "key":[...], or nothing at all when there are no texts. */
static void e2b__json_strs(e2b__json_writer *w, const char *key, e2b_strs texts) {
  size_t i;
  if (texts.count == 0) return;
  e2b__json_key(w, key);
  e2b__json_begin(w, '[');
  for (i = 0; i < texts.count; i++) e2b__json_str(w, e2b__str(texts.items[i]));
  e2b__json_end(w, ']');
}

/* Reader: a strict pull tokenizer (RFC 8259) over one document. Strings are unescaped where they lie, so it allocates
 * nothing; tokens point into the document. Lone surrogates become U+FFFD, invalid UTF-8 passes through. */
#define E2B__JSON_DEPTH 64 /* bits of e2b__json_reader.objects */

typedef enum e2b__json_type {
  E2B__JSON_ERROR = -1, /* sticks */
  E2B__JSON_END = 0,
  E2B__JSON_NULL,
  E2B__JSON_BOOL,
  E2B__JSON_NUMBER,
  E2B__JSON_STRING,
  E2B__JSON_KEY,
  E2B__JSON_OBJECT,
  E2B__JSON_OBJECT_END,
  E2B__JSON_ARRAY,
  E2B__JSON_ARRAY_END
} e2b__json_type;

typedef enum e2b__json_state {
  E2B__JSON_AT_VALUE, /* a value must follow */
  E2B__JSON_AT_FIRST, /* after '{' or '[': an element or the end */
  E2B__JSON_AT_NEXT,  /* after a value: ',' or the end */
  E2B__JSON_AT_ERROR
} e2b__json_state;

typedef struct e2b__json_reader {
  char *at, *end;
  uint64_t objects; /* the containers around `at`, one bit each, innermost lowest; set for objects */
  uint8_t depth;
  e2b__json_state state;
  bool verbatim; /* leave the document as it is: strings keep their escapes */
} e2b__json_reader;

typedef struct e2b__json_token {
  e2b__json_type type;
  e2b_str text; /* STRING and KEY: the content; NUMBER: its digits */
  bool boolean;
  char *start; /* first byte of the value in the document */
} e2b__json_token;

static void e2b__json_open(e2b__json_reader *r, char *text, size_t len) {
  memset(r, 0, sizeof *r);
  r->at = text;
  r->end = len ? text + len : text;
}

static char e2b__json_peek(const e2b__json_reader *r) {
  return r->at < r->end ? *r->at : 0;
}

static char e2b__json_skip_space(e2b__json_reader *r) {
  while (r->at < r->end && (*r->at == ' ' || *r->at == '\n' || *r->at == '\r' || *r->at == '\t')) r->at++;
  return e2b__json_peek(r);
}

/* Four hex digits, or -1. */
static int32_t e2b__json_hex4(const char *at, const char *end) {
  int32_t value = 0;
  int i;
  if (end - at < 4) return -1;
  for (i = 0; i < 4; i++) {
    char c = e2b__ascii_lower(at[i]);
    if (c >= '0' && c <= '9') value = value * 16 + (c - '0');
    else if (c >= 'a' && c <= 'f') value = value * 16 + (c - 'a' + 10);
    else return -1;
  }
  return value;
}

static size_t e2b__utf8_put(uint32_t c, char out[4]) {
  size_t i, n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  static const uint8_t lead[] = { 0, 0, 0xc0, 0xe0, 0xf0 };
  for (i = n - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
  out[0] = (char)(lead[n] | c);
  return n;
}

/* One escape, with `at` behind its backslash. Returns the length of its UTF-8, which is never longer; 0 = malformed. */
static size_t e2b__json_escape(e2b__json_reader *r, char out[4]) {
  static const char names[] = "\"\\/bfnrt", bytes[] = "\"\\/\b\f\n\r\t";
  char c = e2b__json_peek(r);
  const char *name = c ? strchr(names, c) : NULL;
  int32_t code, low;
  if (c) r->at++;
  if (name) {
    out[0] = bytes[name - names];
    return 1;
  }
  code = c == 'u' ? e2b__json_hex4(r->at, r->end) : -1;
  if (code < 0) return 0;
  r->at += 4;
  if (code < 0xd800 || code > 0xdfff) return e2b__utf8_put((uint32_t)code, out);
  if (code < 0xdc00 && r->end - r->at >= 6 && r->at[0] == '\\' && r->at[1] == 'u') {
    low = e2b__json_hex4(r->at + 2, r->end);
    if (low >= 0xdc00 && low <= 0xdfff) {
      r->at += 6;
      return e2b__utf8_put((uint32_t)(0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00)), out);
    }
  }
  return e2b__utf8_put(0xfffd, out);
}

/* A string, with `at` on its opening quote. */
static bool e2b__json_read_string(e2b__json_reader *r, e2b_str *out) {
  char *start = ++r->at, *to;
  char utf8[4];
  size_t i, n;
  while (r->at < r->end && *r->at != '"' && *r->at != '\\' && (uint8_t)*r->at >= 0x20) r->at++;
  to = r->at; /* up to the first escape, which mostly is the end, nothing moves */
  while (r->at < r->end && *r->at != '"') {
    utf8[0] = *r->at++;
    if ((uint8_t)utf8[0] < 0x20) return false;
    n = utf8[0] == '\\' ? e2b__json_escape(r, utf8) : 1;
    if (n == 0) return false;
    for (i = 0; i < n && !r->verbatim; i++) *to++ = utf8[i];
  }
  if (r->verbatim) to = r->at;
  if (r->at >= r->end) return false;
  *out = e2b__str_n(start, (size_t)(to - start));
  r->at++;
  return true;
}

static bool e2b__json_digits(e2b__json_reader *r) {
  char *start = r->at;
  while (r->at < r->end && *r->at >= '0' && *r->at <= '9') r->at++;
  return r->at > start;
}

static bool e2b__json_read_number(e2b__json_reader *r, e2b_str *out) {
  char *start = r->at, *first;
  if (e2b__json_peek(r) == '-') r->at++;
  first = r->at;
  if (!e2b__json_digits(r) || (*first == '0' && r->at > first + 1)) return false;
  if (e2b__json_peek(r) == '.') {
    r->at++;
    if (!e2b__json_digits(r)) return false;
  }
  if (e2b__json_peek(r) == 'e' || e2b__json_peek(r) == 'E') {
    r->at++;
    if (e2b__json_peek(r) == '+' || e2b__json_peek(r) == '-') r->at++;
    if (!e2b__json_digits(r)) return false;
  }
  *out = e2b__str_n(start, (size_t)(r->at - start));
  return true;
}

static bool e2b__json_read_word(e2b__json_reader *r, const char *word) {
  size_t len = strlen(word);
  if ((size_t)(r->end - r->at) < len || memcmp(r->at, word, len) != 0) return false;
  r->at += len;
  return true;
}

static e2b__json_type e2b__json_read_value(e2b__json_reader *r, e2b__json_token *t) {
  bool object;
  r->state = E2B__JSON_AT_NEXT;
  switch (e2b__json_peek(r)) {
  case '{':
  case '[':
    if (r->depth == E2B__JSON_DEPTH) return E2B__JSON_ERROR;
    object = *r->at++ == '{';
    r->objects = r->objects << 1 | (object ? 1u : 0u);
    r->depth++;
    r->state = E2B__JSON_AT_FIRST;
    return object ? E2B__JSON_OBJECT : E2B__JSON_ARRAY;
  case '"':
    return e2b__json_read_string(r, &t->text) ? E2B__JSON_STRING : E2B__JSON_ERROR;
  case 't':
  case 'f':
    t->boolean = *r->at == 't';
    return e2b__json_read_word(r, t->boolean ? "true" : "false") ? E2B__JSON_BOOL : E2B__JSON_ERROR;
  case 'n':
    return e2b__json_read_word(r, "null") ? E2B__JSON_NULL : E2B__JSON_ERROR;
  default:
    return e2b__json_read_number(r, &t->text) ? E2B__JSON_NUMBER : E2B__JSON_ERROR;
  }
}

static e2b__json_type e2b__json_read_key(e2b__json_reader *r, e2b__json_token *t) {
  if (e2b__json_peek(r) != '"' || !e2b__json_read_string(r, &t->text)) return E2B__JSON_ERROR;
  if (e2b__json_skip_space(r) != ':') return E2B__JSON_ERROR;
  r->at++;
  r->state = E2B__JSON_AT_VALUE;
  return E2B__JSON_KEY;
}

static e2b__json_type e2b__json_read_token(e2b__json_reader *r, e2b__json_token *t) {
  bool object = (r->objects & 1u) != 0;
  char c = e2b__json_skip_space(r);
  if (r->state == E2B__JSON_AT_NEXT && r->depth == 0) return r->at == r->end ? E2B__JSON_END : E2B__JSON_ERROR;
  if ((r->state == E2B__JSON_AT_NEXT || r->state == E2B__JSON_AT_FIRST) && c == (object ? '}' : ']')) {
    r->at++;
    r->objects >>= 1;
    r->depth--;
    r->state = E2B__JSON_AT_NEXT;
    return object ? E2B__JSON_OBJECT_END : E2B__JSON_ARRAY_END;
  }
  if (r->state == E2B__JSON_AT_NEXT) {
    if (c != ',') return E2B__JSON_ERROR;
    r->at++;
    e2b__json_skip_space(r);
  }
  t->start = r->at;
  if (object && r->state != E2B__JSON_AT_VALUE) return e2b__json_read_key(r, t);
  return e2b__json_read_value(r, t);
}

static e2b__json_type e2b__json_next(e2b__json_reader *r, e2b__json_token *t) {
  memset(t, 0, sizeof *t);
  t->type = r->state == E2B__JSON_AT_ERROR ? E2B__JSON_ERROR : e2b__json_read_token(r, t);
  if (t->type == E2B__JSON_ERROR) r->state = E2B__JSON_AT_ERROR;
  return t->type;
}

/* Goes to the end of the value whose first token was read, leaving its text as it is. False when it is malformed. */
static bool e2b__json_skip(e2b__json_reader *r, const e2b__json_token *first) {
  e2b__json_token t;
  uint8_t depth = r->depth;
  bool verbatim = r->verbatim;
  e2b__json_type type = first->type;
  if (type != E2B__JSON_OBJECT && type != E2B__JSON_ARRAY) return type > E2B__JSON_END;
  r->verbatim = true;
  while (type > E2B__JSON_END && r->depth >= depth) type = e2b__json_next(r, &t);
  r->verbatim = verbatim;
  return type > E2B__JSON_END;
}

/* True for one whole document that begins with `first`: '{' or '['. */
static bool e2b__json_valid(const char *text, size_t len, char first) {
  e2b__json_reader r;
  e2b__json_token t;
  e2b__json_open(&r, (char *)text, len); /* not written to: verbatim */
  r.verbatim = true;
  return e2b__json_skip_space(&r) == first && e2b__json_next(&r, &t) > E2B__JSON_END && e2b__json_skip(&r, &t) &&
         e2b__json_next(&r, &t) == E2B__JSON_END;
}

/* Whole numbers written as such, exactly: neither fractions nor exponents. */
static bool e2b__json_to_i64(e2b_str text, int64_t *out) {
  bool negative = text.len > 0 && text.ptr[0] == '-';
  uint64_t limit = (uint64_t)INT64_MAX + (negative ? 1u : 0u), value = 0;
  size_t i = negative ? 1 : 0;
  if (i == text.len) return false;
  for (; i < text.len; i++) {
    unsigned digit = (unsigned)(uint8_t)text.ptr[i] - '0';
    if (digit > 9 || value > (limit - digit) / 10) return false;
    value = value * 10 + digit;
  }
  *out = negative && value ? -(int64_t)(value - 1) - 1 : (int64_t)value;
  return true;
}
/* ================================================================================================================== */
/* >>>> protobuf */
/* ================================================================================================================== */

/* One table per message describes a struct; the binary codec, ProtoJSON and the plain JSON of REST answers all walk it.
 * No message contains itself, so the tables bound the depth of every recursion here. */
typedef enum e2b__kind {
  E2B__KIND_BOOL,   /* bool */
  E2B__KIND_U32,    /* uint32_t */
  E2B__KIND_I32,    /* int32_t */
  E2B__KIND_I64,    /* int64_t; a string in ProtoJSON, a number in REST, both are accepted */
  E2B__KIND_SINT32, /* int32_t, zigzag */
  E2B__KIND_ENUM,   /* int32_t; a name in JSON, an unknown one reads as -1 */
  E2B__KIND_STR,    /* e2b_str */
  E2B__KIND_BYTES,  /* e2b_str; base64 in JSON */
  E2B__KIND_TEXT,   /* e2b_str; JSON only: a string, number or bool as its text; anything else counts as absent */
  E2B__KIND_RAW,    /* e2b_str; JSON only: the JSON text of the value */
  E2B__KIND_MSG,    /* the struct of field.sub, embedded; always with PRESENCE or REPEATED */
  E2B__KIND_MAP     /* map<string,string>: a list of e2b__pair; a duplicate key makes a second entry */
} e2b__kind;

#define E2B__REPEATED 1u /* the member is an e2b__list of elements: e2b_str or the struct of field.sub */
#define E2B__PRESENCE 2u /* a bool at has_offset says whether it is there; written even when zero */
#define E2B__ALWAYS 4u   /* written even when zero, without such a bool: map entries */

typedef struct e2b__message e2b__message;

typedef struct e2b__field {
  const char *name; /* in JSON */
  uint8_t number;   /* in protobuf; 0 = only in JSON */
  uint8_t kind, flags;
  uint8_t oneof; /* members of one oneof share a number != 0 */
  uint16_t offset, has_offset;
  const e2b__message *sub;  /* MSG, MAP */
  const char *const *names; /* ENUM: by value, "" for holes, NULL at the end */
} e2b__field;

struct e2b__message {
  const e2b__field *fields; /* ascending numbers */
  uint16_t count, size;
};

/* Items are in the arena of the decoder, or the caller's. */
typedef struct e2b__list {
  void *items;
  size_t count, cap;
} e2b__list;

typedef struct e2b__pair {
  e2b_str key, value;
} e2b__pair;

static const e2b__field e2b__fields_pair[] = {
  { "key", 1, E2B__KIND_STR, E2B__ALWAYS, 0, offsetof(e2b__pair, key), 0, NULL, NULL },
  { "value", 2, E2B__KIND_STR, E2B__ALWAYS, 0, offsetof(e2b__pair, value), 0, NULL, NULL },
};
static const e2b__message e2b__msg_pair = { e2b__fields_pair, 2, sizeof(e2b__pair) };

/* google.protobuf.Timestamp; RFC 3339 text in JSON. */
typedef struct e2b__timestamp {
  int64_t seconds;
  int32_t nanos;
} e2b__timestamp;

static const e2b__field e2b__fields_timestamp[] = {
  { "seconds", 1, E2B__KIND_I64, 0, 0, offsetof(e2b__timestamp, seconds), 0, NULL, NULL },
  { "nanos", 2, E2B__KIND_I32, 0, 0, offsetof(e2b__timestamp, nanos), 0, NULL, NULL },
};
static const e2b__message e2b__msg_timestamp = { e2b__fields_timestamp, 2, sizeof(e2b__timestamp) };

/* ---- scalars that are text in JSON ---- */

/* Days since 1970-01-01. Years are counted from March, so that the leap day is the last one. */
static int64_t e2b__time_days(int64_t year, int month, int day) {
  int64_t y = month > 2 ? year : year - 1, of_year = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;
  return y * 365 + y / 4 - y / 100 + y / 400 + of_year - 719468;
}

/* `before` (0 = none; lower case matches both) and so many digits. -1 = something else is there. */
static int e2b__time_number(const char **at, const char *end, char before, int digits) {
  int value = 0;
  if (before && (*at == end || e2b__ascii_lower(*(*at)++) != before)) return -1;
  if (end - *at < digits) return -1;
  for (; digits > 0; digits--, (*at)++) {
    if (**at < '0' || **at > '9') return -1;
    value = value * 10 + (**at - '0');
  }
  return value;
}

/* The fraction of a second, if there is one; digits behind the ninth are dropped. -1 = malformed. */
static int32_t e2b__time_fraction(const char **at, const char *end) {
  int32_t nanos = 0, unit = 100000000;
  if (*at == end || **at != '.') return 0;
  (*at)++;
  if (*at == end || **at < '0' || **at > '9') return -1;
  for (; *at < end && **at >= '0' && **at <= '9'; (*at)++, unit /= 10) nanos += unit * (**at - '0');
  return nanos;
}

/* "Z" or "+hh:mm" up to the end, in seconds; -1 (not a whole minute) = malformed. */
static int e2b__time_offset(const char *at, const char *end) {
  bool west = at < end && *at == '-';
  int hours, minutes;
  if (end - at == 1 && e2b__ascii_lower(*at) == 'z') return 0;
  hours = e2b__time_number(&at, end, west ? '-' : '+', 2);
  minutes = e2b__time_number(&at, end, ':', 2);
  if (hours < 0 || hours > 23 || minutes < 0 || minutes > 59 || at != end) return -1;
  return (hours * 60 + minutes) * (west ? -60 : 60);
}

/* RFC 3339 with any offset and any number of fraction digits. False when malformed. */
static bool e2b__time_parse(e2b_str text, e2b__timestamp *out) {
  static const uint8_t month_days[] = { 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 };
  const char *at = text.len ? text.ptr : "", *end = at + text.len;
  int year = e2b__time_number(&at, end, 0, 4), month = e2b__time_number(&at, end, '-', 2);
  int day = e2b__time_number(&at, end, '-', 2), hour = e2b__time_number(&at, end, 't', 2);
  int minute = e2b__time_number(&at, end, ':', 2), second = e2b__time_number(&at, end, ':', 2);
  int32_t nanos = e2b__time_fraction(&at, end);
  int offset = e2b__time_offset(at, end);
  bool leap_day = month == 2 && day == 29 && year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
  if (year < 1 || month < 1 || month > 12 || day < 1 || (day > month_days[month - 1] && !leap_day)) return false;
  if (hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 60) return false;
  if (nanos < 0 || offset == -1) return false;
  out->seconds = e2b__time_days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - offset;
  out->nanos = nanos;
  return true;
}

/* UTC with 0, 3, 6 or 9 fraction digits. Times outside the years 1 to 9999 become the nearest inside. */
static void e2b__time_format(e2b__timestamp t, e2b__buf *out) {
  int64_t since_year_0 = E2B__MIN(E2B__MAX(t.seconds, -62135596800), 253402300799) + (int64_t)719468 * 86400;
  int day = (int)(since_year_0 / 86400), second = (int)(since_year_0 % 86400); /* counted from the first of March */
  int era = day / 146097, of_era = day % 146097;
  int year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
  int of_year = of_era - (365 * year + year / 4 - year / 100);
  int month = (5 * of_year + 2) / 153; /* 0 is March */
  int nanos = E2B__MIN(E2B__MAX(t.nanos, 0), 999999999);
  char text[64];
  year += era * 400 + (month >= 10 ? 1 : 0);
  day = of_year - (153 * month + 2) / 5 + 1;
  month += month < 10 ? 3 : -9;
  (void)snprintf(text, sizeof text, "%04d-%02d-%02dT%02d:%02d:%02d", year, month, day, second / 3600, second / 60 % 60,
                 second % 60);
  e2b__buf_text(out, text);
  (void)snprintf(text, sizeof text, ".%09d", nanos);
  e2b__buf_put(out, text, nanos == 0 ? 0 : nanos % 1000000 == 0 ? 4 : nanos % 1000 == 0 ? 7 : 10);
  e2b__buf_byte(out, 'Z');
}

static void e2b__base64_encode(e2b__buf *out, const uint8_t *data, size_t len, bool padding) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  char *to = len <= SIZE_MAX / 2 ? (char *)e2b__buf_reserve(out, len / 3 * 4 + 4) : NULL, *start = to;
  if (!to) {
    if (!out->err) out->err = E2B_ERR_LIMIT;
    return;
  }
  for (; len >= 3; data += 3, len -= 3, to += 4) {
    to[0] = digits[data[0] >> 2];
    to[1] = digits[(data[0] & 3) << 4 | data[1] >> 4];
    to[2] = digits[(data[1] & 15) << 2 | data[2] >> 6];
    to[3] = digits[data[2] & 63];
  }
  if (len > 0) {
    *to++ = digits[data[0] >> 2];
    *to++ = digits[(data[0] & 3) << 4 | (len > 1 ? data[1] >> 4 : 0)];
    if (len > 1) *to++ = digits[(data[1] & 15) << 2];
    for (; padding && len < 3; len++) *to++ = '=';
  }
  out->len += (size_t)(to - start);
}

/* The value of a digit of either alphabet; 64 and more = not a digit. */
static uint32_t e2b__base64_digit(char c) {
  static const uint8_t values['z' - '+' + 1] = {
    62, 99, 62, 99, 63, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 99, 99, 99, 99, 99, 99, 99, 0, 1, 2, 3, 4,
    5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 99, 99, 99, 99, 63, 99,
    26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51
  };
  unsigned at = (unsigned)(uint8_t)c - '+';
  return at < sizeof values ? values[at] : 99u;
}

/* Standard or url-safe alphabet, padded or not. False when malformed; then the text is garbage. */
static bool e2b__base64_decode_in_place(char *text, size_t len, size_t *out_len) {
  size_t i, padding = 0, used = 0;
  uint32_t bits = 0, bad = 0;
  while (padding < 2 && padding < len && text[len - 1 - padding] == '=') padding++;
  if ((padding > 0 && len % 4 != 0) || (len - padding) % 4 == 1) return false;
  len -= padding;
  for (i = 0; len - i >= 4; i += 4) {
    uint32_t a = e2b__base64_digit(text[i]), b = e2b__base64_digit(text[i + 1]);
    uint32_t c = e2b__base64_digit(text[i + 2]), d = e2b__base64_digit(text[i + 3]);
    bad |= a | b | c | d;
    bits = a << 18 | b << 12 | c << 6 | d;
    text[used++] = (char)(uint8_t)(bits >> 16);
    text[used++] = (char)(uint8_t)(bits >> 8);
    text[used++] = (char)(uint8_t)bits;
  }
  for (bits = 0; i < len; i++) {
    uint32_t digit = e2b__base64_digit(text[i]);
    bad |= digit;
    bits = bits << 6 | digit;
    if (i % 4 != 0) text[used++] = (char)(uint8_t)(bits >> (6 - i % 4 * 2));
  }
  *out_len = used;
  return bad < 64;
}

/* ---- access to members through the table ---- */

/* The value of a member of any other kind than text and messages. */
static int64_t e2b__field_int(const e2b__field *f, const void *value) {
  switch (f->kind) {
  case E2B__KIND_BOOL: return *(const bool *)value ? 1 : 0;
  case E2B__KIND_U32: return *(const uint32_t *)value;
  case E2B__KIND_I64: return *(const int64_t *)value;
  default: return *(const int32_t *)value;
  }
}

/* False when it does not fit. */
static bool e2b__field_set_int(const e2b__field *f, void *value, int64_t number) {
  switch (f->kind) {
  case E2B__KIND_BOOL: *(bool *)value = number != 0; return true;
  case E2B__KIND_U32: *(uint32_t *)value = (uint32_t)number; return number >= 0 && number <= UINT32_MAX;
  case E2B__KIND_I64: *(int64_t *)value = number; return true;
  default: *(int32_t *)value = (int32_t)number; return number >= INT32_MIN && number <= INT32_MAX;
  }
}

static size_t e2b__field_size(const e2b__field *f) {
  return f->sub ? f->sub->size : sizeof(e2b_str);
}

static bool *e2b__field_has(const e2b__field *f, void *message) {
  return (bool *)(void *)((uint8_t *)message + f->has_offset);
}

/* How many values of this member to write, 0 when it is absent, and the first of them. */
static size_t e2b__field_values(const e2b__field *f, const void *in, const uint8_t **values) {
  const uint8_t *member = (const uint8_t *)in + f->offset;
  const e2b__list *list = (const e2b__list *)(const void *)member;
  *values = member;
  if (f->flags & E2B__REPEATED) {
    *values = (const uint8_t *)list->items;
    return list->count;
  }
  if (f->flags & E2B__ALWAYS) return 1;
  if (f->flags & E2B__PRESENCE) return *e2b__field_has(f, (void *)in) ? 1 : 0;
  if (f->kind >= E2B__KIND_STR) return ((const e2b_str *)(const void *)member)->len ? 1 : 0;
  return e2b__field_int(f, member) ? 1 : 0;
}

/* Adds one zeroed item. NULL with arena->err set when there is no room. */
static void *e2b__list_add(e2b__list *list, size_t size, e2b__arena *arena) {
  if (list->count == list->cap) {
    size_t cap = list->cap ? list->cap * 2 : 4;
    void *items = e2b__arena_alloc(arena, cap <= SIZE_MAX / size ? cap * size : SIZE_MAX);
    if (!items) return NULL;
    if (list->count) memcpy(items, list->items, list->count * size);
    list->items = items;
    list->cap = cap;
  }
  return (uint8_t *)list->items + list->count++ * size;
}

/* Where to decode the next value of a member, marked as present. NULL with arena->err set when there is no room. */
static void *e2b__field_slot(const e2b__message *m, const e2b__field *f, e2b__arena *arena, void *out) {
  uint8_t *member = (uint8_t *)out + f->offset;
  size_t i;
  if (f->flags & E2B__REPEATED) return e2b__list_add((e2b__list *)(void *)member, e2b__field_size(f), arena);
  if (!(f->flags & E2B__PRESENCE)) return member;
  if (f->sub && !*e2b__field_has(f, out)) memset(member, 0, f->sub->size); /* a oneof may have left something */
  for (i = 0; i < m->count && f->oneof; i++)
    if (m->fields[i].oneof == f->oneof) *e2b__field_has(&m->fields[i], out) = false;
  *e2b__field_has(f, out) = true;
  return member;
}

/* ---- binary ---- */

#define E2B__PB_VARINT 0u
#define E2B__PB_FIXED64 1u
#define E2B__PB_BYTES 2u
#define E2B__PB_FIXED32 5u

static unsigned e2b__pb_wire_type(const e2b__field *f) {
  return f->kind <= E2B__KIND_ENUM ? E2B__PB_VARINT : E2B__PB_BYTES;
}

/* Each of the writers returns the size of what it wrote, or of what it would write when `out` is NULL. */
static size_t e2b__pb_put_varint(uint64_t value, e2b__buf *out) {
  size_t n = 1;
  for (; value >= 0x80; value >>= 7, n++)
    if (out) e2b__buf_byte(out, (uint8_t)(value | 0x80));
  if (out) e2b__buf_byte(out, (uint8_t)value);
  return n;
}

static size_t e2b__pb_put(const e2b__message *m, const void *in, e2b__buf *out);

static size_t e2b__pb_put_value(const e2b__field *f, const void *value, e2b__buf *out) {
  size_t n = e2b__pb_put_varint((uint64_t)f->number << 3 | e2b__pb_wire_type(f), out), len;
  uint64_t number;
  if (e2b__pb_wire_type(f) == E2B__PB_VARINT) {
    number = (uint64_t)e2b__field_int(f, value);
    if (f->kind == E2B__KIND_SINT32) number = (uint32_t)(number << 1) ^ (uint32_t)(number >> 32);
    return n + e2b__pb_put_varint(number, out);
  }
  if (f->sub) {
    len = e2b__pb_put(f->sub, value, NULL);
    n += e2b__pb_put_varint(len, out);
    return n + (out ? e2b__pb_put(f->sub, value, out) : len);
  }
  len = ((const e2b_str *)value)->len;
  n += e2b__pb_put_varint(len, out);
  if (out) e2b__buf_str(out, *(const e2b_str *)value);
  return n + len;
}

static size_t e2b__pb_put(const e2b__message *m, const void *in, e2b__buf *out) {
  size_t n = 0, i, count;
  const uint8_t *value;
  for (i = 0; i < m->count; i++) {
    const e2b__field *f = &m->fields[i];
    count = f->number ? e2b__field_values(f, in, &value) : 0;
    for (; count > 0; count--, value += e2b__field_size(f)) n += e2b__pb_put_value(f, value, out);
  }
  return n;
}

/* Failures stick in out->err. */
static void e2b__pb_encode(const e2b__message *m, const void *in, e2b__buf *out) {
  e2b__pb_put(m, in, out);
}

/* Takes a varint from the front of `in`. False when it ends early or does not fit 64 bits. */
static bool e2b__pb_get_varint(e2b_str *in, uint64_t *out) {
  unsigned shift = 0;
  uint8_t byte;
  *out = 0;
  do {
    if (in->len == 0) return false;
    byte = (uint8_t)*in->ptr++;
    in->len--;
    if (shift == 63 && byte > 1) return false;
    *out |= (uint64_t)(byte & 0x7f) << shift;
    shift += 7;
  } while (byte & 0x80);
  return true;
}

/* Takes a field: `number` is its varint, or the length of its `bytes`. False when malformed, or a group. */
static bool e2b__pb_get_field(e2b_str *in, uint64_t *tag, uint64_t *number, e2b_str *bytes) {
  if (!e2b__pb_get_varint(in, tag) || *tag >> 3 == 0 || *tag > UINT32_MAX) return false;
  switch (*tag & 7) {
  case E2B__PB_VARINT: return e2b__pb_get_varint(in, number);
  case E2B__PB_FIXED64: *number = 8; break;
  case E2B__PB_FIXED32: *number = 4; break;
  case E2B__PB_BYTES:
    if (!e2b__pb_get_varint(in, number)) return false;
    break;
  default: return false;
  }
  if (*number > in->len) return false;
  *bytes = e2b__str_n(in->ptr, (size_t)*number);
  in->ptr += bytes->len;
  in->len -= bytes->len;
  return true;
}

/* The integer that a varint stands for in a member of this kind. */
static int64_t e2b__pb_to_int(const e2b__field *f, uint64_t number) {
  uint32_t low = (uint32_t)number;
  switch (f->kind) {
  case E2B__KIND_U32: return low;
  case E2B__KIND_I32:
  case E2B__KIND_ENUM: return (int32_t)low;
  case E2B__KIND_SINT32: return (int32_t)(low >> 1 ^ (0u - (low & 1u)));
  default: return (int64_t)number; /* BOOL: any bit counts */
  }
}

static const e2b__field *e2b__pb_find(const e2b__message *m, uint64_t tag) {
  size_t i;
  for (i = 0; i < m->count; i++)
    if (m->fields[i].number == tag >> 3 && e2b__pb_wire_type(&m->fields[i]) == (tag & 7)) return &m->fields[i];
  return NULL;
}

static e2b_err e2b__pb_merge(const e2b__message *m, e2b_str in, e2b__arena *arena, void *out) {
  uint64_t tag, number;
  e2b_str bytes;
  const e2b__field *f;
  void *slot;
  e2b_err err = E2B_OK;
  while (in.len > 0 && !err) {
    if (!e2b__pb_get_field(&in, &tag, &number, &bytes)) return E2B_ERR_PROTOCOL;
    f = e2b__pb_find(m, tag);
    if (!f) continue;
    slot = e2b__field_slot(m, f, arena, out);
    if (!slot) return arena->err;
    if (e2b__pb_wire_type(f) == E2B__PB_VARINT) (void)e2b__field_set_int(f, slot, e2b__pb_to_int(f, number));
    else if (f->sub) err = e2b__pb_merge(f->sub, bytes, arena, slot);
    else *(e2b_str *)slot = bytes;
  }
  return err;
}

/* Zeroes *out first. Its text is slices of `data`, its lists are in the arena. Unknown fields are skipped, the last of
 * several scalars counts, submessages merge. E2B_ERR_PROTOCOL, E2B_ERR_LIMIT (of the arena), E2B_ERR_NO_MEMORY. */
static e2b_err e2b__pb_decode(const e2b__message *m, const uint8_t *data, size_t len, e2b__arena *arena, void *out) {
  memset(out, 0, m->size);
  return e2b__pb_merge(m, e2b__str_n((const char *)data, len), arena, out);
}

/* ---- JSON ---- */

/* NULL when the number has no name. */
static const char *e2b__enum_name(const e2b__field *f, int64_t number) {
  int64_t i;
  for (i = 0; f->names[i]; i++)
    if (i == number) return f->names[i][0] ? f->names[i] : NULL;
  return NULL;
}

/* -1 when there is no such name. */
static int32_t e2b__enum_number(const e2b__field *f, e2b_str name) {
  int32_t i;
  for (i = 0; f->names[i]; i++)
    if (name.len > 0 && e2b__str_eq(name, f->names[i])) return i;
  return -1;
}

static void e2b__json_put(e2b__json_writer *w, const e2b__message *m, const void *in);

static void e2b__json_put_int(e2b__json_writer *w, const e2b__field *f, const void *value) {
  int64_t number = e2b__field_int(f, value);
  const char *name = f->kind == E2B__KIND_ENUM ? e2b__enum_name(f, number) : NULL;
  if (name) {
    e2b__json_str(w, e2b__str(name));
  } else if (f->kind == E2B__KIND_BOOL) {
    e2b__json_bool(w, number != 0);
  } else if (f->kind == E2B__KIND_I64 && f->number) { /* ProtoJSON */
    e2b__json_begin(w, '"');
    e2b__buf_i64(w->out, number);
    e2b__json_end(w, '"');
  } else {
    e2b__json_i64(w, number);
  }
}

static void e2b__json_put_value(e2b__json_writer *w, const e2b__field *f, const void *value) {
  const e2b_str *text = (const e2b_str *)value; /* for the kinds that are text */
  switch (f->kind) {
  case E2B__KIND_STR:
  case E2B__KIND_TEXT: e2b__json_str(w, *text); break;
  case E2B__KIND_RAW: e2b__json_raw(w, *text); break;
  case E2B__KIND_BYTES:
    e2b__json_begin(w, '"');
    e2b__base64_encode(w->out, (const uint8_t *)text->ptr, text->len, true);
    e2b__json_end(w, '"');
    break;
  case E2B__KIND_MSG:
    if (f->sub != &e2b__msg_timestamp) {
      e2b__json_put(w, f->sub, value);
      break;
    }
    e2b__json_begin(w, '"');
    e2b__time_format(*(const e2b__timestamp *)value, w->out);
    e2b__json_end(w, '"');
    break;
  default: e2b__json_put_int(w, f, value);
  }
}

static void e2b__json_put_member(e2b__json_writer *w, const e2b__field *f, const uint8_t *value, size_t count) {
  bool map = f->kind == E2B__KIND_MAP;
  e2b__json_key(w, f->name);
  if (f->flags & E2B__REPEATED) e2b__json_begin(w, map ? '{' : '[');
  for (; count > 0; count--, value += e2b__field_size(f)) {
    const e2b__pair *pair = (const e2b__pair *)(const void *)value;
    if (map) e2b__json_key_str(w, pair->key);
    if (map) e2b__json_str(w, pair->value);
    else e2b__json_put_value(w, f, value);
  }
  if (f->flags & E2B__REPEATED) e2b__json_end(w, map ? '}' : ']');
}

static void e2b__json_put(e2b__json_writer *w, const e2b__message *m, const void *in) {
  const uint8_t *value;
  size_t i, count;
  e2b__json_begin(w, '{');
  for (i = 0; i < m->count; i++) {
    count = e2b__field_values(&m->fields[i], in, &value);
    if (count) e2b__json_put_member(w, &m->fields[i], value, count);
  }
  e2b__json_end(w, '}');
}

/* Failures stick in out->err. */
static void e2b__json_encode(const e2b__message *m, const void *in, e2b__buf *out) {
  e2b__json_writer w;
  w.out = out;
  w.comma = false;
  e2b__json_put(&w, m, in);
}

/* An integer, from a number or a string. What an enumeration does not know is -1, never an error. */
static bool e2b__json_get_int(const e2b__field *f, const e2b__json_token *t, void *slot) {
  int64_t number = 0;
  bool text = t->type == E2B__JSON_STRING, fits;
  if (!text && t->type != E2B__JSON_NUMBER) return false;
  if (f->kind == E2B__KIND_ENUM && text) return e2b__field_set_int(f, slot, e2b__enum_number(f, t->text));
  fits = e2b__json_to_i64(t->text, &number) && e2b__field_set_int(f, slot, number);
  return fits || (f->kind == E2B__KIND_ENUM && e2b__field_set_int(f, slot, -1));
}

static e2b_err e2b__json_get(e2b__json_reader *r, const e2b__message *m, e2b__arena *arena, void *out);

/* One value whose first token was read. */
static e2b_err e2b__json_get_value(e2b__json_reader *r, const e2b__field *f, const e2b__json_token *t,
                                   e2b__arena *arena, void *slot) {
  e2b_str *text = (e2b_str *)slot; /* for the kinds that are text */
  bool ok = t->type == E2B__JSON_STRING;
  switch (f->kind) {
  case E2B__KIND_BOOL:
    *(bool *)slot = t->boolean;
    ok = t->type == E2B__JSON_BOOL;
    break;
  case E2B__KIND_STR: *text = t->text; break;
  case E2B__KIND_BYTES:
    *text = t->text;
    ok = ok && e2b__base64_decode_in_place((char *)t->text.ptr, t->text.len, &text->len);
    break;
  case E2B__KIND_TEXT:
    *text = t->type == E2B__JSON_BOOL ? e2b__str(t->boolean ? "true" : "false") : t->text;
    ok = e2b__json_skip(r, t);
    break;
  case E2B__KIND_RAW:
    ok = e2b__json_skip(r, t);
    *text = e2b__str_n(t->start, (size_t)(r->at - t->start));
    break;
  case E2B__KIND_MSG:
    if (f->sub == &e2b__msg_timestamp) ok = ok && e2b__time_parse(t->text, (e2b__timestamp *)slot);
    else return t->type == E2B__JSON_OBJECT ? e2b__json_get(r, f->sub, arena, slot) : E2B_ERR_PROTOCOL;
    break;
  default: ok = e2b__json_get_int(f, t, slot);
  }
  return ok ? E2B_OK : E2B_ERR_PROTOCOL;
}

/* A whole member whose first token was read. `m` is the message it belongs to. */
static e2b_err e2b__json_get_member(e2b__json_reader *r, const e2b__message *m, const e2b__field *f,
                                    e2b__json_token *t, e2b__arena *arena, void *out) {
  bool map = f->kind == E2B__KIND_MAP, list = (f->flags & E2B__REPEATED) != 0;
  e2b__json_type open = map ? E2B__JSON_OBJECT : E2B__JSON_ARRAY;
  e2b__json_type close = map ? E2B__JSON_OBJECT_END : E2B__JSON_ARRAY_END;
  void *slot;
  e2b_err err;
  if (t->type == E2B__JSON_NULL) return E2B_OK; /* the same as absent */
  if (list && t->type != open) return E2B_ERR_PROTOCOL;
  while (!list || e2b__json_next(r, t) != close) {
    slot = e2b__field_slot(m, f, arena, out);
    if (!slot) return arena->err;
    if (map) {
      ((e2b__pair *)slot)->key = t->text;
      err = e2b__json_next(r, t) == E2B__JSON_STRING ? E2B_OK : E2B_ERR_PROTOCOL;
      ((e2b__pair *)slot)->value = t->text;
    } else {
      err = e2b__json_get_value(r, f, t, arena, slot);
    }
    if (err || !list) return err;
  }
  return E2B_OK;
}

/* Whether a member is called `name`, as in JSON (exitCode) or as in the .proto file (exit_code). */
static bool e2b__json_is_name(const e2b__field *f, e2b_str name) {
  const char *at = f->name;
  size_t i;
  for (i = 0; i < name.len; i++, at++) {
    bool capital = *at >= 'A' && *at <= 'Z';
    if (name.ptr[i] == *at && *at) continue;
    if (!capital || !f->number || name.ptr[i] != '_') return false;
    if (++i == name.len || name.ptr[i] != e2b__ascii_lower(*at)) return false;
  }
  return !*at;
}

static const e2b__field *e2b__json_find(const e2b__message *m, e2b_str name) {
  size_t i;
  for (i = 0; i < m->count; i++)
    if (e2b__json_is_name(&m->fields[i], name)) return &m->fields[i];
  return NULL;
}

/* The rest of an object whose brace was read. Unknown members are skipped. */
static e2b_err e2b__json_get(e2b__json_reader *r, const e2b__message *m, e2b__arena *arena, void *out) {
  e2b__json_token t;
  e2b_err err = E2B_OK;
  while (!err && e2b__json_next(r, &t) == E2B__JSON_KEY) {
    const e2b__field *f = e2b__json_find(m, t.text);
    r->verbatim = !f || f->kind == E2B__KIND_RAW;
    e2b__json_next(r, &t);
    r->verbatim = false;
    if (f) err = e2b__json_get_member(r, m, f, &t, arena, out);
    else if (!e2b__json_skip(r, &t)) err = E2B_ERR_PROTOCOL;
  }
  return err || t.type == E2B__JSON_OBJECT_END ? err : E2B_ERR_PROTOCOL;
}

static e2b_err e2b__json_get_document(const e2b__field *root, char *text, size_t len, e2b__arena *arena, void *out) {
  e2b__json_reader r;
  e2b__json_token t;
  e2b_err err;
  e2b__json_open(&r, text, len);
  e2b__json_next(&r, &t);
  err = e2b__json_get_member(&r, NULL, root, &t, arena, out);
  return err || e2b__json_next(&r, &t) == E2B__JSON_END ? err : E2B_ERR_PROTOCOL;
}

/* Zeroes *out first. Strings are unescaped in place, also when it fails later: *out keeps pointing into `text`; its
 * lists are in the arena. null is the same as absent, even for the whole. Codes as for e2b__pb_decode. */
static e2b_err e2b__json_decode(const e2b__message *m, char *text, size_t len, e2b__arena *arena, void *out) {
  e2b__field root;
  memset(&root, 0, sizeof root);
  root.kind = E2B__KIND_MSG;
  root.sub = m;
  memset(out, 0, m->size);
  return e2b__json_get_document(&root, text, len, arena, out);
}

/* The same for an array of messages. */
static e2b_err e2b__json_decode_list(const e2b__message *item, char *text, size_t len, e2b__arena *arena,
                                     e2b__list *out) {
  e2b__field root;
  memset(&root, 0, sizeof root);
  root.kind = E2B__KIND_MSG;
  root.flags = E2B__REPEATED;
  root.sub = item;
  memset(out, 0, sizeof *out);
  return e2b__json_get_document(&root, text, len, arena, out);
}
/* ================================================================================================================== */
/* >>>> messages */
/* ================================================================================================================== */

/* The messages of envd, of the Connect protocol and of the control plane: a struct each, and the table that describes
 * it to the codecs. Members are called as in the .proto file, in snake_case, except stdin, stdout and stderr, which are
 * macros of <stdio.h>. Messages that look the same on the wire share one struct. In a table: number = that of the
 * .proto file, 0 = member of a JSON document only. */

#define E2B__FIELD(type, member, json, number, kind) \
  { json, number, E2B__KIND_##kind, 0, 0, offsetof(type, member), 0, NULL, NULL }
#define E2B__FIELD_ENUM(type, member, json, number, names) \
  { json, number, E2B__KIND_ENUM, 0, 0, offsetof(type, member), 0, NULL, names }
#define E2B__FIELD_LIST(type, member, json, number, kind, sub) \
  { json, number, E2B__KIND_##kind, E2B__REPEATED, 0, offsetof(type, member), 0, sub, NULL }
/* With presence: `optional` members and submessages (oneof = 0), or members of the oneof of a message (oneof = 1). */
#define E2B__FIELD_HAS(type, member, json, number, kind, oneof, sub) \
  { json, number, E2B__KIND_##kind, E2B__PRESENCE, oneof, \
    offsetof(type, member), offsetof(type, has_##member), sub, NULL }
#define E2B__MESSAGE(type, fields) { fields, E2B__COUNT(fields), sizeof(type) }

/* ListRequest, KeepAlive, WatchDirResponse.StartEvent; Update-, SendInput-, StreamInput-, SendSignal-, CloseStdin-,
 * Remove- and RemoveWatcherResponse */
typedef struct e2b__empty {
  uint8_t none;
} e2b__empty;
static const e2b__message e2b__msg_empty = { NULL, 0, sizeof(e2b__empty) };

/* ---- package process ---- */

typedef struct e2b__pty_size {
  uint32_t cols, rows;
} e2b__pty_size;
static const e2b__field e2b__fields_pty_size[] = {
  E2B__FIELD(e2b__pty_size, cols, "cols", 1, U32),
  E2B__FIELD(e2b__pty_size, rows, "rows", 2, U32),
};
static const e2b__message e2b__msg_pty_size = E2B__MESSAGE(e2b__pty_size, e2b__fields_pty_size);

typedef struct e2b__pty {
  e2b__pty_size size;
  bool has_size;
} e2b__pty;
static const e2b__field e2b__fields_pty[] = {
  E2B__FIELD_HAS(e2b__pty, size, "size", 1, MSG, 0, &e2b__msg_pty_size),
};
static const e2b__message e2b__msg_pty = E2B__MESSAGE(e2b__pty, e2b__fields_pty);

typedef struct e2b__process_config {
  e2b_str cmd;
  e2b__list args; /* e2b_str */
  e2b__list envs; /* e2b__pair */
  e2b_str cwd;
  bool has_cwd;
} e2b__process_config;
static const e2b__field e2b__fields_process_config[] = {
  E2B__FIELD(e2b__process_config, cmd, "cmd", 1, STR),
  E2B__FIELD_LIST(e2b__process_config, args, "args", 2, STR, NULL),
  E2B__FIELD_LIST(e2b__process_config, envs, "envs", 3, MAP, &e2b__msg_pair),
  E2B__FIELD_HAS(e2b__process_config, cwd, "cwd", 4, STR, 0, NULL),
};
static const e2b__message e2b__msg_process_config = E2B__MESSAGE(e2b__process_config, e2b__fields_process_config);

typedef struct e2b__process_selector {
  uint32_t pid; /* one of pid, tag */
  e2b_str tag;
  bool has_pid, has_tag;
} e2b__process_selector;
static const e2b__field e2b__fields_process_selector[] = {
  E2B__FIELD_HAS(e2b__process_selector, pid, "pid", 1, U32, 1, NULL),
  E2B__FIELD_HAS(e2b__process_selector, tag, "tag", 2, STR, 1, NULL),
};
static const e2b__message e2b__msg_process_selector = E2B__MESSAGE(e2b__process_selector, e2b__fields_process_selector);

typedef struct e2b__process_info {
  e2b__process_config config;
  uint32_t pid;
  e2b_str tag;
  bool has_config, has_tag;
} e2b__process_info;
static const e2b__field e2b__fields_process_info[] = {
  E2B__FIELD_HAS(e2b__process_info, config, "config", 1, MSG, 0, &e2b__msg_process_config),
  E2B__FIELD(e2b__process_info, pid, "pid", 2, U32),
  E2B__FIELD_HAS(e2b__process_info, tag, "tag", 3, STR, 0, NULL),
};
static const e2b__message e2b__msg_process_info = E2B__MESSAGE(e2b__process_info, e2b__fields_process_info);

/* ListResponse */
typedef struct e2b__process_list {
  e2b__list processes; /* e2b__process_info */
} e2b__process_list;
static const e2b__field e2b__fields_process_list[] = {
  E2B__FIELD_LIST(e2b__process_list, processes, "processes", 1, MSG, &e2b__msg_process_info),
};
static const e2b__message e2b__msg_process_list = E2B__MESSAGE(e2b__process_list, e2b__fields_process_list);

typedef struct e2b__start_request {
  e2b__process_config process;
  e2b__pty pty;
  e2b_str tag;
  bool stdin_open; /* `stdin` on the wire; absent means true */
  bool has_process, has_pty, has_tag, has_stdin_open;
} e2b__start_request;
static const e2b__field e2b__fields_start_request[] = {
  E2B__FIELD_HAS(e2b__start_request, process, "process", 1, MSG, 0, &e2b__msg_process_config),
  E2B__FIELD_HAS(e2b__start_request, pty, "pty", 2, MSG, 0, &e2b__msg_pty),
  E2B__FIELD_HAS(e2b__start_request, tag, "tag", 3, STR, 0, NULL),
  E2B__FIELD_HAS(e2b__start_request, stdin_open, "stdin", 4, BOOL, 0, NULL),
};
static const e2b__message e2b__msg_start_request = E2B__MESSAGE(e2b__start_request, e2b__fields_start_request);

/* ProcessEvent.StartEvent */
typedef struct e2b__start_event {
  uint32_t pid;
} e2b__start_event;
static const e2b__field e2b__fields_start_event[] = {
  E2B__FIELD(e2b__start_event, pid, "pid", 1, U32),
};
static const e2b__message e2b__msg_start_event = E2B__MESSAGE(e2b__start_event, e2b__fields_start_event);

/* ProcessEvent.DataEvent */
typedef struct e2b__data_event {
  e2b_str stdout_data, stderr_data, pty; /* one of them */
  bool has_stdout_data, has_stderr_data, has_pty;
} e2b__data_event;
static const e2b__field e2b__fields_data_event[] = {
  E2B__FIELD_HAS(e2b__data_event, stdout_data, "stdout", 1, BYTES, 1, NULL),
  E2B__FIELD_HAS(e2b__data_event, stderr_data, "stderr", 2, BYTES, 1, NULL),
  E2B__FIELD_HAS(e2b__data_event, pty, "pty", 3, BYTES, 1, NULL),
};
static const e2b__message e2b__msg_data_event = E2B__MESSAGE(e2b__data_event, e2b__fields_data_event);

/* ProcessEvent.EndEvent */
typedef struct e2b__end_event {
  int32_t exit_code;
  bool exited;
  e2b_str status, error;
  bool has_error;
} e2b__end_event;
static const e2b__field e2b__fields_end_event[] = {
  E2B__FIELD(e2b__end_event, exit_code, "exitCode", 1, SINT32),
  E2B__FIELD(e2b__end_event, exited, "exited", 2, BOOL),
  E2B__FIELD(e2b__end_event, status, "status", 3, STR),
  E2B__FIELD_HAS(e2b__end_event, error, "error", 4, STR, 0, NULL),
};
static const e2b__message e2b__msg_end_event = E2B__MESSAGE(e2b__end_event, e2b__fields_end_event);

typedef struct e2b__process_event {
  e2b__start_event start; /* one of start, data, end, keepalive */
  e2b__data_event data;
  e2b__end_event end;
  e2b__empty keepalive;
  bool has_start, has_data, has_end, has_keepalive;
} e2b__process_event;
static const e2b__field e2b__fields_process_event[] = {
  E2B__FIELD_HAS(e2b__process_event, start, "start", 1, MSG, 1, &e2b__msg_start_event),
  E2B__FIELD_HAS(e2b__process_event, data, "data", 2, MSG, 1, &e2b__msg_data_event),
  E2B__FIELD_HAS(e2b__process_event, end, "end", 3, MSG, 1, &e2b__msg_end_event),
  E2B__FIELD_HAS(e2b__process_event, keepalive, "keepalive", 4, MSG, 1, &e2b__msg_empty),
};
static const e2b__message e2b__msg_process_event = E2B__MESSAGE(e2b__process_event, e2b__fields_process_event);

/* StartResponse, ConnectResponse */
typedef struct e2b__event_response {
  e2b__process_event event;
  bool has_event;
} e2b__event_response;
static const e2b__field e2b__fields_event_response[] = {
  E2B__FIELD_HAS(e2b__event_response, event, "event", 1, MSG, 0, &e2b__msg_process_event),
};
static const e2b__message e2b__msg_event_response = E2B__MESSAGE(e2b__event_response, e2b__fields_event_response);

/* ConnectRequest, CloseStdinRequest; StreamInputRequest.StartEvent */
typedef struct e2b__selector_request {
  e2b__process_selector process;
  bool has_process;
} e2b__selector_request;
static const e2b__field e2b__fields_selector_request[] = {
  E2B__FIELD_HAS(e2b__selector_request, process, "process", 1, MSG, 0, &e2b__msg_process_selector),
};
static const e2b__message e2b__msg_selector_request = E2B__MESSAGE(e2b__selector_request, e2b__fields_selector_request);

typedef struct e2b__update_request {
  e2b__process_selector process;
  e2b__pty pty;
  bool has_process, has_pty;
} e2b__update_request;
static const e2b__field e2b__fields_update_request[] = {
  E2B__FIELD_HAS(e2b__update_request, process, "process", 1, MSG, 0, &e2b__msg_process_selector),
  E2B__FIELD_HAS(e2b__update_request, pty, "pty", 2, MSG, 0, &e2b__msg_pty),
};
static const e2b__message e2b__msg_update_request = E2B__MESSAGE(e2b__update_request, e2b__fields_update_request);

typedef struct e2b__process_input {
  e2b_str stdin_data, pty; /* one of them */
  bool has_stdin_data, has_pty;
} e2b__process_input;
static const e2b__field e2b__fields_process_input[] = {
  E2B__FIELD_HAS(e2b__process_input, stdin_data, "stdin", 1, BYTES, 1, NULL),
  E2B__FIELD_HAS(e2b__process_input, pty, "pty", 2, BYTES, 1, NULL),
};
static const e2b__message e2b__msg_process_input = E2B__MESSAGE(e2b__process_input, e2b__fields_process_input);

typedef struct e2b__send_input_request {
  e2b__process_selector process;
  e2b__process_input input;
  bool has_process, has_input;
} e2b__send_input_request;
static const e2b__field e2b__fields_send_input_request[] = {
  E2B__FIELD_HAS(e2b__send_input_request, process, "process", 1, MSG, 0, &e2b__msg_process_selector),
  E2B__FIELD_HAS(e2b__send_input_request, input, "input", 2, MSG, 0, &e2b__msg_process_input),
};
static const e2b__message e2b__msg_send_input_request =
  E2B__MESSAGE(e2b__send_input_request, e2b__fields_send_input_request);

/* StreamInputRequest.DataEvent; it has no field 1 */
typedef struct e2b__stream_input_data {
  e2b__process_input input;
  bool has_input;
} e2b__stream_input_data;
static const e2b__field e2b__fields_stream_input_data[] = {
  E2B__FIELD_HAS(e2b__stream_input_data, input, "input", 2, MSG, 0, &e2b__msg_process_input),
};
static const e2b__message e2b__msg_stream_input_data =
  E2B__MESSAGE(e2b__stream_input_data, e2b__fields_stream_input_data);

typedef struct e2b__stream_input_request {
  e2b__selector_request start; /* one of start, data, keepalive */
  e2b__stream_input_data data;
  e2b__empty keepalive;
  bool has_start, has_data, has_keepalive;
} e2b__stream_input_request;
static const e2b__field e2b__fields_stream_input_request[] = {
  E2B__FIELD_HAS(e2b__stream_input_request, start, "start", 1, MSG, 1, &e2b__msg_selector_request),
  E2B__FIELD_HAS(e2b__stream_input_request, data, "data", 2, MSG, 1, &e2b__msg_stream_input_data),
  E2B__FIELD_HAS(e2b__stream_input_request, keepalive, "keepalive", 3, MSG, 1, &e2b__msg_empty),
};
static const e2b__message e2b__msg_stream_input_request =
  E2B__MESSAGE(e2b__stream_input_request, e2b__fields_stream_input_request);

#define E2B__SIGNAL_KILL 9
#define E2B__SIGNAL_TERM 15
static const char *const e2b__names_signal[] = {
  "SIGNAL_UNSPECIFIED", "", "", "", "", "", "", "", "", "SIGNAL_SIGKILL", "", "", "", "", "", "SIGNAL_SIGTERM", NULL
};

typedef struct e2b__send_signal_request {
  e2b__process_selector process;
  int32_t signal;
  bool has_process;
} e2b__send_signal_request;
static const e2b__field e2b__fields_send_signal_request[] = {
  E2B__FIELD_HAS(e2b__send_signal_request, process, "process", 1, MSG, 0, &e2b__msg_process_selector),
  E2B__FIELD_ENUM(e2b__send_signal_request, signal, "signal", 2, e2b__names_signal),
};
static const e2b__message e2b__msg_send_signal_request =
  E2B__MESSAGE(e2b__send_signal_request, e2b__fields_send_signal_request);

/* ---- package filesystem ---- */

/* StatRequest, MakeDirRequest, RemoveRequest */
typedef struct e2b__path_request {
  e2b_str path;
} e2b__path_request;
static const e2b__field e2b__fields_path_request[] = {
  E2B__FIELD(e2b__path_request, path, "path", 1, STR),
};
static const e2b__message e2b__msg_path_request = E2B__MESSAGE(e2b__path_request, e2b__fields_path_request);

typedef struct e2b__move_request {
  e2b_str source, destination;
} e2b__move_request;
static const e2b__field e2b__fields_move_request[] = {
  E2B__FIELD(e2b__move_request, source, "source", 1, STR),
  E2B__FIELD(e2b__move_request, destination, "destination", 2, STR),
};
static const e2b__message e2b__msg_move_request = E2B__MESSAGE(e2b__move_request, e2b__fields_move_request);

typedef struct e2b__list_dir_request {
  e2b_str path;
  uint32_t depth;
} e2b__list_dir_request;
static const e2b__field e2b__fields_list_dir_request[] = {
  E2B__FIELD(e2b__list_dir_request, path, "path", 1, STR),
  E2B__FIELD(e2b__list_dir_request, depth, "depth", 2, U32),
};
static const e2b__message e2b__msg_list_dir_request = E2B__MESSAGE(e2b__list_dir_request, e2b__fields_list_dir_request);

#define E2B__FILE_TYPE_FILE 1
#define E2B__FILE_TYPE_DIRECTORY 2
#define E2B__FILE_TYPE_SYMLINK 3
static const char *const e2b__names_file_type[] = {
  "FILE_TYPE_UNSPECIFIED", "FILE_TYPE_FILE", "FILE_TYPE_DIRECTORY", "FILE_TYPE_SYMLINK", NULL
};

typedef struct e2b__entry_info {
  e2b_str name, path, permissions, owner, group, symlink_target;
  int32_t type; /* E2B__FILE_TYPE_...; may be any other number */
  uint32_t mode;
  int64_t size;
  e2b__timestamp modified_time;
  e2b__list metadata; /* e2b__pair */
  bool has_modified_time, has_symlink_target;
} e2b__entry_info;
static const e2b__field e2b__fields_entry_info[] = {
  E2B__FIELD(e2b__entry_info, name, "name", 1, STR),
  E2B__FIELD_ENUM(e2b__entry_info, type, "type", 2, e2b__names_file_type),
  E2B__FIELD(e2b__entry_info, path, "path", 3, STR),
  E2B__FIELD(e2b__entry_info, size, "size", 4, I64),
  E2B__FIELD(e2b__entry_info, mode, "mode", 5, U32),
  E2B__FIELD(e2b__entry_info, permissions, "permissions", 6, STR),
  E2B__FIELD(e2b__entry_info, owner, "owner", 7, STR),
  E2B__FIELD(e2b__entry_info, group, "group", 8, STR),
  E2B__FIELD_HAS(e2b__entry_info, modified_time, "modifiedTime", 9, MSG, 0, &e2b__msg_timestamp),
  E2B__FIELD_HAS(e2b__entry_info, symlink_target, "symlinkTarget", 10, STR, 0, NULL),
  E2B__FIELD_LIST(e2b__entry_info, metadata, "metadata", 11, MAP, &e2b__msg_pair),
};
static const e2b__message e2b__msg_entry_info = E2B__MESSAGE(e2b__entry_info, e2b__fields_entry_info);

/* StatResponse, MakeDirResponse, MoveResponse */
typedef struct e2b__entry_response {
  e2b__entry_info entry;
  bool has_entry;
} e2b__entry_response;
static const e2b__field e2b__fields_entry_response[] = {
  E2B__FIELD_HAS(e2b__entry_response, entry, "entry", 1, MSG, 0, &e2b__msg_entry_info),
};
static const e2b__message e2b__msg_entry_response = E2B__MESSAGE(e2b__entry_response, e2b__fields_entry_response);

typedef struct e2b__list_dir_response {
  e2b__list entries; /* e2b__entry_info */
} e2b__list_dir_response;
static const e2b__field e2b__fields_list_dir_response[] = {
  E2B__FIELD_LIST(e2b__list_dir_response, entries, "entries", 1, MSG, &e2b__msg_entry_info),
};
static const e2b__message e2b__msg_list_dir_response =
  E2B__MESSAGE(e2b__list_dir_response, e2b__fields_list_dir_response);

/* WatchDirRequest, CreateWatcherRequest */
typedef struct e2b__watch_request {
  e2b_str path;
  bool recursive, include_entry, allow_network_mounts;
} e2b__watch_request;
static const e2b__field e2b__fields_watch_request[] = {
  E2B__FIELD(e2b__watch_request, path, "path", 1, STR),
  E2B__FIELD(e2b__watch_request, recursive, "recursive", 2, BOOL),
  E2B__FIELD(e2b__watch_request, include_entry, "includeEntry", 3, BOOL),
  E2B__FIELD(e2b__watch_request, allow_network_mounts, "allowNetworkMounts", 4, BOOL),
};
static const e2b__message e2b__msg_watch_request = E2B__MESSAGE(e2b__watch_request, e2b__fields_watch_request);

#define E2B__EVENT_TYPE_CREATE 1
#define E2B__EVENT_TYPE_WRITE 2
#define E2B__EVENT_TYPE_REMOVE 3
#define E2B__EVENT_TYPE_RENAME 4
#define E2B__EVENT_TYPE_CHMOD 5
static const char *const e2b__names_event_type[] = {
  "EVENT_TYPE_UNSPECIFIED", "EVENT_TYPE_CREATE", "EVENT_TYPE_WRITE", "EVENT_TYPE_REMOVE", "EVENT_TYPE_RENAME",
  "EVENT_TYPE_CHMOD", NULL
};

typedef struct e2b__filesystem_event {
  e2b_str name;
  int32_t type; /* E2B__EVENT_TYPE_...; may be any other number */
  e2b__entry_info entry;
  bool has_entry;
} e2b__filesystem_event;
static const e2b__field e2b__fields_filesystem_event[] = {
  E2B__FIELD(e2b__filesystem_event, name, "name", 1, STR),
  E2B__FIELD_ENUM(e2b__filesystem_event, type, "type", 2, e2b__names_event_type),
  E2B__FIELD_HAS(e2b__filesystem_event, entry, "entry", 3, MSG, 0, &e2b__msg_entry_info),
};
static const e2b__message e2b__msg_filesystem_event = E2B__MESSAGE(e2b__filesystem_event, e2b__fields_filesystem_event);

typedef struct e2b__watch_dir_response {
  e2b__empty start; /* one of start, filesystem, keepalive */
  e2b__filesystem_event filesystem;
  e2b__empty keepalive;
  bool has_start, has_filesystem, has_keepalive;
} e2b__watch_dir_response;
static const e2b__field e2b__fields_watch_dir_response[] = {
  E2B__FIELD_HAS(e2b__watch_dir_response, start, "start", 1, MSG, 1, &e2b__msg_empty),
  E2B__FIELD_HAS(e2b__watch_dir_response, filesystem, "filesystem", 2, MSG, 1, &e2b__msg_filesystem_event),
  E2B__FIELD_HAS(e2b__watch_dir_response, keepalive, "keepalive", 3, MSG, 1, &e2b__msg_empty),
};
static const e2b__message e2b__msg_watch_dir_response =
  E2B__MESSAGE(e2b__watch_dir_response, e2b__fields_watch_dir_response);

/* CreateWatcherResponse, GetWatcherEventsRequest, RemoveWatcherRequest */
typedef struct e2b__watcher_id {
  e2b_str watcher_id;
} e2b__watcher_id;
static const e2b__field e2b__fields_watcher_id[] = {
  E2B__FIELD(e2b__watcher_id, watcher_id, "watcherId", 1, STR),
};
static const e2b__message e2b__msg_watcher_id = E2B__MESSAGE(e2b__watcher_id, e2b__fields_watcher_id);

/* GetWatcherEventsResponse */
typedef struct e2b__watcher_events {
  e2b__list events; /* e2b__filesystem_event */
} e2b__watcher_events;
static const e2b__field e2b__fields_watcher_events[] = {
  E2B__FIELD_LIST(e2b__watcher_events, events, "events", 1, MSG, &e2b__msg_filesystem_event),
};
static const e2b__message e2b__msg_watcher_events = E2B__MESSAGE(e2b__watcher_events, e2b__fields_watcher_events);

/* ---- JSON documents ---- */

typedef struct e2b__rest_volume_mount {
  e2b_str name, path;
} e2b__rest_volume_mount;
static const e2b__field e2b__fields_rest_volume_mount[] = {
  E2B__FIELD(e2b__rest_volume_mount, name, "name", 0, STR),
  E2B__FIELD(e2b__rest_volume_mount, path, "path", 0, STR),
};
static const e2b__message e2b__msg_rest_volume_mount =
  E2B__MESSAGE(e2b__rest_volume_mount, e2b__fields_rest_volume_mount);

typedef struct e2b__rest_lifecycle {
  e2b_str on_timeout; /* "pause" or "kill" */
  bool auto_resume;
} e2b__rest_lifecycle;
static const e2b__field e2b__fields_rest_lifecycle[] = {
  E2B__FIELD(e2b__rest_lifecycle, on_timeout, "onTimeout", 0, STR),
  E2B__FIELD(e2b__rest_lifecycle, auto_resume, "autoResume", 0, BOOL),
};
static const e2b__message e2b__msg_rest_lifecycle = E2B__MESSAGE(e2b__rest_lifecycle, e2b__fields_rest_lifecycle);

/* Sandbox, SandboxDetail and ListedSandbox in one; which members are there depends on the server and the call. */
typedef struct e2b__rest_sandbox {
  e2b_str sandbox_id, template_id, client_id, envd_version, alias, domain, state;
  e2b_str envd_access_token, traffic_access_token, traffic_access_token_expiration;
  e2b_str started_at, ended_at; /* RFC 3339, or "<unknown>" */
  int64_t cpu_count, memory_mb, disk_size_mb;
  e2b__list metadata;      /* e2b__pair */
  e2b__list volume_mounts; /* e2b__rest_volume_mount */
  e2b__rest_lifecycle lifecycle;
  bool has_lifecycle;
} e2b__rest_sandbox;
static const e2b__field e2b__fields_rest_sandbox[] = {
  E2B__FIELD(e2b__rest_sandbox, sandbox_id, "sandboxID", 0, STR),
  E2B__FIELD(e2b__rest_sandbox, template_id, "templateID", 0, STR),
  E2B__FIELD(e2b__rest_sandbox, client_id, "clientID", 0, STR),
  E2B__FIELD(e2b__rest_sandbox, envd_version, "envdVersion", 0, STR),
  E2B__FIELD(e2b__rest_sandbox, alias, "alias", 0, STR),
  E2B__FIELD(e2b__rest_sandbox, domain, "domain", 0, STR),
  E2B__FIELD(e2b__rest_sandbox, state, "state", 0, STR),
  E2B__FIELD(e2b__rest_sandbox, envd_access_token, "envdAccessToken", 0, STR),
  E2B__FIELD(e2b__rest_sandbox, traffic_access_token, "trafficAccessToken", 0, STR),
  E2B__FIELD(e2b__rest_sandbox, traffic_access_token_expiration, "trafficAccessTokenExpiration", 0, STR),
  E2B__FIELD(e2b__rest_sandbox, started_at, "startedAt", 0, STR),
  E2B__FIELD(e2b__rest_sandbox, ended_at, "endAt", 0, STR),
  E2B__FIELD(e2b__rest_sandbox, cpu_count, "cpuCount", 0, I64),
  E2B__FIELD(e2b__rest_sandbox, memory_mb, "memoryMB", 0, I64),
  E2B__FIELD(e2b__rest_sandbox, disk_size_mb, "diskSizeMB", 0, I64),
  E2B__FIELD_LIST(e2b__rest_sandbox, metadata, "metadata", 0, MAP, &e2b__msg_pair),
  E2B__FIELD_LIST(e2b__rest_sandbox, volume_mounts, "volumeMounts", 0, MSG, &e2b__msg_rest_volume_mount),
  E2B__FIELD_HAS(e2b__rest_sandbox, lifecycle, "lifecycle", 0, MSG, 0, &e2b__msg_rest_lifecycle),
};
static const e2b__message e2b__msg_rest_sandbox = E2B__MESSAGE(e2b__rest_sandbox, e2b__fields_rest_sandbox);

#ifndef E2B_NO_METRICS
typedef struct e2b__rest_metric {
  e2b_str timestamp; /* RFC 3339 */
  int64_t timestamp_unix, cpu_count, mem_used, mem_total, mem_cache, disk_used, disk_total;
  e2b_str cpu_used_pct; /* a number, as text */
} e2b__rest_metric;
static const e2b__field e2b__fields_rest_metric[] = {
  E2B__FIELD(e2b__rest_metric, timestamp, "timestamp", 0, STR),
  E2B__FIELD(e2b__rest_metric, timestamp_unix, "timestampUnix", 0, I64),
  E2B__FIELD(e2b__rest_metric, cpu_count, "cpuCount", 0, I64),
  E2B__FIELD(e2b__rest_metric, cpu_used_pct, "cpuUsedPct", 0, TEXT),
  E2B__FIELD(e2b__rest_metric, mem_used, "memUsed", 0, I64),
  E2B__FIELD(e2b__rest_metric, mem_total, "memTotal", 0, I64),
  E2B__FIELD(e2b__rest_metric, mem_cache, "memCache", 0, I64),
  E2B__FIELD(e2b__rest_metric, disk_used, "diskUsed", 0, I64),
  E2B__FIELD(e2b__rest_metric, disk_total, "diskTotal", 0, I64),
};
static const e2b__message e2b__msg_rest_metric = E2B__MESSAGE(e2b__rest_metric, e2b__fields_rest_metric);

typedef struct e2b__rest_log {
  e2b_str timestamp, level, message;
  e2b__list fields; /* e2b__pair */
} e2b__rest_log;
static const e2b__field e2b__fields_rest_log[] = {
  E2B__FIELD(e2b__rest_log, timestamp, "timestamp", 0, STR),
  E2B__FIELD(e2b__rest_log, level, "level", 0, STR),
  E2B__FIELD(e2b__rest_log, message, "message", 0, STR),
  E2B__FIELD_LIST(e2b__rest_log, fields, "fields", 0, MAP, &e2b__msg_pair),
};
static const e2b__message e2b__msg_rest_log = E2B__MESSAGE(e2b__rest_log, e2b__fields_rest_log);

typedef struct e2b__rest_logs {
  e2b__list logs; /* e2b__rest_log */
} e2b__rest_logs;
static const e2b__field e2b__fields_rest_logs[] = {
  E2B__FIELD_LIST(e2b__rest_logs, logs, "logs", 0, MSG, &e2b__msg_rest_log),
};
static const e2b__message e2b__msg_rest_logs = E2B__MESSAGE(e2b__rest_logs, e2b__fields_rest_logs);
#endif

#ifndef E2B_NO_SNAPSHOTS
typedef struct e2b__rest_snapshot {
  e2b_str snapshot_id;
  e2b__list names; /* e2b_str */
} e2b__rest_snapshot;
static const e2b__field e2b__fields_rest_snapshot[] = {
  E2B__FIELD(e2b__rest_snapshot, snapshot_id, "snapshotID", 0, STR),
  E2B__FIELD_LIST(e2b__rest_snapshot, names, "names", 0, STR, NULL),
};
static const e2b__message e2b__msg_rest_snapshot = E2B__MESSAGE(e2b__rest_snapshot, e2b__fields_rest_snapshot);
#endif

/* Error bodies of the control plane, of unary RPC and of proxies: `code` is a name for some and a number for others. */
typedef struct e2b__rest_error {
  e2b_str code, message, error_code, sandbox_id, port, request_id;
  e2b_str details; /* JSON text */
} e2b__rest_error;
static const e2b__field e2b__fields_rest_error[] = {
  E2B__FIELD(e2b__rest_error, code, "code", 0, TEXT),
  E2B__FIELD(e2b__rest_error, message, "message", 0, STR),
  E2B__FIELD(e2b__rest_error, error_code, "error_code", 0, STR),
  E2B__FIELD(e2b__rest_error, sandbox_id, "sandboxId", 0, STR),
  E2B__FIELD(e2b__rest_error, port, "port", 0, TEXT),
  E2B__FIELD(e2b__rest_error, request_id, "request_id", 0, STR), /* OpenKruise: no header has it in errors */
  E2B__FIELD(e2b__rest_error, details, "details", 0, RAW),
};
static const e2b__message e2b__msg_rest_error = E2B__MESSAGE(e2b__rest_error, e2b__fields_rest_error);

/* The payload of an end-of-stream envelope. */
typedef struct e2b__connect_end {
  e2b__rest_error error;
  e2b_str metadata; /* JSON text */
  bool has_error;
} e2b__connect_end;
static const e2b__field e2b__fields_connect_end[] = {
  E2B__FIELD_HAS(e2b__connect_end, error, "error", 0, MSG, 0, &e2b__msg_rest_error),
  E2B__FIELD(e2b__connect_end, metadata, "metadata", 0, RAW),
};
static const e2b__message e2b__msg_connect_end = E2B__MESSAGE(e2b__connect_end, e2b__fields_connect_end);

/* One item of the answer to an upload. */
typedef struct e2b__rest_write_info {
  e2b_str name, path, type;
  e2b__list metadata; /* e2b__pair */
} e2b__rest_write_info;
static const e2b__field e2b__fields_rest_write_info[] = {
  E2B__FIELD(e2b__rest_write_info, name, "name", 0, STR),
  E2B__FIELD(e2b__rest_write_info, path, "path", 0, STR),
  E2B__FIELD(e2b__rest_write_info, type, "type", 0, STR),
  E2B__FIELD_LIST(e2b__rest_write_info, metadata, "metadata", 0, MAP, &e2b__msg_pair),
};
static const e2b__message e2b__msg_rest_write_info = E2B__MESSAGE(e2b__rest_write_info, e2b__fields_rest_write_info);
/* ================================================================================================================== */
/* >>>> url */
/* ================================================================================================================== */

#define E2B__HOST_MAX 253 /* RFC 1035, in its textual form */

static bool e2b__is_digit(char c) {
  return c >= '0' && c <= '9';
}

static bool e2b__is_alnum(char c) {
  char lower = e2b__ascii_lower(c);
  return e2b__is_digit(c) || (lower >= 'a' && lower <= 'z');
}

/* The value of a hexadecimal digit, or -1. */
static int e2b__hex_value(char c) {
  char lower = e2b__ascii_lower(c);
  if (e2b__is_digit(c)) return c - '0';
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

/* RFC 3986 unreserved: what percent-encoding leaves alone. */
static bool e2b__is_unreserved(char c) {
  return e2b__is_alnum(c) || c == '-' || c == '.' || c == '_' || c == '~';
}

/* RFC 9110 tchar: what methods and header names are made of. */
static bool e2b__is_token_char(char c) {
  return e2b__is_alnum(c) || (c && strchr("!#$%&'*+-.^_`|~", c) != NULL);
}

/* Control characters have no place in a line of HTTP; the tab is the exception. */
static bool e2b__is_control(char c) {
  return ((uint8_t)c < 0x20 && c != '\t') || c == 0x7f;
}

static bool e2b__is_blank(char c) {
  return c == ' ' || c == '\t';
}

/* Without the blanks at both ends. */
static e2b_str e2b__str_trim(e2b_str text) {
  while (text.len && e2b__is_blank(text.ptr[text.len - 1])) text.len--;
  while (text.len && e2b__is_blank(text.ptr[0])) {
    text.ptr++;
    text.len--;
  }
  return text;
}

static bool e2b__header_name_ok(e2b_str name) {
  size_t i;
  for (i = 0; i < name.len; i++)
    if (!e2b__is_token_char(name.ptr[i])) return false;
  return name.len > 0;
}

static bool e2b__header_value_ok(e2b_str value) {
  size_t i;
  for (i = 0; i < value.len; i++)
    if (e2b__is_control(value.ptr[i]) || (uint8_t)value.ptr[i] >= 0x80) return false;
  return true;
}

/* For names that go into paths, queries and JSON: any UTF-8 but control characters. */
static bool e2b__text_ok(const char *text) {
  for (; text && *text; text++)
    if (e2b__is_control(*text)) return false;
  return true;
}

/* Four decimal numbers 0..255 without leading zeros. */
static bool e2b__host_is_ipv4(e2b_str host) {
  size_t at = 0, digits, group;
  unsigned value;
  for (group = 0; group < 4; group++) {
    if (group > 0 && (at == host.len || host.ptr[at++] != '.')) return false;
    value = 0;
    for (digits = 0; at < host.len && e2b__is_digit(host.ptr[at]) && digits < 4; digits++, at++)
      value = value * 10u + (unsigned)(host.ptr[at] - '0');
    if (digits == 0 || digits > 3 || value > 255 || (digits > 1 && host.ptr[at - digits] == '0')) return false;
  }
  return at == host.len;
}

/* RFC 4291: eight groups of 1..4 hexadecimal digits, one run of zeros as "::", the last two groups perhaps as IPv4.
 * Without brackets, without a zone. */
static bool e2b__host_is_ipv6(e2b_str host) {
  size_t at = 0, digits, groups = 0;
  bool gap = false;
  if (host.len >= 2 && host.ptr[0] == ':' && host.ptr[1] == ':') {
    gap = true;
    at = 2;
  }
  while (at < host.len) {
    if (e2b__host_is_ipv4(e2b__str_n(host.ptr + at, host.len - at))) {
      groups += 2;
      break;
    }
    for (digits = 0; at < host.len && e2b__hex_value(host.ptr[at]) >= 0; digits++) at++;
    if (digits == 0 || digits > 4) return false;
    groups++;
    if (at == host.len) break;
    if (host.ptr[at++] != ':' || at == host.len) return false;
    if (host.ptr[at] == ':') {
      if (gap) return false;
      gap = true;
      at++;
    }
  }
  return gap ? groups < 8 : groups == 8;
}

static bool e2b__host_is_ip(e2b_str host) {
  return e2b__host_is_ipv4(host) || e2b__host_is_ipv6(host);
}

/* A DNS name or IPv4 address: labels of letters, digits, '-' and '_', one trailing dot allowed. */
static bool e2b__host_name_ok(e2b_str host) {
  size_t i, label = 0;
  if (host.len && host.ptr[host.len - 1] == '.') host.len--;
  if (host.len == 0 || host.len > E2B__HOST_MAX) return false;
  for (i = 0; i < host.len; i++) {
    char c = host.ptr[i];
    if (c != '.' && c != '-' && c != '_' && !e2b__is_alnum(c)) return false;
    if (c == '.' && label == 0) return false;
    label = c == '.' ? 0 : label + 1;
    if (label > 63) return false;
  }
  return label > 0;
}

/* Slices of the text it was parsed from. */
typedef struct e2b__url {
  bool tls;
  bool host_is_ipv6;
  bool default_port; /* 443 with https, 80 with http, written or not */
  uint16_t port;
  e2b_str host; /* without brackets */
  e2b_str path; /* without trailing '/': "" or "/..." */
} e2b__url;

/* Reads ":port" or nothing; the default is set already. */
static bool e2b__url_port(e2b_str text, uint16_t *port) {
  uint32_t value = 0;
  size_t i;
  if (text.len == 0) return true;
  if (text.ptr[0] != ':' || text.len < 2 || text.len > 6) return false;
  for (i = 1; i < text.len; i++) {
    if (!e2b__is_digit(text.ptr[i])) return false;
    value = value * 10u + (uint32_t)(text.ptr[i] - '0');
  }
  if (value < 1 || value > 65535) return false;
  *port = (uint16_t)value;
  return true;
}

/* http(s)://host[:port][/path] and nothing else: no user, query, fragment, blanks, controls or non-ASCII. */
static bool e2b__url_parse(const char *text, e2b__url *out) {
  uint16_t standard;
  size_t i, len = strlen(text), host_len, authority;
  memset(out, 0, sizeof *out);
  for (i = 0; i < len; i++)
    if ((uint8_t)text[i] <= 0x20 || (uint8_t)text[i] >= 0x7f || strchr("?#@\\", text[i])) return false;
  out->tls = len >= 8 && e2b__str_eq_nocase(e2b__str_n(text, 8), "https://");
  if (!out->tls && (len < 7 || !e2b__str_eq_nocase(e2b__str_n(text, 7), "http://"))) return false;
  text += out->tls ? 8 : 7;
  standard = out->port = out->tls ? 443 : 80;

  authority = strcspn(text, "/");
  out->host_is_ipv6 = text[0] == '[';
  if (out->host_is_ipv6) {
    host_len = strcspn(text, "]/");
    if (text[host_len] != ']') return false;
    out->host = e2b__str_n(text + 1, host_len - 1);
    if (!e2b__host_is_ipv6(out->host)) return false;
    host_len++;
  } else {
    host_len = strcspn(text, ":/");
    out->host = e2b__str_n(text, host_len);
    if (!e2b__host_name_ok(out->host)) return false;
  }
  if (!e2b__url_port(e2b__str_n(text + host_len, authority - host_len), &out->port)) return false;
  out->default_port = out->port == standard;

  out->path = e2b__str(text + authority);
  while (out->path.len && out->path.ptr[out->path.len - 1] == '/') out->path.len--;
  return true;
}

/* What goes into the Host header: brackets for IPv6, the port unless it is the default of the scheme. */
E2B__MAYBE_UNUSED static void e2b__url_host_header(e2b__buf *out, const e2b__url *url) {
  if (url->host_is_ipv6) e2b__buf_byte(out, '[');
  e2b__buf_str(out, url->host);
  if (url->host_is_ipv6) e2b__buf_byte(out, ']');
  if (url->default_port) return;
  e2b__buf_byte(out, ':');
  e2b__buf_u64(out, url->port);
}

/* Percent-encodes `layers` times over: '%' itself becomes "%25" in every further layer. `space_as_plus` is the form
 * style, in which the innermost layer writes ' ' as '+'. */
static void e2b__url_escape_layers(e2b__buf *out, e2b_str text, int layers, bool space_as_plus) {
  static const char hex[] = "0123456789ABCDEF";
  size_t i;
  int layer;
  for (i = 0; i < text.len; i++) {
    char c = text.ptr[i];
    bool plus = space_as_plus && c == ' ';
    if (plus) c = '+';
    if (e2b__is_unreserved(c)) {
      e2b__buf_byte(out, (uint8_t)c);
      continue;
    }
    e2b__buf_byte(out, '%');
    for (layer = plus ? 2 : 1; layer < layers; layer++) e2b__buf_text(out, "25");
    e2b__buf_byte(out, (uint8_t)hex[(uint8_t)c >> 4]);
    e2b__buf_byte(out, (uint8_t)hex[(uint8_t)c & 15u]);
  }
}

/* Everything but RFC 3986 unreserved becomes %XX. */
static void e2b__url_escape(e2b__buf *out, e2b_str text) {
  e2b__url_escape_layers(out, text, 1, false);
}

/* Starts a parameter of the query: '?' when it is the first in `out`, else '&', then "name=". */
static void e2b__url_query_name(e2b__buf *out, const char *name) {
  e2b__buf_byte(out, out->len && memchr(out->data, '?', out->len) ? '&' : '?');
  e2b__buf_text(out, name);
  e2b__buf_byte(out, '=');
}

static void e2b__url_query(e2b__buf *out, const char *name, e2b_str value) {
  e2b__url_query_name(out, name);
  e2b__url_escape(out, value);
}

/* The value of the metadata= parameter: pairs "key=value" joined by '&', each half encoded on its own and then the
 * whole once more as a query value. E2B's cloud decodes three layers, others two; what they need is not the same:
 *   3: each half twice, then the whole;   2: each half once, form style (blank as '+'), then the whole. */
static void e2b__url_metadata(e2b__buf *out, e2b_kvs filter, int layers) {
  size_t i;
  bool form = layers == 2;
  for (i = 0; i < filter.count; i++) {
    if (i > 0) e2b__buf_text(out, "%26");
    e2b__url_escape_layers(out, e2b__str(filter.items[i].key), layers, form);
    e2b__buf_text(out, "%3D");
    e2b__url_escape_layers(out, e2b__str(filter.items[i].value), layers, form);
  }
}

/* Takes the number in front of *text and the dot behind it; 0 when there is none. */
static uint32_t e2b__version_part(const char **text) {
  const char *at = *text;
  uint32_t value = 0;
  for (; e2b__is_digit(*at); at++) value = value > 99999999u ? value : value * 10u + (uint32_t)(*at - '0');
  *text = *at == '.' ? at + 1 : at;
  return value;
}

/* Compares dotted numbers: -1, 0, 1. A leading 'v' and everything behind the numbers (pre-release, build) are ignored;
 * missing numbers are 0, so "" is the lowest of all. NULL is "". */
static int e2b__version_compare(const char *a, const char *b) {
  a = a ? a : "";
  b = b ? b : "";
  if (*a == 'v' || *a == 'V') a++;
  if (*b == 'v' || *b == 'V') b++;
  while (e2b__is_digit(*a) || e2b__is_digit(*b)) {
    uint32_t left = e2b__version_part(&a), right = e2b__version_part(&b);
    if (left != right) return left < right ? -1 : 1;
  }
  return 0;
}
/* ================================================================================================================== */
/* >>>> http1 */
/* ================================================================================================================== */

#include "llhttp.h"

#if LLHTTP_VERSION_MAJOR < 6
  #error "e2b.h: llhttp 6.0 or later is needed"
#endif

#define E2B__H1_MAX_FIELDS 128     /* in one response head */
#define E2B__H1_MAX_INTERIM 16     /* 1xx responses before the real one */
#define E2B__H1_FIRST_LEN 7        /* "HTTP/1." */
#define E2B__H1_STATUS_LEN 12      /* "HTTP/1.1 200" */
#define E2B__H1_CHUNK_ALLOWANCE 16 /* bytes of framing a chunk may have before they count, plus two per byte of data */

/* The header fields of one request or response, "name\0value\0" each, names in lower case. The first failure sticks in
 * text.err. */
typedef struct e2b__headers {
  e2b__buf text;
  uint32_t count;
} e2b__headers;

static void e2b__headers_init(e2b__headers *headers, e2b__mem *mem, size_t max_bytes) {
  e2b__buf_init(&headers->text, mem, max_bytes);
  headers->count = 0;
}

static void e2b__headers_free(e2b__headers *headers) {
  e2b__buf_free(&headers->text);
  headers->count = 0;
}

/* Appends bytes in lower case. */
static void e2b__headers_put_lower(e2b__headers *headers, const char *text, size_t len) {
  uint8_t *to = e2b__buf_reserve(&headers->text, len);
  size_t i;
  if (!to) return;
  for (i = 0; i < len; i++) to[i] = (uint8_t)e2b__ascii_lower(text[i]);
  headers->text.len += len;
}

/* What could end a line or a field early is refused here (E2B_ERR_INVALID_ARGUMENT), so nothing can be smuggled into a
 * request head, whoever forgot to check. */
static void e2b__headers_add(e2b__headers *headers, e2b_str name, e2b_str value) {
  size_t i;
  bool ok = e2b__header_name_ok(name);
  for (i = 0; i < value.len; i++) ok = ok && !e2b__is_control(value.ptr[i]);
  if (!ok && !headers->text.err) headers->text.err = E2B_ERR_INVALID_ARGUMENT;
  value = e2b__str_trim(value);
  if (!e2b__buf_reserve(&headers->text, name.len + value.len + 2)) return;
  e2b__headers_put_lower(headers, name.ptr, name.len);
  e2b__buf_byte(&headers->text, 0);
  e2b__buf_str(&headers->text, value);
  e2b__buf_byte(&headers->text, 0);
  headers->count++;
}

/* Walks the list: start with *cursor = 0; false at its end. */
static bool e2b__headers_next(const e2b__headers *headers, size_t *cursor, e2b_str *name, e2b_str *value) {
  if (!headers->text.data || *cursor >= headers->text.len) return false;
  *name = e2b__str((const char *)headers->text.data + *cursor);
  *value = e2b__str(name->ptr + name->len + 1);
  *cursor += name->len + value->len + 2;
  return true;
}

/* The first value of that name (in lower case), or NULL. */
static const char *e2b__headers_get(const e2b__headers *headers, const char *name) {
  e2b_str field, value;
  size_t cursor = 0;
  while (e2b__headers_next(headers, &cursor, &field, &value))
    if (e2b__str_eq(field, name)) return value.ptr;
  return NULL;
}

/* Removes all fields of that name, in any case. True when there were some. */
static bool e2b__headers_remove(e2b__headers *headers, const char *name) {
  e2b_str field, old;
  size_t from = 0, to = 0;
  uint32_t count = headers->count;
  while (e2b__headers_next(headers, &to, &field, &old)) {
    if (e2b__str_eq_nocase(field, name)) {
      memmove(headers->text.data + from, headers->text.data + to, headers->text.len - to);
      headers->text.len -= to - from;
      headers->count--;
      to = from;
    }
    from = to;
  }
  return headers->count != count;
}

/* Replaces all fields of that name, in any case, by one. */
static void e2b__headers_set(e2b__headers *headers, const char *name, e2b_str value) {
  (void)e2b__headers_remove(headers, name);
  e2b__headers_add(headers, e2b__str(name), value);
}

/* Whether a comma-separated list, perhaps over several fields, has that member. */
static bool e2b__headers_has_token(const e2b__headers *headers, const char *name, const char *token) {
  e2b_str field, value, part;
  size_t cursor = 0;
  while (e2b__headers_next(headers, &cursor, &field, &value)) {
    if (!e2b__str_eq(field, name)) continue;
    for (;;) {
      part = e2b__str_n(value.ptr, strcspn(value.ptr, ","));
      if (e2b__str_eq_nocase(e2b__str_trim(part), token)) return true;
      if (part.len == value.len) break;
      value = e2b__str_n(value.ptr + part.len + 1, value.len - part.len - 1);
    }
  }
  return false;
}

/* Retry-After in seconds, as milliseconds, at most a day. Dates and anything else are 0: not given. */
static uint32_t e2b__http_retry_after_ms(const char *value) {
  const uint32_t day = 24u * 60u * 60u;
  e2b_str text = e2b__str_trim(e2b__str(value));
  uint32_t seconds = 0;
  size_t i;
  for (i = 0; i < text.len; i++) {
    if (!e2b__is_digit(text.ptr[i])) return 0;
    seconds = E2B__MIN(seconds * 10u + (uint32_t)(text.ptr[i] - '0'), day);
  }
  return seconds * 1000u;
}

/* The response parser of one HTTP/1.1 connection.
 *
 * llhttp parses; but which bytes are lines and which are data is decided here, and llhttp is fed accordingly: either
 * the content of one line, then a CR LF of our own; or data, no more than the chunk or content-length has left:
 *   - llhttp 6 to 8 built without LLHTTP_STRICT_MODE (the default, and a header cannot tell) take a lone CR, a bare LF
 *     or any byte for a line end in places. Here a line ends with CR LF or the response is refused.
 *   - The versions differ in what they take: folded fields, quoted chunk extensions, framing fields in trailers. So no
 *     line with a blank in front gets as far as llhttp; chunk extensions and trailers are checked, counted and dropped.
 *   - llhttp has no limits, and tells neither where the head ends nor how far it got before an error.
 * After each line the two must agree whether the head, a chunk or the message has ended; else the response is refused.
 * Every message gets a fresh parser, so nothing is carried from one to the next. */
typedef enum e2b__h1_part {
  E2B__H1_FIRST,      /* the first bytes, which must be "HTTP/1." */
  E2B__H1_STATUS,     /* the rest of the status line */
  E2B__H1_FIELDS,
  E2B__H1_DATA,       /* h1->left bytes of body or chunk, or all until the connection ends */
  E2B__H1_CHUNK_SIZE, /* the line in front of a chunk */
  E2B__H1_CHUNK_END,  /* the empty line behind it */
  E2B__H1_TRAILERS
} e2b__h1_part;

typedef enum e2b__h1_extension { E2B__H1_NO_EXTENSION, E2B__H1_BLANKS, E2B__H1_EXTENSION } e2b__h1_extension;

/* Called from e2b__h1_feed. An error returned aborts it with that code. They must not free or begin the parser. */
typedef struct e2b__h1_events {
  e2b_err (*on_head)(void *owner, int status, const e2b__headers *headers); /* of the final response only */
  e2b_err (*on_body)(void *owner, const uint8_t *data, size_t len);         /* any split, len > 0 */
} e2b__h1_events;

typedef struct e2b__h1 {
  /* for the caller to read */
  bool started;    /* a byte of this response was seen, be it of a 1xx */
  bool head_done;  /* on_head was called */
  bool complete;
  bool keep_alive; /* valid when complete: the connection may be used again, if nothing is left over */
  int status;      /* valid when head_done */
  const char *detail; /* why it failed, static text */
  e2b__headers headers; /* valid from on_head until the next begin */
  uint8_t first_bytes[32]; /* what the peer began with, when that was not HTTP */
  size_t first_len;
  /* the rest is private */
  const e2b__h1_events *events;
  void *owner;
  llhttp_settings_t settings;
  llhttp_t parser;
  e2b_err err;
  e2b__h1_part part;
  e2b__h1_extension extension; /* of the chunk-size line being read */
  bool cr, colon;              /* of the line being read: a CR was its last byte, it has a colon */
  bool head_request, connect_request;
  bool no_body, chunked, until_close, persistent;
  bool fired, message_done;    /* llhttp reported the end of a head or chunk size; of the message */
  uint32_t interim;
  size_t line_len;
  size_t value_start;          /* of the field being read, in headers.text */
  size_t framing, max_framing; /* bytes of head, chunk lines or trailers so far */
  uint64_t left;               /* of the data */
} e2b__h1;

static void e2b__h1_fail(e2b__h1 *h1, e2b_err err, const char *detail) {
  if (h1->err) return;
  h1->err = err;
  h1->detail = detail;
}

/* Ends a callback of llhttp: any failure so far stops it. The stored fields are shorter than the head they came in, so
 * its limit is met first. */
static int e2b__h1_result(e2b__h1 *h1) {
  if (h1->headers.text.err) e2b__h1_fail(h1, h1->headers.text.err, "out of memory for the response head");
  return h1->err ? -1 : 0;
}

static int e2b__h1_on_field(llhttp_t *parser, const char *at, size_t len) {
  e2b__h1 *h1 = (e2b__h1 *)parser->data;
  e2b__headers_put_lower(&h1->headers, at, len);
  return e2b__h1_result(h1);
}

static int e2b__h1_on_field_end(llhttp_t *parser) {
  e2b__h1 *h1 = (e2b__h1 *)parser->data;
  e2b__buf_byte(&h1->headers.text, 0);
  h1->value_start = h1->headers.text.len;
  return e2b__h1_result(h1);
}

static int e2b__h1_on_value(llhttp_t *parser, const char *at, size_t len) {
  e2b__h1 *h1 = (e2b__h1 *)parser->data;
  e2b__buf_put(&h1->headers.text, at, len);
  return e2b__h1_result(h1);
}

static int e2b__h1_on_value_end(llhttp_t *parser) {
  e2b__h1 *h1 = (e2b__h1 *)parser->data;
  e2b__buf *text = &h1->headers.text;
  while (text->len > h1->value_start && e2b__is_blank((char)text->data[text->len - 1])) text->len--;
  e2b__buf_byte(text, 0);
  if (++h1->headers.count > E2B__H1_MAX_FIELDS)
    e2b__h1_fail(h1, E2B_ERR_LIMIT, "the response has too many header fields");
  return e2b__h1_result(h1);
}

/* Only what every version of llhttp and every proxy on the way understands alike: one content-length of digits, or one
 * transfer-encoding that is "chunked", never both. */
static void e2b__h1_check_framing(e2b__h1 *h1) {
  uint32_t lengths = 0, encodings = 0;
  e2b_str name, value;
  size_t cursor = 0;
  bool ok = true;
  while (e2b__headers_next(&h1->headers, &cursor, &name, &value)) {
    if (e2b__str_eq(name, "content-length")) {
      lengths++;
      ok = ok && value.len > 0 && strspn(value.ptr, "0123456789") == value.len;
    } else if (e2b__str_eq(name, "transfer-encoding")) {
      encodings++;
      ok = ok && e2b__str_eq_nocase(value, "chunked");
    }
  }
  h1->chunked = encodings > 0;
  h1->until_close = lengths + encodings == 0;
  if (!ok || lengths + encodings > 1 || h1->chunked != ((h1->parser.flags & F_CHUNKED) != 0))
    e2b__h1_fail(h1, E2B_ERR_PROTOCOL, "invalid or conflicting content-length and transfer-encoding");
}

static int e2b__h1_on_head_end(llhttp_t *parser) {
  e2b__h1 *h1 = (e2b__h1 *)parser->data;
  int status = parser->status_code;
  bool http_1_0 = parser->http_minor == 0;
  h1->fired = true;
  h1->status = status;
  if (status == 101)
    e2b__h1_fail(h1, E2B_ERR_PROTOCOL, "the server switched protocols (101), which it was not asked to");
  else if (status < 200 && ++h1->interim > E2B__H1_MAX_INTERIM)
    e2b__h1_fail(h1, E2B_ERR_PROTOCOL, "too many interim (1xx) responses");
  e2b__h1_check_framing(h1);
  if (e2b__h1_result(h1)) return -1;

  h1->no_body = status < 200 || status == 204 || status == 304 || h1->head_request ||
                (h1->connect_request && status < 300);
  h1->persistent = !e2b__headers_has_token(&h1->headers, "connection", "close") &&
                   (!http_1_0 || (e2b__headers_has_token(&h1->headers, "connection", "keep-alive") && !h1->chunked));
  return h1->no_body ? 1 : 0;
}

static int e2b__h1_on_data(llhttp_t *parser, const char *at, size_t len) {
  e2b__h1 *h1 = (e2b__h1 *)parser->data;
  e2b_err err = len ? h1->events->on_body(h1->owner, (const uint8_t *)at, len) : E2B_OK;
  if (err) e2b__h1_fail(h1, err, "stopped by the receiver of the body");
  return h1->err ? -1 : 0;
}

static int e2b__h1_on_chunk_size(llhttp_t *parser) {
  e2b__h1 *h1 = (e2b__h1 *)parser->data;
  h1->fired = true;
  h1->left = parser->content_length;
  return 0;
}

static int e2b__h1_on_message_end(llhttp_t *parser) {
  e2b__h1 *h1 = (e2b__h1 *)parser->data;
  h1->message_done = true;
  return HPE_PAUSED;
}

/* A fresh parser for the next message on the wire. */
static void e2b__h1_restart(e2b__h1 *h1) {
  llhttp_init(&h1->parser, HTTP_RESPONSE, &h1->settings);
  h1->parser.data = h1;
  h1->headers.text.len = 0;
  h1->headers.count = 0;
  h1->part = E2B__H1_FIRST;
  h1->first_len = 0;
  h1->line_len = h1->framing = 0;
  h1->left = 0;
  h1->extension = E2B__H1_NO_EXTENSION;
  h1->cr = h1->colon = h1->fired = h1->message_done = false;
}

/* Before each response. The struct may be moved between messages, not within one. */
static void e2b__h1_begin(e2b__h1 *h1, bool head_request, bool connect_request) {
  h1->started = h1->head_done = h1->complete = h1->keep_alive = false;
  h1->status = 0;
  h1->detail = NULL;
  h1->err = h1->headers.text.err = E2B_OK;
  h1->interim = 0;
  h1->head_request = head_request;
  h1->connect_request = connect_request;
  e2b__h1_restart(h1);
}

/* Once per connection; takes no memory before the first header field arrives. `events` must outlive the parser. */
static void e2b__h1_init(e2b__h1 *h1, e2b__mem *mem, uint32_t max_header_bytes, const e2b__h1_events *events,
                         void *owner) {
  memset(h1, 0, sizeof *h1);
  h1->events = events;
  h1->owner = owner;
  h1->max_framing = max_header_bytes;
  e2b__headers_init(&h1->headers, mem, max_header_bytes);
  llhttp_settings_init(&h1->settings);
  h1->settings.on_header_field = e2b__h1_on_field;
  h1->settings.on_header_field_complete = e2b__h1_on_field_end;
  h1->settings.on_header_value = e2b__h1_on_value;
  h1->settings.on_header_value_complete = e2b__h1_on_value_end;
  h1->settings.on_headers_complete = e2b__h1_on_head_end;
  h1->settings.on_body = e2b__h1_on_data;
  h1->settings.on_chunk_header = e2b__h1_on_chunk_size;
  h1->settings.on_message_complete = e2b__h1_on_message_end;
  e2b__h1_begin(h1, false, false);
}

static void e2b__h1_free(e2b__h1 *h1) {
  e2b__headers_free(&h1->headers);
}

/* llhttp's own codes differ by version: group them by what the user can make of them. */
static const char *e2b__h1_explain(const e2b__h1 *h1, llhttp_errno_t code) {
  switch (code) {
    case HPE_INVALID_CONTENT_LENGTH:
    case HPE_UNEXPECTED_CONTENT_LENGTH:
    case HPE_INVALID_TRANSFER_ENCODING:
      return "invalid or conflicting content-length and transfer-encoding";
    default:
      break;
  }
  if (h1->part <= E2B__H1_STATUS) return "malformed status line";
  return h1->part == E2B__H1_FIELDS ? "malformed header field" : "malformed chunk";
}

/* Zero bytes are never given to llhttp: to it that can mean the end of the connection. */
static bool e2b__h1_execute(e2b__h1 *h1, const void *data, size_t len) {
  llhttp_errno_t code;
  if (len == 0) return true;
  code = llhttp_execute(&h1->parser, (const char *)data, len);
  if (code != HPE_OK && !(code == HPE_PAUSED && h1->message_done))
    e2b__h1_fail(h1, E2B_ERR_PROTOCOL, e2b__h1_explain(h1, code));
  return h1->err == E2B_OK;
}

/* What a peer that does not speak HTTP/1 probably is. */
static const char *e2b__h1_explain_first(const e2b__h1 *h1) {
  const uint8_t *first = h1->first_bytes;
  if (h1->first_len >= 4 && first[0] == 0 && first[1] == 0 && (first[3] == 4 || first[3] == 7))
    return "the server answered with HTTP/2 frames: it does not speak HTTP/1.1 on this port";
  if (h1->first_len >= 3 && (first[0] == 0x15 || first[0] == 0x16) && first[1] == 3)
    return "the server answered with TLS: use https:// for this port";
  if (h1->first_len >= 5 && memcmp(first, "HTTP/", 5) == 0) return "not HTTP/1.0 or HTTP/1.1";
  return "the answer is not HTTP: another service listens on this port";
}

/* Collects "HTTP/1." before llhttp sees anything: some versions also take HTTP/0.9, HTTP/2.0, RTSP/ and ICE/, or skip
 * empty lines in front. */
static size_t e2b__h1_first(e2b__h1 *h1, const uint8_t *data, size_t len) {
  size_t n = E2B__MIN(len, E2B__H1_FIRST_LEN - h1->first_len), more;
  memcpy(h1->first_bytes + h1->first_len, data, n);
  h1->first_len += n;
  if (h1->first_len < E2B__H1_FIRST_LEN) return n;
  if (memcmp(h1->first_bytes, "HTTP/1.", E2B__H1_FIRST_LEN) != 0) {
    more = E2B__MIN(len - n, sizeof h1->first_bytes - h1->first_len);
    if (more) memcpy(h1->first_bytes + h1->first_len, data + n, more);
    h1->first_len += more;
    e2b__h1_fail(h1, E2B_ERR_PROTOCOL, e2b__h1_explain_first(h1));
  } else if (e2b__h1_execute(h1, h1->first_bytes, E2B__H1_FIRST_LEN)) {
    h1->part = E2B__H1_STATUS;
    h1->line_len = h1->framing = E2B__H1_FIRST_LEN;
  }
  return n;
}

/* "HTTP/1.1 200 ...": one digit of version, three of status 100 to 599. The versions of llhttp differ here too. */
static bool e2b__h1_status_byte_ok(size_t at, char c) {
  switch (at) {
    case 7: return c == '0' || c == '1';
    case 9: return c >= '1' && c <= '5';
    case 10:
    case 11: return e2b__is_digit(c);
    case 8:
    case 12: return c == ' ';
    default: return true;
  }
}

/* Takes note of the next byte of a line. Returns why it may not stand there, or NULL. */
static const char *e2b__h1_line_byte(e2b__h1 *h1, char c) {
  if (h1->cr != (c == '\n')) return "a line does not end with CR LF";
  if (c == '\r' || c == '\n') {
    h1->cr = c == '\r';
    return NULL;
  }
  if (e2b__is_control(c)) return "control character in a line";
  if (h1->part == E2B__H1_STATUS && !e2b__h1_status_byte_ok(h1->line_len, c)) return "malformed status line";
  if (h1->part == E2B__H1_CHUNK_END) return "a chunk is longer than its size";
  if (h1->part == E2B__H1_FIELDS || h1->part == E2B__H1_TRAILERS) {
    if (!h1->colon && c == ':' && h1->line_len > 0)
      h1->colon = true;
    else if (!h1->colon && !e2b__is_token_char(c))
      return h1->line_len > 0 ? "malformed header field" : "header field without a name, or folded";
  }
  if (h1->part == E2B__H1_CHUNK_SIZE) {
    if (h1->extension != E2B__H1_EXTENSION && c == ';')
      h1->extension = E2B__H1_EXTENSION;
    else if (h1->extension == E2B__H1_NO_EXTENSION && e2b__is_blank(c))
      h1->extension = E2B__H1_BLANKS;
    else if (h1->extension == E2B__H1_BLANKS && !e2b__is_blank(c))
      return "malformed chunk";
  }
  h1->line_len++;
  return NULL;
}

/* The message has ended by our account; llhttp must say the same. */
static void e2b__h1_message_end(e2b__h1 *h1) {
  if (!h1->message_done) {
    e2b__h1_fail(h1, E2B_ERR_PROTOCOL, "the end of the response is not where it should be");
  } else if (!h1->head_done) {
    e2b__h1_restart(h1);
  } else {
    h1->complete = true;
    h1->keep_alive = h1->persistent && !h1->until_close;
  }
}

static void e2b__h1_head_end(e2b__h1 *h1) {
  e2b_err err;
  if (h1->status >= 200) {
    h1->head_done = true;
    err = h1->events->on_head(h1->owner, h1->status, &h1->headers);
    if (err) e2b__h1_fail(h1, err, "stopped by the receiver of the head");
    if (h1->err) return;
  }
  h1->framing = 0;
  h1->until_close = h1->until_close && !h1->no_body;
  h1->left = h1->until_close ? UINT64_MAX : h1->chunked ? 0 : h1->parser.content_length;
  if (h1->no_body || (!h1->chunked && h1->left == 0))
    e2b__h1_message_end(h1);
  else
    h1->part = h1->chunked ? E2B__H1_CHUNK_SIZE : E2B__H1_DATA;
}

/* Framing that is small beside the data it carries does not count, so that a stream may run for ever, but a peer cannot
 * keep us busy with extensions. */
static void e2b__h1_chunk_begin(e2b__h1 *h1) {
  uint64_t allowance = E2B__H1_CHUNK_ALLOWANCE + 2u * E2B__MIN(h1->left, (uint64_t)h1->max_framing);
  h1->framing -= (size_t)E2B__MIN(allowance, (uint64_t)h1->framing);
  h1->extension = E2B__H1_NO_EXTENSION;
  h1->part = h1->left ? E2B__H1_DATA : E2B__H1_TRAILERS;
  if (!h1->left) h1->framing = 0;
}

/* CR LF was read. Trailers are dropped: nothing here needs them, and their fields must not be taken for the head's. */
static void e2b__h1_line_end(e2b__h1 *h1) {
  size_t line_len = h1->line_len;
  bool empty = line_len == 0, is_field = h1->colon;
  bool milestone = h1->part == E2B__H1_CHUNK_SIZE || (h1->part == E2B__H1_FIELDS && empty);
  h1->line_len = 0;
  h1->colon = h1->fired = false;
  if (h1->part == E2B__H1_STATUS && line_len < E2B__H1_STATUS_LEN)
    e2b__h1_fail(h1, E2B_ERR_PROTOCOL, "malformed status line");
  if ((h1->part == E2B__H1_FIELDS || h1->part == E2B__H1_TRAILERS) && !empty && !is_field)
    e2b__h1_fail(h1, E2B_ERR_PROTOCOL, "malformed header field");
  if (h1->err || (h1->part == E2B__H1_TRAILERS && !empty)) return;
  if (!e2b__h1_execute(h1, "\r\n", 2)) return;
  if (h1->fired != milestone) {
    e2b__h1_fail(h1, E2B_ERR_PROTOCOL, e2b__h1_explain(h1, HPE_OK));
    return;
  }
  if (h1->part == E2B__H1_STATUS)
    h1->part = E2B__H1_FIELDS;
  else if (h1->part == E2B__H1_CHUNK_END)
    h1->part = E2B__H1_CHUNK_SIZE;
  else if (h1->part == E2B__H1_CHUNK_SIZE)
    e2b__h1_chunk_begin(h1);
  else if (h1->part == E2B__H1_TRAILERS)
    e2b__h1_message_end(h1);
  else if (empty)
    e2b__h1_head_end(h1);
}

/* Reads on in the line under way, at most to its end. What llhttp says about bytes in front of one that is refused here
 * comes first, so that the outcome does not depend on how the bytes are split. */
static size_t e2b__h1_line(e2b__h1 *h1, const uint8_t *data, size_t len) {
  size_t at = 0, content = 0;
  const char *why = NULL;
  e2b_err err = E2B_ERR_PROTOCOL;
  bool end = false;
  while (at < len && !end) {
    if (h1->framing++ == h1->max_framing) {
      err = E2B_ERR_LIMIT;
      why = h1->head_done ? "too much chunk framing or trailers" : "the response head is too long";
    } else {
      why = e2b__h1_line_byte(h1, (char)data[at]);
    }
    if (why) break;
    end = data[at++] == '\n';
    if (!h1->cr && !end && h1->extension == E2B__H1_NO_EXTENSION) content = at;
  }
  if (h1->part != E2B__H1_TRAILERS) (void)e2b__h1_execute(h1, data, content);
  if (why) e2b__h1_fail(h1, err, why);
  if (end && !h1->err) e2b__h1_line_end(h1);
  return at;
}

static size_t e2b__h1_data(e2b__h1 *h1, const uint8_t *data, size_t len) {
  size_t n = (size_t)E2B__MIN((uint64_t)len, h1->left);
  if (!e2b__h1_execute(h1, data, n)) return n;
  if (!h1->until_close) h1->left -= n;
  if (h1->left == 0 && h1->chunked)
    h1->part = E2B__H1_CHUNK_END;
  else if (h1->left == 0)
    e2b__h1_message_end(h1);
  return n;
}

/* Takes bytes as they arrive, in any split, and stops behind the message: *used < len then says that the peer sent
 * more. E2B_OK; E2B_ERR_PROTOCOL, _LIMIT or _NO_MEMORY with h1->detail; or the code of an event. Failures stick. */
static e2b_err e2b__h1_feed(e2b__h1 *h1, const uint8_t *data, size_t len, size_t *used) {
  size_t at = 0;
  while (at < len && !h1->complete && !h1->err) {
    h1->started = true;
    if (h1->part == E2B__H1_FIRST)
      at += e2b__h1_first(h1, data + at, len - at);
    else if (h1->part == E2B__H1_DATA)
      at += e2b__h1_data(h1, data + at, len - at);
    else
      at += e2b__h1_line(h1, data + at, len - at);
  }
  *used = at;
  return h1->err;
}

/* The peer closed. E2B_OK and complete when that was the end of the body (or the message had ended before);
 * E2B_ERR_CLOSED when nothing of an answer had arrived; E2B_ERR_TRUNCATED otherwise. */
static e2b_err e2b__h1_finish(e2b__h1 *h1) {
  if (h1->err || h1->complete) return h1->err;
  if (h1->part == E2B__H1_DATA && h1->until_close) {
    (void)llhttp_finish(&h1->parser);
    e2b__h1_message_end(h1);
  } else if (!h1->started) {
    e2b__h1_fail(h1, E2B_ERR_CLOSED, "the server closed the connection without an answer");
  } else if (h1->part == E2B__H1_FIRST && memcmp(h1->first_bytes, "HTTP/1.", h1->first_len) != 0) {
    e2b__h1_fail(h1, E2B_ERR_PROTOCOL, e2b__h1_explain_first(h1));
  } else if (h1->part == E2B__H1_FIRST || !h1->head_done) {
    e2b__h1_fail(h1, E2B_ERR_TRUNCATED, "the server closed the connection within the response head");
  } else if (h1->chunked) {
    e2b__h1_fail(h1, E2B_ERR_TRUNCATED, h1->part == E2B__H1_DATA
                                            ? "the server closed the connection within a chunk of the body"
                                            : "the server closed the connection before the last chunk of the body");
  } else {
    e2b__h1_fail(h1, E2B_ERR_TRUNCATED, "the server closed the connection before content-length bytes of the body");
  }
  return h1->err;
}

/* Nothing that could end the request line or the Host field early. */
static bool e2b__h1_target_ok(e2b_str text) {
  size_t i;
  for (i = 0; i < text.len; i++)
    if ((uint8_t)text.ptr[i] <= 0x20 || (uint8_t)text.ptr[i] >= 0x7f) return false;
  return text.len > 0;
}

#define E2B__BODY_CHUNKED (-1)
#define E2B__BODY_NONE (-2)

/* Writes a request head. `headers` (NULL: none) holds neither host nor framing fields. body_len >= 0 is the
 * content-length, 0 for an empty body where one is expected. What is not fit for a head gives E2B_ERR_INVALID_ARGUMENT
 * in out->err; so does a failure in headers->text.err. */
static void e2b__h1_write_head(e2b__buf *out, const char *method, e2b_str target, e2b_str host_header,
                               const e2b__headers *headers, int64_t body_len) {
  e2b_str name, value;
  size_t cursor = 0;
  if (!out->err && headers && headers->text.err) out->err = headers->text.err;
  if (!out->err &&
      (!e2b__header_name_ok(e2b__str(method)) || !e2b__h1_target_ok(target) || !e2b__h1_target_ok(host_header)))
    out->err = E2B_ERR_INVALID_ARGUMENT;
  e2b__buf_text(out, method);
  e2b__buf_byte(out, ' ');
  e2b__buf_str(out, target);
  e2b__buf_text(out, " HTTP/1.1\r\nhost: ");
  e2b__buf_str(out, host_header);
  while (headers && e2b__headers_next(headers, &cursor, &name, &value)) {
    e2b__buf_text(out, "\r\n");
    e2b__buf_str(out, name);
    e2b__buf_text(out, ": ");
    e2b__buf_str(out, value);
  }
  if (body_len >= 0) {
    e2b__buf_text(out, "\r\ncontent-length: ");
    e2b__buf_i64(out, body_len);
  } else if (body_len == E2B__BODY_CHUNKED) {
    e2b__buf_text(out, "\r\ntransfer-encoding: chunked");
  }
  e2b__buf_text(out, "\r\n\r\n");
}

/* What stands in front of `len` bytes of data, which the caller follows with CR LF; with 0, the end of the body. */
E2B__MAYBE_UNUSED static void e2b__h1_write_chunk_head(e2b__buf *out, size_t len) {
  char text[2 * sizeof len + 3];
  size_t at = sizeof text;
  if (len == 0) {
    e2b__buf_text(out, "0\r\n\r\n");
    return;
  }
  text[--at] = '\n';
  text[--at] = '\r';
  for (; len; len >>= 4) text[--at] = "0123456789abcdef"[len & 15u];
  e2b__buf_put(out, text + at, sizeof text - at);
}
#if !defined(E2B_NO_HTTP2)
/* ================================================================================================================== */
/* >>>> hpack */
/* ================================================================================================================== */

/* Header compression of HTTP/2, RFC 7541. Tables keep the size every peer starts with: to lower ours is not
 * interoperable, to raise it is not worth the memory. */
#define E2B__HPACK_TABLE 4096
#define E2B__HPACK_OVERHEAD 32 /* what an entry counts beyond its text */
#define E2B__HPACK_ENTRIES (E2B__HPACK_TABLE / E2B__HPACK_OVERHEAD)

/* Appendix A, index 1 first. */
static const e2b_kv e2b__hpack_static[] = {
  { ":authority", "" }, { ":method", "GET" }, { ":method", "POST" }, { ":path", "/" }, { ":path", "/index.html" },
  { ":scheme", "http" }, { ":scheme", "https" }, { ":status", "200" }, { ":status", "204" }, { ":status", "206" },
  { ":status", "304" }, { ":status", "400" }, { ":status", "404" }, { ":status", "500" }, { "accept-charset", "" },
  { "accept-encoding", "gzip, deflate" }, { "accept-language", "" }, { "accept-ranges", "" }, { "accept", "" },
  { "access-control-allow-origin", "" }, { "age", "" }, { "allow", "" }, { "authorization", "" },
  { "cache-control", "" }, { "content-disposition", "" }, { "content-encoding", "" }, { "content-language", "" },
  { "content-length", "" }, { "content-location", "" }, { "content-range", "" }, { "content-type", "" },
  { "cookie", "" }, { "date", "" }, { "etag", "" }, { "expect", "" }, { "expires", "" }, { "from", "" },
  { "host", "" }, { "if-match", "" }, { "if-modified-since", "" }, { "if-none-match", "" }, { "if-range", "" },
  { "if-unmodified-since", "" }, { "last-modified", "" }, { "link", "" }, { "location", "" }, { "max-forwards", "" },
  { "proxy-authenticate", "" }, { "proxy-authorization", "" }, { "range", "" }, { "referer", "" }, { "refresh", "" },
  { "retry-after", "" }, { "server", "" }, { "set-cookie", "" }, { "strict-transport-security", "" },
  { "transfer-encoding", "" }, { "user-agent", "" }, { "vary", "" }, { "via", "" }, { "www-authenticate", "" }
};
#define E2B__HPACK_STATIC ((uint32_t)E2B__COUNT(e2b__hpack_static))

/* Appendix B is a canonical Huffman code: the octets in the order of their codes and how many codes there are of each
 * length say it all. The last code of 30 bits is EOS. */
static const uint8_t e2b__huffman_octets[256] = {
  48, 49, 50, 97, 99, 101, 105, 111, 115, 116, 32, 37, 45, 46, 47, 51, 52, 53, 54, 55, 56, 57, 61, 65, 95, 98, 100,
  102, 103, 104, 108, 109, 110, 112, 114, 117, 58, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81,
  82, 83, 84, 85, 86, 87, 89, 106, 107, 113, 118, 119, 120, 121, 122, 38, 42, 44, 59, 88, 90, 33, 34, 40, 41, 63, 39,
  43, 124, 35, 62, 0, 36, 64, 91, 93, 126, 94, 125, 60, 96, 123, 92, 195, 208, 128, 130, 131, 162, 184, 194, 224,
  226, 153, 161, 167, 172, 176, 177, 179, 209, 216, 217, 227, 229, 230, 129, 132, 133, 134, 136, 146, 154, 156, 160,
  163, 164, 169, 170, 173, 178, 181, 185, 186, 187, 189, 190, 196, 198, 228, 232, 233, 1, 135, 137, 138, 139, 140,
  141, 143, 147, 149, 150, 151, 152, 155, 157, 158, 165, 166, 168, 174, 175, 180, 182, 183, 188, 191, 197, 231, 239,
  9, 142, 144, 145, 148, 159, 171, 206, 215, 225, 236, 237, 199, 207, 234, 235, 192, 193, 200, 201, 202, 205, 210,
  213, 218, 219, 238, 240, 242, 243, 255, 203, 204, 211, 212, 214, 221, 222, 223, 241, 244, 245, 246, 247, 248, 250,
  251, 252, 253, 254, 2, 3, 4, 5, 6, 7, 8, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 28, 29, 30,
  31, 127, 220, 249, 10, 13, 22
};
#define E2B__HUFFMAN_BITS 30
static const uint8_t e2b__huffman_counts[E2B__HUFFMAN_BITS + 1] = { 0, 0, 0, 0,  0,  10, 26, 32, 6,  0,  5, 3, 2, 6, 2, 3,
                                                                   0, 0, 0, 3,  8,  13, 26, 29, 12, 4,  15, 19, 29, 0, 4 };

/* Decodes one string. What follows the last code must be less than an octet of ones. */
static e2b_err e2b__huffman_decode(e2b__buf *out, const uint8_t *data, size_t len) {
  uint32_t code = 0, first = 0, index = 0;
  unsigned bits = 0;
  bool ones = true;
  size_t at;
  for (at = 0; at < len * 8; at++) {
    uint32_t bit = data[at / 8] >> (7 - at % 8) & 1u, count;
    code = code << 1 | bit;
    first <<= 1;
    ones = ones && bit;
    if (++bits > E2B__HUFFMAN_BITS) return E2B_ERR_PROTOCOL;
    count = e2b__huffman_counts[bits];
    if (code - first < count) {
      if (index + (code - first) >= sizeof e2b__huffman_octets) return E2B_ERR_PROTOCOL; /* EOS */
      e2b__buf_byte(out, e2b__huffman_octets[index + (code - first)]);
      code = first = index = 0;
      bits = 0;
      ones = true;
    } else {
      index += count;
      first += count;
    }
  }
  return bits < 8 && ones ? out->err : E2B_ERR_PROTOCOL;
}

/* The dynamic table of one direction: the texts of its entries, oldest first, without gaps. */
typedef struct e2b__hpack_table {
  uint32_t count;
  uint32_t text_len;
  uint32_t limit;    /* in force now, at most E2B__HPACK_TABLE */
  struct { uint16_t name_len, value_len; } entries[E2B__HPACK_ENTRIES];
  char text[E2B__HPACK_TABLE];
} e2b__hpack_table;

static uint32_t e2b__hpack_size(const e2b__hpack_table *table) {
  return table->text_len + table->count * E2B__HPACK_OVERHEAD;
}

/* Drops the oldest entries until the table is no larger than `size`. */
static void e2b__hpack_shrink(e2b__hpack_table *table, uint32_t size) {
  uint32_t entries = 0, text = 0;
  if (e2b__hpack_size(table) <= size) return;
  while (table->text_len - text + (table->count - entries) * E2B__HPACK_OVERHEAD > size) {
    text += (uint32_t)table->entries[entries].name_len + table->entries[entries].value_len;
    entries++;
  }
  table->count -= entries;
  table->text_len -= text;
  memmove(table->entries, table->entries + entries, table->count * sizeof table->entries[0]);
  memmove(table->text, table->text + text, table->text_len);
}

/* name and value must not point into the table. */
static void e2b__hpack_insert(e2b__hpack_table *table, e2b_str name, e2b_str value) {
  if (name.len + value.len + E2B__HPACK_OVERHEAD > table->limit) { /* is no error, and empties the table */
    e2b__hpack_shrink(table, 0);
    return;
  }
  e2b__hpack_shrink(table, table->limit - (uint32_t)(name.len + value.len + E2B__HPACK_OVERHEAD));
  if (name.len) memcpy(table->text + table->text_len, name.ptr, name.len);
  if (value.len) memcpy(table->text + table->text_len + name.len, value.ptr, value.len);
  table->entries[table->count].name_len = (uint16_t)name.len;
  table->entries[table->count].value_len = (uint16_t)value.len;
  table->count++;
  table->text_len += (uint32_t)(name.len + value.len);
}

/* The entry of that index: static ones from 1, dynamic ones behind them, the newest first. */
static bool e2b__hpack_get(const e2b__hpack_table *table, uint32_t index, e2b_str *name, e2b_str *value) {
  const char *end = table->text + table->text_len;
  uint32_t at = table->count;
  if (index == 0) return false;
  if (index <= E2B__HPACK_STATIC) {
    *name = e2b__str(e2b__hpack_static[index - 1].key);
    *value = e2b__str(e2b__hpack_static[index - 1].value);
    return true;
  }
  index -= E2B__HPACK_STATIC;
  if (index > table->count) return false;
  for (; index > 0; index--) {
    at--;
    end -= table->entries[at].name_len + table->entries[at].value_len;
  }
  *name = e2b__str_n(end, table->entries[at].name_len);
  *value = e2b__str_n(end + name->len, table->entries[at].value_len);
  return true;
}

/* An integer with a prefix of that many bits; at most 32 bits, in at most six octets. */
static bool e2b__hpack_get_int(const uint8_t **at, const uint8_t *end, unsigned prefix, uint32_t *out) {
  uint32_t mask = (1u << prefix) - 1u;
  uint64_t value;
  unsigned shift = 0;
  uint8_t octet;
  if (*at == end) return false;
  value = *(*at)++ & mask;
  if (value == mask) {
    do {
      if (*at == end || shift > 28) return false;
      octet = *(*at)++;
      value += (uint64_t)(octet & 0x7fu) << shift;
      shift += 7;
    } while (octet & 0x80u);
  }
  *out = (uint32_t)value;
  return value <= UINT32_MAX;
}

static void e2b__hpack_put_int(e2b__buf *out, uint8_t flags, unsigned prefix, uint32_t value) {
  uint32_t mask = (1u << prefix) - 1u;
  if (value < mask) {
    e2b__buf_byte(out, (uint8_t)(flags | value));
    return;
  }
  e2b__buf_byte(out, (uint8_t)(flags | mask));
  for (value -= mask; value >= 0x80u; value >>= 7) e2b__buf_byte(out, (uint8_t)(value | 0x80u));
  e2b__buf_byte(out, (uint8_t)value);
}

/* ---- decoder ---- */

typedef struct e2b__hpack_decoder {
  e2b__hpack_table table;
  e2b__buf field; /* name and value being decoded */
} e2b__hpack_decoder;

static void e2b__hpack_decoder_init(e2b__hpack_decoder *decoder, e2b__mem *mem) {
  decoder->table.count = decoder->table.text_len = 0;
  decoder->table.limit = E2B__HPACK_TABLE;
  e2b__buf_init(&decoder->field, mem, SIZE_MAX); /* at most 8/5 of the block */
}

/* Every field of a block in order. The strings live until it returns. */
typedef void (*e2b__hpack_fn)(void *owner, e2b_str name, e2b_str value);

/* Appends a string to decoder->field. */
static e2b_err e2b__hpack_get_string(e2b__hpack_decoder *decoder, const uint8_t **at, const uint8_t *end) {
  bool huffman = *at < end && (**at & 0x80u) != 0;
  uint32_t len;
  const uint8_t *from;
  if (!e2b__hpack_get_int(at, end, 7, &len) || len > (size_t)(end - *at)) return E2B_ERR_PROTOCOL;
  from = *at;
  *at += len;
  if (huffman) return e2b__huffman_decode(&decoder->field, from, len);
  e2b__buf_put(&decoder->field, from, len);
  return decoder->field.err;
}

/* A literal: name by index or in full, then the value. Stays in decoder->field, so that inserting may evict its name. */
static e2b_err e2b__hpack_get_literal(e2b__hpack_decoder *decoder, const uint8_t **at, const uint8_t *end, unsigned prefix,
                                      e2b_str *name, e2b_str *value) {
  uint32_t index;
  size_t name_len;
  e2b_str unused;
  e2b_err err = E2B_OK;
  decoder->field.len = 0;
  if (!e2b__hpack_get_int(at, end, prefix, &index)) return E2B_ERR_PROTOCOL;
  if (index == 0)
    err = e2b__hpack_get_string(decoder, at, end);
  else if (e2b__hpack_get(&decoder->table, index, name, &unused))
    e2b__buf_str(&decoder->field, *name);
  else
    return E2B_ERR_PROTOCOL;
  if (err) return err;
  name_len = decoder->field.len;
  err = e2b__hpack_get_string(decoder, at, end);
  if (err) return err;
  if (decoder->field.err) return decoder->field.err;
  *name = e2b__str_n(name_len ? (const char *)decoder->field.data : "", name_len);
  *value = e2b__str_n(decoder->field.len > name_len ? (const char *)decoder->field.data + name_len : "", decoder->field.len - name_len);
  return E2B_OK;
}

/* Decodes a whole block. E2B_ERR_PROTOCOL, _LIMIT and _NO_MEMORY leave the table out of step: the connection is lost. */
static e2b_err e2b__hpack_decode(e2b__hpack_decoder *decoder, const uint8_t *data, size_t len, e2b__hpack_fn on_field, void *owner) {
  const uint8_t *at = data, *end = len ? data + len : data;
  e2b_str name, value;
  bool first = true;
  while (at < end) {
    uint8_t octet = *at;
    uint32_t number;
    e2b_err err = E2B_OK;
    if (octet & 0x80u) {
      if (!e2b__hpack_get_int(&at, end, 7, &number) || !e2b__hpack_get(&decoder->table, number, &name, &value)) return E2B_ERR_PROTOCOL;
    } else if (octet & 0x40u) {
      err = e2b__hpack_get_literal(decoder, &at, end, 6, &name, &value);
      if (!err) e2b__hpack_insert(&decoder->table, name, value);
    } else if (octet & 0x20u) {
      if (!first || !e2b__hpack_get_int(&at, end, 5, &number) || number > E2B__HPACK_TABLE) return E2B_ERR_PROTOCOL;
      decoder->table.limit = number;
      e2b__hpack_shrink(&decoder->table, number);
      continue;
    } else {
      err = e2b__hpack_get_literal(decoder, &at, end, 4, &name, &value);
    }
    if (err) return err;
    first = false;
    on_field(owner, name, value);
  }
  return E2B_OK;
}

/* ---- encoder ---- */

typedef struct e2b__hpack_encoder {
  e2b__hpack_table table;
  uint32_t lowest;     /* the limit was that low since the last block, */
  bool announce;       /* and the next one has to begin with saying so */
} e2b__hpack_encoder;

static void e2b__hpack_encoder_init(e2b__hpack_encoder *encoder) {
  encoder->table.count = encoder->table.text_len = 0;
  encoder->table.limit = encoder->lowest = E2B__HPACK_TABLE;
  encoder->announce = false;
}

/* The peer's SETTINGS_HEADER_TABLE_SIZE. */
static void e2b__hpack_encoder_limit(e2b__hpack_encoder *encoder, uint32_t size) {
  size = E2B__MIN(size, (uint32_t)E2B__HPACK_TABLE);
  if (size == encoder->table.limit && !encoder->announce) return;
  encoder->lowest = encoder->announce ? E2B__MIN(encoder->lowest, size) : size;
  encoder->announce = true;
  encoder->table.limit = size;
  e2b__hpack_shrink(&encoder->table, size);
}

/* Before the fields of each block. */
static void e2b__hpack_begin(e2b__hpack_encoder *encoder, e2b__buf *out) {
  if (!encoder->announce) return;
  if (encoder->lowest < encoder->table.limit) e2b__hpack_put_int(out, 0x20, 5, encoder->lowest);
  e2b__hpack_put_int(out, 0x20, 5, encoder->table.limit);
  encoder->announce = false;
}

/* Fields that are the same in request after request and no secret. All others (keys, tokens, paths, the caller's own) are
 * never indexed, by us or by anybody on the way. */
static bool e2b__hpack_repeats(e2b_str name) {
  static const char *const names[] = { ":authority", "accept", "accept-encoding", "connect-accept-encoding", "connect-protocol-version",
                                       "content-type", "e2b-sandbox-port", "keepalive-ping-interval", "user-agent" };
  size_t i;
  for (i = 0; i < E2B__COUNT(names); i++)
    if (e2b__str_eq(name, names[i])) return true;
  return false;
}

static bool e2b__str_same(e2b_str a, e2b_str b) {
  return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

static void e2b__hpack_put_string(e2b__buf *out, e2b_str text) {
  e2b__hpack_put_int(out, 0, 7, (uint32_t)text.len); /* as it is: Huffman would save little of what is not indexed */
  e2b__buf_str(out, text);
}

/* Writes one field; the name in lower case. A failure sticks in out->err and loses the connection. */
static void e2b__hpack_encode(e2b__hpack_encoder *encoder, e2b__buf *out, e2b_str name, e2b_str value) {
  uint32_t index, name_index = 0, last = E2B__HPACK_STATIC + encoder->table.count;
  e2b_str at_name, at_value;
  bool repeats = e2b__hpack_repeats(name);
  for (index = 1; index <= last; index++) {
    if (!e2b__hpack_get(&encoder->table, index, &at_name, &at_value) || !e2b__str_same(at_name, name)) continue;
    if (!name_index) name_index = index;
    if (!e2b__str_same(at_value, value)) continue;
    e2b__hpack_put_int(out, 0x80, 7, index);
    return;
  }
  e2b__hpack_put_int(out, repeats ? 0x40 : 0x10, repeats ? 6 : 4, name_index);
  if (!name_index) e2b__hpack_put_string(out, name);
  e2b__hpack_put_string(out, value);
  if (repeats) e2b__hpack_insert(&encoder->table, name, value);
}

/* ================================================================================================================== */
/* >>>> http2 */
/* ================================================================================================================== */

/* The protocol of one HTTP/2 connection (RFC 9113), client side: bytes in, bytes and events out, no I/O.
 *
 * Memory: a peer may send as much of a stream as its window says, so windows are what bounds memory. Each stream starts with
 * a small one, which grows with what the path carries in one round trip; it is refilled only while its consumer takes the
 * data. The window of the connection is so large that no paused stream can stall the others. */

#define E2B__H2_FRAME_MAX 16384       /* of a payload, both ways: the least every peer takes; ours is never raised */
#define E2B__H2_HEAD 9
#define E2B__H2_WINDOW_MAX 0x7fffffff
#define E2B__H2_CONN_WINDOW (1 << 30) /* of the connection */
#define E2B__H2_DEFAULT_WINDOW 65535
#define E2B__H2_STREAMS_ASSUMED 100   /* until the peer's SETTINGS say otherwise */
#define E2B__H2_MAX_ID 0x7ffffffd
#define E2B__H2_MAX_FIELDS 128        /* in one block */
#define E2B__H2_MAX_INTERIM 16        /* 1xx answers before the real one */
#define E2B__H2_MAX_CONTINUATIONS 8
#define E2B__H2_MAX_SETTINGS 32       /* in one frame */
#define E2B__H2_MAX_IDLE_FRAMES 1000  /* within 10 s, without data in between: SETTINGS, PING, PRIORITY, unknown ... */
#define E2B__H2_MAX_EMPTY 100         /* empty DATA and HEADERS in a row */
#define E2B__H2_MAX_RESETS 10         /* streams the peer spoiled, within 10 s */
#define E2B__H2_MAX_ACKS 64           /* answers the peer asked for and does not read */
#define E2B__H2_RESET_MEMORY 128      /* ids of streams we reset, for which late frames are no fault */
#define E2B__H2_SAMPLE_MS 10          /* least time between two measurements of the path */
#define E2B__H2_SAMPLE_MAX_MS 10000

enum {
  E2B__H2_DATA = 0, E2B__H2_HEADERS, E2B__H2_PRIORITY, E2B__H2_RST_STREAM, E2B__H2_SETTINGS, E2B__H2_PUSH_PROMISE, E2B__H2_PING,
  E2B__H2_GOAWAY, E2B__H2_WINDOW_UPDATE, E2B__H2_CONTINUATION
};
#define E2B__H2_END_STREAM 0x01u
#define E2B__H2_ACK 0x01u
#define E2B__H2_END_HEADERS 0x04u
#define E2B__H2_PADDED 0x08u
#define E2B__H2_HAS_PRIORITY 0x20u

enum {
  E2B__H2_NO_ERROR = 0, E2B__H2_PROTOCOL_ERROR, E2B__H2_INTERNAL_ERROR, E2B__H2_FLOW_CONTROL_ERROR, E2B__H2_SETTINGS_TIMEOUT,
  E2B__H2_STREAM_CLOSED, E2B__H2_FRAME_SIZE_ERROR, E2B__H2_REFUSED_STREAM, E2B__H2_CANCEL, E2B__H2_COMPRESSION_ERROR,
  E2B__H2_CONNECT_ERROR, E2B__H2_ENHANCE_YOUR_CALM, E2B__H2_INADEQUATE_SECURITY, E2B__H2_HTTP_1_1_REQUIRED
};

static const char *e2b__h2_error_name(uint32_t code) {
  static const char *const names[] = { "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
                                       "STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR",
                                       "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED" };
  return code < E2B__COUNT(names) ? names[code] : "unknown error";
}

typedef struct e2b__h2 e2b__h2;

typedef struct e2b__h2_stream {
  struct e2b__h2_stream *prev, *next;
  e2b__h2 *h2;
  void *owner;
  uint32_t id;
  bool head_request;
  bool sent_end, got_end;
  bool head_done;         /* the final head was delivered */
  bool answered;          /* something of an answer arrived */
  int status;
  uint32_t interim;
  int64_t send_window;    /* may be negative */
  int64_t receive_window; /* what the peer may still send */
  int64_t length;         /* content-length of the answer, -1 = none */
  uint64_t received;
} e2b__h2_stream;

/* How a stream ended. */
typedef struct e2b__h2_end {
  e2b_err err;            /* E2B_OK: the answer is complete */
  const char *detail;     /* static text */
  uint32_t code;          /* of the peer's RST_STREAM or GOAWAY */
  bool unprocessed;       /* the peer said that it did nothing: the request may be sent again, whatever it is */
} e2b__h2_end;

/* Called from e2b__h2_feed and e2b__h2_lost. They may reset any stream and open new ones, but not free the connection. An error
 * returned resets the stream; on_end follows with that error. */
typedef struct e2b__h2_events {
  e2b_err (*on_head)(e2b__h2_stream *stream, int status, const e2b__headers *headers);
  e2b_err (*on_body)(e2b__h2_stream *stream, const uint8_t *data, size_t len);
  void (*on_end)(e2b__h2_stream *stream, const e2b__h2_end *end); /* the stream is gone when it returns */
} e2b__h2_events;

struct e2b__h2 {
  /* for the caller to read */
  e2b__buf out;            /* to be sent before any DATA; the caller takes it away */
  e2b__h2_stream *streams; /* open ones; the caller may rotate the list for fairness */
  uint32_t stream_count;
  uint32_t senders;        /* streams with more to send */
  bool draining;           /* no new streams: GOAWAY, ids used up, or a failure */
  bool settled;            /* the peer's SETTINGS arrived */
  bool ping_waits;         /* a PING of ours is unanswered */
  const char *detail;      /* why the connection failed, static text */
  uint32_t max_streams;    /* the peer allows at a time */
  /* private */
  e2b__mem *mem;
  const e2b__h2_events *events;
  e2b_err err;
  uint32_t next_id, goaway_last, goaway_code;
  uint32_t initial_window;     /* by our SETTINGS, */
  uint32_t window, max_window; /* what a stream gets once its data is being taken, and how far that may grow */
  uint32_t max_list;           /* bytes of one header list */
  uint32_t peer_window;        /* streams start with, for sending */
  uint32_t settings_waiting;   /* of ours, not acknowledged */
  int64_t send_window, receive_window;
  e2b__hpack_encoder encoder;
  e2b__hpack_decoder decoder;
  e2b__h2_stream *current;     /* the stream an event is about; NULL when the event ended it */
  e2b__h2_stream *reading;     /* of the DATA frame being read; NULL when it has ended */
  /* the frame being read */
  uint8_t head[E2B__H2_HEAD];
  size_t head_len;
  uint32_t type, flags, id, size, left; /* left: of the payload */
  uint32_t pad;                /* at its end, of DATA */
  bool pad_known;
  e2b__buf payload;
  /* the header block being read */
  e2b__buf block;
  uint32_t block_id, block_frames;
  bool block_open, block_ends_stream;
  e2b__headers fields;
  uint32_t field_count, list_size;
  bool list_too_large, regular_seen, malformed;
  int status;
  int64_t length;
  /* against floods */
  uint32_t idle_frames, empty_frames, spoiled, acks;
  uint64_t idle_since, spoiled_since;
  uint32_t reset_ids[E2B__H2_RESET_MEMORY], reset_count;
  /* how much the path carries in one round trip */
  uint64_t now, sample_at;
  uint32_t sample_wait_ms;
  uint64_t sample_bytes;       /* since the PING went out */
};

static void e2b__h2_put_u32(uint8_t *to, uint32_t value) {
  to[0] = (uint8_t)(value >> 24);
  to[1] = (uint8_t)(value >> 16);
  to[2] = (uint8_t)(value >> 8);
  to[3] = (uint8_t)value;
}

static uint32_t e2b__h2_get_u32(const uint8_t *from) {
  return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
}

static void e2b__h2_frame_head(uint8_t *to, size_t len, uint8_t type, uint32_t flags, uint32_t id) {
  e2b__h2_put_u32(to, (uint32_t)len << 8 | type);
  to[4] = (uint8_t)flags;
  e2b__h2_put_u32(to + 5, id);
}

static void e2b__h2_put_frame(e2b__buf *out, uint8_t type, uint32_t flags, uint32_t id, const void *payload, size_t len) {
  uint8_t head[E2B__H2_HEAD];
  if (!e2b__buf_reserve(out, sizeof head + len)) return;
  e2b__h2_frame_head(head, len, type, flags, id);
  e2b__buf_put(out, head, sizeof head);
  e2b__buf_put(out, payload, len);
}

static void e2b__h2_put_word(e2b__buf *out, uint8_t type, uint32_t id, uint32_t value) {
  uint8_t payload[4];
  e2b__h2_put_u32(payload, value);
  e2b__h2_put_frame(out, type, 0, id, payload, sizeof payload);
}

/* The connection is of no more use: the first reason stays. A GOAWAY tells the peer. */
static e2b_err e2b__h2_fail(e2b__h2 *h2, e2b_err err, uint32_t code, const char *detail) {
  uint8_t payload[8];
  if (h2->err) return h2->err;
  h2->err = err;
  h2->detail = detail;
  h2->draining = true;
  e2b__h2_put_u32(payload, 0);
  e2b__h2_put_u32(payload + 4, code);
  e2b__h2_put_frame(&h2->out, E2B__H2_GOAWAY, 0, 0, payload, sizeof payload);
  return err;
}

static e2b_err e2b__h2_protocol(e2b__h2 *h2, uint32_t code, const char *detail) {
  return e2b__h2_fail(h2, E2B_ERR_PROTOCOL, code, detail);
}

static e2b_err e2b__h2_calm(e2b__h2 *h2, const char *detail) {
  return e2b__h2_fail(h2, E2B_ERR_LIMIT, E2B__H2_ENHANCE_YOUR_CALM, detail);
}

/* Writes what every connection begins with into h2->out. `window`: what a stream may send us unasked, growing up to
 * `max_window`. E2B_ERR_NO_MEMORY shows in out.err. */
static void e2b__h2_init(e2b__h2 *h2, e2b__mem *mem, uint32_t window, uint32_t max_window, uint32_t max_list, const e2b__h2_events *events) {
  uint8_t settings[18];
  memset(h2, 0, sizeof *h2);
  h2->mem = mem;
  h2->events = events;
  h2->next_id = 1;
  h2->goaway_last = E2B__H2_WINDOW_MAX;
  h2->max_streams = E2B__H2_STREAMS_ASSUMED;
  h2->initial_window = h2->window = E2B__MIN(window, (uint32_t)E2B__H2_WINDOW_MAX);
  h2->max_window = E2B__MIN(E2B__MAX(window, max_window), (uint32_t)E2B__H2_CONN_WINDOW);
  h2->max_list = max_list;
  h2->peer_window = E2B__H2_DEFAULT_WINDOW;
  h2->send_window = E2B__H2_DEFAULT_WINDOW;
  h2->receive_window = E2B__H2_CONN_WINDOW;
  h2->sample_wait_ms = E2B__H2_SAMPLE_MS;
  h2->settings_waiting = 1;
  e2b__buf_init(&h2->out, mem, SIZE_MAX);
  e2b__buf_init(&h2->payload, mem, E2B__H2_FRAME_MAX);
  e2b__buf_init(&h2->block, mem, E2B__MAX(max_list, (uint32_t)E2B__H2_FRAME_MAX) + E2B__H2_FRAME_MAX);
  e2b__headers_init(&h2->fields, mem, max_list);
  e2b__hpack_encoder_init(&h2->encoder);
  e2b__hpack_decoder_init(&h2->decoder, mem);
  e2b__buf_text(&h2->out, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  settings[0] = settings[6] = settings[12] = 0;
  settings[1] = 2; /* ENABLE_PUSH */
  e2b__h2_put_u32(settings + 2, 0);
  settings[7] = 4; /* INITIAL_WINDOW_SIZE */
  e2b__h2_put_u32(settings + 8, h2->window);
  settings[13] = 6; /* MAX_HEADER_LIST_SIZE */
  e2b__h2_put_u32(settings + 14, max_list);
  e2b__h2_put_frame(&h2->out, E2B__H2_SETTINGS, 0, 0, settings, sizeof settings);
  e2b__h2_put_word(&h2->out, E2B__H2_WINDOW_UPDATE, 0, E2B__H2_CONN_WINDOW - E2B__H2_DEFAULT_WINDOW);
}

/* Moves what is to be sent next to `to`. */
static void e2b__h2_take(e2b__h2 *h2, e2b__buf *to) {
  e2b__buf_put(to, h2->out.data, h2->out.len);
  h2->out.len = 0;
  h2->acks = 0;
}

static void e2b__h2_unlink(e2b__h2_stream *stream) {
  e2b__h2 *h2 = stream->h2;
  if (stream->prev) stream->prev->next = stream->next; else h2->streams = stream->next;
  if (stream->next) stream->next->prev = stream->prev;
  h2->stream_count--;
  if (!stream->sent_end) h2->senders--;
  if (h2->current == stream) h2->current = NULL;
  if (h2->reading == stream) h2->reading = NULL;
}

/* Without events. */
static void e2b__h2_free(e2b__h2 *h2) {
  while (h2->streams) {
    e2b__h2_stream *stream = h2->streams;
    e2b__h2_unlink(stream);
    e2b__mem_free(h2->mem, stream, sizeof *stream);
  }
  e2b__buf_free(&h2->out);
  e2b__buf_free(&h2->payload);
  e2b__buf_free(&h2->block);
  e2b__buf_free(&h2->decoder.field);
  e2b__headers_free(&h2->fields);
}

/* ---- sending ---- */

/* What may not be sent in HTTP/2. */
static bool e2b__h2_is_connection_field(e2b_str name) {
  static const char *const names[] = { "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "host", "te" };
  size_t i;
  for (i = 0; i < E2B__COUNT(names); i++)
    if (e2b__str_eq(name, names[i])) return true;
  return false;
}

static void e2b__h2_put_block(e2b__h2 *h2, uint32_t id, bool ends_stream, const e2b__buf *block) {
  size_t at = 0;
  uint8_t type = E2B__H2_HEADERS;
  do {
    size_t n = E2B__MIN(block->len - at, (size_t)E2B__H2_FRAME_MAX);
    uint32_t flags = (at + n == block->len ? E2B__H2_END_HEADERS : 0) | (type == E2B__H2_HEADERS && ends_stream ? E2B__H2_END_STREAM : 0);
    e2b__h2_put_frame(&h2->out, type, flags, id, block->data + at, n);
    type = E2B__H2_CONTINUATION;
    at += n;
  } while (at < block->len);
}

/* Opens a stream with a request head. body_len as for e2b__h1_write_head. NULL with *err: E2B_ERR_NO_MEMORY, E2B_ERR_INVALID_ARGUMENT. */
static e2b__h2_stream *e2b__h2_open(e2b__h2 *h2, const char *method, bool tls, e2b_str authority, e2b_str path,
                                    const e2b__headers *headers, int64_t body_len, void *owner, e2b_err *err) {
  e2b__h2_stream *stream;
  e2b__buf block;
  e2b_str name, value;
  size_t cursor = 0;
  char digits[24];
  *err = headers->text.err;
  if (!*err && (!e2b__header_name_ok(e2b__str(method)) || !e2b__h1_target_ok(path) || !e2b__h1_target_ok(authority))) *err = E2B_ERR_INVALID_ARGUMENT;
  if (*err) return NULL;
  stream = (e2b__h2_stream *)e2b__mem_alloc(h2->mem, sizeof *stream);
  *err = E2B_ERR_NO_MEMORY;
  if (!stream) return NULL;
  e2b__buf_init(&block, h2->mem, SIZE_MAX);
  e2b__hpack_begin(&h2->encoder, &block);
  e2b__hpack_encode(&h2->encoder, &block, e2b__str(":method"), e2b__str(method));
  e2b__hpack_encode(&h2->encoder, &block, e2b__str(":scheme"), e2b__str(tls ? "https" : "http"));
  e2b__hpack_encode(&h2->encoder, &block, e2b__str(":authority"), authority);
  e2b__hpack_encode(&h2->encoder, &block, e2b__str(":path"), path);
  while (e2b__headers_next(headers, &cursor, &name, &value))
    if (!e2b__h2_is_connection_field(name)) e2b__hpack_encode(&h2->encoder, &block, name, value);
  if (body_len >= 0) {
    (void)snprintf(digits, sizeof digits, "%lld", (long long)body_len);
    e2b__hpack_encode(&h2->encoder, &block, e2b__str("content-length"), e2b__str(digits));
  }
  stream->sent_end = body_len == E2B__BODY_NONE || body_len == 0;
  if (!block.err) e2b__h2_put_block(h2, h2->next_id, stream->sent_end, &block);
  if (block.err || h2->out.err) { /* the peer's table no longer is what the encoder thinks */
    e2b__buf_free(&block);
    e2b__mem_free(h2->mem, stream, sizeof *stream);
    h2->err = E2B_ERR_NO_MEMORY;
    h2->draining = true;
    return NULL;
  }
  e2b__buf_free(&block);
  stream->h2 = h2;
  stream->owner = owner;
  stream->id = h2->next_id;
  stream->head_request = strcmp(method, "HEAD") == 0;
  stream->send_window = h2->peer_window;
  stream->receive_window = h2->initial_window;
  stream->length = -1;
  h2->next_id += 2;
  if (h2->next_id > E2B__H2_MAX_ID) h2->draining = true;
  stream->next = h2->streams;
  if (stream->next) stream->next->prev = stream;
  h2->streams = stream;
  h2->stream_count++;
  if (!stream->sent_end) h2->senders++;
  *err = E2B_OK;
  return stream;
}

/* How many bytes of DATA the stream may send now. */
static size_t e2b__h2_room(const e2b__h2_stream *stream) {
  int64_t room = E2B__MIN(stream->send_window, stream->h2->send_window);
  return room <= 0 ? 0 : (size_t)E2B__MIN(room, (int64_t)E2B__H2_FRAME_MAX);
}

/* Moves the stream behind all others: they send in turn. */
static void e2b__h2_rotate(e2b__h2_stream *stream) {
  e2b__h2_stream *last = stream;
  if (!stream->next) return;
  while (last->next) last = last->next;
  if (stream->prev) stream->prev->next = stream->next; else stream->h2->streams = stream->next;
  stream->next->prev = stream->prev;
  last->next = stream;
  stream->prev = last;
  stream->next = NULL;
}

/* Fills in the head of a DATA frame in front of `len` bytes; at most e2b__h2_room. */
static void e2b__h2_data_head(e2b__h2_stream *stream, uint8_t head[E2B__H2_HEAD], size_t len, bool end) {
  e2b__h2_frame_head(head, len, E2B__H2_DATA, end ? E2B__H2_END_STREAM : 0, stream->id);
  stream->send_window -= (int64_t)len;
  stream->h2->send_window -= (int64_t)len;
  stream->sent_end = end;
  if (end) stream->h2->senders--;
  stream->h2->idle_frames = 0;
}

static void e2b__h2_remember_reset(e2b__h2 *h2, uint32_t id) {
  h2->reset_ids[h2->reset_count++ % E2B__H2_RESET_MEMORY] = id;
}

/* Whether late frames for a closed stream are to be expected: we reset it, and not so long ago that it was forgotten. */
static bool e2b__h2_was_reset(const e2b__h2 *h2, uint32_t id) {
  uint32_t i, known = E2B__MIN(h2->reset_count, (uint32_t)E2B__H2_RESET_MEMORY), oldest = UINT32_MAX;
  for (i = 0; i < known; i++) {
    if (h2->reset_ids[i] == id) return true;
    oldest = E2B__MIN(oldest, h2->reset_ids[i]);
  }
  return known == E2B__H2_RESET_MEMORY && id < oldest;
}

/* Ends a stream from our side, without events. */
static void e2b__h2_reset(e2b__h2_stream *stream, uint32_t code) {
  e2b__h2 *h2 = stream->h2;
  if (!(stream->sent_end && stream->got_end) && !h2->err) {
    e2b__h2_put_word(&h2->out, E2B__H2_RST_STREAM, stream->id, code);
    if (!stream->got_end) e2b__h2_remember_reset(h2, stream->id);
  }
  e2b__h2_unlink(stream);
  e2b__mem_free(h2->mem, stream, sizeof *stream);
}

/* Lets the peer send more: up to the stream's whole window, when at least half of it is used up. The consumer says when. */
static void e2b__h2_refill(e2b__h2_stream *stream) {
  e2b__h2 *h2 = stream->h2;
  int64_t missing = (int64_t)h2->window - stream->receive_window;
  if (stream->got_end || h2->err || missing < (int64_t)h2->window / 2 || missing <= 0) return;
  e2b__h2_put_word(&h2->out, E2B__H2_WINDOW_UPDATE, stream->id, (uint32_t)missing);
  stream->receive_window += missing;
}

/* Asks whether the peer is still there; its answer clears ping_waits. */
static void e2b__h2_ping(e2b__h2 *h2) {
  static const uint8_t payload[8] = { 'e', '2', 'b', '.', 'h', 0, 0, 0 };
  if (h2->ping_waits || h2->err) return;
  h2->ping_waits = true;
  h2->sample_bytes = 0;
  h2->sample_at = h2->now;
  e2b__h2_put_frame(&h2->out, E2B__H2_PING, 0, 0, payload, sizeof payload);
}

/* ---- the ends of streams ---- */

static void e2b__h2_end_stream(e2b__h2_stream *stream, e2b_err err, const char *detail, uint32_t code, bool unprocessed) {
  e2b__h2 *h2 = stream->h2;
  e2b__h2_end end;
  end.err = err;
  end.detail = detail;
  end.code = code;
  end.unprocessed = unprocessed;
  e2b__h2_unlink(stream);
  h2->events->on_end(stream, &end);
  e2b__mem_free(h2->mem, stream, sizeof *stream);
}

/* Resets a stream and tells its owner. */
static e2b_err e2b__h2_spoil(e2b__h2_stream *stream, e2b_err err, uint32_t code, const char *detail) {
  e2b__h2 *h2 = stream->h2;
  if (h2->now >= h2->spoiled_since + 10000u) {
    h2->spoiled_since = h2->now;
    h2->spoiled = 0;
  }
  if (code == E2B__H2_PROTOCOL_ERROR && ++h2->spoiled > E2B__H2_MAX_RESETS) return e2b__h2_calm(h2, "the server spoils stream after stream");
  e2b__h2_put_word(&h2->out, E2B__H2_RST_STREAM, stream->id, code);
  e2b__h2_remember_reset(h2, stream->id);
  e2b__h2_end_stream(stream, err, detail, code, false);
  return h2->err;
}

/* The peer ended the stream. */
static e2b_err e2b__h2_remote_end(e2b__h2_stream *stream) {
  e2b__h2 *h2 = stream->h2;
  bool no_body = stream->head_request || stream->status == 204 || stream->status == 304;
  stream->got_end = true;
  if (stream->length >= 0 && !no_body && stream->received != (uint64_t)stream->length)
    return e2b__h2_spoil(stream, stream->received < (uint64_t)stream->length ? E2B_ERR_TRUNCATED : E2B_ERR_PROTOCOL, E2B__H2_PROTOCOL_ERROR,
                         "the body is not as long as its content-length");
  if (!stream->sent_end) e2b__h2_put_word(&h2->out, E2B__H2_RST_STREAM, stream->id, E2B__H2_CANCEL); /* answered early */
  e2b__h2_end_stream(stream, E2B_OK, NULL, 0, false);
  return h2->err;
}

/* The connection is gone or no longer to be trusted: every stream ends. `err` and `detail` for those without an answer. */
static void e2b__h2_lost(e2b__h2 *h2, e2b_err err, const char *detail) {
  if (!h2->err) h2->err = err;
  h2->draining = true;
  while (h2->streams) {
    e2b__h2_stream *stream = h2->streams;
    bool cut = stream->answered && (err == E2B_ERR_CLOSED || err == E2B_ERR_IO);
    e2b__h2_end_stream(stream, cut ? E2B_ERR_TRUNCATED : err, cut ? "the connection was cut before the end of the answer" : detail,
                       h2->goaway_code, false);
  }
}

static e2b__h2_stream *e2b__h2_find(const e2b__h2 *h2, uint32_t id) {
  e2b__h2_stream *stream;
  for (stream = h2->streams; stream && stream->id != id; stream = stream->next) {}
  return stream;
}

/* Whether frames may name that stream: ours, and opened once. */
static bool e2b__h2_known(const e2b__h2 *h2, uint32_t id) {
  return (id & 1u) && id < h2->next_id;
}

/* ---- header blocks ---- */

static bool e2b__h2_name_ok(e2b_str name) {
  size_t i;
  for (i = 0; i < name.len; i++) {
    uint8_t c = (uint8_t)name.ptr[i];
    if (c <= 0x20 || c >= 0x7f || (c >= 'A' && c <= 'Z') || c == ':') return false;
  }
  return name.len > 0;
}

static bool e2b__h2_value_ok(e2b_str value) {
  size_t i;
  for (i = 0; i < value.len; i++)
    if (value.ptr[i] == 0 || value.ptr[i] == '\r' || value.ptr[i] == '\n') return false;
  return value.len == 0 || (!e2b__is_blank(value.ptr[0]) && !e2b__is_blank(value.ptr[value.len - 1]));
}

static bool e2b__h2_status(e2b_str text, int *status) {
  if (text.len != 3 || text.ptr[0] < '1' || text.ptr[0] > '5' || !e2b__is_digit(text.ptr[1]) || !e2b__is_digit(text.ptr[2])) return false;
  *status = (text.ptr[0] - '0') * 100 + (text.ptr[1] - '0') * 10 + (text.ptr[2] - '0');
  return true;
}

static bool e2b__h2_length(e2b_str text, int64_t *length) {
  size_t i;
  int64_t value = 0;
  if (text.len == 0 || text.len > 18) return false;
  for (i = 0; i < text.len; i++) {
    if (!e2b__is_digit(text.ptr[i])) return false;
    value = value * 10 + (text.ptr[i] - '0');
  }
  if (*length >= 0 && *length != value) return false;
  *length = value;
  return true;
}

/* Takes one field of the block. What is wrong with it spoils its stream only; the block is decoded to its end all the same. */
static void e2b__h2_on_field(void *owner, e2b_str name, e2b_str value) {
  e2b__h2 *h2 = (e2b__h2 *)owner;
  bool pseudo = name.len && name.ptr[0] == ':';
  uint32_t size = (uint32_t)E2B__MIN(name.len + value.len, (size_t)E2B__H2_WINDOW_MAX) + E2B__HPACK_OVERHEAD;
  if (size > h2->max_list - h2->list_size || ++h2->field_count > E2B__H2_MAX_FIELDS) h2->list_too_large = true;
  if (h2->list_too_large) return;
  h2->list_size += size;
  if (pseudo) {
    if (h2->regular_seen || h2->status || !e2b__str_eq(name, ":status") || !e2b__h2_status(value, &h2->status)) h2->malformed = true;
    return;
  }
  h2->regular_seen = true;
  if (!e2b__h2_name_ok(name) || !e2b__h2_value_ok(value) || (e2b__h2_is_connection_field(name) && !e2b__str_eq(name, "host") && !e2b__str_eq(name, "te")) ||
      (e2b__str_eq(name, "content-length") && !e2b__h2_length(value, &h2->length)))
    h2->malformed = true;
  if (!h2->malformed) e2b__headers_add(&h2->fields, name, value);
}

/* A final head, a 1xx, or trailers. */
static e2b_err e2b__h2_deliver_head(e2b__h2_stream *stream, bool ends) {
  e2b__h2 *h2 = stream->h2;
  e2b_err err;
  stream->answered = true;
  if (h2->fields.text.err == E2B_ERR_NO_MEMORY) return e2b__h2_fail(h2, E2B_ERR_NO_MEMORY, E2B__H2_INTERNAL_ERROR, "out of memory for the answer's head");
  if (h2->list_too_large) return e2b__h2_spoil(stream, E2B_ERR_LIMIT, E2B__H2_CANCEL, "the response head is too long");
  if (h2->malformed || h2->fields.text.err) return e2b__h2_spoil(stream, E2B_ERR_PROTOCOL, E2B__H2_PROTOCOL_ERROR, "malformed header field");
  if (stream->head_done) { /* trailers: nothing here needs them */
    if (h2->status || !ends) return e2b__h2_spoil(stream, E2B_ERR_PROTOCOL, E2B__H2_PROTOCOL_ERROR, "malformed trailers");
    return e2b__h2_remote_end(stream);
  }
  if (h2->status == 0 || h2->status == 101) return e2b__h2_spoil(stream, E2B_ERR_PROTOCOL, E2B__H2_PROTOCOL_ERROR, "the response head has no valid status");
  if (h2->status < 200) {
    if (ends) return e2b__h2_spoil(stream, E2B_ERR_PROTOCOL, E2B__H2_PROTOCOL_ERROR, "the answer ended with an interim response");
    if (++stream->interim > E2B__H2_MAX_INTERIM) return e2b__h2_spoil(stream, E2B_ERR_LIMIT, E2B__H2_ENHANCE_YOUR_CALM, "too many interim responses");
    return E2B_OK;
  }
  stream->head_done = true;
  stream->status = h2->status;
  stream->length = h2->length;
  h2->current = stream;
  err = h2->events->on_head(stream, h2->status, &h2->fields);
  if (!h2->current) return h2->err;
  h2->current = NULL;
  if (err) return e2b__h2_spoil(stream, err, E2B__H2_CANCEL, "stopped by the receiver of the head");
  return ends ? e2b__h2_remote_end(stream) : E2B_OK;
}

/* The block is complete. It is decoded even when nobody wants it: the tables must stay in step. */
static e2b_err e2b__h2_block_end(e2b__h2 *h2) {
  e2b__h2_stream *stream;
  uint32_t id = h2->block_id;
  e2b_err err;
  h2->block_open = false;
  e2b__headers_free(&h2->fields);
  h2->field_count = h2->list_size = 0;
  h2->list_too_large = h2->regular_seen = h2->malformed = false;
  h2->status = 0;
  h2->length = -1;
  err = e2b__hpack_decode(&h2->decoder, h2->block.data, h2->block.len, e2b__h2_on_field, h2);
  e2b__buf_free(&h2->block);
  if (err == E2B_ERR_NO_MEMORY) return e2b__h2_fail(h2, err, E2B__H2_INTERNAL_ERROR, "out of memory for the answer's head");
  if (err) return e2b__h2_protocol(h2, E2B__H2_COMPRESSION_ERROR, "the compressed header fields cannot be decoded");
  stream = e2b__h2_find(h2, id);
  if (stream) return e2b__h2_deliver_head(stream, h2->block_ends_stream);
  return e2b__h2_was_reset(h2, id) ? E2B_OK : e2b__h2_protocol(h2, E2B__H2_STREAM_CLOSED, "a response head for a stream that has ended");
}

/* HEADERS or CONTINUATION: the fragment in h2->payload. */
static e2b_err e2b__h2_on_headers(e2b__h2 *h2) {
  size_t from = 0, len = h2->payload.len, pad = 0;
  const uint8_t *data = h2->payload.data;
  if (h2->type == E2B__H2_HEADERS) {
    if (h2->flags & E2B__H2_PADDED) {
      if (len < 1) return e2b__h2_protocol(h2, E2B__H2_FRAME_SIZE_ERROR, "a HEADERS frame is too short");
      pad = data[0];
      from = 1;
    }
    if (h2->flags & E2B__H2_HAS_PRIORITY) from += 5;
    if (from > len) return e2b__h2_protocol(h2, E2B__H2_FRAME_SIZE_ERROR, "a HEADERS frame is too short");
    if (pad > len - from) return e2b__h2_protocol(h2, E2B__H2_PROTOCOL_ERROR, "a HEADERS frame has too much padding");
    h2->block_open = true;
    h2->block_id = h2->id;
    h2->block_frames = 0;
    h2->block_ends_stream = (h2->flags & E2B__H2_END_STREAM) != 0;
  } else if (++h2->block_frames > E2B__H2_MAX_CONTINUATIONS) {
    return e2b__h2_calm(h2, "the response head comes in too many pieces");
  }
  if (len > from + pad) e2b__buf_put(&h2->block, data + from, len - from - pad);
  if (h2->block.err == E2B_ERR_LIMIT) return e2b__h2_calm(h2, "the response head is too long");
  if (h2->block.err) return e2b__h2_fail(h2, h2->block.err, E2B__H2_INTERNAL_ERROR, "out of memory for the answer's head");
  return h2->flags & E2B__H2_END_HEADERS ? e2b__h2_block_end(h2) : E2B_OK;
}

/* ---- data ---- */

/* Keeps the window of the connection open, and measures the path while data flows. */
static void e2b__h2_count_data(e2b__h2 *h2, uint32_t len) {
  h2->receive_window -= len;
  h2->sample_bytes += len;
  if (h2->receive_window < E2B__H2_CONN_WINDOW / 2) {
    e2b__h2_put_word(&h2->out, E2B__H2_WINDOW_UPDATE, 0, (uint32_t)(E2B__H2_CONN_WINDOW - h2->receive_window));
    h2->receive_window = E2B__H2_CONN_WINDOW;
  }
  if (!h2->ping_waits && h2->window < h2->max_window && h2->now >= h2->sample_at + h2->sample_wait_ms) e2b__h2_ping(h2);
}

/* The answer to our PING: when most of a window arrived within the round trip, windows were what limited it. */
static void e2b__h2_sampled(e2b__h2 *h2) {
  h2->ping_waits = false;
  if (h2->sample_bytes < h2->window / 2) {
    h2->sample_wait_ms = E2B__MIN(h2->sample_wait_ms * 2, (uint32_t)E2B__H2_SAMPLE_MAX_MS);
    return;
  }
  h2->sample_wait_ms = E2B__H2_SAMPLE_MS;
  h2->window = (uint32_t)E2B__MIN((uint64_t)h2->max_window, E2B__MAX((uint64_t)h2->window * 2, h2->sample_bytes * 4));
}

/* The head of a DATA frame: checks all of it against the windows before any of it is taken. */
static e2b_err e2b__h2_data_begin(e2b__h2 *h2) {
  e2b__h2_stream *stream = e2b__h2_find(h2, h2->id);
  h2->reading = NULL;
  if (!e2b__h2_known(h2, h2->id)) return e2b__h2_protocol(h2, E2B__H2_PROTOCOL_ERROR, "data on a stream that was never opened");
  if (h2->size > h2->receive_window) return e2b__h2_protocol(h2, E2B__H2_FLOW_CONTROL_ERROR, "more data than the connection's window allows");
  e2b__h2_count_data(h2, h2->size);
  h2->pad_known = !(h2->flags & E2B__H2_PADDED);
  h2->pad = 0;
  if (!h2->pad_known && h2->size == 0) return e2b__h2_protocol(h2, E2B__H2_FRAME_SIZE_ERROR, "a DATA frame is too short");
  if (!stream) return e2b__h2_was_reset(h2, h2->id) ? E2B_OK : e2b__h2_protocol(h2, E2B__H2_STREAM_CLOSED, "data for a stream that has ended");
  if (!stream->head_done) return e2b__h2_spoil(stream, E2B_ERR_PROTOCOL, E2B__H2_PROTOCOL_ERROR, "data before the response head");
  if (h2->size > stream->receive_window)
    return e2b__h2_spoil(stream, E2B_ERR_PROTOCOL, E2B__H2_FLOW_CONTROL_ERROR, "more data than the stream's window allows");
  stream->receive_window -= h2->size;
  h2->reading = stream;
  return E2B_OK;
}

/* Some of the payload of a DATA frame. */
static e2b_err e2b__h2_data(e2b__h2 *h2, const uint8_t *data, size_t len) {
  e2b__h2_stream *stream;
  size_t body;
  e2b_err err;
  bool too_long = false;
  if (!h2->pad_known) {
    h2->pad_known = true;
    h2->pad = data[0];
    if (h2->pad > h2->left - 1) return e2b__h2_protocol(h2, E2B__H2_PROTOCOL_ERROR, "a DATA frame has too much padding");
    data++;
    len--;
    h2->left--;
  }
  body = (size_t)E2B__MIN((uint64_t)len, (uint64_t)(h2->left > h2->pad ? h2->left - h2->pad : 0));
  stream = h2->reading;
  if (!body || !stream) return E2B_OK;
  if (stream->head_request || stream->status == 204 || stream->status == 304)
    return e2b__h2_spoil(stream, E2B_ERR_PROTOCOL, E2B__H2_PROTOCOL_ERROR, "a body where there is none");
  if (stream->length >= 0 && body > (uint64_t)stream->length - stream->received) { /* what is in the length is delivered still */
    body = (size_t)((uint64_t)stream->length - stream->received);
    too_long = true;
  }
  stream->received += body;
  h2->idle_frames = h2->empty_frames = 0;
  h2->current = stream;
  err = body ? h2->events->on_body(stream, data, body) : E2B_OK;
  if (!h2->current) return h2->err;
  h2->current = NULL;
  if (err) return e2b__h2_spoil(stream, err, E2B__H2_CANCEL, "the data could not be delivered");
  if (too_long) return e2b__h2_spoil(stream, E2B_ERR_PROTOCOL, E2B__H2_PROTOCOL_ERROR, "the body is longer than its content-length");
  return E2B_OK;
}

/* ---- the other frames ---- */

static e2b_err e2b__h2_setting(e2b__h2 *h2, uint32_t id, uint32_t value) {
  e2b__h2_stream *stream;
  if (id == 1) e2b__hpack_encoder_limit(&h2->encoder, value);
  if (id == 2 && value != 0) return e2b__h2_protocol(h2, E2B__H2_PROTOCOL_ERROR, "the server wants to push");
  if (id == 3) h2->max_streams = value;
  if (id == 5 && (value < E2B__H2_FRAME_MAX || value > 0xffffff))
    return e2b__h2_protocol(h2, E2B__H2_PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE is out of range");
  if (id != 4) return E2B_OK;
  if (value > E2B__H2_WINDOW_MAX) return e2b__h2_protocol(h2, E2B__H2_FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE is out of range");
  for (stream = h2->streams; stream; stream = stream->next) {
    stream->send_window += (int64_t)value - (int64_t)h2->peer_window;
    if (stream->send_window > E2B__H2_WINDOW_MAX) return e2b__h2_protocol(h2, E2B__H2_FLOW_CONTROL_ERROR, "a window grew beyond its limit");
  }
  h2->peer_window = value;
  return E2B_OK;
}

static e2b_err e2b__h2_on_settings(e2b__h2 *h2) {
  size_t at;
  if (h2->flags & E2B__H2_ACK) {
    if (h2->settings_waiting) h2->settings_waiting--;
    return E2B_OK;
  }
  for (at = 0; at + 6 <= h2->payload.len; at += 6) {
    const uint8_t *entry = h2->payload.data + at;
    e2b_err err = e2b__h2_setting(h2, (uint32_t)entry[0] << 8 | entry[1], e2b__h2_get_u32(entry + 2));
    if (err) return err;
  }
  h2->settled = true;
  e2b__h2_put_frame(&h2->out, E2B__H2_SETTINGS, E2B__H2_ACK, 0, NULL, 0);
  return E2B_OK;
}

static e2b_err e2b__h2_on_goaway(e2b__h2 *h2) {
  uint32_t last = e2b__h2_get_u32(h2->payload.data) & E2B__H2_WINDOW_MAX;
  e2b__h2_stream *stream, *next;
  if (last > h2->goaway_last) return e2b__h2_protocol(h2, E2B__H2_PROTOCOL_ERROR, "a GOAWAY that takes back another");
  h2->goaway_last = last;
  h2->goaway_code = e2b__h2_get_u32(h2->payload.data + 4);
  h2->draining = true;
  for (stream = h2->streams; stream; stream = next) {
    next = stream->next;
    if (stream->id <= last) continue;
    if (stream->answered) /* whatever the server says now: it did look at it */
      e2b__h2_end_stream(stream, E2B_ERR_TRUNCATED, "the server closed the connection (GOAWAY) within its answer",
                         h2->goaway_code, false);
    else
      e2b__h2_end_stream(stream, E2B_ERR_CLOSED, "the server closed the connection (GOAWAY) and did not look at the request",
                         h2->goaway_code, true);
    next = h2->streams; /* on_end may have ended others */
  }
  return h2->err;
}

static e2b_err e2b__h2_on_reset(e2b__h2 *h2) {
  e2b__h2_stream *stream = e2b__h2_find(h2, h2->id);
  uint32_t code = e2b__h2_get_u32(h2->payload.data);
  if (!e2b__h2_known(h2, h2->id)) return e2b__h2_protocol(h2, E2B__H2_PROTOCOL_ERROR, "a reset of a stream that was never opened");
  if (!stream) return E2B_OK;
  if (!stream->answered && (code == E2B__H2_REFUSED_STREAM || code == E2B__H2_HTTP_1_1_REQUIRED))
    e2b__h2_end_stream(stream, E2B_ERR_UNAVAILABLE, "the server refused the request", code, true);
  else
    e2b__h2_end_stream(stream, stream->answered ? E2B_ERR_TRUNCATED : E2B_ERR_CLOSED, "the server reset the stream", code, false);
  return h2->err;
}

static e2b_err e2b__h2_on_window(e2b__h2 *h2) {
  uint32_t more = e2b__h2_get_u32(h2->payload.data) & E2B__H2_WINDOW_MAX;
  e2b__h2_stream *stream;
  if (h2->id == 0) {
    if (more == 0) return e2b__h2_protocol(h2, E2B__H2_PROTOCOL_ERROR, "a WINDOW_UPDATE of nothing");
    h2->send_window += more;
    return h2->send_window > E2B__H2_WINDOW_MAX ? e2b__h2_protocol(h2, E2B__H2_FLOW_CONTROL_ERROR, "a window grew beyond its limit") : E2B_OK;
  }
  if (!e2b__h2_known(h2, h2->id)) return e2b__h2_protocol(h2, E2B__H2_PROTOCOL_ERROR, "a WINDOW_UPDATE of a stream that was never opened");
  stream = e2b__h2_find(h2, h2->id);
  if (!stream) return E2B_OK;
  if (more == 0) return e2b__h2_spoil(stream, E2B_ERR_PROTOCOL, E2B__H2_PROTOCOL_ERROR, "a WINDOW_UPDATE of nothing");
  stream->send_window += more;
  if (stream->send_window > E2B__H2_WINDOW_MAX)
    return e2b__h2_spoil(stream, E2B_ERR_PROTOCOL, E2B__H2_FLOW_CONTROL_ERROR, "a window grew beyond its limit");
  return E2B_OK;
}

static e2b_err e2b__h2_on_ping(e2b__h2 *h2) {
  if (!(h2->flags & E2B__H2_ACK))
    e2b__h2_put_frame(&h2->out, E2B__H2_PING, E2B__H2_ACK, 0, h2->payload.data, 8);
  else if (h2->ping_waits)
    e2b__h2_sampled(h2);
  return E2B_OK;
}

/* ---- frames ---- */

/* The size a frame of that type must have; -1 = any. */
static int e2b__h2_fixed_size(uint32_t type, uint32_t flags) {
  switch (type) {
    case E2B__H2_PRIORITY: return 5;
    case E2B__H2_RST_STREAM: case E2B__H2_WINDOW_UPDATE: return 4;
    case E2B__H2_PING: return 8;
    case E2B__H2_SETTINGS: return flags & E2B__H2_ACK ? 0 : -1;
    default: return -1;
  }
}

/* Counts frames that bring us nothing. */
static e2b_err e2b__h2_check_flood(e2b__h2 *h2) {
  bool empty = h2->size == 0 && !(h2->flags & E2B__H2_END_STREAM) && (h2->type == E2B__H2_DATA || h2->type == E2B__H2_HEADERS);
  if (h2->type == E2B__H2_DATA || h2->type == E2B__H2_HEADERS || h2->type == E2B__H2_CONTINUATION) {
    if (empty && ++h2->empty_frames > E2B__H2_MAX_EMPTY) return e2b__h2_calm(h2, "the server sends empty frames only");
    return E2B_OK;
  }
  if (h2->now >= h2->idle_since + 10000u) {
    h2->idle_since = h2->now;
    h2->idle_frames = 0;
  }
  if (++h2->idle_frames > E2B__H2_MAX_IDLE_FRAMES) return e2b__h2_calm(h2, "the server sends control frames only");
  if ((h2->type == E2B__H2_PING || h2->type == E2B__H2_SETTINGS) && ++h2->acks > E2B__H2_MAX_ACKS)
    return e2b__h2_calm(h2, "the server wants answers that it does not read");
  return E2B_OK;
}

static e2b_err e2b__h2_frame_begin(e2b__h2 *h2) {
  bool on_connection = h2->type == E2B__H2_SETTINGS || h2->type == E2B__H2_PING || h2->type == E2B__H2_GOAWAY;
  bool on_stream = h2->type <= E2B__H2_CONTINUATION && !on_connection && h2->type != E2B__H2_WINDOW_UPDATE;
  int fixed = e2b__h2_fixed_size(h2->type, h2->flags);
  if (!h2->settled && (h2->type != E2B__H2_SETTINGS || h2->flags & E2B__H2_ACK))
    return e2b__h2_protocol(h2, E2B__H2_PROTOCOL_ERROR, memcmp(h2->head, "HTTP/1.", 7) == 0
                                                            ? "the server answered with HTTP/1: it does not speak HTTP/2 on this port"
                                                            : "the server does not speak HTTP/2 on this port");
  if (h2->size > E2B__H2_FRAME_MAX) return e2b__h2_protocol(h2, E2B__H2_FRAME_SIZE_ERROR, "a frame is larger than allowed");
  if (h2->block_open && (h2->type != E2B__H2_CONTINUATION || h2->id != h2->block_id))
    return e2b__h2_protocol(h2, E2B__H2_PROTOCOL_ERROR, "another frame within a response head");
  if (!h2->block_open && h2->type == E2B__H2_CONTINUATION)
    return e2b__h2_protocol(h2, E2B__H2_PROTOCOL_ERROR, "a CONTINUATION frame of nothing");
  if ((on_connection && h2->id != 0) || (on_stream && h2->id == 0))
    return e2b__h2_protocol(h2, E2B__H2_PROTOCOL_ERROR, "a frame on the wrong stream");
  if ((fixed >= 0 && h2->size != (uint32_t)fixed) || (h2->type == E2B__H2_SETTINGS && h2->size % 6 != 0) ||
      (h2->type == E2B__H2_GOAWAY && h2->size < 8))
    return e2b__h2_protocol(h2, E2B__H2_FRAME_SIZE_ERROR, "a frame has the wrong size");
  if (h2->type == E2B__H2_PUSH_PROMISE) return e2b__h2_protocol(h2, E2B__H2_PROTOCOL_ERROR, "the server pushes");
  if (h2->type == E2B__H2_SETTINGS && h2->size > E2B__H2_MAX_SETTINGS * 6) return e2b__h2_calm(h2, "too many settings");
  if (h2->type == E2B__H2_HEADERS && !e2b__h2_known(h2, h2->id))
    return e2b__h2_protocol(h2, E2B__H2_PROTOCOL_ERROR, "a response head on a stream that was never opened");
  if (e2b__h2_check_flood(h2)) return h2->err;
  return h2->type == E2B__H2_DATA ? e2b__h2_data_begin(h2) : E2B_OK;
}

static e2b_err e2b__h2_frame_end(e2b__h2 *h2) {
  e2b_err err = E2B_OK;
  switch (h2->type) {
    case E2B__H2_DATA:
      if (h2->reading && h2->flags & E2B__H2_END_STREAM) err = e2b__h2_remote_end(h2->reading);
      h2->reading = NULL;
      break;
    case E2B__H2_HEADERS: case E2B__H2_CONTINUATION: err = e2b__h2_on_headers(h2); break;
    case E2B__H2_RST_STREAM: err = e2b__h2_on_reset(h2); break;
    case E2B__H2_SETTINGS: err = e2b__h2_on_settings(h2); break;
    case E2B__H2_PING: err = e2b__h2_on_ping(h2); break;
    case E2B__H2_GOAWAY: err = e2b__h2_on_goaway(h2); break;
    case E2B__H2_WINDOW_UPDATE: err = e2b__h2_on_window(h2); break;
    default: break; /* PRIORITY, and what later versions may bring */
  }
  h2->payload.len = 0;
  h2->head_len = 0;
  return err;
}

/* Takes a piece of the payload of the frame being read. */
static e2b_err e2b__h2_payload(e2b__h2 *h2, const uint8_t *data, size_t len) {
  e2b_err err = E2B_OK;
  if (h2->type == E2B__H2_DATA) {
    bool padded = !h2->pad_known;
    err = e2b__h2_data(h2, data, len);
    if (padded) len--; /* e2b__h2_data took it off h2->left */
  } else if (h2->type < E2B__H2_CONTINUATION + 1) {
    size_t keep = h2->type == E2B__H2_GOAWAY ? E2B__MIN(len, (size_t)8 - E2B__MIN(h2->payload.len, (size_t)8)) : len;
    e2b__buf_put(&h2->payload, data, keep);
    if (h2->payload.err) err = e2b__h2_fail(h2, h2->payload.err, E2B__H2_INTERNAL_ERROR, "out of memory for a frame");
  }
  h2->left -= (uint32_t)len;
  return err;
}

/* Takes bytes as they arrive, in any split. After an error (E2B_ERR_PROTOCOL, _LIMIT, _NO_MEMORY; h2->detail says why) a GOAWAY lies
 * in h2->out and the caller ends all streams with e2b__h2_lost. */
static e2b_err e2b__h2_feed(e2b__h2 *h2, const uint8_t *data, size_t len, uint64_t now) {
  h2->now = now;
  while (len && !h2->err) {
    size_t n;
    if (h2->head_len < E2B__H2_HEAD) {
      n = E2B__MIN(len, E2B__H2_HEAD - h2->head_len);
      memcpy(h2->head + h2->head_len, data, n);
      h2->head_len += n;
      data += n;
      len -= n;
      if (h2->head_len < E2B__H2_HEAD) break;
      h2->size = h2->left = e2b__h2_get_u32(h2->head) >> 8;
      h2->type = h2->head[3];
      h2->flags = h2->head[4];
      h2->id = e2b__h2_get_u32(h2->head + 5) & E2B__H2_WINDOW_MAX;
      if (e2b__h2_frame_begin(h2)) break;
    } else {
      n = E2B__MIN(len, (size_t)h2->left);
      if (e2b__h2_payload(h2, data, n)) break;
      data += n;
      len -= n;
    }
    if (h2->left == 0) (void)e2b__h2_frame_end(h2);
  }
  if (!h2->err && h2->out.err) h2->err = h2->out.err;
  return h2->err;
}
#endif /* E2B_NO_HTTP2 */

/* ================================================================================================================== */
/* >>>> sockets */
/* ================================================================================================================== */

#if E2B__WIN32
  #include <winsock2.h>
  #include <ws2tcpip.h>
  #include <mstcpip.h>
  #include <windows.h>
  #include <bcrypt.h>
  #include <wincrypt.h>
#else
  #include <errno.h>
  #include <fcntl.h>
  #include <netdb.h>
  #include <poll.h>
  #include <signal.h>
  #include <time.h>
  #include <unistd.h>
  #include <arpa/inet.h>
  #include <netinet/in.h>
  #include <netinet/tcp.h>
  #include <sys/socket.h>
  #include <sys/types.h>
  #if !defined(AI_NUMERICHOST) || !defined(CLOCK_MONOTONIC)
    #error "e2b.h: include it before system headers, or compile with -D_POSIX_C_SOURCE=200809L: POSIX is hidden"
  #endif
#endif

#if defined(E2B_NO_THREADS)
  #define E2B__THREADS 0
#else
  #define E2B__THREADS 1
  #if !E2B__WIN32
    #include <pthread.h>
  #endif
#endif

/* Clock, randomness. */

/* Microseconds on a clock that is never set. */
static uint64_t e2b__net_now_us(void) {
#if E2B__WIN32
  LARGE_INTEGER ticks, per_second;
  uint64_t t, f;
  QueryPerformanceCounter(&ticks);
  QueryPerformanceFrequency(&per_second);
  t = (uint64_t)ticks.QuadPart;
  f = (uint64_t)per_second.QuadPart;
  return t / f * 1000000u + t % f * 1000000u / f;
#else
  struct timespec ts;
  if (clock_gettime(CLOCK_MONOTONIC, &ts) != 0) return 0;
  return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
#endif
}

E2B__MAYBE_UNUSED static uint64_t e2b__net_now_ms(void) {
  return e2b__net_now_us() / 1000u;
}

/* Unpredictable bytes, for nonces; TLS has a generator of its own. */
static bool e2b__net_random(void *out, size_t len) {
#if E2B__WIN32
  return BCryptGenRandom(NULL, (PUCHAR)out, (ULONG)len, BCRYPT_USE_SYSTEM_PREFERRED_RNG) == 0;
#else
  size_t done = 0;
  int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  while (done < len) {
    ssize_t got = read(fd, (uint8_t *)out + done, len - done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    done += (size_t)got;
  }
  close(fd);
  return done == len;
#endif
}

/* The differences between POSIX and Windows sockets. */
#if E2B__WIN32
typedef SOCKET e2b__sock;
typedef WSAPOLLFD e2b__native_pollfd;
  #define E2B__SOCK_NONE INVALID_SOCKET
  #define E2B__SOCK_ERR(name) WSA##name
#else
typedef int e2b__sock;
typedef struct pollfd e2b__native_pollfd;
  #define E2B__SOCK_NONE (-1)
  #define E2B__SOCK_ERR(name) name
#endif
#if defined(MSG_NOSIGNAL)
  #define E2B__SOCK_SEND_FLAGS MSG_NOSIGNAL
#else
  #define E2B__SOCK_SEND_FLAGS 0
#endif

static int e2b__sock_error(void) {
#if E2B__WIN32
  return WSAGetLastError();
#else
  return errno;
#endif
}

static bool e2b__sock_would_block(int code) {
#if !E2B__WIN32
  if (code == EAGAIN || code == ENOMEM) return true;
#endif
  return code == E2B__SOCK_ERR(EWOULDBLOCK) || code == E2B__SOCK_ERR(ENOBUFS);
}

static bool e2b__sock_no_fds(int code) {
#if !E2B__WIN32
  if (code == ENFILE) return true;
#endif
  return code == E2B__SOCK_ERR(EMFILE);
}

/* Plain words for the common codes of connections, NULL for the others. */
static const char *e2b__sock_error_text(int code) {
  static const struct {
    int code;
    const char *text;
  } texts[] = {
    { E2B__SOCK_ERR(ECONNREFUSED), "connection refused" },
    { E2B__SOCK_ERR(ECONNRESET), "connection reset by the peer" },
    { E2B__SOCK_ERR(ECONNABORTED), "connection aborted" },
    { E2B__SOCK_ERR(ETIMEDOUT), "no answer" },
    { E2B__SOCK_ERR(EHOSTUNREACH), "host unreachable" },
    { E2B__SOCK_ERR(ENETUNREACH), "network unreachable" },
    { E2B__SOCK_ERR(ENETDOWN), "network down" },
    { E2B__SOCK_ERR(EADDRNOTAVAIL), "address not available" },
    { E2B__SOCK_ERR(EAFNOSUPPORT), "address family not supported" },
    { E2B__SOCK_ERR(EACCES), "not permitted here" },
    { E2B__SOCK_ERR(EMFILE), "too many open files" },
    { E2B__SOCK_ERR(ENOBUFS), "no buffer space" },
    { E2B__SOCK_ERR(ENOTCONN), "not connected" },
#if !E2B__WIN32
    { EPIPE, "connection closed by the peer" },
    { ENFILE, "too many open files" },
    { EPERM, "not permitted here" },
    { ENOMEM, "out of memory" },
#endif
  };
  size_t i;
  for (i = 0; i < E2B__COUNT(texts); i++)
    if (texts[i].code == code) return texts[i].text;
  return NULL;
}

static void e2b__sock_close(e2b__sock s) {
  if (s == E2B__SOCK_NONE) return;
#if E2B__WIN32
  closesocket(s);
#else
  close(s);
#endif
}

/* Non-blocking, and not inherited by child processes. */
static bool e2b__sock_prepare(e2b__sock s) {
#if E2B__WIN32
  u_long on = 1;
  SetHandleInformation((HANDLE)s, HANDLE_FLAG_INHERIT, 0);
  return ioctlsocket(s, (long)FIONBIO, &on) == 0;
#else
  int flags = fcntl(s, F_GETFL);
  return flags >= 0 && fcntl(s, F_SETFL, flags | O_NONBLOCK) == 0 && fcntl(s, F_SETFD, FD_CLOEXEC) == 0;
#endif
}

static void e2b__sock_set(e2b__sock s, int level, int option, int value) {
  (void)setsockopt(s, level, option, (const char *)&value, (socklen_t)sizeof value);
}

/* Small frames leave at once, and a peer that vanished is noticed after about a minute of silence. */
static void e2b__sock_tune(e2b__sock s) {
  e2b__sock_set(s, IPPROTO_TCP, TCP_NODELAY, 1);
  e2b__sock_set(s, SOL_SOCKET, SO_KEEPALIVE, 1);
#if E2B__WIN32
  {
    struct tcp_keepalive keep;
    DWORD got = 0;
    keep.onoff = 1;
    keep.keepalivetime = 30000;
    keep.keepaliveinterval = 3000; /* ten probes, fixed by the system */
    (void)WSAIoctl(s, SIO_KEEPALIVE_VALS, &keep, (DWORD)sizeof keep, NULL, 0, &got, NULL, NULL);
  }
#endif
#if defined(TCP_KEEPIDLE) && !E2B__WIN32
  e2b__sock_set(s, IPPROTO_TCP, TCP_KEEPIDLE, 30);
#elif defined(TCP_KEEPALIVE) && !E2B__WIN32
  e2b__sock_set(s, IPPROTO_TCP, TCP_KEEPALIVE, 30);
#endif
#if defined(TCP_KEEPINTVL) && defined(TCP_KEEPCNT) && !E2B__WIN32
  e2b__sock_set(s, IPPROTO_TCP, TCP_KEEPINTVL, 10);
  e2b__sock_set(s, IPPROTO_TCP, TCP_KEEPCNT, 3);
#endif
#if defined(SO_NOSIGPIPE)
  e2b__sock_set(s, SOL_SOCKET, SO_NOSIGPIPE, 1);
#endif
}

/* A TCP socket, non-blocking. E2B__SOCK_NONE on failure, e2b__sock_error tells why. */
static e2b__sock e2b__sock_new(int family) {
#if defined(SOCK_NONBLOCK) && defined(SOCK_CLOEXEC)
  return socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
#else
  e2b__sock s = socket(family, SOCK_STREAM, 0);
  if (s != E2B__SOCK_NONE && !e2b__sock_prepare(s)) {
    e2b__sock_close(s);
    return E2B__SOCK_NONE;
  }
  return s;
#endif
}

/* The built-in transport. A connection is its descriptor, kept in the pointer (plus 1: descriptor 0 is not NULL).
 * Failures are the system's error code, negated. */
static void *e2b__sock_to_conn(e2b__sock s) {
  return (void *)((uintptr_t)s + 1u);
}

static e2b__sock e2b__sock_of(void *conn) {
  return (e2b__sock)((uintptr_t)conn - 1u);
}

static int e2b__sock_open(void *user, const e2b_endpoint *to, void **conn) {
  struct sockaddr_storage addr;
  socklen_t len;
  e2b__sock s;
  int code;
  E2B__UNUSED(user);
  memset(&addr, 0, sizeof addr);
  if (to->addr_len == 16) {
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&addr;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(to->port);
    memcpy(&v6->sin6_addr, to->addr, 16);
    len = (socklen_t)sizeof *v6;
  } else {
    struct sockaddr_in *v4 = (struct sockaddr_in *)&addr;
    v4->sin_family = AF_INET;
    v4->sin_port = htons(to->port);
    memcpy(&v4->sin_addr, to->addr, 4);
    len = (socklen_t)sizeof *v4;
  }
  s = e2b__sock_new(to->addr_len == 16 ? AF_INET6 : AF_INET);
  if (s == E2B__SOCK_NONE) return -e2b__sock_error();
  e2b__sock_tune(s);
  *conn = e2b__sock_to_conn(s);
  if (connect(s, (const struct sockaddr *)&addr, len) == 0) return 0;
  code = e2b__sock_error();
  /* After EINTR the connect goes on by itself. */
  if (code == E2B__SOCK_ERR(EINPROGRESS) || code == E2B__SOCK_ERR(EWOULDBLOCK) || code == E2B__SOCK_ERR(EINTR))
    return E2B_IO_AGAIN;
  e2b__sock_close(s);
  return -code;
}

static int e2b__sock_ready(void *user, void *conn) {
  e2b__sock s = e2b__sock_of(conn);
  int n, code = 0;
  socklen_t len = (socklen_t)sizeof code;
#if E2B__WIN32
  struct timeval none; /* WSAPoll misses failed connects before Windows 10 2004 */
  fd_set writable, failed;
  none.tv_sec = none.tv_usec = 0;
  FD_ZERO(&writable);
  FD_ZERO(&failed);
  FD_SET(s, &writable);
  FD_SET(s, &failed);
  n = select(0, NULL, &writable, &failed, &none);
#else
  struct pollfd p;
  p.fd = s;
  p.events = POLLOUT;
  p.revents = 0;
  n = poll(&p, 1, 0);
#endif
  E2B__UNUSED(user);
  if (n <= 0) return E2B_IO_AGAIN;
  if (getsockopt(s, SOL_SOCKET, SO_ERROR, (char *)&code, &len) != 0) code = e2b__sock_error();
  return -code;
}

static int e2b__sock_rx(void *user, void *conn, void *buf, size_t cap) {
  E2B__UNUSED(user);
  for (;;) {
    int code;
#if E2B__WIN32
    int n = recv(e2b__sock_of(conn), (char *)buf, (int)E2B__MIN(cap, (size_t)INT_MAX), 0);
#else
    ssize_t n = recv(e2b__sock_of(conn), buf, E2B__MIN(cap, (size_t)INT_MAX), 0);
#endif
    if (n > 0) return (int)n;
    if (n == 0) return E2B_IO_EOF;
    code = e2b__sock_error();
    if (code == E2B__SOCK_ERR(EINTR)) continue;
    return e2b__sock_would_block(code) ? E2B_IO_AGAIN : -code;
  }
}

static int e2b__sock_tx(void *user, void *conn, const void *buf, size_t len) {
  E2B__UNUSED(user);
  for (;;) {
    int code;
#if E2B__WIN32
    int n = send(e2b__sock_of(conn), (const char *)buf, (int)E2B__MIN(len, (size_t)INT_MAX), 0);
#else
    ssize_t n = send(e2b__sock_of(conn), buf, E2B__MIN(len, (size_t)INT_MAX), E2B__SOCK_SEND_FLAGS);
#endif
    if (n >= 0) return n > 0 ? (int)n : E2B_IO_AGAIN;
    code = e2b__sock_error();
    if (code == E2B__SOCK_ERR(EINTR)) continue;
    return e2b__sock_would_block(code) ? E2B_IO_AGAIN : -code;
  }
}

static void e2b__sock_shut(void *user, void *conn) {
  E2B__UNUSED(user);
  e2b__sock_close(e2b__sock_of(conn));
}

static intptr_t e2b__sock_fd(void *user, void *conn) {
  E2B__UNUSED(user);
  return (intptr_t)e2b__sock_of(conn);
}

static const e2b_transport *e2b__net_transport(void) {
  static const e2b_transport sockets = {
    e2b__sock_open, e2b__sock_ready, e2b__sock_rx, e2b__sock_tx, e2b__sock_shut, e2b__sock_fd, NULL, NULL, NULL, 0
  };
  return &sockets;
}

/* e2b_error.sys_code for a transport's result: the system's codes are positive, the user's stay as they are. */
static int e2b__transport_code(const e2b_transport *transport, int result) {
  return transport == e2b__net_transport() ? -result : result;
}

static void e2b__transport_text(const e2b_transport *transport, int result, char *out, size_t cap) {
  int code = e2b__transport_code(transport, result);
  const char *text = transport == e2b__net_transport() ? e2b__sock_error_text(code) : NULL;
  if (text)
    (void)snprintf(out, cap, "%s", text);
  else
    (void)snprintf(out, cap, "error %d", code);
}

/* Waiting, with poll: descriptors may have any number. */
static void e2b__native_poll_set(e2b__native_pollfd *entry, intptr_t fd, uint32_t events) {
  memset(entry, 0, sizeof *entry);
  entry->fd = (e2b__sock)fd;
  if (events & E2B_FD_READ) entry->events = (short)(entry->events | POLLIN);
  if (events & E2B_FD_WRITE) entry->events = (short)(entry->events | POLLOUT);
}

/* E2B_FD_READ and E2B_FD_WRITE of an entry after the wait; an error or hang-up counts as both. */
static uint32_t e2b__native_poll_get(const e2b__native_pollfd *entry) {
  uint32_t events = 0;
  if (entry->revents & (POLLERR | POLLHUP | POLLNVAL)) return E2B_FD_READ | E2B_FD_WRITE;
  if (entry->revents & POLLIN) events |= E2B_FD_READ;
  if (entry->revents & POLLOUT) events |= E2B_FD_WRITE;
  return events;
}

/* Returns how many entries have revents; 0 after timeout_ms (-1 = no limit) and after a signal, so that the loop looks
 * at the clock again; a negated error code when the wait itself failed. */
static int e2b__native_poll(e2b__native_pollfd *fds, size_t count, int timeout_ms) {
#if E2B__WIN32
  int n;
  if (count == 0) { /* which WSAPoll refuses */
    Sleep(timeout_ms < 0 ? INFINITE : (DWORD)timeout_ms);
    return 0;
  }
  n = WSAPoll(fds, (ULONG)count, timeout_ms);
  return n >= 0 ? n : -WSAGetLastError();
#else
  int n = poll(fds, (nfds_t)count, timeout_ms);
  if (n >= 0) return n;
  return errno == EINTR || errno == EAGAIN ? 0 : -errno;
#endif
}

/* Wake-up: a pipe (POSIX) or a pair of connected sockets (Windows), whose rx end stands in every wait. */
typedef struct e2b__wake {
  intptr_t rx, tx;
} e2b__wake;

#if E2B__WIN32
/* Windows can only wait for sockets. Whoever else connects to the listener meanwhile is turned away. */
static bool e2b__wake_pair(e2b__sock *rx, e2b__sock *tx) {
  struct sockaddr_in addr, peer;
  int len = (int)sizeof addr;
  e2b__sock listener = socket(AF_INET, SOCK_STREAM, 0);
  *rx = E2B__SOCK_NONE;
  *tx = socket(AF_INET, SOCK_STREAM, 0);
  memset(&addr, 0, sizeof addr);
  addr.sin_family = AF_INET;
  addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (listener != E2B__SOCK_NONE && *tx != E2B__SOCK_NONE &&
      bind(listener, (struct sockaddr *)&addr, (int)sizeof addr) == 0 && listen(listener, 1) == 0 &&
      getsockname(listener, (struct sockaddr *)&addr, &len) == 0 &&
      connect(*tx, (struct sockaddr *)&addr, (int)sizeof addr) == 0) {
    len = (int)sizeof peer;
    *rx = accept(listener, (struct sockaddr *)&peer, &len);
    len = (int)sizeof addr;
    if (*rx != E2B__SOCK_NONE &&
        (getsockname(*tx, (struct sockaddr *)&addr, &len) != 0 || addr.sin_port != peer.sin_port)) {
      e2b__sock_close(*rx);
      *rx = E2B__SOCK_NONE;
      WSASetLastError(WSAECONNABORTED);
    }
  }
  e2b__sock_close(listener);
  if (*rx != E2B__SOCK_NONE) e2b__sock_set(*tx, IPPROTO_TCP, TCP_NODELAY, 1); /* a byte would wait for the last one's ACK */
  return *rx != E2B__SOCK_NONE;
}
#endif

static bool e2b__wake_open(e2b__wake *w, int *sys_code) {
#if E2B__WIN32
  e2b__sock ends[2];
  bool ok = e2b__wake_pair(&ends[0], &ends[1]);
#else
  e2b__sock ends[2] = { E2B__SOCK_NONE, E2B__SOCK_NONE };
  bool ok = pipe(ends) == 0;
#endif
  if (ok && e2b__sock_prepare(ends[0]) && e2b__sock_prepare(ends[1])) {
    w->rx = (intptr_t)ends[0];
    w->tx = (intptr_t)ends[1];
    return true;
  }
  *sys_code = e2b__sock_error();
  e2b__sock_close(ends[0]);
  e2b__sock_close(ends[1]);
  return false;
}

static void e2b__wake_close(e2b__wake *w) {
  e2b__sock_close((e2b__sock)w->rx);
  e2b__sock_close((e2b__sock)w->tx);
}

/* Writes a byte; false when the pipe is full. From any thread and from signal handlers, never blocks. */
static bool e2b__wake_put(const e2b__wake *w, char byte) {
#if E2B__WIN32
  return send((e2b__sock)w->tx, &byte, 1, 0) == 1 || WSAGetLastError() != WSAEWOULDBLOCK;
#else
  int saved = errno;
  ssize_t n;
  bool full;
  do n = write((e2b__sock)w->tx, &byte, 1);
  while (n < 0 && errno == EINTR);
  full = n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
  errno = saved;
  return !full;
#endif
}

/* Reads what was written; 0 = nothing. */
static size_t e2b__wake_take(const e2b__wake *w, char *out, size_t cap) {
#if E2B__WIN32
  int n = recv((e2b__sock)w->rx, out, (int)cap, 0);
#else
  int saved = errno;
  ssize_t n;
  do n = read((e2b__sock)w->rx, out, cap);
  while (n < 0 && errno == EINTR);
  errno = saved;
#endif
  return n > 0 ? (size_t)n : 0;
}

/* A lock; nothing when there are no threads. */
#if !E2B__THREADS
typedef int e2b__lock;
  #define e2b__lock_init(lock) ((void)(lock))
  #define e2b__lock_free(lock) ((void)(lock))
  #define e2b__lock_take(lock) ((void)(lock))
  #define e2b__lock_drop(lock) ((void)(lock))
#elif E2B__WIN32
typedef CRITICAL_SECTION e2b__lock;
  #define e2b__lock_init(lock) InitializeCriticalSection(lock)
  #define e2b__lock_free(lock) DeleteCriticalSection(lock)
  #define e2b__lock_take(lock) EnterCriticalSection(lock)
  #define e2b__lock_drop(lock) LeaveCriticalSection(lock)
#else
typedef pthread_mutex_t e2b__lock;
  #define e2b__lock_init(lock) ((void)pthread_mutex_init(lock, NULL))
  #define e2b__lock_free(lock) ((void)pthread_mutex_destroy(lock))
  #define e2b__lock_take(lock) ((void)pthread_mutex_lock(lock))
  #define e2b__lock_drop(lock) ((void)pthread_mutex_unlock(lock))
#endif

/* The wake-up of one client, shared with its look-up threads, which may outlive it. It also keeps Winsock started, so
 * the built-in transport needs one. Memory by E2B_MALLOC: the last reference may be dropped on another thread. */
typedef struct e2b__waker {
  e2b__wake wake;   /* constant while a reference is held: to be used without the lock */
  bool interrupted; /* the client's thread only */
  e2b__lock lock;   /* of refs */
  int refs;
} e2b__waker;

/* NULL with *sys_code: an error code, or 0 for no memory. */
static e2b__waker *e2b__waker_new(int *sys_code) {
  e2b__waker *w = (e2b__waker *)E2B_MALLOC(sizeof *w);
  *sys_code = 0;
  if (!w) return NULL;
  memset(w, 0, sizeof *w);
#if E2B__WIN32
  {
    WSADATA data;
    *sys_code = WSAStartup(MAKEWORD(2, 2), &data);
    if (*sys_code != 0) {
      E2B_FREE(w);
      return NULL;
    }
  }
#endif
  if (!e2b__wake_open(&w->wake, sys_code)) {
#if E2B__WIN32
    WSACleanup();
#endif
    E2B_FREE(w);
    return NULL;
  }
  e2b__lock_init(&w->lock);
  w->refs = 1;
  return w;
}

#if E2B__THREADS
/* For a look-up's thread, which may outlive the client. */
static e2b__waker *e2b__waker_retain(e2b__waker *w) {
  e2b__lock_take(&w->lock);
  w->refs++;
  e2b__lock_drop(&w->lock);
  return w;
}
#endif

/* NULL is fine. */
static void e2b__waker_release(e2b__waker *w) {
  int left;
  if (!w) return;
  e2b__lock_take(&w->lock);
  left = --w->refs;
  e2b__lock_drop(&w->lock);
  if (left > 0) return;
  e2b__lock_free(&w->lock);
  e2b__wake_close(&w->wake);
#if E2B__WIN32
  WSACleanup();
#endif
  E2B_FREE(w);
}

/* For the wait: readable after a signal. */
static intptr_t e2b__waker_fd(const e2b__waker *w) {
  return w->wake.rx;
}

/* From any thread and from signal handlers: ends the wait. A full pipe does so already. */
static void e2b__waker_signal(const e2b__waker *w) {
  (void)e2b__wake_put(&w->wake, 'w');
}

/* The same, and e2b__waker_interrupted will say so. In a full pipe it takes the place of another signal. */
static void e2b__waker_interrupt(const e2b__waker *w) {
  char old;
  while (!e2b__wake_put(&w->wake, 'i')) (void)e2b__wake_take(&w->wake, &old, 1);
}

/* True when there was a signal: then links in E2B__LINK_RESOLVING want to be stepped. */
static bool e2b__waker_drain(e2b__waker *w) {
  char bytes[64];
  bool any = false;
  size_t n;
  do {
    n = e2b__wake_take(&w->wake, bytes, sizeof bytes);
    if (n > 0) any = true;
    if (n > 0 && memchr(bytes, 'i', n)) w->interrupted = true;
  } while (n == sizeof bytes);
  return any;
}

/* Was there an interrupt among the signals drained so far? It is forgotten with that. */
static bool e2b__waker_interrupted(e2b__waker *w) {
  bool interrupted = w->interrupted;
  w->interrupted = false;
  return interrupted;
}

/* ================================================================================================================== */
/* >>>> dns */
/* ================================================================================================================== */

#define E2B__DNS_ADDRS 16      /* kept of one answer */
#define E2B__DNS_SLOTS 16      /* names remembered, and look-ups under way at once, per client */
#define E2B__DNS_TTL_MS 30000u /* getaddrinfo tells no time to live */
#define E2B__DNS_NAME_MAX 253

typedef struct e2b__addr {
  uint8_t len;
  uint8_t bytes[16];
} e2b__addr; /* len 4 or 16 */

/* One look-up, shared by links, the cache and its thread. Memory by E2B_MALLOC: the thread may be the last to let go.
 * Until `done` the thread alone writes; afterwards nobody does. */
typedef struct e2b__dns {
  e2b__lock lock; /* of refs and done */
  int refs;
  bool done;
  int sys_code;
  const char *why; /* static text when count is 0 */
  size_t count;
  e2b__addr addrs[E2B__DNS_ADDRS];
  e2b__waker *waker;
  char host[E2B__DNS_NAME_MAX + 2]; /* and the final dot */
} e2b__dns;

/* Length without the final dot of an absolute name. */
static size_t e2b__dns_name_len(const char *host) {
  size_t len = strlen(host);
  return len > 0 && host[len - 1] == '.' ? len - 1 : len;
}

/* 4 or 16 bytes into `out`; 0 when it is not an address literal. */
static uint8_t e2b__dns_literal(const char *host, uint8_t out[16]) {
  if (inet_pton(AF_INET, host, out) == 1) return 4;
  return inet_pton(AF_INET6, host, out) == 1 ? 16 : 0;
}

/* LDH names and '_', labels of 1 to 63. Names that end in a number are addresses in a notation of the last century
 * ("127.1", "017700000001"), which getaddrinfo would accept: refused. */
static bool e2b__dns_name_ok(const char *host) {
  size_t i, label = 0, len = e2b__dns_name_len(host);
  bool digits = true;
  if (len == 0 || len > E2B__DNS_NAME_MAX) return false;
  for (i = 0; i < len; i++) {
    char c = e2b__ascii_lower(host[i]);
    if (c == '.') {
      if (label == 0) return false;
      label = 0;
      digits = true;
      continue;
    }
    if (!(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9') && c != '-' && c != '_') return false;
    if (c < '0' || c > '9') digits = false;
    if (++label > 63) return false;
  }
  return label > 0 && !digits;
}

/* Is it `name` or below it? */
static bool e2b__dns_name_within(const char *host, const char *name) {
  size_t len = e2b__dns_name_len(host), n = strlen(name);
  return len >= n && e2b__str_eq_nocase(e2b__str_n(host + len - n, n), name) && (len == n || host[len - n - 1] == '.');
}

static void e2b__dns_add(e2b__dns *d, const void *bytes, uint8_t len) {
  size_t i;
  for (i = 0; i < d->count; i++)
    if (d->addrs[i].len == len && memcmp(d->addrs[i].bytes, bytes, len) == 0) return;
  if (d->count == E2B__DNS_ADDRS) return;
  d->addrs[d->count].len = len;
  memcpy(d->addrs[d->count].bytes, bytes, len);
  d->count++;
}

/* RFC 8305: the families take turns, the resolver's first choice leading. */
static void e2b__dns_interleave(e2b__dns *d) {
  size_t i, j;
  for (i = 1; i < d->count; i++) {
    e2b__addr next;
    for (j = i; j < d->count && d->addrs[j].len == d->addrs[i - 1].len; j++) continue;
    if (j == d->count) return;
    next = d->addrs[j];
    memmove(&d->addrs[i + 1], &d->addrs[i], (j - i) * sizeof next);
    d->addrs[i] = next;
  }
}

/* Answers without asking: literals, and what RFC 6761 reserves. */
static bool e2b__dns_known(e2b__dns *d) {
  static const uint8_t loopback4[4] = { 127, 0, 0, 1 };
  static const uint8_t loopback6[16] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 };
  uint8_t literal[16];
  uint8_t len = e2b__dns_literal(d->host, literal);
  if (len) {
    e2b__dns_add(d, literal, len);
  } else if (e2b__dns_name_within(d->host, "localhost")) {
    e2b__dns_add(d, loopback4, 4);
    e2b__dns_add(d, loopback6, 16);
  } else if (e2b__dns_name_within(d->host, "invalid")) {
    d->why = "there is no such name";
  } else {
    return false;
  }
  d->done = true;
  return true;
}

static const char *e2b__dns_why(int code) {
  if (code == EAI_NONAME) return "there is no such name";
#if defined(EAI_NODATA)
  if (code == EAI_NODATA) return "the name has no address";
#endif
  if (code == EAI_AGAIN) return "no name server answered";
  if (code == EAI_MEMORY) return "out of memory";
  return "the look-up failed";
}

/* Blocks, for seconds perhaps. */
static void e2b__dns_ask(e2b__dns *d) {
  struct addrinfo hints, *list = NULL, *at;
  int rc;
  memset(&hints, 0, sizeof hints);
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  rc = getaddrinfo(d->host, NULL, &hints, &list);
  if (rc == EAI_AGAIN) rc = getaddrinfo(d->host, NULL, &hints, &list);
  if (rc != 0) {
    d->sys_code = rc;
    d->why = e2b__dns_why(rc);
#if defined(EAI_SYSTEM)
    if (rc == EAI_SYSTEM) d->sys_code = e2b__sock_error();
#endif
    return;
  }
  for (at = list; at; at = at->ai_next) {
    if (at->ai_family == AF_INET && at->ai_addrlen >= sizeof(struct sockaddr_in))
      e2b__dns_add(d, &((const struct sockaddr_in *)(const void *)at->ai_addr)->sin_addr, 4);
    else if (at->ai_family == AF_INET6 && at->ai_addrlen >= sizeof(struct sockaddr_in6))
      e2b__dns_add(d, &((const struct sockaddr_in6 *)(const void *)at->ai_addr)->sin6_addr, 16);
  }
  freeaddrinfo(list);
  if (d->count == 0) d->why = "the name has no address";
  e2b__dns_interleave(d);
}

/* Lets go of a look-up, at any time: its thread may still run. NULL is fine. */
static void e2b__dns_release(e2b__dns *d) {
  int left;
  if (!d) return;
  e2b__lock_take(&d->lock);
  left = --d->refs;
  e2b__lock_drop(&d->lock);
  if (left > 0) return;
  e2b__lock_free(&d->lock);
  e2b__waker_release(d->waker);
  E2B_FREE(d);
}

static e2b__dns *e2b__dns_retain(e2b__dns *d) {
  e2b__lock_take(&d->lock);
  d->refs++;
  e2b__lock_drop(&d->lock);
  return d;
}

/* True when the look-up is finished: then addrs, count (0 = failed), sys_code and why may be read. */
static bool e2b__dns_done(e2b__dns *d) {
  bool done;
  e2b__lock_take(&d->lock);
  done = d->done;
  e2b__lock_drop(&d->lock);
  return done;
}

static void e2b__dns_finish(e2b__dns *d) {
  e2b__lock_take(&d->lock);
  d->done = true;
  e2b__lock_drop(&d->lock);
}

#if E2B__THREADS
static void e2b__dns_thread_body(e2b__dns *d) {
  e2b__dns_ask(d);
  e2b__dns_finish(d);
  e2b__waker_signal(d->waker);
  e2b__dns_release(d);
}

  #if E2B__WIN32
static DWORD WINAPI e2b__dns_thread(LPVOID arg) {
  e2b__dns_thread_body((e2b__dns *)arg);
  return 0;
}

/* 0, or the system's error code. */
static int e2b__dns_spawn(e2b__dns *d) {
  HANDLE thread = CreateThread(NULL, 0, e2b__dns_thread, d, 0, NULL);
  if (!thread) return (int)GetLastError();
  CloseHandle(thread);
  return 0;
}
  #else
static void *e2b__dns_thread(void *arg) {
  e2b__dns_thread_body((e2b__dns *)arg);
  return NULL;
}

/* 0, or the system's error code. The thread takes no signals: the program's handlers do not expect to run on it. */
static int e2b__dns_spawn(e2b__dns *d) {
  pthread_t thread;
  sigset_t all, before;
  int rc;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  rc = pthread_create(&thread, NULL, e2b__dns_thread, d);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (rc == 0) pthread_detach(thread);
  return rc;
}
  #endif
#endif

/* Starts a look-up; the waker fires when it is finished. `host` must be a literal or pass e2b__dns_name_ok.
 * NULL = no memory. */
static e2b__dns *e2b__dns_start(e2b__waker *waker, const char *host) {
  e2b__dns *d = (e2b__dns *)E2B_MALLOC(sizeof *d);
  size_t len = strlen(host);
#if E2B__THREADS
  int rc;
#endif
  if (!d) return NULL;
  memset(d, 0, sizeof *d);
  e2b__lock_init(&d->lock);
  d->refs = 1;
  memcpy(d->host, host, E2B__MIN(len, sizeof d->host - 1));
  if (e2b__dns_known(d)) return d;
#if E2B__THREADS
  d->waker = e2b__waker_retain(waker);
  d->refs = 2;
  rc = e2b__dns_spawn(d);
  if (rc == 0) return d;
  d->refs = 1;
  d->sys_code = rc;
  d->why = "cannot start a thread for the look-up";
#else
  E2B__UNUSED(waker);
  e2b__dns_ask(d);
#endif
  e2b__dns_finish(d);
  return d;
}

/* The names a client looked up lately, and those under way: links that want the same name share one look-up. */
typedef struct e2b__dns_slot {
  e2b__dns *dns;
  uint64_t expires_ms;
} e2b__dns_slot;

static void e2b__dns_slot_clear(e2b__dns_slot *slot) {
  e2b__dns_release(slot->dns);
  slot->dns = NULL;
}

/* E2B_OK and a reference in *out; E2B_PENDING when too many look-ups are under way: try again when the waker fires;
 * E2B_ERR_NO_MEMORY. */
static e2b_err e2b__dns_get(e2b__dns_slot *slots, e2b__waker *waker, const char *host, uint64_t now_ms,
                            e2b__dns **out) {
  uint8_t literal[16];
  e2b__dns_slot *use = NULL;
  size_t i;
  if (e2b__dns_literal(host, literal) || e2b__dns_name_within(host, "localhost")) {
    *out = e2b__dns_start(waker, host);
    return *out ? E2B_OK : E2B_ERR_NO_MEMORY;
  }
  for (i = 0; i < E2B__DNS_SLOTS; i++) {
    e2b__dns_slot *slot = &slots[i];
    bool done = slot->dns && e2b__dns_done(slot->dns);
    if (done && (slot->dns->count == 0 || now_ms >= slot->expires_ms)) e2b__dns_slot_clear(slot);
    if (slot->dns && e2b__str_eq_nocase(e2b__str(host), slot->dns->host)) {
      *out = e2b__dns_retain(slot->dns);
      return E2B_OK;
    }
    if (slot->dns && !done) continue;
    if (!use || (use->dns && (!slot->dns || slot->expires_ms < use->expires_ms))) use = slot;
  }
  if (!use) return E2B_PENDING;
  e2b__dns_slot_clear(use);
  use->dns = e2b__dns_start(waker, host);
  if (!use->dns) return E2B_ERR_NO_MEMORY;
  use->expires_ms = now_ms + E2B__DNS_TTL_MS;
  *out = e2b__dns_retain(use->dns);
  return E2B_OK;
}

/* After none of a name's addresses answered: ask again next time. */
static void e2b__dns_forget(e2b__dns_slot *slots, const char *host) {
  size_t i;
  for (i = 0; i < E2B__DNS_SLOTS; i++)
    if (slots[i].dns && e2b__str_eq_nocase(e2b__str(host), slots[i].dns->host)) e2b__dns_slot_clear(&slots[i]);
}

/* ================================================================================================================== */
/* >>>> tls */
/* ================================================================================================================== */

/* Everything that knows mbedTLS; the differences between 2.28, 3.x and 4.x are here and nowhere else. */
#include <mbedtls/version.h>
#if MBEDTLS_VERSION_NUMBER < 0x021C0000 || (MBEDTLS_VERSION_NUMBER >= 0x03000000 && MBEDTLS_VERSION_NUMBER < 0x03020000)
  #error "e2b.h: mbedTLS 2.28, or 3.2 or newer is needed"
#endif
#include <mbedtls/md.h>
#include <mbedtls/net_sockets.h> /* error codes for the BIO; none of its functions */
#include <mbedtls/pk.h>
#include <mbedtls/ssl.h>
#include <mbedtls/ssl_ciphersuites.h>
#include <mbedtls/x509_crt.h>
#define E2B__MBEDTLS3 (MBEDTLS_VERSION_NUMBER >= 0x03000000)
#define E2B__MBEDTLS4 (MBEDTLS_VERSION_NUMBER >= 0x04000000)
#if !E2B__MBEDTLS4
  #include <mbedtls/ctr_drbg.h>
  #include <mbedtls/entropy.h>
  #include <mbedtls/md.h>
#endif
#if E2B__MBEDTLS3
  #include <psa/crypto.h>
#endif
#if defined(MBEDTLS_ERROR_C) && !E2B__MBEDTLS4
  #include <mbedtls/error.h>
#endif

#if E2B__MBEDTLS3
  #define E2B__TLS_BAD_VERSION MBEDTLS_ERR_SSL_BAD_PROTOCOL_VERSION
#else
  #define E2B__TLS_BAD_VERSION MBEDTLS_ERR_SSL_BAD_HS_PROTOCOL_VERSION
#endif
#if E2B__MBEDTLS3 && defined(MBEDTLS_SSL_PROTO_TLS1_3)
  #define E2B__TLS13 1
  #if defined(MBEDTLS_SSL_PROTO_TLS1_2)
    #define E2B__TLS_NO_VERSION "no TLS version in common (here: 1.2 and 1.3, or only 1.3 with tls.min_tls13)"
  #else
    #define E2B__TLS_NO_VERSION "no TLS version in common (here: 1.3, this mbedTLS has no other)"
  #endif
#else
  #define E2B__TLS13 0
  #define E2B__TLS_NO_VERSION "no TLS version in common (here: 1.2)"
#endif

#define E2B__TLS_SESSIONS 32
#define E2B__TLS_SESSION_MAX 16384 /* bytes of one saved session: it holds the peer's certificate */
#define E2B__TLS_ALPN_MAX 2
#define E2B__TLS_PIN_LEN 32 /* SHA-256 */

/* A session to resume, serialised. Holds secrets. */
typedef struct e2b__tls_session {
  char *host; /* NULL = free slot */
  uint16_t port;
  bool once; /* a TLS 1.3 ticket: to be used for one connection */
  uint8_t *blob;
  size_t len;
  uint32_t stamp; /* of its saving */
} e2b__tls_session;

/* What the connections of one client share. Sessions are kept by host and port; whatever else they depend on (trust,
 * ALPN) is the same for all of them. */
typedef struct e2b__tls_shared {
  e2b__mem *mem;
  mbedtls_ssl_config conf;
  mbedtls_x509_crt ca;
  mbedtls_x509_crt own_cert; /* the client's, and its key; empty when there is none */
  mbedtls_pk_context own_key;
#if !E2B__MBEDTLS4
  mbedtls_entropy_context entropy;
  mbedtls_ctr_drbg_context rng;
#endif
  const char *alpn[E2B__TLS_ALPN_MAX + 1];
  const uint8_t *pins; /* the client's */
  size_t pin_count;
  bool min_tls13;
  bool insecure;
  bool keep_sessions; /* never when insecure: a resumed session is not verified again */
  uint32_t stamp;
  e2b__tls_session sessions[E2B__TLS_SESSIONS];
} e2b__tls_shared;

/* The library's text for a code, and the code. */
static void e2b__tls_code_text(int code, char *out, size_t cap) {
#if defined(MBEDTLS_ERROR_C) && !E2B__MBEDTLS4
  char text[128];
  mbedtls_strerror(code, text, sizeof text);
  (void)snprintf(out, cap, "%s (-0x%04X)", text, (unsigned)-code);
#else
  (void)snprintf(out, cap, "mbedTLS error -0x%04X (%d)", (unsigned)-code, code);
#endif
}

/* A code has the one of a high-level module in its upper bits and perhaps that of a low-level one below. Codes of PSA are
 * smaller than any of the high-level ones. */
static bool e2b__tls_no_memory(int code) {
  unsigned high = (unsigned)-code & 0xFF80u, low = (unsigned)-code & 0x7Fu;
  if (code >= 0) return false;
  if (code == MBEDTLS_ERR_SSL_ALLOC_FAILED || code == MBEDTLS_ERR_X509_ALLOC_FAILED || code == MBEDTLS_ERR_PK_ALLOC_FAILED)
    return true;
  if (high == 0x1180u || high == 0x4D80u || high == 0x5180u || high == 0x6180u) return true; /* PEM, ECP, MD, cipher */
  return (high == 0 || high >= 0x1000u) && (low == 0x10u || low == 0x6Au);                   /* big numbers, ASN.1 */
}

/* Fails with NO_MEMORY or E2B_ERR_TLS. */
static e2b_err e2b__tls_setup_error(e2b_error *err, int code, const char *what) {
  char text[160];
  if (e2b__tls_no_memory(code)) {
    e2b__error_set(err, E2B_ERR_NO_MEMORY, E2B_PHASE_TLS, "out of memory: %s", what);
    return E2B_ERR_NO_MEMORY;
  }
  e2b__tls_code_text(code, text, sizeof text);
  e2b__error_set(err, E2B_ERR_TLS, E2B_PHASE_TLS, "TLS cannot be used: %s: %s", what, text);
  if (err) err->tls_code = code;
  return E2B_ERR_TLS;
}

/* The same for what the user gave. */
static e2b_err e2b__tls_option_error(e2b_error *err, int code, const char *option, const char *why) {
  char text[160];
  if (e2b__tls_no_memory(code)) return e2b__tls_setup_error(err, code, option);
  if (!why) e2b__tls_code_text(code, text, sizeof text);
  e2b__error_set(err, E2B_ERR_TLS, E2B_PHASE_TLS, "%s cannot be used: %s", option, why ? why : text);
  if (err) {
    err->tls_code = code;
    err->subject = E2B_SUBJECT_OPTION;
  }
  return E2B_ERR_TLS;
}

/* A copy of PEM or DER for the parsers, which want to see the NUL behind PEM counted in *parse_len. NULL = no memory.
 * To be freed with len + 1 bytes. */
static char *e2b__tls_input(e2b__mem *mem, const char *data, size_t len, size_t *parse_len) {
  bool der = len > 0 && (uint8_t)data[0] == 0x30; /* a SEQUENCE */
  *parse_len = der || (len > 0 && !data[len - 1]) ? len : len + 1;
  return e2b__mem_dup(mem, data, len);
}

static size_t e2b__tls_input_len(const char *data, size_t len) {
  return len || !data ? len : strlen(data);
}

/* The client's certificate and key. */

static int e2b__tls_key_parse(e2b__tls_shared *s, const char *data, size_t len) {
#if E2B__MBEDTLS3 && !E2B__MBEDTLS4
  return mbedtls_pk_parse_key(&s->own_key, (const unsigned char *)data, len, NULL, 0, mbedtls_ctr_drbg_random, &s->rng);
#else
  return mbedtls_pk_parse_key(&s->own_key, (const unsigned char *)data, len, NULL, 0);
#endif
}

static int e2b__tls_key_fits(e2b__tls_shared *s) {
#if E2B__MBEDTLS3 && !E2B__MBEDTLS4
  return mbedtls_pk_check_pair(&s->own_cert.pk, &s->own_key, mbedtls_ctr_drbg_random, &s->rng);
#else
  return mbedtls_pk_check_pair(&s->own_cert.pk, &s->own_key);
#endif
}

static e2b_err e2b__tls_own_load(e2b__tls_shared *s, const e2b_tls_config *config, e2b_error *err) {
  size_t cert_len = e2b__tls_input_len(config->client_cert_pem, config->client_cert_pem_len);
  size_t key_len = e2b__tls_input_len(config->client_key_pem, config->client_key_pem_len);
  size_t len;
  char *copy;
  int code;
  if (!cert_len || !key_len) return E2B_OK;
  copy = e2b__tls_input(s->mem, config->client_cert_pem, cert_len, &len);
  if (!copy) return e2b__tls_setup_error(err, MBEDTLS_ERR_SSL_ALLOC_FAILED, "tls.client_cert_pem");
  code = mbedtls_x509_crt_parse(&s->own_cert, (const unsigned char *)copy, len);
  e2b__mem_free(s->mem, copy, cert_len + 1);
  if (code > 0) return e2b__tls_option_error(err, 0, "tls.client_cert_pem", "one of its certificates cannot be read");
  if (code < 0) return e2b__tls_option_error(err, code, "tls.client_cert_pem", NULL);
  copy = e2b__tls_input(s->mem, config->client_key_pem, key_len, &len);
  if (!copy) return e2b__tls_setup_error(err, MBEDTLS_ERR_SSL_ALLOC_FAILED, "tls.client_key_pem");
  code = e2b__tls_key_parse(s, copy, len);
  e2b__mem_free(s->mem, copy, key_len + 1);
  if (code != 0) return e2b__tls_option_error(err, code, "tls.client_key_pem", NULL);
  code = e2b__tls_key_fits(s);
  return code == 0 ? E2B_OK
                   : e2b__tls_option_error(err, code, "tls.client_key_pem", "it is not the key of tls.client_cert_pem");
}

/* CA certificates. */

static bool e2b__tls_ca_loaded(const e2b__tls_shared *s) {
  return s->ca.raw.p != NULL;
}

/* The two ways to fail: nothing usable in what the user gave, and nothing given and nothing found. */
static e2b_err e2b__tls_ca_error(e2b_error *err, int code, const char *option, const char *file) {
  char text[160] = "no certificate in it";
  if (e2b__tls_no_memory(code)) return e2b__tls_setup_error(err, code, "reading CA certificates");
  if (code < 0) e2b__tls_code_text(code, text, sizeof text);
  e2b__error_set(err, E2B_ERR_TLS, E2B_PHASE_TLS, "%s%s%.120s cannot be used as CA certificates: %s", option,
                 file ? " " : "", file ? file : "", text);
  if (err) {
    err->tls_code = code < 0 ? code : 0;
    err->subject = E2B_SUBJECT_OPTION;
  }
  return E2B_ERR_TLS;
}

/* One certificate that cannot be read does not spoil a bundle. */
static void e2b__tls_ca_note(const e2b_logger *logger, int unread, const char *where) {
  if (unread > 0) e2b__log(logger, E2B_LOG_INFO, "%d certificates of %s could not be read", unread, where);
}

static e2b_err e2b__tls_ca_from_memory(e2b__tls_shared *s, const e2b_tls_config *config, const e2b_logger *logger,
                                       e2b_error *err) {
  size_t parse_len, len = e2b__tls_input_len(config->ca_pem, config->ca_pem_len);
  char *copy = e2b__tls_input(s->mem, config->ca_pem, len, &parse_len);
  int rc;
  if (!copy) return e2b__tls_setup_error(err, MBEDTLS_ERR_SSL_ALLOC_FAILED, "tls.ca_pem");
  rc = mbedtls_x509_crt_parse(&s->ca, (const unsigned char *)copy, parse_len);
  e2b__mem_free(s->mem, copy, len + 1);
  if (rc < 0 || !e2b__tls_ca_loaded(s)) return e2b__tls_ca_error(err, rc, "tls.ca_pem", NULL);
  e2b__tls_ca_note(logger, rc, "tls.ca_pem");
  return E2B_OK;
}

#if defined(MBEDTLS_FS_IO)
/* A file, or a directory of files. */
static int e2b__tls_ca_from_path(e2b__tls_shared *s, const char *path, bool directory, const e2b_logger *logger) {
  int rc = directory ? mbedtls_x509_crt_parse_path(&s->ca, path) : mbedtls_x509_crt_parse_file(&s->ca, path);
  e2b__tls_ca_note(logger, rc, path);
  return rc;
}
#endif

#if defined(MBEDTLS_FS_IO) && !E2B__WIN32
static size_t e2b__tls_ca_count(const e2b__tls_shared *s) {
  const mbedtls_x509_crt *at;
  size_t count = 0;
  for (at = &s->ca; at && at->raw.p; at = at->next) count++;
  return count;
}
#endif

/* The roots of this system, from the first place that has some. 0, or the code for no memory. */
static int e2b__tls_ca_from_system(e2b__tls_shared *s, const e2b_logger *logger) {
#if E2B__WIN32
  HCERTSTORE store = CertOpenSystemStoreA(0, "ROOT");
  const CERT_CONTEXT *cert = NULL;
  int rc = 0;
  E2B__UNUSED(logger);
  if (!store) return 0;
  while ((cert = CertEnumCertificatesInStore(store, cert)) != NULL) {
    int one = mbedtls_x509_crt_parse_der(&s->ca, cert->pbCertEncoded, cert->cbCertEncoded);
    if (e2b__tls_no_memory(one)) rc = one;
  }
  CertCloseStore(store, 0);
  return rc;
#elif defined(MBEDTLS_FS_IO)
  static const char *const places[] = {
    "/etc/ssl/certs/ca-certificates.crt",                /* Debian, Ubuntu, Arch, Gentoo */
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", /* Fedora, RHEL */
    "/etc/pki/tls/certs/ca-bundle.crt",                  /* older RHEL */
    "/etc/ssl/ca-bundle.pem",                            /* openSUSE */
    "/etc/ssl/cert.pem",                                 /* Alpine, macOS, OpenBSD, FreeBSD */
    "/usr/local/etc/ssl/cert.pem",                       /* FreeBSD ports */
    "/etc/openssl/certs/",                               /* NetBSD */
    "/apex/com.android.conscrypt/cacerts/",              /* Android */
    "/system/etc/security/cacerts/",
  };
  size_t i, before = e2b__tls_ca_count(s);
  for (i = 0; i < E2B__COUNT(places) && e2b__tls_ca_count(s) == before; i++) {
    int rc = e2b__tls_ca_from_path(s, places[i], places[i][strlen(places[i]) - 1] == '/', logger);
    if (e2b__tls_no_memory(rc)) return rc;
  }
  return 0;
#else
  E2B__UNUSED(s);
  E2B__UNUSED(logger);
  return 0;
#endif
}

/* What the user named. */
static e2b_err e2b__tls_ca_from_config(e2b__tls_shared *s, const e2b_tls_config *config, const e2b_logger *logger,
                                       e2b_error *err) {
  e2b_err rc = E2B_OK;
#if defined(MBEDTLS_FS_IO)
  int code;
#endif
  if (e2b__tls_input_len(config->ca_pem, config->ca_pem_len)) rc = e2b__tls_ca_from_memory(s, config, logger, err);
#if defined(MBEDTLS_FS_IO)
  if (rc == E2B_OK && e2b__given(config->ca_file)) {
    code = e2b__tls_ca_from_path(s, config->ca_file, false, logger);
    if (code < 0 || !e2b__tls_ca_loaded(s)) rc = e2b__tls_ca_error(err, code, "tls.ca_file", config->ca_file);
  }
  if (rc == E2B_OK && e2b__given(config->ca_path)) {
    code = e2b__tls_ca_from_path(s, config->ca_path, true, logger);
    if (code < 0 || !e2b__tls_ca_loaded(s)) rc = e2b__tls_ca_error(err, code, "tls.ca_path", config->ca_path);
  }
#else
  if (rc == E2B_OK && (e2b__given(config->ca_file) || e2b__given(config->ca_path)))
    rc = e2b__tls_ca_error(err, 0, "this mbedTLS reads no files: tls.ca_file or tls.ca_path", NULL);
#endif
  return rc;
}

#if defined(MBEDTLS_FS_IO)
/* A list of directories, as OpenSSL and Go read it: those that do not exist are left out. The last failure, or 0. */
static int e2b__tls_ca_from_dirs(e2b__tls_shared *s, const char *list, const e2b_logger *logger) {
  int one, code = 0;
  while (*list) {
    size_t len = strcspn(list, E2B__WIN32 ? ";" : ":");
    char *dir = e2b__mem_dup(s->mem, list, len);
    if (!dir) return MBEDTLS_ERR_SSL_ALLOC_FAILED;
    one = len ? e2b__tls_ca_from_path(s, dir, true, logger) : 0;
    e2b__mem_free_str(s->mem, dir);
    if (one < 0) code = one;
    if (e2b__tls_no_memory(one)) return one;
    list += list[len] ? len + 1 : len;
  }
  return code;
}
#endif

/* SSL_CERT_FILE and SSL_CERT_DIR, else the system's; to a chain that may hold some already. */
static e2b_err e2b__tls_ca_from_machine(e2b__tls_shared *s, bool no_env, const e2b_logger *logger, e2b_error *err) {
  int code;
#if defined(MBEDTLS_FS_IO)
  const char *env_file = no_env ? NULL : getenv("SSL_CERT_FILE"), *env_dir = no_env ? NULL : getenv("SSL_CERT_DIR");
  if (e2b__given(env_file)) {
    code = e2b__tls_ca_from_path(s, env_file, false, logger);
    if (code < 0 || !e2b__tls_ca_loaded(s)) return e2b__tls_ca_error(err, code, "SSL_CERT_FILE", env_file);
  }
  if (e2b__given(env_dir)) {
    code = e2b__tls_ca_from_dirs(s, env_dir, logger);
    if (!e2b__tls_ca_loaded(s) || e2b__tls_no_memory(code)) return e2b__tls_ca_error(err, code, "SSL_CERT_DIR", env_dir);
  }
  if (e2b__given(env_file) || e2b__given(env_dir)) return E2B_OK;
#else
  E2B__UNUSED(no_env);
#endif
  code = e2b__tls_ca_from_system(s, logger);
  return code == 0 ? E2B_OK : e2b__tls_ca_error(err, code, "the system's certificates", NULL);
}

/* What the user named, or the machine's, or both (ca_add). Never nothing. */
static e2b_err e2b__tls_ca_load(e2b__tls_shared *s, const e2b_tls_config *config, bool no_env, const e2b_logger *logger,
                                e2b_error *err) {
  e2b_err rc = e2b__tls_ca_from_config(s, config, logger, err);
  if (rc == E2B_OK && (!e2b__tls_ca_loaded(s) || config->ca_add)) rc = e2b__tls_ca_from_machine(s, no_env, logger, err);
  if (rc != E2B_OK || e2b__tls_ca_loaded(s)) return rc;
  e2b__error_set(
      err, E2B_ERR_TLS, E2B_PHASE_TLS,
      "no CA certificates found (tried SSL_CERT_FILE, SSL_CERT_DIR and the places of "
      "this system, such as /etc/ssl/certs/ca-certificates.crt): install them, or set tls.ca_file or tls.ca_pem");
  return E2B_ERR_TLS;
}

/* The configuration shared by all connections. */

/* AEAD with forward secrecy only: what HTTP/2 allows. AES-GCM first, for CPUs with AES instructions. */
static const int *e2b__tls_suites(void) {
  static const int suites[] = {
#if defined(MBEDTLS_TLS1_3_AES_128_GCM_SHA256)
    MBEDTLS_TLS1_3_AES_128_GCM_SHA256,
    MBEDTLS_TLS1_3_AES_256_GCM_SHA384,
    MBEDTLS_TLS1_3_CHACHA20_POLY1305_SHA256,
#endif
    MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    MBEDTLS_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    MBEDTLS_TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    MBEDTLS_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    MBEDTLS_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    0
  };
  return suites;
}

/* TLS 1.2 or newer, and no SHA-1, which some builds would offer. RSA-PSS comes last: a server that speaks TLS 1.2 only
 * takes the first it knows, and mbedTLS 3.6.6 and 4.1.0 offer RSA-PSS but refuse it there. With TLS 1.3 PKCS #1 is no
 * choice, whatever its place. */
static void e2b__tls_conf_version(mbedtls_ssl_config *conf, bool min_tls13) {
#if E2B__MBEDTLS3
  static const uint16_t algs[] = {
    MBEDTLS_TLS1_3_SIG_ECDSA_SECP256R1_SHA256,
    MBEDTLS_TLS1_3_SIG_ECDSA_SECP384R1_SHA384,
    MBEDTLS_TLS1_3_SIG_ECDSA_SECP521R1_SHA512,
    MBEDTLS_TLS1_3_SIG_RSA_PKCS1_SHA256,
    MBEDTLS_TLS1_3_SIG_RSA_PKCS1_SHA384,
    MBEDTLS_TLS1_3_SIG_RSA_PKCS1_SHA512,
    MBEDTLS_TLS1_3_SIG_RSA_PSS_RSAE_SHA256,
    MBEDTLS_TLS1_3_SIG_RSA_PSS_RSAE_SHA384,
    MBEDTLS_TLS1_3_SIG_RSA_PSS_RSAE_SHA512,
    MBEDTLS_TLS1_3_SIG_NONE,
  };
  #if E2B__TLS13
    #if !defined(MBEDTLS_SSL_PROTO_TLS1_2)
  min_tls13 = true; /* a range that begins with what it was built without is refused */
    #endif
  mbedtls_ssl_conf_min_tls_version(conf, min_tls13 ? MBEDTLS_SSL_VERSION_TLS1_3 : MBEDTLS_SSL_VERSION_TLS1_2);
  #else
  E2B__UNUSED(min_tls13); /* refused before */
  mbedtls_ssl_conf_min_tls_version(conf, MBEDTLS_SSL_VERSION_TLS1_2);
  #endif
  mbedtls_ssl_conf_sig_algs(conf, algs);
#else
  static const int hashes[] = { MBEDTLS_MD_SHA256, MBEDTLS_MD_SHA384, MBEDTLS_MD_SHA512, MBEDTLS_MD_NONE };
  E2B__UNUSED(min_tls13); /* refused before */
  mbedtls_ssl_conf_min_version(conf, MBEDTLS_SSL_MAJOR_VERSION_3, MBEDTLS_SSL_MINOR_VERSION_3);
  mbedtls_ssl_conf_sig_hashes(conf, hashes);
#endif
}

static int e2b__tls_conf_fill(e2b__tls_shared *s) {
  int rc = mbedtls_ssl_config_defaults(&s->conf, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM,
                                       MBEDTLS_SSL_PRESET_DEFAULT);
  if (rc != 0) return rc;
  e2b__tls_conf_version(&s->conf, s->min_tls13);
  mbedtls_ssl_conf_ciphersuites(&s->conf, e2b__tls_suites());
  mbedtls_ssl_conf_ca_chain(&s->conf, &s->ca, NULL);
  if (s->own_cert.raw.p) {
    rc = mbedtls_ssl_conf_own_cert(&s->conf, &s->own_cert, &s->own_key);
    if (rc != 0) return rc;
  }
  /* OPTIONAL completes the handshake whatever is wrong; the verify callback clears the flags then. */
  mbedtls_ssl_conf_authmode(&s->conf, s->insecure ? MBEDTLS_SSL_VERIFY_OPTIONAL : MBEDTLS_SSL_VERIFY_REQUIRED);
#if defined(MBEDTLS_SSL_SESSION_TICKETS)
  mbedtls_ssl_conf_session_tickets(&s->conf, s->keep_sessions ? MBEDTLS_SSL_SESSION_TICKETS_ENABLED
                                                              : MBEDTLS_SSL_SESSION_TICKETS_DISABLED);
  #if defined(MBEDTLS_SSL_TLS1_3_SIGNAL_NEW_SESSION_TICKETS_ENABLED)
  if (s->keep_sessions)
    mbedtls_ssl_conf_tls13_enable_signal_new_session_tickets(&s->conf,
                                                             MBEDTLS_SSL_TLS1_3_SIGNAL_NEW_SESSION_TICKETS_ENABLED);
  #endif
#endif
#if !E2B__MBEDTLS4
  mbedtls_ssl_conf_rng(&s->conf, mbedtls_ctr_drbg_random, &s->rng);
#endif
#if defined(MBEDTLS_SSL_ALPN)
  if (s->alpn[0]) {
  #if E2B__MBEDTLS4
    return mbedtls_ssl_conf_alpn_protocols(&s->conf, (const char *const *)s->alpn);
  #else
    return mbedtls_ssl_conf_alpn_protocols(&s->conf, s->alpn);
  #endif
  }
#endif
  return 0;
}

static void e2b__tls_session_clear(e2b__tls_shared *s, e2b__tls_session *session) {
  e2b__mem_free(s->mem, session->blob, session->len);
  e2b__mem_free_str(s->mem, session->host);
  memset(session, 0, sizeof *session);
}

static void e2b__tls_shared_free(e2b__tls_shared *s) {
  size_t i;
  if (!s) return;
  for (i = 0; i < E2B__TLS_SESSIONS; i++) e2b__tls_session_clear(s, &s->sessions[i]);
  mbedtls_ssl_config_free(&s->conf);
  mbedtls_x509_crt_free(&s->ca);
  mbedtls_x509_crt_free(&s->own_cert);
  mbedtls_pk_free(&s->own_key);
#if !E2B__MBEDTLS4
  mbedtls_ctr_drbg_free(&s->rng);
  mbedtls_entropy_free(&s->entropy);
#endif
  e2b__mem_free(s->mem, s, sizeof *s);
}

static int e2b__tls_rng_start(e2b__tls_shared *s) {
#if !E2B__MBEDTLS4
  int rc = mbedtls_ctr_drbg_seed(&s->rng, mbedtls_entropy_func, &s->entropy, (const unsigned char *)"e2b.h", 5);
  if (rc != 0) return rc;
#else
  E2B__UNUSED(s);
#endif
#if E2B__MBEDTLS4 || (E2B__MBEDTLS3 && defined(MBEDTLS_PSA_CRYPTO_C))
  return psa_crypto_init() == PSA_SUCCESS ? 0 : MBEDTLS_ERR_SSL_INTERNAL_ERROR; /* idempotent; never undone by us */
#else
  return 0;
#endif
}

/* False only when this mbedTLS was built without it. */
static bool e2b__sha256(const void *data, size_t len, uint8_t out[32]) {
#if E2B__MBEDTLS4
  size_t got = 0;
  return psa_crypto_init() == PSA_SUCCESS &&
         psa_hash_compute(PSA_ALG_SHA_256, (const uint8_t *)data, len, out, 32, &got) == PSA_SUCCESS && got == 32;
#else
  const mbedtls_md_info_t *info = mbedtls_md_info_from_type(MBEDTLS_MD_SHA256);
  return info && mbedtls_md(info, (const unsigned char *)data, len, out) == 0;
#endif
}

/* Makes *slot when it is NULL: reads the CA certificates, which takes some milliseconds. After a failure *slot stays
 * NULL, and the next connection tries again. `alpn`: at most two names, then NULL, static. */
static e2b_err e2b__tls_shared_get(e2b__tls_shared **slot, e2b__mem *mem, const e2b_tls_config *config,
                                   const char *const *alpn, bool no_env, const e2b_logger *logger, e2b_error *err) {
  e2b__tls_shared *s;
  e2b_err rc = E2B_OK;
  size_t i;
  int code;
  if (*slot) return E2B_OK;
  s = (e2b__tls_shared *)e2b__mem_alloc(mem, sizeof *s);
  if (!s) return e2b__tls_setup_error(err, MBEDTLS_ERR_SSL_ALLOC_FAILED, "TLS configuration");
  s->mem = mem;
  s->insecure = config->insecure_skip_verify;
  s->keep_sessions = !config->no_session_resumption && !s->insecure;
  s->min_tls13 = config->min_tls13;
  s->pins = config->pin_sha256;
  s->pin_count = config->pin_count;
  for (i = 0; i < E2B__TLS_ALPN_MAX && alpn[i]; i++) s->alpn[i] = alpn[i];
  mbedtls_ssl_config_init(&s->conf);
  mbedtls_x509_crt_init(&s->ca);
  mbedtls_x509_crt_init(&s->own_cert);
  mbedtls_pk_init(&s->own_key);
#if !E2B__MBEDTLS4
  mbedtls_entropy_init(&s->entropy);
  mbedtls_ctr_drbg_init(&s->rng);
#endif
  code = e2b__tls_rng_start(s);
  if (code != 0) rc = e2b__tls_setup_error(err, code, "random numbers");
  if (rc == E2B_OK && !s->insecure) rc = e2b__tls_ca_load(s, config, no_env, logger, err);
  if (rc == E2B_OK) rc = e2b__tls_own_load(s, config, err);
  if (rc == E2B_OK) {
    code = e2b__tls_conf_fill(s);
    if (code != 0) rc = e2b__tls_setup_error(err, code, "configuration");
  }
  if (rc == E2B_OK)
    *slot = s;
  else
    e2b__tls_shared_free(s);
  return rc;
}

/* One connection. */

typedef struct e2b__tls {
  mbedtls_ssl_context ssl;
  e2b__tls_shared *shared;
  const e2b_transport *transport;
  void *conn;
  const char *host; /* the link's */
  uint16_t port;
  bool over;                   /* the handshake is done */
  bool broken;                 /* after a failure the context must not be used again */
  bool ended;                  /* the peer said close_notify */
  bool again;                  /* not done, but not waiting for the network either: call again */
  bool rx_blocked, tx_blocked; /* what the transport said during the last call */
  bool rx_eof;
  int io_code;      /* of the transport, when it failed */
  size_t tx_len;    /* of the write whose record is packed but has not left completely */
  size_t tx_left;   /* bytes of records that mbedTLS still holds */
  uint8_t addr_len; /* of the host when it is an address */
  uint8_t addr[16];
  uint8_t first[8]; /* what the peer sent first, to recognise plain text */
  uint8_t first_len;
  uint8_t last[8];  /* and last, to recognise alerts */
  bool seen;        /* the server's certificate: what breaks the handshake afterwards may be ours */
  bool pin_ok;      /* the server's key is one of the pinned ones */
  bool pin_failed;
  bool offered;     /* a session of a connection whose pin was checked */
  char subject[80]; /* of a certificate that was refused */
} e2b__tls;

static int e2b__tls_bio_rx(void *arg, unsigned char *buf, size_t cap) {
  e2b__tls *t = (e2b__tls *)arg;
  int n = t->transport->rx_fn(t->transport->user, t->conn, buf, cap);
  if (n > 0) {
    size_t take = E2B__MIN((size_t)n, sizeof t->first - t->first_len);
    memcpy(t->first + t->first_len, buf, take);
    t->first_len = (uint8_t)(t->first_len + take);
    take = E2B__MIN((size_t)n, sizeof t->last);
    memmove(t->last, t->last + take, sizeof t->last - take);
    memcpy(t->last + sizeof t->last - take, buf + (size_t)n - take, take);
    return n;
  }
  if (n == E2B_IO_AGAIN) {
    t->rx_blocked = true;
    return MBEDTLS_ERR_SSL_WANT_READ;
  }
  if (n == E2B_IO_EOF) {
    t->rx_eof = true;
    return 0;
  }
  t->io_code = n;
  return MBEDTLS_ERR_NET_RECV_FAILED;
}

static int e2b__tls_bio_tx(void *arg, const unsigned char *buf, size_t len) {
  e2b__tls *t = (e2b__tls *)arg;
  int n = t->transport->tx_fn(t->transport->user, t->conn, buf, len);
  t->tx_left = len - (n > 0 ? (size_t)n : 0); /* it always offers all it has */
  if (n > 0) return n;
  if (n == E2B_IO_AGAIN) {
    t->tx_blocked = true;
    return MBEDTLS_ERR_SSL_WANT_WRITE;
  }
  t->io_code = n;
  return MBEDTLS_ERR_NET_SEND_FAILED;
}

/* Does the certificate name the address, as an iPAddress subject alternative name (RFC 5280: tag 7)? */
static bool e2b__tls_names_addr(const mbedtls_x509_crt *cert, const uint8_t *addr, size_t addr_len) {
  const mbedtls_x509_sequence *name;
  for (name = &cert->subject_alt_names; name; name = name->next)
    if (name->buf.tag == (MBEDTLS_ASN1_CONTEXT_SPECIFIC | 7) && name->buf.len == addr_len &&
        memcmp(name->buf.p, addr, addr_len) == 0)
      return true;
  return false;
}

/* Is the certificate's key pinned? */
static bool e2b__tls_pinned(const e2b__tls_shared *s, const mbedtls_x509_crt *cert) {
  uint8_t hash[E2B__TLS_PIN_LEN];
  size_t i;
#if E2B__MBEDTLS4
  size_t len = 0;
  if (psa_hash_compute(PSA_ALG_SHA_256, cert->pk_raw.p, cert->pk_raw.len, hash, sizeof hash, &len) != PSA_SUCCESS)
    return false;
#else
  const mbedtls_md_info_t *sha256 = mbedtls_md_info_from_type(MBEDTLS_MD_SHA256);
  if (mbedtls_md(sha256, cert->pk_raw.p, cert->pk_raw.len, hash) != 0) return false;
#endif
  for (i = 0; i < s->pin_count; i++)
    if (memcmp(s->pins + i * E2B__TLS_PIN_LEN, hash, sizeof hash) == 0) return true;
  return false;
}

/* Called for each certificate of a chain, the server's own last. mbedTLS 2.28 does not know addresses as names: it
 * flags a mismatch, which is cleared here when the address is found. Of an IPv6 address mbedTLS is told nothing: here is
 * the only place where it is compared. */
static int e2b__tls_verify(void *arg, mbedtls_x509_crt *cert, int depth, uint32_t *flags) {
  e2b__tls *t = (e2b__tls *)arg;
  if (depth == 0) t->seen = true;
  if (depth == 0 && t->shared->pin_count) {
    t->pin_ok = e2b__tls_pinned(t->shared, cert);
    t->pin_failed = !t->pin_ok;
    if (t->pin_failed) return MBEDTLS_ERR_X509_FATAL_ERROR; /* a flag would not stop an unverified handshake */
  }
  if (t->shared->insecure) {
    *flags = 0;
    return 0;
  }
  if (depth == 0 && t->addr_len && e2b__tls_names_addr(cert, t->addr, t->addr_len))
    *flags &= ~(uint32_t)MBEDTLS_X509_BADCERT_CN_MISMATCH;
  else if (depth == 0 && t->addr_len == 16)
    *flags |= MBEDTLS_X509_BADCERT_CN_MISMATCH;
  if (depth == 0 && *flags) {
    int n = mbedtls_x509_dn_gets(t->subject, sizeof t->subject, &cert->subject);
    if (n < 0) t->subject[0] = 0;
  }
  return 0;
}

/* The saved session of a host, or NULL; the newest when there are several. */
static e2b__tls_session *e2b__tls_session_find(e2b__tls_shared *s, const char *host, uint16_t port) {
  e2b__tls_session *found = NULL;
  size_t i;
  for (i = 0; i < E2B__TLS_SESSIONS; i++) {
    e2b__tls_session *at = &s->sessions[i];
    if (!at->host || at->port != port || !e2b__str_eq_nocase(e2b__str(host), at->host)) continue;
    if (!found || at->stamp > found->stamp) found = at;
  }
  return found;
}

/* Failing to resume costs a full handshake, nothing else. */
static void e2b__tls_session_offer(e2b__tls *t) {
  e2b__tls_session *saved = e2b__tls_session_find(t->shared, t->host, t->port);
  mbedtls_ssl_session session;
  if (!saved) return;
  mbedtls_ssl_session_init(&session);
  t->offered = mbedtls_ssl_session_load(&session, saved->blob, saved->len) == 0 &&
               mbedtls_ssl_set_session(&t->ssl, &session) == 0;
  if (!t->offered || saved->once) e2b__tls_session_clear(t->shared, saved);
  mbedtls_ssl_session_free(&session);
}

/* Where to put a new one: of TLS 1.2 one is kept for each host, of TLS 1.3, whose tickets are used once, two. */
static e2b__tls_session *e2b__tls_session_slot(e2b__tls_shared *s, const char *host, uint16_t port, bool once) {
  e2b__tls_session *unused = NULL, *oldest = NULL, *oldest_same = NULL;
  size_t i, same = 0;
  for (i = 0; i < E2B__TLS_SESSIONS; i++) {
    e2b__tls_session *at = &s->sessions[i];
    if (!at->host) {
      unused = at;
      continue;
    }
    if (!oldest || at->stamp < oldest->stamp) oldest = at;
    if (at->port != port || !e2b__str_eq_nocase(e2b__str(host), at->host)) continue;
    same++;
    if (!oldest_same || at->stamp < oldest_same->stamp) oldest_same = at;
  }
  if (same >= (once ? 2u : 1u)) return oldest_same;
  return unused ? unused : oldest;
}

/* Keeps the connection's session, when memory allows. */
static void e2b__tls_session_save(e2b__tls *t, bool once) {
  e2b__tls_shared *s = t->shared;
  e2b__tls_session made, *slot;
  mbedtls_ssl_session session;
  size_t len = 0;
  if (!s->keep_sessions) return;
  memset(&made, 0, sizeof made);
  mbedtls_ssl_session_init(&session);
  if (mbedtls_ssl_get_session(&t->ssl, &session) == 0) (void)mbedtls_ssl_session_save(&session, NULL, 0, &len);
  if (len > 0 && len <= E2B__TLS_SESSION_MAX) {
    made.len = len;
    made.blob = (uint8_t *)e2b__mem_alloc(s->mem, len);
    made.host = e2b__mem_dup(s->mem, t->host, strlen(t->host));
    made.port = t->port;
    made.once = once;
    made.stamp = ++s->stamp;
  }
  if (made.blob && made.host && mbedtls_ssl_session_save(&session, made.blob, made.len, &len) == 0) {
    slot = e2b__tls_session_slot(s, t->host, t->port, once);
    e2b__tls_session_clear(s, slot);
    *slot = made;
  } else {
    e2b__tls_session_clear(s, &made);
  }
  mbedtls_ssl_session_free(&session);
}

static void e2b__tls_free(e2b__tls *t) {
  e2b__mem *mem;
  if (!t) return;
  mem = t->shared->mem;
  mbedtls_ssl_free(&t->ssl);
  e2b__mem_free(mem, t, sizeof *t);
}

/* `host` must outlive the connection. */
static e2b_err e2b__tls_new(e2b__tls_shared *s, const e2b_transport *transport, void *conn, const char *host,
                            uint16_t port, e2b__tls **out, e2b_error *err) {
  char name[256];
  size_t len = e2b__dns_name_len(host);
  e2b__tls *t;
  int code;
  if (len >= sizeof name) {
    e2b__error_set(err, E2B_ERR_INVALID_ARGUMENT, E2B_PHASE_TLS, "a host name cannot have more than 253 characters");
    return E2B_ERR_INVALID_ARGUMENT;
  }
  memcpy(name, host, len); /* certificates have no final dot */
  name[len] = 0;
  t = (e2b__tls *)e2b__mem_alloc(s->mem, sizeof *t);
  if (!t) return e2b__tls_setup_error(err, MBEDTLS_ERR_SSL_ALLOC_FAILED, "TLS connection");
  t->shared = s;
  t->transport = transport;
  t->conn = conn;
  t->host = host;
  t->port = port;
  t->addr_len = e2b__dns_literal(name, t->addr);
  mbedtls_ssl_init(&t->ssl);
  code = mbedtls_ssl_setup(&t->ssl, &s->conf);
  /* The name is for SNI too, which has no addresses (RFC 6066): Java's servers end the handshake when they see an IPv6 one. */
  if (code == 0) code = mbedtls_ssl_set_hostname(&t->ssl, t->addr_len == 16 ? NULL : name);
  if (code != 0) {
    e2b__tls_free(t);
    return e2b__tls_setup_error(err, code, "TLS connection");
  }
  mbedtls_ssl_set_bio(&t->ssl, t, e2b__tls_bio_tx, e2b__tls_bio_rx, NULL);
  mbedtls_ssl_set_verify(&t->ssl, e2b__tls_verify, t);
  e2b__tls_session_offer(t);
  *out = t;
  return E2B_OK;
}

/* Codes that ask to call again. */
static bool e2b__tls_wants_more(int code) {
#if defined(MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET)
  if (code == MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET) return true;
#endif
  return code == MBEDTLS_ERR_SSL_WANT_READ || code == MBEDTLS_ERR_SSL_WANT_WRITE ||
         code == MBEDTLS_ERR_SSL_ASYNC_IN_PROGRESS || code == MBEDTLS_ERR_SSL_CRYPTO_IN_PROGRESS;
}

/* After a call into mbedTLS that wants more: true when it must wait for the network. WANT_READ alone does not say
 * so. */
static bool e2b__tls_blocked(e2b__tls *t, int code) {
#if defined(MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET)
  if (code == MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET) e2b__tls_session_save(t, true);
#else
  E2B__UNUSED(code);
#endif
  return t->rx_blocked || t->tx_blocked;
}

static void e2b__tls_begin(e2b__tls *t) {
  t->rx_blocked = t->tx_blocked = t->again = false;
}

/* What is wrong with a certificate, and what to do, for the flags of a verification. */
static void e2b__tls_certificate_text(uint32_t flags, char *out, size_t cap) {
  static const struct {
    uint32_t flags;
    const char *text;
  } reasons[] = {
    { MBEDTLS_X509_BADCERT_CN_MISMATCH, "it is for another host: check the host name" },
    { MBEDTLS_X509_BADCERT_EXPIRED | MBEDTLS_X509_BADCRL_EXPIRED,
      "it has expired: renew it, or set this machine's clock" },
    { MBEDTLS_X509_BADCERT_FUTURE | MBEDTLS_X509_BADCRL_FUTURE, "it is not valid yet: set this machine's clock" },
    { MBEDTLS_X509_BADCERT_NOT_TRUSTED,
      "it is self-signed or its issuer is unknown: set tls.ca_file to the CA of this server" },
    { MBEDTLS_X509_BADCERT_REVOKED, "it was revoked" },
    { MBEDTLS_X509_BADCERT_MISSING, "there is none" },
    { MBEDTLS_X509_BADCERT_KEY_USAGE | MBEDTLS_X509_BADCERT_EXT_KEY_USAGE | MBEDTLS_X509_BADCERT_NS_CERT_TYPE,
      "it is not made for a TLS server" },
    { MBEDTLS_X509_BADCERT_BAD_MD | MBEDTLS_X509_BADCERT_BAD_PK | MBEDTLS_X509_BADCERT_BAD_KEY,
      "it has a weak key or signature" }
  };
  size_t i, len = 0;
  out[0] = 0;
  for (i = 0; i < E2B__COUNT(reasons); i++) {
    if (!(flags & reasons[i].flags)) continue;
    (void)snprintf(out + len, cap - len, "%s%s", len ? "; " : "", reasons[i].text);
    len = strlen(out);
  }
  if (len == 0) (void)snprintf(out, cap, "verification failed (0x%x)", (unsigned)flags);
}

/* Alerts that servers answer a ClientHello with. */
static const char *e2b__tls_alert_text(unsigned alert) {
  switch (alert) {
  case 40: return "the server shares no cipher with this client";
  case 42:
  case 43:
  case 44:
  case 45:
  case 46:
  case 48: return "the server does not accept the client certificate";
  case 70: return E2B__TLS_NO_VERSION;
  case 80: return "the server had an internal error";
  case 86: return "the server refuses a fallback";
  case 112: return "the server does not know this host name";
  case 116: return "the server demands a client certificate (tls.client_cert_pem)";
  case 120: return "the server speaks none of the offered protocols (ALPN)";
  default: return "the server refused the handshake";
  }
}

/* Recognises from its first and last bytes why a peer failed the handshake. False when they look like TLS. */
static bool e2b__tls_bytes_text(const e2b__tls *t, char *out, size_t cap) {
  const uint8_t *alert = t->last + 1; /* type, version, length, level, number */
  char seen[16];
  if (alert[0] == 0x15 && alert[1] == 3 && alert[3] == 0 && alert[4] == 2 && alert[5] == 2) {
    bool late = t->first[0] != 0x15 && alert[6] == 40; /* ciphers were agreed on before */
    (void)snprintf(out, cap, "%s (alert %u)", e2b__tls_alert_text(late ? 116u : alert[6]), (unsigned)alert[6]);
    return true;
  }
  if (t->first_len == 0 || (t->first[0] >= 0x14 && t->first[0] <= 0x17)) return false;
  e2b__error_excerpt(seen, sizeof seen, t->first, t->first_len);
  if (strncmp(seen, "HTTP/", 5) == 0)
    (void)snprintf(out, cap, "the server answers in plain HTTP: use http:// or its https port");
  else
    (void)snprintf(out, cap, "the server does not speak TLS: it sent \"%s\"", seen);
  return true;
}

/* Why a handshake failed. The certificate's flags come first: some faults have error codes that do not tell. */
static e2b_err e2b__tls_handshake_error(e2b__tls *t, int code, e2b_error *err) {
  uint32_t flags = mbedtls_ssl_get_verify_result(&t->ssl);
  e2b_err rc = E2B_ERR_TLS;
  char why[200], subject[104] = "";
  if (t->pin_failed) {
    e2b__error_set(err, E2B_ERR_TLS_CERTIFICATE, E2B_PHASE_TLS,
                   "%.80s:%u: certificate refused: its key is none of tls.pin_sha256: somebody is between you and the "
                   "server, or the server has a new key", t->host, (unsigned)t->port);
    if (err) err->tls_code = code;
    return E2B_ERR_TLS_CERTIFICATE;
  }
  if (e2b__tls_no_memory(code)) {
    e2b__error_set(err, E2B_ERR_NO_MEMORY, E2B_PHASE_TLS, "out of memory in the TLS handshake with %.100s", t->host);
    return E2B_ERR_NO_MEMORY;
  }
  if (code == MBEDTLS_ERR_NET_SEND_FAILED) { /* an alert may have come before the connection broke */
    uint8_t rest[64];
    int io_code = t->io_code;
    (void)e2b__tls_bio_rx(t, rest, sizeof rest);
    t->io_code = io_code;
  }
  if (!t->shared->insecure && flags != 0 && flags != 0xFFFFFFFFu) {
    rc = E2B_ERR_TLS_CERTIFICATE;
    e2b__tls_certificate_text(flags, why, sizeof why);
    if (t->subject[0]) (void)snprintf(subject, sizeof subject, " (it says %s)", t->subject);
    e2b__error_set(err, rc, E2B_PHASE_TLS, "%.80s:%u: certificate refused: %s%s", t->host, (unsigned)t->port, why,
                   subject);
  } else {
    if (!e2b__tls_bytes_text(t, why, sizeof why)) {
      if (t->seen && (t->io_code || t->rx_eof))
        (void)snprintf(why, sizeof why, "the server broke it off; does it want a (different) client certificate?");
      else if (t->io_code)
        e2b__transport_text(t->transport, t->io_code, why, sizeof why);
      else if (t->rx_eof)
        (void)snprintf(why, sizeof why, "the server closed the connection");
      else if (code == E2B__TLS_BAD_VERSION)
        (void)snprintf(why, sizeof why, "%s", E2B__TLS_NO_VERSION);
      else if (code == MBEDTLS_ERR_SSL_FEATURE_UNAVAILABLE)
        (void)snprintf(why, sizeof why, "this mbedTLS cannot read what the server sent, perhaps a fragmented message");
      else
        e2b__tls_code_text(code, why, sizeof why);
    }
    e2b__error_set(err, rc, E2B_PHASE_TLS, "%.80s:%u: TLS handshake failed: %s", t->host, (unsigned)t->port, why);
  }
  if (err) {
    err->tls_code = code;
    err->sys_code = t->io_code ? e2b__transport_code(t->transport, t->io_code) : 0;
  }
  return rc;
}

static bool e2b__tls_is_over(e2b__tls *t) {
#if E2B__MBEDTLS3
  return mbedtls_ssl_is_handshake_over(&t->ssl) != 0;
#else
  return t->ssl.state == MBEDTLS_SSL_HANDSHAKE_OVER;
#endif
}

/* One piece of the handshake: a step that costs time, or several that do not. E2B_OK, E2B_PENDING (look at `again`),
 * or a failure. */
static e2b_err e2b__tls_handshake(e2b__tls *t, e2b_error *err) {
  uint64_t started = e2b__net_now_us();
  int code;
  e2b__tls_begin(t);
  do {
    code = mbedtls_ssl_handshake_step(&t->ssl);
    t->over = code == 0 && e2b__tls_is_over(t);
  } while (code == 0 && !t->over && e2b__net_now_us() - started < 500);
  if (t->over && t->shared->pin_count && !t->pin_ok && !t->offered) { /* no certificate was shown */
    t->pin_failed = true;
    t->over = false;
    code = MBEDTLS_ERR_X509_FATAL_ERROR;
  }
  if (t->over) {
#if E2B__MBEDTLS3
    if (mbedtls_ssl_get_version_number(&t->ssl) == MBEDTLS_SSL_VERSION_TLS1_3)
      return E2B_OK; /* its tickets come later */
#endif
    e2b__tls_session_save(t, false);
    return E2B_OK;
  }
  if (code == 0 || e2b__tls_wants_more(code)) {
    t->again = code == 0 || !e2b__tls_blocked(t, code);
    return E2B_PENDING;
  }
  t->broken = true;
  return e2b__tls_handshake_error(t, code, err);
}

/* The protocol agreed on, or NULL. */
static const char *e2b__tls_alpn(const e2b__tls *t) {
#if defined(MBEDTLS_SSL_ALPN)
  return mbedtls_ssl_get_alpn_protocol(&t->ssl);
#else
  E2B__UNUSED(t);
  return NULL;
#endif
}

/* An established connection failed. What the transport said comes before what mbedTLS made of it. A message out of
 * order is what a TLS 1.3 KeyUpdate looks like to versions that do not know it: no attack, but the end of the
 * connection. */
static int e2b__tls_io_error(e2b__tls *t, int code, e2b_error *err) {
  e2b_err rc = t->io_code || code == MBEDTLS_ERR_SSL_UNEXPECTED_MESSAGE ? E2B_ERR_CLOSED : E2B_ERR_TLS;
  char why[160];
  t->broken = true;
  if (e2b__tls_no_memory(code)) rc = E2B_ERR_NO_MEMORY;
  if (t->io_code)
    e2b__transport_text(t->transport, t->io_code, why, sizeof why);
  else if (code == MBEDTLS_ERR_SSL_FATAL_ALERT_MESSAGE) /* with TLS 1.3 client certificates are refused that way */
    (void)snprintf(why, sizeof why, "the server ended it with an alert; does it want a (different) client certificate?");
  else
    e2b__tls_code_text(code, why, sizeof why);
  e2b__error_set(err, rc, E2B_PHASE_NONE, "the connection to %.80s:%u failed: %s", t->host, (unsigned)t->port, why);
  if (err) {
    err->tls_code = code;
    err->sys_code = t->io_code ? e2b__transport_code(t->transport, t->io_code) : 0;
  }
  return (int)rc;
}

/* > 0 bytes; E2B_IO_AGAIN (look at `again`); E2B_IO_EOF, unclean without a close_notify; or an e2b_err, with *err
 * filled. */
static int e2b__tls_read(e2b__tls *t, void *buf, size_t cap, bool *unclean, e2b_error *err) {
  int turns;
  if (t->broken) return e2b__tls_io_error(t, MBEDTLS_ERR_SSL_BAD_INPUT_DATA, err);
  if (t->ended) return E2B_IO_EOF;
  e2b__tls_begin(t);
  for (turns = 0; turns < 16; turns++) { /* records without data are bounded work for one call */
    int n = mbedtls_ssl_read(&t->ssl, (unsigned char *)buf, E2B__MIN(cap, (size_t)INT_MAX));
    if (n > 0) return n;
    if (n == MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY) {
      t->ended = true;
      return E2B_IO_EOF;
    }
    if (n == MBEDTLS_ERR_SSL_CONN_EOF || (n == 0 && t->rx_eof)) {
      *unclean = true;
      return E2B_IO_EOF;
    }
    if (n == 0) continue; /* the second of two records without data */
    if (!e2b__tls_wants_more(n)) return e2b__tls_io_error(t, n, err);
    if (e2b__tls_blocked(t, n)) return E2B_IO_AGAIN;
  }
  t->again = true;
  return E2B_IO_AGAIN;
}

/* > 0 bytes taken; E2B_IO_AGAIN; or an e2b_err, *err filled. After AGAIN come back with the same bytes, or with more
 * behind them. While mbedTLS holds a record, mbedtls_ssl_write only flushes it and counts whatever it was given as
 * sent; but when that record has left meanwhile, during a read that took a TLS 1.3 ticket, it sends what it is given,
 * a second time. So held records are flushed by writing nothing, and what is ours among them is remembered here. */
static int e2b__tls_write(e2b__tls *t, const void *buf, size_t len, e2b_error *err) {
  int turns, n, max = mbedtls_ssl_get_max_out_record_payload(&t->ssl);
  size_t give;
  if (t->broken || max <= 0) return e2b__tls_io_error(t, MBEDTLS_ERR_SSL_BAD_INPUT_DATA, err);
  E2B_ASSERT(t->tx_len <= len);
  e2b__tls_begin(t);
  for (turns = 0; turns < 16; turns++) {
    if (t->tx_len && !t->tx_left) {
      give = t->tx_len;
      t->tx_len = 0;
      return (int)give;
    }
    if (t->tx_left) {
      n = mbedtls_ssl_write(&t->ssl, (const unsigned char *)buf, 0);
    } else {
      give = E2B__MIN(len, (size_t)max);
      n = mbedtls_ssl_write(&t->ssl, (const unsigned char *)buf, give);
      if (n > 0) return n;
      if (t->tx_left) t->tx_len = give;
    }
    if (n < 0 && !e2b__tls_wants_more(n)) return e2b__tls_io_error(t, n, err);
    if (n < 0 && e2b__tls_blocked(t, n)) return E2B_IO_AGAIN;
  }
  t->again = true;
  return E2B_IO_AGAIN;
}

/* Decrypted data, or work that needs no waiting. */
static bool e2b__tls_buffered(const e2b__tls *t) {
  return t->again || (t->over && !t->broken && mbedtls_ssl_check_pending(&t->ssl) != 0);
}

/* Says goodbye, as far as the socket takes it. */
static void e2b__tls_close_notify(e2b__tls *t) {
  if (t->over && !t->broken) (void)mbedtls_ssl_close_notify(&t->ssl);
}

/* ================================================================================================================== */
/* >>>> proxy */
/* ================================================================================================================== */

/* Which way a connection goes: fixed addresses (config.hosts), HTTP proxies and their exceptions; and the request that
 * opens a tunnel through a proxy. */

#define E2B__TUNNEL_HEAD_MAX 16384u /* bytes of a proxy's answer to CONNECT */

/* "name", "name:port", "address", "[v6]:port". `port` stays as it was when there is none. */
static bool e2b__host_port_split(e2b_str text, e2b_str *host, uint16_t *port) {
  const char *end = text.len ? (const char *)memchr(text.ptr, ']', text.len) : NULL;
  size_t at = 0;
  if (e2b__host_is_ipv6(text)) {
    *host = text;
    return true;
  }
  if (text.len && text.ptr[0] == '[') {
    if (!end) return false;
    *host = e2b__str_n(text.ptr + 1, (size_t)(end - text.ptr) - 1);
    at = (size_t)(end - text.ptr) + 1;
    if (!e2b__host_is_ipv6(*host)) return false;
  } else {
    while (at < text.len && text.ptr[at] != ':') at++;
    *host = e2b__str_n(text.ptr, at);
  }
  return host->len > 0 && e2b__url_port(e2b__str_n(text.ptr + at, text.len - at), port);
}

/* As e2b__dns_literal, for a part of a text. */
static uint8_t e2b__host_literal(e2b_str host, uint8_t out[16]) {
  char text[48];
  if (host.len >= sizeof text) return 0;
  memcpy(text, host.ptr, host.len);
  text[host.len] = 0;
  return e2b__dns_literal(text, out);
}

/* Is `host` the name or address, with `below` also a name below it? Case and a final dot do not matter. */
static bool e2b__host_fits(const char *host, e2b_str pattern, bool below) {
  uint8_t a[16], b[16];
  uint8_t len = e2b__dns_literal(host, a);
  size_t n = e2b__dns_name_len(host), skip;
  if (len) return e2b__host_literal(pattern, b) == len && memcmp(a, b, len) == 0;
  if (pattern.len && pattern.ptr[pattern.len - 1] == '.') pattern.len--;
  if (!pattern.len || n < pattern.len || (n > pattern.len && !below)) return false;
  skip = n - pattern.len;
  if (skip && host[skip - 1] != '.') return false;
  for (n = 0; n < pattern.len; n++)
    if (e2b__ascii_lower(host[skip + n]) != e2b__ascii_lower(pattern.ptr[n])) return false;
  return true;
}

/* Fixed addresses. */

typedef struct e2b__host {
  char *name;    /* of the entry, without the port */
  uint16_t port; /* 0 = any */
  e2b__addr addr;
} e2b__host;

/* NULL when the entry is good, else what is wrong with it. `out` takes a slice of the entry's text for its name. */
static const char *e2b__host_read(const e2b_host_entry *entry, e2b_str *name, e2b__host *out) {
  char plain[E2B__HOST_MAX + 2];
  memset(out, 0, sizeof *out);
  if (!e2b__given(entry->host) || !e2b__host_port_split(e2b__str(entry->host), name, &out->port))
    return "has a host that is not name, name:port, *.domain or *";
  if (!e2b__str_eq(*name, "*")) {
    bool star = name->len > 2 && memcmp(name->ptr, "*.", 2) == 0;
    e2b_str rest = star ? e2b__str_n(name->ptr + 2, name->len - 2) : *name;
    if (rest.len >= sizeof plain) return "has a host name that is too long";
    memcpy(plain, rest.ptr, rest.len);
    plain[rest.len] = 0;
    if (!e2b__dns_name_ok(plain) && (star || !e2b__host_is_ip(rest)))
      return "has a host that is not name, name:port, *.domain or *";
  }
  out->addr.len = entry->address ? e2b__dns_literal(entry->address, out->addr.bytes) : 0;
  return out->addr.len ? NULL : "has an address that is not an IPv4 or IPv6 address";
}

static bool e2b__host_matches(const e2b__host *entry, const char *host, uint16_t port) {
  if (entry->port && entry->port != port) return false;
  if (strcmp(entry->name, "*") == 0) return true;
  if (strncmp(entry->name, "*.", 2) == 0) {
    e2b_str domain = e2b__str(entry->name + 2);
    return e2b__host_fits(host, domain, true) && !e2b__host_fits(host, domain, false);
  }
  return e2b__host_fits(host, e2b__str(entry->name), false);
}

/* The fixed addresses of a host as a finished look-up; NULL in *out when there are none. False = no memory. */
static bool e2b__hosts_find(const e2b__host *hosts, size_t count, const char *host, uint16_t port, e2b__dns **out) {
  char text[48];
  size_t i, first = 0;
  int family;
  *out = NULL;
  while (first < count && !e2b__host_matches(&hosts[first], host, port)) first++;
  if (first == count) return true;
  family = hosts[first].addr.len == 16 ? AF_INET6 : AF_INET;
  if (!inet_ntop(family, hosts[first].addr.bytes, text, (socklen_t)sizeof text)) return false;
  *out = e2b__dns_start(NULL, text); /* a literal: done at once */
  if (!*out) return false;
  for (i = first + 1; i < count; i++)
    if (hosts[i].port == hosts[first].port && e2b__str_eq_nocase(e2b__str(hosts[i].name), hosts[first].name))
      e2b__dns_add(*out, hosts[i].addr.bytes, hosts[i].addr.len);
  return true;
}

/* Proxies. */

typedef struct e2b__proxy {
  char *host; /* NULL = there is none */
  char *auth; /* value of Proxy-Authorization, or NULL */
  uint16_t port;
} e2b__proxy;

typedef struct e2b__proxies {
  e2b__proxy http, https; /* by the scheme of the server's URL */
  char *except;           /* a list as in NO_PROXY, or NULL */
  bool loopback_direct;
} e2b__proxies;

static void e2b__proxy_free(e2b__mem *mem, e2b__proxy *proxy) {
  e2b__mem_free_str(mem, proxy->host);
  e2b__mem_free_str(mem, proxy->auth);
  memset(proxy, 0, sizeof *proxy);
}

static void e2b__proxies_free(e2b__mem *mem, e2b__proxies *proxies) {
  e2b__proxy_free(mem, &proxies->http);
  e2b__proxy_free(mem, &proxies->https);
  e2b__mem_free_str(mem, proxies->except);
  proxies->except = NULL;
}

/* Percent-decodes user or password. False when it is malformed or has a control character. */
static bool e2b__proxy_unescape(e2b__buf *out, e2b_str text) {
  size_t i;
  for (i = 0; i < text.len; i++) {
    int c = (uint8_t)text.ptr[i];
    if (c == '%') {
      int high = i + 2 < text.len ? e2b__hex_value(text.ptr[i + 1]) : -1;
      int low = high >= 0 ? e2b__hex_value(text.ptr[i + 2]) : -1;
      if (low < 0) return false;
      c = high * 16 + low;
      i += 2;
    }
    if (c < 0x20 || c == 0x7f) return false;
    e2b__buf_byte(out, (uint8_t)c);
  }
  return true;
}

/* "user:password" in front of the '@' becomes the value of a header field. */
static e2b_err e2b__proxy_auth(e2b__mem *mem, e2b_str userinfo, char **out) {
  size_t colon = 0;
  e2b_err rc = E2B_ERR_INVALID_ARGUMENT;
  e2b__buf plain, value;
  e2b__buf_init(&plain, mem, 4096);
  e2b__buf_init(&value, mem, 8192);
  while (colon < userinfo.len && userinfo.ptr[colon] != ':') colon++;
  if (e2b__proxy_unescape(&plain, e2b__str_n(userinfo.ptr, colon)) &&
      (!plain.len || !memchr(plain.data, ':', plain.len))) {
    e2b__buf_byte(&plain, ':');
    if (colon < userinfo.len) colon++;
    if (e2b__proxy_unescape(&plain, e2b__str_n(userinfo.ptr + colon, userinfo.len - colon))) rc = plain.err;
  }
  if (rc == E2B_OK) {
    e2b__buf_text(&value, "Basic ");
    e2b__base64_encode(&value, plain.data, plain.len, true);
    rc = value.err;
    if (rc == E2B_OK) *out = e2b__mem_dup(mem, (const char *)value.data, value.len);
    if (rc == E2B_OK && !*out) rc = E2B_ERR_NO_MEMORY;
  }
  e2b__buf_free(&plain);
  e2b__buf_free(&value);
  return rc == E2B_ERR_LIMIT ? E2B_ERR_INVALID_ARGUMENT : rc;
}

/* [http://][user[:password]@]host[:port][/]. E2B_ERR_INVALID_ARGUMENT or E2B_ERR_NO_MEMORY, and *out empty. */
static e2b_err e2b__proxy_parse(e2b__mem *mem, const char *text, e2b__proxy *out) {
  char plain[E2B__HOST_MAX + 32];
  const char *scheme = strstr(text, "://"), *at = NULL, *c;
  size_t len;
  e2b__url url;
  e2b_err rc = E2B_OK;
  memset(out, 0, sizeof *out);
  if (scheme && !e2b__str_eq_nocase(e2b__str_n(text, (size_t)(scheme - text)), "http")) return E2B_ERR_INVALID_ARGUMENT;
  if (scheme) text = scheme + 3;
  for (c = text; *c; c++)
    if (*c == '@') at = c;
  len = strlen(at ? at + 1 : text);
  if (len + 8 > sizeof plain) return E2B_ERR_INVALID_ARGUMENT;
  (void)snprintf(plain, sizeof plain, "http://%s", at ? at + 1 : text);
  if (!e2b__url_parse(plain, &url) || url.path.len) return E2B_ERR_INVALID_ARGUMENT;
  out->port = url.port;
  out->host = e2b__mem_dup(mem, url.host.ptr, url.host.len);
  if (!out->host) rc = E2B_ERR_NO_MEMORY;
  if (rc == E2B_OK && at) rc = e2b__proxy_auth(mem, e2b__str_n(text, (size_t)(at - text)), &out->auth);
  if (rc != E2B_OK) e2b__proxy_free(mem, out);
  return rc;
}

static bool e2b__host_is_loopback(const char *host) {
  static const uint8_t loopback6[16] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 };
  uint8_t addr[16];
  uint8_t len = e2b__dns_literal(host, addr);
  if (len == 4) return addr[0] == 127;
  return len ? memcmp(addr, loopback6, 16) == 0 : e2b__dns_name_within(host, "localhost");
}

/* Is the address in the block, "10.0.0.0/8" or "10.0.0.0/8:port"? */
static bool e2b__host_in_block(const char *host, uint16_t port, e2b_str block) {
  uint8_t a[16], b[16];
  uint8_t len = e2b__dns_literal(host, a);
  uint16_t only = port;
  const char *slash = (const char *)memchr(block.ptr, '/', block.len);
  e2b_str digits = e2b__str_n(slash + 1, block.len - (size_t)(slash - block.ptr) - 1), rest = digits;
  unsigned bits = 0;
  size_t i;
  if (!len || e2b__host_literal(e2b__str_n(block.ptr, (size_t)(slash - block.ptr)), b) != len) return false;
  for (; rest.len && rest.ptr[0] != ':'; rest.len--) rest.ptr++;
  digits.len -= rest.len;
  if (!e2b__url_port(rest, &only) || only != port) return false;
  if (digits.len < 1 || digits.len > 3) return false;
  for (i = 0; i < digits.len; i++) {
    if (!e2b__is_digit(digits.ptr[i])) return false;
    bits = bits * 10u + (unsigned)(digits.ptr[i] - '0');
  }
  if (bits > len * 8u) return false;
  for (i = 0; i < bits; i++)
    if ((a[i / 8] ^ b[i / 8]) & (0x80u >> i % 8)) return false;
  return true;
}

/* Does an entry of NO_PROXY name the host? What cannot be read fits nothing. */
static bool e2b__proxy_entry_fits(e2b_str entry, const char *host, uint16_t port) {
  e2b_str name;
  uint16_t only = port;
  if (e2b__str_eq(entry, "*")) return true;
  if (entry.len && memchr(entry.ptr, '/', entry.len)) return e2b__host_in_block(host, port, entry);
  if (!e2b__host_port_split(entry, &name, &only) || only != port) return false;
  if (name.len > 1 && name.ptr[0] == '*' && name.ptr[1] == '.') name = e2b__str_n(name.ptr + 1, name.len - 1);
  if (name.ptr[0] == '.') name = e2b__str_n(name.ptr + 1, name.len - 1);
  return e2b__host_fits(host, name, true);
}

static bool e2b__proxy_excepted(const char *list, const char *host, uint16_t port) {
  while (list && *list) {
    size_t len = strcspn(list, ", \t");
    if (len && e2b__proxy_entry_fits(e2b__str_n(list, len), host, port)) return true;
    list += len;
    list += strspn(list, ", \t");
  }
  return false;
}

/* The proxy for an origin, or NULL. What it depends on is all in the origin, so connections to the same origin go the
 * same way: the pool need not look at it. */
static const e2b__proxy *e2b__proxy_for(const e2b__proxies *proxies, const char *host, uint16_t port, bool secure) {
  const e2b__proxy *proxy = secure ? &proxies->https : &proxies->http;
  if (!proxy->host || (proxies->loopback_direct && e2b__host_is_loopback(host))) return NULL;
  return e2b__proxy_excepted(proxies->except, host, port) ? NULL : proxy;
}

/* "host:port", with the brackets of IPv6. */
static void e2b__put_host_port(char *out, size_t cap, const char *host, uint16_t port) {
  (void)snprintf(out, cap, strchr(host, ':') ? "[%s]:%u" : "%s:%u", host, (unsigned)port);
}

/* What to do about an answer of a proxy that is not 2xx. */
static const char *e2b__proxy_advice(const e2b__proxy *proxy, int status) {
  bool who = status == 407 || status == 401; /* some say 401 */
  if (who && proxy->auth) return "it does not accept the user or the password of proxy_url (or HTTPS_PROXY)";
  if (who) return "it wants a user and a password: http://user:password@host:port in proxy_url (or HTTPS_PROXY)";
  if (status == 403 || status == 405)
    return "its rules do not allow that: ask who runs it, or add an exception to no_proxy";
  return "it cannot reach the server";
}

/* A tunnel being opened: the request, and the answer. */
typedef struct e2b__tunnel {
  e2b__buf out;
  size_t done;
  e2b__h1 h1;
} e2b__tunnel;

static e2b_err e2b__tunnel_on_head(void *owner, int status, const e2b__headers *headers) {
  E2B__UNUSED(owner);
  E2B__UNUSED(status);
  E2B__UNUSED(headers);
  return E2B_OK;
}

static e2b_err e2b__tunnel_on_body(void *owner, const uint8_t *data, size_t len) {
  E2B__UNUSED(owner);
  E2B__UNUSED(data);
  E2B__UNUSED(len);
  return E2B_OK; /* of a refusal */
}

static void e2b__tunnel_free(e2b__mem *mem, e2b__tunnel *tunnel) {
  if (!tunnel) return;
  e2b__buf_free(&tunnel->out);
  e2b__h1_free(&tunnel->h1);
  e2b__mem_free(mem, tunnel, sizeof *tunnel);
}

/* NULL = no memory. */
static e2b__tunnel *e2b__tunnel_new(e2b__mem *mem, const e2b__proxy *proxy, const char *host, uint16_t port) {
  static const e2b__h1_events events = { e2b__tunnel_on_head, e2b__tunnel_on_body };
  e2b__tunnel *tunnel = (e2b__tunnel *)e2b__mem_alloc(mem, sizeof *tunnel);
  char target[E2B__HOST_MAX + 16];
  e2b__headers headers;
  if (!tunnel) return NULL;
  e2b__put_host_port(target, sizeof target, host, port);
  e2b__headers_init(&headers, mem, 16384);
  if (proxy->auth) e2b__headers_add(&headers, e2b__str("proxy-authorization"), e2b__str(proxy->auth));
  e2b__buf_init(&tunnel->out, mem, 32768);
  e2b__h1_write_head(&tunnel->out, "CONNECT", e2b__str(target), e2b__str(target), &headers, E2B__BODY_NONE);
  e2b__headers_free(&headers);
  e2b__h1_init(&tunnel->h1, mem, E2B__TUNNEL_HEAD_MAX, &events, tunnel);
  e2b__h1_begin(&tunnel->h1, false, true);
  if (!tunnel->out.err) return tunnel;
  e2b__tunnel_free(mem, tunnel);
  return NULL;
}

/* ================================================================================================================== */
/* >>>> link */
/* ================================================================================================================== */

/* One outgoing byte stream: name look-up, connection (happy eyeballs, RFC 8305), tunnel through a proxy, TLS. No other
 * HTTP here. */

#define E2B__LINK_FDS 4             /* connection attempts side by side */
#define E2B__LINK_STAGGER_MS 250u   /* until the next address gets its chance too */
#define E2B__LINK_RETRY_MS 50u      /* until the next try when too many look-ups are under way */
#define E2B__LINK_PATIENCE_MS 2000u /* until the oldest of E2B__LINK_FDS silent attempts gives way to another address */

/* What the links of one client share; lives in the client, which zeroes it and fills in the members up to waker. */
typedef struct e2b__net {
  e2b__mem *mem;
  const e2b_transport *transport;          /* e2b__net_transport() or the user's */
  const e2b_logger *logger;                /* not NULL */
  e2b_tls_config tls_config;               /* its strings belong to the client */
  const char *alpn[E2B__TLS_ALPN_MAX + 1]; /* offered, best first, then NULL; static texts */
  bool no_env;                             /* do not look at SSL_CERT_FILE and SSL_CERT_DIR */
  e2b__proxies proxies;                    /* freed with the rest */
  e2b__host *hosts;                        /* the same */
  size_t host_count;
  e2b__waker *waker;                       /* may be NULL when the transport resolves names itself */
  e2b__tls_shared *tls;
  e2b__tls_shared *tls_h1;                 /* for servers that take back their agreement to HTTP/2; offers http/1.1 only */
  e2b__dns_slot names[E2B__DNS_SLOTS];
  e2b__native_pollfd *polls; /* of e2b__net_poll */
  size_t poll_cap;
} e2b__net;

/* Frees what was made since, not the waker. All links must be closed. */
static void e2b__net_free(e2b__net *net) {
  size_t i;
  for (i = 0; i < E2B__DNS_SLOTS; i++) e2b__dns_slot_clear(&net->names[i]);
  e2b__tls_shared_free(net->tls);
  e2b__tls_shared_free(net->tls_h1);
  e2b__proxies_free(net->mem, &net->proxies);
  for (i = 0; net->hosts && i < net->host_count; i++) e2b__mem_free_str(net->mem, net->hosts[i].name);
  e2b__mem_free(net->mem, net->hosts, net->host_count * sizeof *net->hosts);
  e2b__mem_free(net->mem, net->polls, net->poll_cap * sizeof *net->polls);
  net->hosts = NULL;
  net->host_count = 0;
  net->tls = net->tls_h1 = NULL;
  net->polls = NULL;
  net->poll_cap = 0;
}

/* Waits for fds and fills in revents; an error or hang-up counts as readable and writable. Returns how many have
 * revents; 0 after timeout_ms (-1 = no limit) and after a signal, so that the loop looks at the clock again; < 0 when
 * it could not wait (no memory). */
static int e2b__net_poll(e2b__net *net, e2b_pollfd *fds, size_t count, int timeout_ms) {
  size_t i;
  int ready;
  if (count > net->poll_cap) {
    size_t cap = count + count / 2;
    e2b__native_pollfd *grown = (e2b__native_pollfd *)e2b__mem_realloc(
        net->mem, net->polls, net->poll_cap * sizeof *grown, cap * sizeof *grown);
    if (!grown) return -1;
    net->polls = grown;
    net->poll_cap = cap;
  }
  for (i = 0; i < count; i++) e2b__native_poll_set(&net->polls[i], fds[i].fd, fds[i].events);
  ready = e2b__native_poll(net->polls, count, timeout_ms);
  for (i = 0; i < count; i++) fds[i].revents = ready > 0 ? e2b__native_poll_get(&net->polls[i]) : 0;
  return ready;
}

/* While it opens (the middle four), a link wants to be stepped when the waker fires, when one of e2b__link_fds is
 * ready and when e2b__link_deadline is reached. */
typedef enum e2b__link_state {
  E2B__LINK_IDLE,
  E2B__LINK_RESOLVING,
  E2B__LINK_CONNECTING,
  E2B__LINK_TUNNEL, /* asks the proxy */
  E2B__LINK_TLS,
  E2B__LINK_READY,
  E2B__LINK_FAILED
} e2b__link_state;

typedef struct e2b__attempt {
  void *conn;
  uint8_t addr; /* index of its address */
  uint64_t started_ms;
} e2b__attempt;

/* Needed only until there is a connection. */
typedef struct e2b__opening {
  e2b__dns *dns; /* NULL when the transport resolves names, or while too many look-ups are under way */
  e2b__attempt attempts[E2B__LINK_FDS]; /* under way, oldest first */
  uint8_t live, next;                   /* how many; the next address */
  int sys_code;                         /* of the last failed attempt */
  bool no_fds;
  uint64_t timer_ms;   /* when the next address gets its chance */
  uint64_t checked_ms; /* of the last step */
  char causes[176];
} e2b__opening;

typedef struct e2b__link {
  e2b__net *net;
  const char *host; /* the caller's */
  const e2b__proxy *proxy; /* to connect to instead of the host; NULL = none */
  e2b__opening *opening;
  e2b__tunnel *tunnel;     /* while it is being opened */
  void *conn;
  e2b__tls *tls;
  const char *alpn; /* the protocol agreed on, or NULL: then HTTP/1.1 */
  bool h1_only;     /* offer nothing else */
  uint16_t port;
  bool secure;      /* https */
  bool absolute;    /* no tunnel: requests go to the proxy, which asks the host */
  bool connected;   /* conn is valid: for a transport of the user's it may be NULL */
  bool unclean_eof; /* with TLS: the peer went away without close_notify, so the end of its data proves nothing */
  bool want_write;  /* the last read or write waits until the connection takes bytes */
  e2b__link_state state;
} e2b__link;

static void e2b__link_init(e2b__link *l, e2b__net *net) {
  memset(l, 0, sizeof *l);
  l->net = net;
}

static void e2b__link_shut(e2b__link *l, void *conn) {
  l->net->transport->shut_fn(l->net->transport->user, conn);
}

static void e2b__link_opening_free(e2b__link *l) {
  e2b__opening *o = l->opening;
  size_t i;
  if (!o) return;
  for (i = 0; i < o->live; i++) e2b__link_shut(l, o->attempts[i].conn);
  e2b__dns_release(o->dns);
  e2b__mem_free(l->net->mem, o, sizeof *o);
  l->opening = NULL;
}

/* Idempotent; the link can be opened again. */
static void e2b__link_close(e2b__link *l) {
  e2b__link_opening_free(l);
  e2b__tunnel_free(l->net->mem, l->tunnel);
  l->tunnel = NULL;
  if (l->tls) {
    e2b__tls_close_notify(l->tls);
    e2b__tls_free(l->tls);
    l->tls = NULL;
  }
  if (l->connected) e2b__link_shut(l, l->conn);
  l->connected = false;
  l->conn = NULL;
  l->alpn = NULL;
  l->want_write = false;
  l->state = E2B__LINK_IDLE;
}

/* As e2b__link_close, for an opening that failed. Returns `code`. */
static e2b_err e2b__link_fail(e2b__link *l, e2b_err code) {
  e2b__link_close(l);
  l->state = E2B__LINK_FAILED;
  return code;
}

/* How far the opening has come, for the text of a timeout. */
static e2b_phase e2b__link_phase(const e2b__link *l) {
  if (l->state == E2B__LINK_RESOLVING) return E2B_PHASE_RESOLVE;
  if (l->state == E2B__LINK_CONNECTING || l->state == E2B__LINK_TUNNEL) return E2B_PHASE_CONNECT;
  return l->state == E2B__LINK_TLS ? E2B_PHASE_TLS : E2B_PHASE_NONE;
}

/* Where the socket goes. */
static const char *e2b__link_to_host(const e2b__link *l) {
  return l->proxy ? l->proxy->host : l->host;
}

static uint16_t e2b__link_to_port(const e2b__link *l) {
  return l->proxy ? l->proxy->port : l->port;
}

/* Starts. `host` is a name or a literal without brackets and must outlive the link. E2B_OK = under way. */
static e2b_err e2b__link_open(e2b__link *l, const char *host, uint16_t port, bool secure, uint64_t now_ms,
                              e2b_error *err) {
  e2b__net *net = l->net;
  bool own_names = (net->transport->flags & E2B_TRANSPORT_HAS_DNS) != 0;
  uint8_t literal[16];
  E2B_ASSERT(l->state == E2B__LINK_IDLE || l->state == E2B__LINK_FAILED);
  l->host = host;
  l->port = port;
  l->secure = secure;
  l->unclean_eof = false;
  l->proxy = e2b__proxy_for(&net->proxies, host, port, secure);
  l->absolute = l->proxy && !secure;
  if (!own_names && !e2b__dns_literal(host, literal) && !e2b__dns_name_ok(host)) {
    e2b__error_set(err, E2B_ERR_INVALID_ARGUMENT, E2B_PHASE_NONE, "\"%.100s\" is not a valid host name", host);
    return e2b__link_fail(l, E2B_ERR_INVALID_ARGUMENT);
  }
  l->opening = (e2b__opening *)e2b__mem_alloc(net->mem, sizeof *l->opening);
  if (!l->opening || !e2b__hosts_find(net->hosts, net->host_count, e2b__link_to_host(l), e2b__link_to_port(l),
                                      &l->opening->dns)) {
    e2b__error_set(err, E2B_ERR_NO_MEMORY, E2B_PHASE_RESOLVE, "out of memory connecting to %.100s", host);
    return e2b__link_fail(l, E2B_ERR_NO_MEMORY);
  }
  l->opening->timer_ms = l->opening->checked_ms = now_ms;
  l->state = own_names ? E2B__LINK_CONNECTING : E2B__LINK_RESOLVING;
  return E2B_OK;
}

static e2b_err e2b__link_resolve(e2b__link *l, uint64_t now_ms, e2b_error *err) {
  e2b__opening *o = l->opening;
  const char *host = e2b__link_to_host(l);
  o->checked_ms = now_ms;
  if (!o->dns) {
    e2b_err rc = e2b__dns_get(l->net->names, l->net->waker, host, now_ms, &o->dns);
    if (rc == E2B_PENDING) return rc;
    if (rc != E2B_OK) {
      e2b__error_set(err, rc, E2B_PHASE_RESOLVE, "out of memory looking up %.100s", host);
      return rc;
    }
  }
  if (!e2b__dns_done(o->dns)) return E2B_PENDING;
  if (o->dns->count == 0) {
    e2b__error_set(err, E2B_ERR_RESOLVE, E2B_PHASE_RESOLVE,
                   "cannot find the address of %s\"%.100s\": %s; check %s and this machine's network",
                   l->proxy ? "the proxy " : "", host, o->dns->why, l->proxy ? "proxy_url" : "the domain");
    if (err) err->sys_code = o->dns->sys_code;
    return E2B_ERR_RESOLVE;
  }
  o->timer_ms = now_ms;
  l->state = E2B__LINK_CONNECTING;
  return E2B_OK;
}

static size_t e2b__link_addrs(const e2b__link *l) {
  return l->opening->dns ? l->opening->dns->count : 1;
}

/* Notes why an attempt failed: "10.0.0.1: connection refused". */
static void e2b__link_cause(e2b__link *l, size_t addr, const char *why) {
  e2b__opening *o = l->opening;
  const e2b__addr *a = o->dns ? &o->dns->addrs[addr] : NULL;
  bool v6 = a && a->len == 16;
  char text[64];
  size_t len = strlen(o->causes);
  if (!a || !inet_ntop(v6 ? AF_INET6 : AF_INET, a->bytes, text, (socklen_t)sizeof text)) text[0] = 0;
  (void)snprintf(o->causes + len, sizeof o->causes - len, "%s%s%s%s%s%s", len ? "; " : "", v6 ? "[" : "", text,
                 v6 ? "]" : "", text[0] ? ": " : "", why);
}

static void e2b__link_attempt_failed(e2b__link *l, size_t addr, int io_code) {
  char why[64];
  e2b__opening *o = l->opening;
  o->sys_code = e2b__transport_code(l->net->transport, io_code);
  if (l->net->transport == e2b__net_transport() && e2b__sock_no_fds(o->sys_code)) o->no_fds = true;
  e2b__transport_text(l->net->transport, io_code, why, sizeof why);
  e2b__link_cause(l, addr, why);
}

/* Takes attempt `i` off the list without closing it. */
static void *e2b__link_attempt_take(e2b__opening *o, size_t i) {
  void *conn = o->attempts[i].conn;
  o->live--;
  memmove(&o->attempts[i], &o->attempts[i + 1], (o->live - i) * sizeof o->attempts[0]);
  return conn;
}

/* Starts an attempt with the next address. E2B_OK = connected. */
static e2b_err e2b__link_attempt(e2b__link *l, uint64_t now_ms) {
  e2b__opening *o = l->opening;
  size_t addr = o->next++;
  e2b_endpoint to;
  void *conn = NULL;
  int rc;
  memset(&to, 0, sizeof to);
  to.host = e2b__link_to_host(l);
  to.port = e2b__link_to_port(l);
  to.tls = l->secure && !l->proxy;
  if (o->dns) {
    to.addr = o->dns->addrs[addr].bytes;
    to.addr_len = o->dns->addrs[addr].len;
  }
  rc = l->net->transport->open_fn(l->net->transport->user, &to, &conn);
  if (rc == 0) {
    l->conn = conn;
    return E2B_OK;
  }
  if (rc != E2B_IO_AGAIN) {
    e2b__link_attempt_failed(l, addr, rc);
    o->timer_ms = now_ms;
    return E2B_PENDING;
  }
  o->attempts[o->live].conn = conn;
  o->attempts[o->live].addr = (uint8_t)addr;
  o->attempts[o->live].started_ms = now_ms;
  o->live++;
  o->timer_ms = now_ms + E2B__LINK_STAGGER_MS;
  return E2B_PENDING;
}

/* Looks at the attempts under way. E2B_OK = one of them is connected. A failure lets the next one start at once. */
static e2b_err e2b__link_attempts_check(e2b__link *l, uint64_t now_ms) {
  e2b__opening *o = l->opening;
  const e2b_transport *tp = l->net->transport;
  size_t i = 0;
  while (i < o->live) {
    int rc = tp->ready_fn(tp->user, o->attempts[i].conn);
    if (rc == E2B_IO_AGAIN) {
      i++;
      continue;
    }
    if (rc == 0) {
      l->conn = e2b__link_attempt_take(o, i);
      return E2B_OK;
    }
    e2b__link_attempt_failed(l, o->attempts[i].addr, rc);
    e2b__link_shut(l, e2b__link_attempt_take(o, i));
    o->timer_ms = now_ms;
  }
  return E2B_PENDING;
}

static e2b_err e2b__link_connect_error(e2b__link *l, e2b_error *err) {
  e2b__opening *o = l->opening;
  e2b_err code = o->no_fds ? E2B_ERR_IO : E2B_ERR_CONNECT;
  const char *next = o->no_fds ? "raise the limit of open files (ulimit -n) or lower max_connections"
                               : "check that the service runs there and is reachable";
  e2b__error_set(err, code, E2B_PHASE_CONNECT, "cannot connect to %s%.80s:%u (%s): %s", l->proxy ? "the proxy " : "",
                 e2b__link_to_host(l), (unsigned)e2b__link_to_port(l), next, o->causes);
  if (err) err->sys_code = o->sys_code;
  if (o->dns) e2b__dns_forget(l->net->names, e2b__link_to_host(l));
  return code;
}

/* The caller's patience is over. */
static void e2b__link_gave_up(e2b__link *l) {
  if (l->state == E2B__LINK_CONNECTING && l->opening->dns) e2b__dns_forget(l->net->names, e2b__link_to_host(l));
}

/* E2B_OK = connected, the other attempts are closed. */
static e2b_err e2b__link_connect(e2b__link *l, uint64_t now_ms, e2b_error *err) {
  e2b__opening *o = l->opening;
  e2b_err rc = e2b__link_attempts_check(l, now_ms);
  o->checked_ms = now_ms;
  while (rc == E2B_PENDING && o->next < e2b__link_addrs(l) && (o->live == 0 || now_ms >= o->timer_ms)) {
    if (o->live == E2B__LINK_FDS) {
      uint64_t patience = o->attempts[0].started_ms + E2B__LINK_PATIENCE_MS;
      if (now_ms < patience) {
        o->timer_ms = patience;
        break;
      }
      e2b__link_cause(l, o->attempts[0].addr, "no answer");
      e2b__link_shut(l, e2b__link_attempt_take(o, 0));
    }
    rc = e2b__link_attempt(l, now_ms);
  }
  if (rc == E2B_PENDING) return o->live > 0 ? rc : e2b__link_connect_error(l, err);
  l->connected = true;
  e2b__link_opening_free(l);
  return E2B_OK;
}

/* The proxy did not open the tunnel. */
static e2b_err e2b__link_tunnel_error(e2b__link *l, e2b_err code, const char *why, e2b_error *err) {
  int status = l->tunnel->h1.status;
  char to[E2B__HOST_MAX + 16];
  if (code == E2B_ERR_NO_MEMORY) {
    e2b__error_set(err, code, E2B_PHASE_CONNECT, "out of memory for the answer of the proxy");
    return code;
  }
  e2b__put_host_port(to, sizeof to, l->host, l->port);
  if (why)
    e2b__error_set(err, E2B_ERR_PROXY, E2B_PHASE_CONNECT, "the proxy %.60s:%u opened no connection to %.60s: %s",
                   l->proxy->host, (unsigned)l->proxy->port, to, why);
  else
    e2b__error_set(err, E2B_ERR_PROXY, E2B_PHASE_CONNECT,
                   "the proxy %.60s:%u refused a connection to %.60s (HTTP %d): %s", l->proxy->host,
                   (unsigned)l->proxy->port, to, status, e2b__proxy_advice(l->proxy, status));
  if (err) err->http_status = status;
  return E2B_ERR_PROXY;
}

/* What came from the proxy. E2B_PENDING = more is to come. */
static e2b_err e2b__link_tunnel_feed(e2b__link *l, const uint8_t *data, size_t len, e2b_error *err) {
  e2b__h1 *h1 = &l->tunnel->h1;
  size_t used = 0;
  e2b_err code = e2b__h1_feed(h1, data, len, &used);
  if (h1->head_done && (h1->status < 200 || h1->status > 299))
    return e2b__link_tunnel_error(l, E2B_ERR_PROXY, NULL, err);
  if (code) return e2b__link_tunnel_error(l, code, h1->detail ? h1->detail : "its answer cannot be used", err);
  if (!h1->head_done) return E2B_PENDING;
  if (used < len) return e2b__link_tunnel_error(l, E2B_ERR_PROXY, "it went on talking after its answer", err);
  return E2B_OK;
}

/* Sends CONNECT and reads the answer, not a byte more than has come: behind it is the server. E2B_OK = open. */
static e2b_err e2b__link_tunnel(e2b__link *l, e2b_error *err) {
  const e2b_transport *tp = l->net->transport;
  e2b__tunnel *t = l->tunnel;
  uint8_t data[512];
  e2b_err rc = E2B_PENDING;
  char why[96];
  int n = 1;
  while (t->done < t->out.len && n > 0) {
    n = tp->tx_fn(tp->user, l->conn, t->out.data + t->done, t->out.len - t->done);
    if (n > 0) t->done += (size_t)n;
  }
  l->want_write = n == E2B_IO_AGAIN;
  while (rc == E2B_PENDING && n > 0) {
    n = tp->rx_fn(tp->user, l->conn, data, sizeof data);
    if (n > 0) rc = e2b__link_tunnel_feed(l, data, (size_t)n, err);
  }
  if (rc != E2B_PENDING || n == E2B_IO_AGAIN) return rc;
  if (n == E2B_IO_EOF)
    return e2b__link_tunnel_error(l, E2B_ERR_PROXY, "it closed the connection before its answer ended", err);
  e2b__transport_text(tp, n, why, sizeof why);
  rc = e2b__link_tunnel_error(l, E2B_ERR_PROXY, why, err);
  if (err) err->sys_code = e2b__transport_code(tp, n);
  return rc;
}

/* On a fresh connection. E2B_OK = what comes next is in l->state. */
static e2b_err e2b__link_connected(e2b__link *l, e2b_error *err) {
  if (l->proxy && !l->absolute) {
    l->tunnel = e2b__tunnel_new(l->net->mem, l->proxy, l->host, l->port);
    l->state = E2B__LINK_TUNNEL;
    if (l->tunnel) return E2B_OK;
    e2b__error_set(err, E2B_ERR_NO_MEMORY, E2B_PHASE_CONNECT, "out of memory connecting to %.100s", l->host);
    return E2B_ERR_NO_MEMORY;
  }
  l->state = E2B__LINK_READY;
  return E2B_OK;
}

/* On a fresh connection or tunnel. E2B_OK = ready, or TLS is to follow. */
static e2b_err e2b__link_secure(e2b__link *l, e2b_error *err) {
  static const char *const h1[] = { "http/1.1", NULL };
  e2b__net *net = l->net;
  e2b__tls_shared **shared;
  e2b_err rc;
  l->state = E2B__LINK_READY;
  if (!l->secure) return E2B_OK;
  if (net->transport->flags & E2B_TRANSPORT_HAS_TLS) {
    if (net->transport->alpn_fn) l->alpn = net->transport->alpn_fn(net->transport->user, l->conn);
    return E2B_OK;
  }
  l->state = E2B__LINK_TLS;
  shared = l->h1_only ? &net->tls_h1 : &net->tls;
  rc = e2b__tls_shared_get(shared, net->mem, &net->tls_config, l->h1_only ? h1 : net->alpn, net->no_env, net->logger, err);
  if (rc != E2B_OK) return rc;
  if (net->tls_config.insecure_skip_verify)
    e2b__log(net->logger, E2B_LOG_WARN, "the certificate of %.100s:%u is NOT verified (tls.insecure_skip_verify)",
             l->host, (unsigned)l->port);
  return e2b__tls_new(*shared, net->transport, l->conn, l->host, l->port, &l->tls, err);
}

/* Drives the opening. E2B_OK = ready; E2B_PENDING; or a failure with *err filled and everything closed. The caller has
 * the deadline, and e2b__link_phase for its error. */
static e2b_err e2b__link_step(e2b__link *l, uint64_t now_ms, e2b_error *err) {
  e2b_err rc = E2B_OK;
  E2B_ASSERT(l->state != E2B__LINK_IDLE && l->state != E2B__LINK_FAILED);
  if (l->state == E2B__LINK_RESOLVING) rc = e2b__link_resolve(l, now_ms, err);
  if (rc == E2B_OK && l->state == E2B__LINK_CONNECTING) {
    rc = e2b__link_connect(l, now_ms, err);
    if (rc == E2B_OK) rc = e2b__link_connected(l, err);
    if (rc == E2B_OK && l->state == E2B__LINK_READY) rc = e2b__link_secure(l, err);
  }
  if (rc == E2B_OK && l->state == E2B__LINK_TUNNEL) {
    rc = e2b__link_tunnel(l, err);
    if (rc == E2B_OK) {
      e2b__tunnel_free(l->net->mem, l->tunnel);
      l->tunnel = NULL;
      rc = e2b__link_secure(l, err);
    }
  }
  if (rc == E2B_OK && l->state == E2B__LINK_TLS) {
    rc = e2b__tls_handshake(l->tls, err);
    l->want_write = l->tls->tx_blocked;
    if (rc == E2B_OK) {
      l->alpn = e2b__tls_alpn(l->tls);
      l->state = E2B__LINK_READY;
    }
  }
  return rc < 0 ? e2b__link_fail(l, rc) : rc;
}

static int e2b__link_io_error(e2b__link *l, int io_code, e2b_error *err) {
  char why[64];
  e2b__transport_text(l->net->transport, io_code, why, sizeof why);
  e2b__error_set(err, E2B_ERR_CLOSED, E2B_PHASE_NONE, "the connection to %.100s:%u failed: %s", l->host,
                 (unsigned)l->port, why);
  if (err) err->sys_code = e2b__transport_code(l->net->transport, io_code);
  return (int)E2B_ERR_CLOSED;
}

/* > 0 bytes; E2B_IO_AGAIN; E2B_IO_EOF (see unclean_eof); or an e2b_err with *err filled. */
static int e2b__link_read(e2b__link *l, void *buf, size_t cap, e2b_error *err) {
  const e2b_transport *tp = l->net->transport;
  int n;
  E2B_ASSERT(l->state == E2B__LINK_READY && cap > 0);
  if (l->tls) {
    n = e2b__tls_read(l->tls, buf, cap, &l->unclean_eof, err);
    l->want_write = l->tls->tx_blocked;
    return n;
  }
  n = tp->rx_fn(tp->user, l->conn, buf, cap);
  return n > 0 || n == E2B_IO_AGAIN || n == E2B_IO_EOF ? n : e2b__link_io_error(l, n, err);
}

/* > 0 bytes taken; E2B_IO_AGAIN; or an e2b_err with *err filled. After E2B_IO_AGAIN the next call must begin with the
 * same bytes; there may be more behind them. */
static int e2b__link_write(e2b__link *l, const void *buf, size_t len, e2b_error *err) {
  const e2b_transport *tp = l->net->transport;
  int n;
  E2B_ASSERT(l->state == E2B__LINK_READY && len > 0);
  if (l->tls) {
    n = e2b__tls_write(l->tls, buf, len, err);
    l->want_write = l->tls->tx_blocked;
    return n;
  }
  n = tp->tx_fn(tp->user, l->conn, buf, len);
  return n > 0 || n == E2B_IO_AGAIN ? n : e2b__link_io_error(l, n, err);
}

/* There is data, or work, that no descriptor tells of: step or read again instead of sleeping. */
static bool e2b__link_buffered(const e2b__link *l) {
  return l->tls && e2b__tls_buffered(l->tls);
}

static void e2b__link_fd(const e2b__link *l, void *conn, uint32_t events, e2b_pollfd *out, size_t cap, size_t *count) {
  const e2b_transport *tp = l->net->transport;
  intptr_t fd = tp->fd_fn ? tp->fd_fn(tp->user, conn) : -1;
  if (fd < 0 || !events || *count >= cap) return;
  out[*count].fd = fd;
  out[*count].events = events;
  out[*count].revents = 0;
  (*count)++;
}

/* What to wait for: at most E2B__LINK_FDS entries. want_read and want_write matter when the link is ready. */
static size_t e2b__link_fds(const e2b__link *l, e2b_pollfd *out, size_t cap, bool want_read, bool want_write) {
  size_t i, count = 0;
  uint32_t events;
  if (l->state == E2B__LINK_CONNECTING) {
    for (i = 0; i < l->opening->live; i++)
      e2b__link_fd(l, l->opening->attempts[i].conn, E2B_FD_WRITE, out, cap, &count);
  } else if (l->state == E2B__LINK_TUNNEL || l->state == E2B__LINK_TLS) {
    e2b__link_fd(l, l->conn, l->want_write ? E2B_FD_WRITE : E2B_FD_READ, out, cap, &count);
  } else if (l->state == E2B__LINK_READY) {
    events = (want_read ? E2B_FD_READ : 0u) | (want_write ? E2B_FD_WRITE : 0u);
    if (events && l->want_write) events |= E2B_FD_WRITE;
    e2b__link_fd(l, l->conn, events, out, cap, &count);
  }
  return count;
}

/* Whether something may happen to it that no descriptor tells of: then it has to be looked at from time to time. That is a
 * connection of a transport that has descriptors, but none for this one; and, where it has none at all, a look-up on
 * another thread, because nobody waits for the waker. */
static bool e2b__link_unseen(const e2b__link *l) {
  const e2b_transport *tp = l->net->transport;
  size_t i;
  if (tp == e2b__net_transport()) return false;
  if (!tp->fd_fn) return l->state == E2B__LINK_RESOLVING;
  for (i = 0; l->opening && i < l->opening->live; i++)
    if (tp->fd_fn(tp->user, l->opening->attempts[i].conn) < 0) return true;
  return l->connected && tp->fd_fn(tp->user, l->conn) < 0;
}

/* When to step it even if no descriptor is ready: 0 = now, E2B__NEVER. */
static uint64_t e2b__link_deadline(const e2b__link *l) {
  const e2b__opening *o = l->opening;
  uint64_t deadline = (uint64_t)E2B__NEVER;
  if (l->state == E2B__LINK_TLS && e2b__link_buffered(l)) return 0;
  if (l->state == E2B__LINK_RESOLVING && !o->dns) return o->checked_ms + E2B__LINK_RETRY_MS;
  if (l->state == E2B__LINK_RESOLVING && e2b__dns_done(o->dns)) return 0;
  if (l->state != E2B__LINK_CONNECTING) return deadline;
  if (o->live == 0 || o->next < e2b__link_addrs(l)) deadline = o->timer_ms;
#if E2B__WIN32
  deadline = E2B__MIN(deadline, o->checked_ms + 100u); /* old versions of WSAPoll do not report a failed connect */
#endif
  return deadline;
}

/* For a pooled connection nobody waits on: false when the peer closed it or sent something unasked. */
static bool e2b__link_alive(e2b__link *l) {
  uint8_t byte;
  return l->state == E2B__LINK_READY && e2b__link_read(l, &byte, 1, NULL) == E2B_IO_AGAIN;
}

/* ================================================================================================================== */
/* >>>> requests */
/* ================================================================================================================== */

typedef struct e2b__conn e2b__conn;
typedef struct e2b__req e2b__req;
struct e2b__h2;
struct e2b__h2_stream;
typedef struct e2b__op e2b__op;

/* First member of everything a callback may free while it is in use: what dies inside a turn is buried at its end. */
typedef struct e2b__object {
  struct e2b__object *next_dead;
  size_t size;
} e2b__object;

typedef struct e2b__op_slot {
  e2b__op *op;
  uint16_t generation;
} e2b__op_slot;

struct e2b_client {
  e2b__mem mem;
  e2b_client_config config; /* resolved: no member is 0 for "default" any more, strings are ours */
  e2b__net net;
  uint64_t now;             /* milliseconds, read once per turn */
  bool in_turn;             /* user callbacks run only then: blocking calls are refused */
  bool closing;             /* in e2b_client_free: nothing new is started */
  bool work;                /* something can be done without waiting for the network */
  uint64_t budget_end_us;   /* no further piece of work starts after it; 0 = no budget */

  e2b__conn *conns;
  uint32_t conn_count, idle_count, h2_count;
  e2b__req *reqs, *reqs_tail; /* every request not ended yet, oldest first */
  uint32_t queued_count;
  uint8_t *io;              /* what was just read: always consumed before the next read, so one is enough */

  e2b__op_slot *slots;
  uint32_t slot_count, op_count;
  uint32_t step_from;        /* whose turn it is among the operations made of others, when the budget is small */
  e2b__op *done, *done_tail; /* finished, not delivered */
  uint32_t delivered;        /* completions of this turn */
  e2b_sandbox *sandboxes;
  e2b__object *dead;
  e2b_pollfd *polls;
  size_t poll_cap;
  e2b_client_stats stats;
};

static uint64_t e2b__now_ms(const e2b_client *client) {
  return client->config.now_ms_fn ? client->config.now_ms_fn(client->config.platform_user) : e2b__net_now_us() / 1000u;
}

static uint64_t e2b__now_us(const e2b_client *client) {
  return client->config.now_ms_fn ? client->config.now_ms_fn(client->config.platform_user) * 1000u : e2b__net_now_us();
}

static bool e2b__budget_spent(const e2b_client *client) {
  return client->budget_end_us && e2b__now_us(client) >= client->budget_end_us;
}

static void *e2b__object_new(e2b_client *client, size_t size) {
  e2b__object *object = (e2b__object *)e2b__mem_alloc(&client->mem, size);
  if (object) object->size = size;
  return object;
}

static void e2b__object_free(e2b_client *client, void *ptr) {
  e2b__object *object = (e2b__object *)ptr;
  if (client->in_turn) {
    object->next_dead = client->dead;
    client->dead = object;
  } else {
    e2b__mem_free(&client->mem, object, object->size);
  }
}

static uint64_t e2b__deadline(uint64_t now, int32_t timeout_ms) {
  return timeout_ms < 0 ? (uint64_t)E2B__NEVER : now + (uint64_t)timeout_ms;
}

/* What becomes of a request. All are called inside a turn. */
typedef struct e2b__req_events {
  /* Optional. The final head is in req->status and req->answer_headers. */
  e2b_err (*on_head)(e2b__req *req);
  /* Optional; without it the body collects in req->rx. Says in *taken how much it used; the rest is kept in rx and offered
   * again together with what comes next. It may set req->paused: then nothing is offered until e2b__req_resume. */
  e2b_err (*on_body)(e2b__req *req, const uint8_t *data, size_t len, size_t *taken);
  /* Gives body bytes: > 0, 0 at the end, E2B_IO_AGAIN for none until e2b__req_kick, other < 0 = abort with that e2b_err. */
  int (*on_source)(e2b__req *req, uint8_t *buf, size_t cap);
  /* Once. err->code is E2B_OK for a complete answer of any status. The request may be freed or submitted again here. */
  void (*on_end)(e2b__req *req, const e2b_error *err);
} e2b__req_events;

typedef enum e2b__req_state {
  E2B__REQ_NEW = 0, /* being filled in, or ended */
  E2B__REQ_QUEUED,
  E2B__REQ_ACTIVE,  /* has a connection */
  E2B__REQ_ENDED    /* the answer is complete, but the consumer paused: on_end comes after the rest of the data */
} e2b__req_state;

/* One HTTP exchange. Embedded in what wants it (an operation, a stream). */
struct e2b__req {
  e2b_client *client;
  const e2b__req_events *events;
  e2b__req *prev, *next;
  e2b__conn *conn;
  struct e2b__h2_stream *stream; /* on an HTTP/2 connection */
  e2b__req_state state;
  uint64_t deadline;           /* of the whole exchange */
  int32_t idle_ms;             /* no progress for so long ends it; < 0 = no limit */
  uint64_t last_progress;
  uint64_t not_before;         /* stays queued until then */
  e2b_phase failed_phase;

  /* the request; strings ours */
  const char *method;
  bool tls;
  uint16_t port;
  char *host;
  e2b__buf path;               /* what follows the host, with the query */
  e2b__headers headers;
  e2b__buf body;               /* sent first, */
  int64_t body_len;            /* then the source until this many bytes in all; or E2B__BODY_* */
  uint64_t body_done;          /* bytes handed to the connection */
  bool body_ended, source_waits;
  bool idempotent;             /* may be sent again when a reused connection turns out to be dead */
  bool fresh;                  /* is being sent again: by a connection numbered above fresh_since (0: no idle HTTP/1.1 one) */
  bool crowded;                /* was refused once for being one too many */
  bool h1_only;                /* the server demanded it (HTTP_1_1_REQUIRED) */
  e2b__conn *opening;          /* queued: waits for that one, opened for another request, as it may turn out to be HTTP/2 */
  bool sent;                   /* a byte of it was given to the network */
  /* Optional: asked before it leaves the queue; may add headers. E2B_PENDING: not yet, client->work says when to ask again. */
  e2b_err (*gate)(e2b__req *req, e2b_error *err);
  void *gate_user;
  void (*on_deadline)(e2b__req *req); /* optional: what to do when it passes, instead of ending it */
  uint32_t fresh_since;
  uint64_t tx_mark;            /* HTTP/2: where in the connection's output its head begins */

  /* the answer */
  int status;                  /* 0 until the head is complete */
  e2b__headers answer_headers;
  bool open_ended;             /* only the end of the connection tells where the body ends (HTTP/2 has its frames) */
  uint64_t answer_len;         /* body bytes so far */
  e2b__buf rx;
  size_t rx_limit, rx_need;    /* held back when rx reaches the larger one; rx_limit 0 = never */
  bool paused;                 /* the consumer wants nothing until e2b__req_resume */
  bool pulled;                 /* the consumer takes from rx itself; on_end waits until it has (e2b__req_flush) */
  bool flush;
  e2b_error end;               /* in E2B__REQ_ENDED */
};

static void e2b__req_init(e2b__req *req, e2b_client *client, const e2b__req_events *events) {
  memset(req, 0, sizeof *req);
  req->client = client;
  req->events = events;
  req->method = "GET";
  req->body_len = E2B__BODY_NONE;
  req->deadline = (uint64_t)E2B__NEVER;
  req->idle_ms = -1;
  e2b__buf_init(&req->path, &client->mem, 65536);
  e2b__buf_init(&req->body, &client->mem, SIZE_MAX);
  e2b__buf_init(&req->rx, &client->mem, (size_t)client->config.max_message_bytes + client->config.io_buffer_size);
  e2b__headers_init(&req->headers, &client->mem, 65536);
  e2b__headers_init(&req->answer_headers, &client->mem, client->config.max_header_bytes);
}

/* Whether reading for it has to stop because nobody takes what came. */
static bool e2b__req_held(const e2b__req *req) {
  return req->paused || (req->rx_limit && req->rx.len >= E2B__MAX(req->rx_limit, req->rx_need));
}

/* What came stays in rx, all of it, whatever rx_limit says. */
static e2b_err e2b__req_keep_all(e2b__req *req) {
  req->rx_need = SIZE_MAX;
  return E2B_OK;
}

static void e2b__req_link(e2b__req *req, bool first) {
  e2b_client *client = req->client;
  req->prev = first ? NULL : client->reqs_tail;
  req->next = first ? client->reqs : NULL;
  if (req->prev) req->prev->next = req; else client->reqs = req;
  if (req->next) req->next->prev = req; else client->reqs_tail = req;
}

static void e2b__req_unlink(e2b__req *req) {
  e2b_client *client = req->client;
  if (req->prev) req->prev->next = req->next; else client->reqs = req->next;
  if (req->next) req->next->prev = req->prev; else client->reqs_tail = req->prev;
  req->prev = req->next = NULL;
}

static void e2b__req_set_state(e2b__req *req, e2b__req_state state) {
  if (req->state == E2B__REQ_QUEUED) req->client->queued_count--;
  if (state == E2B__REQ_QUEUED) req->client->queued_count++;
  req->opening = NULL;
  req->state = state;
}

static void e2b__req_clear_answer(e2b__req *req) {
  req->status = 0;
  req->answer_len = 0;
  req->rx.len = req->rx_need = 0;
  req->body_done = 0;
  req->body_ended = req->source_waits = req->sent = false;
  e2b__headers_free(&req->answer_headers);
}

/* Queues it. Everything else happens in turns. Failures of the builders (path, headers, body) are reported here. */
static e2b_err e2b__req_submit(e2b__req *req) {
  e2b_err failed = req->path.err ? req->path.err : req->body.err ? req->body.err : req->headers.text.err;
  if (failed || !req->host) return failed ? failed : E2B_ERR_NO_MEMORY;
  e2b__req_clear_answer(req);
  req->crowded = false;
  req->last_progress = req->client->now;
  e2b__req_set_state(req, E2B__REQ_QUEUED);
  e2b__req_link(req, false);
  req->client->work = true;
  return E2B_OK;
}

/* Puts a request back that may safely be sent again. */
static void e2b__req_requeue(e2b__req *req) {
  req->conn = NULL;
  req->fresh = true;
  req->fresh_since = req->client->stats.connections_made;
  e2b__req_clear_answer(req);
  e2b__req_unlink(req);
  e2b__req_link(req, true);
  e2b__req_set_state(req, E2B__REQ_QUEUED);
  req->client->work = true;
}

static void e2b__req_finish(e2b__req *req) {
  e2b_error end = req->end;
  e2b__req_set_state(req, E2B__REQ_NEW);
  e2b__req_unlink(req);
  req->events->on_end(req, &end);
}

/* Offers what is in rx. Returns an error of the consumer. */
static e2b_err e2b__req_offer(e2b__req *req) {
  size_t taken = 0;
  e2b_err code;
  if (!req->events->on_body || req->paused || req->pulled || !req->rx.len) return E2B_OK;
  code = req->events->on_body(req, req->rx.data, req->rx.len, &taken);
  if (req->state == E2B__REQ_NEW) return E2B_ERR_CANCELED;
  e2b__buf_drop(&req->rx, taken);
  return code;
}

/* Ends the exchange; the connection has let go of it already. */
static void e2b__req_end(e2b__req *req, const e2b_error *err) {
  const char *id = e2b__headers_get(&req->answer_headers, "x-request-id");
  req->conn = NULL;
  req->end = *err;
  if (req->status) req->end.http_status = req->status; /* else it may be the proxy's, or that of what kept it in the queue */
  if (id) (void)snprintf(req->end.request_id, sizeof req->end.request_id, "%s", id);
  if (err->code) req->end.maybe_done = req->sent && !req->idempotent;
  e2b__req_set_state(req, E2B__REQ_ENDED);
  if ((req->paused || req->pulled) && req->rx.len) { /* e2b__req_flush comes back to it */
    req->deadline = (uint64_t)E2B__NEVER;
    return;
  }
  e2b__req_finish(req);
}

/* Keeps what nobody has taken. Room for a message whose size is known, and for what is read with its end, is made at once:
 * step by step it would take twice as much for a moment. */
static e2b_err e2b__req_keep(e2b__req *req, const uint8_t *data, size_t len) {
  if (req->rx_need > req->rx.len && req->rx_need <= req->rx_limit)
    (void)e2b__buf_reserve(&req->rx, req->rx_need - req->rx.len + E2B__MIN(req->rx_need, (size_t)req->client->config.io_buffer_size));
  e2b__buf_put(&req->rx, data, len);
  return req->rx.err;
}

/* Body bytes from the connection. */
static e2b_err e2b__req_receive(e2b__req *req, const uint8_t *data, size_t len) {
  size_t taken = 0;
  e2b_err code = E2B_OK;
  req->answer_len += len;
  if (req->events->on_body && !req->paused && !req->pulled && !req->rx.len) {
    code = req->events->on_body(req, data, len, &taken);
    if (req->state == E2B__REQ_NEW) return E2B_ERR_CANCELED;
    return code ? code : e2b__req_keep(req, data + taken, len - taken);
  }
  code = e2b__req_keep(req, data, len);
  return code ? code : e2b__req_offer(req);
}

static void e2b__req_free(e2b__req *req) {
  if (!req->client) return;
  e2b__buf_free(&req->path);
  e2b__buf_free(&req->body);
  e2b__buf_free(&req->rx);
  e2b__headers_free(&req->headers);
  e2b__headers_free(&req->answer_headers);
  e2b__mem_free_str(&req->client->mem, req->host);
  req->host = NULL;
}

/* Sets host, port and the beginning of the path from a base URL; the caller appends to req->path. */
static void e2b__req_target(e2b__req *req, const e2b__url *base) {
  e2b__mem_free_str(&req->client->mem, req->host);
  req->tls = base->tls;
  req->port = base->port;
  req->host = e2b__mem_dup(&req->client->mem, base->host.ptr, base->host.len);
  req->path.len = 0;
  e2b__buf_str(&req->path, base->path);
}

/* Headers every request carries. Ours first; those of the configuration and of the call replace them. */
static void e2b__req_common_headers(e2b__req *req, const e2b_call *call) {
  const e2b_client_config *config = &req->client->config;
  size_t i;
  e2b__headers_set(&req->headers, "user-agent", e2b__str(config->user_agent));
  e2b__headers_set(&req->headers, "accept", e2b__str("application/json"));
  e2b__headers_set(&req->headers, "accept-encoding", e2b__str("identity"));
  for (i = 0; i < config->headers.count; i++)
    e2b__headers_set(&req->headers, config->headers.items[i].key, e2b__str(config->headers.items[i].value));
  for (i = 0; call && i < call->headers.count; i++)
    e2b__headers_set(&req->headers, call->headers.items[i].key, e2b__str(call->headers.items[i].value));
}

/* ================================================================================================================== */
/* >>>> connections */
/* ================================================================================================================== */

typedef enum e2b__conn_state {
  E2B__CONN_OPENING = 0,
  E2B__CONN_OPEN,        /* busy with conn->req, or idle in the pool when that is NULL */
  E2B__CONN_CLOSED       /* waits to be buried */
} e2b__conn_state;

/* One connection of the pool. Its life: opening for one request, then request after request (HTTP/2: many at a time), idle in
 * between. */
struct e2b__conn {
  e2b__object object;
  e2b_client *client;
  e2b__conn *next;
  e2b__conn_state state;
  char *host;
  uint16_t port;
  bool tls;
  bool idle;              /* open, and carries no request */
  bool reused;            /* carried a request before this one */
  bool kick;              /* step it in the next turn whether its socket is ready or not */
  bool ready;             /* its socket is */
  bool unreached;         /* the budget of the turn was spent before it was stepped */
  bool want_write;
  bool awaited;           /* while it opens, by queued requests */
  e2b__link link;
  e2b__h1 h1;
  e2b__req *req;          /* it is opened for; HTTP/1.1: it carries */
  struct e2b__h2 *h2;     /* NULL = HTTP/1.1 */
  uint32_t number;        /* counted by stats.connections_made */
  uint64_t last_rx;       /* a byte was read */
  uint64_t busy_since;    /* HTTP/2: it got its first stream after having had none */
  bool ping_sent;         /* HTTP/2: at ping_at, the PING that must be answered, or followed by any byte, within ping_wait; */
  uint32_t ping_wait;     /* 0 = there is none */
  uint64_t ping_at;
  uint64_t tx_written;    /* bytes given to the network */
  e2b__buf out;           /* what goes to the link next; refilled only when empty */
  size_t out_done;
  e2b_error tx_error;     /* writing failed; an answer may still be there to read */
  uint64_t open_deadline; /* HTTP/2, when it is open: for the server to acknowledge SETTINGS */
  uint64_t idle_since;
};

static void e2b__conn_fail(e2b__conn *conn, const e2b_error *err);

/* A server asked through a proxy never says 407: it is the proxy that did not let the request through. */
static e2b_err e2b__conn_proxy_refused(e2b__conn *conn) {
  const e2b__proxy *proxy = conn->link.proxy;
  e2b_error err;
  e2b__error_set(&err, E2B_ERR_PROXY, E2B_PHASE_HEADERS, "the proxy %.100s:%u refused the request (HTTP 407): %s",
                 proxy->host, (unsigned)proxy->port, e2b__proxy_advice(proxy, 407));
  conn->req->sent = false;
  e2b__conn_fail(conn, &err);
  return E2B_ERR_CANCELED;
}

static e2b_err e2b__req_head(e2b__req *req, int status, const e2b__headers *headers) {
  req->status = status;
  e2b__buf_put(&req->answer_headers.text, headers->text.data, headers->text.len);
  req->answer_headers.count = headers->count;
  if (req->answer_headers.text.err) return req->answer_headers.text.err;
  req->open_ended = !req->stream && !e2b__headers_get(&req->answer_headers, "content-length") &&
                    !e2b__headers_get(&req->answer_headers, "transfer-encoding");
  return req->events->on_head ? req->events->on_head(req) : E2B_OK;
}

/* Whether all of it can be sent again: nothing that was taken from its source is lost. */
static bool e2b__req_is_whole(const e2b__req *req) {
  return req->idempotent || !req->events->on_source || req->body_done <= req->body.len;
}

/* Whether it may go out once more. */
static bool e2b__req_repeatable(const e2b__req *req) {
  return !req->fresh && e2b__req_is_whole(req);
}

/* 421: the server does not answer for this host on this connection and did nothing, whatever the method: once more, on another
 * one (RFC 9110, 15.5.20). */
static bool e2b__req_misdirected(const e2b__req *req, int status) {
  return status == 421 && e2b__req_repeatable(req);
}

static void e2b__conn_close(e2b__conn *conn);

static e2b_err e2b__conn_on_head(void *owner, int status, const e2b__headers *headers) {
  e2b__conn *conn = (e2b__conn *)owner;
  e2b__req *req = conn->req;
  e2b_err code;
  if (e2b__req_misdirected(req, status)) {
    e2b__conn_close(conn);
    e2b__req_requeue(req);
    return E2B_ERR_CANCELED;
  }
  if (status == 407 && conn->link.absolute) {
    req->status = status;
    return e2b__conn_proxy_refused(conn);
  }
  code = e2b__req_head(req, status, headers);
  return conn->req == req ? code : E2B_ERR_CANCELED;
}

static e2b_err e2b__conn_on_body(void *owner, const uint8_t *data, size_t len) {
  e2b__conn *conn = (e2b__conn *)owner;
  e2b__req *req = conn->req;
  e2b_err code = e2b__req_receive(req, data, len);
  return conn->req == req ? code : E2B_ERR_CANCELED;
}

static const e2b__h1_events e2b__conn_h1_events = { e2b__conn_on_head, e2b__conn_on_body };

/* There is more to do than the budget of this turn allows. */
static void e2b__conn_later(e2b__conn *conn) {
  conn->kick = true;
  conn->client->work = true;
}

static void e2b__conn_set_idle(e2b__conn *conn, bool idle) {
  if (conn->idle == idle) return;
  conn->idle = idle;
  conn->idle_since = conn->client->now;
  if (idle) conn->client->idle_count++; else conn->client->idle_count--;
}

/* It is open, or will never be: those that waited for it look again; or, when it failed, end with it. One after the other
 * would otherwise have to find out by itself that nobody answers, each with its own connect_timeout_ms. */
static void e2b__conn_awaited(e2b__conn *conn, const e2b_error *failed) {
  e2b_client *client = conn->client;
  e2b__req *req;
  if (!conn->awaited) return;
  conn->awaited = false;
  client->work = true; /* also for a loop that asks how long it may sleep */
  for (req = client->reqs; req;) {
    bool waited = req->opening == conn;
    if (waited) req->opening = NULL;
    if (waited && failed) e2b__req_end(req, failed);
    req = waited && failed ? client->reqs : req->next; /* the list may be another one */
  }
}

static void e2b__conn_close(e2b__conn *conn) {
  if (conn->state == E2B__CONN_CLOSED) return;
  e2b__conn_awaited(conn, NULL);
  e2b__conn_set_idle(conn, false);
  if (conn->h2) conn->client->h2_count--;
  conn->client->conn_count--;
  conn->state = E2B__CONN_CLOSED;
  conn->req = NULL;
  e2b__link_close(&conn->link);
  conn->client->work = true; /* somebody may be waiting for the place */
}

static void e2b__conn_bury(e2b__conn *conn) {
  e2b__mem *mem = &conn->client->mem;
  e2b__buf_free(&conn->out);
  e2b__h1_free(&conn->h1);
#if !defined(E2B_NO_HTTP2)
  if (conn->h2) e2b__h2_free(conn->h2);
  e2b__mem_free(mem, conn->h2, sizeof *conn->h2);
#endif
  e2b__mem_free_str(mem, conn->host);
  e2b__mem_free(mem, conn, conn->object.size);
}

/* Whether a byte of it was given to the network. */
static bool e2b__req_was_sent(const e2b__req *req) {
  return req->stream ? req->conn->tx_written > req->tx_mark : req->sent;
}

/* Where its request stands, for error messages. */
static e2b_phase e2b__req_phase(const e2b__req *req) {
  const e2b__conn *conn = req->conn;
  if (!conn) return req->state == E2B__REQ_QUEUED ? E2B_PHASE_QUEUE : E2B_PHASE_BODY;
  if (conn->state == E2B__CONN_OPENING) return e2b__link_phase(&conn->link);
  if (req->status) return E2B_PHASE_BODY;
  return req->body_ended && (req->stream ? e2b__req_was_sent(req) : conn->out.len == 0) ? E2B_PHASE_HEADERS : E2B_PHASE_SEND;
}

/* The same for the time after it was let go: what waits to be sent on an HTTP/2 connection cannot be taken back (the tables of
 * HPACK depend on it) and goes out, even if its stream is reset behind it. */
static bool e2b__req_may_arrive(const e2b__req *req) {
  return req->stream || e2b__req_was_sent(req);
}

/* Where it stands when its call ends for another reason; *maybe_done: the server may have acted. */
static e2b_phase e2b__req_stands(const e2b__req *req, bool *maybe_done) {
  *maybe_done = e2b__req_may_arrive(req) && !req->idempotent;
  return e2b__req_phase(req);
}

/* Takes the request off its connection: of HTTP/2, only its stream ends. */
static void e2b__req_leave(e2b__req *req) {
  e2b__conn *conn = req->conn;
  req->sent = e2b__req_may_arrive(req);
  req->conn = NULL;
  if (!conn) return;
#if !defined(E2B_NO_HTTP2)
  if (req->stream) {
    e2b__h2_reset(req->stream, E2B__H2_CANCEL);
    req->stream = NULL;
    conn->kick = true; /* to say so, and perhaps to let the next one in */
    conn->client->work = true;
    e2b__conn_set_idle(conn, conn->h2->stream_count == 0);
    return;
  }
#endif
  e2b__conn_close(conn);
}

/* Takes the request away from its connection without a word to its owner. */
static void e2b__req_abort(e2b__req *req) {
  if (req->state == E2B__REQ_NEW) return;
  e2b__req_leave(req);
  req->rx.len = 0;
  e2b__req_set_state(req, E2B__REQ_NEW);
  e2b__req_unlink(req);
}

/* Ends a request from outside its connection: deadlines, cancelling. */
static void e2b__req_fail(e2b__req *req, const e2b_error *err) {
  e2b__req_leave(req);
  req->paused = false;
  e2b__req_end(req, err);
}

/* HTTP/2: the server may send more when the consumer can take it. (With HTTP/1.1 reading goes on, no word is needed.) */
static void e2b__req_refill(e2b__req *req) {
#if !defined(E2B_NO_HTTP2)
  if (req->stream && !e2b__req_held(req)) e2b__h2_refill(req->stream);
#else
  E2B__UNUSED(req);
#endif
}

/* After the consumer made room or the source has bytes again. */
static void e2b__req_kick(e2b__req *req) {
  req->source_waits = false;
  req->last_progress = req->client->in_turn ? req->client->now : e2b__now_ms(req->client); /* the caller may have been away */
  if (req->conn) req->conn->kick = true;
  e2b__req_refill(req);
  req->client->work = true;
}

static void e2b__req_resume(e2b__req *req) {
  if (!req->paused) return;
  req->paused = false;
  req->flush = true;
  e2b__req_kick(req);
}

/* After e2b__req_resume: delivers what is left, then the end. */
static void e2b__req_flush(e2b__req *req) {
  e2b_err code;
  req->flush = false;
  code = e2b__req_offer(req);
  if (req->state == E2B__REQ_NEW) return;
  if (code) {
    e2b_error err;
    e2b__error_set(&err, code, E2B_PHASE_BODY, "the data could not be delivered");
    e2b__req_fail(req, &err);
  } else if (req->state == E2B__REQ_ENDED && !req->paused && !(req->pulled && req->rx.len)) {
    e2b__req_finish(req);
  } else {
    e2b__req_refill(req);
  }
}

/* A request that died on a reused connection before any answer may go out once more when that cannot do anything twice (the
 * keep-alive close race). */
static bool e2b__conn_raced(const e2b__conn *conn, const e2b__req *req, bool answered, e2b_err code) {
  return conn->reused && !answered && (req->idempotent || !req->sent) && e2b__req_repeatable(req) &&
         (code == E2B_ERR_CLOSED || code == E2B_ERR_IO);
}

static void e2b__conn_lost(e2b__conn *conn, const e2b_error *err);

/* The connection failed, and with it what it carries. */
static void e2b__conn_fail(e2b__conn *conn, const e2b_error *err) {
  e2b__req *req = conn->req;
  bool again = req && e2b__conn_raced(conn, req, conn->h1.started, err->code);
  if (conn->state == E2B__CONN_OPENING) {
    e2b__conn_awaited(conn, err);
    req = conn->req; /* the caller's code ran */
  }
  if (conn->h2) {
    e2b__conn_lost(conn, err);
    return;
  }
  e2b__conn_close(conn);
  if (!req) return;
  if (again) e2b__req_requeue(req);
  else e2b__req_end(req, err);
}

static void e2b__conn_fail_with(e2b__conn *conn, e2b_err code, const char *what) {
  e2b_error err;
  e2b_phase phase = conn->req ? e2b__req_phase(conn->req) : E2B_PHASE_NONE;
  e2b__error_set(&err, code, phase, "%s (%s:%u)", what, conn->host, (unsigned)conn->port);
  e2b__conn_fail(conn, &err);
}

/* To a proxy, which is to ask an http:// server, goes the whole URL (RFC 9112, absolute-form), and who we are to it.
 * That never reaches a server asked directly: whether there is a proxy depends on the origin alone, also when the request
 * is sent again. */
static void e2b__conn_write_head(e2b__conn *conn, const char *host) {
  e2b__req *req = conn->req;
  const e2b__proxy *proxy = conn->link.absolute ? conn->link.proxy : NULL;
  e2b_str path = e2b__str_n((const char *)req->path.data, req->path.len);
  e2b__buf url;
  e2b__buf_init(&url, &conn->client->mem, 131072);
  if (proxy) {
    if (proxy->auth) e2b__headers_set(&req->headers, "proxy-authorization", e2b__str(proxy->auth));
    e2b__buf_text(&url, "http://");
    e2b__buf_text(&url, host);
    e2b__buf_str(&url, path);
    path = e2b__str_n((const char *)url.data, url.len);
    if (url.err) conn->out.err = url.err;
  }
  e2b__h1_write_head(&conn->out, req->method, path, e2b__str(host), &req->headers, req->body_len);
  e2b__buf_free(&url);
}

/* The Host field, or :authority. */
static void e2b__conn_host(const e2b__conn *conn, char *out, size_t cap) {
  bool ipv6 = strchr(conn->host, ':') != NULL, default_port = conn->port == (conn->tls ? 443 : 80);
  (void)snprintf(out, cap, ipv6 ? "[%s]" : "%s", conn->host);
  if (!default_port) (void)snprintf(out + strlen(out), cap - strlen(out), ":%u", (unsigned)conn->port);
}

/* Begins the exchange on an open connection. */
static void e2b__conn_begin(e2b__conn *conn) {
  e2b__req *req = conn->req;
  char host[300];
  e2b__conn_host(conn, host, sizeof host);
  e2b__h1_begin(&conn->h1, strcmp(req->method, "HEAD") == 0, false);
  memset(&conn->tx_error, 0, sizeof conn->tx_error);
  conn->out.len = conn->out_done = 0;
  e2b__conn_write_head(conn, host);
  req->body_ended = req->body_len == E2B__BODY_NONE || req->body_len == 0;
  if (conn->out.err)
    e2b__conn_fail_with(conn, conn->out.err, conn->out.err == E2B_ERR_NO_MEMORY ? "no memory for the request" : "the request cannot be written");
}

/* The next bytes of the body into `to`. > 0, 0 at the end, E2B_IO_AGAIN, or an e2b_err. */
static int e2b__req_pull_body(e2b__req *req, uint8_t *to, size_t cap) {
  size_t left;
  int got;
  if (req->body_done < req->body.len) {
    left = req->body.len - (size_t)req->body_done;
    got = (int)E2B__MIN(left, cap);
    memcpy(to, req->body.data + req->body_done, (size_t)got);
  } else {
    if (req->body_len >= 0) cap = (size_t)E2B__MIN((uint64_t)cap, (uint64_t)req->body_len - req->body_done);
    if (!cap || !req->events->on_source) return 0;
    got = req->events->on_source(req, to, cap);
  }
  if (got > 0) req->body_done += (uint64_t)got;
  return got;
}

/* Refills conn->out from the body. Chunk heads have a fixed width, so that they can be written after their data. */
static int e2b__conn_fill(e2b__conn *conn) {
  e2b__req *req = conn->req;
  bool chunked = req->body_len == E2B__BODY_CHUNKED;
  size_t cap = E2B__MIN((size_t)conn->client->config.io_buffer_size, (size_t)0xffffff), head = chunked ? 8 : 0;
  uint8_t *to;
  int got;
  if (!chunked) cap = (size_t)E2B__MIN((uint64_t)cap, (uint64_t)req->body_len - req->body_done);
  to = e2b__buf_reserve(&conn->out, head + cap + 8);
  if (!to) return E2B_ERR_NO_MEMORY;
  got = e2b__req_pull_body(req, to + head, cap);
  if (conn->req != req) return E2B_ERR_CANCELED;
  if (got < 0) return got;
  if (got == 0 && req->body_len > 0 && req->body_done < (uint64_t)req->body_len) return E2B_ERR_INVALID_ARGUMENT;
  if (chunked) {
    char hex[12];
    if (got == 0) {
      e2b__buf_text(&conn->out, "0\r\n\r\n");
    } else {
      (void)snprintf(hex, sizeof hex, "%06x\r\n", (unsigned)got);
      memcpy(to, hex, 8);
      memcpy(to + 8 + got, "\r\n", 2);
      conn->out.len += (size_t)got + 10;
    }
  } else {
    conn->out.len += (size_t)got;
  }
  req->body_ended = got == 0 || (req->body_len >= 0 && req->body_done == (uint64_t)req->body_len);
  return got;
}

static const char *e2b__source_failure(e2b_err code) {
  if (code == E2B_ERR_INVALID_ARGUMENT) return "the source ended before the size it announced";
  return code == E2B_ERR_CANCELED ? "the source canceled the upload" : "no memory for the request";
}

/* Sends until the link takes no more, the body waits for its source, or all is sent. */
static void e2b__conn_send(e2b__conn *conn) {
  e2b__req *req = conn->req;
  int n, rounds;
  conn->want_write = false;
  for (rounds = 0; req && conn->req == req && !conn->tx_error.code; rounds++) {
    if (conn->out_done == conn->out.len) {
      conn->out.len = conn->out_done = 0;
      if (req->body_ended) e2b__buf_free(&conn->out); /* the answer may take hours */
      if (req->body_ended || req->source_waits) return;
      if (rounds && e2b__budget_spent(conn->client)) {
        conn->want_write = true;
        e2b__conn_later(conn);
        return;
      }
      n = e2b__conn_fill(conn);
      if (conn->state == E2B__CONN_CLOSED) return;
      if (n == E2B_IO_AGAIN) {
        req->source_waits = true;
        return;
      }
      if (n < 0) {
        e2b__conn_fail_with(conn, (e2b_err)n, e2b__source_failure((e2b_err)n));
        return;
      }
      if (conn->out.len == 0) return;
    }
    n = e2b__link_write(&conn->link, conn->out.data + conn->out_done, conn->out.len - conn->out_done, &conn->tx_error);
    if (n == E2B_IO_AGAIN) {
      conn->want_write = true;
      return;
    }
    if (n < 0) {
      if (!conn->tx_error.code) e2b__error_set(&conn->tx_error, E2B_ERR_CLOSED, E2B_PHASE_SEND, "the connection was closed");
      return; /* an early answer may wait to be read: the reader ends this */
    }
    req->sent = true;
    req->last_progress = conn->client->now;
    conn->out_done += (size_t)n;
    conn->client->stats.bytes_tx += (uint64_t)n;
  }
}

/* The answer is complete. `leftover`: bytes followed that nobody asked for. */
static void e2b__conn_complete(e2b__conn *conn, bool leftover) {
  e2b__req *req = conn->req;
  e2b_error ok;
  bool sent = req->body_ended && conn->out_done == conn->out.len && !conn->tx_error.code;
  memset(&ok, 0, sizeof ok);
  if (conn->h1.keep_alive && !leftover && sent && conn->client->idle_count < conn->client->config.max_idle_connections) {
    conn->req = NULL;
    e2b__conn_set_idle(conn, true);
    conn->want_write = false;
    e2b__buf_free(&conn->out);
    conn->out_done = 0;
  } else {
    e2b__conn_close(conn);
  }
  conn->client->work = true; /* the next in the queue */
  e2b__req_end(req, &ok);
}

static void e2b__conn_eof(e2b__conn *conn) {
  e2b_err code;
  if (!conn->req) {
    e2b__conn_close(conn);
    return;
  }
  code = e2b__h1_finish(&conn->h1);
  if (code == E2B_OK && conn->h1.complete && !conn->link.unclean_eof) {
    e2b__conn_complete(conn, false);
  } else if (code == E2B_ERR_CLOSED && conn->tx_error.code) {
    e2b_error err = conn->tx_error;
    e2b__conn_fail(conn, &err);
  } else if (code == E2B_ERR_CLOSED) {
    e2b__conn_fail_with(conn, code, "the server closed the connection without an answer");
  } else if (code && conn->h1.detail) {
    e2b__conn_fail_with(conn, code, conn->h1.detail);
  } else {
    e2b__conn_fail_with(conn, E2B_ERR_TRUNCATED, "the TLS connection was cut before the end of the answer's body");
  }
}

/* How much one connection reads in a turn: until nothing is there, but no longer than is fair to the others. TLS records may be
 * small, so it is counted in bytes. */
static uint64_t e2b__conn_fair_share(const e2b_client *client) {
  return 8u * (uint64_t)client->config.io_buffer_size;
}

/* Returns false when there is nothing more to read now. */
static bool e2b__conn_receive_once(e2b__conn *conn) {
  e2b_client *client = conn->client;
  size_t cap = client->config.io_buffer_size, used = 0;
  e2b_error err;
  e2b_err code;
  int n;
  if (conn->req && e2b__req_held(conn->req)) return false;
  memset(&err, 0, sizeof err);
  n = e2b__link_read(&conn->link, client->io, cap, &err);
  if (n == E2B_IO_AGAIN && conn->tx_error.code && conn->req) { /* what it had to say was read: no more will come */
    err = conn->tx_error;
    n = (int)err.code;
  }
  if (n == E2B_IO_AGAIN) return false;
  if (n == E2B_IO_EOF) {
    e2b__conn_eof(conn);
    return false;
  }
  if (n < 0) {
    if (conn->req && conn->h1.started && err.code == E2B_ERR_CLOSED) err.code = E2B_ERR_TRUNCATED;
    err.phase = conn->req ? e2b__req_phase(conn->req) : err.phase;
    e2b__conn_fail(conn, &err);
    return false;
  }
  client->stats.bytes_rx += (uint64_t)n;
  if (!conn->req) { /* nobody asked */
    e2b__conn_close(conn);
    return false;
  }
  conn->req->last_progress = client->now;
  code = e2b__h1_feed(&conn->h1, client->io, (size_t)n, &used);
  if (conn->state == E2B__CONN_CLOSED) return false;
  if (code) e2b__conn_fail_with(conn, code, conn->h1.detail ? conn->h1.detail : "the answer could not be used");
  else if (conn->h1.complete) e2b__conn_complete(conn, used < (size_t)n);
  else return (size_t)n == cap || conn->link.tls; /* a TLS record is one read, and more of them may have come */
  return false;
}

#if !defined(E2B_NO_HTTP2)
/* ---- HTTP/2: many requests on one connection ---- */

#define E2B__H2_PING_AFTER_MS 20000u /* of silence while something is asked: is the server still there? */
#define E2B__H2_PING_WAIT_MS 10000u
#define E2B__H2_DOUBT_AFTER_MS 30000u /* of silence: is the server still there, before it gets another request? */
#define E2B__H2_DOUBT_WAIT_MS 2000u  /* when the connection carries nothing that would be lost with it */
#define E2B__H2_SETTLE_MS 30000u     /* to acknowledge our SETTINGS */

static e2b_err e2b__conn_h2_on_head(e2b__h2_stream *stream, int status, const e2b__headers *headers) {
  e2b__req *req = (e2b__req *)stream->owner;
  req->last_progress = req->client->now;
  if (e2b__req_misdirected(req, status)) {
    e2b__h2_reset(stream, E2B__H2_CANCEL);
    req->stream = NULL;
    e2b__req_requeue(req);
    return E2B_OK;
  }
  return e2b__req_head(req, status, headers);
}

static e2b_err e2b__conn_h2_on_body(e2b__h2_stream *stream, const uint8_t *data, size_t len) {
  e2b__req *req = (e2b__req *)stream->owner;
  e2b_err code;
  req->last_progress = req->client->now;
  code = e2b__req_receive(req, data, len);
  if (!code && req->stream == stream) e2b__req_refill(req);
  return code;
}

static void e2b__conn_h2_error(const e2b__conn *conn, const e2b__h2_end *end, e2b_error *err) {
  const e2b_error *lost = &conn->tx_error;
  if (lost->code && lost->code == end->err) {
    *err = *lost;
  } else if (lost->code) {
    e2b__error_set(err, end->err, E2B_PHASE_BODY, "%s: %.150s", end->detail, lost->message);
    err->sys_code = lost->sys_code;
    err->tls_code = lost->tls_code;
  } else {
    e2b__error_set(err, end->err, E2B_PHASE_BODY, "%s (%s:%u, HTTP/2 %s)", end->detail, conn->host, (unsigned)conn->port,
                   e2b__h2_error_name(end->code));
  }
}

/* A burst on a new connection can be more than the server takes at a time, which it had not said yet: what it refused for that
 * goes out again when there is a place, and has its retry still. */
static bool e2b__req_crowded_out(e2b__req *req, const e2b__h2 *h2, const e2b__h2_end *end) {
  bool fresh = req->fresh;
  uint32_t since = req->fresh_since;
  if (!end->unprocessed || end->code != E2B__H2_REFUSED_STREAM || h2->stream_count < h2->max_streams) return false;
  if (req->crowded || !e2b__req_is_whole(req)) return false;
  req->crowded = true;
  req->stream = NULL;
  e2b__req_requeue(req);
  req->fresh = fresh;
  req->fresh_since = since;
  return true;
}

static void e2b__conn_h2_on_end(e2b__h2_stream *stream, const e2b__h2_end *end) {
  e2b__req *req = (e2b__req *)stream->owner;
  e2b__conn *conn = req->conn;
  e2b_error err;
  bool again = end->unprocessed;
  if (e2b__req_crowded_out(req, conn->h2, end)) return;
  req->sent = e2b__req_was_sent(req) && !end->unprocessed;
  if (end->unprocessed && end->code == E2B__H2_HTTP_1_1_REQUIRED) {
    req->h1_only = conn->tls && conn->client->config.http_version != 2;
    again = req->h1_only;
  }
  if (end->err && ((again && e2b__req_repeatable(req)) ||
                   (end->code != E2B__H2_ENHANCE_YOUR_CALM && e2b__conn_raced(conn, req, stream->answered, end->err)))) {
    req->stream = NULL;
    e2b__req_requeue(req);
    if (end->unprocessed) req->fresh_since = conn->number; /* nothing is wrong with later ones */
    return;
  }
  memset(&err, 0, sizeof err);
  if (end->err) {
    e2b__conn_h2_error(conn, end, &err);
    err.phase = e2b__req_phase(req);
  }
  req->stream = NULL;
  e2b__req_end(req, &err);
}

static const e2b__h2_events e2b__conn_h2_events = { e2b__conn_h2_on_head, e2b__conn_h2_on_body, e2b__conn_h2_on_end };

static void e2b__conn_lost(e2b__conn *conn, const e2b_error *err) {
  conn->tx_error = *err;
  e2b__h2_lost(conn->h2, err->code, conn->tx_error.message);
  e2b__conn_close(conn);
}

/* Puts a request on the connection. */
static void e2b__conn_h2_attach(e2b__conn *conn, e2b__req *req) {
  char host[300];
  e2b_err code;
  e2b__conn_host(conn, host, sizeof host);
  req->conn = conn;
  req->last_progress = conn->client->now;
  if (conn->h2->stream_count == 0) conn->busy_since = conn->client->now; /* until now it had nothing to say */
  req->tx_mark = conn->tx_written + (conn->out.len - conn->out_done) + conn->h2->out.len;
  req->body_ended = req->body_len == E2B__BODY_NONE || req->body_len == 0;
  req->stream = e2b__h2_open(conn->h2, req->method, conn->tls, e2b__str(host), e2b__str_n((const char *)req->path.data, req->path.len),
                             &req->headers, req->body_len, req, &code);
  e2b__conn_set_idle(conn, conn->h2->stream_count == 0);
  conn->kick = true;
  if (!req->stream) {
    e2b_error err;
    e2b__error_set(&err, code, E2B_PHASE_SEND, code == E2B_ERR_NO_MEMORY ? "no memory for the request" : "the request cannot be written");
    e2b__req_end(req, &err);
  }
}

static bool e2b__conn_h2_begin(e2b__conn *conn) {
  const e2b_client_config *config = &conn->client->config;
  const e2b__conn *other;
  conn->h2 = (e2b__h2 *)e2b__mem_alloc(&conn->client->mem, sizeof *conn->h2);
  if (!conn->h2) return false;
  conn->client->h2_count++;
  conn->open_deadline = conn->client->now + E2B__H2_SETTLE_MS;
  e2b__h2_init(conn->h2, &conn->client->mem, config->stream_buffer_size, config->max_stream_window, config->max_header_bytes,
               &e2b__conn_h2_events);
  for (other = conn->client->conns; other; other = other->next) { /* it will take as many streams as it does elsewhere */
    if (!other->h2 || !other->h2->settled) continue;
    if (other->port != conn->port || other->tls != conn->tls || strcmp(other->host, conn->host) != 0) continue;
    conn->h2->max_streams = E2B__MIN(conn->h2->max_streams, E2B__MAX(other->h2->max_streams, 1u));
  }
  return true;
}

typedef enum e2b__fill { E2B__FILL_NOTHING, E2B__FILL_DATA, E2B__FILL_CHANGED } e2b__fill;

/* One DATA frame of one stream into conn->out. CHANGED: the caller's code ran, and the list of streams may be another one. */
static e2b__fill e2b__conn_h2_fill_stream(e2b__conn *conn, e2b__h2_stream *stream) {
  e2b__req *req = (e2b__req *)stream->owner;
  size_t cap = E2B__MIN(e2b__h2_room(stream), (size_t)conn->client->config.io_buffer_size);
  uint8_t *to;
  int got;
  bool end;
  if (stream->sent_end || req->source_waits || !cap) return E2B__FILL_NOTHING;
  to = e2b__buf_reserve(&conn->out, E2B__H2_HEAD + cap);
  if (!to) return E2B__FILL_NOTHING;
  got = e2b__req_pull_body(req, to + E2B__H2_HEAD, cap);
  if (req->stream != stream) return E2B__FILL_CHANGED;
  if (got == E2B_IO_AGAIN) {
    req->source_waits = true;
    return E2B__FILL_CHANGED;
  }
  if (got == 0 && req->body_len > 0 && req->body_done < (uint64_t)req->body_len) got = E2B_ERR_INVALID_ARGUMENT;
  if (got < 0) {
    e2b_error err;
    e2b__error_set(&err, (e2b_err)got, E2B_PHASE_SEND, "%s", e2b__source_failure((e2b_err)got));
    e2b__req_fail(req, &err);
    return E2B__FILL_CHANGED;
  }
  end = got == 0 || (req->body_len >= 0 && req->body_done == (uint64_t)req->body_len);
  e2b__h2_data_head(stream, to, (size_t)got, end);
  conn->out.len += E2B__H2_HEAD + (size_t)got;
  req->body_ended = end;
  req->last_progress = conn->client->now;
  e2b__h2_rotate(stream);
  return E2B__FILL_DATA;
}

/* What goes out next into conn->out: control frames and heads, then data of one stream after the other. */
static bool e2b__conn_h2_fill(e2b__conn *conn) {
  e2b__h2_stream *stream;
  if (conn->h2->out.len) {
    e2b__h2_take(conn->h2, &conn->out);
    return true;
  }
  for (stream = conn->h2->senders ? conn->h2->streams : NULL; stream;) {
    e2b__fill fill = e2b__conn_h2_fill_stream(conn, stream);
    if (fill == E2B__FILL_DATA) return true;
    stream = fill == E2B__FILL_CHANGED ? conn->h2->streams : stream->next;
  }
  return conn->h2->out.len != 0;
}

static void e2b__conn_h2_send(e2b__conn *conn) {
  int n, rounds;
  conn->want_write = false;
  for (rounds = 0; !conn->tx_error.code; rounds++) {
    if (conn->out_done == conn->out.len) {
      conn->out.len = conn->out_done = 0;
      if (rounds && e2b__budget_spent(conn->client)) {
        conn->want_write = true;
        e2b__conn_later(conn);
        return;
      }
      if (!e2b__conn_h2_fill(conn)) break;
      if (conn->out.err) break;
      continue;
    }
    n = e2b__link_write(&conn->link, conn->out.data + conn->out_done, conn->out.len - conn->out_done, &conn->tx_error);
    if (n == E2B_IO_AGAIN) {
      conn->want_write = true;
      return;
    }
    if (n < 0) {
      if (!conn->tx_error.code) e2b__error_set(&conn->tx_error, E2B_ERR_CLOSED, E2B_PHASE_SEND, "the connection was closed");
      return; /* answers may wait to be read: the reader ends this */
    }
    conn->out_done += (size_t)n;
    conn->tx_written += (uint64_t)n;
    conn->client->stats.bytes_tx += (uint64_t)n;
  }
  if (conn->out.err) e2b__conn_fail_with(conn, conn->out.err, "no memory for the request");
}

/* Whether the protocol failed; then it is over with the connection. */
static bool e2b__conn_h2_broken(e2b__conn *conn) {
  e2b_err code = conn->h2->err ? conn->h2->err : conn->h2->out.err;
  if (conn->state != E2B__CONN_OPEN) return true;
  if (!code) return false;
  e2b__conn_h2_send(conn); /* our GOAWAY, if it goes out at once */
  if (conn->state == E2B__CONN_OPEN)
    e2b__conn_fail_with(conn, code, conn->h2->detail ? conn->h2->detail : "no memory for the connection");
  return true;
}

/* How many more streams the server allows now. */
static uint32_t e2b__conn_h2_places(const e2b__conn *conn) {
  return conn->h2->max_streams - E2B__MIN(conn->h2->max_streams, conn->h2->stream_count);
}

/* Returns false when there is nothing more to read now. */
static bool e2b__conn_h2_receive(e2b__conn *conn) {
  e2b_client *client = conn->client;
  size_t cap = client->config.io_buffer_size;
  uint32_t places = e2b__conn_h2_places(conn);
  e2b_error err;
  int n;
  memset(&err, 0, sizeof err);
  n = e2b__link_read(&conn->link, client->io, cap, &err);
  if (n == E2B_IO_AGAIN && conn->tx_error.code) n = E2B_IO_EOF; /* what it had to say was read */
  if (n == E2B_IO_AGAIN) return false;
  if (n == E2B_IO_EOF) {
    if (conn->tx_error.code) err = conn->tx_error;
    else e2b__error_set(&err, E2B_ERR_CLOSED, E2B_PHASE_BODY, "the server closed the connection (%s:%u)", conn->host, (unsigned)conn->port);
  }
  if (n < 0) {
    e2b__conn_lost(conn, &err);
    return false;
  }
  client->stats.bytes_rx += (uint64_t)n;
  conn->last_rx = client->now;
  if (conn->ping_wait) client->work = true; /* requests may wait for that */
  conn->ping_wait = 0;
  (void)e2b__h2_feed(conn->h2, client->io, (size_t)n, client->now);
  if (e2b__conn_h2_broken(conn)) return false;
  if (client->queued_count && e2b__conn_h2_places(conn) > places) client->work = true;
  e2b__conn_set_idle(conn, conn->h2->stream_count == 0);
  return (size_t)n == cap || conn->link.tls;
}

static void e2b__conn_h2_step(e2b__conn *conn) {
  e2b_client *client = conn->client;
  uint64_t fair = client->stats.bytes_rx + e2b__conn_fair_share(client);
  int rounds;
  if (e2b__conn_h2_broken(conn)) return; /* while requests were put on it, or taken off */
  if (!conn->ping_sent) conn->ping_at = client->now;
  conn->ping_sent = true;
  e2b__conn_h2_send(conn);
  for (rounds = 0; rounds < 64 && client->stats.bytes_rx < fair && conn->state == E2B__CONN_OPEN; rounds++) {
    if (rounds && e2b__budget_spent(client)) {
      e2b__conn_later(conn);
      break;
    }
    if (!e2b__conn_h2_receive(conn)) break;
  }
  if (conn->state != E2B__CONN_OPEN) return;
  if (conn->h2->out.len || conn->h2->senders) e2b__conn_h2_send(conn);
  if (conn->tx_error.code) conn->kick = client->work = true; /* the reader has to end it */
  if (e2b__conn_h2_broken(conn)) return;
  if (conn->idle && conn->out_done == conn->out.len) e2b__buf_free(&conn->out), conn->out_done = 0;
  if (conn->h2->stream_count == 0 &&
      (conn->h2->draining || conn->client->idle_count > conn->client->config.max_idle_connections))
    e2b__conn_close(conn);
}

/* When a connection that says nothing has to be looked at. */
static uint64_t e2b__conn_h2_deadline(const e2b__conn *conn) {
  uint64_t silent = E2B__MAX(conn->last_rx, conn->busy_since) + E2B__H2_PING_AFTER_MS;
  if (conn->state != E2B__CONN_OPEN || !conn->h2) return (uint64_t)E2B__NEVER;
  if (conn->ping_wait) silent = conn->ping_sent ? conn->ping_at + conn->ping_wait : (uint64_t)E2B__NEVER;
  else if (conn->idle) return (uint64_t)E2B__NEVER;
  else if (conn->h2->ping_waits) silent += E2B__H2_PING_WAIT_MS; /* it measures the path */
  return conn->h2->settings_waiting && !conn->idle ? E2B__MIN(silent, conn->open_deadline) : silent;
}

/* Asks whether the server is still there. Its time begins when the PING goes out, whenever that is. */
static void e2b__conn_h2_ping(e2b__conn *conn, uint32_t wait_ms) {
  conn->h2->ping_waits = false; /* that an older one was lost is no reason not to ask */
  e2b__h2_ping(conn->h2);
  conn->ping_wait = wait_ms;
  conn->ping_sent = false;
  conn->kick = true;
  conn->client->work = true;
}

static void e2b__conn_h2_silent(e2b__conn *conn) {
  if (conn->kick) return; /* what it said may not have been read yet */
  if (conn->h2->settings_waiting && conn->client->now >= conn->open_deadline) {
    (void)e2b__h2_protocol(conn->h2, E2B__H2_SETTINGS_TIMEOUT, "the server does not acknowledge SETTINGS");
    (void)e2b__conn_h2_broken(conn);
  } else if (conn->h2->ping_waits) {
    e2b__conn_fail_with(conn, E2B_ERR_CLOSED, "the server does not answer any more, not even to a PING");
  } else {
    e2b__conn_h2_ping(conn, E2B__H2_PING_WAIT_MS);
  }
}
#else
static void e2b__conn_lost(e2b__conn *conn, const e2b_error *err) {
  E2B__UNUSED(conn);
  E2B__UNUSED(err);
}
#endif /* E2B_NO_HTTP2 */

/* The link is up: it carries HTTP/2 when both sides agreed on that. */
static void e2b__conn_opened(e2b__conn *conn) {
  e2b__req *req = conn->req;
  conn->state = E2B__CONN_OPEN;
  e2b__conn_awaited(conn, NULL);
  conn->last_rx = req->last_progress = conn->client->now;
#if !defined(E2B_NO_HTTP2)
  if (conn->client->config.http_version == 2 && conn->link.absolute) {
    e2b__conn_fail_with(conn, E2B_ERR_PROXY, "http:// servers are asked through the proxy in HTTP/1.1, but config.http_version demands HTTP/2");
    return;
  }
  if (conn->tls ? conn->link.alpn && strcmp(conn->link.alpn, "h2") == 0 : conn->client->config.http_version == 2) {
    if (!e2b__conn_h2_begin(conn)) {
      e2b__conn_fail_with(conn, E2B_ERR_NO_MEMORY, "no memory for the connection");
      return;
    }
    conn->req = NULL;
    e2b__conn_h2_attach(conn, req);
    conn->client->work = true; /* others wait for it */
    return;
  }
#endif
  if (conn->client->config.http_version == 2)
    e2b__conn_fail_with(conn, E2B_ERR_PROTOCOL, "the server does not speak HTTP/2, which config.http_version demands");
  else
    e2b__conn_begin(conn);
}

static void e2b__conn_step(e2b__conn *conn) {
  e2b_client *client = conn->client;
  e2b_error err;
  e2b_err code;
  uint64_t fair;
  int rounds;
  conn->kick = conn->ready = conn->unreached = false;
  if (conn->state == E2B__CONN_OPENING) {
    memset(&err, 0, sizeof err);
    code = e2b__link_step(&conn->link, client->now, &err);
    if (code == E2B_PENDING) return;
    if (code) {
      e2b__conn_fail(conn, &err);
      return;
    }
    e2b__conn_opened(conn);
  }
#if !defined(E2B_NO_HTTP2)
  if (conn->state == E2B__CONN_OPEN && conn->h2) {
    e2b__conn_h2_step(conn);
    return;
  }
#endif
  if (conn->state == E2B__CONN_OPEN) e2b__conn_send(conn);
  fair = client->stats.bytes_rx + e2b__conn_fair_share(client);
  for (rounds = 0; rounds < 64 && client->stats.bytes_rx < fair && conn->state == E2B__CONN_OPEN; rounds++) {
    if (rounds && e2b__budget_spent(client)) {
      e2b__conn_later(conn);
      return;
    }
    if (!e2b__conn_receive_once(conn)) return;
  }
}

#if !defined(E2B_NO_HTTP2)
/* A connection that was silent for long may be dead without a word: NAT boxes forget, machines sleep. It is asked by a PING. What
 * may be sent again goes out along with it, and elsewhere when no answer comes; anything else waits for the answer, because what
 * was written to a dead connection may have been done. */
static bool e2b__conn_h2_doubtful(e2b__conn *conn, const e2b__req *req, bool *wait) {
  if (!conn->ping_wait && conn->client->now >= conn->last_rx + E2B__H2_DOUBT_AFTER_MS)
    e2b__conn_h2_ping(conn, conn->idle ? E2B__H2_DOUBT_WAIT_MS : E2B__H2_PING_WAIT_MS);
  if (!conn->ping_wait || (req->idempotent && e2b__req_repeatable(req))) return false;
  *wait = true;
  return true;
}

/* Whether an HTTP/2 connection takes one more request. *wait: no, but it is not to be helped by another connection. */
static bool e2b__conn_h2_takes(e2b__conn *conn, const e2b__req *req, bool *wait) {
  uint64_t seen = conn->client->stats.bytes_rx - 1;
  if (req->h1_only || (req->fresh && conn->number <= req->fresh_since)) return false;
  while (conn->idle && seen != conn->client->stats.bytes_rx) { /* it may have been closed meanwhile; nobody is called */
    seen = conn->client->stats.bytes_rx;
    (void)e2b__conn_h2_receive(conn);
  }
  if (conn->state != E2B__CONN_OPEN || conn->h2->draining || conn->tx_error.code) return false;
  if (conn->h2->max_streams == 0) *wait = true;
  return conn->h2->stream_count < conn->h2->max_streams && !e2b__conn_h2_doubtful(conn, req, wait);
}
#endif

/* A connection to the request's origin that can take it, or NULL. *wait: there will be one. While the first connection to an origin
 * opens that may turn out to be HTTP/2, others wait for it instead of opening their own. */
static e2b__conn *e2b__conn_find(e2b_client *client, e2b__req *req, bool *wait) {
  bool maybe_h2 = !req->h1_only && client->config.http_version != 1 && (req->tls || client->config.http_version == 2);
  bool known_h1 = false;
  e2b__conn *conn, *opening = NULL;
  *wait = false;
  req->opening = NULL;
#if defined(E2B_NO_HTTP2)
  maybe_h2 = false;
#endif
  for (conn = client->conns; conn; conn = conn->next) {
    if (conn->port != req->port || conn->tls != req->tls || strcmp(conn->host, req->host) != 0) continue;
    if (conn->state == E2B__CONN_OPENING) opening = conn;
    if (conn->state != E2B__CONN_OPEN) continue;
#if !defined(E2B_NO_HTTP2)
    if (conn->h2) {
      if (e2b__conn_h2_takes(conn, req, wait)) return conn;
      continue;
    }
#endif
    known_h1 = true;
    if (!conn->idle) continue;
    if ((!req->fresh || (req->fresh_since && conn->number > req->fresh_since)) && e2b__link_alive(&conn->link))
      return conn;
    e2b__conn_close(conn);
  }
  if (maybe_h2 && opening && !known_h1) {
    *wait = opening->awaited = true;
    req->opening = opening;
  }
  return NULL;
}

/* Makes room for one more connection if the limits allow: by closing the longest idle one when the pool is full. One of the same
 * origin is idle here only when the request cannot have it (it needs a fresh one, or HTTP/1.1). */
static bool e2b__conn_room(e2b_client *client, const e2b__req *req) {
  e2b__conn *conn, *oldest = NULL, *useless = NULL;
  uint32_t same = 0;
  if (client->conn_count < client->config.max_connections &&
      client->config.max_connections_per_host >= client->config.max_connections)
    return true;
  for (conn = client->conns; conn; conn = conn->next) {
    if (conn->state == E2B__CONN_CLOSED) continue;
    if (conn->port == req->port && conn->tls == req->tls && strcmp(conn->host, req->host) == 0) {
      same++;
      if (conn->idle) useless = conn;
    }
    if (conn->idle && (!oldest || conn->idle_since < oldest->idle_since)) oldest = conn;
  }
  if (same >= client->config.max_connections_per_host) {
    if (useless) e2b__conn_close(useless);
    return useless != NULL && same == client->config.max_connections_per_host;
  }
  if (client->conn_count < client->config.max_connections) return true;
  if (oldest) e2b__conn_close(oldest);
  return oldest != NULL;
}

static e2b__conn *e2b__conn_open(e2b_client *client, e2b__req *req, e2b_error *err) {
  e2b__conn *conn = (e2b__conn *)e2b__object_new(client, sizeof *conn);
  e2b_err code;
  if (!conn) {
    e2b__error_set(err, E2B_ERR_NO_MEMORY, E2B_PHASE_CONNECT, "no memory for a connection");
    return NULL;
  }
  conn->client = client;
  conn->port = req->port;
  conn->tls = req->tls;
  conn->open_deadline = e2b__deadline(client->now, client->config.connect_timeout_ms);
  e2b__buf_init(&conn->out, &client->mem, SIZE_MAX);
  e2b__link_init(&conn->link, &client->net);
  conn->link.h1_only = req->h1_only;
  e2b__h1_init(&conn->h1, &client->mem, client->config.max_header_bytes, &e2b__conn_h1_events, conn);
  conn->host = e2b__mem_dup(&client->mem, req->host, strlen(req->host));
  if (!conn->host) {
    e2b__error_set(err, E2B_ERR_NO_MEMORY, E2B_PHASE_CONNECT, "no memory for a connection");
    e2b__conn_bury(conn);
    return NULL;
  }
  code = e2b__link_open(&conn->link, conn->host, conn->port, conn->tls, client->now, err);
  if (code) {
    e2b__link_close(&conn->link);
    e2b__conn_bury(conn);
    return NULL;
  }
  conn->next = client->conns;
  client->conns = conn;
  client->conn_count++;
  conn->number = ++client->stats.connections_made;
  return conn;
}

/* Gives a queued request its connection if one is to be had. */
static void e2b__req_dispatch(e2b__req *req) {
  e2b_client *client = req->client;
  e2b_error err;
  bool wait;
  e2b__conn *conn = e2b__conn_find(client, req, &wait);
  if (conn) {
    conn->reused = true;
  } else {
    if (wait || !e2b__conn_room(client, req)) return;
    memset(&err, 0, sizeof err);
    conn = e2b__conn_open(client, req, &err);
    if (!conn) {
      e2b__req_end(req, &err);
      return;
    }
  }
  e2b__req_set_state(req, E2B__REQ_ACTIVE);
  client->work = true; /* the turn must not sleep before it steps the connection */
#if !defined(E2B_NO_HTTP2)
  if (conn->h2) {
    e2b__conn_h2_attach(conn, req);
    return;
  }
#endif
  e2b__conn_set_idle(conn, false);
  req->conn = conn;
  req->last_progress = client->now;
  conn->req = req;
  conn->kick = true;
  if (conn->state == E2B__CONN_OPEN) e2b__conn_begin(conn);
}
/* ================================================================================================================== */
/* >>>> operations */
/* ================================================================================================================== */

typedef struct e2b__op_type {
  void (*cancel)(e2b__op *op);   /* lets go of requests and streams, without events */
  void (*release)(e2b__op *op);  /* frees what it holds, not itself */
  void (*resume)(e2b__op *op);   /* optional: after E2B_PAUSE */
  e2b_phase (*phase)(e2b__op *op, bool *maybe_done); /* optional: where it stands when it is ended from outside */
  void (*give_up)(e2b__op *op);    /* optional: before a timeout or an interrupt cancels it: hands over what there is */
} e2b__op_type;

/* What a public call has under way. Embedded first in its specific struct. */
struct e2b__op {
  e2b__object object;
  e2b_client *client;
  const e2b__op_type *type;
  e2b_sandbox *sandbox; /* dies with it; NULL for calls on the client */
  uint32_t id;
  bool blocking, finished, delivered;
  bool background; /* e2b_client_drain does not wait for it */
  e2b_done_fn on_done;
  void *user;
  uint64_t deadline;
  int32_t timeout_ms;   /* for its message */
  const char *nonce;    /* of a create; NULL for all others */
  void (*step)(e2b__op *op); /* optional: called in every turn; client->work asks for another one soon */
  e2b_error result;
  e2b__op *next_done;
};

static e2b_err e2b__fail(e2b_error *err, e2b_err code, const char *message) {
  e2b__error_set(err, code, E2B_PHASE_NONE, "%s", message);
  return code;
}

static e2b_err e2b__invalid(e2b_error *err, const char *name, const char *why) {
  e2b__error_set(err, E2B_ERR_INVALID_ARGUMENT, E2B_PHASE_NONE, "%s %s", name, why);
  if (err) err->subject = E2B_SUBJECT_OPTION;
  return E2B_ERR_INVALID_ARGUMENT;
}

static e2b_err e2b__no_memory(e2b_error *err) {
  return e2b__fail(err, E2B_ERR_NO_MEMORY, "out of memory");
}

static bool e2b__call_blocks(const e2b_call *call) {
  return !call || (!call->op && !call->on_done);
}

/* Finds a free slot, growing the table. Returns -1 when there is none. */
static int e2b__op_slot_find(e2b_client *client) {
  uint32_t i, grown;
  e2b__op_slot *slots;
  for (i = 0; client->op_count < client->slot_count && i < client->slot_count; i++)
    if (!client->slots[i].op) return (int)i;
  grown = E2B__MIN(E2B__MAX(client->slot_count * 2u, 8u), client->config.max_ops);
  if (grown <= client->slot_count) return -1;
  slots = (e2b__op_slot *)e2b__mem_realloc(&client->mem, client->slots, client->slot_count * sizeof *slots,
                                           grown * sizeof *slots);
  if (!slots) return -1;
  memset(slots + client->slot_count, 0, (grown - client->slot_count) * sizeof *slots);
  i = client->slot_count;
  client->slots = slots;
  client->slot_count = grown;
  return (int)i;
}

/* Creates an operation of `size` bytes, or returns NULL with *err. Every public call that takes an e2b_call comes through here. */
static void *e2b__op_new(e2b_client *client, const e2b_call *call, const e2b__op_type *type, size_t size, int32_t default_ms,
                         e2b_error *err) {
  e2b__op *op;
  int slot, timeout = call && call->timeout_ms ? call->timeout_ms : default_ms;
  if (err) memset(err, 0, sizeof *err);
  if (client->closing) {
    e2b__fail(err, E2B_ERR_BAD_STATE, "the client is being freed");
    return NULL;
  }
  if (e2b__call_blocks(call) && client->in_turn) {
    e2b__fail(err, E2B_ERR_BAD_STATE, "a blocking call inside a callback: set call.op or call.on_done");
    return NULL;
  }
  if (client->op_count >= client->config.max_ops) {
    e2b__fail(err, E2B_ERR_BUSY, "max_ops operations are under way or not collected with e2b_op_poll");
    return NULL;
  }
  slot = e2b__op_slot_find(client);
  op = slot < 0 ? NULL : (e2b__op *)e2b__object_new(client, size);
  if (!op) {
    e2b__no_memory(err);
    return NULL;
  }
  if (!client->in_turn) client->now = e2b__now_ms(client);
  if (++client->slots[slot].generation == 0) client->slots[slot].generation = 1;
  client->slots[slot].op = op;
  client->op_count++;
  op->client = client;
  op->type = type;
  op->id = (uint32_t)client->slots[slot].generation << 16 | (uint32_t)slot;
  op->blocking = e2b__call_blocks(call);
  op->on_done = call ? call->on_done : NULL;
  op->user = call ? call->user : NULL;
  op->timeout_ms = timeout;
  op->deadline = e2b__deadline(client->now, timeout);
  return op;
}

static e2b__op *e2b__op_find(e2b_client *client, e2b_op handle) {
  uint32_t slot = handle.id & 0xffffu;
  if (!handle.id || slot >= client->slot_count || client->slots[slot].generation != handle.id >> 16) return NULL;
  return client->slots[slot].op;
}

/* Frees a finished or canceled operation and its slot. */
static void e2b__op_release(e2b__op *op) {
  e2b_client *client = op->client;
  e2b__op **at, *last = NULL;
  for (at = &client->done; *at; at = &(*at)->next_done) {
    if (*at == op) {
      *at = op->next_done;
      if (client->done_tail == op) client->done_tail = last;
      break;
    }
    last = *at;
  }
  client->slots[op->id & 0xffffu].op = NULL;
  client->op_count--;
  if (op->type->release) op->type->release(op);
  e2b__object_free(client, op);
}

/* The result is known. It is delivered at the end of the turn. */
static void e2b__op_finish(e2b__op *op, const e2b_error *result) {
  e2b_client *client = op->client;
  if (op->finished) return;
  op->finished = true;
  op->result = *result;
  e2b__error_advise(&op->result);
  if (op->nonce && result->maybe_done) (void)snprintf(op->result.nonce, sizeof op->result.nonce, "%s", op->nonce);
  op->next_done = NULL;
  if (client->done_tail) client->done_tail->next_done = op; else client->done = op;
  client->done_tail = op;
  client->work = true;
}

static void e2b__op_finish_code(e2b__op *op, e2b_err code, const char *message) {
  e2b_error err;
  e2b__error_set(&err, code, E2B_PHASE_NONE, "%s", message);
  e2b__op_finish(op, &err);
}

/* Ends an operation from outside with an error; its requests are dropped. */
static void e2b__op_kill(e2b__op *op, const e2b_error *err) {
  if (op->finished) return;
  if (op->type->give_up) op->type->give_up(op);
  op->type->cancel(op);
  e2b__op_finish(op, err);
}

/* Where it stands. *maybe_done is set only when it says so. */
static e2b_phase e2b__op_stands(e2b__op *op, bool *maybe_done) {
  *maybe_done = false;
  return !op->finished && op->type->phase ? op->type->phase(op, maybe_done) : E2B_PHASE_NONE;
}

static void e2b__op_timeout(e2b__op *op) {
  e2b_error err;
  bool maybe_done;
  e2b_phase phase = e2b__op_stands(op, &maybe_done);
  e2b__error_set(&err, E2B_ERR_TIMEOUT, phase, "the call's timeout of %d ms passed (phase: %s)", (int)op->timeout_ms,
                 e2b_phase_name(phase));
  err.maybe_done = maybe_done;
  e2b__op_kill(op, &err);
}

static void e2b__ops_deliver(e2b_client *client) {
  e2b__op *op;
  while ((op = client->done) != NULL) {
    client->done = op->next_done;
    if (!client->done) client->done_tail = NULL;
    op->delivered = true;
    client->delivered++;
    if (!op->blocking && op->on_done) {
      e2b_done_fn on_done = op->on_done;
      void *user = op->user;
      e2b_error result = op->result;
      e2b__op_release(op);
      on_done(user, &result);
    }
  }
}

/* An operation made of one HTTP exchange at a time. */
typedef struct e2b__task e2b__task;
/* Reads the answer (any status) in task->req; returns the result with *err filled, or E2B_PENDING after e2b__task_again. */
typedef e2b_err (*e2b__task_fn)(e2b__task *task, e2b_error *err);
struct e2b__task {
  e2b__op op;
  e2b__req req;
  e2b__task_fn on_answer;
  e2b__task_fn on_loss;  /* optional: the exchange failed, *err says how; returns as on_answer, or E2B_PENDING when it goes on */
  bool waited;           /* was asked to come back later once */
  e2b_subject subject;   /* what a 404 is about */
  void *out;             /* results, by call */
  bool *flag;
  const uint8_t *data;   /* the caller's bulk data; sent behind req.body */
  size_t data_len;
  e2b_data_fn sink;      /* and callbacks for streaming ones */
  e2b_source_fn source;
  void *user;
  uint32_t state;
};

static void e2b__task_cancel(e2b__op *op) {
  e2b__req_abort(&((e2b__task *)op)->req);
}

static void e2b__task_release(e2b__op *op) {
  e2b__req_abort(&((e2b__task *)op)->req);
  e2b__req_free(&((e2b__task *)op)->req);
}

static void e2b__task_resume(e2b__op *op) {
  e2b__req *req = &((e2b__task *)op)->req;
  if (req->paused) e2b__req_resume(req);
  else if (req->source_waits) e2b__req_kick(req);
}

static e2b_phase e2b__task_phase(e2b__op *op, bool *maybe_done) {
  return e2b__req_stands(&((e2b__task *)op)->req, maybe_done);
}

static const e2b__op_type e2b__task_type = { e2b__task_cancel, e2b__task_release, e2b__task_resume, e2b__task_phase, NULL };

/* Sends the task's request, or another one after the first is answered. */
static e2b_err e2b__task_again(e2b__task *task, e2b_error *err) {
  e2b_err code = e2b__req_submit(&task->req);
  return code ? e2b__fail(err, code, code == E2B_ERR_LIMIT ? "the request is too large" : "out of memory") : E2B_PENDING;
}

#define E2B__RETRY_AFTER_MAX_MS 60000u

/* A 429 with Retry-After that fits the deadline is waited for, once and not for long: the server said that nothing was done. */
static bool e2b__task_wait_and_retry(e2b__task *task) {
  const char *value = e2b__headers_get(&task->req.answer_headers, "retry-after");
  uint32_t wait_ms = value ? e2b__http_retry_after_ms(value) : 0;
  uint64_t then = task->op.client->now + wait_ms;
  e2b_error err;
  if (task->req.status != 429 || !wait_ms || wait_ms > E2B__RETRY_AFTER_MAX_MS || task->waited || task->source || then >= task->op.deadline) return false;
  task->waited = true;
  task->req.not_before = then;
  return e2b__task_again(task, &err) == E2B_PENDING;
}

static void e2b__task_on_end(e2b__req *req, const e2b_error *end) {
  e2b__task *task = (e2b__task *)(void *)((uint8_t *)req - offsetof(e2b__task, req));
  e2b_error err = *end;
  e2b_err code = end->code;
  if (task->op.finished) return;
  if (code == E2B_OK) {
    if (e2b__task_wait_and_retry(task)) return;
    code = task->on_answer(task, &err);
  } else if (task->on_loss) {
    code = task->on_loss(task, &err);
  }
  if (code == E2B_PENDING) return;
  if (code == E2B_OK) memset(&err, 0, sizeof err);
  err.code = code;
  e2b__op_finish(&task->op, &err);
}

static int e2b__task_on_source(e2b__req *req, uint8_t *buf, size_t cap) {
  e2b__task *task = (e2b__task *)(void *)((uint8_t *)req - offsetof(e2b__task, req));
  uint64_t at = req->body_done - req->body.len;
  size_t left = task->data_len - (size_t)at;
  left = E2B__MIN(left, cap);
  if (left) memcpy(buf, task->data + at, left);
  return (int)left;
}

/* Tasks with a body of the caller's bytes behind req.body, without a copy: set task->data, data_len and req.body_len. */
static const e2b__req_events e2b__task_events = { NULL, NULL, e2b__task_on_source, e2b__task_on_end };

static e2b__task *e2b__task_new(e2b_client *client, const e2b_call *call, e2b_error *err) {
  e2b__task *task = (e2b__task *)e2b__op_new(client, call, &e2b__task_type, sizeof *task, client->config.request_timeout_ms, err);
  if (!task) return NULL;
  e2b__req_init(&task->req, client, &e2b__task_events);
  task->req.idle_ms = call && call->idle_ms ? call->idle_ms : client->config.idle_ms;
  return task;
}

/* ================================================================================================================== */
/* >>>> loop */
/* ================================================================================================================== */

#define E2B__UNSEEN_MS 20u /* between looks at what no descriptor tells of */

static void e2b__idle_timeout(e2b__req *req) {
  e2b_error err;
  e2b_phase phase = e2b__req_phase(req);
  e2b__error_set(&err, E2B_ERR_IDLE_TIMEOUT, phase, "no byte moved for %d ms (phase: %s)", (int)req->idle_ms, e2b_phase_name(phase));
  e2b__req_fail(req, &err);
}

static void e2b__connect_timeout(e2b__req *req) {
  e2b_error err;
  e2b_client *client = req->client;
  e2b_phase phase = e2b__req_phase(req);
  const e2b__proxy *proxy = req->conn->link.proxy;
  char via[100] = "";
  e2b__link_gave_up(&req->conn->link);
  if (proxy) (void)snprintf(via, sizeof via, " through the proxy %.60s:%u", proxy->host, (unsigned)proxy->port);
  e2b__error_set(&err, E2B_ERR_TIMEOUT, phase, "connecting to %.80s:%u%s took longer than connect_timeout_ms (%d ms; phase: %s)",
                 req->host, (unsigned)req->port, via, (int)client->config.connect_timeout_ms, e2b_phase_name(phase));
  e2b__conn_fail(req->conn, &err);
}

static void e2b__req_timeout(e2b__req *req) {
  e2b_error err;
  if (req->on_deadline) {
    req->on_deadline(req);
    return;
  }
  e2b__error_set(&err, E2B_ERR_TIMEOUT, e2b__req_phase(req), "the deadline passed");
  e2b__req_fail(req, &err);
}

static uint64_t e2b__req_idle_deadline(const e2b__req *req) {
  bool waiting = req->state == E2B__REQ_ACTIVE && req->conn->state == E2B__CONN_OPEN;
  if (req->idle_ms < 0 || !waiting || e2b__req_held(req) || req->source_waits) return (uint64_t)E2B__NEVER;
  return req->last_progress + (uint64_t)req->idle_ms;
}

static uint64_t e2b__req_open_deadline(const e2b__req *req) {
  bool opening = req->state == E2B__REQ_ACTIVE && req->conn->state == E2B__CONN_OPENING;
  return opening ? req->conn->open_deadline : (uint64_t)E2B__NEVER;
}

/* Fires what is due. Ending a request changes the list: start over after each. */
static void e2b__timers_fire(e2b_client *client) {
  uint64_t now = client->now;
  uint32_t i;
  e2b__req *req;
  e2b__conn *conn;
  for (i = 0; i < client->slot_count; i++) {
    e2b__op *op = client->slots[i].op;
    if (op && !op->finished && now >= op->deadline) e2b__op_timeout(op);
  }
  for (req = client->reqs; req;) {
    void (*fire)(e2b__req *) = NULL;
    if (now >= req->deadline) fire = e2b__req_timeout;
    else if (now >= e2b__req_open_deadline(req)) fire = e2b__connect_timeout;
    else if (now >= e2b__req_idle_deadline(req) && !req->conn->unreached) fire = e2b__idle_timeout;
    if (fire) fire(req);
    req = fire ? client->reqs : req->next;
  }
  for (conn = client->conns; conn; conn = conn->next) {
    if (conn->idle && now >= conn->idle_since + client->config.idle_connection_ms) e2b__conn_close(conn);
#if !defined(E2B_NO_HTTP2)
    if (now >= e2b__conn_h2_deadline(conn)) e2b__conn_h2_silent(conn);
#endif
    if (conn->state == E2B__CONN_OPENING && now >= e2b__link_deadline(&conn->link)) conn->kick = true;
  }
}

static bool e2b__conn_unseen(const e2b__conn *conn) {
  bool held = conn->req && e2b__req_held(conn->req) && !conn->want_write;
  return conn->state != E2B__CONN_CLOSED && !conn->idle && !held && e2b__link_unseen(&conn->link);
}

/* When the loop has to look again without any I/O: 0 = now, E2B__NEVER = no timer. */
static uint64_t e2b__next_timer(const e2b_client *client) {
  uint64_t next = (uint64_t)E2B__NEVER;
  uint32_t i;
  const e2b__req *req;
  const e2b__conn *conn;
  if (client->work || client->done) return 0;
  for (i = 0; i < client->slot_count; i++) {
    const e2b__op *op = client->slots[i].op;
    if (op && !op->finished) next = E2B__MIN(next, op->deadline);
  }
  for (req = client->reqs; req; req = req->next) {
    next = E2B__MIN(next, req->deadline);
    next = E2B__MIN(next, e2b__req_open_deadline(req));
    next = E2B__MIN(next, e2b__req_idle_deadline(req));
    if (req->state == E2B__REQ_QUEUED && req->not_before > client->now) next = E2B__MIN(next, req->not_before);
  }
  for (conn = client->conns; conn; conn = conn->next) {
    if (conn->state == E2B__CONN_OPENING) next = E2B__MIN(next, e2b__link_deadline(&conn->link));
    if (conn->state != E2B__CONN_OPEN) continue;
    if (conn->idle) next = E2B__MIN(next, conn->idle_since + client->config.idle_connection_ms);
    else if (e2b__link_buffered(&conn->link) && !(conn->req && e2b__req_held(conn->req))) return 0;
#if !defined(E2B_NO_HTTP2)
    next = E2B__MIN(next, e2b__conn_h2_deadline(conn));
#endif
  }
  for (conn = client->conns; conn; conn = conn->next)
    if (e2b__conn_unseen(conn)) return E2B__MIN(next, client->now + E2B__UNSEEN_MS);
  return next;
}

static int e2b__wait_ms(const e2b_client *client, int timeout_ms) {
  uint64_t timer = e2b__next_timer(client), wait;
  if (timer == (uint64_t)E2B__NEVER) return timeout_ms;
  wait = timer <= client->now ? 0 : E2B__MIN(timer - client->now, (uint64_t)INT_MAX);
  return timeout_ms < 0 ? (int)wait : (int)E2B__MIN((uint64_t)timeout_ms, wait);
}

/* Whether a queued request may go. When it may never, it ends. */
static bool e2b__req_may_go(e2b__req *req) {
  e2b_error err;
  e2b_err code = E2B_OK;
  memset(&err, 0, sizeof err);
  if (req->gate) code = req->gate(req, &err);
  if (!code && req->headers.text.err) code = e2b__no_memory(&err);
  if (code == E2B_PENDING) return false;
  if (code) e2b__req_end(req, &err);
  return code == E2B_OK;
}

/* Flushes resumed streams and gives queued requests their connections. */
static void e2b__requests_start(e2b_client *client) {
  e2b__req *req;
  for (req = client->reqs; req;) {
    bool flush = req->flush;
    if (flush) e2b__req_flush(req);
    req = flush ? client->reqs : req->next;
  }
  for (req = client->reqs; req && client->queued_count;) {
    e2b__req *next = req->next;
    if (req->state == E2B__REQ_QUEUED && client->now >= req->not_before) {
      if (client->conn_count >= client->config.max_connections && client->idle_count == 0 && client->h2_count == 0) return;
      if (e2b__req_may_go(req)) e2b__req_dispatch(req);
      if (req->state == E2B__REQ_NEW) next = client->reqs; /* it ended, and the list may be another one */
    }
    req = next;
  }
}

static size_t e2b__conn_fds(const e2b__conn *conn, e2b_pollfd *out, size_t cap) {
  bool read = conn->state == E2B__CONN_OPEN && !(conn->req && e2b__req_held(conn->req));
  if (conn->state == E2B__CONN_CLOSED) return 0;
  return e2b__link_fds(&conn->link, out, cap, read, conn->want_write);
}

/* Fills client->polls with the wake pipe and every connection, grown as needed. Returns how many, or 0 without memory. */
static size_t e2b__polls_fill(e2b_client *client) {
  size_t need = 1 + (size_t)client->conn_count * E2B__LINK_FDS, count = 0;
  const e2b__conn *conn;
  if (need > client->poll_cap) {
    size_t cap = need + need / 2;
    e2b_pollfd *grown = (e2b_pollfd *)e2b__mem_realloc(&client->mem, client->polls, client->poll_cap * sizeof *grown, cap * sizeof *grown);
    if (!grown) return 0;
    client->polls = grown;
    client->poll_cap = cap;
  }
  client->polls[count].fd = e2b__waker_fd(client->net.waker);
  client->polls[count].events = E2B_FD_READ;
  client->polls[count++].revents = 0;
  for (conn = client->conns; conn; conn = conn->next)
    count += e2b__conn_fds(conn, client->polls + count, client->poll_cap - count);
  return count;
}

/* Marks the connections that `ready` reports. Both are in the order of e2b__polls_fill unless the caller shuffled. */
static void e2b__conns_mark(e2b_client *client, const e2b_pollfd *ready, size_t count) {
  size_t i, at = 0;
  e2b__conn *conn;
  for (conn = client->conns; conn; conn = conn->next) {
    e2b_pollfd mine[E2B__LINK_FDS];
    size_t k, n = e2b__conn_fds(conn, mine, E2B__LINK_FDS);
    if (n == 0 && conn->state != E2B__CONN_CLOSED && !(conn->req && e2b__req_held(conn->req))) conn->ready = true;
    for (k = 0; k < n; k++) {
      for (i = 0; i < count; i++) {
        const e2b_pollfd *entry = &ready[(at + i) % count];
        if (entry->fd != mine[k].fd) continue;
        if (entry->revents) conn->ready = true;
        at = (at + i + 1) % count;
        break;
      }
    }
  }
}

static void e2b__conns_mark_unseen(e2b_client *client) {
  e2b__conn *conn;
  for (conn = client->conns; conn; conn = conn->next)
    if (e2b__conn_unseen(conn)) conn->ready = true;
}

static void e2b__conns_kick_opening(e2b_client *client) {
  e2b__conn *conn;
  for (conn = client->conns; conn; conn = conn->next)
    if (conn->state == E2B__CONN_OPENING) conn->kick = true;
}

/* Waits for I/O and marks what is ready. */
static void e2b__io_wait(e2b_client *client, int timeout_ms) {
  const e2b_transport *transport = client->net.transport;
  size_t count;
  int ready;
  if (!transport->fd_fn) {
    if (transport->wait_fn && timeout_ms != 0) transport->wait_fn(transport->user, timeout_ms);
    e2b__conns_mark(client, NULL, 0);
    return;
  }
  count = e2b__polls_fill(client);
  ready = count ? e2b__net_poll(&client->net, client->polls, count, timeout_ms) : -1;
  if (ready > 0) e2b__conns_mark(client, client->polls, count);
  if (ready < 0) { /* no memory: look at all of them */
    e2b__conn *conn;
    for (conn = client->conns; conn; conn = conn->next) conn->ready = conn->state != E2B__CONN_CLOSED;
  }
}

static bool e2b__conn_shakes(const e2b__conn *conn) {
  return conn->state == E2B__CONN_OPENING && conn->link.state == E2B__LINK_TLS;
}

static bool e2b__conn_due(const e2b__conn *conn) {
  if (conn->state == E2B__CONN_CLOSED) return false;
  return conn->ready || conn->kick || (conn->state == E2B__CONN_OPEN && !conn->idle && e2b__link_buffered(&conn->link));
}

#define E2B__HANDSHAKES 8u /* steps of TLS handshakes in a turn */

/* How many of the handshakes that could go on have to wait: each step is milliseconds of computing. Of a burst of hundreds some
 * are done early instead of all late, and nobody else waits for all of them. */
static uint32_t e2b__handshakes_later(const e2b_client *client) {
  uint32_t due = 0;
  const e2b__conn *conn;
  for (conn = client->conns; conn; conn = conn->next) due += e2b__conn_due(conn) && e2b__conn_shakes(conn);
  return due > E2B__HANDSHAKES ? due - E2B__HANDSHAKES : 0;
}

/* At least one, whatever the budget; those that it does not reach come first in the next turn. The newest come first: of
 * handshakes the oldest go on. */
static void e2b__conns_step(e2b_client *client) {
  e2b__conn **at, **unreached = NULL, *first;
  uint32_t later = e2b__handshakes_later(client);
  bool stepped = false;
  for (at = &client->conns; *at; at = &(*at)->next) {
    e2b__conn *conn = *at;
    if (!e2b__conn_due(conn)) continue;
    if (later && e2b__conn_shakes(conn)) {
      later--;
      e2b__conn_later(conn);
    } else if (stepped && e2b__budget_spent(client)) {
      e2b__conn_later(conn);
      conn->unreached = true;
      if (!unreached) unreached = at;
    } else {
      e2b__conn_step(conn);
      stepped = true;
    }
  }
  if (!unreached || unreached == &client->conns) return;
  first = *unreached;
  *unreached = NULL;
  *at = client->conns;
  client->conns = first;
}

static void e2b__bury_dead(e2b_client *client) {
  e2b__conn **at = &client->conns;
  while (*at) {
    e2b__conn *conn = *at;
    if (conn->state != E2B__CONN_CLOSED) {
      at = &conn->next;
      continue;
    }
    *at = conn->next;
    e2b__conn_bury(conn);
  }
  while (client->dead) {
    e2b__object *object = client->dead;
    client->dead = object->next_dead;
    e2b__mem_free(&client->mem, object, object->size);
  }
}

/* Operations made of others go on: at least one, in turn. */
static void e2b__ops_step(e2b_client *client) {
  uint32_t i, count = client->slot_count, from = client->step_from;
  bool stepped = false;
  for (i = 0; i < count; i++) {
    uint32_t at = (from + i) % count;
    e2b__op *op = client->slots[at].op;
    if (!op || !op->step || op->finished) continue;
    if (stepped && e2b__budget_spent(client)) {
      client->step_from = at;
      client->work = true;
      return;
    }
    op->step(op);
    stepped = true;
  }
}

/* One turn: start what waits, wait, step what is ready, fire timers, deliver, bury. */
static int e2b__turn(e2b_client *client, int timeout_ms, const e2b_pollfd *ready, size_t count, uint32_t budget_us) {
  client->in_turn = true;
  client->now = e2b__now_ms(client);
  client->budget_end_us = budget_us ? e2b__now_us(client) + budget_us : 0;
  client->delivered = 0;
  e2b__requests_start(client);
  timeout_ms = e2b__wait_ms(client, timeout_ms);
  client->work = false;
  if (ready) e2b__conns_mark(client, ready, count);
  else e2b__io_wait(client, timeout_ms);
  e2b__conns_mark_unseen(client);
  if (e2b__waker_drain(client->net.waker)) e2b__conns_kick_opening(client); /* perhaps a name look-up is done */
  if (timeout_ms) client->now = e2b__now_ms(client);
  e2b__conns_step(client);
  e2b__timers_fire(client);
  e2b__ops_step(client);
  if (client->work) e2b__requests_start(client);
  e2b__ops_deliver(client);
  client->in_turn = false;
  e2b__bury_dead(client);
  return (int)client->delivered;
}

/* Takes the result of a finished operation and releases it. */
static e2b_err e2b__op_collect(e2b__op *op, e2b_error *err) {
  e2b_err code = op->result.code;
  if (err) *err = op->result;
  e2b__op_release(op);
  return code;
}

/* The last line of every call that takes an e2b_call: hands out the handle, or drives the client until the result is there. */
static e2b_err e2b__op_run(e2b__op *op, const e2b_call *call, e2b_error *err) {
  e2b_client *client = op->client;
  e2b_error canceled;
  bool maybe_done, interrupted = false;
  if (!op->blocking) {
    if (call->op) call->op->id = op->id;
    if (err) err->code = E2B_PENDING;
    return E2B_PENDING;
  }
  /* An interrupt that is there already means this call, even if it could end in one turn; the turn sees that there was a signal. */
  if (e2b__waker_drain(client->net.waker)) e2b__waker_signal(client->net.waker);
  while (!op->delivered) {
    if (e2b__waker_interrupted(client->net.waker)) {
      e2b_phase phase = e2b__op_stands(op, &maybe_done);
      e2b__error_set(&canceled, E2B_ERR_CANCELED, phase, "interrupted by e2b_client_interrupt");
      canceled.maybe_done = maybe_done;
      e2b__op_kill(op, &canceled);
      interrupted = true;
    }
    (void)e2b__turn(client, -1, NULL, 0, 0);
    if (client->config.yield_fn) client->config.yield_fn(client->config.platform_user);
  }
  if (interrupted) (void)e2b__waker_interrupted(client->net.waker); /* a second one meanwhile meant this call too */
  return e2b__op_collect(op, err);
}

static e2b_err e2b__task_run(e2b__task *task, const e2b_call *call, e2b_error *err) {
  e2b_err code = e2b__task_again(task, err);
  if (code == E2B_PENDING) return e2b__op_run(&task->op, call, err);
  e2b__op_release(&task->op);
  return code;
}

/* Whether anything is under way; a result that nobody took yet is not. */
static bool e2b__client_busy(const e2b_client *client) {
  uint32_t i;
  if (client->reqs || client->done) return true;
  for (i = 0; client->op_count && i < client->slot_count; i++)
    if (client->slots[i].op && !client->slots[i].op->delivered) return true;
  return false;
}

E2B_API int e2b_client_poll(e2b_client *client, int timeout_ms) {
  if (!client || client->in_turn) return E2B_ERR_BAD_STATE;
  if (timeout_ms < 0 && !e2b__client_busy(client)) timeout_ms = 0;
  return e2b__turn(client, timeout_ms, NULL, 0, 0);
}

E2B_API bool e2b_client_pump(e2b_client *client, uint32_t budget_us) {
  if (!client || client->in_turn) return false;
  (void)e2b__turn(client, 0, NULL, 0, E2B__MAX(budget_us, 1u));
  return client->work || client->done || e2b__next_timer(client) == 0;
}

E2B_API int e2b_client_process(e2b_client *client, const e2b_pollfd *ready, size_t count, uint32_t budget_us) {
  if (!client || client->in_turn) return E2B_ERR_BAD_STATE;
  return e2b__turn(client, 0, ready, count, budget_us);
}

E2B_API size_t e2b_client_fds(e2b_client *client, e2b_pollfd *out, size_t cap) {
  size_t i, count;
  if (!client || !client->net.transport->fd_fn) return 0;
  count = e2b__polls_fill(client);
  for (i = 0; i < count && i < cap; i++) out[i] = client->polls[i];
  return count;
}

E2B_API int e2b_client_next_timeout(e2b_client *client) {
  if (!client) return -1;
  client->now = e2b__now_ms(client);
  return e2b__wait_ms(client, -1);
}

E2B_API e2b_err e2b_client_drain(e2b_client *client, int timeout_ms) {
  uint64_t end;
  if (!client || client->in_turn) return E2B_ERR_BAD_STATE;
  end = e2b__deadline(e2b__now_ms(client), timeout_ms);
  for (;;) {
    uint32_t i, active = 0;
    uint64_t now = e2b__now_ms(client);
    for (i = 0; i < client->slot_count; i++)
      if (client->slots[i].op && !client->slots[i].op->delivered && !client->slots[i].op->background) active++;
    if (!active) return E2B_OK;
    if (now >= end) return E2B_ERR_TIMEOUT;
    (void)e2b__turn(client, (int)E2B__MIN(end - now, (uint64_t)INT_MAX), NULL, 0, 0);
  }
}

E2B_API void e2b_client_wake(e2b_client *client) {
  if (client) e2b__waker_signal(client->net.waker);
}

E2B_API void e2b_client_interrupt(e2b_client *client) {
  if (client) e2b__waker_interrupt(client->net.waker);
}

E2B_API e2b_err e2b_op_poll(e2b_client *client, e2b_op handle, e2b_error *err) {
  e2b__op *op = client ? e2b__op_find(client, handle) : NULL;
  if (!op) return e2b__fail(err, E2B_ERR_BAD_STATE, "no such operation: it was canceled or its result was already taken");
  if (!op->delivered) {
    if (err) memset(err, 0, sizeof *err);
    if (err) err->code = E2B_PENDING;
    return E2B_PENDING;
  }
  return e2b__op_collect(op, err);
}

E2B_API void e2b_op_cancel(e2b_client *client, e2b_op handle) {
  e2b__op *op = client ? e2b__op_find(client, handle) : NULL;
  if (!op) return;
  if (!op->finished) op->type->cancel(op);
  op->finished = true;
  e2b__op_release(op);
}

E2B_API void e2b_op_resume(e2b_client *client, e2b_op handle) {
  e2b__op *op = client ? e2b__op_find(client, handle) : NULL;
  if (op && !op->finished && op->type->resume) op->type->resume(op);
}
/* ================================================================================================================== */
/* >>>> answers */
/* ================================================================================================================== */

/* Empties a result before a call, keeping the storage the caller gave. `out` is the struct whose first member is mem. */
static void e2b__result_clear(void *out, size_t size) {
  e2b_mem *mem = (e2b_mem *)out;
  e2b_mem kept;
  if (!out) return;
  kept = *mem;
  memset(out, 0, size);
  if (!kept.fixed) return;
  mem->ptr = kept.ptr;
  mem->cap = kept.cap;
  mem->fixed = true;
}

/* Gives the result its block of `size` bytes. It is not counted in the client's statistics: it may outlive the client. */
static void *e2b__result_alloc(e2b_client *client, e2b_mem *mem, size_t size, e2b_error *err) {
  size_t shift;
  mem->len = size;
  if (mem->fixed) {
    shift = (8u - (uintptr_t)mem->ptr % 8u) % 8u;
    mem->len = size + shift;
    if (mem->len > mem->cap) {
      e2b__error_set(err, E2B_ERR_BUFFER_TOO_SMALL, E2B_PHASE_DECODE, "the result needs %lu bytes, the storage given has %lu",
                     (unsigned long)mem->len, (unsigned long)mem->cap);
      return NULL;
    }
    return (uint8_t *)mem->ptr + shift;
  }
  mem->alloc = client->mem.allocator;
  mem->ptr = mem->alloc.alloc_fn(mem->alloc.user, E2B__MAX(size, (size_t)1));
  mem->cap = E2B__MAX(size, (size_t)1);
  if (!mem->ptr) {
    mem->cap = mem->len = 0;
    e2b__no_memory(err);
  }
  return mem->ptr;
}

E2B_API void e2b_mem_free(e2b_mem *mem) {
  if (!mem || mem->fixed) return;
  if (mem->ptr) {
    e2b__mem_wipe(mem->ptr, mem->cap); /* that of a create holds tokens */
    mem->alloc.free_fn(mem->alloc.user, mem->ptr, mem->cap);
  }
  memset(mem, 0, sizeof *mem);
}

/* Writes what `from` (a decoded message) says into `out`, every pointer made by pack. Runs twice: see e2b__pack. */
typedef void (*e2b__fill_fn)(e2b__pack *pack, const void *from, void *out);

static e2b_err e2b__result_fill(e2b_client *client, e2b__fill_fn fill, const void *from, void *out, e2b_error *err) {
  e2b_mem *mem = (e2b_mem *)out, kept;
  e2b__pack pack;
  if (!out) return E2B_OK;
  kept = *mem;
  pack.base = NULL;
  pack.used = 0;
  fill(&pack, from, out);
  *mem = kept;
  if (mem->fixed && !mem->ptr && !pack.used) return E2B_OK; /* no storage, and nothing to go there */
  pack.base = (uint8_t *)e2b__result_alloc(client, mem, pack.used, err);
  if (!pack.base) return mem->fixed ? E2B_ERR_BUFFER_TOO_SMALL : E2B_ERR_NO_MEMORY;
  kept = *mem;
  pack.used = 0;
  fill(&pack, from, out);
  *mem = kept;
  return E2B_OK;
}

/* Copies decoded pairs into the result. */
static e2b_kvs e2b__pack_pairs(e2b__pack *pack, const e2b__list *pairs) {
  const e2b__pair *from = (const e2b__pair *)pairs->items;
  e2b_kv *items = (e2b_kv *)e2b__pack_alloc(pack, pairs->count * sizeof *items);
  e2b_kvs out;
  size_t i;
  for (i = 0; i < pairs->count; i++) {
    const char *key = e2b__pack_str(pack, from[i].key), *value = e2b__pack_str(pack, from[i].value);
    if (!items) continue;
    items[i].key = key;
    items[i].value = value;
  }
  out.items = items;
  out.count = pairs->count;
  return out;
}

static e2b_err e2b__code_of_status(int status) {
  switch (status) {
    case 400: case 422: return E2B_ERR_INVALID_ARGUMENT;
    case 401: return E2B_ERR_UNAUTHENTICATED;
    case 403: return E2B_ERR_PERMISSION;
    case 404: return E2B_ERR_NOT_FOUND;
    case 409: return E2B_ERR_CONFLICT;
    case 429: return E2B_ERR_RATE_LIMITED;
    case 502: case 503: case 504: return E2B_ERR_UNAVAILABLE;
    case 507: return E2B_ERR_NOT_ENOUGH_SPACE;
    default: return E2B_ERR_SERVICE;
  }
}

static const char *const e2b__connect_names[] = {
  "none", "canceled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists", "permission_denied",
  "resource_exhausted", "failed_precondition", "aborted", "out_of_range", "unimplemented", "internal", "unavailable", "data_loss",
  "unauthenticated"
};

E2B_API const char *e2b_connect_code_name(e2b_connect_code code) {
  return (int)code >= 0 && (size_t)code < E2B__COUNT(e2b__connect_names) ? e2b__connect_names[code] : "unknown";
}

static e2b_connect_code e2b__connect_code(e2b_str name) {
  size_t i;
  for (i = 1; i < E2B__COUNT(e2b__connect_names); i++)
    if (e2b__str_eq(name, e2b__connect_names[i])) return (e2b_connect_code)i;
  return E2B_CONNECT_NONE;
}

static e2b_err e2b__code_of_connect(e2b_connect_code code) {
  switch (code) {
    case E2B_CONNECT_INVALID_ARGUMENT: case E2B_CONNECT_OUT_OF_RANGE: return E2B_ERR_INVALID_ARGUMENT;
    case E2B_CONNECT_DEADLINE_EXCEEDED: return E2B_ERR_TIMEOUT;
    case E2B_CONNECT_NOT_FOUND: return E2B_ERR_NOT_FOUND;
    case E2B_CONNECT_ALREADY_EXISTS: return E2B_ERR_ALREADY_EXISTS;
    case E2B_CONNECT_PERMISSION_DENIED: return E2B_ERR_PERMISSION;
    case E2B_CONNECT_RESOURCE_EXHAUSTED: return E2B_ERR_RATE_LIMITED;
    case E2B_CONNECT_ABORTED: return E2B_ERR_CONFLICT;
    case E2B_CONNECT_UNIMPLEMENTED: return E2B_ERR_NOT_BUILT;
    case E2B_CONNECT_UNAVAILABLE: return E2B_ERR_UNAVAILABLE;
    case E2B_CONNECT_UNAUTHENTICATED: return E2B_ERR_UNAUTHENTICATED;
    default: return E2B_ERR_SERVICE;
  }
}

/* Whether the server's own words leave open what it did before it failed. */
static bool e2b__connect_is_vague(e2b_connect_code code) {
  switch (code) {
    case E2B_CONNECT_CANCELED: case E2B_CONNECT_UNKNOWN: case E2B_CONNECT_DEADLINE_EXCEEDED: case E2B_CONNECT_ABORTED:
    case E2B_CONNECT_INTERNAL: case E2B_CONNECT_UNAVAILABLE: case E2B_CONNECT_DATA_LOSS: return true;
    default: return false;
  }
}

/* Sets the code and the message of *err, keeping what is known of the exchange (status, request id). */
E2B__PRINTF(3, 4)
static e2b_err e2b__error_say(e2b_error *err, e2b_err code, const char *format, ...) {
  va_list args;
  err->code = code;
  va_start(args, format);
  (void)vsnprintf(err->message, sizeof err->message, format, args);
  va_end(args);
  return code;
}

/* Makes the request's own secrets unreadable in its answer: some servers and debugging proxies repeat what they were told. */
static void e2b__answer_mask(e2b__req *req) {
  static const char *const names[] = { "x-api-key", "x-access-token", "authorization", E2B_TRAFFIC_TOKEN_HEADER };
  size_t i, at, len;
  for (i = 0; i < E2B__COUNT(names); i++) {
    const char *secret = e2b__headers_get(&req->headers, names[i]);
    len = secret ? strlen(secret) : 0;
    if (len < 8) continue; /* "test" is no secret, but a word of many messages */
    for (at = 0; at + len <= req->rx.len; at++)
      if (memcmp(req->rx.data + at, secret, len) == 0) memset(req->rx.data + at, '*', len);
  }
}

/* Reads {"code","message"} leniently from an answer that is not success. Returns a cleaned excerpt of the message, or of the
 * body when it is not such JSON (a gateway's HTML, plain text). Changes req->rx in place. */
static const char *e2b__answer_message(e2b__req *req, char *excerpt, size_t cap, e2b_error *err) {
  e2b__rest_error body;
  e2b__arena arena;
  e2b_err code;
  e2b__answer_mask(req);
  e2b__error_excerpt(excerpt, E2B__MIN(cap, (size_t)120), req->rx.data, req->rx.len);
  e2b__arena_init(&arena, &req->client->mem, 4096);
  code = e2b__json_decode(&e2b__msg_rest_error, (char *)req->rx.data, req->rx.len, &arena, &body);
  if (code == E2B_OK) {
    err->connect_code = e2b__connect_code(body.code);
    if (body.request_id.len && !err->request_id[0])
      e2b__error_excerpt(err->request_id, sizeof err->request_id, (const uint8_t *)body.request_id.ptr, body.request_id.len);
    if (body.message.len) e2b__error_excerpt(excerpt, cap, (const uint8_t *)body.message.ptr, body.message.len);
  }
  e2b__arena_free(&arena);
  return excerpt;
}

/* Turns a complete answer that is not success into an error. `subject`: what a 404 is about. `hint`: the next step for a 401. */
static e2b_err e2b__answer_error(e2b__req *req, e2b_subject subject, const char *hint, e2b_error *err) {
  char excerpt[200];
  const char *retry = e2b__headers_get(&req->answer_headers, "retry-after");
  const char *message = e2b__answer_message(req, excerpt, sizeof excerpt, err);
  e2b_err code = err->connect_code ? e2b__code_of_connect(err->connect_code) : e2b__code_of_status(req->status);
  err->phase = E2B_PHASE_BODY;
  if (code == E2B_ERR_NOT_FOUND) err->subject = subject;
  if (retry) err->retry_after_ms = e2b__http_retry_after_ms(retry);
  if (req->status >= 300 && req->status < 400)
    return e2b__error_say(err, E2B_ERR_SERVICE, "the server answered with a redirect (HTTP %d), which is not followed: check the URL", req->status);
  if (err->connect_code ? e2b__connect_is_vague(err->connect_code) : req->status >= 500 && req->status != 501)
    err->maybe_done = !req->idempotent;
  if (code == E2B_ERR_UNAUTHENTICATED)
    return e2b__error_say(err, code, "%s (HTTP %d): %s", message[0] ? message : "not authenticated", req->status, hint);
  if (code == E2B_ERR_RATE_LIMITED && err->retry_after_ms)
    return e2b__error_say(err, code, "%s (HTTP %d): try again in %lu s", message[0] ? message : "too many requests", req->status,
                          (unsigned long)(err->retry_after_ms / 1000u + (err->retry_after_ms % 1000u != 0)));
  if (code == E2B_ERR_RATE_LIMITED)
    return e2b__error_say(err, code, "%s (HTTP %d): try again later", message[0] ? message : "too many requests", req->status);
  return e2b__error_say(err, code, "%s (HTTP %d)", message[0] ? message : "the server gave no reason", req->status);
}

/* ================================================================================================================== */
/* >>>> traffic */
/* ================================================================================================================== */

#ifndef E2B_NO_TRAFFIC_TOKEN

#define E2B__TRAFFIC_BACKOFF_MAX_S 30u
#define E2B__TRAFFIC_SPARE_S 10 /* a token that lives less is not used while another one is on its way */
#define E2B__TRAFFIC_TOKEN_MAX 4096u

static int64_t e2b__now_unix_s(const e2b_client *client) {
  if (client->config.unix_time_fn) return client->config.unix_time_fn(client->config.platform_user);
  return (int64_t)time(NULL);
}

/* The claims of a JWT that matter here, as JSON text. */
typedef struct e2b__jwt {
  e2b_str expires, issued;
} e2b__jwt;
static const e2b__field e2b__fields_jwt[] = {
  E2B__FIELD(e2b__jwt, expires, "exp", 0, RAW),
  E2B__FIELD(e2b__jwt, issued, "iat", 0, RAW),
};
static const e2b__message e2b__msg_jwt = E2B__MESSAGE(e2b__jwt, e2b__fields_jwt);

#define E2B__JWT_NEVER 253402300799 /* the end of the year 9999, the last that RFC 3339 can say */

/* A NumericDate: a number that is not negative, however written; its fraction is dropped. */
static bool e2b__jwt_seconds(e2b_str json, int64_t *out) {
  int64_t value = 0, exponent = 0, shift = 0; /* the value is to be multiplied by ten so many times */
  bool fraction = false, minus;
  size_t i;
  if (!json.len || !e2b__is_digit(json.ptr[0])) return false;
  for (i = 0; i < json.len && e2b__ascii_lower(json.ptr[i]) != 'e'; i++) {
    bool digit = e2b__is_digit(json.ptr[i]), kept = digit && value <= E2B__JWT_NEVER;
    if (!digit) fraction = true;
    if (kept) value = value * 10 + (json.ptr[i] - '0');
    if (digit) shift += (kept ? 0 : 1) - (fraction ? 1 : 0);
  }
  if (i + 1 < json.len) {
    minus = json.ptr[i + 1] == '-';
    i += json.ptr[i + 1] == '+' ? 2 : 1;
    if (!e2b__json_to_i64(e2b__str_n(json.ptr + i, json.len - i), &exponent)) exponent = minus ? INT32_MIN : INT32_MAX;
    shift += E2B__MIN(E2B__MAX(exponent, (int64_t)INT32_MIN), (int64_t)INT32_MAX);
  }
  for (; shift > 0 && value && value <= E2B__JWT_NEVER; shift--) value *= 10;
  for (; shift < 0 && value; shift++) value /= 10;
  *out = E2B__MIN(value, (int64_t)E2B__JWT_NEVER);
  return true;
}

/* When a token expires and when it was issued (`now` when it does not say). The signature is the gateway's business.
 * E2B_ERR_PROTOCOL: it is not a JWT. */
static e2b_err e2b__jwt_read(e2b__mem *mem, e2b_str token, int64_t now, int64_t *issued, int64_t *expires) {
  const char *first = token.len ? (const char *)memchr(token.ptr, '.', token.len) : NULL, *payload, *end;
  size_t left, len;
  e2b__arena arena;
  e2b__jwt jwt;
  char *text;
  e2b_err code = E2B_ERR_PROTOCOL;
  if (!first) return code;
  payload = first + 1;
  left = token.len - (size_t)(payload - token.ptr);
  end = (const char *)memchr(payload, '.', left);
  len = end ? (size_t)(end - payload) : left;
  e2b__arena_init(&arena, mem, 65536);
  text = (char *)e2b__arena_alloc(&arena, len + 1);
  if (!text) code = arena.err;
  else memcpy(text, payload, len);
  if (text && e2b__base64_decode_in_place(text, len, &len)) {
    code = e2b__json_decode(&e2b__msg_jwt, text, len, &arena, &jwt);
    if (!code && !e2b__jwt_seconds(jwt.expires, expires)) code = E2B_ERR_PROTOCOL;
    if (!code && !e2b__jwt_seconds(jwt.issued, issued)) *issued = now;
  }
  e2b__arena_free(&arena);
  return code == E2B_OK || code == E2B_ERR_NO_MEMORY ? code : E2B_ERR_PROTOCOL;
}

/* Reads the answer to POST /sandboxes/<id>/traffic-access-token. Nothing of its body goes into a message. */
static e2b_err e2b__traffic_read(e2b__req *req, e2b__arena *arena, e2b_str *token, int64_t *expires, e2b_error *err) {
  e2b__mem *mem = &req->client->mem;
  const char *retry = e2b__headers_get(&req->answer_headers, "retry-after");
  int64_t now = e2b__now_unix_s(req->client), claimed = 0, issued = 0;
  e2b__rest_sandbox answer;
  e2b__timestamp until;
  e2b_err code;
  e2b__arena_init(arena, mem, (size_t)req->client->config.max_message_bytes * 4);
  err->phase = E2B_PHASE_BODY;
  if (retry) err->retry_after_ms = e2b__http_retry_after_ms(retry);
  if (req->status < 200 || req->status >= 300) {
    err->subject = E2B_SUBJECT_SANDBOX;
    return e2b__error_say(err, E2B_ERR_TRAFFIC_TOKEN_REFRESH, "no new traffic token (HTTP %d): %s", req->status,
                          req->status == 401 || req->status == 403 ? "check api_key"
                          : req->status == 404 ? "there is no such sandbox, or it is not yours"
                          : req->status == 409 ? "the sandbox is not in JWT mode, or does not run"
                                               : "the control plane cannot issue one now");
  }
  err->phase = E2B_PHASE_DECODE;
  code = e2b__json_decode(&e2b__msg_rest_sandbox, (char *)req->rx.data, req->rx.len, arena, &answer);
  if (!code) {
    *token = answer.traffic_access_token;
    if (!token->len || !e2b__header_value_ok(*token)) code = E2B_ERR_PROTOCOL;
    else code = e2b__jwt_read(mem, *token, now, &issued, &claimed);
  }
  if (code == E2B_ERR_NO_MEMORY) return e2b__error_say(err, code, "no memory for the traffic token");
  if (code || !e2b__time_parse(answer.traffic_access_token_expiration, &until) || until.seconds - claimed > 5 ||
      claimed - until.seconds > 5)
    return e2b__error_say(err, E2B_ERR_TRAFFIC_TOKEN_REFRESH, "the answer (HTTP %d) is not a traffic token and its expiry",
                          req->status);
  *expires = until.seconds;
  if (until.seconds > now) return E2B_OK;
  return e2b__error_say(err, E2B_ERR_TRAFFIC_TOKEN_REFRESH, "the new traffic token has expired already: is the clock right?");
}

typedef struct e2b__traffic e2b__traffic;

/* A call that asked for a refresh. */
typedef struct e2b__traffic_op e2b__traffic_op;
struct e2b__traffic_op {
  e2b__op op;
  e2b__traffic *traffic;
  e2b__traffic_op *next;
  const char **out;
};

/* The token of a sandbox in JWT mode. */
struct e2b__traffic {
  e2b__object object;
  e2b_client *client;
  const char *sandbox_id;   /* the handle's */
  char *token;              /* NULL = none yet */
  int64_t expires, refresh; /* Unix seconds: no use any more; time for another */
  uint32_t backoff_s;       /* after the next failure */
  uint64_t next_try;        /* monotonic milliseconds; calls do not refresh before */
  bool refreshing;
  e2b__req req;
  e2b_error failure;        /* of the last refresh; code 0 = it was a success, or there was none */
  e2b__traffic_op *waiting;
};

/* Takes a token over. A refresh is due a fifth of its life before the end, within 60 to 300 s and the second half of it, and
 * a little earlier so that not all clients come at once. */
static bool e2b__traffic_set(e2b__traffic *traffic, e2b_str token, int64_t issued, int64_t expires) {
  char *copy = e2b__mem_dup(&traffic->client->mem, token.ptr, token.len);
  int64_t life = E2B__MAX(expires - issued, (int64_t)0), ahead = E2B__MIN(E2B__MAX(life / 5, (int64_t)60), (int64_t)300);
  uint8_t jitter = 0;
  if (!copy) return false;
  (void)e2b__net_random(&jitter, sizeof jitter);
  ahead = E2B__MIN(ahead + ahead * jitter / 2560, life / 2);
  e2b__mem_free_str(&traffic->client->mem, traffic->token);
  traffic->token = copy;
  traffic->expires = expires;
  traffic->refresh = expires - ahead;
  traffic->backoff_s = 1;
  traffic->next_try = 0;
  memset(&traffic->failure, 0, sizeof traffic->failure);
  return true;
}

static void e2b__traffic_failed(e2b__traffic *traffic, const e2b_error *err) {
  uint64_t wait_ms = E2B__MAX(traffic->backoff_s * 1000u, err->retry_after_ms);
  traffic->failure = *err;
  traffic->next_try = traffic->client->now + wait_ms;
  traffic->backoff_s = E2B__MIN(traffic->backoff_s * 2u, E2B__TRAFFIC_BACKOFF_MAX_S);
}

static void e2b__traffic_on_end(e2b__req *req, const e2b_error *end) {
  e2b__traffic *traffic = (e2b__traffic *)(void *)((uint8_t *)req - offsetof(e2b__traffic, req));
  e2b_error err = *end;
  e2b__arena arena;
  e2b_str token;
  int64_t expires = 0;
  if (!err.code) {
    err.code = e2b__traffic_read(req, &arena, &token, &expires, &err);
    if (!err.code && !e2b__traffic_set(traffic, token, e2b__now_unix_s(traffic->client), expires)) e2b__no_memory(&err);
    e2b__arena_free(&arena);
  }
  if (err.code) e2b__traffic_failed(traffic, &err);
  e2b__req_free(req);
  traffic->refreshing = false;
  traffic->client->work = true; /* requests wait for it in the queue */
  while (traffic->waiting) {
    e2b__traffic_op *op = traffic->waiting;
    traffic->waiting = op->next;
    op->traffic = NULL;
    if (!err.code) memset(&err, 0, sizeof err);
    if (!err.code && op->out) *op->out = traffic->token;
    e2b__op_finish(&op->op, &err);
  }
}

static const e2b__req_events e2b__traffic_events = { NULL, NULL, NULL, e2b__traffic_on_end };

/* The request that gets a token: POST without a body. */
static void e2b__traffic_address(e2b__req *req, const char *sandbox_id, const e2b_call *call) {
  const e2b_client_config *config = &req->client->config;
  e2b__url api;
  req->method = "POST";
  req->body_len = 0;
  req->idempotent = true;
  e2b__req_common_headers(req, call);
  if (e2b__given(config->api_key)) e2b__headers_set(&req->headers, "x-api-key", e2b__str(config->api_key));
  e2b__headers_set(&req->headers, "content-type", e2b__str("application/json"));
  (void)e2b__url_parse(config->api_url, &api); /* checked by e2b_client_create */
  e2b__req_target(req, &api);
  e2b__buf_text(&req->path, "/sandboxes/");
  e2b__url_escape(&req->path, e2b__str(sandbox_id));
  e2b__buf_text(&req->path, "/traffic-access-token");
}

/* Starts a refresh. It belongs to no call: whoever waits for it may give up, it goes on. */
static void e2b__traffic_refresh(e2b__traffic *traffic) {
  e2b_client *client = traffic->client;
  int32_t timeout = client->config.request_timeout_ms;
  e2b_error err;
  e2b__req_init(&traffic->req, client, &e2b__traffic_events);
  traffic->req.deadline = e2b__deadline(client->now, timeout > 0 ? timeout : 60000);
  traffic->req.idle_ms = client->config.idle_ms;
  e2b__traffic_address(&traffic->req, traffic->sandbox_id, NULL);
  traffic->refreshing = e2b__req_submit(&traffic->req) == E2B_OK;
  if (traffic->refreshing) return;
  e2b__req_free(&traffic->req);
  (void)e2b__no_memory(&err);
  e2b__traffic_failed(traffic, &err);
}

/* The header for a request that is about to go. E2B_PENDING: it has to wait for a refresh. */
static e2b_err e2b__traffic_header(e2b__traffic *traffic, e2b__req *req, e2b_error *err) {
  e2b_client *client = traffic->client;
  int64_t now = e2b__now_unix_s(client);
  bool alive = traffic->token && now < traffic->expires, due = !traffic->token || now >= traffic->refresh;
  if (due && !traffic->refreshing && client->now >= traffic->next_try) e2b__traffic_refresh(traffic);
  if (traffic->refreshing && !(alive && now + E2B__TRAFFIC_SPARE_S < traffic->expires)) return E2B_PENDING;
  if (!alive) {
    *err = traffic->failure;
    err->phase = E2B_PHASE_QUEUE;
    return e2b__error_say(err, E2B_ERR_TRAFFIC_TOKEN_EXPIRED, "nothing was sent: the sandbox's traffic token %s, and %.150s",
                          traffic->token ? "has expired" : "is missing", traffic->failure.message);
  }
  e2b__headers_set(&req->headers, E2B_TRAFFIC_TOKEN_HEADER, e2b__str(traffic->token));
  return E2B_OK;
}

/* The header from the application. */
static e2b_err e2b__traffic_ask(const char *sandbox_id, e2b__req *req, e2b_error *err) {
  const e2b_client_config *config = &req->client->config;
  char token[E2B__TRAFFIC_TOKEN_MAX];
  int n = config->traffic_token_provider(config->traffic_token_user, sandbox_id, token, sizeof token);
  e2b_err code = E2B_OK;
  if (n < 0) {
    e2b__error_set(err, E2B_ERR_TRAFFIC_TOKEN_REFRESH, E2B_PHASE_QUEUE, "nothing was sent: traffic_token_provider returned %d", n);
    err->sys_code = n;
    code = err->code;
  } else if ((size_t)n > sizeof token || !e2b__header_value_ok(e2b__str_n(token, (size_t)n))) {
    e2b__error_set(err, E2B_ERR_TRAFFIC_TOKEN_REFRESH, E2B_PHASE_QUEUE,
                   "nothing was sent: what traffic_token_provider gave is too long, or no header value");
    code = err->code;
  } else if (n > 0) {
    e2b__headers_set(&req->headers, E2B_TRAFFIC_TOKEN_HEADER, e2b__str_n(token, (size_t)n));
  }
  e2b__mem_wipe(token, sizeof token);
  return code;
}

static void e2b__traffic_op_cancel(e2b__op *base) {
  e2b__traffic_op *op = (e2b__traffic_op *)base, **at;
  if (!op->traffic) return;
  for (at = &op->traffic->waiting; *at != op; at = &(*at)->next) {}
  *at = op->next;
  op->traffic = NULL;
}

static e2b_phase e2b__traffic_op_phase(e2b__op *base, bool *maybe_done) {
  const e2b__traffic *traffic = ((const e2b__traffic_op *)base)->traffic;
  *maybe_done = false; /* asking for a token changes nothing */
  return traffic ? e2b__req_phase(&traffic->req) : E2B_PHASE_BODY;
}

static const e2b__op_type e2b__traffic_op_type = { e2b__traffic_op_cancel, e2b__traffic_op_cancel, NULL, e2b__traffic_op_phase, NULL };

/* What a handle needs for its token: nothing (*out stays NULL) unless the token is a JWT or `empty`, which means that one has
 * to be fetched. */
static e2b_err e2b__traffic_new(e2b_client *client, const char *sandbox_id, const char *token, bool empty, e2b__traffic **out,
                                e2b_error *err) {
  int64_t now = e2b__now_unix_s(client), issued = 0, expires = 0;
  e2b_err code = e2b__given(token) ? e2b__jwt_read(&client->mem, e2b__str(token), now, &issued, &expires)
                 : empty           ? E2B_OK
                                   : E2B_ERR_PROTOCOL;
  e2b__traffic *traffic;
  if (code == E2B_ERR_PROTOCOL || client->config.debug) return E2B_OK;
  traffic = code ? NULL : (e2b__traffic *)e2b__object_new(client, sizeof *traffic);
  if (!traffic) return e2b__no_memory(err);
  traffic->client = client;
  traffic->sandbox_id = sandbox_id;
  traffic->backoff_s = 1;
  *out = traffic;
  return !e2b__given(token) || e2b__traffic_set(traffic, e2b__str(token), issued, expires) ? E2B_OK : e2b__no_memory(err);
}

static void e2b__traffic_free(e2b__traffic *traffic) {
  if (!traffic) return;
  e2b__req_abort(&traffic->req);
  e2b__req_free(&traffic->req);
  e2b__mem_free_str(&traffic->client->mem, traffic->token);
  e2b__object_free(traffic->client, traffic);
}

#endif

/* ================================================================================================================== */
/* >>>> rpc */
/* ================================================================================================================== */

typedef struct e2b__probe e2b__probe;
typedef struct e2b__input e2b__input;
typedef struct e2b__heartbeat e2b__heartbeat;

struct e2b_sandbox {
  e2b__object object;
  e2b_client *client;
  e2b_sandbox *prev, *next;
  char *id, *template_id, *envd_version, *access_token, *traffic_token, *domain; /* never NULL */
  char *runtime_url;                                                             /* of envd, without a final slash */
  e2b__url runtime;                                                              /* slices of it */
  const char *scheme; /* of the URLs made by the rules: a literal, or the client's */
  char *code_url;     /* of the code interpreter, when e2b_sandbox_attach was told; else NULL */
  uint16_t code_port; /* of the code interpreter */
  e2b_command_handle *handles;
  e2b_file_stream *streams;
  e2b__input *inputs; /* writes to processes, in their order */
#ifndef E2B_NO_WATCH
  e2b_watch_handle *watches;
#endif
  e2b__probe *probe; /* under way, or NULL */
  e2b__heartbeat *heartbeat; /* or NULL */
  bool files_as_form; /* its envd takes uploads as forms only */
  bool json;          /* RPC in JSON: asked for, or its envd refused protobuf */
  bool closing;       /* being freed: nothing new is started */
  bool known;         /* to the control plane, under our key: it was made or connected to there */
  uint16_t runtime_port;
  char *auth_header;  /* "" = none */
  e2b_kvs headers;    /* ours */
#ifndef E2B_NO_TRAFFIC_TOKEN
  e2b__traffic *traffic; /* in JWT mode; traffic_token is then empty */
#endif
};

/* Checks the headers a caller gave; they go on the wire as they are. */
static e2b_err e2b__headers_check(e2b_kvs headers, const char *name, e2b_error *err) {
  size_t i;
  for (i = 0; i < headers.count; i++) {
    e2b_str key = e2b__str(headers.items[i].key), value = e2b__str(headers.items[i].value);
    if (!e2b__header_name_ok(key)) return e2b__invalid(err, name, "has a header name that is empty or not a token");
    if (!e2b__header_value_ok(value)) return e2b__invalid(err, name, "has a header value with a control or non-ASCII character");
    if (e2b__str_eq_nocase(key, "host") || e2b__str_eq_nocase(key, "content-length") || e2b__str_eq_nocase(key, "transfer-encoding") ||
        e2b__str_eq_nocase(key, "connection"))
      return e2b__invalid(err, name, "may not set host, content-length, transfer-encoding or connection");
  }
  return E2B_OK;
}

static e2b_err e2b__call_check(const e2b_call *call, e2b_error *err) {
  if (!call) return E2B_OK;
  if (call->timeout_ms < E2B_TIMEOUT_NONE)
    return e2b__invalid(err, "call.timeout_ms", "is negative and not E2B_TIMEOUT_NONE");
  if (call->idle_ms < E2B_TIMEOUT_NONE) return e2b__invalid(err, "call.idle_ms", "is negative and not E2B_TIMEOUT_NONE");
  return e2b__headers_check(call->headers, "call.headers", err);
}

/* The Unix user of a call, or NULL for the server's default. `content`: for /files, where the Go client has another one. */
static const char *e2b__user(const e2b_sandbox *sandbox, const char *user, bool content) {
  const e2b_client_config *config = &sandbox->client->config;
  if (e2b__given(user)) return user;
  if (e2b__given(sandbox->auth_header) && !content) return NULL; /* it names one */
  if (e2b__given(config->default_user)) return config->default_user;
  if (config->protocol == E2B_PROTOCOL_PRIVATE) return content ? "node" : "root";
  return e2b__version_compare(sandbox->envd_version, "0.4.0") < 0 ? "user" : NULL;
}

/* The user of a call about a process that runs, which needs none: a guess by version is left out, for envd refuses every call
 * in the name of a user that does not exist. */
static const char *e2b__user_of_process(const e2b_sandbox *sandbox, const char *user) {
  const e2b_client_config *config = &sandbox->client->config;
  bool known = e2b__given(user) || e2b__given(config->default_user) || config->protocol == E2B_PROTOCOL_PRIVATE;
  return known ? e2b__user(sandbox, user, false) : NULL;
}

static e2b_err e2b__user_check(const char *user, e2b_error *err) {
  if (user && (!e2b__text_ok(user) || strchr(user, ':'))) return e2b__invalid(err, "user", "has a ':' or a control character");
  return E2B_OK;
}

#ifndef E2B_NO_TRAFFIC_TOKEN
/* Adds the traffic token when the request goes: it may be another one by then. One that is not a JWT is what E2B's edge asks
 * for in front of all ports but envd's. */
static e2b_err e2b__data_gate(e2b__req *req, e2b_error *err) {
  const e2b_sandbox *sandbox = (const e2b_sandbox *)req->gate_user;
  const char *port = e2b__headers_get(&req->headers, "e2b-sandbox-port");
  char envd[8];
  (void)snprintf(envd, sizeof envd, "%u", (unsigned)sandbox->runtime_port);
  if (req->client->config.traffic_token_provider) return e2b__traffic_ask(sandbox->id, req, err);
  if (sandbox->traffic) return e2b__traffic_header(sandbox->traffic, req, err);
  if (port && strcmp(port, envd) != 0)
    e2b__headers_set(&req->headers, E2B_TRAFFIC_TOKEN_HEADER, e2b__str(sandbox->traffic_token));
  return E2B_OK;
}
#endif

/* Has a request to a port of the sandbox wait for its traffic token, unless the caller gave one. */
static void e2b__data_traffic(e2b__req *req, const e2b_sandbox *sandbox) {
#ifndef E2B_NO_TRAFFIC_TOKEN
  if ((!req->client->config.traffic_token_provider && !sandbox->traffic && !e2b__given(sandbox->traffic_token)) ||
      e2b__headers_get(&req->headers, E2B_TRAFFIC_TOKEN_HEADER))
    return;
  req->gate = e2b__data_gate;
  req->gate_user = (void *)(uintptr_t)sandbox;
#else
  E2B__UNUSED(req);
  E2B__UNUSED(sandbox);
#endif
}

/* Headers of any request to a sandbox: ours, in place of them the client's, the handle's, the call's. */
static void e2b__sandbox_headers(e2b__req *req, const e2b_sandbox *sandbox, const e2b_call *call) {
  size_t i;
  e2b__req_common_headers(req, NULL);
  for (i = 0; i < sandbox->headers.count; i++)
    e2b__headers_set(&req->headers, sandbox->headers.items[i].key, e2b__str(sandbox->headers.items[i].value));
  for (i = 0; call && i < call->headers.count; i++)
    e2b__headers_set(&req->headers, call->headers.items[i].key, e2b__str(call->headers.items[i].value));
}

/* Headers of a request to envd: routing, tokens and, unless NULL, the user. */
static void e2b__data_headers(e2b__req *req, const e2b_sandbox *sandbox, const char *user, const e2b_call *call) {
  const e2b_client_config *config = &sandbox->client->config;
  char port[8];
  (void)snprintf(port, sizeof port, "%u", (unsigned)sandbox->runtime_port);
  e2b__sandbox_headers(req, sandbox, call);
  e2b__headers_set(&req->headers, "e2b-sandbox-id", e2b__str(sandbox->id));
  e2b__headers_set(&req->headers, "e2b-sandbox-port", e2b__str(port));
  if (e2b__given(sandbox->access_token)) e2b__headers_set(&req->headers, "x-access-token", e2b__str(sandbox->access_token));
  e2b__data_traffic(req, sandbox);
  if (config->send_api_key_to_sandbox && e2b__given(config->api_key)) e2b__headers_set(&req->headers, "x-api-key", e2b__str(config->api_key));
  if (!user && e2b__given(sandbox->auth_header)) e2b__headers_set(&req->headers, "authorization", e2b__str(sandbox->auth_header));
  if (user) {
    e2b__buf basic;
    e2b__buf_init(&basic, &req->client->mem, 4096);
    e2b__buf_text(&basic, user);
    e2b__buf_byte(&basic, ':');
    if (!basic.err) {
      e2b__buf value;
      e2b__buf_init(&value, &req->client->mem, 8192);
      e2b__buf_text(&value, "Basic ");
      e2b__base64_encode(&value, basic.data, basic.len, true);
      if (value.err) req->headers.text.err = value.err;
      else e2b__headers_set(&req->headers, "authorization", e2b__str_n((const char *)value.data, value.len));
      e2b__buf_free(&value);
    } else {
      req->headers.text.err = basic.err;
    }
    e2b__buf_free(&basic);
  }
}

/* ---- what became of the sandbox: one bounded look after an abnormal end, shared by all who ask ---- */

typedef enum e2b__verdict { E2B__VERDICT_UNKNOWN = 0, E2B__VERDICT_ALIVE, E2B__VERDICT_GONE, E2B__VERDICT_PAUSED } e2b__verdict;

/* Waits for the verdict on a sandbox. Embedded in what failed, with the error it failed with. */
typedef struct e2b__mourner e2b__mourner;
struct e2b__mourner {
  e2b__mourner *next;
  e2b_sandbox *sandbox; /* NULL = not waiting */
  void (*on_verdict)(e2b__mourner *mourner);
  uint64_t deadline;
  bool not_found;       /* the edge's answer to what failed said so */
  e2b__verdict verdict; /* from on_verdict on */
  e2b_error err;
};

struct e2b__probe {
  e2b__object object;
  e2b__req req;
  e2b_sandbox *sandbox;
  e2b__mourner *mourners;
  uint64_t until; /* for all of them */
  bool asked_control_plane;
  bool not_found; /* said the edge, to this or to one of them */
};

#define E2B__PROBE_MS 5000

/* Rewrites the error of a call by what is now known of its sandbox. */
static void e2b__error_apply(e2b_error *err, const e2b_sandbox *sandbox, e2b__verdict verdict) {
  char was[64];
  (void)snprintf(was, sizeof was, "%s", e2b_err_name(err->code));
  if (verdict == E2B__VERDICT_GONE) {
    err->subject = E2B_SUBJECT_SANDBOX;
    e2b__error_say(err, E2B_ERR_SANDBOX_GONE, "sandbox %.64s does not run any more: it was killed or its timeout passed; create a new one "
                   "(seen as %s)", sandbox->id, was);
  } else if (verdict == E2B__VERDICT_PAUSED) {
    err->subject = E2B_SUBJECT_SANDBOX;
    e2b__error_say(err, E2B_ERR_SANDBOX_PAUSED, "sandbox %.64s is paused: e2b_sandbox_connect resumes it (seen as %s)", sandbox->id, was);
  } else {
    e2b__error_add(err, verdict == E2B__VERDICT_ALIVE ? "; the sandbox itself runs" : "; whether the sandbox runs could not be found out");
  }
}

static void e2b__probe_end(e2b__probe *probe, e2b__verdict verdict) {
  e2b_sandbox *sandbox = probe->sandbox;
  sandbox->probe = NULL;
  e2b__req_abort(&probe->req);
  e2b__req_free(&probe->req);
  while (probe->mourners) {
    e2b__mourner *mourner = probe->mourners;
    probe->mourners = mourner->next;
    mourner->sandbox = NULL;
    mourner->verdict = verdict;
    e2b__error_apply(&mourner->err, sandbox, verdict);
    mourner->on_verdict(mourner);
  }
  e2b__object_free(sandbox->client, probe);
}

/* The second question, to the control plane: a paused sandbox and a dead one look alike from the edge. */
static bool e2b__probe_ask_control_plane(e2b__probe *probe) {
  e2b_client *client = probe->sandbox->client;
  e2b__url api;
  if (probe->asked_control_plane || !e2b__given(client->config.api_key) || !e2b__url_parse(client->config.api_url, &api)) return false;
  probe->asked_control_plane = true;
  probe->req.gate = NULL;
  e2b__headers_free(&probe->req.headers);
  e2b__req_common_headers(&probe->req, NULL);
  e2b__headers_set(&probe->req.headers, "x-api-key", e2b__str(client->config.api_key));
  e2b__req_target(&probe->req, &api);
  e2b__buf_text(&probe->req.path, "/sandboxes/");
  e2b__url_escape(&probe->req.path, e2b__str(probe->sandbox->id));
  return e2b__req_submit(&probe->req) == E2B_OK;
}

/* A 404 alone may only mean that a sandbox which was attached is somebody else's, or of no control plane. */
static e2b__verdict e2b__probe_read_info(const e2b__probe *probe) {
  const e2b__req *req = &probe->req;
  e2b__rest_sandbox info;
  e2b__arena arena;
  e2b__verdict verdict = E2B__VERDICT_UNKNOWN;
  if (req->status == 404 && (probe->not_found || probe->sandbox->known)) return E2B__VERDICT_GONE;
  if (req->status != 200) return E2B__VERDICT_UNKNOWN;
  e2b__arena_init(&arena, &req->client->mem, 65536);
  if (e2b__json_decode(&e2b__msg_rest_sandbox, (char *)req->rx.data, req->rx.len, &arena, &info) == E2B_OK) {
    if (e2b__str_eq(info.state, "paused")) verdict = E2B__VERDICT_PAUSED;
    if (e2b__str_eq(info.state, "running")) verdict = E2B__VERDICT_ALIVE;
    if (e2b__str_eq(info.state, "dead")) verdict = E2B__VERDICT_GONE; /* OpenKruise shows them for a while */
  }
  e2b__arena_free(&arena);
  return verdict;
}

/* True for an edge's own words that no such sandbox runs: {"sandboxId","message":"The sandbox was not found","code":502}, or the
 * OpenKruise gateway's "sandbox not found: <id>" and the like. A 502 of any other proxy proves nothing. */
static bool e2b__says_not_found(const e2b__req *req) {
  char text[160];
  e2b__error_excerpt(text, sizeof text, req->rx.data, req->rx.len);
  return req->status == 502 &&
         (strstr(text, "sandbox was not found") || strstr(text, "sandbox not found") || strstr(text, "API Error: healthy sandbox"));
}

static void e2b__mourn_no_more(e2b__mourner *mourner);

static void e2b__probe_on_end(e2b__req *req, const e2b_error *err) {
  e2b__probe *probe = (e2b__probe *)(void *)((uint8_t *)req - offsetof(e2b__probe, req));
  e2b__verdict verdict = E2B__VERDICT_UNKNOWN;
  if (probe->asked_control_plane) {
    if (!err->code) verdict = e2b__probe_read_info(probe);
  } else if (!err->code && req->status == 204) {
    verdict = E2B__VERDICT_ALIVE;
  } else {
    if (!err->code && e2b__says_not_found(req)) verdict = E2B__VERDICT_GONE;
    if (verdict == E2B__VERDICT_GONE) probe->not_found = true;
    if (e2b__probe_ask_control_plane(probe)) return;
  }
  e2b__probe_end(probe, verdict);
}

static const e2b__req_events e2b__probe_events = { NULL, NULL, NULL, e2b__probe_on_end };

/* Lets go of those who cannot wait any longer; the others do, at most until all their time is over. */
static void e2b__probe_on_deadline(e2b__req *req) {
  e2b__probe *probe = (e2b__probe *)(void *)((uint8_t *)req - offsetof(e2b__probe, req));
  e2b_sandbox *sandbox = probe->sandbox;
  uint64_t now = req->client->now, next = (uint64_t)E2B__NEVER;
  e2b__mourner *mourner = probe->mourners;
  while (mourner) {
    if (mourner->deadline > now) {
      next = E2B__MIN(next, mourner->deadline);
      mourner = mourner->next;
      continue;
    }
    e2b__mourn_no_more(mourner);
    mourner->verdict = E2B__VERDICT_UNKNOWN;
    e2b__error_apply(&mourner->err, sandbox, E2B__VERDICT_UNKNOWN);
    mourner->on_verdict(mourner);
    if (sandbox->probe != probe) return; /* it was ended meanwhile */
    next = (uint64_t)E2B__NEVER;
    mourner = probe->mourners;
  }
  req->deadline = next;
  if (!probe->mourners) e2b__probe_end(probe, E2B__VERDICT_UNKNOWN);
}

/* Whether an error leaves open what became of the sandbox. */
static bool e2b__error_is_abnormal(const e2b_error *err) {
  switch (err->code) {
    case E2B_ERR_CLOSED: case E2B_ERR_TRUNCATED: case E2B_ERR_IO: case E2B_ERR_UNAVAILABLE: case E2B_ERR_IDLE_TIMEOUT: return true;
    default: return false;
  }
}

/* Asks what became of the sandbox; on_verdict is called later, within `deadline`. False when there is nothing to ask or no way to:
 * the error in the mourner then stands. */
static bool e2b__mourn(e2b__mourner *mourner, e2b_sandbox *sandbox, uint64_t deadline) {
  e2b_client *client = sandbox->client;
  e2b__probe *probe = sandbox->probe;
  uint64_t now = client->now;
  if (!e2b__error_is_abnormal(&mourner->err) || deadline < now + 20) return false;
  if (!probe) {
    probe = (e2b__probe *)e2b__object_new(client, sizeof *probe);
    if (!probe) return false;
    probe->sandbox = sandbox;
    e2b__req_init(&probe->req, client, &e2b__probe_events);
    probe->req.idempotent = true;
    probe->req.deadline = probe->until = now + E2B__PROBE_MS;
    probe->req.on_deadline = e2b__probe_on_deadline;
    e2b__req_target(&probe->req, &sandbox->runtime);
    e2b__buf_text(&probe->req.path, "/health");
    e2b__data_headers(&probe->req, sandbox, NULL, NULL);
    if (e2b__req_submit(&probe->req) != E2B_OK) {
      e2b__req_free(&probe->req);
      e2b__object_free(client, probe);
      return false;
    }
    sandbox->probe = probe;
  }
  mourner->deadline = E2B__MIN(deadline - 10, probe->until);
  probe->req.deadline = E2B__MIN(probe->req.deadline, mourner->deadline);
  if (mourner->not_found) probe->not_found = true;
  mourner->sandbox = sandbox;
  mourner->next = probe->mourners;
  probe->mourners = mourner;
  return true;
}

static void e2b__mourn_no_more(e2b__mourner *mourner) {
  e2b__mourner **at;
  if (!mourner->sandbox) return;
  for (at = &mourner->sandbox->probe->mourners; *at; at = &(*at)->next) {
    if (*at != mourner) continue;
    *at = mourner->next;
    break;
  }
  mourner->sandbox = NULL;
}

/* ---- messages in either codec ---- */

/* How the messages of one RPC travel: callers fill and get structs. Embedded beside the e2b__req that carries them. */
typedef struct e2b__rpc {
  const e2b__message *request; /* what req->body holds; NULL = not an RPC */
  bool stream;                 /* in envelopes */
  bool json;
} e2b__rpc;

static const char *e2b__rpc_codec_name(const e2b__rpc *rpc) {
  return rpc->json ? "JSON" : "protobuf";
}

static const char *e2b__rpc_content_type(const e2b__rpc *rpc) {
  if (rpc->stream) return rpc->json ? "application/connect+json" : "application/connect+proto";
  return rpc->json ? "application/json" : "application/proto";
}

#define E2B__ENVELOPE_HEAD 5u /* flags, and the length in four bytes */

/* Appends a message. Failures stick in out->err. */
static void e2b__rpc_encode(const e2b__rpc *rpc, const e2b__message *type, const void *message, e2b__buf *out) {
  size_t at = out->len, len;
  if (rpc->stream) e2b__buf_put(out, "\0\0\0\0", E2B__ENVELOPE_HEAD);
  if (rpc->json) e2b__json_encode(type, message, out);
  else e2b__pb_encode(type, message, out);
  if (!rpc->stream || out->err) return;
  len = out->len - at - E2B__ENVELOPE_HEAD;
#if SIZE_MAX > UINT32_MAX
  if (len > UINT32_MAX) out->err = E2B_ERR_LIMIT;
#endif
  out->data[at + 1] = (uint8_t)(len >> 24 & 0xff);
  out->data[at + 2] = (uint8_t)(len >> 16 & 0xff);
  out->data[at + 3] = (uint8_t)(len >> 8 & 0xff);
  out->data[at + 4] = (uint8_t)(len & 0xff);
}

/* Reads a message, without its envelope, into *out: E2B_OK, or *err is filled. JSON is changed in place, text and
 * base64: `data` must lie in a buffer of ours (all received bytes do) and can be read only once. */
static e2b_err e2b__rpc_decode(const e2b__rpc *rpc, const e2b__message *type, const uint8_t *data, size_t len,
                               e2b__arena *arena, void *out, e2b_error *err) {
  e2b_err code = rpc->json ? e2b__json_decode(type, (char *)data, len, arena, out)
                           : e2b__pb_decode(type, data, len, arena, out);
  if (code == E2B_ERR_PROTOCOL)
    e2b__error_say(err, code, "a message of the server is not valid %s", e2b__rpc_codec_name(rpc));
  else if (code == E2B_ERR_LIMIT) e2b__error_say(err, code, "a message of the server is too large");
  else if (code) e2b__error_say(err, code, "no memory for a message of the server");
  return code;
}

/* Makes `message` the body of the request, in the codec of rpc->json. */
static void e2b__rpc_write(const e2b__rpc *rpc, e2b__req *req, const void *message) {
  e2b__headers_set(&req->headers, "content-type", e2b__str(e2b__rpc_content_type(rpc)));
  e2b__headers_set(&req->headers, "connect-protocol-version", e2b__str("1"));
  req->body.len = 0;
  e2b__rpc_encode(rpc, rpc->request, message, &req->body);
  req->body_len = (int64_t)req->body.len;
}

/* Sets up rpc and puts the one message of a unary call, or the first of a stream. Failures stick in the request. */
static void e2b__rpc_begin(e2b__rpc *rpc, bool stream, const e2b_sandbox *sandbox, e2b__req *req,
                           const e2b__message *type, const void *message) {
  rpc->request = type;
  rpc->stream = stream;
  rpc->json = sandbox->json;
  e2b__rpc_write(rpc, req, message);
}

/* Whether the answer says that the server does not know protobuf, and so did nothing, and JSON may be tried. */
static bool e2b__rpc_refused(const e2b__rpc *rpc, const e2b__req *req) {
  return req->status == 415 && rpc->request && !rpc->json && req->client->config.codec == E2B_CODEC_DEFAULT;
}

/* After that: writes the request again as JSON, from its own bytes, and sends it. E2B_PENDING, or why it cannot be. */
static e2b_err e2b__rpc_again_as_json(e2b__rpc *rpc, e2b_sandbox *sandbox, e2b__req *req, e2b_error *err) {
  e2b_client *client = req->client;
  size_t head = rpc->stream ? E2B__ENVELOPE_HEAD : 0;
  e2b__buf old = req->body;
  e2b__arena arena;
  e2b_err code;
  void *message;
  rpc->json = sandbox->json = true;
  e2b__log(&client->config.logger, E2B_LOG_INFO, "sandbox %.64s does not take protobuf (HTTP 415): from now on JSON",
           sandbox->id);
  e2b__arena_init(&arena, &client->mem, SIZE_MAX / 2);
  e2b__buf_init(&req->body, &client->mem, old.max);
  message = e2b__arena_alloc(&arena, rpc->request->size);
  code = arena.err;
  if (message) code = e2b__pb_decode(rpc->request, old.len ? old.data + head : NULL, old.len - head, &arena, message);
  if (!code) {
    e2b__rpc_write(rpc, req, message);
    req->fresh = true; /* who refuses early may close as early; a Start must not be lost to that */
    req->fresh_since = 0;
    code = e2b__req_submit(req);
  }
  e2b__arena_free(&arena);
  e2b__buf_free(&old);
  if (code) return e2b__error_say(err, code, code == E2B_ERR_LIMIT ? "the request is too large" : "out of memory");
  return E2B_PENDING;
}

/* ---- one exchange with envd ---- */

/* A task that talks to a sandbox: on_answer sees only what concerns it, broken ends and 502s first get their verdict. */
typedef struct e2b__data_task {
  e2b__task task;
  e2b__mourner mourner;
  e2b__rpc rpc;                   /* unary RPC: the codec of its messages */
  e2b__task_fn on_success;        /* the answer has status 2xx */
  const e2b__message *answer;     /* unary RPC: how to read it; NULL = its content does not matter */
  e2b__fill_fn fill;              /* unary RPC: how to hand it to the caller's out */
  e2b_err absent;                 /* an error that is an answer: sets *task.flag = false instead (E2B_OK = none) */
} e2b__data_task;

static void e2b__data_verdict(e2b__mourner *mourner) {
  e2b__data_task *data = (e2b__data_task *)(void *)((uint8_t *)mourner - offsetof(e2b__data_task, mourner));
  e2b__op_finish(&data->task.op, &mourner->err);
}

/* The failed end of a data task: looks after the sandbox first when that may explain it. */
static e2b_err e2b__data_lost(e2b__task *task, e2b_error *err) {
  e2b__data_task *data = (e2b__data_task *)task;
  data->mourner.err = *err;
  data->mourner.on_verdict = e2b__data_verdict;
  data->mourner.not_found = e2b__says_not_found(&task->req);
  if (e2b__mourn(&data->mourner, task->op.sandbox, task->op.deadline)) return E2B_PENDING;
  return err->code;
}

static e2b_err e2b__data_answered(e2b__task *task, e2b_error *err) {
  e2b__data_task *data = (e2b__data_task *)task;
  e2b_err code;
  if (task->req.status >= 200 && task->req.status < 300) return data->on_success(task, err);
  if (e2b__rpc_refused(&data->rpc, &task->req))
    return e2b__rpc_again_as_json(&data->rpc, task->op.sandbox, &task->req, err);
  code = e2b__answer_error(&task->req, task->subject, "check the sandbox's access token and the user", err);
  if (code == data->absent && code != E2B_OK) {
    if (task->flag) *task->flag = false;
    return E2B_OK;
  }
  return code == E2B_ERR_UNAVAILABLE ? e2b__data_lost(task, err) : code;
}

static void e2b__data_cancel(e2b__op *op) {
  e2b__mourn_no_more(&((e2b__data_task *)op)->mourner);
  e2b__task_cancel(op);
}

static void e2b__data_release(e2b__op *op) {
  e2b__mourn_no_more(&((e2b__data_task *)op)->mourner);
  e2b__task_release(op);
}

static const e2b__op_type e2b__data_type = { e2b__data_cancel, e2b__data_release, e2b__task_resume, e2b__task_phase, NULL };

/* A task for one request to envd; the caller sets path, headers, body and on_success. `size`: of the struct that starts with an
 * e2b__data_task. */
static void *e2b__data_task_new(e2b_sandbox *sandbox, const e2b_call *call, size_t size, int32_t default_ms,
                                const e2b__req_events *events, e2b_error *err) {
  e2b_client *client = sandbox->client;
  e2b__data_task *data = (e2b__data_task *)e2b__op_new(client, call, &e2b__data_type, size, default_ms, err);
  if (!data) return NULL;
  data->task.op.sandbox = sandbox;
  data->task.on_answer = e2b__data_answered;
  data->task.on_loss = e2b__data_lost;
  e2b__req_init(&data->task.req, client, events);
  data->task.req.idle_ms = call && call->idle_ms ? call->idle_ms : client->config.idle_ms;
  e2b__req_target(&data->task.req, &sandbox->runtime);
  return data;
}

static e2b_err e2b__rpc_answered(e2b__task *task, e2b_error *err) {
  e2b__data_task *data = (e2b__data_task *)task;
  e2b_client *client = task->op.client;
  const char *type = e2b__headers_get(&task->req.answer_headers, "content-type");
  const char *wanted = e2b__rpc_content_type(&data->rpc);
  e2b__arena arena;
  e2b_err code = E2B_OK;
  void *message;
  err->phase = E2B_PHASE_DECODE;
  if (!type || strncmp(type, wanted, strlen(wanted)) != 0) {
    err->maybe_done = !task->req.idempotent;
    return e2b__error_say(err, E2B_ERR_PROTOCOL, "the answer is not %s but %.60s: is this URL really envd?",
                          e2b__rpc_codec_name(&data->rpc), type ? type : "of no type");
  }
  if (task->flag) *task->flag = true;
  if (!data->answer) return E2B_OK;
  if (!data->rpc.json && task->req.open_ended) {
    err->maybe_done = !task->req.idempotent;
    return e2b__error_say(err, E2B_ERR_PROTOCOL, "the answer has neither a content-length nor chunks: one cut short would look complete");
  }
  e2b__arena_init(&arena, &client->mem, (size_t)client->config.max_message_bytes * 4);
  message = e2b__arena_alloc(&arena, data->answer->size);
  code = message ? e2b__rpc_decode(&data->rpc, data->answer, task->req.rx.data, task->req.rx.len, &arena, message, err)
                 : e2b__error_say(err, arena.err, "no memory for the answer");
  if (!code && data->fill && task->out) code = e2b__result_fill(client, data->fill, message, task->out, err);
  e2b__arena_free(&arena);
  return code;
}

/* A 404 that envd did not write says nothing about what was asked for: a router, a gateway or a wrong URL answers with text or
 * HTML. */
static e2b_err e2b__not_envd(e2b_error *err) {
  char was[sizeof err->message];
  memcpy(was, err->message, sizeof was);
  err->subject = E2B_SUBJECT_NONE;
  return e2b__error_say(err, E2B_ERR_SERVICE, "not an answer of envd, check the URL of the sandbox: %s", was);
}

/* As e2b__data_answered, but only envd's own words count as "no such process" or "no such file". */
static e2b_err e2b__rpc_judged(e2b__task *task, e2b_error *err) {
  e2b__data_task *data = (e2b__data_task *)task;
  e2b_err absent = data->absent, code;
  data->absent = E2B_OK;
  code = e2b__data_answered(task, err);
  data->absent = absent;
  if (code == E2B_ERR_NOT_FOUND && err->connect_code == E2B_CONNECT_NONE) return e2b__not_envd(err);
  if (code == E2B_OK || code != absent) return code;
  if (task->flag) *task->flag = false;
  return E2B_OK;
}

/* One unary RPC in a struct of `size` that starts with an e2b__data_task, without its message. user: by e2b__user or
 * e2b__user_of_process. */
static void *e2b__rpc_new_sized(e2b_sandbox *sandbox, const char *service_method, size_t size, int32_t default_ms, const char *user,
                                const e2b_call *call, e2b_error *err) {
  e2b__data_task *data;
  e2b__req *req;
  if (e2b__call_check(call, err) || e2b__user_check(user, err)) return NULL;
  data = (e2b__data_task *)e2b__data_task_new(sandbox, call, size, default_ms, &e2b__task_events, err);
  if (!data) return NULL;
  req = &data->task.req;
  req->method = "POST";
  e2b__buf_text(&req->path, service_method);
  e2b__data_headers(req, sandbox, user, call);
  data->task.on_answer = e2b__rpc_judged;
  data->on_success = e2b__rpc_answered;
  return data;
}

static void e2b__rpc_put(e2b__data_task *data, const e2b__message *type, const void *message) {
  e2b__rpc_begin(&data->rpc, false, data->task.op.sandbox, &data->task.req, type, message);
}

/* One unary RPC. `service_method`: "/process.Process/List". The caller may then set subject, out, flag, answer, fill, absent and
 * idempotent, and ends with e2b__task_run. */
static e2b__data_task *e2b__rpc_new(e2b_sandbox *sandbox, const char *service_method, const e2b__message *type, const void *message,
                                    const char *user, const e2b_call *call, e2b_error *err) {
  int32_t default_ms = sandbox->client->config.request_timeout_ms;
  e2b__data_task *data = (e2b__data_task *)e2b__rpc_new_sized(sandbox, service_method, sizeof *data, default_ms, user, call, err);
  if (data) e2b__rpc_put(data, type, message);
  return data;
}

/* ---- server streams ---- */

typedef struct e2b__envelope {
  bool end;              /* end of stream: data is JSON */
  const uint8_t *data;
  size_t len;
  size_t size;           /* with its head */
} e2b__envelope;

#define E2B__ENVELOPE_END 0x02u

/* Looks for one whole envelope at the front of data. E2B_OK; E2B_PENDING, *need bytes are needed in all; or an error. */
static e2b_err e2b__envelope_get(const uint8_t *data, size_t len, size_t max, e2b__envelope *out, size_t *need) {
  size_t size;
  *need = 5;
  if (len < 5) return E2B_PENDING;
  if (data[0] & ~E2B__ENVELOPE_END) return E2B_ERR_PROTOCOL; /* compressed, which nobody negotiated, or unknown */
  size = (size_t)data[1] << 24 | (size_t)data[2] << 16 | (size_t)data[3] << 8 | data[4];
  if (size > max) return E2B_ERR_LIMIT;
  *need = size + 5;
  if (len < size + 5) return E2B_PENDING;
  out->end = (data[0] & E2B__ENVELOPE_END) != 0;
  out->data = data + 5;
  out->len = size;
  out->size = size + 5;
  return E2B_OK;
}

/* Reads an end-of-stream payload: E2B_OK, or the error in it. */
static e2b_err e2b__envelope_end(e2b_client *client, const e2b__envelope *envelope, e2b_subject subject, e2b_error *err) {
  e2b__connect_end end;
  e2b__arena arena;
  e2b__buf copy;
  e2b_err code;
  e2b__buf_init(&copy, &client->mem, client->config.max_message_bytes);
  e2b__buf_put(&copy, envelope->data, envelope->len);
  e2b__arena_init(&arena, &client->mem, 65536);
  code = copy.err ? copy.err : e2b__json_decode(&e2b__msg_connect_end, (char *)copy.data, copy.len, &arena, &end);
  if (code) {
    e2b__error_say(err, code, "the end of the stream is not valid JSON");
  } else if (end.has_error) {
    char message[200];
    err->connect_code = e2b__connect_code(end.error.code);
    if (!err->connect_code) err->connect_code = E2B_CONNECT_UNKNOWN;
    code = e2b__code_of_connect(err->connect_code);
    if (code == E2B_ERR_NOT_FOUND) err->subject = subject;
    e2b__error_excerpt(message, sizeof message, (const uint8_t *)end.error.message.ptr, end.error.message.len);
    e2b__error_say(err, code, "%s (%s)", message[0] ? message : "the server gave no reason", e2b_connect_code_name(err->connect_code));
  }
  e2b__arena_free(&arena);
  e2b__buf_free(&copy);
  return code;
}
/* ================================================================================================================== */
/* >>>> client */
/* ================================================================================================================== */

E2B_API const char *e2b_err_name(e2b_err code) {
#define E2B__NAME(name) case name: return #name
  switch (code) {
    E2B__NAME(E2B_OK);
    E2B__NAME(E2B_PENDING);
    E2B__NAME(E2B_EOF);
    E2B__NAME(E2B_COMMAND_EXIT);
    E2B__NAME(E2B_CODE_FAILED);
    E2B__NAME(E2B_ERR_INVALID_ARGUMENT);
    E2B__NAME(E2B_ERR_BUSY);
    E2B__NAME(E2B_ERR_BAD_STATE);
    E2B__NAME(E2B_ERR_NOT_BUILT);
    E2B__NAME(E2B_ERR_NO_MEMORY);
    E2B__NAME(E2B_ERR_BUFFER_TOO_SMALL);
    E2B__NAME(E2B_ERR_LIMIT);
    E2B__NAME(E2B_ERR_CANCELED);
    E2B__NAME(E2B_ERR_TIMEOUT);
    E2B__NAME(E2B_ERR_IDLE_TIMEOUT);
    E2B__NAME(E2B_ERR_RESOLVE);
    E2B__NAME(E2B_ERR_CONNECT);
    E2B__NAME(E2B_ERR_TLS);
    E2B__NAME(E2B_ERR_TLS_CERTIFICATE);
    E2B__NAME(E2B_ERR_CLOSED);
    E2B__NAME(E2B_ERR_IO);
    E2B__NAME(E2B_ERR_PROTOCOL);
    E2B__NAME(E2B_ERR_TRUNCATED);
    E2B__NAME(E2B_ERR_PROXY);
    E2B__NAME(E2B_ERR_NOT_FOUND);
    E2B__NAME(E2B_ERR_ALREADY_EXISTS);
    E2B__NAME(E2B_ERR_UNAUTHENTICATED);
    E2B__NAME(E2B_ERR_PERMISSION);
    E2B__NAME(E2B_ERR_RATE_LIMITED);
    E2B__NAME(E2B_ERR_CONFLICT);
    E2B__NAME(E2B_ERR_NOT_ENOUGH_SPACE);
    E2B__NAME(E2B_ERR_UNAVAILABLE);
    E2B__NAME(E2B_ERR_SANDBOX_GONE);
    E2B__NAME(E2B_ERR_SANDBOX_PAUSED);
    E2B__NAME(E2B_ERR_SERVICE);
    E2B__NAME(E2B_ERR_TRAFFIC_TOKEN_EXPIRED);
    E2B__NAME(E2B_ERR_TRAFFIC_TOKEN_REFRESH);
  }
#undef E2B__NAME
  return "unknown";
}

E2B_API const char *e2b_phase_name(e2b_phase phase) {
  static const char *const names[] = {
    "none", "queue", "resolve", "connect", "tls", "send", "headers", "body", "decode"
  };
  return (int)phase >= 0 && (size_t)phase < E2B__COUNT(names) ? names[phase] : "unknown";
}

/* ---- configuration: resolved first, then checked, then copied ---- */

static const char *e2b__config_env(const e2b_client_config *config, const char *name) {
  const char *value = config->no_env ? NULL : getenv(name);
  return e2b__given(value) ? value : NULL;
}

/* The member, else the first environment variable that is set, else NULL. */
static const char *e2b__config_text(const e2b_client_config *config, const char *member, const char *env,
                                    const char *env2) {
  const char *value = e2b__given(member) ? member : e2b__config_env(config, env);
  return value || !env2 ? value : e2b__config_env(config, env2);
}

static e2b_protocol e2b__config_protocol(const e2b_client_config *config) {
  const char *env = e2b__config_env(config, "PROTOCOL");
  if (config->protocol != E2B_PROTOCOL_DEFAULT) return config->protocol;
  return env && strcmp(env, "private") == 0 ? E2B_PROTOCOL_PRIVATE : E2B_PROTOCOL_NATIVE;
}

/* Texts still belong to the caller or the environment. A service named by members (domain, scheme, protocol) is not
 * redirected by URLs of the environment. */
static void e2b__config_resolve_service(e2b_client_config *config) {
  bool named = e2b__given(config->domain) || e2b__given(config->scheme) || config->protocol != E2B_PROTOCOL_DEFAULT;
  const char *debug = e2b__config_env(config, "E2B_DEBUG");
  config->api_key = e2b__config_text(config, config->api_key, "E2B_API_KEY", "X_API_KEY");
  config->access_token = e2b__config_text(config, config->access_token, "X_ACCESS_TOKEN", NULL);
  config->protocol = e2b__config_protocol(config);
  config->scheme = e2b__config_text(config, config->scheme, "SCHEME", NULL);
  if (!config->scheme) config->scheme = "https";
  config->domain = e2b__config_text(config, config->domain, "E2B_DOMAIN", NULL);
  if (!config->domain) config->domain = E2B_DEFAULT_DOMAIN;
  if (!e2b__given(config->api_url)) config->api_url = named ? NULL : e2b__config_env(config, "E2B_API_URL");
  if (!e2b__given(config->sandbox_base_url)) config->sandbox_base_url = NULL;
  if (!e2b__given(config->sandbox_url)) config->sandbox_url = named ? NULL : e2b__config_env(config, "E2B_SANDBOX_URL");
  if (debug && e2b__str_eq_nocase(e2b__str(debug), "true")) config->debug = true;
  if (!e2b__given(config->code_interpreter_base_url)) config->code_interpreter_base_url = NULL;
  if (!e2b__given(config->default_user)) config->default_user = NULL;
  if (!e2b__given(config->auth_header)) config->auth_header = NULL;
  if (!e2b__given(config->user_agent)) config->user_agent = "e2b.h/" E2B_VERSION;
}

/* Limits: default, lowest and highest. What multiplies them in 32 bits relies on the highest. */
typedef struct e2b__config_limit {
  const char *name;
  size_t offset;
  uint32_t standard, low, high;
} e2b__config_limit;

#define E2B__LIMIT(member, standard, low, high) { #member, offsetof(e2b_client_config, member), standard, low, high }
static const e2b__config_limit e2b__config_limits[] = {
  E2B__LIMIT(max_ops, 65536u, 1u, 65536u), /* their number is half of an operation's id */
  E2B__LIMIT(max_connections, 1024u, 1u, 65536u),
  E2B__LIMIT(max_idle_connections, 64u, 1u, 65536u),
  E2B__LIMIT(idle_connection_ms, 60000u, 1u, 0x7fffffffu),
  E2B__LIMIT(io_buffer_size, 16384u, 512u, 0x1000000u),
  E2B__LIMIT(max_header_bytes, 65536u, 256u, 0x1000000u),
  E2B__LIMIT(max_message_bytes, 0x1000000u, 1u, 0x20000000u),
  E2B__LIMIT(stream_buffer_size, 65536u, 1u, 0x20000000u),
  E2B__LIMIT(max_stream_window, 16u << 20, 1u, 0x20000000u),
};
#undef E2B__LIMIT

static void e2b__config_resolve_tls(e2b_tls_config *tls) {
  tls->ca_pem_len = e2b__tls_input_len(tls->ca_pem, tls->ca_pem_len);
  tls->client_cert_pem_len = e2b__tls_input_len(tls->client_cert_pem, tls->client_cert_pem_len);
  tls->client_key_pem_len = e2b__tls_input_len(tls->client_key_pem, tls->client_key_pem_len);
  if (!tls->ca_pem_len) tls->ca_pem = NULL;
  if (!tls->client_cert_pem_len) tls->client_cert_pem = NULL;
  if (!tls->client_key_pem_len) tls->client_key_pem = NULL;
  if (!e2b__given(tls->ca_file)) tls->ca_file = NULL;
  if (!e2b__given(tls->ca_path)) tls->ca_path = NULL;
}

static void e2b__config_resolve_numbers(e2b_client_config *config) {
  size_t i;
  for (i = 0; i < E2B__COUNT(e2b__config_limits); i++) {
    uint32_t *value = (uint32_t *)(void *)((uint8_t *)config + e2b__config_limits[i].offset);
    if (!*value) *value = e2b__config_limits[i].standard;
  }
  if (!config->max_connections_per_host) config->max_connections_per_host = config->max_connections;
  if (!config->max_result_bytes) config->max_result_bytes = 0x4000000u;
  if (!config->runtime_port) config->runtime_port = 49983;
  if (!config->code_interpreter_port) config->code_interpreter_port = 49999;
  if (!config->request_timeout_ms) config->request_timeout_ms = 60000;
  if (!config->connect_timeout_ms) config->connect_timeout_ms = 10000;
  if (!config->idle_ms) config->idle_ms = 60000;
  if (!config->keepalive_interval_s) config->keepalive_interval_s = 50;
  e2b__config_resolve_tls(&config->tls);
}

static e2b_err e2b__config_check_numbers(const e2b_client_config *config, e2b_error *err) {
  size_t i;
  for (i = 0; i < E2B__COUNT(e2b__config_limits); i++) {
    const e2b__config_limit *limit = &e2b__config_limits[i];
    uint32_t value = *(const uint32_t *)(const void *)((const uint8_t *)config + limit->offset);
    char why[64];
    if (value >= limit->low && value <= limit->high) continue;
    (void)snprintf(why, sizeof why, "must be %lu to %lu", (unsigned long)limit->low, (unsigned long)limit->high);
    return e2b__invalid(err, limit->name, why);
  }
  if (config->request_timeout_ms < E2B_TIMEOUT_NONE)
    return e2b__invalid(err, "request_timeout_ms", "is negative and not E2B_TIMEOUT_NONE");
  if (config->idle_ms < E2B_TIMEOUT_NONE) return e2b__invalid(err, "idle_ms", "is negative and not E2B_TIMEOUT_NONE");
  if (config->connect_timeout_ms < 0) return e2b__invalid(err, "connect_timeout_ms", "is negative");
  if (config->keepalive_interval_s < 1 || config->keepalive_interval_s > 3600)
    return e2b__invalid(err, "keepalive_interval_s", "must be 1 to 3600");
  return E2B_OK;
}

/* host or host:port. */
static bool e2b__domain_ok(const char *domain) {
  char text[300];
  e2b__url url;
  int len = snprintf(text, sizeof text, "http://%s", domain);
  return len > 0 && (size_t)len < sizeof text && !strchr(domain, '/') && e2b__url_parse(text, &url);
}

static bool e2b__domain_is_ip(const char *domain) {
  return domain[0] == '[' || e2b__host_is_ip(e2b__str_n(domain, strcspn(domain, ":")));
}

/* What is wrong with a host or URL. */
static const char *e2b__config_host_fault(const char *text, const char *fault) {
  for (; *text; text++)
    if ((uint8_t)*text >= 0x80) return "has letters that are not ASCII: write the name as DNS has it (xn--...)";
  return fault;
}

static e2b_err e2b__config_check_url(const char *url, const char *name, e2b_error *err) {
  e2b__url parts;
  if (!url || e2b__url_parse(url, &parts)) return E2B_OK;
  return e2b__invalid(err, name, e2b__config_host_fault(url, "is not of the form http(s)://host[:port][/path]"));
}

static e2b_err e2b__config_check_value(const char *value, const char *name, e2b_error *err) {
  if (!value || e2b__header_value_ok(e2b__str(value))) return E2B_OK;
  return e2b__invalid(err, name, "has a control character (a line end?) or one that is not ASCII");
}

/* Names the environment variable too: the mistake may be there. */
static e2b_err e2b__config_check_service(const e2b_client_config *config, e2b_error *err) {
  e2b_err code;
  if ((code = e2b__config_check_value(config->api_key, "api_key (or E2B_API_KEY, X_API_KEY)", err)) != E2B_OK ||
      (code = e2b__config_check_value(config->access_token, "access_token (or X_ACCESS_TOKEN)", err)) != E2B_OK ||
      (code = e2b__config_check_value(config->user_agent, "user_agent", err)) != E2B_OK ||
      (code = e2b__config_check_value(config->auth_header, "auth_header", err)) != E2B_OK ||
      (code = e2b__config_check_url(config->api_url, "api_url (or E2B_API_URL)", err)) != E2B_OK ||
      (code = e2b__config_check_url(config->sandbox_base_url, "sandbox_base_url", err)) != E2B_OK ||
      (code = e2b__config_check_url(config->sandbox_url, "sandbox_url (or E2B_SANDBOX_URL)", err)) != E2B_OK ||
      (code = e2b__config_check_url(config->code_interpreter_base_url, "code_interpreter_base_url", err)) != E2B_OK ||
      (code = e2b__headers_check(config->headers, "headers", err)) != E2B_OK)
    return code;
  if (config->default_user && (!e2b__text_ok(config->default_user) || strchr(config->default_user, ':')))
    return e2b__invalid(err, "default_user", "has a ':' or a control character");
  if (config->protocol != E2B_PROTOCOL_NATIVE && config->protocol != E2B_PROTOCOL_PRIVATE)
    return e2b__invalid(err, "protocol", "is not one of e2b_protocol");
  if (config->http_version > 2) return e2b__invalid(err, "http_version", "is not 0, 1 or 2");
#if defined(E2B_NO_HTTP2)
  if (config->http_version == 2) return e2b__fail(err, E2B_ERR_NOT_BUILT, "http_version 2 is not in this build (E2B_NO_HTTP2)");
#endif
  if (config->codec != E2B_CODEC_DEFAULT && config->codec != E2B_CODEC_PROTOBUF && config->codec != E2B_CODEC_JSON)
    return e2b__invalid(err, "codec", "is not one of e2b_codec");
  if (strcmp(config->scheme, "https") != 0 && strcmp(config->scheme, "http") != 0)
    return e2b__invalid(err, "scheme (or SCHEME)", "must be \"https\" or \"http\"");
#ifdef E2B_NO_TRAFFIC_TOKEN
  if (config->traffic_token_provider)
    return e2b__fail(err, E2B_ERR_NOT_BUILT, "traffic_token_provider is set, but this build has E2B_NO_TRAFFIC_TOKEN");
#endif
  if (!e2b__domain_ok(config->domain))
    return e2b__invalid(err, "domain (or E2B_DOMAIN)",
                        e2b__config_host_fault(config->domain, "is not a host or host:port, without scheme and path"));
  if (!config->api_url && config->protocol == E2B_PROTOCOL_NATIVE && e2b__domain_is_ip(config->domain))
    return e2b__invalid(err, "domain (or E2B_DOMAIN)",
                        "is an address, under which there is no api.<domain>: set api_url and "
                        "sandbox_url, or protocol to E2B_PROTOCOL_PRIVATE");
  return E2B_OK;
}

static e2b_err e2b__config_check_pem(const char *data, size_t data_len, const char *name, e2b_error *err) {
  static const char begin[] = "-----BEGIN ";
  size_t i, len = sizeof begin - 1;
  if (!data || (uint8_t)data[0] == 0x30) return E2B_OK; /* DER */
  for (i = 0; i + len <= data_len; i++)
    if (memcmp(data + i, begin, len) == 0) return E2B_OK;
  return e2b__invalid(err, name, "holds neither PEM nor DER");
}

static e2b_err e2b__config_check_tls(const e2b_tls_config *tls, const e2b_transport *transport, e2b_error *err) {
  bool demands = tls->client_cert_pem || tls->pin_count || tls->min_tls13;
  e2b_err code;
  code = e2b__config_check_pem(tls->ca_pem, tls->ca_pem_len, "tls.ca_pem", err);
  if (!code) code = e2b__config_check_pem(tls->client_cert_pem, tls->client_cert_pem_len, "tls.client_cert_pem", err);
  if (!code) code = e2b__config_check_pem(tls->client_key_pem, tls->client_key_pem_len, "tls.client_key_pem", err);
  if (code) return code;
  if (!tls->client_cert_pem != !tls->client_key_pem)
    return e2b__invalid(err, tls->client_cert_pem ? "tls.client_key_pem" : "tls.client_cert_pem",
                        "is missing: a client certificate needs its key");
  if (tls->pin_count && (!tls->pin_sha256 || tls->pin_count > 65536))
    return e2b__invalid(err, "tls.pin_sha256", "must be pin_count times 32 bytes");
  if (transport && (transport->flags & E2B_TRANSPORT_HAS_TLS) && demands)
    return e2b__invalid(err, "tls",
                        "asks for pins, a client certificate or TLS 1.3, but the transport does TLS itself");
  if (tls->min_tls13 && !E2B__TLS13) {
    (void)e2b__invalid(err, "tls.min_tls13", "needs an mbedTLS with TLS 1.3, and this one has none");
    if (err) err->code = E2B_ERR_NOT_BUILT;
    return E2B_ERR_NOT_BUILT;
  }
  return E2B_OK;
}

static e2b_err e2b__config_check_platform(const e2b_client_config *config, e2b_error *err) {
  const e2b_allocator *a = &config->allocator;
  const e2b_transport *t = config->transport;
  if ((a->alloc_fn != NULL) != (a->realloc_fn != NULL) || (a->alloc_fn != NULL) != (a->free_fn != NULL))
    return e2b__invalid(err, "allocator", "must have all three functions or none");
  if (t && (!t->open_fn || !t->ready_fn || !t->rx_fn || !t->tx_fn || !t->shut_fn))
    return e2b__invalid(err, "transport", "lacks one of open_fn, ready_fn, rx_fn, tx_fn, shut_fn");
  return e2b__config_check_tls(&config->tls, t, err);
}

/* The network. */

static e2b_err e2b__config_hosts(e2b__net *net, const e2b_client_config *config, e2b_error *err) {
  size_t i;
  if (config->host_count && !config->hosts) return e2b__invalid(err, "hosts", "is NULL, but host_count is not 0");
  if (config->host_count > SIZE_MAX / sizeof *net->hosts) return e2b__invalid(err, "host_count", "is too large");
  if (!config->host_count) return E2B_OK;
  net->hosts = (e2b__host *)e2b__mem_alloc(net->mem, config->host_count * sizeof *net->hosts);
  if (!net->hosts) return e2b__no_memory(err);
  net->host_count = config->host_count;
  for (i = 0; i < config->host_count; i++) {
    e2b_str name;
    const char *wrong = e2b__host_read(&config->hosts[i], &name, &net->hosts[i]);
    if (wrong) return e2b__invalid(err, "hosts", wrong);
    net->hosts[i].name = e2b__mem_dup(net->mem, name.ptr, name.len);
    if (!net->hosts[i].name) return e2b__no_memory(err);
  }
  return E2B_OK;
}

static e2b_err e2b__config_proxy(e2b__net *net, const char *url, const char *name, e2b__proxy *out, e2b_error *err) {
  e2b_err code = url ? e2b__proxy_parse(net->mem, url, out) : E2B_OK;
  if (code == E2B_ERR_NO_MEMORY) return e2b__no_memory(err);
  if (code == E2B_OK) return E2B_OK;
  return e2b__invalid(err, name,
                      "is not http://[user:password@]host[:port], the only kind of proxy there is support for");
}

/* The first of two variables that is set. */
static const char *e2b__config_env2(const e2b_client_config *config, const char *name, const char *other) {
  const char *value = e2b__config_env(config, name);
  return value ? value : e2b__config_env(config, other);
}

/* HTTP_PROXY in upper case is never looked at: under CGI it is a header of whoever sent the request ("httpoxy").
 * Windows does not tell the cases apart. */
static const char *e2b__config_env_http_proxy(const e2b_client_config *config) {
  bool cgi = E2B__WIN32 && getenv("REQUEST_METHOD");
  return cgi ? NULL : e2b__config_env(config, "http_proxy");
}

static e2b_err e2b__config_proxies(e2b__net *net, const e2b_client_config *config, e2b_error *err) {
  const e2b_transport *t = config->transport;
  bool given = e2b__given(config->proxy_url), env = !given && !t;
  const char *all = env ? e2b__config_env2(config, "all_proxy", "ALL_PROXY") : NULL;
  const char *https = env ? e2b__config_env2(config, "https_proxy", "HTTPS_PROXY") : config->proxy_url;
  const char *http = env ? e2b__config_env_http_proxy(config) : config->proxy_url;
  const char *except = e2b__given(config->no_proxy) ? config->no_proxy : NULL;
  e2b_err code;
  if (!given && !env) return E2B_OK;
  if (given && t && (t->flags & E2B_TRANSPORT_HAS_TLS))
    return e2b__invalid(err, "proxy_url", "cannot be used with a transport that does TLS itself");
  if (env && !except) except = e2b__config_env2(config, "no_proxy", "NO_PROXY");
  net->proxies.loopback_direct = env;
  code = e2b__config_proxy(net, https ? https : all, given ? "proxy_url" : https ? "HTTPS_PROXY" : "ALL_PROXY",
                           &net->proxies.https, err);
  if (code == E2B_OK)
    code = e2b__config_proxy(net, http ? http : all, given ? "proxy_url" : http ? "http_proxy" : "ALL_PROXY",
                             &net->proxies.http, err);
  if (code != E2B_OK || !except) return code;
  net->proxies.except = e2b__mem_dup(net->mem, except, strlen(except));
  return net->proxies.except ? E2B_OK : e2b__no_memory(err);
}

/* The texts of the configuration that the client owns copies of, besides headers and what has a length. */
static const size_t e2b__config_texts[] = {
  offsetof(e2b_client_config, api_url),      offsetof(e2b_client_config, sandbox_base_url),
  offsetof(e2b_client_config, sandbox_url),  offsetof(e2b_client_config, code_interpreter_base_url),
  offsetof(e2b_client_config, api_key),
  offsetof(e2b_client_config, access_token), offsetof(e2b_client_config, domain),
  offsetof(e2b_client_config, scheme),       offsetof(e2b_client_config, default_user),
  offsetof(e2b_client_config, user_agent),   offsetof(e2b_client_config, tls) + offsetof(e2b_tls_config, ca_file),
  offsetof(e2b_client_config, tls) + offsetof(e2b_tls_config, ca_path),
  offsetof(e2b_client_config, auth_header),
};
#define E2B__CONFIG_URLS 4 /* the first of them; kept without a final slash, for paths are appended to them */

static const char **e2b__config_text_at(e2b_client_config *config, size_t i) {
  return (const char **)(void *)((uint8_t *)config + e2b__config_texts[i]);
}

static void e2b__headers_free_copy(e2b__mem *mem, e2b_kvs *copy) {
  e2b_kv *headers = (e2b_kv *)copy->items;
  size_t i;
  for (i = 0; headers && i < copy->count; i++) {
    e2b__mem_free_str(mem, (char *)headers[i].key);
    e2b__mem_free_str(mem, (char *)headers[i].value);
  }
  e2b__mem_free(mem, headers, copy->count * sizeof *headers);
}

/* Frees a copy of bytes. */
static void e2b__config_free_bytes(e2b__mem *mem, const void *data, size_t len) {
  e2b__mem_free(mem, (void *)(uintptr_t)data, len + 1);
}

static void e2b__config_free(e2b__mem *mem, e2b_client_config *config) {
  size_t i;
  for (i = 0; i < E2B__COUNT(e2b__config_texts); i++) e2b__mem_free_str(mem, (char *)*e2b__config_text_at(config, i));
  e2b__headers_free_copy(mem, &config->headers);
  e2b__config_free_bytes(mem, config->tls.ca_pem, config->tls.ca_pem_len);
  e2b__config_free_bytes(mem, config->tls.client_cert_pem, config->tls.client_cert_pem_len);
  e2b__config_free_bytes(mem, config->tls.client_key_pem, config->tls.client_key_pem_len);
  e2b__config_free_bytes(mem, config->tls.pin_sha256, config->tls.pin_count * E2B__TLS_PIN_LEN);
}

static bool e2b__headers_copy(e2b__mem *mem, e2b_kvs *out) {
  const e2b_kv *from = out->items;
  e2b_kv *to = out->count ? (e2b_kv *)e2b__mem_alloc(mem, out->count * sizeof *to) : NULL;
  size_t i;
  out->items = to;
  for (i = 0; to && i < out->count; i++) {
    const char *value = from[i].value ? from[i].value : "";
    to[i].key = e2b__mem_dup(mem, from[i].key, strlen(from[i].key));
    to[i].value = e2b__mem_dup(mem, value, strlen(value));
    if (!to[i].key || !to[i].value) return false;
  }
  return to || out->count == 0;
}

static bool e2b__config_copy_tls(e2b__mem *mem, e2b_tls_config *tls) {
  const char *pem = tls->ca_pem, *cert = tls->client_cert_pem, *key = tls->client_key_pem;
  const uint8_t *pins = tls->pin_count ? tls->pin_sha256 : NULL;
  size_t pins_len = tls->pin_count * E2B__TLS_PIN_LEN;
  if (pem) tls->ca_pem = e2b__mem_dup(mem, pem, tls->ca_pem_len);
  if (cert) tls->client_cert_pem = e2b__mem_dup(mem, cert, tls->client_cert_pem_len);
  if (key) tls->client_key_pem = e2b__mem_dup(mem, key, tls->client_key_pem_len);
  tls->pin_sha256 = pins ? (const uint8_t *)e2b__mem_dup(mem, (const char *)pins, pins_len) : NULL;
  return (!pem || tls->ca_pem) && (!cert || tls->client_cert_pem) && (!key || tls->client_key_pem) &&
         (!pins || tls->pin_sha256);
}

/* Replaces the texts by copies. On failure e2b__config_free frees those that were made. */
static bool e2b__config_copy(e2b__mem *mem, e2b_client_config *config) {
  bool ok = true;
  size_t i;
  for (i = 0; i < E2B__COUNT(e2b__config_texts); i++) {
    const char **text = e2b__config_text_at(config, i);
    size_t len = *text ? strlen(*text) : 0;
    if (!*text) continue;
    while (i < E2B__CONFIG_URLS && (*text)[len - 1] == '/') len--;
    *text = e2b__mem_dup(mem, *text, len);
    if (!*text) ok = false;
  }
  if (!e2b__config_copy_tls(mem, &config->tls)) ok = false;
  if (!e2b__headers_copy(mem, &config->headers)) ok = false;
  return ok;
}

/* The control plane by the rules of the protocol, when it is not given. */
static bool e2b__config_derive_api_url(e2b__mem *mem, e2b_client_config *config) {
  bool private_protocol = config->protocol == E2B_PROTOCOL_PRIVATE;
  char url[320]; /* domains have at most 253 characters and a port */
  if (config->api_url) return true;
  (void)snprintf(url, sizeof url, "%s://%s%s%s", config->scheme, private_protocol ? "" : "api.", config->domain,
                 private_protocol ? "/kruise/api" : "");
  config->api_url = e2b__mem_dup(mem, url, strlen(url));
  return config->api_url != NULL;
}

/* Whether the control plane is OpenKruise's, whose lists are asked for in another way. */
static bool e2b__config_is_kruise(const e2b_client_config *config) {
  size_t len = strlen(config->api_url);
  return config->protocol == E2B_PROTOCOL_PRIVATE || (len >= 11 && strcmp(config->api_url + len - 11, "/kruise/api") == 0);
}

/* ---- the client itself ---- */

/* Frees what e2b_client_create made; operations, sandboxes and connections are gone already. */
static void e2b__client_destroy(e2b_client *client) {
  e2b__mem mem = client->mem;
  e2b__net_free(&client->net);
  e2b__waker_release(client->net.waker);
  e2b__mem_free(&client->mem, client->io, client->config.io_buffer_size);
  e2b__mem_free(&client->mem, client->slots, client->slot_count * sizeof *client->slots);
  e2b__mem_free(&client->mem, client->polls, client->poll_cap * sizeof *client->polls);
  e2b__config_free(&client->mem, &client->config);
  e2b__mem_free(&mem, client, sizeof *client);
}

/* What https servers are offered, best first. */
static void e2b__config_alpn(const e2b_client_config *config, const char **alpn) {
#if !defined(E2B_NO_HTTP2)
  if (config->http_version != 1) *alpn++ = "h2";
#endif
  if (config->http_version != 2) *alpn++ = "http/1.1";
  *alpn = NULL;
}

/* Everything that needs memory or the system. */
static e2b_err e2b__client_build(e2b_client *client, e2b_error *err) {
  e2b_client_config *config = &client->config;
  int sys_code = 0;
  e2b_err code;
  client->net.mem = &client->mem;
  client->net.logger = &config->logger;
  client->net.transport = config->transport ? config->transport : e2b__net_transport();
  e2b__config_alpn(config, client->net.alpn);
  client->net.no_env = config->no_env;
  if (!e2b__config_copy(&client->mem, config) || !e2b__config_derive_api_url(&client->mem, config))
    return e2b__no_memory(err);
  if ((code = e2b__config_hosts(&client->net, config, err)) != E2B_OK ||
      (code = e2b__config_proxies(&client->net, config, err)) != E2B_OK)
    return code;
  config->hosts = NULL; /* the caller's */
  config->proxy_url = config->no_proxy = NULL;
  config->host_count = 0;
  client->net.tls_config = config->tls;
  client->io = (uint8_t *)e2b__mem_alloc(&client->mem, config->io_buffer_size);
  if (!client->io) return e2b__no_memory(err);
  client->net.waker = e2b__waker_new(&sys_code);
  if (client->net.waker) return E2B_OK;
  if (sys_code == 0) return e2b__no_memory(err);
  e2b__error_set(err, E2B_ERR_IO, E2B_PHASE_NONE, "no wake-up pipe (system code %d): too many open files?", sys_code);
  if (err) err->sys_code = sys_code;
  return E2B_ERR_IO;
}

E2B_API e2b_client *e2b_client_create(const e2b_client_config *config, e2b_error *err) {
  e2b_client_config resolved;
  e2b__mem mem;
  e2b_client *client;
  if (err) memset(err, 0, sizeof *err);
  memset(&resolved, 0, sizeof resolved);
  if (config) resolved = *config;
  e2b__config_resolve_service(&resolved);
  e2b__config_resolve_numbers(&resolved);
  if (e2b__config_check_platform(&resolved, err) || e2b__config_check_service(&resolved, err) ||
      e2b__config_check_numbers(&resolved, err))
    return NULL;
  e2b__mem_init(&mem, &resolved.allocator);
  client = (e2b_client *)e2b__mem_alloc(&mem, sizeof *client);
  if (!client) {
    (void)e2b__no_memory(err);
    return NULL;
  }
  client->mem = mem;
  client->config = resolved;
  if (e2b__client_build(client, err)) {
    e2b__client_destroy(client);
    return NULL;
  }
  return client;
}

/* Ends an operation because what it belongs to goes away. Its result is delivered as any other. */
static void e2b__op_abandon(e2b__op *op, const char *why) {
  e2b_error err;
  bool maybe_done;
  e2b_phase phase = e2b__op_stands(op, &maybe_done);
  e2b__error_set(&err, E2B_ERR_CANCELED, phase, "%s", why);
  err.maybe_done = maybe_done;
  e2b__op_kill(op, &err);
}

E2B_API void e2b_client_free(e2b_client *client) {
  e2b__conn *conn;
  uint32_t i;
  if (!client) return;
  if (client->in_turn) {
    e2b__log(&client->config.logger, E2B_LOG_ERROR, "e2b_client_free inside a callback does nothing");
    return;
  }
  client->closing = client->in_turn = true;
  for (i = 0; i < client->slot_count; i++)
    if (client->slots[i].op) e2b__op_abandon(client->slots[i].op, "the client was freed");
  e2b__ops_deliver(client);
  while (client->sandboxes) e2b_sandbox_free(client->sandboxes);
  for (i = 0; i < client->slot_count; i++)
    if (client->slots[i].op) e2b__op_release(client->slots[i].op);
  for (conn = client->conns; conn; conn = conn->next) e2b__conn_close(conn);
  client->in_turn = false;
  e2b__bury_dead(client);
  E2B_ASSERT(!client->reqs);
  e2b__client_destroy(client);
}

E2B_API void e2b_client_get_stats(const e2b_client *client, e2b_client_stats *out) {
  const e2b__req *req;
  if (!out) return;
  memset(out, 0, sizeof *out);
  if (!client) return;
  *out = client->stats;
  out->mem_now = client->mem.now;
  out->mem_peak = client->mem.peak;
  out->allocs = client->mem.allocs;
  out->ops_active = client->op_count;
  out->connections_open = client->conn_count;
  out->connections_idle = client->idle_count;
  for (req = client->reqs; req; req = req->next)
    if (req->state == E2B__REQ_ACTIVE) out->streams_open++;
}

/* ---- URLs ---- */

/* The end of the functions that give out a text: cuts it to the caller's storage, frees it, returns its length. */
static size_t e2b__text_out(e2b__buf *text, char *out, size_t cap) {
  size_t len = text->err ? 0 : text->len, copied = cap ? E2B__MIN(len, cap - 1) : 0;
  if (copied) memcpy(out, text->data, copied);
  if (cap) out[copied] = 0;
  e2b__buf_free(text);
  return len;
}

/* Host, and path with the private protocol, of a port of a sandbox. */
static void e2b__put_sandbox_host(e2b__buf *out, const e2b_client_config *config, const char *id, const char *domain,
                                  uint16_t port) {
  bool private_protocol = config->protocol == E2B_PROTOCOL_PRIVATE;
  if (private_protocol) {
    e2b__buf_text(out, domain);
    e2b__buf_text(out, "/kruise/");
    e2b__url_escape(out, e2b__str(id));
    e2b__buf_byte(out, '/');
    e2b__buf_u64(out, port);
  } else {
    e2b__buf_u64(out, port);
    e2b__buf_byte(out, '-');
    e2b__url_escape(out, e2b__str(id));
    e2b__buf_byte(out, '.');
    e2b__buf_text(out, domain);
  }
}

/* E2B's own domains have one host for all sandboxes, told apart by the routing headers: connections are shared. */
static bool e2b__domain_is_official(const char *domain) {
  static const char *const official[] = { "e2b.app", "e2b.dev", "e2b.pro", "e2b-staging.dev" };
  size_t i;
  for (i = 0; i < E2B__COUNT(official); i++)
    if (e2b__str_eq_nocase(e2b__str(domain), official[i])) return true;
  return false;
}

/* The URL of envd, by the rules of the client. */
static void e2b__put_runtime_url(e2b__buf *out, const e2b_client_config *config, const char *id, const char *domain) {
  if (config->sandbox_base_url) {
    e2b__buf_text(out, config->sandbox_base_url);
    e2b__buf_byte(out, '/');
    e2b__url_escape(out, e2b__str(id));
  } else if (config->sandbox_url) {
    e2b__buf_text(out, config->sandbox_url);
  } else if (config->protocol == E2B_PROTOCOL_NATIVE && e2b__domain_is_official(domain)) {
    e2b__buf_text(out, "https://sandbox.");
    e2b__buf_text(out, domain);
  } else {
    e2b__buf_text(out, config->scheme);
    e2b__buf_text(out, "://");
    e2b__put_sandbox_host(out, config, id, domain, config->runtime_port);
  }
}

#ifndef E2B_NO_CODE_INTERPRETER
/* The URL of the code interpreter. Always the sandbox's own host, never one for all: a run is interrupted by closing its
 * connection. */
static void e2b__put_code_url(e2b__buf *out, const e2b_client_config *config, const char *scheme, const char *id,
                              const char *domain, uint16_t port) {
  if (config->code_interpreter_base_url) {
    e2b__buf_text(out, config->code_interpreter_base_url);
  } else if (config->sandbox_base_url || config->sandbox_url) {
    e2b__put_runtime_url(out, config, id, domain);
  } else {
    e2b__buf_text(out, scheme);
    e2b__buf_text(out, "://");
    e2b__put_sandbox_host(out, config, id, domain, port);
  }
}
#endif

E2B_API size_t e2b_client_api_url(const e2b_client *client, char *out, size_t cap) {
  if (cap) out[0] = 0;
  return client ? (size_t)snprintf(out, cap, "%s", client->config.api_url) : 0;
}

E2B_API size_t e2b_client_sandbox_url(const e2b_client *client, const char *sandbox_id, char *out, size_t cap) {
  e2b__buf url;
  if (cap) out[0] = 0;
  if (!client || !e2b__given(sandbox_id)) return 0;
  e2b__buf_init(&url, (e2b__mem *)&client->mem, 65536);
  e2b__put_runtime_url(&url, &client->config, sandbox_id, client->config.domain);
  return e2b__text_out(&url, out, cap);
}
/* ================================================================================================================== */
/* >>>> heartbeat */
/* ================================================================================================================== */

#define E2B__HEARTBEAT_RETRY_MS 1000u
#define E2B__HEARTBEAT_RETRY_MAX_MS 30000u
#define E2B__HEARTBEAT_IDLE_MS 10000

/* POST /sandboxes/<id>/timeout, again and again. Its request is its timer: between two beats it waits in the queue. It
 * has no deadline there, or a client that was not driven for a while would give it up unsent. */
struct e2b__heartbeat {
  e2b__object object;
  e2b__req req;
  e2b_sandbox *sandbox;
  uint32_t life_ms;
  uint32_t retry_ms;    /* 0 = the last beat succeeded */
  uint64_t alive_until; /* by the last success */
  e2b_done_fn on_lost;
  void *user;
};

static void e2b__heartbeat_stop(e2b_sandbox *sandbox) {
  e2b__heartbeat *beat = sandbox->heartbeat;
  if (!beat) return;
  sandbox->heartbeat = NULL;
  e2b__req_abort(&beat->req);
  e2b__req_free(&beat->req);
  e2b__object_free(sandbox->client, beat);
}

static void e2b__heartbeat_lost(e2b__heartbeat *beat, const e2b_error *why) {
  e2b_sandbox *sandbox = beat->sandbox;
  e2b_done_fn on_lost = beat->on_lost;
  void *user = beat->user;
  e2b_error err = *why;
  (void)snprintf(err.message, sizeof err.message, "sandbox %.64s is not kept alive any more: %.150s", sandbox->id,
                 why->message);
  e2b__log(&sandbox->client->config.logger, E2B_LOG_ERROR, "%s", err.message);
  e2b__heartbeat_stop(sandbox);
  if (on_lost) on_lost(user, &err);
}

/* The result of a beat: E2B_OK, or *err filled. */
static e2b_err e2b__heartbeat_result(e2b__req *req, e2b_error *err) {
  if (err->code) return err->code;
  if (req->status >= 200 && req->status < 300) return E2B_OK;
  return e2b__answer_error(req, E2B_SUBJECT_SANDBOX, "check api_key or E2B_API_KEY", err);
}

static void e2b__heartbeat_on_end(e2b__req *req, const e2b_error *end) {
  e2b__heartbeat *beat = (e2b__heartbeat *)(void *)((uint8_t *)req - offsetof(e2b__heartbeat, req));
  uint64_t now = req->client->now, wait;
  e2b_error err = *end;
  e2b_err code = e2b__heartbeat_result(req, &err);
  if (code == E2B_OK) {
    beat->alive_until = now + beat->life_ms;
    beat->retry_ms = 0;
    req->not_before = now + beat->life_ms / 3;
  } else if (code == E2B_ERR_NOT_FOUND || code == E2B_ERR_UNAUTHENTICATED || code == E2B_ERR_PERMISSION ||
             code == E2B_ERR_INVALID_ARGUMENT || now >= beat->alive_until) {
    e2b__heartbeat_lost(beat, &err);
    return;
  } else {
    beat->retry_ms =
        beat->retry_ms ? E2B__MIN(beat->retry_ms * 2, E2B__HEARTBEAT_RETRY_MAX_MS) : E2B__HEARTBEAT_RETRY_MS;
    wait = E2B__MAX(beat->retry_ms, err.retry_after_ms);
    req->not_before = E2B__MIN(now + wait, beat->alive_until);
    e2b__log(&req->client->config.logger, E2B_LOG_WARN, "keeping sandbox %.64s alive failed, will be tried again: %s",
             beat->sandbox->id, err.message);
  }
  code = e2b__req_submit(req);
  if (!code) return;
  e2b__error_set(&err, code, E2B_PHASE_NONE, "no memory for the next request");
  e2b__heartbeat_lost(beat, &err);
}

static const e2b__req_events e2b__heartbeat_events = { NULL, NULL, NULL, e2b__heartbeat_on_end };

/* The request, without whom it belongs to. */
static void e2b__heartbeat_build(e2b__req *req, const e2b_sandbox *sandbox, int32_t timeout_s) {
  const e2b_client_config *config = &sandbox->client->config;
  e2b__url api;
  e2b__req_init(req, sandbox->client, &e2b__heartbeat_events);
  req->method = "POST";
  req->idempotent = true;
  req->idle_ms = E2B__HEARTBEAT_IDLE_MS;
  e2b__req_common_headers(req, NULL);
  if (e2b__given(config->api_key)) e2b__headers_set(&req->headers, "x-api-key", e2b__str(config->api_key));
  e2b__headers_set(&req->headers, "content-type", e2b__str("application/json"));
  (void)e2b__url_parse(config->api_url, &api); /* checked by e2b_client_create */
  e2b__req_target(req, &api);
  e2b__buf_text(&req->path, "/sandboxes/");
  e2b__url_escape(&req->path, e2b__str(sandbox->id));
  e2b__buf_text(&req->path, "/timeout");
  e2b__buf_text(&req->body, "{\"timeout\":");
  e2b__buf_i64(&req->body, timeout_s);
  e2b__buf_byte(&req->body, '}');
  req->body_len = (int64_t)req->body.len;
}

E2B_API e2b_err e2b_sandbox_keep_alive(e2b_sandbox *sandbox, int32_t timeout_s, e2b_done_fn on_lost, void *user,
                                       e2b_error *err) {
  e2b_client *client;
  e2b__heartbeat *beat;
  if (err) memset(err, 0, sizeof *err);
  if (!sandbox) return e2b__invalid(err, "sandbox", "is NULL");
  if (timeout_s < 0 || timeout_s > INT32_MAX / 1000)
    return e2b__invalid(err, "timeout_s", "must be 0 (stop) to 2147483");
  client = sandbox->client;
  if (client->closing) return e2b__fail(err, E2B_ERR_BAD_STATE, "the client is being freed");
  e2b__heartbeat_stop(sandbox);
  if (timeout_s == 0 || client->config.debug) return E2B_OK;
  beat = (e2b__heartbeat *)e2b__object_new(client, sizeof *beat);
  if (!beat) return e2b__no_memory(err);
  if (!client->in_turn) client->now = e2b__now_ms(client);
  beat->sandbox = sandbox;
  beat->life_ms = (uint32_t)timeout_s * 1000u;
  beat->alive_until = client->now + beat->life_ms;
  beat->on_lost = on_lost;
  beat->user = user;
  sandbox->heartbeat = beat;
  e2b__heartbeat_build(&beat->req, sandbox, timeout_s);
  if (e2b__req_submit(&beat->req) == E2B_OK) return E2B_OK;
  e2b__heartbeat_stop(sandbox);
  return e2b__no_memory(err);
}
/* ================================================================================================================== */
/* >>>> sandbox */
/* ================================================================================================================== */

#define E2B__DEFAULT_LIFE_S 300
#define E2B__CURRENT_ENVD "0.6.13" /* assumed when nobody says what runs in the sandbox */

/* ---- handles ---- */

/* What a handle is made of; texts need not be terminated. */
typedef struct e2b__sandbox_parts {
  e2b_str id, template_id, envd_version, access_token, traffic_token;
  e2b_str domain;   /* empty = the client's */
  e2b_str base_url; /* empty = by the rules of the client */
  e2b_str code_url; /* the same, of the code interpreter */
  uint16_t code_port; /* 0 = the client's */
  const char *scheme, *auth_header; /* NULL = the client's */
  uint16_t runtime_port;            /* 0 = the client's */
  e2b_kvs headers;
  bool jwt_mode;                    /* a traffic token has to be fetched when there is none */
  bool known;                       /* the control plane named it */
} e2b__sandbox_parts;

static char *e2b__sandbox_text(e2b__mem *mem, e2b_str text) {
  const char *nul = text.len ? (const char *)memchr(text.ptr, 0, text.len) : NULL;
  return e2b__mem_dup(mem, text.ptr, nul ? (size_t)(nul - text.ptr) : text.len);
}

static void e2b__sandbox_destroy(e2b_sandbox *sandbox) {
  e2b__mem *mem = &sandbox->client->mem;
  e2b__mem_free_str(mem, sandbox->id);
  e2b__mem_free_str(mem, sandbox->template_id);
  e2b__mem_free_str(mem, sandbox->envd_version);
  e2b__mem_free_str(mem, sandbox->access_token);
  e2b__mem_free_str(mem, sandbox->traffic_token);
  e2b__mem_free_str(mem, sandbox->domain);
  e2b__mem_free_str(mem, sandbox->runtime_url);
  e2b__mem_free_str(mem, sandbox->code_url);
  e2b__mem_free_str(mem, sandbox->auth_header);
  e2b__headers_free_copy(mem, &sandbox->headers);
#ifndef E2B_NO_TRAFFIC_TOKEN
  e2b__traffic_free(sandbox->traffic);
#endif
  e2b__object_free(sandbox->client, sandbox);
}

/* The traffic token, or what looks after it. */
static e2b_err e2b__sandbox_fill_traffic(e2b_sandbox *sandbox, const e2b__sandbox_parts *parts, e2b_error *err) {
  e2b__mem *mem = &sandbox->client->mem;
  sandbox->traffic_token = e2b__sandbox_text(mem, parts->traffic_token);
  if (!sandbox->traffic_token) return e2b__no_memory(err);
#ifndef E2B_NO_TRAFFIC_TOKEN
  if (e2b__traffic_new(sandbox->client, sandbox->id, sandbox->traffic_token, parts->jwt_mode, &sandbox->traffic, err))
    return E2B_ERR_NO_MEMORY;
  if (!sandbox->traffic) return E2B_OK;
  e2b__mem_free_str(mem, sandbox->traffic_token);
  sandbox->traffic_token = e2b__mem_dup(mem, "", 0);
#endif
  return sandbox->traffic_token ? E2B_OK : e2b__no_memory(err);
}

/* The URL of the code interpreter, when one was given. */
static e2b_err e2b__sandbox_fill_code_url(e2b_sandbox *sandbox, e2b_str url, e2b_error *err) {
  e2b__url parts;
  while (url.len && url.ptr[url.len - 1] == '/') url.len--;
  if (!url.len) return E2B_OK;
  sandbox->code_url = e2b__sandbox_text(&sandbox->client->mem, url);
  if (!sandbox->code_url) return e2b__no_memory(err);
  if (e2b__url_parse(sandbox->code_url, &parts)) return E2B_OK;
  return e2b__invalid(err, "code_interpreter_base_url", "is not of the form http(s)://host[:port][/path]");
}

/* Copies the parts and works out the URL of envd. */
static e2b_err e2b__sandbox_fill(e2b_sandbox *sandbox, const e2b__sandbox_parts *parts, e2b_error *err) {
  e2b_client_config config = sandbox->client->config;
  e2b__mem *mem = &sandbox->client->mem;
  e2b__buf url;
  sandbox->id = e2b__sandbox_text(mem, parts->id);
  sandbox->template_id = e2b__sandbox_text(mem, parts->template_id);
  sandbox->envd_version = e2b__sandbox_text(mem, parts->envd_version);
  sandbox->access_token =
      e2b__sandbox_text(mem, parts->access_token.len ? parts->access_token : e2b__str(config.access_token));
  sandbox->domain = e2b__sandbox_text(mem, parts->domain.len ? parts->domain : e2b__str(config.domain));
  sandbox->code_port = parts->code_port ? parts->code_port : config.code_interpreter_port;
  sandbox->auth_header =
      e2b__sandbox_text(mem, e2b__str(e2b__given(parts->auth_header) ? parts->auth_header : config.auth_header));
  sandbox->headers = parts->headers;
  if (!e2b__headers_copy(mem, &sandbox->headers) || !sandbox->id || !sandbox->template_id || !sandbox->envd_version ||
      !sandbox->access_token || !sandbox->domain || !sandbox->auth_header)
    return e2b__no_memory(err);
  if (e2b__given(parts->scheme)) config.scheme = strcmp(parts->scheme, "http") == 0 ? "http" : "https";
  if (parts->runtime_port) config.runtime_port = parts->runtime_port;
  sandbox->runtime_port = config.runtime_port;
  sandbox->scheme = config.scheme;
  if (e2b__sandbox_fill_traffic(sandbox, parts, err)) return E2B_ERR_NO_MEMORY;
  if (!e2b__domain_ok(sandbox->domain))
    return e2b__invalid(err, "domain", "is not a host or host:port, without scheme and path");
  e2b__buf_init(&url, mem, 65536);
  if (parts->base_url.len)
    e2b__buf_str(&url, parts->base_url);
  else
    e2b__put_runtime_url(&url, &config, sandbox->id, sandbox->domain);
  while (url.len && url.data[url.len - 1] == '/') url.len--;
  sandbox->runtime_url = url.err ? NULL : e2b__mem_dup(mem, (const char *)url.data, url.len);
  e2b__buf_free(&url);
  if (!sandbox->runtime_url) return e2b__no_memory(err);
  if (e2b__url_parse(sandbox->runtime_url, &sandbox->runtime)) return e2b__sandbox_fill_code_url(sandbox, parts->code_url, err);
  if (parts->base_url.len) return e2b__invalid(err, "base_url", "is not of the form http(s)://host[:port][/path]");
  return e2b__invalid(err, "sandbox_id",
                      "cannot be part of a host name: set sandbox_base_url, sandbox_url or protocol");
}

/* Makes a handle and gives it to the client. */
static e2b_err e2b__sandbox_new(e2b_client *client, const e2b__sandbox_parts *parts, e2b_sandbox **out,
                                e2b_error *err) {
  e2b_sandbox *sandbox;
  e2b_err code;
  if (!e2b__header_value_ok(parts->id)) return e2b__invalid(err, "sandbox_id", "has a control or non-ASCII character");
  if (!e2b__header_value_ok(parts->access_token))
    return e2b__invalid(err, "access_token", "has a control or non-ASCII character");
  if (!e2b__header_value_ok(parts->traffic_token))
    return e2b__invalid(err, "traffic_access_token", "has a control or non-ASCII character");
  if (!e2b__header_value_ok(e2b__str(parts->auth_header)))
    return e2b__invalid(err, "auth_header", "has a control or non-ASCII character");
  if (e2b__given(parts->scheme) && strcmp(parts->scheme, "https") != 0 && strcmp(parts->scheme, "http") != 0)
    return e2b__invalid(err, "scheme", "must be \"https\" or \"http\"");
  if (e2b__headers_check(parts->headers, "headers", err)) return E2B_ERR_INVALID_ARGUMENT;
  sandbox = (e2b_sandbox *)e2b__object_new(client, sizeof *sandbox);
  if (!sandbox) return e2b__no_memory(err);
  sandbox->client = client;
  sandbox->json = client->config.codec == E2B_CODEC_JSON;
  sandbox->known = parts->known;
  code = e2b__sandbox_fill(sandbox, parts, err);
  if (code) {
    e2b__sandbox_destroy(sandbox);
    return code;
  }
  sandbox->next = client->sandboxes;
  if (sandbox->next) sandbox->next->prev = sandbox;
  client->sandboxes = sandbox;
  *out = sandbox;
  return E2B_OK;
}

E2B_API void e2b_sandbox_free(e2b_sandbox *sandbox) {
  e2b_client *client;
  uint32_t i;
  if (!sandbox) return;
  client = sandbox->client;
  sandbox->closing = true;
  for (i = 0; i < client->slot_count; i++) {
    e2b__op *op = client->slots[i].op;
    if (!op || op->sandbox != sandbox) continue;
    e2b__op_abandon(op, "the sandbox's handle was freed");
    op->sandbox = NULL;
  }
  while (sandbox->handles) e2b_command_handle_free(sandbox->handles);
  while (sandbox->streams) e2b_file_stream_free(sandbox->streams);
#ifndef E2B_NO_WATCH
  while (sandbox->watches) e2b_watch_handle_stop(sandbox->watches);
#endif
  if (sandbox->probe) e2b__probe_end(sandbox->probe, E2B__VERDICT_UNKNOWN);
  e2b__heartbeat_stop(sandbox);
  if (sandbox->prev)
    sandbox->prev->next = sandbox->next;
  else
    client->sandboxes = sandbox->next;
  if (sandbox->next) sandbox->next->prev = sandbox->prev;
  e2b__sandbox_destroy(sandbox);
}

/* The length of names is the server's business; "." and ".." would change the path they stand in. */
static e2b_err e2b__sandbox_id_check(const char *id, e2b_error *err) {
  if (!e2b__given(id)) return e2b__invalid(err, "sandbox_id", "is empty");
  if (!e2b__text_ok(id)) return e2b__invalid(err, "sandbox_id", "has a control character");
  if (strcmp(id, ".") == 0 || strcmp(id, "..") == 0) return e2b__invalid(err, "sandbox_id", "is a path");
  return E2B_OK;
}

/* One that this build would never send is refused. */
static e2b_err e2b__traffic_token_check(const char *token, e2b_error *err) {
#ifdef E2B_NO_TRAFFIC_TOKEN
  if (e2b__given(token))
    return e2b__fail(err, E2B_ERR_NOT_BUILT, "traffic_access_token is set, but this build has E2B_NO_TRAFFIC_TOKEN");
#endif
  if (e2b__header_value_ok(e2b__str(token))) return E2B_OK;
  return e2b__invalid(err, "traffic_access_token", "has a control or non-ASCII character");
}

E2B_API e2b_err e2b_sandbox_attach(e2b_client *client, const char *sandbox_id, const e2b_attach_opts *opts,
                                   e2b_sandbox **out, e2b_error *err) {
  e2b__sandbox_parts parts;
  e2b_err code = e2b__traffic_token_check(opts ? opts->traffic_access_token : NULL, err);
  if (out) *out = NULL;
  if (code) return code;
  if (err) memset(err, 0, sizeof *err);
  if (!client) return e2b__invalid(err, "client", "is NULL");
  if (!out) return e2b__invalid(err, "out", "is NULL");
  if (client->closing) return e2b__fail(err, E2B_ERR_BAD_STATE, "the client is being freed");
  if (e2b__sandbox_id_check(sandbox_id, err)) return E2B_ERR_INVALID_ARGUMENT;
  memset(&parts, 0, sizeof parts);
  parts.id = e2b__str(sandbox_id);
  parts.envd_version = e2b__str(opts && e2b__given(opts->envd_version) ? opts->envd_version : E2B__CURRENT_ENVD);
  if (opts) {
    parts.template_id = e2b__str(opts->template_id);
    parts.access_token = e2b__str(opts->access_token);
    parts.traffic_token = e2b__str(opts->traffic_access_token);
    parts.domain = e2b__str(opts->domain);
    parts.base_url = e2b__str(opts->base_url);
    parts.code_url = e2b__str(e2b__given(opts->code_interpreter_base_url) ? opts->code_interpreter_base_url : opts->base_url);
    parts.code_port = opts->code_interpreter_port;
    parts.scheme = opts->scheme;
    parts.auth_header = opts->auth_header;
    parts.runtime_port = opts->runtime_port;
    parts.headers = opts->headers;
  }
  return e2b__sandbox_new(client, &parts, out, err);
}

E2B_API e2b_client *e2b_sandbox_client(const e2b_sandbox *sandbox) {
  return sandbox ? sandbox->client : NULL;
}

E2B_API const char *e2b_sandbox_id(const e2b_sandbox *sandbox) {
  return sandbox ? sandbox->id : "";
}

E2B_API const char *e2b_sandbox_template_id(const e2b_sandbox *sandbox) {
  return sandbox ? sandbox->template_id : "";
}

E2B_API const char *e2b_sandbox_envd_version(const e2b_sandbox *sandbox) {
  return sandbox ? sandbox->envd_version : "";
}

E2B_API const char *e2b_sandbox_access_token(const e2b_sandbox *sandbox) {
  return sandbox ? sandbox->access_token : "";
}

E2B_API const char *e2b_sandbox_traffic_access_token(const e2b_sandbox *sandbox) {
#ifndef E2B_NO_TRAFFIC_TOKEN
  if (sandbox && sandbox->traffic) return sandbox->traffic->token ? sandbox->traffic->token : "";
#endif
  return sandbox ? sandbox->traffic_token : "";
}

E2B_API const char *e2b_sandbox_runtime_url(const e2b_sandbox *sandbox) {
  return sandbox ? sandbox->runtime_url : "";
}

E2B_API size_t e2b_sandbox_host(const e2b_sandbox *sandbox, uint16_t port, char *out, size_t cap) {
  const e2b_client_config *config;
  e2b__buf host;
  if (cap) out[0] = 0;
  if (!sandbox) return 0;
  config = &sandbox->client->config;
  e2b__buf_init(&host, &sandbox->client->mem, 65536);
  if (config->sandbox_base_url)
    e2b__buf_text(&host, strstr(sandbox->runtime_url, "://") + 3); /* the header names the port */
  else
    e2b__put_sandbox_host(&host, config, sandbox->id, sandbox->domain, port ? port : sandbox->runtime_port);
  return e2b__text_out(&host, out, cap);
}

/* ---- one request to the control plane ---- */

typedef struct e2b__rest_task {
  e2b__task task;
  char *traffic_token;  /* create and connect: instead of the server's; NULL = the server's */
  char nonce[33];       /* create: what is sent, "" = nothing of ours */
  e2b_sandbox *sandbox; /* connect: made, but not handed out yet; NULL = none */
  bool connects;
} e2b__rest_task;

static void e2b__rest_release(e2b__op *op) {
  e2b__mem_free_str(&op->client->mem, ((e2b__rest_task *)op)->traffic_token);
  e2b__task_release(op);
}

static void e2b__rest_drop_sandbox(e2b__rest_task *rest) {
  e2b_sandbox_free(rest->sandbox);
  rest->sandbox = NULL;
}

static void e2b__rest_cancel(e2b__op *op) {
  e2b__rest_drop_sandbox((e2b__rest_task *)op);
  e2b__task_cancel(op);
}

static const e2b__op_type e2b__rest_type = { e2b__rest_cancel, e2b__rest_release, e2b__task_resume, e2b__task_phase, NULL };

/* Makes the task (a struct of `size` bytes that starts with an e2b__rest_task) for <api_url><path>; a body goes into its req.body. e2b__rest_run or e2b__op_release end it. */
static e2b_err e2b__rest_new_sized(e2b_client *client, const char *method, const char *path, const e2b_call *call,
                                   const e2b__op_type *type, size_t size, e2b__rest_task **out, e2b_error *err) {
  const e2b_client_config *config;
  e2b__rest_task *rest;
  e2b__url api;
  e2b_error failed;
  if (!client) return e2b__invalid(err, "the client or sandbox", "is NULL");
  if (e2b__call_check(call, err)) return E2B_ERR_INVALID_ARGUMENT;
  config = &client->config;
  rest = (e2b__rest_task *)e2b__op_new(client, call, type, size, config->request_timeout_ms, &failed);
  if (!rest) {
    if (err) *err = failed;
    return failed.code;
  }
  e2b__req_init(&rest->task.req, client, &e2b__task_events);
  rest->task.req.method = method;
  rest->task.req.idle_ms = call && call->idle_ms ? call->idle_ms : config->idle_ms;
  e2b__req_common_headers(&rest->task.req, call);
  if (e2b__given(config->api_key)) e2b__headers_set(&rest->task.req.headers, "x-api-key", e2b__str(config->api_key));
  (void)e2b__url_parse(config->api_url, &api); /* checked by e2b_client_create */
  e2b__req_target(&rest->task.req, &api);
  e2b__buf_text(&rest->task.req.path, path);
  *out = rest;
  return E2B_OK;
}

static e2b_err e2b__rest_new(e2b_client *client, const char *method, const char *path, const e2b_call *call,
                             e2b__rest_task **out, e2b_error *err) {
  return e2b__rest_new_sized(client, method, path, call, &e2b__rest_type, sizeof **out, out, err);
}

static e2b_err e2b__rest_run(e2b__rest_task *rest, const e2b_call *call, e2b_error *err) {
  e2b__req *req = &rest->task.req;
  if (req->body.len) e2b__headers_set(&req->headers, "content-type", e2b__str("application/json"));
  if (req->body.len || strcmp(req->method, "POST") == 0) req->body_len = (int64_t)req->body.len;
  return e2b__task_run(&rest->task, call, err);
}

/* What a call is about: a sandbox by handle, with which the call ends, or by id. */
typedef struct e2b__target {
  e2b_client *client;
  e2b_sandbox *sandbox;
  const char *id;
} e2b__target;

static e2b__target e2b__target_id(e2b_client *client, const char *id) {
  e2b__target target;
  target.client = client;
  target.sandbox = NULL;
  target.id = id;
  return target;
}

static e2b__target e2b__target_sandbox(e2b_sandbox *sandbox) {
  e2b__target target = e2b__target_id(sandbox ? sandbox->client : NULL, sandbox ? sandbox->id : NULL);
  target.sandbox = sandbox;
  return target;
}

/* A task for /sandboxes/<id><tail>, which may be sent twice. */
static e2b_err e2b__rest_new_for(e2b__target target, const char *method, const char *tail, const e2b_call *call,
                                 e2b__rest_task **out, e2b_error *err) {
  e2b__req *req;
  e2b_err code = target.client ? e2b__sandbox_id_check(target.id, err) : E2B_OK;
  if (!code) code = e2b__rest_new(target.client, method, "/sandboxes/", call, out, err);
  if (code) return code;
  req = &(*out)->task.req;
  e2b__url_escape(&req->path, e2b__str(target.id));
  e2b__buf_text(&req->path, tail);
  req->idempotent = true;
  (*out)->task.op.sandbox = target.sandbox;
  (*out)->task.subject = E2B_SUBJECT_SANDBOX;
  return E2B_OK;
}

/* ---- its answer ---- */

static bool e2b__rest_is_success(const e2b__task *task) {
  return task->req.status >= 200 && task->req.status < 300;
}

static e2b_err e2b__rest_refused(e2b__task *task, e2b_error *err) {
  bool key = e2b__given(task->op.client->config.api_key);
  return e2b__answer_error(&task->req, task->subject,
                           key ? "check api_key or E2B_API_KEY" : "set api_key or E2B_API_KEY", err);
}

static char e2b__rest_first_char(const e2b__task *task) {
  e2b__json_reader r;
  e2b__json_open(&r, (char *)task->req.rx.data, task->req.rx.len);
  return e2b__json_skip_space(&r);
}

/* A success that something else than the control plane must have written: a web page, a proxy's greeting. No excerpt of what
 * is JSON: there may be tokens in it. */
static e2b_err e2b__rest_foreign(e2b__task *task, e2b_error *err) {
  char begin[64], first = e2b__rest_first_char(task);
  e2b__answer_mask(&task->req);
  e2b__error_excerpt(begin, sizeof begin, task->req.rx.data, task->req.rx.len);
  err->phase = E2B_PHASE_DECODE;
  err->maybe_done = !task->req.idempotent;
  return e2b__error_say(err, E2B_ERR_PROTOCOL,
                        "is api_url (%.100s) really the control plane? It answered HTTP %d with: %s",
                        task->op.client->config.api_url, task->req.status,
                        first == '{' || first == '[' ? "JSON of another kind" : begin[0] ? begin : "nothing");
}

/* For answers without content: any status 2xx, but not one with a web page. */
static e2b_err e2b__rest_answered(e2b__task *task, e2b_error *err) {
  if (!e2b__rest_is_success(task)) return e2b__rest_refused(task, err);
  return e2b__rest_first_char(task) == '<' ? e2b__rest_foreign(task, err) : E2B_OK;
}

/* Reads a message, or with `list` an e2b__list of them; the texts stay in the request. The arena is to be freed in any
 * case. `what` it is, for messages; no excerpt of what is JSON goes into one: there are tokens in it. */
static e2b_err e2b__rest_read_as(e2b__task *task, const e2b__message *type, bool list, const char *what,
                                 e2b__arena *arena, void *out, e2b_error *err) {
  e2b__req *req = &task->req;
  e2b_err code;
  e2b__arena_init(arena, &task->op.client->mem, (size_t)task->op.client->config.max_message_bytes * 4);
  if (!e2b__rest_is_success(task)) return e2b__rest_refused(task, err);
  if (e2b__rest_first_char(task) != (list ? '[' : '{')) return e2b__rest_foreign(task, err);
  code = list ? e2b__json_decode_list(type, (char *)req->rx.data, req->rx.len, arena, (e2b__list *)out)
              : e2b__json_decode(type, (char *)req->rx.data, req->rx.len, arena, out);
  if (!code) return E2B_OK;
  err->phase = E2B_PHASE_DECODE;
  err->maybe_done = !req->idempotent;
  if (code == E2B_ERR_PROTOCOL)
    return e2b__error_say(err, code, "the answer (HTTP %d) is JSON, but not that of a %s", req->status, what);
  return e2b__error_say(err, code,
                        code == E2B_ERR_LIMIT ? "the answer (HTTP %d) is larger than max_message_bytes allows"
                                              : "no memory for the answer (HTTP %d)",
                        req->status);
}

static e2b_err e2b__rest_read(e2b__task *task, bool list, e2b__arena *arena, void *out, e2b_error *err) {
  return e2b__rest_read_as(task, &e2b__msg_rest_sandbox, list, "sandbox", arena, out, err);
}

/* Hands a result out; a failure leaves it empty but for mem.len. `size` is that of *task->out. */
static e2b_err e2b__rest_give(e2b__task *task, e2b__fill_fn fill, const void *from, size_t size, e2b_error *err) {
  e2b_mem *mem = (e2b_mem *)task->out;
  e2b_error failed;
  e2b_err code = e2b__result_fill(task->op.client, fill, from, task->out, &failed);
  size_t needed = mem->len;
  if (!code) return E2B_OK;
  e2b__result_clear(task->out, size);
  mem->len = needed;
  err->phase = E2B_PHASE_DECODE;
  return e2b__error_say(err, code, "%s", failed.message);
}

/* ---- results ---- */

static int32_t e2b__to_i32(int64_t value) {
  return value > INT32_MAX ? INT32_MAX : value < INT32_MIN ? INT32_MIN : (int32_t)value;
}

/* Unix milliseconds; 0 for what is no time, and for the year 1, which stands for "never". */
static int64_t e2b__to_unix_ms(e2b_str text) {
  e2b__timestamp time;
  if (!e2b__time_parse(text, &time) || time.seconds <= 0) return 0;
  return time.seconds * 1000 + time.nanos / 1000000;
}

static e2b_sandbox_state e2b__to_state(e2b_str text) {
  if (e2b__str_eq(text, "running")) return E2B_STATE_RUNNING;
  return e2b__str_eq(text, "paused") ? E2B_STATE_PAUSED : E2B_STATE_UNKNOWN;
}

/* All members but mem. */
static void e2b__fill_info(e2b__pack *pack, const void *from, void *out) {
  const e2b__rest_sandbox *rest = (const e2b__rest_sandbox *)from;
  const e2b__rest_volume_mount *mounts = (const e2b__rest_volume_mount *)rest->volume_mounts.items;
  e2b_sandbox_info *info = (e2b_sandbox_info *)out;
  e2b_volume_mount *copies;
  size_t i;
  info->sandbox_id = e2b__pack_str(pack, rest->sandbox_id);
  info->template_id = e2b__pack_str(pack, rest->template_id);
  info->alias = e2b__pack_str(pack, rest->alias);
  info->client_id = e2b__pack_str(pack, rest->client_id);
  info->envd_version = e2b__pack_str(pack, rest->envd_version);
  info->domain = e2b__pack_str(pack, rest->domain);
  info->state_text = e2b__pack_str(pack, rest->state);
  info->state = e2b__to_state(rest->state);
  info->started_at_ms = e2b__to_unix_ms(rest->started_at);
  info->end_at_ms = e2b__to_unix_ms(rest->ended_at);
  info->cpu_count = e2b__to_i32(rest->cpu_count);
  info->memory_mb = e2b__to_i32(rest->memory_mb);
  info->disk_size_mb = e2b__to_i32(rest->disk_size_mb);
  info->metadata = e2b__pack_pairs(pack, &rest->metadata);
  copies = (e2b_volume_mount *)e2b__pack_alloc(pack, rest->volume_mounts.count * sizeof *copies);
  for (i = 0; i < rest->volume_mounts.count; i++) {
    const char *name = e2b__pack_str(pack, mounts[i].name), *path = e2b__pack_str(pack, mounts[i].path);
    if (!copies) continue;
    copies[i].name = name;
    copies[i].path = path;
  }
  info->volume_mounts = copies;
  info->volume_mount_count = rest->volume_mounts.count;
  if (!rest->has_lifecycle) return;
  info->auto_pause = e2b__str_eq(rest->lifecycle.on_timeout, "pause") ? E2B_YES : E2B_NO;
  info->auto_resume = rest->lifecycle.auto_resume ? E2B_YES : E2B_NO;
}

typedef struct e2b__rest_page {
  e2b__list sandboxes; /* e2b__rest_sandbox */
  const char *next_token;
} e2b__rest_page;

static void e2b__fill_page(e2b__pack *pack, const void *from, void *out) {
  const e2b__rest_page *page = (const e2b__rest_page *)from;
  const e2b__rest_sandbox *rest = (const e2b__rest_sandbox *)page->sandboxes.items;
  e2b_sandbox_list *list = (e2b_sandbox_list *)out;
  e2b_sandbox_info unused, *items = (e2b_sandbox_info *)e2b__pack_alloc(pack, page->sandboxes.count * sizeof *items);
  size_t i;
  if (items) memset(items, 0, page->sandboxes.count * sizeof *items);
  for (i = 0; i < page->sandboxes.count; i++) e2b__fill_info(pack, &rest[i], items ? &items[i] : &unused);
  list->items = items;
  list->count = page->sandboxes.count;
  list->next_token = e2b__given(page->next_token) ? e2b__pack_str(pack, e2b__str(page->next_token)) : NULL;
}

static void e2b__fill_created(e2b__pack *pack, const void *from, void *out) {
  const e2b__rest_sandbox *rest = (const e2b__rest_sandbox *)from;
  e2b_create_response *response = (e2b_create_response *)out;
  response->sandbox_id = e2b__pack_str(pack, rest->sandbox_id);
  response->template_id = e2b__pack_str(pack, rest->template_id);
  response->alias = e2b__pack_str(pack, rest->alias);
  response->client_id = e2b__pack_str(pack, rest->client_id);
  response->envd_version = e2b__pack_str(pack, rest->envd_version);
  response->envd_access_token = e2b__pack_str(pack, rest->envd_access_token);
  response->traffic_access_token = e2b__pack_str(pack, rest->traffic_access_token);
  response->domain = e2b__pack_str(pack, rest->domain);
}

/* ---- create and connect ---- */

/* The server did its part, but the caller does not get to see it: names the sandbox, which has to be looked after. */
static e2b_err e2b__created_lost(e2b__task *task, const e2b__rest_sandbox *rest, e2b_error *err) {
  char id[100], why[160];
  e2b__error_excerpt(id, sizeof id, (const uint8_t *)rest->sandbox_id.ptr, rest->sandbox_id.len);
  (void)snprintf(why, sizeof why, "%.159s", err->message);
  err->maybe_done = !task->req.idempotent;
  return e2b__error_say(err, err->code, "sandbox %s runs, but %s", id, why);
}

static e2b_err e2b__created_read(e2b__task *task, e2b__arena *arena, e2b__rest_sandbox *rest, e2b_error *err) {
  e2b_err code = e2b__rest_read(task, false, arena, rest, err);
  if (code || rest->sandbox_id.len) return code;
  err->phase = E2B_PHASE_DECODE;
  err->maybe_done = !task->req.idempotent;
  return e2b__error_say(err, E2B_ERR_PROTOCOL, "the answer (HTTP %d) has no sandboxID", task->req.status);
}

/* Into an e2b_create_response. */
static e2b_err e2b__created_response(e2b__task *task, e2b_error *err) {
  e2b__rest_sandbox rest;
  e2b__arena arena;
  e2b_err code = e2b__created_read(task, &arena, &rest, err);
  if (!code) {
    code = e2b__rest_give(task, e2b__fill_created, &rest, sizeof(e2b_create_response), err);
    if (code) e2b__created_lost(task, &rest, err);
  }
  e2b__arena_free(&arena);
  return code;
}

/* Whether the sandbox was created in OpenKruise's JWT mode, as far as an answer shows. */
static bool e2b__rest_in_jwt_mode(const e2b__rest_sandbox *rest) {
  const e2b__pair *pairs = (const e2b__pair *)rest->metadata.items;
  size_t i;
  for (i = 0; i < rest->metadata.count; i++)
    if (e2b__str_eq(pairs[i].key, E2B_JWT_AUTH_METADATA_KEY)) return e2b__str_eq(pairs[i].value, "true");
  return false;
}

#ifndef E2B_NO_TRAFFIC_TOKEN
/* The end of a connect that asked a second time. `jwt_mode`: a traffic token has to be fetched. */
static e2b_err e2b__connected(e2b__task *task, bool jwt_mode, e2b_error *err) {
  e2b__rest_task *rest = (e2b__rest_task *)task;
  e2b_sandbox *sandbox = rest->sandbox;
  e2b_err code = err->code == E2B_ERR_NO_MEMORY ? err->code : E2B_OK;
  if (!code && jwt_mode) code = e2b__traffic_new(task->op.client, sandbox->id, NULL, true, &sandbox->traffic, err);
  if (!code) {
    rest->sandbox = NULL;
    *(e2b_sandbox **)task->out = sandbox;
  }
  e2b__rest_drop_sandbox(rest);
  return code;
}

/* Only a success says that it has to. */
static e2b_err e2b__connected_info(e2b__task *task, e2b_error *err) {
  e2b__rest_sandbox info;
  e2b__arena arena;
  bool jwt_mode = e2b__rest_read(task, false, &arena, &info, err) == E2B_OK && e2b__rest_in_jwt_mode(&info);
  e2b__arena_free(&arena);
  return e2b__connected(task, jwt_mode, err);
}

static e2b_err e2b__connected_loss(e2b__task *task, e2b_error *err) {
  return e2b__connected(task, false, err);
}

/* OpenKruise gives a token with create only. Its connect shows whether one is needed; older ones only with get. */
static e2b_err e2b__connected_ask(e2b__rest_task *rest, e2b_error *err) {
  e2b__task *task = &rest->task;
  e2b_err code;
  e2b__url api;
  (void)e2b__url_parse(task->op.client->config.api_url, &api);
  rest->sandbox = *(e2b_sandbox **)task->out;
  *(e2b_sandbox **)task->out = NULL;
  task->req.method = "GET";
  task->req.body.len = 0;
  task->req.body_len = E2B__BODY_NONE;
  (void)e2b__headers_remove(&task->req.headers, "content-type");
  e2b__req_target(&task->req, &api);
  e2b__buf_text(&task->req.path, "/sandboxes/");
  e2b__url_escape(&task->req.path, e2b__str(rest->sandbox->id));
  task->on_answer = e2b__connected_info;
  task->on_loss = e2b__connected_loss;
  code = e2b__task_again(task, err);
  if (code != E2B_PENDING) e2b__rest_drop_sandbox(rest);
  return code;
}
#endif

/* Into a handle. */
static e2b_err e2b__created_handle(e2b__task *task, e2b_error *err) {
  e2b__rest_task *created = (e2b__rest_task *)task;
  const e2b_client_config *config = &task->op.client->config;
  e2b__sandbox_parts parts;
  e2b__rest_sandbox rest;
  e2b__arena arena;
  e2b_error failed;
  bool ask = false;
  e2b_err code = e2b__created_read(task, &arena, &rest, err);
  if (!code) {
    memset(&parts, 0, sizeof parts);
    parts.id = rest.sandbox_id;
    parts.template_id = rest.template_id;
    parts.envd_version = rest.envd_version;
    parts.access_token = rest.envd_access_token;
    parts.traffic_token = created->traffic_token ? e2b__str(created->traffic_token) : rest.traffic_access_token;
    parts.jwt_mode = e2b__rest_in_jwt_mode(&rest);
    parts.known = true;
    if (config->protocol == E2B_PROTOCOL_NATIVE) parts.domain = rest.domain;
    ask = created->connects && !parts.traffic_token.len && !rest.metadata.count && !config->debug &&
          e2b__config_is_kruise(config);
    code = e2b__sandbox_new(task->op.client, &parts, (e2b_sandbox **)task->out, &failed);
    if (code == E2B_ERR_INVALID_ARGUMENT) code = E2B_ERR_PROTOCOL; /* it was the server's */
    if (code) {
      err->phase = E2B_PHASE_DECODE;
      e2b__error_say(err, code, "%s", failed.message);
      e2b__created_lost(task, &rest, err);
    }
  }
  e2b__arena_free(&arena);
#ifndef E2B_NO_TRAFFIC_TOKEN
  if (ask && !code) return e2b__connected_ask(created, err);
#endif
  E2B__UNUSED(ask);
  return code;
}

/* Environment variables and metadata. */
static e2b_err e2b__pairs_check(e2b_kvs pairs, const char *name, e2b_error *err) {
  size_t i;
  for (i = 0; i < pairs.count; i++) {
    if (!e2b__given(pairs.items[i].key)) return e2b__invalid(err, name, "has an empty key");
    if (!e2b__text_ok(pairs.items[i].key)) return e2b__invalid(err, name, "has a key with a control character");
  }
  return E2B_OK;
}

static e2b_err e2b__texts_check(e2b_strs texts, const char *name, e2b_error *err) {
  size_t i;
  for (i = 0; i < texts.count; i++)
    if (!e2b__given(texts.items[i]) || !e2b__text_ok(texts.items[i]))
      return e2b__invalid(err, name, "has an entry that is empty or has a control character");
  return E2B_OK;
}

static e2b_err e2b__network_check(const e2b_network *network, e2b_error *err) {
  size_t i, k;
  e2b_err code;
  if ((code = e2b__texts_check(network->allow_out, "network.allow_out", err)) != E2B_OK ||
      (code = e2b__texts_check(network->deny_out, "network.deny_out", err)) != E2B_OK)
    return code;
  for (i = 0; i < network->rule_count; i++) {
    const char *host = network->rules[i].host;
    if (!e2b__given(host) || !e2b__text_ok(host))
      return e2b__invalid(err, "network.rules", "has a host that is empty or has a control character");
    for (k = 0; k < i; k++)
      if (strcmp(network->rules[k].host, host) == 0) return e2b__invalid(err, "network.rules", "names a host twice");
    code = e2b__headers_check(network->rules[i].set_headers, "network.rules", err);
    if (code) return code;
  }
  if (!e2b__given(network->egress_proxy_address) &&
      (e2b__given(network->egress_proxy_username) || e2b__given(network->egress_proxy_password)))
    return e2b__invalid(err, "network.egress_proxy_address", "is not given, but a user name or password is");
  return E2B_OK;
}

static bool e2b__is_json_object(const char *json) {
  return e2b__json_valid(json, strlen(json), '{');
}

static e2b_err e2b__create_check(const char *template_id, const e2b_sandbox_opts *opts, e2b_error *err) {
  size_t i;
  e2b_err code;
  if (!e2b__text_ok(template_id)) return e2b__invalid(err, "template_id", "has a control character");
  if (!opts) return E2B_OK;
  if (opts->timeout_s < 0) return e2b__invalid(err, "timeout_s", "is negative: a sandbox lives for a limited time");
  if ((code = e2b__pairs_check(opts->metadata, "metadata", err)) != E2B_OK ||
      (code = e2b__pairs_check(opts->env_vars, "env_vars", err)) != E2B_OK)
    return code;
  if ((code = e2b__traffic_token_check(opts->traffic_access_token, err)) != E2B_OK) return code;
  if (opts->network && (code = e2b__network_check(opts->network, err)) != E2B_OK) return code;
  for (i = 0; i < opts->volume_mount_count; i++)
    if (!e2b__given(opts->volume_mounts[i].name) || !e2b__given(opts->volume_mounts[i].path))
      return e2b__invalid(err, "volume_mounts", "has an entry without name or path");
  if (e2b__given(opts->mcp_json) && !e2b__is_json_object(opts->mcp_json))
    return e2b__invalid(err, "mcp_json", "is not a JSON object");
  if (e2b__given(opts->extra_json) && !e2b__is_json_object(opts->extra_json))
    return e2b__invalid(err, "extra_json", "is not a JSON object");
  return E2B_OK;
}

static void e2b__json_tri(e2b__json_writer *w, const char *key, e2b_tri value) {
  if (value == E2B_UNSET) return;
  e2b__json_key(w, key);
  e2b__json_bool(w, value == E2B_YES);
}

/* "key":"value", or nothing when there is no value. */
static void e2b__json_text(e2b__json_writer *w, const char *key, const char *value) {
  if (!e2b__given(value)) return;
  e2b__json_key(w, key);
  e2b__json_str(w, e2b__str(value));
}

/* The members of the object "network" of a create, and of the body of an update. */
static void e2b__json_network(e2b__json_writer *w, const e2b_network *network) {
  size_t i;
  e2b__json_tri(w, "allowPublicTraffic", network->allow_public_traffic);
  e2b__json_strs(w, "allowOut", network->allow_out);
  e2b__json_strs(w, "denyOut", network->deny_out);
  e2b__json_text(w, "maskRequestHost", network->mask_request_host);
  if (network->rule_count) {
    e2b__json_key(w, "rules");
    e2b__json_begin(w, '{');
    for (i = 0; i < network->rule_count; i++) {
      e2b__json_key(w, network->rules[i].host);
      e2b__json_begin(w, '[');
      e2b__json_begin(w, '{');
      if (network->rules[i].set_headers.count) {
        e2b__json_key(w, "transform");
        e2b__json_begin(w, '{');
        e2b__json_kvs(w, "headers", network->rules[i].set_headers);
        e2b__json_end(w, '}');
      }
      e2b__json_end(w, '}');
      e2b__json_end(w, ']');
    }
    e2b__json_end(w, '}');
  }
  if (e2b__given(network->egress_proxy_address)) {
    e2b__json_key(w, "egressProxy");
    e2b__json_begin(w, '{');
    e2b__json_text(w, "address", network->egress_proxy_address);
    e2b__json_text(w, "username", network->egress_proxy_username);
    e2b__json_text(w, "password", network->egress_proxy_password);
    e2b__json_end(w, '}');
  }
}

/* Makes the nonce, by which a sandbox is found whose creation was not answered, unless the caller has one. */
static void e2b__rest_make_nonce(e2b__rest_task *rest, e2b_kvs metadata) {
  uint8_t random[16];
  size_t i;
  for (i = 0; i < metadata.count; i++)
    if (strcmp(metadata.items[i].key, E2B_NONCE_KEY) == 0) return;
  if (!e2b__net_random(random, sizeof random)) return;
  for (i = 0; i < sizeof random; i++) (void)snprintf(rest->nonce + 2 * i, 3, "%02x", random[i]);
  rest->task.op.nonce = rest->nonce;
}

/* The caller's pairs and the nonce. */
static void e2b__json_metadata(e2b__json_writer *w, e2b_kvs metadata, const char *nonce) {
  size_t i;
  if (!metadata.count && !nonce[0]) return;
  e2b__json_key(w, "metadata");
  e2b__json_begin(w, '{');
  for (i = 0; i < metadata.count; i++) {
    e2b__json_key(w, metadata.items[i].key);
    e2b__json_str(w, e2b__str(metadata.items[i].value));
  }
  e2b__json_text(w, E2B_NONCE_KEY, nonce);
  e2b__json_end(w, '}');
}

/* The members that have options of their own. */
static void e2b__json_create(e2b__json_writer *w, const char *template_id, const e2b_sandbox_opts *opts,
                             const char *nonce) {
  size_t i;
  e2b__json_key(w, "templateID");
  e2b__json_str(w, e2b__str(template_id));
  e2b__json_key(w, "timeout");
  e2b__json_i64(w, opts->timeout_s ? opts->timeout_s : E2B__DEFAULT_LIFE_S);
  e2b__json_tri(w, "autoPause", opts->auto_pause);
  if (opts->auto_resume != E2B_UNSET) {
    e2b__json_key(w, "autoResume");
    e2b__json_begin(w, '{');
    e2b__json_tri(w, "enabled", opts->auto_resume);
    e2b__json_end(w, '}');
  }
  e2b__json_tri(w, "secure", opts->secure == E2B_UNSET ? E2B_YES : opts->secure);
  e2b__json_tri(w, "allow_internet_access", opts->allow_internet_access);
  if (opts->network) {
    e2b__json_key(w, "network");
    e2b__json_begin(w, '{');
    e2b__json_network(w, opts->network);
    e2b__json_end(w, '}');
  }
  e2b__json_metadata(w, opts->metadata, nonce);
  e2b__json_kvs(w, "envVars", opts->env_vars);
  if (e2b__given(opts->mcp_json)) {
    e2b__json_key(w, "mcp");
    e2b__json_raw(w, e2b__str(opts->mcp_json));
  }
  if (opts->volume_mount_count) {
    e2b__json_key(w, "volumeMounts");
    e2b__json_begin(w, '[');
    for (i = 0; i < opts->volume_mount_count; i++) {
      e2b__json_begin(w, '{');
      e2b__json_text(w, "name", opts->volume_mounts[i].name);
      e2b__json_text(w, "path", opts->volume_mounts[i].path);
      e2b__json_end(w, '}');
    }
    e2b__json_end(w, ']');
  }
}

/* Goes from member to member of an object, from behind its brace: gives their names as written; false at the end. */
static bool e2b__json_member(e2b__json_reader *r, e2b_str *name) {
  e2b__json_token t;
  if (e2b__json_next(r, &t) != E2B__JSON_KEY) return false;
  *name = t.text;
  e2b__json_next(r, &t);
  return e2b__json_skip(r, &t);
}

/* Opens a document that is an object, not to be changed, and reads its brace. */
static void e2b__json_open_object(e2b__json_reader *r, const char *text, size_t len) {
  e2b__json_token t;
  e2b__json_open(r, (char *)text, len);
  r->verbatim = true;
  e2b__json_next(r, &t);
}

/* Adds the members of `extra` to the object in `body`. One that is there already would make the request ambiguous. */
static e2b_err e2b__json_splice(e2b__buf *body, const char *extra, e2b_error *err) {
  e2b__json_reader mine, theirs;
  e2b_str name, have;
  const char *begin = strchr(extra, '{') + 1, *end = strrchr(extra, '}');
  bool any = false;
  e2b__json_open_object(&theirs, extra, strlen(extra));
  while (e2b__json_member(&theirs, &name)) {
    any = true;
    e2b__json_open_object(&mine, (const char *)body->data, body->len);
    while (!body->err && e2b__json_member(&mine, &have)) {
      if (have.len != name.len || memcmp(have.ptr, name.ptr, name.len) != 0) continue;
      e2b__error_set(err, E2B_ERR_INVALID_ARGUMENT, E2B_PHASE_NONE,
                     "extra_json has the member \"%.*s\", which is sent already: use its option",
                     (int)E2B__MIN(name.len, (size_t)64), name.ptr);
      if (err) err->subject = E2B_SUBJECT_OPTION;
      return E2B_ERR_INVALID_ARGUMENT;
    }
  }
  if (!any || body->err) return E2B_OK;
  body->data[body->len - 1] = ','; /* was the closing brace */
  e2b__buf_put(body, begin, (size_t)(end - begin));
  e2b__buf_byte(body, '}');
  return E2B_OK;
}

static bool e2b__rest_keep_traffic_token(e2b__rest_task *rest, const e2b_sandbox_opts *opts) {
  if (!opts || !e2b__given(opts->traffic_access_token)) return true;
  rest->traffic_token =
      e2b__mem_dup(&rest->task.op.client->mem, opts->traffic_access_token, strlen(opts->traffic_access_token));
  return rest->traffic_token != NULL;
}

/* E2B has no template of the Go client's default name; its own SDKs ask it for "base". */
static const char *e2b__default_template(const e2b_client *client) {
  e2b__url api;
  char domain[20];
  (void)e2b__url_parse(client->config.api_url, &api); /* checked by e2b_client_create */
  if (api.host.len < 4 || api.host.len - 4 >= sizeof domain || !e2b__str_eq_nocase(e2b__str_n(api.host.ptr, 4), "api."))
    return "code-interpreter";
  memcpy(domain, api.host.ptr + 4, api.host.len - 4);
  domain[api.host.len - 4] = 0;
  return e2b__domain_is_official(domain) ? "base" : "code-interpreter";
}

/* `on_answer` decides what *out is. */
static e2b_err e2b__create(e2b_client *client, const char *template_id, const e2b_sandbox_opts *opts,
                           e2b__task_fn on_answer, void *out, e2b_error *err) {
  e2b_sandbox_opts none;
  e2b__json_writer w;
  e2b__rest_task *rest;
  e2b_err code;
  if (!client) return e2b__invalid(err, "client", "is NULL");
  if (!out) return e2b__invalid(err, "out", "is NULL");
  if (!e2b__given(template_id)) template_id = e2b__default_template(client);
  code = e2b__create_check(template_id, opts, err);
  if (!code) code = e2b__rest_new(client, "POST", "/sandboxes", opts ? &opts->call : NULL, &rest, err);
  if (code) return code;
  memset(&none, 0, sizeof none);
  opts = opts ? opts : &none;
  w.out = &rest->task.req.body;
  w.comma = false;
  e2b__json_begin(&w, '{');
  e2b__rest_make_nonce(rest, opts->metadata);
  e2b__json_create(&w, template_id, opts, rest->nonce);
  e2b__json_end(&w, '}');
  if (e2b__given(opts->extra_json)) code = e2b__json_splice(w.out, opts->extra_json, err);
  if (!code && !e2b__rest_keep_traffic_token(rest, opts)) code = e2b__no_memory(err);
  if (code) {
    e2b__op_release(&rest->task.op);
    return code;
  }
  rest->task.subject = E2B_SUBJECT_TEMPLATE;
  rest->task.on_answer = on_answer;
  rest->task.out = out;
  return e2b__rest_run(rest, &opts->call, err);
}

/* {"timeout":<seconds>} */
static void e2b__rest_put_timeout(e2b__rest_task *rest, int32_t timeout_s) {
  e2b__buf *body = &rest->task.req.body;
  e2b__buf_text(body, "{\"timeout\":");
  e2b__buf_i64(body, timeout_s);
  e2b__buf_byte(body, '}');
}

/* Sends the life time that is wanted from now on; the server only ever extends that of a running sandbox. */
static e2b_err e2b__connect(e2b_client *client, const char *sandbox_id, int32_t timeout_s, const e2b_sandbox_opts *opts,
                            const e2b_call *call, e2b__task_fn on_answer, void *out, e2b_error *err) {
  e2b__rest_task *rest;
  e2b_err code;
  if (!out) return e2b__invalid(err, "out", "is NULL");
  code = e2b__traffic_token_check(opts ? opts->traffic_access_token : NULL, err);
  if (!code) code = e2b__rest_new_for(e2b__target_id(client, sandbox_id), "POST", "/connect", call, &rest, err);
  if (code) return code;
  e2b__rest_put_timeout(rest, timeout_s > 0 ? timeout_s : E2B__DEFAULT_LIFE_S);
  if (!e2b__rest_keep_traffic_token(rest, opts)) {
    e2b__op_release(&rest->task.op);
    return e2b__no_memory(err);
  }
  rest->connects = true;
  rest->task.on_answer = on_answer;
  rest->task.out = out;
  return e2b__rest_run(rest, call, err);
}

E2B_API e2b_err e2b_sandbox_create(e2b_client *client, const char *template_id, const e2b_sandbox_opts *opts,
                                   e2b_sandbox **out, e2b_error *err) {
  if (out) *out = NULL;
  return e2b__create(client, template_id, opts, e2b__created_handle, out, err);
}

E2B_API e2b_err e2b_api_create_sandbox(e2b_client *client, const char *template_id, const e2b_sandbox_opts *opts,
                                       e2b_create_response *out, e2b_error *err) {
  e2b__result_clear(out, sizeof *out);
  return e2b__create(client, template_id, opts, e2b__created_response, out, err);
}

E2B_API e2b_err e2b_sandbox_connect(e2b_client *client, const char *sandbox_id, const e2b_sandbox_opts *opts,
                                    e2b_sandbox **out, e2b_error *err) {
  int32_t timeout_s = opts ? opts->timeout_s : 0;
  if (out) *out = NULL;
  if (timeout_s < 0) return e2b__invalid(err, "timeout_s", "is negative: a sandbox lives for a limited time");
  return e2b__connect(client, sandbox_id, timeout_s, opts, opts ? &opts->call : NULL, e2b__created_handle, out, err);
}

E2B_API e2b_err e2b_api_connect_sandbox(e2b_client *client, const char *sandbox_id, int32_t timeout_s,
                                        const e2b_call *call, e2b_create_response *out, e2b_error *err) {
  e2b__result_clear(out, sizeof *out);
  return e2b__connect(client, sandbox_id, timeout_s, NULL, call, e2b__created_response, out, err);
}

/* ---- the other calls ---- */

static e2b_err e2b__info_answered(e2b__task *task, e2b_error *err) {
  e2b__rest_sandbox rest;
  e2b__arena arena;
  e2b_err code = e2b__rest_read(task, false, &arena, &rest, err);
  if (!code) code = e2b__rest_give(task, e2b__fill_info, &rest, sizeof(e2b_sandbox_info), err);
  e2b__arena_free(&arena);
  return code;
}

static e2b_err e2b__get_info(e2b__target target, const e2b_call *call, e2b_sandbox_info *out, e2b_error *err) {
  e2b__rest_task *rest;
  e2b_err code;
  e2b__result_clear(out, sizeof *out);
  if (!out) return e2b__invalid(err, "out", "is NULL");
  code = e2b__rest_new_for(target, "GET", "", call, &rest, err);
  if (code) return code;
  rest->task.on_answer = e2b__info_answered;
  rest->task.out = out;
  return e2b__rest_run(rest, call, err);
}

E2B_API e2b_err e2b_sandbox_get_info(e2b_sandbox *sandbox, const e2b_call *call, e2b_sandbox_info *out,
                                     e2b_error *err) {
  return e2b__get_info(e2b__target_sandbox(sandbox), call, out, err);
}

E2B_API e2b_err e2b_api_get_info(e2b_client *client, const char *sandbox_id, const e2b_call *call,
                                 e2b_sandbox_info *out, e2b_error *err) {
  return e2b__get_info(e2b__target_id(client, sandbox_id), call, out, err);
}

/* Ends a task that needs no request, as any other does: never before the function that started it returned. */
static e2b_err e2b__rest_skip(e2b__rest_task *rest, const e2b_call *call, e2b_error *err) {
  e2b__op_finish_code(&rest->task.op, E2B_OK, "");
  return e2b__op_run(&rest->task.op, call, err);
}

static e2b_err e2b__kill_answered(e2b__task *task, e2b_error *err) {
  e2b_err code = task->req.status == 404 ? E2B_OK : e2b__rest_answered(task, err);
  if (task->flag) *task->flag = code == E2B_OK && task->req.status != 404;
  return code;
}

static e2b_err e2b__kill_new(e2b__target target, const e2b_call *call, bool *killed, e2b__rest_task **out,
                             e2b_error *err) {
  e2b_err code;
  if (killed) *killed = false;
  code = e2b__rest_new_for(target, "DELETE", "", call, out, err);
  if (code) return code;
  (*out)->task.on_answer = e2b__kill_answered;
  (*out)->task.flag = killed;
  return E2B_OK;
}

static e2b_err e2b__kill_run(e2b__rest_task *rest, const e2b_call *call, e2b_error *err) {
  if (rest->task.op.sandbox) e2b__heartbeat_stop(rest->task.op.sandbox);
  if (!rest->task.op.client->config.debug) return e2b__rest_run(rest, call, err);
  if (rest->task.flag) *rest->task.flag = true;
  return e2b__rest_skip(rest, call, err);
}

static e2b_err e2b__kill(e2b__target target, const e2b_call *call, bool *killed, e2b_error *err) {
  e2b__rest_task *rest;
  e2b_err code = e2b__kill_new(target, call, killed, &rest, err);
  return code ? code : e2b__kill_run(rest, call, err);
}

E2B_API e2b_err e2b_sandbox_kill(e2b_sandbox *sandbox, const e2b_call *call, bool *killed, e2b_error *err) {
  return e2b__kill(e2b__target_sandbox(sandbox), call, killed, err);
}

E2B_API e2b_err e2b_api_kill(e2b_client *client, const char *sandbox_id, const e2b_call *call, bool *killed,
                             e2b_error *err) {
  return e2b__kill(e2b__target_id(client, sandbox_id), call, killed, err);
}

E2B_API e2b_err e2b_sandbox_close(e2b_sandbox *sandbox, const e2b_call *call, e2b_error *err) {
  e2b__rest_task *rest;
  e2b_err code;
  if (err) memset(err, 0, sizeof *err);
  if (!sandbox) return E2B_OK;
  code = e2b__kill_new(e2b__target_id(sandbox->client, sandbox->id), call, NULL, &rest, err);
  e2b_sandbox_free(sandbox);
  return code ? code : e2b__kill_run(rest, call, err);
}

static e2b_err e2b__set_timeout(e2b__target target, int32_t timeout_s, const e2b_call *call, e2b_error *err) {
  e2b__rest_task *rest;
  e2b_err code;
  if (timeout_s < 0) return e2b__invalid(err, "timeout_s", "is negative: a sandbox lives for a limited time");
  code = e2b__rest_new_for(target, "POST", "/timeout", call, &rest, err);
  if (code) return code;
  if (target.client->config.debug) return e2b__rest_skip(rest, call, err);
  e2b__rest_put_timeout(rest, timeout_s);
  rest->task.on_answer = e2b__rest_answered;
  return e2b__rest_run(rest, call, err);
}

E2B_API e2b_err e2b_sandbox_set_timeout(e2b_sandbox *sandbox, int32_t timeout_s, const e2b_call *call, e2b_error *err) {
  return e2b__set_timeout(e2b__target_sandbox(sandbox), timeout_s, call, err);
}

E2B_API e2b_err e2b_api_set_timeout(e2b_client *client, const char *sandbox_id, int32_t timeout_s, const e2b_call *call,
                                    e2b_error *err) {
  return e2b__set_timeout(e2b__target_id(client, sandbox_id), timeout_s, call, err);
}

/* A conflict means that it is paused already, or being paused. */
static e2b_err e2b__pause_answered(e2b__task *task, e2b_error *err) {
  return task->req.status == 409 ? E2B_OK : e2b__rest_answered(task, err);
}

static e2b_err e2b__pause(e2b__target target, const e2b_call *call, e2b_error *err) {
  e2b__rest_task *rest;
  e2b_err code = e2b__rest_new_for(target, "POST", "/pause", call, &rest, err);
  if (code) return code;
  rest->task.on_answer = e2b__pause_answered;
  if (target.sandbox) e2b__heartbeat_stop(target.sandbox);
  return e2b__rest_run(rest, call, err);
}

E2B_API e2b_err e2b_sandbox_pause(e2b_sandbox *sandbox, const e2b_call *call, e2b_error *err) {
  return e2b__pause(e2b__target_sandbox(sandbox), call, err);
}

E2B_API e2b_err e2b_api_pause(e2b_client *client, const char *sandbox_id, const e2b_call *call, e2b_error *err) {
  return e2b__pause(e2b__target_id(client, sandbox_id), call, err);
}

/* ---- lists ---- */

/* A page, or with on_sandbox all of them. */
typedef struct e2b__list_task {
  e2b__rest_task rest;
  char *template_id;        /* applied here, where the server cannot; NULL = by the server */
  int64_t started_after_ms; /* as well; 0 = by the server */
  size_t query_len;         /* of the path, without the token of the page */
  e2b__buf tokens;          /* that were used already, each ended by NUL */
  e2b_sandbox_fn on_sandbox;
  int32_t page_ms;          /* what each page adds to the deadline, 0 = nothing */
  uint64_t seen;
} e2b__list_task;

static void e2b__list_release(e2b__op *op) {
  e2b__list_task *list = (e2b__list_task *)op;
  e2b__mem_free_str(&op->client->mem, list->template_id);
  e2b__buf_free(&list->tokens);
  e2b__rest_release(op);
}

static const e2b__op_type e2b__list_type = { e2b__rest_cancel, e2b__list_release, e2b__task_resume, e2b__task_phase, NULL };

/* Drops from a page what the server could not be asked to leave out. */
static void e2b__list_filter(const e2b__list_task *list, e2b__list *sandboxes) {
  e2b__rest_sandbox *all = (e2b__rest_sandbox *)sandboxes->items;
  size_t i, kept = 0;
  for (i = 0; i < sandboxes->count; i++) {
    if (list->template_id && !e2b__str_eq(all[i].template_id, list->template_id) &&
        !e2b__str_eq(all[i].alias, list->template_id))
      continue;
    if (list->started_after_ms && e2b__to_unix_ms(all[i].started_at) < list->started_after_ms) continue;
    all[kept++] = all[i];
  }
  sandboxes->count = kept;
}

/* Reads a page and hands it out in *out. */
static e2b_err e2b__list_read(e2b__list_task *list, e2b_sandbox_list *out, e2b_error *err) {
  e2b__task *task = &list->rest.task;
  e2b__rest_page page;
  e2b__arena arena;
  e2b_err code = e2b__rest_read(task, true, &arena, &page.sandboxes, err);
  page.next_token = e2b__headers_get(&task->req.answer_headers, "x-next-token");
  if (!code) {
    e2b__list_filter(list, &page.sandboxes);
    task->out = out;
    code = e2b__rest_give(task, e2b__fill_page, &page, sizeof *out, err);
  }
  e2b__arena_free(&arena);
  return code;
}

static e2b_err e2b__list_answered(e2b__task *task, e2b_error *err) {
  return e2b__list_read((e2b__list_task *)task, (e2b_sandbox_list *)task->out, err);
}

/* Asks for the page of a token, which must not have been used before. */
static e2b_err e2b__list_turn_page(e2b__list_task *list, const char *token, e2b_error *err) {
  e2b__task *task = &list->rest.task;
  const char *used = (const char *)list->tokens.data;
  size_t at;
  for (at = 0; at < list->tokens.len; at += strlen(used + at) + 1) {
    if (strcmp(used + at, token) != 0) continue;
    return e2b__error_say(err, E2B_ERR_PROTOCOL, "after %llu sandboxes the server gave the token of a page it had given before",
                          (unsigned long long)list->seen);
  }
  e2b__buf_put(&list->tokens, token, strlen(token) + 1);
  if (list->tokens.err) return e2b__error_say(err, list->tokens.err, "no memory for the tokens of the pages");
  task->req.path.len = list->query_len;
  e2b__url_query(&task->req.path, "nextToken", e2b__str(token));
  task->waited = false;
  if (list->page_ms > 0) task->op.deadline = e2b__deadline(task->op.client->now, list->page_ms);
  return e2b__task_again(task, err);
}

/* Hands a page to on_sandbox and asks for the next one. The callback may cancel the operation. */
static e2b_err e2b__list_page_answered(e2b__task *task, e2b_error *err) {
  e2b__list_task *list = (e2b__list_task *)task;
  e2b_client *client = task->op.client;
  e2b_sandbox_list page;
  e2b_op handle;
  size_t i;
  int said = 0;
  e2b_err code;
  handle.id = task->op.id;
  memset(&page, 0, sizeof page);
  code = e2b__list_read(list, &page, err);
  for (i = 0; !code && !said && i < page.count; i++) {
    list->seen++;
    said = list->on_sandbox(task->user, &page.items[i]);
    if (!e2b__op_find(client, handle)) code = E2B_PENDING; /* and gone */
  }
  if (!code && said < 0) code = e2b__error_say(err, E2B_ERR_CANCELED, "on_sandbox returned %d", said);
  if (!code && !said && page.next_token) code = e2b__list_turn_page(list, page.next_token, err);
  e2b_mem_free(&page.mem);
  return code;
}

static e2b_err e2b__list_check(const e2b_client *client, const e2b_list_opts *opts, e2b_error *err) {
  bool kruise = client && e2b__config_is_kruise(&client->config);
  size_t i;
  e2b_err code;
  if (!opts) return E2B_OK;
  if ((code = e2b__pairs_check(opts->metadata, "metadata", err)) != E2B_OK) return code;
  for (i = 0; kruise && i < opts->metadata.count; i++) {
    const char *key = opts->metadata.items[i].key, *value = opts->metadata.items[i].value;
    if (strpbrk(key, "&=") || (value && strchr(value, '&')))
      return e2b__invalid(err, "metadata", "has a '&', or a '=' in a key: OpenKruise cannot be asked for these");
  }
  if (opts->states & ~(uint32_t)(E2B_STATE_RUNNING | E2B_STATE_PAUSED))
    return e2b__invalid(err, "states", "has bits besides E2B_STATE_RUNNING and E2B_STATE_PAUSED");
  if (!e2b__text_ok(opts->template_id)) return e2b__invalid(err, "template_id", "has a control character");
  if (opts->started_after_ms < 0) return e2b__invalid(err, "started_after_ms", "is negative");
  if (opts->limit < 0 || opts->limit > 100) return e2b__invalid(err, "limit", "must be 1 to 100");
  if (opts->next_token && !e2b__text_ok(opts->next_token))
    return e2b__invalid(err, "next_token", "has a control character");
  return E2B_OK;
}

/* Whether E2B's cloud reads a text as it is when one layer less is around it. */
static bool e2b__metadata_is_plain(const char *text) {
  return !text || !strpbrk(text, "%+&=");
}

/* E2B's cloud decodes three layers, OpenKruise two, and that one cannot be told by its URL under api.<domain>. So three only
 * for what needs them, which that one cannot be asked for anyway. */
static void e2b__list_put_metadata(e2b__buf *path, e2b_kvs metadata, bool kruise) {
  int layers = 2;
  size_t i;
  for (i = 0; i < metadata.count && !kruise; i++)
    if (!e2b__metadata_is_plain(metadata.items[i].key) || !e2b__metadata_is_plain(metadata.items[i].value)) layers = 3;
  e2b__url_query_name(path, "metadata");
  e2b__url_metadata(path, metadata, layers);
}

/* OpenKruise takes names it does not know for metadata, which would empty the list: they are not sent there. */
static void e2b__list_put_query(e2b__buf *path, const e2b_list_opts *opts, bool kruise) {
  if (opts->metadata.count) e2b__list_put_metadata(path, opts->metadata, kruise);
  if (opts->states) {
    e2b__url_query_name(path, "state");
    e2b__buf_text(path, opts->states == E2B_STATE_RUNNING  ? "running"
                        : opts->states == E2B_STATE_PAUSED ? "paused"
                                                           : "running,paused");
  }
  if (opts->limit) {
    e2b__url_query_name(path, "limit");
    e2b__buf_i64(path, opts->limit);
  }
  if (kruise) return;
  if (e2b__given(opts->template_id)) e2b__url_query(path, "template", e2b__str(opts->template_id));
  if (opts->started_after_ms) {
    e2b__timestamp after;
    e2b__buf text;
    e2b__buf_init(&text, path->mem, 64);
    after.seconds = opts->started_after_ms / 1000;
    after.nanos = (int32_t)(opts->started_after_ms % 1000) * 1000000;
    e2b__time_format(after, &text);
    if (text.err) path->err = text.err;
    else e2b__url_query(path, "startedAfter", e2b__str_n((const char *)text.data, text.len));
    e2b__buf_free(&text);
  }
  if (opts->oldest_first) e2b__url_query(path, "order", e2b__str("asc"));
}

/* A task for the first page. */
static e2b_err e2b__list_new(e2b_client *client, const e2b_list_opts *opts, e2b__list_task **out, e2b_error *err) {
  e2b_list_opts none;
  e2b__list_task *list;
  e2b__buf *path;
  e2b__rest_task *rest;
  bool kruise = client && e2b__config_is_kruise(&client->config);
  e2b_err code = e2b__list_check(client, opts, err);
  memset(&none, 0, sizeof none);
  opts = opts ? opts : &none;
  if (!code) code = e2b__rest_new_sized(client, "GET", "/v2/sandboxes", &opts->call, &e2b__list_type, sizeof *list, &rest, err);
  if (code) return code;
  list = (e2b__list_task *)rest;
  path = &rest->task.req.path;
  e2b__buf_init(&list->tokens, &client->mem, 0x1000000u);
  e2b__list_put_query(path, opts, kruise);
  list->query_len = path->len;
  if (e2b__given(opts->next_token)) e2b__url_query(path, "nextToken", e2b__str(opts->next_token));
  if (kruise) list->started_after_ms = opts->started_after_ms;
  if (kruise && e2b__given(opts->template_id)) {
    list->template_id = e2b__mem_dup(&client->mem, opts->template_id, strlen(opts->template_id));
    if (!list->template_id) path->err = E2B_ERR_NO_MEMORY;
  }
  rest->task.req.idempotent = true;
  *out = list;
  return E2B_OK;
}

E2B_API e2b_err e2b_api_list(e2b_client *client, const e2b_list_opts *opts, e2b_sandbox_list *out, e2b_error *err) {
  e2b__list_task *list;
  e2b_err code;
  e2b__result_clear(out, sizeof *out);
  if (!out) return e2b__invalid(err, "out", "is NULL");
  code = e2b__list_new(client, opts, &list, err);
  if (code) return code;
  list->rest.task.on_answer = e2b__list_answered;
  list->rest.task.out = out;
  return e2b__rest_run(&list->rest, opts ? &opts->call : NULL, err);
}

E2B_API e2b_err e2b_api_list_all(e2b_client *client, const e2b_list_opts *opts, e2b_sandbox_fn on_sandbox, void *user,
                                 e2b_error *err) {
  e2b__list_task *list;
  e2b_err code;
  if (!on_sandbox) return e2b__invalid(err, "on_sandbox", "is NULL");
  code = e2b__list_new(client, opts, &list, err);
  if (code) return code;
  list->on_sandbox = on_sandbox;
  list->rest.task.user = user;
  list->rest.task.on_answer = e2b__list_page_answered;
  list->page_ms = opts && opts->call.timeout_ms ? 0 : client->config.request_timeout_ms;
  if (opts && e2b__given(opts->next_token)) e2b__buf_put(&list->tokens, opts->next_token, strlen(opts->next_token) + 1);
  if (list->tokens.err) list->rest.task.req.path.err = list->tokens.err;
  return e2b__rest_run(&list->rest, opts ? &opts->call : NULL, err);
}

/* ---- traffic tokens and keys ---- */

#define E2B__KEY_MAX 1024u

#ifndef E2B_NO_TRAFFIC_TOKEN
typedef struct e2b__traffic_answer {
  e2b_str token;
  int64_t expires;
} e2b__traffic_answer;

static void e2b__fill_traffic(e2b__pack *pack, const void *from, void *out) {
  const e2b__traffic_answer *answer = (const e2b__traffic_answer *)from;
  e2b_traffic_token *token = (e2b_traffic_token *)out;
  token->token = e2b__pack_str(pack, answer->token);
  token->expires_at_ms = answer->expires * 1000;
}

static e2b_err e2b__traffic_answered(e2b__task *task, e2b_error *err) {
  e2b__traffic_answer answer;
  e2b__arena arena;
  e2b_err code = e2b__traffic_read(&task->req, &arena, &answer.token, &answer.expires, err);
  if (!code) code = e2b__rest_give(task, e2b__fill_traffic, &answer, sizeof(e2b_traffic_token), err);
  e2b__arena_free(&arena);
  return code;
}

E2B_API e2b_err e2b_api_refresh_traffic_access_token(e2b_client *client, const char *sandbox_id, const e2b_call *call,
                                                     e2b_traffic_token *out, e2b_error *err) {
  e2b__rest_task *rest;
  e2b_err code;
  e2b__result_clear(out, sizeof *out);
  if (!out) return e2b__invalid(err, "out", "is NULL");
  code = e2b__rest_new_for(e2b__target_id(client, sandbox_id), "POST", "/traffic-access-token", call, &rest, err);
  if (code) return code;
  e2b__headers_set(&rest->task.req.headers, "content-type", e2b__str("application/json"));
  rest->task.on_answer = e2b__traffic_answered;
  rest->task.out = out;
  return e2b__rest_run(rest, call, err);
}

E2B_API e2b_err e2b_sandbox_refresh_traffic_access_token(e2b_sandbox *sandbox, const e2b_call *call, const char **token,
                                                         e2b_error *err) {
  e2b__traffic *traffic;
  e2b__traffic_op *op;
  e2b_error failed;
  if (token) *token = NULL;
  if (!sandbox) return e2b__invalid(err, "sandbox", "is NULL");
  if (e2b__call_check(call, err)) return E2B_ERR_INVALID_ARGUMENT;
  traffic = sandbox->traffic;
  if (!traffic || sandbox->client->config.traffic_token_provider)
    return e2b__fail(err, E2B_ERR_BAD_STATE, traffic ? "the traffic tokens come from traffic_token_provider"
                                                     : "this sandbox has no traffic token that can be refreshed: see E2B_JWT_AUTH_METADATA_KEY");
  op = (e2b__traffic_op *)e2b__op_new(sandbox->client, call, &e2b__traffic_op_type, sizeof *op,
                                      sandbox->client->config.request_timeout_ms, &failed);
  if (!op) {
    if (err) *err = failed;
    return failed.code;
  }
  op->op.sandbox = sandbox;
  op->out = token;
  if (!traffic->refreshing) e2b__traffic_refresh(traffic);
  if (!traffic->refreshing) {
    e2b__op_release(&op->op);
    return e2b__no_memory(err);
  }
  op->traffic = traffic;
  op->next = traffic->waiting;
  traffic->waiting = op;
  return e2b__op_run(&op->op, call, err);
}
#endif

E2B_API size_t e2b_encode_for_e2b_sdk(const char *raw_key, char *out, size_t cap) {
  static const char scope[] = "openkruise-agents/e2b-key-compat/v1", digits[] = "0123456789abcdef";
  size_t scope_len = sizeof scope - 1, len = raw_key ? strlen(raw_key) : 0, total = 38 + len * 2, i;
  uint8_t text[sizeof scope + E2B__KEY_MAX], check[32];
  char head[32];
  bool ok;
  if (cap) out[0] = 0;
  if (len > E2B__KEY_MAX) return 0;
  memcpy(text, scope, scope_len);
  if (len) memcpy(text + scope_len, raw_key, len);
  ok = e2b__sha256(text, scope_len + len, check);
  (void)snprintf(head, sizeof head, "e2b_6f6b616701%08lx", (unsigned long)len);
  for (i = 0; ok && i < total && i + 1 < cap; i++) {
    size_t at = i < 22 ? 0 : (i - 22) / 2;
    uint8_t byte = at < len ? text[scope_len + at] : check[at - len];
    out[i] = i < 22 ? head[i] : digits[i % 2 ? byte & 15u : byte >> 4];
  }
  if (cap && ok) out[i] = 0;
  e2b__mem_wipe(text, sizeof text);
  return ok ? total : 0;
}

/* The edge answers 502 for a sandbox that does not run; one with a web page is somebody else's. */
static e2b_err e2b__health_answered(e2b__task *task, e2b_error *err) {
  if (task->req.status == 502 && e2b__rest_first_char(task) != '<') return E2B_OK;
  if (!e2b__rest_is_success(task))
    return e2b__answer_error(&task->req, E2B_SUBJECT_SANDBOX, "check the sandbox's access token", err);
  *task->flag = task->req.status == 204 || e2b__rest_first_char(task) != '<';
  if (*task->flag) return E2B_OK;
  err->phase = E2B_PHASE_DECODE;
  return e2b__error_say(err, E2B_ERR_PROTOCOL,
                        "a web page is no answer to GET /health (HTTP %d): is this URL really envd?", task->req.status);
}

E2B_API e2b_err e2b_sandbox_is_running(e2b_sandbox *sandbox, const e2b_call *call, bool *running, e2b_error *err) {
  e2b__task *task;
  e2b_error failed;
  if (running) *running = false;
  if (!sandbox) return e2b__invalid(err, "sandbox", "is NULL");
  if (!running) return e2b__invalid(err, "running", "is NULL");
  if (e2b__call_check(call, err)) return E2B_ERR_INVALID_ARGUMENT;
  task = e2b__task_new(sandbox->client, call, &failed);
  if (!task) {
    if (err) *err = failed;
    return failed.code;
  }
  task->op.sandbox = sandbox;
  task->req.idempotent = true;
  task->on_answer = e2b__health_answered;
  task->flag = running;
  e2b__req_target(&task->req, &sandbox->runtime);
  e2b__buf_text(&task->req.path, "/health");
  e2b__data_headers(&task->req, sandbox, NULL, call);
  return e2b__task_run(task, call, err);
}
/* ================================================================================================================== */
/* >>>> api */
/* ================================================================================================================== */

/* The rest of the control plane that has functions of its own. */

/* ---- finding by nonce ---- */

static bool e2b__has_pair(const e2b__list *pairs, const char *key, const char *value) {
  const e2b__pair *pair = (const e2b__pair *)pairs->items;
  size_t i;
  for (i = 0; i < pairs->count; i++)
    if (e2b__str_eq(pair[i].key, key) && e2b__str_eq(pair[i].value, value)) return true;
  return false;
}

/* Looks at the metadata itself, for a server that ignores the filter lists others: task->data is the nonce. */
static e2b_err e2b__found_answered(e2b__task *task, e2b_error *err) {
  const e2b__rest_sandbox *rest;
  e2b__list list;
  e2b__arena arena;
  size_t i;
  e2b_err code = e2b__rest_read(task, true, &arena, &list, err);
  if (!code) {
    rest = (const e2b__rest_sandbox *)list.items;
    for (i = 0; i < list.count; i++)
      if (e2b__has_pair(&rest[i].metadata, E2B_NONCE_KEY, (const char *)task->data)) break;
    if (i < list.count) {
      code = e2b__rest_give(task, e2b__fill_info, &rest[i], sizeof(e2b_sandbox_info), err);
    } else {
      err->subject = E2B_SUBJECT_SANDBOX;
      code = e2b__error_say(err, E2B_ERR_NOT_FOUND,
                            "no sandbox has that nonce; if its create may still be at work, ask again");
    }
  }
  e2b__arena_free(&arena);
  return code;
}

E2B_API e2b_err e2b_api_find_by_nonce(e2b_client *client, const char *nonce, const e2b_call *call,
                                      e2b_sandbox_info *out, e2b_error *err) {
  e2b__rest_task *rest;
  e2b_kvs filter;
  e2b_kv pair;
  e2b_err code;
  e2b__result_clear(out, sizeof *out);
  if (!out) return e2b__invalid(err, "out", "is NULL");
  if (!e2b__given(nonce)) return e2b__invalid(err, "nonce", "is empty");
  if (!e2b__text_ok(nonce)) return e2b__invalid(err, "nonce", "has a control character");
  if (strlen(nonce) >= sizeof rest->nonce) return e2b__invalid(err, "nonce", "is longer than 32 bytes");
  if (client && e2b__config_is_kruise(&client->config) && strchr(nonce, '&'))
    return e2b__invalid(err, "nonce", "has a '&', which OpenKruise cannot be asked for");
  code = e2b__rest_new(client, "GET", "/v2/sandboxes", call, &rest, err);
  if (code) return code;
  memcpy(rest->nonce, nonce, strlen(nonce) + 1);
  pair.key = E2B_NONCE_KEY;
  pair.value = nonce;
  filter.items = &pair;
  filter.count = 1;
  e2b__list_put_metadata(&rest->task.req.path, filter, e2b__config_is_kruise(&client->config));
  rest->task.req.idempotent = true;
  rest->task.on_answer = e2b__found_answered;
  rest->task.data = (const uint8_t *)rest->nonce;
  rest->task.out = out;
  return e2b__rest_run(rest, call, err);
}

/* ---- network ---- */

E2B_API e2b_err e2b_api_update_network(e2b_client *client, const char *sandbox_id, const e2b_network *network,
                                       e2b_tri allow_internet_access, const e2b_call *call, e2b_error *err) {
  e2b__json_writer w;
  e2b__rest_task *rest;
  e2b_err code = network ? e2b__network_check(network, err) : E2B_OK;
  if (code) return code;
  if (network && network->allow_public_traffic != E2B_UNSET)
    return e2b__invalid(err, "network.allow_public_traffic", "can only be set when creating");
  if (network && e2b__given(network->mask_request_host))
    return e2b__invalid(err, "network.mask_request_host", "can only be set when creating");
  code = e2b__rest_new_for(e2b__target_id(client, sandbox_id), "PUT", "/network", call, &rest, err);
  if (code) return code;
  w.out = &rest->task.req.body;
  w.comma = false;
  e2b__json_begin(&w, '{');
  if (network) e2b__json_network(&w, network);
  e2b__json_tri(&w, "allow_internet_access", allow_internet_access);
  e2b__json_end(&w, '}');
  rest->task.on_answer = e2b__rest_answered;
  return e2b__rest_run(rest, call, err);
}

#if !defined(E2B_NO_METRICS) || !defined(E2B_NO_SNAPSHOTS)
/* As e2b__rest_read_as; but a server that does not know the call may answer with what it knows about the sandbox. */
static e2b_err e2b__api_read(e2b__task *task, const e2b__message *type, bool list, const char *what, e2b__arena *arena,
                             void *out, e2b_error *err) {
  e2b__arena_init(arena, &task->op.client->mem, 0);
  if (e2b__rest_is_success(task) && e2b__rest_first_char(task) == (list ? '{' : '[')) {
    err->phase = E2B_PHASE_DECODE;
    return e2b__error_say(err, E2B_ERR_NOT_BUILT,
                          "this server knows no such call: its answer (HTTP %d) is not that of a %s", task->req.status,
                          what);
  }
  return e2b__rest_read_as(task, type, list, what, arena, out, err);
}
#endif

#ifndef E2B_NO_METRICS

/* ---- metrics and logs ---- */

/* A JSON number. strtod would want the decimal point of the locale. */
static double e2b__to_double(e2b_str text) {
  double value = 0, scale = 1;
  bool negative = text.len && text.ptr[0] == '-', fraction = false;
  int64_t exponent = 0;
  size_t i;
  for (i = 0; i < text.len && e2b__ascii_lower(text.ptr[i]) != 'e'; i++) {
    if (text.ptr[i] == '.') fraction = true;
    if (!e2b__is_digit(text.ptr[i])) continue;
    value = value * 10 + (double)(text.ptr[i] - '0');
    if (fraction) scale *= 10;
  }
  if (i < text.len) i += text.len - i > 1 && text.ptr[i + 1] == '+' ? 2 : 1;
  if (i < text.len && !e2b__json_to_i64(e2b__str_n(text.ptr + i, text.len - i), &exponent)) exponent = 0;
  for (exponent = E2B__MIN(exponent, (int64_t)330); exponent > 0; exponent--) value *= 10;
  for (exponent = E2B__MAX(exponent, (int64_t)-330); exponent < 0; exponent++) scale *= 10;
  return (negative ? -value : value) / scale;
}

static void e2b__fill_metrics(e2b__pack *pack, const void *from, void *out) {
  const e2b__list *list = (const e2b__list *)from;
  const e2b__rest_metric *rest = (const e2b__rest_metric *)list->items;
  e2b_metric_list *result = (e2b_metric_list *)out;
  e2b_metric *items = (e2b_metric *)e2b__pack_alloc(pack, list->count * sizeof *items);
  size_t i;
  result->items = items;
  result->count = list->count;
  for (i = 0; items && i < list->count; i++) {
    items[i].timestamp_ms = e2b__to_unix_ms(rest[i].timestamp);
    if (!items[i].timestamp_ms && rest[i].timestamp_unix > 0 && rest[i].timestamp_unix < INT64_MAX / 1000)
      items[i].timestamp_ms = rest[i].timestamp_unix * 1000;
    items[i].cpu_count = e2b__to_i32(rest[i].cpu_count);
    items[i].cpu_used_pct = e2b__to_double(rest[i].cpu_used_pct);
    items[i].mem_total = rest[i].mem_total;
    items[i].mem_used = rest[i].mem_used;
    items[i].mem_cache = rest[i].mem_cache;
    items[i].disk_total = rest[i].disk_total;
    items[i].disk_used = rest[i].disk_used;
  }
}

static e2b_err e2b__metrics_answered(e2b__task *task, e2b_error *err) {
  e2b__list list;
  e2b__arena arena;
  e2b_err code = e2b__api_read(task, &e2b__msg_rest_metric, true, "list of metrics", &arena, &list, err);
  if (!code) code = e2b__rest_give(task, e2b__fill_metrics, &list, sizeof(e2b_metric_list), err);
  e2b__arena_free(&arena);
  return code;
}

/* "name=<value>" when there is one. */
static void e2b__url_query_i64(e2b__buf *path, const char *name, int64_t value) {
  if (!value) return;
  e2b__url_query_name(path, name);
  e2b__buf_i64(path, value);
}

E2B_API e2b_err e2b_api_get_metrics(e2b_client *client, const char *sandbox_id, int64_t start_ms, int64_t end_ms,
                                    const e2b_call *call, e2b_metric_list *out, e2b_error *err) {
  e2b__rest_task *rest;
  e2b_err code;
  e2b__result_clear(out, sizeof *out);
  if (!out) return e2b__invalid(err, "out", "is NULL");
  if (start_ms < 0) return e2b__invalid(err, "start_ms", "is negative");
  if (end_ms < 0 || (end_ms && end_ms < start_ms)) return e2b__invalid(err, "end_ms", "is before start_ms");
  code = e2b__rest_new_for(e2b__target_id(client, sandbox_id), "GET", "/metrics", call, &rest, err);
  if (code) return code;
  e2b__url_query_i64(&rest->task.req.path, "start", start_ms / 1000);
  e2b__url_query_i64(&rest->task.req.path, "end", end_ms / 1000 + (end_ms % 1000 ? 1 : 0));
  rest->task.on_answer = e2b__metrics_answered;
  rest->task.out = out;
  return e2b__rest_run(rest, call, err);
}

static void e2b__fill_logs(e2b__pack *pack, const void *from, void *out) {
  const e2b__list *list = &((const e2b__rest_logs *)from)->logs;
  const e2b__rest_log *rest = (const e2b__rest_log *)list->items;
  e2b_log_list *result = (e2b_log_list *)out;
  e2b_log_entry entry, *items = (e2b_log_entry *)e2b__pack_alloc(pack, list->count * sizeof *items);
  size_t i;
  result->items = items;
  result->count = list->count;
  for (i = 0; i < list->count; i++) {
    entry.timestamp_ms = e2b__to_unix_ms(rest[i].timestamp);
    entry.level = e2b__pack_str(pack, rest[i].level);
    entry.message = e2b__pack_str(pack, rest[i].message);
    entry.fields = e2b__pack_pairs(pack, &rest[i].fields);
    if (items) items[i] = entry;
  }
}

static e2b_err e2b__logs_answered(e2b__task *task, e2b_error *err) {
  e2b__rest_logs logs;
  e2b__arena arena;
  e2b_err code = e2b__api_read(task, &e2b__msg_rest_logs, false, "list of logs", &arena, &logs, err);
  if (!code) code = e2b__rest_give(task, e2b__fill_logs, &logs, sizeof(e2b_log_list), err);
  e2b__arena_free(&arena);
  return code;
}

static e2b_err e2b__logs_check(const e2b_logs_opts *opts, e2b_error *err) {
  if (opts->cursor_ms < 0) return e2b__invalid(err, "cursor_ms", "is negative");
  if (opts->limit < 0 || opts->limit > 1000) return e2b__invalid(err, "limit", "must be 1 to 1000");
  if (!e2b__text_ok(opts->level)) return e2b__invalid(err, "level", "has a control character");
  if (!e2b__text_ok(opts->search)) return e2b__invalid(err, "search", "has a control character");
  if (opts->search && strlen(opts->search) > 256) return e2b__invalid(err, "search", "is longer than 256 bytes");
  return E2B_OK;
}

E2B_API e2b_err e2b_api_get_logs(e2b_client *client, const char *sandbox_id, const e2b_logs_opts *opts,
                                 e2b_log_list *out, e2b_error *err) {
  const e2b_call *call = opts ? &opts->call : NULL;
  e2b__rest_task *rest;
  e2b__buf *path;
  e2b_err code;
  e2b__result_clear(out, sizeof *out);
  if (!out) return e2b__invalid(err, "out", "is NULL");
  code = client ? e2b__sandbox_id_check(sandbox_id, err) : E2B_OK;
  if (!code && opts) code = e2b__logs_check(opts, err);
  if (!code) code = e2b__rest_new(client, "GET", "/v2/sandboxes/", call, &rest, err);
  if (code) return code;
  path = &rest->task.req.path;
  e2b__url_escape(path, e2b__str(sandbox_id));
  e2b__buf_text(path, "/logs");
  if (opts) {
    e2b__url_query_i64(path, "cursor", opts->cursor_ms);
    e2b__url_query_i64(path, "limit", opts->limit);
    if (opts->forward) e2b__url_query(path, "direction", e2b__str("forward"));
    if (e2b__given(opts->level)) e2b__url_query(path, "level", e2b__str(opts->level));
    if (e2b__given(opts->search)) e2b__url_query(path, "search", e2b__str(opts->search));
  }
  rest->task.req.idempotent = true;
  rest->task.subject = E2B_SUBJECT_SANDBOX;
  rest->task.on_answer = e2b__logs_answered;
  rest->task.out = out;
  return e2b__rest_run(rest, call, err);
}
#endif

#ifndef E2B_NO_SNAPSHOTS

/* ---- snapshots ---- */

/* All members but mem. `out` is NULL in the first pass of a list. */
static void e2b__pack_snapshot(e2b__pack *pack, const e2b__rest_snapshot *rest, e2b_snapshot *out) {
  const e2b_str *from = (const e2b_str *)rest->names.items;
  const char *id = e2b__pack_str(pack, rest->snapshot_id), *name;
  const char **names = (const char **)e2b__pack_alloc(pack, rest->names.count * sizeof *names);
  size_t i;
  for (i = 0; i < rest->names.count; i++) {
    name = e2b__pack_str(pack, from[i]);
    if (names) names[i] = name;
  }
  if (!out) return;
  out->snapshot_id = id;
  out->names.items = names;
  out->names.count = rest->names.count;
}

static void e2b__fill_snapshot(e2b__pack *pack, const void *from, void *out) {
  e2b__pack_snapshot(pack, (const e2b__rest_snapshot *)from, (e2b_snapshot *)out);
}

typedef struct e2b__snapshot_page {
  e2b__list snapshots; /* e2b__rest_snapshot */
  const char *next_token;
} e2b__snapshot_page;

static void e2b__fill_snapshots(e2b__pack *pack, const void *from, void *out) {
  const e2b__snapshot_page *page = (const e2b__snapshot_page *)from;
  const e2b__rest_snapshot *rest = (const e2b__rest_snapshot *)page->snapshots.items;
  e2b_snapshot_list *list = (e2b_snapshot_list *)out;
  e2b_snapshot *items = (e2b_snapshot *)e2b__pack_alloc(pack, page->snapshots.count * sizeof *items);
  size_t i;
  for (i = 0; i < page->snapshots.count; i++) {
    if (items) memset(&items[i], 0, sizeof items[i]);
    e2b__pack_snapshot(pack, &rest[i], items ? &items[i] : NULL);
  }
  list->items = items;
  list->count = page->snapshots.count;
  list->next_token = e2b__given(page->next_token) ? e2b__pack_str(pack, e2b__str(page->next_token)) : NULL;
}

static e2b_err e2b__snapshot_answered(e2b__task *task, e2b_error *err) {
  e2b__rest_snapshot rest;
  e2b__arena arena;
  e2b_err code = e2b__api_read(task, &e2b__msg_rest_snapshot, false, "snapshot", &arena, &rest, err);
  if (!code && !rest.snapshot_id.len) {
    err->phase = E2B_PHASE_DECODE;
    code = e2b__error_say(err, E2B_ERR_PROTOCOL, "the answer (HTTP %d) has no snapshotID", task->req.status);
  }
  if (!code) code = e2b__rest_give(task, e2b__fill_snapshot, &rest, sizeof(e2b_snapshot), err);
  if (code && e2b__rest_is_success(task)) err->maybe_done = true;
  e2b__arena_free(&arena);
  return code;
}

E2B_API e2b_err e2b_api_create_snapshot(e2b_client *client, const char *sandbox_id, const char *name,
                                        const e2b_call *call, e2b_snapshot *out, e2b_error *err) {
  e2b__json_writer w;
  e2b__rest_task *rest;
  e2b_err code;
  e2b__result_clear(out, sizeof *out);
  if (!out) return e2b__invalid(err, "out", "is NULL");
  if (!e2b__text_ok(name)) return e2b__invalid(err, "name", "has a control character");
  code = e2b__rest_new_for(e2b__target_id(client, sandbox_id), "POST", "/snapshots", call, &rest, err);
  if (code) return code;
  w.out = &rest->task.req.body;
  w.comma = false;
  e2b__json_begin(&w, '{');
  e2b__json_text(&w, "name", name);
  e2b__json_end(&w, '}');
  rest->task.req.idempotent = false;
  rest->task.on_answer = e2b__snapshot_answered;
  rest->task.out = out;
  return e2b__rest_run(rest, call, err);
}

static e2b_err e2b__snapshots_answered(e2b__task *task, e2b_error *err) {
  e2b__snapshot_page page;
  e2b__arena arena;
  e2b_err code = e2b__api_read(task, &e2b__msg_rest_snapshot, true, "list of snapshots", &arena, &page.snapshots, err);
  page.next_token = e2b__headers_get(&task->req.answer_headers, "x-next-token");
  if (!code) code = e2b__rest_give(task, e2b__fill_snapshots, &page, sizeof(e2b_snapshot_list), err);
  e2b__arena_free(&arena);
  return code;
}

E2B_API e2b_err e2b_api_list_snapshots(e2b_client *client, const e2b_snapshot_list_opts *opts, e2b_snapshot_list *out,
                                       e2b_error *err) {
  const e2b_call *call = opts ? &opts->call : NULL;
  e2b__rest_task *rest;
  e2b__buf *path;
  e2b_err code;
  e2b__result_clear(out, sizeof *out);
  if (!out) return e2b__invalid(err, "out", "is NULL");
  if (opts && (opts->limit < 0 || opts->limit > 100)) return e2b__invalid(err, "limit", "must be 1 to 100");
  if (opts && (!e2b__text_ok(opts->sandbox_id) || !e2b__text_ok(opts->name) || !e2b__text_ok(opts->next_token)))
    return e2b__invalid(err, "sandbox_id, name or next_token", "has a control character");
  code = e2b__rest_new(client, "GET", "/snapshots", call, &rest, err);
  if (code) return code;
  path = &rest->task.req.path;
  if (opts) {
    if (e2b__given(opts->sandbox_id)) e2b__url_query(path, "sandboxID", e2b__str(opts->sandbox_id));
    if (e2b__given(opts->name)) e2b__url_query(path, "name", e2b__str(opts->name));
    if (opts->limit) e2b__url_query_name(path, "limit");
    if (opts->limit) e2b__buf_i64(path, opts->limit);
    if (e2b__given(opts->next_token)) e2b__url_query(path, "nextToken", e2b__str(opts->next_token));
  }
  rest->task.req.idempotent = true;
  rest->task.on_answer = e2b__snapshots_answered;
  rest->task.out = out;
  return e2b__rest_run(rest, call, err);
}

E2B_API e2b_err e2b_api_delete_snapshot(e2b_client *client, const char *snapshot_id, const e2b_call *call,
                                        bool *deleted, e2b_error *err) {
  e2b__rest_task *rest;
  e2b_err code;
  if (deleted) *deleted = false;
  if (!e2b__given(snapshot_id)) return e2b__invalid(err, "snapshot_id", "is empty");
  if (!e2b__text_ok(snapshot_id)) return e2b__invalid(err, "snapshot_id", "has a control character");
  if (strcmp(snapshot_id, ".") == 0 || strcmp(snapshot_id, "..") == 0)
    return e2b__invalid(err, "snapshot_id", "is a path");
  code = e2b__rest_new(client, "DELETE", "/templates/", call, &rest, err);
  if (code) return code;
  e2b__url_escape(&rest->task.req.path, e2b__str(snapshot_id));
  rest->task.req.idempotent = true;
  rest->task.on_answer = e2b__kill_answered; /* 404 is an answer here too */
  rest->task.flag = deleted;
  return e2b__rest_run(rest, call, err);
}
#endif
/* ================================================================================================================== */
/* >>>> raw */
/* ================================================================================================================== */

/* Requests with any method, path and body, to the control plane or to a port of a sandbox. */

#define E2B__RAW_DOUBT_MAX 8192 /* of a 502's body, which may be the edge's, this much is kept to be looked at */

typedef struct e2b__raw {
  e2b__data_task data; /* op.sandbox NULL: to the control plane */
  char *method;
  uint16_t port;
  e2b_head_fn on_head;
  int64_t size;        /* of the body; -1 = until its source ends */
  bool told;           /* the caller knows of the answer: on_head was called, or there is none */
  bool can_pause;      /* the caller has a handle to resume it with */
  char why[112];       /* what stopped it on our side, "" = nothing */
} e2b__raw;

static e2b__raw *e2b__raw_of(e2b__req *req) {
  return (e2b__raw *)(void *)((uint8_t *)req - offsetof(e2b__raw, data.task.req));
}

static void e2b__raw_release(e2b__op *op) {
  e2b__data_release(op);
  e2b__mem_free_str(&op->client->mem, ((e2b__raw *)op)->method);
}

static const e2b__op_type e2b__raw_type = { e2b__data_cancel, e2b__raw_release, e2b__task_resume, e2b__task_phase,
                                            NULL };

static e2b_err e2b__raw_stop(e2b__raw *raw, e2b_err code, const char *why) {
  (void)snprintf(raw->why, sizeof raw->why, "%s", why);
  return code;
}

/* What a callback's E2B_PAUSE comes to. */
static e2b_err e2b__raw_pause(e2b__raw *raw) {
  if (raw->can_pause) return E2B_OK;
  return e2b__raw_stop(raw, E2B_ERR_BAD_STATE, "E2B_PAUSE in a call without call.op: nobody could resume it");
}

/* ---- the answer ---- */

/* Whether this may be the word of the service in front of the sandbox, which shall not be taken for the sandbox's. */
static bool e2b__raw_in_doubt(const e2b__raw *raw) {
  return raw->data.task.op.sandbox && raw->data.task.req.status == 502 && !raw->told;
}

/* Calls on_head. */
static e2b_err e2b__raw_tell(e2b__raw *raw) {
  e2b__task *task = &raw->data.task;
  e2b__mem *mem = &task->op.client->mem;
  const e2b__headers *headers = &task->req.answer_headers;
  e2b_kv *items = NULL;
  e2b_kvs view;
  e2b_str name, value;
  size_t cursor = 0, i, count = headers->count; /* the callback may end the request, and with it its headers */
  int answer;
  raw->told = true;
  if (!raw->on_head) return E2B_OK;
  if (count) items = (e2b_kv *)e2b__mem_alloc(mem, count * sizeof *items);
  if (count && !items) return e2b__raw_stop(raw, E2B_ERR_NO_MEMORY, "no memory for the headers");
  for (i = 0; i < count && e2b__headers_next(headers, &cursor, &name, &value); i++) {
    items[i].key = name.ptr;
    items[i].value = value.ptr;
  }
  view.items = items;
  view.count = i;
  answer = raw->on_head(task->user, task->req.status, view);
  e2b__mem_free(mem, items, count * sizeof *items);
  if (task->op.finished) return E2B_ERR_CANCELED; /* by the callback */
  return answer < 0 ? e2b__raw_stop(raw, E2B_ERR_CANCELED, "on_head canceled the request") : E2B_OK;
}

static e2b_err e2b__raw_on_head(e2b__req *req) {
  e2b__raw *raw = e2b__raw_of(req);
  return e2b__raw_in_doubt(raw) ? E2B_OK : e2b__raw_tell(raw);
}

/* Gives bytes to the sink. */
static e2b_err e2b__raw_sink(e2b__raw *raw, const uint8_t *data, size_t len) {
  e2b__task *task = &raw->data.task;
  int answer = task->sink(task->user, (const char *)data, len);
  if (task->op.finished) return E2B_ERR_CANCELED; /* by the callback */
  if (answer < 0) return e2b__raw_stop(raw, E2B_ERR_CANCELED, "the sink canceled the request");
  if (answer != E2B_PAUSE) return E2B_OK;
  task->req.paused = true;
  return e2b__raw_pause(raw);
}

/* Without a sink the body collects in req->rx. */
static e2b_err e2b__raw_on_body(e2b__req *req, const uint8_t *data, size_t len, size_t *taken) {
  e2b__raw *raw = e2b__raw_of(req);
  e2b_err code = E2B_OK;
  if (e2b__raw_in_doubt(raw)) {
    if (len <= E2B__RAW_DOUBT_MAX) return E2B_OK;
    code = e2b__raw_tell(raw);
  }
  if (code || !raw->data.task.sink) return code;
  *taken = len;
  return e2b__raw_sink(raw, data, len);
}

static void e2b__fill_response(e2b__pack *pack, const void *from, void *out) {
  const e2b__task *task = (const e2b__task *)from;
  const e2b__headers *headers = &task->req.answer_headers;
  e2b_response *response = (e2b_response *)out;
  e2b_kv *items = (e2b_kv *)e2b__pack_alloc(pack, headers->count * sizeof *items);
  e2b_str name, value;
  size_t cursor = 0, i, len = task->sink ? 0 : task->req.rx.len;
  for (i = 0; e2b__headers_next(headers, &cursor, &name, &value); i++) {
    const char *key = e2b__pack_str(pack, name), *text = e2b__pack_str(pack, value);
    if (!items) continue;
    items[i].key = key;
    items[i].value = text;
  }
  response->status = task->req.status;
  response->headers.items = items;
  response->headers.count = i;
  response->body.ptr = e2b__pack_bytes(pack, (const char *)task->req.rx.data, len);
  response->body.len = len;
}

/* Fills *out, if there is one. */
static e2b_err e2b__raw_give(e2b__raw *raw, e2b_error *err) {
  e2b__task *task = &raw->data.task;
  e2b_err code = task->out ? e2b__rest_give(task, e2b__fill_response, task, sizeof(e2b_response), err) : E2B_OK;
  if (code) err->maybe_done = !task->req.idempotent;
  return code;
}

/* Whether the edge of the service says that nothing listens on the port. Decoding changes what it reads: a copy. */
static bool e2b__raw_port_closed(const e2b__raw *raw) {
  const e2b__req *req = &raw->data.task.req;
  char port[8];
  e2b__rest_error body;
  e2b__arena arena;
  e2b__buf copy;
  bool closed;
  (void)snprintf(port, sizeof port, "%u", (unsigned)raw->port);
  e2b__arena_init(&arena, &req->client->mem, 4096);
  e2b__buf_init(&copy, &req->client->mem, E2B__RAW_DOUBT_MAX);
  e2b__buf_put(&copy, req->rx.data, req->rx.len);
  closed = !copy.err && copy.len &&
           e2b__json_decode(&e2b__msg_rest_error, (char *)copy.data, copy.len, &arena, &body) == E2B_OK &&
           body.sandbox_id.len && e2b__str_eq(body.code, "502") && e2b__str_eq(body.port, port);
  e2b__buf_free(&copy);
  e2b__arena_free(&arena);
  return closed;
}

/* A whole 502 of a sandbox that nobody was told of yet: the edge's word is an error, the sandbox's an answer. */
static e2b_err e2b__raw_doubtful(e2b__raw *raw, e2b_error *err) {
  e2b__req *req = &raw->data.task.req;
  e2b_err code;
  if (e2b__says_not_found(req)) {
    (void)e2b__answer_error(req, E2B_SUBJECT_SANDBOX, "", err);
    return e2b__data_lost(&raw->data.task, err);
  }
  if (e2b__raw_port_closed(raw)) {
    err->phase = E2B_PHASE_BODY;
    err->subject = E2B_SUBJECT_PORT;
    return e2b__error_say(err, E2B_ERR_UNAVAILABLE,
                          "nothing listens on port %u of the sandbox: start the server there; a fresh one may need a "
                          "second", (unsigned)raw->port);
  }
  code = e2b__raw_tell(raw);
  if (!code && raw->data.task.sink && req->rx.len) code = e2b__raw_sink(raw, req->rx.data, req->rx.len);
  return code ? e2b__error_say(err, code, "%s", raw->why) : E2B_OK;
}

static e2b_err e2b__raw_answered(e2b__task *task, e2b_error *err) {
  e2b__raw *raw = (e2b__raw *)task;
  e2b_err code = e2b__raw_give(raw, err);
  if (code) return code;
  if (!task->op.sandbox) return e2b__rest_is_success(task) ? E2B_OK : e2b__rest_refused(task, err);
  return e2b__raw_in_doubt(raw) ? e2b__raw_doubtful(raw, err) : E2B_OK;
}

static e2b_err e2b__raw_lost(e2b__task *task, e2b_error *err) {
  e2b__raw *raw = (e2b__raw *)task;
  if (raw->why[0]) return e2b__error_say(err, err->code, "%s", raw->why);
  if (err->code == E2B_ERR_LIMIT && task->req.status)
    return e2b__error_say(err, E2B_ERR_LIMIT, "the body of the answer is above config.max_message_bytes: use a sink");
  return task->op.sandbox ? e2b__data_lost(task, err) : err->code;
}

/* ---- the request ---- */

/* The next bytes of the caller's body; `cap` is within the size. */
static int e2b__raw_on_source(e2b__req *req, uint8_t *buf, size_t cap) {
  e2b__raw *raw = e2b__raw_of(req);
  e2b__task *task = &raw->data.task;
  int got;
  if (!task->source) {
    memcpy(buf, task->data + req->body_done, cap);
    return (int)cap;
  }
  got = task->source(task->user, buf, cap);
  if (task->op.finished) return E2B_ERR_CANCELED; /* by the callback */
  if (got == E2B_PAUSE) {
    e2b_err code = e2b__raw_pause(raw);
    return code ? (int)code : E2B_IO_AGAIN;
  }
  if (got < 0) return e2b__raw_stop(raw, E2B_ERR_CANCELED, "the source canceled the request");
  if ((size_t)got > cap)
    return e2b__raw_stop(raw, E2B_ERR_INVALID_ARGUMENT, "the source returned more than it was asked for");
  if (got == 0 && raw->size >= 0)
    return e2b__raw_stop(raw, E2B_ERR_INVALID_ARGUMENT, "the source ended before the size it announced");
  return got;
}

static const e2b__req_events e2b__raw_events = { e2b__raw_on_head, e2b__raw_on_body, e2b__raw_on_source,
                                                 e2b__task_on_end };

/* A '.' of a path, plain or as %2e, at *at; goes behind it. */
static bool e2b__raw_dot(const char **at) {
  if (**at == '.') *at += 1;
  else if ((*at)[0] == '%' && (*at)[1] == '2' && e2b__ascii_lower((*at)[2]) == 'e') *at += 3;
  else return false;
  return true;
}

/* Visible ASCII from a '/' on. Segments of dots could leave the sandbox that a prefix of the path names. */
static e2b_err e2b__raw_path_check(const char *path, e2b_error *err) {
  const char *at;
  size_t query;
  if (!e2b__given(path) || path[0] != '/') return e2b__invalid(err, "path", "does not begin with '/'");
  for (at = path; *at; at++)
    if ((uint8_t)*at <= 0x20 || (uint8_t)*at >= 0x7f || *at == '#')
      return e2b__invalid(err, "path", "has a character that must be percent-encoded");
  query = strcspn(path, "?");
  for (at = path; (size_t)(at - path) < query; at++) {
    const char *end = at + 1;
    if (*at != '/' || !e2b__raw_dot(&end)) continue;
    (void)e2b__raw_dot(&end);
    if (*end == '/' || *end == '?' || !*end) return e2b__invalid(err, "path", "has a segment \".\" or \"..\"");
  }
  return E2B_OK;
}

static e2b_err e2b__raw_check(const char *method, const char *path, const e2b_request_opts *opts, e2b_error *err) {
  if (!e2b__header_name_ok(e2b__str(method)) || strlen(method) > 32)
    return e2b__invalid(err, "method", "is not a name of an HTTP method");
  if (e2b__str_eq_nocase(e2b__str(method), "connect")) return e2b__invalid(err, "method", "must not be CONNECT");
  if (e2b__raw_path_check(path, err)) return E2B_ERR_INVALID_ARGUMENT;
  if (!opts) return E2B_OK;
  if (!e2b__header_value_ok(e2b__str(opts->content_type)))
    return e2b__invalid(err, "content_type", "has a control or non-ASCII character");
  if (!opts->body && opts->body_len) return e2b__invalid(err, "body", "is NULL");
  if (opts->body && opts->source) return e2b__invalid(err, "body and source", "are both given");
  if (opts->source_size < 0 || opts->source_size > INT64_MAX / 2)
    return e2b__invalid(err, "source_size", "is out of range; 0 means unknown");
  return e2b__call_check(&opts->call, err);
}

static bool e2b__raw_is(const char *method, const char *const *names) {
  for (; *names; names++)
    if (strcmp(method, *names) == 0) return true;
  return false;
}

/* The length of the body, or E2B__BODY_*. Without one, methods that usually have one say so. */
static int64_t e2b__raw_size(const char *method, const e2b_request_opts *opts) {
  static const char *const with_body[] = { "POST", "PUT", "PATCH", NULL };
  if (opts && opts->source) return opts->source_size ? opts->source_size : E2B__BODY_CHUNKED;
  if (opts && opts->body_len) return (int64_t)opts->body_len;
  return e2b__raw_is(method, with_body) ? 0 : E2B__BODY_NONE;
}

/* Makes the task; the caller sets target and headers. */
static e2b__raw *e2b__raw_new(e2b_client *client, const char *method, const e2b_request_opts *opts, e2b_response *out,
                              e2b_error *err) {
  static const char *const repeatable[] = { "GET", "HEAD", "OPTIONS", "PUT", "DELETE", NULL };
  const e2b_call *call = opts ? &opts->call : NULL;
  bool streams = opts && (opts->source || opts->sink);
  e2b__raw *raw = (e2b__raw *)e2b__op_new(client, call, &e2b__raw_type, sizeof *raw,
                                          streams ? E2B_TIMEOUT_NONE : client->config.request_timeout_ms, err);
  e2b__task *task;
  if (!raw) return NULL;
  task = &raw->data.task;
  e2b__req_init(&task->req, client, &e2b__raw_events);
  task->on_answer = e2b__raw_answered;
  task->on_loss = e2b__raw_lost;
  task->out = out;
  task->req.idle_ms = call && call->idle_ms ? call->idle_ms : client->config.idle_ms;
  raw->method = e2b__mem_dup(&client->mem, method, strlen(method));
  if (!raw->method) {
    e2b__op_release(&task->op);
    (void)e2b__no_memory(err);
    return NULL;
  }
  task->req.method = raw->method;
  task->req.body_len = raw->size = e2b__raw_size(method, opts);
  task->req.idempotent = e2b__raw_is(method, repeatable) && !(opts && opts->source);
  if (!opts) return raw;
  raw->can_pause = call->op != NULL;
  raw->on_head = opts->on_head;
  task->data = (const uint8_t *)opts->body;
  task->source = opts->source;
  task->sink = opts->sink;
  task->user = opts->io_user;
  if (opts->on_head || opts->sink) task->waited = true; /* a 429 is handed over: it was shown already */
  return raw;
}

/* Sets the type of a body unless call.headers did, adds the path and runs it. */
static e2b_err e2b__raw_run(e2b__raw *raw, const char *path, const char *type, const e2b_request_opts *opts,
                            e2b_error *err) {
  e2b__req *req = &raw->data.task.req;
  bool body = req->body_len > 0 || req->body_len == E2B__BODY_CHUNKED;
  if (opts && e2b__given(opts->content_type))
    e2b__headers_set(&req->headers, "content-type", e2b__str(opts->content_type));
  else if (body && !e2b__headers_get(&req->headers, "content-type"))
    e2b__headers_set(&req->headers, "content-type", e2b__str(type));
  e2b__buf_text(&req->path, path);
  return e2b__task_run(&raw->data.task, opts ? &opts->call : NULL, err);
}

E2B_API e2b_err e2b_api_request(e2b_client *client, const char *method, const char *path, const e2b_request_opts *opts,
                                e2b_response *out, e2b_error *err) {
  e2b__raw *raw;
  e2b__req *req;
  e2b__url api;
  e2b_error local;
  if (!err) err = &local;
  e2b__result_clear(out, sizeof *out);
  if (!client) return e2b__invalid(err, "client", "is NULL");
  if (e2b__raw_check(method, path, opts, err)) return E2B_ERR_INVALID_ARGUMENT;
  raw = e2b__raw_new(client, method, opts, out, err);
  if (!raw) return err->code;
  req = &raw->data.task.req;
  e2b__req_common_headers(req, opts ? &opts->call : NULL);
  if (e2b__given(client->config.api_key))
    e2b__headers_set(&req->headers, "x-api-key", e2b__str(client->config.api_key));
  (void)e2b__url_parse(client->config.api_url, &api); /* checked by e2b_client_create */
  e2b__req_target(req, &api);
  return e2b__raw_run(raw, path, "application/json", opts, err);
}

/* Where a port of a sandbox is reached. False when the id cannot be part of a host name. */
static bool e2b__raw_target(e2b__raw *raw, const e2b_sandbox *sandbox, uint16_t port) {
  const e2b_client_config *config = &sandbox->client->config;
  e2b__req *req = &raw->data.task.req;
  e2b__url url;
  e2b__buf text;
  const char *base;
  bool ok;
  if (port == sandbox->runtime_port || config->sandbox_base_url || config->sandbox_url) { /* told apart by the header */
    e2b__req_target(req, &sandbox->runtime);
    return true;
  }
  e2b__buf_init(&text, &sandbox->client->mem, 65536);
  e2b__buf_text(&text, sandbox->scheme);
  e2b__buf_text(&text, "://");
  e2b__put_sandbox_host(&text, config, sandbox->id, sandbox->domain, port);
  base = e2b__buf_cstr(&text);
  ok = base && e2b__url_parse(base, &url);
  if (ok) e2b__req_target(req, &url);
  e2b__buf_free(&text);
  return ok || !base; /* no memory: said by submit */
}

static bool e2b__raw_names(e2b_kvs headers, const char *name) {
  size_t i;
  for (i = 0; i < headers.count; i++)
    if (e2b__str_eq_nocase(e2b__str(headers.items[i].key), name)) return true;
  return false;
}

/* Routing and, of the secrets, only those that belong there. */
static void e2b__raw_sandbox_headers(e2b__raw *raw, const e2b_sandbox *sandbox, const e2b_call *call) {
  const e2b_client_config *config = &sandbox->client->config;
  e2b__headers *headers = &raw->data.task.req.headers;
  char port[8];
  (void)snprintf(port, sizeof port, "%u", (unsigned)raw->port);
  e2b__sandbox_headers(&raw->data.task.req, sandbox, call);
  if (!e2b__raw_names(config->headers, "accept") && !e2b__raw_names(sandbox->headers, "accept") &&
      !(call && e2b__raw_names(call->headers, "accept")))
    e2b__headers_set(headers, "accept", e2b__str("*/*"));
  e2b__headers_set(headers, "e2b-sandbox-id", e2b__str(sandbox->id));
  e2b__headers_set(headers, "e2b-sandbox-port", e2b__str(port));
  if (raw->port == sandbox->runtime_port && e2b__given(sandbox->access_token))
    e2b__headers_set(headers, "x-access-token", e2b__str(sandbox->access_token));
  e2b__data_traffic(&raw->data.task.req, sandbox);
}

E2B_API e2b_err e2b_sandbox_request(e2b_sandbox *sandbox, uint16_t port, const char *method, const char *path,
                                    const e2b_request_opts *opts, e2b_response *out, e2b_error *err) {
  e2b__raw *raw;
  e2b_error local;
  if (!err) err = &local;
  e2b__result_clear(out, sizeof *out);
  if (!sandbox) return e2b__invalid(err, "sandbox", "is NULL");
  if (!port) return e2b__invalid(err, "port", "is 0");
  if (e2b__raw_check(method, path, opts, err)) return E2B_ERR_INVALID_ARGUMENT;
  raw = e2b__raw_new(sandbox->client, method, opts, out, err);
  if (!raw) return err->code;
  raw->port = port;
  raw->data.task.op.sandbox = sandbox;
  raw->data.task.waited = true; /* a 429 is an answer */
  if (!e2b__raw_target(raw, sandbox, port)) {
    e2b__op_release(&raw->data.task.op);
    return e2b__invalid(err, "sandbox_id",
                        "cannot be part of a host name: set sandbox_base_url, sandbox_url or protocol");
  }
  e2b__raw_sandbox_headers(raw, sandbox, opts ? &opts->call : NULL);
  return e2b__raw_run(raw, path, "application/octet-stream", opts, err);
}
/* ================================================================================================================== */
/* >>>> commands */
/* ================================================================================================================== */

/* A handle in the caller's *out, from its start event until the result of the operation that made it is collected: whoever
 * cancels that operation never looks there. Embedded in the operation. */
typedef struct e2b__command_gift {
  e2b__op *op;
  e2b_command_handle **out, *handle; /* handle NULL = none */
} e2b__command_gift;

/* A process and the stream of its events: Start or Connect of envd's Process service. */
struct e2b_command_handle {
  e2b__object object;
  e2b_sandbox *sandbox;
  e2b__command_gift *gift;
  e2b_command_handle *prev, *next; /* in sandbox->handles */
  e2b__req req;
  e2b__rpc rpc;
  e2b__mourner mourner;
  e2b__op *op;              /* the start, run or wait under way, or NULL */
  uint32_t pid;
  bool started;             /* the start event came */
  bool ended;               /* the end event came: exit_code and the rest are known */
  bool closed;              /* the end of stream came */
  bool settled;             /* nothing more will come; `error` is how the stream ended */
  bool starts;              /* Start, not Connect */
  bool reattach, attaching; /* attaching: the stream was lost, the next one has not begun */
  bool gap;                 /* an E2B_EVENT_GAP is due */
  uint32_t gaps, failed_attempts; /* failed_attempts: since the last stream that began */
  uint64_t attached_at;
  uint64_t run_by;          /* when run_timeout_ms has passed */
  e2b_error error;
  int32_t exit_code;
  bool exited;
  e2b__buf status, failure; /* texts of the end event */
  e2b_data_fn on_stdout, on_stderr;
  void *output_user;
  bool collect, truncated, no_collect;
  bool delivering;          /* a callback has the message at the front of req.rx */
  bool *freed;              /* set when it is freed while e2b_command_handle_next waits */
  size_t max_collect;
  e2b__buf out[2];          /* collected stdout and stderr; out[0] also holds the event e2b_command_handle_next gave */
};

/* Start, run or wait. */
typedef struct e2b__command_op {
  e2b__op op;
  e2b_command_handle *handle;
  e2b_command_handle **out_handle; /* start: completes with the start event */
  e2b__command_gift gift;
  uint32_t *out_pid;               /* start_detached: the same, or with output_file completes with the first output */
  bool to_file;
  e2b_command_result *out;         /* run, wait: completes when the stream is settled */
  bool owns_handle;                /* run: nobody else has it */
  bool can_pause;                  /* somebody could resume it */
} e2b__command_op;

static void e2b__command_result_fill(e2b__pack *pack, const void *from, void *out) {
  const e2b_command_handle *handle = (const e2b_command_handle *)from;
  e2b_command_result *result = (e2b_command_result *)out;
  const e2b__buf *failure = &handle->failure;
  result->stdout_data.ptr = e2b__pack_bytes(pack, (const char *)handle->out[0].data, handle->out[0].len);
  result->stderr_data.ptr = e2b__pack_bytes(pack, (const char *)handle->out[1].data, handle->out[1].len);
  result->status = e2b__pack_bytes(pack, (const char *)handle->status.data, handle->status.len);
  result->error = e2b__pack_bytes(pack, (const char *)failure->data, failure->len);
  if (!pack->base) return;
  result->stdout_data.len = handle->out[0].len;
  result->stderr_data.len = handle->out[1].len;
  result->exit_code = handle->ended ? handle->exit_code : -1;
  result->exited = handle->exited;
  result->truncated = handle->truncated;
  result->gaps = handle->gaps;
}

/* A handle and its operation forget each other. Until then each can find the other, whichever is freed first. */
static void e2b__command_part(e2b__command_op *op) {
  op->handle->op = NULL;
  op->handle = NULL;
}

static void e2b__command_give(e2b__command_gift *gift, e2b__op *op, e2b_command_handle **out, e2b_command_handle *handle) {
  gift->op = op;
  gift->out = out;
  gift->handle = *out = handle;
  handle->gift = gift;
}

/* The operation goes: the handle stays with the caller who was told of it, else it goes too. */
static void e2b__command_gift_release(e2b__command_gift *gift) {
  e2b_command_handle *handle = gift->handle;
  if (!handle) return;
  if (!gift->op->delivered) e2b_command_handle_free(handle);
  else handle->gift = NULL;
  gift->handle = NULL;
}

/* The handle goes first, and takes the report along. */
static void e2b__command_gift_withdraw(e2b_command_handle *handle) {
  e2b__command_gift *gift = handle->gift;
  if (!gift) return;
  gift->handle = NULL;
  if (gift->op->delivered) return;
  *gift->out = NULL;
  if (gift->op->finished && !gift->op->result.code)
    (void)e2b__fail(&gift->op->result, E2B_ERR_CANCELED, "the handle was freed");
}

/* The result of a settled stream, for run and wait. */
static void e2b__command_op_finish(e2b__command_op *op) {
  e2b_command_handle *handle = op->handle;
  e2b_error err = handle->error, failed;
  e2b_err code = err.code;
  if (op->out && (handle->ended || handle->started)) {
    code = e2b__result_fill(op->op.client, e2b__command_result_fill, handle, op->out, &failed);
    if (code && !err.code) {
      err = failed;
      err.maybe_done = true; /* the command ran, only its result cannot be kept */
    }
  }
  if (!err.code && op->to_file) { /* the shell that opens the file says why it could not: "output_file: line 1: ..." */
    char why[160];
    e2b__error_excerpt(why, sizeof why, handle->out[1].data, handle->out[1].len);
    err.subject = E2B_SUBJECT_OPTION;
    e2b__error_say(&err, E2B_ERR_INVALID_ARGUMENT, "%s", why[0] ? why : "output_file could not be opened");
  }
  if (!err.code && (handle->exit_code != 0 || !handle->exited)) {
    err.exit_code = handle->exit_code;
    e2b__error_say(&err, E2B_COMMAND_EXIT, "the command failed: %.*s", (int)E2B__MIN(handle->status.len, (size_t)160),
                   handle->status.len ? (const char *)handle->status.data : "");
  }
  if (!op->owns_handle) e2b__command_part(op);
  e2b__op_finish(&op->op, &err);
}

/* When run_timeout_ms has passed, the server kills the process and ends the stream, in whichever way comes first: with
 * deadline_exceeded, with the process' end by a signal, or with the end of the connection. All of them are the same to
 * the caller. (The server's clock started later than ours, so ours has always passed it.) */
static void e2b__command_judge(e2b_command_handle *handle, e2b_error *err) {
  const char *status = handle->run_by == (uint64_t)E2B__NEVER ? NULL : e2b__buf_cstr(&handle->status);
  bool killed = !err->code && handle->ended && !handle->exited && status && strstr(status, "killed");
  bool lost = err->code == E2B_ERR_TRUNCATED || err->code == E2B_ERR_CLOSED || err->code == E2B_ERR_IO;
  bool said = err->code == E2B_ERR_TIMEOUT && err->connect_code == E2B_CONNECT_DEADLINE_EXCEEDED;
  char was[64];
  if (!(killed || lost || said) || e2b__now_ms(handle->sandbox->client) < handle->run_by) return;
  (void)snprintf(was, sizeof was, "%s", killed ? "the end of the process by a signal" : e2b_err_name(err->code));
  if (said) (void)snprintf(was, sizeof was, "deadline_exceeded");
  err->maybe_done = true;
  (void)e2b__error_say(err, E2B_ERR_TIMEOUT, "run_timeout_ms passed: the server ended the process (seen as %s)", was);
}

/* Nothing more comes: tells whoever waits. */
static void e2b__command_settle(e2b_command_handle *handle, const e2b_error *how) {
  e2b__command_op *op = (e2b__command_op *)handle->op;
  const e2b_error *err = &handle->error;
  handle->settled = true;
  handle->error = *how;
  e2b__command_judge(handle, &handle->error);
  e2b__error_advise(&handle->error);
  if (!op) return;
  if (op->out_handle) e2b__op_finish(&op->op, err); /* a start that failed: its handle dies with the operation */
  else e2b__command_op_finish(op);
}

#define E2B__ATTACH_AGAIN_MS 1000 /* a process is attached to at most so often, */
#define E2B__ATTACH_ATTEMPTS 5u   /* and given up after so many that failed */

static void e2b__select_pid(e2b__process_selector *selector, bool *has, uint32_t pid);

/* The stream is lost, the sandbox runs: asks for the rest of it, which repeats nothing. False when nobody wants that, or it
 * is over. */
static bool e2b__command_attach(e2b_command_handle *handle) {
  const e2b__command_op *op = (const e2b__command_op *)handle->op;
  e2b_client *client = handle->sandbox->client;
  e2b__selector_request request;
  e2b__req *req = &handle->req;
  if (!handle->reattach || !handle->started || handle->ended || (op && op->out_pid)) return false;
  if (client->now >= handle->run_by) return false; /* the server has ended the process */
  if (handle->attaching && ++handle->failed_attempts >= E2B__ATTACH_ATTEMPTS) return false;
  memset(&request, 0, sizeof request);
  e2b__select_pid(&request.process, &request.has_process, handle->pid);
  e2b__req_target(req, &handle->sandbox->runtime);
  e2b__buf_text(&req->path, "/process.Process/Connect");
  (void)e2b__headers_remove(&req->headers, "connect-timeout-ms"); /* it would end the stream, not the process */
  e2b__rpc_begin(&handle->rpc, true, handle->sandbox, req, &e2b__msg_selector_request, &request);
  req->idempotent = true;
  req->pulled = req->flush = handle->closed = false;
  req->not_before = handle->attached_at + E2B__ATTACH_AGAIN_MS;
  handle->attached_at = E2B__MAX(client->now, req->not_before);
  req->deadline = e2b__deadline(handle->attached_at, client->config.request_timeout_ms);
  handle->attaching = e2b__req_submit(req) == E2B_OK;
  if (handle->attaching)
    e2b__log(&client->config.logger, E2B_LOG_WARN, "the stream of process %lu broke: attaching again", (unsigned long)handle->pid);
  return handle->attaching;
}

static void e2b__command_verdict(e2b__mourner *mourner) {
  e2b_command_handle *handle = (e2b_command_handle *)(void *)((uint8_t *)mourner - offsetof(e2b_command_handle, mourner));
  if (mourner->verdict != E2B__VERDICT_ALIVE || !e2b__command_attach(handle)) e2b__command_settle(handle, &mourner->err);
}

/* Counts output against the limit and keeps what fits. */
static void e2b__command_collect(e2b_command_handle *handle, int which, e2b_str data) {
  e2b__buf *out = &handle->out[which];
  size_t room = handle->max_collect - E2B__MIN(out->len, handle->max_collect), keep = E2B__MIN(room, data.len);
  if (keep < data.len) handle->truncated = true;
  e2b__buf_put(out, data.ptr, keep);
}

/* Completes a start_detached: from here on the process is on its own. */
static void e2b__command_detach(e2b__command_op *op) {
  e2b_error ok;
  memset(&ok, 0, sizeof ok);
  *op->out_pid = op->handle->pid;
  e2b__op_finish(&op->op, &ok);
  e2b_command_handle_disconnect(op->handle); /* the handle dies with the operation */
}

static bool e2b__command_pushes(const e2b_command_handle *handle) {
  return handle->on_stdout || handle->on_stderr || handle->collect;
}

static bool e2b__command_pulls(const e2b_command_handle *handle) {
  return handle->started && !handle->attaching && !handle->op && !e2b__command_pushes(handle);
}

/* Gives output to whoever wants it. A callback may free the handle: the caller checks req.state. */
static e2b_err e2b__command_deliver(e2b_command_handle *handle, int which, e2b_str data) {
  e2b_data_fn on_data = which ? handle->on_stderr : handle->on_stdout;
  e2b__command_op *op = (e2b__command_op *)handle->op;
  int answer;
  if (op && op->to_file && !which) e2b__command_detach(op); /* the file is open */
  if (handle->collect) e2b__command_collect(handle, which, data);
  if (handle->out[which].err) return E2B_ERR_NO_MEMORY;
  if (!on_data || !data.len) return E2B_OK;
  handle->delivering = true;
  answer = on_data(handle->output_user, data.ptr, data.len);
  handle->delivering = false;
  if (handle->req.state == E2B__REQ_NEW) return E2B_ERR_CANCELED;
  op = (e2b__command_op *)handle->op;
  if (answer == E2B_PAUSE && op && op->owns_handle && !op->can_pause) return E2B_ERR_BAD_STATE;
  if (answer == E2B_PAUSE) handle->req.paused = true;
  return answer < 0 ? E2B_ERR_CANCELED : E2B_OK;
}

static void e2b__command_started(e2b_command_handle *handle, uint32_t pid) {
  e2b__command_op *op = (e2b__command_op *)handle->op;
  e2b_error ok;
  if (handle->attaching) { /* who waits was told of the start long ago */
    handle->attaching = false;
    handle->gap = true;
    handle->gaps++;
    handle->failed_attempts = 0;
    handle->req.deadline = (uint64_t)E2B__NEVER;
    return;
  }
  handle->started = true;
  handle->attached_at = handle->sandbox->client->now;
  handle->pid = pid;
  if (op && op->out_pid && !op->to_file) e2b__command_detach(op);
  if (!op || !op->out_handle) return;
  memset(&ok, 0, sizeof ok);
  e2b__command_give(&op->gift, &op->op, op->out_handle, handle);
  op->owns_handle = false;
  e2b__command_part(op);
  e2b__op_finish(&op->op, &ok);
}

static e2b_err e2b__command_note_end(e2b_command_handle *handle, const e2b__end_event *end) {
  handle->ended = true;
  handle->exit_code = end->exit_code;
  handle->exited = end->exited;
  e2b__buf_str(&handle->status, end->status);
  if (end->has_error) e2b__buf_str(&handle->failure, end->error);
  return handle->status.err ? handle->status.err : handle->failure.err;
}

/* Handles one message of the stream. *event is filled instead of delivering output when it is not NULL. */
static e2b_err e2b__command_message(e2b_command_handle *handle, const e2b__envelope *envelope, e2b__data_event *data, e2b_error *err) {
  e2b_client *client = handle->sandbox->client;
  e2b__event_response message;
  bool begins = !handle->started || handle->attaching;
  e2b__arena arena;
  e2b_err code;
  if (handle->closed) return e2b__error_say(err, E2B_ERR_PROTOCOL, "the server sent more after the end of the stream");
  if (envelope->end) {
    handle->closed = true;
    return e2b__envelope_end(client, envelope, E2B_SUBJECT_PROCESS, err);
  }
  e2b__arena_init(&arena, &client->mem, 4096);
  code = e2b__rpc_decode(&handle->rpc, &e2b__msg_event_response, envelope->data, envelope->len, &arena, &message, err);
  if (code) {
    /* said */
  } else if (message.event.has_start ? !begins || !message.event.start.pid ||
                                           (handle->attaching && message.event.start.pid != handle->pid)
                                     : (message.event.has_data || message.event.has_end) && (begins || handle->ended)) {
    code = e2b__error_say(err, E2B_ERR_PROTOCOL, "the server's events make no sense: they begin with one start, and "
                          "nothing follows the end");
  } else if (message.event.has_start) {
    e2b__command_started(handle, message.event.start.pid);
  } else if (message.event.has_data) {
    *data = message.event.data;
  } else if (message.event.has_end) {
    code = e2b__command_note_end(handle, &message.event.end);
    if (code) e2b__error_say(err, code, "no memory for the end of the command");
  }
  e2b__arena_free(&arena);
  return code;
}

/* Looks after the sandbox first when that may explain the error. */
static void e2b__command_lose(e2b_command_handle *handle, const e2b_error *err) {
  /* who attaches again is not held to the end of a wait, which gives up by itself */
  uint64_t deadline = handle->op && !handle->reattach ? handle->op->deadline : (uint64_t)E2B__NEVER;
  handle->mourner.err = *err;
  if (handle->attaching && err->code != E2B_ERR_CANCELED)
    (void)e2b__error_say(&handle->mourner.err, err->code == E2B_ERR_NOT_FOUND ? E2B_ERR_TRUNCATED : err->code,
                         "the stream of process %lu broke, and attaching again failed: %.160s", (unsigned long)handle->pid, err->message);
  if (handle->starts && handle->req.idempotent && err->code != E2B_ERR_CANCELED) handle->mourner.err.maybe_done = true;
  handle->mourner.on_verdict = e2b__command_verdict;
  if (handle->attaching && err->code == E2B_ERR_NOT_FOUND) e2b__command_settle(handle, &handle->mourner.err);
  else if (!e2b__mourn(&handle->mourner, handle->sandbox, deadline)) e2b__command_settle(handle, &handle->mourner.err);
}

/* Ends the stream with an error that came inside it. */
static void e2b__command_break(e2b_command_handle *handle, const e2b_error *err) {
  e2b__req_abort(&handle->req);
  e2b__command_lose(handle, err);
}

/* Where an error inside the stream came, and whether the process may run: not if envd clearly refused to start it. */
static void e2b__command_blame(const e2b_command_handle *handle, e2b_error *err) {
  const char *id = e2b__headers_get(&handle->req.answer_headers, "x-request-id");
  bool refused = err->connect_code && !e2b__connect_is_vague(err->connect_code);
  err->phase = E2B_PHASE_BODY;
  err->http_status = handle->req.status;
  err->maybe_done = !handle->req.idempotent && (handle->started || !refused);
  if (id) (void)snprintf(err->request_id, sizeof err->request_id, "%s", id);
}

/* Pushed output: takes whole messages off the front of what came. */
static e2b_err e2b__command_on_body(e2b__req *req, const uint8_t *bytes, size_t len, size_t *taken) {
  e2b_command_handle *handle = (e2b_command_handle *)(void *)((uint8_t *)req - offsetof(e2b_command_handle, req));
  if (req->status != 200) return e2b__req_keep_all(req); /* for the error */
  while (!req->paused && !req->pulled) {
    e2b__envelope envelope;
    e2b__data_event data;
    e2b_error err;
    e2b_err code = e2b__envelope_get(bytes + *taken, len - *taken, req->client->config.max_message_bytes, &envelope,
                                     &req->rx_need); /* or a message above rx_limit would never become whole */
    if (code == E2B_PENDING) return E2B_OK;
    memset(&data, 0, sizeof data);
    memset(&err, 0, sizeof err);
    if (code) e2b__error_say(&err, code, "a message of the stream is %s", code == E2B_ERR_LIMIT ? "larger than max_message_bytes" : "compressed or malformed");
    else code = e2b__command_message(handle, &envelope, &data, &err);
    if (!code && data.has_stdout_data) code = e2b__command_deliver(handle, 0, data.stdout_data);
    else if (!code && data.has_pty) code = e2b__command_deliver(handle, 0, data.pty);
    else if (!code && data.has_stderr_data) code = e2b__command_deliver(handle, 1, data.stderr_data);
    if (req->state == E2B__REQ_NEW) return E2B_ERR_CANCELED;
    if (code) {
      if (!err.message[0])
        e2b__error_say(&err, code, "%s", code == E2B_ERR_CANCELED ? "an output callback ended the stream; the process goes on"
                       : code == E2B_ERR_BAD_STATE ? "E2B_PAUSE in a call without call.op: nobody could resume it; the process goes on"
                                                   : "no memory for the output");
      e2b__command_blame(handle, &err);
      e2b__command_break(handle, &err);
      return E2B_ERR_CANCELED;
    }
    *taken += envelope.size;
    req->pulled = e2b__command_pulls(handle);
  }
  return E2B_OK;
}

/* The stream is over, for better or worse. */
static void e2b__command_on_end(e2b__req *req, const e2b_error *end) {
  e2b_command_handle *handle = (e2b_command_handle *)(void *)((uint8_t *)req - offsetof(e2b_command_handle, req));
  e2b_error err = *end;
  if (!err.code && e2b__rpc_refused(&handle->rpc, req)) {
    if (e2b__rpc_again_as_json(&handle->rpc, handle->sandbox, req, &err) == E2B_PENDING) return;
  } else if (!err.code && req->status != 200) {
    e2b__answer_error(req, E2B_SUBJECT_PROCESS, "check the sandbox's access token and the user", &err);
    if (err.code == E2B_ERR_NOT_FOUND && err.connect_code == E2B_CONNECT_NONE) e2b__not_envd(&err);
  } else if (!err.code && !(handle->ended && handle->closed)) {
    e2b__error_say(&err, E2B_ERR_TRUNCATED, "the stream ended without the command's result; the process may still run (pid %lu)", (unsigned long)handle->pid);
    err.maybe_done = true;
  } else if (handle->ended && handle->closed) {
    memset(&err, 0, sizeof err); /* all is known: how the connection ended does not matter */
  }
  if (err.code) err.maybe_done = !req->idempotent && (err.maybe_done || handle->started);
  e2b__command_lose(handle, &err);
}

static const e2b__req_events e2b__command_events = { NULL, e2b__command_on_body, NULL, e2b__command_on_end };

static void e2b__command_op_cancel(e2b__op *base) {
  e2b__command_op *op = (e2b__command_op *)base;
  if (!op->handle) return;
  if (op->owns_handle) e2b_command_handle_free(op->handle);
  else e2b__command_part(op);
}

static void e2b__command_op_release(e2b__op *base) {
  e2b__command_op_cancel(base);
  e2b__command_gift_release(&((e2b__command_op *)base)->gift);
}

/* A run or wait that has to stop waiting still hands over what came so far. */
static void e2b__command_op_give_up(e2b__op *base) {
  e2b__command_op *op = (e2b__command_op *)base;
  if (op->out && op->handle && op->handle->started)
    (void)e2b__result_fill(base->client, e2b__command_result_fill, op->handle, op->out, NULL);
}

static void e2b__command_op_resume(e2b__op *base) {
  e2b__command_op *op = (e2b__command_op *)base;
  if (op->handle) e2b__req_resume(&op->handle->req);
}

static e2b_phase e2b__command_op_phase(e2b__op *base, bool *maybe_done) {
  const e2b__command_op *op = (const e2b__command_op *)base;
  return op->handle ? e2b__req_stands(&op->handle->req, maybe_done) : E2B_PHASE_BODY;
}

static const e2b__op_type e2b__command_op_type = { e2b__command_op_cancel, e2b__command_op_release, e2b__command_op_resume,
                                                   e2b__command_op_phase, e2b__command_op_give_up };

static e2b_err e2b__run_opts_check(const e2b_run_opts *opts, e2b_error *err) {
  size_t i;
  if (!opts) return E2B_OK;
  if (e2b__call_check(&opts->call, err) || e2b__user_check(opts->user, err)) return E2B_ERR_INVALID_ARGUMENT;
  if (opts->run_timeout_ms < 0) return e2b__invalid(err, "run_timeout_ms", "must not be negative");
  if (!e2b__text_ok(opts->cwd)) return e2b__invalid(err, "cwd", "has a control character");
  if (!e2b__text_ok(opts->tag)) return e2b__invalid(err, "tag", "has a control character");
  if (!e2b__text_ok(opts->output_file)) return e2b__invalid(err, "output_file", "has a control character");
  for (i = 0; i < opts->envs.count; i++) {
    const char *key = opts->envs.items[i].key;
    if (!e2b__given(key) || strchr(key, '=') || !e2b__text_ok(key)) return e2b__invalid(err, "envs", "has a name that is empty or holds '=' or a control character");
  }
  return E2B_OK;
}

/* Makes the handle and its request, not yet submitted. */
static e2b_command_handle *e2b__command_new(e2b_sandbox *sandbox, const char *method, const char *user, const e2b_run_opts *opts) {
  e2b_run_opts none;
  e2b_client *client = sandbox->client;
  e2b_command_handle *handle = (e2b_command_handle *)e2b__object_new(client, sizeof *handle);
  char text[16];
  int i;
  if (!handle) return NULL;
  memset(&none, 0, sizeof none);
  if (!opts) opts = &none;
  handle->sandbox = sandbox;
  handle->on_stdout = opts->on_stdout;
  handle->on_stderr = opts->on_stderr;
  handle->output_user = opts->output_user;
  handle->no_collect = opts->no_collect;
  handle->reattach = opts->reattach;
  handle->max_collect = opts->max_collect ? opts->max_collect : (size_t)E2B__MIN(client->config.max_result_bytes, (uint64_t)(SIZE_MAX / 4));
  for (i = 0; i < 2; i++) e2b__buf_init(&handle->out[i], &client->mem, SIZE_MAX / 2);
  e2b__buf_init(&handle->status, &client->mem, client->config.max_message_bytes);
  e2b__buf_init(&handle->failure, &client->mem, client->config.max_message_bytes);
  handle->next = sandbox->handles;
  if (handle->next) handle->next->prev = handle;
  sandbox->handles = handle;
  e2b__req_init(&handle->req, client, &e2b__command_events);
  handle->req.method = "POST";
  handle->req.rx_limit = client->config.stream_buffer_size;
  handle->req.idle_ms = opts->call.idle_ms ? opts->call.idle_ms : client->config.keepalive_interval_s * 3000;
  e2b__req_target(&handle->req, &sandbox->runtime);
  e2b__buf_text(&handle->req.path, method);
  e2b__data_headers(&handle->req, sandbox, user, &opts->call);
  (void)snprintf(text, sizeof text, "%d", (int)client->config.keepalive_interval_s);
  e2b__headers_set(&handle->req.headers, "keepalive-ping-interval", e2b__str(text));
  handle->run_by = opts->run_timeout_ms > 0 ? client->now + (uint64_t)opts->run_timeout_ms : (uint64_t)E2B__NEVER;
  if (opts->run_timeout_ms > 0) { /* the life of the process; never 0, which would end it at once */
    (void)snprintf(text, sizeof text, "%d", (int)opts->run_timeout_ms);
    e2b__headers_set(&handle->req.headers, "connect-timeout-ms", e2b__str(text));
  }
  return handle;
}

/* What a stream was opened for: one of them. */
typedef struct e2b__command_want {
  e2b_command_handle **handle;
  uint32_t *pid;
  e2b_command_result *result; /* may be NULL */
} e2b__command_want;

/* Puts the message in the request and starts it with the operation that waits for it. */
static e2b_err e2b__command_open(e2b_sandbox *sandbox, const char *method, const e2b__message *type, const void *message,
                                 const e2b_run_opts *opts, const e2b__command_want *want, e2b_error *err) {
  const e2b_call *call = opts ? &opts->call : NULL;
  e2b_client *client = sandbox->client;
  const char *user = opts ? opts->user : NULL;
  bool listens = type == &e2b__msg_selector_request;
  int32_t default_ms = want->handle || want->pid ? client->config.request_timeout_ms : E2B_TIMEOUT_NONE;
  e2b__command_op *op = (e2b__command_op *)e2b__op_new(client, call, &e2b__command_op_type, sizeof *op, default_ms, err);
  e2b_err code;
  if (!op) return err && err->code ? err->code : E2B_ERR_NO_MEMORY;
  op->op.sandbox = sandbox;
  op->handle = e2b__command_new(sandbox, method, listens ? e2b__user_of_process(sandbox, user) : e2b__user(sandbox, user, false), opts);
  if (!op->handle) {
    e2b__op_release(&op->op);
    return e2b__no_memory(err);
  }
  op->handle->op = &op->op;
  op->out_handle = want->handle;
  op->out_pid = want->pid;
  op->to_file = want->pid && opts && e2b__given(opts->output_file);
  op->out = want->result;
  op->owns_handle = true;
  op->can_pause = want->handle || (call && call->op);
  op->handle->collect = want->pid || (want->result && !op->handle->no_collect);
  if (want->pid) op->handle->max_collect = 4096; /* why output_file cannot be opened */
  op->handle->starts = !listens;
  op->handle->req.idempotent = listens; /* which changes nothing */
  e2b__rpc_begin(&op->handle->rpc, true, sandbox, &op->handle->req, type, message);
  code = e2b__req_submit(&op->handle->req);
  if (code) {
    e2b__op_release(&op->op);
    return e2b__fail(err, code, code == E2B_ERR_LIMIT ? "the command is too long" : "out of memory");
  }
  return e2b__op_run(&op->op, call, err);
}

/* An envd before 0.3.0 leaves stdin open whatever it is told: a command that is to have an empty one is started by a shell
 * that gives it one and is replaced by it, so the pid is that of the command. e2b_commands_list hides it. */
#define E2B__NO_STDIN_ARGS 4
#define E2B__COMMAND_ARGS 6 /* at most, without them */
static const char *const e2b__no_stdin_args[E2B__NO_STDIN_ARGS] = { "-c", "exec \"$@\" </dev/null", "sh", "/bin/bash" };

/* /bin/bash with these arguments, started by that shell when it has to be; `all` has room for them all. */
static void e2b__command_line(const e2b_sandbox *sandbox, const e2b_str *args, size_t count, bool own_stdin, e2b__process_config *config,
                              e2b_str *all) {
  bool wrapped = !own_stdin && e2b__version_compare(sandbox->envd_version, "0.3.0") < 0;
  size_t n = 0;
  for (; wrapped && n < E2B__NO_STDIN_ARGS; n++) all[n] = e2b__str(e2b__no_stdin_args[n]);
  memcpy(all + n, args, count * sizeof *args);
  config->cmd = e2b__str(wrapped ? "/bin/sh" : "/bin/bash");
  config->args.items = all;
  config->args.count = n + count;
}

/* How many of a process's arguments belong to that shell. */
static size_t e2b__command_line_hidden(const e2b__process_config *config) {
  const e2b_str *args = (const e2b_str *)config->args.items;
  size_t n = 0;
  if (!e2b__str_eq(config->cmd, "/bin/sh") || config->args.count < E2B__NO_STDIN_ARGS) return 0;
  while (n < E2B__NO_STDIN_ARGS && e2b__str_eq(args[n], e2b__no_stdin_args[n])) n++;
  return n == E2B__NO_STDIN_ARGS ? n : 0;
}

/* StartRequest of /bin/bash with these arguments. */
static e2b_err e2b__command_start(e2b_sandbox *sandbox, const e2b_str *args, size_t arg_count, const e2b__pty_size *pty,
                                  const e2b_run_opts *opts, const e2b__command_want *want, e2b_error *err) {
  e2b__start_request request;
  e2b_str all[E2B__NO_STDIN_ARGS + E2B__COMMAND_ARGS];
  e2b__arena arena;
  e2b__pair *envs;
  e2b_err code;
  size_t i;
  memset(&request, 0, sizeof request);
  request.has_process = request.has_stdin_open = true;
  E2B_ASSERT(arg_count <= E2B__COMMAND_ARGS);
  e2b__command_line(sandbox, args, arg_count, pty || (opts && opts->stdin_open), &request.process, all);
  request.has_pty = request.pty.has_size = pty != NULL;
  if (pty) request.pty.size = *pty;
  e2b__arena_init(&arena, &sandbox->client->mem, SIZE_MAX / 2);
  if (opts) {
    request.stdin_open = opts->stdin_open;
    request.process.has_cwd = e2b__given(opts->cwd);
    request.process.cwd = e2b__str(opts->cwd);
    request.has_tag = e2b__given(opts->tag);
    request.tag = e2b__str(opts->tag);
    envs = (e2b__pair *)e2b__arena_alloc(&arena, opts->envs.count * sizeof *envs + 1);
    if (!envs) return e2b__no_memory(err);
    for (i = 0; i < opts->envs.count; i++) {
      envs[i].key = e2b__str(opts->envs.items[i].key);
      envs[i].value = e2b__str(opts->envs.items[i].value);
    }
    request.process.envs.items = envs;
    request.process.envs.count = opts->envs.count;
  }
  code = e2b__command_open(sandbox, "/process.Process/Start", &e2b__msg_start_request, &request, opts, want, err);
  e2b__arena_free(&arena);
  return code;
}

/* `/bin/bash -l -c <cmd>`, its output sent to opts->output_file when there is one: by a shell that first opens the file and says
 * so with an empty line. */
static e2b_err e2b__command_shell(e2b_sandbox *sandbox, const char *cmd, const e2b_run_opts *opts, const e2b__command_want *want,
                                  e2b_error *err) {
  static const char to_file[] = "exec 3>&1 >>\"$1\" 2>&1 && echo >&3 && exec 3>&- && exec /bin/bash -l -c \"$2\"";
  e2b_str args[6];
  if (!sandbox) return e2b__invalid(err, "sandbox", "must not be NULL");
  if (!e2b__given(cmd)) return e2b__invalid(err, "cmd", "must not be empty");
  if (e2b__run_opts_check(opts, err)) return E2B_ERR_INVALID_ARGUMENT;
  if (!want->pid && opts && e2b__given(opts->output_file))
    return e2b__invalid(err, "output_file", "is for e2b_commands_start_detached only");
  args[0] = e2b__str("-l");
  args[1] = e2b__str("-c");
  args[2] = e2b__str(cmd);
  if (!opts || !e2b__given(opts->output_file)) return e2b__command_start(sandbox, args, 3, NULL, opts, want, err);
  args[0] = e2b__str("-p"); /* reads no start-up files */
  args[2] = e2b__str(to_file);
  args[3] = e2b__str("output_file");
  args[4] = e2b__str(opts->output_file);
  args[5] = e2b__str(cmd);
  return e2b__command_start(sandbox, args, 6, NULL, opts, want, err);
}

E2B_API e2b_err e2b_commands_run(e2b_sandbox *sandbox, const char *cmd, const e2b_run_opts *opts, e2b_command_result *out, e2b_error *err) {
  e2b__command_want want = { NULL, NULL, NULL };
  e2b__result_clear(out, sizeof *out);
  want.result = out;
  return e2b__command_shell(sandbox, cmd, opts, &want, err);
}

E2B_API e2b_err e2b_commands_start(e2b_sandbox *sandbox, const char *cmd, const e2b_run_opts *opts, e2b_command_handle **out, e2b_error *err) {
  e2b__command_want want = { NULL, NULL, NULL };
  if (!out) return e2b__invalid(err, "out", "must not be NULL");
  *out = NULL;
  want.handle = out;
  return e2b__command_shell(sandbox, cmd, opts, &want, err);
}

E2B_API e2b_err e2b_commands_start_detached(e2b_sandbox *sandbox, const char *cmd, const e2b_run_opts *opts, uint32_t *pid, e2b_error *err) {
  e2b__command_want want = { NULL, NULL, NULL };
  if (!pid) return e2b__invalid(err, "pid", "must not be NULL");
  *pid = 0;
  if (opts && (opts->on_stdout || opts->on_stderr))
    return e2b__invalid(err, opts->on_stdout ? "on_stdout" : "on_stderr", "must be NULL: nobody listens to a detached command");
  want.pid = pid;
  return e2b__command_shell(sandbox, cmd, opts, &want, err);
}

static void e2b__select_pid(e2b__process_selector *selector, bool *has, uint32_t pid) {
  *has = true;
  selector->has_pid = true;
  selector->pid = pid;
}

static e2b_err e2b__command_connect(e2b_sandbox *sandbox, const e2b__process_selector *selector, const e2b_run_opts *opts,
                                    e2b_command_handle **out, e2b_error *err) {
  e2b__command_want want = { NULL, NULL, NULL };
  e2b__selector_request request;
  want.handle = out;
  request.process = *selector;
  request.has_process = true;
  return e2b__command_open(sandbox, "/process.Process/Connect", &e2b__msg_selector_request, &request, opts, &want, err);
}

E2B_API e2b_err e2b_commands_connect_to_process(e2b_sandbox *sandbox, uint32_t pid, const e2b_run_opts *opts, e2b_command_handle **out, e2b_error *err) {
  e2b__process_selector selector;
  bool has;
  if (!out) return e2b__invalid(err, "out", "must not be NULL");
  *out = NULL;
  if (!sandbox) return e2b__invalid(err, "sandbox", "must not be NULL");
  if (!pid) return e2b__invalid(err, "pid", "must not be 0");
  if (e2b__run_opts_check(opts, err)) return E2B_ERR_INVALID_ARGUMENT;
  memset(&selector, 0, sizeof selector);
  e2b__select_pid(&selector, &has, pid);
  return e2b__command_connect(sandbox, &selector, opts, out, err);
}

static void e2b__process_list_fill(e2b__pack *pack, const void *from, void *out) {
  const e2b__process_list *list = (const e2b__process_list *)from;
  const e2b__process_info *infos = (const e2b__process_info *)list->processes.items;
  e2b_process_list *result = (e2b_process_list *)out;
  e2b_process_info *items = (e2b_process_info *)e2b__pack_alloc(pack, list->processes.count * sizeof *items);
  size_t i, k;
  for (i = 0; i < list->processes.count; i++) {
    const e2b__process_info *info = &infos[i];
    size_t hidden = e2b__command_line_hidden(&info->config), arg_count = info->config.args.count - hidden;
    const e2b_str *args = hidden ? (const e2b_str *)info->config.args.items + hidden : (const e2b_str *)info->config.args.items;
    const char **copies = (const char **)e2b__pack_alloc(pack, arg_count * sizeof *copies);
    e2b_process_info copy;
    copy.pid = info->pid;
    copy.tag = e2b__pack_str(pack, info->tag);
    copy.cmd = e2b__pack_str(pack, hidden ? args[-1] : info->config.cmd);
    copy.cwd = e2b__pack_str(pack, info->config.cwd);
    for (k = 0; k < arg_count; k++) {
      const char *arg = e2b__pack_str(pack, args[k]);
      if (copies) copies[k] = arg;
    }
    copy.args.items = copies;
    copy.args.count = arg_count;
    copy.envs = e2b__pack_pairs(pack, &info->config.envs);
    if (items) items[i] = copy;
  }
  result->items = items;
  result->count = items ? list->processes.count : 0;
}

E2B_API e2b_err e2b_commands_list(e2b_sandbox *sandbox, const e2b_call *call, e2b_process_list *out, e2b_error *err) {
  e2b__empty request = { 0 };
  e2b__data_task *data;
  e2b_error local;
  if (!err) err = &local;
  e2b__result_clear(out, sizeof *out);
  if (!sandbox) return e2b__invalid(err, "sandbox", "must not be NULL");
  if (!out) return e2b__invalid(err, "out", "must not be NULL");
  data = e2b__rpc_new(sandbox, "/process.Process/List", &e2b__msg_empty, &request, e2b__user_of_process(sandbox, NULL), call, err);
  if (!data) return err->code;
  data->task.req.idempotent = true;
  data->task.out = out;
  data->answer = &e2b__msg_process_list;
  data->fill = e2b__process_list_fill;
  return e2b__task_run(&data->task, call, err);
}

/* envd refuses to signal a process that ended and was not waited for yet: as good as not there. */
static e2b_err e2b__signal_answered(e2b__task *task, e2b_error *err) {
  e2b_err code = e2b__rpc_judged(task, err);
  if (code != E2B_ERR_SERVICE || err->connect_code != E2B_CONNECT_INTERNAL || !strstr(err->message, "already finished")) return code;
  if (task->flag) *task->flag = false;
  return E2B_OK;
}

E2B_API e2b_err e2b_commands_send_signal(e2b_sandbox *sandbox, uint32_t pid, int signo, const e2b_call *call, bool *found, e2b_error *err) {
  e2b__send_signal_request request;
  e2b__data_task *data;
  e2b_error local;
  if (!err) err = &local;
  if (found) *found = false;
  if (!sandbox) return e2b__invalid(err, "sandbox", "must not be NULL");
  if (!pid) return e2b__invalid(err, "pid", "must not be 0");
  if (signo != E2B__SIGNAL_KILL && signo != E2B__SIGNAL_TERM)
    return e2b__invalid(err, "signo", "must be 9 (SIGKILL) or 15 (SIGTERM): envd delivers no others; `kill` as a command does");
  memset(&request, 0, sizeof request);
  e2b__select_pid(&request.process, &request.has_process, pid);
  request.signal = signo;
  data = e2b__rpc_new(sandbox, "/process.Process/SendSignal", &e2b__msg_send_signal_request, &request, e2b__user_of_process(sandbox, NULL), call, err);
  if (!data) return err->code;
  data->task.on_answer = e2b__signal_answered;
  data->task.subject = E2B_SUBJECT_PROCESS;
  data->task.flag = found;
  data->absent = E2B_ERR_NOT_FOUND;
  return e2b__task_run(&data->task, call, err);
}

E2B_API e2b_err e2b_commands_kill(e2b_sandbox *sandbox, uint32_t pid, const e2b_call *call, bool *killed, e2b_error *err) {
  return e2b_commands_send_signal(sandbox, pid, E2B__SIGNAL_KILL, call, killed, err);
}

/* ---- several calls behind one ---- */

static void e2b__soon_drop(e2b__op *op) {
  E2B__UNUSED(op);
}

static const e2b__op_type e2b__soon_type = { e2b__soon_drop, e2b__soon_drop, NULL, NULL, NULL };

/* Calls `fn` in the next turn. The operation in *soon takes it back. */
static e2b_err e2b__soon(e2b_client *client, e2b_done_fn fn, void *user, e2b_op *soon, e2b_error *err) {
  e2b_error ok;
  e2b_call call;
  e2b__op *op;
  memset(&ok, 0, sizeof ok);
  memset(&call, 0, sizeof call);
  call.on_done = fn;
  call.user = user;
  op = (e2b__op *)e2b__op_new(client, &call, &e2b__soon_type, sizeof *op, E2B_TIMEOUT_NONE, err);
  if (!op) return err->code;
  soon->id = op->id;
  e2b__op_finish(op, &ok);
  return E2B_PENDING;
}

/* An operation that makes public calls of its own, one after the other: each with chain->call, whose on_done is the next step. */
typedef struct e2b__chain {
  e2b__op op;
  e2b_op step;      /* under way */
  e2b_call call;
  e2b__arena arena; /* what the caller gave, for the later steps */
} e2b__chain;

static void e2b__chain_cancel(e2b__op *op) {
  e2b_op_cancel(op->client, ((e2b__chain *)op)->step);
  ((e2b__chain *)op)->step.id = 0;
}

static void e2b__chain_release(e2b__op *op) {
  e2b__chain_cancel(op);
  e2b__arena_free(&((e2b__chain *)op)->arena);
}

static e2b_phase e2b__chain_phase(e2b__op *op, bool *maybe_done) {
  e2b__op *step = e2b__op_find(op->client, ((e2b__chain *)op)->step);
  return step ? e2b__op_stands(step, maybe_done) : E2B_PHASE_NONE;
}

static const char *e2b__chain_copy(e2b__chain *chain, const char *text) {
  size_t size = strlen(text ? text : "") + 1;
  char *copy = (char *)e2b__arena_alloc(&chain->arena, size);
  if (copy && text) memcpy(copy, text, size);
  return copy;
}

/* Takes over what later steps need of the caller's call. NULL with *err. */
static void *e2b__chain_new(e2b_sandbox *sandbox, const e2b_call *call, const e2b__op_type *type, size_t size, int32_t default_ms,
                            e2b_done_fn first, e2b_error *err) {
  e2b__chain *chain;
  e2b_kv *headers;
  size_t i;
  if (e2b__call_check(call, err)) return NULL;
  chain = (e2b__chain *)e2b__op_new(sandbox->client, call, type, size, default_ms, err);
  if (!chain) return NULL;
  chain->op.sandbox = sandbox;
  e2b__arena_init(&chain->arena, &sandbox->client->mem, SIZE_MAX / 2);
  chain->call.timeout_ms = E2B_TIMEOUT_NONE; /* that of the chain counts */
  chain->call.op = &chain->step;
  chain->call.on_done = first;
  chain->call.user = chain;
  if (!call) return chain;
  chain->call.idle_ms = call->idle_ms;
  headers = (e2b_kv *)e2b__arena_alloc(&chain->arena, call->headers.count * sizeof *headers + 1);
  for (i = 0; headers && i < call->headers.count; i++) {
    headers[i].key = e2b__chain_copy(chain, call->headers.items[i].key);
    headers[i].value = e2b__chain_copy(chain, call->headers.items[i].value);
  }
  chain->call.headers.items = headers;
  chain->call.headers.count = call->headers.count;
  if (chain->arena.err || !headers) {
    e2b__op_release(&chain->op);
    e2b__no_memory(err);
    return NULL;
  }
  return chain;
}

/* After the first step was begun. */
static e2b_err e2b__chain_run(e2b__chain *chain, e2b_err begun, const e2b_call *call, e2b_error *err) {
  if (begun == E2B_PENDING) return e2b__op_run(&chain->op, call, err);
  e2b__op_release(&chain->op);
  return begun;
}

/* ---- attaching by tag ---- */

/* Connect by tag; envd's look-up stops at the first process that has another tag, so what it does not find is looked for in the
 * list. */
typedef struct e2b__tag_op {
  e2b__chain chain;
  e2b_run_opts opts;
  e2b_command_handle **out, *handle; /* handle: of the step under way */
  e2b__command_gift gift;
  e2b_process_list list;
  e2b_error missing; /* the answer to the first question */
} e2b__tag_op;

static void e2b__tag_op_release(e2b__op *base) {
  e2b__tag_op *op = (e2b__tag_op *)base;
  e2b__chain_release(base);
  e2b__command_gift_release(&op->gift);
  e2b_mem_free(&op->list.mem);
}

static const e2b__op_type e2b__tag_op_type = { e2b__chain_cancel, e2b__tag_op_release, NULL, e2b__chain_phase, NULL };

static void e2b__tag_connected(void *user, const e2b_error *err) {
  e2b__tag_op *op = (e2b__tag_op *)user;
  if (!err->code) e2b__command_give(&op->gift, &op->chain.op, op->out, op->handle);
  e2b__op_finish(&op->chain.op, err);
}

static void e2b__tag_listed(void *user, const e2b_error *err) {
  e2b__tag_op *op = (e2b__tag_op *)user;
  e2b_error failed = err->code ? *err : op->missing;
  size_t i;
  for (i = 0; i < op->list.count && strcmp(op->list.items[i].tag, op->opts.tag) != 0; i++) continue;
  if (i < op->list.count) {
    op->opts.call.on_done = e2b__tag_connected;
    if (e2b_commands_connect_to_process(op->chain.op.sandbox, op->list.items[i].pid, &op->opts, &op->handle, &failed) == E2B_PENDING)
      return;
  }
  e2b__op_finish(&op->chain.op, &failed);
}

static void e2b__tag_asked(void *user, const e2b_error *err) {
  e2b__tag_op *op = (e2b__tag_op *)user;
  e2b_error failed;
  if (err->code != E2B_ERR_NOT_FOUND || err->subject != E2B_SUBJECT_PROCESS) {
    e2b__tag_connected(user, err);
    return;
  }
  op->missing = *err;
  op->chain.call.on_done = e2b__tag_listed;
  if (e2b_commands_list(op->chain.op.sandbox, &op->chain.call, &op->list, &failed) != E2B_PENDING)
    e2b__op_finish(&op->chain.op, &failed);
}

E2B_API e2b_err e2b_commands_connect_to_tag(e2b_sandbox *sandbox, const char *tag, const e2b_run_opts *opts, e2b_command_handle **out, e2b_error *err) {
  const e2b_call *call = opts ? &opts->call : NULL;
  e2b__process_selector selector;
  e2b__tag_op *op;
  e2b_error local;
  if (!err) err = &local;
  if (!out) return e2b__invalid(err, "out", "must not be NULL");
  *out = NULL;
  if (!sandbox) return e2b__invalid(err, "sandbox", "must not be NULL");
  if (!e2b__given(tag) || !e2b__text_ok(tag)) return e2b__invalid(err, "tag", "is empty or has a control character");
  if (e2b__run_opts_check(opts, err)) return E2B_ERR_INVALID_ARGUMENT;
  op = (e2b__tag_op *)e2b__chain_new(sandbox, call, &e2b__tag_op_type, sizeof *op, sandbox->client->config.request_timeout_ms,
                                     e2b__tag_asked, err);
  if (!op) return err->code;
  op->out = out;
  if (opts) op->opts = *opts;
  memset(&op->opts.envs, 0, sizeof op->opts.envs);
  op->opts.call = op->chain.call;
  op->opts.cwd = op->opts.output_file = NULL;
  op->opts.tag = e2b__chain_copy(&op->chain, tag);
  op->opts.user = e2b__chain_copy(&op->chain, op->opts.user);
  if (op->chain.arena.err) return e2b__chain_run(&op->chain, e2b__no_memory(err), call, err);
  memset(&selector, 0, sizeof selector);
  selector.has_tag = true;
  selector.tag = e2b__str(tag);
  return e2b__chain_run(&op->chain, e2b__command_connect(sandbox, &selector, &op->opts, &op->handle, err), call, err);
}

/* ---- whole trees ---- */

/* For bash, with pid and grace in centiseconds, < 0 = kill at once. Prints how many processes there were, and how many of them
 * had to be killed. t: start times of the living, by pid; g: whoever has such a session, process group or parent belongs to them.
 * A process that is stopped cannot fork or end, so a scan that finds nothing new and nothing running has found all. */
#define E2B__TREE_SCRIPT \
  "st() { s=; { IFS= read -rd '' s <$1; } 2>/dev/null; f=(${s##*) }); [[ $f ]]; }\n" /* f: from the state on, field n is n - 3 */ \
  "live() { local q; for q in /proc/$1/task/*/stat; do st $q && [[ $f != [ZXx] ]] && return; done; return 1; }\n" \
  "prune() { local p; for p in ${!t[@]}; do { st /proc/$p/stat && [[ ${f[19]} == ${t[p]} ]] && live $p; } || unset \"t[$p]\"; done; }\n" \
  "scan() {\n" \
  "  local d q p a=1\n" \
  "  for d in /proc/[0-9]*/; do\n" \
  "    p=${d//[!0-9]}\n" \
  "    ((p != $$)) && st ${d}stat || continue\n" \
  "    if [[ ${t[p]} != ${f[19]} ]]; then\n" \
  "      [[ ${t[f[1]]} || ${g[f[2]]} || ${g[f[3]]} ]] && q=${f[19]} && live $p || continue\n" \
  "      t[p]=$q g[p]=1 a=0; ((n++))\n" \
  "    fi\n" \
  "    [[ $1 ]] || continue\n" \
  "    for q in ${d}task/*/stat; do st $q && [[ $f != [TtZXx] ]] && kill -STOP $p && a=0; done\n" \
  "  done 2>/dev/null\n" \
  "  return $a\n" \
  "}\n" \
  "freeze() { local i; for ((i = 0; i < 100; i++)); do scan 1 || break; done; prune; }\n" \
  "now() { read -r s f </proc/uptime; s=$((10#${s/.})); }\n" \
  "n=0 k=0\n" \
  "[[ -r /proc/$$/stat ]] || { echo there is no /proc >&2; exit 1; }\n" \
  "st /proc/$1/stat && ((f[1] == PPID)) || { echo 0 0; exit; }\n" \
  "g[$1]=1 q=${f[19]}\n" \
  "live $1 && { t[$1]=$q n=1; kill -STOP $1; }\n" \
  "freeze\n" \
  "if (($2 >= 0)); then\n" \
  "  kill -TERM ${!t[@]}\n" \
  "  for p in ${!t[@]} $1; do ((p == $1 && r++ == 0)) || kill -CONT $p; done\n" /* it last, or it sees its children stopped */ \
  "  now; end=$((s + $2))\n" \
  "  while scan; prune; ((${#t[@]})) && now && ((s < end)); do sleep .05 || sleep 1; done\n" \
  "  ((${#t[@]})) && freeze\n" \
  "fi 2>/dev/null\n" \
  "k=${#t[@]}\n" \
  "((k)) && kill -KILL ${!t[@]} 2>/dev/null\n" \
  "for ((i = 0; i < 500; i++)); do prune; ((${#t[@]})) || break; sleep .01 || sleep 1; done\n" \
  "((${#t[@]} == 0)) || { echo ${!t[@]} do not die >&2; exit 1; }\n" \
  "echo $n $k\n"

/* The script, then for envd's sake a SIGKILL to what may be left of the process: a stream that waits for pipes ends with it. */
typedef struct e2b__tree_op {
  e2b__chain chain;
  uint32_t pid;
  e2b_command_result result; /* of the script */
  uint32_t *killed;
  e2b_stopped *how;
} e2b__tree_op;

static void e2b__tree_op_release(e2b__op *base) {
  e2b__chain_release(base);
  e2b_mem_free(&((e2b__tree_op *)base)->result.mem);
}

static const e2b__op_type e2b__tree_op_type = { e2b__chain_cancel, e2b__tree_op_release, NULL, e2b__chain_phase, NULL };

static void e2b__tree_signaled(void *user, const e2b_error *err) {
  e2b_error ok;
  E2B__UNUSED(err); /* all are dead: the rest does not matter */
  memset(&ok, 0, sizeof ok);
  e2b__op_finish(&((e2b__tree_op *)user)->chain.op, &ok);
}

static void e2b__tree_done(void *user, const e2b_error *err) {
  e2b__tree_op *op = (e2b__tree_op *)user;
  e2b_error result = *err;
  uint32_t found = 0, killed = 0;
  if (!result.code) {
    char *end;
    found = (uint32_t)strtoul(op->result.stdout_data.ptr, &end, 10);
    killed = *end == ' ' ? (uint32_t)strtoul(end, &end, 10) : 0;
    if (!strchr(op->result.stdout_data.ptr, ' ') || strcmp(end, "\n") != 0) result.code = E2B_COMMAND_EXIT;
  }
  if (result.code == E2B_COMMAND_EXIT) {
    char why[150];
    e2b__error_excerpt(why, sizeof why, (const uint8_t *)op->result.stderr_data.ptr, op->result.stderr_data.len);
    result.exit_code = 0;
    e2b__error_say(&result, E2B_ERR_SERVICE, "the helper in the sandbox failed (%.40s): %s", op->result.status, why);
    result.maybe_done = true;
  }
  if (!result.code) {
    if (op->killed) *op->killed = found;
    if (op->how) *op->how = !found ? E2B_STOPPED_NOTHING : killed ? E2B_STOPPED_BY_KILL : E2B_STOPPED_BY_TERM;
    op->chain.call.on_done = e2b__tree_signaled;
    if ((killed || !found) &&
        e2b_commands_kill(op->chain.op.sandbox, op->pid, &op->chain.call, NULL, &result) == E2B_PENDING)
      return;
    memset(&result, 0, sizeof result);
  }
  e2b__op_finish(&op->chain.op, &result);
}

/* grace_ms < 0: SIGKILL at once. */
static e2b_err e2b__tree_kill(e2b_sandbox *sandbox, uint32_t pid, int32_t grace_ms, const e2b_call *call, uint32_t *killed,
                         e2b_stopped *how, e2b_error *err) {
  e2b__command_want want = { NULL, NULL, NULL };
  int32_t default_ms;
  e2b_run_opts opts;
  e2b__tree_op *op;
  e2b_str args[6];
  char texts[2][16];
  if (!sandbox) return e2b__invalid(err, "sandbox", "must not be NULL");
  if (!pid) return e2b__invalid(err, "pid", "must not be 0");
  default_ms = sandbox->client->config.request_timeout_ms;
  if (default_ms >= 0 && grace_ms > 0) default_ms = grace_ms > INT32_MAX - default_ms ? INT32_MAX : default_ms + grace_ms;
  op = (e2b__tree_op *)e2b__chain_new(sandbox, call, &e2b__tree_op_type, sizeof *op, default_ms, e2b__tree_done, err);
  if (!op) return err->code;
  op->pid = pid;
  op->killed = killed;
  op->how = how;
  (void)snprintf(texts[0], sizeof texts[0], "%lu", (unsigned long)pid);
  (void)snprintf(texts[1], sizeof texts[1], "%d", grace_ms < 0 ? -1 : (int)(grace_ms / 10 + (grace_ms % 10 != 0)));
  args[0] = e2b__str("-p"); /* reads no start-up files */
  args[1] = e2b__str("-c");
  args[2] = e2b__str(E2B__TREE_SCRIPT);
  args[3] = e2b__str(grace_ms < 0 ? "kill_tree" : "stop");
  args[4] = e2b__str(texts[0]);
  args[5] = e2b__str(texts[1]);
  memset(&opts, 0, sizeof opts);
  opts.call = op->chain.call;
  opts.user = "root"; /* whoever the processes belong to */
  opts.max_collect = 4096;
  want.result = &op->result;
  return e2b__chain_run(&op->chain, e2b__command_start(sandbox, args, 6, NULL, &opts, &want, err), call, err);
}

E2B_API e2b_err e2b_commands_kill_tree(e2b_sandbox *sandbox, uint32_t pid, const e2b_call *call, uint32_t *killed, e2b_error *err) {
  e2b_error local;
  if (killed) *killed = 0;
  return e2b__tree_kill(sandbox, pid, -1, call, killed, NULL, err ? err : &local);
}

E2B_API e2b_err e2b_commands_stop(e2b_sandbox *sandbox, uint32_t pid, int32_t grace_ms, const e2b_call *call, e2b_stopped *how, e2b_error *err) {
  e2b_error local;
  if (how) *how = E2B_STOPPED_NOTHING;
  if (grace_ms < 0) return e2b__invalid(err, "grace_ms", "must not be negative");
  return e2b__tree_kill(sandbox, pid, grace_ms ? grace_ms : 5000, call, NULL, how, err ? err : &local);
}

/* ---- input ---- */

/* Bytes for a process, or the end of them. Each piece is one SendInput, answered when the process' pipe or terminal took it, and
 * the next one goes out after the answer. StreamInput would save the round trips, but over HTTP/1.1 it says nothing before its
 * end: not how far it came when it fails, and a proxy that buffers requests would hold back all of it. */
#define E2B__INPUT_PIECE 65536u

struct e2b__input {
  e2b__data_task data;
  e2b__input *next;  /* in sandbox->inputs */
  uint32_t pid;
  bool pty, close;
  bool listed, begun;
  uint64_t taken;    /* by the process, for sure */
  size_t piece;      /* under way */
  e2b_source_fn source; /* NULL: task.data */
  void *source_user;
  bool can_pause, paused;
  uint8_t *buf;      /* one piece of the source's */
  e2b_op soon;
};

static void e2b__input_leave(e2b__input *input, bool done);

/* The end of a write that is not waited for any more. */
static void e2b__input_end(e2b__input *input, e2b_err code, const e2b_error *err) {
  e2b_error result = *err;
  if (code == E2B_PENDING) return;
  if (code == E2B_OK) memset(&result, 0, sizeof result);
  result.code = code;
  e2b__input_leave(input, code == E2B_OK);
  e2b__op_finish(&input->data.task.op, &result);
}

static e2b_err e2b__input_send(e2b__input *input, const uint8_t *bytes, size_t len, e2b_error *err) {
  e2b__send_input_request request;
  e2b__selector_request close;
  memset(&request, 0, sizeof request);
  memset(&close, 0, sizeof close);
  e2b__select_pid(&request.process, &request.has_process, input->pid);
  request.has_input = true;
  request.input.has_pty = input->pty;
  request.input.has_stdin_data = !input->pty;
  request.input.pty = request.input.stdin_data = e2b__str_n((const char *)bytes, len);
  close.process = request.process;
  close.has_process = true;
  input->piece = len;
  if (input->close) e2b__rpc_put(&input->data, &e2b__msg_selector_request, &close);
  else e2b__rpc_put(&input->data, &e2b__msg_send_input_request, &request);
  return e2b__task_again(&input->data.task, err);
}

/* Asks the source, in a turn. */
static e2b_err e2b__input_ask(e2b__input *input, e2b_error *err) {
  int got = input->source(input->source_user, input->buf, E2B__INPUT_PIECE);
  if (input->data.task.op.finished) return E2B_PENDING; /* by the callback */
  if (got == E2B_PAUSE && input->can_pause) {
    input->paused = true;
    return E2B_PENDING;
  }
  if (got == E2B_PAUSE)
    return e2b__fail(err, E2B_ERR_BAD_STATE, "E2B_PAUSE in a call without call.op: nobody could resume it");
  if (got < 0) return e2b__fail(err, E2B_ERR_CANCELED, "the source canceled the input");
  if ((size_t)got > E2B__INPUT_PIECE)
    return e2b__fail(err, E2B_ERR_INVALID_ARGUMENT, "the source returned more than it was asked for");
  return got ? e2b__input_send(input, input->buf, (size_t)got, err) : E2B_OK;
}

static void e2b__input_soon(void *user, const e2b_error *ok) {
  e2b__input *input = (e2b__input *)user;
  e2b_error err = *ok;
  input->soon.id = 0;
  e2b__input_end(input, e2b__input_ask(input, &err), &err);
}

/* The first piece, or the next one. */
static e2b_err e2b__input_go(e2b__input *input, e2b_error *err) {
  e2b__task *task = &input->data.task;
  size_t left = task->data_len - (size_t)input->taken;
  input->begun = true;
  if (input->source) return e2b__soon(task->op.client, e2b__input_soon, input, &input->soon, err);
  return e2b__input_send(input, left ? task->data + input->taken : NULL, E2B__MIN(left, (size_t)E2B__INPUT_PIECE), err);
}

/* The first one in the queue of its process. */
static bool e2b__input_is_next(const e2b__input *input) {
  const e2b__input *first = input->data.task.op.sandbox->inputs;
  while (first->pid != input->pid) first = first->next;
  return first == input;
}

static void e2b__input_unlist(e2b__input *input) {
  e2b__input **at = &input->data.task.op.sandbox->inputs;
  while (*at != input) at = &(*at)->next;
  *at = input->next;
  input->listed = false;
}

/* Out of the queue. What waits behind it begins, or ends when something may be missing before it. */
static void e2b__input_leave(e2b__input *input, bool done) {
  e2b_sandbox *sandbox = input->data.task.op.sandbox;
  bool broken = input->begun && !done;
  uint32_t pid = input->pid;
  e2b__input *next;
  if (!input->listed) return;
  e2b__input_unlist(input);
  for (;;) {
    e2b_error err;
    for (next = sandbox->inputs; next && next->pid != pid; next = next->next) continue;
    if (!next || next->begun) return;
    memset(&err, 0, sizeof err);
    if (broken) e2b__fail(&err, E2B_ERR_CANCELED, "an earlier write to this process did not end well: nothing of this one was sent");
    else if (e2b__input_go(next, &err) == E2B_PENDING) return;
    broken = true;
    e2b__input_unlist(next);
    e2b__op_finish(&next->data.task.op, &err);
  }
}

static void e2b__input_verdict(e2b__mourner *mourner) {
  e2b__data_task *data = (e2b__data_task *)(void *)((uint8_t *)mourner - offsetof(e2b__data_task, mourner));
  e2b__input_end((e2b__input *)data, mourner->err.code, &mourner->err);
}

/* What envd says when a process cannot be written to is a plain internal error on the wire. */
static e2b_err e2b__input_refused(e2b_err code, e2b_error *err) {
  if (code != E2B_ERR_SERVICE) return code;
  if (strstr(err->message, "tty") || strstr(err->message, "PTY") || strstr(err->message, "not enabled or closed"))
    err->maybe_done = false; /* what was sent is not for this process */
  if (strstr(err->message, "tty not assigned"))
    return e2b__error_say(err, E2B_ERR_BAD_STATE, "this process has no terminal: e2b_pty_... is for what e2b_pty_create started");
  if (strstr(err->message, "tty assigned") || strstr(err->message, "for PTY process"))
    return e2b__error_say(err, E2B_ERR_BAD_STATE, "this process has a terminal: use e2b_pty_send_input, and 0x04 for the end");
  if (strstr(err->message, "not enabled or closed"))
    return e2b__error_say(err, E2B_ERR_BAD_STATE, "the stdin of this process is not open: start it with stdin_open");
  if (strstr(err->message, "error writing to")) {
    err->maybe_done = true;
    return e2b__error_say(err, E2B_ERR_BAD_STATE, "the process reads no more: it closed its input or ended");
  }
  return code;
}

/* Says how far it came. */
static void e2b__input_say_taken(e2b__input *input, e2b_error *err) {
  char was[sizeof err->message];
  if (input->taken) err->maybe_done = true; /* to send all of it again would be wrong */
  if (input->close || !(input->taken || input->source)) return;
  memcpy(was, err->message, sizeof was);
  e2b__error_say(err, err->code, "after %llu bytes: %s", (unsigned long long)input->taken, was);
}

/* Before CloseStdin there was a plain 404 for it. It is asked of every envd, whatever version it claims. */
static bool e2b__input_is_old(const e2b__task *task) {
  return e2b__version_compare(task->op.sandbox->envd_version, "0.5.2") < 0;
}

static e2b_err e2b__input_answered(e2b__task *task, e2b_error *err) {
  e2b__input *input = (e2b__input *)task;
  e2b_err code = e2b__rpc_judged(task, err);
  if (code == E2B_PENDING) input->data.mourner.on_verdict = e2b__input_verdict;
  if (code == E2B_PENDING) return code;
  if (err->connect_code == E2B_CONNECT_INTERNAL || err->connect_code == E2B_CONNECT_UNKNOWN) code = e2b__input_refused(code, err);
  if (input->close && (code == E2B_ERR_NOT_BUILT || (task->req.status == 404 && !err->connect_code && e2b__input_is_old(task))))
    code = e2b__error_say(err, E2B_ERR_NOT_BUILT, "the envd of this sandbox (version %.20s) cannot close stdin: send what makes the "
                          "command end, or kill it", task->op.sandbox->envd_version);
  if (code == E2B_OK) {
    input->taken += input->piece;
    task->waited = false;
    if (input->source) code = e2b__input_ask(input, err);
    else if (input->taken < task->data_len) code = e2b__input_go(input, err);
  }
  if (code < 0) e2b__input_say_taken(input, err);
  if (code != E2B_PENDING) e2b__input_leave(input, code == E2B_OK);
  return code;
}

static e2b_err e2b__input_lost(e2b__task *task, e2b_error *err) {
  e2b__input *input = (e2b__input *)task;
  e2b_err code;
  e2b__input_say_taken(input, err);
  code = e2b__data_lost(task, err);
  input->data.mourner.on_verdict = e2b__input_verdict;
  if (code != E2B_PENDING) e2b__input_leave(input, false);
  return code;
}

static void e2b__input_cancel(e2b__op *op) {
  e2b__input *input = (e2b__input *)op;
  e2b_op_cancel(op->client, input->soon);
  input->soon.id = 0;
  e2b__data_cancel(op);
  e2b__input_leave(input, false);
}

static void e2b__input_release(e2b__op *op) {
  e2b__input *input = (e2b__input *)op;
  e2b__input_cancel(op);
  e2b__data_release(op);
  e2b__mem_free(&op->client->mem, input->buf, E2B__INPUT_PIECE);
  input->buf = NULL;
}

static void e2b__input_resume(e2b__op *op) {
  e2b__input *input = (e2b__input *)op;
  e2b_error err;
  if (!input->paused) return;
  input->paused = false;
  e2b__input_end(input, e2b__input_go(input, &err), &err);
}

static e2b_phase e2b__input_phase(e2b__op *op, bool *maybe_done) {
  e2b_phase phase = e2b__task_phase(op, maybe_done);
  if (((e2b__input *)op)->taken) *maybe_done = true;
  return phase;
}

static const e2b__op_type e2b__input_type = { e2b__input_cancel, e2b__input_release, e2b__input_resume, e2b__input_phase, NULL };

/* One write, or with `close` the end of the input. `what` says the rest: data and data_len, or source and user. */
static e2b_err e2b__input_write(e2b_sandbox *sandbox, uint32_t pid, bool pty, bool close, const e2b__task *what, const e2b_call *call,
                                e2b_error *err) {
  const char *method = close ? "/process.Process/CloseStdin" : "/process.Process/SendInput";
  e2b_error local;
  e2b__input *input, **at;
  e2b__task *task;
  e2b_err code = E2B_PENDING;
  if (!err) err = &local;
  if (!sandbox) return e2b__invalid(err, "sandbox", "must not be NULL");
  if (!pid) return e2b__invalid(err, "pid", "must not be 0");
  if (!what->data && what->data_len) return e2b__invalid(err, "data", "must not be NULL");
  input = (e2b__input *)e2b__rpc_new_sized(sandbox, method, sizeof *input, close ? sandbox->client->config.request_timeout_ms : E2B_TIMEOUT_NONE,
                                           e2b__user_of_process(sandbox, NULL), call, err);
  if (!input) return err->code;
  task = &input->data.task;
  task->op.type = &e2b__input_type;
  task->on_answer = e2b__input_answered;
  task->on_loss = e2b__input_lost;
  task->subject = E2B_SUBJECT_PROCESS;
  task->req.idempotent = close;
  task->data = what->data;
  task->data_len = what->data_len;
  input->source = what->source;
  input->source_user = what->user;
  input->pid = pid;
  input->pty = pty;
  input->close = close;
  input->can_pause = call && call->op;
  if (input->source) input->buf = (uint8_t *)e2b__mem_alloc(&sandbox->client->mem, E2B__INPUT_PIECE);
  for (at = &sandbox->inputs; *at; at = &(*at)->next) continue;
  *at = input;
  input->listed = true;
  if (input->source && !input->buf) code = e2b__no_memory(err);
  else if (e2b__input_is_next(input)) code = e2b__input_go(input, err);
  if (code == E2B_PENDING) return e2b__op_run(&task->op, call, err);
  e2b__op_release(&task->op);
  return code;
}

static e2b_err e2b__input_bytes(e2b_sandbox *sandbox, uint32_t pid, bool pty, const void *bytes, size_t len, const e2b_call *call, e2b_error *err) {
  e2b__task what;
  memset(&what, 0, sizeof what);
  what.data = (const uint8_t *)bytes;
  what.data_len = len;
  return e2b__input_write(sandbox, pid, pty, false, &what, call, err);
}

E2B_API e2b_err e2b_commands_send_stdin(e2b_sandbox *sandbox, uint32_t pid, const void *data, size_t len, const e2b_call *call, e2b_error *err) {
  return e2b__input_bytes(sandbox, pid, false, data, len, call, err);
}

E2B_API e2b_err e2b_commands_send_stdin_from(e2b_sandbox *sandbox, uint32_t pid, e2b_source_fn source, void *user, const e2b_call *call, e2b_error *err) {
  e2b__task what;
  if (!source) return e2b__invalid(err, "source", "must not be NULL");
  memset(&what, 0, sizeof what);
  what.source = source;
  what.user = user;
  return e2b__input_write(sandbox, pid, false, false, &what, call, err);
}

E2B_API e2b_err e2b_commands_close_stdin(e2b_sandbox *sandbox, uint32_t pid, const e2b_call *call, e2b_error *err) {
  e2b__task what;
  memset(&what, 0, sizeof what);
  return e2b__input_write(sandbox, pid, false, true, &what, call, err);
}

/* ---- handles ---- */

E2B_API uint32_t e2b_command_handle_pid(const e2b_command_handle *handle) {
  return handle ? handle->pid : 0;
}

E2B_API uint32_t e2b_command_handle_gaps(const e2b_command_handle *handle) {
  return handle ? handle->gaps : 0;
}

/* Switches between pulled and pushed output, and delivers what waits in the next turn. */
static void e2b__command_set_pulled(e2b_command_handle *handle) {
  handle->req.pulled = e2b__command_pulls(handle);
  if (handle->req.pulled || handle->req.state == E2B__REQ_NEW) return;
  handle->req.flush = true;
  e2b__req_kick(&handle->req);
}

/* Pulled output: the next event in the buffer. E2B_PENDING when there is no whole one. */
static e2b_err e2b__command_take(e2b_command_handle *handle, e2b_command_event *event, e2b_error *err) {
  e2b__req *req = &handle->req;
  if (handle->gap) event->kind = E2B_EVENT_GAP;
  handle->gap = false;
  if (event->kind == E2B_EVENT_GAP) return E2B_OK;
  for (;;) {
    e2b__envelope envelope;
    e2b__data_event data;
    e2b_err code = e2b__envelope_get(req->rx.data, req->rx.len, req->client->config.max_message_bytes, &envelope, &req->rx_need);
    bool ended = handle->ended;
    e2b_str *text = &data.stdout_data;
    if (code == E2B_PENDING) return code;
    memset(&data, 0, sizeof data);
    memset(err, 0, sizeof *err);
    if (code) e2b__error_say(err, code, "a message of the stream is too large, compressed or malformed");
    else code = e2b__command_message(handle, &envelope, &data, err);
    if (code) return code;
    if (data.has_stderr_data) text = &data.stderr_data;
    if (data.has_pty) text = &data.pty;
    handle->out[0].len = 0;
    e2b__buf_str(&handle->out[0], *text);
    if (!e2b__buf_cstr(&handle->out[0])) return e2b__no_memory(err);
    event->kind = data.has_stdout_data   ? E2B_EVENT_STDOUT
                  : data.has_stderr_data ? E2B_EVENT_STDERR
                  : data.has_pty         ? E2B_EVENT_PTY
                                         : E2B_EVENT_NONE;
    event->data = (const char *)handle->out[0].data;
    event->len = handle->out[0].len;
    e2b__buf_drop(&req->rx, envelope.size);
    e2b__req_kick(req);
    if (handle->ended && !ended) {
      event->kind = E2B_EVENT_EXIT;
      event->exit_code = handle->exit_code;
      event->exited = handle->exited;
      event->error = handle->failure.len ? e2b__buf_cstr(&handle->failure) : "";
    }
    if (event->kind != E2B_EVENT_NONE) return E2B_OK;
  }
}

E2B_API e2b_err e2b_command_handle_next(e2b_command_handle *handle, int timeout_ms, e2b_command_event *event, e2b_error *err) {
  e2b_client *client;
  e2b_error local;
  uint64_t end;
  bool turned = false, freed = false;
  e2b_err code;
  if (!err) err = &local;
  memset(err, 0, sizeof *err);
  if (!handle || !event) return e2b__invalid(err, handle ? "event" : "handle", "must not be NULL");
  memset(event, 0, sizeof *event);
  client = handle->sandbox->client;
  if (handle->collect) return e2b__fail(err, E2B_ERR_BAD_STATE, "a wait collects the output of this handle: wait for it again");
  if (handle->op || e2b__command_pushes(handle))
    return e2b__fail(err, E2B_ERR_BAD_STATE, "the output of this handle is pushed: unset the callbacks, or do not wait for it");
  if (client->in_turn && timeout_ms != 0) return e2b__fail(err, E2B_ERR_BAD_STATE, "waiting inside a callback: use timeout_ms 0");
  if (handle->delivering && !handle->settled) return E2B_PENDING; /* the callback that asks has the next one in its hands */
  if (!client->in_turn) client->now = e2b__now_ms(client); /* the caller may have been away */
  end = e2b__deadline(client->now, timeout_ms);
  e2b__req_resume(&handle->req); /* who pulls wants more, whatever a callback said before */
  for (;;) {
    e2b__req *req = &handle->req;
    uint64_t now;
    code = handle->settled ? E2B_PENDING : e2b__command_take(handle, event, err);
    if (code < 0) {
      e2b_error broken;
      e2b__command_blame(handle, err);
      broken = *err;
      e2b__command_break(handle, &broken);
    } else if (code == E2B_OK) {
      return code;
    }
    if (handle->settled) {
      *err = handle->error;
      return handle->error.code ? handle->error.code : E2B_EOF;
    }
    if (req->state == E2B__REQ_ENDED) { /* whatever is left is not a whole message */
      req->rx.len = 0;
      e2b__req_flush(req);
      continue;
    }
    now = e2b__now_ms(client);
    if (client->in_turn || (turned && now >= end)) return E2B_PENDING;
    handle->freed = &freed;
    (void)e2b__turn(client, end == (uint64_t)E2B__NEVER ? -1 : (int)E2B__MIN(end > now ? end - now : 0, (uint64_t)INT_MAX), NULL, 0, 0);
    turned = true;
    if (freed) return e2b__fail(err, E2B_ERR_CANCELED, "the handle was freed in a callback");
    handle->freed = NULL;
    if (e2b__waker_interrupted(client->net.waker)) return e2b__fail(err, E2B_ERR_CANCELED, "interrupted by e2b_client_interrupt");
  }
}

E2B_API void e2b_command_handle_set_output(e2b_command_handle *handle, e2b_data_fn on_stdout, e2b_data_fn on_stderr, void *user) {
  if (!handle) return;
  handle->on_stdout = on_stdout;
  handle->on_stderr = on_stderr;
  handle->output_user = user;
  e2b__command_set_pulled(handle);
}

E2B_API e2b_err e2b_command_handle_wait(e2b_command_handle *handle, const e2b_call *call, e2b_command_result *out, e2b_error *err) {
  e2b_client *client;
  e2b__command_op *op;
  e2b_error local;
  if (!err) err = &local;
  e2b__result_clear(out, sizeof *out);
  if (!handle) return e2b__invalid(err, "handle", "must not be NULL");
  client = handle->sandbox->client;
  if (e2b__call_check(call, err)) return E2B_ERR_INVALID_ARGUMENT;
  if (handle->op) return e2b__fail(err, E2B_ERR_BUSY, "another wait for this handle is under way");
  op = (e2b__command_op *)e2b__op_new(client, call, &e2b__command_op_type, sizeof *op, E2B_TIMEOUT_NONE, err);
  if (!op) return err->code;
  op->op.sandbox = handle->sandbox;
  op->handle = handle;
  op->out = out;
  handle->op = &op->op;
  if (!handle->on_stdout && !handle->on_stderr && !handle->collect) {
    handle->collect = !handle->no_collect;
    handle->out[0].len = 0; /* the last pulled event */
  }
  if (handle->settled) e2b__command_op_finish(op);
  else e2b__command_set_pulled(handle);
  return e2b__op_run(&op->op, call, err);
}

E2B_API void e2b_command_handle_resume(e2b_command_handle *handle) {
  if (handle) e2b__req_resume(&handle->req);
}

E2B_API void e2b_command_handle_disconnect(e2b_command_handle *handle) {
  e2b_error err;
  if (!handle || handle->settled) return;
  e2b__error_set(&err, E2B_ERR_CANCELED, E2B_PHASE_NONE, "disconnected; the process goes on");
  e2b__mourn_no_more(&handle->mourner);
  e2b__command_break(handle, &err);
}

/* Once the exit is known the pid is not used any more: by now it may be another process'. */
static e2b_err e2b__command_over(e2b_error *err) {
  (void)e2b__fail(err, E2B_ERR_NOT_FOUND, "the process has ended");
  if (err) err->subject = E2B_SUBJECT_PROCESS;
  return E2B_ERR_NOT_FOUND;
}

E2B_API e2b_err e2b_command_handle_kill(e2b_command_handle *handle, const e2b_call *call, bool *killed, e2b_error *err) {
  e2b_error local, ok;
  e2b__op *op;
  if (!err) err = &local;
  if (killed) *killed = false;
  if (!handle) return e2b__invalid(err, "handle", "must not be NULL");
  if (!handle->ended) return e2b_commands_kill(handle->sandbox, handle->pid, call, killed, err);
  if (e2b__call_check(call, err)) return err->code;
  op = (e2b__op *)e2b__op_new(handle->sandbox->client, call, &e2b__soon_type, sizeof *op, E2B_TIMEOUT_NONE, err);
  if (!op) return err->code;
  op->sandbox = handle->sandbox;
  memset(&ok, 0, sizeof ok);
  e2b__op_finish(op, &ok);
  return e2b__op_run(op, call, err);
}

E2B_API e2b_err e2b_command_handle_send_stdin(e2b_command_handle *handle, const void *data, size_t len, const e2b_call *call, e2b_error *err) {
  if (!handle) return e2b__invalid(err, "handle", "must not be NULL");
  if (handle->ended) return e2b__command_over(err);
  return e2b_commands_send_stdin(handle->sandbox, handle->pid, data, len, call, err);
}

E2B_API e2b_err e2b_command_handle_close_stdin(e2b_command_handle *handle, const e2b_call *call, e2b_error *err) {
  if (!handle) return e2b__invalid(err, "handle", "must not be NULL");
  if (handle->ended) return e2b__command_over(err);
  return e2b_commands_close_stdin(handle->sandbox, handle->pid, call, err);
}

E2B_API void e2b_command_handle_free(e2b_command_handle *handle) {
  e2b_client *client;
  if (!handle) return;
  client = handle->sandbox->client;
  if (handle->freed) *handle->freed = true;
  e2b__command_gift_withdraw(handle);
  if (handle->op && ((e2b__command_op *)handle->op)->owns_handle) e2b__command_part((e2b__command_op *)handle->op);
  e2b_command_handle_disconnect(handle);
  e2b__mourn_no_more(&handle->mourner);
  e2b__req_free(&handle->req);
  e2b__buf_free(&handle->out[0]);
  e2b__buf_free(&handle->out[1]);
  e2b__buf_free(&handle->status);
  e2b__buf_free(&handle->failure);
  if (handle->prev) handle->prev->next = handle->next; else handle->sandbox->handles = handle->next;
  if (handle->next) handle->next->prev = handle->prev;
  e2b__object_free(client, handle);
}

/* ================================================================================================================== */
/* >>>> pty */
/* ================================================================================================================== */

#ifndef E2B_NO_PTY

/* The options of a PTY as those of a command. */
static void e2b__pty_opts(const e2b_pty_opts *opts, e2b_run_opts *run) {
  memset(run, 0, sizeof *run);
  if (!opts) return;
  run->call = opts->call;
  run->run_timeout_ms = opts->run_timeout_ms;
  run->envs = opts->envs;
  run->cwd = opts->cwd;
  run->user = opts->user;
  run->tag = opts->tag;
  run->on_stdout = opts->on_data;
  run->output_user = opts->output_user;
  run->max_collect = opts->max_collect;
  run->reattach = opts->reattach;
}

/* Without these, programs on the terminal show garbage; what the caller set stays. */
static void e2b__pty_envs(e2b_kvs *envs, e2b_kv *room) {
  static const e2b_kv defaults[] = { { "TERM", "xterm-256color" }, { "LANG", "C.UTF-8" }, { "LC_ALL", "C.UTF-8" } };
  size_t i, k, count = envs->count;
  if (count) memcpy(room, envs->items, count * sizeof *room);
  for (i = 0; i < E2B__COUNT(defaults); i++) {
    for (k = 0; k < envs->count && strcmp(envs->items[k].key, defaults[i].key) != 0; k++) continue;
    if (k == envs->count) room[count++] = defaults[i];
  }
  envs->items = room;
  envs->count = count;
}

E2B_API e2b_err e2b_pty_create(e2b_sandbox *sandbox, const e2b_pty_opts *opts, e2b_command_handle **out, e2b_error *err) {
  e2b__command_want want = { NULL, NULL, NULL };
  e2b__pty_size size;
  e2b_run_opts run;
  e2b_kv *envs;
  e2b_str args[2];
  size_t room;
  e2b_err code;
  if (!out) return e2b__invalid(err, "out", "must not be NULL");
  *out = NULL;
  if (!sandbox) return e2b__invalid(err, "sandbox", "must not be NULL");
  e2b__pty_opts(opts, &run);
  if (e2b__run_opts_check(&run, err)) return E2B_ERR_INVALID_ARGUMENT;
  room = (run.envs.count + 3) * sizeof *envs;
  envs = (e2b_kv *)e2b__mem_alloc(&sandbox->client->mem, room);
  if (!envs) return e2b__no_memory(err);
  e2b__pty_envs(&run.envs, envs);
  size.cols = opts && opts->cols ? opts->cols : 80;
  size.rows = opts && opts->rows ? opts->rows : 24;
  args[0] = e2b__str("-i");
  args[1] = e2b__str("-l");
  want.handle = out;
  code = e2b__command_start(sandbox, args, 2, &size, &run, &want, err);
  e2b__mem_free(&sandbox->client->mem, envs, room);
  return code;
}

E2B_API e2b_err e2b_pty_connect(e2b_sandbox *sandbox, uint32_t pid, const e2b_pty_opts *opts, e2b_command_handle **out, e2b_error *err) {
  e2b_run_opts run;
  e2b__pty_opts(opts, &run);
  return e2b_commands_connect_to_process(sandbox, pid, &run, out, err);
}

E2B_API e2b_err e2b_pty_send_input(e2b_sandbox *sandbox, uint32_t pid, const void *data, size_t len, const e2b_call *call, e2b_error *err) {
  return e2b__input_bytes(sandbox, pid, true, data, len, call, err);
}

static e2b_err e2b__pty_resized(e2b__task *task, e2b_error *err) {
  e2b_err code = e2b__rpc_judged(task, err);
  return err->connect_code == E2B_CONNECT_INTERNAL ? e2b__input_refused(code, err) : code;
}

E2B_API e2b_err e2b_pty_resize(e2b_sandbox *sandbox, uint32_t pid, uint16_t cols, uint16_t rows, const e2b_call *call, e2b_error *err) {
  e2b__update_request request;
  e2b__data_task *data;
  e2b_error local;
  if (!err) err = &local;
  if (!sandbox) return e2b__invalid(err, "sandbox", "must not be NULL");
  if (!pid) return e2b__invalid(err, "pid", "must not be 0");
  if (!cols || !rows) return e2b__invalid(err, cols ? "rows" : "cols", "must not be 0");
  memset(&request, 0, sizeof request);
  e2b__select_pid(&request.process, &request.has_process, pid);
  request.has_pty = request.pty.has_size = true;
  request.pty.size.cols = cols;
  request.pty.size.rows = rows;
  data = e2b__rpc_new(sandbox, "/process.Process/Update", &e2b__msg_update_request, &request, e2b__user_of_process(sandbox, NULL), call, err);
  if (!data) return err->code;
  data->task.on_answer = e2b__pty_resized;
  data->task.subject = E2B_SUBJECT_PROCESS;
  data->task.req.idempotent = true;
  return e2b__task_run(&data->task, call, err);
}

E2B_API e2b_err e2b_pty_kill(e2b_sandbox *sandbox, uint32_t pid, const e2b_call *call, bool *killed, e2b_error *err) {
  return e2b_commands_kill(sandbox, pid, call, killed, err);
}

#endif /* E2B_NO_PTY */

/* ================================================================================================================== */
/* >>>> files */
/* ================================================================================================================== */

/* ---- arguments and answers ---- */

static e2b_err e2b__path_check(const char *name, const char *path, e2b_error *err) {
  if (!e2b__given(path)) return e2b__invalid(err, name, "is empty");
  if (!e2b__text_ok(path)) return e2b__invalid(err, name, "has a control character");
  return E2B_OK;
}

static const e2b_call *e2b__files_call(const e2b_files_opts *opts) {
  return opts ? &opts->call : NULL;
}

/* What every function on files checks before it does anything. */
static e2b_err e2b__files_check(const e2b_sandbox *sandbox, const char *name, const char *path,
                                const e2b_files_opts *opts, e2b_error *err) {
  e2b_err code;
  if (!sandbox) return e2b__invalid(err, "sandbox", "is NULL");
  code = opts && e2b__given(opts->user) ? e2b__user_check(opts->user, err) : E2B_OK;
  if (!code) code = e2b__call_check(e2b__files_call(opts), err);
  return code ? code : e2b__path_check(name, path, err);
}

/* Sets the code and puts words before the message. */
static e2b_err e2b__files_say_before(e2b_error *err, e2b_err code, const char *words) {
  char was[sizeof err->message];
  memcpy(was, err->message, sizeof was);
  return e2b__error_say(err, code, "%s: %s", words, was);
}

/* A 404 that envd did not write is not about the file: a router, a gateway or a wrong URL answers with text or HTML. */
static e2b_err e2b__files_doubt(e2b_err code, bool from_envd, e2b_error *err) {
  return code != E2B_ERR_NOT_FOUND || from_envd ? code : e2b__not_envd(err);
}

/* ---- the filesystem service ---- */

static e2b_entry_type e2b__entry_type(int32_t type) {
  switch (type) {
  case E2B__FILE_TYPE_FILE: return E2B_ENTRY_FILE;
  case E2B__FILE_TYPE_DIRECTORY: return E2B_ENTRY_DIR;
  case E2B__FILE_TYPE_SYMLINK: return E2B_ENTRY_SYMLINK;
  default: return E2B_ENTRY_UNKNOWN;
  }
}

static int64_t e2b__time_to_ns(e2b__timestamp time) {
  const int64_t most = INT64_MAX / 1000000000 - 1;
  if (time.seconds > most) return INT64_MAX;
  if (time.seconds < -most) return INT64_MIN;
  return time.seconds * 1000000000 + time.nanos;
}

/* `out` is NULL in the first pass. */
static void e2b__pack_entry(e2b__pack *pack, const e2b__entry_info *from, e2b_entry_info *out) {
  e2b_entry_info entry;
  memset(&entry, 0, sizeof entry);
  entry.name = e2b__pack_str(pack, from->name);
  entry.path = e2b__pack_str(pack, from->path);
  entry.permissions = e2b__pack_str(pack, from->permissions);
  entry.owner = e2b__pack_str(pack, from->owner);
  entry.group = e2b__pack_str(pack, from->group);
  if (from->has_symlink_target) entry.symlink_target = e2b__pack_str(pack, from->symlink_target);
  entry.type = e2b__entry_type(from->type);
  entry.size = from->size;
  entry.mode = from->mode;
  entry.modified_time_ns = e2b__time_to_ns(from->modified_time);
  entry.metadata = e2b__pack_pairs(pack, &from->metadata);
  if (out) *out = entry;
}

static void e2b__fill_entry(e2b__pack *pack, const void *from, void *out) {
  const e2b__entry_response *response = (const e2b__entry_response *)from;
  e2b__pack_entry(pack, &response->entry, pack->base ? (e2b_entry_info *)out : NULL);
}

static void e2b__fill_entry_list(e2b__pack *pack, const void *from, void *out) {
  const e2b__list *entries = &((const e2b__list_dir_response *)from)->entries;
  const e2b__entry_info *entry = (const e2b__entry_info *)entries->items;
  e2b_entry_info *items = (e2b_entry_info *)e2b__pack_alloc(pack, entries->count * sizeof *items);
  e2b_entry_list *list = (e2b_entry_list *)out;
  size_t i;
  for (i = 0; i < entries->count; i++) e2b__pack_entry(pack, &entry[i], items ? &items[i] : NULL);
  if (!items) return;
  list->items = items;
  list->count = entries->count;
}

/* An answer that must describe an entry, which has a path at least. */
static e2b_err e2b__files_entry_answered(e2b__task *task, e2b_error *err) {
  e2b_entry_info *out = (e2b_entry_info *)task->out;
  e2b_err code = e2b__rpc_answered(task, err);
  if (code || !out || out->path[0]) return code;
  e2b_mem_free(&out->mem);
  e2b__result_clear(out, sizeof *out);
  err->maybe_done = !task->req.idempotent;
  return e2b__error_say(err, E2B_ERR_PROTOCOL, "the answer describes no file");
}

static e2b__data_task *e2b__files_rpc_new(e2b_sandbox *sandbox, const char *service_method, const e2b__message *type,
                                          const void *message, const e2b_files_opts *opts, e2b_error *err) {
  const char *user = e2b__user(sandbox, opts ? opts->user : NULL, false);
  e2b__data_task *data = e2b__rpc_new(sandbox, service_method, type, message, user, e2b__files_call(opts), err);
  if (!data) return NULL;
  data->task.subject = E2B_SUBJECT_FILE;
  return data;
}

/* For calls whose request is nothing but a path. */
static e2b__data_task *e2b__files_path_new(e2b_sandbox *sandbox, const char *service_method, const char *path,
                                           const e2b_files_opts *opts, e2b_error *err) {
  e2b__path_request request;
  if (e2b__files_check(sandbox, "path", path, opts, err)) return NULL;
  request.path = e2b__str(path);
  return e2b__files_rpc_new(sandbox, service_method, &e2b__msg_path_request, &request, opts, err);
}

E2B_API e2b_err e2b_files_list(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts, e2b_entry_list *out,
                               e2b_error *err) {
  e2b__list_dir_request request;
  e2b__data_task *data;
  e2b_error local;
  if (!err) err = &local;
  e2b__result_clear(out, sizeof *out);
  if (!out) return e2b__invalid(err, "out", "is NULL");
  if (e2b__files_check(sandbox, "path", path, opts, err)) return err->code;
  request.path = e2b__str(path);
  request.depth = opts && opts->depth ? opts->depth : 1;
  data = e2b__files_rpc_new(sandbox, "/filesystem.Filesystem/ListDir", &e2b__msg_list_dir_request, &request, opts, err);
  if (!data) return err->code;
  data->answer = &e2b__msg_list_dir_response;
  data->fill = e2b__fill_entry_list;
  data->task.out = out;
  data->task.req.idempotent = true;
  return e2b__task_run(&data->task, e2b__files_call(opts), err);
}

E2B_API e2b_err e2b_files_exists(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts, bool *exists,
                                 e2b_error *err) {
  e2b__data_task *data;
  e2b_error local;
  if (!err) err = &local;
  if (!exists) return e2b__invalid(err, "exists", "is NULL");
  *exists = false;
  data = e2b__files_path_new(sandbox, "/filesystem.Filesystem/Stat", path, opts, err);
  if (!data) return err->code;
  data->absent = E2B_ERR_NOT_FOUND;
  data->task.flag = exists;
  data->task.req.idempotent = true;
  return e2b__task_run(&data->task, e2b__files_call(opts), err);
}

E2B_API e2b_err e2b_files_get_info(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts,
                                   e2b_entry_info *out, e2b_error *err) {
  e2b__data_task *data;
  e2b_error local;
  if (!err) err = &local;
  e2b__result_clear(out, sizeof *out);
  if (!out) return e2b__invalid(err, "out", "is NULL");
  data = e2b__files_path_new(sandbox, "/filesystem.Filesystem/Stat", path, opts, err);
  if (!data) return err->code;
  data->answer = &e2b__msg_entry_response;
  data->fill = e2b__fill_entry;
  data->on_success = e2b__files_entry_answered;
  data->task.out = out;
  data->task.req.idempotent = true;
  return e2b__task_run(&data->task, e2b__files_call(opts), err);
}

E2B_API e2b_err e2b_files_make_dir(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts, bool *created,
                                   e2b_error *err) {
  e2b__data_task *data;
  e2b_error local;
  if (!err) err = &local;
  if (created) *created = false;
  data = e2b__files_path_new(sandbox, "/filesystem.Filesystem/MakeDir", path, opts, err);
  if (!data) return err->code;
  data->absent = E2B_ERR_ALREADY_EXISTS;
  data->task.flag = created;
  return e2b__task_run(&data->task, e2b__files_call(opts), err);
}

E2B_API e2b_err e2b_files_rename(e2b_sandbox *sandbox, const char *old_path, const char *new_path,
                                 const e2b_files_opts *opts, e2b_entry_info *out, e2b_error *err) {
  e2b__move_request request;
  e2b__data_task *data;
  e2b_error local;
  if (!err) err = &local;
  e2b__result_clear(out, sizeof *out);
  if (e2b__files_check(sandbox, "old_path", old_path, opts, err) || e2b__path_check("new_path", new_path, err))
    return err->code;
  request.source = e2b__str(old_path);
  request.destination = e2b__str(new_path);
  data = e2b__files_rpc_new(sandbox, "/filesystem.Filesystem/Move", &e2b__msg_move_request, &request, opts, err);
  if (!data) return err->code;
  data->answer = &e2b__msg_entry_response;
  data->fill = e2b__fill_entry;
  data->on_success = e2b__files_entry_answered;
  data->task.out = out;
  return e2b__task_run(&data->task, e2b__files_call(opts), err);
}

E2B_API e2b_err e2b_files_remove(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts, e2b_error *err) {
  e2b__data_task *data;
  e2b_error local;
  if (!err) err = &local;
  data = e2b__files_path_new(sandbox, "/filesystem.Filesystem/Remove", path, opts, err);
  if (!data) return err->code;
  data->absent = E2B_ERR_NOT_FOUND;
  data->task.req.idempotent = true;
  return e2b__task_run(&data->task, e2b__files_call(opts), err);
}

/* ---- content: what requests and answers look like ---- */

/* Path, query and headers of a request for content. The user is in the query; `rpc_user` (or NULL) in a header, for RPCs
 * that are sent later with the same headers. */
static void e2b__files_address(e2b__req *req, const e2b_sandbox *sandbox, const char *path, const char *rpc_user,
                               const e2b_files_opts *opts) {
  const char *user = e2b__user(sandbox, opts ? opts->user : NULL, true);
  e2b__buf_text(&req->path, "/files");
  e2b__url_query(&req->path, "path", e2b__str(path));
  if (user) e2b__url_query(&req->path, "username", e2b__str(user));
  e2b__data_headers(req, sandbox, rpc_user, e2b__files_call(opts));
}

/* The content-length of an answer, -1 when it has none. */
static int64_t e2b__files_length(const e2b__req *req) {
  const char *text = e2b__headers_get(&req->answer_headers, "content-length");
  int64_t value = 0;
  if (!text) return -1;
  for (; e2b__is_digit(*text); text++) {
    int digit = *text - '0';
    value = value > (INT64_MAX - digit) / 10 ? INT64_MAX : value * 10 + digit;
  }
  return value;
}

static bool e2b__files_success(const e2b__req *req) {
  return req->status >= 200 && req->status < 300;
}

/* The part of a file a download is about. A server that does not know ranges sends all of the file, and the part is cut
 * out here. */
typedef struct e2b__part {
  uint64_t offset, length; /* as asked for; length 0 = to the end */
  uint64_t skip, left;     /* of the body still to come: to be thrown away; to be delivered, UINT64_MAX = all */
} e2b__part;

static bool e2b__part_asked(const e2b__part *part) {
  return part->offset || part->length;
}

static void e2b__part_ask(e2b__part *part, e2b__req *req, const e2b_files_opts *opts) {
  char text[64];
  part->offset = opts ? opts->offset : 0;
  part->length = opts ? opts->length : 0;
  part->left = UINT64_MAX;
  if (!e2b__part_asked(part)) return;
  if (part->length)
    (void)snprintf(text, sizeof text, "bytes=%llu-%llu", (unsigned long long)part->offset,
                   (unsigned long long)(part->offset + part->length - 1));
  else
    (void)snprintf(text, sizeof text, "bytes=%llu-", (unsigned long long)part->offset);
  e2b__headers_set(&req->headers, "range", e2b__str(text));
}

static e2b_err e2b__part_check(const e2b_files_opts *opts, e2b_error *err) {
  const uint64_t most = INT64_MAX;
  if (!opts) return E2B_OK;
  if (opts->offset > most) return e2b__invalid(err, "offset", "is beyond 2^63-1");
  if (opts->length > most - opts->offset) return e2b__invalid(err, "length", "goes beyond 2^63-1");
  return E2B_OK;
}

/* Reads a number and the character behind it. */
static bool e2b__part_number(const char **text, char end, uint64_t *out) {
  const char *at = *text;
  for (*out = 0; e2b__is_digit(*at); at++) {
    if (*out > (UINT64_MAX - 9) / 10) return false;
    *out = *out * 10 + (uint64_t)(*at - '0');
  }
  if (at == *text || *at != end) return false;
  *text = at + (end != 0);
  return true;
}

/* "bytes FIRST-LAST/SIZE". Whether that is the part asked for: all of it, or what the file has of it. */
static bool e2b__part_answers(const e2b__part *part, const char *range, uint64_t *len) {
  uint64_t first, last, size;
  if (!range || strncmp(range, "bytes ", 6) != 0) return false;
  range += 6;
  if (!e2b__part_number(&range, '-', &first) || !e2b__part_number(&range, '/', &last)) return false;
  if (first != part->offset || last < first || last == UINT64_MAX) return false;
  *len = last - first + 1;
  if (part->length && *len == part->length) return true;
  return e2b__part_number(&range, 0, &size) && size == last + 1 && (!part->length || *len < part->length);
}

/* Whether the answer says that the part begins beyond the end of the file. */
static bool e2b__part_beyond(const e2b__part *part, const e2b__req *req) {
  const char *range = e2b__headers_get(&req->answer_headers, "content-range");
  uint64_t size;
  if (req->status != 416 || !e2b__part_asked(part)) return false;
  if (!range) return true;
  if (strncmp(range, "bytes */", 8) != 0) return false;
  range += 8;
  return e2b__part_number(&range, 0, &size) && size <= part->offset;
}

/* The head of an answer with content is there. Returns why it is not the answer to the question, or NULL. */
static const char *e2b__part_begin(e2b__part *part, const e2b__req *req) {
  int64_t length = e2b__files_length(req);
  uint64_t len;
  part->skip = 0;
  part->left = UINT64_MAX;
  if (req->status == 206) {
    if (!e2b__part_asked(part)) return "the server sent a part of the file that nobody asked for";
    if (!e2b__part_answers(part, e2b__headers_get(&req->answer_headers, "content-range"), &len))
      return "the server sent another part of the file than it was asked for";
    if (length >= 0 && (uint64_t)length != len) return "the length of the answer is not that of its content-range";
    part->left = len;
  } else if (e2b__part_asked(part)) {
    part->skip = part->offset;
    if (part->length) part->left = part->length;
  }
  return NULL;
}

/* How many bytes will be delivered, -1 = unknown. */
static int64_t e2b__part_size(const e2b__part *part, const e2b__req *req) {
  int64_t length = e2b__files_length(req);
  uint64_t size = (uint64_t)length;
  if (req->status == 206) return (int64_t)part->left;
  if (length < 0) return -1;
  size -= E2B__MIN(size, part->skip);
  return (int64_t)E2B__MIN(size, part->left);
}

/* Moves data and len to what of it is to be delivered. */
static void e2b__part_cut(e2b__part *part, const uint8_t **data, size_t *len) {
  size_t skip = (size_t)E2B__MIN(part->skip, (uint64_t)*len);
  part->skip -= skip;
  *data += skip;
  *len -= skip;
  *len = (size_t)E2B__MIN(part->left, (uint64_t)*len);
  if (part->left != UINT64_MAX) part->left -= *len;
}

#define E2B__PART_SHORT "the answer ended before the part of the file it announced"

/* Whether all is delivered although more of the file would come. */
static bool e2b__part_enough(const e2b__part *part, const e2b__req *req) {
  int64_t length = e2b__files_length(req);
  return req->status != 206 && part->left == 0 && (length < 0 || req->answer_len < (uint64_t)length);
}

/* Why the body of a successful answer cannot be taken for the content of a file, or NULL. */
static const char *e2b__files_unusable(const e2b__req *req) {
  const char *encoding = e2b__headers_get(&req->answer_headers, "content-encoding");
  if (encoding && encoding[0] && !e2b__str_eq_nocase(e2b__str(encoding), "identity"))
    return "the server compressed the file although it was asked not to";
  if (req->status == 204 || req->open_ended)
    return "the answer has neither a content-length nor chunks: a file cut short would look complete";
  return NULL;
}

/* How far a download came, put before what ended it. */
static void e2b__files_say_progress(e2b_error *err, const e2b__req *req) {
  char words[64];
  int64_t length = e2b__files_length(req);
  unsigned long long got = req->answer_len;
  if (!e2b__files_success(req)) return;
  if (length >= 0)
    (void)snprintf(words, sizeof words, "after %llu of %llu bytes", got, (unsigned long long)length);
  else
    (void)snprintf(words, sizeof words, "after %llu bytes", got);
  (void)e2b__files_say_before(err, err->code, words);
}

/* True when envd wrote this answer to a request for content: its errors are JSON objects. */
static bool e2b__files_from_envd(const e2b__req *req) {
  return req->rx.len && req->rx.data[0] == '{';
}

/* The error an answer to a request for content stands for. */
static e2b_err e2b__files_error(e2b__req *req, e2b_error *err) {
  bool from_envd = e2b__files_from_envd(req);
  return e2b__files_doubt(
      e2b__answer_error(req, E2B_SUBJECT_FILE, "check the sandbox's access token and the user", err), from_envd, err);
}

/* ---- what is kept with a file ---- */

#define E2B__METADATA_HEADER "x-metadata-"
#define E2B__METADATA_KEY_MAX 246
#define E2B__METADATA_MAX 4096
#define E2B__METADATA_EXTRA 9 /* what a pair costs the server besides its key and value */

static e2b_err e2b__metadata_check(e2b_kvs metadata, e2b_error *err) {
  size_t i, k, total = 0;
  for (i = 0; i < metadata.count; i++) {
    e2b_str key = e2b__str(metadata.items[i].key), value = e2b__str(metadata.items[i].value);
    if (!e2b__header_name_ok(key)) return e2b__invalid(err, "metadata", "has a key that is empty or no header name");
    if (key.len > E2B__METADATA_KEY_MAX) return e2b__invalid(err, "metadata", "has a key of more than 246 bytes");
    if (!e2b__header_value_ok(value) || memchr(value.len ? value.ptr : "", '\t', value.len))
      return e2b__invalid(err, "metadata", "has a value that is not printable ASCII");
    if (e2b__str_trim(value).len != value.len)
      return e2b__invalid(err, "metadata", "has a value that begins or ends with a space, which would be lost");
    for (k = 0; k < i; k++)
      if (e2b__str_eq_nocase(key, metadata.items[k].key)) return e2b__invalid(err, "metadata", "has a key twice");
    total += E2B__METADATA_EXTRA + key.len + value.len;
  }
  if (total > E2B__METADATA_MAX) return e2b__invalid(err, "metadata", "has more than 4096 bytes in all");
  return E2B_OK;
}

static void e2b__metadata_put(e2b__req *req, e2b_kvs metadata) {
  char name[sizeof E2B__METADATA_HEADER + E2B__METADATA_KEY_MAX];
  size_t i;
  for (i = 0; i < metadata.count; i++) {
    (void)snprintf(name, sizeof name, E2B__METADATA_HEADER "%s", metadata.items[i].key);
    e2b__headers_set(&req->headers, name, e2b__str(metadata.items[i].value));
  }
}

/* Whether the server keeps all the metadata of the request. */
static bool e2b__metadata_kept(const e2b__req *req, const e2b__list *kept) {
  const e2b__pair *pairs = (const e2b__pair *)kept->items;
  const size_t prefix = sizeof E2B__METADATA_HEADER - 1;
  e2b_str name, value;
  size_t i, cursor = 0;
  while (e2b__headers_next(&req->headers, &cursor, &name, &value)) {
    if (name.len <= prefix || memcmp(name.ptr, E2B__METADATA_HEADER, prefix) != 0) continue;
    for (i = 0; i < kept->count; i++)
      if (e2b__str_eq(pairs[i].key, name.ptr + prefix) && e2b__str_eq(pairs[i].value, value.ptr)) break;
    if (i == kept->count) return false;
  }
  return true;
}

/* How content travels in a request: as it is, or as the one part of a form. `tail` follows it. */
typedef struct e2b__content {
  int64_t size; /* -1: until its source ends */
  char tail[48];
  size_t tail_len;
} e2b__content;

#define E2B__CONTENT_MAX (INT64_MAX - 65536) /* leaves room for what a form adds */

static void e2b__content_quote(e2b__buf *out, const char *name) {
  e2b__buf_text(out, "filename=\"");
  for (; *name; name++) {
    if (*name == '"' || *name == '\\') e2b__buf_byte(out, '\\');
    e2b__buf_byte(out, (uint8_t)*name);
  }
  e2b__buf_byte(out, '"');
}

/* What a file name looks like in a form: the last part of the path, quoted. */
static void e2b__content_name(e2b__buf *out, const char *path) {
  const char *slash = strrchr(path, '/');
  const char *name = slash ? slash + 1 : path;
  e2b__content_quote(out, *name ? name : "file");
}

/* Sets type, length and what precedes the content. Of a form, the boundary is random enough to occur in no file. */
static e2b_err e2b__content_begin(e2b__content *content, e2b__req *req, const char *path, bool form, e2b_error *err) {
  uint8_t random[16];
  char boundary[40], type[80];
  size_t i;
  content->tail_len = 0;
  req->body.len = 0;
  if (form) {
    if (!e2b__net_random(random, sizeof random)) return e2b__fail(err, E2B_ERR_IO, "the system gave no random bytes");
    memcpy(boundary, "e2b-", 4);
    for (i = 0; i < sizeof random; i++) (void)snprintf(boundary + 4 + 2 * i, 3, "%02x", (unsigned)random[i]);
    (void)snprintf(type, sizeof type, "multipart/form-data; boundary=%s", boundary);
    content->tail_len = (size_t)snprintf(content->tail, sizeof content->tail, "\r\n--%s--\r\n", boundary);
    e2b__buf_text(&req->body, "--");
    e2b__buf_text(&req->body, boundary);
    e2b__buf_text(&req->body, "\r\nContent-Disposition: form-data; name=\"file\"; ");
    e2b__content_name(&req->body, path);
    e2b__buf_text(&req->body, "\r\nContent-Type: application/octet-stream\r\n\r\n");
  }
  e2b__headers_set(&req->headers, "content-type", e2b__str(form ? type : "application/octet-stream"));
  req->body_len = E2B__BODY_CHUNKED;
  if (content->size >= 0) req->body_len = (int64_t)req->body.len + content->size + (int64_t)content->tail_len;
  return E2B_OK;
}

/* The bytes behind the content, from `at` on; 0 at their end. */
static int e2b__content_tail(const e2b__content *content, uint64_t at, uint8_t *buf, size_t cap) {
  size_t from = (size_t)at, left = content->tail_len - from;
  left = E2B__MIN(left, cap);
  memcpy(buf, content->tail + from, left);
  return (int)left;
}

static bool e2b__files_as_form(const e2b_sandbox *sandbox, const e2b_files_opts *opts) {
  if (opts && opts->octet_stream != E2B_UNSET) return opts->octet_stream == E2B_NO;
  return sandbox->files_as_form || e2b__version_compare(sandbox->envd_version, "0.5.7") < 0;
}

/* What every upload checks before it does anything. */
static e2b_err e2b__files_check_write(const e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts,
                                      e2b_error *err) {
  e2b_err code = e2b__files_check(sandbox, "path", path, opts, err);
  if (!code && opts) code = e2b__metadata_check(opts->metadata, err);
  if (!code && opts && opts->atomic && path[strlen(path) - 1] == '/')
    return e2b__invalid(err, "path", "names a directory");
  return code;
}

static e2b_err e2b__files_check_read(const e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts,
                                     e2b_error *err) {
  e2b_err code = e2b__files_check(sandbox, "path", path, opts, err);
  return code ? code : e2b__part_check(opts, err);
}

#define E2B__FILES_CALL_AGAIN "this envd takes uploads as forms only; the next one will be a form, so call again"

/* Whether an answer says that this envd takes forms only: the words of envd since 0.5.7, of Go's library before. */
static bool e2b__files_wants_form(const e2b__req *req, const e2b_error *err) {
  return (req->status == 400 || req->status == 500) &&
         (strstr(err->message, "unsupported content type") || strstr(err->message, "isn't multipart/form-data"));
}

/* Reads the answer to an upload. Only a list with a path in it proves that a file was written. Its content type proves
 * nothing: it is text/plain. */
static e2b_err e2b__files_confirmed(e2b__req *req, e2b__arena *arena, e2b__rest_write_info *info, e2b_error *err) {
  char excerpt[80];
  e2b__list list;
  e2b_err code;
  err->phase = E2B_PHASE_DECODE;
  err->maybe_done = true;
  if (!req->body_ended)
    return e2b__error_say(err, E2B_ERR_PROTOCOL, "the server answered HTTP %d before it had the whole file",
                          req->status);
  e2b__error_excerpt(excerpt, sizeof excerpt, req->rx.data, req->rx.len);
  code = e2b__json_decode_list(&e2b__msg_rest_write_info, (char *)req->rx.data, req->rx.len, arena, &list);
  if (code == E2B_ERR_NO_MEMORY) return e2b__error_say(err, code, "no memory for the answer");
  if (!code && list.count) *info = *(const e2b__rest_write_info *)list.items;
  if (code || !list.count || !info->path.len)
    return e2b__error_say(err, E2B_ERR_PROTOCOL,
                          "HTTP %d, but nothing in the answer says that the file was written: \"%s\"", req->status,
                          excerpt);
  if (!e2b__metadata_kept(req, &info->metadata))
    return e2b__error_say(err, E2B_ERR_NOT_BUILT,
                          "the server kept no metadata with the file: that needs envd 0.6.2 and a file system with "
                          "extended attributes");
  err->maybe_done = false;
  return E2B_OK;
}

static void e2b__fill_write_info(e2b__pack *pack, const void *from, void *out) {
  const e2b__rest_write_info *info = (const e2b__rest_write_info *)from;
  e2b_write_info *result = (e2b_write_info *)out;
  const char *path = e2b__pack_str(pack, info->path), *name = e2b__pack_str(pack, info->name),
             *type = e2b__pack_str(pack, info->type);
  e2b_kvs metadata = e2b__pack_pairs(pack, &info->metadata);
  if (!pack->base) return;
  result->path = path;
  result->name = name;
  result->type = type;
  result->metadata = metadata;
}

/* ---- content: appearing at once or not at all ---- */

/* Written under another name, then renamed: three exchanges of one request at most. */
typedef enum e2b__atomic_phase {
  E2B__ATOMIC_WRITE = 0, /* the content goes to the temporary file */
  E2B__ATOMIC_MOVE,      /* which is renamed over the target */
  E2B__ATOMIC_REMOVE     /* or removed, because one of the two failed */
} e2b__atomic_phase;

typedef struct e2b__atomic {
  char *temp, *target; /* temp NULL = the write is an ordinary one */
  char *user;          /* whose paths these are; NULL = the server's default */
  e2b__rpc rpc;        /* how the second and third exchange travel */
  e2b__atomic_phase phase;
  e2b_error err;       /* what failed */
} e2b__atomic;

static void e2b__atomic_free(e2b__atomic *atomic, e2b__mem *mem) {
  e2b__mem_free_str(mem, atomic->temp);
  e2b__mem_free_str(mem, atomic->target);
  e2b__mem_free_str(mem, atomic->user);
  memset(atomic, 0, sizeof *atomic);
}

/* Chooses the name of the temporary file: beside the target, hidden, never the same. */
static e2b_err e2b__atomic_init(e2b__atomic *atomic, const e2b_sandbox *sandbox, const char *path, const char *user,
                                e2b_error *err) {
  static const char digits[] = "0123456789abcdef";
  e2b__mem *mem = &sandbox->client->mem;
  const char *slash = strrchr(path, '/');
  uint8_t random[12];
  e2b__buf temp;
  size_t i;
  if (!e2b__net_random(random, sizeof random)) return e2b__fail(err, E2B_ERR_IO, "the system gave no random bytes");
  e2b__buf_init(&temp, mem, SIZE_MAX / 2);
  if (slash) e2b__buf_put(&temp, path, (size_t)(slash - path) + 1);
  e2b__buf_text(&temp, ".e2b-");
  for (i = 0; i < sizeof random; i++) {
    e2b__buf_byte(&temp, (uint8_t)digits[random[i] >> 4]);
    e2b__buf_byte(&temp, (uint8_t)digits[random[i] & 15]);
  }
  e2b__buf_text(&temp, ".tmp");
  atomic->temp = temp.err ? NULL : e2b__mem_dup(mem, (const char *)temp.data, temp.len);
  e2b__buf_free(&temp);
  atomic->target = e2b__mem_dup(mem, path, strlen(path));
  atomic->user = user ? e2b__mem_dup(mem, user, strlen(user)) : NULL;
  return atomic->temp && atomic->target && (atomic->user || !user) ? E2B_OK : e2b__no_memory(err);
}

/* Sends a unary RPC with the request of the write, whose headers name its user. */
static e2b_err e2b__atomic_send(e2b__atomic *atomic, e2b__req *req, const e2b_sandbox *sandbox,
                                e2b__atomic_phase phase) {
  e2b__path_request doomed;
  e2b__move_request move;
  atomic->phase = phase;
  e2b__req_target(req, &sandbox->runtime);
  if (phase == E2B__ATOMIC_MOVE) {
    move.source = e2b__str(atomic->temp);
    move.destination = e2b__str(atomic->target);
    e2b__buf_text(&req->path, "/filesystem.Filesystem/Move");
    e2b__rpc_begin(&atomic->rpc, false, sandbox, req, &e2b__msg_move_request, &move);
  } else {
    doomed.path = e2b__str(atomic->temp);
    e2b__buf_text(&req->path, "/filesystem.Filesystem/Remove");
    e2b__rpc_begin(&atomic->rpc, false, sandbox, req, &e2b__msg_path_request, &doomed);
  }
  req->idempotent = phase == E2B__ATOMIC_REMOVE;
  return e2b__req_submit(req);
}

#define E2B__ATOMIC_REMOVE_MS 5000
#define E2B__ATOMIC_SETTLE_MS 200 /* an upload that was cut may still create its file a moment later */

static void e2b__ignore_done(void *user, const e2b_error *err) {
  E2B__UNUSED(user);
  E2B__UNUSED(err);
}

/* Has the temporary file removed by an operation of its own, by whoever drives the client next. */
static void e2b__atomic_discard(const e2b__atomic *atomic, e2b_sandbox *sandbox) {
  e2b__data_task *data;
  e2b_files_opts opts;
  e2b_error err;
  if (sandbox->closing || sandbox->client->closing) return;
  memset(&opts, 0, sizeof opts);
  opts.call.timeout_ms = E2B__ATOMIC_REMOVE_MS;
  opts.call.on_done = e2b__ignore_done;
  opts.user = atomic->user;
  data = e2b__files_path_new(sandbox, "/filesystem.Filesystem/Remove", atomic->temp, &opts, &err);
  if (!data) return;
  data->task.req.idempotent = true;
  data->task.req.not_before = sandbox->client->now + E2B__ATOMIC_SETTLE_MS;
  (void)e2b__task_run(&data->task, &opts.call, &err);
}

/* The write is given up from outside; its request is not aborted yet. */
static void e2b__atomic_abandon(const e2b__atomic *atomic, const e2b__req *req, e2b_sandbox *sandbox) {
  bool written = atomic->phase != E2B__ATOMIC_WRITE || e2b__req_was_sent(req);
  if (atomic->temp && written) e2b__atomic_discard(atomic, sandbox);
}

/* After an exchange that ended with *err: E2B_PENDING when another one is under way, else how the write ended. `deadline`:
 * of the whole write. */
static e2b_err e2b__atomic_next(e2b__atomic *atomic, e2b__req *req, e2b_sandbox *sandbox, uint64_t deadline,
                                e2b_error *err) {
  uint64_t now = req->client->now;
  bool sent = e2b__req_was_sent(req);
  e2b_err code;
  if (atomic->phase != E2B__ATOMIC_WRITE && e2b__rpc_refused(&atomic->rpc, req) &&
      e2b__rpc_again_as_json(&atomic->rpc, sandbox, req, err) == E2B_PENDING)
    return E2B_PENDING;
  if (atomic->phase == E2B__ATOMIC_REMOVE) {
    *err = atomic->err;
    return err->code;
  }
  if (atomic->phase == E2B__ATOMIC_WRITE) err->maybe_done = false; /* the target is as it was */
  if (!err->code) {
    if (atomic->phase == E2B__ATOMIC_MOVE) return E2B_OK;
    code = e2b__atomic_send(atomic, req, sandbox, E2B__ATOMIC_MOVE);
    if (!code) return E2B_PENDING;
    e2b__fail(err, code, "out of memory");
  }
  if (!sent) return err->code; /* the server does not know of it */
  atomic->err = *err;
  if (deadline < now + 20) {
    e2b__atomic_discard(atomic, sandbox);
    return err->code;
  }
  req->deadline = E2B__MIN(deadline - 10, now + E2B__ATOMIC_REMOVE_MS);
  req->not_before = err->http_status ? 0 : now + E2B__ATOMIC_SETTLE_MS;
  return e2b__atomic_send(atomic, req, sandbox, E2B__ATOMIC_REMOVE) ? err->code : E2B_PENDING;
}

/* Reads the successful answer to the Move that ends an atomic write. */
static e2b_err e2b__atomic_moved(const e2b__atomic *atomic, e2b__req *req, e2b__arena *arena,
                                 e2b__rest_write_info *info, e2b_error *err) {
  const char *type = e2b__headers_get(&req->answer_headers, "content-type");
  const char *wanted = e2b__rpc_content_type(&atomic->rpc);
  e2b__entry_response moved;
  err->phase = E2B_PHASE_DECODE;
  err->maybe_done = true;
  if (!type || strncmp(type, wanted, strlen(wanted)) != 0)
    return e2b__error_say(err, E2B_ERR_PROTOCOL, "the answer to the rename of the temporary file is not %s",
                          e2b__rpc_codec_name(&atomic->rpc));
  if (e2b__rpc_decode(&atomic->rpc, &e2b__msg_entry_response, req->rx.data, req->rx.len, arena, &moved, err))
    return err->code;
  if (!moved.entry.path.len) return e2b__error_say(err, E2B_ERR_PROTOCOL, "the answer describes no file");
  info->name = moved.entry.name;
  info->path = moved.entry.path;
  info->type = e2b__str("file");
  info->metadata = moved.entry.metadata;
  err->maybe_done = false;
  return E2B_OK;
}

/* ---- content: whole, and pushed ---- */

/* One download or upload that is an operation. */
typedef struct e2b__transfer {
  e2b__data_task data;
  bool can_pause; /* the caller has a handle to resume it with */
  char why[144];  /* what stopped it on our side, "" = nothing */
  /* of e2b_files_read, which has no sink */
  bool text;
  bool fixed; /* `block` is the caller's */
  uint8_t *block;
  size_t len, cap;
  e2b__part part;
  /* of uploads */
  char *path;
  e2b__content content;
  e2b__atomic atomic;
} e2b__transfer;

static void e2b__transfer_release(e2b__op *op) {
  e2b__transfer *transfer = (e2b__transfer *)op;
  e2b_allocator *allocator = &op->client->mem.allocator;
  e2b__data_release(op);
  e2b__mem_free_str(&op->client->mem, transfer->path);
  transfer->path = NULL;
  e2b__atomic_free(&transfer->atomic, &op->client->mem);
  if (transfer->block && !transfer->fixed) allocator->free_fn(allocator->user, transfer->block, transfer->cap);
  transfer->block = NULL;
}

static void e2b__transfer_cancel(e2b__op *op) {
  e2b__transfer *transfer = (e2b__transfer *)op;
  e2b__atomic_abandon(&transfer->atomic, &transfer->data.task.req, op->sandbox);
  e2b__data_cancel(op);
}

static const e2b__op_type e2b__transfer_type = { e2b__transfer_cancel, e2b__transfer_release, e2b__task_resume,
                                                 e2b__task_phase, NULL };

static e2b__transfer *e2b__transfer_of(e2b__req *req) {
  return (e2b__transfer *)(void *)((uint8_t *)req - offsetof(e2b__transfer, data.task.req));
}

/* Stops a transfer from one of its events: the code goes through the layers below, the reason waits here. */
static e2b_err e2b__transfer_stop(e2b__transfer *transfer, e2b_err code, const char *why) {
  (void)snprintf(transfer->why, sizeof transfer->why, "%s", why);
  return code;
}

static e2b_err e2b__transfer_lost(e2b__task *task, e2b_error *err) {
  e2b__transfer *transfer = (e2b__transfer *)task;
  if (transfer->why[0]) return e2b__error_say(err, err->code, "%s", transfer->why);
  e2b__files_say_progress(err, &task->req);
  return e2b__data_lost(task, err);
}

static e2b_err e2b__transfer_answered(e2b__task *task, e2b_error *err) {
  bool from_envd = e2b__files_from_envd(&task->req);
  if (e2b__part_beyond(&((e2b__transfer *)task)->part, &task->req))
    return ((e2b__data_task *)task)->on_success(task, err);
  return e2b__files_doubt(e2b__data_answered(task, err), from_envd, err);
}

/* What a callback's E2B_PAUSE comes to. */
static e2b_err e2b__transfer_pause(e2b__transfer *transfer) {
  if (transfer->can_pause) return E2B_OK;
  return e2b__transfer_stop(transfer, E2B_ERR_BAD_STATE, "E2B_PAUSE in a call without call.op: nobody could resume it");
}

static e2b__transfer *e2b__transfer_new(e2b_sandbox *sandbox, const e2b_files_opts *opts, int32_t default_ms,
                                        const e2b__req_events *events, e2b_error *err) {
  const e2b_call *call = e2b__files_call(opts);
  e2b__transfer *transfer =
      (e2b__transfer *)e2b__data_task_new(sandbox, call, sizeof *transfer, default_ms, events, err);
  if (!transfer) return NULL;
  transfer->data.task.op.type = &e2b__transfer_type;
  transfer->data.task.subject = E2B_SUBJECT_FILE;
  transfer->data.task.on_answer = e2b__transfer_answered;
  transfer->data.task.on_loss = e2b__transfer_lost;
  transfer->can_pause = call && call->op;
  return transfer;
}

/* Makes room for so many bytes in all and a NUL, within the limit and the caller's storage. */
static e2b_err e2b__read_reserve(e2b__transfer *transfer, uint64_t len) {
  e2b_client *client = transfer->data.task.op.client;
  e2b_allocator *allocator = &client->mem.allocator;
  e2b_mem *mem = &((e2b_buf *)transfer->data.task.out)->mem;
  uint64_t most = E2B__MIN(client->config.max_result_bytes, (uint64_t)(SIZE_MAX / 2));
  size_t need = (size_t)len + 1, cap;
  uint8_t *grown;
  if (len > most) {
    (void)snprintf(transfer->why, sizeof transfer->why,
                   "the file has at least %llu bytes, above config.max_result_bytes (%llu): use "
                   "e2b_files_download",
                   (unsigned long long)len, (unsigned long long)most);
    return E2B_ERR_LIMIT;
  }
  if (need <= transfer->cap) return E2B_OK;
  if (transfer->fixed) {
    mem->len = need;
    (void)snprintf(transfer->why, sizeof transfer->why, "the result needs %lu bytes, the storage given has %lu",
                   (unsigned long)need, (unsigned long)mem->cap);
    return E2B_ERR_BUFFER_TOO_SMALL;
  }
  cap = (size_t)E2B__MIN((uint64_t)transfer->cap * 2, most + 1);
  cap = E2B__MAX(cap, need);
  grown = (uint8_t *)(transfer->block ? allocator->realloc_fn(allocator->user, transfer->block, transfer->cap, cap)
                                      : allocator->alloc_fn(allocator->user, cap));
  if (!grown) return e2b__transfer_stop(transfer, E2B_ERR_NO_MEMORY, "no memory for the content");
  transfer->block = grown;
  transfer->cap = cap;
  return E2B_OK;
}

static e2b_err e2b__download_on_head(e2b__req *req) {
  e2b__transfer *transfer = e2b__transfer_of(req);
  const char *why;
  int64_t length;
  if (!e2b__files_success(req)) return E2B_OK;
  why = e2b__files_unusable(req);
  if (!why) why = e2b__part_begin(&transfer->part, req);
  if (why) return e2b__transfer_stop(transfer, E2B_ERR_PROTOCOL, why);
  length = e2b__part_size(&transfer->part, req);
  return transfer->data.task.sink || length < 0 ? E2B_OK : e2b__read_reserve(transfer, (uint64_t)length);
}

/* The part asked for is delivered: what follows it is not waited for. */
static e2b_err e2b__download_enough(e2b__transfer *transfer) {
  e2b__task *task = &transfer->data.task;
  e2b_error err;
  memset(&err, 0, sizeof err);
  err.http_status = task->req.status;
  e2b__req_abort(&task->req);
  err.code = transfer->data.on_success(task, &err);
  e2b__op_finish(&task->op, &err);
  return E2B_ERR_CANCELED; /* the request */
}

static e2b_err e2b__download_give(e2b__transfer *transfer, const uint8_t *data, size_t len) {
  e2b__task *task = &transfer->data.task;
  e2b_err code;
  int answer;
  if (!task->sink) {
    code = e2b__read_reserve(transfer, (uint64_t)transfer->len + len);
    if (code) return code;
    memcpy(transfer->block + transfer->len, data, len);
    transfer->len += len;
    return E2B_OK;
  }
  answer = task->sink(task->user, (const char *)data, len);
  if (task->op.finished) return E2B_ERR_CANCELED; /* by the callback */
  if (answer < 0) return e2b__transfer_stop(transfer, E2B_ERR_CANCELED, "the sink canceled the download");
  if (answer != E2B_PAUSE) return E2B_OK;
  task->req.paused = true;
  return e2b__transfer_pause(transfer);
}

/* Bodies that are not the file stay in req->rx, for the error. */
static e2b_err e2b__download_on_body(e2b__req *req, const uint8_t *data, size_t len, size_t *taken) {
  e2b__transfer *transfer = e2b__transfer_of(req);
  e2b_err code = E2B_OK;
  if (!e2b__files_success(req)) return E2B_OK;
  *taken = len;
  e2b__part_cut(&transfer->part, &data, &len);
  if (len) code = e2b__download_give(transfer, data, len);
  return !code && e2b__part_enough(&transfer->part, req) ? e2b__download_enough(transfer) : code;
}

static const e2b__req_events e2b__download_events = { e2b__download_on_head, e2b__download_on_body, NULL,
                                                      e2b__task_on_end };

static e2b_err e2b__download_succeeded(e2b__task *task, e2b_error *err) {
  const e2b__part *part = &((e2b__transfer *)task)->part;
  if (task->req.status != 206 || !part->left) return E2B_OK;
  return e2b__error_say(err, E2B_ERR_TRUNCATED, E2B__PART_SHORT);
}

/* Hands what was collected to the caller. */
static e2b_err e2b__read_succeeded(e2b__task *task, e2b_error *err) {
  e2b__transfer *transfer = (e2b__transfer *)task;
  e2b_buf *out = (e2b_buf *)task->out;
  const uint8_t *nul;
  e2b_err code = e2b__download_succeeded(task, err);
  if (code) return code;
  code = e2b__read_reserve(transfer, transfer->len);
  if (code) return e2b__error_say(err, code, "%s", transfer->why);
  nul = (const uint8_t *)memchr(transfer->block, 0, transfer->len);
  if (transfer->text && nul) {
    err->phase = E2B_PHASE_DECODE;
    return e2b__error_say(err, E2B_ERR_PROTOCOL, "the file is not text, byte %lu is NUL: use e2b_files_read",
                          (unsigned long)(nul - transfer->block));
  }
  transfer->block[transfer->len] = 0;
  out->data = transfer->block;
  out->len = transfer->len;
  out->mem.len = transfer->len + 1;
  if (!transfer->fixed) {
    out->mem.alloc = task->op.client->mem.allocator;
    out->mem.ptr = transfer->block;
    out->mem.cap = transfer->cap;
  }
  transfer->block = NULL; /* the caller's now */
  return E2B_OK;
}

static e2b__transfer *e2b__download_new(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts,
                                        int32_t default_ms, e2b_error *err) {
  e2b__transfer *transfer = e2b__transfer_new(sandbox, opts, default_ms, &e2b__download_events, err);
  if (!transfer) return NULL;
  transfer->data.task.req.idempotent = true;
  e2b__files_address(&transfer->data.task.req, sandbox, path, NULL, opts);
  e2b__part_ask(&transfer->part, &transfer->data.task.req, opts);
  return transfer;
}

static e2b_err e2b__files_read(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts, e2b_buf *out,
                               bool text, e2b_error *err) {
  e2b__transfer *transfer;
  e2b_error local;
  if (!err) err = &local;
  e2b__result_clear(out, sizeof *out);
  if (!out) return e2b__invalid(err, "out", "is NULL");
  if (e2b__files_check_read(sandbox, path, opts, err)) return err->code;
  transfer = e2b__download_new(sandbox, path, opts, sandbox->client->config.request_timeout_ms, err);
  if (!transfer) return err->code;
  transfer->data.on_success = e2b__read_succeeded;
  transfer->data.task.out = out;
  transfer->text = text;
  transfer->fixed = out->mem.fixed;
  if (transfer->fixed) transfer->block = (uint8_t *)out->mem.ptr;
  if (transfer->fixed) transfer->cap = out->mem.cap;
  return e2b__task_run(&transfer->data.task, e2b__files_call(opts), err);
}

E2B_API e2b_err e2b_files_read(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts, e2b_buf *out,
                               e2b_error *err) {
  return e2b__files_read(sandbox, path, opts, out, false, err);
}

E2B_API e2b_err e2b_files_read_text(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts, e2b_buf *out,
                                    e2b_error *err) {
  return e2b__files_read(sandbox, path, opts, out, true, err);
}

E2B_API e2b_err e2b_files_download(e2b_sandbox *sandbox, const char *path, e2b_data_fn sink, void *user,
                                   const e2b_files_opts *opts, e2b_error *err) {
  e2b__transfer *transfer;
  e2b_error local;
  if (!err) err = &local;
  if (!sink) return e2b__invalid(err, "sink", "is NULL");
  if (e2b__files_check_read(sandbox, path, opts, err)) return err->code;
  transfer = e2b__download_new(sandbox, path, opts, E2B_TIMEOUT_NONE, err);
  if (!transfer) return err->code;
  transfer->data.on_success = e2b__download_succeeded;
  transfer->data.task.sink = sink;
  transfer->data.task.user = user;
  return e2b__task_run(&transfer->data.task, e2b__files_call(opts), err);
}

/* Asks the caller's source for bytes. > 0, 0 at its end, E2B_IO_AGAIN or an e2b_err. */
static int e2b__upload_ask(e2b__transfer *transfer, uint8_t *buf, size_t cap) {
  e2b__task *task = &transfer->data.task;
  int got = task->source(task->user, buf, cap);
  if (task->op.finished) return E2B_ERR_CANCELED; /* by the callback */
  if (got == E2B_PAUSE) {
    e2b_err code = e2b__transfer_pause(transfer);
    return code ? (int)code : E2B_IO_AGAIN;
  }
  if (got < 0) return e2b__transfer_stop(transfer, E2B_ERR_CANCELED, "the source canceled the upload");
  if ((size_t)got > cap)
    return e2b__transfer_stop(transfer, E2B_ERR_INVALID_ARGUMENT, "the source returned more than it was asked for");
  return got;
}

/* The content, then its tail. Where it stands follows from req->body_done alone, so that a repetition starts over. */
static int e2b__upload_on_source(e2b__req *req, uint8_t *buf, size_t cap) {
  e2b__transfer *transfer = e2b__transfer_of(req);
  e2b__task *task = &transfer->data.task;
  e2b__content *content = &transfer->content;
  uint64_t at = req->body_done - req->body.len;
  int got;
  if (content->size < 0 || at < (uint64_t)content->size) {
    if (content->size >= 0) cap = (size_t)E2B__MIN((uint64_t)cap, (uint64_t)content->size - at);
    if (!task->source) {
      memcpy(buf, task->data + at, cap);
      return (int)cap;
    }
    got = e2b__upload_ask(transfer, buf, cap);
    if (got != 0) return got;
    if (content->size >= 0)
      return e2b__transfer_stop(transfer, E2B_ERR_INVALID_ARGUMENT, "the source ended before the size it announced");
    content->size = (int64_t)at;
  }
  return e2b__content_tail(content, at - (uint64_t)content->size, buf, cap);
}

static const e2b__req_events e2b__upload_events = { NULL, NULL, e2b__upload_on_source, e2b__task_on_end };

/* A source that has more than the size it announced leaves a file without its end, which is no success. */
static e2b_err e2b__upload_check_end(e2b__transfer *transfer, bool announced, e2b_error *err) {
  uint8_t extra;
  int got;
  if (!transfer->data.task.source || !announced) return E2B_OK;
  got = e2b__upload_ask(transfer, &extra, 1);
  if (transfer->data.task.op.finished) return E2B_PENDING; /* canceled by the callback: nothing is left to report */
  if (got == 0 || got == E2B_IO_AGAIN || got == E2B_ERR_BAD_STATE) return E2B_OK;
  err->maybe_done = true;
  if (got < 0) return e2b__error_say(err, (e2b_err)got, "%s", transfer->why);
  return e2b__error_say(err, E2B_ERR_INVALID_ARGUMENT,
                        "the source has more bytes than the size it announced; the first %llu were written",
                        (unsigned long long)transfer->content.size);
}

static e2b_err e2b__upload_succeeded(e2b__task *task, e2b_error *err) {
  e2b__transfer *transfer = (e2b__transfer *)task;
  e2b__rest_write_info info;
  e2b__arena arena;
  e2b_err code;
  e2b__arena_init(&arena, &task->op.client->mem, 65536);
  code = e2b__files_confirmed(&task->req, &arena, &info, err);
  if (!code) code = e2b__upload_check_end(transfer, task->req.body_len >= 0, err);
  if (!code && !transfer->atomic.temp) {
    code = e2b__result_fill(task->op.client, e2b__fill_write_info, &info, task->out, err);
    err->maybe_done = code != E2B_OK;
  }
  e2b__arena_free(&arena);
  return code;
}

static e2b_err e2b__upload_moved(e2b__task *task, e2b_error *err) {
  e2b__rest_write_info info;
  e2b__arena arena;
  e2b_err code;
  memset(&info, 0, sizeof info);
  e2b__arena_init(&arena, &task->op.client->mem, 65536);
  code = e2b__atomic_moved(&((e2b__transfer *)task)->atomic, &task->req, &arena, &info, err);
  if (!code) {
    code = e2b__result_fill(task->op.client, e2b__fill_write_info, &info, task->out, err);
    err->maybe_done = code != E2B_OK;
  }
  e2b__arena_free(&arena);
  return code;
}

/* An envd that takes only forms gets one, if no byte of the caller's source is spent. The next one starts with it. */
static e2b_err e2b__upload_answered(e2b__task *task, e2b_error *err) {
  e2b__transfer *transfer = (e2b__transfer *)task;
  bool as_form = transfer->content.tail_len > 0;
  e2b_err code = e2b__transfer_answered(task, err);
  if (code >= 0 || as_form || !e2b__files_wants_form(&task->req, err)) return code;
  task->op.sandbox->files_as_form = true;
  if (task->source && task->req.body_done) return e2b__files_say_before(err, code, E2B__FILES_CALL_AGAIN);
  code = e2b__content_begin(&transfer->content, &task->req, transfer->path, true, err);
  return code ? code : e2b__task_again(task, err);
}

/* An exchange of an atomic upload ended with *err: goes on with the next one, or with the end. */
static e2b_err e2b__upload_next(e2b__transfer *transfer, e2b_error *err) {
  e2b__task *task = &transfer->data.task;
  e2b_err code = e2b__atomic_next(&transfer->atomic, &task->req, task->op.sandbox, task->op.deadline, err);
  if (transfer->atomic.phase == E2B__ATOMIC_MOVE) transfer->data.on_success = e2b__upload_moved;
  return code == E2B_OK || code == E2B_PENDING ? code : e2b__data_lost(task, err);
}

static e2b_err e2b__upload_atomic_answered(e2b__task *task, e2b_error *err) {
  e2b__transfer *transfer = (e2b__transfer *)task;
  e2b_err code;
  if (transfer->atomic.phase == E2B__ATOMIC_WRITE)
    code = e2b__upload_answered(task, err);
  else if (transfer->atomic.phase == E2B__ATOMIC_MOVE)
    code = e2b__rpc_judged(task, err);
  else
    code = E2B_OK; /* removed or not: the write has failed */
  if (code == E2B_PENDING) return code;
  err->code = code;
  return e2b__upload_next(transfer, err);
}

static e2b_err e2b__upload_atomic_lost(e2b__task *task, e2b_error *err) {
  e2b__transfer *transfer = (e2b__transfer *)task;
  if (transfer->why[0]) (void)e2b__error_say(err, err->code, "%s", transfer->why);
  return e2b__upload_next(transfer, err);
}

/* Where the upload goes, and under which name. */
static e2b_err e2b__upload_address(e2b__transfer *transfer, e2b_sandbox *sandbox, const char *path,
                                   const e2b_files_opts *opts, e2b_error *err) {
  e2b__req *req = &transfer->data.task.req;
  const char *user = e2b__user(sandbox, opts ? opts->user : NULL, true);
  transfer->path = e2b__mem_dup(&sandbox->client->mem, path, strlen(path));
  if (!transfer->path) return e2b__no_memory(err);
  if (opts && opts->atomic) {
    e2b_err code = e2b__atomic_init(&transfer->atomic, sandbox, path, user, err);
    if (code) return code;
    transfer->data.task.on_answer = e2b__upload_atomic_answered;
    transfer->data.task.on_loss = e2b__upload_atomic_lost;
    e2b__files_address(req, sandbox, transfer->atomic.temp, user, opts);
  } else {
    e2b__files_address(req, sandbox, path, NULL, opts);
  }
  if (opts) e2b__metadata_put(req, opts->metadata);
  return e2b__content_begin(&transfer->content, req, path, e2b__files_as_form(sandbox, opts), err);
}

/* `source` NULL: the bytes at `data`. */
static e2b_err e2b__files_upload(e2b_sandbox *sandbox, const char *path, const void *data, int64_t size,
                                 e2b_source_fn source, void *user, const e2b_files_opts *opts, e2b_write_info *out,
                                 e2b_error *err) {
  int32_t default_ms = source ? E2B_TIMEOUT_NONE : sandbox->client->config.request_timeout_ms;
  e2b__transfer *transfer = e2b__transfer_new(sandbox, opts, default_ms, &e2b__upload_events, err);
  e2b_err code;
  if (!transfer) return err->code;
  transfer->data.task.on_answer = e2b__upload_answered;
  transfer->data.on_success = e2b__upload_succeeded;
  transfer->data.task.out = out;
  transfer->data.task.data = (const uint8_t *)data;
  transfer->data.task.source = source;
  transfer->data.task.user = user;
  transfer->data.task.req.method = "POST";
  transfer->data.task.req.idempotent = !source;
  transfer->content.size = size;
  code = e2b__upload_address(transfer, sandbox, path, opts, err);
  if (!code) return e2b__task_run(&transfer->data.task, e2b__files_call(opts), err);
  e2b__op_release(&transfer->data.task.op);
  return code;
}

E2B_API e2b_err e2b_files_write(e2b_sandbox *sandbox, const char *path, const void *data, size_t len,
                                const e2b_files_opts *opts, e2b_write_info *out, e2b_error *err) {
  e2b_error local;
  if (!err) err = &local;
  e2b__result_clear(out, sizeof *out);
  if (e2b__files_check_write(sandbox, path, opts, err)) return err->code;
  if (!data && len) return e2b__invalid(err, "data", "is NULL");
  return e2b__files_upload(sandbox, path, data, (int64_t)len, NULL, NULL, opts, out, err);
}

E2B_API e2b_err e2b_files_write_text(e2b_sandbox *sandbox, const char *path, const char *text,
                                     const e2b_files_opts *opts, e2b_write_info *out, e2b_error *err) {
  return e2b_files_write(sandbox, path, text ? text : "", text ? strlen(text) : 0, opts, out, err);
}

E2B_API e2b_err e2b_files_upload(e2b_sandbox *sandbox, const char *path, e2b_source_fn source, void *user, int64_t size,
                                 const e2b_files_opts *opts, e2b_write_info *out, e2b_error *err) {
  e2b_error local;
  if (!err) err = &local;
  e2b__result_clear(out, sizeof *out);
  if (e2b__files_check_write(sandbox, path, opts, err)) return err->code;
  if (!source) return e2b__invalid(err, "source", "is NULL");
  if (size < -1 || size > E2B__CONTENT_MAX) return e2b__invalid(err, "size", "is out of range; -1 means unknown");
  return e2b__files_upload(sandbox, path, NULL, size, source, user, opts, out, err);
}

/* ---- content: pulled ---- */

typedef struct e2b__stream_open e2b__stream_open;

/* One direction each. Reading: what came is in req.rx, from `at` on; a full rx holds the connection back. Writing: what
 * the caller gave is in `ring` until the connection takes it. Once `ended`, mourner.err says how. */
struct e2b_file_stream {
  e2b__object object;
  e2b_sandbox *sandbox;
  e2b_file_stream *prev, *next;
  e2b__stream_open *opening; /* the operation that opens it, until its result is collected */
  bool *freed;               /* set when it is freed while a call waits */
  e2b__req req;
  e2b__mourner mourner;
  bool writing, finishing, ended;
  const char *why; /* what stopped it on our side, or NULL */
  int64_t size;    /* -1 = unknown */
  size_t at;
  uint8_t *ring;
  size_t ring_cap, ring_at, ring_len;
  uint64_t written;
  e2b__part part;
  e2b__content content;
  e2b__atomic atomic;
  e2b__arena arena; /* for `info`, the server's word on an upload */
  e2b__rest_write_info info;
};

struct e2b__stream_open {
  e2b__op op;
  e2b_file_stream *stream; /* NULL when it is freed */
  e2b_file_stream **out;
};

/* A stream that goes before its opening was reported takes the report along. */
static void e2b__stream_destroy(e2b_file_stream *stream) {
  e2b_client *client = stream->req.client;
  e2b__stream_open *opening = stream->opening;
  if (opening) {
    opening->stream = NULL;
    if (!opening->op.delivered) *opening->out = NULL;
    if (!opening->op.delivered && opening->op.finished && !opening->op.result.code)
      (void)e2b__fail(&opening->op.result, E2B_ERR_CANCELED, "the stream was freed");
  }
  if (stream->prev)
    stream->prev->next = stream->next;
  else
    stream->sandbox->streams = stream->next;
  if (stream->next) stream->next->prev = stream->prev;
  if (stream->freed) *stream->freed = true;
  if (!stream->ended) e2b__atomic_abandon(&stream->atomic, &stream->req, stream->sandbox);
  e2b__atomic_free(&stream->atomic, &client->mem);
  e2b__mourn_no_more(&stream->mourner);
  e2b__req_abort(&stream->req);
  e2b__req_free(&stream->req);
  e2b__mem_free(&client->mem, stream->ring, stream->ring_cap);
  e2b__arena_free(&stream->arena);
  e2b__object_free(client, stream);
}

static void e2b__stream_open_cancel(e2b__op *op) {
  e2b__stream_open *open = (e2b__stream_open *)op;
  if (open->stream) e2b__stream_destroy(open->stream);
}

static void e2b__stream_open_release(e2b__op *op) {
  e2b__stream_open *open = (e2b__stream_open *)op;
  if (!open->stream) return;
  if (!op->delivered || op->result.code)
    e2b__stream_destroy(open->stream);
  else
    open->stream->opening = NULL;
}

static e2b_phase e2b__stream_open_phase(e2b__op *op, bool *maybe_done) {
  e2b__stream_open *open = (e2b__stream_open *)op;
  return open->stream ? e2b__req_stands(&open->stream->req, maybe_done) : E2B_PHASE_NONE;
}

static const e2b__op_type e2b__stream_open_type = { e2b__stream_open_cancel, e2b__stream_open_release, NULL,
                                                    e2b__stream_open_phase, NULL };

static e2b_file_stream *e2b__stream_of(e2b__req *req) {
  return (e2b_file_stream *)(void *)((uint8_t *)req - offsetof(e2b_file_stream, req));
}

/* Reports the opening, if that was not done. */
static void e2b__stream_opened(e2b_file_stream *stream, const e2b_error *result) {
  e2b__stream_open *opening = stream->opening;
  if (!opening || opening->op.finished) return;
  if (!result->code) *opening->out = stream;
  e2b__op_finish(&opening->op, result);
}

static void e2b__stream_end(e2b_file_stream *stream) {
  stream->ended = true;
  e2b__error_advise(&stream->mourner.err);
  e2b__stream_opened(stream, &stream->mourner.err);
}

static void e2b__stream_on_verdict(e2b__mourner *mourner) {
  e2b__stream_end((e2b_file_stream *)(void *)((uint8_t *)mourner - offsetof(e2b_file_stream, mourner)));
}

/* What the answer to an upload, or to the rename that ends an atomic one, comes to. */
static e2b_err e2b__stream_written(e2b_file_stream *stream, e2b_error *err) {
  if (stream->atomic.phase == E2B__ATOMIC_MOVE)
    return e2b__atomic_moved(&stream->atomic, &stream->req, &stream->arena, &stream->info, err);
  return e2b__files_confirmed(&stream->req, &stream->arena, &stream->info, err);
}

static void e2b__stream_on_end(e2b__req *req, const e2b_error *err) {
  e2b_file_stream *stream = e2b__stream_of(req);
  e2b_error *end = &stream->mourner.err;
  *end = *err;
  if (err->code && stream->why) {
    (void)e2b__error_say(end, err->code, "%s", stream->why);
  } else if (err->code) {
    if (!stream->writing) e2b__files_say_progress(end, req);
  } else if (e2b__part_beyond(&stream->part, req)) {
    end->code = E2B_OK;
  } else if (!e2b__files_success(req)) {
    end->code = e2b__files_error(req, end);
    if (stream->writing && !stream->atomic.phase && !stream->content.tail_len && e2b__files_wants_form(req, end)) {
      stream->sandbox->files_as_form = true;
      (void)e2b__files_say_before(end, end->code, E2B__FILES_CALL_AGAIN);
    }
  } else if (stream->writing) {
    end->code = e2b__stream_written(stream, end);
  } else if (req->status == 206 && stream->part.left) {
    (void)e2b__error_say(end, E2B_ERR_TRUNCATED, E2B__PART_SHORT);
  }
  if (stream->atomic.temp &&
      e2b__atomic_next(&stream->atomic, req, stream->sandbox, req->deadline, end) == E2B_PENDING)
    return;
  if (!e2b__mourn(&stream->mourner, stream->sandbox, req->deadline)) e2b__stream_end(stream);
}

/* An answer that is not the file collects in rx without limit of ours, for the error. */
static e2b_err e2b__stream_on_head(e2b__req *req) {
  e2b_file_stream *stream = e2b__stream_of(req);
  e2b_error ok;
  memset(&ok, 0, sizeof ok);
  if (e2b__part_beyond(&stream->part, req)) {
    stream->size = 0;
    stream->part.left = 0;
    e2b__stream_opened(stream, &ok);
  }
  if (!e2b__files_success(req)) return E2B_OK;
  stream->why = e2b__files_unusable(req);
  if (!stream->why) stream->why = e2b__part_begin(&stream->part, req);
  if (stream->why) return E2B_ERR_PROTOCOL;
  stream->size = e2b__part_size(&stream->part, req);
  req->rx_limit = req->client->config.stream_buffer_size;
  req->pulled = true;
  e2b__stream_opened(stream, &ok);
  return E2B_OK;
}

static const e2b__req_events e2b__stream_read_events = { e2b__stream_on_head, NULL, NULL, e2b__stream_on_end };

static int e2b__stream_on_source(e2b__req *req, uint8_t *buf, size_t cap) {
  e2b_file_stream *stream = e2b__stream_of(req);
  e2b__content *content = &stream->content;
  uint64_t at = req->body_done - req->body.len;
  if (content->size < 0 || at < (uint64_t)content->size) {
    size_t n = E2B__MIN(stream->ring_len, stream->ring_cap - stream->ring_at);
    n = E2B__MIN(n, cap);
    if (n) {
      memcpy(buf, stream->ring + stream->ring_at, n);
      stream->ring_at = (stream->ring_at + n) % stream->ring_cap;
      stream->ring_len -= n;
      return (int)n;
    }
    if (!stream->finishing) return E2B_IO_AGAIN;
    content->size = (int64_t)at;
  }
  return e2b__content_tail(content, at - (uint64_t)content->size, buf, cap);
}

static const e2b__req_events e2b__stream_write_events = { NULL, NULL, e2b__stream_on_source, e2b__stream_on_end };

/* A stream and the operation that opens it; the caller completes stream->req and ends with e2b__stream_run. */
static e2b__stream_open *e2b__stream_new(e2b_sandbox *sandbox, const e2b_files_opts *opts,
                                         const e2b__req_events *events, e2b_file_stream **out, e2b_error *err) {
  e2b_client *client = sandbox->client;
  const e2b_call *call = e2b__files_call(opts);
  e2b__stream_open *open =
      (e2b__stream_open *)e2b__op_new(client, call, &e2b__stream_open_type, sizeof *open, E2B_TIMEOUT_NONE, err);
  e2b_file_stream *stream;
  if (!open) return NULL;
  open->op.sandbox = sandbox;
  open->out = out;
  stream = (e2b_file_stream *)e2b__object_new(client, sizeof *stream);
  if (!stream) {
    e2b__op_release(&open->op);
    (void)e2b__no_memory(err);
    return NULL;
  }
  open->stream = stream;
  stream->opening = open;
  stream->sandbox = sandbox;
  stream->next = sandbox->streams;
  if (stream->next) stream->next->prev = stream;
  sandbox->streams = stream;
  stream->mourner.on_verdict = e2b__stream_on_verdict;
  stream->size = -1;
  e2b__arena_init(&stream->arena, &client->mem, 65536);
  e2b__req_init(&stream->req, client, events);
  stream->req.deadline = open->op.deadline;
  stream->req.idle_ms = call && call->idle_ms ? call->idle_ms : client->config.idle_ms;
  e2b__req_target(&stream->req, &sandbox->runtime);
  return open;
}

static e2b_err e2b__stream_run(e2b__stream_open *open, const e2b_files_opts *opts, e2b_error *err) {
  e2b_file_stream *stream = open->stream;
  e2b_err code = e2b__req_submit(&stream->req);
  e2b_error ok;
  if (code) {
    e2b__op_release(&open->op);
    return e2b__fail(err, code, code == E2B_ERR_LIMIT ? "the request is too large" : "out of memory");
  }
  memset(&ok, 0, sizeof ok);
  if (stream->writing) e2b__stream_opened(stream, &ok);
  return e2b__op_run(&open->op, e2b__files_call(opts), err);
}

E2B_API e2b_err e2b_files_read_stream(e2b_sandbox *sandbox, const char *path, const e2b_files_opts *opts,
                                      e2b_file_stream **out, e2b_error *err) {
  e2b__stream_open *open;
  e2b_error local;
  if (!err) err = &local;
  if (!out) return e2b__invalid(err, "out", "is NULL");
  *out = NULL;
  if (e2b__files_check_read(sandbox, path, opts, err)) return err->code;
  open = e2b__stream_new(sandbox, opts, &e2b__stream_read_events, out, err);
  if (!open) return err->code;
  open->stream->req.idempotent = true;
  e2b__files_address(&open->stream->req, sandbox, path, NULL, opts);
  e2b__part_ask(&open->stream->part, &open->stream->req, opts);
  return e2b__stream_run(open, opts, err);
}

/* As e2b__upload_address. */
static e2b_err e2b__stream_address(e2b_file_stream *stream, const char *path, const e2b_files_opts *opts,
                                   e2b_error *err) {
  e2b_sandbox *sandbox = stream->sandbox;
  const char *user = e2b__user(sandbox, opts ? opts->user : NULL, true);
  if (opts && opts->atomic) {
    e2b_err code = e2b__atomic_init(&stream->atomic, sandbox, path, user, err);
    if (code) return code;
    e2b__files_address(&stream->req, sandbox, stream->atomic.temp, user, opts);
  } else {
    e2b__files_address(&stream->req, sandbox, path, NULL, opts);
  }
  if (opts) e2b__metadata_put(&stream->req, opts->metadata);
  return e2b__content_begin(&stream->content, &stream->req, path, e2b__files_as_form(sandbox, opts), err);
}

E2B_API e2b_err e2b_files_write_stream(e2b_sandbox *sandbox, const char *path, int64_t size, const e2b_files_opts *opts,
                                       e2b_file_stream **out, e2b_error *err) {
  e2b__stream_open *open;
  e2b_file_stream *stream;
  e2b_error local;
  e2b_err code;
  if (!err) err = &local;
  if (!out) return e2b__invalid(err, "out", "is NULL");
  *out = NULL;
  if (e2b__files_check_write(sandbox, path, opts, err)) return err->code;
  if (size < -1 || size > E2B__CONTENT_MAX) return e2b__invalid(err, "size", "is out of range; -1 means unknown");
  open = e2b__stream_new(sandbox, opts, &e2b__stream_write_events, out, err);
  if (!open) return err->code;
  stream = open->stream;
  stream->writing = true;
  stream->size = stream->content.size = size;
  stream->req.method = "POST";
  stream->ring_cap = sandbox->client->config.stream_buffer_size;
  stream->ring = (uint8_t *)e2b__mem_alloc(&sandbox->client->mem, stream->ring_cap);
  code = stream->ring ? e2b__stream_address(stream, path, opts, err) : e2b__no_memory(err);
  if (!code) return e2b__stream_run(open, opts, err);
  e2b__op_release(&open->op);
  return code;
}

E2B_API int64_t e2b_file_stream_size(const e2b_file_stream *stream) {
  return stream ? stream->size : -1;
}

/* Checks a call on a stream and empties *err. */
static e2b_err e2b__stream_check(const e2b_file_stream *stream, bool writing, int timeout_ms, e2b_error *err) {
  memset(err, 0, sizeof *err);
  if (!stream) return e2b__invalid(err, "stream", "is NULL");
  if (stream->writing != writing)
    return e2b__fail(err, E2B_ERR_BAD_STATE, writing ? "a stream for reading" : "a stream for writing");
  if (timeout_ms && stream->req.client->in_turn)
    return e2b__fail(err, E2B_ERR_BAD_STATE, "a blocking call inside a callback: use timeout_ms 0");
  if (!stream->req.client->in_turn) stream->req.client->now = e2b__now_ms(stream->req.client);
  return E2B_OK;
}

/* One turn of the loop. E2B_OK: look again; E2B_PENDING: it is `end` already. With anything else the stream may be gone
 * and is not to be touched. */
static e2b_err e2b__stream_wait(e2b_file_stream *stream, uint64_t end, e2b_error *err) {
  e2b_client *client = stream->req.client;
  bool freed = false;
  uint64_t now = client->in_turn ? client->now : e2b__now_ms(client);
  if (now >= end) return err->code = E2B_PENDING;
  if (e2b__waker_interrupted(client->net.waker))
    return e2b__fail(err, E2B_ERR_CANCELED, "interrupted by e2b_client_interrupt");
  stream->freed = &freed;
  (void)e2b__turn(client, end == (uint64_t)E2B__NEVER ? -1 : (int)E2B__MIN(end - now, (uint64_t)INT_MAX), NULL, 0, 0);
  if (!freed) stream->freed = NULL;
  if (client->config.yield_fn) client->config.yield_fn(client->config.platform_user);
  return freed ? e2b__fail(err, E2B_ERR_CANCELED, "the stream was freed in a callback") : E2B_OK;
}

/* Takes what is there. The front of the buffer is dropped when it is the larger half, which bounds the moving. */
static size_t e2b__stream_take(e2b_file_stream *stream, void *buf, size_t cap) {
  e2b__req *req = &stream->req;
  const uint8_t *data;
  size_t n = req->rx.len - stream->at, skip = (size_t)E2B__MIN(stream->part.skip, (uint64_t)n);
  bool held = e2b__req_held(req);
  if (!n || !req->pulled) return 0;
  data = req->rx.data + stream->at;
  n = skip + E2B__MIN(n - skip, cap);
  stream->at += n;
  e2b__part_cut(&stream->part, &data, &n);
  if (n) memcpy(buf, data, n);
  if (stream->at >= req->rx.len - stream->at) {
    e2b__buf_drop(&req->rx, stream->at);
    stream->at = 0;
    if (held && !e2b__req_held(req)) e2b__req_kick(req);
  }
  return n;
}

E2B_API e2b_err e2b_file_stream_read(e2b_file_stream *stream, int timeout_ms, void *buf, size_t cap, size_t *got,
                                     e2b_error *err) {
  e2b_error local;
  e2b_err code;
  uint64_t end;
  if (!err) err = &local;
  if (!got) return e2b__invalid(err, "got", "is NULL");
  *got = 0;
  code = e2b__stream_check(stream, false, timeout_ms, err);
  if (code) return code;
  if (!buf || !cap) return e2b__invalid(err, "buf", "is NULL or of no size");
  end = e2b__deadline(stream->req.client->now, timeout_ms);
  for (;;) {
    *got = e2b__stream_take(stream, buf, cap);
    if (*got) return E2B_OK;
    if (!stream->part.left && stream->req.status != 206 && !stream->ended) return err->code = E2B_EOF;
    if (stream->req.state == E2B__REQ_ENDED) { /* the end waited for the last byte to be taken */
      stream->req.rx.len = stream->at = 0;
      e2b__req_flush(&stream->req);
    }
    if (stream->ended) {
      *err = stream->mourner.err;
      return err->code = err->code ? err->code : E2B_EOF;
    }
    code = e2b__stream_wait(stream, end, err);
    if (code) return code;
  }
}

static size_t e2b__stream_put(e2b_file_stream *stream, const uint8_t *data, size_t len) {
  size_t done = 0, n, to;
  while (done < len && stream->ring_len < stream->ring_cap) {
    to = (stream->ring_at + stream->ring_len) % stream->ring_cap;
    n = E2B__MIN(stream->ring_cap - stream->ring_len, stream->ring_cap - to);
    n = E2B__MIN(n, len - done);
    memcpy(stream->ring + to, data + done, n);
    stream->ring_len += n;
    done += n;
  }
  stream->written += done;
  if (done) e2b__req_kick(&stream->req);
  return done;
}

/* Why nothing more can be written, or E2B_OK. */
static e2b_err e2b__stream_closed(const e2b_file_stream *stream, e2b_error *err) {
  if (stream->ended && stream->mourner.err.code)
    *err = stream->mourner.err;
  else if (stream->ended || stream->finishing)
    return e2b__fail(err, E2B_ERR_BAD_STATE, "the upload has ended");
  return err->code;
}

/* A write of which the caller cannot know how much was taken ends the stream. */
static e2b_err e2b__stream_give_up(e2b_file_stream *stream, e2b_error *err) {
  e2b__atomic_abandon(&stream->atomic, &stream->req, stream->sandbox);
  e2b__req_abort(&stream->req);
  (void)e2b__fail(&stream->mourner.err, E2B_ERR_TIMEOUT,
                  "timeout_ms passed after a part was taken: pass `took` to go on in such a case");
  stream->mourner.err.phase = E2B_PHASE_SEND;
  stream->mourner.err.maybe_done = true;
  e2b__stream_end(stream);
  *err = stream->mourner.err;
  return err->code;
}

E2B_API e2b_err e2b_file_stream_write(e2b_file_stream *stream, int timeout_ms, const void *buf, size_t len,
                                      size_t *took, e2b_error *err) {
  size_t done = 0;
  e2b_error local;
  e2b_err code;
  uint64_t end;
  if (!err) err = &local;
  if (took) *took = 0;
  code = e2b__stream_check(stream, true, timeout_ms, err);
  if (code) return code;
  if (!buf && len) return e2b__invalid(err, "buf", "is NULL");
  if (stream->size >= 0 && len > (uint64_t)stream->size - stream->written)
    return e2b__invalid(err, "len", "goes beyond the size the stream was opened with");
  if (!took && !timeout_ms && len > stream->ring_cap)
    return e2b__invalid(err, "took", "is needed to write more than stream_buffer_size at once");
  end = e2b__deadline(stream->req.client->now, timeout_ms);
  for (;;) {
    code = e2b__stream_closed(stream, err);
    if (code) return code;
    if (took || timeout_ms || len <= stream->ring_cap - stream->ring_len)
      done += e2b__stream_put(stream, (const uint8_t *)buf + done, len - done);
    if (took) *took = done;
    if (done == len || (took && done)) return E2B_OK;
    code = e2b__stream_wait(stream, end, err);
    if (code) return code == E2B_PENDING && done ? e2b__stream_give_up(stream, err) : code;
  }
}

E2B_API e2b_err e2b_file_stream_finish(e2b_file_stream *stream, int timeout_ms, e2b_write_info *out, e2b_error *err) {
  e2b_error local;
  e2b_err code;
  uint64_t end;
  if (!err) err = &local;
  e2b__result_clear(out, sizeof *out);
  code = e2b__stream_check(stream, true, timeout_ms, err);
  if (code) return code;
  end = e2b__deadline(stream->req.client->now, timeout_ms);
  if (!stream->ended && stream->size >= 0 && stream->written < (uint64_t)stream->size) {
    e2b__error_set(err, E2B_ERR_INVALID_ARGUMENT, E2B_PHASE_SEND, "only %llu of the %llu bytes announced were written",
                   (unsigned long long)stream->written, (unsigned long long)stream->size);
    return err->code;
  }
  if (!stream->ended && !stream->finishing) e2b__req_kick(&stream->req);
  stream->finishing = true;
  while (!stream->ended) {
    code = e2b__stream_wait(stream, end, err);
    if (code) return code;
  }
  *err = stream->mourner.err;
  if (err->code) return err->code;
  code = e2b__result_fill(stream->req.client, e2b__fill_write_info, &stream->info, out, err);
  if (code) err->maybe_done = true; /* the file is written */
  return code;
}

E2B_API void e2b_file_stream_free(e2b_file_stream *stream) {
  if (stream) e2b__stream_destroy(stream);
}

/* ---- joining files ---- */

static e2b_err e2b__compose_succeeded(e2b__task *task, e2b_error *err) {
  e2b__rest_write_info info;
  e2b__arena arena;
  e2b_err code;
  err->phase = E2B_PHASE_DECODE;
  err->maybe_done = true;
  e2b__arena_init(&arena, &task->op.client->mem, 65536);
  code = e2b__json_decode(&e2b__msg_rest_write_info, (char *)task->req.rx.data, task->req.rx.len, &arena, &info);
  if (code == E2B_OK && !info.path.len) code = E2B_ERR_PROTOCOL;
  if (code) (void)e2b__error_say(err, code, "HTTP %d, but the answer does not describe the file", task->req.status);
  else code = e2b__result_fill(task->op.client, e2b__fill_write_info, &info, task->out, err);
  if (!code) err->maybe_done = false;
  e2b__arena_free(&arena);
  return code;
}

/* An envd that does not know of it answers with its router's 404, which is not JSON. */
static e2b_err e2b__compose_answered(e2b__task *task, e2b_error *err) {
  bool from_envd = e2b__files_from_envd(&task->req);
  e2b_err code = e2b__data_answered(task, err);
  if ((code != E2B_ERR_NOT_FOUND && task->req.status != 405) || from_envd) return code;
  err->subject = E2B_SUBJECT_NONE;
  return e2b__error_say(err, E2B_ERR_NOT_BUILT,
                        "this envd (%.20s) cannot compose files, which needs 0.5.5: join them with a "
                        "command (HTTP %d)", task->op.sandbox->envd_version, task->req.status);
}

static void e2b__compose_write(e2b__buf *body, e2b_strs sources, const char *destination, const char *user) {
  e2b__json_writer w;
  w.out = body;
  w.comma = false;
  e2b__json_begin(&w, '{');
  e2b__json_strs(&w, "source_paths", sources);
  e2b__json_key(&w, "destination");
  e2b__json_str(&w, e2b__str(destination));
  if (user) {
    e2b__json_key(&w, "username");
    e2b__json_str(&w, e2b__str(user));
  }
  e2b__json_end(&w, '}');
}

E2B_API e2b_err e2b_files_compose(e2b_sandbox *sandbox, e2b_strs sources, const char *destination,
                                  const e2b_files_opts *opts, e2b_write_info *out, e2b_error *err) {
  e2b__data_task *data;
  e2b__req *req;
  e2b_error local;
  size_t i;
  if (!err) err = &local;
  e2b__result_clear(out, sizeof *out);
  if (e2b__files_check(sandbox, "destination", destination, opts, err)) return err->code;
  if (!sources.count || !sources.items) return e2b__invalid(err, "sources", "is empty");
  for (i = 0; i < sources.count; i++)
    if (e2b__path_check("sources", sources.items[i], err)) return err->code;
  data = (e2b__data_task *)e2b__data_task_new(sandbox, e2b__files_call(opts), sizeof *data,
                                              sandbox->client->config.request_timeout_ms,
                                              &e2b__task_events, err);
  if (!data) return err->code;
  req = &data->task.req;
  req->method = "POST";
  e2b__buf_text(&req->path, "/files/compose");
  e2b__data_headers(req, sandbox, NULL, e2b__files_call(opts));
  e2b__headers_set(&req->headers, "content-type", e2b__str("application/json"));
  e2b__compose_write(&req->body, sources, destination, e2b__user(sandbox, opts ? opts->user : NULL, true));
  req->body_len = (int64_t)req->body.len;
  data->task.subject = E2B_SUBJECT_FILE;
  data->task.on_answer = e2b__compose_answered;
  data->on_success = e2b__compose_succeeded;
  data->task.out = out;
  return e2b__task_run(&data->task, e2b__files_call(opts), err);
}

/* ---- signed URLs ---- */

/* The base under which a plain client reaches this very sandbox: it sends no routing headers. */
static void e2b__put_direct_url(e2b__buf *out, const e2b_sandbox *sandbox) {
  const e2b_client_config *config = &sandbox->client->config;
  e2b__buf usual;
  bool shared;
  e2b__buf_init(&usual, &sandbox->client->mem, 65536);
  e2b__put_runtime_url(&usual, config, sandbox->id, sandbox->domain);
  shared = !config->sandbox_base_url && !config->sandbox_url && e2b__buf_cstr(&usual) &&
           strcmp((const char *)usual.data, sandbox->runtime_url) == 0;
  if (usual.err) out->err = usual.err;
  e2b__buf_free(&usual);
  if (shared) {
    e2b__buf_text(out, config->scheme);
    e2b__buf_text(out, "://");
    e2b__put_sandbox_host(out, config, sandbox->id, sandbox->domain, sandbox->runtime_port);
  } else {
    e2b__buf_text(out, sandbox->runtime_url);
  }
}

/* v1_ and the SHA-256 of "path:operation:user:token[:expiration]" in base64. */
static void e2b__signature(e2b__buf *out, const e2b_sandbox *sandbox, const char *path, const char *operation,
                           const char *user, const char *expiration) {
  uint8_t hash[32];
  e2b__buf text;
  e2b__buf_init(&text, &sandbox->client->mem, SIZE_MAX / 2);
  e2b__buf_text(&text, path);
  e2b__buf_byte(&text, ':');
  e2b__buf_text(&text, operation);
  e2b__buf_byte(&text, ':');
  e2b__buf_text(&text, user);
  e2b__buf_byte(&text, ':');
  e2b__buf_text(&text, sandbox->access_token);
  if (expiration[0]) e2b__buf_byte(&text, ':');
  e2b__buf_text(&text, expiration);
  if (!text.err && !e2b__sha256(text.data, text.len, hash)) text.err = E2B_ERR_NOT_BUILT;
  e2b__buf_text(out, "v1_");
  if (text.err) out->err = text.err;
  else e2b__base64_encode(out, hash, sizeof hash, false);
  e2b__buf_free(&text);
}

static void e2b__put_file_url(e2b__buf *url, const e2b_sandbox *sandbox, const char *path, const char *operation,
                              const char *user, const char *expiration) {
  e2b__buf signature;
  e2b__put_direct_url(url, sandbox);
  e2b__buf_text(url, "/files");
  if (e2b__given(path)) e2b__url_query(url, "path", e2b__str(path));
  if (user) e2b__url_query(url, "username", e2b__str(user));
  if (!sandbox->access_token[0]) return;
  e2b__buf_init(&signature, &sandbox->client->mem, 256);
  e2b__signature(&signature, sandbox, path, operation, user, expiration);
  e2b__url_query(url, "signature", e2b__str_n((const char *)signature.data, signature.len));
  if (expiration[0]) e2b__url_query(url, "signature_expiration", e2b__str(expiration));
  if (signature.err) url->err = signature.err;
  e2b__buf_free(&signature);
}

static e2b_err e2b__file_url_check(const e2b_sandbox *sandbox, const char *path, const char *user, int32_t expires_s,
                                   e2b_error *err) {
  if (!sandbox) return e2b__invalid(err, "sandbox", "is NULL");
  if (!e2b__text_ok(path)) return e2b__invalid(err, "path", "has a control character");
  if (expires_s < 0 && expires_s != E2B_TIMEOUT_NONE) return e2b__invalid(err, "expires_s", "is in the past");
  if (expires_s >= 0 && !sandbox->access_token[0])
    return e2b__invalid(err, "expires_s", "needs a secure sandbox: without a token nobody checks the URL");
  return e2b__user_check(user, err);
}

static size_t e2b__file_url(const e2b_sandbox *sandbox, const char *path, const char *operation, const char *user,
                            int32_t expires_s, char *out, size_t cap, e2b_error *err) {
  char expiration[24] = "";
  e2b__buf url;
  if (e2b__file_url_check(sandbox, path, user, expires_s, err)) return 0;
  if (expires_s >= 0)
    (void)snprintf(expiration, sizeof expiration, "%lld", (long long)time(NULL) + (long long)expires_s);
  e2b__buf_init(&url, &sandbox->client->mem, SIZE_MAX / 2);
  e2b__put_file_url(&url, sandbox, path, operation, e2b__user(sandbox, user, true), expiration);
  if (url.err)
    (void)e2b__fail(err, url.err, url.err == E2B_ERR_NO_MEMORY ? "out of memory" : "this mbedTLS has no SHA-256");
  return e2b__text_out(&url, out, cap);
}

E2B_API size_t e2b_sandbox_download_url(const e2b_sandbox *sandbox, const char *path, const char *user,
                                        int32_t expires_s, char *out, size_t cap, e2b_error *err) {
  if (err) memset(err, 0, sizeof *err);
  if (cap) out[0] = 0;
  if (e2b__given(path)) return e2b__file_url(sandbox, path, "read", user, expires_s, out, cap, err);
  (void)e2b__invalid(err, "path", "is empty");
  return 0;
}

E2B_API size_t e2b_sandbox_upload_url(const e2b_sandbox *sandbox, const char *path, const char *user,
                                      int32_t expires_s, char *out, size_t cap, e2b_error *err) {
  if (err) memset(err, 0, sizeof *err);
  if (cap) out[0] = 0;
  return e2b__file_url(sandbox, path, "write", user, expires_s, out, cap, err);
}
#ifndef E2B_NO_CODE_INTERPRETER
/* ================================================================================================================== */
/* >>>> code */
/* ================================================================================================================== */

/* ---- the messages ---- */

/* One line of the answer to /execute: the members of all types of events. */
typedef struct e2b__code_line {
  e2b_str type;
  e2b_str text, timestamp;        /* stdout, stderr; text also of a result */
  e2b_str name, value, traceback; /* error */
  e2b_str html, markdown, svg, latex, javascript, png, jpeg, pdf, json, data, chart, extra; /* result */
  bool is_main_result;
  int32_t execution_count; /* number_of_executions */
} e2b__code_line;
static const e2b__field e2b__fields_code_line[] = {
  E2B__FIELD(e2b__code_line, type, "type", 0, STR),
  E2B__FIELD(e2b__code_line, text, "text", 0, TEXT),
  E2B__FIELD(e2b__code_line, timestamp, "timestamp", 0, TEXT),
  E2B__FIELD(e2b__code_line, name, "name", 0, TEXT),
  E2B__FIELD(e2b__code_line, value, "value", 0, TEXT),
  E2B__FIELD(e2b__code_line, traceback, "traceback", 0, TEXT),
  E2B__FIELD(e2b__code_line, html, "html", 0, TEXT),
  E2B__FIELD(e2b__code_line, markdown, "markdown", 0, TEXT),
  E2B__FIELD(e2b__code_line, svg, "svg", 0, TEXT),
  E2B__FIELD(e2b__code_line, latex, "latex", 0, TEXT),
  E2B__FIELD(e2b__code_line, javascript, "javascript", 0, TEXT),
  E2B__FIELD(e2b__code_line, png, "png", 0, TEXT),
  E2B__FIELD(e2b__code_line, jpeg, "jpeg", 0, TEXT),
  E2B__FIELD(e2b__code_line, pdf, "pdf", 0, TEXT),
  E2B__FIELD(e2b__code_line, json, "json", 0, RAW),
  E2B__FIELD(e2b__code_line, data, "data", 0, RAW),
  E2B__FIELD(e2b__code_line, chart, "chart", 0, RAW),
  E2B__FIELD(e2b__code_line, extra, "extra", 0, RAW),
  E2B__FIELD(e2b__code_line, is_main_result, "is_main_result", 0, BOOL),
  E2B__FIELD(e2b__code_line, execution_count, "execution_count", 0, I32),
};
static const e2b__message e2b__msg_code_line = E2B__MESSAGE(e2b__code_line, e2b__fields_code_line);

typedef struct e2b__code_context {
  e2b_str id, language, cwd;
} e2b__code_context;
static const e2b__field e2b__fields_code_context[] = {
  E2B__FIELD(e2b__code_context, id, "id", 0, STR),
  E2B__FIELD(e2b__code_context, language, "language", 0, STR),
  E2B__FIELD(e2b__code_context, cwd, "cwd", 0, STR),
};
static const e2b__message e2b__msg_code_context = E2B__MESSAGE(e2b__code_context, e2b__fields_code_context);

/* The formats of a result; the nth is bit n of e2b_code_result_formats. */
typedef struct e2b__code_format {
  size_t in_line, in_result;
} e2b__code_format;
#define E2B__FORMAT(member) { offsetof(e2b__code_line, member), offsetof(e2b_code_result, member) }
static const e2b__code_format e2b__code_formats[] = {
  E2B__FORMAT(text),       E2B__FORMAT(html),  E2B__FORMAT(markdown), E2B__FORMAT(svg), E2B__FORMAT(latex),
  E2B__FORMAT(javascript), E2B__FORMAT(png),   E2B__FORMAT(jpeg),     E2B__FORMAT(pdf), E2B__FORMAT(json),
  E2B__FORMAT(data),       E2B__FORMAT(chart), E2B__FORMAT(extra),
};

static e2b_str *e2b__code_format_of(e2b_code_result *result, size_t format) {
  return (e2b_str *)(void *)((uint8_t *)result + e2b__code_formats[format].in_result);
}

E2B_API uint32_t e2b_code_result_formats(const e2b_code_result *result) {
  e2b_code_result copy;
  uint32_t formats = 0;
  size_t i;
  if (!result) return 0;
  copy = *result;
  for (i = 0; i < E2B__COUNT(e2b__code_formats); i++)
    if (e2b__code_format_of(&copy, i)->len) formats |= 1u << i;
  return formats;
}

E2B_API const char *e2b_execution_text(const e2b_execution *execution) {
  size_t i;
  for (i = 0; execution && i < execution->result_count; i++)
    if (execution->results[i].is_main_result) return execution->results[i].text.ptr;
  return "";
}

/* ---- addresses ---- */

E2B_API size_t e2b_client_code_interpreter_url(const e2b_client *client, const char *sandbox_id, char *out,
                                               size_t cap) {
  e2b__buf url;
  if (cap) out[0] = 0;
  if (!client || !e2b__given(sandbox_id)) return 0;
  e2b__buf_init(&url, (e2b__mem *)&client->mem, 65536);
  e2b__put_code_url(&url, &client->config, client->config.scheme, sandbox_id, client->config.domain,
                    client->config.code_interpreter_port);
  return e2b__text_out(&url, out, cap);
}

/* Points a request at the code interpreter of a sandbox; what follows the URL is appended to req->path. The tokens are
 * those of envd. */
static e2b_err e2b__code_address(e2b__req *req, const e2b_sandbox *sandbox, const e2b_call *call, e2b_error *err) {
  e2b_err code = E2B_OK;
  e2b__buf text;
  e2b__url url;
  char port[8];
  e2b__buf_init(&text, &sandbox->client->mem, 65536);
  if (sandbox->code_url)
    e2b__buf_text(&text, sandbox->code_url);
  else
    e2b__put_code_url(&text, &sandbox->client->config, sandbox->scheme, sandbox->id, sandbox->domain, sandbox->code_port);
  if (!e2b__buf_cstr(&text))
    code = e2b__no_memory(err);
  else if (!e2b__url_parse((const char *)text.data, &url))
    code = e2b__invalid(err, "the sandbox's id or domain", "makes no URL");
  else
    e2b__req_target(req, &url);
  e2b__buf_free(&text);
  (void)snprintf(port, sizeof port, "%u", (unsigned)sandbox->code_port);
  e2b__data_headers(req, sandbox, NULL, call);
  e2b__headers_set(&req->headers, "e2b-sandbox-port", e2b__str(port));
  return code;
}

/* ---- answers that are not success ---- */

/* A 404 is about a context only when the code interpreter wrote it. A 502 because nobody listens says so. */
static e2b_err e2b__code_refused(e2b__task *task, e2b_error *err) {
  char text[200];
  bool no_port, context;
  e2b_err code;
  e2b__error_excerpt(text, sizeof text, task->req.rx.data, task->req.rx.len);
  no_port = task->req.status == 502 && strstr(text, "port is not open") != NULL;
  context = strstr(text, "ontext") != NULL;
  code = e2b__answer_error(&task->req, E2B_SUBJECT_CONTEXT, "check the sandbox's access token", err);
  if (code == E2B_ERR_NOT_FOUND && !context) {
    err->subject = E2B_SUBJECT_NONE;
    return e2b__files_say_before(err, E2B_ERR_SERVICE, "not an answer of the code interpreter, check its URL");
  }
  if (code != E2B_ERR_UNAVAILABLE) return code;
  if (no_port) {
    err->maybe_done = false;
    (void)e2b__error_say(err, code,
                         "nothing listens on port %u of the sandbox (HTTP 502): its template has no code interpreter, "
                         "or it is still starting",
                         (unsigned)task->op.sandbox->code_port);
  } else {
    (void)e2b__files_say_before(err, code, "no code interpreter was reached; has the template one?");
  }
  return e2b__data_lost(task, err);
}

static e2b_err e2b__code_answered(e2b__task *task, e2b_error *err) {
  if (task->req.status < 200 || task->req.status >= 300) return e2b__code_refused(task, err);
  return ((e2b__data_task *)task)->on_success(task, err);
}

/* ---- a run ---- */

typedef struct e2b__code_run {
  e2b__data_task data;
  int (*on_event)(void *user, const e2b_code_event *event);
  void *event_user;
  bool can_pause; /* the caller has a handle to resume it with */
  int32_t exec_timeout_ms;
  bool ended;      /* the end of the execution was announced */
  bool given;      /* *out was filled, or is not to be */
  size_t scanned;  /* bytes of the line that is coming in that were looked through for its end */
  const char *why; /* what stopped it on our side, or NULL */
  /* what is kept for *out */
  e2b__buf output[2]; /* stdout, stderr */
  e2b__arena arena;   /* of results */
  e2b__list results;  /* e2b_code_result */
  e2b__arena error_arena;
  e2b_execution_error error;
  bool has_error, truncated;
  int32_t count;
} e2b__code_run;

static e2b__code_run *e2b__code_run_of(e2b__req *req) {
  return (e2b__code_run *)(void *)((uint8_t *)req - offsetof(e2b__code_run, data.task.req));
}

/* Stops a run from one of its events: the code goes through the layers below, the reason waits here. */
static e2b_err e2b__code_stop(e2b__code_run *run, e2b_err code, const char *why) {
  run->why = why;
  return code;
}

static const char *e2b__code_keep_text(e2b__arena *arena, e2b_str text) {
  char *copy = (char *)e2b__arena_alloc(arena, text.len + 1);
  if (copy && text.len) memcpy(copy, text.ptr, text.len);
  return copy;
}

/* Results beyond the limit are dropped, all of them from the first on. */
static e2b_err e2b__code_keep_result(e2b__code_run *run, const e2b_code_result *result) {
  e2b_code_result copy = *result, *slot;
  size_t i;
  if (run->arena.err) return E2B_OK;
  for (i = 0; i < E2B__COUNT(e2b__code_formats); i++) {
    e2b_str *text = e2b__code_format_of(&copy, i);
    text->ptr = text->len ? e2b__code_keep_text(&run->arena, *text) : "";
    if (!text->ptr) break;
  }
  slot = run->arena.err ? NULL : (e2b_code_result *)e2b__list_add(&run->results, sizeof *slot, &run->arena);
  if (slot) *slot = copy;
  if (run->arena.err == E2B_ERR_NO_MEMORY) return E2B_ERR_NO_MEMORY;
  if (run->arena.err) run->truncated = true;
  return E2B_OK;
}

/* The last error counts; however much was dropped before, it is kept. */
static e2b_err e2b__code_keep_error(e2b__code_run *run, const e2b_execution_error *error) {
  e2b__arena *arena = &run->error_arena;
  e2b__arena_free(arena);
  run->error.name = e2b__code_keep_text(arena, e2b__str(error->name));
  run->error.value = e2b__code_keep_text(arena, e2b__str(error->value));
  run->error.traceback = e2b__code_keep_text(arena, e2b__str(error->traceback));
  run->has_error = !arena->err;
  return arena->err;
}

static e2b_err e2b__code_keep_output(e2b__code_run *run, e2b__buf *out, e2b_str text) {
  size_t room = out->max - E2B__MIN(out->len, out->max), keep = E2B__MIN(room, text.len);
  if (keep < text.len) run->truncated = true;
  e2b__buf_put(out, text.ptr, keep);
  return out->err;
}

/* What a run needs for *out; an error and the count also without. */
static e2b_err e2b__code_keep(e2b__code_run *run, const e2b_code_event *event) {
  bool collect = run->data.task.out != NULL;
  switch (event->kind) {
  case E2B_CODE_STDOUT: return collect ? e2b__code_keep_output(run, &run->output[0], event->text) : E2B_OK;
  case E2B_CODE_STDERR: return collect ? e2b__code_keep_output(run, &run->output[1], event->text) : E2B_OK;
  case E2B_CODE_RESULT: return collect ? e2b__code_keep_result(run, event->result) : E2B_OK;
  case E2B_CODE_ERROR: return e2b__code_keep_error(run, event->error);
  case E2B_CODE_COUNT: run->count = event->count; break;
  case E2B_CODE_END: run->ended = true; break;
  }
  return E2B_OK;
}

/* Gives an event to the caller, who may end the run thereby. */
static e2b_err e2b__code_deliver(e2b__code_run *run, const e2b_code_event *event) {
  int answer = run->on_event ? run->on_event(run->event_user, event) : 0;
  if (run->data.task.op.finished) return E2B_ERR_CANCELED; /* by the callback */
  if (answer < 0) return e2b__code_stop(run, E2B_ERR_CANCELED, "on_event canceled the run");
  if (answer != E2B_PAUSE) return E2B_OK;
  run->data.task.req.paused = true;
  if (run->can_pause) return E2B_OK;
  return e2b__code_stop(run, E2B_ERR_BAD_STATE, "E2B_PAUSE in a call without call.op: nobody could resume it");
}

/* {} */
static bool e2b__code_is_empty(e2b_str json) {
  size_t i;
  for (i = 0; i < json.len; i++)
    if (!strchr("{} \t", json.ptr[i])) return false;
  return true;
}

/* What a line says; kind 0 for a keep-alive and for types of a later time. Points into the line. */
static e2b_code_event e2b__code_event_of(const e2b__code_line *line, e2b_code_result *result,
                                         e2b_execution_error *error) {
  /* by e2b_code_event_kind */
  static const char *const types[] = { "", "stdout", "stderr", "result", "error", "number_of_executions", "end_of_execution" };
  e2b_code_event event;
  size_t i;
  memset(&event, 0, sizeof event);
  memset(result, 0, sizeof *result);
  for (i = E2B_CODE_STDOUT; i < E2B__COUNT(types); i++)
    if (e2b__str_eq(line->type, types[i])) event.kind = (e2b_code_event_kind)i;
  for (i = 0; i < E2B__COUNT(e2b__code_formats); i++)
    *e2b__code_format_of(result, i) =
        *(const e2b_str *)(const void *)((const uint8_t *)line + e2b__code_formats[i].in_line);
  if (e2b__code_is_empty(result->extra)) result->extra = e2b__str(""); /* comes with every result */
  result->is_main_result = line->is_main_result;
  error->name = line->name.ptr;
  error->value = line->value.ptr;
  error->traceback = line->traceback.ptr;
  event.text = event.kind == E2B_CODE_RESULT ? e2b__str("") : line->text;
  event.timestamp = line->timestamp;
  event.count = line->execution_count;
  if (event.kind == E2B_CODE_RESULT) event.result = result;
  if (event.kind == E2B_CODE_ERROR) event.error = error;
  return event;
}

/* Puts a NUL behind every text of a decoded line: there is a quote, a comma or a brace that nobody needs any more. */
static void e2b__code_line_terminate(e2b__code_line *line) {
  size_t i;
  for (i = 0; i < E2B__COUNT(e2b__fields_code_line); i++) {
    const e2b__field *f = &e2b__fields_code_line[i];
    e2b_str *text = (e2b_str *)(void *)((uint8_t *)line + f->offset);
    if (f->kind != E2B__KIND_STR && f->kind != E2B__KIND_TEXT && f->kind != E2B__KIND_RAW) continue;
    if (!text->ptr) text->ptr = "";
    if (text->ptr[text->len]) ((char *)(uintptr_t)text->ptr)[text->len] = 0; /* not in the texts of true and false */
  }
}

/* One line of the answer, without its end. */
static e2b_err e2b__code_take_line(e2b__code_run *run, const uint8_t *bytes, size_t len) {
  e2b_client *client = run->data.task.op.client;
  e2b__code_line line;
  e2b_code_result result;
  e2b_execution_error error;
  e2b_code_event event;
  e2b__arena scratch;
  char *copy, excerpt[80];
  e2b_err code;
  while (len && (bytes[len - 1] == '\r' || bytes[len - 1] == ' ')) len--;
  if (!len) return E2B_OK;
  e2b__arena_init(&scratch, &client->mem, (len | 1023u) + 4096u);
  copy = (char *)e2b__arena_alloc(&scratch, len + 1);
  if (!copy) return e2b__code_stop(run, E2B_ERR_NO_MEMORY, "no memory for a line of the answer");
  memcpy(copy, bytes, len);
  code = e2b__json_decode(&e2b__msg_code_line, copy, len, &scratch, &line);
  if (code || !line.type.len) {
    e2b__error_excerpt(excerpt, sizeof excerpt, bytes, len);
    e2b__log(&client->config.logger, E2B_LOG_WARN, "a line of the code interpreter was skipped, it is no event: %s",
             excerpt);
    code = E2B_OK;
  } else {
    e2b__code_line_terminate(&line);
    event = e2b__code_event_of(&line, &result, &error);
    if (event.kind) code = e2b__code_keep(run, &event);
    if (code)
      run->why = "no memory for what the code gave";
    else if (event.kind)
      code = e2b__code_deliver(run, &event);
  }
  e2b__arena_free(&scratch);
  return code;
}

static e2b_err e2b__code_on_head(e2b__req *req) {
  e2b__code_run *run = e2b__code_run_of(req);
  if (run->exec_timeout_ms && req->status == 200) req->deadline = e2b__deadline(req->client->now, run->exec_timeout_ms);
  return E2B_OK;
}

/* Takes whole lines off the front of what came. */
static e2b_err e2b__code_on_body(e2b__req *req, const uint8_t *bytes, size_t len, size_t *taken) {
  e2b__code_run *run = e2b__code_run_of(req);
  size_t max = req->client->config.max_message_bytes, size;
  const uint8_t *line, *end;
  e2b_err code;
  if (req->status < 200 || req->status >= 300) return E2B_OK; /* stays in rx for the error */
  while (!req->paused) {
    line = bytes + *taken;
    end = len - *taken > run->scanned ? (const uint8_t *)memchr(line + run->scanned, '\n', len - *taken - run->scanned)
                                      : NULL;
    size = end ? (size_t)(end - line) : len - *taken;
    if (size > max)
      return e2b__code_stop(run, E2B_ERR_LIMIT, "a line of the answer is longer than config.max_message_bytes");
    run->scanned = end ? 0 : size;
    if (!end) return E2B_OK;
    *taken += size + 1;
    code = e2b__code_take_line(run, line, size);
    if (code) return code;
  }
  return E2B_OK;
}

static const e2b__req_events e2b__code_events = { e2b__code_on_head, e2b__code_on_body, NULL, e2b__task_on_end };

static e2b_str e2b__code_pack_str(e2b__pack *pack, e2b_str text) {
  return e2b__str_n(e2b__pack_str(pack, text), text.len);
}

static void e2b__fill_execution(e2b__pack *pack, const void *from, void *out) {
  const e2b__code_run *run = (const e2b__code_run *)from;
  const e2b_code_result *kept = (const e2b_code_result *)run->results.items;
  e2b_execution *execution = (e2b_execution *)out;
  e2b_code_result result, *results = (e2b_code_result *)e2b__pack_alloc(pack, run->results.count * sizeof *results);
  e2b_execution_error text, *error;
  size_t i, k;
  error = run->has_error ? (e2b_execution_error *)e2b__pack_alloc(pack, sizeof *error) : NULL;
  for (i = 0; i < run->results.count; i++) {
    result = kept[i];
    for (k = 0; k < E2B__COUNT(e2b__code_formats); k++) {
      e2b_str *format = e2b__code_format_of(&result, k);
      *format = e2b__code_pack_str(pack, *format);
    }
    if (results) results[i] = result;
  }
  if (run->has_error) {
    text.name = e2b__pack_str(pack, e2b__str(run->error.name));
    text.value = e2b__pack_str(pack, e2b__str(run->error.value));
    text.traceback = e2b__pack_str(pack, e2b__str(run->error.traceback));
    if (error) *error = text;
  }
  execution->stdout_data = e2b__code_pack_str(pack, e2b__str_n((const char *)run->output[0].data, run->output[0].len));
  execution->stderr_data = e2b__code_pack_str(pack, e2b__str_n((const char *)run->output[1].data, run->output[1].len));
  execution->results = results;
  execution->result_count = run->results.count;
  execution->error = error;
  execution->execution_count = run->count;
  execution->truncated = run->truncated;
}

/* Fills *out, once. */
static e2b_err e2b__code_give(e2b__code_run *run, e2b_error *err) {
  e2b__task *task = &run->data.task;
  if (!task->out || run->given) return E2B_OK;
  run->given = true;
  return e2b__rest_give(task, e2b__fill_execution, run, sizeof(e2b_execution), err);
}

/* Hands out what there is of a run that does not come to its end. */
static void e2b__code_give_part(e2b__code_run *run) {
  e2b_error unused;
  if (run->data.task.req.status == 200) (void)e2b__code_give(run, &unused);
}

static void e2b__code_give_up(e2b__op *op) {
  e2b__code_give_part((e2b__code_run *)op);
}

static e2b_err e2b__code_lost(e2b__task *task, e2b_error *err) {
  e2b__code_run *run = (e2b__code_run *)task;
  if (run->why)
    (void)e2b__error_say(err, err->code, "%s", run->why);
  else if (err->code == E2B_ERR_TIMEOUT && task->req.status)
    (void)e2b__error_say(err, err->code, "the code ran longer than exec_timeout_ms (%d ms) and was interrupted",
                         (int)run->exec_timeout_ms);
  e2b__code_give_part(run);
  return run->why ? err->code : e2b__data_lost(task, err);
}

/* The answer is complete. Only its last line proves that the execution is, too. */
static e2b_err e2b__code_succeeded(e2b__task *task, e2b_error *err) {
  e2b__code_run *run = (e2b__code_run *)task;
  e2b_err code = e2b__code_take_line(run, task->req.rx.data, task->req.rx.len); /* perhaps one without an end */
  err->phase = E2B_PHASE_BODY;
  err->maybe_done = true;
  if (task->op.finished) return code; /* by on_event */
  if (code) {
    (void)e2b__error_say(err, code, "%s", run->why ? run->why : "canceled");
    e2b__code_give_part(run);
    return code;
  }
  if (!run->ended) {
    (void)e2b__error_say(err, E2B_ERR_TRUNCATED,
                         "the answer ended without the end of the execution: whether the code ran to its "
                         "end is not known");
    e2b__code_give_part(run);
    return e2b__data_lost(task, err);
  }
  code = e2b__code_give(run, err);
  if (code) return code;
  err->maybe_done = false;
  if (!run->has_error) return E2B_OK;
  return e2b__error_say(err, E2B_CODE_FAILED, "%.60s: %.180s", run->error.name, run->error.value);
}

static void e2b__code_release(e2b__op *op) {
  e2b__code_run *run = (e2b__code_run *)op;
  e2b__data_release(op);
  e2b__buf_free(&run->output[0]);
  e2b__buf_free(&run->output[1]);
  e2b__arena_free(&run->arena);
  e2b__arena_free(&run->error_arena);
}

static const e2b__op_type e2b__code_type = { e2b__data_cancel, e2b__code_release, e2b__task_resume, e2b__task_phase,
                                             e2b__code_give_up };

static e2b_err e2b__code_run_check(const e2b_sandbox *sandbox, const char *code, const e2b_run_code_opts *opts,
                                   e2b_error *err) {
  size_t i;
  if (!sandbox) return e2b__invalid(err, "sandbox", "is NULL");
  if (!e2b__given(code)) return e2b__invalid(err, "code", "is empty");
  if (!opts) return E2B_OK;
  if (e2b__given(opts->context_id) && e2b__given(opts->language))
    return e2b__invalid(err, "language", "is given together with context_id, but a context has its language already");
  if (!e2b__text_ok(opts->context_id)) return e2b__invalid(err, "context_id", "has a control character");
  if (!e2b__text_ok(opts->language)) return e2b__invalid(err, "language", "has a control character");
  if (!e2b__text_ok(opts->cwd)) return e2b__invalid(err, "cwd", "has a control character");
  if (opts->exec_timeout_ms < 0) return e2b__invalid(err, "exec_timeout_ms", "is negative");
  for (i = 0; i < opts->envs.count; i++) {
    const char *key = opts->envs.items[i].key;
    if (!e2b__given(key) || strchr(key, '=') || !e2b__text_ok(key))
      return e2b__invalid(err, "envs", "has a name that is empty or holds '=' or a control character");
  }
  return e2b__call_check(&opts->call, err);
}

/* "key":"text", or nothing at all. */
static void e2b__code_put(e2b__json_writer *w, const char *key, const char *text) {
  if (!e2b__given(text)) return;
  e2b__json_key(w, key);
  e2b__json_str(w, e2b__str(text));
}

static void e2b__code_put_request(e2b__buf *out, const char *code, const e2b_run_code_opts *opts) {
  e2b__json_writer w;
  char seconds[24];
  w.out = out;
  w.comma = false;
  e2b__json_begin(&w, '{');
  e2b__code_put(&w, "code", code);
  if (opts) {
    e2b__code_put(&w, "context_id", opts->context_id);
    e2b__code_put(&w, "language", opts->language);
    e2b__code_put(&w, "cwd", opts->cwd);
    e2b__json_kvs(&w, "env_vars", opts->envs);
  }
  if (opts && opts->exec_timeout_ms) {
    (void)snprintf(seconds, sizeof seconds, "%ld.%03d", (long)(opts->exec_timeout_ms / 1000),
                   (int)(opts->exec_timeout_ms % 1000));
    e2b__json_key(&w, "timeout");
    e2b__json_raw(&w, e2b__str(seconds));
  }
  e2b__json_end(&w, '}');
}

/* Ends what a public call of this section prepared: sends it, or frees it after `code`. */
static e2b_err e2b__code_start(e2b__data_task *data, const e2b_call *call, e2b_err code, e2b_error *err) {
  e2b__req *req = &data->task.req;
  if (code) {
    e2b__op_release(&data->task.op);
    return code;
  }
  if (strcmp(req->method, "POST") == 0) req->body_len = (int64_t)req->body.len;
  if (req->body.len) e2b__headers_set(&req->headers, "content-type", e2b__str("application/json"));
  data->task.on_answer = e2b__code_answered;
  return e2b__task_run(&data->task, call, err);
}

E2B_API e2b_err e2b_code_run(e2b_sandbox *sandbox, const char *code, const e2b_run_code_opts *opts, e2b_execution *out,
                             e2b_error *err) {
  const e2b_call *call = opts ? &opts->call : NULL;
  e2b__code_run *run;
  e2b__mem *mem;
  e2b_error local;
  size_t most;
  e2b_err rc;
  if (!err) err = &local;
  e2b__result_clear(out, sizeof *out);
  if (e2b__code_run_check(sandbox, code, opts, err)) return err->code;
  run = (e2b__code_run *)e2b__data_task_new(sandbox, call, sizeof *run, E2B_TIMEOUT_NONE, &e2b__code_events, err);
  if (!run) return err->code;
  mem = &sandbox->client->mem;
  most = (size_t)E2B__MIN(sandbox->client->config.max_result_bytes, (uint64_t)(SIZE_MAX / 2));
  run->data.task.op.type = &e2b__code_type;
  e2b__buf_init(&run->output[0], mem, most);
  e2b__buf_init(&run->output[1], mem, most);
  e2b__arena_init(&run->arena, mem, most);
  e2b__arena_init(&run->error_arena, mem, SIZE_MAX);
  run->data.task.out = out;
  run->data.on_success = e2b__code_succeeded;
  run->data.task.on_loss = e2b__code_lost;
  run->can_pause = call && call->op;
  if (opts) {
    run->on_event = opts->on_event;
    run->event_user = opts->event_user;
    run->exec_timeout_ms = opts->exec_timeout_ms;
  }
  if (!call || !call->idle_ms) run->data.task.req.idle_ms = -1; /* code may think for long */
  rc = e2b__code_address(&run->data.task.req, sandbox, call, err);
  run->data.task.req.method = "POST";
  e2b__buf_text(&run->data.task.req.path, "/execute");
  e2b__code_put_request(&run->data.task.req.body, code, opts);
  return e2b__code_start(&run->data, call, rc, err);
}

/* ---- contexts ---- */

/* `out` is NULL in the first pass. */
static void e2b__pack_context(e2b__pack *pack, const e2b__code_context *from, e2b_code_context *out) {
  const char *id = e2b__pack_str(pack, from->id), *language = e2b__pack_str(pack, from->language),
             *cwd = e2b__pack_str(pack, from->cwd);
  if (!out) return;
  memset(&out->mem, 0, sizeof out->mem);
  out->id = id;
  out->language = language;
  out->cwd = cwd;
}

static void e2b__fill_context(e2b__pack *pack, const void *from, void *out) {
  e2b__pack_context(pack, (const e2b__code_context *)((const e2b__list *)from)->items,
                    pack->base ? (e2b_code_context *)out : NULL);
}

static void e2b__fill_context_list(e2b__pack *pack, const void *from, void *out) {
  const e2b__list *contexts = (const e2b__list *)from;
  const e2b__code_context *context = (const e2b__code_context *)contexts->items;
  e2b_code_context *items = (e2b_code_context *)e2b__pack_alloc(pack, contexts->count * sizeof *items);
  e2b_code_context_list *list = (e2b_code_context_list *)out;
  size_t i;
  for (i = 0; i < contexts->count; i++) e2b__pack_context(pack, &context[i], items ? &items[i] : NULL);
  list->items = items;
  list->count = contexts->count;
}

/* A context, or with task->state a list of them: every one has an id. */
static e2b_err e2b__contexts_answered(e2b__task *task, e2b_error *err) {
  e2b__req *req = &task->req;
  e2b__code_context one;
  e2b__arena arena;
  e2b__list list;
  size_t i;
  char begin[64];
  e2b_err code;
  e2b__error_excerpt(begin, sizeof begin, req->rx.data, req->rx.len);
  e2b__arena_init(&arena, &task->op.client->mem, (size_t)task->op.client->config.max_message_bytes * 4);
  list.items = &one;
  list.count = 1;
  code = task->state ? e2b__json_decode_list(&e2b__msg_code_context, (char *)req->rx.data, req->rx.len, &arena, &list)
                     : e2b__json_decode(&e2b__msg_code_context, (char *)req->rx.data, req->rx.len, &arena, &one);
  for (i = 0; !code && i < list.count; i++)
    if (!((const e2b__code_context *)list.items)[i].id.len) code = E2B_ERR_PROTOCOL;
  err->phase = E2B_PHASE_DECODE;
  err->maybe_done = !req->idempotent;
  if (code)
    e2b__error_say(err, code,
                   code == E2B_ERR_PROTOCOL ? "the answer is not that of a code interpreter: %s" : "no memory for %s",
                   begin);
  else if (task->state)
    code = e2b__rest_give(task, e2b__fill_context_list, &list, sizeof(e2b_code_context_list), err);
  else
    code = e2b__rest_give(task, e2b__fill_context, &list, sizeof(e2b_code_context), err);
  e2b__arena_free(&arena);
  return code;
}

static e2b_err e2b__context_done(e2b__task *task, e2b_error *err) {
  E2B__UNUSED(task);
  E2B__UNUSED(err);
  return E2B_OK;
}

/* A request to /contexts. NULL: *err says why. */
static e2b__data_task *e2b__contexts_new(e2b_sandbox *sandbox, const char *method, const e2b_call *call,
                                         e2b_error *err) {
  e2b__data_task *data;
  if (!sandbox) (void)e2b__invalid(err, "sandbox", "is NULL");
  if (!sandbox || e2b__call_check(call, err)) return NULL;
  data = (e2b__data_task *)e2b__data_task_new(sandbox, call, sizeof *data, sandbox->client->config.request_timeout_ms,
                                              &e2b__task_events, err);
  if (!data) return NULL;
  data->task.req.method = method;
  data->on_success = e2b__contexts_answered;
  if (e2b__code_address(&data->task.req, sandbox, call, err)) {
    e2b__op_release(&data->task.op);
    return NULL;
  }
  e2b__buf_text(&data->task.req.path, "/contexts");
  return data;
}

E2B_API e2b_err e2b_code_create_context(e2b_sandbox *sandbox, const char *cwd, const char *language,
                                        const e2b_call *call, e2b_code_context *out, e2b_error *err) {
  e2b__data_task *data;
  e2b__json_writer w;
  e2b_error local;
  if (!err) err = &local;
  e2b__result_clear(out, sizeof *out);
  if (!out) return e2b__invalid(err, "out", "is NULL");
  data = e2b__contexts_new(sandbox, "POST", call, err);
  if (!data) return err->code;
  data->task.out = out;
  w.out = &data->task.req.body;
  w.comma = false;
  e2b__json_begin(&w, '{');
  e2b__code_put(&w, "cwd", cwd);
  e2b__code_put(&w, "language", language);
  e2b__json_end(&w, '}');
  return e2b__code_start(data, call, E2B_OK, err);
}

E2B_API e2b_err e2b_code_list_contexts(e2b_sandbox *sandbox, const e2b_call *call, e2b_code_context_list *out,
                                       e2b_error *err) {
  e2b__data_task *data;
  e2b_error local;
  if (!err) err = &local;
  e2b__result_clear(out, sizeof *out);
  if (!out) return e2b__invalid(err, "out", "is NULL");
  data = e2b__contexts_new(sandbox, "GET", call, err);
  if (!data) return err->code;
  data->task.out = out;
  data->task.state = 1; /* a list */
  data->task.req.idempotent = true;
  return e2b__code_start(data, call, E2B_OK, err);
}

/* <method> /contexts/<id><tail> */
static e2b_err e2b__context_do(e2b_sandbox *sandbox, const char *method, const char *context_id, const char *tail,
                               const e2b_call *call, e2b_error *err) {
  e2b__data_task *data;
  e2b_error local;
  if (!err) err = &local;
  if (!e2b__given(context_id)) return e2b__invalid(err, "context_id", "is empty");
  if (!e2b__text_ok(context_id)) return e2b__invalid(err, "context_id", "has a control character");
  if (strcmp(context_id, ".") == 0 || strcmp(context_id, "..") == 0)
    return e2b__invalid(err, "context_id", "is a path");
  data = e2b__contexts_new(sandbox, method, call, err);
  if (!data) return err->code;
  data->on_success = e2b__context_done;
  e2b__buf_byte(&data->task.req.path, '/');
  e2b__url_escape(&data->task.req.path, e2b__str(context_id));
  e2b__buf_text(&data->task.req.path, tail);
  return e2b__code_start(data, call, E2B_OK, err);
}

E2B_API e2b_err e2b_code_remove_context(e2b_sandbox *sandbox, const char *context_id, const e2b_call *call,
                                        e2b_error *err) {
  return e2b__context_do(sandbox, "DELETE", context_id, "", call, err);
}

E2B_API e2b_err e2b_code_restart_context(e2b_sandbox *sandbox, const char *context_id, const e2b_call *call,
                                         e2b_error *err) {
  return e2b__context_do(sandbox, "POST", context_id, "/restart", call, err);
}
  #endif /* E2B_NO_CODE_INTERPRETER */
/* ================================================================================================================== */
/* >>>> bulk */
/* ================================================================================================================== */

/* Many files in one operation. It starts other operations (uploads, downloads, listings) and is told of their ends;
 * what differs between the calls is in e2b__bulk_type. */

#define E2B__BULK_PARALLEL 32u
#define E2B__BULK_BATCH 262144u
#define E2B__BULK_TOGETHER 256u /* files of one request */
#define E2B__BULK_SLICE 2       /* pieces of work of one turn: what is read next overlaps with what is being sent */

/* One file or directory that waits or is under way. The texts lie behind it. */
typedef struct e2b__bulk_entry {
  e2b__object object;
  struct e2b__bulk_entry *next;
  char *path;          /* in the sandbox */
  const char *name;    /* what callbacks see: the path, in a tree the end of it */
  const char *local;   /* in a tree: from the local directory on */
  const uint8_t *data; /* write_many */
  uint64_t size;
  size_t index;        /* of the caller's item */
  uint32_t together;   /* it may travel with so many in one request */
  uint32_t depth;
  bool dir, exec, tried;
} e2b__bulk_entry;

typedef struct e2b__bulk_queue {
  e2b__bulk_entry *first, *last;
  size_t count;
  uint64_t bytes;
  size_t memory; /* of the entries */
} e2b__bulk_queue;

typedef struct e2b__bulk e2b__bulk;
typedef struct e2b__bulk_job e2b__bulk_job;

typedef struct e2b__bulk_type {
  bool (*start)(e2b__bulk *bulk); /* does one piece of work; false when there is none now */
  void (*report)(e2b__bulk *bulk, const e2b__bulk_entry *entry, bool skipped, const e2b_error *result);
  void (*release)(e2b__bulk *bulk); /* frees what it has of its own */
} e2b__bulk_type;

struct e2b__bulk {
  e2b__op op;
  const e2b__bulk_type *type;
  e2b__arena arena;     /* user, headers */
  e2b_files_opts child; /* of the operations it starts */
  e2b_bulk_opts opts;
  e2b_bulk_stats stats, *out;
  bool moved;           /* something to tell on_progress */
  bool no_batches;      /* this server does not understand them */
  uint32_t active;
  e2b__bulk_job *jobs;
  e2b__bulk_queue files, dirs, execs; /* execs: written, still to be made executable */
  e2b_error first, stop; /* the first failure; why nothing more is started */
  char first_name[80];
  size_t name_at;       /* where names begin in paths */
  void *items;          /* the caller's */
};

/* One operation under way. */
struct e2b__bulk_job {
  e2b__object object;
  e2b__bulk *bulk;
  e2b__bulk_job *next;
  e2b_op op;
  e2b_files_opts opts;
  e2b__bulk_entry *entries;
  bool streams;     /* bytes count as they move, in `moved`; else at the end */
  uint64_t moved;
  e2b_error local;  /* what went wrong on our side of a transfer: not to be tried again */
  void (*ended)(e2b__bulk_job *job, e2b_error *err); /* optional: may change the result and take entries away */
  void (*release)(e2b__bulk_job *job);               /* optional */
};

static void e2b__bulk_put(e2b__bulk_queue *queue, e2b__bulk_entry *entry) {
  entry->next = NULL;
  if (queue->last) queue->last->next = entry; else queue->first = entry;
  queue->last = entry;
  queue->count++;
  queue->bytes += entry->size;
  queue->memory += entry->object.size;
}

static void e2b__bulk_put_first(e2b__bulk_queue *queue, e2b__bulk_entry *entry) {
  entry->next = queue->first;
  queue->first = entry;
  if (!queue->last) queue->last = entry;
  queue->count++;
  queue->bytes += entry->size;
  queue->memory += entry->object.size;
}

static e2b__bulk_entry *e2b__bulk_take(e2b__bulk_queue *queue) {
  e2b__bulk_entry *entry = queue->first;
  if (!entry) return NULL;
  queue->first = entry->next;
  if (!queue->first) queue->last = NULL;
  queue->count--;
  queue->bytes -= entry->size;
  queue->memory -= entry->object.size;
  entry->next = NULL;
  return entry;
}

static void e2b__bulk_free_entries(e2b__bulk *bulk, e2b__bulk_entry *entry) {
  while (entry) {
    e2b__bulk_entry *next = entry->next;
    e2b__object_free(bulk->op.client, entry);
    entry = next;
  }
}

/* `local` empty: it is called there as its name says. NULL without memory. */
static e2b__bulk_entry *e2b__bulk_entry_new(e2b__bulk *bulk, e2b_str parent, e2b_str last, e2b_str local) {
  size_t slash = parent.len && parent.ptr[parent.len - 1] != '/' ? 1 : 0;
  size_t len = parent.len + slash + last.len;
  e2b__bulk_entry *entry =
      (e2b__bulk_entry *)e2b__object_new(bulk->op.client, sizeof *entry + len + 1 + local.len + 1);
  char *text;
  if (!entry) return NULL;
  text = entry->path = (char *)(entry + 1);
  if (parent.len) memcpy(text, parent.ptr, parent.len);
  if (slash) text[parent.len] = '/';
  memcpy(text + parent.len + slash, last.ptr, last.len);
  entry->name = entry->local = text + E2B__MIN(bulk->name_at, len);
  if (local.len) {
    memcpy(text + len + 1, local.ptr, local.len);
    entry->local = text + len + 1;
  }
  entry->together = E2B__BULK_TOGETHER;
  return entry;
}

/* ---- results ---- */

static void e2b__bulk_say(const e2b_error *result, char *to, size_t cap) {
  size_t len = strlen(result->message);
  len = result->code ? E2B__MIN(len, cap - 1) : 0;
  memcpy(to, result->message, len);
  to[len] = 0;
}

/* The result of one entry, which is freed. The caller's callback may end the whole operation. */
static void e2b__bulk_report(e2b__bulk *bulk, e2b__bulk_entry *entry, bool skipped, const e2b_error *result) {
  const char *name = entry->name[0] ? entry->name : entry->path;
  if (skipped)
    bulk->stats.files_skipped++;
  else if (result->code)
    bulk->stats.files_failed++;
  else if (!entry->dir)
    bulk->stats.files_done++;
  if (result->code && !bulk->first.code) {
    bulk->first = *result;
    e2b__error_excerpt(bulk->first_name, sizeof bulk->first_name, (const uint8_t *)name, strlen(name));
  }
  if (result->code && bulk->opts.stop_on_error && !bulk->stop.code)
    (void)e2b__fail(&bulk->stop, E2B_ERR_CANCELED, "not tried: another file failed");
  bulk->moved = true;
  if (bulk->out) *bulk->out = bulk->stats;
  bulk->type->report(bulk, entry, skipped, result);
  e2b__object_free(bulk->op.client, entry);
}

/* Ends the operation because of what a callback said. */
static void e2b__bulk_canceled(e2b__bulk *bulk) {
  e2b_error err;
  if (bulk->op.finished) return;
  (void)e2b__fail(&err, E2B_ERR_CANCELED, "canceled by a callback");
  e2b__op_kill(&bulk->op, &err);
}

/* Nothing more is started; what waits gets this error. */
static void e2b__bulk_stop(e2b__bulk *bulk, const e2b_error *why) {
  if (bulk->stop.code) return;
  bulk->stop = *why;
  (void)e2b__files_say_before(&bulk->stop, why->code, "not tried");
}

/* Whether what happened to one file would happen to all of them. */
static bool e2b__bulk_hopeless(const e2b_error *err) {
  switch (err->code) {
  case E2B_ERR_TIMEOUT: return err->phase == E2B_PHASE_RESOLVE || err->phase == E2B_PHASE_CONNECT || err->phase == E2B_PHASE_TLS;
  case E2B_ERR_SANDBOX_GONE: case E2B_ERR_SANDBOX_PAUSED: case E2B_ERR_UNAUTHENTICATED: case E2B_ERR_RESOLVE:
  case E2B_ERR_CONNECT: case E2B_ERR_TLS: case E2B_ERR_TLS_CERTIFICATE: case E2B_ERR_PROXY: return true;
  default: return false;
  }
}

/* Whether to try again: files are replaced as a whole, so doing it twice does no harm. A request of several files says
 * only that one of them failed: they come again in halves, until each has an answer of its own. Alone, a file is tried
 * again once: after a loss on the way, after a 500 (old servers make a new directory twice at once), or as a form. */
static bool e2b__bulk_again(e2b__bulk *bulk, e2b__bulk_entry *entry, const e2b_error *err, uint32_t count) {
  bool lost = err->code == E2B_ERR_CLOSED || err->code == E2B_ERR_IO || err->code == E2B_ERR_TRUNCATED ||
              err->code == E2B_ERR_UNAVAILABLE;
  if (bulk->stop.code || err->code == E2B_ERR_NO_MEMORY || err->code == E2B_ERR_RATE_LIMITED) return false;
  if (count > 1 && err->http_status && !lost) {
    if (err->code == E2B_ERR_PROTOCOL) bulk->no_batches = true;
    entry->together = bulk->no_batches ? 1 : count / 2;
    return true;
  }
  if (entry->tried || !(lost || err->http_status == 500 || strstr(err->message, E2B__FILES_CALL_AGAIN))) return false;
  return entry->tried = true;
}

/* What a request came to, for each entry it was about. Frees the list. */
static void e2b__bulk_settle(e2b__bulk *bulk, e2b__bulk_entry *entries, const e2b_error *err) {
  uint32_t count = 0;
  e2b__bulk_entry *entry;
  for (entry = entries; entry; entry = entry->next) count++;
  if (e2b__bulk_hopeless(err)) e2b__bulk_stop(bulk, err);
  while ((entry = entries) != NULL) {
    entries = entry->next;
    if (bulk->op.finished)
      e2b__object_free(bulk->op.client, entry);
    else if (err->code && e2b__bulk_again(bulk, entry, err, count))
      e2b__bulk_put(entry->dir ? &bulk->dirs : &bulk->files, entry);
    else
      e2b__bulk_report(bulk, entry, false, err);
  }
}

/* ---- the operations it starts ---- */

static void e2b__bulk_job_free(e2b__bulk_job *job) {
  if (job->release) job->release(job);
  e2b__bulk_free_entries(job->bulk, job->entries);
  job->entries = NULL;
  e2b__object_free(job->bulk->op.client, job);
}

static void e2b__bulk_on_done(void *user, const e2b_error *result) {
  e2b__bulk_job *job = (e2b__bulk_job *)user, **at;
  e2b__bulk *bulk = job->bulk;
  e2b__bulk_entry *entries;
  e2b_error err = *result;
  for (at = &bulk->jobs; *at != job; at = &(*at)->next) continue;
  *at = job->next;
  bulk->active--;
  bulk->op.client->work = true;
  if (err.code && job->local.code) err = job->local;
  for (entries = job->entries; entries && !err.code && !job->streams; entries = entries->next)
    bulk->stats.bytes_done += entries->size;
  if (job->ended) job->ended(job, &err);
  if (err.code) bulk->stats.bytes_done -= job->moved;
  entries = job->entries;
  if (job->local.code && entries) entries->tried = true;
  job->entries = NULL;
  e2b__bulk_job_free(job);
  e2b__bulk_settle(bulk, entries, &err);
}

/* A job for these entries, or NULL; they are reported then. */
static e2b__bulk_job *e2b__bulk_job_new(e2b__bulk *bulk, size_t size, e2b__bulk_entry *entries) {
  e2b__bulk_job *job = (e2b__bulk_job *)e2b__object_new(bulk->op.client, size);
  e2b_error err;
  if (!job) {
    (void)e2b__no_memory(&err);
    e2b__bulk_settle(bulk, entries, &err);
    return NULL;
  }
  job->bulk = bulk;
  job->entries = entries;
  job->opts = bulk->child;
  job->opts.call.op = &job->op;
  job->opts.call.on_done = e2b__bulk_on_done;
  job->opts.call.user = job;
  return job;
}

/* After the call that starts its operation. */
static void e2b__bulk_job_started(e2b__bulk_job *job, e2b_err code, const e2b_error *err) {
  e2b__bulk *bulk = job->bulk;
  e2b__bulk_entry *entries = job->entries;
  if (code == E2B_PENDING) {
    job->next = bulk->jobs;
    bulk->jobs = job;
    bulk->active++;
    return;
  }
  job->entries = NULL;
  e2b__bulk_job_free(job);
  if (code == E2B_ERR_BUSY && bulk->active) { /* max_ops: as many as there are must do */
    bulk->opts.parallel = bulk->active;
    while (entries) {
      e2b__bulk_entry *next = entries->next;
      e2b__bulk_put_first(entries->dir ? &bulk->dirs : &bulk->files, entries);
      entries = next;
    }
    return;
  }
  e2b__bulk_settle(bulk, entries, err);
}

/* ---- the operation ---- */

static void e2b__bulk_cancel(e2b__op *op) {
  e2b__bulk *bulk = (e2b__bulk *)op;
  while (bulk->jobs) {
    e2b__bulk_job *job = bulk->jobs;
    bulk->jobs = job->next;
    e2b_op_cancel(op->client, job->op);
    e2b__bulk_job_free(job);
  }
  bulk->active = 0;
}

static void e2b__bulk_release(e2b__op *op) {
  e2b__bulk *bulk = (e2b__bulk *)op;
  e2b__bulk_cancel(op);
  e2b__bulk_free_entries(bulk, bulk->files.first);
  e2b__bulk_free_entries(bulk, bulk->dirs.first);
  e2b__bulk_free_entries(bulk, bulk->execs.first);
  memset(&bulk->files, 0, sizeof bulk->files);
  bulk->dirs = bulk->execs = bulk->files;
  if (bulk->type && bulk->type->release) bulk->type->release(bulk);
  e2b__arena_free(&bulk->arena);
}

static e2b_phase e2b__bulk_phase(e2b__op *op, bool *maybe_done) {
  e2b__bulk *bulk = (e2b__bulk *)op;
  e2b__op *child = bulk->jobs ? e2b__op_find(op->client, bulk->jobs->op) : NULL;
  e2b_phase phase = child ? e2b__op_stands(child, maybe_done) : E2B_PHASE_NONE;
  *maybe_done = phase >= E2B_PHASE_SEND; /* others are under way too */
  return phase;
}

static const e2b__op_type e2b__bulk_op_type = { e2b__bulk_cancel, e2b__bulk_release, NULL, e2b__bulk_phase, NULL };

static void e2b__bulk_finish(e2b__bulk *bulk) {
  e2b_error err = bulk->first;
  bulk->stats.all_found = true;
  if (bulk->out) *bulk->out = bulk->stats;
  if (err.code) {
    char words[160];
    uint64_t all = bulk->stats.files_done + bulk->stats.files_failed;
    (void)snprintf(words, sizeof words, "%llu of %llu failed, first %s", (unsigned long long)bulk->stats.files_failed,
                   (unsigned long long)all, bulk->first_name);
    (void)e2b__files_say_before(&err, err.code, words);
  }
  e2b__op_finish(&bulk->op, &err);
}

/* Called in every turn. */
static void e2b__bulk_step(e2b__op *op) {
  e2b__bulk *bulk = (e2b__bulk *)op;
  e2b__bulk_entry *entry;
  int pieces = 0;
  while (!op->finished && bulk->stop.code &&
         ((entry = e2b__bulk_take(&bulk->files)) != NULL || (entry = e2b__bulk_take(&bulk->dirs)) != NULL))
    e2b__bulk_report(bulk, entry, false, &bulk->stop);
  while (!op->finished && bulk->type->start(bulk)) {
    if (++pieces < E2B__BULK_SLICE && !e2b__budget_spent(op->client)) continue;
    op->client->work = true;
    break;
  }
  if (op->finished) return;
  if (bulk->moved && bulk->out) *bulk->out = bulk->stats;
  if (bulk->moved && bulk->opts.on_progress) {
    bulk->moved = false;
    if (bulk->opts.on_progress(bulk->opts.callback_user, &bulk->stats) < 0) e2b__bulk_canceled(bulk);
    if (op->finished) return;
  }
  if (bulk->active || bulk->files.first || bulk->dirs.first || bulk->execs.first) return;
  e2b__bulk_finish(bulk);
}

/* The caller's options, kept: they are used after the call that started it has returned. */
static e2b_err e2b__bulk_keep_opts(e2b__bulk *bulk, const e2b_bulk_opts *opts, e2b_error *err) {
  e2b_client *client = bulk->op.client;
  uint32_t most = client->config.max_connections_per_host;
  e2b__pack pack;
  e2b_kv *headers = NULL;
  size_t i;
  if (opts) bulk->opts = *opts;
  if (!bulk->opts.parallel) bulk->opts.parallel = E2B__BULK_PARALLEL;
  bulk->opts.parallel = E2B__MIN(bulk->opts.parallel, most);
  if (!bulk->opts.batch_bytes) bulk->opts.batch_bytes = E2B__BULK_BATCH;
  if (!bulk->opts.max_files) bulk->opts.max_files = 1000000;
  if (!bulk->opts.max_bytes) bulk->opts.max_bytes = UINT64_MAX;
  for (pack.base = NULL, i = 0; i < 2; i++) {
    const e2b_kvs *from = &bulk->opts.call.headers;
    size_t k;
    pack.used = 0;
    headers = (e2b_kv *)e2b__pack_alloc(&pack, from->count * sizeof *headers);
    for (k = 0; k < from->count; k++) {
      const char *key = e2b__pack_str(&pack, e2b__str(from->items[k].key));
      const char *value = e2b__pack_str(&pack, e2b__str(from->items[k].value));
      if (headers) headers[k].key = key;
      if (headers) headers[k].value = value;
    }
    if (e2b__given(bulk->opts.user)) bulk->child.user = e2b__pack_str(&pack, e2b__str(bulk->opts.user));
    if (!pack.base) pack.base = (uint8_t *)e2b__arena_alloc(&bulk->arena, pack.used + 1);
    if (!pack.base) return e2b__no_memory(err);
  }
  bulk->child.call.headers.items = headers;
  bulk->child.call.headers.count = bulk->opts.call.headers.count;
  bulk->child.call.idle_ms = bulk->opts.call.idle_ms;
  bulk->child.call.timeout_ms = E2B_TIMEOUT_NONE; /* the deadline is that of the whole */
  return E2B_OK;
}

static e2b_err e2b__bulk_check(const e2b_sandbox *sandbox, const e2b_bulk_opts *opts, e2b_error *err) {
  if (!sandbox) return e2b__invalid(err, "sandbox", "is NULL");
  if (opts && e2b__given(opts->user) && e2b__user_check(opts->user, err)) return E2B_ERR_INVALID_ARGUMENT;
  return e2b__call_check(opts ? &opts->call : NULL, err);
}

/* An operation of `size` bytes; the caller fills its queues and ends with e2b__op_run. All it does is done as one user, that of
 * content: a relative path has one home, and what is made has one owner. */
static e2b__bulk *e2b__bulk_new(e2b_sandbox *sandbox, const e2b__bulk_type *type, size_t size,
                                const e2b_bulk_opts *opts, e2b_error *err) {
  e2b_client *client = sandbox->client;
  e2b__bulk *bulk = (e2b__bulk *)e2b__op_new(client, opts ? &opts->call : NULL, &e2b__bulk_op_type, size,
                                             E2B_TIMEOUT_NONE, err);
  if (!bulk) return NULL;
  bulk->op.sandbox = sandbox;
  bulk->op.step = e2b__bulk_step;
  bulk->type = type;
  client->work = true;
  e2b__arena_init(&bulk->arena, &client->mem, SIZE_MAX);
  if (!e2b__bulk_keep_opts(bulk, opts, err)) {
    if (!bulk->child.user && !e2b__given(sandbox->auth_header)) bulk->child.user = e2b__user(sandbox, NULL, true);
    return bulk;
  }
  e2b__op_release(&bulk->op);
  return NULL;
}

/* ---- several files in one request ---- */

/* A form with a part for each. The server answers with a list of what it wrote, in the order of the parts, or with the
 * error of one that failed, and then the ones before it are written, the ones behind it not. */
typedef struct e2b__batch {
  e2b__data_task data;
  e2b__bulk_job *job;
  char boundary[40];
} e2b__batch;

static e2b_str e2b__path_last(e2b_str path) {
  size_t at = path.len;
  while (at && path.ptr[at - 1] != '/') at--;
  return at ? e2b__str_n(path.ptr + at, path.len - at) : path; /* which may be NULL */
}

static e2b_err e2b__batch_succeeded(e2b__task *task, e2b_error *err) {
  const e2b__bulk_entry *entry = ((e2b__batch *)task)->job->entries;
  const e2b__rest_write_info *info;
  e2b__arena arena;
  e2b__list list;
  size_t i = 0;
  e2b_err code = E2B_ERR_PROTOCOL;
  memset(&list, 0, sizeof list);
  e2b__arena_init(&arena, &task->op.client->mem, task->op.client->config.max_message_bytes);
  if (task->req.body_ended)
    code = e2b__json_decode_list(&e2b__msg_rest_write_info, (char *)task->req.rx.data, task->req.rx.len, &arena, &list);
  for (info = code ? NULL : (const e2b__rest_write_info *)list.items; !code && entry; entry = entry->next, i++)
    if (i >= list.count || !e2b__str_eq(e2b__path_last(info[i].path), e2b__path_last(e2b__str(entry->path)).ptr))
      code = E2B_ERR_PROTOCOL;
  if (!code && i != list.count) code = E2B_ERR_PROTOCOL;
  e2b__arena_free(&arena);
  if (!code) return E2B_OK;
  err->phase = E2B_PHASE_DECODE;
  err->maybe_done = true;
  return e2b__error_say(err, code, "HTTP %d, but the answer does not confirm every file of the request",
                        task->req.status);
}

static e2b__batch *e2b__batch_new(e2b__bulk_job *job, e2b_error *err) {
  e2b_sandbox *sandbox = job->bulk->op.sandbox;
  const char *user = e2b__user(sandbox, job->opts.user, true);
  uint64_t random[2];
  char type[80];
  e2b__batch *batch;
  e2b__req *req;
  if (!e2b__net_random(random, sizeof random)) {
    (void)e2b__fail(err, E2B_ERR_IO, "the system gave no random bytes");
    return NULL;
  }
  batch = (e2b__batch *)e2b__data_task_new(sandbox, &job->opts.call, sizeof *batch, E2B_TIMEOUT_NONE,
                                           &e2b__task_events, err);
  if (!batch) return NULL;
  batch->job = job;
  batch->data.task.subject = E2B_SUBJECT_FILE;
  batch->data.task.on_answer = e2b__transfer_answered;
  batch->data.on_success = e2b__batch_succeeded;
  req = &batch->data.task.req;
  req->method = "POST";
  req->idempotent = true;
  e2b__buf_text(&req->path, "/files");
  if (user) e2b__url_query(&req->path, "username", e2b__str(user));
  e2b__data_headers(req, sandbox, NULL, &job->opts.call);
  (void)snprintf(batch->boundary, sizeof batch->boundary, "e2b-%016llx%016llx", (unsigned long long)random[0],
                 (unsigned long long)random[1]);
  (void)snprintf(type, sizeof type, "multipart/form-data; boundary=%s", batch->boundary);
  e2b__headers_set(&req->headers, "content-type", e2b__str(type));
  return batch;
}

/* What precedes the content of a file, whose name is the whole path. */
static void e2b__batch_part(e2b__batch *batch, const char *path) {
  e2b__buf *body = &batch->data.task.req.body;
  e2b__buf_text(body, body->len ? "\r\n--" : "--");
  e2b__buf_text(body, batch->boundary);
  e2b__buf_text(body, "\r\nContent-Disposition: form-data; name=\"file\"; ");
  e2b__content_quote(body, path);
  e2b__buf_text(body, "\r\nContent-Type: application/octet-stream\r\n\r\n");
}

static e2b_err e2b__batch_run(e2b__batch *batch, e2b_error *err) {
  e2b__req *req = &batch->data.task.req;
  e2b__buf_text(&req->body, "\r\n--");
  e2b__buf_text(&req->body, batch->boundary);
  e2b__buf_text(&req->body, "--\r\n");
  req->body_len = (int64_t)req->body.len;
  return e2b__task_run(&batch->data.task, &batch->job->opts.call, err);
}

/* Takes the files of the next request: the first that waits, and those behind it that fit in. */
static e2b__bulk_entry *e2b__batch_take(e2b__bulk *bulk) {
  e2b__bulk_queue taken;
  e2b__bulk_entry *entry = bulk->files.first;
  uint64_t room = bulk->opts.batch_bytes;
  uint32_t most = bulk->no_batches || entry->dir ? 1 : entry->together;
  memset(&taken, 0, sizeof taken);
  do {
    uint64_t need = entry->size + strlen(entry->path) + 160; /* with the head of its part */
    most = E2B__MIN(most, entry->together);
    if (taken.count && (entry->dir || need > room || taken.count >= most)) break;
    room -= E2B__MIN(need, room);
    e2b__bulk_put(&taken, e2b__bulk_take(&bulk->files));
    entry = bulk->files.first;
  } while (entry);
  return taken.first;
}

/* ---- files of the caller's memory ---- */

static void e2b__write_many_report(e2b__bulk *bulk, const e2b__bulk_entry *entry, bool skipped,
                                   const e2b_error *result) {
  e2b_write_item *item = (e2b_write_item *)bulk->items + entry->index;
  E2B__UNUSED(skipped);
  item->code = result->code;
  e2b__bulk_say(result, item->message, sizeof item->message);
}

static bool e2b__write_many_start(e2b__bulk *bulk) {
  e2b__bulk_entry *entry;
  e2b__bulk_job *job;
  e2b__batch *batch;
  e2b_error err;
  e2b_err code;
  if (bulk->active >= bulk->opts.parallel || !bulk->files.first) return false;
  job = e2b__bulk_job_new(bulk, sizeof *job, e2b__batch_take(bulk));
  if (!job) return true;
  entry = job->entries;
  if (!entry->next) {
    code = e2b_files_write(bulk->op.sandbox, entry->path, entry->data, (size_t)entry->size, &job->opts, NULL, &err);
  } else {
    batch = e2b__batch_new(job, &err);
    for (; batch && entry; entry = entry->next) {
      e2b__batch_part(batch, entry->path);
      e2b__buf_put(&batch->data.task.req.body, entry->data, (size_t)entry->size);
    }
    code = batch ? e2b__batch_run(batch, &err) : err.code;
  }
  e2b__bulk_job_started(job, code, &err);
  return true;
}

static const e2b__bulk_type e2b__write_many_type = { e2b__write_many_start, e2b__write_many_report, NULL };

/* Queues an entry for one of the caller's items. False without memory. */
static bool e2b__bulk_add_item(e2b__bulk *bulk, const char *path, const void *data, size_t size, size_t index) {
  e2b__bulk_entry *entry = e2b__bulk_entry_new(bulk, e2b__str(NULL), e2b__str(path), e2b__str(NULL));
  if (!entry) return false;
  entry->data = (const uint8_t *)data;
  entry->size = size;
  entry->index = index;
  e2b__bulk_put(&bulk->files, entry);
  bulk->stats.files_found++;
  bulk->stats.bytes_found += size;
  return true;
}

/* Which of the caller's items cannot be, and why. */
static e2b_err e2b__bulk_check_item(size_t index, const char *path, bool has_data, e2b_error *err) {
  char name[40];
  (void)snprintf(name, sizeof name, "items[%lu].path", (unsigned long)index);
  if (e2b__path_check(name, path, err)) return err->code;
  (void)snprintf(name, sizeof name, "items[%lu].data", (unsigned long)index);
  return has_data ? E2B_OK : e2b__invalid(err, name, "is NULL");
}

/* Hands it over, when all its items are queued. */
static e2b_err e2b__bulk_run_items(e2b__bulk *bulk, bool all, const e2b_bulk_opts *opts, e2b_error *err) {
  if (!all) {
    e2b__op_release(&bulk->op);
    return e2b__no_memory(err);
  }
  bulk->stats.all_found = true;
  return e2b__op_run(&bulk->op, opts ? &opts->call : NULL, err);
}

E2B_API e2b_err e2b_files_write_many(e2b_sandbox *sandbox, e2b_write_item *items, size_t count,
                                     const e2b_bulk_opts *opts, e2b_error *err) {
  e2b__bulk *bulk;
  e2b_error local;
  size_t i;
  bool ok = true;
  if (!err) err = &local;
  if (!items && count) return e2b__invalid(err, "items", "is NULL");
  for (i = 0; i < count; i++) {
    items[i].code = E2B_PENDING;
    items[i].message[0] = 0;
  }
  if (e2b__bulk_check(sandbox, opts, err)) return err->code;
  for (i = 0; i < count; i++)
    if (e2b__bulk_check_item(i, items[i].path, items[i].data || !items[i].len, err)) return err->code;
  bulk = e2b__bulk_new(sandbox, &e2b__write_many_type, sizeof *bulk, opts, err);
  if (!bulk) return err->code;
  bulk->items = items;
  for (i = 0; ok && i < count; i++) ok = e2b__bulk_add_item(bulk, items[i].path, items[i].data, items[i].len, i);
  return e2b__bulk_run_items(bulk, ok, opts, err);
}

static void e2b__read_many_report(e2b__bulk *bulk, const e2b__bulk_entry *entry, bool skipped,
                                  const e2b_error *result) {
  e2b_read_item *item = (e2b_read_item *)bulk->items + entry->index;
  E2B__UNUSED(skipped);
  if (!result->code) bulk->stats.bytes_done += item->content.len;
  if (!result->code) bulk->stats.bytes_found += item->content.len;
  item->code = result->code;
  e2b__bulk_say(result, item->message, sizeof item->message);
}

static bool e2b__read_many_start(e2b__bulk *bulk) {
  e2b__bulk_entry *entry;
  e2b__bulk_job *job;
  e2b_error err;
  e2b_err code;
  if (bulk->active >= bulk->opts.parallel || !bulk->files.first) return false;
  entry = e2b__bulk_take(&bulk->files);
  job = e2b__bulk_job_new(bulk, sizeof *job, entry);
  if (!job) return true;
  code = e2b_files_read(bulk->op.sandbox, entry->path, &job->opts,
                        &((e2b_read_item *)bulk->items)[entry->index].content, &err);
  e2b__bulk_job_started(job, code, &err);
  return true;
}

static const e2b__bulk_type e2b__read_many_type = { e2b__read_many_start, e2b__read_many_report, NULL };

E2B_API e2b_err e2b_files_read_many(e2b_sandbox *sandbox, e2b_read_item *items, size_t count,
                                    const e2b_bulk_opts *opts, e2b_error *err) {
  e2b__bulk *bulk;
  e2b_error local;
  size_t i;
  bool ok = true;
  if (!err) err = &local;
  if (!items && count) return e2b__invalid(err, "items", "is NULL");
  for (i = 0; i < count; i++) {
    e2b__result_clear(&items[i].content, sizeof items[i].content);
    items[i].code = E2B_PENDING;
    items[i].message[0] = 0;
  }
  if (e2b__bulk_check(sandbox, opts, err)) return err->code;
  for (i = 0; i < count; i++)
    if (e2b__bulk_check_item(i, items[i].path, true, err)) return err->code;
  bulk = e2b__bulk_new(sandbox, &e2b__read_many_type, sizeof *bulk, opts, err);
  if (!bulk) return err->code;
  bulk->items = items;
  for (i = 0; ok && i < count; i++) ok = e2b__bulk_add_item(bulk, items[i].path, NULL, 0, i);
  return e2b__bulk_run_items(bulk, ok, opts, err);
}
/* ================================================================================================================== */
/* >>>> local */
/* ================================================================================================================== */

#ifndef E2B_NO_LOCAL_FILES

/* Files of this machine, all below one directory: names are relative to it, with '/', and no part of one may be a link.
 * Results are 0 or the system's error code. */

typedef enum e2b__local_kind { E2B__LOCAL_OTHER = 0, E2B__LOCAL_FILE, E2B__LOCAL_DIR, E2B__LOCAL_LINK } e2b__local_kind;

typedef struct e2b__local_info {
  e2b__local_kind kind;
  uint64_t size;
  bool exec; /* its owner may execute it */
} e2b__local_info;

/* Gets the entries of a directory. False ends the listing. */
typedef bool (*e2b__local_fn)(void *user, e2b_str name, const e2b__local_info *info);

#define E2B__LOCAL_PART 255 /* the longest part of a name */

/* Why a name that a sandbox gave cannot be that of a file here, or NULL. */
static const char *e2b__local_refused(e2b_str name, bool windows) {
  static const char *const devices[] = { "con", "prn", "aux", "nul", "conin$", "conout$" };
  e2b_str stem = name;
  size_t i;
  if (!name.len) return "it is empty";
  if (name.len > E2B__LOCAL_PART) return "it is too long";
  if (e2b__str_eq(name, ".") || e2b__str_eq(name, "..")) return "it is no name";
  for (i = 0; i < name.len; i++) {
    if (name.ptr[i] == '/') return "it is a path";
    if (e2b__is_control(name.ptr[i])) return "it has a control character";
    if (windows && strchr("\\:*?\"<>|", name.ptr[i])) return "it has a character that Windows does not allow";
  }
  if (!windows) return NULL;
  if (name.ptr[name.len - 1] == '.' || name.ptr[name.len - 1] == ' ') return "Windows would drop its last character";
  for (i = 0; i < name.len && name.ptr[i] != '.'; i++) continue;
  for (stem.len = i; stem.len && stem.ptr[stem.len - 1] == ' ';) stem.len--;
  for (i = 0; i < E2B__COUNT(devices); i++)
    if (e2b__str_eq_nocase(stem, devices[i])) return "it is a device of Windows";
  if (stem.len >= 4 && (e2b__str_eq_nocase(e2b__str_n(stem.ptr, 3), "com") ||
                        e2b__str_eq_nocase(e2b__str_n(stem.ptr, 3), "lpt")) &&
      ((stem.len == 4 && e2b__is_digit(stem.ptr[3])) ||
       (stem.len == 5 && stem.ptr[3] == '\xc2' && strchr("\xb9\xb2\xb3", stem.ptr[4]))))
    return "it is a device of Windows";
  return NULL;
}

/* A name for a file that is not complete. */
static bool e2b__local_temp(char out[32]) {
  uint32_t random[2];
  if (!e2b__net_random(random, sizeof random)) return false;
  (void)snprintf(out, 32, ".e2b-%08lx%08lx.part", (unsigned long)random[0], (unsigned long)random[1]);
  return true;
}

#if !E2B__WIN32

#include <dirent.h>
#include <sys/stat.h>

typedef struct e2b__local_root {
  e2b__mem *mem;
  int fd;
} e2b__local_root;

typedef struct e2b__local_file {
  int fd, dir;   /* dir < 0: for reading, or not open */
  char temp[32];
} e2b__local_file;

static void e2b__local_file_init(e2b__local_file *file) {
  file->fd = file->dir = -1;
}

/* `make`: it is made when it is missing. */
static int e2b__local_root_open(e2b__local_root *root, e2b__mem *mem, const char *path, bool make) {
  root->mem = mem;
  root->fd = -1;
  if (make && mkdir(path, 0777) != 0 && errno != EEXIST) return errno;
  root->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  return root->fd < 0 ? errno : 0;
}

static void e2b__local_root_close(e2b__local_root *root) {
  if (root->fd >= 0) close(root->fd);
  root->fd = -1;
}

/* Opens the directory of this name, "" = the root itself, step by step so that no step is a link. */
static int e2b__local_dir(const e2b__local_root *root, const char *name, size_t len, int *out) {
  char part[E2B__LOCAL_PART + 1];
  int code = 0, fd = openat(root->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) code = errno;
  while (fd >= 0 && len) {
    const char *slash = (const char *)memchr(name, '/', len);
    size_t n = slash ? (size_t)(slash - name) : len;
    int next = -1;
    code = n < sizeof part ? 0 : ENAMETOOLONG;
    if (!code) {
      memcpy(part, name, n);
      part[n] = 0;
      next = openat(fd, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
      if (next < 0) code = errno;
    }
    close(fd);
    fd = next;
    name += n + (slash ? 1 : 0);
    len -= n + (slash ? 1 : 0);
  }
  *out = fd;
  return code;
}

/* The last part of a name. */
static const char *e2b__local_last(const char *name) {
  const char *slash = strrchr(name, '/');
  return slash ? slash + 1 : name;
}

static int e2b__local_parent(const e2b__local_root *root, const char *name, int *out) {
  const char *last = e2b__local_last(name);
  return e2b__local_dir(root, name, last > name ? (size_t)(last - name) - 1 : 0, out);
}

/* A directory that is there already is fine, unless it is a link to one. */
static int e2b__local_make_dir(const e2b__local_root *root, const char *name) {
  int dir, made, code = e2b__local_parent(root, name, &dir);
  if (code || !*name) {
    if (!code) close(dir);
    return code;
  }
  if (mkdirat(dir, e2b__local_last(name), 0777) != 0) code = errno;
  close(dir);
  if (code != EEXIST) return code;
  code = e2b__local_dir(root, name, strlen(name), &made);
  if (!code) close(made);
  return code;
}

static bool e2b__local_describe(int dir, const char *name, e2b__local_info *info) {
  struct stat st;
  if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) != 0) return false;
  info->kind = S_ISREG(st.st_mode)   ? E2B__LOCAL_FILE
               : S_ISDIR(st.st_mode) ? E2B__LOCAL_DIR
               : S_ISLNK(st.st_mode) ? E2B__LOCAL_LINK
                                     : E2B__LOCAL_OTHER;
  info->size = info->kind == E2B__LOCAL_FILE ? (uint64_t)st.st_size : 0;
  info->exec = (st.st_mode & S_IXUSR) != 0;
  return true;
}

/* What goes away meanwhile is left out. */
static int e2b__local_list(const e2b__local_root *root, const char *name, e2b__local_fn fn, void *user) {
  e2b__local_info info;
  struct dirent *entry;
  DIR *list;
  int fd, code = e2b__local_dir(root, name, strlen(name), &fd);
  if (code) return code;
  list = fdopendir(fd);
  if (!list) {
    code = errno;
    close(fd);
    return code;
  }
  for (errno = 0; (entry = readdir(list)) != NULL; errno = 0) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    if (!e2b__local_describe(fd, entry->d_name, &info)) continue;
    if (!fn(user, e2b__str(entry->d_name), &info)) break;
  }
  code = entry ? 0 : errno;
  (void)closedir(list);
  return code;
}

/* Takes "." and ".." out of a name. False when it leaves the root. */
static bool e2b__local_normalize(e2b__buf *name) {
  char *text = (char *)name->data;
  size_t in = 0, out = 0;
  while (in < name->len) {
    const char *slash = (const char *)memchr(text + in, '/', name->len - in);
    e2b_str part = e2b__str_n(text + in, slash ? (size_t)(slash - text) - in : name->len - in);
    in += part.len + 1;
    if (!part.len || e2b__str_eq(part, ".")) continue;
    if (e2b__str_eq(part, "..")) {
      if (!out) return false;
      while (out && text[--out] != '/') continue;
      continue;
    }
    if (out) text[out++] = '/';
    memmove(text + out, part.ptr, part.len);
    out += part.len;
  }
  name->len = out;
  return true;
}

/* Follows a link inside the root, not through other links to directories. *out is the name of the file it leads to, to
 * be freed with e2b__mem_free_str, or NULL when it leads to none. */
static int e2b__local_link(const e2b__local_root *root, const char *name, e2b__local_info *info, char **out) {
  char target[1024];
  const char *text = NULL;
  int dir, code, hops = 0;
  e2b__buf at;
  e2b__buf_init(&at, root->mem, 65536);
  e2b__buf_text(&at, name);
  for (info->kind = E2B__LOCAL_LINK; info->kind == E2B__LOCAL_LINK && hops < 8; hops++) {
    ssize_t n;
    text = e2b__buf_cstr(&at);
    info->kind = E2B__LOCAL_OTHER;
    if (!text || e2b__local_parent(root, text, &dir)) break;
    n = readlinkat(dir, e2b__local_last(text), target, sizeof target);
    close(dir);
    if (n <= 0 || n == (ssize_t)sizeof target || target[0] == '/') break;
    at.len = (size_t)(e2b__local_last(text) - text);
    e2b__buf_put(&at, target, (size_t)n);
    if (at.err || !e2b__local_normalize(&at)) break;
    text = e2b__buf_cstr(&at);
    if (!text || e2b__local_parent(root, text, &dir)) break;
    if (!e2b__local_describe(dir, e2b__local_last(text), info)) info->kind = E2B__LOCAL_OTHER;
    close(dir);
  }
  *out = info->kind == E2B__LOCAL_FILE ? e2b__mem_dup(root->mem, (const char *)at.data, at.len) : NULL;
  code = at.err == E2B_ERR_NO_MEMORY || (info->kind == E2B__LOCAL_FILE && !*out) ? ENOMEM : 0;
  e2b__buf_free(&at);
  return code;
}

/* For reading; only what is a file. */
static int e2b__local_open(const e2b__local_root *root, const char *name, e2b__local_file *file, uint64_t *size) {
  struct stat st;
  int dir, code = e2b__local_parent(root, name, &dir);
  if (code) return code;
  file->fd = openat(dir, e2b__local_last(name), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (file->fd < 0) code = errno;
  close(dir);
  if (!code && fstat(file->fd, &st) != 0) code = errno;
  if (!code && !S_ISREG(st.st_mode)) code = EINVAL;
  if (!code) *size = (uint64_t)st.st_size;
  return code;
}

/* *got is 0 at the end. */
static int e2b__local_read(e2b__local_file *file, void *buf, size_t cap, size_t *got) {
  ssize_t n;
  do n = read(file->fd, buf, cap);
  while (n < 0 && errno == EINTR);
  *got = n > 0 ? (size_t)n : 0;
  return n < 0 ? errno : 0;
}

/* A new file beside `name`; e2b__local_commit gives it that name. */
static int e2b__local_create(const e2b__local_root *root, const char *name, bool exec, e2b__local_file *file) {
  int code;
  if (!e2b__local_temp(file->temp)) return EIO;
  code = e2b__local_parent(root, name, &file->dir);
  if (code) return code;
  file->fd = openat(file->dir, file->temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, exec ? 0777 : 0666);
  return file->fd < 0 ? errno : 0;
}

static int e2b__local_write(e2b__local_file *file, const char *data, size_t len) {
  while (len) {
    ssize_t n = write(file->fd, data, len);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    data += n;
    len -= (size_t)n;
  }
  return 0;
}

/* Closes it; what was created and not committed is gone then. */
static void e2b__local_close(e2b__local_file *file) {
  if (file->fd >= 0) close(file->fd);
  if (file->fd >= 0 && file->dir >= 0) (void)unlinkat(file->dir, file->temp, 0);
  if (file->dir >= 0) close(file->dir);
  file->fd = file->dir = -1;
}

static int e2b__local_commit(const e2b__local_root *root, const char *name, e2b__local_file *file) {
  int code = close(file->fd) != 0 ? errno : 0;
  E2B__UNUSED(root);
  file->fd = -1;
  if (!code && renameat(file->dir, file->temp, file->dir, e2b__local_last(name)) != 0) code = errno;
  if (code) (void)unlinkat(file->dir, file->temp, 0);
  close(file->dir);
  file->dir = -1;
  return code;
}

#else /* Windows: whole paths, checked part by part. Reparse points (links, junctions) are never entered. */

typedef struct e2b__local_root {
  e2b__mem *mem;
  wchar_t *path; /* \\?\C:\..., which takes long paths and no device names */
  size_t size, len;
} e2b__local_root;

typedef struct e2b__local_file {
  HANDLE handle;
  wchar_t *temp; /* the path of what was created; NULL: for reading */
  size_t temp_size;
  e2b__mem *mem;
} e2b__local_file;

static void e2b__local_file_init(e2b__local_file *file) {
  file->handle = INVALID_HANDLE_VALUE;
  file->temp = NULL;
}

static int e2b__local_wide(e2b__mem *mem, const char *text, wchar_t **out, size_t *size) {
  int n = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1, NULL, 0);
  *out = NULL;
  if (n <= 0) return ERROR_INVALID_NAME;
  *size = (size_t)n * sizeof **out;
  *out = (wchar_t *)e2b__mem_alloc(mem, *size);
  if (!*out) return ERROR_NOT_ENOUGH_MEMORY;
  (void)MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1, *out, n);
  return 0;
}

static void e2b__local_root_close(e2b__local_root *root) {
  e2b__mem_free(root->mem, root->path, root->size);
  root->path = NULL;
}

static int e2b__local_root_open(e2b__local_root *root, e2b__mem *mem, const char *path, bool make) {
  size_t size, head = 0, skip = 0;
  wchar_t *wide;
  DWORD need, attributes;
  int code = e2b__local_wide(mem, path, &wide, &size);
  memset(root, 0, sizeof *root);
  root->mem = mem;
  if (code) return code;
  need = GetFullPathNameW(wide, 0, NULL, NULL);
  root->size = ((size_t)need + 8) * sizeof *root->path;
  root->path = need ? (wchar_t *)e2b__mem_alloc(mem, root->size) : NULL;
  if (root->path && !GetFullPathNameW(wide, need, root->path + 8, NULL)) root->path[8] = 0;
  e2b__mem_free(mem, wide, size);
  if (!root->path) return need ? ERROR_NOT_ENOUGH_MEMORY : ERROR_INVALID_NAME;
  if (wcsncmp(root->path + 8, L"\\\\?\\", 4) != 0) {
    skip = wcsncmp(root->path + 8, L"\\\\", 2) == 0 ? 2 : 0;
    head = skip ? 8 : 4;
    memcpy(root->path, skip ? L"\\\\?\\UNC\\" : L"\\\\?\\", head * sizeof *root->path);
  }
  root->len = wcslen(root->path + 8 + skip);
  memmove(root->path + head, root->path + 8 + skip, (root->len + 1) * sizeof *root->path);
  root->len += head;
  while (root->len && root->path[root->len - 1] == L'\\') root->path[--root->len] = 0;
  /* \\?\C: is the drive; its root is \\?\C:\, of which CreateDirectoryW does not say that it exists. */
  if (root->len && root->path[root->len - 1] == L':') memcpy(root->path + root->len, L"\\", 2 * sizeof *root->path);
  if (make && !CreateDirectoryW(root->path, NULL)) code = (int)GetLastError();
  attributes = GetFileAttributesW(root->path);
  root->path[root->len] = 0;
  if (attributes == INVALID_FILE_ATTRIBUTES) return code ? code : (int)GetLastError();
  return attributes & FILE_ATTRIBUTE_DIRECTORY ? 0 : ERROR_DIRECTORY;
}

/* The whole path of a name, of which no part but the last may be a reparse point; `tail` is put behind it. */
static int e2b__local_path(const e2b__local_root *root, const char *name, const wchar_t *tail, wchar_t **out,
                           size_t *size) {
  size_t i, name_size, tail_len = wcslen(tail);
  wchar_t *path, *wide;
  int code = e2b__local_wide(root->mem, name, &wide, &name_size);
  size_t len = wide ? wcslen(wide) : 0;
  *out = NULL;
  if (code) return code;
  *size = (root->len + 1 + len + tail_len + 1) * sizeof *path;
  path = (wchar_t *)e2b__mem_alloc(root->mem, *size);
  if (path) {
    memcpy(path, root->path, root->len * sizeof *path);
    path[root->len] = L'\\';
    memcpy(path + root->len + 1, wide, len * sizeof *path);
    memcpy(path + root->len + 1 + len, tail, (tail_len + 1) * sizeof *path);
  }
  e2b__mem_free(root->mem, wide, name_size);
  if (!path) return ERROR_NOT_ENOUGH_MEMORY;
  for (i = root->len + 1; i < root->len + 1 + len; i++) {
    DWORD attributes;
    if (path[i] != L'/') continue;
    path[i] = 0;
    attributes = GetFileAttributesW(path);
    path[i] = L'\\';
    if (attributes != INVALID_FILE_ATTRIBUTES && !(attributes & FILE_ATTRIBUTE_REPARSE_POINT)) continue;
    e2b__mem_free(root->mem, path, *size);
    return attributes == INVALID_FILE_ATTRIBUTES ? ERROR_PATH_NOT_FOUND : ERROR_CANT_RESOLVE_FILENAME;
  }
  *out = path;
  return 0;
}

static int e2b__local_make_dir(const e2b__local_root *root, const char *name) {
  size_t size;
  wchar_t *path;
  DWORD attributes;
  int code = *name ? e2b__local_path(root, name, L"", &path, &size) : 0;
  if (code || !*name) return code;
  if (!CreateDirectoryW(path, NULL)) code = (int)GetLastError();
  attributes = code == ERROR_ALREADY_EXISTS ? GetFileAttributesW(path) : INVALID_FILE_ATTRIBUTES;
  if (attributes != INVALID_FILE_ATTRIBUTES && attributes & FILE_ATTRIBUTE_DIRECTORY)
    code = attributes & FILE_ATTRIBUTE_REPARSE_POINT ? ERROR_CANT_RESOLVE_FILENAME : 0;
  e2b__mem_free(root->mem, path, size);
  return code;
}

static int e2b__local_list(const e2b__local_root *root, const char *name, e2b__local_fn fn, void *user) {
  char text[3 * MAX_PATH + 1];
  e2b__local_info info;
  WIN32_FIND_DATAW found;
  HANDLE list;
  size_t size;
  wchar_t *path;
  int code = e2b__local_path(root, name, *name ? L"\\*" : L"*", &path, &size);
  if (code) return code;
  list = FindFirstFileW(path, &found);
  if (list == INVALID_HANDLE_VALUE) code = (int)GetLastError();
  e2b__mem_free(root->mem, path, size);
  while (!code) {
    int n = WideCharToMultiByte(CP_UTF8, 0, found.cFileName, -1, text, (int)sizeof text, NULL, NULL);
    info.kind = found.dwFileAttributes & FILE_ATTRIBUTE_REPARSE_POINT ? E2B__LOCAL_LINK
                : found.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY   ? E2B__LOCAL_DIR
                                                                      : E2B__LOCAL_FILE;
    info.size = (uint64_t)found.nFileSizeHigh << 32 | found.nFileSizeLow;
    info.exec = false;
    if (n > 0 && strcmp(text, ".") != 0 && strcmp(text, "..") != 0 && !fn(user, e2b__str(text), &info)) break;
    if (!FindNextFileW(list, &found)) code = (int)GetLastError();
  }
  if (list != INVALID_HANDLE_VALUE) FindClose(list);
  return code == ERROR_NO_MORE_FILES || code == ERROR_FILE_NOT_FOUND ? 0 : code;
}

static int e2b__local_link(const e2b__local_root *root, const char *name, e2b__local_info *info, char **out) {
  E2B__UNUSED(root);
  E2B__UNUSED(name);
  E2B__UNUSED(info);
  *out = NULL;
  return 0;
}

static int e2b__local_open(const e2b__local_root *root, const char *name, e2b__local_file *file, uint64_t *size) {
  BY_HANDLE_FILE_INFORMATION info;
  size_t path_size;
  wchar_t *path;
  int code = e2b__local_path(root, name, L"", &path, &path_size);
  if (code) return code;
  file->handle = CreateFileW(path, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, NULL,
                             OPEN_EXISTING, FILE_FLAG_OPEN_REPARSE_POINT | FILE_FLAG_SEQUENTIAL_SCAN, NULL);
  if (file->handle == INVALID_HANDLE_VALUE || !GetFileInformationByHandle(file->handle, &info))
    code = (int)GetLastError();
  e2b__mem_free(root->mem, path, path_size);
  if (code) return code;
  if (info.dwFileAttributes & (FILE_ATTRIBUTE_REPARSE_POINT | FILE_ATTRIBUTE_DIRECTORY)) return ERROR_INVALID_PARAMETER;
  *size = (uint64_t)info.nFileSizeHigh << 32 | info.nFileSizeLow;
  return 0;
}

static int e2b__local_read(e2b__local_file *file, void *buf, size_t cap, size_t *got) {
  DWORD n = 0;
  int code = ReadFile(file->handle, buf, (DWORD)E2B__MIN(cap, (size_t)1 << 30), &n, NULL) ? 0 : (int)GetLastError();
  *got = n;
  return code;
}

static int e2b__local_create(const e2b__local_root *root, const char *name, bool exec, e2b__local_file *file) {
  char temp[32];
  e2b__buf beside;
  const char *slash = strrchr(name, '/');
  int code = ERROR_NOT_ENOUGH_MEMORY;
  E2B__UNUSED(exec);
  if (!e2b__local_temp(temp)) return ERROR_GEN_FAILURE;
  e2b__buf_init(&beside, root->mem, SIZE_MAX);
  e2b__buf_put(&beside, name, slash ? (size_t)(slash - name) + 1 : 0);
  e2b__buf_text(&beside, temp);
  file->mem = root->mem;
  if (e2b__buf_cstr(&beside))
    code = e2b__local_path(root, (const char *)beside.data, L"", &file->temp, &file->temp_size);
  e2b__buf_free(&beside);
  if (code) return code;
  file->handle = CreateFileW(file->temp, GENERIC_WRITE, 0, NULL, CREATE_NEW, FILE_ATTRIBUTE_NORMAL, NULL);
  return file->handle == INVALID_HANDLE_VALUE ? (int)GetLastError() : 0;
}

static int e2b__local_write(e2b__local_file *file, const char *data, size_t len) {
  while (len) {
    DWORD n = 0;
    if (!WriteFile(file->handle, data, (DWORD)E2B__MIN(len, (size_t)1 << 30), &n, NULL)) return (int)GetLastError();
    data += n;
    len -= n;
  }
  return 0;
}

static void e2b__local_close(e2b__local_file *file) {
  bool open = file->handle != INVALID_HANDLE_VALUE;
  if (open) CloseHandle(file->handle);
  if (open && file->temp) DeleteFileW(file->temp);
  if (file->temp) e2b__mem_free(file->mem, file->temp, file->temp_size);
  e2b__local_file_init(file);
}

static int e2b__local_commit(const e2b__local_root *root, const char *name, e2b__local_file *file) {
  size_t size;
  wchar_t *path;
  int code = e2b__local_path(root, name, L"", &path, &size);
  if (!CloseHandle(file->handle) && !code) code = (int)GetLastError();
  file->handle = INVALID_HANDLE_VALUE;
  if (!code && !MoveFileExW(file->temp, path, MOVEFILE_REPLACE_EXISTING)) code = (int)GetLastError();
  if (code) DeleteFileW(file->temp);
  if (path) e2b__mem_free(root->mem, path, size);
  e2b__local_close(file);
  return code;
}

#endif
#endif /* E2B_NO_LOCAL_FILES */
/* ================================================================================================================== */
/* >>>> trees */
/* ================================================================================================================== */

#ifndef E2B_NO_LOCAL_FILES

#define E2B__TREE_DEPTH 128u

typedef struct e2b__tree {
  e2b__bulk bulk;
  e2b__local_root root;
  bool opened;
  uint32_t listings; /* directories being listed */
  char *base;        /* download: what the server calls the directory, in full; for the targets of links */
} e2b__tree;

/* A directory in the sandbox. Texts keep their length: a NUL in a name must not hide the rest of it. */
typedef struct e2b__listing_item {
  e2b_str name, path, target;
  bool link;
  e2b_entry_type type;
  uint64_t size;
  uint32_t mode;
} e2b__listing_item;

typedef struct e2b__listing {
  e2b_mem mem;
  const e2b__listing_item *items;
  size_t count;
} e2b__listing;

typedef struct e2b__tree_job {
  e2b__bulk_job job;
  e2b__local_file file;
  e2b__listing listing;
  e2b_command_result result;
} e2b__tree_job;

static e2b__tree *e2b__tree_of(e2b__bulk_job *job) {
  return (e2b__tree *)job->bulk;
}

static e2b_err e2b__tree_failed(e2b_error *err, int code, const char *what) {
#if E2B__WIN32
  bool no_memory = code == ERROR_NOT_ENOUGH_MEMORY;
#else
  bool no_memory = code == ENOMEM;
#endif
  if (no_memory) return e2b__no_memory(err);
  e2b__error_set(err, E2B_ERR_IO, E2B_PHASE_NONE, "%s failed on this machine (system code %d)", what, code);
  err->sys_code = code;
  return E2B_ERR_IO;
}

static void e2b__tree_report(e2b__bulk *bulk, const e2b__bulk_entry *entry, bool skipped, const e2b_error *result) {
  e2b_bulk_file file;
  if (!bulk->opts.on_file || (entry->dir && !skipped && !result->code)) return;
  file.name = entry->name;
  file.size = entry->size;
  file.skipped = skipped;
  file.result = result;
  if (bulk->opts.on_file(bulk->opts.callback_user, &file) < 0) e2b__bulk_canceled(bulk);
}

static void e2b__tree_refuse(e2b__bulk *bulk, e2b__bulk_entry *entry, e2b_err code, const char *message) {
  e2b_error err;
  (void)e2b__fail(&err, code, message);
  e2b__bulk_report(bulk, entry, false, &err);
}

static void e2b__tree_skip(e2b__bulk *bulk, e2b__bulk_entry *entry, const char *why) {
  e2b_error err;
  (void)e2b__fail(&err, E2B_OK, why);
  e2b__bulk_report(bulk, entry, true, &err);
}

static void e2b__tree_release(e2b__bulk *bulk) {
  e2b__tree *tree = (e2b__tree *)bulk;
  if (tree->opened) e2b__local_root_close(&tree->root);
  tree->opened = false;
  e2b__mem_free_str(&bulk->op.client->mem, tree->base);
  tree->base = NULL;
}

static void e2b__tree_job_release(e2b__bulk_job *job) {
  e2b__tree_job *tree_job = (e2b__tree_job *)job;
  e2b__local_close(&tree_job->file);
  e2b_mem_free(&tree_job->listing.mem);
  e2b_mem_free(&tree_job->result.mem);
}

static e2b__tree_job *e2b__tree_job_new(e2b__bulk *bulk, e2b__bulk_entry *entries,
                                        void (*ended)(e2b__bulk_job *job, e2b_error *err)) {
  e2b__tree_job *job = (e2b__tree_job *)e2b__bulk_job_new(bulk, sizeof *job, entries);
  if (!job) return NULL;
  e2b__local_file_init(&job->file);
  job->job.release = e2b__tree_job_release;
  job->job.ended = ended;
  return job;
}

/* Queues what was found, as its kind. */
static void e2b__tree_found(e2b__bulk *bulk, e2b__bulk_entry *entry, bool dir) {
  bulk->moved = true;
  entry->dir = dir;
  if (dir) {
    bulk->stats.dirs_found++;
    e2b__bulk_put_first(&bulk->dirs, entry); /* deep first: fewer names wait */
  } else {
    bulk->stats.files_found++;
    bulk->stats.bytes_found += entry->size;
    e2b__bulk_put(&bulk->files, entry);
  }
}

/* The size of a file is what it has when it is opened. */
static void e2b__tree_resize(e2b__bulk *bulk, e2b__bulk_entry *entry, uint64_t size) {
  bulk->stats.bytes_found += size - entry->size;
  entry->size = size;
}

/* ---- up ---- */

typedef struct e2b__upload_walk {
  e2b__bulk *bulk;
  const e2b__bulk_entry *parent;
  size_t count;
  bool no_memory;
} e2b__upload_walk;

/* An entry for what a local directory holds; for a link that may be followed, as the file it leads to. NULL without
 * memory. */
static e2b__bulk_entry *e2b__upload_entry(const e2b__upload_walk *walk, e2b_str name, e2b__local_info *info) {
  e2b__bulk *bulk = walk->bulk;
  e2b_str parent = e2b__str(walk->parent->path);
  e2b__bulk_entry *link, *entry = e2b__bulk_entry_new(bulk, parent, name, e2b__str(NULL));
  char *target;
  if (!entry || info->kind != E2B__LOCAL_LINK) return entry;
  if (e2b__local_link(&((e2b__tree *)bulk)->root, entry->name, info, &target)) {
    e2b__object_free(bulk->op.client, entry);
    return NULL;
  }
  if (!target) info->kind = E2B__LOCAL_LINK;
  if (!target) return entry;
  link = e2b__bulk_entry_new(bulk, parent, name, e2b__str(target));
  e2b__mem_free_str(&bulk->op.client->mem, target);
  e2b__object_free(bulk->op.client, entry);
  return link;
}

static bool e2b__upload_found(void *user, e2b_str name, const e2b__local_info *found) {
  e2b__upload_walk *walk = (e2b__upload_walk *)user;
  e2b__bulk *bulk = walk->bulk;
  e2b__local_info info = *found;
  e2b__bulk_entry *entry = e2b__upload_entry(walk, name, &info);
  walk->no_memory = !entry;
  if (!entry) return false;
  entry->depth = walk->parent->depth + 1;
  entry->size = info.size;
  entry->exec = info.exec;
  if (info.kind == E2B__LOCAL_LINK)
    e2b__tree_skip(bulk, entry, "a link, but not to a file inside the tree");
  else if (info.kind == E2B__LOCAL_OTHER)
    e2b__tree_skip(bulk, entry, "neither a file nor a directory");
  else if (!e2b__text_ok(entry->path))
    e2b__tree_refuse(bulk, entry, E2B_ERR_INVALID_ARGUMENT, "the name has a control character");
  else if (entry->depth > E2B__TREE_DEPTH)
    e2b__tree_refuse(bulk, entry, E2B_ERR_LIMIT, "too many directories inside each other");
  else {
    walk->count++;
    e2b__tree_found(bulk, entry, info.kind == E2B__LOCAL_DIR);
  }
  return !bulk->op.finished;
}

/* Reads one directory. One without files and directories has to be made by itself, all others are made by those. */
static void e2b__upload_list(e2b__bulk *bulk) {
  e2b__bulk_entry *dir = e2b__bulk_take(&bulk->dirs);
  e2b__upload_walk walk;
  e2b_error err;
  int code;
  walk.bulk = bulk;
  walk.parent = dir;
  walk.count = 0;
  walk.no_memory = false;
  memset(&err, 0, sizeof err);
  code = e2b__local_list(&((e2b__tree *)bulk)->root, dir->local, e2b__upload_found, &walk);
  bulk->stats.all_found = !bulk->dirs.first;
  if (bulk->op.finished || (!code && walk.count && !walk.no_memory)) {
    e2b__object_free(bulk->op.client, dir);
  } else if (walk.no_memory || code) {
    if (walk.no_memory) (void)e2b__no_memory(&err); else (void)e2b__tree_failed(&err, code, "reading the directory");
    if (walk.no_memory) e2b__bulk_stop(bulk, &err);
    e2b__bulk_report(bulk, dir, false, &err);
  } else {
    e2b__bulk_put(&bulk->files, dir);
  }
}

/* Written: those that must be executable wait for that. */
static void e2b__upload_ended(e2b__bulk_job *job, e2b_error *err) {
  e2b__bulk *bulk = job->bulk;
  e2b__bulk_entry **at = &job->entries, *entry;
  if (err->code || bulk->opts.no_exec_bits) return;
  while ((entry = *at) != NULL) {
    if (!entry->exec || entry->dir) {
      at = &entry->next;
      continue;
    }
    *at = entry->next;
    e2b__bulk_put(&bulk->execs, entry);
  }
}

static int e2b__upload_source(void *user, void *buf, size_t cap) {
  e2b__tree_job *job = (e2b__tree_job *)user;
  size_t got;
  int code = e2b__local_read(&job->file, buf, E2B__MIN(cap, (size_t)1 << 20), &got);
  if (code) {
    (void)e2b__tree_failed(&job->job.local, code, "reading the file");
    return -1;
  }
  job->job.moved += got;
  job->job.bulk->stats.bytes_done += got;
  job->job.bulk->moved = true;
  return (int)got;
}

/* One file, straight from the disk. */
static void e2b__upload_one(e2b__tree_job *job) {
  e2b__bulk *bulk = job->job.bulk;
  e2b__bulk_entry *entry = job->job.entries;
  uint64_t size = 0;
  e2b_error err;
  e2b_err code;
  int sys = e2b__local_open(&e2b__tree_of(&job->job)->root, entry->local, &job->file, &size);
  if (sys) {
    entry->tried = true;
    code = e2b__tree_failed(&err, sys, "opening the file");
  } else {
    e2b__tree_resize(bulk, entry, size);
    job->job.streams = true;
    code = e2b_files_upload(bulk->op.sandbox, entry->path, e2b__upload_source, job, (int64_t)size, &job->job.opts, NULL,
                            &err);
  }
  e2b__bulk_job_started(&job->job, code, &err);
}

/* Reads a small file into the request. E2B_PENDING: it is not that small any more. */
static e2b_err e2b__upload_read(e2b__bulk *bulk, e2b__batch *batch, e2b__bulk_entry *entry, e2b_error *err) {
  e2b__buf *body = &batch->data.task.req.body;
  e2b__local_file file;
  uint64_t size = 0;
  size_t start = body->len, done = 0, got = 1;
  uint8_t *to = NULL;
  int code;
  e2b__local_file_init(&file);
  code = e2b__local_open(&((e2b__tree *)bulk)->root, entry->local, &file, &size);
  if (!code && size <= bulk->opts.batch_bytes) {
    e2b__batch_part(batch, entry->path);
    to = e2b__buf_reserve(body, (size_t)size + 1);
    while (to && !code && got && done <= (size_t)size) {
      code = e2b__local_read(&file, to + done, (size_t)size + 1 - done, &got);
      done += got;
    }
    if (to) body->len += done;
  }
  e2b__local_close(&file);
  if (!code && !body->err && to && done <= (size_t)size) {
    e2b__tree_resize(bulk, entry, done);
    return E2B_OK;
  }
  body->len = start;
  if (body->err) return E2B_OK; /* the request as a whole fails */
  return code ? e2b__tree_failed(err, code, "reading the file") : E2B_PENDING;
}

static void e2b__upload_batch(e2b__tree_job *job) {
  e2b__bulk *bulk = job->job.bulk;
  e2b__bulk_entry **at = &job->job.entries, *entry;
  e2b_error err;
  e2b__batch *batch = e2b__batch_new(&job->job, &err);
  e2b_err code = batch ? E2B_OK : err.code;
  while (batch && (entry = *at) != NULL && !bulk->op.finished) {
    code = e2b__upload_read(bulk, batch, entry, &err);
    if (code == E2B_OK) {
      at = &entry->next;
      continue;
    }
    *at = entry->next;
    entry->together = 1;
    if (code == E2B_PENDING) e2b__bulk_put(&bulk->files, entry);
    else e2b__bulk_report(bulk, entry, false, &err);
  }
  if (batch && (bulk->op.finished || !job->job.entries)) {
    e2b__op_release(&batch->data.task.op);
    e2b__bulk_job_free(&job->job);
    return;
  }
  if (batch) code = e2b__batch_run(batch, &err);
  e2b__bulk_job_started(&job->job, code, &err);
}

static void e2b__upload_send(e2b__bulk *bulk) {
  e2b__bulk_entry *entries = e2b__batch_take(bulk);
  e2b__tree_job *job = e2b__tree_job_new(bulk, entries, e2b__upload_ended);
  e2b_error err;
  e2b_err code;
  if (!job) return;
  if (entries->dir) {
    code = e2b_files_make_dir(bulk->op.sandbox, entries->path, &job->job.opts, NULL, &err);
    e2b__bulk_job_started(&job->job, code, &err);
  } else if (entries->next) {
    e2b__upload_batch(job);
  } else {
    e2b__upload_one(job);
  }
}

/* A path as a word for the shell, which runs in the home directory, where relative paths begin. */
static void e2b__shell_path(e2b__buf *out, const char *path) {
  if (path[0] == '~' && (!path[1] || path[1] == '/')) path += path[1] ? 2 : 1;
  e2b__buf_text(out, path[0] == '/' ? " '" : " './");
  for (; *path; path++) {
    if (*path == '\'') e2b__buf_text(out, "'\\'"); /* and the quote itself opens again */
    e2b__buf_byte(out, (uint8_t)*path);
  }
  e2b__buf_byte(out, '\'');
}

static void e2b__chmod_ended(e2b__bulk_job *job, e2b_error *err) {
  static const char what[] = "written, but not made executable";
  e2b__tree_job *tree_job = (e2b__tree_job *)job;
  e2b__bulk_entry *entry;
  char said[120];
  if (!err->code) return;
  for (entry = job->entries; entry; entry = entry->next) entry->tried = true;
  err->http_status = 0;
  if (err->code != E2B_COMMAND_EXIT) {
    (void)e2b__files_say_before(err, err->code, what);
    return;
  }
  e2b__error_excerpt(said, sizeof said, (const uint8_t *)tree_job->result.stderr_data.ptr,
                     tree_job->result.stderr_data.len);
  (void)e2b__error_say(err, E2B_ERR_SERVICE, "%s: %s", what, said);
}

/* Makes executable what has to be, as many as one command line takes. */
static void e2b__upload_chmod(e2b__bulk *bulk) {
  e2b__bulk_queue some;
  e2b__tree_job *job;
  e2b_run_opts run;
  e2b__buf line;
  e2b_error err;
  e2b_err code;
  const char *command;
  memset(&some, 0, sizeof some);
  memset(&run, 0, sizeof run);
  e2b__buf_init(&line, &bulk->op.client->mem, SIZE_MAX);
  e2b__buf_text(&line, "cd && chmod a+x --");
  while (bulk->execs.first && line.len < 60000) {
    e2b__shell_path(&line, bulk->execs.first->path);
    e2b__bulk_put(&some, e2b__bulk_take(&bulk->execs));
  }
  command = e2b__buf_cstr(&line);
  job = e2b__tree_job_new(bulk, some.first, e2b__chmod_ended);
  if (job) {
    job->job.streams = true; /* its bytes count already */
    run.call = job->job.opts.call;
    run.user = job->job.opts.user;
    run.max_collect = 4096;
    code = command ? e2b_commands_run(bulk->op.sandbox, command, &run, &job->result, &err) : e2b__no_memory(&err);
    e2b__bulk_job_started(&job->job, code, &err);
  }
  e2b__buf_free(&line);
}

/* Finds enough for a whole request before it sends one, and goes on finding while all requests are under way. */
static bool e2b__upload_start(e2b__bulk *bulk) {
  bool few = bulk->files.count < E2B__BULK_TOGETHER && bulk->files.bytes < bulk->opts.batch_bytes;
  bool busy = bulk->active >= bulk->opts.parallel;
  if (bulk->dirs.first && (few || busy))
    e2b__upload_list(bulk);
  else if (busy)
    return false;
  else if (bulk->files.first)
    e2b__upload_send(bulk);
  else if (bulk->execs.first && !bulk->active)
    e2b__upload_chmod(bulk);
  else
    return false;
  return true;
}

static const e2b__bulk_type e2b__upload_tree_type = { e2b__upload_start, e2b__tree_report, e2b__tree_release };

/* ---- down ---- */

static void e2b__fill_listing(e2b__pack *pack, const void *from, void *out) {
  const e2b__list *entries = &((const e2b__list_dir_response *)from)->entries;
  const e2b__entry_info *entry = (const e2b__entry_info *)entries->items;
  e2b__listing_item *items = (e2b__listing_item *)e2b__pack_alloc(pack, entries->count * sizeof *items);
  e2b__listing *listing = (e2b__listing *)out;
  size_t i;
  for (i = 0; i < entries->count; i++, entry++) {
    e2b__listing_item item;
    memset(&item, 0, sizeof item);
    item.name = e2b__str_n(e2b__pack_str(pack, entry->name), entry->name.len);
    item.path = e2b__str_n(e2b__pack_str(pack, entry->path), entry->path.len);
    item.target = e2b__str_n(e2b__pack_str(pack, entry->symlink_target), entry->symlink_target.len);
    item.link = entry->has_symlink_target;
    item.type = e2b__entry_type(entry->type);
    item.size = entry->size > 0 ? (uint64_t)entry->size : 0;
    item.mode = entry->mode;
    if (items) items[i] = item;
  }
  if (!items) return;
  listing->items = items;
  listing->count = entries->count;
}

/* Whether a link leads to a file inside the tree. What the server says of it decides only what is read there. */
static bool e2b__download_inside(const e2b__tree *tree, const e2b__listing_item *item) {
  size_t len = tree->base ? strlen(tree->base) : 0;
  return tree->base && item->type == E2B_ENTRY_FILE && item->target.len > len + 1 &&
         memcmp(item->target.ptr, tree->base, len) == 0 && item->target.ptr[len] == '/';
}

/* Whether the names that wait take more memory than a sandbox may cost: long ones many levels deep are cheap for it. */
static bool e2b__download_too_much(const e2b__bulk *bulk) {
  size_t most = (size_t)bulk->op.client->config.max_message_bytes * 4;
  return bulk->files.memory + bulk->dirs.memory > E2B__MAX(most, (size_t)1 << 20);
}

static void e2b__download_found(e2b__tree *tree, const e2b__bulk_entry *parent, const e2b__listing_item *item,
                                e2b_error *err) {
  e2b__bulk *bulk = &tree->bulk;
  const char *refused = e2b__local_refused(item->name, E2B__WIN32);
  e2b__bulk_entry *entry = e2b__bulk_entry_new(bulk, e2b__str(parent->path), refused ? e2b__str("?") : item->name,
                                               e2b__str(NULL));
  if (!entry) {
    (void)e2b__no_memory(err);
    return;
  }
  entry->depth = parent->depth + 1;
  entry->size = item->type == E2B_ENTRY_FILE && !item->link ? item->size : 0; /* of a link: its own */
  entry->exec = (item->mode & 0100u) != 0 && !bulk->opts.no_exec_bits;
  if (refused) {
    char name[60], words[160];
    e2b__error_excerpt(name, sizeof name, (const uint8_t *)item->name.ptr, item->name.len);
    (void)snprintf(words, sizeof words, "refused the name \"%s\": %s", name, refused);
    e2b__tree_refuse(bulk, entry, E2B_ERR_PROTOCOL, words);
  } else if (item->link && !e2b__download_inside(tree, item)) {
    e2b__tree_skip(bulk, entry, "a link, but not to a file inside the tree");
  } else if (item->type != E2B_ENTRY_FILE && item->type != E2B_ENTRY_DIR) {
    e2b__tree_skip(bulk, entry, "neither a file nor a directory");
  } else if (entry->depth > E2B__TREE_DEPTH) {
    e2b__tree_refuse(bulk, entry, E2B_ERR_LIMIT, "too many directories inside each other");
  } else if (bulk->stats.files_found + bulk->stats.dirs_found >= bulk->opts.max_files) {
    e2b__error_set(err, E2B_ERR_LIMIT, E2B_PHASE_NONE, "more than max_files (%lu) files and directories",
                   (unsigned long)bulk->opts.max_files);
    e2b__object_free(bulk->op.client, entry);
  } else if (e2b__download_too_much(bulk)) {
    e2b__error_set(err, E2B_ERR_LIMIT, E2B_PHASE_NONE, "the names of the files take more than 4 times max_message_bytes");
    e2b__object_free(bulk->op.client, entry);
  } else {
    e2b__tree_found(bulk, entry, item->type == E2B_ENTRY_DIR);
  }
}

/* What the server calls the root: the path of one of its entries without the name. False without memory. */
static bool e2b__download_base(e2b__tree *tree, const e2b__listing *listing) {
  const e2b__listing_item *item = listing->items;
  size_t len;
  if (tree->base || !listing->count || item->path.len <= item->name.len) return true;
  len = item->path.len - item->name.len - 1;
  if (item->path.ptr[len] != '/') return true;
  tree->base = e2b__mem_dup(&tree->bulk.op.client->mem, item->path.ptr, len);
  return tree->base != NULL;
}

static void e2b__download_listed(e2b__bulk_job *job, e2b_error *err) {
  e2b__tree *tree = e2b__tree_of(job);
  e2b__bulk *bulk = job->bulk;
  const e2b__listing *listing = &((e2b__tree_job *)job)->listing;
  const e2b__bulk_entry *dir = job->entries;
  size_t i;
  int code;
  tree->listings--;
  if (!err->code) {
    code = e2b__local_make_dir(&tree->root, dir->local);
    if (code) (void)e2b__tree_failed(&job->local, code, "making the directory");
    if (code) *err = job->local;
  }
  if (!err->code && !dir->depth && !e2b__download_base(tree, listing)) (void)e2b__no_memory(err);
  for (i = 0; i < listing->count && !err->code && !bulk->op.finished; i++) {
    e2b__download_found(tree, dir, &listing->items[i], err);
    if (err->code) job->local = *err;
    if (err->code) e2b__bulk_stop(bulk, err);
  }
  bulk->stats.all_found = !bulk->dirs.first && !tree->listings;
}

static void e2b__download_list(e2b__bulk *bulk) {
  e2b__bulk_entry *dir = e2b__bulk_take(&bulk->dirs);
  e2b__tree_job *job = e2b__tree_job_new(bulk, dir, e2b__download_listed);
  e2b__list_dir_request request;
  e2b__data_task *data;
  e2b_error err;
  e2b_err code;
  if (!job) return;
  job->job.streams = true; /* a directory counts for nothing */
  request.path = e2b__str(dir->path);
  request.depth = 1;
  data = e2b__files_rpc_new(bulk->op.sandbox, "/filesystem.Filesystem/ListDir", &e2b__msg_list_dir_request, &request,
                            &job->job.opts, &err);
  if (data) {
    data->answer = &e2b__msg_list_dir_response;
    data->fill = e2b__fill_listing;
    data->task.out = &job->listing;
    data->task.req.idempotent = true;
  }
  code = data ? e2b__task_run(&data->task, &job->job.opts.call, &err) : err.code;
  if (code == E2B_PENDING) ((e2b__tree *)bulk)->listings++;
  e2b__bulk_job_started(&job->job, code, &err);
}

static int e2b__download_sink(void *user, const char *data, size_t len) {
  e2b__tree_job *job = (e2b__tree_job *)user;
  e2b__bulk *bulk = job->job.bulk;
  int code;
  job->job.moved += len;
  bulk->stats.bytes_done += len;
  bulk->moved = true;
  if (bulk->stats.bytes_done > bulk->opts.max_bytes) {
    e2b__error_set(&job->job.local, E2B_ERR_LIMIT, E2B_PHASE_BODY, "more than max_bytes (%llu)",
                   (unsigned long long)bulk->opts.max_bytes);
    e2b__bulk_stop(bulk, &job->job.local);
    return -1;
  }
  code = e2b__local_write(&job->file, data, len);
  if (code) (void)e2b__tree_failed(&job->job.local, code, "writing the file");
  return code ? -1 : 0;
}

static void e2b__download_ended(e2b__bulk_job *job, e2b_error *err) {
  int code;
  if (err->code) return;
  e2b__tree_resize(job->bulk, job->entries, job->moved); /* that of a link was not known, others may have grown */
  code = e2b__local_commit(&e2b__tree_of(job)->root, job->entries->local, &((e2b__tree_job *)job)->file);
  if (code) (void)e2b__tree_failed(&job->local, code, "giving the file its name");
  if (code) *err = job->local;
}

static void e2b__download_one(e2b__bulk *bulk) {
  e2b__bulk_entry *entry = e2b__bulk_take(&bulk->files);
  e2b__tree_job *job = e2b__tree_job_new(bulk, entry, e2b__download_ended);
  e2b_error err;
  e2b_err code;
  int sys;
  if (!job) return;
  job->job.streams = true;
  sys = e2b__local_create(&e2b__tree_of(&job->job)->root, entry->local, entry->exec, &job->file);
  if (sys) {
    entry->tried = true;
    code = e2b__tree_failed(&err, sys, "creating the file");
  } else {
    code = e2b_files_download(bulk->op.sandbox, entry->path, e2b__download_sink, job, &job->job.opts, &err);
  }
  e2b__bulk_job_started(&job->job, code, &err);
}

static bool e2b__download_start(e2b__bulk *bulk) {
  if (bulk->active >= bulk->opts.parallel)
    return false;
  else if (bulk->files.first)
    e2b__download_one(bulk);
  else if (bulk->dirs.first)
    e2b__download_list(bulk);
  else
    return false;
  return true;
}

static const e2b__bulk_type e2b__download_tree_type = { e2b__download_start, e2b__tree_report, e2b__tree_release };

/* ---- both ---- */

static e2b_err e2b__tree_run(e2b_sandbox *sandbox, const e2b__bulk_type *type, const char *local_dir,
                             const char *remote_dir, const e2b_bulk_opts *opts, e2b_bulk_stats *out, e2b_error *err) {
  bool down = type == &e2b__download_tree_type;
  e2b_str remote = e2b__str(remote_dir);
  e2b__bulk_entry *root;
  e2b__tree *tree;
  int code;
  if (out) memset(out, 0, sizeof *out);
  if (e2b__bulk_check(sandbox, opts, err) || e2b__path_check("remote_dir", remote_dir, err)) return err->code;
  if (!e2b__given(local_dir)) return e2b__invalid(err, "local_dir", "is empty");
  tree = (e2b__tree *)e2b__bulk_new(sandbox, type, sizeof *tree, opts, err);
  if (!tree) return err->code;
  while (remote.len > 1 && remote.ptr[remote.len - 1] == '/') remote.len--;
  tree->bulk.name_at = remote.len + (remote.ptr[remote.len - 1] == '/' ? 0 : 1);
  tree->bulk.out = out;
  tree->opened = true;
  code = e2b__local_root_open(&tree->root, &sandbox->client->mem, local_dir, down);
  root = code ? NULL : e2b__bulk_entry_new(&tree->bulk, e2b__str(NULL), remote, e2b__str(NULL));
  if (!root) {
    if (code) (void)e2b__tree_failed(err, code, "opening local_dir"); else (void)e2b__no_memory(err);
    e2b__op_release(&tree->bulk.op);
    return err->code;
  }
  root->dir = true;
  e2b__bulk_put(&tree->bulk.dirs, root);
  return e2b__op_run(&tree->bulk.op, opts ? &opts->call : NULL, err);
}

E2B_API e2b_err e2b_files_upload_tree(e2b_sandbox *sandbox, const char *local_dir, const char *remote_dir,
                                      const e2b_bulk_opts *opts, e2b_bulk_stats *out, e2b_error *err) {
  e2b_error local;
  return e2b__tree_run(sandbox, &e2b__upload_tree_type, local_dir, remote_dir, opts, out, err ? err : &local);
}

E2B_API e2b_err e2b_files_download_tree(e2b_sandbox *sandbox, const char *remote_dir, const char *local_dir,
                                        const e2b_bulk_opts *opts, e2b_bulk_stats *out, e2b_error *err) {
  e2b_error local;
  return e2b__tree_run(sandbox, &e2b__download_tree_type, local_dir, remote_dir, opts, out, err ? err : &local);
}

#endif /* E2B_NO_LOCAL_FILES */
/* ================================================================================================================== */
/* >>>> watch */
/* ================================================================================================================== */
#ifndef E2B_NO_WATCH

/* What is asked for, copied: it is asked again after a loss. */
typedef struct e2b__watch_request_copy {
  e2b_mem mem;
  const char *path, *user;
  e2b_kvs headers;
} e2b__watch_request_copy;

/* Events in the form callers get them, and the id of a watcher. */
typedef struct e2b__watch_events {
  e2b_mem mem;
  const e2b_fs_event *items;
  size_t count;
} e2b__watch_events;

typedef struct e2b__watch_id {
  e2b_mem mem;
  const char *text; /* NULL = no watcher */
} e2b__watch_id;

typedef struct e2b__watch_open e2b__watch_open;

/* Either a stream of events (req), or a watcher on the server that is asked for events from time to time (poll). When
 * one of these breaks it is begun anew and an E2B_FS_GAP is reported; when that fails the watch has ended. */
struct e2b_watch_handle {
  e2b__object object;
  e2b_sandbox *sandbox;
  e2b_watch_handle *prev, *next;  /* in sandbox->watches */
  e2b__watch_open *opening;       /* the operation that opens it, until its result is collected */
  bool *freed;                    /* set when it is freed while a call waits */
  bool dead;                      /* freed, buried at the end of this turn */
  e2b__req req;
  e2b__rpc rpc;
  e2b_op poll;                    /* the RPC under way */
  e2b__mourner mourner;
  e2b__watch_request_copy ask;
  bool recursive, include_entry, allow_network_mounts, polling, blocking;
  int32_t poll_ms, idle_ms;
  e2b_fs_event_fn on_event;
  e2b_done_fn on_end;
  void *event_user;
  bool begun;                     /* the stream has started, the watcher exists */
  bool gap;                       /* an E2B_FS_GAP is due */
  bool gone;                      /* the directory itself is: nothing follows */
  bool ended;                     /* mourner.err says how */
  uint64_t begun_at;
  e2b__watch_id id;
  e2b__watch_events events;       /* not all given out yet: those from `at` on */
  size_t at;
};

struct e2b__watch_open {
  e2b__op op;
  e2b_watch_handle *handle; /* NULL when it is freed */
  e2b_watch_handle **out;
};

#define E2B__WATCH_AGAIN_MS 1000  /* it is begun at most so often */
#define E2B__WATCH_REMOVE_MS 5000
#define E2B__WATCH_POLL_MS 1000

static void e2b__watch_begin(e2b_watch_handle *handle);
static void e2b__watch_poll(e2b_watch_handle *handle, uint64_t then);

/* ---- opening and freeing ---- */

/* Removes the watcher on the server, which would else collect events for ever. Waits for that only when asked to. */
static void e2b__watch_remove(e2b_watch_handle *handle, bool wait) {
  e2b_sandbox *sandbox = handle->sandbox;
  e2b__watcher_id request;
  e2b__data_task *data;
  e2b_call call;
  if (!handle->id.text || sandbox->closing || sandbox->client->closing) return;
  memset(&call, 0, sizeof call);
  call.timeout_ms = E2B__WATCH_REMOVE_MS;
  call.headers = handle->ask.headers;
  if (!wait) call.on_done = e2b__ignore_done;
  request.watcher_id = e2b__str(handle->id.text);
  data = e2b__rpc_new(sandbox, "/filesystem.Filesystem/RemoveWatcher", &e2b__msg_watcher_id, &request,
                      e2b__user(sandbox, handle->ask.user, false), &call, NULL);
  if (data) (void)e2b__task_run(&data->task, &call, NULL);
  e2b_mem_free(&handle->id.mem);
  handle->id.text = NULL;
}

/* A watch that goes before its opening was reported takes the report along. */
static void e2b__watch_destroy(e2b_watch_handle *handle) {
  e2b_client *client = handle->sandbox->client;
  e2b__watch_open *opening = handle->opening;
  if (opening) {
    opening->handle = NULL;
    if (!opening->op.delivered) *opening->out = NULL;
    if (!opening->op.delivered && opening->op.finished && !opening->op.result.code)
      (void)e2b__fail(&opening->op.result, E2B_ERR_CANCELED, "the watch was stopped");
  }
  if (handle->prev) handle->prev->next = handle->next; else handle->sandbox->watches = handle->next;
  if (handle->next) handle->next->prev = handle->prev;
  if (handle->freed) *handle->freed = true;
  handle->dead = true;
  e2b__mourn_no_more(&handle->mourner);
  e2b_op_cancel(client, handle->poll);
  e2b__req_abort(&handle->req);
  e2b__req_free(&handle->req);
  e2b_mem_free(&handle->ask.mem);
  e2b_mem_free(&handle->id.mem);
  e2b_mem_free(&handle->events.mem);
  e2b__object_free(client, handle);
}

static void e2b__watch_open_cancel(e2b__op *op) {
  e2b__watch_open *open = (e2b__watch_open *)op;
  if (open->handle) e2b__watch_destroy(open->handle);
}

static void e2b__watch_open_release(e2b__op *op) {
  e2b__watch_open *open = (e2b__watch_open *)op;
  if (!open->handle) return;
  if (!op->delivered || op->result.code) e2b__watch_destroy(open->handle);
  else open->handle->opening = NULL;
}

static e2b_phase e2b__watch_open_phase(e2b__op *op, bool *maybe_done) {
  const e2b_watch_handle *handle = ((e2b__watch_open *)op)->handle;
  e2b__op *poll = handle ? e2b__op_find(op->client, handle->poll) : NULL;
  if (poll) return e2b__task_phase(poll, maybe_done);
  return handle ? e2b__req_stands(&handle->req, maybe_done) : E2B_PHASE_NONE;
}

static const e2b__op_type e2b__watch_open_type = { e2b__watch_open_cancel, e2b__watch_open_release, NULL,
                                                  e2b__watch_open_phase, NULL };

/* Reports the opening, if that was not done. */
static void e2b__watch_opened(e2b_watch_handle *handle, const e2b_error *result) {
  e2b__watch_open *opening = handle->opening;
  if (!opening || opening->op.finished) return;
  if (!result->code) *opening->out = handle;
  e2b__op_finish(&opening->op, result);
}

/* ---- how it ends ---- */

/* Tells whoever wants to know, once. */
static void e2b__watch_settle(e2b_watch_handle *handle) {
  bool was_open = !handle->opening || handle->opening->op.finished;
  handle->ended = true;
  e2b__error_advise(&handle->mourner.err);
  if (!was_open) e2b__watch_opened(handle, &handle->mourner.err);
  else if (handle->on_event && handle->on_end) handle->on_end(handle->event_user, &handle->mourner.err);
}

static void e2b__watch_verdict(e2b__mourner *mourner) {
  e2b__watch_settle((e2b_watch_handle *)(void *)((uint8_t *)mourner - offsetof(e2b_watch_handle, mourner)));
}

/* The watch is over; `err` says why. What became of the sandbox is asked first where that may explain it. */
static void e2b__watch_end(e2b_watch_handle *handle, const e2b_error *err) {
  const e2b__watch_open *opening = handle->opening;
  uint64_t deadline = opening && !opening->op.finished ? opening->op.deadline : (uint64_t)E2B__NEVER;
  e2b__req_abort(&handle->req);
  handle->begun = false;
  handle->mourner.err = *err;
  handle->mourner.on_verdict = e2b__watch_verdict;
  /* what asks from time to time has looked after its sandbox already */
  if (handle->polling || !e2b__mourn(&handle->mourner, handle->sandbox, deadline)) e2b__watch_settle(handle);
}

static void e2b__watch_end_with(e2b_watch_handle *handle, e2b_err code, const char *why) {
  e2b_error err;
  e2b__error_set(&err, code, E2B_PHASE_NONE, "%s", why);
  e2b__watch_end(handle, &err);
}

/* The stream broke, or the watcher did not answer. One that had begun is begun anew; one that could not be begun
 * has ended. */
static void e2b__watch_lost(e2b_watch_handle *handle, const e2b_error *err) {
  bool again = handle->begun && err->code != E2B_ERR_NO_MEMORY;
  e2b__req_abort(&handle->req);
  handle->begun = false;
  if (handle->id.text && err->connect_code) { /* the watcher is there no more, or has failed itself */
    if (err->connect_code == E2B_CONNECT_NOT_FOUND) e2b_mem_free(&handle->id.mem);
    else e2b__watch_remove(handle, false);
    handle->id.text = NULL;
    again = true;
  }
  if (again) e2b__watch_begin(handle);
  else e2b__watch_end(handle, err);
}

/* It has begun, for the first time or anew. */
static void e2b__watch_begins(e2b_watch_handle *handle) {
  bool first = handle->opening && !handle->opening->op.finished;
  e2b_error ok;
  memset(&ok, 0, sizeof ok);
  handle->begun = true;
  handle->gap = !first;
  handle->req.deadline = (uint64_t)E2B__NEVER;
  if (first) e2b__watch_opened(handle, &ok);
}

/* ---- events ---- */

static e2b_fs_event_type e2b__fs_event_type(int32_t type) {
  return type >= E2B__EVENT_TYPE_CREATE && type <= E2B__EVENT_TYPE_CHMOD ? (e2b_fs_event_type)type : E2B_FS_UNKNOWN;
}

static void e2b__watch_fill(e2b__pack *pack, const e2b__filesystem_event *events, size_t count,
                            e2b__watch_events *out) {
  e2b_fs_event *items = (e2b_fs_event *)e2b__pack_alloc(pack, count * sizeof *items);
  size_t i;
  for (i = 0; i < count; i++) {
    e2b_entry_info *entry = events[i].has_entry ? (e2b_entry_info *)e2b__pack_alloc(pack, sizeof *entry) : NULL;
    const char *name = e2b__pack_str(pack, events[i].name);
    if (events[i].has_entry) e2b__pack_entry(pack, &events[i].entry, entry);
    if (!items) continue;
    items[i].type = e2b__fs_event_type(events[i].type);
    items[i].name = name;
    items[i].entry = entry;
  }
  out->items = items;
  out->count = items ? count : 0;
}

static void e2b__watch_fill_one(e2b__pack *pack, const void *from, void *out) {
  e2b__watch_fill(pack, &((const e2b__watch_dir_response *)from)->filesystem, 1, (e2b__watch_events *)out);
}

static void e2b__watch_fill_polled(e2b__pack *pack, const void *from, void *out) {
  const e2b__list *events = &((const e2b__watcher_events *)from)->events;
  e2b__watch_fill(pack, (const e2b__filesystem_event *)events->items, events->count, (e2b__watch_events *)out);
}

static void e2b__watch_fill_id(e2b__pack *pack, const void *from, void *out) {
  ((e2b__watch_id *)out)->text = e2b__pack_str(pack, ((const e2b__watcher_id *)from)->watcher_id);
}

/* One message of the stream: goes to handle->events, which is empty. */
static e2b_err e2b__watch_message(e2b_watch_handle *handle, const e2b__envelope *envelope, e2b_error *err) {
  e2b_client *client = handle->sandbox->client;
  e2b__watch_dir_response message;
  e2b__arena arena;
  e2b_err code;
  if (envelope->end) {
    code = e2b__envelope_end(client, envelope, E2B_SUBJECT_FILE, err);
    return code ? code : e2b__error_say(err, E2B_ERR_TRUNCATED, "the server ended the watch");
  }
  e2b__arena_init(&arena, &client->mem, (size_t)client->config.max_message_bytes * 4);
  code = e2b__rpc_decode(&handle->rpc, &e2b__msg_watch_dir_response, envelope->data, envelope->len, &arena, &message,
                         err);
  if (code) {
    /* said */
  } else if (message.has_start) {
    e2b__watch_begins(handle);
  } else if (message.has_filesystem && !handle->begun) {
    code = e2b__error_say(err, E2B_ERR_PROTOCOL, "the server sent an event before it said that the watch has begun");
  } else if (message.has_filesystem) {
    handle->at = 0;
    code = e2b__result_fill(client, e2b__watch_fill_one, &message, &handle->events, err);
  }
  e2b__arena_free(&arena);
  return code;
}

/* The next event that is there: E2B_OK; E2B_PENDING when there is none; E2B_EOF when none can follow. */
static e2b_err e2b__watch_take(e2b_watch_handle *handle, e2b_fs_event *event) {
  memset(event, 0, sizeof *event);
  event->name = "";
  if (handle->gap) {
    handle->gap = false;
    event->type = E2B_FS_GAP;
    return E2B_OK;
  }
  if (handle->gone) return E2B_EOF;
  if (handle->at == handle->events.count) return E2B_PENDING;
  *event = handle->events.items[handle->at++];
  handle->gone = strcmp(event->name, ".") == 0 && (event->type == E2B_FS_REMOVE || event->type == E2B_FS_RENAME);
  return E2B_OK;
}

static void e2b__watch_drop_events(e2b_watch_handle *handle) {
  e2b_mem_free(&handle->events.mem);
  handle->events.items = NULL;
  handle->events.count = handle->at = 0;
}

#define E2B__WATCH_GONE "the watched directory was removed or renamed: nothing more can happen in it"

/* Pushes what is there. False when the watch is over, or was stopped by a callback. */
static bool e2b__watch_push(e2b_watch_handle *handle) {
  e2b_fs_event event;
  e2b_err code;
  while ((code = e2b__watch_take(handle, &event)) == E2B_OK) {
    int answer = handle->on_event(handle->event_user, &event);
    if (handle->dead) return false;
    if (answer >= 0) continue;
    e2b__watch_end_with(handle, E2B_ERR_CANCELED, "the event callback ended the watch");
    return false;
  }
  e2b__watch_drop_events(handle);
  if (code != E2B_EOF) return true;
  e2b__watch_remove(handle, false);
  e2b__watch_end_with(handle, E2B_EOF, E2B__WATCH_GONE);
  return false;
}

/* ---- the stream ---- */

static e2b_watch_handle *e2b__watch_of(e2b__req *req) {
  return (e2b_watch_handle *)(void *)((uint8_t *)req - offsetof(e2b_watch_handle, req));
}

/* Takes one message off the front. E2B_PENDING when there is no whole one. */
static e2b_err e2b__watch_get(e2b_watch_handle *handle, const uint8_t *bytes, size_t len, size_t *size, size_t *need,
                              e2b_error *err) {
  e2b__envelope envelope;
  e2b_err code = e2b__envelope_get(bytes, len, handle->sandbox->client->config.max_message_bytes, &envelope, need);
  if (code == E2B_PENDING) return code;
  memset(err, 0, sizeof *err);
  err->phase = E2B_PHASE_BODY;
  err->http_status = handle->req.status;
  if (code)
    return e2b__error_say(err, code, "a message of the stream is %s",
                          code == E2B_ERR_LIMIT ? "larger than max_message_bytes" : "compressed or malformed");
  *size = envelope.size;
  code = e2b__watch_message(handle, &envelope, err);
  err->code = code;
  return code;
}

/* The first message, and all of them when they are pushed; pulled ones wait in rx, which holds the server back. */
static e2b_err e2b__watch_on_body(e2b__req *req, const uint8_t *bytes, size_t len, size_t *taken) {
  e2b_watch_handle *handle = e2b__watch_of(req);
  size_t size = 0;
  e2b_error err;
  e2b_err code;
  if (req->status != 200) return e2b__req_keep_all(req); /* for the error */
  while (!req->pulled) {
    code = e2b__watch_get(handle, bytes + *taken, len - *taken, &size, &req->rx_need, &err);
    if (code == E2B_PENDING) return E2B_OK;
    if (code) {
      e2b__watch_lost(handle, &err);
      return E2B_ERR_CANCELED;
    }
    *taken += size;
    if (handle->on_event && !e2b__watch_push(handle)) return E2B_ERR_CANCELED;
    req->pulled = handle->begun && !handle->on_event;
  }
  return E2B_OK;
}

static void e2b__watch_on_end(e2b__req *req, const e2b_error *end) {
  e2b_watch_handle *handle = e2b__watch_of(req);
  e2b_error err = *end;
  if (!err.code && e2b__rpc_refused(&handle->rpc, req)) {
    if (e2b__rpc_again_as_json(&handle->rpc, handle->sandbox, req, &err) == E2B_PENDING) return;
  } else if (!err.code && req->status != 200) {
    e2b__answer_error(req, E2B_SUBJECT_SANDBOX, "check the sandbox's access token and the user", &err);
    err.connect_code = E2B_CONNECT_NONE; /* of the gateway, not of the watch */
  } else if (!err.code) {
    e2b__error_say(&err, E2B_ERR_TRUNCATED, "the stream of events ended without its end");
  }
  err.maybe_done = false;
  e2b__watch_lost(handle, &err);
}

static const e2b__req_events e2b__watch_req_events = { NULL, e2b__watch_on_body, NULL, e2b__watch_on_end };

static e2b_err e2b__watch_submit(e2b_watch_handle *handle, const e2b__watch_request *request, uint64_t then) {
  e2b_client *client = handle->sandbox->client;
  e2b__req *req = &handle->req;
  e2b_call call;
  char text[16];
  memset(&call, 0, sizeof call);
  call.headers = handle->ask.headers;
  e2b__headers_free(&req->headers);
  req->method = "POST";
  req->pulled = false;
  req->rx_limit = client->config.stream_buffer_size;
  req->idle_ms = handle->idle_ms;
  req->not_before = then;
  e2b__req_target(req, &handle->sandbox->runtime);
  e2b__buf_text(&req->path, "/filesystem.Filesystem/WatchDir");
  e2b__data_headers(req, handle->sandbox, e2b__user(handle->sandbox, handle->ask.user, false), &call);
  (void)snprintf(text, sizeof text, "%d", (int)client->config.keepalive_interval_s);
  e2b__headers_set(&req->headers, "keepalive-ping-interval", e2b__str(text));
  e2b__rpc_begin(&handle->rpc, true, handle->sandbox, req, &e2b__msg_watch_request, request);
  return e2b__req_submit(req);
}

/* ---- the watcher that is asked ---- */

static e2b__data_task *e2b__watch_rpc(e2b_watch_handle *handle, const char *method, const e2b__message *type,
                                      const void *message, e2b_done_fn on_done, e2b_call *call, e2b_error *err) {
  e2b__data_task *data;
  memset(call, 0, sizeof *call);
  call->idle_ms = handle->idle_ms;
  call->headers = handle->ask.headers;
  call->op = &handle->poll;
  call->on_done = on_done;
  call->user = handle;
  data = e2b__rpc_new(handle->sandbox, method, type, message, e2b__user(handle->sandbox, handle->ask.user, false), call, err);
  if (!data) return NULL;
  data->task.subject = E2B_SUBJECT_FILE;
  data->task.op.background = true;
  return data;
}

/* Delays what was made. */
static void e2b__watch_delay(e2b__data_task *data, uint64_t then) {
  e2b__op *op = &data->task.op;
  uint64_t now = op->client->now;
  data->task.req.not_before = then;
  if (then > now && op->deadline != (uint64_t)E2B__NEVER) op->deadline += then - now;
}

static void e2b__watch_on_created(void *user, const e2b_error *err) {
  e2b_watch_handle *handle = (e2b_watch_handle *)user;
  handle->poll.id = 0;
  if (handle->sandbox->closing || handle->sandbox->client->closing) return;
  if (err->code) {
    handle->id.text = NULL;
    e2b__watch_end(handle, err);
    return;
  }
  e2b__watch_begins(handle);
  if (handle->on_event && !e2b__watch_push(handle)) return;
  e2b__watch_poll(handle, handle->sandbox->client->now + (uint64_t)handle->poll_ms);
}

static void e2b__watch_on_polled(void *user, const e2b_error *err) {
  e2b_watch_handle *handle = (e2b_watch_handle *)user;
  handle->poll.id = 0;
  if (handle->sandbox->closing || handle->sandbox->client->closing) return;
  if (err->code) {
    e2b__watch_lost(handle, err);
    return;
  }
  handle->at = 0;
  if (!handle->begun) e2b__watch_begins(handle); /* it answers again, but an answer was lost */
  if (handle->on_event ? !e2b__watch_push(handle) : handle->events.count != 0) return;
  e2b__watch_poll(handle, handle->sandbox->client->now + (uint64_t)handle->poll_ms);
}

/* Asks for the next events, not before `then`. */
static void e2b__watch_poll(e2b_watch_handle *handle, uint64_t then) {
  e2b__watcher_id request;
  e2b__data_task *data;
  e2b_error err;
  e2b_call call;
  e2b__watch_drop_events(handle);
  request.watcher_id = e2b__str(handle->id.text);
  data = e2b__watch_rpc(handle, "/filesystem.Filesystem/GetWatcherEvents", &e2b__msg_watcher_id, &request,
                        e2b__watch_on_polled, &call, &err);
  if (data) {
    data->answer = &e2b__msg_watcher_events;
    data->fill = e2b__watch_fill_polled;
    data->task.out = &handle->events;
    e2b__watch_delay(data, then);
    if (e2b__task_run(&data->task, &call, &err) == E2B_PENDING) return;
  }
  handle->poll.id = 0;
  e2b__watch_end(handle, &err);
}

static e2b_err e2b__watch_create(e2b_watch_handle *handle, const e2b__watch_request *request, uint64_t then,
                                 e2b_error *err) {
  e2b__data_task *data;
  e2b_call call;
  e2b_err code;
  data = e2b__watch_rpc(handle, "/filesystem.Filesystem/CreateWatcher", &e2b__msg_watch_request, request,
                        e2b__watch_on_created, &call, err);
  if (!data) return err->code;
  data->answer = &e2b__msg_watcher_id;
  data->fill = e2b__watch_fill_id;
  data->task.out = &handle->id;
  if (handle->opening && !handle->opening->op.finished) data->task.op.deadline = (uint64_t)E2B__NEVER; /* that of the opening counts */
  e2b__watch_delay(data, then);
  code = e2b__task_run(&data->task, &call, err);
  if (code == E2B_PENDING) return E2B_OK;
  handle->poll.id = 0;
  return code;
}

/* ---- both ---- */

/* Begins, or begins anew what was lost. */
static void e2b__watch_begin(e2b_watch_handle *handle) {
  e2b_client *client = handle->sandbox->client;
  bool first = handle->opening && !handle->opening->op.finished;
  uint64_t then = first ? 0 : handle->begun_at + E2B__WATCH_AGAIN_MS;
  e2b__watch_request request;
  e2b_error err;
  e2b_err code;
  memset(&err, 0, sizeof err);
  request.path = e2b__str(handle->ask.path);
  request.recursive = handle->recursive;
  request.include_entry = handle->include_entry;
  request.allow_network_mounts = handle->allow_network_mounts;
  handle->begun_at = E2B__MAX(client->now, then);
  if (handle->id.text) {
    e2b__watch_poll(handle, then);
    return;
  }
  if (handle->polling) {
    code = e2b__watch_create(handle, &request, then, &err);
  } else {
    handle->req.deadline =
        first ? (uint64_t)E2B__NEVER : e2b__deadline(handle->begun_at, client->config.request_timeout_ms);
    code = e2b__watch_submit(handle, &request, then);
    if (code) e2b__fail(&err, code, code == E2B_ERR_LIMIT ? "the request is too large" : "out of memory");
  }
  if (code) e2b__watch_end(handle, &err);
}

static void e2b__watch_fill_ask(e2b__pack *pack, const void *from, void *out) {
  const e2b__watch_request_copy *given = (const e2b__watch_request_copy *)from;
  e2b__watch_request_copy *copy = (e2b__watch_request_copy *)out;
  e2b_kv *items = (e2b_kv *)e2b__pack_alloc(pack, given->headers.count * sizeof *items);
  size_t i;
  copy->path = e2b__pack_str(pack, e2b__str(given->path));
  copy->user = e2b__pack_str(pack, e2b__str(given->user));
  for (i = 0; i < given->headers.count; i++) {
    const char *key = e2b__pack_str(pack, e2b__str(given->headers.items[i].key));
    const char *value = e2b__pack_str(pack, e2b__str(given->headers.items[i].value));
    if (!items) continue;
    items[i].key = key;
    items[i].value = value;
  }
  copy->headers.items = items;
  copy->headers.count = items ? given->headers.count : 0;
}

static e2b_err e2b__watch_check(const e2b_sandbox *sandbox, const char *path, const e2b_watch_opts *opts,
                                e2b_error *err) {
  e2b_err code;
  if (!sandbox) return e2b__invalid(err, "sandbox", "is NULL");
  if (opts) {
    code = e2b__call_check(&opts->call, err);
    if (!code) code = e2b__user_check(opts->user, err);
    if (code) return code;
    if (opts->poll_interval_ms < 0) return e2b__invalid(err, "poll_interval_ms", "is negative");
    if (opts->on_end && !opts->on_event)
      return e2b__invalid(err, "on_end", "goes with on_event only: e2b_watch_handle_next tells the end");
    if (opts->recursive && e2b__version_compare(sandbox->envd_version, "0.1.4") < 0)
      return e2b__fail(err, E2B_ERR_NOT_BUILT,
                       "this envd cannot watch recursively, which needs 0.1.4: watch each directory");
  }
  return e2b__path_check("path", path, err);
}

/* The handle, linked to its sandbox and to the operation that opens it. NULL: no memory. */
static e2b_watch_handle *e2b__watch_new(e2b__watch_open *open, e2b_sandbox *sandbox, const char *path,
                                        const e2b_watch_opts *opts) {
  e2b_watch_opts none;
  e2b_client *client = sandbox->client;
  e2b_watch_handle *handle = (e2b_watch_handle *)e2b__object_new(client, sizeof *handle);
  e2b__watch_request_copy given;
  if (!handle) return NULL;
  memset(&none, 0, sizeof none);
  if (!opts) opts = &none;
  open->handle = handle;
  handle->opening = open;
  handle->sandbox = sandbox;
  handle->next = sandbox->watches;
  if (handle->next) handle->next->prev = handle;
  sandbox->watches = handle;
  e2b__req_init(&handle->req, client, &e2b__watch_req_events);
  handle->recursive = opts->recursive;
  handle->include_entry = opts->include_entry;
  handle->allow_network_mounts = opts->allow_network_mounts;
  handle->polling = opts->polling;
  handle->blocking = e2b__call_blocks(&opts->call);
  handle->poll_ms = opts->poll_interval_ms ? opts->poll_interval_ms : E2B__WATCH_POLL_MS;
  handle->idle_ms = opts->call.idle_ms || opts->polling ? opts->call.idle_ms : client->config.keepalive_interval_s * 3000;
  handle->on_event = opts->on_event;
  handle->on_end = opts->on_end;
  handle->event_user = opts->event_user;
  memset(&given, 0, sizeof given);
  given.path = path;
  given.user = opts->user;
  given.headers = opts->call.headers;
  return e2b__result_fill(client, e2b__watch_fill_ask, &given, &handle->ask, NULL) ? NULL : handle;
}

E2B_API e2b_err e2b_files_watch_dir(e2b_sandbox *sandbox, const char *path, const e2b_watch_opts *opts,
                                    e2b_watch_handle **out, e2b_error *err) {
  const e2b_call *call = opts ? &opts->call : NULL;
  e2b__watch_open *open;
  e2b_watch_handle *handle;
  e2b_error local;
  if (!err) err = &local;
  if (!out) return e2b__invalid(err, "out", "is NULL");
  *out = NULL;
  if (e2b__watch_check(sandbox, path, opts, err)) return err->code;
  open = (e2b__watch_open *)e2b__op_new(sandbox->client, call, &e2b__watch_open_type, sizeof *open,
                                        sandbox->client->config.request_timeout_ms, err);
  if (!open) return err->code;
  open->op.sandbox = sandbox;
  open->out = out;
  handle = e2b__watch_new(open, sandbox, path, opts);
  if (!handle) {
    e2b__op_release(&open->op);
    return e2b__no_memory(err);
  }
  e2b__watch_begin(handle);
  return e2b__op_run(&open->op, call, err);
}

/* Waits for one turn of the loop, as e2b__stream_wait. */
static e2b_err e2b__watch_wait(e2b_watch_handle *handle, uint64_t end, e2b_error *err) {
  e2b_client *client = handle->sandbox->client;
  uint64_t now = client->in_turn ? client->now : e2b__now_ms(client);
  bool freed = false;
  if (now >= end) return err->code = E2B_PENDING;
  if (e2b__waker_interrupted(client->net.waker))
    return e2b__fail(err, E2B_ERR_CANCELED, "interrupted by e2b_client_interrupt");
  handle->freed = &freed;
  (void)e2b__turn(client, end == (uint64_t)E2B__NEVER ? -1 : (int)E2B__MIN(end - now, (uint64_t)INT_MAX), NULL, 0, 0);
  if (!freed) handle->freed = NULL;
  if (client->config.yield_fn) client->config.yield_fn(client->config.platform_user);
  return freed ? e2b__fail(err, E2B_ERR_CANCELED, "the watch was stopped in a callback") : E2B_OK;
}

/* Makes the next message of the stream events. E2B_PENDING when there is no whole one; anything else: look again. */
static e2b_err e2b__watch_advance(e2b_watch_handle *handle, e2b_error *err) {
  e2b__req *req = &handle->req;
  size_t size = 0;
  bool held;
  e2b_err code;
  if (handle->polling) {
    if (handle->events.count) e2b__watch_poll(handle, req->client->now + (uint64_t)handle->poll_ms); /* the next ones */
    return E2B_PENDING;
  }
  e2b__watch_drop_events(handle);
  if (!req->pulled) return E2B_PENDING;
  code = e2b__watch_get(handle, req->rx.data, req->rx.len, &size, &req->rx_need, err);
  if (code == E2B_PENDING && req->state == E2B__REQ_ENDED) { /* what is left is no whole message */
    req->rx.len = 0;
    e2b__req_flush(req);
    return E2B_OK;
  }
  if (code == E2B_PENDING) return code;
  if (code) {
    e2b__watch_lost(handle, err);
    return E2B_OK;
  }
  held = e2b__req_held(req);
  e2b__buf_drop(&req->rx, size);
  if (held) e2b__req_kick(req);
  return E2B_OK;
}

E2B_API e2b_err e2b_watch_handle_next(e2b_watch_handle *handle, int timeout_ms, e2b_fs_event *event, e2b_error *err) {
  e2b_client *client;
  e2b_error local;
  uint64_t end;
  e2b_err code;
  if (!err) err = &local;
  memset(err, 0, sizeof *err);
  if (!handle || !event) return e2b__invalid(err, handle ? "event" : "handle", "is NULL");
  memset(event, 0, sizeof *event);
  client = handle->sandbox->client;
  if (handle->on_event) return e2b__fail(err, E2B_ERR_BAD_STATE, "the events of this watch are pushed to on_event");
  if (client->in_turn && timeout_ms)
    return e2b__fail(err, E2B_ERR_BAD_STATE, "waiting inside a callback: use timeout_ms 0");
  if (!client->in_turn) client->now = e2b__now_ms(client);
  end = e2b__deadline(client->now, timeout_ms);
  for (;;) {
    code = e2b__watch_take(handle, event);
    if (code == E2B_OK) return code;
    if (code == E2B_EOF && !handle->ended) {
      e2b__watch_remove(handle, false);
      e2b__watch_end_with(handle, E2B_EOF, E2B__WATCH_GONE);
    }
    if (handle->ended) {
      *err = handle->mourner.err;
      return err->code;
    }
    if (e2b__watch_advance(handle, err) == E2B_OK) continue;
    if (handle->ended) continue;
    memset(err, 0, sizeof *err);
    code = e2b__watch_wait(handle, end, err);
    if (code) return code;
  }
}

E2B_API void e2b_watch_handle_stop(e2b_watch_handle *handle) {
  if (!handle) return;
  e2b_op_cancel(handle->sandbox->client, handle->poll);
  handle->poll.id = 0;
  e2b__watch_remove(handle, handle->blocking && !handle->sandbox->client->in_turn);
  e2b__watch_destroy(handle);
}
#endif /* E2B_NO_WATCH */

#endif /* E2B_IMPLEMENTATION */

/*
This software is available under two licences: choose whichever you prefer.

------------------------------------------------------------------------------
ALTERNATIVE A - MIT No Attribution (MIT-0)

Copyright (c) 2026 the authors of e2b.h

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.

------------------------------------------------------------------------------
ALTERNATIVE B - Public Domain (www.unlicense.org)

This is free and unencumbered software released into the public domain.

Anyone is free to copy, modify, publish, use, compile, sell, or distribute this
software, either in source code form or as a compiled binary, for any purpose,
commercial or non-commercial, and by any means.

In jurisdictions that recognize copyright laws, the author or authors of this
software dedicate any and all copyright interest in the software to the public
domain. We make this dedication for the benefit of the public at large and to
the detriment of our heirs and successors. We intend this dedication to be an
overt act of relinquishment in perpetuity of all present and future rights to
this software under copyright law.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN
ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION
WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
*/
