/* Fuzzes the messages of both codecs. The first octet chooses the message, the second how:
 *   bit 0: the input is JSON;   bit 1: the decoder gets little memory;   bits 2 to 7: the allocation that fails, 0 = none
 * What can be read is written in either codec, and read and written again: nothing is lost, and the two agree. */
#include "fuzz_main.h"

static const e2b__message *const fuzz_protobuf_messages[] = {
  &e2b__msg_event_response, &e2b__msg_watch_dir_response, &e2b__msg_list_dir_response, &e2b__msg_entry_response,
  &e2b__msg_process_list, &e2b__msg_watcher_events, &e2b__msg_watcher_id, &e2b__msg_start_request, &e2b__msg_empty,
  &e2b__msg_selector_request, &e2b__msg_update_request, &e2b__msg_send_input_request, &e2b__msg_stream_input_request,
  &e2b__msg_send_signal_request, &e2b__msg_path_request, &e2b__msg_move_request, &e2b__msg_list_dir_request,
  &e2b__msg_watch_request, &e2b__msg_rest_sandbox, &e2b__msg_rest_metric, &e2b__msg_rest_logs, &e2b__msg_rest_snapshot,
  &e2b__msg_rest_error, &e2b__msg_connect_end, &e2b__msg_rest_write_info, &e2b__msg_code_line, &e2b__msg_code_context,
  &e2b__msg_jwt,
};

/* Reads every text of a message, and counts its values, so that a sanitizer sees where they point. */
static size_t fuzz_protobuf_touch(const e2b__message *m, const void *in) {
  const uint8_t *value;
  size_t i, k, count, sum = 0;
  for (i = 0; i < m->count; i++) {
    const e2b__field *f = &m->fields[i];
    for (count = e2b__field_values(f, in, &value); count > 0; count--, value += e2b__field_size(f)) {
      const e2b_str *text = (const e2b_str *)(const void *)value;
      sum++;
      if (f->sub) sum += fuzz_protobuf_touch(f->sub, value);
      else if (f->kind >= E2B__KIND_STR)
        for (k = 0; k < text->len; k++) sum += (uint8_t)text->ptr[k];
    }
  }
  return sum;
}

/* Whether each oneof has one member at most. */
static bool fuzz_protobuf_oneofs(const e2b__message *m, const void *in) {
  size_t i, set = 0;
  const uint8_t *value;
  for (i = 0; i < m->count; i++) {
    const e2b__field *f = &m->fields[i];
    size_t count = e2b__field_values(f, in, &value);
    if (f->oneof) set += count;
    for (; count > 0 && f->sub; count--, value += e2b__field_size(f))
      if (!fuzz_protobuf_oneofs(f->sub, value)) return false;
  }
  return set <= 1;
}

/* Decodes `text` as the codec says, and writes the message in both codecs. */
static e2b_err fuzz_protobuf_round(const e2b__message *m, uint8_t *text, size_t len, bool json, size_t limit,
                                   fuzz_heap *h, e2b__buf *binary, e2b__buf *document) {
  e2b__arena arena;
  e2b_err err;
  void *message;
  binary->len = document->len = 0;
  e2b__arena_init(&arena, &h->mem, limit);
  message = e2b__arena_alloc(&arena, m->size);
  err = !message ? arena.err
        : json   ? e2b__json_decode(m, (char *)text, len, &arena, message)
                 : e2b__pb_decode(m, text, len, &arena, message);
  if (message) (void)fuzz_protobuf_touch(m, message);
  if (!err) {
    FUZZ_CHECK(fuzz_protobuf_oneofs(m, message));
    e2b__pb_encode(m, message, binary);
    e2b__json_encode(m, message, document);
    FUZZ_CHECK(binary->err || e2b__pb_put(m, message, NULL) == binary->len);
  }
  e2b__arena_free(&arena);
  return err;
}

