#!/usr/bin/env bash
# Write the lock files anew from the *.in files: every package of every platform with its hashes, and no index address.
set -euo pipefail
cd "$(dirname "$0")/.."
python3 -m venv .work/lock
.work/lock/bin/pip install --quiet --disable-pip-version-check pip-tools
for name in requirements requirements-dev proxy_image/requirements tests/bench/requirements; do
    .work/lock/bin/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header \
        --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --output-file "$name.lock" "$@" "$name.in"
done
