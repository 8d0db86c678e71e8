# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The collection's tests run on a host of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from host import Host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host with a podman and nothing on it; what was started there ends with the test."""
    directory = tmp_path / "host"
    directory.mkdir()
    made = Host(directory)
    try:
        yield made
    finally:
        made.end()
