# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Secrets through a whole sidecar: put in for the destinations they are bound to, seen nowhere else."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import hmac
import json
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
import websockets.asyncio.client
import websockets.asyncio.server
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from loopback import HOST, Client, Origin, Response, World, answer, hello, read_request, rest
from openshell_proxy.credentials.sigv4 import Keys, authorization
from openshell_proxy.credentials.tokens import PAUSE_SECONDS, Grant, RenewedToken
from openshell_proxy.policy import Intent, Request, load_policy
from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.form import post_form
from openshell_proxy.relay.upstream import Origin as Destination

VALUE = "sk-real-0123456789abcdef"
RANDOM = "sk-rand-ABCDEFGHIJKLMNOP"
CANONICAL = "openshell:resolve:env:KEY"
SECRET = {"name": "KEY", "value": VALUE, "hosts": [HOST], "random": RANDOM}
assert len(VALUE) == len(RANDOM)

Answer = Callable[[str, dict[str, str], bytes], bytes]


def write_secrets(world: World, *secrets: dict[str, Any]) -> None:
    (world.directory / "state/config/secrets.json").write_text(json.dumps({"secrets": secrets}))


def request(port: int, path: str = "/", method: str = "GET", *fields: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}:{port}", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


Seen = list[tuple[str, dict[str, str], bytes]]


async def start(world: World, reply: Answer, *secrets: dict[str, Any], **endpoint: Any) -> tuple[Origin, Seen]:
    """An origin over TLS that notes what it gets and answers with *reply*, and a sidecar with *secrets*."""
    seen: Seen = []

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            asked = await read_request(reader)
            seen.append(asked)
            writer.write(reply(*asked))
            await writer.drain()

    there = await world.origin(origin, tls=True)
    write_secrets(world, *secrets or (SECRET,))
    await world.start(rest(there.port, **endpoint))
    return there, seen


def ok(_line: str, _fields: dict[str, str], _body: bytes) -> bytes:
    return answer()


def repeat(line: str, fields: dict[str, str], body: bytes) -> bytes:
    """What httpbin does: the request as JSON in the answer."""
    return answer(json.dumps({"line": line, "headers": fields, "body": body.decode()}).encode())


async def log(world: World) -> str:
    await world.stop()
    return world.log.getvalue()


async def test_a_placeholder_becomes_the_secret_at_its_destination_only(world: World) -> None:
    there, seen = await start(world, ok)
    client = await world.tunnel(there.port)
    basic = base64.b64encode(f"user:{CANONICAL}".encode()).decode()
    await client.send(
        request(there.port, f"/a{CANONICAL}?k={RANDOM}", "GET", f"X-Key: {RANDOM}", f"Authorization: Basic {basic}")
    )
    assert (await client.response()).status == 200
    line, fields, _ = seen[0]
    assert line == f"GET /a{VALUE}?k={VALUE} HTTP/1.1"
    assert fields["x-key"] == VALUE
    assert base64.b64decode(fields["authorization"].removeprefix("Basic ")) == f"user:{VALUE}".encode()
    written = await log(world)
    assert "/a[CREDENTIAL]" in written
    for never in (VALUE, RANDOM, CANONICAL):
        assert never not in written


@pytest.mark.parametrize(
    ("field", "status", "error"),
    [
        ("X-Key: openshell:resolve:env:OTHER", 403, "credential_endpoint_mismatch"),
        ("X-Key: openshell:resolve:env:NONE", 500, "credential_injection_failed"),
        (f"X-Key: a b {CANONICAL}", 400, "invalid_credential_placeholder"),
    ],
)
async def test_what_cannot_be_resolved_reaches_nobody(world: World, field: str, status: int, error: str) -> None:
    other = {"name": "OTHER", "value": "elsewhere-only", "hosts": ["elsewhere.test"]}
    there, seen = await start(world, ok, SECRET, other)
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "GET", field))
    refused = await client.response()
    assert (refused.status, refused.json["error"]) == (status, error)
    assert not seen
    denied = [one for one in await world.events() if one["class_uid"] == 4002]
    assert [(one["action_id"], one["firewall_rule"]["type"]) for one in denied] == [(2, "credentials")]
    assert "openshell:resolve" not in world.log.getvalue()


async def test_without_secrets_a_placeholder_is_refused_all_the_same(world: World) -> None:
    there = await world.origin(hello, tls=True)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "GET", f"Authorization: Bearer {CANONICAL}"))
    assert (await client.response()).json["error"] == "credential_injection_failed"


async def test_a_placeholder_that_is_merely_talked_about_passes(world: World) -> None:
    there, seen = await start(world, ok)
    client = await world.tunnel(there.port)
    body = json.dumps({"prompt": f"what is {CANONICAL}, or {RANDOM}?"}).encode()
    await client.send(request(there.port, "/", "POST", "Content-Type: application/json", body=body))
    assert (await client.response()).status == 200
    assert seen[0][2] == body


async def test_policy_judges_the_target_without_the_placeholder(world: World) -> None:
    rules = [{"allow": {"method": "GET", "path": "/x/[[]CREDENTIAL]/y"}}]
    there, _ = await start(world, ok, access="", rules=rules)
    client = await world.tunnel(there.port)
    await client.send(request(there.port, f"/x/{CANONICAL}/y"))
    assert (await client.response()).status == 200


async def test_the_destination_decides_what_is_injected(world: World) -> None:
    bearer = SECRET | {"header": "Authorization", "format": "Bearer {value}"}
    there, seen = await start(world, ok, bearer)
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "GET", "Authorization: Bearer the-client's-own"))
    assert (await client.response()).status == 200
    assert seen[0][1]["authorization"] == f"Bearer {VALUE}"


async def test_an_echoed_secret_is_masked_and_the_length_stays(world: World) -> None:
    there, _ = await start(world, repeat, SECRET | {"header": "Authorization", "format": "Bearer {value}"})
    client = await world.tunnel(there.port)
    await client.send(request(there.port))
    told = await client.response()
    assert told.json["headers"]["authorization"] == f"Bearer {RANDOM}"
    assert "content-length" in told.headers


