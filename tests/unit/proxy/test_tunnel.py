# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""CONNECT, the gateway port and the pipes behind them: who is spoken to, what is inspected, what is passed untouched."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl

import pytest
from loopback import HOST, SECONDS, SWITCHING, WEBSOCKET, Client, World, answer, hello, read_request, reset, rest
from openshell_proxy.entrances.requests import within_tunnel
from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.http1 import parse_request_head
from openshell_proxy.relay.stream import Stream
from openshell_proxy.relay.upstream import Origin
from openshell_proxy.settings import Limits

# 4 MiB: more than any buffer on the way, and of which no two parts are alike, so that none can take another's place
BIG = random.Random(1).randbytes(4 * 1024 * 1024)


def get(host: str = HOST, path: str = "/", *fields: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode()


async def test_https_is_intercepted_and_each_request_judged(world: World) -> None:
    there = await world.origin(hello, tls=True)
    await world.start(rest(there.port, "read-only"))
    client = await world.tunnel(there.port)
    place = f"{HOST}:{there.port}"
    await client.send(get(place, "/one?secret=1"))
    assert (await client.response()).body == b"GET /one?secret=1 HTTP/1.1|"
    await client.send(get(place, "/two").replace(b"GET", b"POST"))
    assert (await client.response()).status == 403
    await client.send(get(place, "/three"))
    messages = [one["message"] for one in await world.events() if one["class_uid"] in (4001, 4002)]
    assert messages[:3] == [
        f"CONNECT allowed {place}",
        f"L7_REQUEST allow GET {place}/one",
        f"L7_REQUEST deny POST {place}/two",
    ]
    assert "secret" not in world.log.getvalue()


async def test_plain_http_within_a_tunnel_is_inspected_too(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port, "read-only"))
    client = await world.tunnel(there.port, tls=False)
    await client.send(get(f"{HOST}:{there.port}").replace(b"GET", b"POST"))
    assert (await client.response()).status == 403
    assert there.connections == 0


@pytest.mark.parametrize("target", ["denied.test:443", f"{HOST}:1"])
async def test_what_the_policy_does_not_name_is_refused(world: World, target: str) -> None:
    await world.start(rest(443))
    client = await world.client()
    await client.send(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    got = await client.response()
    assert (got.status, got.json["error"]) == (403, "policy_denied")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"CONNECT origin.test HTTP/1.1\r\nHost: origin.test\r\n\r\n", 400),
        (b"CONNECT origin.test:443 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT origin.test:443 HTTP/1.1\r\nHost: other.test:443\r\n\r\n", 421),
        (b"CONNECT user@origin.test:443 HTTP/1.1\r\nHost: origin.test:443\r\n\r\n", 400),
        (b"CONNECT origin.test:443 HTTP/1.1\r\nX: " + b"x" * 20_000, 431),
    ],
)
async def test_a_bad_connect_gets_one_clear_answer(world: World, head: bytes, status: int) -> None:
    await world.start(rest(443))
    client = await world.client()
    await client.send(head)
    assert (await client.response()).status == status


async def test_a_connect_of_http_1_0_needs_no_host(world: World) -> None:
    await world.start(rest(443))
    client = await world.client()
    await client.send(b"CONNECT origin.test:443 HTTP/1.0\r\n\r\n")
    assert (await client.head())[0] == 200


async def test_a_connect_that_breaks_off_is_told_so(world: World) -> None:
    await world.start(rest(443))
    client = await world.client()
    await client.send(b"CONNECT origin.test:443 HTTP/1.1\r\nHost: ori")
    client.writer.write_eof()
    got = await client.response()
    assert (got.status, got.json["detail"]) == (400, "the head of the CONNECT has no end")


@pytest.mark.parametrize(
    ("port", "tls", "named", "same"),
    [
        (80, False, "a.test", True),
        (443, True, "a.test", True),
        (443, False, "a.test", False),
        (80, True, "a.test", False),
    ],
)
def test_a_host_without_a_port_means_that_of_the_scheme(port: int, tls: bool, named: str, same: bool) -> None:
    locate = within_tunnel(Origin("a.test", port, tls))
    scheme = "https" if tls else "http"
    for target in ("/x", f"{scheme}://{named}/x"):
        head = parse_request_head(f"GET {target} HTTP/1.1\r\nHost: {named}\r\n\r\n".encode())
        if same:
            assert locate(head) == (Origin("a.test", port, tls), "/x")
        else:
            with pytest.raises(Refusal, match="421"):
                locate(head)


