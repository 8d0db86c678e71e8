# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each refusal with its sentence, and beside it what is just good enough."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils import preflight
from ansible_collections.openshell.sandbox.plugins.module_utils.preflight import Refused
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNames
from host import INFO, Host

NAMES = SandboxNames.of("demo", "d1")
OURS = {"openshell.managed": "true"}


# -- the host ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["4.2.9", "3.4.4", "4.2.0-dev"])
def test_an_old_podman_is_refused(host: Host, version: str) -> None:
    host.change("info", "version", "Version", version)
    with pytest.raises(Refused, match=r"Podman [34][.0-9]* is too old; install Podman 4.3 or newer on this host"):
        preflight.check_podman(host.direct)


@pytest.mark.parametrize("version", ["4.3.0", "4.3.1", "4.10.0", "5.4.2"])
def test_a_podman_from_4_3_on_will_do(host: Host, version: str) -> None:
    host.change("info", "version", "Version", version)
    preflight.check_podman(host.direct)


@pytest.mark.parametrize("backend", ["cni", "", None])
def test_another_network_backend_is_refused(host: Host, backend: str | None) -> None:
    host.change("info", "host", "networkBackend", backend)
    with pytest.raises(Refused, match=r"does not use netavark .*install netavark"):
        preflight.check_podman(host.direct)


@pytest.mark.parametrize(
    ("cgroups", "runtime", "wanted", "installed", "chosen"),
    [
        ("v2", "crun", "", True, ""),
        ("v1", "runc", "", True, ""),
        ("v1", "crun", "", True, "runc"),
        ("v1", "crun", "crun", True, "crun"),
        ("v2", "crun", "runsc", False, "runsc"),
    ],
)
def test_the_runtime(host: Host, cgroups: str, runtime: str, wanted: str, installed: bool, chosen: str) -> None:
    host.change("info", "host", "cgroupVersion", cgroups)
    host.change("info", "host", "ociRuntime", {"name": runtime})
    assert preflight.choose_runtime(host.direct, wanted, lambda name: installed or None) == chosen


def test_cgroups_v1_without_runc_is_refused(host: Host) -> None:
    host.change("info", "host", "cgroupVersion", "v1")
    with pytest.raises(Refused, match="cgroups v1, where crun does not start containers; install runc"):
        preflight.choose_runtime(host.direct, "", lambda name: None)


def rootless(host: Host) -> None:
    host.change("info", "host", "security", "rootless", True)


USER = pwd.getpwuid(os.geteuid())


@pytest.mark.parametrize("owner", [USER.pw_name, str(USER.pw_uid)])
def test_enough_subordinate_ids_will_do(host: Host, tmp_path: Path, owner: str) -> None:
    rootless(host)
    path = tmp_path / "subuid"
    path.write_text(f"# ids\nother:1:65536\n{owner}:100000:65535\n{owner}:200000:1\n")
    preflight.check_subordinate_ids(host.direct, [str(path)])


@pytest.mark.parametrize(
    "text", ["", f"{USER.pw_name}:100000:65535\n", "somebody-else:100000:65536\n", f"{USER.pw_name}:100000:many\n"]
)
def test_too_few_subordinate_ids_are_refused(host: Host, tmp_path: Path, text: str) -> None:
    rootless(host)
    enough, few = tmp_path / "enough", tmp_path / "few"
    enough.write_text(f"{USER.pw_name}:100000:65536\n")
    few.write_text(text)
    for files in ([few, enough], [enough, few], [enough, tmp_path / "absent"]):
        with pytest.raises(Refused, match=f"user {USER.pw_name} has [0-9]+ ids in .* needs 65536; run 'usermod"):
            preflight.check_subordinate_ids(host.direct, [str(path) for path in files])


def test_root_needs_no_subordinate_ids(host: Host) -> None:
    preflight.check_subordinate_ids(host.direct, ["/absent"])


