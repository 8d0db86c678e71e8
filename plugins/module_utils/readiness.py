# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sidecar's own word: the sentinel ``.ready`` on the volume that it shares with the agent.

It is JSON: ``started_ticks`` (field 22 of proc(5)'s stat, so that one from before a crash or a reboot is told apart
from the living process's), ``policy_digest``, ``upstream_ca_digest``, ``policy_error``, ``generation``, ``version``.
"""

from __future__ import annotations

import json
import os
import time
from typing import Callable

from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Json, Podman, is_running

POLL_INTERVAL = 0.05
# Podman is asked less and less often: its answer costs as much as a good part of the sidecar's own start, and where many
# wait at the same time they would keep the sidecars from what they wait for.
FIRST_LOOK = 0.2
LONGEST_LOOK = 2.0


class NotReady(Exception):
    """The sidecar did not become ready; the message tells the state and its last log lines."""


def process_started_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks after boot: proc(5), stat, field 22."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as handle:
            return int(handle.read().rsplit(")", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def read_sentinel(directory: str) -> Json | None:
    """The sentinel's content, or None while there is none (or half of one)."""
    try:
        with open(os.path.join(directory, ".ready"), encoding="utf-8") as handle:
            found = json.load(handle)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def sidecar_ready(podman: Podman, container: str, directory: str) -> Json | None:
    """The sentinel if it is the running sidecar's, else None."""
    return _said_by(podman.container(container), directory)


def _said_by(inspected: Json | None, directory: str) -> Json | None:
    """The sentinel if it is of the process that *inspected* names, which is alive then: both tell when it started."""
    if inspected is None or not is_running(inspected):
        return None
    sentinel = read_sentinel(directory)
    ticks = process_started_ticks(inspected["State"]["Pid"])
    if sentinel is None or ticks is None or sentinel.get("started_ticks") != ticks:
        return None
    return sentinel


def wait_ready(
    podman: Podman,
    container: str,
    volume: str,
    timeout: float,
    accept: Callable[[Json], bool] = lambda sentinel: True,
    now: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Json:
    """Wait until the sidecar's sentinel satisfies *accept*; *timeout* in seconds. Raises :class:`NotReady`."""
    directory = podman.volume_path(volume)
    deadline = now() + timeout
    interval = FIRST_LOOK
    look_at = min(now() + interval, deadline)
    inspected = podman.container(container)
    while True:
        sentinel = _said_by(inspected, directory)
        if sentinel is not None and accept(sentinel):
            return sentinel
        ended = _ended(inspected) if sentinel is None else ""
        if ended or now() >= deadline:
            raise NotReady(_report(podman, container, ended or f"is not ready after {timeout:.0f} seconds"))
        pause(POLL_INTERVAL)
        if now() >= look_at:  # it may have ended, or have been started again
            podman.look_again("container", name=container)
            inspected = podman.container(container)
            interval = min(2 * interval, LONGEST_LOOK)
            look_at = min(now() + interval, deadline)


def _ended(inspected: Json | None) -> str:
    """Why waiting on is useless, or "". A restarting sidecar may still come up."""
    if inspected is None:
        return "does not exist"
    state = inspected.get("State") or {}
    if state.get("Status") == "exited" and not (inspected.get("HostConfig") or {}).get("RestartPolicy", {}).get("Name"):
        return f"ended with status {state.get('ExitCode')}"
    return ""


def _report(podman: Podman, container: str, why: str) -> str:
    lines = podman.logs(container)
    return f"sidecar {container} {why}; its last words: " + (" | ".join(lines) if lines else "none")
