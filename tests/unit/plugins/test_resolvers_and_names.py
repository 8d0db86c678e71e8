# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Host resolvers as the sidecar can use them, and the names of a sandbox's objects."""

from __future__ import annotations

import pytest
from ansible_collections.openshell.sandbox.plugins.filter.build_context import build_context
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import (
    SandboxNameError,
    SandboxNames,
    agent_uid_base,
)


@pytest.mark.parametrize("name", ["", "A", "a--b", "-a", "a-", "a_b", "a" * 41, "a/b"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(SandboxNameError):
        SandboxNames.of(name, None)


def test_names_are_the_promised_ones() -> None:
    names = SandboxNames.of("demo", None)
    assert names.network == "openshell-sbx-demo"
    assert names.workspace_volume == "openshell-workspace-demo"


def test_two_sandboxes_are_two_nobodies() -> None:
    first, second = agent_uid_base("10.89.0.0/24"), agent_uid_base("10.89.1.0/24")
    assert first > 2**31 - 1
    assert abs(first - second) >= 65536


def test_the_same_files_make_the_same_context(tmp_path) -> None:
    for name in ("one", "two"):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "Containerfile").write_text("FROM scratch\n")
        (directory / ".hidden").write_text(name)
    assert build_context(str(tmp_path / "one")) == build_context(str(tmp_path / "two"))
    (tmp_path / "two" / "more").write_text("x")
    assert build_context(str(tmp_path / "one")) != build_context(str(tmp_path / "two"))