async def test_another_name_in_the_handshake_is_refused(world: World) -> None:
    there = await world.origin(hello, tls=True)
    await world.start(rest(there.port))
    client = await world.client()
    await client.send(f"CONNECT {HOST}:{there.port} HTTP/1.1\r\nHost: {HOST}:{there.port}\r\n\r\n".encode())
    await client.head()
    context = ssl.create_default_context(cafile=world.directory / "tls/ca.pem")
    context.check_hostname = False
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await client.start_tls(context, "other.test")
    assert there.received == 0
    assert any(one["message"].startswith("CONNECT denied") for one in await world.events())


@pytest.mark.parametrize("host", ["other.test", "origin.test:1"])
async def test_another_host_within_the_tunnel_is_misdirected(world: World, host: str) -> None:
    there = await world.origin(hello, tls=True)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port)
    await client.send(get(host))
    assert (await client.response()).status == 421
    assert there.received == 0


async def test_an_origin_nobody_trusts_is_a_502_that_says_so(world: World) -> None:
    there = await world.origin(hello, tls=True)
    (world.directory / "state/config/upstream-ca.pem").unlink()
    await world.start(rest(there.port))
    client = await world.tunnel(there.port)
    await client.send(get(f"{HOST}:{there.port}"))
    got = await client.response()
    assert (got.status, got.json["error"]) == (502, "upstream_unreachable")
    assert "certificate is not trusted" in got.json["detail"]


async def test_a_truncated_tls_body_is_no_short_success(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nstart")
        await writer.drain()
        reset(writer)

    there = await world.origin(origin, tls=True)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port)
    await client.send(get(f"{HOST}:{there.port}"))
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError, ssl.SSLError)):
        await client.response()


async def test_an_unknown_protocol_is_refused_where_requests_are_inspected(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port, tls=False)
    await client.send(b"SSH-2.0-client\r\n")
    assert b"unsupported_l7_protocol" in await client.ended()
    assert there.connections == 0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_client_that_speaks_nothing_but_http2_is_told_so(world: World, tls: bool) -> None:
    """The origin speaks HTTP/1.1 alone. gRPC and curl repeat what they get in place of a frame."""
    there = await world.origin(hello, tls=tls)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port, tls=tls)
    await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    got = await client.response()
    assert (got.status, got.json["error"]) == (403, "unsupported_l7_protocol")
    assert "HTTP/1.1" in got.json["detail"]
    assert any(
        one.get("action_id") == 2 and "HTTP/1.1" in str(one.get("status_detail")) for one in await world.events()
    )


async def test_tls_skip_shows_the_client_the_origins_own_certificate(world: World) -> None:
    there = await world.origin(hello, tls=True)
    await world.start({"host": HOST, "port": there.port, "tls": "skip"})
    client = await world.tunnel(there.port, tls=False)
    (world.directory / "origin-ca.pem").write_bytes(world.origin_authority.mint.certificate_pem)
    await client.start_tls(ssl.create_default_context(cafile=world.directory / "origin-ca.pem"), HOST)
    await client.send(get("any.host", "/pinned"))
    assert (await client.response()).body == b"GET /pinned HTTP/1.1|"


async def test_tls_skip_to_an_origin_that_is_not_there_is_a_502(world: World) -> None:
    there = await world.origin(hello)
    await there.end()
    await world.start({"host": HOST, "port": there.port, "tls": "skip"})
    client = await world.client()
    await client.send(f"CONNECT {HOST}:{there.port} HTTP/1.1\r\nHost: {HOST}:{there.port}\r\n\r\n".encode())
    assert (await client.response()).status == 502


