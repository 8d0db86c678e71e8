# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a policy file may say: every error with its line, every notice, and nothing that is silently not in force."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openshell_proxy.policy import Policy, PolicyError, document, engine, load_policy
from openshell_proxy.policy.model import Filesystem, Process
from openshell_proxy.policy.routes import paths_overlap


def policy(*endpoints: dict[str, Any], **top: Any) -> str:
    return json.dumps({"version": 1, "network_policies": {"p": {"endpoints": list(endpoints)}}, **top})


def endpoint(**keys: Any) -> dict[str, Any]:
    return {"host": "api.example.com", "port": 443, "enforcement": "enforce", **keys}


def rest(**keys: Any) -> dict[str, Any]:
    return endpoint(protocol="rest", **keys)


def load(*endpoints: dict[str, Any], **top: Any) -> Policy:
    return load_policy(policy(*endpoints, **top))


def rule(**keys: Any) -> list[dict[str, Any]]:
    return [{"allow": keys}]


GET = {"method": "GET", "path": "/v1"}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prot": 443}, "unknown key 'prot'; did you mean 'port'"),
    ({"protocol": "graphql", "access": "full", "graphql_max_body_bytes": True}, "must be a positive integer"),
    ({"protocol": "graphql", "access": "full", "graphql_max_body_bytes": "x"}, "must be a positive integer"),
    ({"protocol": "graphql", "access": "full", "graphql_max_body_bytes": 2**32}, "from 1 to 4294967295"),
    ({"protocol": "rest", "access": "full", "deny_rules": [{"method": "*", "path": "/a\\"}]}, "a backslash at the end"),
    ({"protocol": "rest", "access": "full", "deny_rules": [{"method": "*", "path": "/a}"}]}, "a '}' without '{'"),
    ({"protocol": "rest", "access": "full", "deny_rules": [{"method": "*", "path": "/[b-a]"}]}, "a bad range b-a"),
    ({"protocol": "rest", "access": "full", "deny_rules": [{"method": "*", "path": "{" * 17 + "}" * 17}]},
     "more than 16 braces"),
    ({"zzz": 443}, "unknown key 'zzz'; known are host, port"),
    ({"protocol": "rest", "access": "full", "deny_rules": [{"method": "*", "path": "/a\0"}]}, "a NUL character"),
    ({"ports": [443]}, "has port and ports"),
    ({"port": True}, "invalid port"),
    ({"host": "db..example.com", "protocol": "tcp", "enforcement": None}, "empty DNS labels"),
    ({"host": "10.0.0.1", "protocol": "tcp"}, "requires a DNS hostname"),
    ({"protocol": "tcp", "tls": "skip", "enforcement": "audit"}, "enforcement is not valid for protocol tcp"),
    ({"protocol": "tcp", "access": "full"}, "access is not valid for protocol tcp"),
    ({"protocol": "soap", "access": "full"}, "unknown protocol 'soap'"),
    ({"access": "full"}, "need a protocol"),
    ({"rules": rule(**GET)}, "need a protocol"),
    ({"deny_rules": [GET]}, "deny_rules require protocol"),
    ({"protocol": "rest"}, "requires rules or access"),
    ({"protocol": "rest", "access": "full", "rules": rule(**GET)}, "mutually exclusive"),
    ({"protocol": "rest", "rules": []}, "rules list cannot be empty"),
    ({"protocol": "rest", "access": "full", "deny_rules": []}, "deny_rules list cannot be empty"),
    ({"protocol": "rest", "rules": [{}]}, r"rules\[0\] without allow"),
    ({"protocol": "rest", "rules": [{"allow": {}}]}, r"rules\[0\] without allow"),
    ({"protocol": "websocket", "access": "full", "deny_rules": [{"method": "GET", "path": "/[a"}]}, "would never match"),
    ({"protocol": "rest", "rules": rule(method="GET")}, "without path would deny all traffic"),
    ({"protocol": "rest", "access": "full", "deny_rules": [{"method": "GET"}]}, "would never match"),
    ({"protocol": "rest", "access": "full", "deny_rules": [{"method": "*", "path": "/a[b"}]}, "unclosed '\\['"),
    ({"protocol": "rest", "access": "full", "deny_rules": [{**GET, "query": {"a": "{b"}}]}, "unclosed '{'"),
    ({"protocol": "rest", "access": "full", "deny_rules": [{**GET, "query": {"a": {"any": ["[b"]}}}]}, "unclosed"),
    ({"protocol": "rest", "rules": rule(**GET, fields=["a"])}, "only valid for protocol graphql"),
    ({"protocol": "rest", "rules": rule(**GET, query={"a": {"glob": "x", "any": ["y"]}})}, "either glob or any"),
    ({"protocol": "rest", "rules": rule(**GET, when="request.[")}, "when: not JMESPath"),
    ({"protocol": "rest", "access": "full", "path": "v1"}, "must begin with /"),
    ({"protocol": "rest", "access": "full", "path": "/[v1"}, "endpoint path '/\\[v1' has an unclosed"),
    ({"protocol": "rest", "access": "full", "mcp": {"strict_tool_names": True}}, "mcp.strict_tool_names is only valid for"),
    ({"protocol": "rest", "access": "full", "json_rpc": {}}, "json_rpc is only valid for protocol json-rpc"),
    ({"protocol": "rest", "access": "full", "persisted_queries": "deny"}, "only valid for protocol graphql"),
    ({"protocol": "sql", "rules": rule(command="SELECT")}, "SQL enforcement requires full SQL parsing"),
    ({"protocol": "graphql", "access": "full", "graphql_max_body_bytes": 0}, "graphql_max_body_bytes must be"),
    ({"protocol": "graphql", "rules": rule(operation_type="query", path="/x")}, "cannot mix"),
    ({"protocol": "graphql", "rules": rule(operation_type="query", fields=[])}, "must not be empty"),
    ({"protocol": "graphql", "rules": rule(operation_type="query", fields=[""])}, "empty member"),
    ({"protocol": "graphql", "rules": rule(operation_type="select")}, "operation_type is required"),
    ({"protocol": "websocket", "rules": [*rule(method="WEBSOCKET_TEXT", path="**"), *rule(operation_type="query")]},
     "cannot stand beside GraphQL rules"),
    ({"protocol": "json-rpc", "access": "full"}, "does not support access presets"),
    ({"protocol": "json-rpc", "rules": rule(method="a.*")}, "must be exact or the lone"),
    ({"protocol": "json-rpc", "rules": rule(method="a", tool="b")}, "do not support params or tool"),
    ({"protocol": "mcp"}, "protocol mcp requires rules"),
    ({"protocol": "mcp", "rules": rule(tool="a")}, "method is required"),
    ({"protocol": "mcp", "rules": rule(method="vendor/*")}, "only inside the tools/ family$"),
    ({"protocol": "mcp", "rules": rule(method="tools/list", tool="a")}, "need method: tools/call"),
    ({"protocol": "mcp", "rules": rule(method="tools/call", params={"arguments": "a"})}, "only params.name"),
    ({"protocol": "mcp", "rules": rule(method="tools/call", tool="a", params={"name": "b"})}, "mutually exclusive"),
    ({"protocol": "mcp", "mcp": {"strict_tool_names": False}, "rules": rule(method="tools/call", tool="a*")},
     "allow.tool: a wildcard tool needs mcp.strict_tool_names: true"),
    ({"protocol": "mcp", "rules": rule(method="tools/call", tool="a"), "deny_rules": [{"method": "tools/call"}]},
     "denies every tool call"),
    ({"allowed_ips": ["10.0.0.0/8", "127.0.0.1"]}, "always-blocked"),
    ({"allowed_ips": ["::ffff:127.0.0.0/104"]}, "always-blocked"),
    ({"allowed_ips": ["::fffe:0:0/95"]}, "always-blocked"),
    ({"allowed_ips": ["ten"]}, "invalid CIDR/IP"),
    ({"host": ""}, "host must not be empty"),
    ({"credential_signing": "sigv4"}, "needs signing_service"),
    ({"credential_signing": "sigv5", "signing_service": "s3"}, "'sigv5' is not known"),
    ({"credential_binding": {}}, "provider must not be empty"),
    ({"tls": "none"}, "tls 'none' is not known; use auto or skip or"),
    ({"enforcement": "log"}, "enforcement 'log' is not known"),
    ({"host": "ex\u00e4mple.com"}, "is not a host name, address or wildcard"),
    ({"host": "a b.com"}, "is not a host name, address or wildcard"),
    ({"host": "user@a.com"}, "is not a host name, address or wildcard"),
    ({"host": "a.com/x"}, "is not a host name, address or wildcard"),
    ({"host": "a\x07.com"}, "is not a host name, address or wildcard"),
    ({"host": "[::1"}, "is not a host name, address or wildcard"),
    ({"host": "x::1]"}, "is not a host name, address or wildcard"),
    ({"host": " a.com"}, "leading or trailing whitespace"),
    ({"host": "a.com."}, "omit the trailing DNS root dot"),
    ({"host": "*..example.com"}, "empty DNS labels"),
    ({"host": "*.ex?mple.com"}, "empty DNS labels and"),
    ({"host": "*.{a,b}.com"}, "empty DNS labels and"),
    ({"host": "*.a.com:443"}, "empty DNS labels and"),
    ({"host": "**"}, "matches all hosts"),
    ({"host": "*.com"}, "TLD wildcard"),
    ({"host": "a.**.example.com"}, "must be the complete first label"),
    ({"host": "x**.example.com"}, "must be the complete first label"),
    ({"host": "a.b*.example.com"}, "must be the whole label"),
    ({"protocol": "tcp", "host": "10.0.0.1"}, "not the IP literal"),
    ({"protocol": "tcp", "host": "a..com"}, "empty DNS labels"),
    ({"protocol": "tcp", "host": "a" * 64 + ".com"}, "not a valid DNS name"),
    ({"protocol": "tcp", "host": ".".join(["a" * 50] * 6)}, "not a valid DNS name"),
    ({"protocol": "tcp", "host": "-a.com"}, "not a valid DNS name"),
    ({"protocol": "tcp", "host": "", "allowed_ips": ["10.0.0.0/8"]}, "requires a DNS hostname"),
    ({"protocol": "tcp", "enforcement": "enforce"}, "enforcement is not valid for protocol tcp"),
    ({"protocol": "sql", "enforcement": "audit", "rules": rule(method="GET", path="**")}, "have only command"),
    ({"protocol": "sql", "enforcement": "audit", "rules": rule(command="")}, "command is required"),
    ({"protocol": "rest", "rules": rule(**GET, fields=["a"])}, "only valid for protocol graphql"),
    ({"protocol": "rest", "rules": rule(**GET, tool="a")}, "not valid for protocol rest"),
    ({"protocol": "websocket", "rules": rule(**GET, tool="a")}, "not valid for protocol websocket"),
    ({"protocol": "rest", "rules": rule(**GET, query={"a": {"any": []}})}, "list must not be empty"),
    ({"protocol": "rest", "rules": rule(**GET, query={"a": {"re": "x"}})}, "unknown matcher keys re"),
    ({"protocol": "rest", "rules": rule(**GET, query={"a": 5})}, "expected string glob"),
    ({"protocol": "rest", "rules": rule(path="/x")}, "without method would deny all"),
    ({"protocol": "rest", "access": "full", "deny_rules": [{"method": "GET"}]}, "without path would never match"),
    ({"protocol": "rest", "access": "full", "deny_rules": [{"method": "GET", "path": "/[a"}]}, "would never match"),
    ({"protocol": "rest", "access": "full",
      "deny_rules": [{"method": "GET", "path": "/a", "query": {"a": "{x"}}]}, "would never match"),
    ({"protocol": "rest", "access": "full", "rules": rule(**GET)}, "mutually exclusive"),
    ({"protocol": "rest", "deny_rules": [dict(GET)]}, "require rules or access"),
    ({"deny_rules": [dict(GET)]}, "deny_rules require protocol"),
    ({"protocol": "graphql", "rules": rule(operation_type="query", tool="a")}, "not valid for protocol graphql"),
    ({"protocol": "json-rpc", "rules": rule(path="/x")}, "method is required for protocol json-rpc"),
    ({"protocol": "json-rpc", "rules": rule(method="a", fields=["a"])}, "not valid for protocol json-rpc"),
    ({"protocol": "mcp", "mcp": {"allow_all_known_mcp_methods": True}, "rules": rule(when="request")},
     "without method and tool would allow nothing"),
    ({"protocol": "mcp", "mcp": {"allow_all_known_mcp_methods": True}, "deny_rules": [{"when": "request"}]},
     "without method and tool would deny nothing"),
    ({"protocol": "mcp", "rules": rule(method="*")}, "tools/ family; mcp.allow_all_known_mcp_methods allows every"),
    ({"protocol": "mcp", "rules": rule(method="tools/call", tool="a", params={"name": "b"})}, "are mutually exclusive"),
    ({"protocol": "mcp", "mcp": {"strict_tool_names": False}, "rules": rule(method="tools/call", params={"name": "?"})},
     "params.name: a wildcard tool"),
    ({"protocol": "mcp", "mcp": {"strict_tool_names": "no"}, "rules": rule(method="tools/list")}, "must be boolean"),
    ({"protocol": "mcp", "mcp": {"max_body_bytes": 0}, "rules": rule(method="tools/list")},
     "mcp.max_body_bytes must be a positive integer"),
    ({"protocol": "json-rpc", "json_rpc": {"max_body_bytes": 0}, "rules": rule(method="a")},
     "json_rpc.max_body_bytes must be a positive integer"),
    ({"protocol": "json-rpc", "mcp": {"strict_tool_names": True}, "rules": rule(method="a")}, "only valid for protocol mcp"),
    ({"credential_signing": "sigv4", "signing_service": "s3", "request_body_credential_rewrite": True},
     "mutually exclusive"),
    ({"ports": [443]}, "has port and ports"),
    ({"port": None, "ports": []}, "at least one port"),
    ({"port": None, "ports": [443, 70000]}, "invalid port 70000"),
    ({"port": "https"}, "invalid port https"),
    ({"port": True}, "invalid port"),
    ({"protocol": "graphql", "access": "full", "graphql_persisted_queries": {"a": {"operation_type": "*"}}},
     "needs an identifier and operation_type"),
    ({"protocol": "graphql", "access": "full", "graphql_persisted_queries": {"": {"operation_type": "query"}}},
     "needs an identifier and operation_type"),
    ({"allow_encoded_slash": "yes"}, "must be boolean"),
    ({"allowed_ips": "10.0.0.0/8"}, "must be a list"),
    ({"rules": {}}, "must be a list"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "words"), REFUSED)
