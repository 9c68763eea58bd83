#!/bin/bash
# The Windows port, run: cross-compiles mbedTLS, llhttp, e2b_test.c and the examples with MinGW and runs them under Wine. The
# tests in memory and over loopback, then those end to end against the local server of this machine: over http, over https, and
# over HTTP/2 through nghttpx.
#
#   bash tests/windows.sh BUILD        after make BUILD/local_server BUILD/e2b_test; Debian 12, as root
#
# Installs by name what is missing: wine64, gcc-mingw-w64-x86-64, and what apt-get source needs. All it makes is in BUILD/windows.
# About five minutes. Prints last "N passed, N failed, N skipped".
set -u
cd "$(dirname "$0")/.." || exit 2
build=${1:?usage: windows.sh BUILD}
case $build in /*) ;; *) build=$PWD/$build ;; esac
out=$build/windows
mingw=x86_64-w64-mingw32
. tests/tally.sh
log=$out/log
rm -rf "$out"
mkdir -p "$out/obj"

# Nothing of Wine outlives this script.
export WINEPREFIX=$out/prefix WINEDEBUG=-all WINEDLLOVERRIDES='winemenubuilder.exe=' DISPLAY=
stop() {
  if [ -d "$WINEPREFIX" ]; then wineserver -k && wineserver -w; fi >/dev/null 2>&1
  rm -rf "$WINEPREFIX"
}
trap stop EXIT

give_up() { # name
  fail "$1"
  result
  exit 1
}

# ---- packages -------------------------------------------------------------------------------------------------------

packages() {
  local missing=
  command -v wine >/dev/null || missing="$missing wine wine64"
  command -v $mingw-gcc >/dev/null || missing="$missing gcc-mingw-w64-x86-64"
  command -v dpkg-source >/dev/null || missing="$missing dpkg-dev"
  [ -z "$missing" ] && return
  apt-get -qq update
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing
}

# The source of the distribution's package, from the mirror that is set up here; lists of sources are kept apart from the system's.
source_of() { # package
  local dir=$out/source options
  mkdir -p "$dir/lists/partial"
  apt-get indextargets --format 'deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(REPO_URI) $(RELEASE) main' \
    'Created-By: Packages' 'Origin: Debian' | sort -u >"$dir/sources.list"
  options="-o Dir::Etc::SourceList=$dir/sources.list -o Dir::Etc::SourceParts=- -o Dir::State::Lists=$dir/lists -o APT::Sandbox::User=root"
  # shellcheck disable=SC2086
  (cd "$dir" && apt-get $options -qq update && apt-get $options -q source "$1")
}

# ---- build ----------------------------------------------------------------------------------------------------------

cross() { $mingw-gcc -O1 -g "$@"; }

build_mbedtls() {
  local file
  source_of mbedtls || return 1
  tls=$(echo "$out"/source/mbedtls-*/include)
  [ -d "$tls" ] || return 1
  for file in "$tls"/../library/*.c; do
    cross -w "-I$tls" -c "$file" -o "$out/obj/tls_$(basename "$file" .c).o" || return 1
  done
}

build_llhttp() {
  local file
  for file in llhttp api http; do
    # shellcheck disable=SC2086
    cross -DLLHTTP_STRICT_MODE=1 $http -c "$http_source/$file.c" -o "$out/obj/$file.o" || return 1
  done
}

# As README.md says, with the libraries' objects in place of the libraries. -lpthread is for the clock of two examples and the
# threads of the tests.
program() { # source, options...
  local source=$1
  shift
  # shellcheck disable=SC2086
  cross -Wall -Wextra -Werror "$@" -I. $http "-I$tls" "$source" "$out"/obj/*.o -lws2_32 -lcrypt32 -lbcrypt -static -lpthread \
    -o "$out/$(basename "$source" .c).exe"
}

echo "# packages"
packages >"$log" 2>&1 || give_up "packages"
sh tests/deps.sh "$build" >"$log" 2>&1 || give_up "llhttp"
http=$(cat "$build/deps.cflags")
http_source=${LLHTTP_DIR:-$build/deps/root/usr}
http_source=$(dirname "$(find "$http_source" -name llhttp.c | head -n 1)")
build_mbedtls >"$log" 2>&1 || give_up "mbedTLS"
build_llhttp >"$log" 2>&1 || give_up "llhttp"
$mingw-ar rcs "$out/libs.a" "$out"/obj/*.o
examples="quickstart stream_output thousand_sandboxes game_loop code_interpreter watch upload_tree own_ca_and_proxy"
for example in $examples; do check "build of $example" program "examples/$example.c" -std=c99 -O0; done
check "build of the tests" program e2b_test.c -std=gnu99 -DPSAPI_VERSION=2 -Wno-unused-function
[ -e "$out/e2b_test.exe" ] || give_up "no tests"
# One server for all of it, which waits for nobody's pipe.
mkdir -p "$WINEPREFIX"
(wineserver -p && wineboot -i) </dev/null >"$log" 2>&1 || give_up "wineboot"

# ---- run ------------------------------------------------------------------------------------------------------------

count() { # name, a program that ends with "N passed, N failed, N skipped"
  local name=$1 status=0
  shift
  "$@" </dev/null >"$out/printed" 2>&1 || status=$?
  tr -d '\r' <"$out/printed" >"$log"
  sed '$d' "$log" | tail -n 40
  echo "$name: $(tail -n 1 "$log")"
  tally "$name" $status
}

# The tests that need no server, without those that take long here and know no system.
unit() {
  wine "$out/e2b_test.exe" -l >"$out/names" || return 1
  # shellcheck disable=SC2046
  wine "$out/e2b_test.exe" -q $(tr -d '\r' <"$out/names" | grep -vE "/|^(cut|fault)_http|_no_memory$|^($slow)$")
}
slow='files_parts|tls_one_byte|tls_cut|config_matrix|watch_polling|code_cut|files_read_cut|http1_limits|endless_answers'

cat >"$out/front.sh" <<TEXT
#!/bin/sh
# E2B_FRONT_URL is what the tests run against.
unset E2B_API_KEY
export E2B_FRONT_URL="\${E2B_FRONT_URL-\$E2B_API_URL}" E2B_FRONT_CA="\${E2B_FRONT_CA-\${NODE_EXTRA_CA_CERTS-}}" E2B_FRONT_HTTP="\${E2B_FRONT_HTTP-1}"
export E2B_TEST_ECHO_SERVER="$build/e2b_test"
wine "$out/e2b_test.exe" "\$@" >"$out/front.out" 2>&1 </dev/null
status=\$?
tr -d '\r' <"$out/front.out"
exit \$status
TEXT
chmod +x "$out/front.sh"
front() { sh tests/with_server.sh "$build/local_server" --api-key test-key "$@"; }

runs() { # example, what it must print, arguments...
  local name=$1 says=$2
  shift 2
  sh tests/with_server.sh "$build/local_server" -- wine "$out/$name.exe" "$@" </dev/null >"$out/printed" 2>&1 || { cat "$out/printed"; return 1; }
  tr -d '\r' <"$out/printed" | grep -qE "$says" || { cat "$out/printed"; return 1; }
}

count "unit tests" unit
count "trees, each allocation failing" wine "$out/e2b_test.exe" -q cut_no_memory_http1
check "quickstart" runs quickstart '^hello$'
check "stream_output" runs stream_output '^pushed: c$'
check "thousand_sandboxes, 200 connections at once" runs thousand_sandboxes '^killed +400 ' 400 200
check "game_loop" runs game_loop '^sandbox closed$'
check "code_interpreter" runs code_interpreter '^run 3 raised ZeroDivisionError'
check "watch" runs watch '^the directory is gone$'
check "upload_tree" runs upload_tree '0 failed, 0 skipped$' examples
count "http" front -- "$out/front.sh" -q
# 64 MiB both ways, and what goes over sockets most.
count "http, 64 MiB" front -- "$out/front.sh" front/big_file front/stream_output front/upload_and_download
some="front/run front/stream_ front/stdin_big front/big_file front/upload_and front/trees front/windows front/wake front/two_clients
  front/many_ front/certificates front/small_buffers front/threads front/parallel"
# shellcheck disable=SC2086
count "https" front --tls -- "$out/front.sh" -q $some
if command -v nghttpx >/dev/null; then
  # shellcheck disable=SC2086
  count "HTTP/2" env "E2B_FRONT_RUN=$out/front.sh" bash tests/http2.sh "$build" nghttpx -- -q $some
else
  skip HTTP/2 "no nghttpx"
fi
result
