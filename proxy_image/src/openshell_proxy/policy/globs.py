# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Globs as OpenShell's policy engine understands them, translated to regular expressions (spec 1.11).

The token rules are those of globset 0.4 with a literal separator: ``**`` is special only where it fills a component.
"""

from __future__ import annotations

import re
from functools import lru_cache

from openshell_proxy.policy.linear import Matches, compile_linear

SEPARATOR_PATH = "/"
SEPARATOR_NAME = "."
SPECIAL = frozenset("*?[]{}\\")
MAX_BRACES = 16

_PREFIX, _SUFFIX, _BETWEEN = "prefix", "suffix", "between"


class GlobError(ValueError):
    """A glob that never compiles: an unbalanced bracket or brace, a bad range, a trailing backslash."""


@lru_cache(maxsize=4096)
def compile_glob(pattern: str, separator: str = SEPARATOR_PATH) -> Matches:
    """The anchored, case-sensitive expression for *pattern*; *separator* is what ``*`` does not cross.

    With the separator ``.`` (query values and names) ``/`` is an ordinary character. Raises :class:`GlobError`.
    """
    return compile_linear(translate(pattern, separator))


def translate(pattern: str, separator: str = SEPARATOR_PATH) -> str:
    """The regular expression's text, without anchors or capturing groups."""
    return _Translator(pattern, separator).translate()


class _Translator:
    """Tokens of the pattern on a stack: level 0 is the pattern, each open ``{`` adds a level of alternatives."""

    def __init__(self, pattern: str, separator: str) -> None:
        self.pattern = pattern
        self.raw_sep = separator
        self.sep = re.escape(separator)
        self.any = f"[^{self.sep}]"
        self.index = 0
        self.tokens: list[str] = []
        self.outer: list[tuple[list[str], list[str]]] = []  # (tokens before the brace, finished alternatives)

    def translate(self) -> str:
        if "\0" in self.pattern:
            raise GlobError("a NUL character")
        while self.index < len(self.pattern):
            self._token()
        if self.outer:
            raise GlobError("an unclosed '{'")
        if self.tokens == [_PREFIX]:
            return ".*"
        return self._joined(self.tokens)

    def _joined(self, tokens: list[str]) -> str:
        sep = self.sep
        special = {_PREFIX: f"(?:{sep}?|.*{sep})", _SUFFIX: f"{sep}.*", _BETWEEN: f"(?:{sep}|{sep}.*{sep})"}
        return "".join(special.get(token, token) for token in tokens)

    def _token(self) -> None:
        char = self.pattern[self.index]
        self.index += 1
        if char == "*":
            self._star()
        elif char == "?":
            self.tokens.append(self.any)
        elif char == "[":
            self._class()
        elif char == "{":
            if len(self.outer) == MAX_BRACES:
                raise GlobError(f"more than {MAX_BRACES} braces within each other")
            self.outer.append((self.tokens, []))
            self.tokens = []
        elif char == "}":
            self._close()
        elif char == "," and self.outer:
            self.outer[-1][1].append(self._joined(self.tokens))
            self.tokens = []
        elif char == "\\":
            if self.index >= len(self.pattern):
                raise GlobError("a backslash at the end")
            self.tokens.append(re.escape(self.pattern[self.index]))
            self.index += 1
        else:
            self.tokens.append(re.escape(char))

    def _close(self) -> None:
        if not self.outer:
            raise GlobError("a '}' without '{'")
        before, alternatives = self.outer.pop()
        alternatives.append(self._joined(self.tokens))
        self.tokens = before
        self.tokens.append(f"(?:{'|'.join(one for one in alternatives if one)})")

    def _star(self) -> None:
        """One star, or two that fill a component; the position is behind the first star."""
        at = self.index
        previous = self.pattern[at - 2 : at - 1]
        following = self.pattern[at + 1 : at + 2]
        if self.pattern[at : at + 1] != "*":
            self.tokens.append(f"{self.any}*")
            return
        self.index += 1
        ends = not following or (following in ",}" and bool(self.outer))
        if not self.tokens and (not following or following == self.raw_sep):
            self.tokens.append(_PREFIX)
            self.index += following == self.raw_sep
        elif self.tokens and self._at_component(previous) and (ends or following == self.raw_sep):
            last = self.tokens.pop()
            self.index += following == self.raw_sep
            self.tokens.append(last if last == _PREFIX else _SUFFIX if ends else _BETWEEN)
        else:
            self.tokens.append(f"{self.any}*{self.any}*")

    def _at_component(self, previous: str) -> bool:
        return previous == self.raw_sep or (bool(self.outer) and previous in (",", "{"))

    def _class(self) -> None:
        """``[abc]``, ``[a-z]``, ``[!x]``, ``[^x]``; a ``]`` in the first place is a member. May match the separator."""
        negated = self.pattern[self.index : self.index + 1] in ("!", "^")
        start = self.index + (1 if negated else 0)
        end = self.pattern.find("]", start + 1)
        if end < 0:
            raise GlobError("an unclosed '['")
        self.index = end + 1
        members = "".join(self._ranges(self.pattern[start:end]))
        self.tokens.append(f"[{'^' if negated else ''}{members}]")

    @staticmethod
    def _ranges(body: str) -> list[str]:
        found: list[str] = []
        index = 0
        while index < len(body):
            low, high = body[index], body[index]
            if body[index + 1 : index + 2] == "-" and index + 2 < len(body):
                high = body[index + 2]
                index += 2
            if high < low:
                raise GlobError(f"a bad range {low}-{high}")
            found.append(re.escape(low) if low == high else f"{re.escape(low)}-{re.escape(high)}")
            index += 1
        return found
