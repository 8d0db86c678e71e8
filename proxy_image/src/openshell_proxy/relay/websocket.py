# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A WebSocket whose client messages are judged one by one; what the server says passes as it is (spec 2.7, RFC 6455).

A text message is gathered whole, judged, and written anew: what the destination reads is what was judged, whatever the
fragments, masks and compression were that it came in. Binary frames pass byte by byte. Imported only when the first
such socket opens: the ``websockets`` library costs memory that most sandboxes never need.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NoReturn, Protocol

from websockets.exceptions import PayloadTooBig
from websockets.exceptions import ProtocolError as FrameError
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import BINARY, CLOSE, CONT, TEXT, Close, CloseCode, Frame, Opcode
from websockets.frames import apply_mask as _apply_mask  # type: ignore[attr-defined]  # the compiled one if there is

from openshell_proxy.relay.stream import Stream
from openshell_proxy.settings import MessageLimits

MAX_REASON = 123  # bytes of a close frame's reason: RFC 6455, 5.5
_CHUNK = 65_536


class Verdict(Protocol):
    """What a judge answers; ``reason`` is told to the client and must hold nothing of the message."""

    @property
    def allowed(self) -> bool: ...
    @property
    def reason(self) -> str: ...


Judge = Callable[[bytes], Awaitable[Verdict]]
Rewrite = Callable[[bytes], bytes | None]


class _Refused(Exception):
    """The connection ends with this close code; ``reason`` holds nothing of a message."""

    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(reason)


class _Ended(Exception):
    """The client's bytes ended, or somebody else ends the connection."""


@dataclasses.dataclass(frozen=True, slots=True)
class FrameHeader:
    """A frame's first bytes (RFC 6455, 5.2): ``size`` of them, then ``length`` bytes of payload."""

    opcode: int
    fin: bool
    rsv1: bool
    reserved: bool
    mask: bytes
    length: int
    size: int
    minimal: bool

    @property
    def control(self) -> bool:
        return self.opcode >= CLOSE


def parse_frame_header(data: bytes | bytearray, at: int = 0) -> FrameHeader | None:
    """The header that begins at *at*, or None while it is not all there. Judges nothing."""
    have = len(data) - at
    if have < 2:
        return None
    first, second = data[at], data[at + 1]
    length, masked = second & 0x7F, second >= 0x80
    wide = {126: 2, 127: 8}.get(length, 0)
    size = 2 + wide + 4 * masked
    if have < size:
        return None
    minimal = True
    if wide:
        length = int.from_bytes(data[at + 2 : at + 2 + wide], "big")
        minimal = length > (125 if wide == 2 else 0xFFFF)
    mask = bytes(data[at + size - 4 : at + size]) if masked else b""
    return FrameHeader(first & 0x0F, first >= 0x80, bool(first & 0x40), bool(first & 0x30), mask, length, size, minimal)


class FrameWalk:
    """Where frames begin and end in bytes that pass unseen, so that a close frame is never put within another."""

    __slots__ = ("closed", "left")

    def __init__(self, left: int = 0) -> None:
        self.left = left  # bytes of the frame at hand that are still to come
        self.closed = False  # a close frame has begun

    def take(self, data: bytes | bytearray, to_boundary: bool = False) -> int:
        """How many bytes of *data* can pass: no part of a header, and with *to_boundary* not a byte of another frame."""
        position = 0
        while position < len(data) and (self.left or not to_boundary):
            if not self.left:
                header = parse_frame_header(data, position)
                if header is None:
                    break
                self.left = header.size + header.length
                self.closed = self.closed or header.opcode == CLOSE
            used = min(self.left, len(data) - position)
            self.left -= used
            position += used
        return position