async def test_a_server_that_speaks_first_is_passed_where_nothing_is_inspected(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        assert await reader.readline() == b"QUIT\r\n"
        writer.write(b"221 bye\r\n")

    there = await world.origin(origin)
    await world.start({"host": HOST, "port": there.port}, limits=Limits(detect=0.05))
    client = await world.tunnel(there.port, tls=False)
    assert await asyncio.wait_for(client.reader.readline(), 10) == b"220 ready\r\n"
    await client.send(b"QUIT\r\n")
    assert await client.ended() == b"221 bye\r\n"
    assert there.connections == 1


async def test_a_client_that_is_merely_slow_is_judged_like_any_other(world: World) -> None:
    there = await world.origin(hello)
    await world.start({"host": HOST, "port": there.port}, limits=Limits(detect=0.05))
    client = await world.tunnel(there.port, tls=False)
    while not there.connections:  # it was dialled for a server that may speak first
        await asyncio.sleep(0.01)
    await client.send(get(f"{HOST}:{there.port}", "/a"))
    assert (await client.response()).body == b"GET /a HTTP/1.1|"
    await asyncio.wait_for(there.closed.wait(), SECONDS)  # that connection serves nobody
    assert any(one["message"] == f"L7_REQUEST allow GET {HOST}:{there.port}/a" for one in await world.events())


@pytest.mark.parametrize("inspected", [False, True])
async def test_a_client_that_leaves_without_a_word_is_nobodys_fault(world: World, inspected: bool) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port) if inspected else {"host": HOST, "port": there.port})
    client = await world.tunnel(there.port, tls=False)
    client.writer.write_eof()
    assert await client.ended() == b""
    assert there.connections == 0
    told = [one["message"] for one in await world.events() if "dst_endpoint" in one]
    assert told == [f"CONNECT allowed {HOST}:{there.port}"]


async def test_where_requests_are_judged_nobody_is_dialled_for_a_client_that_says_nothing(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port), limits=Limits(first_head=0.1))
    client = await world.tunnel(there.port, tls=False)
    assert await client.ended() == b""
    assert there.connections == 0


async def test_where_requests_are_judged_a_client_has_the_time_of_a_head_to_begin(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port), limits=Limits(detect=0.01))
    client = await world.tunnel(there.port, tls=False)
    ending = asyncio.create_task(client.reader.read(1))
    assert not (await asyncio.wait((ending,), timeout=0.2))[0]
    await client.send(get(f"{HOST}:{there.port}"))
    assert await asyncio.wait_for(ending, SECONDS) == b"H"


@pytest.mark.parametrize("ends", [False, True])
async def test_what_a_server_says_at_once_and_at_length_arrives_in_order(world: World, ends: bool) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(BIG)
        await writer.drain()
        if ends:
            writer.write_eof()
        await reader.read()

    there = await world.origin(origin)
    await world.start({"host": HOST, "port": there.port, "tls": "skip"})
    client = await world.tunnel(there.port, tls=False)
    assert await asyncio.wait_for(client.reader.readexactly(len(BIG)), 10) == BIG


