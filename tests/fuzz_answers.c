/* Fuzzes what a server answers to one call. The first octet: the call; the second: bit 0 HTTP/2, bit 1 JSON, bits 2 to 7 the
 * seed of the cuts; the rest is all it says, on one connection, which it then closes. However that arrives, the call ends
 * the same; cut short, it does not succeed, unless the proof of success had come before. */
#include "fuzz_main.h"
#include "fuzz_world.h"

typedef struct fuzz_answers_run {
  fuzz_world world;
  fuzz_call call;
  e2b_error err;
  e2b_err code;
  e2b__buf log;
} fuzz_answers_run;

static void fuzz_answers_text(fuzz_answers_run *r, const char *text) {
  FUZZ_CHECK(text != NULL);
  e2b__buf_text(&r->log, text);
  e2b__buf_byte(&r->log, ' ');
}

static void fuzz_answers_str(fuzz_answers_run *r, e2b_str text) {
  FUZZ_CHECK(text.ptr && text.ptr[text.len] == 0);
  e2b__buf_str(&r->log, text);
  e2b__buf_byte(&r->log, ' ');
}

static void fuzz_answers_kvs(fuzz_answers_run *r, e2b_kvs pairs) {
  size_t i;
  for (i = 0; i < pairs.count; i++) {
    fuzz_answers_text(r, pairs.items[i].key);
    fuzz_answers_text(r, pairs.items[i].value);
  }
}

static void fuzz_answers_info(fuzz_answers_run *r, const e2b_sandbox_info *info) {
  fuzz_answers_text(r, info->sandbox_id);
  fuzz_answers_text(r, info->template_id);
  fuzz_answers_text(r, info->envd_version);
  fuzz_answers_text(r, info->state_text);
  e2b__buf_i64(&r->log, info->end_at_ms);
  e2b__buf_i64(&r->log, info->memory_mb);
  fuzz_answers_kvs(r, info->metadata);
}

static void fuzz_answers_entry(fuzz_answers_run *r, const e2b_entry_info *entry) {
  fuzz_answers_text(r, entry->name);
  fuzz_answers_text(r, entry->path);
  fuzz_answers_text(r, entry->permissions);
  e2b__buf_i64(&r->log, entry->size);
  e2b__buf_i64(&r->log, entry->modified_time_ns);
  fuzz_answers_kvs(r, entry->metadata);
}

/* Takes what a stream of the call gives to its end. */
static void fuzz_answers_pull(fuzz_answers_run *r) {
  e2b_command_event event;
  e2b_fs_event change;
  char bytes[100];
  size_t got = 0;
  e2b_err code = E2B_OK;
  if (r->call.kind == 22) { /* pushed */
    r->code = e2b_command_handle_wait(r->call.handle, NULL, &r->call.out.result, &r->err);
    code = E2B_EOF;
  }
  while (r->call.handle && code == E2B_OK) {
    code = e2b_command_handle_next(r->call.handle, -1, &event, &r->err);
    if (code == E2B_OK && event.len) e2b__buf_put(&r->log, event.data, event.len);
    if (code == E2B_OK && event.kind == E2B_EVENT_EXIT) e2b__buf_i64(&r->log, event.exit_code);
  }
  while (r->call.stream && code == E2B_OK) {
    code = e2b_file_stream_read(r->call.stream, -1, bytes, sizeof bytes, &got, &r->err);
    if (code == E2B_OK) FUZZ_CHECK(got > 0 && got <= sizeof bytes);
    if (code == E2B_OK) e2b__buf_put(&r->log, bytes, got);
  }
  while (r->call.watch && code == E2B_OK) {
    code = e2b_watch_handle_next(r->call.watch, -1, &change, &r->err);
    if (code == E2B_OK) fuzz_answers_text(r, change.name);
  }
  e2b_command_handle_free(r->call.handle);
  e2b_file_stream_free(r->call.stream);
  e2b_watch_handle_stop(r->call.watch);
  FUZZ_CHECK(code != E2B_PENDING);
  if (code != E2B_EOF) r->code = code;
}

