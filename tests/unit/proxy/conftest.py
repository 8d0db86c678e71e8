# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The proxy's tests run on the loop that the sidecar runs on, against real sockets on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop
from http2_peer import Two
from loopback import World


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A sidecar to be started, and origins for it to reach; all ends with the test."""
    made = World(tmp_path)
    try:
        yield made
    finally:
        await made.end()


@pytest.fixture
def two(world: World) -> Two:
    """The same with an origin and clients that speak HTTP/2."""
    return Two(world)
