# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report is printed as it is, by the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from host import ROOT

PLAYBOOK = """
- hosts: localhost
  gather_facts: false
  tasks:
    - openshell.sandbox.report:
        text: "NAME  STATE\\ndemo  {{ 'running' }}"
      check_mode: {{ item }}
    - openshell.sandbox.report:
        text: x
        colour: red
"""


def run(directory: Path, playbook: str) -> str:
    (directory / "play.yml").write_text(playbook)
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local", str(directory / "play.yml")],
        capture_output=True,
        text=True,
        cwd=directory,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": f"{ROOT}/playbooks/collections", "ANSIBLE_NOCOLOR": "1"},
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def test_a_text_is_printed_as_it_is_and_nothing_else_is_taken(tmp_path: Path) -> None:
    told = run(tmp_path, PLAYBOOK.replace("{{ item }}", "true"))
    assert "\nNAME  STATE\ndemo  running\n" in told
    assert "changed=0" in told
    assert "Invalid options for openshell.sandbox.report: colour" in told
