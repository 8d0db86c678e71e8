# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host has so that sandboxes come back after a reboot, and what it does then."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils import host_program, lifecycle
from ansible_collections.openshell.sandbox.plugins.module_utils.registry import Registration, Registry
from host import NAMES, Host, make_sandbox

SERVICE, REAPER, TIMER = (
    "openshell-sandboxes.service",
    "openshell-reaper.service",
    "openshell-reaper.timer",
)
Names = list[str]


@pytest.fixture
def sandbox(host: Host) -> Host:
    make_sandbox(host)
    return host


def registry(host: Host) -> Registry:
    return Registry(str(host.directory / "containers" / "openshell"))


def register(host: Host, **more: Any) -> Any:
    return host.module("sandbox_persistence", sandbox_name="demo", unit_directory=str(host.directory / "units"), **more)


def power_cut(host: Host) -> None:
    """Every process is gone; Podman says afterwards that the containers have exited."""
    host.end()


def run(host: Host, *args: str) -> subprocess.CompletedProcess[str]:
    """The program as the unit runs it, without this collection on the path."""
    command = [sys.executable, "-I", registry(host).program, *args]
    environ = {key: value for key, value in host.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, text=True, capture_output=True, check=False, env=environ, timeout=60)


def started(host: Host) -> Names:
    return [call[1] for call in host.calls("start")]


def test_registering_twice_changes_nothing_and_the_last_one_takes_all_with_it(sandbox: Host) -> None:
    checked = register(sandbox, check=True, diff=True, reaper=True)
    assert not registry(sandbox).names() and not (sandbox.directory / "units").exists()
    done = register(sandbox, diff=True, reaper=True)
    assert (done["changed"], done["diff"]) == (True, checked["diff"])
    assert done["units"] == [REAPER, TIMER, SERVICE]
    assert done["command"] == [registry(sandbox).program, "start"]
    units = sandbox.directory / "units"
    target = "multi-user.target" if os.geteuid() == 0 else "default.target"
    for link, unit in ((f"{target}.wants/{SERVICE}", SERVICE), (f"timers.target.wants/{TIMER}", TIMER)):
        assert (units / link).resolve() == (units / unit).resolve()
    assert not register(sandbox, reaper=True)["changed"]
    assert register(sandbox)["units"] == [SERVICE]
    assert not (units / TIMER).exists() and not (units / f"timers.target.wants/{TIMER}").is_symlink()
    gone = sandbox.module("sandbox_persistence", sandbox_name="demo", state="absent")
    assert gone["changed"]
    assert [path for path in units.rglob("*") if not path.is_dir()] == []
    assert not Path(registry(sandbox).directory).exists()
    assert not sandbox.module("sandbox_persistence", sandbox_name="demo", state="absent")["changed"]


def test_another_sandbox_keeps_what_both_need(sandbox: Host) -> None:
    register(sandbox)
    registry(sandbox).write("other", Registration(restart=True, reaper=False, executable=sandbox.executable))
    register(sandbox, state="absent")
    assert registry(sandbox).names() == ["other"]
    assert (sandbox.directory / "units" / SERVICE).exists()
    assert Path(registry(sandbox).program).exists()


def test_one_that_was_never_registered_leaves_alone_what_others_have(sandbox: Host) -> None:
    register(sandbox)
    Path(registry(sandbox).program).write_bytes(b"of another version")
    gone = sandbox.module("sandbox_persistence", sandbox_name="other", state="absent")
    assert not gone["changed"]
    assert Path(registry(sandbox).program).read_bytes() == b"of another version"


def test_nothing_is_registered_that_is_not_wanted(sandbox: Host) -> None:
    assert not register(sandbox, restart=False)["changed"]
    register(sandbox)
    assert register(sandbox, restart=False)["changed"]
    assert registry(sandbox).names() == []


def test_a_directory_that_cannot_be_written_is_told(sandbox: Host) -> None:
    (sandbox.directory / "containers").write_text("a file")
    told = sandbox.refusal("sandbox_persistence", sandbox_name="demo")
    assert "cannot be written" in told and "openshell_restart" in told


def test_the_program_is_the_same_whenever_it_is_made() -> None:
    assert host_program.program("/usr/bin/python3") == host_program.program("/usr/bin/python3")
    assert host_program.program("/usr/bin/python3").startswith(b"#!/usr/bin/python3\n")


@pytest.mark.parametrize("rootless", [False, True], ids=["root", "user"])
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path, rootless: bool) -> None:
    place = Registry(str(tmp_path / 'a $HOME 100% "quoted"'))
    Path(place.directory).mkdir()
    texts = host_program.units(place, "/bin/sh", rootless, reaper=True)
    assert sorted(texts) == sorted([SERVICE, REAPER, TIMER])
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    command = [
        "systemd-analyze",
        *(["--user"] if rootless else []),
        "verify",
        *(str(tmp_path / name) for name in texts),
    ]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_LOG_LEVEL": "warning"}
    done = subprocess.run(command, text=True, capture_output=True, check=False, env=environ, timeout=60)
    assert (done.returncode, [line for line in done.stderr.splitlines() if str(tmp_path) in line]) == (0, [])


