# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The certificate authority that the agent trusts, and a TLS context for every host that it asks for.

Profiles: RFC 5280; what Python 3.13's strict verification, Go, Java, OpenSSL and Node accept was measured.
"""

from __future__ import annotations

import datetime
import functools
import ipaddress
import os
import re
import ssl
from collections import OrderedDict

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
LEAF_HOURS = 72
RENEW_HOURS = 24
SLACK_HOURS = 24  # a client's clock may go behind ours, and a host's may be set back
CONTEXTS = 512
_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+")  # how openssl-rehash(1) names a certificate

SubjectKey = ec.EllipticCurvePrivateKey


class AuthorityError(Exception):
    """The authority's file is missing or not what it must be; one sentence, never its content."""


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


def names(server_name: str | None, host: str) -> bool:
    """Whether a TLS hello with *server_name*, or without any, may be meant for *host*."""
    return server_name is None or server_name.lower().rstrip(".") == host


class Authority:
    """Mints leaf certificates. One leaf key serves all hosts; contexts are kept for the hosts used last."""

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
        self._contexts: OrderedDict[tuple[str, bool], tuple[datetime.datetime, ssl.SSLContext]] = OrderedDict()

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def context(self, host: str, http2: bool = False) -> ssl.SSLContext:
        """A server context with a valid leaf for *host*, which must also be what the client's SNI says, if any.

        With *http2* that is what a client gets that offers it; without, one that offers nothing else still gets it, so
        that it can be told over it that the origin does not speak it.
        """
        now = datetime.datetime.now(datetime.UTC)
        found = self._contexts.get((host, http2))
        # One of a moment that is yet to come was made before the clock was set back; it may not be valid now.
        if found is not None and found[0] <= now < found[0] + datetime.timedelta(hours=LEAF_HOURS - RENEW_HOURS):
            self._contexts.move_to_end((host, http2))
            return found[1]
        context = self._new_context(host, now, http2)
        self._contexts[host, http2] = (now, context)
        if len(self._contexts) > CONTEXTS:
            self._contexts.popitem(last=False)
        return context

    def _new_context(self, host: str, now: datetime.datetime, http2: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 1  # a client that comes back is given a new one; a second would cost every handshake
        context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1", "h2"])
        _load_chain(context, self._leaf_key_pem + self._leaf(host, now))

        def named(_socket: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> int | None:
            return None if names(name, host) else int(ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)

        context.sni_callback = named
        return context

    def _leaf(self, host: str, now: datetime.datetime) -> bytes:
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
        return leaf.public_bytes(serialization.Encoding.PEM)


def _load_chain(context: ssl.SSLContext, pem: bytes) -> None:
    """Load key and certificate from memory: ssl takes files only, and a key must not lie on a disk."""
    descriptor = os.memfd_create("leaf", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


class UpstreamTls:
    """Client contexts with the same trust: system roots and *extra_roots* (PEM, may be empty).

    ``http1`` offers HTTP/1.1 alone, ``http2`` both, as the origin likes. The second one reads all roots again, so it is
    made for the first client that offers HTTP/2 and not before.
    """

    def __init__(self, extra_roots: str) -> None:
        self.extra_roots = extra_roots
        self.http1 = _client_context(extra_roots, ["http/1.1"])

    @functools.cached_property
    def http2(self) -> ssl.SSLContext:
        return _client_context(self.extra_roots, ["h2", "http/1.1"])


def _client_context(extra_roots: str, alpn: list[str]) -> ssl.SSLContext:
    context = ssl.create_default_context(capath=_hashed_roots())
    context.set_alpn_protocols(alpn)
    if extra_roots:
        context.load_verify_locations(cadata=extra_roots)
    return context


def _hashed_roots() -> str | None:
    """The directory of system roots by hash, of which OpenSSL reads those that it needs; None where there is none.

    The bundle with the same roots would be parsed whole: 45 ms of the start and 2 MiB.
    """
    paths = ssl.get_default_verify_paths()
    if paths.openssl_cafile_env in os.environ or paths.openssl_capath_env in os.environ or paths.capath is None:
        return None
    hashed = any(_HASHED.fullmatch(name) for name in os.listdir(paths.capath))
    return paths.capath if hashed else None


def certificates(pem: str) -> list[str]:
    """The certificates of a PEM text, each with a newline at its end, without what stands between them."""
    found = []
    for part in pem.split("-----BEGIN CERTIFICATE-----")[1:]:
        body, end, _ = part.partition("-----END CERTIFICATE-----")
        if end:
            found.append(f"-----BEGIN CERTIFICATE-----{body}-----END CERTIFICATE-----\n")
    return found


def bundle(*pems: str) -> str:
    """The union of PEM bundles in order, every certificate once."""
    unique = {"".join(one.split()): one for pem in pems for one in certificates(pem)}
    return "".join(unique.values())
