# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agents on this machine as hosts, so that a play runs inside of sandboxes."""

from __future__ import annotations

DOCUMENTATION = r"""
name: agents
short_description: The agents of the sandboxes on this machine
version_added: 0.1.0
description:
  - Every agent that runs becomes a host with the name of its sandbox, in the group C(openshell_agents), reached with the
    connection P(openshell.sandbox.agent#connection). What a play does there is confined like all that the agent does.
options:
  plugin:
    description: Says that this plugin reads the file, whose name ends with C(agents.yml) or C(agents.yaml).
    type: str
    required: true
    choices: [openshell.sandbox.agents]
  executable:
    description: Name or path of the podman command.
    type: str
    default: podman
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
# agents.yml; then: ansible -i agents.yml demo -m ansible.builtin.setup
plugin: openshell.sandbox.agents
"""

import json
import subprocess
from typing import Any, Dict, List

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import LABEL_ROLE, LABEL_SANDBOX

GROUP = "openshell_agents"


def agents(executable: str) -> List[Dict[str, Any]]:
    """``podman ps`` about the agents that run. Raises AnsibleParserError with one sentence."""
    command = [executable, "ps", "--filter", f"label={LABEL_ROLE}=agent", "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AnsibleParserError(f"the agents of this machine cannot be listed: {error}") from None
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise AnsibleParserError(f"the agents of this machine cannot be listed: {words}")
    found: List[Dict[str, Any]] = json.loads(done.stdout or "[]") or []
    return found


class InventoryModule(BaseInventoryPlugin):  # type: ignore[misc]
    """``openshell.sandbox.agents``: see the documentation."""

    NAME = "openshell.sandbox.agents"

    def verify_file(self, path: str) -> bool:
        return bool(super().verify_file(path)) and path.endswith(("agents.yml", "agents.yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        executable = str(self.get_option("executable"))
        self.inventory.add_group(GROUP)
        for one in agents(executable):
            name = (one.get("Labels") or {}).get(LABEL_SANDBOX)
            if not name:
                continue
            self.inventory.add_host(name, group=GROUP)
            variables = {
                "ansible_connection": "openshell.sandbox.agent",
                "ansible_host": one["Names"][0],
                "openshell_podman_executable": executable,
                "ansible_python_interpreter": "/usr/bin/python3",
            }
            for key, value in variables.items():
                self.inventory.set_variable(name, key, value)
