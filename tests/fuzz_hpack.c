/* Fuzzes the HPACK decoder: blocks of a connection, each behind its length in one octet (255: all that is left). What it decodes, our
 * encoder writes and the decoder reads again. */
#include "fuzz_main.h"

typedef struct fuzz_hpack_run {
  e2b__buf text, again;
  e2b__buf block;
  e2b__hpack_encoder encoder;
  size_t fields, bytes;
} fuzz_hpack_run;

static void fuzz_hpack_collect(e2b__buf *text, e2b_str name, e2b_str value) {
  e2b__buf_str(text, name);
  e2b__buf_byte(text, 0);
  e2b__buf_str(text, value);
  e2b__buf_byte(text, 0);
}

static void fuzz_hpack_on_field(void *owner, e2b_str name, e2b_str value) {
  fuzz_hpack_run *f = (fuzz_hpack_run *)owner;
  f->fields++;
  f->bytes += name.len + value.len;
  if (f->bytes > 100000) return; /* a block may name much, the real consumer counts and stops as well */
  fuzz_hpack_collect(&f->text, name, value);
  e2b__hpack_encode(&f->encoder, &f->block, name, value);
}

static void fuzz_hpack_on_again(void *owner, e2b_str name, e2b_str value) {
  fuzz_hpack_collect(&((fuzz_hpack_run *)owner)->again, name, value);
}

static void fuzz_hpack_check_table(const e2b__hpack_table *table) {
  uint32_t i, text = 0;
  FUZZ_CHECK(table->limit <= E2B__HPACK_TABLE && e2b__hpack_size(table) <= table->limit && table->count <= E2B__HPACK_ENTRIES);
  for (i = 0; i < table->count; i++) text += (uint32_t)table->entries[i].name_len + table->entries[i].value_len;
  FUZZ_CHECK(text == table->text_len);
}

static void fuzz_hpack(const uint8_t *data, size_t len) {
  static e2b__hpack_decoder decoder, second;
  static fuzz_hpack_run f;
  e2b__mem mem;
  e2b_err err = E2B_OK;
  e2b__mem_init(&mem, NULL);
  memset(&f, 0, sizeof f);
  e2b__buf_init(&f.text, &mem, SIZE_MAX);
  e2b__buf_init(&f.again, &mem, SIZE_MAX);
  e2b__buf_init(&f.block, &mem, SIZE_MAX);
  e2b__hpack_encoder_init(&f.encoder);
  e2b__hpack_decoder_init(&decoder, &mem);
  e2b__hpack_decoder_init(&second, &mem);
  while (len && !err) {
    size_t n = data[0] == 255 ? len - 1 : E2B__MIN((size_t)data[0], len - 1);
    f.text.len = f.again.len = f.block.len = 0;
    if (data[0] % 7 == 3) e2b__hpack_encoder_limit(&f.encoder, data[0] * 20u);
    e2b__hpack_begin(&f.encoder, &f.block);
    err = e2b__hpack_decode(&decoder, data + 1, n, fuzz_hpack_on_field, &f);
    fuzz_hpack_check_table(&decoder.table);
    fuzz_hpack_check_table(&f.encoder.table);
    FUZZ_CHECK(e2b__hpack_decode(&second, f.block.data, f.block.len, fuzz_hpack_on_again, &f) == E2B_OK);
    FUZZ_CHECK(f.again.len == f.text.len && (f.text.len == 0 || memcmp(f.again.data, f.text.data, f.text.len) == 0));
    FUZZ_CHECK(second.table.count == f.encoder.table.count && second.table.limit == f.encoder.table.limit);
    data += n + 1;
    len -= n + 1;
  }
  e2b__buf_free(&f.text);
  e2b__buf_free(&f.again);
  e2b__buf_free(&f.block);
  e2b__buf_free(&decoder.field);
  e2b__buf_free(&second.field);
  FUZZ_CHECK(mem.now == 0);
}

FUZZ_TARGET(hpack)
