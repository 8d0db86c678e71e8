# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""fleet.yml: what a run is about, told before any host is reached. No Podman is needed: it is a file that always fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
INVENTORY: dict[str, Any] = {
    "all": {
        "vars": {"openshell_podman_executable": "/bin/false", **LOCAL},
        "children": {
            "builders": {"hosts": {"h1": {}, "h2": {}, "idle": {}}},
            "openshell_sandboxes": {
                "hosts": {
                    "a": {"openshell_host": "h1"},
                    "b": {"openshell_host": "h1"},
                    "c": {"openshell_host": "h2"},
                    "lost": {"openshell_host": "nowhere"},
                }
            },
        },
    }
}


BY_HOST = ROOT / "docs/examples/fleet/by_host.yml"


def fleet(tmp_path: Path, *args: str, inventory: Any = INVENTORY) -> subprocess.CompletedProcess[str]:
    (tmp_path / "inventory.json").write_text(json.dumps(inventory))
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        "-i",
        str(tmp_path / "inventory.json"),
        "-i",
        str(BY_HOST),
    ]
    env = {**os.environ, "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(
        [*command, str(ROOT / "playbooks/fleet.yml"), *args],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def last_words(done: subprocess.CompletedProcess[str]) -> list[str]:
    lines = done.stdout.splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith("Fleet: ")), None)
    assert start is not None, done.stdout + done.stderr
    return [lines[start], *[line.split(":")[0].strip() for line in lines[start + 1 :] if line.startswith("  ")]]


@pytest.mark.parametrize(
    ("args", "inventory", "words"),
    [
        pytest.param([], {"all": {"hosts": {"h1": LOCAL}}}, "no host in the group openshell_sandboxes", id="no-group"),
        pytest.param(["--limit", "idle"], INVENTORY, "nor host of one is within --limit idle", id="limit-without"),
        pytest.param(
            ["--limit", "builders"], INVENTORY, "name them too: --limit builders,a,b,c", id="limit-by-group-of-hosts"
        ),
    ],
)
def test_a_run_about_nothing_fails_with_a_sentence(tmp_path: Path, args: list[str], inventory: Any, words: str) -> None:
    done = fleet(tmp_path, *args, inventory=inventory)
    assert done.returncode != 0
    assert words in " ".join((done.stdout + done.stderr).split())
    assert "Make, change or remove it" not in done.stdout


@pytest.mark.parametrize(
    ("limit", "head", "sandboxes"),
    [
        pytest.param([], "Fleet: 4 sandboxes on 3 hosts: 0 as declared, 4 not", ["a on h1", "b on h1", "c on h2", "lost on nowhere"], id="all"),
        pytest.param(["--limit", "h1,a,b"], "Fleet: 2 sandboxes on 1 host: 0 as declared, 2 not", ["a on h1", "b on h1"], id="host"),
        pytest.param(["--limit", "on_h1"], "Fleet: 2 sandboxes on 1 host: 0 as declared, 2 not", ["a on h1", "b on h1"], id="host-by-its-group"),
        pytest.param(["--limit", "all:!b:!lost"], "Fleet: 2 sandboxes on 2 hosts: 0 as declared, 2 not", ["a on h1", "c on h2"], id="one-left-out"),
        pytest.param(["--limit", "c"], "Fleet: 1 sandbox on 1 host: 0 as declared, 1 not", ["c on h2"], id="sandbox"),
    ],
)  # fmt: skip
def test_every_failure_is_told_and_stops_nobody_else(
    tmp_path: Path, limit: list[str], head: str, sandboxes: list[str]
) -> None:
    done = fleet(tmp_path, "--check", *limit)
    assert done.returncode == 2
    words = last_words(done)
    assert words[0] == head
    assert [one for one in words[1:] if " on " in one] == sandboxes
