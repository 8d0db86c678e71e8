# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Answers that are dear and stay true until their question changes, kept until the host's next start.

They lie where only this user can write. One that cannot be read or kept is asked for again; nothing rests on them.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import tempfile
from typing import Any, List

from ansible_collections.openshell.sandbox.plugins.module_utils.podman import runtime_directory

PODMAN_CONFIGURATION = ("/usr/share/containers", "/etc/containers", "~/.config/containers")


def podman_configuration() -> List[str]:
    """The files that configure Podman for this user: containers.conf(5), storage.conf(5) and what they include."""
    files: List[str] = []
    for directory in PODMAN_CONFIGURATION:
        files += sorted(glob.glob(os.path.join(os.path.expanduser(directory), "**", "*.conf"), recursive=True))
    return files


def _path(question: Any) -> str:
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
    return os.path.join(runtime_directory(), "openshell", "kept", digest)


def recall(question: Any) -> Any:
    """The answer to exactly this *question* (anything that JSON can say), or None."""
    try:
        with open(_path(question), encoding="utf-8") as handle:
            return json.load(handle)
    except (OSError, ValueError):
        return None


def keep(question: Any, answer: Any) -> None:
    """Keep *answer*, whole or not at all."""
    path = _path(question)
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(answer, stream)
        os.replace(temporary, path)
