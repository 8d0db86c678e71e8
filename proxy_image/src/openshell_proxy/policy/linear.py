# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Expressions whose match takes no longer than the text's length times their own, whatever the agent sends.

``re`` tries one way after the other: with several wildcards a path of 4000 characters keeps it busy for minutes, and with
it the whole sidecar. OpenShell's engine does not backtrack, so its policies may have any number of wildcards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Protocol

# An escaped character, a class, or any one character, each perhaps repeated; and what groups.
_TOKEN = re.compile(r"\(\?:|\||\)\??|(?:\\.|\[\^?(?:\\.|[^\]\\])+\]|[^\\()|\[])[*?]?", re.DOTALL)
# A repetition that has only one way to match: up to the separator it cannot cross, or to the end.
_DETERMINED = re.compile(r"\[\^/\]\*(?=/|\Z)|\[\^\\\.\]\*(?=\\\.|\Z)|\.\*\Z")


class Matches(Protocol):
    """What is asked of an expression."""

    def fullmatch(self, text: str, /) -> object: ...


class _Members(dict[int, str]):
    """Code points → "1" where *unit* takes the character; remembered, but not all that an agent can think of."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._pattern = re.compile(unit, re.DOTALL)

    def __missing__(self, code: int) -> str:
        if len(self) >= 4096:
            self.clear()
        self[code] = found = "1" if self._pattern.fullmatch(chr(code)) else "0"
        return found

    def places(self, text: str) -> int:
        """Before which characters of *text* one of these stands."""
        return int(text[::-1].translate(self) or "0", 2)


# Places in a text are the bits of a number, bit 0 before the first character. A step takes the text and the places to
# begin at, and returns those where it can end.
Step = Callable[[str, int], int]


class Linear:
    """Follows all ways at once. *expression*: literals, classes, ``.``, ``(?:…|…)``, ``*`` and ``?``."""

    def __init__(self, expression: str) -> None:
        self._step = _alternatives(iter(_TOKEN.findall(expression)))[0]

    def fullmatch(self, text: str, /) -> bool:
        """Whether the whole text matches."""
        return bool(self._step(text, 1) >> len(text) & 1)


def harmless(expression: str) -> bool:
    """Whether ``re`` needs no more than linear time for it too: at most one repetition has several ways to match."""
    return _DETERMINED.sub("", expression).count("*") <= 1


def compile_linear(expression: str) -> Matches:
    """``re`` where it cannot go wrong, because it is faster; :class:`Linear` for everything else."""
    return re.compile(expression, re.DOTALL) if harmless(expression) else Linear(expression)


def _alternatives(tokens: Iterator[str]) -> tuple[Step, bool]:
    """The step of a group up to its end, and whether the group as a whole may be missing."""
    sequences: list[list[Step]] = [[]]
    word = ""
    closing = ""

    def end_word() -> None:
        nonlocal word
        if word:
            sequences[-1].append(_literally(word))
            word = ""

    for token in tokens:
        if token[-1] not in "*?)|.]:" or (len(token) == 2 and token[0] == "\\"):
            word += token[-1]
            continue
        end_word()
        if token == "|":
            sequences.append([])
        elif token.startswith(")"):
            closing = token
            break
        elif token == "(?:":
            inner, optional = _alternatives(tokens)
            sequences[-1].append(_optional(inner) if optional else inner)
        else:
            sequences[-1].append(_unit(token))
    end_word()

    def step(text: str, at: int) -> int:
        ends = 0
        for sequence in sequences:
            reached = at
            for one in sequence:
                if not reached:
                    break
                reached = one(text, reached)
            ends |= reached
        return ends

    return step, closing == ")?"


def _optional(inner: Step) -> Step:
    return lambda text, at: at | inner(text, at)


def _literally(word: str) -> Step:
    def step(text: str, at: int) -> int:
        places, found = 0, text.find(word)
        while found >= 0:
            places |= 1 << found
            found = text.find(word, found + 1)
        return (at & places) << len(word)

    return step


def _unit(token: str) -> Step:
    """One character, or as many as there are: the carry of an addition runs through them (Parabix, MatchStar)."""
    repeat = token[-1] if token[-1] in "*?" else ""
    members = _Members(token[: len(token) - len(repeat)])

    def once(text: str, at: int) -> int:
        return (at & members.places(text)) << 1

    def any_number(text: str, at: int) -> int:
        run = members.places(text)
        return (((at & run) + run) ^ run) | at

    if repeat == "*":
        return any_number
    return _optional(once) if repeat == "?" else once
