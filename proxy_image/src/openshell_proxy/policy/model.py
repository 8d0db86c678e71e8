# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The words of a policy and of the questions asked of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

Network = IPv4Network | IPv6Network
Enforcement = Literal["enforce", "audit"]


class PolicyError(ValueError):
    """A policy that is not loaded. ``errors``: one line each, ``SOURCE:LINE: message``."""

    def __init__(self, errors: list[str]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(errors))


@dataclasses.dataclass(frozen=True, slots=True)
class QueryMatcher:
    """One query key with the globs of which a value must match one (spec 1.7)."""

    key: str
    patterns: tuple[re.Pattern[str], ...]

    def matches(self, value: str) -> bool:
        return any(pattern.fullmatch(value) for pattern in self.patterns)


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """An allow or a deny rule of a ``rest`` endpoint; ``text`` is how it is called in answers, ``GET /x/**``."""

    method: str
    path: re.Pattern[str] | None
    query: tuple[QueryMatcher, ...]
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint, compiled (spec 1.6). ``policy`` is the map key of the policy that it belongs to."""

    policy: str
    host: str
    ports: frozenset[int]
    path: re.Pattern[str] | None
    protocol: str
    tls: Literal["auto", "skip"]
    enforcement: Enforcement
    rules: tuple[Rule, ...]
    deny_rules: tuple[Rule, ...]
    allowed_ips: tuple[Network, ...]
    allow_encoded_slash: bool

    @property
    def inspects(self) -> bool:
        """Whether requests are judged, not connections alone."""
        return self.protocol != ""

    @property
    def exact_host(self) -> bool:
        return bool(self.host) and "*" not in self.host


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A request's own part: ``path`` canonical and without the query, ``query`` key → values in order."""

    method: str
    path: str
    query: Mapping[str, tuple[str, ...]]
    body: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Intent:
    """What somebody wants: a connection to host and port, or (with ``request``) one request over it.

    ``host`` is lower-case, without brackets and without a trailing dot.
    """

    host: str
    port: int
    request: Request | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """The answer, and all that the rest of the pipeline needs of the endpoints that matched.

    ``audited``: the policy says no, but the endpoint's enforcement is ``audit``, so it is forwarded and logged.
    ``message_policy``: if this request opens a WebSocket, each text message of the client is to be judged too.
    """

    allowed: bool
    reason: str = ""
    policy: str = ""
    rule: str = ""
    layer: Literal["l4", "l7"] = "l4"
    tls: Literal["auto", "skip"] = "auto"
    inspects: bool = False
    audited: bool = False
    allowed_ips: tuple[Network, ...] = ()
    exact_host: bool = False
    allow_encoded_slash: bool = False
    message_policy: bool = False
