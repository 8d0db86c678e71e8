# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The audit log: one OCSF-shaped JSON line per decision, allowed or denied (spec 2.11), never a secret or a query.

Lines go through a bounded queue to a thread of their own, so a log that cannot be written fast enough never holds
up traffic; what was dropped is counted and said in the next line that gets through.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import logging.handlers
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

from openshell_proxy import __version__
from openshell_proxy.policy import Decision

SCHEMA = "1"
QUEUE_LINES = 10_000
FILE_BYTES = 16 * 1024 * 1024
FILES_KEPT = 3
REASON_LENGTH = 256

Entrance = Literal["connect", "tunnel", "forward", "transparent", "dns", "gateway", "client"]


@dataclasses.dataclass(slots=True)
class Event:
    """One decision, or the end of a tunnel. ``path`` is without the query; ``bytes_in`` is what the client got, ``bytes_out`` what it sent."""

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
    ended: bool = False
    started: float = dataclasses.field(default_factory=time.monotonic)

    def decided(self, decision: Decision) -> None:
        """Take over what the policy found."""
        self.policy, self.rule, self.reason = decision.policy, decision.rule, decision.reason
        self.engine, self.audited = ("l7" if decision.layer == "l7" else "opa"), decision.audited

    @property
    def message(self) -> str:
        if self.entrance in ("tunnel", "forward") or self.method:
            verdict = "closed" if self.ended else self._verdict
            kind = "FORWARD" if self.entrance == "forward" else "L7_REQUEST"
            return f"{kind} {verdict} {self.method} {self.host}:{self.port}{self.path}"
        kind = self.entrance.upper()
        if self.ended:
            return f"{kind} closed {self.host}:{self.port}"
        return f"{kind} {'allowed' if self.allowed else 'denied'} {self.host}:{self.port}"

    @property
    def _verdict(self) -> str:
        if not self.allowed:
            return "deny"
        return "audit" if self.audited else "allow_upgrade" if self.status == 101 else "allow"

    def record(self, sandbox: str) -> dict[str, Any]:
        """The event in OCSF's words: class 4002 (HTTP) for a request, 4001 (network) for a connection."""
        http = bool(self.method)
        uid = 4002 if http else 4001
        record: dict[str, Any] = {
            "class_uid": uid,
            "category_uid": 4,
            "activity_id": 2 if self.ended else 1,
            "type_uid": uid * 100 + (2 if self.ended else 1),
            "time": int(time.time() * 1000),
            "severity_id": 1 if self.allowed else 3,
            "status_id": 1 if self.allowed else 2,
            "action_id": 1 if self.allowed else 2,
            "disposition_id": 1 if self.allowed else 2,
            "message": self.message,
            "metadata": {
                "version": "1.8.0",
                "product": {"name": "openshell-proxy", "vendor_name": "openshell.sandbox", "version": __version__},
            },
            "dst_endpoint": {"domain": self.host, "port": self.port},
            "firewall_rule": {"name": self.policy, "type": self.engine},
            "traffic": {"bytes_in": self.bytes_in, "bytes_out": self.bytes_out},
            "duration": int((time.monotonic() - self.started) * 1000),
            "unmapped": {"schema": SCHEMA, "sandbox": sandbox, "entrance": self.entrance, "audited": self.audited},
        }
        if self.rule:
            record["unmapped"]["rule"] = self.rule
        if self.reason:
            record["status_detail"] = self.reason[:REASON_LENGTH]
        if http:
            url = {"hostname": self.host, "port": self.port, "path": self.path}
            record["http_request"] = {"http_method": self.method, "url": url}
            if self.status:
                record["http_response"] = {"code": self.status}
        return record


class Audit:
    """Counts decisions and writes them out."""

    def __init__(self, sandbox: str, file: Path | None, stdout: Any = None) -> None:
        self.sandbox = sandbox
        self.allowed = self.denied = self.dropped = 0
        self._queue: queue.Queue[Event | dict[str, Any] | None] = queue.Queue(QUEUE_LINES)
        self._stdout = stdout or sys.stdout
        self._file = _rotating(file) if file is not None else None
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    def event(self, event: Event) -> None:
        """Log one decision; never waits."""
        if event.allowed:
            self.allowed += 1
        else:
            self.denied += 1
        self._put(event)

    def ended(self, event: Event) -> None:
        """Log the end of a tunnel whose beginning was logged as *event*; not a decision, so not counted."""
        self._put(dataclasses.replace(event, ended=True))

    def lifecycle(self, message: str, **details: Any) -> None:
        """Log what happens to the sidecar itself (class 6002: started, stopped, policy loaded or refused)."""
        self._put({"class_uid": 6002, "category_uid": 6, "time": int(time.time() * 1000), "severity_id": 1,
                   "message": message, "unmapped": {"schema": SCHEMA, "sandbox": self.sandbox, **details}})  # fmt: skip

    def _put(self, entry: Event | dict[str, Any]) -> None:
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self.dropped += 1

    def close(self, seconds: float = 0.3) -> None:
        """Write what is queued and end."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _write_all(self) -> None:
        said = 0
        while (entry := self._queue.get()) is not None:
            record = entry.record(self.sandbox) if isinstance(entry, Event) else entry
            if self.dropped != said:
                said = self.dropped
                record.setdefault("unmapped", {})["lines_dropped"] = said
            line = json.dumps(record, separators=(",", ":"))
            try:
                self._stdout.write(line + "\n")
                self._stdout.flush()
                if self._file is not None:
                    self._file.emit(logging.makeLogRecord({"msg": line}))
            except (OSError, ValueError):
                self.dropped += 1


def _rotating(file: Path) -> logging.Handler:
    handler = logging.handlers.RotatingFileHandler(file, maxBytes=FILE_BYTES, backupCount=FILES_KEPT, delay=True)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # stdout has the line; never a traceback
    return handler
