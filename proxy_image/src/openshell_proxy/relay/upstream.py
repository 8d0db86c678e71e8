# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Connections to the destinations: dialled at validated addresses only, and kept for the next request."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from openshell_proxy.authority import UpstreamTls
from openshell_proxy.relay.dialer import Dialer, UpstreamError
from openshell_proxy.relay.sites import Site, Sites
from openshell_proxy.relay.stream import Stream
from openshell_proxy.settings import Limits

if TYPE_CHECKING:
    from openshell_proxy.relay.http2 import Side
    from openshell_proxy.relay.http2_upstream import Upstream

LEAVE_SECONDS = 1.0


class Origin(NamedTuple):
    """Where a request goes: ``host`` lower case, ``tls`` whether the connection is encrypted."""

    host: str
    port: int
    tls: bool


class UpstreamStream(Stream):
    """A stream that knows where it leads and whether it served before."""

    def __init__(self, origin: Origin, address: str, era: int) -> None:
        super().__init__()
        self.origin = origin
        self.address = address
        self.era = era
        self.reused = False
        self.idle_since = 0.0
        self.pool: Pool | None = None
        self.leaving: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if self.pool is not None:
            self.pool.drop(self)  # nobody asked: never give these bytes to the next request
            return
        super().data_received(data)

    def eof_received(self) -> bool:
        if self.pool is not None:
            self.pool.drop(self)
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.pool is not None:
            self.pool.drop(self)
        super().connection_lost(exc)


