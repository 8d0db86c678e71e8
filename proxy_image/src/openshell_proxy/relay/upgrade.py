# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The opening handshake of a WebSocket as a proxy sees it: what is offered on, and what answer counts (RFC 6455, 4)."""

from __future__ import annotations

import base64
import hashlib

from openshell_proxy.relay.http1 import Head, Header, ProtocolError, ResponseHead

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_EXTENSIONS = b"sec-websocket-extensions"
_DEFLATE = b"permessage-deflate"
# RFC 7692, 7.1: with these alone a message can be inflated by somebody who only sees the messages.
_SAFE = frozenset(
    (b"server_no_context_takeover", b"client_no_context_takeover", b"server_max_window_bits", b"client_max_window_bits")
)


def accept_of(key: bytes) -> bytes:
    """The ``Sec-WebSocket-Accept`` that answers *key* (RFC 6455, 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def safe_offer(fields: list[Header]) -> list[Header]:
    """A request's fields with no extension offered but permessage-deflate, for messages that are to be read."""
    kept = [offer for offer in Head(1, fields).members(_EXTENSIONS) if _safe_deflate(offer)]
    rest = [field for field in fields if field[0].lower() != _EXTENSIONS]
    return [*rest, (b"Sec-WebSocket-Extensions", b", ".join(kept))] if kept else rest


def check_switch(asked: Head, answer: ResponseHead) -> None:
    """Raise :class:`ProtocolError` unless the 101 *answer* is one to the handshake *asked* (RFC 6455, 4.1)."""
    if b"websocket" not in answer.members(b"upgrade") or b"upgrade" not in answer.members(b"connection"):
        raise ProtocolError("it switches to something else than WebSocket")
    if answer.values(b"sec-websocket-accept") != [accept_of(asked.values(b"sec-websocket-key")[0])]:
        raise ProtocolError("Sec-WebSocket-Accept does not answer the key")
    chosen = answer.values(b"sec-websocket-protocol")
    offered = [part.strip() for value in asked.values(b"sec-websocket-protocol") for part in value.split(b",")]
    if len(chosen) > 1 or any(one not in offered for one in chosen):
        raise ProtocolError("it speaks a subprotocol that nobody offered")
    if not {_name(one) for one in answer.members(_EXTENSIONS)} <= {_name(one) for one in asked.members(_EXTENSIONS)}:
        raise ProtocolError("it uses an extension that nobody offered")


def bounded_answer(answer: ResponseHead) -> tuple[list[Header], bool]:
    """(the end-to-end fields for the client, whether it may compress), once :func:`check_switch` has passed.

    The client is told to compress every message by itself, which any endpoint of permessage-deflate must be able to
    (RFC 7692, 7.1.1.2); the destination gets no compressed text, and needs not know. So no window of a client's past
    messages is kept for an idle socket, and what the destination inflates cannot differ from what was judged.
    """
    fields = [field for field in answer.end_to_end() if field[0].lower() != _EXTENSIONS]
    agreed = answer.members(_EXTENSIONS)
    if not agreed:
        return fields, False
    if len(agreed) > 1 or not _safe_deflate(agreed[0]):
        raise ProtocolError("it uses permessage-deflate in an unknown way")
    told = agreed[0]
    if b"client_no_context_takeover" not in _parameters(told):
        told += b"; client_no_context_takeover"
    return [*fields, (b"Sec-WebSocket-Extensions", told)], True


def _name(extension: bytes) -> bytes:
    return extension.partition(b";")[0].strip()


def _parameters(extension: bytes) -> list[bytes]:
    return [part.partition(b"=")[0].strip() for part in extension.split(b";")[1:]]


def _safe_deflate(extension: bytes) -> bool:
    return _name(extension) == _DEFLATE and _SAFE.issuperset(_parameters(extension))
