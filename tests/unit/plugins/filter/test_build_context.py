# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The same files are the same archive, whoever owns them, whenever they were written."""

from __future__ import annotations

import base64
import io
import os
import tarfile
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.openshell.sandbox.plugins.filter.build_context import FilterModule, build_context


def make(directory: Path) -> Path:
    (directory / "src" / "package").mkdir(parents=True)
    for name in ("Containerfile", "src/b.py", "src/a.py", "src/package/c", "run.sh"):
        (directory / name).write_text(name)
        (directory / name).chmod(0o644)
    (directory / "run.sh").chmod(0o755)
    return directory


def unpack(text: str) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(text))) as archive:
        return {member.name: member for member in archive.getmembers()}


def test_members_are_sorted_and_nobodys(tmp_path: Path) -> None:
    members = unpack(build_context(str(make(tmp_path))))
    assert list(members) == ["Containerfile", "run.sh", "src/a.py", "src/b.py", "src/package/c"]
    for member in members.values():
        assert (member.uid, member.gid, member.uname, member.gname, member.mtime) == (0, 0, "", "", 0)
    assert {name: oct(member.mode) for name, member in members.items() if member.mode != 0o644} == {"run.sh": "0o755"}


def test_owner_time_and_order_do_not_count(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    os.utime(two / "src/a.py", (1, 1))
    (two / "src/b.py").unlink()
    (two / "src/b.py").write_text("src/b.py")
    (two / "src/b.py").chmod(0o600)
    if os.geteuid() == 0:
        os.chown(two / "src/a.py", 12345, 12345)
    assert build_context(str(one)) == build_context(str(two))


def test_who_may_execute_it_is_the_files_own_property(tmp_path: Path) -> None:
    """Root may execute what anybody may; the owner's bit decides, as in git."""
    for mode, told in ((0o611, 0o644), (0o744, 0o755), (0o700, 0o755)):
        (make(tmp_path / oct(mode)) / "run.sh").chmod(mode)
        assert unpack(build_context(str(tmp_path / oct(mode))))["run.sh"].mode == told


def test_content_names_and_modes_count(tmp_path: Path) -> None:
    plain = build_context(str(make(tmp_path / "plain")))
    changed = make(tmp_path / "changed")
    for change in (
        lambda: (changed / "src/a.py").write_text("other"),
        lambda: (changed / "src/a.py").rename(changed / "src/z.py"),
        lambda: (changed / "more").write_text(""),
        lambda: (changed / "run.sh").chmod(0o644),
    ):
        before = build_context(str(changed))
        change()
        assert build_context(str(changed)) not in (before, plain)


def test_byte_code_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    plain = build_context(str(make(tmp_path)))
    for name in ("__pycache__", ".git", "src/x.egg-info"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    (tmp_path / "src" / ".hidden").write_text("x")
    assert build_context(str(tmp_path)) == plain


def test_what_is_no_context_is_refused(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(AnsibleFilterError, match="is not a directory with a Containerfile"):
            FilterModule().filters()["build_context"](str(directory))
