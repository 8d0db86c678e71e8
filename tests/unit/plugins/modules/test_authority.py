# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module that has an authority: its key is in no argument, result or message."""

from __future__ import annotations

import json

import pytest
from host import NAMES, Host

KEY = "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("scope", "secret", "labels"),
    [
        ("host", "openshell-authority", {"openshell.managed": "true"}),
        ("sandbox", "openshell-authority-demo", NAMES.labels()),
    ],
)
def test_made_once_and_never_told(host: Host, scope: str, secret: str, labels: dict[str, str]) -> None:
    host.change("run", KEY)
    wish = {"sandbox_name": "demo", "scope": scope, "image": "proxy", "ulimits": ["nofile=1:1"]}
    checked = host.module("authority", check=True, diff=True, **wish)
    assert (checked["changed"], host.state["secrets"], host.calls("run")) == (True, {}, [])
    made = host.module("authority", diff=True, **wish)
    assert (made["changed"], made["secret"]) == (True, secret)
    assert made["created"] == ([{"kind": "secret", "name": secret}] if scope == "sandbox" else [])
    assert (made["diff"]["before"], made["diff"]["after"]) == ({}, {"secret": secret})
    assert host.stdin_of("secret create").decode() == KEY + "\n"
    assert host.state["secrets"][secret]["Spec"]["Labels"] == labels
    for told in (json.dumps(made), (host.directory / "calls.jsonl").read_text(), json.dumps(host.state["secrets"])):
        assert "hunter2" not in told
    again = host.module("authority", **wish)
    assert (again["changed"], again["created"], len(host.calls("run"))) == (False, [], 1)


def test_the_container_that_makes_it_is_confined(host: Host) -> None:
    host.module("authority", sandbox_name="demo", image="proxy", ulimits=["nofile=1:1"])
    assert " ".join(host.calls("run")[0]) == (
        "run --rm --network none --cap-drop ALL --security-opt no-new-privileges --log-driver none "
        "--http-proxy=false --pull never --ulimit nofile=1:1 proxy authority new"
    )


def test_refusals(host: Host) -> None:
    host.change("run", KEY)
    host.direct.create_secret("openshell-authority", b"x", {})
    assert host.refusal("authority", sandbox_name="demo", image="proxy") == (
        "a secret openshell-authority exists and is not ours; remove it"
    )
    host.direct.remove_secret("openshell-authority")
    host.fail("run", "Error: proxy: image not known")
    assert host.refusal("authority", sandbox_name="demo", image="proxy") == (
        "podman run failed (125): proxy: image not known"
    )
    host.fail("secret create", "Error: out of order")
    sentence = json.dumps(host.module("authority", sandbox_name="demo", image="proxy"))
    assert "out of order" in sentence
    assert "hunter2" not in sentence
