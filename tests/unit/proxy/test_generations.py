# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A new policy: swapped as a whole, nothing it allows is dropped, nothing it refuses goes on (spec 2.5, 2.12)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from loopback import HOST, Client, World, answer, hello, read_request, rest
from openshell_proxy.settings import Limits

WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def get(port: int, path: str = "/", method: str = "GET") -> bytes:
    return f"{method} http://{HOST}:{port}{path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode()


def inner(port: int, path: str = "/", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode()


def paths(port: int, *allowed: str) -> dict[str, Any]:
    endpoint = rest(port, rules=[{"allow": {"method": "GET", "path": path}} for path in allowed])
    del endpoint["access"]
    return endpoint


async def test_an_idle_tunnel_closes_and_a_new_one_is_judged_anew(world: World) -> None:
    there = await world.origin(hello, tls=True)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port)
    await client.send(inner(there.port))
    assert (await client.response()).status == 200
    world.reload(rest(there.port, "read-only"))
    assert await client.ended() == b""
    again = await world.tunnel(there.port)
    await again.send(inner(there.port, method="POST"))
    assert (await again.response()).status == 403


async def test_the_first_request_in_a_tunnel_is_judged_by_the_new_policy_and_the_last(world: World) -> None:
    there = await world.origin(hello, tls=True)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port)
    world.reload(paths(there.port, "/new"))
    await client.send(inner(there.port, "/new"))
    got = await client.response()
    assert (got.status, got.headers["connection"]) == (200, "close")
    assert await client.ended() == b""


async def test_a_request_under_way_ends_as_it_began(world: World) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        await go.wait()
        writer.write(answer(b"whole"))

    there = await world.origin(slow)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port))
    await asyncio.wait_for(asked.wait(), 10)
    world.reload()
    go.set()
    got = await client.response()
    assert (got.status, got.body, got.headers["connection"]) == (200, b"whole", "close")
    assert await client.ended() == b""


async def test_a_request_that_came_before_the_close_is_answered(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port))
    assert (await client.response()).status == 200
    client.writer.write(get(there.port, "/raced"))  # in the kernel; the sidecar has not read it
    world.reload(rest(there.port, "read-only"))
    got = await client.response()
    assert (got.status, got.headers["connection"]) == (200, "close")


@pytest.mark.parametrize("more", [False, True], ids=["nothing", "another"])
async def test_a_request_that_came_behind_an_answer_under_way_is_answered(world: World, more: bool) -> None:
    go = asyncio.Event()

    async def halting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
            await go.wait()
            writer.write(b"half")

    there = await world.origin(halting)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port))
    assert (await client.head())[0] == 200
    world.reload(rest(there.port, "read-only"))
    if more:
        await client.send(get(there.port))  # the head of the first answer did not say that it is the last
    go.set()
    assert await asyncio.wait_for(client.reader.readexactly(8), 10) == b"halfhalf"
    if more:
        got = await client.response()
        assert (got.status, got.headers["connection"]) == (200, "close")
    assert await client.ended() == b""


async def test_a_head_that_had_begun_before_the_close_is_waited_for(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port), limits=Limits(keep_alive=0.1))
    client = await world.client()
    await client.send(get(there.port))
    assert (await client.response()).status == 200
    client.writer.write(get(there.port)[:-10])
    world.reload(rest(there.port, "read-only"))
    beginning = asyncio.create_task(client.reader.read(1))
    assert not (await asyncio.wait((beginning,), timeout=0.4))[0]
    await client.send(get(there.port)[-10:])
    assert await asyncio.wait_for(beginning, 10) == b"H"


async def test_half_a_head_is_not_waited_for_longer_without_a_new_policy(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port), limits=Limits(keep_alive=0.1))
    client = await world.client()
    await client.send(get(there.port))
    assert (await client.response()).status == 200
    await client.send(get(there.port)[:-10])
    assert await client.ended() == b""


