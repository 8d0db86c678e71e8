# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reads ``inference.json``: what is wrong is said with the route's name, never with anything of its key.

``{"routes": [{"name", "provider", "base_url", "model", "aliases", "protocols", "auth", "secret", "key", "region", "timeout",
"idle_timeout"}, …]}``
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from openshell_proxy.credentials.document import MIN_VALUE
from openshell_proxy.credentials.vault import Secret, Vault
from openshell_proxy.entrances.authority_form import check_host, parse_authority
from openshell_proxy.entries import Entry, listed
from openshell_proxy.inference import INFERENCE
from openshell_proxy.inference.patterns import PROTOCOLS
from openshell_proxy.inference.routes import (
    IDLE_SECONDS,
    PROVIDERS,
    SECONDS,
    Auth,
    Provider,
    Route,
    Routes,
)
from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.upstream import Origin

MAX_SECONDS = 3600
_MODEL = re.compile(r"[\x21-\x7e]{1,256}")
_URL_PATH = re.compile(r"(?:/[A-Za-z0-9._~:@!$&'()*+,=-]+)*/?")
_REGION = re.compile(r"[a-z0-9-]{1,64}")
_BEDROCK_REGION = re.compile(r"bedrock-runtime(?:-fips)?\.([a-z0-9-]+)\.")
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_AUTHS: tuple[Auth, ...] = ("bearer", "x-api-key")

_TEXT, _LIST, _NUMBER = (str,), (list,), (int, float)
_KEYS: Mapping[str, tuple[type, ...]] = {
    "name": _TEXT, "provider": _TEXT, "base_url": _TEXT, "model": _TEXT, "aliases": _LIST, "protocols": _LIST,
    "auth": _TEXT, "secret": _TEXT, "key": _TEXT, "region": _TEXT, "timeout": _NUMBER, "idle_timeout": _NUMBER,
}  # fmt: skip


class RoutesError(ValueError):
    """Routes that are not loaded; one sentence, without a key."""


def load_routes(text: str, vault: Vault) -> Routes | None:
    """The routes that *text* describes, whose secrets are in *vault*; None for none. Raises :class:`RoutesError`."""
    if not text.strip():
        return None
    given = listed(text, "inference", "routes", RoutesError)
    routes = [_Entry(entry, number).route() for number, entry in enumerate(given, 1)]
    for number, route in enumerate(routes):
        if any(route.name == other.name for other in routes[:number]):
            raise RoutesError(f"route '{route.name}' is there twice")
        if problem := secret_problem(route, vault):
            raise RoutesError(f"route '{route.name}' {problem}")
    return Routes(routes) if routes else None


def secret_of(route: Route, vault: Vault) -> Secret | None:
    """The secret that the route names."""
    return next((secret for secret in vault.secrets if secret.name == route.secret), None)


def secret_problem(route: Route, vault: Vault) -> str:
    """Why the route's secret may not go where the route does, or ""."""
    if not route.secret:
        return ""
    secret, origin = secret_of(route, vault), route.origin
    if secret is None:
        return f"names the secret '{route.secret}', which the sandbox does not have"
    if secret.binding is None or not secret.admits(origin.host, origin.port):
        return f"names the secret '{route.secret}', which is not bound to its host {origin.host}:{origin.port}"
    return ""


class _Entry(Entry):
    """One entry of the list, judged."""

    noun, known_keys, error = "route", _KEYS, RoutesError

    def route(self) -> Route:
        given = self.given
        provider = PROVIDERS.get(given.get("provider", ""))
        if provider is None:
            raise self._wrong(f"has a provider that is not one of {', '.join(PROVIDERS)}")
        base_url = (given.get("base_url") or provider.base_url).rstrip("/")
        model = given.get("model", "")
        if not _MODEL.fullmatch(model):
            raise self._wrong("has no model, a name of visible ASCII characters")
        origin = self._origin(base_url)
        return Route(
            self.name,
            given["provider"],
            base_url,
            origin,
            model,
            self._aliases(),
            self._protocols(provider),
            self._auth(provider),
            given.get("secret", ""),
            self._key(),
            self._region(origin.host),
            self._seconds("timeout", SECONDS),
            self._seconds("idle_timeout", IDLE_SECONDS),
        )

    def _origin(self, base_url: str) -> Origin:
        if not base_url:
            raise self._wrong("needs a base_url, since its provider has none that is everybody's")
        wrong = self._wrong("has a base_url that is not https://host/path or http://host/path")
        try:
            parts = urlsplit(base_url)
            tls = parts.scheme == "https"
            host, port = parse_authority(parts.netloc, 443 if tls else 80)
            check_host(host)
        except (Refusal, ValueError):
            raise wrong from None
        # The library overlooks blanks and line breaks.
        if parts.scheme not in ("http", "https") or parts.query or parts.fragment or not _VISIBLE.fullmatch(base_url):
            raise wrong
        if not _URL_PATH.fullmatch(parts.path) or any(part in (".", "..") for part in parts.path.split("/")):
            raise self._wrong("has a base_url with a path that is not plain segments")
        if host == INFERENCE.host:
            raise self._wrong("leads to itself; name the host that serves the model")
        return Origin(host, port, tls)

    def _aliases(self) -> tuple[str, ...]:
        aliases = self.given.get("aliases", [])
        if not all(isinstance(alias, str) and _MODEL.fullmatch(alias) for alias in aliases):
            raise self._wrong("has an alias that is not a name of visible ASCII characters")
        return tuple(aliases)

    def _protocols(self, provider: Provider) -> tuple[str, ...]:
        protocols = self.given.get("protocols") or provider.protocols
        unknown = [one for one in protocols if one not in PROTOCOLS]
        if unknown:
            raise self._wrong(f"has a protocol that is not one of {', '.join(PROTOCOLS)}")
        return tuple(protocols)

    def _auth(self, provider: Provider) -> Auth:
        wanted = self.given.get("auth", "")
        keyed = bool(self.given.get("secret")) or bool(self.given.get("key"))
        if self.given.get("secret") and self.given.get("key"):
            raise self._wrong("has both a secret and a key; one of them authorises")
        if wanted and wanted not in _AUTHS:
            raise self._wrong(f"has an auth that is not one of {', '.join(_AUTHS)}")
        if wanted and not keyed:
            raise self._wrong("has an auth but neither a secret nor a key")
        if not keyed:
            return "aws" if provider.auth == "aws" else "none"
        return next((auth for auth in _AUTHS if auth == wanted), "bearer" if provider.auth == "aws" else provider.auth)

    def _key(self) -> bytes:
        key: str = self.given.get("key", "")
        if key and (len(key) < MIN_VALUE or not _VISIBLE.fullmatch(key)):
            raise self._wrong(f"has a key of fewer than {MIN_VALUE} characters, or with others than visible ASCII ones")
        return key.encode()

    def _region(self, host: str) -> str:
        named = _BEDROCK_REGION.match(host)
        region = self.given.get("region") or (named[1] if named else "")
        if region and not _REGION.fullmatch(region):
            raise self._wrong("has a region that is no name of one")
        return region

    def _seconds(self, key: str, default: float) -> float:
        seconds = self.given.get(key, default)
        if not 1 <= seconds <= MAX_SECONDS:
            raise self._wrong(f"has a {key} that is not a number of seconds from 1 to {MAX_SECONDS}")
        return float(seconds)
