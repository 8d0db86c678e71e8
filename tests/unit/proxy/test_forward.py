# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Requests through the proxy, as tools see them: framing, reuse, errors, nothing half done (RFC 9110, RFC 9112)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback import HOST, SECONDS, SWITCHING, WEBSOCKET, Client, World, answer, hello, read_request, reset, rest
from loopback import Origin as Destination
from openshell_proxy.entrances import requests
from openshell_proxy.entrances.requests import forwarded_fields
from openshell_proxy.relay import exchange, upstream
from openshell_proxy.relay.exchange import Exchange
from openshell_proxy.relay.http1 import RequestHead
from openshell_proxy.relay.stream import Stream
from openshell_proxy.relay.upstream import Origin, UpstreamStream
from openshell_proxy.settings import Limits


def get(port: int, path: str = "/", method: str = "GET", *fields: str) -> bytes:
    lines = [f"{method} http://{HOST}:{port}{path} HTTP/1.1", f"Host: {HOST}:{port}", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def test_absolute_form_reaches_the_origin_in_origin_form(world: World) -> None:
    seen: list[tuple[str, dict[str, str], bytes]] = []

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(answer())

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port, "/a/../b?q=1", "GET", "Proxy-Authorization: Basic eDp5", "Proxy-Connection: x"))
    assert (await client.response()).body == b"ok"
    line, fields, _ = seen[0]
    assert line == "GET /b?q=1 HTTP/1.1"
    assert fields == {"host": f"{HOST}:{there.port}", "via": "1.1 openshell-sandbox", "connection": "close"}


@pytest.mark.parametrize(
    ("port", "tls", "host"), [(80, False, b"a.test"), (443, True, b"a.test"), (80, True, b"a.test:80")]
)
def test_the_host_is_that_of_the_destination_in_the_place_of_the_clients(port: int, tls: bool, host: bytes) -> None:
    fields = [(b"A", b"b"), (b"host", b"A.test:" + str(port).encode()), (b"Via", b"1.1 x")]
    head = RequestHead(1, fields, "GET", "/")
    assert forwarded_fields("forward", head, Origin("a.test", port, tls)) == [fields[0], (b"host", host), fields[2]]


def test_a_destination_is_told_its_host_by_clients_that_name_none_too() -> None:
    sent = forwarded_fields("tunnel", RequestHead(0, [(b"A", b"b")], "GET", "/"), Origin("a.test", 8080, False))
    assert sent == [(b"Host", b"a.test:8080"), (b"A", b"b")]


async def test_a_forwarded_request_has_a_connection_of_its_own(world: World) -> None:  # spec 2.4
    there = await world.origin(hello)
    await world.start(rest(there.port))
    client = await world.client()
    for number in (1, 2):  # the client's connection stays; an origin that keeps its own does so for nothing
        await client.send(get(there.port))
        assert (await client.response()).headers.get("connection") is None
        assert there.connections == number


async def test_the_origin_closes_a_connection_that_carries_nothing_more(world: World) -> None:
    ended = asyncio.Event()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer())
        assert await reader.read() == b""  # here the sidecar has waited for us in vain
        ended.set()

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port))
    assert (await client.response()).body == b"ok"
    assert not ended.is_set()
    await asyncio.wait_for(ended.wait(), 10)


async def test_each_request_of_a_connection_is_judged(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port, "read-only"))
    client = await world.client()
    await client.send(get(there.port, "/one"))
    assert (await client.response()).status == 200
    await client.send(get(there.port, "/two", "DELETE"))
    refused = await client.response()
    assert refused.status == 403
    assert refused.json["error"] == "policy_denied"
    assert there.connections == 1
    messages = [one["message"] for one in await world.events() if one["class_uid"] == 4002]
    place = f"{HOST}:{there.port}"
    assert messages == [f"FORWARD allow GET {place}/one", f"FORWARD deny DELETE {place}/two"]


async def test_a_refused_head_has_no_body(world: World) -> None:
    await world.start(rest(80, "read-write"))
    client = await world.client()
    await client.send(b"HEAD http://other.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n")
    status, fields = await client.head()
    assert (status, await client.ended()) == (403, b"")
    assert int(fields["content-length"]) > 0  # as a GET would get it: RFC 9110, 9.3.2
    line = next(one for one in await world.events() if one.get("http_request"))
    assert line["traffic"]["bytes_in"] < int(fields["content-length"])


