#!/bin/sh
# Finds mbedTLS and llhttp, gets what is missing, and writes what a compile line needs:
#
#   DIR/deps.cflags   -I options
#   DIR/deps.libs     the llhttp objects or library, the mbedTLS libraries, -lpthread
#
#   sh tests/deps.sh DIR        environment: CC, CFLAGS, MBEDTLS_DIR, LLHTTP_DIR (all optional)
#
# Looked at in this order: the directories you name, what the compiler finds by itself, pkg-config, Homebrew's prefixes,
# and then the system's package manager: apt-get installs libmbedtls-dev when run by root or when sudo needs no password,
# otherwise it is unpacked below DIR. llhttp is always unpacked there: it is one small library or three C files, and
# installing the package with the C files would pull in, or clash with, a Node.js. The C library's headers, which a gcc
# may come without, are only ever installed. Every other system gets one line that says what to install.
set -eu

dir=${1:?usage: deps.sh DIR}
cc=${CC:-cc}
mkdir -p "$dir/deps"
work=$dir/deps
exec 3>&1 # what the user should see; command output goes to a log
log=$work/log
: >"$log"

say() { echo "deps: $*" >&3; }

missing() {
  say "$1 is missing: apt-get install $2 | dnf install $3 | pacman -S $4 | brew install $4 | or name a copy of your own: $5"
  exit 1
}

# links "cflags" "libs" "include line" "statement": whether this compiles and links
links() {
  printf '#include <stddef.h>\n%s\nint main(void) { %s return 0; }\n' "$3" "$4" >"$work/try.c"
  # shellcheck disable=SC2086
  $cc ${CFLAGS-} -w $1 "$work/try.c" $2 -o "$work/try" >>"$log" 2>&1
}

# ---- packages -----------------------------------------------------------------------------------------------------

have() { command -v "$1" >/dev/null 2>&1; }

# Whether and how we may install: root itself, or sudo that asks for no password.
sudo=no
if [ "$(id -u)" = 0 ]; then sudo=
elif have sudo && sudo -n true 2>/dev/null; then sudo='sudo -n'; fi

apt_get() {
  [ "$sudo" != no ] || return 1
  say "apt-get $*"
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get -y --no-install-recommends "$@" >>"$log" 2>&1
}

apt_knows() {
  have apt-get && have apt-cache && apt-cache policy "$1" 2>/dev/null | grep -q 'Candidate: [^(]'
}

apt_install() {
  apt_knows "$1" && apt_get install "$1"
}

# Unpacks a package below DIR; changes nothing on the system and needs no rights.
apt_unpack() {
  apt_knows "$1" && have dpkg || return 1
  say "apt-get download $1, unpacked in $work"
  (cd "$work" && rm -f "$1"_*.deb && apt-get -o APT::Sandbox::User= download "$1" && dpkg -x "$1"_*.deb root) >>"$log" 2>&1
}

# Once more with fresh package lists: a new machine has none, an old one's name files that are gone.
apt_retry() {
  "$@" && return 0
  have apt-get || return 1
  if [ ! -e "$work/updated" ]; then
    apt_get update || return 1
    : >"$work/updated"
  fi
  "$@"
}

# ---- the C library ------------------------------------------------------------------------------------------------

# To Debian's gcc its headers are only recommended; without them everything else would look as if it were missing.
builds() { links "" "" '#include <stdio.h>' ''; }

get_libc() { apt_install libc6-dev && builds; }

# ---- mbedTLS ------------------------------------------------------------------------------------------------------

tls_cflags='' tls_libs=''

mbedtls_try() { # cflags, libs; the crypto library has a new name since mbedTLS 4
  links "$1" "$2" '#include <mbedtls/ssl.h>' 'mbedtls_ssl_context s; mbedtls_ssl_init(&s);' || return 1
  tls_cflags=$1
  tls_libs=$2
}

