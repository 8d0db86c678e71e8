# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the agent is told when something is refused: JSON that it can read and act on (spec 2.2)."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal(Exception):
    """An answer that ends the connection. ``code`` and ``detail`` as in spec 2.2; ``more`` goes into the body.

    ``retry_after``: seconds after which it is worth another try; 0 for never.
    """

    status: int
    code: str
    detail: str
    policy: str = ""
    more: dict[str, Any] = dataclasses.field(default_factory=dict)
    retry_after: int = 0

    def response(self, head_only: bool = False) -> bytes:
        """The whole HTTP/1.1 response; a HEAD request gets no body."""
        body = json.dumps({"error": self.code, "detail": self.detail, **self.more}, ensure_ascii=True).encode()
        head = (
            f"HTTP/1.1 {self.status} {REASONS[self.status]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n"
        )
        if self.policy:
            head += f"X-OpenShell-Policy: {self.policy}\r\n"
        if self.retry_after:
            head += f"Retry-After: {self.retry_after}\r\n"
        return head.encode() + b"\r\n" + (b"" if head_only else body)


def denied_connection(host: str, port: int, reason: str) -> Refusal:
    """An L4 refusal of a CONNECT."""
    more = {"reason": reason, "layer": "l4", "host": host, "port": port}
    more["rule_missing"] = {"type": "endpoint", "layer": "l4", "host": host, "port": port}
    return Refusal(403, "policy_denied", f"CONNECT {host}:{port} not permitted by policy", more=more)


def denied_destination(what: str, host: str, port: int, reason: str) -> Refusal:
    more = {"reason": reason, "host": host, "port": port}
    return Refusal(403, "ssrf_denied", f"{what} {host}:{port} blocked: {reason}", more=more)


def denied_request(
    method: str, host: str, port: int, path: str, policy: str, rule: str, layer: str, reason: str
) -> Refusal:
    """A refusal of one request, by an endpoint's rules (l7) or because no endpoint allows the host (l4)."""
    where = {"method": method, "path": path, "host": host, "port": port}
    more: dict[str, Any] = {"reason": reason, "policy": policy, "rule": rule or f"{method} {path}", "layer": layer}
    more |= {"protocol": "rest", **where, "next_steps": []}
    more["rule_missing"] = {"type": "rest_allow" if layer == "l7" else "endpoint", "layer": layer, **where}
    return Refusal(403, "policy_denied", f"{method} {host}:{port}{path} not permitted by policy", policy, more)
