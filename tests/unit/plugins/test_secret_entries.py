# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``openshell_secrets`` on its way to the sidecar: refused early, without a value, and what the agent gets of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.openshell.sandbox.plugins.action.sandbox_secrets import _output
from ansible_collections.openshell.sandbox.plugins.module_utils.secret_entries import (
    Refused,
    agent_environment,
    check_entries,
    new_random,
    sidecar_entry,
    with_random,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.sidecar_config import SECRETS, _diff
from openshell_proxy.credentials.document import load_vault

VALUE = "ghp_0123456789abcdefghij"
GOOD: dict[str, Any] = {"name": "key", "value": VALUE, "hosts": ["api.example.com"], "env": "KEY"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "a b"}, "no name"),
        ({"hosts": []}, "bound to no host"),
        ({"hosts": "api.example.com"}, "bound to no host"),
        ({"hosts": ["https://api.example.com"]}, "no host, address or wildcard"),
        ({"command": "x"}, "exactly one of"),
        ({"format": "x"}, "no header"),
        ({"header": 1}, "not a text"),
        ({"env": "A B"}, "variable"),
        ({"placeholder": "other"}, "canonical or random"),
        ({"oauth": "x"}, "not a mapping"),
        ({"hots": []}, "unknown key 'hots'"),
    ],
)
def test_what_is_wrong_is_said_without_the_value(change: dict[str, Any], words: str) -> None:
    check_entries([GOOD])
    with pytest.raises(Refused) as caught:
        check_entries([GOOD | change])
    assert words in str(caught.value)
    assert VALUE not in str(caught.value)


@pytest.mark.parametrize("entries", ["text", {"name": "key"}, [1], [GOOD, GOOD]])
def test_what_is_no_list_of_different_secrets_is_refused(entries: Any) -> None:
    with pytest.raises(Refused):
        check_entries(entries)


def test_the_sidecar_takes_what_is_written_for_it() -> None:
    entry = GOOD | {"header": "Authorization", "format": "basic", "username": "me", "ports": [443], "paths": ["/v1/**"]}
    vault = load_vault(with_random([sidecar_entry(entry, VALUE)], ""))
    (secret,) = vault.secrets
    assert (secret.current(), secret.keys, len(secret.random)) == (VALUE.encode(), ("KEY", "key"), len(VALUE))


def test_a_rotated_secret_keeps_the_placeholder_that_agents_hold() -> None:
    first = with_random([sidecar_entry(GOOD, VALUE)], "")
    second = with_random([sidecar_entry(GOOD, "another-value-of-another-length")], first)
    random = [json.loads(text)["secrets"][0]["random"] for text in (first, second)]
    assert random[0] == random[1] != ""
    assert with_random([sidecar_entry(GOOD, VALUE)], first) == first  # a second run changes nothing
    assert with_random([], first) == ""


def test_the_agent_sees_the_placeholder_it_was_promised() -> None:
    file = with_random([sidecar_entry(GOOD, VALUE)], "")
    random = json.loads(file)["secrets"][0]["random"]
    assert agent_environment([GOOD], file) == {"KEY": "openshell:resolve:env:KEY"}
    assert agent_environment([GOOD | {"placeholder": "random"}], file) == {"KEY": random}
    short = GOOD | {"placeholder": "random"}
    with pytest.raises(Refused):
        agent_environment([short], with_random([sidecar_entry(short, "too-short")], ""))


def test_a_random_placeholder_has_the_length_and_the_public_prefix_and_nothing_else_of_the_value() -> None:
    made = {new_random(VALUE) for _ in range(9)}
    assert len(made) == 9
    assert all(len(one) == len(VALUE) and one.startswith("ghp_") and one != VALUE for one in made)
    assert new_random("sk-123") == ""


def test_a_difference_shows_no_secret() -> None:
    shown = json.dumps(_diff(SECRETS, "before-secret", "after-secret"))
    assert "before-secret" not in shown
    assert "after-secret" not in shown


def test_a_command_gives_its_output_or_says_that_it_failed() -> None:
    assert _output("key", ["printf", "a secret\n\n"]) == "a secret"
    assert _output("key", "printf 'a secret'") == "a secret"
    for command in ("sh -c 'echo secret-on-stderr >&2; exit 3'", "/no/such/command", "", ["printf", "\\377"]):
        with pytest.raises(Refused) as caught:
            _output("key", command)
        assert "secret-on-stderr" not in str(caught.value)
