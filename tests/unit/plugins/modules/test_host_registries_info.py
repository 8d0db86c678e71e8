# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module that tells a host's registries, with the host's tools on its path."""

from __future__ import annotations

import json

from host import Host


def test_registries_without_credentials(host: Host) -> None:
    host.command("apt-get", "echo http://me:hunter2@deb.example/debian")
    host.command("npm", "echo https://me:hunter2@npm.example/")
    host.command("python3", "exit 1")
    pip = {"PIP_INDEX_URL": "https://me:hunter2@127.0.0.1:1/simple", "PIP_CONFIG_FILE": "/dev/null"}
    for check in (False, True):
        found = host.module("host_registries_info", check=check, environ=pip)
        assert not found["changed"]
        assert found["endpoints"] == [["127.0.0.1", 1], ["deb.example", 80], ["npm.example", 443]]
        assert found["env"] == {
            "PIP_INDEX_URL": "https://127.0.0.1:1/simple",
            "npm_config_registry": "https://npm.example/",
        }
        assert {endpoint["access"] for endpoint in found["policy"]["endpoints"]} == {"read-only"}
        assert "hunter2" not in json.dumps(found)
