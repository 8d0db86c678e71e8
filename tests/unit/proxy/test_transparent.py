# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Clients that know of no proxy: their connection comes to us as if we were the server.

The port that they connect to is the one they want, so an origin of these tests is at another loopback address and the
sidecar listens at the same port.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from typing import Any

import pytest
from loopback import HOST, Client, LoopbackGuard, World, answer, hello, read_request, rest
from openshell_proxy.destination import Guard
from openshell_proxy.entrances.transparent import ClientHello
from openshell_proxy.settings import Limits

THERE = "127.0.0.2"
HTTP, TLS = 2, 3
DENIED = "denied.test"


async def https(world: World, *endpoints: dict[str, Any], port: int, **more: Any) -> None:
    await world.start(*endpoints, tls_port=port, **{"guard": LoopbackGuard(THERE), **more})


async def http(world: World, *endpoints: dict[str, Any], port: int, **more: Any) -> None:
    await world.start(*endpoints, http_port=port, **{"guard": LoopbackGuard(THERE), **more})


def trusting(world: World) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=world.directory / "tls/ca.pem")


async def secured(world: World, name: str = HOST, context: ssl.SSLContext | None = None) -> Client:
    client = await world.client(TLS)
    await client.start_tls(context or trusting(world), name)
    return client


def get(host: str, target: str = "/", method: str = "GET") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def client_hello(name: str | None) -> bytes:
    """What a client of this machine's OpenSSL says first; *name* may be none that it would say by itself."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    out = ssl.MemoryBIO()
    stand_in = ("n." * 128)[: len(name) - 1] + "n" if name else None
    connection = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=stand_in)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return out.read().replace(stand_in.encode(), name.encode()) if name and stand_in else out.read()


def record(fragment: bytes) -> bytes:
    return b"\x16\x03\x01" + len(fragment).to_bytes(2, "big") + fragment


def padded(message: bytes, size: int) -> bytes:
    """The ClientHello of the record *message* with an extension (RFC 8701) that makes it *size* bytes longer."""
    body = bytearray(message[9:])
    position = 34 + 1 + body[34]  # version and random, session id
    position += 2 + int.from_bytes(body[position : position + 2], "big")  # cipher suites
    position += 1 + body[position]  # compression methods
    extensions = bytes(body[position + 2 :]) + b"\x0a\x0a" + (size - 4).to_bytes(2, "big") + bytes(size - 4)
    body[position:] = len(extensions).to_bytes(2, "big") + extensions
    return b"\x01" + len(body).to_bytes(3, "big") + bytes(body)


async def test_each_request_is_judged(world: World) -> None:
    there = await world.origin(hello, tls=True, address=THERE)
    await https(world, rest(there.port, "read-only"), port=there.port)
    client = await secured(world)
    place = f"{HOST}:{there.port}"
    await client.send(get(place, "/one?secret=1"))
    assert (await client.response()).body == b"GET /one?secret=1 HTTP/1.1|"
    await client.send(get(place, "/two", "POST"))
    assert (await client.response()).status == 403
    decisions = [one for one in await world.events() if one["class_uid"] in (4001, 4002)]
    assert [(one["message"], one["unmapped"]["entrance"]) for one in decisions] == [
        (f"TRANSPARENT allowed {place}", "transparent"),
        (f"L7_REQUEST allow GET {place}/one", "tunnel"),
        (f"L7_REQUEST deny POST {place}/two", "tunnel"),
    ]
    assert "secret" not in world.log.getvalue()


async def test_tls_skip_shows_the_client_the_origins_own_certificate(world: World) -> None:
    there = await world.origin(hello, tls=True, address=THERE)
    await https(world, {"host": HOST, "port": there.port, "tls": "skip"}, port=there.port)
    (world.directory / "origin-ca.pem").write_bytes(world.origin_authority.mint.certificate_pem)
    pinned = ssl.create_default_context(cafile=world.directory / "origin-ca.pem")
    client = await secured(world, context=pinned)
    await client.send(get("any.host", "/pinned"))
    assert (await client.response()).body == b"GET /pinned HTTP/1.1|"
    client.close()
    messages = [one["message"] for one in await world.events()]
    assert f"TRANSPARENT closed {HOST}:{there.port}" in messages


async def test_a_host_that_the_policy_does_not_name_is_told_why_over_tls(world: World) -> None:
    there = await world.origin(hello, tls=True, address=THERE)
    await https(world, rest(there.port), port=there.port)
    client = await secured(world, DENIED)
    await client.send(get(f"{DENIED}:{there.port}", "/path?secret=1"))
    got = await client.response()
    assert (got.status, got.json["error"], got.json["layer"]) == (403, "policy_denied", "l4")
    assert got.json["rule_missing"]["host"] == DENIED
    assert there.connections == 0
    denied = [one["message"] for one in await world.events() if one.get("action_id") == 2]
    assert denied == [f"TRANSPARENT denied {DENIED}:{there.port}", f"L7_REQUEST deny GET {DENIED}:{there.port}/path"]
    assert "secret" not in world.log.getvalue()


async def test_another_port_of_an_allowed_host_is_refused(world: World) -> None:
    there = await world.origin(hello, tls=True, address=THERE)
    await https(world, rest(443), port=there.port)
    client = await secured(world)
    await client.send(get(f"{HOST}:{there.port}"))
    assert (await client.response()).status == 403
    assert there.connections == 0


class Names:
    """A resolver that knows one address for every name."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def resolve(self, host: str) -> tuple[str, ...]:
        return (self.address,)


