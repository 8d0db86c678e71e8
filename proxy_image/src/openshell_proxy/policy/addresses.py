# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses that a policy may name, and those that no policy opens (spec 1.14)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from openshell_proxy.policy.model import Network

# Entries that overlap these can never be allowed.
NEVER_ALLOWED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(net)
    for net in ("127.0.0.0/8", "169.254.0.0/16", "0.0.0.0/32", "::1/128", "::/128", "fe80::/10")
)
INTERNAL: tuple[Network, ...] = tuple(
    ipaddress.ip_network(net)
    for net in (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "255.255.255.255/32", "fc00::/7",
    )
)  # fmt: skip
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


def unwrap_network(network: Network) -> tuple[Network, ...]:
    """The networks that addresses of *network* are dialled in: IPv4 inside v4-mapped IPv6 counts as IPv4."""
    if not isinstance(network, ipaddress.IPv6Network):
        return (network,)
    if network.subnet_of(_MAPPED):
        low = ipaddress.IPv4Address(int(network.network_address) & 0xFFFFFFFF)
        return (ipaddress.IPv4Network((low, network.prefixlen - 96)),)
    return (network, ipaddress.IPv4Network("0.0.0.0/0")) if network.overlaps(_MAPPED) else (network,)


def overlaps(network: Network, others: Iterable[Network]) -> bool:
    """Whether an address of *network* lies in one of *others*."""
    parts = unwrap_network(network)
    return any(part.overlaps(other) for other in others for part in parts)


def always_blocked(network: Network) -> bool:
    """Whether *network* holds an address that no policy opens, as OpenShell's own list has them."""
    return overlaps(network, NEVER_ALLOWED)


def internal(network: Network) -> bool:
    """Whether *network* holds an address that is not public."""
    return overlaps(network, (*NEVER_ALLOWED, *INTERNAL))
