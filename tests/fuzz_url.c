/* Fuzzes what reads names and addresses. The input is a few texts, each ended by a NUL: a URL, a proxy's URL, a list of
 * exceptions (NO_PROXY), a host, an entry of config.hosts; all of them also go where the others do. */
#include "fuzz_main.h"

typedef struct fuzz_url_run {
  fuzz_heap heap;
  char *texts[5];
} fuzz_url_run;

/* ---- URLs ---- */

/* scheme://host:port/path again, from the parts. */
static void fuzz_url_write(e2b__buf *out, const e2b__url *url) {
  e2b__buf_text(out, url->tls ? "https://" : "http://");
  e2b__url_host_header(out, url);
  e2b__buf_str(out, url->path);
}

static void fuzz_url_parse(fuzz_url_run *f, const char *text) {
  const char *end = text + strlen(text);
  e2b__url url, again;
  e2b__buf out, out2;
  e2b_error err;
  bool ok = e2b__url_parse(text, &url);
  memset(&err, 0, sizeof err);
  FUZZ_CHECK((e2b__config_check_url(text, "api_url", &err) == E2B_OK) == ok);
  if (!ok) return;
  FUZZ_CHECK(url.host.ptr > text && url.host.len && url.host.ptr + url.host.len <= end);
  FUZZ_CHECK(url.path.ptr >= text && url.path.ptr + url.path.len <= end && url.port);
  FUZZ_CHECK(!url.path.len || (url.path.ptr[0] == '/' && url.path.ptr[url.path.len - 1] != '/'));
  FUZZ_CHECK(url.host_is_ipv6 == (memchr(url.host.ptr, ':', url.host.len) != NULL));
  FUZZ_CHECK(url.default_port == (url.port == (url.tls ? 443 : 80)));
  e2b__buf_init(&out, &f->heap.mem, SIZE_MAX);
  e2b__buf_init(&out2, &f->heap.mem, SIZE_MAX);
  fuzz_url_write(&out, &url);
  FUZZ_CHECK(e2b__h1_target_ok(e2b__str_n((const char *)out.data, out.len))); /* nothing that ends a line of HTTP */
  FUZZ_CHECK(e2b__url_parse(e2b__buf_cstr(&out), &again));
  fuzz_url_write(&out2, &again);
  FUZZ_CHECK(fuzz_same(&out, &out2) && again.port == url.port && again.tls == url.tls);
  e2b__buf_free(&out);
  e2b__buf_free(&out2);
}

/* Undoes percent-encoding; false when it is malformed. */
static bool fuzz_url_plain(const e2b__buf *text, bool form, e2b__buf *out) {
  size_t i;
  out->len = 0;
  for (i = 0; i < text->len; i++) {
    uint8_t c = text->data[i];
    if (c == '%') {
      int high = i + 2 < text->len ? e2b__hex_value((char)text->data[i + 1]) : -1;
      int low = i + 2 < text->len ? e2b__hex_value((char)text->data[i + 2]) : -1;
      if (high < 0 || low < 0) return false;
      c = (uint8_t)(high * 16 + low);
      i += 2;
    } else if (form && c == '+') {
      c = ' ';
    }
    e2b__buf_byte(out, c);
  }
  return true;
}

static void fuzz_url_escape(fuzz_url_run *f, e2b_str text) {
  e2b__buf steps[2];
  int layers, i;
  size_t k;
  for (layers = 1; layers <= 3; layers++) {
    bool form = layers == 2;
    e2b__buf_init(&steps[0], &f->heap.mem, SIZE_MAX);
    e2b__buf_init(&steps[1], &f->heap.mem, SIZE_MAX);
    e2b__url_escape_layers(&steps[0], text, layers, form);
    for (k = 0; k < steps[0].len; k++)
      FUZZ_CHECK(e2b__is_unreserved((char)steps[0].data[k]) || steps[0].data[k] == '%' || (form && layers == 1));
    for (i = 0; i < layers; i++) FUZZ_CHECK(fuzz_url_plain(&steps[i % 2], form && i == layers - 1, &steps[(i + 1) % 2]));
    FUZZ_CHECK(steps[layers % 2].len == text.len);
    FUZZ_CHECK(!text.len || memcmp(steps[layers % 2].data, text.ptr, text.len) == 0);
    e2b__buf_free(&steps[0]);
    e2b__buf_free(&steps[1]);
  }
}

/* ---- names and addresses ---- */

