# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The operator's own proxy through which a sidecar may have to go out (spec 2.15): what it is and when it is passed by."""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from urllib.parse import urlsplit

_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_CREDENTIALS = re.compile(r"[\x20-\x39\x3b-\x7e]+:[\x20-\x7e]+")


@dataclasses.dataclass(frozen=True, slots=True)
class UpstreamProxy:
    """``hosts`` and ``suffixes`` (with their dot) are lower case; ``by_hostname`` lets the proxy resolve names itself."""

    host: str
    port: int
    hosts: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    by_hostname: bool = False

    def passed_by(self, host: str, address: str) -> bool:
        """Whether *host* at *address* is dialled straight, without this proxy."""
        if host in self.hosts or host.endswith(self.suffixes):
            return True
        real = ipaddress.ip_address(address)
        return any(real.version == network.version and real in network for network in self.networks)


def parse_upstream_proxy(url: str, no_proxy: Sequence[str] = (), by_hostname: bool = False) -> UpstreamProxy:
    """From ``http://host:port`` and hosts, ``.suffixes`` and CIDR networks. Raises :class:`ValueError`, one sentence."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if parts.scheme != "http" or not port or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("the upstream proxy is not written as http://host:port")
    if "@" in parts.netloc:
        raise ValueError("the upstream proxy's URL holds credentials; give them as openshell_upstream_proxy_auth")
    if not _is_host(host):
        raise ValueError("the upstream proxy's URL has no usable host")
    hosts, suffixes, networks = set(), [], []
    for entry in (one.strip().lower() for one in no_proxy):
        network = _network(entry)
        if network is not None:
            networks.append(network)
        elif entry.startswith(".") and _HOST.fullmatch(entry[1:]):
            suffixes.append(entry)
        elif _HOST.fullmatch(entry):
            hosts.add(entry)
        else:
            raise ValueError(f"'{entry}' in the list without proxy is neither a host, a .suffix nor a network")
    return UpstreamProxy(host, port, frozenset(hosts), tuple(suffixes), tuple(networks), by_hostname)


def authorization(credentials: str) -> bytes:
    """The value of ``Proxy-Authorization`` for ``user:password`` (RFC 7617). Raises :class:`ValueError` without them."""
    credentials = credentials.removesuffix("\n")
    if not _CREDENTIALS.fullmatch(credentials):
        raise ValueError("the upstream proxy's credentials are not user:password in printable ASCII on one line")
    return b"Basic " + base64.b64encode(credentials.encode("ascii"))


def _is_host(host: str) -> bool:
    return _HOST.fullmatch(host) is not None or _network(host) is not None


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None
