# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A request's head with real secrets in place of placeholders (spec 2.6); whatever cannot be resolved is refused."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from collections.abc import Sequence
from urllib.parse import quote_from_bytes, unquote_to_bytes

from openshell_proxy.credentials.placeholders import CANONICAL, canonical
from openshell_proxy.credentials.vault import Secret, Site, Vault
from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.http1 import TOKEN, Header

# RFC 3986: what stays as it is in a path segment; a ";" would begin parameters.
SEGMENT = "!$&'()*+,=:@"
# A query's value: sub-delimiters that separate nothing there.
QUERY = "!$'()*,/:;?@"
_BASIC = re.compile(rb"([ \t]*basic[ \t]+)(.*)", re.IGNORECASE | re.DOTALL)
_URLSAFE = bytes.maketrans(b"-_", b"+/")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")
_NOT_IN_PATH = re.compile(rb"[/\\?#\x00-\x1f\x7f]|\.\.")


def mismatch(secret: Secret, host: str, port: int) -> Refusal:
    detail = f"the credential {secret.keys[0]} is not bound to this host, port and path of {host}:{port}"
    return Refusal(403, "credential_endpoint_mismatch", detail)


def unresolved(where: str) -> Refusal:
    return Refusal(500, "credential_injection_failed", f"a placeholder in the {where} stands for no credential")


def invalid(where: str) -> Refusal:
    return Refusal(400, "invalid_credential_placeholder", f"a placeholder stands in the {where} where none is replaced")


