# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which requests are calls, where they go, and what of them goes there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openshell_proxy.inference.errors import CallRefusal, error_body, no_call, no_routes, stream_error
from openshell_proxy.inference.models import models_answer
from openshell_proxy.inference.patterns import PATTERNS, detect
from openshell_proxy.inference.request import forwarded, prepare, read_call, rewritten_body
from openshell_proxy.inference.routes import PROVIDERS, Route, Routes, backend_url, call_url
from openshell_proxy.inference.usage import MAX_LINE, MAX_PARSED, EventLines, Usage
from openshell_proxy.relay.http1 import parse_request_head
from openshell_proxy.relay.upstream import Origin

CHAT = detect("POST", "/v1/chat/completions")
MESSAGES = detect("POST", "/v1/messages")
INVOKE = detect("POST", "/model/any/invoke")
assert CHAT is not None and MESSAGES is not None and INVOKE is not None


def route(provider: str = "openai", model: str = "real-model", base: str = "https://x.test/v1", **more: Any) -> Route:
    more.setdefault("protocols", PROVIDERS[provider].protocols)
    return Route(more.pop("name", "main"), provider, base, Origin("x.test", 443, True), model, **more)


@pytest.mark.parametrize(
    ("method", "target", "name"),
    [
        ("POST", "/v1/chat/completions?a=/v1/models", "openai_chat_completions"),
        ("POST", "/v1/completions", "openai_completions"),
        ("POST", "/v1/chat/completions/", None),
        ("POST", "/v1/chat", None),
        ("GET", "/v1/models", "model_discovery"),
        ("GET", "/v1/models/a/b", "model_discovery"),
        ("GET", "/v1/modelsx", None),
        ("HEAD", "/v1/models", None),
        ("OPTIONS", "/v1/messages", None),
        ("POST", "/model/eu.x%2Fy-v1:0/invoke?trace=1", "aws_bedrock_invoke"),
        ("POST", "/model/x/invoke-with-response-stream", "aws_bedrock_invoke_stream"),
        ("POST", "/model/invoke", None),
        ("POST", "/model//invoke", None),
        ("POST", "/model/x/y/invoke", None),
        ("POST", "/model/x/invoke/", None),
        ("POST", "/models/x/invoke", None),
        ("GET", "/model/x/invoke", None),
        ("POST", "/v2/messages", None),
        ("POST", "/?/v1/messages", None),
    ],
)
def test_what_is_a_call(method: str, target: str, name: str | None) -> None:
    found = detect(method, target)
    assert (found.name if found else None) == name


def test_only_answers_that_come_in_pieces_stream() -> None:
    whole = {pattern.name for pattern in PATTERNS if not pattern.streams}
    assert whole == {"openai_embeddings", "model_discovery", "aws_bedrock_invoke"}


@pytest.mark.parametrize(
    ("base", "path", "url"),
    [
        ("https://x.test/v1/", "/v1/messages?beta=true", "https://x.test/v1/messages?beta=true"),
        ("https://x.test/v1", "/v1", "https://x.test/v1"),
        ("https://x.test/v1", "/v10/a", "https://x.test/v1/v10/a"),
        ("https://x.test/v1beta", "/v1/a", "https://x.test/v1beta/v1/a"),
        ("https://x.test", "/v1/models/a", "https://x.test/v1/models/a"),
    ],
)
def test_v1_is_there_once(base: str, path: str, url: str) -> None:
    assert backend_url(base, path) == url


