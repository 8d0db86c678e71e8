# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Four network namespaces, the same for every contestant, and the origin in one of them.

::

    load 10.231.1.3 ── 10.231.1.2 proxy 10.231.2.2 ── router ── 10.231.3.2 origin
      └──────────────── 10.231.4.2 ──────────────────────┘        (the way of "direct")

The sidecar refuses its own networks, whatever the policy says. The origin lies behind a router, on a network of its
own, as a private service behind a host does: nothing in the product is switched off for the measurement.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Outside of the checkout: nginx, squid and the sidecar run as users of their own, who may not be able to enter a home.
WORK = Path("/var/tmp/openshell-bench")
VENV = ROOT / ".work" / "bench-venv"
PYTHON = VENV / "bin" / "python"

PROXY_CORE, LOAD_CORE = 0, 1
LOAD, PROXY, ROUTER, ORIGIN = "bench-load", "bench-proxy", "bench-router", "bench-origin"
AGENT_IP, PROXY_IP, ORIGIN_IP = "10.231.1.3", "10.231.1.2", "10.231.3.2"
NAME = "origin.bench.test"
SECRET = "bench-authority"

TLS_PORT, PLAIN_PORT, TUNNEL_PORT = 8443, 8080, 9000
SINK_PORT, EVENTS_PORT, H2_PORT = 8444, 8445, 8446
INJECTED = ("X-Bench-Key", "injected-by-the-proxy")

# (namespace, interface, address, peer namespace, peer interface, peer address)
LINKS = (
    (LOAD, "proxy", "10.231.1.3/24", PROXY, "agent", "10.231.1.2/24"),
    (PROXY, "out", "10.231.2.2/24", ROUTER, "proxy", "10.231.2.1/24"),
    (ORIGIN, "out", "10.231.3.2/24", ROUTER, "origin", "10.231.3.1/24"),
    (LOAD, "out", "10.231.4.2/24", ROUTER, "load", "10.231.4.1/24"),
)

NGINX = """
worker_processes 1; daemon off; pid {work}/nginx.pid; error_log stderr error;
events {{ worker_connections 8192; }}
http {{
  access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 600s;
  open_file_cache max=100; client_body_temp_path {work}; root {work}/files; default_type application/octet-stream;
  server {{
    listen {ip}:{plain}; listen {ip}:{tunnel}; listen {ip}:{tls} ssl;
    ssl_certificate {work}/origin.pem; ssl_certificate_key {work}/origin.pem; ssl_session_cache off;
    location / {{ }}
    location = /injected {{ if ($http_x_bench_key != "{injected}") {{ return 403; }} try_files /1k =404; }}
  }}
}}
"""


