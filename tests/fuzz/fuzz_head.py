# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Request and response heads, and the framing of bodies: accepted or refused, and nothing else."""

from __future__ import annotations

import contextlib

import atheris
from harness import of_cases, run

with atheris.instrument_imports(include=["openshell_proxy.relay.http1"]):
    from openshell_proxy.relay.http1 import (
        Body,
        ProtocolError,
        h2c_upgrade,
        parse_request_head,
        parse_response_head,
        request_framing,
        websocket_upgrade,
    )


def target(data: bytes) -> None:
    block, _, rest = data.partition(b"\r\n\r\n")
    with contextlib.suppress(ProtocolError):
        head = parse_request_head(block + b"\r\n\r\n")
        assert b"\n" not in head.target.encode() and " " not in head.target
        body = Body(request_framing(head))
        while rest and not body.done:
            used = body.take(rest)
            assert 0 < used <= len(rest)
            rest = rest[used:]
        h2c_upgrade(head)
        websocket_upgrade(head)
    with contextlib.suppress(ProtocolError):
        parse_response_head(block + b"\r\n\r\n")


if __name__ == "__main__":
    run(target, of_cases(lambda case: case["input"].get("raw", case["input"].get("headers"))))
