#!/bin/sh
# Runs a command against all there is: a local server over http, one over https, and nghttpx in front of the first for HTTP/2 in
# the clear, where it is installed. Exit code: the command's.
#
#   sh tests/with_servers.sh build/local_server command [arguments]
#
# The command finds E2B_URLS="http://localhost:... https://localhost:... h2:http://localhost:...", E2B_API_KEY and in
# NODE_EXTRA_CA_CERTS the certificate to trust.
set -eu
server=${1:?usage: with_servers.sh SERVER command}

# Comes here once more behind the https server, and again behind both.
if [ -z "${E2B_URLS-}" ]; then
  export E2B_URLS=-
  exec sh tests/with_server.sh "$server" --tls -- sh "$0" "$@"
elif [ "$E2B_URLS" = - ]; then
  export E2B_URLS="$E2B_API_URL"
  exec sh tests/with_server.sh "$server" -- sh "$0" "$@"
fi
shift
E2B_URLS="$E2B_API_URL $E2B_URLS"

front=
log=$(mktemp)
stop() {
  [ -z "$front" ] || { kill "$front" && wait "$front"; } 2>/dev/null || :
  rm -f "$log"
}
trap stop EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# It takes no port 0: tries some until one is free.
if command -v nghttpx >/dev/null; then
  tries=0
  while [ -z "$front" ] && [ $tries -lt 20 ]; do
    tries=$((tries + 1))
    port=$((20000 + ($$ * 31 + tries * 977) % 12000))
    nghttpx --conf=/dev/null -f "127.0.0.1,$port;no-tls" -b "127.0.0.1,${E2B_API_URL##*:}" --workers=1 --accesslog-file=/dev/null \
      --errorlog-file="$log" --frontend-read-timeout=600s --backend-read-timeout=600s --backend-write-timeout=600s \
      --backend-connections-per-host=10000 --frontend-http2-max-concurrent-streams=200 >/dev/null 2>&1 &
    front=$!
    sleep 1
    kill -0 "$front" 2>/dev/null || front=
  done
  [ -z "$front" ] || E2B_URLS="$E2B_URLS h2:http://localhost:$port"
fi
export E2B_URLS
"$@"
