# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a policy's middlewares do to content on its way out, after policy and before any secret is put in (spec 2.16).

There is one, ``openshell/regex`` in its mode ``redact``: it takes out what looks like a key that was let slip. As in
OpenShell it is best effort on UTF-8 text, and stops nobody who encodes a key on purpose. OpenShell gathers a payload of at
most 4 MiB for it; here content streams and only a tail is held, so that it needs no such bound, and no time limit.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from openshell_proxy.credentials.placeholders import ALIAS_MARKER, unfinished_literal
from openshell_proxy.policy.model import Middleware
from openshell_proxy.refusal import middleware_failed
from openshell_proxy.relay.recode import Transform

REDACTED = b"[REDACTED]"
_BEGINS = b"sk-"
_LEAST = len(_BEGINS) + 16
_RUN = re.compile(rb"[A-Za-z0-9_-]*")
_KEY = re.compile(rb"sk-[A-Za-z0-9_-]{16,}")
_KEY_OR_BEGUN = re.compile(rb"sk-(?:[A-Za-z0-9_-]{16,}|[A-Za-z0-9_-]*\Z)")
# What a key cannot hold, as blanks: a plain search finds where its run of bytes begins.
_BLANKED = bytes(byte if _RUN.fullmatch(bytes([byte])) else ord(" ") for byte in range(256))
_UTF_8 = codecs.getincrementaldecoder("utf-8")


@lru_cache(maxsize=8)
def _pattern(literals: tuple[bytes, ...]) -> re.Pattern[bytes]:
    return re.compile(b"|".join(map(re.escape, literals)))


class Redact:
    """Content in which every ``sk-[A-Za-z0-9_-]{16,}`` becomes ``[REDACTED]``, however it is cut into pieces.

    A placeholder is no secret, and is to become one later: aliases and the sandbox's own *randoms* stay, and a match ends
    where one begins. Neither holds a byte that a match could not.
    """

    __slots__ = ("_buffer", "_kept", "_literals", "_placeholders", "_within")

    def __init__(self, randoms: Iterable[bytes] = ()) -> None:
        self._placeholders = tuple(sorted((ALIAS_MARKER, *randoms), key=len, reverse=True))
        self._kept = _pattern(self._placeholders)
        self._literals = (*self._placeholders, _BEGINS)
        self._buffer = b""
        self._within = False  # a match has been replaced, and goes on

    def feed(self, data: bytes) -> bytes:
        return self._run(self._buffer + data, last=False)

    def end(self) -> bytes:
        return self._run(self._buffer, last=True)

    def _run(self, data: bytes, last: bool) -> bytes:
        """What *data* has become; from *hold* on it waits for more, which may complete what begins there."""
        out: list[bytes] = []
        at, hold = 0, -1
        whole = 0 if any(map(data.__contains__, self._placeholders)) else self._begins(data, 0, len(data))
        while True:
            if at > hold:
                hold = len(data) if last else unfinished_literal(data, at, self._literals)
            if self._within:
                at = self._stop(data, at, hold)
                if at == hold:
                    break
                self._within = False
            if at < whole:  # nothing but keys is there, and none goes on: the fast way
                out.append(_KEY.sub(REDACTED, data[at:whole]))
                at = whole
            key = _KEY_OR_BEGUN.search(data, at)
            place = key.start() if key is not None and key.start() < hold else hold
            spared = self._spared(data, at, place + 1 if place < hold else hold)
            out.append(data[at : spared or place])
            at = spared or place
            if spared:
                continue
            if place == hold:
                break
            end = self._stop(data, at + 1, hold)
            if end - at >= _LEAST:
                out.append(REDACTED)
                self._within = True
            elif end == hold and not last:
                break
            else:  # a placeholder or the end comes too soon for a key, and so for one that begins later
                out.append(data[at:end])
            at = end
        self._buffer = data[at:]
        return b"".join(out)

    def _stop(self, data: bytes, start: int, hold: int) -> int:
        """Where from *start* on a key ends: at a byte that none holds, at a placeholder, or at *hold*."""
        run = _RUN.match(data, start, hold)
        assert run is not None
        # Whatever lies behind *hold* goes on with the run that it lies in.
        kept = self._kept.search(data, start, len(data) if run.end() == hold else run.end())
        return min(kept.start(), hold) if kept is not None else run.end()

    @staticmethod
    def _begins(data: bytes, at: int, place: int) -> int:
        """Where from *at* on the bytes that a key may hold begin which go on to *place*."""
        return at + data[at:place].translate(_BLANKED).rfind(b" ") + 1

    def _spared(self, data: bytes, at: int, place: int) -> int:
        """Where the placeholder ends that begins before *place* and goes on there; 0 where there is none."""
        until = place + len(self._placeholders[0])
        for kept in self._kept.finditer(data, self._begins(data, at, place), until):
            if kept.start() < place < kept.end():
                return kept.end()
        return 0


class Text:
    """Content that *then* looks at, and that must be UTF-8: in anything else *then* may find nothing."""

    __slots__ = ("_decoder", "_name", "_then")

    def __init__(self, name: str, then: Transform) -> None:
        self._name = name
        self._then = then
        self._decoder = _UTF_8()

    def feed(self, data: bytes) -> bytes:
        self._check(data, last=False)
        return self._then.feed(data)

    def end(self) -> bytes:
        self._check(b"", last=True)
        return self._then.end()

    def _check(self, data: bytes, last: bool) -> None:
        try:
            self._decoder.decode(data, last)
        except UnicodeDecodeError:
            raise middleware_failed(self._name, "cannot search a body that is not UTF-8 text") from None


class Redaction:
    """What the *middlewares* of one host, at least one, do to one request; *named* are its fields, lower-case name → values.

    They all do the same, and twice is once. So all that is left of their order is whose name a refusal has.
    """

    __slots__ = ("_closed", "_named", "_randoms")

    def __init__(
        self, middlewares: Sequence[Middleware], named: Mapping[bytes, Sequence[bytes]], randoms: Sequence[bytes]
    ) -> None:
        self._closed = next((one.name for one in middlewares if one.fails_closed), None)
        self._named = named
        self._randoms = randoms

    def transform(self) -> Transform | None:
        """What the request's body goes through; None where it may pass unseen. Raises Refusal where it may not."""
        problem = self._problem()
        redact = Redact(self._randoms)
        if self._closed is None:
            return None if problem else redact
        if problem:
            raise middleware_failed(self._closed, f"cannot search {problem}")
        return Text(self._closed, redact)

    def _problem(self) -> str:
        """What a redaction would find nothing in, or would break."""
        codings = [
            part.strip().lower() for value in self._named.get(b"content-encoding", ()) for part in value.split(b",")
        ]
        if any(coding not in (b"", b"identity") for coding in codings):
            return "a body in a content coding"
        if any(kind.strip().lower().startswith(b"application/grpc") for kind in self._named.get(b"content-type", ())):
            return "gRPC messages, which tell their length"
        return ""

    def body(self, content: bytes) -> bytes:
        """A body that is here as a whole. Raises Refusal as :meth:`transform` does."""
        transform = self.transform()
        return content if transform is None else transform.feed(content) + transform.end()

    def message(self, text: bytes) -> bytes:
        """A WebSocket's text message."""
        redact = Redact(self._randoms)
        return redact.feed(text) + redact.end()
