# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The audit log: one OCSF-shaped JSON line per decision, allowed or denied (spec 2.11), never a secret or a query.

The line is made where the decision falls and goes through a bounded queue to a thread of its own, so a log that cannot
be written fast enough never holds up traffic; what was dropped is counted and said in the next line. docs/audit.md
describes the line.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import Any, Literal

from openshell_proxy import __version__
from openshell_proxy.policy import Decision
from openshell_proxy.refusal import Refusal

SCHEMA = "1"
QUEUE_LINES = 10_000
BATCH_LINES = 128
BATCH_SECONDS = 0.02
FILE_BYTES = 16 * 1024 * 1024
FILES_KEPT = 3
REASON_LENGTH = 256

Entrance = Literal["connect", "tunnel", "forward", "transparent", "dns", "gateway", "client", "inference"]


def _escaped(text: str) -> str:
    """A pattern for *text* however often its characters are percent-encoded."""
    return "".join(f"(?:{re.escape(char)}|(?i:%(?:25)*{ord(char):02x}))" for char in text)


# What stands before an alias's marker is a prefix that its client asks for; looking for its beginning would cost
# quadratic time on a long path.
_MARKER = re.compile(rf"(?:{_escaped('openshell:resolve:env:')}|{_escaped('-OPENSHELL-RESOLVE-ENV-')})[^/?#\s]*")


def redacted(text: str) -> str:
    """*text* without credential placeholders in any of their forms (spec 2.6), percent-encoded or not."""
    if "%" not in text and "openshell:" not in text and "-OPENSHELL-" not in text:
        return text
    return _MARKER.sub("[CREDENTIAL]", text)


_ENGINES = {"graphql": "l7-graphql", "json-rpc": "l7-jsonrpc", "mcp": "l7-mcp"}


@dataclasses.dataclass(slots=True)
class Event:
    """One decision, or the end of a tunnel.

    ``path`` is without the query; ``error`` the code of a refusal (spec 2.2); ``bytes_in`` is what the client got,
    ``bytes_out`` what it sent, heads included; of HTTP/2, whose heads are compressed, their names and values, and a
    refusal as it were over HTTP/1.1. ``inference`` is what is said of a call of an inference API besides.
    """

    entrance: Entrance
    allowed: bool
    host: str
    port: int
    method: str = ""
    path: str = ""
    policy: str = ""
    rule: str = ""
    engine: str = "opa"
    reason: str = ""
    audited: bool = False
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    error: str = ""
    ended: bool = False
    inference: Mapping[str, Any] | None = None
    started: float = dataclasses.field(default_factory=time.monotonic)

    def decided(self, decision: Decision) -> None:
        """Take over what the policy found."""
        self.policy, self.rule, self.reason = decision.policy, decision.rule, decision.reason
        self.engine = _ENGINES.get(decision.protocol, "l7") if decision.layer == "l7" else "opa"
        self.audited = decision.audited

    def refused(self, refusal: Refusal) -> None:
        """Take over what the client is told."""
        self.status, self.error = refusal.status, refusal.code
        self.reason = self.reason or str(refusal.more.get("reason") or refusal.detail)
        self.bytes_in += len(refusal.response(self.method == "HEAD"))

    def line(self, sandbox: str, dropped: int = 0) -> str:
        """The event in OCSF's words as one line: class 4002 (HTTP) for a request, 4001 (network) for a connection."""
        path = redacted(self.path)
        return _TEMPLATE % (
            _FACTS[bool(self.method), self.ended, self.allowed],
            int(time.time() * 1000),
            quoted(self._message(path)),
            quoted(self.host),
            self.port,
            quoted(self.policy),
            quoted(self.engine),
            self.bytes_in,
            self.bytes_out,
            int((time.monotonic() - self.started) * 1000),
            f'"status_detail":{quoted(redacted(self.reason)[:REASON_LENGTH])},' if self.reason else "",
            self._http(path) if self.method else "",
            quoted(sandbox),
            quoted(self.entrance),
            "true" if self.audited else "false",
            f',"rule":{quoted(self.rule)}' if self.rule else "",
            f',"error":{quoted(self.error)}' if self.error else "",
            f',"inference":{json.dumps(self.inference)}' if self.inference else "",
            f',"lines_dropped":{dropped}' if dropped else "",
        )

    def _message(self, path: str) -> str:
        if self.method or self.entrance in ("tunnel", "forward"):
            kind = "FORWARD" if self.entrance == "forward" else "L7_REQUEST"
            asked = f"{self.method} " if self.method else ""
            return f"{kind} {self._verdict('deny', 'allow')} {asked}{self.host}:{self.port}{path}"
        return f"{self.entrance.upper()} {self._verdict('denied', 'allowed')} {self.host}:{self.port}"

    def _verdict(self, denied: str, allowed: str) -> str:
        if self.ended:
            return "closed"
        if not self.allowed:
            return denied
        return "audit" if self.audited else "allow_upgrade" if self.status == 101 else allowed

    def _http(self, path: str) -> str:
        response = f',"http_response":{{"code":{self.status}}},' if self.status else ","
        return (
            f'"http_request":{{"http_method":{quoted(self.method)},"url":{{"hostname":{quoted(self.host)},'
            f'"port":{self.port},"path":{quoted(path)}}}}}{response}'
        )


