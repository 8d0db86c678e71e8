# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The destination guard: resolve once, judge every address, dial only those (spec 1.14, with a stricter list)."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Callable, Sequence
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Protocol

from openshell_proxy.policy import Decision, Intent
from openshell_proxy.policy.addresses import INTERNAL
from openshell_proxy.resolver import ResolveError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Never reachable in any mode. From multicast on it is stricter than OpenShell's own list: what hides an IPv4 address
# (6to4, NAT64, Teredo, IPv4-compatible and -translated), belongs to nobody (240/4, site-local), or is the metadata
# service of a cloud that has it elsewhere than at 169.254.169.254 (AWS, Alibaba, Azure, Oracle).
ALWAYS_BLOCKED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(net)
    for net in (
        "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
        "::/128", "::1/128", "fe80::/10", "ff00::/8", "2002::/16", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32",
        "::/96", "::ffff:0:0:0/96", "fec0::/10",
        "fd00:ec2::254/128", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32",
    )
)  # fmt: skip
CONTROL_PLANE_PORTS = frozenset({2379, 2380, 6443, 10250, 10255})
HOST_ALIASES = frozenset({"host.openshell.internal", "host.containers.internal", "host.docker.internal"})
METADATA_HOSTS = frozenset({"metadata.google.internal"})
METADATA_ADDRESS = IPv4Address("169.254.169.254")
LINK_LOCAL: tuple[Network, ...] = (IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/10"))
JUDGED = 1024  # judgements kept


class DestinationError(Exception):
    """A destination that is not dialled; ``reason`` in the words of spec 2.2, ``why`` what exactly was wrong."""

    def __init__(self, reason: str, why: str = "") -> None:
        self.reason = reason
        self.why = why or reason
        super().__init__(self.why)


class Mode(Enum):
    """Why private addresses are possible, or not (spec 1.14, highest precedence first)."""

    TRUSTED_GATEWAY_ALIAS = "trusted-gateway check failed"
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
    return any(address in network for network in networks)


def literal(host: str) -> Address | None:
    if ":" not in host and not host[-1:].isdigit():  # neither IPv6 nor IPv4, and an exception is dear
        return None
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_gateway_alias(host: str) -> bool:
    """Whether *host* is one of the names under which containers know their host."""
    return host.lower() in HOST_ALIASES


def is_metadata_host(host: str) -> bool:
    """Whether *host* is a name of a cloud's metadata service."""
    return host.lower().removesuffix(".") in METADATA_HOSTS


def is_cloud_metadata(address: Address) -> bool:
    """Whether *address* is that of a cloud's metadata service, which no mode opens."""
    return unwrap(address) == METADATA_ADDRESS


def is_link_local(address: Address) -> bool:
    return within(unwrap(address), LINK_LOCAL)


def implicit_allowed_ips(host: str) -> tuple[Network, ...]:
    """An endpoint whose host is an address is its own allow list; nothing for names and addresses never reachable."""
    address = literal(host)
    if address is None or within(unwrap(address), ALWAYS_BLOCKED):
        return ()
    return (ipaddress.ip_network(unwrap(address)),)


def choose_mode(host: str, decision: Decision, trusted_gateway: Address | None = None) -> Mode:
    """The one mode for this connection; *trusted_gateway* is the host's address, where the sandbox may reach it."""
    if trusted_gateway is not None and is_gateway_alias(host):
        return Mode.TRUSTED_GATEWAY_ALIAS
    if decision.allowed_ips:
        return Mode.EXPLICIT_ALLOWED_IPS
    if decision.exact_host and implicit_allowed_ips(host):
        return Mode.IMPLICIT_IP_LITERAL
    return Mode.EXACT_DECLARED_HOST if decision.exact_host else Mode.DEFAULT_PUBLIC_ONLY


def judge(address: Address, port: int, mode: Mode, decision: Decision, own: Sequence[Network]) -> None:
    """Refuse one resolved address; pure. Raises :class:`DestinationError`."""
    real = unwrap(address)
    if mode is Mode.TRUSTED_GATEWAY_ALIAS:
        never = is_cloud_metadata(real) or (within(real, ALWAYS_BLOCKED) and not is_link_local(real))
    else:
        never = within(real, ALWAYS_BLOCKED) or within(real, own)
    if never:
        raise DestinationError(mode.value, "internal address: the name leads to an always-blocked address")
    if mode is Mode.DEFAULT_PUBLIC_ONLY:
        if within(real, INTERNAL):
            raise DestinationError(mode.value, "internal address: only an exact host or allowed_ips opens one")
        return
    if port in CONTROL_PLANE_PORTS:
        raise DestinationError(mode.value, f"blocked control-plane port {port}")
    listed = mode in (Mode.EXPLICIT_ALLOWED_IPS, Mode.TRUSTED_GATEWAY_ALIAS)
    if listed and not within(real, decision.allowed_ips):
        where = "in allowed_ips" if mode is Mode.EXPLICIT_ALLOWED_IPS else "the trusted gateway of the host"
        raise DestinationError(mode.value, f"the name leads to an address that is not {where}")


Judge = Callable[[Address, int, Mode, Decision, Sequence[Network]], None]


def judge_all(
    found: Sequence[str], port: int, mode: Mode, decision: Decision, own: Sequence[Network], judge_one: Judge = judge
) -> tuple[str, ...]:
    """The addresses to dial, in order. Raises :class:`DestinationError` if there is none, or one is refused.

    One address that fails refuses the whole: an attacker's answer that mixes good and bad gains nothing.
    """
    if not found:
        raise DestinationError("the name does not resolve: no address")
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
    for one in addresses:
        judge_one(one, port, mode, decision, own)
    real = [unwrap(one) for one in addresses]
    return tuple(str(one) for one in sorted(real, key=lambda one: one.version))


class Guard:
    """Turns an allowed intent into addresses to dial.

    ``own_networks`` are those that the sidecar itself is on: the shared bridge with the other sidecars and the host on
    it, and the sandbox's own network. No policy opens them. ``trusted_gateway`` is the one address on them under which
    a policy may open the host; there is none unless the sidecar is told one.
    """

    def __init__(
        self, *, own_networks: Sequence[Network], resolver: Resolves, judge_address: Judge = judge,
        trusted_gateway: Address | None = None,
    ) -> None:  # fmt: skip
        self.own_networks = tuple(own_networks)
        self.trusted_gateway = trusted_gateway
        self.resolver = resolver
        self._judge = judge_address
        self._judged: dict[tuple[object, ...], tuple[str, ...]] = {}

    async def pin(self, intent: Intent, decision: Decision) -> tuple[str, ...]:
        """The validated addresses in dial order. Raises :class:`DestinationError` if any address is refused."""
        alias = is_gateway_alias(intent.host) and self.trusted_gateway is None
        if alias or is_metadata_host(intent.host) or intent.host == "localhost":
            raise DestinationError("internal address")
        mode = choose_mode(intent.host, decision, self.trusted_gateway)
        if mode is Mode.TRUSTED_GATEWAY_ALIAS:
            decision = dataclasses.replace(decision, allowed_ips=(ipaddress.ip_network(self.trusted_gateway),))  # type: ignore[arg-type]
        address = literal(intent.host)
        try:
            found = (intent.host,) if address is not None else await self.resolver.resolve(intent.host)
        except ResolveError as error:
            raise DestinationError(f"the name does not resolve: {error}") from None
        # All that a judgement hangs on; a refusal is not kept.
        facts = (found, intent.port, mode, decision.allowed_ips)
        if (judged := self._judged.get(facts)) is None:
            if len(self._judged) >= JUDGED:
                self._judged.clear()
            judged = judge_all(found, intent.port, mode, decision, self.own_networks, self._judge)
            self._judged[facts] = judged
        return judged


def connected_networks(path: str = "/proc/net/route") -> tuple[IPv4Network, ...]:
    """The IPv4 networks that this network namespace has an interface on; proc(5) writes them as hexadecimal."""
    found: list[IPv4Network] = []
    with open(path, encoding="ascii") as handle:
        for row in [line.split() for line in handle][1:]:
            address, gateway, mask = (int.from_bytes(bytes.fromhex(row[index]), "little") for index in (1, 2, 7))
            if mask and not gateway:
                found.append(IPv4Network((address, bin(mask).count("1"))))
    return tuple(found)
