# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Clients and origins that speak HTTP/2 as they are told to, right or wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from h2 import events
from h2.config import H2Configuration
from loopback import HOST, SECONDS, Client, World, rest
from openshell_proxy.relay.http2 import Core
from openshell_proxy.settings import Limits

Fields = list[tuple[bytes, bytes]]


class Peer:
    """One end of an HTTP/2 connection that says what it is told to, right or wrong."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: bool, window: int = 65_535,
        streams: int = 100,
    ) -> None:  # fmt: skip
        self.reader, self.writer = reader, writer
        config = H2Configuration(client_side=client, validate_outbound_headers=False, normalize_outbound_headers=False)
        self.core = Core(config)  # which goes on after a GOAWAY
        self.core.initiate_connection()
        if (window, streams) != (65_535, 100):
            self.core.update_settings({4: window, 3: streams})
        self.heads: dict[int, list[dict[bytes, bytes]]] = {}
        self.fields: dict[int, list[tuple[bytes, bytes]]] = {}  # of the last head, as they came
        self.trailers: dict[int, dict[bytes, bytes]] = {}
        self.bodies: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goaway: int | None = None
        self.eof = False
        self.acknowledge = True
        self.keep = True  # what comes of bodies
        self.apart = True  # the end of what is sent comes in a frame of its own
        self.frames: dict[int, list[int]] = {}  # how long each frame was that came with a body
        self.seen: dict[int, int] = {}  # how many bytes of each body have come
        self.flush()

    def flush(self) -> None:
        self.writer.write(self.core.data_to_send())

    async def step(self) -> None:
        """Take in what comes next."""
        data = await asyncio.wait_for(self.reader.read(1 << 20), SECONDS)
        if not data:
            self.eof = True
            return
        for event in self.core.receive_data(data):
            self._take(event)
        self.flush()

    def _take(self, event: Any) -> None:
        if isinstance(event, (events.RequestReceived, events.ResponseReceived, events.InformationalResponseReceived)):
            self.heads.setdefault(event.stream_id, []).append(dict(event.headers))
            self.fields[event.stream_id] = event.headers
        elif isinstance(event, events.TrailersReceived):
            self.trailers[event.stream_id] = dict(event.headers)
        elif isinstance(event, events.DataReceived):
            self.frames.setdefault(event.stream_id, []).append(len(event.data))
            self.seen[event.stream_id] = self.seen.get(event.stream_id, 0) + len(event.data)
            if self.keep:
                self.bodies.setdefault(event.stream_id, bytearray()).extend(event.data)
            if self.acknowledge:
                self.core.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, events.StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, events.StreamReset):
            self.resets[event.stream_id] = int(event.error_code)
        elif isinstance(event, events.ConnectionTerminated):
            self.goaway = int(event.error_code)

    async def until(self, holds: Callable[[], Any]) -> None:
        while not holds():
            assert not self.eof, "the connection ended"
            await self.step()

    async def over(self, stream: int) -> None:
        await self.until(lambda: stream in self.ended or stream in self.resets)

    def ask(self, fields: Fields, end: bool = True) -> int:
        stream = self.core.get_next_available_stream_id()
        self.core.send_headers(stream, fields, end_stream=end)
        self.flush()
        return stream

    async def send(self, stream: int, data: bytes, end: bool = True) -> None:
        at = 0
        while at < len(data):
            size = min(self.core.local_flow_control_window(stream), self.core.max_outbound_frame_size, len(data) - at)
            if size <= 0:
                await self.step()
                continue
            at += size
            last = end and not self.apart and at == len(data)
            self.core.send_data(stream, data[at - size : at], end_stream=last)
            self.flush()
        if end and (self.apart or not data):
            self.core.end_stream(stream)
        self.flush()

    def json(self, stream: int) -> Any:
        return json.loads(self.bodies[stream])


Serve = Callable[[Peer, int], Awaitable[None]]


def origin_of(
    serve: Serve, peers: list[Peer] | None = None, window: int = 65_535, streams: int = 100
) -> Callable[..., Awaitable[None]]:
    """A handler that speaks HTTP/2 and has each request, once its head is there, served by *serve*."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer, client=False, window=window, streams=streams)
        if peers is not None:
            peers.append(peer)
        seen: set[int] = set()
        while not peer.eof:
            for stream in [one for one in peer.heads if one not in seen]:
                seen.add(stream)
                await serve(peer, stream)
            if not peer.eof:
                await peer.step()

    return handler


async def echo(peer: Peer, stream: int) -> None:
    """Answer with the request's path, its body, and trailers."""
    await peer.over(stream)
    if stream in peer.resets:
        return
    peer.core.send_headers(stream, [(b":status", b"200"), (b"x-path", peer.heads[stream][0][b":path"])])
    await peer.send(stream, bytes(peer.bodies.get(stream, b"")), end=False)
    peer.core.send_headers(stream, [(b"x-trailer", b"yes")], end_stream=True)
    peer.flush()


def head(
    port: int, path: bytes = b"/", method: bytes = b"GET", *fields: tuple[bytes, bytes], **pseudo: bytes
) -> Fields:
    start = {b"method": method, b"scheme": b"https", b"authority": f"{HOST}:{port}".encode(), b"path": path}
    start |= {name.encode(): value for name, value in pseudo.items()}
    return [*((b":" + name, value) for name, value in start.items()), *fields]


@dataclasses.dataclass
class Two:
    """A world with an HTTP/2 origin, and a client that speaks it."""

    world: World

    async def start(
        self, serve: Serve = echo, peers: list[Peer] | None = None, window: int = 65_535, streams: int = 100,
        **policy: Any,
    ) -> int:  # fmt: skip
        made = await self.world.origin(origin_of(serve, peers, window, streams), tls=["h2", "http/1.1"])
        self.there = made
        await self.world.start(rest(made.port, **policy))
        return made.port

    async def peer(self, port: int, alpn: tuple[str, ...] = ("h2",)) -> Peer:
        return await self.speak(await self.world.tunnel(port, tls=False), HOST, alpn)

    async def speak(self, client: Client, name: str, alpn: tuple[str, ...] = ("h2",)) -> Peer:
        """HTTP/2 on a connection that leads to *name*."""
        context = ssl.create_default_context(cafile=self.world.directory / "tls/ca.pem")
        context.set_alpn_protocols(list(alpn))
        await client.start_tls(context, name)
        assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        return Peer(client.reader, client.writer, client=True)


def fill(peer: Peer, stream: int) -> None:
    """Send all that the windows let through."""
    while size := min(peer.core.local_flow_control_window(stream), 16_384):
        peer.core.send_data(stream, bytes(size))
    peer.flush()


async def limited(two: Two, serve: Serve, limits: Limits) -> tuple[Peer, int]:
    made = await two.world.origin(origin_of(serve), tls=["h2", "http/1.1"])
    await two.world.start(rest(made.port), limits=limits)
    return await two.peer(made.port), made.port
