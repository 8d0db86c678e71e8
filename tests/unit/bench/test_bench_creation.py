# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The shell script that a creation is measured against does what the playbook does for that sandbox, and no more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
from creation import RECORDED, Script, each

LABELS = ["--label", f"openshell.id={RECORDED}"]


@pytest.mark.parametrize(
    "plain",
    [
        ["network", "create", "--disable-dns", "openshell"],
        ["secret", "create", "openshell-authority", "-"],
        ["container", "inspect", f"openshell-agent-{RECORDED}"],
        ["volume", "ls", "--format", "json"],
    ],
    ids=["the bridge", "the authority", "a look", "a listing"],
)
def test_what_sandboxes_share_and_what_only_looks_is_left_out(plain: list[str]) -> None:
    assert Script.line(plain, plain, "") == ""


def test_what_changes_something_is_there_with_its_input() -> None:
    plain = ["cp", "-", f"openshell-agent-{RECORDED}:/"]
    line = Script.line(["--runtime", "runc", *plain], plain, "/in")
    assert line == f"podman --runtime runc cp - openshell-agent-{RECORDED}:/ < /in > /dev/null"


def test_addresses_follow_the_network_that_was_made() -> None:
    plain = ["network", "create", "--internal", *LABELS, f"openshell-sbx-{RECORDED}"]
    made, asked = Script.line(plain, plain, "").splitlines()
    assert (
        made == f"podman network create --internal --label openshell.id={RECORDED} openshell-sbx-{RECORDED} > /dev/null"
    )
    assert asked.startswith("base=$(podman network inspect ")


def test_it_waits_for_the_sidecar() -> None:
    plain = ["start", f"openshell-proxy-{RECORDED}"]
    assert "until [ -e $ready/.ready ]" in Script.line(plain, plain, "")
    agent = ["start", f"openshell-agent-{RECORDED}"]
    assert "ready" not in Script.line(agent, agent, "")


@pytest.mark.parametrize(
    ("sizes", "runs", "seconds"),
    [([1, 10, 50], [2.0, 3.8, 15.8], 0.3), ([1, 10, 50], [2.0, 5.6, 13.6], 0.4), ([1, 1, 5], [2.0, 9.0, 11.0], 0.5)],
    ids=["more later", "more at first", "a small fleet"],
)
def test_what_one_sandbox_more_costs_is_told_where_it_costs_most(
    sizes: list[int], runs: list[float], seconds: float
) -> None:
    assert each(sizes, runs) == pytest.approx(seconds)