async def test_what_follows_a_head_that_is_no_request_has_a_body_again(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port, "/", "HEAD") + b"nonsense\r\n\r\n")
    assert (await client.response("HEAD")).status == 200
    assert (await client.response()).json["error"] == "invalid_request"


async def test_pipelined_requests_are_answered_in_order(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port, "/1") + get(there.port, "/2"))
    assert b"/1" in (await client.response()).body
    assert b"/2" in (await client.response()).body


async def test_connections_to_the_origin_are_kept(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port))
    for _ in range(3):
        client = await world.tunnel(there.port, tls=False)
        await client.send(get(there.port))
        assert (await client.response()).status == 200
        client.close()
    assert there.connections == 1


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 502)])
async def test_a_kept_connection_that_just_ended_is_asked_again_only_where_repeating_is_safe(
    world: World, method: str, status: int
) -> None:
    gone = asyncio.Event()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer())
        if there.connections == 1:
            await reader.readuntil(b"\r\n\r\n")  # the second request arrives here and is never answered
            gone.set()
        else:
            await reader.read()

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port, tls=False)
    await client.send(get(there.port))
    assert (await client.response()).status == 200
    await client.send(get(there.port, "/", method))
    assert (await client.response()).status == status
    assert gone.is_set()
    assert there.connections == (2 if status == 200 else 1)


async def answered_once(world: World, until: bytes) -> tuple[Destination, Client]:
    """A tunnel with one answer behind it, to an origin that gives no other and closes after *until*."""

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        if there.connections == 1:
            writer.write(answer())
            await reader.readuntil(until)

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port, tls=False)
    await client.send(get(there.port))
    assert (await client.response()).status == 200
    return there, client


async def test_what_has_no_answer_the_second_time_either_is_a_502(world: World) -> None:
    there, client = await answered_once(world, b"\r\n\r\n")
    await client.send(get(there.port))
    assert (await client.response()).status == 502
    assert there.connections == 2


async def test_a_request_whose_body_is_under_way_is_not_asked_again(world: World) -> None:
    there, client = await answered_once(world, b"\r\n\r\nhalf")
    await client.send(get(there.port, "/", "PUT", "Content-Length: 8") + b"half")
    assert (await client.response()).status == 502
    assert there.connections == 1


async def test_bytes_nobody_asked_for_never_answer_the_next_request(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer(b"first") + answer(b"smuggled"))
        await read_request(reader)
        writer.write(answer(b"second"))

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port, tls=False)
    await client.send(get(there.port))
    assert (await client.response()).body == b"first"
    await client.send(get(there.port))
    assert (await client.response()).body == b"first"  # of a new connection
    assert there.connections == 2


async def test_chunked_both_ways(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, fields, body = await read_request(reader)
        assert fields["transfer-encoding"] == "chunked"
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for byte in body:
            writer.write(b"1\r\n%c\r\n" % byte)
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await reader.read()

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port, "/", "POST", "Transfer-Encoding: chunked"))
    for part in (b"3;ext=1\r\nabc\r\n", b"2\r\nd", b"e\r\n0\r", b"\n\r\n"):
        await client.send(part)
    assert (await client.response()).body == b"abcde"


async def test_expect_100_continue_and_early_hints_pass(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Expect: 100-continue" in head
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        writer.write(answer(await reader.readexactly(4)))
        await reader.read()

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port, "/", "PUT", "Content-Length: 4", "Expect: 100-continue"))
    assert await client.head() == (103, {"link": "</a>"})
    assert (await client.head())[0] == 100
    await client.send(b"body")
    assert (await client.response()).body == b"body"


@pytest.mark.parametrize(
    ("method", "reply"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    ],
)
async def test_responses_without_a_body_keep_the_connection(world: World, method: str, reply: bytes) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(reply)
        await hello(reader, writer)

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port, tls=False)
    await client.send(get(there.port, "/", method))
    await client.response(method)
    await client.send(get(there.port, "/next"))
    assert b"/next" in (await client.response()).body
    assert there.connections == 1


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_an_origin_that_dies_within_the_body_is_no_short_success(world: World, framing: str) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        start = b"5\r\nstart\r\n" if "chunked" in framing else b"start"
        writer.write(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode() + start)
        await writer.drain()

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port))
    with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
        await client.response()


