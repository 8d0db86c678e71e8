# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Entrance CONNECT: the tunnel's destination is judged first, then what is spoken inside decides who serves it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import ssl
from collections.abc import Callable

from openshell_proxy.audit import Entrance, Event
from openshell_proxy.authority import Authority
from openshell_proxy.entrances.authority_form import check_host, parse_authority
from openshell_proxy.entrances.hello import ClientHello, peek_hello
from openshell_proxy.entrances.peek import Kind, discard, first_kind, readable
from openshell_proxy.entrances.requests import LINGER_SECONDS, Requests, within_tunnel
from openshell_proxy.inference import INFERENCE
from openshell_proxy.pipeline import Generation, Pipeline
from openshell_proxy.policy import Decision, Intent
from openshell_proxy.refusal import ENGINES, Refusal
from openshell_proxy.relay.dialer import UpstreamError
from openshell_proxy.relay.http1 import ProtocolError, TooManyFields, parse_request_head
from openshell_proxy.relay.pipe import Pipe
from openshell_proxy.relay.stream import Stream
from openshell_proxy.relay.upstream import Origin

ESTABLISHED = b"HTTP/1.1 200 Connection Established\r\n\r\n"


@dataclasses.dataclass(slots=True)
class Tunnel:
    """One connection on *sock* that is to lead to the host and port that *locate* tells, or raises a refusal of.

    ``established`` is what the client is told when it may begin; what it sends next is still on the socket.
    """

    pipeline: Pipeline
    authority: Authority
    sock: socket.socket
    locate: Callable[[], tuple[str, int]]
    entrance: Entrance = "connect"
    established: bytes = ESTABLISHED

    async def serve(self) -> None:
        """Raises :class:`Refusal` while the client has been told nothing."""
        event = Event(self.entrance, False, "", 0)
        admitted: tuple[Decision, tuple[str, ...], socket.socket | None] | None = None
        try:
            event.host, event.port = self.locate()
            if (event.host, event.port) == (INFERENCE.host, INFERENCE.port):
                event.engine = "inference"  # before policy, which has no word on it: nothing is dialled (spec 2.10)
            else:
                admitted = await self._admitted(event)
            event.allowed = True
        except Refusal as refusal:
            event.refused(refusal)
            raise
        finally:
            self.pipeline.audit.event(event)
        await asyncio.get_running_loop().sock_sendall(self.sock, self.established)
        if admitted is None:
            return await self.requests(event.host, event.port, True)
        decision, addresses, upstream = admitted
        if upstream is not None:
            await self._blind(upstream, decision, event)
        else:
            await self._inspect(decision, addresses, event)

    async def _admitted(self, event: Event) -> tuple[Decision, tuple[str, ...], socket.socket | None]:
        """The decision, the addresses, and a connection to one of them where nobody looks into the tunnel."""
        decision, addresses = await self.pipeline.admit(Intent(event.host, event.port), event)
        unseen = self.pipeline.unseen(event.host, event.port, decision)
        if unseen is not None and decision.tls == "skip":
            event.engine = ENGINES[unseen.code]
            raise unseen
        if decision.tls == "skip":
            return decision, addresses, await self._dial(addresses, event)
        return (dataclasses.replace(decision, inspects=True) if unseen is not None else decision), addresses, None

    async def _dial(self, addresses: tuple[str, ...], event: Event) -> socket.socket:
        try:
            sock, _ = await self.pipeline.generation.dialer.dial(event.host, addresses, event.port)
        except UpstreamError as error:
            detail = f"{event.host}:{event.port} is unreachable: {error.reason}"
            raise Refusal(502, "upstream_unreachable", detail) from None
        return sock

    async def _inspect(self, decision: Decision, addresses: tuple[str, ...], event: Event) -> None:
        """Serve what the client speaks: TLS and HTTP are judged request by request."""
        kind, upstream = await self._first(decision, addresses, event)
        if kind in ("tls", "http"):
            if upstream is not None:
                upstream.close()
            await self.requests(event.host, event.port, kind == "tls", addresses)
        elif kind == "silent":
            self.sock.close()
            if upstream is not None:
                upstream.close()
        elif decision.inspects:
            detail = "the client speaks neither TLS nor HTTP/1.1, and the policy inspects requests"
            unseen = self.pipeline.unseen(event.host, event.port, decision)
            refusal = unseen or Refusal(403, "unsupported_l7_protocol", detail)
            self._deny(event, refusal.detail, ENGINES.get(refusal.code, "l7"))
            await send_refusal(self.sock, refusal)
        else:
            await self._blind(upstream or await self._dial_late(addresses, event), decision, event)

    async def _first(
        self, decision: Decision, addresses: tuple[str, ...], event: Event
    ) -> tuple[Kind, socket.socket | None]:
        """What the client speaks. Where the policy does not inspect, the server may also be first to speak.

        Time alone decides nothing: a client that is merely slow is still seen for what it speaks. Where neither side
        ever speaks, the tunnel stands as still as any other may.
        """
        limits = self.pipeline.limits
        try:
            async with asyncio.timeout(limits.first_head if decision.inspects else limits.detect):
                return await first_kind(self.sock), None
        except TimeoutError:
            if decision.inspects:
                return "silent", None
        upstream = await self._dial_late(addresses, event)
        try:
            return await self._first_of_two(upstream), upstream
        except BaseException:
            upstream.close()
            raise

    async def _first_of_two(self, upstream: socket.socket) -> Kind:
        client = asyncio.ensure_future(first_kind(self.sock))
        server = asyncio.ensure_future(readable(upstream))
        try:
            await asyncio.wait((client, server), timeout=self.pipeline.limits.idle, return_when=asyncio.FIRST_COMPLETED)
            if client.done():
                return client.result()
            return "unknown" if server.done() else "silent"
        finally:
            client.cancel()
            server.cancel()
            await asyncio.wait((client, server))  # only then may anybody close the sockets that they wait for

    async def _dial_late(self, addresses: tuple[str, ...], event: Event) -> socket.socket:
        """Dial after the 200: the client can only be hung up on."""
        try:
            return await self._dial(addresses, event)
        except Refusal as refusal:
            self._deny(event, refusal.detail, "opa")
            raise ConnectionError(refusal.detail) from None

    def _deny(self, event: Event, reason: str, engine: str) -> None:
        denied = Event(self.entrance, False, event.host, event.port, policy=event.policy, engine=engine, reason=reason)
        self.pipeline.audit.event(denied)

    async def requests(self, host: str, port: int, tls: bool, addresses: tuple[str, ...] = ()) -> None:
        """Be the destination's end of what the client says: each request is judged by itself, whatever was before.

        The client is offered the version of HTTP that the destination at *addresses* speaks; without any, HTTP/1.1.
        """
        loop = asyncio.get_running_loop()
        client = Stream()
        limits = self.pipeline.limits
        origin = Origin(host, port, tls)
        try:
            if tls:
                http2 = bool(addresses) and await self._speaks_http2(origin, addresses)
                await self.authority.load()
                context = self.authority.context(host, http2)
                await loop.connect_accepted_socket(
                    lambda: client, self.sock, ssl=context, ssl_handshake_timeout=limits.handshake
                )
                if not (client.buffer or client.ended):
                    # The client had the last word of TLS 1.3. One that sends its request only when that has been
                    # acknowledged (Nagle's algorithm, RFC 9293, 3.7.4) would wait 40 ms for it.
                    self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            else:
                await loop.connect_accepted_socket(lambda: client, self.sock)
        except (ssl.SSLError, OSError, TimeoutError) as error:
            why = getattr(error, "reason", None) or type(error).__name__
            reason = f"TLS with the client failed ({why}); it may pin its certificates: tls: skip passes it uninspected"
            self._deny(Event(self.entrance, False, host, port), reason, "tls")
            discard(self.sock)
            self.sock.close()
            return
        if origin == INFERENCE:
            from openshell_proxy.entrances.inference import InferenceRequests

            await InferenceRequests(self.pipeline, client).serve(limits.first_head)
            return
        if client.alpn() == "h2":
            from openshell_proxy.entrances.http2 import ClientConnection

            await ClientConnection(self.pipeline, origin).serve(client)
            return
        await Requests(self.pipeline, client, "tunnel", within_tunnel(origin), origin).serve(limits.first_head)

    async def _speaks_http2(self, origin: Origin, addresses: tuple[str, ...]) -> bool:
        """Whether the destination does. It is not dialled for a client that will be refused for naming another one."""
        pool = self.pipeline.pool
        known = pool.known(origin)
        if known is not None:
            return known
        hello = ClientHello()
        async with asyncio.timeout(self.pipeline.limits.handshake):
            await peek_hello(self.sock, hello)
        return hello.may_mean(origin.host) and await pool.speaks_http2(origin, addresses)

    async def _blind(self, upstream: socket.socket, decision: Decision, event: Event) -> None:
        """Bytes both ways, unseen; a second line tells when it ended and how much it was.

        A new generation that would not let the same bytes through in the same way ends it at once (spec 2.5).
        """
        pipe = Pipe(sockets=True)

        def judge_again(generation: Generation) -> None:
            now = generation.policy.decide(Intent(event.host, event.port))
            unseen = self.pipeline.unseen(event.host, event.port, now)
            if unseen is not None or _passage(now) != _passage(decision):
                event.reason = "the policy has changed"
                pipe.abort()

        unwatch = self.pipeline.watch(judge_again)
        try:
            judge_again(self.pipeline.generation)  # it may have changed since the CONNECT was admitted
            await pipe_sockets(pipe, self.sock, upstream, event, self.pipeline.limits.idle)
        finally:
            unwatch()
            self.pipeline.audit.ended(event)


