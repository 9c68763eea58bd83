#!/bin/bash
# The end-to-end tests over HTTP/2, through other people's servers in front of the local one: nginx, nghttpx, haproxy and Node's
# http2 over TLS (chosen by ALPN), and nghttpx in the clear (prior knowledge). Once more over HTTP/1.1 through nginx.
#
#   bash tests/http2.sh BUILD [front]... [-- test or beginning of its name...]
#
# E2B_FRONT_RUN names another program to run (tests/bench_http2.c). Wants nginx, nghttpx, haproxy, node and openssl, and skips by name what is missing. Prints last "N passed, N failed, N skipped".
set -u
cd "$(dirname "$0")/.." || exit 2
build=${1:?usage: http2.sh BUILD}
shift
fronts=
while [ $# -gt 0 ] && [ "$1" != -- ]; do fronts="$fronts $1"; shift; done
[ $# -gt 0 ] && shift
fronts=${fronts:-nginx nginx-h1 nghttpx nghttpx-clear haproxy node}
. tests/tally.sh
dir=$(mktemp -d)
log=$dir/log
server= front=
stop() { # pid
  [ -z "$1" ] || { kill "$1" && wait "$1"; } 2>/dev/null
}
trap 'stop "$front"; stop "$server"; rm -rf "$dir"' EXIT

free_port() {
  node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close() })'
}

wait_for() { # port, pid
  local tries=0
  until (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do
    tries=$((tries + 1))
    if [ $tries -gt 200 ] || ! kill -0 "$2" 2>/dev/null; then return 1; fi
    sleep 0.05
  done
}

# One authority, one certificate for localhost.
openssl req -x509 -newkey rsa:2048 -nodes -keyout "$dir/ca.key" -out "$dir/ca.pem" -days 3 -subj "/CN=test authority" 2>/dev/null &&
  openssl req -newkey rsa:2048 -nodes -keyout "$dir/key.pem" -out "$dir/csr.pem" -subj "/CN=localhost" 2>/dev/null &&
  openssl x509 -req -in "$dir/csr.pem" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -CAcreateserial -days 2 -out "$dir/cert.pem" \
    -extfile <(echo "subjectAltName=DNS:localhost,DNS:*.localhost") 2>/dev/null || { echo "http2: openssl cannot make certificates"; exit 1; }
cat "$dir/cert.pem" "$dir/key.pem" >"$dir/both.pem"

"$build/local_server" --port-file "$dir/port" --api-key test-key >"$dir/server.log" 2>&1 &
server=$!
tries=0
until [ -s "$dir/port" ] || [ $tries -gt 200 ]; do tries=$((tries + 1)); sleep 0.05; done
back=$(cat "$dir/port") || exit 1

start_nginx() { # port
  cat >"$dir/nginx.conf" <<TEXT
daemon off; pid $dir/nginx.pid; error_log $dir/nginx.log; worker_processes 1; $([ "$(id -u)" = 0 ] && echo "user root;")
events { worker_connections 8000; }
http {
  access_log off; client_max_body_size 0; keepalive_requests 500;
  client_body_temp_path $dir/1; proxy_temp_path $dir/2; fastcgi_temp_path $dir/3; uwsgi_temp_path $dir/4; scgi_temp_path $dir/5;
  server {
    listen 127.0.0.1:$1 ssl http2;
    ssl_certificate $dir/cert.pem; ssl_certificate_key $dir/key.pem;
    location / {
      proxy_pass http://127.0.0.1:$back; proxy_http_version 1.1; proxy_set_header Host \$http_host; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 600s; proxy_send_timeout 600s;
    }
  }
}
TEXT
  exec nginx -c "$dir/nginx.conf" -p "$dir"
}

start_nghttpx() { # port, "" or ;no-tls
  exec nghttpx --conf=/dev/null -f "127.0.0.1,$1$2" -b "127.0.0.1,$back" --workers=1 --accesslog-file=/dev/null --errorlog-file="$dir/nghttpx.log" \
    --frontend-read-timeout=600s --backend-read-timeout=600s --backend-write-timeout=600s --backend-connections-per-host=10000 \
    --frontend-http2-max-concurrent-streams=2000 \
    ${2:-"$dir/key.pem" "$dir/cert.pem"} >"$dir/nghttpx.out" 2>&1
}

start_haproxy() { # port
  cat >"$dir/haproxy.cfg" <<TEXT
global
  maxconn 8000
defaults
  mode http
  timeout connect 10s
  timeout client 600s
  timeout server 600s
  option http-no-delay
frontend f
  bind 127.0.0.1:$1 ssl crt $dir/both.pem alpn h2,http/1.1
  default_backend b
backend b
  server s 127.0.0.1:$back
TEXT
  exec haproxy -db -f "$dir/haproxy.cfg" >"$dir/haproxy.log" 2>&1
}

run() { # front, program, url scheme, http version, tests...
  local name=$1 program=$2 scheme=$3 version=$4 port status
  shift 4
  [[ " $fronts " == *" $name "* ]] || return
  if ! command -v "$program" >/dev/null; then
    skip "$name" "no $program"
    return
  fi
  port=$(free_port)
  case $name in
    nginx*) start_nginx "$port" & ;;
    nghttpx) start_nghttpx "$port" "" & ;;
    nghttpx-clear) start_nghttpx "$port" ";no-tls" & ;;
    haproxy) start_haproxy "$port" & ;;
    node) node tests/http2_front.mjs "$port" "$back" "$dir/key.pem" "$dir/cert.pem" >"$dir/node.log" 2>&1 & ;;
  esac
  front=$!
  if ! wait_for "$port" "$front"; then
    tail -n 5 "$dir"/*.log "$dir/nghttpx.out" >"$log" 2>/dev/null
    fail "$name did not start"
    return
  fi
  E2B_FRONT_URL=$scheme://localhost:$port E2B_FRONT_CA=$([ "$scheme" = https ] && echo "$dir/ca.pem") E2B_FRONT_HTTP=$version \
    "${E2B_FRONT_RUN:-$build/e2b_test}" "$@" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  stop "$front"
  front=
  echo "$name: $(tail -n 1 "$log")"
  tally "$name" "$status"
}

# Version 2 where HTTP/2 must come of it.
run nginx nginx https 2 "$@"
run nginx-h1 nginx https 1 "$@"
run nghttpx nghttpx https 2 "$@"
run nghttpx-clear nghttpx http 2 "$@"
run haproxy haproxy https 2 "$@"
run node node https 2 "$@"
result
