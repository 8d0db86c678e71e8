# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A client's TLS hello, and the server name in it (RFC 6066, 3), before anybody answers it."""

from __future__ import annotations

import socket
import ssl

from openshell_proxy.authority import names
from openshell_proxy.entrances.authority_form import host_name
from openshell_proxy.entrances.peek import MOST, peek


class _Handshake(ssl.SSLObject):
    """A server's side of a handshake that goes no further than the client's hello."""

    understood = False
    server_name: str | None = None


def _stop(handshake: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> int:
    """What OpenSSL calls with the name, or None, once it has read the hello; the alert it returns ends the handshake."""
    assert isinstance(handshake, _Handshake)
    handshake.understood, handshake.server_name = True, name
    return int(ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)


_READS_HELLOS = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
_READS_HELLOS.sslobject_class = _Handshake
_READS_HELLOS.sni_callback = _stop


class ClientHello:
    """A client's TLS hello as OpenSSL reads it, from bytes that stay where they are."""

    def __init__(self) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        handshake = _READS_HELLOS.wrap_bio(self._incoming, self._outgoing, server_side=True)
        assert isinstance(handshake, _Handshake)
        self._handshake = handshake
        self._done = False
        self.fed = 0
        self.error = "it has no end"

    def feed(self, data: bytes) -> bool:
        """Read on in *data*, all that has come so far; True once more of it would tell nothing new."""
        if self._done:
            return True
        self._incoming.write(data[self.fed :])
        self.fed = len(data)
        try:
            self._handshake.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            self.error = error.reason
        self._done = True
        return True

    def problem(self) -> str:
        """Why it leads nowhere, or ""."""
        if not self._handshake.understood:
            return f"the client's first bytes are no TLS hello: {self.error}"
        if self._handshake.server_name is None:
            return "the client's TLS hello has no server name (SNI), so where it wants to go is not known"
        return "" if self.host else "the server name (SNI) of the client's TLS hello is not a host name"

    @property
    def host(self) -> str:
        """The host that it names, as a policy writes it; "" if none."""
        return host_name(self._handshake.server_name or "")

    def may_mean(self, host: str) -> bool:
        """Whether it is a hello that names *host*, or none at all."""
        return self._handshake.understood and names(self._handshake.server_name, host)

    def alert(self) -> bytes:
        """The TLS alert that tells the client that its hello is refused; may be empty."""
        return self._outgoing.read()


async def peek_hello(sock: socket.socket, hello: ClientHello) -> bytes:
    """Have *hello* read what begins on *sock*, where it stays; the bytes that it has seen."""
    first, _ = await peek(sock, MOST, hello.feed)
    hello.feed(first)  # what came all at once, and more of it, was not asked about
    return first
