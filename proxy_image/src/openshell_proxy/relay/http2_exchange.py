# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One HTTP/2 request and its response: two streams, one on each connection, joined."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

from h2.errors import ErrorCodes

from openshell_proxy.audit import Event
from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.dialer import UpstreamError
from openshell_proxy.relay.exchange import REPEATABLE, Broken
from openshell_proxy.relay.http1 import Header
from openshell_proxy.relay.http2 import Side
from openshell_proxy.relay.http2_head import Head, Malformed


@dataclasses.dataclass(slots=True)
class StreamExchange:
    """``fields`` is the request's head as it goes on the wire; ``open`` gives a stream to the destination."""

    client: Side
    method: str
    fields: list[Header]
    open: Callable[[], Awaitable[Side]]
    event: Event
    answered: bool = False

    async def run(self) -> None:
        """Until the last byte of the response is on its way.

        Raises :class:`Refusal` while nothing of a response has been sent, :class:`Broken` when the client's stream was
        reset because the destination's was.
        """
        if not await self._attempt(again=True):
            await self._attempt(again=False)

    async def _attempt(self, again: bool) -> bool:
        """False when the destination has not looked at the request, and it may be sent once more (*again*)."""
        try:
            upstream = await self.open()
        except UpstreamError as error:
            detail = f"{self.event.host}:{self.event.port} is unreachable: {error.reason}"
            raise Refusal(502, "upstream_unreachable", detail) from None
        client = self.client
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def sent() -> None:
            if not done.done():
                done.set_result(True)

        def reset(code: int | None) -> None:
            if not done.done() and not upstream.got_end:
                if again and self._untouched(upstream, code):
                    done.set_result(False)
                else:
                    done.set_exception(self._broken(code))

        client.on_sent, upstream.on_reset, upstream.on_head = sent, reset, self._respond(upstream)
        try:
            whole = client.got_end and not client.early and client.early_trailers is None
            upstream.send_head(self.fields, end=whole)
            client.join(upstream)
            return await done
        finally:
            upstream.on_reset = client.on_sent = None
            self.event.bytes_out, self.event.bytes_in = upstream.sent, client.sent
            client.part()
            upstream.reset(ErrorCodes.CANCEL)

    def _untouched(self, upstream: Side, code: int | None) -> bool:
        """Whether nothing has come of the request, by the destination's word or because repeating it is safe.

        And whether it could be repeated: what was given to the stream of its body is gone with that.
        """
        if self.answered or upstream.given:
            return False
        return code == ErrorCodes.REFUSED_STREAM or (code is None and self.method in REPEATABLE)

    def _broken(self, code: int | None) -> Exception:
        """A reset passes on as it is: the client knows better than we what it means for it."""
        if not self.answered and code in (None, ErrorCodes.PROTOCOL_ERROR):
            bad = code is not None
            detail = "the destination's answer is bad" if bad else "the destination closed without an answer"
            return Refusal(502, "upstream_protocol_error" if bad else "upstream_unreachable", detail)
        self.client.reset(ErrorCodes.INTERNAL_ERROR if code in (None, ErrorCodes.NO_ERROR) else code or 0)
        self.event.reason = "the destination reset the stream" if code is not None else "the destination closed"
        return Broken(self.event.reason)

    def _respond(self, upstream: Side) -> Callable[[Head, bool], None]:
        def on_head(head: Head, end: bool) -> None:
            status = int(head.pseudo[b":status"])
            if status == 101:
                raise Malformed("101 does not exist in HTTP/2")
            if status >= 200:
                upstream.expected = 0 if self.method == "HEAD" or status in (204, 304) else head.length
                if end and upstream.expected:
                    raise Malformed("the body is shorter than its Content-Length")
                self.answered, self.event.status = True, status
            self.client.send_head([(b":status", head.pseudo[b":status"]), *head.fields], end)

        return on_head
