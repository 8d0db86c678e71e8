# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The verbs of a sandbox's life between its creation and its end."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Origin, changed, inside, playbook, podman

NAME = "it-verbs"


def good(result: subprocess.CompletedProcess[str], changes: int | None = None) -> subprocess.CompletedProcess[str]:
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert changes is None or changed(result) == changes, result.stdout[-3000:]
    return result


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode != 0, result.stdout[-3000:]
    assert "Traceback" not in result.stdout + result.stderr
    for word in words:
        assert word in result.stdout, result.stdout[-3000:]


def policy(origin: Origin) -> dict[str, Any]:
    endpoint = {"host": origin.address, "port": origin.http, "protocol": "rest", "access": "read-only"}
    return {"version": 1, "network_policies": {"origin": {"endpoints": [endpoint]}}}


def listed(name: str) -> dict[str, Any]:
    """The sandbox's row of list_sandboxes.yml."""
    told = good(playbook("list_sandboxes", openshell_format="json"), 0).stdout
    rows = json.JSONDecoder().raw_decode(told, told.index("[\n    {"))[0]
    return next(row for row in rows if row["name"] == name)


def asked(name: str, origin: Origin, method: str = "GET") -> str:
    """The status that a request of the agent gets."""
    url = f"http://{origin.address}:{origin.http}/hello.txt"
    words = ("curl", "-sS", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}", "-X", method, url)
    return inside(name, *words).stdout


def confined(name: str, origin: Origin) -> bool:
    """Whether the policy holds and nothing goes past the sidecar."""
    url = f"http://{origin.address}:{origin.http}/hello.txt"
    direct = inside(name, "curl", "--noproxy", "*", "-sS", "--max-time", "2", url)
    return (asked(name, origin), asked(name, origin, "POST"), direct.returncode != 0) == ("200", "403", True)


@pytest.fixture(scope="module")
def sandbox(origin: Origin) -> Iterator[str]:
    try:
        good(playbook("create_sandbox", sandbox_name=NAME, openshell_policy=policy(origin)))
        yield NAME
    finally:
        playbook("delete_sandbox", sandbox_name=NAME)


def test_pausing_freezes_the_agent_and_leaves_the_sidecar(sandbox: str, origin: Origin) -> None:
    good(playbook("pause_sandbox", "--check", sandbox_name=sandbox), 1)
    assert inside(sandbox, "true").returncode == 0
    good(playbook("pause_sandbox", sandbox_name=sandbox), 1)
    good(playbook("pause_sandbox", sandbox_name=sandbox), 0)
    row = listed(sandbox)
    assert row["state"] == "paused"
    assert {"name", "host", "state", "image", "policy", "age", "allowed", "denied"} <= set(row)
    good(playbook("unpause_sandbox", sandbox_name=sandbox), 1)
    good(playbook("unpause_sandbox", sandbox_name=sandbox), 0)
    assert confined(sandbox, origin)


def test_restarting_a_paused_one_keeps_what_the_agent_made(sandbox: str, origin: Origin) -> None:
    inside(sandbox, "sh", "-c", "echo kept > /sandbox/file; echo kept > /usr/local/file")
    podman("pause", f"openshell-agent-{sandbox}")
    good(playbook("restart_sandbox", sandbox_name=sandbox), 1)
    assert inside(sandbox, "cat", "/sandbox/file", "/usr/local/file").stdout == "kept\nkept\n"
    assert confined(sandbox, origin)


def test_a_stopped_one_is_told_so(sandbox: str) -> None:
    good(playbook("stop_sandbox", sandbox_name=sandbox), 1)
    assert listed(sandbox)["state"] == "stopped"
    refused(playbook("pause_sandbox", sandbox_name=sandbox), "is stopped; start it with start_sandbox.yml")
    good(playbook("start_sandbox", sandbox_name=sandbox), 1)


def test_a_sandbox_that_is_not_there_is_told_in_one_sentence() -> None:
    for verb in ("restart", "pause", "unpause"):
        refused(playbook(f"{verb}_sandbox", sandbox_name="it-verbs-none"), "there is no sandbox 'it-verbs-none'")
