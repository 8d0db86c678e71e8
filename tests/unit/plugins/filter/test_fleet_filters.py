# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run over a fleet is about, who makes the images, and what is said at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from ansible_collections.openshell.sandbox.plugins.filter.fleet_plan import fleet_plan
from ansible_collections.openshell.sandbox.plugins.filter.fleet_report import fleet_report
from ansible_collections.openshell.sandbox.plugins.filter.fleet_shipping import fleet_shipping

VARIABLES: dict[str, Any] = {
    "h1": {},
    "h2": {},
    "a": {"openshell_host": "h1"},
    "b": {"openshell_host": "h1", "sandbox_name": "bee"},
    "c": {"openshell_host": "h2", "openshell_image": "registry.example/x:1"},
    "d": {},
}
MEMBERS = ["a", "b", "c", "d"]


class Broken(Mapping[str, Any]):
    """Variables one of which has a template that fails."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("'x' is\nundefined")

    def __iter__(self) -> Iterator[str]:
        return iter(("openshell_host",))

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("aimed", "sandboxes", "first", "beyond"),
    [
        pytest.param(
            [*MEMBERS, "h1", "h2"],
            {"a": "h1", "b": "h1", "c": "h2", "d": "localhost"},
            {"h1": "a", "h2": "c", "localhost": "d"},
            [],
            id="all",
        ),
        pytest.param(["b"], {"b": "h1"}, {"h1": "b"}, [], id="one-sandbox"),
        pytest.param(["h1", "b"], {"b": "h1"}, {"h1": "b"}, ["a"], id="a-host-without-a-sandbox-of-its-own"),
        pytest.param(["h1"], {}, {}, ["a", "b"], id="a-host-alone"),
        pytest.param(["h3"], {}, {}, [], id="nothing"),
    ],
)
def test_a_limit_is_by_sandbox(aimed: list[str], sandboxes: Any, first: Any, beyond: list[str]) -> None:
    plan = fleet_plan(VARIABLES, MEMBERS, [], aimed)
    assert (plan["aimed"], plan["first"], plan["beyond"], plan["problems"]) == (sandboxes, first, beyond, {})
    # What is declared does not depend on what a run is limited to, or pruning would remove the rest.
    assert plan["hosts"] == {"h1": ["a", "bee"], "h2": ["c"], "localhost": ["d"]}


@pytest.mark.parametrize(
    ("processors", "looks"),
    [
        pytest.param(1, {"s1": ["s1", "s2", "s3"], "t1": ["t1"]}, id="one"),
        pytest.param(2, {"s1": ["s1", "s3"], "s2": ["s2"], "t1": ["t1"]}, id="two"),
        pytest.param(9, {"s1": ["s1"], "s2": ["s2"], "s3": ["s3"], "t1": ["t1"]}, id="more-than-sandboxes"),
    ],
)
def test_each_processor_looks_at_a_share_of_a_hosts_sandboxes(
    monkeypatch: pytest.MonkeyPatch, processors: int, looks: Any
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: processors)
    variables = {
        "h1": {},
        "h2": {},
        **{f"s{n}": {"openshell_host": "h1"} for n in (1, 2, 3)},
        "t1": {"openshell_host": "h2"},
    }
    plan = fleet_plan(variables, ["s1", "s2", "s3", "t1"], [], ["s1", "s2", "s3", "t1"])
    assert plan["looks"] == looks
    assert set(plan["first"].values()) <= set(looks)  # who speaks for a host is one of those that look


def test_a_host_without_sandboxes_counts_when_it_is_named() -> None:
    assert fleet_plan(VARIABLES, ["a"], ["h1", "h2"], ["a"])["hosts"] == {"h1": ["a"], "h2": []}


def test_own_agent_images() -> None:
    assert fleet_plan(VARIABLES, MEMBERS, [], ["c"])["own_agent_images"]
    assert not fleet_plan(VARIABLES, MEMBERS, [], ["c", "a"])["own_agent_images"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        pytest.param({"openshell_host": "h9"}, "its openshell_host h9 is not a host of the inventory", id="no-host"),
        pytest.param(
            {"openshell_host": "h1", "sandbox_name": "a"}, "wrong and a are both the sandbox a on h1", id="twin"
        ),
        pytest.param(Broken(), "cannot be told: 'x' is undefined", id="template"),
    ],
)
def test_what_is_wrong_with_one_does_not_hinder_the_others(wrong: Any, words: str) -> None:
    plan = fleet_plan({**VARIABLES, "wrong": wrong}, ["wrong", *MEMBERS], [], ["wrong", *MEMBERS])
    assert words in plan["problems"]["wrong"]
    assert set(plan["problems"]) <= {"wrong", "a"}
    assert plan["first"]["h2"] == "c"


IMAGES = {"proxy": "1", "agent": "2"}
NONE = {"proxy": "1", "agent": ""}


@pytest.mark.parametrize(
    ("looked", "maker", "receivers", "missing"),
    [
        pytest.param({"h1": IMAGES, "h2": IMAGES}, "", [], False, id="all-have-them"),
        pytest.param({"h1": NONE, "h2": IMAGES}, "on-h2", ["on-h1"], False, id="one-has-them"),
        pytest.param({"h1": NONE, "h2": NONE}, "on-h1", ["on-h2"], True, id="nobody-has-them"),
        pytest.param({"h1": NONE, "localhost": NONE}, "on-localhost", ["on-h1"], True, id="controller-first"),
        pytest.param({"h1": NONE, "h2": None}, "", [], True, id="one-answers"),
    ],
)
def test_who_makes_the_images(looked: Any, maker: str, receivers: list[str], missing: bool) -> None:
    first = {host: f"on-{host}" for host in looked}
    variables = {
        f"on-{host}": {"openshell_fleet_images": {"images": images} if images else {"unreachable": True}}
        for host, images in looked.items()
    }
    assert fleet_shipping(variables, first) == {"maker": maker, "receivers": receivers, "missing": missing}


def test_the_last_words() -> None:
    variables = {
        "a": {"openshell_fleet_outcome": ""},
        "b": {"openshell_fleet_outcome": "it\nfailed"},
        "c": {},
        "d": {},
        "e": {},
        "h1": {"openshell_fleet_outcome": "not pruned"},
        "h2": {},
    }
    plan = {
        "aimed": {"a": "h1", "b": "h1", "c": "h2", "d": "h1", "e": "h1"},
        "hosts": {"h1": [], "h2": []},
        "problems": {"d": "it cannot be meant"},
    }
    report = fleet_report(variables, plan, ["e"])  # which was looked at, and no more was done to it
    assert report["text"].splitlines() == [
        "Fleet: 5 sandboxes on 2 hosts: 2 as declared, 3 not",
        "  b on h1: it failed",
        "  c on h2: it was not reached: h2 does not answer",
        "  d on h1: it cannot be meant",
        "  h1: not pruned",
    ]
    assert set(report["failures"]) == {"b", "c", "d", "h1", "h2"}
