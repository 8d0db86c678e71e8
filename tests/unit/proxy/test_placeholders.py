# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Placeholders in heads and bodies: what is replaced, what is refused, and that no cut of a stream changes either."""

from __future__ import annotations

import base64
import contextlib
import gzip
import itertools
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote_plus, urlencode

import openshell_proxy.credentials.streams as streams
import openshell_proxy.credentials.vault as vaults
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from openshell_proxy.credentials.document import SecretsError, load_vault
from openshell_proxy.credentials.passage import secret_forms
from openshell_proxy.credentials.placeholders import MARKERS, reserved_key
from openshell_proxy.credentials.rewrite import Access
from openshell_proxy.credentials.streams import Echoes, Inflated, Mask, Resolve, Transform, body_transform, is_json
from openshell_proxy.credentials.vault import Secret, Vault
from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.http1 import ProtocolError

RANDOM = "ghp_R4nd0mR4nd0mR4nd0m"
VALUE = 'ghp_s3cr3t-"value"\\12'  # of the length of RANDOM; JSON must escape it
OTHER = "0ther/t0ken+&="
CANONICAL = "openshell:resolve:env:GITHUB_TOKEN"
ELSEWHERE = "openshell:resolve:env:ELSEWHERE"
SECRETS = [
    {"name": "github", "env": "GITHUB_TOKEN", "value": VALUE, "hosts": ["api.example.com"], "random": RANDOM},
    {"name": "OTHER", "value": OTHER, "hosts": ["*.example.com"], "ports": [443], "paths": ["/v1/**"]},
    {"name": "ELSEWHERE", "value": "nowhere-else", "hosts": ["elsewhere.example.com"]},
]


def access(
    host: str = "api.example.com", port: int = 443, path: str = "/v1/x", secrets: Sequence[object] = SECRETS
) -> Access:
    vault = load_vault(json.dumps({"secrets": secrets}))
    return Access(vault, vault.site(host, port), host, port, path)


