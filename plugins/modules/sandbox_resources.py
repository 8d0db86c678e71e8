#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sandbox_resources
short_description: Remove what belongs to a sandbox, in reverse order
version_added: 0.1.0
description:
  - Removes agent, sidecar, volumes, secret and network of one sandbox, and what all sandboxes share (bridge, authority)
    when the last one goes.
  - Only objects with our label are touched. Removing twice is fine.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of the sandbox.
    type: str
    required: true
  sandbox_id:
    description: Id of the sandbox; taken from the labels of what exists, else the name.
    type: str
  state:
    description: What becomes of them.
    type: str
    choices: [absent]
    default: absent
  only:
    description: Remove these objects only (what a failed run had made), as lists of C(kind) and C(name).
    type: list
    elements: dict
    suboptions:
      kind:
        description: Kind of the object.
        type: str
        choices: [container, volume, secret, network]
        required: true
      name:
        description: Its name.
        type: str
        required: true
  keep_workspace:
    description: Whether the workspace volume stays.
    type: bool
    default: false
  stop_timeout:
    description: Seconds between SIGTERM and SIGKILL for each container.
    type: int
    default: 5
seealso:
  - module: openshell.sandbox.prune
"""

EXAMPLES = r"""
- name: Remove a sandbox and everything of it
  openshell.sandbox.sandbox_resources:
    sandbox_name: demo
    state: absent
"""

RETURN = r"""
removed:
  description: What was removed, or would be in check mode, in order.
  returned: success
  type: list
  elements: dict
sidecar_log:
  description: The last lines of the sidecar that was removed.
  returned: success
  type: list
  elements: str
"""

import contextlib
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.module import client, diff, new_module, run_module
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman
from ansible_collections.openshell.sandbox.plugins.module_utils.removal import (
    Item,
    items_of,
    known_id,
    release_shared,
    remove,
    shared_items,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNames


def converge(module: AnsibleModule) -> Dict[str, Any]:
    """Remove it when nobody is about to make it; who undoes its own making (``only``) has its turn already."""
    podman = client(module)
    SandboxNames.of(module.params["sandbox_name"], module.params["sandbox_id"])  # refuse what can never be ours
    mine = module.check_mode or module.params["only"] is not None
    with contextlib.nullcontext() if mine else podman.lock(f"sandbox-{module.params['sandbox_name']}"):
        return take_apart(module, podman)


def take_apart(module: AnsibleModule, podman: Podman) -> Dict[str, Any]:
    params = module.params
    names = SandboxNames.of(params["sandbox_name"], params["sandbox_id"] or known_id(podman, params["sandbox_name"]))
    present = items_of(podman, names)
    if params["only"] is not None:
        wanted = [Item(entry["kind"], entry["name"]) for entry in params["only"]]
        present = [item for item in present if item in wanted]
    elif params["keep_workspace"]:
        present = [item for item in present if item.name != names.workspace_volume]
    sidecar_log = podman.logs(names.proxy, 10) if Item("container", names.proxy) in present else []
    if module.check_mode:
        removed = present + shared_items(podman, present)
    else:
        removed = remove(podman, present, params["stop_timeout"]) + release_shared(podman)
    listed = [item.as_dict() for item in removed]
    return {
        "changed": bool(removed),
        "removed": listed,
        "sidecar_log": sidecar_log,
        "diff": diff({"present": [f"{item.kind} {item.name}" for item in removed]}, {"present": []}, names.name),
    }


def main() -> None:
    module = new_module(
        {
            "sandbox_name": {"type": "str", "required": True},
            "sandbox_id": {"type": "str"},
            "state": {"type": "str", "choices": ["absent"], "default": "absent"},
            "only": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "kind": {
                        "type": "str",
                        "choices": ["container", "volume", "secret", "network"],
                        "required": True,
                    },
                    "name": {"type": "str", "required": True},
                },
            },
            "keep_workspace": {"type": "bool", "default": False},
            "stop_timeout": {"type": "int", "default": 5},
        }
    )
    run_module(module, lambda: converge(module))


if __name__ == "__main__":
    main()
