# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules over method, path and query, compiled so that most requests need two look-ups and one match (spec 1.12, 1.13)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from openshell_proxy.policy.globs import SPECIAL, compile_glob, translate
from openshell_proxy.policy.linear import Matches, compile_linear, harmless
from openshell_proxy.policy.model import Request, Rule

Answer = TypeVar("Answer")
_ANY = "**"


def query_holds(rule: Rule, query: Mapping[str, tuple[str, ...]], denying: bool) -> bool:
    """Every key of the rule is there; of its values an allow rule needs all to match, a deny rule any."""
    for key, matcher in rule.query:
        values = query.get(key)
        if not values:
            return False
        matching = map(matcher.matches, values)
        if not (any(matching) if denying else all(matching)):
            return False
    return True


def condition_holds(rule: Rule, host: str, port: int, request: Request, denying: bool) -> bool:
    """The rule's ``when``. What cannot be evaluated does not allow, and does deny."""
    if rule.when is None:
        return True
    try:
        return rule.when(host, port, request)
    except Exception:  # whatever a library raises for whatever a request holds: the closed side
        return denying


class _Paths(Generic[Answer]):
    """The rules for one method: by exact path, by all globs in one expression, and those with more conditions."""

    __slots__ = ("anything", "conditional", "exact", "glob", "glob_answers", "one_by_one")

    def __init__(self, rules: Iterable[tuple[Rule, Answer]]) -> None:
        self.anything: Answer | None = None
        self.exact: dict[str, Answer] = {}
        self.conditional: list[tuple[Rule, Matches | None, Answer]] = []
        globs: dict[str, Answer] = {}
        for rule, answer in rules:
            if rule.query or rule.when is not None:
                pattern = None if rule.path == _ANY else compile_glob(rule.path)
                self.conditional.append((rule, pattern, answer))
            elif rule.path == _ANY:
                self.anything = self.anything or answer
            elif SPECIAL.isdisjoint(rule.path):
                self.exact.setdefault(rule.path, answer)
            else:
                globs.setdefault(translate(rule.path), answer)
        together = bool(globs) and all(map(harmless, globs))
        self.glob = re.compile("|".join(f"({text})" for text in globs), re.DOTALL) if together else None
        self.glob_answers = tuple(globs.values())
        self.one_by_one = () if together else tuple((compile_linear(text), globs[text]) for text in globs)

    def find(self, host: str, port: int, request: Request, denying: bool) -> Answer | None:
        path = request.path
        found = self.exact.get(path)
        if found is not None:
            return found
        if self.glob is not None:
            match = self.glob.fullmatch(path)
            if match is not None and match.lastindex is not None:
                return self.glob_answers[match.lastindex - 1]
        for each, answer in self.one_by_one:
            if each.fullmatch(path):
                return answer
        if self.anything is not None:
            return self.anything
        for rule, pattern, answer in self.conditional:
            if (
                (pattern is None or pattern.fullmatch(path))
                and query_holds(rule, request.query, denying)
                and condition_holds(rule, host, port, request, denying)
            ):
                return answer
        return None


class Table(Generic[Answer]):
    """Rules of all methods; *answer* makes, once and for all, what a rule that matches is answered with."""

    __slots__ = ("_methods", "_other", "denying")

    def __init__(self, rules: Iterable[Rule], answer: Callable[[Rule], Answer], denying: bool) -> None:
        self.denying = denying
        answered = [(rule, answer(rule)) for rule in rules]
        named = {rule.method for rule, _ in answered} - {"*"}
        if "GET" in named:
            named.add("HEAD")  # HEAD rides on GET, for allow and for deny
        self._methods = {
            name: _Paths(
                (rule, found)
                for rule, found in answered
                if rule.method in ("*", name) or (name == "HEAD" and rule.method == "GET")
            )
            for name in named
        }
        self._other: _Paths[Answer] = _Paths((rule, found) for rule, found in answered if rule.method == "*")

    def find(self, host: str, port: int, request: Request) -> Answer | None:
        """The answer of a rule that matches, or None."""
        paths = self._methods.get(request.method)
        if paths is None:
            paths = self._methods.get(request.method.upper(), self._other)
        return paths.find(host, port, request, self.denying)
