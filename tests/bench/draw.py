# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From bench-results.json: the tables in docs/performance.md and the pictures beside it."""

from __future__ import annotations

import json
import sys
from typing import Any

import matplotlib
from table import number, summarise, text_table
from world import ROOT

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "bench"  # the same results draw the same file
import matplotlib.pyplot as plt  # noqa: E402

DOCS = ROOT / "docs"


def save(figure: Any, name: str) -> None:
    figure.tight_layout()
    figure.savefig(DOCS / name, metadata={"Date": None})


def draw_goals(table: list[dict[str, Any]]) -> None:
    """One bar per goal: how far it is reached. Right of the line is met, whichever way the goal counts."""
    bars = [
        (f"{line['title']}: {goal['goal']}", goal["reached"], goal["met"])
        for line in table
        for goal in line["goals"]
        if goal["reached"]
    ]
    figure, axes = plt.subplots(figsize=(11, 0.34 * len(bars) + 1))
    axes.barh(
        [bar[0] for bar in bars], [bar[1] for bar in bars], color=["#2a7f3f" if bar[2] else "#b5483a" for bar in bars]
    )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("reached / goal (1 = exactly the goal)")
    axes.invert_yaxis()
    save(figure, "performance-goals.svg")


def draw_growth(growth: dict[str, list[dict[str, Any]]]) -> None:
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.4))
    for panel, (name, metric, label) in zip(
        panels,
        (("connections", "cpu_us", "CPU µs per request"), ("endpoints", "cpu_us", "CPU µs per request"),
         ("websockets", "pss_mib", "memory, MiB")),
        strict=True,
    ):  # fmt: skip
        points = [(one[name], one[metric]) for one in growth[name] if metric in one]
        panel.plot(*zip(*points, strict=True), marker="o")
        panel.set_xscale("log")
        panel.set_ylim(bottom=0)
        panel.set_xlabel(
            {"connections": "connections", "endpoints": "policy endpoints", "websockets": "idle WebSockets"}[name]
        )
        panel.set_ylabel(label)
    save(figure, "performance-growth.svg")


def conditions(results: dict[str, Any]) -> str:
    machine, effort = results["machine"], results["effort"]
    versions = "; ".join(f"{name}: {text}" for name, text in results["versions"].items())
    return (
        f"Measured {results['when'][:10]} on {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}; {effort['rounds']} rounds. {versions}. {results.get('remark', '')}\n"
    )


def growth_text(results: dict[str, Any]) -> str:
    """Numbers behind the picture, and the first limit."""
    growth = results["growth"]
    lines = [f"Measured {results['when'][:10]}.", ""]
    lines += ["| connections | requests/s | CPU µs per request | p99 ms |", "| --- | --- | --- | --- |"]
    lines += [_growth_row(one, "connections", ("per_second", "cpu_us", "p99_ms")) for one in growth["connections"]]
    lines += ["", "| policy endpoints | CPU µs per request | memory, MiB | start, s |", "| --- | --- | --- | --- |"]
    lines += [_growth_row(one, "endpoints", ("cpu_us", "pss_mib", "ready_seconds")) for one in growth["endpoints"]]
    lines += ["", "| idle WebSockets | memory, MiB | share of a core |", "| --- | --- | --- |"]
    lines += [_growth_row(one, "websockets", ("pss_mib", "idle_cpu_share")) for one in growth["websockets"]]
    limit = growth["limit"]
    lines += ["", "![Growth with connections, policy endpoints and idle WebSockets](performance-growth.svg)", ""]
    if "error" in limit:
        lines.append(f"The first limit was not found: {limit['error']}")
    else:
        lines.append(f"The first limit: {limit['served']:,} connections are served; the next one sees: {limit['then']}")
    return "\n".join(lines)


def _growth_row(one: dict[str, Any], name: str, metrics: tuple[str, ...]) -> str:
    cells = [one["error"]] if "error" in one else [number(one.get(metric)) for metric in metrics]
    return "| " + " | ".join([f"{one[name]:,}", *cells]) + " |"


def put(page: str, name: str, text: str) -> str:
    """*page* with *text* as what is generated under *name*."""
    begin, end = f"<!-- generated: {name} -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = page.partition(begin)
    after = rest.partition(end)[2]
    if not found or not rest.endswith(after) or end not in rest:
        raise SystemExit(f"docs/performance.md has no place for {name}")
    return f"{before}{begin}\n{text}\n\n{end}{after}"


def main() -> int:
    """Draw what there is; the table only where it is of all rows."""
    results = json.loads((ROOT / "bench-results.json").read_text())
    page = DOCS / "performance.md"
    text = page.read_text()
    if not results["rows"]:
        results["table"] = summarise(results)
        draw_goals(results["table"])
        text = put(text, "the table", f"{conditions(results)}\n{text_table(results)}")
    if "growth" in results:
        draw_growth(results["growth"])
        text = put(text, "growth", growth_text(results))
    page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
