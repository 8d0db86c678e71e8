# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An HTTP/2 connection and its streams, either end, with back-pressure per stream (RFC 9113).

Frames and HPACK are the ``h2`` library's. What a stream receives its counterpart on the other connection sends, and
only then is the sender's window opened again: a body takes no more memory than one window, and a stream that stands
still holds up no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from h2 import events
from h2.config import H2Configuration
from h2.connection import AllowedStreamIDs, H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error, StreamClosedError
from h2.settings import SettingCodes, Settings
from h2.stream import H2Stream
from hyperframe.frame import Frame, GoAwayFrame

from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.http1 import Header, ProtocolError
from openshell_proxy.relay.http2_compression import Decoder, Encoder
from openshell_proxy.relay.http2_head import Head, Malformed, content_size, read_head
from openshell_proxy.relay.incoming import Incoming
from openshell_proxy.relay.recode import SMALL_BODY, Transform
from openshell_proxy.relay.stream import HIGH_WATER

TURN = 65_536  # bytes that a stream may send before it is another's turn
UNREAD = 2_097_152  # bytes written that a peer does not read, beyond which it is given up
CONNECTION_WINDOW = 16_777_216
HEAD_HARD_LIMIT = 262_144  # a header list beyond which the connection ends (RFC 9113, 10.5.1)
JUNK_BURST, JUNK_PER_SECOND = 1000, 200.0
KEPT = SMALL_BODY  # of a request's body, for asking again
HELD = 32  # streams of a connection, closed ones too, beyond which those are let go
EARNED = 4  # what a frame that carries something may bring with it: window updates, a ping

Portion = tuple[bytes, int]  # of a body, and by how much its sender's window opens once it is on its way


class Budget:
    """How often something may happen: *burst* at once, and *rate* each second after."""

    def __init__(self, burst: int, rate: float) -> None:
        self.burst, self.rate = burst, rate
        self.left, self.at = float(burst), time.monotonic()

    def spend(self) -> bool:
        """Take one; False when there is none."""
        now = time.monotonic()
        self.left = min(self.burst, self.left + (now - self.at) * self.rate) - 1
        self.at = now
        return self.left >= 0

    def earn(self, count: int) -> None:
        """Real work pays for some of what comes with it."""
        self.left = min(self.burst, self.left + count)


class Core(H2Connection):
    """The library's state of a connection, without what does not fit a relay.

    A GOAWAY leaves the streams below its number to end in peace (RFC 9113, 6.8), where the library drops them; a body
    of the wrong length is found by :class:`Side`, which also sees one that trailers or a head end.
    """

    MAX_CLOSED_STREAMS = 4096

    def __init__(self, config: H2Configuration) -> None:
        super().__init__(config)
        self.encoder, self.decoder = Encoder(), Decoder()

    def _begin_new_stream(self, stream_id: int, allowed_ids: AllowedStreamIDs) -> H2Stream:
        stream = super()._begin_new_stream(stream_id, allowed_ids)
        stream._initialize_content_length = _ignore  # type: ignore[method-assign, assignment]
        if not self.config.validate_inbound_headers:  # nor any other check, for all of which the library makes them
            stream._build_hdr_validation_flags = _ignore  # type: ignore[method-assign, assignment]
        return stream

    def _open_streams(self, remainder: int) -> int:
        """At most how many streams are open: the library looks at each, twice for every request, to let go of closed ones."""
        held = len(self.streams)
        inbound = remainder == (not self.config.client_side)
        settings = self.local_settings if inbound else self.remote_settings
        return held if held < min(HELD, settings.max_concurrent_streams) else super()._open_streams(remainder)

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[events.Event]]:
        event = events.ConnectionTerminated()
        event.error_code, event.last_stream_id = frame.error_code, frame.last_stream_id
        return [], [event]


def _retouched(fields: list[Header], mask: Callable[[bytes], bytes] | None) -> list[Header]:
    return fields if mask is None else [(name, mask(value)) for name, value in fields]


# The library makes a text of every frame, of its whole body too, for a log that it does not keep.
Frame.__repr__ = object.__repr__  # type: ignore[method-assign]


def _ignore(_headers: Any) -> None:
    pass


