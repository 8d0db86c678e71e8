#!/usr/bin/env bash
# ansible-test sanity on the collection as it is built and installed. Usage: sanity.sh [ARGUMENT OF ansible-test]...
#
# ansible-test wants to stand in a directory ansible_collections/NAMESPACE/NAME, and fetches a get-pip.py from a server
# of its own before anything else: the one that it finds in its cache does the same with the pip that Python has.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
export HOME_BEFORE=$HOME HOME=$root/.work/home
mkdir -p "$HOME/.ansible/test/cache"
for settings in .config .pip; do # pip's own configuration of this user goes on being used
    if [[ -e $HOME_BEFORE/$settings ]]; then ln -sfnT "$HOME_BEFORE/$settings" "$HOME/$settings"; fi
done
# Its environments stay in there for the next run on this checkout; what pip downloads, where pip always keeps it.
mkdir -p "$HOME/.cache" "$HOME_BEFORE/.cache/pip"
[[ -e $HOME/.cache/pip ]] || ln -s "$HOME_BEFORE/.cache/pip" "$HOME/.cache/pip"
pip=$(sed -n "s/^ *pip='\(.*\)',$/\1/p" .venv/lib/python3*/site-packages/ansible_test/_internal/python_requirements.py)
cp scripts/get_pip.py "$HOME/.ansible/test/cache/get_pip_${pip//./_}.py"

tarball=$(scripts/build.sh)
rm -rf .work/ansible_collections/openshell
.venv/bin/ansible-galaxy collection install --offline --force --no-deps -p .work "$tarball" >/dev/null 2>&1
cd .work/ansible_collections/openshell/sandbox
git init --quiet # or ansible-test asks the repository around it, which ignores this directory
python=$("$root/.venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# The proxy's code and the tests are no Ansible content: ruff and mypy --strict judge them (make lint types).
exec "$root/.venv/bin/ansible-test" sanity --local --python "$python" --color no \
    --exclude proxy_image/ --exclude tests/ "$@"
