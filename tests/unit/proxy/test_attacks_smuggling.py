# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An agent and an origin that try to make the two sides of the sidecar disagree about where a message ends."""

from __future__ import annotations

import asyncio
import json

import pytest
from loopback import HOST, World, answer, hello, read_request, rest
from openshell_proxy.relay.http1 import Body, Framing, ProtocolError
from openshell_proxy.relay.http2_head import Malformed, read_head
from openshell_proxy.settings import Limits


def request(port: int, method: str = "GET", *fields: str, path: str = "/") -> bytes:
    lines = [f"{method} http://{HOST}:{port}{path} HTTP/1.1", f"Host: {HOST}:{port}", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def test_one_content_length_is_sent_on(world: World) -> None:
    heads: list[bytes] = []

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer(await reader.readexactly(4)))
        await reader.read()

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(request(there.port, "POST", "Content-Length: 4", "Content-Length: 4") + b"body")
    assert (await client.response()).body == b"body"
    assert heads[0].lower().count(b"content-length") == 1


async def test_one_content_length_is_handed_back(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer(b"body", "200 OK", "Content-Length: 4"))
        await reader.read()

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(request(there.port))
    block = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 10)
    assert block.lower().count(b"content-length") == 1


@pytest.mark.parametrize("name", ["Host", "content-length", "Transfer-Encoding", "Connection"])
def test_a_trailer_cannot_be_a_field_that_routes_or_frames(name: str) -> None:
    with pytest.raises(ProtocolError):
        Body(Framing("chunked")).take(f"0\r\n{name}: x\r\n\r\n".encode())


@pytest.mark.parametrize("name", [b"host", b"content-length"])
def test_nor_can_one_of_http2(name: bytes) -> None:
    with pytest.raises(Malformed):
        read_head([(name, b"1")], "trailers")


def test_a_method_of_http2_is_as_short() -> None:
    head = [(b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/")]
    assert read_head([(b":method", b"X" * 64), *head], "request").pseudo[b":method"]
    with pytest.raises(Malformed):
        read_head([(b":method", b"X" * 65), *head], "request")


def test_nothing_but_a_line_end_follows_a_chunk() -> None:
    body = Body(Framing("chunked"))
    body.take(b"1\r\na")
    with pytest.raises(ProtocolError):
        body.take(b"GET")


@pytest.mark.parametrize(
    "field", ["Content-Length: 5", "Transfer-Encoding: chunked", "Connection: close", "Keep-Alive: x"]
)
async def test_an_interim_answer_frames_nothing(world: World, field: str) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(f"HTTP/1.1 103 Early Hints\r\n{field}\r\nLink: </a>\r\n\r\n".encode() + answer())
        await reader.read()

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(request(there.port))
    assert await client.head() == (103, {"link": "</a>"})
    assert (await client.response()).body == b"ok"


@pytest.mark.parametrize("field", ["Content-Length: 5", "Transfer-Encoding: chunked"])
async def test_an_answer_without_content_frames_none(world: World, field: str) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(f"HTTP/1.1 204 No Content\r\n{field}\r\n\r\n".encode())
        await hello(reader, writer)

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port, tls=False)
    await client.send(request(there.port))
    assert await client.head() == (204, {})
    await client.send(request(there.port, path="/next"))
    assert b"/next" in (await client.response()).body


async def test_interim_answers_without_end_are_given_up(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        while True:
            writer.write(b"HTTP/1.1 102 Processing\r\nX: " + b"x" * 1000 + b"\r\n\r\n")
            await writer.drain()

    there = await world.origin(origin)
    await world.start(rest(there.port), limits=Limits(idle=5))
    client = await world.client()
    await client.send(request(there.port))
    for _ in range(1000):
        status, _fields = await client.head()
        if status != 102:
            break
    assert status == 502


async def test_no_tunnel_is_asked_for_within_a_connection(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port, tls=False)
    await client.send(f"CONNECT /x HTTP/1.1\r\nHost: {HOST}:{there.port}\r\n\r\n".encode())
    assert (await client.response()).status == 400
    assert there.connections == 0


async def test_a_method_is_no_place_for_much_text(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(request(there.port, "X" * 65))
    assert (await client.response()).status == 400
    assert all("XXX" not in json.dumps(event) for event in await world.events())
