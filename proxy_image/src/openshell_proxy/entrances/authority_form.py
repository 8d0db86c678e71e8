# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``host:port`` as clients write it, in the one form that policy knows (RFC 3986, 3.2; RFC 9112, 3.2)."""

from __future__ import annotations

import functools
import ipaddress
import re

from openshell_proxy.refusal import Refusal

_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:@/?#\x00-\x20\x7f]+))(?::([0-9]{1,5}))?")
# A DNS name: labels of letters, digits, - and _ (RFC 1035, 2.3.4 for the sizes), the last one not a number, because
# 127.1 and 0x7f000001 are addresses to some clients (RFC 1123, 2.1).
_HOST = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_-]{1,63}\.)*(?!(?:[0-9]+|0x[0-9a-f]*)\Z)[a-z0-9_-]{1,63}")
KEPT_LENGTH = 260  # a DNS name and a port
_ABSOLUTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(.*)", re.DOTALL)


def parse_authority(text: str, default_port: int | None) -> tuple[str, int]:
    """(host, port): lower case, no brackets, no trailing dot. Raises :class:`Refusal` (400)."""
    return (_parse_kept if len(text) <= KEPT_LENGTH else _parse)(text, default_port)


def _parse(text: str, default_port: int | None) -> tuple[str, int]:
    match = _AUTHORITY.fullmatch(text)
    if match is None or not text.isascii():
        raise Refusal(400, "invalid_request_target", "the destination is not host:port")
    port = int(match[3]) if match[3] else default_port
    if port is None or not 1 <= port <= 65535:
        raise Refusal(400, "invalid_request_target", "the destination has no port between 1 and 65535")
    if match[1] is not None:
        try:
            return ipaddress.IPv6Address(match[1]).compressed, port
        except ValueError:
            raise Refusal(400, "invalid_request_target", "the destination is not an IPv6 address") from None
    host = match[2].lower().removesuffix(".")
    if not host:
        raise Refusal(400, "invalid_request_target", "the destination has no host")
    return host, port


# A client asks for the same few hosts again and again. What it sends is bounded in length here, so the memory is too.
_parse_kept = functools.lru_cache(1024)(_parse)


def check_host(host: str) -> None:
    """Raise :class:`Refusal` unless *host* is a DNS name or an address as :func:`parse_authority` writes them.

    What else a resolver takes for an address (127.1, 0x7f.1, 2130706433), asks the world about, or a person reading the
    log for a wildcard, is refused where it comes in: after this everybody knows a name from an address.
    """
    if _HOST.fullmatch(host):
        return
    try:
        ipaddress.ip_address(host)
    except ValueError:
        detail = "the destination's host is neither a DNS name nor an address"
        raise Refusal(400, "invalid_request_target", detail) from None


def host_name(text: str) -> str:
    """The DNS name *text* as a policy writes it, lower case without a trailing dot; "" if it is none."""
    host = text.lower().removesuffix(".")
    return host if _HOST.fullmatch(host) else ""


def split_absolute(target: str) -> tuple[str, str, str]:
    """(scheme, authority, the rest from the path on) of an absolute-form target. Raises :class:`Refusal`."""
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise Refusal(400, "invalid_request_target", "the request target is not an absolute URL; this is a proxy")
    rest = match[3]
    return match[1].lower(), match[2], rest if rest.startswith("/") else "/" + rest


def parse_proxy_uri(target: str) -> tuple[str, str, int, str]:
    """(scheme, host, port, path with query) of an absolute URL as a forward proxy gets it. Raises :class:`Refusal`."""
    if "#" in target:
        raise Refusal(400, "invalid_request_target", "the request target has a fragment")
    scheme, authority, rest = split_absolute(target)
    host, port = parse_authority(authority, 443 if scheme in ("https", "wss") else 80)
    return scheme, host, port, rest


def render_host(host: str, port: int, default_port: int) -> bytes:
    """The value of a Host header."""
    name = f"[{host}]" if ":" in host else host
    return (name if port == default_port else f"{name}:{port}").encode("ascii")
