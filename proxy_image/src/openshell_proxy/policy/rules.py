# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Allow and deny rules of an endpoint, by its protocol (spec 1.7, 1.8, 1.12)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import yaml

from openshell_proxy.policy.condition import ConditionError, compile_condition
from openshell_proxy.policy.document import Reader
from openshell_proxy.policy.globs import SEPARATOR_NAME, SEPARATOR_PATH, SPECIAL, GlobError, compile_glob
from openshell_proxy.policy.jsonrpc import TOOLS_CALL
from openshell_proxy.policy.linear import Matches
from openshell_proxy.policy.model import MESSAGE, Condition, Matcher, Rule

KEYS = (
    "method", "path", "query", "command", "operation_type", "operation_name", "fields", "tool", "params", "when",
)  # fmt: skip
OPERATIONS = ("query", "mutation", "subscription", "*")
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "*")
_GRAPHQL = ("operation_type", "operation_name", "fields")
_HTTP = ("method", "path", "query")
_RPC_TOOL = ("tool", "params")

_HTTP_PRESETS = {
    "read-only": ("GET", "HEAD", "OPTIONS"),
    "read-write": ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH"),
    "full": ("*",),
}
_WEBSOCKET_PRESETS = {"read-only": ("GET",), "read-write": ("GET", MESSAGE), "full": ("*",)}
_GRAPHQL_PRESETS = {"read-only": ("query",), "read-write": ("query", "mutation"), "full": ("*",)}
PRESETS = tuple(_HTTP_PRESETS)


def preset_rules(protocol: str, access: str, line: int) -> tuple[Rule, ...]:
    """What an ``access`` preset stands for (spec 1.12); () for a name that is none, or a protocol that has none."""
    if protocol == "graphql":
        return tuple(
            Rule(line=line, text=f"{kind} *", authored={"operation_type": kind}, kind="graphql", operation_type=kind)
            for kind in _GRAPHQL_PRESETS.get(access, ())
        )
    if protocol in ("json-rpc", "mcp"):
        return ()
    methods = (_WEBSOCKET_PRESETS if protocol == "websocket" else _HTTP_PRESETS).get(access, ())
    return tuple(
        Rule(
            line=line, text=f"{method} **", authored={"method": method, "path": "**"}, method=method, path="**"
        )
        for method in methods
    )  # fmt: skip


