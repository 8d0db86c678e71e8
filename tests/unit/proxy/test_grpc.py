# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""gRPC through the interception: the real client and the real server, and what they see of each other."""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from loopback import HOST, World, hello, rest
from test_credentials import write_secrets

BIG = bytes(range(256)) * 32_768  # 8 MiB
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
SECONDS = 20


class Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Methods on bytes: what each does is in its name."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.told: list[str] = []

    def service(self, details: Any) -> Any:
        return {
            "/t.T/Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "/t.T/Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "/t.T/Hang": grpc.unary_unary_rpc_method_handler(self.hang),
            "/t.T/WhoAmI": grpc.unary_unary_rpc_method_handler(self.who_am_i),
            "/t.T/Squeezed": grpc.unary_unary_rpc_method_handler(self.squeezed),
            "/t.T/Many": grpc.unary_stream_rpc_method_handler(lambda asked, _: (asked + b"%d" % n for n in range(100))),
            "/t.T/Join": grpc.stream_unary_rpc_method_handler(lambda asked, _: b",".join(asked)),
            "/t.T/Both": grpc.stream_stream_rpc_method_handler(lambda asked, _: (b"got " + one for one in asked)),
        }.get(details.method)

    def unary(self, asked: bytes, context: Any) -> bytes:
        context.send_initial_metadata([("first", "1")])
        context.set_trailing_metadata([("last-bin", dict(context.invocation_metadata()).get("sent-bin", b"none"))])
        return asked

    def who_am_i(self, asked: bytes, context: Any) -> bytes:
        got = dict(context.invocation_metadata())
        self.told = [got["authorization"], got["x-key"]]
        context.set_trailing_metadata([("told", self.told[0])])
        return " ".join(self.told).encode()

    def squeezed(self, asked: bytes, context: Any) -> bytes:
        context.set_compression(grpc.Compression.Gzip)
        return (dict(context.invocation_metadata())["x-key"] + " ").encode() * 100

    def fail(self, asked: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not naïve")
        raise AssertionError

    def hang(self, asked: bytes, context: Any) -> bytes:
        context.add_callback(self.cancelled.set)
        self.cancelled.wait(SECONDS)
        return b""


class Grpc:
    """A gRPC server as the origin, and a channel to it that leads through the sidecar."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.service = Service()
        self.server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(self.service,), options=OPTIONS)
        pem = world.origin_authority.mint.leaf(HOST, datetime.datetime.now(datetime.UTC))
        self.port = self.server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pem, pem)]))
        self.server.start()

    def channel(self, port: int = 0) -> grpc.aio.Channel:
        assert self.world.sidecar is not None
        proxy = f"http://127.0.0.1:{self.world.sidecar.listeners[0].port}"
        trust = grpc.ssl_channel_credentials((self.world.directory / "tls/ca.pem").read_bytes())
        options = [*OPTIONS, ("grpc.http_proxy", proxy), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(f"{HOST}:{port or self.port}", trust, options=options)

    def direct(self) -> grpc.aio.Channel:
        trust = grpc.ssl_channel_credentials(self.world.origin_authority.mint.certificate_pem)
        options = [*OPTIONS, ("grpc.ssl_target_name_override", HOST), ("grpc.enable_http_proxy", 0)]
        return grpc.aio.secure_channel(f"127.0.0.1:{self.port}", trust, options=options)


@pytest.fixture
def there(world: World) -> Iterator[Grpc]:
    made = Grpc(world)
    yield made
    made.server.stop(0).wait()


@pytest.mark.parametrize("way", ["direct", "through"])
async def test_every_kind_of_call(world: World, there: Grpc, way: str) -> None:
    await world.start(rest(there.port))

    async def asks() -> AsyncIterator[bytes]:
        for one in (b"a", b"b", b"c"):
            yield one

    async with there.direct() if way == "direct" else there.channel() as channel:
        unary = channel.unary_unary("/t.T/Unary")
        call = unary(b"hello", metadata=[("sent-bin", b"\x00\xff")], timeout=SECONDS)
        assert await call == b"hello"
        assert ("first", "1") in list(await call.initial_metadata())
        assert ("last-bin", b"\x00\xff") in list(await call.trailing_metadata())
        assert await unary(BIG, timeout=SECONDS) == BIG
        many = channel.unary_stream("/t.T/Many")(b"n", timeout=SECONDS)
        assert [one async for one in many] == [b"n%d" % n for n in range(100)]
        assert await channel.stream_unary("/t.T/Join")(asks(), timeout=SECONDS) == b"a,b,c"
        both = channel.stream_stream("/t.T/Both")(timeout=SECONDS)
        for one in (b"1", b"2"):  # each answer before the next question
            await both.write(one)
            assert await both.read() == b"got " + one
        await both.done_writing()
        assert await both.read() is grpc.aio.EOF
        assert await asyncio.gather(*(unary(b"%d" % n, timeout=SECONDS) for n in range(300))) == [
            b"%d" % n for n in range(300)
        ]


async def test_a_status_and_its_details_arrive(world: World, there: Grpc) -> None:
    await world.start(rest(there.port))
    async with there.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Fail")(b"", timeout=SECONDS)
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not naïve")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Unknown")(b"", timeout=SECONDS)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_deadline_cancels_the_call_at_the_server(world: World, there: Grpc) -> None:
    await world.start(rest(there.port))
    async with there.channel() as channel:
        await channel.unary_unary("/t.T/Unary")(b"", timeout=SECONDS)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Hang")(b"", timeout=0.3)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert await asyncio.to_thread(there.service.cancelled.wait, SECONDS)


async def test_what_the_policy_refuses_is_permission_denied(world: World, there: Grpc) -> None:
    only = [{"allow": {"method": "POST", "path": "/t.T/Unary"}}]
    await world.start({"host": HOST, "port": there.port, "protocol": "rest", "enforcement": "enforce", "rules": only})
    async with there.channel() as channel:
        assert await channel.unary_unary("/t.T/Unary")(b"x", timeout=SECONDS) == b"x"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Fail")(b"", timeout=SECONDS)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        assert "/t.T/Fail not permitted by policy" in (caught.value.details() or "")
        assert await channel.unary_unary("/t.T/Unary")(b"y", timeout=SECONDS) == b"y"


async def test_an_origin_that_cannot_is_unavailable_and_says_why(world: World, there: Grpc) -> None:
    old = await world.origin(hello, tls=True)
    await world.start(rest(old.port))
    async with there.channel(old.port) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Unary")(b"", timeout=SECONDS)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "speaks HTTP/1.1 only" in (caught.value.details() or "")


async def test_an_origin_that_is_gone_is_unavailable(world: World, there: Grpc) -> None:
    await world.start(rest(there.port))
    there.server.stop(0).wait()
    async with there.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Unary")(b"", timeout=SECONDS)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "upstream_unreachable" in (caught.value.details() or "")


@pytest.mark.parametrize("random", ["", "sk-rand-ABCDEFGHIJKLMNOP"])
async def test_a_credential_is_put_in_and_does_not_come_back(world: World, there: Grpc, random: str) -> None:
    value = "sk-real-0123456789abcdef"
    secret = {"name": "KEY", "value": value, "hosts": [HOST], "header": "Authorization", "format": "Bearer {value}"}
    write_secrets(world, secret | {"random": random} if random else secret)
    await world.start(rest(there.port))
    seen = random or "openshell:resolve:env:KEY"
    async with there.channel() as channel:
        call = channel.unary_unary("/t.T/WhoAmI")(b"", metadata=[("x-key", seen)], timeout=SECONDS)
        hidden = seen[: len(value)].ljust(len(value), "*")  # so that the message is as long as it says
        assert await call == f"Bearer {hidden} {hidden}".encode()
        assert dict(await call.trailing_metadata())["told"] == f"Bearer {seen}"
        assert there.service.told == [f"Bearer {value}", value]
        assert (
            await channel.unary_unary("/t.T/Unary")(b"many bytes" * 100_000, timeout=SECONDS) == b"many bytes" * 100_000
        )


async def test_messages_that_are_compressed_unasked_and_cannot_be_searched_are_refused(
    world: World, there: Grpc
) -> None:
    write_secrets(world, {"name": "KEY", "value": "sk-real-0123456789abcdef", "hosts": [HOST]})
    await world.start(rest(there.port))
    async with there.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Squeezed")(b"", metadata=[("x-key", "1")], timeout=SECONDS)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "is compressed" in (caught.value.details() or "")
