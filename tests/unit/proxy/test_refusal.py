# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refusals: what an agent can act on, and nothing that a policy's text could turn into a header."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openshell_proxy.policy import Decision, Intent, Request
from openshell_proxy.refusal import Refusal, denied_connection, denied_request, header_text

INTENT = Intent("api.example.com", 443, Request("PUT", "/v1/x", {"token": ("s3cret",)}))


def body(refusal: Refusal) -> dict[str, Any]:
    found = json.loads(refusal.response().partition(b"\r\n\r\n")[2])
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("protocol", "kind"),
    [("rest", "rest_allow"), ("graphql", "graphql_allow"), ("json-rpc", "jsonrpc_allow"), ("mcp", "mcp_allow")],
)
def test_a_missing_rule_is_named_in_the_words_of_its_protocol(protocol: str, kind: str) -> None:
    decision = Decision(False, "no", policy="p", layer="l7", protocol=protocol)
    told = body(denied_request(INTENT, decision))
    missing = {"type": kind, "layer": "l7", "method": "PUT", "path": "/v1/x", "host": "api.example.com", "port": 443}
    assert told["rule_missing"] == missing
    assert (told["error"], told["policy"], told["layer"], told["protocol"]) == ("policy_denied", "p", "l7", protocol)


def test_where_a_deny_rule_decided_no_rule_is_missing() -> None:
    told = body(denied_request(INTENT, Decision(False, "no", policy="p", rule="PUT **", layer="l7", protocol="rest")))
    assert "rule_missing" not in told
    assert told["rule"] == "PUT **"


def test_where_no_endpoint_allows_the_host_an_endpoint_is_missing() -> None:
    assert body(denied_request(INTENT, Decision(False, "no")))["rule_missing"]["type"] == "endpoint"
    assert body(denied_connection("a.example.com", 1, "no"))["rule_missing"]["type"] == "endpoint"


def test_no_query_is_told() -> None:
    assert b"s3cret" not in denied_request(INTENT, Decision(False, "no", layer="l7")).response()


@pytest.mark.parametrize("name", ["a\r\nX-Evil: 1", "a\nb", "päßword", "a b", "\0", "a" * 500])
def test_a_policy_name_cannot_make_a_header(name: str) -> None:
    refusal = denied_request(INTENT, Decision(False, "no", policy=name, layer="l7"))
    lines = refusal.response().partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert [line.partition(b":")[0] for line in lines[1:]] == [
        b"Content-Type", b"Content-Length", b"Connection", b"X-OpenShell-Policy",
    ]  # fmt: skip
    assert b"X-OpenShell-Policy: " + header_text(name).encode("ascii") in lines
    assert len(header_text(name)) <= 128
