/* A client in a world of its own, for the fuzzers of whole calls: its network is in memory, its clock stands still until
 * it is moved, its memory is counted and can fail. */
#ifndef FUZZ_WORLD_H
#define FUZZ_WORLD_H

#define FUZZ_CONNS 12
#define FUZZ_CLOCK 1000000u /* it begins at this */

typedef struct fuzz_conn {
  bool open, eof;
  int looks;        /* at it, until it is connected; < 0: never */
  int fault;        /* what a read gives when all was read; 0 = E2B_IO_AGAIN */
  e2b__buf in;      /* what the server said */
  size_t at, room;  /* how much of it was read; how much more may be sent */
  uint32_t seed;    /* of the pieces it is read in */
} fuzz_conn;

typedef struct fuzz_world {
  fuzz_heap heap, server; /* the client's; ours */
  e2b_transport transport;
  fuzz_conn conns[FUZZ_CONNS];
  int conn_count, open_now, refuse_from; /* connections from this one on are refused */
  int next_looks;
  size_t next_room;
  uint64_t clock;
  uint32_t moves, moves_seen; /* reads and writes that did something; those at the last wait */
  const char *alpn;
  bool greets; /* servers of HTTP/2 begin with SETTINGS and acknowledge ours */
  void (*on_wait)(struct fuzz_world *w); /* something may happen while a blocking call waits; NULL = time passes */
  e2b_client_config config;
  e2b_client *client;
} fuzz_world;

static int fuzz_world_open(void *user, const e2b_endpoint *to, void **conn) {
  fuzz_world *w = (fuzz_world *)user;
  fuzz_conn *c = &w->conns[w->conn_count];
  FUZZ_CHECK(to->host && to->host[0] && to->port);
  if (w->conn_count >= w->refuse_from || w->conn_count >= FUZZ_CONNS) return -7;
  w->conn_count++;
  c->open = true;
  c->looks = w->next_looks;
  c->room = w->next_room;
  w->open_now++;
  if (w->greets && w->config.http_version == 2) e2b__buf_put(&c->in, "\0\0\0\4\0\0\0\0\0\0\0\0\4\1\0\0\0\0", 18);
  *conn = c;
  return c->looks ? E2B_IO_AGAIN : 0;
}

static int fuzz_world_ready(void *user, void *conn) {
  fuzz_conn *c = (fuzz_conn *)conn;
  E2B__UNUSED(user);
  FUZZ_CHECK(c->open);
  if (c->looks > 0) c->looks--;
  if (c->looks == 0 && c->fault) return c->fault;
  return c->looks ? E2B_IO_AGAIN : 0;
}

static int fuzz_world_rx(void *user, void *conn, void *buf, size_t cap) {
  fuzz_conn *c = (fuzz_conn *)conn;
  size_t n = fuzz_piece(&c->seed, c->in.len - c->at);
  ((fuzz_world *)user)->moves++;
  FUZZ_CHECK(c->open && cap > 0);
  n = E2B__MIN(n, cap);
  if (!n && (c->fault || c->eof)) return c->fault ? c->fault : E2B_IO_EOF;
  if (!n) ((fuzz_world *)user)->moves--;
  if (!n) return E2B_IO_AGAIN;
  memcpy(buf, c->in.data + c->at, n);
  c->at += n;
  return (int)n;
}

static int fuzz_world_tx(void *user, void *conn, const void *buf, size_t len) {
  fuzz_conn *c = (fuzz_conn *)conn;
  size_t n = E2B__MIN(len, c->room);
  E2B__UNUSED(user);
  FUZZ_CHECK(c->open && buf && len);
  if (c->fault && c->at == c->in.len) return c->fault;
  c->room -= c->room < SIZE_MAX / 2 ? n : 0;
  return n ? (int)n : E2B_IO_AGAIN;
}

static void fuzz_world_shut(void *user, void *conn) {
  fuzz_conn *c = (fuzz_conn *)conn;
  FUZZ_CHECK(c->open);
  c->open = false;
  ((fuzz_world *)user)->open_now--;
}

static void fuzz_world_wait(void *user, int timeout_ms) {
  fuzz_world *w = (fuzz_world *)user;
  bool moving = w->moves != w->moves_seen; /* then there may be more */
  w->moves_seen = w->moves;
  if (moving) return;
  if (w->on_wait) w->on_wait(w);
  else w->clock += timeout_ms < 0 ? 100000u : (unsigned)timeout_ms;
}

static const char *fuzz_world_alpn(void *user, void *conn) {
  E2B__UNUSED(conn);
  return ((fuzz_world *)user)->alpn;
}

