# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A whole sidecar and scripted origins on loopback sockets; the only thing replaced is the address of a name."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import random
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from openshell_proxy.authority import Authority
from openshell_proxy.destination import Guard
from openshell_proxy.minting import new_authority
from openshell_proxy.policy import Decision, Intent
from openshell_proxy.resolver import Resolver
from openshell_proxy.server import Sidecar
from openshell_proxy.settings import Limits, Settings

HOST = "origin.test"
SECONDS = 10.0

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class LoopbackGuard(Guard):
    """Every allowed name is at *address*, which the real guard refuses for good reason (test_destination.py)."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__(own_networks=(), resolver=Resolver())
        self.address = address

    async def pin(self, intent: Intent, decision: Decision) -> tuple[str, ...]:
        return (self.address,)


def free_port(*addresses: str) -> int:
    """A port that nobody has at any of *addresses*, and that no connection gets by itself (ip(7), ip_local_port_range)."""
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for address in addresses:
                stack.enter_context(socket.create_server((address, port)))
            return port
    raise AssertionError("no port is free")


class Origin:
    """A server whose connections are served by *handler*; counts them."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections = 0
        self.received = 0  # bytes, of all connections
        self.closed = asyncio.Event()  # set whenever the peer of a connection has ended it
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, context: ssl.SSLContext | None, address: str = "127.0.0.1") -> None:
        port = 0 if address == "127.0.0.1" else free_port("127.0.0.1", address)
        self.server = await asyncio.start_server(self._serve, address, port, ssl=context)
        self.port = self.server.sockets[0].getsockname()[1]

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        take = reader.feed_data

        def feed_data(data: bytes) -> None:
            self.received += len(data)
            take(data)

        reader.feed_data = feed_data  # type: ignore[method-assign]
        task = asyncio.get_running_loop().create_task(self._run(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            self.closed.set()
        finally:
            writer.close()

    async def end(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.server.close()


@dataclasses.dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A client's connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await asyncio.wait_for(self.writer.drain(), SECONDS)

    async def head(self) -> tuple[int, dict[str, str]]:
        block = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), SECONDS)
        lines = block.decode("latin-1").split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split(" ")[1]), {name.lower(): value for name, value in fields.items()}

    async def response(self, method: str = "GET") -> Response:
        """One final response with its body; raises :class:`asyncio.IncompleteReadError` for one cut short."""
        status, headers = await self.head()
        if method == "HEAD" or status in (204, 304):
            return Response(status, headers, b"")
        return Response(status, headers, await asyncio.wait_for(self._body(headers), SECONDS))

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readuntil(b"\r\n")
            return body
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        return await self.reader.read()

    async def ended(self) -> bytes:
        """What still comes until the connection ends."""
        return await asyncio.wait_for(self.reader.read(), SECONDS)

    async def start_tls(self, context: ssl.SSLContext, name: str) -> None:
        await asyncio.wait_for(self.writer.start_tls(context, server_hostname=name), SECONDS)

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        self.writer.transport.abort()


