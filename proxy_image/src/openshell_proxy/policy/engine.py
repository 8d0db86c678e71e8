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
from openshell_proxy.policy.hosts import compile_host_pattern, literal_suffix, parents
from openshell_proxy.policy.model import Decision, Document, Endpoint, Enforcement, Intent, Middleware, PolicyError
from openshell_proxy.policy.schema import read_document
from openshell_proxy.policy.site import Site, connection_decision

Key = tuple[str, int]
Wild = tuple[re.Pattern[str], tuple[Endpoint, ...]]
MAX_ENDPOINTS = 20_000
# Places and sets of endpoints that are remembered; forgetting all costs one compilation each.
_REMEMBERED = 4096


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """One loaded policy; ``document`` is what the file says.

    Exact hosts are found by one look into a dictionary. Wildcards lie under the port and the suffix after their last
    wildcard label, so only those that could match are tried: the cost does not grow with the number of endpoints.
    ``sites`` remembers what was found, which is always the same.
    """

    digest: str
    notices: tuple[str, ...]
    document: Document
    exact: Mapping[Key, tuple[Endpoint, ...]]
    wild: Mapping[Key, tuple[Wild, ...]]
    any_host: Mapping[int, tuple[Endpoint, ...]]
    named: frozenset[str]
    named_wild: Mapping[str, tuple[re.Pattern[str], ...]]
    sites: dict[Key, Site] = dataclasses.field(default_factory=dict, repr=False)
    sets: dict[tuple[int, ...], Site] = dataclasses.field(default_factory=dict, repr=False)

    def decide(self, intent: Intent) -> Decision:
        """Judge a connection (no request) or one request. Pure: the same question has the same answer."""
        host, port = intent.host, intent.port
        site = self.sites.get((host, port))
        if site is None:
            site = self._site(host, port)
        request = intent.request
        if request is None or not site.groups:
            return site.connection
        return site.judge(host, port, request)

    def middlewares(self, host: str) -> tuple[Middleware, ...]:
        """Those that see what goes to *host* (lower case), in their order."""
        return tuple([one for one in self.document.middlewares if one.covers(host)])

    def names_host(self, host: str) -> bool:
        """Whether an endpoint that names its host could allow *host* on some port (for the resolver)."""
        if host in self.named:
            return True
        if not self.named_wild:
            return False
        return any(
            pattern.fullmatch(host) for suffix in parents(host) for pattern in self.named_wild.get(suffix, ())
        )  # fmt: skip

    def _site(self, host: str, port: int) -> Site:
        found = self._matching(host, port)
        key = tuple(map(id, found))
        site = self.sets.get(key)
        if not found:
            site = Site((), Decision(False, self._l4_reason(host, port)))
        elif site is None:
            site = Site(found, connection_decision(found))
            if len(self.sets) >= _REMEMBERED:
                self.sets.clear()
            self.sets[key] = site
        if len(self.sites) >= _REMEMBERED:
            self.sites.clear()
        self.sites[host, port] = site
        return site

    def _matching(self, host: str, port: int) -> list[Endpoint]:
        found = list(self.exact.get((host, port), ()))
        if self.wild:
            for suffix in parents(host):
                for pattern, endpoints in self.wild.get((suffix, port), ()):
                    if pattern.fullmatch(host):
                        found += endpoints
        found += self.any_host.get(port, ())
        return found

    def _l4_reason(self, host: str, port: int) -> str:
        if not self.document.endpoints:
            return "network connections not allowed by policy"
        return f"endpoint {host}:{port} is not allowed by any policy"


def compile_policy(document: Document, digest: str = "", notices: Iterable[str] = ()) -> Policy:
    """The policy of a document that was found good."""
    if any(endpoint.protocol == "graphql" or endpoint.carries_graphql for endpoint in document.endpoints):
        import graphql.language  # noqa: F401  now, so that no request waits for it
    exact: dict[Key, list[Endpoint]] = {}
    wild: dict[Key, dict[str, list[Endpoint]]] = {}
    any_host: dict[int, list[Endpoint]] = {}
    named_wild: dict[str, dict[str, None]] = {}
    for endpoint in document.endpoints:
        suffix = literal_suffix(endpoint.host)
        if endpoint.host and not endpoint.exact_host:
            named_wild.setdefault(suffix, {})[endpoint.host] = None
        for port in endpoint.ports:
            if endpoint.exact_host:
                exact.setdefault((endpoint.host, port), []).append(endpoint)
            elif endpoint.host:
                wild.setdefault((suffix, port), {}).setdefault(endpoint.host, []).append(endpoint)
            else:
                any_host.setdefault(port, []).append(endpoint)
    return Policy(
        digest=digest,
        notices=tuple(notices),
        document=document,
        exact={key: tuple(found) for key, found in exact.items()},
        wild={
            key: tuple((compile_host_pattern(host), tuple(found)) for host, found in hosts.items())
            for key, hosts in wild.items()
        },
        any_host={port: tuple(found) for port, found in any_host.items()},
        named=frozenset(host for host, _ in exact),
        named_wild={key: tuple(compile_host_pattern(host) for host in hosts) for key, hosts in named_wild.items()},
    )


def load_policy(
    text: str, *, source: str = "policy", default_enforcement: Enforcement = "enforce", composed: bool = False
) -> Policy:
    """Parse, validate and compile a policy text. Raises :class:`PolicyError` with every error found.

    ``digest`` of the result is the SHA-256 of the text's bytes. Only a *composed* text may have the entries of providers.
    """
    reader = Reader(source)
    document = read_document(reader, text, default_enforcement, composed)
    if len(document.endpoints) > MAX_ENDPOINTS:
        reader.errors.append(f"{source}:1: the policy has more than {MAX_ENDPOINTS} endpoints")
    if not reader.errors:
        found = conflicts(document.endpoints)
        reader.errors += [f"{source}:{endpoint.line}: {conflict}" for endpoint, conflict in found]
    if reader.errors:
        raise PolicyError(list(dict.fromkeys(reader.errors)))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return compile_policy(document, digest, dict.fromkeys(reader.notices))


def deny_all() -> Policy:
    """The policy that allows nothing: what holds when there is none, or only a bad one."""
    return compile_policy(Document())
