# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a sandbox's container is to be: one immutable description, its ``podman create`` arguments and its digest.

The digest goes into the label ``openshell.spec``; a container whose label differs is another container.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import tarfile
from typing import Dict, List, Mapping, Sequence, Tuple

from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import (
    LABEL_MANAGED,
    LABEL_ROLE,
    LABEL_SPEC,
    UID_RANGE,
)


@dataclasses.dataclass(frozen=True)
class Volume:
    """A named volume (``kind`` volume) or a directory of the host (``kind`` bind) at ``target``."""

    source: str
    target: str
    read_only: bool = False
    kind: str = "volume"
    relabel: str = ""

    def argument(self) -> str:
        """``SOURCE:TARGET:OPTIONS`` as ``podman create --volume`` takes it.

        ``relabel`` is z (shared) or Z (private): what an SELinux host needs and every other host ignores.
        """
        options = ["ro" if self.read_only else "rw", *([self.relabel] if self.relabel else [])]
        return f"{self.source}:{self.target}:{','.join(options)}"


@dataclasses.dataclass(frozen=True)
class Secret:
    """A Podman secret mounted as a file that one uid inside may read."""

    source: str
    target: str
    uid: int

    def argument(self) -> str:
        return f"{self.source},type=mount,target={self.target},uid={self.uid},gid={self.uid},mode=0400"


@dataclasses.dataclass(frozen=True)
class ContainerSpec:
    """One container of a sandbox. ``image`` is an id; ``memory`` in Podman's form (4g); ``cpus`` a decimal number.

    ``uid_base`` is the host id of uid 0 inside; None means rootless, where the user's own uid is left out of the map,
    and 0 means no user namespace of its own: Podman 4.3 does not restart (``restart``) a container that has one.
    ``nested`` leaves /proc unmasked: the kernel lets a container inside mount its own only where none of it is hidden.
    ``files`` (path → text) are put into the container's file system after it was created and before it starts.
    """

    name: str
    role: str
    image: str
    network: str
    ip: str
    labels: Mapping[str, str]
    dns: Tuple[str, ...]
    uid_base: int | None
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: Tuple[str, ...] = ()
    user: str = ""
    workdir: str = ""
    volumes: Tuple[Volume, ...] = ()
    secrets: Tuple[Secret, ...] = ()
    tmpfs: Tuple[str, ...] = ()
    sysctls: Mapping[str, str] = dataclasses.field(default_factory=dict)
    capabilities: Tuple[str, ...] = ()
    ulimits: Tuple[str, ...] = ()
    pids_limit: int = 2048
    memory: str = ""
    cpus: str = ""
    read_only: bool = False
    nested: bool = False
    init: bool = False
    restart: str = ""
    stop_timeout: int = 10
    log_max_size: str = "16mb"
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits over every field; the same description gives the same digest on every host."""
        canonical = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]

    def create_args(self) -> List[str]:
        """Arguments of ``podman create`` after the sub-command itself."""
        return [
            *("--name", self.name, "--hostname", self.labels.get("openshell.sandbox", self.name)),
            *self._isolation(),
            *self._network(),
            *self._limits(),
            *_pairs("--volume", [volume.argument() for volume in self.volumes]),
            *_pairs("--secret", [secret.argument() for secret in self.secrets]),
            *_pairs("--tmpfs", self.tmpfs),
            *_pairs("--env", [f"{key}={value}" for key, value in sorted(self.env.items())]),
            *_pairs("--label", [f"{key}={value}" for key, value in sorted(self.all_labels().items())]),
            *(["--user", self.user] if self.user else []),
            *(["--workdir", self.workdir] if self.workdir else []),
            *(["--init"] if self.init else []),
            *(["--restart", self.restart] if self.restart else []),
            *("--stop-timeout", str(self.stop_timeout)),
            *("--log-driver", "k8s-file", "--log-opt", f"max-size={self.log_max_size}"),
            *("--pull", "never", self.image, *self.command),
        ]

    def all_labels(self) -> Dict[str, str]:
        """The user's and our labels; ours win."""
        return {**self.labels, LABEL_MANAGED: "true", LABEL_ROLE: self.role, LABEL_SPEC: self.digest}

    def _user_namespace(self) -> List[str]:
        if self.uid_base is None:
            return ["--userns=nomap"]
        mapping = f"0:{self.uid_base}:{UID_RANGE}"
        return ["--uidmap", mapping, "--gidmap", mapping] if self.uid_base else []

    def _isolation(self) -> List[str]:
        return [
            *("--cap-drop", "ALL", *_pairs("--cap-add", self.capabilities)),
            *("--security-opt", "no-new-privileges"),
            *(["--security-opt", "unmask=/proc/*"] if self.nested else []),
            *self._user_namespace(),
            *("--ipc", "private"),
            *(["--read-only", "--read-only-tmpfs=false"] if self.read_only else []),
            "--http-proxy=false",  # Podman would copy the host's own proxy settings, credentials included
        ]

    def _network(self) -> List[str]:
        return [
            *("--network", f"{self.network}:ip={self.ip},mac={hardware_address(self.name)}", "--no-hosts"),
            *_pairs("--dns", self.dns),
            *("--dns-search", ".", "--dns-option", "timeout:2", "--dns-option", "attempts:2"),
            *_pairs("--sysctl", [f"{key}={value}" for key, value in sorted(self.sysctls.items())]),
        ]

    def _limits(self) -> List[str]:
        return [
            *_pairs("--ulimit", self.ulimits),
            *("--pids-limit", str(self.pids_limit)),
            *(["--memory", self.memory] if self.memory else []),
            *(["--cpus", self.cpus] if self.cpus else []),
        ]

    def hosts_file(self) -> str:
        """An ``/etc/hosts`` that names this container and nobody else: Podman's own one tells the host's address."""
        hostname = self.labels.get("openshell.sandbox", self.name)
        return f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n{self.ip}\t{hostname}\n"


def hardware_address(container: str) -> str:
    """The MAC address of *container* on its sandbox's network, a locally administered one (IEEE 802, section 8.2.2).

    It stays when the container is made anew: its neighbours, which keep addresses for a while, need not find out.
    """
    return ":".join(("02", *re.findall("..", hashlib.sha256(container.encode()).hexdigest()[:10])))


def files_archive(files: Mapping[str, str], uid: int = 0, mode: int = 0o644) -> bytes:
    """A tar stream of *files* (path → text), owned by *uid*, for ``podman cp - CONTAINER:DIRECTORY``."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path, text in sorted(files.items()):
            data = text.encode()
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size, member.mode, member.uid, member.gid = len(data), mode, uid, uid
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def _pairs(flag: str, values: Sequence[str]) -> List[str]:
    return [word for value in values for word in (flag, value)]
