# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The agent's only name server: it answers from the policy and looks nothing up, so a question carries nothing out.

A host that the policy allows is at the sidecar's own address, where the transparent entrances take it from there; the
sandbox's own names are where they are; no other name exists. RFC 1035, RFC 2308 (negative answers), RFC 6891 (EDNS),
RFC 7766 (TCP), RFC 8482 (ANY).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset

from openshell_proxy.audit import Audit, Event
from openshell_proxy.destination import HOST_ALIASES, METADATA_HOSTS
from openshell_proxy.entrances.authority_form import host_name
from openshell_proxy.relay.stream import Stream
from openshell_proxy.settings import DNS_PORT, Settings

TTL = 10
NEGATIVE_TTL = 5
UDP_BYTES = 1232  # what no path fragments (RFC 9715)
PLAIN_UDP_BYTES = 512
TCP_BYTES = 65_535
DATAGRAMS_AT_ONCE = 32
LOGGED = 20
LOGGED_SECONDS = 10.0

_HEADER = struct.Struct("!6H")  # id, flags, and the numbers of questions, answers, authorities, additional records
_NEVER_ALLOWED = HOST_ALIASES | METADATA_HOSTS

Refused = Callable[[str, str], None]


class NameServer:
    """Answers messages; does no I/O. ``names_host`` asks the policy of the moment, ``refused(name, why)`` logs."""

    def __init__(self, settings: Settings, names_host: Callable[[str], bool], refused: Refused) -> None:
        agent, proxy, name = settings.agent_ip, settings.proxy_ip, settings.sandbox
        self.proxy_ip = proxy
        self.names_host = names_host
        self.refused = refused
        self.own = {name: agent, f"openshell-agent-{name}": agent, f"openshell-proxy-{name}": proxy}
        self.own |= {"inference.local": proxy, "policy.local": proxy, "localhost": "127.0.0.1"}
        names = {proxy: f"openshell-proxy-{name}.", agent: f"openshell-agent-{name}.", "127.0.0.1": "localhost."}
        self.pointers = {dns.reversename.from_address(address): text for address, text in names.items()}
        # The root is the only zone here, so that whoever caches a "no" (RFC 2308, 5) finds for how long.
        soa = f"openshell-proxy-{name}. . 1 3600 600 86400 {NEGATIVE_TTL}"
        self.soa = dns.rrset.from_text(dns.name.root, NEGATIVE_TTL, "IN", "SOA", soa)

    def answer(self, wire: bytes, *, udp: bool) -> bytes | None:
        """The response to one message, over UDP no longer than asked for; None for what deserves none."""
        if len(wire) < _HEADER.size:
            return None
        number, flags, questions, *records, _ = _HEADER.unpack_from(wire)
        if flags & dns.flags.QR:
            return None  # whoever answers answers never ends
        if dns.opcode.from_flags(flags) != dns.opcode.QUERY:
            return self._error(number, flags, dns.rcode.NOTIMP, "not a query")
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return self._error(number, flags, dns.rcode.FORMERR, "not a DNS message")
        if questions != 1 or any(records):
            return self._error(number, flags, dns.rcode.FORMERR, "not exactly one question")
        response = dns.message.make_response(query, recursion_available=True, our_payload=UDP_BYTES, pad=0)
        response.set_rcode(dns.rcode.BADVERS if query.edns > 0 else self._resolve(query.question[0], response))
        asked = max(query.payload, PLAIN_UDP_BYTES) if query.edns == 0 else PLAIN_UDP_BYTES
        return render(response, min(asked, UDP_BYTES) if udp else TCP_BYTES)

    def _error(self, number: int, flags: int, code: dns.rcode.Rcode, why: str) -> bytes:
        """A bare header: what came after the question's own is not understood."""
        self.refused("", why)
        kept = flags & (0x7800 | dns.flags.RD)  # the opcode, and whether recursion was asked for
        return _HEADER.pack(number, dns.flags.QR | dns.flags.RA | kept | code, 0, 0, 0, 0)

    def _resolve(self, question: dns.rrset.RRset, response: dns.message.Message) -> dns.rcode.Rcode:
        name, kind = question.name, question.rdtype
        shown = name.to_text(omit_final_dot=True).lower()
        if question.rdclass != dns.rdataclass.IN:
            self.refused(shown, "a question of another class than IN")
            return dns.rcode.REFUSED
        if dns.rdatatype.is_metatype(kind) and kind != dns.rdatatype.ANY:
            self.refused(shown, f"a question for {dns.rdatatype.to_text(kind)}")
            return dns.rcode.REFUSED
        found = self._data(name, host_name(shown))
        if found is None:
            self.refused(shown, "no endpoint of the policy names this host")
            response.authority.append(self.soa)
            return dns.rcode.NXDOMAIN
        if found and kind in (found[0], dns.rdatatype.ANY):
            response.answer.append(dns.rrset.from_text(name, TTL, dns.rdataclass.IN, *found))
        else:
            response.authority.append(self.soa)
        return dns.rcode.NOERROR

    def _data(self, name: dns.name.Name, host: str) -> tuple[dns.rdatatype.RdataType, str] | tuple[()] | None:
        """The one record (type, text) that *name* has; empty for a name without any, None for one that is not there."""
        if name == dns.name.root:
            return ()
        if name in self.pointers:
            return dns.rdatatype.PTR, self.pointers[name]
        if not host or host in _NEVER_ALLOWED:
            return None
        address = self.own.get(host) or (self.proxy_ip if self.names_host(host) else None)
        return (dns.rdatatype.A, address) if address else None


