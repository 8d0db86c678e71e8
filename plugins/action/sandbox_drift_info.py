# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look at several sandboxes of one host in one task.

What an unchanged sandbox costs is not its look but what is around it: processes of several tasks, files that are read
anew, calls of Podman. Here the steps of the role sandbox are taken in check mode for one after the other, in one
process, and Podman is asked for all at once.
"""

from __future__ import annotations

import os
from typing import Dict, List, Sequence

from ansible_collections.openshell.sandbox.plugins.action.steps import EXECUTABLE, Json
from ansible_collections.openshell.sandbox.plugins.action.steps import ActionModule as Steps
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import (
    Podman,
    PodmanError,
    is_running,
    new_memory,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.preflight import look_ahead
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNames
from ansible_collections.openshell.sandbox.plugins.plugin_utils.here import COLLECTION, HereAction

ROLE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "roles", "sandbox")

REPORT = f"{COLLECTION}report"


class ActionModule(Steps):
    """``openshell.sandbox.sandbox_drift_info``; its options are documented with the module of that name."""

    _VALID_ARGS = frozenset({"sandboxes"})

    def run(self, tmp: str | None = None, task_vars: Json | None = None) -> Json:
        result: Json = HereAction.run(self, tmp, task_vars)
        members = [str(one) for one in self._task.args.get("sandboxes") or []]
        # Elsewhere each step is a module of its own, which can as well be the sandbox's own run.
        return {**result, "changed": False, "as_declared": self._as_declared(members) if self.is_here() else []}

    def _as_declared(self, members: Sequence[str]) -> List[str]:
        self._task.check_mode = True
        self.memory = new_memory()
        variables = {member: self._variables_of(member) for member in members}
        names = {member: self._names(variables[member]) for member in members}
        standing = self._standing({member: one for member, one in names.items() if one is not None}, variables)
        return [member for member in standing if self._is_as_declared(variables[member])]

    def _variables_of(self, member: str) -> Json:
        """What a task of this play would see if it were run for *member*, in check mode."""
        manager = self._task.get_variable_manager()
        found: Json = manager.get_vars(play=self._task._parent._play, host=manager._inventory.get_host(member))
        return {**found, "ansible_check_mode": True, "role_path": ROLE}

    def _names(self, variables: Json) -> SandboxNames | None:
        """Those of a sandbox that is to run, and for which nothing else is to be done; None for any other."""
        self.variables = variables
        try:
            if self._template(variables.get("openshell_state", "started")) not in ("present", "started"):
                return None
            if self._holds(variables.get("openshell_manage_packages", False)):
                return None
            wanted = (self._template(variables.get(key) or "") for key in ("sandbox_name", "openshell_sandbox_id"))
            return SandboxNames.of(*map(str, wanted))
        except Exception:  # a template of the user's, or a name that is none: the sandbox's own run tells
            return None

    def _standing(self, names: Dict[str, SandboxNames], variables: Dict[str, Json]) -> List[str]:
        """Members whose containers run; what the first steps need is known of all members then."""
        if not names:
            return []
        self.variables = variables[next(iter(names))]
        podman = Podman(str(self._template(self.variables.get(EXECUTABLE) or "podman")), memory=self.memory)
        try:
            look_ahead(podman, *names.values())
            return [
                member
                for member, one in names.items()
                if all(is_running(podman.container(name)) for name in (one.proxy, one.agent))
            ]
        except PodmanError:
            return []

    def _is_as_declared(self, variables: Json) -> bool:
        role = self._load("sandbox", "vars/main.yml", variables)
        # Without its images the judgement of the policy fails, or the containers are found to have another one.
        found = self.series(variables, role["_openshell_look"], role["_openshell_go"], True)
        sentinel = ((found.get("facts") or {}).get("openshell_ready") or {}).get("sentinel") or {}
        whole = sentinel and not sentinel.get("policy_error")
        return bool(whole) and not found.get("failed") and not found["changed"]

    def _run_module(self, action: str, arguments: Json) -> Json:
        """As of any series, but nobody is told of a sandbox what its own run may tell again."""
        return {} if action == REPORT else super()._run_module(action, arguments)
