# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Providers in a real sandbox: git that demands a token, storage that checks signatures, OAuth; real clients inside."""

from __future__ import annotations

import http.server
import json
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import yaml
from conftest import Origin, inside, playbook, podman
from services import https, token_git
from signatures import Storage

NAME = "it-providers"
MARKER = "pr0viderMARKERvalue"
TOKEN, KEY_ID, SECRET_KEY = f"ghp_{MARKER}token", f"AKIA{MARKER}", f"{MARKER}/secret+key"
REFRESH, ACCESS = f"rt_{MARKER}refresh", f"at_{MARKER}access"


class OAuth(http.server.BaseHTTPRequestHandler):
    """``/token`` sells :data:`ACCESS` for :data:`REFRESH`, ``/resource`` is for who has it."""

    protocol_version = "HTTP/1.1"
    sold = 0

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        good = self.path == "/token" and form["refresh_token"] == [REFRESH]
        type(self).sold += good
        self._answer(200 if good else 400, {"access_token": ACCESS, "expires_in": 3600} if good else {"error": "x"})

    def do_GET(self) -> None:
        good = self.path == "/resource" and self.headers["Authorization"] == f"Bearer {ACCESS}"
        self._answer(200 if good else 401, {"good": good, "you": self.headers["Authorization"]})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Services:
    """The ports of what the providers lead to, and the providers themselves, as files."""

    def __init__(self, origin: Origin, directory: Path) -> None:
        self.address, self.directory = origin.address, directory
        context: ssl.SSLContext = origin.context
        self.forge = token_git(directory / "forge", origin.address, context, TOKEN)
        self.hub = token_git(directory / "hub", origin.address, context, TOKEN)
        self.storage = https(type("It", (Storage,), {"keys": {KEY_ID: SECRET_KEY}}), origin.address, context)
        self.oauth = https(OAuth, origin.address, context)
        self.write("forge", self.forge, {"token": ["FORGE_TOKEN"]}, git="FORGE_TOKEN")
        self.write("hub", self.hub, {"token": ["HUB_TOKEN"]})
        signing = {"credential_signing": "sigv4", "signing_service": "s3"}
        self.write("storage", self.storage, {"id": ["AWS_ACCESS_KEY_ID"], "key": ["AWS_SECRET_ACCESS_KEY"]}, **signing)
        bought = {"grant": "refresh_token", "token_url": f"https://{origin.address}:{self.oauth}/token"}
        self.write("oauth", self.oauth, {"token": ["OAUTH_TOKEN"]}, oauth=bought)

    def write(
        self, name: str, port: int, credentials: dict[str, list[str]], git: str = "", oauth: Any = None, **more: Any
    ) -> None:
        content: dict[str, Any] = {"id": name, "credentials": {key: {"env": env} for key, env in credentials.items()}}
        if git:
            basic = {"header": "Authorization", "format": "basic", "username": "x-access-token"}
            content["credentials"]["git"] = {"env": [git], **basic}
        if oauth:
            content["credentials"]["token"]["oauth"] = oauth
        endpoint = {"host": self.address, "port": port, "protocol": "rest", "access": "full", "enforcement": "enforce"}
        content["endpoints"] = [{**endpoint, **more, "credentials": sorted(content["credentials"])}]
        (self.directory / f"{name}.yml").write_text(yaml.safe_dump(content))

    def variables(self, **more: Any) -> dict[str, Any]:
        return {"sandbox_name": NAME, "openshell_providers_path": str(self.directory), **more}

    def given(self, name: str, **content: Any) -> str:
        """A variables file, as a vault would be."""
        file = self.directory / f"{name}.json"
        file.write_text(json.dumps(content))
        return f"@{file}"


PROVIDERS = [
    "openai",
    {"id": "forge", "secrets": {"FORGE_TOKEN": {"value": TOKEN}}},
    {"id": "hub", "secrets": {"HUB_TOKEN": {"value": TOKEN}}},
    {
        "id": "storage",
        "secrets": {"AWS_ACCESS_KEY_ID": {"value": KEY_ID}, "AWS_SECRET_ACCESS_KEY": {"value": SECRET_KEY}},
    },
    {"id": "oauth", "secrets": {"OAUTH_TOKEN": {"value": REFRESH}}},
]


