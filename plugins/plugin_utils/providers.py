# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Providers: data files that name a service's endpoints and the variables of its credentials, each once (spec 2.13).

The policy's entries and what the secrets are bound to both come from here. No value is read in this file.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from fnmatch import fnmatchcase
from typing import Any, Dict, FrozenSet, List, Mapping, Sequence, Tuple

import yaml
from ansible_collections.openshell.sandbox.plugins.module_utils.secret_entries import HOST, SOURCES, Refused

SHIPPED = os.path.join(os.path.dirname(__file__), "..", "..", "roles", "secrets", "files", "providers")
POLICY_PREFIX = "_provider_"

_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,133}")
_TEXTS = ("display_name", "description", "category")
_KEYS = ("id", *_TEXTS, "credentials", "settings", "endpoints")
_INJECTION = ("header", "format", "username", "oauth")
# What endpoints of one host must agree on; here a provider's do as the user's own say (spec 1.8, "Ambiguity").
_OF_CONNECTION = ("tls", "allowed_ips")
_OF_REQUEST = (
    "allow_encoded_slash", "websocket_credential_rewrite", "request_body_credential_rewrite", "credential_binding",
)  # fmt: skip

Endpoint = Dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Credential:
    """``variables`` may hold it, the first that does counts; ``injection`` says in which header it goes of itself."""

    variables: Tuple[str, ...]
    injection: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Provider:
    """``endpoints`` as in a policy, each with the names of the ``credentials`` that go there; ``settings``: no secrets."""

    id: str
    credentials: Mapping[str, Credential]
    settings: Tuple[str, ...]
    endpoints: Tuple[Tuple[Endpoint, FrozenSet[str]], ...]

    def variables(self) -> List[str]:
        """Every variable of its credentials, once."""
        return list(dict.fromkeys(name for one in self.credentials.values() for name in one.variables))

    def places(self, credential: str) -> List[Endpoint]:
        """Where *credential* may go, as the sidecar's ``places``."""
        found = [endpoint for endpoint, names in self.endpoints if credential in names]
        return [
            {
                "hosts": [endpoint["host"]],
                "ports": ports(endpoint),
                **({"paths": [endpoint["path"]]} if endpoint.get("path") else {}),
            }
            for endpoint in found
        ]


@dataclasses.dataclass(frozen=True)
class Given:
    """A provider as ``openshell_providers`` asks for it; ``secrets``: variable → where its value comes from."""

    provider: Provider
    secrets: Mapping[str, Mapping[str, Any]]


def ports(endpoint: Mapping[str, Any]) -> List[int]:
    """The ports of a policy's endpoint."""
    listed = endpoint.get("ports")
    return list(listed) if isinstance(listed, (list, tuple)) else [endpoint.get("port", 443)]


def given_providers(given: Any, directory: str = "") -> List[Given]:
    """``openshell_providers`` judged, its files read. Raises :class:`Refused` with one sentence without a value."""
    if not isinstance(given, (list, tuple)):
        raise Refused("openshell_providers is not a list")
    found = [_given(entry, number, directory) for number, entry in enumerate(given, 1)]
    identifiers = [one.provider.id for one in found]
    for identifier in identifiers:
        if identifiers.count(identifier) > 1:
            raise Refused(f"openshell_providers: provider '{identifier}' is there twice")
    return found


def _given(entry: Any, number: int, directory: str) -> Given:
    where = f"openshell_providers: number {number}"
    if isinstance(entry, str):
        return Given(load(entry, directory), {})
    if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), str):
        raise Refused(f"{where} is neither the id of a provider nor a mapping with an id")
    unknown = sorted(str(key) for key in entry if key not in ("id", "secrets"))
    if unknown:
        raise Refused(f"{where} has the unknown key '{unknown[0]}'; it takes id and secrets")
    provider = load(entry["id"], directory)
    secrets = entry.get("secrets") or {}
    if not isinstance(secrets, Mapping):
        raise Refused(f"provider '{provider.id}': secrets is not a mapping of variables")
    for variable, source in secrets.items():
        if variable not in provider.variables():
            hint = _nearest(str(variable), provider.variables())
            raise Refused(f"provider '{provider.id}' has no variable '{variable}'{hint}")
        if not isinstance(source, Mapping) or len(source) != 1 or next(iter(source)) not in SOURCES:
            raise Refused(f"provider '{provider.id}': {variable} needs exactly one of {', '.join(SOURCES)}")
    return Given(provider, secrets)


