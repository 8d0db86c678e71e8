# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Access tokens that expire, asked for at an OAuth 2.0 token endpoint by the sidecar itself (RFC 6749, RFC 7523).

The agent neither sees the refresh token nor the access token, and no request of its own can reach for one.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode, urlsplit

from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.upstream import Origin

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

EARLY_SECONDS = 300.0  # a token is renewed so long before it expires, or at half of its life where that is short
DEFAULT_LIFE = 3600.0
PAUSE_SECONDS = 5.0  # after a failure, so that an agent cannot have the token endpoint flooded
MAX_TOKEN = 16_384

Kind = Literal["refresh_token", "client_credentials", "service_account"]
KINDS: tuple[Kind, ...] = ("refresh_token", "client_credentials", "service_account")
_JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"

# (origin, path, form) → (status, body); raises ConnectionError.
Post = Callable[[Origin, str, bytes], Awaitable[tuple[int, bytes]]]


class GrantError(ValueError):
    """A grant that cannot be used; words for "secret X ...", without anything of its content."""


@dataclasses.dataclass(frozen=True, slots=True)
class Grant:
    """What buys a token at ``token_url``.

    ``secret``: the refresh token, the client's secret, or a service account's key file (JSON), by ``kind``.
    """

    kind: Kind
    token_url: str
    secret: str = dataclasses.field(repr=False)
    client_id: str = ""
    client_secret: str = dataclasses.field(default="", repr=False)
    scope: str = ""

    def check(self) -> None:
        """Raises :class:`GrantError`."""
        try:
            parts = urlsplit(self.token_url)
            good = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0 and not parts.query
        except ValueError:
            good = False
        if not good or not self.token_url.isascii() or not self.token_url.isprintable() or " " in self.token_url:
            raise GrantError("has a token_url that is not https://host/path")
        if self.kind == "client_credentials" and not self.client_id:
            raise GrantError("needs the client_id that its secret belongs to")
        if self.kind == "service_account":
            _account(self.secret)

    @property
    def origin(self) -> Origin:
        parts = urlsplit(self.token_url)
        return Origin((parts.hostname or "").lower(), parts.port or 443, True)

    @property
    def place(self) -> tuple[str, int, str]:
        """Host, port and path of ``token_url``."""
        origin = self.origin
        return origin.host, origin.port, urlsplit(self.token_url).path or "/"

    def form(self, refresh_token: str, now: float) -> bytes:
        """The request's body. *now* is seconds since 1970."""
        fields = {"scope": self.scope} if self.scope and self.kind != "service_account" else {}
        if self.kind == "refresh_token":
            fields |= {"grant_type": "refresh_token", "refresh_token": refresh_token}
            fields |= {"client_id": self.client_id} if self.client_id else {}
            fields |= {"client_secret": self.client_secret} if self.client_secret else {}
        elif self.kind == "client_credentials":
            fields |= {"grant_type": self.kind, "client_id": self.client_id, "client_secret": self.secret}
        else:
            fields |= {"grant_type": _JWT_BEARER, "assertion": self._assertion(now)}
        return urlencode(fields).encode()

    def _assertion(self, now: float) -> str:
        """A signed claim to be the service account (RFC 7523, 2.1)."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        account, key = _account(self.secret)
        head = {"alg": "RS256", "typ": "JWT"} | (
            {"kid": account["private_key_id"]} if "private_key_id" in account else {}
        )
        claims = {"iss": account["client_email"], "aud": self.token_url, "iat": int(now), "exp": int(now) + 3600}
        claims |= {"scope": self.scope} if self.scope else {}
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        return f"{signed}.{_base64url(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _account(secret: str) -> tuple[dict[str, Any], RSAPrivateKey]:
    """The library is imported here, for sandboxes with such a secret only: it brings 10 MiB with it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    try:
        account = json.loads(secret)
        key = serialization.load_pem_private_key(account["private_key"].encode(), None)
        if not isinstance(account["client_email"], str) or not isinstance(key, rsa.RSAPrivateKey):
            raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise GrantError("is not the key file (JSON) of a service account, with an RSA key") from None
    return account, key


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class RenewedToken:
    """The token of a grant: one request for it at a time, whoever waits; the old one serves while it is good."""

    def __init__(self, name: str, grant: Grant, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.grant = grant
        self.value = b""
        self.known: tuple[bytes, ...] = ()
        self._clock = clock
        self._refresh_token = grant.secret
        self._renew_at = self._expires = self._pause_until = 0.0
        self._asking: asyncio.Task[None] | None = None

    def answer(self, stand_in: str, key: str) -> bytes:
        """What its endpoint would answer, with *stand_in* for the token (RFC 6749, 5.1), for a client that told it as *key*.

        A client that renews its tokens by itself is content with it, and goes on using the placeholder.
        """
        seconds = max(1, int(self._expires - self._clock()))
        told = {"access_token": stand_in, "token_type": "Bearer", "expires_in": seconds}
        told |= {"refresh_token": stand_in} if key == "refresh_token" else {}
        told |= {"scope": self.grant.scope} if self.grant.scope else {}
        return json.dumps(told).encode()

    async def renew(self, post: Post, rejected: bytes = b"") -> None:
        """See to it that :attr:`value` is good for a while and is not *rejected*. Raises Refusal (502)."""
        if self.value and self.value != rejected and self._clock() < self._renew_at:
            return
        if self._asking is None:
            if self._clock() < self._pause_until:
                return self._serve_old(rejected, "it failed a moment ago")
            self._asking = asyncio.get_running_loop().create_task(self._ask(post))
            self._asking.add_done_callback(self._asked)
        try:
            await asyncio.shield(self._asking)
        except _Failed as failed:
            self._serve_old(rejected, str(failed))

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        if not task.cancelled() and task.exception() is not None:
            self._pause_until = self._clock() + PAUSE_SECONDS

    def _serve_old(self, rejected: bytes, why: str) -> None:
        if not self.value or self.value == rejected or self._clock() >= self._expires:
            raise Refusal(502, "token_grant_failed", f"the credential {self.name} could not be renewed: {why}")

    async def _ask(self, post: Post) -> None:
        grant = self.grant
        try:
            status, body = await post(grant.origin, grant.place[2], grant.form(self._refresh_token, time.time()))
        except OSError:
            raise _Failed("its token endpoint does not answer") from None
        if status != 200:
            raise _Failed(f"its token endpoint answers with status {status}")
        self._take(body)

    def _take(self, body: bytes) -> None:
        """Source: RFC 6749, 5.1. A refresh token that is replaced is used from now on."""
        try:
            answer = json.loads(body)
            value = answer["access_token"].encode("ascii")
            life = float(answer.get("expires_in", DEFAULT_LIFE))
            refresh_token = answer.get("refresh_token", self._refresh_token)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise _Failed("its token endpoint's answer is not understood") from None
        if not math.isfinite(life):
            raise _Failed("its token endpoint's answer tells no time")
        if not 0 < len(value) <= MAX_TOKEN or any(byte < 0x21 or byte > 0x7E for byte in value):
            raise _Failed("its token endpoint's answer has no usable token")
        if isinstance(refresh_token, str) and refresh_token:
            self._refresh_token = refresh_token
        now = self._clock()
        self._expires, self._renew_at = now + life, now + max(life - EARLY_SECONDS, life / 2)
        self.value, self.known = value, (value, *self.known[:1])


class _Failed(Exception):
    """Why there is no new token."""
