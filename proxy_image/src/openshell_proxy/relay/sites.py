# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is known of who speaks HTTP/2. Its library is loaded with the first origin that does."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from openshell_proxy.relay.stream import Stream

if TYPE_CHECKING:
    from openshell_proxy.relay.http2_upstream import Upstream

KNOWN_ORIGINS = 1024
DOUBT_SECONDS = 300.0  # after which an origin that did not speak HTTP/2 is asked again


class Site:
    """What is known of one origin, and the connections to it."""

    def __init__(self) -> None:
        self._speaks: bool | None = None
        self._asked = 0.0
        self.connections: list[Upstream] = []
        self.dialling = asyncio.Lock()

    @property
    def speaks(self) -> bool | None:
        """Whether it speaks HTTP/2. None: not known, or it did not, which was too long ago to count."""
        stale = self._speaks is False and time.monotonic() - self._asked >= DOUBT_SECONDS
        return None if stale else self._speaks

    @speaks.setter
    def speaks(self, speaks: bool | None) -> None:
        self._speaks, self._asked = speaks, time.monotonic()

    def free(self, addresses: Sequence[str]) -> Upstream | None:
        """A connection that takes one more stream, at one of the *addresses* validated for it."""
        return next((one for one in self.connections if one.address in addresses and one.free()), None)

    def adopt(self, stream: Stream, address: str, idle: float) -> Upstream:
        """Speak HTTP/2 on a connection that has just been made."""
        from openshell_proxy.relay.http2_upstream import Upstream

        def gone(one: Upstream) -> None:
            if one in self.connections:
                self.connections.remove(one)

        made = Upstream(address, idle, gone)
        self.connections.append(made)
        assert stream.transport is not None
        made.begin(stream.transport, stream.consume(len(stream.buffer)))
        return made


class Sites:
    """Origins by what is known of them; bounded: those longest not asked for are forgotten."""

    def __init__(self) -> None:
        self._sites: OrderedDict[object, Site] = OrderedDict()

    def __getitem__(self, origin: object) -> Site:
        site = self._sites.get(origin)
        if site is None:
            site = self._sites[origin] = Site()
        self._sites.move_to_end(origin)
        if len(self._sites) > KNOWN_ORIGINS:
            _, old = self._sites.popitem(last=False)
            _retire(old)
        return site

    def clear(self) -> None:
        """Trust has changed, or the end has come: nothing made before serves a new request."""
        sites, self._sites = self._sites, OrderedDict()
        for site in sites.values():
            _retire(site)


def _retire(site: Site) -> None:
    for one in list(site.connections):
        one.retire()