def known(directory: str = "") -> List[str]:
    """The ids that there are, those of the user's own *directory* too."""
    names = [name for where in _directories(directory) for name in os.listdir(where)]
    return sorted({name[: -len(".yml")] for name in names if name.endswith(".yml")})


def _directories(directory: str) -> List[str]:
    """Where files are looked for, the user's first."""
    own = os.path.expanduser(directory) if directory else ""
    if own and not os.path.isdir(own):
        raise Refused(f"openshell_providers_path {directory} is not a directory of the controller")
    return [own, SHIPPED] if own else [SHIPPED]


def load(identifier: str, directory: str = "") -> Provider:
    """The provider *identifier*. Raises :class:`Refused`."""
    files = [os.path.join(where, f"{identifier}.yml") for where in _directories(directory)]
    file = next((one for one in files if _ID.fullmatch(identifier) and os.path.isfile(one)), "")
    if not file:
        hint = _nearest(identifier, known(directory))
        own = "" if directory or hint.endswith("?") else "; openshell_providers_path names a directory of your own ones"
        raise Refused(f"there is no provider '{identifier}'{hint}{own}")
    try:
        with open(file, encoding="utf-8") as handle:
            content = yaml.safe_load(handle)
    except (OSError, UnicodeDecodeError):
        raise Refused(f"provider '{identifier}': {file} cannot be read") from None
    except yaml.YAMLError as error:
        raise Refused(f"provider '{identifier}': {file} is not YAML: {' '.join(str(error).split())}") from None
    return _read(identifier, content)