def test_an_endpoint_with_an_error_is_refused(keys: dict[str, Any], words: str) -> None:
    given = {key: value for key, value in {**endpoint(), **keys}.items() if value is not None}
    with pytest.raises(PolicyError, match=words):
        load(given)


def test_errors_name_file_and_line_and_come_all_at_once() -> None:
    text = "version: 1\nnetwork_policies:\n  a:\n    endpoints:\n      - hots: x\n        port: 0\n"
    with pytest.raises(PolicyError) as caught:
        load_policy(text, source="my.yaml")
    assert "my.yaml:5: an endpoint has an unknown key 'hots'; did you mean 'host'?" in caught.value.errors
    assert "my.yaml:6: invalid port 0; expected 1..=65535" in caught.value.errors


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("version: 1\na: b: c\n", "my.yaml:2: not YAML: mapping values are not allowed here"),
        ("network_policies: {}\nversion: 2\n", "my.yaml:2: version must be 1"),
        ("version: 1\nprocess: *a\n", "my.yaml:2: not YAML: found undefined alias 'a'"),
    ],
)
def test_what_is_no_policy_is_refused_with_its_line(text: str, error: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy(text, source="my.yaml")
    assert caught.value.errors == (error,)


TOP: list[tuple[dict[str, Any], str]] = [
    ({"filesystem_policy": {"read_only": ["etc"]}}, "must be absolute"),
    ({"filesystem_policy": {"read_only": ["/a/../b"]}}, "'..' traversal"),
    ({"filesystem_policy": {"read_write": ["//"]}}, "overly broad"),
    ({"filesystem_policy": {"read_only": ["/" + "a" * 4096]}}, "exceeds maximum length"),
    ({"filesystem_policy": {"read_only": ["/a"] * 200, "read_write": ["/b"] * 57}}, r"too many filesystem paths \(257"),
    ({"filesystem_policy": {"read_olny": []}}, "did you mean 'read_only'"),
    ({"landlock": {"compatibility": "none"}}, "'none' is not known"),
    ({"process": {"run_as_user": "root"}}, "run_as_user must be 'sandbox'"),
    ({"process": {"run_as_group": 0}}, "run_as_group must be 'sandbox'"),
    ({"version": 2}, "version must be 1"),
    ({"version": True}, "version must be 1"),
    ({"network_policies": {"_provider_x": {}}}, "reserved"),
    ({"network_policies": {"a": {"name": 5}}}, "name must be a text"),
    ({"network_policies": {"a": {"binaries": [{"path": 5}]}}}, "path must be a text"),
    ({"network_policies": {"a": {"binaries": "x"}}}, "binaries must be a list"),
    ({"network_policies": {"a": {"endpoints": "x"}}}, "endpoints must be a list"),
    ({"network_policies": {"a": {"binaries": [{"paht": "/x"}]}}}, "unknown key 'paht'"),
]


@pytest.mark.parametrize(("top", "words"), TOP)
def test_a_section_with_an_error_is_refused(top: dict[str, Any], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        load(**top)


def test_static_sections_are_kept_for_the_supervisor() -> None:
    found = load(
        filesystem_policy={"read_only": ["/usr"], "read_write": ["/tmp"], "include_workdir": True},
        landlock={"compatibility": "hard_requirement"},
        process={"run_as_user": "sandbox", "run_as_group": "1000"},
    ).document
    assert found.filesystem == Filesystem(True, ("/usr",), ("/tmp",))
    assert (found.landlock, found.process) == ("hard_requirement", Process("sandbox", "1000"))
    assert load().document.filesystem is None
    paths = ["/", "/" + "a" * 4095, *["/a"] * 200]
    found = load(filesystem_policy={"read_only": paths, "read_write": ["/b"] * 54}).document.filesystem
    assert found == Filesystem(False, tuple(paths), ("/b",) * 54)


def test_a_section_for_the_supervisor_has_a_notice() -> None:
    for section in ("filesystem_policy", "landlock", "process"):
        assert f"{section} is for the supervisor" in load(**{section: {}}).notices[0]


def test_only_a_composed_policy_has_the_entries_of_providers() -> None:
    text = policy(network_policies={"_provider_x": {"endpoints": [endpoint()]}})
    assert load_policy(text, composed=True).document.endpoints
    with pytest.raises(PolicyError, match="reserved"):
        load_policy(text)


MIDDLEWARE = {"middleware": "openshell/regex", "endpoints": {"include": ["*.example.com"]}}


@pytest.mark.parametrize(
    ("entry", "tls"),
    [
        (MIDDLEWARE, "auto"),
        ({**MIDDLEWARE, "name": "n", "config": {}, "endpoints": {"include": ["*.example.org"]}}, "skip"),
        ({**MIDDLEWARE, "endpoints": {"include": ["*.example.com"], "exclude": ["api.example.com"]}}, "skip"),
        ({**MIDDLEWARE, "endpoints": {"include": ["*", "**", "a.**.com", *["a.com"] * 29]}}, "auto"),
    ],
)
def test_a_good_middleware_is_no_reason_for_a_notice(entry: dict[str, Any], tls: str) -> None:
    assert load(endpoint(tls=tls), network_middlewares={"m": entry}).notices == ()


def test_middlewares_are_kept_in_their_order() -> None:
    scope = {"include": ["API.example.com", "*.x.test"], "exclude": ["b.x.test"]}
    last = {"middleware": "openshell/regex", "order": 7, "endpoints": scope, "config": {"mode": "redact"}}
    first = {**MIDDLEWARE, "order": -7, "on_error": "fail_open", "config": {}, "name": "the first"}
    found = load(network_middlewares={"last": last, "first": first})
    assert [(one.name, one.order, one.fails_closed) for one in found.document.middlewares] == [
        ("first", -7, False),
        ("last", 7, True),
    ]
    hosts = {"api.example.com": 2, "b.example.com": 1, "a.x.test": 1, "b.x.test": 0, "x.test": 0, "a.b.example.com": 0}
    assert {host: len(found.middlewares(host)) for host in hosts} == hosts
    assert load(network_middlewares={}).middlewares("api.example.com") == ()


def test_a_middleware_that_excludes_what_passes_unseen_may_fail_closed() -> None:
    for exclude in ("api.example.com", "api.*.com"):
        scope = {"include": ["*.example.com"], "exclude": [exclude]}
        load(endpoint(tls="skip"), network_middlewares={"m": {**MIDDLEWARE, "endpoints": scope}})
    wild = endpoint(host="*.example.com", tls="skip")
    load(wild, network_middlewares={"m": {**MIDDLEWARE, "endpoints": {**scope, "exclude": ["*.example.com"]}}})
    opened = load(endpoint(tls="skip"), network_middlewares={"m": {**MIDDLEWARE, "on_error": "fail_open"}})
    assert "sees nothing of what goes to 'api.example.com'" in opened.notices[0]


def test_ten_middlewares_are_not_too_many() -> None:
    entries = {str(number): {**MIDDLEWARE, "order": number} for number in range(10)}
    assert len(load(network_middlewares=entries).middlewares("api.example.com")) == 10


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"m": {**MIDDLEWARE, "ordre": 1}}, "did you mean 'order'"),
        ({"m": MIDDLEWARE, "n": MIDDLEWARE}, "order 0 of 'm'"),
        ({"m": {**MIDDLEWARE, "order": "x"}}, "order must be a whole number"),
        ({"m": {**MIDDLEWARE, "name": 5}}, "name must be a text"),
        ({"m": {**MIDDLEWARE, "config": 5}}, "config must be a mapping"),
        ({"m": {**MIDDLEWARE, "endpoints": {"include": [""]}}}, "invalid host pattern"),
        ({"m": {**MIDDLEWARE, "endpoints": {"include": ["a..com"]}}}, "invalid host pattern"),
        ({"m": {**MIDDLEWARE, "endpoints": {"include": ["a .com"]}}}, "invalid host pattern"),
        ({"m": {**MIDDLEWARE, "endpoints": {"include": ["a**.com"]}}}, "must be a whole label"),
        ({"m": {**MIDDLEWARE, "endpoints": {"include": ["a.com"], "exclude": ["a[.com"]}}}, "invalid host pattern"),
        ({"m": {"middleware": "openshell/regex"}}, "include must not be empty"),
        ({"m": {**MIDDLEWARE, "endpoints": {"include": []}}}, "include must not be empty"),
        ({"m": {**MIDDLEWARE, "endpoints": {"include": ["a[.com"]}}}, "invalid host pattern"),
        ({"m": {**MIDDLEWARE, "endpoints": {"include": ["a.com"] * 33}}}, "too many patterns"),
        ({"m": {"endpoints": MIDDLEWARE["endpoints"]}}, "must name its middleware"),
        ({"m": {**MIDDLEWARE, "middleware": "guard", "config": {"a": 1}}}, "openshell/regex is the only middleware"),
        ({"m": {**MIDDLEWARE, "config": {"mode": "deny"}}}, "mode 'deny' is not known"),
        ({"m": {**MIDDLEWARE, "config": {"mode": True}}}, "mode must be a text"),
        ({"m": {**MIDDLEWARE, "config": {"pattern": "x"}}}, "unknown key 'pattern'"),
        ({"m": {**MIDDLEWARE, "config": "redact"}}, "config must be a mapping"),
        ({"m": {**MIDDLEWARE, "on_error": "open"}}, "on_error 'open' is not known"),
        ({str(i): {**MIDDLEWARE, "order": i} for i in range(11)}, "too many network_middlewares"),
        ({"m": MIDDLEWARE}, "covers 'api.example.com' with tls: skip"),
    ],
)
def test_middlewares_are_judged_in_full(entries: dict[str, Any], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        load(endpoint(tls="skip"), network_middlewares=entries)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"protocol": "rest", "access": "read-only", "enforcement": None}, "OpenShell would only audit"),
        ({"protocol": "rest", "access": "all"}, "unsupported access preset"),
        ({"protocol": "rest", "access": "full", "tls": "skip"}, "tls: skip"),
        ({"protocol": "rest", "rules": rule(method="PROPFIND", path="**")}, "Unknown HTTP method 'PROPFIND'"),
        ({"protocol": "websocket", "rules": rule(method="POST", path="**")}, "Unknown HTTP method 'POST'"),
        ({"protocol": "rest", "rules": rule(**GET, query={"a": "[b"})}, "never matches"),
        ({"protocol": "sql", "enforcement": "audit", "rules": rule(command="*")}, "every statement passes"),
        ({"path": "/v1"}, "path has no effect"),
        ({"tls": "terminate"}, "deprecated"),
        ({"host": "", "allowed_ips": ["10.0.0.0/8"]}, "internal addresses"),
        ({"host": "*.example.com", "allowed_ips": ["10.1.0.0/16"]}, "internal addresses"),
        ({"allowed_ips": ["10.0.0.0/8"]}, "very broad"),
        ({"request_body_credential_rewrite": True}, "is ignored unless"),
    ],
)
def test_what_loads_with_a_notice(keys: dict[str, Any], words: str) -> None:
    given = {key: value for key, value in {**endpoint(), **keys}.items() if value is not None}
    assert words in "\n".join(load(given).notices)


