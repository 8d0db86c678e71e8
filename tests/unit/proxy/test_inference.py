# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Calls to ``https://inference.local`` through a whole sidecar: routed, keyed, streamed, counted, and failing as they should."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import ssl
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import openshell_proxy.entrances.connect as connect
import openshell_proxy.entrances.inference as entrance
import openshell_proxy.inference.body as bodies
import openshell_proxy.inference.call as calls
import pytest
from loopback import HOST, Client, Origin, World, answer, free_port, hello, read_request, reset, rest
from openshell_proxy.destination import Guard
from openshell_proxy.relay.upstream import Origin as Address
from openshell_proxy.resolver import Resolver
from openshell_proxy.settings import Limits
from test_credentials import TokenEndpoint, oauth

KEY = "sk-real-route-key-0123456789"
OTHER_KEY = "sk-real-other-key-9876543210"
CHAT = "/v1/chat/completions"
BODY = b'{"model": "asked", "messages": []}'
STREAM = b'{"model": "asked", "messages": [], "stream": true}'
USAGE = b'{"id": "a", "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}}'

Seen = list[tuple[str, dict[str, str], bytes]]
Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def write_routes(world: World, *routes: dict[str, Any]) -> None:
    text = json.dumps({"routes": routes}) if routes else ""
    (world.directory / "state/config/inference.json").write_text(text)


def write_secrets(world: World, *secrets: dict[str, Any]) -> None:
    (world.directory / "state/config/secrets.json").write_text(json.dumps({"secrets": secrets}))


def route(origin: Origin, **more: Any) -> dict[str, Any]:
    """A route to *origin*, which speaks TLS."""
    base = {"name": "main", "provider": "openai", "base_url": f"https://{HOST}:{origin.port}/v1", "model": "real"}
    return {**base, "key": KEY, **more}


def saying(seen: Seen, *replies: bytes) -> Reply:
    """An origin that notes each request and answers with *replies* one after the other, the last one for ever."""
    left = list(replies)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await read_request(reader))
            writer.write(left.pop(0) if len(left) > 1 else left[0])
            await writer.drain()

    return serve


async def local(world: World) -> Client:
    """A client's connection to inference.local by CONNECT, with TLS."""
    client = await world.client()
    await client.send(b"CONNECT inference.local:443 HTTP/1.1\r\nHost: inference.local:443\r\n\r\n")
    assert (await client.head())[0] == 200
    await client.start_tls(ssl.create_default_context(cafile=world.directory / "tls/ca.pem"), "inference.local")
    return client


