# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which endpoint's path governs a request, and whether two endpoints' paths can govern the same one (spec 1.13, 1.8).

OpenShell chooses the governing endpoint with another matcher than the one its rules use: ``*`` crosses ``/`` and
``/v1/**`` takes ``/v1`` too. Where the two disagree the rules' matcher has the last word, so nothing is allowed by it.
"""

from __future__ import annotations

import re
from functools import lru_cache

from openshell_proxy.policy.linear import Matches, compile_linear

_EVERYTHING = ("", "**", "/**")


def specificity(pattern: str) -> int:
    """How exact a path pattern is: its characters without the stars."""
    return len(pattern) - pattern.count("*")


@lru_cache(maxsize=4096)
def compile_route(pattern: str) -> Matches | None:
    """The expression of an endpoint's path; None matches everything. A pattern that is none equals only itself."""
    if pattern in _EVERYTHING:
        return None
    prefix = pattern.removesuffix("/**")
    if prefix != pattern and "*" not in prefix and "?" not in prefix and "[" not in prefix:
        return re.compile(re.escape(prefix) + "(?:/.*)?", re.DOTALL)
    try:
        return compile_linear(_translate(pattern))
    except ValueError:
        return re.compile(re.escape(pattern))


def _translate(pattern: str) -> str:
    """The syntax of the Rust crate ``glob``: ``? * ** [..] [!..]``, no braces, no escapes."""
    out: list[str] = []
    index = 0
    while index < len(pattern):
        char = pattern[index]
        if char == "*":
            end = index
            while pattern[end : end + 1] == "*":
                end += 1
            out.append(_stars(pattern, index, end))
            index = end + (out[-1] != ".*")
            continue
        if char == "[":
            end = pattern.find("]", index + (3 if pattern[index + 1 : index + 2] == "!" else 2))
            if end < 0:
                raise ValueError("an unclosed '['")
            members = pattern[index + 1 : end]
            body = re.sub(r"([\\\[\]^&~|])", r"\\\1", members.removeprefix("!"))
            out.append(f"[{'^' if members.startswith('!') else ''}{body}]")
            index = end + 1
            continue
        out.append("." if char == "?" else re.escape(char))
        index += 1
    return "".join(out)


def _stars(pattern: str, start: int, end: int) -> str:
    if end - start == 1:
        return ".*"
    starts, ends = start == 0 or pattern[start - 1] == "/", end == len(pattern) or pattern[end] == "/"
    if end - start > 2 or not starts or not ends:
        raise ValueError("** that does not fill a component")
    return "(?:.*/)?" if end < len(pattern) else ".*"


def paths_overlap(left: str, right: str) -> bool:
    """Whether one path could match both; errs towards yes, which only makes the ambiguity check stricter."""
    if left in _EVERYTHING or right in _EVERYTHING:
        return True
    return meet(_units(left), _units(right))


def _units(pattern: str) -> tuple[str, ...]:
    """One entry a character: itself, ``?`` for any one, ``*`` for any run of them.

    From the first ``[`` or ``{`` on anything may come.
    """
    units: list[str] = []
    rest = pattern.removesuffix("/**")
    index = 0
    while index < len(rest):
        char = rest[index]
        if char in "[{":
            return (*units, "*")
        if rest.startswith(("/**/", "**/"), index):
            units.append("*")  # the first ends with the slash that is left; the second may be nothing at all
            index += 3
            continue
        escaped = char == "\\"
        units.append("?" if escaped else char)
        index += 2 if escaped else 1
    return (*units, "*") if rest != pattern else tuple(units)


def meet(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    """Whether two sequences of units have a common match: row by row, O(length times length)."""
    row = [True]
    for unit in right:
        row.append(row[-1] and unit == "*")
    for one in left:
        following = [row[0] and one == "*"]
        for index, other in enumerate(right):
            same = one == "?" or other == "?" or one == other
            either = "*" in (one, other)
            following.append((row[index + 1] or following[index]) if either else row[index] and same)
        row = following
    return row[-1]