async def test_the_same_policy_again_closes_nothing(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port, tls=False)
    await client.send(get(there.port))
    assert (await client.response()).status == 200
    report = world.reload(rest(there.port))
    assert report["generation"] == 2
    await client.send(get(there.port))
    assert (await client.response()).headers.get("connection") is None
    assert there.connections == 1


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data)


async def blind(world: World, port: int) -> Client:
    client = await world.tunnel(port, tls=False)
    await client.send(b"\x00ping")
    assert await client.reader.readexactly(5) == b"\x00ping"
    return client


async def test_a_blind_tunnel_stays_while_it_is_allowed_and_no_longer(world: World) -> None:
    there = await world.origin(echo)
    endpoint = {"host": HOST, "port": there.port, "tls": "skip"}
    await world.start(endpoint)
    client = await blind(world, there.port)
    world.reload(endpoint, rest(1))
    await client.send(b"still")
    assert await client.reader.readexactly(5) == b"still"
    world.reload(rest(1))
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(client.reader.readexactly(1), 10)
    closed = [one for one in await world.events() if one["message"].startswith("CONNECT closed")]
    assert [one["status_detail"] for one in closed] == ["the policy has changed"]


async def test_a_blind_tunnel_that_would_now_be_inspected_ends(world: World) -> None:
    there = await world.origin(echo)
    await world.start({"host": HOST, "port": there.port})
    client = await blind(world, there.port)
    world.reload(rest(there.port))
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(client.reader.readexactly(1), 10)


async def test_a_tunnel_admitted_before_and_piped_after_is_judged_again(world: World) -> None:
    there = await world.origin(echo)
    await world.start({"host": HOST, "port": there.port})
    client = await world.tunnel(there.port, tls=False)  # admitted; the sidecar waits for its first bytes
    world.reload(rest(1))
    await client.send(b"\x00ping")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(client.reader.readexactly(5), 10)


async def test_an_upgraded_connection_that_nobody_looks_into_ends(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, fields, _ = await read_request(reader)
        accept = base64.b64encode(hashlib.sha1(fields["sec-websocket-key"].encode() + WEBSOCKET).digest()).decode()
        upgrade = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n" + upgrade.encode())
        await echo(reader, writer)

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    ask = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    key = f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n\r\n"
    await client.send(get(there.port)[:-2] + (ask + key).encode())
    assert (await client.head())[0] == 101
    await client.send(b"frame")
    assert await client.reader.readexactly(5) == b"frame"
    world.reload(rest(there.port, "read-only"))
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(client.reader.readexactly(1), 10)


async def test_a_watcher_is_told_until_it_leaves(world: World) -> None:
    await world.start(rest(1))
    assert world.sidecar is not None
    told: list[int] = []
    unwatch = world.sidecar.pipeline.watch(lambda generation: told.append(generation.number))
    world.reload(rest(2))
    unwatch()
    unwatch()
    world.reload(rest(3))
    assert told == [2]


async def test_new_trust_is_not_served_by_old_connections(world: World) -> None:
    there = await world.origin(hello, tls=True)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port)
    await client.send(inner(there.port))
    assert (await client.response()).status == 200
    (world.directory / "state/config/upstream-ca.pem").write_text("")
    world.reload(rest(there.port))
    await client.send(inner(there.port))
    assert (await client.response()).status == 502


async def test_a_connection_in_use_as_trust_changes_is_not_kept(world: World) -> None:
    go = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            asked.set()
            await go.wait()
            writer.write(answer())

    asked = asyncio.Event()
    there = await world.origin(slow, tls=True)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port)
    await client.send(inner(there.port))
    await asyncio.wait_for(asked.wait(), 10)
    (world.directory / "state/config/upstream-ca.pem").write_text("")
    world.reload(rest(there.port))
    go.set()
    assert (await client.response()).status == 200
    await client.send(inner(there.port))
    assert (await client.response()).status == 502


BAD = "version: 1\nnetwork_policy: {}\n"


