# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Entrance for HTTP/2 within an intercepted tunnel: every stream is one request, judged by itself."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from urllib.parse import quote

from h2.errors import ErrorCodes
from h2.exceptions import H2Error

from openshell_proxy.audit import Event
from openshell_proxy.entrances.authority_form import parse_authority, render_host
from openshell_proxy.entrances.requests import LINGER_SECONDS, judged
from openshell_proxy.pipeline import Pipeline
from openshell_proxy.refusal import Refusal, header_text
from openshell_proxy.relay.exchange import Broken
from openshell_proxy.relay.http1 import Header, RequestHead
from openshell_proxy.relay.http2 import Budget, Endpoint, Side
from openshell_proxy.relay.http2_head import Head, Malformed, content_size, in_http1, read_head, too_large
from openshell_proxy.relay.stream import Stream
from openshell_proxy.relay.upstream import Origin

STREAM_WINDOW = 1_048_576
FRAME = 16_384  # 64 of them is what the library gathers of one header section
MAX_STREAMS = 100
RESETS_BURST, RESETS_PER_SECOND = 200, 50.0
# gRPC's own words for our statuses: permission denied, unavailable; all else is internal.
_GRPC_STATUS = {403: 7, 502: 14, 503: 14}


class ClientConnection(Endpoint):
    """A client's connection in a tunnel to *origin*."""

    def __init__(self, pipeline: Pipeline, origin: Origin) -> None:
        super().__init__(False, STREAM_WINDOW, FRAME, MAX_STREAMS, pipeline.limits.head)
        self.pipeline = pipeline
        self.origin = origin
        self.ended = asyncio.Event()
        self.resets = Budget(RESETS_BURST, RESETS_PER_SECOND)
        self.tasks: set[asyncio.Task[None]] = set()
        self._idle_timer = self._loop.call_later(pipeline.limits.first_head, self.retire)

    async def serve(self, client: Stream) -> None:
        """Serve what comes on *client* until it is over."""
        unwatch = self.pipeline.watch(lambda _: self.retire())  # what is asked next is asked anew (spec 2.5)
        try:
            assert client.transport is not None
            self.begin(client.transport, client.consume(len(client.buffer)))
            if client.lost:
                self.connection_lost(None)
            await self.ended.wait()
        finally:
            unwatch()
            self._idle_timer.cancel()
            for task in self.tasks:
                task.cancel()
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.ended.set()

    def failed(self, why: str) -> None:
        self._audit_bad(f"HTTP/2 broken: {why}")

    def _audit_bad(self, reason: str) -> None:
        self.pipeline.audit.event(Event("tunnel", False, self.origin.host, self.origin.port, reason=reason))

    def opened(self, number: int, fields: list[Header]) -> None:
        if self.leaving or len(self.streams) >= MAX_STREAMS:
            self.core.reset_stream(number, ErrorCodes.REFUSED_STREAM)
            self._count_reset()
            return
        self._idle_timer.cancel()
        side = self.streams[number] = Side(self, number)
        side.received_heads = content_size(fields)
        try:
            head = read_head(fields, "request")
        except Malformed as error:
            self._audit_bad(str(error))
            side.reset(ErrorCodes.PROTOCOL_ERROR)
            self._count_reset()
            return
        side.expected, side.kept = head.length, []
        limits = self.pipeline.limits
        task = self._loop.create_task(self._serve(side, head, too_large(fields, limits.head, limits.headers)))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        side.on_reset = functools.partial(_cancel, task)

    def _on_reset(self, number: int, code: int) -> None:
        super()._on_reset(number, code)
        self._count_reset()

    def _count_reset(self) -> None:
        """Streams that are opened to be thrown away cost us more than the client (CVE-2023-44487)."""
        if not self.resets.spend():
            self.fail(ErrorCodes.ENHANCE_YOUR_CALM, "too many streams are reset")

    def over(self, side: Side) -> None:
        super().over(side)
        if side.sent_end and side.got_end:
            self.resets.earn(1)
        if not self.streams and not self.gone:
            self._idle_timer.cancel()
            if self.leaving:
                self._loop.call_soon(self.close)
            else:
                self._idle_timer = self._loop.call_later(self.pipeline.limits.keep_alive, self.retire)

    async def _serve(self, side: Side, head: Head, large: str) -> None:
        try:
            await self._one(side, head, large)
            if not side.closed:
                side.reset(ErrorCodes.NO_ERROR)  # answered before it was asked to the end (RFC 9113, 8.1)
        except Refusal as refusal:
            await self._refuse(side, head, refusal)
        except Broken:
            side.reset(ErrorCodes.CANCEL)  # where the destination's reset has not been passed on already
        except asyncio.CancelledError:
            side.reset(ErrorCodes.CANCEL)
        except (OSError, H2Error):
            side.reset(ErrorCodes.INTERNAL_ERROR)
        except Exception:  # a fault of ours is no secret, and no stream that stays
            side.reset(ErrorCodes.INTERNAL_ERROR)
            raise

    async def _one(self, side: Side, head: Head, large: str) -> None:
        origin, method = self.origin, head.pseudo[b":method"].decode("ascii")
        event = Event("tunnel", False, origin.host, origin.port, method, bytes_out=side.received_heads)
        try:
            if large:
                raise Refusal(431, "request_header_too_large", large)
            words = self._words(side, head, method)
            intent, target = judged(self.pipeline.generation, origin, words, words.target)
        except Refusal as refusal:
            event.refused(refusal)
            self.pipeline.audit.event(event)
            raise
        assert intent.request is not None
        event.path = intent.request.path
        words.target = target
        await self.pipeline.stream(side, intent, words, origin, target, event)

    def _words(self, side: Side, head: Head, method: str) -> RequestHead:
        """What is asked, in the words that policy knows; it goes to the tunnel's host or nowhere."""
        for named in (head.pseudo[b":authority"], head.value(b"host")):
            if named is not None and not self._is_ours(named):
                raise Refusal(421, "misdirected_request", "the request is not for the host of the tunnel")
        if head.pseudo[b":scheme"] != b"https":
            raise Refusal(400, "invalid_request", "the scheme of a request over TLS is https")
        target = head.pseudo[b":path"].decode("latin-1")
        if not target.startswith("/"):
            raise Refusal(400, "invalid_request_target", "the request target is not a path")
        return in_http1(head, method, target, render_host(self.origin.host, self.origin.port, 443), side.bare)

    def _is_ours(self, authority: bytes) -> bool:
        try:
            return parse_authority(authority.decode("latin-1"), 443) == (self.origin.host, self.origin.port)
        except Refusal:
            return False

    async def _refuse(self, side: Side, head: Head, refusal: Refusal) -> None:
        """Answer on this stream alone, and do not wait for ever for a client that does not take it."""
        sent = asyncio.Event()
        side.on_sent = sent.set
        self._answer(side, head, refusal)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(sent.wait(), LINGER_SECONDS)
        side.reset(ErrorCodes.NO_ERROR)  # of what it still sends nothing is wanted

    def _answer(self, side: Side, head: Head, refusal: Refusal) -> None:
        """A gRPC client is told in the words that its caller sees (trailers only)."""
        start = [(b":status", str(refusal.status).encode())]
        if refusal.policy:
            start.append((b"x-openshell-policy", header_text(refusal.policy).encode("ascii")))
        if refusal.retry_after:
            start.append((b"retry-after", str(refusal.retry_after).encode()))
        if (head.value(b"content-type") or b"").startswith(b"application/grpc"):
            code = str(_GRPC_STATUS.get(refusal.status, 13)).encode()
            message = quote(f"{refusal.code}: {refusal.detail}", safe=" !#$&'()*+,/:;=?@[]").encode()
            grpc = [(b"content-type", b"application/grpc"), (b"grpc-status", code), (b"grpc-message", message)]
            side.send_head([*start, *grpc], end=True)
        else:
            body = refusal.body()
            fields = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            empty = head.pseudo[b":method"] == b"HEAD"
            side.send_head([*start, *fields], end=empty)
            if not empty:
                side.send(body)
                side.finish()


def _cancel(task: asyncio.Task[None], _code: int | None) -> None:
    task.cancel()
