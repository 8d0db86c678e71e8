# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The package registries that this host itself uses, read from its own pip, npm and apt configuration."""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Callable, Dict, Iterable, List, Sequence, Set, Tuple
from urllib.parse import urljoin, urlsplit, urlunsplit

from ansible.module_utils.urls import open_url

DEFAULT_PORTS = {"http": 80, "https": 443}

# Read-only use of a registry: npm and pip only ever fetch.
Run = Callable[[Sequence[str]], str]


@dataclasses.dataclass(frozen=True)
class Registries:
    """``endpoints``: (host, port) pairs; ``env``: variables that point an agent's tools at non-default registries."""

    endpoints: Tuple[Tuple[str, int], ...]
    env: Dict[str, str]


def run_quietly(command: Sequence[str]) -> str:
    """Standard output of *command*, or "" when it does not exist, fails or does not end within 20 seconds."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def host_registries(run: Run = run_quietly, links: Callable[[str], List[str]] | None = None) -> Registries:
    """Every registry that apt, pip and npm of this host are set up to use."""
    endpoints: Set[Tuple[str, int]] = set()
    env: Dict[str, str] = {}
    endpoints.update(_endpoints(apt_sites(run)))
    pip_urls, pip_env = pip_sites(run, links or index_links)
    npm_urls, npm_env = npm_sites(run)
    endpoints.update(_endpoints(pip_urls))
    endpoints.update(_endpoints(npm_urls))
    env.update(pip_env)
    env.update(npm_env)
    return Registries(tuple(sorted(endpoints)), env)


def apt_sites(run: Run) -> List[str]:
    """apt-get(8): every repository that apt would fetch an index from."""
    return run(["apt-get", "indextargets", "--format", "$(REPO_URI)"]).split()


_PIP_DEFAULTS = "from pip._internal.models.index import PyPI; import json; print(json.dumps([PyPI.simple_url, PyPI.file_storage_domain]))"


def pip_sites(run: Run, links: Callable[[str], List[str]]) -> Tuple[List[str], Dict[str, str]]:
    """The index and where its files lie. A configured index tells the latter only by its own pages."""
    python = next((found for found in ("python3", sys.executable) if run([found, "-m", "pip", "--version"])), "")
    if not python:
        return [], {}
    listed = run([python, "-m", "pip", "config", "list"])
    # pip config list: one key='value' a line; index-url of any section, from files or from the environment
    configured = re.findall(r"^\S*\.index-url='([^']+)'$", listed, re.MULTILINE)
    if configured:
        index = without_credentials(configured[0])
        return [index, *links(index)], {"PIP_INDEX_URL": index}
    try:
        index, files = json.loads(run([python, "-c", _PIP_DEFAULTS]))
    except ValueError:
        return [], {}
    return [index, f"https://{files}/"], {}


def npm_sites(run: Run) -> Tuple[List[str], Dict[str, str]]:
    """npm-config(7): the registry; tarballs of the default one lie on the same host."""
    registry = without_credentials(run(["npm", "config", "get", "registry"]))
    if urlsplit(registry).scheme not in DEFAULT_PORTS:
        return [], {}
    return [registry], {"npm_config_registry": registry}


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: List[str] = []

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, str | None]]) -> None:
        self.found += [value for key, value in attrs if tag == "a" and key == "href" and value]


def index_links(index: str) -> List[str]:
    """Where the files of a simple index (PEP 503) lie, from its page of one package; [] when it does not answer."""
    page = urljoin(index.rstrip("/") + "/", "pip/")
    try:
        with open_url(page, headers={"Accept": "text/html"}, timeout=10) as answer:
            parser = _Links()
            parser.feed(answer.read(2_000_000).decode(errors="replace"))
        return [urljoin(page, link) for link in parser.found]
    except (OSError, ValueError, http.client.HTTPException):
        return []


def without_credentials(url: str) -> str:
    """The URL without user and password: a registry's credentials are a matter for openshell_secrets."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _endpoints(urls: Iterable[str]) -> Iterable[Tuple[str, int]]:
    for url in urls:
        try:
            parts = urlsplit(url)
            port = parts.port or DEFAULT_PORTS.get(parts.scheme)
        except ValueError:  # not an address that anybody could fetch from
            continue
        if parts.hostname and port:
            yield parts.hostname, port


def as_policy(registries: Registries) -> Dict[str, object]:
    """The registries as one entry of ``network_policies``: reading only."""
    return {
        "name": "package registries of the host",
        "endpoints": [
            {"host": host, "port": port, "protocol": "rest", "access": "read-only", "enforcement": "enforce"}
            for host, port in registries.endpoints
        ],
    }
