# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The verbs of a sandbox's life between its creation and its end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Origin, changed, inside, ours, playbook, podman

NAME, CLONE = "it-verbs", "it-verbs-clone"
SECRET = "it-verbs-3f9c2b7a61"


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


def as_the_unit_does(units: Path, unit: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run what a systemd unit runs."""
    lines = (units / unit).read_text().splitlines()
    command = next(line for line in lines if line.startswith("ExecStart=")).partition("=")[2]
    words = [*shlex.split(command), *more]
    return subprocess.run(words, text=True, capture_output=True, check=False, timeout=120)


def addresses(name: str) -> list[str]:
    template = f'{{{{(index .NetworkSettings.Networks "openshell-sbx-{name}").IPAddress}}}}'
    return podman("inspect", "-f", template, f"openshell-proxy-{name}", f"openshell-agent-{name}").stdout.split()


def power_cut(name: str) -> None:
    """Kill the sandbox's processes and those that watch them, and take their network namespaces away."""
    containers = [f"openshell-agent-{name}", f"openshell-proxy-{name}"]
    found = podman(
        "inspect", "-f", "{{.State.ConmonPid}} {{.State.Pid}} {{.NetworkSettings.SandboxKey}}", *containers
    ).stdout
    for conmon, pid, namespace in (line.split() for line in found.splitlines()):
        for one in (conmon, pid):
            os.kill(int(one), signal.SIGKILL)
        subprocess.run(["umount", "--lazy", namespace], check=True)
        os.unlink(namespace)
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{one}/ns/net").exists() for one in (conmon, pid)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("units")


@pytest.fixture(scope="module")
def sandbox(origin: Origin, units: Path) -> Iterator[str]:
    secret = {"name": "token", "value": SECRET, "hosts": [origin.address], "env": "IT_TOKEN", "header": "X-It"}
    try:
        made = playbook(
            "create_sandbox",
            sandbox_name=NAME,
            openshell_policy=policy(origin),
            openshell_secrets=[secret],
            openshell_env={"IT_PLAIN": "plain"},
            openshell_memory="1g",
            openshell_unit_directory=str(units),
            openshell_reaper=True,
        )
        good(made)
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


def test_a_stopped_one_is_told_so_and_stays_stopped_after_a_reboot(sandbox: str, units: Path) -> None:
    good(playbook("stop_sandbox", sandbox_name=sandbox), 1)
    assert f"{sandbox}:" not in as_the_unit_does(units, "openshell-sandboxes.service").stdout
    assert listed(sandbox)["state"] == "stopped"
    refused(playbook("pause_sandbox", sandbox_name=sandbox), "is stopped; start it with start_sandbox.yml")
    good(playbook("start_sandbox", sandbox_name=sandbox), 1)


def test_after_a_power_cut_it_comes_back_as_confined_as_before(sandbox: str, origin: Origin, units: Path) -> None:
    inside(sandbox, "sh", "-c", "echo kept > /sandbox/file; echo kept > /usr/local/file")
    before = addresses(sandbox)
    power_cut(sandbox)
    done = as_the_unit_does(units, "openshell-sandboxes.service")
    assert f"{sandbox}: started\n" in done.stdout, done.stdout + done.stderr
    assert inside(sandbox, "cat", "/sandbox/file", "/usr/local/file").stdout == "kept\nkept\n"
    assert addresses(sandbox) == before
    assert confined(sandbox, origin)
    assert f"{sandbox}: runs\n" in as_the_unit_does(units, "openshell-sandboxes.service").stdout


def test_a_sidecar_that_the_kernel_kills_returns_and_the_agent_is_confined_meanwhile(
    sandbox: str, origin: Origin
) -> None:
    pid = podman("inspect", "-f", "{{.State.Pid}}", f"openshell-proxy-{sandbox}").stdout
    os.kill(int(pid), signal.SIGKILL)
    direct = f"http://{origin.address}:{origin.http}/hello.txt"
    deadline = time.monotonic() + 20
    while asked(sandbox, origin) != "200":
        assert inside(sandbox, "curl", "--noproxy", "*", "-sS", "--max-time", "0.5", direct).returncode != 0
        assert time.monotonic() < deadline
    assert podman("inspect", "-f", "{{.State.Pid}}", f"openshell-proxy-{sandbox}").stdout != pid
    assert confined(sandbox, origin)


def test_a_sandbox_that_is_not_there_is_told_in_one_sentence() -> None:
    good(playbook("delete_sandbox", "-e", "name=it-verbs-none"), 0)  # as people call it, with the reserved word
    refused(playbook("restart_sandbox", "-e", "name=it-verbs-none"), "there is no sandbox 'it-verbs-none'")
    refused(playbook("exec_sandbox", "-e", "name=it-verbs-none", cmd="true"), "there is no sandbox 'it-verbs-none'")
    refused(playbook("upgrade_sandbox", sandbox_name="it-verbs-none"), "there is no sandbox 'it-verbs-none'")


def test_a_clone_has_files_settings_and_policy_but_no_credential(sandbox: str, origin: Origin) -> None:
    files = "mkdir -p /opt/d && echo tool > /opt/d/f && chmod 750 /opt/d && rm -rf /usr/share/doc-base"
    inside(
        sandbox,
        "sh",
        "-c",
        files + "; mkdir -p /sandbox/d; echo w > /sandbox/d/f; ln -s f /sandbox/d/l; chmod 700 /sandbox/d",
    )
    image = f"localhost/openshell-snapshot-{sandbox}:clone-{CLONE}"
    try:
        good(playbook("clone_sandbox", "--check", **{"sandbox_name": CLONE, "from": sandbox}))
        assert podman("container", "exists", f"openshell-agent-{CLONE}", check=False).returncode == 1
        made = good(
            playbook("clone_sandbox", **{"sandbox_name": CLONE, "from": sandbox, "openshell_clone_workspace": True})
        )
        assert "not copied, because they stand for credentials: IT_TOKEN" in made.stdout
        listing = (
            "sh",
            "-c",
            "cd /; stat -c '%n %a %u %g' opt/d opt/d/f sandbox/d sandbox/d/f sandbox/d/l; readlink /sandbox/d/l",
        )
        assert inside(CLONE, *listing).stdout == inside(sandbox, *listing).stdout
        assert inside(CLONE, "test", "-e", "/usr/share/doc-base").returncode == 1
        env = inside(CLONE, "env").stdout
        assert "IT_PLAIN=plain\n" in env and "IT_TOKEN" not in env
        assert f"OPENSHELL_SANDBOX={CLONE}\n" in env and f"HOSTNAME={CLONE}\n" in env
        assert confined(CLONE, origin)
        volume = podman("volume", "inspect", "-f", "{{.Mountpoint}}", f"openshell-proxy-{CLONE}").stdout.strip()
        assert subprocess.run(["grep", "-r", SECRET, volume], check=False).returncode == 1
        memory = podman("inspect", "-f", "{{.HostConfig.Memory}}", f"openshell-agent-{CLONE}").stdout.strip()
        assert memory == str(1 << 30)
        good(playbook("clone_sandbox", **{"sandbox_name": CLONE, "from": sandbox}), 0)
        config = podman("image", "inspect", "-f", "{{json .Config}}", image).stdout
        assert "OPENSHELL" not in config and "IT_" not in config and "openshell.sandbox" not in config
    finally:
        playbook("delete_sandbox", sandbox_name=CLONE)
        podman("rmi", image, check=False)


def test_a_snapshot_that_exists_stays_as_it_is(sandbox: str) -> None:
    image = f"localhost/openshell-snapshot-{sandbox}:one"
    try:
        done = good(playbook("snapshot_sandbox", sandbox_name=sandbox, openshell_snapshot_tag="one"), 1)
        assert f"-e openshell_image={image}" in done.stdout
        good(playbook("snapshot_sandbox", sandbox_name=sandbox, openshell_snapshot_tag="one"), 0)
    finally:
        podman("rmi", image, check=False)


def test_upgrading_the_sidecar_leaves_the_agent_at_work(sandbox: str, origin: Origin) -> None:
    agent, proxy = f"openshell-agent-{sandbox}", f"openshell-proxy-{sandbox}"
    name = podman("inspect", "-f", "{{.ImageName}}", proxy).stdout.strip()
    old = podman("inspect", "-f", "{{.Image}}", proxy).stdout.strip()
    pid = podman("inspect", "-f", "{{.State.Pid}}", agent).stdout
    good(playbook("upgrade_sandbox", sandbox_name=sandbox), 0)
    recipe = f"FROM {old}\nLABEL it.newer=1\n"
    subprocess.run(
        ["podman", "build", "--quiet", "--pull=never", "--tag", name, "-"], input=recipe, text=True, check=True
    )
    try:
        assert asked(sandbox, origin) == "200"
        good(playbook("upgrade_sandbox", sandbox_name=sandbox), 1)
        assert podman("inspect", "-f", "{{.Image}}", proxy).stdout.strip() != old
        assert podman("inspect", "-f", "{{.State.Pid}}", agent).stdout == pid
        assert asked(sandbox, origin) == "200"  # the very first request: the agent's kernel keeps the address it knows
        assert confined(sandbox, origin)
        status = podman("exec", proxy, "openshell-proxy", "status").stdout
        assert json.loads(status)["credentials"] == 1
    finally:
        podman("tag", old, name)
        good(playbook("upgrade_sandbox", sandbox_name=sandbox), 1)


def test_what_a_removed_agent_leaves_goes_but_its_workspace(sandbox: str, units: Path) -> None:
    """The last test of this file: the sandbox is gone afterwards."""
    podman("rm", "--force", "--time", "0", f"openshell-agent-{sandbox}")
    seen = as_the_unit_does(units, "openshell-reaper.service")
    assert (seen.returncode, seen.stdout) == (0, "")  # it is missing for a moment only
    done = as_the_unit_does(units, "openshell-reaper.service", "--grace", "0")
    assert f"{sandbox}: removed the container openshell-proxy-{sandbox}" in done.stdout, done.stderr
    assert [one for kind in ("container", "network", "secret") for one in ours(kind, sandbox)] == []
    assert ours("volume", sandbox) == [f"openshell-workspace-{sandbox}"]
