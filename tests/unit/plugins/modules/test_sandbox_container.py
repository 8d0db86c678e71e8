# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module that makes a container be what is described."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from host import NAMES, Host

IMAGE = "a" * 64
AGENT: dict[str, Any] = {
    "sandbox_name": "demo",
    "role": "agent",
    "image": "sha256:" + IMAGE,
    "ip": "10.89.0.3",
    "uid_base": 2_550_136_832,
    "dns": ["10.89.0.2"],
    "env": {"B": True, "A": 1},
    "command": ["sleep", "infinity"],
    "volumes": [
        {"source": NAMES.tls_volume, "target": "/openshell-tls", "read_only": True, "relabel": "z"},
        {"source": NAMES.workspace_volume, "target": "/sandbox", "relabel": "Z"},
    ],
    "sysctls": {"net.ipv6.conf.all.disable_ipv6": 1},
}
PROXY: dict[str, Any] = {
    "sandbox_name": "demo",
    "role": "proxy",
    "state": "present",
    "image": IMAGE,
    "ip": "10.89.0.2",
    "networks": ["openshell"],
    "dns": ["192.0.2.53"],
    "volumes": [
        {"source": NAMES.tls_volume, "target": "/openshell-tls"},
        {"source": NAMES.proxy_volume, "target": "/var/lib/openshell"},
    ],
    "secrets": [{"source": "openshell-authority", "target": "/etc/openshell/authority.pem", "uid": 1337}],
    "read_only": True,
    "config": {"policy.yaml": "version: 1\n"},
    "config_volume": NAMES.proxy_volume,
    "config_timeout": 1,
}


@pytest.fixture
def networked(host: Host) -> Host:
    host.direct.ensure_internal_network(NAMES.network, NAMES.labels())
    host.direct.ensure_bridge_network("openshell", {"openshell.managed": "true"})
    return host


def test_an_agent_is_made_once(networked: Host) -> None:
    before = len(networked.calls())
    checked = networked.module("sandbox_container", check=True, diff=True, **AGENT)
    assert (checked["changed"], checked["action"]) == (True, "create")
    assert networked.changed_since(before) == []
    made = networked.module("sandbox_container", diff=True, **AGENT)
    assert (made["changed"], made["action"], made["container"]) == (True, "create", NAMES.agent)
    assert (
        made["created"]
        == checked["created"]
        == [
            {"kind": "volume", "name": NAMES.tls_volume},
            {"kind": "volume", "name": NAMES.workspace_volume},
            {"kind": "container", "name": NAMES.agent},
        ]
    )
    assert made["diff"] == checked["diff"]
    assert made["diff"][0]["before"] == {"state": "absent"}
    assert made["diff"][0]["before_header"] == NAMES.agent
    arguments = " ".join(networked.calls("create")[0])
    assert "--env A=1 --env B=true" in arguments
    assert f"--pull never {IMAGE} sleep infinity" in arguments
    assert networked.state["containers"][NAMES.agent]["State"]["Status"] == "running"
    labels = networked.state["volumes"][NAMES.workspace_volume]["Labels"]
    assert labels == NAMES.labels(**{"openshell.uid_base": "2550136832"})
    assert networked.state["volumes"][NAMES.tls_volume]["Labels"] == NAMES.labels()
    before = len(networked.calls())
    again = networked.module("sandbox_container", **AGENT)
    assert (again["changed"], again["action"], again["created"], again["drift"]) == (False, "none", [], [])
    assert again["diff"] == [{"before": {}, "after": {}, "before_header": NAMES.agent, "after_header": NAMES.agent}]
    assert networked.changed_since(before) == []


def test_drift_is_told_and_put_right(networked: Host) -> None:
    networked.module("sandbox_container", **AGENT)
    networked.direct.network_connect("openshell", NAMES.agent)
    checked = networked.module("sandbox_container", check=True, **AGENT)
    repaired = networked.module("sandbox_container", **AGENT)
    assert checked["action"] == repaired["action"] == "repair"
    assert [drift["what"] for drift in repaired["drift"]] == ["networks"]
    replaced = networked.module("sandbox_container", **{**AGENT, "memory": "1g"})
    assert (replaced["changed"], replaced["action"], replaced["created"]) == (True, "replace", [])
    assert not networked.module("sandbox_container", **{**AGENT, "memory": "1g"})["changed"]


def test_an_address_stays_whatever_is_made_anew(networked: Host) -> None:
    def fixed() -> dict[str, str]:
        found: dict[str, str] = networked.state["containers"][NAMES.agent]["NetworkSettings"]["Networks"][NAMES.network]
        return found

    networked.module("sandbox_container", **AGENT)
    first = fixed()
    assert first == {"IPAddress": AGENT["ip"], "MacAddress": "02:9f:9e:57:8a:5c"}
    assert networked.module("sandbox_container", **{**AGENT, "memory": "1g"})["action"] == "replace"
    assert fixed() == first
    networked.direct.network_disconnect(NAMES.network, NAMES.agent)
    assert networked.module("sandbox_container", **{**AGENT, "memory": "1g"})["action"] == "repair"
    assert fixed() == first


def test_states(networked: Host) -> None:
    for state, status, changed in (
        ("present", "created", True),
        ("stopped", "created", False),
        ("started", "running", True),
        ("present", "running", False),
        ("stopped", "exited", True),
        ("present", "exited", False),
    ):
        assert networked.module("sandbox_container", **{**AGENT, "state": state})["changed"] is changed, state
        assert networked.state["containers"][NAMES.agent]["State"]["Status"] == status


