# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run JSON-lines files of cases through the real engine: ``run.py [--known FILE] FILE...``.

Each group has a translation of its input into a call of the engine and of the answer into the case's words. What a case
expects may choose the shape of an answer, never its value. ``--known`` names the cases and groups that this version does
not pass: one of them that passes fails the run as well, so that the list stays true.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import sys
from collections.abc import Callable
from typing import Any

from openshell_proxy.audit import Entrance
from openshell_proxy.credentials.document import SecretsError, load_vault
from openshell_proxy.credentials.placeholders import CANONICAL, canonical, has_marker, reserved_key
from openshell_proxy.credentials.rewrite import Access
from openshell_proxy.credentials.streams import Resolve, body_transform
from openshell_proxy.credentials.vault import Secret, Vault
from openshell_proxy.destination import (
    ALWAYS_BLOCKED,
    DestinationError,
    Mode,
    choose_mode,
    implicit_allowed_ips,
    is_cloud_metadata,
    is_gateway_alias,
    is_link_local,
    is_metadata_host,
    judge_all,
    unwrap,
    within,
)
from openshell_proxy.entrances.authority_form import parse_authority, parse_proxy_uri, render_host
from openshell_proxy.entrances.peek import classify
from openshell_proxy.entrances.requests import forwarded_fields, within_tunnel
from openshell_proxy.inference.patterns import detect
from openshell_proxy.inference.routes import backend_url
from openshell_proxy.policy import (
    Decision,
    Intent,
    PolicyError,
    Request,
    TargetError,
    canonical_path,
    deny_all,
    parse_query,
)
from openshell_proxy.policy.addresses import INTERNAL, always_blocked, internal
from openshell_proxy.policy.ambiguity import conflicts
from openshell_proxy.policy.document import Reader
from openshell_proxy.policy.engine import Policy, compile_policy
from openshell_proxy.policy.globs import SEPARATOR_NAME, GlobError, compile_glob
from openshell_proxy.policy.graphql import Operation, operations_of_request
from openshell_proxy.policy.hosts import (
    HostPatternError,
    check_selector,
    compile_host_pattern,
    patterns_overlap,
)
from openshell_proxy.policy.jsonbody import BodyError
from openshell_proxy.policy.jsonrpc import Call, Frames, parse_frames
from openshell_proxy.policy.model import MESSAGE, Document
from openshell_proxy.policy.routes import compile_route
from openshell_proxy.policy.schema import read_document
from openshell_proxy.policy.static import valid_identity
from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.exchange import upstream_head
from openshell_proxy.relay.http1 import (
    NO_BODY,
    ProtocolError,
    RequestHead,
    ResponseHead,
    h2c_upgrade,
    parse_request_head,
    render_head,
    request_framing,
    response_framing,
    websocket_upgrade,
)
from openshell_proxy.relay.upstream import Origin

Case = dict[str, Any]
MALFORMED = b"{"  # stands for the body of a case that says only that it could not be parsed


class Differs(Exception):
    """The engine's answer is not what the case expects; the text is the answer."""


def same(case: Case, got: Any) -> None:
    if got != case["expect"]:
        raise Differs(json.dumps(got))


def has_texts(texts: list[str], case: Case) -> None:
    """All of the case's ``contains`` are in the texts."""
    everything = "\n".join(texts)
    for wanted in case.get("contains") or []:
        if wanted not in everything:
            raise Differs(f"no {wanted!r} in: {everything}")


def subset(case: Case, got: dict[str, Any]) -> None:
    """Every key that the case expects has its value."""
    expected = case["expect"]
    if not isinstance(expected, dict) or any(got.get(key) != wanted for key, wanted in expected.items()):
        raise Differs(json.dumps(got))


def failed(case: Case, why: str) -> None:
    """The case expects an error: ``error``, ``error:PART`` or ``{"error": PART}``; the part is one of *why*."""
    expected = case["expect"]
    if isinstance(expected, dict):
        parts = [part for key, part in expected.items() if key.startswith("error")]
    else:
        word, _, part = str(expected).partition(":")
        parts = [part] if word == "error" else []
    if not parts or any(part not in why for part in parts):
        raise Differs(f"error:{why}")


