# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's own DNS resolvers, for the sidecar and nobody else."""

from __future__ import annotations

import ipaddress
from typing import Callable, List, Sequence

# The first that exists and names a usable resolver wins: systemd-resolved's list of upstream servers knows more than
# the stub in /etc/resolv.conf. Source: design seed, "Proxy DNS".
CANDIDATES = ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf")

_UNUSABLE = [
    ipaddress.ip_network(net)
    for net in ("127.0.0.0/8", "::1/128", "169.254.0.0/16", "fe80::/10", "0.0.0.0/32", "::/128")
]


class ResolverError(Exception):
    """No resolver that a container could reach; the message says where we looked and what to set."""


def parse_resolv_conf(text: str) -> List[str]:
    """Usable ``nameserver`` addresses of a resolv.conf(5), in order, without duplicates.

    Loopback (127.0.0.0/8, ::1; resolv.conf(5) takes 0.0.0.0 and :: as this host too) and link-local ones
    (169.254.0.0/16, fe80::/10) mean something else, or nothing, inside a container's network namespace and are dropped.
    """
    found: List[str] = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ipaddress.ip_address(words[1].split("%", 1)[0])
        except ValueError:
            continue
        mapped = getattr(address, "ipv4_mapped", None) or address
        if any(mapped.version == net.version and mapped in net for net in _UNUSABLE) or str(address) in found:
            continue
        found.append(str(address))
    return found


def read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return ""


def host_resolvers(
    candidates: Sequence[str] = CANDIDATES, read: Callable[[str], str] = read_text
) -> tuple[List[str], str]:
    """(addresses, path of the file they are from). Raises :class:`ResolverError` when nothing is left."""
    for path in candidates:
        found = parse_resolv_conf(read(path))
        if found:
            return found, path
    raise ResolverError(
        f"no usable DNS resolver in {' or '.join(candidates)} (loopback and link-local ones cannot be reached from a "
        "container); set openshell_dns_servers to the addresses of your resolvers"
    )
