# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What authorises a call at its destination, and what of it must not come back to the agent."""

from __future__ import annotations

import hashlib

from openshell_proxy.credentials.passage import secret_forms
from openshell_proxy.credentials.rewrite import Access
from openshell_proxy.credentials.sigv4 import AWS_KEYS, Keys, Scope, Unsigned, signed
from openshell_proxy.credentials.streams import Echoes
from openshell_proxy.credentials.tokens import Post
from openshell_proxy.credentials.vault import Secret, Vault
from openshell_proxy.inference.document import secret_of, secret_problem
from openshell_proxy.inference.errors import CallRefusal
from openshell_proxy.inference.patterns import Style
from openshell_proxy.inference.routes import Route
from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.http1 import Header

_BEDROCK_SERVICE = "bedrock"
_HIDDEN = b"[CREDENTIAL]"


class Authorisation:
    """The key of *route* for one call to *path*; the vault is that of the moment. Raises :class:`CallRefusal` (503)."""

    __slots__ = ("_access", "_path", "_post", "_route", "_secret")

    def __init__(self, route: Route, vault: Vault, path: str, style: Style, post: Post) -> None:
        host, port = route.origin.host, route.origin.port
        self._route = route
        self._path = path
        self._post = post
        self._access = Access(vault, vault.site(host, port), host, port, path.partition("?")[0])
        self._secret: Secret | None = secret_of(route, vault)
        problem = secret_problem(route, vault)
        if self._secret is not None and not problem and not self._secret.admits(host, port, path.partition("?")[0]):
            problem = f"names the secret '{route.secret}', which is not bound to this path"
        if problem:
            raise CallRefusal(503, "credential_endpoint_mismatch", f"route '{route.name}' {problem}", style=style)

    async def fields(self, fields: list[Header], body: bytes) -> list[Header]:
        """*fields* with what authorises; a token that runs out is renewed first. Raises Refusal."""
        if self._route.auth == "none":
            return fields
        if self._route.auth == "aws":
            return self._signed(fields, body)
        if self._secret is not None and self._secret.token is not None:
            await self._secret.token.renew(self._post)
        key = self._key()
        if self._route.auth == "bearer":
            return [*fields, (b"Authorization", b"Bearer " + key)]
        return [*fields, (b"X-Api-Key", key)]

    def _key(self) -> bytes:
        return self._route.key if self._secret is None else self._secret.current()

    def _signed(self, fields: list[Header], body: bytes) -> list[Header]:
        keys = Keys(*map(self._access.value_of, AWS_KEYS))
        scope = Scope(_BEDROCK_SERVICE, self._route.region)
        digest = hashlib.sha256(body).hexdigest()
        return signed("POST", Unsigned(self._path, fields, "", ""), keys, scope, digest)

    async def renewed(self) -> bool:
        """After a 401: whether there is another key now, so that asking once more may help."""
        token = self._secret.token if self._secret is not None else None
        if token is None:
            return False
        before = token.value
        try:
            await token.renew(self._post, before)
        except Refusal:
            return False  # the client gets the answer that there is
        return token.value != before

    def echoes(self) -> Echoes:
        """The key in every form in which an answer may plainly repeat it, and what the agent sees instead."""
        known: dict[bytes, bytes] = {}
        if self._route.key:
            known |= secret_forms(self._route.key, _HIDDEN)
        site = self._access.site
        for secret in site.secrets if site is not None else ():
            for value in secret.values():
                known |= secret_forms(value, secret.stand_in)
        return Echoes(known)
