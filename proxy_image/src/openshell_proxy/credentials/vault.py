# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sandbox's secrets with what each is bound to: one immutable vault for each generation of the configuration."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

from openshell_proxy.credentials.placeholders import (
    MARKERS,
    REDACTED,
    base_key,
    canonical,
    decodings,
    placeholder_pattern,
    token_pattern,
)
from openshell_proxy.credentials.tokens import RenewedToken
from openshell_proxy.policy.linear import Matches

if TYPE_CHECKING:
    from openshell_proxy.credentials.streams import Echoes

# What a redacted part of a target keeps unencoded: the mark of a redaction and what a path is made of.
_SHOWN = "/!$&'()*+,;=:@[]"
_SITES = 1024  # places remembered per vault; the agent names them, so their number is bounded


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a secret may go: some host pattern matches, and port and path where they are named."""

    hosts: tuple[re.Pattern[str], ...]
    ports: frozenset[int] = frozenset()
    paths: tuple[Matches, ...] = ()

    def admits(self, host: str, port: int, path: str | None = None) -> bool:
        """Whether it is *host* (lower case) and *port*, and *path* unless that is not known yet."""
        if (self.ports and port not in self.ports) or not any(pattern.fullmatch(host) for pattern in self.hosts):
            return False
        return path is None or not self.paths or any(pattern.fullmatch(path) for pattern in self.paths)


Binding = tuple[Place, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Secret:
    """One secret. ``binding`` None: anywhere the policy admits; the file that the sidecar reads always binds.

    ``providers`` are those that it belongs to; an endpoint with a ``credential_binding`` takes only its provider's.

    ``keys`` name it in placeholders, ``random`` is the sandbox's own one, of the value's length where that is long
    enough. With ``header`` the destination gets ``template`` there, the value between its two parts, whatever the client
    sends. ``basic``: what is put there is ``username:value`` in base64.
    """

    name: str
    keys: tuple[str, ...]
    value: bytes = dataclasses.field(repr=False)
    random: bytes = b""
    binding: Binding | None = None
    header: bytes = b""
    template: tuple[bytes, bytes] = (b"", b"")
    basic: bool = False
    username: bytes = b""
    token: RenewedToken | None = None
    providers: frozenset[str] = frozenset()

    @property
    def stand_in(self) -> bytes:
        """What an agent sees of it where a destination answers with the value."""
        return self.random or canonical(self.keys[0]).encode()

    def admits(self, host: str, port: int, path: str | None = None) -> bool:
        """Whether it may go to *host* (lower case) and *port*, and to *path* unless that is not known yet."""
        return self.binding is None or any(place.admits(host, port, path) for place in self.binding)

    def current(self) -> bytes:
        """The value of now."""
        return self.value if self.token is None else self.token.value

    def values(self) -> tuple[bytes, ...]:
        """The value of now and those of before that may still come back."""
        return (self.value,) if self.token is None else self.token.known

    def injected(self) -> bytes:
        """The header's value."""
        value = self.current()
        if self.basic:
            value = base64.b64encode(self.username + b":" + value if self.username else value)
        return self.template[0] + value + self.template[1]


class Site:
    """The secrets that are bound to one host and port, of which there is at least one."""

    __slots__ = ("echoes", "injecting", "renewed", "secrets")

    def __init__(self, secrets: Sequence[Secret]) -> None:
        self.echoes: Echoes | None = None  # made when the first answer comes
        self.secrets = tuple(secrets)
        self.injecting = tuple(secret for secret in secrets if secret.header)
        self.renewed = tuple(secret.token for secret in secrets if secret.token is not None)


class Vault:
    """All secrets of a sandbox, and what recognises their placeholders."""

    __slots__ = (
        "_by_key",
        "_by_random",
        "_sites",
        "needles",
        "pattern",
        "randoms",
        "secrets",
        "token_places",
        "tokens",
    )

    def __init__(self, secrets: Sequence[Secret] = ()) -> None:
        self.secrets = tuple(secrets)
        self._by_key = {key.encode(): secret for secret in secrets for key in secret.keys}
        self._by_random = {secret.random: secret for secret in secrets if secret.random}
        self.randoms = tuple(self._by_random)
        self.needles = (*MARKERS, *self.randoms)
        self.pattern = placeholder_pattern(self.randoms)
        self.tokens = token_pattern(self.randoms)
        # Where tokens are bought that only the sidecar may have.
        self.token_places = frozenset(secret.token.grant.place for secret in secrets if secret.token is not None)
        self._sites: dict[tuple[str, int], Site | None] = {}

    @property
    def bindings(self) -> frozenset[Binding | None]:
        """What the secrets are bound to."""
        return frozenset(secret.binding for secret in self.secrets)

    def site(self, host: str, port: int) -> Site | None:
        """The secrets bound to *host* (lower case) and *port*; None where there are none."""
        if not self.secrets:
            return None
        found = self._sites.get((host, port))
        if found is None and (host, port) not in self._sites:
            here = [one for one in self.secrets if one.admits(host, port)]
            if len(self._sites) >= _SITES:
                self._sites.clear()
            found = self._sites[(host, port)] = Site(here) if here else None
        return found

    def named(self, match: re.Match[bytes]) -> Secret | None:
        """The secret that a match of :attr:`pattern` or :attr:`tokens` stands for; None where there is no such one."""
        groups = match.groupdict()
        if groups.get("random"):
            return self._by_random[match["random"]]
        key = groups.get("key") or groups.get("alias")
        return self._by_key.get(base_key(key.decode()).encode()) if key else None

    def suspicious(self, data: bytes) -> bool:
        """Whether *data* holds a placeholder or the beginning of one, as it is or percent-encoded."""
        for decoded in decodings(data):
            for needle in self.needles:  # plain loops: this is asked three times for every request
                if needle in decoded:
                    return True
        return False

    def redacted(self, target: str) -> str:
        """A request target (or a path) as policy and log may see it: without placeholders, encoded ones neither."""
        raw = target.encode("ascii")
        if not self.suspicious(raw):
            return target
        path, mark, query = raw.partition(b"?")
        parts = [self._redacted(path), mark, *(self._redacted(piece) for piece in re.split(b"([&=])", query))]
        return b"".join(parts).decode("ascii")

    def _redacted(self, piece: bytes) -> bytes:
        decoded = decodings(piece)[-1]
        if not self.suspicious(decoded):
            return piece
        return quote_from_bytes(self.pattern.sub(REDACTED, decoded), safe=_SHOWN).encode("ascii")


EMPTY = Vault()