def test_a_model_in_the_path_is_the_routes() -> None:
    vertex = route("google-vertex-ai", "claude@1", "https://r.test/v1/projects/p/locations/r")
    assert call_url(vertex, MESSAGES, "/v1/messages?beta=true", False) == (
        "https://r.test/v1/projects/p/locations/r/publishers/anthropic/models/claude%401:rawPredict"
    )
    assert call_url(vertex, MESSAGES, "/v1/messages", True).endswith("/claude%401:streamRawPredict")
    assert call_url(vertex, CHAT, "/v1/chat/completions", True).endswith("/r/endpoints/openapi/chat/completions")
    assert call_url(route(), CHAT, "/v1/chat/completions?a=b", True) == "https://x.test/v1/chat/completions?a=b"
    bedrock = route("aws-bedrock", "eu.x/y:0", "https://b.test")
    assert call_url(bedrock, INVOKE, "/model/any/invoke?q=1", False) == "https://b.test/model/eu.x%2Fy%3A0/invoke"


def test_the_first_route_serves_what_no_name_asks_for() -> None:
    chat, messages = route(name="chat", aliases=("small",)), route("anthropic", "claude", name="claude-route")
    local = route(model="local-model", name="local", protocols=("openai_chat_completions",))
    routes = Routes([chat, messages, local])
    assert routes.choose("openai_chat_completions", "local") is local
    assert routes.choose("openai_chat_completions", "local-model") is local
    assert routes.choose("openai_chat_completions", "small") is chat
    assert routes.choose("openai_chat_completions", "gpt-unheard-of") is chat
    assert routes.choose("anthropic_messages", "local") is messages
    assert routes.choose("openai_embeddings", "local") is chat, "a route is asked only for what it speaks"
    assert routes.choose("aws_bedrock_invoke", "small") is None
    assert [name for name, _ in routes.models()] == ["real-model", "chat", "small", "claude", "claude-route"]
    again = Routes([chat, route(name="again", aliases=("small",))])
    assert [(name, one.name) for name, one in again.models()] == [
        ("real-model", "chat"), ("chat", "chat"), ("small", "chat"), ("again", "again"),
    ]  # fmt: skip


def test_where_no_route_tells_its_models_the_list_is_empty() -> None:
    status, told = models_answer(Routes([route(protocols=("openai_embeddings",))]), "/v1/models", "openai")
    assert (status, told) == (200, {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None})


def test_only_a_call_that_can_stream_is_asked_to() -> None:
    embeddings = detect("POST", "/v1/embeddings")
    assert embeddings is not None
    for pattern, told, stream in ((embeddings, True, False), (CHAT, True, True), (CHAT, 1, False), (CHAT, "x", False)):
        assert read_call(pattern, pattern.before, json.dumps({"stream": told}).encode()).stream is stream


def test_a_model_that_is_no_name_is_none() -> None:
    assert read_call(CHAT, "/v1/chat/completions", b'{"model": 5}').model == ""


def test_the_routes_model_replaces_the_clients() -> None:
    body = json.dumps({"model": "mine", "messages": [{"content": "\ud800 é"}], "n": 1.5, "stream": True}).encode()
    asked = read_call(CHAT, "/v1/chat/completions", body)
    assert (asked.model, asked.stream) == ("mine", True)
    made = json.loads(rewritten_body(route(), CHAT, asked, body))
    assert made == {**json.loads(body), "model": "real-model"}
    without = read_call(CHAT, "/v1/chat/completions", b"{}")
    assert json.loads(rewritten_body(route(), CHAT, without, b"{}")) == {"model": "real-model"}


def test_a_body_with_the_routes_model_stays_as_it_is() -> None:
    body = b'{ "model":"real-model", "n": 1E2 }'
    made = prepare(Routes([route()]), CHAT, "/v1/chat/completions", body)
    assert (made.body, made.model, made.stream) == (body, "real-model", False)
    assert (
        prepare(Routes([route()]), CHAT, "/v1/chat/completions", b'{"model": "main"}').body
        == b'{"model": "real-model"}'
    )


def test_no_route_takes_a_call_that_none_speaks() -> None:
    with pytest.raises(CallRefusal, match="no compatible route") as refused:
        prepare(Routes([route()]), MESSAGES, "/v1/messages", b"{}")
    assert refused.value.status == 400


