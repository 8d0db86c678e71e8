#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: sandbox_log_info
short_description: The audit log of a sandbox
version_added: 0.1.0
description:
  - Returns what the sidecar logged, one mapping for each line that is JSON, oldest first. It need not run.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.info_module
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of the sandbox.
    type: str
    required: true
  since:
    description: Where to begin, a time (RFC 3339) or how long ago (V(10m), V(2h)); empty is all that is kept.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: What was decided in the last ten minutes
  openshell.sandbox.sandbox_log_info:
    sandbox_name: demo
    since: 10m
  register: log
"""

RETURN = r"""
events:
  description: The events; docs/audit.md describes them.
  returned: success
  type: list
  elements: dict
"""

import json
from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.sidecar_facts import existing_sidecar


def events_of(text: str) -> List[Dict[str, Any]]:
    """The lines of *text* that are JSON objects."""
    found = []
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a message of the interpreter or of Podman, or half a line
        if isinstance(event, dict):
            found.append(event)
    return found


def read(module: AnsibleModule) -> Dict[str, Any]:
    podman = client(module)
    names = existing_sidecar(podman, module.params["sandbox_name"])[0]
    since = module.params["since"]
    result = podman.run(["logs", *(["--since", since] if since else []), names.proxy], check=False)
    if result.rc != 0:
        why = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModuleFailure(f"the log of sandbox '{names.name}' cannot be read since '{since}': {why}")
    return {"changed": False, "events": events_of(result.stdout)}


def main() -> None:
    module = new_module({"sandbox_name": {"type": "str", "required": True}, "since": {"type": "str", "default": ""}})
    run_module(module, lambda: read(module))


if __name__ == "__main__":
    main()