def run(*command: str | Path, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command and take in what it says. Raises :class:`RuntimeError` with its error text."""
    done = subprocess.run([str(word) for word in command], text=True, capture_output=True, **more)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done


def inside(namespace: str, *command: str | Path, core: int) -> list[str]:
    """The command line that runs *command* in a namespace on one core; its process is the one that is started."""
    return ["ip", "netns", "exec", namespace, "taskset", "-c", str(core), *map(str, command)]


def make_work() -> None:
    """Begin with an empty directory of our own, which others may enter. Raises :class:`OSError` where it is not ours."""
    if WORK.is_symlink() or WORK.is_file():
        WORK.unlink()
    elif WORK.exists():
        shutil.rmtree(WORK)
    WORK.mkdir(mode=0o755)  # it was made just now or not at all: nobody else's is taken for ours
    WORK.chmod(0o755)
    os.umask(0o022)


class World:
    """Makes the namespaces and the origin, starts processes in them, and removes it all.

    ``sysctls`` are those that the role gives the sidecar's container; here they are the namespace's, so the peers have
    them too.
    """

    def __init__(self, big_bytes: int, sysctls: dict[str, str]) -> None:
        self.big_bytes = big_bytes
        self.sysctls = sysctls
        self.processes: list[subprocess.Popen[str]] = []

    def make(self) -> None:
        self.remove_namespaces()
        for name in (LOAD, PROXY, ROUTER, ORIGIN):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        for near, interface, address, far, peer, peer_address in LINKS:
            run("ip", "link", "add", interface, "netns", near, "type", "veth", "peer", "name", peer, "netns", far)
            for name, link, ip in ((near, interface, address), (far, peer, peer_address)):
                run("ip", "-n", name, "address", "add", ip, "dev", link)
                run("ip", "-n", name, "link", "set", link, "up")
        run("ip", "netns", "exec", ROUTER, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        for key, value in self.sysctls.items():
            run("ip", "netns", "exec", PROXY, "sysctl", "-qw", f"{key}={value}")
        for name, via in ((PROXY, "10.231.2.1"), (ORIGIN, "10.231.3.1")):
            run("ip", "-n", name, "route", "add", "default", "via", via)
        run("ip", "-n", LOAD, "route", "add", "10.231.3.0/24", "via", "10.231.4.1")
        names = Path("/etc/netns") / PROXY
        names.mkdir(parents=True, exist_ok=True)
        (names / "resolv.conf").write_text(f"nameserver {ORIGIN_IP}\n")
        self._origin()

    def _origin(self) -> None:
        make_authority("origin-ca")
        make_leaf("origin", "origin-ca")
        files = WORK / "files"
        files.mkdir(exist_ok=True)
        (files / "1k").write_bytes(b"x" * 1020 + b"END\n")
        with open(files / "big", "wb") as big:
            big.truncate(self.big_bytes)
        text = NGINX.format(
            work=WORK, ip=ORIGIN_IP, plain=PLAIN_PORT, tunnel=TUNNEL_PORT, tls=TLS_PORT, injected=INJECTED[1]
        )
        (WORK / "nginx.conf").write_text(text)
        self.start(ORIGIN, "nginx", "-c", WORK / "nginx.conf", core=LOAD_CORE, log="nginx")
        script = Path(__file__).with_name("origin.py")
        self.start(ORIGIN, PYTHON, script, WORK / "origin.pem", ORIGIN_IP, core=LOAD_CORE, log="origin")
        for port in (PLAIN_PORT, EVENTS_PORT, SINK_PORT, H2_PORT):
            wait_for_port(ORIGIN, ORIGIN_IP, port)

    def start(self, namespace: str, *command: str | Path, core: int, log: str) -> subprocess.Popen[str]:
        with open(WORK / f"{log}.log", "w") as out:
            process = subprocess.Popen(
                inside(namespace, *command, core=core), stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True
            )
        self.processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[str]) -> None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.processes.remove(process)

    def load(self, task: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Run one scenario of load.py in the load's namespace; its answer, ``error`` in it when the round failed."""
        script = Path(__file__).with_name("load.py")
        command = inside(LOAD, PYTHON, script, json.dumps({"core": LOAD_CORE, **task}), core=LOAD_CORE)
        try:
            done = run(*command, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {seconds:.0f} s"}
        if done.returncode:
            return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"}
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def remove(self) -> None:
        for process in list(self.processes):
            self.stop(process)
        self.remove_namespaces()
        (Path("/etc/netns") / PROXY / "resolv.conf").unlink(missing_ok=True)
        if (Path("/etc/netns") / PROXY).is_dir():
            (Path("/etc/netns") / PROXY).rmdir()

    def remove_namespaces(self) -> None:
        there = run("ip", "netns", "list").stdout.split()
        for name in (LOAD, PROXY, ROUTER, ORIGIN):
            if name in there:
                run("ip", "netns", "delete", name)


def wait_for_port(namespace: str, address: str, port: int, seconds: float = 40) -> None:
    """Until something listens there. Raises :class:`RuntimeError`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        listening = run("ip", "netns", "exec", namespace, "ss", "-Hltn", f"sport = :{port}").stdout
        if f"{address}:{port}" in listening or f"*:{port}" in listening or f"0.0.0.0:{port}" in listening:
            return
        time.sleep(0.1)
    raise RuntimeError(f"nothing listens at {address}:{port} after {seconds:.0f} s; see the logs in {WORK}")


def make_authority(name: str) -> None:
    """``NAME.key`` and ``NAME.crt`` (EC P-256), and both in ``NAME.pem``."""
    key, certificate = WORK / f"{name}.key", WORK / f"{name}.crt"
    extensions = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")
    _certificate(key, certificate, name, extensions, ())
    (WORK / f"{name}.pem").write_text(key.read_text() + certificate.read_text())


def make_leaf(name: str, authority: str) -> None:
    """The same for a server that is called :data:`NAME`."""
    key, certificate = WORK / f"{name}.key", WORK / f"{name}.crt"
    signer = ("-CA", str(WORK / f"{authority}.crt"), "-CAkey", str(WORK / f"{authority}.key"))
    extensions = (f"subjectAltName=DNS:{NAME}", "basicConstraints=critical,CA:FALSE", "extendedKeyUsage=serverAuth")
    _certificate(key, certificate, NAME, extensions, signer)
    (WORK / f"{name}.pem").write_text(key.read_text() + certificate.read_text())


def _certificate(key: Path, certificate: Path, name: str, extensions: Sequence[str], signer: Sequence[str]) -> None:
    added = [word for text in extensions for word in ("-addext", text)]
    config = WORK / "openssl.cnf"
    config.write_text("[req]\ndistinguished_name = none\n[none]\n")  # the distribution's would add CA:TRUE to a leaf
    run(
        "openssl", "req", "-x509", "-config", config, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-days", "30", "-subj", f"/CN={name}", "-keyout", key, "-out", certificate, *added, *signer,
        env={**os.environ, "OPENSSL_CONF": str(config)},
    )  # fmt: skip
