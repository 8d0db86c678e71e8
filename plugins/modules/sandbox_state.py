#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sandbox_state
short_description: Start or stop a sandbox that exists
version_added: 0.1.0
description:
  - Starts the sidecar, waits until it is ready, then starts the agent; stops in the reverse order.
  - A container that hangs on a network where it must not be is taken off it before it starts.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of the sandbox.
    type: str
    required: true
  state:
    description: The state to reach.
    type: str
    choices: [started, stopped]
    required: true
  timeout:
    description: Seconds to wait for the sidecar.
    type: int
    default: 30
seealso:
  - module: openshell.sandbox.sandbox_container
  - module: openshell.sandbox.sandbox_info
"""

EXAMPLES = r"""
- name: Stop a sandbox and keep everything of it
  openshell.sandbox.sandbox_state:
    sandbox_name: demo
    state: stopped
"""

RETURN = r"""
state:
  description: The state that was reached, or would be in check mode.
  returned: success
  type: str
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.container_audit import audit_networks
from ansible_collections.openshell.sandbox.plugins.module_utils.container_converge import repair
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    diff,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman, container_is_ours, is_running
from ansible_collections.openshell.sandbox.plugins.module_utils.readiness import NotReady, wait_ready
from ansible_collections.openshell.sandbox.plugins.module_utils.removal import known_id
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import BRIDGE_NETWORK, SandboxNames


def plan(podman: Podman, names: SandboxNames, running: bool) -> Dict[str, Dict[str, str]]:
    """Container name → the networks on which it must be, for those that are not as they must be."""
    wanted = {
        names.proxy: {names.network: "", BRIDGE_NETWORK: ""},
        names.agent: {names.network: ""},
    }
    found = {entry["Name"]: entry for entry in podman.containers(list(wanted)) if container_is_ours(entry)}
    if len(found) != len(wanted):
        raise ModuleFailure(f"there is no sandbox '{names.name}' on this host; create it with create_sandbox.yml")
    return {
        name: networks
        for name, networks in wanted.items()
        if is_running(found[name]) != running or (running and audit_networks(found[name], networks))
    }


def reach(podman: Podman, names: SandboxNames, todo: Dict[str, Dict[str, str]], running: bool, timeout: int) -> None:
    order = [names.proxy, names.agent] if running else [names.agent, names.proxy]
    for name in [name for name in order if name in todo]:
        repair(podman, name, todo[name], running)
        if name == names.proxy and running:
            try:
                wait_ready(podman, names.proxy, names.tls_volume, timeout)
            except NotReady as error:
                raise ModuleFailure(str(error)) from None


def converge(module: AnsibleModule) -> Dict[str, Any]:
    params = module.params
    podman = client(module)
    SandboxNames.of(params["sandbox_name"])
    names = SandboxNames.of(params["sandbox_name"], known_id(podman, params["sandbox_name"]))
    running = params["state"] == "started"
    todo = plan(podman, names, running)
    if not module.check_mode:
        reach(podman, names, todo, running, params["timeout"])
    changed = sorted(todo)
    return {
        "changed": bool(changed),
        "state": params["state"],
        "diff": diff(dict.fromkeys(changed, "differs"), dict.fromkeys(changed, params["state"]), names.name),
    }


def main() -> None:
    module = new_module(
        {
            "sandbox_name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["started", "stopped"], "required": True},
            "timeout": {"type": "int", "default": 30},
        }
    )
    run_module(module, lambda: converge(module))


if __name__ == "__main__":
    main()
