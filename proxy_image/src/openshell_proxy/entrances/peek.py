# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Looking at a socket's first bytes without taking them, so that whoever serves it next misses none."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable
from typing import Literal

FIRST_BYTES = 24
MOST = 16_384 + 5  # one TLS record (RFC 8446, 5.1): a hello
Kind = Literal["tls", "http", "h2", "unknown", "silent"]

_METHOD = re.compile(rb"[A-Z]{3,16} ")
_MAYBE_METHOD = re.compile(rb"[A-Z]{1,16}")


def classify(first: bytes, ended: bool = False) -> Kind | None:
    """What a client begins to speak; None while more bytes are needed to tell (spec 2.3, step 9)."""
    if not first:
        return "silent" if ended else None
    if first[0] == 0x16:
        return "tls" if first[1:2] == b"\x03" else ("unknown" if len(first) > 1 or ended else None)
    if first.startswith(b"PRI "):
        return "h2"
    if _METHOD.match(first):
        return "http"
    return None if _MAYBE_METHOD.fullmatch(first) and not ended else "unknown"


async def readable(sock: socket.socket) -> None:
    """Wait until a read would not block."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock.fileno(), lambda: None if future.done() else future.set_result(None))
    try:
        await future
    finally:
        loop.remove_reader(sock.fileno())


async def peek(sock: socket.socket, count: int, enough: Callable[[bytes], bool]) -> tuple[bytes, bool]:
    """(first bytes, whether the stream ended): up to *count*, once *enough* says so. Takes none of them.

    SO_RCVLOWAT keeps the loop asleep until there is more than it has seen.
    """
    seen = -1
    try:
        while True:
            try:
                data = sock.recv(count, socket.MSG_PEEK)
            except BlockingIOError:
                await readable(sock)
                continue
            if not data or len(data) == seen:
                return data, True
            if len(data) >= count or enough(data):
                return data, False
            seen = len(data)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)
            await readable(sock)
    finally:
        if seen > 0 and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def discard(sock: socket.socket) -> None:
    """Take what has been peeked at, so that a close does not become a reset."""
    with contextlib.suppress(OSError):
        sock.recv(MOST)


async def first_kind(sock: socket.socket) -> Kind:
    """Wait for the client's first bytes and tell what they begin."""
    data, ended = await peek(sock, FIRST_BYTES, lambda seen: classify(seen) is not None)
    return classify(data, ended) or "unknown"
