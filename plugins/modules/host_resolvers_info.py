#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_resolvers_info
short_description: DNS resolvers of a host that a container can reach
version_added: 0.1.0
description:
  - Reads C(/run/systemd/resolve/resolv.conf), then C(/etc/resolv.conf), and returns the first list that is not empty.
  - Loopback and link-local resolvers are left out, since they mean something else inside a container.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.info_module
options:
  candidates:
    description: Files to read, in order.
    type: list
    elements: path
    default:
      - /run/systemd/resolve/resolv.conf
      - /etc/resolv.conf
author:
  - The openshell.sandbox contributors (@openshell)
seealso:
  - module: openshell.sandbox.sandbox_container
"""

EXAMPLES = r"""
- name: Find the resolvers that a sidecar may use
  openshell.sandbox.host_resolvers_info:
  register: resolvers
"""

RETURN = r"""
resolvers:
  description: Addresses in the order of the file, without duplicates.
  returned: success
  type: list
  elements: str
  sample: ["192.0.2.53", "2001:db8::53"]
source:
  description: The file that they are from.
  returned: success
  type: str
  sample: /etc/resolv.conf
"""

from typing import Any, Dict

from ansible_collections.openshell.sandbox.plugins.module_utils.module import ModuleFailure, new_module, run_module
from ansible_collections.openshell.sandbox.plugins.module_utils.resolvers import (
    CANDIDATES,
    ResolverError,
    host_resolvers,
)


def main() -> None:
    module = new_module(
        {"candidates": {"type": "list", "elements": "path", "default": list(CANDIDATES)}},
        podman=False,
    )

    def body() -> Dict[str, Any]:
        try:
            resolvers, source = host_resolvers(module.params["candidates"])
        except ResolverError as error:
            raise ModuleFailure(str(error)) from None
        return {"changed": False, "resolvers": resolvers, "source": source}

    run_module(module, body)


if __name__ == "__main__":
    main()
