# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every module of this collection takes, and how it ends: one sentence, never a traceback."""

from __future__ import annotations

from typing import Any, Callable, Dict, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman, PodmanError
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNameError

PODMAN_OPTIONS: Dict[str, Dict[str, Any]] = {
    "executable": {"type": "str", "default": "podman"},
    "runtime": {"type": "str", "default": ""},
}


class ModuleFailure(Exception):
    """An expected end: *message* is the one sentence for the user, *details* go beside it into the result."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


def new_module(options: Dict[str, Dict[str, Any]], podman: bool = True, **more: Any) -> AnsibleModule:
    """An :class:`AnsibleModule` with check mode and, where it speaks to Podman, the shared options."""
    return AnsibleModule({**options, **(PODMAN_OPTIONS if podman else {})}, supports_check_mode=True, **more)


def client(module: AnsibleModule) -> Podman:
    return Podman(module.params["executable"], module.params["runtime"])


def run_module(module: AnsibleModule, body: Callable[[], Dict[str, Any]]) -> NoReturn:
    """Run *body* and exit with what it returns; expected errors become ``fail_json`` with a clear message."""
    try:
        result = body()
    except ModuleFailure as failure:
        module.fail_json(msg=str(failure), **failure.details)
    except (PodmanError, SandboxNameError) as failure:
        module.fail_json(msg=str(failure))
    module.exit_json(**result)
    raise AssertionError("exit_json does not return")


def diff(before: Any, after: Any, header: str = "") -> Dict[str, Any]:
    """The ``diff`` of a result; *header* names the object."""
    found: Dict[str, Any] = {"before": before, "after": after}
    if header:
        found.update(before_header=header, after_header=header)
    return found
