# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real Podman, real playbooks, real clients. Names of this suite begin with ``it-``; all are deleted at the end."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import services
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).resolve().parents[2]
MAIN = "it-main"
NAMED = "origin.it.example"  # in the origin's certificate; resolves where a test makes it resolve


def podman(*args: str, check: bool = True, executable: str = "podman") -> subprocess.CompletedProcess[str]:
    """Run podman as the collection's client does: again, while something else is in the way."""
    result = Podman(executable).run(args, check=False)
    done = subprocess.CompletedProcess(["podman", *args], result.rc, result.stdout, result.stderr)
    if check:
        assert done.returncode == 0, f"podman {args[0]}: {done.stderr}"
    return done


def playbook(name: str, *args: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run a playbook of the checkout; the caller looks at the return code."""
    command = [str(ROOT / ".venv/bin/ansible-playbook"), f"playbooks/{name}.yml", *args, "-e", json.dumps(variables)]
    env = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False, timeout=900, env=env)


def changed(result: subprocess.CompletedProcess[str]) -> int:
    recap = result.stdout.rsplit("PLAY RECAP", 1)[1]
    return sum(int(word.partition("=")[2]) for word in recap.split() if word.startswith("changed="))


def inside(name: str, *command: str, seconds: int = 240) -> subprocess.CompletedProcess[str]:
    """Run a command in the agent as it stands, with no flags or configuration of its own."""
    args = ["podman", "exec", f"openshell-agent-{name}", "timeout", str(seconds), *command]
    return subprocess.run(args, text=True, capture_output=True, check=False, timeout=seconds + 30)


def audit(name: str) -> list[dict[str, object]]:
    """The sidecar's decisions, from its standard output."""
    lines = podman("logs", f"openshell-proxy-{name}").stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def ours(kind: str, *sandboxes: str) -> list[str]:
    """Objects of the named sandboxes that exist."""
    listing = {
        "container": ("ps", "-a", "--format", "{{.Names}}"),
        "network": ("network", "ls", "--format", "{{.Name}}"),
        "volume": ("volume", "ls", "--format", "{{.Name}}"),
        "secret": ("secret", "ls", "--format", "{{.Name}}"),
    }[kind]
    return [one for one in podman(*listing).stdout.split() if any(one.endswith("-" + name) for name in sandboxes)]


class Origin:
    """Web servers on this host's own address: http, and https with a certificate of an authority of the suite."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address = _host_address()
        self.ca_bundle = directory / "bundle.pem"
        key_file, self.root = _certificate(directory, self.address)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(key_file)
        self.files = directory / "www"
        self.files.mkdir()
        (self.files / "hello.txt").write_text("hello from outside\n")
        self.http = self.serve(None).server_port
        self.https = self.serve(self.context).server_port
        self.services = {
            "git": services.git(directory / "git", self.address, self.context),
            "events": services.events(self.address, self.context),
            "uploads": services.uploads(self.address, self.context),
            "websocket": services.websocket(self.address, self.context),
            "rpc": services.rpc(self.address, key_file.read_bytes()),
        }

    def serve(self, context: ssl.SSLContext | None, port: int = 0) -> http.server.HTTPServer:
        """One more server for the same files."""
        files = str(self.files)

        class Handler(http.server.SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=files)  # type: ignore[arg-type]

            def log_message(self, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer((self.address, port), Handler)
        server.daemon_threads = True
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


def _host_address() -> str:
    """The address with which this host speaks to others; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("198.51.100.1", 9))
        return str(probe.getsockname()[0])


def _certificate(directory: Path, address: str) -> tuple[Path, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "integration test origin")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.IPAddress(ipaddress.ip_address(address)), x509.DNSName(NAMED)]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    file = directory / "origin.pem"
    file.write_bytes(secret + pem)
    return file, pem.decode()


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    made = Origin(tmp_path_factory.mktemp("origin"))
    named = [os.environ.get(one, "") for one in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")]
    roots = next((one for one in [*named, "/etc/ssl/certs/ca-certificates.crt"] if one and Path(one).is_file()), "")
    made.ca_bundle.write_text((Path(roots).read_text() if roots else "") + made.root)
    return made


@pytest.fixture(scope="session")
def variables(origin: Origin) -> dict[str, object]:
    """What the suite's main sandbox is created with."""
    readable = dict.fromkeys((origin.http, origin.https), "read-only")
    writable = dict.fromkeys(origin.services.values(), "full")
    endpoints = [
        {"host": origin.address, "port": port, "protocol": "rest", "enforcement": "enforce", "access": access}
        for port, access in {**readable, **writable}.items()
    ]
    return {
        "sandbox_name": MAIN,
        "openshell_allow_host_registries": True,
        "openshell_upstream_ca_bundle": str(origin.ca_bundle),
        "openshell_policy": {"version": 1, "network_policies": {"origin": {"endpoints": endpoints}}},
    }


@pytest.fixture(scope="session")
def sandbox(variables: dict[str, object]) -> Iterator[str]:
    """The main sandbox, created once by the playbook and deleted by the playbook."""
    try:
        made = playbook("create_sandbox", **variables)
        assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-2000:]
        yield MAIN
    finally:
        playbook("delete_sandbox", sandbox_name=MAIN)