class Assemblies:
    """The text messages of all sockets that are being gathered or handed on, bounded: each may hold megabytes."""

    def __init__(self, limits: MessageLimits) -> None:
        self._limits = limits
        self._free = asyncio.Semaphore(limits.assemblies)
        self._waiting = 0

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold a place; refused with 1013 where too many wait for one, or one waits too long."""
        if self._free.locked():
            if self._waiting >= self._limits.waiting:
                raise _Refused(CloseCode.TRY_AGAIN_LATER, "too many messages at once; try again later")
            self._waiting += 1
            try:
                async with asyncio.timeout(self._limits.total):
                    await self._free.acquire()
            except TimeoutError:
                raise _Refused(CloseCode.TRY_AGAIN_LATER, "too many messages at once; try again later") from None
            finally:
                self._waiting -= 1
        else:
            await self._free.acquire()
        try:
            yield
        finally:
            self._free.release()


class JudgedWebSocket:
    """One upgraded connection, from the 101 to the end of both sides.

    ``deflate``: permessage-deflate was agreed on, for the client without context takeover (upgrade.py), so each message
    can be inflated alone. Admitted text goes on without compression, which RFC 7692, 6.1 leaves to every message.
    ``rewrite`` changes admitted text before it is sent; its None refuses the message.
    """

    __slots__ = (
        "_assemblies", "_binary_open", "_deadline", "_deflate", "_down", "_judge", "_limits", "_over", "_rewrite",
        "_up_left", "binary_allowed", "client", "client_closed", "closing", "origin", "received", "sent",
    )  # fmt: skip

    def __init__(
        self, client: Stream, origin: Stream, judge: Judge, limits: MessageLimits, assemblies: Assemblies,
        deflate: bool, *, binary_allowed: bool = True, rewrite: Rewrite | None = None,
    ) -> None:  # fmt: skip
        self.client, self.origin = client, origin
        self.binary_allowed = binary_allowed
        self.received = self.sent = 0  # bytes from the origin and from the client
        self.closing: tuple[int, str] | None = None  # the code and the reason that we close with
        self.client_closed = False
        self._judge, self._rewrite = judge, rewrite
        self._limits, self._assemblies = limits, assemblies
        self._deflate = PerMessageDeflate(True, True, 15, 15) if deflate else None
        self._down = FrameWalk()
        self._up_left = 0  # bytes of a binary frame that the origin still waits for
        self._binary_open = False
        self._deadline: float | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # What the outside calls.

    async def run(self) -> None:
        """Relay until both sides have ended; never longer than a few seconds after :meth:`stop`."""
        loop = asyncio.get_running_loop()
        self.client.half_close_ok, self.client.on_lost = True, None  # what the client said last is still handed on
        up, down = loop.create_task(self._upward()), loop.create_task(self._downward())
        try:
            await self._over
            up.cancel()
            await asyncio.wait((up,))  # a stream has one reader at a time
            if self.closing is not None:
                await self._say_goodbye(*self.closing, down)
        finally:
            up.cancel()
            down.cancel()
            self.client.on_lost = None
            for side in (self.client, self.origin):
                side.close()
                loop.call_later(self._limits.close, side.abort)  # what a peer does not take must not hold us
            await asyncio.gather(up, down, return_exceptions=True)
        if not up.cancelled():
            up.result()  # a fault of ours is no secret

    def stop(self, code: int, reason: str) -> None:
        """Close with *code*: from here on no byte of the client is forwarded. The first to close wins."""
        if not self._over.done():
            self.closing = (code, reason)
            self._over.set_result(None)

    # Client to origin.

    async def _upward(self) -> None:
        try:
            await self._frames()
        except _Refused as refused:
            self.stop(refused.code, refused.reason)
        except _Ended:
            await self._client_ended()
        except ConnectionError:
            self._end()
        except Exception:
            self.stop(CloseCode.INTERNAL_ERROR, "the message could not be judged")
            raise

    async def _frames(self) -> NoReturn:
        while True:
            header = await self._header()
            if header.control:
                await self._control(header)
            elif header.opcode == TEXT and not self._binary_open:
                await self._text(header)
            elif header.opcode == (CONT if self._binary_open else BINARY):
                await self._binary(header)
            else:
                raise _Refused(CloseCode.PROTOCOL_ERROR, "a frame that cannot come here")
            await asyncio.sleep(0)  # a buffer full of small messages must not hold up every other connection

    async def _header(self) -> FrameHeader:
        """The next frame's header, checked as far as it goes without its message; its bytes stay in the buffer."""
        while (header := parse_frame_header(self.client.buffer)) is None:
            await self._more()
        if not header.mask:
            raise _Refused(CloseCode.PROTOCOL_ERROR, "a client's frame must be masked")
        compressed = header.opcode in (TEXT, BINARY) and self._deflate is not None
        if header.reserved or (header.rsv1 and not compressed):
            raise _Refused(CloseCode.PROTOCOL_ERROR, "a reserved bit is set")
        if not header.minimal or (header.control and (header.length > 125 or not header.fin)):
            raise _Refused(CloseCode.PROTOCOL_ERROR, "the frame's length is not allowed")
        return header

    async def _more(self) -> None:
        """Wait for bytes of the client, within the limits of a message that has begun."""
        if self._deadline is None:
            found = await self.client.fill()
        else:
            now = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout_at(min(self._deadline, now + self._limits.idle)):
                    found = await self.client.fill()
            except TimeoutError:
                raise _Refused(CloseCode.POLICY_VIOLATION, "the message was not finished in time") from None
        if not found:
            raise _Ended

    async def _payload(self, header: FrameHeader) -> bytes:
        """Take a whole frame off the buffer; its payload without the mask."""
        while len(self.client.buffer) < header.size + header.length:
            await self._more()
        self.client.consume(header.size)
        self.sent += header.size + header.length
        return bytes(_apply_mask(self.client.consume(header.length), header.mask))

    async def _text(self, header: FrameHeader) -> None:
        async with self._assemblies.one():
            self._deadline = asyncio.get_running_loop().time() + self._limits.total
            text = await self._assembled(header)
            self._deadline = None
            try:
                text.decode()
            except UnicodeDecodeError:
                raise _Refused(CloseCode.INVALID_DATA, "the text is not UTF-8") from None
            verdict = await self._judge(text)
            if not verdict.allowed:
                raise _Refused(CloseCode.POLICY_VIOLATION, f"policy_denied: {verdict.reason}")
            admitted = text if self._rewrite is None else self._rewrite(text)
            if admitted is None:
                raise _Refused(CloseCode.POLICY_VIOLATION, "credential_denied: a placeholder cannot be resolved here")
            await self._send(Frame(TEXT, admitted).serialize(mask=True))

    async def _assembled(self, header: FrameHeader) -> bytes:
        """The whole text message that begins with *header*; control frames in between are handed on."""
        limit, compressed = self._limits.text, header.rsv1
        too_big = _Refused(CloseCode.MESSAGE_TOO_BIG, f"a text message may have {limit} bytes")
        text = bytearray()
        for _ in range(self._limits.fragments):
            # Deflate may make short data longer, so the room that is left binds what comes out; that is checked below.
            if header.length > (limit if compressed else limit - len(text)):
                raise too_big
            text += self._inflated(header, await self._payload(header), limit - len(text), too_big)
            if len(text) > limit:
                raise too_big
            if header.fin:
                return bytes(text)
            header = await self._continuation()
        raise _Refused(CloseCode.MESSAGE_TOO_BIG, f"a message may have {self._limits.fragments} fragments")

    def _inflated(self, header: FrameHeader, data: bytes, room: int, too_big: _Refused) -> bytes:
        if self._deflate is None:
            return data
        try:
            # One byte more than there is room for: the library takes 0 for no limit at all.
            frame = Frame(Opcode(header.opcode), data, header.fin, header.rsv1)
            return bytes(self._deflate.decode(frame, max_size=room + 1).data)
        except PayloadTooBig:
            raise too_big from None
        except FrameError:
            raise _Refused(CloseCode.PROTOCOL_ERROR, "the message cannot be decompressed") from None

    async def _continuation(self) -> FrameHeader:
        while (header := await self._header()).control:
            await self._control(header)
        if header.opcode != CONT:
            raise _Refused(CloseCode.PROTOCOL_ERROR, "a message begins within another")
        return header

    async def _binary(self, header: FrameHeader) -> None:
        """Hand on one binary frame as it comes, mask and compression too: nobody judges it."""
        if not self.binary_allowed:
            reason = "policy_denied: binary messages are not inspected, so none may go where credentials are used"
            raise _Refused(CloseCode.POLICY_VIOLATION, reason)
        if header.length > self._limits.binary_frame:
            reason = f"a binary frame may have {self._limits.binary_frame} bytes"
            raise _Refused(CloseCode.MESSAGE_TOO_BIG, reason)
        self._binary_open = not header.fin
        left = header.size + header.length
        while left:
            if not self.client.buffer:
                await self._more()
            data = self.client.consume(min(left, len(self.client.buffer), _CHUNK))
            left -= len(data)
            self.sent += len(data)
            await self._send(data, left)

    async def _control(self, header: FrameHeader) -> None:
        data = await self._payload(header)
        try:
            frame = Frame(Opcode(header.opcode), data)
            if header.opcode == CLOSE:
                Close.parse(data)
        except (FrameError, ValueError) as error:
            code = CloseCode.INVALID_DATA if isinstance(error, UnicodeDecodeError) else CloseCode.PROTOCOL_ERROR
            raise _Refused(code, "a control frame is malformed") from None
        await self._send(frame.serialize(mask=True))
        if header.opcode == CLOSE:
            self.client_closed = True
            raise _Ended

    async def _send(self, data: bytes, left: int = 0) -> None:
        """Write to the origin, unless the connection is being closed; *left* bytes of the frame are still to come."""
        if self._over.done():
            raise _Ended
        self._up_left = left
        self.origin.write(data)
        try:
            async with asyncio.timeout(self._limits.write):
                await self.origin.drain()
        except TimeoutError:
            raise _Refused(CloseCode.INTERNAL_ERROR, "the destination does not take what is sent to it") from None

    async def _client_ended(self) -> None:
        """The client has said all: what is half-closed stays open for the answer, what nobody can hear ends."""
        while not self.client.ended:  # only after its close frame: nothing that follows one means anything
            self.client.consume(len(self.client.buffer))
            await self.client.fill()
        if self.client.lost or self.origin.transport is None:
            self._end()
            return
        self.client.on_lost = self._end
        if self.client_closed:
            await asyncio.sleep(self._limits.close)
            self._end()
        elif self.origin.transport.can_write_eof():
            self.origin.transport.write_eof()
        else:
            self._end()

    # Origin to client.

    async def _downward(self) -> None:
        """Bytes as they are, with back-pressure; when the connection is being closed, to the end of the frame at hand."""
        try:
            while not (self._over.done() and not self._down.left):
                if used := self._down.take(self.origin.buffer, self._over.done()):
                    self.received += used
                    self.client.write(self.origin.consume(used))
                    await self.client.drain()
                elif not await self.origin.fill():
                    break
        except ConnectionError:
            pass
        if self.origin.error is not None:
            self.client.abort()
        self._end()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    async def _say_goodbye(self, code: int, reason: str, down: asyncio.Task[None]) -> None:
        """A close frame to each side, between two frames of theirs, then a moment for the client to hear it."""
        try:
            async with asyncio.timeout(self._limits.close):
                if self._down.left:
                    await asyncio.wait((down,))
                down.cancel()
                if not self._up_left and not self.client_closed and not self.origin.lost:
                    self.origin.write(_close_frame(CloseCode.GOING_AWAY, "", mask=True))
                self.origin.close()
                if not self._down.left and not self._down.closed:
                    self.client.write(_close_frame(code, reason, mask=False))
                if self.client.transport is not None and self.client.transport.can_write_eof():
                    self.client.transport.write_eof()
                await self._until_client_closes()
        except (TimeoutError, ConnectionError):
            pass

    async def _until_client_closes(self) -> None:
        """Take in what the client still sends: closing before would reset what it has not read yet."""
        walk = FrameWalk(self._up_left)
        while not (walk.closed and not walk.left) and not self.client.ended:
            used = walk.take(self.client.buffer)
            self.client.consume(used)
            if not used:
                await self.client.fill()


def _close_frame(code: int, reason: str, *, mask: bool) -> bytes:
    short = reason.encode()[:MAX_REASON].decode(errors="ignore")
    return Frame(CLOSE, Close(code, short).serialize()).serialize(mask=mask)
