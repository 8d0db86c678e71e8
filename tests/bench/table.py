# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From rounds to the table: medians, ratios within a round, and whether each goal was met."""

from __future__ import annotations

import statistics
from typing import Any

from rows import ROWS, Goal, Row

NAMES = ("ours", "squid", "mitmdump", "proxy.py", "tinyproxy", "direct")
SATURATED = 2.0  # the load must be able to do at least this many times what the fastest proxy did
DISTURBED = 0.85  # a proxy under full load that gets less of its core shares it with somebody

# (key, title, goal, unit) of what is about ours alone
EXTRAS = (
    ("endurance", "memory, most during 10 GiB of interception", 60.0, "MiB"),
    ("20 rules", "policy decision, 20 rules", 2.0, "µs"),
    ("10,000 endpoints", "policy decision, 10,000 endpoints", 4.0, "µs"),
    ("start", "container start → .ready", 0.5, "s"),
    ("create", "create_sandbox.yml, against a script of its podman commands", 3.0, "×"),
    ("unchanged", "the same again, nothing to change, against an empty playbook", 2.0, "×"),
    ("fleet", "twenty sandboxes by fleet.yml, against the script twenty times", 1.5, "×"),
    ("fleet_unchanged", "an unchanged fleet, each sandbox more", 0.3, "s"),
    ("sandbox", "memory of an idle sandbox, everything but the workload", 60.0, "MiB"),
)


def median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def good(entries: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Rounds without an error, by number."""
    return {entry["round"]: entry for entry in entries if "error" not in entry}


def judge(goal: Goal, rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """One goal: the median over the rounds of the ratio, the difference or the value, and whether it is met."""
    ours = good(rounds.get("ours", []))
    values = []
    if goal.peer:
        theirs = good(rounds.get(goal.peer, []))
        for number in ours.keys() & theirs.keys():
            one, other = ours[number][goal.metric], theirs[number][goal.metric]
            values.append(one - other if goal.minus else one / other)
    else:
        values = [entry[goal.metric] for entry in ours.values()]
    middle = median(values)
    met = None if middle is None else middle <= goal.limit if goal.at_most else middle >= goal.limit
    sign = "≤" if goal.at_most else "≥"
    peer = f" {goal.peer}" if goal.peer and not goal.minus else ""
    unit = goal.unit if goal.unit == "×" else f" {goal.unit}"
    return {"goal": f"{sign} {goal.limit:g}{unit}{peer}", "value": middle, "met": met, "rounds": len(values),
            "reached": reached(goal.limit, goal.at_most, middle)}  # fmt: skip


def reached(limit: float, at_most: bool, value: float | None) -> float | None:
    """How far a goal is reached: 1 is exactly, more is better. None where that is no number."""
    if value is None or value <= 0:
        return None
    return limit / value if at_most else value / limit


def line(row: Row, rounds: dict[str, list[dict[str, Any]]], injects: dict[str, bool]) -> dict[str, Any]:
    medians = {
        name: median([entry[row.metric] for entry in good(entries).values()]) for name, entries in rounds.items()
    }
    failed = {name: [entry["error"] for entry in entries if "error" in entry] for name, entries in rounds.items()}
    notes = []
    if row.inject and not injects["ours"]:
        notes.append("ours without header injection, unlike its peers")
    proxies = [value for name, value in medians.items() if name != "direct" and value]
    distance = None
    if row.unit in ("/s", "MiB/s") and medians.get("direct") and proxies:
        distance = medians["direct"] / max(proxies)
        if distance < SATURATED:
            notes.append(f"load and origin can do only {distance:.1f} × the fastest proxy")
    cpu = {
        name: median([one["cpu_us"] for one in good(entries).values() if one.get("cpu_us")])
        for name, entries in rounds.items()
    }
    share = (medians.get("ours") or 0) * (cpu.get("ours") or 0) / 1e6
    if row.unit == "/s" and 0 < share < DISTURBED:
        notes.append(
            f"ours used {share:.0%} of its core: it waited for the load, or others used the machine; the CPU time per"
            " request is the surer number"
        )
    return {"cpu_us": cpu, "name": row.name, "title": row.title, "unit": row.unit, "medians": medians, "direct_over_fastest": distance,
            "goals": [judge(goal, rounds) for goal in row.goals], "notes": notes,
            "failed": {name: errors for name, errors in failed.items() if errors}}  # fmt: skip


def extra_values(results: dict[str, Any]) -> dict[str, list[float]]:
    values = {name: [found["us"]] for name, found in results.get("decisions", {}).items()}
    if "start" in results:
        values["start"] = results["start"]
    values.update(results.get("creation", {}))
    if "peak_pss_mib" in results.get("endurance", {}):
        values["endurance"] = [results["endurance"]["peak_pss_mib"]]
    return values


def summarise(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The table's lines."""
    lines = [
        line(row, results["rounds"][row.name], results["injects"]) for row in ROWS if row.name in results["rounds"]
    ]
    values = extra_values(results)
    for key, title, limit, unit in EXTRAS:
        if key not in values:
            continue
        middle = statistics.median(values[key])
        goal = {"goal": f"≤ {limit:g} {unit}", "value": middle, "met": middle <= limit, "rounds": len(values[key]),
                "reached": reached(limit, True, middle)}  # fmt: skip
        lines.append({"name": key, "title": title, "unit": unit, "medians": {"ours": middle}, "goals": [goal],
                      "direct_over_fastest": None, "notes": extra_notes(key, values), "failed": {}})  # fmt: skip
    return lines


def extra_notes(key: str, values: dict[str, list[float]]) -> list[str]:
    if key != "fleet_unchanged" or "fleet_runs" not in values:
        return []
    return [
        "one sandbox, half a fleet and two and a half: "
        + ", ".join(f"{one:.1f}" for one in values["fleet_runs"])
        + " s"
    ]


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def verdict(goal: dict[str, Any]) -> str:
    if goal["value"] is None:
        return f"{goal['goal']}: not measured"
    return f"{goal['goal']}: {number(goal['value'])} {'met' if goal['met'] else 'MISSED'}"


def cells(one: dict[str, Any]) -> list[str]:
    shown = [number(one["medians"].get(name)) for name in NAMES]
    cpu = one.get("cpu_us", {})
    shown = [
        f"{text} ({cpu[name]:,.0f} µs)" if cpu.get(name) else text for name, text in zip(NAMES, shown, strict=True)
    ]
    failed = [f"failed rounds: {name} {len(errors)} ({errors[0]})" for name, errors in one["failed"].items()]
    goals = "; ".join(verdict(goal) for goal in one["goals"])
    return [f"{one['title']}, {one['unit']}", *shown, goals, "; ".join([*one["notes"], *failed])]


def text_table(results: dict[str, Any]) -> str:
    """The table for a terminal; the same in Markdown."""
    head = ["what", *NAMES, "goals for ours", "notes"]
    rows = [head, ["---"] * len(head), *[[cell.replace("|", "/") for cell in cells(one)] for one in results["table"]]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
