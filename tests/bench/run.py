# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The benchmark: ``run.py IMAGE_FILE [--quick] [--rows NAME,...]`` writes bench-results.json and prints the table.

Every row is measured in rounds; in a round each contestant has its turn once, right after the other, and the ratios are
those within the round. A round in which anything went wrong is counted and shown, and its numbers are not used.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import creation
from contestants import Contestant, Ours, by_name, line_up, policy
from measure import pss_mib
from rows import ROWS, Row
from table import summarise, text_table
from world import EVENTS_PORT, NAME, ORIGIN_IP, PROXY_IP, ROOT, TLS_PORT, World, make_work, run

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long and how often. ``bulk`` bytes per transfer, ``held`` connections for the memory rows."""

    rounds: int
    seconds: float
    bulk: int
    held: int
    events: int
    endurance: int  # transfers of one GiB for the memory row; 0 leaves it out
    fleet: int  # sandboxes by fleet.yml


QUICK = Effort(rounds=1, seconds=0.7, bulk=32 << 20, held=50, events=60, endurance=0, fleet=2)
FULL = Effort(rounds=5, seconds=2.0, bulk=GIB, held=500, events=400, endurance=10, fleet=20)


class Bench:
    """Runs rows and keeps what they gave: ``rounds[row][contestant]`` is a list, one entry a round."""

    def __init__(self, world: World, contestants: list[Contestant], effort: Effort) -> None:
        self.world, self.contestants, self.effort = world, contestants, effort
        self.rounds: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def task(self, contestant: Contestant, row: Row) -> dict[str, Any]:
        effort = self.effort
        sizes = {"seconds": effort.seconds, "warm_up": 0.3, "bytes": effort.bulk, "events": effort.events,
                 "connections": effort.held if row.scenario == "hold" else row.connections, "settle": 1.0}  # fmt: skip
        through = {"proxy": [PROXY_IP, contestant.port] if contestant.port else None, "address": ORIGIN_IP}
        path = "/injected" if row.inject and contestant.injects else row.path
        task = {"host": NAME, "port": row.port, "tls": row.tls, **through, "pids": contestant.cpu_pids(), "path": path}
        return {**task, **sizes, **row.more, "scenario": row.scenario}

    def measure(self, row: Row) -> None:
        """All rounds of one row. Whoever begins a round is last in the next one."""
        names = list(row.contestants)
        found = self.rounds.setdefault(row.name, {name: [] for name in names})
        for number in range(self.effort.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                contestant = by_name(self.contestants, name)
                answer = self.one(contestant, row)
                answer["round"] = number
                found[name].append(answer)
                print(f"  {row.name}, round {number + 1}, {name}: {brief(answer)}", file=sys.stderr)

    def one(self, contestant: Contestant, row: Row) -> dict[str, Any]:
        if row.restart:
            contestant.restart()
        if row.scenario == "rest":
            time.sleep(1.0)  # what is measured is the state of rest, which nothing announces
            return {"pss_mib": pss_mib(contestant.pids())}
        task = self.task(contestant, row)
        if row.scenario == "hold":
            task["pids"] = contestant.pids()
        answer = self.world.load(task, self.effort.seconds + row.patience)
        wrong = contestant.check()
        if wrong and "error" not in answer:
            answer["error"] = wrong
        if "error" in answer:
            contestant.restart()  # a proxy that went wrong must not take its trouble into the next round
        return answer

    def verify(self) -> None:
        """Before anything is measured. Raises :class:`RuntimeError` when a proxy does not do what it is measured for."""
        row = Row("verify", "verify", TLS_PORT, True, ())
        for contestant in self.contestants:
            if contestant.trust is None:
                continue
            more = {"trust": str(contestant.trust), "pids": []}
            answer = self.world.load({**self.task(contestant, row), **more}, 60)
            if answer.get("injected") != contestant.injects:
                raise RuntimeError(f"{contestant.name}: the header is not injected as it should be: {answer}")


def brief(answer: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in answer.items()
        if key not in ("round", "done")
    )


def decisions(ours: Ours) -> dict[str, Any]:
    """The policy engine's cost, in the image's own interpreter (microseconds per decision)."""
    script = Path(__file__).with_name("decide.py")
    found: dict[str, Any] = {}
    for name, extra in (("20 rules", 0), ("10,000 endpoints", 10_000)):
        done = run(
            *ours.once(), "--volume", f"{script}:/decide.py:ro",
            "--entrypoint", "/opt/openshell/bin/python", ours.image, "/decide.py", input=policy(extra),
        )  # fmt: skip
        found[name] = json.loads(done.stdout)
    return found


def growth(bench: Bench, ours: Ours) -> dict[str, Any]:
    """How ours changes with connections, with the size of the policy and with idle WebSockets, and where it ends."""
    keep_alive = next(row for row in ROWS if row.name == "intercept")
    held = Row("held", "hold", TLS_PORT, True, ("ours",), more={"kind": "request"})

    def load(**more: Any) -> dict[str, Any]:
        return {**more, **bench.world.load({**bench.task(ours, keep_alive), **more}, 120), "check": ours.check()}

    found: dict[str, Any] = {"connections": [load(connections=count) for count in (10, 30, 100, 300, 1000)]}
    found["endpoints"] = []
    for count in (10, 100, 1000, 10_000):
        ours.policy = policy(count)
        ours.restart()
        answer = load(connections=32)
        answer |= {"endpoints": count, "ready_seconds": ours.ready_seconds[-1], "pss_mib": pss_mib(ours.pids())}
        found["endpoints"].append(answer)
    ours.policy = policy()
    found["websockets"] = []
    for count in (1, 10, 100, 1000):
        ours.restart()
        task = {
            **bench.task(ours, held),
            "port": EVENTS_PORT,
            "kind": "websocket",
            "path": "/events",
            "connections": count,
        }
        found["websockets"].append({"websockets": count, **bench.world.load({**task, "pids": ours.pids()}, 120)})
    ours.restart()
    task = {**bench.task(ours, held), "scenario": "overflow", "connections": 1100}
    found["limit"] = bench.world.load(task, 120)
    return found


def endurance(bench: Bench, ours: Ours) -> dict[str, Any]:
    """Ten downloads of a GiB through interception, and the most memory that was seen under way."""
    row = next(one for one in ROWS if one.name == "download")
    task = {**bench.task(ours, row), "times": bench.effort.endurance, "memory": True, "pids": ours.pids()}
    return bench.world.load(task, 900)


def machine() -> dict[str, Any]:
    model = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {"cpu": model[0] if model else platform.machine(), "cores": os.cpu_count(), "memory_gib": round(int(memory) / (1 << 20)),
            "kernel": platform.release(), "load_before": os.getloadavg()[0]}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("image_file", type=Path, help="what image.yml wrote")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", default="")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--results", type=Path, default=ROOT / "bench-results.json")
    options = parser.parse_args()
    effort = QUICK if options.quick else FULL
    effort = dataclasses.replace(effort, rounds=options.rounds or effort.rounds)
    make_work()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was made is removed
    began = time.monotonic()
    image = json.loads(options.image_file.read_text())
    world = World(GIB if effort.endurance else effort.bulk, image["sidecar"]["sysctls"])
    contestants: list[Contestant] = []
    results: dict[str, Any] = {"when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                               "quick": options.quick, "rows": options.rows, "machine": machine(), "effort": dataclasses.asdict(effort)}  # fmt: skip
    try:
        world.make()
        line_up(world, image, contestants)
        results["versions"] = {one.name: one.version() for one in contestants}
        bench = Bench(world, contestants, effort)
        bench.verify()
        ours = next(one for one in contestants if isinstance(one, Ours))
        wanted = set(options.rows.split(",")) - {""}
        for row in ROWS:
            if not wanted or row.name in wanted:
                bench.measure(row)
                options.results.write_text(
                    json.dumps({**results, "rounds": bench.rounds})
                )  # should it not come to its end
        results |= {"rounds": bench.rounds, "injects": {one.name: one.injects for one in contestants}}
        results |= extras(bench, ours, wanted)
    finally:
        for contestant in contestants:
            contestant.stop()
            if isinstance(contestant, Ours):
                contestant.remove()
        world.remove()
    results["seconds"] = round(time.monotonic() - began)
    results["table"] = summarise(results)
    options.results.write_text(json.dumps(results, indent=1) + "\n")
    print(text_table(results))
    return 1 if any(line["failed"].keys() & {"ours", "direct"} for line in results["table"]) else 0


def extras(bench: Bench, ours: Ours, wanted: set[str]) -> dict[str, Any]:
    """What is about ours alone: decisions, start, creation, endurance, growth."""
    found: dict[str, Any] = {}
    steps: list[tuple[str, Callable[[], Any], bool]] = [
        ("decisions", lambda: decisions(ours), True),
        ("start", lambda: starts(ours, max(bench.effort.rounds, 3)), True),
        ("creation", lambda: creation.measure(bench.effort.rounds, bench.effort.fleet), True),
        ("endurance", lambda: endurance(bench, ours), bench.effort.endurance > 0),
        ("growth", lambda: growth(bench, ours), bench.effort.endurance > 0),
    ]
    for name, step, worth in steps:
        if worth and (not wanted or name in wanted):
            print(f"  {name}", file=sys.stderr)
            found[name] = step()
    return found


def starts(ours: Ours, times: int) -> list[float]:
    """Seconds from ``podman start`` to ``.ready``."""
    for _ in range(times):
        ours.restart()
    return ours.ready_seconds[-times:]


if __name__ == "__main__":
    sys.exit(main())
