# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent's name server: what it answers, what it does not, and that no bytes unsettle it."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct

import dns.asyncquery
import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import HOST, World, rest
from name_server import AGENT, PROXY, Asked, check_any_message
from openshell_proxy.entrances import dns as entrance
from openshell_proxy.entrances import name_server
from openshell_proxy.entrances.name_server import render
from openshell_proxy.settings import Limits

DNS_TCP, DNS_UDP = 4, 5
SECONDS = 10


@pytest.fixture
def ask() -> Asked:
    return Asked()


def data(response: dns.message.Message) -> list[str]:
    return [rdata.to_text() for rrset in response.answer for rdata in rrset]


@pytest.mark.parametrize(
    "name",
    [
        "api.example.com",
        "API.Example.COM.",
        "a.wild.example.com",
        "a.b.c.deep.example.com",
        "under_score.example.com",
        "xn--bcher-kva.example",
        "inference.local",
        "policy.local",
        "openshell-proxy-demo",
    ],
)
def test_what_the_policy_allows_is_at_the_sidecar(ask: Asked, name: str) -> None:
    response = ask(name)
    assert (response.rcode(), data(response)) == (dns.rcode.NOERROR, [PROXY])
    assert 0 < response.answer[0].ttl <= 30
    assert ask.refused == []


@pytest.mark.parametrize(
    ("name", "address"),
    [("demo", AGENT), ("openshell-agent-demo", AGENT), ("localhost", "127.0.0.1"), ("Openshell-Proxy-Demo", PROXY)],
)
def test_the_sandboxs_own_names(ask: Asked, name: str, address: str) -> None:
    assert data(ask(name)) == [address]


@pytest.mark.parametrize(
    ("address", "name"),
    [(PROXY, "openshell-proxy-demo."), (AGENT, "openshell-agent-demo."), ("127.0.0.1", "localhost.")],
)
def test_the_own_addresses_have_names(ask: Asked, address: str, name: str) -> None:
    reverse = ".".join(reversed(address.split("."))) + ".in-addr.arpa"
    assert data(ask(reverse, "PTR")) == [name]
    assert ask(reverse, "A").rcode() == dns.rcode.NOERROR


@pytest.mark.parametrize(
    "name",
    [
        "example.com",
        "evil.example",
        "wild.example.com",
        "a.b.wild.example.com",
        "deep.example.com",
        "api.example.com.evil.example",
        "openshell-agent-other",
        "93.184.216.34",
        "2130706433",
        "a.0x7f000001.",
        "metadata.google.internal",
        "METADATA.google.internal",
        "host.containers.internal",
        "host.docker.internal",
        "host.openshell.internal",
        "34.216.184.93.in-addr.arpa",
        r"a\.b.deep.example.com",
        r"a\000.wild.example.com",
        r"b\195\188cher.deep.example.com",
        "*.wild.example.com",
        "a b.wild.example.com",
    ],
)
@pytest.mark.parametrize("kind", ["A", "AAAA", "ANY", "TXT"])
def test_no_other_name_exists(ask: Asked, name: str, kind: str) -> None:
    response = ask(name, kind)
    assert (response.rcode(), response.answer) == (dns.rcode.NXDOMAIN, [])
    assert response.authority[0].rdtype == dns.rdatatype.SOA
    shown = dns.name.from_text(name).to_text(omit_final_dot=True).lower()
    assert ask.refused == [(shown, "no endpoint of the policy names this host")]


@pytest.mark.parametrize("name", [r"a\.b.example.com", "127.0.0.1", "a b.example.com", "*.example.com"])
def test_what_can_be_no_host_is_not_even_asked_about(ask: Asked, name: str) -> None:
    ask.server.names_host = lambda host: True
    assert data(ask("any.example.com")) == [PROXY]
    assert ask(name).rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize("name", ["api.example.com", "demo", "localhost", "."])
