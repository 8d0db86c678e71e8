# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reads ``secrets.json``: what is wrong is said with the secret's name, never with anything of its value.

``{"secrets": [{"name", "value", "hosts", "ports", "paths", "header", "format", "username", "env", "random", "oauth"}, …]}``;
a provider's has ``places``, a list of ``{"hosts", "ports", "paths"}``, for these three, and the names of its ``providers``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from openshell_proxy.credentials.placeholders import KEY, has_marker, reserved_key
from openshell_proxy.credentials.tokens import KINDS, Grant, GrantError, RenewedToken
from openshell_proxy.credentials.vault import Place, Secret, Vault
from openshell_proxy.entries import Entry, listed
from openshell_proxy.policy.globs import GlobError, compile_glob
from openshell_proxy.policy.hosts import HostPatternError, check_host_pattern, compile_host_pattern, patterns_overlap
from openshell_proxy.relay.http1 import HOP_BY_HOP, TOKEN

MIN_VALUE = 4  # bytes; a shorter one would be found in every answer
MIN_RANDOM = 16
_RANDOM = re.compile(rf"[A-Za-z0-9_-]{{{MIN_RANDOM},4096}}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_NEVER_INJECTED = HOP_BY_HOP | {b"host", b"content-length", b"transfer-encoding", b"te", b"trailer", b"expect"}
_VALUE = "{value}"
BASIC = "basic"

_OAUTH = ("grant", "token_url", "client_id", "client_secret", "scope")
_TEXT: tuple[type, ...] = (str,)
_LIST: tuple[type, ...] = (list,)
_KEYS: Mapping[str, tuple[type, ...]] = {
    "name": _TEXT, "value": _TEXT, "hosts": _LIST, "ports": _LIST, "paths": _LIST, "header": _TEXT, "format": _TEXT,
    "username": _TEXT, "env": _TEXT, "random": _TEXT, "oauth": (dict,), "places": _LIST, "providers": _LIST,
}  # fmt: skip
_PLACE = ("hosts", "ports", "paths")


class SecretsError(ValueError):
    """Secrets that are not loaded; one sentence each, without a value."""


def load_vault(text: str, before: Vault | None = None) -> Vault:
    """The vault that *text* describes; empty text is an empty one. Raises :class:`SecretsError`.

    A token that the vault of *before* has bought by the very same grant goes on serving.
    """
    if not text.strip():
        return Vault()
    given = listed(text, "secrets", "secrets", SecretsError)
    entries = [_Entry(entry, number) for number, entry in enumerate(given, 1)]
    _check_together(entries)
    tokens = {one.token.grant: one.token for one in before.secrets if one.token is not None} if before else {}
    return Vault([entry.secret(tokens) for entry in entries])


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """A place as it is written, judged."""

    hosts: tuple[str, ...]
    ports: frozenset[int]
    paths: tuple[str, ...]

    def meets(self, other: _Place) -> bool:
        """Whether one request may be for both; of paths nothing is said."""
        ports = not self.ports or not other.ports or bool(self.ports & other.ports)
        return ports and any(patterns_overlap(left, right) for left in self.hosts for right in other.hosts)

    def compiled(self) -> Place:
        """Raises GlobError."""
        return Place(tuple(map(compile_host_pattern, self.hosts)), self.ports, tuple(map(compile_glob, self.paths)))


class _Entry(Entry):
    """One entry of the list, judged."""

    noun, known_keys, error = "secret", _KEYS, SecretsError

    def __init__(self, given: Any, number: int) -> None:
        super().__init__(given, number)
        self.places = self._places()
        self.keys = self._names()

    def _places(self) -> list[_Place]:
        """The one place that the entry itself names, or those of its list."""
        listed = self.given.get("places")
        if listed is None:
            return [self._place(self.given)]
        if not listed or any(key in self.given for key in _PLACE):
            raise self._wrong("has places and hosts, ports or paths beside them, or an empty list of places")
        for place in listed:
            if not isinstance(place, dict) or place.keys() - set(_PLACE):
                raise self._wrong(f"has a place with other keys than {', '.join(_PLACE)}")
            if not all(isinstance(value, list) for value in place.values()):
                raise self._wrong("has a place in which something is not a list")
        return [self._place(place) for place in listed]

    def _place(self, place: Mapping[str, Any]) -> _Place:
        return _Place(self._hosts(place), self._ports(place), self._paths(place))

    def _hosts(self, place: Mapping[str, Any]) -> tuple[str, ...]:
        hosts = place.get("hosts")
        if not hosts:
            raise self._wrong("is bound to no host; name the hosts that may get it")
        for host in hosts:
            try:
                if not isinstance(host, str) or not host:
                    raise HostPatternError("a host is not a text")
                check_host_pattern(host)
            except HostPatternError as error:
                raise self._wrong(f"is bound wrongly: {error}") from None
        return tuple(host.lower() for host in hosts)

    def _ports(self, place: Mapping[str, Any]) -> frozenset[int]:
        ports = place.get("ports") or []
        if not all(type(port) is int and 1 <= port <= 65535 for port in ports):
            raise self._wrong("is bound to a port that is not a number from 1 to 65535")
        return frozenset(ports)

    def _names(self) -> tuple[str, ...]:
        """What a placeholder may call it: its variable, and its own name where that can stand in one."""
        env = self.given.get("env") or ""
        if env and (not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", env) or not KEY.fullmatch(env)):
            raise self._wrong("has an env that is not the name of a variable")
        keys = tuple(key for key in dict.fromkeys((env, self.name)) if KEY.fullmatch(key))
        keys = keys or (re.sub(r"[^A-Za-z0-9_]", "_", self.name),)
        if any(map(reserved_key, keys)):
            raise self._wrong("is called as only a placeholder's revision or handle may be; choose another name")
        return keys

    def _value(self) -> bytes:
        value: str = self.given.get("value") or ""
        if _CONTROL.search(value):
            raise self._wrong("has a value with a line break or another control character, which no header can carry")
        raw = value.encode()
        if len(raw) < MIN_VALUE:
            raise self._wrong(f"has a value of fewer than {MIN_VALUE} bytes, which could not be told from other text")
        if has_marker(raw):
            raise self._wrong("has a placeholder for its value")
        return raw

    def _grant(self, oauth: Mapping[str, Any]) -> Grant:
        """The value is then what buys a token: the secret of the grant."""
        texts = {key: oauth.get(key, "") for key in _OAUTH}
        if oauth.keys() - texts.keys() or not all(isinstance(value, str) for value in texts.values()):
            raise self._wrong(f"has an oauth with other keys than {', '.join(_OAUTH)}, or one that is not a text")
        kind = texts.pop("grant")
        if kind not in KINDS:
            raise self._wrong(f"has an oauth whose grant is not one of {', '.join(KINDS)}")
        grant = Grant(kind, secret=self.given.get("value") or "", **texts)
        try:
            if len(grant.secret) < MIN_VALUE:
                raise GrantError(f"has a value of fewer than {MIN_VALUE} characters")
            grant.check()
        except GrantError as error:
            raise self._wrong(str(error)) from None
        return grant

    def _random(self) -> bytes:
        random = self.given.get("random") or ""
        if random and not _RANDOM.fullmatch(random):
            raise self._wrong(f"has a random placeholder that is not {MIN_RANDOM} letters or digits or more")
        return random.encode()

    def _paths(self, place: Mapping[str, Any]) -> tuple[str, ...]:
        paths = place.get("paths") or []
        if not all(isinstance(path, str) and path.startswith("/") for path in paths):
            raise self._wrong("is bound to a path that does not begin with '/'")
        return tuple(paths)

    def _binding(self) -> tuple[Place, ...]:
        try:
            return tuple(place.compiled() for place in self.places)
        except GlobError as error:
            raise self._wrong(f"is bound to a path that cannot be used: {error}") from None

    def _providers(self) -> frozenset[str]:
        providers = self.given.get("providers") or []
        if not all(isinstance(provider, str) and provider for provider in providers):
            raise self._wrong("belongs to a provider that is not a text")
        return frozenset(providers)

    def _header(self) -> tuple[bytes, tuple[bytes, bytes], bool]:
        """Name, template and whether the value is put there in base64."""
        header = (self.given.get("header") or "").encode("utf-8")
        form = self.given.get("format") or _VALUE
        if not header:
            if self.given.get("format") or self.given.get("username"):
                raise self._wrong("has a format or a username but no header")
            return b"", (b"", b""), False
        if not TOKEN.fullmatch(header) or header.lower() in _NEVER_INJECTED:
            raise self._wrong("names a header that it cannot be")
        if form == BASIC:
            return header, (b"Basic ", b""), True
        before, found, after = form.partition(_VALUE)
        if not found or _VALUE in after or not (before + after).isprintable() or not (before + after).isascii():
            raise self._wrong("has a format without exactly one {value}, or with characters that no header carries")
        return header, (before.encode(), after.encode()), False

    def secret(self, tokens: Mapping[Grant, RenewedToken]) -> Secret:
        oauth = self.given.get("oauth")
        grant = self._grant(oauth) if oauth else None
        header, template, basic = self._header()
        return Secret(
            self.name,
            self.keys,
            b"" if grant else self._value(),
            self._random(),
            self._binding(),
            header,
            template,
            basic,
            (self.given.get("username") or "").encode(),
            (tokens.get(grant) or RenewedToken(self.name, grant)) if grant else None,
            self._providers(),
        )


def _check_together(entries: list[_Entry]) -> None:
    """Two secrets must not answer to one name, nor both be put into one header of one place."""
    for one, other in combinations(entries, 2):
        if one.name == other.name or set(one.keys) & set(other.keys):
            raise SecretsError(f"secrets '{one.name}' and '{other.name}' have a name or a variable in common")
        if one.given.get("random") and one.given.get("random") == other.given.get("random"):
            raise SecretsError(f"secrets '{one.name}' and '{other.name}' have the same random placeholder")
        same_header = _lower(one, "header") and _lower(one, "header") == _lower(other, "header")
        if same_header and _same_place(one, other):
            raise SecretsError(f"secrets '{one.name}' and '{other.name}' are both put into one header of one host")


def _lower(entry: _Entry, key: str) -> str:
    return str(entry.given.get(key) or "").lower()


def _same_place(one: _Entry, other: _Entry) -> bool:
    """Whether they are sure to meet somewhere; where both name paths, the request's tells."""
    pairs = [(left, right) for left in one.places for right in other.places if not (left.paths and right.paths)]
    return any(left.meets(right) for left, right in pairs)
