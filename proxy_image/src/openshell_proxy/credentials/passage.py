# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One request and its answer on their way past the credentials: secrets go in at one side and never out at the other."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl, quote_from_bytes

from openshell_proxy.credentials.middleware import Redaction
from openshell_proxy.credentials.rewrite import QUERY, SEGMENT, Access
from openshell_proxy.credentials.sigv4 import (
    AWS_KEYS,
    MAX_HASHED,
    UNSIGNED,
    Keys,
    Scope,
    payload_is_hashed,
    signed,
    unsigned,
)
from openshell_proxy.credentials.streams import (
    FORM_SAFE,
    JSON_ESCAPES,
    Echoes,
    Inflated,
    Mask,
    Resolve,
    body_transform,
    is_json,
    json_escaped,
)
from openshell_proxy.credentials.tokens import Post, RenewedToken
from openshell_proxy.credentials.vault import Secret, Site, Vault
from openshell_proxy.policy.model import Credentials
from openshell_proxy.refusal import OwnAnswer, Refusal
from openshell_proxy.relay.http1 import Header, RequestHead, ResponseHead
from openshell_proxy.relay.recode import Answer, Both, Transform

ReadBody = Callable[[int], Awaitable[bytes]]

_COMPRESSED = (b"gzip", b"x-gzip", b"deflate")
_MAX_TOKEN_REQUEST = 65_536
_BUYING = ("refresh_token", "client_secret", "assertion")  # what buys a token, by grant
_ACCEPTS = (b"accept-encoding", b"grpc-accept-encoding")
_NO_CONTENT = (204, 304)
# How values are percent-encoded: wholly, with "/" left, and as this sidecar itself does in paths, queries and forms.
_SAFE_SETS = ("", "/", SEGMENT, QUERY, FORM_SAFE)
_MIN_BASE64 = 8  # characters; a shorter piece would be found in every answer
_URLSAFE = bytes.maketrans(b"+/", b"-_")


