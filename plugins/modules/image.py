#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image
short_description: Have the image of the sidecar or of the agent
version_added: 0.1.0
description:
  - Builds the image from a context whose content names it, once; a second run finds it there.
  - Says every ten seconds that it is still at work.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  name:
    description: Name of the image, as P(openshell.sandbox.image_name#filter) gives it.
    type: str
    required: true
  base:
    description: Name of the image that it is built on.
    type: str
    required: true
  context:
    description: The build context as P(openshell.sandbox.build_context#filter) makes it.
    type: str
    required: true
  packages:
    description: Distribution packages that the image has.
    type: list
    elements: str
    default: []
  upstream_ca_bundle:
    description: PEM bundle that the build trusts, for a host behind a proxy that inspects TLS.
    type: str
    default: ""
  ulimits:
    description: Resource limits of the build's containers.
    type: list
    elements: str
    default: []
seealso:
  - module: openshell.sandbox.base_image
  - module: openshell.sandbox.image_info
  - module: containers.podman.podman_image
"""

EXAMPLES = r"""
- name: Have the proxy image
  openshell.sandbox.image:
    name: "{{ [context] | openshell.sandbox.image_name('proxy') }}"
    base: docker.io/library/debian:bookworm-slim
    context: "{{ context }}"
    packages: [ca-certificates, python3, python3-venv]
  vars:
    context: "{{ 'proxy_image' | openshell.sandbox.build_context }}"
"""

RETURN = r"""
image_id:
  description: Id of the image; empty in check mode when it would be built.
  returned: success
  type: str
image:
  description: Name of the image.
  returned: success
  type: str
"""

import base64
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.base_image import IMAGES_LOCK, build_arguments
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    diff,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman, last_words


def build(podman: Podman, params: Dict[str, Any]) -> None:
    name = params["name"]
    arguments = build_arguments(params["base"], params["packages"], params["upstream_ca_bundle"], params["ulimits"])
    result = podman.run([*arguments, "--tag", name, "-"], stdin=base64.b64decode(params["context"]), check=False)
    if result.rc:
        podman.run(["rmi", "--force", name], check=False)
        raise ModuleFailure(f"building {name} failed: {last_words(result.stderr)}", stderr=result.stderr[-4000:])


def converge(module: AnsibleModule) -> Dict[str, Any]:
    name = module.params["name"]
    podman = client(module)
    found = podman.image_id(name)
    changed = found is None
    if changed and not module.check_mode:
        with podman.lock(IMAGES_LOCK):
            found = podman.image_id(name)
            if found is None:
                build(podman, module.params)
                found = podman.image_id(name)
    return {
        "changed": changed,
        "diff": diff({} if changed else {"image": name}, {"image": name}, name),
        "image": name,
        "image_id": found or "",
    }


def main() -> None:
    texts = {"type": "list", "elements": "str", "default": []}
    module = new_module(
        {
            "name": {"type": "str", "required": True},
            "base": {"type": "str", "required": True},
            "context": {"type": "str", "required": True},
            "packages": texts,
            "upstream_ca_bundle": {"type": "str", "default": ""},
            "ulimits": texts,
        }
    )
    run_module(module, lambda: converge(module))


if __name__ == "__main__":
    main()
