# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Certificates that are made here: a new authority's own, and those of the hosts that it speaks for.

All of the library for it, which brings an OpenSSL of its own, about 10 MiB, is imported by this module alone: it is
loaded when the first certificate is needed. Profiles: RFC 5280; what Python 3.13's strict verification, Go, Java,
OpenSSL and Node accept was measured.
"""

from __future__ import annotations

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from openshell_proxy.authority import LEAF_HOURS, AuthorityError

AUTHORITY_DAYS = 3650
SLACK_HOURS = 24  # a client's clock may go behind ours, and a host's may be set back

SubjectKey = ec.EllipticCurvePrivateKey


def new_authority(name: str = "OpenShell Sandbox CA", days: int = AUTHORITY_DAYS) -> bytes:
    """Key and self-signed certificate of a new authority: one PEM text, EC P-256."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "OpenShell")]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=SLACK_HOURS))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _key_pem(key) + certificate.public_bytes(serialization.Encoding.PEM)


def _key_usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: SubjectKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Mint:
    """Makes leaf certificates, signed by the authority whose key and certificate *pem* holds. One key serves all.

    Raises :class:`AuthorityError` where it holds something else.
    """

    def __init__(self, pem: bytes) -> None:
        try:
            key = serialization.load_pem_private_key(pem, None)
            self.certificate = x509.load_pem_x509_certificate(pem)
        except (ValueError, TypeError):
            raise AuthorityError("the authority's file does not hold a PEM key and certificate") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AuthorityError("the authority's key is not an elliptic-curve key")
        if key.public_key() != self.certificate.public_key():
            raise AuthorityError("the authority's key and certificate do not belong together")
        self._key = key
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._leaf_key_pem = _key_pem(self._leaf_key)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def leaf(self, host: str, now: datetime.datetime) -> bytes:
        """A certificate for *host*, with the key of all leaves before it: PEM."""
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            alternative = x509.DNSName(host)
        authority_id = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        public = self._leaf_key.public_key()
        common_name = host if len(host) <= 64 else "leaf"  # RFC 5280: ub-common-name
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=SLACK_HOURS))
            .not_valid_after(now + datetime.timedelta(hours=LEAF_HOURS))
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return self._leaf_key_pem + leaf.public_bytes(serialization.Encoding.PEM)
