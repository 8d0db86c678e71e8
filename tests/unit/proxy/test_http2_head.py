# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Header sections of HTTP/2: every rule of RFC 9113, 8.2 and 8.3, broken alone; and the words of HTTP/1.1 for them."""

from __future__ import annotations

from typing import Any

import pytest
from hpack import HeaderTuple, NeverIndexedHeaderTuple
from openshell_proxy.relay.http1 import Header
from openshell_proxy.relay.http2_head import (
    Kind,
    Malformed,
    in_http1,
    in_http2,
    list_size,
    read_head,
    too_large,
    with_length,
)

REQUEST: list[Header] = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.test"), (b":path", b"/")]
RESPONSE: list[Header] = [(b":status", b"200")]
STARTS: dict[Kind, list[Header]] = {"request": REQUEST, "response": RESPONSE, "trailers": []}


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize(
    "field",
    [
        (b"x", b"1\r\n2"), (b"x", b"1\n2"), (b"x", b"1\x002"), (b"x", b" 1"), (b"x", b"1 "), (b"x", b"\t1"), (b"x", b"\x7f"),
        (b"", b"1"), (b"X", b"1"), (b"a b", b"1"), (b"a:b", b"1"), (b"a\r\nb", b"1"), (b"\xe4", b"1"),
        (b"connection", b"close"), (b"proxy-connection", b"1"), (b"keep-alive", b"1"), (b"upgrade", b"h2c"),
        (b"transfer-encoding", b"chunked"), (b"te", b"gzip"), (b"te", b"trailers, gzip"), (b"te", b""),
        (b"content-length", b""), (b"content-length", b"+1"), (b"content-length", b"1, 1"), (b"content-length", b"1" * 19),
        (b":late", b"1"), (b":path", b"/"), (b":status", b"200"),
    ],
)  # fmt: skip
def test_a_field_that_is_malformed_anywhere(kind: Kind, field: Header) -> None:
    assert read_head([*STARTS[kind], (b"x", b"1")], kind).fields == [(b"x", b"1")]
    with pytest.raises(Malformed):
        read_head([*STARTS[kind], (b"x", b"1"), field], kind)


@pytest.mark.parametrize("field", [(b":late", b"1"), (b":path", b"/")])
@pytest.mark.parametrize(
    "before", [(b"x", b"1"), (b"proxy-authorization", b"1")]
)  # one that stays, one that is dropped
def test_a_pseudo_header_comes_first(field: Header, before: Header) -> None:
    start = [one for one in REQUEST if one[0] != field[0]]
    with pytest.raises(Malformed):
        read_head([*start, before, field], "request")


@pytest.mark.parametrize("name", [b"host", b"content-length"])
def test_a_trailer_neither_routes_nor_frames(name: bytes) -> None:
    read_head([*REQUEST, (name, b"1")], "request")
    with pytest.raises(Malformed):
        read_head([(name, b"1")], "trailers")


@pytest.mark.parametrize("missing", range(len(REQUEST)))
def test_a_request_has_all_of_its_pseudo_headers(missing: int) -> None:
    with pytest.raises(Malformed):
        read_head([field for number, field in enumerate(REQUEST) if number != missing], "request")


@pytest.mark.parametrize(
    ("kind", "pseudo"),
    [
        ("request", [*REQUEST, (b":protocol", b"websocket")]),
        ("request", [*REQUEST, (b":status", b"200")]),
        ("request", [*REQUEST, REQUEST[0]]),
        ("request", [(b":method", b"CONNECT"), *REQUEST[1:]]),
        ("request", [(b":method", b"A B"), *REQUEST[1:]]),
        ("request", [(b":method", b""), *REQUEST[1:]]),
        ("request", [(b":method", b"M" * 65), *REQUEST[1:]]),
        ("response", []),
        ("response", [(b":status", b"20")]),
        ("response", [(b":status", b"600")]),
        ("response", [(b":status", b"2000")]),
        ("response", [*RESPONSE, *RESPONSE]),
        ("response", [*RESPONSE, (b":path", b"/")]),
        ("response", REQUEST),
        ("trailers", RESPONSE),
        ("trailers", REQUEST),
    ],
)
def test_pseudo_headers_of_another_message(kind: Kind, pseudo: list[Header]) -> None:
    with pytest.raises(Malformed):
        read_head(pseudo, kind)