def call(path: str = CHAT, body: bytes = BODY, *fields: str, method: str = "POST", version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: inference.local", *fields, f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


async def start(world: World, *replies: bytes, **more: Any) -> tuple[Origin, Seen]:
    seen: Seen = []
    origin = await world.origin(saying(seen, *replies or (answer(USAGE),)), tls=True)
    write_routes(world, route(origin, **more))
    await world.start()
    return origin, seen


async def lines(world: World) -> list[dict[str, Any]]:
    """The audit lines of calls."""
    return [one for one in await world.events() if one["class_uid"] == 4002]


async def test_a_call_needs_no_policy_and_gets_the_routes_model_and_key(world: World) -> None:
    origin, seen = await start(world)
    client = await local(world)
    await client.send(call(CHAT + "?a=b", BODY, "Authorization: Bearer mine", "X-Api-Key: mine", "Cookie: c"))
    response = await client.response()
    assert (response.status, response.body) == (200, USAGE)
    await client.send(call())
    assert (await client.response()).status == 200, "the connection carries another call"
    line, fields, body = seen[0]
    assert line == f"POST {CHAT}?a=b HTTP/1.1"
    assert json.loads(body) == {"model": "real", "messages": []}
    assert fields["authorization"] == f"Bearer {KEY}"
    assert fields["host"] == f"{HOST}:{origin.port}" and not {"x-api-key", "cookie"} & fields.keys()
    assert origin.connections == 1, "and so does the one to the destination"
    first, _ = await lines(world)
    assert first["unmapped"]["inference"] == {
        "protocol": "openai_chat_completions", "destination": f"{HOST}:{origin.port}", "model": "real",
        "asked_model": "asked", "stream": False, "input_tokens": 11, "output_tokens": 7,
    }  # fmt: skip
    assert (
        first["firewall_rule"] == {"name": "main", "type": "inference"} and first["unmapped"]["entrance"] == "inference"
    )
    assert first["http_request"]["url"]["path"] == CHAT
    assert KEY not in world.log.getvalue()


async def test_anthropic_gets_its_own_header_and_version(world: World) -> None:
    reply = answer(b'{"usage": {"input_tokens": 3, "output_tokens": 4}}')
    _, seen = await start(world, reply, provider="anthropic")
    client = await local(world)
    await client.send(call("/v1/messages?beta=true", BODY, "Anthropic-Beta: b", "Authorization: Bearer mine"))
    assert (await client.response()).status == 200
    line, fields, _ = seen[0]
    assert line == "POST /v1/messages?beta=true HTTP/1.1"
    assert (fields["x-api-key"], fields["anthropic-version"], fields["anthropic-beta"]) == (KEY, "2023-06-01", "b")
    assert "authorization" not in fields
    (told,) = await lines(world)
    assert (told["unmapped"]["inference"]["input_tokens"], told["unmapped"]["inference"]["output_tokens"]) == (3, 4)


async def test_the_transparent_entrance_serves_it_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port("127.0.0.1")  # in a sandbox it is 443
    for module in (connect, entrance):
        monkeypatch.setattr(module, "INFERENCE", Address("inference.local", port, True))
    seen: Seen = []
    origin = await world.origin(saying(seen, answer(USAGE)), tls=True)
    write_routes(world, route(origin))
    await world.start(tls_port=port)
    client = await world.client(3)
    await client.start_tls(ssl.create_default_context(cafile=world.directory / "tls/ca.pem"), "inference.local")
    await client.send(call().replace(b"Host: inference.local", b"Host: inference.local:%d" % port))
    assert (await client.response()).status == 200
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("HEAD", "/v1/models", 403), ("OPTIONS", CHAT, 403), ("GET", CHAT, 403), ("POST", "/v1/files", 403)],
)
async def test_what_is_no_call_is_refused_and_the_connection_ends(
    world: World, method: str, path: str, status: int
) -> None:
    await start(world)
    client = await local(world)
    await client.send(call(path, b"", method=method))
    response = await client.response(method)
    assert response.status == status
    if method != "HEAD":
        assert response.json == {"error": "connection not allowed by policy"}
    assert response.headers["connection"] == "close"
    assert await client.ended() == b""


async def test_without_routes_the_sandbox_is_told_so(world: World) -> None:
    await world.start()
    client = await local(world)
    await client.send(call())
    response = await client.response()
    assert response.status == 503
    assert response.json["error"] == "cluster inference is not configured"
    assert "openshell_inference" in response.json["hint"]


async def test_no_compatible_route(world: World) -> None:
    await start(world)
    client = await local(world)
    await client.send(call("/v1/messages", BODY, "Anthropic-Version: 1"))
    response = await client.response()
    assert (response.status, response.json["type"]) == (400, "error")
    assert "no compatible route" in response.json["error"]["message"]


async def test_after_an_error_the_connection_carries_another_call(world: World) -> None:
    """Where the call was read to its end; what is no call at all ends the connection."""
    _, seen = await start(world)
    client = await local(world)
    for path, body, status in (("/v1/messages", BODY, 400), (CHAT, b"no json", 400), (CHAT, BODY, 200)):
        await client.send(call(path, body))
        response = await client.response()
        assert response.status == status and "connection" not in response.headers
    assert len(seen) == 1
    await client.send(call(CHAT, BODY, "Connection: close"))
    assert (await client.response()).status == 200
    assert await client.ended() == b""
    refused = [one["http_response"]["code"] for one in await lines(world) if one["action_id"] == 2]
    assert refused == [400, 400]


