# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Long tunnels, whose bytes stay within the kernel: nothing of what a tunnel promises changes when they get there."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback import HOST, SECONDS, Client, Origin, World, reset
from openshell_proxy.relay import pipe as pipe_module
from openshell_proxy.relay import splice
from openshell_proxy.relay.splice import Splicer
from openshell_proxy.settings import Limits

SIZE = 3 * pipe_module.SPLICED_AFTER
BYTES = random.Random(1).randbytes(SIZE)


@pytest.fixture
def splicers(monkeypatch: pytest.MonkeyPatch) -> list[Splicer]:
    """Those that were made."""
    made: list[Splicer] = []

    class Noted(Splicer):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(pipe_module, "Splicer", Noted)
    return made


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not true():
            await asyncio.sleep(0.005)


def pipes() -> int:
    """How many ends of pipes this process has open."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        link = Path("/proc/self/fd", name)
        found += link.is_symlink() and os.readlink(link).startswith("pipe:")
    return found


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, as it comes."""
    while data := await reader.read(100_000):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def nothing_more(client: Client) -> None:
    """The connection ends; an end is as good as a reset."""
    with contextlib.suppress(ConnectionError):
        assert await client.ended() == b""


async def tunnel(world: World, there: Origin, limits: Limits | None = None) -> Client:
    await world.start({"host": HOST, "port": there.port, "tls": "skip"}, limits=limits)
    return await world.tunnel(there.port, tls=False)


async def through(client: Client) -> bytes:
    """What comes back for :data:`BYTES` and the end, read while it is sent."""
    sending = asyncio.ensure_future(client.send(BYTES))
    got = b"".join([await client.reader.readexactly(SIZE // 8) for _ in range(8)])
    await sending
    client.writer.write_eof()
    return got + await client.ended()


async def test_every_byte_arrives_in_order_and_is_counted_both_ways(world: World, splicers: list[Splicer]) -> None:
    before = pipes()
    client = await tunnel(world, await world.origin(echo))
    assert await asyncio.wait_for(through(client), 2 * SECONDS) == BYTES
    assert len(splicers) == 2
    await until(lambda: pipes() == before)
    (ended,) = [one for one in await world.events() if one.get("activity_id") == 2]
    assert ended["traffic"] == {"bytes_in": SIZE, "bytes_out": SIZE}


async def test_a_client_that_does_not_read_holds_the_origin_up(world: World, splicers: list[Splicer]) -> None:
    sent = asyncio.Event()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(6):  # more than the kernel's buffers on the way take
            writer.write(BYTES)
            await writer.drain()
        sent.set()
        await reader.read()

    client = await tunnel(world, await world.origin(origin))
    got = await client.reader.readexactly(pipe_module.SPLICED_AFTER + 100_000)
    await until(lambda: bool(splicers))
    (splicer,) = splicers
    await until(lambda: splicer.waits_for_sink)
    assert not sent.is_set()
    got += await client.reader.readexactly(SIZE - len(got))
    assert got == BYTES
    for _ in range(5):
        assert await client.reader.readexactly(SIZE) == BYTES
    await asyncio.wait_for(sent.wait(), SECONDS)


async def test_a_tunnel_that_breaks_ends_at_both_sides(world: World, splicers: list[Splicer]) -> None:
    before = pipes()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(BYTES)
        await writer.drain()
        await reader.readexactly(3)
        reset(writer)

    client = await tunnel(world, await world.origin(origin))
    assert await client.reader.readexactly(SIZE) == BYTES
    assert splicers
    await client.send(b"end")
    await nothing_more(client)
    await until(lambda: pipes() == before)


async def test_a_new_policy_ends_it_at_once(world: World, splicers: list[Splicer]) -> None:
    over = asyncio.Event()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await echo(reader, writer)
        finally:
            over.set()

    client = await tunnel(world, await world.origin(origin))
    await client.send(BYTES[: pipe_module.SPLICED_AFTER])
    await client.reader.readexactly(pipe_module.SPLICED_AFTER)
    await client.send(b"more")
    assert await client.reader.readexactly(4) == b"more"
    assert splicers
    world.reload()
    await nothing_more(client)
    await asyncio.wait_for(over.wait(), SECONDS)
    (ended,) = [one for one in await world.events() if one.get("activity_id") == 2]
    assert "the policy has changed" in ended["status_detail"]


async def test_one_that_stands_still_is_ended(world: World, splicers: list[Splicer]) -> None:
    client = await tunnel(world, await world.origin(echo), Limits(idle=0.5))
    await client.send(BYTES[: pipe_module.SPLICED_AFTER])
    await client.reader.readexactly(pipe_module.SPLICED_AFTER)
    await client.send(b"more")
    assert await client.reader.readexactly(4) == b"more"
    assert splicers
    await nothing_more(client)
    (ended,) = [one for one in await world.events() if one.get("activity_id") == 2]
    assert "no byte came" in ended["status_detail"]


async def test_only_so_many_directions_are_in_the_kernel(
    world: World, splicers: list[Splicer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splice, "MOST", Splicer.alive + 1)
    client = await tunnel(world, await world.origin(echo))
    assert await asyncio.wait_for(through(client), 2 * SECONDS) == BYTES
    assert len(splicers) == 1
    again = await world.tunnel(world.origins[0].port, tls=False)
    assert await asyncio.wait_for(through(again), 2 * SECONDS) == BYTES
    assert len(splicers) == 2


async def test_without_a_free_descriptor_it_goes_on_as_before(
    world: World, splicers: list[Splicer], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await tunnel(world, await world.origin(echo))
    opened = len(os.listdir("/proc/self/fd"))

    def none_is_free(descriptor: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", none_is_free)
    assert await asyncio.wait_for(through(client), 2 * SECONDS) == BYTES
    assert not splicers
    assert len(os.listdir("/proc/self/fd")) <= opened


class Transport(asyncio.Transport):
    """Notes what it is told to do."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[bytes | str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.told.append(bytes(data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.told.append("end")

    def close(self) -> None:
        self.told.append("close")

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@pytest.mark.parametrize("gone", [False, True])
def test_nothing_overtakes_what_came_before_the_pipe_flows(gone: bool) -> None:
    pipe = pipe_module.Pipe(sockets=True)
    upstream, client = Transport(), Transport()
    pipe.upstream.connection_made(upstream)
    pipe.upstream.data_received(b"first")
    pipe.client.connection_made(client)
    pipe.upstream.data_received(b"second")
    if gone:
        pipe.upstream.connection_lost(None)
    else:
        pipe.upstream.eof_received()
    assert client.told == []
    pipe.begin()
    assert client.told == [b"firstsecond", "close" if gone else "end"]
