# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's own registries: what apt, pip and npm tell, without anybody's password, for reading only."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils.registries import (
    Registries,
    as_policy,
    host_registries,
    index_links,
    run_quietly,
    without_credentials,
)
from host import Host

DEFAULTS = json.dumps(["https://index.example/simple", "files.example"])


def tools(**answers: str):  # type: ignore[no-untyped-def]
    """A host whose tools answer so; those not named are not installed."""

    def run(command: Sequence[str]) -> str:
        line = " ".join(command)
        for words, name in (
            ("apt-get indextargets", "apt"),
            ("pip --version", "pip"),
            ("pip config list", "pip_config"),
            ("PyPI", "pip_defaults"),
            ("npm config get registry", "npm"),
        ):
            if words in line:
                return answers.get(name, "")
        raise AssertionError(line)

    return run


def found(links: Sequence[str] = (), **answers: str) -> Registries:
    return host_registries(tools(**answers), lambda index: list(links))


def test_a_host_without_any() -> None:
    assert found() == Registries((), {})


def test_apt() -> None:
    lines = "http://deb.example/debian\nhttp://deb.example/debian\nhttps://sec.example:8443/x\nfile:/srv/repo\n"
    assert found(apt=lines).endpoints == (("deb.example", 80), ("sec.example", 8443))


def test_pip_without_an_index_of_its_own() -> None:
    assert found(pip="pip 24", pip_defaults=DEFAULTS) == Registries(
        (("files.example", 443), ("index.example", 443)), {}
    )
    assert found(pip="pip 24", pip_defaults="Traceback").endpoints == ()


@pytest.mark.parametrize("line", ["global.index-url", "install.index-url", ":env:.index-url"])
def test_pip_with_an_index_of_its_own(line: str) -> None:
    listed = f"global.timeout='5'\n{line}='https://me:hunter2@Index.Example:8443/simple/'\n"
    links = ["https://files.example/a.whl", "https://Index.Example:8443/b.whl"]
    told = found(links, pip="pip 24", pip_config=listed, pip_defaults=DEFAULTS)
    assert told.endpoints == (("files.example", 443), ("index.example", 8443))
    assert told.env == {"PIP_INDEX_URL": "https://Index.Example:8443/simple/"}


def test_an_extra_index_is_not_taken_for_the_index() -> None:
    listed = "global.extra-index-url='https://extra.example/simple'\n"
    assert found(pip="pip 24", pip_config=listed, pip_defaults=DEFAULTS).env == {}


def test_npm() -> None:
    told = found(npm="https://me:hunter2@npm.example/")
    assert told == Registries((("npm.example", 443),), {"npm_config_registry": "https://npm.example/"})
    for nothing in ("", "undefined", "ftp://npm.example/"):
        assert found(npm=nothing) == Registries((), {})


def test_all_together_in_order() -> None:
    told = found(apt="http://z.example/", pip="pip 24", pip_defaults=DEFAULTS, npm="http://a.example:4873/")
    assert [host for host, _ in told.endpoints] == ["a.example", "files.example", "index.example", "z.example"]


@pytest.mark.parametrize("bad", ["http://[half/", "http://host:port/", "http://host:99999/", "https:///path"])
def test_an_address_that_is_none_is_left_out(bad: str) -> None:
    assert found(apt=f"{bad}\nhttp://deb.example/").endpoints == (("deb.example", 80),)


@pytest.mark.parametrize(
    ("url", "without"),
    [
        ("https://u:p@host:1/x?y#z", "https://host:1/x?y#z"),
        ("https://token@host/", "https://host/"),
        ("https://u:p@w@host/", "https://host/"),
        ("https://host/a@b", "https://host/a@b"),
    ],
)
def test_credentials_stay_here(url: str, without: str) -> None:
    assert without_credentials(url) == without


def test_as_a_policy_it_is_for_reading() -> None:
    told = as_policy(Registries((("a.example", 443), ("b.example", 80)), {}))
    rest = {"protocol": "rest", "access": "read-only", "enforcement": "enforce"}
    assert told["endpoints"] == [
        {"host": "a.example", "port": 443, **rest},
        {"host": "b.example", "port": 80, **rest},
    ]
    assert set(told) == {"name", "endpoints"}


def test_commands_are_asked_quietly(host: Host) -> None:
    assert run_quietly([host.command("well", "echo ' yes '; echo no >&2")]) == "yes"
    assert run_quietly([host.command("ill", "echo yes; exit 1")]) == ""
    assert run_quietly(["/absent/command"]) == ""


class Index(BaseHTTPRequestHandler):
    """A simple index with one page."""

    def do_GET(self) -> None:
        page = '<a href="https://files.example/pip-1.whl">x</a><a href="../../f/pip-2.whl">y</a><a>z</a><p href="no">'
        self.send_response(200 if self.path == "/simple/pip/" else 404)
        self.end_headers()
        self.wfile.write(page.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Quietly."""


@pytest.fixture
def index() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_links_of_a_real_index(index: str) -> None:
    for written in (f"{index}/simple", f"{index}/simple/"):
        assert index_links(written) == ["https://files.example/pip-1.whl", f"{index}/f/pip-2.whl"]


def test_an_index_that_does_not_answer_has_no_links(index: str) -> None:
    assert index_links(f"{index}/absent/") == []
    assert index_links("http://127.0.0.1:1/") == []
    assert index_links("nonsense") == []
    assert index_links("http://127.0.0.1:nonsense/") == []
