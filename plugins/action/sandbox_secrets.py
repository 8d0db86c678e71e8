# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find the values of secrets on the controller and hand them to the module, past every variable, fact and output."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from typing import Any, Dict, List, Mapping

from ansible.plugins.loader import lookup_loader
from ansible_collections.openshell.sandbox.plugins.module_utils.secret_entries import (
    Refused,
    check_entries,
    sidecar_entry,
)
from ansible_collections.openshell.sandbox.plugins.plugin_utils import providers
from ansible_collections.openshell.sandbox.plugins.plugin_utils.here import HereAction

COMMAND_SECONDS = 60


class ActionModule(HereAction):
    """``openshell.sandbox.sandbox_secrets``; its options are documented with the module of that name."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(
        {
            "entries",
            "providers",
            "providers_path",
            "keep",
            "policy",
            "sandbox_name",
            "judge_only",
            "timeout",
            "executable",
            "runtime",
        }
    )

    def run(self, tmp: str | None = None, task_vars: Dict[str, Any] | None = None) -> Dict[str, Any]:
        result: Dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = dict(self._task.args)
        try:
            own = check_entries(args.pop("entries", None) or [])
            given = providers.given_providers(args.pop("providers", None) or [], args.pop("providers_path", None) or "")
            composed = providers.secret_entries(given, own, os.environ)
            result["notices"] = composed.notices
            if args.pop("judge_only", False):
                return {**result, "changed": False, "env": {}}
            entries = [*own, *composed.entries]
            found = [sidecar_entry(entry, self._value(entry, variables)) for entry in entries]
        except Refused as refused:
            return {**result, "failed": True, "msg": str(refused)}
        args["document"] = json.dumps(found)
        args["agent"] = [
            {key: entry[key] for key in ("name", "env", "placeholder") if key in entry} for entry in entries
        ]
        done = self.module("sandbox_secrets_file", args, variables)
        result.update(done)
        result["env"] = {**composed.settings, **done.get("env", {})}
        return result

    def _value(self, entry: Mapping[str, Any], variables: Dict[str, Any]) -> str:
        name = entry["name"]
        if "command" in entry:
            return _output(name, entry["command"])
        if "file" in entry:
            return self._content(name, str(entry["file"]), variables)
        if "from_env" in entry:
            value = os.environ.get(str(entry["from_env"]))
            if value is None:
                raise Refused(f"secret '{name}': the variable that from_env names is not set on the controller")
            return value
        return str(entry["value"])

    def _content(self, name: str, path: str, variables: Dict[str, Any]) -> str:
        """A file of the controller, encrypted by a vault or not, without the line break at its end."""
        reader = lookup_loader.get("ansible.builtin.file", loader=self._loader, templar=self._templar)
        try:
            return str(reader.run([path], variables=variables)[0])
        except Exception:  # whatever the lookup raises may hold more than the path
            raise Refused(f"secret '{name}': the file that it names cannot be read") from None


def _output(name: str, command: Any) -> str:
    """What the command prints, without the line break at its end; it is run without a shell."""
    words: List[str] = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    try:
        done = subprocess.run(
            words, capture_output=True, stdin=subprocess.DEVNULL, timeout=COMMAND_SECONDS, check=False
        )
        value = done.stdout.decode("utf-8")
    except subprocess.TimeoutExpired:
        raise Refused(f"secret '{name}': its command did not end within {COMMAND_SECONDS} seconds") from None
    except (OSError, IndexError, UnicodeDecodeError) as error:
        raise Refused(f"secret '{name}': its command cannot be run: {type(error).__name__}") from None
    if done.returncode != 0:
        raise Refused(f"secret '{name}': its command failed with status {done.returncode}")
    return value.rstrip("\r\n")