@pytest.mark.parametrize("host", ["a" * 63 + ".com", ".".join(["a" * 63] * 3 + ["b" * 61]), "_a-b.c1", "*.a.com"])
def test_a_name_as_long_as_names_may_be_is_one(host: str) -> None:
    found = load({"host": host, "port": 443, "protocol": "tcp"})
    assert found.document.endpoints[0].host == host


@pytest.mark.parametrize(
    "keys",
    [
        {"enforcement": None},
        {"tls": "skip"},
        {"allowed_ips": ["10.1.0.0/16", "fd00::/8"]},
        {"protocol": "rest", "access": "full", "request_body_credential_rewrite": True},
        {"protocol": "rest", "access": "full", "path": "**"},
        {"protocol": "rest", "rules": [*rule(method="*", path="**"), *rule(method="put", path="/a/**")]},
        {"protocol": "websocket", "rules": [*rule(**GET), *rule(method="WEBSOCKET_TEXT", path="**")]},
    ],
)
def test_what_is_as_it_should_be_has_no_notice(keys: dict[str, Any]) -> None:
    given = {key: value for key, value in endpoint(**keys).items() if value is not None}
    assert load(given).notices == ()
    assert load(given).document.endpoints[0].path == ""


def test_binaries_are_ignored_and_a_notice_says_that_more_is_granted() -> None:
    top = {"p": {"endpoints": [endpoint()], "binaries": [{"path": "/usr/bin/curl", "harness": True}]}}
    assert "grants more" in load(network_policies=top).notices[0]


