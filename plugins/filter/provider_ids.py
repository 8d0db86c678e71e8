# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which providers a policy was composed with."""

from __future__ import annotations

from typing import Any, Callable, Dict

from ansible_collections.openshell.sandbox.plugins.plugin_utils.providers import provider_ids

DOCUMENTATION = r"""
name: provider_ids
short_description: The providers that a policy was composed with
version_added: 0.1.0
description:
  - Returns the ids of C(_provider_ID) among the C(network_policies) of a policy's text.
positional: _input
options:
  _input:
    description: A policy's YAML text.
    type: str
    required: true
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
- ansible.builtin.debug:
    msg: "{{ in_force.policy | openshell.sandbox.provider_ids }}"
"""

RETURN = r"""
_value:
  description: Ids.
  type: list
  elements: str
"""


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"provider_ids": provider_ids}
