#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sandbox_settings_info
short_description: What a sandbox was created with, but for its credentials
version_added: 0.1.0
description:
  - Reads policy, command, environment, limits, mounts and the sidecar's settings back from a sandbox that exists, as the
    variables with which C(create_sandbox.yml) makes another one like it.
  - No credential is read, and no variable of the agent's that stands for one.
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
- name: Read what a sandbox was created with
  openshell.sandbox.sandbox_settings_info:
    sandbox_name: demo
  register: source
"""

RETURN = r"""
settings:
  description: Variables, their names without C(openshell_), with their values; C(policy) is the policy's YAML text.
  returned: success
  type: dict
image:
  description: The image that the agent was made of.
  returned: success
  type: str
left_out:
  description: Variables of the agent that stand for a credential.
  returned: success
  type: list
  elements: str
upstream_proxy_auth:
  description: Whether the sidecar has credentials for the operator's own proxy.
  returned: success
  type: bool
"""

import os
from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils import lifecycle, sidecar_config
from ansible_collections.openshell.sandbox.plugins.module_utils.container_spec import ContainerSpec
from ansible_collections.openshell.sandbox.plugins.module_utils.created_spec import Unreadable, described
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman
from ansible_collections.openshell.sandbox.plugins.module_utils.removal import known_id
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNames
from ansible_collections.openshell.sandbox.plugins.module_utils.secret_entries import parse_secrets


def credential_variables(podman: Podman, names: SandboxNames, env: Dict[str, str]) -> List[str]:
    """Variables of the agent that hold a placeholder, or lead to a route whose key the sidecar has."""
    current = sidecar_config.read_current(podman, sidecar_config.secrets_config(names, ""))[sidecar_config.SECRETS]
    placeholders = {one["random"] for one in parse_secrets(current) if one.get("random")}
    return sorted(
        key
        for key, value in env.items()
        if "openshell:resolve:" in value or "inference.local" in value or value in placeholders
    )


def agent_settings(spec: ContainerSpec) -> Dict[str, Any]:
    return {
        "command": list(spec.command),
        "memory": spec.memory,
        "cpus": spec.cpus,
        "pids_limit": spec.pids_limit,
        "ulimits": list(spec.ulimits),
        "capabilities": list(spec.capabilities) + (["containers"] if spec.nested else []),
        "mounts": [
            {"source": one.source, "target": one.target, "read_only": one.read_only}
            for one in spec.volumes
            if one.kind == "bind"
        ],
    }


def sidecar_settings(spec: ContainerSpec) -> Dict[str, Any]:
    env = spec.env
    limits = [entry.partition("=")[::2] for entry in env.get("OPENSHELL_PROXY_LIMITS", "").split(",") if entry]
    return {
        "dns_servers": list(spec.dns),
        "gateway_endpoint": env.get("OPENSHELL_GATEWAY_ENDPOINT", ""),
        "default_enforcement": env.get("OPENSHELL_DEFAULT_ENFORCEMENT", "enforce"),
        "policy_failure_mode": env.get("OPENSHELL_POLICY_FAILURE_MODE", "retain_last_valid"),
        "proxy_limits": {key: int(value) for key, value in limits},
        "upstream_proxy": env.get("OPENSHELL_UPSTREAM_PROXY", ""),
        "upstream_no_proxy": [entry for entry in env.get("OPENSHELL_UPSTREAM_NO_PROXY", "").split(",") if entry],
        "upstream_proxy_connect_by_hostname": env.get("OPENSHELL_UPSTREAM_PROXY_CONNECT_BY_HOSTNAME") == "true",
        "proxy_memory": spec.memory,
        "proxy_cpus": spec.cpus,
        "proxy_pids_limit": spec.pids_limit,
    }


def examine(module: AnsibleModule) -> Dict[str, Any]:
    podman = client(module)
    name = module.params["sandbox_name"]
    SandboxNames.of(name)
    names = SandboxNames.of(name, known_id(podman, name))
    found = lifecycle.both(podman, names)
    if found is None:
        raise ModuleFailure(f"there is no sandbox '{name}' on this host; list_sandboxes.yml tells which there are")
    try:
        agent, proxy = described(found[names.agent]), described(found[names.proxy])
    except Unreadable as error:
        raise ModuleFailure(str(error)) from None
    env = dict(agent.env)
    left_out = credential_variables(podman, names, env)
    policy = sidecar_config.read_current(podman, sidecar_config.policy_config(names, ""))[sidecar_config.POLICY]
    auth = os.path.join(podman.volume_path(names.proxy_volume), "config", sidecar_config.UPSTREAM_PROXY_AUTH)
    return {
        "changed": False,
        "settings": {
            **agent_settings(agent),
            **sidecar_settings(proxy),
            "env": {key: value for key, value in env.items() if key not in left_out},
            "policy": policy,
        },
        "image": found[names.agent].get("ImageName") or agent.image,
        "left_out": left_out,
        "upstream_proxy_auth": os.path.exists(auth) and os.path.getsize(auth) > 0,
    }


def main() -> None:
    module = new_module({"sandbox_name": {"type": "str", "required": True}})
    run_module(module, lambda: examine(module))


if __name__ == "__main__":
    main()
