# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The audit log: one line per decision, bounded in every direction, and no queries."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from openshell_proxy import audit
from openshell_proxy.audit import Audit, Event


def event(number: int = 0) -> Event:
    return Event("forward", True, "a.test", 80, "GET", f"/{number}", status=200)


class Slow(io.StringIO):
    """A standard output that takes nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def write(self, text: str) -> int:
        assert self.go.wait(20)
        return super().write(text)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_line_is_a_decision_in_ocsf_terms() -> None:
    out = io.StringIO()
    log = Audit("test", None, out)
    log.event(event())
    log.close(5)
    line = json.loads(out.getvalue())
    assert (line["class_uid"], line["action_id"], line["unmapped"]["sandbox"]) == (4002, 1, "test")
    assert line["http_request"]["url"] == {"hostname": "a.test", "port": 80, "path": "/0"}
    assert line["message"] == "FORWARD allow GET a.test:80/0"


def test_a_reader_that_stops_costs_lines_never_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "QUEUE_LINES", 10)
    out = Slow()
    log = Audit("test", None, out)
    for number in range(100):
        log.event(event(number))
    assert log.allowed == 100
    assert 1 <= log.dropped <= 90  # ten queued, and what the writer had in hand
    out.go.set()
    until(lambda: not log._lines)
    log.event(event(100))
    log.close(5)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert lines[-1]["http_request"]["url"]["path"] == "/100"
    assert max(line["unmapped"].get("lines_dropped", 0) for line in lines) == log.dropped


def test_the_file_is_rotated_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "FILE_BYTES", 2000)
    log = Audit("test", tmp_path / "audit.jsonl", io.StringIO())
    for number in range(50):
        log.event(event(number))
    log.close(10)
    files = sorted(tmp_path.iterdir())
    assert len(files) == audit.FILES_KEPT + 1
    assert all(file.stat().st_size <= 2000 for file in files)
    assert "/49" in (tmp_path / "audit.jsonl").read_text()


def test_a_disk_that_is_full_costs_lines_in_the_file_only() -> None:
    out = io.StringIO()
    log = Audit("test", Path("/dev/full"), out)
    log.event(event())
    log.close(5)
    assert "a.test" in out.getvalue()
