# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Print a text to the person at the terminal as it is, without a result's wrapping."""

from __future__ import annotations

from typing import Any, Dict

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display


class ActionModule(ActionBase):  # type: ignore[misc]
    """``openshell.sandbox.report``: option ``text``."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset({"text"})
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: Dict[str, Any] | None = None) -> Dict[str, Any]:
        result: Dict[str, Any] = super().run(tmp, task_vars)
        Display().display(str(self._task.args.get("text", "")))
        result.update(changed=False)
        return result
