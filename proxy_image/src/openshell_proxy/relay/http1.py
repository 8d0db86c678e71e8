# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""HTTP/1.1 heads and bodies as bytes in and facts out, no I/O: strict where smuggling starts (RFC 9112, spec 2.1)."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from typing import Literal, NamedTuple

Header = tuple[bytes, bytes]
Side = Literal["request", "response"]

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# A field value: visible bytes, blanks and obs-text; no control byte (RFC 9110, 5.5).
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
# All field lines of a head at once: only CRLF ends a line and nothing is folded (RFC 9112, 2.2 and 5.2).
_FIELD_LINES = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n)*")
# One of them, once they are known to be well-formed.
_FIELD = re.compile(rb"([^:]+):[\t ]*([^\r]*)\r\n")
# No method is longer than 64 bytes here: it is in every line of the log (RFC 9110, 16.1.1 registers none above 17).
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) ([^\x00-\x20\x7f]+) HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(;[\t\x20-\x7e\x80-\xff]*)?")
MAX_HEADERS = 200
MAX_CHUNK_LINE = 4096
MAX_TRAILERS = 16_384
_LINE_LIMITS = {"size": MAX_CHUNK_LINE, "data-end": 2, "trailer": MAX_TRAILERS}

# RFC 9110, 7.6.1, and what proxies of old invented: for one connection only.
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"proxy-authenticate", b"upgrade")
)
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_NEVER_NOMINATED = _FRAMING | {b"host"}
# A recipient may merge trailers into the head: none of these comes late (RFC 9110, 6.5.1).
_NO_TRAILERS = HOP_BY_HOP | _NEVER_NOMINATED


class ProtocolError(ValueError):
    """Bytes that are not HTTP/1.1 as we accept it; one sentence without any of the bytes."""


class TooManyFields(ProtocolError):
    """More header fields than the limit."""


class Framing(NamedTuple):
    """How a body ends: not at all there, after ``length`` bytes, chunked, or with the connection."""

    kind: Literal["none", "length", "chunked", "eof"]
    length: int = 0


NO_BODY = Framing("none")


@dataclasses.dataclass(slots=True)
class Head:
    """Header fields in order as received, and what a hop needs of them; a head does not change once it is made.

    Names in ``fields`` are as received, in ``named`` (name → values in order) lower case: a head is asked a dozen times
    for a field that it mostly does not have.
    """

    minor: int
    fields: list[Header]
    named: dict[bytes, list[bytes]] = dataclasses.field(init=False, repr=False, compare=False)
    _options: list[bytes] | None = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        named: dict[bytes, list[bytes]] = {}
        for name, value in self.fields:
            key = name.lower()
            if key in named:
                named[key].append(value)
            else:
                named[key] = [value]
        self.named = named
        self._options = None

    def values(self, name: bytes) -> list[bytes]:
        """The values of the field *name* (lower case)."""
        return self.named.get(name, [])

    def members(self, name: bytes) -> list[bytes]:
        """The members, lower case, of a comma-separated list field."""
        if name not in self.named:
            return []
        return [part.strip().lower() for value in self.named[name] for part in value.split(b",") if part.strip()]

    def connection_options(self) -> list[bytes]:
        """Members of ``Connection``. Raises :class:`ProtocolError` where one would hide framing or the host."""
        if self._options is None:
            options = self.members(b"connection")
            for option in options:
                if not TOKEN.fullmatch(option) or option in _NEVER_NOMINATED:
                    raise ProtocolError("the Connection header names a field that must stay")
            self._options = options
        return self._options

    def end_to_end(self) -> list[Header]:
        """The fields without those of this connection, and of several equal Content-Lengths one (RFC 9110, 8.6)."""
        dropped = HOP_BY_HOP.union(self.connection_options(), self._meaningless())
        if dropped.isdisjoint(self.named):
            kept = list(self.fields)
        else:
            kept = [field for field in self.fields if field[0].lower() not in dropped]
        if len(self.named.get(b"content-length", ())) > 1:
            places = [place for place, (name, _) in enumerate(kept) if name.lower() == b"content-length"]
            for place in reversed(places[1:]):
                del kept[place]
        return kept

    def _meaningless(self) -> frozenset[bytes]:
        """Fields that say nothing in such a message, but could mislead its recipient."""
        return frozenset()

    def persistent(self) -> bool:
        """Whether the sender leaves the connection open after this message (RFC 9112, 9.3)."""
        if b"connection" not in self.named:
            return self.minor == 1
        options = self.members(b"connection")
        if b"close" in options:
            return False
        return self.minor == 1 or b"keep-alive" in options


