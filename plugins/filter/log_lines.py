# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Audit events as lines for a person."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Callable, Dict, List, Mapping, Sequence

DOCUMENTATION = r"""
name: log_lines
short_description: Audit events as one short line each
version_added: 0.1.0
description:
  - Time (UTC), what happened, and in brackets the policy, the engine that decided and the reason where there is one.
positional: _input
options:
  _input:
    description: Events as M(openshell.sandbox.sandbox_log_info) returns them.
    type: list
    elements: dict
    required: true
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
- openshell.sandbox.report:
    text: "{{ log.events | openshell.sandbox.log_lines | join('\n') }}"
"""

RETURN = r"""
_value:
  description: The lines.
  type: list
  elements: str
"""


def log_lines(events: Sequence[Mapping[str, Any]]) -> List[str]:
    """One line per event."""
    return [_line(event) for event in events]


def _line(event: Mapping[str, Any]) -> str:
    moment = datetime.fromtimestamp(event.get("time", 0) / 1000, timezone.utc)
    rule, more = event.get("firewall_rule") or {}, event.get("unmapped") or {}
    call = more.get("inference") or {}
    notes = {
        "policy": rule.get("name"),
        "engine": rule.get("type"),
        "status": (event.get("http_response") or {}).get("code"),
        "reason": event.get("status_detail") or more.get("policy_error"),
        "model": call.get("model"),
        "tokens": f"{call.get('input_tokens')}/{call.get('output_tokens')}" if call.get("output_tokens") else "",
        "lines dropped": more.get("lines_dropped"),
    }
    told = " ".join(f"[{name}:{value}]" for name, value in notes.items() if value)
    return f"{moment:%Y-%m-%dT%H:%M:%SZ} {event.get('message', '')} {told}".rstrip()


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"log_lines": log_lines}
