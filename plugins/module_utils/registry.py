# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which sandboxes come back after a reboot, and which are watched: one small file each, beside Podman's store.

Podman keeps no record of it: a container that was stopped and one that a power cut ended are both "exited" afterwards,
and labels cannot change. The directory is ``openshell`` beside the store, so every store has its own, root or not:
``sandboxes/NAME.json`` (see :class:`Registration`), ``missing/NAME`` (its time is when the reaper first missed the
agent) and the program that reads them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import time
from typing import Dict, List

from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman

PROGRAM = "openshell-restart"
LOCK = "registrations"


@dataclasses.dataclass(frozen=True)
class Registration:
    """What is to be done for a sandbox whose creation was completed.

    ``restart``: start it at boot; ``reaper``: remove what is left when its agent was removed; ``stopped``: it was
    stopped on purpose and stays so; ``executable`` and ``runtime``: the Podman that has it; ``unit_directory``: where
    the units lie that act on it, "" where there are none.
    """

    restart: bool
    reaper: bool
    executable: str
    runtime: str = ""
    unit_directory: str = ""
    stopped: bool = False


@dataclasses.dataclass(frozen=True)
class Registry:
    """The directory of one Podman store's registrations."""

    directory: str

    @classmethod
    def of(cls, podman: Podman) -> Registry:
        return cls(os.path.join(os.path.dirname(podman.info["store"]["graphRoot"]), "openshell"))

    @property
    def program(self) -> str:
        return os.path.join(self.directory, PROGRAM)

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, "sandboxes", name + ".json")

    def _missing(self, name: str) -> str:
        return os.path.join(self.directory, "missing", name)

    def names(self) -> List[str]:
        """Registered sandboxes, sorted."""
        try:
            found = os.listdir(os.path.join(self.directory, "sandboxes"))
        except OSError:
            return []
        return sorted(name[: -len(".json")] for name in found if name.endswith(".json") and not name.startswith("."))

    def read(self, name: str) -> Registration | None:
        """The registration of a sandbox; None for none, or one that is broken."""
        try:
            with open(self._path(name), encoding="utf-8") as handle:
                found = json.load(handle)
            return Registration(**found)
        except (OSError, ValueError, TypeError):
            return None

    def all(self) -> Dict[str, Registration]:
        found = {name: self.read(name) for name in self.names()}
        return {name: one for name, one in found.items() if one is not None}

    def write(self, name: str, registration: Registration) -> None:
        write_file(self._path(name), json.dumps(dataclasses.asdict(registration), sort_keys=True).encode(), 0o600)

    def remove(self, name: str) -> None:
        for path in (self._path(name), self._missing(name)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def discard(self) -> None:
        """Remove the directories of a registry in which nobody is registered any more."""
        for part in ("sandboxes", "missing", ""):
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(self.directory, part))

    def set_stopped(self, name: str, stopped: bool) -> None:
        """Remember that a registered sandbox was stopped on purpose, or started again."""
        found = self.read(name)
        if found is not None and found.stopped != stopped:
            self.write(name, dataclasses.replace(found, stopped=stopped))

    def missing_for(self, name: str, missing: bool) -> float:
        """Seconds since the agent was first seen to be *missing*; 0 the first time, and when it is there."""
        path = self._missing(name)
        if not missing:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return 0
        try:
            return max(0.0, time.time() - os.stat(path).st_mtime)
        except FileNotFoundError:
            write_file(path, b"", 0o600)
            return 0


def write_file(path: str, content: bytes, mode: int) -> None:
    """Write a file as a whole: a power cut leaves the old one or the new one. Makes its directory."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=directory, prefix=".")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
