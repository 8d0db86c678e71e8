# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What comes on any connection is read into one buffer, which all of them share."""

from __future__ import annotations

import asyncio

# uvloop has a block of 256 KiB for each TLS connection, next to empty. The image has malloc map blocks of that size by
# themselves, so that each takes one page; on the heap it would take whatever a handshake had left there. No block that is
# made for each read or write may be as large, or it would be mapped too, which costs system calls. What has been read
# goes out again in one piece, encrypted with some bytes more for each record of 16 KiB.
SIZE = 15 * 16_384

_BUFFER = memoryview(bytearray(SIZE))


class Incoming(asyncio.BufferedProtocol):
    """A protocol that is given bytes of their own, as if it were an :class:`asyncio.Protocol`.

    For such a one uvloop makes a block of 256 KiB for each read of a TLS connection and then shrinks it to the few bytes
    that came. Between :meth:`get_buffer` and :meth:`buffer_updated` a loop does nothing else, so one buffer is enough.
    """

    def data_received(self, data: bytes) -> None:
        """Some bytes have come."""
        raise NotImplementedError

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(_BUFFER[:nbytes]))
