# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rows for a terminal."""

from __future__ import annotations

from ansible_collections.openshell.sandbox.plugins.filter.table import FilterModule, table


def test_columns_are_aligned_and_nothing_trails() -> None:
    rows = [{"name": "demo", "state": "running", "x": 1}, {"name": "a-longer-one", "state": ""}]
    assert table(rows, ["name", "state"]).splitlines() == [
        "NAME          STATE",
        "demo          running",
        "a-longer-one  -",
    ]


def test_nothing_is_a_hyphen_and_zero_is_a_number() -> None:
    assert table([{"a": None, "b": 0, "c": False}], ["a", "b", "c", "d"]).splitlines()[1] == "-  0  False  -"


def test_no_rows_are_a_header() -> None:
    assert FilterModule().filters()["table"]([], ["name"]) == "NAME"
