# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ``hpack`` library's encoder and decoder, which remember header blocks that only refer to their tables.

A client that makes the same call again, and whoever answers it, send a block in which each field is one reference
(RFC 7541, 6.1). It stands for the same fields as long as the table it refers to has not changed, and it changes none.
Every other block goes to the library, and with it all that was remembered goes: it may have changed the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import hpack
from hpack import HeaderTuple

REMEMBERED = 32  # blocks, for each direction of a connection
# 0xff begins an index of several bytes; 0x80, the index 0, is an error for the library to find. A reference is a byte
# and what it stands for is an object: hence no more than a head has in earnest.
_ONLY_REFERENCES = re.compile(rb"[\x81-\xfe]{1,64}")


class Decoder(hpack.Decoder):
    """Header blocks to fields. Raises what the library raises."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[bytes, list[HeaderTuple]] = {}

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        known = self._known
        if not raw or not _ONLY_REFERENCES.fullmatch(data):
            known.clear()
            return super().decode(data, raw)
        fields = known.get(data)
        if fields is None:
            if len(known) >= REMEMBERED:
                known.clear()
            fields = known[data] = list(super().decode(data, raw))
        return fields.copy()


class Encoder(hpack.Encoder):
    """Fields, each a pair of bytes, to header blocks."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[tuple[bytes, bytes], ...], bytes] = {}

    def encode(self, headers: Iterable[tuple[bytes, bytes]], huffman: bool = True) -> bytes:  # type: ignore[override]
        key = tuple(headers)
        block = None if self.header_table.resized else self._known.get(key)  # a new size is told before any block
        if block is None:
            block = super().encode(key, huffman)
            if not _ONLY_REFERENCES.fullmatch(block) or len(self._known) >= REMEMBERED:
                self._known.clear()
            if _ONLY_REFERENCES.fullmatch(block):
                self._known[key] = block
        return block
