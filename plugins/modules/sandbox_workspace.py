#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sandbox_workspace
short_description: Copy one sandbox's workspace into another one's
version_added: 0.1.0
description:
  - Copies everything below C(/sandbox), with modes, links and the owners that count inside.
  - It is no comparison - what is copied is copied again the next time, and what is only in the target stays.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of the sandbox that gets it.
    type: str
    required: true
  source:
    description: Name of the sandbox that has it.
    type: str
    required: true
seealso:
  - module: openshell.sandbox.sandbox_snapshot
"""

EXAMPLES = r"""
- name: Have the same files
  openshell.sandbox.sandbox_workspace:
    sandbox_name: second
    source: first
"""

RETURN = r""" # """

from typing import Any, Dict, Tuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils import lifecycle
from ansible_collections.openshell.sandbox.plugins.module_utils.created_spec import Unreadable, described
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    diff,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman
from ansible_collections.openshell.sandbox.plugins.module_utils.removal import known_id
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNames
from ansible_collections.openshell.sandbox.plugins.module_utils.snapshot import copy_directory

WORKSPACE = "/sandbox"


def agent_of(podman: Podman, name: str) -> Tuple[str, int]:
    """The sandbox's agent and the host id of its uid 0, 0 where Podman translates by itself."""
    SandboxNames.of(name)
    names = SandboxNames.of(name, known_id(podman, name))
    found = lifecycle.both(podman, names)
    if found is None:
        raise ModuleFailure(f"there is no sandbox '{name}' on this host; list_sandboxes.yml tells which there are")
    try:
        return names.agent, described(found[names.agent]).uid_base or 0
    except Unreadable as error:
        raise ModuleFailure(str(error)) from None


def converge(module: AnsibleModule) -> Dict[str, Any]:
    podman = client(module)
    source, uid_base = agent_of(podman, module.params["source"])
    target = agent_of(podman, module.params["sandbox_name"])[0]
    if not module.check_mode:
        copy_directory(podman, source, uid_base, target, WORKSPACE)
    return {"changed": True, "diff": diff({}, {"workspace": f"copied from {source}"}, target)}


def main() -> None:
    module = new_module(
        {"sandbox_name": {"type": "str", "required": True}, "source": {"type": "str", "required": True}}
    )
    run_module(module, lambda: converge(module))


if __name__ == "__main__":
    main()
