# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every field that the audit looks at: one that is right is silent, each that is wrong is named."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils.container_audit import audit, audit_process
from ansible_collections.openshell.sandbox.plugins.module_utils.container_spec import ContainerSpec, Volume
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import UID_RANGE

NETWORKS = {"openshell-sbx-demo": "10.89.5.3"}
SPEC = ContainerSpec(
    name="openshell-agent-demo",
    role="agent",
    image="a" * 64,
    network="openshell-sbx-demo",
    ip="10.89.5.3",
    labels={"openshell.sandbox": "demo"},
    dns=("10.89.5.2",),
    uid_base=2_147_483_648,
    sysctls={"net.ipv6.conf.all.disable_ipv6": "1"},
    volumes=(Volume("openshell-tls-demo", "/openshell-tls", read_only=True),),
)


@pytest.fixture
def inspected(tmp_path: Path) -> dict[str, Any]:
    """A stopped container as ``podman container inspect`` tells of one that is what SPEC says."""
    oci = tmp_path / "config.json"
    oci.write_text(json.dumps({"linux": {"sysctl": {"net.ipv6.conf.all.disable_ipv6": "1"}}}))
    return {
        "Image": "a" * 64,
        "Config": {"Labels": SPEC.all_labels()},
        "State": {"Status": "exited", "Pid": 0},
        "OCIConfigPath": str(oci),
        "HostConfig": {
            "Privileged": False,
            "ReadonlyRootfs": False,
            "IDMappings": {"UidMap": [f"0:2147483648:{UID_RANGE}"]},
        },
        "NetworkSettings": {"Networks": {"openshell-sbx-demo": {"IPAddress": "10.89.5.3"}}},
        "Mounts": [{"Type": "volume", "Name": "openshell-tls-demo", "Destination": "/openshell-tls", "RW": False}],
    }


def test_what_is_right_is_silent(inspected: dict[str, Any]) -> None:
    assert audit(inspected, SPEC, NETWORKS, running=False) == []


def _stray_network(found: dict[str, Any]) -> None:
    found["NetworkSettings"]["Networks"]["bridge"] = {"IPAddress": "10.88.0.9"}


def _lost_network(found: dict[str, Any]) -> None:
    found["NetworkSettings"]["Networks"].clear()


def _other_address(found: dict[str, Any]) -> None:
    found["NetworkSettings"]["Networks"]["openshell-sbx-demo"]["IPAddress"] = "10.89.5.9"


def _other_sysctl(found: dict[str, Any]) -> None:
    Path(found["OCIConfigPath"]).write_text(json.dumps({"linux": {"sysctl": {}}}))


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    *above, last, value = path

    def change(found: dict[str, Any]) -> None:
        for key in above:
            found = found[key]
        found[last] = value

    return change


STRAY_MOUNT = {"Type": "bind", "Source": "/etc", "Destination": "/mnt", "RW": True}


@pytest.mark.parametrize(
    ("change", "what", "repairable"),
    [
        (_set("Config", "Labels", "openshell.spec", "0" * 32), "spec", False),
        (_set("Image", "b" * 64), "image", False),
        (_stray_network, "networks", True),
        (_lost_network, "networks", True),
        (_other_address, "address on openshell-sbx-demo", False),
        (_set("HostConfig", "Privileged", True), "privileged", False),
        (_set("HostConfig", "ReadonlyRootfs", True), "read-only root file system", False),
        (_set("HostConfig", "IDMappings", "UidMap", ["0:0:65536"]), "user namespace", False),
        (_other_sysctl, "sysctls", False),
        (_set("Mounts", 0, "RW", True), "mounts", False),
        (_set("Mounts", 0, "Destination", "/elsewhere"), "mounts", False),
        (_set("Mounts", 0, "Name", "another-volume"), "mounts", False),
        (_set("Mounts", [STRAY_MOUNT]), "mounts", False),
        (_set("State", {"Status": "running", "Pid": 0}), "state", True),
    ],
)
def test_what_is_wrong_is_named(
    inspected: dict[str, Any], change: Callable[[dict[str, Any]], None], what: str, repairable: bool
) -> None:
    found = copy.deepcopy(inspected)
    change(found)
    assert [(one.what, one.repairable) for one in audit(found, SPEC, NETWORKS, running=False)] == [(what, repairable)]


def test_a_stopped_one_that_must_run_is_named(inspected: dict[str, Any]) -> None:
    assert [one.what for one in audit(inspected, SPEC, NETWORKS, running=True)] == ["state"]


def test_a_process_is_judged_by_what_the_kernel_tells() -> None:
    """This very test's process has no_new_privs off, and as root capabilities that no sandbox has."""
    with open("/proc/self/status", encoding="ascii") as handle:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in handle if ":\t" in line)
    wrong = {key for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(status[key], 16)}
    if status["NoNewPrivs"] != "1":
        wrong.add("no_new_privs")
    assert wrong, "CapBnd is never empty outside of a sandbox"
    assert {one.what for one in audit_process(os.getpid(), [])} == wrong
