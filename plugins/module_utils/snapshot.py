# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A sandbox's file system as an image, without what belongs to the sandbox: environment, labels, /etc/hosts.

``podman commit`` copies the container's environment into the image, and nothing takes a variable out of an image again.
So what it made is described anew: an OCI archive that holds a new configuration and only those layers that differ,
which Podman loads onto the layers that it has already. It also does what Podman 4.3 forgets: files of a container with
a user namespace get their owners inside it, not those on the host.

Source: OCI image specification 1.0, image layout, manifest, configuration.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
from typing import IO, Any, Dict, List, Mapping, Tuple

from ansible_collections.openshell.sandbox.plugins.module_utils.container_spec import files_archive
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Json, Podman, PodmanError, is_running
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import UID_RANGE

LABEL_OF = "openshell.snapshot"
HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n"
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
KEPT_SETTINGS = ("Env", "Cmd", "Entrypoint", "WorkingDir", "User", "ExposedPorts", "Volumes", "StopSignal")


def reference(name: str, tag: str) -> str:
    return f"localhost/openshell-snapshot-{name}:{tag}"


def take(podman: Podman, agent: Json, uid_base: int, wanted: str, labels: Mapping[str, str]) -> str:
    """Make the image *wanted* of the inspected container *agent*, which goes on afterwards; its id.

    *uid_base*: the host id of uid 0 inside, 0 where Podman itself sees the ids that count inside.
    """
    raw = wanted + "-raw"
    base = image(podman, agent["Image"])
    pause = ["--pause"] if is_running(agent) and _can_pause(podman) else ["--pause=false"]
    podman.run(["commit", "--quiet", *pause, agent["Name"], raw])
    try:
        with tempfile.TemporaryDirectory(prefix="openshell-snapshot-") as directory:
            archive = os.path.join(directory, "archive.tar")
            _write_archive(podman, directory, archive, (raw, wanted), base, uid_base, labels)
            podman.run(["load", "--quiet", "--input", archive])
    finally:
        podman.remove_image(raw)
    found = podman.image_id(wanted)
    if found is None:
        raise PodmanError("load", 1, f"the image {wanted} was loaded and is not there")
    return found


def image(podman: Podman, name: str) -> Json:
    found: Json = podman.json(["image", "inspect", name])[0]
    return found


def _can_pause(podman: Podman) -> bool:
    return not podman.rootless or podman.info["host"].get("cgroupVersion") == "v2"


