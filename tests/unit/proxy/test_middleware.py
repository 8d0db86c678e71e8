# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The middleware ``openshell/regex`` through a whole sidecar: what looks like a key does not leave, placeholders go on working."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import itertools
import json
import re
import ssl
from pathlib import Path
from typing import Any

import pytest
import websockets.asyncio.client
import websockets.asyncio.server
from http2_peer import Peer, head
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import HOST, SECONDS, SWITCHING, WEBSOCKET, World, answer, read_request, rest
from openshell_proxy.cli import main
from openshell_proxy.credentials.middleware import Redact
from openshell_proxy.credentials.placeholders import ALIAS_MARKER
from test_credentials import (
    AWS,
    CANONICAL,
    RANDOM,
    SECRET,
    VALUE,
    connected,
    greet,
    greet_and_wait,
    ok,
    request,
    resigned,
    start,
    write_secrets,
)
from test_http2_credentials import Asked, repeat
from test_inspect import Seen, call, post, rpc

KEY = "sk-let-slip_0123456789"
ALIAS = "sk-ant-OPENSHELL-RESOLVE-ENV-KEY"
JSON = "Content-Type: application/json"


def middleware(**more: Any) -> dict[str, Any]:
    return {"middleware": "openshell/regex", "config": {"mode": "redact"}, "endpoints": {"include": [HOST]}, **more}


OPEN = {"on_error": "fail_open"}


def covered(world: World, **more: Any) -> World:
    """Cover HOST in the policies of *world* from now on."""
    world.middlewares = {"guard": middleware(**more)}
    return world


# The stream.

LITERALS = (ALIAS_MARKER, b"sk-R4nd0mR4nd0mR4nd0m", b"R4nd0m-sk-R4nd0m", b"sk-R4nd0mR4nd0mR4nd0m-sk-" + b"l0ng" * 9)
KEPT = b"|".join(map(re.escape, sorted(LITERALS, key=len, reverse=True)))
# The rule with the placeholders that stay, in one expression for what is there as a whole.
WHOLE = re.compile(rb"(%b)|(?=sk-)(?:(?!%b)[A-Za-z0-9_-]){19,}" % (KEPT, KEPT))
PIECES = st.sampled_from(
    [b"sk-", b"sk-" + b"b" * 16, b"s", b"k", b"-", b"a" * 15, b" ", b"\xc3\xa9", b"task-", *LITERALS, LITERALS[1][:9]]
)


def cut(redact: Redact, data: bytes, cuts: list[int]) -> bytes:
    ends = [*sorted(one % (len(data) + 1) for one in cuts), len(data)]
    pieces = [redact.feed(data[at:end]) for at, end in zip([0, *ends], ends, strict=False)]
    return b"".join([*pieces, redact.end()])


def redacted(data: bytes) -> bytes:
    return WHOLE.sub(lambda match: match[1] or b"[REDACTED]", data)


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, max_size=8).map(b"".join), st.lists(st.integers(0, 400), max_size=8))
def test_no_cut_of_a_stream_changes_what_is_redacted(data: bytes, cuts: list[int]) -> None:
    plain = data.replace(ALIAS_MARKER, b"")  # without which the rule is the schema's, word by word
    everywhere = list(range(len(data)))
    for places in (cuts, everywhere):
        assert cut(Redact(), plain, places) == re.sub(rb"sk-[A-Za-z0-9_-]{16,}", b"[REDACTED]", plain)
        assert cut(Redact(LITERALS[1:]), data, places) == redacted(data)


@pytest.mark.parametrize(
    "data",
    [
        b"k: task-sk-0123456789abcdef-sk-0123456789abcdef.s",
        b"sk-012345678-OPENSHELL-RESOLVE-ENV-sk-0123456789abcdef",
        b"sk-0123456789abcdef-OPENSHELL-RESOLVE-ENV-KEY sk-",
        b"x" + LITERALS[3] + b"-sk-" + LITERALS[1] + b"k-0123456789abcdef",
        LITERALS[2] + b"sk-0123456789" + LITERALS[2] + b"0123456789abcdef",
        b"sk-0123456789abcdef, " + LITERALS[1] + b" sk-0123456789abcdef" + LITERALS[1],
    ],
)
def test_no_two_cuts_change_it_wherever_they_are(data: bytes) -> None:
    for cuts in itertools.combinations(range(len(data)), 2):
        assert cut(Redact(LITERALS[1:]), data, list(cuts)) == redacted(data), cuts


