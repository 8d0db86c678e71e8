# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the agent is told when something is refused: JSON that it can read and act on (spec 2.2)."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from openshell_proxy.policy import Decision, Intent

REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    408: "Request Timeout",
    413: "Content Too Large",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


# What decided (spec 2.11) where a request is refused that policy allows, by the refusal's code.
ENGINES = {
    "credential_endpoint_mismatch": "credentials",
    "credential_injection_failed": "credentials",
    "invalid_credential_placeholder": "credentials",
    "token_grant_failed": "credentials",
    "uninspected_credentials": "credentials",
    "middleware_failed": "middleware",
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

    def body(self) -> bytes:
        """The JSON that the agent reads."""
        return json.dumps({"error": self.code, "detail": self.detail, **self.more}, ensure_ascii=True).encode()

    def response(self, head_only: bool = False) -> bytes:
        """The whole HTTP/1.1 response; a HEAD request gets no body."""
        body = self.body()
        head = (
            f"HTTP/1.1 {self.status} {REASONS[self.status]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n"
        )
        if self.policy:
            head += f"X-OpenShell-Policy: {header_text(self.policy)}\r\n"
        if self.retry_after:
            head += f"Retry-After: {self.retry_after}\r\n"
        return head.encode() + b"\r\n" + (b"" if head_only else body)


@dataclasses.dataclass(frozen=True, slots=True)
class OwnAnswer(Refusal):
    """Not refused, but answered here with *content* (JSON): no destination is asked."""

    content: bytes = b"{}"

    def body(self) -> bytes:
        return self.content


def denied_connection(host: str, port: int, reason: str) -> Refusal:
    """An L4 refusal of a CONNECT."""
    more = {"reason": reason, "layer": "l4", "host": host, "port": port}
    more["rule_missing"] = {"type": "endpoint", "layer": "l4", "host": host, "port": port}
    return Refusal(403, "policy_denied", f"CONNECT {host}:{port} not permitted by policy", more=more)


def uninspected_credentials(host: str, port: int) -> Refusal:
    """A tunnel whose content nobody would see, toward a host to which credentials are bound (spec 2.3)."""
    detail = f"credentials are bound to {host}:{port}, so nothing may pass there uninspected"
    return Refusal(403, "uninspected_credentials", detail)


def middleware_failed(name: str, why: str) -> Refusal:
    """What the middleware *name* of the policy cannot do its work on, and may not let pass (spec 2.16)."""
    return Refusal(403, "middleware_failed", f"the network middleware '{name}' {why}", more={"middleware": name})


def denied_destination(what: str, host: str, port: int, reason: str, why: str) -> Refusal:
    """A destination that the guard refuses: *reason* in the words of spec 2.2, *why* what exactly was wrong."""
    more = {"reason": why, "host": host, "port": port}
    return Refusal(403, "ssrf_denied", f"{what} {host}:{port} blocked: {reason}", more=more)


def denied_request(intent: Intent, decision: Decision) -> Refusal:
    """A refusal of one request: by an endpoint's rules (l7), because no endpoint allows the host (l4), or a bad body.

    ``rule_missing`` is there unless a deny rule decided: then no rule that an agent could propose would help.
    """
    asked = intent.request
    assert asked is not None
    where = {"method": asked.method, "path": asked.path, "host": intent.host, "port": intent.port}
    if decision.error:
        return Refusal(400, decision.error, decision.reason, decision.policy, {"protocol": decision.protocol, **where})
    layer, protocol = decision.layer, decision.protocol or "rest"
    more: dict[str, Any] = {"reason": decision.reason, "policy": decision.policy, "layer": layer, "protocol": protocol}
    more |= {"rule": decision.rule or f"{asked.method} {asked.path}", **where, "next_steps": []}
    if layer == "l4":
        more["rule_missing"] = {"type": "endpoint", "layer": layer, **where}
    elif not decision.rule:
        more["rule_missing"] = {"type": f"{protocol.replace('-', '')}_allow", "layer": layer, **where}
    detail = f"{asked.method} {intent.host}:{intent.port}{asked.path} not permitted by policy"
    return Refusal(403, "policy_denied", detail, decision.policy, more)


def header_text(text: str) -> str:
    """*text* as a header's value: what is not visible ASCII is replaced, so that a policy's name cannot end a line."""
    return re.sub(r"[^\x21-\x7e]", "_", text)[:128]
