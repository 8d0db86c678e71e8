# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a client's first bytes begin, and when more of them are needed to tell."""

from __future__ import annotations

import pytest
from openshell_proxy.entrances.peek import Kind, classify


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
