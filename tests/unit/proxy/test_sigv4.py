# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Requests to AWS through a whole sidecar: what is left of the client's signature, and what the new one covers."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from loopback import World
from test_credentials import AWS, ok, request, resigned, start

EMPTY = hashlib.sha256(b"").hexdigest()
BODY = b"the body"
DIGEST = hashlib.sha256(BODY).hexdigest()
META = "X-Amz-Meta-A: 1"
SCOPE = "openshell:resolve:env:AWS_ACCESS_KEY_ID/20200101/{}/s3/aws4_request"
HEADER = "Authorization: AWS4-HMAC-SHA256 Credential=" + SCOPE.format("eu-west-1") + ", SignedHeaders=host, Signature=0"
PRESIGNED = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=" + SCOPE.format("ap-south-1").replace("/", "%2F")
    + "&X-Amz-Date=20200101T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&x-amz-signature=0"
    + "&X-Amz-Security-Token=openshell%3Aresolve%3Aenv%3AAWS_SESSION_TOKEN"
)  # fmt: skip


class Amazon:
    """A sidecar that signs with *secrets* as *endpoint* says, and what of one request arrives."""

    def __init__(self, world: World, secrets: list[dict[str, Any]] = AWS, service: str = "s3", **endpoint: Any) -> None:
        self.world, self.secrets, self.service = world, secrets, service
        self.endpoint = {"credential_signing": "sigv4", "signing_service": service, **endpoint}

    async def asked(self, target: str, *fields: str, body: bytes = b"") -> tuple[str, dict[str, str]]:
        """The target and the fields that arrive."""
        there, seen = await start(self.world, ok, *self.secrets, **self.endpoint)
        self.port = there.port
        client = await self.world.tunnel(there.port)
        await client.send(request(there.port, target, "PUT", META, *fields, body=body))
        assert (await client.response()).status == 200
        line, got, _ = seen[0]
        return line.split(" ")[1], got

    def scope(self, target: str, got: dict[str, str]) -> str:
        """Region, service and type that the signature is for, which is right."""
        return resigned(f"PUT {target} HTTP/1.1", got, self.port, self.service, got["x-amz-content-sha256"])


def covered(got: dict[str, str]) -> set[str]:
    return set(got["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";"))


@pytest.mark.parametrize(
    ("service", "told", "body", "payload"),
    [
        ("s3", None, b"", EMPTY),
        ("s3", None, BODY, "UNSIGNED-PAYLOAD"),
        ("s3", "UNSIGNED-PAYLOAD", BODY, "UNSIGNED-PAYLOAD"),
        ("s3", "0" * 64, BODY, "0" * 64),
        ("s3", "none of the kind", BODY, "UNSIGNED-PAYLOAD"),
        ("bedrock", None, b"", EMPTY),
        ("bedrock", "UNSIGNED-PAYLOAD", BODY, DIGEST),
        ("bedrock", DIGEST.upper(), BODY, DIGEST),
    ],
)
async def test_the_signature_covers_a_body_as_its_service_needs_it(
    world: World, service: str, told: str | None, body: bytes, payload: str
) -> None:
    amazon = Amazon(world, service=service)
    target, got = await amazon.asked("/a", *[f"X-Amz-Content-Sha256: {told}"] * (told is not None), body=body)
    assert got["x-amz-content-sha256"] == payload
    assert amazon.scope(target, got) == f"us-east-1/{service}/aws4_request"


async def test_a_body_without_a_length_is_none_that_is_empty(world: World) -> None:
    there, seen = await start(world, ok, *AWS, credential_signing="sigv4", signing_service="s3")
    client = await world.tunnel(there.port)
    await client.send(request(there.port, "/a", "PUT", "Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n")
    assert (await client.response()).status == 200
    assert (seen[0][1]["x-amz-content-sha256"], seen[0][2]) == ("UNSIGNED-PAYLOAD", b"x")


async def test_of_the_clients_signature_nothing_arrives(world: World) -> None:
    amazon = Amazon(world)
    fields = (HEADER, "X-Amz-Date: 20200101T000000Z", "Date: Wed, 01 Jan 2020 00:00:00 GMT", "Content-Type: text/plain")
    target, got = await amazon.asked(f"/a%20b?{PRESIGNED}", *fields, body=b"x")
    assert target == "/a%20b"
    assert "date" not in got
    assert amazon.scope(target, got) == "eu-west-1/s3/aws4_request", "the header's region counts before the URL's"
    names = {"host", "content-type", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token", "x-amz-meta-a"}
    assert covered(got) == names, "nothing else, since it may change on its way"


@pytest.mark.parametrize(
    ("fields", "endpoint", "region"),
    [
        ((), {}, "ap-south-1"),
        ((), {"signing_region": "eu-north-1"}, "eu-north-1"),
        ((HEADER,), {"signing_region": "eu-north-1"}, "eu-north-1"),
        (("X-Other: /" + SCOPE.format("eu-west-1").partition("/")[2],), {}, "ap-south-1"),
    ],
)
async def test_a_presigned_url_keeps_the_rest_of_its_query(
    world: World, fields: tuple[str, ...], endpoint: dict[str, str], region: str
) -> None:
    amazon = Amazon(world, **endpoint)
    target, got = await amazon.asked(f"/a?b=2&&{PRESIGNED}&a=x+y", *fields)
    assert target == "/a?b=2&&a=x+y"
    assert amazon.scope("/a?a=x%20y&b=2", got) == f"{region}/s3/aws4_request"


async def test_a_request_that_names_no_region_is_for_the_first_one(world: World) -> None:
    amazon = Amazon(world)
    target, got = await amazon.asked("/a?", "X-Other: /20200101/eu-west-1/s3/aws4_request")
    assert amazon.scope(target, got) == "us-east-1/s3/aws4_request"


async def test_without_a_session_token_none_is_sent(world: World) -> None:
    _, got = await Amazon(world, AWS[:2]).asked("/a", HEADER)
    assert "x-amz-security-token" not in got
    assert covered(got) == {"host", "x-amz-date", "x-amz-content-sha256", "x-amz-meta-a"}


@pytest.mark.parametrize("missing", [0, 1])
async def test_without_one_of_the_keys_nothing_is_sent(world: World, missing: int) -> None:
    there, seen = await start(world, ok, AWS[1 - missing], AWS[2], credential_signing="sigv4", signing_service="s3")
    client = await world.tunnel(there.port)
    await client.send(request(there.port))
    refused = (await client.response()).json
    assert (refused["error"], seen) == ("credential_injection_failed", [])
    assert "to sign with" in refused["detail"]
