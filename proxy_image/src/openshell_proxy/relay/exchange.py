# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One request and its response between a client and a destination, streamed both ways."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Protocol

from openshell_proxy.audit import Event
from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.dialer import UpstreamError
from openshell_proxy.relay.http1 import (
    Body,
    Framing,
    Head,
    Header,
    ProtocolError,
    RequestHead,
    ResponseHead,
    parse_response_head,
    render_head,
    request_framing,
    response_framing,
    websocket_upgrade,
)
from openshell_proxy.relay.pipe import Pipe
from openshell_proxy.relay.recode import CHUNKED, SMALL_BODY, Answer, Changes, Recoder, reframed, response_recoder
from openshell_proxy.relay.stream import HeadTooLarge, Stream
from openshell_proxy.relay.upgrade import bounded_answer, check_switch, safe_offer
from openshell_proxy.relay.upstream import Pool, UpstreamStream

MAX_RESPONSE_HEAD = 262_144
REPEATABLE = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))

Connect = Callable[[bool], Awaitable[UpstreamStream]]


class Judged(Protocol):
    """A WebSocket whose messages are judged: :class:`openshell_proxy.relay.websocket.JudgedWebSocket`."""

    received: int
    sent: int
    closing: tuple[int, str] | None

    async def run(self) -> None: ...


OpenJudged = Callable[[Stream, UpstreamStream, bool], Judged]


