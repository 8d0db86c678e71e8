# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The benchmark's arithmetic: ratios within a round, failed rounds left out and shown, a slow load said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
from load import LoadError, Target, complete, percentile
from rows import ROWS, Goal
from table import cells, judge, line

ROUNDS: dict[str, list[dict[str, Any]]] = {
    "ours": [{"round": 0, "per_second": 10.0}, {"round": 1, "per_second": 40.0}, {"round": 2, "error": "it broke"}],
    "squid": [{"round": 0, "per_second": 5.0}, {"round": 1, "per_second": 10.0}, {"round": 2, "per_second": 1000.0}],
    "direct": [{"round": number, "per_second": 50.0} for number in range(3)],
}
INTERCEPT = next(row for row in ROWS if row.name == "intercept")


def test_a_ratio_is_that_within_a_round_and_a_failed_round_has_none() -> None:
    found = judge(Goal("per_second", 3.5, "squid"), ROUNDS)
    assert (found["value"], found["rounds"], found["met"]) == (3.0, 2, False)


def test_a_goal_may_be_a_difference_or_an_upper_bound() -> None:
    rounds = {"ours": [{"round": 0, "p50_ms": 0.5}], "direct": [{"round": 0, "p50_ms": 0.25}]}
    found = judge(Goal("p50_ms", 0.3, "direct", at_most=True, minus=True), rounds)
    assert (found["value"], found["met"]) == (0.25, True)
    assert judge(Goal("p50_ms", 0.4, at_most=True), rounds)["met"] is False


def test_nothing_measured_is_neither_met_nor_missed() -> None:
    assert judge(Goal("per_second", 1, "squid"), {"ours": [{"round": 0, "error": "it broke"}]})["met"] is None


def test_the_notes_say_what_failed_and_what_limits() -> None:
    found = line(INTERCEPT, ROUNDS, {"ours": False})
    assert found["failed"] == {"ours": ["it broke"]}
    assert found["direct_over_fastest"] == 2.0  # medians: 50 and 25
    notes = cells(found)[-1]
    assert "failed rounds: ours 1 (it broke)" in notes
    assert "without header injection" in notes
    slow = line(INTERCEPT, {**ROUNDS, "direct": [{"round": 0, "per_second": 30.0}]}, {"ours": True})
    assert "load and origin can do only 1.2 × the fastest proxy" in cells(slow)[-1]
    assert "without header injection" not in cells(slow)[-1]


def test_the_load_takes_no_other_answer_than_the_expected_one() -> None:
    assert complete(b"HTTP/1.1 200 OK\r\n\r\nxEND\n")
    assert not complete(b"HTTP/1.1 200 OK\r\n\r\nxEN")
    with pytest.raises(LoadError, match="403"):
        complete(b"HTTP/1.1 403 Forbidden\r\n\r\n")


def test_a_request_is_absolute_only_towards_a_proxy_that_forwards() -> None:
    task = {"host": "o.test", "port": 80, "tls": False, "address": "127.0.0.1"}
    assert Target({**task, "proxy": ["127.0.0.1", 1]}).request("GET", "/x").startswith(b"GET http://o.test:80/x ")
    assert Target({**task, "proxy": None}).request("GET", "/x").startswith(b"GET /x ")


def test_percentiles() -> None:
    values = [float(number) for number in range(100)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([], 0.5)) == (50.0, 99.0, 0.0)
