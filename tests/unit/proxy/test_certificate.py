# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The authority's certificates and keys, read by another library than the one that made them."""

from __future__ import annotations

import datetime
import ipaddress
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from openshell_proxy import certificate
from openshell_proxy.authority import Authority, AuthorityError, new_authority
from openshell_proxy.libcrypto import CryptoError, Key, pem

NOW = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC)
PEM = serialization.Encoding.PEM
PKCS8, TRADITIONAL = serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL
PLAIN = serialization.NoEncryption()


def theirs(issuer: Authority) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issuer.certificate_pem)


def usage(found: x509.Certificate) -> set[str]:
    value = found.extensions.get_extension_for_class(x509.KeyUsage).value
    every = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    return {name for name in (*every, "key_cert_sign", "crl_sign") if getattr(value, name)}


def critical(found: x509.Certificate) -> dict[str, bool]:
    return {type(one.value).__name__: one.critical for one in found.extensions}


def test_an_authority_may_sign_leaves_and_no_other_authority() -> None:
    made = theirs(Authority(new_authority("One", 10)))
    made.verify_directly_issued_by(made)
    assert made.version == x509.Version.v3
    assert made.subject.rfc4514_string() == "O=OpenShell,CN=One"
    assert made.not_valid_after_utc - made.not_valid_before_utc == datetime.timedelta(days=11)
    limits = made.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (limits.ca, limits.path_length) == (True, 0)
    assert usage(made) == {"key_cert_sign", "crl_sign"}
    identifier = made.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert identifier == x509.SubjectKeyIdentifier.from_public_key(made.public_key())  # type: ignore[arg-type]
    assert critical(made) == {"BasicConstraints": True, "KeyUsage": True, "SubjectKeyIdentifier": False}


