# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Entrances for tools that know of no proxy: they look a name up, get our address, and speak to it as to the server.

What they say first names the destination: the server name of a TLS hello (RFC 6066, 3), the Host of an HTTP request.
The port is the one they connected to.
"""

from __future__ import annotations

import asyncio
import socket
import ssl

from openshell_proxy.audit import Event
from openshell_proxy.authority import Authority
from openshell_proxy.entrances.authority_form import host_name
from openshell_proxy.entrances.connect import Tunnel, send_last, send_refusal
from openshell_proxy.entrances.listener import Serve
from openshell_proxy.entrances.peek import classify, first_kind, peek
from openshell_proxy.entrances.requests import origin_form, serve_requests
from openshell_proxy.pipeline import Pipeline
from openshell_proxy.policy import Intent
from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.upstream import Origin


class _Handshake(ssl.SSLObject):
    """A server's side of a handshake that goes no further than the client's hello."""

    understood = False
    server_name: str | None = None


def _stop(handshake: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> int:
    """What OpenSSL calls with the name, or None, once it has read the hello; the alert it returns ends the handshake."""
    assert isinstance(handshake, _Handshake)
    handshake.understood, handshake.server_name = True, name
    return int(ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)


_READS_HELLOS = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
_READS_HELLOS.sslobject_class = _Handshake
_READS_HELLOS.sni_callback = _stop


class ClientHello:
    """A client's TLS hello as OpenSSL reads it, from bytes that stay where they are."""

    def __init__(self) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        handshake = _READS_HELLOS.wrap_bio(self._incoming, self._outgoing, server_side=True)
        assert isinstance(handshake, _Handshake)
        self._handshake = handshake
        self._done = False
        self.fed = 0
        self.error = "it has no end"

    def feed(self, data: bytes) -> bool:
        """Read on in *data*, all that has come so far; True once more of it would tell nothing new."""
        if self._done:
            return True
        self._incoming.write(data[self.fed :])
        self.fed = len(data)
        try:
            self._handshake.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            self.error = error.reason
        self._done = True
        return True

    def problem(self) -> str:
        """Why it leads nowhere, or ""."""
        if not self._handshake.understood:
            return f"the client's first bytes are no TLS hello: {self.error}"
        if self._handshake.server_name is None:
            return "the client's TLS hello has no server name (SNI), so where it wants to go is not known"
        return "" if self.host else "the server name (SNI) of the client's TLS hello is not a host name"

    @property
    def host(self) -> str:
        """The host that it names, as a policy writes it; "" if none."""
        return host_name(self._handshake.server_name or "")

    def alert(self) -> bytes:
        """The TLS alert that tells the client that its hello is refused; may be empty."""
        return self._outgoing.read()


def tls_port(pipeline: Pipeline, authority: Authority) -> Serve:
    """What is served on :443: TLS to the host that its hello names, as if the client had asked for it by CONNECT."""
    limits = pipeline.limits

    async def serve(sock: socket.socket) -> None:
        port = int(sock.getsockname()[1])
        hello, first = ClientHello(), b""
        try:
            async with asyncio.timeout(limits.first_head):
                first, _ = await peek(sock, limits.head, hello.feed)
            hello.feed(first)  # what came all at once, and more of it, was not asked about
        except TimeoutError:
            hello.error = "it did not come in time"
        if not hello.fed:
            sock.close()
        elif classify(first) == "http":
            await _refuse(pipeline, sock, port, "this port speaks TLS; for http:// use port 80")
        elif problem := hello.problem():
            pipeline.audit.event(Event("transparent", False, "", port, engine="tls", reason=problem))
            await send_last(sock, hello.alert())
        else:
            await _tunnel(Tunnel(pipeline, authority, sock, lambda: (hello.host, port), "transparent", b""))

    return serve


async def _tunnel(tunnel: Tunnel) -> None:
    """Serve it. Whom the policy refuses is told why in the only way that its client shows: as an answer over TLS.

    Nothing is dialled for that: requests within are judged like any other, and refused like the connection was.
    """
    try:
        await tunnel.serve()
    except Refusal:
        host, port = tunnel.locate()
        if tunnel.pipeline.generation.policy.decide(Intent(host, port)).tls == "skip":
            tunnel.sock.close()  # not ours to look into, and a client that pins certificates would not believe us
        else:
            await tunnel.requests(host, port, True)


def http_port(pipeline: Pipeline) -> Serve:
    """What is served on :80: requests in origin form, each to the host that its Host header names."""

    async def serve(sock: socket.socket) -> None:
        port = int(sock.getsockname()[1])
        try:
            async with asyncio.timeout(pipeline.limits.first_head):
                kind = await first_kind(sock)
        except TimeoutError:
            kind = "silent"
        if kind == "http":
            await serve_requests(pipeline, sock, "transparent", origin_form(port), Origin("", port, False))
        elif kind == "silent":
            sock.close()
        else:
            await _refuse(pipeline, sock, port, "this port speaks HTTP/1.1 without TLS; for https:// use port 443")

    return serve


async def _refuse(pipeline: Pipeline, sock: socket.socket, port: int, detail: str) -> None:
    """An answer in plain HTTP to a client that speaks something else than the port does."""
    refusal = Refusal(400, "invalid_request", detail)
    event = Event("transparent", False, "", port, reason=detail, status=refusal.status)
    pipeline.audit.event(event)
    await send_refusal(sock, refusal)