def test_nothing_waits_that_need_not_and_a_long_key_is_not_gathered() -> None:
    redact = Redact()
    assert redact.feed(b"a task-force of disks, sk-short\n") == b"a task-force of disks, sk-short\n"
    assert redact.feed(ALIAS.encode() + b"\n") == ALIAS.encode() + b"\n"
    assert redact.feed(b"key: sk-0123456789abcde") == b"key: "
    assert redact.feed(b"f") == b"[REDACTED]"
    assert [redact.feed(b"x" * 65_536) for _ in range(3)] == [b"", b"", b""]
    assert redact.feed(b'sk-"') == b'"'
    assert redact.end() == b""


# HTTP/1.1.


@pytest.mark.parametrize("size", [0, 70_000])  # one that is changed as a whole, and one as it passes
async def test_a_key_in_a_body_does_not_leave(world: World, size: int) -> None:
    there, seen = await start(covered(world), ok)
    client = await world.tunnel(there.port)
    body = f'{{"x": "{"y" * size}", "key": "{KEY}"}}'.encode()
    for _ in range(2):  # the connection is in step
        await client.send(request(there.port, f"/{KEY}", "POST", JSON, f"X-Key: {KEY}", body=body))
        assert (await client.response()).status == 200
    for line, fields, got in seen:
        assert got == body.replace(KEY.encode(), b"[REDACTED]")
        assert KEY in line and fields["x-key"] == KEY  # the content alone is its affair
        assert fields.get("content-length") == (None if size else str(len(got)))


async def test_a_key_across_chunks_does_not_leave_and_what_is_before_it_is_not_held_up(world: World) -> None:
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        while size := int(await reader.readuntil(b"\r\n"), 16):
            got.put_nowait((await reader.readexactly(size + 2))[:-2])
        writer.write(answer())

    there = await world.origin(origin)
    await covered(world).start({"host": HOST, "port": there.port})  # no request is judged here, but each is seen
    client = await world.client()
    place = f"{HOST}:{there.port}"
    await client.send(f"POST http://{place}/ HTTP/1.1\r\nHost: {place}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    await client.send(b"8\r\nkey: sk-\r\n")
    assert await asyncio.wait_for(got.get(), SECONDS) == b"key: "
    await client.send(b"10\r\n0123456789abcdef\r\n1\r\n \r\n0\r\n\r\n")
    assert (await client.response()).status == 200
    assert b"".join(got.get_nowait() for _ in range(got.qsize())) == b"[REDACTED] "


@pytest.mark.parametrize("rewrites", [True, False])
async def test_a_placeholder_of_this_sandbox_goes_on_working(world: World, rewrites: bool) -> None:
    there, seen = await start(covered(world), ok, SECRET, request_body_credential_rewrite=rewrites)
    client = await world.tunnel(there.port)
    body = f"{RANDOM} {ALIAS} {CANONICAL} {KEY} sk-OPENSHELL-RESOLVE-ENV-KEY"
    await client.send(request(there.port, "/", "POST", "Content-Type: text/plain", body=body.encode()))
    assert (await client.response()).status == 200
    alone = f"{VALUE} {VALUE} {VALUE} [REDACTED] {VALUE}"  # VALUE looks like a key too, but comes in later
    assert seen[0][2].decode() == (alone if rewrites else body.replace(KEY, "[REDACTED]"))


@pytest.mark.parametrize(
    ("field", "body", "why"),
    [
        ("Content-Encoding: gzip", gzip.compress(KEY.encode(), mtime=0), "a body in a content coding"),
        ("Content-Encoding: identity, br", KEY.encode(), "a body in a content coding"),
        ("Content-Type: application/grpc-web", KEY.encode(), "gRPC messages"),
        ("Content-Type: image/png", b"\x89PNG", "a body that is not UTF-8 text"),
        ("Content-Type: text/plain", KEY.encode() + b"\xe2\x82", "a body that is not UTF-8 text"),
    ],
)
async def test_what_cannot_be_searched_is_refused(world: World, field: str, body: bytes, why: str) -> None:
    there, seen = await start(covered(world), ok)
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "POST", field, body=body))
    refused = await client.response()
    assert (refused.status, refused.json["error"], refused.json["middleware"]) == (403, "middleware_failed", "guard")
    assert f"the network middleware 'guard' cannot search {why}" in refused.json["detail"]
    assert not seen and there.connections <= 1  # the one that told what it speaks
    (told,) = [one for one in await world.events() if one["class_uid"] == 4002]
    assert (told["action_id"], told["firewall_rule"]) == (2, {"name": "test", "type": "middleware"})
    assert told["status_detail"] == refused.json["detail"]
    assert told["unmapped"]["error"] == "middleware_failed"