/* The message as it was read: reading it again in either codec makes the same of it. */
static void fuzz_protobuf_agree(const e2b__message *m, const e2b__buf *binary, const e2b__buf *document, fuzz_heap *h) {
  e2b__buf binary2, document2, document3;
  uint8_t *copy = fuzz_copy(document->data, document->len);
  e2b__buf_init(&binary2, &h->mem, SIZE_MAX);
  e2b__buf_init(&document2, &h->mem, SIZE_MAX);
  e2b__buf_init(&document3, &h->mem, SIZE_MAX);
  FUZZ_CHECK(e2b__json_valid((const char *)copy, document->len, '{'));
  FUZZ_CHECK(!fuzz_protobuf_round(m, binary->data, binary->len, false, SIZE_MAX / 4, h, &binary2, &document2));
  FUZZ_CHECK(fuzz_same(binary, &binary2));
  FUZZ_CHECK(!fuzz_protobuf_round(m, copy, document->len, true, SIZE_MAX / 4, h, &binary2, &document3));
  FUZZ_CHECK(fuzz_same(document, &document3)); /* binary2 may differ: JSON has no times behind the year 9999 */
  free(copy);
  e2b__buf_free(&binary2);
  e2b__buf_free(&document2);
  e2b__buf_free(&document3);
}

/* A field that nobody knows changes nothing. */
static void fuzz_protobuf_unknown(const e2b__message *m, const uint8_t *data, size_t len, const e2b__buf *binary,
                                  fuzz_heap *h) {
  static const uint8_t field[] = { 0xa2, 0x1f, 3, 'n', 'e', 'w' };
  e2b__buf text, again, unused;
  e2b__buf_init(&text, &h->mem, SIZE_MAX);
  e2b__buf_init(&again, &h->mem, SIZE_MAX);
  e2b__buf_init(&unused, &h->mem, SIZE_MAX);
  e2b__buf_put(&text, field, sizeof field);
  e2b__buf_put(&text, data, len);
  e2b__buf_put(&text, field, sizeof field);
  FUZZ_CHECK(!fuzz_protobuf_round(m, text.data, text.len, false, SIZE_MAX / 4, h, &again, &unused));
  FUZZ_CHECK(fuzz_same(binary, &again));
  e2b__buf_free(&text);
  e2b__buf_free(&again);
  e2b__buf_free(&unused);
}

static void fuzz_protobuf(const uint8_t *data, size_t len) {
  const e2b__message *m;
  e2b__buf binary, document;
  uint8_t *text;
  fuzz_heap h;
  bool json;
  size_t limit;
  e2b_err err;
  if (len < 2) return;
  m = fuzz_protobuf_messages[data[0] % E2B__COUNT(fuzz_protobuf_messages)];
  json = data[1] & 1;
  limit = data[1] & 2 ? 3000 : SIZE_MAX / 4;
  fuzz_heap_init(&h, data[1] >> 2);
  text = fuzz_copy(data + 2, len - 2);
  e2b__buf_init(&binary, &h.mem, SIZE_MAX);
  e2b__buf_init(&document, &h.mem, SIZE_MAX);
  err = fuzz_protobuf_round(m, text, len - 2, json, limit, &h, &binary, &document);
  FUZZ_CHECK(err == E2B_OK || err == E2B_ERR_PROTOCOL || (err == E2B_ERR_LIMIT && limit == 3000) ||
             (err == E2B_ERR_NO_MEMORY && h.fail_at && h.calls >= h.fail_at));
  if (err == E2B_OK && !binary.err && !document.err) {
    h.fail_at = 0;
    fuzz_protobuf_agree(m, &binary, &document, &h);
    if (!json) fuzz_protobuf_unknown(m, data + 2, len - 2, &binary, &h);
  }
  e2b__buf_free(&binary);
  e2b__buf_free(&document);
  free(text);
  FUZZ_CHECK(h.live == 0);
}

FUZZ_TARGET(protobuf)
