# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""HTTP/2 through the interception: who is offered it, what is refused, what passes (RFC 9113)."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
from h2 import events
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.exceptions import TooManyStreamsError
from h2.settings import SettingCodes
from http2_peer import Fields, Peer, Two, echo, fill, head, limited, origin_of
from hyperframe.frame import ContinuationFrame, GoAwayFrame, HeadersFrame, PingFrame, PriorityFrame, SettingsFrame
from loopback import HOST, SECONDS, LoopbackGuard, World, hello, rest
from openshell_proxy.policy import Decision, Intent
from openshell_proxy.refusal import header_text
from openshell_proxy.relay import sites
from openshell_proxy.relay.http2 import HELD, Core
from openshell_proxy.settings import Limits

BIG = bytes(range(256)) * 32_768  # 8 MiB: more than any window on the way


async def test_requests_bodies_and_trailers_pass_both_ways(two: Two) -> None:
    port = await two.start()
    peer = await two.peer(port)
    stream = peer.ask(head(port, b"/a/../b?q=secret", b"POST"), end=False)
    await peer.send(stream, BIG)
    await peer.over(stream)
    assert peer.heads[stream][0][b":status"] == b"200"
    assert peer.heads[stream][0][b"x-path"] == b"/b?q=secret"  # the canonical form went on the wire
    assert peer.bodies[stream] == BIG
    assert peer.trailers[stream] == {b"x-trailer": b"yes"}
    last = (await two.world.events())[-2]
    assert last["message"] == f"L7_REQUEST allow POST {HOST}:{port}/b"
    assert "secret" not in two.world.log.getvalue()


def size(fields: Fields) -> int:
    return sum(len(name) + len(value) for name, value in fields)


async def test_the_bytes_in_the_log_are_those_of_heads_bodies_and_trailers(two: Two) -> None:
    async def interim(peer: Peer, stream: int) -> None:
        peer.core.send_headers(stream, [(b":status", b"103"), (b"link", b"</a>")])
        await echo(peer, stream)

    port = await two.start(interim)
    peer = await two.peer(port)
    asked, after = head(port, b"/b?q=1", b"POST", (b"x-long", b"v" * 1000)), [(b"x-checksum", b"5")]
    stream = peer.ask(asked, end=False)
    await peer.send(stream, BIG, end=False)
    peer.core.send_headers(stream, after, end_stream=True)
    peer.flush()
    await peer.over(stream)
    got = [list(one.items()) for one in (*peer.heads[stream], peer.trailers[stream])]
    assert len(got) == 3
    traffic = (await two.world.events())[-2]["traffic"]
    assert traffic["bytes_out"] == size(asked) + len(BIG) + size(after)
    assert traffic["bytes_in"] == sum(map(size, got)) + len(BIG)


async def test_each_stream_is_judged_and_a_refusal_leaves_the_others(two: Two) -> None:
    port = await two.start(access="read-only")
    peer = await two.peer(port)
    one, two_, three = (peer.ask(head(port, b"/x", method)) for method in (b"GET", b"DELETE", b"GET"))
    for stream in (one, two_, three):
        await peer.over(stream)
    assert [peer.heads[stream][0][b":status"] for stream in (one, two_, three)] == [b"200", b"403", b"200"]
    assert peer.json(two_)["error"] == "policy_denied"
    assert two.there.connections == 1


async def test_a_method_that_a_header_names_is_judged_too(two: Two) -> None:
    port = await two.start(access="read-write")
    peer = await two.peer(port)
    refused = peer.ask(head(port, b"/x", b"POST", (b"x-http-method-override", b"DELETE")))
    passed = peer.ask(head(port, b"/x", b"POST", (b"x-http-method-override", b"PUT")))
    for stream in (refused, passed):
        await peer.over(stream)
    assert peer.json(refused)["method"] == "DELETE"
    assert [peer.heads[stream][0][b":status"] for stream in (refused, passed)] == [b"403", b"200"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"authority": b"other.test"}, b"421"),
        ({"authority": b"origin.test:1"}, b"421"),
        ({"scheme": b"http"}, b"400"),
        ({"path": b"/%zz"}, b"400"),
        ({"path": b"/%2e%2e/x"}, b"400"),
        ({"path": b"*"}, b"400"),
        ({"path": b""}, b"400"),
        ({"path": b"https://other.test/x"}, b"400"),
    ],
)
async def test_a_head_that_is_not_for_this_tunnel_is_refused(two: Two, change: dict[str, bytes], status: bytes) -> None:
    port = await two.start()
    peer = await two.peer(port)
    stream = peer.ask(head(port, **change))
    await peer.over(stream)
    assert peer.heads[stream][0][b":status"] == status
    assert stream in peer.ended
    line = next(one for one in await two.world.events() if one.get("http_response"))
    assert line["http_response"]["code"] == int(status)
    assert line["unmapped"]["error"] == peer.json(stream)["error"]
    assert line["status_detail"] == peer.json(stream)["detail"]
    assert line["traffic"]["bytes_out"] == size(head(port, **change))
    assert line["traffic"]["bytes_in"] > 0


async def test_a_host_field_that_differs_is_misdirected(two: Two) -> None:
    port = await two.start()
    peer = await two.peer(port)
    stream = peer.ask(head(port, b"/", b"GET", (b"host", b"other.test")))
    await peer.over(stream)
    assert peer.heads[stream][0][b":status"] == b"421"


