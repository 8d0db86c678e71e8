# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A container becomes what its description says, and whatever fails on the way, what was there is there again."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from typing import Any

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils.container_converge import (
    Plan,
    before_and_after,
    converge,
    plan,
    recover_interrupted_replacement,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.container_spec import hardware_address
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import PodmanError
from host import NAMES, Host, make_sandbox, spec_of

AGENT = spec_of("agent")
OTHER = dataclasses.replace(AGENT, pids_limit=100)
NETWORKS = {NAMES.network: AGENT.ip}
REPLACED = AGENT.name + "-replaced"


def networks_of(host: Host, name: str = AGENT.name) -> dict[str, Any]:
    found: dict[str, Any] = host.state["containers"][name]["NetworkSettings"]["Networks"]
    return found


def status_of(host: Host, name: str = AGENT.name) -> str:
    return str(host.state["containers"][name]["State"]["Status"])


def spec_label(host: Host, name: str = AGENT.name) -> str:
    return str(host.state["containers"][name]["Config"]["Labels"]["openshell.spec"])


@pytest.fixture
def sandbox(host: Host) -> Host:
    make_sandbox(host)
    return host


# -- plans ---------------------------------------------------------------------------------------------------------


def test_nothing_there_is_created(host: Host) -> None:
    assert plan(host.direct, AGENT, NETWORKS, True) == Plan("create", [])


def test_what_is_right_stays_and_nothing_is_called(sandbox: Host) -> None:
    before = len(sandbox.calls())
    assert converge(sandbox.direct, AGENT, NETWORKS, True) == Plan("none", [])
    assert sandbox.changed_since(before) == []


def test_another_description_is_a_replacement(sandbox: Host) -> None:
    todo = plan(sandbox.direct, OTHER, NETWORKS, True)
    assert (todo.action, [drift.what for drift in todo.drifts]) == ("replace", ["spec"])


@pytest.mark.parametrize(("running", "action"), [(True, "repair"), (None, "none"), (False, "none")])
def test_a_stopped_one_is_judged_by_what_is_wanted(sandbox: Host, running: bool | None, action: str) -> None:
    sandbox.direct.run(["stop", AGENT.name])
    assert plan(sandbox.direct, AGENT, NETWORKS, running).action == action


def test_one_drift_that_cannot_be_repaired_makes_it_a_replacement(sandbox: Host) -> None:
    sandbox.direct.network_connect("openshell", AGENT.name)
    assert plan(sandbox.direct, AGENT, NETWORKS, True).action == "repair"
    sandbox.change("containers", AGENT.name, "HostConfig", "Privileged", True)
    assert plan(sandbox.direct, AGENT, NETWORKS, True).action == "replace"


def test_a_plan_changes_nothing(sandbox: Host) -> None:
    before = len(sandbox.calls())
    plan(sandbox.direct, OTHER, NETWORKS, False)
    assert sandbox.changed_since(before) == []


# -- creation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("running", "status"), [(True, "running"), (False, "created"), (None, "created")])
def test_creation(host: Host, running: bool | None, status: str) -> None:
    make_sandbox(host)
    host.direct.remove_container(AGENT.name)
    spec = dataclasses.replace(AGENT, files={"/etc/motd": "hello\n"})
    assert converge(host.direct, spec, NETWORKS, running).action == "create"
    assert status_of(host) == status
    assert host.calls("create")[-1] == ["create", *spec.create_args()]
    with tarfile.open(fileobj=io.BytesIO(host.stdin_of("cp"))) as archive:
        assert archive.getnames() == ["etc/hosts", "etc/motd"]
    assert (host.directory / "rootfs" / AGENT.name / "etc/hosts").read_text() == spec.hosts_file()


def test_a_half_made_container_does_not_stay(host: Host) -> None:
    make_sandbox(host)
    host.direct.remove_container(AGENT.name)
    host.fail("cp", "Error: no space left on device")
    with pytest.raises(PodmanError, match=r"podman cp failed .*no space left"):
        converge(host.direct, AGENT, NETWORKS, True)
    assert AGENT.name not in host.state["containers"]


# -- replacement ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "wanted", "after"),
    [
        (True, True, "running"),
        (True, None, "running"),
        (True, False, "created"),
        (False, True, "running"),
        (False, None, "created"),
    ],
)
def test_a_replacement_runs_as_is_wanted(sandbox: Host, before: bool, wanted: bool | None, after: str) -> None:
    if not before:
        sandbox.direct.run(["stop", AGENT.name])
    spec = dataclasses.replace(OTHER, stop_timeout=7)
    assert converge(sandbox.direct, spec, NETWORKS, wanted).action == "replace"
    assert (spec_label(sandbox), status_of(sandbox)) == (spec.digest, after)
    assert REPLACED not in sandbox.state["containers"]
    assert ["stop", "--time", "7", AGENT.name] in sandbox.calls("stop")
    assert plan(sandbox.direct, spec, NETWORKS, wanted).action == "none"


