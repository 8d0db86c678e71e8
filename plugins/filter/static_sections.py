# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of a policy is settled when the sandbox is created."""

from __future__ import annotations

from typing import Any, Callable, Dict

import yaml

DOCUMENTATION = r"""
name: static_sections
short_description: The sections of a policy that cannot change on a living sandbox
version_added: 0.1.0
description:
  - Returns C(filesystem_policy), C(landlock) and C(process) of a policy's text; an absent one is empty.
positional: _input
options:
  _input:
    description: A policy's YAML text that the engine has accepted.
    type: str
    required: true
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
- ansible.builtin.assert:
    that: (old | openshell.sandbox.static_sections) == (new | openshell.sandbox.static_sections)
"""

RETURN = r"""
_value:
  description: Section name to content.
  type: dict
"""

SECTIONS = ("filesystem_policy", "landlock", "process")


def static_sections(text: str) -> Dict[str, Any]:
    """Section name → content."""
    policy = yaml.safe_load(text) or {}
    return {name: policy.get(name) or {} for name in SECTIONS}


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"static_sections": static_sections}
