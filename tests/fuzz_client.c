/* Fuzzes the life of a client. The input is a script: which calls are made, what servers say and when, what time it is,
 * which allocations fail, what is canceled and freed, also from inside callbacks. Every call must end exactly once, no later
 * than at its deadline, and nothing be left at the end.
 *
 * The first octet: bit 0 HTTP/2, bit 1 JSON, bit 2 few operations, bit 3 few connections, bit 4 connections take a moment,
 * bit 5 the client is freed in the middle, bit 6 servers of HTTP/2 do not greet. Then steps of an octet each, with what
 * follows it as its arguments; see fuzz_client_step. */
#include "fuzz_main.h"
#include "fuzz_world.h"

#define FUZZ_SLOTS 6

typedef struct fuzz_slot {
  fuzz_call call; /* first: callbacks get this */
  struct fuzz_client_run *run;
  bool active, by_callback, has_op, orphan;
  int ended;
  uint64_t deadline;
  e2b_op op;
} fuzz_slot;

typedef struct fuzz_client_run {
  fuzz_world world;
  const uint8_t *script;
  size_t len, at;
  fuzz_slot slots[FUZZ_SLOTS];
  e2b_sandbox *box;
  e2b_sandbox *made[2];
  e2b_command_handle *handle;
  e2b_file_stream *stream;
  e2b_watch_handle *watch;
  fuzz_slot *blocking; /* the blocking call under way */
  int depth;           /* of callbacks and blocking calls */
  bool over;           /* the script has ended */
} fuzz_client_run;

static unsigned fuzz_client_byte(fuzz_client_run *r) {
  return r->at < r->len ? r->script[r->at++] : 0;
}

/* ---- the ends of calls ---- */

/* What a call made goes on in the place of what was there, or is freed. */
static void fuzz_client_adopt(fuzz_client_run *r, fuzz_slot *s) {
  fuzz_call *c = &s->call;
  if (s->orphan) return; /* all of it went with the sandbox */
  if (c->made && !r->made[0]) r->made[0] = c->made;
  else e2b_sandbox_free(c->made);
  if (c->handle) e2b_command_handle_set_output(c->handle, NULL, NULL, NULL); /* it outlives the slot */
  if (c->handle && !r->handle) r->handle = c->handle;
  else e2b_command_handle_free(c->handle);
  if (c->stream && !r->stream) r->stream = c->stream;
  else e2b_file_stream_free(c->stream);
  if (c->watch && !r->watch) r->watch = c->watch;
  else e2b_watch_handle_stop(c->watch);
}

static void fuzz_client_ended(fuzz_slot *s, const e2b_error *err) {
  s->ended++;
#ifdef FUZZ_TRACE
  fprintf(stderr, "+%lu: call %d: %s %s\n", (unsigned long)(s->run->world.clock - FUZZ_CLOCK), s->call.kind, e2b_err_name(err->code),
          err->message);
#endif
  FUZZ_CHECK(s->active && s->ended == 1 && err->code != E2B_PENDING);
  FUZZ_CHECK(err->code >= 0 || err->message[0]);
  s->active = false;
  if (err->code == E2B_OK) fuzz_client_adopt(s->run, s);
}

static void fuzz_client_act(fuzz_client_run *r);

static void fuzz_client_done(void *user, const e2b_error *err) {
  fuzz_slot *s = (fuzz_slot *)user;
  FUZZ_CHECK(s->by_callback);
  fuzz_client_ended(s, err);
  fuzz_client_act(s->run);
}

static int fuzz_client_data(fuzz_call *c) {
  fuzz_slot *s = (fuzz_slot *)(void *)c;
  unsigned answer;
  FUZZ_CHECK(s->active); /* nothing comes behind the end */
  answer = s->run->over ? 0 : fuzz_client_byte(s->run);
  fuzz_client_act(s->run);
  return answer % 16 == 1 ? E2B_PAUSE : answer % 32 == 2 ? -1 : 0;
}

static void fuzz_client_collect(fuzz_client_run *r, fuzz_slot *s) {
  e2b_error err;
  e2b_err code;
  if (!s->active || s->by_callback || !s->has_op) return;
  code = e2b_op_poll(r->world.client, s->op, &err);
  FUZZ_CHECK(code != E2B_ERR_BAD_STATE || err.code == code);
  if (code == E2B_PENDING) return;
  fuzz_client_ended(s, &err);
  FUZZ_CHECK(e2b_op_poll(r->world.client, s->op, NULL) == E2B_ERR_BAD_STATE);
}

/* ---- what is done ---- */

