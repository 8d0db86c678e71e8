# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which of a host's resolvers a sidecar may use."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils.resolvers import (
    CANDIDATES,
    ResolverError,
    host_resolvers,
    parse_resolv_conf,
)


def test_systemd_is_asked_before_the_stub() -> None:
    assert CANDIDATES == ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.0.0.53",
        "127.255.255.254",
        "::1",
        "169.254.0.1",
        "169.254.169.254",
        "fe80::1",
        "fe80::1%eth0",
        "febf::1",
        "::ffff:127.0.0.53",
        "::ffff:169.254.169.254",
        "0.0.0.0",
        "::",
        "not-an-address",
        "",
    ],
)
def test_what_means_something_else_inside_is_left_out(address: str) -> None:
    assert parse_resolv_conf(f"nameserver {address}\nnameserver 192.0.2.53\n") == ["192.0.2.53"]


@pytest.mark.parametrize(
    "address", ["126.255.255.255", "128.0.0.1", "169.253.255.255", "169.255.0.1", "fec0::1", "::2"]
)
def test_what_lies_beside_is_kept(address: str) -> None:
    assert parse_resolv_conf(f"nameserver {address}\n") == [address]


def test_order_is_kept_and_what_is_told_twice_is_told_once() -> None:
    text = "nameserver 192.0.2.9\nnameserver 2001:db8::53\nnameserver 192.0.2.1\nnameserver 192.0.2.9\n"
    assert parse_resolv_conf(text + "nameserver 2001:DB8:0::53\n") == ["192.0.2.9", "2001:db8::53", "192.0.2.1"]


def test_a_scope_is_no_part_of_an_address() -> None:
    """It names an interface of the host, which a container does not have."""
    assert parse_resolv_conf("nameserver 2001:db8::53%eth0\n") == ["2001:db8::53"]


def test_comments_and_other_words_are_not_resolvers() -> None:
    text = """
# nameserver 192.0.2.1
; nameserver 192.0.2.2
search example.com
options edns0
nameservers 192.0.2.3
nameserver
  nameserver\t192.0.2.4 ; the office
nameserver 192.0.2.5 # the attic
nameserver 192.0.2.6#glued
nameserver 192.0.2.7;glued
"""
    assert parse_resolv_conf(text) == ["192.0.2.4", "192.0.2.5", "192.0.2.6", "192.0.2.7"]


def test_the_first_file_with_a_usable_one_wins(tmp_path: Path) -> None:
    first, second, absent = (str(tmp_path / name) for name in ("first", "second", "absent"))
    Path(second).write_text("nameserver 192.0.2.2\n")
    assert host_resolvers([absent, second]) == (["192.0.2.2"], second)
    Path(first).write_text("nameserver 127.0.0.53\n")
    assert host_resolvers([first, second]) == (["192.0.2.2"], second)
    Path(first).write_text("nameserver 192.0.2.1\n")
    assert host_resolvers([first, second]) == (["192.0.2.1"], first)


def test_an_unreadable_file_is_as_good_as_none(tmp_path: Path) -> None:
    """A directory cannot be read as a file by anybody, root included; bytes that are no text are passed over."""
    broken = tmp_path / "broken"
    broken.write_bytes(b"\xff\xfe\nnameserver 192.0.2.3\n")
    assert host_resolvers([str(tmp_path), str(broken)]) == (["192.0.2.3"], str(broken))


def test_nothing_left_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.53\n")
    with pytest.raises(
        ResolverError, match=r"no usable DNS resolver in .*resolv.conf or /absent .*openshell_dns_servers"
    ):
        host_resolvers([str(path), "/absent"])