@pytest.mark.parametrize("kind", ["AAAA", "MX", "TXT", "HTTPS", "SVCB", "SRV", "NS", "CNAME", "TYPE65280"])
def test_other_types_have_no_data_and_say_for_how_long(ask: Asked, name: str, kind: str) -> None:
    """RFC 2308, 2.2 and 5: the SOA's own TTL and its minimum bound how long a "no" is kept."""
    response = ask(name, kind)
    assert (response.rcode(), response.answer) == (dns.rcode.NOERROR, [])
    soa = response.authority[0]
    assert soa.rdtype == dns.rdatatype.SOA
    assert soa.ttl == soa[0].minimum == name_server.NEGATIVE_TTL
    assert ask.refused == []


def test_any_is_minimal(ask: Asked) -> None:
    assert data(ask("api.example.com", "ANY")) == [PROXY]
    assert data(ask(".", "ANY")) == []


@pytest.mark.parametrize("kind", ["AXFR", "IXFR", "TSIG", "TKEY", "OPT", "MAILB"])
def test_zones_are_not_given_away(ask: Asked, kind: str) -> None:
    query = dns.message.make_query("api.example.com", "A")
    query.question[0].rdtype = dns.rdatatype.from_text(kind)
    assert ask.wire(query.to_wire()).rcode() == dns.rcode.REFUSED
    assert len(ask.refused) == 1


@pytest.mark.parametrize("name", ["aPi.eXaMPLe.CoM", "EVIL.example"])
def test_the_questions_case_comes_back(ask: Asked, name: str) -> None:
    """0x20: a client that varies the case accepts no other answer."""
    response = ask(name)
    assert response.question[0].name.to_text() == name + "."
    assert [rrset.name.to_text() for rrset in response.answer] in ([name + "."], [])


@pytest.mark.parametrize("rdclass", ["CH", "HS", "ANY", "NONE"])
def test_another_class_is_refused(ask: Asked, rdclass: str) -> None:
    assert ask("api.example.com", rdclass=rdclass).rcode() == dns.rcode.REFUSED


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 6, 15])
def test_another_opcode_is_not_implemented(ask: Asked, opcode: int) -> None:
    wire = bytearray(dns.message.make_query("api.example.com", "A").to_wire())
    wire[2] |= opcode << 3
    response = ask.server.answer(bytes(wire), udp=True)
    assert response is not None
    assert response[:2] == wire[:2]
    assert response[2] >> 3 & 15 == opcode
    assert response[3] & 15 == dns.rcode.NOTIMP


def questions(count: int) -> bytes:
    whole = dns.message.make_query("api.example.com", "A", use_edns=False).to_wire()
    return whole[:4] + struct.pack("!H", count) + whole[6:12] + whole[12:] * count


def section(place: int) -> bytes:
    """A query with an address record in the section that the header counts at *place*."""
    query = dns.message.make_query("api.example.com", "A", use_edns=False)
    query.sections[place].append(dns.rrset.from_text("api.example.com.", 1, "IN", "A", "192.0.2.1"))
    return query.to_wire()


@pytest.mark.parametrize(
    "wire",
    [
        questions(0),
        questions(2),
        section(1),
        section(2),
        questions(1)[:-1],
        questions(1) + b"x",
        questions(1)[:12] + b"\xc0\x0c\x00\x01\x00\x01",  # a name that points at itself
        questions(1)[:12] + b"\x80a\x00\x00\x01\x00\x01",  # a label of no kind
        questions(1)[:12] + b"\x3fa",
        questions(1)[:4] + b"\xff\xff" * 4,
    ],
    ids=lambda wire: "message",  # message ids are random, names must not be
)
def test_a_malformed_query_gets_a_formerr(ask: Asked, wire: bytes) -> None:
    response = ask.wire(wire)
    assert (response.rcode(), response.id, response.answer) == (dns.rcode.FORMERR, int.from_bytes(wire[:2], "big"), [])
    assert len(ask.refused) == 1


def test_two_opts_are_a_formerr(ask: Asked) -> None:
    opt = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"
    wire = questions(1)
    assert ask.wire(wire[:10] + b"\x00\x02" + wire[12:] + opt * 2).rcode() == dns.rcode.FORMERR
    assert ask.wire(wire[:10] + b"\x00\x01" + wire[12:] + opt).rcode() == dns.rcode.NOERROR


