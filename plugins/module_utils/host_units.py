# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files of systemd's units, their links, and telling systemd of them. The texts are in host_program.py."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import subprocess
from typing import List

from ansible_collections.openshell.sandbox.plugins.module_utils.registry import Registry

SERVICE = "openshell-sandboxes.service"
REAPER = "openshell-reaper.service"
TIMER = "openshell-reaper.timer"
UNITS = (SERVICE, REAPER, TIMER)

BOOTED = "/run/systemd/system"  # sd_booted(3)
LINGER = "/var/lib/systemd/linger"


def default_directory(rootless: bool) -> str:
    """Where systemd looks for units; "" where it is not this host's init."""
    if not os.path.isdir(BOOTED):
        return ""
    return os.path.expanduser("~/.config/systemd/user") if rootless else "/etc/systemd/system"


def links(directory: str, unit: str) -> List[str]:
    """The symbolic links that enable a unit."""
    return glob.glob(os.path.join(glob.escape(directory), "*.wants", unit))


def remove_unit(directory: str, unit: str) -> None:
    for path in [*links(directory, unit), os.path.join(directory, unit)]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def tell_systemd(reaper: bool, present: bool) -> List[str]:
    """Have the running systemd know its units; without root, have the user's run without a session.

    *reaper*: whether the timer is to run; *present*: whether there are units. Returns what could not be done.
    """
    if not os.path.isdir(BOOTED):
        return []
    scope = ["systemctl"] if os.geteuid() == 0 else ["systemctl", "--user"]
    commands = [] if reaper else [[*scope, "stop", TIMER]]
    commands += [[*scope, "daemon-reload"], *([[*scope, "start", TIMER]] if reaper else [])]
    user = pwd.getpwuid(os.geteuid()).pw_name
    if present and os.geteuid() != 0 and not os.path.exists(os.path.join(LINGER, user)):
        commands.append(["loginctl", "enable-linger", user])
    problems = []
    for command in commands:
        told = _run(command)
        if told and command[-2] != "stop":  # one that does not run cannot be stopped
            problems.append(f"'{' '.join(command)}' failed, do it for sandboxes to come back after a reboot: {told}")
    return problems


def _run(command: List[str]) -> str:
    """What a command that failed said; "" for one that did not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"


def withdraw(registry: Registry, directory: str) -> None:
    """Take units and program away when nobody is registered any more. The reaper does so with the last sandbox."""
    if registry.all():
        return
    if directory:
        for unit in UNITS:
            remove_unit(directory, unit)
        tell_systemd(reaper=False, present=False)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(registry.program)
    registry.discard()
