# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a policy decides: each rule of the traps list of OpenShell's specification (section 10) that is about policy."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest
from openshell_proxy.policy import (
    Decision,
    Intent,
    Policy,
    Request,
    TargetError,
    canonical_path,
    engine,
    load_policy,
    parse_query,
)

HOST = "api.example.com"


def load(*endpoints: dict[str, Any], **policies: list[dict[str, Any]]) -> Policy:
    named = {"p": list(endpoints), **policies} if endpoints else policies
    return load_policy(
        json.dumps({"version": 1, "network_policies": {key: {"endpoints": found} for key, found in named.items()}})
    )


def rest(**keys: Any) -> dict[str, Any]:
    return {"host": HOST, "port": 443, "protocol": "rest", "enforcement": "enforce", **keys}


def allow(**keys: Any) -> dict[str, Any]:
    return {"allow": keys}


def ask(policy: Policy, method: str, target: str, host: str = HOST, port: int = 443) -> Decision:
    encoded = policy.decide(Intent(host, port)).allow_encoded_slash
    path, query = canonical_path(target, allow_encoded_slash=encoded)
    return policy.decide(Intent(host, port, Request(method, path, parse_query(query))))


def allows(policy: Policy, method: str, target: str, host: str = HOST, port: int = 443) -> bool:
    return ask(policy, method, target, host, port).allowed


@pytest.mark.parametrize("glob", ["/**/a*b*c/**", "/x*y*z", "/{a*b*,c?d*e*f}/**", "/*-*-*/x"])
def test_a_glob_of_many_wildcards_allows_and_denies(glob: str) -> None:
    """Such a one has another matcher than most."""
    paths = {
        "/**/a*b*c/**": "/1/aXbYc/2",
        "/x*y*z": "/x1y2z",
        "/{a*b*,c?d*e*f}/**": "/c1d2e3f/x",
        "/*-*-*/x": "/1-2-3/x",
    }
    denying = load(rest(access="full", deny_rules=[{"method": "GET", "path": glob}]))
    allowing = load(rest(rules=[allow(method="GET", path=glob)]))
    both = load(rest(rules=[allow(method="GET", path=glob)], deny_rules=[{"method": "GET", "path": "/q/*/*/*"}]))
    for policy, there in ((denying, False), (allowing, True), (both, True)):
        assert allows(policy, "GET", paths[glob]) is there
    assert allows(denying, "GET", "/other")
    assert not allows(allowing, "GET", "/other")


def test_audit_forwards_and_says_so_and_enforce_does_not() -> None:  # trap 1
    audited = ask(load(rest(enforcement="audit", access="read-only")), "POST", "/x")
    assert (audited.allowed, audited.audited, audited.reason) == (True, True, "POST /x not permitted by policy")
    assert audited.protocol == "rest"
    assert not allows(load(rest(access="read-only")), "POST", "/x")
    unnamed = {key: value for key, value in rest(access="read-only").items() if key != "enforcement"}
    assert not allows(load(unnamed), "POST", "/x")
    text = json.dumps({"version": 1, "network_policies": {"p": {"endpoints": [unnamed]}}})
    policy = load_policy(text, default_enforcement="audit")
    assert ask(policy, "POST", "/x").audited
    assert "nothing is blocked here" in policy.notices[0]
    assert "enforced here" in load_policy(text).notices[0]


@pytest.mark.parametrize(
    ("pattern", "host", "matches"),
    [
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", ".example.com", False),
        ("*.example.com", "a\0.example.com", False),
        ("**.example.com", "a.b.example.com", True),
        ("**.example.com", "example.com", False),
        ("api-*.Example.com", "api-1.example.com", True),
        ("*.s3.*.amazonaws.com", "b.s3.eu.amazonaws.com", True),
        ("*.s3.*.amazonaws.com", "s3.eu.amazonaws.com", False),
        ("*.s3.*.amazonaws.com", "b.s4.eu.amazonaws.com", False),
        ("api-*.example.com", "web-1.example.com", False),
        ("api-*.example.com", "api-.example.com", True),
        ("[2001:DB8::0:1]", "2001:db8::1", True),
    ],
)
def test_host_patterns(pattern: str, host: str, matches: bool) -> None:  # trap 2
    policy = load({"host": pattern, "port": 443})
    assert policy.decide(Intent(host, 443)).allowed is matches
    assert policy.names_host(host) is matches
    assert not policy.decide(Intent(host, 80)).allowed


