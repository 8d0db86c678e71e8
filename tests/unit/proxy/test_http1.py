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
    ResponseHead,
    TooManyFields,
    parse_request_head,
    parse_response_head,
    request_framing,
    response_framing,
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


@pytest.mark.parametrize(
    "lines",
    [
        ["Connection: x guard"],
        ["Connection: close, (x)"],
        ["Connection: content-length", "Content-Length: 0"],
        ["Connection: Transfer-Encoding"],
        ["A: b\x7fc"],
        [": b"],
        ["A b: c"],
        ["A"],
    ],
)
def test_bad_fields_are_refused(lines: list[str]) -> None:
    with pytest.raises(ProtocolError):
        parse_request_head(head(*lines))


@pytest.mark.parametrize(
    "line", ["GET /\xe9 HTTP/1.1", "X" * 65 + " / HTTP/1.1", "GET / HTTP/1.2", "GET / http/1.1", "GET /\x7f HTTP/1.1"]
)
def test_bad_request_lines_are_refused(line: str) -> None:
    with pytest.raises(ProtocolError):
        parse_request_head(f"{line}\r\nHost: x\r\n\r\n".encode("latin-1"))


@pytest.mark.parametrize("line", ["HTTP/1.1 600 X", "HTTP/1.1 20 X", "HTTP/2 200", "HTTP/1.1 200\tX", "ICY 200 OK"])
def test_bad_status_lines_are_refused(line: str) -> None:
    with pytest.raises(ProtocolError):
        parse_response_head(f"{line}\r\n\r\n".encode())


def test_too_many_fields_are_refused_as_such() -> None:
    lines = [f"A{number}: b" for number in range(3)]
    assert len(parse_request_head(head(*lines), 4).fields) == 4
    with pytest.raises(TooManyFields):
        parse_request_head(head(*lines), 3)


