# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find the keys of inference routes on the controller and hand them to the module, past every variable, fact and output."""

from __future__ import annotations

from typing import Any, Dict

from ansible.plugins.action import ActionBase
from ansible_collections.openshell.sandbox.plugins.action.sandbox_secrets import ActionModule as SecretsAction
from ansible_collections.openshell.sandbox.plugins.module_utils.inference_entries import (
    agent_environment,
    check_routes,
    document,
    key_source,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.secret_entries import Refused


class ActionModule(SecretsAction):
    """``openshell.sandbox.sandbox_inference``; its options are documented with the module of that name."""

    _VALID_ARGS = frozenset({"routes", "secrets", "sandbox_name", "judge_only", "timeout", "executable", "runtime"})

    def run(self, tmp: str | None = None, task_vars: Dict[str, Any] | None = None) -> Dict[str, Any]:
        result: Dict[str, Any] = ActionBase.run(self, tmp, task_vars)
        variables = task_vars or {}
        args = dict(self._task.args)
        try:
            routes = check_routes(args.pop("routes", None) or [], args.pop("secrets", None))
            result["env"] = agent_environment(routes)
            if args.pop("judge_only", False):
                return {**result, "changed": False}
            sources = {str(route["name"]): key_source(route) for route in routes}
            keys = {
                name: self._value({"name": f"key of the inference route {name}", **source}, variables)
                for name, source in sources.items()
                if source is not None
            }
            empty = [name for name, key in keys.items() if not key]
            if empty:
                raise Refused(f"inference route '{empty[0]}' has an empty key")
            args["document"] = document(routes, keys)
        except Refused as refused:
            return {**result, "failed": True, "msg": str(refused)}
        result.update(self.module("sandbox_inference", args, variables))
        return result
