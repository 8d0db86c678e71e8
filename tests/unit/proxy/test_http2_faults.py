# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Clients and destinations of HTTP/2 that misbehave, fall silent or leave; and what is kept for how long."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from h2.errors import ErrorCodes
from http2_peer import Peer, Serve, Two, echo, head, limited, origin_of
from hyperframe.frame import DataFrame, GoAwayFrame
from loopback import SECONDS, rest
from openshell_proxy.entrances import http2 as entrance
from openshell_proxy.relay import http2, http2_exchange, http2_upstream, sites
from openshell_proxy.relay.http2_upstream import Upstream
from openshell_proxy.relay.sites import Sites
from openshell_proxy.settings import Limits
from test_credentials import CANONICAL, SECRET, VALUE, write_secrets


async def asked(two: Two, serve: Serve, *fields: tuple[bytes, bytes], method: bytes = b"GET") -> tuple[Peer, int]:
    """A client whose one request, without a body, is over."""
    port = await two.start(serve)
    peer = await two.peer(port)
    stream = peer.ask(head(port, b"/", method, *fields))
    await peer.over(stream)
    return peer, stream


async def ended(peer: Peer) -> None:
    while not peer.eof:
        await peer.step()


# Destinations.


@pytest.mark.parametrize(
    "answer",
    [
        [(b":status", b"101")],
        [(b":status", b"2OO")],
        [(b":status", b"200"), (b"connection", b"close")],
        [(b":status", b"200"), (b"content-length", b"1"), (b"content-length", b"2")],
    ],
)
async def test_an_answer_that_is_malformed_is_a_502(two: Two, answer: list[tuple[bytes, bytes]]) -> None:
    async def bad(peer: Peer, stream: int) -> None:
        peer.core.send_headers(stream, answer)
        peer.flush()
        await peer.over(stream)

    peer, stream = await asked(two, bad)
    assert peer.heads[stream][0][b":status"] == b"502"
    assert peer.json(stream)["error"] == "upstream_protocol_error"


async def test_content_without_a_head_is_no_answer(two: Two) -> None:
    async def bad(peer: Peer, stream: int) -> None:
        peer.writer.write(DataFrame(stream, b"content", flags=["END_STREAM"]).serialize())
        await peer.step()

    peer, stream = await asked(two, bad)
    assert peer.heads[stream][0][b":status"] == b"502"
    assert peer.bodies[stream] != b"content"


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_content_where_there_is_none_breaks_the_answer(two: Two, method: bytes) -> None:
    async def bad(peer: Peer, stream: int) -> None:
        peer.core.send_headers(
            stream, [(b":status", b"204" if method == b"GET" else b"200"), (b"content-length", b"4")]
        )
        peer.core.send_data(stream, b"more", end_stream=True)
        peer.flush()

    peer, stream = await asked(two, bad, method=method)
    assert (peer.resets, stream in peer.bodies) == ({stream: ErrorCodes.PROTOCOL_ERROR}, False)


async def test_interim_answers_end(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_exchange, "MAX_RESPONSE_HEAD", 20_000)

    async def never(peer: Peer, stream: int) -> None:
        for _ in range(40):
            peer.core.send_headers(stream, [(b":status", b"103"), (b"link", b"x" * 1000)])
        peer.flush()
        await peer.over(stream)

    port = await two.start(never)
    peer = await two.peer(port)
    stream = peer.ask(head(port))
    await peer.over(stream)
    assert len(peer.heads[stream]) == 20
    assert peer.heads[stream][-1][b":status"] == b"502"


