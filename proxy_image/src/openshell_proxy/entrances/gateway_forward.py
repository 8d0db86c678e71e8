# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Entrance :8081: one TCP port that leads to the gateway and nowhere else; no policy opens or closes it."""

from __future__ import annotations

import asyncio
import socket

from openshell_proxy.audit import Event
from openshell_proxy.entrances.connect import pipe_sockets
from openshell_proxy.pipeline import Pipeline
from openshell_proxy.relay.dialer import UpstreamError, dial
from openshell_proxy.relay.pipe import Pipe
from openshell_proxy.resolver import ResolveError


async def serve(pipeline: Pipeline, sock: socket.socket, gateway: tuple[str, int] | None) -> None:
    """Join *sock* to the gateway; close it at once where there is none."""
    host, port = gateway or ("gateway", 0)
    event = Event("gateway", False, host, port)
    upstream: socket.socket | None = None
    try:
        if gateway is None:
            event.reason = "no gateway is configured: openshell_gateway_endpoint is empty"
            return
        try:
            addresses = await asyncio.wait_for(pipeline.guard.resolver.resolve(host), pipeline.limits.connect_total)
            upstream, _ = await dial(addresses, port, pipeline.limits)
            event.allowed = True
        except (ResolveError, UpstreamError, OSError, TimeoutError, ValueError) as error:
            event.reason = f"the gateway is unreachable: {error}"
            return
    finally:
        pipeline.audit.event(event)
        if upstream is None:
            sock.close()
    await pipe_sockets(Pipe(sockets=True), sock, upstream, event, pipeline.limits.idle)
    pipeline.audit.ended(event)
