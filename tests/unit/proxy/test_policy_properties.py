# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Properties that hold for every input: canonical paths, globs, host patterns, the policy loader, body parsers."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from functools import cache

from hypothesis import example, given, settings
from hypothesis import strategies as st
from openshell_proxy.policy import (
    Intent,
    PolicyError,
    Request,
    TargetError,
    canonical_path,
    load_policy,
    parse_query,
)
from openshell_proxy.policy.globs import GlobError, compile_glob
from openshell_proxy.policy.graphql import operations_of_message, operations_of_request
from openshell_proxy.policy.hosts import compile_host_pattern, patterns_overlap
from openshell_proxy.policy.jsonbody import BodyError
from openshell_proxy.policy.jsonrpc import parse_frames
from openshell_proxy.policy.routes import paths_overlap

EXAMPLES = settings(max_examples=150, deadline=None)
PIECES = ("a", "b", "/", "//", ".", "..", "%2e", "%2E", "%2F", "%2f", "%3B", ";x", "%25", "%41", "%c3%a9", "~", "+")


@EXAMPLES
@given(st.lists(st.sampled_from(PIECES), max_size=12).map(lambda parts: "/" + "".join(parts)), st.booleans())
@example("/a/%2F..%2F/b", True)
@example("/;/..;/x", False)
def test_a_canonical_path_is_its_own_and_holds_no_way_up(target: str, encoded: bool) -> None:
    try:
        path, query = canonical_path(target, allow_encoded_slash=encoded)
    except TargetError:
        return
    assert canonical_path(path, allow_encoded_slash=encoded) == (path, "")
    assert query == ""
    assert path.startswith("/")
    parts = re.split("/|%2F", path)
    assert "." not in parts and ".." not in parts
    assert "//" not in path and ";" not in path
    assert encoded or "%2F" not in path


@EXAMPLES
@given(st.text(max_size=60))
def test_any_target_is_accepted_or_refused(target: str) -> None:
    with contextlib.suppress(TargetError):
        path, raw = canonical_path(target)
        assert path.isascii() and path.isprintable()
        parse_query(raw)


GLOB = st.lists(st.sampled_from(("a", "b", "/", "*", "**", "/**/", "/**", "**/", "?")), max_size=7).map("".join)
PATHS = ["".join(parts) for length in range(5) for parts in itertools.product("ab/", repeat=length)]


def naive(pattern: str, path: str) -> bool:
    """The glob rules of spec 1.11 one character at a time, without a regular expression."""

    @cache
    def match(at: int, to: int) -> bool:
        if at == len(pattern):
            return to == len(path)
        if pattern.startswith("**", at) and not pattern.startswith("***", at) and pattern[at - 1 : at] != "*":
            starts, ends = at in (0,) or pattern[at - 1] == "/", at + 2 == len(pattern) or pattern[at + 2] == "/"
            if starts and ends:
                if at + 2 == len(pattern):
                    return True  # the rest, whatever it is
                # Behind this and its separator anything that is at a component's beginning.
                return any(
                    match(at + 3, spot)
                    for spot in range(to, len(path) + 1)
                    if spot == to or path[spot - 1] == "/"
                )  # fmt: skip
        if pattern[at] == "*":
            return match(at + 1, to) or (to < len(path) and path[to] != "/" and match(at, to + 1))
        if to == len(path):
            return False
        if pattern[at] == "?":
            return path[to] != "/" and match(at + 1, to + 1)
        return pattern[at] == path[to] and match(at + 1, to + 1)

    return match(0, 0)


@EXAMPLES
@given(GLOB.filter(lambda text: "***" not in text and "**/**" not in text and not text.startswith("**/")))
@example("/a/**/b")
@example("/**")
@example("a**/b")
def test_globs_agree_with_a_naive_reading(pattern: str) -> None:
    compiled = compile_glob(pattern)
    for path in PATHS:
        assert bool(compiled.fullmatch(path)) == naive(pattern, path), (pattern, path)


@EXAMPLES
@given(st.text(alphabet="ab*?[]{}!,-\\/.^", max_size=10))
def test_any_glob_compiles_or_is_refused(pattern: str) -> None:
    with contextlib.suppress(GlobError):
        for path in PATHS[:40]:
            compile_glob(pattern).fullmatch(path)


@EXAMPLES
@given(GLOB, GLOB)
def test_globs_with_a_common_match_overlap(left: str, right: str) -> None:
    one, other = compile_glob(left), compile_glob(right)
    if any(one.fullmatch(path) and other.fullmatch(path) for path in PATHS):
        assert paths_overlap(left, right)


