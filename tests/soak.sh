#!/bin/sh
# tests/soak.c against all there is: the https server that tests/with_server.sh has started, one over http, and over HTTP/2 in
# the clear through nghttpx where it is installed. Started by `make soak`.
#
#   sh tests/with_server.sh BUILD/local_server --tls -- sh tests/soak.sh BUILD [seconds [seed]]
set -eu
build=${1:?usage: soak.sh BUILD [seconds [seed]]}
shift

# Once more, behind the second server.
if [ -z "${SOAK_URLS-}" ]; then
  SOAK_URLS=$E2B_API_URL
  export SOAK_URLS
  exec sh tests/with_server.sh "$build/local_server" -- sh "$0" "$build" "$@"
fi

front=
stop() {
  [ -z "$front" ] || { kill "$front" && wait "$front"; } 2>/dev/null || :
}
trap stop EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

if command -v nghttpx >/dev/null; then
  tries=0
  while [ -z "$front" ] && [ $tries -lt 20 ]; do # a port that is free, by trying
    tries=$((tries + 1))
    port=$((20000 + ($$ * 31 + tries * 977) % 40000))
    nghttpx --conf=/dev/null -f "127.0.0.1,$port;no-tls" -b "127.0.0.1,${E2B_API_URL##*:}" --workers=1 --accesslog-file=/dev/null \
      --errorlog-file=/dev/null --frontend-read-timeout=600s --backend-read-timeout=600s --backend-write-timeout=600s \
      --backend-connections-per-host=10000 --frontend-http2-max-concurrent-streams=200 >/dev/null 2>&1 &
    front=$!
    sleep 1
    kill -0 "$front" 2>/dev/null || front=
  done
  [ -z "$front" ] || SOAK_URLS="$SOAK_URLS h2:http://localhost:$port"
fi
"$build/soak" "$@"