@pytest.mark.parametrize(("mode", "status"), [("retain_last_valid", 200), ("fail_closed", 403)])
async def test_what_a_bad_policy_leaves_in_force(world: World, mode: str, status: int) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port), failure_mode=mode)
    assert world.sidecar is not None
    (world.directory / "state/config/policy.yaml").write_text(BAD)
    report = world.sidecar.reload()
    assert "network_policies" in report["policy_error"]
    assert report["quarantined"] is (mode == "fail_closed")
    sentinel = json.loads((world.directory / "tls/.ready").read_text())
    assert sentinel["quarantined"] is world.sidecar.status()["quarantined"] is (mode == "fail_closed")
    client = await world.client()
    await client.send(get(there.port))
    assert (await client.response()).status == status
    assert world.reload(rest(there.port))["quarantined"] is False
    again = await world.client()
    await again.send(get(there.port))
    assert (await again.response()).status == 200
    said = [one["message"] for one in await world.events() if one["class_uid"] == 6002]
    assert ("policy refused, everything is denied" in said) is (mode == "fail_closed")
    assert ("policy refused" in said) is (mode == "retain_last_valid")


async def test_bad_trust_is_said_again_at_every_load(world: World) -> None:
    await world.start(rest(1))
    bundle = world.directory / "state/config/upstream-ca.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert "upstream CA bundle" in world.reload(rest(1))["policy_error"]
    assert "upstream CA bundle" in world.reload(rest(1))["policy_error"]


class Hammer:
    """Clients that ask without a pause on connections that they keep; every answer is held against the policy's."""

    def __init__(self, world: World, port: int, tls: bool) -> None:
        self.world, self.port, self.tls = world, port, tls
        self.generation = 0  # even: /both and /even are allowed; odd: /both and /odd
        self.answers: dict[str, int] = {}
        self.wrong: list[str] = []
        self.again = 0
        self.stop = False

    async def connect(self) -> Client:
        return await (self.world.tunnel(self.port) if self.tls else self.world.client())

    async def run(self, path: str) -> None:
        make: Callable[[int, str], bytes] = inner if self.tls else get
        client = await self.connect()
        fresh = True
        while not self.stop:
            before = self.generation
            try:
                await client.send(make(self.port, path))
                got = await client.response()
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                # Closed between two requests while this one was on its way: not a byte of an answer (RFC 9112, 9.3.1).
                if fresh or getattr(error, "partial", b""):
                    self.wrong.append(f"{path}: {error!r} on a {'fresh' if fresh else 'kept'} connection")
                    return
                self.again += 1
                client, fresh = await self.connect(), True
                continue
            self.judge(path, got.status, before)
            fresh = False
            if got.headers.get("connection") == "close":
                client.close()
                client, fresh = await self.connect(), True

    def judge(self, path: str, status: int, before: int) -> None:
        self.answers[path] = self.answers.get(path, 0) + 1
        right = {"/both": {200}, "/even": {200, 403}, "/odd": {200, 403}}[path]
        if before == self.generation:  # no reload while it was under way: exactly the policy's answer
            allowed = path == "/both" or (path == "/even") == (self.generation % 2 == 0)
            right = {200 if allowed else 403}
        if status not in right:
            self.wrong.append(f"{path}: {status} under generation {before}..{self.generation}")


@pytest.mark.parametrize("tls", [False, True])
async def test_fifty_reloads_under_fire(world: World, tls: bool) -> None:
    there = await world.origin(hello, tls=tls)
    policies = [paths(there.port, "/both", "/even"), paths(there.port, "/both", "/odd")]
    await world.start(policies[0])
    hammer = Hammer(world, there.port, tls)
    clients = [asyncio.create_task(hammer.run(path)) for path in ("/both", "/both", "/even", "/odd")]
    for number in range(1, 51):
        enough = sum(hammer.answers.values()) + 8
        async with asyncio.timeout(20):
            while sum(hammer.answers.values()) < enough and not hammer.wrong:
                await asyncio.sleep(0)
        hammer.generation = number
        world.reload(policies[number % 2])
    hammer.stop = True
    await asyncio.wait_for(asyncio.gather(*clients), 20)
    assert hammer.wrong == []
    assert hammer.again <= 50 * len(clients)
    assert set(hammer.answers) == {"/both", "/even", "/odd"}
