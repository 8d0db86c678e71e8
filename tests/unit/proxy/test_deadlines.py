# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One timer for many requests: each deadline holds, a cleared one does not, and what is idle for too long is closed."""

from __future__ import annotations

import asyncio
import socket

import pytest
from openshell_proxy.authority import UpstreamTls
from openshell_proxy.relay.dialer import Dialer
from openshell_proxy.relay.stream import Deadline, Stream
from openshell_proxy.relay.upstream import Origin, Pool
from openshell_proxy.settings import Limits

SECONDS = 10


async def pair() -> tuple[Stream, socket.socket]:
    """A stream and the socket that feeds it."""
    ours, theirs = socket.socketpair()
    stream = Stream()
    await asyncio.get_running_loop().connect_accepted_socket(lambda: stream, ours)
    return stream, theirs


async def head(stream: Stream, deadline: Deadline, seconds: float) -> bytes | None:
    deadline.set(seconds)
    reading = asyncio.ensure_future(stream.read_head(100))
    done, _ = await asyncio.wait((reading,), timeout=SECONDS)
    assert done, "it was not given up"
    deadline.clear()
    return reading.result()


async def test_each_head_has_its_own_time() -> None:
    stream, theirs = await pair()
    deadline = Deadline(stream)
    theirs.send(b"a\r\n\r\n")
    assert await head(stream, deadline, 60) == b"a\r\n\r\n"
    with pytest.raises(TimeoutError):  # the timer that runs is for later than this
        await head(stream, deadline, 0.02)
    theirs.send(b"b\r\n\r\n")
    assert await head(stream, deadline, 0.02) == b"b\r\n\r\n"
    async with asyncio.timeout(SECONDS):
        while deadline._timer is not None:  # it fires, for nobody
            await asyncio.sleep(0.005)
    for _ in range(2):
        late = asyncio.get_running_loop().call_later(0.1, theirs.send, b"c\r\n\r\n")
        assert await head(stream, deadline, 60) == b"c\r\n\r\n"
        late.cancel()
        deadline.set(0.02)  # its timer fires too early for the next one
    theirs.send(b"half")
    with pytest.raises(TimeoutError):
        await head(stream, deadline, 0.02)
    deadline.close()
    stream.close()
    theirs.close()


async def test_idle_connections_are_closed_in_their_time() -> None:
    ended: asyncio.Queue[None] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.put_nowait(None)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    limits = Limits(pool_idle=0.1)
    pool = Pool(limits, UpstreamTls(""), Dialer(limits))
    origin = Origin("here.test", server.sockets[0].getsockname()[1], False)
    first, second = [await pool.connect(origin, ["127.0.0.1"]) for _ in range(2)]
    pool.keep(first)
    pool.keep(second)
    assert await pool.connect(origin, ["127.0.0.1"]) is second
    await asyncio.wait_for(ended.get(), SECONDS)
    assert first.lost and not second.lost
    third = await pool.connect(origin, ["127.0.0.1"])
    pool.keep(second)
    asyncio.get_running_loop().call_later(0.05, pool.keep, third)  # its time is not that of the second
    for _ in range(2):
        await asyncio.wait_for(ended.get(), SECONDS)
    assert second.lost and third.lost
    server.close()


async def test_so_many_connections_are_kept_for_all_origins_together() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    servers = [await asyncio.start_server(serve, "127.0.0.1", 0) for _ in range(2)]
    limits = Limits(pool=2)
    pool = Pool(limits, UpstreamTls(""), Dialer(limits))
    origins = [Origin("here.test", server.sockets[0].getsockname()[1], False) for server in servers]
    first, second, third = [await pool.connect(origin, ["127.0.0.1"]) for origin in (*origins, origins[0])]
    for stream in (first, second, third):
        pool.keep(stream)
    assert third.transport is not None and third.transport.is_closing()
    assert await pool.connect(origins[0], ["127.0.0.1"]) is first
    pool.keep(first)  # there is room again
    assert await pool.connect(origins[0], ["127.0.0.1"]) is first
    first.close()
    pool.clear()
    assert second.transport is not None and second.transport.is_closing()
    for server in servers:
        server.close()
