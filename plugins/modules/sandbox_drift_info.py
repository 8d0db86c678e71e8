#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sandbox_drift_info
short_description: Tell which of several sandboxes are as they are declared
version_added: 0.1.0
description:
  - Takes the steps of the role C(sandbox) in check mode, for one sandbox after the other, in one task, and asks Podman for
    all of them at once. That is what makes a run of C(fleet.yml) fast that finds nothing to do.
  - Each sandbox is a host of the inventory; its variables and those of the play say what it is.
  - Tells nothing of a sandbox that it cannot judge, whose own run then finds out - one that is not to run, one whose host is
    reached over a connection or with C(become), and one with C(openshell_manage_packages).
  - This is an action plugin, for a task directly in a play.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.info_module
options:
  sandboxes:
    description: Inventory names of sandboxes that are all on the host to which the task goes.
    type: list
    elements: str
    required: true
seealso:
  - module: openshell.sandbox.steps
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
- name: Find sandboxes of this machine that need nothing
  openshell.sandbox.sandbox_drift_info:
    sandboxes: [frontend, backend]
  delegate_to: localhost
  register: drift
"""

RETURN = r"""
as_declared:
  description: Those of O(sandboxes) that run, are ready and would not be changed.
  returned: success
  type: list
  elements: str
  sample: [frontend]
"""
