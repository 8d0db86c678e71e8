#!/usr/bin/env bash
# One Molecule scenario, whole sequence. Usage: molecule.sh [SCENARIO]
#
# Whatever happens to it, an interrupt included, its cleanup runs and nothing is left behind. What failed is told last.
set -uo pipefail
cd "$(dirname "$0")/.."
scenario=${1:-default}
export ANSIBLE_HOME=$PWD/.work/ansible PATH=$PWD/.venv/bin:$PATH
# Named aloud: Molecule finds it by itself in a git checkout only.
run() { molecule --base-config .config/molecule/config.yml "$@"; }
log=.work/molecule-$scenario.log
end() {
    [[ $? == 0 ]] && return
    run cleanup --scenario-name "$scenario"
    echo "the scenario $scenario failed; the whole of it is in $log:"
    grep --after-context 8 -E 'fatal: |UNREACHABLE!|ERROR' "$log" | head -20
}
trap end EXIT
mkdir -p .work
run test --scenario-name "$scenario" 2>&1 | tee "$log"
