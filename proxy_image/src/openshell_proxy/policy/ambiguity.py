# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Endpoints that could govern the same connection must agree on how it is treated (spec 1.8, "Ambiguity")."""

from __future__ import annotations

from openshell_proxy.policy.hosts import patterns_overlap
from openshell_proxy.policy.model import Endpoint


def conflicts(endpoints: list[Endpoint]) -> list[str]:
    """One sentence for every pair of endpoints whose order would matter; none may be loaded."""
    exact: dict[str, list[Endpoint]] = {}
    broad: list[Endpoint] = []
    for endpoint in endpoints:
        if endpoint.exact_host:
            exact.setdefault(endpoint.host, []).append(endpoint)
        else:
            broad.append(endpoint)
    found: list[str] = []
    for group in exact.values():
        found += [
            text for index, left in enumerate(group) for right in group[index + 1 :] if (text := _conflict(left, right))
        ]
    for index, left in enumerate(broad):
        others = [*broad[index + 1 :], *(endpoint for group in exact.values() for endpoint in group)]
        found += [text for right in others if (text := _conflict(left, right))]
    return found


def _conflict(left: Endpoint, right: Endpoint) -> str:
    if not left.ports & right.ports or not patterns_overlap(left.host, right.host):
        return ""
    names = f"policies '{left.policy}' and '{right.policy}' overlap on {left.host or 'any host'} and {right.host or 'any host'}"
    if left.tls != right.tls:
        return f"{names}, but differ in tls; make them agree"
    if set(left.allowed_ips) != set(right.allowed_ips):
        return f"{names}, but differ in allowed_ips; make them agree"
    same_paths = (left.path.pattern if left.path else "") == (right.path.pattern if right.path else "")
    both_speak = bool(left.protocol or left.allowed_ips) and bool(right.protocol or right.allowed_ips)
    if both_speak and same_paths:
        for field in ("protocol", "enforcement", "allow_encoded_slash"):
            if getattr(left, field) != getattr(right, field):
                return f"{names}, but differ in {field}; make them agree"
    return ""
