# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Private keys, by the OpenSSL that Python's ``ssl`` has loaded anyway.

A library of its own for them would bring a second OpenSSL into every sidecar: a quarter of its memory.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import re
import ssl
import weakref
from ctypes import byref, c_char_p, c_int, c_long, c_size_t, c_void_p
from typing import Any, Literal

_EC, _RSA, _P256 = 408, 6, 415  # NID_X9_62_id_ecPublicKey, NID_rsaEncryption, NID_X9_62_prime256v1
_KINDS: dict[int, Literal["EC", "RSA"]] = {_EC: "EC", _RSA: "RSA"}
_PEM_KEY = re.compile(r"-----BEGIN ((?:EC |RSA )?PRIVATE KEY)-----\s([A-Za-z0-9+/=\s]+)-----END \1-----")
_P = c_void_p

# What each function returns and takes (crypto(7)); an undeclared argument would be cut to 32 bits.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "ASN1_STRING_get0_data": (_P, _P),
    "ASN1_STRING_length": (c_int, _P),
    "ERR_clear_error": (None,),
    "EVP_DigestSign": (c_int, _P, c_char_p, _P, c_char_p, c_size_t),
    "EVP_DigestSignInit": (c_int, _P, _P, _P, _P, _P),
    "EVP_MD_CTX_free": (None, _P),
    "EVP_MD_CTX_new": (_P,),
    "EVP_PKEY2PKCS8": (_P, _P),
    "EVP_PKEY_CTX_free": (None, _P),
    "EVP_PKEY_CTX_new": (_P, _P, _P),
    "EVP_PKEY_CTX_new_id": (_P, c_int, _P),
    "EVP_PKEY_CTX_set_ec_paramgen_curve_nid": (c_int, _P, c_int),
    "EVP_PKEY_check": (c_int, _P),
    "EVP_PKEY_free": (None, _P),
    "EVP_PKEY_get_base_id": (c_int, _P),
    "EVP_PKEY_get_size": (c_int, _P),
    "EVP_PKEY_keygen": (c_int, _P, _P),
    "EVP_PKEY_keygen_init": (c_int, _P),
    "EVP_sha256": (_P,),
    "PKCS8_PRIV_KEY_INFO_free": (None, _P),
    "X509_check_private_key": (c_int, _P, _P),
    "X509_free": (None, _P),
    "X509_get0_subject_key_id": (_P, _P),
    "X509_get_subject_name": (_P, _P),
    "d2i_AutoPrivateKey": (_P, _P, _P, c_long),
    "d2i_X509": (_P, _P, _P, c_long),
    "i2d_PKCS8_PRIV_KEY_INFO": (c_int, _P, _P),
    "i2d_PUBKEY": (c_int, _P, _P),
    "i2d_X509_NAME": (c_int, _P, _P),
}


