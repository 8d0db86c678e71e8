# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guard: every address of a name is judged, and the sidecar's own networks are never opened."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from openshell_proxy import destination
from openshell_proxy.destination import (
    DestinationError,
    Guard,
    Mode,
    choose_mode,
    connected_networks,
    implicit_allowed_ips,
)
from openshell_proxy.policy import Decision, Intent
from openshell_proxy.resolver import ResolveError

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


@pytest.mark.parametrize("port", [2379, 2380, 6443, 10250, 10255])
async def test_control_plane_ports_only_where_no_private_address_is_possible(port: int) -> None:
    with pytest.raises(DestinationError, match="control-plane port"):
        await guard("93.184.216.34").pin(Intent("a.example.com", port), EXACT)
    assert await guard("93.184.216.34").pin(Intent("a.example.com", port), WILD) == ("93.184.216.34",)


async def test_every_address_must_be_in_allowed_ips() -> None:
    listed = Decision(True, allowed_ips=(ipaddress.IPv4Network("10.1.0.0/16"),))
    assert await guard("10.1.2.3").pin(Intent("a.example.com", 443), listed) == ("10.1.2.3",)
    with pytest.raises(DestinationError, match="not in allowed_ips"):
        await guard("10.1.2.3", "10.2.0.1").pin(Intent("a.example.com", 443), listed)


@pytest.mark.parametrize("host", ["metadata.google.internal", "host.containers.internal", "localhost"])
async def test_names_that_no_policy_opens(host: str) -> None:
    with pytest.raises(DestinationError):
        await guard("93.184.216.34").pin(Intent(host, 443), EXACT)


async def test_the_host_is_reachable_only_where_the_guard_is_told_its_address() -> None:
    gateway = ipaddress.ip_address("10.89.0.1")
    told = Guard(own_networks=OWN, resolver=Names("10.89.0.1"), trusted_gateway=gateway)
    assert await told.pin(Intent("host.containers.internal", 443), EXACT) == ("10.89.0.1",)
    with pytest.raises(DestinationError):
        await told.pin(Intent("other.example.com", 443), EXACT)
    for wrong in ("10.89.0.2", "127.0.0.1"):
        other = Guard(own_networks=OWN, resolver=Names(wrong), trusted_gateway=gateway)
        with pytest.raises(DestinationError):
            await other.pin(Intent("host.containers.internal", 443), EXACT)


@pytest.mark.parametrize("never", ["169.254.169.254", "127.0.0.1", "0.0.0.0"])
async def test_no_trusted_gateway_is_a_metadata_service_or_the_sidecar(never: str) -> None:
    address = ipaddress.ip_address(never)
    told = Guard(own_networks=(), resolver=Names(str(address)), trusted_gateway=address)
    with pytest.raises(DestinationError):
        await told.pin(Intent("host.docker.internal", 80), EXACT)
    near = ipaddress.ip_address("169.254.1.2")
    told = Guard(own_networks=(), resolver=Names(str(near)), trusted_gateway=near)
    assert await told.pin(Intent("host.docker.internal", 80), EXACT) == ("169.254.1.2",)


class Unknown:
    async def resolve(self, host: str) -> tuple[str, ...]:
        raise ResolveError("no such name")


async def test_a_name_without_an_address_is_refused() -> None:
    with pytest.raises(DestinationError, match="does not resolve: no address"):
        await guard().pin(Intent("a.example.com", 443), EXACT)
    nobody = Guard(own_networks=OWN, resolver=Unknown())
    with pytest.raises(DestinationError, match="does not resolve: no such name"):
        await nobody.pin(Intent("a.example.com", 443), EXACT)


