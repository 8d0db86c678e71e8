# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The certificate authority that the agent trusts, and a TLS context for every host that it asks for."""

from __future__ import annotations

import asyncio
import datetime
import functools
import os
import re
import ssl
from collections import OrderedDict
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from openshell_proxy.minting import Mint

LEAF_HOURS = 72
RENEW_HOURS = 24
CONTEXTS = 512
_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+")  # how openssl-rehash(1) names a certificate


class AuthorityError(Exception):
    """The authority's file is missing or not what it must be; one sentence, never its content."""


def names(server_name: str | None, host: str) -> bool:
    """Whether a TLS hello with *server_name*, or without any, may be meant for *host*."""
    return server_name is None or server_name.lower().rstrip(".") == host


class Authority:
    """TLS contexts with leaf certificates of the authority that *pem* holds; kept for the hosts used last.

    Nothing here says whether *pem* is any good: that is for :class:`Check`.
    """

    def __init__(self, pem: bytes) -> None:
        self._pem = pem
        self._mint: Mint | None = None
        self._loading = asyncio.Lock()
        self._contexts: OrderedDict[tuple[str, bool], tuple[datetime.datetime, ssl.SSLContext]] = OrderedDict()

    async def load(self) -> None:
        """Have what makes certificates. Without it :meth:`context` would wait a tenth of a second for an import, and
        every other connection with it: a thread gives way."""
        if self._mint is None:
            async with self._loading:
                self._mint = self._mint or await asyncio.to_thread(self._new_mint)

    def _new_mint(self) -> Mint:
        from openshell_proxy.minting import Mint

        return Mint(self._pem)

    @property
    def mint(self) -> Mint:
        """What makes its certificates."""
        if self._mint is None:
            self._mint = self._new_mint()
        return self._mint

    def context(self, host: str, http2: bool = False) -> ssl.SSLContext:
        """A server context with a valid leaf for *host*, which must also be what the client's SNI says, if any.

        With *http2* that is what a client gets that offers it; without, one that offers nothing else still gets it, so
        that it can be told over it that the origin does not speak it.
        """
        now = datetime.datetime.now(datetime.UTC)
        found = self._contexts.get((host, http2))
        # One of a moment that is yet to come was made before the clock was set back; it may not be valid now.
        if found is not None and found[0] <= now < found[0] + datetime.timedelta(hours=LEAF_HOURS - RENEW_HOURS):
            self._contexts.move_to_end((host, http2))
            return found[1]
        context = self._new_context(host, now, http2)
        self._contexts[host, http2] = (now, context)
        if len(self._contexts) > CONTEXTS:
            self._contexts.popitem(last=False)
        return context

    def _new_context(self, host: str, now: datetime.datetime, http2: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        # To resume a session of TLS 1.3 costs us what a new one does, and a ticket a sixth more.
        context.num_tickets = 0
        context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1", "h2"])
        _load_chain(context, self.mint.leaf(host, now))

        def named(_socket: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> int | None:
            return None if names(name, host) else int(ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)

        context.sni_callback = named
        return context


class Check:
    """Whether *pem* holds an authority, found out by a child process.

    What can tell is the library that makes certificates. It brings an OpenSSL of its own, about 10 MiB with it, which a
    sidecar that opens no TLS does not need again: they go with the child, and it works while the configuration is read.
    """

    def __init__(self, pem: bytes) -> None:
        self._answer, answering = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            _judge(pem, answering)
        os.close(answering)

    def certificate(self) -> bytes:
        """The authority's certificate in PEM. Raises :class:`AuthorityError`."""
        with open(self._answer, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(self._child, 0)
        if status != 0:
            raise AuthorityError(answer.decode() or "what judges the authority's file was killed")
        return answer


def _judge(pem: bytes, answering: int) -> NoReturn:
    """In the child: answer, and end without anything of what the parent does at its end."""
    status = 1
    try:
        from openshell_proxy.minting import Mint

        os.write(answering, Mint(pem).certificate_pem)
        status = 0
    except AuthorityError as error:
        os.write(answering, str(error).encode())
    except Exception as error:  # a fault of ours, or of the library
        os.write(answering, f"the authority's file cannot be judged ({type(error).__name__})".encode())
    finally:
        os._exit(status)


def _load_chain(context: ssl.SSLContext, pem: bytes) -> None:
    """Load key and certificate from memory: ssl takes files only, and a key must not lie on a disk."""
    descriptor = os.memfd_create("leaf", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


class UpstreamTls:
    """Client contexts with the same trust: system roots and *extra_roots* (PEM, may be empty).

    ``http1`` offers HTTP/1.1 alone, ``http2`` both, as the origin likes. The second one reads all roots again, so it is
    made for the first client that offers HTTP/2 and not before.
    """

    def __init__(self, extra_roots: str) -> None:
        self.extra_roots = extra_roots
        self.http1 = _client_context(extra_roots, ["http/1.1"])

    @functools.cached_property
    def http2(self) -> ssl.SSLContext:
        return _client_context(self.extra_roots, ["h2", "http/1.1"])


def _client_context(extra_roots: str, alpn: list[str]) -> ssl.SSLContext:
    context = ssl.create_default_context(capath=_hashed_roots())
    context.set_alpn_protocols(alpn)
    if extra_roots:
        context.load_verify_locations(cadata=extra_roots)
    return context


def _hashed_roots() -> str | None:
    """The directory of system roots by hash, of which OpenSSL reads those that it needs; None where there is none.

    The bundle with the same roots would be parsed whole: 45 ms of the start and 2 MiB.
    """
    paths = ssl.get_default_verify_paths()
    if paths.openssl_cafile_env in os.environ or paths.openssl_capath_env in os.environ or paths.capath is None:
        return None
    hashed = any(_HASHED.fullmatch(name) for name in os.listdir(paths.capath))
    return paths.capath if hashed else None


def certificates(pem: str) -> list[str]:
    """The certificates of a PEM text, each with a newline at its end, without what stands between them."""
    found = []
    for part in pem.split("-----BEGIN CERTIFICATE-----")[1:]:
        body, end, _ = part.partition("-----END CERTIFICATE-----")
        if end:
            found.append(f"-----BEGIN CERTIFICATE-----{body}-----END CERTIFICATE-----\n")
    return found


def bundle(*pems: str) -> str:
    """The union of PEM bundles in order, every certificate once."""
    unique = {"".join(one.split()): one for pem in pems for one in certificates(pem)}
    return "".join(unique.values())
