# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tokens that expire: what a token endpoint may answer, when it is asked, and what a client is told in its stead."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from loopback import World
from openshell_proxy.credentials.tokens import MAX_TOKEN, PAUSE_SECONDS, Grant, RenewedToken
from openshell_proxy.refusal import Refusal
from test_credentials import (
    CANONICAL,
    TokenEndpoint,
    as_form,
    as_json,
    asked_for,
    oauth,
    rejecting,
    selling,
    start,
    told_by_the_sidecar,
)


class Endpoint:
    """A token endpoint without sockets, a clock, and the token of a grant that it sells."""

    def __init__(self, kind: Any = "refresh_token", secret: str = "refresh-secret", **more: str) -> None:
        self.now = 1000.0
        self.status = 200
        self.body = b""
        self.forms: list[bytes] = []
        self.token = RenewedToken("KEY", Grant(kind, "https://a.test/token", secret, **more), lambda: self.now)

    async def post(self, _to: object, _path: str, form: bytes) -> tuple[int, bytes]:
        self.forms.append(form)
        return self.status, self.body

    async def renew(self, body: object, rejected: bytes = b"") -> bytes:
        """The token after a renewal that would be answered with *body*."""
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.token.renew(self.post, rejected)
        return self.token.value


GOOD = {"access_token": "token-1"}


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        b"[1]",
        b"[" * 50_000,
        {"token": "x"},
        {"access_token": 1},
        {"access_token": ""},
        {"access_token": "two words"},
        {"access_token": "line\r\nbreak"},
        {"access_token": "x\x7f"},
        {"access_token": "t\u00f6ken"},
        {"access_token": "x" * (MAX_TOKEN + 1)},
        GOOD | {"expires_in": "soon"},
        GOOD | {"expires_in": None},
        GOOD | {"expires_in": 10**400},
        b'{"access_token": "x", "expires_in": NaN}',
        b'{"access_token": "x", "expires_in": 1e999}',
    ],
)
async def test_an_answer_without_a_token_that_can_be_used_is_a_failure(body: object) -> None:
    endpoint = Endpoint()
    with pytest.raises(Refusal) as caught:
        await endpoint.renew(body)
    assert (caught.value.status, caught.value.code) == (502, "token_grant_failed")
    assert endpoint.token.value == b""


@pytest.mark.parametrize("token", ["!~", "x" * MAX_TOKEN])
async def test_a_token_is_any_visible_text(token: str) -> None:
    assert await Endpoint().renew({"access_token": token}) == token.encode()


@pytest.mark.parametrize(
    ("told", "good"),
    [({}, 3300), ({"expires_in": 1000}, 700), ({"expires_in": "600"}, 300), ({"expires_in": 100}, 50)],
)
async def test_a_token_is_renewed_five_minutes_before_its_end_or_at_half_of_a_short_life(
    told: dict[str, object], good: int
) -> None:
    endpoint = Endpoint()
    await endpoint.renew(GOOD | told)
    endpoint.now += good - 1
    assert await endpoint.renew({"access_token": "token-2"}) == b"token-1"
    endpoint.now += 1
    assert await endpoint.renew({"access_token": "token-2"}) == b"token-2"


async def test_a_failure_is_followed_by_a_pause_in_which_the_old_token_serves_until_its_end() -> None:
    endpoint = Endpoint()
    await endpoint.renew(GOOD | {"expires_in": 100})
    endpoint.now += 99
    endpoint.status = 500
    assert await endpoint.renew(b"") == b"token-1"
    endpoint.now += 1
    with pytest.raises(Refusal, match="a moment ago"):
        await endpoint.renew(b"")
    assert len(endpoint.forms) == 2
    endpoint.now += PAUSE_SECONDS - 1
    endpoint.status = 200
    assert await endpoint.renew(GOOD) == b"token-1"
    assert len(endpoint.forms) == 3


async def test_a_token_that_was_refused_does_not_serve_while_there_is_no_other() -> None:
    endpoint = Endpoint()
    refused = await endpoint.renew(GOOD)
    endpoint.status = 500
    for _ in range(2):
        with pytest.raises(Refusal):
            await endpoint.renew(b"", refused)
    assert await endpoint.renew(b"", b"another-one") == refused


@pytest.mark.parametrize(("told", "then"), [("two", "two"), ("", "one"), (None, "one"), (5, "one")])
async def test_a_refresh_token_is_replaced_by_a_text_only(told: object, then: str) -> None:
    endpoint = Endpoint(secret="one")
    refused = await endpoint.renew(GOOD | {"refresh_token": told})
    await endpoint.renew({"access_token": "token-2"}, refused)
    assert endpoint.forms[1] == f"grant_type=refresh_token&refresh_token={then}".encode()


