# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of a client's call goes to the destination: its body with the route's model, and listed header fields (spec 2.10)."""

from __future__ import annotations

import dataclasses
import json
from typing import Any
from urllib.parse import unquote

from openshell_proxy.inference.errors import CallRefusal
from openshell_proxy.inference.patterns import Pattern
from openshell_proxy.inference.routes import PROVIDERS, Route, Routes
from openshell_proxy.policy.jsonbody import BodyError, read_json
from openshell_proxy.relay.http1 import Header, RequestHead

VERTEX_VERSION = "vertex-2023-10-16"
# An answer is asked for as it is, not compressed: it is searched for the key and for the tokens that it counts.
PASSED = frozenset((b"content-type", b"accept", b"user-agent"))


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """A call as its route's destination gets it; ``model`` is still the client's."""

    route: Route
    model: str
    stream: bool
    body: bytes = dataclasses.field(repr=False)


def prepare(routes: Routes, pattern: Pattern, path: str, body: bytes) -> Prepared:
    """Choose the route for the call *pattern* at *path* (with its query) and rewrite its *body*. Raises :class:`CallRefusal`.

    What is parsed of a large body takes a multiple of its size, and none of it outlives this.
    """
    asked = read_call(pattern, path, body)
    route = routes.choose(pattern.name, asked.model)
    if route is None:
        detail = f"no compatible route: no inference route of this sandbox speaks {pattern.name}"
        raise CallRefusal(400, "no_compatible_route", detail, style=pattern.style)
    return Prepared(route, asked.model, asked.stream, rewritten_body(route, pattern, asked, body))


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A call's body as an object; empty for Bedrock, whose body is nobody's business here. ``model`` is the client's."""

    body: dict[str, Any]
    model: str
    stream: bool


def read_call(pattern: Pattern, path: str, body: bytes) -> Asked:
    """Raises :class:`CallRefusal` (400) for what is no JSON object: a model that cannot be seen cannot be set."""
    if pattern.after:
        segment = path.partition("?")[0].removeprefix(pattern.before + "/").removesuffix(pattern.after)
        return Asked({}, unquote(segment), pattern.streams)
    try:
        found = read_json(body)
    except BodyError as error:
        raise CallRefusal(400, "invalid_request", f"the request's body is {error}", style=pattern.style) from None
    if not isinstance(found, dict):
        raise CallRefusal(400, "invalid_request", "the request's body is no JSON object", style=pattern.style)
    model = found.get("model")
    return Asked(found, model if isinstance(model, str) else "", pattern.streams and found.get("stream") is True)


def rewritten_body(route: Route, pattern: Pattern, asked: Asked, body: bytes) -> bytes:
    """The body for *route*: with its model, in the form that its provider takes. Raises :class:`CallRefusal` (400)."""
    raw_predict = route.provider == "google-vertex-ai" and pattern.name == "anthropic_messages"
    if pattern.after or (asked.model == route.model and not raw_predict):
        return body
    made = {**asked.body, "model": route.model}
    if raw_predict:
        made = {key: value for key, value in made.items() if key not in ("model", "context_management")}
        made.setdefault("anthropic_version", VERTEX_VERSION)
    try:
        return json.dumps(made, allow_nan=False).encode()
    except (ValueError, RecursionError):
        detail = "the request's body holds a number that JSON has not, or is too deeply nested"
        raise CallRefusal(400, "invalid_request", detail, style=pattern.style) from None


def forwarded(route: Route, head: RequestHead) -> list[Header]:
    """The client's fields that the destination gets; none of them authorises."""
    provider = PROVIDERS[route.provider]
    allowed = PASSED | provider.passed
    fields = [(name, value) for name, value in head.end_to_end() if name.lower() in allowed]
    sent = {name.lower() for name, _ in fields}
    return [*fields, *((name, value) for name, value in provider.defaults.items() if name not in sent)]