/* Writes down a result; of a call that failed, what its documentation says is filled nevertheless. */
static void fuzz_answers_note(fuzz_answers_run *r) {
  const fuzz_call *c = &r->call;
  size_t i;
  bool ok = r->code >= 0;
  if (r->code == E2B_OK && (c->handle || c->stream || c->watch)) fuzz_answers_pull(r);
  e2b__buf_put(&r->log, c->log.data, c->log.len);
  if (ok && c->made) fuzz_answers_text(r, e2b_sandbox_id(c->made));
  if (ok && (c->kind == 4 || c->kind == 8)) fuzz_answers_info(r, &c->out.info);
  for (i = 0; ok && c->kind == 2 && i < c->out.sandboxes.count; i++) fuzz_answers_info(r, &c->out.sandboxes.items[i]);
  if (ok && c->kind == 6) fuzz_answers_text(r, c->out.created.sandbox_id);
  if (ok && c->kind == 12) fuzz_answers_str(r, c->out.response.body);
  if (ok && c->kind == 12) fuzz_answers_kvs(r, c->out.response.headers);
  if (ok && (c->kind == 14 || c->kind == 15)) {
    fuzz_answers_str(r, c->out.result.stdout_data);
    fuzz_answers_str(r, c->out.result.stderr_data);
    fuzz_answers_text(r, c->out.result.status);
    e2b__buf_i64(&r->log, c->out.result.exit_code);
    FUZZ_CHECK((r->code == E2B_OK) == (c->out.result.exit_code == 0 && c->out.result.exited));
  }
  for (i = 0; ok && c->kind == 19 && i < c->out.processes.count; i++) fuzz_answers_text(r, c->out.processes.items[i].cmd);
  for (i = 0; ok && c->kind == 27 && i < c->out.entries.count; i++) fuzz_answers_entry(r, &c->out.entries.items[i]);
  if (ok && (c->kind == 29 || c->kind == 31)) fuzz_answers_entry(r, &c->out.entry);
  if (ok && (c->kind == 33 || c->kind == 34)) e2b__buf_put(&r->log, c->out.content.data, c->out.content.len);
  if (ok && c->kind == 34) FUZZ_CHECK(c->out.content.len <= 5);
  if (ok && (c->kind == 35 || c->kind == 36 || c->kind == 38 || c->kind == 40)) fuzz_answers_text(r, c->out.written.path);
  for (i = 0; ok && c->kind == 42 && i < 2; i++) e2b__buf_put(&r->log, c->read[i].content.data, c->read[i].content.len);
  if (c->kind == 45) fuzz_answers_text(r, e2b_execution_text(&c->out.execution));
  if (ok) e2b__buf_u64(&r->log, (uint64_t)c->flag);
  if (ok) e2b__buf_u64(&r->log, c->number);
}

static void fuzz_answers_do(fuzz_answers_run *r, const uint8_t *data, size_t len, uint32_t seed) {
  fuzz_conn *conn = &r->world.conns[0];
  memset(r, 0, sizeof *r);
  fuzz_world_begin(&r->world, (uint8_t)(data[1] & 1u ? 2 : 1), (data[1] & 2u) != 0);
  r->world.refuse_from = 1;
  e2b__buf_put(&conn->in, data + 2, len - 2);
  conn->eof = true;
  conn->seed = seed;
  e2b__buf_init(&r->log, &r->world.server.mem, SIZE_MAX);
  e2b__buf_init(&r->call.log, &r->world.server.mem, SIZE_MAX);
  r->world.client = e2b_client_create(&r->world.config, &r->err);
  FUZZ_CHECK(r->world.client != NULL);
  r->call.kind = data[0] % FUZZ_CALLS;
  r->call.sandbox = fuzz_world_sandbox(&r->world, &r->err);
  r->code = fuzz_call_start(&r->call, r->world.client, &r->err);
  FUZZ_CHECK(r->code != E2B_PENDING && r->code != E2B_ERR_NO_MEMORY);
  FUZZ_CHECK(r->code >= 0 || (r->err.code == r->code && r->err.message[0]));
  FUZZ_CHECK(r->world.clock < FUZZ_CLOCK + 200000); /* nothing waits beyond its deadline when the server is gone */
  fuzz_answers_note(r);
#ifdef FUZZ_TRACE
  fprintf(stderr, "%s \"%s\", clock +%lu: %.*s\n", e2b_err_name(r->code), r->err.message, (unsigned long)(r->world.clock - FUZZ_CLOCK),
         (int)r->log.len, r->log.data ? (const char *)r->log.data : "");
#endif
}

