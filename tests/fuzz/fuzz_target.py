# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Request targets: what is accepted is canonical, and stays so."""

from __future__ import annotations

import contextlib
import re

import atheris
from harness import of_cases, run

with atheris.instrument_imports(include=["openshell_proxy.policy.path", "openshell_proxy.entrances"]):
    from openshell_proxy.entrances.authority_form import parse_proxy_uri
    from openshell_proxy.policy.path import TargetError, canonical_path, parse_query
    from openshell_proxy.refusal import Refusal


def target(data: bytes) -> None:
    encoded = bool(data[:1] < b"\x80")
    text = data[1:].decode("latin-1")
    with contextlib.suppress(TargetError):
        path, query = canonical_path(text, allow_encoded_slash=encoded)
        assert canonical_path(path, allow_encoded_slash=encoded) == (path, "")
        assert not {".", ".."} & set(re.split("/|%2F", path))
        parse_query(query)
    with contextlib.suppress(Refusal):
        _, host, port, _ = parse_proxy_uri(text)
        assert host == host.lower() and 1 <= port <= 65535


if __name__ == "__main__":
    run(target, of_cases(lambda case: case["input"].get("target", case["input"].get("uri"))))
