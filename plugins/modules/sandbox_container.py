#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sandbox_container
short_description: One container of a sandbox, sidecar or agent
version_added: 0.1.0
description:
  - Makes the container be what is described - created, replaced where the description changed or a live audit
    disagrees, repaired in place where that is enough (a network connected by hand, a container that stopped).
  - Every container has no capability but those named, C(no_new_privs), a user namespace of its own, no C(/etc/hosts)
    of the host and none of the host's proxy settings.
extends_documentation_fragment:
  - openshell.sandbox._attributes
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
  role:
    description: Which of the two containers.
    type: str
    choices: [proxy, agent]
    required: true
  state:
    description:
      - V(present) makes the container and leaves running or not as it is.
      - V(started) and V(stopped) settle that too.
    type: str
    choices: [present, started, stopped]
    default: started
  image:
    description: Id of the image.
    type: str
    required: true
  ip:
    description: Fixed address on the sandbox's network.
    type: str
    required: true
  uid_base:
    description:
      - Host uid of uid 0 inside; -1 when Podman runs rootless; 0 for no user namespace of its own.
    type: int
    default: 0
  networks:
    description: Further networks on which the container may be (the bridge, for the sidecar).
    type: list
    elements: str
    default: []
  dns:
    description: Resolvers; written into the container when it is made.
    type: list
    elements: str
    required: true
  env:
    description: Environment variables. They can be read with C(podman inspect), so nothing secret belongs here.
    type: dict
    default: {}
  command:
    description: Command and arguments; empty is the image's own.
    type: list
    elements: str
    default: []
  user:
    description: User inside; empty is the image's own.
    type: str
    default: ""
  workdir:
    description: Working directory; empty is the image's own.
    type: str
    default: ""
  volumes:
    description: Named volumes and directories of the host.
    type: list
    elements: dict
    default: []
    suboptions:
      source:
        description: Name of a volume, or a path on the host.
        type: str
        required: true
      target:
        description: Path inside.
        type: str
        required: true
      read_only:
        description: Whether it may only be read.
        type: bool
        default: false
      kind:
        description: V(volume) is made if it does not exist; V(bind) is a path on the host.
        type: str
        choices: [volume, bind]
        default: volume
      relabel:
        description: SELinux label, V(z) shared or V(Z) private; other hosts ignore it.
        type: str
        choices: ["", z, Z]
        default: ""
  secrets:
    description: Podman secrets mounted as files; names only.
    type: list
    elements: dict
    default: []
    suboptions:
      source:
        description: Name of the Podman secret.
        type: str
        required: true
      target:
        description: Path inside.
        type: str
        required: true
      uid:
        description: The one uid that may read it.
        type: int
        required: true
  tmpfs:
    description: Memory file systems, as C(podman create --tmpfs) takes them.
    type: list
    elements: str
    default: []
  sysctls:
    description: Kernel settings of the container's network namespace.
    type: dict
    default: {}
  capabilities:
    description: Capabilities without C(CAP_); everything else is dropped.
    type: list
    elements: str
    default: []
  ulimits:
    description: Resource limits, as C(podman create --ulimit) takes them.
    type: list
    elements: str
    default: []
  pids_limit:
    description: Number of processes.
    type: int
    default: 2048
  memory:
    description: Memory limit, a number with k, m or g; empty is none.
    type: str
    default: ""
  cpus:
    description: Number of processors; empty is no limit.
    type: str
    default: ""
  read_only:
    description: Whether the root file system is read-only.
    type: bool
    default: false
  nested:
    description: Whether containers can be run inside; leaves C(/proc) unmasked, which only a user namespace makes harmless.
    type: bool
    default: false
  init:
    description: Whether a small init reaps orphaned processes and passes signals on.
    type: bool
    default: false
  restart:
    description: Restart policy of Podman; empty is none.
    type: str
    default: ""
  stop_timeout:
    description: Seconds between SIGTERM and SIGKILL.
    type: int
    default: 10
  config:
    description:
      - Files (path below O(config_directory) to text) that the sidecar reads from its own volume and can read again.
      - They are no part of the description; a change is handed to the living sidecar, which answers for it.
    type: dict
    default: {}
  config_sources:
    description: Further files of that kind, name to path on the host whose content they get; an empty path is no content.
    type: dict
    default: {}
  config_secrets:
    description: Further files of that kind whose content is secret; shown nowhere, readable for the sidecar alone.
    type: dict
    default: {}
  config_directory:
    description: Where the files of O(config) lie inside.
    type: path
    default: /var/lib/openshell/config
  config_volume:
    description: The volume that holds them, at the path inside that is its parent.
    type: str
    default: ""
  config_uid:
    description: Owner of the files of O(config) inside.
    type: int
    default: 1337
  policy_later:
    description:
      - When the C(policy.yaml) of O(config) is left to M(openshell.sandbox.sandbox_secrets), which gives a living sidecar
        policy and secrets at once. C(living_with_secrets) is a living sidecar that has secrets now.
    type: str
    choices: [never, living_with_secrets, living]
    default: never
  config_timeout:
    description: Seconds to wait for a living sidecar to take new configuration.
    type: int
    default: 15
