# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GraphQL, JSON-RPC and MCP: what a body says, and what the policy says to it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openshell_proxy.policy import Decision, Intent, Policy, Request, load_policy
from openshell_proxy.policy.graphql import Operation, operations_of_message, operations_of_request
from openshell_proxy.policy.jsonbody import BodyError
from openshell_proxy.policy.jsonrpc import Call, Frames, parse_frames

HOST = "api.example.com"


def load(protocol: str, *others: dict[str, Any], **keys: Any) -> Policy:
    endpoint = {"host": HOST, "port": 443, "protocol": protocol, "enforcement": "enforce", **keys}
    return load_policy(json.dumps({"version": 1, "network_policies": {"p": {"endpoints": [endpoint, *others]}}}))


def allow(**keys: Any) -> dict[str, Any]:
    return {"allow": keys}


def ask(policy: Policy, body: Any, method: str = "POST", path: str = "/x", **more: Any) -> Decision:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    return policy.decide(Intent(HOST, 443, Request(method, path, {}, data, **more)))


def call(method: str = "a", **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, **more}


RESULT = {"jsonrpc": "2.0", "id": 1, "result": {}}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "invalid JSON"),
        (b"[]", "empty batch"),
        (b"{}", "missing or non-string 'jsonrpc'"),
        (b"\xff", "invalid JSON"),
        ('{"jsonrpc":"2.0","method":"a"}'.encode("utf-16"), "invalid JSON"),
        (b'{"jsonrpc":"2.0","method":"a","method":"b"}', "duplicate key"),
        (b'{"jsonrpc":"2.0","method":"a","params":{"x":{"y":1,"y":2}}}', "duplicate key"),
        (b'{"jsonrpc":"2.0","method":"a","Method":"b"}', "in case only"),
        (b'{"jsonrpc":"2.0","method":"a","params":[NaN]}', "not JSON"),
        (b'{"jsonrpc":"2.0","method":"a","params":[' + b"1" * 5000 + b"]}", "invalid JSON"),
        (b"[" * 50_000, "too deeply nested"),
        (b'{"method":"a"}', "missing or non-string 'jsonrpc'"),
        (b'{"jsonrpc":2,"method":"a"}', "missing or non-string 'jsonrpc'"),
        (b'{"jsonrpc":"1.0","method":"a"}', "must be '2.0'"),
        (b'{"jsonrpc":"2.0"}', "missing or non-string 'method'"),
        (b'{"jsonrpc":"2.0","method":1}', "missing or non-string 'method'"),
        (b'{"jsonrpc":"2.0","method":""}', "missing or non-string 'method'"),
        (b'{"jsonrpc":"2.0","method":"a","params":"x"}', "object or an array"),
        (b'{"jsonrpc":"2.0","method":"a","id":{}}', "'id' must be"),
        (b'{"jsonrpc":"2.0","method":"a","result":1}', "has 'method' and"),
        (b'{"jsonrpc":"2.0","id":1,"result":1,"error":{}}', "one of 'result' and 'error'"),
        (b'{"jsonrpc":"2.0","result":1}', "has an 'id'"),
        (b'[{"jsonrpc":"2.0","method":"a"},1]', "must be an object"),
    ],
)
def test_json_rpc_that_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(BodyError, match=words):
        parse_frames(body, mcp=False)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (None, "'params.name'"),
        ([], "must be an object"),
        ({"name": 1}, "'params.name'"),
        ({"name": "a b"}, "does not match"),
        ({"name": "a" * 129}, "does not match"),
        ({"name": "a\n"}, "does not match"),
        ({"name": "a", "Name": "b"}, "in case only"),
        ({"name": "a", "arguments": []}, "'arguments' must be"),
    ],
)
def test_mcp_tool_calls_that_are_refused(params: Any, words: str) -> None:
    body = json.dumps(call("tools/call", params=params)).encode()
    with pytest.raises(BodyError, match=words):
        parse_frames(body, mcp=True)
    if not isinstance(params, dict) or len(params) == 1:
        assert parse_frames(body, mcp=False).calls  # plain JSON-RPC does not look into params


