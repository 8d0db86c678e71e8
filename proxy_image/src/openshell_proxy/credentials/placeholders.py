# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the agent holds in place of a secret: the forms of a placeholder and how they are recognised (spec 2.6).

Canonical ``openshell:resolve:env:KEY``, the same with a revision ``v12_`` or a stable handle ``s<64 hex>_`` before KEY,
the alias ``PREFIX-OPENSHELL-RESOLVE-ENV-KEY`` for clients that look at a token's prefix, and a random one per sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

MARKER = b"openshell:resolve:env:"
ALIAS_MARKER = b"-OPENSHELL-RESOLVE-ENV-"
MARKERS = (MARKER, ALIAS_MARKER)
REDACTED = b"[CREDENTIAL]"

# A key ends where the next canonical placeholder begins. The lengths are bounds of our own: what is longer is no
# placeholder but still a marker, and so refused; without them nothing could be streamed.
MAX_KEY, MAX_PREFIX = 200, 64
_KEY = rb"(?:(?!openshell:resolve:env:)[A-Za-z0-9_]){1,%d}+" % MAX_KEY
_TOKEN = rb"[A-Za-z0-9_.~-]"
_CANONICAL = MARKER + rb"(?P<key>" + _KEY + rb")"
_ALIAS = (
    rb"(?<!%b)%b{1,%d}" % (_TOKEN, _TOKEN, MAX_PREFIX) + ALIAS_MARKER + rb"(?P<alias>" + _KEY + rb")(?!%b)" % _TOKEN
)
CANONICAL = re.compile(_CANONICAL)
_RESERVED = re.compile(r"(?:v[0-9]+|s[0-9a-f]{64})_(?P<key>.+)", re.DOTALL)
KEY = re.compile(rf"[A-Za-z0-9_]{{1,{MAX_KEY - 66}}}")


def reserved_key(key: str) -> bool:
    """Whether *key* looks like one with a revision or a handle, so that no secret may be called so."""
    return _RESERVED.fullmatch(key) is not None


def base_key(key: str) -> str:
    """*key* without its revision or handle: every revision names the value of now, environments do not change."""
    found = _RESERVED.fullmatch(key)
    return found["key"] if found else key


def canonical(key: str) -> str:
    """The canonical placeholder of *key*."""
    return MARKER.decode() + key


def placeholder_pattern(randoms: Iterable[bytes]) -> re.Pattern[bytes]:
    """Matches every placeholder (groups ``key``, ``alias`` or ``random``) and, without a group, a marker that is none."""
    return re.compile(b"|".join([_CANONICAL, _ALIAS, *_random(randoms), MARKER, ALIAS_MARKER]))


def token_pattern(randoms: Iterable[bytes]) -> re.Pattern[bytes]:
    """Matches the forms that count anywhere in a header's value: aliases as whole tokens, and the random ones."""
    return re.compile(b"|".join([_ALIAS, *_random(randoms)]))


def _random(randoms: Iterable[bytes]) -> list[bytes]:
    listed = sorted(randoms, key=len, reverse=True)
    return [b"(?P<random>" + b"|".join(map(re.escape, listed)) + b")"] if listed else []


def has_marker(data: bytes) -> bool:
    """Whether *data* holds the beginning of a placeholder, as it is or percent-encoded."""
    return any(marker in decoded for decoded in decodings(data) for marker in MARKERS)


def decodings(data: bytes) -> tuple[bytes, ...]:
    """*data* as it is and, where something in it is percent-encoded, decoded once."""
    return (data, unquote_to_bytes(data)) if b"%" in data else (data,)


def _prefixes(literal: bytes) -> bytes:
    """Matches every proper prefix of *literal*, the empty one too."""
    pattern = b""
    for byte in reversed(literal[:-1]):
        pattern = rb"(?:" + re.escape(bytes([byte])) + pattern + rb")?"
    return pattern


# Where at the end of a piece of text a placeholder may have begun that only the next piece completes.
_UNFINISHED = re.compile(
    rb"(?:%b[A-Za-z0-9_]{0,%d}|)%b\Z" % (MARKER, MAX_KEY, _prefixes(MARKER))
    + rb"|(?<!%b)%b{1,%d}+\Z" % (_TOKEN, _TOKEN, MAX_PREFIX + len(ALIAS_MARKER) + MAX_KEY)
    + rb"|%b\Z" % _prefixes(ALIAS_MARKER)
)
_WINDOW = len(MARKER) + MAX_KEY + len(MARKER) + MAX_PREFIX + len(ALIAS_MARKER)


def unfinished(data: bytes, start: int, randoms: Iterable[bytes]) -> int:
    """Index from *start* on at which a placeholder may have begun that goes on after *data*; its length if none has."""
    found = _UNFINISHED.search(data, max(start, len(data) - _WINDOW))
    assert found is not None  # nothing at all, at the end, may be the beginning of one
    return min(found.start(), unfinished_literal(data, start, randoms))


def unfinished_literal(data: bytes, start: int, literals: Iterable[bytes]) -> int:
    """The same for fixed byte strings: the earliest suffix of *data* that is a proper prefix of one of *literals*."""
    earliest = end = len(data)
    for literal in literals:
        at = data.find(literal[:1], max(start, end - len(literal) + 1))
        while 0 <= at < earliest:
            if literal.startswith(data[at:]):
                earliest = at
            else:
                at = data.find(literal[:1], at + 1)
    return earliest