@pytest.mark.parametrize(
    ("host", "names", "common"),
    [
        ("a.example", [x509.DNSName("a.example")], "a.example"),
        ("192.0.2.7", [x509.IPAddress(ipaddress.ip_address("192.0.2.7"))], "192.0.2.7"),
        ("2001:db8::1", [x509.IPAddress(ipaddress.ip_address("2001:db8::1"))], "2001:db8::1"),
        ("a" * 60 + ".test", [x509.DNSName("a" * 60 + ".test")], "leaf"),
        ((("b" * 60 + ".") * 4) + "test", [x509.DNSName((("b" * 60 + ".") * 4) + "test")], "leaf"),
    ],
    ids=["name", "v4", "v6", "long", "longest"],
)
def test_a_leaf_is_for_its_host_alone(host: str, names: list[Any], common: str) -> None:
    issuer = Authority(new_authority())
    made = x509.load_pem_x509_certificate(issuer._leaf(host, NOW))
    made.verify_directly_issued_by(theirs(issuer))
    assert list(made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == names
    assert [one.value for one in made.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [common]
    assert made.not_valid_before_utc == NOW - datetime.timedelta(hours=24)
    assert made.not_valid_after_utc == NOW + datetime.timedelta(hours=72)
    limits = made.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (limits.ca, limits.path_length) == (False, None)
    assert usage(made) == {"digital_signature"}
    served = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(served) == [ExtendedKeyUsageOID.SERVER_AUTH]
    above = theirs(issuer).extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    told = made.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert (told.key_identifier, told.authority_cert_issuer) == (above.digest, None)
    own = made.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert own == x509.SubjectKeyIdentifier.from_public_key(made.public_key())  # type: ignore[arg-type]
    assert {name for name, must in critical(made).items() if must} == {"BasicConstraints", "KeyUsage"}


def test_a_name_that_is_not_ascii_gets_no_leaf() -> None:
    with pytest.raises(ValueError, match="ascii"):
        Authority(new_authority())._leaf("ä.example", NOW)


def test_serial_numbers_are_positive_and_differ() -> None:
    issuer = Authority(new_authority())
    numbers = [x509.load_pem_x509_certificate(issuer._leaf("a.example", NOW)).serial_number for _ in range(50)]
    assert len(set(numbers)) == 50
    assert all(0 < number < 1 << 159 for number in numbers)


@pytest.mark.parametrize("year", [1969, 1970, 2049, 2050, 2051])
def test_each_year_is_written_as_it_is_read(year: int) -> None:
    key, moment = Key.generate(), datetime.datetime(year, 12, 31, 23, 59, 58, tzinfo=datetime.UTC)
    made = certificate.leaf("a.test", key.public(), (moment, moment), (b"\x30\x00", b"id"), key)
    assert x509.load_der_x509_certificate(made).not_valid_after_utc == moment


def test_an_authority_of_before_goes_on() -> None:
    """One that another library made: with a key on another curve, and not PKCS #8."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Old, öld")])
    public = key.public_key()
    made = (
        x509.CertificateBuilder(name, name, public, 7, NOW, NOW + datetime.timedelta(days=9))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    text = b"words\n" + made.public_bytes(PEM) + key.private_bytes(PEM, TRADITIONAL, PLAIN)
    issuer = Authority(text)
    assert issuer.certificate_pem == made.public_bytes(PEM)
    found = x509.load_pem_x509_certificate(issuer._leaf("a.example", NOW))
    found.verify_directly_issued_by(made)
    assert found.issuer == name


def bad_authorities() -> dict[str, tuple[bytes, str]]:
    key, certificate_of_it = (part + b"-----\n" for part in new_authority().split(b"-----\n-----BEGIN CERT"))
    certificate_of_it = b"-----BEGIN CERT" + certificate_of_it[:-6]
    other = new_authority().partition(b"-----BEGIN CERT")[0]
    loaded = serialization.load_pem_private_key(key, None)
    secret = loaded.private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"x"))
    old = loaded.private_bytes(PEM, TRADITIONAL, serialization.BestAvailableEncryption(b"x"))
    bare = x509.CertificateBuilder(x509.Name([]), x509.Name([]), loaded.public_key(), 7, NOW, NOW)  # type: ignore[arg-type]
    unnamed = bare.sign(loaded, hashes.SHA256()).public_bytes(PEM)  # type: ignore[arg-type]
    edwards = ed25519.Ed25519PrivateKey.generate()
    signed = x509.CertificateBuilder(x509.Name([]), x509.Name([]), edwards.public_key(), 7, NOW, NOW).add_extension(
        x509.SubjectKeyIdentifier(b"x"), critical=False
    )
    of_edwards = signed.sign(edwards, None).public_bytes(PEM)
    neither, apart = "does not hold a PEM key and certificate", "do not belong together"
    return {
        "empty": (b"", neither),
        "no key": (certificate_of_it, neither),
        "no certificate": (key, neither),
        "another's": (other + certificate_of_it, apart),
        "encrypted": (secret + certificate_of_it, neither),
        "encrypted as of old": (old + certificate_of_it, neither),
        "not ascii": (b"\xff" + key + certificate_of_it, neither),
        "not base64": (key.replace(b"\n", b"\n=", 1) + certificate_of_it, neither),
        "no DER": (pem("PRIVATE KEY", b"hello") + certificate_of_it, neither),
        "no certificate's DER": (key + pem("CERTIFICATE", b"hello"), neither),
        "more than a certificate": (key + pem("CERTIFICATE", _der_of(certificate_of_it) + b"\0"), neither),
        "no key identifier": (key + unnamed, neither),
        "another kind of key": (edwards.private_bytes(PEM, PKCS8, PLAIN) + of_edwards, "not an elliptic-curve key"),
    }


def _der_of(text: bytes) -> bytes:
    return x509.load_pem_x509_certificate(text).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("what", bad_authorities())
def test_what_is_no_authority_is_refused(what: str) -> None:
    text, why = bad_authorities()[what]
    with pytest.raises(AuthorityError, match=why):
        Authority(text)


def test_a_key_that_follows_itself_is_refused() -> None:
    key = serialization.load_pem_private_key(Key.generate().private(), None)
    der = key.private_bytes(serialization.Encoding.DER, PKCS8, PLAIN)
    assert Key.load(pem("PRIVATE KEY", der).decode()).kind == "EC"
    with pytest.raises(CryptoError):
        Key.load(pem("PRIVATE KEY", der + b"\0").decode())


def test_numbers_that_make_no_key_are_refused() -> None:
    numbers = rsa.generate_private_key(65537, 2048).private_numbers()
    good = numbers.private_key(unsafe_skip_rsa_key_validation=True)
    wrong = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, numbers.d ^ 2, numbers.dmp1, numbers.dmq1, numbers.iqmp, numbers.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)
    assert Key.load(good.private_bytes(PEM, TRADITIONAL, PLAIN).decode()).kind == "RSA"
    with pytest.raises(CryptoError):
        Key.load(wrong.private_bytes(PEM, PKCS8, PLAIN).decode())


def test_signatures_are_what_others_verify() -> None:
    made = Key.generate()
    elliptic = serialization.load_der_public_key(made.public())
    assert isinstance(elliptic, ec.EllipticCurvePublicKey)
    elliptic.verify(made.sign(b"data"), b"data", ec.ECDSA(hashes.SHA256()))
    key = rsa.generate_private_key(65537, 2048)
    signature = Key.load(key.private_bytes(PEM, PKCS8, PLAIN).decode()).sign(b"data")
    key.public_key().verify(signature, b"data", padding.PKCS1v15(), hashes.SHA256())


def test_a_refused_key_leaves_no_error_behind() -> None:
    """OpenSSL keeps errors in a queue, from which ``ssl`` would report them for something else."""
    from openshell_proxy import libcrypto

    with pytest.raises(CryptoError):
        Key.load(pem("PRIVATE KEY", b"hello").decode())
    peek = libcrypto._crypto.ERR_peek_error
    peek.argtypes = ()
    assert peek() == 0
