# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules that look for images, have a base and build on it; the filter that names what is built."""

from __future__ import annotations

import base64

from ansible_collections.openshell.sandbox.plugins.filter.image_name import image_name
from host import Host

NAME = "localhost/openshell-proxy:1"
CONTEXT = base64.b64encode(b"archive").decode()
WISH = {"name": NAME, "base": "localhost/base:1", "context": CONTEXT, "packages": ["git", "python3"]}
BASE = {"name": "localhost/base:1", "reference": "registry.example/debian:1", "source": "pull"}


def test_built_once(host: Host) -> None:
    checked = host.module("image", check=True, diff=True, **WISH)
    assert (checked["changed"], checked["image_id"], host.state["images"]) == (True, "", {})
    made = host.module("image", diff=True, **WISH, ulimits=["nofile=1:1"])
    assert (made["changed"], made["image"], len(made["image_id"])) == (True, NAME, 64)
    assert made["diff"] == checked["diff"]
    assert (made["diff"]["before"], made["diff"]["after"]) == ({}, {"image": NAME})
    assert host.stdin_of("build") == b"archive"
    assert " ".join(host.calls("build")[0]) == (
        "build --quiet --pull=never --force-rm --build-arg BASE=localhost/base:1 "
        f"--build-arg PACKAGES=git python3 --ulimit nofile=1:1 --tag {NAME} -"
    )
    again = host.module("image", **WISH)
    assert (again["changed"], again["image_id"], len(host.calls("build"))) == (False, made["image_id"], 1)


def test_other_content_is_another_name() -> None:
    names = {image_name(parts, kind) for parts in (["a"], ["b"], ["a", ["git"]]) for kind in ("proxy", "agent")}
    assert len(names) == 6
    assert image_name(["a"], "proxy") == image_name(["a"], "proxy")
    assert image_name(["a"], "proxy").startswith("localhost/openshell-proxy:")


def test_a_build_that_fails_leaves_no_image(host: Host) -> None:
    host.fail("build", "Error: step 3 failed")
    result = host.module("image", **WISH)
    assert result["msg"] == f"building {NAME} failed: step 3 failed"
    assert "Error: step 3 failed" in result["stderr"]
    assert host.calls("rmi") == [["rmi", "--force", NAME]]


def test_a_base_is_pulled_once(host: Host) -> None:
    checked = host.module("base_image", check=True, **BASE)
    assert (checked["changed"], host.calls("pull")) == (True, [])
    for changed in (True, False):
        found = host.module("base_image", **BASE)
        assert (found["changed"], found["image"]) == (changed, "registry.example/debian:1")
    assert len(host.calls("pull")) == 1


def test_a_base_that_is_there_needs_no_registry(host: Host) -> None:
    host.module("base_image", **BASE)
    found = host.module("base_image", **{**BASE, "source": "auto"})
    assert (found["changed"], found["image"]) == (False, "registry.example/debian:1")


def test_a_base_that_cannot_be_had(host: Host) -> None:
    host.fail("pull", "Error: connection refused")
    assert host.refusal("base_image", **BASE) == (
        "the image registry.example/debian:1 cannot be pulled: connection refused"
    )
    assert "value of source must be one of: auto, pull, bootstrap" in host.refusal(
        "base_image", **{**BASE, "source": "x"}
    )


def test_what_is_there_is_told_by_name(host: Host) -> None:
    made = host.module("image", **WISH)
    found = host.module("image_info", names=[NAME, "localhost/none:1"])
    assert (found["changed"], found["images"]) == (False, {NAME: made["image_id"], "localhost/none:1": ""})