def _facts(http: bool, ended: bool, allowed: bool) -> str:
    """The members that only these three settle."""
    uid, activity, outcome = 4002 if http else 4001, 2 if ended else 1, 1 if allowed else 2
    return (
        f'"class_uid":{uid},"category_uid":4,"activity_id":{activity},"type_uid":{uid * 100 + activity},'
        f'"severity_id":{1 if allowed else 3},"status_id":{outcome},"action_id":{outcome},"disposition_id":{outcome}'
    )


_YES_NO = (False, True)
_FACTS = {(h, e, a): _facts(h, e, a) for h in _YES_NO for e in _YES_NO for a in _YES_NO}
_PRODUCT = json.dumps(
    {"name": "openshell-proxy", "vendor_name": "openshell.sandbox", "version": __version__}, separators=(",", ":")
)
# One format pass per line: it is on the path of every request, and json.dumps of nested mappings takes three times as long.
_TEMPLATE = (
    '{%s,"time":%d,"message":%s,"metadata":{"version":"1.8.0","product":'
    + _PRODUCT
    + '},"dst_endpoint":{"domain":%s,"port":%d},"firewall_rule":{"name":%s,"type":%s},'
    '"traffic":{"bytes_in":%d,"bytes_out":%d},"duration":%d,%s%s'
    '"unmapped":{"schema":"' + SCHEMA + '","sandbox":%s,"entrance":%s,"audited":%s%s%s%s%s}}'
)  # fmt: skip


