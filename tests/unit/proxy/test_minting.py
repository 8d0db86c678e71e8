# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The authority's file is judged by a process of its own; what makes certificates is loaded apart, and once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from loopback import HOST, SECONDS, World, hello, rest
from openshell_proxy import minting
from openshell_proxy.authority import Authority, AuthorityError, Check
from openshell_proxy.minting import Mint, new_authority
from openshell_proxy.server import StartError

NOTHING_THERE = "the authority's file does not hold a PEM key and certificate"
OTHER_KIND = "the authority's key is not an elliptic-curve key"
STRANGERS = "the authority's key and certificate do not belong together"


def key_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey, secret: str = "") -> bytes:
    hidden = serialization.BestAvailableEncryption(secret.encode()) if secret else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)


def certificate(pem: bytes) -> bytes:
    return pem[pem.index(b"-----BEGIN CERTIFICATE") :]


GOOD = new_authority()
BAD = [
    pytest.param(b"", NOTHING_THERE, id="empty"),
    pytest.param(certificate(GOOD), NOTHING_THERE, id="no key"),
    pytest.param(GOOD[: -len(certificate(GOOD))], NOTHING_THERE, id="no certificate"),
    pytest.param(GOOD.replace(b"-----BEGIN CERTIFICATE-----\n", b"-----BEGIN CERTIFICATE-----\nAAAA"), NOTHING_THERE,
                 id="damaged"),
    pytest.param(key_pem(ec.generate_private_key(ec.SECP256R1()), "x") + certificate(GOOD), NOTHING_THERE, id="encrypted"),
    pytest.param(key_pem(rsa.generate_private_key(65_537, 2048)) + certificate(GOOD), OTHER_KIND, id="RSA"),
    pytest.param(key_pem(ed25519.Ed25519PrivateKey.generate()) + certificate(GOOD), OTHER_KIND, id="Ed25519"),
    pytest.param(key_pem(ec.generate_private_key(ec.SECP256R1())) + certificate(GOOD), STRANGERS, id="strangers"),
]  # fmt: skip


@pytest.mark.parametrize(("pem", "why"), BAD)
async def test_a_sidecar_with_another_file_does_not_start(world: World, pem: bytes, why: str) -> None:
    (world.directory / "authority.pem").write_bytes(pem)
    with pytest.raises(StartError, match=f"^no certificate authority: {why}$"):
        await world.start()
    assert not (world.directory / "tls/.ready").exists()
    assert not (world.directory / "tls/ca.pem").exists()


async def test_the_agent_gets_the_certificate_alone(world: World) -> None:
    (world.directory / "authority.pem").write_bytes(b"whose it is\n" + GOOD.replace(b"\n", b"\r\n"))
    await world.start()
    assert (world.directory / "tls/ca.pem").read_bytes() == certificate(GOOD)


@pytest.mark.parametrize(
    ("number", "error", "why"),
    [
        (signal.SIGKILL, None, "what judges the authority's file was killed"),
        (0, RuntimeError("k3y"), r"the authority's file cannot be judged \(RuntimeError\)"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    monkeypatch: pytest.MonkeyPatch, number: int, error: Exception | None, why: str
) -> None:
    def fail(_pem: bytes) -> None:
        os.kill(os.getpid(), number)
        if error is not None:
            raise error

    monkeypatch.setattr(minting, "Mint", fail)
    with pytest.raises(AuthorityError, match=f"^{why}$"):
        Check(GOOD).certificate()


def test_the_one_that_judges_is_gone_afterwards() -> None:
    check = Check(GOOD)
    assert check.certificate() == certificate(GOOD)
    assert not Path(f"/proc/{check._child}").exists()


async def test_nobody_waits_while_what_makes_certificates_is_loaded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    others_served, loads = threading.Event(), []

    def slow(authority: Authority) -> Mint:
        loads.append(authority)
        assert others_served.wait(SECONDS), "everything stands still"
        return Mint((world.directory / "authority.pem").read_bytes())

    tls, plain = await world.origin(hello, tls=True), await world.origin(hello)
    await world.start(rest(tls.port), rest(plain.port))
    monkeypatch.setattr(Authority, "_new_mint", slow)
    first = [asyncio.create_task(world.tunnel(tls.port)) for _ in range(3)]
    client = await world.tunnel(plain.port, tls=False)
    await client.send(f"GET / HTTP/1.1\r\nHost: {HOST}:{plain.port}\r\n\r\n".encode())
    assert (await client.response()).status == 200
    assert not any(task.done() for task in first)
    others_served.set()
    for client in await asyncio.gather(*first):
        await client.send(f"GET / HTTP/1.1\r\nHost: {HOST}:{tls.port}\r\n\r\n".encode())
        assert (await client.response()).status == 200
    assert len(loads) == 1
