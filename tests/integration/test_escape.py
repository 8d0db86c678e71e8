# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What must fail from inside does, quickly; each probe has a control that shows it can succeed elsewhere."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest
from conftest import Origin, inside, playbook, podman

CONNECT = (
    "import socket,sys; s=socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET); s.settimeout(2);"
    "a=socket.getaddrinfo(sys.argv[1], int(sys.argv[2]))[0][4]; s.connect(a); print('connected')"
)


@pytest.fixture
def host_service() -> Iterator[int]:
    """A service of the host on every address, IPv4 and IPv6."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        server.settimeout(30)

        def accept() -> None:
            try:
                while True:
                    server.accept()[0].close()
            except OSError:
                return

        threading.Thread(target=accept, daemon=True).start()
        yield int(server.getsockname()[1])


def bridge(network: str) -> str:
    return str(json.loads(podman("network", "inspect", network).stdout)[0]["network_interface"])


def link_local(interface: str) -> str:
    shown = subprocess.run(
        ["ip", "-j", "-6", "addr", "show", "dev", interface], text=True, capture_output=True, check=True
    )
    found = [one["local"] for entry in json.loads(shown.stdout) for one in entry["addr_info"]]
    return str(found[0])


def refused(sandbox: str, address: str, port: int) -> str:
    done = inside(sandbox, "python3", "-c", CONNECT, address, str(port), seconds=10)
    assert "connected" not in done.stdout
    assert done.returncode == 1, done
    return done.stderr


def test_another_host(sandbox: str, origin: Origin) -> None:
    with socket.create_connection((origin.address, origin.http), 2):
        pass  # the control: it is there
    assert "unreachable" in refused(sandbox, origin.address, origin.http)


def test_host_service_over_ipv4(sandbox: str, host_service: int) -> None:
    with socket.create_connection(("127.0.0.1", host_service), 2):
        pass
    base = json.loads(podman("network", "inspect", f"openshell-sbx-{sandbox}").stdout)[0]["subnets"][0]["subnet"]
    refused(sandbox, base.rsplit(".", 1)[0] + ".1", host_service)


def test_host_service_over_ipv6_link_local(sandbox: str, host_service: int) -> None:
    interface = bridge(f"openshell-sbx-{sandbox}")
    address = link_local(interface)
    with socket.create_connection((f"{address}%{interface}", host_service), 2):
        pass
    assert "Cannot assign requested address" in refused(sandbox, f"{address}%eth0", host_service)


def test_no_name_resolves(sandbox: str) -> None:
    done = inside(sandbox, "getent", "hosts", "example.com", seconds=30)
    assert done.stdout == ""
    assert podman("exec", f"openshell-agent-{sandbox}", "cat", "/etc/resolv.conf").stdout.split()[0:1] == ["nameserver"]


def test_no_raw_socket(sandbox: str) -> None:
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)"
    assert subprocess.run(["python3", "-c", code], check=False).returncode == 0
    done = inside(sandbox, "python3", "-c", code)
    assert "PermissionError" in done.stderr


def test_udp_leaves_nothing(sandbox: str) -> None:
    code = "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('198.51.100.1', 53))"
    assert subprocess.run(["python3", "-c", code], check=False).returncode == 0
    assert "unreachable" in inside(sandbox, "python3", "-c", code).stderr


def test_the_bridge_and_the_host_are_no_destination(sandbox: str, host_service: int) -> None:
    gateway = json.loads(podman("network", "inspect", "openshell").stdout)[0]["subnets"][0]["gateway"]
    done = inside(sandbox, "curl", "-s", f"http://{gateway}:{host_service}/")
    assert '"error": "policy_denied"' in done.stdout


def test_another_sandbox(sandbox: str) -> None:
    other = "it-other"
    try:
        made = playbook("create_sandbox", sandbox_name=other)
        assert made.returncode == 0, made.stdout[-3000:]
        address = podman("exec", f"openshell-agent-{other}", "printenv", "http_proxy").stdout.strip()
        proxy = address.removeprefix("http://").partition(":")[0]
        with socket.socket() as control:
            control.settimeout(2)
            pid = podman("inspect", "-f", "{{.State.Pid}}", f"openshell-agent-{other}").stdout.strip()
            probe = ["nsenter", "-t", pid, "-n", "python3", "-c", CONNECT, proxy, "3128"]
            assert "connected" in subprocess.run(probe, text=True, capture_output=True, check=False).stdout
        assert "unreachable" in refused(sandbox, proxy, 3128)
        on_bridge = podman(
            "inspect", "-f", '{{(index .NetworkSettings.Networks "openshell").IPAddress}}', f"openshell-proxy-{other}"
        ).stdout.strip()
        done = inside(sandbox, "curl", "-s", f"http://{on_bridge}:3128/")
        assert '"error": "policy_denied"' in done.stdout
    finally:
        playbook("delete_sandbox", sandbox_name=other)


def status(pid: str) -> dict[str, str]:
    with open(f"/proc/{pid}/status", encoding="ascii") as handle:
        return dict(line.rstrip("\n").split(":\t", 1) for line in handle if ":\t" in line)


def test_the_sidecar_has_no_power(sandbox: str) -> None:
    pid = podman("inspect", "-f", "{{.State.Pid}}", f"openshell-proxy-{sandbox}").stdout.strip()
    found = status(pid)
    assert int(found["CapEff"], 16) == 0
    assert int(found["CapBnd"], 16) == 0
    assert found["NoNewPrivs"] == "1"
    assert found["Uid"].split()[0] == "1337"
    assert podman("exec", f"openshell-proxy-{sandbox}", "touch", "/x", check=False).returncode != 0


def test_root_inside_is_nobody_outside(sandbox: str) -> None:
    pid = podman("inspect", "-f", "{{.State.Pid}}", f"openshell-agent-{sandbox}").stdout.strip()
    found = status(pid)
    assert inside(sandbox, "id", "-u").stdout.strip() == "0"
    assert int(found["Uid"].split()[0]) > 65535
    assert found["NoNewPrivs"] == "1"


def test_the_ca_key_is_not_in_the_agent(sandbox: str) -> None:
    assert inside(sandbox, "sh", "-c", "ls -A /openshell-tls").stdout.split() == [".ready", "ca-bundle.pem", "ca.pem"]
    assert inside(sandbox, "grep", "-rl", "PRIVATE KEY", "/openshell-tls").stdout == ""
    assert inside(sandbox, "touch", "/openshell-tls/x").returncode != 0
