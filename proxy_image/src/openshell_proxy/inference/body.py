# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A call's body as a whole, within bounds (spec 2.10): it is changed before it goes on, so nothing of it can pass earlier."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from openshell_proxy.inference.errors import CallRefusal
from openshell_proxy.inference.patterns import Style
from openshell_proxy.relay.http1 import Body, ProtocolError, RequestHead, request_framing
from openshell_proxy.relay.inspect import CONTINUE
from openshell_proxy.relay.stream import Stream
from openshell_proxy.under_way import RETRY_AFTER

if TYPE_CHECKING:
    from openshell_proxy.pipeline import Pipeline

MAX_HELD = 64 * 1024 * 1024
MAX_BODY = 10 * 1024 * 1024
MAX_CHUNKS = 4096
BODY_SECONDS = 120.0


class Share:
    """What one call holds of the memory that all calls of the sandbox have together."""

    __slots__ = ("_pipeline", "_style", "_taken")

    def __init__(self, pipeline: Pipeline, style: Style) -> None:
        self._pipeline = pipeline
        self._style = style
        self._taken = 0

    def take(self, count: int) -> None:
        """Hold *count* bytes more. Raises :class:`CallRefusal` (503) where there is no room for them."""
        if self._pipeline.held + count > MAX_HELD:
            detail = "the inference calls that are under way hold too much; try again in a moment"
            raise CallRefusal(503, "overloaded", detail, retry_after=RETRY_AFTER, style=self._style)
        self._pipeline.held += count
        self._taken += count

    def give_back(self) -> None:
        self._pipeline.held -= self._taken
        self._taken = 0


async def read_body(client: Stream, head: RequestHead, style: Style, share: Share) -> bytes:
    """Take the body of the request *head*, without its framing.

    Raises :class:`CallRefusal` for one that is too large or in too many chunks (413), slow (408), malformed (400) or for
    which there is no room (503), and :class:`ConnectionError` for one that is cut short.
    """
    try:
        framing = request_framing(head)
        if framing.length > MAX_BODY:
            raise _too_large(style)
        if framing.kind != "none" and head.minor == 1 and b"100-continue" in head.members(b"expect"):
            client.write(CONTINUE)
        async with asyncio.timeout(BODY_SECONDS):
            return await _content(client, Body(framing, collect=True), style, share)
    except ProtocolError as error:
        raise CallRefusal(400, "invalid_request", str(error), style=style) from None
    except TimeoutError:
        raise CallRefusal(408, "request_timeout", "the request's body did not arrive in time", style=style) from None


async def _content(client: Stream, body: Body, style: Style, share: Share) -> bytes:
    content, wire = bytearray(), 0
    while not body.done:
        if not client.buffer and not await client.fill():
            raise ConnectionError("the client ended within its request")
        data = client.consume(body.take(client.buffer))
        piece = body.content(data)
        share.take(len(piece))
        content += piece
        wire += len(data)
        if len(content) > MAX_BODY or wire > 2 * MAX_BODY or body.chunks > MAX_CHUNKS:
            raise _too_large(style)
    return bytes(content)


def _too_large(style: Style) -> CallRefusal:
    detail = f"a call's body is at most {MAX_BODY} bytes in {MAX_CHUNKS} chunks"
    return CallRefusal(413, "request_body_too_large", detail, style=style)
