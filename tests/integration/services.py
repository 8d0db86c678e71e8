# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the suite's clients talk to, on this host: git over HTTP, an event stream, WebSocket echo, gRPC, uploads. All with TLS."""

from __future__ import annotations

import base64
import hashlib
import http.server
import os
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import websockets.sync.server


class GitHandler(http.server.BaseHTTPRequestHandler):
    """git-http-backend(1) as its manual says: a CGI program."""

    protocol_version = "HTTP/1.1"
    root: Path

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._run(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._run(body)

    def _run(self, body: bytes) -> None:
        url = urlsplit(self.path)
        env = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REMOTE_USER": "it",
            "PATH_INFO": url.path,
            "QUERY_STRING": url.query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class EventHandler(http.server.BaseHTTPRequestHandler):
    """``/events``: event n+1 is sent only after the client has asked for ``/seen/n``, so whoever buffers hangs."""

    protocol_version = "HTTP/1.1"
    seen: dict[int, threading.Event]

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/seen/"):
            self.seen[int(self.path.rpartition("/")[2])].set()
            self.send_response(204)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number, event in self.seen.items():
            self.wfile.write(f"data: {number}\n\n".encode())
            self.wfile.flush()
            if not event.wait(20):
                break
        self.close_connection = True


class UploadHandler(http.server.BaseHTTPRequestHandler):
    """Answers a PUT with the SHA-256 of what it got, in hexadecimal; gives leave to send first, where asked."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_PUT(self) -> None:
        digest = hashlib.sha256()
        for part in self._parts():
            digest.update(part)
        content = f"{digest.hexdigest()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _parts(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") != "chunked":
            yield self.rfile.read(int(self.headers["Content-Length"]))
            return
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()


def https(handler: type[http.server.BaseHTTPRequestHandler], address: str, context: ssl.SSLContext) -> int:
    server = http.server.ThreadingHTTPServer((address, 0), handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


class TokenGitHandler(GitHandler):
    """The same for who has ``token``, told as GitHub wants it."""

    token: str

    def _run(self, body: bytes) -> None:
        told = base64.b64encode(f"x-access-token:{self.token}".encode()).decode()
        if self.headers.get("Authorization") == f"Basic {told}":
            return super()._run(body)
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="it"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None


def _repository(directory: Path) -> None:
    directory.mkdir()
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(directory / "pushed.git")], check=True)


def git(directory: Path, address: str, context: ssl.SSLContext) -> int:
    """An empty repository ``pushed.git`` that anybody may push to; the port."""
    _repository(directory)
    return https(type("Git", (GitHandler,), {"root": directory}), address, context)


def token_git(directory: Path, address: str, context: ssl.SSLContext, token: str) -> int:
    """The same repository for who has *token*; the port."""
    _repository(directory)
    return https(type("TokenGit", (TokenGitHandler,), {"root": directory, "token": token}), address, context)


def events(address: str, context: ssl.SSLContext) -> int:
    seen = {number: threading.Event() for number in range(5)}
    return https(type("Events", (EventHandler,), {"seen": seen}), address, context)


def uploads(address: str, context: ssl.SSLContext) -> int:
    return https(UploadHandler, address, context)


def websocket(address: str, context: ssl.SSLContext) -> int:
    """Echoes every message with "echo: " before it."""

    def echo(connection: websockets.sync.server.ServerConnection) -> None:
        for message in connection:
            connection.send(f"echo: {message!s}")

    server = websockets.sync.server.serve(echo, address, 0, ssl=context)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.socket.getsockname()[1])


class _Calls(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        def upper(request: bytes, _context: grpc.ServicerContext) -> bytes:
            return request.upper()

        def count(request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
            yield from (b"%d" % number for number in range(int(request)))

        def both(requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
            yield from (b"got " + one for one in requests)

        def fails(_request: bytes, context: grpc.ServicerContext) -> bytes:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")
            raise AssertionError

        handlers: dict[str, Callable[[], grpc.RpcMethodHandler]] = {
            "/it.Calls/Upper": lambda: grpc.unary_unary_rpc_method_handler(upper),
            "/it.Calls/Count": lambda: grpc.unary_stream_rpc_method_handler(count),
            "/it.Calls/Both": lambda: grpc.stream_stream_rpc_method_handler(both),
            "/it.Calls/Fails": lambda: grpc.unary_unary_rpc_method_handler(fails),
        }
        make = handlers.get(details.method)
        return make() if make is not None else None


def rpc(address: str, key_and_certificate: bytes) -> int:
    """gRPC methods on plain bytes; the port."""
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((_Calls(),))
    credentials = grpc.ssl_server_credentials([(key_and_certificate, key_and_certificate)])
    port = int(server.add_secure_port(f"{address}:0", credentials))
    server.start()
    _SERVERS.append(server)
    return port


_SERVERS: list[grpc.Server] = []  # a server that nobody refers to ends
