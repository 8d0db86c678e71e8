# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""WebSockets whose messages are judged: real clients and origins through the sidecar, then hostile ones byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import itertools
import ssl
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import aiohttp
import pytest
import websockets
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import HOST, SECONDS, SWITCHING, WEBSOCKET, Client, Origin, World, answer, read_request, reset, rest
from openshell_proxy.policy import Decision, Intent, Policy
from openshell_proxy.policy.model import Middleware
from openshell_proxy.relay.http1 import ProtocolError, parse_request_head, websocket_upgrade
from openshell_proxy.relay.stream import Stream
from openshell_proxy.relay.websocket import Assemblies, FrameWalk, JudgedWebSocket, parse_frame_header
from openshell_proxy.settings import Limits, MessageLimits
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

TEXT, BINARY, CONT, CLOSE, PING = Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.CLOSE, Opcode.PING
SMALL = MessageLimits(text=1000, binary_frame=2000, fragments=8, close=0.3)
FORBIDDEN = b"forbidden"


class Judging:
    """The loaded policy, with a judge of messages: one that holds the word *forbidden* is refused."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.judged: list[bytes] = []

    def decide(self, intent: Intent) -> Decision:
        if intent.request is None or intent.request.method != "WEBSOCKET_TEXT":
            return dataclasses.replace(self.policy.decide(intent), message_policy=True)
        assert intent.request.body is not None
        self.judged.append(intent.request.body)
        allowed = FORBIDDEN not in intent.request.body
        reason = "" if allowed else f"WEBSOCKET_TEXT {intent.request.path} not permitted by policy"
        return Decision(allowed, reason, "test", layer="l7")

    def middlewares(self, host: str) -> tuple[Middleware, ...]:
        return self.policy.middlewares(host)


def judging(world: World) -> Judging:
    """Put a judge of messages into force."""
    assert world.sidecar is not None
    pipeline = world.sidecar.pipeline
    judge = Judging(pipeline.generation.policy)
    pipeline.replace(dataclasses.replace(pipeline.generation, policy=cast(Policy, judge)))
    return judge


@dataclasses.dataclass
class Echo:
    """A WebSocket origin that answers every message with itself, and keeps what it got."""

    port: int = 0
    got: list[str | bytes] = dataclasses.field(default_factory=list)
    extensions: list[str] = dataclasses.field(default_factory=list)
    closed: asyncio.Queue[tuple[int, str]] = dataclasses.field(default_factory=asyncio.Queue)

    async def serve(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.extensions += connection.request.headers.get_all("Sec-WebSocket-Extensions")
        try:
            async for message in connection:
                self.got.append(message)
                await connection.send(message)
        except ConnectionClosed:
            pass
        await connection.wait_closed()
        self.closed.put_nowait((connection.close_code or 0, connection.close_reason or ""))


@contextlib.asynccontextmanager
async def echo(world: World, **options: Any) -> AsyncIterator[Echo]:
    made = Echo()
    context = world.origin_authority.context(HOST)
    async with websockets.serve(made.serve, "127.0.0.1", 0, ssl=context, **options) as server:
        made.port = server.sockets[0].getsockname()[1]
        yield made


def trust(world: World) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=world.directory / "tls/ca.pem")


def proxy(world: World) -> str:
    assert world.sidecar is not None
    return f"http://127.0.0.1:{world.sidecar.listeners[0].port}"


def connect(world: World, port: int, **options: Any) -> websockets.connect:
    return websockets.connect(f"wss://{HOST}:{port}/ws?token=1", proxy=proxy(world), ssl=trust(world), **options)


async def refused(connection: ClientConnection) -> tuple[int, str]:
    """The close frame that ends *connection*."""
    async with asyncio.timeout(SECONDS):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await connection.recv()
    return connection.close_code or 0, connection.close_reason or ""


async def fragments() -> AsyncIterator[str]:
    for part in ("one ", "two ", "thrée"):
        yield part


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_messages_of_the_websockets_client(world: World, compression: str | None) -> None:
    async with echo(world) as there:
        await world.start(rest(there.port))
        judge = judging(world)
        async with connect(world, there.port, compression=compression) as client:
            for message in ("hello", "", b"\x00\xff", "x" * 100_000, "hello"):
                await client.send(message)
                assert await client.recv() == message
            await client.send(fragments())
            assert await client.recv() == "one two thrée"
            await asyncio.wait_for(await client.ping(b"there"), SECONDS)
        assert await asyncio.wait_for(there.closed.get(), SECONDS) == (1000, "")
        assert there.got == ["hello", "", b"\x00\xff", "x" * 100_000, "hello", "one two thrée"]
        assert judge.judged == [m.encode() for m in there.got if isinstance(m, str)]
        assert len(there.extensions) == (compression is not None)


async def test_messages_of_aiohttps_client(world: World) -> None:
    async with echo(world) as there, aiohttp.ClientSession() as session:
        await world.start(rest(there.port))
        judging(world)
        url = f"https://{HOST}:{there.port}/ws"
        async with session.ws_connect(url, proxy=proxy(world), ssl=trust(world), compress=15) as client:
            await client.send_str("hello" * 100)
            assert await client.receive_str(timeout=SECONDS) == "hello" * 100
            await client.send_bytes(b"\x00")
            assert await client.receive_bytes(timeout=SECONDS) == b"\x00"
            await client.send_str("now a forbidden word")
            got = await client.receive(timeout=SECONDS)
            assert (got.type, got.data) == (aiohttp.WSMsgType.CLOSE, 1008)
        assert there.got == ["hello" * 100, b"\x00"]


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_a_refused_message_closes_with_a_reason_and_never_arrives(world: World, compression: str | None) -> None:
    async with echo(world) as there:
        await world.start(rest(there.port))
        judging(world)
        async with connect(world, there.port, compression=compression) as client:
            await client.send("good")
            assert await client.recv() == "good"
            await client.send("a forbidden word")
            await client.send("after")
            code, reason = await refused(client)
        assert (code, reason) == (1008, "policy_denied: WEBSOCKET_TEXT /ws not permitted by policy")
        assert await asyncio.wait_for(there.closed.get(), SECONDS) == (1001, "")
        assert there.got == ["good"]
    events = [one for one in await world.events() if one["class_uid"] == 4002]
    place = f"{HOST}:{there.port}/ws"
    assert [one["message"] for one in events] == [
        f"L7_REQUEST allow_upgrade GET {place}",
        f"L7_REQUEST allow WEBSOCKET_TEXT {place}",
        f"L7_REQUEST deny WEBSOCKET_TEXT {place}",
        f"L7_REQUEST closed GET {place}",
    ]
    assert events[-1]["status_detail"] == f"closed with 1008: {reason}"
    assert events[-1]["traffic"]["bytes_out"] > 0 and events[-1]["traffic"]["bytes_in"] > 0
    for secret in ("good", "forbidden", "token"):
        assert secret not in world.log.getvalue()


@pytest.mark.parametrize(("code", "reason"), [(1000, "done"), (1001, ""), (4321, "our own")])
async def test_close_codes_pass_from_the_client(world: World, code: int, reason: str) -> None:
    async with echo(world) as there:
        await world.start(rest(there.port))
        judging(world)
        async with connect(world, there.port) as client:
            await client.close(code, reason)
            assert client.close_code == code
        assert await asyncio.wait_for(there.closed.get(), SECONDS) == (code, reason)


async def test_close_codes_pass_from_the_origin(world: World) -> None:
    async def serve(connection: ServerConnection) -> None:
        await connection.close(4444, "full")

    async with websockets.serve(serve, "127.0.0.1", 0, ssl=world.origin_authority.context(HOST)) as server:
        port = server.sockets[0].getsockname()[1]
        await world.start(rest(port))
        judging(world)
        async with connect(world, port) as client:
            assert await refused(client) == (4444, "full")


async def test_a_reload_closes_idle_sockets_and_lets_no_message_pass(world: World) -> None:
    async with echo(world) as there:
        await world.start(rest(there.port))
        judging(world)
        async with connect(world, there.port) as client:
            await client.send("before")
            assert await client.recv() == "before"
            started = asyncio.get_running_loop().time()
            judging(world)
            await client.send("after")
            assert await refused(client) == (1012, "the policy was reloaded; connect again")
            assert asyncio.get_running_loop().time() - started < MessageLimits().close
        assert await asyncio.wait_for(there.closed.get(), SECONDS) == (1001, "")
        assert there.got == ["before"]
        assert world.sidecar is not None
        assert world.sidecar.pipeline._watchers == {}


async def test_a_reload_between_decision_and_switch_closes_too(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        judging(world)
        writer.write(SWITCHING)
        got.append(await reader.read())

    got: list[bytes] = []
    client, _ = await opened(world, origin)
    assert await closed_with(client) == 1012
    await asyncio.wait_for(client.reader.read(), SECONDS)


async def test_text_of_4_mib_passes_and_one_byte_more_does_not(world: World) -> None:
    size = MessageLimits().text
    async with echo(world, max_size=None) as there:
        await world.start(rest(there.port))
        judge = judging(world)
        async with connect(world, there.port, max_size=None) as client:
            await client.send("é" * (size // 2))
            assert await client.recv() == "é" * (size // 2)
            await client.send("x" * (size + 1))
            assert await refused(client) == (1009, f"a text message may have {size} bytes")
        assert len(judge.judged) == len(there.got) == 1


# Byte by byte: the client and the origin are ours.

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Recorder:
    """An origin that switches and then keeps every byte it gets."""

    def __init__(self, switching: bytes = SWITCHING) -> None:
        self.switching = switching
        self.got = bytearray()
        self.fields: dict[str, str] = {}
        self.ended = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, self.fields, _ = await read_request(reader)
        writer.write(self.switching)
        while data := await reader.read(65_536):
            self.got += data
        self.ended.set()

    async def frames(self) -> list[tuple[int, bytes]]:
        """(opcode, payload) of all that came until the connection ended."""
        await asyncio.wait_for(self.ended.wait(), SECONDS)
        return unframed(bytes(self.got))


def unframed(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        header = parse_frame_header(data)
        assert header is not None
        payload = data[header.size : header.size + header.length]
        mask = header.mask * (len(payload) // 4 + 1)
        found.append((header.opcode, bytes(a ^ b for a, b in zip(payload, mask, strict=False)) if mask else payload))
        data = data[header.size + header.length :]
    return found


async def opened(world: World, origin: Handler, *fields: str, limits: MessageLimits = SMALL) -> tuple[Client, Origin]:
    """A client and an origin, in clear, that have just become a WebSocket whose messages are judged."""
    there = await world.origin(origin)
    await world.start(rest(there.port), limits=Limits(messages=limits))
    judging(world)
    client = await world.tunnel(there.port, tls=False)
    lines = ["GET /ws HTTP/1.1", f"Host: {HOST}:{there.port}", *WEBSOCKET, *fields, "", ""]
    await client.send("\r\n".join(lines).encode())
    status, client.fields = await client.head()  # type: ignore[attr-defined]
    assert status == 101
    return client, there


async def closed_with(client: Client) -> int:
    """The code of the close frame that comes next."""
    header = await asyncio.wait_for(client.reader.readexactly(2), SECONDS)
    assert header[0] == 0x80 | CLOSE
    payload = await client.reader.readexactly(header[1])
    assert len(payload) <= 125
    return int(struct.unpack("!H", payload[:2])[0])


def frame(opcode: Opcode, data: bytes, *, fin: bool = True, rsv1: bool = False) -> bytes:
    made = bytearray(Frame(opcode, data, fin).serialize(mask=True))
    made[0] |= 0x40 if rsv1 else 0
    return bytes(made)


def deflated(data: bytes) -> bytes:
    engine = zlib.compressobj(9, wbits=-15)
    return (engine.compress(data) + engine.flush(zlib.Z_SYNC_FLUSH))[:-4]


DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (Frame(TEXT, b"x").serialize(mask=False), 1002),
        (Frame(TEXT, b"x" * 200).serialize(mask=False), 1002),
        (Frame(BINARY, b"x").serialize(mask=False), 1002),
        (frame(TEXT, b"x", rsv1=True), 1002),
        (bytes([0x81 | 0x20]) + frame(TEXT, b"x")[1:], 1002),
        (bytes([0x81 | 0x10]) + frame(TEXT, b"x")[1:], 1002),
        (bytes([0x83]) + frame(TEXT, b"x")[1:], 1002),
        (bytes([0x8B]) + frame(TEXT, b"x")[1:], 1002),
        (frame(CONT, b"x"), 1002),
        (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
        (frame(TEXT, b"x", fin=False) + frame(BINARY, b"y"), 1002),
        (frame(BINARY, b"x", fin=False) + frame(TEXT, b"y"), 1002),
        (bytes([PING]) + frame(PING, b"x")[1:], 1002),
        (b"\x89\xfe\x00\x7e" + bytes(4 + 126), 1002),
        (b"\x81\xfe\x00\x01" + bytes(4 + 1), 1002),
        (b"\x81\xff" + struct.pack("!Q", 500) + bytes(4 + 500), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (frame(CLOSE, struct.pack("!H", 1005)), 1002),
        (frame(CLOSE, struct.pack("!H", 1000) + b"\xff"), 1007),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"\xc3", fin=False) + frame(CONT, b"\x28"), 1007),
        (frame(TEXT, b"x" * 1001), 1009),
        (frame(TEXT, b"x" * 600, fin=False) + frame(CONT, b"x" * 401), 1009),
        (b"\x81\xff" + struct.pack("!Q", 1 << 62) + bytes(4), 1009),
        (frame(BINARY, b"x" * 2001), 1009),
        (frame(TEXT, b"", fin=False) + frame(CONT, b"", fin=False) * 8, 1009),
        (frame(TEXT, b"forbidden"), 1008),
        (frame(TEXT, b"forb", fin=False) + frame(PING, b"") + frame(CONT, b"idden"), 1008),
    ],
    ids=lambda value: "frames" if isinstance(value, bytes) else str(value),  # masks are random, names must not be
)  # fmt: skip
async def test_what_is_not_allowed_closes_and_none_of_it_arrives(world: World, sent: bytes, code: int) -> None:
    recorder = Recorder()
    client, _ = await opened(world, recorder)
    await client.send(frame(TEXT, b"first") + sent + frame(TEXT, b"later"))
    assert await closed_with(client) == code
    assert await client.ended() == b""
    client.close()
    arrived = [(opcode, data) for opcode, data in await recorder.frames() if opcode not in (PING, CLOSE)]
    assert arrived in ([(TEXT, b"first")], [(TEXT, b"first"), (BINARY, b"x")])


@pytest.mark.parametrize("sent", [frame(TEXT, b"x", fin=False), frame(TEXT, b"whole")[:-1]], ids=["half", "torn"])
async def test_a_message_that_stalls_is_given_up(world: World, sent: bytes) -> None:
    recorder = Recorder()
    client, _ = await opened(world, recorder, limits=dataclasses.replace(SMALL, idle=0.1))
    await client.send(sent)
    assert await closed_with(client) == 1008
    assert await recorder.frames() == [(CLOSE, struct.pack("!H", 1001))]


async def test_a_message_that_only_trickles_is_given_up(world: World) -> None:
    client, _ = await opened(world, Recorder(), limits=dataclasses.replace(SMALL, total=0.3, fragments=10**9))

    async def trickle() -> None:
        await client.send(frame(TEXT, b"", fin=False))
        while True:
            await client.send(frame(CONT, b"", fin=False))
            await asyncio.sleep(0.01)  # the pace of the client; what is waited for is the close

    trickling = asyncio.create_task(trickle())
    assert await closed_with(client) == 1008
    trickling.cancel()


async def test_only_so_many_messages_are_gathered_at_once(world: World) -> None:
    limits = dataclasses.replace(SMALL, assemblies=1, waiting=1)
    recorder = Recorder()
    first, there = await opened(world, recorder, limits=limits)
    await first.send(frame(TEXT, b"held", fin=False))
    others = [await another(world, there.port) for _ in range(2)]
    for other in others:
        await other.send(frame(TEXT, b"whole"))
    closing = [asyncio.create_task(closed_with(other)) for other in others]
    done, waiting = await asyncio.wait(closing, return_when=asyncio.FIRST_COMPLETED, timeout=SECONDS)
    assert [task.result() for task in done] == [1013]
    assert len(waiting) == 1
    await first.send(frame(CONT, b"", fin=True))
    async with asyncio.timeout(SECONDS):
        while recorder.got.count(b"\x81") < 2:  # the one that waited got its turn
            await asyncio.sleep(0.01)
    for task in waiting:
        task.cancel()


async def another(world: World, port: int) -> Client:
    client = await world.tunnel(port, tls=False)
    await client.send("\r\n".join(["GET /ws HTTP/1.1", f"Host: {HOST}:{port}", *WEBSOCKET, "", ""]).encode())
    assert (await client.head())[0] == 101
    return client


async def test_a_destination_that_takes_nothing_is_given_up(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(SWITCHING)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    client, _ = await opened(world, origin, limits=dataclasses.replace(SMALL, text=1 << 20, write=0.3))
    sending = asyncio.create_task(client.send(frame(TEXT, b"x" * 500_000) * 40))
    assert await closed_with(client) == 1011
    sending.cancel()


SWITCHING_DEFLATE = SWITCHING[:-2] + DEFLATE.encode() + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([b"\x00" * 10_000_000], 1009),
        ([b"x" * 1000, b"y" * 10_000_000], 1009),
        ([b"x" * 1001], 1009),
        ([b"not forb", b"idden"], 1008),
    ],
)
async def test_what_is_compressed_is_judged_and_bounded(world: World, parts: list[bytes], code: int) -> None:
    recorder = Recorder(SWITCHING_DEFLATE)
    client, _ = await opened(world, recorder, DEFLATE)
    assert client.fields["sec-websocket-extensions"] == "permessage-deflate; client_no_context_takeover"  # type: ignore[attr-defined]
    await client.send(frame(TEXT, deflated(b"good"), rsv1=True))
    engine = zlib.compressobj(9, wbits=-15)
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        data = engine.compress(part) + engine.flush(zlib.Z_SYNC_FLUSH)
        await client.send(frame(CONT if index else TEXT, data[:-4] if last else data, fin=last, rsv1=not index))
    assert await closed_with(client) == code
    assert await recorder.frames() == [(TEXT, b"good"), (CLOSE, struct.pack("!H", 1001))]


async def test_deflate_that_is_broken_closes(world: World) -> None:
    client, _ = await opened(world, Recorder(SWITCHING_DEFLATE), DEFLATE)
    await client.send(frame(TEXT, b"\xff\xff\xff", rsv1=True))
    assert await closed_with(client) == 1002


async def test_only_safe_extensions_are_offered(world: World) -> None:
    recorder = Recorder()
    offer = "Sec-WebSocket-Extensions: x-own, permessage-deflate; odd=1, permessage-deflate; client_max_window_bits"
    await opened(world, recorder, offer)
    assert recorder.fields["sec-websocket-extensions"] == "permessage-deflate; client_max_window_bits"


@pytest.mark.parametrize("agreed", ["permessage-deflate; odd=1", "permessage-deflate, permessage-deflate"])
async def test_compression_in_an_unknown_way_is_refused(world: World, agreed: str) -> None:
    there = await world.origin(Recorder(SWITCHING[:-2] + f"Sec-WebSocket-Extensions: {agreed}\r\n\r\n".encode()))
    await world.start(rest(there.port))
    judging(world)
    client = await world.tunnel(there.port, tls=False)
    lines = ["GET /ws HTTP/1.1", f"Host: {HOST}:{there.port}", *WEBSOCKET, DEFLATE, "", ""]
    await client.send("\r\n".join(lines).encode())
    assert (await client.response()).status == 502


@pytest.mark.parametrize("opcode", [CONT, PING])
async def test_only_the_first_frame_of_a_message_says_that_it_is_compressed(world: World, opcode: Opcode) -> None:
    client, _ = await opened(world, Recorder(SWITCHING_DEFLATE), DEFLATE)
    await client.send(frame(TEXT, b"", fin=False) + frame(opcode, b"", rsv1=True))
    assert await closed_with(client) == 1002


async def test_a_compressed_binary_message_passes_as_it_is(world: World) -> None:
    recorder = Recorder(SWITCHING_DEFLATE)
    client, _ = await opened(world, recorder, DEFLATE)
    sent = frame(BINARY, deflated(b"\x00" * 500), rsv1=True, fin=False) + frame(PING, b"") + frame(CONT, b"\x00")
    await client.send(sent + frame(CLOSE, b""))
    client.close()
    await asyncio.wait_for(recorder.ended.wait(), SECONDS)
    assert recorder.got.startswith(frame_start := sent[: len(frame(BINARY, deflated(b"\x00" * 500)))])
    assert frame_start[0] == 0x42
    assert [opcode for opcode, _ in unframed(bytes(recorder.got))] == [BINARY, PING, CONT, CLOSE]


async def test_a_message_is_masked_anew(world: World) -> None:
    recorder = Recorder()
    client, _ = await opened(world, recorder)
    sent = frame(TEXT, b"hello")
    await client.send(sent * 3 + frame(CLOSE, b""))
    client.close()
    assert (await recorder.frames())[:3] == [(TEXT, b"hello")] * 3
    keys = {bytes(recorder.got[at + 2 : at + 6]) for at in (0, 11, 22)}
    assert sent[2:6] not in keys and len(keys) == 3


async def test_a_close_frame_comes_between_two_frames_of_the_origin(world: World) -> None:
    half = asyncio.Event()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(SWITCHING + b"\x82\x04ab")
        await reader.readexactly(6 + 5)
        await half.wait()
        writer.write(b"cd\x82\x01x")
        await reader.read()

    client, _ = await opened(world, origin)
    assert await client.reader.readexactly(4) == b"\x82\x04ab"
    await client.send(frame(TEXT, b"hello") + frame(TEXT, b"forbidden"))
    half.set()
    assert await client.reader.readexactly(2) == b"cd"
    assert await closed_with(client) == 1008


async def test_a_client_that_says_no_more_still_hears_the_rest(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(SWITCHING)
        data = await reader.read()
        writer.write(b"\x82\x01" + bytes([len(data)]))

    client, _ = await opened(world, origin)
    await client.send(frame(TEXT, b"last"))
    client.writer.write_eof()
    assert await client.ended() == b"\x82\x01\x0a"


async def test_the_last_messages_of_a_client_that_left_arrive(world: World) -> None:
    recorder = Recorder()
    client, _ = await opened(world, recorder)
    await client.send(frame(TEXT, b"one") + frame(TEXT, b"two") + frame(CLOSE, b""))
    client.close()
    assert await recorder.frames() == [(TEXT, b"one"), (TEXT, b"two"), (CLOSE, b"")]


async def test_nothing_after_a_close_frame_is_forwarded(world: World) -> None:
    recorder = Recorder()
    client, _ = await opened(world, recorder)
    await client.send(frame(CLOSE, b"") + frame(TEXT, b"late") + frame(BINARY, b"later"))
    client.close()
    assert await recorder.frames() == [(CLOSE, b"")]


async def test_a_reset_of_the_origin_is_no_end_to_the_client(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(SWITCHING + b"\x82\x04ab")
        await go.wait()
        reset(writer)

    go = asyncio.Event()
    client, _ = await opened(world, origin)
    assert await asyncio.wait_for(client.reader.readexactly(4), SECONDS) == b"\x82\x04ab"
    go.set()
    with pytest.raises(ConnectionResetError):
        await client.ended()


@pytest.mark.parametrize("closes", [True, False])
async def test_an_origin_that_never_ends_holds_nothing_of_a_client_that_left(world: World, closes: bool) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(SWITCHING)
        await asyncio.Event().wait()

    client, _ = await opened(world, origin)
    if closes:
        await client.send(frame(CLOSE, b""))
        client.writer.write_eof()
    else:
        reset(client.writer)
    assert world.sidecar is not None
    async with asyncio.timeout(SECONDS):
        while world.sidecar.connections.tasks:
            await asyncio.sleep(0.01)


async def test_no_close_frame_is_put_within_a_frame_of_the_client(world: World) -> None:
    recorder = Recorder()
    client, _ = await opened(world, recorder)
    half = frame(BINARY, b"x" * 100)[:50]
    await client.send(half)
    async with asyncio.timeout(SECONDS):
        while bytes(recorder.got) != half:
            await asyncio.sleep(0.01)
    judging(world)
    assert await closed_with(client) == 1012
    client.close()
    await asyncio.wait_for(recorder.ended.wait(), SECONDS)
    assert bytes(recorder.got) == half


async def test_who_has_said_goodbye_is_not_told_it_again(world: World) -> None:
    sent = Frame(CLOSE, b"").serialize(mask=False)
    recorder = Recorder(SWITCHING + sent)
    client, _ = await opened(world, recorder, limits=dataclasses.replace(SMALL, close=5))
    assert await asyncio.wait_for(client.reader.readexactly(len(sent)), SECONDS) == sent
    await client.send(frame(CLOSE, b""))
    async with asyncio.timeout(SECONDS):
        while not recorder.got:
            await asyncio.sleep(0.01)
    judging(world)
    assert await client.ended() == b""
    client.close()
    assert await recorder.frames() == [(CLOSE, b"")]


@pytest.mark.parametrize("judged", [True, False])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOp="),
        (b"Sec-WebSocket-Accept", b"X"),
        (b"Upgrade: websocket", b"Upgrade: other"),
        (b"Connection: Upgrade\r\n", b""),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: unasked\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: own\r\nSec-WebSocket-Protocol: own\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
    ],
)
async def test_a_bad_answer_to_the_handshake_is_refused(world: World, judged: bool, old: bytes, new: bytes) -> None:
    there = await world.origin(Recorder(SWITCHING.replace(old, new)))
    await world.start(rest(there.port))
    if judged:
        judging(world)
    client = await world.tunnel(there.port, tls=False)
    lines = ["GET /ws HTTP/1.1", f"Host: {HOST}:{there.port}", *WEBSOCKET, "Sec-WebSocket-Protocol: own", "", ""]
    await client.send("\r\n".join(lines).encode())
    assert (await client.response()).status == 502


async def test_an_origin_that_does_not_switch_answers_as_ever(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(answer(b"sign in", "401 Unauthorized"))

    there = await world.origin(origin)
    await world.start(rest(there.port))
    judging(world)
    client = await world.tunnel(there.port, tls=False)
    for _ in range(2):
        lines = ["GET /ws HTTP/1.1", f"Host: {HOST}:{there.port}", *WEBSOCKET, "", ""]
        await client.send("\r\n".join(lines).encode())
        got = await client.response()
        assert (got.status, got.body) == (401, b"sign in")


KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
GOOD = ("GET /ws HTTP/1.1", "Host: x", *WEBSOCKET)


def test_a_whole_handshake_is_known() -> None:
    assert websocket_upgrade(parse_request_head("\r\n".join([*GOOD, "", ""]).encode()))
    assert not websocket_upgrade(parse_request_head(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n"))
    several = "\r\n".join([*GOOD, "", ""]).replace("Upgrade: websocket", "Upgrade: h2c, WebSocket")
    assert websocket_upgrade(parse_request_head(several.encode()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("GET /ws", "POST /ws"),
        ("HTTP/1.1", "HTTP/1.0"),
        ("Connection: Upgrade", "Connection: keep-alive"),
        ("Version: 13", "Version: 8"),
        ("Sec-WebSocket-Version: 13\r\n", ""),
        (KEY, "X: y"),
        (KEY, f"{KEY}\r\n{KEY}"),
        (KEY, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j"),
        (KEY, "Sec-WebSocket-Key: !!!!dGhlIHNhbXBsZSBub25jZQ=="),
        (KEY, f"{KEY}\r\nContent-Length: 5"),
        (KEY, f"{KEY}\r\nTransfer-Encoding: chunked"),
    ],
)
def test_half_a_handshake_is_refused(old: str, new: str) -> None:
    text = "\r\n".join([*GOOD, "", ""])
    assert old in text
    with pytest.raises(ProtocolError):
        websocket_upgrade(parse_request_head(text.replace(old, new, 1).encode()))


async def test_half_a_handshake_reaches_nobody(world: World) -> None:
    recorder = Recorder()
    there = await world.origin(recorder)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port, tls=False)
    lines = ["GET / HTTP/1.1", f"Host: {HOST}:{there.port}", "Connection: Upgrade", "Upgrade: websocket", "", ""]
    await client.send("\r\n".join(lines).encode())
    assert (await client.response()).status == 400
    assert there.connections == 0


BIG = bytes(range(256)) * 131_072  # 32 MiB: more than any buffer on the way


async def test_a_destination_that_does_not_read_holds_the_client_up(world: World) -> None:
    reading = asyncio.Event()
    got = hashlib.sha256()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(SWITCHING)
        await reading.wait()
        while data := await reader.read(1 << 20):
            got.update(data)
        writer.write(b"\x8a\x00")

    client, _ = await opened(world, origin, limits=MessageLimits())
    sent = frame(BINARY, BIG[: len(BIG) // 2], fin=False) + frame(CONT, BIG[len(BIG) // 2 :])
    sending = asyncio.create_task(client.send(sent))
    assert not (await asyncio.wait((sending,), timeout=0.3))[0]
    reading.set()
    await sending
    client.writer.write_eof()
    assert await client.ended() == b"\x8a\x00"
    assert got.digest() == hashlib.sha256(sent).digest()


async def test_a_client_that_does_not_read_holds_the_destination_up(world: World) -> None:
    sent = Frame(BINARY, BIG).serialize(mask=False) + Frame(TEXT, b"end").serialize(mask=False)
    delivered = asyncio.Event()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(SWITCHING + sent)
        await writer.drain()
        delivered.set()
        await reader.read()

    client, _ = await opened(world, origin)
    waiting = asyncio.create_task(delivered.wait())
    assert not (await asyncio.wait((waiting,), timeout=0.3))[0]
    assert await asyncio.wait_for(client.reader.readexactly(len(sent)), SECONDS) == sent
    await asyncio.wait_for(waiting, SECONDS)


def test_bytes_that_pass_unseen_are_never_cut_within_a_header() -> None:
    first, close, late = (
        Frame(*one).serialize(mask=False) for one in ((BINARY, b"x" * 200), (CLOSE, b""), (TEXT, b"y"))
    )
    walk = FrameWalk()
    assert [walk.take(first[:size]) for size in range(4)] == [0, 0, 0, 0]
    assert walk.take(first[:50]) == 50
    assert walk.take(first[50:] + close, to_boundary=True) == len(first) - 50
    assert (walk.left, walk.closed) == (0, False)
    assert walk.take(close + late) == len(close + late)
    assert walk.closed


def test_the_library_is_loaded_with_the_first_socket_only() -> None:
    code = "import sys, openshell_proxy.server; sys.exit('websockets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The relay alone, on streams without sockets: what the outside may set, and every way to cut a message.


class Sink(asyncio.Transport):
    """The far side of a stream: keeps what is written."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream, self.written = stream, bytearray()
        stream.connection_made(self)

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        if not self.stream.lost:
            self.stream.connection_lost(None)

    abort = close

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