def _library() -> ctypes.CDLL:
    """The very library that ``ssl`` is linked to: one of the same name is not loaded twice (dlopen(3))."""
    library = ctypes.CDLL(f"libcrypto.so.{ssl.OPENSSL_VERSION_INFO[0]}")
    for name, (result, *arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


_crypto = _library()


class CryptoError(ValueError):
    """OpenSSL refused; never the content of what it refused."""


def _good(result: Any) -> Any:
    """A pointer that is not null or a number above zero. Raises :class:`CryptoError`."""
    if not result or (isinstance(result, int) and result < 0):
        _crypto.ERR_clear_error()  # or ssl would take it for the reason of its own next failure
        raise CryptoError("OpenSSL refused")
    return result


def _decode(function: Any, data: bytes) -> int:
    """The object whose encoding *data* is, all of it."""
    buffer = ctypes.create_string_buffer(data, len(data))
    begin = ctypes.addressof(buffer)
    at = c_void_p(begin)
    found: int = _good(function(None, byref(at), len(data)))
    if at.value != begin + len(data):
        (_crypto.X509_free if function is _crypto.d2i_X509 else _crypto.EVP_PKEY_free)(found)
        raise CryptoError("something follows")
    return found


def _encode(function: Any, thing: int) -> bytes:
    buffer = ctypes.create_string_buffer(_good(function(thing, None)))
    at = c_void_p(ctypes.addressof(buffer))
    if function(thing, byref(at)) != len(buffer):
        raise CryptoError("OpenSSL refused")
    return buffer.raw


def pem(label: str, der: bytes) -> bytes:
    """RFC 7468."""
    text = base64.b64encode(der)
    lines = b"\n".join(text[start : start + 64] for start in range(0, len(text), 64))
    return b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (label.encode(), lines, label.encode())


class Key:
    """A private key."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        weakref.finalize(self, _crypto.EVP_PKEY_free, handle)

    @classmethod
    def generate(cls) -> Key:
        """A new one on the curve P-256."""
        context = _good(_crypto.EVP_PKEY_CTX_new_id(_EC, None))
        try:
            made = c_void_p()
            _good(_crypto.EVP_PKEY_keygen_init(context))
            _good(_crypto.EVP_PKEY_CTX_set_ec_paramgen_curve_nid(context, _P256))
            _good(_crypto.EVP_PKEY_keygen(context, byref(made)))
        finally:
            _crypto.EVP_PKEY_CTX_free(context)
        return cls(_good(made.value))

    @classmethod
    def load(cls, text: str) -> Key:
        """The first key of a PEM text that no password protects. Raises :class:`CryptoError`."""
        found = _PEM_KEY.search(text)
        if found is None:
            raise CryptoError("no private key")
        try:
            der = base64.b64decode("".join(found[2].split()), validate=True)
        except binascii.Error:
            raise CryptoError("not base64") from None
        key = cls(_decode(_crypto.d2i_AutoPrivateKey, der))
        key._check()
        return key

    def _check(self) -> None:
        """That its numbers make a key."""
        context = _good(_crypto.EVP_PKEY_CTX_new(self._handle, None))
        try:
            _good(_crypto.EVP_PKEY_check(context))
        finally:
            _crypto.EVP_PKEY_CTX_free(context)

    @property
    def kind(self) -> Literal["EC", "RSA", "other"]:
        return _KINDS.get(_crypto.EVP_PKEY_get_base_id(self._handle), "other")

    def public(self) -> bytes:
        """The public key as certificates have it: SubjectPublicKeyInfo in DER."""
        return _encode(_crypto.i2d_PUBKEY, self._handle)

    def private(self) -> bytes:
        """PEM, PKCS #8."""
        info = _good(_crypto.EVP_PKEY2PKCS8(self._handle))
        try:
            return pem("PRIVATE KEY", _encode(_crypto.i2d_PKCS8_PRIV_KEY_INFO, info))
        finally:
            _crypto.PKCS8_PRIV_KEY_INFO_free(info)

    def sign(self, data: bytes) -> bytes:
        """With SHA-256; ECDSA, or RSA by PKCS #1 v1.5."""
        context = _good(_crypto.EVP_MD_CTX_new())
        try:
            size = c_size_t(_good(_crypto.EVP_PKEY_get_size(self._handle)))
            signature = ctypes.create_string_buffer(size.value)
            _good(_crypto.EVP_DigestSignInit(context, None, _crypto.EVP_sha256(), None, self._handle))
            _good(_crypto.EVP_DigestSign(context, signature, byref(size), data, len(data)))
        finally:
            _crypto.EVP_MD_CTX_free(context)
        return signature.raw[: size.value]

    def issuer(self, certificate: bytes) -> tuple[bytes, bytes] | None:
        """Subject (DER) and key identifier of a certificate (DER) of this key; None where it is another's.

        Raises :class:`CryptoError` where it is no certificate or has no key identifier.
        """
        found = _decode(_crypto.d2i_X509, certificate)
        try:
            if _crypto.X509_check_private_key(found, self._handle) != 1:
                _crypto.ERR_clear_error()
                return None
            identifier = _good(_crypto.X509_get0_subject_key_id(found))
            begin, length = _crypto.ASN1_STRING_get0_data(identifier), _crypto.ASN1_STRING_length(identifier)
            subject = _encode(_crypto.i2d_X509_NAME, _good(_crypto.X509_get_subject_name(found)))
            return subject, ctypes.string_at(_good(begin), _good(length))
        finally:
            _crypto.X509_free(found)
