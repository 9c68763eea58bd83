# make demo    starts the local server on a free port, runs examples/quickstart.c against it and stops it;
#              make demo E2B_API_KEY=... E2B_DOMAIN=...   runs the same against a real service
# make test    builds and runs e2b_test.c;
#              make test T="http1 http/"                  only the tests whose names begin so
#              make test E2B_ENVD_URL=http://HOST:PORT    the end-to-end tests against a running envd
# make bench-http2                                     the same of HTTP/2, through nghttpx; a minute
# make memory                                          measures again what README.md says of memory (Linux with glibc, nghttpx)
# make soak SECONDS=600                                everything at once over a network that fails; SEED= to repeat
# make coverage                                        what of e2b.h the tests reach; wants gcc and python3; a minute
# make fuzz T=http1 SECONDS=60   runs the fuzzer of tests/fuzz_http1.c (needs clang); make test replays what they found
# make examples, make bench, make check (warnings, names, linking; needs gcc and clang), make clean
#
# mbedTLS and llhttp are found, or fetched where that is allowed, by tests/deps.sh. Your own copies: MBEDTLS_DIR=, LLHTTP_DIR=.

BUILD = build
CFLAGS = -O2 -g
WARNINGS = -Wall -Wextra
T =
SECONDS = 600
SEED =

DEPS = $(BUILD)/deps.libs
COMPILE = $(CC) -std=c99 $(CFLAGS) $(WARNINGS) -I. $$(cat $(BUILD)/deps.cflags)
LINK = $$(cat $(BUILD)/deps.libs) $(LDFLAGS)
EXAMPLES = $(patsubst examples/%.c,$(BUILD)/%,$(filter-out $(LINUX_ONLY),$(wildcard examples/*.c)))
BENCHES = $(BUILD)/bench_pump $(BUILD)/bench_tree $(BUILD)/bench_memory

# The local server is for Linux; without it the tests that need it are skipped.
ifeq ($(shell uname -s),Linux)
  SERVER = $(BUILD)/local_server
else
  LINUX_ONLY = examples/local_server.c examples/own_event_loop.c
endif

# A key on the command line means a real service; one in the environment does not.
ifneq ($(filter command%,$(origin E2B_API_KEY)),)
  WITH_SERVER =
else
  WITH_SERVER = sh tests/with_server.sh $(BUILD)/local_server --
  DEMO_SERVER = $(BUILD)/local_server
endif

.PHONY: all demo test examples bench bench-http2 check fuzz coverage soak memory clean FORCE
all: examples $(BUILD)/e2b_test

demo: $(BUILD)/quickstart $(DEMO_SERVER)
	@$(WITH_SERVER) $(BUILD)/quickstart

test: $(BUILD)/e2b_test $(SERVER)
	@$(BUILD)/e2b_test $(T)

examples: $(EXAMPLES)

bench: $(BENCHES) $(SERVER)
	@for b in $(BENCHES); do sh tests/with_server.sh $(BUILD)/local_server -- $$b || exit 1; done

bench-http2: $(BUILD)/bench_http2 $(SERVER)
	@E2B_FRONT_RUN=$(BUILD)/bench_http2 bash tests/http2.sh $(BUILD) nghttpx

fuzz: $(BUILD)/fuzz_$(T)
	@mkdir -p $(BUILD)/corpus/$(T)
	$(BUILD)/fuzz_$(T) -max_total_time=$(SECONDS) -max_len=4096 -artifact_prefix=$(BUILD)/fuzz_$(T)- \
	  $(BUILD)/corpus/$(T) tests/corpus/$(T)

soak: $(BUILD)/soak $(SERVER)
	@sh tests/with_servers.sh $(SERVER) $(BUILD)/soak $(SECONDS) $(SEED)

memory: $(BUILD)/memory_table $(SERVER)
	@sh tests/with_servers.sh $(SERVER) $(BUILD)/memory_table --write README.md

# The tests, and over HTTP/2 as well where nghttpx is there. COVERAGE=--lines 92 --branches 80: fails below that.
coverage: $(SERVER)
	@$(MAKE) -s CC=gcc BUILD=$(BUILD)/coverage CFLAGS="-O0 -g --coverage -fprofile-update=atomic" $(BUILD)/coverage/e2b_test
	@cp $(SERVER) $(BUILD)/coverage/
	@rm -f $(BUILD)/coverage/*.gcda
	@$(BUILD)/coverage/e2b_test -q $(T)
	@[ -n "$(T)" ] || ! command -v nghttpx >/dev/null || bash tests/http2.sh $(BUILD)/coverage nghttpx-clear -- -q
	@python3 tests/coverage.py $(BUILD)/coverage -o $(BUILD)/coverage/missing.txt $(COVERAGE)

check: $(DEPS)
	@bash tests/warnings.sh $(BUILD)

clean:
	rm -rf $(BUILD)

$(BUILD)/%: examples/%.c e2b.h $(DEPS)
	$(COMPILE) $< $(LINK) -o $@

$(BUILD)/e2b_test: e2b_test.c $(wildcard tests/fuzz_*) e2b.h $(DEPS)
	$(COMPILE) $< $(LINK) -o $@

$(BUILD)/bench_%: tests/bench_%.c e2b.h $(DEPS)
	$(COMPILE) $< $(LINK) -o $@

$(BUILD)/soak $(BUILD)/memory_table: $(BUILD)/%: tests/%.c e2b.h $(DEPS)
	$(COMPILE) $< $(LINK) -o $@

$(BUILD)/fuzz_%: tests/fuzz_%.c $(wildcard tests/fuzz_*.h) e2b.h $(DEPS)
	clang -std=c99 -g -O1 -fno-omit-frame-pointer -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I. \
	  $$(cat $(BUILD)/deps.cflags) $< $(LINK) -o $@

# The script looks again only when the compiler, its flags or the directories have changed.
$(DEPS): FORCE
	@CC="$(CC)" CFLAGS="$(CFLAGS)" MBEDTLS_DIR="$(MBEDTLS_DIR)" LLHTTP_DIR="$(LLHTTP_DIR)" sh tests/deps.sh $(BUILD)