async def relayed(
    pieces: list[bytes], judged: list[bytes], deflate: bool = False, **options: Any
) -> list[tuple[int, bytes]]:
    """What the origin gets of *pieces*, given one after the other."""
    client, origin = Stream(), Stream()
    sink = Sink(origin)
    Sink(client)

    async def judge(text: bytes) -> Decision:
        judged.append(text)
        return Decision(True)

    limits = MessageLimits()
    socket = JudgedWebSocket(client, origin, judge, limits, Assemblies(limits), deflate, **options)
    running = asyncio.create_task(socket.run())
    for piece in pieces:
        client.data_received(piece)
        await asyncio.sleep(0)
    client.data_received(b"")
    client.eof_received()
    await asyncio.wait_for(running, SECONDS)
    return unframed(bytes(sink.written))


async def test_binary_can_be_refused_and_text_rewritten() -> None:
    def rewrite(text: bytes) -> bytes | None:
        return None if text == b"stop" else text.upper()

    sent = [frame(TEXT, b"one"), frame(TEXT, b"stop"), frame(TEXT, b"two")]
    assert await relayed(sent, [], rewrite=rewrite) == [(TEXT, b"ONE"), (CLOSE, struct.pack("!H", 1001))]
    sent = [frame(TEXT, b"one"), frame(BINARY, b"secret"), frame(TEXT, b"two")]
    assert await relayed(sent, [], binary_allowed=False) == [(TEXT, b"one"), (CLOSE, struct.pack("!H", 1001))]


