# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Secrets over HTTP/2: put in for the destinations they are bound to, seen nowhere else; as over HTTP/1.1."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
from typing import Any

import pytest
from h2.errors import ErrorCodes
from hpack import NeverIndexedHeaderTuple
from http2_peer import Peer, Serve, Two, fill, head
from loopback import HOST, SECONDS
from test_credentials import (
    AWS,
    CANONICAL,
    RANDOM,
    SECRET,
    VALUE,
    TokenEndpoint,
    oauth,
    resigned,
    selling,
    write_secrets,
)

JSON = (b"content-type", b"application/json")
SHORT = {"name": "KEY", "value": VALUE, "hosts": [HOST], "header": "X-Key"}  # its placeholder is longer than itself


def replying(*fields: tuple[bytes, bytes], body: bytes = b"ok", status: bytes = b"200") -> Serve:
    """An origin that answers all the same."""

    async def serve(peer: Peer, stream: int) -> None:
        await peer.over(stream)
        if stream in peer.ended:
            peer.core.send_headers(stream, [(b":status", status), *fields])
            await peer.send(stream, body)

    return serve


async def repeat(peer: Peer, stream: int) -> None:
    """Answer with the request: its head in the answer's, its body in the body and in trailers."""
    await peer.over(stream)
    if stream not in peer.ended:
        return
    got, body = peer.heads[stream][0], bytes(peer.bodies.get(stream, b""))
    told = json.dumps({name.decode(): value.decode() for name, value in got.items()}).encode()
    peer.core.send_headers(stream, [(b":status", b"103"), (b"link", told)])
    length = (b"content-length", b"%d" % (len(told) + len(body)))
    peer.core.send_headers(stream, [(b":status", b"200"), (b"x-told", told), length])
    await peer.send(stream, told + body, end=False)
    peer.core.send_headers(stream, [(b"grpc-message", told)], end_stream=True)
    peer.flush()


class Asked:
    """A client, the origin's side of its connection, and one request of it."""

    def __init__(self, two: Two) -> None:
        self.two = two
        self.there: list[Peer] = []

    async def start(self, serve: Serve = repeat, *secrets: dict[str, Any], **endpoint: Any) -> Asked:
        write_secrets(self.two.world, *secrets or (SECRET,))
        self.port = await self.two.start(serve, self.there, **endpoint)
        self.client = await self.two.peer(self.port)
        return self

    async def ask(
        self,
        path: str = "/",
        method: bytes = b"GET",
        *fields: tuple[bytes, bytes],
        body: bytes = b"",
        expect: int = 200,
    ) -> int:
        client = self.client
        stream = client.ask(head(self.port, path.encode(), method, *fields), end=not body)
        if body:
            await client.send(stream, body)
        await client.over(stream)
        assert int(client.heads[stream][-1][b":status"]) == expect, client.bodies.get(stream)
        return stream

    def seen(self, stream: int = 1) -> dict[bytes, bytes]:
        return self.there[0].heads[stream][0]


def never_indexed(field: tuple[bytes, bytes]) -> bool:
    return isinstance(field, NeverIndexedHeaderTuple)


@pytest.fixture
def asked(two: Two) -> Asked:
    return Asked(two)


async def test_a_placeholder_becomes_the_secret_at_its_destination_only(asked: Asked) -> None:
    await asked.start()
    basic = b"Basic " + base64.b64encode(f"user:{CANONICAL}".encode())
    await asked.ask(
        f"/a{CANONICAL}?k={RANDOM}", b"GET", (b"x-key", RANDOM.encode()), (b"authorization", basic), (b"x-plain", b"1")
    )
    got = asked.seen()
    assert got[b":path"] == f"/a{VALUE}?k={VALUE}".encode()
    assert got[b":authority"] == f"{HOST}:{asked.port}".encode()
    assert got[b"x-key"] == VALUE.encode()
    assert base64.b64decode(got[b"authorization"][6:]) == f"user:{VALUE}".encode()
    assert got[b"accept-encoding"] == b"identity"
    assert not {b"host", b"transfer-encoding", b"connection"} & got.keys()
    hidden = [name for name, _ in filter(never_indexed, asked.there[0].fields[1])]
    assert hidden == [b":path", b"x-key", b"authorization", b"accept-encoding"]
    await asked.two.world.stop()
    written = asked.two.world.log.getvalue()
    assert "/a[CREDENTIAL]" in written
    for never in (VALUE, RANDOM, CANONICAL):
        assert never not in written


async def test_the_destination_decides_what_is_injected(asked: Asked) -> None:
    await asked.start(repeat, SECRET | {"header": "Authorization", "format": "Bearer {value}"})
    await asked.ask("/", b"GET", (b"authorization", b"Bearer the-client's-own"))
    assert asked.seen()[b"authorization"] == f"Bearer {VALUE}".encode()