class Passage:
    """What the vault does for one request to *place*: host, port and the path that policy was asked with.

    *asked* is what the endpoint says about credentials, *post* reaches token endpoints. What *redaction* leaves of the
    content is all that is seen here. Everything raises :class:`Refusal`. It is the
    :class:`~openshell_proxy.relay.recode.Changes` of the exchange where it has any.
    """

    __slots__ = (
        "_access", "_asked", "_content_type", "_method", "_post", "_redaction", "_repeated", "_rewrites_body", "_sent",
        "_site",
    )  # fmt: skip

    def __init__(
        self, vault: Vault, place: tuple[str, int, str], head: RequestHead, asked: Credentials, post: Post,
        redaction: Redaction | None = None,
    ) -> None:  # fmt: skip
        self._redaction = redaction
        self._site = vault.site(place[0], place[1])
        self._access = Access(vault, self._site, *place, asked.provider)
        self._method = head.method
        self._asked = asked
        self._post = post
        self._repeated = False
        self._sent: tuple[str, list[Header]] = ("", [])
        self._rewrites_body = asked.body_rewrite and not head.values(b"content-encoding")
        types = head.values(b"content-type") if self._rewrites_body else []
        self._content_type = types[0] if len(types) == 1 else b""

    @property
    def changes(self) -> Passage | None:
        """Itself, where anything but the request's head may change."""
        return self if self._site is not None or self._rewrites_body or self._redaction is not None else None

    @property
    def changes_messages(self) -> bool:
        """Whether a WebSocket's text messages go through :meth:`message`."""
        return self._asked.websocket_rewrite or self._redaction is not None

    @property
    def guarded(self) -> bool:
        """Whether credentials are bound to the place."""
        return self._site is not None

    async def head(self, target: str, fields: list[Header], body: ReadBody) -> tuple[str, list[Header]]:
        """The request's target and fields with secrets; expiring ones are renewed first. *body* is for what it signs."""
        if self._access.place in self._access.vault.token_places and self._method == "POST":
            await self._sell(fields, body)
        for token in self._tokens():
            await token.renew(self._post)
        if self._asked.signing:
            return await self._signed(target, fields, body)
        self._sent = target, fields
        return self._access.target(target), self._fields(fields)

    async def _sell(self, fields: list[Header], body: ReadBody) -> None:
        """Answer a client that wants to renew by itself a token that is this sidecar's affair. Raises OwnAnswer then."""
        told = _token_request(await self._content(body, _MAX_TOKEN_REQUEST), fields)
        for key in _BUYING:
            match = self._access.vault.pattern.fullmatch(told.get(key, "").encode())
            secret = self._access.vault.named(match) if match else None
            if secret is None or secret.token is None or secret.token.grant.place != self._access.place:
                continue
            await secret.token.renew(self._post)
            raise OwnAnswer(200, "", "the sidecar has the token", content=secret.token.answer(told[key], key))

    async def _signed(self, target: str, fields: list[Header], body: ReadBody) -> tuple[str, list[Header]]:
        """The request as the client would have signed it, had it the keys (spec 2.6)."""
        plain = unsigned(target, fields)
        if self._redaction is not None:
            plain = dataclasses.replace(plain, digest="")  # of what the client sent, not of what is left of it
        keys = Keys(*map(self._access.value_of, AWS_KEYS))
        scope = Scope(self._asked.signing_service, self._asked.signing_region)
        empty = not any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in fields)
        digest = UNSIGNED
        if payload_is_hashed(self._asked.signing, scope, plain, empty):
            digest = plain.digest if self._asked.signing == "sigv4" else ""
            digest = digest or hashlib.sha256(b"" if empty else await self._content(body, MAX_HASHED)).hexdigest()
            plain = unsigned(target, fields)  # reading the body may have taken a field away
        made = dataclasses.replace(plain, target=self._access.target(plain.target), fields=self._fields(plain.fields))
        return made.target, signed(self._method, made, keys, scope, digest)

    async def _content(self, body: ReadBody, limit: int) -> bytes:
        content = await body(limit)
        return content if self._redaction is None else self._redaction.body(content)

    async def again(self, status: int) -> tuple[str, list[Header]] | None:
        """Target and fields for asking once more, where *status* says that a token was refused and there is a new one."""
        tokens = self._tokens()
        # AWS refuses with 403, and a signature does not outlive its request's second: a signed one is not asked again.
        if status != 401 or self._repeated or self._asked.signing:
            return None
        self._repeated = True
        before = [token.value for token in tokens]
        try:
            for token, refused in zip(tokens, before, strict=True):
                await token.renew(self._post, refused)
        except Refusal:
            return None  # the client gets the answer that there is
        if [token.value for token in tokens] == before:
            return None
        return self._access.target(self._sent[0]), self._fields(self._sent[1])

    def _tokens(self) -> tuple[RenewedToken, ...]:
        return self._site.renewed if self._site is not None else ()

    def _fields(self, fields: list[Header]) -> list[Header]:
        """A destination that knows a secret is asked for answers that are not compressed, so that they can be searched."""
        made = self._access.fields(fields)
        if self._site is None:
            return made
        made = [field for field in made if field[0].lower() not in _ACCEPTS]
        return [*made, (b"Accept-Encoding", b"identity")]

    def request_body(self) -> Transform | None:
        redacted = self._redaction.transform() if self._redaction is not None else None
        resolved = body_transform(self._access, self._content_type) if self._rewrites_body else None
        return Both(redacted, resolved) if redacted is not None and resolved is not None else redacted or resolved

    def redacted(self, text: bytes) -> bytes:
        """What the middlewares leave of a WebSocket's text message."""
        return text if self._redaction is None else self._redaction.message(text)

    def message(self, text: bytes) -> bytes | None:
        """The same with secrets, where the endpoint asks for that; None for one that must not be sent."""
        text = self.redacted(text)
        if not self._asked.websocket_rewrite:
            return text
        resolve = Resolve(self._access, json_escaped if is_json(text) else bytes)
        try:
            return resolve.feed(text) + resolve.end()
        except Refusal:
            return None

    def interim(self, block: bytes) -> bytes:
        return block if self._site is None else self._echoes(self._site).masked(block)

    def answer(self, head: ResponseHead) -> Answer:
        fields = head.end_to_end()
        if self._site is None:
            return Answer(fields, head.reason)
        echoes = self._echoes(self._site)
        reason = head.reason
        if echoes.within(b"\n".join([reason, *[value for _, value in fields]])):  # one search for all of them
            fields = [(name, echoes.masked(value)) for name, value in fields]
            reason = echoes.masked(reason)
        if any(kind.startswith(b"application/grpc") for kind in head.values(b"content-type")):
            echoes = echoes.fitted()  # each message tells its length
        told = [*head.members(b"content-encoding"), *(b"grpc " + one for one in head.members(b"grpc-encoding"))]
        codings = [coding for coding in told if coding.removeprefix(b"grpc ") != b"identity"]
        if not codings or self._method == "HEAD" or head.status in _NO_CONTENT:
            return Answer(fields, reason, Mask(echoes), echoes.same_length)
        if len(codings) > 1 or codings[0] not in _COMPRESSED or head.status == 206:
            detail = "the destination's answer is compressed, although that was not asked for, and cannot be searched"
            raise Refusal(502, "upstream_protocol_error", detail)
        fields = [field for field in fields if field[0].lower() != b"content-encoding"]
        return Answer(fields, reason, Inflated(Mask(echoes)), same_length=False)

    def _echoes(self, site: Site) -> Echoes:
        """What may come back: made once for each place, unless values changed or base64 hides one of this request."""
        if site.renewed or self._access.encoded:
            return Echoes(_known(site) | self._access.encoded)
        if site.echoes is None:
            site.echoes = Echoes(_known(site))
        return site.echoes


