# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is measured, and what for: the rows of the table with their goals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from world import EVENTS_PORT, H2_PORT, PLAIN_PORT, SINK_PORT, TLS_PORT, TUNNEL_PORT


@dataclasses.dataclass(frozen=True)
class Goal:
    """``metric`` of ours against ``peer``'s (a ratio within the round), or as it is when there is no peer.

    ``limit``: at least, or (``at_most``) at most. ``minus``: the difference to the peer's instead of the ratio.
    """

    metric: str
    limit: float
    peer: str = ""
    at_most: bool = False
    minus: bool = False
    unit: str = "×"


@dataclasses.dataclass(frozen=True)
class Row:
    """One scenario of load.py for some contestants. ``more`` goes into its task; ``patience`` is its time limit's rest."""

    name: str
    scenario: str
    port: int
    tls: bool
    contestants: tuple[str, ...]
    title: str = ""
    metric: str = "per_second"
    unit: str = "/s"
    goals: tuple[Goal, ...] = ()
    path: str = "/1k"
    connections: int = 32
    inject: bool = False
    restart: bool = False
    patience: float = 60.0
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_HTTP = ("direct", "ours", "squid", "mitmdump", "proxy.py")
_TUNNEL = (*_HTTP, "tinyproxy")
_BULK = (
    "direct",
    "ours",
    "squid",
    "mitmdump",
)  # proxy.py moves about 1 MiB/s through interception: it would not finish
_DOWN, _UP = {"upload": False}, {"upload": True}
_MEMORY = ("ours", "squid", "mitmdump", "proxy.py")

ROWS = (
    Row("intercept", "keep_alive", TLS_PORT, True, _HTTP, "interception, keep-alive, 1 KiB",
        goals=(Goal("per_second", 1.0, "squid"), Goal("per_second", 12, "mitmdump")), inject=True),
    Row("forward", "keep_alive", PLAIN_PORT, False, _HTTP, "plain HTTP forward, keep-alive, 1 KiB",
        goals=(Goal("per_second", 1.0, "squid"),)),
    Row("fresh", "fresh", TLS_PORT, True, _HTTP, "new CONNECT + TLS + one request", connections=8, inject=True,
        goals=(Goal("per_second", 4, "squid"), Goal("per_second", 0.9, "direct"))),
    Row("tunnel", "bulk", TUNNEL_PORT, False, _TUNNEL, "blind tunnel, download", "mib_per_second", "MiB/s", path="/big",
        goals=(Goal("mib_per_second", 1.1, "squid"), Goal("mib_per_second", 0.75, "direct"),
               Goal("cpu_s_per_gib", 0.6, at_most=True, unit="CPU s/GiB")), more={**_DOWN, "tunnel": True}),
    Row("download", "bulk", TLS_PORT, True, _BULK, "interception, download", "mib_per_second", "MiB/s", path="/big",
        goals=(Goal("mib_per_second", 3, "squid"), Goal("mib_per_second", 0.75, "direct")), more=_DOWN),
    Row("upload", "bulk", SINK_PORT, True, _BULK, "interception, upload", "mib_per_second", "MiB/s", path="/sink",
        goals=(Goal("mib_per_second", 3, "squid"),), more=_UP),
    Row("sse", "sse", EVENTS_PORT, True, _HTTP, "server-sent event, delay added to direct's", "p50_ms", "ms", path="/events",
        goals=(Goal("p50_ms", 0.3, "direct", at_most=True, minus=True, unit="ms p50"),
               Goal("p99_ms", 2, "direct", at_most=True, minus=True, unit="ms p99"))),
    Row("grpc", "h2_calls", H2_PORT, True, ("direct", "ours", "mitmdump"), "HTTP/2, unary gRPC calls", path="/bench.Echo/Call",
        goals=(Goal("per_second", 5, "mitmdump"),), connections=8, more={"streams": 8}),
    Row("idle", "rest", TLS_PORT, True, (*_MEMORY, "tinyproxy"), "memory, idle", "pss_mib", "MiB", restart=True,
        goals=(Goal("pss_mib", 40, at_most=True, unit="MiB"),)),
    Row("held", "hold", TLS_PORT, True, _MEMORY, "memory, 500 intercepted connections", "pss_mib", "MiB", restart=True,
        goals=(Goal("pss_mib", 60, at_most=True, unit="MiB"),), more={"kind": "request"}),
    Row("tunnels", "hold", TUNNEL_PORT, False, (*_MEMORY, "tinyproxy"), "memory, 500 tunnels", "pss_mib", "MiB", restart=True,
        goals=(Goal("pss_mib", 45, at_most=True, unit="MiB"),), more={"kind": "tunnel", "tunnel": True}),
)  # fmt: skip
