# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Endpoints that could govern the same connection must agree on how it is treated (spec 1.8, "Ambiguity")."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from openshell_proxy.policy.hosts import literal_suffix, parents, patterns_overlap
from openshell_proxy.policy.model import Endpoint
from openshell_proxy.policy.routes import paths_overlap, specificity

Facts = tuple[tuple[str, object], ...]
_WITHIN_PROTOCOL = ("graphql_max_body_bytes", "json_rpc_max_body_bytes", "mcp_strict_tool_names")


def conflicts(endpoints: Sequence[Endpoint]) -> list[tuple[Endpoint, str]]:
    """(endpoint, sentence) for every pair of endpoints whose order would matter; none may be loaded."""
    return [(right, text) for left, right in _pairs(endpoints) if (text := _conflict(left, right))]


def _pairs(endpoints: Sequence[Endpoint]) -> Iterator[tuple[Endpoint, Endpoint]]:
    """Pairs that could overlap, each once: the same host, a wildcard above the other, or one without a host.

    Of endpoints on one host only those that differ in a fact are compared, so that ten thousand paths of one API cost
    no more than ten thousand hosts.
    """
    same: dict[str, dict[tuple[Facts, Facts], list[Endpoint]]] = {}
    for endpoint in endpoints:
        facts = (_connection_facts(endpoint), _request_facts(endpoint))
        same.setdefault(endpoint.host, {}).setdefault(facts, []).append(endpoint)
    for kinds in same.values():
        groups = list(kinds.values())
        for one, other in itertools.combinations(groups, 2):
            yield from itertools.product(one, other)
    above: dict[str, list[str]] = {}
    for host in same:
        if not host or "*" in host:
            above.setdefault(literal_suffix(host), []).append(host)
    seen: set[tuple[str, str]] = set()
    for host in same:
        for broad in [broad for suffix in parents(literal_suffix(host)) for broad in above.get(suffix, ())]:
            names = (min(host, broad), max(host, broad))
            if host != broad and names not in seen:
                seen.add(names)
                yield from _across(same[host], same[broad])


def _across(
    left: dict[tuple[Facts, Facts], list[Endpoint]], right: dict[tuple[Facts, Facts], list[Endpoint]]
) -> Iterator[tuple[Endpoint, Endpoint]]:
    for facts, ones in left.items():
        for other_facts, others in right.items():
            if facts != other_facts:
                yield from itertools.product(ones, others)


def _conflict(left: Endpoint, right: Endpoint) -> str:
    if not left.ports & right.ports or not patterns_overlap(left.host, right.host):
        return ""
    differing = _differing(_connection_facts(left), _connection_facts(right))
    if specificity(left.path) == specificity(right.path) and paths_overlap(left.path, right.path):
        differing += _differing(_request_facts(left), _request_facts(right))
    if not differing:
        return ""
    hosts = f"{left.host or 'any host'} and {right.host or 'any host'}"
    where = f"line {left.line}" if left.policy == right.policy else f"line {left.line} of policy '{left.policy}'"
    return f"ambiguous: overlaps with the endpoint in {where} on {hosts}, but differs in {', '.join(differing)}"


def _differing(left: Facts, right: Facts) -> list[str]:
    """Names of the facts that differ; of two protocols' limits, and of who has no such fact, nothing can be said."""
    other = dict(right)
    names = [name for name, value in left if name in other and other[name] != value]
    return [name for name in names if name not in _WITHIN_PROTOCOL] if "protocol" in names else names


def _connection_facts(endpoint: Endpoint) -> Facts:
    return (
        ("protocol tcp", endpoint.protocol == "tcp"),
        ("tls", endpoint.tls),
        ("allowed_ips", frozenset(endpoint.allowed_ips)),
    )


def _request_facts(endpoint: Endpoint) -> Facts:
    if not _speaks(endpoint):
        return ()
    credentials = endpoint.credentials
    return (
        ("protocol", endpoint.protocol),
        ("enforcement", endpoint.enforcement),
        ("allow_encoded_slash", endpoint.allow_encoded_slash),
        ("websocket_credential_rewrite", credentials.websocket_rewrite),
        ("request_body_credential_rewrite", credentials.body_rewrite),
        ("websocket_graphql_policy", endpoint.carries_graphql),
        ("credential_signing", credentials.signing),
        ("signing_service", credentials.signing_service),
        ("signing_region", credentials.signing_region),
        ("credential_binding.provider", credentials.provider),
        ("graphql_max_body_bytes", endpoint.graphql_max_body_bytes),
        ("json_rpc_max_body_bytes", endpoint.json_rpc_max_body_bytes),
        ("mcp_strict_tool_names", endpoint.strict_tool_names),
    )


def _speaks(endpoint: Endpoint) -> bool:
    """Whether the endpoint contributes something to how a request is treated."""
    return bool(
        endpoint.protocol not in ("", "tcp")
        or endpoint.allowed_ips
        or endpoint.tls_named
        or endpoint.credentials.provider
    )
