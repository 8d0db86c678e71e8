# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Text that is not the playbook's own is never a template, whatever version of ansible-core runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

COLLECTIONS = Path(__file__).parents[3] / "playbooks" / "collections"


@pytest.mark.parametrize("entries", [{}, {"more": {"endpoints": []}}])
def test_braces_in_a_policy_file_stay_what_they_are(tmp_path: Path, entries: dict[str, Any]) -> None:
    """ansible-core 2.16 to 2.18 would run the command when the fact is used; 2.19 never does."""
    proof, result = tmp_path / "proof", tmp_path / "result"
    policy = tmp_path / "policy.yaml"
    braces = "{{ lookup('ansible.builtin.pipe', 'touch " + str(proof) + "') }}"
    policy.write_text(f'version: 1\nnetwork_policies: {{x: {{name: "{braces}", endpoints: []}}}}\n')
    fact = "{{ file | openshell.sandbox.policy_text(entries) }}"
    tasks = [
        {"ansible.builtin.set_fact": {"text": fact}},
        {"ansible.builtin.copy": {"content": "{{ text }}", "dest": str(result)}},
    ]
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    play["vars"] = {"file": str(policy), "entries": entries, "ansible_python_interpreter": sys.executable}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), tmp_path / "play.yml"],
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert yaml.safe_load(result.read_text())["network_policies"]["x"]["name"] == braces
    assert not proof.exists()