@pytest.mark.parametrize("first", [0, MessageLimits().text])
async def test_a_deflate_bomb_costs_no_more_than_a_message(first: int) -> None:
    engine = zlib.compressobj(9, wbits=-15)
    opening = engine.compress(b"x" * first) + engine.flush(zlib.Z_SYNC_FLUSH)
    bomb = engine.compress(bytes(64_000_000)) + engine.flush(zlib.Z_SYNC_FLUSH)
    sent = [frame(TEXT, opening, fin=False, rsv1=True), frame(CONT, bomb)]
    tracemalloc.start()
    try:
        assert await relayed(sent, [], True) == [(CLOSE, struct.pack("!H", 1001))]
        assert tracemalloc.get_traced_memory()[1] < 32_000_000
    finally:
        tracemalloc.stop()


async def test_a_judge_that_fails_lets_nothing_through() -> None:
    client, origin = Stream(), Stream()
    near, far = Sink(client), Sink(origin)

    async def judge(text: bytes) -> Decision:
        raise LookupError

    relay = JudgedWebSocket(client, origin, judge, SMALL, Assemblies(SMALL), False)
    client.data_received(frame(TEXT, b"hello"))
    with pytest.raises(LookupError):
        await asyncio.wait_for(relay.run(), SECONDS)
    assert unframed(bytes(far.written)) == [(CLOSE, struct.pack("!H", 1001))]
    assert unframed(bytes(near.written))[0][1].startswith(struct.pack("!H", 1011))


