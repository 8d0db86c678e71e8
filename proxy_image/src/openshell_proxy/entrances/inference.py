# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Entrance ``https://inference.local``: calls of inference APIs, for which no network policy is needed (spec 2.10)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from openshell_proxy.audit import Event, redacted
from openshell_proxy.entrances.requests import Requests, within_tunnel
from openshell_proxy.inference import INFERENCE
from openshell_proxy.inference.body import Share, read_body
from openshell_proxy.inference.call import Call
from openshell_proxy.inference.errors import CallRefusal, no_call, no_routes
from openshell_proxy.inference.models import models_answer
from openshell_proxy.inference.patterns import MODELS, Pattern, Style, detect
from openshell_proxy.inference.request import prepare
from openshell_proxy.inference.routes import Routes
from openshell_proxy.pipeline import Pipeline
from openshell_proxy.policy import TargetError, canonical_path
from openshell_proxy.refusal import ENGINES, REASONS, Refusal
from openshell_proxy.relay.exchange import Broken
from openshell_proxy.relay.http1 import Header, RequestHead, render_head
from openshell_proxy.relay.stream import Stream

CALL = 262_144  # bytes that a call is taken to hold without its body: what waits in buffers
PARSED_AT_ONCE = 65_536  # bytes; others are served while a thread parses more, one body at a time
SHOWN_MODEL = 128

_PARSER = ThreadPoolExecutor(1, "inference")


class InferenceRequests(Requests):
    """Serves one client connection to ``inference.local``, call after call."""

    def __init__(self, pipeline: Pipeline, client: Stream) -> None:
        super().__init__(pipeline, client, "inference", within_tunnel(INFERENCE), INFERENCE)
        self.asked_whole = False  # whether the request at hand was read to its end, so that a next one may follow

    async def _one(self, head: RequestHead) -> bool:
        event = Event("inference", False, INFERENCE.host, INFERENCE.port, head.method, "", engine="inference")
        event.bytes_out = self.head_size
        self.client.half_close_ok = not head.persistent() or self.client.ended
        self.asked_whole = False
        under_way = self.pipeline.under_way
        style: Style = "anthropic" if head.values(b"anthropic-version") else "openai"
        try:
            under_way.begin(event)
            return await self._served(head, style, event)
        except Refusal as refusal:
            told = _in_style(refusal, style)
            event.refused(told)
            if told.code == "middleware_failed":
                event.engine = ENGINES[told.code]
            if not self.asked_whole:
                raise told from None
            more = [(b"Retry-After", b"%d" % told.retry_after)] if told.retry_after else []
            return await self._send(head, told.status, told.body(), more)
        except asyncio.CancelledError:
            event.reason = event.reason or "the client left before the answer was complete"
            if not under_way.expired(event):
                raise
            event.reason = f"no byte came for {self.pipeline.limits.idle:g} seconds"
            raise Broken(event.reason) from None
        finally:
            under_way.end(event)
            self.pipeline.audit.event(event)

    async def _served(self, head: RequestHead, style: Style, event: Event) -> bool:
        path, query = self._path(head)
        event.path = self.pipeline.generation.vault.redacted(path)
        pattern, routes = detect(head.method, path), self.pipeline.generation.inference
        if pattern is None:
            raise no_call(head.method)
        if routes is None:
            raise no_routes()
        share = Share(self.pipeline, pattern.style)
        try:
            share.take(CALL)
            body = await read_body(self.client, head, pattern.style, share)
            self.asked_whole = True
            event.bytes_out += len(body)
            body = await self._redacted(head, body)
            if pattern is MODELS:
                event.allowed = True
                event.status, found = models_answer(routes, path, style)
                answer = json.dumps(found).encode()
                event.bytes_in += len(answer)
                return await self._send(head, event.status, answer)
            target = f"{path}?{query}" if query else path
            return await self._call(head, pattern, target, body, routes, event, share)
        finally:
            share.give_back()

    async def _redacted(self, head: RequestHead, body: bytes) -> bytes:
        """What the policy's middlewares leave of the body, where they cover this host."""
        redaction = self.pipeline.redaction(INFERENCE.host, head.named)
        if redaction is None or not body:
            return body
        return await asyncio.get_running_loop().run_in_executor(_PARSER, redaction.body, body)

    def _path(self, head: RequestHead) -> tuple[str, str]:
        """The canonical path and the query."""
        try:
            return canonical_path(self.locate(head)[1], allow_encoded_slash=True)
        except TargetError as error:
            raise Refusal(400, "invalid_request_target", f"the request target is refused: {error.code}") from None

    async def _send(self, head: RequestHead, status: int, body: bytes, more: Sequence[Header] = ()) -> bool:
        """Answer with JSON of our own; True when the connection can carry another request."""
        keep = head.minor == 1 and head.persistent() and not self.client.last
        fields = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body)), *more]
        fields += [] if keep else [(b"Connection", b"close")]
        self.client.write(render_head(f"HTTP/1.1 {status} {REASONS[status]}".encode("ascii"), fields) + body)
        await self.client.drain()
        return keep

    async def _call(
        self, head: RequestHead, pattern: Pattern, target: str, body: bytes, routes: Routes, event: Event, share: Share
    ) -> bool:
        if len(body) <= PARSED_AT_ONCE:
            prepared = prepare(routes, pattern, target, body)
        else:
            loop = asyncio.get_running_loop()
            prepared = await loop.run_in_executor(_PARSER, prepare, routes, pattern, target, body)
        route = prepared.route
        event.allowed, event.policy = True, route.name
        call = Call(self.pipeline, self.client, head, pattern, target, prepared, event, share)
        try:
            return await call.run()
        finally:
            event.inference = {
                "protocol": pattern.name,
                "destination": f"{route.origin.host}:{route.origin.port}",
                "model": route.model,
                "asked_model": redacted(prepared.model[:SHOWN_MODEL]),
                "stream": prepared.stream,
                "input_tokens": call.usage.input,
                "output_tokens": call.usage.output,
            }


def _in_style(refusal: Refusal, style: Style) -> CallRefusal:
    if isinstance(refusal, CallRefusal):
        return refusal
    return CallRefusal(refusal.status, refusal.code, refusal.detail, retry_after=refusal.retry_after, style=style)
