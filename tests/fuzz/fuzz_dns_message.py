# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Coverage-guided fuzzing of the name server: the first byte says UDP or TCP, the rest is the message."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris
from harness import run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit/proxy"))
with atheris.instrument_imports(include=["dns", "openshell_proxy.entrances", "openshell_proxy.policy"]):
    import dns.message
    from name_server import check_any_message


def fuzz(data: bytes) -> None:
    check_any_message(data[1:], udp=bool(data[:1]) and data[0] % 2 == 0)


if __name__ == "__main__":
    question = dns.message.make_query("api.example.test", "A").to_wire()
    run(fuzz, (b"\x00" + question, b"\x01" + len(question).to_bytes(2, "big") + question))
