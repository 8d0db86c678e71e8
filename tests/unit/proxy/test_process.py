# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sidecar as a process: readiness, signals, reload, restart. Real processes on an address of loopback's own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dns.message
import pytest
from openshell_proxy.memory import DIRE
from openshell_proxy.minting import new_authority

ADDRESS = f"127.77.{os.getpid() // 256 % 256}.{os.getpid() % 256}"  # another one for a run beside this one
PORTS = (3128, 8081, 10080, 10443, 10053)
# The real ones but for those below 1024, which a sandbox opens to everybody and a developer's machine does not.
SERVE = f"""
import dataclasses, os, pathlib, sys
from openshell_proxy.server import serve
from openshell_proxy.settings import read_settings
cgroup = pathlib.Path(os.environ["CGROUP"])
code = serve(dataclasses.replace(read_settings(os.environ), cgroup=cgroup), {PORTS})
if "TELL" in os.environ:
    print("cryptography:", "cryptography" in sys.modules, file=sys.stderr)
sys.exit(code)
"""
SERVING = [sys.executable, "-c", SERVE]
POLICY = {"version": 1, "network_policies": {"a": {"endpoints": [{"host": "a.test", "port": 443}]}}}


class Process:
    """``openshell-proxy serve`` with directories of its own; at most one at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: subprocess.Popen[str] | None = None
        for name in ("tls", "run", "state/config", "state/log"):
            (directory / name).mkdir(parents=True)
        (directory / "authority.pem").write_bytes(new_authority())
        self.policy = directory / "state/config/policy.yaml"
        self.policy.write_text(json.dumps(POLICY))
        self.ready = directory / "tls/.ready"
        self.environ = {
            **os.environ,
            "OPENSHELL_SANDBOX": "test",
            "OPENSHELL_PROXY_IP": ADDRESS,
            "OPENSHELL_AGENT_IP": "127.0.0.1",
            "OPENSHELL_TLS_DIR": str(directory / "tls"),
            "OPENSHELL_STATE_DIR": str(directory / "state"),
            "OPENSHELL_RUN_DIR": str(directory / "run"),
            "OPENSHELL_AUTHORITY": str(directory / "authority.pem"),
            "CGROUP": str(directory),  # without a limit as long as a test writes none
        }

    def command(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "openshell_proxy", *args]
        return subprocess.run(command, env=self.environ, text=True, capture_output=True, check=False, timeout=60)

    def serve(self) -> subprocess.CompletedProcess[str]:
        """What is left of a start that is expected to fail."""
        return subprocess.run(SERVING, env=self.environ, text=True, capture_output=True, check=False, timeout=60)

    def start(self) -> None:
        pipe = subprocess.PIPE
        self.running = subprocess.Popen(SERVING, env=self.environ, text=True, stdout=pipe, stderr=pipe)
        deadline = time.monotonic() + 60
        while not self.ready.exists():
            assert self.running.poll() is None, self.running.communicate()
            assert time.monotonic() < deadline

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) after the signal."""
        assert self.running is not None
        process, self.running = self.running, None
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
        return process.returncode, stdout, stderr


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    try:
        yield made
    finally:
        if made.running is not None:
            made.end(signal.SIGKILL)


def test_ready_means_that_every_listener_is_bound(process: Process) -> None:
    process.start()
    for port in PORTS:
        socket.create_connection((ADDRESS, port), 5).close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect((ADDRESS, PORTS[-1]))
        client.send(dns.message.make_query("test", "A").to_wire())
        assert dns.message.from_wire(client.recv(512)).answer
    sentinel = json.loads(process.ready.read_text())
    assert process.running is not None
    assert sentinel["pid"] == process.running.pid
    ticks = Path(f"/proc/{sentinel['pid']}/stat").read_text().rsplit(")", 1)[1].split()[19]
    assert sentinel["started_ticks"] == int(ticks)
    assert (process.directory / "tls/ca-bundle.pem").read_text().count("BEGIN CERTIFICATE") > 1


@pytest.mark.parametrize(
    ("kind", "port"), [*((socket.SOCK_STREAM, port) for port in PORTS), (socket.SOCK_DGRAM, PORTS[-1])]
)
def test_a_port_that_is_taken_means_not_ready_and_a_stale_ready_is_gone(
    process: Process, kind: socket.SocketKind, port: int
) -> None:
    process.ready.write_text("from before a reboot")
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind is socket.SOCK_STREAM))
        taken.bind((ADDRESS, port))
        if kind is socket.SOCK_STREAM:
            taken.listen()
        done = process.serve()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot listen" in done.stderr
    assert not process.ready.exists()


def test_it_ends_before_podman_would_kill_it_with_connections_open(process: Process) -> None:
    process.start()
    idle = socket.create_connection((ADDRESS, 3128), 5)
    idle.sendall(b"GET http://a.test/ HTTP/1.1\r\n")
    begun = time.monotonic()
    code, stdout, stderr = process.end()
    assert time.monotonic() - begun < 5.0  # the role's stop_timeout; the connection may stay for 30 seconds
    assert (code, stderr) == (0, "")
    assert not process.ready.exists()
    assert json.loads(stdout.splitlines()[-1])["message"] == "stopped"
    idle.close()


def test_a_killed_one_starts_again_with_the_same_authority(process: Process) -> None:
    process.start()
    before = (process.directory / "tls/ca.pem").read_bytes()
    process.end(signal.SIGKILL)
    assert process.ready.exists()  # which is why the next start removes it first
    process.ready.unlink()
    process.start()
    assert (process.directory / "tls/ca.pem").read_bytes() == before
    code, _, stderr = process.end()
    assert (code, stderr) == (0, "")


