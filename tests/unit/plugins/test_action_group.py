# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action group holds every module that speaks to Podman, and each of them says so in its documentation."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]


def having(fragment: str) -> list[str]:
    """Modules that extend a documentation fragment of ours."""
    line = f"  - openshell.sandbox.{fragment}\n"
    return sorted(path.stem for path in ROOT.glob("plugins/modules/*.py") if line in path.read_text())


def test_the_group_is_complete() -> None:
    group = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["action_groups"]["sandbox"]
    assert group == having("podman") == having("_attributes.actiongroup")
