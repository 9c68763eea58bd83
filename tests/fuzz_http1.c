/* Fuzzes the reader of HTTP/1.1 responses. The first octet: bit 0 the request was HEAD, bit 1 it was CONNECT, bits 2 and 3
 * the limit of the head, bits 4 to 7 the seed of the cuts; the second: the allocation that fails, 0 = none. Whole, byte by
 * byte or in pieces, what comes out is the same. */
#include "fuzz_main.h"

typedef struct fuzz_http1_run {
  fuzz_heap heap;
  e2b__h1 h1;
  e2b__buf log; /* what the events said, and how it ended */
  size_t body;
  int heads;
} fuzz_http1_run;

static e2b_err fuzz_http1_on_head(void *owner, int status, const e2b__headers *headers) {
  fuzz_http1_run *f = (fuzz_http1_run *)owner;
  e2b_str name, value;
  size_t cursor = 0, i;
  uint32_t count = 0;
  FUZZ_CHECK(++f->heads == 1 && status >= 200 && status < 600 && !f->body);
  e2b__buf_u64(&f->log, (uint64_t)status);
  while (e2b__headers_next(headers, &cursor, &name, &value)) {
    count++;
    FUZZ_CHECK(e2b__header_name_ok(name) && (!value.len || !e2b__is_blank(value.ptr[value.len - 1])));
    for (i = 0; i < value.len; i++) FUZZ_CHECK(!e2b__is_control(value.ptr[i]));
    for (i = 0; i < name.len; i++) FUZZ_CHECK(name.ptr[i] == e2b__ascii_lower(name.ptr[i]));
    e2b__buf_str(&f->log, name);
    e2b__buf_byte(&f->log, '=');
    e2b__buf_str(&f->log, value);
    e2b__buf_byte(&f->log, '\n');
  }
  FUZZ_CHECK(count == headers->count && count <= E2B__H1_MAX_FIELDS && cursor == headers->text.len);
  return E2B_OK;
}

static e2b_err fuzz_http1_on_body(void *owner, const uint8_t *data, size_t len) {
  fuzz_http1_run *f = (fuzz_http1_run *)owner;
  FUZZ_CHECK(f->heads == 1 && len > 0 && !f->h1.complete);
  f->body += len;
  e2b__buf_put(&f->log, data, len);
  return E2B_OK;
}

static const e2b__h1_events fuzz_http1_events = { fuzz_http1_on_head, fuzz_http1_on_body };

static void fuzz_http1_begin(fuzz_http1_run *f, unsigned flags, size_t fail_at) {
  static const uint32_t limits[] = { 8192, 64, 300, 100000 };
  memset(f, 0, sizeof *f);
  fuzz_heap_init(&f->heap, fail_at);
  e2b__h1_init(&f->h1, &f->heap.mem, limits[flags >> 2 & 3u], &fuzz_http1_events, f);
  e2b__h1_begin(&f->h1, (flags & 1u) != 0, (flags & 2u) != 0);
}

/* Feeds it in pieces until it has an end; returns how much was taken. With `memory`, what is told is kept there. */
static size_t fuzz_http1_feed(fuzz_http1_run *f, const uint8_t *data, size_t len, uint32_t seed, e2b__mem *memory,
                              bool closed) {
  size_t at = 0, n, used = 0;
  e2b_err err = E2B_OK;
  e2b__buf_init(&f->log, memory, SIZE_MAX);
  while (at < len && !err && !f->h1.complete) {
    uint8_t *piece;
    n = fuzz_piece(&seed, len - at);
    piece = fuzz_copy(data + at, n);
    err = e2b__h1_feed(&f->h1, piece, n, &used);
    free(piece);
    FUZZ_CHECK(used <= n && (used == n || f->h1.complete || err));
    at += used;
  }
  if (closed && !err) err = e2b__h1_finish(&f->h1);
  FUZZ_CHECK(!err || (f->h1.detail && !f->h1.complete));
  FUZZ_CHECK(!f->h1.complete || f->heads == 1);
  FUZZ_CHECK(!f->h1.keep_alive || f->h1.complete);
  FUZZ_CHECK(f->h1.headers.text.cap <= f->h1.max_framing);
  e2b__buf_i64(&f->log, err);
  e2b__buf_text(&f->log, f->h1.detail ? f->h1.detail : "");
  e2b__buf_byte(&f->log, (uint8_t)(f->h1.complete + 2 * f->h1.keep_alive + 4 * f->h1.head_done + 8 * f->h1.started));
  if (f->h1.complete) e2b__buf_u64(&f->log, at);
  return at;
}