@pytest.mark.parametrize(
    ("field", "body", "arrives"),
    [
        ("Content-Encoding: gzip", KEY.encode(), KEY.encode()),
        ("Content-Encoding: Identity", KEY.encode(), b"[REDACTED]"),
        ("Content-Type: application/grpc", KEY.encode(), KEY.encode()),
        ("Content-Type: image/png", b"\x89PNG" + KEY.encode(), b"\x89PNG[REDACTED]"),
    ],
)
async def test_what_cannot_be_searched_passes_where_the_middleware_fails_open(
    world: World, field: str, body: bytes, arrives: bytes
) -> None:
    there, seen = await start(covered(world, **OPEN), ok)
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "POST", field, body=body))
    assert (await client.response()).status == 200
    assert seen[0][2] == arrives


async def test_one_of_several_that_fails_closed_decides(world: World) -> None:
    world.middlewares = {"a": middleware(**OPEN), "b": middleware(order=1), "": middleware(order=2)}
    there, seen = await start(world, ok)
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "POST", body=KEY.encode()))
    assert (await client.response()).status == 200
    assert seen[0][2] == b"[REDACTED]"
    await client.send(request(there.port, "/", "POST", body=b"\xff"))
    assert (await client.response()).json["middleware"] == "b"


async def test_a_middleware_without_a_name_fails_closed_as_well(world: World) -> None:
    world.middlewares = {"": middleware()}
    there, seen = await start(world, ok)
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "POST", body=b"\xff"))
    assert (await client.response()).status == 403
    assert not seen


async def test_a_body_that_turns_out_not_to_be_text_never_ends_well_at_the_destination(world: World) -> None:
    there, seen = await start(covered(world), ok)
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "POST", body=b"a" * 200_000 + b"\xff"))
    assert (await client.response()).json["error"] == "middleware_failed"
    await asyncio.wait_for(there.closed.wait(), SECONDS)
    assert not seen


async def test_a_request_without_a_body_may_say_anything_of_one(world: World) -> None:
    there, _ = await start(covered(world), ok)
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "GET", "Content-Encoding: gzip", "Content-Type: application/grpc"))
    assert (await client.response()).status == 200


async def test_elsewhere_a_key_is_the_agents_affair(world: World) -> None:
    scope = {"include": ["**", "*", HOST], "exclude": ["origin.*"]}
    there, seen = await start(covered(world, endpoints=scope), ok)
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "POST", body=KEY.encode()))
    assert (await client.response()).status == 200
    assert seen[0][2] == KEY.encode()


async def test_a_new_policys_middleware_counts_from_the_next_request_on(world: World) -> None:
    there, seen = await start(world, ok)
    for number, expected in enumerate((KEY.encode(), b"[REDACTED]")):
        client = await world.tunnel(there.port)
        await client.send(request(there.port, "/", "POST", body=KEY.encode()))
        assert (await client.response()).status == 200
        assert seen[number][2] == expected
        covered(world).reload(rest(there.port))


# Bodies that policy judges, and signatures.


async def test_a_judged_body_is_judged_as_it_came_and_sent_without_the_key(world: World) -> None:
    seen = Seen()
    there = await world.origin(seen)
    await covered(world).start(rpc(there.port, "ok"))
    client = await world.client()
    await client.send(post(there.port, call("ok", params={"key": KEY})))
    assert (await client.response()).status == 200
    assert seen.bodies == [call("ok", params={"key": "[REDACTED]"})]
    await client.send(post(there.port, call("no", params={"key": KEY})))
    assert (await client.response()).json["error"] == "policy_denied"


