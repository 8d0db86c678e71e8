# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names and labels of everything that belongs to one sandbox.

Every object we make carries the label ``openshell.managed=true``; nothing without it is ever changed or removed.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from typing import Dict, Iterator, Mapping, Tuple

BRIDGE_NETWORK = "openshell"
AUTHORITY_SECRET = "openshell-authority"

LABEL_MANAGED = "openshell.managed"
LABEL_SANDBOX = "openshell.sandbox"
LABEL_ID = "openshell.id"
LABEL_ROLE = "openshell.role"
LABEL_SPEC = "openshell.spec"
LABEL_UID_BASE = "openshell.uid_base"

REPLACED_SUFFIX = "-replaced"  # of a container's name while its successor is made

MAX_NAME_LENGTH = 40
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?\Z")

# Host ids handed to sandboxes, above everything that useradd or podman's own "containers" user hands out by default.
UID_BASE_FIRST = 2_147_483_648
UID_RANGE = 65_536
UID_SLOTS = 16_000


class SandboxNameError(ValueError):
    """A sandbox name or id that cannot be used; the message says why and what is allowed."""


def check_name(name: str, what: str = "sandbox name") -> str:
    """Return *name* when it is a DNS-1123 label of at most 40 characters without ``--``; raise :class:`SandboxNameError`.

    Source: architecture page, "Names and labels"; RFC 1123 section 2.1.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise SandboxNameError(f"{what} '{name}' has {len(name)} characters; use at most {MAX_NAME_LENGTH}")
    if not _NAME.match(name) or "--" in name:
        raise SandboxNameError(
            f"{what} '{name}' is not allowed; use lower-case letters, digits and single hyphens, "
            "beginning and ending with a letter or digit"
        )
    return name


@dataclasses.dataclass(frozen=True)
class SandboxNames:
    """The names of one sandbox's objects. ``id`` is the name unless told otherwise."""

    name: str
    id: str

    @classmethod
    def of(cls, name: str, id_: str | None = None) -> SandboxNames:
        return cls(check_name(name), check_name(id_ or name, "sandbox id"))

    @property
    def network(self) -> str:
        return f"openshell-sbx-{self.id}"

    @property
    def tls_volume(self) -> str:
        return f"openshell-tls-{self.id}"

    @property
    def proxy_volume(self) -> str:
        """Configuration and audit log; mounted in the sidecar only."""
        return f"openshell-proxy-{self.id}"

    @property
    def workspace_volume(self) -> str:
        return f"openshell-workspace-{self.id}"

    @property
    def proxy(self) -> str:
        return f"openshell-proxy-{self.name}"

    @property
    def agent(self) -> str:
        return f"openshell-agent-{self.name}"

    @property
    def replaced(self) -> Tuple[str, str]:
        """Where the containers stand aside while their successors are made."""
        return self.agent + REPLACED_SUFFIX, self.proxy + REPLACED_SUFFIX

    @property
    def authority_secret(self) -> str:
        """The sandbox's own authority; the host's one is :data:`AUTHORITY_SECRET`."""
        return f"openshell-authority-{self.id}"

    def labels(self, **more: str) -> Dict[str, str]:
        return {LABEL_MANAGED: "true", LABEL_SANDBOX: self.name, LABEL_ID: self.id, **more}


def is_ours(labels: Mapping[str, str] | None) -> bool:
    return bool(labels) and (labels or {}).get(LABEL_MANAGED) == "true"


def uid_bases(subnet: str) -> Iterator[int]:
    """Host uids (and gids) on which uid 0 of the agent of the sandbox with this *subnet* can lie, the first choice first.

    Podman gives every network its own subnet, so the subnet's number is a slot that no living sandbox of the host
    shares: root inside is nobody outside, and two sandboxes are two different nobodies.
    """
    network = ipaddress.ip_network(subnet)
    slot = (int(network.network_address) >> (network.max_prefixlen - network.prefixlen)) % UID_SLOTS
    return (UID_BASE_FIRST + (slot + step) % UID_SLOTS * UID_RANGE for step in range(UID_SLOTS))
