# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What became of a run of fleet.yml, a line for whatever is not as it is declared."""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping, Sequence

DOCUMENTATION = r"""
name: fleet_report
short_description: The last words of a run over a fleet
version_added: 0.1.0
description:
  - Counts the sandboxes that are as they are declared, and says of each other one, in a line, why it is not.
positional: _input, plan, as_declared
options:
  _input:
    description: Variables of all hosts, C(hostvars). A sandbox without C(openshell_fleet_outcome) did not come to an end.
    type: dict
    required: true
  plan:
    description: What P(openshell.sandbox.fleet_plan#filter) gave.
    type: dict
    required: true
  as_declared:
    description: Sandboxes that were found to be as they are declared, and to which nothing more was done.
    type: list
    elements: str
    required: true
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
- openshell.sandbox.report:
    text: "{{ (hostvars | openshell.sandbox.fleet_report(plan, [])).text }}"
"""

RETURN = r"""
_value:
  description:
    - C(text), one line and one more for each sandbox or host of which something went wrong.
    - C(failures), inventory name of each of those to a sentence.
  type: dict
"""


def fleet_report(variables: Mapping[str, Any], plan: Mapping[str, Any], as_declared: Sequence[str]) -> Dict[str, Any]:
    """See the documentation."""
    sandboxes, hosts, lines = {}, {}, []
    for sandbox, host in plan["aimed"].items():
        if sandbox in as_declared:
            continue
        outcome = plan["problems"].get(sandbox) or variables[sandbox].get("openshell_fleet_outcome")
        if outcome is None:
            outcome = f"it was not reached: {host} does not answer"
            hosts[host] = "some of its sandboxes were not reached"
        if outcome:
            sandboxes[sandbox] = " ".join(str(outcome).split())
            lines.append(f"  {sandbox} on {host}: {sandboxes[sandbox]}")
    for host in plan["hosts"]:
        outcome = variables[host].get("openshell_fleet_outcome") if host in variables else None
        if outcome:
            hosts[host] = " ".join(str(outcome).split())
            lines.append(f"  {host}: {hosts[host]}")
    count, where = len(plan["aimed"]), len(set(plan["aimed"].values()))
    head = f"Fleet: {count} sandbox{'' if count == 1 else 'es'} on {where} host{'' if where == 1 else 's'}"
    head += f": {count - len(sandboxes)} as declared, {len(sandboxes)} not"
    return {"text": "\n".join([head, *lines]), "failures": {**hosts, **sandboxes}}


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"fleet_report": fleet_report}