static uint64_t fuzz_world_now(void *user) {
  return ((fuzz_world *)user)->clock;
}

static int64_t fuzz_world_unix(void *user) {
  return 1700000000 + (int64_t)(((fuzz_world *)user)->clock / 1000u);
}

/* http_version as in the configuration; small limits, so that they are met. Change w->config, then create w->client. */
static void fuzz_world_begin(fuzz_world *w, uint8_t http_version, bool json) {
  e2b_client_config *config = &w->config;
  int i;
  memset(w, 0, sizeof *w);
  fuzz_heap_init(&w->heap, 0);
  fuzz_heap_init(&w->server, 0);
  for (i = 0; i < FUZZ_CONNS; i++) e2b__buf_init(&w->conns[i].in, &w->server.mem, SIZE_MAX);
  w->clock = FUZZ_CLOCK;
  w->refuse_from = FUZZ_CONNS;
  w->next_room = SIZE_MAX;
  w->alpn = http_version == 2 ? "h2" : "http/1.1";
  w->transport.open_fn = fuzz_world_open;
  w->transport.ready_fn = fuzz_world_ready;
  w->transport.rx_fn = fuzz_world_rx;
  w->transport.tx_fn = fuzz_world_tx;
  w->transport.shut_fn = fuzz_world_shut;
  w->transport.wait_fn = fuzz_world_wait;
  w->transport.alpn_fn = fuzz_world_alpn;
  w->transport.user = w;
  w->transport.flags = E2B_TRANSPORT_HAS_TLS | E2B_TRANSPORT_HAS_DNS;
  config->no_env = true;
  config->api_key = "key";
  config->api_url = http_version == 2 ? "https://api.test" : "http://api.test";
  config->sandbox_url = http_version == 2 ? "https://box.test" : "http://box.test";
  config->http_version = http_version;
  config->codec = json ? E2B_CODEC_JSON : E2B_CODEC_DEFAULT;
  config->allocator = w->heap.mem.allocator;
  config->transport = &w->transport;
  config->now_ms_fn = fuzz_world_now;
  config->unix_time_fn = fuzz_world_unix;
  config->platform_user = w;
  config->max_header_bytes = 2000;
  config->max_message_bytes = 4000;
  config->max_result_bytes = 3000;
  config->stream_buffer_size = 2000;
  config->io_buffer_size = 1024;
}

static e2b_sandbox *fuzz_world_sandbox(fuzz_world *w, e2b_error *err) {
  e2b_attach_opts opts;
  e2b_sandbox *sandbox = NULL;
  memset(&opts, 0, sizeof opts);
  opts.access_token = "token";
  (void)e2b_sandbox_attach(w->client, "box1", &opts, &sandbox, err);
  return sandbox;
}

/* The client is gone: with it, all it had. */
static void fuzz_world_end(fuzz_world *w) {
  int i;
  e2b_client_free(w->client);
  w->client = NULL;
  FUZZ_CHECK(w->open_now == 0);
  FUZZ_CHECK(w->heap.live == 0);
  for (i = 0; i < FUZZ_CONNS; i++) e2b__buf_free(&w->conns[i].in);
  FUZZ_CHECK(w->server.live == 0);
}

/* ---- calls ---- */

/* One call and what it gives. Zeroed, then `call` filled in. */
typedef struct fuzz_call {
  e2b_call call;
  e2b_sandbox *sandbox;
  int kind;
  e2b__buf log; /* output, as it came */
  int (*on_data)(struct fuzz_call *c); /* what a callback answers; NULL = 0 */
  size_t given;
  union {
    e2b_mem mem; /* of all but the last few */
    e2b_sandbox_info info;
    e2b_sandbox_list sandboxes;
    e2b_create_response created;
    e2b_metric_list metrics;
    e2b_log_list logs;
    e2b_snapshot_list snapshots;
    e2b_traffic_token token;
    e2b_response response;
    e2b_command_result result;
    e2b_process_list processes;
    e2b_entry_info entry;
    e2b_entry_list entries;
    e2b_write_info written;
    e2b_buf content;
    e2b_execution execution;
    e2b_code_context context;
    e2b_code_context_list contexts;
  } out;
  e2b_write_item write[2];
  e2b_read_item read[2];
  bool flag;
  uint32_t number;
  e2b_stopped stopped;
  e2b_sandbox *made;
  e2b_command_handle *handle;
  e2b_file_stream *stream;
  e2b_watch_handle *watch;
} fuzz_call;

