# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a sandbox was refused, grouped, and what its policy would have to say for it to be allowed."""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

import yaml

DOCUMENTATION = r"""
name: denials
short_description: Refusals of an audit log, grouped, each with the policy that would allow it
version_added: 0.1.0
description:
  - Groups by host, port, method, path and reason, the most frequent first.
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
    text: "{{ log.events | openshell.sandbox.denials | openshell.sandbox.table(['count', 'host', 'reason']) }}"
"""

RETURN = r"""
_value:
  description:
    - Mappings of C(count), C(host), C(port), C(method), C(path), C(reason), C(policy) and C(snippet).
    - The snippet is an entry for C(network_policies), or empty where no entry would help.
  type: list
  elements: dict
"""

DENIED = 2
CLASSES = (4001, 4002)
POLICY_DENIED = "policy_denied"
# What the engine calls refusals that a rule for method and path would mend; GraphQL, JSON-RPC and MCP need another.
MENDED = ("opa", "l7")
_GLOB = re.compile(r"([*?\[\]{}\\!])")


def denials(events: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    """One mapping per group."""
    groups: Dict[Tuple[Any, ...], Dict[str, Any]] = {}
    for event in events:
        if event.get("class_uid") not in CLASSES or event.get("action_id") != DENIED:
            continue
        row = _row(event)
        group = groups.setdefault(tuple(row.values()), {"count": 0, **row, "snippet": _snippet(event, row)})
        group["count"] += 1
    return sorted(groups.values(), key=lambda group: (-group["count"], group["host"], group["path"]))


def _row(event: Mapping[str, Any]) -> Dict[str, Any]:
    request = event.get("http_request") or {}
    there = event.get("dst_endpoint") or {}
    return {
        "host": there.get("domain") or "",
        "port": there.get("port") or 0,
        "method": request.get("http_method") or "CONNECT" if event.get("class_uid") == 4002 or _connects(event) else "",
        "path": (request.get("url") or {}).get("path") or "",
        "reason": event.get("status_detail") or "",
        "policy": (event.get("firewall_rule") or {}).get("name") or "",
    }


def _connects(event: Mapping[str, Any]) -> bool:
    return bool((event.get("unmapped") or {}).get("entrance") == "connect")


def _snippet(event: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """YAML of one entry of ``network_policies``; "" where the policy is not what refused."""
    if not row["host"]:
        return ""
    endpoint: Dict[str, Any] = {"host": row["host"], "port": row["port"]}
    engine = (event.get("firewall_rule") or {}).get("type")
    if engine == "tls":
        endpoint["tls"] = "skip"
    elif (
        engine not in MENDED
        or (event.get("unmapped") or {}).get("error") != POLICY_DENIED
        or "deny rule" in row["reason"]
    ):
        return ""
    else:
        endpoint.update(protocol="rest", enforcement="enforce")
        if row["path"]:
            path = _GLOB.sub(r"\\\1", row["path"])
            endpoint["rules"] = [{"allow": {"method": row["method"], "path": path}}]
        else:
            endpoint["access"] = "read-only"
    name = re.sub(r"[^a-z0-9]+", "_", f"{row['host']}_{row['port']}").strip("_")
    return str(yaml.safe_dump({name: {"endpoints": [endpoint]}}, sort_keys=False))


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"denials": denials}
