# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One call on its way to its route's destination and its answer on the way back (spec 2.10).

An answer that was not asked for in pieces is gathered first, so that whatever fails is told with a status. One that
streams begins with its first piece; what fails then is told by an event, or by a broken connection.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from openshell_proxy.audit import Event
from openshell_proxy.credentials.streams import Echoes, Inflated, Mask
from openshell_proxy.destination import DestinationError
from openshell_proxy.entrances.authority_form import render_host
from openshell_proxy.inference.authorisation import Authorisation
from openshell_proxy.inference.body import Share
from openshell_proxy.inference.errors import CallRefusal, stream_error
from openshell_proxy.inference.patterns import Pattern
from openshell_proxy.inference.request import Prepared, forwarded
from openshell_proxy.inference.routes import Route, call_url
from openshell_proxy.inference.usage import EventLines, Usage
from openshell_proxy.policy import Decision, Intent
from openshell_proxy.relay.dialer import UpstreamError
from openshell_proxy.relay.exchange import MAX_RESPONSE_HEAD, Broken
from openshell_proxy.relay.http1 import (
    Body,
    Header,
    ProtocolError,
    RequestHead,
    ResponseHead,
    parse_response_head,
    render_head,
    response_framing,
)
from openshell_proxy.relay.recode import CHUNKED, Transform, reframed
from openshell_proxy.relay.stream import HeadTooLarge, Stream
from openshell_proxy.relay.upstream import UpstreamStream

if TYPE_CHECKING:
    from openshell_proxy.pipeline import Pipeline

MAX_ANSWER = 32 * 1024 * 1024
CONNECT_TRIES = 2
CONNECT_PAUSE = 0.2  # seconds
_COMPRESSED = (b"gzip", b"x-gzip", b"deflate")


class _Failed(Exception):
    """The destination's answer cannot be used; the text is for the agent and names no place."""


class _Content:
    """The content of an answer's body, as it comes, searched for the key and never compressed."""

    __slots__ = ("_body", "_mask", "_upstream", "echoes", "size")

    def __init__(self, upstream: UpstreamStream, head: ResponseHead, echoes: Echoes) -> None:
        codings = [coding for coding in head.members(b"content-encoding") if coding != b"identity"]
        if len(codings) > 1 or any(coding not in _COMPRESSED for coding in codings):
            raise _Failed("answered in a coding that was not asked for and cannot be searched")
        self._upstream = upstream
        self._body = Body(response_framing(head, "POST"), collect=True)
        self._mask: Transform = Inflated(Mask(echoes)) if codings else Mask(echoes)
        self.echoes = echoes
        self.size = 0

    @property
    def done(self) -> bool:
        return self._body.done

    async def piece(self, idle: float | None = None) -> bytes:
        """What comes next, perhaps nothing of it yet; waits *idle* seconds at most. The last piece makes it ``done``."""
        upstream, body = self._upstream, self._body
        if not upstream.buffer:
            async with asyncio.timeout(idle):
                more = await upstream.fill()
            if not more:
                if upstream.error is not None:
                    raise _Failed("broke the connection off")
                body.end_of_stream()
        wire = upstream.consume(body.take(upstream.buffer))
        data = self._mask.feed(body.content(wire))
        if body.done:
            data += self._mask.end()
        self.size += len(data)
        if self.size > MAX_ANSWER:
            raise _Failed(f"answered with more than {MAX_ANSWER} bytes")
        return data


