# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Calls to ``https://inference.local`` that come, and answers to them that are, at the edge of what is taken."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import openshell_proxy.entrances.inference as entrance
import openshell_proxy.inference.body as bodies
import openshell_proxy.inference.call as calls
import pytest
from loopback import HOST, SECONDS, World, answer, read_request, reset, rest
from openshell_proxy.relay.exchange import MAX_RESPONSE_HEAD
from openshell_proxy.relay.upstream import Origin
from test_credentials import TokenEndpoint, oauth
from test_inference import (
    BODY,
    CHAT,
    KEY,
    OTHER_KEY,
    STREAM,
    USAGE,
    Seen,
    call,
    chunked,
    events,
    lines,
    local,
    route,
    saying,
    start,
    start_held,
    write_routes,
    write_secrets,
)

EARLY = b"HTTP/1.1 103 Early Hints\r\nX-Pad: " + b"x" * 1000 + b"\r\n\r\n"


# What authorises.


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_without_a_key_nothing_authorises(world: World, provider: str) -> None:
    _, seen = await start(world, answer(USAGE), provider=provider, key="")
    client = await local(world)
    await client.send(call(CHAT if provider == "openai" else "/v1/messages", BODY, "Authorization: Bearer mine"))
    assert (await client.response()).status == 200
    assert not {"authorization", "x-api-key"} & seen[0][1].keys()


async def test_a_secret_that_the_destination_repeats_is_not_seen(world: World) -> None:
    seen: Seen = []
    told = answer(b"you are " + OTHER_KEY.encode(), f"200 {OTHER_KEY}", f"X-Echo: {OTHER_KEY}")
    origin = await world.origin(saying(seen, told), tls=True)
    write_secrets(world, {"name": "openai", "value": OTHER_KEY, "hosts": [HOST]})
    write_routes(world, route(origin, secret="openai", key=""))
    await world.start()
    client = await local(world)
    await client.send(call(CHAT, BODY, "Connection: close"))
    got = await client.ended()
    assert got.startswith(b"HTTP/1.1 200 openshell:resolve:env:openai\r\n")
    assert got.endswith(b"\r\n\r\nyou are openshell:resolve:env:openai")
    assert got.count(b"openshell:resolve:env:openai") == 3 and OTHER_KEY.encode() not in got


async def test_a_token_that_is_sold_once_more_is_not_tried_again(world: World) -> None:
    seen: Seen = []
    origin = await world.origin(saying(seen, answer(b"{}", "401 Unauthorized")), tls=True)
    endpoint = TokenEndpoint()
    endpoint.more = {"access_token": "the-only-token"}
    write_secrets(world, {**oauth(await endpoint.start(world), "refresh_token"), "header": "", "format": ""})
    write_routes(world, route(origin, secret="KEY", key=""))
    await world.start()
    client = await local(world)
    await client.send(call())
    assert (await client.response()).status == 401
    assert (len(seen), len(endpoint.asked)) == (1, 2)


# Answers.


