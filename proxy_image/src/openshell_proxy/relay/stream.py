# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One connection as awaitable reads and writes with back-pressure, over any asyncio transport, TLS or not."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Callable
from typing import cast

from openshell_proxy.relay.incoming import SIZE, Incoming

HIGH_WATER = 262_144
_NO_LINGER = struct.pack("ii", 1, 0)


class HeadTooLarge(Exception):
    """More bytes than a head may have, and no end of it."""


class Stream(Incoming):
    """A connection's reading and writing end.

    Reads fill one buffer, bounded by pausing the transport. ``on_lost`` is called once when the connection is gone, or
    half-closed by a peer that cannot want an answer any more (see ``half_close_ok``): whoever serves it stops.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.buffer: bytes | bytearray = b""
        self.ended = False
        self.lost = False
        self.error: Exception | None = None
        self.half_close_ok = True
        self.last = False  # whether the response at hand is the last that this connection carries
        self.on_last: Callable[[], None] | None = None  # ends what has no further message, once ``last`` is set
        self.on_lost: Callable[[], None] | None = None
        self.given_up = False  # whether nobody waits for more bytes: see Deadline
        self._reader: asyncio.Future[None] | None = None
        self._drainer: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._writing_paused = False
        self._half_closes = False

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        self.transport.set_write_buffer_limits(HIGH_WATER)
        self._half_closes = self.transport.can_write_eof()

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            self._own_buffer().extend(data)
        else:
            self.buffer = data  # as it came: most of it is taken whole, and then not copied once more
        # One full read is enough: two together would be copied, into a block so large that it is mapped.
        if len(self.buffer) >= SIZE and not self._reading_paused and self.transport is not None:
            self._reading_paused = True
            self.transport.pause_reading()
        self._wake_reader()

    def eof_received(self) -> bool:
        self.ended = True
        self._wake_reader()
        if not self.half_close_ok and self.on_lost is not None:
            self.on_lost()
        return self._half_closes

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = self.lost = True
        self.error = exc
        self._wake_reader()
        self.resume_writing()
        if self.on_lost is not None:
            self.on_lost()

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._drainer is not None and not self._drainer.done():
            self._drainer.set_result(None)

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # What we call.

    def pending(self) -> bool:
        """Whether something has come that nobody has taken yet, here or in the kernel; the end counts too."""
        if self.buffer or self.ended:
            return True
        sock = self.transport.get_extra_info("socket") if self.transport is not None else None
        if sock is None or sock.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    async def fill(self) -> bool:
        """Wait for more bytes in the buffer; False at the end of the stream.

        Raises :class:`TimeoutError` when it was given up and nothing has come.
        """
        before = len(self.buffer)
        while len(self.buffer) == before:
            if self.ended:
                return False
            if self.given_up:
                raise TimeoutError
            if self._reading_paused and self.transport is not None:
                self._reading_paused = False
                self.transport.resume_reading()
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return True

    def give_up(self) -> None:
        """End the waiting for more bytes, this one and each until ``given_up`` is taken back."""
        self.given_up = True
        self._wake_reader()

    async def read_head(self, limit: int) -> bytes | None:
        """The next head with its empty line, or None when the stream ends before one begins.

        Raises :class:`HeadTooLarge`, :class:`TimeoutError`, and :class:`ConnectionError` when it ends within one.
        """
        start = 0
        while True:
            end = self.buffer.find(b"\r\n\r\n", start)
            if 0 <= end <= limit - 4:
                return self.consume(end + 4)
            if len(self.buffer) > limit:
                raise HeadTooLarge
            start = max(0, len(self.buffer) - 3)
            if not await self.fill():
                if not self.buffer and self.error is None:
                    return None
                raise ConnectionError("the connection ended within a head")

    def consume(self, count: int) -> bytes:
        """Take *count* bytes that are in the buffer."""
        if count == len(self.buffer):
            data, self.buffer = bytes(self.buffer), b""
        else:
            buffer = self._own_buffer()
            data = bytes(memoryview(buffer)[:count])
            del buffer[:count]
        if self._reading_paused and len(self.buffer) < SIZE and self.transport is not None:
            self._reading_paused = False
            self.transport.resume_reading()
        return data

    def _own_buffer(self) -> bytearray:
        """The buffer as one that can be changed in place."""
        if isinstance(self.buffer, bytes):
            self.buffer = bytearray(self.buffer)
        return self.buffer

    def write(self, data: bytes) -> None:
        """Send *data*; raises :class:`ConnectionError` when nobody is there."""
        if self.lost or self.transport is None:
            raise ConnectionError("the connection is gone")
        self.transport.write(data)

    async def drain(self) -> None:
        """Wait until the peer has taken enough. Raises :class:`ConnectionError`."""
        if self._writing_paused and not self.lost:
            self._drainer = asyncio.get_running_loop().create_future()
            await self._drainer
        if self.lost:
            raise ConnectionError("the connection is gone")

    def alpn(self) -> str | None:
        """The protocol that TLS agreed on (RFC 7301)."""
        tls = self.transport.get_extra_info("ssl_object") if self.transport is not None else None
        return tls.selected_alpn_protocol() if tls is not None else None

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Reset: the peer must see that something is missing, also where the end of the connection is that of a body."""
        if self.transport is not None and not self.lost:
            sock = self.transport.get_extra_info("socket")
            if sock is not None:  # one that is closing already has none
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self.transport.abort()

    async def linger(self, seconds: float) -> None:
        """Close so that the peer still reads what was written: take in what it sends for a while (RFC 9112, 9.6)."""
        self.half_close_ok, self.on_lost = True, None
        if self.transport is None or self.lost:
            return
        try:
            if self.transport.can_write_eof():
                self.transport.write_eof()
            async with asyncio.timeout(seconds):
                while not self.ended:
                    self.buffer = b""
                    await self.fill()
        except (TimeoutError, OSError):
            pass
        finally:
            self.close()


class Deadline:
    """Gives a stream up at a time that is set anew for every head. Its one timer is moved when it fires, not before.

    A timer for each request would be made and cancelled thousands of times a second and hardly ever fire.
    """

    __slots__ = ("_at", "_loop", "_stream", "_timer")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        self._at = at = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > at:
            self._start(at)

    def clear(self) -> None:
        """What was waited for has come."""
        self._at = None
        self._stream.given_up = False

    def close(self) -> None:
        self._at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._at is None:
            return
        if self._at > self._loop.time():
            self._start(self._at)
        else:
            self._stream.give_up()
