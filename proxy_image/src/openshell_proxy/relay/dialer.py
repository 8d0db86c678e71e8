# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a connection to a validated address is made: straight, or through the operator's own proxy (spec 2.15).

Plain http goes through CONNECT as well: one way out, whose far end is the address that the guard has validated. In
absolute form the upstream proxy would resolve the name again and could be led elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Sequence

from openshell_proxy.entrances.peek import peek
from openshell_proxy.relay.http1 import ProtocolError, parse_response_head
from openshell_proxy.resolver import ResolveError, Resolver
from openshell_proxy.settings import Limits
from openshell_proxy.upstream_proxy import UpstreamProxy

MAX_ANSWER_HEAD = 16_384


class UpstreamError(Exception):
    """The destination cannot be reached or trusted; ``reason`` is for the agent and holds no address."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class _ProxyError(UpstreamError):
    """The upstream proxy itself fails; asking it for another address would not help."""


async def dial(addresses: Sequence[str], port: int, limits: Limits) -> tuple[socket.socket, str]:
    """A connected socket and its address: the first of *addresses* that answers. Raises :class:`UpstreamError`."""
    reason = "no address"
    async with _total_time(limits):
        for address in addresses:
            try:
                return await _connect(address, port, limits), address
            except UpstreamError as error:
                reason = error.reason
    raise UpstreamError(reason)


async def _connect(address: str, port: int, limits: Limits) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(limits.connect_each):
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
        return sock
    except TimeoutError:
        sock.close()
        raise UpstreamError("the connection timed out") from None
    except OSError as error:
        sock.close()
        raise UpstreamError((error.strerror or "the connection failed").lower()) from None
    except BaseException:
        sock.close()
        raise


@contextlib.asynccontextmanager
async def _total_time(limits: Limits) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limits.connect_total):
            yield
    except TimeoutError:
        raise UpstreamError("the connection timed out") from None


@dataclasses.dataclass(frozen=True)
class Dialer:
    """Dials for the whole sidecar. ``authorization`` is the value of ``Proxy-Authorization``, or nothing."""

    limits: Limits
    proxy: UpstreamProxy | None = None
    authorization: bytes = dataclasses.field(default=b"", repr=False)
    resolver: Resolver = dataclasses.field(default_factory=Resolver, compare=False)

    async def dial(self, host: str, addresses: Sequence[str], port: int) -> tuple[socket.socket, str]:
        """A connected socket and which of the validated *addresses* of *host* it leads to.

        Raises :class:`UpstreamError`. The upstream proxy's own address is not judged by the guard: the operator named
        it, and no request can.
        """
        proxy = self.proxy
        if proxy is None:
            return await dial(addresses, port, self.limits)
        straight = [address for address in addresses if proxy.passed_by(host, address)]
        if straight:
            return await dial(straight, port, self.limits)
        reason = "no address"
        async with _total_time(self.limits):
            for address in addresses[:1] if proxy.by_hostname else addresses:
                try:
                    return await self._through(proxy, host if proxy.by_hostname else address, port), address
                except _ProxyError:
                    raise
                except UpstreamError as error:
                    reason = error.reason
        raise UpstreamError(reason)

    async def _through(self, proxy: UpstreamProxy, target: str, port: int) -> socket.socket:
        try:
            there = await self.resolver.resolve(proxy.host)
            sock, _ = await dial(there, proxy.port, self.limits)
        except (ResolveError, UpstreamError) as error:
            raise _ProxyError(f"the upstream proxy cannot be reached: {error}") from None
        try:
            async with asyncio.timeout(self.limits.connect_each):
                await self._ask(sock, f"[{target}]:{port}" if ":" in target else f"{target}:{port}")
            return sock
        except TimeoutError:
            sock.close()
            raise _ProxyError("the upstream proxy does not answer") from None
        except OSError:
            sock.close()
            raise _ProxyError("the upstream proxy broke the connection off") from None
        except BaseException:
            sock.close()
            raise

    async def _ask(self, sock: socket.socket, authority: str) -> None:
        """CONNECT (RFC 9110, 9.3.6); not a byte behind the answer's head is taken off the socket."""
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        head = "\r\n".join(lines).encode("ascii")
        if self.authorization:
            head += b"\r\nProxy-Authorization: " + self.authorization
        await asyncio.get_running_loop().sock_sendall(sock, head + b"\r\n\r\n")
        data, _ = await peek(sock, MAX_ANSWER_HEAD, lambda seen: b"\r\n\r\n" in seen)
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            raise _ProxyError(
                "the upstream proxy's answer has too large a head" if len(data) >= MAX_ANSWER_HEAD
                else "the upstream proxy broke the connection off"
            )  # fmt: skip
        try:
            status = parse_response_head(sock.recv(end)).status
        except ProtocolError:
            raise _ProxyError("the upstream proxy's answer is not HTTP") from None
        if status == 407:
            raise _ProxyError("the upstream proxy asks for other credentials (407)")
        if not 200 <= status <= 299:
            raise UpstreamError(f"the upstream proxy refused with status {status}")
