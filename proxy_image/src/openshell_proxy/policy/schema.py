# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""OpenShell's policy schema, version 1 (spec 1.1 to 1.8): every key known, every error with its line."""

from __future__ import annotations

import ipaddress
from typing import Literal, cast

import yaml

from openshell_proxy.policy.document import Reader
from openshell_proxy.policy.globs import SEPARATOR_NAME, GlobError, compile_glob
from openshell_proxy.policy.hosts import HostPatternError, check_host_pattern
from openshell_proxy.policy.model import Endpoint, Enforcement, Network, QueryMatcher, Rule

TOP = ("version", "filesystem_policy", "landlock", "process", "network_policies", "network_middlewares")
ENDPOINT = (
    "host",
    "port",
    "ports",
    "path",
    "protocol",
    "tls",
    "enforcement",
    "access",
    "rules",
    "deny_rules",
    "allowed_ips",
    "allow_encoded_slash",
)
# Known to OpenShell; what they ask for is not built yet, and ignoring it would allow more than the file says.
ENDPOINT_LATER = (
    "websocket_credential_rewrite",
    "request_body_credential_rewrite",
    "allow_uninspected_credentials",
    "persisted_queries",
    "graphql_persisted_queries",
    "graphql_max_body_bytes",
    "credential_signing",
    "signing_service",
    "signing_region",
    "credential_binding",
    "json_rpc",
    "mcp",
)
PROTOCOLS_LATER = ("websocket", "graphql", "json-rpc", "mcp", "sql", "tcp")
RULE = ("method", "path", "query")
RULE_LATER = ("command", "operation_type", "operation_name", "fields", "tool", "params", "when")

PRESETS = {
    "read-only": ("GET", "HEAD", "OPTIONS"),
    "read-write": ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH"),
    "full": ("*",),
}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "*")

# Entries that overlap these can never be allowed (spec 1.14).
NEVER_ALLOWED = [
    ipaddress.ip_network(net)
    for net in ("127.0.0.0/8", "169.254.0.0/16", "0.0.0.0/32", "::1/128", "::/128", "fe80::/10")
]


def read_policy(reader: Reader, text: str, default_enforcement: Enforcement) -> list[Endpoint]:
    """All endpoints of a policy text; errors and notices are gathered in *reader*."""
    root = reader.compose(text)
    top = reader.mapping(root, "the policy", TOP)
    version = top.get("version")
    if version is None or reader.value(version) != 1:
        reader.error(version or root, "version must be 1")
    _read_static(reader, top)
    endpoints: list[Endpoint] = []
    policies = top.get("network_policies")
    for key, node in (reader.mapping(policies, "network_policies") if policies is not None else {}).items():
        endpoints += _read_policy(reader, key, node, default_enforcement)
    return endpoints


def _read_static(reader: Reader, top: dict[str, yaml.Node]) -> None:
    """The sections for the supervisor inside; judged here so that a typo is found, used by it later."""
    if (node := top.get("filesystem_policy")) is not None:
        section = reader.mapping(node, "filesystem_policy", ("include_workdir", "read_only", "read_write"))
        for key in ("read_only", "read_write"):
            for item in reader.items(section.get(key), key):
                _check_path(reader, item, key)
    if (node := top.get("landlock")) is not None:
        section = reader.mapping(node, "landlock", ("compatibility",))
        reader.choice(section.get("compatibility"), "compatibility", ("best_effort", "hard_requirement"), "best_effort")
    if (node := top.get("process")) is not None:
        section = reader.mapping(node, "process", ("run_as_user", "run_as_group"))
        for key, item in section.items():
            value = str(reader.value(item))
            if value != "sandbox" and not (value.isascii() and value.isdigit() and 1 <= int(value) <= 4294967294):
                reader.error(
                    item, f"{key} must be 'sandbox' or a numeric UID/GID in range [1, 4294967294], got '{value}'"
                )
    if (node := top.get("network_middlewares")) is not None and reader.mapping(node, "network_middlewares"):
        reader.error(node, "network_middlewares are not supported yet; remove them")
    for name in ("filesystem_policy", "landlock", "process"):
        if name in top:
            reader.notice(
                top[name], f"{name} is for the supervisor inside the sandbox, which is not part of this version"
            )


def _check_path(reader: Reader, node: yaml.Node, key: str) -> None:
    path = reader.text(node, key)
    if len(path) > 4096:
        reader.error(node, f"path exceeds maximum length ({len(path)} > 4096)")
    elif not path.startswith("/"):
        reader.error(node, f"path must be absolute (start with '/'): {path}")
    elif ".." in path.split("/"):
        reader.error(node, f"path contains '..' traversal component: {path}")
    elif key == "read_write" and not path.strip("/"):
        reader.error(node, f"read-write path is overly broad: {path}")