def test_rootless_has_its_own_user_namespace(networked: Host) -> None:
    networked.module("sandbox_container", **{**AGENT, "uid_base": -1})
    assert "--userns=nomap" in networked.calls("create")[0]
    assert networked.state["volumes"][NAMES.workspace_volume]["Labels"]["openshell.id"] == "demo"


def test_a_sidecar_and_its_configuration(networked: Host, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("PEM\n")
    wish = {**PROXY, "config_sources": {"upstream-ca.pem": str(bundle), "other.pem": ""}}
    checked = networked.module("sandbox_container", check=True, **wish)
    assert [one["before_header"] for one in checked["diff"]] == [NAMES.proxy, "policy.yaml", "upstream-ca.pem"]
    assert networked.module("sandbox_container", **wish)["changed"]
    config = Path(networked.state["volumes"][NAMES.proxy_volume]["Mountpoint"]) / "config"
    assert (config / "policy.yaml").read_text() == "version: 1\n"
    assert (config / "upstream-ca.pem").read_text() == "PEM\n"
    networked.direct.network_connect("openshell", NAMES.proxy)
    networked.direct.run(["start", NAMES.proxy])
    before = len(networked.calls())
    assert not networked.module("sandbox_container", **wish)["changed"]
    assert networked.changed_since(before) == []
    wish["config"] = {"policy.yaml": "version: 2\n"}
    told = networked.module("sandbox_container", **wish)
    assert (told["changed"], told["action"], len(networked.calls("kill"))) == (True, "none", 1)
    wish["config"] = {"policy.yaml": "WRONG\n"}
    assert "the sidecar refused its new configuration" in networked.refusal("sandbox_container", **wish)
    assert (config / "policy.yaml").read_text() == "version: 2\n"


def secret(value: str) -> str:
    return json.dumps([{"name": "key", "value": value, "hosts": ["a.example"]}])


def test_a_living_sidecar_gets_policy_and_secrets_at_once_or_neither(networked: Host) -> None:
    later = {**PROXY, "policy_later": "living"}
    assert networked.module("sandbox_container", **later)["policy_left"] is False  # it does not live yet
    networked.direct.network_connect("openshell", NAMES.proxy)
    networked.direct.run(["start", NAMES.proxy])
    config = Path(networked.state["volumes"][NAMES.proxy_volume]["Mountpoint"]) / "config"
    later["config"] = {"policy.yaml": "version: 2\n"}
    told = networked.module("sandbox_container", **later)
    assert (told["changed"], told["policy_left"]) == (False, True)
    assert (config / "policy.yaml").read_text() == "version: 1\n"
    both = {"sandbox_name": "demo", "timeout": 1, "policy": "version: 2\n"}
    bad = {**both, "document": secret("WRONG-secret")}
    assert "keeps the old one: secret: wrong" in networked.refusal("sandbox_secrets_file", **bad)
    bad = {**both, "policy": "WRONG\n", "document": secret("good-secret")}
    assert "keeps the old one: policy: line 1: wrong" in networked.refusal("sandbox_secrets_file", **bad)
    assert (config / "policy.yaml").read_text() == "version: 1\n"
    assert (config / "secrets.json").read_text() == ""
    before = len(networked.calls("kill"))
    networked.module("sandbox_secrets_file", **both, document=secret("good-secret"))
    assert len(networked.calls("kill")) == before + 1
    assert (config / "policy.yaml").read_text() == "version: 2\n"
    assert "good-secret" in (config / "secrets.json").read_text()


@pytest.mark.parametrize(("later", "left"), [("never", False), ("living_with_secrets", True)])
def test_a_policy_waits_for_the_secrets_that_are_to_go(networked: Host, later: str, left: bool) -> None:
    networked.module("sandbox_container", **PROXY)
    networked.direct.network_connect("openshell", NAMES.proxy)
    networked.direct.run(["start", NAMES.proxy])
    assert networked.module("sandbox_container", **PROXY, policy_later=later)["policy_left"] is False
    networked.module("sandbox_secrets_file", sandbox_name="demo", timeout=1, document=secret("good-secret"))
    assert networked.module("sandbox_container", **PROXY, policy_later=later)["policy_left"] is left


def test_a_network_that_nobody_has_made_yet_is_left_to_its_step(networked: Host) -> None:
    networked.direct.remove_network("openshell")
    networked.module("sandbox_container", **PROXY)
    assert networked.module("sandbox_container", **PROXY)["changed"] is False


def test_secrets_are_named_and_nothing_more(networked: Host) -> None:
    networked.direct.create_secret("openshell-authority", b"hunter2", {})
    networked.module("sandbox_container", **PROXY)
    secret = "openshell-authority,type=mount,target=/etc/openshell/authority.pem,uid=1337,gid=1337,mode=0400"
    assert secret in networked.calls("create")[0]
    assert "hunter2" not in (networked.directory / "calls.jsonl").read_text()


def test_a_failure_tells_what_was_made_and_no_value(networked: Host) -> None:
    networked.fail("create", "Error: out of order")
    result = networked.module("sandbox_container", **{**AGENT, "env": {"TOKEN": "hunter2"}})
    assert result["msg"] == "podman create failed (125): out of order"
    assert "hunter2" not in result["msg"]
    assert {"kind": "container", "name": NAMES.agent} in result["created"]
    assert json.dumps(result["created"]).count("volume") == 2 + 0


def test_refusals(host: Host) -> None:
    assert "sandbox name" in host.refusal("sandbox_container", **{**AGENT, "sandbox_name": "x--y"})
    assert "network not found" in host.refusal("sandbox_container", **AGENT)
    assert host.state["containers"] == {}
    missing = {key: value for key, value in AGENT.items() if key != "dns"}
    assert "missing required arguments: dns" in host.refusal("sandbox_container", **missing)