@pytest.mark.parametrize(("secret", "stand_in"), [(SECRET | {"header": "X-Key"}, RANDOM), (SHORT, CANONICAL)])
async def test_a_secret_that_comes_back_is_masked_wherever_it_is(
    asked: Asked, secret: dict[str, Any], stand_in: str
) -> None:
    await asked.start(repeat, secret)
    client, stream = asked.client, await asked.ask("/", b"POST", body=b"the body")
    early, final = client.heads[stream]
    body, trailers = bytes(client.bodies[stream]), client.trailers[stream]
    for where in (early[b"link"], final[b"x-told"], body, trailers[b"grpc-message"]):
        assert VALUE.encode() not in where
        assert stand_in.encode() in where
    assert body.endswith(b"the body")
    assert (b"content-length" in final) == (len(stand_in) == len(VALUE))
    assert stream in client.ended


async def test_a_secret_across_frames_is_masked_and_nothing_waits_that_need_not(asked: Asked) -> None:
    go = asyncio.Event()

    async def pieces(peer: Peer, stream: int) -> None:
        peer.core.send_headers(stream, [(b":status", b"200")])
        for piece in (b"data: zero\n\n", b"data: one " + VALUE[:9].encode()):
            peer.core.send_data(stream, piece)
        peer.flush()
        await go.wait()
        peer.core.send_data(stream, VALUE[9:].encode() + b" two " + VALUE[:5].encode(), end_stream=True)
        peer.flush()

    await asked.start(pieces)
    client = asked.client
    stream = client.ask(head(asked.port))
    await client.until(lambda: client.bodies.get(stream) == b"data: zero\n\ndata: one ")
    go.set()
    await client.over(stream)
    assert client.bodies[stream] == f"data: zero\n\ndata: one {RANDOM} two {VALUE[:5]}".encode()


async def test_an_answer_that_is_compressed_all_the_same_is_searched(asked: Asked) -> None:
    await asked.start(replying((b"content-encoding", b"gzip"), body=gzip.compress(VALUE.encode(), mtime=0)))
    stream = await asked.ask()
    assert asked.client.bodies[stream] == RANDOM.encode()
    assert b"content-encoding" not in asked.client.heads[stream][0]


@pytest.mark.parametrize("coding", [(b"content-encoding", b"br"), (b"grpc-encoding", b"gzip")])
async def test_an_answer_that_cannot_be_searched_is_refused(asked: Asked, coding: tuple[bytes, bytes]) -> None:
    await asked.start(replying(coding, body=b"\x0b\x02\x80abcde\x03"))
    await asked.ask(expect=502)


async def test_a_grpc_server_is_asked_for_messages_that_can_be_searched(asked: Asked) -> None:
    await asked.start(replying((b"grpc-encoding", b"identity")))
    await asked.ask("/", b"POST", (b"grpc-accept-encoding", b"identity,gzip"))
    assert b"grpc-accept-encoding" not in asked.seen()


async def test_a_bomb_among_compressed_answers_breaks_off(asked: Asked) -> None:
    await asked.start(replying((b"content-encoding", b"gzip"), body=gzip.compress(bytes(64 * 1024 * 1024), 9, mtime=0)))
    client = asked.client
    stream = client.ask(head(asked.port))
    await client.over(stream)
    assert client.resets == {stream: ErrorCodes.INTERNAL_ERROR}
    assert len(client.bodies.get(stream, b"")) < 33 * 1024 * 1024


async def test_a_compressed_answer_is_inflated_as_it_is_read_and_no_sooner(asked: Asked) -> None:
    """What waits for the client counts in the destination's windows as it came, and its inflated form is not there."""
    piece = gzip.compress(bytes(1024 * 1024), 9, mtime=0)
    sent = 0

    async def much(peer: Peer, stream: int) -> None:
        nonlocal sent
        peer.core.send_headers(stream, [(b":status", b"200"), (b"content-encoding", b"gzip")])
        while min(peer.core.local_flow_control_window(stream), 16_384) >= len(piece):
            peer.core.send_data(stream, piece)
            sent += len(piece)
        peer.flush()

    await asked.start(much)
    client = asked.client
    client.acknowledge = False
    stream = client.ask(head(asked.port))
    await client.until(lambda: len(client.bodies.get(stream, b"")) == 65_535)
    assert sent > 1024 * 1024  # a gigabyte, inflated
    (connection,) = asked.two.world.sidecar.pipeline.pool.sites._sites.values()  # type: ignore[union-attr]
    (side,) = connection.connections[0].streams.values()
    assert side.to is not None
    assert len(side.to.piece) + sum(len(data) for data, _ in side.to.queue) < 4 * 1024 * 1024


