# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The description of a container: golden arguments, every wall in them, and a digest over all of it."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from typing import Any

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils.container_spec import (
    ContainerSpec,
    Secret,
    Volume,
    files_archive,
)

LABELS = {"openshell.managed": "true", "openshell.sandbox": "demo", "openshell.id": "demo"}
AGENT = ContainerSpec(
    name="openshell-agent-demo",
    role="agent",
    image="a" * 64,
    network="openshell-sbx-demo",
    ip="10.89.5.3",
    labels=LABELS,
    dns=("10.89.5.2",),
    uid_base=2_550_136_832,
    env={"HTTPS_PROXY": "http://10.89.5.2:3128", "A": "1"},
    command=("sleep", "infinity"),
    workdir="/sandbox",
    volumes=(
        Volume("openshell-tls-demo", "/openshell-tls", read_only=True, relabel="z"),
        Volume("openshell-workspace-demo", "/sandbox", relabel="Z"),
        Volume("/srv/data", "/data", read_only=True, kind="bind"),
    ),
    sysctls={"net.ipv6.conf.default.disable_ipv6": "1", "net.ipv6.conf.all.disable_ipv6": "1"},
    capabilities=("CHOWN", "SETUID"),
    ulimits=("nofile=16384:16384",),
    memory="4g",
    cpus="2",
    init=True,
)
PROXY = ContainerSpec(
    name="openshell-proxy-demo",
    role="proxy",
    image="b" * 64,
    network="openshell-sbx-demo",
    ip="10.89.5.2",
    labels=LABELS,
    dns=("192.0.2.53", "2001:db8::53"),
    uid_base=0,
    env={"OPENSHELL_SANDBOX": "demo"},
    user="1337:1337",
    volumes=(Volume("openshell-proxy-demo", "/var/lib/openshell", relabel="Z"),),
    secrets=(Secret("openshell-authority", "/etc/openshell/authority.pem", 1337),),
    tmpfs=("/tmp:rw,size=64m,mode=1777",),
    sysctls={"net.ipv4.ip_forward": "0"},
    pids_limit=256,
    memory="512m",
    read_only=True,
    restart="on-failure",
    stop_timeout=3,
)

AGENT_ARGUMENTS = """
--name openshell-agent-demo --hostname demo
--cap-drop ALL --cap-add CHOWN --cap-add SETUID --security-opt no-new-privileges
--uidmap 0:2550136832:65536 --gidmap 0:2550136832:65536 --ipc private --http-proxy=false
--network openshell-sbx-demo:ip=10.89.5.3,mac=02:9f:9e:57:8a:5c --no-hosts --dns 10.89.5.2
--dns-search . --dns-option timeout:2 --dns-option attempts:2
--sysctl net.ipv6.conf.all.disable_ipv6=1 --sysctl net.ipv6.conf.default.disable_ipv6=1
--ulimit nofile=16384:16384 --pids-limit 2048 --memory 4g --cpus 2
--volume openshell-tls-demo:/openshell-tls:ro,z --volume openshell-workspace-demo:/sandbox:rw,Z
--volume /srv/data:/data:ro
--env A=1 --env HTTPS_PROXY=http://10.89.5.2:3128
--label openshell.id=demo --label openshell.managed=true --label openshell.role=agent
--label openshell.sandbox=demo --label openshell.spec={digest}
--workdir /sandbox --init --stop-timeout 10 --log-driver k8s-file --log-opt max-size=16mb --pull never
"""
PROXY_ARGUMENTS = """
--name openshell-proxy-demo --hostname demo
--cap-drop ALL --security-opt no-new-privileges --ipc private --read-only --read-only-tmpfs=false --http-proxy=false
--network openshell-sbx-demo:ip=10.89.5.2,mac=02:d2:c6:9c:fd:66 --no-hosts --dns 192.0.2.53 --dns 2001:db8::53
--dns-search . --dns-option timeout:2 --dns-option attempts:2 --sysctl net.ipv4.ip_forward=0
--pids-limit 256 --memory 512m --volume openshell-proxy-demo:/var/lib/openshell:rw,Z
--secret openshell-authority,type=mount,target=/etc/openshell/authority.pem,uid=1337,gid=1337,mode=0400
--tmpfs /tmp:rw,size=64m,mode=1777 --env OPENSHELL_SANDBOX=demo
--label openshell.id=demo --label openshell.managed=true --label openshell.role=proxy
--label openshell.sandbox=demo --label openshell.spec={digest}
--user 1337:1337 --restart on-failure --stop-timeout 3
--log-driver k8s-file --log-opt max-size=16mb --pull never
"""


def test_golden_arguments_of_an_agent() -> None:
    wanted = AGENT_ARGUMENTS.format(digest=AGENT.digest).split()
    assert AGENT.create_args() == [*wanted, "a" * 64, "sleep", "infinity"]


