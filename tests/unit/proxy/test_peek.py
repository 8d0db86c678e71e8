# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a client's first bytes begin, and when more of them are needed to tell."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
from openshell_proxy.entrances.peek import Kind, classify, first_kind, peek, readable


@pytest.mark.parametrize(
    ("first", "ended", "kind"),
    [
        (b"", False, None),
        (b"", True, "silent"),
        (b"\x16", False, None),
        (b"\x16", True, "unknown"),
        (b"\x16\x03", False, "tls"),
        (b"\x16\x03", True, "tls"),
        (b"\x16\x02", False, "unknown"),
        (b"\x15\x03\x01", False, "unknown"),
        (b"PRI", False, None),
        (b"PRI ", False, "h2"),
        (b"PRI * HTTP/2.0\r\n", True, "h2"),
        (b"GET /", False, "http"),
        (b"GET ", True, "http"),
        (b"GET", False, None),
        (b"GET", True, "unknown"),
        (b"GE /", False, "unknown"),
        (b"get /", False, "unknown"),
        (b"M" * 16, False, None),
        (b"M" * 16 + b" ", False, "http"),
        (b"M" * 17, False, "unknown"),
        (b"M" * 17 + b" ", False, "unknown"),
        (b"SSH-2.0-", False, "unknown"),
    ],
)
def test_what_first_bytes_begin(first: bytes, ended: bool, kind: Kind | None) -> None:
    assert classify(first, ended) == kind


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """(the client's end, ours) of a connection; neither blocks."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        ours, _ = server.accept()
        client.setblocking(False)
        ours.setblocking(False)
        with ours:
            yield client, ours


async def test_a_client_that_sends_byte_by_byte_has_no_more_time_than_another(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    client, ours = pair

    async def wait_again_and_again() -> None:
        async with asyncio.timeout(0.05):
            for _ in range(100_000):
                await readable(ours)

    client.send(b"M")  # it stays there: no wait is ever a long one
    with pytest.raises(TimeoutError):
        await wait_again_and_again()


async def test_what_was_waited_for_in_vain_can_be_waited_for_again(pair: tuple[socket.socket, socket.socket]) -> None:
    client, ours = pair
    client.send(b"GE")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(first_kind(ours), 0.01)
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
    client.send(b"T /")
    assert await asyncio.wait_for(first_kind(ours), 5) == "http"
    assert ours.recv(5) == b"GET /"


async def test_an_end_is_seen_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    client, ours = pair
    client.send(b"GET")
    client.close()
    assert await peek(ours, 100, lambda seen: False) == (b"GET", True)
