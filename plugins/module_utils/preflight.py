# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Checks that refuse a bad host or a bad wish before anything is created, one sentence each."""

from __future__ import annotations

import ipaddress
import os
import pwd
import re
import shutil
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple
from urllib.parse import urlsplit

from ansible_collections.openshell.sandbox.plugins.module_utils.container_spec import Volume
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import (
    MINIMUM_VERSION,
    Json,
    Podman,
    container_is_ours,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import (
    AUTHORITY_SECRET,
    BRIDGE_NETWORK,
    LABEL_MANAGED,
    SandboxNames,
    is_ours,
)

# What `apt-get install` or `dnf install` as root inside needs and no more; measured by the integration test.
CAPABILITY_PRESETS: Dict[str, Tuple[str, ...]] = {
    "packages": ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID"),
    # A user inside who starts containers of its own needs a user namespace whose root is not ours (user_namespaces(7)).
    "containers": ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP", "SETGID", "SETUID"),
}

# Capabilities that stay harmless in a user namespace of one's own without a route. NET_RAW and NET_ADMIN are not
# here: raw IPv6 frames would reach the host's link-local address.
ALLOWED_CAPABILITIES = frozenset(
    [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
        "SYS_NICE",
        "SYS_PTRACE",
        "AUDIT_WRITE",
    ]
)

FORBIDDEN_SOURCES = (
    "/proc",
    "/sys",
    "/dev",
    "/etc",
    "/run",
    "/var/run",
    "/boot",
    "/root/.ssh",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/lib/kubelet",
)
FORBIDDEN_TARGETS = ("/proc", "/sys", "/dev", "/run", "/openshell-tls", "/opt/openshell", "/etc/openshell")

_MEMORY = re.compile(r"[1-9]\d*[bkmg]?\Z", re.IGNORECASE)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class Refused(Exception):
    """Something that will not work or must not be; the message says what to do."""


# -- the host ----------------------------------------------------------------------------------------------------


def check_podman(podman: Podman) -> None:
    if podman.version < MINIMUM_VERSION:
        raise Refused(
            f"Podman {'.'.join(map(str, podman.version))} is too old; install Podman 4.3 or newer on this host"
        )
    if podman.info["host"].get("networkBackend") != "netavark":
        raise Refused(
            "Podman on this host does not use netavark as its network backend; install netavark, set "
            'network_backend = "netavark" in containers.conf and run "podman system reset"'
        )


def choose_runtime(podman: Podman, wanted: str, which: Any = shutil.which) -> str:
    """The OCI runtime to ask for: *wanted*, or runc where Podman's default crun refuses the host's cgroups v1."""
    if wanted:
        return wanted
    host = podman.info["host"]
    if host.get("cgroupVersion") == "v1" and (host.get("ociRuntime") or {}).get("name") == "crun":
        if which("runc"):
            return "runc"
        raise Refused("this host has cgroups v1, where crun does not start containers; install runc")
    return ""


def check_subordinate_ids(podman: Podman, files: Sequence[str] = ("/etc/subuid", "/etc/subgid")) -> None:
    """A rootless user needs 65536 subordinate uids and gids; subuid(5)."""
    if not podman.rootless:
        return
    user = pwd.getpwuid(os.geteuid())
    for path in files:
        total = sum(count for owner, count in _subordinate_ranges(path) if owner in (user.pw_name, str(user.pw_uid)))
        if total < 65_536:
            raise Refused(
                f"user {user.pw_name} has {total} ids in {path} and rootless Podman needs 65536; run "
                f"'usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user.pw_name}' as root"
            )


def _subordinate_ranges(path: str) -> List[Tuple[str, int]]:
    try:
        with open(path, encoding="utf-8") as handle:
            rows = [line.strip().split(":") for line in handle]
    except OSError:
        return []
    return [(row[0], int(row[2])) for row in rows if len(row) == 3 and row[2].isdigit()]


def check_bridge_subnet(podman: Podman, subnet: str, host_networks: Iterable[str]) -> None:
    """Refuse a bridge subnet that is malformed or overlaps another network of this host."""
    if not subnet:
        return
    try:
        wanted = ipaddress.ip_network(subnet)
    except ValueError as error:
        raise Refused(
            f"openshell_bridge_subnet '{subnet}' is not a subnet ({error}); use one like 10.90.0.0/16"
        ) from None
    present = podman.network(BRIDGE_NETWORK)
    own = [entry["subnet"] for entry in (present or {}).get("subnets") or []]
    if present is not None and subnet not in own:
        raise Refused(
            f"network {BRIDGE_NETWORK} exists with subnet {', '.join(own)}; unset openshell_bridge_subnet or remove it"
        )
    others = [
        (entry["subnet"], f"Podman network {network['name']}")
        for network in podman.networks()
        if network["name"] != BRIDGE_NETWORK
        for entry in network.get("subnets") or []
    ] + [(route, "a route of this host") for route in host_networks if route not in own]
    for other, owner in others:
        if wanted.overlaps(ipaddress.ip_network(other, strict=False)):
            raise Refused(f"openshell_bridge_subnet {subnet} overlaps {other} ({owner}); choose a free one")


def host_routes(path: str = "/proc/net/route") -> List[str]:
    """IPv4 networks that this host has a route to, without the default route; proc(5) writes them as hexadecimal."""
    found = []
    try:
        with open(path, encoding="ascii") as handle:
            rows = [line.split() for line in handle][1:]
    except OSError:
        return []
    for row in rows:
        address, mask = (int.from_bytes(bytes.fromhex(row[index]), "little") for index in (1, 7))
        if mask:
            found.append(f"{ipaddress.IPv4Address(address)}/{bin(mask).count('1')}")
    return found


def inspected_names(names: SandboxNames) -> Tuple[List[str], List[str]]:
    """Containers and networks that every run looks at first."""
    return [names.proxy, names.agent, *names.replaced], [names.network, BRIDGE_NETWORK]


def look_ahead(podman: Podman, *sandboxes: SandboxNames) -> None:
    """Ask Podman for what the first steps of a series need, all at once."""
    wanted = [inspected_names(names) for names in sandboxes]
    containers = [name for one in wanted for name in one[0]]
    networks = list(dict.fromkeys(name for one in wanted for name in one[1]))
    podman.foresee(
        lambda: podman.containers(containers),
        lambda: podman.networks_of(networks),
        lambda: podman.volumes(LABEL_MANAGED),
        lambda: podman.secret(AUTHORITY_SECRET),
    )


def check_not_taken(podman: Podman, names: SandboxNames) -> None:
    """Refuse a name that something which is not ours uses already; nothing of others is ever changed."""
    containers, networks = inspected_names(names)
    for found in podman.containers(containers):
        if not container_is_ours(found):
            raise Refused(
                f"a container {found['Name']} exists and is not ours; remove it or choose another sandbox name"
            )
    present = {found["name"]: found for found in podman.networks_of(networks)}
    network = present.get(names.network)
    if network is not None and not is_ours(network.get("labels")):
        raise Refused(f"a network {names.network} exists and is not ours; remove it or choose another sandbox id")
    for volume in (names.tls_volume, names.proxy_volume, names.workspace_volume):
        found_volume = podman.volume(volume)
        if found_volume is not None and not is_ours(found_volume.get("Labels")):
            raise Refused(f"a volume {volume} exists and is not ours; remove it or choose another sandbox id")
    bridge = present.get(BRIDGE_NETWORK)
    if bridge is not None and (bridge.get("internal") or bridge.get("dns_enabled")):
        raise Refused(
            f"a network {BRIDGE_NETWORK} exists that is internal or has DNS; remove it, it is made anew without both"
        )


# -- the wish ----------------------------------------------------------------------------------------------------


def expand_capabilities(wanted: Sequence[str]) -> List[str]:
    """Capability names without ``CAP_``, presets expanded, sorted. Refuses those that open a way around."""
    found: List[str] = []
    for word in wanted:
        names = CAPABILITY_PRESETS.get(word.lower(), (word.upper().replace("CAP_", "", 1),))
        for name in names:
            if name not in ALLOWED_CAPABILITIES:
                raise Refused(
                    f"openshell_capabilities: {word} is not allowed, it could weaken the sandbox's walls; allowed are the "
                    f"preset {', '.join(CAPABILITY_PRESETS)} and {', '.join(sorted(ALLOWED_CAPABILITIES))}"
                )
            found.append(name)
    return sorted(set(found))


def check_mounts(mounts: Sequence[Mapping[str, Any]], storage: Sequence[str]) -> List[Volume]:
    """The host directories that the user wants inside, judged after symbolic links are resolved.

    Refuses ``/``, kernel and device trees, ``/etc``, container sockets and Podman's own storage (*storage*), what
    lies in them and what contains them.
    """
    return [_check_mount(mount, (*FORBIDDEN_SOURCES, *storage)) for mount in mounts]


def _check_mount(mount: Mapping[str, Any], forbidden: Sequence[str]) -> Volume:
    # normpath keeps two slashes at the beginning (POSIX gives them a meaning of their own); the kernel does not.
    source, target = str(mount["source"]), re.sub(r"^//", "/", os.path.normpath(str(mount["target"])))
    if not os.path.isabs(source) or not os.path.isabs(target):
        raise Refused(f"openshell_mounts: {source}:{target} must be two absolute paths")
    real = os.path.realpath(source)
    if ":" in real or ":" in target:
        raise Refused(f"openshell_mounts: {source}:{target}: a colon in a path is not possible")
    if not os.path.exists(real):
        raise Refused(f"openshell_mounts: {source} does not exist on this host")
    if not (os.path.isdir(real) or os.path.isfile(real)):
        raise Refused(f"openshell_mounts: {source} is neither a directory nor a file; sockets and devices stay outside")
    for path in forbidden:
        if _within(real, os.path.realpath(path)) or _within(os.path.realpath(path), real):
            raise Refused(f"openshell_mounts: {source} is refused: it is, holds or lies in {path}")
    for path in FORBIDDEN_TARGETS:
        if _within(target, path) or _within(path, target):
            raise Refused(f"openshell_mounts: the target {target} is refused: {path} belongs to the sandbox itself")
    return Volume(real, target, read_only=bool(mount.get("read_only", True)), kind="bind")


def _within(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent.rstrip("/") + "/")


def check_limits(memory: str, cpus: str, pids_limit: int) -> None:
    if memory and not _MEMORY.match(memory):
        raise Refused(f"openshell_memory '{memory}' is not a size; use a number with k, m or g, like 4g")
    if cpus and not (re.match(r"\d+(\.\d+)?\Z", cpus) and float(cpus) > 0):
        raise Refused(f"openshell_cpus '{cpus}' is not a number of processors; use one like 2 or 0.5")
    if pids_limit < 16:
        raise Refused(f"openshell_pids_limit {pids_limit} is too small for a shell; use 16 or more")


def check_environment(env: Mapping[str, Any]) -> None:
    for key, value in env.items():
        if not _ENV_NAME.match(key):
            raise Refused(f"openshell_env: '{key}' is not a variable's name; use letters, digits and underscores")
        if not isinstance(value, (str, int, float, bool)) or "\0" in str(value):
            raise Refused(f"openshell_env: the value of {key} must be a text or a number")


def check_gateway_endpoint(endpoint: str) -> None:
    """``http://host:port``, the address to which the sidecar's port 8081 leads."""
    if not endpoint:
        return
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and bool(parts.port)
    except ValueError:
        usable = False
    if not usable:
        raise Refused(f"openshell_gateway_endpoint '{endpoint}' is not usable; write it as http://host:port")


def check_addresses(addresses: Sequence[str], variable: str) -> None:
    for address in addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise Refused(f"{variable}: '{address}' is not an IP address") from None


# The sidecar has the same table (settings.py) and the last word.
LIMIT_RANGES: Dict[str, Tuple[float, float]] = {
    "proxy_head": (1024, 65_536),
    "head": (1024, 65_536),
    "headers": (8, 1000),
    "connections": (1, 16_000),
    "requests": (1, 16_000),
    "idle": (1, 604_800),
    "first_head": (1, 3600),
    "keep_alive": (1, 86_400),
    "handshake": (1, 300),
    "connect_each": (1, 300),
    "connect_total": (1, 600),
}
_SIZES_AND_COUNTS = frozenset({"proxy_head", "head", "headers", "connections", "requests"})


def check_proxy_limits(limits: Mapping[str, Any]) -> None:
    for name, value in limits.items():
        if name not in LIMIT_RANGES:
            raise Refused(f"openshell_proxy_limits names '{name}', which is no limit; use {', '.join(LIMIT_RANGES)}")
        low, high = LIMIT_RANGES[name]
        kinds = (int,) if name in _SIZES_AND_COUNTS else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            whole = "whole " if name in _SIZES_AND_COUNTS else ""
            raise Refused(f"openshell_proxy_limits: {name} must be a {whole}number from {low} to {high}")


_PROXY_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_PROXY_CREDENTIALS = re.compile(r"[\x20-\x39\x3b-\x7e]+:[\x20-\x7e]+\n?")


def check_upstream_proxy(url: str, no_proxy: Sequence[str], credentials: str) -> None:
    """The operator's own proxy; the message never holds *credentials*, nor a URL that does."""
    if not url:
        if no_proxy or credentials:
            raise Refused("openshell_upstream_no_proxy and openshell_upstream_proxy_auth need openshell_upstream_proxy")
        return
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if "@" in parts.netloc:
        raise Refused("openshell_upstream_proxy holds credentials; give them as openshell_upstream_proxy_auth")
    plain = parts.scheme == "http" and parts.path in ("", "/") and not parts.query and not parts.fragment
    if not plain or not port or not (_PROXY_HOST.fullmatch(host) or _is_network(host)):
        raise Refused("openshell_upstream_proxy is not usable; write it as http://host:port")
    for entry in no_proxy:
        name = entry.strip().lower()
        if not _is_network(name) and not _PROXY_HOST.fullmatch(name[1:] if name.startswith(".") else name):
            raise Refused(f"openshell_upstream_no_proxy: '{entry}' is neither a host, a .suffix nor a network")
    if credentials and not _PROXY_CREDENTIALS.fullmatch(credentials):
        raise Refused("openshell_upstream_proxy_auth is not user:password in printable ASCII on one line")


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


# -- the host's own certificate authorities ------------------------------------------------------------------------

BUNDLE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
SYSTEM_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
LOCAL_ANCHORS = ("/usr/local/share/ca-certificates", "/etc/pki/ca-trust/source/anchors")


def upstream_ca_bundle(wanted: str, environ: Mapping[str, str]) -> str:
    """Path of the PEM bundle that upstream connections must trust as well, or "".

    Told by the user ("none" switches it off), by the environment, or by authorities that somebody added to this host:
    a host behind a TLS-inspecting proxy has them.
    """
    if wanted == "none":
        return ""
    if wanted:
        if not _holds_certificates(wanted):
            raise Refused(
                f"openshell_upstream_ca_bundle {wanted} is not a readable PEM file of certificates on this host"
            )
        return wanted
    for variable in BUNDLE_VARIABLES:
        if _holds_certificates(environ.get(variable, "")):
            return environ[variable]
    if any(os.path.isdir(path) and os.listdir(path) for path in LOCAL_ANCHORS):
        return next((path for path in SYSTEM_BUNDLES if _holds_certificates(path)), "")
    return ""


def _holds_certificates(path: str) -> bool:
    try:
        with open(path, encoding="ascii", errors="replace") as handle:
            return "-----BEGIN CERTIFICATE-----" in handle.read()
    except OSError:
        return False


def storage_paths(info: Json) -> List[str]:
    """Where Podman keeps images, containers and volumes: never to be mounted into a sandbox."""
    store = info.get("store") or {}
    return [store[key] for key in ("graphRoot", "runRoot", "volumePath") if store.get(key)]
