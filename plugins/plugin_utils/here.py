# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Running this collection's modules in the controller's own process where that is the host anyway.

Ansible packs a module, starts a Python for it and unpacks it there: 0.4 s for each, most of what a local run takes.
"""

from __future__ import annotations

import importlib
import json
from typing import Any, Dict

from ansible.plugins.action import ActionBase
from ansible_collections.openshell.sandbox.plugins.module_utils.module import run_here
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Memory, new_memory

COLLECTION = "openshell.sandbox."


class HereAction(ActionBase):  # type: ignore[misc]
    """Base of the action plugins that run modules of this collection, several of them with one :attr:`memory`."""

    memory: Memory | None = None

    def module(self, name: str, arguments: Dict[str, Any], variables: Dict[str, Any]) -> Dict[str, Any]:
        """The result of the module ``openshell.sandbox.NAME`` on the task's host."""
        if not self.is_here():
            found: Dict[str, Any] = self._execute_module(
                module_name=COLLECTION + name, module_args=arguments, task_vars=variables
            )
            return found
        if self.memory is None:
            self.memory = new_memory()
        module = importlib.import_module(f"ansible_collections.openshell.sandbox.plugins.modules.{name}")
        plain = json.loads(json.dumps(arguments))  # as a trip through a pipe would make them
        return run_here(module.main, plain, bool(self._task.check_mode), self.memory)

    def is_here(self) -> bool:
        """Whether a module would run as this user on this machine, with nothing in between."""
        environment = [one for one in self._task.environment or [] if one]
        return self._connection.transport == "local" and self._connection.become is None and not environment
