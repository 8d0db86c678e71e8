# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From inside the sandbox, real tools with no flags or configuration of their own."""

from __future__ import annotations

import subprocess

import pytest
from conftest import Origin, audit, inside

pytestmark = pytest.mark.usefixtures("sandbox")


def test_pip_installs_a_package(sandbox: str) -> None:
    done = inside(sandbox, "sh", "-c", "pip install -q requests httpx && python3 -c 'import requests, httpx; print(1)'")
    assert done.stdout.strip() == "1", done.stderr


def test_npm_installs_a_package(sandbox: str) -> None:
    done = inside(
        sandbox, "sh", "-c", "mkdir -p /sandbox/n && cd /sandbox/n && npm install --silent is-odd && ls node_modules"
    )
    assert "is-odd" in done.stdout, done.stderr + done.stdout


def test_apt_installs_a_package(sandbox: str) -> None:
    done = inside(
        sandbox, "sh", "-c", "apt-get update -q && apt-get install -qy --no-install-recommends tree && tree --version"
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "tree v" in done.stdout


def test_apt_installs_what_belongs_to_another_user(sandbox: str) -> None:
    """Without a single capability: the control is that chown(2) itself fails there."""
    assert inside(sandbox, "sh", "-c", "touch /tmp/mine && chown daemon /tmp/mine").returncode != 0
    assert "CapEff:\t0000000000000000" in inside(sandbox, "cat", "/proc/self/status").stdout
    done = inside(sandbox, "sh", "-c", "apt-get update -q && apt-get install -qy --no-install-recommends at")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "daemon" in inside(sandbox, "grep", "daemon", "/var/lib/dpkg/info/at.postinst").stdout
    assert inside(sandbox, "dpkg-query", "-W", "-f", "${db:Status-Status}", "at").stdout == "installed"


def test_git_clones_over_https(sandbox: str, origin: Origin) -> None:
    work = origin.directory / "work"
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", "init", "-q", str(work)], check=True)
    (work / "README").write_text("cloned\n")
    subprocess.run(["git", "-C", str(work), "add", "."], check=True)
    subprocess.run(["git", "-C", str(work), *identity, "commit", "-qm", "one"], check=True)
    bare = origin.files / "repo.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(bare)], check=True)
    subprocess.run(["git", "-C", str(bare), "update-server-info"], check=True)
    url = f"https://{origin.address}:{origin.https}/repo.git"
    done = inside(sandbox, "sh", "-c", f"rm -rf /tmp/clone && git clone -q {url} /tmp/clone && cat /tmp/clone/README")
    assert done.stdout == "cloned\n", done.stderr


def test_git_over_ssh_says_why_not(sandbox: str) -> None:
    done = inside(sandbox, "git", "clone", "git@example.com:a/b.git", "/tmp/never")
    assert done.returncode != 0
    assert "SSH disabled — use HTTPS" in done.stderr


FETCH = {
    "curl": "curl -fsS {url}",
    "wget": "wget -qO- {url}",
    "urllib": "python3 -c \"import urllib.request as r; print(r.urlopen('{url}').read().decode(), end='')\"",
    "requests": "pip install -q requests && python3 -c \"import requests; print(requests.get('{url}').text, end='')\"",
    "httpx": "pip install -q httpx && python3 -c \"import httpx; print(httpx.get('{url}').text, end='')\"",
}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("tool", FETCH)
def test_tool_fetches(sandbox: str, origin: Origin, tool: str, scheme: str) -> None:
    port = origin.http if scheme == "http" else origin.https
    done = inside(sandbox, "sh", "-c", FETCH[tool].format(url=f"{scheme}://{origin.address}:{port}/hello.txt"))
    assert done.stdout == "hello from outside\n", done.stderr


def test_a_refusal_says_which_rule_is_missing(sandbox: str, origin: Origin) -> None:
    done = inside(sandbox, "curl", "-s", "-X", "DELETE", f"https://{origin.address}:{origin.https}/hello.txt")
    assert '"error": "policy_denied"' in done.stdout
    assert '"rule_missing"' in done.stdout
    denied = [one for one in audit(sandbox) if one.get("action_id") == 2]
    assert any(str(one["message"]).startswith("L7_REQUEST deny DELETE") for one in denied)


def test_the_log_has_no_query(sandbox: str, origin: Origin) -> None:
    inside(sandbox, "curl", "-s", f"https://{origin.address}:{origin.https}/hello.txt?token=hush-hush")
    lines = [str(one) for one in audit(sandbox)]
    assert any("/hello.txt" in line for line in lines)
    assert not any("hush-hush" in line for line in lines)
