#!/usr/bin/env bash
# Build the collection's tarball. Usage: build.sh [DIRECTORY]; prints the tarball's path.
set -euo pipefail
cd "$(dirname "$0")/.."
directory=${1:-.work/build}
version=$(sed -n 's/^version: //p' galaxy.yml)
.venv/bin/ansible-galaxy collection build --force --output-path "$directory" >/dev/null
echo "$directory/openshell-sandbox-$version.tar.gz"
