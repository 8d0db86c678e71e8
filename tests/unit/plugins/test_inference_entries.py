# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``openshell_inference`` on its way to the sidecar: refused early, without a key, and what the agent gets of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils.inference_entries import (
    BASE_URL,
    KEYS,
    PROVIDERS,
    agent_environment,
    check_routes,
    document,
    key_source,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.secret_entries import Refused
from ansible_collections.openshell.sandbox.plugins.module_utils.sidecar_config import (
    INFERENCE,
    SECRET,
    Rejected,
    _diff,
    converge,
    inference_config,
    read_current,
)
from host import NAMES, Host, make_sandbox
from openshell_proxy.credentials.document import load_vault
from openshell_proxy.credentials.vault import Vault
from openshell_proxy.inference import INFERENCE as ORIGIN
from openshell_proxy.inference import routes as sidecar
from openshell_proxy.inference.document import _KEYS, RoutesError, load_routes

KEY = "sk-planted-0123456789abcdef"
GOOD: dict[str, Any] = {"name": "main", "provider": "openai", "model": "gpt", "key": KEY}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "a b"}, "no name"),
        ({"provider": "closedai"}, "provider that is not one of openai"),
        ({"model": ""}, "no model"),
        ({"base_url": "api.example.com"}, "https://host/path"),
        ({"base_url": "https://user@api.example.com"}, "https://host/path"),
        ({"provider": "aws-bedrock"}, "needs a base_url"),
        ({"secret": "other"}, "both a secret and a key"),
        ({"key": ["x"]}, "neither a text nor"),
        ({"key": {"vault": "x"}}, "exactly one of"),
        ({"key": {"file": "x", "command": "y"}}, "exactly one of"),
        ({"aliases": "small"}, "wrong type"),
        ({"timeout": True}, "wrong type"),
        ({"modle": "x"}, "unknown key 'modle'"),
    ],
)
def test_what_is_wrong_is_said_without_the_key(change: dict[str, Any], words: str) -> None:
    check_routes([GOOD])
    with pytest.raises(Refused) as caught:
        check_routes([GOOD | change])
    assert words in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "given", ["text", 5, [1], {"main": 1}, [GOOD, GOOD]], ids=["text", "number", "in", "of", "two"]
)
def test_what_is_no_list_of_different_routes_is_refused(given: Any) -> None:
    with pytest.raises(Refused):
        check_routes(given)


def test_a_mapping_is_a_list_with_names() -> None:
    unnamed = {key: value for key, value in GOOD.items() if key != "name"}
    assert check_routes({"main": unnamed}) == [GOOD]


def test_a_secret_that_is_not_there_is_told_where_that_is_known() -> None:
    route = {"name": "main", "provider": "openai", "model": "gpt", "secret": "openai"}
    check_routes([route])
    check_routes([route], ["openai"])
    with pytest.raises(Refused, match="'openai', which openshell_secrets lacks"):
        check_routes([route], ["other"])


def test_both_sides_know_the_same_providers_and_keys() -> None:
    assert set(PROVIDERS) == set(sidecar.PROVIDERS)
    for name, (needs_url, style) in PROVIDERS.items():
        provider = sidecar.PROVIDERS[name]
        assert needs_url == (not provider.base_url)
        assert any(protocol.startswith(f"{style}_") for protocol in provider.protocols)
    assert {*KEYS, "key"} == set(_KEYS)
    assert f"https://{ORIGIN.host}" == BASE_URL


