# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""New configuration reaches the sidecar, which answers for it; a refused one leaves the old one in force."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils.sidecar_config import (
    Config,
    Rejected,
    converge,
    digest,
    read_current,
)
from host import NAMES, Host, make_sandbox

OLD, NEW, BAD = "version: 1\n", "version: 1\nnetwork_policies: {}\n", "WRONG\n"


def config(**files: str) -> Config:
    return Config(
        {f"{name}.{'pem' if name == 'upstream-ca' else 'yaml'}": text for name, text in files.items()},
        "/var/lib/openshell/config",
        NAMES.proxy_volume,
        1337,
    )


def run(host: Host, wanted: Config, check: bool = False, timeout: float = 5):  # type: ignore[no-untyped-def]
    return converge(host.direct, NAMES.proxy, NAMES.tls_volume, wanted, timeout, check)


def on_volume(host: Host, name: str = "policy.yaml") -> Path:
    return Path(host.state["volumes"][NAMES.proxy_volume]["Mountpoint"]) / "config" / name


@pytest.fixture
def sandbox(host: Host) -> Host:
    make_sandbox(host, policy=OLD)
    return host


def test_the_same_text_changes_nothing(sandbox: Host) -> None:
    before = len(sandbox.calls())
    outcome = run(sandbox, config(policy=OLD))
    assert (outcome.changed, outcome.diffs) == (False, [])
    assert sandbox.changed_since(before) == []


def test_a_new_text_is_put_there_and_the_sidecar_agrees(sandbox: Host) -> None:
    outcome = run(sandbox, config(policy=NEW))
    assert outcome.changed
    assert outcome.diffs == [
        {"before": OLD, "after": NEW, "before_header": "policy.yaml", "after_header": "policy.yaml"}
    ]
    assert on_volume(sandbox).read_text() == NEW
    assert sandbox.calls("kill") == [["kill", "--signal", "HUP", NAMES.proxy]]
    assert sandbox.calls("cp")[-1] == ["cp", "-", f"{NAMES.proxy}:/var/lib/openshell"]
    assert not run(sandbox, config(policy=NEW)).changed


def test_what_was_put_there_and_never_told_is_told(sandbox: Host) -> None:
    """A run was ended between the copy and the signal: the text is right, and the sidecar goes on with the old one."""
    generation = sandbox.state["containers"][NAMES.proxy]["Generation"]
    on_volume(sandbox).write_text(NEW)
    outcome = run(sandbox, config(policy=NEW))
    assert outcome.changed
    assert sandbox.state["containers"][NAMES.proxy]["Generation"] == generation + 1
    before = len(sandbox.calls())
    assert run(sandbox, config(policy=NEW)).changed is False
    assert sandbox.changed_since(before) == []


def test_check_mode_tells_and_leaves(sandbox: Host) -> None:
    before = len(sandbox.calls())
    outcome = run(sandbox, config(policy=NEW), check=True)
    assert outcome.changed
    assert len(outcome.diffs) == 1
    assert sandbox.changed_since(before) == []
    assert on_volume(sandbox).read_text() == OLD


def test_a_stopped_sidecar_is_not_told(sandbox: Host) -> None:
    sandbox.direct.run(["stop", NAMES.proxy])
    assert run(sandbox, config(policy=BAD)).changed
    assert sandbox.calls("kill") == []
    assert on_volume(sandbox).read_text() == BAD


def test_a_refused_policy_puts_the_old_one_back(sandbox: Host) -> None:
    with pytest.raises(Rejected, match="refused its new configuration and keeps the old one: policy: line 1: wrong"):
        run(sandbox, config(policy=BAD))
    assert on_volume(sandbox).read_text() == OLD
    assert len(sandbox.calls("kill")) == 2
    sentinel = json.loads((Path(sandbox.state["volumes"][NAMES.tls_volume]["Mountpoint"]) / ".ready").read_text())
    assert (sentinel["policy_error"], sentinel["read_policy_digest"]) == ("", digest(OLD))