def test_credential_keys_are_kept_on_the_endpoint() -> None:
    keys = {"credential_signing": "sigv4:body", "signing_service": "s3", "signing_region": "eu", "credential_binding":
            {"provider": "aws"}, "allow_uninspected_credentials": True, "websocket_credential_rewrite": True}  # fmt: skip
    found = load(rest(access="full", **keys)).document.endpoints[0].credentials
    assert (found.signing, found.signing_service, found.signing_region) == ("sigv4:body", "s3", "eu")
    assert (found.provider, found.allow_uninspected, found.websocket_rewrite) == ("aws", True, True)
    with pytest.raises(PolicyError, match="mutually exclusive"):
        load(rest(access="full", **keys, request_body_credential_rewrite=True))


def aws(provider: str) -> dict[str, Any]:
    return {"credential_binding": {"provider": provider}}


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (endpoint(tls="skip"), endpoint(), "tls"),
        (endpoint(tls="skip"), endpoint(host="*.example.com"), "tls"),
        (endpoint(tls="skip"), endpoint(host="", allowed_ips=["10.0.0.0/16"]), "any host.*tls, allowed_ips"),
        (endpoint(protocol="tcp", enforcement=None), endpoint(), "protocol tcp"),
        (rest(access="full"), endpoint(protocol="graphql", access="full"), "protocol"),
        (rest(access="full"), rest(access="full", enforcement="audit"), "enforcement"),
        (rest(access="full", path="/a?"), rest(access="full", path="/ab", allow_encoded_slash=True), "encoded_slash"),
        (endpoint(host="*.example.com", tls="skip"), endpoint(host="*.example.com"), "tls$"),
        (endpoint(host="*.example.com", tls="skip"), endpoint(host="**.example.com"), "tls$"),
        (endpoint(tls="auto", **aws("a")), endpoint(tls="auto", **aws("b")), "on api.example.com.*binding.provider$"),
        (endpoint(**aws("a")), rest(access="full", **aws("b")), "credential_binding.provider"),
        (
            endpoint(allowed_ips=["10.1.0.0/16"]),
            rest(access="full", allowed_ips=["10.2.0.0/16"]),
            "allowed_ips, protocol",
        ),
        (
            rest(access="full"),
            endpoint(protocol="graphql", access="full", graphql_max_body_bytes=1),
            "differs in protocol$",
        ),
        (
            endpoint(protocol="graphql", access="full"),
            endpoint(protocol="graphql", access="full", graphql_max_body_bytes=1),
            "graphql_max_body_bytes",
        ),
        (endpoint(ports=[1, 2], port=None, tls="skip"), endpoint(ports=[2, 3], port=None), "tls"),
        (endpoint(ports=[1, 2], port=None, tls="skip"), endpoint(ports=[3], port=None), ""),
        (endpoint(host="*.a.example.com", tls="skip"), endpoint(host="*.b.example.com"), ""),
        (endpoint(tls="auto"), rest(access="full"), "protocol$"),
        (endpoint(tls=""), rest(access="full"), ""),
        (endpoint(signing_region="a"), rest(access="full", signing_region="b"), ""),
        (rest(access="full", path="/a/**"), rest(access="full", path="/b/**", enforcement="audit"), ""),
        (rest(access="full", path="/a/**"), rest(access="full", enforcement="audit"), ""),
        (rest(access="full", path="/{a,b}/c"), rest(access="full", path="/a/[b-d]xxxx", enforcement="audit"), ""),
    ],
)
def test_endpoints_whose_order_would_matter_are_refused(
    left: dict[str, Any], right: dict[str, Any], words: str
) -> None:
    left, right = ({key: value for key, value in side.items() if value is not None} for side in (left, right))
    if not words:
        load(left, right)
        load(right, left)
        return
    for pair in ((left, right), (right, left)):
        with pytest.raises(PolicyError, match=f"ambiguous.*{words}") as caught:
            load(*pair)
        assert len(caught.value.errors) == 1


