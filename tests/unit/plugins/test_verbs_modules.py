# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reading a container's description back, and making another one of it: snapshot, clone, upgrade."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils import created_spec, snapshot
from ansible_collections.openshell.sandbox.plugins.module_utils.container_spec import ContainerSpec, Secret, Volume
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman, PodmanError, Result
from host import NAMES, Host, make_sandbox, spec_of

FULL = spec_of(
    "agent",
    env={"A": "1", "B": "x=y z", "C": "", "D": "--volume", "E": "--read-only"},
    command=("sh", "-c", "--flag=1", "--read-only"),
    user="1337:1337",
    workdir="/sandbox",
    volumes=(Volume("v", "/a", True, relabel="z"), Volume("w", "/b", relabel="Z"), Volume("/h:x", "/c", kind="bind")),
    secrets=(Secret("s", "/etc/s.pem", 1337),),
    tmpfs=("/tmp:rw,size=64m,mode=1777",),
    sysctls={"net.ipv4.ip_forward": "0", "a.b": "1"},
    capabilities=("CHOWN", "SETUID"),
    ulimits=("nofile=1:1",),
    pids_limit=7,
    memory="4g",
    cpus="1.5",
    read_only=True,
    nested=True,
    init=True,
    restart="on-failure",
    stop_timeout=3,
)


def inspected(spec: ContainerSpec) -> dict[str, Any]:
    command = ["podman", "--runtime", "runc", "create", *spec.create_args()]
    return {"Name": spec.name, "Config": {"CreateCommand": command, "Labels": spec.all_labels()}}


@pytest.mark.parametrize(
    "spec",
    [FULL, spec_of("agent"), spec_of("proxy"), spec_of("agent", uid_base=None), spec_of("agent", uid_base=0)],
    ids=["full", "agent", "proxy", "user", "none"],
)
def test_a_description_is_read_back_from_what_it_created(spec: ContainerSpec) -> None:
    assert created_spec.described(inspected(spec)) == spec


def test_every_field_of_a_description_is_read_back() -> None:
    """A field that is new shall be read too; files are the one that no argument holds, and no role uses."""
    plain = spec_of("agent")
    same = [
        field.name for field in dataclasses.fields(plain) if getattr(plain, field.name) == getattr(FULL, field.name)
    ]
    assert same == ["name", "role", "image", "network", "ip", "labels", "dns", "uid_base", "log_max_size", "files"]


@pytest.mark.parametrize(
    "change",
    [
        {"CreateCommand": []},
        {"CreateCommand": None},
        {"CreateCommand": ["podman", "run", "image"]},
        {"CreateCommand": ["podman", "create", "--pids-limit", "many", "image"]},
        {"Labels": {}},
    ],
    ids=["empty", "none", "run", "number", "labels"],
)
def test_what_was_made_otherwise_is_refused_in_one_sentence(change: dict[str, Any]) -> None:
    found = inspected(FULL)
    found["Config"].update(change)
    with pytest.raises(created_spec.Unreadable, match="cannot be read back"):
        created_spec.described(found)


def test_what_was_tampered_with_is_refused() -> None:
    found = inspected(FULL)
    found["Config"]["CreateCommand"].insert(-6, "--privileged=true")
    words = found["Config"]["CreateCommand"]
    words[words.index("no-new-privileges")] = "unmask=/proc/*"
    words[words.index("4g")] = "8g"
    with pytest.raises(created_spec.Unreadable):
        created_spec.described(found)


def archive(*members: tarfile.TarInfo) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as made:
        for member in members:
            made.addfile(member, io.BytesIO(b"x" * member.size))
    stream.seek(0)
    return stream


def test_owners_become_those_inside() -> None:
    base = 2_550_136_832
    made = []
    for number, (uid, gid) in enumerate([(base, base + 1000), (base + 65_535, 0), (base + 65_536, base - 1), (5, 6)]):
        member = tarfile.TarInfo(f"{'long' * 40}/{number}")
        member.uid, member.gid, member.mode, member.size = uid, gid, 0o4750, number
        made.append(member)
    link = tarfile.TarInfo("link")
    link.type, link.linkname, link.uid = tarfile.SYMTYPE, "../outside", base + 7
    target = io.BytesIO()
    snapshot.shift_owners(archive(*made, link), target, base)
    target.seek(0)
    with tarfile.open(fileobj=target) as found:
        members = found.getmembers()
        assert [(one.uid, one.gid) for one in members] == [
            (0, 1000), (65_535, 0), (base + 65_536, base - 1), (5, 6), (7, 0),
        ]  # fmt: skip
        assert [one.size for one in members] == [0, 1, 2, 3, 0]
        assert members[0].mode == 0o4750 and members[0].name == made[0].name
        assert (members[-1].issym(), members[-1].linkname) == (True, "../outside")


