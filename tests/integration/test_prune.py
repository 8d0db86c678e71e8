# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Prune removes what belongs to no wanted sandbox, and nothing else.

It acts on everything that a Podman has, so it gets one of its own: real Podman, a store below the test's directory,
the host's images to read from. Nothing in it is ever connected to a network of the host's kernel.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman
from conftest import changed, playbook, podman

RUNNING, STOPPED, BROKEN, GONE, LONE = "it-p-runs", "it-p-stopped", "it-p-broken", "it-p-gone", "it-p-lone"
KINDS = {
    "container": ("ps", "--all", "--format", "{{.Names}}"),
    "network": ("network", "ls", "--format", "{{.Name}}"),
    "volume": ("volume", "ls", "--format", "{{.Name}}"),
    "secret": ("secret", "ls", "--format", "{{.Name}}"),
    "image": ("images", "--format", "{{.Repository}}:{{.Tag}} {{.ReadOnly}}"),
}
OLD, USED, BASE = "localhost/openshell-proxy:old", "localhost/openshell-agent:used", "localhost/openshell-base:old"
FOREIGN = "localhost/somebodys:image"


class Store:
    """A Podman with a store of its own; ``executable`` is what the playbook is told to use."""

    def __init__(self, directory: Path) -> None:
        self.executable = directory / "podman"
        host_store = podman("info", "--format", "{{.Store.GraphRoot}}").stdout.strip()
        own = {
            "root": "root",
            "runroot": "run",
            "tmpdir": "tmp",
            "network-config-dir": "networks",
            "volumepath": "volumes",
        }
        words = [f"--{option}={directory / path}" for option, path in own.items()]
        words += [f"--storage-opt=additionalimagestore={host_store}"]
        if shutil.which("runc"):  # where cgroups are v1, crun refuses
            words.append("--runtime=runc")
        self.executable.write_text(f'#!/bin/sh\nexec podman {" ".join(words)} "$@"\n')
        self.executable.chmod(0o755)

    def run(self, *args: str, stdin: str = "") -> str:
        return Podman(str(self.executable)).run(args, stdin=stdin.encode()).stdout

    def prune(self, *args: str, **variables: object) -> subprocess.CompletedProcess[str]:
        if "-i" not in args:  # an inventory names an executable for each of its hosts
            variables["openshell_podman_executable"] = str(self.executable)
        done = playbook("prune", *args, **variables)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        return done

    def present(self) -> set[str]:
        """What there is, as ``kind name``; images of the host's store are not ours to count."""
        found = {kind: self.run(*words).splitlines() for kind, words in KINDS.items()}
        found["image"] = [line.split()[0] for line in found["image"] if line.endswith("false")]
        return {f"{kind} {name}" for kind, names in found.items() for name in names} - {"network podman"}

    def sandbox(
        self, name: str, image: str, *, containers: str = "", workspace: bool = True, running: bool = False
    ) -> None:
        """The objects of one sandbox, with *containers* among ``agent``, ``proxy`` and ``agent-replaced``."""
        labels = ["--label=openshell.managed=true", f"--label=openshell.sandbox={name}", f"--label=openshell.id={name}"]
        if containers:
            self.run("network", "create", "--internal", "--disable-dns", *labels, f"openshell-sbx-{name}")
            self.run("secret", "create", *labels, f"openshell-authority-{name}", "-", stdin="key")
            for volume in ("tls", "proxy"):
                self.run("volume", "create", *labels, f"openshell-{volume}-{name}")
        if workspace:
            self.run("volume", "create", *labels, f"openshell-workspace-{name}")
        for one in containers.split():
            role, _, suffix = one.partition("-")
            container = f"openshell-{role}-{name}" + (f"-{suffix}" if suffix else "")
            limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--network=none")
            role_label = f"--label=openshell.role={role}"
            self.run("create", "--name", container, *labels, role_label, *limits, image, "sleep", "600")
            if running and one == "agent":
                self.run("start", container)


def everything(name: str, *containers: str) -> set[str]:
    found = {f"container openshell-{one}" for one in containers}
    found |= {f"volume openshell-{volume}-{name}" for volume in ("tls", "proxy", "workspace")}
    return found | {f"network openshell-sbx-{name}", f"secret openshell-authority-{name}"}


@pytest.fixture(scope="module")
def agent_image() -> str:
    """Id of the agent's image, made as it always is."""
    try:
        made = playbook("create_sandbox", sandbox_name="it-prune")
        assert made.returncode == 0, made.stdout[-3000:]
        return podman("inspect", "-f", "{{.Image}}", "openshell-agent-it-prune").stdout.strip()
    finally:
        playbook("delete_sandbox", sandbox_name="it-prune")


