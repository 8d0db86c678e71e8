# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filter ``image_name``: the name of an image that is built here, given by what it is built from."""

from __future__ import annotations

DOCUMENTATION = r"""
name: image_name
short_description: Name of an image by the content that it is built from
version_added: 0.1.0
description:
  - The same content gives the same name, so an image that is there needs no build and a change builds a new one.
options:
  _input:
    description: All that goes into the image.
    type: list
    required: true
  kind:
    description: What the image is for.
    type: str
    choices: [proxy, agent, base]
    required: true
positional: kind
seealso:
  - module: openshell.sandbox.image
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
- name: Name a base image by its packages
  ansible.builtin.debug:
    msg: "{{ [['bash', 'git']] | openshell.sandbox.image_name('base') }}"
"""

RETURN = r"""
_value:
  description: The name, with 64 bits of the content's SHA-256 digest as its tag.
  type: str
  sample: localhost/openshell-base:1bc9d6f353a14309
"""

import hashlib
import json
from typing import Any, Callable, Dict, List


def image_name(parts: List[Any], kind: str) -> str:
    """See the documentation."""
    return f"localhost/openshell-{kind}:{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"image_name": image_name}
