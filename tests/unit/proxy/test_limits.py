# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every limit of the proxy has an answer that says which it was."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest
from loopback import HOST, World, answer, hello, read_request, rest
from openshell_proxy.entrances import listener
from openshell_proxy.settings import LIMIT_RANGES, Limits, SettingsError, read_settings


def get(port: int, *fields: str) -> bytes:
    place = f"{HOST}:{port}"
    return "\r\n".join([f"GET http://{place}/ HTTP/1.1", f"Host: {place}", *fields, "", ""]).encode()


def inner(port: int, *fields: str) -> bytes:
    return "\r\n".join(["GET / HTTP/1.1", f"Host: {HOST}:{port}", *fields, "", ""]).encode()


@pytest.mark.parametrize(("size", "status"), [(7900, 200), (8300, 431)])
async def test_the_size_of_a_head_to_the_proxy(world: World, size: int, status: int) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port, "X: " + "x" * size))
    got = await client.response()
    assert got.status == status
    if status == 431:
        assert "8192" in got.json["detail"]


@pytest.mark.parametrize(("size", "status"), [(7000, 200), (8300, 431)])
async def test_the_size_of_a_connect(world: World, size: int, status: int) -> None:
    await world.start({"host": HOST, "port": 443})
    client = await world.client()
    await client.send(f"CONNECT {HOST}:443 HTTP/1.1\r\nX: {'x' * size}\r\nHost: {HOST}:443\r\n\r\n".encode())
    assert (await client.head())[0] == status


@pytest.mark.parametrize(("size", "status"), [(16_000, 200), (16_500, 431)])
async def test_the_size_of_a_head_within_a_tunnel(world: World, size: int, status: int) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port, tls=False)
    await client.send(inner(there.port, "X: " + "x" * size))
    assert (await client.response()).status == status


@pytest.mark.parametrize(("count", "status"), [(9, 200), (10, 431)])
async def test_the_number_of_fields(world: World, count: int, status: int) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port), limits=Limits(headers=10))
    fields = [f"X-{number}: x" for number in range(count)]
    client = await world.client()
    await client.send(get(there.port, *fields))
    assert (await client.response()).status == status
    place = f"{HOST}:{there.port}"
    connect = await world.client()
    await connect.send("\r\n".join([f"CONNECT {place} HTTP/1.1", f"Host: {place}", *fields, "", ""]).encode())
    assert (await connect.head())[0] == status


async def test_a_connection_too_many_is_told_so(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port), limits=Limits(connections=1))
    first = await world.client()
    await first.send(get(there.port))
    assert (await first.response()).status == 200
    second = await world.client()
    await second.send(get(there.port))
    got = await second.response()
    assert (got.status, got.json["error"], got.headers["retry-after"]) == (503, "overloaded", "1")
    await first.send(get(there.port))
    assert (await first.response()).status == 200
    gateway = await world.client(1)
    try:
        assert await gateway.ended() == b""  # no HTTP is spoken there
    except ConnectionError:
        pass
    assert "too many open connections" in [one.get("status_detail") for one in await world.events()]


async def test_where_too_many_are_being_told_so_the_next_is_just_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "TURNED_AWAY", 1)
    await world.start(rest(443), limits=Limits(connections=0))
    told, closed = [await world.client() for _ in range(2)]
    assert (await told.response()).status == 503  # and it is lingered for until it closes
    with contextlib.suppress(ConnectionError):
        assert await closed.ended() == b""


async def test_a_request_too_many_is_told_so(world: World) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        await go.wait()
        writer.write(answer())

    there = await world.origin(slow)
    await world.start(rest(there.port), limits=Limits(requests=1))
    first, second, third = [await world.client() for _ in range(3)]
    await first.send(get(there.port))
    await asyncio.wait_for(asked.wait(), 10)
    await second.send(get(there.port))
    got = await second.response()
    assert (got.status, got.json["error"], got.headers["retry-after"]) == (503, "overloaded", "1")
    go.set()
    assert (await first.response()).status == 200
    await third.send(get(there.port))
    assert (await third.response()).status == 200
    assert [one["action_id"] for one in await world.events() if one["class_uid"] == 4002] == [2, 1, 1]


