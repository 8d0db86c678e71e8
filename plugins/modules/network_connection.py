#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: network_connection
short_description: Connect a sidecar to the bridge, and start it
version_added: 0.1.0
description:
  - Makes the bridge network if there is none, connects the sandbox's sidecar to it and starts the sidecar.
  - The connection is made before the start, so that the default route is the bridge's from the first moment.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of the sandbox.
    type: str
    required: true
  sandbox_id:
    description: Id of the sandbox; the name unless told otherwise.
    type: str
  network:
    description: Name of the bridge network.
    type: str
    default: openshell
  subnet:
    description: Its subnet when it has to be made; empty lets Podman choose.
    type: str
    default: ""
  started:
    description: Whether the sidecar is started.
    type: bool
    default: true
seealso:
  - module: openshell.sandbox.internal_network
  - module: openshell.sandbox.sandbox_container
"""

EXAMPLES = r"""
- name: Give the sidecar its way out
  openshell.sandbox.network_connection:
    sandbox_name: demo
"""

RETURN = r"""
networks:
  description: Networks of the sidecar afterwards.
  returned: success
  type: list
  elements: str
  sample: [openshell, openshell-sbx-demo]
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.module import client, diff, new_module, run_module
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import container_networks, is_running
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import (
    BRIDGE_NETWORK,
    LABEL_MANAGED,
    SandboxNames,
)


def converge(module: AnsibleModule) -> Dict[str, Any]:
    params = module.params
    names = SandboxNames.of(params["sandbox_name"], params["sandbox_id"])
    podman = client(module)
    bridge = params["network"]
    made = podman.network(bridge) is None
    if made and not module.check_mode:
        with podman.lock(looks=["network"]):
            podman.ensure_bridge_network(bridge, {LABEL_MANAGED: "true"}, params["subnet"] or None)
    inspected = podman.container(names.proxy) or {}
    before = sorted(container_networks(inspected))
    connect = bridge not in before
    start = params["started"] and not is_running(inspected)
    if not module.check_mode:
        if connect:
            podman.network_connect(bridge, names.proxy)
        if start:
            podman.run(["start", names.proxy])
    after = sorted({*before, bridge})
    return {
        "changed": bool(made or connect or start),
        "diff": diff(
            {"networks": before, "running": is_running(inspected)},
            {"networks": after, "running": bool(params["started"]) or is_running(inspected)},
            names.proxy,
        ),
        "networks": after,
    }


def main() -> None:
    module = new_module(
        {
            "sandbox_name": {"type": "str", "required": True},
            "sandbox_id": {"type": "str"},
            "network": {"type": "str", "default": BRIDGE_NETWORK},
            "subnet": {"type": "str", "default": ""},
            "started": {"type": "bool", "default": True},
        }
    )
    run_module(module, lambda: converge(module))


if __name__ == "__main__":
    main()
