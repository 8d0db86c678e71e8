#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sandbox_state
short_description: Start, stop, restart, pause or unpause a sandbox that exists
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
    description:
      - The state to reach. A paused sandbox is V(started) by unpausing it, and V(stopped) after its processes were told to end.
      - V(restarted) stops and starts whatever the state was, so it always changes something.
      - V(paused) freezes the agent's processes; the sidecar goes on, so that connections stay and a policy can be changed.
      - V(unpaused) is the reverse and refuses a sandbox that is stopped.
    type: str
    choices: [started, stopped, restarted, paused, unpaused]
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
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import (
    Json,
    Podman,
    container_is_ours,
    is_paused,
    is_running,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.readiness import NotReady, wait_ready
from ansible_collections.openshell.sandbox.plugins.module_utils.removal import known_id
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import BRIDGE_NETWORK, SandboxNames

Networks = Dict[str, Dict[str, str]]


def wanted_networks(names: SandboxNames) -> Networks:
    """Container → the networks on which it must be."""
    return {names.proxy: {names.network: "", BRIDGE_NETWORK: ""}, names.agent: {names.network: ""}}


def both(podman: Podman, names: SandboxNames) -> Dict[str, Json]:
    """The two containers as inspected, by name."""
    found = {
        entry["Name"]: entry for entry in podman.containers([names.proxy, names.agent]) if container_is_ours(entry)
    }
    if len(found) != 2:
        raise ModuleFailure(f"there is no sandbox '{names.name}' on this host; create it with create_sandbox.yml")
    return found


def plan(names: SandboxNames, found: Dict[str, Json], state: str) -> Networks:
    """Container → the networks on which it must be, for those that are not as they must be."""
    agent = found[names.agent]
    if state in ("paused", "unpaused"):
        if not is_running(agent) and not is_paused(agent):
            raise ModuleFailure(f"sandbox '{names.name}' is stopped; start it with start_sandbox.yml")
        wrong = is_paused(agent) != (state == "paused")
        return {names.agent: {names.network: ""}} if wrong else {}
    if state == "restarted":
        return wanted_networks(names)
    if state == "stopped":
        return {
            name: networks
            for name, networks in wanted_networks(names).items()
            if is_running(found[name]) or is_paused(found[name])
        }
    return {
        name: networks
        for name, networks in wanted_networks(names).items()
        if not is_running(found[name]) or audit_networks(found[name], networks)
    }


def start(podman: Podman, names: SandboxNames, todo: Networks, timeout: int) -> None:
    """Sidecar, its word that it is ready, agent."""
    if names.proxy in todo:
        repair(podman, names.proxy, todo[names.proxy], True)
    try:
        wait_ready(podman, names.proxy, names.tls_volume, timeout)
    except NotReady as error:
        raise ModuleFailure(str(error)) from None
    if names.agent in todo:
        repair(podman, names.agent, todo[names.agent], True)


def stop(podman: Podman, names: SandboxNames, todo: Networks) -> None:
    """Agent first: it never runs without its sidecar."""
    for name in [name for name in (names.agent, names.proxy) if name in todo]:
        repair(podman, name, todo[name], False)


def reach(podman: Podman, names: SandboxNames, todo: Networks, state: str, timeout: int) -> None:
    if state == "paused":
        podman.pause(names.agent)
    elif state == "unpaused":
        podman.unpause(names.agent)
    if state in ("stopped", "restarted"):
        stop(podman, names, todo)
    if state in ("started", "restarted"):
        start(podman, names, todo, timeout)


def converge(module: AnsibleModule) -> Dict[str, Any]:
    params = module.params
    podman = client(module)
    SandboxNames.of(params["sandbox_name"])
    names = SandboxNames.of(params["sandbox_name"], known_id(podman, params["sandbox_name"]))
    state = params["state"]
    todo = plan(names, both(podman, names), state)
    if todo and not module.check_mode:
        reach(podman, names, todo, state, params["timeout"])
    changed = sorted(todo)
    return {
        "changed": bool(changed),
        "state": state,
        "diff": diff(dict.fromkeys(changed, "differs"), dict.fromkeys(changed, state), names.name),
    }


def main() -> None:
    module = new_module(
        {
            "sandbox_name": {"type": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["started", "stopped", "restarted", "paused", "unpaused"],
                "required": True,
            },
            "timeout": {"type": "int", "default": 30},
        }
    )
    run_module(module, lambda: converge(module))


if __name__ == "__main__":
    main()
