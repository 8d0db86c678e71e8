#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_info
short_description: Which images are there
version_added: 0.1.0
description:
  - Gives the ids of local images by their names. Nothing is pulled.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.info_module
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  names:
    description: Names of images.
    type: list
    elements: str
    required: true
seealso:
  - module: openshell.sandbox.image
  - module: containers.podman.podman_image_info
"""

EXAMPLES = r"""
- name: Look for an image
  openshell.sandbox.image_info:
    names: [docker.io/library/debian:bookworm-slim]
"""

RETURN = r"""
images:
  description: The id (64 hexadecimal digits) by name; empty for one that is not there.
  returned: success
  type: dict
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.module import client, new_module, run_module


def gather(module: AnsibleModule) -> Dict[str, Any]:
    podman = client(module)
    return {"changed": False, "images": podman.image_ids(module.params["names"])}


def main() -> None:
    module = new_module({"names": {"type": "list", "elements": "str", "required": True}})
    run_module(module, lambda: gather(module))


if __name__ == "__main__":
    main()
