#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sandbox_inference
short_description: Give a sandbox's sidecar its routes for inference
version_added: 0.1.0
description:
  - Puts the routes of C(https://inference.local) on the volume that only the sidecar has, with their keys.
  - A living sidecar takes all of them at once, without a restart. What it refuses is taken back.
  - Routes that are there and not in the list are removed.
  - An action plugin of the same name finds the keys on the controller and hands them over.
  - No key is in any output, difference, fact, argument or log, whatever the verbosity.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of the sandbox.
    type: str
    required: true
  routes:
    description:
      - The routes, a list of mappings or a mapping from name to route.
      - C(name), C(provider) (C(openai), C(anthropic), C(nvidia), C(deepinfra), C(google-vertex-ai) or C(aws-bedrock)) and
        C(model), which the provider gets whatever the client asks for. C(base_url) where it is not the provider's own,
        C(aliases) under which clients may ask for the model, C(protocols) where they are not the provider's.
      - C(secret) is the name of a secret of the sandbox that is the key, C(key) a key itself or a mapping with one of
        C(value), C(command), C(file) and C(from_env). C(auth) is C(bearer) or C(x-api-key), C(region) for AWS.
      - C(timeout) in seconds for a whole answer, C(idle_timeout) between two pieces of one that streams.
    type: raw
    default: []
  secrets:
    description: Names of the secrets that there will be, where that is known; a route that names another one is refused.
    type: list
    elements: str
  document:
    description: The routes with their keys as JSON, made by the action plugin; not to be set by hand.
    type: str
  judge_only:
    description: Only judge the routes, without looking for keys or speaking to Podman.
    type: bool
    default: false
  timeout:
    description: Seconds to wait for the sidecar.
    type: int
    default: 15
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
- name: Route chat to a model server of ours, and messages to Anthropic
  openshell.sandbox.sandbox_inference:
    sandbox_name: demo
    routes:
      - name: local
        provider: openai
        base_url: http://models.example.com:8000/v1
        model: qwen3-coder
        aliases: [fast]
      - name: claude
        provider: anthropic
        model: claude-sonnet-4-5
        key: {from_env: ANTHROPIC_API_KEY}
  no_log: true
"""

RETURN = r"""
env:
  description: Variables for the agent, in which the libraries of the APIs find their base URL and a key that opens nothing.
  returned: success
  type: dict
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.module import client, new_module, run_module
from ansible_collections.openshell.sandbox.plugins.module_utils.sidecar_config import inference_config
from ansible_collections.openshell.sandbox.plugins.module_utils.sidecar_facts import existing_sidecar, hand_over


def change(module: AnsibleModule) -> Dict[str, Any]:
    podman = client(module)
    names = existing_sidecar(podman, module.params["sandbox_name"])[0]
    outcome = hand_over(module, podman, names, inference_config(names, module.params["document"] or ""))
    return {"changed": outcome.changed, "diff": outcome.diffs}


def main() -> None:
    module = new_module(
        {
            "sandbox_name": {"type": "str", "required": True},
            "routes": {"type": "raw", "default": [], "no_log": True},
            "secrets": {"type": "list", "elements": "str", "no_log": False},
            "document": {"type": "str", "no_log": True},
            "judge_only": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 15},
        }
    )
    run_module(module, lambda: change(module))


if __name__ == "__main__":
    main()
