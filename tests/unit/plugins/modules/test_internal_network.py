# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module that makes a sandbox's network and tells its addresses and ids."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator, Sequence

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils.module import run_here
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman, new_memory
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import uid_bases
from ansible_collections.openshell.sandbox.plugins.modules import internal_network
from host import NAMES, Host

SMALL = [str(one) for one in ipaddress.ip_network("10.128.0.0/12").subnets(new_prefix=29)]

MADE = [{"kind": "network", "name": "openshell-sbx-demo"}, {"kind": "volume", "name": "openshell-workspace-demo"}]


def recorded(base: int) -> dict[str, str]:
    """Labels of a workspace that say which host ids are its sandbox's."""
    return NAMES.labels(**{"openshell.uid_base": str(base)})


def test_made_once(host: Host) -> None:
    checked = host.module("internal_network", check=True, diff=True, sandbox_name="demo")
    assert (host.state["networks"], host.state["volumes"]) == ({}, {})
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
    assert host.state["volumes"][NAMES.workspace_volume]["Labels"] == recorded(made["agent_uid_base"])
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
    host.direct.ensure_volume(NAMES.workspace_volume, recorded(2_200_000_000))
    assert host.module("internal_network", sandbox_name="demo")["agent_uid_base"] == 2_200_000_000


def test_a_kept_workspace_is_nobody_elses(host: Host) -> None:
    """The subnet of a sandbox that was deleted is given to the next one; its ids are not."""
    first = host.module("internal_network", sandbox_name="demo")["agent_uid_base"]
    host.direct.remove_network(NAMES.network)
    other = host.module("internal_network", sandbox_name="other")
    assert other["subnet"] == "10.89.0.0/24"
    assert other["agent_uid_base"] == first + 65_536


@pytest.mark.parametrize("order", [("stray", "straight"), ("straight", "stray")])
def test_who_cannot_have_its_first_ids_takes_nobody_elses(host: Host, order: tuple[str, str]) -> None:
    """One creation after the other has its network and no agent yet; a kept workspace has the first ids of one."""
    first = next(uid_bases("10.90.0.0/24"))
    host.direct.ensure_volume("openshell-workspace-kept", recorded(first))
    subnets = {"stray": "10.90.0.0/24", "straight": "10.90.1.0/24"}
    bases = [
        host.module("internal_network", sandbox_name=name, subnet=subnets[name])["agent_uid_base"] for name in order
    ]
    assert bases == [first + 65_536, first + 2 * 65_536]


def test_ids_of_subnets_of_another_size_are_told_apart(host: Host) -> None:
    """The numbers of a /24 and of a /29 can be the same; neither has a container yet."""
    subnets = [
        "10.90.0.0/24",
        next(small for small in SMALL if next(uid_bases(small)) == next(uid_bases("10.90.0.0/24"))),
    ]
    bases = [
        host.module("internal_network", sandbox_name=f"s{number}", subnet=subnet)["agent_uid_base"]
        for number, subnet in enumerate(subnets)
    ]
    assert len(set(bases)) == 2


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_choice_is_written_down_before_another_has_its_turn(
    host: Host, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    """Also by a run that takes up one which had made the network only."""
    turns = []

    @contextlib.contextmanager
    def turn(podman: Podman, looks: Sequence[str]) -> Iterator[None]:
        podman.look_again(*looks)
        before = NAMES.workspace_volume in host.state["volumes"]
        yield
        turns.append((before, NAMES.workspace_volume in host.state["volumes"]))

    if interrupted:
        host.direct.ensure_internal_network(NAMES.network, NAMES.labels())
    monkeypatch.setattr(Podman, "lock", turn)
    arguments = {"executable": host.executable, "sandbox_name": "demo"}
    for _again in range(2):
        run_here(internal_network.main, arguments, False, new_memory())
    assert turns == [(False, True)]


def test_a_creation_asks_podman_for_its_volumes_once_more(host: Host) -> None:
    """What was known before the lock may be old; the volume that this made is known without another look."""
    podman = Podman(host.executable, memory=new_memory())
    podman.volume("any")
    arguments = {"executable": host.executable, "sandbox_name": "demo"}
    run_here(internal_network.main, arguments, False, podman.memory or {})
    assert podman.volume(NAMES.workspace_volume) is not None
    assert len(host.calls("volume ls")) == 2


def test_what_was_made_is_told_when_the_rest_fails(host: Host) -> None:
    host.fail("volume create")
    failed = host.module("internal_network", sandbox_name="demo")
    assert (failed["failed"], failed["created"]) == (True, MADE[:1])
    small = host.module("internal_network", sandbox_name="small", subnet="10.90.1.0/30")
    assert "too small" in small["msg"]
    assert small["created"] == [{"kind": "network", "name": "openshell-sbx-small"}]


def test_rootless_has_no_ids_to_give(host: Host) -> None:
    host.change("info", "host", "security", "rootless", True)
    made = host.module("internal_network", sandbox_name="demo")
    assert (made["agent_uid_base"], made["created"]) == (-1, MADE[:1])
    assert host.state["volumes"] == {}


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
