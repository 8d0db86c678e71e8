# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Take the steps of several roles in one task.

The roles say what is done; this says it to the modules without a process and a templating of all variables for each
task, and the modules share what they know of the host. It reads of a role's task file what a step is made of: a module
of this collection or ``set_fact``, with ``when``, ``register`` and ``no_log``. Everything else belongs into the play.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.plugins.loader import action_loader
from ansible.utils.display import Display
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman, PodmanError, new_memory
from ansible_collections.openshell.sandbox.plugins.module_utils.preflight import look_ahead
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNameError, SandboxNames
from ansible_collections.openshell.sandbox.plugins.plugin_utils.here import COLLECTION, HereAction

Json = Dict[str, Any]

NAME = re.compile(r"[a-z0-9-]{1,40}")
ALONE = re.compile(r"\{\{ (\w+) \}\}")
EXECUTABLE = "openshell_podman_executable"
SET_FACT = "ansible.builtin.set_fact"
KEYWORDS = frozenset({"name", "when", "register", "no_log"})


class StepFailed(Exception):
    """A step's module failed; ``result`` is the module's own."""

    def __init__(self, result: Json) -> None:
        super().__init__(result.get("msg") or "no message")
        self.result = result


def action_of(task: Mapping[str, Any]) -> str:
    """The one action of a task; raises :class:`AnsibleActionFail` for what cannot be a step."""
    actions = sorted(set(task) - KEYWORDS)
    if len(actions) != 1 or not (actions[0] == SET_FACT or actions[0].startswith(COLLECTION)):
        raise AnsibleActionFail(f"the task '{task.get('name')}' cannot be a step: {', '.join(actions)}")
    return str(actions[0])