static void fuzz_http1_end(fuzz_http1_run *f) {
  e2b__buf_free(&f->log);
  e2b__h1_free(&f->h1);
  FUZZ_CHECK(f->heap.live == 0);
}

/* A head that was taken can be written in a request and is not changed by that. */
static void fuzz_http1_write(const e2b__h1 *h1, e2b__mem *mem) {
  e2b__headers headers;
  e2b_str name, value;
  size_t cursor = 0;
  e2b__buf out;
  e2b__buf_init(&out, mem, SIZE_MAX);
  e2b__headers_init(&headers, mem, SIZE_MAX);
  while (e2b__headers_next(&h1->headers, &cursor, &name, &value)) e2b__headers_add(&headers, name, value);
  FUZZ_CHECK(headers.count == h1->headers.count && !headers.text.err);
  FUZZ_CHECK(fuzz_same(&headers.text, &h1->headers.text));
  e2b__h1_write_head(&out, "GET", e2b__str("/"), e2b__str("host"), &headers, E2B__BODY_NONE);
  FUZZ_CHECK(!out.err && out.len > 4 && memcmp(out.data + out.len - 4, "\r\n\r\n", 4) == 0);
  for (cursor = 0; cursor + 4 < out.len; cursor++) FUZZ_CHECK(memcmp(out.data + cursor, "\r\n\r\n", 4) != 0);
  (void)e2b__http_retry_after_ms(e2b__headers_get(&headers, "retry-after") ? e2b__headers_get(&headers, "retry-after") : "");
  e2b__headers_free(&headers);
  e2b__buf_free(&out);
}

static void fuzz_http1(const uint8_t *data, size_t len) {
  static fuzz_http1_run whole, pieces;
  fuzz_heap notes;
  size_t used, fail_at, i, step;
  unsigned flags;
  if (len < 2) return;
  fuzz_heap_init(&notes, 0);
  flags = data[0];
  fail_at = data[1];
  data += 2;
  len -= 2;
  fuzz_http1_begin(&whole, flags, 0);
  used = fuzz_http1_feed(&whole, data, len, 0, &notes.mem, true);
  for (i = 0; i < 2; i++) {
    fuzz_http1_begin(&pieces, flags, 0);
    (void)fuzz_http1_feed(&pieces, data, len, i ? (flags >> 4) * 7919u + 2 : 1, &notes.mem, true);
    FUZZ_CHECK(fuzz_same(&whole.log, &pieces.log));
    fuzz_http1_end(&pieces);
  }
  if (whole.h1.complete) {
    fuzz_http1_write(&whole.h1, &notes.mem);
    /* Cut earlier it is not complete; nor does anything behind it matter. */
    step = used / 64 + 1;
    for (i = 0; i < used && !whole.h1.until_close; i += step) {
      fuzz_http1_begin(&pieces, flags, 0);
      (void)fuzz_http1_feed(&pieces, data, used - 1 - i, 0, &notes.mem, true);
      FUZZ_CHECK(!pieces.h1.complete && pieces.h1.err);
      fuzz_http1_end(&pieces);
    }
  }
  if (fail_at) {
    fuzz_http1_begin(&pieces, flags, fail_at);
    (void)fuzz_http1_feed(&pieces, data, len, 0, &notes.mem, true);
    FUZZ_CHECK(pieces.heap.calls < fail_at || pieces.h1.err == E2B_ERR_NO_MEMORY);
    fuzz_http1_end(&pieces);
  }
  fuzz_http1_end(&whole);
  FUZZ_CHECK(notes.live == 0);
}

FUZZ_TARGET(http1)