async def test_a_destination_that_says_nothing_is_a_504(world: World) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    there = await world.origin(silent)
    await world.start(rest(there.port), limits=Limits(idle=0.2))
    client = await world.client()
    await client.send(get(there.port))
    got = await client.response()
    assert (got.status, got.json["error"]) == (504, "upstream_timeout")


async def test_a_stream_may_last_but_not_stand_still(world: World) -> None:
    async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        for _ in range(8):
            writer.write(b"x")
            await asyncio.sleep(0.1)  # what is tested is the passing of time
        await reader.read()

    there = await world.origin(dripping)
    await world.start(rest(there.port), limits=Limits(idle=0.4))
    client = await world.client()
    await client.send(get(there.port))
    assert (await client.head())[0] == 200
    assert len(await asyncio.wait_for(client.reader.readexactly(8), 10)) == 8
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(client.reader.readexactly(1), 10)
    assert "no byte came for 0.4 seconds" in [one.get("status_detail") for one in await world.events()]


async def test_a_tunnel_that_stands_still_ends(world: World) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    there = await world.origin(silent)
    await world.start({"host": HOST, "port": there.port, "tls": "skip"}, limits=Limits(idle=0.2))
    client = await world.tunnel(there.port, tls=False)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(client.reader.readexactly(1), 10)
    assert "no byte came for 0.2 seconds" in [one.get("status_detail") for one in await world.events()]


@pytest.mark.parametrize("limits", [Limits(keep_alive=0.1), Limits(first_head=0.1)])
async def test_a_client_that_asks_nothing_is_left(world: World, limits: Limits) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port), limits=limits)
    client = await world.client()
    if limits.keep_alive < 1:
        await client.send(get(there.port))
        assert (await client.response()).status == 200
    assert await client.ended() == b""


async def test_a_handshake_that_never_ends(world: World) -> None:
    await world.start(rest(443), limits=Limits(handshake=0.2))
    client = await world.tunnel(443, tls=False)
    await client.send(b"\x16\x03\x01\x02\x00\x01")
    assert await client.ended() == b""
    told = [one["status_detail"] for one in await world.events() if one.get("firewall_rule", {}).get("type") == "tls"]
    assert len(told) == 1 and told[0].startswith("TLS with the client failed")


@pytest.mark.parametrize("limits", [Limits(connect_each=0.2), Limits(connect_total=0.2)])
async def test_a_destination_that_does_not_take_the_connection(world: World, limits: Limits) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # one fits; the kernel answers no more
        for one in (first, second):
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        await world.start(rest(port), limits=limits)
        client = await world.client()
        await client.send(get(port))
        got = await client.response()
        assert (got.status, "the connection timed out" in got.json["detail"]) == (502, True)


ENVIRON = {"OPENSHELL_SANDBOX": "x", "OPENSHELL_PROXY_IP": "10.0.0.2", "OPENSHELL_AGENT_IP": "10.0.0.3"}


def test_limits_come_from_the_environment() -> None:
    text = "connections=12,idle=2.5"
    limits = read_settings({**ENVIRON, "OPENSHELL_PROXY_LIMITS": text}).limits
    assert (limits.connections, limits.idle, limits.head) == (12, 2.5, 16_384)


@pytest.mark.parametrize(
    "text",
    [
        "conections=1",
        "connections=0",
        "connections=1.5",
        "connections",
        "idle=x",
        "head=True",
        "idle=nan",
        "pool_idle=1",
    ],
)
def test_limits_that_are_none_are_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({**ENVIRON, "OPENSHELL_PROXY_LIMITS": text})
    assert "OPENSHELL_PROXY_LIMITS" in str(caught.value) and "\n" not in str(caught.value)


def test_every_default_lies_within_its_range() -> None:
    default: Any = Limits()
    for name, (low, high) in LIMIT_RANGES.items():
        assert low <= getattr(default, name) <= high