@dataclasses.dataclass(slots=True)
class RequestHead(Head):
    """``method`` and ``target`` as received, ASCII."""

    method: str = ""
    target: str = ""

    @property
    def host(self) -> str | None:
        """The one ``Host`` value, or None on HTTP/1.0 without one."""
        values = self.values(b"host")
        return values[0].decode("latin-1") if values else None


@dataclasses.dataclass(slots=True)
class ResponseHead(Head):
    """``status`` and the bytes of the ``reason``."""

    status: int = 0
    reason: bytes = b""

    def _meaningless(self) -> frozenset[bytes]:
        """An interim answer and a 204 have no content to frame (RFC 9110, 8.6; RFC 9112, 6.1)."""
        return _FRAMING if self.status < 200 or self.status == 204 else frozenset()


def parse_request_head(block: bytes, max_fields: int = MAX_HEADERS) -> RequestHead:
    """Parse a head that ends in an empty line. Raises :class:`ProtocolError`."""
    first, fields = _split(block, max_fields)
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise ProtocolError("the request line is not METHOD TARGET HTTP/1.1")
    if not match[2].isascii():
        raise ProtocolError("the request target is not ASCII")
    head = RequestHead(int(match[3]), fields, match[1].decode(), match[2].decode())
    hosts = head.values(b"host")
    if len(hosts) > 1 or (not hosts and head.minor == 1):
        raise ProtocolError("an HTTP/1.1 request has exactly one Host header")
    head.connection_options()
    return head


def parse_response_head(block: bytes) -> ResponseHead:
    """Parse a response's head. Raises :class:`ProtocolError`."""
    first, fields = _split(block, MAX_HEADERS)
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise ProtocolError("the status line is not HTTP/1.1")
    return ResponseHead(int(match[1]), fields, int(match[2]), match[3] or b"")


def _split(block: bytes, max_fields: int) -> tuple[bytes, list[Header]]:
    """First line and fields."""
    first, _, rest = block[:-2].partition(b"\r\n")
    if rest.count(b"\r\n") > max_fields:
        raise TooManyFields(f"there are more than {max_fields} header fields")
    if _FIELD_LINES.fullmatch(rest) is None:
        raise ProtocolError("a header line is not 'name: value' without control bytes")
    fields = _FIELD.findall(rest)
    if b" \r" in rest or b"\t\r" in rest:
        fields = [(name, value.rstrip(b" \t")) for name, value in fields]
    return first, fields


def request_framing(head: RequestHead) -> Framing:
    """How the request's body ends. Raises :class:`ProtocolError` for every ambiguity (RFC 9112, 6)."""
    return _declared(head) or NO_BODY


def websocket_upgrade(head: RequestHead) -> bool:
    """Whether *head* opens a WebSocket. Raises :class:`ProtocolError` for one that names it and does not keep its rules.

    Source: RFC 6455, 4.2.1; spec 2.7. A body is refused too: after the switch nobody could tell it from frames.
    """
    if b"upgrade" not in head.named or b"websocket" not in head.members(b"upgrade"):
        return False
    if head.method != "GET" or head.minor == 0 or request_framing(head) != NO_BODY:
        raise ProtocolError("a WebSocket is opened by a GET of HTTP/1.1 without a body")
    if b"upgrade" not in head.members(b"connection"):
        raise ProtocolError("a WebSocket is opened with Connection: Upgrade")
    if head.values(b"sec-websocket-version") != [b"13"]:
        raise ProtocolError("the only version of WebSocket is 13")
    keys = head.values(b"sec-websocket-key")
    try:
        nonce = base64.b64decode(keys[0], validate=True) if len(keys) == 1 else b""
    except binascii.Error:
        nonce = b""
    if len(nonce) != 16:
        raise ProtocolError("Sec-WebSocket-Key is not 16 bytes in base64, once")
    return True


def h2c_upgrade(head: RequestHead) -> bool:
    """Whether *head* asks to go on in HTTP/2 without TLS (RFC 7540, 3.2)."""
    return b"upgrade" in head.named and b"h2c" in head.members(b"upgrade") and b"upgrade" in head.members(b"connection")