def test_a_bad_policy_never_replaces_a_good_one(process: Process) -> None:
    process.start()
    good = json.loads(process.command("status").stdout)
    assert good["policy_error"] == ""
    process.policy.write_text("version: 1\nnetwork_policy: {}\n")
    refused = process.command("reload")
    assert refused.returncode != 0
    assert "network_policies" in refused.stdout + refused.stderr
    status = json.loads(process.command("status").stdout)
    assert status["policy_digest"] == good["policy_digest"]
    assert status["policy_error"]
    process.policy.write_text(json.dumps({"version": 1, "network_policies": {}}))
    assert process.command("reload").returncode == 0
    assert json.loads(process.command("status").stdout)["policy_digest"] != good["policy_digest"]


def test_a_bad_policy_at_the_start_denies_all(process: Process) -> None:
    process.policy.write_text("version: [")
    process.start()
    client = socket.create_connection((ADDRESS, 3128), 5)
    client.sendall(b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n")
    assert client.recv(1000).startswith(b"HTTP/1.1 403 ")
    client.close()
    assert json.loads(process.ready.read_text())["policy_error"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENSHELL_PROXY_IP", ""),
        ("OPENSHELL_PROXY_IP", "0.0.0.0"),
        ("OPENSHELL_PROXY_IP", "x"),
        ("OPENSHELL_AGENT_IP", ""),
        ("OPENSHELL_SANDBOX", ""),
        ("OPENSHELL_DEFAULT_ENFORCEMENT", "off"),
        ("OPENSHELL_GATEWAY_ENDPOINT", "host:8080"),
        ("OPENSHELL_MODE", "gateway"),
        ("OPENSHELL_POLICY_FAILURE_MODE", "open"),
        ("OPENSHELL_PROXY_LIMITS", "connections=0"),
        ("OPENSHELL_UPSTREAM_PROXY", "proxy"),
        ("OPENSHELL_AUTHORITY", "/nowhere"),
    ],
)
def test_an_environment_that_cannot_be_served_is_one_sentence(process: Process, name: str, value: str) -> None:
    process.environ[name] = value
    done = process.command("serve")
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert name in done.stderr or "authority" in done.stderr
    assert not process.ready.exists()


def test_one_that_opens_no_tls_never_has_what_makes_certificates(process: Process) -> None:
    process.environ["TELL"] = ""
    process.start()
    assert process.running is not None
    children = Path(f"/proc/{process.running.pid}/task/{process.running.pid}/children")
    assert children.read_text() == ""  # nor the one that judged the authority's file with it
    with socket.create_connection((ADDRESS, PORTS[0]), 5) as client:
        client.sendall(b"CONNECT b.test:443 HTTP/1.1\r\nHost: b.test:443\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 403 ")
    assert process.end()[2].split() == ["cryptography:", "False"]


def test_its_memory_is_shown_to_nobody(process: Process) -> None:
    process.start()
    assert process.running is not None
    status = Path(f"/proc/{process.running.pid}")
    core = next(line for line in (status / "limits").read_text().splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    dumps = "import ctypes; from openshell_proxy.server import keep_memory_private as keep; keep(); "
    dumps += "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"  # PR_GET_DUMPABLE
    done = subprocess.run(
        [sys.executable, "-c", dumps], env=process.environ, text=True, capture_output=True, check=True
    )
    assert done.stdout.strip() == "0"


def held_up() -> socket.socket:
    """A connection on which a body has begun that is judged as a whole."""
    sock = socket.create_connection((ADDRESS, PORTS[0]), 30)
    sock.sendall(f"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: {16 << 20}\r\n\r\n".encode())
    return sock


def test_an_agent_that_fills_every_buffer_does_not_exceed_the_memory(process: Process) -> None:
    """What 100 connections send is 800 MiB; the sidecar, of 300 MiB, ends some of them and serves on."""
    limit = 300 << 20
    (process.directory / "memory.max").write_text(f"{limit}\n")
    endpoint = {"host": "a.test", "port": 80, "protocol": "graphql", "access": "full"}
    endpoint |= {"graphql_max_body_bytes": 16 << 20}
    process.policy.write_text(json.dumps({"version": 1, "network_policies": {"a": {"endpoints": [endpoint]}}}))
    process.start()
    assert process.running is not None
    first, *others = (held_up() for _ in range(101))
    for sock in others:
        with contextlib.suppress(OSError):
            sock.sendall(bytes(8 << 20))
    status = Path(f"/proc/{process.running.pid}/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) << 10
    assert limit * DIRE < peak < limit
    assert not _stands(others[-1])
    assert _stands(first)  # the oldest connection has seen nothing of it
    for sock in (first, *others):
        sock.close()
    deadline = time.monotonic() + 60
    while not _answers(b"GET http://b.test/ HTTP/1.1\r\nHost: b.test\r\n\r\n").startswith(b"HTTP/1.1 403"):
        assert time.monotonic() < deadline
    _, stdout, _ = process.end()
    assert "memory is scarce: the newest connections are ended" in stdout


def _stands(sock: socket.socket) -> bool:
    """Whether the sidecar has neither ended the connection nor said anything."""
    return not select.select([sock], [], [], 0.5)[0]


def _answers(request: bytes) -> bytes:
    with socket.create_connection((ADDRESS, PORTS[0]), 30) as sock:
        sock.sendall(request)
        return sock.recv(100)
