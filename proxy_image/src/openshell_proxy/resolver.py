# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names to addresses, through the host's resolvers that the sidecar was created with."""

from __future__ import annotations

import asyncio
import socket
import time

CACHE_SECONDS = 10.0
CACHE_ENTRIES = 1024
TIMEOUT_SECONDS = 10.0


class ResolveError(Exception):
    """The name has no address, or the resolvers do not answer."""


class Resolver:
    """The system resolver with a small cache, so that one client's burst is one question.

    A cached answer is as safe as a fresh one: what is judged is what is dialled, nothing is looked up twice for one
    request.
    """

    def __init__(self) -> None:
        self._cache: dict[str, tuple[float, tuple[str, ...]]] = {}

    async def resolve(self, host: str) -> tuple[str, ...]:
        """All addresses of *host* in the resolver's order. Raises :class:`ResolveError`."""
        cached = self._cache.get(host)
        now = time.monotonic()
        if cached is not None and cached[0] > now:
            return cached[1]
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                infos = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except TimeoutError:
            raise ResolveError("the resolvers do not answer") from None
        except (OSError, UnicodeError) as error:
            raise ResolveError(getattr(error, "strerror", None) or "no such name") from None
        addresses = tuple(dict.fromkeys(str(info[4][0]) for info in infos))
        if len(self._cache) >= CACHE_ENTRIES:
            self._cache.clear()
        self._cache[host] = (now + CACHE_SECONDS, addresses)
        return addresses