static void fuzz_answers_end(fuzz_answers_run *r) {
  fuzz_call_free(&r->call);
  e2b__buf_free(&r->log);
  fuzz_world_end(&r->world);
}

/* Whether the end of the connection can be the end of an answer: the first that is no 1xx has no length. */
static e2b_err fuzz_answers_on_head(void *owner, int status, const e2b__headers *headers) {
  E2B__UNUSED(owner);
  E2B__UNUSED(status);
  E2B__UNUSED(headers);
  return E2B_OK;
}

static e2b_err fuzz_answers_on_body(void *owner, const uint8_t *data, size_t len) {
  E2B__UNUSED(owner);
  E2B__UNUSED(data);
  E2B__UNUSED(len);
  return E2B_OK;
}

static bool fuzz_answers_by_close(const uint8_t *data, size_t len) {
  static const e2b__h1_events events = { fuzz_answers_on_head, fuzz_answers_on_body };
  e2b__h1 h1;
  fuzz_heap heap;
  size_t at = 0, used = 0;
  bool by_close = false;
  fuzz_heap_init(&heap, 0);
  e2b__h1_init(&h1, &heap.mem, 2000, &events, NULL);
  while (at < len && !by_close && !e2b__h1_feed(&h1, data + at, len - at, &used)) {
    at += used;
    by_close = h1.until_close;
    if (h1.complete) e2b__h1_begin(&h1, false, false);
  }
  e2b__h1_free(&h1);
  return by_close || h1.until_close;
}

static void fuzz_answers(const uint8_t *data, size_t len) {
  static fuzz_answers_run whole, other;
  uint32_t seed, i, cuts;
  bool proof;
  if (len < 3) return;
  seed = (data[1] >> 2) * 2654435761u | 2u;
  fuzz_answers_do(&whole, data, len, 0);
  for (i = 0; i < 2; i++) {
    fuzz_answers_do(&other, data, len, i ? seed : 1);
    /* Of several requests at once, it depends which of them gets the connection. */
    FUZZ_CHECK(whole.call.kind == 42 || (whole.code == other.code && fuzz_same(&whole.log, &other.log)));
    fuzz_answers_end(&other);
  }
  proof = (data[1] & 1u) != 0 || !fuzz_answers_by_close(data + 2, len - 2);
  cuts = (uint32_t)E2B__MIN(len - 3, (size_t)4);
  for (i = 0; i < cuts && proof; i++) {
    size_t cut = i < 3 ? len - 1 - i : 3 + (seed >> (i * 3)) % (len - 3);
    fuzz_answers_do(&other, data, E2B__MIN(cut, len - 1), 0);
    if (other.code >= 0 && whole.code >= 0) FUZZ_CHECK(whole.code == other.code && fuzz_same(&whole.log, &other.log));
    if (other.code >= 0) FUZZ_CHECK(whole.code != E2B_ERR_TRUNCATED && whole.code != E2B_ERR_CLOSED);
    fuzz_answers_end(&other);
  }
  fuzz_answers_end(&whole);
}

FUZZ_TARGET(answers)
