#!/bin/bash
# What has to be true of e2b.h in every build: no warnings, no names that are not ours, no mutable globals, links in every
# combination. Run by `make check`; wants gcc and clang, and skips by name what a missing tool leaves unchecked.
#
#   bash tests/warnings.sh BUILD      after tests/deps.sh BUILD
#
# Prints "ok" or "not ok" per check and last "N passed, N failed, N skipped".
set -u
cd "$(dirname "$0")/.." || exit 2
build=${1:-build}
out=$build/check
rm -rf "$out"
mkdir -p "$out"
. tests/tally.sh
log=$out/log

# The dependencies' headers are not ours to warn about.
cflags=$(sed 's/-I/-isystem /g' "$build/deps.cflags")
libs=$(cat "$build/deps.libs")

have() { command -v "$1" >/dev/null 2>&1; }

same() { # two texts; shows the difference
  diff <(echo "$1") <(echo "$2")
}

nothing() { # prints its input, fails when there is any
  ! grep .
}

# ---- the files that are compiled ------------------------------------------------------------------------------------

# Every one calls something of what it enabled: a misspelt switch would not link.
cat >"$out/all.c" <<'TEXT'
#define E2B_IMPLEMENTATION
#include "e2b.h"
TEXT
cat >"$out/static.c" <<'TEXT'
#define E2B_STATIC
#define E2B_IMPLEMENTATION
#include "e2b.h"
int STATIC_NAME(void);
int STATIC_NAME(void) { return e2b_err_name(E2B_OK) == NULL; }
TEXT
cat >"$out/declarations.c" <<'TEXT'
#include "e2b.h"
#include "e2b.h"
int use(e2b_client *client, e2b_error *err);
int use(e2b_client *client, e2b_error *err) { return e2b_sandbox_create(client, NULL, NULL, NULL, err) != E2B_OK; }
TEXT
cat >"$out/late.c" <<'TEXT'
#include "e2b.h"
#define E2B_IMPLEMENTATION
#include "e2b.h"
TEXT
cat >"$out/main.c" <<'TEXT'
#include "e2b.h"
#include <string.h>
int main(void) {
  e2b_error err;
  e2b_client *client = e2b_client_create(NULL, &err);
  bool good = client && strcmp(e2b_err_name(E2B_ERR_NOT_FOUND), "E2B_ERR_NOT_FOUND") == 0;
  e2b_client_free(client);
  return good ? 0 : 1;
}
TEXT
cat >"$out/main_static.c" <<'TEXT'
int one(void);
int two(void);
int main(void) { return one() || two(); }
TEXT
cat >"$out/allocator.c" <<'TEXT'
#include <stddef.h>
static void *none(size_t size) { (void)size; return NULL; }
#define E2B_MALLOC(size) none(size)
#define E2B_REALLOC(ptr, size) ((void)(ptr), none(size))
#define E2B_FREE(ptr) ((void)(ptr))
#define E2B_ASSERT(x) ((void)(x))
#define E2B_IMPLEMENTATION
#include "e2b.h"
TEXT
for f in all static declarations late main allocator; do cp "$out/$f.c" "$out/$f.cpp"; done

strict_c='-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wundef -Wstrict-prototypes -Werror'
strict_cpp='-Wall -Wextra -Werror'

# shellcheck disable=SC2086
compile() { # compiler, options, file, object
  "$1" $2 -I. $cflags -c "$out/$3" -o "$out/$4"
}

# ---- warnings -------------------------------------------------------------------------------------------------------