async def test_another_host_than_inference_local_is_not_served_within(world: World) -> None:
    await start(world)
    client = await local(world)
    await client.send(call().replace(b"Host: inference.local", b"Host: other.test"))
    assert (await client.response()).status == 421


async def test_models_are_told_from_the_routes(world: World) -> None:
    seen: Seen = []
    origin = await world.origin(saying(seen, answer()), tls=True)
    write_routes(
        world,
        route(origin, aliases=["small"]),
        route(origin, name="claude", provider="anthropic", model="meta/claude"),
    )
    await world.start()
    client = await local(world)
    await client.send(call("/v1/models?limit=1", b"", method="GET"))
    listed = (await client.response()).json
    assert [one["id"] for one in listed["data"]] == ["real", "main", "small", "meta/claude", "claude"]
    assert listed["object"] == "list" and listed["has_more"] is False and listed["last_id"] == "claude"
    for path in ("/v1/models/meta/claude", "/v1/models/meta%2Fclaude"):
        await client.send(call(path, b"", method="GET"))
        one = (await client.response()).json
        assert (one["id"], one["object"], one["type"]) == ("meta/claude", "model", "model")
    await client.send(call("/v1/models/unknown", b"", "Anthropic-Version: 1", method="GET"))
    response = await client.response()
    assert (response.status, response.json["error"]["type"]) == (404, "not_found_error")
    await client.send(call("/v1/models", b"", method="GET"))
    assert (await client.response()).status == 200, "the connection goes on after an error"
    assert seen == [], "no destination is asked"


async def test_an_alias_chooses_the_route_and_its_key(world: World) -> None:
    seen: Seen = []
    one, other = await world.origin(hello, tls=True), await world.origin(saying(seen, answer(USAGE)), tls=True)
    write_routes(world, route(one), route(other, name="second", key=OTHER_KEY, aliases=["fast"], model="quick"))
    await world.start()
    client = await local(world)
    await client.send(call(body=b'{"model": "fast"}'))
    assert (await client.response()).status == 200
    _, fields, body = seen[0]
    assert fields["authorization"] == f"Bearer {OTHER_KEY}" and json.loads(body)["model"] == "quick"
    assert one.connections == 0


async def test_an_error_of_the_destination_comes_as_it_is(world: World) -> None:
    told = b'{"error": {"message": "slow down"}}'
    await start(world, answer(told, "429 Too Many Requests", "Retry-After: 7", "Keep-Alive: timeout=5"), answer(USAGE))
    client = await local(world)
    await client.send(call())
    response = await client.response()
    assert (response.status, response.body, response.headers["retry-after"]) == (429, told, "7")
    assert "keep-alive" not in response.headers
    await client.send(call())
    assert (await client.response()).status == 200


async def test_a_key_that_the_destination_repeats_is_not_seen(world: World) -> None:
    told = f'{{"error": "Incorrect API key provided: {KEY}"}}'.encode()
    packed = gzip.compress(told, mtime=0)
    replies = (
        answer(told, "401 Unauthorized", f"X-Echo: {KEY}"), answer(packed, "401 No", "Content-Encoding: gzip"),
        answer(packed, "200 OK", "Content-Encoding: br"),
    )  # fmt: skip
    await start(world, *replies)
    client = await local(world)
    for _ in range(2):
        await client.send(call(CHAT, BODY, "Accept-Encoding: gzip, br"))
        response = await client.response()
        assert response.status == 401
        assert response.json == {"error": "Incorrect API key provided: [CREDENTIAL]"}
        assert response.headers.get("x-echo", "[CREDENTIAL]") == "[CREDENTIAL]"
    await client.send(call())
    assert (await client.response()).status == 502, "what cannot be searched does not pass"


