# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One direction of a tunnel within the kernel: bytes go from socket to socket through a pipe, unseen (splice(2))."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable

PIPE_BYTES = 262_144
# Each takes four descriptors, and the kernel lets a user have so many large pipes before they become small (pipe(7)).
MOST = 256
TURN_BYTES = 4 * PIPE_BYTES  # after so many the others have their turn
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Splicer:
    """Moves what comes at the socket *source* on to *sink*, beginning with *first*, until one of them ends.

    Both stay their transports' own, which must neither read *source* nor have anything to write to *sink* meanwhile; what
    is watched here are duplicates, so :meth:`close` must come before anybody can see the transports' close. *passed* is
    told the bytes as they come; *ended* is called at the end of *source* once all of it is on its way, *failed* when
    either side is broken; the splicer is closed by then. Raises :class:`OSError` where no descriptor is free.
    """

    alive = 0  # how many there are in this process; nobody makes one more than MOST

    def __init__(
        self, source: int, sink: int, first: bytes, passed: Callable[[int], None], ended: Callable[[], None],
        failed: Callable[[], None],
    ) -> None:  # fmt: skip
        self._passed, self._ended, self._failed = passed, ended, failed
        self._loop = asyncio.get_running_loop()
        self._first = memoryview(first)
        self._held = 0  # bytes in the pipe
        self._watched: int | None = None
        self._open = True
        with contextlib.ExitStack() as stack:
            self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, self._out)
            stack.callback(os.close, self._in)
            self._source = os.dup(source)
            stack.callback(os.close, self._source)
            self._sink = os.dup(sink)
            stack.callback(os.close, self._sink)
            self._descriptors = stack.pop_all()
        Splicer.alive += 1
        with contextlib.suppress(OSError):  # a user may have only so many large ones (pipe(7)); a small one works too
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            self._watch_sink()
        except BaseException:
            self.close()
            raise

    @property
    def waits_for_sink(self) -> bool:
        """Whether *sink* has to take something before more is asked of *source*."""
        return self._watched == self._sink

    def close(self) -> None:
        """Move nothing more."""
        if self._open:
            self._open = False
            Splicer.alive -= 1
            self._unwatch()
            self._descriptors.close()

    def _watch_source(self) -> None:
        if self._watched != self._source:
            self._unwatch()
            self._loop.add_reader(self._source, self._pump)
            self._watched = self._source

    def _watch_sink(self) -> None:
        if self._watched != self._sink:
            self._unwatch()
            self._loop.add_writer(self._sink, self._pump)
            self._watched = self._sink

    def _unwatch(self) -> None:
        if self._watched is not None:
            (self._loop.remove_reader if self._watched == self._source else self._loop.remove_writer)(self._watched)
            self._watched = None

    def _pump(self) -> None:
        try:
            ended = self._move()
        except OSError:
            self.close()
            self._failed()
            return
        if ended:
            self.close()
            self._ended()

    def _move(self) -> bool:
        """Move what can be moved now, and watch for what then has to come; True when *source* has ended."""
        left = TURN_BYTES
        while left > 0:
            if not self._empty():
                self._watch_sink()
                return False
            try:
                self._held = os.splice(self._source, self._in, PIPE_BYTES, flags=_FLAGS)
            except BlockingIOError:
                break
            if self._held == 0:
                return True
            self._passed(self._held)
            left -= self._held
        if not self._empty():
            self._watch_sink()
        else:
            self._watch_source()
        return False

    def _empty(self) -> bool:
        """Send what is held; False where the sink does not take all of it now."""
        try:
            while self._first:
                self._first = self._first[os.write(self._sink, self._first) :]
            while self._held:
                self._held -= os.splice(self._out, self._sink, self._held, flags=_FLAGS)
        except BlockingIOError:
            return False
        return True
