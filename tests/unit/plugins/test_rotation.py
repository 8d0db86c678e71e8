# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Secrets and policies changed by playbooks, on a host whose podman is not one: what is kept, what goes, what is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.openshell.sandbox.plugins.filter.policy_text import policy_text
from host import NAMES, ROOT, Host, make_sandbox

VALUE = "n0tInAny0utput"
HAD = [
    {"name": "own", "value": f"own-{VALUE}", "hosts": ["own.example"]},
    {"name": "HUB", "value": f"hub-{VALUE}", "places": [{"hosts": ["hub.example"]}], "providers": ["hub"]},
]


@pytest.fixture
def sandbox(host: Host) -> Host:
    """One whose sidecar has a secret of the user's own and one of a provider."""
    make_sandbox(host)
    host.module("sandbox_secrets_file", sandbox_name=NAMES.name, timeout=5, document=json.dumps(HAD))
    return host


def rotate(host: Host, environ: dict[str, str] | None = None, **variables: Any) -> str:
    return run(host, "rotate_secrets", environ, **variables)


def run(host: Host, playbook: str, environ: dict[str, str] | None = None, **variables: Any) -> str:
    """What the playbook prints at the highest verbosity."""
    more = {"openshell_podman_executable": host.executable, "ansible_python_interpreter": sys.executable}
    file = host.directory / "variables.json"
    file.write_text(json.dumps({"sandbox_name": NAMES.name, "openshell_ready_timeout": 5, **more, **variables}))
    command = [Path(sys.executable).with_name("ansible-playbook"), f"playbooks/{playbook}.yml", "-vvvv", "--diff"]
    env = {**os.environ, "ANSIBLE_LOCAL_TEMP": str(host.directory / "tmp"), **(environ or {})}
    done = subprocess.run(
        [*command, "-e", f"@{file}"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert VALUE not in done.stdout + done.stderr
    return done.stdout


def names(host: Host) -> list[str]:
    """The secrets that the sidecar has."""
    config = Path(host.state["volumes"][NAMES.proxy_volume]["Mountpoint"]) / "config"
    return [one["name"] for one in json.loads((config / "secrets.json").read_text() or '{"secrets": []}')["secrets"]]


def test_a_list_that_is_not_given_is_kept_and_an_empty_one_takes_away(sandbox: Host) -> None:
    assert "the secrets are as they were" in rotate(sandbox)
    assert names(sandbox) == ["own", "HUB"]
    assert "the secrets are changed" in rotate(sandbox, openshell_secrets=[])
    assert names(sandbox) == ["HUB"]


def test_the_controllers_variable_is_found_and_what_it_lacks_is_told(sandbox: Host) -> None:
    told = rotate(sandbox, {"OPENAI_API_KEY": f"sk-{VALUE}"}, openshell_providers=["openai", "deepinfra"])
    assert names(sandbox) == ["own", "OPENAI_API_KEY"]
    assert "Notice: provider deepinfra gives its policy only: none of DEEPINFRA_API_KEY is set" in told


def test_a_new_policy_has_the_providers_of_the_old_one_unless_they_are_taken_away(host: Host) -> None:
    host.change("run", json.dumps({"ok": True, "notices": []}))
    make_sandbox(host, policy=policy_text({}, None, ["github"]))
    policy = Path(host.state["volumes"][NAMES.proxy_volume]["Mountpoint"]) / "config/policy.yaml"
    mine = {"version": 1, "network_policies": {"mine": {"endpoints": [{"host": "a.example", "port": 443}]}}}
    run(host, "update_policy", openshell_policy=mine)
    assert list(yaml.safe_load(policy.read_text())["network_policies"]) == ["mine", "_provider_github"]
    run(host, "update_policy", openshell_policy=mine, openshell_providers=[])
    assert list(yaml.safe_load(policy.read_text())["network_policies"]) == ["mine"]
