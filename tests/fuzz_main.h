/* What the fuzzers share. Each tests/fuzz_NAME.c has one function, fuzz_NAME(data, len), which gives what it gets to the real
 * code and checks what must hold whatever it was. e2b_test.c includes them all and replays tests/corpus/NAME; built alone,
 * such a file is a target of libFuzzer:
 *
 *   make fuzz T=NAME SECONDS=600       what is new is left in build/corpus/NAME, a finding in build/fuzz_NAME-crash-...
 *   build/fuzz_NAME FILE               that input again
 *   build/fuzz_NAME -merge=1 tests/corpus/NAME build/corpus/NAME      keeps the inputs that reach something new */
#ifndef FUZZ_MAIN_H
#define FUZZ_MAIN_H

#ifndef FUZZ_CHECK
  #define E2B_IMPLEMENTATION
  #include "e2b.h"

  #define FUZZ_CHECK(x)                                                       \
    do {                                                                      \
      if (!(x)) {                                                             \
        fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #x); \
        abort();                                                              \
      }                                                                       \
    } while (0)
  #define FUZZ_TARGET(name)                                                   \
    int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);              \
    int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {             \
      fuzz_##name(data, len);                                                 \
      return 0;                                                               \
    }
#else
  #define FUZZ_TARGET(name)
#endif

/* An allocator that counts, fails from a call on (`fail_at`, 0 = never; `fail_once`: only that one), and checks the sizes
 * it gets back. */
typedef struct fuzz_heap {
  size_t live, calls, fail_at;
  bool fail_once;
  e2b__mem mem; /* over it, for what takes one */
} fuzz_heap;

static bool fuzz_heap_fails(fuzz_heap *h) {
  h->calls++;
  return h->fail_at && (h->fail_once ? h->calls == h->fail_at : h->calls >= h->fail_at);
}

static void *fuzz_heap_alloc(void *user, size_t size) {
  fuzz_heap *h = (fuzz_heap *)user;
  uint8_t *block = fuzz_heap_fails(h) ? NULL : (uint8_t *)malloc(size + 16);
  if (!block) return NULL;
  memcpy(block, &size, sizeof size);
  h->live += size;
  return block + 16;
}

static void fuzz_heap_free(void *user, void *ptr, size_t size) {
  fuzz_heap *h = (fuzz_heap *)user;
  uint8_t *block = (uint8_t *)ptr - 16;
  FUZZ_CHECK(memcmp(block, &size, sizeof size) == 0);
  h->live -= size;
  free(block);
}

static void *fuzz_heap_realloc(void *user, void *ptr, size_t old_size, size_t new_size) {
  void *moved = fuzz_heap_alloc(user, new_size);
  if (!moved) return NULL;
  memcpy(moved, ptr, E2B__MIN(old_size, new_size));
  fuzz_heap_free(user, ptr, old_size);
  return moved;
}

E2B__MAYBE_UNUSED static void fuzz_heap_init(fuzz_heap *h, size_t fail_at) {
  e2b_allocator allocator;
  memset(h, 0, sizeof *h);
  h->fail_at = fail_at;
  allocator.alloc_fn = fuzz_heap_alloc;
  allocator.realloc_fn = fuzz_heap_realloc;
  allocator.free_fn = fuzz_heap_free;
  allocator.user = h;
  e2b__mem_init(&h->mem, &allocator);
}

/* A copy that ends where the block ends, so that a sanitizer sees every read behind it. Free it with free(). */
E2B__MAYBE_UNUSED static uint8_t *fuzz_copy(const void *data, size_t len) {
  uint8_t *copy = (uint8_t *)calloc(1, len ? len : 1);
  if (len) memcpy(copy, data, len);
  return copy;
}

/* The same as a C string. */
E2B__MAYBE_UNUSED static char *fuzz_text(const void *data, size_t len) {
  char *copy = (char *)malloc(len + 1);
  if (len) memcpy(copy, data, len);
  copy[len] = 0;
  return copy;
}

/* Pieces to cut an input into: of 1 to 16 bytes, or of more now and then; seed 0: all at once, 1: byte by byte. */
E2B__MAYBE_UNUSED static size_t fuzz_piece(uint32_t *seed, size_t left) {
  size_t n;
  if (*seed < 2) return *seed ? E2B__MIN(left, (size_t)1) : left;
  *seed = *seed * 1103515245u + 12345u;
  n = 1 + (*seed >> 16) % (*seed >> 28 ? 16u : 300u);
  *seed |= 2u;
  return E2B__MIN(n, left);
}

E2B__MAYBE_UNUSED static bool fuzz_same(const e2b__buf *a, const e2b__buf *b) {
  return a->len == b->len && (a->len == 0 || memcmp(a->data, b->data, a->len) == 0);
}
#endif