def _token_request(content: bytes, fields: list[Header]) -> dict[str, str]:
    """The parameters of a token request: a form (RFC 6749, 6), or JSON as some clients have it; else none."""
    try:
        text = content.decode("utf-8")
        types = [value.partition(b";")[0].strip().lower() for name, value in fields if name.lower() == b"content-type"]
        found = json.loads(text) if types == [b"application/json"] else dict(parse_qsl(text))
    except (ValueError, RecursionError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def _known(site: Site) -> dict[bytes, bytes]:
    """Every form of every secret of the place that an answer may plainly repeat, and what the agent sees instead."""
    known: dict[bytes, bytes] = {}
    for secret in site.secrets:
        for value in secret.values():
            known |= _forms(secret, value)
    return known


def secret_forms(value: bytes, seen: bytes) -> dict[bytes, bytes]:
    """The forms in which an answer may plainly repeat *value*, each with what the agent sees in its place.

    As it is, escaped for JSON, percent-encoded, and in base64 alone or with something around it.
    """
    forms = {value: seen, **{escape(value): escape(seen) for escape in JSON_ESCAPES}}
    for safe in _SAFE_SETS:
        encoded = quote_from_bytes(value, safe=safe)
        lower = re.sub("%..", lambda code: code[0].lower(), encoded)
        forms |= {encoded.encode(): seen, lower.encode(): seen, encoded.replace("%20", "+").encode(): seen}
    for before in range(3):
        for hidden, shown in zip(_in_base64(value, before), _in_base64(seen, before), strict=True):
            if len(hidden.rstrip(b"=")) >= _MIN_BASE64:
                forms |= {hidden: shown, hidden.translate(_URLSAFE): shown.translate(_URLSAFE)}
    return forms


def _forms(secret: Secret, value: bytes) -> dict[bytes, bytes]:
    seen = secret.stand_in
    forms = secret_forms(value, seen)
    if secret.basic:
        told = secret.username + b":" if secret.username else b""
        forms[base64.b64encode(told + value)] = base64.b64encode(told + seen)
    return forms


def _in_base64(value: bytes, before: int) -> tuple[bytes, bytes, bytes]:
    """The characters that *value* alone decides, where *before* bytes (modulo 3) of something precede it.

    Where something follows, and where nothing does: without padding and with it. At most 4 bits of its first byte and 4
    of its last stand in characters that its neighbours decide as well; those are not found, and not hidden.
    """
    encoded = base64.b64encode(bytes(before) + value)
    skipped = (0, 2, 3)[before]
    whole = (before + len(value)) // 3 * 4
    return encoded[skipped:whole], encoded[skipped:].rstrip(b"="), encoded[skipped:]
