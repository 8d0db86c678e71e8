# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Starting and stopping a sandbox that exists: the agent never runs before its sidecar is ready, nor after it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from typing import Dict, Sequence

from ansible_collections.openshell.sandbox.plugins.module_utils.container_converge import repair
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import (
    Json,
    Podman,
    PodmanError,
    container_is_ours,
    is_running,
    runtime_directory,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.readiness import wait_ready
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import BRIDGE_NETWORK, SandboxNames


def wanted_networks(names: SandboxNames) -> Dict[str, Dict[str, str]]:
    """Container → the networks on which it must be, and no other."""
    return {names.proxy: {names.network: "", BRIDGE_NETWORK: ""}, names.agent: {names.network: ""}}


def both(podman: Podman, names: SandboxNames) -> Dict[str, Json] | None:
    """The two containers as inspected, by name; None when they are not both there and ours."""
    found = {
        entry["Name"]: entry for entry in podman.containers([names.proxy, names.agent]) if container_is_ours(entry)
    }
    return found if len(found) == 2 else None


def start(podman: Podman, names: SandboxNames, which: Sequence[str], timeout: float) -> None:
    """Sidecar, its word that it is ready, agent; *which* of the two containers are not as they must be.

    *timeout* in seconds. Raises NotReady, after which the agent was not started, and PodmanError.
    """
    if names.proxy in which:
        if not alive(podman.container(names.proxy)):
            forget_readiness(podman, names)
        _start(podman, names, names.proxy)
    wait_ready(podman, names.proxy, names.tls_volume, timeout)
    if names.agent in which:
        _start(podman, names, names.agent)


def _start(podman: Podman, names: SandboxNames, name: str) -> None:
    if bury(podman.container(name) or {}):
        # Else Podman starts it in the namespace of before, which has no network any more. So does the restart policy,
        # which cleaning up asks; what it started is stopped again.
        podman.run(["container", "cleanup", name])
        podman.run(["stop", "--time", "2", name])
    networks = wanted_networks(names)[name]
    try:
        repair(podman, name, networks, True)
    except PodmanError as error:
        if "IPAM error" not in error.stderr:
            raise
        repair(podman, name, networks, True)  # the failure made Podman give back the address of before


def alive(inspected: Json | None) -> bool:
    """Whether the container's first process is there, whatever Podman says."""
    return is_running(inspected) and lives((inspected or {})["State"].get("Pid") or 0)


def lives(pid: int) -> bool:
    """Whether there is such a process, other than one that has ended and waits for its parent: proc(5), stat, field 3."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as handle:
            return handle.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return False


def bury(inspected: Json) -> bool:
    """Have Podman see that a container has ended whose processes were killed together with the one that watches it.

    That one, conmon, would have left a file with the exit status; without it Podman holds the container for running
    until the next boot, and can neither stop nor start it. Its network namespace, gone as well perhaps, must be there
    when Podman takes it down, or its address stays taken. True where that was needed.
    """
    state = inspected.get("State") or {}
    told = state.get("Status") in ("running", "paused", "stopping")
    pids = [state.get(key) or 0 for key in ("Pid", "ConmonPid")]
    directory = exit_directory()
    if not told or any(lives(pid) for pid in pids) or not os.path.isdir(directory):
        return False
    _restore_namespace(inspected)
    with open(os.path.join(directory, inspected["Id"]), "w", encoding="ascii") as handle:
        handle.write("137")  # 128 + SIGKILL
    return True


def exit_directory() -> str:
    """Where conmon leaves exit statuses: libpod's default temporary directory."""
    return os.path.join(runtime_directory(), "libpod" if os.geteuid() == 0 else "libpod/tmp", "exits")


def _restore_namespace(inspected: Json) -> None:
    """An empty network namespace where the container's was, if it has a path and that is gone. Only root can."""
    try:
        with open(inspected.get("OCIConfigPath") or "", encoding="utf-8") as handle:
            namespaces = json.load(handle)["linux"]["namespaces"]
    except (OSError, ValueError, KeyError):
        return
    path = next((one.get("path", "") for one in namespaces if one.get("type") == "network"), "")
    if path and not os.path.exists(path) and os.geteuid() == 0:
        with open(path, "wb"):
            pass
        subprocess.run(["unshare", f"--net={path}", "true"], capture_output=True, check=False)


def stop(podman: Podman, names: SandboxNames, which: Sequence[str]) -> None:
    networks = wanted_networks(names)
    for name in [name for name in (names.agent, names.proxy) if name in which]:
        repair(podman, name, networks[name], False)


def forget_readiness(podman: Podman, names: SandboxNames) -> None:
    """Remove the word of a sidecar of before. Two boots are alike, so its start could be at the same tick as the new one's.

    It belongs to the sidecar's user, so without root this is left to the sidecar, which does it first of all.
    """
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(podman.volume_path(names.tls_volume), ".ready"))
