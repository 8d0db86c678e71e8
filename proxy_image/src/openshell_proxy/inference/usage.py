# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an answer says of the tokens that a call took, whole or in events; the bytes themselves stay as they are."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

MAX_PARSED = 4 * 1024 * 1024
MAX_LINE = 1024 * 1024
_INPUT = ("prompt_tokens", "input_tokens")
_OUTPUT = ("completion_tokens", "output_tokens")
_BEDROCK = {b"x-amzn-bedrock-input-token-count": "input", b"x-amzn-bedrock-output-token-count": "output"}


@dataclasses.dataclass(slots=True)
class Usage:
    """Tokens; None where the answer does not say. Of several numbers the last counts: they are sums so far."""

    input: int | None = None
    output: int | None = None

    def read(self, text: bytes) -> None:
        """Look into a JSON text in any of the shapes of the APIs; whatever is not understood says nothing."""
        if b'"usage"' not in text or len(text) > MAX_PARSED:
            return
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(found, dict):
            for holder in (found, found.get("response"), found.get("message")):
                self._note(holder.get("usage") if isinstance(holder, dict) else None)

    def _note(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self.input = _first(usage, _INPUT, self.input)
            self.output = _first(usage, _OUTPUT, self.output)

    def header(self, name: bytes, value: bytes) -> None:
        """Bedrock says it in fields of the head."""
        kind = _BEDROCK.get(name.lower())
        if kind and value.isdigit() and len(value) < 16:
            setattr(self, kind, int(value))


def _first(usage: dict[str, Any], names: tuple[str, ...], before: int | None) -> int | None:
    for name in names:
        value = usage.get(name)
        if type(value) is int and 0 <= value < 10**15:
            return value
    return before


class EventLines:
    """Events pass line by line (HTML standard, 9.2), so that a stream that fails is never cut within one."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        data, self._held = self._held + data, b""
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if len(data) - cut <= MAX_LINE:
            data, self._held = data[:cut], data[cut:]
        for line in data.splitlines():
            if line.startswith(b"data:"):
                self._usage.read(line[5:])
        return data

    def end(self) -> bytes:
        rest, self._held = self._held, b""
        return rest
