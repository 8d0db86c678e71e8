# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which requests are calls of an inference API (spec 2.10); no I/O."""

from __future__ import annotations

import dataclasses
from typing import Literal

Style = Literal["openai", "anthropic", "aws"]


@dataclasses.dataclass(frozen=True, slots=True)
class Pattern:
    """One call: ``name`` in the spec's words.

    ``before`` is the whole path, unless the path has a part that the client chooses: one segment between ``before`` and
    ``after``, or, where ``tail``, nothing or anything behind it. ``streams``: whether its answer may come in pieces.
    """

    name: str
    method: str
    before: str
    after: str = ""
    tail: bool = False
    streams: bool = False
    style: Style = "openai"

    def matches(self, method: str, path: str) -> bool:
        if method.upper() != self.method or not path.startswith(self.before):
            return False
        rest = path[len(self.before) :]
        if self.tail:
            return rest == "" or rest.startswith("/")
        if not self.after:
            return rest == ""
        segment = rest.removeprefix("/").removesuffix(self.after)
        return bool(segment) and "/" not in segment and rest == f"/{segment}{self.after}"


MODELS = Pattern("model_discovery", "GET", "/v1/models", tail=True)
PATTERNS = (
    Pattern("openai_chat_completions", "POST", "/v1/chat/completions", streams=True),
    Pattern("openai_completions", "POST", "/v1/completions", streams=True),
    Pattern("openai_responses", "POST", "/v1/responses", streams=True),
    Pattern("openai_embeddings", "POST", "/v1/embeddings"),
    Pattern("anthropic_messages", "POST", "/v1/messages", streams=True, style="anthropic"),
    MODELS,
    Pattern("aws_bedrock_invoke", "POST", "/model", "/invoke", style="aws"),
    Pattern("aws_bedrock_invoke_stream", "POST", "/model", "/invoke-with-response-stream", streams=True, style="aws"),
)
PROTOCOLS = tuple(pattern.name for pattern in PATTERNS)


def detect(method: str, target: str) -> Pattern | None:
    """The call that a request with *method* and *target* is, whatever its query says; None for anything else."""
    path = target.partition("?")[0]
    return next((pattern for pattern in PATTERNS if pattern.matches(method, path)), None)
