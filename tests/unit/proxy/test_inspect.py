# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests whose body the policy judges, end to end: what was judged is what arrives, and nothing else does."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from loopback import HOST, Client, World, answer, read_request, rest
from openshell_proxy.entrances.authority_form import parse_authority, parse_proxy_uri, render_host
from openshell_proxy.refusal import Refusal


def rpc(port: int, *methods: str, **more: Any) -> dict[str, Any]:
    rules = [{"allow": {"method": method}} for method in methods]
    return {"host": HOST, "port": port, "protocol": "json-rpc", "enforcement": "enforce", "rules": rules, **more}


def call(method: str, **more: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, **more}).encode()


def head(port: int, *fields: str, method: str = "POST", path: str = "/rpc") -> bytes:
    place = f"{HOST}:{port}"
    return "\r\n".join([f"{method} http://{place}{path} HTTP/1.1", f"Host: {place}", *fields, "", ""]).encode()


def post(port: int, body: bytes, *fields: str) -> bytes:
    return head(port, f"Content-Length: {len(body)}", *fields) + body


class Seen:
    """An origin that keeps what it got, byte by byte."""

    def __init__(self) -> None:
        self.data = b""
        self.bodies: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            line, fields, body = await read_request(reader)
            self.fields = fields
            self.bodies.append(body)
            writer.write(answer(line.encode()))


@pytest.fixture
def seen() -> Seen:
    return Seen()


async def test_an_allowed_call_passes_and_a_refused_one_reaches_nobody(world: World, seen: Seen) -> None:
    there = await world.origin(seen)
    await world.start(rpc(there.port, "ok"))
    client = await world.client()
    await client.send(post(there.port, call("ok")))
    assert (await client.response()).status == 200
    await client.send(post(there.port, call("ok", params={"n": 2})))  # the connection is in step
    assert (await client.response()).status == 200
    await client.send(post(there.port, call("no")))
    got = await client.response()
    assert (got.status, got.json["error"], got.json["reason"]) == (403, "policy_denied", "no not permitted by policy")
    assert got.json["rule_missing"]["type"] == "jsonrpc_allow"
    assert got.json["protocol"] == "json-rpc"
    assert seen.bodies == [call("ok"), call("ok", params={"n": 2})]
    assert await client.ended() == b""


async def test_a_chunked_body_is_judged_whole_and_sent_on_as_it_came(world: World) -> None:
    raw = asyncio.get_running_loop().create_future()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        raw.set_result(await reader.readuntil(b"\r\n0\r\nX-T: 1\r\n\r\n"))
        writer.write(answer())

    there = await world.origin(origin)
    await world.start(rpc(there.port, "ok"))
    client = await world.client()
    body = call("ok")
    wire = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in body) + b"0\r\nX-T: 1\r\n\r\n"
    await client.send(head(there.port, "Transfer-Encoding: chunked") + wire[:40])
    await client.send(wire[40:])
    assert (await client.response()).status == 200
    assert await asyncio.wait_for(raw, 10) == wire


async def test_a_method_hidden_behind_chunks_is_found(world: World, seen: Seen) -> None:
    there = await world.origin(seen)
    await world.start(rpc(there.port, "ok"))
    client = await world.client()
    body = call("evil")
    wire = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (20, body[:20], len(body) - 20, body[20:])
    await client.send(head(there.port, "Transfer-Encoding: chunked") + wire)
    assert (await client.response()).status == 403
    assert there.connections == 0


@pytest.mark.parametrize("framing", ["length", "chunked", "tiny chunks"])
async def test_a_body_above_the_limit_is_refused(world: World, seen: Seen, framing: str) -> None:
    there = await world.origin(seen)
    await world.start(rpc(there.port, "*", json_rpc={"max_body_bytes": 100}))
    client = await world.client()
    body = call("a" * 100)
    if framing == "length":
        await client.send(head(there.port, f"Content-Length: {len(body)}"))  # refused before it is sent
    else:
        size = len(body) if framing == "chunked" else 1
        wire = b"".join(b"%x\r\n%b\r\n" % (size, body[at : at + size]) for at in range(0, len(body), size))
        await client.send(head(there.port, "Transfer-Encoding: chunked") + wire + b"0\r\n\r\n")
    got = await client.response()
    assert (got.status, got.json["error"], there.connections) == (413, "request_body_too_large", 0)


async def test_chunk_framing_cannot_grow_without_bound(world: World, seen: Seen) -> None:
    there = await world.origin(seen)
    await world.start(rpc(there.port, "*", json_rpc={"max_body_bytes": 100}))
    client = await world.client()
    await client.send(head(there.port, "Transfer-Encoding: chunked") + b"1;" + b"x" * 4000 + b"\r\na\r\n")
    for _ in range(30):
        await client.send(b"1;" + b"x" * 4000 + b"\r\na\r\n")
    assert (await client.response()).status == 413


