# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Providers: one file names a service's endpoints, and the policy and the secrets' bindings both follow from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.openshell.sandbox.plugins.filter.policy_text import policy_text
from ansible_collections.openshell.sandbox.plugins.module_utils.secret_entries import (
    Refused,
    check_entries,
    sidecar_entry,
    with_random,
)
from ansible_collections.openshell.sandbox.plugins.plugin_utils.providers import (
    Composed,
    given_providers,
    known,
    load,
    provider_ids,
    secret_entries,
)
from openshell_proxy.credentials.document import load_vault
from openshell_proxy.credentials.vault import Vault
from openshell_proxy.policy import Intent, Policy, PolicyError, Request, load_policy

DEMANDED = [
    "anthropic", "aws", "aws-bedrock", "aws-s3", "claude-code", "codex", "copilot", "cursor", "deepinfra", "github",
    "gitlab", "google-ai-studio", "google-cloud", "google-vertex-ai", "huggingface", "nvidia", "openai",
]  # fmt: skip
MINE: dict[str, Any] = {
    "id": "mine",
    "credentials": {"key": {"env": ["MINE_KEY"]}, "basic": {"env": ["MINE_KEY"], "header": "Authorization", "format": "basic"}},
    "settings": ["MINE_REGION"],
    "endpoints": [
        {"host": "api.mine.example", "protocol": "rest", "access": "read-only", "credentials": ["key"]},
        {"host": "git.mine.example", "port": 8443, "path": "/git/**", "protocol": "rest", "access": "full",
         "enforcement": "enforce", "credentials": ["key", "basic"]},
    ],
}  # fmt: skip


