# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program that a host runs without Ansible: ``openshell-restart start`` at boot, ``openshell-restart reap`` at times.

It is these modules in one zip file (see host_program.py). Whatever fails for one sandbox is told, and the others go on.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import List

from ansible_collections.openshell.sandbox.plugins.module_utils import lifecycle
from ansible_collections.openshell.sandbox.plugins.module_utils.container_audit import audit_networks
from ansible_collections.openshell.sandbox.plugins.module_utils.container_converge import (
    recover_interrupted_replacement,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.host_units import withdraw
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman, PodmanError
from ansible_collections.openshell.sandbox.plugins.module_utils.readiness import NotReady
from ansible_collections.openshell.sandbox.plugins.module_utils.registry import Registration, Registry
from ansible_collections.openshell.sandbox.plugins.module_utils.removal import (
    items_of,
    known_id,
    release_shared,
    remove,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import REPLACED_SUFFIX, SandboxNames

AT_ONCE = 4  # sandboxes that start at the same time
READY_SECONDS = 60.0  # a host that boots is busy
GRACE_SECONDS = 60.0  # a creation that was called again may be about to make the agent anew
STOP_SECONDS = 5


def start_all(registry: Registry, ready: float = READY_SECONDS) -> List[str]:
    """Start every sandbox that is to come back and was not stopped on purpose. Returns what went wrong."""
    wanted = [(name, one) for name, one in registry.all().items() if one.restart and not one.stopped]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        told = list(pool.map(lambda entry: _start(registry, entry[0], entry[1], ready), wanted))
    return [problem for problem in told if problem]


def _start(registry: Registry, name: str, registration: Registration, ready: float) -> str:
    podman = Podman(registration.executable, registration.runtime)
    try:
        names = SandboxNames.of(name, known_id(podman, name))
        for container in (names.proxy, names.agent):
            recover_interrupted_replacement(podman, container)
        found = lifecycle.both(podman, names)
        if not items_of(podman, names):
            forget(registry, name, registration)  # it went by other means than delete_sandbox.yml
            return ""
        if found is None:
            return f"{name}: its agent or its sidecar does not exist"
        networks = lifecycle.wanted_networks(names)
        which = [key for key, one in found.items() if not lifecycle.alive(one) or audit_networks(one, networks[key])]
        lifecycle.start(podman, names, which, ready)
    except (PodmanError, NotReady) as error:
        return f"{name}: {error}"
    _tell(f"{name}: {'started' if which else 'runs'}")
    return ""


def reap(registry: Registry, grace: float = GRACE_SECONDS) -> List[str]:
    """Remove what agents left that were removed by other means than ours, but the workspace. Returns what went wrong.

    Only a sandbox whose creation was completed is looked at, and only one whose agent is missing for *grace* seconds.
    """
    problems = []
    for name, registration in registry.all().items():
        if registration.reaper:
            try:
                _reap(registry, name, registration, grace)
            except PodmanError as error:
                problems.append(f"{name}: {error}")
    return problems


def _reap(registry: Registry, name: str, registration: Registration, grace: float) -> None:
    podman = Podman(registration.executable, registration.runtime)
    names = SandboxNames.of(name, known_id(podman, name))
    agents = podman.containers([names.agent, names.agent + REPLACED_SUFFIX])
    if registry.missing_for(name, not agents) < grace or agents:
        return
    left = [item for item in items_of(podman, names) if item.name != names.workspace_volume]
    for item in remove(podman, left, STOP_SECONDS) + release_shared(podman):
        _tell(f"{name}: removed the {item.kind} {item.name}")
    forget(registry, name, registration)


def _tell(line: str) -> None:
    """To the journal, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def forget(registry: Registry, name: str, registration: Registration) -> None:
    registry.remove(name)
    withdraw(registry, registration.unit_directory)


def main(argv: List[str], directory: str) -> int:
    """The command line; *directory* is where the program lies, with the registrations beside it."""
    parser = argparse.ArgumentParser(prog="openshell-restart", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    starting = verbs.add_parser("start", help="start the sandboxes that come back after a reboot")
    starting.add_argument("--ready", type=float, default=READY_SECONDS, help="seconds to wait for each sidecar")
    reaping = verbs.add_parser("reap", help="remove what is left of sandboxes whose agent was removed")
    reaping.add_argument("--grace", type=float, default=GRACE_SECONDS, help="seconds that an agent must be missing")
    options = parser.parse_args(argv)
    registry = Registry(os.path.abspath(directory))
    problems = start_all(registry, options.ready) if options.verb == "start" else reap(registry, options.grace)
    for problem in problems:
        sys.stderr.write(problem + "\n")
    return 1 if problems else 0
