# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""YAML with line numbers: strict reading of one policy file, node by node, collecting every error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import yaml

from openshell_proxy.policy.model import PolicyError

MAX_POLICY_BYTES = 262_144


class Reader:
    """Reads YAML nodes of one source and gathers ``SOURCE:LINE: message`` errors instead of stopping at the first."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.errors: list[str] = []
        self.notices: list[str] = []

    def compose(self, text: str) -> yaml.MappingNode:
        """The document's root mapping. Raises :class:`PolicyError`: without it there is nothing to read."""
        if len(text.encode()) > MAX_POLICY_BYTES:
            raise PolicyError([f"{self.source}:1: the policy is larger than {MAX_POLICY_BYTES} bytes"])
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise PolicyError([f"{self.source}:{line}: not YAML: {error.problem or error.context}"]) from None
        except yaml.YAMLError as error:
            raise PolicyError([f"{self.source}:1: not YAML: {' '.join(str(error).split())}"]) from None
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
        for key_node, value in node.value:
            key = str(key_node.value)
            if key in found:
                self.error(key_node, f"{what} has '{key}' twice")
            elif names is not None and key not in names:
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
        return list(node.value)

    def value(self, node: yaml.Node) -> Any:
        """The plain value of a scalar; None (with an error) for anything else."""
        if not isinstance(node, yaml.ScalarNode):
            return None
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(node)
        except yaml.YAMLError:
            return node.value
        finally:
            loader.dispose()

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

    def boolean(self, node: yaml.Node | None, what: str) -> bool:
        value = False if node is None else self.value(node)
        if not isinstance(value, bool):
            self.error(node, f"{what} must be true or false")  # type: ignore[arg-type]
            return False
        return value

    def choice(self, node: yaml.Node | None, what: str, choices: Iterable[str], default: str) -> str:
        value = self.text(node, what, default)
        names = list(choices)
        if value not in names:
            assert node is not None
            self.error(node, f"{what} '{value}' is not known; use {' or '.join(name for name in names if name)}")
            return default
        return value
