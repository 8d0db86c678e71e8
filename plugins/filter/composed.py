# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One value out of a variable and of those that add to it, by one rule for all."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, Hashable, List, Mapping, Tuple

import yaml
from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: composed
short_description: A variable together with all those that add to it
version_added: 0.1.0
description:
  - The variable itself is the base. Every variable whose name is that name, two underscores and anything is added to it,
    in the order of their names.
  - Mappings are merged key by key, down to the last level. Lists are joined; an item that is there already is not added
    again, and one with a C(name) or C(id) takes the place of an earlier item of it. Anything else replaces what was there.
  - A text in place of a mapping is the path of a YAML file on the controller that holds one. It is read only when there
    is something to merge it with.
positional: _input, name, default
options:
  _input:
    description: Variables, name to value, as in C(hostvars[inventory_hostname]).
    type: dict
    required: true
  name:
    description: Name of the variable.
    type: str
    required: true
  default:
    description: The result where neither it nor one that adds to it is set.
    type: raw
    required: true
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
# With openshell_env: {A: 1} in group_vars and openshell_env__mine: {B: 2} in host_vars this prints {A: 1, B: 2}.
- ansible.builtin.debug:
    msg: "{{ hostvars[inventory_hostname] | openshell.sandbox.composed('openshell_env', {}) }}"
"""

RETURN = r"""
_value:
  description: The value that all of them give together.
  type: raw
"""


class _Strict(yaml.SafeLoader):
    """A key twice in one mapping is refused: the second would silently take the place of the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Dict[Hashable, Any]:
        seen = set()
        for pair in node.value:
            key = pair[0]
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def composed(variables: Mapping[str, Any], name: str, default: Any) -> Any:
    """See the documentation. Raises AnsibleFilterError with one sentence that shows no value."""
    names = [one for one in variables if one == name or one.startswith(name + "__")]
    pieces = [(one, variables[one]) for one in sorted(names)]  # the name itself sorts before its longer forms
    pieces = [(one, value) for one, value in pieces if value is not None and value != ""]
    if not pieces:
        return default
    if len(pieces) == 1:
        return pieces[0][1]
    loaded = [(one, _file(one, value) if isinstance(value, str) else value) for one, value in pieces]
    result = loaded[0][1]
    for one, value in loaded[1:]:
        if _kind(value) != _kind(result) or not isinstance(value, (Mapping, list, tuple)):
            raise AnsibleFilterError(
                f"{one} is {_kind(value)} and {loaded[0][0]} is {_kind(result)}; only mappings with mappings and lists "
                "with lists can be merged"
            )
        result = merged(result, value)
    return result


def merged(base: Any, more: Any) -> Any:
    """*base* with *more* in it; neither is changed."""
    if isinstance(base, Mapping) and isinstance(more, Mapping):
        both = {key: merged(base[key], more[key]) for key in base if key in more}
        return {**base, **more, **both}
    if isinstance(base, (list, tuple)) and isinstance(more, (list, tuple)):
        return _joined(list(base), list(more))
    return more


def _joined(base: List[Any], more: List[Any]) -> List[Any]:
    result = list(base)
    names = [_name(item) for item in base]
    for item in more:
        if _name(item) and _name(item) in names:
            result[names.index(_name(item))] = item
        elif item not in result:
            result.append(item)
    return result


def _name(item: Any) -> str:
    """What a secret, a route or a provider is known by; a provider's id alone is a whole provider."""
    return str(item.get("name") or item.get("id") or "") if isinstance(item, Mapping) else str(item)


def _kind(value: Any) -> str:
    kinds: Tuple[Tuple[Any, str], ...] = ((Mapping, "a mapping"), ((list, tuple), "a list"))
    return next((word for kind, word in kinds if isinstance(value, kind)), "neither a list nor a mapping")


def _file(name: str, path: str) -> Any:
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as handle:
            return yaml.load(handle, Loader=_Strict) or {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise AnsibleFilterError(f"{name} names the file {path}, which cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        raise AnsibleFilterError(f"{name}: {path} is not YAML: {' '.join(str(error).split())}") from None


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"composed": composed}
