# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Inference in real sandboxes: official libraries with nothing but their environment, and keys that are seen nowhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MAIN, Origin, audit, inside, playbook, podman
from model_server import WORDS, ModelServer

NAME = "it-inference"
PROXY, AGENT = f"openshell-proxy-{NAME}", f"openshell-agent-{NAME}"
# What is searched for is the part that all planted keys share.
MARKER = "p1antedROUTEkey"
FIRST, SECOND = f"sk-{MARKER}-first-0001", f"sk-{MARKER}-second-002"
SAID = "".join(WORDS)

SCRIPT = """
import anthropic, json, openai
told = {}
chat = {"model": "whatever", "messages": [{"role": "user", "content": "hi"}]}
client = openai.OpenAI()
told["chat"] = client.chat.completions.create(**chat).choices[0].message.content
stream = client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True})
told["chat_stream"] = "".join(chunk.choices[0].delta.content for chunk in stream if chunk.choices)
told["embedding"] = client.embeddings.create(model="gpt", input="x", encoding_format="float").data[0].embedding
told["models"] = [model.id for model in client.models.list()]
told["model"] = client.models.retrieve("small").id
try:
    client.chat.completions.create(**{**chat, "model": "wrong"})
except openai.AuthenticationError as error:
    told["refused"] = error.message
message = {"model": "claude-of-its-own", "max_tokens": 9, "messages": chat["messages"]}
client = anthropic.Anthropic()
told["message"] = client.messages.create(**message).content[0].text
with client.messages.stream(**message) as stream:
    told["message_stream"] = "".join(stream.text_stream)
told["anthropic_models"] = [model.id for model in client.models.list()]
print(json.dumps(told))
"""


def given(directory: Path, routes: list[dict[str, object]]) -> str:
    """A variables file, as a vault would be: what a person types on the command line is an argument."""
    file = directory / "inference.json"
    file.write_text(json.dumps({"openshell_inference": routes}))
    return f"@{file}"


def routes(server: ModelServer, key: str) -> list[dict[str, object]]:
    openai = {"provider": "openai", "base_url": server.base_url, "model": "real-gpt"}
    return [
        {**openai, "name": "gpt", "aliases": ["small"], "key": key},
        {**openai, "name": "wrong", "key": f"{key}-wrong"},
        {"name": "claude", "provider": "anthropic", "base_url": server.base_url, "model": "real-claude", "key": key},
    ]


@pytest.fixture(scope="module")
def server(origin: Origin) -> ModelServer:
    return ModelServer(origin.address, origin.context, FIRST)


