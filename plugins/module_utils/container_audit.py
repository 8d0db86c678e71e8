# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a living container still is what its description says.

The label tells what was asked for when it was made; this looks at what is true now: networks and addresses,
capabilities and no_new_privs of the running process, user namespace, sysctls, mounts, image, state.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import Any, Dict, List, Mapping, Sequence

from ansible_collections.openshell.sandbox.plugins.module_utils.container_spec import ContainerSpec
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import (
    Json,
    container_labels,
    container_networks,
    is_running,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import LABEL_SPEC, UID_RANGE

# capabilities(7); the bit of each in the masks of /proc/PID/status.
CAPABILITY_BITS: Dict[str, int] = {
    name: bit
    for bit, name in enumerate(
        [
            "CHOWN",
            "DAC_OVERRIDE",
            "DAC_READ_SEARCH",
            "FOWNER",
            "FSETID",
            "KILL",
            "SETGID",
            "SETUID",
            "SETPCAP",
            "LINUX_IMMUTABLE",
            "NET_BIND_SERVICE",
            "NET_BROADCAST",
            "NET_ADMIN",
            "NET_RAW",
            "IPC_LOCK",
            "IPC_OWNER",
            "SYS_MODULE",
            "SYS_RAWIO",
            "SYS_CHROOT",
            "SYS_PTRACE",
            "SYS_PACCT",
            "SYS_ADMIN",
            "SYS_BOOT",
            "SYS_NICE",
            "SYS_RESOURCE",
            "SYS_TIME",
            "SYS_TTY_CONFIG",
            "MKNOD",
            "LEASE",
            "AUDIT_WRITE",
            "AUDIT_CONTROL",
            "SETFCAP",
            "MAC_OVERRIDE",
            "MAC_ADMIN",
            "SYSLOG",
            "WAKE_ALARM",
            "BLOCK_SUSPEND",
            "AUDIT_READ",
            "PERFMON",
            "BPF",
            "CHECKPOINT_RESTORE",
        ]
    )
}


@dataclasses.dataclass(frozen=True)
class Drift:
    """One difference. ``repairable`` in place, or only by making the container anew."""

    what: str
    expected: Any
    found: Any
    repairable: bool = False

    def as_dict(self) -> Json:
        return dataclasses.asdict(self)


def audit(inspected: Json, spec: ContainerSpec, networks: Mapping[str, str], running: bool = True) -> List[Drift]:
    """Compare an inspected container with *spec*; *networks* is name → expected address ("" for any)."""
    drifts: List[Drift] = []
    label = container_labels(inspected).get(LABEL_SPEC, "")
    if label != spec.digest:
        drifts.append(Drift("spec", spec.digest, label))
    if inspected.get("Image") != spec.image:
        drifts.append(Drift("image", spec.image, inspected.get("Image")))
    drifts += audit_networks(inspected, networks)
    drifts += _audit_confinement(inspected, spec)
    drifts += _audit_mounts(inspected, spec)
    if is_half_made(inspected):
        drifts.append(Drift("files", "complete", "a run was ended while it was made"))
    if running != is_running(inspected):
        status = (inspected.get("State") or {}).get("Status")
        drifts.append(Drift("state", "running" if running else "stopped", status, repairable=True))
    return drifts


def never_started(inspected: Json) -> bool:
    return (inspected.get("State") or {}).get("Status") == "created"


def is_half_made(inspected: Json) -> bool:
    """Whether a container lacks the files that are put into it before its first start.

    One that was started had them. Where the storage driver does not show its layer, nobody knows, and none is trusted.
    """
    if not never_started(inspected):
        return False
    layer = ((inspected.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir") or ""
    try:
        return os.path.getsize(os.path.join(layer, "etc/hosts")) == 0
    except OSError:
        return True


def audit_networks(inspected: Json, expected: Mapping[str, str]) -> List[Drift]:
    """Networks too many or too few, and addresses that are not the fixed ones.

    A network too many is the hole that matters: somebody ran ``podman network connect`` by hand.
    """
    found = container_networks(inspected)
    drifts = []
    if set(found) != set(expected):
        drifts.append(Drift("networks", sorted(expected), sorted(found), repairable=True))
    for name, address in expected.items():
        if address and found.get(name) and found[name] != address:
            drifts.append(Drift(f"address on {name}", address, found[name]))
    return drifts


def _audit_confinement(inspected: Json, spec: ContainerSpec) -> List[Drift]:
    host = inspected.get("HostConfig") or {}
    drifts = [
        Drift(what, expected, found)
        for what, expected, found in (
            ("privileged", False, bool(host.get("Privileged"))),
            ("read-only root file system", spec.read_only, bool(host.get("ReadonlyRootfs"))),
            ("user namespace", _mapping(spec), (host.get("IDMappings") or {}).get("UidMap")),
        )
        if expected is not None and expected != found
    ]
    config = _oci_config(inspected)
    if config is not None:
        found_sysctls = (config.get("linux") or {}).get("sysctl") or {}
        wrong = {key: found_sysctls.get(key) for key, value in spec.sysctls.items() if found_sysctls.get(key) != value}
        if wrong:
            drifts.append(Drift("sysctls", {key: spec.sysctls[key] for key in wrong}, wrong))
    pid = (inspected.get("State") or {}).get("Pid") or 0
    return drifts + (audit_process(pid, spec.capabilities) if is_running(inspected) and pid else [])


def audit_process(pid: int, capabilities: Sequence[str]) -> List[Drift]:
    """Capability sets and no_new_privs of the container's first process, as the kernel tells them (proc(5))."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as handle:
            status = dict(re.findall(r"^(\w+):\s*(\S+)$", handle.read(), re.MULTILINE))
    except OSError:
        return []  # it ended since we asked; the state says so
    allowed = capability_mask(capabilities)
    drifts = []
    for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        found = int(status.get(key, "0"), 16)
        if found & ~allowed:
            drifts.append(Drift(key, f"{allowed:016x}", f"{found:016x}"))
    if status.get("NoNewPrivs") != "1":
        drifts.append(Drift("no_new_privs", "1", status.get("NoNewPrivs")))
    return drifts


def capability_mask(capabilities: Sequence[str]) -> int:
    return sum(1 << CAPABILITY_BITS[name] for name in set(capabilities))


def _mapping(spec: ContainerSpec) -> List[str] | None:
    return None if not spec.uid_base else [f"0:{spec.uid_base}:{UID_RANGE}"]


def _oci_config(inspected: Json) -> Json | None:
    """The runtime configuration that the container was started with; None before its first start."""
    try:
        with open(inspected.get("OCIConfigPath") or "", encoding="utf-8") as handle:
            config: Json = json.load(handle)
            return config
    except OSError:
        return None


def _audit_mounts(inspected: Json, spec: ContainerSpec) -> List[Drift]:
    expected = sorted((volume.source, volume.target, not volume.read_only) for volume in spec.volumes)
    found = sorted(
        (mount.get("Name") or mount.get("Source"), mount.get("Destination"), bool(mount.get("RW")))
        for mount in inspected.get("Mounts") or []
        if mount.get("Type") in ("volume", "bind")
    )
    return [Drift("mounts", expected, found)] if expected != found else []