async def test_an_echoed_secret_without_a_random_placeholder_is_masked_in_chunks(world: World) -> None:
    short = {"name": "KEY", "value": VALUE, "hosts": [HOST], "header": "X-Key"}
    there, _ = await start(world, repeat, short)
    client = await world.tunnel(there.port)
    await client.send(request(there.port) + request(there.port))
    for _ in range(2):
        told = await client.response()
        assert told.json["headers"]["x-key"] == CANONICAL
        assert told.headers["transfer-encoding"] == "chunked"
        assert "content-length" not in told.headers


async def test_secrets_in_the_head_of_an_answer_are_masked(world: World) -> None:
    def reply(_line: str, _fields: dict[str, str], _body: bytes) -> bytes:
        early = f"HTTP/1.1 103 Early Hints\r\nLink: <{VALUE}>\r\n\r\n".encode()
        return early + answer(b"", f"200 {VALUE}", f"Location: /?k={VALUE}", f"Set-Cookie: k={VALUE}")

    there, _ = await start(world, reply)
    client = await world.tunnel(there.port)
    await client.send(request(there.port))
    got = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 5)
    got += await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 5)
    assert VALUE.encode() not in got
    assert got.count(RANDOM.encode()) == 4


async def test_basic_credentials_that_come_back_are_masked(world: World) -> None:
    there, seen = await start(world, repeat, SECRET | {"header": "Authorization", "format": "basic", "username": "x"})
    client = await world.tunnel(there.port)
    sent = base64.b64encode(f"me:{CANONICAL}".encode()).decode()
    await client.send(request(there.port, "/", "GET", f"X-Auth: Basic {sent}"))
    told = (await client.response()).json["headers"]
    assert base64.b64decode(seen[0][1]["authorization"][6:]) == f"x:{VALUE}".encode()
    assert base64.b64decode(told["authorization"][6:]) == f"x:{RANDOM}".encode()
    assert told["x-auth"] == f"Basic {sent}"


async def streamed(
    world: World, pieces: list[bytes], *, close: bool = False
) -> tuple[Client, Seen, list[asyncio.Event]]:
    """An origin that sends each piece of its answer when the event of the one before it is set."""
    gates = [asyncio.Event() for _ in pieces]
    seen: Seen = []

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        framing = b"Connection: close" if close else b"Transfer-Encoding: chunked"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + framing + b"\r\n\r\n")
        for piece, gate in zip(pieces, gates, strict=True):
            writer.write(piece if close else b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await gate.wait()
        writer.write(b"" if close else b"0\r\n\r\n")
        await writer.drain()

    there = await world.origin(origin, tls=True)
    write_secrets(world, SECRET)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port)
    await client.send(request(there.port))
    await client.head()
    return client, seen, gates


async def test_an_event_stream_is_not_delayed_and_a_secret_across_its_chunks_is_masked(world: World) -> None:
    first, second = f"data: one {VALUE[:9]}".encode(), f"{VALUE[9:]} two\n\n".encode()
    client, _, gates = await streamed(world, [b"data: zero\n\n", first, second])
    reader = client.reader
    assert await asyncio.wait_for(reader.readexactly(len(b"c\r\ndata: zero\n\n\r\n")), 5) == b"c\r\ndata: zero\n\n\r\n"
    gates[0].set()
    assert await asyncio.wait_for(reader.readexactly(len(b"a\r\ndata: one \r\n")), 5) == b"a\r\ndata: one \r\n"
    gates[1].set()
    rest_of_it = f"{RANDOM} two\n\n".encode()
    expected = b"%x\r\n%b\r\n" % (len(rest_of_it), rest_of_it)
    assert await asyncio.wait_for(reader.readexactly(len(expected)), 5) == expected
    gates[2].set()
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"0\r\n\r\n"


async def test_what_was_held_back_comes_at_the_end_of_the_connection(world: World) -> None:
    client, _, gates = await streamed(world, [f"abc{VALUE[:5]}".encode()], close=True)
    gates[0].set()
    assert await client.ended() == f"abc{VALUE[:5]}".encode()


async def test_a_destination_that_knows_a_secret_is_asked_for_no_compression(world: World) -> None:
    there, seen = await start(world, ok)
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "GET", "Accept-Encoding: gzip, br"))
    assert (await client.response()).status == 200
    assert seen[0][1]["accept-encoding"] == "identity"


async def test_elsewhere_compression_is_the_clients_affair(world: World) -> None:
    there, seen = await start(world, ok, SECRET | {"hosts": ["elsewhere.test"]})
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "GET", "Accept-Encoding: gzip, br"))
    assert (await client.response()).status == 200
    assert seen[0][1]["accept-encoding"] == "gzip, br"


async def compressed(world: World, coding: str, body: bytes) -> Response:
    there, _ = await start(world, lambda *_: answer(body, "200 OK", f"Content-Encoding: {coding}"))
    client = await world.tunnel(there.port)
    await client.send(request(there.port))
    return await client.response()


async def test_an_answer_that_is_compressed_all_the_same_is_searched(world: World) -> None:
    told = await compressed(
        world, "gzip", gzip.compress(VALUE.encode(), mtime=0) + gzip.compress(b" and more", mtime=0)
    )
    assert told.body == f"{RANDOM} and more".encode()
    assert "content-encoding" not in told.headers


async def test_an_answer_that_cannot_be_searched_is_refused(world: World) -> None:
    assert (await compressed(world, "br", b"\x0b\x02\x80abcde\x03")).status == 502


async def test_a_bomb_among_compressed_answers_breaks_off(world: World) -> None:
    bomb = gzip.compress(bytes(64 * 1024 * 1024), 9, mtime=0)
    with pytest.raises((asyncio.IncompleteReadError, OSError)):
        await compressed(world, "gzip", bomb)


async def test_an_answer_to_head_keeps_what_it_says_of_its_content(world: World) -> None:
    there, _ = await start(world, lambda *_: b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nContent-Encoding: br\r\n\r\n")
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "HEAD"))
    told = await client.response("HEAD")
    assert (told.headers["content-length"], told.headers["content-encoding"]) == ("9", "br")


