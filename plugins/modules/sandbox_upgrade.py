#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sandbox_upgrade
short_description: Move a sandbox to other images
version_added: 0.1.0
description:
  - Makes the sidecar anew of another image, and the agent too where its image is given; everything else that they were
    created with stays, and so do volumes, that is workspace, policy and secrets.
  - A sidecar that does not become ready, or refuses its policy or its secrets, is replaced by the one that was there.
  - A stopped sandbox stays stopped.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of the sandbox.
    type: str
    required: true
  proxy_image:
    description: Id of the sidecar's image.
    type: str
    required: true
  agent_image:
    description: Id of the agent's image; empty leaves the agent as it is, running.
    type: str
    default: ""
  timeout:
    description: Seconds to wait for the sidecar.
    type: int
    default: 30
seealso:
  - module: openshell.sandbox.sandbox_container
"""

EXAMPLES = r"""
- name: Move to the sidecar of this version
  openshell.sandbox.sandbox_upgrade:
    sandbox_name: demo
    proxy_image: "{{ openshell_proxy_image_id }}"
"""

RETURN = r"""
replaced:
  description: The containers that were made anew, or would be in check mode.
  returned: success
  type: list
  elements: str
"""

import dataclasses
from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils import container_converge, lifecycle
from ansible_collections.openshell.sandbox.plugins.module_utils.container_spec import ContainerSpec
from ansible_collections.openshell.sandbox.plugins.module_utils.created_spec import Unreadable, described
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    diff,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman, is_running
from ansible_collections.openshell.sandbox.plugins.module_utils.readiness import NotReady, wait_ready
from ansible_collections.openshell.sandbox.plugins.module_utils.removal import known_id
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNames

ERRORS = ("policy_error", "credentials_error", "inference_error")


def replace(podman: Podman, names: SandboxNames, spec: ContainerSpec) -> None:
    networks = {**lifecycle.wanted_networks(names)[spec.name], names.network: spec.ip}
    container_converge.converge(podman, spec, networks, None)


def upgrade_sidecar(podman: Podman, names: SandboxNames, old: ContainerSpec, new: ContainerSpec, timeout: int) -> None:
    """Replace the sidecar; one that ran must be ready again, or the old one comes back."""
    running = is_running(podman.container(names.proxy))
    replace(podman, names, new)
    if not running:
        return
    try:
        sentinel = wait_ready(podman, names.proxy, names.tls_volume, timeout)
        refused = "; ".join(str(sentinel[key]) for key in ERRORS if sentinel.get(key))
    except NotReady as error:
        refused = str(error)
    if refused:
        replace(podman, names, old)
        raise ModuleFailure(f"the sidecar of the new image does not do, and the old one is back: {refused}")


def converge(module: AnsibleModule) -> Dict[str, Any]:
    params = module.params
    podman = client(module)
    SandboxNames.of(params["sandbox_name"])
    names = SandboxNames.of(params["sandbox_name"], known_id(podman, params["sandbox_name"]))
    found = lifecycle.both(podman, names)
    if found is None:
        raise ModuleFailure(f"there is no sandbox '{names.name}' on this host; create it with create_sandbox.yml")
    images = {names.proxy: params["proxy_image"], names.agent: params["agent_image"]}
    try:
        old = {name: described(found[name]) for name, image in images.items() if image}
    except Unreadable as error:
        raise ModuleFailure(str(error)) from None
    new = {name: dataclasses.replace(one, image=images[name].replace("sha256:", "")) for name, one in old.items()}
    todo: List[str] = [name for name in new if new[name] != old[name]]
    if not module.check_mode:
        if names.proxy in todo:
            upgrade_sidecar(podman, names, old[names.proxy], new[names.proxy], params["timeout"])
        if names.agent in todo:
            replace(podman, names, new[names.agent])
    return {
        "changed": bool(todo),
        "replaced": todo,
        "diff": diff(
            {name: {"image": old[name].image} for name in todo}, {name: {"image": new[name].image} for name in todo}
        ),
    }


def main() -> None:
    module = new_module(
        {
            "sandbox_name": {"type": "str", "required": True},
            "proxy_image": {"type": "str", "required": True},
            "agent_image": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 30},
        }
    )
    run_module(module, lambda: converge(module))


if __name__ == "__main__":
    main()