def header(value: str, **place: object) -> str:
    (found,) = access(**place).fields([(b"X-Any", value.encode())])  # type: ignore[arg-type]
    return found[1].decode()


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (CANONICAL, VALUE),
        (f"Bearer {CANONICAL}", f"Bearer {VALUE}"),
        ("token openshell:resolve:env:v12_GITHUB_TOKEN", f"token {VALUE}"),
        (f"openshell:resolve:env:s{'0a' * 32}_github", VALUE),
        (RANDOM, VALUE),
        (f"a={RANDOM}; b=2", f"a={VALUE}; b=2"),
        ("a=xoxb-OPENSHELL-RESOLVE-ENV-GITHUB_TOKEN; b=2", f"a={VALUE}; b=2"),
        (basic(f"x-access-token:{CANONICAL}"), basic(f"x-access-token:{VALUE}")),
        (basic(f"{RANDOM}:{CANONICAL}").replace("Basic", "bAsIc"), basic(f"{VALUE}:{VALUE}").replace("Basic", "bAsIc")),
        ("nothing of the kind", "nothing of the kind"),
        (basic("user:password"), basic("user:password")),
        ("Basic !no base64!", "Basic !no base64!"),
    ],
)
def test_a_header_gets_the_secret(before: str, after: str) -> None:
    assert header(before) == after


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("Bearer openshell:resolve:env:UNKNOWN", "credential_injection_failed"),
        ("x-OPENSHELL-RESOLVE-ENV-UNKNOWN", "credential_injection_failed"),
        (basic("user:openshell:resolve:env:UNKNOWN"), "credential_injection_failed"),
        (f"a={CANONICAL}; b=2", "invalid_credential_placeholder"),
        (f"one two {CANONICAL}x y", "invalid_credential_placeholder"),
        ("openshell%3Aresolve%3Aenv%3AGITHUB_TOKEN", "invalid_credential_placeholder"),
        ("-OPENSHELL-RESOLVE-ENV-GITHUB_TOKEN", "invalid_credential_placeholder"),
        ("x-OPENSHELL-RESOLVE-ENV-GITHUB_TOKEN.x", "invalid_credential_placeholder"),
        (f"{'x' * 65}-OPENSHELL-RESOLVE-ENV-GITHUB_TOKEN", "invalid_credential_placeholder"),
        ("".join(f"%{ord(char):02x}" for char in RANDOM), "invalid_credential_placeholder"),
        (basic("user:openshell%3Aresolve%3Aenv%3AGITHUB_TOKEN"), "invalid_credential_placeholder"),
        ("openshell:resolve:env:", "invalid_credential_placeholder"),
        (ELSEWHERE, "credential_endpoint_mismatch"),
        (basic(f"user:{ELSEWHERE}"), "credential_endpoint_mismatch"),
    ],
)
def test_a_header_that_cannot_be_resolved_is_refused(value: str, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        header(value)
    assert caught.value.code == code
    told = caught.value.detail + json.dumps(caught.value.more)
    assert "openshell:resolve" not in told
    assert "nowhere-else" not in told


def test_the_name_of_a_header_is_no_place_for_one() -> None:
    with pytest.raises(Refusal) as caught:
        access().fields([(b"x-OPENSHELL-RESOLVE-ENV-GITHUB_TOKEN", b"1")])
    assert caught.value.code == "invalid_credential_placeholder"


@pytest.mark.parametrize(
    ("place", "bound"),
    [
        ({}, True),
        ({"host": "b.example.com"}, True),
        ({"host": "example.com"}, False),
        ({"host": "a.b.example.com"}, False),
        ({"host": "api.example.com.evil.test"}, False),
        ({"port": 8443}, False),
        ({"path": "/v2/x"}, False),
    ],
)
def test_host_port_and_path_bind(place: dict[str, object], bound: bool) -> None:
    asked = "openshell:resolve:env:OTHER"
    if bound:
        assert header(asked, **place) == OTHER
        return
    with pytest.raises(Refusal) as caught:
        header(asked, **place)
    assert (caught.value.status, caught.value.code) == (403, "credential_endpoint_mismatch")


@pytest.mark.parametrize(
    ("target", "resolved", "redacted"),
    [
        ("/v1/x?a=b%20c+d", "/v1/x?a=b%20c+d", "/v1/x?a=b%20c+d"),
        (f"/bot{RANDOM}/send", "/botghp_s3cr3t-%22value%22%5C12/send", "/bot[CREDENTIAL]/send"),
        (f"/v1/x?k={CANONICAL}&l=%2F", "/v1/x?k=ghp_s3cr3t-%22value%22%5C12&l=%2F", "/v1/x?k=[CREDENTIAL]&l=%2F"),
        ("/v1/x?k=openshell%3Aresolve%3Aenv%3AOTHER", "/v1/x?k=0ther/t0ken%2B%26%3D", "/v1/x?k=[CREDENTIAL]"),
        ("/v1/x?k=a%26openshell:resolve:env:OTHER", "/v1/x?k=a%260ther/t0ken%2B%26%3D", "/v1/x?k=a&[CREDENTIAL]"),
    ],
)
def test_a_target_gets_the_secret_and_policy_sees_none(target: str, resolved: str, redacted: str) -> None:
    asked = access()
    if "bot" in target:  # a backslash in a path would change which path is meant
        with pytest.raises(Refusal) as caught:
            asked.target(target)
        assert caught.value.code == "credential_injection_failed"
    else:
        assert asked.target(target) == resolved
    assert asked.vault.redacted(target) == redacted


def test_only_the_part_of_a_target_that_holds_a_placeholder_is_encoded_anew() -> None:
    asked = access(host="a.test", secrets=[{"name": "K", "value": "v;a&l", "hosts": ["a.test"]}])
    given = "/a%2fb;c/%7e+openshell:resolve:env:K;/%7e?a=%2F;%7e&b=%7e+openshell:resolve:env:K;&openshell"
    made = "/a%2fb;c/~+v%3Ba&l%3B/%7e?a=%2F;%7e&b=~%20v;a%26l;&openshell"
    assert asked.target(given) == made


@pytest.mark.parametrize(
    ("target", "code"),
    [
        (f"/v1/x?{CANONICAL}=1", "invalid_credential_placeholder"),
        ("/v1/x?openshell%3aresolve%3aenv%3aOTHER", "invalid_credential_placeholder"),
        (f"/{ELSEWHERE}", "credential_endpoint_mismatch"),
        (f"/v1?k={ELSEWHERE}", "credential_endpoint_mismatch"),
        ("/openshell%3Aresolve:env:NONE", "credential_injection_failed"),
        ("/v1/openshell:resolve:env:OTHER", "credential_injection_failed"),  # a "/" in the value
    ],
)
def test_a_target_that_cannot_be_resolved_is_refused(target: str, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        access().target(target)
    assert caught.value.code == code


def run(transform: Transform, pieces: list[bytes]) -> bytes:
    return b"".join([*map(transform.feed, pieces), transform.end()])


def test_secrets_in_json_are_escaped() -> None:
    sent = json.dumps({"token": CANONICAL, "again": [RANDOM, "x-OPENSHELL-RESOLVE-ENV-OTHER"]}).encode()
    got = run(body_transform(access(), b"application/json; charset=utf-8"), [sent])
    assert json.loads(got) == {"token": VALUE, "again": [VALUE, OTHER]}


def test_secrets_in_a_form_are_encoded() -> None:
    sent = f"a=1+2&k=openshell%3Aresolve%3Aenv%3AOTHER&b={CANONICAL}".encode()
    got = run(body_transform(access(), b"application/x-www-form-urlencoded"), [sent])
    assert got == b"a=1+2&k=0ther%2Ft0ken%2B%26%3D&b=ghp_s3cr3t-%22value%22%5C12"
    asked = body_transform(access(), b"application/x-www-form-urlencoded")
    assert run(asked, [b"a=b=%", b"41%4", b"2&c", b"%"]) == b"a=b%3DAB&c%25"
    asked = body_transform(access(), b"application/x-www-form-urlencoded")
    assert run(asked, [b"%", b"4", b"1=1"]) == b"A=1"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-www-form-urlencoded", f"{CANONICAL}=1"),
        ("multipart/form-data; boundary=x", CANONICAL),
        ("", CANONICAL),
        ("application/json", "openshell:resolve:env:UNKNOWN"),
        ("text/plain", ELSEWHERE),
        ("text/plain", "x-OPENSHELL-RESOLVE-ENV-"),
    ],
)
def test_a_body_with_what_cannot_be_replaced_is_refused(kind: str, body: str) -> None:
    with pytest.raises(Refusal):
        run(body_transform(access(), kind.encode()), [body.encode()])