@pytest.mark.parametrize(
    ("reply", "status", "body"),
    [
        (answer(USAGE, "200 OK", "Content-Encoding: identity"), 200, USAGE),
        (answer(gzip.compress(USAGE, mtime=0), "200 OK", "Content-Encoding: x-gzip"), 200, USAGE),
        (answer(gzip.compress(gzip.compress(USAGE, mtime=0), mtime=0), "200 OK", "Content-Encoding: gzip, gzip"), 502, None),
        (answer(gzip.compress(USAGE, mtime=0)[:-5], "200 OK", "Content-Encoding: gzip"), 502, None),
        (answer(b"ends like " + KEY[:9].encode()), 200, b"ends like " + KEY[:9].encode()),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + EARLY + answer(USAGE), 200, USAGE),
        (EARLY * (MAX_RESPONSE_HEAD // len(EARLY) + 2) + answer(USAGE), 502, None),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_RESPONSE_HEAD + b"\r\n\r\n", 502, None),
        (answer(USAGE, "200 OK", "Connection: Content-Length"), 502, None),
        (b"no HTTP at all\r\n\r\n", 502, None),
        (chunked(b"x") [:-5] + b"zz\r\n", 502, None),
    ],
)  # fmt: skip
async def test_an_answer_is_taken_as_far_as_it_can_be_read(
    world: World, reply: bytes, status: int, body: bytes | None
) -> None:
    await start(world, reply)
    client = await local(world)
    await client.send(call())
    response = await client.response()
    assert response.status == status
    assert "content-encoding" not in response.headers
    if body is None:
        assert "cannot be used" in response.json["error"]["message"]
    else:
        assert response.body == body


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_an_answer_without_content_tells_no_length(world: World, status: str) -> None:
    await start(world, f"HTTP/1.1 {status}\r\nX-A: 1\r\n\r\n".encode())
    client = await local(world)
    for _ in range(2):
        await client.send(call())
        response = await client.response()
        assert response.status == int(status[:3])
        assert not {"content-length", "transfer-encoding"} & response.headers.keys()


async def test_an_answer_that_breaks_off_is_no_short_success(world: World) -> None:
    """Where its end is that of its connection; a client that has a part of it already sees that more was to come."""
    part = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\npart")
        await part.wait()
        reset(writer)

    origin = await world.origin(serve, tls=True)
    write_routes(world, route(origin))
    await world.start()
    client = await local(world)
    await client.send(call(body=STREAM))
    assert (await client.head())[0] == 200
    await asyncio.wait_for(client.reader.readuntil(b"part\r\n"), 5)
    part.set()
    with pytest.raises((asyncio.IncompleteReadError, OSError)):
        await asyncio.wait_for(client.reader.readexactly(5), 5)
    (told,) = await lines(world)
    assert "broke off" in told["status_detail"]


async def test_the_beginning_of_a_key_waits_for_what_follows(world: World) -> None:
    go = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nx" + KEY[:9].encode())
        await go.wait()
        writer.write(KEY[9:].encode() + b"y")

    origin = await world.origin(serve, tls=True)
    write_routes(world, route(origin))
    await world.start()
    client = await local(world)
    await client.send(call(body=STREAM))
    await client.head()
    assert await asyncio.wait_for(client.reader.readexactly(6), SECONDS) == b"1\r\nx\r\n"
    go.set()
    got = await asyncio.wait_for(client.reader.readuntil(b"0\r\n\r\n"), SECONDS)
    assert b"[CREDENTIAL]" in got and KEY[:9].encode() not in got and KEY[9:].encode() not in got


async def test_the_end_of_a_connection_may_be_the_end_of_an_answer(world: World) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: no line's end")

    origin = await world.origin(serve, tls=True)
    write_routes(world, route(origin))
    await world.start()
    client = await local(world)
    for body in (BODY, STREAM, STREAM):
        await client.send(call(body=body))
        assert (await client.response()).body == b"data: no line's end"


async def test_a_connection_that_the_destination_closes_is_not_used_again(world: World) -> None:
    origin, seen = await start(world, answer(USAGE, "200 OK", "Connection: close"))
    client = await local(world)
    for _ in range(2):
        origin.closed.clear()
        await client.send(call())
        assert (await client.response()).status == 200
        await asyncio.wait_for(origin.closed.wait(), 5)
    assert (origin.connections, len(seen)) == (2, 2)


@pytest.mark.parametrize(("size", "status"), [(100, 200), (101, 502)])
async def test_an_answer_may_be_so_large(world: World, monkeypatch: pytest.MonkeyPatch, size: int, status: int) -> None:
    monkeypatch.setattr(calls, "MAX_ANSWER", 100)
    await start(world, answer(b"y" * size))
    client = await local(world)
    await client.send(call())
    assert (await client.response()).status == status


async def test_a_call_under_way_at_a_reload_is_the_last_of_its_connection(world: World) -> None:
    begun, go = await start_held(world)
    client = await local(world)
    await client.send(call())
    await asyncio.wait_for(begun.wait(), 5)
    world.reload(rest(1))
    go.set()
    response = await client.response()
    assert (response.status, response.headers["connection"]) == (200, "close")
    assert await client.ended() == b""


@pytest.mark.parametrize(("path", "status"), [(CHAT, 200), ("/v1/models", 200), ("/v1/messages", 400)])
async def test_http_1_0_gets_one_answer(world: World, path: str, status: int) -> None:
    await start(world)
    client = await local(world)
    models = path == "/v1/models"
    sent = call(
        path, b"" if models else BODY, "Connection: keep-alive", method="GET" if models else "POST", version="1.0"
    )
    await client.send(sent)
    response = await client.response()
    assert (response.status, response.headers["connection"]) == (status, "close")
    assert await client.ended() == b""


async def test_a_destination_that_cannot_be_reached_is_tried_so_often(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(world)
    assert world.sidecar is not None
    tries = []

    async def failing(*args: Any) -> Any:
        tries.append(args)
        raise calls.UpstreamError("the connection timed out")

    monkeypatch.setattr(world.sidecar.pipeline.pool, "connect", failing)
    client = await local(world)
    await client.send(call())
    assert (await client.response()).status == 503
    assert len(tries) == calls.CONNECT_TRIES


@pytest.mark.parametrize(
    ("base", "host"),
    [
        (f"https://{HOST}", HOST),
        (f"http://{HOST}", HOST),
        (f"https://{HOST}:80", f"{HOST}:80"),
        (f"http://{HOST}:443", f"{HOST}:443"),
    ],
)
async def test_a_destination_is_called_by_its_name(
    world: World, monkeypatch: pytest.MonkeyPatch, base: str, host: str
) -> None:
    seen: Seen = []
    origin = await world.origin(saying(seen, answer(USAGE)), tls=base.startswith("https"))
    write_routes(world, route(origin, base_url=base))
    await world.start()
    assert world.sidecar is not None
    pool = world.sidecar.pipeline.pool
    connect = pool.connect

    async def elsewhere(to: Origin, addresses: Any) -> Any:
        return await connect(to._replace(port=origin.port), addresses)

    monkeypatch.setattr(pool, "connect", elsewhere)
    client = await local(world)
    await client.send(call())
    assert (await client.response()).status == 200
    assert seen[0][1]["host"] == host


# Calls.


def chunks(*written: bytes) -> bytes:
    return f"POST {CHAT} HTTP/1.1\r\nHost: inference.local\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + b"".join(
        written
    )


FILLED = b'{"model": "a"}'.ljust(100)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (call(body=FILLED), 200),
        (call(body=FILLED + b" "), 413),
        (chunks(b"64\r\n" + FILLED + b"\r\n0\r\n\r\n"), 200),
        (chunks(b"65\r\n" + FILLED + b" \r\n"), 413),
        (chunks(b"e;" + b"x" * 90 + b"\r\n" + FILLED[:14] + b"\r\n0\r\n\r\n"), 200),
        (chunks(b"e;" + b"x" * 190 + b"\r\n" + FILLED[:14] + b"\r\n"), 413),
        (chunks(b"zz\r\n"), 400),
        (call("/v1/%zz"), 400),
    ],
)
async def test_a_call_may_be_so_large(world: World, monkeypatch: pytest.MonkeyPatch, sent: bytes, status: int) -> None:
    monkeypatch.setattr(bodies, "MAX_BODY", 100)
    _, seen = await start(world)
    client = await local(world)
    await client.send(sent)
    response = await client.response()
    assert (response.status, len(seen)) == (status, int(status == 200))


