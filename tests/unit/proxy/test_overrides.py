# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A request that asks to be taken for another one is judged as both."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from loopback import HOST, WEBSOCKET, Origin, Response, World, answer, hello, read_request, rest
from openshell_proxy.overrides import other_readings
from openshell_proxy.policy import Intent, Request
from openshell_proxy.refusal import Refusal

METHODS = ("X-HTTP-Method-Override", "x-http-method", "X-METHOD-OVERRIDE")
TARGETS = ("X-Original-URL", "x-rewrite-url")


def only(*allowed: str) -> dict[str, Any]:
    """The keys of an endpoint that allows "METHOD PATH" alone."""
    rules = [dict(zip(("method", "path"), one.split(" "), strict=True)) for one in allowed]
    return {"access": "", "rules": [{"allow": rule} for rule in rules]}


async def start(world: World, **endpoint: Any) -> Origin:
    there = await world.origin(hello)
    made = {key: value for key, value in rest(there.port, **endpoint).items() if value != ""}
    await world.start(made)
    return there


async def ask(world: World, there: Origin, asked: str, *fields: str) -> Response:
    method, path = asked.split(" ")
    client = await world.client()
    lines = [f"{method} http://{HOST}:{there.port}{path} HTTP/1.1", f"Host: {HOST}:{there.port}", *fields]
    await client.send(("\r\n".join(lines) + "\r\n\r\n").encode())
    return await client.response()


@pytest.mark.parametrize("value", ["DELETE", "delete"])
@pytest.mark.parametrize("name", METHODS)
async def test_a_method_that_a_header_names_needs_a_rule_of_its_own(world: World, name: str, value: str) -> None:
    there = await start(world, access="read-write")
    got = await ask(world, there, "POST /x", f"{name}: {value}", "Content-Length: 0")
    assert (got.status, got.json["error"], got.json["method"]) == (403, "policy_denied", "DELETE")
    assert got.json["rule_missing"]["method"] == "DELETE"
    assert there.connections == 0
    denied = (await world.events())[-2]
    assert (denied["action_id"], denied["status_detail"]) == (2, "DELETE /x not permitted by policy")


@pytest.mark.parametrize("value", ["/admin", "https://elsewhere.test/admin", "/v1/../admin", "/v1/%2e%2e/admin?x=1"])
@pytest.mark.parametrize("name", TARGETS)
async def test_a_path_that_a_header_names_needs_a_rule_of_its_own(world: World, name: str, value: str) -> None:
    there = await start(world, **only("GET /v1/**"))
    got = await ask(world, there, "GET /v1/x", f"{name}: {value}")
    assert (got.status, got.json["error"], got.json["path"]) == (403, "policy_denied", "/admin")
    assert there.connections == 0


async def test_each_method_is_judged_with_each_path(world: World) -> None:
    there = await start(world, **only("POST /a", "PUT /a", "POST /b"))
    for field in ("X-HTTP-Method: PUT", "X-Original-URL: /b"):
        assert (await ask(world, there, "POST /a", field, "Content-Length: 0")).status == 200
    both = await ask(world, there, "POST /a", "X-HTTP-Method: PUT", "X-Original-URL: /b", "Content-Length: 0")
    assert (both.status, both.json["method"], both.json["path"]) == (403, "PUT", "/b")


async def test_a_query_that_a_header_names_is_judged(world: World) -> None:
    there = await start(world, access="full", deny_rules=[{"method": "GET", "path": "/x", "query": {"force": "true"}}])
    assert (await ask(world, there, "GET /x", "X-Rewrite-URL: /x?force=no")).status == 200
    assert (await ask(world, there, "GET /x", "X-Rewrite-URL: /x?force=true")).status == 403


async def test_what_is_allowed_both_ways_passes_as_it_is(world: World) -> None:
    seen: list[dict[str, str]] = []

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await read_request(reader))[1])
        writer.write(answer())

    there = await world.origin(origin)
    await world.start(rest(there.port, "read-write"))
    field = "X-HTTP-Method-Override: GET"  # a long query in a body, as Google's APIs have it
    assert (await ask(world, there, "POST /long", field, "Content-Length: 0")).status == 200
    assert seen[0]["x-http-method-override"] == "GET"


@pytest.mark.parametrize(
    "fields",
    [
        ("X-HTTP-Method: GET", "X-HTTP-Method: GET"),
        ("X-HTTP-Method: GET, DELETE",),
        ("X-HTTP-Method:",),
        ("X-Original-URL: /%zz",),
        ("X-Original-URL: /../x",),
        ("X-Original-URL: x",),
        ("X-Rewrite-URL: /a", "X-Rewrite-URL: /b"),
    ],
)
async def test_what_is_not_understood_is_refused(world: World, fields: tuple[str, ...]) -> None:
    there = await start(world)
    got = await ask(world, there, "GET /x", *fields)
    assert (got.status, got.json["error"]) == (400, "invalid_request")
    assert there.connections == 0


async def test_where_requests_are_not_judged_the_headers_mean_nothing(world: World) -> None:
    there = await world.origin(hello)
    await world.start({"host": HOST, "port": there.port})
    assert (await ask(world, there, "GET /x", "X-HTTP-Method: DELETE", "X-Original-URL: %")).status == 200


async def test_an_endpoint_that_audits_says_so(world: World) -> None:
    there = await start(world, access="read-only", enforcement="audit")
    assert (await ask(world, there, "GET /x", "X-HTTP-Method: DELETE")).status == 200
    told = (await world.events())[-2]
    assert told["unmapped"]["audited"] is True
    assert told["status_detail"] == "DELETE /x not permitted by policy"


async def test_a_judged_websocket_is_nothing_else(world: World) -> None:
    there = await start(world, protocol="websocket", **only("GET /a", "WEBSOCKET_TEXT /a", "GET /b"))
    got = await ask(world, there, "GET /a", *WEBSOCKET, "X-Original-URL: /b")
    assert (got.status, got.json["error"]) == (403, "policy_denied")
    assert there.connections == 0


async def test_a_secret_goes_to_no_path_that_only_a_header_names(world: World) -> None:
    secret = {"name": "KEY", "value": "sk-real-0123456789", "hosts": [HOST]}
    (world.directory / "state/config/secrets.json").write_text(json.dumps({"secrets": [secret]}))
    there = await start(world)
    got = await ask(world, there, "GET /x", "X-Original-URL: /y")
    assert (got.status, got.json["error"]) == (403, "credential_endpoint_mismatch")
    assert (await ask(world, there, "GET /x", "X-HTTP-Method: PUT", "X-Rewrite-URL: /x")).status == 200


def test_readings_are_methods_times_targets_without_the_request_itself() -> None:
    intent = Intent(HOST, 443, Request("GET", "/a", {}))
    assert list(other_readings(intent, {b"host": [b"x"]}, False)) == []
    named = {b"x-http-method": [b"put"], b"x-method-override": [b"Patch"], b"x-original-url": [b"/b?c=1"]}
    found = [(one.request.method, one.request.path) for one in other_readings(intent, named, False) if one.request]
    assert found == [(method, path) for method in ("GET", "PUT", "PATCH") for path in ("/a", "/b")][1:]


def test_an_encoded_slash_is_kept_where_the_endpoint_keeps_it() -> None:
    intent, named = Intent(HOST, 443, Request("GET", "/a", {})), {b"x-original-url": [b"/b%2fc"]}
    with pytest.raises(Refusal, match="encoded_slash"):
        list(other_readings(intent, named, False))
    assert [one.request.path for one in other_readings(intent, named, True) if one.request] == ["/b%2Fc"]
