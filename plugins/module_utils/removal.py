# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Taking a sandbox apart: agent, sidecar, volumes, secret, network; then what no sandbox needs any more."""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Sequence

from ansible_collections.openshell.sandbox.plugins.module_utils.podman import (
    Podman,
    PodmanError,
    container_is_ours,
    container_labels,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import (
    AUTHORITY_SECRET,
    BRIDGE_NETWORK,
    LABEL_ID,
    LABEL_MANAGED,
    LABEL_SANDBOX,
    REPLACED_SUFFIX,
    SandboxNames,
    is_ours,
)


@dataclasses.dataclass(frozen=True)
class Item:
    """One Podman object: ``kind`` is container, volume, secret, network or image."""

    kind: str
    name: str

    def as_dict(self) -> Dict[str, str]:
        return dataclasses.asdict(self)


def known_id(podman: Podman, name: str) -> str:
    """The id that the sandbox *name* was made with, from the labels of whatever is left of it; else the name."""
    for found in podman.containers([f"openshell-agent-{name}", f"openshell-proxy-{name}"]):
        labels = container_labels(found)
        if labels.get(LABEL_SANDBOX) == name and labels.get(LABEL_ID):
            return labels[LABEL_ID]
    label = f"{LABEL_SANDBOX}={name}"
    for entry in [*podman.networks(label), *podman.volumes(label)]:
        labels = entry.get("labels") or entry.get("Labels") or {}
        if labels.get(LABEL_ID):
            return str(labels[LABEL_ID])
    return name


def items_of(podman: Podman, names: SandboxNames) -> List[Item]:
    """What exists of the sandbox and carries our label, in the order of removal."""
    containers = [name + suffix for name in (names.agent, names.proxy) for suffix in (REPLACED_SUFFIX, "")]
    found = {entry["Name"] for entry in podman.containers(containers) if container_is_ours(entry)}
    items = [Item("container", name) for name in containers if name in found]
    for volume in (names.workspace_volume, names.tls_volume, names.proxy_volume):
        entry = podman.volume(volume)
        if entry is not None and is_ours(entry.get("Labels")):
            items.append(Item("volume", volume))
    secret = podman.secret(names.authority_secret)
    if secret is not None and is_ours(secret["Spec"].get("Labels")):
        items.append(Item("secret", names.authority_secret))
    network = podman.network(names.network)
    if network is not None and is_ours(network.get("labels")):
        items.append(Item("network", names.network))
    return items


def remove(podman: Podman, items: List[Item], stop_timeout: int) -> List[Item]:
    """Remove *items*, all that can be even when one cannot; then raise the first error. Returns what went."""
    removed: List[Item] = []
    failure: PodmanError | None = None
    for item in items:
        try:
            if _remove_one(podman, item, stop_timeout):
                removed.append(item)
        except PodmanError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return removed


def _remove_one(podman: Podman, item: Item, stop_timeout: int) -> bool:
    if item.kind == "container":
        return podman.remove_container(item.name, stop_timeout)
    if item.kind == "volume":
        return podman.remove_volume(item.name)
    if item.kind == "secret":
        return podman.remove_secret(item.name)
    if item.kind == "image":
        return podman.remove_image(item.name)
    with podman.lock():
        return podman.remove_network(item.name)


def release_shared(podman: Podman) -> List[Item]:
    """Remove the bridge and the host's authority when no sandbox has a network any more.

    A sandbox being created has its network before it touches what is shared, and both happen under one lock.
    """
    with podman.lock():
        items = shared_items(podman, ())
        if Item("network", BRIDGE_NETWORK) in items:
            podman.remove_network(BRIDGE_NETWORK)
        if Item("secret", AUTHORITY_SECRET) in items:
            podman.remove_secret(AUTHORITY_SECRET)
    return items


def shared_items(podman: Podman, gone: Sequence[Item]) -> List[Item]:
    """What no sandbox needs any more when *gone* are gone: the bridge and the host's authority, or nothing."""
    managed = [entry["name"] for entry in podman.networks(f"{LABEL_MANAGED}=true")]
    if any(name != BRIDGE_NETWORK and Item("network", name) not in gone for name in managed):
        return []
    items = [Item("network", BRIDGE_NETWORK)] if BRIDGE_NETWORK in managed else []
    secret = podman.secret(AUTHORITY_SECRET)
    if secret is not None and is_ours(secret["Spec"].get("Labels")):
        items.append(Item("secret", AUTHORITY_SECRET))
    return items
