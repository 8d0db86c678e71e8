# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Living with a sandbox: its policy is changed, judged and explained, its log is read; nothing is restarted."""

from __future__ import annotations

import copy
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Origin, changed, inside, ours, playbook, podman

NAME = "it-ops"
KINDS = ("container", "network", "volume", "secret")
# A client that keeps its connection: one that closes between two requests is opened anew, all else is a failure.
KEEPS_ASKING = """
import http.client, sys, time
proxy, url = sys.argv[1:]
kept, count, end = None, 0, time.monotonic() + 20
while time.monotonic() < end:
    if kept is None:
        kept, used = http.client.HTTPConnection(proxy, 3128, timeout=10), False
    try:
        kept.request("GET", url)
        answer = kept.getresponse()
    except (http.client.RemoteDisconnected, ConnectionError) as error:
        if not used:
            sys.exit(f"a fresh connection broke: {error!r}")
        kept = None
        continue
    body = answer.read()
    if answer.status != 200 or body != b"hello from outside\\n":
        sys.exit(f"{answer.status} {body!r}")
    used, count = True, count + 1
    if answer.will_close:
        kept = None
print(count)
"""
SECRET = "operator:Tr0ub4dor-3"


def policy(origin: Origin, access: str = "read-only", **more: Any) -> dict[str, Any]:
    endpoint = {"host": origin.address, "port": origin.http, "protocol": "rest", "enforcement": "enforce"}
    return {"version": 1, **more, "network_policies": {"origin": {"endpoints": [{**endpoint, "access": access}]}}}


def good(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    return result


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode != 0, result.stdout[-3000:]
    assert "Traceback" not in result.stdout + result.stderr
    for word in words:
        assert word in result.stdout, result.stdout[-3000:]


@pytest.fixture(scope="module")
def ops(origin: Origin) -> Iterator[str]:
    try:
        good(playbook("create_sandbox", sandbox_name=NAME, openshell_policy=policy(origin)))
        yield NAME
    finally:
        playbook("delete_sandbox", sandbox_name=NAME)


@pytest.fixture
def original(ops: str, origin: Origin) -> Iterator[str]:
    """The sandbox, with the policy it was made with before and after."""
    good(playbook("update_policy", sandbox_name=ops, openshell_policy=policy(origin)))
    yield ops
    good(playbook("update_policy", sandbox_name=ops, openshell_policy=policy(origin)))


def moments() -> str:
    """When both containers started; the same as long as nothing is restarted."""
    names = [f"openshell-{role}-{NAME}" for role in ("proxy", "agent")]
    return podman("inspect", "-f", "{{.Id}} {{.State.StartedAt}} {{.State.Pid}}", *names).stdout


def status(name: str = NAME) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(podman("exec", f"openshell-proxy-{name}", "openshell-proxy", "status").stdout)
    return found


def post(origin: Origin, path: str = "/hello.txt") -> str:
    """The status that a POST from the agent gets."""
    url = f"http://{origin.address}:{origin.http}{path}"
    return inside(NAME, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", url).stdout


def test_a_policy_is_changed_while_the_sandbox_runs(original: str, origin: Origin) -> None:
    before, generation = moments(), status()["generation"]
    assert post(origin) == "403"
    done = good(playbook("update_policy", "--diff", sandbox_name=NAME, openshell_policy=policy(origin, "full")))
    assert changed(done) == 1
    assert "+" in done.stdout and "access: full" in done.stdout
    assert post(origin) == "501"  # the origin's own answer: it was reached
    assert (moments(), status()["generation"]) == (before, generation + 1)
    again = good(playbook("update_policy", sandbox_name=NAME, openshell_policy=policy(origin, "full")))
    assert changed(again) == 0
    assert status()["generation"] == generation + 1


def test_check_mode_tells_the_change_and_makes_none(original: str, origin: Origin) -> None:
    generation = status()["generation"]
    wanted = policy(origin, "full")
    checked = good(playbook("update_policy", "--check", "--diff", sandbox_name=NAME, openshell_policy=wanted))
    assert changed(checked) == 1
    assert "access: full" in checked.stdout
    assert (post(origin), status()["generation"]) == ("403", generation)


def test_a_bad_policy_changes_nothing_and_says_why(original: str, origin: Origin) -> None:
    before = (moments(), status())
    bad = copy.deepcopy(policy(origin))
    bad["network_policies"]["origin"]["endpoints"][0]["hots"] = "x"
    refused(playbook("update_policy", sandbox_name=NAME, openshell_policy=bad), "the policy is refused", "did you mean")
    after = (moments(), status())
    for one in (before[1], after[1]):
        del one["uptime_seconds"]
    assert after == before


def test_static_sections_cannot_change_while_it_lives(original: str, origin: Origin) -> None:
    generation = status()["generation"]
    wanted = policy(origin, "full", process={"run_as_user": "sandbox"}, landlock={"compatibility": "best_effort"})
    done = playbook("update_policy", sandbox_name=NAME, openshell_policy=wanted)
    refused(done, "cannot change while sandbox", "process", "landlock")
    assert "filesystem_policy" not in done.stdout
    assert (post(origin), status()["generation"]) == ("403", generation)


def test_there_must_be_a_sandbox(origin: Origin) -> None:
    refused(
        playbook("update_policy", sandbox_name="it-ops-none", openshell_policy=policy(origin)), "there is no sandbox"
    )
    assert all(ours(kind, "it-ops-none") == [] for kind in KINDS)


def test_a_stopped_sandbox_takes_it_too(original: str, origin: Origin) -> None:
    good(playbook("stop_sandbox", sandbox_name=NAME))
    try:
        done = good(playbook("update_policy", sandbox_name=NAME, openshell_policy=policy(origin, "full")))
        assert changed(done) == 1
        assert podman("inspect", "-f", "{{.State.Running}}", f"openshell-proxy-{NAME}").stdout.strip() == "false"
    finally:
        good(playbook("start_sandbox", sandbox_name=NAME))
    assert post(origin) == "501"


def test_no_request_is_lost_while_policies_change(original: str, origin: Origin) -> None:
    url = f"http://{origin.address}:{origin.http}/hello.txt"
    network = f'{{{{(index .NetworkSettings.Networks "openshell-sbx-{NAME}").IPAddress}}}}'
    proxy = podman("inspect", "-f", network, f"openshell-proxy-{NAME}").stdout.strip()
    results: list[subprocess.CompletedProcess[str]] = []
    client = threading.Thread(target=lambda: results.append(inside(NAME, "python3", "-c", KEEPS_ASKING, proxy, url)))
    client.start()
    changes = 0
    while client.is_alive():
        access = "full" if changes % 2 == 0 else "read-only"
        good(playbook("update_policy", sandbox_name=NAME, openshell_policy=policy(origin, access)))
        changes += 1
    assert results[0].returncode == 0, results[0].stdout + results[0].stderr
    assert int(results[0].stdout) > 100
    assert changes > 1


def test_a_volume_is_known_by_its_whole_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "playbooks/collections"))
    from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman

    podman("volume", "create", "it-ops-volume-1")
    try:
        assert Podman().volume("it-ops-volume") is None  # "podman volume inspect" would take the beginning for it
        assert not Podman().remove_volume("it-ops-volume")
        podman("volume", "create", "it-ops-volume-2")
        assert Podman().volume("it-ops-volume") is None
        assert (Podman().volume("it-ops-volume-1") or {})["Name"] == "it-ops-volume-1"
    finally:
        podman("volume", "rm", "it-ops-volume-1", "it-ops-volume-2", check=False)
    assert not {"it-ops-volume-1", "it-ops-volume-2"} & set(podman("volume", "ls", "-q").stdout.split())