@contextlib.contextmanager
def empty_store() -> Iterator[Store]:
    """In a short-named directory: Podman refuses a runroot of more than 50 characters."""
    name = tempfile.mkdtemp(prefix="it-")
    made = Store(Path(name))
    try:
        yield made
    finally:
        made.run("rm", "--all", "--force", "--time", "0")
        subprocess.run(["umount", "--lazy", f"{name}/root/overlay"], check=False, capture_output=True)
        deadline = time.monotonic() + 20
        while Path(name).exists():  # a mount can be busy for a moment in a namespace that is starting
            shutil.rmtree(name, ignore_errors=time.monotonic() < deadline)


@pytest.fixture
def store(agent_image: str) -> Iterator[Store]:
    with empty_store() as made:
        made.sandbox(RUNNING, agent_image, containers="agent proxy agent-replaced", running=True)
        made.sandbox(STOPPED, agent_image, containers="agent proxy")
        made.sandbox(BROKEN, agent_image, containers="proxy agent-replaced")
        made.sandbox(LONE, agent_image, containers="agent", running=True)
        made.sandbox(GONE, agent_image)
        made.run("build", "--quiet", "--tag", BASE, "-", stdin="FROM scratch\nLABEL base=1\n")
        made.run("build", "--quiet", "--tag", USED, "-", stdin=f"FROM {BASE}\nLABEL used=1\n")
        made.run("build", "--quiet", "--tag", OLD, "-", stdin=f"FROM {BASE}\nLABEL old=1\n")
        made.run("build", "--quiet", "--tag", FOREIGN, "-", stdin="FROM scratch\nLABEL foreign=1\n")
        made.run("create", "--name", "somebodys", "--network=none", USED, "never-started")
        made.run("volume", "create", "somebodys")
        yield made


RUNS = everything(RUNNING, f"agent-{RUNNING}", f"proxy-{RUNNING}")
STOPS = everything(STOPPED, f"agent-{STOPPED}", f"proxy-{STOPPED}")
ALONE = everything(LONE, f"agent-{LONE}")
WORKSPACES = {f"volume openshell-workspace-{name}" for name in (BROKEN, GONE)}
FOREIGN_ONES = {"container somebodys", "volume somebodys", f"image {FOREIGN}", f"image {USED}"}


def test_orphans_go_and_complete_sandboxes_stay(store: Store) -> None:
    before = store.present()
    checked = store.prune("--check", "--diff")
    assert store.present() == before
    done = store.prune()
    assert changed(checked) == changed(done) == 1
    told = set(re.findall(r"^-\s+- (\w+ \S+)$", checked.stdout, re.MULTILINE))
    assert told == before - store.present()
    assert store.present() == RUNS | STOPS | ALONE | WORKSPACES | FOREIGN_ONES
    assert all(f"Kept the workspace openshell-workspace-{name}" in done.stdout for name in (BROKEN, GONE))
    assert changed(store.prune()) == 0
    store.prune(openshell_prune_workspaces=True, openshell_prune_running=True)
    assert store.present() == RUNS | STOPS | FOREIGN_ONES


def test_exactly_the_declared_sandboxes_stay(store: Store, agent_image: str, tmp_path: Path) -> None:
    """RUNNING is declared, but elsewhere; STOPPED is declared here, and not elsewhere."""
    with empty_store() as elsewhere:
        elsewhere.sandbox(STOPPED, agent_image, containers="agent proxy")
        inventory = tmp_path / "inventory.yml"
        members = {STOPPED: {}, "renamed": {"sandbox_name": BROKEN}, RUNNING: {"openshell_host": "elsewhere"}}
        local = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
        hosts = {
            "localhost": {**local, "openshell_podman_executable": str(store.executable)},
            "elsewhere": {**local, "openshell_podman_executable": str(elsewhere.executable)},
        }
        inventory.write_text(json.dumps({"openshell_sandboxes": {"hosts": members}, "podman": {"hosts": hosts}}))
        store.prune("-i", str(inventory))
        broken = everything(BROKEN, f"proxy-{BROKEN}", f"agent-{BROKEN}-replaced")
        workspace = f"volume openshell-workspace-{GONE}"
        assert store.present() == RUNS | STOPS | ALONE | broken | {workspace} | FOREIGN_ONES
        assert elsewhere.present() == {f"volume openshell-workspace-{STOPPED}"}
        assert changed(store.prune("-i", str(inventory))) == 0
        store.prune("-i", str(inventory), openshell_prune_running=True)
        left = {workspace, *(f"volume openshell-workspace-{name}" for name in (RUNNING, LONE))}
        assert store.present() == STOPS | broken | left | FOREIGN_ONES


def test_the_current_images_stay(store: Store) -> None:
    current = set(re.findall(r"localhost/openshell-\w+:[0-9a-f]{16}", store.prune("--check", "-v").stdout))
    assert len(current) == 4
    for name in current:
        store.run("build", "--quiet", "--tag", name, "-", stdin=f"FROM scratch\nLABEL which={name}\n")
    store.prune()
    assert {f"image {name}" for name in current} <= store.present()
    assert f"image {OLD}" not in store.present()
