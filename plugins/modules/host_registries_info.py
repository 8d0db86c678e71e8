#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_registries_info
short_description: Package registries that a host uses itself
version_added: 0.1.0
description:
  - Reads the host's own pip, npm and apt configuration and returns the registries as a policy entry that allows reading.
  - User names and passwords in their addresses are left out.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.info_module
options: {}
author:
  - The openshell.sandbox contributors (@openshell)
seealso:
  - module: openshell.sandbox.policy_check
"""

EXAMPLES = r"""
- name: Find the registries of this host
  openshell.sandbox.host_registries_info:
  register: registries
"""

RETURN = r"""
policy:
  description: An entry of C(network_policies) that allows reading from them.
  returned: success
  type: dict
endpoints:
  description: Host and port of each.
  returned: success
  type: list
  elements: list
env:
  description: Variables that make pip and npm inside use the same registries.
  returned: success
  type: dict
"""

from typing import Any, Dict

from ansible_collections.openshell.sandbox.plugins.module_utils.module import new_module, run_module
from ansible_collections.openshell.sandbox.plugins.module_utils.registries import as_policy, host_registries


def main() -> None:
    module = new_module({}, podman=False)

    def body() -> Dict[str, Any]:
        found = host_registries()
        return {
            "changed": False,
            "policy": as_policy(found),
            "endpoints": [list(endpoint) for endpoint in found.endpoints],
            "env": found.env,
        }

    run_module(module, body)


if __name__ == "__main__":
    main()