@pytest.mark.parametrize(
    "fields",
    [
        [(b"connection", b"close")],
        [(b"transfer-encoding", b"chunked")],
        [(b"upgrade", b"h2c")],
        [(b"te", b"gzip")],
        [(b"X-Upper", b"1")],
        [(b"a b", b"1")],
        [(b"x", b"1\r\nevil: 1")],
        [(b"content-length", b"1"), (b"content-length", b"2")],
        [(b":late", b"1")],
        [(b"content-length", b"5")],  # and no body
    ],
)
async def test_a_malformed_request_resets_its_stream_alone(two: Two, fields: Fields) -> None:
    port = await two.start()
    peer = await two.peer(port)
    bad = peer.ask(head(port, b"/", b"POST", *fields))
    good = peer.ask(head(port))
    await peer.over(good)
    assert peer.resets == {bad: ErrorCodes.PROTOCOL_ERROR}
    assert peer.heads[good][0][b":status"] == b"200"


@pytest.mark.parametrize("extra", [[], [(b":protocol", b"websocket")]])
async def test_connect_within_http2_is_refused(two: Two, extra: Fields) -> None:
    port = await two.start()
    peer = await two.peer(port)
    stream = peer.ask([*head(port, method=b"CONNECT"), *extra])
    await peer.over(stream)
    assert peer.resets[stream] == ErrorCodes.PROTOCOL_ERROR
    assert peer.core.remote_settings.enable_connect_protocol == 0


@pytest.mark.parametrize(
    ("limits", "fields", "detail"),
    [
        (Limits(), [(b"x", b"y" * 900)] * 18, "the request's head is larger than 16384 bytes"),
        (Limits(head=2048), [(b"x", b"y" * 2000)], "the request's head is larger than 2048 bytes"),
        (Limits(), [(b"x", b"")] * 201, "there are more than 200 header fields"),
        (Limits(headers=8), [(b"x", b"")] * 9, "there are more than 8 header fields"),
    ],
)
async def test_a_head_beyond_the_limits_in_force_is_a_431(
    two: Two, limits: Limits, fields: Fields, detail: str
) -> None:
    peer, port = await limited(two, echo, limits)
    good, bad = peer.ask(head(port, b"/", b"GET", *fields[1:])), peer.ask(head(port, b"/", b"GET", *fields))
    for stream in (good, bad):
        await peer.over(stream)
    assert [peer.heads[stream][0][b":status"] for stream in (good, bad)] == [b"200", b"431"]
    assert peer.json(bad)["detail"] == detail


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("body", [b"123", b"1234567"])
async def test_a_request_body_of_the_wrong_length_never_ends_well(
    two: Two, body: bytes, late: bool, apart: bool
) -> None:
    done: list[Peer] = []
    asked = asyncio.Event()

    async def serve(peer: Peer, stream: int) -> None:
        asked.set()
        await echo(peer, stream)

    port = await two.start(serve, peers=done)
    peer = await two.peer(port)
    peer.apart = apart
    stream = peer.ask(head(port, b"/", b"POST", (b"content-length", b"5")), end=False)
    if late:  # what comes goes on at once
        await asyncio.wait_for(asked.wait(), SECONDS)
    await peer.send(stream, body)
    await peer.over(stream)
    assert peer.resets == {stream: ErrorCodes.PROTOCOL_ERROR}
    assert all(not one.ended for one in done)


@pytest.mark.parametrize("late", [True, False])
async def test_an_end_that_comes_with_the_last_data_goes_on_with_it(two: Two, late: bool) -> None:
    there: list[Peer] = []
    asked = asyncio.Event()

    async def answer(peer: Peer, stream: int) -> None:
        asked.set()
        peer.core.send_headers(stream, [(b":status", b"200")])
        peer.flush()
        await peer.over(stream)
        peer.apart = False
        await peer.send(stream, b"answer")

    port = await two.start(answer, there)
    peer = await two.peer(port)
    peer.apart = False
    stream = peer.ask(head(port, b"/", b"POST"), end=False)
    if late:
        await asyncio.wait_for(asked.wait(), SECONDS)
    await peer.send(stream, b"question")
    await peer.over(stream)
    assert (peer.frames[stream], stream in peer.ended) == ([len(b"answer")], True)
    assert [one.frames for one in there if one.heads] == [{1: [len(b"question")]}]


async def test_a_body_that_is_too_long_is_refused_before_its_end(two: Two) -> None:
    there: list[Peer] = []
    port = await two.start(peers=there)
    peer = await two.peer(port)
    stream = peer.ask(head(port, b"/", b"POST", (b"content-length", b"5")), end=False)
    await peer.send(stream, b"12345", end=False)
    await peer.send(stream, b"6", end=False)
    await peer.over(stream)
    assert peer.resets == {stream: ErrorCodes.PROTOCOL_ERROR}