def response_framing(head: ResponseHead, method: str) -> Framing:
    """How the response's body ends, knowing what was asked."""
    declared = _declared(head)
    if method == "HEAD" or head.status in (204, 304) or head.status < 200:
        return NO_BODY
    return declared or Framing("eof")


def _declared(head: Head) -> Framing | None:
    codings = head.values(b"transfer-encoding")
    lengths = head.values(b"content-length")
    if codings:
        if lengths:
            raise ProtocolError("Content-Length and Transfer-Encoding are both there")
        if head.minor == 0:
            raise ProtocolError("HTTP/1.0 has no Transfer-Encoding")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise ProtocolError("the only Transfer-Encoding accepted is chunked")
        return Framing("chunked")
    if not lengths:
        return None
    if len(set(lengths)) > 1 or not lengths[0].isdigit() or len(lengths[0]) > 18:
        raise ProtocolError("Content-Length is not one number")
    length = int(lengths[0])
    return Framing("length", length) if length else NO_BODY


class Body:
    """Where a body ends in a stream of bytes; the bytes themselves pass as they are, chunk headers too.

    With *collect* the content of a chunked body is set aside for :meth:`content`. ``chunks``: how many there were so far.
    """

    __slots__ = ("_left", "_line", "_parts", "_state", "chunks", "done")

    def __init__(self, framing: Framing, collect: bool = False) -> None:
        self._parts: list[bytes] | None = [] if collect and framing.kind == "chunked" else None
        self._left = framing.length
        self._line = b""
        self._state = {"none": "end", "length": "fixed", "chunked": "size", "eof": "open"}[framing.kind]
        self.done = framing.kind == "none"
        self.chunks = 0

    def take(self, data: bytes | bytearray) -> int:
        """How many of the bytes of *data* belong to this body. Raises :class:`ProtocolError`."""
        if self._state == "open":
            return len(data)
        if self._state == "fixed":
            used = min(self._left, len(data))
            self._left -= used
            self.done = self._left == 0
            return used
        return self._take_chunked(data)

    def content(self, wire: bytes) -> bytes:
        """The content in *wire*, the bytes taken since the last call; trailers are no content."""
        if self._parts is None:
            return wire
        content = b"".join(self._parts)
        self._parts.clear()
        return content

    def end_of_stream(self) -> None:
        """The stream ended. Raises :class:`ProtocolError` if the body is cut short by it."""
        if self._state != "open" and not self.done:
            raise ProtocolError("the body is cut short")
        self.done = True

    def _take_chunked(self, data: bytes | bytearray) -> int:
        position = 0
        while position < len(data) and not self.done:
            if self._state == "data":
                used = min(self._left, len(data) - position)
                if self._parts is not None:
                    self._parts.append(bytes(data[position : position + used]))
                self._left -= used
                position += used
                if self._left == 0:
                    self._state = "data-end"
            else:
                position = self._take_line(data, position)
        return position

    def _take_line(self, data: bytes | bytearray, position: int) -> int:
        """Gather one CRLF line of the chunked framing, which may come in pieces, and act on it; where it ends."""
        most = position + MAX_TRAILERS + 2
        end = data.find(b"\n", position, most)
        after = end + 1 if end >= 0 else min(most, len(data))
        self._line += data[position:after]
        if len(self._line) > _LINE_LIMITS[self._state]:
            raise ProtocolError("a line of the chunked body is too long")
        if end >= 0:
            if not self._line.endswith(b"\r\n"):
                raise ProtocolError("a line of the chunked body does not end in CRLF")
            line, self._line = self._line[:-2], b""
            self._act(line)
        return after

    def _act(self, line: bytes) -> None:
        if self._state == "size":
            match = _CHUNK_SIZE.fullmatch(line)
            if match is None:
                raise ProtocolError("a chunk size is not a hexadecimal number")
            self._left = int(match[1], 16)
            self._state = "data" if self._left else "trailer"
            self.chunks += 1
        elif self._state == "data-end":
            self._state = "size"  # its limit leaves no room for anything but the CRLF
        elif not line:
            self._state, self.done = "end", True
        else:
            name, colon, value = line.partition(b":")
            if not colon or not TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
                raise ProtocolError("a trailer is not 'name: value'")
            if name.lower() in _NO_TRAILERS:
                raise ProtocolError("a trailer is a field that routes or frames")


def render_head(first: bytes, fields: list[Header]) -> bytes:
    """The bytes of a head."""
    return b"\r\n".join([first, *map(b": ".join, fields), b"", b""])