@pytest.mark.parametrize("host", ["api.example.com", "*.example.com", ""])
def test_an_ambiguity_names_the_line_and_the_policy_of_the_other_endpoint(host: str) -> None:
    both = endpoint(host=host, allowed_ips=["10.1.0.0/16"])
    one, other = json.dumps({**both, "tls": "skip"}), json.dumps(both)
    text = f"version: 1\nnetwork_policies:\n  a:\n    endpoints:\n      - {one}\n"
    name = host or "any host"
    for more, at, where in (("", 6, "line 5"), ("  b:\n    endpoints:\n", 8, "line 5 of policy 'a'")):
        with pytest.raises(PolicyError) as caught:
            load_policy(f"{text}{more}      - {other}\n")
        assert caught.value.errors == (
            f"policy:{at}: ambiguous: overlaps with the endpoint in {where} on {name} and {name}, but differs in tls",
        )


@pytest.mark.parametrize(
    ("left", "right", "overlap"),
    [
        ("", "/a", True),
        ("/a", "/b", False),
        ("/a", "/ab", False),
        ("/a/*", "/a/b", True),
        ("/a/*", "/b/c", False),
        ("/a/?", "/a/b", True),
        ("/a?", "/b?", False),
        ("/a/**", "/a", True),
        ("/a/**", "/a/b/c", True),
        ("/a/**", "/b/**", False),
        ("/**/x", "/x", True),
        ("/**/x", "/a/b/x", True),
        ("/a/**/x", "/a/x", True),
        ("/a/**/x", "/a/b/y", False),
        ("/a/**/x", "/a/bx", False),
        ("**/x", "/a/x", True),
        ("**/x", "/a/y", False),
        ("/*/x/**", "/y/*/z", True),
        ("/a[bc]", "/ad", True),  # what a class or braces take is not looked into
        ("/a{b,c}", "/bd", False),
        ("/a\\*", "/a*", True),
        ("/a\\b", "/ab", True),
        ("/a\\*c", "/a*b", False),
    ],
)
def test_whether_one_path_can_be_governed_by_two(left: str, right: str, overlap: bool) -> None:
    assert (paths_overlap(left, right), paths_overlap(right, left)) == (overlap, overlap)


