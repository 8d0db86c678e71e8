#!/usr/bin/env bash
# Run fleet.yml and end sshd of HOST while a module of the run is at work there. Usage: interrupted_run.sh INVENTORY HOST
# Prints the run's last words; its exit code is the run's, or 124 if that never came to HOST.
set -uo pipefail
cd "$(dirname "$0")/../.."
inventory=$1 host=$2 log=$(mktemp)
trap 'rm -f "$log"' EXIT
ANSIBLE_FORCE_COLOR=0 ANSIBLE_NOCOLOR=1 ansible-playbook --forks 10 --inventory "$inventory" playbooks/fleet.yml >"$log" 2>&1 &

at_work() { # a module runs there; output comes only when all steps of a sandbox are done
    grep -q '^PLAY \[Bring every' "$log" && podman exec "openshell-testhost-$host" pgrep -x python3 >/dev/null
}

for ((tries = 0; tries < 1200; tries++)); do
    at_work && break
    sleep 0.1
done
podman exec "openshell-testhost-$host" pkill sshd
wait $!
rc=$?
sed -n '/^Fleet: /,/^ok: /p' "$log" | grep -v '^ok: '
((tries < 1200)) || exit 124
exit $rc