def test_a_hostless_endpoint_allows_a_connection_but_names_no_host() -> None:
    policy = load({"port": 443, "allowed_ips": ["10.1.0.0/16"]})
    assert policy.decide(Intent("any.example.org", 443)).allowed
    assert not policy.names_host("any.example.org")


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/repos/**", "/repos", False),  # trap 3
        ("/repos/**", "/repos/a/b", True),
        ("/repos/*", "/repos/a/b", False),
        ("/**/x", "/x", True),
        ("/a/**/b", "/a/b", True),
        ("**/b", "/a/b", True),
        ("**/**/b", "/b", True),
        ("/a**", "/a/b", False),
        ("/{a,b/**}", "/b/c/d", True),
        ("/{a,}", "/", False),
        ("/[!a-c]", "/d", True),
        ("/[!a-c]", "/b", False),
        ("/[]-]", "/-", True),
        ("/a.b", "/axb", False),
        ("/V1", "/v1", False),
        ("/\\*", "/*", True),
    ],
)
def test_path_globs(pattern: str, path: str, matches: bool) -> None:
    for rules in ([allow(method="GET", path=pattern)], [allow(method="GET", path=pattern, when="`true`")]):
        request = Request("GET", path, {})
        assert load(rest(rules=rules)).decide(Intent(HOST, 443, request)).allowed is matches


def test_globs_of_values_stop_at_a_dot() -> None:  # trap 4
    policy = load(rest(rules=[allow(method="GET", path="/v", query={"v": "v1.*"}),
                              allow(method="GET", path="/w", query={"v": "**"})]))  # fmt: skip
    assert allows(policy, "GET", "/v?v=v1.2")
    assert not allows(policy, "GET", "/v?v=v1.2.3")
    assert allows(policy, "GET", "/v?v=v1.a/b")
    assert allows(policy, "GET", "/w?v=v1.2.3")
    many = load(rest(rules=[allow(method="GET", path="/v", query={"v": "*a*b*"})]))
    assert allows(many, "GET", "/v?v=1a2b")
    assert not allows(many, "GET", "/v?v=")


def test_head_rides_on_get_and_options_on_nothing() -> None:  # trap 5
    policy = load(rest(rules=[allow(method="get", path="/a")]))
    assert allows(policy, "GET", "/a") and allows(policy, "get", "/a") and allows(policy, "HEAD", "/a")
    assert not allows(policy, "OPTIONS", "/a")
    denying = load(rest(access="full", deny_rules=[{"method": "GET", "path": "/a"}]))
    assert not allows(denying, "HEAD", "/a")
    assert allows(denying, "OPTIONS", "/a")


def test_query_of_allow_and_of_deny_rules() -> None:  # trap 6
    policy = load(rest(rules=[allow(method="GET", path="/a", query={"t": {"any": ["x", "y"]}})]))
    assert allows(policy, "GET", "/a?t=x&t=y&other=1")
    assert not allows(policy, "GET", "/a?t=x&t=z")
    assert not allows(policy, "GET", "/a")
    denying = load(rest(access="full", deny_rules=[{"method": "*", "path": "/a", "query": {"f": "1", "g": "2"}}]))
    assert not allows(denying, "GET", "/a?f=0&f=1&g=2")
    assert allows(denying, "GET", "/a?f=1")


@pytest.mark.parametrize("path", ["**", "/a", "/*"])
def test_the_first_of_several_rules_names_the_decision(path: str) -> None:
    policy = load(rest(rules=[allow(method="GET", path=path), allow(method="*", path=path)]))
    assert ask(policy, "GET", "/a").rule == f"GET {path}"
    assert ask(policy, "POST", "/a").rule == f"* {path}"


def test_a_deny_rule_wins_across_policies() -> None:  # trap 7
    policy = load(a=[rest(access="full")], b=[rest(access="read-only", deny_rules=[{"method": "*", "path": "/x/**"}])])
    found = ask(policy, "GET", "/x/y")
    assert (found.allowed, found.policy, found.rule) == (False, "b", "* /x/**")
    assert found.reason == "GET /x/y blocked by deny rule"
    assert ask(policy, "POST", "/y").policy == "a"


def test_a_deny_rule_that_is_enforced_is_not_softened_by_an_audited_path() -> None:
    policy = load(rest(access="full", deny_rules=[{"method": "*", "path": "/x/secret"}]),
                  rest(access="read-only", path="/x/**", enforcement="audit"))  # fmt: skip
    assert not allows(policy, "GET", "/x/secret")
    assert ask(policy, "POST", "/x/other").allowed


def test_decisions_are_made_on_the_canonical_path() -> None:  # trap 8
    policy = load(rest(rules=[allow(method="GET", path="/public/**")]))
    assert not allows(policy, "GET", "/public/..;x/secret")
    assert not allows(policy, "GET", "/public/%2e%2e/secret")


