#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: authority
short_description: The certificate authority with which sidecars intercept TLS
version_added: 0.1.0
description:
  - Makes sure that the Podman secret with the authority's key and certificate exists.
  - The key is made by the proxy image in a container without a network and goes into the secret through a pipe; it is
    in no output, argument, file or log.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of the sandbox that uses it.
    type: str
    required: true
  sandbox_id:
    description: Id of the sandbox; the name unless told otherwise.
    type: str
  scope:
    description: One authority for all sandboxes of the host and user, or one for this sandbox.
    type: str
    choices: [host, sandbox]
    default: host
  image:
    description: Id or name of the proxy image.
    type: str
    required: true
  ulimits:
    description: Resource limits for the short-lived container.
    type: list
    elements: str
    default: []
seealso:
  - module: openshell.sandbox.sandbox_container
"""

EXAMPLES = r"""
- name: Have an authority for the host
  openshell.sandbox.authority:
    sandbox_name: demo
    image: localhost/openshell-proxy:0123456789abcdef
"""

RETURN = r"""
secret:
  description: Name of the Podman secret; never its value.
  returned: success
  type: str
  sample: openshell-authority
created:
  description: What this run made.
  returned: success
  type: list
  elements: dict
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    diff,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import (
    AUTHORITY_SECRET,
    LABEL_MANAGED,
    SandboxNames,
    is_ours,
)


def new_authority(podman: Podman, image: str, ulimits: list[str]) -> bytes:
    """Key and certificate in PEM, from the proxy image's own command; the bytes never leave this process's memory."""
    limits = [word for limit in ulimits for word in ("--ulimit", limit)]
    confined = ["--rm", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    log = ["--log-driver", "none", "--http-proxy=false", "--pull", "never"]
    return podman.run(["run", *confined, *log, *limits, image, "authority", "new"]).stdout.encode()


def converge(module: AnsibleModule) -> Dict[str, Any]:
    params = module.params
    names = SandboxNames.of(params["sandbox_name"], params["sandbox_id"])
    podman = client(module)
    own = params["scope"] == "sandbox"
    secret = names.authority_secret if own else AUTHORITY_SECRET
    labels = names.labels() if own else {LABEL_MANAGED: "true"}
    made = podman.secret(secret) is None
    if made and not module.check_mode:
        with podman.lock(looks=["secret"]):
            made = podman.secret(secret) is None  # somebody else may have had the lock before
            if made:
                podman.create_secret(secret, new_authority(podman, params["image"], params["ulimits"]), labels)
    present = podman.secret(secret)
    if present is not None and not is_ours(present["Spec"].get("Labels")):
        raise ModuleFailure(f"a secret {secret} exists and is not ours; remove it")
    return {
        "changed": made,
        "diff": diff({} if made else {"secret": secret}, {"secret": secret}, secret),
        "secret": secret,
        "created": [{"kind": "secret", "name": secret}] if made and own else [],
    }


def main() -> None:
    module = new_module(
        {
            "sandbox_name": {"type": "str", "required": True},
            "sandbox_id": {"type": "str"},
            "scope": {"type": "str", "choices": ["host", "sandbox"], "default": "host"},
            "image": {"type": "str", "required": True},
            "ulimits": {"type": "list", "elements": "str", "default": []},
        }
    )
    run_module(module, lambda: converge(module))


if __name__ == "__main__":
    main()