@pytest.mark.parametrize("trailers", [False, True])
async def test_a_response_cut_short_is_no_short_success(two: Two, trailers: bool) -> None:
    async def short(peer: Peer, stream: int) -> None:
        peer.core.send_headers(stream, [(b":status", b"200"), (b"content-length", b"10")])
        peer.core.send_data(stream, b"12345", end_stream=not trailers)
        if trailers:
            peer.core.send_headers(stream, [(b"x", b"y")], end_stream=True)
        peer.flush()

    port = await two.start(short)
    peer = await two.peer(port)
    stream = peer.ask(head(port))
    await peer.over(stream)
    assert stream not in peer.ended
    assert peer.resets[stream] == ErrorCodes.PROTOCOL_ERROR


@pytest.mark.parametrize("code", [ErrorCodes.CANCEL, ErrorCodes.ENHANCE_YOUR_CALM, ErrorCodes.REFUSED_STREAM])
async def test_a_reset_of_the_origin_is_passed_on(two: Two, code: ErrorCodes) -> None:
    async def reset(peer: Peer, stream: int) -> None:
        peer.core.send_headers(stream, [(b":status", b"200")])
        peer.core.send_data(stream, b"12345")
        peer.core.reset_stream(stream, code)
        peer.flush()

    port = await two.start(reset)
    peer = await two.peer(port)
    stream = peer.ask(head(port))
    await peer.over(stream)
    assert peer.resets == {stream: code}


async def test_a_cancel_of_the_client_is_passed_on(two: Two) -> None:
    peers: list[Peer] = []

    async def wait(peer: Peer, stream: int) -> None:
        peer.core.send_headers(stream, [(b":status", b"200")])
        peer.core.send_data(stream, b"first")
        peer.flush()
        await peer.over(stream)

    port = await two.start(wait, peers)
    peer = await two.peer(port)
    stream = peer.ask(head(port, method=b"POST"), end=False)
    await peer.until(lambda: peer.bodies.get(stream) == b"first")  # answered before it is asked to the end
    peer.core.reset_stream(stream, ErrorCodes.CANCEL)
    peer.flush()
    async with asyncio.timeout(SECONDS):
        while not peers[0].resets:
            await asyncio.sleep(0)
    assert peers[0].resets == {1: ErrorCodes.CANCEL}


async def test_a_stream_that_is_not_read_holds_up_no_other_and_not_the_memory(two: Two) -> None:
    taken = 0

    async def much(peer: Peer, stream: int) -> None:
        nonlocal taken
        await peer.over(stream)
        peer.core.send_headers(stream, [(b":status", b"200")])
        if peer.heads[stream][0][b":path"] == b"/small":
            await peer.send(stream, b"small")
            return
        window = peer.core.local_flow_control_window(stream)
        while window := min(peer.core.local_flow_control_window(stream), 16_384):
            peer.core.send_data(stream, bytes(window))
            taken += window
        peer.flush()

    port = await two.start(much)
    peer = await two.peer(port)
    peer.acknowledge = False
    slow = peer.ask(head(port, b"/slow"))
    await peer.until(lambda: len(peer.bodies.get(slow, b"")) == 65_535)  # all that our window lets through
    peer.core.increment_flow_control_window(1000)
    quick = peer.ask(head(port, b"/small"))
    await peer.over(quick)
    assert peer.bodies[quick] == b"small"
    assert taken <= 2_097_152 + 65_535


async def test_streams_beyond_the_limit_are_refused_and_may_be_repeated(two: Two) -> None:
    async def never(peer: Peer, stream: int) -> None:
        pass

    port = await two.start(never)
    peer = await two.peer(port)
    await peer.until(lambda: peer.core.remote_settings.max_concurrent_streams == 100)
    peer.core.remote_settings[3] = 1000
    peer.core.remote_settings.acknowledge()
    streams = [peer.ask(head(port)) for _ in range(101)]
    await peer.over(streams[-1])
    assert peer.resets == {streams[-1]: ErrorCodes.REFUSED_STREAM}


async def test_rapid_resets_end_the_connection(two: Two) -> None:
    port = await two.start()
    peer = await two.peer(port)
    for _ in range(400):
        stream = peer.ask(head(port))
        peer.core.reset_stream(stream, ErrorCodes.CANCEL)
    peer.flush()
    await peer.until(lambda: peer.goaway is not None)
    assert peer.goaway == ErrorCodes.ENHANCE_YOUR_CALM
    assert any("too many streams are reset" in one.get("status_detail", "") for one in await two.world.events())


@pytest.mark.parametrize(
    "what",
    [
        "ping",
        "ping answers",
        "settings",
        "settings answers",
        "priority",
        "empty data",
        "windows",
        "own windows",
        "unknown",
    ],
)
async def test_floods_of_frames_that_carry_nothing_end_the_connection(two: Two, what: str) -> None:
    port = await two.start()
    peer = await two.peer(port)
    stream = peer.ask(head(port, method=b"POST"), end=False)
    for _ in range(3000):
        if what == "ping":
            peer.core.ping(b"12345678")
        elif what == "settings":
            peer.core.update_settings({4: 65_535})
        elif what == "priority":
            peer.writer.write(PriorityFrame(99, stream_weight=1).serialize())
        elif what == "ping answers":
            peer.writer.write(PingFrame(0, flags=["ACK"]).serialize())
        elif what == "settings answers":
            peer.writer.write(SettingsFrame(0, flags=["ACK"]).serialize())
        elif what == "windows":
            peer.core.increment_flow_control_window(1)
        elif what == "own windows":
            peer.core.increment_flow_control_window(1, stream)
        elif what == "unknown":
            peer.writer.write(b"\x00\x00\x00\xfa\x00\x00\x00\x00\x00")
        else:
            peer.core.send_data(stream, b"")
    peer.flush()
    await peer.until(lambda: peer.goaway is not None)
    assert peer.goaway == ErrorCodes.ENHANCE_YOUR_CALM


