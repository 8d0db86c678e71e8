# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every fuzz target shares: first inputs, many of them from the conformance cases, and a loop over one function."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import atheris

CASES = Path(__file__).parent.parent / "conformance/openshell_cases.jsonl"


def of_cases(seed: Callable[[dict[str, Any]], str | None]) -> Iterator[bytes]:
    """A first input of each conformance case; *seed* answers None where the case is about something else."""
    for line in CASES.read_text(encoding="utf-8").splitlines():
        text = seed(json.loads(line))
        if text is not None:
            yield text.encode("utf-8", "replace")


def run(target: Callable[[bytes], None], seeds: Iterable[bytes]) -> None:
    """Feed *target* until the time that the command line sets is over; an exception from it is a finding.

    Every seed is fed first, so that the least run of a target reaches what the seeds reach.
    """
    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(seeds):
            Path(corpus, str(number)).write_bytes(data)
        atheris.Setup([*sys.argv, corpus], target)
        atheris.Fuzz()