# Texts in which placeholders meet, break off and stand beside what looks like them.
PARTS = st.sampled_from(
    [CANONICAL, RANDOM, "x-OPENSHELL-RESOLVE-ENV-OTHER", "openshell:resolve:env:v9_OTHER", "openshell:res", "-OPENSHELL-",
     "openshell:resolve:env:", RANDOM[:9], " ", ":", "-", "&", "=", "%", "%3", "%3A", "+", "é", "a" * 70, "z" * 300, "\n"]
)  # fmt: skip
TEXTS = st.lists(PARTS | st.text(max_size=5), max_size=9).map(lambda parts: "".join(parts).encode())
CUTS = st.lists(st.integers(0, 600), max_size=8)
KINDS = st.sampled_from([b"text/plain", b"application/json", b"application/x-www-form-urlencoded", b"image/png"])


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def outcome(kind: bytes, pieces: list[bytes]) -> bytes | str:
    try:
        return run(body_transform(access(), kind), pieces)
    except Refusal as refusal:
        return refusal.code


@given(kind=KINDS, text=TEXTS, places=CUTS)
def test_no_cut_changes_a_body(kind: bytes, text: bytes, places: list[int]) -> None:
    whole = outcome(kind, [text])
    assert outcome(kind, cut(text, places)) == whole
    if isinstance(whole, bytes) and kind != b"application/x-www-form-urlencoded":
        assert not any(marker in whole for marker in MARKERS)


SECRET_PARTS = st.sampled_from([VALUE, VALUE[:9], VALUE[9:], "0ther", "0ther/", "t0ken+&=", "g", "gh", " ", "é"])


@given(text=st.lists(SECRET_PARTS, max_size=9).map(lambda parts: "".join(parts).encode()), places=CUTS)
def test_no_secret_survives_in_an_answer_however_it_is_cut(text: bytes, places: list[int]) -> None:
    echoes = Echoes({VALUE.encode(): RANDOM.encode(), OTHER.encode(): b"openshell:resolve:env:OTHER"})
    got = run(Mask(echoes), cut(text, places))
    assert got == echoes.masked(text) == run(Mask(echoes), [text])
    assert VALUE.encode() not in got
    assert OTHER.encode() not in got


