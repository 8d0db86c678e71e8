#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: policy_check
short_description: Judge a policy with the sidecar's own engine before anything is created
version_added: 0.1.0
description:
  - Runs C(openshell-proxy check-policy) of the proxy image, without a network, on a policy text.
  - A policy that the living sidecar of this sandbox already enforces is not judged again.
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
  default_enforcement:
    description: What an endpoint without C(enforcement) gets.
    type: str
    choices: [enforce, audit]
    default: enforce
  image:
    description: Id or name of the proxy image; empty skips the check (check mode before the image exists).
    type: str
    required: true
  config_volume:
    description: The sandbox's configuration volume; a policy that lies there already is not judged again.
    type: str
    default: ""
  ulimits:
    description: Resource limits for the short-lived container.
    type: list
    elements: str
    default: []
seealso:
  - module: openshell.sandbox.host_registries_info
"""

EXAMPLES = r"""
- name: Refuse a bad policy early
  openshell.sandbox.policy_check:
    policy: "{{ lookup('ansible.builtin.file', 'policy.yaml') }}"
    source: policy.yaml
    image: localhost/openshell-proxy:0123456789abcdef
"""

RETURN = r"""
notices:
  description: What the policy's author should know although nothing is wrong.
  returned: success
  type: list
  elements: str
judged:
  description: Whether the engine was asked.
  returned: success
  type: bool
"""

import json
import os
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.kept import keep, recall
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman, PodmanError
from ansible_collections.openshell.sandbox.plugins.module_utils.policy_engine import ask_engine
from ansible_collections.openshell.sandbox.plugins.module_utils.resolvers import read_text
from ansible_collections.openshell.sandbox.plugins.module_utils.sidecar_config import POLICY


def enforced_already(podman: Podman, volume: str, policy: str) -> bool:
    mountpoint = podman.volume_path(volume) if volume else ""
    return bool(mountpoint) and read_text(os.path.join(mountpoint, "config", POLICY)) == policy


def judge(podman: Podman, params: Dict[str, Any]) -> Dict[str, Any]:
    """The engine's verdict: ``ok``, ``errors``, ``notices``."""
    result = ask_engine(podman, params, ["check-policy", "--json", "--source", params["source"], "-"])
    try:
        verdict = json.loads(result.stdout)
    except ValueError:
        verdict = None
    if not isinstance(verdict, dict):
        raise PodmanError("run check-policy", result.rc, result.stderr or result.stdout)
    return verdict


def examine(module: AnsibleModule) -> Dict[str, Any]:
    params = module.params
    podman = client(module)
    if not params["image"] or enforced_already(podman, params["config_volume"], params["policy"]):
        return {"changed": False, "notices": [], "judged": False}
    asked = ["verdict", *(params[key] for key in ("policy", "source", "default_enforcement", "image"))]
    verdict = recall(asked) if podman.memory is not None else None  # every sandbox of a fleet has this policy
    if verdict is None:
        verdict = judge(podman, params)
    if not verdict.get("ok"):
        errors = verdict.get("errors") or ["invalid"]
        raise ModuleFailure("the policy is refused: " + "; ".join(errors), errors=errors)
    if podman.memory is not None:
        keep(asked, verdict)
    return {"changed": False, "notices": verdict.get("notices") or [], "judged": True}


def main() -> None:
    module = new_module(
        {
            "policy": {"type": "str", "required": True},
            "source": {"type": "str", "default": "policy"},
            "default_enforcement": {"type": "str", "choices": ["enforce", "audit"], "default": "enforce"},
            "image": {"type": "str", "required": True},
            "config_volume": {"type": "str", "default": ""},
            "ulimits": {"type": "list", "elements": "str", "default": []},
        }
    )
    run_module(module, lambda: examine(module))


if __name__ == "__main__":
    main()