async def test_a_message_that_is_judged_while_the_socket_is_stopped_is_not_sent() -> None:
    client, origin = Stream(), Stream()
    near, far = Sink(client), Sink(origin)

    async def judge(text: bytes) -> Decision:
        relay.stop(1012, "the policy is another one")
        return Decision(True)

    relay = JudgedWebSocket(client, origin, judge, SMALL, Assemblies(SMALL), False)
    client.data_received(frame(TEXT, b"hello"))
    await asyncio.wait_for(relay.run(), SECONDS)
    assert unframed(bytes(far.written)) == [(CLOSE, struct.pack("!H", 1001))]
    assert unframed(bytes(near.written))[0][1].startswith(struct.pack("!H", 1012))


async def test_a_message_waits_only_so_long_for_a_place_among_those_that_are_gathered() -> None:
    client, origin = Stream(), Stream()
    near, far = Sink(client), Sink(origin)
    limits = dataclasses.replace(SMALL, assemblies=1, waiting=1, total=0.05)
    places, judged = Assemblies(limits), []

    async def judge(text: bytes) -> Decision:
        judged.append(text)
        return Decision(True)

    client.data_received(frame(TEXT, b"hello"))
    async with places.one():
        await asyncio.wait_for(JudgedWebSocket(client, origin, judge, limits, places, False).run(), SECONDS)
    assert unframed(bytes(near.written))[0][1].startswith(struct.pack("!H", 1013))
    assert (unframed(bytes(far.written)), judged) == ([(CLOSE, struct.pack("!H", 1001))], [])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(st.text(max_size=40), max_size=5), st.booleans())
def test_however_messages_are_cut_the_same_are_judged(data: st.DataObject, messages: list[str], deflate: bool) -> None:
    stream = b""
    for message in messages:
        payload = deflated(message.encode()) if deflate else message.encode()
        cuts = sorted(data.draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        edges = [0, *cuts, len(payload)]
        for index, (start, end) in enumerate(itertools.pairwise(edges)):
            last = index == len(edges) - 2
            opcode = CONT if index else TEXT
            stream += frame(opcode, payload[start:end], fin=last, rsv1=deflate and not index)
            stream += frame(PING, b"p") if data.draw(st.booleans()) else b""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=False)]
    judged: list[bytes] = []
    arrived = asyncio.run(relayed([piece for piece in pieces if piece], judged, deflate))
    assert judged == [message.encode() for message in messages]
    assert [payload for opcode, payload in arrived if opcode == TEXT] == judged