# Secrets of the vault.


async def test_a_secret_of_the_vault_authorises_by_its_name(world: World) -> None:
    seen: Seen = []
    origin = await world.origin(saying(seen, answer(USAGE)), tls=True)
    secret = {"name": "openai", "value": OTHER_KEY, "hosts": [HOST]}
    write_secrets(world, secret)
    write_routes(world, {**route(origin, secret="openai"), "key": ""})
    await world.start()
    client = await local(world)
    await client.send(call())
    assert (await client.response()).status == 200
    write_secrets(world, {**secret, "value": KEY})
    report = world.reload()
    assert not report["inference_error"] and report["inference_routes"] == 1
    client = await local(world)
    await client.send(call())
    assert (await client.response()).status == 200
    assert [fields["authorization"] for _, fields, _ in seen] == [f"Bearer {OTHER_KEY}", f"Bearer {KEY}"]
    for secrets, words in (([{**secret, "hosts": ["other.test"]}], "not bound to its host"), ([], "does not have")):
        write_secrets(world, *secrets)
        world.reload()
        client = await local(world)
        await client.send(call())
        response = await client.response()
        assert response.status == 503 and "'openai'" in response.json["error"]["message"]
        assert words in response.json["error"]["message"]
    assert len(seen) == 2, "without its key a call is not made"


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ({"hosts": ["other.test"]}, "not bound to its host"),
        ({"hosts": [HOST], "ports": [1]}, "not bound to its host"),
        ({"hosts": [HOST], "name": "another"}, "does not have"),
    ],
    ids=["host", "port", "name"],
)
async def test_a_secret_goes_only_where_it_is_bound(world: World, secret: dict[str, Any], words: str) -> None:
    origin = await world.origin(hello, tls=True)
    write_secrets(world, {"name": "openai", "value": KEY, **secret})
    write_routes(world, {**route(origin, secret="openai"), "key": ""})
    await world.start()
    assert world.sidecar is not None
    assert words in world.sidecar.status()["inference_error"]
    client = await local(world)
    await client.send(call())
    assert (await client.response()).status == 503
    assert origin.connections == 0


async def test_a_secrets_path_binds_it_too(world: World) -> None:
    origin = await world.origin(hello, tls=True)
    write_secrets(world, {"name": "openai", "value": KEY, "hosts": [HOST], "paths": ["/v1/models"]})
    write_routes(world, {**route(origin, secret="openai"), "key": ""})
    await world.start()
    client = await local(world)
    await client.send(call())
    response = await client.response()
    assert response.status == 503 and "path" in response.json["error"]["message"]
    assert origin.connections == 0


async def test_a_call_to_bedrock_is_signed(world: World) -> None:
    seen: Seen = []
    origin = await world.origin(saying(seen, answer(b"{}", "200 OK", "X-Amzn-Bedrock-Input-Token-Count: 5")), tls=True)
    secrets = [
        {"name": name, "value": f"value-of-{name}", "hosts": [HOST]}
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    ]
    write_secrets(world, *secrets)
    base = f"https://{HOST}:{origin.port}"
    write_routes(
        world, {"name": "b", "provider": "aws-bedrock", "base_url": base, "model": "eu.x:0", "region": "eu-west-1"}
    )
    await world.start()
    client = await local(world)
    await client.send(call("/model/mine/invoke", b"{}", "Authorization: AWS4-HMAC-SHA256 Credential=fake"))
    assert (await client.response()).status == 200
    line, fields, _ = seen[0]
    assert line == "POST /model/eu.x%3A0/invoke HTTP/1.1"
    assert "Credential=value-of-AWS_ACCESS_KEY_ID/" in fields["authorization"]
    assert "/eu-west-1/bedrock/aws4_request" in fields["authorization"]
    (told,) = await lines(world)
    assert told["unmapped"]["inference"]["input_tokens"] == 5