def test_an_encoded_slash_needs_an_endpoint_that_keeps_it() -> None:  # trap 9
    policy = load(rest(path="/a/**", access="full", allow_encoded_slash=True), rest(path="/b/**", access="full"))
    assert allows(policy, "GET", "/a/x%2Fy")
    assert not allows(policy, "GET", "/b/x%2Fy")


def test_an_endpoint_that_looks_at_nothing_keeps_no_slash_for_one_that_does() -> None:
    policy = load(rest(access="full"), {"host": HOST, "port": 443, "allow_encoded_slash": True})
    assert not allows(policy, "GET", "/a%2Fb")
    assert allows(policy, "GET", "/a")


def test_a_broader_endpoints_rule_allows_what_a_narrower_one_governs() -> None:  # spec 1.13: one of them must
    narrow = rest(path="/a/**", rules=[allow(method="GET", path="/a/**")], request_body_credential_rewrite=True)
    policy = load(narrow, rest(access="full", deny_rules=[{"method": "DELETE", "path": "**"}]))
    found = ask(policy, "POST", "/a/x")
    assert found.allowed
    assert found.credentials.body_rewrite  # the narrower one still says how it is treated
    assert not ask(policy, "POST", "/b").credentials.body_rewrite
    assert not allows(policy, "DELETE", "/a/x")


@pytest.mark.parametrize("target", ["/a%7f", "/a%00", "/a%0A", "/a\x7f", "/a\n"])
def test_control_bytes_in_a_target(target: str) -> None:
    with pytest.raises(TargetError) as caught:
        canonical_path(target, allow_encoded_slash=True)
    assert caught.value.code == "null_or_control_byte"


@pytest.mark.parametrize("target", ["a", "*", "http:/a", "mailto:a@b"])
def test_a_target_that_is_no_path(target: str) -> None:
    with pytest.raises(TargetError) as caught:
        canonical_path(target)
    assert (caught.value.code, str(caught.value)) == ("malformed_target", "malformed_target")


def test_a_path_has_a_length_that_is_bounded() -> None:
    longest = "/" + "a" * 4095
    assert canonical_path(longest) == (longest, "")
    with pytest.raises(TargetError, match="path_too_long"):
        canonical_path(longest + "a")


def test_hosts_that_share_a_domain_but_never_a_name_may_differ() -> None:
    pairs = [("api-*.example.com", "web-*.example.com"), ("*.example.com", "a.b.example.com"), ("*.a.com", "*.b.com")]
    for one, other in pairs:
        policy = load({"host": one, "port": 443, "tls": "skip"}, {"host": other, "port": 443})
        assert len(policy.document.endpoints) == 2


def test_what_the_guard_needs_of_the_connection() -> None:  # trap 12
    policy = load({"host": HOST, "port": 1}, {"host": "*.example.com", "port": 2},
                  {"host": HOST, "port": 3, "allowed_ips": ["::ffff:10.1.0.0/112"], "tls": "skip"})  # fmt: skip
    assert policy.decide(Intent(HOST, 1)).exact_host
    assert not policy.decide(Intent(HOST, 2)).exact_host
    third = policy.decide(Intent(HOST, 3))
    assert third.allowed_ips == (ipaddress.ip_network("10.1.0.0/16"),)
    assert third.tls == "skip"


def test_unknown_access_denies_everything() -> None:  # trap 23
    assert not allows(load(rest(access="all")), "GET", "/")


def test_a_glob_that_never_compiles_never_allows() -> None:  # trap 26
    policy = load(rest(rules=[allow(method="GET", path="/[a"), allow(method="GET", path="/b", query={"q": "{x"})]))
    assert not allows(policy, "GET", "/[a")
    assert not allows(policy, "GET", "/b?q=x")
    assert not allows(policy, "GET", "/b?q={x")
    messages = load(websocket(rules=[allow(method="GET", path="/[a"), allow(method="GET", path="/b")]))
    assert allows(messages, "GET", "/b")


@pytest.mark.parametrize(
    ("access", "allowed"),
    [("read-only", "GET HEAD OPTIONS"), ("read-write", "GET HEAD OPTIONS POST PUT PATCH"), ("full", "DELETE MKCOL")],
)
def test_presets(access: str, allowed: str) -> None:
    policy = load(rest(access=access))
    assert all(allows(policy, method, "/any") for method in allowed.split())
    assert allows(policy, "DELETE", "/any") is (access == "full")


