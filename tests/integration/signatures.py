# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Storage that checks AWS Signature Version 4 as S3 does, by its own reading of AWS's page "Create a signed request"."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import json
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, unquote

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request, ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})"
)


class Storage(http.server.BaseHTTPRequestHandler):
    """Answers PUT and GET with what it makes of the signature; ``keys``: id → secret."""

    protocol_version = "HTTP/1.1"
    keys: Mapping[str, str] = {}

    def log_message(self, *args: object) -> None:
        pass

    def do_PUT(self) -> None:
        self._answer(self._body())

    def do_GET(self) -> None:
        self._answer(b"")

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, body: bytes) -> None:
        found = _AUTHORIZATION.fullmatch(self.headers.get("Authorization", ""))
        good = found is not None and self._signature(found, body) == found[5]
        told = {"good": good, "region": found[3] if found else "", "bytes": len(body)}
        content = json.dumps(told).encode() + b"\n"
        self.send_response(200 if good else 403)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _signature(self, found: re.Match[str], body: bytes) -> str:
        key_id, day, region, names, _ = found.groups()
        payload = self.headers["X-Amz-Content-Sha256"]
        if payload not in ("UNSIGNED-PAYLOAD", hashlib.sha256(body).hexdigest()):
            return "not this body"
        if not {"host", "x-amz-date", "x-amz-content-sha256"} <= set(names.split(";")):
            return "too little is signed"
        path, _, query = self.path.partition("?")
        pairs = sorted((quote(name, safe=""), quote(value, safe="")) for name, value in parse_qsl(query, True))
        lines = [self.command, quote(unquote(path), safe="/"), "&".join(f"{name}={value}" for name, value in pairs)]
        lines += [f"{name}:{' '.join(self.headers[name].split())}" for name in names.split(";")]
        asked = hashlib.sha256("\n".join([*lines, "", names, payload]).encode()).hexdigest()
        scope = f"{day}/{region}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", self.headers["X-Amz-Date"], scope, asked])
        key = b"AWS4" + self.keys.get(key_id, "").encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), "sha256").digest()
        return hmac.new(key, text.encode(), "sha256").hexdigest()
