# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Variables that add to one another: one rule, no value in an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.openshell.sandbox.plugins.filter.composed import FilterModule, composed

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("variables", "result"),
    [
        pytest.param({}, {"default": 1}, id="nothing"),
        pytest.param({"v": "", "v__a": None}, {"default": 1}, id="empty"),
        pytest.param({"v": "policy.yaml"}, "policy.yaml", id="one-is-passed-on"),
        pytest.param({"v__a": {"x": 1}}, {"x": 1}, id="no-base"),
        pytest.param(
            {"v__b": {"x": 2}, "v__a": {"x": 1}, "v": {"x": 0, "y": 0}}, {"x": 2, "y": 0}, id="order-of-names"
        ),
        pytest.param(
            {"v": {"x": {"a": [1]}}, "v__a": {"x": {"a": [2], "b": 3}}}, {"x": {"a": [1, 2], "b": 3}}, id="deep"
        ),
        pytest.param({"v": [1, 2], "v__a": [2, 3]}, [1, 2, 3], id="an-item-once"),
        pytest.param({"v": {"x": [1]}, "v__a": {"x": 2}}, {"x": 2}, id="another-kind-replaces-inside"),
        pytest.param({"v": {"x": 1}, "v_a": {"x": 2}, "vv__a": {"x": 3}}, {"x": 1}, id="other-names-do-not-count"),
    ],
)
def test_the_rule(variables: dict[str, Any], result: Any) -> None:
    assert composed(variables, "v", {"default": 1}) == result


def test_an_item_takes_the_place_of_its_namesake() -> None:
    base = [{"name": "a", "hosts": ["x"]}, {"name": "b"}]
    assert composed({"v": base, "v__1": [{"name": "a", "hosts": ["y"]}]}, "v", []) == [
        {"name": "a", "hosts": ["y"]},
        {"name": "b"},
    ]
    assert base[0] == {"name": "a", "hosts": ["x"]}


def test_a_provider_takes_the_place_of_its_bare_id() -> None:
    more = {"id": "github", "secrets": {"token": {"from_env": "TOKEN"}}}
    assert composed({"v": ["pypi", "github"], "v__1": [more]}, "v", []) == ["pypi", more]


def test_twins_within_one_list_stay_visible() -> None:
    """So that whoever judges the list still sees that a name is there twice."""
    twins = [{"name": "a", "hosts": ["x"]}, {"name": "a", "hosts": ["y"]}]
    assert composed({"v": [{"name": "b"}], "v__1": twins}, "v", []) == [{"name": "b"}, *twins]


def test_files_are_merged_with_mappings(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("version: 1\nnetwork_policies: {one: {}}\n")
    variables = {"v": str(tmp_path / "base.yaml"), "v__a": {"network_policies": {"two": {}}}}
    assert composed(variables, "v", "") == {"version": 1, "network_policies": {"one": {}, "two": {}}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("a: {b: 1, b: 2}\n", "the key b is there twice", id="key-twice"),
        pytest.param("a: [\n", "is not YAML", id="not-yaml"),
        pytest.param(None, "cannot be read: No such file", id="absent"),
    ],
)
def test_a_bad_file_is_told_in_one_sentence(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "policy.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(AnsibleFilterError, match=words) as caught:
        composed({"v": str(path), "v__a": {"x": 1}}, "v", "")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("base", [{"a": SECRET}, 7], ids=["mapping", "number"])
def test_different_kinds_are_refused_without_a_value(base: Any) -> None:
    with pytest.raises(AnsibleFilterError, match="v__a is a list and v is") as caught:
        composed({"v": base, "v__a": [SECRET]}, "v", [])
    assert SECRET not in str(caught.value)


def test_ansible_finds_it() -> None:
    assert FilterModule().filters() == {"composed": composed}
