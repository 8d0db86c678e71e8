# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names and addresses that an agent, or whoever answers for a name, chooses in order to get somewhere else."""

from __future__ import annotations

import ipaddress

import pytest
from loopback import HOST, World, hello
from openshell_proxy.destination import DestinationError, Guard
from openshell_proxy.policy import Decision, Intent

ODD_HOSTS = [
    "127.1", "0x7f.1", "0x7f000001", "2130706433", "0177.0.0.1", "1.2.3", "*", "*.example.com", "a..b", ".a", "a,b",
    "a\\b", "%6c", "{{7*7}}", "$(id)", "a" * 64, "a." * 127 + "a",
]  # fmt: skip


@pytest.mark.parametrize("host", ODD_HOSTS)
async def test_a_host_is_a_name_or_an_address(world: World, host: str) -> None:
    there = await world.origin(hello)
    await world.start({"allowed_ips": ["10.0.0.0/8"], "ports": [there.port]})
    for line in (f"CONNECT {host}:{there.port}", f"GET http://{host}:{there.port}/"):
        client = await world.client()
        await client.send(f"{line} HTTP/1.1\r\nHost: {host}:{there.port}\r\n\r\n".encode())
        refused = await client.response()
        assert (refused.status, refused.json["error"]) == (400, "invalid_request_target")
    assert world.sidecar is not None
    client = await world.client(2)
    await client.send(f"GET / HTTP/1.1\r\nHost: {host}:{world.sidecar.listeners[2].port}\r\n\r\n".encode())
    assert (await client.response()).status == 400
    assert there.connections == 0


@pytest.mark.parametrize("host", [HOST, HOST + ".", "OriGin.TesT", "10.1.2.3", "[fd00::1]", "a_b.example.com"])
async def test_a_name_or_an_address_is_a_host(world: World, host: str) -> None:
    there = await world.origin(hello)
    await world.start({"allowed_ips": ["10.0.0.0/8"], "ports": [there.port]})
    client = await world.client()
    await client.send(f"GET http://{host}:{there.port}/ HTTP/1.1\r\nHost: {host}:{there.port}\r\n\r\n".encode())
    assert (await client.response()).status == 200


class Names:
    """Whoever answers for every name: with *address*."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def resolve(self, host: str) -> tuple[str, ...]:
        return (self.address,)


@pytest.mark.parametrize(
    "address",
    [
        "::127.0.0.1", "::10.89.0.1", "::ffff:0:127.0.0.1", "fec0::1",  # IPv4 in other clothes; site-local
        "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192",  # metadata of AWS, Alibaba, Azure, Oracle
    ],
)  # fmt: skip
async def test_never_dialled_whatever_the_policy_says(address: str) -> None:
    """Not by an exact host whose owner answers so, nor by an operator's wide ``allowed_ips``."""
    everything = (ipaddress.ip_network("::/0"), ipaddress.ip_network("0.0.0.0/0"))
    for decision in (Decision(True, exact_host=True), Decision(True), Decision(True, allowed_ips=everything)):
        guard = Guard(own_networks=(), resolver=Names(address))
        with pytest.raises(DestinationError):
            await guard.pin(Intent("a.example.com", 80), decision)
