# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What keeps the start short and the idle process small, and the control socket, which is served without a framework."""

from __future__ import annotations

import asyncio
import json
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import HOST, SECONDS, World, hello, rest
from openshell_proxy.authority import Authority, UpstreamTls
from openshell_proxy.minting import new_authority

LATER = (
    "aiohttp",
    "argparse",
    "cryptography",
    "difflib",
    "dns",
    "graphql",
    "h2",
    "http.client",
    "jmespath",
    "websockets",
)


def test_no_library_is_loaded_at_the_start_that_only_some_sandboxes_need() -> None:
    code = f"import sys, openshell_proxy.cli, openshell_proxy.server; print(*set({LATER}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == ""


async def ask(world: World, request: bytes) -> tuple[str, bytes]:
    """Status line and body of the control socket's answer."""
    reader, writer = await asyncio.open_unix_connection(world.directory / "run/control.sock")
    writer.write(request)
    data = await asyncio.wait_for(reader.read(), SECONDS)
    writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    return head.decode().split("\r\n")[0], body


async def test_the_control_socket_answers_status_and_reload_to_its_user_only(world: World) -> None:
    await world.start()
    mode = (world.directory / "run/control.sock").stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
    line, body = await ask(world, b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert line == "HTTP/1.1 200 OK"
    assert json.loads(body)["generation"] == 1
    (world.directory / "state/config/policy.yaml").write_text("version: [")
    line, body = await ask(world, b"POST /reload HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert line == "HTTP/1.1 422 Unprocessable Content"
    assert json.loads(body)["policy_error"]
    world.write_policy([])
    line, body = await ask(world, b"POST /reload HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert line == "HTTP/1.1 200 OK"
    assert json.loads(body)["generation"] == 3


@pytest.mark.parametrize(
    ("request_line", "status"),
    [("GET /reload", 405), ("POST /status", 405), ("GET /", 404), ("GET  /status", 400)],
)
async def test_the_control_socket_does_nothing_else(world: World, request_line: str, status: int) -> None:
    await world.start()
    assert world.sidecar is not None
    line, body = await ask(world, f"{request_line} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert line.split(" ")[1] == str(status)
    assert json.loads(body)["error"]
    assert world.sidecar.status()["generation"] == 1


async def test_the_control_socket_hangs_up_on_a_head_without_end(world: World) -> None:
    await world.start()
    assert await ask(world, b"GET /status HTTP/1.1\r\n" + b"x" * 20_000) == ("", b"")


def hashed(directory: Path, pem: bytes) -> None:
    """Put a certificate where OpenSSL looks for it: under the hash of its subject (openssl-rehash(1))."""
    certificate = directory / "one.pem"
    certificate.write_bytes(pem)
    done = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", certificate], text=True, capture_output=True, check=True
    )
    certificate.rename(directory / f"{done.stdout.strip()}.0")


@pytest.mark.parametrize("trusted", [True, False])
async def test_system_roots_are_read_one_by_one_when_they_are_needed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    roots = tmp_path / "roots"
    roots.mkdir()
    other = Authority(new_authority("another"))
    hashed(roots, (world.origin_authority if trusted else other).mint.certificate_pem)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    paths = ssl.get_default_verify_paths()._replace(capath=str(roots))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    (world.directory / "state/config/upstream-ca.pem").unlink()
    assert UpstreamTls("").http1.cert_store_stats()["x509"] == 0
    origin = await world.origin(hello, tls=True)
    await world.start(rest(origin.port))
    client = await world.tunnel(origin.port)
    await client.send(f"GET / HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
    assert (await client.response()).status == (200 if trusted else 502)


def test_a_directory_of_roots_without_hashes_is_not_all_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(Authority(new_authority("system")).mint.certificate_pem)
    (tmp_path / "README").touch()
    paths = ssl.get_default_verify_paths()
    monkeypatch.setenv(paths.openssl_cafile_env, str(bundle))
    assert UpstreamTls("").http1.cert_store_stats()["x509"] == 1
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths._replace(capath=str(tmp_path)))
    monkeypatch.delenv(paths.openssl_capath_env, raising=False)
    assert UpstreamTls("").http1.cert_store_stats()["x509"] == 1


def test_a_client_is_given_no_session_ticket() -> None:
    assert Authority(new_authority()).context("a.test").num_tickets == 0
