# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The example of docs/fleet.md is an inventory whose every sandbox gets a policy that the engine takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.openshell.sandbox.plugins.filter.policy_text import policy_text
from openshell_proxy.policy import load_policy

ROOT = Path(__file__).resolve().parents[3]
INVENTORY = ROOT / "docs/examples/fleet/inventory.yml"
RENDER = """
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.copy:
        dest: "{{ target }}"
        content: >-
          { {% for one in groups.openshell_sandboxes %} {{ one | to_json }}: {{ {
            'host': hostvars[one].openshell_host,
            'policy': hostvars[one] | openshell.sandbox.composed('openshell_policy', ''),
            'env': hostvars[one] | openshell.sandbox.composed('openshell_env', {}),
            'secrets': hostvars[one] | openshell.sandbox.composed('openshell_secrets', []),
          } | to_json }} {{ '' if loop.last else ',' }} {% endfor %} }
"""


def run(tool: str, *args: str, directory: Path) -> str:
    env = {
        **os.environ,
        "ANSIBLE_HOME": str(directory),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "playbooks/collections"),
    }
    command = [str(Path(sys.executable).with_name(tool)), "-i", str(INVENTORY), *args]
    done = subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("example")
    (directory / "render.yml").write_text(RENDER)
    run("ansible-playbook", "render.yml", "-e", f"target={directory}/out.json", directory=directory)
    found: dict[str, Any] = json.loads((directory / "out.json").read_text())
    return found


def test_three_hosts_and_twelve_sandboxes(tmp_path: Path, rendered: dict[str, Any]) -> None:
    listed = json.loads(run("ansible-inventory", "--list", directory=tmp_path))
    assert listed["openshell_hosts"]["hosts"] == ["build1", "build2", "build3"]
    assert len(rendered) == 12
    assert {one["host"] for one in rendered.values()} == {"build1", "build2", "build3"}


def test_the_playbooks_take_it(tmp_path: Path) -> None:
    for playbook in ("fleet", "prune"):
        run("ansible-playbook", "--syntax-check", str(ROOT / f"playbooks/{playbook}.yml"), directory=tmp_path)


def test_every_policy_is_one(rendered: dict[str, Any]) -> None:
    policies = {name: load_policy(policy_text(one["policy"])) for name, one in rendered.items()}
    assert all(policies.values())


def test_what_adds_up(rendered: dict[str, Any]) -> None:
    assert set(rendered["web-review"]["policy"]["network_policies"]) == {"github", "npm"}
    assert len(rendered["web-review"]["policy"]["network_policies"]["github"]["endpoints"]) == 2
    assert rendered["web-anna"]["env"] == {"LANG": "C.UTF-8", "NODE_ENV": "development"}
    assert set(rendered["ci-1"]["policy"]["network_policies"]) == {"github", "npm", "pypi"}
    assert [one["from_env"] for one in rendered["ci-1"]["secrets"]] == ["CI_GITHUB_TOKEN"]
    assert [one["from_env"] for one in rendered["api-emil"]["secrets"]] == ["GITHUB_TOKEN"]