def _passage(decision: Decision) -> tuple[object, ...]:
    """What a decision says of a tunnel into which nobody looks."""
    return decision.allowed, decision.tls, decision.inspects, decision.allowed_ips, decision.exact_host


def connect_target(block: bytes, max_fields: int) -> tuple[str, int]:
    """(host, port) of the CONNECT whose head is *block*. Raises :class:`Refusal`."""
    try:
        head = parse_request_head(block, max_fields)
    except TooManyFields as error:
        raise Refusal(431, "request_header_too_large", str(error)) from None
    except ProtocolError as error:
        raise Refusal(400, "invalid_request", str(error)) from None
    host, port = parse_authority(head.target, None)
    check_host(host)
    named = head.host
    if named is not None and parse_authority(named, port) != (host, port):
        raise Refusal(421, "misdirected_request", "the Host header is not the host of the CONNECT")
    return host, port


async def send_refusal(sock: socket.socket, refusal: Refusal) -> None:
    """Send a refusal so that it arrives even though the client may still be sending, and close."""
    await send_last(sock, refusal.response())


async def send_last(sock: socket.socket, data: bytes) -> None:
    """Send *data* so that it arrives even though the client may still be sending, and close."""
    client = Stream()
    await asyncio.get_running_loop().connect_accepted_socket(lambda: client, sock)
    if not client.lost:
        client.write(data)
        await client.linger(LINGER_SECONDS)


async def pipe_sockets(pipe: Pipe, client: socket.socket, upstream: socket.socket, event: Event, idle: float) -> None:
    """Join two connected sockets until both are done, or nothing has come for *idle* seconds."""
    loop = asyncio.get_running_loop()
    try:
        await loop.connect_accepted_socket(lambda: pipe.upstream, upstream)
        await loop.connect_accepted_socket(lambda: pipe.client, client)
        pipe.begin()
        moved = -1
        while not pipe.done.is_set() and moved != pipe.received:
            moved = pipe.received
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(pipe.done.wait(), idle)
        if not pipe.done.is_set():
            event.reason = f"no byte came for {idle:g} seconds"
    finally:
        pipe.abort()
        event.bytes_out, event.bytes_in = pipe.client.received, pipe.upstream.received
