# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sentinel counts when it is the living sidecar's own, and waiting ends with a reason."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils import readiness
from ansible_collections.openshell.sandbox.plugins.module_utils.readiness import (
    NotReady,
    process_started_ticks,
    read_sentinel,
    sidecar_ready,
    wait_ready,
)
from host import NAMES, Host, make_sandbox


@pytest.fixture
def sandbox(host: Host) -> Host:
    make_sandbox(host)
    return host


def sentinel(host: Host) -> Path:
    return Path(host.state["volumes"][NAMES.tls_volume]["Mountpoint"]) / ".ready"


def rewrite(host: Host, **other: Any) -> None:
    sentinel(host).write_text(json.dumps({**json.loads(sentinel(host).read_text()), **other}))


def ready(host: Host) -> dict[str, Any] | None:
    return sidecar_ready(host.direct, NAMES.proxy, str(sentinel(host).parent))


def wait(host: Host, timeout: float = 0.2, **more: Any) -> dict[str, Any]:
    return wait_ready(host.direct, NAMES.proxy, NAMES.tls_volume, timeout, **more)


class Clock:
    """Time that goes by in pauses only; after *seconds*, what is *due* then happens."""

    def __init__(self, due: dict[float, Callable[[], Any]] | None = None) -> None:
        self.seconds = 0.0
        self.due = due or {}

    def now(self) -> float:
        return self.seconds

    def pause(self, seconds: float) -> None:
        self.seconds += seconds
        for moment in [one for one in self.due if one <= self.seconds]:
            self.due.pop(moment)()


def test_the_living_sidecars_sentinel_counts(sandbox: Host) -> None:
    found = ready(sandbox)
    assert found is not None
    assert found == wait(sandbox)
    assert found["started_ticks"] == process_started_ticks(sandbox.state["containers"][NAMES.proxy]["State"]["Pid"])


def test_another_processs_sentinel_does_not(sandbox: Host) -> None:
    rewrite(sandbox, started_ticks=process_started_ticks(os.getpid()))
    assert ready(sandbox) is None
    with pytest.raises(NotReady, match="is not ready after 0 seconds"):
        wait(sandbox)


@pytest.mark.parametrize("text", ["", '{"started_ticks": 1', "[]", "null", '"x"', "\xff"])
def test_half_a_sentinel_does_not(sandbox: Host, text: str) -> None:
    sentinel(sandbox).write_bytes(text.encode("latin-1"))
    assert read_sentinel(str(sentinel(sandbox).parent)) is None
    assert ready(sandbox) is None


def test_no_sentinel_no_volume_no_sidecar(sandbox: Host) -> None:
    assert sidecar_ready(sandbox.direct, "absent", str(sentinel(sandbox).parent)) is None
    assert sandbox.direct.volume_path("absent") == ""
    sentinel(sandbox).unlink()
    assert ready(sandbox) is None


def test_a_stopped_sidecars_sentinel_does_not(sandbox: Host) -> None:
    sandbox.direct.run(["stop", NAMES.proxy])
    assert ready(sandbox) is None


def test_a_process_that_is_gone_and_a_sentinel_without_its_start_do_not_agree(sandbox: Host) -> None:
    """Both are nothing then; nothing is no proof."""
    rewrite(sandbox, started_ticks=None)
    frozen = sandbox.state["containers"][NAMES.proxy]
    frozen["State"]["Pid"] = 2**22 + 1

    class Late(type(sandbox.direct)):  # type: ignore[misc]
        def container(self, name: str) -> dict[str, Any]:
            return dict(frozen)

    assert process_started_ticks(2**22 + 1) is None
    assert sidecar_ready(Late(), NAMES.proxy, str(sentinel(sandbox).parent)) is None


