# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Secrets in a real sandbox: they work at their destination, and a planted one is found nowhere that it must not be."""

from __future__ import annotations

import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Origin, inside, playbook, podman

NAME = "it-secrets"
PROXY, AGENT = f"openshell-proxy-{NAME}", f"openshell-agent-{NAME}"
# What is searched for is the part that all planted values share.
MARKER = "p1antedMARKERvalue"
FIRST, SECOND, THIRD = f"sk-{MARKER}-first-0001", f"sk-{MARKER}-second-002", f"sk-{MARKER}-by-command"


class Echo:
    """A server that notes each request's ``X-Key`` and ``Authorization`` and answers with them."""

    def __init__(self, origin: Origin) -> None:
        seen: list[tuple[str, str]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                got = (self.headers.get("X-Key", ""), self.headers.get("Authorization", ""))
                seen.append(got)
                body = " ".join(got).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.seen = seen
        server = http.server.ThreadingHTTPServer((origin.address, 0), Handler)
        server.daemon_threads = True
        server.socket = origin.context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        self.address, self.port = origin.address, server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()


def holds(data: bytes) -> bool:
    return MARKER.encode() in data


class Processes:
    """Looks at the arguments and environments of all processes of this host, again and again, until told to stop."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.looks = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.is_set():
            self.looks += 1
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        if holds((process / name).read_bytes()):
                            self.found.append(f"{process}/{name}")
                    except OSError:
                        continue  # it has ended

    def stop(self) -> list[str]:
        self._stop.set()
        self._thread.join()
        return self.found


def secrets(origin: Origin, first: str, command: Path) -> list[dict[str, object]]:
    hosts = [origin.address]
    return [
        {"name": "key", "value": first, "hosts": hosts, "env": "THE_KEY"},
        {"name": "long", "value": first, "hosts": hosts, "env": "THE_LONG_KEY", "placeholder": "random"},
        {
            "name": "token",
            "command": [str(command)],
            "hosts": hosts,
            "header": "Authorization",
            "format": "Bearer {value}",
        },
    ]


@pytest.fixture(scope="module")
def echo(origin: Origin) -> Echo:
    return Echo(origin)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = tmp_path_factory.mktemp("secrets") / "print"
    script.write_text(f"#!/bin/sh\necho {THIRD}\n")
    script.chmod(0o700)
    return script


def given(directory: Path, entries: list[dict[str, object]]) -> str:
    """A variables file, as a vault would be: what a person types on the command line is an argument."""
    file = directory / "variables.json"
    file.write_text(json.dumps({"openshell_secrets": entries}))
    return f"@{file}"


Made = tuple[str, list[str], int]


@pytest.fixture(scope="module")
def made(origin: Origin, echo: Echo, command: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """What creation printed at the highest verbosity, and which processes showed a secret meanwhile."""
    endpoint = {
        "host": origin.address,
        "port": echo.port,
        "protocol": "rest",
        "enforcement": "enforce",
        "access": "full",
    }
    variables = {
        "sandbox_name": NAME,
        "openshell_allow_host_registries": True,
        "openshell_upstream_ca_bundle": str(origin.ca_bundle),
        "openshell_policy": {"version": 1, "network_policies": {"echo": {"endpoints": [endpoint]}}},
    }
    file = given(tmp_path_factory.mktemp("variables"), secrets(origin, FIRST, command))
    watched = Processes()
    try:
        result = playbook("create_sandbox", "-vvvv", "--diff", "-e", file, **variables)
        found = watched.stop()
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
        yield result.stdout + result.stderr, found, watched.looks
    finally:
        watched.stop()
        playbook("delete_sandbox", sandbox_name=NAME)


def ask(echo: Echo, variable: str) -> str:
    """The agent sends what its *variable* holds; what it gets back."""
    url = f"https://{echo.address}:{echo.port}/"
    script = f'curl -sS -H "X-Key: ${variable}" {url}'
    done = inside(NAME, "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_destination_gets_the_secret_and_the_agent_never_does(made: Made, echo: Echo) -> None:
    answer = ask(echo, "THE_KEY")
    assert echo.seen[-1] == (FIRST, f"Bearer {THIRD}")
    assert not holds(answer.encode())
    random = inside(NAME, "printenv", "THE_LONG_KEY").stdout.strip()
    assert random.startswith("sk-")
    assert len(random) == len(FIRST)
    assert ask(echo, "THE_LONG_KEY").split()[0] == random
    assert echo.seen[-1][0] == FIRST


def test_creation_shows_no_secret_at_any_verbosity_nor_in_a_process(made: Made) -> None:
    output, processes, looks = made
    assert "Sandbox: take the steps" in output  # one of which hands them over
    assert looks > 10
    assert not holds(output.encode())
    assert not processes


def mountpoint(volume: str) -> Path:
    return Path(podman("volume", "inspect", "--format", "{{.Mountpoint}}", volume).stdout.strip())


def test_the_sidecars_volume_alone_holds_it(made: Made) -> None:
    """The one place where it is found, which shows that this search finds what is there."""
    volumes = [f"openshell-{kind}-{NAME}" for kind in ("proxy", "tls", "workspace")]
    found = [
        file.relative_to(mountpoint(volume)) if volume == f"openshell-proxy-{NAME}" else file
        for volume in volumes
        for file in mountpoint(volume).rglob("*")
        if file.is_file() and holds(file.read_bytes())
    ]
    assert found == [Path("config/secrets.json")]
    stat = (mountpoint(f"openshell-proxy-{NAME}") / "config/secrets.json").stat()
    assert stat.st_mode & 0o777 == 0o600


def test_podman_knows_nothing_of_it(made: Made) -> None:
    images = podman("inspect", "--format", "{{.Image}}", PROXY, AGENT).stdout.split()
    told = [
        podman("inspect", PROXY, AGENT).stdout,
        podman("logs", PROXY).stdout + podman("logs", PROXY).stderr,
        podman("logs", AGENT).stdout,
        podman("diff", PROXY).stdout,
        *[podman("image", "inspect", image).stdout for image in images],
        *[podman("history", "--no-trunc", image).stdout for image in images],
        podman("exec", PROXY, "openshell-proxy", "status").stdout,
    ]
    assert not holds("\n".join(told).encode())


def test_the_agent_has_it_nowhere(made: Made) -> None:
    planted = inside(NAME, "sh", "-c", f"echo {MARKER} > /var/tmp/control")
    assert planted.returncode == 0
    search = f"grep -rslF {MARKER} / --exclude-dir=proc --exclude-dir=sys; grep -lF {MARKER} /proc/[0-9]*/environ"
    found = inside(NAME, "sh", "-c", search).stdout.split()
    inside(NAME, "rm", "/var/tmp/control")
    assert found == ["/var/tmp/control"]


def test_neither_the_hosts_logs_nor_ansibles_leavings_hold_it(made: Made) -> None:
    logs = [Path(name) for name in ("/var/log/syslog", "/var/log/messages", "/var/log/user.log")]
    leavings = [file for tree in ("~/.ansible", "/var/tmp") for file in Path(tree).expanduser().rglob("*ansible*")]
    held = [file for file in [*logs, *leavings] if file.is_file() and holds(file.read_bytes())]
    assert not held
    journal = subprocess.run(["sh", "-c", f"! command -v journalctl || journalctl -q --grep {MARKER} | cat"],
                             text=True, capture_output=True, check=False)  # fmt: skip
    assert not holds(journal.stdout.encode())


def test_the_sidecars_process_shows_nobody_its_memory(made: Made) -> None:
    pid = podman("inspect", "--format", "{{.State.Pid}}", PROXY).stdout.strip()
    limits = Path(f"/proc/{pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    assert Path(f"/proc/{pid}/environ").stat().st_uid == 0  # not dumpable: the kernel gives its files to root (proc(5))
    for name in ("cmdline", "environ"):
        assert not holds(Path(f"/proc/{pid}/{name}").read_bytes())


def test_rotation_needs_no_restart_and_shows_nothing(
    made: Made, origin: Origin, echo: Echo, command: Path, tmp_path: Path
) -> None:
    started = podman("inspect", "--format", "{{.State.StartedAt}}", PROXY, AGENT).stdout
    file = given(tmp_path, secrets(origin, SECOND, command))
    watched = Processes()
    try:
        result = playbook("rotate_secrets", "-vvvv", "--diff", "-e", file, sandbox_name=NAME)
    finally:
        found = watched.stop()
    assert result.returncode == 0, result.stdout[-3000:]
    assert not holds((result.stdout + result.stderr).encode())
    assert not found
    ask(echo, "THE_KEY")
    assert echo.seen[-1][0] == SECOND
    ask(echo, "THE_LONG_KEY")  # the agent's environment did not change, so the placeholder it holds still counts
    assert echo.seen[-1][0] == SECOND
    assert podman("inspect", "--format", "{{.State.StartedAt}}", PROXY, AGENT).stdout == started


def test_a_refused_rotation_changes_nothing_and_says_why_without_the_value(
    made: Made, origin: Origin, echo: Echo, command: Path, tmp_path: Path
) -> None:
    ask(echo, "THE_KEY")
    before = echo.seen[-1]
    bad = [*secrets(origin, FIRST, command)[1:], {"name": "key", "value": f"{FIRST}\n2", "hosts": [origin.address]}]
    result = playbook("rotate_secrets", "-vvvv", "-e", given(tmp_path, bad), sandbox_name=NAME)
    assert result.returncode != 0
    assert "secret 'key' has a value with a line break" in result.stdout.replace("''", "'")
    assert not holds((result.stdout + result.stderr).encode())
    ask(echo, "THE_KEY")
    assert echo.seen[-1] == before


def test_bad_secrets_are_refused_before_anything_is_created(tmp_path: Path) -> None:
    entry = {"name": "key", "value": FIRST, "hosts": []}
    result = playbook("create_sandbox", "-vvvv", "-e", given(tmp_path, [entry]), sandbox_name="it-refused")
    assert result.returncode != 0
    assert "is bound to no host" in result.stdout
    assert not holds((result.stdout + result.stderr).encode())
    assert not podman("ps", "-a", "--filter", "name=it-refused", "--format", "{{.Names}}").stdout