async def test_a_token_that_is_refused_is_renewed_and_the_call_made_once_more(world: World) -> None:
    seen: Seen = []
    replies = (answer(b"{}", "401 Unauthorized"), answer(USAGE), answer(b"{}", "401 Unauthorized"))
    origin = await world.origin(saying(seen, *replies), tls=True)
    endpoint = TokenEndpoint()
    write_secrets(world, {**oauth(await endpoint.start(world), "refresh_token"), "header": "", "format": ""})
    write_routes(world, {**route(origin, secret="KEY"), "key": ""})
    await world.start()
    client = await local(world)
    for status in (200, 401):
        await client.send(call())
        assert (await client.response()).status == status
    tokens = [fields["authorization"].removeprefix("Bearer token-")[0] for _, fields, _ in seen]
    assert tokens == ["1", "2", "2", "3"], "asked again once for each call"
    assert {json.loads(body)["model"] for _, _, body in seen} == {"real"}
    endpoint.status = "500 No"
    write_routes(world, {**route(origin, secret="KEY", name="other"), "key": ""})
    world.reload()
    await client.send(call())
    assert (await client.response()).status == 401, "the answer that there is, where no new token is to be had"


# Streams.


def events(*parts: bytes) -> bytes:
    return b"".join(b"data: " + part + b"\n\n" for part in parts)


def chunked(*parts: bytes, end: bool = True) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + (b"0\r\n\r\n" if end else b"")


async def test_events_come_one_by_one(world: World) -> None:
    """The next event is sent only when the client has the one before: whoever gathers them would hang here."""
    told, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, fields, body = await read_request(reader)
        assert json.loads(body)["stream"] is True and fields["accept-encoding"] == "identity"
        writer.write(chunked(events(b"1"), end=False))
        await told.wait()
        rest_of_it = events(b'{"usage": {"prompt_tokens": 5, "completion_tokens": 6}}', b"[DONE]")
        writer.write(chunked(rest_of_it).partition(b"\r\n\r\n")[2])
        await gone.wait()

    origin = await world.origin(serve, tls=True)
    write_routes(world, route(origin))
    await world.start()
    client = await local(world)
    await client.send(call(body=STREAM))
    status, fields = await client.head()
    assert (status, fields["transfer-encoding"], fields["content-type"]) == (200, "chunked", "text/event-stream")
    assert "content-length" not in fields
    assert await asyncio.wait_for(client.reader.readuntil(b"data: 1\n\n\r\n"), 5)
    told.set()
    assert b"[DONE]" in await asyncio.wait_for(client.reader.readuntil(b"0\r\n\r\n"), 5)
    gone.set()
    (told_of,) = await lines(world)
    found = told_of["unmapped"]["inference"]
    assert (found["stream"], found["input_tokens"], found["output_tokens"]) == (True, 5, 6)


async def test_tokens_of_anthropics_events(world: World) -> None:
    first = b'{"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}}'
    last = b'{"type": "message_delta", "usage": {"output_tokens": 15}}'
    stream = events(first, last)
    pieces = [stream[at : at + 7] for at in range(0, len(stream), 7)]
    await start(world, chunked(*pieces), provider="anthropic")
    client = await local(world)
    await client.send(call("/v1/messages", STREAM))
    assert (await client.response()).body == stream
    (told,) = await lines(world)
    assert (told["unmapped"]["inference"]["input_tokens"], told["unmapped"]["inference"]["output_tokens"]) == (25, 15)


