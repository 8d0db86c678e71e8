# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Globs as OpenShell's policy engine understands them, translated to regular expressions (spec 1.11).

A pattern that cannot be translated is an error at load: a deny rule that silently never matches would open the door.
"""

from __future__ import annotations

import re

SEPARATOR_PATH = "/"
SEPARATOR_NAME = "."


class GlobError(ValueError):
    """A glob with an unbalanced bracket or brace, or a trailing backslash."""


def compile_glob(pattern: str, separator: str = SEPARATOR_PATH) -> re.Pattern[str]:
    """The anchored, case-sensitive expression for *pattern*; *separator* is what ``*`` does not cross.

    With the separator ``.`` (query values and names) ``/`` is an ordinary character.
    """
    return re.compile(_Translator(pattern, separator).translate(), re.DOTALL)


class _Translator:
    def __init__(self, pattern: str, separator: str) -> None:
        self.pattern = pattern
        self.sep = re.escape(separator)
        self.raw_sep = separator
        self.any = f"[^{self.sep}]"
        self.depth = 0

    def translate(self) -> str:
        if "\0" in self.pattern:
            raise GlobError("a NUL character")
        if self.pattern == "**":
            return ".*"
        out: list[str] = []
        index = 0
        while index < len(self.pattern):
            index = self._token(index, out)
        if self.depth:
            raise GlobError("an unclosed {")
        return "".join(out)

    def _token(self, index: int, out: list[str]) -> int:
        char = self.pattern[index]
        if char == "*":
            return self._stars(index, out)
        if char == "?":
            out.append(self.any)
        elif char == "[":
            return self._class(index, out)
        elif char == "{":
            self.depth += 1
            out.append("(?:")
        elif char == "}" and self.depth:
            self.depth -= 1
            out.append(")")
        elif char == "}":
            raise GlobError("a } without {")
        elif char == "," and self.depth:
            out.append("|")
        elif char == "\\":
            if index + 1 >= len(self.pattern):
                raise GlobError("a backslash at the end")
            out.append(re.escape(self.pattern[index + 1]))
            return index + 2
        else:
            out.append(re.escape(char))
        return index + 1

    def _stars(self, index: int, out: list[str]) -> int:
        end = index
        while end < len(self.pattern) and self.pattern[end] == "*":
            end += 1
        starts = index == 0 or self.pattern[index - 1] == self.raw_sep
        ends = end == len(self.pattern) or self.pattern[end] == self.raw_sep
        if end - index != 2 or not starts or not ends:
            out.append(f"{self.any}*" * (end - index))
            return end
        if index == 0:  # leading **/
            out.append(f"(?:{self.sep}?|.*{self.sep})")
            return end + 1
        if end == len(self.pattern):  # trailing /**: the separator is there already
            out.append(".*")
            return end
        out[-1] = f"(?:{self.sep}|{self.sep}.*{self.sep})"  # /**/ takes both separators
        return end + 1

    def _class(self, index: int, out: list[str]) -> int:
        start = index + 1
        negated = self.pattern[start : start + 1] in ("!", "^")
        first = start + negated
        end = self.pattern.find("]", first + 1)
        if end < 0 or first >= len(self.pattern):
            raise GlobError("an unclosed [")
        members = re.sub(r"([\\\[\]^&~|])", r"\\\1", self.pattern[first:end])
        try:
            re.compile(f"[{members}]")
        except re.error:
            raise GlobError(f"a bad range in [{self.pattern[first:end]}]") from None
        out.append(f"[{'^' if negated else ''}{members}]")
        return end + 1
