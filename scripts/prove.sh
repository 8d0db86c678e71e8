#!/usr/bin/env bash
# Prove a sandbox: an allowed request answers, a denied one is refused, a direct connection fails.
# Usage: prove.sh NAME
set -uo pipefail
name=$1
inside() { podman exec "openshell-agent-$name" "$@"; }
failed=0
check() { # check TEXT EXPECTED GOT
    if [[ $3 == "$2" ]]; then printf '  ok    %s\n' "$1"; else printf '  FAIL  %s (expected %s, got %s)\n' "$1" "$2" "$3"; failed=1; fi
}

echo "Proof for sandbox $name:"
allowed=$(inside sh -c 'pip config list >/dev/null 2>&1; pip download -q --no-deps --no-binary :none: -d /tmp/.proof pip >/dev/null 2>&1 && echo answered; rm -rf /tmp/.proof')
check "an allowed request (this host's package index) answers" answered "$allowed"
denied=$(inside curl -s -o /dev/null -w '%{http_connect}' --max-time 10 https://denied.example/)
check "a denied request is refused by the sidecar" 403 "$denied"
direct=$(inside curl -s -o /dev/null --noproxy '*' --max-time 3 http://192.0.2.1/ && echo connected || echo failed)
check "a direct connection fails" failed "$direct"
exit $failed
