# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON-RPC 2.0 and MCP messages of a request's body (spec 1.13, 2.8; MCP 2025-06-18, Streamable HTTP)."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from openshell_proxy.policy.jsonbody import BodyError, read_json, refuse_lookalikes

TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
METHOD_NAME = re.compile(r"[A-Za-z0-9_./-]{1,128}")
TOOLS_CALL = "tools/call"
_MEMBERS = ("jsonrpc", "id", "method", "params", "result", "error")


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One request or notification; ``tool`` is the name of the tool that an MCP ``tools/call`` asks for."""

    method: str
    tool: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frames:
    """What a body holds: calls, and whether there are responses among them (from the client to the server)."""

    calls: tuple[Call, ...] = ()
    has_response: bool = False


def parse_frames(body: bytes, *, mcp: bool, strict_tool_names: bool = True) -> Frames:
    """Parse one message or a batch. Raises :class:`BodyError`; one bad member fails the whole batch."""
    value = read_json(body)
    if isinstance(value, list) and not value:
        raise BodyError("invalid JSON-RPC: empty batch")
    calls: list[Call] = []
    has_response = False
    for message in value if isinstance(value, list) else [value]:
        call = _message(message, mcp, strict_tool_names)
        if call is None:
            has_response = True
        else:
            calls.append(call)
    return Frames(tuple(calls), has_response)


def _message(message: Any, mcp: bool, strict: bool) -> Call | None:
    """A call, or None for a response."""
    if not isinstance(message, dict):
        raise BodyError("invalid JSON-RPC: a message must be an object")
    refuse_lookalikes(message, _MEMBERS)
    if not isinstance(message.get("jsonrpc"), str):
        raise BodyError("invalid JSON-RPC: missing or non-string 'jsonrpc' field")
    if message["jsonrpc"] != "2.0":
        raise BodyError("invalid JSON-RPC: 'jsonrpc' must be '2.0'")
    if isinstance(message.get("id"), (dict, list, bool)):
        raise BodyError("invalid JSON-RPC: 'id' must be a string, a number or null")
    answers = [key for key in ("result", "error") if key in message]
    if "method" in message:
        return _call(message, answers, mcp, strict)
    if not answers:
        raise BodyError("invalid JSON-RPC: missing or non-string 'method' field")
    if len(answers) > 1 or "id" not in message:
        raise BodyError("invalid JSON-RPC: a response has an 'id' and one of 'result' and 'error'")
    return None


def _call(message: dict[str, Any], answers: list[str], mcp: bool, strict: bool) -> Call:
    method = message["method"]
    if not isinstance(method, str) or not method:
        raise BodyError("invalid JSON-RPC: missing or non-string 'method' field")
    if answers:
        raise BodyError("invalid JSON-RPC: a message has 'method' and 'result' or 'error'")
    params = message.get("params")
    if params is None:
        params = {}
    if not isinstance(params, (dict, list)):
        raise BodyError("invalid JSON-RPC: 'params' must be an object or an array")
    return Call(method, _tool(params, strict) if mcp and method == TOOLS_CALL else None)


def _tool(params: Any, strict: bool) -> str:
    if not isinstance(params, dict):
        raise BodyError("invalid MCP tools/call: 'params' must be an object")
    refuse_lookalikes(params, ("name", "arguments"))
    name = params.get("name")
    if not isinstance(name, str) or not name:
        raise BodyError("invalid MCP tools/call: missing or non-string 'params.name'")
    if strict and not TOOL_NAME.fullmatch(name):
        raise BodyError("invalid MCP tools/call: the tool name does not match [A-Za-z0-9_.-]{1,128}")
    if not isinstance(params.get("arguments", {}), (dict, type(None))):
        raise BodyError("invalid MCP tools/call: 'arguments' must be an object")
    return name
