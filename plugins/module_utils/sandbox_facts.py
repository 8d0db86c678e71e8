# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is true of every sandbox on a host, gathered with a handful of podman calls whatever their number."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any, Dict, List

from ansible_collections.openshell.sandbox.plugins.module_utils.container_audit import audit_networks, audit_process
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import (
    Json,
    Podman,
    container_labels,
    container_networks,
    is_paused,
    is_running,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.preflight import ALLOWED_CAPABILITIES
from ansible_collections.openshell.sandbox.plugins.module_utils.readiness import sidecar_ready
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import (
    BRIDGE_NETWORK,
    LABEL_ID,
    LABEL_MANAGED,
    LABEL_ROLE,
    LABEL_SANDBOX,
    SandboxNames,
)


def sandboxes(podman: Podman, name: str | None = None, counters: bool = False) -> List[Json]:
    """One entry per sandbox, sorted by name; *counters* asks each running sidecar for its numbers."""
    label = f"{LABEL_SANDBOX}={name}" if name else f"{LABEL_MANAGED}=true"
    found: Dict[str, Dict[str, Json]] = {}
    ids: Dict[str, str] = {}
    for inspected in podman.containers(podman.container_names(label)):
        labels = container_labels(inspected)
        if labels.get(LABEL_SANDBOX) and labels.get(LABEL_ROLE) in ("proxy", "agent"):
            found.setdefault(labels[LABEL_SANDBOX], {})[labels[LABEL_ROLE]] = inspected
            ids[labels[LABEL_SANDBOX]] = labels.get(LABEL_ID, labels[LABEL_SANDBOX])
    for network in podman.networks(label):  # an interrupted creation has a network and nothing else yet
        labels = network.get("labels") or {}
        if labels.get(LABEL_SANDBOX):
            found.setdefault(labels[LABEL_SANDBOX], {})
            ids.setdefault(labels[LABEL_SANDBOX], labels.get(LABEL_ID) or labels[LABEL_SANDBOX])
    return [_describe(podman, key, ids[key], found[key], counters) for key in sorted(found)]


def _describe(podman: Podman, name: str, id_: str, roles: Dict[str, Json], counters: bool) -> Json:
    names = SandboxNames(name, id_)
    agent, proxy = roles.get("agent"), roles.get("proxy")
    sentinel = sidecar_ready(podman, names.proxy, podman.volume_path(names.tls_volume)) if proxy else None
    drift = invariants(names, agent, proxy)
    requests = sidecar_counters(podman, names.proxy) if counters and sentinel else {}
    return {
        "name": name,
        "id": id_,
        "state": state_of(agent, proxy, sentinel is not None, bool(drift)),
        "image": (agent or {}).get("ImageName") or "",
        "policy": str((sentinel or {}).get("policy_digest") or "")[:12],
        "created": (agent or proxy or {}).get("Created") or "",
        "age": age((agent or proxy or {}).get("Created") or ""),
        "agent_ip": container_networks(agent or {}).get(names.network, ""),
        "proxy_ip": container_networks(proxy or {}).get(names.network, ""),
        "allowed": requests.get("requests_allowed"),
        "denied": requests.get("requests_denied"),
        "drift": drift,
    }


def invariants(names: SandboxNames, agent: Json | None, proxy: Json | None) -> List[Json]:
    """What must hold for any sandbox whatever its description: the walls themselves."""
    drifts = []
    for inspected, networks, capabilities in (
        (agent, {names.network}, sorted(ALLOWED_CAPABILITIES)),
        (proxy, {names.network, BRIDGE_NETWORK}, []),
    ):
        if inspected is None:
            continue
        drifts += audit_networks(inspected, dict.fromkeys(networks, ""))
        if is_running(inspected):
            drifts += audit_process(inspected["State"]["Pid"], capabilities)
    return [drift.as_dict() for drift in drifts]


def state_of(agent: Json | None, proxy: Json | None, ready: bool, drifted: bool) -> str:
    """``running``, ``paused`` (the agent is, its sidecar runs), ``stopped``, ``degraded`` or ``drifted``.

    Degraded is one whose parts are missing, drifted one whose walls are not what they must be.
    """
    if drifted:
        return "drifted"
    if agent is None or proxy is None:
        return "degraded"
    running = (is_running(agent), is_running(proxy))
    if running == (False, False):
        return "degraded" if is_paused(agent) or is_paused(proxy) else "stopped"
    if is_paused(agent) and ready:
        return "paused"
    return "running" if all(running) and ready else "degraded"


def age(created: str) -> str:
    """Time since an RFC 3339 moment as one number with a unit, like ``5m``; "" when it cannot be told."""
    try:
        moment = datetime.strptime(created[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return ""
    offset = created[-6:]
    if offset[0] in "+-" and offset[3] == ":":
        sign = 1 if offset[0] == "-" else -1
        moment = datetime.fromtimestamp(
            moment.timestamp() + sign * (int(offset[1:3]) * 3600 + int(offset[4:6]) * 60), timezone.utc
        )
    seconds = max(0, int((datetime.now(timezone.utc) - moment).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def sidecar_counters(podman: Podman, container: str) -> Dict[str, Any]:
    """The sidecar's own status over its control socket; {} when it does not answer."""
    result = podman.run(["exec", container, "/opt/openshell/bin/openshell-proxy", "status"], check=False)
    try:
        found = json.loads(result.stdout)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
