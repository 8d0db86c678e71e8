# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module that starts and stops a sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import NAMES, Host, make_sandbox


def test_stopping_and_starting(host: Host) -> None:
    make_sandbox(host)
    for state, order in (("stopped", ["stop", "stop"]), ("started", ["start", "start"])):
        before = len(host.calls())
        checked = host.module("sandbox_state", check=True, diff=True, sandbox_name="demo", state=state)
        assert checked["changed"]
        assert host.changed_since(before) == []
        done = host.module("sandbox_state", diff=True, sandbox_name="demo", state=state)
        assert (done["changed"], done["state"], done["diff"]) == (True, state, checked["diff"])
        assert done["diff"]["after"] == {NAMES.agent: state, NAMES.proxy: state}
        names = [NAMES.agent, NAMES.proxy]
        wanted = [[word, name] for word, name in zip(order, names if state == "stopped" else names[::-1], strict=True)]
        assert host.changed_since(before) == wanted
        before = len(host.calls())
        again = host.module("sandbox_state", sandbox_name="demo", state=state)
        assert (again["changed"], host.changed_since(before)) == (False, [])


def test_restarting_is_stopping_and_starting(host: Host) -> None:
    make_sandbox(host)
    order = [["stop", NAMES.agent], ["stop", NAMES.proxy], ["start", NAMES.proxy], ["start", NAMES.agent]]
    before = len(host.calls())
    assert host.module("sandbox_state", check=True, sandbox_name="demo", state="restarted")["changed"]
    assert host.changed_since(before) == []
    assert host.module("sandbox_state", sandbox_name="demo", state="restarted")["changed"]
    assert host.changed_since(before) == order


def test_pausing_freezes_the_agent_alone(host: Host) -> None:
    make_sandbox(host)
    for state, command in (("paused", "pause"), ("unpaused", "unpause")):
        before = len(host.calls())
        assert host.module("sandbox_state", check=True, sandbox_name="demo", state=state)["changed"]
        done = host.module("sandbox_state", diff=True, sandbox_name="demo", state=state)
        assert (done["changed"], done["diff"]["after"]) == (True, {NAMES.agent: state})
        assert host.changed_since(before) == [[command, NAMES.agent]]
        assert not host.module("sandbox_state", sandbox_name="demo", state=state)["changed"]


@pytest.mark.parametrize("state", ["started", "stopped", "restarted"])
def test_a_paused_one_can_be_brought_to_any_state(host: Host, state: str) -> None:
    make_sandbox(host)
    host.direct.pause(NAMES.agent)
    before = len(host.calls())
    assert host.module("sandbox_state", sandbox_name="demo", state=state)["changed"]
    assert host.changed_since(before)[0] == ["unpause", NAMES.agent]
    found = {name: one["State"]["Status"] for name, one in host.state["containers"].items()}
    assert set(found.values()) == {"exited" if state == "stopped" else "running"}


def test_a_stopped_one_cannot_be_paused(host: Host) -> None:
    make_sandbox(host, started=False)
    for state in ("paused", "unpaused"):
        told = "sandbox 'demo' is stopped; start it with start_sandbox.yml"
        assert host.refusal("sandbox_state", sandbox_name="demo", state=state) == told


def test_the_agent_waits_for_a_sidecar_that_runs_and_is_not_ready(host: Host) -> None:
    make_sandbox(host)
    host.direct.stop(NAMES.agent)
    Path(host.direct.volume(NAMES.tls_volume)["Mountpoint"], ".ready").unlink()  # type: ignore[index]
    assert "is not ready" in host.refusal("sandbox_state", sandbox_name="demo", state="started", timeout=0)
    assert host.state["containers"][NAMES.agent]["State"]["Status"] == "exited"


def test_a_stray_network_goes_before_the_start(host: Host) -> None:
    make_sandbox(host, started=False)
    host.direct.network_connect("openshell", NAMES.agent)
    host.module("sandbox_state", sandbox_name="demo", state="started")
    order = [call[:2] for call in host.calls() if call[-1] == NAMES.agent and call[0] in ("network", "start")]
    assert order[-2:] == [["network", "disconnect"], ["start", NAMES.agent]]


def test_a_running_one_on_a_stray_network_is_put_right(host: Host) -> None:
    make_sandbox(host)
    host.direct.network_connect("openshell", NAMES.agent)
    assert host.module("sandbox_state", sandbox_name="demo", state="started")["changed"]
    assert list(host.state["containers"][NAMES.agent]["NetworkSettings"]["Networks"]) == [NAMES.network]


def test_refusals(host: Host) -> None:
    assert host.refusal("sandbox_state", sandbox_name="demo", state="started") == (
        "there is no sandbox 'demo' on this host; create it with create_sandbox.yml"
    )
    make_sandbox(host, started=False)
    host.change("containers", NAMES.agent, "Config", "Labels", "openshell.managed", "no")
    assert "there is no sandbox 'demo'" in host.refusal("sandbox_state", sandbox_name="demo", state="stopped")
    host.change("containers", NAMES.agent, "Config", "Labels", "openshell.managed", "true")
    host.change("silent_sidecar", True)
    assert "is not ready after 0 seconds" in host.refusal(
        "sandbox_state", sandbox_name="demo", state="started", timeout=0
    )
    assert host.state["containers"][NAMES.agent]["State"]["Status"] == "created"
