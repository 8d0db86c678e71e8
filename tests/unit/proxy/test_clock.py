# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The certificates that clients see stay valid whatever the host's clock does."""

from __future__ import annotations

import datetime
import ssl
import types
from typing import Any

import pytest
from cryptography import x509
from openshell_proxy import authority, minting

HOUR = datetime.timedelta(hours=1)


class Clock(datetime.datetime):
    """The time of day as a test sets it."""

    moment = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC)

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.moment


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    real = types.SimpleNamespace(datetime=Clock, timedelta=datetime.timedelta, UTC=datetime.UTC)
    monkeypatch.setattr(authority, "datetime", real)
    monkeypatch.setattr(minting, "datetime", real)
    monkeypatch.setattr(Clock, "moment", Clock.moment)
    return Clock


def leaf(context: ssl.SSLContext, issuer: authority.Authority) -> x509.Certificate:
    """The certificate that a client gets of the context."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    mine = client.wrap_bio(to_client, to_server, server_hostname="a.example")
    theirs = context.wrap_bio(to_server, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for side in (mine, theirs):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue
    found = x509.load_der_x509_certificate(mine.getpeercert(True) or b"")
    assert found.issuer == issuer.mint.certificate.subject
    return found


@pytest.mark.parametrize("hours", [0, 1, 47, 49, 100, 24 * 365, -1, -23, -25, -100], ids=str)
def test_a_leaf_is_valid_whatever_the_clock_was_set_to(clock: type[Clock], hours: int) -> None:
    issuer = authority.Authority(minting.new_authority())
    issuer.context("a.example")
    clock.moment += hours * HOUR
    found = leaf(issuer.context("a.example"), issuer)
    assert found.not_valid_before_utc <= clock.moment - 23 * HOUR
    assert found.not_valid_after_utc >= clock.moment + 24 * HOUR


def test_a_leaf_is_kept_as_long_as_it_is_good(clock: type[Clock]) -> None:
    issuer = authority.Authority(minting.new_authority())
    first = issuer.context("a.example")
    clock.moment += 47 * HOUR
    assert issuer.context("a.example") is first
    clock.moment += 2 * HOUR
    second = issuer.context("a.example")
    assert second is not first
    clock.moment -= 1 * HOUR
    assert issuer.context("a.example") is not second


def test_an_authority_is_valid_a_day_back(clock: type[Clock]) -> None:
    made = minting.Mint(minting.new_authority()).certificate
    assert made.not_valid_before_utc <= clock.moment - 24 * HOUR
