# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module that removes a sandbox."""

from __future__ import annotations

from host import NAMES, Host, make_sandbox


def test_everything_goes_and_twice_is_fine(host: Host) -> None:
    make_sandbox(host)
    host.direct.ensure_volume(NAMES.workspace_volume, NAMES.labels())
    (host.directory / "logs" / NAMES.proxy).write_text("last words\n")
    before = len(host.calls())
    checked = host.module("sandbox_resources", check=True, diff=True, sandbox_name="demo")
    assert checked["changed"]
    assert host.changed_since(before) == []
    done = host.module("sandbox_resources", diff=True, sandbox_name="demo", stop_timeout=1)
    assert [item["name"] for item in done["removed"]] == [
        NAMES.agent,
        NAMES.proxy,
        NAMES.workspace_volume,
        NAMES.tls_volume,
        NAMES.proxy_volume,
        NAMES.network,
        "openshell",
    ]
    assert "last words" in done["sidecar_log"]
    assert done["diff"]["after"] == {"present": []}
    assert done["diff"]["before"]["present"] == checked["diff"]["before"]["present"]
    assert all(not host.state[kind] for kind in ("containers", "networks", "volumes", "secrets"))
    again = host.module("sandbox_resources", sandbox_name="demo")
    assert (again["changed"], again["removed"], again["sidecar_log"]) == (False, [], [])


def test_the_workspace_can_stay(host: Host) -> None:
    make_sandbox(host)
    host.direct.ensure_volume(NAMES.workspace_volume, NAMES.labels())
    host.module("sandbox_resources", sandbox_name="demo", keep_workspace=True)
    assert list(host.state["volumes"]) == [NAMES.workspace_volume]


def test_only_what_is_named_goes(host: Host) -> None:
    make_sandbox(host)
    only = [{"kind": "container", "name": NAMES.agent}, {"kind": "volume", "name": "of-somebody-else"}]
    host.direct.ensure_volume("of-somebody-else", {"openshell.managed": "true"})
    done = host.module("sandbox_resources", sandbox_name="demo", only=only)
    assert done["removed"] == only[:1]
    assert "of-somebody-else" in host.state["volumes"]


def test_refusals(host: Host) -> None:
    assert "sandbox name '../x' is not allowed" in host.refusal("sandbox_resources", sandbox_name="../x")
    make_sandbox(host)
    host.fail("volume rm", "Error: volume is being used")
    assert host.refusal("sandbox_resources", sandbox_name="demo") == (
        "podman volume rm failed (125): volume is being used"
    )
    assert host.state["containers"] == {}