async def test_a_body_that_does_not_come_is_waited_for_so_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.2)
    _, seen = await start(world)
    client = await local(world)
    await client.send(call()[:-5])
    assert (await client.response()).status == 408
    assert seen == []


async def test_a_body_that_ends_too_soon_is_no_call(world: World) -> None:
    _, seen = await start(world)
    assert world.sidecar is not None
    client = await local(world)
    await client.send(call()[:-5])
    async with asyncio.timeout(SECONDS):
        while not world.sidecar.pipeline.held:
            await asyncio.sleep(0)
        client.close()
        while world.sidecar.pipeline.held:
            await asyncio.sleep(0)
    assert seen == []


async def test_leave_is_given_only_to_who_waits_for_it(world: World) -> None:
    await start(world)
    client = await local(world)
    await client.send(
        call("/v1/models", b"", "Expect: 100-continue", method="GET").replace(b"Content-Length: 0\r\n", b"")
    )
    assert (await client.head())[0] == 200
    for fields in ((), ("Expect: something-else",)):
        client = await local(world)
        await client.send(call(CHAT, BODY, *fields))
        assert (await client.head())[0] == 200
    client = await local(world)
    await client.send(call(CHAT, BODY, "Expect: 100-continue", version="1.0"))
    assert (await client.head())[0] == 200


async def test_all_the_room_that_there_is_may_be_held(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_HELD", entrance.CALL + len(BODY) + len(USAGE))
    await start(world)
    client = await local(world)
    await client.send(call())
    assert (await client.response()).status == 200


async def test_events_may_end_within_a_line_of_the_destinations(world: World) -> None:
    await start(world, chunked(events(b"1"), b"data: 2"))
    client = await local(world)
    await client.send(call(body=STREAM))
    assert (await client.response()).body == events(b"1") + b"data: 2"