def test_the_sidecar_takes_what_is_written_for_it() -> None:
    routes = check_routes(
        [
            {**GOOD, "key": {"from_env": "X"}, "aliases": ["a"], "timeout": 30, "idle_timeout": 5.5},
            {"name": "b", "provider": "aws-bedrock", "model": "m", "base_url": "https://bedrock-runtime.eu-west-1.x.test"},
            {"name": "s", "provider": "anthropic", "model": "c", "secret": "anthropic", "auth": "bearer"},
            {"name": "local", "provider": "openai", "model": "c", "base_url": "http://10.1.2.3:8000/v1/"},
        ]
    )  # fmt: skip
    assert key_source(routes[0]) == {"from_env": "X"} and key_source(routes[1]) is None
    vault = load_vault(
        json.dumps({"secrets": [{"name": "anthropic", "value": "value", "hosts": ["api.anthropic.com"]}]})
    )
    loaded = load_routes(document(routes, {"main": KEY}), vault)
    assert loaded is not None
    main, bedrock, anthropic, local = loaded.listed
    assert (main.key, main.auth, main.seconds, main.idle_seconds) == (KEY.encode(), "bearer", 30, 5.5)
    assert (bedrock.auth, bedrock.region) == ("aws", "eu-west-1")
    assert (anthropic.auth, anthropic.secret) == ("bearer", "anthropic")
    assert (local.auth, local.base_url, local.origin.tls) == ("none", "http://10.1.2.3:8000/v1", False)
    assert KEY not in repr(main), "a key is in no representation"
    assert document([], {}) == "" and load_routes("", Vault()) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base_url": "https://inference.local/v1"}, "leads to itself"),
        ({"base_url": "https://api.example.com/v1?x=y"}, "base_url"),
        ({"base_url": "https://api.example.com/a/../b"}, "plain segments"),
        ({"base_url": "https://0x7f000001/v1"}, "base_url"),
        ({"base_url": "ftp://api.example.com"}, "base_url"),
        ({"key": "abc"}, "fewer than"),
        ({"key": "line\nbreak"}, "visible ASCII"),
        ({"auth": "digest"}, "auth that is not one of"),
        ({"auth": "bearer", "key": ""}, "neither a secret nor a key"),
        ({"protocols": ["chat"]}, "protocol that is not one of"),
        ({"aliases": ["a b"]}, "alias"),
        ({"timeout": 0.5}, "timeout"),
        ({"idle_timeout": 4000}, "idle_timeout"),
        ({"region": "../x"}, "region"),
        ({"model": "line\nbreak"}, "no model"),
        ({"secret": "gone", "key": ""}, "does not have"),
    ],
)
def test_the_sidecar_has_the_last_word(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RoutesError) as caught:
        load_routes(json.dumps({"routes": [{**GOOD, **change}]}), Vault())
    assert words in str(caught.value) and "'main'" in str(caught.value)
    assert KEY not in str(caught.value)


def test_the_agent_finds_what_its_libraries_look_for() -> None:
    def names(*routes: dict[str, Any]) -> set[str]:
        return set(agent_environment(routes))

    openai, anthropic = {"OPENAI_BASE_URL", "OPENAI_API_KEY"}, {"ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"}
    assert names() == set()
    assert names(GOOD) == openai
    assert names(GOOD, {"provider": "google-vertex-ai"}) == openai | anthropic
    assert names({**GOOD, "protocols": ["anthropic_messages", "model_discovery"]}) == anthropic
    assert "AWS_ENDPOINT_URL_BEDROCK_RUNTIME" in names({"provider": "aws-bedrock"})
    made = agent_environment([GOOD, {"provider": "anthropic"}])
    assert made["OPENAI_BASE_URL"] == "https://inference.local/v1"
    assert made["ANTHROPIC_BASE_URL"] == "https://inference.local"
    assert KEY not in json.dumps(made)


def test_routes_are_handed_over_and_refused_ones_taken_back(host: Host) -> None:
    make_sandbox(host, policy="version: 1\n")
    good, bad = document([GOOD], {"main": KEY}), document([{**GOOD, "model": "WRONG"}], {})

    def run(text: str) -> Any:
        return converge(host.direct, NAMES.proxy, NAMES.tls_volume, inference_config(NAMES, text), 5, False)

    assert run(good).changed and not run(good).changed
    with pytest.raises(Rejected, match="route: wrong"):
        run(bad)
    assert read_current(host.direct, inference_config(NAMES, ""))[INFERENCE] == good


def test_a_difference_shows_nothing_of_them() -> None:
    assert INFERENCE in SECRET
    assert KEY not in json.dumps(_diff(INFERENCE, document([GOOD], {"main": KEY}), ""))
