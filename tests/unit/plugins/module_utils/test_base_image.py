# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a base image can come from, and what a build is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils.base_image import (
    build_arguments,
    os_release,
    why_no_bootstrap,
)

FEDORA = 'NAME="Fedora Linux"\nID=fedora\nVERSION_ID=42\nVERSION_CODENAME=""\n'
ROCKY = 'NAME="Rocky Linux"\nID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.6"\n'


@pytest.mark.parametrize(("text", "who"), [(FEDORA, "fedora"), (ROCKY, "rocky")])
def test_a_fedora_family_host_is_told_what_to_do_instead(tmp_path: Path, text: str, who: str) -> None:
    file = tmp_path / "os-release"
    file.write_text(text)
    reason = why_no_bootstrap(os_release(str(file)))
    assert reason.startswith(f"{who} has no bootstrap here")
    assert "openshell_base_image" in reason


def test_a_build_reads_the_hosts_bundle_also_where_selinux_would_deny_it() -> None:
    """Relabelling that file, as ``:z`` does, would take it from everybody else on the host."""
    with_bundle = build_arguments("base", [], "/etc/ssl/certs/ca-certificates.crt", [])
    assert with_bundle[with_bundle.index("--security-opt") + 1] == "label=disable"
    volume = with_bundle[with_bundle.index("--volume") + 1]
    assert volume.endswith(":/etc/ssl/certs/ca-certificates.crt:ro")
    assert "--security-opt" not in build_arguments("base", [], "", [])
