# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What prune takes for unwanted."""

from __future__ import annotations

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils.prune import Belongings, unused_images, why_kept
from ansible_collections.openshell.sandbox.plugins.module_utils.removal import Item


def sandbox(*containers: str, running: bool = False) -> Belongings:
    return Belongings("a", "a", [Item("container", f"openshell-{one}") for one in containers], running)


COMPLETE = sandbox("agent-a", "proxy-a")
REPLACED = sandbox("agent-a-replaced", "proxy-a")
AT_WORK = sandbox("agent-a", running=True)


@pytest.mark.parametrize(
    ("one", "declared", "running", "why"),
    [
        (COMPLETE, None, False, "complete"),
        (REPLACED, None, False, ""),
        (sandbox("proxy-a"), None, False, ""),
        (COMPLETE, [], False, ""),
        (COMPLETE, ["a"], True, "declared"),
        (REPLACED, ["a"], True, "declared"),
        (AT_WORK, None, False, "its agent runs"),
        (AT_WORK, ["b"], False, "its agent runs"),
        (AT_WORK, ["b"], True, ""),
    ],
)
def test_which_sandboxes_stay(one: Belongings, declared: list[str] | None, running: bool, why: str) -> None:
    assert why_kept(one, declared, running) == why


def test_what_was_set_aside_goes_only_when_its_replacement_stands() -> None:
    assert sandbox("agent-a", "agent-a-replaced", "proxy-a").leftovers == [
        Item("container", "openshell-agent-a-replaced")
    ]
    assert REPLACED.leftovers == []


def test_which_images_go() -> None:
    ours = {"openshell.managed": "true"}
    images = [
        {"Id": "1", "Names": ["localhost/openshell-base:x"]},
        {"Id": "2", "Names": ["localhost/openshell-proxy:x"]},
        {"Id": "3", "Names": ["localhost/openshell-proxy:used"]},
        {"Id": "4", "Names": ["localhost/openshell-proxy:current"]},
        {"Id": "5", "Names": ["localhost/openshell-proxy:theirs"], "ReadOnly": True},
        {"Id": "6", "Names": ["docker.io/library/debian:12"], "Labels": ours},
        {"Id": "7", "Labels": ours},
        {"Id": "8", "Labels": None},
    ]
    found = unused_images(images, ["3"], ["localhost/openshell-proxy:current"])
    assert [item.name for item in found] == ["localhost/openshell-proxy:x", "localhost/openshell-base:x", "7"]
