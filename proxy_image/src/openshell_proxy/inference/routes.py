# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where calls go: the routes of one sandbox, which of them serves a call, and at which URL (spec 2.10); no I/O."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal
from urllib.parse import quote

from openshell_proxy.inference.patterns import MODELS, Pattern
from openshell_proxy.relay.upstream import Origin

Auth = Literal["bearer", "x-api-key", "aws", "none"]

SECONDS = 60.0  # for an answer that is gathered as a whole
IDLE_SECONDS = 120.0  # between two pieces of one that streams

_OPENAI = (
    "openai_chat_completions", "openai_completions", "openai_responses", "openai_embeddings", MODELS.name,
)  # fmt: skip
_BEDROCK = "aws_bedrock_invoke"


@dataclasses.dataclass(frozen=True, slots=True)
class Provider:
    """What is known of a provider. ``base_url`` "" must be said by the route; ``passed``: header fields of the client's
    that it gets besides :data:`~openshell_proxy.inference.request.PASSED`, ``defaults`` those it gets in any case.
    """

    base_url: str
    auth: Auth
    protocols: tuple[str, ...]
    passed: frozenset[bytes] = frozenset()
    defaults: Mapping[bytes, bytes] = dataclasses.field(default_factory=dict)


PROVIDERS: Mapping[str, Provider] = {
    "openai": Provider(
        "https://api.openai.com/v1", "bearer", _OPENAI, frozenset((b"openai-organization", b"x-model-id"))
    ),
    "anthropic": Provider(
        "https://api.anthropic.com/v1", "x-api-key", ("anthropic_messages", MODELS.name),
        frozenset((b"anthropic-version", b"anthropic-beta")), {b"anthropic-version": b"2023-06-01"},
    ),
    "nvidia": Provider("https://integrate.api.nvidia.com/v1", "bearer", _OPENAI, frozenset((b"x-model-id",))),
    "deepinfra": Provider("https://api.deepinfra.com/v1/openai", "bearer", _OPENAI, frozenset((b"x-model-id",))),
    "google-vertex-ai": Provider("", "bearer", ("anthropic_messages", MODELS.name)),
    "aws-bedrock": Provider("", "aws", (_BEDROCK, f"{_BEDROCK}_stream", MODELS.name)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """One way to a model. ``base_url`` without a slash at its end; ``region`` is for AWS signatures.

    The key is ``key``, or the secret of the vault that ``secret`` names; with neither the destination gets none.
    ``seconds`` is for a whole answer, ``idle_seconds`` between two pieces of a stream.
    """

    name: str
    provider: str
    base_url: str
    origin: Origin
    model: str
    aliases: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    auth: Auth = "none"
    secret: str = ""
    key: bytes = dataclasses.field(default=b"", repr=False)
    region: str = ""
    seconds: float = SECONDS
    idle_seconds: float = IDLE_SECONDS

    @property
    def names(self) -> tuple[str, ...]:
        """What a client may call its model."""
        return tuple(dict.fromkeys((self.model, self.name, *self.aliases)))


class Routes:
    """The routes of one sandbox in the order of their list."""

    __slots__ = ("listed",)

    def __init__(self, listed: Sequence[Route]) -> None:
        self.listed = tuple(listed)

    def choose(self, protocol: str, model: str) -> Route | None:
        """The first route that speaks *protocol* and has *model* among its names; where none has, the first that speaks it.

        So a tool that asks for a model of its own choice gets one that the sandbox may use. None where no route fits.
        """
        fitting = [route for route in self.listed if protocol in route.protocols]
        return next((route for route in fitting if model in route.names), fitting[0] if fitting else None)

    def models(self) -> Iterator[tuple[str, Route]]:
        """Every name that a client may ask for, once, with the route behind it."""
        seen: set[str] = set()
        for route in self.listed:
            for name in route.names:
                if name not in seen and MODELS.name in route.protocols:
                    seen.add(name)
                    yield name, route


def backend_url(base: str, path: str) -> str:
    """*base* and the request's *path* as one URL; ``/v1`` at the end of the one and the beginning of the other is there once."""
    base = base.rstrip("/")
    if base.endswith("/v1") and (path == "/v1" or path.startswith("/v1/")):
        path = path.removeprefix("/v1")
    return base + path


def call_url(route: Route, pattern: Pattern, path: str, stream: bool) -> str:
    """The URL of the call *pattern*, which the client made at *path* (with its query), on *route*.

    Vertex AI and Bedrock have the model in their path, where the client's never stands.
    """
    model = quote(route.model, safe="")
    if route.provider == "google-vertex-ai":
        if pattern.name == "anthropic_messages":
            verb = "streamRawPredict" if stream else "rawPredict"
            return f"{route.base_url}/publishers/anthropic/models/{model}:{verb}"
        return f"{route.base_url}/endpoints/openapi{path.partition('?')[0].removeprefix('/v1')}"
    if pattern.after:
        return f"{route.base_url}{pattern.before}/{model}{pattern.after}"
    return backend_url(route.base_url, path)
