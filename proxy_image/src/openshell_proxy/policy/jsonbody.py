# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON of a request's body, read so that nobody behind us can read it differently (spec 2.8, RFC 8259)."""

from __future__ import annotations

import json
from typing import Any, NoReturn


class BodyError(ValueError):
    """A body that is refused; one sentence that repeats none of it but names known to the protocol."""


def read_json(body: bytes) -> Any:
    """The value of a UTF-8 JSON text. Raises :class:`BodyError`, also for a key that an object has twice."""
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except BodyError:
        raise
    except RecursionError:
        raise BodyError("invalid JSON: too deeply nested") from None
    except ValueError:  # bad syntax, bad UTF-8, a number of too many digits
        raise BodyError("invalid JSON") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BodyError("invalid JSON: an object has a duplicate key")
    return found


def _constant(name: str) -> NoReturn:
    raise BodyError("invalid JSON: NaN and Infinity are not JSON")


def refuse_lookalikes(value: dict[str, Any], names: tuple[str, ...]) -> None:
    """Refuse keys that differ from one of *names* in case alone: some servers (Go's) read both as the same key."""
    folded = {name.casefold() for name in names}
    for key in value:
        if key not in names and key.casefold() in folded:
            raise BodyError(f"a key differs from '{key.casefold()}' in case only")
