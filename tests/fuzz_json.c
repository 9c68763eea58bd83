/* Fuzzes the JSON reader and writer with a document, and base64 with the same text. A second, simple reader of RFC 8259 says
 * what is a document. */
#include "fuzz_main.h"

/* ---- the second reader ---- */

typedef struct fuzz_json_text {
  const char *at, *end;
} fuzz_json_text;

static bool fuzz_json_is(fuzz_json_text *t, const char *set) {
  return t->at < t->end && *t->at && strchr(set, *t->at) != NULL;
}

static void fuzz_json_space(fuzz_json_text *t) {
  while (fuzz_json_is(t, " \t\r\n")) t->at++;
}

static bool fuzz_json_some(fuzz_json_text *t, const char *set) {
  const char *from = t->at;
  while (fuzz_json_is(t, set)) t->at++;
  return t->at > from;
}

static bool fuzz_json_word(fuzz_json_text *t, const char *word) {
  for (; *word; word++, t->at++)
    if (t->at == t->end || *t->at != *word) return false;
  return true;
}

static bool fuzz_json_string(fuzz_json_text *t) {
  int i;
  if (!fuzz_json_word(t, "\"")) return false;
  for (; t->at < t->end && *t->at != '"'; t->at++) {
    if ((unsigned char)*t->at < 32) return false;
    if (*t->at != '\\') continue;
    t->at++;
    if (fuzz_json_is(t, "\"\\/bfnrt")) continue;
    if (!fuzz_json_is(t, "u")) return false;
    for (i = 0; i < 4; i++) {
      t->at++;
      if (!fuzz_json_is(t, "0123456789abcdefABCDEF")) return false;
    }
  }
  return fuzz_json_word(t, "\"");
}

static bool fuzz_json_number(fuzz_json_text *t) {
  if (fuzz_json_is(t, "-")) t->at++;
  if (fuzz_json_is(t, "0")) t->at++;
  else if (!fuzz_json_some(t, "0123456789")) return false;
  if (fuzz_json_is(t, ".")) {
    t->at++;
    if (!fuzz_json_some(t, "0123456789")) return false;
  }
  if (!fuzz_json_is(t, "eE")) return true;
  t->at++;
  if (fuzz_json_is(t, "+-")) t->at++;
  return fuzz_json_some(t, "0123456789");
}

static bool fuzz_json_value(fuzz_json_text *t, int depth) {
  bool object = fuzz_json_is(t, "{"), first = true;
  if (fuzz_json_is(t, "\"")) return fuzz_json_string(t);
  if (fuzz_json_is(t, "t")) return fuzz_json_word(t, "true");
  if (fuzz_json_is(t, "f")) return fuzz_json_word(t, "false");
  if (fuzz_json_is(t, "n")) return fuzz_json_word(t, "null");
  if (!fuzz_json_is(t, "{[")) return fuzz_json_number(t);
  if (depth == E2B__JSON_DEPTH) return false;
  t->at++;
  for (fuzz_json_space(t); !first || !fuzz_json_is(t, object ? "}" : "]"); first = false) {
    if (object) {
      if (!fuzz_json_string(t)) return false;
      fuzz_json_space(t);
      if (!fuzz_json_word(t, ":")) return false;
      fuzz_json_space(t);
    }
    if (!fuzz_json_value(t, depth + 1)) return false;
    fuzz_json_space(t);
    if (!fuzz_json_is(t, ",")) break;
    t->at++;
    fuzz_json_space(t);
  }
  return fuzz_json_word(t, object ? "}" : "]");
}

static bool fuzz_json_document(const char *text, size_t len) {
  fuzz_json_text t;
  t.at = text;
  t.end = text + len;
  fuzz_json_space(&t);
  if (!fuzz_json_value(&t, 0)) return false;
  fuzz_json_space(&t);
  return t.at == t.end;
}

/* Strict: no surrogates, nothing overlong. */
static bool fuzz_json_utf8(const char *text, size_t len) {
  size_t i = 0, n;
  while (i < len) {
    uint8_t c = (uint8_t)text[i++];
    uint32_t code = c;
    if (c < 0x80) continue;
    n = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
    if (c < 0xc2 || c > 0xf4 || n > len - i) return false;
    for (code &= 0x3fu >> n; n; n--, i++) {
      if (((uint8_t)text[i] & 0xc0) != 0x80) return false;
      code = code << 6 | ((uint8_t)text[i] & 0x3fu);
    }
    if ((code >= 0xd800 && code < 0xe000) || code > 0x10ffff) return false;
    if (code < (c >= 0xf0 ? 0x10000u : c >= 0xe0 ? 0x800u : 0x80u)) return false;
  }
  return true;
}

/* ---- the reader and the writer ---- */

static void fuzz_json_number_token(e2b_str text, fuzz_heap *h) {
  int64_t value = 0;
  char *copy = fuzz_text(text.ptr, text.len), *end;
  e2b__buf again;
  errno = 0;
  (void)strtoll(copy, &end, 10);
  FUZZ_CHECK(e2b__json_to_i64(text, &value) == (!*end && !errno));
  if (!*end && !errno) {
    FUZZ_CHECK(value == strtoll(copy, NULL, 10));
    e2b__buf_init(&again, &h->mem, 100);
    e2b__buf_i64(&again, value);
    FUZZ_CHECK(strcmp(copy, "-0") == 0 || (again.len == text.len && memcmp(again.data, copy, again.len) == 0));
    e2b__buf_free(&again);
  }
  free(copy);
}