@dataclasses.dataclass(slots=True)
class Access:
    """The vault as one request may use it: from ``host`` and ``port``, with the (redacted) path ``path``.

    ``provider`` is the one whose secrets alone may go there, "" for all; ``used`` counts what was put in; ``encoded`` has
    what base64 hides of it, for the answer. Every method raises :class:`Refusal` for what may not go there.
    """

    vault: Vault
    site: Site | None
    host: str
    port: int
    path: str
    provider: str = ""
    used: int = 0
    encoded: dict[bytes, bytes] = dataclasses.field(default_factory=dict)

    @property
    def place(self) -> tuple[str, int, str]:
        """Host, port and path."""
        return self.host, self.port, self.path

    def resolve(self, match: re.Match[bytes], where: str) -> bytes:
        """The value for a placeholder that was found in *where*."""
        secret = self.vault.named(match)
        if secret is None:
            raise unresolved(where)
        if not self._admits(secret):
            raise mismatch(secret, self.host, self.port)
        self.used += 1
        return secret.current()

    def _admits(self, secret: Secret) -> bool:
        belongs = not self.provider or self.provider in secret.providers
        return belongs and secret.admits(self.host, self.port, self.path)

    def value_of(self, key: str) -> str:
        """The value of the secret *key*; "" where there is none of that name."""
        match = CANONICAL.fullmatch(canonical(key).encode())
        assert match is not None
        return self.resolve(match, "signature").decode() if self.vault.named(match) is not None else ""

    def fields(self, fields: Sequence[Header]) -> list[Header]:
        """Header fields for the destination: injected ones first replace what the client sent under their names."""
        injected = self._injected()
        kept = [field for field in fields if field[0].lower() not in injected] if injected else fields
        blob = b"\n".join([part for field in kept for part in field])
        if b"basic" not in blob.lower() and not self.vault.suspicious(blob):
            return [*kept, *injected.values()]
        return [*[self._field(field) for field in kept], *injected.values()]

    def _injected(self) -> dict[bytes, Header]:
        found: dict[bytes, Header] = {}
        for secret in self.site.injecting if self.site is not None else ():
            if not self._admits(secret):
                continue
            name = secret.header.lower()
            if name in found:
                detail = f"several credentials are bound to the same header of {self.host}:{self.port}"
                raise Refusal(500, "credential_injection_failed", detail)
            found[name] = (secret.header, secret.injected())
            self.used += 1
        return found

    def _field(self, field: Header) -> Header:
        name, value = field
        if self.vault.suspicious(name):
            raise invalid("name of a header")
        basic = _BASIC.fullmatch(value)
        value = self._basic(basic[1], basic[2]) if basic else self._value(value)
        if self.vault.suspicious(value):
            raise invalid("header")
        return name, value

    def _value(self, value: bytes) -> bytes:
        """A whole value or ``scheme placeholder``, or tokens anywhere."""
        scheme, blank, credential = value.rpartition(b" ")
        match = CANONICAL.fullmatch(credential)
        if match and (not blank or TOKEN.fullmatch(scheme)):
            return scheme + blank + self.resolve(match, "header")
        return self.vault.tokens.sub(lambda one: self.resolve(one, "header"), value)

    def _basic(self, scheme: bytes, told: bytes) -> bytes:
        """User and password in base64 (RFC 7617). What a lenient server could read a placeholder in is refused."""
        try:
            decoded = base64.b64decode(told, validate=True)
        except binascii.Error:
            decoded = b""
        if base64.b64encode(decoded) != told:
            if any(map(self.vault.suspicious, _lenient(told))):
                raise invalid("header, in base64 that is not RFC 7617's")
            return self._value(scheme + told)
        if not self.vault.suspicious(decoded):
            return scheme + told
        if scheme.strip(b" \t") + b" " != scheme:
            raise invalid("header, after more than one space")
        replaced = self.vault.pattern.sub(lambda one: self.resolve(one, "header"), decoded)
        if self.vault.suspicious(replaced):
            raise invalid("header")
        made = base64.b64encode(replaced)
        self.encoded[made] = told
        return scheme + made

    def target(self, target: str) -> str:
        """The request target (path and query) for the destination; secrets are percent-encoded into it."""
        raw = target.encode("ascii")
        if not self.vault.suspicious(raw):
            return target
        path, mark, query = raw.partition(b"?")
        segments = [self._segment(segment) for segment in path.split(b"/")]
        pieces = [self._piece(piece) for piece in query.split(b"&")]
        return (b"/".join(segments) + mark + b"&".join(pieces)).decode("ascii")

    def _segment(self, segment: bytes) -> bytes:
        decoded = unquote_to_bytes(segment)
        if not self.vault.suspicious(decoded):
            return segment
        made = self._encoded(decoded, "path", SEGMENT)
        if made in (b".", b".."):
            raise unusable_in_path()
        return made

    def _piece(self, piece: bytes) -> bytes:
        name, equals, value = (unquote_to_bytes(part.replace(b"+", b" ")) for part in piece.partition(b"="))
        if self.vault.suspicious(name):
            raise invalid("name of a query parameter")
        if not self.vault.suspicious(value):
            return piece
        return piece.partition(b"=")[0] + equals + self._encoded(value, "query_param", QUERY)

    def _encoded(self, text: bytes, where: str, safe: str) -> bytes:
        """*text* with its placeholders replaced, percent-encoded part by part."""
        out, at = [], 0
        for match in self.vault.pattern.finditer(text):
            value = self.resolve(match, where)
            if where == "path" and _NOT_IN_PATH.search(value):
                raise unusable_in_path()
            out += [text[at : match.start()], value]
            at = match.end()
        out.append(text[at:])
        if any(map(self.vault.suspicious, out[::2])):
            raise invalid(where)
        return "".join(quote_from_bytes(part, safe=safe) for part in out).encode("ascii")


def _lenient(told: bytes) -> list[bytes]:
    """What servers of less care read in *told*: each of its words and all together, URL-safe, unpadded, with noise."""
    words = [_NOT_BASE64.sub(b"", word.translate(_URLSAFE)) for word in (told, *re.split(rb"[^\w+/=-]+", told))]
    padded = [word[: len(word) - (len(word) % 4 == 1)] for word in words]
    return [base64.b64decode(word + b"=" * (-len(word) % 4)) for word in padded]


def unusable_in_path() -> Refusal:
    detail = "the credential for a placeholder in the path would change which path is meant"
    return Refusal(500, "credential_injection_failed", detail)
