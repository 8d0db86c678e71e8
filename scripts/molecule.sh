#!/usr/bin/env bash
# One Molecule scenario, whole sequence. Usage: molecule.sh [SCENARIO]
#
# Whatever happens to it, an interrupt included, its cleanup runs and nothing is left behind.
set -uo pipefail
cd "$(dirname "$0")/.."
scenario=${1:-default}
export ANSIBLE_HOME=$PWD/.work/ansible PATH=$PWD/.venv/bin:$PATH
# Named aloud: Molecule finds it by itself in a git checkout only.
run() { molecule --base-config .config/molecule/config.yml "$@"; }
trap '[[ $? == 0 ]] || run cleanup --scenario-name "$scenario"' EXIT
run test --scenario-name "$scenario"
