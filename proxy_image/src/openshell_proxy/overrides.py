# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Headers with which a client asks the destination to take a request for another one than it is.

Frameworks and reverse proxies that know them act on what they say, so the rules must allow that as well. Nothing else
about them is changed: a request whose every reading is allowed passes with its headers as they are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

from openshell_proxy.policy import Intent, TargetError, canonical_path, parse_query
from openshell_proxy.refusal import Refusal
from openshell_proxy.relay.http1 import TOKEN

METHOD = (b"x-http-method-override", b"x-http-method", b"x-method-override")
TARGET = (b"x-original-url", b"x-rewrite-url")
_ALL = frozenset((*METHOD, *TARGET))


def other_readings(
    intent: Intent, named: Mapping[bytes, Sequence[bytes]], allow_encoded_slash: bool
) -> Iterator[Intent]:
    """What else *intent* may be taken for because of the fields in *named* (lower-case name → values).

    Every method that is named with every target that is, since a destination may know any of the headers. Raises
    :class:`Refusal` where one is not to be understood.
    """
    if _ALL.isdisjoint(named):
        return
    request = intent.request
    assert request is not None
    methods = [request.method, *(_method(name, named[name]) for name in METHOD if name in named)]
    targets = [(request.path, request.query)]
    targets += [_target(name, named[name], allow_encoded_slash) for name in TARGET if name in named]
    for method, (path, query) in itertools.islice(itertools.product(methods, targets), 1, None):
        yield dataclasses.replace(intent, request=dataclasses.replace(request, method=method, path=path, query=query))


def _one(name: bytes, values: Sequence[bytes]) -> bytes:
    if len(values) != 1:
        raise Refusal(400, "invalid_request", f"the header {name.decode()} is there more than once")
    return values[0]


def _method(name: bytes, values: Sequence[bytes]) -> str:
    value = _one(name, values)
    if not TOKEN.fullmatch(value):
        raise Refusal(400, "invalid_request", f"the header {name.decode()} does not hold a method")
    return value.decode("ascii").upper()


def _target(name: bytes, values: Sequence[bytes], allow_encoded_slash: bool) -> tuple[str, dict[str, tuple[str, ...]]]:
    try:
        text = _one(name, values).decode("latin-1")
        path, query = canonical_path(text, allow_encoded_slash=allow_encoded_slash)
        return path, parse_query(query)
    except TargetError as error:
        raise Refusal(400, "invalid_request", f"the header {name.decode()} is refused: {error.code}") from None