def test_endpoints_that_only_add_rules_may_overlap() -> None:
    load(rest(access="read-only"), rest(access="full"), endpoint())
    load(rest(access="full", path="/a/**"), endpoint(protocol="graphql", access="full", path="/graphql"))


@pytest.mark.parametrize(
    "text",
    ["", "a: [", "- 1", "version: 1\nnetwork_policies: [1]", "? [a]\n: 1", "version: !!int x", "&a [*a]", "{" * 5000,
     "version: 1\nprocess: !!bool x", "version: 1\nlandlock: {compatibility: !!timestamp 2021-99-99}", "\ud800"],
)  # fmt: skip
def test_what_is_no_policy_is_refused_and_nothing_worse(text: str) -> None:
    with pytest.raises(PolicyError):
        load_policy(text)


def test_a_policy_has_a_bounded_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "version: 1  # \u00e9"
    monkeypatch.setattr(document, "MAX_POLICY_BYTES", len(text) + 1)
    load_policy(text)
    with pytest.raises(PolicyError, match="larger than"):
        load_policy(text + " ")


def test_a_policy_has_a_bounded_number_of_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_ENDPOINTS", 2)
    load(endpoint(), endpoint(host="b.example.com"))
    with pytest.raises(PolicyError, match="more than 2 endpoints"):
        load(endpoint(), endpoint(host="b.example.com"), endpoint(host="c.example.com"))


