# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is remembered of header blocks makes no difference: the library's own encoder and decoder are beside it."""

from __future__ import annotations

import random

import hpack
import pytest
from hpack import HeaderTuple, HPACKError, NeverIndexedHeaderTuple
from openshell_proxy.relay import http2_compression
from openshell_proxy.relay.http2_compression import REMEMBERED, Decoder, Encoder

Field = tuple[bytes, bytes]

CALL: list[Field] = [(b":method", b"POST"), (b":path", b"/echo.Echo/Call"), (b"te", b"trailers")]


def pairs(fields: object) -> list[tuple[type, bytes, bytes]]:
    return [(type(field), *field) for field in fields]  # type: ignore[attr-defined]


@pytest.fixture
def library_calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the library was asked."""
    calls = {"encode": 0, "decode": 0}
    for kind, name in ((hpack.Encoder, "encode"), (hpack.Decoder, "decode")):

        def counted(self: object, *args: object, _real: object = getattr(kind, name), _name: str = name) -> object:
            calls[_name] += 1
            return _real(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(kind, name, counted)
    return calls


def test_a_call_that_is_repeated_is_not_worked_out_again(library_calls: dict[str, int]) -> None:
    encoder, decoder = Encoder(), Decoder()
    blocks = [encoder.encode(CALL) for _ in range(9)]
    assert len(set(blocks[1:])) == 1 and len(blocks[1]) == len(CALL)
    assert [pairs(decoder.decode(block, True)) for block in blocks] == [[(HeaderTuple, *field) for field in CALL]] * 9
    assert library_calls == {"encode": 2, "decode": 2}  # the literals, and the references once


def test_what_a_reader_does_to_the_fields_is_its_own_affair() -> None:
    encoder, decoder = Encoder(), Decoder()
    for _ in range(3):
        fields = decoder.decode(encoder.encode(CALL), True)
        assert [tuple(field) for field in fields] == CALL
        fields.clear()  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(20))
def test_blocks_are_those_of_the_library_whatever_comes_between(seed: int) -> None:
    """Tables so small that most fields throw out others, sizes that change, and fields that must never be indexed."""
    chance = random.Random(seed)
    ours, library = (Encoder(), Decoder()), (hpack.Encoder(), hpack.Decoder())
    names = [b":status", b"te", b"x-a", b"x-b"]
    fields = [(name, b"%d" % number) for name in names for number in range(3)] + [
        (b":status", b"200"),
        (b":method", b"GET"),
    ]
    heads: list[list[Field]] = [chance.choices(fields, k=chance.randint(1, 4)) for _ in range(6)]
    heads += [[(b":status", b"200")], [(b":method", b"GET"), (b":path", b"/")]]  # which every table has
    remembered = 0
    for _ in range(400):
        if chance.random() < 0.03:
            size = chance.choice([0, 64, 100, 200, 4096])
            ours[0].header_table_size = library[0].header_table_size = size
        head: list[Field] = list(chance.choice(heads))
        if chance.random() < 0.1:
            head = [NeverIndexedHeaderTuple(*field) for field in head]
        if chance.random() < 0.05:
            head.append((b"x-new", b"%d" % chance.randint(0, 9)))
        block = ours[0].encode(head)
        assert block == library[0].encode(head)
        assert pairs(ours[1].decode(block, True)) == pairs(library[1].decode(block, True))
        remembered += bool(ours[0]._known) + bool(ours[1]._known)
    assert remembered > 50  # it is not that nothing ever was


def test_text_is_not_given_to_who_asked_for_bytes_nor_bytes_to_who_asked_for_text() -> None:
    decoder = Decoder()
    block = hpack.Encoder().encode([(b":method", b"GET")])
    for raw, method in ((True, b"GET"), (False, "GET"), (True, b"GET")):
        assert [field[1] for field in decoder.decode(block, raw)] == [method]


def test_a_reference_to_nothing_is_an_error_each_time() -> None:
    decoder = Decoder()
    for _ in range(3):
        with pytest.raises(HPACKError):
            decoder.decode(b"\xfe", True)


def test_a_list_that_is_too_large_is_an_error_each_time() -> None:
    encoder, decoder = hpack.Encoder(), Decoder()
    decoder.max_header_list_size = 1000
    decoder.decode(encoder.encode([(b"x", b"v" * 500)]), True)
    for _ in range(3):
        with pytest.raises(HPACKError):
            decoder.decode(encoder.encode([(b"x", b"v" * 500)] * 2), True)


def test_no_more_is_remembered_than_a_connection_is_worth() -> None:
    """A reference is one byte, and what it stands for an object in memory."""
    decoder, encoder = Decoder(), Encoder()
    for first in range(2, 62):
        block = bytes([0x80 | first, 0x82])
        decoder.decode(block, True)
        encoder.encode([tuple(field) for field in decoder.decode(block, True)])
        assert len(decoder._known) <= REMEMBERED and len(encoder._known) <= REMEMBERED
    long = b"\x82" * 65
    assert len(list(decoder.decode(long, True))) == 65
    encoder.encode([(b":method", b"GET")] * 65)
    assert max(map(len, decoder._known), default=0) <= 64 and max(map(len, encoder._known), default=0) <= 64


def test_only_references_of_one_byte_are_recognised() -> None:
    recognised = [first for first in range(256) if http2_compression._ONLY_REFERENCES.fullmatch(bytes([first]))]
    assert recognised == list(range(0x81, 0xFF))
