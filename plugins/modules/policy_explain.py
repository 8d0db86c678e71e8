#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: policy_explain
short_description: Tell what a policy decides about one request
version_added: 0.1.0
description:
  - Runs C(openshell-proxy explain) of the proxy image, without a network, on a policy text.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.info_module
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  policy:
    description: The policy's YAML text.
    type: str
    required: true
  source:
    description: What the policy is called in messages, its path for example.
    type: str
    default: policy
  method:
    description: Method of the request.
    type: str
    required: true
  url:
    description: URL of the request.
    type: str
    required: true
  default_enforcement:
    description: What an endpoint without C(enforcement) gets.
    type: str
    choices: [enforce, audit]
    default: enforce
  image:
    description: Id or name of the proxy image.
    type: str
    required: true
  ulimits:
    description: Resource limits for the short-lived container.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Ask what a policy decides
  openshell.sandbox.policy_explain:
    policy: "{{ lookup('ansible.builtin.file', 'policy.yaml') }}"
    method: GET
    url: https://api.github.com/repos/a/b
    image: localhost/openshell-proxy:0123456789abcdef
"""

RETURN = r"""
allowed:
  description: Whether the request is let through.
  returned: success
  type: bool
text:
  description: The decision and what decided, as lines.
  returned: success
  type: str
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.policy_engine import ask_engine

REFUSED = "refused: "


def explain(module: AnsibleModule) -> Dict[str, Any]:
    params = module.params
    command = ["explain", "--source", params["source"], "-", params["method"], params["url"]]
    result = ask_engine(client(module), params, command)
    told = result.stdout.strip() or result.stderr.strip()
    if result.rc not in (0, 2) or told.startswith(REFUSED) or not result.stdout.strip():
        raise ModuleFailure("nothing to explain: " + told.removeprefix(REFUSED).replace("\n", "; "))
    return {"changed": False, "allowed": result.rc == 0, "text": told}


def main() -> None:
    module = new_module(
        {
            "policy": {"type": "str", "required": True},
            "source": {"type": "str", "default": "policy"},
            "method": {"type": "str", "required": True},
            "url": {"type": "str", "required": True},
            "default_enforcement": {"type": "str", "choices": ["enforce", "audit"], "default": "enforce"},
            "image": {"type": "str", "required": True},
            "ulimits": {"type": "list", "elements": "str", "default": []},
        }
    )
    run_module(module, lambda: explain(module))


if __name__ == "__main__":
    main()
