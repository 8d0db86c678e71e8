# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The control socket: status and reload for who may enter the container, over HTTP on a Unix socket.

Two short requests need no framework: importing one would cost a third of the time to start and of the idle memory.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openshell_proxy.relay.http1 import ProtocolError, parse_request_head

HEAD_BYTES = 8192
SECONDS = 10.0
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 422: "Unprocessable Content"}

Report = Callable[[], dict[str, Any]]


class Control:
    """Serves ``GET /status`` and ``POST /reload`` at *path*, one request per connection; only our user may connect."""

    def __init__(self, path: Path, status: Report, reload: Report) -> None:
        self._path = path
        self._actions = {"/status": ("GET", status), "/reload": ("POST", reload)}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Bind. Raises :class:`OSError`."""
        self._path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(self._path))
            self._path.chmod(0o600)  # before anybody can connect, which takes listen(2)
            self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=HEAD_BYTES)
        except BaseException:
            sock.close()
            raise

    def close(self) -> None:
        """Take no further request."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                status, answer = self._answer(await reader.readuntil(b"\r\n\r\n"))
                body = json.dumps(answer).encode()
                head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: application/json\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
                await writer.drain()
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # who asks so gets no answer
        finally:
            writer.close()

    def _answer(self, block: bytes) -> tuple[int, dict[str, Any]]:
        """Status and body for the request with the head *block*."""
        try:
            head = parse_request_head(block)
        except ProtocolError as error:
            return 400, {"error": str(error)}
        if head.target not in self._actions:
            return 404, {"error": "there are only /status and /reload"}
        method, act = self._actions[head.target]
        if head.method != method:
            return 405, {"error": f"{head.target} is for {method}"}
        report = act()
        failed = method == "POST" and (report["policy_error"] or report["credentials_error"])
        return (422 if failed else 200), report