def test_a_policy_is_judged_without_a_sandbox(origin: Origin, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(yaml.safe_dump(policy(origin)))
    assert "The policy is good" in good(playbook("check_policy", openshell_policy=str(file))).stdout
    file.write_text("version: 1\nnetwork_policies:\n  x:\n    endpoints:\n      - {hots: a.test, port: 443}\n")
    refused(playbook("check_policy", openshell_policy=str(file)), f"{file}:5", "did you mean")
    refused(playbook("check_policy", openshell_policy="/nowhere.yaml"), "cannot be read")
    assert not {"openshell-proxy-", "openshell-tls-"} & set(podman("volume", "ls", "-q").stdout.split())
    assert "openshell-sbx-" not in podman("network", "ls", "--format", "{{.Name}}").stdout.split()


def test_a_decision_is_explained(origin: Origin) -> None:
    url = f"http://{origin.address}:{origin.http}/hello.txt"
    allowed = good(playbook("explain_policy", openshell_policy=policy(origin), method="GET", url=url))
    assert f"allow GET {origin.address}:{origin.http}/hello.txt" in allowed.stdout
    denied = good(playbook("explain_policy", openshell_policy=policy(origin), method="POST", url=url))
    assert f"deny POST {origin.address}:{origin.http}/hello.txt" in denied.stdout
    refused(playbook("explain_policy", openshell_policy={"version": 2}, method="GET", url=url), "version must be 1")
    refused(playbook("explain_policy", openshell_policy=policy(origin)), "Give a policy, a method and a URL")


def test_the_log_can_be_read(original: str, origin: Origin) -> None:
    assert post(origin, "/read-me?secret=1") == "403"
    shown = good(playbook("sandbox_logs", sandbox_name=NAME)).stdout
    assert f"FORWARD deny POST {origin.address}:{origin.http}/read-me [policy:origin] [engine:l7]" in shown
    assert "secret" not in shown
    told = good(playbook("sandbox_logs", sandbox_name=NAME, openshell_format="json", openshell_since="10m")).stdout
    assert '"http_method": "POST"' in told
    later = good(playbook("sandbox_logs", sandbox_name=NAME, openshell_since="2099-01-01T00:00:00Z")).stdout
    assert "/read-me" not in later
    refused(playbook("sandbox_logs", sandbox_name=NAME, openshell_since="yesterday-ish"), "cannot be read since")
    refused(playbook("sandbox_logs", sandbox_name="it-ops-none"), "there is no sandbox")


def test_what_was_refused_comes_with_what_would_allow_it(original: str, origin: Origin) -> None:
    path = "/odd[1]*.txt"
    url = f"http://{origin.address}:{origin.http}{path}"
    for _ in range(3):
        inside(NAME, "curl", "-sS", "-g", "-X", "POST", url)
    told = good(playbook("denied_report", sandbox_name=NAME, openshell_format="json", openshell_since="10m")).stdout
    groups, _ = json.JSONDecoder().raw_decode(told, told.index("[\n    {"))
    mine = [one for one in groups if one["method"] == "POST" and "odd" in one["path"]]
    assert [one["count"] for one in mine] == [3]
    shown = good(playbook("denied_report", sandbox_name=NAME, openshell_since="10m")).stdout
    assert "# To allow POST" in shown and mine[0]["snippet"].splitlines()[0] in shown
    wanted = policy(origin)
    wanted["network_policies"].update(yaml.safe_load(mine[0]["snippet"]))
    good(playbook("update_policy", sandbox_name=NAME, openshell_policy=wanted))
    allowed = inside(NAME, "curl", "-sS", "-g", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", url).stdout
    assert (allowed, post(origin, "/odd1.txt")) == ("501", "403")


def test_a_bad_policy_a_bad_limit_and_a_bad_proxy_leave_nothing(origin: Origin) -> None:
    name = "it-ops-bad"
    for bad, words in (
        ({"openshell_policy": {"version": 3}}, "version must be 1"),
        ({"openshell_proxy_limits": {"conections": 5}}, "which is no limit"),
        ({"openshell_proxy_limits": {"connections": 0}}, "whole number from 1"),
        ({"openshell_upstream_proxy": f"http://{SECRET}@proxy:1"}, "holds credentials"),
        (
            {"openshell_upstream_proxy": "http://proxy:1", "openshell_upstream_proxy_auth": "x" + SECRET[:8]},
            "user:password",
        ),
    ):
        done = playbook("create_sandbox", "-vvv", sandbox_name=name, **bad)
        refused(done, words)
        assert "auth" not in str(bad) or SECRET[:8] not in done.stdout.replace(json.dumps(bad), "")
        assert all(ours(kind, name) == [] for kind in KINDS)


def test_the_upstream_proxys_credentials_are_seen_by_nobody(origin: Origin, tmp_path: Path) -> None:
    name = "it-ops-chain"
    vault = tmp_path / "secret.json"  # not on the command line, as a vault would not be
    vault.write_text(json.dumps({"openshell_upstream_proxy_auth": SECRET}))
    variables = {"sandbox_name": name, "openshell_policy": policy(origin), "openshell_proxy_limits": {"connections": 77},
                 "openshell_upstream_proxy": f"http://{origin.address}:{origin.http}"}  # fmt: skip
    try:
        made = good(playbook("create_sandbox", "-vvv", "--diff", "-e", f"@{vault}", **variables))
        again = good(playbook("create_sandbox", "-e", f"@{vault}", **variables))
        assert changed(again) == 0
        secret = podman(
            "exec", f"openshell-proxy-{name}", "stat", "-c", "%a %u", "/var/lib/openshell/config/upstream-proxy-auth"
        )
        assert secret.stdout.strip() == "600 1337"
        url = f"http://{origin.address}:{origin.http}/hello.txt"
        told = inside(name, "curl", "-sS", url).stdout
        assert "upstream proxy refused with status 501" in told  # a web server: it knows no CONNECT, but was asked
        seen = [
            made.stdout, made.stderr, told, inside(name, "sh", "-c", "env; cat /openshell-tls/* /openshell-tls/.ready").stdout,
            podman("inspect", f"openshell-proxy-{name}", f"openshell-agent-{name}").stdout,
            podman("logs", f"openshell-proxy-{name}").stdout, json.dumps(status(name)),
        ]  # fmt: skip
        assert all(SECRET not in text and SECRET.partition(":")[2] not in text for text in seen)
        assert "OPENSHELL_PROXY_LIMITS=connections=77" in seen[4]
        vault.write_text(json.dumps({"openshell_upstream_proxy_auth": SECRET + "new"}))
        before = podman("inspect", "-f", "{{.Id}}", f"openshell-proxy-{name}").stdout
        rotated = good(playbook("create_sandbox", "--diff", "-e", f"@{vault}", **variables))
        assert changed(rotated) == 1
        assert SECRET not in rotated.stdout
        assert podman("inspect", "-f", "{{.Id}}", f"openshell-proxy-{name}").stdout == before
        assert status(name)["generation"] == 2
    finally:
        playbook("delete_sandbox", sandbox_name=name)