static void fuzz_client_call(fuzz_client_run *r, unsigned kind, unsigned how) {
  fuzz_slot *s = NULL;
  e2b_error err;
  e2b_err code;
  int i;
  int32_t timeout;
  bool blocking = (how & 3u) == 3 && !r->depth;
  for (i = 0; i < FUZZ_SLOTS && !s; i++)
    if (!r->slots[i].active) s = &r->slots[i];
  if (!s || (kind % FUZZ_CALLS >= 14 && !r->box)) return;
  fuzz_call_free(&s->call);
  memset(s, 0, sizeof *s);
  e2b__buf_init(&s->call.log, &r->world.server.mem, 4000);
  s->run = r;
  s->call.kind = (int)(kind % FUZZ_CALLS);
  s->call.sandbox = r->box;
  s->call.on_data = fuzz_client_data;
  s->call.flag = (how & 4u) != 0;
  timeout = (int32_t)(1u << (how >> 3 & 15u));
  s->call.call.timeout_ms = timeout;
  if (how & 128u) s->call.call.idle_ms = timeout / 2 + 1;
  s->by_callback = !blocking && (how & 3u) != 0 && (how & 3u) != 3;
  s->has_op = !blocking && (how & 3u) != 2;
  if (s->has_op) s->call.call.op = &s->op;
  if (s->by_callback) s->call.call.on_done = fuzz_client_done;
  s->call.call.user = s;
  if (!blocking && !s->has_op && !s->by_callback) return;
  /* Logs have no call of their own here, and so block. */
  if (s->call.kind == 10) return;
  s->active = true;
  s->deadline = r->world.clock + (uint64_t)timeout;
  if (blocking) r->blocking = s;
  r->depth += blocking;
  code = fuzz_call_start(&s->call, r->world.client, &err);
  r->depth -= blocking;
  r->blocking = NULL;
  FUZZ_CHECK(s->ended == 0 && s->active);
  FUZZ_CHECK(code >= 0 || (err.code == code && err.message[0]));
  FUZZ_CHECK(blocking ? code != E2B_PENDING : code != E2B_OK); /* what does not block has not been done yet */
  if (code == E2B_PENDING) return;
  fuzz_client_ended(s, &err);
}

static void fuzz_client_forget_box(fuzz_client_run *r) {
  e2b_sandbox *box = r->box;
  int i;
  r->box = NULL;
  r->handle = NULL;
  r->stream = NULL;
  r->watch = NULL;
  for (i = 0; i < FUZZ_SLOTS; i++)
    if (r->slots[i].active && r->slots[i].call.kind >= 14) r->slots[i].orphan = true;
  e2b_sandbox_free(box);
}

/* Takes what a handle has, without waiting. */
static void fuzz_client_pull(fuzz_client_run *r, unsigned what) {
  e2b_command_event event;
  e2b_fs_event change;
  e2b_error err;
  char bytes[64];
  size_t got = 0;
  e2b_err code = E2B_PENDING;
  memset(&err, 0, sizeof err);
  if (what == 0 && r->handle) code = e2b_command_handle_next(r->handle, 0, &event, &err);
  if (what == 1 && r->stream) code = e2b_file_stream_read(r->stream, 0, bytes, sizeof bytes, &got, &err);
  if (what == 2 && r->watch) code = e2b_watch_handle_next(r->watch, 0, &change, &err);
  FUZZ_CHECK(code > E2B_ERR_CANCELED - 100 && (code >= 0 || err.message[0]));
}

static void fuzz_client_drop(fuzz_client_run *r, unsigned what) {
  e2b_command_handle *handle = r->handle;
  e2b_file_stream *stream = r->stream;
  e2b_watch_handle *watch = r->watch;
  e2b_sandbox *made = r->made[0];
  switch (what) {
  case 0: r->handle = NULL; e2b_command_handle_free(handle); break;
  case 1: r->stream = NULL; e2b_file_stream_free(stream); break;
  case 2: r->watch = NULL; if (!r->depth) e2b_watch_handle_stop(watch); else r->watch = watch; break;
  case 3: r->made[0] = NULL; e2b_sandbox_free(made); break;
  case 4: if (handle) e2b_command_handle_disconnect(handle); break;
  case 5: if (handle) e2b_command_handle_resume(handle); break;
  case 6: fuzz_client_forget_box(r); break;
  default: break;
  }
}

