#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: base_image
short_description: Have the image that the others are built on
version_added: 0.1.0
description:
  - Takes the one that is on the host already, else pulls it where a registry answers, else bootstraps it from this
    host's own package mirror.
  - Says every ten seconds that it is still at work.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  name:
    description: Name of a bootstrapped image, as P(openshell.sandbox.image_name#filter) gives it.
    type: str
    required: true
  reference:
    description: Full name of a Debian image in its registry, used as it is where it is pulled.
    type: str
    required: true
  source:
    description: Where the image comes from; V(auto) pulls where the registry answers and bootstraps otherwise.
    type: str
    choices: [auto, pull, bootstrap]
    default: auto
  packages:
    description: Distribution packages that a bootstrapped image has.
    type: list
    elements: str
    default: []
notes:
  - Bootstrapping needs C(mmdebstrap), and Debian or Ubuntu as the host. Elsewhere pull, or load a Debian image
    and give its name as O(reference).
seealso:
  - module: openshell.sandbox.image
"""

EXAMPLES = r"""
- name: Have a base image
  openshell.sandbox.base_image:
    name: "{{ [['python3']] | openshell.sandbox.image_name('base') }}"
    reference: docker.io/library/debian:bookworm-slim
    packages: [python3]
"""

RETURN = r"""
image:
  description: Name of the image that is the base.
  returned: success
  type: str
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.base_image import (
    IMAGES_LOCK,
    NoBase,
    bootstrap,
    choose,
    pull,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    diff,
    new_module,
    run_module,
)


def converge(module: AnsibleModule) -> Dict[str, Any]:
    params = module.params
    podman = client(module)
    try:
        there = params["source"] != "bootstrap" and podman.image_id(params["reference"]) is not None
        pulled = there or choose(params["source"], params["reference"]) == "pull"
        name = params["reference"] if pulled else params["name"]
        changed = podman.image_id(name) is None
        if changed and not module.check_mode:
            with podman.lock(IMAGES_LOCK):
                if podman.image_id(name) is None:
                    pull(podman, name) if pulled else bootstrap(podman, name, params["packages"])
    except NoBase as error:
        raise ModuleFailure(str(error)) from None
    return {
        "changed": changed,
        "diff": diff({} if changed else {"image": name}, {"image": name}, name),
        "image": name,
    }


def main() -> None:
    module = new_module(
        {
            "name": {"type": "str", "required": True},
            "reference": {"type": "str", "required": True},
            "source": {"type": "str", "choices": ["auto", "pull", "bootstrap"], "default": "auto"},
            "packages": {"type": "list", "elements": "str", "default": []},
        }
    )
    run_module(module, lambda: converge(module))


if __name__ == "__main__":
    main()