seealso:
  - module: openshell.sandbox.internal_network
  - module: openshell.sandbox.network_connection
  - module: openshell.sandbox.sandbox_info
"""

EXAMPLES = r"""
- name: Make the agent
  openshell.sandbox.sandbox_container:
    sandbox_name: demo
    role: agent
    image: "{{ openshell_agent_image_id }}"
    ip: 10.89.5.3
    uid_base: 2952855552
    dns: [10.89.5.2]
    command: [sleep, infinity]
    init: true
"""

RETURN = r"""
container:
  description: Name of the container.
  returned: success
  type: str
  sample: openshell-agent-demo
action:
  description: What was done, or would be done in check mode.
  returned: success
  type: str
  sample: replace
drift:
  description: What differed from the description.
  returned: success
  type: list
  elements: dict
created:
  description: What this run made that did not exist.
  returned: success
  type: list
  elements: dict
policy_left:
  description: Whether the policy is left to M(openshell.sandbox.sandbox_secrets).
  returned: success
  type: bool
"""

from typing import Any, Dict, List, Mapping

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils import container_converge, sidecar_config
from ansible_collections.openshell.sandbox.plugins.module_utils.container_spec import ContainerSpec, Secret, Volume
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    diff,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman, PodmanError, is_running
from ansible_collections.openshell.sandbox.plugins.module_utils.resolvers import read_text
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import LABEL_UID_BASE, SandboxNames

OPTIONS: Dict[str, Dict[str, Any]] = {
    "sandbox_name": {"type": "str", "required": True},
    "sandbox_id": {"type": "str"},
    "role": {"type": "str", "choices": ["proxy", "agent"], "required": True},
    "state": {"type": "str", "choices": ["present", "started", "stopped"], "default": "started"},
    "image": {"type": "str", "required": True},
    "ip": {"type": "str", "required": True},
    "uid_base": {"type": "int", "default": 0},
    "networks": {"type": "list", "elements": "str", "default": []},
    "dns": {"type": "list", "elements": "str", "required": True},
    "env": {"type": "dict", "default": {}},
    "command": {"type": "list", "elements": "str", "default": []},
    "user": {"type": "str", "default": ""},
    "workdir": {"type": "str", "default": ""},
    "volumes": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "source": {"type": "str", "required": True},
            "target": {"type": "str", "required": True},
            "read_only": {"type": "bool", "default": False},
            "kind": {"type": "str", "choices": ["volume", "bind"], "default": "volume"},
            "relabel": {"type": "str", "choices": ["", "z", "Z"], "default": ""},
        },
    },
    "secrets": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "no_log": False,
        "options": {
            "source": {"type": "str", "required": True},
            "target": {"type": "str", "required": True},
            "uid": {"type": "int", "required": True},
        },
    },
    "tmpfs": {"type": "list", "elements": "str", "default": []},
    "sysctls": {"type": "dict", "default": {}},
    "capabilities": {"type": "list", "elements": "str", "default": []},
    "ulimits": {"type": "list", "elements": "str", "default": []},
    "pids_limit": {"type": "int", "default": 2048},
    "memory": {"type": "str", "default": ""},
    "cpus": {"type": "str", "default": ""},
    "read_only": {"type": "bool", "default": False},
    "nested": {"type": "bool", "default": False},
    "init": {"type": "bool", "default": False},
    "restart": {"type": "str", "default": ""},
    "stop_timeout": {"type": "int", "default": 10},
    "config": {"type": "dict", "default": {}},
    "config_sources": {"type": "dict", "default": {}},
    "config_secrets": {"type": "dict", "default": {}, "no_log": True},
    "config_directory": {"type": "path", "default": "/var/lib/openshell/config"},
    "config_volume": {"type": "str", "default": ""},
    "config_uid": {"type": "int", "default": 1337},
    "policy_later": {"type": "str", "choices": ["never", "living_with_secrets", "living"], "default": "never"},
    "config_timeout": {"type": "int", "default": 15},
}

RUNNING = {"present": None, "started": True, "stopped": False}


def texts(mapping: Dict[str, Any]) -> Dict[str, str]:
    """Values as Podman takes them: text; booleans as true and false."""
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in mapping.items()}


def describe(params: Dict[str, Any], names: SandboxNames) -> ContainerSpec:
    """The module's parameters as a description."""
    return ContainerSpec(
        name=names.proxy if params["role"] == "proxy" else names.agent,
        role=params["role"],
        image=params["image"].replace("sha256:", ""),
        network=names.network,
        ip=params["ip"],
        labels=names.labels(),
        dns=tuple(params["dns"]),
        uid_base=None if params["uid_base"] < 0 else params["uid_base"],
        env=texts(params["env"]),
        command=tuple(params["command"]),
        user=params["user"],
        workdir=params["workdir"],
        volumes=tuple(Volume(**volume) for volume in params["volumes"]),
        secrets=tuple(Secret(**secret) for secret in params["secrets"]),
        tmpfs=tuple(params["tmpfs"]),
        sysctls=texts(params["sysctls"]),
        capabilities=tuple(params["capabilities"]),
        ulimits=tuple(params["ulimits"]),
        pids_limit=params["pids_limit"],
        memory=params["memory"],
        cpus=params["cpus"],
        read_only=params["read_only"],
        nested=params["nested"],
        init=params["init"],
        restart=params["restart"],
        stop_timeout=params["stop_timeout"],
    )


