# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host gets so that sandboxes come back after a reboot: the program, and systemd's units where systemd is init."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import zipfile
from typing import Dict

from ansible_collections.openshell.sandbox.plugins.module_utils import host_commands
from ansible_collections.openshell.sandbox.plugins.module_utils.host_units import REAPER, SERVICE, TIMER
from ansible_collections.openshell.sandbox.plugins.module_utils.registry import Registry

PACKAGE = host_commands.__name__.rpartition(".")[0]
PARTS = (
    "container_audit",
    "container_converge",
    "container_spec",
    "host_commands",
    "host_units",
    "lifecycle",
    "podman",
    "readiness",
    "registry",
    "removal",
    "sandbox_names",
)
MAIN = f"""\
import os
import sys

from {PACKAGE}.host_commands import main

sys.exit(main(sys.argv[1:], os.path.dirname(os.path.abspath(sys.argv[0]))))
"""


def program(python: str) -> bytes:
    """A zip file that *python* runs, with the same bytes whenever it is made of the same sources."""
    packages = PACKAGE.split(".")
    files = {"/".join([*packages[: depth + 1], "__init__.py"]): "" for depth in range(len(packages))}
    files.update({"/".join([*packages, part + ".py"]): _source(part) for part in PARTS})
    files["__main__.py"] = MAIN
    stream = io.BytesIO(f"#!{python}\n".encode())
    stream.seek(0, os.SEEK_END)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(files):
            archive.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), files[path], zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def _source(part: str) -> str:
    """A module's text; where a module of Ansible runs, that is in a zip file too."""
    found = importlib.util.find_spec(f"{PACKAGE}.{part}")
    get_source = getattr(found.loader if found else None, "get_source", None)
    text: str | None = get_source(f"{PACKAGE}.{part}") if get_source else None
    if text is None:
        raise OSError(f"the source of {part} cannot be read")
    return text


def interpreter() -> str:
    """The Python that will be there after a reboot: the system's, unless there is none."""
    return next(
        (path for path in ("/usr/bin/python3", "/usr/libexec/platform-python") if os.path.exists(path)), ""
    ) or (os.path.realpath(sys.executable))


def units(registry: Registry, python: str, rootless: bool, reaper: bool) -> Dict[str, str]:
    """File name → text of the units. Not Quadlet's: those make a container anew at each start, and what the agent
    changed in its own would be lost.

    The services leave the containers' processes alone when they end (KillMode): where Podman manages cgroups itself,
    conmon is one of theirs.
    """
    command = f"{_quoted(python)} -I {_quoted(registry.program)}"
    target = "default.target" if rootless else "multi-user.target"
    after = (
        ""
        if rootless
        else "Wants=network-online.target\nAfter=network-online.target firewalld.service nftables.service\n"
    )
    made = {
        SERVICE: (
            "[Unit]\nDescription=Sandboxes that come back after a reboot, each sidecar before its agent\n"
            f"{after}\n[Service]\nType=oneshot\nRemainAfterExit=yes\nKillMode=process\nTimeoutStartSec=infinity\n"
            f"ExecStart={command} start\n\n[Install]\nWantedBy={target}\n"
        )
    }
    if reaper:
        made[REAPER] = (
            "[Unit]\nDescription=Remove what is left of sandboxes whose agent was removed\n"
            f"\n[Service]\nType=oneshot\nKillMode=process\nExecStart={command} reap\n"
        )
        made[TIMER] = (
            "[Unit]\nDescription=Look for sandboxes whose agent was removed\n"
            "\n[Timer]\nOnBootSec=5min\nOnUnitActiveSec=1min\nAccuracySec=10s\n\n[Install]\nWantedBy=timers.target\n"
        )
    return made


def wanted_by(text: str) -> str:
    """The target of a unit's ``[Install]`` section, or ""."""
    return next((line.partition("=")[2] for line in text.splitlines() if line.startswith("WantedBy=")), "")


def _quoted(word: str) -> str:
    """A word of a unit's command line: systemd.service(5), "Command lines", and specifiers of systemd.unit(5)."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or " " in word else word
