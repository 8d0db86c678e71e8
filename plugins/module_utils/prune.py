# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What belongs to no sandbox that is wanted: leftovers of interrupted runs, sandboxes nobody declares, old images."""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Sequence

from ansible_collections.openshell.sandbox.plugins.module_utils.podman import (
    Json,
    Podman,
    container_labels,
    is_running,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.removal import Item
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import (
    LABEL_ID,
    LABEL_MANAGED,
    LABEL_SANDBOX,
    REPLACED_SUFFIX,
    SandboxNames,
    is_ours,
)

BUILT = tuple(f"localhost/openshell-{kind}:" for kind in ("proxy", "agent", "base"))
ORDER = ("container", "volume", "secret", "network")


@dataclasses.dataclass
class Belongings:
    """All objects whose labels name one sandbox; ``id`` is that of the label, which names volumes and network."""

    name: str
    id: str
    items: List[Item] = dataclasses.field(default_factory=list)
    agent_running: bool = False

    @property
    def names(self) -> SandboxNames:
        return SandboxNames(self.name, self.id)

    def has(self, container: str) -> bool:
        return Item("container", container) in self.items

    @property
    def complete(self) -> bool:
        return self.has(self.names.agent) and self.has(self.names.proxy)

    @property
    def workspace(self) -> Item:
        return Item("volume", self.names.workspace_volume)

    @property
    def leftovers(self) -> List[Item]:
        """Containers set aside by a replacement whose new container stands."""
        both = (self.names.agent, self.names.proxy)
        return [
            Item("container", one + REPLACED_SUFFIX)
            for one in both
            if self.has(one) and self.has(one + REPLACED_SUFFIX)
        ]


def belongings(podman: Podman) -> List[Belongings]:
    """Everything on the host whose labels name a sandbox, by sandbox, each with its items in the order of removal."""
    found: Dict[str, Belongings] = {}

    def take(kind: str, name: str, labels: Dict[str, str]) -> None:
        sandbox = labels.get(LABEL_SANDBOX)
        if sandbox and is_ours(labels):
            one = found.setdefault(sandbox, Belongings(sandbox, labels.get(LABEL_ID) or sandbox))
            one.items.append(Item(kind, name))

    label = f"{LABEL_MANAGED}=true"
    containers = podman.containers(podman.container_names(label))  # sorted: agents before their sidecars
    for entry in containers:
        take("container", entry["Name"], container_labels(entry))
    for entry in podman.volumes(label):
        take("volume", entry["Name"], entry.get("Labels") or {})
    for name, labels in podman.secret_names():
        take("secret", name, labels)
    for entry in podman.networks(label):
        take("network", entry["name"], entry.get("labels") or {})
    running = {entry["Name"] for entry in containers if is_running(entry)}
    for one in found.values():
        one.agent_running = one.names.agent in running
    return [found[key] for key in sorted(found)]


def why_kept(one: Belongings, declared: Sequence[str] | None, running: bool) -> str:
    """Why a sandbox stays, or "". *declared* None: nobody says which are wanted, so every complete one is.

    A running agent may be somebody at work, so it stays unless *running* says otherwise. A sidecar alone is nobody.
    """
    if declared is None and one.complete:
        return "complete"
    if one.name in (declared or ()):
        return "declared"
    return "its agent runs" if one.agent_running and not running else ""


def unused_images(images: Sequence[Json], used: Sequence[str], keep: Sequence[str]) -> List[Item]:
    """Names of images that were built here and that neither a container (*used*: ids) nor *keep* (names) needs.

    One that lost its name is known by its label and goes by its id. Bases come last: others are built on them.
    """
    removable = [one for one in images if one["Id"] not in used and not one.get("ReadOnly")]
    named = [
        name for one in removable for name in one.get("Names") or [] if name.startswith(BUILT) and name not in keep
    ]
    nameless = [one["Id"] for one in removable if not one.get("Names") and is_ours(one.get("Labels"))]
    return [
        Item("image", name) for name in [*sorted(named, key=lambda name: (name.startswith(BUILT[-1]), name)), *nameless]
    ]


def image_ids_in_use(podman: Podman, without: Sequence[Item]) -> List[str]:
    """Ids of the images of all containers, also those of other people and of builds, but for *without*."""
    rows = podman.json(["ps", "--all", "--external", "--format", "json"])
    return [row["ImageID"] for row in rows if Item("container", row["Names"][0]) not in without]
