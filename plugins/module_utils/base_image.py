# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The base image: pulled where a registry answers, else bootstrapped from the distribution's own package mirror."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import subprocess
import urllib.error
from typing import Dict, List, Sequence

from ansible.module_utils.urls import open_url
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman, last_words

PROBE_SECONDS = 5
IMAGES_LOCK = "images"  # who makes or removes images holds it: a build's layers are nobody's for a moment
BOOTSTRAPPED = frozenset(("debian", "ubuntu"))


class NoBase(Exception):
    """There is no base image and no way to one; one sentence."""


def os_release(path: str = "/etc/os-release") -> Dict[str, str]:
    """os-release(5) as a mapping."""
    with open(path, encoding="utf-8") as handle:
        pairs = [line.rstrip("\n").split("=", 1) for line in handle if "=" in line]
    return {key: value.strip("\"'") for key, value in pairs}


def registry_answers(reference: str) -> bool:
    """Whether the registry of a full image name answers at all (distribution spec: GET /v2/ is 200 or 401)."""
    host = reference.split("/", 1)[0]
    host = "registry-1.docker.io" if host == "docker.io" else host
    try:
        with open_url(f"https://{host}/v2/", timeout=PROBE_SECONDS) as answer:
            return int(answer.status) == 200
    except urllib.error.HTTPError as error:
        return error.code == 401
    except (OSError, ValueError, http.client.HTTPException):
        return False


def why_no_bootstrap(release: Dict[str, str]) -> str:
    """Why this host cannot bootstrap a base image, or ""."""
    if release.get("ID") not in BOOTSTRAPPED or not release.get("VERSION_CODENAME"):
        return (
            f"{release.get('ID', 'this distribution')} has no bootstrap here, only Debian and Ubuntu have; "
            "name in openshell_base_image a Debian image that is on this host or that it can pull"
        )
    if shutil.which("mmdebstrap") is None:
        return "mmdebstrap is not installed; install the package mmdebstrap"
    return ""


def package_sources() -> str:
    """This host's own package sources as one-line entries (sources.list(5))."""
    form = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    lines = sorted({line for line in result.stdout.decode().splitlines() if line.startswith("deb http")})
    if not lines:
        raise NoBase("this host has no package source with an index; run apt-get update")
    return "\n".join(lines) + "\n"


def choose(source: str, reference: str) -> str:
    """``pull`` or ``bootstrap``. Raises :class:`NoBase` when neither is possible."""
    if source == "pull":
        return source
    if source == "auto" and registry_answers(reference):
        return "pull"
    reason = why_no_bootstrap(os_release())
    if reason:
        where = "" if source == "bootstrap" else f"the registry of {reference} does not answer, and "
        raise NoBase(f"{where}a base image cannot be bootstrapped: {reason}")
    return "bootstrap"


def bootstrap(podman: Podman, name: str, packages: Sequence[str]) -> None:
    """Make the image *name* with mmdebstrap, streamed into ``podman import``. Raises :class:`NoBase`."""
    suite = os_release()["VERSION_CODENAME"]
    slim = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("man", "info", "locale", "groff", "lintian")]
    slim += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright"]
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=essential",
        f"--include={','.join(packages)}",
        *slim,
        suite,
        "-",
        "-",
    ]
    sources = package_sources().encode()
    environ = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
    ) as maker:
        if maker.stdin is None or maker.stdout is None or maker.stderr is None:
            raise AssertionError("pipes that were asked for are there")
        # One that ends before it has read them tells why by its status.
        with contextlib.suppress(BrokenPipeError), maker.stdin:
            maker.stdin.write(sources)
        imported = subprocess.run(
            [*podman.command(), "import", "--change", "LABEL openshell.managed=true", "-", name],
            stdin=maker.stdout,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
        )
        maker.stdout.close()
        words = maker.stderr.read().decode(errors="replace")
    if maker.returncode:
        podman.run(["rmi", "--force", name], check=False)
        raise NoBase(f"bootstrapping the base image failed: {last_words(words)}")
    if imported.returncode:
        raise NoBase(f"importing the base image failed: {last_words(imported.stderr.decode(errors='replace'))}")


def pull(podman: Podman, reference: str) -> None:
    """Pull *reference*. Raises :class:`NoBase`."""
    result = podman.run(["pull", "--quiet", reference], check=False)
    if result.rc:
        raise NoBase(f"the image {reference} cannot be pulled: {last_words(result.stderr)}")


def build_arguments(base: str, packages: Sequence[str], ca_bundle: str, ulimits: Sequence[str]) -> List[str]:
    """Arguments of ``podman build`` for a context on standard input."""
    arguments = ["build", "--quiet", "--pull=never", "--force-rm", "--build-arg", f"BASE={base}"]
    arguments += ["--build-arg", f"PACKAGES={' '.join(packages)}"]
    arguments += [word for limit in ulimits for word in ("--ulimit", limit)]
    if ca_bundle:
        # On an SELinux host the file keeps its label, or the rest of the host could not read it any more.
        arguments += ["--security-opt", "label=disable"]
        arguments += ["--volume", f"{os.path.realpath(ca_bundle)}:/etc/ssl/certs/ca-certificates.crt:ro"]
    return arguments