def test_what_is_between_the_client_and_us_stays_there() -> None:
    fields = [(b"proxy-authorization", b"1"), (b"te", b"Trailers"), (b"proxy-authenticate", b"1"), (b"x", b"")]
    assert read_head([*REQUEST, *fields], "request").fields == [(b"te", b"Trailers"), (b"x", b"")]


def test_lengths_agree() -> None:
    two: list[Header] = [(b"content-length", b"5"), (b"content-length", b"5")]
    assert read_head([*REQUEST, *two], "request").length == 5
    with pytest.raises(Malformed):
        read_head([*REQUEST, two[0], (b"content-length", b"6")], "request")
    assert read_head(REQUEST, "request").length is None


def test_the_size_of_a_head_is_that_of_its_settings() -> None:
    fields: list[Header] = [(b":path", b"/"), (b"a", b"bc")]
    assert list_size(fields) == 32 + 6 + 32 + 3
    assert too_large(fields, 73, 1) == ""
    assert too_large(fields, 72, 1) == "the request's head is larger than 72 bytes"
    assert too_large(fields, 73, 0) == "there are more than 0 header fields"  # pseudo-headers are none


def test_crumbs_of_a_request_are_one_cookie() -> None:
    fields = [(b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2")]
    assert read_head([*REQUEST, *fields], "request").fields == [(b"x", b"y"), (b"cookie", b"a=1; b=2")]
    assert read_head([*RESPONSE, *fields], "response").fields == fields


def words(*fields: Header, length: bool = False, bare: bool = False) -> Any:
    head = read_head([*REQUEST, *fields, *([(b"content-length", b"3")] if length else [])], "request")
    return in_http1(head, "GET", "/x", b"a.test:1", bare)


@pytest.mark.parametrize(
    ("length", "bare", "framing"),
    [
        (True, False, {b"content-length": [b"3"]}),
        (False, False, {b"transfer-encoding": [b"chunked"]}),
        (False, True, {}),
    ],
)
def test_a_head_in_the_words_of_http_1_1(length: bool, bare: bool, framing: dict[bytes, list[bytes]]) -> None:
    made = words((b"host", b"other.test"), (b"x", b"1"), length=length, bare=bare)
    assert made.named == {b"host": [b"a.test:1"], b"x": [b"1"], **framing}
    assert (made.method, made.target, made.minor) == ("GET", "/x", 1)


def test_and_back_without_them_with_what_has_changed_in_no_table() -> None:
    plain, secret = HeaderTuple(b"x", b"1"), NeverIndexedHeaderTuple(b"y", b"2")
    made = words(plain, secret)
    fields = [*made.fields, (b"Authorization", b"Bearer s")]
    wire = in_http2(made, "/x?k=s", fields)
    assert wire == [
        (b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.test:1"), (b":path", b"/x?k=s"),
        (b"x", b"1"), (b"y", b"2"), (b"authorization", b"Bearer s"),
    ]  # fmt: skip
    hidden = [name for name, _ in (one for one in wire if isinstance(one, NeverIndexedHeaderTuple))]
    assert hidden == [b":path", b"y", b"authorization"]
    assert not isinstance(in_http2(made, "/x", fields)[3], NeverIndexedHeaderTuple)


def test_another_length_or_none() -> None:
    fields: list[Header] = [(b"content-length", b"3"), (b"x", b"1")]
    assert with_length(fields, None) == [(b"x", b"1")]
    assert with_length(fields, 4) == [(b"x", b"1"), (b"content-length", b"4")]