@dataclasses.dataclass(slots=True)
class RuleReader:
    """Reads rules of one endpoint. *at* of each method is how the rule is called in errors, ``rules[0].allow``."""

    reader: Reader
    protocol: str
    allow_all: bool
    strict_tool_names: bool

    def read(self, node: yaml.Node, at: str, denying: bool) -> Rule | None:
        """The rule; None where it can never match (a notice or an error says so)."""
        keys = self.reader.mapping(node, at, KEYS)
        if self.protocol == "sql":
            return self._sql(node, keys, at)
        if self.protocol in ("json-rpc", "mcp"):
            return self._rpc(node, keys, at, denying)
        if self.protocol == "graphql" or (self.protocol == "websocket" and any(key in keys for key in _GRAPHQL)):
            return self._graphql(node, keys, at, denying)
        return self._http(node, keys, at, denying)

    def _refuse(self, keys: Mapping[str, yaml.Node], names: Sequence[str], at: str, message: str) -> None:
        for name in names:
            if name in keys:
                self.reader.error(keys[name], f"{at}.{name}: {message}")

    def _sql(self, node: yaml.Node, keys: Mapping[str, yaml.Node], at: str) -> Rule:
        self._refuse(keys, [key for key in KEYS if key != "command"], at, "protocol sql rules have only command")
        command = self.reader.text(keys.get("command"), f"{at}.command")
        if not command:
            self.reader.error(node, f"{at}.command is required for protocol sql")
        return Rule(line=_line(node), text=command, authored={"command": command}, kind="sql")

    def _http(self, node: yaml.Node, keys: Mapping[str, yaml.Node], at: str, denying: bool) -> Rule | None:
        self._refuse(keys, _GRAPHQL, at, "is only valid for protocol graphql and websocket")
        self._refuse(keys, (*_RPC_TOOL, "command"), at, f"is not valid for protocol {self.protocol or 'rest'}")
        method = self.reader.text(keys.get("method"), f"{at}.method").upper()
        path = self.reader.text(keys.get("path"), f"{at}.path")
        if not method or not path:
            why = "would never match" if denying else "would deny all traffic"
            missing = " and ".join(name for name, value in (("method", method), ("path", path)) if not value)
            self.reader.error(node, f"{at} without {missing} {why}; write path: '**' for any path")
        known = ("GET", MESSAGE, "*") if self.protocol == "websocket" else METHODS
        if method and method not in known:
            self.reader.notice(
                keys["method"], f"{at}.method: Unknown HTTP method '{method}'; known are {', '.join(known)}"
            )
        usable = not path or self._glob(path, keys["path"], SEPARATOR_PATH, f"{at}.path", denying)
        query = keys.get("query")
        matchers = self.reader.mapping(query, f"{at}.query") if query is not None else {}
        rule = Rule(
            line=_line(node),
            text=f"{method} {path}",
            authored={"method": method, "path": path},
            method=method,
            path=path,
            query=tuple((key, self._matcher(item, f"{at}.query.{key}", denying)) for key, item in matchers.items()),
            when=self._when(keys, at),
        )
        return rule if usable else None

    def _graphql(self, node: yaml.Node, keys: Mapping[str, yaml.Node], at: str, denying: bool) -> Rule:
        self._refuse(
            keys, _HTTP, at, "cannot mix method, path and query with operation_type, operation_name and fields"
        )
        self._refuse(keys, (*_RPC_TOOL, "command"), at, f"is not valid for protocol {self.protocol}")
        kind = self.reader.text(keys.get("operation_type"), f"{at}.operation_type").lower()
        if kind not in OPERATIONS:
            self.reader.error(
                keys.get("operation_type", node), f"{at}.operation_type is required: {', '.join(OPERATIONS)}"
            )
        name = keys.get("operation_name")
        fields = keys.get("fields")
        listed = self.reader.items(fields, f"{at}.fields")
        if fields is not None and not listed:
            self.reader.error(fields, f"{at}.fields list must not be empty")
        texts = [self.reader.text(item, f"{at}.fields") for item in listed]
        for item, text in zip(listed, texts, strict=True):
            if not text:
                self.reader.error(item, f"{at}.fields must not have an empty member")
        return Rule(
            line=_line(node),
            text=f"{kind} {','.join(texts) or '*'}",
            authored={"operation_type": kind},
            kind="graphql",
            operation_type=kind,
            operation_name=self._globs([name], f"{at}.operation_name", denying) if name is not None else None,
            fields=self._globs(listed, f"{at}.fields", denying) if listed else None,
            when=self._when(keys, at),
        )

    def _rpc(self, node: yaml.Node, keys: Mapping[str, yaml.Node], at: str, denying: bool) -> Rule:
        self._refuse(keys, (*_GRAPHQL, "command"), at, f"is not valid for protocol {self.protocol}")
        self._refuse(keys, ("path", "query"), at, f"{self.protocol} rules must use method, not path/query")
        method = self.reader.text(keys.get("method"), f"{at}.method")
        tool = self._mcp(node, keys, method, at, denying) if self.protocol == "mcp" else None
        if self.protocol == "json-rpc":
            self._refuse(keys, _RPC_TOOL, at, "json-rpc rules do not support params or tool")
            if not method:
                self.reader.error(node, f"{at}.method is required for protocol json-rpc")
            elif method != "*" and any(char in SPECIAL for char in method):
                self.reader.error(keys["method"], f"{at}.method: '{method}' must be exact or the lone *, not a glob")
        if tool is not None:
            method = TOOLS_CALL
        compiled = self._glob(method, keys.get("method", node), SEPARATOR_NAME, f"{at}.method", denying)
        return Rule(
            line=_line(node),
            text=method if tool is None else f"{method} {self._tool_text(keys)}",
            authored={"method": method},
            kind="rpc",
            method=method,
            rpc_method=Matcher((compiled,) if compiled else ()),
            tool=tool,
            when=self._when(keys, at),
        )

    def _mcp(
        self, node: yaml.Node, keys: Mapping[str, yaml.Node], method: str, at: str, denying: bool
    ) -> Matcher | None:
        """What only MCP rules have; the matcher of the tool's name."""
        if not method and not self.allow_all:
            why = "is required when mcp.allow_all_known_mcp_methods is false"
            self.reader.error(keys.get("method", node), f"{at}.method {why}")
        elif not method and not any(key in keys for key in _RPC_TOOL):
            self.reader.error(node, f"{at} without method and tool would {'deny' if denying else 'allow'} nothing")
        if any(char in SPECIAL for char in method) and not method.startswith("tools/"):
            hint = "; mcp.allow_all_known_mcp_methods allows every method" if method == "*" else ""
            self.reader.error(keys["method"], f"{at}.method: globs are possible only inside the tools/ family{hint}")
        params = keys.get("params")
        named = self.reader.mapping(params, f"{at}.params") if params is not None else {}
        for key, item in named.items():
            if key != "name":
                self.reader.error(item, f"{at}.params.{key}: only params.name can be matched")
        if "tool" in keys and "name" in named:
            self.reader.error(keys["tool"], f"{at}.tool and {at}.params.name are mutually exclusive")
        chosen = keys.get("tool", named.get("name"))
        if chosen is None:
            return None
        if method and method != TOOLS_CALL:
            self.reader.error(chosen, f"{at}: tool and params.name need method: {TOOLS_CALL}")
        where = f"{at}.tool" if "tool" in keys else f"{at}.params.name"
        if not self.strict_tool_names and any(char in SPECIAL for text in _texts(chosen) for char in text):
            self.reader.error(chosen, f"{where}: a wildcard tool needs mcp.strict_tool_names: true")
        return self._matcher(chosen, where, denying)

    @staticmethod
    def _tool_text(keys: Mapping[str, yaml.Node]) -> str:
        return ",".join(_texts(keys["tool"] if "tool" in keys else keys["params"]))

    def _matcher(self, node: yaml.Node, at: str, denying: bool) -> Matcher:
        """A glob, ``{glob: G}`` or ``{any: [G, …]}``."""
        if isinstance(node, yaml.MappingNode):
            pairs = {str(key.value): item for key, item in node.value if isinstance(key, yaml.ScalarNode)}
            unknown = sorted(set(pairs) - {"glob", "any"})
            if unknown or len(pairs) != len(node.value):
                self.reader.error(node, f"{at}: unknown matcher keys {', '.join(unknown)}; use glob or any")
            elif len(pairs) != 1:
                self.reader.error(node, f"{at}: a matcher has either glob or any")
            elif "glob" in pairs:
                return self._globs([pairs["glob"]], f"{at}.glob", denying)
            else:
                listed = self.reader.items(pairs["any"], f"{at}.any")
                if not listed:
                    self.reader.error(pairs["any"], f"{at}.any: list must not be empty")
                return self._globs(listed, f"{at}.any", denying)
            return Matcher(())
        if not isinstance(self.reader.value(node), str):
            self.reader.error(node, f"{at}: expected string glob or matcher object")
            return Matcher(())
        return self._globs([node], at, denying)

    def _globs(self, nodes: Sequence[yaml.Node], at: str, denying: bool) -> Matcher:
        compiled = [self._glob(self.reader.text(item, at), item, SEPARATOR_NAME, at, denying) for item in nodes]
        return Matcher(tuple(pattern for pattern in compiled if pattern is not None))

    def _glob(self, pattern: str, node: yaml.Node, separator: str, at: str, denying: bool) -> Matches | None:
        """The compiled pattern, or None: one that never compiles never matches, which in a deny rule opens a door."""
        try:
            return compile_glob(pattern, separator)
        except GlobError as error:
            if denying:
                self.reader.error(node, f"{at}: pattern '{pattern}' has {error}, so the deny rule would never match")
            else:
                self.reader.notice(node, f"{at}: pattern '{pattern}' has {error}; it never matches")
            return None

    def _when(self, keys: Mapping[str, yaml.Node], at: str) -> Condition | None:
        node = keys.get("when")
        if node is None:
            return None
        try:
            return compile_condition(self.reader.text(node, f"{at}.when"))
        except ConditionError as error:
            self.reader.error(node, f"{at}.when: {error}")
            return None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _texts(node: yaml.Node, depth: int = 3) -> list[str]:
    """The scalars of a matcher, as written."""
    if isinstance(node, yaml.ScalarNode):
        return [str(node.value)]
    if depth == 0:
        return []
    if isinstance(node, yaml.MappingNode):
        return [text for _, item in node.value for text in _texts(item, depth - 1)]
    return [text for item in node.value for text in _texts(item, depth - 1)]
