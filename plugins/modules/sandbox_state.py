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
  - A stopped sandbox stays stopped after a reboot, if it is one that comes back.
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

from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils import lifecycle
from ansible_collections.openshell.sandbox.plugins.module_utils.container_audit import audit_networks
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
    is_paused,
    is_running,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.readiness import NotReady
from ansible_collections.openshell.sandbox.plugins.module_utils.registry import Registry
from ansible_collections.openshell.sandbox.plugins.module_utils.removal import known_id
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNames


def plan(names: SandboxNames, found: Dict[str, Json], state: str) -> List[str]:
    """The containers that are not as they must be."""
    agent = found[names.agent]
    if state in ("paused", "unpaused"):
        if not is_running(agent) and not is_paused(agent):
            raise ModuleFailure(f"sandbox '{names.name}' is stopped; start it with start_sandbox.yml")
        return [names.agent] if is_paused(agent) != (state == "paused") else []
    if state == "restarted":
        return sorted(found)
    if state == "stopped":
        return sorted(name for name, one in found.items() if is_running(one) or is_paused(one))
    networks = lifecycle.wanted_networks(names)
    return sorted(
        name for name, one in found.items() if not lifecycle.alive(one) or audit_networks(one, networks[name])
    )


def reach(podman: Podman, names: SandboxNames, todo: List[str], state: str, timeout: int) -> None:
    if not todo:
        return
    if state == "paused":
        podman.pause(names.agent)
    elif state == "unpaused":
        podman.unpause(names.agent)
    if state in ("stopped", "restarted"):
        lifecycle.stop(podman, names, todo)
    if state in ("started", "restarted"):
        try:
            lifecycle.start(podman, names, todo, timeout)
        except NotReady as error:
            raise ModuleFailure(str(error)) from None


def converge(module: AnsibleModule) -> Dict[str, Any]:
    params = module.params
    podman = client(module)
    SandboxNames.of(params["sandbox_name"])
    names = SandboxNames.of(params["sandbox_name"], known_id(podman, params["sandbox_name"]))
    state = params["state"]
    found = lifecycle.both(podman, names)
    if found is None:
        raise ModuleFailure(f"there is no sandbox '{names.name}' on this host; create it with create_sandbox.yml")
    todo = plan(names, found, state)
    if not module.check_mode:
        if state in (
            "started",
            "stopped",
            "restarted",
        ):  # before the work: a power cut meanwhile leaves what was asked for
            Registry.of(podman).set_stopped(names.name, state == "stopped")
        reach(podman, names, todo, state, params["timeout"])
    return {
        "changed": bool(todo),
        "state": state,
        "diff": diff(dict.fromkeys(todo, "differs"), dict.fromkeys(todo, state), names.name),
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
