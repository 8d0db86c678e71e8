# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the collection and the sidecar must agree on, and what the playbooks make of the audit log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.openshell.sandbox.plugins.filter.denials import denials
from ansible_collections.openshell.sandbox.plugins.filter.log_lines import log_lines
from ansible_collections.openshell.sandbox.plugins.filter.static_sections import static_sections
from ansible_collections.openshell.sandbox.plugins.module_utils import preflight, sidecar_config
from ansible_collections.openshell.sandbox.plugins.module_utils.sidecar_config import Config, Rejected, converge
from ansible_collections.openshell.sandbox.plugins.modules.sandbox_log_info import events_of
from openshell_proxy import settings
from openshell_proxy.audit import Event
from openshell_proxy.policy import Intent, Request, load_policy
from openshell_proxy.refusal import denied_connection, denied_request
from openshell_proxy.upstream_proxy import authorization, parse_upstream_proxy

ROOT = Path(__file__).parents[3]


def test_both_sides_and_the_page_have_the_same_limits() -> None:
    assert preflight.LIMIT_RANGES == settings.LIMIT_RANGES
    page = (ROOT / "docs/limits.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([0-9]+)[^|]*\| ([0-9]+), ([0-9]+) \|", page, re.MULTILINE)
    assert {row[0]: (int(row[2]), int(row[3])) for row in rows} == settings.LIMIT_RANGES
    assert {row[0]: int(row[1]) for row in rows} == {
        name: getattr(settings.Limits(), name) for name in settings.LIMIT_RANGES
    }


@pytest.mark.parametrize(
    "limits", [{"conections": 1}, {"connections": 0}, {"connections": 1.5}, {"connections": True}, {"idle": "5"}]
)
def test_limits_are_refused_in_one_sentence(limits: dict[str, Any]) -> None:
    with pytest.raises(preflight.Refused, match="openshell_proxy_limits"):
        preflight.check_proxy_limits(limits)


@pytest.mark.parametrize(
    ("url", "no_proxy", "credentials"),
    [
        ("http://proxy:3128", ["a.test", ".b.test", "10.0.0.0/8", "192.0.2.1"], "u:p"),
        ("http://10.0.0.1:3128/", [], "user:pa:ss word"),
        ("https://proxy:1", [], ""), ("http://proxy", [], ""), ("proxy:1", [], ""), ("http://u:p@proxy:1", [], ""),
        ("http://proxy:1/x", [], ""), ("http://proxy:1?x", [], ""), ("http://proxy:0", [], ""),
        ("http://proxy:1", ["10.0.0.1/8"], ""), ("http://proxy:1", ["*.x"], ""), ("http://proxy:1", ["a,b"], ""),
        ("http://proxy:1", ["."], ""), ("http://proxy:1", ["..x"], ""), ("http://proxy:1", [], "nocolon"),
        ("http://proxy:1", [], "u:p\r\nX: y"), ("http://proxy:1", [], "u:\u00e9"),
    ],
)  # fmt: skip
def test_both_sides_judge_an_upstream_proxy_alike(url: str, no_proxy: list[str], credentials: str) -> None:
    try:
        parse_upstream_proxy(url, no_proxy)
        if credentials:
            authorization(credentials)
        usable = True
    except ValueError:
        usable = False
    if usable:
        preflight.check_upstream_proxy(url, no_proxy, credentials)
        return
    with pytest.raises(preflight.Refused) as caught:
        preflight.check_upstream_proxy(url, no_proxy, credentials)
    assert not credentials or credentials not in str(caught.value)


def test_what_belongs_to_an_upstream_proxy_needs_one() -> None:
    with pytest.raises(preflight.Refused):
        preflight.check_upstream_proxy("", ["a.test"], "")


POLICY = """
version: 1
network_policies:
  api:
    endpoints:
      - host: api.test
        port: 443
        protocol: rest
        enforcement: enforce
        access: read-only
        deny_rules: [{method: GET, path: /secret}]
"""


def refused_event(intent: Intent) -> dict[str, Any]:
    """What the sidecar logs of *intent*, judged by the real engine."""
    decision = load_policy(POLICY).decide(intent)
    assert not decision.allowed
    asked = intent.request
    event = Event("tunnel" if asked else "connect", False, intent.host, intent.port, policy=decision.policy)
    if asked:
        event.method, event.path, event.engine = asked.method, asked.path, decision.layer
        event.refused(denied_request(intent, decision))
    else:
        event.refused(denied_connection(intent.host, intent.port, decision.reason))
    return events_of(event.line("test"))[0]


@pytest.mark.parametrize(
    "intent",
    [
        Intent("other.test", 443),
        Intent("api.test", 8443),
        Intent("api.test", 443, Request("POST", "/a/b", {})),
        Intent("api.test", 443, Request("DELETE", "/odd[1]*{x}?.txt", {})),
    ],
)
def test_a_snippet_allows_what_was_refused(intent: Intent) -> None:
    event = refused_event(intent)
    groups = denials([event, event])
    assert [group["count"] for group in groups] == [2]
    wanted = yaml.safe_load(POLICY)
    wanted["network_policies"].update(yaml.safe_load(groups[0]["snippet"]))
    policy = load_policy(yaml.safe_dump(wanted))
    assert policy.decide(intent).allowed
    assert not policy.decide(Intent("third.test", 443)).allowed
    if intent.request:
        assert not policy.decide(Intent("api.test", 443, Request(intent.request.method, "/else", {}))).allowed