def test_a_unit_never_ends_what_it_started() -> None:
    """Where Podman manages cgroups itself, conmon is in the unit's."""
    text = host_program.units(Registry("/x"), "/usr/bin/python3", False, False)[SERVICE]
    assert {"KillMode=process", "RemainAfterExit=yes", "TimeoutStartSec=infinity"} <= set(text.splitlines())
    assert "ExecStart=/usr/bin/python3 -I /x/openshell-restart start" in text


def test_after_a_power_cut_the_sidecar_starts_before_the_agent(sandbox: Host) -> None:
    register(sandbox)
    power_cut(sandbox)
    before = len(started(sandbox))
    done = run(sandbox, "start")
    assert (done.returncode, done.stdout, done.stderr) == (0, "demo: started\n", "")
    assert started(sandbox)[before:] == [NAMES.proxy, NAMES.agent]
    again = run(sandbox, "start")
    assert (again.stdout, len(started(sandbox))) == ("demo: runs\n", before + 2)


def test_the_agent_does_not_start_on_the_word_of_a_sidecar_of_before(sandbox: Host) -> None:
    register(sandbox)
    power_cut(sandbox)
    sandbox.change("silent_sidecar", True)
    assert Path(sandbox.state["volumes"][NAMES.tls_volume]["Mountpoint"], ".ready").exists()
    done = run(sandbox, "start", "--ready", "0")
    assert done.returncode == 1
    assert "demo: sidecar openshell-proxy-demo is not ready" in done.stderr
    assert started(sandbox)[-1] == NAMES.proxy
    assert not Path(sandbox.state["volumes"][NAMES.tls_volume]["Mountpoint"], ".ready").exists()


def test_a_network_connected_by_hand_is_gone_before_the_agent_starts(sandbox: Host) -> None:
    register(sandbox)
    power_cut(sandbox)
    sandbox.direct.network_connect("openshell", NAMES.agent)
    assert run(sandbox, "start").returncode == 0
    order = [call[:2] for call in sandbox.calls() if call[-1] == NAMES.agent and call[0] in ("network", "start")]
    assert order[-2:] == [["network", "disconnect"], ["start", NAMES.agent]]


def test_a_sandbox_that_was_stopped_stays_so_until_it_is_started(sandbox: Host) -> None:
    register(sandbox)
    sandbox.module("sandbox_state", sandbox_name="demo", state="stopped")
    before = len(started(sandbox))
    assert (run(sandbox, "start").stdout, len(started(sandbox))) == ("", before)
    sandbox.module("sandbox_state", sandbox_name="demo", state="started")
    power_cut(sandbox)
    assert run(sandbox, "start").stdout == "demo: started\n"
    sandbox.module("sandbox_state", sandbox_name="demo", state="stopped")
    assert register(sandbox)["changed"]  # create_sandbox.yml starts it
    assert run(sandbox, "start").stdout == "demo: started\n"


def test_one_that_does_not_come_back_is_left_alone(sandbox: Host) -> None:
    register(sandbox, restart=False, reaper=True)
    power_cut(sandbox)
    assert (run(sandbox, "start").stdout, run(sandbox, "start").returncode) == ("", 0)


def test_a_broken_sandbox_does_not_keep_the_others_down(sandbox: Host) -> None:
    register(sandbox)
    power_cut(sandbox)
    other = Registration(restart=True, reaper=False, executable=sandbox.executable)
    registry(sandbox).write("half", other)
    registry(sandbox).write("gone", other)
    Path(registry(sandbox).directory, "sandboxes", "broken.json").write_text("{half of one")
    sandbox.direct.ensure_internal_network(
        "openshell-sbx-half", {"openshell.managed": "true", "openshell.sandbox": "half", "openshell.id": "half"}
    )
    done = run(sandbox, "start")
    assert (done.returncode, done.stdout) == (1, "demo: started\n")
    assert done.stderr == "half: its agent or its sidecar does not exist\n"
    assert "gone" not in registry(sandbox).names()


def test_an_interrupted_replacement_is_finished_first(sandbox: Host) -> None:
    register(sandbox)
    power_cut(sandbox)
    sandbox.direct.run(["rename", NAMES.agent, NAMES.agent + "-replaced"])
    assert run(sandbox, "start").returncode == 0
    assert sandbox.state["containers"][NAMES.agent]["State"]["Status"] == "running"


def ended(directory: Path, **state: Any) -> Any:
    """A container of which Podman does not know yet that nobody is there any more."""
    config = directory / "config.json"
    namespaces = [{"type": "pid"}, {"type": "network", "path": str(directory / "namespace")}]
    config.write_text(json.dumps({"linux": {"namespaces": namespaces}}))
    found = {"Status": "running", "Pid": 2**22 + 1, "ConmonPid": 2**22 + 2, **state}
    return {"Id": "c0ffee", "State": found, "OCIConfigPath": str(config)}


@pytest.fixture
def exits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "exits"
    directory.mkdir()
    monkeypatch.setattr(lifecycle, "exit_directory", lambda: str(directory))
    return directory


