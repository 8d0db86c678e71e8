# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module that waits for a sidecar."""

from __future__ import annotations

from pathlib import Path

from host import NAMES, Host, make_sandbox


def test_a_ready_sidecar(host: Host) -> None:
    make_sandbox(host)
    found = host.module("readiness_wait", sandbox_name="demo")
    assert (found["changed"], found["sentinel"]["policy_error"]) == (False, "")
    assert host.module("readiness_wait", sandbox_name="demo") == found


def test_check_mode_waits_for_nothing(host: Host) -> None:
    found = host.module("readiness_wait", check=True, sandbox_name="demo")
    assert (found["changed"], found["sentinel"]) == (False, {})
    make_sandbox(host, policy="WRONG\n")
    found = host.module("readiness_wait", check=True, sandbox_name="demo")  # the run may bring a better policy
    assert found["sentinel"]["policy_error"] == "policy: line 1: wrong"


def test_refusals(host: Host) -> None:
    assert "does not exist; its last words: none" in host.refusal("readiness_wait", sandbox_name="demo")
    make_sandbox(host)
    (Path(host.state["volumes"][NAMES.tls_volume]["Mountpoint"]) / ".ready").unlink()
    assert "is not ready after 0 seconds; its last words" in host.refusal(
        "readiness_wait", sandbox_name="demo", timeout=0
    )


def test_a_sidecar_that_refuses_its_policy_is_not_ready(host: Host) -> None:
    make_sandbox(host, policy="WRONG\n")
    assert host.refusal("readiness_wait", sandbox_name="demo") == (
        "the sidecar refuses its policy and denies everything: policy: line 1: wrong"
    )