def test_a_replacement_is_on_all_its_networks_before_it_starts(sandbox: Host) -> None:
    proxy = dataclasses.replace(spec_of("proxy"), pids_limit=100)
    converge(sandbox.direct, proxy, {NAMES.network: proxy.ip, "openshell": ""}, True)
    assert set(networks_of(sandbox, proxy.name)) == {NAMES.network, "openshell"}
    order = [call[0] for call in sandbox.calls() if call[-1] == proxy.name and call[0] in ("network", "start")]
    assert order[-2:] == ["network", "start"]


@pytest.mark.parametrize("step", ["stop", "rename", "create", "cp", "start"])
def test_the_old_one_comes_back_when_the_new_one_fails(sandbox: Host, step: str) -> None:
    sandbox.fail(step)
    with pytest.raises(PodmanError, match=f"podman {step} failed .*out of order"):
        converge(sandbox.direct, OTHER, NETWORKS, True)
    assert REPLACED not in sandbox.state["containers"]
    assert (spec_label(sandbox), status_of(sandbox)) == (AGENT.digest, "running")


def test_a_new_one_that_ends_at_once_is_replaced_by_the_old_one(sandbox: Host) -> None:
    sandbox.direct.run(["stop", AGENT.name])
    sandbox.change("ending", {AGENT.name: 127})
    with pytest.raises(PodmanError, match="ended at once"):
        converge(sandbox.direct, OTHER, NETWORKS, True)
    assert (spec_label(sandbox), status_of(sandbox)) == (AGENT.digest, "exited")


def test_an_old_one_that_was_stopped_stays_stopped(sandbox: Host) -> None:
    sandbox.direct.run(["stop", AGENT.name])
    sandbox.fail("create")
    with pytest.raises(PodmanError):
        converge(sandbox.direct, OTHER, NETWORKS, True)
    assert (spec_label(sandbox), status_of(sandbox)) == (AGENT.digest, "exited")


def test_killed_before_the_new_one_stood_the_old_one_is_taken_up_again(sandbox: Host) -> None:
    sandbox.direct.run(["stop", AGENT.name])
    sandbox.direct.run(["rename", AGENT.name, REPLACED])
    assert converge(sandbox.direct, AGENT, NETWORKS, True).action == "repair"
    assert list(sandbox.state["containers"]) == [NAMES.proxy, AGENT.name]
    assert (spec_label(sandbox), status_of(sandbox)) == (AGENT.digest, "running")
    assert len(sandbox.calls("create")) == 2


def test_killed_after_the_new_one_stood_the_old_one_goes(sandbox: Host) -> None:
    sandbox.direct.run(["rename", AGENT.name, REPLACED])
    sandbox.direct.run(["create", *OTHER.create_args()])
    sandbox.direct.run(["start", AGENT.name])
    assert converge(sandbox.direct, OTHER, NETWORKS, True).action == "none"
    assert list(sandbox.state["containers"]) == [NAMES.proxy, AGENT.name]
    assert spec_label(sandbox) == OTHER.digest


def test_killed_while_the_new_one_was_made_the_old_one_comes_back_first(sandbox: Host) -> None:
    """The new one may lack its files; the old one has what somebody worked with."""
    sandbox.direct.run(["stop", AGENT.name])
    sandbox.direct.run(["rename", AGENT.name, REPLACED])
    sandbox.direct.run(["create", *OTHER.create_args()])
    recover_interrupted_replacement(sandbox.direct, AGENT.name)
    assert list(sandbox.state["containers"]) == [NAMES.proxy, AGENT.name]
    assert spec_label(sandbox) == AGENT.digest


