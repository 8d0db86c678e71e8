# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every fuzz target shares: instrumentation of the package, and a loop over one function of bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable

import atheris


def run(target: Callable[[bytes], None]) -> None:
    """Feed *target* until the time that the command line sets is over; an exception from it is a finding."""
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