def test_without_a_trusted_gateway_its_names_are_names_like_others() -> None:
    gateway = ipaddress.ip_address("10.89.0.1")
    assert choose_mode("host.docker.internal", EXACT) is Mode.EXACT_DECLARED_HOST
    assert choose_mode("host.docker.internal", EXACT, gateway) is Mode.TRUSTED_GATEWAY_ALIAS
    assert choose_mode("a.example.com", EXACT, gateway) is Mode.EXACT_DECLARED_HOST


async def test_a_name_that_ends_in_a_digit_is_resolved() -> None:
    assert await guard("93.184.216.34").pin(Intent("db.host1", 443), EXACT) == ("93.184.216.34",)


def test_the_networks_that_the_sidecar_is_on(tmp_path: Path) -> None:
    """A default route is no network of ours, and neither is one behind a gateway."""
    table = tmp_path / "route"
    table.write_text(
        "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
        "eth0 00000000 0100590A 0003 0 0 100 00000000 0 0 0\n"
        "tun0 00000000 00000000 0001 0 0 100 00000000 0 0 0\n"
        "eth0 0000590A 00000000 0001 0 0 100 00FFFFFF 0 0 0\n"
        "eth1 00D20A0A 00000000 0001 0 0 100 C0FFFFFF 0 0 0\n"
        "eth1 0000A8C0 0100590A 0003 0 0 100 0000FFFF 0 0 0\n"
    )
    assert [str(one) for one in connected_networks(str(table))] == ["10.89.0.0/24", "10.10.210.0/26"]


def test_an_address_in_the_policy_is_its_own_allow_list() -> None:
    assert choose_mode("10.1.2.3", EXACT) is Mode.IMPLICIT_IP_LITERAL
    assert choose_mode("10.1.2.3", WILD) is Mode.DEFAULT_PUBLIC_ONLY
    assert implicit_allowed_ips("127.0.0.1") == ()


async def test_a_judgement_is_kept_for_the_same_question_only() -> None:
    """Each question differs in one thing from one that was allowed before; a fresh guard must give the same answer."""
    seen = guard("10.1.2.3")
    net = (ipaddress.IPv4Network("10.1.2.0/24"),)
    assert await seen.pin(Intent("a.example.com", 443), EXACT) == ("10.1.2.3",)
    listed = Decision(True, exact_host=True, allowed_ips=net)
    assert await seen.pin(Intent("a.example.com", 443), listed) == ("10.1.2.3",)
    elsewhere = Decision(True, exact_host=True, allowed_ips=(ipaddress.IPv4Network("10.1.3.0/24"),))
    for intent, decision in [
        (Intent("a.example.com", 6443), EXACT),
        (Intent("a.example.com", 443), WILD),
        (Intent("a.example.com", 443), elsewhere),
    ]:
        for one in (seen, guard("10.1.2.3")):
            with pytest.raises(DestinationError):
                await one.pin(intent, decision)
    seen.resolver = Names("10.1.2.3", "10.89.0.7")
    with pytest.raises(DestinationError):
        await seen.pin(Intent("a.example.com", 443), EXACT)


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destination, "JUDGED", 4)
    seen = guard("93.184.216.34")
    for port in range(1, 20):
        assert await seen.pin(Intent("a.example.com", port), WILD)
        assert len(seen._judged) <= 4


async def test_an_address_is_not_asked_for() -> None:
    nobody = Guard(own_networks=OWN, resolver=Unknown())
    assert await nobody.pin(Intent("93.184.216.34", 443), EXACT) == ("93.184.216.34",)


async def test_a_refusal_is_not_kept() -> None:
    names = Names("127.0.0.1")
    one = Guard(own_networks=OWN, resolver=names)
    with pytest.raises(DestinationError):
        await one.pin(Intent("a.example.com", 443), EXACT)
    names.addresses = ("93.184.216.34",)
    assert await one.pin(Intent("a.example.com", 443), EXACT) == ("93.184.216.34",)
    names.addresses = ("127.0.0.1",)
    with pytest.raises(DestinationError):
        await one.pin(Intent("a.example.com", 443), EXACT)