@given(text=st.text().map(str.encode), places=CUTS)
def test_what_holds_no_secret_passes_as_it_is(text: bytes, places: list[int]) -> None:
    assert run(Mask(Echoes({VALUE.encode(): RANDOM.encode()})), cut(text, places)) == text


def test_only_the_beginning_of_a_secret_is_held_back() -> None:
    mask = Mask(Echoes({b"secret-value": b"openshell:resolve:env:K"}))
    assert mask.feed(b"data: one\n\n") == b"data: one\n\n"
    assert mask.feed(b"data: sec") == b"data: "
    assert mask.feed(b"ond\n\n") == b"second\n\n"
    resolve = Resolve(access())
    assert resolve.feed(b'{"a": 1}') == b'{"a": 1}'


def test_one_of_two_secrets_that_begin_alike_is_not_taken_for_the_other() -> None:
    mask = Mask(Echoes({b"abcd": b"1", b"abcdef": b"2"}))
    assert mask.feed(b"abcd") == b""
    assert mask.feed(b"efabcd") + mask.end() == b"21"


@pytest.mark.parametrize("key", ["v10_GITHUB_TOKEN", f"s{'a' * 64}_X"])
def test_reserved_keys(key: str) -> None:
    assert reserved_key(key)
    refused({"name": "x", "env": key, "value": "secret", "hosts": ["a.test"]}, "revision")


def refused(entry: object, words: str, *more: object) -> None:
    with pytest.raises(SecretsError) as caught:
        load_vault(json.dumps({"secrets": [entry, *more]}))
    assert words in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


GOOD = {"name": "x", "value": "s3cr3t", "hosts": ["a.test"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hosts": []}, "no host"),
        ({"hosts": ["*"]}, "bound wrongly"),
        ({"hosts": ["*.com"]}, "bound wrongly"),
        ({"hosts": [1]}, "bound wrongly"),
        ({"hosts": [""]}, "bound wrongly"),
        ({"ports": [0]}, "port"),
        ({"ports": ["443"]}, "port"),
        ({"paths": ["v1"]}, "path"),
        ({"paths": [1]}, "path"),
        ({"paths": ["/[v1"]}, "path"),
        ({"value": "s3cr3t\r\nEvil: 1"}, "line break"),
        ({"value": "s3cr3t\0"}, "control"),
        ({"value": "s3c"}, "fewer"),
        ({"value": ""}, "fewer"),
        ({"value": CANONICAL}, "placeholder"),
        ({"value": 1}, "wrong type"),
        ({"header": "Host"}, "header"),
        ({"header": "Content-Length"}, "header"),
        ({"header": "a b"}, "header"),
        ({"header": "Authorization", "format": "Bearer"}, "format"),
        ({"header": "Authorization", "format": "{value} {value}"}, "format"),
        ({"header": "Authorization", "format": "{value}\r\nX: 1"}, "format"),
        ({"header": "Authorization", "format": "\u00e9 {value}"}, "format"),
        ({"format": "Bearer {value}"}, "no header"),
        ({"username": "me"}, "no header"),
        ({"env": "A-B"}, "variable"),
        ({"env": "1A"}, "variable"),
        ({"env": "A" * 200}, "variable"),
        ({"random": "short"}, "random"),
        ({"name": "a b"}, "name"),
        ({"name": 1}, "name"),
        ({"hoste": []}, "unknown key"),
        ({"places": [{"hosts": ["a.test"]}]}, "beside them"),
        ({"providers": [1]}, "provider"),
        ({"providers": [""]}, "provider"),
    ],
)
def test_a_secret_that_cannot_be_used_is_refused(change: dict[str, object], words: str) -> None:
    load_vault(json.dumps({"secrets": [GOOD]}))
    refused(GOOD | change, words)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([], "empty list"),
        ([1], "a place with other keys"),
        ([{"hosts": ["b.test"], "host": "a.test"}], "a place with other keys"),
        ([{"hosts": "b.test"}], "not a list"),
        ([{"hosts": ["b.test"]}, {"hosts": []}], "no host"),
        ([{"hosts": ["b.test"], "ports": [0]}], "port"),
        ([{"hosts": ["b.test"], "paths": ["/[v1"]}], "path"),
    ],
)
def test_places_that_cannot_be_used_are_refused(places: list[object], words: str) -> None:
    entry = {key: value for key, value in GOOD.items() if key != "hosts"}
    load_vault(json.dumps({"secrets": [entry | {"places": [{"hosts": ["b.test"]}]}]}))
    refused(entry | {"places": places}, words)


