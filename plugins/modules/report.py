#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: report
short_description: Print a text to the terminal as it is
version_added: 0.1.0
description:
  - Prints on the controller, without the wrapping of a task's result, so that tables and JSON can be read.
  - This is an action plugin; nothing runs on the host.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.info_module
options:
  text:
    description: What to print.
    type: str
    required: true
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
- name: Say hello
  openshell.sandbox.report:
    text: hello
"""

RETURN = r""" # """
