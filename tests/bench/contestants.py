# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who takes part: our image as the role deploys it, its peers from the distribution and PyPI, and no proxy at all.

All of them serve at the same address of the same namespace, pinned to the same core, and log every request.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from measure import tree
from world import (
    AGENT_IP,
    EVENTS_PORT,
    H2_PORT,
    INJECTED,
    NAME,
    ORIGIN_IP,
    PLAIN_PORT,
    PROXY,
    PROXY_CORE,
    PROXY_IP,
    ROOT,
    SECRET,
    SINK_PORT,
    TLS_PORT,
    TUNNEL_PORT,
    VENV,
    WORK,
    World,
    make_authority,
    run,
    wait_for_port,
)

sys.path[:0] = [str(ROOT / "playbooks" / "collections")]
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator  # noqa: E402
from ansible_collections.openshell.sandbox.plugins.module_utils.container_spec import ContainerSpec  # noqa: E402
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNames  # noqa: E402
from ansible_collections.openshell.sandbox.plugins.modules import sandbox_container  # noqa: E402

UID = 1337
# Arguments of the role's task that are about Podman itself, not about the container.
OUTSIDE = ("executable", "runtime")
# A real sandbox's policy around the one endpoint that is measured: hosts of forges, registries and model services.
HOSTS = (
    "api.github.com", "github.com", "codeload.github.com", "objects.githubusercontent.com", "raw.githubusercontent.com",
    "gitlab.com", "index.example", "files.index.example", "packages.example", "mirror.packages.example", "crates.example",
    "static.crates.example", "index.crates.example", "modules.example", "sums.modules.example", "deb.example",
    "security.deb.example", "api.anthropic.com", "api.openai.com", "*.docker.io", "*.ghcr.io", "**.s3.amazonaws.com",
)  # fmt: skip


def policy(extra_endpoints: int = 0) -> str:
    """The policy under which ours is measured. The origin's rule is the last of its endpoint's.

    The extra endpoints are written as short as can be: a policy has at most 256 KiB.
    """
    rules = [{"allow": {"method": "GET", "path": f"/v{number}/**"}} for number in range(6)]
    rules += [{"allow": {"method": method, "path": "/**"}} for method in ("POST", "GET")]
    inspected = [TLS_PORT, PLAIN_PORT, SINK_PORT, EVENTS_PORT, H2_PORT]
    policies: dict[str, Any] = {
        "origin": {
            "endpoints": [_rest(NAME, inspected, rules=rules), {"host": NAME, "ports": [TUNNEL_PORT], "tls": "skip"}]
        },
        **{f"p{index:02}": {"endpoints": [_rest(host, [443], access="read-only")]} for index, host in enumerate(HOSTS)},
    }
    text = yaml.safe_dump({"version": 1, "network_policies": policies}, sort_keys=False)
    if extra_endpoints:
        text += (
            "  extra:\n    endpoints: ["
            + ",".join(f"{{host: h{number}.x,port: 1}}" for number in range(extra_endpoints))
            + "]\n"
        )
    return text


def _rest(host: str, ports: list[int], **more: Any) -> dict[str, Any]:
    return {"host": host, "ports": ports, "protocol": "rest", "enforcement": "enforce", **more}


class Contestant:
    """One proxy (or none). ``injects``: adds the header that the origin demands."""

    name = "direct"
    port = 0
    injects = False
    trust: Path | None = None  # the authority that its clients trust

    def __init__(self, world: World) -> None:
        self.world = world
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None: ...

    def stop(self) -> None:
        if self.process is not None:
            self.world.stop(self.process)
            self.process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def pids(self) -> list[int]:
        """Its processes, for memory."""
        return tree(self.process.pid) if self.process else []

    def cpu_pids(self) -> list[int]:
        """The same and what works for it, for CPU time."""
        return self.pids()

    def check(self) -> str:
        """What was wrong with the round just done, beyond what its clients saw; "" for nothing."""
        return ""

    def version(self) -> str:
        return ""

    def _run(self, *command: str | Path) -> None:
        self.process = self.world.start(PROXY, *command, core=PROXY_CORE, log=self.name)
        wait_for_port(PROXY, PROXY_IP, self.port)


class Direct(Contestant):
    """No proxy: straight to nginx. Its client sends the header itself when it is asked for it."""

    def version(self) -> str:
        return run("nginx", "-v").stderr.strip()


