# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One request of the sidecar's own: a form that is posted, and its short answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from openshell_proxy.relay.dialer import UpstreamError
from openshell_proxy.relay.http1 import Body, ProtocolError, parse_response_head, render_head, response_framing
from openshell_proxy.relay.stream import HeadTooLarge, Stream
from openshell_proxy.relay.upstream import Origin, Pool

SECONDS = 30.0
MAX_ANSWER = 65_536


async def post_form(pool: Pool, addresses: Sequence[str], to: Origin, path: str, form: bytes) -> tuple[int, bytes]:
    """Status and content of the answer. Raises :class:`OSError` where there is none that can be used."""
    host = to.host if to.port == 443 else f"{to.host}:{to.port}"
    fields = [
        (b"Host", host.encode("ascii")),
        (b"Content-Type", b"application/x-www-form-urlencoded"),
        (b"Content-Length", b"%d" % len(form)),
        (b"Accept", b"application/json"),
        (b"Connection", b"close"),
    ]
    try:
        async with asyncio.timeout(SECONDS):
            stream = await pool.connect(to, addresses, fresh=True)
            try:
                stream.write(render_head(f"POST {path} HTTP/1.1".encode("ascii"), fields) + form)
                return await _answer(stream)
            finally:
                stream.close()
    except (UpstreamError, ProtocolError, HeadTooLarge, UnicodeError) as error:
        raise ConnectionError(str(error) or "the answer has too large a head") from None


async def _answer(stream: Stream) -> tuple[int, bytes]:
    block = await stream.read_head(MAX_ANSWER)
    if block is None:
        raise ConnectionError("no answer")
    head = parse_response_head(block)
    body, content = Body(response_framing(head, "POST"), collect=True), b""
    while not body.done:
        content += body.content(stream.consume(body.take(stream.buffer)))
        if len(content) > MAX_ANSWER:
            raise ConnectionError("too long an answer")
        if not body.done and not stream.buffer and not await stream.fill():
            body.end_of_stream()
    return head.status, content
