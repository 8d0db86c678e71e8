# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""YAML with line numbers: strict reading of one policy file, node by node, collecting every error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from openshell_proxy.policy.model import PolicyError

MAX_POLICY_BYTES = 262_144

# A value that its YAML tag does not fit, like ``!!int x``: equal to nothing that a key may hold.
_UNREADABLE = object()


class Reader:
    """Reads YAML nodes of one source and gathers ``SOURCE:LINE: message`` errors instead of stopping at the first."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.errors: list[str] = []
        self.notices: list[str] = []
        self._read = 0

    def compose(self, text: str) -> yaml.MappingNode:
        """The document's root mapping. Raises :class:`PolicyError`: without it there is nothing to read."""
        if len(text.encode("utf-8", "surrogatepass")) > MAX_POLICY_BYTES:
            raise PolicyError([f"{self.source}:1: the policy is larger than {MAX_POLICY_BYTES} bytes"])
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise PolicyError([f"{self.source}:{line}: not YAML: {error.problem}"]) from None
        except yaml.YAMLError as error:
            raise PolicyError([f"{self.source}:1: not YAML: {' '.join(str(error).split())}"]) from None
        except RecursionError:
            raise PolicyError([f"{self.source}:1: not YAML: too deeply nested"]) from None
        if not isinstance(root, yaml.MappingNode):
            raise PolicyError([f"{self.source}:1: a policy is a mapping with version and network_policies"])
        return root

    def error(self, node: yaml.Node, message: str) -> None:
        self.errors.append(f"{self.source}:{node.start_mark.line + 1}: {message}")

    def notice(self, node: yaml.Node, message: str) -> None:
        self.notices.append(f"{self.source}:{node.start_mark.line + 1}: {message}")

    def mapping(self, node: yaml.Node, what: str, known: Iterable[str] | None = None) -> dict[str, yaml.Node]:
        """Key → value node; unknown keys (with the nearest valid one), duplicates and other shapes are errors."""
        if not isinstance(node, yaml.MappingNode):
            self.error(node, f"{what} must be a mapping")
            return {}
        names = list(known) if known is not None else None
        found: dict[str, yaml.Node] = {}
        self._count(node)
        for key_node, value in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.error(key_node, f"{what} has a key that is not a text")
                continue
            key = key_node.value
            if key in found:
                self.error(key_node, f"{what} has '{key}' twice")
            elif names is not None and key not in names:
                import difflib  # for who has made a mistake, and not at every start

                near = difflib.get_close_matches(key, names, 1)
                hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(names)}"
                self.error(key_node, f"{what} has an unknown key '{key}'{hint}")
            else:
                found[key] = value
        return found

    def items(self, node: yaml.Node | None, what: str) -> list[yaml.Node]:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.error(node, f"{what} must be a list")
            return []
        self._count(node)
        return list(node.value)

    def _count(self, node: yaml.CollectionNode) -> None:
        """Refuse what can only be had by naming anchors again and again."""
        self._read += len(node.value)
        if self._read > MAX_POLICY_BYTES:
            raise PolicyError([f"{self.source}:{node.start_mark.line + 1}: the aliases of the policy say too much"])

    def value(self, node: yaml.Node) -> Any:
        """The plain value of a scalar; of anything else, one that is equal to nothing."""
        if not isinstance(node, yaml.ScalarNode):
            return _UNREADABLE
        if node.tag == "tag:yaml.org,2002:str":
            return node.value
        try:
            return yaml.constructor.SafeConstructor().construct_object(node)
        except (yaml.YAMLError, ValueError, KeyError, OverflowError, AttributeError):
            return _UNREADABLE

    def text(self, node: yaml.Node | None, what: str, default: str = "") -> str:
        if node is None:
            return default
        value = self.value(node)
        if not isinstance(value, str):
            self.error(node, f"{what} must be a text")
            return default
        return value

    def texts(self, node: yaml.Node | None, what: str) -> list[str]:
        return [self.text(item, what) for item in self.items(node, what)]

    def boolean(self, node: yaml.Node | None, what: str, default: bool = False) -> bool:
        if node is None:
            return default
        value = self.value(node)
        if not isinstance(value, bool):
            self.error(node, f"{what} must be boolean, true or false")
            return default
        return value

    def whole(self, node: yaml.Node | None, what: str, default: int, low: int, high: int) -> int:
        """A whole number of *low* to *high*."""
        if node is None:
            return default
        value = self.value(node)
        if type(value) is not int or not low <= value <= high:
            kind = "positive integer" if low == 1 else "whole number"
            self.error(node, f"{what} must be a {kind}, from {low} to {high}")
            return default
        return value

    def choice(self, node: yaml.Node | None, what: str, choices: Iterable[str], default: str) -> str:
        value = self.text(node, what, default)
        names = list(choices)
        if value not in names:
            assert node is not None
            self.error(node, f"{what} '{value}' is not known; use {' or '.join(name for name in names if name)}")
            return default
        return value