# Policy files.


def read(policy: Any) -> tuple[Document, Reader]:
    """What the loader reads, its errors and its notices."""
    reader = Reader("policy")
    try:
        document = read_document(reader, json.dumps(policy), "enforce")
    except PolicyError as error:
        reader.errors += error.errors
        document = Document()
    if not reader.errors:
        reader.errors += [text for _, text in conflicts(document.endpoints)]
    return document, reader


def loaded(policy: Any) -> Policy:
    """The compiled policy; deny-all, as in the sidecar, where the loader refuses it.

    Ambiguity is left out: these groups are of the engine below OpenShell's loader, which refuses ambiguous files too.
    """
    document, reader = read(policy)
    refused = [error for error in reader.errors if not error.startswith("ambiguous: ")]
    return deny_all() if refused else compile_policy(document)


def policy_validate(case: Case) -> None:
    _, reader = read(case["policy"])
    if case["expect"] == "ok":
        if reader.errors:
            raise Differs("; ".join(reader.errors))
    elif case["expect"] == "warning":
        has_texts(reader.notices, case)
        if not reader.notices:
            raise Differs("no notice")
    elif not reader.errors:
        raise Differs("ok")
    else:
        has_texts(reader.errors, case)


def one_endpoint(**keys: Any) -> dict[str, Any]:
    return {"version": 1, "network_policies": {"p": {"endpoints": [{"port": 443, **keys}]}}}


def endpoint_ambiguity(case: Case) -> None:
    sides = {name: {"endpoints": [case["input"][name]]} for name in ("left", "right")}
    document, _ = read({"version": 1, "network_policies": sides})
    found = [text for _, text in conflicts(document.endpoints)]
    if ("conflict" if found else "ok") != case["expect"]:
        raise Differs("; ".join(found) or "ok")
    has_texts(found, case)


def allowed_ips_parse(case: Case) -> None:
    _, reader = read(one_endpoint(host="api.example.com", allowed_ips=case["input"]["allowed_ips"]))
    if case["expect"] == "ok":
        return same(case, "; ".join(reader.errors) or "ok")
    wanted = case["expect"].partition(":")[2]
    if not reader.errors or wanted not in "; ".join(reader.errors):
        raise Differs("; ".join(reader.errors) or "ok")


def access_preset_expand(case: Case) -> None:
    document, _ = read(one_endpoint(host="api.example.com", **case["input"]["endpoint"]))
    rules = [dict(rule.authored) for rule in document.endpoints[0].rules]
    expected = case["expect"]
    if expected:  # a preset of one protocol says nothing of the other protocols' keys
        rules = [{key: value for key, value in rule.items() if key in expected[0]} for rule in rules]
    same(case, rules or None)


# Decisions.


def decision(case: Case) -> None:
    asked = case["input"]
    policy = loaded(case["policy"])
    host = asked["host"].lower()
    try:
        parse_authority(f"[{host}]:1" if ":" in host else f"{host}:1", None)
    except Refusal:
        return same(case, "error")
    request = requested(asked)
    found = policy.decide(Intent(host, asked["port"], request))
    # An L7 group asks whether a rule admits the request: without one, or only because it is audited, it is none.
    admitted = found.allowed and not found.audited and (request is None or found.layer == "l7")
    same(case, "allow" if admitted else "deny")
    told(case, found, policy.decide(Intent(host, asked["port"])))


def requested(asked: Case) -> Request | None:
    if "method" not in asked and "path" not in asked:
        return None
    given = asked.get("query") or {}
    query = {key: tuple(value) if isinstance(value, list) else (value,) for key, value in given.items()}
    rpc, graphql = asked.get("jsonrpc"), asked.get("graphql")
    malformed = bool((rpc or {}).get("error") or (graphql or {}).get("error"))
    method = asked.get("method", "GET")
    return Request(
        method, asked.get("path", "/"), query,
        body=MALFORMED if malformed else b"" if method == MESSAGE else None,
        parsed=None if malformed else operations(graphql) if graphql is not None else frames(rpc or {}),
        receive_stream=bool(rpc and rpc.get("receive_stream")),
    )  # fmt: skip


