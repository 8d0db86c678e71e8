# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sidecar's control socket: status and reload for who may enter the container, over HTTP on a Unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

Status = Callable[[], dict[str, Any]]
Reload = Callable[[], dict[str, Any]]


async def serve_control(path: Path, status: Status, reload: Reload) -> web.AppRunner:
    """Bind the control socket; the caller cleans the runner up."""

    async def get_status(_request: web.Request) -> web.Response:
        return web.json_response(status())

    async def post_reload(_request: web.Request) -> web.Response:
        report = reload()
        return web.json_response(report, status=422 if report["policy_error"] or report["credentials_error"] else 200)

    app = web.Application()
    app.add_routes([web.get("/status", get_status), web.post("/reload", post_reload)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    path.unlink(missing_ok=True)
    await web.UnixSite(runner, str(path)).start()
    path.chmod(0o600)
    return runner


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(path: Path, method: str, target: str, seconds: float = 10.0) -> tuple[int, dict[str, Any]]:
    """(status, answer) of the living sidecar's control socket. Raises :class:`OSError`."""
    connection = _UnixConnection(path, seconds)
    try:
        connection.request(method, target)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()
