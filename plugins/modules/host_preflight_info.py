#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_preflight_info
short_description: Whether a host and a sandbox's description will do
version_added: 0.1.0
description:
  - Checks everything that can be known before anything is created and fails with one sentence that says what to do.
  - Changes nothing.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.info_module
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of the sandbox; without it only the host is checked.
    type: str
  sandbox_id:
    description: Id of the sandbox; the name unless told otherwise.
    type: str
  bridge_subnet:
    description: Subnet wanted for the bridge network C(openshell); empty lets Podman choose.
    type: str
    default: ""
  capabilities:
    description: Capabilities (or the presets V(packages) and V(containers)) wanted for the agent.
    type: list
    elements: str
    default: []
  mounts:
    description: Directories or files of the host wanted inside the agent.
    type: list
    elements: dict
    default: []
    suboptions:
      source:
        description: Absolute path on the host.
        type: path
        required: true
      target:
        description: Absolute path inside.
        type: str
        required: true
      read_only:
        description: Whether the agent may only read it.
        type: bool
        default: true
  env:
    description: Environment variables wanted for the agent.
    type: dict
    default: {}
  memory:
    description: Memory limit, a number with k, m or g.
    type: str
    default: ""
  cpus:
    description: Number of processors.
    type: str
    default: ""
  pids_limit:
    description: Number of processes.
    type: int
    default: 2048
  dns_servers:
    description: Resolvers that the user names instead of the host's own.
    type: list
    elements: str
    default: []
  gateway_endpoint:
    description: Where the sidecar's TCP forward leads, as V(http://host:port).
    type: str
    default: ""
  proxy_limits:
    description: Limits of the sidecar's proxy, name to number.
    type: dict
    default: {}
  upstream_proxy:
    description: The operator's own proxy, as V(http://host:port).
    type: str
    default: ""
  upstream_no_proxy:
    description: Hosts, C(.suffixes) and networks that are reached without it.
    type: list
    elements: str
    default: []
  upstream_proxy_auth:
    description: C(user:password) for it.
    type: str
    default: ""
  upstream_ca_bundle:
    description: PEM bundle that upstream connections trust as well; empty detects it, V(none) switches it off.
    type: str
    default: ""
seealso:
  - module: openshell.sandbox.sandbox_info
"""

EXAMPLES = r"""
- name: Refuse early what cannot work
  openshell.sandbox.host_preflight_info:
    sandbox_name: demo
    capabilities: [packages]
  register: host
"""

RETURN = r"""
podman_version:
  description: Version of Podman on the host.
  returned: success
  type: str
  sample: 4.3.1
rootless:
  description: Whether Podman runs without root.
  returned: success
  type: bool
runtime:
  description: OCI runtime to ask for; empty is Podman's own choice.
  returned: success
  type: str
capabilities:
  description: The agent's capabilities with presets expanded.
  returned: success
  type: list
  elements: str
nested:
  description: Whether the agent is to run containers of its own.
  returned: success
  type: bool
mounts:
  description: The agent's mounts with symbolic links resolved.
  returned: success
  type: list
  elements: dict
upstream_ca_bundle:
  description: Path of the bundle that upstream connections trust as well, or empty.
  returned: success
  type: str
"""

import os
import shutil
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils import preflight
from ansible_collections.openshell.sandbox.plugins.module_utils.kept import keep, podman_configuration, recall
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNames

OPTIONS: Dict[str, Dict[str, Any]] = {
    "sandbox_name": {"type": "str"},
    "sandbox_id": {"type": "str"},
    "bridge_subnet": {"type": "str", "default": ""},
    "capabilities": {"type": "list", "elements": "str", "default": []},
    "mounts": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "source": {"type": "path", "required": True},
            "target": {"type": "str", "required": True},
            "read_only": {"type": "bool", "default": True},
        },
    },
    "env": {"type": "dict", "default": {}},
    "memory": {"type": "str", "default": ""},
    "cpus": {"type": "str", "default": ""},
    "pids_limit": {"type": "int", "default": 2048},
    "dns_servers": {"type": "list", "elements": "str", "default": []},
    "gateway_endpoint": {"type": "str", "default": ""},
    "proxy_limits": {"type": "dict", "default": {}},
    "upstream_proxy": {"type": "str", "default": ""},
    "upstream_no_proxy": {"type": "list", "elements": "str", "default": []},
    "upstream_proxy_auth": {"type": "str", "default": "", "no_log": True},
    "upstream_ca_bundle": {"type": "str", "default": ""},
}


def know_host(podman: Podman) -> None:
    """Let the client know what ``podman info`` (up to a second) said before, while Podman and its configuration last.

    Only in a series of modules, which is what has to be fast.
    """
    if podman.memory is None:
        return
    files = [shutil.which(podman.executable) or "", shutil.which("podman") or "", *podman_configuration()]
    moments = [(file, os.stat(file).st_mtime_ns) for file in files if os.path.exists(file)]
    variables = sorted((key, value) for key, value in os.environ.items() if key.startswith("CONTAINERS_"))
    question = ["info", podman.command(), os.geteuid(), moments, variables, os.environ.get("XDG_RUNTIME_DIR")]
    found = recall(question)
    if found is None:
        keep(question, podman.info)
    else:
        podman.recall_info(found)


def check_host(podman: Podman, params: Dict[str, Any]) -> str:
    """Check the host; return the runtime to ask for."""
    preflight.check_podman(podman)
    preflight.check_subordinate_ids(podman)
    runtime = preflight.choose_runtime(podman, params["runtime"])
    preflight.check_bridge_subnet(podman, params["bridge_subnet"], preflight.host_routes())
    return runtime


def check_wish(params: Dict[str, Any]) -> None:
    preflight.check_limits(params["memory"], params["cpus"], params["pids_limit"])
    preflight.check_environment(params["env"])
    preflight.check_gateway_endpoint(params["gateway_endpoint"])
    preflight.check_addresses(params["dns_servers"], "openshell_dns_servers")
    preflight.check_proxy_limits(params["proxy_limits"])
    preflight.check_upstream_proxy(params["upstream_proxy"], params["upstream_no_proxy"], params["upstream_proxy_auth"])


def examine(module: AnsibleModule) -> Dict[str, Any]:
    params = module.params
    names = SandboxNames.of(params["sandbox_name"], params["sandbox_id"]) if params["sandbox_name"] else None
    check_wish(params)
    capabilities = preflight.expand_capabilities(params["capabilities"])
    podman = client(module)
    know_host(podman)
    runtime = check_host(podman, params)
    mounts = preflight.check_mounts(params["mounts"], preflight.storage_paths(podman.info))
    bundle = preflight.upstream_ca_bundle(params["upstream_ca_bundle"], os.environ)
    if names is not None:
        preflight.check_not_taken(podman, names)
    return {
        "changed": False,
        "podman_version": podman.info["version"]["Version"],
        "rootless": podman.rootless,
        "runtime": runtime,
        "capabilities": capabilities,
        "nested": any(word.lower() == "containers" for word in params["capabilities"]),
        "mounts": [{"source": one.source, "target": one.target, "read_only": one.read_only} for one in mounts],
        "upstream_ca_bundle": bundle,
    }


def main() -> None:
    module = new_module(OPTIONS)

    def body() -> Dict[str, Any]:
        try:
            return examine(module)
        except preflight.Refused as refused:
            raise ModuleFailure(str(refused)) from None

    run_module(module, body)


if __name__ == "__main__":
    main()
