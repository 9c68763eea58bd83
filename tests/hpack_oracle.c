/* Lets nghttp2 decode what our HPACK encoder wrote, and compares. It has to read every block, find the same fields, and find what
 * is secret marked as never to be indexed.
 *
 *   E2B_DUMP_HPACK=FILE build/e2b_test hpack pool
 *   cc tests/hpack_oracle.c -lnghttp2 -o build/hpack_oracle && build/hpack_oracle FILE
 *
 * The file has lines: "new ID" (a connection), "limit ID N" (the peer's table size), "block ID HEX HEX" (a block, and its fields as
 * "name=value\n"). */
#include <nghttp2/nghttp2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONNECTIONS 65536
static nghttp2_hd_inflater *inflaters[CONNECTIONS];
static char line[1 << 20];
static unsigned char block[1 << 18], want[1 << 18], have[1 << 18];
static unsigned long fields, secrets;

static size_t unhex(const char *hex, unsigned char *out) {
  size_t len = 0;
  unsigned byte;
  for (; *hex > ' ' && sscanf(hex, "%2x", &byte) == 1; hex += 2) out[len++] = (unsigned char)byte;
  return len;
}

static const char *check_block(nghttp2_hd_inflater *inflater, const unsigned char *at, size_t len, size_t want_len) {
  size_t have_len = 0;
  for (;;) {
    nghttp2_nv nv;
    int flags = 0, secret;
    ssize_t n = nghttp2_hd_inflate_hd2(inflater, &nv, &flags, at, len, 1);
    if (n < 0) return nghttp2_strerror((int)n);
    at += n;
    len -= (size_t)n;
    if (flags & NGHTTP2_HD_INFLATE_EMIT) {
      have_len += (size_t)snprintf((char *)have + have_len, sizeof have - have_len, "%.*s=%.*s\n", (int)nv.namelen, (char *)nv.name,
                                   (int)nv.valuelen, (char *)nv.value);
      fields++;
      secret = strstr((char *)nv.value, "secret") || strstr((char *)nv.name, "token") || strcmp((char *)nv.name, "x-api-key") == 0 ||
               strcmp((char *)nv.name, "authorization") == 0;
      if (secret) secrets++;
      if (secret && !(nv.flags & NGHTTP2_NV_FLAG_NO_INDEX)) return "a secret may be indexed";
    }
    if (flags & NGHTTP2_HD_INFLATE_FINAL) break;
    if (!(flags & NGHTTP2_HD_INFLATE_EMIT) && len == 0) break;
  }
  nghttp2_hd_inflate_end_headers(inflater);
  return have_len == want_len && memcmp(have, want, want_len) == 0 ? NULL : "other fields than ours";
}

int main(int argc, char **argv) {
  FILE *file = argc == 2 ? fopen(argv[1], "r") : NULL;
  unsigned long id, n, blocks = 0, connections = 0, bad = 0;
  int at, second;
  if (!file) return fprintf(stderr, "usage: hpack_oracle FILE\n"), 2;
  while (fgets(line, sizeof line, file)) {
    if (sscanf(line, "new %lu", &id) == 1 && id < CONNECTIONS) {
      if (nghttp2_hd_inflate_new(&inflaters[id])) return 2;
      connections++;
    } else if (sscanf(line, "limit %lu %lu", &id, &n) == 2 && id < CONNECTIONS && inflaters[id]) {
      if (nghttp2_hd_inflate_change_table_size(inflaters[id], n)) return 2;
    } else if (sscanf(line, "block %lu %n%*s %n", &id, &at, &second) == 1 && id < CONNECTIONS && inflaters[id]) {
      const char *why = check_block(inflaters[id], block, unhex(line + at, block), unhex(line + second, want));
      blocks++;
      if (why) printf("connection %lu, block %lu: %s\n", id, blocks, why), bad++;
    } else {
      return fprintf(stderr, "cannot read: %.60s\n", line), 2;
    }
  }
  fclose(file);
  for (id = 0; id < CONNECTIONS; id++)
    if (inflaters[id]) nghttp2_hd_inflate_del(inflaters[id]);
  printf("nghttp2 read %lu blocks of %lu connections, %lu fields, %lu of them secrets: %lu at fault\n", blocks, connections, fields, secrets, bad);
  return bad || !blocks || !secrets;
}
