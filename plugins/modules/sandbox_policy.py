#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: sandbox_policy
short_description: Give a sandbox another policy while it runs
version_added: 0.1.0
description:
  - Puts the policy on the sidecar's volume and, if the sidecar runs, waits until it says that it is in force.
  - Nothing is restarted. A policy that the sidecar refuses is taken back and the module fails with its words.
  - Judge the policy with M(openshell.sandbox.policy_check) first.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of the sandbox.
    type: str
    required: true
  policy:
    description: The policy's YAML text.
    type: str
    required: true
  timeout:
    description: Seconds to wait for the sidecar.
    type: int
    default: 15
"""

EXAMPLES = r"""
- name: Change the policy
  openshell.sandbox.sandbox_policy:
    sandbox_name: demo
    policy: "{{ lookup('ansible.builtin.file', 'policy.yaml') }}"
"""

RETURN = r"""
generation:
  description: The generation that the running sidecar reports; 0 where it does not run, or in check mode.
  returned: success
  type: int
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.module import client, new_module, run_module
from ansible_collections.openshell.sandbox.plugins.module_utils.readiness import sidecar_ready
from ansible_collections.openshell.sandbox.plugins.module_utils.sidecar_config import policy_config
from ansible_collections.openshell.sandbox.plugins.module_utils.sidecar_facts import existing_sidecar, hand_over


def change(module: AnsibleModule) -> Dict[str, Any]:
    podman = client(module)
    names = existing_sidecar(podman, module.params["sandbox_name"])[0]
    outcome = hand_over(module, podman, names, policy_config(names, module.params["policy"]))
    sentinel = sidecar_ready(podman, names.proxy, podman.volume_path(names.tls_volume)) or {}
    return {
        "changed": outcome.changed,
        "diff": outcome.diffs,
        "generation": 0 if module.check_mode else int(sentinel.get("generation") or 0),
    }


def main() -> None:
    module = new_module(
        {
            "sandbox_name": {"type": "str", "required": True},
            "policy": {"type": "str", "required": True},
            "timeout": {"type": "int", "default": 15},
        }
    )
    run_module(module, lambda: change(module))


if __name__ == "__main__":
    main()