class Side:
    """One stream on one connection. What comes here goes ``to`` its counterpart, which tells where it is on its way."""

    def __init__(self, endpoint: Endpoint, number: int) -> None:
        self.endpoint = endpoint
        self.number = number
        self.to: Side | None = None
        self.source: Side | None = None  # whose window opens again for what is sent here
        self.early: list[Portion] = []  # what came before there was a counterpart
        self.kept: list[bytes] | None = None  # all that came, for asking again, where that is little
        self.queue: deque[Portion] = deque()
        self.piece, self.owed = b"", 0  # what is being sent, and what its sender may send for it
        self.transform: Transform | None = None  # what is sent here goes through it
        self.mask: Callable[[bytes], bytes] | None = None  # what the trailers that come here go through
        self.trailers: list[Header] | None = None  # to send
        self.got_trailers: list[Header] | None = None
        self.ending = self.sent_end = self.got_end = self.closed = self.gathering = False
        self.expected: int | None = None
        self.received = self.sent = 0  # bytes of bodies
        self.received_heads = self.sent_heads = 0  # bytes of names and values, trailers too
        self.on_head: Callable[[Head, bool], None] | None = (
            None  # a response's head, interim ones too; whether it is all
        )
        self.on_reset: Callable[[int | None], None] | None = None  # error code; None: the connection is gone
        self.on_fault: Callable[[Exception], None] | None = None  # what is sent here could not be changed
        self.on_sent: Callable[[], None] | None = None  # all of it is on its way
        self._more: asyncio.Future[None] | None = None

    # What the endpoint calls.

    def got_data(self, data: bytes, flow: int, last: bool) -> None:
        """*flow* is what the frame took of the window, padding included; *last*: the stream ends with it.

        That the end goes on with the last data is for the peer's sake and ours: alone it is a frame of its own.
        """
        self.received += len(data)
        if self.expected is not None and self.received > self.expected:
            raise Malformed("the body is longer than its Content-Length")
        if last:
            self._complete()
        if flow > len(data):
            self.accepted(flow - len(data))
        if not data:
            return
        if self.kept is not None:
            self.kept.append(data)
            if self.received > KEPT:
                self.kept = None
        if self.gathering:
            self.early.append((data, 0))
            self.accepted(len(data))
            self._wake()
        elif self.to is None:
            self.early.append((data, len(data)))
        elif self.to.closed or self.to.sent_end:
            self.accepted(len(data))
        else:
            self.to.ending = last  # set before, so that it goes with this data
            self.to.send(data, len(data))

    def _complete(self) -> None:
        if self.expected is not None and self.received != self.expected:
            raise Malformed("the body is shorter than its Content-Length")

    def ended(self) -> None:
        self._complete()
        self.got_end = True
        self._wake()
        if self.to is not None:
            self.to.finish(self.got_trailers)
        self._maybe_over()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def accepted(self, count: int) -> None:
        """*count* bytes of what came here are on their way: their sender may send as many more."""
        if count and not self.endpoint.gone:
            self.endpoint.core.acknowledge_received_data(count, self.number)
            self.endpoint.flush_soon()

    # What a relay calls.

    async def gather(self, limit: int) -> bytes | None:
        """All of the body, which stays for whom it will be led to; None when it is more than *limit* bytes."""
        self._owe_nothing()
        self.gathering = True
        try:
            while not self.got_end and self.received <= limit:
                self._more = asyncio.get_running_loop().create_future()
                await self._more
        finally:
            self.gathering = False
        return None if self.received > limit else b"".join([data for data, _ in self.early])

    def _owe_nothing(self) -> None:
        """What came early is ours to hold, and no longer counts in its sender's window."""
        self.accepted(sum(owed for _, owed in self.early))
        self.early = [(data, 0) for data, _ in self.early]

    @property
    def bare(self) -> bool:
        """Whether it ended with its head."""
        return self.got_end and not self.received and self.got_trailers is None

    def lead_to(self, other: Side) -> None:
        """Let what comes, and what came already, go to *other*."""
        self.to, other.source = other, self
        other.queue.extend(self.early)
        self.early = []
        if self.got_end:
            other.ending, other.trailers = True, self.got_trailers
        if other.queue or other.ending:
            other.pump()

    def part(self) -> None:
        """Lead nowhere: what is still held for it there, or here, can go nowhere."""
        other, self.to = self.to, None
        if other is not None:
            other.drop()
            other.source = None

    def rewind(self) -> None:
        """Begin anew with what is kept."""
        assert self.kept is not None
        self.early = [(data, 0) for data in self.kept]

    def send_head(self, fields: list[Header], end: bool = False) -> None:
        if not self.closed:
            self.endpoint.core.send_headers(self.number, fields, end_stream=end)
            self.sent_heads += content_size(fields)
            self.endpoint.flush_soon()
            if end:
                self._sent_all()

    def send(self, data: bytes, owed: int = 0) -> None:
        """Send *data*; *owed* is what its source's window opens by, once it is on its way."""
        self.queue.append((data, owed))
        if len(self.queue) == 1 and not self.piece:
            self.pump()

    def finish(self, trailers: list[Header] | None = None) -> None:
        """Nothing more comes: end the stream behind what is queued."""
        self.ending, self.trailers = True, trailers
        if not self.queue and not self.piece:
            self.pump()

    def pump(self) -> None:
        """Send what the peer's windows and the connection take, one turn of it."""
        endpoint = self.endpoint
        if self.closed or self.sent_end or endpoint.gone:
            return
        core, turn = endpoint.core, TURN
        while turn > 0 and not endpoint.paused and self._take_up():
            data = self.piece
            size = min(len(data), core.local_flow_control_window(self.number), core.max_outbound_frame_size)
            if size <= 0:
                break
            whole = size == len(data)
            last = whole and not self.queue and self.ending and self.transform is None and self.trailers is None
            core.send_data(self.number, data if whole else data[:size], end_stream=last)
            self.piece = b"" if whole else data[size:]
            turn -= size
            self.sent += size
            endpoint.junk.earn(EARNED)  # whoever reads opens windows again
            self._settle(self.owed if whole else min(size, self.owed))
            if last:
                self._sent_all()
        if self.piece or self.queue:
            endpoint.waiting[self.number] = self
            if turn <= 0:
                endpoint.pump_soon()
        elif self.ending and not self.sent_end and not self.closed:
            self._end()
        endpoint.flush_soon()

    def _end(self) -> None:
        if self.transform is not None:  # it may hold something back, for which there is a turn
            self.endpoint.waiting[self.number] = self
            self.endpoint.pump_soon()
            return
        if self.trailers is not None:
            self.endpoint.core.send_headers(self.number, self.trailers, end_stream=True)
            self.sent_heads += content_size(self.trailers)
        else:
            self.endpoint.core.end_stream(self.number)
        self._sent_all()

    def _take_up(self) -> bool:
        """Have a piece at hand to send; False when there is none.

        Here and not before a body is changed: what waits for the peer is what came, and counts in its sender's window.
        """
        while not self.piece and not self.closed:
            if self.queue:
                data, owed = self.queue.popleft()
                self.owed += owed
            elif self.ending and self.transform is not None:
                data = b""
            else:
                break
            self.piece = data if self.transform is None else self._changed(self.transform, data)
            if not self.piece:
                self._settle(self.owed)
        return bool(self.piece)

    def _changed(self, transform: Transform, data: bytes) -> bytes:
        try:
            changed = transform.feed(data) if data else b""
            if self.ending and not self.queue:
                changed += transform.end()
                self.transform = None
        except (Refusal, ProtocolError) as error:
            self.reset(ErrorCodes.INTERNAL_ERROR)
            if self.on_fault is not None:
                self.on_fault(error)
            return b""
        return changed

    def _settle(self, count: int) -> None:
        self.owed -= count
        if self.source is not None:
            self.source.accepted(count)

    def _sent_all(self) -> None:
        self.sent_end = True
        self._maybe_over()
        if self.on_sent is not None:
            self.on_sent()

    def _maybe_over(self) -> None:
        if self.sent_end and self.got_end:
            self.forget()

    def reset(self, code: int) -> None:
        """End the stream at once, so that the peer sees that it did not end well."""
        if not self.closed:
            if not self.endpoint.gone:
                with contextlib.suppress(StreamClosedError):  # both ends of it have ended: nothing to tell
                    self.endpoint.core.reset_stream(self.number, code)
                self.endpoint.flush_soon()
            self.forget()

    def forget(self) -> None:
        """The stream is over; what came early may still be led somewhere."""
        self.closed = True
        self.drop()
        self._owe_nothing()
        self.endpoint.over(self)

    def drop(self) -> None:
        """What waits to be sent goes nowhere: it counts no longer in its sender's windows."""
        owed = self.owed + sum(owed for _, owed in self.queue)
        self.queue.clear()
        self.piece, self.owed = b"", 0
        if self.source is not None:
            self.source.accepted(owed)


