# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One endpoint of a policy file (spec 1.6, 1.8)."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Literal, cast

import yaml

from openshell_proxy.policy.addresses import always_blocked, internal, unwrap_network
from openshell_proxy.policy.document import Reader
from openshell_proxy.policy.globs import SEPARATOR_PATH, GlobError, compile_glob
from openshell_proxy.policy.graphql import Operation
from openshell_proxy.policy.hosts import HostPatternError, check_dns_name, check_host_pattern
from openshell_proxy.policy.jsonrpc import TOOLS_CALL
from openshell_proxy.policy.model import (
    MESSAGE,
    NOT_INSPECTED,
    PROTOCOLS,
    Credentials,
    Endpoint,
    Enforcement,
    Network,
    Rule,
)
from openshell_proxy.policy.rules import OPERATIONS, PRESETS, RuleReader, preset_rules

KEYS = (
    "host", "port", "ports", "path", "protocol", "tls", "enforcement", "access", "rules", "deny_rules", "allowed_ips",
    "allow_encoded_slash", "websocket_credential_rewrite", "request_body_credential_rewrite",
    "allow_uninspected_credentials", "persisted_queries", "graphql_persisted_queries", "graphql_max_body_bytes",
    "credential_signing", "signing_service", "signing_region", "credential_binding", "json_rpc", "mcp",
)  # fmt: skip
# What only means something where requests are seen; ``protocol: tcp`` refuses it.
_L7_ONLY = (
    "enforcement", "path", "allow_encoded_slash", "websocket_credential_rewrite", "request_body_credential_rewrite",
    "persisted_queries", "graphql_persisted_queries", "graphql_max_body_bytes", "credential_signing",
    "signing_service", "signing_region", "credential_binding", "json_rpc", "mcp",
)  # fmt: skip
_GRAPHQL_KEYS = ("persisted_queries", "graphql_persisted_queries", "graphql_max_body_bytes")
_SIGNING = ("", "sigv4", "sigv4:body", "sigv4:no_body")
_MAX_BODY = 2**32 - 1


