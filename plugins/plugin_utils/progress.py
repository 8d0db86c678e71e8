# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An action that runs its module and meanwhile says every few seconds that it is still at work."""

from __future__ import annotations

import threading
import time
from typing import Any, Dict

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

INTERVAL = 10.0  # seconds between two lines


class ProgressAction(ActionBase):  # type: ignore[misc]
    """Base of the action plugins of modules that take minutes. A fast run prints nothing and costs nothing."""

    def run(self, tmp: str | None = None, task_vars: Dict[str, Any] | None = None) -> Dict[str, Any]:
        result: Dict[str, Any] = super().run(tmp, task_vars)
        done = threading.Event()
        teller = threading.Thread(target=tell, args=(done, self._task.get_name()), daemon=True)
        teller.start()
        try:
            result.update(self._execute_module(task_vars=task_vars))
        finally:
            done.set()
            teller.join()
        return result


def tell(done: threading.Event, what: str, interval: float = INTERVAL) -> None:
    """Print *what* and the seconds since the call, every *interval* seconds until *done*."""
    begun = time.monotonic()
    while not done.wait(interval):
        Display().display(f"  ... {what}: {time.monotonic() - begun:.0f} s")
