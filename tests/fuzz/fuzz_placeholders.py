# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Coverage-guided fuzzing of placeholders: no cut of a stream changes anything, and no secret goes where it is not bound."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import atheris
from harness import run

with atheris.instrument_imports(include=["openshell_proxy.credentials", "openshell_proxy.relay"]):
    from openshell_proxy.credentials.document import load_vault
    from openshell_proxy.credentials.middleware import Redact
    from openshell_proxy.credentials.placeholders import ALIAS_MARKER, has_marker
    from openshell_proxy.credentials.rewrite import Access
    from openshell_proxy.credentials.streams import Echoes, Mask, body_transform
    from openshell_proxy.refusal import Refusal
    from openshell_proxy.relay.recode import Transform

HERE, ELSEWHERE, RANDOM = "s3cr3t-value-of-KEY", "v4lue-b0und-elsewhere", "R4nd0mR4nd0mR4nd0mR"
VAULT = load_vault(json.dumps({"secrets": [
    {"name": "KEY", "value": HERE, "hosts": ["here.test"], "random": RANDOM},
    {"name": "OTHER", "value": ELSEWHERE, "hosts": ["elsewhere.test"]},
]}))  # fmt: skip
KEY = re.compile(rb"sk-[A-Za-z0-9_-]{16,}")
KINDS = (b"text/plain", b"application/json", b"application/x-www-form-urlencoded", b"image/png")


def _access() -> Access:
    return Access(VAULT, VAULT.site("here.test", 443), "here.test", 443, "/")


def _run(transform: Transform, data: bytes, step: int) -> bytes | str:
    try:
        pieces = [transform.feed(data[at : at + step]) for at in range(0, len(data), step)]
        return b"".join([*pieces, transform.end()])
    except Refusal as refusal:
        return refusal.code


def _head(data: bytes) -> None:
    value = bytes(byte for byte in data if byte >= 0x20 and byte != 0x7F)
    try:
        ((_, sent),) = _access().fields([(b"X", value)])
        assert not has_marker(sent)
        assert ELSEWHERE.encode() not in sent or ELSEWHERE.encode() in value
    except Refusal:
        pass
    target = "/" + "".join(chr(byte) for byte in data if 0x20 < byte < 0x7F and byte != 0x23)
    try:
        assert ELSEWHERE not in _access().target(target) or ELSEWHERE in target
    except Refusal:
        pass
    VAULT.redacted(target)


def fuzz(data: bytes) -> None:
    """The first two bytes choose the content type and how the rest is cut; the rest is a body, a header and a target."""
    if len(data) < 2:
        return
    kind, step, rest = KINDS[data[0] % len(KINDS)], 1 + data[1], data[2:]
    whole = _run(body_transform(_access(), kind), rest, max(1, len(rest)))
    assert _run(body_transform(_access(), kind), rest, step) == whole
    if isinstance(whole, bytes):
        assert ELSEWHERE.encode() not in whole or ELSEWHERE.encode() in rest or kind == KINDS[2]
    echoes = Echoes({HERE.encode(): RANDOM.encode(), ELSEWHERE.encode(): b"openshell:resolve:env:OTHER"})
    masked = _run(Mask(echoes), rest, step)
    assert masked == echoes.masked(rest)
    assert isinstance(masked, bytes) and HERE.encode() not in masked and ELSEWHERE.encode() not in masked
    redacted = _run(Redact(VAULT.randoms), rest, step)
    assert redacted == _run(Redact(VAULT.randoms), rest, max(1, len(rest)))
    assert isinstance(redacted, bytes) and redacted.count(RANDOM.encode()) == rest.count(RANDOM.encode())
    if ALIAS_MARKER not in rest and RANDOM.encode() not in rest:
        assert redacted == KEY.sub(b"[REDACTED]", rest)
    _head(rest)


def _seeds() -> Iterator[bytes]:
    texts = [f"openshell:resolve:env:{name}" for name in ("KEY", "OTHER", "NONE")] + [RANDOM, HERE, ELSEWHERE]
    texts += ["sk-0123456789abcdef", f"sk-{RANDOM}-sk-0123456789abcdef", "sk-ant-OPENSHELL-RESOLVE-ENV-KEY"]
    for kind in range(len(KINDS)):
        for text in texts:
            yield bytes((kind, 3)) + f'{{"a": "{text}"}}'.encode()
            yield bytes((kind, 3)) + f"a={text.replace(':', '%3A')}&b".encode()


if __name__ == "__main__":
    run(fuzz, _seeds())