static void fuzz_url_host(const char *host) {
  e2b_str text = e2b__str(host), name;
  uint8_t addr[16];
  uint8_t len = e2b__dns_literal(host, addr);
  uint16_t port = 1;
  char printed[48], wide[600];
  if (e2b__host_is_ipv4(text)) FUZZ_CHECK(len == 4);
  if (e2b__host_is_ipv6(text)) FUZZ_CHECK(len == 16);
  if (len == 4) FUZZ_CHECK(e2b__host_is_ipv4(text) && !e2b__dns_name_ok(host));
  if (len == 16) FUZZ_CHECK(e2b__host_is_ipv6(text) && !e2b__dns_name_ok(host));
  if (len) {
    FUZZ_CHECK(inet_ntop(len == 4 ? AF_INET : AF_INET6, addr, printed, sizeof printed) != NULL);
    FUZZ_CHECK(e2b__host_fits(host, e2b__str(printed), false) && e2b__host_fits(printed, text, true));
  }
  if (e2b__dns_name_ok(host)) FUZZ_CHECK(e2b__host_name_ok(text) && e2b__host_fits(host, text, false));
  if (e2b__host_port_split(text, &name, &port)) {
    FUZZ_CHECK(name.len && port && name.ptr >= host && name.ptr + name.len <= host + text.len);
    if (text.len + 8 < sizeof wide && e2b__host_name_ok(name)) {
      (void)snprintf(wide, sizeof wide, "%.*s:%u", (int)name.len, name.ptr, (unsigned)port);
      FUZZ_CHECK(e2b__domain_ok(wide));
    }
  }
  if (e2b__domain_ok(host)) FUZZ_CHECK(!strpbrk(host, "/?#@\\ \r\n\t") && e2b__text_ok(host));
  if (e2b__host_is_loopback(host) && !len) FUZZ_CHECK(text.len >= 9);
}

/* A name fits the patterns made of it, and none that is not its own. */
static void fuzz_url_fits(fuzz_url_run *f, const char *host, const char *pattern) {
  e2b_str text = e2b__str(pattern);
  char *below = (char *)malloc(strlen(host) + 5);
  bool exact = e2b__host_fits(host, text, false), wide = e2b__host_fits(host, text, true);
  E2B__UNUSED(f);
  if (exact) FUZZ_CHECK(wide);
  (void)memcpy(below, "sub.", 4);
  (void)memcpy(below + 4, host, strlen(host) + 1);
  if (wide && e2b__dns_name_ok(host)) FUZZ_CHECK(e2b__host_fits(below, text, true) && !e2b__host_fits(below, e2b__str(host), false));
  (void)memcpy(below, "subx", 4);
  if (exact && e2b__dns_name_ok(host)) FUZZ_CHECK(!e2b__host_fits(below, text, true));
  free(below);
}

static void fuzz_url_entry(const char *host, const char *address, const char *asked) {
  e2b_host_entry entry;
  e2b__host out;
  e2b_str name;
  char *copy;
  entry.host = host;
  entry.address = address;
  if (e2b__host_read(&entry, &name, &out)) return;
  FUZZ_CHECK(name.len && name.len <= E2B__HOST_MAX + 3 && (out.addr.len == 4 || out.addr.len == 16));
  copy = fuzz_text(name.ptr, name.len);
  out.name = copy;
  if (strcmp(copy, "*") == 0) FUZZ_CHECK(e2b__host_matches(&out, asked, out.port ? out.port : 80));
  else if (copy[0] != '*') FUZZ_CHECK(e2b__host_matches(&out, copy, out.port ? out.port : 80));
  else FUZZ_CHECK(!e2b__host_matches(&out, copy + 2, out.port ? out.port : 80));
  free(copy);
}

/* The names of a certificate, which are addresses: "tag, length, bytes" each. */
static void fuzz_url_certificate(const uint8_t *data, size_t len) {
  mbedtls_x509_crt cert;
  mbedtls_x509_sequence names[8];
  static const uint8_t address[4] = { 127, 0, 0, 1 };
  size_t count = 0, at = 0;
  bool there = false;
  memset(&cert, 0, sizeof cert);
  memset(names, 0, sizeof names);
  while (count < E2B__COUNT(names) && len - at >= 2) {
    size_t n = E2B__MIN((size_t)data[at + 1], len - at - 2);
    names[count].buf.tag = data[at];
    names[count].buf.len = n;
    names[count].buf.p = (unsigned char *)(uintptr_t)(data + at + 2);
    there = there || (data[at] == 0x87 && n == 4 && memcmp(data + at + 2, address, 4) == 0);
    if (count) names[count - 1].next = &names[count];
    at += n + 2;
    count++;
  }
  cert.subject_alt_names = names[0];
  FUZZ_CHECK(e2b__tls_names_addr(&cert, address, 4) == there);
}

/* ---- proxies ---- */