async def until_end_then_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An origin that answers, at length, only once its client has said all it has to say."""
    got = await reader.read()
    writer.write(got[::-1])
    await writer.drain()


async def _half_closed(client: Client) -> bytes:
    await client.send(BIG)
    client.writer.write_eof()
    return await client.ended()


async def test_half_close_and_both_directions_through_a_tunnel(world: World) -> None:
    there = await world.origin(until_end_then_all)
    await world.start({"host": HOST, "port": there.port, "tls": "skip"})
    assert await _half_closed(await world.tunnel(there.port, tls=False)) == BIG[::-1]


async def test_half_close_and_both_directions_through_the_gateway_port(world: World) -> None:
    there = await world.origin(until_end_then_all)
    world.gateway = ("127.0.0.1", there.port)
    await world.start()
    assert await _half_closed(await world.client(1)) == BIG[::-1]


async def test_the_gateway_may_end_first_and_still_be_sent_to(world: World) -> None:
    got = asyncio.get_running_loop().create_future()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        got.set_result(await reader.read())

    there = await world.origin(origin)
    world.gateway = ("127.0.0.1", there.port)
    await world.start()
    client = await world.client(1)
    assert await client.ended() == b"bye"
    await client.send(b"more")
    client.writer.write_eof()
    assert await asyncio.wait_for(got, 10) == b"more"


async def test_what_a_gateway_says_before_it_leaves_at_once_arrives(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(BIG)
        await writer.drain()

    there = await world.origin(origin)
    world.gateway = ("127.0.0.1", there.port)
    await world.start()
    for _ in range(20):
        client = await world.client(1)
        assert await client.ended() == BIG


async def test_the_gateway_port_is_closed_without_a_gateway(world: World) -> None:
    await world.start()
    client = await world.client(1)
    assert await client.ended() == b""
    details = [one.get("status_detail", "") for one in await world.events()]
    assert any("openshell_gateway_endpoint" in detail for detail in details)


async def test_a_reload_judges_the_next_request_of_an_open_tunnel(world: World) -> None:
    there = await world.origin(hello, tls=True)
    await world.start(rest(there.port))
    assert world.sidecar is not None
    client = await world.tunnel(there.port)
    place = f"{HOST}:{there.port}"
    await client.send(get(place))
    assert (await client.response()).status == 200
    world.write_policy([rest(there.port, protocol="no such")])
    assert world.sidecar.reload()["policy_error"]
    await client.send(get(place))
    assert (await client.response()).status == 200  # a policy that cannot be used changes nothing
    world.write_policy([])
    assert world.sidecar.reload()["policy_error"] == ""
    await client.send(get(place))
    assert (await client.response()).status == 403


async def test_websocket_over_tls(world: World) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(SWITCHING)
        while data := await reader.read(1 << 20):
            writer.write(data)
            await writer.drain()

    there = await world.origin(origin, tls=True)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port)
    await client.send(get(f"{HOST}:{there.port}", "/", *WEBSOCKET))
    assert (await client.head())[0] == 101
    sending = asyncio.create_task(client.send(BIG))
    assert await asyncio.wait_for(client.reader.readexactly(len(BIG)), 20) == BIG
    await sending


async def test_the_origin_is_asked_for_its_own_name(world: World) -> None:
    names: list[str] = []

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, fields, _ = await read_request(reader)
        names.append(fields["host"])
        writer.write(answer())

    there = await world.origin(origin, tls=True)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port)
    await client.send(get(f"ORIGIN.test:{there.port}"))
    assert (await client.response()).status == 200
    assert names == [f"{HOST}:{there.port}"]


async def test_an_origin_that_is_not_there_ends_the_tunnel_of_a_silent_client(world: World) -> None:
    """Nothing is looked into there, so the origin is dialled only when the client has had its time to begin with TLS."""
    there = await world.origin(hello)
    await there.end()
    await world.start({"host": HOST, "port": there.port})
    client = await world.tunnel(there.port, tls=False)
    assert await client.ended() == b""
    told = (await world.events())[-2]
    assert told["action_id"] == 2
    assert str(told["status_detail"]).startswith(f"{HOST}:{there.port} is unreachable: ")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("https://{host}:{port}/a", 200),
        ("https://other.test:{port}/a", 421),
        ("https://{host}/a", 421),
        ("http://{host}:{port}/a", 421),
        ("ftp://{host}:{port}/a", 421),
        ("a", 400),
    ],
)
async def test_an_absolute_target_within_a_tunnel_is_for_its_host(world: World, target: str, status: int) -> None:
    there = await world.origin(hello, tls=True)
    await world.start(rest(there.port))
    client = await world.tunnel(there.port)
    line = target.format(host=HOST, port=there.port)
    await client.send(f"GET {line} HTTP/1.1\r\nHost: {HOST}:{there.port}\r\n\r\n".encode())
    got = await client.response()
    assert got.status == status
    assert status != 200 or got.body == b"GET /a HTTP/1.1|"


QUICK = (socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


@pytest.fixture
def set_options(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The options of sockets that are set from here on."""
    found: list[tuple[object, ...]] = []

    def spied(sock: socket.socket, *args: object) -> None:
        found.append(args)
        socket._socket.socket.setsockopt(sock, *args)  # type: ignore[attr-defined]

    monkeypatch.setattr(socket.socket, "setsockopt", spied, raising=False)
    return found


async def test_the_clients_last_word_of_a_handshake_is_acknowledged_at_once(
    world: World, set_options: list[tuple[object, ...]]
) -> None:
    there = await world.origin(hello, tls=True)
    await world.start(rest(there.port))
    plain = await world.tunnel(there.port, tls=False)
    await plain.send(b"SSH-2.0-")
    await plain.reader.read()
    assert set_options and QUICK not in set_options
    await world.tunnel(there.port)
    assert QUICK in set_options


async def test_nobody_is_acknowledged_whose_connection_has_ended(
    world: World, set_options: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = await world.origin(hello, tls=True)
    await world.start(rest(there.port))
    made = Stream.connection_made

    def ended_at_once(stream: Stream, transport: asyncio.BaseTransport) -> None:
        made(stream, transport)
        if type(stream) is Stream:
            stream.eof_received()

    monkeypatch.setattr(Stream, "connection_made", ended_at_once)
    client = await world.tunnel(there.port)
    assert await client.reader.read() == b""
    assert QUICK not in set_options
