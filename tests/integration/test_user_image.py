# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A user's image is pulled from a private registry, which the suite runs; what cannot be had is told in one sentence."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Origin, changed, podman

Run = Callable[..., subprocess.CompletedProcess[str]]
LOGIN = base64.b64encode(b"it:secret-of-the-registry").decode()
NAME = "it/agent"
PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: openshell.sandbox.image}
    - ansible.builtin.debug: {msg: "id {{ openshell_agent_image_id }}."}
"""


def blobs() -> tuple[bytes, dict[str, bytes]]:
    """An image of one empty file: (manifest, content by digest); OCI image specification, Docker schema 2 types."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("it-was-pulled"))
    layer = buffer.getvalue()
    digest = {"layer": f"sha256:{hashlib.sha256(layer).hexdigest()}"}
    rootfs = {"type": "layers", "diff_ids": [digest["layer"]]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    digest["config"] = f"sha256:{hashlib.sha256(config).hexdigest()}"
    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": {"mediaType": f"{kind}.config.v1+json", "size": len(config), "digest": digest["config"]},
        "layers": [{"mediaType": f"{kind}.layer.v1.tar", "size": len(layer), "digest": digest["layer"]}],
    }
    return json.dumps(manifest).encode(), {digest["layer"]: layer, digest["config"]: config}


@pytest.fixture(scope="module")
def registry(origin: Origin) -> Iterator[str]:
    """``host:port`` of a registry that wants a login (distribution specification, pull only)."""
    manifest, content = blobs()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, answer = self.path, b"{}"
            kind = "application/json"
            if self.headers.get("Authorization") != f"Basic {LOGIN}":
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="it"')
            elif path == "/v2/" or path.startswith(f"/v2/{NAME}/manifests/") or path.rsplit("/", 1)[1] in content:
                if "/manifests/" in path:
                    answer, kind = manifest, "application/vnd.oci.image.manifest.v1+json"
                answer = content.get(path.rsplit("/", 1)[1], answer)
                self.send_response(200)
            else:
                self.send_response(404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((origin.address, 0), Handler)
    server.daemon_threads = True
    server.socket = origin.context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"{origin.address}:{server.server_port}"
    server.shutdown()


@pytest.fixture
def run(tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the role image alone with these variables."""
    monkeypatch.setenv("SSL_CERT_FILE", str(origin.ca_bundle))  # so that Podman trusts the registry
    monkeypatch.setenv("ANSIBLE_NOCOLOR", "1")
    (tmp_path / "play.yml").write_text(PLAY)

    def play(*args: str, **variables: object) -> subprocess.CompletedProcess[str]:
        command = [ROOT / ".venv/bin/ansible-playbook", tmp_path / "play.yml", *args, "-e", json.dumps(variables)]
        return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False, timeout=600)

    return play


def test_it_is_pulled_with_a_login_and_not_in_check_mode(run: Run, registry: str, tmp_path: Path) -> None:
    image = f"{registry}/{NAME}:1"
    login = tmp_path / "auth.json"
    login.write_text(json.dumps({"auths": {registry: {"auth": LOGIN}}}))
    wanted = {"openshell_image": image, "openshell_registry_auth_file": str(login)}
    try:
        checked = run("--check", **wanted)
        assert checked.returncode == 0, checked.stdout
        assert changed(checked) == 1
        assert podman("image", "exists", image, check=False).returncode == 1
        pulled = run("-vvv", **wanted)
        assert pulled.returncode == 0, pulled.stdout
        assert changed(pulled) == 1
        assert LOGIN not in pulled.stdout and "secret-of-the-registry" not in pulled.stdout
        id_ = podman("image", "inspect", "-f", "{{.Id}}", image).stdout.strip()
        assert f"id {id_}." in pulled.stdout
        again = run(**wanted)
        assert changed(again) == 0
        assert f"id {id_}." in again.stdout
    finally:
        podman("rmi", "--force", image, check=False)


def test_what_cannot_be_had_is_told_in_one_sentence(run: Run, registry: str) -> None:
    short = run(openshell_image="it-no-such-image")
    assert short.returncode != 0
    assert "its name says no registry" in short.stdout.replace("\n", " ")
    refused = run(openshell_image=f"{registry}/{NAME}:1")
    assert refused.returncode != 0
    assert f"The image {registry}/{NAME}:1 cannot be pulled" in refused.stdout.replace("\n", " ")
    assert "openshell_registry_auth_file" in refused.stdout
    assert "Trying to pull" not in refused.stdout  # nor the rest of what Podman writes before its error
    assert "Traceback" not in refused.stdout + refused.stderr