def upstream_head(head: RequestHead, target: str, fields: list[Header], upgrade: bool, once: bool) -> bytes:
    """The head that the destination gets; *once*: no other request follows on that connection."""
    if upgrade:
        fields = [*fields, (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    elif once:
        fields = [*fields, (b"Connection", b"close")]
    return render_head(f"{head.method} {target} HTTP/1.{head.minor}".encode("ascii"), fields)


def _seen(task: asyncio.Task[None]) -> None:
    """Look at a task's end, whose reason may come too late for anybody to be told."""
    if not task.cancelled():
        task.exception()


class Broken(Exception):
    """The response stopped in the middle: the client must see a broken connection, never a short success."""


class _NoAnswer(Exception):
    """The upstream connection ended before a byte of the response."""


class _AskAgain(Exception):
    """The answer is dropped: a token had run out, and the same request with a new one may fare better."""


@dataclasses.dataclass(slots=True)
class Exchange:
    """``target`` and ``fields`` are what goes on the wire; ``connect(fresh)`` gives a connection to the destination.

    ``upgraded(passed)`` is called when both sides have become a WebSocket; ``passed()`` tells the bytes since then. (It
    must not hold the exchange itself: a cycle for every request would be left to the collector.)
    ``open_judged(client, upstream, deflate)`` makes the relay of one whose messages are judged; without it the two sides
    talk without us. ``changes`` says what becomes of bodies and of the response; without it they pass as they are.
    """

    client: Stream
    head: RequestHead
    target: str
    fields: list[Header]
    connect: Connect
    pool: Pool
    event: Event
    upgraded: Callable[[Callable[[], int]], None]
    open_judged: OpenJudged | None = None
    passed: Callable[[], int] = int
    changes: Changes | None = None
    recoder: Recoder | None = None
    early: bytes = b""  # what of the body goes with the head
    cut: bool = False  # whether the client ended within its request
    once: bool = False  # whether the connection to the destination carries this request alone

    async def run(self) -> bool:
        """Do it; True when the client's connection can carry another request.

        Raises :class:`Refusal` while nothing of a response has been sent, :class:`Broken` after.
        """
        try:
            framing, upgrade = request_framing(self.head), websocket_upgrade(self.head)
        except ProtocolError as error:
            raise Refusal(400, "invalid_request", str(error)) from None
        if upgrade and self.open_judged is not None:
            self.fields = safe_offer(self.fields)
        body = await self._body(framing)
        payload = self._first_bytes(body, upgrade)
        upstream = await self._connected(False)
        try:
            try:
                return await self._attempt(upstream, payload, body, upgrade)
            except _NoAnswer:
                if not (upstream.reused and body.done and self.head.method in REPEATABLE):
                    raise Refusal(502, "upstream_unreachable", "the destination closed without an answer") from None
                upstream.abort()  # an idle connection that the destination had just given up: ask once more
                upstream = await self._connected(True)
                return await self._attempt(upstream, payload, body, upgrade)
            except _AskAgain:
                upstream = await self._connected(True)
                return await self._attempt(upstream, self._head_and_early(upgrade), body, upgrade)
        except _NoAnswer:
            raise Refusal(502, "upstream_unreachable", "the destination closed without an answer") from None
        finally:
            if upstream.pool is None:
                upstream.close()

    async def _connected(self, fresh: bool) -> UpstreamStream:
        try:
            return await self.connect(fresh)
        except UpstreamError as error:
            detail = f"{self.event.host}:{self.event.port} is unreachable: {error.reason}"
            raise Refusal(502, "upstream_unreachable", detail) from None

    async def _body(self, framing: Framing) -> Body:
        """The request's body; where its content is to change, a small one is waited for, to tell its new length."""
        transform = self.changes.request_body() if self.changes is not None and framing.kind != "none" else None
        if transform is None:
            return Body(framing)
        body = Body(framing, collect=True)
        small = framing.kind == "length" and framing.length <= SMALL_BODY and not self.head.values(b"expect")
        if not small and self.head.minor == 0:
            detail = f"a body of more than {SMALL_BODY} bytes in which something may be replaced needs HTTP/1.1"
            raise Refusal(400, "invalid_request", detail)
        while small and len(self.client.buffer) < framing.length:
            if not await self.client.fill():
                raise ConnectionError("the client ended within its request")
        self.recoder = Recoder(body, transform, chunked=not small)
        return body

    def _first_bytes(self, body: Body, upgrade: bool) -> bytes:
        """The head, and of the body what is here already: one write, one packet for most requests."""
        if not body.done and self.client.buffer:
            self.early = self._sent_on(body)
        self.event.bytes_out += len(self.early)
        return self._head_and_early(upgrade)

    def _head_and_early(self, upgrade: bool) -> bytes:
        fields = self.fields
        if self.recoder is not None:
            length = (b"Content-Length", b"%d" % len(self.early))
            fields = reframed(fields, CHUNKED if self.recoder.chunked else length)
        return upstream_head(self.head, self.target, fields, upgrade, self.once) + self.early

    def _sent_on(self, body: Body) -> bytes:
        """What goes to the destination of the body's bytes that are here."""
        data = self.client.consume(self._taken(body, self.client))
        return data if self.recoder is None else self.recoder.pass_on(data)

    def _taken(self, body: Body, stream: Stream) -> int:
        try:
            return body.take(stream.buffer)
        except ProtocolError as error:
            raise Refusal(400, "invalid_request", str(error)) from None

    async def _attempt(self, upstream: UpstreamStream, payload: bytes, body: Body, upgrade: bool) -> bool:
        try:
            upstream.write(payload)
        except ConnectionError:
            raise _NoAnswer from None
        sending = None if body.done else asyncio.create_task(self._upload(upstream, body))
        if sending is not None:
            sending.add_done_callback(_seen)
        finished = False
        try:
            response = await self._response_head(upstream, sending)
            if sending is None and self.changes is not None and (again := await self.changes.again(response.status)):
                self.target, self.fields = again
                raise _AskAgain
            if response.status == 101:
                await self._upgrade(upstream, response, upgrade)
                finished = True
                return False
            keep = await self._respond(upstream, response)
            finished = True
        finally:
            if sending is not None:
                sending.cancel()
            if not finished:
                upstream.abort()
        if not body.done:  # answered before it was asked to the end: nobody can tell what comes next
            upstream.close()
        elif keep[1]:
            self.pool.keep(upstream)
        else:
            self.pool.leave(upstream)
        return keep[0] and body.done

    async def _upload(self, upstream: UpstreamStream, body: Body) -> None:
        while not body.done:
            if not self.client.buffer and not await self.client.fill():
                self.cut = True
                upstream.abort()  # it would wait for the rest, and we for its answer
                raise Refusal(400, "invalid_request", "the client ended within its request")
            data = self._sent_on(body)
            self.event.bytes_out += len(data)
            upstream.write(data)
            await upstream.drain()

    async def _response_head(self, upstream: UpstreamStream, sending: asyncio.Task[None] | None) -> ResponseHead:
        """The final response's head; interim ones go to the client as they come (RFC 9110, 15.2), but not for ever."""
        interim = 0
        while interim <= MAX_RESPONSE_HEAD:
            block = await self._head_block(upstream, sending)
            try:
                head = parse_response_head(block)
                if head.status >= 200 or head.status == 101:
                    return head
                block = render_head(b"HTTP/1.1 %d %b" % (head.status, head.reason), head.end_to_end())
            except ProtocolError as error:
                raise Refusal(502, "upstream_protocol_error", f"the destination's answer is bad: {error}") from None
            interim += len(block)
            if self.head.minor == 1:
                self.event.bytes_in += len(block)
                self.client.write(block if self.changes is None else self.changes.interim(block))
                await self.client.drain()
        raise Refusal(502, "upstream_protocol_error", "the destination's answer is bad: interim answers without end")

    async def _head_block(self, upstream: UpstreamStream, sending: asyncio.Task[None] | None) -> bytes:
        try:
            if sending is None or sending.done():
                block = await upstream.read_head(MAX_RESPONSE_HEAD)
            else:
                block = await self._head_while(upstream, sending)
        except HeadTooLarge:
            raise Refusal(502, "upstream_protocol_error", "the destination's answer has too large a head") from None
        except ConnectionError:
            raise _NoAnswer from None
        if block is None:
            raise _NoAnswer
        return block

    async def _head_while(self, upstream: UpstreamStream, sending: asyncio.Task[None]) -> bytes | None:
        """Wait for the head while the upload goes on; it takes a task of its own, which no other request needs."""
        reading = asyncio.ensure_future(upstream.read_head(MAX_RESPONSE_HEAD))
        try:
            await asyncio.wait((reading, sending), return_when=asyncio.FIRST_COMPLETED)
            # A destination that stops reading may still have answered; a client's own fault ends it here.
            if sending.done() and isinstance(sending.exception(), Refusal):
                sending.result()
            return await reading
        finally:
            reading.cancel()

    async def _respond(self, upstream: UpstreamStream, head: ResponseHead) -> tuple[bool, bool]:
        """Relay the response; (client stays, upstream stays)."""
        framing = self._framing(head)
        keep_client = framing.kind != "eof" and self.head.minor == 1 and self.head.persistent() and not self.client.last
        keep_upstream = framing.kind != "eof" and head.persistent() and not self.once
        answer = self._answer(head)
        body, recoder, fields = response_recoder(framing, answer, self.head.minor)
        if not keep_client:
            fields = [*fields, (b"Connection", b"close")]
        self.event.status = head.status
        first = render_head(b"HTTP/1.1 %d %b" % (head.status, answer.reason), fields)
        self.event.bytes_in += len(first)
        await self._relay_body(upstream, body, first, recoder)
        return keep_client, keep_upstream

    def _answer(self, head: ResponseHead) -> Answer:
        if self.changes is None:
            return Answer(head.end_to_end(), head.reason)
        return self.changes.answer(head)

    def _framing(self, head: ResponseHead) -> Framing:
        try:
            head.connection_options()
            return response_framing(head, self.head.method)
        except ProtocolError as error:
            raise Refusal(502, "upstream_protocol_error", f"the destination's answer is bad: {error}") from None

    async def _relay_body(self, upstream: UpstreamStream, body: Body, pending: bytes, recoder: Recoder | None) -> None:
        """Send *pending* and the body; every await is a place where back-pressure holds."""
        try:
            while True:
                used = 0 if body.done else body.take(upstream.buffer)
                if used:
                    self.event.bytes_in += used
                    data = upstream.consume(used)
                    pending += data if recoder is None else recoder.pass_on(data)
                if pending:
                    self.client.write(pending)
                    pending = b""
                    await self.client.drain()
                if body.done:
                    return
                if not upstream.buffer and not await upstream.fill():
                    if upstream.error is not None or self.cut:
                        raise Broken("the client ended its request, or the destination's connection broke")
                    body.end_of_stream()
                    pending = b"" if recoder is None else recoder.pass_on(b"")
        except ProtocolError as error:
            raise Broken(f"the destination's answer broke off: {error}") from None

    async def _upgrade(self, upstream: UpstreamStream, head: ResponseHead, asked: bool) -> None:
        """The two sides are a WebSocket from here on (RFC 9110, 7.8)."""
        if not asked:
            raise Refusal(502, "upstream_protocol_error", "the destination switched to a protocol nobody asked for")
        fields, deflate = self._switched(head)
        self.event.status = 101
        fields += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        self.upgraded(lambda: self.passed())
        switched = render_head(b"HTTP/1.1 101 " + head.reason, fields)
        self.event.bytes_in += len(switched)
        self.client.write(switched)
        if self.open_judged is not None:
            await self._judged(self.open_judged(self.client, upstream, deflate))
        else:
            await self._pipe(upstream)

    def _switched(self, head: ResponseHead) -> tuple[list[Header], bool]:
        try:
            check_switch(Head(1, self.fields), head)
            return bounded_answer(head) if self.open_judged is not None else (head.end_to_end(), False)
        except ProtocolError as error:
            raise Refusal(502, "upstream_protocol_error", f"the destination's answer is bad: {error}") from None

    async def _judged(self, relay: Judged) -> None:
        self.passed = lambda: relay.received + relay.sent
        try:
            await relay.run()
        finally:
            self.event.bytes_out += relay.sent
            self.event.bytes_in += relay.received
            if relay.closing is not None:
                self.event.reason = f"closed with {relay.closing[0]}: {relay.closing[1]}"

    async def _pipe(self, upstream: UpstreamStream) -> None:
        """Bytes both ways, unseen."""
        client, there = self.client.transport, upstream.transport
        assert client is not None and there is not None
        if upstream.lost:
            raise Broken("the destination was gone before the switch")
        if self.client.last:
            raise Broken("the policy was reloaded before the switch")
        early_up, early_down = self.client.consume(len(self.client.buffer)), upstream.consume(len(upstream.buffer))
        pipe = Pipe()
        self.passed = lambda: pipe.received
        pipe.client.transport, pipe.upstream.transport = client, there
        pipe.join(pipe.client, client, early_up)
        pipe.join(pipe.upstream, there, early_down)
        for end, stream in ((pipe.client, self.client), (pipe.upstream, upstream)):
            if stream.ended:
                end.eof_received()  # the transport has told it already, and tells it once
        self.client.on_last = pipe.abort  # nobody can say goodbye within bytes that are not looked at
        try:
            await pipe.done.wait()
        finally:
            pipe.abort()
            self.event.bytes_out += pipe.client.received
            self.event.bytes_in += pipe.upstream.received