async def test_the_sidecar_itself_is_no_destination(world: World) -> None:
    """A name that resolves to the sidecar's own address outside would make it speak to itself, again and again."""
    own = ipaddress.IPv4Network("10.89.0.0/24")
    there = await world.origin(hello, tls=True, address=THERE)
    guard = Guard(own_networks=[own], resolver=Names("10.89.0.2"))
    await https(world, rest(there.port), port=there.port, guard=guard)
    client = await secured(world)
    await client.send(get(f"{HOST}:{there.port}"))
    got = await client.response()
    assert (got.status, got.json["error"]) == (403, "ssrf_denied")
    engines = [one["firewall_rule"]["type"] for one in await world.events() if one.get("action_id") == 2]
    assert engines == ["ssrf", "ssrf"]


async def test_what_is_not_to_be_looked_into_is_not_for_a_refusal_either(world: World) -> None:
    there = await world.origin(hello, tls=True, address=THERE)
    await there.end()
    await https(world, {"host": HOST, "port": there.port, "tls": "skip"}, port=there.port)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await secured(world)
    denied = [one["status_detail"] for one in await world.events() if one.get("action_id") == 2]
    assert len(denied) == 1
    assert "unreachable" in denied[0]


async def test_a_host_header_that_is_not_the_server_name_is_misdirected(world: World) -> None:
    there = await world.origin(hello, tls=True, address=THERE)
    other = {**rest(there.port), "host": "other.test"}
    await https(world, rest(there.port), other, port=there.port)
    client = await secured(world)
    await client.send(get(f"other.test:{there.port}"))
    assert (await client.response()).status == 421
    assert there.received == 0


@pytest.mark.parametrize("name", [None, "127.0.0.2", "2130706434", "a..b", "bad!name", "x" * 64])
async def test_a_hello_without_a_host_name_is_refused_with_an_alert(world: World, name: str | None) -> None:
    there = await world.origin(hello, tls=True, address=THERE)
    await https(world, {**rest(there.port), "host": name or HOST}, port=there.port)
    client = await world.client(TLS)
    await client.send(client_hello(name))
    assert (await client.ended())[:1] == b"\x15"  # a TLS alert (RFC 8446, 5.1)
    details = [one["status_detail"] for one in await world.events() if one.get("action_id") == 2]
    assert len(details) == 1
    assert ("is not a host name" if name else "has no server name (SNI)") in details[0]
    assert there.connections == 0