@pytest.mark.parametrize("subnet", ["10.90.0.0/33", "10.90.0.1/16", "office", "10.90/16/1"])
def test_a_malformed_subnet_is_refused(host: Host, subnet: str) -> None:
    with pytest.raises(Refused, match=r"openshell_bridge_subnet '.*' is not a subnet .*use one like 10.90.0.0/16"):
        preflight.check_bridge_subnet(host.direct, subnet, [])


@pytest.mark.parametrize("taken", ["10.90.0.0/16", "10.90.7.0/24", "10.0.0.0/8"])
def test_a_subnet_that_meets_another_is_refused(host: Host, taken: str) -> None:
    with pytest.raises(Refused, match=rf"10.90.0.0/16 overlaps {taken} \(a route of this host\); choose a free one"):
        preflight.check_bridge_subnet(host.direct, "10.90.0.0/16", [taken])
    host.direct.ensure_bridge_network("office", {}, taken)
    with pytest.raises(Refused, match=rf"overlaps {taken} \(Podman network office\)"):
        preflight.check_bridge_subnet(host.direct, "10.90.0.0/16", [])


@pytest.mark.parametrize("beside", ["10.89.0.0/16", "10.91.0.0/16", "192.168.0.0/24", "fd00::/64"])
def test_a_subnet_beside_another_will_do(host: Host, beside: str) -> None:
    host.direct.ensure_bridge_network("office", {}, beside)
    preflight.check_bridge_subnet(host.direct, "10.90.0.0/16", [beside])


def test_no_wish_for_a_subnet_asks_nothing(host: Host) -> None:
    preflight.check_bridge_subnet(host.direct, "", ["0.0.0.0/0"])
    assert host.calls() == []


def test_the_bridge_that_is_there_must_be_the_one_that_is_wanted(host: Host) -> None:
    host.direct.ensure_bridge_network("openshell", OURS, "10.90.0.0/16")
    preflight.check_bridge_subnet(host.direct, "10.90.0.0/16", ["10.90.0.0/16"])
    with pytest.raises(Refused, match=r"network openshell exists with subnet 10.90.0.0/16; unset"):
        preflight.check_bridge_subnet(host.direct, "10.91.0.0/16", [])


def test_routes_as_the_kernel_tells_them(tmp_path: Path) -> None:
    path = tmp_path / "route"
    path.write_text(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        "podman1\t0000590A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )
    assert preflight.host_routes(str(path)) == ["10.0.0.0/24", "10.89.0.0/24"]
    assert preflight.host_routes("/absent") == []


def make(host: Host, kind: str, labels: dict[str, str]) -> None:
    """One object of a name that the sandbox wants."""
    if kind in ("proxy", "agent"):
        host.direct.ensure_bridge_network("net", {})
        label = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
        host.direct.run(["create", "--name", getattr(NAMES, kind), "--network", "net:ip=10.9.9.9", *label, "image"])
    elif kind == "network":
        host.direct.ensure_internal_network(NAMES.network, labels)
    else:
        host.direct.ensure_volume(getattr(NAMES, kind), labels)


@pytest.mark.parametrize("kind", ["proxy", "agent", "network", "tls_volume", "proxy_volume", "workspace_volume"])
def test_what_is_not_ours_is_refused_and_what_is_will_do(host: Host, kind: str) -> None:
    make(host, kind, {"openshell.managed": "yes"})
    with pytest.raises(Refused, match=f"a (container|network|volume) {getattr(NAMES, kind)} exists and is not ours"):
        preflight.check_not_taken(host.direct, NAMES)


@pytest.mark.parametrize("kind", ["proxy", "agent", "network", "tls_volume", "proxy_volume", "workspace_volume"])
def test_what_is_ours_will_do(host: Host, kind: str) -> None:
    make(host, kind, OURS)
    preflight.check_not_taken(host.direct, NAMES)


@pytest.mark.parametrize(("key", "value"), [("internal", True), ("dns_enabled", True)])
def test_a_bridge_that_cannot_serve_is_refused(host: Host, key: str, value: bool) -> None:
    host.direct.ensure_bridge_network("openshell", OURS)
    preflight.check_not_taken(host.direct, NAMES)
    host.change("networks", "openshell", key, value)
    with pytest.raises(Refused, match="a network openshell exists that is internal or has DNS; remove it"):
        preflight.check_not_taken(host.direct, NAMES)


# -- the wish ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_MODULE", "DAC_READ_SEARCH", "BPF", "ALL", "all", "CAP_NET_RAW", "", "x"],
)
def test_a_capability_that_opens_a_wall_is_refused(word: str) -> None:
    with pytest.raises(Refused, match=f"openshell_capabilities: {word} is not allowed, .*preset packages, containers"):
        preflight.expand_capabilities(["CHOWN", word])


