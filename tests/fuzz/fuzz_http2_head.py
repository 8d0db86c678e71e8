# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Header sections of HTTP/2: accepted or refused, and what is accepted means the same in the words of HTTP/1.1."""

from __future__ import annotations

import contextlib
from typing import Any

import atheris
from harness import of_cases, run

with atheris.instrument_imports(include=["openshell_proxy.relay.http2_head"]):
    from openshell_proxy.relay.http2_head import Malformed, in_http1, in_http2, read_head
from openshell_proxy.relay.http1 import parse_request_head, render_head, request_framing

START = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"a.test"), (b":path", b"/")]
NEVER = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"host"}


def target(data: bytes) -> None:
    """Each line is a field, its name before the first ":" that is not its first byte."""
    fields = []
    for line in data.split(b"\n"):
        name, _, value = line[1:].partition(b":")
        fields.append((line[:1] + name, value))
    for kind in ("response", "trailers"):
        with contextlib.suppress(Malformed):
            read_head(fields, kind)
    for section in (fields, START + fields):
        with contextlib.suppress(Malformed):
            _request(section)


def _request(section: list[tuple[bytes, bytes]]) -> None:
    head = read_head(section, "request")
    method = head.pseudo[b":method"].decode()
    for bare in (False, True):
        words = in_http1(head, method, "/", b"a.test", bare)
        framing = request_framing(words)
        length = head.length
        assert framing.length == (length or 0)
        assert framing.kind == ("chunked" if length is None and not bare else "length" if length else "none")
        # What policy is asked is what it would be asked of the same request over HTTP/1.1.
        line = f"{method} / HTTP/1.1".encode()
        assert parse_request_head(render_head(line, words.fields), 1 << 30).named == words.named
        wire = in_http2(words, "/", list(words.fields))
        assert [field for field in wire if field[0][:1] != b":"] == [
            field for field in head.fields if field[0] not in NEVER
        ]
        again = read_head(wire, "request")  # and it stays so
        assert (again.fields, again.length) == ([field for field in head.fields if field[0] != b"host"], head.length)


def _seed(case: dict[str, Any]) -> str | None:
    text = case["input"].get("raw", case["input"].get("headers"))
    return text.lower().replace("\r\n", "\n").replace(": ", ":") if isinstance(text, str) else None


if __name__ == "__main__":
    run(target, of_cases(_seed))
