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

from openshell_proxy.audit import Event
from openshell_proxy.authority import Authority
from openshell_proxy.entrances.connect import Tunnel, send_last, send_refusal
from openshell_proxy.entrances.hello import ClientHello, peek_hello
from openshell_proxy.entrances.listener import Serve
from openshell_proxy.entrances.peek import classify, first_kind
from openshell_proxy.entrances.requests import origin_form, serve_requests
from openshell_proxy.pipeline import Pipeline
from openshell_proxy.policy import Intent
from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.upstream import Origin


def tls_port(pipeline: Pipeline, authority: Authority) -> Serve:
    """What is served on :443: TLS to the host that its hello names, as if the client had asked for it by CONNECT."""
    limits = pipeline.limits

    async def serve(sock: socket.socket) -> None:
        port = int(sock.getsockname()[1])
        hello, first = ClientHello(), b""
        try:
            async with asyncio.timeout(limits.first_head):
                first = await peek_hello(sock, hello)
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