@pytest.mark.parametrize(("provider", "path"), [("openai", CHAT), ("anthropic", "/v1/messages")])
async def test_a_stream_that_breaks_ends_with_an_error_event(world: World, provider: str, path: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(chunked(events(b"1"), b'data: {"half', end=False))
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()

    origin = await world.origin(serve, tls=True)
    write_routes(world, route(origin, provider=provider))
    await world.start()
    client = await local(world)
    await client.send(call(path, STREAM))
    body = (await client.response()).body
    assert body.startswith(events(b"1")) and b"half" not in body
    last = body.strip().rpartition(b"\n")[2]
    error = json.loads(last.removeprefix(b"data: "))
    assert "broke off" in error["error"]["message"]
    assert (b"event: error\n" in body) == (provider == "anthropic")
    (told,) = await lines(world)
    assert "broke off" in told["status_detail"]


async def test_a_stream_that_stands_still_ends(world: World) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(chunked(events(b"1"), end=False))
        await reader.read()

    origin = await world.origin(serve, tls=True)
    write_routes(world, route(origin, idle_timeout=1, timeout=1))
    await world.start()
    client = await local(world)
    await client.send(call(body=STREAM))
    body = (await client.response()).body
    assert b"nothing came for 1 seconds" in body


async def test_a_stream_may_last_longer_than_a_whole_answer(world: World) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(chunked(events(b"0"), end=False))
        for number in (b"1", b"2", b"3"):
            await asyncio.sleep(0.8)
            writer.write(chunked(events(number), end=False).partition(b"\r\n\r\n")[2])
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    origin = await world.origin(serve, tls=True)
    write_routes(world, route(origin, timeout=1, idle_timeout=2))
    await world.start()
    client = await local(world)
    await client.send(call(body=STREAM))
    assert (await client.response()).body == events(b"0", b"1", b"2", b"3")


async def test_a_stream_of_too_many_bytes_is_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_ANSWER", 100)
    await start(world, chunked(events(b"1"), events(b"x" * 200)), answer(b"y" * 101))
    client = await local(world)
    await client.send(call(body=STREAM))
    body = (await client.response()).body
    assert b"more than 100 bytes" in body and b"xxx" not in body
    await client.send(call())
    assert (await client.response()).status == 502


async def test_a_stream_for_http_1_0_ends_with_its_connection(world: World) -> None:
    await start(world, chunked(events(b"1")))
    client = await local(world)
    await client.send(call(body=STREAM, version="1.0"))
    response = await client.response()
    assert "transfer-encoding" not in response.headers and response.body == events(b"1")


async def test_a_key_in_a_stream_is_not_seen_however_it_is_cut(world: World) -> None:
    event = events(b'"' + KEY.encode() + b'"')
    await start(world, chunked(event[:15], event[15:20], event[20:]))
    client = await local(world)
    await client.send(call(body=STREAM))
    assert (await client.response()).body == events(b'"[CREDENTIAL]"')


async def test_a_client_that_leaves_before_the_answer_ends_the_call(world: World) -> None:
    begun = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        begun.set()
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
        raise ConnectionError

    origin = await world.origin(serve, tls=True)
    write_routes(world, route(origin))
    await world.start()
    client = await local(world)
    await client.send(call())
    await asyncio.wait_for(begun.wait(), 5)
    client.close()
    await asyncio.wait_for(origin.closed.wait(), 5)


async def test_a_client_that_leaves_ends_the_call(world: World) -> None:
    begun = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(chunked(events(b"1"), end=False))
        begun.set()
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
        raise ConnectionError

    origin = await world.origin(serve, tls=True)
    write_routes(world, route(origin))
    await world.start()
    client = await local(world)
    await client.send(call(body=STREAM))
    await asyncio.wait_for(begun.wait(), 5)
    await client.head()
    client.abort()
    await asyncio.wait_for(origin.closed.wait(), 5)
    (told,) = await lines(world)
    assert "the client left" in told["status_detail"]


# What fails.


@pytest.mark.parametrize(("body", "limit"), [(BODY, "timeout"), (STREAM, "idle_timeout")])
async def test_an_answer_that_does_not_come_in_time(world: World, body: bytes, limit: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()

    origin = await world.origin(serve, tls=True)
    write_routes(world, route(origin, **{limit: 1}))
    await world.start()
    client = await local(world)
    await client.send(call(body=body))
    response = await client.response()
    assert response.status == 503 and "within 1 seconds" in response.json["error"]["message"]


async def test_a_call_that_was_sent_is_not_sent_again(world: World) -> None:
    seen: Seen = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        reset(writer)

    origin = await world.origin(serve, tls=True)
    write_routes(world, route(origin))
    await world.start()
    client = await local(world)
    await client.send(call())
    assert (await client.response()).status == 502
    assert len(seen) == 1


async def test_a_connection_that_fails_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Seen = []
    origin = await world.origin(saying(seen, answer(USAGE)), tls=True)
    write_routes(world, route(origin))
    await world.start()
    assert world.sidecar is not None
    pool = world.sidecar.pipeline.pool
    connect, tries = pool.connect, []

    async def failing(*args: Any) -> Any:
        tries.append(args)
        if len(tries) == 1:
            raise calls.UpstreamError("the connection timed out")
        return await connect(*args)

    monkeypatch.setattr(pool, "connect", failing)
    client = await local(world)
    await client.send(call())
    assert (await client.response()).status == 200
    assert (len(tries), len(seen)) == (2, 1)


async def test_a_destination_that_is_not_there_or_not_trusted(world: World) -> None:
    nobody = await world.origin(hello, tls=True)
    nobody.server.close()
    plain = await world.origin(hello)
    write_routes(world, route(nobody), route(plain, name="plain"))
    await world.start(limits=Limits(handshake=0.5))
    client = await local(world)
    for model in ("main", "plain"):
        await client.send(call(body=b'{"model": "%b"}' % model.encode()))
        response = await client.response()
        assert response.status == 503 and "is unreachable" in response.json["error"]["message"]


async def test_the_guard_judges_the_destination(world: World) -> None:
    """A host that the operator named may be private, but not this machine, whatever its name leads to."""
    origin = await world.origin(hello, tls=True)
    write_routes(world, {**route(origin), "base_url": f"https://127.0.0.1:{origin.port}/v1"})
    await world.start(guard=Guard(own_networks=(), resolver=Resolver()))
    client = await local(world)
    await client.send(call())
    response = await client.response()
    assert response.status == 502 and "always-blocked" in response.json["error"]["message"]
    assert origin.connections == 0


@pytest.mark.parametrize(
    ("body", "fields", "status"),
    [
        (b"no json", (), 400),
        (b"x" * (10 * 1024 * 1024 + 1), (), 413),
    ],
    ids=["json", "large"],
)
async def test_bodies_that_are_refused(world: World, body: bytes, fields: tuple[str, ...], status: int) -> None:
    _, seen = await start(world)
    client = await local(world)
    await client.send(call(body=body)[: 1024 * 1024])
    response = await client.response()
    assert response.status == status and response.json["error"]["type"] == "invalid_request_error"
    assert seen == []


@pytest.mark.parametrize(("chunks", "status"), [(4095, 200), (4096, 413)])
async def test_chunks_are_counted(world: World, chunks: int, status: int) -> None:
    """The last chunk, which is empty, is one of the 4096 too."""
    await start(world)
    client = await local(world)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: inference.local\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    body = b'{"model": "a"}'.ljust(chunks, b" ")
    await client.send(head + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
    assert (await client.response()).status == status


async def test_a_client_that_waits_for_leave_gets_it(world: World) -> None:
    _, seen = await start(world)
    client = await local(world)
    whole = call(CHAT, BODY, "Expect: 100-continue")
    await client.send(whole[: -len(BODY)])
    assert (await client.head())[0] == 100
    await client.send(BODY)
    assert (await client.response()).status == 200
    assert "expect" not in seen[0][1]


async def test_a_large_body_is_parsed_aside(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has one parsed holds up nobody else, as far as the interpreter lets go of it."""
    threads: list[str] = []
    prepare = entrance.prepare

    def noted(*args: Any) -> Any:
        threads.append(threading.current_thread().name.partition("_")[0])
        return prepare(*args)

    monkeypatch.setattr(entrance, "prepare", noted)
    _, seen = await start(world)
    client = await local(world)
    for size in (100, entrance.PARSED_AT_ONCE):
        await client.send(call(body=json.dumps({"messages": ["x" * size]}).encode()))
        assert (await client.response()).status == 200
    assert threads == ["MainThread", "inference"]
    assert json.loads(seen[1][2])["model"] == "real"
    await client.send(call(body=b"[" * (entrance.PARSED_AT_ONCE + 1)))
    assert (await client.response()).status == 400


async def start_held(world: World) -> tuple[asyncio.Event, asyncio.Event]:
    """Start with a route whose destination tells when a call has come, and answers when it is told to."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        begun.set()
        await go.wait()
        writer.write(answer(USAGE))
        await reader.read()

    origin = await world.origin(serve, tls=True)
    write_routes(world, route(origin))
    await world.start()
    return begun, go


async def test_calls_at_once_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_HELD", entrance.CALL + 1000)
    begun, go = await start_held(world)
    client, other = await local(world), await local(world)
    await client.send(call())
    await asyncio.wait_for(begun.wait(), 5)
    await other.send(call())
    refused = await other.response()
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    go.set()
    assert (await client.response()).status == 200
    assert world.sidecar is not None and world.sidecar.pipeline.held == 0, "what was held is given back"


async def test_an_answer_that_is_gathered_is_held_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await start(world)
    assert world.sidecar is not None
    client = await local(world)
    await client.send(call())
    assert (await client.response()).status == 200
    monkeypatch.setattr(bodies, "MAX_HELD", entrance.CALL + len(BODY) + len(USAGE) - 1)
    await client.send(call())
    assert (await client.response()).status == 503
    assert world.sidecar.pipeline.held == 0


# Routes that change.


async def test_routes_change_while_it_runs_and_bad_ones_change_nothing(world: World) -> None:
    origin, seen = await start(world)
    client = await local(world)
    await client.send(call())
    assert (await client.response()).status == 200
    write_routes(world, {**route(origin), "provider": "nobody"})
    report = world.reload(rest(1))
    assert "route 'main' has a provider" in report["inference_error"] and KEY not in report["inference_error"]
    client = await local(world)
    await client.send(call())
    assert (await client.response()).status == 200
    write_routes(world, route(origin, key=OTHER_KEY))
    assert world.reload(rest(1))["inference_error"] == ""
    await client.send(call())
    assert (await client.response()).status == 200, "an open connection has the new routes"
    assert seen[-1][1]["authorization"] == f"Bearer {OTHER_KEY}"
    write_routes(world)
    assert world.reload(rest(1))["inference_routes"] == 0
    await client.send(call())
    assert (await client.response()).status == 503
    for key in (KEY, OTHER_KEY):
        assert key not in json.dumps(await world.events())


async def test_a_middleware_that_covers_the_name_sees_calls_too(world: World) -> None:
    world.middlewares = {"guard": {"middleware": "openshell/regex", "endpoints": {"include": ["*.local"]}}}
    _, seen = await start(world)
    client = await local(world)
    await client.send(call(body=b'{"model": "asked", "messages": [{"content": "sk-let-slip_0123456789"}]}'))
    assert (await client.response()).status == 200
    assert json.loads(seen[0][2])["messages"] == [{"content": "[REDACTED]"}]
    await client.send(call(CHAT, BODY, "Content-Encoding: gzip"))
    refused = await client.response()
    assert (refused.status, refused.json["error"]["code"]) == (403, "middleware_failed")
    await client.send(call("/v1/models", b"", method="GET"))
    assert (await client.response()).status == 200
    assert len(seen) == 1
    assert [one["firewall_rule"]["type"] for one in await lines(world)] == ["inference", "middleware", "inference"]