mbedtls_in() { # a directory: an installed prefix or a source tree that was built
  cflags=
  for d in include tf-psa-crypto/include tf-psa-crypto/drivers/builtin/include; do
    [ -d "$1/$d" ] && cflags="$cflags -I$1/$d"
  done
  for d in "$1/lib" "$1/lib64" "$1"/lib/*-linux-* "$1/library" "$1/build/library" "$1"; do
    for crypto in mbedcrypto tfpsacrypto; do
      # The static libraries when there are any: nothing has to be found at run time.
      if [ -e "$d/libmbedtls.a" ]; then
        mbedtls_try "$cflags" "$d/libmbedtls.a $d/libmbedx509.a $d/lib$crypto.a" && return 0
      elif [ -e "$d/libmbedtls.so" ] || [ -e "$d/libmbedtls.dylib" ]; then
        mbedtls_try "$cflags" "-L$d -Wl,-rpath,$d -lmbedtls -lmbedx509 -l$crypto" && return 0
      fi
    done
  done
  return 1
}

find_mbedtls() {
  if [ -n "${MBEDTLS_DIR-}" ]; then
    mbedtls_in "$(cd "$MBEDTLS_DIR" && pwd)" && return 0
    say "MBEDTLS_DIR=$MBEDTLS_DIR holds no mbedTLS that links (include/, and lib/ or library/); see $dir/deps/log"
    exit 1
  fi
  mbedtls_try "" "-lmbedtls -lmbedx509 -lmbedcrypto" && return 0
  have pkg-config && pkg-config --exists mbedtls 2>/dev/null &&
    mbedtls_try "$(pkg-config --cflags mbedtls)" "$(pkg-config --libs mbedtls)" && return 0
  for prefix in "$work/root/usr" /opt/homebrew/opt/mbedtls /usr/local/opt/mbedtls /opt/homebrew /usr/local; do
    [ -d "$prefix/include/mbedtls" ] && mbedtls_in "$prefix" && return 0
  done
  return 1
}

get_mbedtls() {
  { apt_install libmbedtls-dev && find_mbedtls; } || { apt_unpack libmbedtls-dev && find_mbedtls; }
}

# ---- llhttp -------------------------------------------------------------------------------------------------------

http_cflags='' http_libs=''

llhttp_try() {
  links "$1" "$2" '#include <llhttp.h>' 'llhttp_settings_t s; llhttp_settings_init(&s);' || return 1
  http_cflags=$1
  http_libs=$2
}

# Directory of the three C files, directory of the header. Versions 6 to 8 are lenient unless told to be strict.
llhttp_compile() {
  [ -e "$1/llhttp.c" ] && [ -e "$1/api.c" ] && [ -e "$1/http.c" ] && [ -e "$2/llhttp.h" ] || return 1
  objects=
  for file in api http llhttp; do
    # shellcheck disable=SC2086
    $cc -O2 ${CFLAGS-} -w -DLLHTTP_STRICT_MODE=1 "-I$2" -c "$1/$file.c" -o "$work/llhttp_$file.o" >>"$log" 2>&1 || return 1
    objects="$objects $work/llhttp_$file.o"
  done
  llhttp_try "-I$2" "$objects"
}

llhttp_in() {
  for source in "$1" "$1/src" "$1/share/llhttp"; do
    for include in "$1" "$1/include" "$1/include/llhttp" "$1/share/include/llhttp"; do
      llhttp_compile "$source" "$include" && return 0
    done
  done
  for lib in "$1/lib" "$1/lib64" "$1"/lib/*-linux-*; do
    [ -e "$lib/libllhttp.a" ] && llhttp_try "-I$1/include" "$lib/libllhttp.a" && return 0
  done
  return 1
}

find_llhttp() {
  if [ -n "${LLHTTP_DIR-}" ]; then
    llhttp_in "$(cd "$LLHTTP_DIR" && pwd)" && return 0
    say "LLHTTP_DIR=$LLHTTP_DIR holds no llhttp that compiles (llhttp.h, llhttp.c, api.c, http.c); see $dir/deps/log"
    exit 1
  fi
  llhttp_try "" "-lllhttp" && return 0
  have pkg-config && pkg-config --exists libllhttp 2>/dev/null &&
    llhttp_try "$(pkg-config --cflags libllhttp)" "$(pkg-config --libs libllhttp)" && return 0
  for prefix in "$work/root/usr" /usr /opt/homebrew/opt/llhttp /usr/local/opt/llhttp /opt/homebrew /usr/local; do
    llhttp_in "$prefix" && return 0
  done
  return 1
}

get_llhttp() {
  { apt_unpack libllhttp-dev && find_llhttp; } || { apt_unpack node-llhttp && find_llhttp; }
}

# ---- the result ---------------------------------------------------------------------------------------------------

# Nothing to do when it was all found before with the same settings.
settings="$cc|${CFLAGS-}|${MBEDTLS_DIR-}|${LLHTTP_DIR-}"
if [ -e "$dir/deps.libs" ] && [ "$(cat "$work/settings" 2>/dev/null)" = "$settings" ]; then exit 0; fi
rm -f "$work/settings" "$work/updated"

if ! have "$cc"; then
  say "there is no C compiler '$cc'. Install one (apt-get install gcc), or name yours with CC="
  exit 1
fi
builds || { [ ! -e /usr/include/stdio.h ] && apt_retry get_libc; } || {
  say "'$cc' builds no program; see $log. When it is the C library's headers that are missing: apt-get install libc6-dev"
  exit 1
}
find_mbedtls || apt_retry get_mbedtls || missing mbedTLS libmbedtls-dev mbedtls-devel mbedtls MBEDTLS_DIR=
find_llhttp || apt_retry get_llhttp || missing llhttp 'libllhttp-dev (or node-llhttp)' llhttp-devel llhttp LLHTTP_DIR=
echo "$http_cflags $tls_cflags" >"$dir/deps.cflags"
echo "$http_libs $tls_libs -lpthread" >"$dir/deps.libs"
echo "$settings" >"$work/settings"
