# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Requests that are made for no other purpose than to keep the policy engine busy, or to break it."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import loopback
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from loopback import World, hello, rest
from openshell_proxy import configuration
from openshell_proxy.policy import Intent, Policy, PolicyError, Request, load_policy
from openshell_proxy.policy.globs import GlobError, translate
from openshell_proxy.policy.linear import Linear, _Members, harmless

HOST, PORT = "a.example.com", 80
SECONDS = 2.0  # what backtracking needs is counted in minutes


def policy(**endpoint: Any) -> Policy:
    one = {"host": HOST, "port": PORT, "protocol": "rest", "enforcement": "enforce", **endpoint}
    return load_policy(json.dumps({"version": 1, "network_policies": {"test": {"endpoints": [one]}}}))


def allowed(judge: Policy, path: str, body: bytes | None = None, method: str = "GET", **query: str) -> bool:
    asked = Request(method, path, {key: (value,) for key, value in query.items()}, body)
    return judge.decide(Intent(HOST, PORT, asked)).allowed


def rule(path: str, **more: Any) -> dict[str, Any]:
    return {"method": "GET", "path": path, **more}


SLOW_PATHS = [
    ("/**/a/**/b/**/c/**/d", "/a/b/c" * 680),
    ("/*a*a*a*a*b", "/" + "a" * 4000),
    ("/{*a,*b}{*a,*b}{*a,*b}c", "/" + "ab" * 2000),
    ("/**/[ab]*a*a*b/x", "/" + "a" * 2000 + "/" + "a" * 2000),
]


@pytest.mark.parametrize(("glob", "path"), SLOW_PATHS)
@pytest.mark.parametrize("query", [{}, {"query": {"q": "**"}}])
def test_rules_with_many_wildcards_cost_little(glob: str, path: str, query: dict[str, Any]) -> None:
    allowing = policy(rules=[{"allow": rule(glob, **query)}])
    denying = policy(access="full", deny_rules=[rule(glob, **query)])
    started = time.monotonic()
    assert not allowed(allowing, path, q="x")
    assert allowed(denying, path, q="x")
    assert time.monotonic() - started < SECONDS


def test_an_endpoints_path_with_many_wildcards_costs_little() -> None:
    judge = policy(path="/*/*/*/*/issues", access="full")
    started = time.monotonic()
    assert not allowed(judge, "/a" * 2000)
    assert time.monotonic() - started < SECONDS


def test_values_for_many_wildcards_cost_little() -> None:
    judge = policy(rules=[{"allow": rule("**", query={"q": "*a*a*a*a*b"})}])
    started = time.monotonic()
    assert not allowed(judge, "/x", q="a" * 16_000)
    assert time.monotonic() - started < SECONDS


def test_what_is_remembered_of_characters_is_bounded() -> None:
    members = _Members("[^/]")
    assert members.places("".join(map(chr, range(0x100, 0x1101)))) == 2**4097 - 1
    assert len(members) <= 4096


PARTS = ["*", "**", "/", ".", "a", "b", "{", "}", ",", "?", "[ab]", "[!a]", "[a-b/]", "\\*", "/**", "**/", "/**/"]


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(st.sampled_from(PARTS), max_size=9).map("".join), st.sampled_from("/."), st.text("ab/.*\n", max_size=12)
)
@example("**.a", ".", "a")
@example("**.a", ".", "?a")
def test_both_matchers_agree(glob: str, separator: str, text: str) -> None:
    try:
        expression = translate(glob, separator)
    except GlobError:
        return
    assert Linear(expression).fullmatch(text) == bool(re.fullmatch(expression, text, re.DOTALL))


@pytest.mark.parametrize("glob", ["/a", "/**", "/repos/*/*/issues/**", "/**/x", "/a*", "/v1/{a,b}/*"])
def test_common_globs_keep_the_fast_matcher(glob: str) -> None:
    assert harmless(translate(glob))


def test_braces_within_braces_are_bounded() -> None:
    with pytest.raises(PolicyError):
        policy(access="full", deny_rules=[rule("/" + "{a," * 5000 + "}" * 5000)])


DEEP = 20_000
NESTED = [
    ("json-rpc", {"rules": [{"allow": {"method": "*"}}]}, b"[" * DEEP),
    ("json-rpc", {"rules": [{"allow": {"method": "*"}}]}, b'{"a":' * DEEP),
    ("mcp", {"mcp": {"allow_all_known_mcp_methods": True}}, b"[" * DEEP),
    ("graphql", {"access": "full"}, json.dumps({"query": "{a" * DEEP}).encode()),
    ("graphql", {"access": "full"}, json.dumps({"query": "{a(b:" + "[" * DEEP}).encode()),
    ("graphql", {"access": "full"}, json.dumps({"query": "query($a:" + "[" * DEEP}).encode()),
    ("graphql", {"access": "full"}, b'{"query":' + b"[" * DEEP),
]


@pytest.mark.parametrize(("protocol", "more", "body"), NESTED)
def test_a_deeply_nested_body_is_refused(protocol: str, more: dict[str, Any], body: bytes) -> None:
    judge = policy(protocol=protocol, **more)
    started = time.monotonic()
    assert not allowed(judge, "/x", body, "POST")
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize(
    "query",
    [
        "query { a }" + " ...f" * 10,
        "{...f0} " + " ".join(f"fragment f{i} on T {{...f{i + 1} ...f{i + 1}}}" for i in range(60)),  # 2 ** 60 visits
        "{...f} fragment f on T {...f}",
        "{" + " ".join(f"...f{i}" for i in range(2000)) + "} "
        + " ".join(f"fragment f{i} on T {{" + " ".join(f"...f{j}" for j in range(0, 2000, 500)) + "}" for i in range(500)),
        "{" + "...{" * 3000 + "a" + "}" * 3000 + "}",
    ],
)  # fmt: skip
def test_a_query_that_repeats_itself_costs_little(query: str) -> None:
    judge = policy(protocol="graphql", rules=[{"allow": {"operation_type": "query", "fields": ["nothing"]}}])
    started = time.monotonic()
    assert not allowed(judge, "/x", json.dumps({"query": query}).encode()[:65_536], "POST")
    assert time.monotonic() - started < SECONDS


def test_huge_numbers_are_refused_or_passed_but_never_break_it() -> None:
    judge = policy(protocol="json-rpc", rules=[{"allow": {"method": "a"}}])
    started = time.monotonic()
    body = b'{"jsonrpc":"2.0","method":"b","id":' + b"9" * 60_000 + b"}"
    assert not allowed(judge, "/x", body, "POST")
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize(("mode", "status"), [("fail_closed", 403), ("retain_last_valid", 200)])
async def test_a_fault_in_reading_a_policy_is_a_bad_policy(
    world: World, monkeypatch: pytest.MonkeyPatch, mode: str, status: int
) -> None:
    def faulty(*_arguments: object, **_options: object) -> Policy:
        raise RecursionError

    there = await world.origin(hello)
    await world.start(rest(there.port), failure_mode=mode)
    monkeypatch.setattr(configuration, "load_policy", faulty)
    assert "RecursionError" in world.reload(rest(there.port, "read-only"))["policy_error"]
    client = await world.client()
    place = f"{loopback.HOST}:{there.port}"
    await client.send(f"GET http://{place}/ HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
    assert (await client.response()).status == status
