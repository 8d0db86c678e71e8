# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The destination guard: resolve once, judge every address, dial only those (spec 1.14, with a stricter list)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Protocol

from openshell_proxy.policy import Decision, Intent
from openshell_proxy.resolver import ResolveError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Never reachable in any mode. Multicast, 240/4, 6to4, NAT64 and Teredo are stricter than OpenShell's own list: they
# hide another address or belong to nobody.
ALWAYS_BLOCKED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(net)
    for net in (
        "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
        "::/128", "::1/128", "fe80::/10", "ff00::/8", "2002::/16", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32",
    )
)  # fmt: skip
INTERNAL: tuple[Network, ...] = tuple(
    ipaddress.ip_network(net)
    for net in (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "fc00::/7",
    )
)  # fmt: skip
CONTROL_PLANE_PORTS = frozenset({2379, 2380, 6443, 10250, 10255})
HOST_ALIASES = frozenset({"host.openshell.internal", "host.containers.internal", "host.docker.internal"})
METADATA_HOSTS = frozenset({"metadata.google.internal"})


class DestinationError(Exception):
    """A destination that is not dialled; ``reason`` in the words of spec 2.2."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Mode(Enum):
    """Why private addresses are possible, or not (spec 1.14, highest precedence first)."""

    EXPLICIT_ALLOWED_IPS = "allowed_ips check failed"
    IMPLICIT_IP_LITERAL = "declared endpoint check failed"
    EXACT_DECLARED_HOST = "exact host check failed"
    DEFAULT_PUBLIC_ONLY = "internal address"


class Resolves(Protocol):
    async def resolve(self, host: str) -> tuple[str, ...]: ...


def unwrap(address: Address) -> Address:
    """The IPv4 address inside a v4-mapped IPv6 one: only that is what is dialled."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def choose_mode(host: str, decision: Decision) -> Mode:
    """The one mode for this connection."""
    if decision.allowed_ips:
        return Mode.EXPLICIT_ALLOWED_IPS
    if literal(host) is not None and decision.exact_host:
        return Mode.IMPLICIT_IP_LITERAL
    return Mode.EXACT_DECLARED_HOST if decision.exact_host else Mode.DEFAULT_PUBLIC_ONLY


def judge(address: Address, port: int, mode: Mode, decision: Decision, own: Sequence[Network]) -> None:
    """Refuse one resolved address; pure. Raises :class:`DestinationError`."""
    real = unwrap(address)
    if within(real, ALWAYS_BLOCKED) or within(real, own):
        raise DestinationError("internal address" if mode is Mode.DEFAULT_PUBLIC_ONLY else mode.value)
    if mode is Mode.EXPLICIT_ALLOWED_IPS and not within(real, decision.allowed_ips):
        raise DestinationError(mode.value)
    internal = within(real, INTERNAL)
    if mode is Mode.DEFAULT_PUBLIC_ONLY and internal:
        raise DestinationError(mode.value)
    if mode is not Mode.DEFAULT_PUBLIC_ONLY and internal and port in CONTROL_PLANE_PORTS:
        raise DestinationError(mode.value)


Judge = Callable[[Address, int, Mode, Decision, Sequence[Network]], None]


class Guard:
    """Turns an allowed intent into addresses to dial.

    ``own_networks`` are those that the sidecar itself is on: the shared bridge with the other sidecars and the host on
    it, and the sandbox's own network. No policy opens them.
    """

    def __init__(self, *, own_networks: Sequence[Network], resolver: Resolves, judge_address: Judge = judge) -> None:
        self.own_networks = tuple(own_networks)
        self.resolver = resolver
        self._judge = judge_address

    async def pin(self, intent: Intent, decision: Decision) -> tuple[str, ...]:
        """The validated addresses in dial order. Raises :class:`DestinationError` if any address is refused.

        One address that fails refuses the whole: an attacker's answer that mixes good and bad gains nothing.
        """
        if intent.host in HOST_ALIASES or intent.host in METADATA_HOSTS or intent.host == "localhost":
            raise DestinationError("internal address")
        mode = choose_mode(intent.host, decision)
        address = literal(intent.host)
        try:
            found = (intent.host,) if address is not None else await self.resolver.resolve(intent.host)
        except ResolveError as error:
            raise DestinationError(f"the name does not resolve: {error}") from None
        if not found:
            raise DestinationError("the name does not resolve: no address")
        addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
        for one in addresses:
            self._judge(one, intent.port, mode, decision, self.own_networks)
        real = [unwrap(one) for one in addresses]
        return tuple(str(one) for one in sorted(real, key=lambda one: one.version))


def connected_networks(path: str = "/proc/net/route") -> tuple[IPv4Network, ...]:
    """The IPv4 networks that this network namespace has an interface on; proc(5) writes them as hexadecimal."""
    found: list[IPv4Network] = []
    with open(path, encoding="ascii") as handle:
        for row in [line.split() for line in handle][1:]:
            address, gateway, mask = (int.from_bytes(bytes.fromhex(row[index]), "little") for index in (1, 2, 7))
            if mask and not gateway:
                found.append(IPv4Network((address, bin(mask).count("1"))))
    return tuple(found)