async def test_an_answer_to_head_keeps_what_it_says_of_its_content(asked: Asked) -> None:
    async def headed(peer: Peer, stream: int) -> None:
        fields = [(b"content-length", b"9"), (b"content-encoding", b"br")]
        peer.core.send_headers(stream, [(b":status", b"200"), *fields], end_stream=True)
        peer.flush()

    await asked.start(headed, SHORT)
    stream = await asked.ask("/", b"HEAD")
    told = asked.client.heads[stream][0]
    assert (told[b"content-length"], told[b"content-encoding"]) == (b"9", b"br")


@pytest.mark.parametrize(
    ("field", "status", "error"),
    [
        ((b"x-key", b"openshell:resolve:env:OTHER"), 403, "credential_endpoint_mismatch"),
        ((b"x-key", b"openshell:resolve:env:NONE"), 500, "credential_injection_failed"),
        ((b"x-key", b"a b openshell:resolve:env:"), 400, "invalid_credential_placeholder"),
    ],
)
async def test_what_cannot_be_resolved_reaches_nobody(
    asked: Asked, field: tuple[bytes, bytes], status: int, error: str
) -> None:
    await asked.start(repeat, SECRET, {"name": "OTHER", "value": "elsewhere-only", "hosts": ["elsewhere.test"]})
    stream = await asked.ask("/", b"GET", field, expect=status)
    assert asked.client.json(stream)["error"] == error
    assert not asked.there[0].heads


# Bodies.


@pytest.mark.parametrize("size", [0, 70_000])  # one that is changed as a whole, and one as it passes
async def test_a_body_is_rewritten_where_the_endpoint_asks_for_it(asked: Asked, size: int) -> None:
    await asked.start(repeat, SHORT, request_body_credential_rewrite=True)
    body = json.dumps({"key": CANONICAL, "x": "y" * size, "last": CANONICAL}).encode()
    length = (b"content-length", b"%d" % len(body))
    await asked.ask("/", b"POST", JSON, length, body=body)
    there = asked.there[0]
    expected = body.replace(CANONICAL.encode(), VALUE.encode())
    assert there.bodies[1] == expected
    assert there.heads[1][0].get(b"content-length") == (None if size else b"%d" % len(expected))


async def test_a_body_of_unknown_length_is_rewritten_as_it_passes(asked: Asked) -> None:
    await asked.start(repeat, request_body_credential_rewrite=True)
    client = asked.client
    stream = client.ask(head(asked.port, b"/", b"POST", JSON), end=False)
    await client.send(stream, b'{"a": "' + CANONICAL[:9].encode(), end=False)
    await client.send(stream, CANONICAL[9:].encode() + b'", "b": "', end=False)
    async with asyncio.timeout(SECONDS):
        while not asked.there or VALUE.encode() not in asked.there[0].bodies.get(1, b""):
            await asyncio.sleep(0)
    await client.send(stream, b'end"}')
    await client.over(stream)
    assert asked.there[0].bodies[1] == f'{{"a": "{VALUE}", "b": "end"}}'.encode()


@pytest.mark.parametrize("size", [0, 70_000])
async def test_a_body_that_cannot_be_rewritten_never_ends_well_at_the_destination(asked: Asked, size: int) -> None:
    await asked.start(repeat, request_body_credential_rewrite=True)
    body = json.dumps({"x": "y" * size, "key": "openshell:resolve:env:NONE"}).encode()
    stream = await asked.ask("/", b"POST", JSON, (b"content-length", b"%d" % len(body)), body=body, expect=500)
    assert asked.client.json(stream)["error"] == "credential_injection_failed"
    assert all(not peer.ended for peer in asked.there)


async def test_a_body_passes_as_it_is_where_the_endpoint_does_not_ask(asked: Asked) -> None:
    await asked.start()
    await asked.ask("/", b"POST", JSON, body=CANONICAL.encode())
    assert asked.there[0].bodies[1] == CANONICAL.encode()


async def test_a_rewritten_body_is_streamed_with_back_pressure(asked: Asked) -> None:
    async def stands(peer: Peer, stream: int) -> None:
        peer.acknowledge = False

    await asked.start(stands, request_body_credential_rewrite=True)
    client = asked.client
    stream = client.ask(head(asked.port, b"/", b"POST", JSON), end=False)
    await client.until(lambda: client.core.local_flow_control_window(stream) > 65_535)
    fill(client, stream)
    async with asyncio.timeout(SECONDS):
        while not asked.there or len(asked.there[0].bodies.get(1, b"")) < 65_535:
            await asyncio.sleep(0)
    assert client.core.local_flow_control_window(stream) <= 65_535 * 2


