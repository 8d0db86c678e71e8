# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent's only name server: it answers from the policy and looks nothing up, so a question carries nothing out.

A host that the policy allows is at the sidecar's own address, where the transparent entrances take it from there; the
sandbox's own names are where they are; no other name exists. RFC 1035, RFC 2308 (negative answers), RFC 6891 (EDNS),
RFC 7766 (TCP), RFC 8482 (ANY).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from openshell_proxy.audit import Audit, Event
from openshell_proxy.relay.stream import Stream
from openshell_proxy.settings import DNS_PORT

if TYPE_CHECKING:
    from openshell_proxy.entrances.name_server import NameServer

TCP_BYTES = 65_535
DATAGRAMS_AT_ONCE = 32
LOGGED = 20
LOGGED_SECONDS = 10.0


Names = Callable[[], "NameServer"]  # made with the first question: see name_server.py


class RefusedNames:
    """Logs refused questions, the first :data:`LOGGED` in :data:`LOGGED_SECONDS`; the rest are counted and said."""

    def __init__(self, audit: Audit) -> None:
        self.audit = audit
        self.logged = self.left_out = 0
        self.timer: asyncio.TimerHandle | None = None

    def __call__(self, name: str, why: str) -> None:
        if self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(LOGGED_SECONDS, self.end_of_period)
        if self.logged < LOGGED:
            self.logged += 1
            self._log(name, why)
        else:
            self.left_out += 1

    def end_of_period(self) -> None:
        """Say what was left out, and begin anew."""
        if self.timer is not None:
            self.timer.cancel()
        if self.left_out:
            self._log("", f"{self.left_out} more questions were refused than are logged")
        self.logged = self.left_out = 0
        self.timer = None

    def _log(self, name: str, why: str) -> None:
        self.audit.event(Event("dns", False, name, DNS_PORT, engine="dns", reason=why))


class Datagrams:
    """The name server's UDP port at the sidecar's internal address; only the agent is answered."""

    def __init__(self, address: tuple[str, int], agent_ip: str, names: Names, refused: RefusedNames) -> None:
        self.agent_ip = agent_ip
        self.names = names
        self.refused = refused
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        try:
            self.sock.bind(address)
        except OSError:
            self.sock.close()
            raise
        self.port = int(self.sock.getsockname()[1])

    def begin(self) -> None:
        asyncio.get_running_loop().add_reader(self.sock.fileno(), self._receive)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock.fileno())
        self.sock.close()

    def _receive(self) -> None:
        """Answer what is there, but not so much at once that others wait."""
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                wire, peer = self.sock.recvfrom(TCP_BYTES)
            except OSError:
                return
            if peer[0] != self.agent_ip:
                self.refused(peer[0], "not the agent of this sandbox")
                continue
            response = self.names().answer(wire, udp=True)
            if response is not None:
                try:
                    self.sock.sendto(response, peer)
                except OSError:
                    continue  # no room, or nobody there: a client asks again


async def serve_stream(names: Names, sock: socket.socket, idle_seconds: float) -> None:
    """Questions over TCP, one after the other, until the client leaves or stays silent for *idle_seconds*."""
    client = Stream()
    await asyncio.get_running_loop().connect_accepted_socket(lambda: client, sock)
    try:
        while True:
            async with asyncio.timeout(idle_seconds):
                wire = await _read_message(client)
                response = names().answer(wire, udp=False) if wire is not None else None
                if response is None:
                    break
                client.write(len(response).to_bytes(2, "big") + response)
                await client.drain()
    finally:
        client.close()


async def _read_message(client: Stream) -> bytes | None:
    """The next message behind its length in two bytes; None at the end of the stream."""
    while len(client.buffer) < 2 or len(client.buffer) < 2 + int.from_bytes(client.buffer[:2], "big"):
        if not await client.fill():
            return None
    return client.consume(2 + int.from_bytes(client.buffer[:2], "big"))[2:]