@pytest.mark.parametrize("size", [300, 1500, 9000])
@pytest.mark.parametrize("step", [1, 97, 100_000])
async def test_hellos_of_any_length_in_any_pieces(world: World, size: int, step: int) -> None:
    """Post-quantum key shares need more than one packet; some clients cut their hello so that no record has the name."""
    message = padded(client_hello(HOST), size)
    whole = record(message[:20]) + record(message[20:150]) + record(message[150:])
    read = ClientHello()
    pieces = range(step, len(whole) + step, step)
    assert [read.feed(whole[:end]) for end in pieces] == [False] * (len(pieces) - 1) + [True]
    assert (read.host, read.problem()) == (HOST, "")


async def test_a_hello_in_pieces_reaches_its_origin(world: World) -> None:
    there = await world.origin(hello, tls=True, address=THERE)
    await https(world, {"host": HOST, "port": there.port, "tls": "skip"}, port=there.port)
    client = await world.client(TLS)
    whole = record(padded(client_hello(HOST), 5000))
    for start in range(0, len(whole), 1000):
        await client.send(whole[start : start + 1000])
        await asyncio.sleep(0)
    first = await asyncio.wait_for(client.reader.readexactly(1), 10)
    assert first == b"\x16"  # the origin's own part of the handshake


async def test_a_hello_with_much_behind_it_is_read_too(world: World) -> None:
    """Early data (RFC 8446, 2.3) may follow it at once."""
    sent = client_hello(HOST) + bytes(100_000)

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"all" if await reader.readexactly(len(sent)) == sent else b"something else")

    there = await world.origin(origin, address=THERE)
    await https(world, {"host": HOST, "port": there.port, "tls": "skip"}, port=there.port)
    client = await world.client(TLS)
    await client.send(sent)
    assert await client.ended() == b"all"


@pytest.mark.parametrize(
    ("first", "detail", "reply"),
    [
        (b"GET / HTTP/1.1\r\nHost: origin.test\r\n\r\n", "for http:// use port 80", b"HTTP/1.1 400"),
        (b"SSH-2.0-client\r\n", "no TLS hello", b""),
        (bytes(600), "no TLS hello", b""),
        (b"\x16\x03\x01\xff\xff" + bytes(600), "no TLS hello", b"\x15"),
        (b"\x16\x03\x01\x40\x00\x01\x01\x00\x00" + bytes(20_000), "no TLS hello", b""),
        (client_hello("a\0b.test"), "no TLS hello", b"\x15"),
    ],
)
async def test_what_is_no_hello_is_refused(world: World, first: bytes, detail: str, reply: bytes) -> None:
    await https(world, rest(443), port=0)
    client = await world.client(TLS)
    await client.send(first)
    got = await client.ended()
    assert got.startswith(reply) if reply else got[:1] in (b"", b"\x15")
    denied = [one["status_detail"] for one in await world.events() if one.get("action_id") == 2]
    assert len(denied) == 1
    assert detail in denied[0]


async def test_a_hello_that_never_ends_is_refused_in_time(world: World) -> None:
    await https(world, rest(443), port=0, limits=Limits(first_head=0.5))
    client = await world.client(TLS)
    await client.send(client_hello(HOST)[:-1])
    assert await client.ended() == b""
    denied = [one["status_detail"] for one in await world.events() if one.get("action_id") == 2]
    assert denied == ["the client's first bytes are no TLS hello: it did not come in time"]


async def test_a_connection_without_a_byte_is_nobodys_fault(world: World) -> None:
    await https(world, rest(443), port=0, limits=Limits(first_head=0.1))
    for port in (HTTP, TLS):
        assert await (await world.client(port)).ended() == b""
    assert not [one for one in await world.events() if one.get("action_id") == 2]


async def test_quic_is_refused_at_once(world: World) -> None:
    """Nobody listens at the port over UDP, which the kernel tells; a client falls back to TCP without waiting."""
    await https(world, rest(443), port=0)
    assert world.sidecar is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect(("127.0.0.1", world.sidecar.listeners[TLS].port))
        client.send(b"\xc0\x00\x00\x00\x01" + bytes(1195))
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)