class Endpoint(Incoming):
    """One connection. Subclasses say what a stream that the peer opens means, and what goes when it goes."""

    def __init__(self, client_side: bool, window: int, frame: int, streams: int, head: int) -> None:
        config = H2Configuration(
            client_side=client_side, header_encoding=None, validate_inbound_headers=False,
            normalize_inbound_headers=False, validate_outbound_headers=False, normalize_outbound_headers=False,
        )  # fmt: skip  # heads are checked by read_head, in one pass, and sent as they came
        self.core = Core(config)
        initial = {
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: window,
            SettingCodes.MAX_FRAME_SIZE: frame,
            SettingCodes.MAX_CONCURRENT_STREAMS: streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: head,
        }
        self.core.local_settings = Settings(client=client_side, initial_values=initial)
        self.core.max_inbound_frame_size = frame
        self.core.decoder.max_header_list_size = HEAD_HARD_LIMIT
        self.core.initiate_connection()
        # Streams beyond those announced are refused one by one; only at twice as many the connection ends.
        initial[SettingCodes.MAX_CONCURRENT_STREAMS] = 2 * streams
        self.core.local_settings = Settings(client=client_side, initial_values=initial)
        self.core.increment_flow_control_window(CONNECTION_WINDOW - 65_535)
        self.transport: asyncio.Transport | None = None
        self.streams: dict[int, Side] = {}
        self.waiting: dict[int, Side] = {}
        self.paused = self.gone = self.leaving = False
        self.heard = time.monotonic()
        self.junk = Budget(JUNK_BURST, JUNK_PER_SECOND)
        self._flushing = self._pumping = False
        self._loop = asyncio.get_running_loop()

    def begin(self, transport: asyncio.BaseTransport, early: bytes) -> None:
        """Take over a connection that stands, with what came on it already."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_protocol(self)
        self.transport.set_write_buffer_limits(HIGH_WATER)
        self.flush()
        if early:
            self.data_received(early)
        self.transport.resume_reading()

    # What the transport calls.

    def data_received(self, data: bytes) -> None:
        if self.gone:
            return
        self.heard = time.monotonic()
        try:
            for event in self.core.receive_data(data):
                if not self.gone:
                    self._on_event(event)
        except H2Error as error:
            self.fail(int(getattr(error, "error_code", ErrorCodes.PROTOCOL_ERROR)), type(error).__name__)
            return
        self.flush()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        for side in list(self.streams.values()):
            side.forget()
            if side.on_reset is not None:
                side.on_reset(None)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.pump_soon()

    # Events.

    def _on_event(self, event: events.Event) -> None:
        kind = type(event)
        if kind is events.DataReceived:
            self._on_data(cast(events.DataReceived, event))
        elif kind is events.WindowUpdated:
            self._on_window(cast(events.WindowUpdated, event))
        elif kind is events.StreamEnded:
            self._with(cast(events.StreamEnded, event).stream_id, Side.ended)
        elif kind is events.RequestReceived:
            request = cast(events.RequestReceived, event)
            self.opened(request.stream_id, request.headers)
        elif kind in (events.ResponseReceived, events.InformationalResponseReceived, events.TrailersReceived):
            self._on_headers(event)
        elif kind is events.StreamReset:
            reset = cast(events.StreamReset, event)
            self._on_reset(reset.stream_id, int(reset.error_code or 0))
        elif kind is events.ConnectionTerminated:
            self.left_by_peer(int(cast(events.ConnectionTerminated, event).last_stream_id or 0))
        elif kind is events.RemoteSettingsChanged:
            self._spend()
            self.pump_soon()
        else:  # pings, acknowledgements, priorities, frames that are not known
            self._spend()

    def _spend(self) -> None:
        """Frames that move nothing are welcome in moderation (RFC 9113, 10.5)."""
        if not self.junk.spend():
            self.fail(ErrorCodes.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def _on_data(self, event: events.DataReceived) -> None:
        side = self.streams.get(event.stream_id)
        data = event.data or b""
        if data:
            self.junk.earn(EARNED)
        elif event.stream_ended is None:
            self._spend()
        if side is None:
            if not self.gone:
                self.core.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            return
        try:
            side.got_data(data, event.flow_controlled_length or 0, event.stream_ended is not None)
        except Malformed:
            self._malformed(side)

    def _on_window(self, event: events.WindowUpdated) -> None:
        if not event.stream_id:
            if self.waiting:
                self.pump_soon()
            else:
                self._spend()
        elif (side := self.waiting.get(event.stream_id)) is not None:
            side.pump()
        else:
            self._spend()

    def _on_headers(self, event: events.Event) -> None:
        received = cast(events.ResponseReceived, event)
        side = self.streams.get(received.stream_id)
        if side is None:
            return
        try:
            trailers = isinstance(event, events.TrailersReceived)
            head = read_head(received.headers, "trailers" if trailers else "response")
            side.received_heads += content_size(received.headers)
            if trailers:
                side.got_trailers = _retouched(head.fields, side.mask) or None  # without a field: an end like any
            elif side.on_head is not None:
                side.on_head(head, getattr(event, "stream_ended", None) is not None)  # interim ones have none
        except Malformed:
            self._malformed(side)

    def _with(self, number: int, call: Callable[[Side], None]) -> None:
        side = self.streams.get(number)
        if side is not None:
            try:
                call(side)
            except Malformed:
                self._malformed(side)

    def _malformed(self, side: Side) -> None:
        """The peer broke the rules on one stream: that one ends (RFC 9113, 8.1.1)."""
        on_reset = side.on_reset
        side.reset(ErrorCodes.PROTOCOL_ERROR)
        if on_reset is not None:
            on_reset(int(ErrorCodes.PROTOCOL_ERROR))

    def _on_reset(self, number: int, code: int) -> None:
        side = self.streams.get(number)
        if side is not None:
            side.forget()
            if side.on_reset is not None:
                side.on_reset(code)

    # What subclasses say.

    def opened(self, number: int, fields: list[Header]) -> None:
        """The peer opened a stream."""
        raise NotImplementedError

    def left_by_peer(self, last: int) -> None:
        """The peer serves no stream above *last*, and will have no new ones."""
        self.leaving = True

    def over(self, side: Side) -> None:
        """A stream is over."""
        self.streams.pop(side.number, None)
        self.waiting.pop(side.number, None)

    # Sending.

    def flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what has gathered: one write for each turn of the loop."""
        self._flushing = False
        if self.gone or self.transport is None:
            return
        data = self.core.data_to_send()
        if data:
            self.transport.write(data)
            if self.transport.get_write_buffer_size() > UNREAD:
                self.transport.abort()  # it asks for more than it reads

    def pump_soon(self) -> None:
        if not self._pumping and self.waiting:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Each stream that waits has its turn; those that still wait come after the others next time."""
        self._pumping = False
        for number, side in list(self.waiting.items()):
            if self.paused:
                break
            self.waiting.pop(number, None)
            side.pump()
            self.flush()

    def fail(self, code: int, why: str) -> None:
        """The peer broke the connection's rules: say so and end it."""
        if self.gone or self.transport is None:
            return
        self.flush()
        self._goaway(code)
        self.transport.close()
        self.connection_lost(None)
        self.failed(why)

    def failed(self, why: str) -> None:
        """The connection was ended for the peer's fault."""

    def retire(self) -> None:
        """No new streams; those there are end as they would, then the connection does (RFC 9113, 6.8)."""
        if not self.gone and not self.leaving:
            self.leaving = True
            self.flush()
            self._goaway(ErrorCodes.NO_ERROR)
        if not self.streams:
            self.close()

    def _goaway(self, code: int) -> None:
        """By hand: the library would end every stream with it."""
        if self.transport is not None:
            last = self.core.highest_inbound_stream_id
            self.transport.write(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())

    def close(self) -> None:
        self.flush()
        if self.transport is not None and not self.gone:
            self.transport.close()
