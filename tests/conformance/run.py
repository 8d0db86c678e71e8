# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run a JSON-lines file of cases through the real engine: ``run.py FILE``."""

from __future__ import annotations

import ipaddress
import json
import sys
from collections.abc import Callable
from typing import Any

import yaml
from openshell_proxy.destination import ALWAYS_BLOCKED, INTERNAL, within
from openshell_proxy.entrances.authority_form import parse_authority
from openshell_proxy.entrances.peek import classify
from openshell_proxy.policy import (
    Intent,
    PolicyError,
    Request,
    TargetError,
    canonical_path,
    load_policy,
    parse_query,
)
from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.http1 import ProtocolError, parse_request_head, request_framing

Case = dict[str, Any]


def path_canonicalize(case: Case) -> Any:
    options = case["input"].get("options") or {}
    allow = bool(options.get("allow_encoded_slash") or case["input"].get("allow_encoded_slash"))
    try:
        path, query = canonical_path(case["input"]["target"], allow_encoded_slash=allow)
    except TargetError as error:
        return {"error": error.code}
    found = {"path": path, "query": query}
    expected = case["expect"]
    return path if isinstance(expected, str) else {key: found.get(key) for key in expected}


def query_parse(case: Case) -> Any:
    try:
        found = parse_query(canonical_path(case["input"]["target"])[1])
    except TargetError:
        return case["expect"] if "error" in case["expect"] else {"error": "refused"}
    values = {key: list(one) for key, one in found.items()}
    return {"query": values} if "query" in case["expect"] else values


def decision(case: Case) -> Any:
    asked = case["input"]
    try:
        policy = load_policy(yaml.safe_dump(case["policy"]))
    except PolicyError as error:
        return f"refused: {error}"
    request = None
    if "path" in asked or "method" in asked:
        request = Request(asked.get("method", "GET"), asked.get("path", "/"), _query(asked))
    return "allow" if policy.decide(Intent(asked["host"].lower(), asked["port"], request)).allowed else "deny"


def _query(asked: Case) -> dict[str, tuple[str, ...]]:
    given = asked.get("query_params") or asked.get("query") or {}
    return {key: tuple(value) if isinstance(value, list) else (value,) for key, value in given.items()}


def connect_target(case: Case) -> Any:
    try:
        host, port = parse_authority(case["input"]["target"], None)
    except Refusal:
        return "error"
    expected = case["expect"]
    same = isinstance(expected, list) and [expected[0].lower(), expected[1]] == [host, port]
    return expected if same else [host, port]  # names are compared in lower case


def http_body_framing(case: Case) -> Any:
    try:
        framing = request_framing(parse_request_head(case["input"]["headers"].encode("latin-1")))
    except ProtocolError:
        return "reject"
    found: dict[str, Any] = {"none": "none", "length": {"content_length": framing.length}, "chunked": "chunked"}
    return found[framing.kind]


def tunnel_protocol_detect(case: Case) -> Any:
    kind = classify(case["input"]["first_bytes"].encode("latin-1"), ended=True)
    return {"http": "http1", "h2": "h2_prior_knowledge", "tls": "tls"}.get(kind or "", "other")


def ip_always_blocked(case: Case) -> Any:
    return within(_address(case["input"]["ip"]), ALWAYS_BLOCKED)


def ip_internal(case: Case) -> Any:
    return within(_address(case["input"]["ip"]), (*ALWAYS_BLOCKED, *INTERNAL))


def _address(text: str) -> Any:
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


GROUPS: dict[str, Callable[[Case], Any]] = {
    "connect_target": connect_target,
    "http_body_framing": http_body_framing,
    "ip_always_blocked": ip_always_blocked,
    "ip_internal": ip_internal,
    "path_canonicalize": path_canonicalize,
    "policy_allowed_ips": decision,
    "policy_host_wildcard": decision,
    "policy_l4": decision,
    "policy_l7_deny_rules": decision,
    "policy_l7_path_scoped_endpoints": decision,
    "policy_l7_rest": decision,
    "policy_ports": decision,
    "query_parse": query_parse,
    "tunnel_protocol_detect": tunnel_protocol_detect,
}


def outcome(case: Case) -> Any:
    run = GROUPS.get(case["group"])
    try:
        return "no such group in this version" if run is None else run(case)
    except Exception as error:
        return f"crashed: {type(error).__name__}: {error}"


def main(file: str) -> int:
    with open(file, encoding="utf-8") as handle:
        cases = [json.loads(line) for line in handle if line.strip()]
    failed = 0
    for case in cases:
        got = outcome(case)
        if got != case["expect"]:
            failed += 1
            print(f"{case['id']}: expected {json.dumps(case['expect'])}, got {json.dumps(got)}")
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
