#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: internal_network
short_description: The network of one sandbox
version_added: 0.1.0
description:
  - Makes the sandbox's own C(--internal) network without DNS, on which the host has no IPv4 address and from which no
    route leads out.
  - Makes the workspace volume too, unless Podman runs rootless; its label C(openshell.uid_base) says which host ids are the
    sandbox's, so that no other one takes them.
  - Returns the fixed addresses (sidecar C(.2), agent C(.3)) and the host ids that the two containers are mapped to.
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
  subnet:
    description: Subnet to use; empty lets Podman choose a free one.
    type: str
    default: ""
seealso:
  - module: openshell.sandbox.network_connection
"""

EXAMPLES = r"""
- name: Give the sandbox a network of its own
  openshell.sandbox.internal_network:
    sandbox_name: demo
  register: network
"""

RETURN = r"""
network:
  description: Name of the network.
  returned: success
  type: str
  sample: openshell-sbx-demo
subnet:
  description: Its IPv4 subnet; empty in check mode before it exists.
  returned: success
  type: str
  sample: 10.89.5.0/24
proxy_ip:
  description: Fixed address of the sidecar.
  returned: success
  type: str
  sample: 10.89.5.2
agent_ip:
  description: Fixed address of the agent.
  returned: success
  type: str
  sample: 10.89.5.3
agent_uid_base:
  description: Host uid of uid 0 in the agent; -1 when Podman runs rootless.
  returned: success
  type: int
created:
  description: What this run made.
  returned: success
  type: list
  elements: dict
"""

import ipaddress
from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    diff,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman, PodmanError
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import (
    LABEL_UID_BASE,
    SandboxNames,
    uid_bases,
)

# Documentation addresses (RFC 5737) stand for what is not known before the network exists.
UNKNOWN_SUBNET = "192.0.2.0/24"

ROOTLESS = -1  # instead of a host id: the user's own subordinate ids are the agent's


def addresses(subnet: str) -> Dict[str, str]:
    """``.2`` for the sidecar and ``.3`` for the agent, counted from the subnet's first address."""
    network = ipaddress.IPv4Network(subnet)
    if network.num_addresses < 8:
        raise ModuleFailure(f"subnet {subnet} is too small for a sandbox; use a /29 or larger")
    first = network.network_address
    return {"proxy_ip": str(first + 2), "agent_ip": str(first + 3)}


def uid_base(podman: Podman, names: SandboxNames, subnet: str) -> int:
    """Host id of uid 0 in the agent's user namespace; a kept workspace keeps the ids that own its files.

    Its subnet may be another sandbox's by now, so a new sandbox takes the first ids that no workspace has.
    """
    if podman.rootless:
        return ROOTLESS
    workspace = podman.volume(names.workspace_volume)
    kept = ((workspace or {}).get("Labels") or {}).get(LABEL_UID_BASE, "")
    if kept.isdigit():
        return int(kept)
    taken = {(volume.get("Labels") or {}).get(LABEL_UID_BASE) for volume in podman.volumes(LABEL_UID_BASE)}
    return next(base for base in uid_bases(subnet) if str(base) not in taken)


def missing(podman: Podman, names: SandboxNames) -> List[Dict[str, str]]:
    """What this module makes and is not there: the network, and the volume on which the choice of ids is written."""
    found: List[Dict[str, str]] = []
    if podman.network(names.network) is None:
        found.append({"kind": "network", "name": names.network})
    if not podman.rootless and podman.volume(names.workspace_volume) is None:
        found.append({"kind": "volume", "name": names.workspace_volume})
    return found


def make(podman: Podman, names: SandboxNames, wanted: str, created: List[Dict[str, str]]) -> None:
    """Make what is missing, adding it to *created*.

    Under one lock of the host: whoever chooses next sees the volumes of those before, and the removal of the last
    sandbox, which takes it too, sees the network.
    """
    with podman.lock(looks=["network", "volume"]):
        if podman.ensure_internal_network(names.network, names.labels(), wanted or None):
            created.append({"kind": "network", "name": names.network})
        subnet = str(podman.network_subnet(names.network))
        addresses(subnet)
        base = uid_base(podman, names, subnet)
        labels = names.labels(**{LABEL_UID_BASE: str(base)})
        workspace = names.workspace_volume
        if base != ROOTLESS and podman.volume(workspace) is None and podman.ensure_volume(workspace, labels):
            created.append({"kind": "volume", "name": workspace})


def converge(module: AnsibleModule) -> Dict[str, Any]:
    names = SandboxNames.of(module.params["sandbox_name"], module.params["sandbox_id"])
    podman = client(module)
    wanted = module.params["subnet"]
    created = missing(podman, names)
    if created and not module.check_mode:
        created = []
        try:
            make(podman, names, wanted, created)
        except (PodmanError, ModuleFailure) as error:
            raise ModuleFailure(str(error), created=created) from None
    made = any(one["kind"] == "network" for one in created)
    known = not (made and module.check_mode)
    subnet = str(podman.network_subnet(names.network)) if known else wanted or UNKNOWN_SUBNET
    after = {"network": names.network, "subnet": subnet if known or wanted else "chosen by Podman"}
    return {
        "changed": bool(created),
        "diff": diff({} if made else after, after, names.network),
        "network": names.network,
        "subnet": subnet if known else wanted,
        "created": created,
        **addresses(subnet),
        "agent_uid_base": uid_base(podman, names, subnet),
    }


def main() -> None:
    module = new_module(
        {
            "sandbox_name": {"type": "str", "required": True},
            "sandbox_id": {"type": "str"},
            "subnet": {"type": "str", "default": ""},
        }
    )
    run_module(module, lambda: converge(module))


if __name__ == "__main__":
    main()
