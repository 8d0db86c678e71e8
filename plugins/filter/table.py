# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rows as a table for a terminal."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Sequence

DOCUMENTATION = r"""
name: table
short_description: Rows as a table with aligned columns
version_added: 0.1.0
description:
  - The header is the columns' names in capitals; an absent or empty value is a hyphen.
positional: _input, columns
options:
  _input:
    description: Rows.
    type: list
    elements: dict
    required: true
  columns:
    description: Names of the columns, in order.
    type: list
    elements: str
    required: true
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
- ansible.builtin.debug:
    msg: "{{ [{'name': 'demo'}] | openshell.sandbox.table(['name']) }}"
"""

RETURN = r"""
_value:
  description: The table.
  type: str
"""


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Left-aligned columns, two spaces apart, no space at a line's end."""
    cells: List[List[str]] = [[column.upper() for column in columns]]
    cells += [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in cells
    )


def _cell(value: Any) -> str:
    return "-" if value is None or value == "" else str(value)


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"table": table}