def loaded(*secrets: dict[str, Any]) -> Vault:
    return load_vault(json.dumps({"secrets": secrets}))


EC_KEY = ec.generate_private_key(ec.SECP256R1()).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
OAUTH = {"grant": "refresh_token", "token_url": "https://a.test/token"}


@pytest.mark.parametrize(
    ("oauth", "value", "words"),
    [
        ({"scopes": "a"}, "s3cr3t", "other keys"),
        ({"scope": ["a"]}, "s3cr3t", "not a text"),
        ({"grant": "password"}, "s3cr3t", "grant is not one of"),
        ({}, "s3c", "fewer than"),
        ({}, None, "fewer than"),
        ({"token_url": "http://a.test/token"}, "s3cr3t", "https://host/path"),
        ({"token_url": "https:///token"}, "s3cr3t", "https://host/path"),
        ({"token_url": "https://a.test:0/token"}, "s3cr3t", "https://host/path"),
        ({"token_url": "https://a.test:65536/token"}, "s3cr3t", "https://host/path"),
        ({"token_url": "https://a.test/token?a=b"}, "s3cr3t", "https://host/path"),
        ({"token_url": "https://a.test/t\u00f6ken"}, "s3cr3t", "https://host/path"),
        ({"token_url": "https://a.test/to ken"}, "s3cr3t", "https://host/path"),
        ({"token_url": "https://a.test/token\r\nEvil:1"}, "s3cr3t", "https://host/path"),
        ({"grant": "client_credentials"}, "s3cr3t", "client_id"),
        ({"grant": "service_account"}, "no json, s3cr3t", "key file"),
        ({"grant": "service_account"}, "[1, 2]", "key file"),
        ({"grant": "service_account"}, json.dumps({"client_email": "me"}), "key file"),
        ({"grant": "service_account"}, json.dumps({"client_email": "me", "private_key": 1}), "key file"),
        ({"grant": "service_account"}, json.dumps({"client_email": "me", "private_key": EC_KEY.decode()}), "key file"),
    ],
)
def test_a_grant_that_cannot_be_used_is_refused(oauth: dict[str, object], value: str | None, words: str) -> None:
    loaded(GOOD | {"oauth": OAUTH}, GOOD | {"name": "y", "value": "four", "oauth": OAUTH})
    entry = GOOD | {"oauth": OAUTH | oauth}
    refused(entry | {"value": value} if value is not None else {k: v for k, v in entry.items() if k != "value"}, words)


def test_a_service_account_has_an_address() -> None:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    account = {"client_email": "me@project.test", "private_key": pem.decode()}
    entry = GOOD | {"oauth": OAUTH | {"grant": "service_account"}}
    loaded(entry | {"value": json.dumps(account)})
    refused(entry | {"value": json.dumps(account | {"client_email": 1})}, "key file")


def test_no_text_is_no_secrets() -> None:
    assert load_vault(" \n").secrets == ()


def test_a_value_may_have_four_bytes() -> None:
    assert loaded(GOOD | {"value": "four"}).secrets[0].current() == b"four"


def test_a_name_that_no_placeholder_can_hold_is_written_as_one_can() -> None:
    (secret,) = loaded(GOOD | {"name": "my.key-1"}).secrets
    assert secret.stand_in == b"openshell:resolve:env:my_key_1"
    assert header("openshell:resolve:env:my_key_1", host="a.test", secrets=[GOOD | {"name": "my.key-1"}]) == "s3cr3t"
    refused(GOOD | {"name": "v1_my.key"}, "revision")
    refused(GOOD | {"name": "my.key"}, "in common", GOOD | {"name": "my_key"})


def test_two_secrets_that_cannot_be_told_apart_are_refused() -> None:
    refused(GOOD, "in common", GOOD)
    refused(GOOD | {"name": "x.y", "env": "A"}, "in common", GOOD | {"name": "x.y", "env": "B"})
    refused(GOOD | {"env": "A"}, "in common", GOOD | {"name": "y", "env": "A"})
    refused(GOOD | {"random": RANDOM}, "the same random", GOOD | {"name": "y", "random": RANDOM})
    refused(GOOD | {"header": "X-Key"}, "one header", GOOD | {"name": "y", "header": "x-key", "hosts": ["a.test"]})
    loaded(GOOD | {"header": "X-Key"}, GOOD | {"name": "y", "header": "Y-Key"})