class EndpointReader:
    """Reads the endpoint at *node*; what is wrong with it is in the reader's errors."""

    def __init__(self, reader: Reader, policy: str, index: int, node: yaml.Node, default: Enforcement) -> None:
        self.reader, self.policy, self.index, self.node, self.default = reader, policy, index, node, default
        self.keys = reader.mapping(node, "an endpoint", KEYS)
        self.protocol = self._protocol()

    def _error(self, key: str, message: str) -> None:
        self.reader.error(self.keys.get(key, self.node), message)

    def _l7(self, key: str, reason: str) -> None:
        self._error(key, f"endpoint {self.index} has invalid L7 configuration: {reason}")

    def _text(self, key: str) -> str:
        return self.reader.text(self.keys.get(key), key)

    def _flag(self, key: str) -> bool:
        return self.reader.boolean(self.keys.get(key), key)

    def read(self) -> Endpoint:
        allowed_ips = self._allowed_ips()
        host = self._host(bool(allowed_ips))
        enforcement = self._enforcement()
        mcp = self._mcp()
        rules, deny_rules = self._rules(mcp)
        tls = self._tls()
        self._check_protocol(enforcement)
        self._notices(host, allowed_ips, tls)
        json_rpc = self._options("json_rpc", ("max_body_bytes",), ("json-rpc", "mcp"))
        family = "mcp" if "max_body_bytes" in mcp else "json_rpc"
        family_limit = mcp.get("max_body_bytes", json_rpc.get("max_body_bytes"))
        return Endpoint(
            policy=self.policy,
            index=self.index,
            line=int(self.node.start_mark.line) + 1,
            host=host,
            ports=self._ports(host),
            path=self._path(),
            protocol=self.protocol,
            tls=tls,
            tls_named=self._text("tls") != "",
            enforcement=enforcement,
            rules=rules,
            deny_rules=deny_rules,
            allowed_ips=allowed_ips,
            allow_encoded_slash=self._flag("allow_encoded_slash"),
            credentials=self._credentials(),
            persisted_allowed=self._persisted_allowed(),
            persisted=self._persisted(),
            graphql_max_body_bytes=self.reader.whole(
                self.keys.get("graphql_max_body_bytes"), "graphql_max_body_bytes", 65536, 1, _MAX_BODY
            ),
            json_rpc_max_body_bytes=self.reader.whole(family_limit, f"{family}.max_body_bytes", 65536, 1, _MAX_BODY),
            strict_tool_names=self.reader.boolean(mcp.get("strict_tool_names"), "mcp.strict_tool_names", True),
            allow_all_known_mcp_methods=self._allow_all(mcp),
        )

    def _protocol(self) -> str:
        protocol = self._text("protocol")
        if protocol not in ("", *PROTOCOLS):
            self._l7("protocol", f"unknown protocol '{protocol}'; known are {', '.join(PROTOCOLS)}")
        return protocol

    def _host(self, constrained: bool) -> str:
        host = self._text("host").lower()
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        if not host and self.protocol == "tcp":
            self._error("host", "protocol tcp requires a DNS hostname")
        elif not host and not constrained:
            text = "endpoint host must not be empty unless allowed_ips constrains a non-TCP proxy endpoint"
            self._error("host", text)
        try:
            check_host_pattern(host)
            if self.protocol == "tcp":
                check_dns_name(host)
        except HostPatternError as error:
            self._error("host", f"network policy '{self.policy}': {error}")
        return _compressed(host)

    def _ports(self, host: str) -> frozenset[int]:
        if "port" in self.keys and "ports" in self.keys:
            self._error("ports", f"endpoint '{host}' has port and ports; write one of them")
        listed = self.reader.items(self.keys.get("ports"), "ports")
        nodes = [self.keys["port"]] if "port" in self.keys else listed
        if not nodes:
            self.reader.error(self.node, f"endpoint '{host}' must declare at least one port")
        found: set[int] = set()
        for node in nodes:
            value = self.reader.value(node)
            if type(value) is int and 1 <= value <= 65535:
                found.add(value)
            else:
                self.reader.error(node, f"invalid port {getattr(node, 'value', '')}; expected 1..=65535")
        return frozenset(found)

    def _path(self) -> str:
        path = self._text("path")
        if path and not path.startswith("/") and path != "**":
            self._error("path", f"endpoint path '{path}' must begin with / or be **")
        try:
            compile_glob(path, SEPARATOR_PATH)
        except GlobError as error:
            self._error("path", f"endpoint path '{path}' has {error}")
        return "" if path == "**" else path

    def _tls(self) -> Literal["auto", "skip"]:
        value = self.reader.choice(self.keys.get("tls"), "tls", ("", "auto", "skip", "terminate", "passthrough"), "")
        if value in ("terminate", "passthrough"):
            self.reader.notice(self.keys["tls"], f"tls: {value} is deprecated and means auto")
        return "skip" if value == "skip" else "auto"

    def _enforcement(self) -> Enforcement:
        value = self.reader.choice(self.keys.get("enforcement"), "enforcement", ("", "enforce", "audit"), "")
        if not value and self.protocol not in NOT_INSPECTED:
            default = "it is enforced here" if self.default == "enforce" else "nothing is blocked here"
            self.reader.notice(self.node, f"no enforcement is named: {default} (OpenShell would only audit)")
        return cast(Enforcement, value or self.default)

    def _rules(self, mcp: Mapping[str, yaml.Node]) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
        """Allow and deny rules; a preset is expanded. The order of the checks is that of spec 1.8, 7."""
        access = self._text("access")
        allow_all = self._allow_all(mcp)
        self._check_base(access, allow_all)
        strict = self.reader.boolean(mcp.get("strict_tool_names"), "mcp.strict_tool_names", True)
        rules = RuleReader(self.reader, self.protocol, allow_all, strict)
        allow: list[Rule | None] = []
        for index, node in enumerate(self.reader.items(self.keys.get("rules"), "rules")):
            content = self.reader.mapping(node, "a rule", ("allow",)).get("allow")
            if content is None or not content.value:
                self.reader.error(node, f"rules[{index}] without allow would deny all traffic")
            else:
                allow.append(rules.read(content, f"rules[{index}].allow", False))
        denied = [
            rules.read(node, f"deny_rules[{index}]", True)
            for index, node in enumerate(self.reader.items(self.keys.get("deny_rules"), "deny_rules"))
        ]
        found = tuple(rule for rule in allow if rule is not None)
        deny = tuple(rule for rule in denied if rule is not None)
        self._check_messages(found, deny)
        self._check_tools(found, deny)
        if access:
            found = preset_rules(self.protocol, access, int(self.keys["access"].start_mark.line) + 1)
        return found, deny

    def _check_base(self, access: str, allow_all: bool) -> None:
        """What must be there, and what excludes each other."""
        protocol, has_rules = self.protocol, "rules" in self.keys
        for key, why in (("rules", "would deny all traffic"), ("deny_rules", "would deny nothing")):
            if key in self.keys and not self.reader.items(self.keys[key], key):
                self._l7(key, f"{key} list cannot be empty ({why})")
        if access and access not in PRESETS:
            text = f"unsupported access preset '{access}' ({', '.join(PRESETS)}): without rules all is denied"
            self.reader.notice(self.keys["access"], text)
        if access and has_rules:
            self._l7("rules", "rules and access are mutually exclusive")
        if protocol in ("json-rpc", "mcp") and access:
            self._l7("access", f"protocol {protocol} does not support access presets; write rules")
        if protocol == "json-rpc" and not has_rules:
            self._l7("protocol", "protocol json-rpc requires rules")
        elif protocol == "mcp" and not has_rules and not allow_all:
            why = "when mcp.allow_all_known_mcp_methods is false"
            self._l7("protocol", f"protocol mcp requires rules {why}")
        elif protocol not in ("", "tcp", "json-rpc", "mcp") and not has_rules and not access:
            self._l7("protocol", f"protocol {protocol} requires rules or access")
        if not protocol and (access or has_rules):
            self._l7("protocol", "rules and access need a protocol to be judged in")
        if "deny_rules" in self.keys and not protocol:
            self._l7("deny_rules", "deny_rules require protocol")
        if "deny_rules" in self.keys and not has_rules and not access and protocol != "mcp":
            self._l7("deny_rules", "deny_rules require rules or access to take something from")

    def _check_tools(self, allow: tuple[Rule, ...], deny: tuple[Rule, ...]) -> None:
        """Rules for every tool call make those for single tools meaningless (spec 1.8)."""
        if not any(rule.tool is not None for rule in allow):
            return
        for rules, key, verb in ((allow, "rules", "allows"), (deny, "deny_rules", "denies")):
            for rule in rules:
                if rule.tool is None and rule.rpc_method is not None and rule.rpc_method.matches(TOOLS_CALL):
                    text = f"{key}: '{rule.text}' {verb} every tool call, so the rules for single tools mean nothing"
                    self._error(key, text)

    def _check_messages(self, allow: tuple[Rule, ...], deny: tuple[Rule, ...]) -> None:
        both = (*allow, *deny)
        if any(rule.kind == "graphql" for rule in both) and any(rule.method == MESSAGE for rule in both):
            self._error("rules", "WEBSOCKET_TEXT cannot stand beside GraphQL rules: messages are judged as operations")

    def _mcp(self) -> dict[str, yaml.Node]:
        keys = ("max_body_bytes", "strict_tool_names", "allow_all_known_mcp_methods")
        return self._options("mcp", keys, ("mcp",))

    def _allow_all(self, mcp: Mapping[str, yaml.Node]) -> bool:
        key = "allow_all_known_mcp_methods"
        return self.reader.boolean(mcp.get(key), f"mcp.{key}")

    def _options(self, name: str, known: tuple[str, ...], protocols: tuple[str, ...]) -> dict[str, yaml.Node]:
        node = self.keys.get(name)
        if node is None:
            return {}
        found = self.reader.mapping(node, name, known)
        if self.protocol not in protocols:
            for key in found or ("",):
                option = f"{name}.{key}" if key else name
                self.reader.error(node, f"{option} is only valid for protocol {' and '.join(protocols)}")
        return found

    def _persisted_allowed(self) -> bool:
        choices = ("deny", "allow_registered")
        return self.reader.choice(self.keys.get("persisted_queries"), "persisted_queries", choices, "deny") != "deny"

    def _persisted(self) -> dict[str, Operation]:
        """The registry of persisted queries: identifier → operation."""
        node = self.keys.get("graphql_persisted_queries")
        found: dict[str, Operation] = {}
        for key, item in (self.reader.mapping(node, "graphql_persisted_queries") if node is not None else {}).items():
            what = f"graphql_persisted_queries.{key}"
            entry = self.reader.mapping(item, what, ("operation_type", "operation_name", "fields"))
            kind = self.reader.text(entry.get("operation_type"), f"{what}.operation_type").lower()
            if not key or kind not in OPERATIONS[:3]:
                self.reader.error(item, f"{what} needs an identifier and operation_type {', '.join(OPERATIONS[:3])}")
            fields = self.reader.texts(entry.get("fields"), f"{what}.fields")
            name = self.reader.text(entry.get("operation_name"), f"{what}.operation_name")
            found[key] = Operation(kind, name, tuple(sorted(set(fields))))
        return found

    def _credentials(self) -> Credentials:
        signing = self.reader.choice(self.keys.get("credential_signing"), "credential_signing", _SIGNING, "")
        service = self._text("signing_service")
        body = self._flag("request_body_credential_rewrite")
        if signing and not service:
            self._error("credential_signing", "credential_signing needs signing_service")
        if signing and body:
            text = "credential_signing and request_body_credential_rewrite are mutually exclusive"
            self._error("credential_signing", text)
        if body and self.protocol != "rest":
            text = "request_body_credential_rewrite is ignored unless the protocol is rest"
            self.reader.notice(self.keys["request_body_credential_rewrite"], text)
        binding = self.keys.get("credential_binding")
        section = self.reader.mapping(binding, "credential_binding", ("provider",)) if binding is not None else {}
        provider = self.reader.text(section.get("provider"), "credential_binding.provider")
        if binding is not None and not provider:
            self.reader.error(binding, "credential_binding.provider must not be empty")
        return Credentials(
            websocket_rewrite=self._flag("websocket_credential_rewrite"),
            body_rewrite=body,
            allow_uninspected=self._flag("allow_uninspected_credentials"),
            signing=signing,
            signing_service=service,
            signing_region=self._text("signing_region"),
            provider=provider,
        )

    def _check_protocol(self, enforcement: Enforcement) -> None:
        protocol = self.protocol
        if protocol == "sql" and enforcement == "enforce":
            text = "SQL enforcement requires full SQL parsing, which does not exist; write enforcement: audit"
            self._l7("enforcement", text)
        if protocol == "tcp":
            for key in ("access", "rules", "deny_rules", *_L7_ONLY):
                if key in self.keys:
                    self._l7(key, f"{key} is not valid for protocol tcp, where nothing is looked into")
        for key in _GRAPHQL_KEYS:
            if key in self.keys and protocol not in ("graphql", "websocket", "tcp"):
                self._l7(key, f"{key} is only valid for protocol graphql and websocket")

    def _notices(self, host: str, allowed_ips: tuple[Network, ...], tls: str) -> None:
        """What an operator should know of an endpoint that is loaded all the same."""
        notice = self.reader.notice
        if tls == "skip" and self.protocol not in NOT_INSPECTED:
            text = (
                f"tls: skip passes encrypted requests unseen: the rules of protocol {self.protocol} do not hold there"
            )
            notice(self.keys["tls"], text)
        if "path" in self.keys and self.protocol in NOT_INSPECTED:
            notice(self.keys["path"], "path has no effect without a protocol: the whole host is allowed")
        if self.protocol == "sql":
            notice(self.keys["protocol"], "protocol sql is not judged: every statement passes")
        if (not host or "*" in host) and any(internal(network) for network in allowed_ips):
            notice(self.keys["allowed_ips"], "any name that the host pattern matches may lead to internal addresses")

    def _allowed_ips(self) -> tuple[Network, ...]:
        found: list[Network] = []
        for node in self.reader.items(self.keys.get("allowed_ips"), "allowed_ips"):
            text = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
            try:
                network: Network = ipaddress.ip_network(text, strict=False)
            except ValueError:
                self.reader.error(node, f"invalid allowed_ips in policy: '{text}' is an invalid CIDR/IP")
                continue
            if always_blocked(network):
                self.reader.error(node, f"invalid allowed_ips in policy: {text} overlaps an always-blocked range")
            if network.version == 4 and network.prefixlen < 16:
                self.reader.notice(node, f"allowed_ips: {text} is very broad, wider than /16")
            found.append(unwrap_network(network)[0])
        return tuple(found)


def _compressed(host: str) -> str:
    """An IPv6 literal in the one form in which entrances write it; any other host as it is."""
    try:
        return ipaddress.IPv6Address(host).compressed
    except ValueError:
        return host
