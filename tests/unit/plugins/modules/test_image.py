# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module that has an image."""

from __future__ import annotations

import base64

from host import Host

CONTEXT = base64.b64encode(b"archive").decode()
WISH = {"kind": "proxy", "context": CONTEXT, "packages": ["git", "python3"], "base_source": "pull"}


def test_built_once_from_a_context_that_names_it(host: Host) -> None:
    checked = host.module("image", check=True, diff=True, **WISH)
    assert (checked["changed"], checked["image_id"], host.state["images"]) == (True, "", {})
    made = host.module("image", diff=True, **WISH, ulimits=["nofile=1:1"])
    assert (made["changed"], made["image"], len(made["image_id"])) == (True, checked["image"], 64)
    assert made["image"].startswith("localhost/openshell-proxy:")
    assert made["diff"] == checked["diff"]
    assert (made["diff"]["before"], made["diff"]["after"]) == ({}, {"image": made["image"]})
    assert host.stdin_of("build") == b"archive"
    assert " ".join(host.calls("build")[0]) == (
        "build --quiet --pull=never --force-rm --build-arg BASE=docker.io/library/debian:bookworm-slim "
        f"--build-arg PACKAGES=git python3 --ulimit nofile=1:1 --tag {made['image']} -"
    )
    again = host.module("image", **WISH)
    assert (again["changed"], again["image_id"], len(host.calls("build"))) == (False, made["image_id"], 1)


def test_other_content_is_another_image(host: Host) -> None:
    names = {
        host.module("image", check=True, **{**WISH, **other})["image"]
        for other in (
            {},
            {"kind": "agent"},
            {"context": base64.b64encode(b"other").decode()},
            {"packages": ["git"]},
            {"base_reference": "registry.example/x"},
        )
    }
    assert len(names) == 5


def test_the_users_own_image_is_pulled_once(host: Host) -> None:
    for changed in (True, False):
        found = host.module("image", kind="agent", reference="registry.example/mine:1")
        assert (found["changed"], found["image"]) == (changed, "registry.example/mine:1")
    assert (len(host.calls("pull")), host.calls("build")) == (1, [])


def test_refusals(host: Host) -> None:
    host.fail("pull", "Error: connection refused")
    assert host.refusal("image", kind="agent", reference="registry.example/mine:1") == (
        "the image registry.example/mine:1 cannot be pulled: connection refused"
    )
    host.fail("build", "Error: step 3 failed")
    name = host.module("image", check=True, **WISH)["image"]
    result = host.module("image", **WISH)
    assert result["msg"] == f"building {name} failed: step 3 failed"
    assert "Error: step 3 failed" in result["stderr"]
    assert host.calls("rmi") == [["rmi", "--force", name]]
    assert "value of kind must be one of: proxy, agent" in host.refusal("image", kind="x")