@pytest.mark.parametrize("status", ["running", "paused", "stopping"])
def test_podman_is_told_of_the_end_that_nobody_told_it_of(
    exits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    ran: list[Names] = []
    monkeypatch.setattr(lifecycle.os, "geteuid", lambda: 0)
    monkeypatch.setattr(lifecycle.subprocess, "run", lambda command, **more: ran.append(command))
    assert lifecycle.bury(ended(tmp_path, Status=status))
    assert (exits / "c0ffee").read_text() == "137"
    assert ran == [["unshare", f"--net={tmp_path}/namespace", "true"]]


@pytest.mark.parametrize(
    "state",
    [{"Status": "exited"}, {"Status": "created"}, {"Pid": os.getpid()}, {"ConmonPid": os.getpid()}],
    ids=["exited", "created", "runs", "watched"],
)
def test_nothing_is_told_of_one_that_lives_or_has_ended_as_it_should(exits: Path, tmp_path: Path, state: Any) -> None:
    assert not lifecycle.bury(ended(tmp_path, **state))
    assert list(exits.iterdir()) == [] and not (tmp_path / "namespace").exists()


def test_a_process_that_ended_and_waits_for_its_parent_does_not_live() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{child.pid}/stat").exists() and not lifecycle.lives(child.pid)
    assert lifecycle.lives(os.getpid()) and not lifecycle.lives(0)


def test_an_address_that_was_not_given_back_is_asked_for_once_more(sandbox: Host) -> None:
    register(sandbox)
    power_cut(sandbox)
    sandbox.fail(f"start {NAMES.agent}", "Error: IPAM error: requested ip address is already allocated")
    assert run(sandbox, "start").stdout == "demo: started\n"
    power_cut(sandbox)
    sandbox.fail(f"start {NAMES.agent}", "Error: out of order")
    done = run(sandbox, "start")
    assert (done.returncode, done.stderr) == (1, "demo: podman start failed (125): out of order\n")


def belongings(host: Host) -> set[str]:
    state = host.state
    return {name for kind in ("containers", "networks", "volumes") for name in state[kind]}


def test_what_a_removed_agent_leaves_goes_but_the_workspace(sandbox: Host) -> None:
    sandbox.direct.ensure_volume(NAMES.workspace_volume, NAMES.labels())
    register(sandbox, reaper=True)
    before = belongings(sandbox)
    assert run(sandbox, "reap", "--grace", "0").stdout == ""
    sandbox.direct.remove_container(NAMES.agent)
    assert run(sandbox, "reap").returncode == 0  # seen to be missing; somebody may be making it anew
    assert belongings(sandbox) == before - {NAMES.agent}
    done = run(sandbox, "reap", "--grace", "0")
    assert done.returncode == 0
    assert f"demo: removed the container {NAMES.proxy}" in done.stdout
    assert belongings(sandbox) == {NAMES.workspace_volume}
    assert not Path(registry(sandbox).directory).exists()  # it was the last one
    assert [path for path in (sandbox.directory / "units").rglob("*") if not path.is_dir()] == []


@pytest.mark.parametrize("how", ["replaced", "stopped", "unwatched", "unregistered"])
def test_what_is_no_dead_agents_stays(sandbox: Host, how: str) -> None:
    if how != "unregistered":  # as one whose creation has not come so far yet
        register(sandbox, reaper=how != "unwatched")
    else:
        registry(sandbox).write("other", Registration(restart=True, reaper=False, executable=sandbox.executable))
        Path(registry(sandbox).program).write_bytes(host_program.program(sys.executable))
    if how == "replaced":
        sandbox.direct.run(["rename", NAMES.agent, NAMES.agent + "-replaced"])
    elif how == "stopped":
        sandbox.direct.stop(NAMES.agent)
    else:
        sandbox.direct.remove_container(NAMES.agent)
    before = belongings(sandbox)
    for count in range(2):
        assert run(sandbox, "reap", "--grace", "0").returncode == 0, count
    assert belongings(sandbox) == before


def test_an_agent_that_is_back_is_missed_anew_the_next_time(sandbox: Host) -> None:
    register(sandbox, reaper=True)
    place = registry(sandbox)
    assert place.missing_for("demo", True) == 0
    os.utime(Path(place.directory, "missing", "demo"), (0, 0))
    assert place.missing_for("demo", True) > 1000
    assert run(sandbox, "reap").returncode == 0
    assert place.missing_for("demo", True) == 0


def test_a_registration_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Registry(str(tmp_path))
    first = Registration(restart=True, reaper=False, executable="/usr/bin/podman")
    place.write("demo", first)
    monkeypatch.setattr(os, "replace", lambda source, target: (_ for _ in ()).throw(OSError("power cut")))
    with contextlib.suppress(OSError):
        place.write("demo", Registration(restart=False, reaper=True, executable="x"))
    assert place.all() == {"demo": first}
    assert os.listdir(tmp_path / "sandboxes") == ["demo.json"]
    assert json.loads((tmp_path / "sandboxes" / "demo.json").read_text())["restart"] is True
