# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module that makes a sandbox's network and tells its addresses and ids."""

from __future__ import annotations

import pytest
from host import NAMES, Host

MADE = [{"kind": "network", "name": "openshell-sbx-demo"}]


def test_made_once(host: Host) -> None:
    checked = host.module("internal_network", check=True, diff=True, sandbox_name="demo")
    assert host.state["networks"] == {}
    assert (checked["changed"], checked["subnet"], checked["created"]) == (True, "", MADE)
    assert checked["diff"]["after"] == {"network": "openshell-sbx-demo", "subnet": "chosen by Podman"}
    made = host.module("internal_network", diff=True, sandbox_name="demo")
    assert (made["changed"], made["created"]) == (True, MADE)
    assert (made["proxy_ip"], made["agent_ip"], made["subnet"]) == ("10.89.0.2", "10.89.0.3", "10.89.0.0/24")
    assert made["agent_uid_base"] >= 2**31
    assert made["diff"]["before"] == {}
    assert made["diff"]["after"] == {"network": "openshell-sbx-demo", "subnet": "10.89.0.0/24"}
    assert "--internal --disable-dns" in " ".join(host.calls("network create")[0])
    assert host.state["networks"][NAMES.network]["labels"] == NAMES.labels()
    again = host.module("internal_network", sandbox_name="demo")
    assert (again["changed"], again["created"]) == (False, [])
    assert again["diff"]["before"] == again["diff"]["after"]
    assert again["agent_uid_base"] == made["agent_uid_base"]
    assert len(host.calls("network create")) == 1


def test_a_wished_subnet(host: Host) -> None:
    checked = host.module("internal_network", check=True, sandbox_name="demo", subnet="10.90.1.0/29")
    assert (checked["subnet"], checked["agent_ip"]) == ("10.90.1.0/29", "10.90.1.3")
    made = host.module("internal_network", sandbox_name="demo", sandbox_id="d1", subnet="10.90.1.0/29")
    assert (made["network"], made["proxy_ip"]) == ("openshell-sbx-d1", "10.90.1.2")


def test_a_kept_workspace_keeps_its_ids(host: Host) -> None:
    host.direct.ensure_volume(NAMES.workspace_volume, NAMES.labels(**{"openshell.uid_base": "2200000000"}))
    assert host.module("internal_network", sandbox_name="demo")["agent_uid_base"] == 2_200_000_000


def test_a_kept_workspace_is_nobody_elses(host: Host) -> None:
    """The subnet of a sandbox that was deleted is given to the next one; its ids are not."""
    first = host.module("internal_network", sandbox_name="demo")["agent_uid_base"]
    host.direct.ensure_volume(NAMES.workspace_volume, NAMES.labels(**{"openshell.uid_base": str(first)}))
    host.direct.remove_network(NAMES.network)
    other = host.module("internal_network", sandbox_name="other")
    assert other["subnet"] == "10.89.0.0/24"
    assert other["agent_uid_base"] == first + 65_536


def test_rootless_has_no_ids_to_give(host: Host) -> None:
    host.change("info", "host", "security", "rootless", True)
    assert host.module("internal_network", sandbox_name="demo")["agent_uid_base"] == -1


def test_refusals(host: Host) -> None:
    assert "sandbox name 'A' is not allowed" in host.refusal("internal_network", sandbox_name="A")
    assert (
        host.refusal("internal_network", check=True, sandbox_name="demo", subnet="10.90.1.0/30")
        == "subnet 10.90.1.0/30 is too small for a sandbox; use a /29 or larger"
    )
    host.direct.ensure_bridge_network(NAMES.network, {})
    assert "exists and is not an internal network without DNS; remove it" in host.refusal(
        "internal_network", sandbox_name="demo"
    )
    host.fail("network inspect", "Error: database is corrupt", times=9)
    assert host.refusal("internal_network", sandbox_name="demo") == (
        "podman network inspect failed (125): database is corrupt"
    )


@pytest.mark.parametrize("name", ["openshell-sbx-demo"])
def test_nothing_is_made_after_a_refusal(host: Host, name: str) -> None:
    host.refusal("internal_network", sandbox_name="demo--x")
    assert host.calls() == []