/* One step of ours that callbacks may do, too. */
static void fuzz_client_own(fuzz_client_run *r, unsigned op) {
  fuzz_slot *s;
  switch (op % 6) {
  case 0:
    op = fuzz_client_byte(r);
    fuzz_client_call(r, op, fuzz_client_byte(r));
    break;
  case 1:
    s = &r->slots[fuzz_client_byte(r) % FUZZ_SLOTS];
    if (!s->active || !s->has_op || s->call.call.op == NULL) break;
    s->active = false; /* nothing comes any more */
    e2b_op_cancel(r->world.client, s->op);
    fuzz_client_adopt(r, s); /* it may have been done already */
    break;
  case 2:
    s = &r->slots[fuzz_client_byte(r) % FUZZ_SLOTS];
    if (s->has_op) e2b_op_resume(r->world.client, s->op);
    break;
  case 3: fuzz_client_drop(r, fuzz_client_byte(r) % 7); break;
  case 4: fuzz_client_pull(r, fuzz_client_byte(r) % 3); break;
  default: fuzz_client_collect(r, &r->slots[fuzz_client_byte(r) % FUZZ_SLOTS]); break;
  }
}

/* In a callback: often nothing. */
static void fuzz_client_act(fuzz_client_run *r) {
  unsigned op;
  if (r->over || r->depth > 1) return;
  op = fuzz_client_byte(r);
  if (op < 192) return;
  r->depth++;
  fuzz_client_own(r, op);
  r->depth--;
}

/* ---- what servers do ---- */

static void fuzz_client_frame(e2b__buf *out, unsigned type, unsigned flags, uint32_t id, const void *data, size_t len) {
  e2b__h2_put_frame(out, (uint8_t)type, flags, id, data, len);
}

static void fuzz_client_field(e2b__buf *block, const char *name, const char *value) {
  e2b__buf_byte(block, 0);
  e2b__buf_byte(block, (uint8_t)strlen(name));
  e2b__buf_text(block, name);
  e2b__buf_byte(block, (uint8_t)strlen(value));
  e2b__buf_text(block, value);
}

static const char *const fuzz_client_bodies[] = {
  "", "{}", "[]", "hello", "{\"sandboxID\":\"i1\",\"envdVersion\":\"0.5.7\",\"state\":\"running\"}",
  "[{\"name\":\"x\",\"path\":\"/x\",\"type\":\"file\"}]", "{\"code\":\"not_found\",\"message\":\"x\"}",
  "{\"code\":404,\"message\":\"x\"}", "{\"type\":\"stdout\",\"text\":\"x\"}\n{\"type\":\"end_of_execution\"}\n",
  "{\"message\":\"sandbox not found\",\"code\":502}", "[{\"sandboxID\":\"i1\"}]",
};

static const char *const fuzz_client_types[] = { "application/json", "application/proto", "application/connect+proto",
                                                 "application/connect+json", "application/octet-stream", "text/plain" };

/* The head of an answer; `len`: of its body, SIZE_MAX = in chunks. */
static void fuzz_client_head(fuzz_client_run *r, e2b__buf *out, unsigned what, uint32_t id, size_t len) {
  static const int statuses[] = { 200, 204, 404, 415, 502, 429, 201, 401, 503, 206, 507, 100 };
  char status[8], text[300];
  const char *type = fuzz_client_types[what / 12 % E2B__COUNT(fuzz_client_types)];
  e2b__buf block;
  (void)snprintf(status, sizeof status, "%d", statuses[what % 12]);
  if (r->world.config.http_version != 2) {
    (void)snprintf(text, sizeof text, "HTTP/1.1 %s X\r\ncontent-type: %s\r\n", status, type);
    e2b__buf_text(out, text);
    if (len == SIZE_MAX) (void)snprintf(text, sizeof text, "transfer-encoding: chunked\r\n\r\n");
    else (void)snprintf(text, sizeof text, "content-length: %lu\r\n\r\n", (unsigned long)len);
    e2b__buf_text(out, what % 12 == 11 ? "\r\n" : text);
    return;
  }
  e2b__buf_init(&block, &r->world.server.mem, 1000);
  fuzz_client_field(&block, ":status", status);
  fuzz_client_field(&block, "content-type", type);
  fuzz_client_frame(out, E2B__H2_HEADERS, E2B__H2_END_HEADERS | (len == 0 ? E2B__H2_END_STREAM : 0u), id, block.data, block.len);
  e2b__buf_free(&block);
}

static void fuzz_client_part(fuzz_client_run *r, e2b__buf *out, uint32_t id, const void *data, size_t len, bool whole, bool last) {
  char text[32];
  if (r->world.config.http_version == 2) {
    fuzz_client_frame(out, E2B__H2_DATA, last ? E2B__H2_END_STREAM : 0u, id, data, len);
    return;
  }
  (void)snprintf(text, sizeof text, "%lx\r\n", (unsigned long)len);
  if (!whole && len) e2b__buf_text(out, text);
  e2b__buf_put(out, data, len);
  if (!whole && len) e2b__buf_text(out, "\r\n");
  if (!whole && last) e2b__buf_text(out, "0\r\n\r\n");
}

