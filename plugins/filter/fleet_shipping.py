# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which host makes the images of a fleet, and which get them from it."""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping

DOCUMENTATION = r"""
name: fleet_shipping
short_description: Who makes the images of a fleet and who gets them
version_added: 0.1.0
description:
  - A host that has all images gives them to those that lack one. Where none has, the controller makes them if it is a
    host of the fleet, else the first host.
  - A host that was not asked, or did not answer, is left out.
positional: _input, first
options:
  _input:
    description: Variables of all hosts, C(hostvars), with C(openshell_fleet_images) as M(openshell.sandbox.image_info) gives it.
    type: dict
    required: true
  first:
    description: Host to the sandbox that speaks for it.
    type: dict
    required: true
seealso:
  - module: openshell.sandbox.image_info
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
- ansible.builtin.set_fact:
    shipping: "{{ hostvars | openshell.sandbox.fleet_shipping({'server': 'frontend'}) }}"
"""

RETURN = r"""
_value:
  description: C(maker) and C(receivers), inventory names of sandboxes; C(missing), whether the maker lacks one as well.
  type: dict
"""


def fleet_shipping(variables: Mapping[str, Any], first: Mapping[str, str]) -> Dict[str, Any]:
    """See the documentation."""
    looked = {one: (variables[one].get("openshell_fleet_images") or {}).get("images") for one in first.values()}
    lacking = [one for one, images in looked.items() if images and not all(images.values())]
    ready = [one for one, images in looked.items() if images and all(images.values())]
    lacking.sort(key=lambda one: first.get("localhost") != one)
    maker = (ready + lacking)[0] if ready or lacking else ""
    receivers = [one for one in lacking if one != maker]
    return {"maker": maker if receivers else "", "receivers": receivers, "missing": maker in lacking}


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"fleet_shipping": fleet_shipping}