@pytest.mark.parametrize(
    "wire",
    [b"", b"x" * 11, dns.message.make_response(dns.message.make_query("a", "A")).to_wire()],
    ids=["nothing", "short", "response"],
)
def test_what_is_not_even_a_question_is_not_answered(ask: Asked, wire: bytes) -> None:
    assert ask.server.answer(wire, udp=True) is None


def test_another_version_of_edns_is_told_ours(ask: Asked) -> None:
    response = ask("api.example.com", use_edns=1)
    assert (response.rcode(), response.edns, response.answer) == (dns.rcode.BADVERS, 0, [])


def test_edns_is_answered_with_edns_and_without_padding(ask: Asked) -> None:
    assert ask("api.example.com", use_edns=False).edns == -1
    padding = dns.edns.GenericOption(dns.edns.OptionType.PADDING, bytes(100))
    response = ask("api.example.com", use_edns=0, payload=4096, options=[padding], want_dnssec=True)
    assert (response.edns, response.payload, response.options) == (0, 1232, ())
    assert len(response.to_wire()) < 100


@pytest.mark.parametrize(("payload", "longest"), [(-1, 512), (0, 512), (600, 600), (4096, 1232)])
def test_an_answer_over_udp_is_no_longer_than_asked_for(
    ask: Asked, monkeypatch: pytest.MonkeyPatch, payload: int, longest: int
) -> None:
    limits: list[int] = []
    monkeypatch.setattr(name_server, "render", lambda response, limit: limits.append(limit) or render(response, limit))
    query = dns.message.make_query("api.example.com", "A", use_edns=payload >= 0, payload=max(payload, 0))
    ask.server.answer(query.to_wire(), udp=True)
    ask.server.answer(query.to_wire(), udp=False)
    assert limits == [longest, 65_535]


def test_what_does_not_fit_is_truncated() -> None:
    response = dns.message.make_response(dns.message.make_query("a.test", "A"))
    addresses = [f"192.0.2.{number}" for number in range(100)]
    response.answer.append(dns.rrset.from_text("a.test.", 1, "IN", "A", *addresses))
    wire = render(response, 512)
    assert len(wire) <= 512
    assert dns.message.from_wire(wire).flags & dns.flags.TC
    assert not dns.message.from_wire(render(response, 65_535)).flags & dns.flags.TC


NAMES = st.lists(st.binary(min_size=1, max_size=63), max_size=4).map(
    lambda labels: b"".join(bytes([len(label)]) + label for label in labels) + b"\x00"
)
QUERIES = st.builds(
    lambda flags, counts, name, tail: struct.pack("!6H", 7, flags, *counts) + name + tail,
    st.integers(0, 65_535),
    st.tuples(*[st.integers(0, 2)] * 4),
    NAMES,
    st.one_of(st.just(b"\x00\x01\x00\x01"), st.binary(max_size=80)),
)


@given(wire=st.one_of(st.binary(max_size=600), QUERIES), udp=st.booleans())
def test_no_bytes_unsettle_it_or_make_it_name_an_address(wire: bytes, udp: bool) -> None:
    check_any_message(wire, udp)


async def query(world: World, name: str, kind: str = "A", *, tcp: bool = False) -> dns.message.Message:
    assert world.sidecar is not None
    port = world.sidecar.listeners[DNS_TCP if tcp else DNS_UDP].port
    asks = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    return await asks(dns.message.make_query(name, kind), "127.0.0.1", SECONDS, port)


@pytest.mark.parametrize("tcp", [False, True])
async def test_over_its_sockets(world: World, tcp: bool) -> None:
    await world.start(rest(443))
    assert data(await query(world, HOST, tcp=tcp)) == ["127.0.0.1"]
    assert (await query(world, "evil.test", tcp=tcp)).rcode() == dns.rcode.NXDOMAIN
    denied = [one for one in await world.events() if one.get("action_id") == 2]
    assert [(one["dst_endpoint"]["domain"], one["unmapped"]["entrance"]) for one in denied] == [("evil.test", "dns")]


async def test_a_reload_changes_the_names(world: World) -> None:
    await world.start()
    assert world.sidecar is not None
    assert (await query(world, HOST)).rcode() == dns.rcode.NXDOMAIN
    world.write_policy([rest(443)])
    world.sidecar.reload()
    assert data(await query(world, HOST)) == ["127.0.0.1"]


