#!/usr/bin/env bash
# What the collection's own linters say: ansible-lint, changelog, documentation. Nothing is fetched or put into HOME.
set -euo pipefail
cd "$(dirname "$0")/.."
export ANSIBLE_HOME=$PWD/.work/ansible ANSIBLE_COLLECTIONS_PATH=$PWD/playbooks/collections PATH=$PWD/.venv/bin:$PATH
ansible-lint --offline -q
antsibull-changelog lint
antsibull-docs lint-collection-docs --plugin-docs .
