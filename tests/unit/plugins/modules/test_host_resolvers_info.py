# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module that tells a host's resolvers."""

from __future__ import annotations

from pathlib import Path

from host import Host


def test_resolvers_and_where_they_are_from(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.53\nnameserver 192.0.2.53\n")
    for check in (False, True):
        found = host.module("host_resolvers_info", check=check, candidates=["/absent", str(path)])
        assert (found["changed"], found["resolvers"], found["source"]) == (False, ["192.0.2.53"], str(path))


def test_nothing_left(host: Host) -> None:
    assert "no usable DNS resolver in /absent" in host.refusal("host_resolvers_info", candidates=["/absent"])
