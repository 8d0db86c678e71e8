# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the base image comes from, and the sentence when it comes from nowhere."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils import base_image
from ansible_collections.openshell.sandbox.plugins.module_utils.base_image import (
    NoBase,
    bootstrap,
    build_arguments,
    choose,
    os_release,
    package_sources,
    pull,
    registry_answers,
    why_no_bootstrap,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from host import Host

DEBIAN = {"ID": "debian", "VERSION_CODENAME": "bookworm"}
FEDORA = 'NAME="Fedora Linux"\nID=fedora\nVERSION_ID=42\nVERSION_CODENAME=""\n'
ROCKY = 'NAME="Rocky Linux"\nID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.6"\n'
SOURCES = "deb http://deb.example/debian bookworm main\n"


@pytest.fixture
def tools(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A Debian host whose commands are those that a test installs, and podman."""
    monkeypatch.setenv("PATH", str(host.directory / "bin"))
    monkeypatch.setattr(base_image, "os_release", lambda: DEBIAN)
    host.command("apt-get", f"/bin/cat <<END\n{SOURCES}deb file:/srv x y\n{SOURCES}END")
    return host


def test_os_release(tmp_path: Path) -> None:
    path = tmp_path / "os-release"
    path.write_text("ID=debian\nPRETTY_NAME=\"Debian = 12\"\nVERSION_CODENAME='bookworm'\n\n# x\n")
    assert os_release(str(path)) == {"PRETTY_NAME": "Debian = 12", **DEBIAN}


def test_only_debian_and_ubuntu_bootstrap(tools: Host) -> None:
    tools.command("mmdebstrap", "exit 0")
    assert why_no_bootstrap(DEBIAN) == ""
    assert why_no_bootstrap({**DEBIAN, "ID": "ubuntu"}) == ""
    assert why_no_bootstrap({"ID": "fedora", "VERSION_CODENAME": "x"}) == (
        "fedora has no bootstrap here, only Debian and Ubuntu have; "
        "name in openshell_base_image a Debian image that is on this host or that it can pull"
    )
    assert why_no_bootstrap({}).startswith("this distribution has no bootstrap here")
    assert why_no_bootstrap({"ID": "debian"}) != ""


def test_bootstrapping_needs_its_tool(tools: Host) -> None:
    assert why_no_bootstrap(DEBIAN) == "mmdebstrap is not installed; install the package mmdebstrap"


def test_the_choice(tools: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("pull", "127.0.0.1:1/x") == "pull"
    with pytest.raises(NoBase, match=r"^a base image cannot be bootstrapped: mmdebstrap is not installed"):
        choose("bootstrap", "127.0.0.1:1/x")
    with pytest.raises(NoBase, match=r"^the registry of 127.0.0.1:1/x does not answer, and a base image cannot be"):
        choose("auto", "127.0.0.1:1/x")
    tools.command("mmdebstrap", "exit 0")
    assert choose("auto", "127.0.0.1:1/x") == "bootstrap"
    assert choose("bootstrap", "127.0.0.1:1/x") == "bootstrap"
    monkeypatch.setattr(base_image, "registry_answers", lambda reference: True)
    assert choose("auto", "127.0.0.1:1/x") == "pull"
    assert choose("bootstrap", "127.0.0.1:1/x") == "bootstrap"


def test_package_sources_are_the_hosts_own(tools: Host) -> None:
    assert package_sources() == SOURCES
    tools.command("apt-get", "exit 100")
    with pytest.raises(NoBase, match="this host has no package source with an index; run apt-get update"):
        package_sources()


def test_a_bootstrap_is_streamed_into_an_import(tools: Host) -> None:
    log = tools.directory / "mmdebstrap.log"
    tools.command("mmdebstrap", f'echo "$@" >{log}; /bin/cat >>{log}; echo archive')
    bootstrap(tools.podman, "localhost/base:1", ["python3", "git"])
    words, *sources = log.read_text().splitlines()
    assert "--variant=essential --include=python3,git" in words
    assert words.endswith(" bookworm - -")
    assert "\n".join(sources) + "\n" == SOURCES
    assert tools.stdin_of("import") == b"archive\n"
    assert tools.calls("import") == [["import", "--change", "LABEL openshell.managed=true", "-", "localhost/base:1"]]
    assert tools.podman.image_id("localhost/base:1")


def test_a_bootstrap_that_fails_leaves_no_image(tools: Host) -> None:
    tools.command("mmdebstrap", "echo half; echo 'E: no such suite' >&2; exit 25")
    with pytest.raises(NoBase, match="bootstrapping the base image failed: E: no such suite"):
        bootstrap(tools.podman, "localhost/base:1", [])
    assert tools.podman.image_id("localhost/base:1") is None


def test_an_import_that_fails_is_told(tools: Host) -> None:
    tools.command("mmdebstrap", "/bin/cat >/dev/null; echo all")
    tools.fail("import", "Error: no space left on device")
    with pytest.raises(NoBase, match="importing the base image failed: no space left on device"):
        bootstrap(tools.podman, "localhost/base:1", [])


def test_without_sources_no_bootstrap_begins(tools: Host) -> None:
    tools.command("apt-get", "exit 100")
    tools.command("mmdebstrap", f"echo begun >{tools.directory}/begun")
    with pytest.raises(NoBase, match="run apt-get update"):
        bootstrap(tools.podman, "localhost/base:1", [])
    assert not (tools.directory / "begun").exists()


def test_pulling(host: Host) -> None:
    pull(host.podman, "registry.example/x:1")
    assert host.calls("pull") == [["pull", "--quiet", "registry.example/x:1"]]
    host.fail("pull", "Error: connection refused")
    with pytest.raises(NoBase, match=r"the image registry.example/y cannot be pulled: connection refused"):
        pull(host.podman, "registry.example/y")


def test_arguments_of_a_build(tmp_path: Path) -> None:
    (tmp_path / "bundle.pem").write_text("")
    (tmp_path / "link").symlink_to("bundle.pem")
    plain = ["build", "--quiet", "--pull=never", "--force-rm", "--build-arg", "BASE=b", "--build-arg", "PACKAGES=x y"]
    assert build_arguments("b", ["x", "y"], "", []) == plain
    volume = f"{os.path.realpath(tmp_path)}/bundle.pem:/etc/ssl/certs/ca-certificates.crt:ro"
    assert build_arguments("b", ["x", "y"], str(tmp_path / "link"), ["nofile=1:1"]) == [
        *plain,
        "--ulimit",
        "nofile=1:1",
        "--security-opt",
        "label=disable",
        "--volume",
        volume,
    ]


@pytest.mark.parametrize(("text", "who"), [(FEDORA, "fedora"), (ROCKY, "rocky")])
def test_a_fedora_family_host_is_told_what_to_do_instead(tmp_path: Path, text: str, who: str) -> None:
    file = tmp_path / "os-release"
    file.write_text(text)
    reason = why_no_bootstrap(os_release(str(file)))
    assert reason.startswith(f"{who} has no bootstrap here")
    assert "openshell_base_image" in reason


def test_a_build_reads_the_hosts_bundle_also_where_selinux_would_deny_it() -> None:
    """Relabelling that file, as ``:z`` does, would take it from everybody else on the host."""
    with_bundle = build_arguments("base", [], "/etc/ssl/certs/ca-certificates.crt", [])
    assert with_bundle[with_bundle.index("--security-opt") + 1] == "label=disable"
    volume = with_bundle[with_bundle.index("--volume") + 1]
    assert volume.endswith(":/etc/ssl/certs/ca-certificates.crt:ro")
    assert "--security-opt" not in build_arguments("base", [], "", [])


# -- a real registry on loopback -----------------------------------------------------------------------------------


class Registry(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/v2/" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quietly."""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A registry's name; its certificate is trusted through the environment."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    both = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path / "registry.pem"
    path.write_bytes(both + certificate.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}/library/debian:bookworm-slim"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "answers"), [(200, True), (401, True), (403, False), (404, False), (500, False)])
def test_a_registry_answers(registry: str, monkeypatch: pytest.MonkeyPatch, status: int, answers: bool) -> None:
    monkeypatch.setattr(Registry, "status", status)
    assert registry_answers(registry) is answers


def test_a_registry_that_is_not_there_or_not_trusted_does_not_answer(
    registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    assert registry_answers(registry) is False
    assert registry_answers("127.0.0.1:1/x") is False
    assert registry_answers("127.0.0.1:nonsense/x") is False