@pytest.mark.parametrize("ends", ["bytes", "end", "reset"])
async def test_an_idle_connection_on_which_anything_comes_serves_nobody(world: World, ends: str) -> None:
    go = asyncio.Event()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer(b"own"))
        await go.wait()
        if ends == "bytes":
            writer.write(answer(b"smuggled"))
            await reader.read()
        elif ends == "reset":
            reset(writer)

    there = await world.origin(origin)
    await world.start(rest(there.port))
    assert world.sidecar is not None
    client = await world.tunnel(there.port, tls=False)
    await client.send(get(there.port))
    assert (await client.response()).body == b"own"
    go.set()
    async with asyncio.timeout(SECONDS):
        while world.sidecar.pipeline.pool._kept:
            await asyncio.sleep(0.01)
    await client.send(get(there.port, "/", "POST"))  # which would not be asked twice
    assert (await client.response()).body == b"own"
    assert there.connections == 2


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b"", "upstream_unreachable"),
        (OK + b"Content-Le", "upstream_unreachable"),
        (b"NONSENSE\r\n\r\n", "upstream_protocol_error"),
        (OK + b"A b: c\r\n\r\n", "upstream_protocol_error"),
        (OK + b"A: " + b"x" * 300_000 + b"\r\n\r\n", "upstream_protocol_error"),
        (OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "upstream_protocol_error"),
        (OK + b"Content-Length: x\r\n\r\n", "upstream_protocol_error"),
        (OK + b"Connection: content-length\r\nContent-Length: 2\r\n\r\nok", "upstream_protocol_error"),
    ],
    ids=["nothing", "torn", "nonsense", "field", "large", "both", "length", "nominated"],
)
async def test_an_answer_that_is_none_is_a_502(world: World, reply: bytes, code: str) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(reply)

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port))
    got = await client.response()
    assert (got.status, got.json["error"]) == (502, code)
    assert there.connections == 1  # nobody had given it up while it was idle: there is no second try


async def test_interim_answers_come_to_an_end(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        while True:
            writer.write(b"HTTP/1.1 103 Early Hints\r\nA: " + b"x" * 10_000 + b"\r\n\r\n")
            await writer.drain()

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port))
    while (status := (await client.head())[0]) == 103:
        pass
    assert status == 502


async def test_a_reset_in_a_body_that_ends_with_the_connection_is_passed_on(world: World) -> None:
    seen = asyncio.Event()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nstart")
        await seen.wait()
        reset(writer)

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port))
    await client.head()
    assert await client.reader.readexactly(5) == b"start"
    seen.set()
    with pytest.raises(ConnectionResetError):
        await client.ended()


async def test_a_client_that_leaves_ends_the_request_at_the_origin(world: World) -> None:
    asked = asyncio.Event()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        await reader.readexactly(1)  # IncompleteReadError when the sidecar hangs up

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port))
    await asyncio.wait_for(asked.wait(), 10)
    client.close()
    await asyncio.wait_for(there.closed.wait(), 10)


async def test_an_early_answer_ends_the_upload(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(b"too large", "413 Content Too Large"))
        await reader.read()

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port, "/", "POST", "Content-Length: 1000000000") + b"x" * 1000)
    assert (await client.response()).status == 413
    await client.ended()


def leaves(client: Client) -> None:
    client.close()


def half_closes(client: Client) -> None:
    client.writer.write_eof()


def resets(client: Client) -> None:
    reset(client.writer)


@pytest.mark.parametrize("ends", [leaves, half_closes, resets])
@pytest.mark.parametrize("more", [(), ("Connection: close",)], ids=["keep-alive", "close"])
@pytest.mark.parametrize(
    ("framing", "sent"), [("Content-Length: 10", b"12345"), ("Transfer-Encoding: chunked", b"5\r\n12345\r\n")]
)
async def test_an_upload_cut_short_is_never_complete_to_the_origin(
    world: World, framing: str, sent: bytes, more: tuple[str, ...], ends: Callable[[Client], None]
) -> None:
    begun, complete = asyncio.Event(), asyncio.Event()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"12345")
        begun.set()
        rest_of_it = await reader.read()  # the end, or a reset; an origin that is left waiting never gets here
        if rest_of_it.strip():
            complete.set()
        raise ConnectionResetError

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port, "/", "POST", framing, *more) + sent)
    await asyncio.wait_for(begun.wait(), 10)
    ends(client)
    await asyncio.wait_for(there.closed.wait(), 10)
    assert not complete.is_set()