def test_the_reasons_of_the_fourth_layer() -> None:
    assert load_policy("version: 1").decide(Intent(HOST, 443)).reason == "network connections not allowed by policy"
    found = load({"host": HOST, "port": 1}).decide(Intent("b.example.com", 2))
    assert found.reason == "endpoint b.example.com:2 is not allowed by any policy"


def test_the_smallest_policy_key_is_named_for_a_connection() -> None:
    policy = load(b=[{"host": HOST, "port": 443}], a=[{"host": "*.example.com", "port": 443}])
    assert policy.decide(Intent(HOST, 443)).policy == "a"


def test_an_endpoint_without_a_path_for_the_request_admits_nothing_even_in_audit() -> None:
    policy = load(rest(path="/a/**", access="full", enforcement="audit"))
    found = ask(policy, "GET", "/b")
    assert (found.allowed, found.reason) == (
        False,
        "GET /b not permitted by policy: it did not match an L7 endpoint path",
    )
    # The two matchers disagree on /a: it is governed by the endpoint, but no rule holds there.
    assert ask(load(rest(path="/a/**", access="full")), "GET", "/a").reason == "GET /a not permitted by policy"


def test_the_most_specific_path_governs() -> None:
    policy = load(rest(path="/a/**", access="read-only", enforcement="audit"), rest(access="read-only"))
    found = ask(policy, "POST", "/a/x")
    assert (found.audited, found.message_policy) == (True, False)
    assert not allows(policy, "POST", "/b")


def test_what_is_audited_is_treated_as_the_governing_endpoint_says() -> None:
    narrow = rest(path="/a/**", access="read-only", enforcement="audit", request_body_credential_rewrite=True)
    found = ask(load(rest(access="read-only"), narrow), "POST", "/a/x")
    assert (found.audited, found.credentials.body_rewrite) == (True, True)
    messages = load(websocket(rules=[allow(method="GET", path="/b")], enforcement="audit"))
    assert ask(messages, "GET", "/a").message_policy


def test_an_endpoint_of_the_fourth_layer_beside_rules_adds_none() -> None:
    policy = load(rest(access="read-only"), a=[{"host": HOST, "port": 443}])
    assert policy.decide(Intent(HOST, 443)).inspects
    assert not allows(policy, "POST", "/")


def test_an_endpoint_of_the_fourth_layer_allows_every_request() -> None:
    found = ask(load({"host": HOST, "port": 443}), "DELETE", "/x")
    assert (found.allowed, found.layer) == (True, "l4")


def test_sql_and_tcp_are_connections() -> None:
    policy = load({"host": HOST, "port": 1, "protocol": "tcp"},
                  {"host": HOST, "port": 2, "protocol": "sql", "enforcement": "audit",
                   "rules": [allow(command="SELECT")]})  # fmt: skip
    tcp, sql = (policy.decide(Intent(HOST, port)) for port in (1, 2))
    assert (tcp.allowed, tcp.inspects, tcp.audited) == (True, False, False)
    assert (sql.allowed, sql.inspects, sql.audited) == (True, False, True)


WHEN = "contains(request.query_params.team || `[]`, 'a') && network.port == `443`"


def test_when_narrows_allow_and_deny_rules() -> None:
    policy = load(rest(rules=[allow(method="GET", path="**", when=WHEN)]))
    assert allows(policy, "GET", "/x?team=b&team=a")
    assert not allows(policy, "GET", "/x?team=b")
    denying = load(rest(access="full", deny_rules=[{"method": "*", "path": "**", "when": "request.method == 'PUT'"}]))
    assert not allows(denying, "PUT", "/")
    assert allows(denying, "GET", "/")


@pytest.mark.parametrize(
    ("expression", "holds"),
    [("`0`", True), ("`false`", False), ("`null`", False), ("''", False), ("`[]`", False), ("`{}`", False),
     ("request.nothing", False), ("'x'", True), ("network.host", True)],
)  # fmt: skip
def test_what_is_true_for_when(expression: str, holds: bool) -> None:
    assert allows(load(rest(rules=[allow(method="GET", path="**", when=expression)])), "GET", "/") is holds


def test_a_condition_that_cannot_be_evaluated_fails_closed() -> None:
    broken = "abs(request.path) == `1`"
    assert not allows(load(rest(rules=[allow(method="GET", path="**", when=broken)])), "GET", "/")
    denying = rest(access="full", deny_rules=[{"method": "*", "path": "**", "when": broken}])
    assert not allows(load(denying), "GET", "/")


