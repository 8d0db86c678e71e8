# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps of the role sandbox: what they are made of, and what comes of one that fails in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleActionFail
from ansible_collections.openshell.sandbox.plugins.action.steps import action_of
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import runtime_directory
from host import Host

ROOT = Path(__file__).resolve().parents[4]
VARIABLES = yaml.safe_load((ROOT / "roles/sandbox/vars/main.yml").read_text())
STEPS = [*VARIABLES["_openshell_look"], *VARIABLES["_openshell_go"]]


@pytest.mark.parametrize("step", STEPS)
def test_a_steps_file_holds_steps_only(step: str) -> None:
    role, file = step.split("/")
    tasks = yaml.safe_load((ROOT / f"roles/{role}/tasks/{file}.yml").read_text())
    assert tasks
    for task in tasks:
        assert action_of(task)
        assert task["name"]


@pytest.mark.parametrize(
    "task",
    [
        {"ansible.builtin.command": "true"},
        {"openshell.sandbox.report": {"text": "x"}, "loop": [1]},
        {"openshell.sandbox.report": {"text": "x"}, "become": True},
        {"block": []},
        {},
    ],
    ids=["other module", "loop", "become", "block", "nothing"],
)
def test_what_cannot_be_a_step_is_refused_and_not_left_out(task: dict[str, Any]) -> None:
    with pytest.raises(AnsibleActionFail, match="cannot be a step"):
        action_of(task)


def test_nothing_is_installed_before_the_variables_are_judged() -> None:
    judged, installed = yaml.safe_load((ROOT / "roles/sandbox/tasks/packages.yml").read_text())
    assert judged["openshell.sandbox.steps"] == {"go": "{{ _openshell_look + _openshell_go }}", "go_when": False}
    assert installed["ansible.builtin.include_role"] == {"name": "openshell.sandbox.host"}


def test_steps_that_are_not_to_be_taken_are_judged(host: Host) -> None:
    wanted = {"sandbox_name": "demo", "openshell_sandbox_id": "", "take": False}
    steps = ["internal_network/main", "readiness_wait/main"]
    assert play(host, *steps, **wanted)["changed"] is False
    assert "openshell_ready_timeout" in play(host, *steps, **wanted, openshell_ready_timeout="soon")["msg"]
    assert {call[1] for call in host.calls()} <= {"inspect", "ls"}


def play(host: Host, *go: str, take: bool = True, **variables: Any) -> Any:
    """What the task registers, in a play of its own below the role sandbox."""
    out = host.directory / "result.json"
    tasks = [
        {"openshell.sandbox.steps": {"go": list(go), "go_when": take}, "register": "found", "ignore_errors": True},
        {"ansible.builtin.copy": {"content": "{{ found | to_json }}", "dest": str(out)}},
    ]
    mine = {"role_path": str(ROOT / "roles/sandbox"), "openshell_podman_executable": host.executable, **variables}
    file = host.directory / "play.yml"
    file.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "vars": mine, "tasks": tasks}]))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), str(file)]
    environ = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "playbooks/collections"),
        "HOME": str(host.directory),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False, timeout=120)
    assert out.exists(), done.stdout + done.stderr
    return json.loads(out.read_text())


def test_steps_hand_on_what_they_find_out(host: Host) -> None:
    found = play(host, "internal_network/main", sandbox_name="demo", openshell_sandbox_id="")
    assert found["changed"] is True
    assert found["facts"]["openshell_proxy_ip"] == "10.89.0.2"
    assert found["changed_steps"] == ["Internal network: make it, without a route and without DNS"]
    assert found["diff"][0]["after_header"] == "openshell-sbx-demo"


def test_a_failure_names_its_step_and_what_was_made(host: Host) -> None:
    host.fail("secret inspect", "Error: out of order", times=9)
    wanted = {"sandbox_name": "demo", "openshell_sandbox_id": "", "openshell_proxy_image_id": "b" * 64}
    found = play(host, "internal_network/main", "authority/main", **wanted)
    assert found["failed"] is True
    assert found["step"] == "Authority: have a certificate authority"
    assert "out of order" in found["msg"]
    assert found["created"] == [
        {"kind": "network", "name": "openshell-sbx-demo"},
        {"kind": "volume", "name": "openshell-workspace-demo"},
    ]


def test_variables_are_judged_before_anything_is_made(host: Host) -> None:
    wanted = {"sandbox_name": "demo", "openshell_sandbox_id": "", "openshell_ready_timeout": "soon"}
    found = play(host, "internal_network/main", "readiness_wait/main", **wanted)
    assert found["failed"] is True
    assert "openshell_ready_timeout" in found["msg"]
    assert found["created"] == []
    assert {call[1] for call in host.calls()} <= {"inspect", "ls"}  # looked at while they were judged


def test_a_lock_that_cannot_be_had_is_a_sentence(host: Host) -> None:
    name = f"no-lock-{os.getpid()}"
    lock = Path(runtime_directory()) / "openshell" / f"sandbox-{name}.lock"
    lock.mkdir(parents=True)  # a directory cannot be opened for writing
    try:
        found = play(host, "internal_network/main", sandbox_name=name, openshell_sandbox_id="")
    finally:
        lock.rmdir()
    assert (found["failed"], found["created"]) == (True, [])
    assert "cannot be used for locks" in found["msg"]
    assert "Traceback" not in json.dumps(found)