for cc in gcc clang; do
  have $cc || { skip "warnings, $cc" "no $cc"; continue; }
  for std in c99 c11; do
    check "warnings, $cc -std=$std" compile $cc "-std=$std -O2 $strict_c" all.c all.o
    check "warnings, $cc -std=$std, declarations" compile $cc "-std=$std $strict_c" declarations.c use.o
  done
  check "warnings, $cc -std=gnu11" compile $cc "-std=gnu11 $strict_c" all.c gnu.o
  check "warnings, $cc, declarations first" compile $cc "-std=gnu99 $strict_c" late.c late.o
  check "warnings, $cc, E2B_STATIC" compile $cc "-std=c99 $strict_c -DSTATIC_NAME=one" static.c static.o
  all=
  for switch in $(grep -oE '\bE2B_NO_[A-Z0-9_]+' e2b.h | sort -u); do
    check "warnings, $cc, $switch" compile $cc "-std=c99 $strict_c -D$switch" all.c switch.o
    all="$all -D$switch"
  done
  check "warnings, $cc, all switches at once" compile $cc "-std=c99 $strict_c $all" all.c switch.o
  check "warnings, $cc, E2B_MALLOC and E2B_ASSERT" compile $cc "-std=c99 $strict_c" allocator.c allocator.o
  check "warnings, $cc, NDEBUG" compile $cc "-std=c99 -O2 $strict_c -DNDEBUG" all.c ndebug.o
  for example in examples/*.c; do
    [ "$example" = examples/local_server.c ] && continue # uses more than C99 and POSIX
    check "warnings, $cc, $example" compile $cc "-std=c99 $strict_c" "../../$example" example.o
  done
done
for cxx in g++ clang++; do
  have $cxx || { skip "warnings, $cxx" "no $cxx"; continue; }
  for std in c++11 c++17; do
    check "warnings, $cxx -std=$std" compile $cxx "-std=$std -O2 $strict_cpp" all.cpp all.o
    check "warnings, $cxx -std=$std, declarations" compile $cxx "-std=$std $strict_cpp" declarations.cpp use.o
  done
  check "warnings, $cxx, E2B_STATIC" compile $cxx "-std=c++11 $strict_cpp -DSTATIC_NAME=one" static.cpp static.o
done

# ---- linking --------------------------------------------------------------------------------------------------------

# shellcheck disable=SC2086
links() { # compiler of main, its file, compiler of the implementation, its file, linker
  "$1" -I. $cflags -c "$out/$2" -o "$out/link_main.o" && "$3" -I. $cflags -c "$out/$4" -o "$out/link_all.o" &&
    "$1" -I. $cflags -c "$out/declarations${2#main}" -o "$out/link_use.o" &&
    "$5" "$out/link_main.o" "$out/link_use.o" "$out/link_all.o" $libs -o "$out/link" && "$out/link"
}
# shellcheck disable=SC2086
links_static() {
  gcc -I. $cflags -DSTATIC_NAME=one -c "$out/static.c" -o "$out/one.o" &&
    gcc -I. $cflags -DSTATIC_NAME=two -c "$out/static.c" -o "$out/two.o" &&
    gcc "$out/main_static.c" "$out/one.o" "$out/two.o" $libs -o "$out/link" && "$out/link"
}
if have gcc; then
  check "links, C and C" links gcc main.c gcc all.c gcc
  check "links, E2B_STATIC in two files" links_static
else
  skip "links, C and C; E2B_STATIC in two files" "no gcc"
fi
if have gcc && have g++; then
  check "links, C main, C++ implementation" links gcc main.c g++ all.cpp g++
  check "links, C++ main, C implementation" links g++ main.cpp gcc all.c g++
else
  skip "links, C with C++" "no g++"
fi

# ---- names ----------------------------------------------------------------------------------------------------------

# What every file that includes e2b.h gets: comments gone, only lines of e2b.h itself.
declarations() { # compiler, options
  # shellcheck disable=SC2086
  "$1" $2 -E -I. -x "$3" - <<<'#include "e2b.h"' | awk '/^# [0-9]+ "/ { ours = $3 ~ /e2b\.h"$/; next } ours'
}

# Identifiers at file scope and in the lists of enumerators that are not ours and not the language's.
foreign_names() {
  awk '
    BEGIN {
      split("typedef struct enum extern const void int char bool _Bool unsigned signed long short float double static inline " \
            "size_t int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t intptr_t uintptr_t ptrdiff_t C", words, " ")
      for (i in words) known[words[i]] = 1
    }
    {
      line = $0
      while (match(line, /[A-Za-z_][A-Za-z_0-9]*|[0-9][0-9A-Za-z.]*|[^ \t]/)) {
        t = substr(line, RSTART, RLENGTH)
        line = substr(line, RSTART + RLENGTH)
        if (t == "{") { depth++; body[depth] = kind; kind = "" }
        else if (t == "}") depth--
        else if (t == "(") parens++
        else if (t == ")") parens--
        else if (t == "struct" || t == "union" || t == "enum") kind = t
        else if (t == ";") kind = ""
        else if (t ~ /^[A-Za-z_]/ && !(t in known) && t !~ /^(e2b_[a-z]|E2B_[A-Z])/) {
          file_scope = depth == 0 || (depth == 1 && body[1] == "")
          pointer = parens == 1 && last == "*" && before == "("
          if ((file_scope && (parens == 0 || pointer)) || (depth > 0 && body[depth] == "enum" && parens == 0)) print t
        }
        before = last
        last = t
      }
    }' | sort -u
}

macros() { # options, text
  # shellcheck disable=SC2086
  gcc $1 -E -dM -I. -x c - <<<"$2" | awk '{ sub(/\(.*/, "", $2); print $2 }' | sort -u
}