async def test_a_bad_file_of_secrets_changes_nothing(world: World) -> None:
    there, seen = await start(world, ok)
    assert world.sidecar is not None
    path = world.directory / "state/config/secrets.json"
    path.write_text(path.read_text()[:-3])
    assert world.sidecar.reload()["credentials_error"]
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "GET", f"X-Key: {CANONICAL}"))
    assert (await client.response()).status == 200
    assert seen[0][1]["x-key"] == VALUE
    assert VALUE not in (world.directory / "tls/.ready").read_text() + await log(world)


async def test_a_rotated_secret_counts_from_the_next_request_on(world: World) -> None:
    there, seen = await start(world, ok)
    assert world.sidecar is not None
    client = await world.tunnel(there.port)
    for value in (VALUE, "sk-new-value"):
        write_secrets(world, SECRET | {"value": value})
        assert not world.sidecar.reload()["credentials_error"]
        await client.send(request(there.port, "/", "GET", f"X-Key: {CANONICAL}"))
        assert (await client.response()).status == 200
        assert seen[-1][1]["x-key"] == value
    write_secrets(world, SECRET | {"hosts": ["elsewhere.test"]})
    world.sidecar.reload()
    await client.send(request(there.port, "/", "GET", f"X-Key: {CANONICAL}"))
    assert (await client.response()).json["error"] == "credential_endpoint_mismatch"


async def connected(world: World, port: int) -> Client:
    client = await world.client()
    await client.send(f"CONNECT {HOST}:{port} HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode())
    return client


async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-server\r\n")
    await writer.drain()


async def test_no_blind_tunnel_leads_to_a_host_with_credentials(world: World) -> None:
    there = await world.origin(greet)
    write_secrets(world, SECRET)
    await world.start({"host": HOST, "port": there.port, "tls": "skip"})
    client = await connected(world, there.port)
    refused = await client.response()
    assert (refused.status, refused.json["error"]) == (403, "uninspected_credentials")
    assert there.connections == 0


async def test_bytes_of_no_known_kind_do_not_reach_a_host_with_credentials(world: World) -> None:
    there = await world.origin(greet)
    write_secrets(world, SECRET)
    await world.start({"host": HOST, "port": there.port})
    client = await connected(world, there.port)
    assert (await client.head())[0] == 200
    await client.send(b"SSH-2.0-client\r\n")
    assert (await client.response()).json["error"] == "uninspected_credentials"
    assert there.connections == 0


async def test_elsewhere_bytes_of_no_known_kind_pass(world: World) -> None:
    there = await world.origin(greet)
    write_secrets(world, SECRET | {"hosts": ["elsewhere.test"]})
    await world.start({"host": HOST, "port": there.port})
    client = await connected(world, there.port)
    assert (await client.head())[0] == 200
    await client.send(b"SSH-2.0-client\r\n")
    assert await client.ended() == b"SSH-2.0-server\r\n"


async def test_a_blind_tunnel_ends_when_credentials_are_bound_to_its_host(world: World) -> None:
    there = await world.origin(greet_and_wait)
    await world.start({"host": HOST, "port": there.port, "tls": "skip"})
    assert world.sidecar is not None
    client = await connected(world, there.port)
    assert (await client.head())[0] == 200
    assert await asyncio.wait_for(client.reader.readexactly(4), 5) == b"SSH-"
    write_secrets(world, SECRET)
    world.sidecar.reload()
    with contextlib.suppress(ConnectionResetError):
        await client.ended()
    told = [one for one in await world.events() if one["message"].startswith("CONNECT closed")]
    assert told[0]["status_detail"] == "the policy has changed"


async def greet_and_wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await greet(reader, writer)
    await reader.read()


class TokenEndpoint:
    """An OAuth token endpoint that sells ``token-1``, ``token-2`` …, each good for *life* seconds."""

    def __init__(self, life: int = 3600) -> None:
        self.life = life
        self.asked: list[dict[str, str]] = []
        self.status = "200 OK"
        self.more: dict[str, str] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, _, body = await read_request(reader)
        assert line.endswith(" /token HTTP/1.1")
        self.asked.append(dict(parse_qsl(body.decode("latin-1"))))
        await self.gate.wait()
        told = {"access_token": f"token-{len(self.asked)}-of-many", "expires_in": self.life, **self.more}
        writer.write(answer(json.dumps(told).encode(), self.status))
        await writer.drain()

    async def start(self, world: World) -> str:
        made = Origin(self.serve)
        await made.start(world.origin_authority.context("localhost"))
        world.origins.append(made)
        return f"https://localhost:{made.port}/token"


def oauth(token_url: str, grant: str, **more: str) -> dict[str, Any]:
    value = more.pop("value", "refresh-secret")
    told = {"grant": grant, "token_url": token_url, **more}
    return {
        "name": "KEY",
        "value": value,
        "hosts": [HOST],
        "header": "Authorization",
        "format": "Bearer {value}",
        "oauth": told,
    }


async def asked_for(world: World, port: int, count: int = 1, method: str = "GET", body: bytes = b"") -> list[Response]:
    client = await world.tunnel(port)
    told = []
    for _ in range(count):
        await client.send(request(port, "/", method, body=body))
        told.append(await client.response())
    return told


async def test_a_token_is_bought_once_and_put_in(world: World) -> None:
    endpoint = TokenEndpoint()
    url = await endpoint.start(world)
    there, seen = await start(
        world, repeat, oauth(url, "refresh_token", client_id="me", client_secret="c-secret", scope="a b")
    )
    answers = await asked_for(world, there.port, 2)
    expected = {"grant_type": "refresh_token", "refresh_token": "refresh-secret", "client_id": "me",
                "client_secret": "c-secret", "scope": "a b"}  # fmt: skip
    assert endpoint.asked == [expected]
    assert [fields["authorization"] for _, fields, _ in seen] == ["Bearer token-1-of-many"] * 2
    assert [told.json["headers"]["authorization"] for told in answers] == [f"Bearer {CANONICAL}"] * 2


async def test_many_requests_buy_one_token(world: World) -> None:
    endpoint = TokenEndpoint()
    endpoint.gate.clear()
    there, seen = await start(world, ok, oauth(await endpoint.start(world), "client_credentials", client_id="me"))
    asking = [asyncio.create_task(asked_for(world, there.port)) for _ in range(5)]
    while not endpoint.asked:
        await asyncio.sleep(0)
    endpoint.gate.set()
    await asyncio.gather(*asking)
    assert endpoint.asked == [
        {"grant_type": "client_credentials", "client_id": "me", "client_secret": "refresh-secret"}
    ]
    assert len(seen) == 5


async def test_a_service_account_signs_for_itself(world: World) -> None:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    account = {"client_email": "me@project.test", "private_key": pem.decode(), "private_key_id": "k1"}
    endpoint = TokenEndpoint()
    url = await endpoint.start(world)
    there, _ = await start(world, ok, oauth(url, "service_account", value=json.dumps(account, indent=1), scope="s"))
    await asked_for(world, there.port)
    (form,) = endpoint.asked
    assert set(form) == {"grant_type", "assertion"}
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    head, claims, signature = (base64.urlsafe_b64decode(part + "==") for part in form["assertion"].split("."))
    signed = form["assertion"].rpartition(".")[0].encode()
    key.public_key().verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
    assert json.loads(head) == {"alg": "RS256", "typ": "JWT", "kid": "k1"}
    told = json.loads(claims)
    assert (told["iss"], told["aud"], told["scope"], told["exp"] - told["iat"]) == ("me@project.test", url, "s", 3600)


def rejecting(*bad: str) -> Answer:
    def reply(line: str, fields: dict[str, str], body: bytes) -> bytes:
        status = "401 Unauthorized" if fields["authorization"].removeprefix("Bearer ") in bad else "200 OK"
        return answer(body, status)

    return reply


async def test_a_refused_token_is_replaced_once_and_the_request_asked_again(world: World) -> None:
    endpoint = TokenEndpoint()
    url = await endpoint.start(world)
    there, seen = await start(world, rejecting("token-1-of-many"), oauth(url, "refresh_token"))
    (told,) = await asked_for(world, there.port, method="POST", body=b"the same body")
    assert (told.status, told.body) == (200, b"the same body")
    assert [fields["authorization"][-15:] for _, fields, _ in seen] == ["token-1-of-many", "token-2-of-many"]


async def posted_form(world: World, reply: bytes) -> tuple[tuple[int, bytes], dict[str, str]]:
    """What comes of a form that is posted to an endpoint that says *reply* and leaves, and the fields that it got."""
    got: dict[str, str] = {}

    async def endpoint(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, fields, body = await read_request(reader)
        got.update(fields)
        assert body == b"a=b"
        writer.write(reply)
        await writer.drain()

    there = await world.origin(endpoint, tls=True)
    await world.start()
    assert world.sidecar is not None
    to = Destination(HOST, there.port, True)
    addresses = ("127.0.0.1",)
    told = await asyncio.wait_for(post_form(world.sidecar.pipeline.pool, addresses, to, "/token", b"a=b"), 10)
    assert got["host"] == f"{HOST}:{there.port}"
    return told, got


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("reply", "content"),
    [
        (OK + b"\r\nto the end", b"to the end"),
        (OK + b"Content-Length: 3\r\n\r\nallmore", b"all"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nall\r\n0\r\n\r\n", b"all"),
        (OK + b"Content-Length: 65536\r\n\r\n" + b"x" * 65_536, b"x" * 65_536),
    ],
    ids=["end", "length", "chunks", "large"],
)
async def test_the_answer_of_a_token_endpoint_is_read_to_its_end(world: World, reply: bytes, content: bytes) -> None:
    told, _ = await posted_form(world, reply)
    assert told == (200, content)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (b"", "no answer"),
        (OK + b"A: b", "within a head"),
        (b"nonsense\r\n\r\n", "status line"),
        (OK + b"A: " + b"x" * 70_000 + b"\r\n\r\n", "too large a head"),
        (OK + b"Content-Length: 4\r\n\r\nall", "cut short"),
        (OK + b"Content-Length: 65537\r\n\r\n" + b"x" * 65_537, "too long an answer"),
    ],
    ids=["nothing", "torn", "nonsense", "head", "short", "long"],
)
async def test_an_answer_of_a_token_endpoint_that_is_none(world: World, reply: bytes, why: str) -> None:
    with pytest.raises(ConnectionError, match=why):
        await posted_form(world, reply)