def test_a_decision_names_the_line_of_its_rule() -> None:
    text = """version: 1
network_policies:
  p:
    endpoints:
      - host: api.example.com
        port: 443
        protocol: rest
        rules:
          - allow: {method: GET, path: /a}
          - allow: {method: GET, path: /b/*}
"""
    policy = load_policy(text)
    assert (ask(policy, "GET", "/b/c").line, ask(policy, "GET", "/b/c").rule) == (10, "GET /b/*")
    assert ask(policy, "GET", "/c").line == 5


def test_what_is_remembered_is_bounded_and_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_REMEMBERED", 8)
    named = [{"host": f"h{number}.example.com", "port": 443} for number in range(20)]
    policy = load(*named, {"host": "*.example.org", "port": 443})
    for number in [*range(20), *range(20)]:
        for domain in ("com", "org", "net"):
            assert policy.decide(Intent(f"h{number}.example.{domain}", 443)).allowed is (domain != "net")
            assert max(len(policy.sites), len(policy.sets)) <= 8


@pytest.mark.parametrize(
    ("first", "both", "provider"),
    [
        ({}, {}, "second"),
        ({"credential_binding": {"provider": "first"}}, {}, "second"),
        ({"credential_binding": {"provider": "first"}}, {"allowed_ips": ["10.1.0.0/16"]}, "first"),
        ({"credential_binding": {"provider": "first"}, "tls": "auto"}, {}, "first"),
    ],
)
def test_the_first_endpoint_that_says_how_a_connection_is_treated_says_it(
    first: dict[str, Any], both: dict[str, Any], provider: str
) -> None:
    second = rest(path="/a/**", access="full", credential_binding={"provider": "second"}, **both)
    policy = load({"host": HOST, "port": 443, **first, **both}, second)
    assert policy.decide(Intent(HOST, 443)).credentials.provider == provider


def websocket(**keys: Any) -> dict[str, Any]:
    return rest(protocol="websocket", **keys)


@pytest.mark.parametrize(
    ("keys", "judged"),
    [
        ({"access": "full"}, False),
        ({"access": "read-write"}, False),
        ({"access": "read-only"}, True),
        ({"access": "full", "deny_rules": [{"method": "WEBSOCKET_TEXT", "path": "/a"}]}, True),
        ({"rules": [allow(method="GET", path="**"), allow(operation_type="query")]}, True),
        ({"rules": [allow(method="GET", path="**"), allow(method="WEBSOCKET_TEXT", path="/ws/*")]}, True),
        ({"rules": [allow(method="GET", path="**"), allow(method="WEBSOCKET_TEXT", path="**")]}, False),
        (
            {"rules": [allow(method="GET", path="**"), allow(method="WEBSOCKET_TEXT", path="**", query={"a": "b"})]},
            True,
        ),
        ({"rules": [allow(method="GET", path="**"), allow(method="WEBSOCKET_TEXT", path="**", when="`true`")]}, True),
    ],
)
def test_messages_are_judged_where_a_rule_could_refuse_one(keys: dict[str, Any], judged: bool) -> None:
    found = ask(load(websocket(**keys)), "GET", "/ws/1")
    assert found.allowed
    assert (found.protocol, found.message_policy) == ("websocket", judged)
    assert not ask(load(websocket(**keys)), "POST", "/ws/1").message_policy


@pytest.mark.parametrize("path", ["", "/ws/**"])
def test_an_endpoint_of_requests_judges_no_messages(path: str) -> None:
    found = ask(load(rest(access="read-only", path=path)), "GET", "/ws/1")
    assert (found.allowed, found.message_policy) == (True, False)


def test_a_deny_rule_of_any_endpoint_beside_it_has_messages_judged() -> None:
    beside = rest(access="full", deny_rules=[{"method": "WEBSOCKET_TEXT", "path": "**"}])
    policy = load(websocket(access="full", path="/ws/**"), beside)
    assert ask(policy, "GET", "/ws/1").message_policy
    assert not message(policy, "/ws/1", b"hello").allowed


def message(policy: Policy, path: str, body: bytes | None) -> Decision:
    return policy.decide(Intent(HOST, 443, Request("WEBSOCKET_TEXT", path, {}, body)))


def test_messages_by_the_path_of_the_upgrade() -> None:
    policy = load(websocket(rules=[allow(method="GET", path="**"), allow(method="WEBSOCKET_TEXT", path="/ws/*")]))
    assert message(policy, "/ws/1", b"hello").allowed
    assert not message(policy, "/other", b"hello").allowed


def test_an_http_request_cannot_pose_as_a_message() -> None:
    for keys in ({"access": "full"}, {"access": "full", "enforcement": "audit"}):
        assert not message(load(websocket(**keys)), "/ws", None).allowed