@pytest.fixture(scope="module")
def services(origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> Services:
    return Services(origin, tmp_path_factory.mktemp("providers"))


@pytest.fixture(scope="module")
def made(origin: Origin, services: Services) -> Iterator[str]:
    """What creation printed at the highest verbosity."""
    more = {"openshell_allow_host_registries": True, "openshell_upstream_ca_bundle": str(origin.ca_bundle)}
    try:
        given = services.given("providers", openshell_providers=PROVIDERS)
        result = playbook("create_sandbox", "-vvvv", "--diff", "-e", given, **services.variables(**more))
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
        yield result.stdout + result.stderr
    finally:
        playbook("delete_sandbox", sandbox_name=NAME)


def test_creation_says_what_is_missing_and_shows_no_secret(made: str) -> None:
    assert "Notice: provider openai gives its policy only: none of OPENAI_API_KEY is set" in made
    assert MARKER not in made
    environment = inside(NAME, "env").stdout
    assert MARKER not in environment
    for variable in ("FORGE_TOKEN", "HUB_TOKEN", "AWS_ACCESS_KEY_ID", "OAUTH_TOKEN"):
        assert f"{variable}=openshell:resolve:env:{variable}\n" in environment


def cloned_and_pushed(url: str, directory: str, options: str = "") -> subprocess.CompletedProcess[str]:
    work = f"git {options} -C {directory} -c user.name=t -c user.email=t@example.com"
    script = (
        f"rm -rf {directory} && git {options} clone -q {url} {directory} && echo {directory} > {directory}/file"
        f" && {work} add . && {work} commit -qm one && {work} push -q origin HEAD:main"
    )
    return inside(NAME, "sh", "-ec", script)


def pushed(services: Services, forge: str) -> str:
    repository = str(services.directory / forge / "pushed.git")
    return subprocess.run(
        ["git", "-C", repository, "show", "main:file"], text=True, capture_output=True, check=True
    ).stdout


def test_git_gets_a_token_that_it_does_not_know_of(made: str, services: Services) -> None:
    done = cloned_and_pushed(f"https://{services.address}:{services.forge}/pushed.git", "/tmp/forge")
    assert done.returncode == 0, done.stderr
    assert pushed(services, "forge") == "/tmp/forge\n"


def test_git_answers_a_demand_with_the_placeholder(made: str, services: Services) -> None:
    url = f"https://{services.address}:{services.hub}/pushed.git"
    refused = inside(NAME, "env", "GIT_TERMINAL_PROMPT=0", "git", "ls-remote", url)
    assert "could not read Username" in refused.stderr
    helper = """-c credential.helper='!f() { echo username=x-access-token; echo "password=$HUB_TOKEN"; }; f'"""
    done = cloned_and_pushed(url, "/tmp/hub", helper)
    assert done.returncode == 0, done.stderr
    assert pushed(services, "hub") == "/tmp/hub\n"


def test_storage_takes_what_the_sidecar_signs(made: str, services: Services) -> None:
    url = f"https://{services.address}:{services.storage}/bucket/a%20b?x-id=Put&empty"
    signing = '--aws-sigv4 aws:amz:eu-north-1:s3 --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY"'
    script = f"echo content > /tmp/up && curl -sS {signing} -H 'x-amz-meta-of: us' -T /tmp/up '{url}' && curl -sS {signing} '{url}'"
    done = inside(NAME, "sh", "-ec", script)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told == [
        {"good": True, "region": "eu-north-1", "bytes": 8},
        {"good": True, "region": "eu-north-1", "bytes": 0},
    ]
    assert MARKER not in done.stdout
    outside = inside(NAME, "sh", "-ec", f"curl -sS {signing} https://{services.address}:{services.hub}/")
    assert "good" not in outside.stdout


@pytest.mark.parametrize(
    "asked",
    [
        'curl -sS -d grant_type=refresh_token --data-urlencode "refresh_token=$OAUTH_TOKEN"',
        """curl -sS -H 'Content-Type: application/json' -d '{"refresh_token": "'$OAUTH_TOKEN'"}'""",
    ],
    ids=["form", "json"],
)
def test_a_client_renews_its_token_and_never_has_one(made: str, services: Services, asked: str) -> None:
    origin = f"https://{services.address}:{services.oauth}"
    got = json.loads(inside(NAME, "sh", "-ec", f"{asked} {origin}/token").stdout)
    assert got["access_token"] == got["refresh_token"] == "openshell:resolve:env:OAUTH_TOKEN"
    used = inside(NAME, "curl", "-sS", "-H", f"Authorization: Bearer {got['access_token']}", f"{origin}/resource")
    told = json.loads(used.stdout)
    assert told["good"], used.stdout + used.stderr
    assert MARKER not in used.stdout
    assert OAuth.sold == 1


def generation() -> int:
    return int(json.loads(podman("exec", f"openshell-proxy-{NAME}", "openshell-proxy", "status").stdout)["generation"])


def still_good(services: Services) -> None:
    url = f"https://{services.address}:{services.forge}/pushed.git"
    done = inside(NAME, "git", "ls-remote", url)
    assert done.returncode == 0, done.stderr


def test_a_new_policy_keeps_the_providers(made: str, services: Services) -> None:
    endpoint = {"host": services.address, "port": services.forge, "protocol": "rest", "enforcement": "enforce", "access": "read-only",
                "deny_rules": [{"method": "POST", "path": "/**/git-receive-pack"}]}  # fmt: skip
    policy = {"version": 1, "network_policies": {"mine": {"endpoints": [endpoint]}}}
    result = playbook("update_policy", **services.variables(openshell_policy=policy))
    assert result.returncode == 0, result.stdout[-3000:]
    still_good(services)
    refused = cloned_and_pushed(f"https://{services.address}:{services.forge}/pushed.git", "/tmp/again")
    assert refused.returncode != 0
    assert "403" in refused.stderr


def test_a_rotation_of_other_secrets_keeps_those_of_providers(made: str, services: Services) -> None:
    own = [{"name": "own", "value": f"own-{MARKER}", "hosts": ["own.example.com"]}]
    before = generation()
    result = playbook("rotate_secrets", "-e", services.given("own", openshell_secrets=own), sandbox_name=NAME)
    assert result.returncode == 0, result.stdout[-3000:]
    assert MARKER not in result.stdout + result.stderr
    assert generation() == before + 1
    still_good(services)


def test_making_it_again_changes_policy_and_secrets_in_one_generation(
    made: str, origin: Origin, services: Services
) -> None:
    before = generation()
    more = {"openshell_allow_host_registries": True, "openshell_upstream_ca_bundle": str(origin.ca_bundle)}
    given = services.given("providers", openshell_providers=PROVIDERS[1:])
    result = playbook("create_sandbox", "-e", given, **services.variables(**more))
    assert result.returncode == 0, result.stdout[-3000:]
    assert generation() == before + 1
    still_good(services)


def test_an_unknown_provider_is_refused_before_anything_is_created(services: Services) -> None:
    result = playbook(
        "create_sandbox", **{**services.variables(), "sandbox_name": "it-refused", "openshell_providers": ["githb"]}
    )
    assert result.returncode != 0
    assert "there is no provider 'githb'; did you mean 'github'?" in result.stdout.replace("''", "'")
    assert not podman("ps", "-a", "--filter", "name=it-refused", "--format", "{{.Names}}").stdout


def test_a_providers_policy_is_checked_and_explained_without_a_sandbox() -> None:
    asked = {"method": "POST", "url": "https://github.com/me/it.git/git-upload-pack"}
    told = playbook("explain_policy", openshell_providers=["github"], **asked)
    assert "allow POST github.com:443/me/it.git/git-upload-pack" in told.stdout, told.stdout[-2000:]
    assert "_provider_github" in told.stdout
    checked = playbook("check_policy", openshell_providers=["github", "aws-s3"])
    assert "The policy is good." in checked.stdout, checked.stdout[-2000:]