def operations(graphql: Case) -> tuple[Operation, ...]:
    return tuple(
        Operation(
            one.get("operation_type", ""),
            one.get("operation_name") or "",
            tuple(one.get("fields") or ()),
            bool(one.get("persisted_query")),
            one.get("persisted_query_hash") or "",
            one.get("persisted_query_id") or "",
        )
        for one in graphql.get("operations") or ()
    )


def frames(rpc: Case) -> Frames | None:
    """The calls of a parsed body; None for a request that had none to parse."""
    listed = rpc.get("calls") or rpc.get("batch") or ([rpc] if rpc.get("method") else [])
    if not listed and not rpc.get("has_response"):
        return None
    calls = tuple(Call(one["method"], (one.get("params") or {}).get("name")) for one in listed)
    return Frames(calls, bool(rpc.get("has_response")))


def told(case: Case, found: Decision, connection: Decision) -> None:
    """What else a case says of the decision or of the connection that it is about."""
    networks = [ipaddress.ip_network(text) for text in case.get("endpoint_allowed_ips") or ()]
    checks: dict[str, Callable[[Any], bool]] = {
        "matched_policy": lambda wanted: connection.policy == wanted,
        "endpoint_allowed_ips": lambda _: list(connection.allowed_ips) == networks,
        "endpoint_tls": lambda wanted: connection.tls == wanted,
        "exact_declared_host": lambda wanted: connection.exact_host == wanted,
        "expect_reason": lambda wanted: found.reason == wanted,
        "expect_reason_contains": lambda wanted: wanted in found.reason,
    }
    for key, holds in checks.items():
        if key in case and not holds(case[key]):
            raise Differs(f"{key} differs: {found}, {connection}")


def glob(separator: str) -> Callable[[Case], None]:
    def run(case: Case) -> None:
        value = case["input"].get("path", case["input"].get("value"))
        try:
            pattern = compile_glob(case["input"]["pattern"], separator)
        except GlobError:
            return same(case, False)
        same(case, bool(pattern.fullmatch(value)))

    return run


def endpoint_path_match(case: Case) -> None:
    pattern = compile_route(case["input"]["pattern"])
    same(case, pattern is None or bool(pattern.fullmatch(case["input"]["path"])))


def host_pattern(case: Case) -> None:
    pattern = case["input"]["pattern"].lower()
    try:
        check_selector(pattern)
    except HostPatternError:
        return same(case, "invalid_pattern")
    same(case, compile_host_pattern(pattern).fullmatch(case["input"]["host"].lower()) is not None)


def host_pattern_overlap(case: Case) -> None:
    same(case, patterns_overlap(case["input"]["left"], case["input"]["right"]))


def graphql_classify(case: Case) -> None:
    asked = case["input"]
    try:
        query = parse_query(canonical_path(asked["target"])[1])
        found = operations_of_request(asked["method"], query, asked["body"].encode())
    except BodyError as error:
        return failed(case, str(error))
    wanted = case["expect"].get("operations")
    names = {"operation_type": "type", "operation_name": "name", "persisted_query": "persisted",
             "persisted_query_hash": "hash", "persisted_query_id": "id"}  # fmt: skip
    shown = [
        {
            key: list(one.fields) if key == "fields" else getattr(one, names[key]) or (None if value is None else "")
            for key, value in expected.items()
        }
        for one, expected in zip(found, wanted or (), strict=False)
    ]
    if wanted is None or len(found) != len(wanted) or shown != wanted:
        raise Differs(str(found))


def jsonrpc_body_parse(case: Case) -> None:
    asked = case["input"]
    strict = asked.get("strict_tool_names", True)
    try:
        found = parse_frames(asked["body"].encode(), mcp=asked["mode"] == "mcp", strict_tool_names=strict)
    except BodyError as error:
        return failed(case, str(error))
    tools = [call.tool for call in found.calls if call.tool is not None]
    got: dict[str, Any] = {"methods": [call.method for call in found.calls], "has_response": found.has_response}
    subset(case, got | ({"tool": tools[0]} if tools else {}))


