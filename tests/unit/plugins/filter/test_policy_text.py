# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One policy text from a path, a mapping or nothing, with entries added where they belong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.openshell.sandbox.plugins.filter.policy_text import FilterModule, policy_text

ENTRY = {"registries": {"name": "r", "endpoints": [{"host": "a.example", "port": 443}]}}


class Tagged(str):
    """Like Ansible's own strings: a text for which YAML has no representer."""


@pytest.mark.parametrize("nothing", ["", None, {}])
def test_nothing_allows_nothing(nothing: Any) -> None:
    assert policy_text(nothing) == "version: 1\nnetwork_policies: {}\n"


def test_a_file_goes_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "# mine\nversion:   1\nnetwork_policies: {} # \u00fc\n"
    (tmp_path / "policy.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert policy_text(str(tmp_path / "policy.yaml")) == text
    assert policy_text("~/policy.yaml") == text
    assert policy_text(str(tmp_path / "policy.yaml"), {}) == text


def test_a_mapping_is_written_in_its_order() -> None:
    policy = {"version": 1, Tagged("b"): Tagged("x"), "a": [1, 1.5, True, None, (Tagged("y"),)]}
    text = policy_text(policy)
    assert text.startswith("version: 1\nb: x\na:\n")
    assert yaml.safe_load(text) == {"version": 1, "b": "x", "a": [1, 1.5, True, None, ["y"]]}


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnsibleFilterError, match="openshell_policy must be the path of a policy file or a mapping"):
        policy_text(["a"])
    with pytest.raises(AnsibleFilterError, match="openshell_policy /absent cannot be read: No such file or directory"):
        policy_text("/absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(AnsibleFilterError, match="cannot be read: it is not UTF-8 text"):
        policy_text(str(tmp_path / "binary"))


@pytest.mark.parametrize(
    "network_policies",
    ["network_policies: {}", "network_policies:", "network_policies: ~", "network_policies: null", "x: 1", ""],
)
def test_entries_are_added_whatever_is_there(tmp_path: Path, network_policies: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(f"version: 1\n{network_policies}\n")
    text = FilterModule().filters()["policy_text"](str(path), ENTRY)
    assert yaml.safe_load(text)["network_policies"] == ENTRY
    assert text.count("network_policies") == 1


def test_entries_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\nnetwork_policies: {mine: {name: m, endpoints: []}}\nfilesystem_policy: {}\n")
    told = yaml.safe_load(policy_text(str(path), ENTRY))
    assert list(told) == ["version", "network_policies", "filesystem_policy"]
    assert told["network_policies"] == {"mine": {"name": "m", "endpoints": []}, **ENTRY}
    assert yaml.safe_load(policy_text({"version": 1}, ENTRY)) == {"version": 1, "network_policies": ENTRY}


def test_what_is_wrong_stays_for_the_engine_to_see(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\nversion: 2\nnetwork_policies:\n  mine: 1\n  mine: 2\n")
    text = policy_text(str(path), ENTRY)
    assert (text.count("version:"), text.count("mine:")) == (2, 2)


@pytest.mark.parametrize("text", ["a: [", "a: 1\n---\nb: 2\n", "\tx"])
def test_what_is_not_yaml_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(AnsibleFilterError, match=r"openshell_policy is not YAML: [^\n]*$"):
        policy_text(str(tmp_path / "policy.yaml"), ENTRY)


@pytest.mark.parametrize("text", ["[]", "text", "# nothing\n"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(AnsibleFilterError, match="must hold a mapping with version and network_policies"):
        policy_text(str(tmp_path / "policy.yaml"), ENTRY)
