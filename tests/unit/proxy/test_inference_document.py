# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The file of routes: what of it the sidecar takes, and what it says is wrong, without a key."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openshell_proxy.credentials.document import load_vault
from openshell_proxy.credentials.vault import Secret, Vault
from openshell_proxy.inference.document import MAX_SECONDS, RoutesError, load_routes
from openshell_proxy.inference.routes import IDLE_SECONDS, PROVIDERS, SECONDS, Route
from openshell_proxy.relay.upstream import Origin

KEY = "sk-planted-0123456789abcdef"
GOOD: dict[str, Any] = {"name": "main", "provider": "openai", "model": "gpt", "key": KEY}
UNKEYED = {key: value for key, value in GOOD.items() if key != "key"}
VAULT = load_vault(json.dumps({"secrets": [{"name": "one", "value": "value", "hosts": ["api.openai.com"]}]}))


def loaded(*routes: dict[str, Any], vault: Vault = VAULT) -> tuple[Route, ...]:
    found = load_routes(json.dumps({"routes": routes}), vault)
    return found.listed if found is not None else ()


def refused(words: str, *routes: dict[str, Any], vault: Vault = VAULT) -> None:
    with pytest.raises(RoutesError) as caught:
        loaded(*routes, vault=vault)
    assert words in str(caught.value)
    assert "'main'" in str(caught.value)
    assert KEY not in str(caught.value)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != key}


URL = "not https://host/path"


@pytest.mark.parametrize(
    ("route", "words"),
    [
        (without("provider"), "provider that is not one of"),
        (GOOD | {"provider": "closedai"}, "provider that is not one of"),
        (without("model"), "no model"),
        (GOOD | {"model": ""}, "no model"),
        (GOOD | {"model": "two words"}, "no model"),
        (GOOD | {"model": "x" * 257}, "no model"),
        (GOOD | {"provider": "aws-bedrock"}, "needs a base_url"),
        (GOOD | {"base_url": "ftp://api.test"}, URL),
        (GOOD | {"base_url": "api.test/v1"}, URL),
        (GOOD | {"base_url": "https:///v1"}, URL),
        (GOOD | {"base_url": "https://me@api.test"}, URL),
        (GOOD | {"base_url": "https://api.test:0"}, URL),
        (GOOD | {"base_url": "https://0x7f000001/v1"}, URL),
        (GOOD | {"base_url": "https://[::1/v1"}, URL),
        (GOOD | {"base_url": "https://[zz]/v1"}, URL),
        (GOOD | {"base_url": "https://api.test/v1?x=y"}, URL),
        (GOOD | {"base_url": "https://api.test/v1#x"}, URL),
        (GOOD | {"base_url": "https://api.test/v1\n"}, URL),
        (GOOD | {"base_url": " https://api.test/v1"}, URL),
        (GOOD | {"base_url": "https://api.test/a/../b"}, "plain segments"),
        (GOOD | {"base_url": "https://api.test/./b"}, "plain segments"),
        (GOOD | {"base_url": "https://api.test/a//b"}, "plain segments"),
        (GOOD | {"base_url": "https://api.test/%2e%2e"}, "plain segments"),
        (GOOD | {"base_url": "https://Inference.Local./v1"}, "leads to itself"),
        (GOOD | {"aliases": ["a b"]}, "alias"),
        (GOOD | {"aliases": [1]}, "alias"),
        (GOOD | {"protocols": ["chat"]}, "protocol that is not one of"),
        (GOOD | {"protocols": [1]}, "protocol that is not one of"),
        (GOOD | {"secret": "one"}, "both a secret and a key"),
        (GOOD | {"auth": "digest"}, "auth that is not one of"),
        (UNKEYED | {"auth": "bearer"}, "neither a secret nor a key"),
        (GOOD | {"key": "abc"}, "fewer than"),
        (GOOD | {"key": "line\nbreak"}, "visible ASCII"),
        (GOOD | {"region": "../x"}, "region"),
        (GOOD | {"timeout": 0.5}, "timeout"),
        (GOOD | {"timeout": 0}, "timeout"),
        (GOOD | {"timeout": -5}, "timeout"),
        (GOOD | {"timeout": MAX_SECONDS + 1}, "timeout"),
        (GOOD | {"idle_timeout": 10**400}, "idle_timeout"),
        (GOOD | {"idle_timeout": float("nan")}, "idle_timeout"),
        (UNKEYED | {"secret": "two"}, "does not have"),
        (UNKEYED | {"secret": "one", "base_url": "https://api.test"}, "not bound to its host api.test:443"),
    ],
)
def test_a_route_that_cannot_be_used_is_refused(route: dict[str, Any], words: str) -> None:
    loaded(GOOD)
    refused(words, route)