def _nearest(word: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, words, 1, 0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; there are {', '.join(words)}" if words else ""


def _read(identifier: str, content: Any) -> Provider:
    """*content* of a provider's file."""

    def wrong(what: str) -> Refused:
        return Refused(f"provider '{identifier}' {what}")

    if not isinstance(content, Mapping):
        raise wrong("is not a mapping")
    for key in content:
        if key not in _KEYS:
            raise wrong(f"has the unknown key '{key}'{_nearest(str(key), _KEYS)}")
    if content.get("id") != identifier:
        raise wrong("has an id that is not the name of its file")
    for key in _TEXTS:
        if not isinstance(content.get(key, ""), str):
            raise wrong(f"has a {key} that is not a text")
    settings = content.get("settings") or []
    if not _variables(settings) and settings:
        raise wrong("has settings that are not a list of variables")
    credentials = content.get("credentials") or {}
    if not isinstance(credentials, Mapping):
        raise wrong("has credentials that are not a mapping")
    read = {str(name): _credential(identifier, str(name), one) for name, one in credentials.items()}
    endpoints = content.get("endpoints")
    if not isinstance(endpoints, list) or not endpoints:
        raise wrong("has no list of endpoints")
    single = [one for each in endpoints for one in _single(each)]
    provider = Provider(identifier, read, tuple(settings), tuple(_endpoint(identifier, one, read) for one in single))
    unused = [name for name in read if not provider.places(name)]
    if unused:
        raise wrong(f"has the credential '{unused[0]}', which goes to no endpoint")
    return provider


def _variables(listed: Any) -> bool:
    good = isinstance(listed, list) and bool(listed)
    return good and all(isinstance(one, str) and _VARIABLE.fullmatch(one) for one in listed)


def _credential(identifier: str, name: str, content: Any) -> Credential:
    what = f"provider '{identifier}': the credential '{name}'"
    if not isinstance(content, Mapping) or not _variables(content.get("env")):
        raise Refused(f"{what} has no env, a list of the variables that may hold it")
    unknown = sorted(str(key) for key in content if key not in ("env", *_INJECTION))
    if unknown:
        raise Refused(f"{what} has the unknown key '{unknown[0]}'")
    if not isinstance(content.get("oauth", {}), Mapping):
        raise Refused(f"{what} has an oauth that is not a mapping")
    for key in ("header", "format", "username"):
        if not isinstance(content.get(key, ""), str):
            raise Refused(f"{what} has a {key} that is not a text")
    return Credential(tuple(content["env"]), {key: content[key] for key in _INJECTION if content.get(key)})


def _single(endpoint: Any) -> List[Any]:
    """One endpoint for each of its ``hosts``; one that names a ``host`` is as it is."""
    hosts = endpoint.get("hosts") if isinstance(endpoint, Mapping) else None
    if not isinstance(hosts, list) or "host" in endpoint:
        return [endpoint]
    rest = {key: value for key, value in endpoint.items() if key != "hosts"}
    return [{"host": host, **rest} for host in hosts]


def _endpoint(identifier: str, content: Any, known_ones: Mapping[str, Credential]) -> Tuple[Endpoint, FrozenSet[str]]:
    """The endpoint for the policy, whose engine judges the rest of it, and which credentials go there."""
    host = content.get("host") if isinstance(content, Mapping) else None
    if not isinstance(host, str) or not HOST.fullmatch(host):
        raise Refused(f"provider '{identifier}' has an endpoint whose host is no name, address or wildcard")
    if not all(isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536 for port in ports(content)):
        raise Refused(f"provider '{identifier}': the endpoint {host} has a port that is not a number from 1 to 65535")
    names = content.get("credentials") or []
    missing = [str(name) for name in names if name not in known_ones] if isinstance(names, list) else [str(names)]
    if missing:
        hint = _nearest(missing[0], list(known_ones))
        raise Refused(f"provider '{identifier}': the endpoint {host} gets an unknown credential '{missing[0]}'{hint}")
    endpoint = {"port": 443} if "port" not in content and "ports" not in content else {}
    endpoint.update((str(key), value) for key, value in content.items() if key != "credentials")
    return endpoint, frozenset(names)


def policies(
    given: Sequence[Given], user: Any, default_enforcement: str = "enforce"
) -> Tuple[Dict[str, Any], List[str]]:
    """Entries of ``network_policies`` for *given* beside the policy *user*, and what its author should be told.

    Where a policy of the user's own has an endpoint on the same host and port, the provider's is treated as that one is,
    for the engine refuses two that differ; one that speaks another protocol leaves no room for the provider's.
    """
    own = _endpoints_of(user)
    made: Dict[str, Any] = {}
    notices: List[str] = []
    for one in given:
        endpoints = []
        for endpoint in [pair[0] for pair in one.provider.endpoints]:
            fitted = _fitted(endpoint, [other for other in own if _meet(endpoint, other)], default_enforcement)
            if fitted is None:
                notices.append(
                    f"provider {one.provider.id}: the policy's own endpoint on {endpoint['host']} stands, not the provider's"
                )
            else:
                endpoints.append(fitted)
        if endpoints:
            made[POLICY_PREFIX + one.provider.id] = {"endpoints": endpoints}
    return made, notices


def provider_ids(policy: Any) -> List[str]:
    """Ids of the providers that were composed into *policy*, its YAML text."""
    entries = (_parsed(policy) or {}).get("network_policies") or {}
    names = [str(name) for name in entries] if isinstance(entries, Mapping) else []
    return [name[len(POLICY_PREFIX) :] for name in names if name.startswith(POLICY_PREFIX)]


def _parsed(policy: Any) -> Mapping[str, Any] | None:
    """The policy as data; None for what is none, about which the engine has its own words."""
    try:
        found = yaml.safe_load(policy)
    except yaml.YAMLError:
        return None
    return found if isinstance(found, Mapping) else None


def _endpoints_of(policy: Any) -> List[Endpoint]:
    entries = (_parsed(policy) or {}).get("network_policies") or {}
    listed = [entry.get("endpoints") for entry in entries.values() if isinstance(entry, Mapping)] if isinstance(
        entries, Mapping
    ) else []  # fmt: skip
    return [one for endpoints in listed if isinstance(endpoints, list) for one in endpoints if isinstance(one, dict)]


def _meet(provider: Endpoint, own: Endpoint) -> bool:
    """Whether a connection may be for both; too much rather than too little."""
    if not set(ports(provider)) & set(ports(own)):
        return False
    host = str(own.get("host") or "").lower()
    return not host or _hosts_meet(provider["host"].lower().split("."), host.split("."))


def _hosts_meet(left: List[str], right: List[str]) -> bool:
    for one, other in ((left, right), (right, left)):
        if one[0] == "**":
            return (
                len(other) >= len(one) and _hosts_meet(one[1:], other[len(other) - len(one) + 1 :]) if one[1:] else True
            )
    return len(left) == len(right) and all(map(_labels_meet, left, right))


def _labels_meet(left: str, right: str) -> bool:
    return ("*" in left and "*" in right) or fnmatchcase(left, right) or fnmatchcase(right, left)


def _fitted(endpoint: Endpoint, own: Sequence[Endpoint], default_enforcement: str) -> Endpoint | None:
    made = dict(endpoint)
    for other in own:
        if other.get("protocol") == "tcp":
            return None
        _adopt(made, other, _OF_CONNECTION)
        speaks = any(other.get(key) for key in ("protocol", "allowed_ips", "tls", "credential_binding"))
        if not speaks or not _paths_meet(str(endpoint.get("path") or ""), str(other.get("path") or "")):
            continue
        if (other.get("protocol") or "") != (endpoint.get("protocol") or ""):
            return None
        _adopt(made, other, _OF_REQUEST)
        if "protocol" in endpoint:
            made["enforcement"] = other.get("enforcement") or default_enforcement
    return made


def _adopt(made: Endpoint, other: Endpoint, keys: Sequence[str]) -> None:
    for key in keys:
        made.pop(key, None)
        if key in other:
            made[key] = other[key]


def _paths_meet(left: str, right: str) -> bool:
    """Whether the engine compares them: equally exact, and neither's beginning rules the other out."""
    if len(left.replace("*", "")) != len(right.replace("*", "")):
        return False
    one, other = left.partition("*")[0], right.partition("*")[0]
    return left == right or ((left + right).count("*") > 0 and (one.startswith(other) or other.startswith(one)))


@dataclasses.dataclass
class Composed:
    """``entries`` as ``openshell_secrets`` has them, ``settings``: variable → value for the agent as it is."""

    entries: List[Dict[str, Any]]
    settings: Dict[str, str]
    notices: List[str]


def secret_entries(
    given: Sequence[Given], own: Sequence[Mapping[str, Any]], environment: Mapping[str, str]
) -> Composed:
    """The secrets of *given* beside *own*, which come first; *environment* is the controller's.

    One variable has one value: what ``openshell_providers`` says for one provider holds for all that know the variable.
    Raises :class:`Refused`.
    """
    taken = {str(entry.get(key)) for entry in own for key in ("name", "env") if entry.get(key)}
    sources = _sources(given, environment)
    entries: Dict[str, Dict[str, Any]] = {}
    notices: List[str] = []
    settings: Dict[str, str] = {}
    for one in given:
        provider = one.provider
        settings.update((name, environment[name]) for name in provider.settings if environment.get(name))
        wanted = provider.variables()
        if wanted and not any(name in sources or name in taken for name in wanted):
            notices.append(
                f"provider {provider.id} gives its policy only: none of {', '.join(wanted)} is set on the controller"
            )
        for name, credential in provider.credentials.items():
            found = [variable for variable in credential.variables if variable in sources and variable not in taken]
            places = provider.places(name)
            for index, variable in enumerate(found):
                injection = credential.injection if index == 0 else {}
                # Where it goes as another header than elsewhere, it is a secret of its own there.
                apart = bool(injection) and any(
                    variable in other.variables for other in provider.credentials.values() if other is not credential
                )
                _add(entries, variable, variable, sources[variable], places, provider.id, {} if apart else injection)
                if apart:
                    _add(entries, f"{variable}.{provider.id}", "", sources[variable], places, provider.id, injection)
    return Composed(list(entries.values()), settings, notices)


def _sources(given: Sequence[Given], environment: Mapping[str, str]) -> Dict[str, Mapping[str, Any]]:
    """Variable → where its value comes from: as it is said, else the controller's variable of that name."""
    said: Dict[str, Mapping[str, Any]] = {}
    for one in given:
        for variable, source in one.secrets.items():
            if said.setdefault(variable, source) != source:
                raise Refused(f"provider '{one.provider.id}': another provider has {variable} from somewhere else")
    named = [variable for one in given for variable in one.provider.variables()]
    found = {name: {"from_env": name} for name in named if environment.get(name)}
    return {**found, **said}


def _add(
    entries: Dict[str, Dict[str, Any]],
    name: str,
    variable: str,
    source: Mapping[str, Any],
    places: Sequence[Endpoint],
    provider: str,
    injection: Mapping[str, Any],
) -> None:
    """Add *places* to the entry *name*, which is made if there is none yet."""
    entry = entries.setdefault(name, {"name": name, **source, "places": [], "providers": []})
    if variable:
        entry["env"] = variable
    if injection and any(entry.get(key, injection.get(key)) != injection.get(key) for key in _INJECTION):
        raise Refused(f"provider '{provider}': another provider puts {name} into another header")
    entry.update(injection)
    entry["places"] += [place for place in places if place not in entry["places"]]
    entry["providers"] += [provider] if provider not in entry["providers"] else []