@pytest.mark.parametrize(
    ("left", "right", "meet"),
    [
        ({}, {"ports": [443]}, True),
        ({"ports": [443, 80]}, {"ports": [8443, 443]}, True),
        ({"ports": [443]}, {"ports": [80]}, False),
        ({"paths": ["/a/**"]}, {}, True),
        ({"paths": ["/a/**"]}, {"paths": ["/b/**"]}, False),
        ({"hosts": ["b.test"]}, {}, False),
    ],
)
def test_two_secrets_for_one_header_meet_by_host_and_port(
    left: dict[str, object], right: dict[str, object], meet: bool
) -> None:
    one, other = GOOD | {"header": "X-Key"} | left, GOOD | {"name": "y", "header": "X-Key"} | right
    for pair in ((one, other), (other, one)):
        if meet:
            refused(pair[0], "one header", pair[1])
        else:
            loaded(*pair)


def test_of_several_places_one_that_meets_is_enough() -> None:
    elsewhere = {"name": "y", "value": "s3cr3t", "header": "X-Key"}
    places = [{"hosts": ["b.test"]}, {"hosts": ["*.a.test"], "ports": [443]}]
    here = GOOD | {"header": "X-Key", "hosts": ["x.a.test"]}
    refused(here, "one header", elsewhere | {"places": places})
    apart = [here | {"ports": [80]}, elsewhere | {"places": places}]
    load_vault(json.dumps({"secrets": apart}))
    by_path = [GOOD | {"name": name, "header": "X-Key", "paths": [f"/{name}/**"]} for name in "ab"]
    load_vault(json.dumps({"secrets": by_path}))


@pytest.mark.parametrize(
    "text", ["[", "[]", '["secrets"]', '{"secrets": {}}', '{"secrets": [1]}', '{"secrets": [], "more": 1}']
)
def test_a_file_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SecretsError):
        load_vault(text)


def injected(secrets: list[dict[str, object]], fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    vault = load_vault(json.dumps({"secrets": secrets}))
    return Access(vault, vault.site("a.test", 443), "a.test", 443, "/a/x").fields(fields)


def test_the_destination_decides_what_is_injected() -> None:
    bearer = GOOD | {"header": "Authorization", "format": "Bearer {value}"}
    sent = [(b"Accept", b"*/*"), (b"authorization", b"Bearer mine"), (b"AUTHORIZATION", CANONICAL.encode())]
    assert injected([bearer], sent) == [(b"Accept", b"*/*"), (b"Authorization", b"Bearer s3cr3t")]
    named = GOOD | {"header": "Authorization", "format": "basic", "username": "x-access-token"}
    assert injected([named], []) == [(b"Authorization", basic("x-access-token:s3cr3t").encode())]
    assert injected([bearer | {"hosts": ["b.test"]}], sent[:2]) == sent[:2]
    assert injected([bearer | {"paths": ["/b/**"]}], sent[:2]) == sent[:2]


def test_two_credentials_for_one_header_are_refused_when_it_comes_to_it() -> None:
    both = [GOOD | {"name": name, "header": "X-Key", "paths": [path]} for name, path in (("a", "/a/**"), ("b", "/**"))]
    with pytest.raises(Refusal) as caught:
        injected(both, [])
    assert caught.value.code == "credential_injection_failed"


def test_a_password_may_have_no_user() -> None:
    named = GOOD | {"header": "Authorization", "format": "basic"}
    assert injected([named], []) == [(b"Authorization", basic("s3cr3t").encode())]


def test_places_are_forgotten_before_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vaults, "_SITES", 3)
    vault = loaded(GOOD)
    for number in range(8):
        assert vault.site(f"h{number}.test", 443) is None
        assert vault.site("a.test", 443) is not None
        assert len(vault._sites) <= 3
    assert vault.site("a.test", 443) is vault.site("a.test", 443)


def test_a_value_is_not_in_a_representation() -> None:
    vault = load_vault(json.dumps({"secrets": SECRETS}))
    assert VALUE not in repr(vault.secrets)
    assert repr(VALUE.encode()) not in repr(vault.secrets)


