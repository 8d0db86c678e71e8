# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds at one place (a host and a port): the endpoints that match it, compiled together (spec 1.13)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from openshell_proxy.policy.globs import compile_glob
from openshell_proxy.policy.graphql import Operation, operations_of_message, operations_of_request
from openshell_proxy.policy.jsonbody import BodyError
from openshell_proxy.policy.jsonrpc import METHOD_NAME, TOOLS_CALL, Call, Frames, parse_frames
from openshell_proxy.policy.linear import Matches
from openshell_proxy.policy.model import MESSAGE, Decision, Endpoint, Request, Rule
from openshell_proxy.policy.routes import compile_route, specificity
from openshell_proxy.policy.tables import Table, condition_holds

NO_RESPONSES = "JSON-RPC response frames are not permitted from client to server"
_BODY_PROTOCOLS = ("graphql", "json-rpc", "mcp")
_INVALID = {"json-rpc": "invalid_jsonrpc_request", "mcp": "invalid_jsonrpc_request"}

Parsed = tuple[Operation, ...] | Frames


@dataclasses.dataclass(slots=True)
class Denial:
    """Why a request is refused: the reason, and the deny rule if one did it. ``enforced``: audit does not soften it."""

    reason: str
    policy: str = ""
    rule: str = ""
    line: int = 0
    enforced: bool = False
    error: str = ""


