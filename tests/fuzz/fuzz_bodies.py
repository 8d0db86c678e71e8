# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GraphQL, JSON-RPC and MCP bodies: parsed, or a BodyError."""

from __future__ import annotations

import contextlib
import json

import atheris
from harness import of_cases, run

with atheris.instrument_imports(include=["openshell_proxy.policy"]):
    from openshell_proxy.policy.graphql import operations_of_message, operations_of_request
    from openshell_proxy.policy.jsonbody import BodyError
    from openshell_proxy.policy.jsonrpc import parse_frames


def target(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for parse in (
        lambda: parse_frames(data, mcp=True),
        lambda: parse_frames(data, mcp=False),
        lambda: operations_of_message(data),
        lambda: operations_of_request("POST", {}, data),
        lambda: operations_of_request("POST", {}, json.dumps({"query": text}).encode()),
        lambda: operations_of_request("GET", {"query": (text,)}, b""),
    ):
        with contextlib.suppress(BodyError):
            parse()


if __name__ == "__main__":
    run(target, of_cases(lambda case: case["input"].get("body")))