async def test_nothing_is_looked_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the sidecar can look a name up with is not even called, for allowed names and refused ones."""
    looked_up: list[str] = []

    async def getaddrinfo(_loop: object, host: str, *_args: object, **_more: object) -> list[object]:
        looked_up.append(host)
        return []

    await world.start(rest(443), {**rest(443), "host": "*.wild.test"})
    assert world.sidecar is not None
    monkeypatch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", getaddrinfo, raising=False)
    for name in (HOST, "secret.wild.test", "secret.evil.test"):
        await query(world, name)
    await world.sidecar.pipeline.guard.resolver.resolve("control.test")
    assert looked_up == ["control.test"]


async def test_garbage_over_udp_is_survived(world: World) -> None:
    await world.start(rest(443))
    assert world.sidecar is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for size in (0, 1, 11, 12, 13, 512, 65_000):
            client.sendto(b"\x01" * size, ("127.0.0.1", world.sidecar.listeners[DNS_UDP].port))
    assert data(await query(world, HOST)) == ["127.0.0.1"]


async def test_a_loop_floods_neither_log_nor_counts_it_away(world: World) -> None:
    await world.start(rest(443))
    for number in range(entrance.LOGGED + 30):
        await query(world, f"{number}.evil.test")
    denied = [one for one in await world.events() if one.get("action_id") == 2]
    assert len(denied) == entrance.LOGGED + 1
    assert denied[-1]["status_detail"].startswith("30 more questions")


async def test_what_is_left_out_is_said_in_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "LOGGED", 1)
    monkeypatch.setattr(entrance, "LOGGED_SECONDS", 0.05)
    await world.start(rest(443))
    async with asyncio.timeout(SECONDS):
        for number in itertools.count():
            await query(world, f"{number}.evil.test")
            if "more questions" in world.log.getvalue():
                break


@pytest.mark.parametrize("tcp", [False, True])
async def test_only_the_agent_is_answered(world: World, tcp: bool) -> None:
    await world.start(rest(443), agent_ip="127.0.0.9")
    assert world.sidecar is not None
    asking = asyncio.create_task(query(world, HOST, tcp=tcp))
    async with asyncio.timeout(SECONDS):
        while "not the agent of this sandbox" not in world.log.getvalue():
            await asyncio.sleep(0.001)
    if tcp:
        with pytest.raises((EOFError, ConnectionError)):
            await asking
    else:
        assert not asking.done()
        asking.cancel()


def framed(*wires: bytes) -> bytes:
    return b"".join(len(wire).to_bytes(2, "big") + wire for wire in wires)


async def test_several_questions_over_one_connection_in_any_pieces(world: World) -> None:
    await world.start(rest(443))
    client = await world.client(DNS_TCP)
    asked = [dns.message.make_query(name, "A") for name in (HOST, "evil.test", HOST)]
    for byte in framed(*(one.to_wire() for one in asked)):
        await client.send(bytes([byte]))
    client.writer.write_eof()
    for one in asked:
        length = int.from_bytes(await client.reader.readexactly(2), "big")
        assert one.is_response(dns.message.from_wire(await client.reader.readexactly(length)))
    assert await client.ended() == b""


@pytest.mark.parametrize("first", [b"", b"\x00", b"\x00\x20half", framed(b""), framed(b"short")])
async def test_a_stream_that_is_idle_or_nonsense_is_closed(world: World, first: bytes) -> None:
    await world.start(rest(443), limits=Limits(dns_idle=0.1))
    client = await world.client(DNS_TCP)
    await client.send(first)
    assert await client.ended() == b""


async def test_connections_over_tcp_count_like_all_others(world: World) -> None:
    await world.start(rest(443), limits=Limits(connections=2))
    held = [await world.client(DNS_TCP) for _ in range(2)]
    assert await (await world.client(DNS_TCP)).ended() == b""
    await held[0].send(framed(dns.message.make_query(HOST, "A").to_wire()))
    assert await asyncio.wait_for(held[0].reader.readexactly(2), SECONDS)
    assert any(one.get("status_detail") == "too many open connections" for one in await world.events())