@pytest.mark.parametrize(
    "repeated",
    [
        "allowed_ips: &x [" + "10.1.0.0/16," * 30 + "]",
        "mcp: &x {" + ",".join(f"k{number}: 1" for number in range(60)) + "}",
    ],
)
def test_aliases_cannot_multiply_a_policy(monkeypatch: pytest.MonkeyPatch, repeated: str) -> None:
    again = "".join(f",{{{repeated.partition(':')[0]}: *x}}" for _ in range(30))
    text = f"version: 1\nnetwork_policies: {{a: {{endpoints: [{{{repeated}}}{again}]}}}}"
    monkeypatch.setattr(document, "MAX_POLICY_BYTES", len(text))
    with pytest.raises(PolicyError, match="aliases"):
        load_policy(text)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("protocol: rest, rules: [{allow: {method: GET, path: /, query: {a: {glob: x, glob: x}}}}]", "unknown matcher"),
        ("protocol: rest, rules: [{allow: {method: GET, path: /, query: {a: {[b]: x}}}}]", "unknown matcher"),
        ("[a]: b", "an endpoint has a key that is not a text"),
        ("port: 1", "an endpoint has 'port' twice"),
        ("graphql_max_body_bytes: !!int {=: 5}", "must be a positive integer"),
        ("protocol: mcp, rules: [{allow: {method: tools/call, tool: &t {any: [*t]}}}]", "must be a text"),
    ],
)
def test_what_only_yaml_can_say(keys: str, words: str) -> None:
    text = f"version: 1\nnetwork_policies: {{a: {{endpoints: [{{host: a.example.com, port: 1, {keys}}}]}}}}"
    with pytest.raises(PolicyError, match=words):
        load_policy(text)