# Tokens that expire, AWS.


def rejecting(*bad: str) -> Serve:
    async def serve(peer: Peer, stream: int) -> None:
        await peer.over(stream)
        if stream in peer.ended:
            token = peer.heads[stream][0][b"authorization"].decode().removeprefix("Bearer ")
            peer.core.send_headers(stream, [(b":status", b"401" if token in bad else b"200")])
            await peer.send(stream, bytes(peer.bodies.get(stream, b"")) + b"!")

    return serve


@pytest.mark.parametrize(("size", "status"), [(0, 200), (65_536, 200), (65_537, 401)])
async def test_a_refused_token_is_replaced_once_and_a_small_request_asked_again(
    asked: Asked, size: int, status: int
) -> None:
    endpoint = TokenEndpoint()
    url = await endpoint.start(asked.two.world)
    await asked.start(rejecting("token-1-of-many"), oauth(url, "refresh_token"))
    stream = await asked.ask("/", b"POST", body=bytes(size), expect=status)
    assert asked.client.bodies[stream] == bytes(size) + b"!"
    tokens = [heads[0][b"authorization"][-15:] for heads in asked.there[0].heads.values()]
    assert tokens == [b"token-1-of-many", b"token-2-of-many"][: 1 + (status == 200)]


async def test_a_request_is_asked_again_only_once(asked: Asked) -> None:
    endpoint = TokenEndpoint()
    url = await endpoint.start(asked.two.world)
    await asked.start(rejecting(*[f"token-{n}-of-many" for n in range(9)]), oauth(url, "refresh_token"))
    await asked.ask(expect=401)
    assert len(asked.there[0].heads) == 2


async def test_a_401_comes_whole_where_there_is_no_new_token(asked: Asked) -> None:
    endpoint, bad = TokenEndpoint(), set[str]()
    url = await endpoint.start(asked.two.world)

    async def serve(peer: Peer, stream: int) -> None:
        await rejecting(*bad)(peer, stream)

    await asked.start(serve, oauth(url, "refresh_token"))
    await asked.ask()
    bad.add("token-1-of-many")
    endpoint.status = "400 Bad Request"
    stream = await asked.ask("/", b"POST", body=b"why", expect=401)
    assert (bytes(asked.client.bodies[stream]), stream in asked.client.ended) == (b"why!", True)
    assert len(endpoint.asked) == 2


async def test_a_401_without_a_token_of_ours_is_the_clients(asked: Asked) -> None:
    await asked.start(replying(body=b"who?", status=b"401"))
    stream = await asked.ask(expect=401)
    assert asked.client.bodies[stream] == b"who?"
    assert len(asked.there[0].heads) == 1


@pytest.mark.parametrize("told", [True, False])  # of the body's length
async def test_a_request_to_aws_is_signed_anew(asked: Asked, told: bool) -> None:
    await asked.start(replying(), *AWS, credential_signing="sigv4:body", signing_service="bedrock")
    body = b"the body" * 300_000  # more than a window
    length = [(b"content-length", b"%d" % len(body))] if told else []
    await asked.ask("/a%20b?x=1&y=", b"PUT", (b"x-amz-meta-a", b"1"), *length, body=body)
    there = asked.there[0]
    assert there.bodies[1] == body
    got = {name.decode(): value.decode() for name, value in there.heads[1][0].items()}
    assert got["x-amz-content-sha256"] == hashlib.sha256(body).hexdigest()
    got["host"] = got[":authority"]
    line = f"PUT {got[':path']} HTTP/1.1"
    resigned(line, got, asked.port, "bedrock", got["x-amz-content-sha256"])


async def test_a_client_that_renews_a_token_of_ours_is_answered_here(two: Two) -> None:
    """The place is asked by nobody but us, and what buys the token does not come back."""
    endpoint, sold, _, _ = await selling(two.world)
    client = await two.world.client()
    await client.send(f"CONNECT localhost:{sold} HTTP/1.1\r\nHost: localhost:{sold}\r\n\r\n".encode())
    assert (await client.head())[0] == 200
    peer = await two.speak(client, "localhost")
    form = (b"content-type", b"application/x-www-form-urlencoded")
    stream = peer.ask(head(sold, b"/token", b"POST", form, authority=f"localhost:{sold}".encode()), end=False)
    await peer.send(stream, f"grant_type=refresh_token&refresh_token={CANONICAL}".encode())
    await peer.over(stream)
    assert peer.heads[stream][0][b":status"] == b"200"
    assert peer.json(stream)["access_token"] == CANONICAL
    assert [form["refresh_token"] for form in endpoint.asked] == ["refresh-secret"]
