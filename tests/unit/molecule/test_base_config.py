# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Molecule's base configuration: a run that matched no host fails; otherwise nothing would have been tested."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
INVENTORY = "all: {hosts: {molecule_local: {ansible_connection: local}}}\n"


def test_a_run_that_matched_no_host_fails(tmp_path: Path) -> None:
    scenario = tmp_path / "molecule/default"
    scenario.mkdir(parents=True)
    (tmp_path / "molecule/inventory.yml").write_text(INVENTORY)
    (scenario / "molecule.yml").write_text("---\n")
    (scenario / "converge.yml").write_text("- {hosts: molecule_lcoal, gather_facts: false, tasks: [meta: noop]}\n")
    binaries = str(Path(sys.executable).parent)
    env = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "ANSIBLE_HOME": str(tmp_path / "ansible")}
    command = ["molecule", "--base-config", str(ROOT / ".config/molecule/config.yml"), "converge"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "host pattern" in done.stdout + done.stderr  # and not for another reason
