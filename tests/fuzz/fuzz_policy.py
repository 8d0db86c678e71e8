# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy loader: a policy that decides, or a PolicyError."""

from __future__ import annotations

import contextlib
import json

import atheris
from harness import of_cases, run

with atheris.instrument_imports(include=["openshell_proxy.policy"]):
    from openshell_proxy.policy import Intent, PolicyError, Request, load_policy

PREFIX = "version: 1\nnetwork_policies:\n  p:\n    endpoints:\n      - "


def target(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for document in (text, PREFIX + text):
        with contextlib.suppress(PolicyError):
            policy = load_policy(document)
            policy.decide(Intent("a.example.com", 443))
            policy.decide(Intent("a.example.com", 443, Request("GET", "/a", {"k": ("v",)})))


if __name__ == "__main__":
    run(target, of_cases(lambda case: json.dumps(case["policy"]) if "policy" in case else None))
