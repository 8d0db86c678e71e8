# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the configuration files that hold a list of named mappings have in common: secrets and routes.

What is wrong is said with the entry's name or number, never with anything else of it: an entry may hold a secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def listed(text: str, file: str, key: str, error: type[ValueError]) -> list[Any]:
    """The list of ``{key: […]}``, the JSON that *text* is. Raises *error*, which speaks of the *file* by that word."""
    try:
        document = json.loads(text)
    except ValueError:
        raise error(f"the {file} file is not JSON") from None
    if not isinstance(document, dict) or set(document) != {key} or not isinstance(document[key], list):
        raise error(f"the {file} file is not an object with a list '{key}'")
    found: list[Any] = document[key]
    return found


class Entry:
    """One entry of the list: a mapping with a name, of known keys with values of their types. Raises :attr:`error`."""

    noun: ClassVar[str]
    known_keys: ClassVar[Mapping[str, tuple[type, ...]]]
    error: ClassVar[type[ValueError]]

    def __init__(self, given: Any, number: int) -> None:
        self.name = f"number {number}"
        if not isinstance(given, dict):
            raise self._wrong("is not a mapping")
        name = given.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise self._wrong("has no name of letters, digits, '_', '.' and '-'")
        self.name = name
        for key, value in given.items():
            if key not in self.known_keys:
                raise self._wrong(f"has an unknown key '{key}'")
            # A bool is an int in Python, and none of a file's numbers is one.
            if not isinstance(value, self.known_keys[key]) or isinstance(value, bool):
                raise self._wrong(f"has a '{key}' of the wrong type")
        self.given: Mapping[str, Any] = given

    def _wrong(self, what: str) -> ValueError:
        return self.error(f"{self.noun} '{self.name}' {what}")
