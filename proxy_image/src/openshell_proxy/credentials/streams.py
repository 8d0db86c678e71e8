# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bodies changed as they pass: nothing waits but a tail that may be the beginning of what is looked for.

Each transform gives the same bytes however its input is cut into pieces.
"""

from __future__ import annotations

import json
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from urllib.parse import quote_from_bytes, unquote_to_bytes

from openshell_proxy.credentials.placeholders import unfinished, unfinished_literal
from openshell_proxy.credentials.rewrite import Access, invalid
from openshell_proxy.relay.http1 import ProtocolError
from openshell_proxy.relay.recode import Transform

# What a form's serializer leaves as it is (URL standard, application/x-www-form-urlencoded percent-encode set); the
# library adds the letters, digits, "_", "-", "." and "~" to it.
FORM_SAFE = "*"
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
MAX_INFLATED = 32 * 1024 * 1024  # of one read of at most 256 KiB


class _Scanner(ABC):
    """Replaces what ``pattern`` matches; ``_buffer`` holds the unsent tail after a byte of context."""

    _CONTEXT = 1

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern
        self._buffer = b""
        self._start = 0

    def feed(self, data: bytes) -> bytes:
        return self._run(self._buffer + data, last=False)

    def end(self) -> bytes:
        return self._run(self._buffer, last=True)

    def _run(self, data: bytes, last: bool) -> bytes:
        out: list[bytes] = []
        at = self._start
        while True:
            hold = len(data) if last else self._hold(data, at)
            match = self._pattern.search(data, at)
            if match is None or match.start() >= hold:
                break
            out += [data[at : match.start()], self._replace(match)]
            at = match.end()
        out.append(data[at:hold])
        self._start = self._CONTEXT if hold else 0
        self._buffer = data[hold - self._start :]
        return b"".join(out)

    @abstractmethod
    def _hold(self, data: bytes, start: int) -> int:
        """Index from which on *data* must wait for what comes after it."""

    @abstractmethod
    def _replace(self, match: re.Match[bytes]) -> bytes: ...


class Resolve(_Scanner):
    """Text whose placeholders become secrets, each passed through *encode* (JSON escapes, for example)."""

    def __init__(self, access: Access, encode: Callable[[bytes], bytes] = bytes) -> None:
        super().__init__(access.vault.pattern)
        self._access = access
        self._encode = encode

    def _hold(self, data: bytes, start: int) -> int:
        return unfinished(data, start, self._access.vault.randoms)

    def _replace(self, match: re.Match[bytes]) -> bytes:
        return self._encode(self._access.resolve(match, "body"))


class Refuse(Resolve):
    """Content in which no placeholder may stand; it passes as it is."""

    def __init__(self, access: Access, where: str) -> None:
        super().__init__(access)
        self._where = where

    def _replace(self, match: re.Match[bytes]) -> bytes:
        raise invalid(self._where)


class ResolveForm:
    """``application/x-www-form-urlencoded``: values are decoded, replaced and encoded again; names must be free of them."""

    _SEPARATOR = re.compile(rb"([&=])")

    def __init__(self, access: Access) -> None:
        self._access = access
        self._part: Resolve = self._name()
        self._carried = b""  # a percent-encoding that is not complete yet

    def _name(self) -> Resolve:
        return Refuse(self._access, "name of a form field")

    def feed(self, data: bytes) -> bytes:
        data = self._carried + data
        cut = data.rfind(b"%", max(0, len(data) - 2))
        self._carried, data = (data[cut:], data[:cut]) if cut >= 0 else (b"", data)
        return b"".join(map(self._token, self._SEPARATOR.split(data)))

    def _token(self, token: bytes) -> bytes:
        if token == b"&":
            done, self._part = self._part.end(), self._name()
        elif token == b"=" and isinstance(self._part, Refuse):
            done, self._part = self._part.end(), Resolve(self._access)
        else:
            return _form_encoded(self._part.feed(unquote_to_bytes(token.replace(b"+", b" "))))
        return _form_encoded(done) + token

    def end(self) -> bytes:
        rest, self._carried = self._carried, b""
        return self._token(rest) + _form_encoded(self._part.end())


def _form_encoded(data: bytes) -> bytes:
    return quote_from_bytes(data, safe=FORM_SAFE).replace("%20", "+").encode("ascii")


def json_escaped(value: bytes) -> bytes:
    """*value* as it stands within a JSON string (RFC 8259, 7)."""
    return json.dumps(value.decode("utf-8"), ensure_ascii=False)[1:-1].encode()


def _ascii_escaped(value: bytes) -> bytes:
    return json.dumps(value.decode("utf-8"))[1:-1].encode()


# As serializers do it: minimally, in ASCII, and each with the "/" escaped that a script element needs.
JSON_ESCAPES: tuple[Callable[[bytes], bytes], ...] = (
    json_escaped,
    _ascii_escaped,
    lambda value: json_escaped(value).replace(b"/", b"\\/"),
    lambda value: _ascii_escaped(value).replace(b"/", b"\\/"),
)


def is_json(text: bytes) -> bool:
    """Whether *text* is JSON, or several JSON texts one after another that begin with an object or an array."""
    if text.lstrip(b" \t\r\n")[:1] in (b"{", b"["):
        return True
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


class Echoes:
    """What a destination could answer with that the agent must not see; *known* maps each to what it sees instead."""

    __slots__ = ("_fitted", "_probes", "known", "pattern", "same_length")

    def __init__(self, known: Mapping[bytes, bytes]) -> None:
        listed = sorted(known, key=len, reverse=True)
        self.known = known
        self.pattern = re.compile(b"|".join(map(re.escape, listed)))
        self._probes: list[bytes] = []
        for one in sorted(known):  # of those that begin alike, the shortest comes first and tells of all
            if not self._probes or not one.startswith(self._probes[-1]):
                self._probes.append(one)
        self.same_length = all(len(old) == len(new) for old, new in known.items())
        self._fitted: Echoes | None = self if self.same_length else None

    def fitted(self) -> Echoes:
        """The same for content that tells its length: what stands there instead is as long."""
        if self._fitted is None:
            self._fitted = Echoes({old: new[: len(old)].ljust(len(old), b"*") for old, new in self.known.items()})
        return self._fitted

    def seen(self, match: re.Match[bytes]) -> bytes:
        return self.known[match[0]]

    def within(self, data: bytes) -> bool:
        """Whether there is any; plain searches tell that most answers hold none, much faster than the pattern does."""
        return any(map(data.__contains__, self._probes))

    def masked(self, data: bytes) -> bytes:
        """Bytes that are complete, a header's value or a whole head, as the agent may see them."""
        return self.pattern.sub(self.seen, data) if self.within(data) else data