async def test_a_flood_of_continuations_ends_the_connection(two: Two) -> None:
    port = await two.start()
    peer = await two.peer(port)
    peer.writer.write(HeadersFrame(1, data=b"").serialize())
    for _ in range(100):
        peer.writer.write(ContinuationFrame(1, data=b"").serialize())
    await peer.until(lambda: peer.goaway is not None)
    assert peer.goaway == ErrorCodes.PROTOCOL_ERROR


async def test_a_header_bomb_ends_the_connection(two: Two) -> None:
    port = await two.start()
    peer = await two.peer(port)
    bomb = [(b"x", b"y" * 4000)] * 100  # 100 bytes on the wire, and 400 KB when unpacked
    peer.ask(head(port, b"/", b"GET", *bomb))
    await peer.until(lambda: peer.goaway is not None)
    assert peer.goaway == ErrorCodes.ENHANCE_YOUR_CALM


async def test_a_goaway_lets_streams_end_and_the_next_has_a_new_connection(two: Two) -> None:
    async def last(peer: Peer, stream: int) -> None:
        peer.writer.write(GoAwayFrame(0, last_stream_id=stream).serialize())
        await echo(peer, stream)

    port = await two.start(last)
    peer = await two.peer(port)
    for number in (1, 2):
        stream = peer.ask(head(port))
        await peer.over(stream)
        assert peer.heads[stream][0][b":status"] == b"200"
        assert two.there.connections == number


async def test_a_stream_that_the_origin_has_not_looked_at_is_asked_once_more(two: Two) -> None:
    async def refuse_first(peer: Peer, stream: int) -> None:
        if stream == 1:
            peer.core.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
            peer.flush()
        else:
            await echo(peer, stream)

    port = await two.start(refuse_first)
    peer = await two.peer(port)
    stream = peer.ask(head(port))
    await peer.over(stream)
    assert peer.heads[stream][0][b":status"] == b"200"


@pytest.mark.parametrize(("size", "again"), [(5, True), (65_536, True), (65_537, False)])
async def test_a_refused_stream_is_asked_again_with_its_body_or_not_at_all(two: Two, size: int, again: bool) -> None:
    """The body waits at the proxy when it is refused: there is no window for it."""
    got: list[int] = []

    async def refuse_first(peer: Peer, stream: int) -> None:
        if not got:
            await peer.until(lambda: peer.core.local_settings.initial_window_size == 0)
        got.append(stream)
        if len(got) == 1:
            async with asyncio.timeout(SECONDS):
                while two.world.sidecar.pipeline.under_way._entries and not waits():  # type: ignore[union-attr]
                    await asyncio.sleep(0)
            peer.core.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
            peer.core.update_settings({4: 1 << 20})
            peer.flush()
        else:
            await echo(peer, stream)

    def waits() -> bool:
        assert two.world.sidecar is not None
        entries = two.world.sidecar.pipeline.under_way._entries.values()
        return any(entry.passed() >= size for entry in entries)

    port = await two.start(refuse_first, window=0)
    peer = await two.peer(port)
    stream = peer.ask(head(port, b"/", b"POST"), end=False)
    await peer.send(stream, bytes(size))
    await peer.over(stream)
    if again:
        assert (peer.resets, peer.bodies[stream], len(got)) == ({}, bytes(size), 2)
    else:
        assert (peer.resets, len(got)) == ({stream: ErrorCodes.REFUSED_STREAM}, 1)


async def test_trailers_come_without_a_body_too(two: Two) -> None:
    there: list[Peer] = []
    port = await two.start(echo, there)
    peer = await two.peer(port)
    stream = peer.core.get_next_available_stream_id()
    peer.core.send_headers(stream, head(port, b"/", b"POST"))
    peer.core.send_headers(stream, [(b"x-checksum", b"5")], end_stream=True)
    peer.flush()
    await peer.over(stream)
    assert stream in peer.ended
    assert [one.trailers for one in there if one.heads] == [{1: {b"x-checksum": b"5"}}]


async def test_trailers_without_a_field_are_an_end(two: Two) -> None:
    async def origin(peer: Peer, stream: int) -> None:
        await peer.over(stream)
        assert stream not in peer.trailers
        peer.core.send_headers(stream, [(b":status", b"200")])
        peer.core.send_data(stream, peer.bodies[stream])
        peer.core.send_headers(stream, [(b"proxy-authenticate", b"ours to drop")], end_stream=True)
        peer.flush()

    port = await two.start(origin)
    peer = await two.peer(port)
    stream = peer.ask(head(port, b"/", b"POST"), end=False)
    peer.core.send_data(stream, b"body")
    peer.flush()
    peer.writer.write(HeadersFrame(stream, data=b"", flags=["END_HEADERS", "END_STREAM"]).serialize())
    await peer.over(stream)
    assert (peer.bodies[stream], stream in peer.ended, peer.trailers) == (b"body", True, {})


