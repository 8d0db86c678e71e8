# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the sidecar is told by its environment: addresses and places, nothing secret."""

from __future__ import annotations

import dataclasses
import ipaddress
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from openshell_proxy.policy.model import Enforcement
from openshell_proxy.upstream_proxy import UpstreamProxy, parse_upstream_proxy

PROXY_PORT = 3128
GATEWAY_PORT = 8081
HTTP_PORT = 80
TLS_PORT = 443
DNS_PORT = 53

FailureMode = Literal["retain_last_valid", "fail_closed"]


class SettingsError(ValueError):
    """An environment that cannot be served; one sentence."""


@dataclasses.dataclass(frozen=True, slots=True)
class MessageLimits:
    """Bounds of a WebSocket whose messages are judged (spec 2.7); times in seconds, sizes in bytes."""

    text: int = 4 * 1024 * 1024
    binary_frame: int = 16 * 1024 * 1024
    fragments: int = 4096
    idle: float = 30.0
    total: float = 120.0
    write: float = 120.0
    close: float = 2.0
    assemblies: int = 32
    waiting: int = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the proxy; times in seconds, sizes in bytes.

    ``proxy_head`` is for a CONNECT or absolute-form request, ``head`` for one within a tunnel (spec 2.1). ``idle`` is
    how long a stream or a tunnel may stand without a byte; there is no limit on how long it lasts.
    """

    proxy_head: int = 8192
    head: int = 16_384
    headers: int = 200
    connections: int = 1024
    requests: int = 1024
    idle: float = 3600.0
    first_head: float = 30.0
    keep_alive: float = 300.0
    handshake: float = 15.0
    connect_each: float = 10.0
    connect_total: float = 30.0
    pool_idle: float = 30.0
    pool: int = 1024
    detect: float = 0.1
    dns_idle: float = 10.0
    messages: MessageLimits = MessageLimits()


# What an operator may set, and between which values. The collection's preflight has the same table.
LIMIT_RANGES: Mapping[str, tuple[float, float]] = {
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


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The environment of ``openshell-proxy serve``."""

    sandbox: str
    sandbox_id: str
    proxy_ip: str
    agent_ip: str
    gateway: tuple[str, int] | None
    default_enforcement: Enforcement
    tls_dir: Path
    state_dir: Path
    run_dir: Path
    authority: Path
    limits: Limits = Limits()
    failure_mode: FailureMode = "retain_last_valid"
    upstream_proxy: UpstreamProxy | None = None
    cgroup: Path = Path("/sys/fs/cgroup")

    @property
    def policy_file(self) -> Path:
        return self.state_dir / "config" / "policy.yaml"

    @property
    def upstream_ca_file(self) -> Path:
        return self.state_dir / "config" / "upstream-ca.pem"

    @property
    def upstream_proxy_auth_file(self) -> Path:
        return self.state_dir / "config" / "upstream-proxy-auth"

    @property
    def secrets_file(self) -> Path:
        return self.state_dir / "config" / "secrets.json"

    @property
    def inference_file(self) -> Path:
        return self.state_dir / "config" / "inference.json"

    @property
    def audit_file(self) -> Path:
        return self.state_dir / "log" / "audit.jsonl"

    @property
    def control_socket(self) -> Path:
        return self.run_dir / "control.sock"


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Settings from *environ*. Raises :class:`SettingsError`: an incomplete sidecar must not listen anywhere."""
    if environ.get("OPENSHELL_MODE", "proxy") != "proxy":
        raise SettingsError(f"OPENSHELL_MODE is '{environ['OPENSHELL_MODE']}'; this command serves the mode proxy")
    enforcement = environ.get("OPENSHELL_DEFAULT_ENFORCEMENT") or "enforce"
    if enforcement not in ("enforce", "audit"):
        raise SettingsError(f"OPENSHELL_DEFAULT_ENFORCEMENT is '{enforcement}'; set enforce or audit")
    failure_mode = environ.get("OPENSHELL_POLICY_FAILURE_MODE") or "retain_last_valid"
    if failure_mode not in ("retain_last_valid", "fail_closed"):
        raise SettingsError(f"OPENSHELL_POLICY_FAILURE_MODE is '{failure_mode}'; set retain_last_valid or fail_closed")
    sandbox = _required(environ, "OPENSHELL_SANDBOX")
    return Settings(
        sandbox=sandbox,
        sandbox_id=environ.get("OPENSHELL_SANDBOX_ID") or sandbox,
        proxy_ip=_address(environ, "OPENSHELL_PROXY_IP"),
        agent_ip=_address(environ, "OPENSHELL_AGENT_IP"),
        gateway=_endpoint(environ.get("OPENSHELL_GATEWAY_ENDPOINT", "")),
        default_enforcement=cast(Enforcement, enforcement),
        tls_dir=Path(environ.get("OPENSHELL_TLS_DIR") or "/openshell-tls"),
        state_dir=Path(environ.get("OPENSHELL_STATE_DIR") or "/var/lib/openshell"),
        run_dir=Path(environ.get("OPENSHELL_RUN_DIR") or "/run/openshell"),
        authority=Path(environ.get("OPENSHELL_AUTHORITY") or "/etc/openshell/authority.pem"),
        limits=_limits(environ.get("OPENSHELL_PROXY_LIMITS", "")),
        failure_mode=cast(FailureMode, failure_mode),
        upstream_proxy=_upstream_proxy(environ),
    )


def _limits(text: str) -> Limits:
    """``name=number,name=number`` over the defaults."""
    wanted: dict[str, float] = {}
    for entry in filter(None, text.split(",")):
        name, _, number = entry.partition("=")
        if name not in LIMIT_RANGES:
            raise SettingsError(
                f"OPENSHELL_PROXY_LIMITS names '{name}', which is no limit; use {', '.join(LIMIT_RANGES)}"
            )
        kind = type(getattr(Limits(), name))
        low, high = LIMIT_RANGES[name]
        try:
            wanted[name] = kind(number)
        except ValueError:
            wanted[name] = math.nan
        if not low <= wanted[name] <= high:
            whole = "whole " if kind is int else ""
            raise SettingsError(f"OPENSHELL_PROXY_LIMITS: {name} must be a {whole}number from {low} to {high}")
    return dataclasses.replace(Limits(), **cast(dict[str, Any], wanted))


def _upstream_proxy(environ: Mapping[str, str]) -> UpstreamProxy | None:
    url = environ.get("OPENSHELL_UPSTREAM_PROXY", "")
    if not url:
        return None
    by_hostname = environ.get("OPENSHELL_UPSTREAM_PROXY_CONNECT_BY_HOSTNAME") or "false"
    if by_hostname not in ("true", "false"):
        raise SettingsError(f"OPENSHELL_UPSTREAM_PROXY_CONNECT_BY_HOSTNAME is '{by_hostname}'; set true or false")
    no_proxy = [entry for entry in environ.get("OPENSHELL_UPSTREAM_NO_PROXY", "").split(",") if entry]
    try:
        return parse_upstream_proxy(url, no_proxy, by_hostname == "true")
    except ValueError as error:
        raise SettingsError(f"OPENSHELL_UPSTREAM_PROXY: {error}") from None


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "")
    if not value:
        raise SettingsError(f"{name} is not set; the sidecar is created with it by the collection")
    return value


def _address(environ: Mapping[str, str], name: str) -> str:
    value = _required(environ, name)
    try:
        address = ipaddress.IPv4Address(value)
    except ValueError:
        raise SettingsError(f"{name} is '{value}', which is not an IPv4 address") from None
    if address.is_unspecified:
        raise SettingsError(f"{name} is {value}: listening everywhere would include the bridge; name one address")
    return value


def _endpoint(url: str) -> tuple[str, int] | None:
    if not url:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise SettingsError(f"OPENSHELL_GATEWAY_ENDPOINT is '{url}'; write it as http://host:port")
    return parts.hostname, port