base=$'#include <stddef.h>\n#include <stdint.h>\n#include <stdbool.h>'
no_foreign_macros() {
  comm -13 <(macros "-std=$1" "$base") <(macros "-std=$1" "$base"$'\n#include "e2b.h"') | grep -v '^E2B_[A-Z]' | nothing
}
no_foreign_names() { declarations "$1" "-std=$2" "$3" | foreign_names | nothing; }
includes() {
  same "$(awk '/end of the declarations/ { exit } 1' e2b.h | sed -n 's/^[ \t]*#[ \t]*include[ \t]*\(<.*>\).*/\1/p' | sort -u)" \
    "$(printf '<stdbool.h>\n<stddef.h>\n<stdint.h>')"
}
check "declarations include stddef.h, stdint.h, stdbool.h only" includes
if have gcc; then
  check "declarations add no macro but E2B_*" no_foreign_macros c99
  check "declarations add no type, function or enumerator but e2b_*, E2B_*" no_foreign_names gcc c99 c
else
  skip "names of the declarations" "no gcc"
fi

exports() { nm -g --defined-only "$out/$1" | awk '$2 ~ /[A-Za-z]/ && NF == 3 { print $3 }' | sort -u; }
documented() { awk '/end of the declarations/ { exit } 1' e2b.h | grep -o '^E2B_API .*' | grep -oE '\be2b_[a-z0-9_]+\(' | tr -d '(' | sort -u; }
exports_are_documented() { [ -n "$(documented)" ] && same "$(documented)" "$(exports "$1")"; }
exports_nothing() { exports "$1" | grep -vx one | nothing; }
# Without position-independent code a const table with pointers lies in .rodata (r); whatever is left in .data or .bss
# (b, d, common, small data; upper case when exported) can be written to.
no_mutable_globals() { nm "$out/$1" | awk '$(NF - 1) ~ /^[bBdDcCsSgG]$/' | nothing; }
for cc in gcc clang; do
  have $cc || { skip "exports and globals, $cc" "no $cc"; continue; }
  compile $cc "-std=c99 -O1 -fno-pic -fno-pie" all.c "$cc-names.o"
  compile $cc "-std=c99 -DSTATIC_NAME=one" static.c "$cc-names-static.o"
  check "exports are the documented functions, $cc" exports_are_documented $cc-names.o
  check "exports nothing with E2B_STATIC, $cc" exports_nothing $cc-names-static.o
  check "no mutable globals, $cc" no_mutable_globals $cc-names.o