@pytest.fixture(scope="module")
def made(origin: Origin, server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A sandbox with routes and without a policy for the server; what its creation printed at the highest verbosity."""
    variables = {
        "sandbox_name": NAME,
        "openshell_allow_host_registries": True,
        "openshell_upstream_ca_bundle": str(origin.ca_bundle),
    }
    file = given(tmp_path_factory.mktemp("variables"), routes(server, FIRST))
    try:
        result = playbook("create_sandbox", "-vvvv", "--diff", "-e", file, **variables)
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
        yield result.stdout + result.stderr
    finally:
        playbook("delete_sandbox", sandbox_name=NAME)


def test_the_official_libraries_work_with_their_environment_alone(made: str, server: ModelServer) -> None:
    installed = inside(NAME, "pip", "install", "-q", "openai", "anthropic")
    assert installed.returncode == 0, installed.stderr[-2000:]
    done = inside(NAME, "python3", "-c", SCRIPT)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert MARKER not in done.stdout
    assert "incorrect key [CREDENTIAL]" in told.pop("refused")
    names = ["real-gpt", "gpt", "small", "wrong", "real-claude", "claude"]
    assert told == {
        "chat": SAID, "chat_stream": SAID, "embedding": [0.5, 0.25], "message": SAID, "message_stream": SAID,
        "models": names, "anthropic_models": names, "model": "small",
    }  # fmt: skip
    assert {body["model"] for _, _, body in server.seen} == {"real-gpt", "real-claude"}
    lines = [one["unmapped"]["inference"] for one in audit(NAME) if "inference" in one.get("unmapped", {})]  # type: ignore[operator, index]
    counted = [(one["protocol"], one["stream"], one["input_tokens"], one["output_tokens"]) for one in lines]
    assert ("openai_chat_completions", False, 12, 3) in counted
    assert ("openai_chat_completions", True, 12, 3) in counted
    assert ("anthropic_messages", True, 21, 3) in counted


def test_a_tool_that_knows_of_no_proxy_gets_there_too(made: str) -> None:
    done = inside(
        NAME, "sh", "-c", "unset $(env | grep -i _proxy | cut -d= -f1); curl -sS https://inference.local/v1/models"
    )
    assert [one["id"] for one in json.loads(done.stdout)["data"]][:2] == ["real-gpt", "gpt"], done.stderr


def test_the_key_is_in_no_output_and_on_the_sidecars_volume_alone(made: str) -> None:
    assert "Sandbox: take the steps" in made and MARKER not in made
    mountpoint = Path(
        podman("volume", "inspect", "--format", "{{.Mountpoint}}", f"openshell-proxy-{NAME}").stdout.strip()
    )
    held = [
        file.relative_to(mountpoint) for file in mountpoint.rglob("*") if file.is_file() and MARKER in file.read_text()
    ]
    assert held == [Path("config/inference.json")]
    assert (mountpoint / held[0]).stat().st_mode & 0o777 == 0o600
    told = [
        podman("inspect", PROXY, AGENT).stdout,
        podman("logs", PROXY).stdout + podman("logs", PROXY).stderr,
        podman("exec", PROXY, "openshell-proxy", "status").stdout,
    ]
    assert MARKER not in "\n".join(told)
    search = f"grep -rslF {MARKER} / --exclude-dir=proc --exclude-dir=sys; grep -lF {MARKER} /proc/[0-9]*/environ"
    found = inside(NAME, "sh", "-c", f"echo {MARKER} > /var/tmp/control; {search}").stdout.split()
    inside(NAME, "rm", "/var/tmp/control")
    assert found == ["/var/tmp/control"]


def test_another_sandbox_has_its_own_routes_and_key(
    made: str, sandbox: str, origin: Origin, server: ModelServer, tmp_path: Path
) -> None:
    """It gets them while it runs; the first sandbox's are as they were, and bad ones change nothing."""
    ask = ["curl", "-sS", "https://inference.local/v1/chat/completions", "-d", '{"model": "x", "messages": []}']
    assert "cluster inference is not configured" in inside(MAIN, *ask).stdout
    other = ModelServer(origin.address, origin.context, SECOND)
    route = {"name": "other", "provider": "openai", "base_url": other.base_url, "model": "other-model", "key": SECOND}
    started = podman("inspect", "--format", "{{.State.StartedAt}}", f"openshell-proxy-{MAIN}").stdout
    try:
        result = playbook("update_inference", "-vvvv", "--diff", "-e", given(tmp_path, [route]), sandbox_name=MAIN)
        assert result.returncode == 0, result.stdout[-3000:]
        assert MARKER not in result.stdout + result.stderr
        asked = len(server.seen)
        assert json.loads(inside(MAIN, *ask).stdout)["model"] == "other-model"
        assert [body["model"] for _, _, body in other.seen] == ["other-model"] and len(server.seen) == asked
        assert json.loads(inside(NAME, *ask).stdout)["model"] == "real-gpt"
        bad = {**route, "base_url": "https://inference.local/v1"}
        refused = playbook("update_inference", "-vvvv", "-e", given(tmp_path, [bad]), sandbox_name=MAIN)
        assert refused.returncode != 0 and "leads to itself" in refused.stdout
        assert MARKER not in refused.stdout + refused.stderr
        assert json.loads(inside(MAIN, *ask).stdout)["model"] == "other-model"
    finally:
        assert playbook("update_inference", sandbox_name=MAIN).returncode == 0
    assert "cluster inference is not configured" in inside(MAIN, *ask).stdout
    assert podman("inspect", "--format", "{{.State.StartedAt}}", f"openshell-proxy-{MAIN}").stdout == started


def test_bad_routes_are_refused_before_anything_is_created(tmp_path: Path) -> None:
    route = {"name": "main", "provider": "closedai", "model": "m", "key": FIRST}
    result = playbook("create_sandbox", "-vvvv", "-e", given(tmp_path, [route]), sandbox_name="it-refused")
    assert result.returncode != 0
    assert "inference route 'main' has a provider that is not one of" in result.stdout.replace("''", "'")
    assert MARKER not in result.stdout + result.stderr
    assert not podman("ps", "-a", "--filter", "name=it-refused", "--format", "{{.Names}}").stdout


def test_check_mode_tells_of_routes_and_secrets_that_have_no_sidecar_yet(tmp_path: Path) -> None:
    file = tmp_path / "variables.json"
    route = {"name": "main", "provider": "openai", "model": "m", "secret": "key"}
    secret = {"name": "key", "value": FIRST, "hosts": ["api.openai.com"]}
    file.write_text(json.dumps({"openshell_inference": [route], "openshell_secrets": [secret]}))
    checked = playbook("create_sandbox", "--check", "--diff", "-vvvv", "-e", f"@{file}", sandbox_name="it-check")
    assert checked.returncode == 0, checked.stdout[-3000:]
    assert MARKER not in checked.stdout + checked.stderr
    assert not podman("ps", "-a", "--filter", "name=it-check", "--format", "{{.Names}}").stdout