def test_two_routes_have_two_names() -> None:
    loaded(GOOD, GOOD | {"name": "other"})
    refused("there twice", GOOD, GOOD | {"name": "other"}, GOOD)


def test_a_secret_that_is_bound_to_no_place_authorises_nothing() -> None:
    refused("not bound", UNKEYED | {"secret": "one"}, vault=Vault([Secret("one", ("one",), b"value")]))


@pytest.mark.parametrize("text", ["", " \n", '{"routes": []}'])
def test_no_route_is_no_inference(text: str) -> None:
    assert load_routes(text, VAULT) is None


@pytest.mark.parametrize("text", ["[", "[]", '{"routes": {}}', '{"routes": [1]}', '{"routes": [], "more": 1}'])
def test_a_file_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RoutesError):
        load_routes(text, VAULT)


def test_what_a_route_does_not_say_is_its_providers() -> None:
    (route,) = loaded(UNKEYED | {"protocols": []})
    assert route == Route(
        "main", "openai", "https://api.openai.com/v1", Origin("api.openai.com", 443, True), "gpt",
        protocols=PROVIDERS["openai"].protocols, seconds=SECONDS, idle_seconds=IDLE_SECONDS,
    )  # fmt: skip


def test_what_a_route_says_counts() -> None:
    (route,) = loaded(
        GOOD | {"base_url": "http://API.test:8080/a/v1/", "aliases": ["a", "x" * 256], "timeout": 1, "key": "four",
                "protocols": ["anthropic_messages"], "region": "eu-x", "idle_timeout": MAX_SECONDS}
    )  # fmt: skip
    assert route == Route(
        "main", "openai", "http://API.test:8080/a/v1", Origin("api.test", 8080, False), "gpt", ("a", "x" * 256),
        ("anthropic_messages",), "bearer", "", b"four", "eu-x", 1.0, float(MAX_SECONDS),
    )  # fmt: skip
    assert loaded(GOOD | {"base_url": "http://api.test"})[0].origin.port == 80


@pytest.mark.parametrize(
    ("more", "auth"),
    [
        ({}, "none"),
        ({"key": KEY}, "bearer"),
        ({"secret": "one"}, "bearer"),
        ({"secret": "one", "auth": "x-api-key"}, "x-api-key"),
        ({"key": KEY, "provider": "anthropic"}, "x-api-key"),
        ({"key": KEY, "provider": "anthropic", "auth": "bearer"}, "bearer"),
        ({"provider": "anthropic"}, "none"),
        ({"provider": "aws-bedrock"}, "aws"),
        ({"provider": "aws-bedrock", "key": KEY}, "bearer"),
        ({"provider": "aws-bedrock", "key": KEY, "auth": "x-api-key"}, "x-api-key"),
    ],
)
def test_what_authorises_a_call(more: dict[str, Any], auth: str) -> None:
    assert loaded(UNKEYED | {"base_url": "https://api.openai.com/v1"} | more)[0].auth == auth


@pytest.mark.parametrize(
    ("host", "more", "region"),
    [
        ("bedrock-runtime.eu-west-1.amazonaws.com", {}, "eu-west-1"),
        ("bedrock-runtime-fips.us-east-1.amazonaws.com", {}, "us-east-1"),
        ("bedrock-runtime.eu-west-1.amazonaws.com", {"region": "eu-north-1"}, "eu-north-1"),
        ("x.bedrock-runtime.eu-west-1.amazonaws.com", {}, ""),
        ("api.test", {}, ""),
    ],
)
def test_a_region_is_said_or_stands_in_the_host(host: str, more: dict[str, Any], region: str) -> None:
    assert loaded(UNKEYED | {"provider": "aws-bedrock", "base_url": f"https://{host}"} | more)[0].region == region
