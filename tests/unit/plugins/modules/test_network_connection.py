# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module that gives a sidecar its way out and starts it."""

from __future__ import annotations

from host import NAMES, Host, make_sandbox


def test_connected_and_started_in_this_order_once(host: Host) -> None:
    make_sandbox(host, started=False)
    host.direct.network_disconnect("openshell", NAMES.proxy)
    host.direct.remove_network("openshell")
    before = len(host.calls())
    checked = host.module("network_connection", check=True, sandbox_name="demo")
    assert checked["changed"]
    assert host.changed_since(before) == []
    made = host.module("network_connection", sandbox_name="demo", subnet="10.91.0.0/24")
    assert made["diff"]["before"] == {"networks": [NAMES.network], "running": False}
    assert made["diff"]["after"] == {"networks": ["openshell", NAMES.network], "running": True}
    assert checked["diff"] == made["diff"]
    create = "network create --disable-dns --subnet 10.91.0.0/24 --label openshell.managed=true openshell"
    assert [" ".join(call) for call in host.changed_since(before)] == [
        create,
        f"network connect openshell {NAMES.proxy}",
        f"start {NAMES.proxy}",
    ]
    before = len(host.calls())
    again = host.module("network_connection", sandbox_name="demo")
    assert (again["changed"], again["networks"]) == (False, ["openshell", NAMES.network])
    assert host.changed_since(before) == []


def test_not_started_where_not_wanted(host: Host) -> None:
    make_sandbox(host, started=False)
    assert not host.module("network_connection", sandbox_name="demo", started=False)["changed"]
    assert host.calls("start") == []
    started = host.module("network_connection", sandbox_name="demo")
    assert (started["changed"], len(host.calls("start"))) == (True, 1)


def test_refusals(host: Host) -> None:
    assert "no such container" in host.refusal("network_connection", sandbox_name="demo")
    assert "sandbox name" in host.refusal("network_connection", sandbox_name="a_b")