TOOLS = {"protocol": "mcp", "rules": [{"allow": {"method": "tools/call", "tool": "sk-*"}}]}


async def test_a_body_is_allowed_only_if_what_is_left_of_it_is(world: World) -> None:
    seen = Seen()
    there = await world.origin(seen)
    await covered(world).start(rpc(there.port, **TOOLS))
    client = await world.client()
    await client.send(post(there.port, call("tools/call", params={"name": "sk-short"})))
    assert (await client.response()).status == 200
    await client.send(post(there.port, call("tools/call", params={"name": KEY})))  # which becomes no tool's name
    refused = await client.response()
    assert (refused.status, refused.json["error"]) == (400, "invalid_jsonrpc_request")
    assert len(seen.bodies) == 1


async def test_a_judged_body_that_cannot_be_searched_is_refused(world: World) -> None:
    seen = Seen()
    there = await world.origin(seen)
    await covered(world).start(rpc(there.port, "ok"))
    client = await world.client()
    await client.send(post(there.port, call("ok"), "Content-Encoding: br"))
    assert (await client.response()).json["error"] == "middleware_failed"
    assert not seen.bodies


@pytest.mark.parametrize("service", ["bedrock", "s3"])
async def test_what_is_signed_is_what_is_left_of_a_body(world: World, service: str) -> None:
    there, seen = await start(covered(world), ok, *AWS, credential_signing="sigv4", signing_service=service)
    body = f"a {KEY}".encode()
    fields = ["X-Amz-Meta-A: 1", f"X-Amz-Content-Sha256: {hashlib.sha256(body).hexdigest()}",
              "X-Amz-Security-Token: openshell:resolve:env:AWS_SESSION_TOKEN"]  # fmt: skip
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "PUT", *fields, body=body))
    assert (await client.response()).status == 200
    line, got, sent = seen[0]
    assert sent == b"a [REDACTED]"
    payload = hashlib.sha256(sent).hexdigest() if service == "bedrock" else "UNSIGNED-PAYLOAD"
    assert got["x-amz-content-sha256"] == payload
    resigned(line, got, there.port, service, payload)


# HTTP/2.


@pytest.fixture
def asked(two: Any) -> Asked:
    covered(two.world)
    return Asked(two)


@pytest.mark.parametrize("size", [0, 70_000])
async def test_a_key_in_a_body_does_not_leave_over_http2(asked: Asked, size: int) -> None:
    await asked.start(repeat, SECRET, request_body_credential_rewrite=True)
    body = f'{{"x": "{"y" * size}", "key": "{KEY}", "ours": "{RANDOM}"}}'.encode()
    fields = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
    await asked.ask("/", b"POST", *fields, body=body)
    expected = body.replace(KEY.encode(), b"[REDACTED]").replace(RANDOM.encode(), VALUE.encode())
    assert asked.there[0].bodies[1] == expected
    assert asked.seen().get(b"content-length") == (None if size else b"%d" % len(expected))


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ((b"content-encoding", b"gzip"), b"x"),
        ((b"content-type", b"application/grpc+proto"), b"x"),
        ((b"content-type", b"text/plain"), b"a" * 70_000 + b"\xff"),
    ],
)
async def test_what_cannot_be_searched_is_refused_over_http2(
    asked: Asked, field: tuple[bytes, bytes], body: bytes
) -> None:
    await asked.start(repeat)
    client = asked.client
    stream = client.ask(head(asked.port, b"/", b"POST", field), end=False)
    await client.send(stream, body)
    await client.over(stream)
    told = client.heads[stream][-1]
    if b"grpc" in field[1]:
        assert (told[b"grpc-status"], told[b"grpc-message"][:17]) == (b"7", b"middleware_failed")
    else:
        assert (told[b":status"], client.json(stream)["error"]) == (b"403", "middleware_failed")
    assert all(not peer.ended for peer in asked.there)
    types = [one["firewall_rule"]["type"] for one in await asked.two.world.events() if one["class_uid"] == 4002]
    assert types == ["middleware"]


