# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Listening sockets: only the agent is served, and not more of it than the limit."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial

from openshell_proxy.audit import Audit, Event
from openshell_proxy.authority import Authority
from openshell_proxy.entrances.connect import Tunnel, connect_target, send_refusal
from openshell_proxy.entrances.peek import peek
from openshell_proxy.entrances.requests import absolute_form, serve_requests
from openshell_proxy.pipeline import Pipeline
from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.upstream import Origin
from openshell_proxy.under_way import RETRY_AFTER

Serve = Callable[[socket.socket], Awaitable[None]]
BACKLOG = 256
TURNED_AWAY = 64
ACCEPT_PAUSE = 0.5  # seconds
_NOTHING_FREE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Connections:
    """The connections of all listeners together, bounded, and their tasks."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tasks: dict[asyncio.Task[None], None] = {}  # the oldest first
        self.scarce = False  # whether there is no memory for another one
        self._turned_away: set[asyncio.Task[None]] = set()

    def full(self) -> bool:
        return self.scarce or len(self.tasks) >= self.limit

    def begin(self, serving: Coroutine[None, None, None]) -> None:
        """Count in the connection that *serving* serves, until it ends."""
        task = asyncio.get_running_loop().create_task(serving)
        self.tasks[task] = None
        task.add_done_callback(lambda done: self.tasks.pop(done, None))

    def turn_away(self, client: socket.socket) -> None:
        """Tell one that is too many so; where even those are too many it is just closed."""
        if len(self._turned_away) >= TURNED_AWAY:
            client.close()
            return
        why = "memory is scarce" if self.scarce else "too many connections are open"
        refusal = Refusal(503, "overloaded", why, retry_after=RETRY_AFTER)
        task = asyncio.get_running_loop().create_task(send_refusal(client, refusal))
        self._turned_away.add(task)
        task.add_done_callback(self._turned_away.discard)


class Listener:
    """One bound port at the sidecar's internal address; ``http``: whether its clients understand an HTTP answer."""

    def __init__(
        self, address: tuple[str, int], agent_ip: str, serve: Serve, audit: Audit, open_: Connections, http: bool = True
    ) -> None:  # fmt: skip
        self.agent_ip = agent_ip
        self.serve = serve
        self.audit = audit
        self.connections = open_
        self.http = http
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.setblocking(False)
        try:
            self.sock.bind(address)
            self.sock.listen(BACKLOG)
        except OSError:
            self.sock.close()
            raise
        self.port = int(self.sock.getsockname()[1])
        self._pause: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        asyncio.get_running_loop().add_reader(self.sock.fileno(), self._accept)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock.fileno())
        if self._pause is not None:
            self._pause.cancel()
        self.sock.close()

    def _wait_a_while(self) -> None:
        """Where nothing is free the next try at once would fail again, and again: all the processor's time."""
        self.audit.event(Event("client", False, "", self.port, engine="client", reason="no file descriptor is free"))
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.sock.fileno())
        self._pause = loop.call_later(ACCEPT_PAUSE, self.begin)

    def _accept(self) -> None:
        for _ in range(BACKLOG):
            try:
                client, peer = self.sock.accept()
            except OSError as error:
                if error.errno in _NOTHING_FREE:
                    self._wait_a_while()
                return
            client.setblocking(False)
            if peer[0] != self.agent_ip or self.connections.full():
                full = "memory is scarce" if self.connections.scarce else "too many open connections"
                who = "not the agent of this sandbox" if peer[0] != self.agent_ip else full
                self.audit.event(Event("client", False, peer[0], self.port, engine="client", reason=who))
                if self.http and peer[0] == self.agent_ip:
                    self.connections.turn_away(client)
                else:
                    client.close()
                continue
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections.begin(self._serve(client))

    async def _serve(self, client: socket.socket) -> None:
        try:
            await self.serve(client)
        except (OSError, TimeoutError, asyncio.CancelledError):
            client.close()
        except Exception:  # a fault of ours is no secret, and no connection that stays
            client.close()
            raise


def proxy_port(pipeline: Pipeline, authority: Authority) -> Serve:
    """What is served on :3128: a CONNECT, or requests in absolute form."""
    limits = pipeline.limits

    def whole(data: bytes) -> bool:
        return not data.startswith(b"CONNECT "[: len(data)]) or b"\r\n\r\n" in data

    async def serve(sock: socket.socket) -> None:
        async with asyncio.timeout(limits.first_head):
            data, ended = await peek(sock, limits.proxy_head, whole)
        if not data:
            sock.close()
            return
        end = data.find(b"\r\n\r\n") + 4
        if not data.startswith(b"CONNECT "):
            await serve_requests(pipeline, sock, "forward", absolute_form, Origin("", 0, False))
        elif end < 4:
            refusal = (
                Refusal(400, "invalid_request", "the head of the CONNECT has no end")
                if ended
                else Refusal(431, "request_header_too_large", f"the head is larger than {limits.proxy_head} bytes")
            )
            event = Event("connect", False, "", 0)
            event.refused(refusal)
            pipeline.audit.event(event)
            await send_refusal(sock, refusal)
        else:
            tunnel = Tunnel(pipeline, authority, sock, partial(connect_target, sock.recv(end), limits.headers))
            try:
                await tunnel.serve()
            except Refusal as refusal:
                await send_refusal(sock, refusal)

    return serve
