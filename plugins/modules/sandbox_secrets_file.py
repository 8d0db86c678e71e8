#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sandbox_secrets_file
short_description: Put found secrets on the volume of a sandbox's sidecar
version_added: 0.1.0
description:
  - The second half of M(openshell.sandbox.sandbox_secrets), which finds the values on the controller; use that one.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of the sandbox.
    type: str
    required: true
  document:
    description: The secrets with their values and what they are bound to, as JSON.
    type: str
    required: true
  agent:
    description: Name, variable and kind of placeholder of each secret, for the agent's environment.
    type: list
    elements: dict
    default: []
  policy:
    description: The policy's YAML text, to come into force in the same moment; empty leaves the one that there is.
    type: str
    default: ''
  keep:
    description: Which secrets of before stay beside these, the user's C(own) or those of C(providers).
    type: list
    elements: str
    choices: [own, providers]
    default: []
  timeout:
    description: Seconds to wait for the sidecar.
    type: int
    default: 15
seealso:
  - module: openshell.sandbox.sandbox_secrets
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
- name: Take all secrets away
  openshell.sandbox.sandbox_secrets_file:
    sandbox_name: demo
    document: "[]"
  no_log: true
"""

RETURN = r"""
env:
  description: Variable to placeholder, for the agent.
  returned: success
  type: dict
"""

import json
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils import secret_entries, sidecar_config
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.sidecar_facts import existing_sidecar, hand_over


def change(module: AnsibleModule) -> Dict[str, Any]:
    params = module.params
    podman = client(module)
    names = existing_sidecar(podman, params["sandbox_name"])[0]
    current = sidecar_config.read_current(podman, sidecar_config.secrets_config(names, ""))[sidecar_config.SECRETS]
    file = secret_entries.with_random(json.loads(params["document"]), current, params["keep"])
    try:
        env = secret_entries.agent_environment(params["agent"], file)
    except secret_entries.Refused as refused:
        raise ModuleFailure(str(refused)) from None
    outcome = hand_over(module, podman, names, sidecar_config.secrets_config(names, file, params["policy"]))
    return {"changed": outcome.changed, "diff": outcome.diffs, "env": env}


def main() -> None:
    module = new_module(
        {
            "sandbox_name": {"type": "str", "required": True},
            "document": {"type": "str", "required": True, "no_log": True},
            "agent": {"type": "list", "elements": "dict", "default": []},
            "policy": {"type": "str", "default": ""},
            "keep": {"type": "list", "elements": "str", "choices": list(secret_entries.KEEP), "default": []},
            "timeout": {"type": "int", "default": 15},
        }
    )
    run_module(module, lambda: change(module))


if __name__ == "__main__":
    main()