class Group:
    """The inspecting endpoints of one place that have the same ``path``; load has seen to it that they agree.

    *denying*: whether an endpoint of the place, of this group or another, has deny rules.
    """

    def __init__(self, connection: Decision, endpoints: Sequence[Endpoint], denying: bool) -> None:
        first = endpoints[0]
        self.endpoints = tuple(endpoints)
        self.policy, self.line = first.policy, first.line
        self.protocol = first.protocol
        self.audits = all(endpoint.enforcement == "audit" for endpoint in endpoints)
        self.keeps_slash = first.allow_encoded_slash
        self.path: Matches | None = compile_glob(first.path) if first.path else None
        self.route = compile_route(first.path)
        self.graphql = self.protocol == "graphql" or any(endpoint.carries_graphql for endpoint in endpoints)
        limits = [
            endpoint.graphql_max_body_bytes if self.graphql else endpoint.json_rpc_max_body_bytes
            for endpoint in endpoints
        ]
        self.limit = min(limits)
        self.body_limit = self.limit if self.protocol in _BODY_PROTOCOLS else 0
        self.credentials = first.credentials
        self._connection = connection = dataclasses.replace(connection, credentials=first.credentials)
        owners = {id(rule): endpoint for endpoint in endpoints for rule in (*endpoint.rules, *endpoint.deny_rules)}
        self._owners = owners
        self.allow_rules = [rule for endpoint in endpoints for rule in endpoint.rules]
        self.deny_rules = [rule for endpoint in endpoints for rule in endpoint.deny_rules]
        self._admissions = {id(rule): self._admission(owners[id(rule)], rule) for rule in self.allow_rules}
        self.messages = self.protocol == "websocket" and (denying or not self._admits_every_message())
        self.allow: Table[Decision] = Table(
            [rule for rule in self.allow_rules if rule.kind == "rest"], lambda rule: self._admissions[id(rule)], False
        )
        self.deny: Table[Rule] = Table([rule for rule in self.deny_rules if rule.kind == "rest"], lambda r: r, True)
        self.need_body = dataclasses.replace(
            connection, allowed=False, layer="l7", policy=self.policy, protocol=self.protocol, line=self.line,
            body_limit=self.body_limit, reason="the request's body is needed for a decision",
        )  # fmt: skip

    def _admission(self, endpoint: Endpoint, rule: Rule) -> Decision:
        return dataclasses.replace(
            self._connection, layer="l7", policy=endpoint.policy, rule=rule.text, line=rule.line,
            protocol=endpoint.protocol, body_limit=0,
        )  # fmt: skip

    def _admits_every_message(self) -> bool:
        free = any(rule.method in ("*", MESSAGE) and rule.path == "**" and not rule.query and rule.when is None
                   for rule in self.allow_rules)  # fmt: skip
        return free and not self.graphql

    # GraphQL and JSON-RPC: every operation or call must be allowed, none may be denied.

    def parse(self, request: Request) -> Parsed | Denial | None:
        """What the body says, where this endpoint's protocol asks for it; None where it does not."""
        if request.parsed is not None:
            return request.parsed
        if not self.reads(request):
            return None
        try:
            if self.protocol == "websocket":
                return operations_of_message(request.body or b"")
            if self.protocol == "graphql":
                if request.method == "GET" and request.with_body:
                    raise BodyError("a GET has no body")
                return operations_of_request(request.method, request.query, request.body or b"")
            strict = all(endpoint.strict_tool_names for endpoint in self.endpoints)
            return parse_frames(request.body or b"", mcp=self.protocol == "mcp", strict_tool_names=strict)
        except BodyError as error:
            code = _INVALID.get(self.protocol, "invalid_graphql_request")
            text = f"GraphQL request rejected: {error}" if code == "invalid_graphql_request" else str(error)
            return Denial(text, self.policy, line=self.line, enforced=True, error=code)

    def reads(self, request: Request) -> bool:
        """Whether the request or message holds something to parse."""
        if self.protocol == "websocket":
            return self.graphql and request.method == MESSAGE
        if self.protocol == "graphql":
            return request.method in ("POST", "GET")
        return self.body_limit > 0 and request.method == "POST"

    def refuses(self, host: str, port: int, request: Request, parsed: Parsed | None) -> Denial | None:
        """What a deny rule of this group, or the group as the authority over the parsed body, says against it."""
        asked = f"{request.method} {request.path}"
        rule = self.deny.find(host, port, request)
        if rule is not None:
            return self.by_rule(rule, f"{asked} blocked by deny rule")
        if parsed is None or not self.judges(parsed, request):
            return None
        if isinstance(parsed, Frames):
            return self._refuses_frames(host, port, request, parsed)
        return self._refuses_operations(host, port, request, parsed)

    def judges(self, parsed: Parsed, request: Request) -> bool:
        """Whether a parsed body is of the kind that this group's rules speak of."""
        if isinstance(parsed, Frames):
            return self.protocol in ("json-rpc", "mcp")
        return self._judges_operations(request)

    def _judges_operations(self, request: Request) -> bool:
        return self.protocol == "graphql" or (self.graphql and request.method == MESSAGE)

    def not_permitted(self, request: Request) -> Denial:
        what = "GraphQL operation" if self._judges_operations(request) else f"{request.method} {request.path}"
        return Denial(f"{what} not permitted by policy", self.policy, "", self.line)

    def by_rule(self, rule: Rule, reason: str) -> Denial:
        endpoint = self._owners[id(rule)]
        return Denial(reason, endpoint.policy, rule.text, rule.line, endpoint.enforcement == "enforce")

    def _refuses_operations(
        self, host: str, port: int, request: Request, operations: tuple[Operation, ...]
    ) -> Denial | None:
        for asked in operations:
            operation = self._effective(asked)
            if operation is None:
                return Denial("GraphQL persisted query is not registered", self.policy, line=self.line)
            for rule in self.deny_rules:
                if _operation_matches(rule, operation, True) and condition_holds(rule, host, port, request, True):
                    return self.by_rule(rule, "GraphQL operation blocked by endpoint policy")
            if self._allowing_operation(host, port, request, operation) is None:
                return Denial("GraphQL operation not permitted by policy", self.policy, line=self.line)
        return None

    def _effective(self, operation: Operation) -> Operation | None:
        """The operation itself, or the registered one that a persisted query stands for."""
        if not operation.persisted:
            return operation
        for endpoint in self.endpoints:
            found = endpoint.persisted.get(operation.hash or operation.id)
            if endpoint.persisted_allowed and found is not None:
                return found
        return None

    def _allowing_operation(self, host: str, port: int, request: Request, operation: Operation) -> Decision | None:
        for rule in self.allow_rules:
            if _operation_matches(rule, operation, False) and condition_holds(rule, host, port, request, False):
                return self._admissions[id(rule)]
        return None

    def _refuses_frames(self, host: str, port: int, request: Request, frames: Frames) -> Denial | None:
        if request.method.upper() != "POST":
            return Denial(f"{request.method} {request.path} not permitted by policy", self.policy, line=self.line)
        if frames.has_response and self.protocol == "json-rpc":
            return Denial(NO_RESPONSES, self.policy, line=self.line, enforced=True)
        for call in frames.calls:
            for rule in self.deny_rules:
                if self._call_matches(rule, call) and condition_holds(rule, host, port, request, True):
                    return self.by_rule(rule, f"{_shown(call)} blocked by deny rule")
            if self._allowing_call(host, port, request, call) is None:
                return Denial(f"{_shown(call)} not permitted by policy", self.policy, line=self.line)
        return None

    def _allowing_call(self, host: str, port: int, request: Request, call: Call) -> Decision | None:
        for rule in self.allow_rules:
            if self._call_matches(rule, call) and condition_holds(rule, host, port, request, False):
                return self._admissions[id(rule)]
        named = any(rule.tool is not None for rule in self.allow_rules)
        if any(one.allow_all_known_mcp_methods for one in self.endpoints) and not (call.method == TOOLS_CALL and named):
            return self._any_method()
        return None

    def _any_method(self) -> Decision:
        return dataclasses.replace(
            self._connection, layer="l7", policy=self.policy, rule="allow_all_known_mcp_methods", line=self.line,
            protocol=self.protocol, body_limit=0,
        )  # fmt: skip

    def _call_matches(self, rule: Rule, call: Call) -> bool:
        if self.protocol == "json-rpc":
            return rule.method in ("*", call.method)
        if rule.rpc_method is None or not rule.rpc_method.matches(call.method):
            return False
        return rule.tool is None or (call.tool is not None and rule.tool.matches(call.tool))

    def admits(self, host: str, port: int, request: Request, parsed: Parsed | None) -> Decision | None:
        """What an allow rule of this group says for it. Everything parsed was found allowed by :meth:`refuses`."""
        if parsed is None:
            if self.protocol == "mcp" and request.method == "GET" and request.receive_stream:
                return dataclasses.replace(self._any_method(), rule="receive stream")
            if self.graphql and request.method == MESSAGE:
                return None
            return self.allow.find(host, port, request)
        if not self.judges(parsed, request):
            return self.allow.find(host, port, request)
        if isinstance(parsed, Frames):
            if not parsed.calls:
                return self._any_method() if parsed.has_response else None
            return self._allowing_call(host, port, request, parsed.calls[-1])
        if not parsed:
            return self._any_control()
        last = self._effective(parsed[-1])
        return self._allowing_operation(host, port, request, last) if last is not None else None

    def _any_control(self) -> Decision | None:
        """A message that only controls a GraphQL connection; a request without an operation is no such thing."""
        if self.protocol != "websocket":
            return None
        return dataclasses.replace(self._any_method(), rule="connection control")