def test_what_frames_hold() -> None:
    body = json.dumps([call("tools/call", params={"name": "a.b-c_1"}), call("x/y"), RESULT]).encode()
    assert parse_frames(body, mcp=True) == Frames((Call("tools/call", "a.b-c_1"), Call("x/y")), True)
    loose = json.dumps(call("tools/call", params={"name": "a b"})).encode()
    assert parse_frames(loose, mcp=True, strict_tool_names=False).calls == (Call("tools/call", "a b"),)
    with pytest.raises(BodyError):
        parse_frames(json.dumps(call("tools/call", params={"name": ""})).encode(), mcp=True, strict_tool_names=False)


def test_json_rpc_decisions() -> None:
    policy = load("json-rpc", rules=[allow(method="a"), allow(method="b.c")], deny_rules=[{"method": "d"}])
    assert ask(policy, call("a")).allowed
    assert ask(policy, call("b.c")).rule == "b.c"
    assert not ask(policy, call("e")).allowed
    assert ask(policy, call("d")).reason == "d blocked by deny rule"
    assert ask(policy, [call("a"), call("b.c")]).allowed
    assert not ask(policy, [call("a"), call("e")]).allowed
    assert ask(policy, call("e\r\nopenshell:x")).reason == "the JSON-RPC method not permitted by policy"
    assert not ask(policy, call("a"), "PUT").allowed
    assert not ask(policy, None, "PUT", parsed=Frames((Call("a"),))).allowed
    assert not ask(policy, None, "GET", receive_stream=True).allowed
    assert ask(policy, [call("a"), RESULT]).reason.startswith("JSON-RPC response frames are not permitted")


def test_a_response_frame_and_a_bad_body_are_refused_even_in_audit() -> None:
    policy = load("json-rpc", rules=[allow(method="a")], enforcement="audit")
    assert ask(policy, call("b")).audited
    assert not ask(policy, RESULT).allowed
    bad = ask(policy, b"{")
    assert (bad.allowed, bad.audited, bad.error) == (False, False, "invalid_jsonrpc_request")
    assert bad.reason == "invalid JSON"
    assert ask(load("graphql", access="full", enforcement="audit"), b"{").error == "invalid_graphql_request"


def test_the_body_is_asked_for_and_bounded() -> None:
    policy = load("json-rpc", rules=[allow(method="*")], json_rpc={"max_body_bytes": 100})
    connection = policy.decide(Intent(HOST, 443))
    assert (connection.allowed, connection.body_limit) == (True, 100)
    first = ask(policy, None)
    assert (first.allowed, first.body_limit, first.protocol) == (False, 100, "json-rpc")
    assert ask(policy, call("a")).body_limit == 0
    size = len(json.dumps(call()))
    assert ask(policy, call("a" * (101 - size))).allowed
    assert ask(policy, call("a" * (102 - size))).reason == "the request's body is too large to be judged"
    assert ask(load("graphql", access="full"), None).body_limit == 65536
    assert ask(load("graphql", access="full", graphql_max_body_bytes=100), None).body_limit == 100
    assert ask(load("rest", access="full"), None).body_limit == 0


def test_no_broad_rule_beside_it_opens_what_a_body_protocol_refuses() -> None:
    for protocol, rules, body, good in (
        ("json-rpc", [allow(method="a")], call("b"), call("a")),
        ("mcp", [allow(method="tools/list")], call("b"), call("tools/list")),
        ("graphql", [allow(operation_type="query")], {"query": "mutation { a }"}, {"query": "{ a }"}),
    ):
        broad = {"host": HOST, "port": 443, "protocol": "rest", "enforcement": "enforce", "access": "full"}
        policy = load(protocol, broad, rules=rules, path="/rpc")
        assert ask(policy, good, path="/rpc").allowed
        assert not ask(policy, body, path="/rpc").allowed
        assert not ask(policy, None, "DELETE", path="/rpc").allowed
        assert ask(policy, None, path="/other").allowed