static int fuzz_call_data(void *user, const char *data, size_t len) {
  fuzz_call *c = (fuzz_call *)user;
  FUZZ_CHECK(data && len);
  e2b__buf_put(&c->log, data, len);
  return c->on_data ? c->on_data(c) : 0;
}

static int fuzz_call_source(void *user, void *buf, size_t cap) {
  fuzz_call *c = (fuzz_call *)user;
  size_t n = E2B__MIN(cap, 500 - c->given);
  int answer;
  memset(buf, 'x', n); /* first: what the callback ends takes the buffer along */
  answer = c->on_data ? c->on_data(c) : 0;
  if (answer) return answer;
  c->given += n;
  return (int)n;
}

static int fuzz_call_head(void *user, int status, e2b_kvs headers) {
  fuzz_call *c = (fuzz_call *)user;
  e2b__buf_i64(&c->log, status);
  e2b__buf_u64(&c->log, headers.count);
  return 0;
}

static int fuzz_call_sandbox(void *user, const e2b_sandbox_info *info) {
  fuzz_call *c = (fuzz_call *)user;
  e2b__buf_text(&c->log, info->sandbox_id);
  return c->on_data && c->on_data(c) ? 1 : 0;
}

static int fuzz_call_code(void *user, const e2b_code_event *event) {
  fuzz_call *c = (fuzz_call *)user;
  e2b__buf_u64(&c->log, (uint64_t)event->kind);
  e2b__buf_str(&c->log, event->text);
  return c->on_data ? c->on_data(c) : 0;
}

#define FUZZ_CALLS 48

/* Starts, or does, the call of that number. */
static e2b_err fuzz_call_api(fuzz_call *c, e2b_client *client, e2b_error *err) {
  e2b_sandbox_opts sandbox;
  e2b_list_opts list;
  e2b_request_opts request;
  e2b_snapshot_list_opts snapshots;
  memset(&sandbox, 0, sizeof sandbox);
  memset(&list, 0, sizeof list);
  memset(&request, 0, sizeof request);
  memset(&snapshots, 0, sizeof snapshots);
  sandbox.call = list.call = request.call = snapshots.call = c->call;
  request.io_user = c;
  switch (c->kind) {
  case 0: return e2b_sandbox_create(client, NULL, &sandbox, &c->made, err);
  case 1: return e2b_sandbox_connect(client, "box2", &sandbox, &c->made, err);
  case 2: return e2b_api_list(client, &list, &c->out.sandboxes, err);
  case 3: return e2b_api_list_all(client, &list, fuzz_call_sandbox, c, err);
  case 4: return e2b_api_get_info(client, "box1", &c->call, &c->out.info, err);
  case 5: return e2b_api_kill(client, "box1", &c->call, &c->flag, err);
  case 6: return e2b_api_create_sandbox(client, NULL, &sandbox, &c->out.created, err);
  case 7: return e2b_api_refresh_traffic_access_token(client, "box1", &c->call, &c->out.token, err);
  case 8: return e2b_api_find_by_nonce(client, "n1", &c->call, &c->out.info, err);
  case 9: return e2b_api_get_metrics(client, "box1", 0, 0, &c->call, &c->out.metrics, err);
  case 10: return e2b_api_get_logs(client, "box1", NULL, &c->out.logs, err);
  case 11: return e2b_api_list_snapshots(client, &snapshots, &c->out.snapshots, err);
  case 12: return e2b_api_request(client, "GET", "/x", &request, &c->out.response, err);
  default:
    request.source = fuzz_call_source;
    request.sink = fuzz_call_data;
    request.on_head = fuzz_call_head;
    return e2b_api_request(client, "POST", "/x", &request, &c->out.response, err);
  }
}

static e2b_err fuzz_call_commands(fuzz_call *c, e2b_error *err) {
  e2b_run_opts run;
  e2b_pty_opts pty;
  memset(&run, 0, sizeof run);
  memset(&pty, 0, sizeof pty);
  run.call = pty.call = c->call;
  run.output_user = pty.output_user = c;
  if (c->kind == 15) run.on_stdout = run.on_stderr = fuzz_call_data;
  if (c->kind == 22) pty.on_data = fuzz_call_data;
  switch (c->kind) {
  case 14:
  case 15: return e2b_commands_run(c->sandbox, "x", &run, &c->out.result, err);
  case 16: return e2b_commands_start(c->sandbox, "x", &run, &c->handle, err);
  case 17: return e2b_commands_start_detached(c->sandbox, "x", &run, &c->number, err);
  case 18: return e2b_commands_connect_to_process(c->sandbox, 7, &run, &c->handle, err);
  case 19: return e2b_commands_list(c->sandbox, &c->call, &c->out.processes, err);
  case 20: return e2b_commands_kill(c->sandbox, 7, &c->call, &c->flag, err);
  case 21: return e2b_commands_kill_tree(c->sandbox, 7, &c->call, &c->number, err);
  case 22: return e2b_pty_create(c->sandbox, &pty, &c->handle, err);
  case 23: return e2b_commands_stop(c->sandbox, 7, 100, &c->call, &c->stopped, err);
  case 24: return e2b_commands_send_stdin(c->sandbox, 7, "input", 5, &c->call, err);
  case 25: return e2b_commands_send_stdin_from(c->sandbox, 7, fuzz_call_source, c, &c->call, err);
  default: return e2b_commands_close_stdin(c->sandbox, 7, &c->call, err);
  }
}

