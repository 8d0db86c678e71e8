# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sidecar's configuration: files on the volume that only it mounts, which it reads again when told.

The volume is the truth, so the same comparison serves a running, a stopped and a not yet started sidecar.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import Any, Dict, List, Mapping, Tuple

from ansible_collections.openshell.sandbox.plugins.module_utils.container_spec import files_archive
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Json, Podman, is_running
from ansible_collections.openshell.sandbox.plugins.module_utils.readiness import (
    NotReady,
    sidecar_ready,
    wait_ready,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNames

DIRECTORY = "/var/lib/openshell/config"
UID = 1337
POLICY = "policy.yaml"
UPSTREAM_CA = "upstream-ca.pem"
UPSTREAM_PROXY_AUTH = "upstream-proxy-auth"
SECRETS = "secrets.json"
INFERENCE = "inference.json"

# Certificates are public but long; a diff names their digest.
SHOWN_AS_DIGEST = frozenset({UPSTREAM_CA})
SECRET = frozenset({UPSTREAM_PROXY_AUTH, SECRETS, INFERENCE})
# Where the sidecar tells what is wrong with a file; of every other one with the policy.
_ERRORS = {SECRETS: "credentials_error", INFERENCE: "inference_error"}


class Rejected(Exception):
    """The living sidecar refused its new configuration and goes on with the old one; the message has its words."""


@dataclasses.dataclass(frozen=True)
class Config:
    """``files`` (name → text) of ``directory`` inside, which lies on ``volume``, owned by ``uid`` inside."""

    files: Mapping[str, str]
    directory: str
    volume: str
    uid: int


def policy_config(names: SandboxNames, policy: str) -> Config:
    """The policy alone, in a sandbox that exists."""
    return Config({POLICY: policy}, DIRECTORY, names.proxy_volume, UID)


def secrets_config(names: SandboxNames, document: str, policy: str = "") -> Config:
    """The secrets, with a *policy* if they come with one, in a sandbox that exists."""
    files = {SECRETS: document, **({POLICY: policy} if policy else {})}
    return Config(files, DIRECTORY, names.proxy_volume, UID)


def inference_config(names: SandboxNames, document: str) -> Config:
    """The routes of inference alone, in a sandbox that exists."""
    return Config({INFERENCE: document}, DIRECTORY, names.proxy_volume, UID)


@dataclasses.dataclass(frozen=True)
class Outcome:
    changed: bool
    diffs: List[Json]


def read_current(podman: Podman, config: Config) -> Dict[str, str]:
    """Name → text of the files as they lie on the volume; absent ones are ""."""
    mountpoint = podman.volume_path(config.volume)
    directory = os.path.join(mountpoint, os.path.basename(config.directory)) if mountpoint else ""
    return {name: _read(os.path.join(directory, name)) if directory else "" for name in config.files}


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as handle:
            return handle.read()
    except FileNotFoundError:
        return ""


def converge(
    podman: Podman, container: str, tls_volume: str, config: Config, timeout: float, check_mode: bool
) -> Outcome:
    """Put the files there if they differ; a running sidecar is told and must agree. Raises :class:`Rejected`."""
    current = read_current(podman, config)
    changed = {name: text for name, text in config.files.items() if current[name] != text}
    if not changed and unread(podman, container, tls_volume, config):
        changed = dict(config.files)  # a run was ended between the copy and the signal
    if changed and not check_mode:
        before = sidecar_ready(podman, container, podman.volume_path(tls_volume)) or {}
        put(podman, container, config, changed)
        if is_running(podman.container(container)):
            previous = {name: current[name] for name in changed}
            _hand_over(podman, container, tls_volume, config, previous, before, timeout)
    return Outcome(bool(changed), [_diff(name, current[name], text) for name, text in sorted(changed.items())])


def unread(podman: Podman, container: str, tls_volume: str, config: Config) -> bool:
    """Whether a living sidecar wrote its sentinel before one of the files came to be there.

    The kernel's own moment (ctime) of the files counts: the other one is what an archive says.
    """
    directory = podman.volume_path(tls_volume)
    if sidecar_ready(podman, container, directory) is None:
        return False
    told = os.stat(os.path.join(directory, ".ready")).st_mtime_ns
    own = os.path.join(podman.volume_path(config.volume), os.path.basename(config.directory))
    files = [os.path.join(own, name) for name, text in config.files.items() if text]
    return any(os.stat(file).st_ctime_ns > told for file in files if os.path.exists(file))


def put(podman: Podman, container: str, config: Config, files: Mapping[str, str]) -> None:
    """Copy *files* into the container's volume, which works whether it runs or not."""
    volume_root, folder = os.path.split(config.directory)
    for mode, chosen in ((0o644, set(files) - SECRET), (0o600, set(files) & SECRET)):
        members = {os.path.join(folder, name): files[name] for name in chosen}
        if members:
            podman.run(["cp", "-", f"{container}:{volume_root}"], stdin=files_archive(members, config.uid, mode))


def _hand_over(
    podman: Podman,
    container: str,
    tls_volume: str,
    config: Config,
    previous: Mapping[str, str],
    before: Json,
    timeout: float,
) -> None:
    """Tell the sidecar to read again and wait for its word on exactly these files: a generation later than *before*.

    Nothing of a secret is in its word, which the agent can read; that it has read it, the generation's number tells.
    """
    told = {POLICY: "read_policy_digest", UPSTREAM_CA: "read_upstream_ca_digest"}
    digests = {told[name]: digest(text) for name, text in config.files.items() if name in told}

    def moment(sentinel: Json) -> Tuple[Any, Any]:
        return sentinel.get("started_ticks"), sentinel.get("generation")

    def answered(sentinel: Json) -> bool:
        return moment(sentinel) != moment(before) and all(sentinel.get(key) == digests[key] for key in digests)

    podman.run(["kill", "--signal", "HUP", container])
    try:
        sentinel = wait_ready(podman, container, tls_volume, timeout, answered)
        places = sorted({_ERRORS.get(name, "policy_error") for name in config.files})
        refused: Any = next(filter(None, map(sentinel.get, places)), "")
    except NotReady as error:
        refused = str(error)
    if refused:
        put(podman, container, config, previous)
        podman.run(["kill", "--signal", "HUP", container], check=False)
        raise Rejected(f"the sidecar refused its new configuration and keeps the old one: {refused}")


def digest(text: str) -> str:
    """SHA-256 of a configuration file's bytes as the sidecar reports it; "" for an empty or absent file."""
    return hashlib.sha256(text.encode()).hexdigest() if text else ""


def _diff(name: str, before: str, after: str) -> Json:
    if name in SECRET:
        before, after = "a secret\n" if before else "", "another secret\n" if after else ""
    elif name in SHOWN_AS_DIGEST:
        before, after = digest(before) + "\n", digest(after) + "\n"
    return {"before": before, "after": after, "before_header": name, "after_header": name}