async def test_a_head_that_promises_a_body_and_ends_is_a_502(two: Two) -> None:
    async def origin(peer: Peer, stream: int) -> None:
        peer.core.send_headers(stream, [(b":status", b"200"), (b"content-length", b"5")], end_stream=True)
        peer.flush()

    port = await two.start(origin)
    peer = await two.peer(port)
    stream = peer.ask(head(port))
    await peer.over(stream)
    assert peer.heads[stream][0][b":status"] == b"502"
    assert peer.json(stream)["error"] == "upstream_protocol_error"
    assert (await two.world.events())[-2]["http_response"]["code"] == 502


async def test_what_a_lost_destination_left_unsent_is_no_loss_to_the_clients_connection(two: Two) -> None:
    """Bodies that nobody takes, of more than the connection's window of 16 MiB together."""

    async def lose(peer: Peer, stream: int) -> None:
        if peer.heads[stream][0][b":path"] == b"/lose":
            await peer.until(lambda: len(peer.bodies.get(stream, b"")) == 65_535)
            peer.writer.transport.abort()
        else:
            await echo(peer, stream)

    port = await two.start(lose)
    client = await two.peer(port)
    for _ in range(20):
        stream = client.ask(head(port, b"/lose", b"POST"), end=False)
        await client.until(lambda: client.core.outbound_flow_control_window > 65_535)
        fill(client, stream)
        await client.over(stream)
    last = client.ask(head(port, b"/", b"POST"), end=False)
    await client.send(last, b"x")
    await client.over(last)
    assert client.bodies[last] == b"x"


async def test_what_came_for_requests_that_went_nowhere_is_no_loss_to_the_connection(two: Two) -> None:
    """Sixteen times the stream's window of 1 MiB is all of the connection's; nothing is dialled before they are reset."""
    go, waiting = asyncio.Event(), 0

    class Slow(LoopbackGuard):
        async def pin(self, intent: Intent, decision: Decision) -> tuple[str, ...]:
            nonlocal waiting
            if intent.request is not None:
                waiting += 1
                await go.wait()
            return await super().pin(intent, decision)

    made = await two.world.origin(origin_of(echo), tls=["h2"])
    await two.world.start(rest(made.port), guard=Slow())
    client = await two.peer(made.port)
    await client.until(lambda: client.core.outbound_flow_control_window > 65_535)
    streams = [client.ask(head(made.port, b"/", b"POST"), end=False) for _ in range(16)]
    for stream in streams:
        fill(client, stream)
    assert client.core.outbound_flow_control_window < 65_535
    async with asyncio.timeout(SECONDS):
        while waiting < 16 or two.world.sidecar is None or held(two.world) < 16_000_000:
            await asyncio.sleep(0)
    for stream in streams:
        client.core.reset_stream(stream)
    client.flush()
    await client.until(lambda: client.core.outbound_flow_control_window > 8_000_000)
    go.set()


def held(world: World) -> int:
    """Bytes of requests under way that have come."""
    assert world.sidecar is not None
    return sum(entry.passed() for entry in world.sidecar.pipeline.under_way._entries.values())


@pytest.mark.parametrize("leave", ["abort", "reset", "stand still"])
async def test_what_a_client_left_unread_is_no_loss_to_the_destinations_connection(two: Two, leave: str) -> None:
    """Eight times the stream's window of 2 MiB is all of the connection's."""
    peers: list[Peer] = []

    async def much(peer: Peer, stream: int) -> None:
        peer.core.send_headers(stream, [(b":status", b"200")])
        fill(peer, stream)

    made = await two.world.origin(origin_of(much, peers), tls=["h2"])
    await two.world.start(rest(made.port), limits=Limits(idle=1 if leave == "stand still" else 3600))
    client = await two.peer(made.port)
    client.acknowledge = False
    streams = [client.ask(head(made.port)) for _ in range(8)]
    await client.until(lambda: len(client.heads) == 8)
    async with asyncio.timeout(SECONDS):
        while not peers or peers[0].core.outbound_flow_control_window > 65_535:
            await asyncio.sleep(0)
    if leave == "abort":
        client.writer.transport.abort()
    elif leave == "reset":
        for stream in streams:
            client.core.reset_stream(stream)
        client.flush()
    async with asyncio.timeout(SECONDS):
        while peers[0].core.outbound_flow_control_window < 8_000_000:
            await asyncio.sleep(0)
    assert made.connections == 1


async def test_interim_responses_head_and_early_answers(two: Two) -> None:
    async def origin(peer: Peer, stream: int) -> None:
        method = peer.heads[stream][0][b":method"]
        peer.core.send_headers(stream, [(b":status", b"103"), (b"link", b"</x>")])
        length = [(b"content-length", b"5")] if method == b"HEAD" else []
        peer.core.send_headers(stream, [(b":status", b"200"), *length], end_stream=True)
        peer.flush()

    port = await two.start(origin)
    peer = await two.peer(port)
    for stream in (peer.ask(head(port, method=b"HEAD")), peer.ask(head(port, method=b"POST"), end=False)):
        await peer.over(stream)
        assert [one[b":status"] for one in peer.heads[stream]] == [b"103", b"200"]
        assert stream in peer.ended


