/* Fuzzes the streams that come from a sandbox. The first octet: bits 0 to 1 what it is (0 process events, 1 watch events, 2
 * lines of the code interpreter, 3 the end of a stream), bit 2 the codec is JSON; the second: the seed of the cuts. However
 * the stream is cut, the same events come out. */
#include "fuzz_main.h"

typedef struct fuzz_connect_run {
  fuzz_heap heap;
  e2b_client client;
  e2b__buf log;
} fuzz_connect_run;

static void fuzz_connect_begin(fuzz_connect_run *f) {
  memset(f, 0, sizeof *f);
  fuzz_heap_init(&f->heap, 0);
  e2b__mem_init(&f->client.mem, &f->heap.mem.allocator);
  f->client.config.max_message_bytes = 1000;
  f->client.config.max_result_bytes = 3000;
  e2b__buf_init(&f->log, &f->heap.mem, SIZE_MAX);
}

static void fuzz_connect_end(fuzz_connect_run *f) {
  e2b__buf_free(&f->log);
  FUZZ_CHECK(f->heap.live == 0);
}

/* Writes down the messages of a stream of envelopes. Returns what its reader found at last. */
static e2b_err fuzz_connect_messages(fuzz_connect_run *f, const uint8_t *data, size_t len, bool watch, bool json,
                                     uint32_t seed) {
  const e2b__message *type = watch ? &e2b__msg_watch_dir_response : &e2b__msg_event_response;
  size_t got = 0, at = 0, need = 0, before;
  e2b__envelope envelope;
  e2b__rpc rpc;
  e2b__arena arena;
  e2b_error err;
  e2b_err code = E2B_PENDING;
  e2b__buf again;
  void *message;
  memset(&rpc, 0, sizeof rpc);
  memset(&err, 0, sizeof err);
  rpc.stream = true;
  rpc.json = json;
  e2b__buf_init(&again, &f->heap.mem, SIZE_MAX);
  while (code == E2B_PENDING && got < len) {
    uint8_t *window;
    got += fuzz_piece(&seed, len - got);
    do {
      window = fuzz_copy(data + at, got - at);
      before = need;
      code = e2b__envelope_get(window, got - at, f->client.config.max_message_bytes, &envelope, &need);
      FUZZ_CHECK(code != E2B_PENDING || need > got - at);
      FUZZ_CHECK(code || (envelope.size <= got - at && envelope.len + 5 == envelope.size && before <= envelope.size));
      if (!code && envelope.end) {
        code = e2b__envelope_end(&f->client, &envelope, E2B_SUBJECT_PROCESS, &err);
        FUZZ_CHECK(!code || (err.code == code && err.message[0]));
        e2b__buf_text(&f->log, err.message);
        if (!code) at += envelope.size;
        need = 0;
      } else if (!code) {
        e2b__arena_init(&arena, &f->heap.mem, 4096);
        message = e2b__arena_alloc(&arena, type->size);
        code = e2b__rpc_decode(&rpc, type, envelope.data, envelope.len, &arena, message, &err);
        FUZZ_CHECK(!code || (err.code == code && err.message[0]));
        again.len = 0;
        if (!code) e2b__rpc_encode(&rpc, type, message, &again);
        e2b__buf_put(&f->log, again.data, again.len);
        e2b__arena_free(&arena);
        at += envelope.size;
        if (!code) FUZZ_CHECK(!e2b__envelope_get(again.data, again.len, SIZE_MAX, &envelope, &need));
        if (!code) FUZZ_CHECK(envelope.size == again.len && !envelope.end);
        need = 0;
      }
      free(window);
    } while (code == E2B_OK && at < got);
    if (code == E2B_OK) code = E2B_PENDING;
  }
  e2b__buf_free(&again);
  return code;
}

/* ---- the code interpreter ---- */

static int fuzz_connect_on_event(void *user, const e2b_code_event *event) {
  fuzz_connect_run *f = (fuzz_connect_run *)user;
  e2b_code_result copy;
  size_t i;
  e2b__buf_u64(&f->log, (uint64_t)event->kind);
  e2b__buf_str(&f->log, event->text);
  e2b__buf_str(&f->log, event->timestamp);
  e2b__buf_i64(&f->log, event->count);
  FUZZ_CHECK((event->kind == E2B_CODE_RESULT) == (event->result != NULL));
  FUZZ_CHECK((event->kind == E2B_CODE_ERROR) == (event->error != NULL));
  if (event->result) copy = *event->result;
  for (i = 0; event->result && i < E2B__COUNT(e2b__code_formats); i++) {
    e2b_str *text = e2b__code_format_of(&copy, i);
    FUZZ_CHECK(text->ptr && text->ptr[text->len] == 0);
    e2b__buf_str(&f->log, *text);
  }
  if (event->error) {
    e2b__buf_text(&f->log, event->error->name);
    e2b__buf_text(&f->log, event->error->value);
    e2b__buf_text(&f->log, event->error->traceback);
  }
  e2b__buf_byte(&f->log, '\n');
  return 0;
}

