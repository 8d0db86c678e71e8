# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Entrances for HTTP requests: absolute-form on the proxy port, origin-form within a tunnel and on port 80."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from openshell_proxy.audit import Entrance, Event
from openshell_proxy.entrances.authority_form import (
    check_host,
    parse_authority,
    parse_proxy_uri,
    render_host,
    split_absolute,
)
from openshell_proxy.pipeline import Generation, Pipeline
from openshell_proxy.policy import Decision, Intent, Request, TargetError, canonical_path, parse_query
from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.exchange import Broken
from openshell_proxy.relay.http1 import Header, ProtocolError, RequestHead, TooManyFields, parse_request_head
from openshell_proxy.relay.stream import Deadline, HeadTooLarge, Stream
from openshell_proxy.relay.upstream import Origin

LINGER_SECONDS = 2.0
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"  # as far as it looks like a head (RFC 9113, 3.4)
VIA = (b"Via", b"1.1 openshell-sandbox")

Locate = Callable[[RequestHead], tuple[Origin, str]]


def absolute_form(head: RequestHead) -> tuple[Origin, str]:
    """Destination and origin-form target of a request to a forward proxy (RFC 9112, 3.2.2)."""
    scheme, host, port, rest = parse_proxy_uri(head.target)
    if scheme == "https":
        raise Refusal(400, "invalid_request_target", "Use CONNECT for HTTPS URLs")
    if scheme != "http":
        raise Refusal(400, "unsupported_proxy_scheme", "this proxy forwards http and, with CONNECT, https")
    _same_host(head, host, port, 80)
    return Origin(host, port, False), rest


def within_tunnel(tunnel: Origin) -> Locate:
    """The same for requests within a tunnel to *tunnel*: whatever they say, they go there or nowhere."""
    default = 443 if tunnel.tls else 80

    def locate(head: RequestHead) -> tuple[Origin, str]:
        target = head.target
        if not target.startswith("/"):
            scheme, authority, target = split_absolute(target)
            if scheme != ("https" if tunnel.tls else "http") or parse_authority(authority, default) != (
                tunnel.host,
                tunnel.port,
            ):
                raise Refusal(421, "misdirected_request", "the request is not for the host of the tunnel")
        _same_host(head, tunnel.host, tunnel.port, default)
        return tunnel, target

    return locate


def origin_form(port: int) -> Locate:
    """The same for requests to :80 of the sidecar itself: their Host names the destination (RFC 9112, 3.2.1).

    *port* is the one that the client connected to, so no other is meant.
    """

    def locate(head: RequestHead) -> tuple[Origin, str]:
        host, _ = parse_authority(head.host or "", 80)
        return within_tunnel(Origin(host, port, False))(head)

    return locate


def _same_host(head: RequestHead, host: str, port: int, default: int) -> None:
    named = head.host
    if named is None:
        return
    try:
        same = parse_authority(named, default) == (host, port)
    except Refusal:
        same = False
    if not same:
        raise Refusal(421, "misdirected_request", "the Host header is not the host that the request goes to")


async def serve_requests(
    pipeline: Pipeline, sock: socket.socket, entrance: Entrance, locate: Locate, origin: Origin
) -> None:
    """Serve unencrypted HTTP on *sock*, of which nothing has been read."""
    client = Stream()
    await asyncio.get_running_loop().connect_accepted_socket(lambda: client, sock)
    await Requests(pipeline, client, entrance, locate, origin).serve(pipeline.limits.first_head)


def judged(generation: Generation, origin: Origin, head: RequestHead, target: str) -> tuple[Intent, str]:
    """What policy and log may see of a request for *target*, without placeholders, and the canonical target with them."""
    connection = generation.policy.decide(Intent(origin.host, origin.port))
    try:
        path, query = canonical_path(target, allow_encoded_slash=connection.allow_encoded_slash)
        target = f"{path}?{query}" if query else path
        path, _, query = generation.vault.redacted(target).partition("?")
        asked = _asked(connection, head, path, query)
    except TargetError as error:
        raise Refusal(400, "invalid_request_target", f"the request target is refused: {error.code}") from None
    return Intent(origin.host, origin.port, asked), target


def _asked(connection: Decision, head: RequestHead, path: str, query: str) -> Request:
    """The request for the policy; what only protocols with judged bodies ask for is looked up only for them."""
    if not connection.body_limit:
        return Request(head.method, path, parse_query(query))
    with_body = bool(head.values(b"content-length") or head.values(b"transfer-encoding"))
    accepted = [member.partition(b";")[0].strip() for member in head.members(b"accept")]
    stream = not with_body and b"text/event-stream" in accepted
    return Request(head.method, path, parse_query(query), receive_stream=stream, with_body=with_body)


def forwarded_fields(entrance: Entrance, head: RequestHead, origin: Origin) -> list[Header]:
    """What the destination gets: end-to-end fields, Host from the destination itself."""
    host = render_host(origin.host, origin.port, 443 if origin.tls else 80)
    fields = head.end_to_end()
    place = next((place for place, (name, _) in enumerate(fields) if name.lower() == b"host"), None)
    if place is None:
        fields.insert(0, (b"Host", host))
    else:
        fields[place] = (fields[place][0], host)
    if entrance == "forward" and not head.values(b"via"):
        fields.append(VIA)
    return fields