def test_a_secret_must_not_make_a_dot_segment() -> None:
    vault = Vault([Secret("DOT", ("DOT",), b".")])
    for target in ("/openshell:resolve:env:DOT/x", "/.openshell:resolve:env:DOT/x"):
        with pytest.raises(Refusal):
            Access(vault, vault.site("a.test", 443), "a.test", 443, "/").target(target)


def test_a_placeholder_encoded_twice_beside_one_that_is_replaced_is_refused() -> None:
    with pytest.raises(Refusal) as caught:
        access().target(f"/v1/x?k={CANONICAL}.openshell%253Aresolve%253Aenv%253AOTHER")
    assert caught.value.code == "invalid_credential_placeholder"


@pytest.mark.parametrize(
    "change",
    [
        lambda told: "Basic  " + told,
        lambda told: "basic\t" + told,
        lambda told: " Basic " + told,
        lambda told: "Basic " + told.rstrip("="),
        lambda told: "Basic " + told.replace("+", "-").replace("/", "_"),
        lambda told: "Basic " + told[:8] + " " + told[8:],
        lambda told: "Basic " + told[:8] + "\t\t" + told[8:],
        lambda told: 'Basic "' + told + '"',
        lambda told: "Basic " + told + ", Basic eDp5",
        lambda told: "Basic eDp5, Basic " + told,
        lambda told: "Basic " + told.rstrip("=") + "====",
        lambda told: "BASIC " + told + "=QUJD",
    ],
)
@pytest.mark.parametrize("user", ["us\u00ff\u00bf\u00bf\u00ffr~~~?", "a?~", "ab", "abc", "a"])
def test_basic_that_only_a_lenient_server_reads_is_refused_where_it_holds_a_placeholder(
    change: object, user: str
) -> None:
    def sent(credential: str) -> str:
        told = base64.b64encode(f"{user}:{credential}".encode("latin-1")).decode()
        return str(change(told))  # type: ignore[operator]

    if sent(CANONICAL) != "Basic " + base64.b64encode(f"{user}:{CANONICAL}".encode("latin-1")).decode():
        with pytest.raises(Refusal) as caught:
            header(sent(CANONICAL))
        assert caught.value.code == "invalid_credential_placeholder"
    assert header(sent("a password of no interest")) == sent("a password of no interest")


@pytest.mark.parametrize("before", ["", '"', "token=", "Bearer ", "(", "a, ", "k:", "/"])
@pytest.mark.parametrize("after", ["", '"', ";", ",", " b", ")", "/x", ":"])
def test_an_alias_counts_wherever_a_token_may_stand(before: str, after: str) -> None:
    alias = "xoxb-OPENSHELL-RESOLVE-ENV-GITHUB_TOKEN"
    assert header(f"{before}{alias}{after}") == f"{before}{VALUE}{after}"


def percent(text: str) -> str:
    return "".join(f"%{ord(char):02x}" for char in text)


ENCODED = [
    CANONICAL.replace(":", "%3A"),
    CANONICAL.replace(":", "%3a", 1),
    percent(CANONICAL),
    "x" + percent("-OPENSHELL-RESOLVE-ENV-GITHUB_TOKEN"),
    percent(RANDOM),
    RANDOM[:-1] + percent(RANDOM[-1]),
]


@pytest.mark.parametrize("kind", ["application/json", "application/vnd.api+json", "text/plain"])
@pytest.mark.parametrize("encoded", ENCODED)
def test_in_a_rewritten_body_an_encoded_placeholder_is_refused_however_it_is_cut(kind: str, encoded: str) -> None:
    text = f'{{"a": "{CANONICAL} and {encoded}"}}'.encode()
    for cut in range(len(text)):
        transform = body_transform(access(), kind.encode())
        with pytest.raises(Refusal) as caught:
            feed(transform, [text[:cut], text[cut:]])
        assert caught.value.code == "invalid_credential_placeholder"
    one_by_one = body_transform(access(), kind.encode())
    with pytest.raises(Refusal):
        feed(one_by_one, [bytes([byte]) for byte in text])


def test_in_a_rewritten_body_other_percent_signs_pass() -> None:
    text = f'{{"a": "100%, %3A, %zz {CANONICAL}%20{RANDOM}"}}'
    escaped = json.dumps(VALUE)[1:-1]
    got = feed(body_transform(access(), b"application/json"), [text.encode()])
    assert got.decode() == text.replace(CANONICAL, escaped).replace(RANDOM, escaped)


