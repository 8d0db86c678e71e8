#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: sandbox_policy_info
short_description: The policy of a sandbox and the engine that judges it
version_added: 0.1.0
description:
  - Returns the policy's text as it lies on the sidecar's volume, and what another policy for it must be judged with.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.info_module
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of the sandbox.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Read the policy in force
  openshell.sandbox.sandbox_policy_info:
    sandbox_name: demo
  register: current
"""

RETURN = r"""
sandbox_id:
  description: Id of the sandbox.
  returned: success
  type: str
policy:
  description: The policy's YAML text.
  returned: success
  type: str
image:
  description: Id of the image that the sidecar runs.
  returned: success
  type: str
runtime:
  description: OCI runtime of the sidecar.
  returned: success
  type: str
default_enforcement:
  description: What an endpoint without C(enforcement) gets from this sidecar.
  returned: success
  type: str
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.module import client, new_module, run_module
from ansible_collections.openshell.sandbox.plugins.module_utils.sidecar_config import (
    POLICY,
    policy_config,
    read_current,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.sidecar_facts import environment, existing_sidecar


def examine(module: AnsibleModule) -> Dict[str, Any]:
    podman = client(module)
    names, sidecar = existing_sidecar(podman, module.params["sandbox_name"])
    return {
        "changed": False,
        "sandbox_id": names.id,
        "policy": read_current(podman, policy_config(names, ""))[POLICY],
        "image": sidecar["Image"],
        "runtime": sidecar.get("OCIRuntime") or "",
        "default_enforcement": environment(sidecar).get("OPENSHELL_DEFAULT_ENFORCEMENT") or "enforce",
    }


def main() -> None:
    module = new_module({"sandbox_name": {"type": "str", "required": True}})
    run_module(module, lambda: examine(module))


if __name__ == "__main__":
    main()
