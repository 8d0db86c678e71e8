# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Running agents become hosts that are reached through Podman; what goes wrong is one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COLLECTIONS = Path(__file__).resolve().parents[4] / "playbooks/collections"


def listed(tmp_path: Path, script: str, name: str = "agents.yml") -> subprocess.CompletedProcess[str]:
    podman = tmp_path / "podman"
    podman.write_text(f"#!/bin/sh\n{script}\n")
    podman.chmod(0o755)
    config = tmp_path / name
    config.write_text(json.dumps({"plugin": "openshell.sandbox.agents", "executable": str(podman)}))
    env = {
        **os.environ,
        "ANSIBLE_HOME": str(tmp_path / "ansible"),
        "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1",
    }
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(config), "--list"]
    return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)


def test_agents_are_hosts(tmp_path: Path) -> None:
    rows = [
        {"Names": ["openshell-agent-demo"], "Labels": {"openshell.sandbox": "demo", "openshell.role": "agent"}},
        {"Names": ["somebodys"], "Labels": {"openshell.role": "agent"}},
    ]
    asked = tmp_path / "asked"
    done = listed(tmp_path, f"echo \"$*\" >{asked}\necho '{json.dumps(rows)}'")
    assert done.returncode == 0, done.stderr
    assert asked.read_text().split() == ["ps", "--filter", "label=openshell.role=agent", "--format", "json"]
    found = json.loads(done.stdout)
    assert found["openshell_agents"]["hosts"] == ["demo"]
    # What comes from outside is no template, and so it is printed.
    variables = {key: value["__ansible_unsafe"] for key, value in found["_meta"]["hostvars"]["demo"].items()}
    assert variables == {
        "ansible_connection": "openshell.sandbox.agent",
        "ansible_host": "openshell-agent-demo",
        "openshell_podman_executable": str(tmp_path / "podman"),
        "ansible_python_interpreter": "/usr/bin/python3",
    }


@pytest.mark.parametrize(
    ("script", "name", "words"),
    [
        pytest.param(
            "echo warning >&2; echo 'Error: no storage' >&2; exit 125",
            "agents.yml",
            "cannot be listed: Error: no storage",
            id="podman-fails",
        ),
        pytest.param("echo '[]'", "other.yml", "could not be verified", id="another-name"),
    ],
)
def test_what_goes_wrong_is_told(tmp_path: Path, script: str, name: str, words: str) -> None:
    done = listed(tmp_path, script, name)
    assert done.returncode != 0
    assert words in " ".join(done.stderr.split())


def test_a_play_runs_inside_and_touches_nothing_from_outside(tmp_path: Path) -> None:
    """Files go through podman exec too: a mount from outside would follow the agent's symbolic links on the host."""
    asked, rows = tmp_path / "asked", [{"Names": ["openshell-agent-demo"], "Labels": {"openshell.sandbox": "demo"}}]
    exec_ = f'echo "$1 $2 $3" >>{asked}; shift 3; exec "$@"'
    listed(tmp_path, f"case $1 in ps) echo '{json.dumps(rows)}';; *) {exec_};; esac")
    source, there, back = (tmp_path / name for name in ("source", "there", "back"))
    source.write_bytes(b"\0binary\n")
    play = {
        "hosts": "openshell_agents",
        "gather_facts": False,
        "vars": {"ansible_remote_tmp": str(tmp_path / "remote"), "ansible_python_interpreter": sys.executable},
        "tasks": [
            {"ansible.builtin.copy": {"src": str(source), "dest": str(there), "mode": "0600"}},
            {"ansible.builtin.fetch": {"src": str(there), "dest": str(back), "flat": True}},
        ],
    }
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    env = {**os.environ, "ANSIBLE_HOME": str(tmp_path / "ansible"), "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS)}
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(tmp_path / "agents.yml"), "play.yml"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert back.read_bytes() == b"\0binary\n"
    assert set(asked.read_text().splitlines()) == {"exec --interactive openshell-agent-demo"}
