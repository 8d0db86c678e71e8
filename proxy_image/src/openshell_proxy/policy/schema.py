# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenShell's policy schema, version 1 (spec 1.1, 1.5): every key known, every error with its line."""

from __future__ import annotations

import yaml

from openshell_proxy.policy.document import Reader
from openshell_proxy.policy.endpoints import EndpointReader
from openshell_proxy.policy.model import Document, Endpoint, Enforcement
from openshell_proxy.policy.static import read_filesystem, read_landlock, read_middlewares, read_process

TOP = ("version", "filesystem_policy", "landlock", "process", "network_policies", "network_middlewares")


def read_document(reader: Reader, text: str, default_enforcement: Enforcement, composed: bool = False) -> Document:
    """What a policy text says; errors and notices are gathered in *reader*. What has errors is read as far as it goes.

    Raises :class:`PolicyError` where there is nothing to read.
    """
    root = reader.compose(text)
    top = reader.mapping(root, "the policy", TOP)
    version = top.get("version")
    if version is None or reader.value(version) != 1 or isinstance(reader.value(version), bool):
        reader.error(version or root, "version must be 1")
    endpoints: list[Endpoint] = []
    policies = top.get("network_policies")
    for key, node in (reader.mapping(policies, "network_policies") if policies is not None else {}).items():
        endpoints += _read_policy(reader, key, node, default_enforcement)
        if key.startswith("_provider_") and not composed:
            reader.error(node, f"network policy '{key}': names beginning with _provider_ are reserved")
    middlewares = read_middlewares(reader, top.get("network_middlewares"), endpoints)
    for name in ("filesystem_policy", "landlock", "process"):
        if name in top:
            reader.notice(
                top[name], f"{name} is for the supervisor inside the sandbox, which is not part of this version"
            )
    return Document(
        tuple(endpoints),
        read_filesystem(reader, top.get("filesystem_policy")),
        read_landlock(reader, top.get("landlock")),
        read_process(reader, top.get("process")),
        middlewares,
    )


def _read_policy(reader: Reader, key: str, node: yaml.Node, default: Enforcement) -> list[Endpoint]:
    section = reader.mapping(node, f"network policy '{key}'", ("name", "endpoints", "binaries"))
    reader.text(section.get("name"), "name")
    if (binaries := section.get("binaries")) is not None:
        for item in reader.items(binaries, "binaries"):
            keys = reader.mapping(item, "a binary", ("path", "harness"))
            reader.text(keys.get("path"), "path")
        reader.notice(
            binaries,
            f"network policy '{key}': binaries is ignored, so the policy grants more than in OpenShell: "
            "every program inside may use it",
        )
    return [
        EndpointReader(reader, key, index, item, default).read()
        for index, item in enumerate(reader.items(section.get("endpoints"), "endpoints"))
    ]
