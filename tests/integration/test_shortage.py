# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the host lacks, a subnet, a registry, its store of secrets, is told in a sentence or made anew."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Origin, changed, inside, ours, playbook, podman

NAME = "it-short"
SECOND = "it-short-2"
KINDS = ("container", "network", "volume", "secret")
NOTHING: dict[str, list[str]] = {kind: [] for kind in KINDS}
POOL = "10.213.77.0/29"


def left(*names: str) -> dict[str, list[str]]:
    return {kind: ours(kind, *names) for kind in KINDS}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    playbook("delete_sandbox", sandbox_name=NAME)
    assert left(NAME) == NOTHING


def told(result: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a run that failed, its line breaks undone."""
    assert result.returncode != 0, result.stdout[-3000:]
    assert "Traceback" not in result.stdout + result.stderr
    said = " ".join(result.stdout.partition("PLAY RECAP")[0].split())
    return said.replace("''", "'").rsplit("Sandbox '", 1)[1]  # YAML doubles quotes within quotes


# -- subnets ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_subnet(sandbox: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Podman has a single subnet to give away; the bridge, which the sandbox that is there keeps, has another."""
    configuration = tmp_path / "containers.conf"
    configuration.write_text(f'[network]\ndefault_subnet_pools = [{{"base" = "{POOL}", "size" = 29}}]\n')
    monkeypatch.setenv("CONTAINERS_CONF", str(configuration))
    yield
    monkeypatch.delenv("CONTAINERS_CONF")
    playbook("delete_sandbox", sandbox_name=SECOND)
    assert left(SECOND) == NOTHING


def test_the_last_subnet_is_used_and_the_next_sandbox_told_that_there_is_none(one_subnet: None) -> None:
    made = playbook("create_sandbox", sandbox_name=NAME)
    assert made.returncode == 0, made.stdout[-3000:]
    assert podman("network", "inspect", "-f", "{{(index .Subnets 0).Subnet}}", f"openshell-sbx-{NAME}").stdout == (
        f"{POOL}\n"
    )
    refused = told(playbook("create_sandbox", sandbox_name=SECOND))
    assert refused.startswith(f"{SECOND}': the step \"Internal network: ")
    assert "every subnet that Podman may give away is in use; delete sandboxes, run prune.yml, or widen" in refused
    assert left(SECOND) == NOTHING
    assert changed(playbook("create_sandbox", sandbox_name=NAME)) == 0

    assert playbook("delete_sandbox", sandbox_name=NAME).returncode == 0
    again = playbook("create_sandbox", sandbox_name=SECOND)
    assert again.returncode == 0, again.stdout[-3000:]
    assert inside(SECOND, "true").returncode == 0


# -- the secret store ------------------------------------------------------------------------------------------------


def answers(origin: Origin) -> str:
    """What the agent gets over TLS, which its sidecar ends with a certificate of the authority's."""
    return inside(NAME, "curl", "-sS", f"https://{origin.address}:{origin.https}/hello.txt").stdout


@pytest.mark.parametrize("scope", ["host", "sandbox"])
def test_an_emptied_secret_store_is_filled_again(origin: Origin, scope: str) -> None:
    endpoint = {"host": origin.address, "port": origin.https, "protocol": "rest", "enforcement": "enforce"}
    wanted = {
        "sandbox_name": NAME,
        "openshell_ca_scope": scope,
        "openshell_upstream_ca_bundle": str(origin.ca_bundle),
        "openshell_policy": {
            "version": 1,
            "network_policies": {"origin": {"endpoints": [{**endpoint, "access": "read-only"}]}},
        },
    }
    assert playbook("create_sandbox", **wanted).returncode == 0
    assert answers(origin) == "hello from outside\n"
    secret = "openshell-authority" if scope == "host" else f"openshell-authority-{NAME}"
    podman("secret", "rm", secret)

    podman("restart", "--time", "2", f"openshell-proxy-{NAME}")
    assert playbook("start_sandbox", sandbox_name=NAME).returncode == 0  # waits until the sidecar is ready
    assert answers(origin) == "hello from outside\n"
    again = playbook("create_sandbox", **wanted)
    assert again.returncode == 0, again.stdout[-3000:]
    assert podman("secret", "inspect", "-f", "{{.Spec.Name}}", secret).stdout == f"{secret}\n"
    assert answers(origin) == "hello from outside\n"
    assert changed(playbook("create_sandbox", **wanted)) == 0


# -- registries ------------------------------------------------------------------------------------------------------


@pytest.fixture
def closed() -> Iterator[str]:
    """``host:port`` that refuses connections: bound by us, so that nobody else listens there."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def test_a_registry_that_is_down_is_named_and_nothing_is_made(closed: str) -> None:
    refused = told(playbook("create_sandbox", sandbox_name=NAME, openshell_image=f"{closed}/team/agent:1"))
    assert f"The image {closed}/team/agent:1 cannot be pulled: " in refused
    assert "connection refused" in refused
    assert "correct openshell_image" in refused
    assert left(NAME) == NOTHING


def test_a_base_image_whose_registry_is_down_is_named_and_nothing_is_made(closed: str) -> None:
    wanted = {"openshell_base_image": f"{closed}/team/base:1", "openshell_base_image_source": "pull"}
    refused = told(playbook("create_sandbox", sandbox_name=NAME, **wanted))
    assert f"{closed}/team/base:1" in refused
    assert "connection refused" in refused
    assert left(NAME) == NOTHING