done

# ---- the text -------------------------------------------------------------------------------------------------------

contents() {
  same "$(awk '/CONTENTS OF THIS FILE/ { on = 1 } /^ *$/ { on = 0 } on' e2b.h | grep -oE '>>>> [a-z0-9]+')" \
    "$(sed -n 's,^/\* \(>>>> .*[^ ]\) *\*/$,\1,p' e2b.h)"
}
banned() {
  grep -nE '(^|[^_[:alnum:]])(strcpy|strcat|sprintf|vsprintf|strtok|gets|atoi|atol|alloca|setjmp|longjmp)[[:space:]]*\(' \
    e2b.h e2b_test.c examples/*.c tests/*.c | nothing
}
license() { diff <(tail -n "$(($(wc -l <LICENSE) + 1))" e2b.h | sed '$d') LICENSE; }
check "table of contents names every section, in order" contents

# Every test that a table names exists; "*" stands for anything, "*/name" for a test end to end; remarks are in parentheses.
named_tests() { # file
  local names name
  names=$(grep -oE '\b(UNIT|HOST|CONTENT|SERVER|NATIVE|CODE|PYTHON)\([a-z0-9_]+\)' e2b_test.c | sed -E 's/.*\(|\)//g' | sort -u)
  awk -F'|' '/^\|/ && !/^\|---/ { print $(NF - 1) }' "$1" | sed -E 's/\([^()]*\)//g' | tr ',' '\n' | sed 's/^ *//; s/ *$//' |
    grep -vE '^(tests?( that shows it)?|js:.*|examples|tests/.*|[a-z]+/\*|)$' | while read -r name; do
      name=${name#*/}
      grep -qxE "${name//\*/.*}" <<<"$names" || echo "$name"
    done | nothing
}
check "tests/features.md names tests that exist" named_tests tests/features.md
check "tests/failures.md names tests that exist" named_tests tests/failures.md
check "no banned functions" banned
check "the licence at the end of e2b.h is LICENSE" license

# ---- Windows --------------------------------------------------------------------------------------------------------

# Compiled to an object; mbedTLS' headers are the same on every system, its directory must hold nothing else.
windows() {
  local ssl
  # shellcheck disable=SC2086
  ssl=$(echo '#include <mbedtls/ssl.h>' | gcc $cflags -E -M -x c - | tr ' ' '\n' | grep 'mbedtls/ssl\.h$') || return 1
  mkdir -p "$out/include"
  for d in mbedtls psa tf-psa-crypto; do
    [ -d "${ssl%/mbedtls/ssl.h}/$d" ] && ln -sfn "$(cd "${ssl%/mbedtls/ssl.h}/$d" && pwd)" "$out/include/$d"
  done
  # shellcheck disable=SC2086
  "$1" $2 -I. $cflags -isystem "$out/include" -c "$out/all.c" -o "$out/windows.o"
}
beside_windows_h() {
  local use='int one(void); int one(void) { return (int)sizeof(e2b_client_config); }'
  # shellcheck disable=SC2086
  printf '#include <windows.h>\n#include "e2b.h"\n%s\n' "$use" | "$1" $2 -I. -x c -c - -o "$out/windows.o" &&
    printf '#include "e2b.h"\n#include <windows.h>\n%s\n' "$use" | "$1" $2 -I. -x c -c - -o "$out/windows.o"
}
for mingw in x86_64-w64-mingw32-gcc i686-w64-mingw32-gcc; do
  have $mingw && check "declarations before and after windows.h, $mingw" beside_windows_h $mingw "-std=c99 -O2 -Wall -Wextra -Werror"
  if have $mingw; then check "compiles for Windows, $mingw" windows $mingw "-std=c99 -O2 -Wall -Wextra -Werror"
  elif [ $mingw = x86_64-w64-mingw32-gcc ]; then skip "compiles for Windows" "no $mingw"; fi
done

result
