#!/usr/bin/env bash
# Run two commands at once. Usage: beside.sh COMMAND COMMAND
#
# What the first one says is told when the second has ended, so that what failed is told last; if the second fails, the
# first is ended and not asked.
set -uo pipefail
cd "$(dirname "$0")/.."
mkdir -p .work
log=$(mktemp .work/beside.XXXXXX)
set -m # each with a process group of its own
bash -c "$1" >"$log" 2>&1 </dev/null &
first=$!
end() {
    kill -- "-$first" 2>/dev/null
    wait "$first" 2>/dev/null
    rm -f "$log"
}
trap end EXIT
trap 'exit 130' INT TERM
bash -c "$2" || exit
wait "$first"
status=$?
cat "$log"
exit "$status"
