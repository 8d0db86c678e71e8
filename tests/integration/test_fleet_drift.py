# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The look at all sandboxes of this machine: whatever differs of one is seen, and of that one only."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import playbook, podman

WHOLE, BROKEN = "it-drift-whole", "it-drift-broken"
SECRET = {"name": "k", "value": "never-shown-0123456789", "hosts": ["a.example"], "header": "X-Key", "env": "K"}


def fleet(directory: Path, *args: str, **variables: Any) -> tuple[list[str], str]:
    """Run fleet.yml with *variables* of the broken one: which were found to need nothing, and the last words."""
    hosts = {WHOLE: {}, BROKEN: {"openshell_secrets": [SECRET], "openshell_policy": {"version": 1}, **variables}}
    inventory = directory / "inventory.json"
    inventory.write_text(json.dumps({"openshell_sandboxes": {"hosts": hosts}}))
    done = playbook("fleet", "-v", "-i", str(inventory), *args)
    assert "Fleet: 2 sandboxes on 1 host" in done.stdout, done.stdout[-3000:] + done.stderr
    assert SECRET["value"] not in done.stdout + done.stderr
    found = re.search(r"openshell_fleet_as_declared:(( *\[\])|(\n +- \S+)+)\n", done.stdout)
    assert found, done.stdout[-3000:]
    return sorted(re.findall(r"- (\S+)", found[1])), done.stdout


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("drift")
    try:
        assert fleet(directory)[0] == []
        yield directory
    finally:
        for name in (WHOLE, BROKEN):
            playbook("delete_sandbox", sandbox_name=name)


def registration() -> Path:
    root = podman("info", "--format", "{{.Store.GraphRoot}}").stdout.strip()
    return Path(root).parent / "openshell/sandboxes" / f"{BROKEN}.json"


def sentinel() -> Path:
    volume = podman("volume", "inspect", "--format", "{{.Mountpoint}}", f"openshell-tls-{BROKEN}").stdout.strip()
    return Path(volume) / ".ready"


def test_what_needs_nothing_is_left_alone(two: Path) -> None:
    found, said = fleet(two)
    assert found == [BROKEN, WHOLE]
    assert "take the steps" not in said
    assert "Fleet: 2 sandboxes on 1 host: 2 as declared, 0 not" in said


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"openshell_policy": {"version": 1, "network_policies": {}, "process": {}}}, id="policy"),
        pytest.param({"openshell_secrets": []}, id="secret"),
        pytest.param({"openshell_env": {"GREETING": "hello"}}, id="environment"),
        pytest.param({"openshell_state": "stopped"}, id="state"),
        pytest.param({"openshell_memory": "lots"}, id="refused"),
    ],
)
def test_what_is_declared_otherwise_is_seen(two: Path, variables: dict[str, Any]) -> None:
    assert fleet(two, "--check", **variables)[0] == [WHOLE]


@pytest.mark.parametrize("file", [registration, sentinel])
def test_what_is_missing_is_seen(two: Path, file: Callable[[], Path]) -> None:
    path = file()
    aside = shutil.move(path, two / path.name)
    try:
        assert fleet(two, "--check")[0] == [WHOLE]
    finally:
        shutil.move(aside, path)


def test_an_agent_that_does_not_run_is_seen_and_started(two: Path) -> None:
    podman("stop", "--time", "0", f"openshell-agent-{BROKEN}")
    assert fleet(two)[0] == [WHOLE]
    assert fleet(two)[0] == [BROKEN, WHOLE]