def test_capabilities_that_are_harmless_will_do() -> None:
    assert preflight.expand_capabilities([]) == []
    assert preflight.expand_capabilities(["setuid", "CAP_CHOWN", "CHOWN"]) == ["CHOWN", "SETUID"]
    packages = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID"]
    assert preflight.expand_capabilities(["packages"]) == packages
    assert preflight.expand_capabilities(["Containers"]) == sorted([*packages, "SETFCAP"])
    everything = sorted(preflight.ALLOWED_CAPABILITIES)
    assert preflight.expand_capabilities(everything) == everything


def mount(source: Any, target: str = "/data", **more: Any) -> list[Any]:
    return preflight.check_mounts([{"source": str(source), "target": target, **more}], ["/nowhere/storage"])


def test_directories_and_files_will_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("", "file", "link"):
        (found,) = mount(tmp_path / name, "/data/./x/../y")
        real = os.path.realpath(tmp_path / name)
        assert (found.source, found.target, found.read_only, found.kind) == (real, "/data/y", True, "bind")
    (found,) = mount(tmp_path, read_only=False)
    assert found.argument() == f"{os.path.realpath(tmp_path)}:/data:rw"


@pytest.mark.parametrize(
    "source",
    [
        "/",
        "/proc",
        "/proc/self",
        "/sys",
        "/dev",
        "/dev/null/..",
        "/etc",
        "/etc/passwd",
        "/run",
        "/var/run",
        "/var",
        "//",
    ],
)
def test_parts_of_the_host_are_refused(source: str) -> None:
    with pytest.raises(Refused, match=f"openshell_mounts: {source} is refused: it is, holds or lies in /"):
        mount(source)


def test_podmans_own_storage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "storage" / "volumes").mkdir(parents=True)
    (tmp_path / "storage-of-mine").mkdir()
    storage = [str(tmp_path / "storage")]
    for refused in (tmp_path, tmp_path / "storage", tmp_path / "storage" / "volumes"):
        with pytest.raises(Refused, match=r"it is, holds or lies in .*/storage"):
            preflight.check_mounts([{"source": str(refused), "target": "/data"}], storage)
    preflight.check_mounts([{"source": str(tmp_path / "storage-of-mine"), "target": "/data"}], storage)
    assert preflight.storage_paths(INFO)[0] == "/var/lib/containers/storage"
    assert preflight.storage_paths({"store": {"runRoot": "/r", "volumePath": "/v", "graphRoot": ""}}) == ["/r", "/v"]
    assert preflight.storage_paths({}) == []


def test_symbolic_links_are_followed_before_the_judgement(tmp_path: Path) -> None:
    (tmp_path / "harmless").symlink_to("/etc")
    (tmp_path / "further").symlink_to(tmp_path / "harmless")
    for refused in ("harmless", "further", "further/ssl", "../../../../../../../../etc"):
        with pytest.raises(Refused, match="lies in /etc"):
            mount(f"{tmp_path}/{refused}")


def test_a_link_to_forbidden_storage_is_followed_too(tmp_path: Path) -> None:
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "storage").symlink_to(tmp_path / "real")
    for refused in ("real", "real/below"):
        with pytest.raises(Refused, match="lies in"):
            preflight.check_mounts([{"source": str(tmp_path / refused), "target": "/x"}], [str(tmp_path / "storage")])


def test_sockets_and_devices_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "podman.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(Refused, match="is neither a directory nor a file; sockets and devices stay outside"):
            mount(path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Refused, match="is neither a directory nor a file"):
        mount(tmp_path / "fifo")


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="absent does not exist on this host"):
        mount(tmp_path / "absent")