def test_vertex_gets_what_it_takes() -> None:
    body = b'{"model": "a", "context_management": {}, "max_tokens": 5}'
    vertex = route("google-vertex-ai")
    made = json.loads(rewritten_body(vertex, MESSAGES, read_call(MESSAGES, "/v1/messages", body), body))
    assert made == {"max_tokens": 5, "anthropic_version": "vertex-2023-10-16"}
    body = b'{"model": "real-model", "messages": []}'
    made = json.loads(rewritten_body(vertex, MESSAGES, read_call(MESSAGES, "/v1/messages", body), body))
    assert made == {"messages": [], "anthropic_version": "vertex-2023-10-16"}, "its path has the model"
    assert rewritten_body(vertex, CHAT, read_call(CHAT, "/v1/chat/completions", body), body) == body
    assert rewritten_body(route("anthropic"), MESSAGES, read_call(MESSAGES, "/v1/messages", body), body) == body
    body = b'{"anthropic_version": "other"}'
    made = json.loads(rewritten_body(vertex, MESSAGES, read_call(MESSAGES, "/v1/messages", body), body))
    assert made == {"anthropic_version": "other"}


def test_bedrocks_body_passes_and_its_path_names_the_model() -> None:
    asked = read_call(INVOKE, "/model/eu.x%2Fy/invoke?a=b", b"\x00not json")
    assert asked.model == "eu.x/y"
    assert rewritten_body(route("aws-bedrock"), INVOKE, asked, b"\x00not json") == b"\x00not json"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"no", b"\xff{}", b'{"a": NaN}', b'{"model": "a", "model": "b"}', b"[" * 100_000],
    ids=["empty", "list", "word", "utf8", "nan", "twice", "deep"],
)  # fmt: skip
def test_a_body_whose_model_cannot_be_seen_is_refused(body: bytes) -> None:
    with pytest.raises(CallRefusal) as refused:
        read_call(MESSAGES, "/v1/messages", body)
    assert refused.value.status == 400
    assert json.loads(refused.value.body())["type"] == "error"


def test_a_number_that_json_has_not_is_refused() -> None:
    asked = read_call(CHAT, "/v1/chat/completions", b'{"a": 1e999}')
    with pytest.raises(CallRefusal):
        rewritten_body(route(), CHAT, asked, b"")


def test_only_listed_fields_are_forwarded() -> None:
    lines = [
        "POST /v1/messages HTTP/1.1", "Host: inference.local", "Authorization: Bearer a", "X-Api-Key: b", "Cookie: c",
        "Content-Length: 2", "Content-Type: application/json", "Accept: */*", "User-Agent: u", "X-Model-Id: m",
        "OpenAI-Organization: o", "Anthropic-Beta: beta", "Accept-Encoding: gzip", "Connection: X-Model-Id", "Te: x",
        "Proxy-Authorization: d",
    ]  # fmt: skip
    head = parse_request_head(("\r\n".join(lines) + "\r\n\r\n").encode())

    def names(provider: str) -> set[bytes]:
        return {name.lower() for name, _ in forwarded(route(provider), head)}

    common = {b"content-type", b"accept", b"user-agent"}
    assert names("openai") == common | {b"openai-organization"}, "a field of this connection alone is not forwarded"
    assert names("anthropic") == common | {b"anthropic-beta", b"anthropic-version"}
    assert names("google-vertex-ai") == names("aws-bedrock") == common
    named = parse_request_head(b"POST / HTTP/1.1\r\nHost: x\r\nAnthropic-Version: 2024\r\n\r\n")
    assert forwarded(route("anthropic"), named) == [(b"Anthropic-Version", b"2024")]