async def test_a_client_that_waits_for_100_gets_it_once(world: World, seen: Seen) -> None:
    there = await world.origin(seen)
    await world.start(rpc(there.port, "ok"))
    client = await world.client()
    body = call("ok")
    await client.send(head(there.port, f"Content-Length: {len(body)}", "Expect: 100-continue"))
    assert (await client.head())[0] == 100
    await client.send(body)
    assert (await client.response()).status == 200
    assert "expect" not in seen.fields


@pytest.mark.parametrize("enforcement", ["enforce", "audit"])
async def test_a_body_that_is_malformed_is_a_bad_request_in_audit_too(
    world: World, seen: Seen, enforcement: str
) -> None:
    there = await world.origin(seen)
    await world.start(rpc(there.port, "ok", enforcement=enforcement))
    client = await world.client()
    await client.send(post(there.port, b'{"jsonrpc":"2.0","method":"ok","method":"no"}'))
    got = await client.response()
    assert (got.status, got.json["error"], there.connections) == (400, "invalid_jsonrpc_request", 0)


async def test_bad_chunks_are_a_bad_request(world: World, seen: Seen) -> None:
    there = await world.origin(seen)
    await world.start(rpc(there.port, "ok"))
    client = await world.client()
    await client.send(head(there.port, "Transfer-Encoding: chunked") + b"zz\r\n")
    assert (await client.response()).status == 400
    assert there.connections == 0


async def test_a_body_cut_short_reaches_nobody(world: World, seen: Seen) -> None:
    there = await world.origin(seen)
    await world.start(rpc(there.port, "ok"))
    client = await world.client()
    await client.send(head(there.port, "Content-Length: 100") + b"{")
    client.writer.write_eof()
    with pytest.raises(ConnectionResetError):
        await client.ended()
    assert there.connections == 0


async def test_a_body_that_does_not_come_is_not_waited_for_forever(
    world: World, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openshell_proxy.relay.inspect.BODY_SECONDS", 0.05)
    there = await world.origin(seen)
    await world.start(rpc(there.port, "ok"))
    client = await world.client()
    await client.send(head(there.port, "Content-Length: 100") + b"{")
    got = await client.response()
    assert (got.status, got.json["error"], there.connections) == (408, "request_timeout", 0)


@pytest.mark.parametrize(
    "text",
    [
        "a\0.example.com:80", "a b:80", "a\x7f:80", "user@a:80", "[::1:80", "a:0", "a:65536", "a",
        "[::zz]:1", "[1]:1", "[::ffff:1.2.3]:1", ".:1", ":1", "\u212aa.test:1", "\xe4.test:1",
    ],
)  # fmt: skip
def test_an_authority_that_is_none(text: str) -> None:
    with pytest.raises(Refusal, match="invalid_request_target"):
        parse_authority(text, None)


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("HTTP://A.test", ("http", "a.test", 80, "/")),
        ("http://a.test?q", ("http", "a.test", 80, "/?q")),
        ("https://a.test./b", ("https", "a.test", 443, "/b")),
        ("ftp://[::1]:65535/b", ("ftp", "::1", 65535, "/b")),
    ],
)
def test_an_absolute_target_in_its_parts(target: str, found: tuple[str, str, int, str]) -> None:
    assert parse_proxy_uri(target) == found


@pytest.mark.parametrize("target", ["http://a.test/#a", "http://a.test#", "//a.test/", "/a", "a.test:80"])
def test_a_target_that_is_not_absolute(target: str) -> None:
    with pytest.raises(Refusal, match="invalid_request_target"):
        parse_proxy_uri(target)


@pytest.mark.parametrize(
    ("host", "port", "text"), [("a.test", 80, b"a.test"), ("a.test", 81, b"a.test:81"), ("::1", 80, b"[::1]")]
)
def test_a_host_as_it_is_written(host: str, port: int, text: bytes) -> None:
    assert render_host(host, port, 80) == text


async def test_audit_forwards_a_refused_call_and_logs_it(world: World, seen: Seen) -> None:
    there = await world.origin(seen)
    await world.start(rpc(there.port, "ok", enforcement="audit"))
    client = await world.client()
    await client.send(post(there.port, call("no")))
    assert (await client.response()).status == 200
    assert seen.bodies == [call("no")]
    decided = [event for event in await world.events() if event.get("unmapped", {}).get("audited")]
    assert decided


async def test_an_mcp_client_may_listen(world: World, seen: Seen) -> None:
    there = await world.origin(seen)
    await world.start(rpc(there.port, "initialize", protocol="mcp"))
    stream, plain = await world.client(), await world.client()
    await stream.send(head(there.port, "Accept: application/json, text/event-stream;q=1", method="GET"))
    assert (await stream.response()).status == 200
    await plain.send(head(there.port, "Accept: application/json", method="GET"))
    assert (await plain.response()).status == 403