class Ours(Contestant):
    """The image with the role's own flags. The one change: its network is the suite's namespace, not a Podman network."""

    name = "ours"
    port = 3128
    injects = True
    container = "bench-proxy"
    trust = WORK / "ours" / "tls" / "ca.pem"

    def __init__(self, world: World, image: dict[str, Any]) -> None:
        super().__init__(world)
        self.image: str = image["image"]
        self.arguments = {key: value for key, value in image["sidecar"].items() if key not in OUTSIDE}
        self.podman = ["podman", *(["--runtime", image["runtime"]] if image["runtime"] else [])]
        self.policy = policy()
        self.ready_seconds: list[float] = []
        self.allowed = self.dropped = 0
        self.directory = WORK / "ours"

    def spec(self) -> ContainerSpec:
        """What the role's task says, with the module's own reading of it; named, networked and stored as the suite is."""
        checked = ArgumentSpecValidator(sandbox_container.OPTIONS).validate(self.arguments)
        if checked.error_messages:
            raise RuntimeError(f"the role's task has other arguments than its module: {checked.error_messages}")
        described = sandbox_container.describe(checked.validated_parameters, SandboxNames.of("bench", None))
        return dataclasses.replace(
            described, name=self.container, network="NETWORK", ip="", sysctls={},
            volumes=tuple(
                dataclasses.replace(one, source=str(self.directory / one.source.split("-")[1]), kind="bind")
                for one in described.volumes
            ),
        )  # fmt: skip

    def once(self) -> list[str]:
        """The beginning of a ``podman run`` for one command of the image."""
        limits = [word for limit in self.spec().ulimits for word in ("--ulimit", limit)]
        return [*self.podman, "run", "--rm", "--interactive", "--network", "none", "--read-only", *limits]

    def create(self) -> None:
        self.remove()
        self._files()
        key = run(*self.once(), self.image, "authority", "new").stdout
        run(*self.podman, "secret", "create", SECRET, "-", input=key)
        words = self.spec().create_args()
        words = [f"ns:/run/netns/{PROXY}" if word.startswith("NETWORK:ip=") else word for word in words]
        run(*self.podman, "create", *words)

    def _files(self) -> None:
        for path in ("tls", "proxy/config", "proxy/log"):
            (self.directory / path).mkdir(parents=True, exist_ok=True)
        (self.directory / "proxy/config/policy.yaml").write_text(self.policy)
        secret = {"name": "bench", "value": INJECTED[1], "hosts": [NAME], "ports": [TLS_PORT], "header": INJECTED[0]}
        (self.directory / "proxy/config/secrets.json").write_text(json.dumps({"secrets": [secret]}))
        shutil.copy(WORK / "origin-ca.crt", self.directory / "proxy/config/upstream-ca.pem")
        for path in (self.directory, *self.directory.rglob("*")):
            os.chown(path, UID, UID)

    def start(self) -> None:
        """Start the container on its core; ``ready_seconds`` gets the time from the command to ``.ready``."""
        self._files()
        ready = self.directory / "tls" / ".ready"
        ready.unlink(missing_ok=True)
        begin = time.monotonic()
        run("taskset", "-c", str(PROXY_CORE), *self.podman, "start", self.container)
        while not ready.exists():
            if time.monotonic() - begin > 60:
                raise RuntimeError(
                    "the sidecar is not ready: " + run(*self.podman, "logs", self.container).stderr[-400:]
                )
            time.sleep(0.002)
        self.ready_seconds.append(time.monotonic() - begin)
        state = json.loads(run(*self.podman, "inspect", "--format", "{{json .State}}", self.container).stdout)
        self.pid, self.monitor = state["Pid"], state["ConmonPid"]
        for pid in self.cpu_pids():
            run("taskset", "-acp", str(PROXY_CORE), str(pid))
        status = self.status()
        for error in (status["policy_error"], status["credentials_error"]):
            if error:
                raise RuntimeError(f"the configuration is refused: {error[:300]}")
        self.check()

    def stop(self) -> None:
        run(*self.podman, "stop", "--time", "5", self.container, check=False)

    def remove(self) -> None:
        run(*self.podman, "rm", "--force", "--time", "2", self.container, check=False)
        run(*self.podman, "secret", "rm", SECRET, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def pids(self) -> list[int]:
        return tree(self.pid)

    def cpu_pids(self) -> list[int]:
        return [*self.pids(), self.monitor]  # conmon takes the audit lines off its standard output

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(
            run(*self.podman, "exec", self.container, "openshell-proxy", "status").stdout
        )
        return status

    def check(self) -> str:
        """The audit log must have every decision: none dropped, and the file's last line is about the origin."""
        status = self.status()
        dropped = status["audit_lines_dropped"] - self.dropped
        new = status["requests_allowed"] - self.allowed
        self.allowed, self.dropped = status["requests_allowed"], status["audit_lines_dropped"]
        if dropped:
            return f"{dropped} audit lines of {new + dropped} were dropped"
        if new and NAME not in last_line(self.directory / "proxy/log/audit.jsonl"):
            return "the audit log's last line is not about the origin"
        return ""

    def version(self) -> str:
        return f"openshell-proxy {self.status()['version']}, image {self.image[:12]}"


def last_line(file: Path) -> str:
    """The last whole line of a log."""
    with open(file, "rb") as handle:
        handle.seek(max(0, file.stat().st_size - 4096))
        return handle.read().decode().splitlines()[-1]


class Squid(Contestant):
    name = "squid"
    port = 3130
    injects = True
    trust = WORK / "peers-ca.crt"

    def start(self) -> None:
        directory = WORK / "squid"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        run("/usr/lib/squid/security_file_certgen", "-c", "-s", directory / "db", "-M", "16MB")
        (directory / "squid.conf").write_text(f"""
http_port {PROXY_IP}:{self.port} ssl-bump tls-cert={WORK}/peers-ca.pem generate-host-certificates=on dynamic_cert_mem_cache_size=16MB
sslcrtd_program /usr/lib/squid/security_file_certgen -s {directory}/db -M 16MB
sslcrtd_children 2 startup=1 idle=1
tls_outgoing_options cafile={WORK}/origin-ca.crt
acl blind port {TUNNEL_PORT}
acl step1 at_step SslBump1
ssl_bump splice blind
ssl_bump peek step1
ssl_bump bump all
on_unsupported_protocol tunnel all
request_header_access {INJECTED[0]} deny all
request_header_add {INJECTED[0]} "{INJECTED[1]}" all
acl agent src {AGENT_IP}
http_access allow agent
http_access deny all
dns_nameservers {ORIGIN_IP}
cache deny all
access_log stdio:{directory}/access.log
cache_log {directory}/cache.log
pid_filename {directory}/squid.pid
shutdown_lifetime 0 seconds
max_filedescriptors 16384
coredump_dir none
""")
        run("chown", "-R", "proxy", directory)
        self._run("squid", "-N", "-f", directory / "squid.conf")

    def version(self) -> str:
        return run("squid", "-v").stdout.splitlines()[0]


class Tinyproxy(Contestant):
    """It tunnels only: it closes after each plain request and does not open TLS."""

    name = "tinyproxy"
    port = 3131

    def start(self) -> None:
        file = WORK / "tinyproxy.conf"
        file.write_text(f"Port {self.port}\nListen {PROXY_IP}\nMaxClients 2000\nTimeout 600\nAllow {AGENT_IP}\n"
                        f'LogFile "{WORK}/tinyproxy.access.log"\nLogLevel Connect\n')  # fmt: skip
        self._run("tinyproxy", "-d", "-c", file)

    def version(self) -> str:
        return run("tinyproxy", "-v").stdout.strip()


class Mitmdump(Contestant):
    name = "mitmdump"
    port = 3132
    injects = True
    trust = WORK / "peers-ca.crt"

    def start(self) -> None:
        directory = WORK / "mitmproxy"
        directory.mkdir(exist_ok=True)
        shutil.copy(WORK / "peers-ca.pem", directory / "mitmproxy-ca.pem")
        self._run(
            VENV / "bin/mitmdump", "--mode", "regular", "--listen-host", PROXY_IP, "--listen-port", str(self.port),
            "--set", f"confdir={directory}", "--set", "flow_detail=1", "--set", "connection_strategy=lazy",
            "--set", f"ssl_verify_upstream_trusted_ca={WORK}/origin-ca.crt", "--set", "stream_large_bodies=1m",
            "--modify-headers", f"/~q/{INJECTED[0]}/{INJECTED[1]}", "--ignore-hosts", f":{TUNNEL_PORT}$",
            "--scripts", Path(__file__).with_name("mitmdump_stream.py"),
        )  # fmt: skip

    def version(self) -> str:
        return run(VENV / "bin/mitmdump", "--version").stdout.splitlines()[0]


class ProxyPy(Contestant):
    name = "proxy.py"
    port = 3133
    injects = True
    trust = WORK / "peers-ca.crt"

    def start(self) -> None:
        certificates = WORK / "proxypy"
        shutil.rmtree(certificates, ignore_errors=True)  # certificates of an earlier run's authority
        certificates.mkdir()
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # where proxypy_inject.py is
        try:
            self._run(
                VENV / "bin/proxy", "--hostname", PROXY_IP, "--port", str(self.port), "--num-acceptors", "1",
                "--num-workers", "1", "--ca-key-file", WORK / "peers-ca.key", "--ca-cert-file", WORK / "peers-ca.crt",
                "--ca-signing-key-file", WORK / "peers-ca.key", "--ca-cert-dir", certificates,
                "--ca-file", WORK / "origin-ca.crt", "--timeout", "600", "--plugins", "proxypy_inject.Inject",
            )  # fmt: skip
        finally:
            del os.environ["PYTHONPATH"]

    def version(self) -> str:
        return "proxy.py " + run(VENV / "bin/proxy", "--version").stdout.strip()


def line_up(world: World, image: dict[str, str], found: list[Contestant]) -> None:
    """Start all contestants; *found* has them even if one of them does not come up. The peers share one authority."""
    make_authority("peers-ca")
    ours = Ours(world, image)
    found += [Direct(world), ours, Squid(world), Mitmdump(world), ProxyPy(world), Tinyproxy(world)]
    ours.create()
    for contestant in found:
        contestant.start()


def by_name(contestants: Sequence[Contestant], name: str) -> Contestant:
    return next(one for one in contestants if one.name == name)