def test_paths_are_absolute_and_without_a_colon(tmp_path: Path) -> None:
    for source, target in (("relative", "/x"), (str(tmp_path), "x")):
        with pytest.raises(Refused, match="must be two absolute paths"):
            mount(source, target)
    colon = tmp_path / "a:b"
    colon.mkdir()
    (tmp_path / "link").symlink_to(colon)
    for source, target in ((colon, "/x"), (tmp_path, "/x:y"), (tmp_path / "link", "/x")):
        with pytest.raises(Refused, match="a colon in a path is not possible"):
            mount(source, target)


@pytest.mark.parametrize("target", ["/", "/proc", "/sys/fs", "/dev", "/run/x", "/openshell-tls", "/opt", "/etc"])
@pytest.mark.parametrize("written", ["{0}", "/{0}", "{0}/", "/x/..{0}", "/.{0}"])
def test_targets_of_the_sandbox_itself_are_refused(tmp_path: Path, target: str, written: str) -> None:
    with pytest.raises(
        Refused, match=r"openshell_mounts: the target /.* is refused: /.* belongs to the sandbox itself"
    ):
        mount(tmp_path, written.format(target))


@pytest.mark.parametrize("target", preflight.FORBIDDEN_TARGETS)
def test_every_target_of_the_sandbox_itself_is_refused(tmp_path: Path, target: str) -> None:
    with pytest.raises(Refused, match=f"{target} belongs to the sandbox itself"):
        mount(tmp_path, target + "/below")


@pytest.mark.parametrize("target", ["/etc/hosts.d", "/opt/mine", "/processes", "/sandbox/x"])
def test_targets_beside_will_do(tmp_path: Path, target: str) -> None:
    assert mount(tmp_path, target)[0].target == target