def test_an_old_request_needs_no_host_and_has_no_chunks() -> None:
    assert parse_request_head(b"GET / HTTP/1.0\r\n\r\n").host is None
    with pytest.raises(ProtocolError):
        request_framing(parse_request_head(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"))


@pytest.mark.parametrize("length", ["1" * 19, "", "5 5", "0x5", "5\xb2"])
def test_a_length_is_a_number_of_decimal_digits(length: str) -> None:
    with pytest.raises(ProtocolError):
        request_framing(parse_request_head(head(f"Content-Length: {length}")))


def test_what_is_for_one_connection_is_not_passed_on() -> None:
    lines = ["Connection: keep-alive, X-Guard", "Keep-Alive: 5", "X-Guard: a", "Upgrade: x", "Proxy-Authorization: b"]
    kept = parse_request_head(head(*lines, "Content-Length: 1", "A: b", "content-length: 1")).end_to_end()
    assert kept == [(b"Host", b"x"), (b"Content-Length", b"1"), (b"A", b"b")]


@pytest.mark.parametrize(
    ("first", "lines", "stays"),
    [
        ("HTTP/1.1", [], True),
        ("HTTP/1.1", ["Connection: Close"], False),
        ("HTTP/1.0", [], False),
        ("HTTP/1.0", ["Connection: keep-alive"], True),
        ("HTTP/1.0", ["Connection: keep-alive, close"], False),
        ("HTTP/1.1", ["Connection: , X-Guard,,"], True),  # RFC 9110, 5.6.1
    ],
)
def test_who_keeps_a_connection(first: str, lines: list[str], stays: bool) -> None:
    block = "\r\n".join([f"GET / {first}", "Host: x", *lines, "", ""]).encode()
    assert parse_request_head(block).persistent() is stays


@pytest.mark.parametrize(
    ("method", "status", "fields", "kind"),
    [
        ("GET", 200, [], "eof"),
        ("GET", 200, [(b"Content-Length", b"5")], "length"),
        ("GET", 200, [(b"Content-Length", b"0")], "none"),
        ("GET", 200, [(b"Transfer-Encoding", b"Chunked")], "chunked"),
        ("HEAD", 200, [(b"Content-Length", b"5")], "none"),
        ("GET", 204, [(b"Transfer-Encoding", b"chunked")], "none"),
        ("GET", 304, [(b"Content-Length", b"5")], "none"),
        ("GET", 199, [], "none"),
    ],
)
def test_how_an_answer_ends(method: str, status: int, fields: list[tuple[bytes, bytes]], kind: str) -> None:
    assert response_framing(ResponseHead(1, fields, status), method).kind == kind


@pytest.mark.parametrize(
    ("line", "reason"), [("HTTP/1.1 200", b""), ("HTTP/1.1 200 ", b""), ("HTTP/1.0 200 a b", b"a b")]
)
def test_a_reason_may_be_missing(line: str, reason: bytes) -> None:
    assert parse_response_head(f"{line}\r\n\r\n".encode()).reason == reason


@pytest.mark.parametrize("blanks", ["", " ", "\t", " \t "])
def test_blanks_around_a_value_are_no_part_of_it(blanks: str) -> None:
    got = parse_request_head(head(f"A:{blanks}b c{blanks}", "Content-Length: " + "5".zfill(18) + blanks))
    assert got.values(b"a") == [b"b c"]
    assert request_framing(got) == Framing("length", 5)


def test_an_ambiguous_answer_is_refused_whatever_was_asked() -> None:
    both = ResponseHead(1, [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")], 304)
    with pytest.raises(ProtocolError):
        response_framing(both, "HEAD")


@pytest.mark.parametrize(
    "data",
    [
        b"1" * 16 + b"\r\n",
        b"5;" + b"x" * 5000 + b"\r\n",
        b"5;" + b"x" * 5000,
        b"1\r\na" + b"\r" * 3,
        b"0\r\n" + b"A: " + b"x" * 17_000 + b"\r\n\r\n",
        b"0\r\n" + b"x" * 17_000,
        b"0\r\nA\r\n\r\n",
        b"0\r\nA : b\r\n\r\n",
        b"0\r\nA: b\x00\r\n\r\n",
        b"0\r\nA: b\n\r\n",
        b"0\r\nupgrade: x\r\n\r\n",
        b"5;\x00\r\n",
    ],
)
@pytest.mark.parametrize("step", [1, 100_000])
def test_bad_chunked_bodies_are_refused(data: bytes, step: int) -> None:
    body = Body(Framing("chunked"))
    pieces = [data[start : start + step] for start in range(0, len(data), step)]
    with pytest.raises(ProtocolError):
        list(map(body.take, pieces))


@pytest.mark.parametrize("data", [b"", b"5", b"5\r\nab", b"2\r\nab", b"2\r\nab\r\n", b"0\r\n", b"0\r\nA: b\r\n"])
def test_a_chunked_body_without_its_end_is_an_error(data: bytes) -> None:
    body = Body(Framing("chunked"))
    body.take(data)
    with pytest.raises(ProtocolError):
        body.end_of_stream()


@pytest.mark.parametrize(("framing", "data"), [(Framing("length", 3), b"abc"), (Framing("chunked"), b"0\r\n\r\n")])
def test_the_end_after_a_whole_body_is_none_too_early(framing: Framing, data: bytes) -> None:
    body = Body(framing)
    assert body.take(data) == len(data)
    body.end_of_stream()


def test_of_equal_lengths_one_is_passed_on() -> None:
    lines = ["Content-Length: 1", "Content-Length: 1"]
    assert parse_request_head(head(*lines)).end_to_end() == [(b"Host", b"x"), (b"Content-Length", b"1")]


def test_only_a_body_without_a_length_ends_with_the_connection() -> None:
    body = Body(Framing("eof"))
    assert body.take(b"abc") == 3
    body.end_of_stream()
    assert body.done