def test_mcp_decisions() -> None:
    policy = load("mcp", rules=[allow(method="tools/call", tool={"any": ["read_*", "list"]}), allow(method="ping")],
                  deny_rules=[{"method": "tools/call", "tool": "read_secret"}])  # fmt: skip
    assert ask(policy, call("tools/call", params={"name": "read_x"})).rule == "tools/call read_*,list"
    assert not ask(policy, None, parsed=Frames((Call("tools/call"),))).allowed
    assert not ask(policy, None, parsed=Frames()).allowed
    assert ask(policy, call("tools/call", params={"name": "read_secret"})).rule == "tools/call read_secret"
    assert not ask(policy, call("tools/call", params={"name": "write"})).allowed
    assert not ask(policy, call("tools/list")).allowed
    assert ask(policy, RESULT).allowed
    assert ask(policy, [RESULT, call("ping")]).allowed
    assert not ask(policy, [RESULT, call("pong")]).allowed
    assert ask(policy, None, "GET", receive_stream=True).allowed
    assert not ask(policy, None, "GET").allowed
    assert not ask(policy, None, "DELETE").allowed


def test_a_method_that_never_compiles_never_allows() -> None:
    policy = load("mcp", rules=[allow(method="tools/[a"), allow(method="ping")])
    assert not ask(policy, call("tools/a")).allowed
    assert ask(policy, call("ping")).allowed


def test_tools_of_any_name_where_the_policy_says_so() -> None:
    policy = load("mcp", mcp={"strict_tool_names": False}, rules=[allow(method="tools/call", tool="a b")])
    assert ask(policy, call("tools/call", params={"name": "a b"})).allowed
    assert not ask(policy, call("tools/call", params={"name": "a c"})).allowed


def test_mcp_that_allows_all_methods() -> None:
    everything = load("mcp", mcp={"allow_all_known_mcp_methods": True})
    assert ask(everything, call("vendor/x")).allowed
    assert ask(everything, call("tools/call", params={"name": "any"})).allowed
    some = load("mcp", mcp={"allow_all_known_mcp_methods": True}, rules=[allow(tool="a")])
    assert ask(some, call("tools/list")).allowed
    assert ask(some, call("tools/call", params={"name": "a"})).allowed
    assert not ask(some, call("tools/call", params={"name": "b"})).allowed
    none = load("mcp", mcp={"allow_all_known_mcp_methods": True}, rules=[allow(method="ping")])
    assert ask(none, call("tools/call", params={"name": "b"})).allowed


def operations(body: Any) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(one.type, one.name, one.fields) for one in operations_of_request("POST", {}, json.dumps(body).encode())]


def test_what_operations_a_document_holds() -> None:
    query = "query A($x: Int) @d { z: b ...F ... on Q { c ... @include(if: true) { d } } } fragment F on Q { a ...F }"
    assert operations({"query": query}) == [("query", "A", ("a", "b", "c", "d"))]
    assert operations({"query": "{ a }"}) == [("query", "", ("a",))]
    assert operations({"query": "{ a }", "extensions": {"persistedQuery": None}}) == [("query", "", ("a",))]
    two = "query A { a } mutation B { b }"
    assert operations({"query": two, "operationName": "B"}) == [("mutation", "B", ("b",))]
    assert operations({"query": "{ a } query B { b }", "operationName": "B"}) == [("query", "B", ("b",))]
    assert operations([{"query": "{ a }"}, {"query": "subscription { s }"}])[1] == ("subscription", "", ("s",))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "empty batch"),
        (1, "must be an object"),
        ({}, "missing GraphQL query"),
        ({"query": 1}, "must be a string"),
        ({"query": "{"}, "invalid GraphQL document"),
        ({"query": "{a" * 3000}, "invalid GraphQL document"),
        ({"query": "{ " + "a " * 30_000 + "}"}, "invalid GraphQL document"),
        ({"query": "query A { a } query B { b }"}, "multiple operations"),
        ({"query": "query A { a } query A { b }", "operationName": "A"}, "multiple operations"),
        ({"query": "query A { a }", "operationName": "B"}, "no operation of that name"),
        ({"query": "fragment F on Q { a }"}, "no GraphQL operation"),
        ({"query": "{ ...F }"}, "does not define"),
        ({"query": "{ ...F } fragment F on Q { a } fragment F on Q { b }"}, "each name once"),
        ({"query": "{ a } type Q { a: Int }"}, "only operations and fragments"),
        ({"query": "{ a }", "id": "x"}, "must not be combined"),
        ({"id": "x", "queryId": "y"}, "must not be combined"),
        ({"query": "{ a }", "QUERY": "{ b }"}, "in case only"),
        ({"id": "x", "extensions": {"persistedQuery": {"sha256Hash": "y"}}}, "must not be combined"),
        ({"extensions": []}, "must be an object"),
        ({"extensions": {"persistedQuery": {"version": 1}}}, "sha256Hash"),
        ({"extensions": {"persistedQuery": {"sha256Hash": 5}}}, "sha256Hash"),
        ({"extensions": {"persistedQuery": {"sha256Hash": ""}}}, "sha256Hash"),
        ({"extensions": {"persistedQuery": {"sha256Hash": "y", "sha256hash": "z"}}}, "in case only"),
        ({"query": "{ a }", "extensions": {"PersistedQuery": {"sha256Hash": "y"}}}, "in case only"),
        ({"extensions": {"persistedQuery": "x"}}, "'persistedQuery' must be an object"),
    ],
)
def test_graphql_that_is_refused(body: Any, words: str) -> None:
    with pytest.raises(BodyError, match=words):
        operations(body)


