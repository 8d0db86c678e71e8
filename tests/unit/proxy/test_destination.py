# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guard: every address of a name is judged, and the sidecar's own networks are never opened."""

from __future__ import annotations

import ipaddress

import pytest
from openshell_proxy.destination import DestinationError, Guard
from openshell_proxy.policy import Decision, Intent

OWN = (ipaddress.IPv4Network("10.89.0.0/24"),)


class Names:
    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(self, host: str) -> tuple[str, ...]:
        return self.addresses


def guard(*addresses: str) -> Guard:
    return Guard(own_networks=OWN, resolver=Names(*addresses))


EXACT = Decision(True, exact_host=True)
WILD = Decision(True)


async def test_public_addresses_are_pinned() -> None:
    assert await guard("93.184.216.34").pin(Intent("a.example.com", 443), WILD) == ("93.184.216.34",)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "fe80::1", "224.0.0.1", "64:ff9b::1"]
)
@pytest.mark.parametrize("decision", [EXACT, WILD])
async def test_never_reachable(address: str, decision: Decision) -> None:
    with pytest.raises(DestinationError):
        await guard("93.184.216.34", address).pin(Intent("a.example.com", 443), decision)


async def test_private_only_for_an_exact_host() -> None:
    assert await guard("10.1.2.3").pin(Intent("a.example.com", 443), EXACT) == ("10.1.2.3",)
    with pytest.raises(DestinationError):
        await guard("10.1.2.3").pin(Intent("a.example.com", 443), WILD)


async def test_own_networks_for_nobody() -> None:
    with pytest.raises(DestinationError):
        await guard("10.89.0.7").pin(Intent("a.example.com", 443), EXACT)