/* A message of a stream: something a process or a watch says. */
static void fuzz_client_message(fuzz_client_run *r, e2b__buf *out, unsigned what) {
  e2b__event_response event;
  e2b__watch_dir_response watch;
  e2b__rpc rpc;
  memset(&event, 0, sizeof event);
  memset(&watch, 0, sizeof watch);
  memset(&rpc, 0, sizeof rpc);
  rpc.stream = true;
  rpc.json = r->world.config.codec == E2B_CODEC_JSON;
  event.has_event = true;
  switch (what % 8) {
  case 0: event.event.has_start = true; event.event.start.pid = 7; break;
  case 1: event.event.has_data = event.event.data.has_stdout_data = true; event.event.data.stdout_data = e2b__str("output"); break;
  case 2: event.event.has_data = event.event.data.has_pty = true; event.event.data.pty = e2b__str("7 2\n"); break;
  case 3: event.event.has_end = event.event.end.exited = true; event.event.end.exit_code = what / 8 % 3; break;
  case 4: watch.has_start = true; break;
  case 5:
    watch.has_filesystem = true;
    watch.filesystem.name = e2b__str(what & 64 ? "." : "x");
    watch.filesystem.type = (int32_t)(what / 8 % 7);
    break;
  default: e2b__buf_put(out, "\2\0\0\0\2{}", 7); return;
  }
  if (watch.has_start || watch.has_filesystem) e2b__rpc_encode(&rpc, &e2b__msg_watch_dir_response, &watch, out);
  else e2b__rpc_encode(&rpc, &e2b__msg_event_response, &event, out);
}

static void fuzz_client_say(fuzz_client_run *r, unsigned op) {
  unsigned which = fuzz_client_byte(r), what = fuzz_client_byte(r), n;
  fuzz_conn *conn = &r->world.conns[(which & 7u) % FUZZ_CONNS];
  uint32_t id = 1 + 2 * (which >> 3 & 7u);
  const char *body = fuzz_client_bodies[what % E2B__COUNT(fuzz_client_bodies)];
  e2b__buf *out = &conn->in, message;
  uint8_t window[4] = { 0, 0, 4, 0 };
  if (out->len > 20000 || conn->eof) return;
  e2b__buf_init(&message, &r->world.server.mem, 4000);
  switch (op % 8) {
  case 0: /* a whole answer */
    fuzz_client_head(r, out, fuzz_client_byte(r), id, strlen(body));
    if (*body) fuzz_client_part(r, out, id, body, strlen(body), true, true);
    break;
  case 1: fuzz_client_head(r, out, what, id, SIZE_MAX); break;
  case 2: /* messages */
    for (n = 1 + (which >> 6); n > 0; n--, what = n ? fuzz_client_byte(r) : 0) fuzz_client_message(r, &message, what);
    fuzz_client_part(r, out, id, message.data, message.len, false, false);
    break;
  case 3: fuzz_client_part(r, out, id, body, strlen(body), (what & 128u) != 0, (what & 64u) != 0); break;
  case 4: /* anything */
    n = (unsigned)E2B__MIN((size_t)what, r->len - r->at);
    e2b__buf_put(out, r->script + r->at, n);
    r->at += n;
    break;
  case 5: fuzz_client_frame(out, what % 10, which >> 6, what & 64u ? id : 0, window + (what >> 5 & 1u), 4 - (what >> 5 & 1u)); break;
  case 6: /* settings, goaway, reset */
    if (what % 3 == 0) fuzz_client_frame(out, E2B__H2_SETTINGS, what & 64u ? E2B__H2_ACK : 0, 0, NULL, 0);
    if (what % 3 == 1) fuzz_client_frame(out, E2B__H2_GOAWAY, 0, 0, what & 64u ? "\0\0\0\1\0\0\0\0" : "\0\0\0\0\0\0\0\0", 8);
    if (what % 3 == 2) fuzz_client_frame(out, E2B__H2_RST_STREAM, 0, id, what & 64u ? "\0\0\0\7" : "\0\0\0\x0d", 4);
    break;
  default:
    if (what % 4 == 0) conn->eof = true;
    if (what % 4 == 1) conn->fault = -9;
    if (what % 4 == 2) conn->room = what;
    if (what % 4 == 3) conn->room = SIZE_MAX;
    conn->seed = what / 4 + 1;
    break;
  }
  e2b__buf_free(&message);
}

