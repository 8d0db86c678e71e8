# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the container's memory gets scarce connections end, before the kernel ends the whole sidecar.

Each buffer is bounded, but an agent can fill as many as it may open. Counting them all would cost every byte something;
what they take together is looked at from outside instead, a few times a second.
"""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

from openshell_proxy.audit import Audit, Event
from openshell_proxy.entrances.listener import Connections

SCARCE, DIRE = 0.75, 0.85  # shares of the limit from which on none is accepted, and some end
SELDOM, OFTEN = 0.25, 0.01  # seconds between two looks, at most and at least
FILLING = 4 << 30  # bytes in a second; no agent fills memory faster than that
_PAGE = resource.getpagesize()


class Memory:
    """Looks after *connections* while :meth:`watch` runs; does nothing where *cgroup* has no limit (cgroup-v2, memory.max)."""

    def __init__(self, connections: Connections, audit: Audit, cgroup: Path) -> None:
        self.connections, self.audit = connections, audit
        self._stat = cgroup / "memory.stat"
        try:
            text = (cgroup / "memory.max").read_text().strip()
        except OSError:
            text = "max"
        self.most = int(text) if text.isdigit() else 0

    def used(self) -> int:
        """Bytes that the kernel cannot take back: this process's own, and what sockets hold for it."""
        with open("/proc/self/statm", "rb") as handle:
            resident = int(handle.read().split()[1]) * _PAGE
        try:
            lines = self._stat.read_text().splitlines()
        except OSError:
            return resident
        return resident + sum(int(line.split()[1]) for line in lines if line.startswith("sock "))

    def look(self) -> float:
        """Act on what is used; its share of the limit."""
        share = self.used() / self.most
        self.connections.scarce = share > SCARCE
        if share > DIRE and self.connections.tasks:
            # The newest half: whoever floods came last, and what an agent lives on has been there for long.
            tasks = list(self.connections.tasks)
            for task in tasks[len(tasks) // 2 :]:
                task.cancel()
            reason = "memory is scarce: the newest connections are ended"
            self.audit.event(Event("client", False, "", 0, engine="client", reason=reason))
        return share

    async def watch(self) -> None:
        """Look now and then, until cancelled."""
        share = 0.0
        while self.most:
            left = max(0.0, DIRE - share) * self.most
            await asyncio.sleep(min(SELDOM, max(OFTEN, left / FILLING)))
            share = self.look()
