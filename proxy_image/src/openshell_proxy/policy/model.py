# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The words of a policy and of the questions asked of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from openshell_proxy.policy.graphql import Operation
from openshell_proxy.policy.hosts import compile_host_pattern, patterns_overlap
from openshell_proxy.policy.jsonrpc import Frames
from openshell_proxy.policy.linear import Matches

Network = IPv4Network | IPv6Network
Enforcement = Literal["enforce", "audit"]
# A rule's ``when``: (host, port, request) → whether it holds; raises where it cannot be evaluated.
Condition = Callable[[str, int, "Request"], bool]

PROTOCOLS = ("rest", "websocket", "graphql", "json-rpc", "mcp", "sql", "tcp")
NOT_INSPECTED = ("", "tcp", "sql")
# The method under which a client's WebSocket text message is asked (spec 2.7).
MESSAGE = "WEBSOCKET_TEXT"


class PolicyError(ValueError):
    """A policy that is not loaded. ``errors``: one line each, ``SOURCE:LINE: message``."""

    def __init__(self, errors: list[str]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(errors))


@dataclasses.dataclass(frozen=True, slots=True)
class Matcher:
    """Globs of which a value must match one (spec 1.7); none at all matches nothing."""

    patterns: tuple[Matches, ...]

    def matches(self, value: str) -> bool:
        return any(pattern.fullmatch(value) for pattern in self.patterns)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One allow or deny rule; which fields hold something depends on the endpoint's protocol (spec 1.7).

    ``text`` is how the rule is called in answers, ``GET /x/**``; ``authored`` what the file says, key → text.
    """

    line: int
    text: str
    authored: Mapping[str, str]
    kind: Literal["rest", "graphql", "rpc", "sql"] = "rest"
    method: str = ""
    path: str = ""
    query: tuple[tuple[str, Matcher], ...] = ()
    operation_type: str = ""
    operation_name: Matcher | None = None
    fields: Matcher | None = None
    rpc_method: Matcher | None = None
    tool: Matcher | None = None
    when: Condition | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What an endpoint says about credentials; the credentials room acts on it (spec 1.6, 2.6)."""

    websocket_rewrite: bool = False
    body_rewrite: bool = False
    allow_uninspected: bool = False
    signing: str = ""
    signing_service: str = ""
    signing_region: str = ""
    provider: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint as read (spec 1.6). ``policy`` is the map key of its policy, ``index`` its place there."""

    policy: str
    index: int
    line: int
    host: str
    ports: frozenset[int]
    path: str = ""
    protocol: str = ""
    tls: Literal["auto", "skip"] = "auto"
    tls_named: bool = False
    enforcement: Enforcement = "enforce"
    rules: tuple[Rule, ...] = ()
    deny_rules: tuple[Rule, ...] = ()
    allowed_ips: tuple[Network, ...] = ()
    allow_encoded_slash: bool = False
    credentials: Credentials = Credentials()
    persisted_allowed: bool = False
    persisted: Mapping[str, Operation] = dataclasses.field(default_factory=dict)
    graphql_max_body_bytes: int = 65536
    json_rpc_max_body_bytes: int = 65536
    strict_tool_names: bool = True
    allow_all_known_mcp_methods: bool = False

    @property
    def inspects(self) -> bool:
        """Whether requests are judged, not connections alone."""
        return self.protocol not in NOT_INSPECTED

    @property
    def exact_host(self) -> bool:
        return bool(self.host) and "*" not in self.host

    @property
    def carries_graphql(self) -> bool:
        """Whether a WebSocket's messages are GraphQL operations."""
        rules = (*self.rules, *self.deny_rules)
        return self.protocol == "websocket" and any(rule.kind == "graphql" for rule in rules)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Middleware:
    """``openshell/regex`` in its mode ``redact`` for the hosts of some patterns (spec 1.17); ``name`` is the key in the file."""

    name: str
    order: int
    fails_closed: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]

    def covers(self, host: str) -> bool:
        """Whether it sees what goes to *host* (lower case)."""
        excluded = any(compile_host_pattern(pattern).fullmatch(host) for pattern in self.exclude)
        return not excluded and any(compile_host_pattern(pattern).fullmatch(host) for pattern in self.include)

    def may_cover(self, endpoint: Endpoint) -> bool:
        """Whether it may see what goes to a host of *endpoint*, as far as two patterns tell; an exact host tells all."""
        if endpoint.exact_host:
            return self.covers(endpoint.host)
        overlaps = any(patterns_overlap(pattern, endpoint.host) for pattern in self.include)
        return overlaps and endpoint.host not in self.exclude


@dataclasses.dataclass(frozen=True, slots=True)
class Filesystem:
    """Paths for the supervisor's Landlock rules (spec 1.2)."""

    include_workdir: bool = True
    read_only: tuple[str, ...] = ()
    read_write: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """Who the agent's programs run as (spec 1.4); "" where the policy does not say."""

    run_as_user: str = ""
    run_as_group: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A policy file as read: its endpoints, the static sections for the supervisor inside the sandbox, its middlewares.

    ``middlewares`` are in their order.
    """

    endpoints: tuple[Endpoint, ...] = ()
    filesystem: Filesystem | None = None
    landlock: str = "best_effort"
    process: Process = Process()
    middlewares: tuple[Middleware, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A request's own part: ``path`` canonical and without the query, ``query`` key → values in order.

    ``body`` is there once it has been read, or for a WebSocket message; ``parsed`` where the caller has parsed it.
    ``receive_stream``: the request accepts an event stream and has no body (MCP, spec 1.13). ``with_body``: there is a
    body, whether or not it has been read. Both are told only where a connection's ``body_limit`` is not 0.
    """

    method: str
    path: str
    query: Mapping[str, tuple[str, ...]]
    body: bytes | None = None
    parsed: tuple[Operation, ...] | Frames | None = None
    receive_stream: bool = False
    with_body: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Intent:
    """What somebody wants: a connection to host and port, or (with ``request``) one request over it.

    ``host`` is lower-case, without brackets and without a trailing dot.
    """

    host: str
    port: int
    request: Request | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """The answer, and all that the rest of the pipeline needs of the endpoints that matched.

    ``audited``: the policy says no, but the endpoint's enforcement is ``audit``, so it is forwarded and logged.
    ``protocol``: of the endpoint that governs the request, "" on layer 4. ``line``: of the rule or endpoint that
    decided, in the policy file; 0 where none did. ``error``: the code of a 400 answer, for a body that is malformed.

    ``body_limit``: on a refusal, how many bytes of the request's body to read and to ask again with; on a connection's
    answer, the largest that a request there may need. ``message_policy``: on an admitted WebSocket upgrade, whether
    each of the client's text messages must be asked. ``credentials``: what the governing endpoint says about them; of
    endpoints at one place all must allow what is not inspected.
    """

    allowed: bool
    reason: str = ""
    policy: str = ""
    rule: str = ""
    layer: Literal["l4", "l7"] = "l4"
    tls: Literal["auto", "skip"] = "auto"
    inspects: bool = False
    audited: bool = False
    allowed_ips: tuple[Network, ...] = ()
    exact_host: bool = False
    allow_encoded_slash: bool = False
    protocol: str = ""
    body_limit: int = 0
    message_policy: bool = False
    error: str = ""
    line: int = 0
    credentials: Credentials = Credentials()
