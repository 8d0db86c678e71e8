#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: steps
short_description: Take the steps of several roles in one task
version_added: 0.1.0
description:
  - Does what the tasks of the named task files of this collection's roles say, in order, in one task.
  - On a local connection without C(become) the modules run in Ansible's own process; otherwise each runs on the host.
  - This is what makes the role C(sandbox) fast. It is no replacement for roles in a play.
  - This is an action plugin; a step is a module of this collection or M(ansible.builtin.set_fact), with C(when),
    C(register) and C(no_log).
extends_documentation_fragment:
  - openshell.sandbox._attributes
options:
  look:
    description: Steps that are always taken, each as C(ROLE/FILE) for the file C(roles/ROLE/tasks/FILE.yml).
    type: list
    elements: str
    default: []
  go:
    description: Steps that are taken after those where O(go_when) holds.
    type: list
    elements: str
    default: []
  go_when:
    description: A condition, as C(when) takes one.
    type: raw
    default: true
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
- name: Make the network and the authority
  openshell.sandbox.steps:
    go: [internal_network/main, authority/main]
"""

RETURN = r"""
went:
  description: Whether the steps of C(go) were taken.
  returned: success
  type: bool
changed_steps:
  description: Names of the steps that changed something, or would.
  returned: success
  type: list
  elements: str
facts:
  description: What the steps found out; nothing of a step that has C(no_log).
  returned: success
  type: dict
step:
  description: Name of the step that failed.
  returned: failure
  type: str
created:
  description: What was made before it failed, and is removed again.
  returned: failure
  type: list
  elements: dict
sidecar_log:
  description: The last lines of the sidecar that was removed.
  returned: failure
  type: list
  elements: str
"""