def _read_policy(reader: Reader, key: str, node: yaml.Node, default: Enforcement) -> list[Endpoint]:
    section = reader.mapping(node, f"network policy '{key}'", ("name", "endpoints", "binaries"))
    if key.startswith("_provider_"):
        reader.error(node, f"network policy '{key}': names beginning with _provider_ are reserved")
    reader.text(section.get("name"), "name")
    if "binaries" in section:
        reader.notice(
            section["binaries"], f"network policy '{key}': binaries is ignored; every program inside may use it"
        )
    return [
        endpoint
        for item in reader.items(section.get("endpoints"), "endpoints")
        if (endpoint := _EndpointReader(reader, key, item, default).read()) is not None
    ]


class _EndpointReader:
    """Reads one endpoint; nothing is returned for one with an error."""

    def __init__(self, reader: Reader, policy: str, node: yaml.Node, default: Enforcement) -> None:
        self.reader, self.policy, self.node, self.default = reader, policy, node, default
        self.keys = reader.mapping(node, "an endpoint", (*ENDPOINT, *ENDPOINT_LATER))

    def read(self) -> Endpoint | None:
        before = len(self.reader.errors)
        for key in ENDPOINT_LATER:
            if key in self.keys:
                self.reader.error(self.keys[key], f"{key} is not supported yet; remove it")
        host = self._host()
        protocol = self._protocol()
        rules = self._rules(protocol)
        path = self.reader.text(self.keys.get("path"), "path")
        if path and not path.startswith("/") and path != "**":
            self.reader.error(self.keys["path"], f"endpoint path '{path}' must begin with / or be **")
        endpoint = Endpoint(
            policy=self.policy,
            host=host,
            ports=self._ports(host),
            path=self._glob(path, self.keys.get("path")) if path and path != "**" else None,
            protocol=protocol,
            tls=self._tls(),
            enforcement=self._enforcement(protocol),
            rules=rules,
            deny_rules=self._deny_rules(protocol),
            allowed_ips=self._allowed_ips(),
            allow_encoded_slash=self.reader.boolean(self.keys.get("allow_encoded_slash"), "allow_encoded_slash"),
        )
        if endpoint.tls == "skip" and protocol:
            self.reader.error(
                self.keys["tls"], "tls: skip hides the requests that protocol: rest would judge; choose one"
            )
        if not host and not endpoint.allowed_ips:
            self.reader.error(self.node, "endpoint host must not be empty unless allowed_ips constrains it")
        return endpoint if len(self.reader.errors) == before else None

    def _host(self) -> str:
        host = self.reader.text(self.keys.get("host"), "host").lower()
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        try:
            if host:
                check_host_pattern(host)
        except HostPatternError as error:
            self.reader.error(self.keys["host"], f"network policy '{self.policy}': {error}")
        return host

    def _ports(self, host: str) -> frozenset[int]:
        if "port" in self.keys and "ports" in self.keys:
            self.reader.error(self.keys["ports"], f"endpoint '{host}' has port and ports; write one of them")
        nodes = [self.keys["port"]] if "port" in self.keys else self.reader.items(self.keys.get("ports"), "ports")
        if not nodes:
            self.reader.error(self.node, f"endpoint '{host}' must declare at least one port")
        for node in nodes:
            value = self.reader.value(node)
            if type(value) is not int or not 1 <= value <= 65535:
                self.reader.error(node, f"invalid port {value}; expected 1..=65535")
        return frozenset(value for node in nodes if type(value := self.reader.value(node)) is int)

    def _protocol(self) -> str:
        protocol = self.reader.text(self.keys.get("protocol"), "protocol")
        if protocol in PROTOCOLS_LATER:
            self.reader.error(
                self.keys["protocol"], f"protocol '{protocol}' is not supported yet; this version knows rest"
            )
        elif protocol not in ("", "rest"):
            known = ", ".join(("rest", *PROTOCOLS_LATER))
            self.reader.error(self.keys["protocol"], f"unknown protocol '{protocol}'; known are {known}")
        return protocol

    def _tls(self) -> Literal["auto", "skip"]:
        value = self.reader.choice(self.keys.get("tls"), "tls", ("", "auto", "skip", "terminate", "passthrough"), "")
        if value in ("terminate", "passthrough"):
            self.reader.notice(self.keys["tls"], f"tls: {value} is deprecated and means auto")
        return "skip" if value == "skip" else "auto"

    def _enforcement(self, protocol: str) -> Enforcement:
        value = self.reader.choice(self.keys.get("enforcement"), "enforcement", ("", "enforce", "audit"), "")
        if not value and protocol and self.default == "enforce":
            self.reader.notice(self.node, "no enforcement is named: it is enforced here (OpenShell would only audit)")
        return cast(Enforcement, value or self.default)

    def _rules(self, protocol: str) -> tuple[Rule, ...]:
        access = self.reader.choice(self.keys.get("access"), "access", ("", *PRESETS), "")
        if access and "rules" in self.keys:
            self.reader.error(self.keys["rules"], "rules and access exclude each other")
        if protocol and not access and "rules" not in self.keys:
            self.reader.error(self.node, f"protocol {protocol} needs rules or access")
        if not protocol and (access or "rules" in self.keys):
            self.reader.error(self.node, "rules and access need protocol: rest, otherwise requests are not looked at")
        if access:
            return tuple(Rule(method, None, (), f"{method} **") for method in PRESETS[access])
        nodes = self.reader.items(self.keys.get("rules"), "rules")
        if "rules" in self.keys and not nodes:
            self.reader.error(self.keys["rules"], "rules list cannot be empty (would deny all traffic)")
        found = []
        for node in nodes:
            allow = self.reader.mapping(node, "a rule", ("allow",)).get("allow")
            if allow is None:
                self.reader.error(node, "a rule without allow would deny everything")
            else:
                found.append(self._rule(allow))
        return tuple(rule for rule in found if rule is not None)

    def _deny_rules(self, protocol: str) -> tuple[Rule, ...]:
        nodes = self.reader.items(self.keys.get("deny_rules"), "deny_rules")
        if "deny_rules" in self.keys:
            if not protocol:
                self.reader.error(self.keys["deny_rules"], "deny_rules need a protocol")
            if not nodes:
                self.reader.error(self.keys["deny_rules"], "deny_rules list cannot be empty")
            if "rules" not in self.keys and "access" not in self.keys:
                self.reader.error(self.keys["deny_rules"], "deny_rules need rules or access to take something from")
        return tuple(rule for node in nodes if (rule := self._rule(node)) is not None)

    def _rule(self, node: yaml.Node) -> Rule | None:
        keys = self.reader.mapping(node, "a rule", (*RULE, *RULE_LATER))
        for key in RULE_LATER:
            if key in keys:
                self.reader.error(keys[key], f"{key} in a rule is not supported yet; remove it")
        method = self.reader.text(keys.get("method"), "method").upper()
        path = self.reader.text(keys.get("path"), "path")
        if method not in METHODS:
            self.reader.error(keys.get("method", node), f"method '{method}' is not known; use {', '.join(METHODS)}")
        if not path:
            self.reader.error(node, "a rule without path never matches; write path: '**' for any")
        compiled = None if path == "**" else self._glob(path, keys.get("path"))
        query = keys.get("query")
        matchers = self.reader.mapping(query, "query") if query is not None else {}
        return Rule(
            method,
            compiled,
            tuple(self._matcher(key, item) for key, item in matchers.items()),
            f"{method} {path}",
        )

    def _matcher(self, key: str, node: yaml.Node) -> QueryMatcher:
        """A glob, ``{glob: G}`` or ``{any: [G, …]}``."""
        nodes = [node]
        if isinstance(node, yaml.MappingNode):
            shape = self.reader.mapping(node, f"query '{key}'", ("glob", "any"))
            nodes = [shape["glob"]] if "glob" in shape else self.reader.items(shape.get("any"), "any")
            if len(shape) != 1 or not nodes:
                self.reader.error(node, f"query '{key}' needs one glob or a list any with at least one")
        patterns = [self._glob(self.reader.text(item, f"query '{key}'"), item, SEPARATOR_NAME) for item in nodes]
        return QueryMatcher(key, tuple(pattern for pattern in patterns if pattern is not None))

    def _glob(self, pattern: str, node: yaml.Node | None, separator: str = "/"):  # type: ignore[no-untyped-def]
        try:
            return compile_glob(pattern, separator)
        except GlobError as error:
            self.reader.error(node or self.node, f"pattern '{pattern}' has {error}")
            return None

    def _allowed_ips(self) -> tuple[Network, ...]:
        found: list[Network] = []
        for node in self.reader.items(self.keys.get("allowed_ips"), "allowed_ips"):
            text = str(self.reader.value(node))
            try:
                network = ipaddress.ip_network(text, strict=False)
            except ValueError:
                self.reader.error(node, f"allowed_ips: '{text}' is an invalid CIDR/IP")
                continue
            if any(network.version == never.version and network.overlaps(never) for never in NEVER_ALLOWED):
                self.reader.error(node, f"allowed_ips: {text} overlaps an always-blocked range")
            found.append(network)
        return tuple(found)