async def test_a_request_that_is_sent_once_more_is_redacted_once_more(asked: Asked) -> None:
    refused: list[int] = []

    async def once(peer: Peer, stream: int) -> None:
        if not refused:
            refused.append(stream)
            await peer.over(stream)
            peer.core.reset_stream(stream, 7)
            peer.flush()
        else:
            await repeat(peer, stream)

    await asked.start(once)
    client = asked.client
    stream = client.ask(head(asked.port, b"/", b"POST"), end=False)
    await client.send(stream, KEY.encode())
    await client.over(stream)
    assert client.heads[stream][-1][b":status"] == b"200"
    assert [bytes(body) for peer in asked.there for body in peer.bodies.values()] == [b"[REDACTED]"] * 2


# What is not HTTP.


async def test_bytes_of_no_known_kind_do_not_pass_where_a_middleware_fails_closed(world: World) -> None:
    there = await world.origin(greet)
    await covered(world).start({"host": HOST, "port": there.port})
    client = await connected(world, there.port)
    assert (await client.head())[0] == 200
    await client.send(b"SSH-2.0-client\r\n")
    assert (await client.response()).json["error"] == "middleware_failed"
    assert there.connections == 0
    told = [one["firewall_rule"]["type"] for one in await world.events() if one.get("action_id") == 2]
    assert told == ["middleware"]


async def test_they_pass_where_it_fails_open(world: World) -> None:
    there = await world.origin(greet)
    await covered(world, **OPEN).start({"host": HOST, "port": there.port})
    client = await connected(world, there.port)
    assert (await client.head())[0] == 200
    await client.send(b"SSH-2.0-client\r\n")
    assert await client.ended() == b"SSH-2.0-server\r\n"


async def test_a_blind_tunnel_ends_when_a_middleware_comes_to_cover_its_host(world: World) -> None:
    there = await world.origin(greet_and_wait)
    endpoint = {"host": HOST, "port": there.port}
    await world.start(endpoint)
    client = await connected(world, there.port)
    assert (await client.head())[0] == 200
    assert await asyncio.wait_for(client.reader.readexactly(4), SECONDS) == b"SSH-"
    covered(world).reload(endpoint)
    with contextlib.suppress(ConnectionResetError):
        await client.ended()
    told = [one for one in await world.events() if one["message"].startswith("CONNECT closed")]
    assert told[0]["status_detail"] == "the policy has changed"


# WebSockets.