def test_an_images_settings_are_those_of_the_base_and_nothing_of_the_sandbox() -> None:
    base = {"Config": {"Env": ["PATH=/bin"], "Cmd": ["bash"], "Labels": {"a": "b"}, "WorkingDir": "/sandbox"}}
    made = {
        "Created": "2026-01-01T00:00:00Z",
        "Architecture": "amd64",
        "Os": "linux",
        "Config": {"Env": ["PATH=/bin", "TOKEN=openshell:resolve:env:TOKEN"], "Labels": {"openshell.sandbox": "demo"}},
    }
    config = snapshot._config(made, base, [{"digest": "sha256:1"}], {"openshell.snapshot": "demo"})
    assert config["config"] == {**base["Config"], "Labels": {"a": "b", "openshell.snapshot": "demo"}}
    assert config["rootfs"]["diff_ids"] == ["sha256:1"]


SETTINGS = {"sandbox_name": "demo", "agent_image": "c" * 64, "proxy_image": "d" * 64}


@pytest.fixture
def sandbox(host: Host) -> Host:
    make_sandbox(host)
    return host


def images(host: Host) -> dict[str, str]:
    return {name: one["Image"] for name, one in host.state["containers"].items()}


def test_upgrading_makes_both_anew_and_keeps_all_else(sandbox: Host) -> None:
    volumes = sandbox.state["volumes"]
    before = len(sandbox.calls())
    checked = sandbox.module("sandbox_upgrade", check=True, diff=True, **SETTINGS)
    assert sandbox.changed_since(before) == []
    done = sandbox.module("sandbox_upgrade", diff=True, **SETTINGS)
    assert (done["changed"], done["diff"], done["replaced"]) == (True, checked["diff"], [NAMES.proxy, NAMES.agent])
    assert images(sandbox) == {NAMES.proxy: "d" * 64, NAMES.agent: "c" * 64}
    state = sandbox.state
    assert state["volumes"] == volumes
    assert {one["State"]["Status"] for one in state["containers"].values()} == {"running"}
    assert sorted(state["containers"][NAMES.proxy]["NetworkSettings"]["Networks"]) == ["openshell", NAMES.network]
    assert not sandbox.module("sandbox_upgrade", **SETTINGS)["changed"]


def test_the_agent_runs_on_when_only_its_sidecar_is_upgraded(sandbox: Host) -> None:
    pid = sandbox.state["containers"][NAMES.agent]["State"]["Pid"]
    done = sandbox.module("sandbox_upgrade", **{**SETTINGS, "agent_image": ""})
    assert done["replaced"] == [NAMES.proxy]
    assert sandbox.state["containers"][NAMES.agent]["State"]["Pid"] == pid


def test_a_sidecar_that_does_not_do_is_taken_back(sandbox: Host) -> None:
    old = images(sandbox)
    sandbox.change("silent_sidecar", True)
    told = sandbox.refusal("sandbox_upgrade", timeout=0, **SETTINGS)
    assert "the old one is back" in told and "is not ready" in told
    assert images(sandbox) == old
    assert sandbox.state["containers"][NAMES.proxy]["State"]["Status"] == "running"
    sandbox.change("silent_sidecar", False)
    policy = Path(sandbox.state["volumes"][NAMES.proxy_volume]["Mountpoint"], "config", "policy.yaml")
    policy.write_text("WRONG")
    assert "policy: line 1: wrong" in sandbox.refusal("sandbox_upgrade", **SETTINGS)
    assert images(sandbox) == old


def test_a_stopped_sandbox_stays_stopped(host: Host) -> None:
    make_sandbox(host, started=False)
    assert host.module("sandbox_upgrade", **SETTINGS)["changed"]
    assert {one["State"]["Status"] for one in host.state["containers"].values()} == {"created"}


def test_settings_are_told_without_what_stands_for_a_credential(host: Host) -> None:
    env = {
        "MINE": "1",
        "TOKEN": "openshell:resolve:env:TOKEN",
        "RANDOM": "ghp_random",
        "ANTHROPIC_BASE_URL": "https://inference.local",
    }
    make_sandbox(host, agent={"env": env, "memory": "4g", "nested": True, "capabilities": ("CHOWN",)})
    config = Path(host.state["volumes"][NAMES.proxy_volume]["Mountpoint"], "config")
    (config / "secrets.json").write_text(json.dumps({"secrets": [{"name": "x", "value": "v", "random": "ghp_random"}]}))
    found = host.module("sandbox_settings_info", sandbox_name="demo")
    assert found["left_out"] == ["ANTHROPIC_BASE_URL", "RANDOM", "TOKEN"]
    assert found["settings"]["env"] == {"MINE": "1"}
    assert found["settings"]["policy"] == "version: 1\n"
    assert (found["settings"]["memory"], found["settings"]["capabilities"]) == ("4g", ["CHOWN", "containers"])
    assert not found["upstream_proxy_auth"]
    assert '"v"' not in json.dumps(found)
    (config / "upstream-proxy-auth").write_text("user:password")
    found = host.module("sandbox_settings_info", sandbox_name="demo")
    assert found["upstream_proxy_auth"] and "user:password" not in json.dumps(found)


