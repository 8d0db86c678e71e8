# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module that refuses early: each check of the library is asked."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from host import NAMES, Host


def test_a_host_and_a_wish_that_will_do(host: Host, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    for check in (False, True):
        found = host.module(
            "host_preflight_info",
            check=check,
            sandbox_name="demo",
            capabilities=["containers"],
            mounts=[{"source": str(tmp_path / "link"), "target": "/data"}],
            upstream_ca_bundle="none",
        )
        assert (found["changed"], found["podman_version"], found["rootless"]) == (False, "4.3.1", False)
        assert (found["runtime"], found["nested"], found["upstream_ca_bundle"]) == ("", True, "")
        assert found["mounts"] == [{"source": str(tmp_path / "data"), "target": "/data", "read_only": True}]
        assert "SETFCAP" in found["capabilities"]
    assert host.module("host_preflight_info", capabilities=["packages"])["nested"] is False
    assert host.changed_since(0) == []


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"sandbox_name": "A"}, "sandbox name 'A' is not allowed"),
        ({"sandbox_name": "a", "sandbox_id": "_"}, "sandbox id '_' is not allowed"),
        ({"capabilities": ["NET_ADMIN"]}, "NET_ADMIN is not allowed"),
        ({"mounts": [{"source": "/etc", "target": "/x"}]}, "/etc is refused"),
        ({"mounts": [{"source": "/opt/podman-storage", "target": "/x"}]}, "does not exist"),
        ({"env": {"A-B": "x"}}, "'A-B' is not a variable's name"),
        ({"memory": "much"}, "openshell_memory"),
        ({"cpus": "x"}, "openshell_cpus"),
        ({"pids_limit": 1}, "openshell_pids_limit"),
        ({"dns_servers": ["x"]}, "openshell_dns_servers: 'x' is not an IP address"),
        ({"gateway_endpoint": "x"}, "openshell_gateway_endpoint"),
        ({"bridge_subnet": "x"}, "openshell_bridge_subnet"),
        ({"upstream_ca_bundle": "/absent"}, "openshell_upstream_ca_bundle"),
    ],
)
def test_a_bad_wish_is_refused(host: Host, wish: dict[str, Any], sentence: str) -> None:
    assert sentence in host.refusal("host_preflight_info", **wish)


def test_a_bad_host_is_refused(host: Host) -> None:
    host.change("info", "version", "Version", "4.2.0")
    assert "is too old" in host.refusal("host_preflight_info")
    host.change("info", "version", "Version", "5.0.0")
    host.direct.ensure_volume(NAMES.tls_volume, {})
    assert "exists and is not ours" in host.refusal("host_preflight_info", sandbox_name="demo")


def test_podmans_storage_is_refused(host: Host, tmp_path: Path) -> None:
    host.change("info", "store", "graphRoot", str(tmp_path))
    assert "is refused" in host.refusal("host_preflight_info", mounts=[{"source": str(tmp_path), "target": "/x"}])


def test_cgroups_v1_gets_another_runtime(host: Host) -> None:
    host.change("info", "host", "cgroupVersion", "v1")
    host.command("runc", "exit 0")
    assert host.module("host_preflight_info")["runtime"] == "runc"


def test_a_rootless_user_without_ids_is_refused(host: Host) -> None:
    """The user who runs this test has ids of its own in both files, or is refused."""
    host.change("info", "host", "security", "rootless", True)
    user = pwd.getpwuid(os.geteuid())
    ranges = [
        [row.strip().split(":") for row in Path(path).read_text().splitlines()] if Path(path).exists() else []
        for path in ("/etc/subuid", "/etc/subgid")
    ]
    totals = [sum(int(row[2]) for row in rows if row[0] in (user.pw_name, str(user.pw_uid))) for rows in ranges]
    result = host.module("host_preflight_info")
    if min(totals) >= 65_536:
        assert result["rootless"] is True
    else:
        assert "rootless Podman needs 65536" in result["msg"]
