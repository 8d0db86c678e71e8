# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The audit log: one line per decision, bounded in every direction, and no queries."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import HOST, World, hello, rest
from openshell_proxy import audit
from openshell_proxy.audit import Audit, Event, RotatingFile, redacted
from openshell_proxy.policy import Decision, Intent, Request
from openshell_proxy.refusal import Refusal, denied_request


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


ASKED: dict[str, Any] = {"method": "GET", "path": "/a"}


@pytest.mark.parametrize(
    ("one", "message", "facts"),
    [
        (Event("connect", True, "h", 1), "CONNECT allowed h:1", (4001, 1, 1, 1)),
        (Event("connect", False, "h", 1), "CONNECT denied h:1", (4001, 1, 2, 3)),
        (Event("connect", True, "h", 1, ended=True), "CONNECT closed h:1", (4001, 2, 1, 1)),
        (Event("tunnel", True, "h", 1, **ASKED), "L7_REQUEST allow GET h:1/a", (4002, 1, 1, 1)),
        (Event("tunnel", True, "h", 1, audited=True, **ASKED), "L7_REQUEST audit GET h:1/a", (4002, 1, 1, 1)),
        (Event("tunnel", True, "h", 1, status=101, **ASKED), "L7_REQUEST allow_upgrade GET h:1/a", (4002, 1, 1, 1)),
        (Event("tunnel", True, "h", 1, ended=True, **ASKED), "L7_REQUEST closed GET h:1/a", (4002, 2, 1, 1)),
        (Event("transparent", False, "h", 1, **ASKED), "L7_REQUEST deny GET h:1/a", (4002, 1, 2, 3)),
        (Event("tunnel", False, "h", 1), "L7_REQUEST deny h:1", (4001, 1, 2, 3)),
        (Event("forward", False, "h", 1), "FORWARD deny h:1", (4001, 1, 2, 3)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_line_says_what_was_asked_and_what_came_of_it(
    one: Event, message: str, facts: tuple[int, int, int, int]
) -> None:
    line = json.loads(one.line("test"))
    assert line["message"] == message
    assert (line["class_uid"], line["activity_id"], line["action_id"], line["severity_id"]) == facts
    assert (line["type_uid"], line["status_id"]) == (facts[0] * 100 + facts[1], line["action_id"])
    assert line["unmapped"]["audited"] is one.audited
    assert ("http_request" in line) is bool(one.method)
    assert line.get("http_response") == ({"code": one.status} if one.status else None)


def test_a_line_has_no_member_that_says_nothing() -> None:
    bare = json.loads(Event("tunnel", True, "h", 1, **ASKED).line("test"))
    assert "status_detail" not in bare
    assert bare["unmapped"].keys() == {"schema", "sandbox", "entrance", "audited"}
    more = Event("tunnel", True, "h", 1, **ASKED, rule="r", error="e", reason="w" * 300, inference={"model": "m"})
    full = json.loads(more.line("test", dropped=3))
    assert full["status_detail"] == "w" * 256
    added = {"rule": "r", "error": "e", "inference": {"model": "m"}, "lines_dropped": 3}
    assert full["unmapped"] == bare["unmapped"] | added


@pytest.mark.parametrize(
    ("layer", "protocol", "engine"), [("l4", "rest", "opa"), ("l7", "rest", "l7"), ("l7", "graphql", "l7-graphql")]
)
def test_a_line_says_what_decided(layer: Any, protocol: str, engine: str) -> None:
    one = event()
    one.decided(Decision(True, "why", policy="p", rule="r", layer=layer, protocol=protocol, audited=True))
    assert (one.engine, one.policy, one.rule, one.reason, one.audited) == (engine, "p", "r", "why", True)


@pytest.mark.parametrize(
    ("found", "more", "reason"),
    [("", {}, "detail"), ("", {"reason": "why"}, "why"), ("found", {"reason": "why"}, "found")],
)
def test_a_refusal_without_another_reason_is_one(found: str, more: dict[str, Any], reason: str) -> None:
    one, refusal = event(), Refusal(403, "code", "detail", more=more)
    one.reason = found
    one.refused(refusal)
    assert (one.status, one.error, one.reason, one.bytes_in) == (403, "code", reason, len(refusal.response()))


def test_a_line_on_the_sidecar_itself() -> None:
    out = io.StringIO()
    log = Audit("test", None, out)
    log.lifecycle("policy loaded", generation=2)
    log.lifecycle("policy refused", policy_error="why")
    assert log.file_error == ""
    log.close(5)
    good, bad = (json.loads(line) for line in out.getvalue().splitlines())
    assert (good["class_uid"], good["severity_id"], bad["severity_id"]) == (6002, 1, 4)
    assert good["unmapped"] == {"schema": "1", "sandbox": "test", "generation": 2}


def test_what_was_dropped_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "QUEUE_LINES", 2)
    out = Slow()
    log = Audit("test", None, out)
    log.event(event())
    until(lambda: not log._lines)  # the writer has it, and waits
    for _ in range(2):
        log.event(event())
    assert log.dropped == 0
    log.event(event())
    log.ended(event())
    log.lifecycle("policy loaded")
    assert (log.dropped, len(log._lines)) == (3, 2)
    out.go.set()
    until(lambda: not log._lines)
    log.lifecycle("policy loaded")
    log.event(event())
    log.close(5)
    said = [json.loads(line)["unmapped"].get("lines_dropped") for line in out.getvalue().splitlines()]
    assert said == [None, None, None, 3, None]


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
    until(lambda: log.file_error != "")
    log.close(5)
    assert "a.test" in out.getvalue()
    assert (log.file_error, log.dropped) == ("no space left on device", 0)


def test_a_file_that_cannot_be_opened_is_tried_again(tmp_path: Path) -> None:
    log = Audit("test", tmp_path / "log" / "audit.jsonl", io.StringIO())
    log.event(event(1))
    until(lambda: log.file_error == "no such file or directory")
    (tmp_path / "log").mkdir()
    log.event(event(2))
    log.close(5)
    assert log.file_error == ""
    assert [json.loads(line)["http_request"]["url"]["path"] for line in (tmp_path / "log/audit.jsonl").open()] == ["/2"]


def test_a_torn_line_stays_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RotatingFile(tmp_path / "audit.jsonl")
    write, room = os.write, [10]

    def full_disk(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(descriptor, data[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", full_disk)
    file.write(b"first line that does not fit\n")
    room[0] = 1000
    file.write(b"second\n")
    file.close()
    assert (tmp_path / "audit.jsonl").read_bytes() == b"first line\nsecond\n"


def test_a_file_from_before_counts_towards_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "FILE_BYTES", 2000)
    (tmp_path / "audit.jsonl").write_text("x" * 1900 + "\n")
    log = Audit("test", tmp_path / "audit.jsonl", io.StringIO())
    log.event(event())
    log.close(5)
    assert (tmp_path / "audit.jsonl.1").read_text().startswith("xxx")
    assert "/0" in (tmp_path / "audit.jsonl").read_text()


def test_a_pipe_that_nobody_reads_costs_lines_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "QUEUE_LINES", 10)
    reading, writing = os.pipe()
    stdout, lines = os.fdopen(writing, "w"), []
    log = Audit("test", None, stdout)
    while not log.dropped:
        log.event(event())
    assert log.allowed > log.dropped  # nothing of it waited for the reader
    reader = threading.Thread(target=lambda: lines.extend(os.fdopen(reading)))
    reader.start()
    until(lambda: not log._lines)
    log.event(event(100))
    log.close(5)
    stdout.close()
    reader.join(10)
    said = [json.loads(line)["unmapped"].get("lines_dropped", 0) for line in lines]
    assert max(said) == log.dropped
    assert len(lines) == log.allowed - log.dropped


class Broken(io.StringIO):
    """A standard output whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_lines_that_nobody_takes_are_counted_and_the_file_has_them(tmp_path: Path) -> None:
    log = Audit("test", tmp_path / "audit.jsonl", Broken())
    log.event(event(1))
    until(lambda: log.dropped == 1)
    log.event(event(2))
    log.close(5)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").open()]
    assert [line["unmapped"].get("lines_dropped") for line in lines] == [None, 1]


@given(st.text(), st.text(), st.text(), st.text(), st.text())
def test_whatever_is_in_it_a_line_is_one_line_of_ascii(
    host: str, method: str, path: str, reason: str, rule: str
) -> None:
    one = Event("forward", False, host, 80, method, path, policy=rule, rule=rule, reason=reason, error=reason)
    line = one.line("test")
    assert line.isascii() and line.isprintable()
    record = json.loads(line)
    assert record["dst_endpoint"]["domain"] == host
    assert record["firewall_rule"]["name"] == rule
    assert record["status_detail"] == redacted(reason)[:256] if reason else "status_detail" not in record
    if method:
        assert record["http_request"] == {
            "http_method": method, "url": {"hostname": host, "port": 80, "path": redacted(path)}
        }  # fmt: skip


@pytest.mark.parametrize(
    "placeholder",
    [
        "openshell:resolve:env:API_KEY",
        "openshell:resolve:env:v3_API_KEY",
        "openshell%3Aresolve%3aenv:API_KEY",
        "%6fpenshell%253Aresolve%25253aenv%3aAPI_KEY",
        "sk-OPENSHELL-RESOLVE-ENV-API_KEY",
        "sk%2DOPENSHELL-RESOLVE%2dENV-API_KEY",
    ],
)
def test_a_placeholder_is_in_no_line(placeholder: str) -> None:
    one = Event("tunnel", False, "a.test", 443, "GET", f"/bot{placeholder}/send", reason=f"GET /{placeholder} is not")
    line = one.line("test")
    assert "API_KEY" not in line
    assert json.loads(line)["http_request"]["url"]["path"].endswith("[CREDENTIAL]/send")
    assert "[CREDENTIAL]" in json.loads(line)["message"]


@pytest.mark.parametrize("piece", ["a", "%25", "-OPENSHELL", "openshell:"])
def test_a_long_path_costs_no_more_than_its_length(piece: str) -> None:
    path = "/%" + piece * (200_000 // len(piece))
    begun = time.monotonic()
    assert redacted(path) == path
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("path", ["/openshell/resolve/env", "/100%25", "/a:b", "/openshell:resolve"])
def test_what_is_no_placeholder_stays(path: str) -> None:
    assert redacted(path) == path


def test_the_documented_line_is_the_line() -> None:
    text = (Path(__file__).parents[3] / "docs/audit.md").read_text()
    documented = json.loads(text.partition("```json\n")[2].partition("```")[0])
    one = Event("tunnel", False, "api.example.com", 443, "POST", "/repos/a/issues", policy="github", rule="GET /**",
                engine="l7")  # fmt: skip
    asked = Intent("api.example.com", 443, Request("POST", "/repos/a/issues", {}))
    one.refused(denied_request(asked, Decision(False, "no", policy="github", layer="l7", protocol="rest")))
    one.reason, one.bytes_out = "POST /repos/a/issues not permitted by policy", 118
    record = json.loads(one.line("demo", 3))
    for changing in ("time", "duration"):
        documented[changing] = record[changing]
    documented["traffic"]["bytes_in"] = record["traffic"]["bytes_in"]
    documented["metadata"]["product"]["version"] = record["metadata"]["product"]["version"]
    assert record == documented


async def test_the_bytes_are_those_of_the_whole_exchange(world: World) -> None:
    there = await world.origin(hello)
    await world.start(rest(there.port, "read-write"))
    place = f"{HOST}:{there.port}"
    sent = 0
    got = 0
    client = await world.client()
    for method, body in (("POST", b"five!"), ("DELETE", b"")):
        data = (
            f"{method} http://{place}/ HTTP/1.1\r\nHost: {place}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        await client.send(data)
        sent += len(data)
        got += len(await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 10))
        got += len(
            await client.reader.readexactly(len(f"{method} / HTTP/1.1|") + len(body))
            if method == "POST"
            else await client.ended()
        )
    traffic = [one["traffic"] for one in await world.events() if one["class_uid"] == 4002]
    assert len(traffic) == 2
    assert sum(one["bytes_out"] for one in traffic) == sent
    assert sum(one["bytes_in"] for one in traffic) == got
