#!/usr/bin/env bash
# A web server of which sandboxes get something, in a test host's image. Usage: origin.sh ADDRESS:PORT SUITE
set -euo pipefail
cd "$(dirname "$0")"
name=openshell-testhost-origin image=$(./image.sh "$2") address=${1%:*} port=${1#*:}
limits=(--ulimit nofile=16384:16384 --ulimit nproc=8192:8192)
[[ $(podman info --format '{{.Host.CgroupsVersion}}') == v1 ]] && limits+=(--runtime runc)
podman run --detach --name $name --label openshell.testhost=true --init "${limits[@]}" \
    --network "openshell-testhosts:ip=$address" --pull never "$image" python3 -m http.server -d /etc/apt "$port" >/dev/null
