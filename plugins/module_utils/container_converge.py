# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Making, replacing and repairing one container so that it is what its description says."""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Mapping

from ansible_collections.openshell.sandbox.plugins.module_utils.container_audit import Drift, audit, never_started
from ansible_collections.openshell.sandbox.plugins.module_utils.container_spec import (
    ContainerSpec,
    files_archive,
    hardware_address,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import (
    Podman,
    container_networks,
    is_paused,
    is_running,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import REPLACED_SUFFIX


@dataclasses.dataclass(frozen=True)
class Plan:
    """What has to happen: ``action`` is none, create, replace or repair; ``drifts`` say why."""

    action: str
    drifts: List[Drift]


def plan(podman: Podman, spec: ContainerSpec, networks: Mapping[str, str], running: bool | None) -> Plan:
    """Compare what is with *spec*. *running* None leaves the state alone. Changes nothing."""
    inspected = podman.container(spec.name)
    if inspected is None:
        return Plan("create", [])
    desired = is_running(inspected) if running is None else running
    drifts = audit(inspected, spec, networks, desired)
    if not drifts:
        return Plan("none", [])
    return Plan("repair" if all(drift.repairable for drift in drifts) else "replace", drifts)


def converge(podman: Podman, spec: ContainerSpec, networks: Mapping[str, str], running: bool | None) -> Plan:
    """Carry the plan out. Raises PodmanError, after which the container that was there is there again."""
    recover_interrupted_replacement(podman, spec.name)
    todo = plan(podman, spec, networks, running)
    if todo.action == "create":
        create(podman, spec)
        if running:
            podman.start(spec.name)
    elif todo.action == "replace":
        replace(podman, spec, networks, running)
    elif todo.action == "repair":
        repair(podman, spec.name, networks, running)
    return todo


def create(podman: Podman, spec: ContainerSpec) -> None:
    """Create the container and put its files in; whatever fails, no half-made container stays."""
    podman.run(["create", *spec.create_args()], unmade=lambda: podman.container(spec.name) is None)
    try:
        files = {"/etc/hosts": spec.hosts_file(), **spec.files}
        podman.run(["cp", "-", f"{spec.name}:/"], stdin=files_archive(files))
    except BaseException:
        podman.remove_container(spec.name, 0)
        raise


def replace(podman: Podman, spec: ContainerSpec, networks: Mapping[str, str], running: bool | None) -> None:
    """Make the container anew under its name; the old one is kept aside until the new one stands."""
    old = podman.container(spec.name) or {}
    was_running = is_running(old) or is_paused(old)
    aside = spec.name + REPLACED_SUFFIX
    try:
        podman.stop(spec.name, spec.stop_timeout)
        podman.run(["rename", spec.name, aside])
        create(podman, spec)
        for network in sorted(set(networks) - {spec.network}):
            podman.network_connect(network, spec.name)
        if running or (running is None and was_running):
            podman.start(spec.name)
    except BaseException:
        if podman.container(aside) is not None:
            podman.remove_container(spec.name, 0)
            podman.run(["rename", aside, spec.name])
        if was_running:
            podman.start(spec.name)
        raise
    podman.remove_container(aside, 0)


def recover_interrupted_replacement(podman: Podman, name: str) -> None:
    """Finish what a killed run left: the old container comes back unless the new one was started already."""
    aside = name + REPLACED_SUFFIX
    if podman.container(aside) is None:
        return
    successor = podman.container(name)
    if successor is not None and not never_started(successor):
        podman.remove_container(aside, 0)
        return
    if successor is not None:
        podman.remove_container(name, 0)
    podman.run(["rename", aside, name])


def repair(podman: Podman, name: str, networks: Mapping[str, str], running: bool | None) -> None:
    """Put right in place what can be: networks too many or too few, and the running state."""
    inspected = podman.container(name) or {}
    found = container_networks(inspected)
    for network in sorted(set(found) - set(networks)):
        podman.network_disconnect(network, name)
    for network in sorted(set(networks) - set(found)):
        fixed = (networks[network], hardware_address(name)) if networks[network] else (None, None)
        podman.network_connect(network, name, *fixed)
    if running is True and is_paused(inspected):
        podman.unpause(name)
    elif running is True and not is_running(inspected):
        podman.start(name)
    elif running is False and (is_running(inspected) or is_paused(inspected)):
        podman.stop(name)


def before_and_after(todo: Plan, spec: ContainerSpec) -> Dict[str, Dict[str, object]]:
    """The two sides of a ``--diff``: only what differs."""
    if todo.action == "none":
        return {"before": {}, "after": {}}
    if todo.action == "create":
        return {
            "before": {"state": "absent"},
            "after": {"state": "present", "image": spec.image, "network": spec.network, "ip": spec.ip},
        }
    return {
        "before": {drift.what: drift.found for drift in todo.drifts},
        "after": {drift.what: drift.expected for drift in todo.drifts},
    }
