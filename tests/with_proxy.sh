#!/bin/sh
# Starts tinyproxy on a free port, with a user and a password, runs a command with E2B_TEST_PROXY naming it, and stops it. Exit
# code: the command's, or 1 when the command did not go through the proxy.
#
#   sh tests/with_proxy.sh command [arguments]
set -eu

command -v tinyproxy >/dev/null || { echo "with_proxy: no tinyproxy" >&2; exit 1; }
dir=$(mktemp -d)
pid=
stop() {
  [ -z "$pid" ] || { kill "$pid" && wait "$pid"; } 2>/dev/null || :
  rm -rf "$dir"
}
trap stop EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# It cannot choose a port by itself: one after the other is tried until it stays.
tries=0
until [ -n "$pid" ]; do
  tries=$((tries + 1))
  [ $tries -le 20 ] || { cat "$dir/log" >&2; exit 1; }
  port=$((20000 + ($$ * 7 + tries * 331) % 20000))
  cat >"$dir/conf" <<TEXT
Port $port
Listen 127.0.0.1
Allow 127.0.0.1
BasicAuth someone secret
LogLevel Connect
LogFile "$dir/log"
TEXT
  tinyproxy -d -c "$dir/conf" >>"$dir/out" 2>&1 &
  pid=$!
  sleep 0.3
  kill -0 "$pid" 2>/dev/null || pid=
done

E2B_TEST_PROXY="http://someone:secret@127.0.0.1:$port" "$@"
grep -q 'Request (file descriptor' "$dir/log" || { echo "with_proxy: nothing went through the proxy" >&2; exit 1; }
