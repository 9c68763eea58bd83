/* What the fuzzers share. With -DFUZZ_MAIN, a program that replays files; else a target of libFuzzer:
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I. $(cat build/deps.cflags) tests/fuzz_http2.c \
 *     $(cat build/deps.libs) -o build/libfuzz_http2
 *   build/libfuzz_http2 -max_len=4096 DIRECTORY tests/corpus/http2        then -merge=1 to keep what is new */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FUZZ_CHECK(x)                                                     \
  do {                                                                    \
    if (!(x)) {                                                           \
      fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #x); \
      abort();                                                            \
    }                                                                     \
  } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#ifdef FUZZ_MAIN
int main(int argc, char **argv) {
  int i;
  for (i = 1; i < argc; i++) {
    static uint8_t bytes[1 << 20];
    FILE *file = fopen(argv[i], "rb");
    size_t len;
    uint8_t *exact;
    if (!file) return perror(argv[i]), 1;
    len = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    exact = (uint8_t *)malloc(len + 1); /* so that a sanitizer sees reads behind the end */
    memcpy(exact, bytes, len);
    exact = (uint8_t *)realloc(exact, len ? len : 1);
    LLVMFuzzerTestOneInput(exact, len);
    free(exact);
  }
  printf("%s: %d inputs\n", argv[0], argc - 1);
  return argc > 1 ? 0 : 1;
}
#endif