async def test_a_request_is_asked_again_only_once(world: World) -> None:
    endpoint = TokenEndpoint()
    bad = [f"token-{number}-of-many" for number in range(9)]
    there, seen = await start(world, rejecting(*bad), oauth(await endpoint.start(world), "refresh_token"))
    (told,) = await asked_for(world, there.port)
    assert told.status == 401
    assert len(seen) == 2


async def test_a_request_whose_body_came_later_is_not_asked_again(world: World) -> None:
    endpoint = TokenEndpoint()
    url = await endpoint.start(world)
    there, seen = await start(world, rejecting("token-1-of-many"), oauth(url, "refresh_token"))
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "POST", "Expect: 100-continue", "Content-Length: 4"))
    while not there.received:
        await asyncio.sleep(0.01)
    await client.send(b"body")
    assert (await client.response()).status == 401
    assert len(seen) == 1


async def test_a_401_without_a_token_of_ours_is_the_clients(world: World) -> None:
    there, seen = await start(world, lambda *_: answer(b"", "401 Unauthorized"))
    (told,) = await asked_for(world, there.port)
    assert told.status == 401
    assert len(seen) == 1


async def test_a_replaced_refresh_token_counts_from_then_on(world: World) -> None:
    endpoint = TokenEndpoint()
    endpoint.more = {"refresh_token": "refresh-two"}
    url = await endpoint.start(world)
    there, _ = await start(world, rejecting("token-1-of-many"), oauth(url, "refresh_token"))
    await asked_for(world, there.port)
    assert [form["refresh_token"] for form in endpoint.asked] == ["refresh-secret", "refresh-two"]


async def test_without_a_token_nothing_is_sent_and_the_endpoint_is_left_in_peace(world: World) -> None:
    endpoint = TokenEndpoint()
    endpoint.status = "400 Bad Request"
    there, seen = await start(world, ok, oauth(await endpoint.start(world), "refresh_token"))
    for _ in range(2):
        (told,) = await asked_for(world, there.port)
        assert (told.status, told.json["error"]) == (502, "token_grant_failed")
    assert not seen
    assert len(endpoint.asked) == 1
    assert "refresh-secret" not in await log(world)