static e2b_err fuzz_connect_lines(fuzz_connect_run *f, const uint8_t *data, size_t len, uint32_t seed) {
  static e2b__code_run run;
  e2b_execution out;
  size_t got = 0, at = 0, taken;
  e2b_err code = E2B_OK;
  e2b_error err;
  memset(&run, 0, sizeof run);
  memset(&out, 0, sizeof out);
  memset(&err, 0, sizeof err);
  run.data.task.op.client = run.data.task.req.client = &f->client;
  run.data.task.req.status = 200;
  run.data.task.out = &out;
  run.on_event = fuzz_connect_on_event;
  run.event_user = f;
  e2b__buf_init(&run.output[0], &f->client.mem, 100);
  e2b__buf_init(&run.output[1], &f->client.mem, 100);
  e2b__arena_init(&run.arena, &f->client.mem, 3000);
  e2b__arena_init(&run.error_arena, &f->client.mem, SIZE_MAX / 4);
  while (!code && got < len) {
    uint8_t *window;
    got += fuzz_piece(&seed, len - got);
    window = fuzz_copy(data + at, got - at);
    taken = 0;
    code = e2b__code_on_body(&run.data.task.req, window, got - at, &taken);
    FUZZ_CHECK(taken <= got - at && (code || !memchr(window + taken, '\n', got - at - taken)));
    free(window);
    at += taken;
  }
  if (!code && at < len) {
    code = e2b__code_take_line(&run, data + at, len - at);
    FUZZ_CHECK(!code);
  }
  FUZZ_CHECK(!code || (code == E2B_ERR_LIMIT && run.why));
  FUZZ_CHECK(!e2b__result_fill(&f->client, e2b__fill_execution, &run, &out, &err));
  FUZZ_CHECK(out.stdout_data.len <= 100 && out.stdout_data.ptr[out.stdout_data.len] == 0 && e2b_execution_text(&out));
  FUZZ_CHECK((out.error != NULL) == run.has_error && out.result_count == run.results.count);
  e2b__buf_u64(&f->log, out.result_count);
  e2b__buf_str(&f->log, out.stdout_data);
  e2b__buf_str(&f->log, out.stderr_data);
  e2b__buf_byte(&f->log, (uint8_t)(run.ended + 2 * run.truncated));
  e2b_mem_free(&out.mem);
  e2b__buf_free(&run.output[0]);
  e2b__buf_free(&run.output[1]);
  e2b__arena_free(&run.arena);
  e2b__arena_free(&run.error_arena);
  return code;
}

static e2b_err fuzz_connect_one(fuzz_connect_run *f, unsigned what, const uint8_t *data, size_t len, uint32_t seed) {
  e2b__envelope envelope;
  e2b_error err;
  e2b_err code;
  fuzz_connect_begin(f);
  if ((what & 3u) < 2) return fuzz_connect_messages(f, data, len, what & 1u, (what & 4u) != 0, seed);
  if ((what & 3u) == 2) return fuzz_connect_lines(f, data, len, seed);
  memset(&envelope, 0, sizeof envelope);
  memset(&err, 0, sizeof err);
  envelope.data = data;
  envelope.len = len;
  code = e2b__envelope_end(&f->client, &envelope, E2B_SUBJECT_FILE, &err);
  FUZZ_CHECK(code <= 0 && (!code || (err.code == code && err.message[0])));
  FUZZ_CHECK(len <= f->client.config.max_message_bytes || code == E2B_ERR_LIMIT);
  return code;
}

static void fuzz_connect(const uint8_t *data, size_t len) {
  static fuzz_connect_run whole, pieces;
  unsigned what, seed, i;
  e2b_err code;
  if (len < 2) return;
  what = data[0];
  seed = data[1];
  code = fuzz_connect_one(&whole, what, data + 2, len - 2, 0);
  for (i = 0; i < 2; i++) {
    FUZZ_CHECK(fuzz_connect_one(&pieces, what, data + 2, len - 2, i ? seed + 2 : 1) == code);
    FUZZ_CHECK(fuzz_same(&whole.log, &pieces.log));
    fuzz_connect_end(&pieces);
  }
  fuzz_connect_end(&whole);
}

FUZZ_TARGET(connect)
