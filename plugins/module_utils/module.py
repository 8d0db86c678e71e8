# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every module of this collection takes, and how it ends: one sentence, never a traceback."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Dict, Iterator, List, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Memory, Podman, PodmanError
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


class Ended(Exception):
    """A module that runs in this process has ended; ``result`` is what it would have printed."""

    def __init__(self, result: Dict[str, Any]) -> None:
        super().__init__("the module ended")
        self.result = result


class ModuleHere:
    """What stands for an :class:`AnsibleModule` in a process that runs several modules: parameters and a mode.

    *arguments* are judged by the module's own specification, as Ansible would judge them.
    """

    def __init__(self, arguments: Dict[str, Any], check_mode: bool, memory: Memory) -> None:
        self.arguments = arguments
        self.check_mode = check_mode
        self.memory = memory
        self.params: Dict[str, Any] = {}
        self.no_log_values: set[str] = set()
        self.warnings: List[str] = []

    def judge(self, options: Dict[str, Dict[str, Any]]) -> None:
        judged = ArgumentSpecValidator(options).validate(self.arguments)
        self.no_log_values = judged._no_log_values
        if judged.error_messages:
            self.fail_json(msg="; ".join(judged.error_messages))
        self.params = judged.validated_parameters

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def exit_json(self, **result: Any) -> NoReturn:
        said = {"warnings": self.warnings} if self.warnings else {}
        raise Ended(remove_values({"changed": False, **said, **result}, self.no_log_values))

    def fail_json(self, msg: str, **result: Any) -> NoReturn:
        self.exit_json(failed=True, msg=msg, **result)


_here: List[ModuleHere] = []


def run_here(main: Callable[[], None], arguments: Dict[str, Any], check_mode: bool, memory: Memory) -> Dict[str, Any]:
    """Run a module's *main* in this process; its result, of which whatever is secret is cut out.

    *memory* is shared by the modules of one series, see :class:`Podman`.
    """
    with _standing_for(ModuleHere(arguments, check_mode, memory)):
        try:
            main()
        except Ended as ended:
            return ended.result
    raise AssertionError("the module did not end")


@contextlib.contextmanager
def _standing_for(module: ModuleHere) -> Iterator[None]:
    _here.append(module)
    try:
        yield
    finally:
        _here.pop()


def new_module(options: Dict[str, Dict[str, Any]], podman: bool = True, **more: Any) -> AnsibleModule:
    """An :class:`AnsibleModule` with check mode and, where it speaks to Podman, the shared options."""
    wanted = {**options, **(PODMAN_OPTIONS if podman else {})}
    if _here:
        _here[-1].judge(wanted)
        return _here[-1]
    return AnsibleModule(wanted, supports_check_mode=True, **more)


def client(module: AnsibleModule) -> Podman:
    memory = module.memory if isinstance(module, ModuleHere) else None
    return Podman(module.params["executable"], module.params["runtime"], memory)


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
