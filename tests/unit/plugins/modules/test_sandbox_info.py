# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module that looks at sandboxes and changes nothing."""

from __future__ import annotations

from host import NAMES, Host, make_sandbox


def test_looking_changes_nothing(host: Host) -> None:
    make_sandbox(host)
    before = len(host.calls())
    for check in (False, True):
        found = host.module("sandbox_info", check=check, counters=not check)
        assert not found["changed"]
        assert [(one["name"], one["state"]) for one in found["sandboxes"]] == [("demo", "running")]
    assert [call[0] for call in host.changed_since(before)] == ["exec"]
    assert host.module("sandbox_info", sandbox_name="other")["sandboxes"] == []


def test_drift_is_told(host: Host) -> None:
    make_sandbox(host)
    host.direct.network_connect("openshell", NAMES.agent)
    assert host.module("sandbox_info", sandbox_name="demo")["sandboxes"][0]["state"] == "drifted"


def test_a_host_without_podman(host: Host) -> None:
    host.executable = "/absent/podman"
    assert host.refusal("sandbox_info") == (
        "podman ps failed (127): '/absent/podman' was not found on this host; install Podman 4.3 or newer"
    )