# Targets and heads.


def path_canonicalize(case: Case) -> None:
    asked = case["input"]
    options = {key: value for key, value in {**asked, **asked.get("options", {})}.items() if key in
               ("allow_encoded_slash", "strip_path_parameters")}  # fmt: skip
    try:
        path, query = canonical_path(asked["target"], **options)
    except TargetError as error:
        return failed(case, error.code)
    got = {
        "path": path,
        "query": query if "?" in asked["target"] else None,
        "rewritten": path != asked["target"].partition("?")[0],
    }
    same(case, path if isinstance(case["expect"], str) else {key: got.get(key) for key in case["expect"]})


def query_parse(case: Case) -> None:
    try:
        path, raw = canonical_path(case["input"]["target"])
        query = {key: list(one) for key, one in parse_query(raw).items()}
    except TargetError as error:
        return failed(case, f"{error.code} {error}")
    subset(case, {"path": path, "query": query})


def same_names(case: Case, got: list[Any]) -> None:
    """The same but for how the host is written: in lower case, without the root's dot, an IPv6 address compressed."""
    at = 0 if len(got) == 2 else 1  # [host, port] and [scheme, host, port, path]
    expected = case["expect"]
    if isinstance(expected, list):
        host = str(expected[at]).lower().removesuffix(".")
        host = ipaddress.IPv6Address(host).compressed if ":" in host else host
        expected = [host if index == at else one for index, one in enumerate(expected)]
    same({**case, "expect": expected}, got)


def head_and_body(raw: str) -> tuple[RequestHead, str]:
    """The parsed head, and what follows it, which the relay sends on as it came."""
    head, end, body = raw.partition("\r\n\r\n")
    return parse_request_head((head + end).encode("latin-1")), body


def connect_target(case: Case) -> None:
    try:
        same_names(case, list(parse_authority(case["input"]["target"], None)))
    except Refusal:
        same(case, "error")


def forward_proxy_uri(case: Case) -> None:
    try:
        same_names(case, list(parse_proxy_uri(case["input"]["uri"])))
    except Refusal:
        same(case, "error")


def forward_host_header(case: Case) -> None:
    _, host, port, _ = parse_proxy_uri(case["input"]["uri"])
    same(case, render_host(host, port, 80).decode())


def rendered(
    head: RequestHead, entrance: Entrance, origin: Origin, target: str, env: dict[str, str] | None = None
) -> str:
    """The head that goes to the destination, as the relay writes it."""
    fields = access(env).fields(forwarded_fields(entrance, head, origin))
    return upstream_head(head, target, fields, websocket_upgrade(head), entrance == "forward").decode("latin-1")


def forward_request_rewrite(case: Case) -> None:
    head, body = head_and_body(case["input"]["raw"])
    host, port = parse_authority(case["input"]["authority"], 80)
    env = case["input"].get("env")
    text = rendered(head, "forward", Origin(host, port, False), case["input"]["upstream_path"], env) + body
    wanted = all(part in text for part in case["expect"].get("contains", ()))
    if not wanted or any(part in text.lower() for part in case["expect"].get("absent_ci", ())):
        raise Differs(json.dumps(text))


def http_header_block(case: Case) -> None:
    try:
        head, _ = head_and_body(case["input"]["raw"])
        request_framing(head)
        tls = not head.target.lower().startswith("http://")
        origin, target = within_tunnel(Origin(*parse_authority(head.host or "", 443 if tls else 80), tls))(head)
        path, query = canonical_path(target)
    except (ProtocolError, Refusal, TargetError):
        return same(case, "reject")
    if case["expect"] == "reject":
        raise Differs("accepted")
    same(case, {"upstream_header": rendered(head, "tunnel", origin, path + (f"?{query}" if query else ""))})


