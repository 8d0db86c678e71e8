# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long it takes to make a sandbox, against a shell script of the same podman commands, and what one costs at rest.

The script is recorded: what the playbook asks Podman to change, in its order, and nothing else; it waits for the same
sentinel. So the ratio is what Ansible and our checks add. What sandboxes share is there for both: images, bridge, authority.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measure import pss_mib, tree
from world import ROOT, WORK, run

RECORDED = "bench-recorded"
FLEET = 20
CHANGING = ("create", "cp", "start", "network create", "network connect", "volume create")
RECORDER = """#!/usr/bin/python3
import json, os, sys
at = {directory!r}
words, stdin = sys.argv[1:], ""
if words[0] == "--runtime":
    plain = words[2:]
else:
    plain = words
if plain[0] == "cp":
    stdin = "%s/stdin-%d" % (at, len(os.listdir(at)))
    with open(stdin, "wb") as file:
        file.write(sys.stdin.buffer.read())
    os.dup2(os.open(stdin, os.O_RDONLY), 0)
with open(at + "/calls", "a") as calls:
    calls.write(json.dumps([words, plain, stdin]) + "\\n")
os.execvp("podman", ["podman", *words])
"""


def playbook(name: str, *more: str, **variables: Any) -> None:
    """Raises :class:`RuntimeError` when it fails."""
    command = [ROOT / ".venv/bin/ansible-playbook", *more, ROOT / f"playbooks/{name}.yml", "-e", json.dumps(variables)]
    run(*command, cwd=ROOT, env={**os.environ, "ANSIBLE_NOCOLOR": "1"})


def seconds(step: Callable[[], Any]) -> float:
    began = time.monotonic()
    step()
    return time.monotonic() - began


class Script:
    """The shell script of podman commands, for a sandbox of any name."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        recorder = directory / "podman"
        recorder.write_text(RECORDER.format(directory=str(directory)))
        recorder.chmod(0o755)
        playbook("create_sandbox", sandbox_name=RECORDED, openshell_podman_executable=str(recorder))
        lines = (directory / "calls").read_text().splitlines()
        self.commands = [self.line(*json.loads(line)) for line in lines]

    @staticmethod
    def line(words: list[str], plain: list[str], stdin: str) -> str:
        if not (plain[0] in CHANGING or " ".join(plain[:2]) in CHANGING):
            return ""
        line = shlex.join(["podman", *words]) + (f" < {stdin}" if stdin else "") + " > /dev/null"
        if plain[:2] == ["network", "create"] and plain[-1] != f"openshell-sbx-{RECORDED}":
            return ""  # it is every sandbox's, and the recorded one stays while others are measured
        if plain[:2] == ["network", "create"]:
            form = "'{{range .Subnets}}{{.Subnet}}{{end}}'"
            line += f"\nbase=$(podman network inspect --format {form} {plain[-1]} | cut -d. -f1-3)"
        if plain == ["start", f"openshell-proxy-{RECORDED}"]:
            volume = f"$(podman volume inspect --format '{{{{.Mountpoint}}}}' openshell-tls-{RECORDED})"
            line += f"\nready={volume}\nuntil [ -e $ready/.ready ]; do sleep 0.05; done"
        return line

    def make(self, name: str) -> None:
        text = "\n".join(line for line in self.commands if line)
        (base,) = set(re.findall(r":ip=(\d+\.\d+\.\d+)\.2,", text))
        text = text.replace(f"{base}.", "$base.").replace(RECORDED, name)
        run("sh", "-ec", text)


def measure(rounds: int, fleet: int = FLEET) -> dict[str, list[float]]:
    """``create``, ``unchanged``, ``fleet``: ratios; ``sandbox``: MiB at rest; ``fleet_runs``: seconds of a run over one sandbox,
    half of the fleet and two and a half fleets, nothing to change; ``fleet_unchanged``: each sandbox's share of that."""
    found: dict[str, list[float]] = {"create": [], "unchanged": [], "sandbox": []}
    script = Script(WORK / "creation")
    empty = WORK / "creation" / "empty.yml"
    empty.write_text("- {hosts: localhost, gather_facts: false, tasks: [{meta: noop}]}\n")
    ours, theirs = "bench-ours", "bench-script"
    try:
        for _ in range(rounds):
            made = seconds(lambda: playbook("create_sandbox", sandbox_name=ours))
            found["create"].append(made / seconds(lambda: script.make(theirs)))
            again = seconds(lambda: playbook("create_sandbox", sandbox_name=ours))
            found["unchanged"].append(again / seconds(lambda: run(ROOT / ".venv/bin/ansible-playbook", empty)))
            found["sandbox"].append(at_rest(ours))
            remove([ours, theirs])
        return {**found, **many(script, fleet)}
    finally:
        remove([RECORDED, ours, theirs])


def at_rest(name: str) -> float:
    """MiB of everything of a sandbox but its workload, which is the agent's last process."""
    form = "{{.State.Pid}} {{.State.ConmonPid}}"
    pids: list[int] = []
    for container in (f"openshell-proxy-{name}", f"openshell-agent-{name}"):
        first, monitor = map(int, run("podman", "inspect", "--format", form, container).stdout.split())
        pids += [monitor, *tree(first)]
    return pss_mib(pids[:-1])


def many(script: Script, count: int) -> dict[str, list[float]]:
    """The same for a fleet of *count* on this host."""
    sizes = [1, count // 2, count * 5 // 2]
    names = [f"bench-fleet-{number}" for number in range(sizes[-1])]
    inventory = WORK / "creation" / "inventory.yml"
    local = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    hosts = {"openshell_sandboxes": {"hosts": {name: {} for name in names}}, "podman": {"hosts": {"localhost": local}}}
    inventory.write_text(json.dumps(hosts))
    single = [f"{name}-s" for name in names[:count]]

    def fleet(size: int) -> float:
        return seconds(lambda: playbook("fleet", "-i", str(inventory), "--limit", ",".join(names[:size])))

    try:
        made = fleet(count)
        alone = seconds(lambda: [script.make(name) for name in single])
        remove(single)
        fleet(len(names))
        runs = [fleet(size) for size in sizes]
    finally:
        remove([*names, *single])
    return {"fleet": [made / alone], "fleet_runs": runs, "fleet_unchanged": [each(sizes, runs)]}


def each(sizes: list[int], runs: list[float]) -> float:
    """What one sandbox more costs in seconds, where it costs most."""
    steps = itertools.pairwise(zip(sizes, runs, strict=True))
    return max((later - run) / (more - size) for (size, run), (more, later) in steps if more > size)


def remove(names: list[str]) -> None:
    """Delete them, four at a time; the others go when one cannot."""

    def one(name: str) -> None:
        try:
            playbook("delete_sandbox", sandbox_name=name)
        except RuntimeError as error:
            print(error, file=sys.stderr)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, names))