async def test_a_reload_does_not_buy_a_token_that_is_there(world: World) -> None:
    endpoint = TokenEndpoint()
    secret = oauth(await endpoint.start(world), "refresh_token")
    there, _ = await start(world, ok, secret)
    assert world.sidecar is not None
    await asked_for(world, there.port)
    write_secrets(world, secret, SECRET | {"name": "OTHER", "random": ""})
    assert not world.sidecar.reload()["credentials_error"]
    await asked_for(world, there.port)
    assert len(endpoint.asked) == 1


async def test_a_token_is_renewed_before_it_expires_and_serves_until_then() -> None:
    now = 1000.0
    answers = [(200, 600), (500, 0), (200, 600)]

    async def post(_to: object, _path: str, _form: bytes) -> tuple[int, bytes]:
        status, life = answers.pop(0)
        return status, json.dumps({"access_token": f"token-{len(answers)}", "expires_in": life}).encode()

    token = RenewedToken("KEY", Grant("refresh_token", "https://a.test/token", "refresh-secret"), lambda: now)
    await token.renew(post)
    now += 299
    await token.renew(post)
    assert (token.value, len(answers)) == (b"token-2", 2)
    now += 2
    await token.renew(post)  # fails, and the old one is still good
    assert (token.value, len(answers)) == (b"token-2", 1)
    now += PAUSE_SECONDS + 1
    await token.renew(post)
    assert (token.value, token.known) == (b"token-0", (b"token-0", b"token-2"))
    now += 601
    with pytest.raises(Refusal):
        await token.renew(failing)


async def failing(_to: object, _path: str, _form: bytes) -> tuple[int, bytes]:
    raise ConnectionError


REWRITING = {"request_body_credential_rewrite": True}


async def posted(world: World, port: int, kind: str, body: bytes, *fields: str) -> Response:
    client = await world.tunnel(port)
    await client.send(request(port, "/", "POST", f"Content-Type: {kind}", *fields, body=body))
    return await client.response()


async def test_a_small_body_gets_the_secret_and_its_new_length(world: World) -> None:
    there, seen = await start(world, ok, SECRET | {"value": 'a"\\b-long-one'}, **REWRITING)
    assert (await posted(world, there.port, "application/json", f'{{"k": "{CANONICAL}"}}'.encode())).status == 200
    _, fields, body = seen[0]
    assert json.loads(body) == {"k": 'a"\\b-long-one'}
    assert fields["content-length"] == str(len(body))
    assert "transfer-encoding" not in fields


async def test_a_small_body_that_comes_in_pieces_is_waited_for(world: World) -> None:
    there, seen = await start(world, ok, **REWRITING)
    client = await world.tunnel(there.port)
    whole = request(there.port, "/", "POST", "Content-Type: text/plain", body=f"x {CANONICAL} y".encode())
    for byte in whole:
        await client.send(bytes([byte]))
    assert (await client.response()).status == 200
    assert (seen[0][2], seen[0][1]["content-length"]) == (f"x {VALUE} y".encode(), str(len(VALUE) + 4))


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_where_there_is_no_body_none_is_made(world: World, method: str) -> None:
    there, seen = await start(world, ok, **REWRITING)
    client = await world.tunnel(there.port)
    head = f"{method} / HTTP/1.1\r\nHost: {HOST}:{there.port}\r\nContent-Type: text/plain\r\n\r\n"
    await client.send(head.encode())
    assert (await client.response()).status == 200
    assert not {"content-length", "transfer-encoding"} & seen[0][1].keys()


async def test_a_small_body_for_which_leave_is_asked_is_not_waited_for(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        size = int(await reader.readuntil(b"\r\n"), 16)
        writer.write(answer((await reader.readexactly(size)).replace(VALUE.encode(), b"the secret")))

    there = await world.origin(origin, tls=True)
    write_secrets(world, SECRET)
    await world.start(rest(there.port, **REWRITING))
    client = await world.tunnel(there.port)
    fields = ("Content-Type: text/plain", "Expect: 100-continue", f"Content-Length: {len(CANONICAL)}")
    await client.send(request(there.port, "/", "POST", *fields))
    assert (await client.head())[0] == 100
    await client.send(CANONICAL.encode())
    assert (await client.response()).body == b"the secret"


async def test_a_small_body_that_breaks_off_reaches_nobody(world: World) -> None:
    there = await world.origin(hello)
    write_secrets(world, SECRET)
    await world.start(rest(there.port, **REWRITING))
    client = await world.tunnel(there.port, tls=False)
    fields = ("Content-Type: text/plain", "Content-Length: 9", "Connection: close")
    await client.send(request(there.port, "/", "POST", *fields) + b"half")
    client.writer.write_eof()
    with pytest.raises(ConnectionResetError):
        await client.ended()
    assert there.connections == 0


async def test_a_large_body_is_streamed_while_it_comes(world: World) -> None:
    """The origin has the beginning before the client has sent the end: nothing is gathered."""
    began, seen = asyncio.Event(), bytearray()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head.lower()
        assert b"content-length" not in head.lower()
        while size := int(await reader.readuntil(b"\r\n"), 16):
            seen.extend((await reader.readexactly(size + 2))[:-2])
            began.set()
        await reader.readuntil(b"\r\n")
        writer.write(answer())
        await writer.drain()

    there = await world.origin(origin, tls=True)
    write_secrets(world, SECRET)
    await world.start(rest(there.port, **REWRITING))
    client = await world.tunnel(there.port)
    first, rest_of_it = b"x" * 100_000 + CANONICAL[:9].encode(), CANONICAL[9:].encode() + b" y" * 100_000
    length = f"Content-Length: {len(first + rest_of_it)}"
    await client.send(request(there.port, "/", "POST", "Content-Type: text/plain", length) + first)
    await asyncio.wait_for(began.wait(), 5)
    await client.send(rest_of_it)
    assert (await client.response()).status == 200
    assert bytes(seen) == (first + rest_of_it).replace(CANONICAL.encode(), VALUE.encode())


async def test_a_chunked_body_gets_the_secret(world: World) -> None:
    there, seen = await start(world, ok, **REWRITING)
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "POST", "Content-Type: text/plain", "Transfer-Encoding: chunked"))
    for part in (RANDOM[:7], RANDOM[7:], " and more"):
        await client.send(f"{len(part):x}\r\n{part}\r\n".encode())
    await client.send(b"0\r\nX-Trailer: 1\r\n\r\n")
    assert (await client.response()).status == 200
    assert seen[0][2] == f"{VALUE} and more".encode()