def http_body_framing(case: Case) -> None:
    try:
        head, _ = head_and_body(case["input"]["headers"])
        framing = request_framing(head)
    except ProtocolError:
        return same(case, "reject")
    if head.values(b"content-length"):
        return same(case, {"content_length": framing.length})
    shape = isinstance(case["expect"], dict)
    same(case, {framing.kind: True} if shape else framing.kind)


def upgrade_detect(case: Case) -> None:
    head, _ = head_and_body(case["input"]["raw"])
    got: dict[str, Any] = {"h2c_upgrade": h2c_upgrade(head)}
    try:
        got["websocket"] = websocket_upgrade(head)
        got["strict"] = "websocket" if got["websocket"] else "not_websocket"
    except ProtocolError:
        got |= {"websocket": False, "strict": "reject"}
    wanted = case["expect"].get("strict")
    if got["strict"] == "websocket" and wanted not in ("reject", "not_websocket"):
        got["strict"] = wanted  # whatever the word for an upgrade without a fault is
    subset(case, got)


def bodiless_response(case: Case) -> None:
    head = ResponseHead(1, [(b"Content-Length", b"5")], case["input"]["status"])
    same(case, response_framing(head, case["input"]["method"]) == NO_BODY)


def tunnel_protocol_detect(case: Case) -> None:
    kind = classify(case["input"]["first_bytes"].encode("latin-1"), ended=True)
    same(case, {"http": "http1", "h2": "h2_prior_knowledge", "tls": "tls"}.get(kind or "", "other"))


# Destinations.


def on_address(check: Callable[[Any], bool]) -> Callable[[Case], None]:
    return lambda case: same(case, check(ipaddress.ip_address(case["input"]["ip"])))


def on_network(check: Callable[[Any], bool]) -> Callable[[Case], None]:
    return lambda case: same(case, check(ipaddress.ip_network(case["input"]["cidr"], strict=False)))


def on_host(check: Callable[[str], bool]) -> Callable[[Case], None]:
    return lambda case: same(case, check(case["input"]["host"]))


def implicit_ips(case: Case) -> None:
    same(case, [str(network.network_address) for network in implicit_allowed_ips(case["input"]["host"])])


def listed(texts: Any) -> tuple[Any, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts or ())


def ssrf_mode_precedence(case: Case) -> None:
    asked = case["input"]
    found = Decision(True, allowed_ips=listed(asked["allowed_ips"]), exact_host=asked["exact_declared_host"])
    gateway = asked["trusted_host_gateway"]
    mode = choose_mode(asked["host"], found, ipaddress.ip_address(gateway) if gateway else None)
    same(case, mode.name.lower())


def ssrf_resolved(case: Case) -> None:
    asked = case["input"]
    mode = Mode[asked["mode"].upper()]
    allowed = asked.get("allowed_ips") or [one for one in [asked.get("trusted_host_gateway")] if one]
    found = Decision(True, allowed_ips=listed(allowed), exact_host=mode is Mode.EXACT_DECLARED_HOST)
    try:
        judge_all(tuple(asked["resolved"]), asked["port"], mode, found, ())
    except DestinationError as error:
        wanted = case["expect"].partition("deny:")[2]
        if case["expect"] == "allow" or wanted not in error.why:
            raise Differs(f"deny:{error.why}") from None
        return
    same(case, "allow")


# Placeholders. The secrets of a case are bound to nothing, as OpenShell's own without a provider are.


def access(env: dict[str, str] | None) -> Access:
    vault = Vault([Secret(key, (key,), value.encode()) for key, value in (env or {}).items()])
    return Access(vault, vault.site("x", 80), "x", 80, "/")


def placeholder_env(case: Case) -> None:
    same(case, {key: canonical(key) for key in case["input"]["env"] if not reserved_key(key)})


def placeholder_reserved_key(case: Case) -> None:
    same(case, reserved_key(case["input"]["key"]))


def placeholder_marker_detect(case: Case) -> None:
    same(case, has_marker(case["input"]["text"].encode()))