def _write_archive(
    podman: Podman,
    directory: str,
    archive: str,
    names: Tuple[str, str],
    base: Json,
    uid_base: int,
    labels: Mapping[str, str],
) -> None:
    made = image(podman, names[0])
    layers = [{"digest": digest, "size": 1} for digest in made["RootFS"]["Layers"]]  # those are there already
    with tarfile.open(archive, "w") as layout:
        if uid_base and len(layers) > len(base["RootFS"]["Layers"]):
            layers[-1] = _own_layer(podman, directory, layout, names[0], layers[-1]["digest"], uid_base)
        layers.append(_blob(layout, files_archive({"etc/hosts": HOSTS})))
        config = _blob(layout, json.dumps(_config(made, base, layers, labels)).encode())
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, **config},
            "layers": [{"mediaType": LAYER, **layer} for layer in layers],
        }
        entry = {"mediaType": MANIFEST, **_blob(layout, json.dumps(manifest).encode())}
        entry["annotations"] = {"org.opencontainers.image.ref.name": names[1]}
        _member(layout, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
        _member(layout, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')


def _config(made: Json, base: Json, layers: List[Json], labels: Mapping[str, str]) -> Json:
    """The image's configuration: the base's, on these layers."""
    settings = base.get("Config") or {}
    config: Json = {key: settings[key] for key in KEPT_SETTINGS if settings.get(key)}
    config["Labels"] = {**(settings.get("Labels") or {}), **labels}
    return {
        "created": made["Created"],
        "architecture": made["Architecture"],
        "os": made["Os"],
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        "history": [{"created": made["Created"], "created_by": "openshell snapshot"} for layer in layers],
    }


def _own_layer(
    podman: Podman, directory: str, layout: tarfile.TarFile, name: str, digest: str, uid_base: int
) -> Dict[str, Any]:
    """What the agent changed, with the owners inside its user namespace."""
    path = os.path.join(directory, "layer.tar")
    wanted = digest.partition(":")[2] + ".tar"
    with subprocess.Popen(
        [*podman.command(), "save", "--quiet", "--format", "docker-archive", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as saving:
        found = False
        saved, words = _piped(saving.stdout), _piped(saving.stderr)
        with tarfile.open(fileobj=saved, mode="r|") as stream:
            for member in stream:
                content = stream.extractfile(member) if member.name == wanted else None
                if content is not None:
                    found = True
                    with open(path, "wb") as target:
                        shift_owners(content, target, uid_base)
        said = words.read().decode(errors="replace")
    if saving.returncode != 0 or not found:
        raise PodmanError("save", saving.returncode, said or f"it did not save the layer {digest}")
    return _file_blob(layout, path)


def _piped(stream: IO[bytes] | None) -> IO[bytes]:
    """The stream of a process that was started with a pipe there."""
    if stream is None:
        raise AssertionError("the process has no pipe there")
    return stream


def copy_directory(podman: Podman, source: str, uid_base: int, target: str, directory: str) -> None:
    """Stream *directory* from one container into another through this process, which gives owners their numbers inside.

    Raises PodmanError.
    """
    take = [*podman.command(), "cp", f"{source}:{directory}/.", "-"]
    give = [*podman.command(), "cp", "--archive=false", "-", f"{target}:{directory}"]
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as stack:
        taking = stack.enter_context(subprocess.Popen(take, stdout=pipe, stderr=pipe))
        giving = stack.enter_context(subprocess.Popen(give, stdin=pipe, stderr=pipe))
        taken, given = _piped(taking.stdout), _piped(giving.stdin)
        broken = ""
        try:
            shift_owners(taken, given, uid_base)
        except (OSError, ValueError, tarfile.TarError) as error:  # whatever podman says of it is better
            broken = str(error)
        finally:
            for stream in (taken, given):
                with contextlib.suppress(OSError):
                    stream.close()
        told = [_piped(one.stderr).read().decode(errors="replace") for one in (taking, giving)]
    for process, words in ((taking, told[0]), (giving, told[1])):
        if process.returncode != 0:
            raise PodmanError("cp", process.returncode, words or broken)
    if broken:
        raise PodmanError("cp", 1, broken)


def shift_owners(source: Any, target: Any, uid_base: int) -> None:
    """Copy a tar stream; owners among the host ids of a sandbox (from *uid_base* on) become those inside it."""

    def inside(number: int) -> int:
        return number - uid_base if uid_base and uid_base <= number < uid_base + UID_RANGE else number

    with contextlib.ExitStack() as stack:  # Python 3.8 knows no parentheses here
        before = stack.enter_context(tarfile.open(fileobj=source, mode="r|"))
        after = stack.enter_context(tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT))
        for member in before:
            member.uid, member.gid = inside(member.uid), inside(member.gid)
            member.uname = member.gname = ""
            member.pax_headers = {key: value for key, value in member.pax_headers.items() if key not in ("uid", "gid")}
            after.addfile(member, before.extractfile(member) if member.isreg() else None)


def _blob(layout: tarfile.TarFile, content: bytes) -> Dict[str, Any]:
    """Put *content* into the layout; its digest and size."""
    digest = hashlib.sha256(content).hexdigest()
    _member(layout, f"blobs/sha256/{digest}", content)
    return {"digest": f"sha256:{digest}", "size": len(content)}


def _file_blob(layout: tarfile.TarFile, path: str) -> Dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for part in iter(lambda: handle.read(1 << 20), b""):
            digest.update(part)
    layout.add(path, f"blobs/sha256/{digest.hexdigest()}")
    return {"digest": f"sha256:{digest.hexdigest()}", "size": os.path.getsize(path)}


def _member(layout: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    layout.addfile(member, io.BytesIO(content))
