# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every fuzz target shares: seeds from the conformance cases, and a loop over one function of bytes."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

CASES = Path(__file__).parent.parent / "conformance/openshell_cases.jsonl"


def run(target: Callable[[bytes], None], seed: Callable[[dict[str, Any]], str | None]) -> None:
    """Feed *target* until the time that the command line sets is over; an exception from it is a finding.

    *seed* makes a first input of a conformance case, or None where the case is about something else.
    """
    with tempfile.TemporaryDirectory() as corpus:
        for number, line in enumerate(CASES.read_text(encoding="utf-8").splitlines()):
            text = seed(json.loads(line))
            if text is not None:
                Path(corpus, str(number)).write_text(text, encoding="utf-8", errors="replace")
        atheris.Setup([*sys.argv, corpus], target)
        atheris.Fuzz()