async def test_a_client_that_leaves_does_not_take_the_token_from_the_others() -> None:
    endpoint, gate = Endpoint(), asyncio.Event()

    async def post(to: object, path: str, form: bytes) -> tuple[int, bytes]:
        await gate.wait()
        return await endpoint.post(to, path, form)

    endpoint.body = json.dumps(GOOD).encode()
    one, other = (asyncio.ensure_future(endpoint.token.renew(post)) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    gate.set()
    await other
    assert (endpoint.token.value, len(endpoint.forms)) == (b"token-1", 1)


async def test_a_renewal_that_was_cancelled_is_no_failure() -> None:
    endpoint, errors = Endpoint(), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))

    async def cancelled(_to: object, _path: str, _form: bytes) -> tuple[int, bytes]:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await endpoint.token.renew(cancelled)
    assert await endpoint.renew(GOOD) == b"token-1"
    assert not errors


@pytest.mark.parametrize(
    ("more", "account", "head", "claims"),
    [
        ({}, {}, {"alg", "typ"}, {"iss", "aud", "iat", "exp"}),
        ({"scope": "s"}, {"private_key_id": "k"}, {"alg", "typ", "kid"}, {"iss", "aud", "iat", "exp", "scope"}),
    ],
)
async def test_a_service_account_claims_what_it_has(
    more: dict[str, str], account: dict[str, str], head: set[str], claims: set[str]
) -> None:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    told = {"client_email": "me@project.test", "private_key": pem.decode()} | account
    form = Grant("service_account", "https://a.test/token", json.dumps(told), **more).form("", 0.0).decode()
    parts = form.partition("assertion=")[2].split(".")
    assert [set(json.loads(base64.urlsafe_b64decode(part + "=="))) for part in parts[:2]] == [head, claims]


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://A.test", ("a.test", 443, "/")),
        ("https://a.test:8443/token/", ("a.test", 8443, "/token/")),
    ],
)
def test_where_a_token_is_bought(url: str, place: tuple[str, int, str]) -> None:
    grant = Grant("client_credentials", url, "secret", client_id="me")
    grant.check()
    assert grant.place == place


# Through the sidecar.


async def test_a_token_that_is_sold_once_more_is_not_tried_again(world: World) -> None:
    endpoint = TokenEndpoint()
    endpoint.more = {"access_token": "the-only-token"}
    there, seen = await start(world, rejecting("the-only-token"), oauth(await endpoint.start(world), "refresh_token"))
    (told,) = await asked_for(world, there.port)
    assert (told.status, len(seen), len(endpoint.asked)) == (401, 1, 2)


@pytest.mark.parametrize(("grant", "key"), [("client_credentials", "client_secret"), ("service_account", "assertion")])
async def test_a_client_is_told_a_refresh_token_only_where_it_told_one(world: World, grant: str, key: str) -> None:
    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = json.dumps({"client_email": "me@project.test", "private_key": pem.decode()})
    more = {"client_id": "me"} if grant == "client_credentials" else {"value": account}
    endpoint, sold, _, _ = await selling(world, grant, 0, **more)
    told = await told_by_the_sidecar(world, sold, *as_form(**{key: CANONICAL}))
    assert told.json == {"access_token": CANONICAL, "token_type": "Bearer", "expires_in": 1}
    assert len(endpoint.asked) == 1
    assert CANONICAL not in endpoint.asked[0].values()


async def test_only_a_post_buys(world: World) -> None:
    endpoint, sold, _, _ = await selling(world)
    told = await told_by_the_sidecar(world, sold, *as_form(refresh_token=CANONICAL), method="PUT")
    assert told.json["access_token"] == "token-1-of-many"
    assert endpoint.asked == [{"refresh_token": CANONICAL}]


async def test_what_is_no_token_request_is_the_endpoints_to_judge(world: World) -> None:
    endpoint, sold, _, _ = await selling(world)
    form, written = as_form(refresh_token=CANONICAL)[1], as_json(refresh_token=CANONICAL)[1]
    bodies = (
        ("application/json", b"[" * 60_000), ("application/json", b'{"refresh_token": 5}'),
        ("application/json", form), ("text/plain", written),
    )  # fmt: skip
    for kind, body in bodies:
        assert (await told_by_the_sidecar(world, sold, kind, body)).json["access_token"].startswith("token-")
    assert len(endpoint.asked) == len(bodies)
