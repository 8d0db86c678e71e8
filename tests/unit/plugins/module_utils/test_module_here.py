# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A module in this process says what it says in one of its own, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils import kept
from ansible_collections.openshell.sandbox.plugins.module_utils.module import new_module, run_here, run_module
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman, new_memory
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import LABEL_UID_BASE
from ansible_collections.openshell.sandbox.plugins.modules import (
    host_preflight_info,
    internal_network,
    sandbox_resources,
)
from host import Host


def here(main: Any, check: bool = False, **arguments: Any) -> dict[str, Any]:
    return run_here(main, arguments, check, new_memory())


@pytest.mark.parametrize("check", [True, False], ids=["check", "run"])
def test_the_result_is_that_of_a_process(host: Host, check: bool) -> None:
    wanted = {"executable": host.executable, "sandbox_name": "demo"}
    mine = here(internal_network.main, check=check, **wanted)
    if not check:
        host.direct.remove_network("openshell-sbx-demo")
        host.direct.remove_volume("openshell-workspace-demo")
    theirs = host.module("internal_network", check=check, sandbox_name="demo")
    assert mine == {key: value for key, value in theirs.items() if key != "invocation"}
    assert (host.podman.network("openshell-sbx-demo") is None) == check


def test_a_refusal_is_a_result(host: Host) -> None:
    refused = here(internal_network.main, executable=host.executable, sandbox_name="A")
    assert refused["failed"] is True
    assert "sandbox name 'A' is not allowed" in refused["msg"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"state": "present"}, "value of state must be one of"), ({"nonsense": 1}, "nonsense"), ({}, "missing required")],
    ids=["choice", "unknown", "missing"],
)
def test_arguments_are_judged_as_ansible_judges_them(host: Host, wrong: dict[str, Any], words: str) -> None:
    given = {"executable": host.executable, **({"sandbox_name": "demo"} if wrong else {}), **wrong}
    assert words in here(sandbox_resources.main, **given)["msg"]
    assert host.calls() == []


def test_what_is_secret_is_cut_out_of_the_result() -> None:
    def main() -> None:
        module = new_module({"word": {"type": "str", "no_log": True}}, podman=False)
        module.warn("careful with " + module.params["word"])
        run_module(module, lambda: {"changed": False, "said": f"it is {module.params['word']}"})

    found = here(main, word="hunter2hunter2")
    assert "hunter2hunter2" not in str(found)
    assert found["warnings"][0].startswith("careful with ")


def test_one_series_of_modules_asks_once(host: Host) -> None:
    host.direct.ensure_internal_network("openshell-sbx-demo", {"openshell.managed": "true"})
    host.direct.ensure_volume("openshell-workspace-demo", {"openshell.managed": "true", LABEL_UID_BASE: "2200000000"})
    memory = new_memory()
    arguments = {"executable": host.executable, "sandbox_name": "demo"}
    for turn in range(2):
        assert run_here(internal_network.main, arguments, False, memory)["changed"] is False, turn
    assert len(host.calls("network inspect")) == 2  # one of them made it


def test_user_ids_that_another_took_meanwhile_are_taken(host: Host) -> None:
    arguments = {"executable": host.executable, "sandbox_name": "demo"}
    first = run_here(internal_network.main, arguments, False, new_memory())["agent_uid_base"]
    host.direct.remove_network("openshell-sbx-demo")
    host.direct.remove_volume("openshell-workspace-demo")
    memory = new_memory()
    Podman(host.executable, memory=memory).volume("any")  # an early look, before the other one made its workspace
    host.direct.ensure_volume("openshell-workspace-other", {LABEL_UID_BASE: str(first)})
    assert run_here(internal_network.main, arguments, False, memory)["agent_uid_base"] != first


def test_what_podman_says_of_the_host_is_kept_for_every_module_of_a_later_series(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "runtime_directory", lambda: str(tmp_path))
    arguments = {"executable": host.executable, "sandbox_name": "demo"}
    for series in range(2):
        memory = new_memory()
        for main in (host_preflight_info.main, internal_network.main):
            assert "failed" not in run_here(main, arguments, False, memory), series
    assert len(host.calls("info")) == 1


def test_answers_are_kept_for_their_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "runtime_directory", lambda: str(tmp_path))
    assert kept.recall(["a", 1]) is None
    kept.keep(["a", 1], {"ok": True})
    assert kept.recall(["a", 1]) == {"ok": True}
    assert kept.recall(["a", 2]) is None
    (found,) = (tmp_path / "openshell" / "kept").iterdir()
    assert found.stat().st_mode & 0o077 == 0
    assert found.parent.stat().st_mode & 0o077 == 0
    found.write_text("{half")
    assert kept.recall(["a", 1]) is None


def test_what_cannot_be_kept_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openshell").write_text("")
    monkeypatch.setattr(kept, "runtime_directory", lambda: str(tmp_path))
    kept.keep("a", 1)
    assert kept.recall("a") is None
