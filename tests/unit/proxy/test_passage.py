# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bodies and answers on their way past the credentials: which are looked into, and which do not pass unseen."""

from __future__ import annotations

import asyncio
import base64
import gzip
import ssl
import zlib
from typing import Any

import pytest
import websockets.asyncio.client
import websockets.asyncio.server
from loopback import HOST, SECONDS, World, answer, rest
from test_credentials import (
    CANONICAL,
    RANDOM,
    REWRITING,
    SECRET,
    VALUE,
    TokenEndpoint,
    asked_for,
    oauth,
    ok,
    posted,
    repeat,
    request,
    start,
    write_secrets,
)

ELSEWHERE = SECRET | {"hosts": ["elsewhere.test"]}
SHORT = {"name": "KEY", "value": VALUE, "hosts": [HOST]}  # its placeholder is longer than itself


async def test_a_compressed_body_is_not_rewritten(world: World) -> None:
    there, seen = await start(world, ok, **REWRITING)
    body = gzip.compress(CANONICAL.encode(), mtime=0) + CANONICAL.encode()
    assert (await posted(world, there.port, "text/plain", body, "Content-Encoding: gzip")).status == 200
    assert seen[0][2] == body


@pytest.mark.parametrize("types", [(), ("text/plain", "text/plain"), ("text/plain", "application/json")])
async def test_in_a_body_of_no_type_or_of_two_no_placeholder_is_replaced(world: World, types: tuple[str, ...]) -> None:
    there, seen = await start(world, ok, **REWRITING)
    fields = [f"Content-Type: {one}" for one in types]
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "POST", *fields, body=b"nothing of the kind"))
    assert (await client.response()).status == 200
    await client.send(request(there.port, "/", "POST", *fields, body=CANONICAL.encode()))
    assert (await client.response()).json["error"] == "invalid_credential_placeholder"
    assert len(seen) == 1


async def test_a_body_is_judged_at_a_place_without_secrets_too(world: World) -> None:
    def early(*_: object) -> bytes:
        return b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" + answer(VALUE.encode())

    there, seen = await start(world, early, ELSEWHERE, **REWRITING)
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "POST", "Content-Type: text/plain", body=b"nothing of the kind"))
    assert (await client.head()) == (103, {"link": "<a>"})
    assert (await client.response()).body == VALUE.encode()
    refused = await posted(world, there.port, "text/plain", CANONICAL.encode())
    assert (refused.status, refused.json["error"]) == (403, "credential_endpoint_mismatch")
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("status", "fields", "body", "seen"),
    [
        ("200 OK", ["Content-Encoding: identity"], VALUE.encode(), RANDOM.encode()),
        ("200 OK", ["Content-Encoding: X-GZIP"], gzip.compress(VALUE.encode(), mtime=0), RANDOM.encode()),
        ("200 OK", ["Content-Encoding: deflate"], zlib.compress(VALUE.encode()), RANDOM.encode()),
        (
            "200 OK",
            ["Content-Encoding: gzip, gzip"],
            gzip.compress(gzip.compress(VALUE.encode(), mtime=0), mtime=0),
            None,
        ),
        ("200 OK", ["Content-Encoding: gzip", "Content-Encoding: br"], gzip.compress(b"x", mtime=0), None),
        ("206 Partial Content", ["Content-Encoding: gzip"], gzip.compress(VALUE.encode(), mtime=0)[:9], None),
        ("206 Partial Content", ["Content-Range: bytes 0-1/9"], VALUE.encode(), RANDOM.encode()),
        ("200 OK", ["Grpc-Encoding: gzip"], b"\1" + gzip.compress(VALUE.encode(), mtime=0), None),
    ],
)
async def test_an_answer_passes_as_far_as_it_can_be_searched(
    world: World, status: str, fields: list[str], body: bytes, seen: bytes | None
) -> None:
    there, _ = await start(world, lambda *_: answer(body, status, *fields))
    (told,) = await asked_for(world, there.port)
    if seen is None:
        assert (told.status, told.json["error"]) == (502, "upstream_protocol_error")
    else:
        assert (told.status, told.body) == (int(status[:3]), seen)


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_an_answer_without_content_is_not_searched(world: World, status: str) -> None:
    there, _ = await start(world, lambda *_: f"HTTP/1.1 {status}\r\nContent-Encoding: br\r\n\r\n".encode())
    told = await asked_for(world, there.port, 2)
    assert [one.status for one in told] == [int(status[:3])] * 2
    assert told[0].headers["content-encoding"] == "br"


@pytest.mark.parametrize(
    ("kind", "seen"), [("application/grpc+proto", CANONICAL[: len(VALUE)]), ("text/plain", CANONICAL)]
)
async def test_in_messages_that_tell_their_length_a_secret_is_masked_in_place(
    world: World, kind: str, seen: str
) -> None:
    there, _ = await start(world, lambda *_: answer(VALUE.encode(), "200 OK", f"Content-Type: {kind}"), SHORT)
    (told,) = await asked_for(world, there.port)
    assert told.body.decode() == seen
    assert ("content-length" in told.headers) == (len(seen) == len(VALUE))


async def test_every_token_that_may_come_back_is_masked(world: World) -> None:
    endpoint = TokenEndpoint(life=0)
    there, seen = await start(world, repeat, oauth(await endpoint.start(world), "refresh_token"))
    told = await asked_for(world, there.port, 2)
    sent = [fields["authorization"] for _, fields, _ in seen]
    assert sent == ["Bearer token-1-of-many", "Bearer token-2-of-many"]
    assert [one.json["headers"]["authorization"] for one in told] == [f"Bearer {CANONICAL}"] * 2


async def test_a_password_without_a_user_that_comes_back_is_masked(world: World) -> None:
    there, seen = await start(world, repeat, SECRET | {"header": "Authorization", "format": "basic"})
    (told,) = await asked_for(world, there.port)
    assert base64.b64decode(seen[0][1]["authorization"][6:]) == VALUE.encode()
    assert base64.b64decode(told.json["headers"]["authorization"][6:]) == RANDOM.encode()


@pytest.mark.parametrize(("secret", "passes"), [(ELSEWHERE, True), (SECRET, False)])
async def test_a_binary_message_passes_where_no_secret_is_bound(
    world: World, secret: dict[str, Any], passes: bool
) -> None:
    got: asyncio.Queue[str | bytes] = asyncio.Queue()

    async def origin(connection: websockets.asyncio.server.ServerConnection) -> None:
        async for message in connection:
            got.put_nowait(message)

    context = world.origin_authority.context(HOST)
    async with websockets.asyncio.server.serve(origin, "127.0.0.1", 0, ssl=context) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        write_secrets(world, secret)
        await world.start(rest(port, websocket_credential_rewrite=True))
        assert world.sidecar is not None
        trust = ssl.create_default_context(cafile=world.directory / "tls/ca.pem")
        proxy = f"http://127.0.0.1:{world.sidecar.listeners[0].port}"
        async with websockets.asyncio.client.connect(f"wss://{HOST}:{port}/", ssl=trust, proxy=proxy) as client:
            await client.send(b"\x00\xff")
            if passes:
                assert await asyncio.wait_for(got.get(), SECONDS) == b"\x00\xff"
            else:
                await asyncio.wait_for(client.wait_closed(), SECONDS)
                assert (client.close_code, got.empty()) == (1008, True)