static e2b_err fuzz_call_files(fuzz_call *c, e2b_error *err) {
  static const char *const sources[] = { "/a", "/b" };
  e2b_files_opts files;
  e2b_bulk_opts bulk;
  e2b_watch_opts watch;
  e2b_strs parts;
  int i;
  memset(&files, 0, sizeof files);
  memset(&bulk, 0, sizeof bulk);
  memset(&watch, 0, sizeof watch);
  files.call = bulk.call = watch.call = c->call;
  parts.items = sources;
  parts.count = 2;
  for (i = 0; i < 2; i++) {
    c->write[i].path = c->read[i].path = sources[i];
    c->write[i].data = "content";
    c->write[i].len = 7;
  }
  watch.polling = c->kind == 43;
  switch (c->kind) {
  case 27: return e2b_files_list(c->sandbox, "/x", &files, &c->out.entries, err);
  case 28: return e2b_files_exists(c->sandbox, "/x", &files, &c->flag, err);
  case 29: return e2b_files_get_info(c->sandbox, "/x", &files, &c->out.entry, err);
  case 30: return e2b_files_make_dir(c->sandbox, "/x", &files, &c->flag, err);
  case 31: return e2b_files_rename(c->sandbox, "/x", "/y", &files, &c->out.entry, err);
  case 32: return e2b_files_remove(c->sandbox, "/x", &files, err);
  case 33: return e2b_files_read(c->sandbox, "/x", &files, &c->out.content, err);
  case 34: files.offset = 3; files.length = 5; return e2b_files_read(c->sandbox, "/x", &files, &c->out.content, err);
  case 35: return e2b_files_write(c->sandbox, "/x", "content", 7, &files, &c->out.written, err);
  case 36: files.atomic = true; return e2b_files_write(c->sandbox, "/x", "content", 7, &files, &c->out.written, err);
  case 37: return e2b_files_download(c->sandbox, "/x", fuzz_call_data, c, &files, err);
  case 38: return e2b_files_upload(c->sandbox, "/x", fuzz_call_source, c, c->flag ? 500 : -1, &files, &c->out.written, err);
  case 39: return e2b_files_read_stream(c->sandbox, "/x", &files, &c->stream, err);
  case 40: return e2b_files_compose(c->sandbox, parts, "/c", &files, &c->out.written, err);
  case 41: return e2b_files_write_many(c->sandbox, c->write, 2, &bulk, err);
  case 42: return e2b_files_read_many(c->sandbox, c->read, 2, &bulk, err);
  default: return e2b_files_watch_dir(c->sandbox, "/x", &watch, &c->watch, err);
  }
}

static e2b_err fuzz_call_start(fuzz_call *c, e2b_client *client, e2b_error *err) {
  e2b_run_code_opts code;
  memset(err, 0, sizeof *err);
  memset(&code, 0, sizeof code);
  code.call = c->call;
  code.on_event = fuzz_call_code;
  code.event_user = c;
  if (c->kind < 14) return fuzz_call_api(c, client, err);
  if (c->kind < 27) return fuzz_call_commands(c, err);
  if (c->kind < 45) return fuzz_call_files(c, err);
  if (c->kind == 45) return e2b_code_run(c->sandbox, "1", &code, &c->out.execution, err);
  if (c->kind == 46) return e2b_code_list_contexts(c->sandbox, &c->call, &c->out.contexts, err);
  return e2b_sandbox_is_running(c->sandbox, &c->call, &c->flag, err);
}

/* What it gave, but for its handles. It may be used for another call then. */
static void fuzz_call_free(fuzz_call *c) {
  int i;
  e2b_mem_free(&c->out.mem);
  for (i = 0; i < 2; i++) e2b_mem_free(&c->read[i].content.mem);
  e2b__buf_free(&c->log);
}
#endif
