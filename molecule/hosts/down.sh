#!/usr/bin/env bash
# Remove all test hosts, their disks and their network; their images stay for the next run.
set -euo pipefail
podman ps --all --quiet --filter name='^openshell-testhost-' | xargs -r podman rm --force --time 0 >/dev/null
podman volume ls --quiet --filter name='^openshell-testhost-' | xargs -r podman volume rm --force >/dev/null
if podman network exists openshell-testhosts; then podman network rm --force openshell-testhosts >/dev/null; fi