def test_a_process_name_with_spaces_and_parentheses_is_no_riddle() -> None:
    """Field 22 counts from the last parenthesis: proc(5)."""
    pid = os.fork()
    if pid == 0:
        Path("/proc/self/comm").write_text("a) b (c")
        Path("/proc/self/oom_score_adj").read_text()
        threading.Event().wait(30)
        os._exit(0)
    try:
        for _ in range(1000):
            if Path(f"/proc/{pid}/comm").read_text() == "a) b (c\n":
                break
            threading.Event().wait(0.01)
        ticks = process_started_ticks(pid)
        assert ticks is not None
        assert ticks >= (process_started_ticks(os.getpid()) or 0) > 0
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_waiting_ends_when_the_sentinel_comes(sandbox: Host) -> None:
    text = sentinel(sandbox).read_text()
    sentinel(sandbox).unlink()
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            sentinel(sandbox).write_text(text)

    assert wait(sandbox, 30, pause=pause) == json.loads(text)
    assert pauses == [readiness.POLL_INTERVAL] * 2


def test_many_that_wait_leave_the_host_to_their_sidecars(sandbox: Host) -> None:
    """The file is looked at often and Podman is asked rarely; not at all for the sentinel of a process that is known."""
    text = sentinel(sandbox).read_text()
    sentinel(sandbox).unlink()
    clock = Clock({25.0: lambda: sentinel(sandbox).write_text(text)})
    before = len(sandbox.calls("container inspect"))
    wait(sandbox, 30, now=clock.now, pause=clock.pause)
    assert clock.seconds < 25.1
    assert 10 < len(sandbox.calls("container inspect")) - before < 20


def test_waiting_ends_soon_after_the_sidecar(sandbox: Host) -> None:
    sentinel(sandbox).unlink()
    clock = Clock({20.0: lambda: sandbox.direct.remove_container(NAMES.proxy)})
    with pytest.raises(NotReady, match="does not exist"):
        wait(sandbox, 30, now=clock.now, pause=clock.pause)
    assert clock.seconds < 20.1 + readiness.LONGEST_LOOK


def test_the_last_look_is_at_the_end(sandbox: Host) -> None:
    sentinel(sandbox).unlink()
    clock = Clock({29.5: lambda: sandbox.direct.remove_container(NAMES.proxy)})
    with pytest.raises(NotReady, match="does not exist"):
        wait(sandbox, 30, now=clock.now, pause=clock.pause)


def test_waiting_goes_on_until_the_content_is_right(sandbox: Host) -> None:
    asked: list[str] = []

    def accept(found: dict[str, Any]) -> bool:
        asked.append(found["policy_error"])
        return len(asked) == 3

    wait(sandbox, 30, accept=accept, pause=lambda seconds: None)
    assert len(asked) == 3


def test_waiting_has_an_end_and_tells_the_last_words(sandbox: Host) -> None:
    sentinel(sandbox).unlink()
    (sandbox.directory / "logs" / NAMES.proxy).write_text("starting\ncannot bind\n")
    clock = Clock()
    with pytest.raises(NotReady) as caught:
        wait(sandbox, 30, now=clock.now, pause=clock.pause)
    words = f"sidecar {NAMES.proxy} is not ready after 30 seconds; its last words: starting | cannot bind"
    assert str(caught.value).startswith(words)
    assert 30 <= clock.seconds < 30.1


def test_an_ended_sidecar_is_not_waited_for(sandbox: Host) -> None:
    sandbox.direct.run(["stop", NAMES.proxy])
    sandbox.change("containers", NAMES.proxy, "State", "ExitCode", 3)
    with pytest.raises(NotReady, match="ended with status 3; its last words"):
        wait(sandbox, 600, pause=lambda seconds: pytest.fail("waited"))


def test_one_that_podman_restarts_is_waited_for(sandbox: Host) -> None:
    sandbox.direct.run(["stop", NAMES.proxy])
    sandbox.change("containers", NAMES.proxy, "HostConfig", "RestartPolicy", "Name", "on-failure")
    clock = Clock({readiness.POLL_INTERVAL: lambda: sandbox.direct.run(["start", NAMES.proxy])})
    wait(sandbox, 600, now=clock.now, pause=clock.pause)
    assert clock.seconds < 2 * readiness.FIRST_LOOK


def test_a_sidecar_that_does_not_exist_is_not_waited_for(host: Host) -> None:
    host.direct.ensure_volume(NAMES.tls_volume, {})
    with pytest.raises(NotReady, match="does not exist; its last words: none"):
        wait(host, 600, pause=lambda seconds: pytest.fail("waited"))
