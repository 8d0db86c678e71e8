# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Clients and destinations that want nothing but to hold on to what the sidecar has little of."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from loopback import HOST, SECONDS, SWITCHING, WEBSOCKET, World, hello, read_request, rest
from openshell_proxy.audit import Audit
from openshell_proxy.entrances.listener import Connections, Listener
from openshell_proxy.memory import Memory
from openshell_proxy.pipeline import Pipeline
from openshell_proxy.policy import Decision, Intent, Policy, parse_query
from openshell_proxy.settings import Limits

STILL = "no byte came for 1 seconds"


def get(port: int, *fields: str) -> bytes:
    lines = [f"GET http://{HOST}:{port}/ HTTP/1.1", f"Host: {HOST}:{port}", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An origin that never speaks."""
    await reader.read()


async def switches(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An origin that becomes a WebSocket and never speaks."""
    await read_request(reader)
    writer.write(SWITCHING)
    await reader.read()


async def test_a_tunnel_in_which_nobody_ever_speaks_ends(world: World) -> None:
    there = await world.origin(silent)
    await world.start({"host": HOST, "port": there.port}, limits=Limits(idle=1))
    client = await world.tunnel(there.port, tls=False)
    assert await client.ended() == b""


@pytest.mark.parametrize("judged", [False, True])
async def test_an_upgraded_connection_on_which_nobody_speaks_ends(world: World, judged: bool) -> None:
    there = await world.origin(switches)
    messages = {"protocol": "websocket", "deny_rules": [{"method": "WEBSOCKET_TEXT", "path": "/never"}]}
    await world.start(rest(there.port) | (messages if judged else {}), limits=Limits(idle=1))
    client = await world.client()
    await client.send(get(there.port, *WEBSOCKET))
    assert (await client.head())[0] == 101
    with contextlib.suppress(ConnectionResetError):
        await client.ended()
    assert STILL in [event.get("status_detail") for event in await world.events()]


@pytest.fixture
def no_descriptors() -> Iterator[Callable[[], None]]:
    """A function after whose call the process can open no file, until it is called again or the test ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []

    def switch() -> None:
        if taken:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            while taken:
                os.close(taken.pop())
            return
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 2, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))

    yield switch
    if taken:
        switch()


async def test_a_connection_that_finds_no_descriptor_costs_no_processor(
    world: World, no_descriptors: Callable[[], None]
) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port))
    assert world.sidecar is not None
    listener = world.sidecar.listeners[0]
    assert isinstance(listener, Listener)
    client = socket.socket()
    client.setblocking(False)
    no_descriptors()
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", listener.port))
    async with asyncio.timeout(10):
        while listener._pause is None:
            await asyncio.sleep(0.01)
    busy = time.process_time()
    await asyncio.sleep(0.3)  # the time over which the processor's is measured
    assert time.process_time() - busy < 0.1
    no_descriptors()
    client.close()
    other = await world.client()
    await other.send(get(there.port))
    assert (await other.response()).status == 200
    assert "no file descriptor is free" in [event.get("status_detail") for event in await world.events()]


async def test_a_fault_of_ours_ends_the_connection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def faulty(*_arguments: object) -> bool:
        raise RuntimeError("a fault")

    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context.get("exception")))
    there = await world.origin(hello)
    await world.start(rest(there.port))
    monkeypatch.setattr(Pipeline, "request", faulty)
    client = await world.client()
    await client.send(get(there.port))
    with pytest.raises(ConnectionResetError):
        await client.ended()
    assert there.connections == 0


async def test_a_gateway_that_does_not_resolve_is_told_in_the_log(world: World) -> None:
    world.gateway = ("no-such-host.invalid", 80)
    await world.start()
    client = await world.client(1)
    assert await client.ended() == b""
    told = [event["status_detail"] for event in await world.events() if event["class_uid"] == 4001]
    assert len(told) == 1
    assert told[0].startswith("the gateway is unreachable: ")


def test_equal_keys_of_a_query_cost_no_more_than_different_ones() -> None:
    """Adding to a tuple copies it: 8,000 equal keys took half a second."""

    def seconds(query: str) -> float:
        started = time.process_time()
        parse_query(query)
        return time.process_time() - started

    many = 100_000
    different = "&".join(f"k{number}=v" for number in range(many))
    assert seconds("k=v&" * many) < 2 * seconds(different) + 0.1


@contextlib.contextmanager
def slow_judge(world: World) -> Iterator[tuple[asyncio.Event, threading.Event]]:
    """Decisions about bodies wait for the second event; the first one tells that one does."""
    assert world.sidecar is not None
    kind = type(world.sidecar.pipeline.generation.policy)
    begun, go_on = asyncio.Event(), threading.Event()
    decide, loop = kind.decide, asyncio.get_running_loop()

    def slowly(self: Policy, intent: Intent) -> Decision:
        if intent.request is not None and intent.request.body:
            loop.call_soon_threadsafe(begun.set)
            go_on.wait(SECONDS)
        return decide(self, intent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "decide", slowly)
        yield begun, go_on


def long_document(port: int) -> bytes:
    body = json.dumps({"query": "{" + "a " * 500 + "}"}).encode()
    place = f"{HOST}:{port}"
    head = f"POST http://{place}/graphql HTTP/1.1\r\nHost: {place}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def test_a_document_that_takes_long_to_parse_holds_nobody_up(world: World) -> None:
    """20,000 tokens take the parser some 100 ms; another request is answered meanwhile."""
    there = await world.origin(hello)
    await world.start(rest(there.port, path="/rest"), rest(there.port, path="/graphql", protocol="graphql"))
    slow, quick = await world.client(), await world.client()
    place = f"{HOST}:{there.port}"
    with slow_judge(world) as (begun, go_on):
        await slow.send(long_document(there.port))
        await asyncio.wait_for(begun.wait(), SECONDS)
        await quick.send(f"GET http://{place}/rest HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
        assert (await quick.response()).status == 200
        go_on.set()
        assert (await slow.response()).status == 200


async def test_a_policy_that_comes_while_a_document_is_parsed_has_the_last_word(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port, protocol="graphql"))
    client = await world.client()
    with slow_judge(world) as (begun, go_on):
        await client.send(long_document(there.port))
        await asyncio.wait_for(begun.wait(), SECONDS)
        rules = [{"allow": {"operation_type": "mutation"}}]
        world.reload(
            {key: value for key, value in rest(there.port, protocol="graphql", rules=rules).items() if key != "access"}
        )
        go_on.set()
        assert (await client.response()).status == 403
    assert there.connections == 0


async def test_where_memory_is_scarce_nobody_is_let_in_until_it_is_not(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port))
    assert world.sidecar is not None
    memory, used = world.sidecar.memory, 80
    memory.most = 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "used", lambda: used)
        before = await world.client()
        await before.send(get(there.port))
        assert (await before.response()).status == 200
        memory.look()
        client = await world.client()
        got = await client.response()
        assert (got.status, got.json["detail"]) == (503, "memory is scarce")
        await before.send(get(there.port))  # one that is there already is served
        assert (await before.response()).status == 200
        used = 60
        memory.look()
        client = await world.client()
        await client.send(get(there.port))
        assert (await client.response()).status == 200


def test_without_a_limit_nothing_is_looked_at(tmp_path: Path) -> None:
    for text in ("max\n", None):
        if text is not None:
            (tmp_path / "memory.max").write_text(text)
        memory = Memory(Connections(1), cast(Audit, None), tmp_path)
        asyncio.run(asyncio.wait_for(memory.watch(), SECONDS))
        (tmp_path / "memory.max").unlink(missing_ok=True)


def test_what_sockets_hold_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text("anon 1\nsock 1000000000000\nsock_other 5\n")
    assert 10**12 < Memory(Connections(1), cast(Audit, None), tmp_path).used() < 2 * 10**12
