# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is told of the sandboxes of a host: state, age, addresses, and whether the walls stand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_facts import age, sandboxes, state_of
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNames
from ansible_collections.openshell.sandbox.plugins.module_utils.sidecar_config import digest
from host import NAMES, Host, make_sandbox

RUNNING, STOPPED, PAUSED = ({"State": {"Status": status}} for status in ("running", "exited", "paused"))


@pytest.mark.parametrize(
    ("agent", "proxy", "ready", "drifted", "state"),
    [
        (RUNNING, RUNNING, True, False, "running"),
        (RUNNING, RUNNING, False, False, "degraded"),
        (RUNNING, STOPPED, False, False, "degraded"),
        (STOPPED, RUNNING, True, False, "degraded"),
        (STOPPED, STOPPED, False, False, "stopped"),
        (None, RUNNING, True, False, "degraded"),
        (RUNNING, None, False, False, "degraded"),
        (None, None, False, False, "degraded"),
        (PAUSED, RUNNING, True, False, "paused"),
        (PAUSED, RUNNING, False, False, "degraded"),
        (PAUSED, STOPPED, False, False, "degraded"),
        (RUNNING, PAUSED, False, False, "degraded"),
        (PAUSED, PAUSED, False, False, "degraded"),
        (PAUSED, RUNNING, True, True, "drifted"),
        (RUNNING, RUNNING, True, True, "drifted"),
        (STOPPED, STOPPED, False, True, "drifted"),
        (None, None, False, True, "drifted"),
    ],
)
def test_states(agent: Any, proxy: Any, ready: bool, drifted: bool, state: str) -> None:
    assert state_of(agent, proxy, ready, drifted) == state


@pytest.fixture
def sandbox(host: Host) -> Host:
    make_sandbox(host)
    return host


def test_a_sandbox_that_is_well(sandbox: Host) -> None:
    (found,) = sandboxes(sandbox.direct)
    created = found.pop("created")
    assert created == sandbox.state["containers"][NAMES.agent]["Created"]
    assert found.pop("age").endswith("s")
    assert found == {
        "name": "demo",
        "id": "demo",
        "state": "running",
        "image": "localhost/image:aaaaaa",
        "policy": digest("version: 1\n")[:12],
        "agent_ip": "10.89.0.3",
        "proxy_ip": "10.89.0.2",
        "allowed": None,
        "denied": None,
        "drift": [],
    }
    assert sandbox.calls("exec") == []


def test_a_network_connected_by_hand_is_drift(sandbox: Host) -> None:
    sandbox.direct.network_connect("openshell", NAMES.agent)
    (found,) = sandboxes(sandbox.direct)
    assert found["state"] == "drifted"
    assert found["drift"] == [
        {"what": "networks", "expected": [NAMES.network], "found": ["openshell", NAMES.network], "repairable": True}
    ]


def test_a_sidecar_on_a_third_network_is_drift(sandbox: Host) -> None:
    sandbox.direct.ensure_bridge_network("office", {})
    sandbox.direct.network_connect("office", NAMES.proxy)
    assert [drift["what"] for drift in sandboxes(sandbox.direct)[0]["drift"]] == ["networks"]


@pytest.mark.parametrize("name", [NAMES.agent, NAMES.proxy])
def test_a_process_that_may_too_much_is_drift(sandbox: Host, name: str) -> None:
    """This test's own process stands for the container's: it has no_new_privs off."""
    import os

    pid = sandbox.state["containers"][name]["State"]["Pid"]
    sandbox.change("containers", name, "State", "Pid", os.getpid())
    try:
        (found,) = sandboxes(sandbox.direct)
        assert "no_new_privs" in [drift["what"] for drift in found["drift"]]
        assert found["state"] == "drifted"
    finally:
        sandbox.change("containers", name, "State", "Pid", pid)