@dataclasses.dataclass(slots=True)
class Call:
    """``path`` is the client's with its query, ``prepared`` what is to be sent.

    ``usage`` and ``event`` tell afterwards what came of it.
    """

    pipeline: Pipeline
    client: Stream
    head: RequestHead
    pattern: Pattern
    path: str
    prepared: Prepared
    event: Event
    share: Share
    usage: Usage = dataclasses.field(default_factory=Usage)
    _finished: bool = False

    @property
    def route(self) -> Route:
        return self.prepared.route

    async def run(self) -> bool:
        """Do it; True when the client's connection can carry another request.

        Raises :class:`CallRefusal` while nothing of an answer has been sent, :class:`Broken` after.
        """
        upstream: UpstreamStream | None = None
        limit = self.route.idle_seconds if self.prepared.stream else self.route.seconds
        try:
            async with asyncio.timeout(limit):
                upstream, head, echoes = await self._answer()
                content, whole = _Content(upstream, head, echoes), bytearray()
                while not self.prepared.stream and not content.done:
                    piece = await content.piece()
                    self.share.take(len(piece))
                    whole += piece
            keep = self.head.minor == 1 and self.head.persistent() and not self.client.last
            if self.prepared.stream:
                await self._stream(head, content, keep)
            else:
                await self._send(head, echoes, bytes(whole), keep)
            self._finished = content.done
            if content.done and head.persistent() and response_framing(head, "POST").kind != "eof":
                self.pipeline.pool.keep(upstream)
            else:
                upstream.close()
            return keep
        except TimeoutError:
            raise self._refusal(503, "upstream_timeout", f"did not answer within {limit:g} seconds") from None
        except (_Failed, ProtocolError) as error:
            raise self._refusal(502, "upstream_protocol_error", f"cannot be used: {error}") from None
        finally:
            if upstream is not None and not self._finished:
                upstream.abort()

    def _refusal(self, status: int, code: str, what: str) -> CallRefusal:
        return CallRefusal(status, code, f"the inference route '{self.route.name}' {what}", style=self.pattern.style)

    # To the destination.

    async def _answer(self) -> tuple[UpstreamStream, ResponseHead, Echoes]:
        """The connection on which an answer comes, its head, and what must not be seen of it."""
        route, pattern = self.route, self.pattern
        url = urlsplit(call_url(route, pattern, self.path, self.prepared.stream))
        target = url.path + (f"?{url.query}" if url.query else "")
        body = self.prepared.body
        vault = self.pipeline.generation.vault
        authorised = Authorisation(route, vault, target, pattern.style, self.pipeline.post)
        origin = route.origin
        host = (b"Host", render_host(origin.host, origin.port, 443 if origin.tls else 80))
        fields = [host, *forwarded(route, self.head), (b"Accept-Encoding", b"identity")]
        for again in (False, True):
            first = f"POST {target} HTTP/1.1".encode("ascii")
            sent = [*await authorised.fields(fields, body), (b"Content-Length", b"%d" % len(body))]
            upstream = await self._connected()
            try:
                head = await self._ask(upstream, render_head(first, sent) + body)
                if again or head.status != 401 or not await authorised.renewed():
                    return upstream, head, authorised.echoes()
            except BaseException:
                upstream.abort()
                raise
            upstream.abort()  # what it answered is not read: the next answer counts
        raise AssertionError("the second answer counts")

    async def _connected(self) -> UpstreamStream:
        """A connection; nothing has been sent, so one that cannot be made is tried again."""
        origin = self.route.origin
        try:
            # The operator has named this host as a policy names an exact one: it may be a private address, but not one
            # of the sidecar's own networks, nor one that no policy opens.
            addresses = await self.pipeline.guard.pin(Intent(origin.host, origin.port), Decision(True, exact_host=True))
        except DestinationError as error:
            raise self._refusal(502, "ssrf_denied", f"cannot be used: {error.why}") from None
        tries = 1
        while True:
            try:
                return await self.pipeline.pool.connect(origin, addresses)
            except UpstreamError as error:
                if tries == CONNECT_TRIES:
                    raise self._refusal(503, "upstream_unreachable", f"is unreachable: {error.reason}") from None
            tries += 1
            await asyncio.sleep(CONNECT_PAUSE)

    async def _ask(self, upstream: UpstreamStream, request: bytes) -> ResponseHead:
        """Send the call, once, and wait for the final answer's head."""
        try:
            upstream.write(request)
            await upstream.drain()
            seen = 0
            while seen <= MAX_RESPONSE_HEAD:
                block = await upstream.read_head(MAX_RESPONSE_HEAD)
                if block is None:
                    break
                head = parse_response_head(block)
                if head.status >= 200:
                    return head
                seen += len(block)
        except (ConnectionError, HeadTooLarge):
            pass
        raise _Failed("closed without an answer that can be read")

    # To the client.

    def _begin(self, head: ResponseHead, echoes: Echoes, framing: Header | None, keep: bool) -> bytes:
        fields = [(name, echoes.masked(value)) for name, value in head.end_to_end()]
        fields = [field for field in fields if field[0].lower() != b"content-encoding"]
        for name, value in fields:
            self.usage.header(name, value)
        fields = reframed(fields, framing) + ([] if keep else [(b"Connection", b"close")])
        self.event.status = head.status
        return render_head(b"HTTP/1.1 %d %b" % (head.status, echoes.masked(head.reason)), fields)

    async def _write(self, data: bytes) -> None:
        self.event.bytes_in += len(data)
        self.client.write(data)
        await self.client.drain()

    async def _send(self, head: ResponseHead, echoes: Echoes, whole: bytes, keep: bool) -> None:
        self.usage.read(whole)
        length = (b"Content-Length", b"%d" % len(whole))
        bodiless = head.status in (204, 304)
        await self._write(self._begin(head, echoes, None if bodiless else length, keep) + whole)

    async def _stream(self, head: ResponseHead, content: _Content, keep: bool) -> None:
        """The answer piece by piece, chunked; HTTP/1.0 knows no chunks, and there the connection's end is the answer's."""
        chunked = self.head.minor == 1
        events = any(member.startswith(b"text/event-stream") for member in head.members(b"content-type"))
        lines: Transform | None = EventLines(self.usage) if events else None
        await self._write(self._begin(head, content.echoes, CHUNKED if chunked else None, keep))

        async def send(data: bytes) -> None:
            if data:
                await self._write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)

        try:
            while not content.done:
                data = await content.piece(self.route.idle_seconds)
                await send(data if lines is None else lines.feed(data))
            if lines is not None:
                await send(lines.end())
        except (_Failed, ProtocolError, TimeoutError) as error:
            self.event.reason = self._what_failed(error)
            if not events:
                raise Broken(self.event.reason) from None
            await send(stream_error(self.pattern.style, self.event.reason))
        if chunked:
            await self._write(b"0\r\n\r\n")

    def _what_failed(self, error: Exception) -> str:
        what = (
            f"nothing came for {self.route.idle_seconds:g} seconds" if isinstance(error, TimeoutError) else str(error)
        )
        return f"the answer of the inference route '{self.route.name}' broke off: {what}"
