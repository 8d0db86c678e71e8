# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A sandbox is taken apart in the reverse order, only what is ours, and what is shared goes with the last one."""

from __future__ import annotations

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import PodmanError
from ansible_collections.openshell.sandbox.plugins.module_utils.removal import (
    Item,
    items_of,
    known_id,
    release_shared,
    remove,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNames
from host import NAMES, Host, make_sandbox

EVERYTHING = [
    Item("container", "openshell-agent-demo-replaced"),
    Item("container", "openshell-agent-demo"),
    Item("container", "openshell-proxy-demo-replaced"),
    Item("container", "openshell-proxy-demo"),
    Item("volume", "openshell-workspace-demo"),
    Item("volume", "openshell-tls-demo"),
    Item("volume", "openshell-proxy-demo"),
    Item("secret", "openshell-authority-demo"),
    Item("network", "openshell-sbx-demo"),
]


@pytest.fixture
def sandbox(host: Host) -> Host:
    """All that a sandbox can have, the remains of two interrupted replacements included."""
    make_sandbox(host, started=False)
    host.direct.ensure_volume(NAMES.workspace_volume, NAMES.labels())
    host.direct.create_secret(NAMES.authority_secret, b"x", NAMES.labels())
    host.direct.create_secret("openshell-authority", b"x", {"openshell.managed": "true"})
    state = host.state
    for name in (NAMES.agent, NAMES.proxy):
        aside = name + "-replaced"
        state["containers"][aside] = {**state["containers"][name], "Name": aside}
    host.write(state)
    return host


def test_the_order_of_removal(sandbox: Host) -> None:
    assert items_of(sandbox.direct, NAMES) == EVERYTHING
    assert remove(sandbox.direct, EVERYTHING, 3) == EVERYTHING
    assert [call[-1] for call in sandbox.calls("rm")] == [item.name for item in EVERYTHING[:4]]
    assert all("--time 3" in " ".join(call) for call in sandbox.calls("rm"))
    state = sandbox.state
    assert [state["containers"], state["volumes"], list(state["secrets"])] == [{}, {}, ["openshell-authority"]]
    assert list(state["networks"]) == ["openshell"]
    assert items_of(sandbox.direct, NAMES) == []
    assert remove(sandbox.direct, EVERYTHING, 3) == []


@pytest.mark.parametrize("item", EVERYTHING, ids=lambda item: f"{item.kind} {item.name}")
def test_what_is_not_ours_is_left(sandbox: Host, item: Item) -> None:
    labels = {
        "container": ("Config", "Labels"),
        "volume": ("Labels",),
        "secret": ("Spec", "Labels"),
        "network": ("labels",),
    }[item.kind]
    sandbox.change(item.kind + "s", item.name, *labels, {"somebody": "else"})
    assert items_of(sandbox.direct, NAMES) == [one for one in EVERYTHING if one != item]


@pytest.mark.parametrize("beginning", ["rm", "volume rm", "secret rm"])
def test_what_cannot_go_does_not_keep_the_rest(sandbox: Host, beginning: str) -> None:
    sandbox.fail(beginning, "Error: the first trouble")
    sandbox.fail(beginning, "Error: the second trouble")
    with pytest.raises(PodmanError, match=f"podman {beginning} failed .*the first trouble"):
        remove(sandbox.direct, EVERYTHING, 0)
    gone = (
        len(EVERYTHING)
        - sum(len(sandbox.state[kind]) for kind in ("containers", "volumes"))
        - sum(
            name in sandbox.state[kind]
            for kind, name in (("secrets", NAMES.authority_secret), ("networks", NAMES.network))
        )
    )
    assert gone >= 5


def test_the_network_goes_under_the_lock(sandbox: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes a network looks for it under the same lock."""
    held: list[str] = []
    podman = sandbox.direct
    lock = podman.lock
    monkeypatch.setattr(podman, "lock", lambda name="shared": held.append(name) or lock(name))
    remove(podman, EVERYTHING[:-1], 0)
    assert held == []
    remove(podman, EVERYTHING[-1:], 0)
    assert held == ["shared"]
    release_shared(podman)
    assert held == ["shared", "shared"]


def test_what_is_shared_goes_with_the_last_sandbox(sandbox: Host) -> None:
    other = SandboxNames.of("other")
    sandbox.direct.ensure_internal_network(other.network, other.labels())
    remove(sandbox.direct, EVERYTHING, 0)
    assert release_shared(sandbox.direct) == []
    assert "openshell" in sandbox.state["networks"]
    sandbox.direct.remove_network(other.network)
    assert release_shared(sandbox.direct) == [Item("network", "openshell"), Item("secret", "openshell-authority")]
    assert (sandbox.state["networks"], sandbox.state["secrets"]) == ({}, {})
    assert release_shared(sandbox.direct) == []


def test_a_bridge_and_an_authority_of_somebody_else_stay(host: Host) -> None:
    host.direct.ensure_bridge_network("openshell", {})
    host.direct.create_secret("openshell-authority", b"x", {})
    assert release_shared(host.direct) == []
    assert (list(host.state["networks"]), list(host.state["secrets"])) == (["openshell"], ["openshell-authority"])


def test_the_id_is_remembered_by_whatever_is_left(host: Host) -> None:
    names = SandboxNames.of("demo", "d1")
    assert known_id(host.direct, "demo") == "demo"
    host.direct.ensure_volume(names.workspace_volume, names.labels())
    assert known_id(host.direct, "demo") == "d1"
    host.direct.remove_volume(names.workspace_volume)
    host.direct.ensure_internal_network(names.network, names.labels())
    assert known_id(host.direct, "demo") == "d1"
    labels = [word for key, value in names.labels().items() for word in ("--label", f"{key}={value}")]
    host.direct.run(["create", "--name", names.proxy, "--network", f"{names.network}:ip=10.9.9.9", *labels, "image"])
    host.change("networks", names.network, "labels", {})
    assert known_id(host.direct, "demo") == "d1"
    host.change("containers", names.proxy, "Config", "Labels", "openshell.sandbox", "another")
    assert known_id(host.direct, "demo") == "demo"