@pytest.mark.parametrize(
    "module", ["sandbox_settings_info", "sandbox_snapshot", "sandbox_upgrade", "sandbox_workspace"]
)
def test_a_sandbox_that_is_not_there_is_told(host: Host, module: str) -> None:
    more = {"sandbox_upgrade": {"proxy_image": "x"}, "sandbox_workspace": {"source": "other"}}.get(module, {})
    told = host.refusal(module, sandbox_name="demo", **more)
    assert told.startswith("there is no sandbox '") and told.count("\n") == 0


def test_a_bad_tag_is_refused(sandbox: Host) -> None:
    assert "the tag 'a b' is not allowed" in sandbox.refusal("sandbox_snapshot", sandbox_name="demo", tag="a b")


def test_a_snapshot_that_exists_stays_as_it_is(sandbox: Host) -> None:
    sandbox.change("images", "localhost/openshell-snapshot-demo:latest", "e" * 64)
    found = sandbox.module("sandbox_snapshot", sandbox_name="demo")
    assert (found["changed"], found["image_id"]) == (False, "e" * 64)
    assert sandbox.module("sandbox_snapshot", check=True, sandbox_name="demo", replace=True)["changed"]
    assert sandbox.calls("commit") == []


class Recorder(Podman):
    """A podman that has one image, hands out its layers, and keeps the archive that it is told to load."""

    def __init__(self, saved: Path, failing: str = "") -> None:
        super().__init__()
        self.saved, self.failing = saved, failing
        self.loaded: dict[str, bytes] = {}
        self.words: list[list[str]] = []

    def command(self) -> list[str]:
        return ["sh", "-c", f"cat {self.saved}; exit {1 if self.failing == 'save' else 0}", "podman"]

    def run(
        self, args: Sequence[str], stdin: bytes | None = None, check: bool = True, timeout: float | None = None
    ) -> Result:
        self.words.append(list(args))
        if args[0] == "load":
            with tarfile.open(args[-1]) as found:
                self.loaded = {one.name: found.extractfile(one).read() for one in found if one.isreg()}  # type: ignore[union-attr]
        if args[:2] == ["image", "inspect"] and "--format" not in args:
            raw = args[2].endswith("-raw")
            image = {
                "RootFS": {"Layers": ["sha256:base", "sha256:top"] if raw else ["sha256:base"]},
                "Created": "2026-01-01T00:00:00Z",
                "Architecture": "amd64",
                "Os": "linux",
                "Config": {"Env": ["SECRET=x"] if raw else ["PATH=/bin"]},
            }
            return Result(0, json.dumps([image]), "")
        return Result(0, "an-id\n", "")


AGENT = {"Name": "openshell-agent-demo", "Image": "base", "State": {"Status": "exited"}}
BASE = 2_550_136_832


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """What ``podman save`` writes: layers by their digests, of which the last one is the agent's."""
    member = tarfile.TarInfo("opt/tool")
    member.uid, member.gid = BASE, BASE + 5
    path = tmp_path / "saved.tar"
    with tarfile.open(path, "w") as made:
        for name, content in (("base.tar", archive().getvalue()), ("top.tar", archive(member).getvalue())):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    return path


def layer(podman: Recorder, digest: str) -> list[tarfile.TarInfo]:
    content = podman.loaded["blobs/" + digest.replace(":", "/")]
    assert hashlib.sha256(content).hexdigest() == digest.partition(":")[2]
    with tarfile.open(fileobj=io.BytesIO(content)) as found:
        return found.getmembers()


@pytest.mark.parametrize("uid_base", [BASE, 0], ids=["root", "user"])
def test_a_snapshot_is_loaded_onto_the_layers_that_are_there(saved: Path, uid_base: int) -> None:
    podman = Recorder(saved)
    assert snapshot.take(podman, AGENT, uid_base, "localhost/x:y", {"openshell.snapshot": "demo"}) == "an-id"
    index = json.loads(podman.loaded["index.json"])
    (entry,) = index["manifests"]
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "localhost/x:y"}
    manifest = json.loads(podman.loaded["blobs/" + entry["digest"].replace(":", "/")])
    config = json.loads(podman.loaded["blobs/" + manifest["config"]["digest"].replace(":", "/")])
    layers = [one["digest"] for one in manifest["layers"]]
    assert config["rootfs"]["diff_ids"] == layers
    assert config["config"] == {"Env": ["PATH=/bin"], "Labels": {"openshell.snapshot": "demo"}}
    assert [one.name for one in layer(podman, layers[2])] == ["etc/hosts"]
    if uid_base:
        (tool,) = layer(podman, layers[1])
        assert (tool.name, tool.uid, tool.gid, layers[0]) == ("opt/tool", 0, 5, "sha256:base")
    else:
        assert layers[:2] == ["sha256:base", "sha256:top"]
    assert podman.words[-2][0] == "rmi" and podman.words[-2][-1] == "localhost/x:y-raw"


def test_a_snapshot_that_fails_leaves_no_image_with_the_agents_environment(saved: Path) -> None:
    podman = Recorder(saved, failing="save")
    with pytest.raises(PodmanError, match="save"):
        snapshot.take(podman, AGENT, BASE, "localhost/x:y", {})
    assert podman.words[-1][0] == "rmi" and podman.words[-1][-1] == "localhost/x:y-raw"
    assert podman.loaded == {}