@pytest.mark.parametrize("first", [b"", b"5\r\n12345\r\n"])
async def test_a_bad_chunk_ends_the_request_on_both_sides(world: World, first: bytes) -> None:
    begun = asyncio.Event()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"12345\r\n" if first else b"\r\n\r\n")
        begun.set()
        assert not (await reader.read()).strip()
        raise ConnectionResetError

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port, "/", "POST", "Transfer-Encoding: chunked") + first)
    await asyncio.wait_for(begun.wait(), 10)
    await client.send(b"zz\r\n")
    got = await client.response()
    assert (got.status, got.json["error"]) == (400, "invalid_request")
    await asyncio.wait_for(there.closed.wait(), 10)


async def test_a_bad_chunk_that_comes_with_the_head_reaches_nobody(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port, "/", "POST", "Transfer-Encoding: chunked") + b"zz\r\n")
    assert (await client.response()).status == 400
    assert there.connections == 0


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked", "Connection: close"])
async def test_an_upload_cut_short_after_the_answer_began_is_no_short_success(world: World, framing: str) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"12345")
        start = b"5\r\nstart\r\n" if "chunked" in framing else b"start"
        writer.write(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode() + start)
        assert await reader.read() == b""
        raise ConnectionResetError

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port, "/", "POST", "Content-Length: 10", "Connection: close") + b"12345")
    assert (await client.head())[0] == 200
    await client.reader.readuntil(b"start")
    client.writer.write_eof()
    await asyncio.wait_for(there.closed.wait(), 10)
    with pytest.raises(ConnectionResetError):
        await client.ended()


async def test_the_rest_of_a_body_that_had_nowhere_to_go_is_no_request(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The destination answers early and in full, and is gone when more of the body comes."""
    reply = answer(b"x" * 500_000)
    taken, gone, failed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Watched(UpstreamStream):
        left = len(reply)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.left -= len(data)
            if not self.left:
                taken.set()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            gone.set()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"half")
        writer.write(reply)
        await taken.wait()
        reset(writer)

    monkeypatch.setattr(upstream, "UpstreamStream", Watched)
    monkeypatch.setattr(exchange, "_seen", lambda task: failed.set() if task.exception() else None)
    there = await world.origin(origin)
    await world.start(rest(there.port, "read-write"))
    client = await world.narrow_client()
    await client.send(get(there.port, "/", "POST", "Content-Length: 1000000") + b"half")
    await asyncio.wait_for(gone.wait(), SECONDS)
    await client.send(b"more")
    await asyncio.wait_for(failed.wait(), SECONDS)
    await client.send(get(there.port))
    assert (await client.response()).body == b"x" * 500_000
    assert await client.ended() == b""
    assert there.connections == 1


async def test_an_upload_waits_for_an_origin_that_does_not_read(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port, "/", "POST", "Content-Length: 1000000000"))
    sent = 0
    while sent < 200_000_000 and await _sends(client, b"x" * 1_000_000):
        sent += 1_000_000
    assert sent < 50_000_000  # what the kernel's socket buffers and the sidecar's bounded ones hold


def request_line(port: int, method: str, *fields: str) -> bytes:
    """A request in origin form, as it is within a tunnel."""
    return "\r\n".join([f"{method} / HTTP/1.1", f"Host: {HOST}:{port}", *fields, "", ""]).encode()


def peak() -> int:
    """Bytes of this process's memory at their highest since the peak was last forgotten, which it is now (proc(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10
    Path("/proc/self/clear_refs").write_text("5")
    return peak


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_large_body_takes_no_more_memory_than_a_small_one(world: World, method: str, tls: bool) -> None:
    """Client, sidecar and origin are one process here: the buffers of all three are in what is measured."""
    total, piece = 300 << 20, bytes(1 << 20)

    async def take(reader: asyncio.StreamReader) -> None:
        left = total
        while left:
            left -= len(await reader.read(1 << 20))

    async def give(writer: asyncio.StreamWriter) -> None:
        for _ in range(total // len(piece)):
            writer.write(piece)
            await writer.drain()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if method == "PUT":
            await take(reader)
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {total if method == 'GET' else 0}\r\n\r\n".encode())
        if method == "GET":
            await give(writer)
        await reader.read()

    there = await world.origin(origin, tls=tls)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port, tls=tls)
    peak()
    before = peak()
    if method == "PUT":
        await client.send(request_line(there.port, "PUT", f"Content-Length: {total}"))
        await asyncio.wait_for(give(client.writer), 60)
    else:
        await client.send(request_line(there.port, "GET"))
    assert (await client.head())[0] == 200
    if method == "GET":
        await asyncio.wait_for(take(client.reader), 60)
    assert peak() - before < 40 << 20


async def test_streamed_events_arrive_as_they_are_sent(world: World) -> None:
    told = asyncio.Event()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"9\r\ndata: 1\n\n\r\n")
        await told.wait()
        writer.write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
        await reader.read()

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port))
    await client.head()
    first = await asyncio.wait_for(client.reader.readuntil(b"data: 1\n\n\r\n"), 10)
    assert first.startswith(b"9\r\n")
    told.set()  # only now does the origin send more
    await asyncio.wait_for(client.reader.readuntil(b"0\r\n\r\n"), 10)


