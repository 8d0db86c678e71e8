#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sandbox_snapshot
short_description: Make an image of what an agent's file system is now
version_added: 0.1.0
description:
  - The image has the agent's files but not its workspace, and the settings of the image that the agent was made of.
  - Nothing of the sandbox's own is in it - no environment, so no placeholder of a secret, no label, no C(/etc/hosts), no
    certificate; secrets are not in the agent in the first place.
  - A running agent is paused for the moment that it takes.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of the sandbox.
    type: str
    required: true
  tag:
    description: Tag of the image C(localhost/openshell-snapshot-NAME).
    type: str
    default: latest
  replace:
    description: Whether a snapshot of that tag is made anew; otherwise one that exists stays as it is.
    type: bool
    default: false
seealso:
  - module: openshell.sandbox.sandbox_container
"""

EXAMPLES = r"""
- name: Keep what the agent installed
  openshell.sandbox.sandbox_snapshot:
    sandbox_name: demo
    tag: with-tools
"""

RETURN = r"""
image:
  description: Name of the image.
  returned: success
  type: str
  sample: localhost/openshell-snapshot-demo:with-tools
image_id:
  description: Its id; empty in check mode where it does not exist.
  returned: success
  type: str
"""

import re
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils import lifecycle, snapshot
from ansible_collections.openshell.sandbox.plugins.module_utils.created_spec import Unreadable, described
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    diff,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.removal import known_id
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import LABEL_MANAGED, SandboxNames

TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")


def converge(module: AnsibleModule) -> Dict[str, Any]:
    params = module.params
    if not TAG.match(params["tag"]):
        raise ModuleFailure(f"the tag '{params['tag']}' is not allowed; use letters, digits, '_', '.' and '-'")
    podman = client(module)
    SandboxNames.of(params["sandbox_name"])
    names = SandboxNames.of(params["sandbox_name"], known_id(podman, params["sandbox_name"]))
    found = lifecycle.both(podman, names)
    if found is None:
        raise ModuleFailure(f"there is no sandbox '{names.name}' on this host; create it with create_sandbox.yml")
    wanted = snapshot.reference(names.name, params["tag"])
    present = podman.image_id(wanted)
    changed = present is None or params["replace"]
    image_id = present or ""
    if changed and not module.check_mode:
        try:
            uid_base = described(found[names.agent]).uid_base or 0
        except Unreadable as error:
            raise ModuleFailure(str(error)) from None
        labels = {LABEL_MANAGED: "true", snapshot.LABEL_OF: names.name}
        image_id = snapshot.take(podman, found[names.agent], uid_base, wanted, labels)
    return {
        "changed": changed,
        "image": wanted,
        "image_id": image_id,
        "diff": diff({"image": present or "absent"} if changed else {}, {"image": wanted} if changed else {}, wanted),
    }


def main() -> None:
    module = new_module(
        {
            "sandbox_name": {"type": "str", "required": True},
            "tag": {"type": "str", "default": "latest"},
            "replace": {"type": "bool", "default": False},
        }
    )
    run_module(module, lambda: converge(module))


if __name__ == "__main__":
    main()
