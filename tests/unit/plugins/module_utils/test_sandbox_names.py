# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which names a sandbox may have, what its objects are called, and whose uids are whose."""

from __future__ import annotations

import ipaddress
from itertools import islice, pairwise

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import (
    UID_RANGE,
    SandboxNameError,
    SandboxNames,
    is_ours,
    uid_bases,
)

FORM = "use lower-case letters, digits and single hyphens, beginning and ending with a letter or digit"
BAD = ["", "A", "a--b", "-a", "a-", "a_b", "a/b", "a b", "a.b", "a\n", "\u00e9", "../x", "a;b", "--rm"]


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(SandboxNameError, match=f"(?s)sandbox name .* is not allowed; {FORM}"):
        SandboxNames.of(name, None)


@pytest.mark.parametrize("name", [name for name in BAD if name])
def test_bad_ids_are_refused(name: str) -> None:
    with pytest.raises(SandboxNameError, match=f"(?s)sandbox id .* is not allowed; {FORM}"):
        SandboxNames.of("demo", name)


def test_length_has_a_limit() -> None:
    assert SandboxNames.of("a" * 40).name == "a" * 40
    with pytest.raises(SandboxNameError, match="has 41 characters; use at most 40"):
        SandboxNames.of("a" * 41)
    with pytest.raises(SandboxNameError, match=r"sandbox id .* has 41 characters"):
        SandboxNames.of("demo", "a" * 41)


@pytest.mark.parametrize("name", ["a", "0", "a-b", "9-to-5"])
def test_good_names_are_taken(name: str) -> None:
    assert SandboxNames.of(name) == SandboxNames(name, name)


def test_names_are_the_promised_ones() -> None:
    names = SandboxNames.of("demo", "d1")
    assert (names.proxy, names.agent) == ("openshell-proxy-demo", "openshell-agent-demo")
    assert names.network == "openshell-sbx-d1"
    assert names.tls_volume == "openshell-tls-d1"
    assert names.proxy_volume == "openshell-proxy-d1"
    assert names.workspace_volume == "openshell-workspace-d1"
    assert names.authority_secret == "openshell-authority-d1"
    labels = {"openshell.managed": "true", "openshell.sandbox": "demo", "openshell.id": "d1"}
    assert names.labels(x="y") == {**labels, "x": "y"}


@pytest.mark.parametrize("labels", [None, {}, {"openshell.managed": "false"}, {"managed": "true"}])
def test_what_does_not_carry_our_label_is_not_ours(labels: dict[str, str] | None) -> None:
    assert not is_ours(labels)
    assert is_ours({"openshell.managed": "true"})


def test_sandboxes_are_different_nobodies() -> None:
    """As many subnets as there are slots, in the order in which Podman hands them out: no range meets another."""
    subnets = islice(ipaddress.ip_network("10.0.0.0/8").subnets(new_prefix=24), 89 * 256, 89 * 256 + 16_000)
    bases = sorted(next(uid_bases(str(subnet))) for subnet in subnets)
    assert bases[0] > 2**31 - 1
    assert bases[-1] + UID_RANGE < 2**32 - 1
    assert all(second - first >= UID_RANGE for first, second in pairwise(bases))


@pytest.mark.parametrize("prefix", [24, 29])
def test_neighbours_of_any_size_are_different_nobodies(prefix: int) -> None:
    first, second = islice(ipaddress.ip_network("192.168.0.0/16").subnets(new_prefix=prefix), 2)
    assert abs(next(uid_bases(str(first))) - next(uid_bases(str(second)))) >= UID_RANGE


def test_every_slot_is_tried_once() -> None:
    bases = list(uid_bases("10.89.7.0/24"))
    assert len(set(bases)) == len(bases) == 16_000
    assert bases[1] == bases[0] + UID_RANGE
    assert min(bases) == 2**31
