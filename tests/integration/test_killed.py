# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ansible killed at any of its calls of Podman: the same command again makes, or removes, the whole sandbox.

Some of the calls here; all of them with ``make walk``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, changed, inside, ours, playbook, podman

NAME = "it-killed"
KINDS = ("container", "network", "volume", "secret")
WALK = bool(os.environ.get("OPENSHELL_WALK"))
SECRET = {"name": "k", "value": "never-shown-0123456789", "hosts": ["a.example"], "header": "X-Key", "env": "K"}

# Counts the calls that change something in the file "count" (the others are as many as it has to wait for the sidecar);
# at call N of "kill" it ends the group of the file "group".
WRAPPER = """#!/bin/sh
case " $* " in *" inspect "*|*" ls "*|*" info "*|*" logs "*|*" ps "*) exec podman "$@" ;; esac
cd "$(dirname "$0")" || exit 1
number=$(flock lock sh -c 'n=$(($(cat count) + 1)); echo $n | tee count')
read -r at when < kill
[ "$number" = "$at" ] || exec podman "$@"
if [ "$when" = after ]; then podman "$@" > /dev/null 2>&1; fi
kill -KILL "-$(cat group)"
exit 1
"""


class Killer:
    """A podman command that kills its caller at one call."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.executable = directory / "podman"
        self.executable.write_text(WRAPPER)
        self.executable.chmod(0o755)

    def run(self, name: str, at: int = 0, when: str = "before") -> int:
        """Run a playbook that dies at its call *at*; how it ended."""
        for file, text in (("count", "0"), ("kill", f"{at} {when}")):
            (self.directory / file).write_text(text)
        secrets = [SECRET] if name == "create_sandbox" else []
        variables = {
            "sandbox_name": NAME,
            "openshell_podman_executable": str(self.executable),
            "openshell_secrets": secrets,
        }
        command = [str(ROOT / ".venv/bin/ansible-playbook"), f"playbooks/{name}.yml", "-e", json.dumps(variables)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet) as process:  # type: ignore[call-overload]
            (self.directory / "group").write_text(str(process.pid))
            return int(process.wait(timeout=240))

    def calls(self, name: str) -> list[int]:
        """Numbers of a whole run's calls."""
        assert self.run(name) == 0
        return list(range(1, int((self.directory / "count").read_text()) + 1))


@pytest.fixture
def killer(tmp_path: Path) -> Iterator[Killer]:
    try:
        yield Killer(tmp_path)
    finally:
        playbook("delete_sandbox", sandbox_name=NAME)


def is_whole() -> None:
    """A sandbox that lacks nothing, which a further run finds as it is to be."""
    again = playbook("create_sandbox", sandbox_name=NAME, openshell_secrets=[SECRET])
    assert again.returncode == 0, again.stdout[-3000:]
    assert inside(NAME, "cat", "/etc/hosts").stdout.endswith(f"\t{NAME}\n")
    assert inside(NAME, "sh", "-c", "echo $K").stdout.startswith("openshell:resolve:env:K")
    aside = [one for one in podman("ps", "-a", "--format", "{{.Names}}").stdout.split() if f"{NAME}-" in one]
    assert aside == []


def is_gone() -> None:
    again = playbook("delete_sandbox", sandbox_name=NAME)
    assert again.returncode == 0, again.stdout[-3000:]
    assert {kind: ours(kind, NAME) for kind in KINDS} == {kind: [] for kind in KINDS}


def points(numbers: list[int], sample: int) -> list[tuple[int, str]]:
    """Before and after each of the calls; where that is too long, *sample* of them over the whole length."""
    every = [(number, when) for number in numbers for when in ("before", "after")]
    return every if WALK else every[:: max(1, len(every) // sample)][:sample]


def test_a_killed_creation_is_taken_up_again(killer: Killer) -> None:
    numbers = killer.calls("create_sandbox")
    assert len(numbers) > 12
    is_gone()
    for at, when in points(numbers, 4):
        assert killer.run("create_sandbox", at, when) == -signal.SIGKILL, (at, when)
        is_whole()
        is_gone()


def test_a_killed_removal_is_taken_up_again(killer: Killer) -> None:
    assert killer.run("create_sandbox") == 0
    numbers = killer.calls("delete_sandbox")
    assert len(numbers) > 5
    for at, when in points(numbers, 2):
        assert playbook("create_sandbox", sandbox_name=NAME).returncode == 0
        assert killer.run("delete_sandbox", at, when) == -signal.SIGKILL, (at, when)
        is_gone()


def test_two_creations_of_one_name_make_one_sandbox(killer: Killer) -> None:
    wanted = {"sandbox_name": NAME, "openshell_secrets": [SECRET]}
    with ThreadPoolExecutor(3) as pool:
        ended = list(pool.map(lambda _one: playbook("create_sandbox", **wanted), range(3)))
    assert [one.returncode for one in ended] == [0, 0, 0], [one.stdout[-1500:] for one in ended]
    assert sorted(changed(one) for one in ended) == [0, 0, 1]
    is_whole()


def test_creations_of_several_names_do_not_meet() -> None:
    names = [f"it-meet-{number}" for number in range(50 if WALK else 4)]
    # Fifty sidecars that start on a few processors take their time; who creates so many at once gives it to them.
    wanted = {"openshell_ready_timeout": 300}
    with ThreadPoolExecutor(len(names)) as pool:
        ended = list(pool.map(lambda name: playbook("create_sandbox", sandbox_name=name, **wanted), names))
        try:
            assert [one.stdout[-1500:] for one in ended if one.returncode] == []
            subnets = {
                podman("inspect", "-f", "{{json .NetworkSettings.Networks}}", f"openshell-agent-{one}").stdout
                for one in names
            }
            assert len(subnets) == len(names)
        finally:
            list(pool.map(lambda name: playbook("delete_sandbox", sandbox_name=name), names))
    assert {kind: ours(kind, *names) for kind in KINDS} == {kind: [] for kind in KINDS}
