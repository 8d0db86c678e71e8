#!/usr/bin/env bash
# Remove every sandbox, network, volume, secret and image of this project from the machine.
set -uo pipefail
command -v podman >/dev/null || exit 0
label=label=openshell.managed=true
each() { # each REMOVE... : names on standard input
    local one
    while read -r one; do [[ -n $one ]] && "$@" "$one" >/dev/null; done
}
podman ps -aq --filter "$label" | each podman rm --force --ignore --time 2
podman network ls -q --filter "$label" | each podman network rm --force
podman volume ls -q --filter "$label" | each podman volume rm --force
podman secret ls --format '{{.Name}}' | grep '^openshell-' | each podman secret rm
podman images --format '{{.Repository}}:{{.Tag}}' | grep '^localhost/openshell-' | each podman rmi --force
podman image prune --force --filter label=openshell.managed=true >/dev/null