async def test_an_http_1_0_client_gets_its_answer_and_the_end(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(f"GET http://{HOST}:{there.port}/ HTTP/1.0\r\n\r\n".encode())
    status, _ = await client.head()
    assert status == 200
    assert (await client.ended()).startswith(b"GET / HTTP/1.")


async def test_a_websocket_is_a_pipe_after_the_upgrade(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, fields, _ = await read_request(reader)
        assert fields["upgrade"] == "websocket"
        assert fields["connection"] == "Upgrade"
        assert fields["sec-websocket-extensions"] == "x-own"  # nobody reads the messages
        writer.write(SWITCHING + b"early")
        while data := await reader.read(1000):
            writer.write(data.upper())

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port, "/", "GET", *WEBSOCKET, "Sec-WebSocket-Extensions: x-own"))
    status, fields = await client.head()
    assert status == 101
    assert fields["upgrade"] == "websocket"
    assert await client.reader.readexactly(5) == b"early"
    await client.send(b"frames")
    assert await asyncio.wait_for(client.reader.readexactly(6), 10) == b"FRAMES"


async def test_a_client_that_said_all_before_the_switch_is_heard_to_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()

    class Watched(Stream):
        def eof_received(self) -> bool:
            ended.set()
            return super().eof_received()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await ended.wait()
        writer.write(SWITCHING)
        assert await asyncio.wait_for(reader.read(), SECONDS) == b"frames"
        writer.write(b"last")

    there = await world.origin(origin)
    await world.start(rest(there.port))
    monkeypatch.setattr(requests, "Stream", Watched)
    client = await world.client()
    await client.send(get(there.port, "/", "GET", *WEBSOCKET, "Connection: close") + b"frames")
    client.writer.write_eof()
    assert (await client.head())[0] == 101
    assert await client.ended() == b"last"