def test_promised_places_are_forbidden() -> None:
    """The lists themselves, so that a shorter one does not pass unseen."""
    assert {"/proc", "/sys", "/dev", "/etc", "/run", "/var/run", "/var/lib/containers", "/var/lib/docker"} <= set(
        preflight.FORBIDDEN_SOURCES
    )
    assert {"/boot", "/root/.ssh", "/var/lib/containerd", "/var/lib/kubelet"} <= set(preflight.FORBIDDEN_SOURCES)
    assert {"/proc", "/sys", "/dev", "/run", "/openshell-tls", "/opt/openshell", "/etc/openshell"} == set(
        preflight.FORBIDDEN_TARGETS
    )
    assert not preflight.ALLOWED_CAPABILITIES & {"NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "BPF"}


@pytest.mark.parametrize(
    ("memory", "cpus", "pids", "sentence"),
    [
        ("0", "", 2048, "openshell_memory '0' is not a size; use a number with k, m or g, like 4g"),
        ("4 g", "", 2048, "openshell_memory"),
        ("4gb", "", 2048, "openshell_memory"),
        ("-1", "", 2048, "openshell_memory"),
        ("4g\n", "", 2048, "openshell_memory"),
        ("", "0", 2048, "openshell_cpus '0' is not a number of processors; use one like 2 or 0.5"),
        ("", "-1", 2048, "openshell_cpus"),
        ("", "two", 2048, "openshell_cpus"),
        ("", "1.", 2048, "openshell_cpus"),
        ("", "0.0", 2048, "openshell_cpus"),
        ("", "", 15, "openshell_pids_limit 15 is too small for a shell; use 16 or more"),
        ("", "", 0, "openshell_pids_limit"),
        ("", "", -1, "openshell_pids_limit"),
    ],
)
def test_limits_that_are_none_are_refused(memory: str, cpus: str, pids: int, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        preflight.check_limits(memory, cpus, pids)


@pytest.mark.parametrize(
    ("memory", "cpus", "pids"), [("", "", 16), ("4g", "2", 2048), ("512M", "0.5", 100), ("1", "1", 16)]
)
def test_limits_will_do(memory: str, cpus: str, pids: int) -> None:
    preflight.check_limits(memory, cpus, pids)


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A=B", "A B", "A\n", "\u00c4"])
def test_a_bad_variable_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="is not a variable's name; use letters, digits and underscores"):
        preflight.check_environment({name: "x"})


@pytest.mark.parametrize("value", [None, ["a"], {"a": "b"}, "hunter2\0"])
def test_a_bad_value_is_refused_and_not_told(value: Any) -> None:
    with pytest.raises(Refused, match="openshell_env: the value of A must be a text or a number") as caught:
        preflight.check_environment({"A": value})
    assert "hunter2" not in str(caught.value)


def test_variables_will_do() -> None:
    preflight.check_environment({"A": "x y=z\n", "_b1": 1, "C": 1.5, "D": True, "E": ""})


@pytest.mark.parametrize(
    "endpoint",
    [
        "host:80",
        "http://host",
        "http://:80",
        "ftp://host:80",
        "http://host:99999",
        "http://host:0",
        "http://[::1:80",
        "x",
    ],
)
def test_a_bad_gateway_is_refused(endpoint: str) -> None:
    with pytest.raises(Refused, match=r"openshell_gateway_endpoint '.*' is not usable; write it as http://host:port"):
        preflight.check_gateway_endpoint(endpoint)


@pytest.mark.parametrize("endpoint", ["", "http://host:8080", "https://10.0.0.1:443", "http://[2001:db8::1]:80"])
def test_a_gateway_will_do(endpoint: str) -> None:
    preflight.check_gateway_endpoint(endpoint)


def test_addresses() -> None:
    preflight.check_addresses(["192.0.2.53", "2001:db8::53"], "openshell_dns_servers")
    for bad in ("dns.example", "192.0.2", "192.0.2.1/24", ""):
        with pytest.raises(Refused, match=f"openshell_dns_servers: '{bad}' is not an IP address"):
            preflight.check_addresses(["192.0.2.53", bad], "openshell_dns_servers")


# -- the host's authorities ----------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of a host's own: ``bundle.pem`` and ``system.pem`` hold certificates, ``anchors`` holds nothing."""
    for name in ("bundle.pem", "system.pem"):
        (tmp_path / name).write_text("# roots\n-----BEGIN CERTIFICATE-----\n")
    (tmp_path / "empty.pem").write_text("")
    (tmp_path / "anchors").mkdir()
    monkeypatch.setattr(preflight, "LOCAL_ANCHORS", (str(tmp_path / "absent"), str(tmp_path / "anchors")))
    monkeypatch.setattr(preflight, "SYSTEM_BUNDLES", (str(tmp_path / "absent"), str(tmp_path / "system.pem")))
    return tmp_path


def test_the_users_bundle_is_taken_or_refused(places: Path) -> None:
    bundle = str(places / "bundle.pem")
    assert preflight.upstream_ca_bundle(bundle, {"SSL_CERT_FILE": str(places / "system.pem")}) == bundle
    for bad in ("empty.pem", "absent", "anchors"):
        with pytest.raises(Refused, match=f"openshell_upstream_ca_bundle .*{bad} is not a readable PEM file of certif"):
            preflight.upstream_ca_bundle(str(places / bad), {})


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_environments_bundle_is_found(places: Path, variable: str) -> None:
    bundle = str(places / "bundle.pem")
    assert preflight.upstream_ca_bundle("", {variable: bundle}) == bundle
    assert preflight.upstream_ca_bundle("none", {variable: bundle}) == ""
    assert preflight.upstream_ca_bundle("", {variable: str(places / "empty.pem")}) == ""


def test_authorities_that_somebody_added_are_found(places: Path) -> None:
    assert preflight.upstream_ca_bundle("", {}) == ""
    (places / "anchors" / "office.crt").write_text("")
    assert preflight.upstream_ca_bundle("", {}) == str(places / "system.pem")
    assert preflight.upstream_ca_bundle("none", {}) == ""
    (places / "system.pem").write_text("")
    assert preflight.upstream_ca_bundle("", {}) == ""