def _shown(call: Call) -> str:
    """A called method as a reason may repeat it: what does not look like one is not repeated."""
    return call.method if METHOD_NAME.fullmatch(call.method) else "the JSON-RPC method"


def _operation_matches(rule: Rule, operation: Operation, denying: bool) -> bool:
    """Type, name and root fields (spec 1.13): an allow rule needs all fields to match, a deny rule any."""
    if rule.kind != "graphql" or rule.operation_type not in ("*", operation.type.lower()):
        return False
    if rule.operation_name is not None and not (operation.name and rule.operation_name.matches(operation.name)):
        return False
    if rule.fields is None:
        return True
    if denying:
        return any(rule.fields.matches(field) for field in operation.fields)
    return bool(operation.fields) and all(rule.fields.matches(field) for field in operation.fields)


class Site:
    """The decision at one place, for the connection and for every request over it."""

    def __init__(self, endpoints: Sequence[Endpoint], connection: Decision) -> None:
        self.connection = connection
        paths: dict[str, list[Endpoint]] = {}
        for endpoint in sorted(endpoints, key=_order):
            if endpoint.inspects:
                paths.setdefault(endpoint.path, []).append(endpoint)
        # The most specific path first: the first group whose route takes a request governs it.
        denying = any(endpoint.deny_rules for endpoint in endpoints)
        self.groups = tuple(
            Group(self.connection, paths[path], denying) for path in sorted(paths, key=specificity, reverse=True)
        )
        limit = max((group.body_limit for group in self.groups), default=0)
        self.connection = dataclasses.replace(connection, body_limit=limit)
        # Most policies have one group without a path and without bodies: one look-up each for deny and allow.
        only = self.groups[0] if len(self.groups) == 1 else None
        self.plain = only if only is not None and only.path is None and only.protocol == "rest" else None

    def judge(self, host: str, port: int, request: Request) -> Decision:
        """Deny rules win over every allow, across policies; then some endpoint's rule must allow."""
        plain = self.plain
        if plain is None or "%" in request.path:
            return self._judge(host, port, request)
        rule = plain.deny.find(host, port, request) if plain.deny_rules else None
        if rule is not None:
            return self._refused(plain, plain.by_rule(rule, f"{request.method} {request.path} blocked by deny rule"))
        found = plain.allow.find(host, port, request)
        return found if found is not None else self._refused(plain, plain.not_permitted(request))

    def _judge(self, host: str, port: int, request: Request) -> Decision:
        path = request.path
        governing = next((one for one in self.groups if one.route is None or one.route.fullmatch(path)), None)
        if governing is None:
            return self._refused(
                None, Denial(f"{request.method} {path} not permitted by policy: it did not match an L7 endpoint path")
            )
        if governing.reads(request) and request.parsed is None:
            if request.body is None and request.method == "POST":
                return governing.need_body
            if request.body is not None and len(request.body) > governing.limit:
                what = "message" if request.method == MESSAGE else "request's body"
                return self._refused(governing, Denial(f"the {what} is too large to be judged", enforced=True))
        if request.method == MESSAGE and request.body is None and request.parsed is None:
            return self._refused(governing, Denial(f"{request.method} is not a method of HTTP", enforced=True))
        parsed = governing.parse(request)
        if isinstance(parsed, Denial):
            return self._refused(governing, parsed)
        here = [one for one in self.groups if one.path is None or one.path.fullmatch(path)]
        return self._union(host, port, request, governing, here, parsed)

    def _union(
        self, host: str, port: int, request: Request, governing: Group, here: list[Group], parsed: Parsed | None
    ) -> Decision:
        for group in here:
            denial = group.refuses(host, port, request, parsed)
            if denial is not None:
                return self._refused(governing, denial)
        authority = governing.protocol in _BODY_PROTOCOLS
        for group in here:
            if authority and group is not governing:
                continue  # no broad rule beside it opens what the body's own protocol does not
            if "%2F" in request.path and not group.keeps_slash:
                continue
            found = group.admits(host, port, request, parsed)
            if found is not None:
                messages = request.method == "GET" and any(one.messages for one in here)
                if found.message_policy == messages and found.credentials == governing.credentials:
                    return found
                return dataclasses.replace(found, message_policy=messages, credentials=governing.credentials)
        return self._refused(governing, governing.not_permitted(request))

    def _refused(self, governing: Group | None, denial: Denial) -> Decision:
        """The refusal; where the governing endpoint only audits, it is forwarded and logged instead."""
        audited = governing is not None and governing.audits and not denial.enforced
        connection = self.connection
        return Decision(
            audited, denial.reason, denial.policy, denial.rule, "l7", connection.tls, connection.inspects, audited,
            connection.allowed_ips, connection.exact_host, connection.allow_encoded_slash,
            "" if governing is None else governing.protocol, 0,
            audited and governing is not None and governing.messages, denial.error, denial.line,
            (connection if governing is None else governing).credentials,
        )  # fmt: skip


def _order(endpoint: Endpoint) -> tuple[str, int]:
    return endpoint.policy, endpoint.index


def connection_decision(endpoints: Sequence[Endpoint]) -> Decision:
    """The connection's own part; ambiguity was refused at load, so any endpoint that says something says the same."""
    ordered = sorted(endpoints, key=_order)
    telling = next(
        (one for one in ordered if one.protocol not in ("", "tcp") or one.allowed_ips or one.tls_named), ordered[0]
    )
    uninspected = all(endpoint.credentials.allow_uninspected for endpoint in ordered)
    return Decision(
        allowed=True,
        policy=ordered[0].policy,
        line=ordered[0].line,
        tls=telling.tls,
        inspects=any(endpoint.inspects for endpoint in ordered),
        audited=all(endpoint.protocol == "sql" for endpoint in ordered),
        allowed_ips=telling.allowed_ips,
        exact_host=any(endpoint.exact_host for endpoint in ordered),
        allow_encoded_slash=any(endpoint.allow_encoded_slash for endpoint in ordered),
        credentials=dataclasses.replace(telling.credentials, allow_uninspected=uninspected),
    )