class Mask(_Scanner):
    """The same for content that comes in pieces."""

    _CONTEXT = 0  # what is looked for is the same wherever it stands

    def __init__(self, echoes: Echoes) -> None:
        super().__init__(echoes.pattern)
        self._echoes = echoes

    def _run(self, data: bytes, last: bool) -> bytes:
        if not data:
            return b""
        if self._echoes.within(data):
            return super()._run(data, last)
        hold = len(data) if last else self._hold(data, 0)
        self._buffer = data[hold:]
        return data[:hold]

    def _hold(self, data: bytes, start: int) -> int:
        return unfinished_literal(data, start, self._echoes.known)

    def _replace(self, match: re.Match[bytes]) -> bytes:
        return self._echoes.seen(match)


class Inflated:
    """Content that is compressed although we asked for it as it is: decompressed before *then* looks at it."""

    def __init__(self, then: Transform) -> None:
        self._then = then
        self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        out = b""
        self._begun = self._begun or bool(data)
        try:
            while data:
                out += self._inflate.decompress(data, MAX_INFLATED - len(out) + 1)
                if len(out) > MAX_INFLATED:
                    raise ProtocolError("its compressed content grows out of proportion")
                data = self._inflate.unused_data  # another member (RFC 1952, 2.2)
                if data:
                    self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
        except zlib.error:
            raise ProtocolError("its content is not compressed as it says") from None
        return self._then.feed(out)

    def end(self) -> bytes:
        if self._begun and not self._inflate.eof:
            raise ProtocolError("its compressed content is cut short")
        return self._then.end()


class NoEncoded:
    """What *then* makes of content in which no placeholder may stand percent-encoded; where one does, it is refused."""

    def __init__(self, access: Access, then: Transform) -> None:
        self._vault = access.vault
        self._then = then
        self._tail = b""
        self._window = 3 * max(map(len, self._vault.needles))  # bytes; each of a needle's may be three

    def feed(self, data: bytes) -> bytes:
        seen = self._tail + data
        self._tail = seen[-self._window :]
        # Those that are not encoded are not meant: they are replaced.
        if b"%" in seen and any(
            needle in unquote_to_bytes(self._vault.pattern.sub(b"\0", seen)) for needle in self._vault.needles
        ):
            raise invalid("body, percent-encoded,")
        return self._then.feed(data)

    def end(self) -> bytes:
        return self._then.end()


def body_transform(access: Access, content_type: bytes) -> Transform:
    """What rewrites a request's body of *content_type* where the endpoint asks for it (spec 2.6)."""
    kind = content_type.partition(b";")[0].strip().lower()
    if kind == b"application/json" or kind.endswith(b"+json"):
        return NoEncoded(access, Resolve(access, json_escaped))
    if kind.startswith(b"text/"):
        return NoEncoded(access, Resolve(access))
    if kind == b"application/x-www-form-urlencoded":
        return ResolveForm(access)
    return Refuse(access, "body, whose type is not rewritten")