def render(response: dns.message.Message, limit: int) -> bytes:
    """The wire form of *response*, cut to *limit* bytes with TC set if it is longer (RFC 2181, 9)."""
    return response.to_wire(max_size=limit, prefer_truncation=True)


class RefusedNames:
    """Logs refused questions, the first :data:`LOGGED` in :data:`LOGGED_SECONDS`; the rest are counted and said."""

    def __init__(self, audit: Audit) -> None:
        self.audit = audit
        self.logged = self.left_out = 0
        self.timer: asyncio.TimerHandle | None = None

    def __call__(self, name: str, why: str) -> None:
        if self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(LOGGED_SECONDS, self.end_of_period)
        if self.logged < LOGGED:
            self.logged += 1
            self._log(name, why)
        else:
            self.left_out += 1

    def end_of_period(self) -> None:
        """Say what was left out, and begin anew."""
        if self.timer is not None:
            self.timer.cancel()
        if self.left_out:
            self._log("", f"{self.left_out} more questions were refused than are logged")
        self.logged = self.left_out = 0
        self.timer = None

    def _log(self, name: str, why: str) -> None:
        self.audit.event(Event("dns", False, name, DNS_PORT, engine="dns", reason=why))


class Datagrams:
    """The name server's UDP port at the sidecar's internal address; only the agent is answered."""

    def __init__(self, address: tuple[str, int], agent_ip: str, server: NameServer) -> None:
        self.agent_ip = agent_ip
        self.server = server
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        try:
            self.sock.bind(address)
        except OSError:
            self.sock.close()
            raise
        self.port = int(self.sock.getsockname()[1])

    def begin(self) -> None:
        asyncio.get_running_loop().add_reader(self.sock.fileno(), self._receive)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock.fileno())
        self.sock.close()

    def _receive(self) -> None:
        """Answer what is there, but not so much at once that others wait."""
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                wire, peer = self.sock.recvfrom(TCP_BYTES)
            except OSError:
                return
            if peer[0] != self.agent_ip:
                self.server.refused(peer[0], "not the agent of this sandbox")
                continue
            response = self.server.answer(wire, udp=True)
            if response is not None:
                try:
                    self.sock.sendto(response, peer)
                except OSError:
                    continue  # no room, or nobody there: a client asks again


async def serve_stream(server: NameServer, sock: socket.socket, idle_seconds: float) -> None:
    """Questions over TCP, one after the other, until the client leaves or stays silent for *idle_seconds*."""
    client = Stream()
    await asyncio.get_running_loop().connect_accepted_socket(lambda: client, sock)
    try:
        while True:
            async with asyncio.timeout(idle_seconds):
                wire = await _read_message(client)
                response = server.answer(wire, udp=False) if wire is not None else None
                if response is None:
                    break
                client.write(len(response).to_bytes(2, "big") + response)
                await client.drain()
    finally:
        client.close()


async def _read_message(client: Stream) -> bytes | None:
    """The next message behind its length in two bytes; None at the end of the stream."""
    while len(client.buffer) < 2 or len(client.buffer) < 2 + int.from_bytes(client.buffer[:2], "big"):
        if not await client.fill():
            return None
    return client.consume(2 + int.from_bytes(client.buffer[:2], "big"))[2:]
