# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module that has a policy judged by the proxy image."""

from __future__ import annotations

import json

import pytest
from host import NAMES, Host, make_sandbox

WISH = {"policy": "version: 1\n# hunter2\n", "image": "proxy"}


def test_a_good_policy_is_judged_in_a_confined_container(host: Host) -> None:
    host.change("run", json.dumps({"ok": True, "notices": ["n"]}))
    for check in (False, True):
        found = host.module("policy_check", check=check, **WISH, default_enforcement="audit", ulimits=["nofile=1:1"])
        assert (found["changed"], found["judged"], found["notices"]) == (False, True, ["n"])
    assert " ".join(host.calls("run")[0]) == (
        "run --rm -i --network none --cap-drop ALL --security-opt no-new-privileges "
        "--env OPENSHELL_DEFAULT_ENFORCEMENT=audit --http-proxy=false --env OPENSHELL_POLICY_COMPOSED=true --ulimit nofile=1:1 --pull never "
        "proxy check-policy --json --source policy -"
    )
    assert host.stdin_of("run").decode() == WISH["policy"]


def test_a_bad_policy_is_refused_with_every_error(host: Host) -> None:
    host.change("run", json.dumps({"ok": False, "errors": ["mine.yaml:3: a", "mine.yaml:4: b"]}))
    result = host.module("policy_check", **WISH, source="mine.yaml")
    assert (result["failed"], result["msg"]) == (True, "the policy is refused: mine.yaml:3: a; mine.yaml:4: b")
    assert result["errors"] == ["mine.yaml:3: a", "mine.yaml:4: b"]
    assert host.calls("run")[0][-4:] == ["--json", "--source", "mine.yaml", "-"]
    host.change("run", "{}")
    assert host.refusal("policy_check", **WISH) == "the policy is refused: invalid"


def test_an_engine_that_says_nothing_is_no_yes(host: Host) -> None:
    host.change("run", "")
    host.fail("run", "Error: proxy: image not known")
    assert host.refusal("policy_check", **WISH) == "podman run check-policy failed (125): proxy: image not known"


@pytest.mark.parametrize("answer", ["[]", "null", "3"])
def test_an_engine_that_says_nonsense_is_no_yes(host: Host, answer: str) -> None:
    host.change("run", answer)
    assert "podman run check-policy failed" in host.refusal("policy_check", **WISH)


def test_what_is_enforced_already_is_not_judged_again(host: Host) -> None:
    make_sandbox(host, policy=WISH["policy"])
    found = host.module("policy_check", **WISH, config_volume=NAMES.proxy_volume)
    assert (found["judged"], host.calls("run")) == (False, [])
    assert host.module("policy_check", policy="", image="")["judged"] is False
    host.change("run", json.dumps({"ok": True}))
    assert host.module("policy_check", policy="other", image="proxy", config_volume=NAMES.proxy_volume)["judged"]
