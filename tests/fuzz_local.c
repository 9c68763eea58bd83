/* Fuzzes the names of files that a sandbox gives: what is taken for a file of this machine stays in its directory, on
 * POSIX and on Windows, and what is made a word of a shell is one word. */
#include "fuzz_main.h"

/* Where a path leads, by its steps: false when it leaves the directory it begins in. */
static bool fuzz_local_stays(const char *text, size_t len, bool windows) {
  size_t at = 0, n;
  int depth = 0;
  if (len && (text[0] == '/' || (windows && text[0] == '\\'))) return false;
  if (windows && memchr(text, ':', len)) return false; /* a drive, or a stream of a file */
  while (at < len) {
    for (n = 0; at + n < len && text[at + n] != '/' && !(windows && text[at + n] == '\\'); n++) continue;
    if (n == 2 && memcmp(text + at, "..", 2) == 0) depth--;
    else if (n && !(n == 1 && text[at] == '.')) depth++;
    if (depth < 0) return false;
    at += n + 1;
  }
  return true;
}

static void fuzz_local_name(const char *text, size_t len) {
  e2b_str name = e2b__str_n(text, len);
  char path[600];
  int windows, n;
  for (windows = 0; windows < 2; windows++) {
    if (e2b__local_refused(name, windows != 0)) continue;
    n = snprintf(path, sizeof path, "dir/%.*s", (int)len, text);
    FUZZ_CHECK((size_t)n == len + 4 && fuzz_local_stays(text, len, windows != 0)); /* it has no NUL */
#if !E2B__WIN32
    FUZZ_CHECK(strcmp(e2b__local_last(path), path + 4) == 0);
#endif
    FUZZ_CHECK(!windows || !e2b__local_refused(name, false)); /* Windows takes fewer */
    FUZZ_CHECK(!windows || !strpbrk(path + 4, "\\/:*?\"<>|"));
  }
}

/* The target of a link, read from inside the directory; Windows follows none. */
#if !E2B__WIN32
static void fuzz_local_normal(const char *text, size_t len) {
  fuzz_heap h;
  e2b__buf name, again;
  bool inside;
  fuzz_heap_init(&h, 0);
  e2b__buf_init(&name, &h.mem, SIZE_MAX);
  e2b__buf_init(&again, &h.mem, SIZE_MAX);
  e2b__buf_put(&name, text, len);
  inside = name.len && e2b__local_normalize(&name);
  if (len && text[0] != '/') FUZZ_CHECK(inside == fuzz_local_stays(text, len, false));
  if (inside) {
    FUZZ_CHECK(name.len <= len && fuzz_local_stays((char *)name.data, name.len, false));
    e2b__buf_put(&again, name.data, name.len);
    FUZZ_CHECK(!again.len || (e2b__local_normalize(&again) && fuzz_same(&name, &again)));
  }
  e2b__buf_free(&name);
  e2b__buf_free(&again);
  FUZZ_CHECK(h.live == 0);
}

#endif

/* A link of a listing that counts as inside the tree has a target below its root, in text. */
static void fuzz_local_link(const char *text, size_t len) {
  e2b__tree tree;
  e2b__listing_item item;
  char root[] = "/home/user";
  memset(&tree, 0, sizeof tree);
  memset(&item, 0, sizeof item);
  tree.base = root;
  item.type = E2B_ENTRY_FILE;
  item.link = true;
  item.target = e2b__str_n(text, len);
  if (e2b__download_inside(&tree, &item)) FUZZ_CHECK(len > 11 && memcmp(text, "/home/user/", 11) == 0);
}

/* What a shell makes of it is one word, the path. */
static void fuzz_local_shell(const char *path) {
  fuzz_heap h;
  e2b__buf line, word;
  size_t i;
  bool quoted = false;
  fuzz_heap_init(&h, 0);
  e2b__buf_init(&line, &h.mem, SIZE_MAX);
  e2b__buf_init(&word, &h.mem, SIZE_MAX);
  e2b__shell_path(&line, path);
  FUZZ_CHECK(line.len > 2 && line.data[0] == ' ');
  for (i = 1; i < line.len; i++) {
    uint8_t c = line.data[i];
    if (c == '\'') quoted = !quoted;
    else if (!quoted && c == '\\' && i + 1 < line.len) e2b__buf_byte(&word, line.data[++i]);
    else {
      FUZZ_CHECK(quoted || (i <= 2 && (c == '.' || c == '/')));
      e2b__buf_byte(&word, c);
    }
  }
  FUZZ_CHECK(!quoted && word.len);
  if (path[0] == '~' && (!path[1] || path[1] == '/')) path += path[1] ? 2 : 1;
  i = path[0] == '/' ? 0 : 2;
  FUZZ_CHECK(word.len == strlen(path) + i && memcmp(word.data + i, path, word.len - i) == 0);
  e2b__buf_free(&line);
  e2b__buf_free(&word);
  FUZZ_CHECK(h.live == 0);
}

static void fuzz_local(const uint8_t *data, size_t len) {
  uint8_t *exact;
  char *text;
  exact = fuzz_copy(data, len);
  text = fuzz_text(data, len);
  fuzz_local_name((char *)exact, len);
#if !E2B__WIN32
  fuzz_local_normal((char *)exact, len);
#endif
  fuzz_local_link((char *)exact, len);
  fuzz_local_shell(text);
  free(exact);
  free(text);
}

FUZZ_TARGET(local)