def missing_volumes(podman: Podman, spec: ContainerSpec) -> List[str]:
    return [one.source for one in spec.volumes if one.kind == "volume" and podman.volume(one.source) is None]


def make_volumes(podman: Podman, spec: ContainerSpec, names: SandboxNames, missing: List[str]) -> None:
    """Make volumes; the workspace remembers the host ids that own its files, for a later agent."""
    for name in missing:
        more = {LABEL_UID_BASE: str(spec.uid_base)} if name == names.workspace_volume and spec.uid_base else {}
        podman.ensure_volume(name, names.labels(**more))


def converge(module: AnsibleModule) -> Dict[str, Any]:
    params = module.params
    names = SandboxNames.of(params["sandbox_name"], params["sandbox_id"])
    podman = client(module)
    spec = describe(params, names)
    # A network that nobody has made yet is left to the step that makes it: an interrupted run comes back here.
    existing = [name for name in params["networks"] if podman.network(name) is not None]
    networks = {names.network: spec.ip, **dict.fromkeys(existing, "")}
    running = RUNNING[params["state"]]
    missing = missing_volumes(podman, spec)
    created = [{"kind": "volume", "name": name} for name in missing]
    if podman.container(spec.name) is None:
        created.append({"kind": "container", "name": spec.name})
    try:
        if module.check_mode:
            todo = container_converge.plan(podman, spec, networks, running)
        else:
            make_volumes(podman, spec, names, missing)
            todo = container_converge.converge(podman, spec, networks, running)
        left = policy_left(params, podman, spec, names)
        config = apply_config(module, podman, spec, names, left)
    except (PodmanError, sidecar_config.Rejected) as error:
        raise ModuleFailure(str(error), created=created) from None
    sides = container_converge.before_and_after(todo, spec)
    return {
        "changed": bool(todo.action != "none" or missing or config.changed),
        "diff": [diff(sides["before"], sides["after"], spec.name), *config.diffs],
        "container": spec.name,
        "action": todo.action,
        "drift": [drift.as_dict() for drift in todo.drifts],
        "created": created,
        "policy_left": left,
    }


def policy_left(params: Mapping[str, Any], podman: Podman, spec: ContainerSpec, names: SandboxNames) -> bool:
    """Whether the policy is for the step that hands over the secrets."""
    if params["policy_later"] == "never" or not is_running(podman.container(spec.name)):
        return False
    secrets = sidecar_config.read_current(podman, sidecar_config.secrets_config(names, ""))
    return params["policy_later"] == "living" or bool(secrets[sidecar_config.SECRETS])


def apply_config(
    module: AnsibleModule, podman: Podman, spec: ContainerSpec, names: SandboxNames, without_policy: bool
) -> sidecar_config.Outcome:
    params = module.params
    if not params["config"]:
        return sidecar_config.Outcome(False, [])
    files = {**texts(params["config"]), **texts(params["config_secrets"])}
    if without_policy:
        files.pop(sidecar_config.POLICY, None)
    files.update({name: read_text(path) if path else "" for name, path in params["config_sources"].items()})
    wanted = sidecar_config.Config(files, params["config_directory"], params["config_volume"], params["config_uid"])
    return sidecar_config.converge(
        podman, spec.name, names.tls_volume, wanted, params["config_timeout"], module.check_mode
    )


def main() -> None:
    module = new_module(OPTIONS)
    run_module(module, lambda: converge(module))


if __name__ == "__main__":
    main()