async def test_an_answer_that_is_whole_stays_so_when_its_stream_is_reset(two: Two) -> None:
    """A server that wants no more of the request says so (RFC 9113, 8.1)."""
    go = asyncio.Event()

    async def enough(peer: Peer, stream: int) -> None:
        peer.core.send_headers(stream, [(b":status", b"200")])
        await peer.send(stream, bytes(100_000))
        peer.core.reset_stream(stream, ErrorCodes.NO_ERROR)
        peer.flush()
        go.set()

    port = await two.start(enough)
    peer = await two.peer(port)
    peer.acknowledge = False  # so that some of it waits for us
    stream = peer.ask(head(port, b"/", b"POST"), end=False)
    await peer.until(lambda: peer.seen.get(stream) == 65_535)
    await asyncio.wait_for(go.wait(), SECONDS)
    peer.core.increment_flow_control_window(100_000)
    peer.core.increment_flow_control_window(100_000, stream)
    peer.flush()
    await peer.until(lambda: stream in peer.ended)
    assert peer.seen[stream] == 100_000
    await peer.until(lambda: stream in peer.resets)
    assert peer.resets[stream] == ErrorCodes.NO_ERROR  # and so do we


async def test_a_destination_that_breaks_off_is_no_short_success(two: Two) -> None:
    async def cut(peer: Peer, stream: int) -> None:
        peer.core.send_headers(stream, [(b":status", b"200")])
        peer.core.send_data(stream, b"some of it")
        peer.flush()
        await peer.writer.drain()
        peer.writer.close()

    peer, stream = await asked(two, cut)
    assert (peer.resets, stream in peer.ended) == ({stream: ErrorCodes.INTERNAL_ERROR}, False)


async def test_a_request_that_a_leaving_destination_has_not_looked_at_goes_elsewhere(two: Two) -> None:
    leaving: list[Peer] = []

    async def leave(peer: Peer, stream: int) -> None:
        leaving.append(peer)
        if len(leaving) == 1:
            await peer.over(stream)
            peer.writer.write(GoAwayFrame(0, last_stream_id=0).serialize())
        else:
            await echo(peer, stream)

    port = await two.start(leave)
    peer = await two.peer(port)
    stream = peer.ask(head(port, b"/", b"POST"), end=False)
    await peer.send(stream, b"body")
    await peer.over(stream)
    assert (peer.bodies[stream], leaving[0] is leaving[1]) == (b"body", False)


async def test_more_streams_than_a_destination_takes_have_another_connection(two: Two) -> None:
    there: list[Peer] = []
    go = asyncio.Event()

    async def wait(peer: Peer, stream: int) -> None:
        if len(there) > 1:
            go.set()
        await go.wait()
        await echo(peer, stream)

    async def one_at_a_time(peer: Peer, stream: int) -> None:
        if stream == 1 and len(there) == 1:
            await echo(peer, stream)
        else:
            await wait(peer, stream)

    port = await two.start(one_at_a_time, there, streams=1)
    peer = await two.peer(port)
    await peer.over(peer.ask(head(port)))  # so that its settings are known
    streams = [peer.ask(head(port)) for _ in range(2)]
    for stream in streams:
        await peer.over(stream)
    assert len(there) == 2


