#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sandbox_info
short_description: The sandboxes of a host and whether their walls hold
version_added: 0.1.0
description:
  - Returns every sandbox, or one, with state, addresses, image, policy and what differs from what must be.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.info_module
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of one sandbox; without it all are returned.
    type: str
  counters:
    description: Whether to ask each running sidecar for its counts of allowed and denied requests.
    type: bool
    default: false
seealso:
  - module: openshell.sandbox.sandbox_container
  - module: openshell.sandbox.sandbox_state
"""

EXAMPLES = r"""
- name: Look at all sandboxes of this host
  openshell.sandbox.sandbox_info:
    counters: true
  register: found
"""

RETURN = r"""
sandboxes:
  description: One entry per sandbox, sorted by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the sandbox.
      type: str
    state:
      description: One of C(running), C(paused), C(stopped), C(degraded) and C(drifted).
      type: str
    drift:
      description: What of the walls is not what it must be.
      type: list
      elements: dict
"""

from ansible_collections.openshell.sandbox.plugins.module_utils.module import client, new_module, run_module
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_facts import sandboxes


def main() -> None:
    module = new_module({"sandbox_name": {"type": "str"}, "counters": {"type": "bool", "default": False}})
    run_module(
        module,
        lambda: {
            "changed": False,
            "sandboxes": sandboxes(client(module), module.params["sandbox_name"], module.params["counters"]),
        },
    )


if __name__ == "__main__":
    main()