def test_graphql_in_a_url() -> None:
    assert operations_of_request("GET", {"query": ("{ a }",), "other": ("1", "2")}, b"")[0].fields == ("a",)
    extensions = '{"persistedQuery":{"sha256Hash":"abc"}}'
    found = operations_of_request("GET", {"extensions": (extensions,), "operationName": ("A",)}, b"")[0]
    assert (found.persisted, found.hash, found.name) == (True, "abc", "A")
    with pytest.raises(BodyError, match="duplicate GraphQL query parameter"):
        operations_of_request("GET", {"query": ("{ a }", "{ b }")}, b"")
    with pytest.raises(BodyError, match="must not be combined"):
        operations_of_request("POST", {"query": ("mutation { b }",)}, b'{"query":"{ a }"}')


GRAPHQL: dict[str, Any] = {
    "persisted_queries": "allow_registered",
    "graphql_persisted_queries": {"abc": {"operation_type": "query", "operation_name": "A", "fields": ["viewer"]},
                                  "bad": {"operation_type": "mutation", "fields": ["drop"]}},
    "rules": [allow(operation_type="query", fields=["viewer", "repo*"]),
              allow(operation_type="mutation", operation_name="Issue*", fields=["createIssue", "deleteIssue"])],
    "deny_rules": [{"operation_type": "*", "fields": ["deleteIssue"]}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "allowed"),
    [
        ({"query": "{ viewer { secret } repository { id } }"}, True),
        ({"query": "{ viewer admin }"}, False),
        ({"query": "{ viewer: admin }"}, False),
        ({"query": "mutation IssueNew { createIssue { id } }"}, True),
        ({"query": "mutation { createIssue { id } }"}, False),
        ({"query": "mutation Other { createIssue { id } }"}, False),
        ({"query": "mutation IssueX { createIssue { id } deleteIssue { id } }"}, False),
        ({"query": "subscription { viewer }"}, False),
        ([{"query": "{ viewer }"}, {"query": "{ admin }"}], False),
        ([{"query": "{ admin }"}, {"query": "{ viewer }"}], False),
        ([{"query": "mutation IssueX { deleteIssue { id } }"}, {"query": "{ viewer }"}], False),
        ([{"id": "unknown"}, {"query": "{ viewer }"}], False),
        ([{"query": "{ viewer }"}, {"query": "{ viewer }"}], True),
        ({"extensions": {"persistedQuery": {"sha256Hash": "abc"}}}, True),
        ({"id": "abc"}, True),
        ({"id": "bad"}, False),
    ],
)
def test_graphql_decisions(body: Any, allowed: bool) -> None:
    assert ask(load("graphql", **GRAPHQL), body).allowed is allowed


def test_a_graphql_rule_is_named_by_its_type_and_fields() -> None:
    policy = load(
        "graphql", rules=[allow(operation_type="query", fields=["a", "b*"]), allow(operation_type="mutation")]
    )
    assert ask(policy, {"query": "{ a }"}).rule == "query a,b*"
    assert ask(policy, {"query": "mutation { a }"}).rule == "mutation *"


@pytest.mark.parametrize("keys", [{"rules": [allow(operation_type="*")]},
                                  {"access": "full", "deny_rules": [{"operation_type": "*"}]}])  # fmt: skip