async def test_a_client_of_http2_alone_is_told_that_the_origin_speaks_http1_only(two: Two) -> None:
    there = await two.world.origin(hello, tls=True)
    await two.world.start(rest(there.port))
    peer = await two.peer(there.port)
    stream = peer.ask(head(there.port))
    await peer.over(stream)
    assert peer.heads[stream][0][b":status"] == b"502"
    assert "speaks HTTP/1.1 only" in peer.json(stream)["detail"]
    assert there.received == 0


async def test_an_origin_that_spoke_http1_only_is_asked_again_after_a_while(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = await two.world.origin(hello, tls=True)
    await two.world.start(rest(there.port))
    for seconds, connections in ((3600, 1), (0, 2)):
        monkeypatch.setattr(sites, "DOUBT_SECONDS", seconds)
        for _ in range(2):
            await two.peer(there.port)
        assert there.connections >= connections
        assert (there.connections == 1) == (connections == 1)


async def test_no_destination_is_dialled_for_a_hello_that_names_another(two: Two) -> None:
    port = await two.start()
    client = await two.world.tunnel(port, tls=False)
    context = ssl.create_default_context(cafile=two.world.directory / "tls/ca.pem")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await client.start_tls(context, "other.test")
    assert two.there.connections == 0
    assert any("TLS with the client failed" in one.get("status_detail", "") for one in await two.world.events())


async def test_no_destination_is_dialled_for_what_is_no_hello(two: Two) -> None:
    port = await two.start()
    client = await two.world.tunnel(port, tls=False)
    await client.send(b"\x16\x03\x01\x00\x05hello")
    assert await client.ended() != b"hello"
    assert two.there.connections == 0


async def test_a_hello_that_does_not_end_is_not_waited_for(two: Two) -> None:
    made = await two.world.origin(origin_of(echo), tls=["h2"])
    await two.world.start(rest(made.port), limits=Limits(handshake=1))
    client = await two.world.tunnel(made.port, tls=False)
    await client.send(b"\x16\x03\x01\x01\x00\x01")
    assert await client.ended() == b""
    assert made.connections == 0


async def test_a_grpc_client_is_refused_in_its_own_words(two: Two) -> None:
    port = await two.start(access="read-only")
    peer = await two.peer(port)
    stream = peer.ask(head(port, b"/a.B/C", b"POST", (b"content-type", b"application/grpc"), (b"te", b"trailers")))
    await peer.over(stream)
    got = peer.heads[stream][0]
    assert (got[b":status"], got[b"grpc-status"]) == (b"403", b"7")
    assert b"not permitted by policy" in got[b"grpc-message"]


async def test_a_policy_that_changes_lets_streams_end_and_judges_the_next(two: Two) -> None:
    go = asyncio.Event()

    async def wait(peer: Peer, stream: int) -> None:
        await go.wait()
        await echo(peer, stream)

    port = await two.start(wait)
    peer = await two.peer(port)
    running = peer.ask(head(port, b"/", b"POST"), end=False)
    await peer.until(lambda: peer.core.remote_settings.max_concurrent_streams == 100)
    async with asyncio.timeout(SECONDS):
        while not two.there.received:
            await asyncio.sleep(0)
    assert two.world.reload(rest(port, access="read-only"))["policy_error"] == ""
    await peer.until(lambda: peer.goaway is not None)
    assert peer.goaway == ErrorCodes.NO_ERROR
    late = peer.ask(head(port))  # on the same connection: it was told that it is too late
    await peer.over(late)
    assert peer.resets == {late: ErrorCodes.REFUSED_STREAM}
    go.set()
    await peer.send(running, b"to the end")
    await peer.over(running)
    assert (peer.heads[running][0][b":status"], peer.bodies[running]) == (b"200", b"to the end")
    while not peer.eof:
        await peer.step()
    new = await two.peer(port)
    for method, status in ((b"POST", b"403"), (b"GET", b"200")):
        stream = new.ask(head(port, b"/", method))
        await new.over(stream)
        assert new.heads[stream][0][b":status"] == status


async def test_a_connection_at_an_address_that_is_no_longer_valid_is_not_used(two: Two) -> None:
    """The name leads to another address now, where nobody listens: the open connection is to somebody else."""
    guard = LoopbackGuard()
    made = await two.world.origin(origin_of(echo), tls=["h2"])
    await two.world.start(rest(made.port), guard=guard)
    peer = await two.peer(made.port)
    for address, status in (("127.0.0.1", b"200"), ("127.0.0.2", b"502"), ("127.0.0.1", b"200")):
        guard.address = address
        stream = peer.ask(head(made.port))
        await peer.over(stream)
        assert peer.heads[stream][0][b":status"] == status
    assert made.connections == 1


async def test_a_cookie_in_crumbs_is_whole_again(two: Two) -> None:
    there: list[Peer] = []
    port = await two.start(peers=there)
    peer = await two.peer(port)
    crumbs = [(b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2"), (b"cookie", b"c=3")]
    for stream in (peer.ask(head(port, b"/", b"GET", *crumbs)), peer.ask(head(port, b"/", b"GET", *crumbs[:2]))):
        await peer.over(stream)
    cookies = [[value for name, value in there[0].fields[n] if name == b"cookie"] for n in (1, 3)]
    assert cookies == [[b"a=1; b=2; c=3"], [b"a=1"]]
    assert there[0].fields[1][-2] == (b"x", b"y")


async def test_a_destination_pushes_nothing(two: Two) -> None:
    told: list[int] = []

    async def push(peer: Peer, stream: int) -> None:
        told.append(peer.core.remote_settings.enable_push)
        peer.core.remote_settings[2] = 1
        peer.core.remote_settings.acknowledge()
        peer.core.push_stream(stream, 2, head(1, b"/pushed"))
        peer.flush()

    port = await two.start(push)
    peer = await two.peer(port)
    stream = peer.ask(head(port))
    await peer.over(stream)
    assert peer.heads[stream][0][b":status"] == b"502"
    assert peer.json(stream)["error"] == "upstream_unreachable"
    assert set(told) == {0}


async def test_a_client_that_opens_its_windows_for_every_frame_is_no_flood(two: Two) -> None:
    """As Go's does; while the destination is slower than the client, each of them is for a stream that waits for none."""

    async def slowly(peer: Peer, stream: int) -> None:
        peer.core.send_headers(stream, [(b":status", b"200")])
        for _ in range(1500):
            await peer.send(stream, bytes(2000), end=False)
            await asyncio.sleep(0)
        peer.core.end_stream(stream)
        peer.flush()

    port = await two.start(slowly)
    peer = await two.peer(port)
    peer.acknowledge = False
    stream, opened = peer.ask(head(port)), 0
    while stream not in peer.ended and peer.goaway is None:
        await peer.step()
        for _ in range((peer.seen.get(stream, 0) - opened) // 1000):
            opened += 1000
            if stream not in peer.ended:
                peer.core.increment_flow_control_window(1000, stream)
            peer.core.increment_flow_control_window(1000)
        peer.flush()
    assert (peer.goaway, peer.seen[stream]) == (None, 3_000_000)


def memory() -> int:
    """Bytes that are resident."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_a_large_body_passes_both_ways_with_flat_memory(two: Two) -> None:
    """100 MiB up and down at once, with all four ends of HTTP/2 in this process."""
    size = 100 * 1024 * 1024

    async def back(peer: Peer, stream: int) -> None:
        peer.keep = False
        peer.core.send_headers(stream, [(b":status", b"200")])
        sent = 0
        while stream not in peer.ended or sent < peer.seen[stream]:
            ready = peer.seen.get(stream, 0) - sent
            if ready:
                await peer.send(stream, bytes(ready), end=False)
                sent += ready
            else:
                await peer.step()
        peer.core.end_stream(stream)
        peer.flush()

    made = await two.world.origin(origin_of(back), tls=["h2"])
    await two.world.start(rest(made.port))
    client = await two.peer(made.port)
    client.keep = False
    stream = client.ask(head(made.port, b"/", b"POST"), end=False)
    before, piece = memory(), bytes(1024 * 1024)
    for left in range(size // len(piece), 0, -1):
        await client.send(stream, piece, end=left == 1)
    await client.over(stream)
    assert client.seen[stream] == size
    assert memory() - before < 40 * 1024 * 1024
    assert client.resets == {}


async def test_what_the_origin_speaks_is_what_is_offered(world: World) -> None:
    old = await world.origin(hello, tls=True)
    new = await world.origin(origin_of(echo), tls=["h2", "http/1.1"])
    await world.start(rest(old.port), rest(new.port))
    assert world.sidecar is not None
    proxy = f"http://127.0.0.1:{world.sidecar.listeners[0].port}"
    trust = ssl.create_default_context(cafile=world.directory / "tls/ca.pem")
    async with httpx.AsyncClient(http2=True, proxy=proxy, verify=trust, trust_env=False) as client:
        assert (await client.get(f"https://{HOST}:{old.port}/")).http_version == "HTTP/1.1"
        for _ in range(3):
            assert (await client.get(f"https://{HOST}:{new.port}/")).http_version == "HTTP/2"
    assert (old.connections, new.connections) == (1, 1)  # what was dialled to learn it serves the requests


@pytest.mark.parametrize(("option", "version"), [("--http2", "2"), ("--http1.1", "1.1")])
async def test_curl(world: World, option: str, version: str) -> None:
    async def either(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        h2 = writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        await (origin_of(echo) if h2 else hello)(reader, writer)

    there = await world.origin(either, tls=["h2", "http/1.1"])
    await world.start(rest(there.port), limits=Limits())
    assert world.sidecar is not None
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", option, "-o", "/dev/null", "-w", "%{http_code} %{http_version}", "--max-time", "20",
        "--cacert", str(world.directory / "tls/ca.pem"), "-x", f"http://127.0.0.1:{world.sidecar.listeners[0].port}",
        f"https://{HOST}:{there.port}/", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await process.communicate()
    assert (out.decode(), error.decode()) == (f"200 {version}", "")


async def test_frames_that_come_with_real_work_are_no_flood(two: Two) -> None:
    port = await two.start()
    peer = await two.peer(port)
    for _ in range(1500):
        stream = peer.ask(head(port, method=b"POST"), end=False)
        peer.core.ping(b"12345678")
        await peer.send(stream, b"x")
        await peer.over(stream)
    assert peer.goaway is None


async def unanswered(peer: Peer, stream: int) -> None:
    """Say nothing at all."""


async def begun(peer: Peer, stream: int) -> None:
    """Begin an answer, and say no more."""
    peer.core.send_headers(stream, [(b":status", b"200")])
    peer.flush()


async def test_a_stream_without_an_answer_is_a_504(two: Two) -> None:
    client, port = await limited(two, unanswered, Limits(idle=1))
    stream = client.ask(head(port))
    await client.over(stream)
    assert client.heads[stream][0][b":status"] == b"504"


async def test_a_stream_that_stands_still_is_reset(two: Two) -> None:
    client, port = await limited(two, begun, Limits(idle=1))
    stream = client.ask(head(port))
    await client.over(stream)
    assert client.heads[stream][0][b":status"] == b"200"
    assert client.resets[stream] == ErrorCodes.CANCEL


async def test_a_stream_may_last_but_not_stand_still(two: Two) -> None:
    """Longer than the limit in all, either way."""

    async def slowly(peer: Peer, stream: int) -> None:
        peer.core.send_headers(stream, [(b":status", b"200")])
        for _ in range(8):
            peer.core.send_data(stream, b".")
            peer.flush()
            await asyncio.sleep(0.2)
        peer.core.end_stream(stream)
        peer.flush()

    client, port = await limited(two, slowly, Limits(idle=1))
    stream = client.ask(head(port))
    await client.over(stream)
    assert (client.bodies[stream], client.resets) == (b"." * 8, {})


async def test_streams_count_as_requests(two: Two) -> None:
    client, port = await limited(two, unanswered, Limits(requests=1))
    first = client.ask(head(port))
    second = client.ask(head(port))
    await client.over(second)
    assert client.heads[second][0][b":status"] == b"503"
    assert first not in client.ended


KEY = {"name": "KEY", "value": "the-real-value", "hosts": ["elsewhere.test"]}


def bind(world: World, secret: dict[str, Any]) -> None:
    (world.directory / "state/config/secrets.json").write_text(json.dumps({"secrets": [secret]}))


@pytest.mark.parametrize(
    ("path", "field", "error"),
    [
        (b"/", b"openshell:resolve:env:KEY", "credential_endpoint_mismatch"),
        (b"/openshell%3Aresolve%3Aenv%3ANONE", b"1", "credential_injection_failed"),
    ],
)
async def test_a_placeholder_reaches_nobody(two: Two, path: bytes, field: bytes, error: str) -> None:
    bind(two.world, KEY)
    port = await two.start()
    peer = await two.peer(port)
    stream = peer.ask(head(port, path, b"GET", (b"x-key", field)))
    await peer.over(stream)
    assert peer.json(stream)["error"] == error
    last = (await two.world.events())[-2]
    assert (last["action_id"], last["firewall_rule"]["type"]) == (2, "credentials")
    assert "openshell:resolve" not in two.world.log.getvalue()


async def test_policy_and_log_see_no_placeholder(two: Two) -> None:
    bind(two.world, KEY | {"random": "R4nd0mR4nd0mR4nd0m"})
    port = await two.start()
    peer = await two.peer(port)
    await peer.over(peer.ask(head(port, b"/x/R4nd0mR4nd0mR4nd0m/y")))
    assert (await two.world.events())[-2]["message"].endswith("/x/[CREDENTIAL]/y")
    assert "R4nd0m" not in two.world.log.getvalue()


async def test_a_policys_name_is_a_header_as_over_http_1_1(two: Two) -> None:
    port = await two.start()
    name = "one\r\nx-two: é" + "x" * 200
    document = {"version": 1, "network_policies": {name: {"endpoints": [rest(port, access="read-only")]}}}
    (two.world.directory / "state/config/policy.yaml").write_text(json.dumps(document))
    assert two.world.sidecar is not None
    assert two.world.sidecar.reload()["policy_error"] == ""
    peer = await two.peer(port)
    stream = peer.ask(head(port, b"/", b"DELETE"))
    await peer.over(stream)
    assert peer.json(stream)["policy"] == name
    assert peer.heads[stream][0][b"x-openshell-policy"] == header_text(name).encode("ascii")


@pytest.mark.parametrize("most", [1, 100])
def test_streams_that_have_ended_do_not_count_and_are_let_go(most: int) -> None:
    sides = [Core(H2Configuration(client_side=client, header_encoding=None)) for client in (True, False)]
    client, server = sides
    for side in sides:
        side.initiate_connection()
    server.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: most})

    def exchange() -> list[events.Event]:
        seen: list[events.Event] = []
        for _ in range(2):
            seen += server.receive_data(client.data_to_send())
            seen += client.receive_data(server.data_to_send())
        return seen

    exchange()
    for _ in range(3 * HELD):
        stream = client.get_next_available_stream_id()
        client.send_headers(stream, head(443), end_stream=True)
        exchange()
        server.send_headers(stream, [(b":status", b"204")], end_stream=True)
        assert any(isinstance(event, events.StreamEnded) for event in exchange())
        assert max(len(side.streams) for side in sides) <= HELD
    for _ in range(most):
        stream = client.get_next_available_stream_id()
        client.send_headers(stream, head(443), end_stream=True)
        exchange()
    with pytest.raises(TooManyStreamsError):
        client.send_headers(stream + 2, head(443), end_stream=True)
