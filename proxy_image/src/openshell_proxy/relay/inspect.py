# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A request's body as a whole, for protocols whose body is judged: read without being taken (spec 2.8)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, TypeVar

from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.http1 import Body, Framing, Header, ProtocolError, RequestHead, request_framing
from openshell_proxy.relay.stream import Stream

if TYPE_CHECKING:
    from openshell_proxy.relay.http2 import Side

_Read = TypeVar("_Read")
BODY_SECONDS = 30.0
# What chunked framing may add to a body: a byte in each chunk makes it six times as long.
_FRAMING_FACTOR, _FRAMING_EXTRA = 8, 65_536
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def read_body(client: Stream, head: RequestHead, fields: list[Header], limit: int) -> bytes:
    """The decoded body of the request *head*, up to *limit* bytes; its very bytes stay in the client's buffer.

    So the relay sends on what was judged, framed as it came. A client that waits for leave to send gets it here, and
    ``Expect`` is taken out of *fields*: the destination is not asked a second time. Raises :class:`Refusal` for a body
    that is too large (413), slow (408) or malformed (400), :class:`ConnectionError` for one that is cut short.
    """
    framing = _framing(head, limit)
    if head.minor == 1 and _expects(head, fields) and framing.kind != "none" and not client.buffer:
        client.write(CONTINUE)
    try:
        wire = await _in_time(_whole(client, framing, limit))
        body = _dechunked(wire) if framing.kind == "chunked" else wire
    except ProtocolError as error:
        raise Refusal(400, "invalid_request", str(error)) from None
    if len(body) > limit:
        raise _too_large(limit)
    return body


async def read_stream(client: Side, head: RequestHead, fields: list[Header], limit: int) -> bytes:
    """The same of a stream of HTTP/2, whose *head* is in the words of HTTP/1.1."""
    _framing(head, limit)
    if _expects(head, fields) and not client.received and not client.got_end:
        client.send_head([(b":status", b"100")])
    body = await _in_time(client.gather(limit))
    if body is None:
        raise _too_large(limit)
    return body


def _framing(head: RequestHead, limit: int) -> Framing:
    try:
        framing = request_framing(head)
    except ProtocolError as error:
        raise Refusal(400, "invalid_request", str(error)) from None
    if framing.kind == "length" and framing.length > limit:
        raise _too_large(limit)
    return framing


def _expects(head: RequestHead, fields: list[Header]) -> bool:
    """Whether the client waits for leave to send."""
    if b"100-continue" not in head.members(b"expect"):
        return False
    fields[:] = [field for field in fields if field[0].lower() != b"expect"]
    return True


async def _in_time(reading: Awaitable[_Read]) -> _Read:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await reading
    except TimeoutError:
        raise Refusal(408, "request_timeout", "the request's body did not arrive in time to be judged") from None


async def _whole(client: Stream, framing: Framing, limit: int) -> bytes:
    """The body's bytes as they are on the wire, all of them."""
    body = Body(framing)
    seen = 0
    while not body.done:
        if len(client.buffer) > seen:
            seen += body.take(bytes(memoryview(client.buffer)[seen:]))
            if seen > limit * _FRAMING_FACTOR + _FRAMING_EXTRA:
                raise _too_large(limit)
        elif not await client.fill():
            raise ConnectionError("the client ended within its request")
    return bytes(memoryview(client.buffer)[:seen])


def _dechunked(wire: bytes) -> bytes:
    """The content of a chunked body that :class:`Body` has found well-formed."""
    parts: list[bytes] = []
    at = 0
    while True:
        end = wire.index(b"\r\n", at)
        size = int(wire[at:end].partition(b";")[0].strip(), 16)
        if size == 0:
            return b"".join(parts)
        parts.append(wire[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "request_body_too_large", f"the policy judges request bodies of up to {limit} bytes here")
