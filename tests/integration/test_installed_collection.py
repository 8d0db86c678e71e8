# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tarball that ``make build`` makes, installed somewhere else, makes and deletes a sandbox by its own playbooks."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

from conftest import ROOT, inside, ours

NAME = "it-installed"
KINDS = ("container", "network", "volume", "secret")
NEVER_SHIPPED = {".git", ".venv", ".work", ".ansible", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"}


def run(command: list[str], directory: Path, collections: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    env.update(ANSIBLE_COLLECTIONS_PATH=str(collections), ANSIBLE_HOME=str(directory / "home"), ANSIBLE_NOCOLOR="1")
    command = [str(ROOT / ".venv/bin" / command[0]), *command[1:]]
    return subprocess.run(command, cwd=directory, env=env, text=True, capture_output=True, check=False, timeout=600)


def test_the_installed_collection_works_from_another_directory(tmp_path: Path) -> None:
    build = [str(ROOT / "scripts/build.sh"), str(tmp_path)]
    tarball = subprocess.run(build, text=True, capture_output=True, check=True).stdout.strip()
    with tarfile.open(tarball) as archive:
        shipped = archive.getnames()
    assert {"proxy_image/Containerfile", "agent_image/Containerfile", "meta/runtime.yml"} <= set(shipped)
    assert "roles/secrets/files/providers/github.yml" in shipped
    assert [one for one in shipped if NEVER_SHIPPED & set(one.split("/")) or one.startswith("playbooks/coll")] == []

    collections, elsewhere = tmp_path / "collections", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = ["ansible-galaxy", "collection", "install", "--offline", "-p", str(collections), tarball]
    installed = run(install, elsewhere, collections)
    assert installed.returncode == 0, installed.stderr
    variables = ["-e", f"sandbox_name={NAME}"]
    try:
        made = run(["ansible-playbook", "openshell.sandbox.create_sandbox", *variables], elsewhere, collections)
        assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-1000:]
        assert inside(NAME, "printenv", "OPENSHELL_SANDBOX").stdout == f"{NAME}\n"
    finally:
        deleted = run(["ansible-playbook", "openshell.sandbox.delete_sandbox", *variables], elsewhere, collections)
    assert deleted.returncode == 0, deleted.stdout[-3000:]
    assert {kind: ours(kind, NAME) for kind in KINDS} == {kind: [] for kind in KINDS}
