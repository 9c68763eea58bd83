/* Fuzzes the client side of HTTP/2 with what a server may send. The first octets say what the client does meanwhile:
 *   0: how many requests (0 to 7), and by its high bits which of them have a body
 *   1: how the input is cut into reads (0 = whole)
 *   2: what the events do: refill, reset, fail, open another stream
 *   3: bit 0: the server's SETTINGS are in the input, too; the rest: milliseconds between reads */
#include "fuzz_main.h"

typedef struct fuzz_http2_run {
  e2b__h2 h2;
  e2b__mem mem;
  unsigned actions, calls, opened, ended;
} fuzz_http2_run;

static void fuzz_http2_open_stream(fuzz_http2_run *f, bool upload) {
  e2b__headers headers;
  e2b_err err;
  if (f->h2.draining || f->opened - f->ended >= 8) return;
  e2b__headers_init(&headers, &f->mem, 1000);
  e2b__headers_set(&headers, "content-type", e2b__str("text/plain"));
  if (e2b__h2_open(&f->h2, f->calls % 5 == 4 ? "HEAD" : upload ? "POST" : "GET", true, e2b__str("host"), e2b__str("/path"), &headers,
                   upload ? E2B__BODY_CHUNKED : E2B__BODY_NONE, f, &err))
    f->opened++;
  e2b__headers_free(&headers);
}

/* What an event does to its stream; false = it is gone. */
static bool fuzz_http2_act(fuzz_http2_run *f, e2b__h2_stream *stream) {
  unsigned action = f->actions >> (f->calls++ % 3) * 2 & 3u;
  if (action == 1) e2b__h2_refill(stream);
  if (action == 2 && f->calls % 4 == 0) fuzz_http2_open_stream(f, f->calls % 8 == 0);
  if (action != 3 || f->calls % 5) return true;
  f->ended++;
  e2b__h2_reset(stream, E2B__H2_CANCEL);
  return false;
}

static e2b_err fuzz_http2_on_head(e2b__h2_stream *stream, int status, const e2b__headers *headers) {
  fuzz_http2_run *f = (fuzz_http2_run *)stream->owner;
  FUZZ_CHECK(status >= 200 && status < 600 && headers->text.len <= 8192 && !stream->got_end);
  return !fuzz_http2_act(f, stream) || f->calls % 11 ? E2B_OK : E2B_ERR_CANCELED;
}

static e2b_err fuzz_http2_on_body(e2b__h2_stream *stream, const uint8_t *data, size_t len) {
  fuzz_http2_run *f = (fuzz_http2_run *)stream->owner;
  FUZZ_CHECK(data && len && stream->status && (stream->length < 0 || stream->received <= (uint64_t)stream->length));
  return !fuzz_http2_act(f, stream) || f->calls % 13 ? E2B_OK : E2B_ERR_CANCELED;
}

static void fuzz_http2_on_end(e2b__h2_stream *stream, const e2b__h2_end *end) {
  fuzz_http2_run *f = (fuzz_http2_run *)stream->owner;
  f->ended++;
  if (end->err) FUZZ_CHECK(end->detail);
  else FUZZ_CHECK(stream->status && stream->got_end);
}

static const e2b__h2_events fuzz_http2_events = { fuzz_http2_on_head, fuzz_http2_on_body, fuzz_http2_on_end };

static void fuzz_http2_check(fuzz_http2_run *f) {
  e2b__h2 *h2 = &f->h2;
  e2b__h2_stream *stream, *before = NULL;
  uint32_t count = 0, senders = 0;
  for (stream = h2->streams; stream; before = stream, stream = stream->next) {
    count++;
    if (!stream->sent_end) senders++;
    FUZZ_CHECK(stream->prev == before && stream->h2 == h2 && !stream->got_end && stream->receive_window >= 0);
    FUZZ_CHECK(h2->err || stream->send_window <= E2B__H2_WINDOW_MAX);
  }
  FUZZ_CHECK(count == h2->stream_count && senders == h2->senders && count == f->opened - f->ended);
  FUZZ_CHECK(h2->receive_window >= 0 && h2->receive_window <= E2B__H2_CONN_WINDOW && h2->window <= h2->max_window);
  FUZZ_CHECK(e2b__hpack_size(&h2->decoder.table) <= h2->decoder.table.limit && e2b__hpack_size(&h2->encoder.table) <= h2->encoder.table.limit);
  FUZZ_CHECK(f->mem.now < 1u << 20);
}

/* What we would send: whole frames, none too long. `greeting`: behind the preface. */
static void fuzz_http2_drain(fuzz_http2_run *f, bool greeting) {
  size_t at = greeting ? 24 : 0;
  e2b__h2_stream *stream;
  uint8_t head[E2B__H2_HEAD];
  while (at < f->h2.out.len) {
    FUZZ_CHECK(at + E2B__H2_HEAD <= f->h2.out.len);
    FUZZ_CHECK(e2b__h2_get_u32(f->h2.out.data + at) >> 8 <= E2B__H2_FRAME_MAX);
    at += E2B__H2_HEAD + (e2b__h2_get_u32(f->h2.out.data + at) >> 8);
  }
  FUZZ_CHECK(at == f->h2.out.len);
  f->h2.out.len = 0;
  f->h2.acks = 0;
  for (stream = f->h2.streams; stream; stream = stream->next) {
    size_t room = stream->sent_end ? 0 : e2b__h2_room(stream);
    if (!room) continue;
    e2b__h2_data_head(stream, head, room, f->calls % 3 == 0);
    e2b__h2_rotate(stream);
    break;
  }
}

static void fuzz_http2(const uint8_t *data, size_t len) {
  static fuzz_http2_run f;
  uint64_t now = 1;
  size_t step, i;
  if (len < 4) return;
  memset(&f, 0, sizeof f);
  e2b__mem_init(&f.mem, NULL);
  f.actions = data[2];
  e2b__h2_init(&f.h2, &f.mem, 2000, 20000, 8192, &fuzz_http2_events);
  for (i = 0; i < (data[0] & 7u); i++) fuzz_http2_open_stream(&f, (data[0] >> 3 >> i & 1u) != 0);
  fuzz_http2_drain(&f, true);
  if (!(data[3] & 1)) (void)e2b__h2_feed(&f.h2, (const uint8_t *)"\0\0\0\4\0\0\0\0\0", 9, now);
  step = data[1] ? data[1] : SIZE_MAX;
  for (i = 4; i < len && !f.h2.err; i += E2B__MIN(step, len - i)) {
    (void)e2b__h2_feed(&f.h2, data + i, E2B__MIN(step, len - i), now);
    fuzz_http2_check(&f);
    fuzz_http2_drain(&f, false);
    fuzz_http2_check(&f);
    now += data[3] >> 1;
  }
  if (f.h2.err) FUZZ_CHECK(f.h2.detail);
  e2b__h2_lost(&f.h2, E2B_ERR_CLOSED, "lost");
  FUZZ_CHECK(f.opened == f.ended && !f.h2.streams);
  e2b__h2_free(&f.h2);
  FUZZ_CHECK(f.mem.now == 0);
}

FUZZ_TARGET(http2)
