# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""fleet.yml in the execution environment, run as docs/fleet.md says, makes a sandbox on a host that is reached over SSH."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, podman

HOST, ADDRESS, SANDBOX = "it-ee", "10.98.77.40", "it-ee-1"
IDENTS = ("it-ee-first", "it-ee-second")
CONTAINER, NETWORK = f"openshell-testhost-{HOST}", "openshell-testhosts"
POLICY = {"version": 1, "network_policies": {"origin": {"endpoints": [{"host": "origin.example", "port": 443}]}}}
INVENTORY = {
    "all": {
        "hosts": {
            HOST: {
                "ansible_host": ADDRESS,
                "ansible_user": "root",
                "ansible_python_interpreter": "/usr/bin/python3",
                "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
            }
        },
        "children": {
            "openshell_sandboxes": {
                "vars": {"openshell_policy": "{{ inventory_dir }}/policies/base.yaml", "openshell_memory": "256m"},
                "hosts": {SANDBOX: {"openshell_host": HOST}},
            }
        },
    }
}


@pytest.fixture(scope="module")
def project(sandbox: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory as ansible-runner takes it, and the host of its inventory, which reads the images of this machine."""
    directory = tmp_path_factory.mktemp("runner")
    for part in ("env", "project/policies"):
        (directory / part).mkdir(parents=True)
    (directory / "project/inventory.yml").write_text(json.dumps(INVENTORY))
    (directory / "project/policies/base.yaml").write_text(json.dumps(POLICY))
    key = directory / "env/ssh_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    up = [str(ROOT / "molecule/hosts/up.sh"), HOST, ADDRESS, "trixie", f"{key}.pub", "root", "256m"]
    try:
        subprocess.run(up, check=True, timeout=600)
        yield directory
    finally:
        podman(
            "rm",
            "--force",
            "--ignore",
            "--time",
            "1",
            CONTAINER,
            *[f"ansible_runner_{one}" for one in IDENTS],
            check=False,
        )
        podman("network", "rm", NETWORK, check=False)  # unless another host is on it


def documented() -> list[str]:
    """The words of the command in the guide."""
    text = (ROOT / "docs/fleet.md").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^ansible-runner run .*$", text, re.MULTILINE)
    return shlex.split(command)


def run(directory: Path, ident: str) -> str:
    """The command, with what this machine's kernel asks of every container; what Ansible said."""
    words = [*documented(), "--ident", ident]
    limits = ["--ulimit=nofile=16384:16384", "--ulimit=nproc=8192:8192"]
    if podman("info", "--format", "{{.Host.CgroupsVersion}}").stdout.strip() == "v1":
        limits.append("--runtime=runc")
    words += [f"--container-option={one}" for one in (*limits, f"--network={NETWORK}")]
    env = {**os.environ, "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=directory, env=env, text=True, capture_output=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)  # ansible-runner's output is coloured


def on_host(*command: str) -> str:
    return podman("exec", CONTAINER, *command).stdout


def test_a_fleet_is_converged_from_within(project: Path) -> None:
    subprocess.run([str(ROOT / "scripts/execution_environment.sh")], stdout=subprocess.DEVNULL, check=True, timeout=900)
    deadline = time.monotonic() + 30
    while not on_host("sh", "-c", "ss -Hltn 'sport = :22'"):
        assert time.monotonic() < deadline
    said = run(project, IDENTS[0])
    assert "Fleet: 1 sandbox on 1 host: 1 as declared, 0 not" in said
    assert on_host("podman", "exec", f"openshell-agent-{SANDBOX}", "printenv", "OPENSHELL_SANDBOX") == f"{SANDBOX}\n"
    shown = on_host("podman", "exec", f"openshell-proxy-{SANDBOX}", "cat", "/var/lib/openshell/config/policy.yaml")
    assert "origin.example" in shown
    again = run(project, IDENTS[1])
    assert re.search(rf"{SANDBOX} +: ok=\d+ +changed=0 ", again), again[-2000:]