class Sockets:
    """A WebSocket origin that keeps what it gets, and clients of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.got: asyncio.Queue[str | bytes] = asyncio.Queue()

    async def start(self, stack: contextlib.AsyncExitStack, **policy: Any) -> None:
        async def origin(connection: websockets.asyncio.server.ServerConnection) -> None:
            async for message in connection:
                self.got.put_nowait(message)

        context = self.world.origin_authority.context(HOST)
        server = await stack.enter_async_context(websockets.asyncio.server.serve(origin, "127.0.0.1", 0, ssl=context))
        self.port = next(iter(server.sockets)).getsockname()[1]
        await self.world.start(rest(self.port, **policy))

    def client(self) -> websockets.asyncio.client.connect:
        assert self.world.sidecar is not None
        trust = ssl.create_default_context(cafile=self.world.directory / "tls/ca.pem")
        proxy = f"http://127.0.0.1:{self.world.sidecar.listeners[0].port}"
        return websockets.asyncio.client.connect(f"wss://{HOST}:{self.port}/", ssl=trust, proxy=proxy)

    async def next(self) -> str | bytes:
        return await asyncio.wait_for(self.got.get(), SECONDS)


@pytest.mark.parametrize("rewrites", [True, False])
async def test_a_key_in_a_message_does_not_leave(world: World, rewrites: bool) -> None:
    write_secrets(covered(world), SECRET)
    sockets = Sockets(world)
    async with contextlib.AsyncExitStack() as stack:
        await sockets.start(stack, websocket_credential_rewrite=rewrites)
        async with sockets.client() as client:
            await client.send([f"a {KEY[:9]}", f"{KEY[9:]} {RANDOM}"])  # in two fragments
            assert await sockets.next() == f"a [REDACTED] {VALUE if rewrites else RANDOM}"
            if not rewrites:
                await client.send(KEY.encode())  # bytes are no text, in OpenShell neither
                assert await sockets.next() == KEY.encode()


GRAPHQL = {
    "protocol": "websocket",
    "access": "",
    "rules": [
        {"allow": {"method": "GET", "path": "/**"}},
        {"allow": {"operation_type": "query", "fields": ["viewer"]}},
    ],
    "persisted_queries": "allow_registered",
    "graphql_persisted_queries": {KEY: {"operation_type": "query", "fields": ["viewer"]}},
}


@pytest.mark.parametrize(
    ("payload", "passes"),
    [
        ({"query": f'{{viewer(k: "{KEY}")}}'}, True),
        ({"query": f'{{secrets(k: "{KEY}")}}'}, False),
        ({"id": KEY}, False),  # allowed as it came, but what is left names nothing
    ],
)
async def test_a_judged_message_is_judged_as_it_came_and_as_it_is_sent(
    world: World, payload: dict[str, str], passes: bool
) -> None:
    sockets = Sockets(covered(world))
    message = json.dumps({"type": "subscribe", "id": "1", "payload": payload})
    async with contextlib.AsyncExitStack() as stack:
        await sockets.start(stack, **GRAPHQL)
        async with sockets.client() as client:
            await client.send(message)
            if passes:
                assert await sockets.next() == message.replace(KEY, "[REDACTED]")
            else:
                await asyncio.wait_for(client.wait_closed(), SECONDS)
                assert client.close_code == 1008
    told = [
        one
        for one in await world.events()
        if one["message"].startswith("L7_REQUEST") and "WEBSOCKET_TEXT" in one["message"]
    ]
    assert [one["action_id"] for one in told] == [1 if passes else 2]


async def test_a_socket_that_opens_as_a_middleware_comes_to_cover_its_host_ends(world: World) -> None:
    asked, go = asyncio.Event(), asyncio.Event()
    got: list[bytes] = []

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        await go.wait()
        writer.write(SWITCHING)
        got.append(await reader.read())

    there = await world.origin(origin, tls=True)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "GET", *WEBSOCKET) + KEY.encode())
    await asyncio.wait_for(asked.wait(), SECONDS)
    covered(world).reload(rest(there.port))
    go.set()
    with contextlib.suppress(ConnectionResetError):
        await client.ended()
    await world.stop()
    assert b"".join(got) == b""


# What is told of it.


def policy_file(tmp_path: Path, *endpoints: dict[str, Any], **more: Any) -> str:
    document = {"version": 1, "network_policies": {"p": {"endpoints": endpoints}}}
    document["network_middlewares"] = {"guard": middleware(**more)}
    path = tmp_path / "policy.yaml"
    path.write_text(json.dumps(document))
    return str(path)


@pytest.mark.parametrize(("more", "failing"), [({}, "fail_closed"), (OPEN, "fail_open")])
def test_a_decision_tells_the_middleware(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, Any], failing: str
) -> None:
    file = policy_file(tmp_path, rest(443), {"host": "other.test", "port": 443}, **more)
    assert main(["explain", file, "GET", f"https://{HOST}/"]) == 0
    assert f"middleware: guard ({failing})\n" in capsys.readouterr().out
    assert main(["explain", file, "GET", "https://other.test/"]) == 0
    assert "middleware: -\n" in capsys.readouterr().out


def test_a_checked_policy_tells_what_its_middlewares_cover(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scope = {"include": ["*.test"], "exclude": ["out.test"]}
    hosts = [{"host": host, "port": 443} for host in (HOST, "out.test", "*.example.com")]
    anywhere = {"host": "", "port": 444, "allowed_ips": ["10.1.0.0/16"]}
    assert main(["check-policy", policy_file(tmp_path, *hosts, anywhere, endpoints=scope)]) == 0
    assert f"middleware 'guard' covers: any host {HOST}\n" in capsys.readouterr().out
    file = policy_file(tmp_path, *hosts, endpoints={"include": ["elsewhere.test"]})
    assert main(["check-policy", file]) == 0
    assert "middleware 'guard' covers: no endpoint\n" in capsys.readouterr().out
    assert main(["check-policy", "--json", file]) == 0
    assert json.loads(capsys.readouterr().out)["middlewares"] == {"guard": []}
