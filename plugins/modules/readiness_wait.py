#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: readiness_wait
short_description: Wait until a sidecar says that it is ready
version_added: 0.1.0
description:
  - Waits for the sentinel C(.ready), which the sidecar writes only when every listener is bound.
  - A sentinel from before a crash or a reboot does not count - it names the process that wrote it.
  - Fails with the sidecar's last log lines.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.info_module
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of the sandbox.
    type: str
    required: true
  sandbox_id:
    description: Id of the sandbox; the name unless told otherwise.
    type: str
  timeout:
    description: Seconds to wait at most.
    type: int
    default: 30
seealso:
  - module: openshell.sandbox.sandbox_container
"""

EXAMPLES = r"""
- name: Wait for the sidecar
  openshell.sandbox.readiness_wait:
    sandbox_name: demo
"""

RETURN = r"""
sentinel:
  description: What the sidecar wrote.
  returned: success
  type: dict
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.readiness import (
    NotReady,
    sidecar_ready,
    wait_ready,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNames


def wait(module: AnsibleModule) -> Dict[str, Any]:
    names = SandboxNames.of(module.params["sandbox_name"], module.params["sandbox_id"])
    podman = client(module)
    try:
        if module.check_mode:  # there may be no sidecar yet; one that is there says what it says
            sentinel = sidecar_ready(podman, names.proxy, podman.volume_path(names.tls_volume)) or {}
        else:
            sentinel = wait_ready(podman, names.proxy, names.tls_volume, module.params["timeout"])
    except NotReady as error:
        raise ModuleFailure(str(error)) from None
    if sentinel.get("policy_error") and not module.check_mode:  # the run may be what gives it a better one
        raise ModuleFailure(f"the sidecar refuses its policy and denies everything: {sentinel['policy_error']}")
    return {"changed": False, "sentinel": sentinel}


def main() -> None:
    module = new_module(
        {
            "sandbox_name": {"type": "str", "required": True},
            "sandbox_id": {"type": "str"},
            "timeout": {"type": "int", "default": 30},
        }
    )
    run_module(module, lambda: wait(module))


if __name__ == "__main__":
    main()
