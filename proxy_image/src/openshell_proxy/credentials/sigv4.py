# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""AWS Signature Version 4: a request that the agent signed with placeholders is signed anew with the real keys.

Source: AWS General Reference, "Create a signed AWS API request"; spec 2.6. The client's signature is thrown away, the
header's and a presigned URL's; chunk-signed uploads cannot be signed anew and are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import re
import time
from collections.abc import Sequence
from urllib.parse import quote, unquote_plus, unquote_to_bytes

from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.http1 import Header

ALGORITHM = "AWS4-HMAC-SHA256"
AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
UNSIGNED = "UNSIGNED-PAYLOAD"
MAX_HASHED = 10 * 1024 * 1024  # bytes of a body that is gathered to be hashed
DEFAULT_REGION = "us-east-1"

_SAFE = "-_.~"
_SHA256 = re.compile(rb"[0-9a-f]{64}")
_SCOPE = re.compile(rb"/[0-9]{8}/([a-z0-9-]{1,64})/[a-z0-9-]{1,64}/aws4_request")
_CLIENTS = frozenset((b"authorization", b"x-amz-date", b"x-amz-security-token", b"x-amz-content-sha256", b"date"))
_PRESIGNED = frozenset(
    ("x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-expires", "x-amz-signedheaders", "x-amz-signature",
     "x-amz-security-token")
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Keys:
    """What AWS knows an account by."""

    access_key: str
    secret_key: str = dataclasses.field(repr=False)
    session_token: str = dataclasses.field(repr=False, default="")


@dataclasses.dataclass(frozen=True, slots=True)
class Scope:
    """``region`` "" is the one that the client names."""

    service: str
    region: str


@dataclasses.dataclass(frozen=True, slots=True)
class Unsigned:
    """A request without the client's signature. ``region`` and ``digest`` (of the body) are what that had told."""

    target: str
    fields: list[Header]
    region: str
    digest: str


def payload_is_hashed(signing: str, scope: Scope, request: Unsigned, empty: bool) -> bool:
    """Whether the signature covers the body: as the endpoint says or, for ``sigv4`` alone, as the service needs it.

    S3 takes an upload whose body is not covered, and nothing has to be gathered for it; a digest that the client has
    told is good for a body that passes as it is, since the service checks it.
    """
    if signing == "sigv4":
        return empty or bool(request.digest) or scope.service != "s3"
    return signing == "sigv4:body"


def unsigned(target: str, fields: Sequence[Header]) -> Unsigned:
    """Take the client's signature off. Raises Refusal for an upload whose chunks are signed."""
    region, digest = "", ""
    for name, value in fields:
        if name.lower() == b"authorization" and (found := _SCOPE.search(value)):
            region = found[1].decode()
        if name.lower() == b"x-amz-content-sha256":
            if value.startswith(b"STREAMING-"):
                detail = "an upload whose chunks are signed cannot be signed anew; let the client sign the whole"
                raise Refusal(400, "credential_injection_failed", detail)
            digest = value.decode("latin-1") if _SHA256.fullmatch(value) else ""
    path, mark, query = target.partition("?")
    pieces = [piece for piece in query.split("&") if piece.partition("=")[0].lower() not in _PRESIGNED]
    if found := _SCOPE.search(unquote_to_bytes(query)):
        region = region or found[1].decode()
    kept = [field for field in fields if field[0].lower() not in _CLIENTS]
    return Unsigned(path + (mark + "&".join(pieces) if pieces else ""), kept, region, digest)


def signed(method: str, request: Unsigned, keys: Keys, scope: Scope, payload: str) -> list[Header]:
    """The fields with a signature of now. *payload* is the body's SHA-256 or :data:`UNSIGNED`."""
    if not keys.access_key or not keys.secret_key:
        raise Refusal(
            500, "credential_injection_failed", f"there is no secret {' or '.join(AWS_KEYS[:2])} to sign with"
        )
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    fields = [*request.fields, (b"X-Amz-Date", moment.encode()), (b"X-Amz-Content-Sha256", payload.encode())]
    if keys.session_token:
        fields.append((b"X-Amz-Security-Token", keys.session_token.encode()))
    names = [name.lower() for name, _ in fields]
    covered = [name in (b"host", b"content-type") or name.startswith(b"x-amz-") for name in names]
    return [*fields, authorization(
        method, request.target, [field for field, take in zip(fields, covered, strict=True) if take], payload, keys,
        scope.service, scope.region or request.region or DEFAULT_REGION, moment,
    )]  # fmt: skip


def authorization(
    method: str, target: str, fields: Sequence[Header], payload: str, keys: Keys, service: str, region: str, moment: str
) -> Header:
    """The ``Authorization`` header over exactly *fields*; *moment* as in ``X-Amz-Date``."""
    values: dict[str, list[str]] = {}
    for name, value in fields:
        values.setdefault(name.decode("latin-1").lower(), []).append(" ".join(value.decode("latin-1").split()))
    names = sorted(values)
    path, _, query = target.partition("?")
    canonical = "\n".join(
        [method, _path(path, service), _query(query), *(f"{name}:{','.join(values[name])}" for name in names), "",
         ";".join(names), payload]
    )  # fmt: skip
    scope = f"{moment[:8]}/{region}/{service}/aws4_request"
    to_sign = "\n".join([ALGORITHM, moment, scope, hashlib.sha256(canonical.encode("latin-1")).hexdigest()])
    key = f"AWS4{keys.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    credential = f"{ALGORITHM} Credential={keys.access_key}/{scope}"
    return b"Authorization", f"{credential}, SignedHeaders={';'.join(names)}, Signature={signature}".encode()


def _path(path: str, service: str) -> str:
    """S3 signs the path encoded once, every other service the encoded path encoded again."""
    if service == "s3":
        return "/".join(quote(unquote_to_bytes(segment), safe=_SAFE) for segment in path.split("/"))
    return quote(path, safe="/" + _SAFE)


def _query(query: str) -> str:
    pairs = [piece.partition("=")[::2] for piece in query.split("&") if piece]
    encoded = [
        tuple(quote(unquote_plus(part, errors="surrogateescape"), safe=_SAFE) for part in pair) for pair in pairs
    ]
    return "&".join(f"{name}={value}" for name, value in sorted(encoded))
