# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One HTTP/2 request and its response: two streams, one on each connection, each leading to the other."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Awaitable, Callable

from h2.errors import ErrorCodes

from openshell_proxy.audit import Event
from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.dialer import UpstreamError
from openshell_proxy.relay.exchange import MAX_RESPONSE_HEAD, REPEATABLE, Broken
from openshell_proxy.relay.http1 import Header, ResponseHead
from openshell_proxy.relay.http2 import Side
from openshell_proxy.relay.http2_head import Head, Malformed, list_size, with_length
from openshell_proxy.relay.recode import SMALL_BODY, Changes, Transform


@dataclasses.dataclass(slots=True)
class StreamExchange:
    """``render`` makes the head for the wire of a target and fields; ``open`` gives a stream to the destination.

    ``changes`` says what becomes of bodies and of the response; without it they pass as they are.
    """

    client: Side
    method: str
    target: str
    fields: list[Header]
    render: Callable[[str, list[Header]], list[Header]]
    open: Callable[[], Awaitable[Side]]
    event: Event
    changes: Changes | None = None
    answered: bool = False
    interim: int = 0
    asking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until the last byte of the response is on its way.

        Raises :class:`Refusal` while nothing of a response has been sent, :class:`Broken` when the client's stream was
        reset because the destination's was.
        """
        rewrites = await self._rewrites()
        again = True
        while not await self._attempt(rewrites, again):
            self.client.rewind()
            again = False

    async def _rewrites(self) -> Callable[[], Transform | None] | None:
        """What gives the transform of the request's body; a small one is changed at once, to tell its new length."""
        changes, client = self.changes, self.client
        if changes is None or client.bare or (transform := changes.request_body()) is None:
            return None
        if client.expected is None or client.expected > SMALL_BODY or any(one[0] == b"expect" for one in self.fields):
            self.fields = with_length(self.fields, None)
            return changes.request_body
        body = await client.gather(SMALL_BODY)
        made = transform.feed(body or b"") + transform.end()
        client.kept = [made]
        client.rewind()
        self.fields = with_length(self.fields, len(made))
        return None

    async def _attempt(self, rewrites: Callable[[], Transform | None] | None, again: bool) -> bool:
        """False when the destination has not taken the request, and it is to be sent once more (if *again*)."""
        try:
            upstream = await self.open()
        except UpstreamError as error:
            detail = f"{self.event.host}:{self.event.port} is unreachable: {error.reason}"
            raise Refusal(502, "upstream_unreachable", detail) from None
        client = self.client
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def end(result: bool | Exception) -> None:
            if not done.done():
                if isinstance(result, Exception):
                    done.set_exception(result)
                else:
                    done.set_result(result)

        def reset(code: int | None) -> None:
            if not done.done() and not upstream.got_end:
                end(False if again and self._untouched(upstream, code) else self._broken(code))

        def fault(error: Exception) -> None:
            end(self._fault(error))

        client.on_sent, upstream.on_reset = functools.partial(end, True), reset
        client.on_fault = upstream.on_fault = fault
        upstream.on_head = self._on_head(upstream, end)
        upstream.transform = rewrites() if rewrites is not None else None
        try:
            upstream.send_head(self.render(self.target, self.fields), end=client.bare)
            client.lead_to(upstream)
            return await done
        finally:
            if self.asking is not None:
                self.asking.cancel()
            upstream.on_reset = upstream.on_fault = client.on_sent = client.on_fault = None
            self.event.bytes_out = client.received_heads + upstream.sent
            self.event.bytes_in = client.sent_heads + client.sent
            client.part()
            upstream.part()
            upstream.reset(ErrorCodes.CANCEL)

    def _untouched(self, upstream: Side, code: int | None) -> bool:
        """Whether nothing has come of the request, by the destination's word or because repeating it is safe.

        And whether all that came of its body is still there to be sent once more, as long as nothing is answered.
        """
        if self.client.kept is None:
            return False
        lost = code is None and not upstream.sent and self.method in REPEATABLE
        return lost or code == ErrorCodes.REFUSED_STREAM

    def _broken(self, code: int | None) -> Exception:
        """A reset passes on as it is: the client knows better than we what it means for it."""
        if not self.answered and code in (None, ErrorCodes.PROTOCOL_ERROR):
            bad = code is not None
            detail = "the destination's answer is bad" if bad else "the destination closed without an answer"
            return Refusal(502, "upstream_protocol_error" if bad else "upstream_unreachable", detail)
        self.client.reset(ErrorCodes.INTERNAL_ERROR if code in (None, ErrorCodes.NO_ERROR) else code or 0)
        self.event.reason = "the destination reset the stream" if code is not None else "the destination closed"
        return Broken(self.event.reason)

    def _fault(self, error: Exception) -> Exception:
        """What comes of a body that cannot be changed, or an answer that cannot be passed on."""
        if isinstance(error, Refusal) and not self.answered:
            return error
        self.client.reset(ErrorCodes.INTERNAL_ERROR)
        self.event.reason = f"broke off: {error.detail if isinstance(error, Refusal) else error}"
        return Broken(self.event.reason)

    def _on_head(self, upstream: Side, end: Callable[[bool | Exception], None]) -> Callable[[Head, bool], None]:
        def on_head(head: Head, whole: bool) -> None:
            status = int(head.pseudo[b":status"])
            if status == 101:
                raise Malformed("101 does not exist in HTTP/2")
            if status < 200:
                self._pass_interim(head, end)
                return
            upstream.expected = 0 if self.method == "HEAD" or status in (204, 304) else head.length
            if whole and upstream.expected:
                raise Malformed("the body is shorter than its Content-Length")
            repeatable = self.client.got_end and self.client.kept is not None
            if status == 401 and repeatable and self.changes is not None:
                self.asking = asyncio.get_running_loop().create_task(self._ask_again(upstream, head, whole, end))
            else:
                self._respond(upstream, head, whole, end)

        return on_head

    def _pass_interim(self, head: Head, end: Callable[[bool | Exception], None]) -> None:
        """Interim answers go to the client as they come, but not for ever."""
        self.interim += list_size(head.fields)
        if self.interim > MAX_RESPONSE_HEAD:
            detail = "the destination's answer is bad: interim answers without end"
            end(self._fault(Refusal(502, "upstream_protocol_error", detail)))
            return
        fields = head.fields
        if self.changes is not None:
            fields = [(name, self.changes.interim(value)) for name, value in fields]
        self.client.send_head([(b":status", head.pseudo[b":status"]), *fields])

    async def _ask_again(
        self, upstream: Side, head: Head, whole: bool, end: Callable[[bool | Exception], None]
    ) -> None:
        """Drop an answer for which a token had run out; the request may fare better with a new one."""
        assert self.changes is not None
        try:
            made = await self.changes.again(401)
        except Exception as error:
            end(error)
            return
        if made is not None:
            self.target, self.fields = made
            end(False)
        elif not upstream.closed or upstream.got_end:
            self._respond(upstream, head, whole, end)

    def _respond(self, upstream: Side, head: Head, whole: bool, end: Callable[[bool | Exception], None]) -> None:
        """Begin the answer to the client; what comes of it after the head follows by itself."""
        client, fields = self.client, head.fields
        if self.changes is not None:
            status = int(head.pseudo[b":status"])
            try:
                answer = self.changes.answer(ResponseHead(1, head.fields, status))
            except Refusal as refusal:
                end(refusal)
                return
            bodiless = whole or upstream.expected == 0
            client.transform, upstream.mask = None if whole else answer.transform, self.changes.interim
            keeps = bodiless or answer.transform is None or answer.same_length
            fields = answer.fields if keeps else with_length(answer.fields, None)
        self.answered, self.event.status = True, int(head.pseudo[b":status"])
        client.kept = None
        client.send_head([(b":status", head.pseudo[b":status"]), *fields], whole)
        if not whole:
            upstream.lead_to(client)
