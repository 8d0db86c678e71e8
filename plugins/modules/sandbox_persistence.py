#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sandbox_persistence
short_description: Have a sandbox come back after a reboot, and what is left of a dead one removed
version_added: 0.1.0
description:
  - Registers the sandbox with a small program on the host, which C(openshell-sandboxes.service) runs at boot; it starts
    the sidecar, waits until it is ready, and starts the agent.
  - Without root it is a unit of the user, who is allowed to linger.
  - Where systemd is not the host's init only the program is put there, to be called by whatever is.
  - The last sandbox that goes takes units and program with it.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of the sandbox.
    type: str
    required: true
  state:
    description: Whether it is registered; one that was stopped on purpose counts as started again with that.
    type: str
    choices: [present, absent]
    default: present
  restart:
    description: Whether the sandbox comes back after a reboot, unless it was stopped on purpose.
    type: bool
    default: true
  reaper:
    description: Whether what is left of the sandbox is removed, but its workspace, when its agent was removed by other means.
    type: bool
    default: false
  unit_directory:
    description:
      - Directory for the units; empty is where systemd looks for those of the host or of the user.
      - It is written to even where systemd is not the host's init when it is given.
    type: str
    default: ""
seealso:
  - module: openshell.sandbox.sandbox_state
"""

EXAMPLES = r"""
- name: Have a sandbox come back after a reboot
  openshell.sandbox.sandbox_persistence:
    sandbox_name: demo
"""

RETURN = r"""
command:
  description: What the unit runs at boot, and what can be run by hand.
  returned: success
  type: list
  elements: str
units:
  description: The units that act on the host's sandboxes; none where systemd is not its init.
  returned: success
  type: list
  elements: str
"""

import os
import shutil
from typing import Any, Dict, Set

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils import host_program, host_units
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    diff,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman
from ansible_collections.openshell.sandbox.plugins.module_utils.registry import (
    LOCK,
    Registration,
    Registry,
    write_file,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNames


def wanted_files(registry: Registry, registrations: Dict[str, Registration], directory: str) -> Dict[str, bytes]:
    """Path → content of all that the host must have for *registrations*; "" stands for what must not be there."""
    python = host_program.interpreter()
    any_here = bool(registrations)
    files = {registry.program: host_program.program(python) if any_here else b""}
    if not directory:
        return files
    rootless = os.geteuid() != 0
    reaper = any(one.reaper for one in registrations.values())
    texts = host_program.units(registry, python, rootless, reaper) if any_here else {}
    for unit in host_units.UNITS:
        files[os.path.join(directory, unit)] = texts.get(unit, "").encode()
    return files


def is_unit(path: str) -> bool:
    return os.path.basename(path) in host_units.UNITS


def differs(path: str, content: bytes) -> bool:
    try:
        with open(path, "rb") as handle:
            found = handle.read()
    except FileNotFoundError:
        found = b""
    return found != content or bool(
        is_unit(path) and wanted_link(path, content) - set(host_units.links(*os.path.split(path)))
    )


def wanted_link(path: str, content: bytes) -> Set[str]:
    """The symbolic link that enables a unit; none for one that another starts."""
    target = host_program.wanted_by(content.decode())
    return {os.path.join(os.path.dirname(path), target + ".wants", os.path.basename(path))} if target else set()


def put(path: str, content: bytes) -> None:
    """Write, enable or remove one file."""
    if not content and is_unit(path):
        host_units.remove_unit(*os.path.split(path))
    elif not content:
        os.unlink(path)
    else:
        write_file(path, content, 0o644 if is_unit(path) else 0o755)
        for link in wanted_link(path, content) if is_unit(path) else ():
            os.makedirs(os.path.dirname(link), exist_ok=True)
            if not os.path.islink(link):
                os.symlink(path, link)


def wanted_registration(params: Dict[str, Any], directory: str) -> Registration | None:
    if params["state"] == "absent" or not (params["restart"] or params["reaper"]):
        return None
    executable = shutil.which(params["executable"]) or params["executable"]
    return Registration(
        restart=params["restart"],
        reaper=params["reaper"],
        executable=executable,
        runtime=params["runtime"],
        unit_directory=directory,
    )


def converge(module: AnsibleModule) -> Dict[str, Any]:
    params = module.params
    name = SandboxNames.of(params["sandbox_name"]).name
    podman = client(module)
    registry = Registry.of(podman)
    try:
        with podman.lock(LOCK, looks=()):  # it is about files, none of which Podman knows
            return _converge(module, registry, name, podman)
    except OSError as error:
        raise ModuleFailure(
            f"what brings sandbox '{name}' back after a reboot cannot be written: {error}; "
            "make it writable, or set openshell_restart and openshell_reaper to false"
        ) from None


def _converge(module: AnsibleModule, registry: Registry, name: str, podman: Podman) -> Dict[str, Any]:
    registrations = registry.all()
    before = registrations.get(name)
    directory = module.params["unit_directory"] or host_units.default_directory(podman.rootless)
    directory = directory or (before.unit_directory if before is not None else "")
    wanted = wanted_registration(module.params, directory)
    after = {key: one for key, one in {**registrations, name: wanted}.items() if one is not None}
    # One that was never registered leaves alone what others have, of another version of this collection perhaps.
    files = wanted_files(registry, after, directory) if wanted or before or not after else {}
    todo = sorted(path for path, content in files.items() if differs(path, content))
    if not module.check_mode:
        for path in todo:
            put(path, files[path])
        if wanted is None:
            registry.remove(name)
        elif wanted != before:
            registry.write(name, wanted)
        if not after:
            registry.discard()
        if any(is_unit(path) for path in todo):
            for problem in host_units.tell_systemd(any(one.reaper for one in after.values()), bool(after)):
                module.warn(problem)
    changed = [*todo, *([f"registration of {name}"] if wanted != before else [])]
    return {
        "changed": bool(changed),
        "command": [registry.program, "start"],
        "units": sorted(os.path.basename(path) for path, text in files.items() if text and is_unit(path)),
        "diff": diff(dict.fromkeys(changed, "differs"), dict.fromkeys(changed, "as wanted"), name),
    }


def main() -> None:
    module = new_module(
        {
            "sandbox_name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "restart": {"type": "bool", "default": True},
            "reaper": {"type": "bool", "default": False},
            "unit_directory": {"type": "str", "default": ""},
        }
    )
    run_module(module, lambda: converge(module))


if __name__ == "__main__":
    main()
