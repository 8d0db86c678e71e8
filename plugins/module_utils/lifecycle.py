# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Starting and stopping a sandbox that exists: the agent never runs before its sidecar is ready, nor after it."""

from __future__ import annotations

import contextlib
import os
from typing import Dict, Sequence

from ansible_collections.openshell.sandbox.plugins.module_utils.container_converge import repair
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import (
    Json,
    Podman,
    container_is_ours,
    is_running,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.readiness import volume_path, wait_ready
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
    networks = wanted_networks(names)
    if names.proxy in which:
        if not is_running(podman.container(names.proxy)):
            forget_readiness(podman, names)
        repair(podman, names.proxy, networks[names.proxy], True)
    wait_ready(podman, names.proxy, names.tls_volume, timeout)
    if names.agent in which:
        repair(podman, names.agent, networks[names.agent], True)


def stop(podman: Podman, names: SandboxNames, which: Sequence[str]) -> None:
    networks = wanted_networks(names)
    for name in [name for name in (names.agent, names.proxy) if name in which]:
        repair(podman, name, networks[name], False)


def forget_readiness(podman: Podman, names: SandboxNames) -> None:
    """Remove the word of a sidecar of before. Two boots are alike, so its start could be at the same tick as the new one's.

    It belongs to the sidecar's user, so without root this is left to the sidecar, which does it first of all.
    """
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(volume_path(podman, names.tls_volume), ".ready"))