static void fuzz_url_proxy(fuzz_url_run *f, const char *text, const char *host, const char *except) {
  e2b__proxies proxies;
  e2b__tunnel *tunnel;
  e2b_err code;
  size_t i, ends = 0;
  memset(&proxies, 0, sizeof proxies);
  code = e2b__proxy_parse(&f->heap.mem, text, &proxies.http);
  FUZZ_CHECK(code == E2B_OK || code == E2B_ERR_INVALID_ARGUMENT);
  FUZZ_CHECK((code == E2B_OK) == (proxies.http.host != NULL) && (!code || !proxies.http.auth));
  if (code) return;
  FUZZ_CHECK(proxies.http.port && proxies.http.host[0] && e2b__text_ok(proxies.http.host));
  FUZZ_CHECK((strchr(text, '@') != NULL) == (proxies.http.auth != NULL));
  if (proxies.http.auth) FUZZ_CHECK(strncmp(proxies.http.auth, "Basic ", 6) == 0 && e2b__header_value_ok(e2b__str(proxies.http.auth)));
  proxies.except = (char *)(uintptr_t)except;
  FUZZ_CHECK((e2b__proxy_for(&proxies, host, 80, false) == NULL) == e2b__proxy_excepted(except, host, 80));
  FUZZ_CHECK(!e2b__proxy_for(&proxies, host, 80, true));
  proxies.except = NULL;
  if (e2b__dns_name_ok(host) || e2b__host_is_ip(e2b__str(host))) {
    tunnel = e2b__tunnel_new(&f->heap.mem, &proxies.http, host, 443);
    FUZZ_CHECK(tunnel != NULL && tunnel->out.len > 4);
    for (i = 0; tunnel && i + 4 <= tunnel->out.len; i++) ends += memcmp(tunnel->out.data + i, "\r\n\r\n", 4) == 0;
    FUZZ_CHECK(ends == 1);
    e2b__tunnel_free(&f->heap.mem, tunnel);
  }
  e2b__proxies_free(&f->heap.mem, &proxies);
}

static void fuzz_url_except(const char *list, const char *host) {
  size_t len = strlen(list), i;
  char *longer = (char *)malloc(len + 3);
  bool is = e2b__proxy_excepted(list, host, 443), star = false;
  (void)memcpy(longer, list, len);
  (void)memcpy(longer + len, ",,", 3);
  FUZZ_CHECK(e2b__proxy_excepted(longer, host, 443) == is);
  (void)memcpy(longer + len, ",*", 3);
  FUZZ_CHECK(e2b__proxy_excepted(longer, host, 443));
  free(longer);
  for (i = 0; i < len; i++) star = star || list[i] == '*' || list[i] == '.' || e2b__ascii_lower(list[i]) == 'e' || list[i] == '/';
  if (!star) FUZZ_CHECK(!e2b__proxy_excepted(list, "x.example", 443));
}

static void fuzz_url(const uint8_t *data, size_t len) {
  static const char *const fixed[] = { "example.com", "a.example.com", "127.0.0.1", "::1" };
  fuzz_url_run f;
  size_t i, k, at = 0;
  fuzz_heap_init(&f.heap, 0);
  for (i = 0; i < E2B__COUNT(f.texts); i++) {
    size_t n = 0;
    while (at + n < len && data[at + n]) n++;
    f.texts[i] = fuzz_text(at < len ? (const char *)data + at : "", n);
    at += E2B__MIN(n + 1, len - at);
  }
  fuzz_url_certificate(data, len);
  fuzz_url_escape(&f, e2b__str_n((const char *)data, len));
  for (i = 0; i < E2B__COUNT(f.texts); i++) {
    fuzz_url_parse(&f, f.texts[i]);
    fuzz_url_host(f.texts[i]);
    (void)e2b__version_compare(f.texts[i], f.texts[0]);
    FUZZ_CHECK(e2b__version_compare(f.texts[i], f.texts[0]) == -e2b__version_compare(f.texts[0], f.texts[i]));
    for (k = 0; k < E2B__COUNT(fixed); k++) {
      fuzz_url_fits(&f, fixed[k], f.texts[i]);
      fuzz_url_fits(&f, f.texts[i], fixed[k]);
    }
    fuzz_url_entry(f.texts[i], "10.0.0.1", "example.com");
  }
  fuzz_url_proxy(&f, f.texts[1], f.texts[3], f.texts[2]);
  fuzz_url_proxy(&f, f.texts[0], "example.com", f.texts[2]);
  fuzz_url_except(f.texts[2], f.texts[3]);
  fuzz_url_fits(&f, f.texts[3], f.texts[4]);
  fuzz_url_entry(f.texts[4], f.texts[3], f.texts[0]);
  for (i = 0; i < E2B__COUNT(f.texts); i++) free(f.texts[i]);
  FUZZ_CHECK(f.heap.live == 0);
}

FUZZ_TARGET(url)
