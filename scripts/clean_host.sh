#!/usr/bin/env bash
# Remove every sandbox, network, volume, secret and image of this project from the machine.
set -uo pipefail
bench=/var/tmp/openshell-bench # what make bench left, as root
if [[ -e $bench ]]; then if [[ $(id -u) == 0 ]]; then rm -rf "$bench"; else sudo rm -rf "$bench"; fi; fi
command -v podman >/dev/null || exit 0
each() { # each REMOVE... : names on standard input
    local one
    while read -r one; do [[ -n $one ]] && "$@" "$one" >/dev/null; done
}
for label in label=openshell.managed=true label=openshell.testhost=true; do # hosts of Molecule scenarios too
    podman ps -aq --filter "$label" | each podman rm --force --ignore --time 2
    podman network ls -q --filter "$label" | each podman network rm --force
    podman volume ls -q --filter "$label" | each podman volume rm --force
done
podman secret ls --format '{{.Name}}' | grep '^openshell-' | each podman secret rm
podman images --format '{{.Repository}}:{{.Tag}}' | grep '^localhost/openshell-' | each podman rmi --force
# What brings sandboxes back after a reboot, and the directory beside the store that it reads.
store=$(podman info --format '{{.Store.GraphRoot}}')
rm -rf "${store%/*}/openshell"
units=/etc/systemd/system systemctl=(systemctl)
(( EUID == 0 )) || units=$HOME/.config/systemd/user systemctl=(systemctl --user)
if [[ -d /run/systemd/system && -e $units/openshell-sandboxes.service ]]; then
    "${systemctl[@]}" disable --now openshell-reaper.timer openshell-sandboxes.service 2>/dev/null
    rm -f "$units"/openshell-{sandboxes,reaper}.{service,timer}
    "${systemctl[@]}" daemon-reload
fi
podman image prune --force --filter label=openshell.managed=true >/dev/null
