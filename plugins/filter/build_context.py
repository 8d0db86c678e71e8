# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filter ``build_context``: a directory as a deterministic archive that an image is built from."""

from __future__ import annotations

DOCUMENTATION = r"""
name: build_context
short_description: A directory as a deterministic tar archive, in base64
version_added: 0.1.0
description:
  - The same files give the same text, whoever owns them and whenever they were written, so its digest names the image.
  - Byte code and hidden files are left out.
options:
  _input:
    description: Path of a directory on the controller.
    type: path
    required: true
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
- name: Build from a directory
  openshell.sandbox.image:
    kind: proxy
    context: "{{ 'proxy_image' | openshell.sandbox.build_context }}"
"""

RETURN = r"""
_value:
  description: The archive in base64.
  type: str
"""

import base64
import io
import os
import stat
import tarfile
from typing import Any, Callable, Dict, List

from ansible.errors import AnsibleFilterError

LEFT_OUT = ("__pycache__",)


def members(directory: str) -> List[str]:
    """Relative paths of the regular files below *directory*, sorted."""
    found: List[str] = []
    for parent, folders, files in os.walk(directory):
        folders[:] = [
            one for one in folders if one not in LEFT_OUT and not one.startswith(".") and "egg-info" not in one
        ]
        found += [os.path.relpath(os.path.join(parent, file), directory) for file in files if not file.startswith(".")]
    return sorted(found)


def build_context(directory: str) -> str:
    """See the documentation. Raises :class:`AnsibleFilterError` when it is not a directory."""
    if not os.path.isfile(os.path.join(directory, "Containerfile")):
        raise AnsibleFilterError(f"{directory} is not a directory with a Containerfile")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in members(directory):
            path = os.path.join(directory, name)
            info = tarfile.TarInfo(name)
            found = os.stat(path)
            info.size = found.st_size
            info.mode = 0o755 if found.st_mode & stat.S_IXUSR else 0o644  # of the file, whoever asks
            with open(path, "rb") as handle:
                archive.addfile(info, handle)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"build_context": build_context}