def test_golden_arguments_of_a_sidecar() -> None:
    assert PROXY.create_args() == [*PROXY_ARGUMENTS.format(digest=PROXY.digest).split(), "b" * 64]


def test_golden_digests() -> None:
    """The same description gives the same digest in every release, or every container of every user is made anew."""
    assert (AGENT.digest, PROXY.digest) == ("bedce8aaa8699250ac0172f2affd24d2", "c5a91e832d285204d2d16d67f9f0d671")


@pytest.mark.parametrize("spec", [AGENT, PROXY], ids=["agent", "proxy"])
@pytest.mark.parametrize(
    "wall",
    [
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--ipc private",
        "--http-proxy=false",
        "--no-hosts",
        "--dns-search .",
        "--pids-limit",
        "--memory",
        "--pull never",
        "--log-opt max-size=16mb",
    ],
)
def test_every_wall_stands(spec: ContainerSpec, wall: str) -> None:
    assert f" {wall} " in f" {' '.join(spec.create_args())} "


@pytest.mark.parametrize("wall", ["--read-only", "--read-only-tmpfs=false", "--user 1337:1337"])
def test_the_walls_of_a_sidecar(wall: str) -> None:
    assert f" {wall} " in " ".join(PROXY.create_args())


def test_proc_is_unmasked_for_containers_inside_only() -> None:
    unmask = "--security-opt unmask=/proc/*"
    assert unmask not in " ".join(AGENT.create_args())
    assert unmask in " ".join(dataclasses.replace(AGENT, nested=True).create_args())


def test_nothing_opens_a_wall() -> None:
    opening = ("--privileged", "--device", "--pid", "--uts", "--network=host", "--userns=host", "--publish", "-p")
    for spec in (AGENT, PROXY):
        assert not [word for word in spec.create_args() if word.startswith(opening) and word != "--pids-limit"]


def test_the_user_namespace() -> None:
    assert "--userns=nomap" in dataclasses.replace(AGENT, uid_base=None).create_args()
    mapped = AGENT.create_args()
    assert mapped[mapped.index("--gidmap") + 1] == "0:2550136832:65536"
    assert not [word for word in PROXY.create_args() if "map" in word]


OTHER: dict[str, Any] = {
    "name": "x",
    "role": "x",
    "image": "x",
    "network": "x",
    "ip": "10.89.5.9",
    "labels": {},
    "dns": (),
    "uid_base": None,
    "env": {},
    "command": (),
    "user": "x",
    "workdir": "",
    "volumes": (),
    "secrets": (Secret("x", "/x", 1),),
    "tmpfs": ("/x",),
    "sysctls": {},
    "capabilities": (),
    "ulimits": (),
    "pids_limit": 1,
    "memory": "",
    "cpus": "",
    "read_only": True,
    "nested": True,
    "init": False,
    "restart": "always",
    "stop_timeout": 1,
    "log_max_size": "1mb",
    "files": {"/x": "y"},
}


def test_every_field_is_tried() -> None:
    assert list(OTHER) == [field.name for field in dataclasses.fields(ContainerSpec)]


@pytest.mark.parametrize("field", OTHER)
def test_every_field_counts(field: str) -> None:
    assert dataclasses.replace(AGENT, **{field: OTHER[field]}).digest != AGENT.digest


def test_the_order_of_mappings_does_not_count() -> None:
    turned = dataclasses.replace(AGENT, env=dict(reversed(AGENT.env.items())), labels=dict(reversed(LABELS.items())))
    assert turned.digest == AGENT.digest
    assert turned.create_args() == AGENT.create_args()


def test_our_labels_win() -> None:
    spec = dataclasses.replace(AGENT, labels={"openshell.managed": "false", "openshell.role": "x", "mine": "1"})
    ours = {"openshell.managed": "true", "openshell.role": "agent", "openshell.spec": spec.digest}
    assert spec.all_labels() == {"mine": "1", **ours}


def test_the_hosts_file_names_nobody_else() -> None:
    assert AGENT.hosts_file() == "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n10.89.5.3\tdemo\n"


def test_files_travel_as_an_archive() -> None:
    stream = files_archive({"/etc/hosts": "hosts\n", "b": "\u00e4"}, uid=1337)
    with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
        members = archive.getmembers()
        told = [(one.name, one.uid, one.gid, one.mode, one.size, one.isreg()) for one in members]
        assert told == [("etc/hosts", 1337, 1337, 0o644, 6, True), ("b", 1337, 1337, 0o644, 2, True)]
        assert [archive.extractfile(one).read() for one in members] == [b"hosts\n", "\u00e4".encode()]  # type: ignore[union-attr]
    assert files_archive({"x": ""}) == files_archive({"x": ""})
