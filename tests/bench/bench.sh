#!/usr/bin/env bash
# make bench: install the peers, have the image, measure, draw. QUICK=1 is a smoke test: short, and asserts no timing.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=.work/bench-venv
lock=tests/bench/requirements.lock
[[ $(id -u) == 0 ]] || exec sudo --preserve-env=QUICK,ROWS,ROUNDS "$0" "$@"

exec 9>/run/openshell-bench.lock
flock -n 9 || { echo "another make bench is running on this machine" >&2; exit 1; }

install_packages() {
    local missing=() package
    for package in squid-openssl tinyproxy nginx-light openssl iproute2 util-linux; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    [[ ${#missing[@]} == 0 ]] && return
    echo "==> installing ${missing[*]}" >&2
    apt-get update -qq
    # No service is to start with its package: policy-rc.d is how Debian is told so (invoke-rc.d(8)).
    local guard=/usr/sbin/policy-rc.d made=
    [[ -e $guard ]] || { printf '#!/bin/sh\nexit 101\n' >"$guard" && chmod 755 "$guard" && made=1; }
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
    if [[ $made ]]; then rm "$guard"; fi
}

make_environment() {
    local stamp
    stamp=$(sha256sum "$lock" | cut -d' ' -f1)
    [[ $(cat "$venv/.lock" 2>/dev/null) == "$stamp" ]] && return
    echo "==> making $venv" >&2
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$lock"
    echo "$stamp" >"$venv/.lock"
}

install_packages
make_environment
mkdir -p .work/bench
.venv/bin/python tests/bench/sidecar_vars.py >.work/bench/sidecar.json
.venv/bin/ansible-playbook tests/bench/image.yml -e "@.work/bench/sidecar.json" \
    -e image_file="$PWD/.work/bench/image.json" >.work/bench/image.log || { cat .work/bench/image.log >&2; exit 1; }
options=(.work/bench/image.json)
[[ ${QUICK:-} ]] && options+=(--quick)
[[ ${ROWS:-} ]] && options+=(--rows "$ROWS")
[[ ${ROUNDS:-} ]] && options+=(--rounds "$ROUNDS")
.venv/bin/python tests/bench/run.py "${options[@]}"
# A smoke test is no news for the documentation; of a part of the rows only growth is, see draw.py.
if [[ -z ${QUICK:-} ]]; then "$venv/bin/python" tests/bench/draw.py; fi