def test_a_graphql_rule_says_nothing_of_what_is_no_operation(keys: dict[str, Any]) -> None:
    found = ask(load("websocket", **keys), None, "", "")
    assert (found.allowed, found.rule) == ("access" in keys, "" if "rules" in keys else "* **")


def test_a_rule_of_requests_says_nothing_of_an_operation_and_a_named_one_nothing_of_one_without_a_name() -> None:
    policy = load("websocket", rules=[allow(method="GET", path="/x"), allow(operation_type="*", operation_name="*")])
    assert ask(policy, None, "WEBSOCKET_TEXT", parsed=(Operation("query", "A"),)).allowed
    assert not ask(policy, None, "WEBSOCKET_TEXT", parsed=(Operation("query"),)).allowed
    assert not ask(policy, None, "WEBSOCKET_TEXT", parsed=(Operation(""),)).allowed


def test_persisted_queries_need_the_registry_and_leave_to_use_it() -> None:
    reason = "GraphQL persisted query is not registered"
    assert ask(load("graphql", **GRAPHQL), {"id": "unknown"}).reason == reason
    both = Operation("", "", (), True, "unknown", "abc")  # a hash is not made good by an identifier
    assert ask(load("graphql", **GRAPHQL), None, parsed=(both,)).reason == reason
    assert ask(load("graphql", **{**GRAPHQL, "persisted_queries": "deny"}), {"id": "abc"}).reason == reason
    beside = {"host": HOST, "port": 443, "protocol": "graphql", "enforcement": "enforce", **GRAPHQL}
    assert ask(load("graphql", beside, access="read-only", persisted_queries="allow_registered"), {"id": "abc"}).allowed


def test_graphql_presets_and_other_methods() -> None:
    policy = load("graphql", access="read-write")
    assert ask(policy, {"query": "mutation { a }"}).allowed
    assert not ask(policy, {"query": "subscription { a }"}).allowed
    for method in ("OPTIONS", "PUT"):
        found = ask(policy, None, method)
        assert (found.allowed, found.error, found.reason) == (False, "", "GraphQL operation not permitted by policy")
    assert ask(policy, {"query": "{ a }"}, with_body=True).allowed
    get = Request("GET", "/x", {"query": ("{ a }",)})
    assert policy.decide(Intent(HOST, 443, get)).allowed
    hidden = policy.decide(Intent(HOST, 443, Request("GET", "/x", {"query": ("{ a }",)}, with_body=True)))
    assert (hidden.allowed, hidden.error) == (False, "invalid_graphql_request")


def test_a_rule_for_everything_beside_graphql_does_not_free_its_messages() -> None:
    rules = [allow(method="*", path="**"), allow(operation_type="query")]
    policy = load("websocket", rules=rules)
    assert ask(policy, None, "GET").message_policy
    assert not ask(policy, {"type": "start", "payload": {"query": "mutation { a }"}}, "WEBSOCKET_TEXT").allowed
    assert not ask(load("websocket", rules=rules[:1]), None, "GET").message_policy


def test_where_a_governing_endpoints_rules_do_not_hold_a_broader_one_decides() -> None:
    """OpenShell's two matchers disagree on whether ``/a/**`` takes ``/a``."""
    beside = {"host": HOST, "port": 443, "protocol": "rest", "enforcement": "enforce", "access": "full"}
    policy = load("websocket", beside, path="/a/**", rules=[allow(operation_type="query")])
    text = {"type": "subscribe", "payload": {"query": "mutation { a }"}}
    assert ask(policy, text, "WEBSOCKET_TEXT", "/a").allowed
    assert not ask(policy, text, "WEBSOCKET_TEXT", "/a/b").allowed


def test_a_rule_for_everything_of_graphql_does_not_free_the_messages_of_another_endpoint() -> None:
    rules = [allow(method="*", path="**"), allow(operation_type="query")]
    beside = {"host": HOST, "port": 443, "protocol": "websocket", "enforcement": "enforce", "rules": rules}
    policy = load("websocket", beside, path="/x", access="read-only")
    assert ask(policy, None, "GET").message_policy
    assert not ask(policy, b"hello", "WEBSOCKET_TEXT").allowed


