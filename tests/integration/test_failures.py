# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What fails says which step and why, and leaves nothing; what is cut short is taken up again."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, changed, inside, ours, playbook, podman

NAME = "it-fail"
KINDS = ("container", "network", "volume", "secret")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    playbook("delete_sandbox", sandbox_name=NAME)
    assert {kind: ours(kind, NAME) for kind in KINDS} == {kind: [] for kind in KINDS}


@pytest.fixture
def empty_image() -> Iterator[str]:
    """An image without a single file: its container can be created and never started."""
    name = "localhost/it-empty:latest"
    archive = io.BytesIO()
    tarfile.open(fileobj=archive, mode="w").close()
    subprocess.run(["podman", "import", "-q", "-", name], input=archive.getvalue(), check=True, capture_output=True)
    yield name
    podman("rmi", "--force", name, check=False)


def _nothing_is_left() -> None:
    assert {kind: ours(kind, NAME) for kind in KINDS} == {kind: [] for kind in KINDS}


def test_an_agent_that_cannot_start_leaves_nothing(empty_image: str) -> None:
    failed = playbook("create_sandbox", sandbox_name=NAME, openshell_image=empty_image)
    assert failed.returncode != 0
    assert f"Sandbox '{NAME}': the step \"" in failed.stdout
    assert "Agent" in failed.stdout.rsplit("the step", 1)[1]
    _nothing_is_left()


def test_a_sidecar_that_dies_is_quoted() -> None:
    failed = playbook("create_sandbox", sandbox_name=NAME, openshell_proxy_memory="14m", openshell_ready_timeout=8)
    assert failed.returncode != 0
    said = failed.stdout.rsplit("the step", 1)[1]
    assert "idecar" in said
    _nothing_is_left()


def test_a_failed_change_keeps_the_sandbox_that_was_there(empty_image: str) -> None:
    assert playbook("create_sandbox", sandbox_name=NAME).returncode == 0
    assert inside(NAME, "sh", "-c", "echo kept > /sandbox/work").returncode == 0
    before = podman("inspect", "-f", "{{.Id}}", f"openshell-agent-{NAME}").stdout
    failed = playbook("create_sandbox", sandbox_name=NAME, openshell_image=empty_image)
    assert failed.returncode != 0
    assert podman("inspect", "-f", "{{.Id}} {{.State.Running}}", f"openshell-agent-{NAME}").stdout == (
        before.strip() + " true\n"
    )
    assert inside(NAME, "cat", "/sandbox/work").stdout == "kept\n"


@pytest.mark.parametrize("reached", ["network", "openshell-proxy", "openshell-agent"])
def test_an_interrupted_creation_is_taken_up_again(reached: str) -> None:
    command = [str(ROOT / ".venv/bin/ansible-playbook"), "playbooks/create_sandbox.yml", "-e", f"sandbox_name={NAME}"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        kind = "network" if reached == "network" else "container"
        prefix = "openshell-sbx" if reached == "network" else reached
        deadline = time.monotonic() + 120
        while f"{prefix}-{NAME}" not in ours(kind, NAME):
            assert process.poll() is None and time.monotonic() < deadline, "it never came so far"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    again = playbook("create_sandbox", sandbox_name=NAME)
    assert again.returncode == 0, again.stdout[-3000:]
    assert inside(NAME, "true").returncode == 0
    third = playbook("create_sandbox", sandbox_name=NAME)
    assert changed(third) == 0, third.stdout


@pytest.mark.parametrize("source", ["/", "/proc", "/sys", "/dev/shm", "/etc/ssh", "/run/podman/podman.sock"])
def test_a_mount_that_would_open_the_host_is_refused(source: str) -> None:
    refused = playbook(
        "create_sandbox",
        sandbox_name=NAME,
        openshell_mounts=[{"source": source, "target": "/mnt/it", "read_only": True}],
    )
    assert refused.returncode != 0
    assert source in refused.stdout.rsplit("the step", 1)[1]
    _nothing_is_left()


def test_a_mount_that_was_asked_for_is_there(tmp_path: Path) -> None:
    (tmp_path / "given.txt").write_text("given\n")
    os.chmod(tmp_path, 0o755)
    for above in list(tmp_path.parents)[:-2]:  # all below /tmp: pytest keeps its own to itself
        os.chmod(above, 0o755)
    made = playbook(
        "create_sandbox",
        sandbox_name=NAME,
        openshell_mounts=[{"source": str(tmp_path), "target": "/mnt/it", "read_only": True}],
    )
    assert made.returncode == 0, made.stdout[-3000:]
    assert inside(NAME, "cat", "/mnt/it/given.txt").stdout == "given\n"
    assert inside(NAME, "touch", "/mnt/it/other").returncode != 0


def test_a_name_that_is_not_ours_is_left_alone(empty_image: str) -> None:
    theirs = f"openshell-agent-{NAME}"
    podman("create", "--name", theirs, "--network", "none", empty_image, "nothing")
    try:
        refused = playbook("create_sandbox", sandbox_name=NAME)
        assert refused.returncode != 0
        assert theirs in refused.stdout
        deleted = playbook("delete_sandbox", sandbox_name=NAME)
        assert theirs in podman("ps", "-a", "--format", "{{.Names}}").stdout.split(), deleted.stdout
    finally:
        podman("rm", "--force", theirs)


def test_the_workspace_is_kept_when_asked() -> None:
    assert playbook("create_sandbox", sandbox_name=NAME).returncode == 0
    assert inside(NAME, "sh", "-c", "echo mine > /sandbox/work").returncode == 0
    assert playbook("delete_sandbox", sandbox_name=NAME, openshell_keep_workspace=True).returncode == 0
    assert ours("volume", NAME) == [f"openshell-workspace-{NAME}"]
    assert playbook("create_sandbox", sandbox_name=NAME).returncode == 0
    assert inside(NAME, "cat", "/sandbox/work").stdout == "mine\n"


def test_a_new_policy_replaces_the_sidecar_and_not_the_agent() -> None:
    assert playbook("create_sandbox", sandbox_name=NAME).returncode == 0
    before = podman("inspect", "-f", "{{.Id}}", f"openshell-agent-{NAME}").stdout
    policy = {"version": 1, "network_policies": {"one": {"endpoints": [{"host": "example.com", "port": 443}]}}}
    again = playbook("create_sandbox", "--diff", sandbox_name=NAME, openshell_policy=policy)
    assert again.returncode == 0, again.stdout[-3000:]
    assert changed(again) >= 1
    assert podman("inspect", "-f", "{{.Id}}", f"openshell-agent-{NAME}").stdout == before
    refused = playbook("create_sandbox", sandbox_name=NAME, openshell_policy={"version": 9})
    assert refused.returncode != 0
    assert changed(playbook("create_sandbox", sandbox_name=NAME, openshell_policy=policy)) == 0


def test_six_sandboxes_come_and_go() -> None:
    names = [f"it-many-{number}" for number in range(6)]
    try:
        for name in names:
            made = playbook("create_sandbox", sandbox_name=name)
            assert made.returncode == 0, made.stdout[-3000:]
        listed = playbook("list_sandboxes", openshell_format="json").stdout
        rows, _ = json.JSONDecoder().raw_decode(listed[listed.index("[\n") :])
        assert {row["name"] for row in rows} >= set(names)
    finally:
        for name in names:
            playbook("delete_sandbox", sandbox_name=name)
    assert {kind: ours(kind, *names) for kind in KINDS} == {kind: [] for kind in KINDS}
