# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two connections joined: bytes pass from one to the other untouched, half-close and back-pressure too."""

from __future__ import annotations

import asyncio
from typing import cast

from openshell_proxy.relay import splice
from openshell_proxy.relay.incoming import Incoming
from openshell_proxy.relay.splice import Splicer
from openshell_proxy.relay.stream import HIGH_WATER

# A direction that has carried so many bytes is a long one: from then on they do not come up to us any more.
SPLICED_AFTER = 4 * 1024 * 1024


class PipeEnd(Incoming):
    """One of the two ends. What it receives the other one sends; ``received`` counts bytes."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.other: PipeEnd = self
        self.transport: asyncio.Transport | None = None
        self.received = 0
        self.early = bytearray()  # what came before the pipe flows
        self.ended = False
        self.lost = False
        self.splicer: Splicer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        self.transport.set_write_buffer_limits(HIGH_WATER)
        if self.other.transport is None:
            self.transport.pause_reading()  # nobody to send to yet; a loop may still deliver what it has

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.other.transport is None or not self.pipe.flows:
            self.early += data  # also while the other one stands already: nothing may overtake what is here
        elif not self.other.lost and not self._splice(data):
            self.other.transport.write(data)

    def _splice(self, data: bytes) -> bool:
        """Hand this direction over to the kernel, where that is worth it and nothing waits to be written before *data*."""
        if not self.pipe.sockets or self.received < SPLICED_AFTER or self.splicer is not None:
            return False
        assert self.transport is not None and self.other.transport is not None
        if self.other.transport.get_write_buffer_size() or Splicer.alive >= splice.MOST:
            return False
        source, sink = (end.get_extra_info("socket").fileno() for end in (self.transport, self.other.transport))
        try:
            self.splicer = Splicer(source, sink, data, self._passed, self._source_ended, self.pipe.abort)
        except OSError:
            return False  # no descriptor is free: as before, then
        self.transport.pause_reading()
        return True

    def _passed(self, count: int) -> None:
        self.received += count

    def _source_ended(self) -> None:
        self.ended = True
        self.pipe.end_of(self)

    def eof_received(self) -> bool:
        self.ended = True
        self.pipe.end_of(self)
        return self.transport is not None and self.transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = self.lost = True
        self.pipe.lost(self, exc)

    def pause_writing(self) -> None:
        if self.other.transport is not None and not self.other.lost:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None and not self.other.lost:
            self.other.transport.resume_reading()


class Pipe:
    """A pair of ends; ``done`` is set when both are gone. *sockets*: both are bare sockets, without TLS."""

    def __init__(self, sockets: bool = False) -> None:
        self.sockets = sockets
        self.client, self.upstream = PipeEnd(self), PipeEnd(self)
        self.client.other, self.upstream.other = self.upstream, self.client
        self.done: asyncio.Event = asyncio.Event()
        self.flows = False
        self.aborted = False

    @property
    def received(self) -> int:
        """Bytes that came from both ends together."""
        return self.client.received + self.upstream.received

    def join(self, end: PipeEnd, transport: asyncio.Transport, early: bytes = b"") -> None:
        """Take over an existing *transport*, with bytes of it that were read already, for *end*."""
        self.flows = True
        transport.set_protocol(end)
        end.transport = transport
        transport.set_write_buffer_limits(HIGH_WATER)
        if early:
            end.data_received(early)

    def begin(self) -> None:
        """Both ends stand: let bytes flow."""
        if self.aborted:
            self.abort()
            return
        self.flows = True
        for end in (self.client, self.upstream):
            if end.early and end.other.transport is not None and not end.other.lost:
                end.other.transport.write(bytes(end.early))
                end.early.clear()
            if end.lost:
                self.lost(end, None)
            elif end.transport is not None:
                end.transport.resume_reading()
                if end.ended:
                    self.end_of(end)

    def end_of(self, end: PipeEnd) -> None:
        """One side has said all it has to say: tell the other, and close when both have."""
        other = end.other
        if not self.flows or other.transport is None or other.lost:
            return  # begin() comes back to it, once what came before the end is on its way
        if other.transport.can_write_eof():
            other.transport.write_eof()
            if other.ended:
                _close(end)
                _close(other)
        else:
            other.transport.close()  # TLS has no half-close here; what is buffered is still sent

    def lost(self, end: PipeEnd, error: Exception | None) -> None:
        self._close_splicers()  # their duplicates would keep the connections open
        other = end.other
        if other.transport is not None and not other.lost and (self.flows or self.aborted):
            if error is not None:
                other.transport.abort()
            else:
                other.transport.close()
        if other.lost:
            self.done.set()

    def abort(self) -> None:
        """End both, also those that do not stand yet."""
        self.aborted = True
        self._close_splicers()
        for end in (self.client, self.upstream):
            if end.transport is not None and not end.lost:
                end.transport.abort()

    def _close_splicers(self) -> None:
        for end in (self.client, self.upstream):
            if end.splicer is not None:
                end.splicer.close()


def _close(end: PipeEnd) -> None:
    if end.transport is not None and not end.lost:
        end.transport.close()