/* Reads a document to its end and writes it again. False when it is none. */
static bool fuzz_json_again(uint8_t *text, size_t len, bool verbatim, fuzz_heap *h, e2b__buf *out) {
  const char *from = (const char *)text, *to = from + len;
  bool utf8 = fuzz_json_utf8(from, len);
  e2b__json_reader r;
  e2b__json_token t;
  e2b__json_writer w;
  size_t count = 0;
  w.out = out;
  w.comma = false;
  e2b__json_open(&r, (char *)text, len);
  r.verbatim = verbatim;
  while (e2b__json_next(&r, &t) > E2B__JSON_END) {
    FUZZ_CHECK(++count <= len && r.depth <= E2B__JSON_DEPTH && r.at > from && r.at <= to);
    FUZZ_CHECK(!t.text.len || (t.text.ptr >= from && t.text.ptr + t.text.len <= to));
    FUZZ_CHECK(!utf8 || fuzz_json_utf8(t.text.ptr, t.text.len));
    switch (t.type) {
    case E2B__JSON_NULL: e2b__json_raw(&w, e2b__str("null")); break;
    case E2B__JSON_BOOL: e2b__json_bool(&w, t.boolean); break;
    case E2B__JSON_NUMBER:
      fuzz_json_number_token(t.text, h);
      e2b__json_raw(&w, t.text);
      break;
    case E2B__JSON_STRING: e2b__json_str(&w, t.text); break;
    case E2B__JSON_KEY: e2b__json_key_str(&w, t.text); break;
    case E2B__JSON_OBJECT: e2b__json_begin(&w, '{'); break;
    case E2B__JSON_ARRAY: e2b__json_begin(&w, '['); break;
    case E2B__JSON_OBJECT_END: e2b__json_end(&w, '}'); break;
    default: e2b__json_end(&w, ']'); break;
    }
  }
  if (t.type == E2B__JSON_ERROR) FUZZ_CHECK(e2b__json_next(&r, &t) == E2B__JSON_ERROR);
  else FUZZ_CHECK(r.depth == 0 && r.at == to);
  return t.type == E2B__JSON_END;
}

/* Goes over a document by its top value, as what does not know a member does. */
static bool fuzz_json_skipped(const uint8_t *data, size_t len) {
  uint8_t *copy = fuzz_copy(data, len);
  e2b__json_reader r;
  e2b__json_token t;
  bool ok;
  e2b__json_open(&r, (char *)copy, len);
  r.verbatim = true;
  ok = e2b__json_next(&r, &t) > E2B__JSON_END && e2b__json_skip(&r, &t) && e2b__json_next(&r, &t) == E2B__JSON_END;
  FUZZ_CHECK(!len || memcmp(copy, data, len) == 0);
  free(copy);
  return ok;
}

static void fuzz_json_base64(const uint8_t *data, size_t len, fuzz_heap *h) {
  char *text = (char *)fuzz_copy(data, len);
  e2b__buf out;
  size_t got = 0;
  bool padded = len % 2 == 0;
  e2b__buf_init(&out, &h->mem, SIZE_MAX);
  e2b__base64_encode(&out, data, len, padded);
  FUZZ_CHECK(!out.err && out.len == (padded ? (len + 2) / 3 * 4 : (len * 4 + 2) / 3));
  FUZZ_CHECK(e2b__base64_decode_in_place((char *)out.data, out.len, &got) && got == len);
  FUZZ_CHECK(!len || memcmp(out.data, data, len) == 0);
  got = len + 1;
  if (e2b__base64_decode_in_place(text, len, &got)) FUZZ_CHECK(got <= len / 4 * 3 + 2);
  e2b__buf_free(&out);
  free(text);
}

static void fuzz_json(const uint8_t *data, size_t len) {
  uint8_t *text = fuzz_copy(data, len), *same = fuzz_copy(data, len);
  bool is_one = fuzz_json_document((const char *)data, len);
  size_t i;
  e2b__buf first, second, unused;
  fuzz_heap h;
  fuzz_heap_init(&h, 0);
  e2b__buf_init(&first, &h.mem, SIZE_MAX);
  e2b__buf_init(&second, &h.mem, SIZE_MAX);
  e2b__buf_init(&unused, &h.mem, SIZE_MAX);
  FUZZ_CHECK(fuzz_json_again(text, len, false, &h, &first) == is_one);
  FUZZ_CHECK(fuzz_json_again(same, len, true, &h, &unused) == is_one);
  FUZZ_CHECK(!len || memcmp(same, data, len) == 0);
  FUZZ_CHECK(fuzz_json_skipped(data, len) == is_one);
  FUZZ_CHECK(e2b__json_valid((const char *)data, len, '{') + e2b__json_valid((const char *)data, len, '[') <= is_one);
  if (is_one) {
    FUZZ_CHECK(first.len && fuzz_json_document((const char *)first.data, first.len));
    unused.len = 0;
    e2b__buf_put(&unused, first.data, first.len);
    FUZZ_CHECK(fuzz_json_again(unused.data, unused.len, false, &h, &second) && fuzz_same(&first, &second));
    if (strchr("{[\"", (char)first.data[0]))
      for (i = 0; i < E2B__MIN(first.len, (size_t)64); i++) FUZZ_CHECK(!fuzz_json_skipped(first.data, first.len - 1 - i));
  }
  e2b__buf_free(&first);
  e2b__buf_free(&second);
  e2b__buf_free(&unused);
  free(text);
  free(same);
  fuzz_json_base64(data, len, &h);
  FUZZ_CHECK(h.live == 0);
}

FUZZ_TARGET(json)