class ActionModule(HereAction):
    """``openshell.sandbox.steps``; its options are documented with the module of that name."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset({"look", "go", "go_when"})

    def run(self, tmp: str | None = None, task_vars: Json | None = None) -> Json:
        result: Json = super().run(tmp, task_vars)
        args = self._task.args
        look, go = (args.get(key) or [] for key in ("look", "go"))
        return {**result, **self.series(task_vars or {}, look, go, args.get("go_when", True))}

    def series(self, variables: Json, look: Sequence[str], go: Sequence[str], go_when: Any) -> Json:
        """The steps *look* and, where *go_when* holds after them, *go*, with *variables*; what came of them."""
        self.memory = self.memory or new_memory()
        self.step = "Sandbox: judge the variables"
        self.facts: Json = {}
        self.outcomes: List[Tuple[str, Json]] = []
        self.variables = self._role_variables([*look, *go], variables)
        self.variables["openshell_created"] = []
        try:
            with self._alone():
                return self._taken(look, go, go_when)
        except PodmanError as error:  # the lock
            return self._failure(str(error), [])

    def _taken(self, look: Sequence[str], go: Sequence[str], go_when: Any) -> Json:
        with ThreadPoolExecutor(1) as pool:
            try:
                self.ahead = self._look_ahead(pool)
                self._judge_variables([*look, *go])
                self._take(look)
                went = self._holds(go_when)
                self._take(go if went else [])
            except StepFailed as failed:
                return self._failure(str(failed), failed.result.get("created"))
            except Exception as error:  # a template for example; what was made must go whatever it is
                return self._failure(str(error), [])
        return {**self._summary(), "went": went}

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Two runs for one sandbox come one after the other, where both are of this machine."""
        name = str(self._template(self.variables.get("sandbox_name", "")))
        if not self.is_here() or not NAME.fullmatch(name):
            return contextlib.nullcontext()
        return Podman().lock(f"sandbox-{name}")

    def _look_ahead(self, pool: ThreadPoolExecutor) -> Future[None] | None:
        """Ask Podman while the variables are judged. What goes wrong there, a step meets again and tells."""
        if not self.is_here():
            return None
        keys = ("sandbox_name", "openshell_sandbox_id", EXECUTABLE)
        name, sandbox_id, executable = (str(self._template(self.variables.get(key) or "")) for key in keys)
        try:
            names = SandboxNames.of(name, sandbox_id)
        except SandboxNameError:
            return None
        return pool.submit(look_ahead, Podman(executable, memory=self.memory), names)

    def _failure(self, message: str, created: List[Json] | None) -> Json:
        """What failed; what this run had made is removed before anybody else has a turn."""
        made = self.variables["openshell_created"] + (created or [])
        failure = {"failed": True, "msg": message, "step": self.step, "created": made}
        if not made:
            return failure
        keys = {"sandbox_name": "sandbox_name", "sandbox_id": "openshell_sandbox_id", "executable": EXECUTABLE}
        wanted = {key: self._template(self.variables.get(name)) for key, name in keys.items()}
        undone = self.module(
            "sandbox_resources", {**{key: one for key, one in wanted.items() if one}, "only": made}, self.variables
        )
        left = f" What it had made is still there: {undone.get('msg')}" if undone.get("failed") else ""
        return {**failure, "msg": message + left, "sidecar_log": undone.get("sidecar_log") or []}

    def _summary(self) -> Json:
        diffs: List[Json] = []
        for found in (outcome.get("diff") for step, outcome in self.outcomes):
            diffs += found if isinstance(found, list) else [found] if found else []
        changed = [step for step, outcome in self.outcomes if outcome.get("changed")]
        found = {"changed": bool(changed), "changed_steps": changed, "facts": self.facts, "diff": diffs}
        warnings = [text for step, outcome in self.outcomes for text in outcome.get("warnings") or []]
        return {**found, "warnings": warnings} if warnings else found

    # -- the roles -------------------------------------------------------------------------------------------------

    def _role_variables(self, steps: Sequence[str], task_vars: Json) -> Json:
        """Everything that a role's task would see: its defaults below, its own variables above the play's."""
        defaults: Json = {}
        own: Json = {}
        for role in ["common", *_roles(steps)]:
            defaults.update(self._load(role, "defaults/main.yml", task_vars) or {})
            own.update(self._load(role, "vars/main.yml", task_vars) or {})
        return {**defaults, **task_vars, **own}

    def _load(self, role: str, file: str, variables: Json) -> Any:
        """A YAML file of one of the roles beside that of this task; None where there is none."""
        path = os.path.join(os.path.dirname(variables["role_path"]), role, file)
        if not os.path.exists(path):
            return None
        more = {"trusted_as_template": True} if self._asks_for_trust else {}
        return self._loader.load_from_file(path, unsafe=True, **more)  # "unsafe": no copy of what nobody changes

    @functools.cached_property
    def _asks_for_trust(self) -> bool:
        """Whether this ansible-core (2.19 and newer) renders only what it was told to trust; a role's files are ours."""
        return "trusted_as_template" in inspect.signature(self._loader.load_from_file).parameters

    def _judge_variables(self, steps: Sequence[str]) -> None:
        """What Ansible does at the beginning of a role: its argument specification; what steps find out is not there."""
        options: Json = {}
        for role in _roles(steps):
            for name, option in self._load(role, "meta/argument_specs.yml", self.variables)["argument_specs"]["main"][
                "options"
            ].items():
                options[name] = {key: value for key, value in option.items() if key not in ("description", "required")}
        given = {name: self._template(self.variables[name]) for name in options if name in self.variables}
        judged = ArgumentSpecValidator(options).validate({key: one for key, one in given.items() if one is not None})
        if judged.error_messages:
            hidden = judged._no_log_values
            raise StepFailed(remove_values({"msg": judged.error_messages[0]}, hidden))
        if self._asks_for_trust:
            self.variables.update(given)  # what came out of a template is none any more

    # -- the steps -------------------------------------------------------------------------------------------------

    def _take(self, steps: Sequence[str]) -> None:
        for task in self._tasks(steps):
            action = action_of(task)
            if not all(self._holds(one) for one in _listed(task.get("when", True))):
                self.variables.update({task[key]: {"skipped": True} for key in ("register",) if key in task})
                continue
            self.step = self._template(task["name"])
            arguments = self._arguments(task[action] or {})
            if action == SET_FACT:
                self._learn(arguments, public=True)
                continue
            Display().vv(f"step: {self.step}")
            outcome = self._run_module(action, arguments)
            if outcome.get("failed"):
                raise StepFailed(outcome)
            self.outcomes.append((self.step, outcome))
            if "register" in task:
                self._learn({task["register"]: outcome}, public=not task.get("no_log"))

    def _tasks(self, steps: Sequence[str]) -> Iterator[Json]:
        for step in steps:
            role, file = step.split("/")
            yield from self._load(role, f"tasks/{file}.yml", self.variables)

    def _learn(self, facts: Json, public: bool) -> None:
        self.variables.update(facts)
        if public:
            self.facts.update(facts)

    def _run_module(self, action: str, arguments: Json) -> Json:
        if self.ahead is not None:
            wait([self.ahead])
        name = action[len(COLLECTION) :]
        if not action_loader.has_plugin(action) or name in ("image", "base_image"):
            return self.module(name, arguments, self.variables)
        task = self._task.copy()
        task.args = arguments
        plugin = action_loader.get(
            action,
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        if isinstance(plugin, HereAction):
            plugin.memory = self.memory
        found: Json = plugin.run(task_vars=self.variables)
        return found

    # -- templates -------------------------------------------------------------------------------------------------

    def _template(self, value: Any) -> Any:
        self._templar.available_variables = self.variables
        return self._templar.template(value)

    def _arguments(self, given: Json) -> Json:
        """Templated, without those that are omitted (ansible-core 2.19 leaves them out itself)."""
        omitted = self.variables.get("omit")
        done = self._template({key: self._named(value) for key, value in given.items()})
        return {key: one for key, one in done.items() if omitted is None or one != omitted}

    def _named(self, value: Any) -> Any:
        """The variable itself for a template that is its name alone: compiling each of those is most of the time.

        Not before ansible-core 2.19, where a text that looks like a list becomes one on its way through a template.
        """
        alone = ALONE.fullmatch(value) if isinstance(value, str) and self._asks_for_trust else None
        return self.variables.get(alone[1], value) if alone else value

    def _holds(self, condition: Any) -> bool:
        self._templar.available_variables = self.variables
        if hasattr(self._templar, "evaluate_conditional"):
            return bool(self._templar.evaluate_conditional(condition))
        return bool(self._templar.template("{{ (" + str(condition) + ") | bool }}"))


def _roles(steps: Sequence[str]) -> List[str]:
    return list(dict.fromkeys(step.split("/")[0] for step in steps))


def _listed(value: Any) -> List[Any]:
    return value if isinstance(value, list) else [value]
