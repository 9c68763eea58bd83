# What the test scripts count. Sourced by bash scripts, which set `log` to a file of their own for what the last check or
# program printed, and may set `failures` to a file that collects what failed, to be said once more at the end of a long run.
passed=0 failed=0 skipped=0 failures=

pass() { # name
  passed=$((passed + 1))
  echo "ok - $1"
}

fail() { # name; shows the end of the log
  failed=$((failed + 1))
  echo "not ok - $1"
  tail -n 40 "$log" | sed 's/^/    /'
  keep_failure "$1"
}

skip() { # name, why
  skipped=$((skipped + 1))
  echo "skipped: $1 ($2)"
}

keep_failure() { # name
  [ -z "$failures" ] || { echo "---- $1"; grep -v '^ok - ' "$log" | tail -n 40 | cut -c 1-500; } >>"$failures" || true
}

# One thing that works or does not.
check() { # name, command...
  local name=$1
  shift
  if "$@" >"$log" 2>&1; then pass "$name"; else fail "$name"; fi
}

# Adds what the log of a program ends with, "N passed, N failed, N skipped"; behind it make may say that it failed.
tally() { # name, exit status
  local last before=$((failed + skipped))
  last=$(grep -v '^make: ' "$log" | tail -n 1) || true
  if [[ $last =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed,\ ([0-9]+)\ skipped$ ]]; then
    passed=$((passed + BASH_REMATCH[1]))
    failed=$((failed + BASH_REMATCH[2]))
    skipped=$((skipped + BASH_REMATCH[3]))
    if [ "$2" != 0 ] && [ "${BASH_REMATCH[2]}" = 0 ]; then failed=$((failed + 1)); fi
  else
    echo "not ok - no result: $1"
    failed=$((failed + 1))
  fi
  [ $((failed + skipped)) = $before ] || keep_failure "$1"
}

result() {
  echo "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" = 0 ]
}