async def test_a_destination_that_is_gone_before_the_switch_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last words wait behind others that the client does not take, and its end comes meanwhile."""
    there_all, gone = asyncio.Event(), asyncio.Event()

    class Watched(UpstreamStream):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.buffer.endswith(SWITCHING):
                there_all.set()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if there_all.is_set():
                gone.set()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, _, _ = await read_request(reader)
        if line.startswith("GET /large "):
            writer.write(answer(b"x" * 200_000))
        else:
            writer.write(b"HTTP/1.1 103 Early Hints\r\nX: " + b"x" * 200_000 + b"\r\n\r\n" + SWITCHING)
            await there_all.wait()
            reset(writer)

    monkeypatch.setattr(upstream, "UpstreamStream", Watched)
    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.narrow_client()
    await client.send(get(there.port, "/large") + get(there.port, "/", "GET", *WEBSOCKET))
    await asyncio.wait_for(gone.wait(), SECONDS)
    with pytest.raises(ConnectionError):
        await client.ended()


async def test_ambiguous_framing_is_answered_and_reaches_nobody(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port, "/", "POST", "Content-Length: 4", "Transfer-Encoding: chunked"))
    got = await client.response()
    assert (got.status, got.json["error"], there.connections) == (400, "invalid_request", 0)


async def test_a_switch_nobody_asked_for_is_refused(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(SWITCHING)
        await reader.read()

    there = await world.origin(origin)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port))
    assert (await client.response()).status == 502


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: origin.test\r\n\r\n", 400, "invalid_request_target"),
        (b"GET ftp://origin.test/ HTTP/1.1\r\nHost: origin.test\r\n\r\n", 400, "unsupported_proxy_scheme"),
        (b"GET https://origin.test/ HTTP/1.1\r\nHost: origin.test\r\n\r\n", 400, "invalid_request_target"),
        (b"GET http://origin.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n", 421, "misdirected_request"),
        (b"GET http://origin.test/ HTTP/1.1\r\nHost: a:b:c\r\n\r\n", 421, "misdirected_request"),
        (b"GET http://origin.test/ HTTP/1.1\r\nHost: origin.test:81\r\n\r\n", 421, "misdirected_request"),
        (b"GET http://origin.test/?a=%zz HTTP/1.1\r\nHost: origin.test\r\n\r\n", 400, "invalid_request_target"),
        (b"GET http://origin.test/%2f HTTP/1.1\r\nHost: origin.test\r\n\r\n", 400, "invalid_request_target"),
        (b"GET http://origin.test/#a HTTP/1.1\r\nHost: origin.test\r\n\r\n", 400, "invalid_request_target"),
        (b"GET http://[::zz]/ HTTP/1.1\r\nHost: [::zz]\r\n\r\n", 400, "invalid_request_target"),
        (b"GET http://origin.test:0/ HTTP/1.1\r\nHost: origin.test:0\r\n\r\n", 400, "invalid_request_target"),
        (b"GET http://u@origin.test/ HTTP/1.1\r\nHost: origin.test\r\n\r\n", 400, "invalid_request_target"),
        (b"GET http://127.1/ HTTP/1.1\r\nHost: 127.1\r\n\r\n", 400, "invalid_request_target"),
        (b"CONNECT http://origin.test/ HTTP/1.1\r\nHost: origin.test\r\n\r\n", 400, "invalid_request_target"),
        (b"GET http://origin.test/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "invalid_request"),
        (b"GET http://origin.test/ HTTP/1.1\r\nX: " + b"x" * 20_000, 431, "request_header_too_large"),
        (b"\x00\x01\x02 nonsense\r\n\r\n", 400, "invalid_request"),
    ],
)
async def test_bad_requests_get_one_clear_answer(world: World, head: bytes, status: int, code: str) -> None:
    await world.start(rest(80))
    client = await world.client()
    await client.send(head)
    got = await client.response()
    assert (got.status, got.json["error"]) == (status, code)
    assert "\n" not in got.json["detail"]


async def test_an_unreachable_origin_is_a_502(world: World) -> None:
    there = await world.origin(hello)
    await there.end()
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(get(there.port))
    got = await client.response()
    assert (got.status, got.json["error"]) == (502, "upstream_unreachable")


async def test_a_head_that_does_not_come_is_not_waited_for(world: World) -> None:
    await world.start(rest(80), limits=Limits(first_head=0.2))
    client = await world.client()
    await client.send(b"GET http://origin.test/ HTTP/1.1\r\n")
    assert await client.ended() == b""


async def test_only_the_agent_is_served(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port), agent_ip="127.0.0.2")
    assert await _refused(await world.client(), there.port)
    reasons = [one.get("status_detail") for one in await world.events()]
    assert "not the agent of this sandbox" in reasons


async def _refused(client: Client, port: int) -> bool:
    try:
        await client.send(get(port))
        return await client.ended() == b""
    except ConnectionError:
        return True


async def _sends(client: Client, data: bytes) -> bool:
    client.writer.write(data)
    try:
        await asyncio.wait_for(client.writer.drain(), 0.5)
    except TimeoutError:
        return False
    return True


async def test_what_a_request_needed_is_gone_with_it_without_the_collector(world: World) -> None:
    origin = await world.origin(hello)
    await world.start(rest(origin.port))
    client = await world.client()
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            await client.send(get(origin.port))
            assert (await client.response()).status == 200
        left = sum(isinstance(one, Exchange) for one in gc.get_objects())
        assert left <= 1  # the last one may not quite have returned yet
    finally:
        gc.enable()