def test_no_snippet_where_none_would_help() -> None:
    denied = refused_event(Intent("api.test", 443, Request("GET", "/secret", {})))
    pinned = events_of(Event("connect", False, "api.test", 443, engine="tls", reason="x").line("test"))[0]
    stranger = events_of(Event("client", False, "10.0.0.9", 3128, engine="client", reason="x").line("test"))[0]
    allowed = events_of(Event("connect", True, "api.test", 443).line("test"))[0]
    found = {
        group["policy"] + group["host"]: group["snippet"] for group in denials([denied, pinned, stranger, allowed])
    }
    assert found["apiapi.test"] == "" and found["10.0.0.9"] == ""
    assert yaml.safe_load(found["api.test"])["api_test_443"]["endpoints"] == [
        {"host": "api.test", "port": 443, "tls": "skip"}
    ]
    assert len(found) == 3


@pytest.mark.parametrize("engine", ["l7-graphql", "l7-jsonrpc", "l7-mcp"])
def test_no_snippet_of_rest_for_another_protocol(engine: str) -> None:
    event = refused_event(Intent("api.test", 443, Request("POST", "/a", {})))
    assert denials([event])[0]["snippet"] != ""
    event["firewall_rule"]["type"] = engine
    assert denials([event])[0]["snippet"] == ""


def test_a_line_for_a_person() -> None:
    event = refused_event(Intent("api.test", 443, Request("POST", "/a", {})))
    line = log_lines([event])[0]
    assert re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ L7_REQUEST deny POST api\.test:443/a \[policy:api\]", line)
    assert "[status:403]" in line and "[reason:" in line
    event["unmapped"]["inference"] = {"model": "gpt", "input_tokens": 11, "output_tokens": 7}
    assert "[model:gpt] [tokens:11/7]" in log_lines([event])[0]


def test_lines_that_are_no_events_are_left_out() -> None:
    assert events_of('{"a": 1}\nTraceback\n[1]\n{"half') == [{"a": 1}]


def test_static_sections_are_compared_by_content() -> None:
    one = static_sections("version: 1\nprocess: {run_as_user: sandbox}\n")
    assert one == static_sections("process:\n  run_as_user: sandbox\nlandlock: {}\nversion: 1\n")
    assert one != static_sections("version: 1\n")


class Sidecar:
    """The parts of Podman that a hand-over uses; ``answers`` are the sentinels after each SIGHUP."""

    def __init__(self, answers: list[dict[str, Any]]) -> None:
        self.answers = answers
        self.sentinel: dict[str, Any] = {"started_ticks": 1, "generation": 1, "read_policy_digest": "old"}
        self.calls: list[list[str]] = []

    def container(self, _name: str) -> dict[str, Any]:
        return {"State": {"Status": "running"}}

    def volume_path(self, _name: str) -> str:
        return ""

    def run(self, args: list[str], stdin: bytes | None = None, check: bool = True) -> None:
        self.calls.append(args)
        if args[0] == "kill" and self.answers:
            self.sentinel = self.answers.pop(0)


@pytest.fixture
def hand_over(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``converge`` of the file *name* against a :class:`Sidecar`, without waiting for one that does not answer."""

    def run(sidecar: Sidecar, name: str, text: str) -> Any:
        def wait(*_args: Any) -> dict[str, Any]:
            accept = _args[4]
            if not accept(sidecar.sentinel):
                raise sidecar_config.NotReady("it did not answer")
            return sidecar.sentinel

        monkeypatch.setattr(sidecar_config, "read_current", lambda *_: {name: "before"})
        monkeypatch.setattr(sidecar_config, "sidecar_ready", lambda *_: sidecar.sentinel)
        monkeypatch.setattr(sidecar_config, "wait_ready", wait)
        config = Config({name: text}, "/var/lib/openshell/config", "volume", 1337)
        podman: Any = sidecar
        return converge(podman, "proxy", "tls", config, 1, False)

    return run


def test_the_word_on_a_secret_is_the_next_generation(hand_over: Any) -> None:
    sidecar = Sidecar([{"started_ticks": 1, "generation": 2}])
    outcome = hand_over(sidecar, sidecar_config.UPSTREAM_PROXY_AUTH, "user:secret")
    assert outcome.changed and "secret" not in str(outcome.diffs).replace("a secret", "").replace("another secret", "")
    with pytest.raises(Rejected, match="did not answer"):
        hand_over(Sidecar([]), sidecar_config.UPSTREAM_PROXY_AUTH, "user:secret")


def test_the_word_must_be_on_this_policy(hand_over: Any) -> None:
    text = "version: 1\n"
    good = {"started_ticks": 1, "generation": 2, "read_policy_digest": sidecar_config.digest(text)}
    assert hand_over(Sidecar([good]), "policy.yaml", text).changed
    with pytest.raises(Rejected, match="did not answer"):
        hand_over(Sidecar([{**good, "read_policy_digest": "another"}]), "policy.yaml", text)


def test_a_policy_that_the_sidecar_refuses_is_taken_back(hand_over: Any) -> None:
    text = "version: 1\n"
    bad = {"started_ticks": 1, "generation": 2, "read_policy_digest": sidecar_config.digest(text), "policy_error": "no"}
    sidecar = Sidecar([bad])
    with pytest.raises(Rejected, match="keeps the old one: no"):
        hand_over(sidecar, "policy.yaml", text)
    assert [args[0] for args in sidecar.calls] == ["cp", "kill", "cp", "kill"]
