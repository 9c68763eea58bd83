/* Fuzzes what reads moments: RFC 3339, the claims of a JWT, Retry-After. The input is one text, taken for each of them. */
#include "fuzz_main.h"

static bool fuzz_time_parse(const e2b__buf *text, e2b__timestamp *out) {
  return e2b__time_parse(e2b__str_n((const char *)text->data, text->len), out);
}

static void fuzz_time_stamp(e2b_str text, fuzz_heap *h) {
  e2b__timestamp t, again;
  e2b__buf out, out2;
  memset(&t, 0, sizeof t);
  memset(&again, 0, sizeof again);
  if (!e2b__time_parse(text, &t)) return;
  FUZZ_CHECK(text.len >= 20 && t.nanos >= 0 && t.nanos < 1000000000);
  e2b__buf_init(&out, &h->mem, 64);
  e2b__buf_init(&out2, &h->mem, 64);
  e2b__time_format(t, &out);
  FUZZ_CHECK(!out.err && fuzz_time_parse(&out, &again));
  if (t.seconds >= -62135596800 && t.seconds <= 253402300799) FUZZ_CHECK(again.seconds == t.seconds && again.nanos == t.nanos);
  e2b__time_format(again, &out2);
  FUZZ_CHECK(fuzz_same(&out, &out2));
  e2b__buf_free(&out);
  e2b__buf_free(&out2);
}

/* Any number of seconds is a moment between the years 1 and 9999, and later ones do not come before earlier ones. */
static void fuzz_time_number(int64_t seconds, int32_t nanos, fuzz_heap *h) {
  static const int64_t first = -62135596800, last = 253402300799;
  e2b__timestamp t, again;
  e2b__buf out;
  memset(&again, 0, sizeof again);
  t.seconds = seconds;
  t.nanos = nanos;
  e2b__buf_init(&out, &h->mem, 64);
  e2b__time_format(t, &out);
  FUZZ_CHECK(out.len >= 20 && out.len <= 30 && fuzz_time_parse(&out, &again));
  FUZZ_CHECK(again.seconds == E2B__MIN(E2B__MAX(seconds, first), last));
  e2b__buf_free(&out);
}

static void fuzz_time_token(e2b_str text, fuzz_heap *h) {
  int64_t issued = -7, expires = -7, issued2, expires2;
  e2b_err code = e2b__jwt_read(&h->mem, text, 1000, &issued, &expires);
  char *copy;
  FUZZ_CHECK(code == E2B_OK || code == E2B_ERR_PROTOCOL);
  if (code) return;
  FUZZ_CHECK(issued >= 0 && expires >= 0);
  copy = fuzz_text(text.ptr, text.len + 0); /* a signature behind it changes nothing */
  copy = (char *)realloc(copy, text.len + 5);
  (void)memcpy(copy + text.len, ".sig", 5);
  FUZZ_CHECK(!e2b__jwt_read(&h->mem, e2b__str(copy), 1000, &issued2, &expires2) || memchr(text.ptr, 0, text.len));
  free(copy);
}

/* A payload as it is, made a token. */
static void fuzz_time_claims(e2b_str text, fuzz_heap *h) {
  int64_t issued = -7, expires = -7;
  e2b__buf token;
  e2b_err code;
  e2b__buf_init(&token, &h->mem, SIZE_MAX);
  e2b__buf_text(&token, "e30.");
  e2b__base64_encode(&token, (const uint8_t *)text.ptr, text.len, false);
  e2b__buf_text(&token, ".c2ln");
  code = e2b__jwt_read(&h->mem, e2b__str_n((const char *)token.data, token.len), 1000, &issued, &expires);
  FUZZ_CHECK(code == E2B_OK || code == E2B_ERR_PROTOCOL);
  if (!code) FUZZ_CHECK(expires >= 0 && issued >= 0 && e2b__json_valid(text.ptr, text.len, '{'));
  fuzz_time_token(e2b__str_n((const char *)token.data, token.len), h);
  e2b__buf_free(&token);
}

static void fuzz_time(const uint8_t *data, size_t len) {
  fuzz_heap h;
  char *text = fuzz_text(data, len);
  uint8_t *exact = fuzz_copy(data, len);
  e2b_str slice = e2b__str_n((const char *)exact, len);
  int64_t number = 0;
  int32_t nanos = 0;
  fuzz_heap_init(&h, 0);
  fuzz_time_stamp(slice, &h);
  fuzz_time_token(slice, &h);
  fuzz_time_claims(slice, &h);
  FUZZ_CHECK(e2b__http_retry_after_ms(text) <= 86400000u);
  (void)memcpy(&number, data, E2B__MIN(len, sizeof number));
  if (len > 8) (void)memcpy(&nanos, data + 8, E2B__MIN(len - 8, sizeof nanos));
  fuzz_time_number(number, nanos, &h);
  free(text);
  free(exact);
  FUZZ_CHECK(h.live == 0);
}

FUZZ_TARGET(time)