@pytest.mark.parametrize(
    ("framing", "body"), [("Content-Length: 2", b"{}"), ("Transfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n")]
)
async def test_an_mcp_client_that_listens_says_nothing(world: World, seen: Seen, framing: str, body: bytes) -> None:
    there = await world.origin(seen)
    await world.start(rpc(there.port, "initialize", protocol="mcp"))
    client = await world.client()
    await client.send(head(there.port, "Accept: text/event-stream", framing, method="GET") + body)
    assert (await client.response()).status in (400, 403)
    assert seen.bodies == []


@pytest.mark.parametrize("accept", ["text/event-stream", "*/*"])
@pytest.mark.parametrize(
    ("framing", "body"), [("Content-Length: 2", b"{}"), ("Transfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n")]
)
async def test_a_get_of_graphql_has_no_body(world: World, seen: Seen, accept: str, framing: str, body: bytes) -> None:
    there = await world.origin(seen)
    await world.start(rpc(there.port, protocol="graphql", rules=[{"allow": {"operation_type": "query"}}]))
    client = await world.client()
    path = "/graphql?query=%7B+a+%7D"
    await client.send(head(there.port, f"Accept: {accept}", method="GET", path=path))
    assert (await client.response()).status == 200
    await client.send(head(there.port, f"Accept: {accept}", framing, method="GET", path=path) + body)
    assert (await client.response()).status == 400


async def test_a_body_that_nobody_judges_is_not_waited_for(world: World) -> None:
    arrived = asyncio.Event()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(5)
        arrived.set()
        await reader.readexactly(5)
        writer.write(answer())

    there = await world.origin(origin)
    await world.start(rpc(there.port, "ok", path="/rpc"), rest(there.port, path="/files/**"))
    client = await world.client()
    await client.send(head(there.port, "Content-Length: 10", path="/files/a") + b"first")
    await asyncio.wait_for(arrived.wait(), 10)
    await client.send(b"other")
    assert (await client.response()).status == 200


async def test_graphql_within_a_tunnel(world: World, seen: Seen) -> None:
    there = await world.origin(seen, tls=True)
    rules = [{"allow": {"operation_type": "query"}}]
    await world.start(rpc(there.port, protocol="graphql", rules=rules))
    client = await world.tunnel(there.port)
    place = f"{HOST}:{there.port}"

    async def ask(document: str, client: Client) -> int:
        body = json.dumps({"query": document}).encode()
        text = f"POST /graphql HTTP/1.1\r\nHost: {place}\r\nContent-Length: {len(body)}\r\n\r\n"
        await client.send(text.encode() + body)
        return (await client.response()).status

    assert await ask("{ viewer { id } }", client) == 200
    assert await ask("mutation { drop }", client) == 403
    requests = [event for event in await world.events() if event["class_uid"] == 4002]
    assert [event["firewall_rule"]["type"] for event in requests] == ["l7-graphql", "l7-graphql"]


async def test_h2c_is_refused_where_requests_are_judged(world: World, seen: Seen) -> None:
    there = await world.origin(seen)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(head(there.port, "Connection: Upgrade", "Upgrade: h2c", method="GET"))
    got = await client.response()
    assert (got.status, got.json["error"], there.connections) == (403, "unsupported_l7_protocol", 0)


@pytest.mark.parametrize("fields", [("Upgrade: h2c",), ("Connection: Upgrade", "Upgrade: x-other")])
async def test_what_only_looks_like_h2c_is_a_request_like_any(
    world: World, seen: Seen, fields: tuple[str, ...]
) -> None:
    there = await world.origin(seen)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(head(there.port, *fields, method="GET"))
    assert (await client.response()).status == 200


@pytest.mark.parametrize("more", [(), ("Connection: close",)], ids=["keep-alive", "close"])
async def test_a_body_cut_short_is_not_judged(world: World, seen: Seen, more: tuple[str, ...]) -> None:
    there = await world.origin(seen)
    await world.start(rpc(there.port, "*"))
    client = await world.client()
    await client.send(head(there.port, "Content-Length: 100", *more) + call("a"))
    client.writer.write_eof()
    with pytest.raises(ConnectionResetError):
        await client.ended()
    assert there.connections == 0


async def test_ambiguous_framing_is_answered_before_a_body_is_read(world: World, seen: Seen) -> None:
    there = await world.origin(seen)
    await world.start(rpc(there.port, "*"))
    client = await world.client()
    await client.send(head(there.port, "Content-Length: 5", "Transfer-Encoding: chunked"))
    got = await client.response()
    assert (got.status, got.json["error"], there.connections) == (400, "invalid_request", 0)


async def test_who_does_not_ask_for_leave_is_given_none(world: World, seen: Seen) -> None:
    there = await world.origin(seen)
    await world.start(rpc(there.port, "*"))
    client = await world.client()
    assert world.sidecar is not None
    await client.send(head(there.port, f"Content-Length: {len(call('a'))}"))
    while not len(world.sidecar.pipeline.under_way):
        await asyncio.sleep(0)  # until the head has been read and the body is waited for
    await client.send(call("a"))
    assert (await client.response()).status == 200
