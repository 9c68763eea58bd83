#!/bin/sh
# Starts a local server on a free port, runs a command against it and stops it. Exit code: the command's.
#
#   sh tests/with_server.sh build/local_server [its options] -- command [arguments]
#
# The command finds the server by E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY; with --tls the certificate to trust is in the
# file NODE_EXTRA_CA_CERTS.
set -eu

server=${1:?usage: with_server.sh SERVER [options] -- command}
shift
tls=
options=
while [ "$1" != -- ]; do
  [ "$1" = --tls ] && tls=yes
  options="$options $1"
  shift
done
shift

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

# shellcheck disable=SC2086
"$server" --port-file "$dir/port" ${tls:+--ca-out "$dir/ca.pem"} $options >"$dir/log" 2>&1 &
pid=$!
tries=0
until [ -s "$dir/port" ]; do
  tries=$((tries + 1))
  if [ $tries -gt 200 ] || ! kill -0 "$pid" 2>/dev/null; then
    echo "with_server: the server did not start:" >&2
    cat "$dir/log" >&2
    exit 1
  fi
  sleep 0.05
done

unset E2B_DOMAIN E2B_DEBUG X_API_KEY X_ACCESS_TOKEN SCHEME PROTOCOL
url=http${tls:+s}://localhost:$(cat "$dir/port")
[ -z "$tls" ] || export NODE_EXTRA_CA_CERTS="$dir/ca.pem"
export E2B_API_URL="$url" E2B_SANDBOX_URL="$url" E2B_API_KEY=e2b_0123456789abcdef
"$@"