@pytest.mark.parametrize("alive", [True, False])
async def test_a_destination_that_falls_silent_is_asked_whether_it_lives(
    two: Two, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    monkeypatch.setattr(http2_upstream, "SILENCE_SECONDS", 0.2)

    async def silent(peer: Peer, stream: int) -> None:
        if alive:
            for _ in range(3):
                await peer.step()  # answers a ping each time
            peer.core.send_headers(stream, [(b":status", b"200")], end_stream=True)
            peer.flush()
        else:
            await asyncio.sleep(SECONDS)

    peer, stream = await asked(two, silent)
    assert peer.heads[stream][0][b":status"] == (b"200" if alive else b"502")


async def test_a_connection_that_is_not_needed_ends(two: Two) -> None:
    client, port = await limited(two, echo, Limits(pool_idle=0.2))
    await client.over(client.ask(head(port)))
    made = two.world.origins[0]
    async with asyncio.timeout(SECONDS):
        while made._tasks:
            await asyncio.sleep(0.01)
    stream = client.ask(head(port))
    await client.over(stream)
    assert (client.heads[stream][0][b":status"], made.connections) == (b"200", 2)


async def test_what_is_known_of_origins_is_bounded() -> None:
    class Connection:
        retired = 0

        def retire(self) -> None:
            self.retired += 1

    known, one = Sites(), Connection()
    known[0].connections.append(cast(Upstream, one))
    known[0].speaks = True
    for number in range(1, sites.KNOWN_ORIGINS):
        assert known[number].speaks is None
    assert (known[0].speaks, one.retired) == (True, 0)  # asked for again, so 1 is the oldest
    for number in range(sites.KNOWN_ORIGINS):
        assert known[-1 - number].speaks is None
    assert (known[0].speaks, one.retired) == (None, 1)


# Clients.


@pytest.mark.parametrize("what", ["malformed", "too many"])
async def test_streams_that_are_opened_to_be_refused_end_the_connection(two: Two, what: str) -> None:
    async def never(peer: Peer, stream: int) -> None:
        pass

    port = await two.start(never)
    peer = await two.peer(port)
    await peer.until(lambda: peer.core.remote_settings.max_concurrent_streams == 100)
    peer.core.remote_settings[3] = 10_000
    peer.core.remote_settings.acknowledge()
    fields = head(port) if what == "too many" else head(port, b"/", b"GET", (b"connection", b"close"))
    for _ in range(100 if what == "too many" else 0):
        peer.ask(head(port))
    for count in range(50, 401, 50):  # fewer at once than what is a fault by itself
        for _ in range(50):
            peer.ask(fields)
        await peer.until(lambda count=count: len(peer.resets) == count or peer.goaway is not None)
        if peer.goaway is not None:
            break
    assert peer.goaway == ErrorCodes.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("method", [b"POST", b"HEAD"])
async def test_a_client_that_goes_on_sending_is_told_that_nothing_more_is_wanted(two: Two, method: bytes) -> None:
    port = await two.start(access="read-only")
    peer = await two.peer(port)
    fields = [] if method == b"POST" else [(b"host", b"other.test")]
    stream = peer.ask(head(port, b"/", method, *fields), end=False)
    await peer.until(lambda: stream in peer.ended and stream in peer.resets)
    assert peer.heads[stream][0][b":status"] == (b"403" if method == b"POST" else b"421")
    assert peer.resets[stream] == ErrorCodes.NO_ERROR


async def test_a_refusal_arrives_whole_however_small_the_window(two: Two) -> None:
    port = await two.start(access="read-only")
    peer = await two.peer(port)
    peer.core.update_settings({4: 10})
    peer.flush()
    await peer.until(lambda: peer.core.local_settings.initial_window_size == 10)
    peer.acknowledge = False
    stream = peer.ask(head(port, b"/", b"POST"), end=False)
    await peer.until(lambda: peer.seen.get(stream) == 10)
    peer.core.increment_flow_control_window(10_000, stream)
    peer.flush()
    await peer.until(lambda: stream in peer.ended)
    assert peer.json(stream)["error"] == "policy_denied"


async def test_a_refusal_that_is_not_taken_is_not_kept_for_ever(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "LINGER_SECONDS", 0.2)
    port = await two.start(access="read-only")
    peer = await two.peer(port)
    peer.core.update_settings({4: 10})
    peer.flush()
    await peer.until(lambda: peer.core.local_settings.initial_window_size == 10)
    peer.acknowledge = False
    stream = peer.ask(head(port, b"/", b"POST"))
    await peer.over(stream)
    assert peer.resets == {stream: ErrorCodes.NO_ERROR}


async def test_who_is_told_to_come_later_is_told_when(two: Two) -> None:
    async def never(peer: Peer, stream: int) -> None:
        pass

    client, port = await limited(two, never, Limits(requests=1))
    client.ask(head(port))
    stream = client.ask(head(port))
    await client.over(stream)
    assert client.heads[stream][0][b"retry-after"] == b"1"


@pytest.mark.parametrize(("limits", "asks"), [(Limits(keep_alive=1), True), (Limits(first_head=1), False)])
async def test_a_client_that_asks_nothing_is_left(two: Two, limits: Limits, asks: bool) -> None:
    client, port = await limited(two, echo, limits)
    if asks:
        await client.over(client.ask(head(port)))
    await ended(client)
    assert client.goaway == ErrorCodes.NO_ERROR


async def test_padding_counts_and_is_given_back(two: Two) -> None:
    """More of it than the stream's window of 1 MiB."""
    there: list[Peer] = []
    port = await two.start(peers=there)
    peer = await two.peer(port)
    stream = peer.ask(head(port, b"/", b"POST"), end=False)
    for _ in range(6000):
        while peer.core.local_flow_control_window(stream) < 257:
            await peer.step()
        peer.core.send_data(stream, b"x", pad_length=255)
        peer.flush()
    peer.core.end_stream(stream)
    peer.flush()
    await peer.over(stream)
    assert peer.bodies[stream] == b"x" * 6000


async def test_a_peer_that_asks_for_more_than_it_reads_is_given_up() -> None:
    class Full:
        def __init__(self, size: int) -> None:
            self.size, self.aborted = size, 0

        def get_write_buffer_size(self) -> int:
            return self.size

        def abort(self) -> None:
            self.aborted += 1

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    for size, aborted in ((http2.UNREAD, 0), (http2.UNREAD + 1, 1)):
        transport = Full(size)
        made = Upstream("127.0.0.1", 30, lambda _: None)
        made.begin(cast(asyncio.Transport, transport), b"")
        assert transport.aborted == aborted


async def test_a_body_that_turns_out_bad_after_the_answer_has_begun_breaks_it(two: Two) -> None:
    there: list[Peer] = []

    async def early(peer: Peer, stream: int) -> None:
        peer.core.send_headers(stream, [(b":status", b"200")])
        peer.core.send_data(stream, b"begun")
        peer.flush()
        await peer.over(stream)

    write_secrets(two.world, SECRET)
    port = await two.start(early, there, request_body_credential_rewrite=True)
    peer = await two.peer(port)
    stream = peer.ask(head(port, b"/", b"POST", (b"content-type", b"application/json")), end=False)
    await peer.until(lambda: peer.bodies.get(stream) == b"begun")
    await peer.send(stream, b'{"key": "openshell:resolve:env:NONE"}')
    await peer.over(stream)
    assert (peer.resets, stream in peer.ended) == ({stream: ErrorCodes.INTERNAL_ERROR}, False)
    async with asyncio.timeout(SECONDS):
        while not there[0].resets:
            await asyncio.sleep(0)
    assert not there[0].ended


async def test_a_client_that_waits_for_leave_of_the_destination_is_not_waited_for(two: Two) -> None:
    async def leave(peer: Peer, stream: int) -> None:
        peer.core.send_headers(stream, [(b":status", b"100")])
        peer.flush()
        await echo(peer, stream)

    write_secrets(two.world, SECRET)
    port = await two.start(leave, request_body_credential_rewrite=True)
    peer = await two.peer(port)
    body = f'{{"key": "{CANONICAL}"}}'.encode()
    fields = [
        (b"content-type", b"application/json"),
        (b"expect", b"100-continue"),
        (b"content-length", b"%d" % len(body)),
    ]
    stream = peer.ask(head(port, b"/", b"POST", *fields), end=False)
    await peer.until(lambda: peer.heads.get(stream))
    await peer.send(stream, body)
    await peer.over(stream)
    assert peer.heads[stream][-1][b":status"] == b"200"
    assert VALUE.encode() not in peer.bodies[stream]


async def test_a_client_that_begins_what_is_no_http_2_is_left(two: Two) -> None:
    made = await two.world.origin(origin_of(echo), tls=["h2"])
    await two.world.start(rest(made.port))
    peer = await two.peer(made.port)
    peer.writer.write(b"\x00\x00\x08\x06\x00\x00\x00\x00\x01" + bytes(8))  # a ping of a stream
    await peer.until(lambda: peer.goaway is not None)
    assert peer.goaway == ErrorCodes.PROTOCOL_ERROR
    await ended(peer)
    assert any("HTTP/2 broken" in one.get("status_detail", "") for one in await two.world.events())