class Pool:
    """Idle connections by origin. One is reused only at an address that was validated for the request at hand."""

    def __init__(self, limits: Limits, tls: UpstreamTls, dialer: Dialer) -> None:
        self.limits = limits
        self.tls = tls
        self.dialer = dialer
        self.era = 0  # grows whenever trust or the way out changes
        self.sites = Sites()
        self._idle: dict[Origin, dict[UpstreamStream, None]] = {}  # the one kept last comes last
        self._kept = 0  # how many are idle, of all origins together
        self._sweep: asyncio.TimerHandle | None = None  # one for all: connections come and go with every request

    async def connect(self, origin: Origin, addresses: Sequence[str], fresh: bool = False) -> UpstreamStream:
        """A connection to *origin* at one of *addresses*. Raises :class:`UpstreamError`."""
        if not fresh:
            for stream in reversed(self._idle.get(origin, ())):
                if stream.address in addresses:
                    self._forget(stream)
                    stream.reused = True
                    return stream
        try:
            return await self._dial(origin, addresses, self.tls.http1)
        except UpstreamError:
            if origin.tls:
                self.sites[origin].speaks = None
            raise

    def known(self, origin: Origin) -> bool | None:
        """What :meth:`speaks_http2` would answer without a connection; None where it needs one."""
        return self.sites[origin].speaks

    async def speaks_http2(self, origin: Origin, addresses: Sequence[str]) -> bool:
        """Whether the *origin* speaks HTTP/2; asked by a connection that then serves the first request.

        One that cannot be reached does not: its requests will tell why.
        """
        site = self.sites[origin]
        async with site.dialling:
            if site.speaks is None:
                try:
                    await self._dial_either(site, origin, addresses)
                except UpstreamError:
                    return False
        return bool(site.speaks)

    async def open_stream(self, origin: Origin, addresses: Sequence[str]) -> Side:
        """A new HTTP/2 stream to *origin* at one of *addresses*. Raises :class:`UpstreamError`."""
        site = self.sites[origin]
        found = site.free(addresses)
        if found is None:
            async with site.dialling:  # one connection for all who wait for one
                found = site.free(addresses)
                if found is None and site.speaks is not False:
                    found = await self._dial_either(site, origin, addresses)
        if found is None:
            raise UpstreamError("it speaks HTTP/1.1 only, and the client offers HTTP/2 only")
        return found.open()

    async def _dial_either(self, site: Site, origin: Origin, addresses: Sequence[str]) -> Upstream | None:
        """A new connection: with HTTP/2 for *site*, with HTTP/1.1 (None) for whoever comes next for that."""
        site.speaks = None
        stream = await self._dial(origin, addresses, self.tls.http2)
        site.speaks = stream.alpn() == "h2"
        if site.speaks:
            return site.adopt(stream, stream.address, self.limits.pool_idle)
        self.keep(stream)
        return None

    async def _dial(self, origin: Origin, addresses: Sequence[str], tls: ssl.SSLContext) -> UpstreamStream:
        era = self.era
        sock, address = await self.dialer.dial(origin.host, addresses, origin.port)
        stream = UpstreamStream(origin, address, era)
        await self._attach(stream, sock, origin, tls)
        return stream

    async def _attach(self, stream: UpstreamStream, sock: socket.socket, origin: Origin, tls: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        try:
            if origin.tls:
                await loop.create_connection(
                    lambda: stream, sock=sock, ssl=tls, server_hostname=origin.host,
                    ssl_handshake_timeout=self.limits.handshake,
                )  # fmt: skip
            else:
                await loop.create_connection(lambda: stream, sock=sock)
        except ssl.SSLCertVerificationError as error:
            raise UpstreamError(f"its certificate is not trusted: {error.verify_message}") from None
        except (OSError, TimeoutError):
            raise UpstreamError("the TLS handshake with it failed" if origin.tls else "the connection failed") from None
        finally:
            if stream.transport is None:
                sock.close()

    def keep(self, stream: UpstreamStream) -> None:
        """Give a connection back whose response ended exactly where its buffer does."""
        if stream.era != self.era or stream.ended or stream.buffer or self._kept >= self.limits.pool:
            stream.close()
            return
        self._kept += 1
        stream.pool, stream.on_lost = self, None
        loop = asyncio.get_running_loop()
        stream.idle_since = loop.time()
        self._idle.setdefault(stream.origin, {})[stream] = None
        if self._sweep is None:
            self._sweep = loop.call_later(self.limits.pool_idle, self._drop_old)

    def leave(self, stream: UpstreamStream) -> None:
        """Close a connection that carries no other request, once its peer does so or soon.

        Whoever closes first keeps the pair of ports for a minute (RFC 9293, 3.6.1). Here thousands of requests to one
        destination would run out of them.
        """
        if stream.ended or stream.buffer:
            stream.close()
            return
        stream.pool, stream.on_lost = self, None
        stream.leaving = asyncio.get_running_loop().call_later(LEAVE_SECONDS, self.drop, stream)

    def _drop_old(self) -> None:
        """Close what has been idle for too long, and look again when the next one will have been."""
        self._sweep = None
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self.limits.pool_idle
        for stream in [stream for idle in self._idle.values() for stream in idle if stream.idle_since <= oldest]:
            self.drop(stream)
        if self._idle:
            first = min(stream.idle_since for idle in self._idle.values() for stream in idle)
            self._sweep = loop.call_at(first + self.limits.pool_idle, self._drop_old)

    def _forget(self, stream: UpstreamStream) -> None:
        stream.pool = None
        idle = self._idle.get(stream.origin, {})
        if stream in idle:
            del idle[stream]
            self._kept -= 1
        if not idle:
            self._idle.pop(stream.origin, None)

    def drop(self, stream: UpstreamStream) -> None:
        self._forget(stream)
        if stream.leaving is not None:
            stream.leaving.cancel()
        stream.close()

    def renew(self, tls: UpstreamTls, dialer: Dialer) -> None:
        """Trust or the way out has changed: nothing that was made the old way serves another request."""
        self.tls, self.dialer, self.era = tls, dialer, self.era + 1
        self.clear()

    def clear(self) -> None:
        """Close what is idle."""
        self.sites.clear()
        for idle in list(self._idle.values()):
            for stream in list(idle):
                self.drop(stream)
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