class Requests:
    """Serves one client connection, request after request; each is judged by itself."""

    def __init__(self, pipeline: Pipeline, client: Stream, entrance: Entrance, locate: Locate, origin: Origin) -> None:
        self.pipeline = pipeline
        self.client = client
        self.entrance: Entrance = entrance
        self.locate = locate
        self.origin = origin  # what a request that cannot be located is logged under
        limits = pipeline.limits
        self.head_limit = limits.proxy_head if entrance == "forward" else limits.head
        self.waiting = False  # whether nothing but a next request is waited for
        self.deadline = Deadline(client)
        self.head_size = 0
        self.bodiless = False  # whether an answer to what was asked last has no body

    async def serve(self, first_seconds: float) -> None:
        """Until the client leaves, is refused, or stays silent."""
        task = asyncio.current_task()
        assert task is not None

        def gone() -> None:
            task.cancel()

        self.client.on_lost = gone
        unwatch = self.pipeline.watch(self._new_generation)
        try:
            head = await self._next_head(first_seconds)
            while head is not None and await self._one(head):
                head = await self._next_head(self.pipeline.limits.keep_alive, again=True)
            self.client.on_lost = None
            self.client.close()
        except Refusal as refusal:
            self.client.on_lost = None
            if not self.client.lost:
                self.client.write(refusal.response(self.bodiless))
                await self.client.linger(LINGER_SECONDS)
        except (Broken, OSError, asyncio.CancelledError):
            self.client.on_lost = None
            self.client.abort()
        except Exception:
            self.client.on_lost = None
            self.client.abort()
            raise
        finally:
            self.deadline.close()
            unwatch()

    def _new_generation(self, _generation: Generation) -> None:
        """Answer what has been asked, then close (spec 2.5); a connection on which nothing is asked closes now."""
        self.client.last = True
        if self.waiting and not self.client.pending():
            self.client.give_up()
        elif self.client.on_last is not None:
            self.client.on_last()

    async def _next_head(self, seconds: float, again: bool = False) -> RequestHead | None:
        """The next request's head; None when there will be none. *again*: not the first of its connection."""
        if again and self.client.last and not self.client.pending():
            return None
        self.client.half_close_ok = True
        try:
            block = await self._head_block(seconds, again)
            if block is None and self.client.last and self.client.buffer:  # it came as we were about to close
                block = await self._head_block(self.pipeline.limits.first_head, False)
            if block is None:
                return None
            self.head_size, self.bodiless = len(block), False
            if block == HTTP2_PREFACE:
                detail = (
                    "HTTP/2 cannot be spoken here: the destination does not, or requests are judged over HTTP/1.1 only"
                )
                raise self._bad(403, "unsupported_l7_protocol", detail)
            return parse_request_head(block, self.pipeline.limits.headers)
        except HeadTooLarge:
            detail = f"the request's head is larger than {self.head_limit} bytes"
            raise self._bad(431, "request_header_too_large", detail) from None
        except TooManyFields as error:
            raise self._bad(431, "request_header_too_large", str(error)) from None
        except ProtocolError as error:
            raise self._bad(400, "invalid_request", str(error)) from None

    async def _head_block(self, seconds: float, again: bool) -> bytes | None:
        self.waiting = again
        self.deadline.set(seconds)
        try:
            return await self.client.read_head(self.head_limit)
        except TimeoutError:
            return None
        finally:
            self.deadline.clear()
            self.waiting = False

    def _bad(self, status: int, code: str, detail: str) -> Refusal:
        refusal = Refusal(status, code, detail)
        event = Event(self.entrance, False, self.origin.host, self.origin.port)
        event.refused(refusal)
        self.pipeline.audit.event(event)
        return refusal

    async def _one(self, head: RequestHead) -> bool:
        self.bodiless = head.method == "HEAD"
        try:
            origin, target = self.locate(head)
            check_host(origin.host)
            if head.method == "CONNECT":  # a destination that is a proxy would open a way that nobody judges
                raise Refusal(
                    400, "invalid_request_target", "CONNECT is for host:port, first on a connection to the proxy"
                )
            intent, target = judged(self.pipeline.generation, origin, head, target)
        except Refusal as refusal:
            event = Event(self.entrance, False, self.origin.host, self.origin.port, head.method, "")
            event.bytes_out = self.head_size
            event.refused(refusal)
            self.pipeline.audit.event(event)
            raise
        assert intent.request is not None
        event = Event(self.entrance, False, origin.host, origin.port, head.method, intent.request.path)
        event.bytes_out = self.head_size
        self.client.half_close_ok = not head.persistent() or self.client.ended
        fields = forwarded_fields(self.entrance, head, origin)
        return await self.pipeline.request(self.client, intent, head, origin, fields, target, event)