def test_errors_in_the_words_of_each_api() -> None:
    assert json.loads(no_call("GET").body()) == {"error": "connection not allowed by policy"}
    assert no_call("HEAD").response().endswith(b"\r\n\r\n")
    told = json.loads(no_routes().body())
    assert told["error"] == "cluster inference is not configured" and told["hint"]
    assert error_body("openai", 400, "c", "t") == {
        "error": {"message": "t", "type": "invalid_request_error", "param": None, "code": "c"}
    }
    assert error_body("anthropic", 413, "c", "t") == {
        "type": "error", "error": {"type": "request_too_large", "message": "t"}
    }  # fmt: skip
    for style in ("openai", "anthropic"):
        assert error_body(style, 503, "c", "t")["error"]["type"] == "api_error"  # type: ignore[arg-type]
    assert error_body("aws", 400, "c", "t") == {"message": "t"}
    assert stream_error("anthropic", "a\n\nb").startswith(b"\nevent: error\ndata: {")
    assert stream_error("openai", "a\n\nb").count(b"\n") == 3, "a text must not end the event before its time"


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}, (3, 4)),
        ({"usage": {"prompt_tokens": 3, "total_tokens": 3}}, (3, None)),
        ({"type": "response.completed", "response": {"usage": {"input_tokens": 5, "output_tokens": 6}}}, (5, 6)),
        ({"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 0}}}, (7, 0)),
        ({"usage": None}, (None, None)),
        ({"usage": {"prompt_tokens": "3", "completion_tokens": True}}, (None, None)),
        ({"usage": {"prompt_tokens": -1, "completion_tokens": 10**30}}, (None, None)),
        ([{"usage": {"prompt_tokens": 3}}], (None, None)),
    ],
    ids=["chat", "embeddings", "responses", "messages", "none", "types", "numbers", "list"],
)
def test_tokens_in_every_shape(answer: Any, tokens: tuple[int | None, int | None]) -> None:
    usage = Usage()
    usage.read(json.dumps(answer).encode())
    assert (usage.input, usage.output) == tokens
    usage.read(b'{"usage": ' + b"[" * 100_000)
    assert (usage.input, usage.output) == tokens


@pytest.mark.parametrize(
    ("name", "value", "tokens"),
    [
        (b"X-Amzn-Bedrock-Input-Token-Count", b"5", (5, None)),
        (b"x-amzn-bedrock-output-token-count", b"9" * 15, (None, 10**15 - 1)),
        (b"X-Amzn-Bedrock-Input-Token-Count", b"9" * 16, (None, None)),
        (b"X-Amzn-Bedrock-Input-Token-Count", b"-5", (None, None)),
        (b"Content-Length", b"5", (None, None)),
    ],
)
def test_tokens_in_the_head(name: bytes, value: bytes, tokens: tuple[int | None, int | None]) -> None:
    usage = Usage()
    usage.header(name, value)
    assert (usage.input, usage.output) == tokens


@pytest.mark.parametrize(("size", "tokens"), [(MAX_PARSED, 3), (MAX_PARSED + 1, None)])
def test_an_answer_is_parsed_up_to_a_size(size: int, tokens: int | None) -> None:
    usage = Usage()
    usage.read(b'{"usage": {"prompt_tokens": 3}}'.ljust(size))
    assert usage.input == tokens


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_events_pass_unchanged_in_whole_lines(size: int, end: bytes) -> None:
    stream = (
        b'event:{"usage": {"input_tokens": 1, "output_tokens": 2}}'
        + end
        + b'data: {"usage": {"input_tokens": 9}}'
        + end
        + end
    ) * 3 + b"data: no end"
    usage = Usage()
    lines = EventLines(usage)
    passed = [lines.feed(stream[at : at + size]) for at in range(0, len(stream), size)]
    assert all(not piece or piece[-1:] in b"\r\n" for piece in passed)
    assert b"".join(passed) + lines.end() == stream
    assert (usage.input, usage.output) == (9, None)


def test_a_line_that_never_ends_is_not_held_for_ever() -> None:
    lines = EventLines(Usage())
    assert lines.feed(b"x" * MAX_LINE) == b""
    assert lines.feed(b"y") == b"x" * MAX_LINE + b"y"
