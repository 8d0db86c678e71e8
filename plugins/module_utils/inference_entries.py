# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``openshell_inference`` as people write it: what is wrong is said with the route's name, never with its key.

The sidecar judges every route again and has the last word; this is what can be told before anything is created.
"""

from __future__ import annotations

import json
import re
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from ansible_collections.openshell.sandbox.plugins.module_utils.secret_entries import SOURCES, Refused

# Provider → whether its routes must say a base_url, and which of the agent's variables it concerns. The sidecar has the
# rest (inference/routes.py there).
PROVIDERS: Mapping[str, Tuple[bool, str]] = {
    "openai": (False, "openai"),
    "anthropic": (False, "anthropic"),
    "nvidia": (False, "openai"),
    "deepinfra": (False, "openai"),
    "google-vertex-ai": (True, "anthropic"),
    "aws-bedrock": (True, "aws"),
}
# What the sidecar's file takes besides the key (inference/document.py there), and of which type each is.
KEYS: Mapping[str, Any] = {
    "name": str, "provider": str, "base_url": str, "model": str, "aliases": list, "protocols": list, "auth": str,
    "secret": str, "region": str, "timeout": (int, float), "idle_timeout": (int, float),
}  # fmt: skip
BASE_URL = "https://inference.local"
# Libraries do not begin without a key. These open nothing: the sidecar takes off whatever the agent sends.
NO_KEY = "sk-openshell-inference"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_BASE_URL = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")
_STYLES = {"openai_": "openai", "anthropic_": "anthropic", "aws_": "aws"}


def check_routes(given: Any, secrets: Sequence[str] | None = None) -> List[Dict[str, Any]]:
    """The routes as a list, judged without their keys. Raises :class:`Refused`.

    A mapping is a list whose names are its keys. *secrets*: names of the secrets that there are, where that is known.
    """
    if isinstance(given, Mapping):
        given = [{"name": name, **route} if isinstance(route, Mapping) else route for name, route in given.items()]
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise Refused("openshell_inference is neither a list nor a mapping of routes")
    routes: List[Dict[str, Any]] = []
    for number, route in enumerate(given, 1):
        if not isinstance(route, Mapping):
            raise Refused(f"openshell_inference: number {number} is not a mapping")
        name = route.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise Refused(f"openshell_inference: number {number} has no name of letters, digits, '_', '.' and '-'")
        if any(name == other["name"] for other in routes):
            raise Refused(f"inference route '{name}' is there twice")
        _check_route(name, route)
        if secrets is not None and route.get("secret") and route["secret"] not in secrets:
            raise Refused(
                f"inference route '{name}' names the secret '{route['secret']}', which openshell_secrets lacks"
            )
        routes.append(dict(route))
    return routes


def _check_route(name: str, route: Mapping[str, Any]) -> None:
    def refuse(what: str) -> None:
        raise Refused(f"inference route '{name}' {what}")

    for key, value in route.items():
        if key != "key" and key not in KEYS:
            refuse(f"has the unknown key '{key}'")
        if key != "key" and (not isinstance(value, KEYS[key]) or isinstance(value, bool)):
            refuse(f"has a '{key}' of the wrong type")
    if route.get("provider") not in PROVIDERS:
        refuse(f"has a provider that is not one of {', '.join(PROVIDERS)}")
    if not route.get("model"):
        refuse("has no model; name the one that its provider knows")
    base_url = route.get("base_url") or ""
    if base_url and not _BASE_URL.fullmatch(base_url):
        refuse("has a base_url that is not https://host/path or http://host/path")
    if not base_url and PROVIDERS[route["provider"]][0]:
        refuse("needs a base_url, since its provider has none that is everybody's")
    if route.get("key") and route.get("secret"):
        refuse("has both a secret and a key; one of them authorises")
    key = route.get("key") or ""
    if isinstance(key, Mapping):
        if len(key) != 1 or next(iter(key)) not in SOURCES:
            refuse(f"has a key that is not exactly one of {', '.join(SOURCES)}")
    elif not isinstance(key, str):
        refuse("has a key that is neither a text nor a mapping that says where it is")


def key_source(route: Mapping[str, Any]) -> Dict[str, Any] | None:
    """Where the route's key is to be found, as a secret says it; None where it has none."""
    key = route.get("key")
    if not key:
        return None
    return dict(key) if isinstance(key, Mapping) else {"value": key}


def document(routes: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> str:
    """The sidecar's file for *routes*, whose *keys* (by the route's name) were found; "" for none."""
    entries = [
        {**{key: route[key] for key in KEYS if route.get(key)}, **({"key": keys[name]} if name in keys else {})}
        for name, route in ((str(route["name"]), route) for route in routes)
    ]
    return json.dumps({"routes": entries}, sort_keys=True, indent=1) + "\n" if entries else ""


def agent_environment(routes: Sequence[Mapping[str, Any]]) -> Dict[str, str]:
    """What the libraries of the APIs that *routes* speak find in the agent's environment."""
    styles = {style for route in routes for style in _styles(route)}
    made: Dict[str, str] = {}
    if "openai" in styles:
        made.update(OPENAI_BASE_URL=BASE_URL + "/v1", OPENAI_API_KEY=NO_KEY)
    if "anthropic" in styles:
        made.update(ANTHROPIC_BASE_URL=BASE_URL, ANTHROPIC_API_KEY=NO_KEY)
    if "aws" in styles:
        made.update(AWS_ENDPOINT_URL_BEDROCK_RUNTIME=BASE_URL, AWS_BEARER_TOKEN_BEDROCK=NO_KEY)
    return made


def _styles(route: Mapping[str, Any]) -> List[str]:
    named = [style for protocol in route.get("protocols") or [] for start, style in _STYLES.items()
             if str(protocol).startswith(start)]  # fmt: skip
    return named or [PROVIDERS[route["provider"]][1]]