@pytest.mark.parametrize("state", ["no file", "an empty file", "nobody knows"])
def test_killed_before_its_files_were_in_it_is_made_anew(host: Host, state: str) -> None:
    make_sandbox(host, started=False)
    hosts = host.directory / "rootfs" / AGENT.name / "etc" / "hosts"
    assert plan(host.direct, AGENT, NETWORKS, None).action == "none"
    if state == "no file":
        hosts.unlink()
    elif state == "an empty file":
        hosts.write_text("")
    else:
        host.change("containers", AGENT.name, "GraphDriver", {"Name": "vfs", "Data": None})
    assert converge(host.direct, AGENT, NETWORKS, True).action == "replace"
    assert AGENT.ip in hosts.read_text()
    assert status_of(host) == "running"


def test_one_that_was_started_may_do_without_the_file(sandbox: Host) -> None:
    (sandbox.directory / "rootfs" / AGENT.name / "etc" / "hosts").unlink()
    assert plan(sandbox.direct, AGENT, NETWORKS, True).action == "none"


def test_nothing_to_recover_changes_nothing(sandbox: Host) -> None:
    before = len(sandbox.calls())
    recover_interrupted_replacement(sandbox.direct, AGENT.name)
    assert sandbox.changed_since(before) == []


# -- repair --------------------------------------------------------------------------------------------------------


def test_a_network_too_many_goes_and_the_container_stays(sandbox: Host) -> None:
    sandbox.direct.network_connect("openshell", AGENT.name)
    pid = sandbox.state["containers"][AGENT.name]["State"]["Pid"]
    assert converge(sandbox.direct, AGENT, NETWORKS, True).action == "repair"
    assert networks_of(sandbox) == {NAMES.network: {"IPAddress": AGENT.ip, "MacAddress": hardware_address(AGENT.name)}}
    assert sandbox.state["containers"][AGENT.name]["State"]["Pid"] == pid


def test_a_network_too_few_comes_back_with_its_address(sandbox: Host) -> None:
    sandbox.direct.network_disconnect(NAMES.network, AGENT.name)
    assert converge(sandbox.direct, AGENT, NETWORKS, True).action == "repair"
    assert networks_of(sandbox) == {NAMES.network: {"IPAddress": AGENT.ip, "MacAddress": hardware_address(AGENT.name)}}


def test_a_network_without_a_fixed_address_is_connected_without_one(sandbox: Host) -> None:
    proxy = spec_of("proxy")
    sandbox.direct.network_disconnect("openshell", proxy.name)
    converge(sandbox.direct, proxy, {NAMES.network: proxy.ip, "openshell": ""}, True)
    assert sandbox.calls("network connect")[-1] == ["network", "connect", "openshell", proxy.name]


def test_the_stray_network_goes_before_the_start(sandbox: Host) -> None:
    sandbox.direct.run(["stop", AGENT.name])
    sandbox.direct.network_connect("openshell", AGENT.name)
    before = len(sandbox.calls())
    converge(sandbox.direct, AGENT, NETWORKS, True)
    assert [call[:2] for call in sandbox.changed_since(before)] == [["network", "disconnect"], ["start", AGENT.name]]


def test_starting_and_stopping(sandbox: Host) -> None:
    assert converge(sandbox.direct, AGENT, NETWORKS, False).action == "repair"
    assert status_of(sandbox) == "exited"
    assert converge(sandbox.direct, AGENT, NETWORKS, None).action == "none"
    assert status_of(sandbox) == "exited"
    assert converge(sandbox.direct, AGENT, NETWORKS, True).action == "repair"
    assert status_of(sandbox) == "running"


# -- what a diff shows ---------------------------------------------------------------------------------------------


def test_both_sides_of_a_diff(sandbox: Host) -> None:
    assert before_and_after(Plan("none", []), AGENT) == {"before": {}, "after": {}}
    made = {"state": "present", "image": AGENT.image, "network": AGENT.network, "ip": AGENT.ip}
    assert before_and_after(Plan("create", []), AGENT) == {"before": {"state": "absent"}, "after": made}
    todo = plan(sandbox.direct, OTHER, NETWORKS, False)
    assert before_and_after(todo, OTHER) == {
        "before": {"spec": AGENT.digest, "state": "running"},
        "after": {"spec": OTHER.digest, "state": "stopped"},
    }
