# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The decision: an immutable policy, compiled once, asked for every connection and every request (spec 1.13)."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping

from openshell_proxy.policy.ambiguity import conflicts
from openshell_proxy.policy.document import Reader
from openshell_proxy.policy.hosts import compile_host_pattern
from openshell_proxy.policy.model import Decision, Endpoint, Enforcement, Intent, PolicyError, Request, Rule
from openshell_proxy.policy.schema import read_policy

Key = tuple[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """One loaded policy.

    Exact hosts are found by one look into a dictionary. Wildcards lie under the port and the suffix after their last
    wildcard label, so only those that could match are tried: the cost does not grow with the number of endpoints.
    """

    digest: str
    notices: tuple[str, ...]
    exact: Mapping[Key, tuple[Endpoint, ...]]
    wild: Mapping[Key, tuple[tuple[re.Pattern[str], Endpoint], ...]]
    any_host: Mapping[int, tuple[Endpoint, ...]]
    empty: bool

    def decide(self, intent: Intent) -> Decision:
        """Judge a connection (no request) or one request. Pure: the same question has the same answer."""
        endpoints = self._matching(intent.host, intent.port)
        if not endpoints:
            return Decision(False, self._l4_reason(intent))
        base = _connection(endpoints)
        if intent.request is None or not base.inspects:
            return base
        return _judge_request(base, endpoints, intent.request)

    def _matching(self, host: str, port: int) -> list[Endpoint]:
        found = list(self.exact.get((host, port), ()))
        if self.wild:
            rest = host
            while rest:
                for pattern, endpoint in self.wild.get((rest, port), ()):
                    if pattern.fullmatch(host):
                        found.append(endpoint)
                rest = rest.partition(".")[2]
            found += [endpoint for pattern, endpoint in self.wild.get(("", port), ()) if pattern.fullmatch(host)]
        found += self.any_host.get(port, ())
        return found

    def names_host(self, host: str) -> bool:
        """Whether some endpoint could allow *host* on some port; endpoints without a host do not count."""
        ports = {port for _, port in (*self.exact, *self.wild)}
        return any(endpoint.host for port in ports for endpoint in self._matching(host, port))

    def _l4_reason(self, intent: Intent) -> str:
        if self.empty:
            return "network connections not allowed by policy"
        return f"endpoint {intent.host}:{intent.port} is not allowed by any policy"


def _connection(endpoints: list[Endpoint]) -> Decision:
    """The connection's own part of the answer; ambiguity was refused at load, so any matching endpoint tells it."""
    first = min(endpoints, key=lambda endpoint: endpoint.policy)
    return Decision(
        allowed=True,
        policy=first.policy,
        tls=first.tls,
        inspects=any(endpoint.inspects for endpoint in endpoints),
        allowed_ips=first.allowed_ips,
        exact_host=any(endpoint.exact_host for endpoint in endpoints),
        allow_encoded_slash=any(endpoint.allow_encoded_slash for endpoint in endpoints),
    )


def _judge_request(base: Decision, endpoints: list[Endpoint], request: Request) -> Decision:
    """Deny rules win over every allow, across policies; then some endpoint's rule must allow (spec 1.13)."""
    asked = f"{request.method} {request.path}"
    here = [endpoint for endpoint in endpoints if endpoint.path is None or endpoint.path.fullmatch(request.path)]
    audited = bool(here) and all(endpoint.enforcement == "audit" for endpoint in here)
    for endpoint in here:
        for rule in endpoint.deny_rules:
            if _rule_matches(rule, request, denying=True):
                return dataclasses.replace(
                    base, allowed=audited, audited=audited, layer="l7", policy=endpoint.policy, rule=rule.text,
                    reason=f"{asked} blocked by deny rule",
                )  # fmt: skip
    for endpoint in here:
        if "%2F" in request.path and not endpoint.allow_encoded_slash:
            continue
        if not endpoint.inspects:
            continue  # an L4 endpoint beside an inspecting one adds no rule
        for rule in endpoint.rules:
            if _rule_matches(rule, request, denying=False):
                return dataclasses.replace(base, layer="l7", policy=endpoint.policy, rule=rule.text)
    reason = f"{asked} not permitted by policy" if here else f"{asked} did not match an L7 endpoint path"
    return dataclasses.replace(base, allowed=audited, audited=audited, layer="l7", reason=reason)


def _rule_matches(rule: Rule, request: Request, denying: bool) -> bool:
    """Method, path and query of one rule. Query: allow needs all values of a key to match, deny any."""
    if rule.method not in ("*", request.method) and not (rule.method == "GET" and request.method == "HEAD"):
        return False
    if rule.path is not None and not rule.path.fullmatch(request.path):
        return False
    for matcher in rule.query:
        values = request.query.get(matcher.key)
        if not values:
            return False
        if not (any if denying else all)(matcher.matches(value) for value in values):
            return False
    return True


def _suffix(host: str) -> str:
    """The part of a wildcard pattern after its last label with a wildcard; under it the pattern is filed."""
    labels = host.split(".")
    last = max(index for index, label in enumerate(labels) if "*" in label)
    return ".".join(labels[last + 1 :])


def _compile(endpoints: Iterable[Endpoint], digest: str, notices: Iterable[str]) -> Policy:
    exact: dict[Key, list[Endpoint]] = {}
    wild: dict[Key, list[tuple[re.Pattern[str], Endpoint]]] = {}
    any_host: dict[int, list[Endpoint]] = {}
    count = 0
    for endpoint in endpoints:
        count += 1
        for port in endpoint.ports:
            if endpoint.exact_host:
                exact.setdefault((endpoint.host, port), []).append(endpoint)
            elif endpoint.host:
                entry = (compile_host_pattern(endpoint.host), endpoint)
                wild.setdefault((_suffix(endpoint.host), port), []).append(entry)
            else:
                any_host.setdefault(port, []).append(endpoint)
    return Policy(
        digest,
        tuple(notices),
        {key: tuple(found) for key, found in exact.items()},
        {key: tuple(entries) for key, entries in wild.items()},
        {port: tuple(found) for port, found in any_host.items()},
        count == 0,
    )


def load_policy(text: str, *, source: str = "policy", default_enforcement: Enforcement = "enforce") -> Policy:
    """Parse, validate and compile a policy text. Raises :class:`PolicyError` with every error found.

    ``digest`` of the result is the SHA-256 of the text's bytes.
    """
    reader = Reader(source)
    endpoints = read_policy(reader, text, default_enforcement)
    if not reader.errors:
        reader.errors += [f"{source}:1: {conflict}" for conflict in conflicts(endpoints)]
    if reader.errors:
        raise PolicyError(reader.errors)
    return _compile(endpoints, hashlib.sha256(text.encode()).hexdigest(), reader.notices)


def deny_all() -> Policy:
    """The policy that allows nothing: what holds when there is none, or only a bad one."""
    return _compile([], "", [])