def placeholder_resolve(case: Case) -> None:
    """What no header can carry is refused when it is loaded, so nothing is there to resolve."""
    entries = [{"name": key, "value": value, "hosts": ["x"]} for key, value in case["input"]["env"].items()]
    try:
        vault = load_vault(json.dumps({"secrets": entries}))
    except SecretsError:
        return same(case, None)
    match = CANONICAL.fullmatch(case["input"]["placeholder"].encode())
    try:
        value = None if match is None else Access(vault, vault.site("x", 80), "x", 80, "/").resolve(match, "").decode()
    except Refusal:
        value = None
    same(case, value)


def placeholder_header_line(case: Case) -> None:
    name, value = case["input"]["line"].split(": ", 1)
    try:
        ((_, got),) = access(case["input"]["env"]).fields([(name.encode(), value.encode())])
    except Refusal as refusal:
        return failed(case, refusal.detail)
    same(case, f"{name}: {got.decode()}")


def placeholder_header_block(case: Case) -> None:
    """Some blocks have no Host, which our parser of heads refuses: the lines are split here."""
    block, _, body = case["input"]["raw"].partition("\r\n\r\n")
    (method, target, version), lines = block.split("\r\n")[0].split(" "), block.split("\r\n")[1:]
    fields = [tuple(part.encode() for part in line.split(": ", 1)) for line in lines]
    asked = access(case["input"]["env"])
    if case.get("redacted_target") not in (None, asked.vault.redacted(target)):
        raise Differs(asked.vault.redacted(target))
    try:
        first = f"{method} {asked.target(target)} {version}".encode()
        got = render_head(first, asked.fields(fields)).decode() + body
    except Refusal as refusal:
        return failed(case, refusal.detail)
    same(case, got)


def placeholder_target(case: Case) -> None:
    asked, target = access(case["input"]["env"]), case["input"]["target"]
    got = {"redacted": asked.vault.redacted(target)}
    if "redacted" in case["expect"] and "resolved" not in case["expect"]:
        return same(case, got)
    try:
        subset(case, got | {"resolved": asked.target(target)})
    except Refusal as refusal:
        failed(case, refusal.detail)


def placeholder_text(case: Case) -> None:
    asked = access(case["input"]["env"])
    rewrite = Resolve(asked)
    try:
        text = rewrite.feed(case["input"]["text"].encode()) + rewrite.end()
    except Refusal as refusal:
        return failed(case, refusal.detail)
    same(case, {"text": text.decode(), "replacements": asked.used})


def placeholder_body(case: Case) -> None:
    if not case["input"].get("request_body_credential_rewrite", True):
        return same(case, {"body": case["input"]["body"]})  # nothing is put in, and nothing looked for
    rewrite = body_transform(access(case["input"]["env"]), case["input"]["content_type"].encode())
    try:
        body = rewrite.feed(case["input"]["body"].encode()) + rewrite.end()
    except Refusal as refusal:
        return failed(case, refusal.detail)
    same(case, {"body": body.decode()})


# Inference.


def inference_pattern(case: Case) -> None:
    found = detect(case["input"]["method"], case["input"]["path"])
    framing = "" if found is None else "streaming" if found.streams else "buffered"
    if case.get("framing") not in (None, framing):
        raise Differs(json.dumps(framing))
    same(case, None if found is None else found.name)


def inference_backend_url(case: Case) -> None:
    same(case, backend_url(case["input"]["base"], case["input"]["path"]))


