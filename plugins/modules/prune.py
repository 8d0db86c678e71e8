#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: prune
short_description: Remove what belongs to no sandbox that is wanted
version_added: 0.1.0
description:
  - Removes containers, volumes, secrets and networks with our labels whose sandbox is not wanted, containers that a
    finished replacement had set aside, and images built here that nothing needs.
  - A sandbox is wanted when it is among O(sandboxes); where that is not given, when it has an agent and a sidecar.
  - A sandbox whose agent runs stays, unless O(running); a workspace stays, unless O(workspaces).
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandboxes:
    description: Names of the sandboxes that this host shall have.
    type: list
    elements: str
  running:
    description: Whether a sandbox goes that is not wanted although its agent runs.
    type: bool
    default: false
  workspaces:
    description: Whether the workspaces of sandboxes that are not wanted, or are gone already, go too.
    type: bool
    default: false
  images:
    description: Names of built images that stay although no container uses them.
    type: list
    elements: str
    default: []
  stop_timeout:
    description: Seconds between SIGTERM and SIGKILL for each container.
    type: int
    default: 5
notes:
  - A sandbox that is just being created looks like an interrupted creation. Do not prune a host meanwhile.
seealso:
  - module: openshell.sandbox.sandbox_resources
  - module: containers.podman.podman_prune
"""

EXAMPLES = r"""
- name: Keep two sandboxes
  openshell.sandbox.prune:
    sandboxes: [frontend, backend]
"""

RETURN = r"""
removed:
  description: What was removed, or would be in check mode, in order.
  returned: success
  type: list
  elements: dict
kept:
  description: Sandboxes that stay, each with the reason.
  returned: success
  type: list
  elements: dict
workspaces:
  description: Volumes that stay although their sandbox does not.
  returned: success
  type: list
  elements: str
"""

from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.base_image import IMAGES_LOCK
from ansible_collections.openshell.sandbox.plugins.module_utils.module import client, diff, new_module, run_module
from ansible_collections.openshell.sandbox.plugins.module_utils.prune import (
    ORDER,
    belongings,
    image_ids_in_use,
    unused_images,
    why_kept,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.removal import (
    Item,
    release_shared,
    remove,
    shared_items,
)


def converge(module: AnsibleModule) -> Dict[str, Any]:
    params = module.params
    podman = client(module)
    kept: List[Dict[str, str]] = []
    workspaces: List[str] = []
    items: List[Item] = []
    for one in belongings(podman):
        reason = why_kept(one, params["sandboxes"], params["running"])
        if reason:
            kept.append({"sandbox": one.name, "why": reason})
            items += one.leftovers
            continue
        going = [item for item in one.items if params["workspaces"] or item != one.workspace]
        workspaces += [item.name for item in one.items if item not in going]
        items += going
    items.sort(key=lambda item: ORDER.index(item.kind))
    if module.check_mode:
        removed = items + shared_items(podman, items)
        removed += unused_images(podman.images(), image_ids_in_use(podman, items), params["images"])
    else:
        removed = remove(podman, items, params["stop_timeout"]) + release_shared(podman)
        with podman.lock(IMAGES_LOCK):
            images = unused_images(podman.images(), image_ids_in_use(podman, ()), params["images"])
            removed += remove(podman, images, params["stop_timeout"])
    return {
        "changed": bool(removed),
        "removed": [item.as_dict() for item in removed],
        "kept": kept,
        "workspaces": workspaces,
        "diff": diff({"present": [f"{item.kind} {item.name}" for item in removed]}, {"present": []}, "leftovers"),
    }


def main() -> None:
    module = new_module(
        {
            "sandboxes": {"type": "list", "elements": "str"},
            "running": {"type": "bool", "default": False},
            "workspaces": {"type": "bool", "default": False},
            "images": {"type": "list", "elements": "str", "default": []},
            "stop_timeout": {"type": "int", "default": 5},
        }
    )
    run_module(module, lambda: converge(module))


if __name__ == "__main__":
    main()
