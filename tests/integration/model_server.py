# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A server that speaks the APIs of OpenAI and Anthropic as far as their official libraries ask, streams included.

It serves whoever has its key, says which model it was asked for, and repeats in an error whatever authorised the call.
"""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
WORDS = ("one ", "two ", "three")
USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}


class ModelServer:
    """Listens at *address* with TLS; ``seen`` holds (path, fields, body) of each request that had ``key``."""

    def __init__(self, address: str, context: ssl.SSLContext, key: str) -> None:
        self.key = key
        self.seen: list[tuple[str, dict[str, str], Json]] = []
        handler = type("Handler", (_Handler,), {"model_server": self})
        server = http.server.ThreadingHTTPServer((address, 0), handler)
        server.daemon_threads = True
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        self.base_url = f"https://{address}:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model_server: ModelServer

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fields = {name.lower(): value for name, value in self.headers.items()}
        path = self.path.partition("?")[0]
        given = fields.get("authorization", "").removeprefix("Bearer ") or fields.get("x-api-key", "")
        if given != self.model_server.key:
            return self._whole(401, {"error": {"type": "authentication_error", "message": f"incorrect key {given}"}})
        self.model_server.seen.append((path, fields, body))
        answers = {
            "/v1/chat/completions": (_chat, _chat_events),
            "/v1/messages": (_message, _message_events),
            "/v1/embeddings": (_embeddings, _chat_events),
        }
        if path not in answers:
            return self._whole(404, {"error": {"type": "not_found_error", "message": path}})
        whole, events = answers[path]
        if body.get("stream"):
            return self._events(events(body["model"]))
        return self._whole(200, whole(body["model"]))

    def _whole(self, status: int, answer: Json) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _events(self, events: Iterator[tuple[str, Json | str]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for name, data in events:
            text = (
                f"event: {name}\n" if name else ""
            ) + f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"
            self.wfile.write(b"%x\r\n%b\r\n" % (len(text), text.encode()))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


def _chat(model: str) -> Json:
    message = {"role": "assistant", "content": "".join(WORDS)}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": USAGE}


def _chat_events(model: str) -> Iterator[tuple[str, Json | str]]:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model}
    for word in WORDS:
        yield "", {**chunk, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
    yield "", {**chunk, "choices": [], "usage": USAGE}
    yield "", "[DONE]"


def _embeddings(model: str) -> Json:
    item = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
    return {"object": "list", "model": model, "data": [item], "usage": {"prompt_tokens": 4, "total_tokens": 4}}


def _message(model: str) -> Json:
    content = [{"type": "text", "text": "".join(WORDS)}]
    usage = {"input_tokens": 21, "output_tokens": 3}
    told = {"stop_reason": "end_turn", "stop_sequence": None, "usage": usage}
    return {"id": "m", "type": "message", "role": "assistant", "model": model, "content": content, **told}


def _message_events(model: str) -> Iterator[tuple[str, Json | str]]:
    begun = {**_message(model), "content": [], "stop_reason": None, "usage": {"input_tokens": 21, "output_tokens": 1}}
    yield "message_start", {"type": "message_start", "message": begun}
    block = {"type": "text", "text": ""}
    yield "content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}
    for word in WORDS:
        delta = {"type": "text_delta", "text": word}
        yield "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}
    yield "content_block_stop", {"type": "content_block_stop", "index": 0}
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    yield "message_delta", {"type": "message_delta", "delta": ended, "usage": {"output_tokens": 3}}
    yield "message_stop", {"type": "message_stop"}
