# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""X.509 certificates written down in DER (RFC 5280, X.690): the two profiles that an authority needs."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os

from openshell_proxy.libcrypto import Key

_TRUE = b"\x01\x01\xff"
_VERSION_3 = b"\xa0\x03\x02\x01\x02"
_SEQUENCE, _SET, _OCTETS, _BITS, _INTEGER, _UTF8 = 0x30, 0x31, 0x04, 0x03, 0x02, 0x0C
_POINT = 65  # bytes of a public key on P-256, which are the last ones of its SubjectPublicKeyInfo


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    if len(content) < 128:
        return bytes((tag, len(content))) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _oid(text: str) -> bytes:
    first, second, *rest = map(int, text.split("."))
    content = bytearray()
    for number in (40 * first + second, *rest):
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(0x80 | number & 0x7F)
        content += bytes(reversed(groups))
    return _der(0x06, bytes(content))


_ECDSA_SHA256 = _der(_SEQUENCE, _oid("1.2.840.10045.4.3.2"))
_CN, _O = _oid("2.5.4.3"), _oid("2.5.4.10")
_SUBJECT_KEY, _KEY_USAGE, _NAMES, _CONSTRAINTS = (_oid(f"2.5.29.{number}") for number in (14, 15, 17, 19))
_AUTHORITY_KEY, _EXTENDED_USAGE, _SERVER = _oid("2.5.29.35"), _oid("2.5.29.37"), _oid("1.3.6.1.5.5.7.3.1")
_SIGNS = _der(_BITS, b"\x07\x80")  # digitalSignature
_CERTIFIES = _der(_BITS, b"\x01\x06")  # keyCertSign, cRLSign


def _integer(number: int) -> bytes:
    return _der(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _time(moment: datetime.datetime) -> bytes:
    """Source: RFC 5280, 4.1.2.5: two digits for the year until 2049."""
    if moment.year < 2050:
        return _der(0x17, f"{moment:%y%m%d%H%M%SZ}".encode())
    return _der(0x18, f"{moment:%Y%m%d%H%M%SZ}".encode())


def _name(*fields: tuple[bytes, str]) -> bytes:
    parts = (_der(_SET, _der(_SEQUENCE, oid, _der(_UTF8, text.encode()))) for oid, text in fields)
    return _der(_SEQUENCE, *parts)


def _extension(oid: bytes, value: bytes, critical: bool = False) -> bytes:
    return _der(_SEQUENCE, oid, _TRUE if critical else b"", _der(_OCTETS, value))


def _key_id(public: bytes) -> bytes:
    """Source: RFC 5280, 4.2.1.2 (1)."""
    return hashlib.sha1(public[-_POINT:], usedforsecurity=False).digest()


def _certificate(
    subject: bytes, issuer: bytes, public: bytes, valid: tuple[datetime.datetime, datetime.datetime],
    extensions: tuple[bytes, ...], signer: Key,
) -> bytes:  # fmt: skip
    serial = int.from_bytes(os.urandom(20), "big") >> 1 | 1  # positive, not zero, at most 20 bytes
    begin, end = valid
    signed = _der(
        _SEQUENCE, _VERSION_3, _integer(serial), _ECDSA_SHA256, issuer, _der(_SEQUENCE, _time(begin), _time(end)),
        subject, public, _der(0xA3, _der(_SEQUENCE, *extensions)),
    )  # fmt: skip
    return _der(_SEQUENCE, signed, _ECDSA_SHA256, _der(_BITS, b"\0", signer.sign(signed)))


def authority(key: Key, name: str, valid: tuple[datetime.datetime, datetime.datetime]) -> bytes:
    """A self-signed certificate that may sign leaves, and no other authority's."""
    subject, public = _name((_CN, name), (_O, "OpenShell")), key.public()
    extensions = (
        _extension(_CONSTRAINTS, _der(_SEQUENCE, _TRUE, _integer(0)), critical=True),
        _extension(_KEY_USAGE, _CERTIFIES, critical=True),
        _extension(_SUBJECT_KEY, _der(_OCTETS, _key_id(public))),
    )
    return _certificate(subject, subject, public, valid, extensions, key)


def leaf(
    host: str, public: bytes, valid: tuple[datetime.datetime, datetime.datetime], issuer: tuple[bytes, bytes], signer: Key
) -> bytes:  # fmt: skip
    """A certificate for the server *host*; *issuer* is the signer's subject and key identifier."""
    try:
        alternative = _der(0x87, ipaddress.ip_address(host).packed)
    except ValueError:
        alternative = _der(0x82, host.encode("ascii"))
    extensions = (
        _extension(_NAMES, _der(_SEQUENCE, alternative)),
        _extension(_CONSTRAINTS, _der(_SEQUENCE), critical=True),
        _extension(_KEY_USAGE, _SIGNS, critical=True),
        _extension(_EXTENDED_USAGE, _der(_SEQUENCE, _SERVER)),
        _extension(_SUBJECT_KEY, _der(_OCTETS, _key_id(public))),
        _extension(_AUTHORITY_KEY, _der(_SEQUENCE, _der(0x80, issuer[1]))),
    )
    subject = _name((_CN, host if len(host) <= 64 else "leaf"))  # RFC 5280: ub-common-name
    return _certificate(subject, issuer[0], public, valid, extensions, signer)
