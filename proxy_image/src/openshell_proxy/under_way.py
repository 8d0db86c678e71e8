# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The requests under way: how many there may be, and how long one may stand still."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable

from openshell_proxy.audit import Event
from openshell_proxy.refusal import Refusal
from openshell_proxy.settings import Limits

RETRY_AFTER = 1  # seconds


@dataclasses.dataclass(slots=True)
class _Entry:
    task: asyncio.Task[object]
    event: Event
    moved: int
    since: float
    passed: Callable[[], int] = int  # bytes that the event does not tell yet
    expired: bool = False


class UnderWay:
    """Bounds them. Stillness is seen by looking now and then at the counted bytes: a timer each would cost too much."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._entries: dict[int, _Entry] = {}  # by the identity of the request's event

    def __len__(self) -> int:
        return len(self._entries)

    def begin(self, event: Event) -> None:
        """Count the current task's request in. Raises :class:`Refusal` (503) where there are too many."""
        if len(self._entries) >= self.limits.requests:
            raise Refusal(503, "overloaded", "too many requests are under way", retry_after=RETRY_AFTER)
        task = asyncio.current_task()
        assert task is not None
        self._entries[id(event)] = _Entry(task, event, event.bytes_in + event.bytes_out, time.monotonic())

    def follow(self, event: Event, passed: Callable[[], int]) -> None:
        """From now on *passed* tells the bytes of a connection that was upgraded; the event does when it ends."""
        self._entries[id(event)].passed = passed

    def end(self, event: Event) -> None:
        self._entries.pop(id(event), None)

    def expired(self, event: Event) -> bool:
        """Whether it was this that cancelled the current task; if so the cancellation is taken back."""
        entry = self._entries.get(id(event))
        if entry is None or not entry.expired:
            return False
        entry.task.uncancel()
        return True

    def sweep(self) -> None:
        """Cancel what has stood still for too long."""
        now = time.monotonic()
        for entry in self._entries.values():
            event = entry.event
            moved = event.bytes_in + event.bytes_out + entry.passed()
            if moved != entry.moved:
                entry.moved, entry.since = moved, now
            elif now - entry.since >= self.limits.idle and not entry.expired:
                entry.expired = True
                entry.task.cancel()

    async def watch(self) -> None:
        """Sweep four times within the limit, until cancelled."""
        while True:
            await asyncio.sleep(self.limits.idle / 4)
            self.sweep()
