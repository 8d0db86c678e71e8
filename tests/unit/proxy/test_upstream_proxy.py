# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Going out through the operator's own proxy: a real one on loopback that records what it is asked."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from loopback import HOST, World, hello, rest
from openshell_proxy.settings import Limits, SettingsError, read_settings
from openshell_proxy.upstream_proxy import authorization, parse_upstream_proxy

SECRET = "user:pa:ss word"


class ConnectProxy:
    """Serves CONNECT to 127.0.0.1; ``answer`` instead of a tunnel where it is set, nothing at all for None."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.answer: bytes | None = b""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self.answer is None:
            await reader.read()
            return
        if self.answer:
            writer.write(self.answer)
            await writer.drain()
            return
        port = int(head.split(b" ")[1].rpartition(b":")[2])
        there, out = await asyncio.open_connection("127.0.0.1", port)
        first = await asyncio.wait_for(there.read(1), 0.05) if port in self.speaks_first else b""
        writer.write(b"HTTP/1.1 200 Connection established\r\nX-Via: test\r\n\r\n" + first)
        await asyncio.gather(_copy(reader, out), _copy(there, writer))

    speaks_first: frozenset[int] = frozenset()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def through(
    world: World, *endpoints: dict[str, Any], no_proxy: tuple[str, ...] = (), **more: Any
) -> ConnectProxy:
    """A sidecar that goes out through a proxy; *more*: ``by_hostname``, ``limits``."""
    proxy = ConnectProxy()
    served = await world.origin(proxy)
    by_hostname = more.pop("by_hostname", False)
    upstream = parse_upstream_proxy(f"http://127.0.0.1:{served.port}", no_proxy, by_hostname)
    await world.start(*endpoints, upstream_proxy=upstream, **more)
    return proxy


async def ask(world: World, port: int) -> Any:
    client = await world.client()
    await client.send(f"GET http://{HOST}:{port}/ HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode())
    return await client.response()


@pytest.mark.parametrize("tls", [True, False])
async def test_requests_go_through_it_to_the_validated_address(world: World, tls: bool) -> None:
    there = await world.origin(hello, tls=tls)
    proxy = await through(world, rest(there.port))
    if tls:
        client = await world.tunnel(there.port)
        await client.send(f"GET / HTTP/1.1\r\nHost: {HOST}:{there.port}\r\n\r\n".encode())
        assert (await client.response()).status == 200
    else:
        assert (await ask(world, there.port)).status == 200
    place = f"127.0.0.1:{there.port}"
    assert proxy.heads == [f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode()]


async def test_blind_tunnels_too_and_not_a_byte_is_lost(world: World) -> None:
    async def first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome")
        writer.write(await reader.read(100))

    there = await world.origin(first)
    proxy = await through(world, {"host": HOST, "port": there.port, "tls": "skip"})
    proxy.speaks_first = frozenset((there.port,))
    client = await world.tunnel(there.port, tls=False)
    await client.send(b"hello")
    assert await client.ended() == b"welcomehello"
    assert len(proxy.heads) == 1


async def test_by_hostname_if_the_operator_says_so(world: World) -> None:
    there = await world.origin(hello)
    proxy = await through(world, rest(there.port), by_hostname=True)
    assert (await ask(world, there.port)).status == 200
    assert proxy.heads[0].startswith(f"CONNECT {HOST}:{there.port} HTTP/1.1\r\n".encode())


@pytest.mark.parametrize(
    ("no_proxy", "straight"),
    [(HOST, True), (".test", True), ("127.0.0.0/8", True), ("127.0.0.1", True), ("other.test", False),
     ("10.0.0.0/8", False), (".origin.test", False)],
)  # fmt: skip
async def test_what_is_passed_by(world: World, no_proxy: str, straight: bool) -> None:
    there = await world.origin(hello)
    proxy = await through(world, rest(there.port), no_proxy=(no_proxy,))
    assert (await ask(world, there.port)).status == 200
    assert (proxy.heads == []) is straight


async def test_credentials_come_from_a_file_and_can_change(world: World) -> None:
    there = await world.origin(hello)
    file = world.directory / "state/config/upstream-proxy-auth"
    file.write_text(SECRET + "\n")
    proxy = await through(world, rest(there.port))
    assert (await ask(world, there.port)).status == 200
    file.write_text("other:secret")
    world.reload(rest(there.port))
    assert (await ask(world, there.port)).status == 200  # and not over the connection that was made as another
    sent = [head.partition(b"Proxy-Authorization: Basic ")[2].strip() for head in proxy.heads]
    assert [base64.b64decode(one) for one in sent] == [SECRET.encode(), b"other:secret"]
    assert world.sidecar is not None
    told = (
        str(world.sidecar.status())
        + (world.directory / "tls/.ready").read_text()
        + repr(world.sidecar.pipeline.generation)
    )
    await world.stop()
    for secret in ("pa:ss", "other:secret", sent[0].decode(), sent[1].decode()):
        assert secret not in world.log.getvalue() + told


@pytest.mark.parametrize("secret", ["nocolon", "user:x\r\nX-Injected: 1", "user:p\u00e9", "lonely:"])
async def test_bad_credentials_at_the_start_deny_all(world: World, secret: str) -> None:
    there = await world.origin(hello)
    (world.directory / "state/config/upstream-proxy-auth").write_text(secret)
    proxy = await through(world, rest(there.port))
    assert (await ask(world, there.port)).status == 403
    assert proxy.heads == []
    assert world.sidecar is not None
    report = world.sidecar.status()
    assert report["quarantined"] and "credentials" in report["policy_error"] and secret not in report["policy_error"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n", "other credentials (407)"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "refused with status 403"),
        (b"SSH-2.0-x\r\n\r\n", "is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000, "too large a head"),
        (b"HTTP/1.1 200 OK\r\n", "broke the connection off"),
        (None, "does not answer"),
    ],
)
async def test_one_that_fails_is_a_502_that_says_how(world: World, said: bytes | None, reason: str) -> None:
    there = await world.origin(hello)
    proxy = await through(world, rest(there.port), limits=Limits(connect_each=0.5))
    proxy.answer = said
    got = await ask(world, there.port)
    assert (got.status, got.json["error"]) == (502, "upstream_unreachable")
    assert reason in got.json["detail"]
    assert there.connections == 0


async def test_one_that_is_not_there_is_a_502(world: World) -> None:
    there = await world.origin(hello)
    await through(world, rest(there.port))
    await world.origins[-1].end()
    got = await ask(world, there.port)
    assert (got.status, "upstream proxy cannot be reached" in got.json["detail"]) == (502, True)
    assert there.connections == 0


async def test_the_environments_own_proxies_are_ignored(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    there = await world.origin(hello)
    await world.start(rest(there.port))
    assert (await ask(world, there.port)).status == 200


ENVIRON = {"OPENSHELL_SANDBOX": "x", "OPENSHELL_PROXY_IP": "10.0.0.2", "OPENSHELL_AGENT_IP": "10.0.0.3"}


def test_it_is_read_from_the_environment() -> None:
    more = {
        "OPENSHELL_UPSTREAM_PROXY": "http://proxy.corp:3128",
        "OPENSHELL_UPSTREAM_NO_PROXY": "a.test,.b.test,10.0.0.0/8,2001:db8::/32",
        "OPENSHELL_UPSTREAM_PROXY_CONNECT_BY_HOSTNAME": "true",
    }
    proxy = read_settings({**ENVIRON, **more}).upstream_proxy
    assert proxy is not None
    assert (proxy.host, proxy.port, proxy.by_hostname) == ("proxy.corp", 3128, True)
    assert (proxy.hosts, proxy.suffixes, len(proxy.networks)) == ({"a.test"}, (".b.test",), 2)
    assert not proxy.passed_by("b.test", "192.0.2.1") and proxy.passed_by("x", "2001:db8::1")


@pytest.mark.parametrize(
    ("url", "no_proxy", "by_hostname"),
    [
        ("https://p:1", "", ""), ("http://p", "", ""), ("p:3128", "", ""), ("http://u:s3cret@p:1", "", ""),
        ("http://p:1/x", "", ""), ("http://p:99999", "", ""), ("http://p:1", "10.0.0.1/8", ""), ("http://p:1", "*.x", ""),
        ("http://p:1", "", "maybe"), ("http://p q:1", "", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_sentence(url: str, no_proxy: str, by_hostname: str) -> None:
    more = {
        "OPENSHELL_UPSTREAM_PROXY": url,
        "OPENSHELL_UPSTREAM_NO_PROXY": no_proxy,
        "OPENSHELL_UPSTREAM_PROXY_CONNECT_BY_HOSTNAME": by_hostname,
    }
    with pytest.raises(SettingsError) as caught:
        read_settings({**ENVIRON, **more})
    assert "\n" not in str(caught.value) and "s3cret" not in str(caught.value)


def test_an_authorization_is_basic() -> None:
    assert authorization("a:b\n") == b"Basic " + base64.b64encode(b"a:b")