async def named(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An origin that answers with the Host it was asked for."""
    while True:
        line, fields, _ = await read_request(reader)
        writer.write(answer(f"{fields['host']} {line} {fields.get('via')}".encode()))
        await writer.drain()


async def test_plain_http_goes_where_its_host_says_request_by_request(world: World) -> None:
    there = await world.origin(named, address=THERE)
    port = there.port
    other = {**rest(port, "read-only"), "host": "other.test"}
    await http(world, rest(port), other, port=port)
    client = await world.client(HTTP)
    for host, method in ((HOST, "POST"), ("other.test", "GET"), ("ORIGIN.test", "GET")):
        await client.send(get(f"{host}:{port}", "/a?secret=1", method))
        got = await client.response()
        assert got.body == f"{host.lower()}:{port} {method} /a?secret=1 HTTP/1.1 None".encode()
    await client.send(get(f"other.test:{port}", "/", "POST"))
    assert (await client.response()).status == 403
    lines = [(one["message"], one["unmapped"]["entrance"]) for one in await world.events() if "http_request" in one]
    assert lines[1] == (f"L7_REQUEST allow GET other.test:{port}/a", "transparent")
    assert lines[3] == (f"L7_REQUEST deny POST other.test:{port}/", "transparent")
    assert "secret" not in world.log.getvalue()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET / HTTP/1.1\r\nHost: denied.test:{port}", 403),
        ("GET http://origin.test:{port}/ HTTP/1.1\r\nHost: denied.test:{port}", 421),
        ("GET http://denied.test:{port}/ HTTP/1.1\r\nHost: origin.test:{port}", 421),
        ("GET https://origin.test:{port}/ HTTP/1.1\r\nHost: origin.test:{port}", 421),
        ("GET / HTTP/1.1\r\nHost: origin.test", 421),
        ("GET / HTTP/1.1\r\nHost: origin.test:22", 421),
        ("GET / HTTP/1.0", 400),
        ("GET / HTTP/1.1\r\nHost: origin.test:{port}\r\nHost: denied.test:{port}", 400),
        ("GET / HTTP/1.1\r\nHost: a@origin.test:{port}", 400),
        ("CONNECT origin.test:{port} HTTP/1.1\r\nHost: origin.test:{port}", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM", 400),
    ],
)
async def test_plain_http_that_is_refused(world: World, head: str, status: int) -> None:
    there = await world.origin(named, address=THERE)
    await http(world, rest(there.port), port=there.port)
    client = await world.client(HTTP)
    await client.send(head.format(port=there.port).encode() + b"\r\n\r\n")
    assert (await client.response()).status == status
    assert there.connections == 0
    assert len([one for one in await world.events() if one.get("action_id") == 2]) == 1


async def test_absolute_form_that_agrees_with_its_host(world: World) -> None:
    there = await world.origin(named, address=THERE)
    await http(world, rest(there.port), port=there.port)
    client = await world.client(HTTP)
    place = f"{HOST}:{there.port}"
    await client.send(get(place, f"http://{place}/a"))
    assert (await client.response()).body == f"{place} GET /a HTTP/1.1 None".encode()


@pytest.mark.parametrize("first", [client_hello(HOST), b"\x00\x01\x02\x03", b"220 ready\r\n"])
async def test_what_is_not_http_is_refused_on_the_http_port(world: World, first: bytes) -> None:
    await http(world, rest(80), port=0)
    client = await world.client(HTTP)
    await client.send(first)
    got = await client.response()
    assert (got.status, got.json["error"]) == (400, "invalid_request")
    denied = [one["status_detail"] for one in await world.events() if one.get("action_id") == 2]
    assert len(denied) == 1
    assert "for https:// use port 443" in denied[0]


@pytest.mark.parametrize("listener", [HTTP, TLS])
async def test_only_the_agent_is_served(world: World, listener: int) -> None:
    await world.start(rest(443), agent_ip="127.0.0.9")
    client = await world.client(listener)
    assert await client.ended() == b""
    assert [one["status_detail"] for one in await world.events() if one.get("action_id") == 2] == [
        "not the agent of this sandbox"
    ]