def feed(transform: Transform, pieces: list[bytes]) -> bytes:
    return b"".join(map(transform.feed, pieces)) + transform.end()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", True), ("[1]", True), (' \n\t{"a": 1}', True), ('"a text"', True), ("12", True), ("{} {}", True),
        ("{not quite", True), ("a text", False), ("", False), ('"a" and more', False), ("token=1", False),
    ],
)  # fmt: skip
def test_what_counts_as_json(text: str, told: bool) -> None:
    assert is_json(text.encode()) is told


LEAKED = "ghp_l3aked/t0ken +~'\u00fc"
STAND_IN = "ghp_St4ndInSt4ndInxxxx"


@pytest.mark.parametrize(
    "form",
    [
        lambda value: value,
        lambda value: json.dumps(value),
        lambda value: json.dumps(value).replace("/", "\\/"),
        lambda value: json.dumps(value, ensure_ascii=False).replace("/", "\\/"),
        lambda value: quote(value, safe=""),
        lambda value: quote(value),
        lambda value: quote(value, safe="").lower(),
        lambda value: urlencode({"k": value}),
        lambda value: base64.b64encode(value.encode()).decode(),
        lambda value: base64.urlsafe_b64encode(value.encode()).decode(),
        lambda value: base64.b64encode(value.encode()).decode().rstrip("="),
        *[lambda value, user=user: basic(f"{user}:{value}") for user in ("", "a", "ab", "x-access-token")],
        *[lambda value, n=n: base64.b64encode(f"{'x' * n}{value}, and more".encode()).decode() for n in range(3)],
    ],
)  # fmt: skip
def test_a_secret_in_any_of_the_plain_encodings_is_found_in_a_head_and_in_a_body(form: object) -> None:
    echoes = Echoes(secret_forms(LEAKED.encode(), STAND_IN.encode()))
    text = ("before " + form(LEAKED) + " after").encode()  # type: ignore[operator]
    masked = echoes.masked(text)
    assert masked.startswith(b"before ")
    assert masked.endswith(b" after")
    for cut in range(len(text) + 1):
        assert feed(Mask(echoes), [text[:cut], text[cut:]]) == masked
    assert feed(Mask(echoes), [bytes([byte]) for byte in text]) == masked
    words = masked.decode().replace("\\/", "/")
    # Nothing that decodes to more than a neighbour's few bits of it is left.
    assert LEAKED[2:-2] not in words
    assert LEAKED[2:-2] not in unquote_plus(words)
    assert quote(LEAKED[4:-2], safe="") not in words
    for at in range(len(words) - 8):
        for length in (8, 12):
            piece = words[at : at + length].translate(str.maketrans("-_", "+/"))
            with contextlib.suppress(ValueError):
                assert LEAKED[3:9].encode() not in base64.b64decode(piece + "=" * (-len(piece) % 4))


def test_a_basic_password_that_comes_back_decodes_to_the_placeholder() -> None:
    """Where the two are of one length, whatever user the destination names."""
    value, seen = "s3cr3t-0123456789", "R4nd0mR4nd0mR4nd0"
    echoes = Echoes(secret_forms(value.encode(), seen.encode()))
    assert echoes.same_length
    for user in ("", "a", "ab", "abc"):
        told = base64.b64decode(echoes.masked(base64.b64encode(f"{user}:{value}".encode())))
        assert told[len(user) + 2 :].decode() == seen[1:]


def test_a_short_secret_is_not_looked_for_in_base64() -> None:
    """It would be found in every answer."""
    known = secret_forms(b"abcd", b"x")
    assert all(len(one) >= 4 for one in known)
    assert b"".join(sorted(known)) == b"abcd"


def test_compressed_content_may_grow_so_far_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_INFLATED", 100)
    pieces = [gzip.compress(bytes(60), mtime=0), gzip.compress(bytes(40), mtime=0), gzip.compress(b"1", mtime=0)]
    assert feed(Inflated(Mask(Echoes({}))), [b"", b"".join(pieces[:2]), pieces[2]]) == bytes(100) + b"1"
    with pytest.raises(ProtocolError, match="proportion"):
        feed(Inflated(Mask(Echoes({}))), [b"".join(pieces)])
    with pytest.raises(ProtocolError, match="not compressed"):
        feed(Inflated(Mask(Echoes({}))), [b"plain text"])
