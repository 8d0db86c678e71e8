#!/usr/bin/env bash
# Install what a fresh machine lacks: Podman and its parts, and a virtual environment from a lock file.
# Usage: bootstrap.sh [dev]     dev adds what the tests need
set -euo pipefail
cd "$(dirname "$0")/.."
lock=requirements.lock
[[ ${1:-} == dev ]] && lock=requirements-dev.lock
as_root() { if [[ $(id -u) == 0 ]]; then "$@"; else sudo "$@"; fi; }
say() { printf '==> %s\n' "$*" >&2; }

find_python() { # the first that Ansible runs with
    local one
    for one in python3 python3.13 python3.12 python3.11; do
        "$one" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$one" && return
    done
    return 0
}

install_packages() {
    if command -v apt-get >/dev/null; then
        local missing=() more=() package
        [[ $lock == requirements-dev.lock ]] && more=(systemd) # systemd-analyze; it need not be the init
        for package in podman netavark aardvark-dns uidmap slirp4netns fuse-overlayfs catatonit crun runc iptables nftables \
            mmdebstrap python3 python3-venv git openssh-client "${more[@]}"; do
            [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
        done
        [[ ${#missing[@]} == 0 ]] && return
        say "installing ${missing[*]}"
        as_root apt-get update -qq
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
    elif command -v dnf >/dev/null; then
        # What a user without root needs comes with podman there: pasta or slirp4netns, as its version wants.
        local wanted=(podman netavark nftables crun catatonit python3 git-core openssh-clients)
        [[ $(find_python) ]] || wanted+=(python3.12) # Enterprise Linux 9 has Python 3.9
        rpm -q "${wanted[@]}" >/dev/null 2>&1 && return
        say "installing ${wanted[*]}"
        as_root dnf install -q -y "${wanted[@]}"
    else
        say "this machine has neither apt-get nor dnf; install Podman 4.3 or newer, Python 3.11 or newer and git yourself"
        exit 1
    fi
}

make_environment() {
    local stamp python
    stamp=$(sha256sum "$lock" | cut -d' ' -f1)
    [[ $(cat .venv/.lock 2>/dev/null) == "$stamp" ]] && return
    # The larger set holds the smaller one.
    [[ $lock == requirements.lock && -e .venv/.dev && -x .venv/bin/ansible-playbook ]] && return
    python=$(find_python)
    [[ $python ]] || { say "this machine has no Python 3.11 or newer; install one"; exit 1; }
    say "making .venv from $lock"
    rm -rf .venv
    "$python" -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
    echo "$stamp" >.venv/.lock
    if [[ $lock == requirements-dev.lock ]]; then touch .venv/.dev; fi
}

# The collection that ours depends on, without Galaxy: out of the ansible wheel, whose other 99 % are not kept.
make_collections() {
    local site stamp wheel
    site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    stamp=$(sha256sum collections.lock | cut -d' ' -f1)
    [[ -d $site/ansible_collections/containers/podman && $(cat .venv/.collections 2>/dev/null) == "$stamp" ]] && return
    say "fetching the collection containers.podman"
    wheel=$(mktemp -d)
    # shellcheck disable=SC2064  # the directory as it is named now
    trap "rm -rf '$wheel'" EXIT
    .venv/bin/pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
        --dest "$wheel" -r collections.lock
    rm -rf "$site/ansible_collections/containers/podman"
    .venv/bin/python - "$wheel"/ansible-*.whl "$site" <<'PYTHON'
import sys
import zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    prefix = "ansible_collections/containers/podman/"
    wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.startswith(prefix)])
PYTHON
    echo "$stamp" >.venv/.collections
}

install_packages
make_environment
make_collections