class Audit:
    """Counts decisions and writes them out."""

    def __init__(self, sandbox: str, file: Path | None, stdout: Any = None) -> None:
        self.sandbox = sandbox
        self.allowed = self.denied = 0
        self._overflowed = self._unwritten = self._said = 0
        self._lines: collections.deque[str] = collections.deque()
        self._wake = threading.Event()
        self._ending = False
        self._stdout = stdout or sys.stdout
        self._file = RotatingFile(file) if file is not None else None
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that never reached standard output."""
        return self._overflowed + self._unwritten

    @property
    def file_error(self) -> str:
        """Why the log volume does not take lines at the moment, or ""."""
        return self._file.error if self._file is not None else ""

    def event(self, event: Event) -> None:
        """Log one decision; never waits."""
        if event.allowed:
            self.allowed += 1
        else:
            self.denied += 1
        if self._has_room():
            self._put(event.line(self.sandbox, self._to_say()))

    def ended(self, event: Event) -> None:
        """Log the end of a tunnel whose beginning was logged as *event*; not a decision, so not counted."""
        event.ended = True
        if self._has_room():
            self._put(event.line(self.sandbox, self._to_say()))

    def lifecycle(self, message: str, **details: Any) -> None:
        """Log what happens to the sidecar itself (class 6002: started, stopped, policy loaded or refused)."""
        if not self._has_room():
            return
        dropped = self._to_say()
        record = {
            "class_uid": 6002,
            "category_uid": 6,
            "time": int(time.time() * 1000),
            "severity_id": 4 if details.get("policy_error") else 1,
            "message": message,
            "unmapped": {
                "schema": SCHEMA,
                "sandbox": self.sandbox,
                **details,
                **({"lines_dropped": dropped} if dropped else {}),
            },
        }
        self._put(json.dumps(record, separators=(",", ":")))

    def _has_room(self) -> bool:
        if len(self._lines) < QUEUE_LINES:
            return True
        self._overflowed += 1
        return False

    def _to_say(self) -> int:
        """The number of lines dropped so far, or 0 when the log tells it already."""
        dropped = self._overflowed + self._unwritten
        if dropped == self._said:
            return 0
        self._said = dropped
        return dropped

    def _put(self, line: str) -> None:
        self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def close(self, seconds: float = 0.3) -> None:
        """Write what is queued and end."""
        self._ending = True
        self._wake.set()
        self._thread.join(seconds)

    def _write_all(self) -> None:
        while not (self._ending and not self._lines):
            self._wake.wait()
            if not self._ending:
                time.sleep(BATCH_SECONDS)  # what comes meanwhile goes out in the same write
            self._wake.clear()  # before looking: a line that comes after the last look sets it again
            while self._lines:
                self._write([self._lines.popleft() for _ in range(min(BATCH_LINES, len(self._lines)))])
            if self._ending:
                self._wake.set()
        if self._file is not None:
            self._file.close()

    def _write(self, lines: list[str]) -> None:
        text = "\n".join(lines) + "\n"
        try:
            self._stdout.write(text)
            self._stdout.flush()
        except (OSError, ValueError):
            self._unwritten += len(lines)
        if self._file is not None:
            self._file.write(text.encode("ascii"))


class RotatingFile:
    """A file of at most :data:`FILE_BYTES` and :data:`FILES_KEPT` older ones, ``NAME.1`` the youngest.

    A volume that is full or read-only costs the lines in the file and nothing else; each write tries again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error = ""
        self._descriptor = -1
        self._size = 0
        self._torn = False  # whether the last line in the file is half of one

    def write(self, data: bytes) -> None:
        """Append whole lines."""
        fits = self._size + len(data) <= FILE_BYTES
        for part in [data] if fits else data.splitlines(keepends=True):
            self._write(part)

    def _write(self, data: bytes) -> None:
        try:
            if self._descriptor >= 0 and self._size + len(data) > FILE_BYTES:
                self._rotate()
            if self._descriptor < 0:
                self._open()
                if self._size and self._size + len(data) > FILE_BYTES:
                    self._rotate()
                    self._open()
            self._append(b"\n" + data if self._torn else data)
            self.error = ""
        except OSError as error:
            self.error = (error.strerror or "it cannot be written").lower()
            self.close()

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._descriptor).st_size

    def _append(self, data: bytes) -> None:
        while data:
            written = os.write(self._descriptor, data)
            self._size += written
            self._torn = data[written - 1 : written] != b"\n"
            data = data[written:]

    def _rotate(self) -> None:
        self.close()
        for number in range(FILES_KEPT, 0, -1):
            younger = self.path if number == 1 else self.path.with_name(f"{self.path.name}.{number - 1}")
            with contextlib.suppress(FileNotFoundError):
                os.replace(younger, self.path.with_name(f"{self.path.name}.{number}"))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