@pytest.mark.parametrize(
    ("kind", "body", "error"),
    [
        ("text/plain", "openshell:resolve:env:UNKNOWN", "credential_injection_failed"),
        ("text/plain", "openshell:resolve:env:OTHER", "credential_endpoint_mismatch"),
        ("image/png", CANONICAL, "invalid_credential_placeholder"),
    ],
)
@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_body_that_cannot_be_rewritten_is_refused(
    world: World, kind: str, body: str, error: str, size: int
) -> None:
    other = {"name": "OTHER", "value": "elsewhere-only", "hosts": ["elsewhere.test"]}
    there, seen = await start(world, ok, SECRET, other, **REWRITING)
    told = await posted(world, there.port, kind, b"." * size + b" " + body.encode())
    assert told.json["error"] == error
    assert not seen  # the origin never has a whole request
    (event,) = [one for one in await world.events() if one["class_uid"] == 4002]
    assert (event["action_id"], event["firewall_rule"]["type"]) == (2, "credentials")


async def test_http_1_0_gets_no_chunks(world: World) -> None:
    there, seen = await start(world, ok, **REWRITING)
    client = await world.tunnel(there.port)
    sent = request(there.port, "/", "POST", "Content-Type: text/plain", body=CANONICAL.encode())
    await client.send(sent.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (await client.response()).status == 200
    assert seen[0][2] == VALUE.encode()
    client = await world.tunnel(there.port)
    large = request(there.port, "/", "POST", "Content-Type: text/plain", body=b"." * 100_000)
    await client.send(large.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (await client.response()).status == 400


async def test_an_endpoint_may_allow_what_is_not_inspected(world: World) -> None:
    there = await world.origin(greet)
    write_secrets(world, SECRET)
    await world.start({"host": HOST, "port": there.port, "tls": "skip", "allow_uninspected_credentials": True})
    client = await connected(world, there.port)
    assert (await client.head())[0] == 200
    assert await client.ended() == b"SSH-2.0-server\r\n"


async def test_secrets_in_websocket_messages(world: World) -> None:
    got: asyncio.Queue[str] = asyncio.Queue()

    async def origin(connection: websockets.asyncio.server.ServerConnection) -> None:
        async for message in connection:
            got.put_nowait(str(message))

    context = world.origin_authority.context(HOST)
    async with websockets.asyncio.server.serve(origin, "127.0.0.1", 0, ssl=context) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        write_secrets(world, SECRET | {"value": 'with-a-"quote"'})
        await world.start(rest(port, websocket_credential_rewrite=True))
        assert world.sidecar is not None
        trust = ssl.create_default_context(cafile=world.directory / "tls/ca.pem")
        proxy = f"http://127.0.0.1:{world.sidecar.listeners[0].port}"
        connect = websockets.asyncio.client.connect(f"wss://{HOST}:{port}/", ssl=trust, proxy=proxy)
        async with connect as client:
            await client.send(json.dumps({"op": 2, "token": CANONICAL}))
            assert json.loads(await asyncio.wait_for(got.get(), 5)) == {"op": 2, "token": 'with-a-"quote"'}
            await client.send(f"plain {RANDOM}")
            assert await asyncio.wait_for(got.get(), 5) == 'plain with-a-"quote"'
            await client.send("openshell:resolve:env:UNKNOWN")
            await asyncio.wait_for(client.wait_closed(), 5)
            assert client.close_code == 1008
        async with websockets.asyncio.client.connect(f"wss://{HOST}:{port}/", ssl=trust, proxy=proxy) as client:
            await client.send(CANONICAL.encode())
            await asyncio.wait_for(client.wait_closed(), 5)
            assert client.close_code == 1008
        assert got.empty()


AWS = [
    {"name": name, "value": value, "hosts": [HOST]}
    for name, value in (("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG+bPxRfiCY"),
                        ("AWS_SESSION_TOKEN", "a-session-token"))
]  # fmt: skip


def resigned(line: str, fields: dict[str, str], port: int, service: str, payload: str) -> str:
    """The signature that AWS would compute for what arrived, over the headers that it names (an own reading of the rules)."""
    method, target, _ = line.split(" ")
    path, _, query = target.partition("?")
    told = dict(part.split("=", 1) for part in fields["authorization"].removeprefix("AWS4-HMAC-SHA256 ").split(", "))
    scope = told["Credential"].partition("/")[2]
    names = told["SignedHeaders"].split(";")
    canonical = "\n".join([method, path if service == "s3" else path.replace("%", "%25"), query,
                           *(f"{name}:{fields[name]}" for name in names), "", ";".join(names), payload])  # fmt: skip
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = b"AWS4" + str(AWS[1]["value"]).encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    assert (
        told["Signature"]
        == hmac.digest(key, f"AWS4-HMAC-SHA256\n{fields['x-amz-date']}\n{scope}\n{digest}".encode(), "sha256").hex()
    )
    assert {"host", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token", "x-amz-meta-a"} <= set(names)
    assert told["Credential"].startswith("AKIDEXAMPLE/")
    return scope.partition("/")[2]


@pytest.mark.parametrize(
    ("signing", "service", "told", "payload"),
    [
        ("sigv4", "s3", "", "UNSIGNED-PAYLOAD"),
        ("sigv4", "s3", "digest", "digest"),
        ("sigv4", "bedrock", "", "digest"),
        ("sigv4:body", "s3", "wrong", "digest"),
        ("sigv4:no_body", "bedrock", "", "UNSIGNED-PAYLOAD"),
    ],
)
async def test_a_request_to_aws_is_signed_anew(
    world: World, signing: str, service: str, told: str, payload: str
) -> None:
    there, seen = await start(world, ok, *AWS, credential_signing=signing, signing_service=service)
    body = b"the body" * 9000
    digest = hashlib.sha256(body).hexdigest()
    stands_for = {"digest": digest, "wrong": "0" * 64}
    fields = ["X-Amz-Meta-A: two  blanks", "X-Amz-Date: 20200101T000000Z", "X-Amz-Security-Token: openshell:resolve:env:AWS_SESSION_TOKEN",
              "Authorization: AWS4-HMAC-SHA256 Credential=openshell:resolve:env:AWS_ACCESS_KEY_ID/20200101/eu-west-1/s3/aws4_request, "
              "SignedHeaders=host, Signature=00"]  # fmt: skip
    if told:
        fields.append(f"X-Amz-Content-Sha256: {stands_for[told]}")
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/a%20b?x=1&y=", "PUT", *fields, body=body))
    assert (await client.response()).status == 200
    line, got, sent = seen[0]
    assert sent == body
    assert got["x-amz-content-sha256"] == stands_for.get(payload, payload)
    got["x-amz-meta-a"] = "two blanks"
    assert resigned(line, got, there.port, service, got["x-amz-content-sha256"]) == f"eu-west-1/{service}/aws4_request"


async def test_an_upload_whose_chunks_are_signed_is_refused(world: World) -> None:
    there, seen = await start(world, ok, *AWS, credential_signing="sigv4", signing_service="s3")
    client = await world.tunnel(there.port)
    await client.send(
        request(there.port, "/", "PUT", "X-Amz-Content-Sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD", body=b"x")
    )
    assert (await client.response()).status == 400
    assert not seen


async def test_a_signed_request_is_not_asked_again_and_carries_a_token_that_is_in_date(world: World) -> None:
    endpoint = TokenEndpoint()
    token = oauth(await endpoint.start(world), "refresh_token") | {"header": "X-Token", "format": "{value}"}
    there, seen = await start(
        world, lambda *_: answer(b"", "401 Unauthorized"), *AWS, token, credential_signing="sigv4", signing_service="s3"
    )
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/a"))
    assert (await client.response()).status == 401
    assert [(line, fields["x-token"]) for line, fields, _ in seen] == [("GET /a HTTP/1.1", "token-1-of-many")]


@pytest.mark.parametrize(
    ("fields", "keys", "scope", "moment", "signature"),
    [
        # The test suite of Signature Version 4, get-vanilla; and "GET Object" of the S3 API reference.
        ([(b"Host", b"example.amazonaws.com")], "AKIDEXAMPLE wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "/ service",
         "20150830T123600Z", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ([(b"Host", b"examplebucket.s3.amazonaws.com"), (b"Range", b"bytes=0-9"),
          (b"x-amz-content-sha256", hashlib.sha256(b"").hexdigest().encode())],
         "AKIAIOSFODNN7EXAMPLE wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "/test.txt s3",
         "20130524T000000Z", "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
    ],
)  # fmt: skip
def test_signatures_are_those_that_aws_publishes(
    fields: list[tuple[bytes, bytes]], keys: str, scope: str, moment: str, signature: str
) -> None:
    path, service = scope.split(" ")
    covered = [*fields, (b"X-Amz-Date", moment.encode())]
    empty = hashlib.sha256(b"").hexdigest()
    made = authorization("GET", path, covered, empty, Keys(*keys.split(" ")), service, "us-east-1", moment)
    assert made[1].decode().endswith(f"Signature={signature}")


def test_one_endpoint_alone_does_not_allow_what_is_not_inspected() -> None:
    one = {"host": HOST, "port": 443, "tls": "skip"}
    for other, allowed in (({"allow_uninspected_credentials": True}, True), ({}, False)):
        endpoints = [one | {"allow_uninspected_credentials": True}, one | other]
        policies = {str(number): {"endpoints": [endpoint]} for number, endpoint in enumerate(endpoints)}
        policy = load_policy(json.dumps({"version": 1, "network_policies": policies}))
        assert policy.decide(Intent(HOST, 443)).credentials.allow_uninspected is allowed


def test_the_endpoint_that_governs_a_path_says_what_is_rewritten() -> None:
    posts = [{"allow": {"method": "POST", "path": "/**"}}]  # so that a GET is admitted by the broader endpoint
    endpoints = [{**rest(443, "", path="/a/**", **REWRITING), "rules": posts}, rest(443)]
    policy = load_policy(json.dumps({"version": 1, "network_policies": {"p": {"endpoints": endpoints}}}))
    told = [policy.decide(Intent(HOST, 443, Request("GET", path, {}))) for path in ("/a/x", "/b")]
    assert [(one.allowed, one.credentials.body_rewrite) for one in told] == [(True, True), (True, False)]


async def test_an_endpoint_bound_to_a_provider_takes_its_secrets_only(world: World) -> None:
    one = SECRET | {"providers": ["github", "copilot"]}
    other = {"name": "OTHER", "value": "of-the-other-one", "hosts": [HOST], "providers": ["gitlab"]}
    put = {"name": "PUT", "value": "put-in-anyway", "hosts": [HOST], "header": "X-Put"}
    there, seen = await start(world, ok, one, other, put, credential_binding={"provider": "github"})
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/", "GET", f"X-Key: {CANONICAL}", "X-Put: mine"))
    assert (await client.response()).status == 200
    assert (seen[0][1]["x-key"], seen[0][1]["x-put"]) == (VALUE, "mine")
    await client.send(request(there.port, "/", "GET", "X-Key: openshell:resolve:env:OTHER"))
    refused = await client.response()
    assert (refused.status, refused.json["error"]) == (403, "credential_endpoint_mismatch")
    assert len(seen) == 1


async def test_of_several_places_each_has_its_own_ports_and_paths(world: World) -> None:
    there, seen = await start(world, ok, {"name": "NONE", "value": "none-at-all", "hosts": ["elsewhere.test"]})
    places = [
        {"hosts": [HOST], "ports": [there.port], "paths": ["/a/**"]},
        {"hosts": [HOST], "ports": [1], "paths": ["/b"]},
    ]
    write_secrets(world, {"name": "KEY", "value": VALUE, "places": places})
    world.reload(rest(there.port))
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/a/x", "GET", f"X-Key: {CANONICAL}"))
    assert (await client.response()).status == 200
    await client.send(request(there.port, "/b", "GET", f"X-Key: {CANONICAL}"))
    assert (await client.response()).json["error"] == "credential_endpoint_mismatch"
    assert [fields["x-key"] for _, fields, _ in seen] == [VALUE]


async def test_a_compressed_answer_that_is_cut_short_is_no_short_success(world: World) -> None:
    whole = gzip.compress(b"a success" * 100, mtime=0)
    for cut in (whole[:-1], whole[: len(whole) // 2], whole[:5], whole + whole[:7]):
        with pytest.raises((asyncio.IncompleteReadError, OSError)):
            await compressed(world, "gzip", cut)
        await world.stop()
    assert (await compressed(world, "gzip", b"")).body == b""


async def told_by_the_sidecar(
    world: World, port: int, kind: str, body: bytes, name: str = "localhost", method: str = "POST"
) -> Response:
    client = await world.client()
    await client.send(f"CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}:{port}\r\n\r\n".encode())
    assert (await client.head())[0] == 200
    await client.start_tls(ssl.create_default_context(cafile=world.directory / "tls/ca.pem"), name)
    lines = [
        f"{method} /token HTTP/1.1", f"Host: {name}:{port}", f"Content-Type: {kind}", f"Content-Length: {len(body)}",
    ]  # fmt: skip
    await client.send(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
    return await client.response()


async def selling(
    world: World, grant: str = "refresh_token", life: int = 3600, **more: str
) -> tuple[TokenEndpoint, int, int, Seen]:
    """A token endpoint which the policy allows as well, its port, that of a destination, and what this has seen."""
    endpoint = TokenEndpoint(life)
    url = await endpoint.start(world)
    sold = int(url.rpartition(":")[2].partition("/")[0])
    secret = oauth(url, grant, **more) | {"random": RANDOM, "header": "", "format": ""}
    there, seen = await start(world, ok, secret)
    world.reload(rest(there.port), rest(sold, host="localhost"))
    return endpoint, sold, there.port, seen


def as_form(**fields: str) -> tuple[str, bytes]:
    return "application/x-www-form-urlencoded; charset=utf-8", urlencode(fields).encode()


def as_json(**fields: str) -> tuple[str, bytes]:
    return "application/json", json.dumps(fields).encode()


@pytest.mark.parametrize("written", [as_form, as_json])
@pytest.mark.parametrize("placeholder", [CANONICAL, RANDOM, "rt-OPENSHELL-RESOLVE-ENV-KEY"])
async def test_a_client_that_renews_its_token_by_itself_gets_the_placeholder(
    world: World, written: Callable[..., tuple[str, bytes]], placeholder: str
) -> None:
    endpoint, sold, port, seen = await selling(world, scope="a b")
    body = written(grant_type="refresh_token", client_id="the-client's-own", refresh_token=placeholder)
    told = await told_by_the_sidecar(world, sold, *body)
    assert told.status == 200
    assert told.headers["content-type"] == "application/json"
    expected = {"access_token": placeholder, "refresh_token": placeholder, "token_type": "Bearer", "scope": "a b"}
    assert told.json == expected | {"expires_in": told.json["expires_in"]}
    assert 3500 < told.json["expires_in"] <= 3600
    assert [form["refresh_token"] for form in endpoint.asked] == ["refresh-secret"]
    client = await world.tunnel(port)
    await client.send(request(port, "/", "GET", f"Authorization: Bearer {told.json['access_token']}"))
    assert (await client.response()).status == 200
    assert seen[0][1]["authorization"] == "Bearer token-1-of-many"
    assert len(endpoint.asked) == 1
    written_log = await log(world)
    assert "refresh-secret" not in written_log
    assert "token-1-of-many" not in written_log
    line = next(json.loads(one) for one in written_log.splitlines() if "POST" in one and "/token" in one)
    assert (line["action_id"], line["firewall_rule"]["type"]) == (1, "credentials")


async def test_the_token_endpoint_is_asked_where_the_placeholder_is_not_its_own(world: World) -> None:
    endpoint, sold, _, _ = await selling(world)
    for fields in (
        {"refresh_token": "of-the-agent's-own"},
        {"refresh_token": "openshell:resolve:env:NONE"},
        {"a": CANONICAL},
    ):
        assert (await told_by_the_sidecar(world, sold, *as_form(**fields))).json["access_token"].startswith("token-")
    assert [form.get("refresh_token") for form in endpoint.asked] == [
        "of-the-agent's-own",
        "openshell:resolve:env:NONE",
        None,
    ]
    for body in (b"[1]", b"\xff", b"{"):
        assert (await told_by_the_sidecar(world, sold, "application/json", body)).status == 200


async def test_a_token_endpoint_whose_name_does_not_exist_is_said_to_the_client(world: World) -> None:
    there, seen = await start(world, ok, oauth("https://no-such-host.invalid/token", "refresh_token"))
    (told,) = await asked_for(world, there.port)
    assert (told.status, told.json["error"]) == (502, "token_grant_failed")
    assert not seen


@pytest.mark.parametrize("other", ["static", "bought elsewhere"])
async def test_only_its_own_secret_buys_at_a_token_endpoint(world: World, other: str) -> None:
    endpoint = TokenEndpoint()
    url = await endpoint.start(world)
    own = oauth(url, "refresh_token") | {"header": "", "format": ""}
    more = SECRET | {"name": "OTHER", "random": ""}
    if other != "static":
        more |= {"oauth": {"grant": "refresh_token", "token_url": url + "/other"}}
    there, _ = await start(world, ok, own, more)
    sold = int(url.rpartition(":")[2].partition("/")[0])
    world.reload(rest(there.port), rest(sold, host="localhost"))
    told = await told_by_the_sidecar(world, sold, *as_form(refresh_token="openshell:resolve:env:OTHER"))
    assert told.json["access_token"] == "token-1-of-many"
    assert endpoint.asked == [{"refresh_token": "openshell:resolve:env:OTHER"}]


async def test_a_token_that_cannot_be_bought_is_said_to_the_client(world: World) -> None:
    endpoint, sold, _, _ = await selling(world)
    endpoint.status = "400 Bad Request"
    told = await told_by_the_sidecar(world, sold, *as_form(refresh_token=CANONICAL))
    assert (told.status, told.json["error"]) == (502, "token_grant_failed")