def test_a_silent_sidecar_puts_the_old_one_back(sandbox: Host) -> None:
    sandbox.change("silent_sidecar", True)
    with pytest.raises(Rejected, match="is not ready after 0 seconds"):
        run(sandbox, config(policy=NEW), timeout=0.1)
    assert on_volume(sandbox).read_text() == OLD


def test_an_answer_on_other_files_is_no_answer(sandbox: Host) -> None:
    """The sentinel must be about exactly these texts, policy and authorities."""
    sandbox.change("silent_sidecar", True)
    for wanted in (config(policy=NEW), config(policy=OLD, **{"upstream-ca": "PEM\n"})):
        with pytest.raises(Rejected):
            run(sandbox, wanted, timeout=0.1)
    assert on_volume(sandbox, "upstream-ca.pem").read_text() == ""


def test_only_what_differs_is_written_and_certificates_are_told_by_digest(sandbox: Host) -> None:
    outcome = run(sandbox, config(policy=OLD, **{"upstream-ca": "PEM\n"}))
    assert [(one["before_header"], one["before"], one["after"]) for one in outcome.diffs] == [
        ("upstream-ca.pem", "\n", digest("PEM\n") + "\n")
    ]
    stdin = sandbox.stdin_of("cp")
    assert b"config/upstream-ca.pem" in stdin
    assert b"config/policy.yaml" not in stdin
    assert on_volume(sandbox, "upstream-ca.pem").read_text() == "PEM\n"


def test_a_word_from_before_is_no_answer(sandbox: Host) -> None:
    """The digests of what was put back already agree; only a later generation has read these files."""
    run(sandbox, config(policy=NEW))
    on_volume(sandbox).write_text(OLD)
    sandbox.change("silent_sidecar", True)
    with pytest.raises(Rejected, match="is not ready"):
        run(sandbox, config(policy=NEW), timeout=0.1)


@pytest.mark.parametrize("key", ["read_policy_digest", "read_upstream_ca_digest"])
def test_a_later_word_on_other_files_is_no_answer(sandbox: Host, key: str) -> None:
    sandbox.change("misread", {key: digest("something else")})
    with pytest.raises(Rejected, match="is not ready"):
        run(sandbox, config(policy=NEW, **{"upstream-ca": "PEM\n"}), timeout=0.1)
    assert on_volume(sandbox).read_text() == OLD


def test_a_secret_is_the_sidecars_alone_and_in_no_diff(sandbox: Host) -> None:
    wanted = Config({"upstream-proxy-auth": "hunter2"}, "/var/lib/openshell/config", NAMES.proxy_volume, 1337)
    outcome = run(sandbox, wanted)
    assert [(one["before"], one["after"]) for one in outcome.diffs] == [("", "another secret\n")]
    with tarfile.open(fileobj=io.BytesIO(sandbox.stdin_of("cp"))) as archive:
        assert [(one.name, one.mode, one.uid) for one in archive] == [("config/upstream-proxy-auth", 0o600, 1337)]
    assert "hunter2" not in (sandbox.directory / "calls.jsonl").read_text()


def test_what_lies_there_is_read_as_it_is(sandbox: Host) -> None:
    on_volume(sandbox).write_bytes(b"a\r\nb\n")
    assert read_current(sandbox.direct, config(policy="")) == {"policy.yaml": "a\r\nb\n"}
    on_volume(sandbox).write_bytes(b"\xff")
    assert run(sandbox, config(policy=OLD)).changed
    assert on_volume(sandbox).read_text() == OLD


def test_before_there_is_a_volume_everything_is_new(host: Host) -> None:
    assert read_current(host.direct, config(policy=NEW)) == {"policy.yaml": ""}
    assert run(host, config(policy=NEW), check=True).changed


def test_a_digest_is_that_of_the_bytes() -> None:
    assert digest("\u00e4") == hashlib.sha256("\u00e4".encode()).hexdigest()
    assert digest("") == ""
