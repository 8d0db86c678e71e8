# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A role's argument specification, its defaults and its README say the same; a variable means the same in every role."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
ROLES = sorted(path.parent.parent for path in ROOT.glob("roles/*/meta/argument_specs.yml"))
ROW = re.compile(r"^\| `(?P<variable>[a-z_]+)` \| (?P<default>.*?) \| (?P<meaning>.*) \|$", re.MULTILINE)
# Its default needs a fact of the host, so the specification, which is read before, has none.
COMPUTED = {"openshell_packages"}


def options(role: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((role / "meta/argument_specs.yml").read_text())
    return dict(found["argument_specs"]["main"]["options"])


def defaults(role: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((role / "defaults/main.yml").read_text()))


SHARED = defaults(ROOT / "roles/common")


def test_every_role_is_here() -> None:
    """But for the one that has no task, only what the others share."""
    names = {path.name for path in (ROOT / "roles").iterdir() if path.is_dir()}
    assert {path.name for path in ROLES} == names - {"common"}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_what_is_shared_has_one_default(role: Path) -> None:
    assert yaml.safe_load((role / "meta/main.yml").read_text())["dependencies"] == [
        {"role": "openshell.sandbox.common"}
    ]
    assert not set(SHARED) & set(defaults(role))


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_specification_and_defaults(role: Path) -> None:
    told = {name: option["default"] for name, option in options(role).items() if "default" in option}
    shared = {name: value for name, value in SHARED.items() if name in options(role)}
    assert told == shared | {name: value for name, value in defaults(role).items() if name not in COMPUTED}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_specification_and_readme(role: Path) -> None:
    rows = {match["variable"]: match for match in ROW.finditer((role / "README.md").read_text())}
    assert list(rows) == list(options(role))
    for name, option in options(role).items():
        shown = rows[name]["default"]
        assert rows[name]["meaning"] == option["description"]
        if option.get("required"):
            assert shown == "required"
        elif "default" in option:
            assert yaml.safe_load(shown.strip("`")) == option["default"]


def test_a_variable_means_the_same_in_every_role() -> None:
    seen: dict[str, dict[str, Any]] = {}
    for role in ROLES:
        for name, option in options(role).items():
            # Only the composing role says aloud that an id is empty unless told otherwise.
            comparable = {key: value for key, value in option.items() if key != "default" or value != ""}
            assert seen.setdefault(name, comparable) == comparable, f"{name} in {role.name}"


@pytest.mark.parametrize("playbook", sorted((ROOT / "playbooks").glob("*.yml")), ids=lambda path: path.name)
def test_the_reserved_word_name_is_read_in_one_line_only(playbook: Path) -> None:
    """Ansible reserves ``name``; a playbook maps it once (architecture page, Decisions)."""
    uses = [line.strip() for line in playbook.read_text().splitlines() if re.search(r"\{\{[^}]*\bname\b(?!\s*=)", line)]
    uses = [line for line in uses if "attribute='name'" not in line and "'name'" not in line]
    assert uses in ([], ["sandbox_name: \"{{ name | default('') }}\""])


def test_no_role_reads_the_reserved_word_name() -> None:
    templates = list(ROOT.glob("roles/*/*/*.yml"))
    reading = [path for path in templates if re.search(r"\{\{\s*name\b", path.read_text())]
    assert templates
    assert reading == []
