# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Host patterns (spec 1.9): exact names, ``*`` within one label, ``**`` for one label or more."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from openshell_proxy.policy.routes import meet

# What a label may hold where a wildcard stands for it: no dot, and no control byte that a resolver would cut at.
_ONE = r"[^.\x00-\x20\x7f]"
_DNS_LABEL = re.compile(r"[a-z0-9_*](?:[a-z0-9_*-]*[a-z0-9_*])?")


class HostPatternError(ValueError):
    """A host pattern that is malformed or too broad; one sentence."""


def check_host_pattern(pattern: str) -> None:
    """Judge an endpoint's host. Raises :class:`HostPatternError`; names without ``*`` are compared literally."""
    if pattern != pattern.strip():
        raise HostPatternError(f"host '{pattern}' has leading or trailing whitespace")
    if not pattern.isascii() or not pattern.isprintable() or any(char in pattern for char in " @/[]"):
        raise HostPatternError(f"host '{pattern}' is not a host name, address or wildcard")
    if pattern.endswith("."):
        raise HostPatternError(f"host '{pattern}' ends with a dot; omit the trailing DNS root dot")
    if "*" in pattern:
        _check_wildcard(pattern)


def _check_wildcard(pattern: str) -> None:
    wrong = f"invalid host wildcard '{pattern}'"
    labels = pattern.split(".")
    if pattern in ("*", "**"):
        raise HostPatternError(f"{wrong}: it matches all hosts; name a domain, like '*.example.com'")
    if len(labels) <= 2:
        raise HostPatternError(f"TLD wildcard '{pattern}' is not allowed; use subdomain wildcards like '*.example.com'")
    if "" in labels or any(char in pattern for char in "?[]{}\\:"):
        raise HostPatternError(f"{wrong}: empty DNS labels and ? [ {{ are not possible")
    for index, label in enumerate(labels):
        if "**" in label and (index > 0 or label != "**"):
            raise HostPatternError(f"{wrong}: a recursive host wildcard '**' must be the complete first label")
        if index > 0 and "*" in label and label != "*":
            raise HostPatternError(f"{wrong}: a middle DNS label wildcard must be the whole label '*'")


def check_dns_name(host: str) -> None:
    """What ``protocol: tcp`` needs: a DNS name or wildcard, never an address (spec 1.8, 5)."""
    if is_address(host):
        raise HostPatternError(f"protocol tcp requires a DNS hostname, not the IP literal '{host}'")
    labels = host.split(".")
    if "" in labels:
        raise HostPatternError(f"host '{host}' has empty DNS labels")
    if len(host) > 253 or any(len(label) > 63 or not _DNS_LABEL.fullmatch(label) for label in labels):
        raise HostPatternError(f"host '{host}' is not a valid DNS name")


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def check_selector(pattern: str) -> None:
    """Judge a middleware's host pattern, where ``*`` and ``**`` alone and ``**`` in the middle may stand (spec 1.9)."""
    labels = pattern.split(".")
    if "" in labels or any(char.isspace() or char in "?[]{}\\" for char in pattern):
        raise HostPatternError(f"invalid host pattern '{pattern}': no blanks, braces, brackets or empty labels")
    if any("**" in label and label != "**" for label in labels):
        raise HostPatternError(f"invalid host pattern '{pattern}': ** must be a whole label")


@lru_cache(maxsize=16384)
def compile_host_pattern(pattern: str) -> re.Pattern[str]:
    """The expression for a pattern, to be matched against a lower-case host without a trailing dot."""
    out = []
    for label in pattern.lower().split("."):
        if label == "**":
            out.append(rf"{_ONE}+(?:\.{_ONE}+)*")
        elif label == "*":
            out.append(f"{_ONE}+")
        else:
            out.append(f"{_ONE}*".join(re.escape(part) for part in label.split("*")))
    return re.compile(r"\.".join(out))


def literal_suffix(host: str) -> str:
    """What follows the last label with a wildcard; an exact host as a whole. Two patterns that overlap share it."""
    return host if "*" not in host else host[host.rindex("*") :].partition(".")[2]


def parents(host: str) -> list[str]:
    """*host*, every domain above it, and "": where wildcards that could match are filed."""
    found = [host]
    while host:
        host = host.partition(".")[2]
        found.append(host)
    return found


def patterns_overlap(left: str, right: str) -> bool:
    """Whether one host could match both; an empty pattern (hostless endpoint) matches any."""
    left, right = left.lower(), right.lower()
    if not left or not right or left == right:
        return True
    if "*" not in left and "*" not in right:
        return False
    return _labels_meet(tuple(left.split(".")), tuple(right.split(".")))


def _labels_meet(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    """Label by label; ``**`` takes one label and then any number more."""
    if not left or not right:
        return not left and not right
    if not meet(tuple(left[0]), tuple(right[0])):
        return False
    if left[0] == "**" and _labels_meet(left, right[1:]):
        return True
    if right[0] == "**" and _labels_meet(left[1:], right):
        return True
    return _labels_meet(left[1:], right[1:])