def test_an_endpoint_of_messages_does_not_judge_those_of_another_kind() -> None:
    query = {"type": "subscribe", "payload": {"query": "{ a }"}}
    beside = {"host": HOST, "port": 443, "protocol": "websocket", "enforcement": "enforce", "access": "full"}
    policy = load("websocket", beside, path="/x", rules=[allow(operation_type="query")])
    assert ask(policy, query, "WEBSOCKET_TEXT").allowed
    del beside["access"]
    beside["rules"] = [allow(method="GET", path="**"), allow(operation_type="query")]
    policy = load("graphql", beside, path="/x", access="full")
    assert ask(policy, {"query": "mutation { a }"}).allowed
    assert ask(policy, query, "WEBSOCKET_TEXT", "/y").allowed


@pytest.mark.parametrize(
    ("protocol", "allowing", "denying", "body"),
    [
        ("graphql", {"operation_type": "*"}, {"operation_type": "mutation"}, {"query": "mutation { a }"}),
        ("json-rpc", {"method": "*"}, {"method": "a"}, call()),
        ("mcp", {"method": "tools/call", "tool": "*"}, {"method": "tools/call", "tool": "a"},
         call("tools/call", params={"name": "a"})),
    ],
)  # fmt: skip
def test_conditions_of_rules_about_bodies(
    protocol: str, allowing: dict[str, str], denying: dict[str, str], body: Any
) -> None:
    here, fails = {"when": "request.path == '/x'"}, {"when": "abs(request.path) == `1`"}  # abs() of a text
    for condition, allows, denies in ((here, True, True), (fails, False, True)):
        allowed = load(protocol, rules=[allow(**allowing, **condition)])
        denied = load(protocol, rules=[allow(**allowing)], deny_rules=[denying | condition])
        assert ask(allowed, body).allowed is allows
        assert ask(denied, body).allowed is not denies
        assert not ask(allowed, body, path="/y").allowed
        assert ask(denied, body, path="/y").allowed is (condition is here)


def test_messages_that_carry_graphql() -> None:
    policy = load("websocket", rules=[allow(method="GET", path="/x"), allow(operation_type="query", fields=["viewer"])],
                  deny_rules=[{"operation_type": "mutation"}])  # fmt: skip
    for kind in ("subscribe", "start"):
        assert ask(policy, {"type": kind, "id": "1", "payload": {"query": "{ viewer }"}}, "WEBSOCKET_TEXT").allowed
        assert not ask(policy, {"type": kind, "payload": {"query": "{ admin }"}}, "WEBSOCKET_TEXT").allowed
        assert not ask(policy, {"type": kind, "payload": {"query": "mutation { viewer }"}}, "WEBSOCKET_TEXT").allowed
    assert ask(policy, {"type": "connection_init", "payload": {"token": "t"}}, "WEBSOCKET_TEXT").allowed
    for bad in (
        b"hello",
        b"[]",
        b'{"type":1}',
        b'{"type":[]}',
        b'{"type":"exec","payload":{"query":"{ viewer }"}}',
        b'{"type":1,"payload":{"query":"{ viewer }"}}',
        b'{"type":"subscribe"}',
        b'{"type":"ping","Type":1}',
    ):
        found = ask(policy, bad, "WEBSOCKET_TEXT")
        assert (found.allowed, found.error) == (False, "invalid_graphql_request")
    assert ask(policy, None, "GET").message_policy
    assert operations_of_message(b'{"type":"ping"}') == ()


def test_graphql_is_not_loaded_until_a_document_is_read() -> None:
    import subprocess
    import sys

    code = "import sys, openshell_proxy.server; sys.exit('graphql' in sys.modules or 'jmespath' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_graphql_message_has_the_limit_of_a_graphql_body() -> None:
    rules = [{"allow": {"method": "GET", "path": "/ws"}}, {"allow": {"operation_type": "query"}}]
    policy = load("websocket", rules=rules, graphql_max_body_bytes=100)

    def asked(padding: int) -> Decision:
        text = json.dumps({"type": "subscribe", "id": "1", "payload": {"query": "{a}" + " " * padding}})
        return ask(policy, text.encode(), "WEBSOCKET_TEXT", "/ws")

    assert asked(0).allowed
    assert asked(100).reason == "the message is too large to be judged"
