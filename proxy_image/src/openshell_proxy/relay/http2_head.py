# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""HTTP/2 header sections as facts, no I/O: what RFC 9113, 8.2 and 8.3, call malformed is refused.

What comes in as HTTP/2 goes out as HTTP/2 and never as HTTP/1.1, so no field can become framing on the way: the words
of HTTP/1.1 are for us alone, and none of that framing is ever written. Keep it so.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable
from typing import Literal

from hpack import NeverIndexedHeaderTuple

from openshell_proxy.relay.http1 import Header, RequestHead

# Tokens without capitals; a pseudo-header's colon is looked at apart from them (RFC 9113, 8.2.1).
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_CONNECTION = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
_DROPPED = frozenset((b"proxy-authorization", b"proxy-authenticate"))
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_NO_TRAILERS = frozenset((b"host", b"content-length"))  # RFC 9110, 6.5.1; the others are refused everywhere
_STATUS = re.compile(rb"[1-5][0-9][0-9]")
_REQUEST = frozenset((b":method", b":scheme", b":authority", b":path"))
_CHUNKED = (b"transfer-encoding", b"chunked")
_NOT_IN_HTTP2 = _CONNECTION | {b"host"}
_FIELD_OVERHEAD = 32  # RFC 9113, 6.5.2

Kind = Literal["request", "response", "trailers"]


class Malformed(ValueError):
    """A header section that ends its stream; one sentence without any of the bytes."""


@dataclasses.dataclass(slots=True)
class Head:
    """``pseudo`` by name with the colon; ``fields`` the others in order; ``length`` the Content-Length or None."""

    pseudo: dict[bytes, bytes]
    fields: list[Header]
    length: int | None

    def value(self, name: bytes) -> bytes | None:
        """The first value of the field *name*."""
        return next((value for key, value in self.fields if key == name), None)


def content_size(fields: Iterable[Header]) -> int:
    """The bytes of names and values: what a header section says, however HPACK has written it."""
    return sum(map(len, itertools.chain.from_iterable(fields)))


def list_size(fields: list[Header]) -> int:
    """The size of a header list as SETTINGS_MAX_HEADER_LIST_SIZE counts it."""
    return content_size(fields) + _FIELD_OVERHEAD * len(fields)


def too_large(fields: list[Header], size: int, count: int) -> str:
    """Why a request's head is more than is read: *size* as :func:`list_size` has it, *count* fields; "" if it is not."""
    if sum(field[0][:1] != b":" for field in fields) > count:
        return f"there are more than {count} header fields"
    return f"the request's head is larger than {size} bytes" if list_size(fields) > size else ""


def read_head(fields: Iterable[Header], kind: Kind) -> Head:
    """Check and split a header section. Raises :class:`Malformed`.

    Fields keep their type, by which HPACK knows those that must never be indexed. A cookie that came in crumbs is one
    field again, last, as whoever judges or changes it expects it (RFC 9113, 8.2.3).
    """
    head, begun = Head({}, [], None), False
    for field in fields:
        name, value = field
        if not _VALUE.fullmatch(value):
            raise Malformed("a header value holds what it must not")
        if name[:1] == b":":
            if begun or name in head.pseudo:
                raise Malformed("a pseudo-header field is repeated or out of place")
            head.pseudo[name] = value
            continue
        begun = True
        if not _NAME.fullmatch(name):
            raise Malformed("a header name is not a token in lower case")
        if name in _CONNECTION or (name == b"te" and value.lower() != b"trailers"):
            raise Malformed("a header field belongs to a connection of HTTP/1.1")
        if kind == "trailers" and name in _NO_TRAILERS:
            raise Malformed("a trailer is a field that routes or frames")
        if name == b"content-length":
            _declare(head, value)
        if name not in _DROPPED:
            head.fields.append(field)
    crumbs = [value for name, value in head.fields if name == b"cookie"] if kind == "request" else []
    if len(crumbs) > 1:
        whole = NeverIndexedHeaderTuple(b"cookie", b"; ".join(crumbs))
        head.fields = [*(field for field in head.fields if field[0] != b"cookie"), whole]
    _check_pseudo(head.pseudo, kind)
    return head


def in_http1(head: Head, method: str, target: str, host: bytes, bare: bool) -> RequestHead:
    """A request's head in the words of HTTP/1.1, in which policy and credentials are written; see :func:`in_http2`.

    *bare*: it has no body. One of unknown length is what is chunked there.
    """
    framing = [] if bare or head.length is not None else [_CHUNKED]
    fields = [(b"host", host), *(field for field in head.fields if field[0] != b"host"), *framing]
    return RequestHead(1, fields, method, target)


def in_http2(head: RequestHead, target: str, fields: list[Header]) -> list[Header]:
    """The head for the wire of what :func:`in_http1` made, with *target* and *fields* as they have become since.

    What has become of a field may be secret, and is kept out of the tables of HPACK (RFC 7541, 7.1.3).
    """
    came = {field: field for field in head.fields}
    host = next(value for name, value in fields if name.lower() == b"host")
    path = (b":path", target.encode("ascii"))
    start = [(b":method", head.method.encode("ascii")), (b":scheme", b"https"), (b":authority", host)]
    return [
        *start, path if target == head.target else NeverIndexedHeaderTuple(*path),
        *(came.get((name, value)) or NeverIndexedHeaderTuple(name.lower(), value)
          for name, value in fields if name.lower() not in _NOT_IN_HTTP2),
    ]  # fmt: skip


def with_length(fields: list[Header], length: int | None) -> list[Header]:
    """*fields* with another Content-Length, or none."""
    kept = [field for field in fields if field[0] != b"content-length"]
    return kept if length is None else [*kept, (b"content-length", b"%d" % length)]


def _declare(head: Head, value: bytes) -> None:
    if not value.isdigit() or len(value) > 18 or head.length not in (None, int(value)):
        raise Malformed("Content-Length is not one number")
    head.length = int(value)


def _check_pseudo(pseudo: dict[bytes, bytes], kind: Kind) -> None:
    if kind == "trailers":
        right = not pseudo
    elif kind == "response":
        right = pseudo.keys() == {b":status"} and bool(_STATUS.fullmatch(pseudo[b":status"]))
    else:
        # CONNECT, plain or extended (RFC 8441), has other pseudo-headers; neither is offered.
        right = pseudo.keys() == _REQUEST and bool(_METHOD.fullmatch(pseudo[b":method"]))
        right = right and pseudo[b":method"] != b"CONNECT"
    if not right:
        raise Malformed("the pseudo-header fields are not those of such a message")