/* ---- time ---- */

/* One turn. What had to be over by now is. */
static void fuzz_client_turn(fuzz_client_run *r) {
  uint64_t now = r->world.clock;
  unsigned i;
  bool starved = r->world.heap.fail_at != 0;
  (void)e2b_client_poll(r->world.client, 0);
  for (i = 0; i < FUZZ_SLOTS; i++) {
    fuzz_slot *s = &r->slots[i];
    if (!s->by_callback) fuzz_client_collect(r, s);
    FUZZ_CHECK(!s->active || s->deadline > now || starved);
  }
}

static void fuzz_client_step(fuzz_client_run *r, unsigned op);

/* While a blocking call waits, the world goes on; when the script is over, time does. */
static void fuzz_client_wait(fuzz_world *w) {
  fuzz_client_run *r = (fuzz_client_run *)(void *)w; /* its first member */
  FUZZ_CHECK(!r->blocking || w->clock < r->blocking->deadline); /* else it would not wait */
  if (r->at >= r->len) r->over = true;
  if (r->over) w->clock += 1000;
  else fuzz_client_step(r, fuzz_client_byte(r) | 128u);
}

static void fuzz_client_step(fuzz_client_run *r, unsigned op) {
  fuzz_world *w = &r->world;
  if (op < 96) {
    fuzz_client_own(r, op);
  } else if (op < 128) {
    int turns = 1 + (int)(op & 3u);
    while (turns--) fuzz_client_turn(r);
  } else if (op < 208) {
    fuzz_client_say(r, op);
  } else if (op < 240) {
    w->clock += 1u << (op & 15u);
  } else if (op < 248) {
    w->next_looks = (int)(op & 3u) - 1;
    w->next_room = op & 4u ? fuzz_client_byte(r) : SIZE_MAX;
  } else if (op == 248) {
    w->heap.fail_at = w->heap.calls + 1 + fuzz_client_byte(r);
    w->heap.fail_once = true;
  } else if (op == 249) {
    w->heap.fail_at = w->heap.calls + 1 + fuzz_client_byte(r);
    w->heap.fail_once = false;
  } else if (op == 250) {
    w->heap.fail_at = 0;
  } else if (op == 251) {
    w->refuse_from = w->conn_count + (int)(fuzz_client_byte(r) & 3u);
  } else if (op == 252) {
    e2b_client_interrupt(w->client);
  } else if (op == 253 && !r->box && !r->depth) {
    e2b_error err;
    r->box = fuzz_world_sandbox(w, &err);
  }
}

static void fuzz_client(const uint8_t *data, size_t len) {
  static fuzz_client_run r;
  e2b_error err;
  int i, turns;
  if (len < 2) return;
  memset(&r, 0, sizeof r);
  r.script = data + 1;
  r.len = len - 1;
  fuzz_world_begin(&r.world, data[0] & 1u ? 2 : 1, (data[0] & 2u) != 0);
  r.world.on_wait = fuzz_client_wait;
  r.world.config.request_timeout_ms = 5000;
  r.world.config.connect_timeout_ms = 3000;
  if (data[0] & 4u) r.world.config.max_ops = 3;
  if (data[0] & 8u) r.world.config.max_connections = 2;
  if (data[0] & 16u) r.world.next_looks = 1;
  r.world.greets = !(data[0] & 64u);
  r.world.client = e2b_client_create(&r.world.config, &err);
  FUZZ_CHECK(r.world.client != NULL);
  r.box = fuzz_world_sandbox(&r.world, &err);
  while (r.at < r.len) fuzz_client_step(&r, fuzz_client_byte(&r));
  /* The servers go away and time passes: whatever is still under way ends. */
  r.over = true;
  r.world.heap.fail_at = 0;
  r.world.refuse_from = 0;
  for (i = 0; i < FUZZ_CONNS; i++) r.world.conns[i].eof = true;
  for (turns = 0; turns < 40; turns++) {
    fuzz_client_turn(&r);
    r.world.clock += 2000;
    if (turns == 20 && data[0] & 32u) break; /* some are ended by the end of the client */
  }
  for (i = 0; i < FUZZ_SLOTS && turns == 40; i++) FUZZ_CHECK(!r.slots[i].active);
  r.world.on_wait = NULL;
  e2b_client_free(r.world.client);
  r.world.client = NULL;
  for (i = 0; i < FUZZ_SLOTS; i++) {
    FUZZ_CHECK(!r.slots[i].active || !r.slots[i].by_callback);
    fuzz_call_free(&r.slots[i].call);
  }
  fuzz_world_end(&r.world);
}

FUZZ_TARGET(client)
