# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host for the collection's tests: a podman command whose state a test sees, and modules run as real processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.openshell.sandbox.plugins.module_utils import container_converge
from ansible_collections.openshell.sandbox.plugins.module_utils.container_spec import ContainerSpec, Volume
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman, Result
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNames
from fake_podman import answer, refresh

ROOT = Path(__file__).resolve().parents[3]

Json = dict[str, Any]

INFO: Json = {
    "host": {
        "networkBackend": "netavark",
        "cgroupVersion": "v2",
        "ociRuntime": {"name": "crun"},
        "security": {"rootless": False},
    },
    "store": {
        "graphRoot": "/var/lib/containers/storage",
        "runRoot": "/run/containers/storage",
        "volumePath": "/var/lib/containers/storage/volumes",
    },
    "version": {"Version": "4.3.1"},
}


class Direct(Podman):
    """The same podman without a process for each call: for what is beside the point of a test, and there are many."""

    def _once(self, args: Sequence[str], stdin: bytes | None, timeout: float | None) -> Result:
        return Result(*answer(self.executable, list(args), stdin or b""))


class Host:
    """A host with a podman; ``environ`` is what processes on it get."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for part in ("stdin", "volumes", "rootfs", "logs", "status", "run", "bin"):
            (directory / part).mkdir()
        names = ("containers", "networks", "volumes", "secrets", "images", "ending")
        info = {**INFO, "store": {**INFO["store"], "graphRoot": f"{directory}/containers/storage"}}
        self.write({**{name: {} for name in names}, "info": info, "fail": [], "run": ""})
        fake = Path(__file__).with_name("fake_podman.py")
        self.executable = self.command("podman", f'exec {sys.executable} -SE {fake} {directory} "$@"')
        path = f"{ROOT}/playbooks/collections"
        self.environ = {
            "PATH": f"{directory}/bin:/usr/bin:/bin",
            "PYTHONPATH": path,
            "HOME": str(directory),
            "XDG_RUNTIME_DIR": f"{directory}/run",
            "LC_ALL": "C.UTF-8",
        }

    def command(self, name: str, script: str) -> str:
        """Install a shell script as a command of this host; its path."""
        path = self.directory / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    @property
    def podman(self) -> Podman:
        return Podman(self.executable)

    @property
    def direct(self) -> Podman:
        return Direct(str(self.directory))

    @property
    def state(self) -> Json:
        found: Json = json.loads((self.directory / "state.json").read_text())
        refresh(found)
        return found

    def write(self, state: Json) -> None:
        (self.directory / "state.json").write_text(json.dumps(state))

    def change(self, *path: Any) -> None:
        """``change(key, key, ..., value)``: set one value of the state."""
        *above, last, value = path
        state = entry = self.state
        for key in above:
            entry = entry[key]
        entry[last] = value
        self.write(state)

    def fail(self, beginning: str, stderr: str = "Error: out of order", times: int = 1, status: int = 125) -> None:
        """Let the next *times* calls whose arguments begin so fail."""
        self.change("fail", [*self.state["fail"], [beginning, times, status, stderr]])

    def calls(self, beginning: str = "") -> list[list[str]]:
        """The arguments of every call so far (of those that begin so)."""
        path = self.directory / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if " ".join(call).startswith(beginning)]

    def stdin_of(self, beginning: str) -> bytes:
        """What the last call that begins so got on standard input."""
        numbers = [number for number, call in enumerate(self.calls()) if " ".join(call).startswith(beginning)]
        return (self.directory / "stdin" / str(numbers[-1])).read_bytes()

    def changed_since(self, count: int) -> list[list[str]]:
        """The calls after the first *count* that change something."""
        looking = ("info", "ps", "logs")
        return [call for call in self.calls()[count:] if call[0] not in looking and call[1] not in ("inspect", "ls")]

    def module(
        self, name: str, /, check: bool = False, diff: bool = False, environ: Json | None = None, **args: Any
    ) -> Json:
        """Run a module of the collection as Ansible's wrapper would: its own process, arguments on standard input."""
        wanted = {**args, "_ansible_check_mode": check, "_ansible_diff": diff}
        if name not in ("host_resolvers_info", "host_registries_info"):
            wanted["executable"] = self.executable
        done = subprocess.run(
            [sys.executable, "-m", f"ansible_collections.openshell.sandbox.plugins.modules.{name}"],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": wanted}).encode(),
            capture_output=True,
            env={**self.environ, **(environ or {})},
            timeout=60,
            check=False,
        )
        try:
            result: Json = json.loads(done.stdout)
        except ValueError:
            raise AssertionError(f"{name} ended with {done.returncode}: {done.stderr.decode()}") from None
        assert (done.returncode == 0) == (not result.get("failed")), done.stderr.decode()
        assert "Traceback" not in done.stdout.decode() + done.stderr.decode()
        return result

    def refusal(self, name: str, /, **args: Any) -> str:
        """The sentence with which a module fails."""
        result = self.module(name, **args)
        assert result.get("failed"), result
        return str(result["msg"])

    def end(self) -> None:
        """End the processes that stand for containers."""
        for container in self.state["containers"].values():
            if container["State"]["Pid"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(container["State"]["Pid"], 9)


NAMES = SandboxNames.of("demo")


def spec_of(role: str, **other: Any) -> ContainerSpec:
    """The description of one container of the sandbox ``demo``, reduced to what the tests look at."""
    proxy = role == "proxy"
    tls = Volume(NAMES.tls_volume, "/openshell-tls", read_only=not proxy)
    volumes = (tls, Volume(NAMES.proxy_volume, "/var/lib/openshell")) if proxy else (tls,)
    spec = ContainerSpec(
        name=NAMES.proxy if proxy else NAMES.agent,
        role=role,
        image=("b" if proxy else "a") * 64,
        network=NAMES.network,
        ip="10.89.0.2" if proxy else "10.89.0.3",
        labels=NAMES.labels(),
        dns=("192.0.2.53",),
        uid_base=0 if proxy else 2_550_136_832,
        volumes=volumes,
        sysctls={"net.ipv6.conf.all.disable_ipv6": "1"},
    )
    return dataclasses.replace(spec, **other)


def make_sandbox(
    host: Host, started: bool = True, policy: str = "version: 1\n", agent: Mapping[str, Any] | None = None
) -> None:
    """A whole sandbox as the roles make it: networks, volumes, sidecar with a policy, agent (described by *agent* too)."""
    podman = host.direct
    podman.ensure_internal_network(NAMES.network, NAMES.labels())
    podman.ensure_bridge_network("openshell", {"openshell.managed": "true"})
    for volume in (NAMES.tls_volume, NAMES.proxy_volume):
        podman.ensure_volume(volume, NAMES.labels())
    config = Path(podman.volume(NAMES.proxy_volume)["Mountpoint"]) / "config"  # type: ignore[index]
    config.mkdir()
    (config / "policy.yaml").write_text(policy)
    for role in ("proxy", "agent"):
        spec = spec_of(role, **(agent or {} if role == "agent" else {}))
        container_converge.create(podman, spec)
        if role == "proxy":
            podman.network_connect("openshell", spec.name)
        if started:
            podman.run(["start", spec.name])