class World:
    """Starts things and ends them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.origins: list[Origin] = []
        self.clients: list[Client] = []
        self.log = io.StringIO()
        self.origin_authority = Authority(new_authority("origins"))
        self.sidecar: Sidecar | None = None
        self.gateway: tuple[str, int] | None = None
        self.middlewares: dict[str, Any] = {}  # of the policies that are written from now on
        for name in ("tls", "run", "state/config", "state/log"):
            (directory / name).mkdir(parents=True)
        (directory / "authority.pem").write_bytes(new_authority())
        (directory / "state/config/upstream-ca.pem").write_bytes(self.origin_authority.mint.certificate_pem)

    def settings(self, **changes: Any) -> Settings:
        settings = Settings(
            sandbox="test", sandbox_id="test", proxy_ip="127.0.0.1", agent_ip="127.0.0.1", gateway=self.gateway,
            default_enforcement="enforce", tls_dir=self.directory / "tls", state_dir=self.directory / "state",
            run_dir=self.directory / "run", authority=self.directory / "authority.pem",
        )  # fmt: skip
        return dataclasses.replace(settings, **changes)

    def write_policy(self, endpoints: Sequence[dict[str, Any]]) -> None:
        policies = {"test": {"endpoints": list(endpoints)}}
        document = {"version": 1, "network_policies": policies, "network_middlewares": self.middlewares}
        (self.directory / "state/config/policy.yaml").write_text(json.dumps(document))

    async def start(
        self, *endpoints: dict[str, Any], limits: Limits | None = None, guard: Guard | None = None,
        http_port: int = 0, tls_port: int = 0, **changes: Any,
    ) -> None:  # fmt: skip
        """Start the sidecar with a policy of *endpoints*, on any ports but those given; *changes* of its settings."""
        self.write_policy(endpoints)
        settings = self.settings(limits=limits or Limits(), **changes)
        ports = (0, 0, http_port, tls_port, 0)
        self.sidecar = Sidecar(settings, guard=guard or LoopbackGuard(), ports=ports, stdout=self.log)
        await self.sidecar.start()

    def reload(self, *endpoints: dict[str, Any]) -> dict[str, Any]:
        """A new generation with a policy of *endpoints*; the sidecar's report on it."""
        assert self.sidecar is not None
        self.write_policy(endpoints)
        return self.sidecar.reload()

    async def origin(self, handler: Handler, *, tls: bool | list[str] = False, address: str = "127.0.0.1") -> Origin:
        """An origin; *tls* may be the protocols that it speaks over TLS, HTTP/1.1 alone if it does not say."""
        made = Origin(handler)
        context = self.origin_authority.context(HOST, isinstance(tls, list)) if tls else None
        if context is not None:
            context.set_alpn_protocols(tls if isinstance(tls, list) else ["http/1.1"])
        await made.start(context, address)
        self.origins.append(made)
        return made

    async def client(self, listener: int = 0) -> Client:
        """A connection to a port of the sidecar: proxy (0), gateway (1), HTTP (2), TLS (3), DNS (4)."""
        assert self.sidecar is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", self.sidecar.listeners[listener].port)
        made = Client(reader, writer)
        self.clients.append(made)
        return made

    async def narrow_client(self) -> Client:
        """A connection to the proxy port that holds next to nothing on its way, as long as nobody reads."""
        assert self.sidecar is not None
        listener = self.sidecar.listeners[0]
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # which its connections take over
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", listener.port))
        made = Client(*await asyncio.open_connection(sock=sock, limit=4096))
        self.clients.append(made)
        return made

    async def tunnel(self, port: int, *, tls: bool = True, name: str = HOST) -> Client:
        """A client within a CONNECT to ``HOST:port``, with TLS as far as the sidecar's authority is trusted."""
        client = await self.client()
        await client.send(f"CONNECT {HOST}:{port} HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode())
        status, _ = await client.head()
        assert status == 200
        if tls:
            await client.start_tls(ssl.create_default_context(cafile=self.directory / "tls/ca.pem"), name)
        return client

    async def events(self) -> list[dict[str, Any]]:
        """What was logged; ends the sidecar, so that all of it is there."""
        await self.stop()
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    async def stop(self) -> None:
        if self.sidecar is not None:
            sidecar, self.sidecar = self.sidecar, None
            await sidecar.stop()

    async def end(self) -> None:
        for client in self.clients:
            client.abort()
        await self.stop()
        for origin in self.origins:
            await origin.end()


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection the way a crash does: the peer gets a reset, not an end."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def rest(port: int, access: str = "full", **more: Any) -> dict[str, Any]:
    """An endpoint of the policy for ``HOST:port`` whose requests are inspected."""
    return {"host": HOST, "port": port, "protocol": "rest", "enforcement": "enforce", "access": access, **more}


async def read_request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    """(request line, fields, body) of the next request an origin gets."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = {line.split(": ", 1)[0].lower(): line.split(": ", 1)[1] for line in lines[1:] if line}
    body = b""
    if fields.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    elif "content-length" in fields:
        body = await reader.readexactly(int(fields["content-length"]))
    return lines[0], fields, body


def answer(body: bytes = b"ok", status: str = "200 OK", *fields: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


WEBSOCKET = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
# The answer to that key: RFC 6455, 1.3.
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An origin that answers every request with its request line."""
    while True:
        line, _, body = await read_request(reader)
        writer.write(answer(line.encode() + b"|" + body))
        await writer.drain()