def test_a_stopped_one(sandbox: Host) -> None:
    for name in (NAMES.agent, NAMES.proxy):
        sandbox.direct.run(["stop", name])
    (found,) = sandboxes(sandbox.direct)
    assert (found["state"], found["drift"], found["policy"]) == ("stopped", [], "")


def test_a_missing_part(sandbox: Host) -> None:
    sandbox.direct.remove_container(NAMES.agent)
    (found,) = sandboxes(sandbox.direct)
    assert (found["state"], found["image"], found["agent_ip"]) == ("degraded", "", "")
    assert found["created"]


def test_an_interrupted_creation_is_seen(host: Host) -> None:
    names = SandboxNames.of("half", "h1")
    host.direct.ensure_internal_network(names.network, names.labels())
    host.direct.ensure_bridge_network("openshell", {"openshell.managed": "true"})
    (found,) = sandboxes(host.direct)
    assert (found["name"], found["id"], found["state"], found["age"]) == ("half", "h1", "degraded", "")


def test_one_of_several_and_all_in_order(sandbox: Host) -> None:
    other = SandboxNames.of("another")
    sandbox.direct.ensure_internal_network(other.network, other.labels())
    assert [found["name"] for found in sandboxes(sandbox.direct)] == ["another", "demo"]
    assert [found["name"] for found in sandboxes(sandbox.direct, "demo")] == ["demo"]
    assert sandboxes(sandbox.direct, "absent") == []


def test_strangers_are_not_told(sandbox: Host) -> None:
    sandbox.change("containers", NAMES.agent, "Config", "Labels", "openshell.role", "something")
    assert sandboxes(sandbox.direct)[0]["agent_ip"] == ""
    sandbox.change(
        "containers", NAMES.agent, "Config", "Labels", {"openshell.managed": "true", "openshell.sandbox": "x"}
    )
    assert [found["name"] for found in sandboxes(sandbox.direct)] == ["demo"]


def test_counters_are_asked_of_a_ready_sidecar_only(sandbox: Host) -> None:
    status = sandbox.directory / "status" / NAMES.proxy
    status.write_text(json.dumps({"requests_allowed": 3, "requests_denied": 1}))
    (found,) = sandboxes(sandbox.direct, counters=True)
    assert (found["allowed"], found["denied"]) == (3, 1)
    assert sandbox.calls("exec") == [["exec", NAMES.proxy, "/opt/openshell/bin/openshell-proxy", "status"]]
    for text in ("", "[]", "{half"):
        status.write_text(text)
        assert sandboxes(sandbox.direct, counters=True)[0]["allowed"] is None
    sandbox.direct.run(["stop", NAMES.proxy])
    before = len(sandbox.calls("exec"))
    sandboxes(sandbox.direct, counters=True)
    assert len(sandbox.calls("exec")) == before


@pytest.mark.parametrize(
    ("back", "told"),
    [
        (timedelta(seconds=20), "20s"),
        (timedelta(seconds=60), "1m"),
        (timedelta(minutes=59, seconds=30), "59m"),
        (timedelta(minutes=60), "1h"),
        (timedelta(hours=23, minutes=59), "23h"),
        (timedelta(hours=24), "1d"),
        (timedelta(days=400), "400d"),
        (timedelta(minutes=-5), "0s"),
    ],
)
@pytest.mark.parametrize("hours", [0, 5.5, -7])
def test_ages(back: timedelta, told: str, hours: float) -> None:
    moment = datetime.now(timezone(timedelta(hours=hours))) - back
    allowed = {told, "21s", "22s"} if told == "20s" else {told}
    assert age(moment.isoformat()) in allowed


def test_an_age_in_utc_and_none_at_all() -> None:
    moment = datetime.now(UTC) - timedelta(hours=2, minutes=1)
    assert age(moment.strftime("%Y-%m-%dT%H:%M:%S.123456789Z")) == "2h"
    assert age(moment.strftime("%Y-%m-%dT%H:%M:%S")) == "2h"
    assert [age(text) for text in ("", "yesterday", "2026-13-01T00:00:00Z")] == [""] * 3
