# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What one run of fleet.yml is about: which sandboxes of the inventory, and on which hosts."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

DOCUMENTATION = r"""
name: fleet_plan
short_description: The sandboxes of an inventory, by host
version_added: 0.1.0
description:
  - Reads C(openshell_host) and C(sandbox_name) of every sandbox of the inventory.
  - What is wrong with one of them is told of that one and does not hinder the others.
positional: _input, members, more_hosts, aimed
options:
  _input:
    description: Variables of all hosts of the inventory, C(hostvars).
    type: dict
    required: true
  members:
    description: Names of the sandboxes in the inventory, C(groups.openshell_sandboxes).
    type: list
    elements: str
    required: true
  more_hosts:
    description: Hosts that count although no sandbox of the inventory is on them, C(groups.openshell_hosts).
    type: list
    elements: str
    required: true
  aimed:
    description: The hosts that the run is limited to.
    type: list
    elements: str
    required: true
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
- ansible.builtin.set_fact:
    plan: "{{ hostvars | openshell.sandbox.fleet_plan(groups.openshell_sandboxes, [], ansible_play_hosts_all) }}"
"""

RETURN = r"""
_value:
  description:
    - C(hosts), host to the names that its sandboxes shall have; all of the inventory, whatever the run is limited to.
    - C(aimed), inventory name of each sandbox that this run is about to its host.
    - C(beyond), inventory names of sandboxes that it is not about, although it is about their host.
    - C(first), host to the first of those on it, which speaks for the host.
    - C(looks), some of those on each host, as many as the controller has processors, to the sandboxes of the same host that
      it looks at; C(first) is one of them.
    - C(problems), inventory name to a sentence.
    - C(own_agent_images), whether each of those that this run is about has an image of its own.
  type: dict
"""


def fleet_plan(
    variables: Mapping[str, Any], members: Sequence[str], more_hosts: Sequence[str], aimed: Sequence[str]
) -> Dict[str, Any]:
    """See the documentation."""
    found = {one: _read(variables, one) for one in members}
    problems = {one: read[2] for one, read in found.items() if read[2]}
    chosen = {one: read[1] for one, read in found.items() if one in aimed}
    hosts: Dict[str, List[str]] = {host: [] for host in more_hosts}
    for one, (name, host, problem) in found.items():
        if problem:
            continue
        twins = [other for other in members if other != one and found[other][:2] == (name, host)]
        if twins:
            problems[one] = (
                f"{one} and {', '.join(twins)} are both the sandbox {name} on {host}; give one a sandbox_name of its own"
            )
        hosts.setdefault(host, []).append(name)
    there: Dict[str, List[str]] = {}
    for one, host in chosen.items():
        if one not in problems:
            there.setdefault(host, []).append(one)
    return {
        "hosts": hosts,
        "aimed": chosen,
        "first": {host: those[0] for host, those in there.items()},
        "looks": {looker: share for those in there.values() for looker, share in _shares(those, os.cpu_count() or 1)},
        "beyond": [one for one, read in found.items() if one not in aimed and read[1] in aimed],
        "problems": problems,
        "own_agent_images": all(variables[one].get("openshell_image") for one in chosen if one not in problems),
    }


def _shares(members: Sequence[str], count: int) -> List[Tuple[str, List[str]]]:
    """*members* dealt out to the first *count* of them."""
    return [(member, list(members[at::count])) for at, member in enumerate(members[:count])]


def _read(variables: Mapping[str, Any], member: str) -> Tuple[str, str, str]:
    """Name, host and what is wrong of one sandbox."""
    try:
        own = variables[member]
        name, host = str(own.get("sandbox_name") or member), str(own.get("openshell_host") or "localhost")
    except Exception as error:  # a template of the user's; only this sandbox suffers from it
        return member, "", f"its sandbox_name or openshell_host cannot be told: {' '.join(str(error).split())}"
    if host != "localhost" and host not in variables:
        return name, host, f"its openshell_host {host} is not a host of the inventory"
    return name, host, ""


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"fleet_plan": fleet_plan}
