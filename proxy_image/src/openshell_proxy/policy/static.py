# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sections for the supervisor inside the sandbox, and the middlewares (spec 1.2, 1.3, 1.4, 1.17)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import yaml

from openshell_proxy.policy.document import Reader
from openshell_proxy.policy.hosts import HostPatternError, check_selector
from openshell_proxy.policy.model import Endpoint, Filesystem, Middleware, Process

MAX_PATHS = 256
MAX_PATH_LENGTH = 4096
MAX_MIDDLEWARES = 10
MAX_PATTERNS = 32
_ID = re.compile(r"[1-9][0-9]{0,9}")
_MIDDLEWARE = ("name", "middleware", "order", "config", "on_error", "endpoints")
_BUILT_IN = "openshell/regex"


def valid_identity(value: str) -> bool:
    """Whether *value* may be run as: ``sandbox`` or a decimal id that is not root's (spec 1.4)."""
    return value == "sandbox" or (_ID.fullmatch(value) is not None and int(value) <= 4294967294)


def read_filesystem(reader: Reader, node: yaml.Node | None) -> Filesystem | None:
    """None where the section is absent: the supervisor's restrictive default holds then."""
    if node is None:
        return None
    section = reader.mapping(node, "filesystem_policy", ("include_workdir", "read_only", "read_write"))
    only = reader.items(section.get("read_only"), "read_only")
    write = reader.items(section.get("read_write"), "read_write")
    if len(only) + len(write) > MAX_PATHS:
        reader.error(node, f"too many filesystem paths ({len(only) + len(write)} > {MAX_PATHS})")
    return Filesystem(
        reader.boolean(section.get("include_workdir"), "include_workdir"),
        tuple(_path(reader, item, "read_only") for item in only),
        tuple(_path(reader, item, "read_write") for item in write),
    )


def _path(reader: Reader, node: yaml.Node, key: str) -> str:
    path = reader.text(node, key)
    if len(path) > MAX_PATH_LENGTH:
        reader.error(node, f"path exceeds maximum length ({len(path)} > {MAX_PATH_LENGTH})")
    elif not path.startswith("/"):
        reader.error(node, f"path must be absolute (start with '/'): {path}")
    elif ".." in path.split("/"):
        reader.error(node, f"path contains '..' traversal component: {path}")
    elif key == "read_write" and not path.strip("/"):
        reader.error(node, f"read-write path is overly broad: {path}")
    return path


def read_landlock(reader: Reader, node: yaml.Node | None) -> str:
    section = reader.mapping(node, "landlock", ("compatibility",)) if node is not None else {}
    return reader.choice(
        section.get("compatibility"), "compatibility", ("best_effort", "hard_requirement"), "best_effort"
    )


def read_process(reader: Reader, node: yaml.Node | None) -> Process:
    section = reader.mapping(node, "process", ("run_as_user", "run_as_group")) if node is not None else {}
    named = {}
    for key, item in section.items():
        value = str(item.value) if isinstance(item, yaml.ScalarNode) else ""
        if not valid_identity(value):
            reader.error(item, f"{key} must be 'sandbox' or a numeric UID/GID in range [1, 4294967294], got '{value}'")
        named[key] = value
    return Process(**named)


def read_middlewares(reader: Reader, node: yaml.Node | None, endpoints: Sequence[Endpoint]) -> tuple[Middleware, ...]:
    """The middlewares in their order; one that is not built in is refused: to ignore it would let more out than is said."""
    if node is None:
        return ()
    entries = reader.mapping(node, "network_middlewares")
    if len(entries) > MAX_MIDDLEWARES:
        reader.error(node, f"too many network_middlewares ({len(entries)} > {MAX_MIDDLEWARES})")
    orders: dict[int, str] = {}
    found = []
    for key, item in entries.items():
        what = f"network middleware '{key}'"
        section = reader.mapping(item, what, _MIDDLEWARE)
        order = reader.whole(section.get("order"), f"{what}: order", 0, -(2**31), 2**31 - 1)
        if order in orders:
            reader.error(item, f"{what} has the order {order} of '{orders[order]}'; each must be unique")
        orders.setdefault(order, key)
        reader.text(section.get("name"), f"{what}: name")
        _check_built_in(reader, what, item, section)
        middleware = _read_middleware(reader, key, item, section, order)
        _check_seen(reader, what, item, middleware, endpoints)
        found.append(middleware)
    return tuple(sorted(found, key=lambda one: one.order))


def _check_built_in(reader: Reader, what: str, node: yaml.Node, section: Mapping[str, yaml.Node]) -> None:
    """``mode`` may be left out: there is one."""
    named = reader.text(section.get("middleware"), f"{what}: middleware")
    if not named:
        reader.error(node, f"{what} must name its middleware, like {_BUILT_IN}")
    elif named != _BUILT_IN:
        reader.error(node, f"{what} asks for '{named}', but {_BUILT_IN} is the only middleware of this version")
    elif "config" in section:
        config = reader.mapping(section["config"], f"{what}: config", ("mode",))
        reader.choice(config.get("mode"), f"{what}: mode", ("redact",), "redact")


def _read_middleware(
    reader: Reader, name: str, node: yaml.Node, section: Mapping[str, yaml.Node], order: int
) -> Middleware:
    what = f"network middleware '{name}'"
    failing = reader.choice(section.get("on_error"), f"{what}: on_error", ("fail_closed", "fail_open"), "fail_closed")
    scope = section.get("endpoints")
    lists = reader.mapping(scope, f"{what}: endpoints", ("include", "exclude")) if scope is not None else {}
    include = _selectors(reader, lists.get("include"), f"{what}: include")
    exclude = _selectors(reader, lists.get("exclude"), f"{what}: exclude")
    if not include:
        reader.error(node, f"{what}: endpoints.include must not be empty")
    closed = failing == "fail_closed"
    return Middleware(name=name, order=order, fails_closed=closed, include=include, exclude=exclude)


def _check_seen(
    reader: Reader, what: str, node: yaml.Node, middleware: Middleware, endpoints: Sequence[Endpoint]
) -> None:
    """It must see what goes to the endpoints that it covers, or may fail to."""
    for endpoint in endpoints:
        if endpoint.tls != "skip" or not middleware.may_cover(endpoint):
            continue
        if middleware.fails_closed:
            reader.error(node, f"{what} fails closed, but covers '{endpoint.host}' with tls: skip, which it cannot see")
        else:
            reader.notice(node, f"{what} sees nothing of what goes to '{endpoint.host}', which has tls: skip")


def _selectors(reader: Reader, node: yaml.Node | None, what: str) -> tuple[str, ...]:
    if node is None:
        return ()
    items = reader.items(node, what)
    if len(items) > MAX_PATTERNS:
        reader.error(node, f"{what} has too many patterns ({len(items)} > {MAX_PATTERNS})")
    found = []
    for item in items:
        pattern = reader.text(item, what).lower()
        try:
            check_selector(pattern)
            found.append(pattern)
        except HostPatternError as error:
            reader.error(item, f"{what}: {error}")
    return tuple(found)