@pytest.fixture
def mine(tmp_path: Path) -> Callable[..., str]:
    """Writes the provider ``mine``, changed at its top level, and tells the directory."""

    def write(**change: Any) -> str:
        content = {key: value for key, value in {**MINE, **change}.items() if value is not None}
        (tmp_path / "mine.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return str(tmp_path)

    return write


def composed(providers: list[Any], environment: dict[str, str], directory: str = "", own: Any = ()) -> Composed:
    return secret_entries(given_providers(providers, directory), check_entries(list(own)), environment)


def vault(found: Composed, environment: dict[str, str], own: Any = ()) -> Vault:
    """What the sidecar makes of it."""
    entries = [sidecar_entry(one, environment.get(one.get("from_env", ""), "a-value-said")) for one in found.entries]
    return load_vault(with_random([*[sidecar_entry(one, one["value"]) for one in own], *entries], ""))


def allows(policy: Policy, url: str, method: str = "GET", port: int = 443) -> bool:
    host, _, path = url.partition("/")
    return policy.decide(Intent(host, port, Request(method, "/" + path, ""))).allowed


def test_the_demanded_ones_are_shipped() -> None:
    assert known() == DEMANDED


@pytest.mark.parametrize("identifier", DEMANDED)
def test_a_shipped_provider_is_good_for_the_engine_and_for_the_sidecar(identifier: str) -> None:
    provider = load(identifier)
    policy = load_policy(policy_text({}, None, [identifier]), composed=True)
    assert not policy.notices
    environment = dict.fromkeys(provider.variables(), "a-value-of-the-controller")
    if identifier == "google-vertex-ai":
        del environment["GOOGLE_SERVICE_ACCOUNT_KEY"]  # the sidecar looks into a key file; test_credentials.py has one
    found = composed([identifier], environment)
    assert not found.notices
    loaded = vault(found, environment)
    for endpoint, names in provider.endpoints:
        host = endpoint["host"].replace("*", "x")
        assert policy.decide(Intent(host, 443)).allowed
        assert (loaded.site(host, 443) is not None) == bool(names)
        if endpoint.get("protocol"):
            assert endpoint["enforcement"] == "enforce"


def test_all_of_them_together_are_neither_ambiguous_nor_at_odds() -> None:
    policy = load_policy(policy_text({}, None, DEMANDED), composed=True)
    assert allows(policy, "api.github.com/repos/a/b")
    environment = {"GITHUB_TOKEN": "ghp_0123456789", "ANTHROPIC_API_KEY": "sk-ant-0123456789"}
    loaded = vault(composed(DEMANDED, environment), environment)
    for host in ("api.github.com", "api.githubcopilot.com", "github.com", "api.anthropic.com"):
        assert loaded.site(host, 443) is not None, host
    assert loaded.site("sentry.io", 443) is None


def test_github_reads_and_its_git_gets_basic_of_itself() -> None:
    policy = load_policy(policy_text({}, None, ["github"]), composed=True)
    assert allows(policy, "github.com/me/it.git/git-upload-pack", "POST")
    assert not allows(policy, "github.com/me/it.git/git-receive-pack", "POST")
    assert not allows(policy, "api.github.com/repos", "POST")
    environment = {"GH_TOKEN": "ghp_0123456789"}
    found = composed(["github"], environment)
    assert [entry["name"] for entry in found.entries] == ["GH_TOKEN", "GH_TOKEN.github"]
    loaded = vault(found, environment)
    site = loaded.site("github.com", 443)
    assert site is not None
    assert [one.injected() for one in site.injecting] == [b"Basic eC1hY2Nlc3MtdG9rZW46Z2hwXzAxMjM0NTY3ODk="]
    api = loaded.site("api.github.com", 443)
    assert api is not None
    assert not api.injecting


def test_a_secret_goes_where_its_provider_says_and_by_no_other_port_or_path(mine: Callable[..., str]) -> None:
    environment = {"MINE_KEY": "mine-0123456789", "MINE_REGION": "north"}
    found = composed(["mine"], environment, mine())
    assert found.settings == {"MINE_REGION": "north"}
    key = vault(found, environment).secrets[0]
    assert key.admits("api.mine.example", 443, "/any")
    assert key.admits("git.mine.example", 8443, "/git/a")
    assert not key.admits("api.mine.example", 8443)
    assert not key.admits("git.mine.example", 443)
    assert not key.admits("git.mine.example", 8443, "/other")
    assert key.providers == {"mine"}


def test_without_a_value_there_is_the_policy_and_a_notice() -> None:
    found = composed(["openai"], {"OPENAI_API_KEY": ""})
    assert not found.entries
    assert found.notices == ["provider openai gives its policy only: none of OPENAI_API_KEY is set on the controller"]


def test_the_users_own_secret_takes_the_place_of_a_providers() -> None:
    own = [{"name": "mine", "env": "GITHUB_TOKEN", "value": "ghp_of-my-own", "hosts": ["github.com"]}]
    found = composed(["github"], {"GITHUB_TOKEN": "ghp_of-the-shell"}, own=own)
    assert not found.entries
    assert not found.notices


def test_a_value_said_for_one_provider_holds_for_all_that_know_the_variable() -> None:
    said = {"id": "github", "secrets": {"GITHUB_TOKEN": {"value": "ghp_said"}}}
    found = composed(["copilot", said], {"GITHUB_TOKEN": "ghp_of-the-shell"})
    assert {entry.get("value") for entry in found.entries} == {"ghp_said"}
    token = found.entries[0]
    assert token["providers"] == ["copilot", "github"]
    other = {"id": "copilot", "secrets": {"GITHUB_TOKEN": {"value": "ghp_other"}}}
    with pytest.raises(Refused, match="somewhere else") as caught:
        composed([said, other], {})
    assert "ghp_" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("github", "is not a list"),
        ([1], "neither the id"),
        ([{"secrets": {}}], "neither the id"),
        (["githb"], "there is no provider 'githb'; did you mean 'github'?"),
        (["forge-of-mine"], "; there are anthropic, "),
        (["forge-of-mine"], "openshell_providers_path names a directory of your own"),
        (["../secrets/files/providers/github"], "there is no provider"),
        (["github", {"id": "github"}], "is there twice"),
        ([{"id": "github", "hosts": []}], "unknown key 'hosts'"),
        ([{"id": "github", "secrets": []}, "x"], "there is no provider 'x'"),
        ([{"id": "github", "secrets": ["GITHUB_TOKEN"]}], "is not a mapping of variables"),
        ([{"id": "github", "secrets": {"GITHUB_TOKN": {"value": "x"}}}], "did you mean 'GITHUB_TOKEN'?"),
        ([{"id": "github", "secrets": {"GITHUB_TOKEN": "v4lue"}}], "exactly one of"),
        ([{"id": "github", "secrets": {"GITHUB_TOKEN": {"value": "v4lue", "file": "x"}}}], "exactly one of"),
        ([{"id": "github", "secrets": {"GITHUB_TOKEN": {"valeu": "v4lue"}}}], "exactly one of"),
    ],
)
def test_a_wrong_list_is_refused_in_a_sentence_without_a_value(given: Any, words: str) -> None:
    with pytest.raises(Refused) as caught:
        given_providers(given)
    assert words in str(caught.value)
    assert "v4lue" not in str(caught.value)
    with pytest.raises(AnsibleFilterError) as filtered:
        policy_text({}, None, given)
    assert str(caught.value) in str(filtered.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "other"}, "not the name of its file"),
        ({"endpoint": []}, "unknown key 'endpoint'; did you mean 'endpoints'?"),
        ({"description": 1}, "description that is not a text"),
        ({"settings": ["A B"]}, "settings that are not"),
        ({"settings": "REGION"}, "settings that are not"),
        ({"credentials": []}, "unknown credential 'key'"),
        ({"credentials": ["key"]}, "credentials that are not a mapping"),
        ({"credentials": {"key": {}}}, "'key' has no env"),
        ({"credentials": {"key": {"env": ["A-B"]}}}, "'key' has no env"),
        ({"credentials": {"key": {"env": ["A"], "headr": "X"}}}, "unknown key 'headr'"),
        ({"credentials": {"key": {"env": ["A"], "header": 1}}}, "header that is not a text"),
        ({"credentials": {"key": {"env": ["A"], "oauth": "x"}}}, "oauth that is not a mapping"),
        ({"credentials": {**MINE["credentials"], "more": {"env": ["A"]}}}, "'more', which goes to no endpoint"),
        ({"endpoints": []}, "no list of endpoints"),
        ({"endpoints": None}, "no list of endpoints"),
        ({"endpoints": ["api.mine.example"]}, "no name, address or wildcard"),
        ({"endpoints": [{"host": "https://api.mine.example"}]}, "no name, address or wildcard"),
        ({"endpoints": [{"host": "api.mine.example", "port": "443"}]}, "not a number from 1 to 65535"),
        ({"endpoints": [{"host": "api.mine.example", "ports": [True]}]}, "not a number from 1 to 65535"),
        ({"endpoints": [{"host": "api.mine.example", "credentials": ["kay"]}]}, "did you mean 'key'?"),
        ({"endpoints": [{"host": "api.mine.example", "credentials": "key"}]}, "unknown credential 'key'"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(mine: Callable[..., str], change: dict[str, Any], words: str) -> None:
    load("mine", mine())
    with pytest.raises(Refused) as caught:
        load("mine", mine(**change))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text("id: [", encoding="utf-8")
    (tmp_path / "text.yml").write_text("text", encoding="utf-8")
    (tmp_path / "bytes.yml").write_bytes(b"\xff")
    for identifier, words in (("mine", "is not YAML"), ("text", "is not a mapping"), ("bytes", "cannot be read")):
        with pytest.raises(Refused, match=words):
            load(identifier, str(tmp_path))
    with pytest.raises(Refused, match="is not a directory"):
        load("mine", str(tmp_path / "none"))


def test_the_users_directory_comes_first(tmp_path: Path) -> None:
    own = {"id": "github", "endpoints": [{"host": "github.mine.example"}]}
    (tmp_path / "github.yml").write_text(yaml.safe_dump(own), encoding="utf-8")
    assert load("github", str(tmp_path)).endpoints[0][0] == {"host": "github.mine.example", "port": 443}
    assert load("openai", str(tmp_path)).id == "openai"


API = {"host": "api.github.com", "port": 443}
REST = {**API, "protocol": "rest", "access": "full"}


@pytest.mark.parametrize(
    "endpoint",
    [
        API,
        REST,
        {**REST, "enforcement": "audit"},
        {**REST, "host": "*.github.com"},
        {**REST, "host": "**.com", "enforcement": "audit", "port": 443},
        {**REST, "tls": "skip"},
        {**REST, "allowed_ips": ["10.1.0.0/16"], "allow_encoded_slash": True},
        {**REST, "request_body_credential_rewrite": True, "websocket_credential_rewrite": True},
        {**REST, "credential_binding": {"provider": "github"}},
        {**API, "protocol": "tcp"},
        {**API, "allowed_ips": ["10.1.0.0/16"]},
        {**REST, "path": "/graphql"},
        {**REST, "path": "/**"},
        {**API, "protocol": "graphql", "access": "full"},
        {**REST, "host": "", "allowed_ips": ["10.1.0.0/16"]},
    ],
    ids=lambda endpoint: json.dumps(endpoint),
)
@pytest.mark.parametrize("default", ["enforce", "audit"])
def test_a_policy_that_names_the_same_host_is_never_ambiguous(endpoint: dict[str, Any], default: Any) -> None:
    if endpoint.get("host") == "**.com":
        endpoint = {**endpoint, "host": "**.github.com"}
    own = {"version": 1, "network_policies": {"own": {"endpoints": [endpoint]}}}
    load_policy(policy_text(own), default_enforcement=default)
    load_policy(policy_text(own, None, ["github", "gitlab"], "", default), default_enforcement=default, composed=True)


def test_rules_of_both_hold_and_the_users_deny_wins() -> None:
    rules = {"rules": [{"allow": {"method": "POST", "path": "/me/it.git/git-receive-pack"}}],
             "deny_rules": [{"method": "GET", "path": "/secret/**"}]}  # fmt: skip
    own = {"host": "github.com", "port": 443, "protocol": "rest", "enforcement": "enforce", **rules}
    text = policy_text({"version": 1, "network_policies": {"own": {"endpoints": [own]}}}, None, ["github"])
    policy = load_policy(text, composed=True)
    assert allows(policy, "github.com/me/it.git/git-receive-pack", "POST")
    assert allows(policy, "github.com/me/it.git/git-upload-pack", "POST")
    assert not allows(policy, "github.com/secret/x")


def test_an_endpoint_elsewhere_or_on_another_path_changes_nothing() -> None:
    own = [{**REST, "enforcement": "audit", "host": "api.other.com"}, {**REST, "enforcement": "audit", "port": 8443},
           {**REST, "enforcement": "audit", "path": "/graphqX"}]  # fmt: skip
    text = policy_text({"version": 1, "network_policies": {"own": {"endpoints": own}}}, None, ["github"])
    kept = yaml.safe_load(text)["network_policies"]["_provider_github"]["endpoints"]
    assert [one["enforcement"] for one in kept] == ["enforce"] * 3


def test_no_policy_of_the_users_own_may_pass_for_a_providers() -> None:
    own = {"version": 1, "network_policies": {"_provider_github": {"endpoints": [API]}}}
    with pytest.raises(AnsibleFilterError, match="'_provider_github' is for openshell_providers to make"):
        policy_text(own)
    with pytest.raises(PolicyError, match="reserved"):
        load_policy(yaml.safe_dump(own))


def test_the_policy_tells_its_providers() -> None:
    assert provider_ids(policy_text({}, None, ["github", "gitlab"])) == ["github", "gitlab"]
    assert provider_ids(policy_text({})) == []
    assert provider_ids("a: [") == []


def test_a_rotation_of_some_keeps_the_others() -> None:
    environment = {"GITHUB_TOKEN": "ghp_0123456789abcdefghij"}
    own = [{"name": "own", "value": "own-0123456789abcdefghij", "hosts": ["own.example"]}]
    provided = [sidecar_entry(one, environment["GITHUB_TOKEN"]) for one in composed(["github"], environment).entries]
    file = with_random([sidecar_entry(own[0], "own-0123456789abcdefghij"), *provided], "")
    names = ["own", "GITHUB_TOKEN", "GITHUB_TOKEN.github"]
    assert named(file) == names
    assert with_random([], file, ["own", "providers"]) == file
    assert named(with_random([sidecar_entry(own[0], "own-new-6789abcdefghij")], file, ["providers"])) == names
    assert named(with_random(provided, file, ["own"])) == names
    assert named(with_random([], file, ["providers"])) == names[1:]
    mine = {"name": "GITHUB_TOKEN", "value": "ghp_mine", "hosts": ["github.com"]}
    assert named(with_random([sidecar_entry(mine, "ghp_mine")], file, ["providers"])) == ["GITHUB_TOKEN"]


def named(file: str) -> list[str]:
    return [one["name"] for one in json.loads(file)["secrets"]]
