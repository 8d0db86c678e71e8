# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a client of an inference API is told when its call fails: in the words that its library reads (spec 2.10)."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from openshell_proxy.inference.patterns import Style
from openshell_proxy.refusal import Refusal

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "invalid_request_error",
}
_TOO_LARGE = {"openai": "invalid_request_error", "anthropic": "request_too_large"}


@dataclasses.dataclass(frozen=True, slots=True)
class CallRefusal(Refusal):
    """A refusal of a call. ``plain``: the body as it stands in the spec, for what is no call of any API."""

    style: Style = "openai"
    plain: bool = False
    head_only: bool = False

    def body(self) -> bytes:
        return json.dumps(
            self.more if self.plain else error_body(self.style, self.status, self.code, self.detail)
        ).encode()

    def response(self, head_only: bool = False) -> bytes:
        return Refusal.response(self, head_only or self.head_only)


def error_body(style: Style, status: int, code: str, text: str) -> dict[str, Any]:
    """The JSON of an error of *style*; *code* is ours."""
    kind = _TOO_LARGE.get(style, "") if status == 413 else _KINDS.get(status, "")
    if style == "anthropic":
        return {"type": "error", "error": {"type": kind or "api_error", "message": text}}
    if style == "aws":
        return {"message": text}
    return {"error": {"message": text, "type": kind or "api_error", "param": None, "code": code}}


def no_call(method: str) -> CallRefusal:
    """A request that is no call of an inference API."""
    detail = "connection not allowed by policy"
    more = {"error": detail}
    return CallRefusal(403, "policy_denied", detail, more=more, plain=True, head_only=method == "HEAD")


def no_routes() -> CallRefusal:
    """A sandbox without inference."""
    detail = "cluster inference is not configured"
    hint = "give the sandbox routes: openshell_inference, with create_sandbox.yml or update_inference.yml"
    return CallRefusal(503, "inference_not_configured", detail, more={"error": detail, "hint": hint}, plain=True)


def stream_error(style: Style, text: str) -> bytes:
    """The event that ends a stream of events which failed; the line before it may have no end yet (HTML standard, 9.2)."""
    if style == "anthropic":
        return b"\nevent: error\ndata: " + json.dumps(error_body(style, 502, "", text)).encode() + b"\n\n"
    told = {"error": {"message": text, "type": "proxy_stream_error", "param": None, "code": None}}
    return b"\ndata: " + json.dumps(told).encode() + b"\n\n"
