# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run what a play does inside of an agent, all of it.

The connection of containers.podman writes files into the container's mounted file system from outside, as the host's
root, along whatever symbolic links the agent made; and they belong to nobody inside. Here nothing but a process in the
container touches its files.
"""

from __future__ import annotations

DOCUMENTATION = r"""
name: agent
short_description: Run tasks inside of an agent on this machine
version_added: 0.1.0
description:
  - Commands run, and files are written and read, by processes inside of the agent's container. Nothing of the host's is
    used for it but C(podman exec).
options:
  container:
    description: Name of the agent's container.
    type: str
    required: true
    vars:
      - name: inventory_hostname
      - name: ansible_host
  executable:
    description: Name or path of the podman command.
    type: str
    default: podman
    vars:
      - name: openshell_podman_executable
author:
  - The openshell.sandbox contributors (@openshell)
"""

import subprocess
from typing import IO, Any, List, Tuple

from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.plugins.connection import ConnectionBase


class Connection(ConnectionBase):  # type: ignore[misc]
    """``openshell.sandbox.agent``: see the documentation."""

    transport = "openshell.sandbox.agent"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def close(self) -> None:
        self._connected = False

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> Tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        done = self._run(["sh", "-c", cmd], input=in_data or b"")
        return done.returncode, done.stdout, done.stderr

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        try:
            with open(in_path, "rb") as source:
                self._copy('cat >"$1"', out_path, stdin=source)
        except FileNotFoundError:
            raise AnsibleFileNotFound(f"{in_path} is not there") from None

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        with open(out_path, "wb") as target:
            self._copy('cat <"$1"', in_path, stdin=subprocess.DEVNULL, stdout=target)

    def _copy(self, script: str, path: str, stdin: int | IO[bytes], stdout: int | IO[bytes] = subprocess.PIPE) -> None:
        done = self._run(["sh", "-c", script, "sh", path], stdin=stdin, stdout=stdout)
        if done.returncode != 0:
            raise AnsibleError(f"{path} cannot be copied: {done.stderr.decode(errors='replace').strip()}")

    def _run(self, command: List[str], **streams: Any) -> subprocess.CompletedProcess[bytes]:
        words = [self.get_option("executable"), "exec", "--interactive", self.get_option("container"), *command]
        streams.setdefault("stdout", subprocess.PIPE)
        try:
            return subprocess.run(words, stderr=subprocess.PIPE, check=False, **streams)
        except OSError as error:
            raise AnsibleConnectionFailure(f"{words[0]} cannot be run: {error.strerror}") from None
