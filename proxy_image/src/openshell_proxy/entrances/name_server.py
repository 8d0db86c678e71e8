# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the agent's name server answers, from the policy; no I/O (see dns.py).

Its library is loaded with the first question: most agents reach everything through the proxy and never ask one.
"""

from __future__ import annotations

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

from openshell_proxy.destination import HOST_ALIASES, METADATA_HOSTS
from openshell_proxy.entrances.authority_form import host_name
from openshell_proxy.settings import Settings

TTL = 10
NEGATIVE_TTL = 5
UDP_BYTES = 1232  # what no path fragments (RFC 9715)
PLAIN_UDP_BYTES = 512
TCP_BYTES = 65_535

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
