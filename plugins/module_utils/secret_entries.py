# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``openshell_secrets`` as people write it: what is wrong is said with the secret's name, never with its value.

The sidecar judges every binding again and has the last word; this is what can be told before anything is created.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from typing import Any, Dict, List, Mapping, Sequence

SOURCES = ("value", "command", "file", "from_env")
# What the sidecar's file takes besides the value (credentials/document.py there).
BINDING = ("hosts", "ports", "paths", "header", "format", "username", "env", "oauth")
# What only a provider's has besides.
OF_PROVIDER = ("places", "providers")
KEEP = ("own", "providers")
PLACEHOLDERS = ("canonical", "random")
MIN_RANDOM = 16

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,133}")
HOST = re.compile(r"[A-Za-z0-9_*]([A-Za-z0-9_.:*-]*[A-Za-z0-9_*])?")
_LETTERS = string.ascii_letters + string.digits
# Clients look at these before they use a token, so a random placeholder begins like the real one; they are public.
_PREFIXES = re.compile(
    r"sk-ant-api03-|sk-ant-oat01-|sk-proj-|sk-|gh[pousr]_|github_pat_|glpat-|hf_|nvapi-|xox[abp]-|AKIA|ASIA|AIza|pypi-|npm_"
)


class Refused(ValueError):
    """Secrets that cannot be used; one sentence without a value."""


def check_entries(entries: Any) -> List[Mapping[str, Any]]:
    """The entries, judged without their values. Raises :class:`Refused`."""
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise Refused("openshell_secrets is not a list")
    names: List[str] = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, Mapping):
            raise Refused(f"openshell_secrets: number {number} is not a mapping")
        name = entry.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise Refused(f"openshell_secrets: number {number} has no name of letters, digits, '_', '.' and '-'")
        if name in names:
            raise Refused(f"secret '{name}' is there twice")
        names.append(name)
        _check_entry(name, entry)
    return list(entries)


def _check_entry(name: str, entry: Mapping[str, Any]) -> None:
    unknown = sorted(str(key) for key in entry if key not in ("name", "placeholder", *SOURCES, *BINDING))
    if unknown:
        raise Refused(f"secret '{name}' has the unknown key '{unknown[0]}'")
    if sum(key in entry for key in SOURCES) != 1:
        raise Refused(f"secret '{name}' needs exactly one of {', '.join(SOURCES)}")
    hosts = entry.get("hosts")
    if not isinstance(hosts, Sequence) or isinstance(hosts, str) or not hosts:
        raise Refused(f"secret '{name}' is bound to no host; list the hosts that may get it")
    if not all(isinstance(host, str) and HOST.fullmatch(host) for host in hosts):
        raise Refused(f"secret '{name}' is bound to what is no host, address or wildcard like '*.example.com'")
    if not isinstance(entry.get("oauth", {}), Mapping):
        raise Refused(f"secret '{name}' has an 'oauth' that is not a mapping")
    for key in ("header", "format", "username", "env"):
        if not isinstance(entry.get(key, ""), str):
            raise Refused(f"secret '{name}' has a '{key}' that is not a text")
    if entry.get("env") and not _VARIABLE.fullmatch(entry["env"]):
        raise Refused(f"secret '{name}' has an env that is not the name of a variable")
    if entry.get("placeholder", "canonical") not in PLACEHOLDERS:
        raise Refused(f"secret '{name}': placeholder is canonical or random")
    if entry.get("format") and not entry.get("header"):
        raise Refused(f"secret '{name}' has a format but no header")


def sidecar_entry(entry: Mapping[str, Any], value: str) -> Dict[str, Any]:
    """What the sidecar is to know of *entry*, whose value was found."""
    if not value:
        raise Refused(f"secret '{entry['name']}' is empty")
    bound = {key: entry[key] for key in (*BINDING, *OF_PROVIDER) if entry.get(key)}
    return {"name": entry["name"], "value": value, **bound}


def parse_secrets(text: str) -> List[Dict[str, Any]]:
    """The entries of the sidecar's file as it lies on the volume; one that is broken counts as none."""
    try:
        found = json.loads(text)["secrets"] if text else []
    except (ValueError, KeyError, TypeError):
        return []
    return [one for one in found if isinstance(one, dict)]


def with_random(wanted: Sequence[Mapping[str, Any]], current: str, keep: Sequence[str] = ()) -> str:
    """The sidecar's file for the entries *wanted*. A secret of before keeps its random placeholder: agents hold it.

    *keep*: which of the *current* ones stay, the user's ``own`` or those of ``providers``.
    """
    before = parse_secrets(current)
    staying = [one for one in before if KEEP["providers" in one] in keep]
    kept = {one.get("name"): one.get("random", "") for one in before}
    entries = [
        {**one, "random": kept.get(one["name"]) or new_random(one["value"])} for one in _together([*wanted, *staying])
    ]
    return json.dumps({"secrets": entries}, sort_keys=True, indent=1) + "\n" if entries else ""


def _together(entries: Sequence[Mapping[str, Any]]) -> List[Mapping[str, Any]]:
    """Each name once, and no provider's secret under a name or variable that one of the user's own has."""
    own = [one for one in entries if "providers" not in one]
    taken = {one.get(key) for one in own for key in ("name", "env") if one.get(key)}
    provided = [one for one in entries if "providers" in one and str(one["name"]).partition(".")[0] not in taken]
    made: Dict[str, Mapping[str, Any]] = {}
    for one in [*own, *provided]:
        made.setdefault(one["name"], one)
    return list(made.values())


def new_random(value: str) -> str:
    """A placeholder of *value*'s length that nobody can guess; "" where it is too short for one."""
    found = _PREFIXES.match(value)
    prefix = found[0] if found else ""
    count = len(value.encode()) - len(prefix)
    return prefix + "".join(secrets.choice(_LETTERS) for index in range(count)) if count >= MIN_RANDOM else ""


def agent_environment(entries: Sequence[Mapping[str, Any]], file: str) -> Dict[str, str]:
    """Variable → placeholder for the agent, of the *entries* as people write them and the sidecar's *file*."""
    random = {one["name"]: one.get("random", "") for one in parse_secrets(file)}
    made: Dict[str, str] = {}
    for entry in entries:
        variable = entry.get("env")
        if not variable:
            continue
        made[variable] = f"openshell:resolve:env:{variable}"
        if entry.get("placeholder") == "random":
            if not random.get(entry["name"]):
                raise Refused(f"secret '{entry['name']}' is too short for a random placeholder")
            made[variable] = random[entry["name"]]
    return made