LABEL = st.sampled_from(("a", "b", "ab", "*", "a*", "*b"))
PATTERN = st.builds(
    lambda first, rest: ".".join([first, *rest]), st.one_of(LABEL, st.just("**")), st.lists(LABEL, max_size=3)
)
HOSTS = [
    ".".join(labels) for length in range(1, 4) for labels in itertools.product(("a", "b", "ab", "ba"), repeat=length)
]


@EXAMPLES
@given(PATTERN, PATTERN)
def test_host_patterns_with_a_common_host_overlap_and_others_do_not(left: str, right: str) -> None:
    one, other = compile_host_pattern(left), compile_host_pattern(right)
    common = any(one.fullmatch(host) and other.fullmatch(host) for host in HOSTS)
    if common:
        assert patterns_overlap(left, right)
    assert patterns_overlap(left, right) == patterns_overlap(right, left)


@EXAMPLES
@given(st.text(max_size=200))
@example("version: 1\nnetwork_policies: {a: {endpoints: [{<<: *a}]}}")
@example("version: 1\nprocess: {run_as_user: 2021-02-30}")
def test_the_loader_raises_nothing_but_a_policy_error(text: str) -> None:
    with contextlib.suppress(PolicyError):
        load_policy(text)


KEYS = ("version", "network_policies", "endpoints", "host", "port", "protocol", "rules", "allow", "method", "path", "mcp",
        "allowed_ips", "query", "any", "deny_rules", "tool", "p", "network_middlewares", "fields", "when")  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 70000), st.text(max_size=6),
    st.sampled_from(("rest", "mcp", "graphql", "json-rpc", "*", "**", "GET", "/a[", "*.a.b")),
)  # fmt: skip
TREES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4))
)  # fmt: skip


@EXAMPLES
@given(TREES)
def test_the_loader_stands_any_shape_in_any_place(tree: object) -> None:
    for document in (
        tree,
        {"version": 1, "network_policies": {"p": {"endpoints": [tree]}}},
        {"version": 1, "network_policies": {"p": {"endpoints": [
            {"host": "a.b.c", "port": 1, "protocol": "mcp", "rules": [{"allow": tree}], "deny_rules": [tree]}]}}},
    ):  # fmt: skip
        with contextlib.suppress(PolicyError):
            load_policy(json.dumps(document))


@EXAMPLES
@given(st.one_of(st.binary(max_size=80), TREES.map(lambda tree: json.dumps(tree).encode())))
@example(b'{"query":"{ a }","extensions":{"persistedQuery":1}}')
def test_body_parsers_raise_nothing_but_a_body_error(body: bytes) -> None:
    for parse in (
        lambda: parse_frames(body, mcp=True),
        lambda: operations_of_request("POST", {}, body),
        lambda: operations_of_message(body),
        lambda: operations_of_request("GET", {"extensions": (body.decode("latin-1"),)}, b""),
    ):
        with contextlib.suppress(BodyError):
            parse()


METHODS = ("GET", "HEAD", "POST", "OPTIONS")
RULE = st.fixed_dictionaries({"method": st.sampled_from((*METHODS, "*")), "path": st.sampled_from(
    ("**", "/a", "/a/*", "/a/**", "/b", "/{a,b}/c"))})  # fmt: skip


def fires(rule: dict[str, str], method: str, path: str) -> bool:
    same = rule["method"] in ("*", method) or (rule["method"], method) == ("GET", "HEAD")
    return same and (rule["path"] == "**" or bool(compile_glob(rule["path"]).fullmatch(path)))


@EXAMPLES
@given(st.lists(RULE, min_size=1, max_size=6), st.lists(RULE, max_size=3))
def test_decisions_agree_with_one_rule_after_the_other(allow: list[dict[str, str]], deny: list[dict[str, str]]) -> None:
    endpoint = {"host": "a.example.com", "port": 1, "protocol": "rest", "rules": [{"allow": rule} for rule in allow]}
    if deny:
        endpoint["deny_rules"] = deny
    policy = load_policy(json.dumps({"version": 1, "network_policies": {"p": {"endpoints": [endpoint]}}}))
    for method, path in itertools.product(METHODS, ("/", "/a", "/a/x", "/a/x/y", "/a/", "/b", "/b/c")):
        wanted = any(fires(rule, method, path) for rule in allow) and not any(
            fires(rule, method, path) for rule in deny
        )
        assert policy.decide(Intent("a.example.com", 1, Request(method, path, {}))).allowed is wanted
