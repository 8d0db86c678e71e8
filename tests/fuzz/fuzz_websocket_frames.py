# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fuzz target: whatever a client sends, what the origin reads as text is what was judged, and the relay ends by itself.

Run with ``PYTHONPATH=proxy_image/src python tests/fuzz/fuzz_websocket_frames.py -max_total_time=60``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import atheris
from harness import run

with atheris.instrument_imports(include=["openshell_proxy.relay"]):
    from openshell_proxy.policy import Decision
    from openshell_proxy.relay.stream import Stream
    from openshell_proxy.relay.websocket import Assemblies, FrameWalk, JudgedWebSocket, parse_frame_header
    from openshell_proxy.settings import MessageLimits
    from websockets.frames import Frame, Opcode

LIMITS = MessageLimits(text=200, binary_frame=200, fragments=5, close=0.001)
TEXT, CLOSE = 1, 8


class _Far(asyncio.Transport):
    """The far side of a stream; keeps what is written to it."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream, self.written = stream, bytearray()
        stream.connection_made(self)

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        if not self.stream.lost:
            self.stream.connection_lost(None)

    abort = close

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def can_write_eof(self) -> bool:
        return False


async def _relay(deflate: bool, step: int, data: bytes) -> None:
    client, origin = Stream(), Stream()
    sink = _Far(origin)
    _Far(client)
    admitted: list[bytes] = []

    async def judge(text: bytes) -> Decision:
        allowed = b"no" not in text
        if allowed:
            admitted.append(text)
        return Decision(allowed)

    relay = JudgedWebSocket(client, origin, judge, LIMITS, Assemblies(LIMITS), deflate)
    running = asyncio.create_task(relay.run())
    for at in range(0, len(data), step):
        client.data_received(data[at : at + step])
        await asyncio.sleep(0)
    client.eof_received()
    await asyncio.wait_for(running, 5)
    assert _texts(bytes(sink.written)) == admitted


def _texts(data: bytes) -> list[bytes]:
    """Payloads of the text frames; every frame is whole but the last, which may be a binary one that broke off."""
    found = []
    while data and (header := parse_frame_header(data)) is not None:
        assert header.mask and not header.reserved
        payload = data[header.size : header.size + header.length]
        if header.opcode == TEXT:
            assert header.fin and not header.rsv1 and len(payload) == header.length
            found.append(bytes(byte ^ header.mask[index % 4] for index, byte in enumerate(payload)))
        data = data[header.size + header.length :]
        assert not (data and header.opcode == CLOSE)
    return found


def fuzz(data: bytes) -> None:
    """The first two bytes choose compression and how the rest is cut; the rest is the client's stream."""
    if len(data) < 2:
        return
    asyncio.run(_relay(bool(data[0] & 1), 1 + data[1], data[2:]))
    walk, position = FrameWalk(), 0
    while used := walk.take(data[position:]):
        position += used
    assert walk.left >= 0


def _seeds() -> Iterator[bytes]:
    """A message that is admitted, one that is refused, one in two fragments, a ping, an end; cut at each byte and not."""
    told = b"".join(
        Frame(*frame).serialize(mask=True)
        for frame in (
            (Opcode.TEXT, b"yes"),
            (Opcode.TEXT, b"y", False),
            (Opcode.CONT, b"es"),
            (Opcode.BINARY, bytes(50)),
            (Opcode.PING, b""),
        )
    )
    ended = Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True)
    refused = Frame(Opcode.TEXT, b"no").serialize(mask=True)
    for step in (0, 255):
        for deflate in (0, 1):
            yield bytes((deflate, step)) + told + ended
            yield bytes((deflate, step)) + told + refused


if __name__ == "__main__":
    run(fuzz, _seeds())
