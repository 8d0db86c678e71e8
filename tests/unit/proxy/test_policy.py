# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Default deny, presets, deny rules, and what is refused at load."""

from __future__ import annotations

import pytest
from openshell_proxy.policy import Intent, PolicyError, Request, deny_all, load_policy

TEXT = """
version: 1
network_policies:
  api:
    endpoints:
      - {host: api.example.com, port: 443, protocol: rest, enforcement: enforce, access: read-only,
         deny_rules: [{method: GET, path: /secret/**}]}
  wild:
    endpoints: [{host: "*.example.org", port: 443}]
"""


def allowed(host: str, port: int = 443, method: str = "", path: str = "/") -> bool:
    request = Request(method, path, {}) if method else None
    return load_policy(TEXT).decide(Intent(host, port, request)).allowed


def test_default_is_deny() -> None:
    assert not deny_all().decide(Intent("api.example.com", 443)).allowed
    assert not allowed("other.example.com")
    assert not allowed("api.example.com", 80)


def test_preset_and_deny_rule() -> None:
    assert allowed("api.example.com", method="GET", path="/a")
    assert not allowed("api.example.com", method="POST", path="/a")
    assert not allowed("api.example.com", method="GET", path="/secret/x")
    assert not allowed("api.example.com", method="HEAD", path="/secret/x")


def test_a_wildcard_is_one_label() -> None:
    assert allowed("a.example.org")
    assert not allowed("example.org")
    assert not allowed("a.b.example.org")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version: 1\nnetwork_policys: {}\n", "did you mean 'network_policies'"),
        ("network_policies: {}\n", "version"),
        ("- 1\n", "mapping"),
        ("version: 1\nnetwork_policies: {a: {endpoints: [{host: '*.com', port: 443}]}}\n", "TLD wildcard"),
        ("version: 1\nnetwork_policies: {a: {endpoints: [{host: x.example.com}]}}\n", "at least one port"),
    ],
)
def test_bad_policies_are_refused(text: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        load_policy(text)
