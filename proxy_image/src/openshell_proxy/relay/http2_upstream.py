# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""HTTP/2 connections to the destinations: many streams on each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from h2.errors import ErrorCodes

from openshell_proxy.relay.http2 import Endpoint, Side

STREAM_WINDOW = 2_097_152
FRAME = 65_536
MAX_STREAMS = 1000
STREAMS_BEFORE_SETTINGS = 100
MAX_RESPONSE_HEAD = 65_536
SILENCE_SECONDS = 20.0


class Upstream(Endpoint):
    """A connection to the origin at *address*; *gone_from* takes it out of the pool."""

    def __init__(self, address: str, idle: float, gone_from: Callable[[Upstream], None]) -> None:
        super().__init__(True, STREAM_WINDOW, FRAME, STREAMS_BEFORE_SETTINGS, MAX_RESPONSE_HEAD)
        self.address = address
        self.idle = idle
        self.gone_from = gone_from
        self._idle_timer: asyncio.TimerHandle | None = None
        self._silence_timer: asyncio.TimerHandle | None = None
        self._asked = 0.0

    def free(self) -> bool:
        """Whether it can carry one more stream."""
        most = min(MAX_STREAMS, self.core.remote_settings.get(3, STREAMS_BEFORE_SETTINGS))
        spent = self.core.highest_outbound_stream_id >= 2**31 - 3
        return not self.gone and not self.leaving and not spent and len(self.streams) < most

    def open(self) -> Side:
        """A new stream, on which the request's head is to be sent at once."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        side = Side(self, self.core.get_next_available_stream_id())
        self.streams[side.number] = side
        if self._silence_timer is None:
            self.heard = time.monotonic()
            self._silence_timer = self._loop.call_later(SILENCE_SECONDS, self._listen)
        return side

    def _listen(self) -> None:
        """Ask a peer that has been silent while streams wait whether it is there; give up one that is not."""
        self._silence_timer = None
        if self.gone or not self.streams:
            return
        if time.monotonic() - self.heard >= SILENCE_SECONDS:
            if self._asked > self.heard and self.transport is not None:
                self.transport.abort()
                return
            self._asked = time.monotonic()
            self.core.ping(b"openshel")
            self.flush_soon()
        self._silence_timer = self._loop.call_later(SILENCE_SECONDS, self._listen)

    def left_by_peer(self, last: int) -> None:
        super().left_by_peer(last)
        self.gone_from(self)
        for side in [one for one in self.streams.values() if one.number > last]:
            side.forget()
            if side.on_reset is not None:
                side.on_reset(int(ErrorCodes.REFUSED_STREAM))  # the peer has not looked at it
        if not self.streams:
            self.close()

    def over(self, side: Side) -> None:
        super().over(side)
        if not self.streams and not self.gone:
            if self.leaving:
                self._loop.call_soon(self.close)
            elif self._idle_timer is None:
                self._idle_timer = self._loop.call_later(self.idle, self._expire)

    def _expire(self) -> None:
        self.gone_from(self)
        self.retire()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone_from(self)
        for timer in (self._idle_timer, self._silence_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
