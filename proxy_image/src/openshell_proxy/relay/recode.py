# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bodies whose content changes on the way, and their framing, which then cannot stay as it came."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from openshell_proxy.relay.http1 import Body, Framing, Header, ResponseHead

# A request's body up to this size is taken whole and sent on with its new length: not every server takes a chunked
# request. A longer one is streamed, chunked, since nobody knows its new length before its end.
SMALL_BODY = 65_536
CHUNKED = (b"Transfer-Encoding", b"chunked")
_FRAMING_FIELDS = frozenset((b"content-length", b"transfer-encoding"))


class Transform(Protocol):
    """Content in, content out. May raise :class:`~openshell_proxy.refusal.Refusal` for a request's."""

    def feed(self, data: bytes) -> bytes: ...

    def end(self) -> bytes: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Both:
    """Content through *first* and then through *second*."""

    first: Transform
    second: Transform

    def feed(self, data: bytes) -> bytes:
        return self.second.feed(self.first.feed(data))

    def end(self) -> bytes:
        return self.second.feed(self.first.end()) + self.second.end()


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of a response: its end-to-end fields, its reason, and how its body changes.

    ``same_length``: the content has as many bytes afterwards as before.
    """

    fields: list[Header]
    reason: bytes
    transform: Transform | None = None
    same_length: bool = True


class Changes(Protocol):
    """What happens to one request and its response between client and destination."""

    def request_body(self) -> Transform | None:
        """What the request's content goes through, anew for each call; None where it stays as it is. Raises Refusal."""

    async def again(self, status: int) -> tuple[str, list[Header]] | None:
        """Target and fields for asking once more after an answer with *status*; None where that would not help."""

    def interim(self, block: bytes) -> bytes:
        """The head of an interim response for the client."""

    def answer(self, head: ResponseHead) -> Answer:
        """The final response. Raises Refusal for one that cannot be passed on."""


class Recoder:
    """The content of *body* through *transform*; ``chunked`` is how it is framed from here on, else as bare bytes."""

    __slots__ = ("_body", "_transform", "chunked")

    def __init__(self, body: Body, transform: Transform, chunked: bool) -> None:
        self._body = body
        self._transform = transform
        self.chunked = chunked

    def pass_on(self, wire: bytes) -> bytes:
        """What to send for *wire*, which the body has just taken; and at the body's end all that was held back."""
        out = self._transform.feed(self._body.content(wire))
        if self._body.done:
            out += self._transform.end()
        if not self.chunked:
            return out
        chunk = b"%x\r\n%b\r\n" % (len(out), out) if out else b""
        return chunk + b"0\r\n\r\n" if self._body.done else chunk


def reframed(fields: list[Header], framing: Header | None) -> list[Header]:
    """*fields* with *framing* in place of what tells a body's length."""
    kept = [field for field in fields if field[0].lower() not in _FRAMING_FIELDS]
    return [*kept, framing] if framing is not None else kept


def response_recoder(framing: Framing, answer: Answer, minor: int) -> tuple[Body, Recoder | None, list[Header]]:
    """The body to take, what recodes it and the fields, for a client that speaks HTTP/1.*minor*.

    A length that would change gives way to chunks or, where HTTP/1.0 knows none, to the end of the connection.
    """
    if answer.transform is None or framing.kind == "none":
        return Body(framing), None, answer.fields
    body = Body(framing, collect=True)
    keeps = answer.same_length and framing.kind == "length"
    chunked = framing.kind == "chunked" or (framing.kind == "length" and not keeps and minor == 1)
    fields = answer.fields if keeps else reframed(answer.fields, CHUNKED if chunked else None)
    return body, Recoder(body, answer.transform, chunked), fields
