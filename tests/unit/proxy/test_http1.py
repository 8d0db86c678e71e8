# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Framing is where smuggling starts: what is ambiguous is refused."""

from __future__ import annotations

import pytest
from openshell_proxy.relay.http1 import (
    Body,
    Framing,
    ProtocolError,
    parse_request_head,
    request_framing,
)


def head(*lines: str) -> bytes:
    return ("\r\n".join(["POST /a HTTP/1.1", "Host: x", *lines]) + "\r\n\r\n").encode("latin-1")


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 4", "Transfer-Encoding: chunked"],
        ["Content-Length: 4", "Content-Length: 5"],
        ["Content-Length: +4"],
        ["Content-Length: 4, 4"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding:"],
    ],
)
def test_ambiguous_framing_is_refused(lines: list[str]) -> None:
    with pytest.raises(ProtocolError):
        request_framing(parse_request_head(head(*lines)))


@pytest.mark.parametrize(
    "block",
    [
        b"GET / HTTP/1.1\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: host\r\n\r\n",
    ],
)
def test_bad_heads_are_refused(block: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_request_head(block)


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_chunked_body_ends_where_it_ends(step: int) -> None:
    body = Body(Framing("chunked"))
    data = b"5;x=y\r\nhello\r\n0\r\nTrailer: v\r\n\r\n"
    rest = data + b"GET / next"
    used = 0
    while not body.done:
        used += body.take(rest[used : used + step])
    assert used == len(data)


@pytest.mark.parametrize("data", [b"5\nhello", b"0x5\r\nhello\r\n", b"5\r\nhelloX\r\n", b"-1\r\n", b"\r\n"])
def test_bad_chunks_are_refused(data: bytes) -> None:
    body = Body(Framing("chunked"))
    with pytest.raises(ProtocolError):
        body.take(data)


def test_a_short_body_is_an_error() -> None:
    body = Body(Framing("length", 5))
    body.take(b"abc")
    with pytest.raises(ProtocolError):
        body.end_of_stream()
