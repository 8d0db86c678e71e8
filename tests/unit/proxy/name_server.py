# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The name server of a sandbox ``demo`` without its sockets, and what holds for every message that it gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dns.message
import dns.name
from openshell_proxy.entrances.name_server import NameServer
from openshell_proxy.policy import load_policy
from openshell_proxy.settings import Settings

PROXY, AGENT = "10.89.0.2", "10.89.0.3"

ENDPOINTS = [
    {"host": "api.example.com", "port": 443},
    {"host": "*.wild.example.com", "port": 8443},
    {"host": "**.deep.example.com", "port": 443},
    {"host": "under_score.example.com", "port": 443},
    {"host": "xn--bcher-kva.example", "port": 443},
    {"host": "93.184.216.34", "port": 443},
    {"host": "2130706433", "port": 443},
    {"host": "metadata.google.internal", "port": 80},
    {"host": "host.containers.internal", "port": 80},
    {"port": 9418, "allowed_ips": ["198.18.0.0/15"]},
]
POLICY = load_policy(json.dumps({"version": 1, "network_policies": {"a": {"endpoints": ENDPOINTS}}}))


class Asked:
    """A name server for the sandbox ``demo``, without its sockets."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, str]] = []
        nowhere = Path("/nowhere")
        settings = Settings("demo", "demo", PROXY, AGENT, None, "enforce", nowhere, nowhere, nowhere, nowhere)
        self.server = NameServer(settings, POLICY.names_host, lambda name, why: self.refused.append((name, why)))

    def wire(self, wire: bytes, *, udp: bool = True) -> dns.message.Message:
        response = self.server.answer(wire, udp=udp)
        assert response is not None
        return dns.message.from_wire(response)

    def __call__(self, name: str | dns.name.Name, kind: str = "A", **more: Any) -> dns.message.Message:
        query = dns.message.make_query(name, kind, **more)
        response = self.wire(query.to_wire())
        assert query.is_response(response)
        return response


def check_any_message(wire: bytes, udp: bool) -> None:
    """What holds for every message: never an exception, never an address for a name that the policy refuses."""
    ask = Asked()
    response = ask.server.answer(wire, udp=udp)
    if response is None:
        return
    assert len(response) <= max(512, 1232 if udp else 65_535)
    answered = dns.message.from_wire(response)
    assert answered.id == int.from_bytes(wire[:2], "big")
    for rrset in answered.answer:
        host = rrset.name.to_text(omit_final_dot=True).lower()
        assert host.endswith(".in-addr.arpa") or host in ask.server.own or POLICY.names_host(host)