GROUPS: dict[str, Callable[[Case], None]] = {
    "access_preset_expand": access_preset_expand,
    "allowed_ips_parse": allowed_ips_parse,
    "bodiless_response": bodiless_response,
    "connect_target": connect_target,
    "derived_path_glob": glob("/"),
    "derived_query_glob": glob(SEPARATOR_NAME),
    "endpoint_ambiguity": endpoint_ambiguity,
    "endpoint_path_match": endpoint_path_match,
    "forward_host_header": forward_host_header,
    "forward_proxy_uri": forward_proxy_uri,
    "forward_request_rewrite": forward_request_rewrite,
    "graphql_classify": graphql_classify,
    "host_gateway_alias": on_host(is_gateway_alias),
    "host_pattern": host_pattern,
    "host_pattern_overlap": host_pattern_overlap,
    "http_body_framing": http_body_framing,
    "http_header_block": http_header_block,
    "implicit_allowed_ips": implicit_ips,
    "inference_backend_url": inference_backend_url,
    "inference_pattern": inference_pattern,
    "ip_always_blocked": on_address(lambda address: within(unwrap(address), ALWAYS_BLOCKED)),
    "ip_cloud_metadata": on_address(is_cloud_metadata),
    "ip_internal": on_address(lambda address: within(unwrap(address), (*ALWAYS_BLOCKED, *INTERNAL))),
    "ip_link_local": on_address(is_link_local),
    "jsonrpc_body_parse": jsonrpc_body_parse,
    "metadata_hostname": on_host(is_metadata_host),
    "net_always_blocked": on_network(always_blocked),
    "net_internal": on_network(internal),
    "path_canonicalize": path_canonicalize,
    "placeholder_body": placeholder_body,
    "placeholder_env": placeholder_env,
    "placeholder_header_block": placeholder_header_block,
    "placeholder_header_line": placeholder_header_line,
    "placeholder_marker_detect": placeholder_marker_detect,
    "placeholder_reserved_key": placeholder_reserved_key,
    "placeholder_resolve": placeholder_resolve,
    "placeholder_target": placeholder_target,
    "placeholder_text": placeholder_text,
    "policy_allowed_ips": decision,
    "policy_host_wildcard": decision,
    "policy_l4": decision,
    "policy_l7_deny_rules": decision,
    "policy_l7_graphql": decision,
    "policy_l7_jsonrpc": decision,
    "policy_l7_mcp": decision,
    "policy_l7_path_scoped_endpoints": decision,
    "policy_l7_rest": decision,
    "policy_l7_websocket_graphql": decision,
    "policy_ports": decision,
    "policy_validate_host_wildcard": policy_validate,
    "policy_validate_l7": policy_validate,
    "policy_validate_schema": policy_validate,
    "process_identity": lambda case: same(case, valid_identity(case["input"]["value"])),
    "query_parse": query_parse,
    "ssrf_mode_precedence": ssrf_mode_precedence,
    "ssrf_resolved": ssrf_resolved,
    "tunnel_protocol_detect": tunnel_protocol_detect,
    "upgrade_detect": upgrade_detect,
}


def failure(case: Case) -> str:
    """What is wrong with the engine's answer, or ""."""
    run = GROUPS.get(case["group"])
    if run is None:
        return "no such group in this version"
    try:
        run(case)
    except Differs as difference:
        return f"got {difference}"
    except Exception as error:
        return f"crashed: {type(error).__name__}: {error}"
    return ""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Run cases through the real engine.")
    parser.add_argument("--known", help="a file of case ids and groups (with *) that do not pass yet, one a line")
    parser.add_argument("files", nargs="+")
    options = parser.parse_args(arguments)
    known: set[str] = set()
    if options.known:
        with open(options.known, encoding="utf-8") as handle:
            known = {line.split()[0] for line in handle if line.strip() and not line.startswith("#")}
    cases: list[Case] = []
    for file in options.files:
        with open(file, encoding="utf-8") as handle:
            cases += [json.loads(line) for line in handle if line.strip()]
    return report(cases, known)


def report(cases: list[Case], known: set[str]) -> int:
    failed = not_built = 0
    wrong = False
    for case in cases:
        why = failure(case)
        listed_here = case["id"] in known or f"{case['group']}*" in known
        if why and listed_here:
            not_built += 1
        elif why:
            failed += 1
            print(f"{case['id']}: expected {json.dumps(case['expect'])}, {why}")
        elif listed_here:
            wrong = True
            print(f"{case['id']}: passes, but is listed as not built")
    print(f"{len(cases) - failed - not_built} passed, {failed} failed, {not_built} listed as not built")
    return 1 if failed or wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
