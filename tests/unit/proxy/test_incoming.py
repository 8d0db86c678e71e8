# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""All connections are read into one buffer, of a size that suits what the image asks of malloc."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loopback import HOST, World, rest
from openshell_proxy.relay import incoming
from openshell_proxy.relay.http2 import Endpoint
from openshell_proxy.relay.incoming import SIZE, Incoming
from openshell_proxy.relay.pipe import PipeEnd
from openshell_proxy.relay.stream import Stream

CONTAINERFILE = Path(__file__).parents[3] / "proxy_image/Containerfile"
LOOPS_BLOCK = 256 * 1024  # what uvloop has for what is still encrypted, one for each connection with TLS
RECORD, MORE = 16 * 1024, 64  # what a record of TLS carries, and what it has beside that, at most
OBJECT = 64  # what an object of Python and a block of malloc have beside their content, at most


def test_blocks_that_stay_are_mapped_and_those_that_come_with_each_read_are_not() -> None:
    found = re.search(r"MALLOC_MMAP_THRESHOLD_=(\d+)", CONTAINERFILE.read_text())
    assert found is not None
    threshold = int(found[1])
    assert SIZE + SIZE // RECORD * MORE + OBJECT < threshold <= LOOPS_BLOCK


@pytest.mark.parametrize("one", [Stream, PipeEnd, Endpoint])
def test_a_loop_asks_for_the_buffer(one: type[Any]) -> None:
    assert issubclass(one, Incoming)
    assert not issubclass(one, asyncio.Protocol)  # of such a one uvloop asks nothing


def test_what_has_come_stays_when_the_next_bytes_come() -> None:
    streams = [Stream(), Stream()]
    for stream, content in zip(streams, (b"first", b"2nd"), strict=True):
        stream.get_buffer(-1)[: len(content)] = content
        stream.buffer_updated(len(content))
    assert [stream.buffer for stream in streams] == [b"first", b"2nd"]


def test_one_full_read_is_enough_until_it_is_taken() -> None:
    stream, said = Stream(), []
    transport: Any = SimpleNamespace(
        pause_reading=lambda: said.append("pause"), resume_reading=lambda: said.append("resume"),
        set_write_buffer_limits=lambda _high: None, can_write_eof=lambda: False,
    )  # fmt: skip
    stream.connection_made(transport)
    stream.buffer_updated(SIZE - 1)
    assert said == []
    stream.buffer_updated(1)
    assert said == ["pause"]
    stream.consume(1)
    assert said == ["pause", "resume"]


@pytest.mark.parametrize("tls", [True, False])
async def test_connections_beside_each_other_get_what_is_theirs(
    world: World, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    asked: list[int] = []

    def get_buffer(_one: Incoming, sizehint: int) -> memoryview:
        asked.append(sizehint)
        return incoming._BUFFER

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = bodies[head.split()[1].decode()]
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()

    monkeypatch.setattr(Incoming, "get_buffer", get_buffer)
    bodies = {f"/{letter}": letter.encode() * (SIZE * 3 + 1) for letter in "abcd"}
    origin = await world.origin(serve, tls=tls)
    await world.start(rest(origin.port))

    async def get(path: str) -> bytes:
        client = await world.tunnel(origin.port, tls=tls)
        await client.send(f"GET {path} HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
        return (await client.response()).body

    assert await asyncio.gather(*(get(path) for path in bodies)) == list(bodies.values())
    assert len(asked) > len(bodies)
