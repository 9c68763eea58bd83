#!/bin/bash
# Runs every example against the local server and compares what it prints with what its head comment says it prints.
#
#   bash tests/examples.sh BUILD        after make examples
#
# In the comment these are the lines indented by seven blanks. Numbers with a point are times of a machine and equal to any
# other; lines that begin with '#' are not compared. Prints last "N passed, N failed, N skipped".
set -u
cd "$(dirname "$0")/.." || exit 2
build=${1:?usage: examples.sh BUILD}
server=$build/local_server
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
. tests/tally.sh
log=$dir/log

any_number() { sed -E "s/$numbers/N/g"; }
numbers='[0-9]+\.[0-9]+'

expected() { # example
  sed -n '1,/\*\//p' "examples/$1.c" | grep -E '^ {7}[^ ]' | sed -E 's/^ {7}//; s/ *\*\/$//' | grep -v '^#' | any_number
}

compare() { # name, example, command...
  local name=$1 example=$2 status=0
  shift 2
  "$@" >"$dir/out" 2>"$dir/err" </dev/null || status=$?
  : >"$log"
  if [ $status = 0 ] && diff <(expected "$example") <(grep -v '^#' "$dir/out" | any_number) >"$log"; then
    pass "$name"
  else
    cat "$dir/err" >>"$log"
    fail "$name (exit code $status)"
  fi
}

with_server() { sh tests/with_server.sh "$server" "$@"; }

# Some lines for a shell on a terminal; of what comes back, the lines they print (not those the terminal echoes), and its exit code.
type_into_shell() {
  local status=0
  printf '%s\n' 'echo "out: $(stty size) $TERM"' 'cd /; echo "out: $PWD"' 'exit 7' |
    with_server -- "$build/pty_shell" >"$dir/shell" || status=$?
  [ $status = 7 ] && tr -d '\r' <"$dir/shell" | sed 's/\x1b\[[?0-9;]*[a-zA-Z]//g' | grep '^out:' >"$dir/typed" &&
    diff "$dir/typed" <(printf '%s\n' 'out: 24 80 xterm-256color' 'out: /')
}

for file in examples/*.c; do
  example=$(basename "$file" .c)
  case $example in
    local_server) ;; # it serves all the others
    thousand_sandboxes) compare $example $example with_server -- "$build/$example" 1000 100 ;;
    pty_shell) check $example type_into_shell ;;
    own_ca_and_proxy)
      run="cd $dir && cp \"\$NODE_EXTRA_CA_CERTS\" CA.pem && $(realpath "$build")/$example CA.pem"
      compare $example $example with_server --tls -- sh -c "$run"
      compare "$example through tinyproxy" $example sh tests/with_proxy.sh sh tests/with_server.sh "$server" --tls -- sh -c \
        "$run \"\$E2B_TEST_PROXY\"" ;;
    upload_tree) # says itself that its numbers differ
      numbers='[0-9]+'
      compare $example $example with_server -- "$build/$example" examples
      numbers='[0-9]+\.[0-9]+' ;;
    *) compare $example $example with_server -- "$build/$example" ;;
  esac
done
result
