# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Request targets in the one form on which policy decides and which goes on the wire (spec 1.15, 1.16)."""

from __future__ import annotations

import re

MAX_PATH_LENGTH = 4096

_TRIPLET = re.compile(rb"%([0-9A-Fa-f]{2})")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?]*")
# RFC 3986: unreserved, sub-delims, ":" and "@" stay as they are in a segment.
_LITERAL = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@")
_PLAIN = re.compile(r"(?:/[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9_~!$&'()*+,=:@.-]*)+/?\Z")
_KEPT_SLASH = b"\x00"  # cannot occur otherwise: a decoded NUL is refused


class TargetError(ValueError):
    """A request target that is refused, never repaired. ``code`` is the spec's word for why, the text a sentence."""

    def __init__(self, code: str, text: str = "") -> None:
        self.code = code
        super().__init__(text or code)


def canonical_path(
    target: str, *, allow_encoded_slash: bool = False, strip_path_parameters: bool = True
) -> tuple[str, str]:
    """(canonical path, raw query without ``?``) of a request target as received. Raises :class:`TargetError`.

    An empty path is ``/``. *strip_path_parameters* cuts each segment at ``;`` before dot segments are resolved.
    """
    _refuse_raw_characters(target)
    path, _, query = target.partition("?")
    path = path or "/"
    if not path.startswith("/"):
        absolute = _SCHEME.match(path)
        if absolute is None:
            raise TargetError("malformed_target")
        path = path[absolute.end() :] or "/"
    if len(path) > MAX_PATH_LENGTH:
        raise TargetError("path_too_long")
    if path == "/" or _PLAIN.match(path):
        return path, query
    return _resolve(_decode(path, allow_encoded_slash), strip_path_parameters), query


def _refuse_raw_characters(target: str) -> None:
    if not target.isascii():
        raise TargetError("non_ascii")
    if not target.isprintable():
        raise TargetError("null_or_control_byte")
    if "#" in target:
        raise TargetError("fragment_in_request_target")


def _decode(path: str, allow_encoded_slash: bool) -> bytes:
    """Percent-decode exactly once; an encoded slash that is allowed becomes a mark of its own."""
    raw = path.encode("ascii")
    if len(_TRIPLET.findall(raw)) != raw.count(b"%"):
        raise TargetError("invalid_percent_encoding")

    def one(match: re.Match[bytes]) -> bytes:
        value = int(match[1], 16)
        if value < 0x20 or value == 0x7F:
            raise TargetError("null_or_control_byte")
        if value == 0x2F:
            if not allow_encoded_slash:
                raise TargetError("encoded_slash_not_allowed")
            return _KEPT_SLASH
        return bytes([value])

    return _TRIPLET.sub(one, raw)


def _resolve(decoded: bytes, strip_parameters: bool) -> str:
    """Cut ``;parameters``, resolve dot segments, collapse empty ones, encode again."""
    segments = decoded.split(b"/")[1:]
    if strip_parameters:
        segments = [segment.split(b";", 1)[0] for segment in segments]
    kept: list[bytes] = []
    for segment in segments:
        if segment == b"..":
            if not kept:
                raise TargetError("traversal_above_root")
            kept.pop()
        elif segment not in (b"", b"."):
            kept.append(segment)
    for segment in kept:
        if any(part in (b".", b"..") for part in segment.split(_KEPT_SLASH)):
            raise TargetError("residual_dot_segment")
    trailing = "/" if kept and segments[-1] in (b"", b".", b"..") else ""
    return "/" + "/".join(_encode(segment) for segment in kept) + trailing


def _encode(segment: bytes) -> str:
    return "".join("%2F" if byte == 0 else chr(byte) if byte in _LITERAL else f"%{byte:02X}" for byte in segment)


def parse_query(raw: str) -> dict[str, tuple[str, ...]]:
    """Key → values in order (spec 1.16); a bad triplet or bytes that are not UTF-8 refuse the request."""
    found: dict[str, list[str]] = {}
    for piece in raw.split("&"):
        if piece:
            key, _, value = piece.partition("=")
            found.setdefault(_decode_component(key), []).append(_decode_component(value))
    return {key: tuple(values) for key, values in found.items()}


def _decode_component(text: str) -> str:
    if text.isalnum():
        return text
    raw = text.replace("+", " ").encode("utf-8", "surrogateescape")
    if len(_TRIPLET.findall(raw)) != raw.count(b"%"):
        raise TargetError("invalid_query_encoding", "the query has a malformed percent-encoding")
    try:
        return _TRIPLET.sub(lambda match: bytes([int(match[1], 16)]), raw).decode("utf-8")
    except UnicodeDecodeError:
        raise TargetError(
            "invalid_query_encoding", "the query is not UTF-8 once its percent-encoding is undone"
        ) from None
