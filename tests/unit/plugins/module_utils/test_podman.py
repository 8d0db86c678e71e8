# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The client: what it asks of podman, what it makes of the answers, and what no argument ever holds."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
from pathlib import Path

import pytest
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import (
    Podman,
    PodmanError,
    is_running,
    last_words,
    new_memory,
)
from host import INFO, Host

LABELS = {"openshell.managed": "true"}
SPECIMEN = ["--name", "one", "--network", "net:ip=10.89.0.2", "--pull", "never", "image", "sleep"]


def make_container(host: Host, name: str = "one") -> None:
    if host.podman.network("net") is None:
        host.podman.ensure_internal_network("net", LABELS)
    host.podman.run(["create", "--name", name, *SPECIMEN[2:]])


# -- answers -------------------------------------------------------------------------------------------------------


def test_what_does_not_exist_is_none(host: Host) -> None:
    podman = host.podman
    assert [podman.network("x"), podman.container("x"), podman.volume("x"), podman.secret("x")] == [None] * 4
    assert podman.image_id("x") is None
    assert podman.container_ip("x", "net") is None
    assert podman.logs("x") == []


def test_those_that_exist_are_found_among_those_that_do_not(host: Host) -> None:
    make_container(host)
    assert [found["Name"] for found in host.podman.containers(["absent", "one", "gone"])] == ["one"]
    assert host.podman.containers([]) == []
    assert len(host.calls("container inspect")) == 1


@pytest.mark.parametrize(
    "stderr",
    [
        "Error: open /var/lib/containers/storage/libpod/bolt_state.db: no such file or directory",
        "Error: no such container x\nError: database is corrupt",
        'time="x" level=error msg="no such container x"',
        "",
    ],
)
def test_a_podman_out_of_order_is_an_error_and_not_an_absence(host: Host, stderr: str) -> None:
    host.fail("container inspect", stderr, times=1)
    with pytest.raises(PodmanError, match="podman container inspect failed"):
        host.podman.container("x")


@pytest.mark.parametrize(
    "stderr",
    [
        "Error: inspecting object: no such container x",
        'Error: no container with name or ID "x" found: no such container',
        "Error: no such volume x",
        'Error: inspecting secret: no secret with name or id "x": no such secret',
        "Error: inspecting object: network x: unable to find network with name or ID x: network not found",
        'time="x" level=warning msg="noise"\nError: no such network x',
    ],
)
def test_every_way_of_podman_to_say_that_there_is_none(host: Host, stderr: str) -> None:
    host.fail("container inspect", stderr, times=1)
    assert host.podman.container("x") is None


def test_an_answer_that_is_not_json_is_a_sentence(host: Host) -> None:
    broken = Podman(host.command("broken", "echo '{half'"))
    with pytest.raises(PodmanError, match=r"podman network ls failed .*its answer is not JSON"):
        broken.networks()
    with pytest.raises(PodmanError, match=r"podman secret inspect failed .*its answer is not JSON"):
        broken.secret("x")


def test_an_empty_answer_is_an_empty_list(host: Host) -> None:
    silent = Podman(host.command("silent", "echo null"))
    assert silent.networks() == []
    assert silent.volume("x") is None


def test_messages_are_podmans_last_words_without_noise() -> None:
    told = 'time="x" level=warning msg="noise"\nError: one\n\nError: two\nthree\nfour\n'
    assert last_words(told) == "two three four"
    assert last_words('level=error msg="all there is"') == 'level=error msg="all there is"'
    assert last_words("") == ""


def test_an_error_names_the_subcommand_and_no_argument(host: Host) -> None:
    host.fail("create", "Error: out of order")
    with pytest.raises(PodmanError) as caught:
        host.podman.run(["create", "--env", "TOKEN=hunter2", "image"])
    assert str(caught.value) == "podman create failed (125): out of order"
    assert (caught.value.rc, caught.value.stderr) == (125, "out of order")


@pytest.mark.parametrize(
    ("command", "stderr", "advice"),
    [
        ("secret ls", "Error: unexpected end of JSON input", "remove secrets/secrets.json"),
        ("network create", "Error: could not find free subnet from subnet pools", "delete sandboxes, run prune.yml"),
        (
            "create",
            'Error: no secret with name or id "one": no such secret',
            "create_sandbox.yml with what the sandbox",
        ),
        ("volume create", "Error: mkdir /x: no space left on device", "free some space"),
    ],
    ids=["secret store", "subnets", "secret", "disk"],
)
def test_an_error_that_needs_advice_has_it(host: Host, command: str, stderr: str, advice: str) -> None:
    host.fail(command, stderr)
    with pytest.raises(PodmanError, match=advice):
        host.direct.run(command.split())
    assert advice not in str(PodmanError("container inspect", 125, "Error: unexpected end of JSON input"))


def test_an_error_without_words_says_so(host: Host) -> None:
    with pytest.raises(PodmanError, match=r"podman start failed \(3\): no message"):
        Podman(host.command("mute", "exit 3")).run(["start", "x"])


def test_a_command_that_may_fail_is_told_and_not_raised(host: Host) -> None:
    result = host.podman.run(["start", "absent"], check=False)
    assert result.rc == 125
    assert "no such container" in result.stderr


def test_no_podman_is_a_sentence(host: Host) -> None:
    with pytest.raises(PodmanError, match=r"'/absent/podman' was not found on this host; install Podman 4.3 or newer"):
        Podman("/absent/podman").run(["info"])
    with pytest.raises(PodmanError, match="cannot be run on this host: Permission denied"):
        Podman(str(host.directory)).run(["info"])


def test_a_podman_that_hangs_is_a_sentence(host: Host) -> None:
    hanging = Podman(host.command("hanging", "exec sleep 30"))
    with pytest.raises(PodmanError, match=r"podman info failed \(124\): no answer within 0 seconds"):
        hanging.run(["info"], timeout=0.2)


def test_standard_input_is_never_the_callers(host: Host) -> None:
    """A podman that reads gets an end at once, or it would wait for the person at the terminal."""
    reader, writer = os.pipe()
    os.write(writer, b"typed\n")
    os.close(writer)
    mine = os.dup(0)
    try:
        os.dup2(reader, 0)
        assert Podman(host.command("reader", "cat; echo end")).run(["info"]).stdout == "end\n"
    finally:
        os.dup2(mine, 0)
        os.close(mine)
        os.close(reader)


def test_the_runtime_is_asked_for_on_every_call(host: Host) -> None:
    Podman(host.executable, "runc").networks()
    host.podman.networks()
    assert host.calls() == [["--runtime", "runc", "network", "ls", "--format", "json"], host.calls("network")[0]]


def test_facts_of_the_host(host: Host) -> None:
    podman = host.podman
    assert (podman.version, podman.rootless) == ((4, 3, 1), False)
    assert len(host.calls("info")) == 1
    host.change("info", "host", "security", "rootless", True)
    host.change("info", "version", "Version", "5.10.0-dev")
    assert (host.podman.version, host.podman.rootless) == ((5, 10, 0), True)
    assert INFO["version"]["Version"] == "4.3.1"


# -- networks ------------------------------------------------------------------------------------------------------


def test_an_internal_network_is_made_once(host: Host) -> None:
    assert host.podman.ensure_internal_network("net", LABELS, "10.90.0.0/24") is True
    assert host.calls("network create") == [
        [
            "network",
            "create",
            "--internal",
            "--disable-dns",
            "--subnet",
            "10.90.0.0/24",
            "--label",
            "openshell.managed=true",
            "net",
        ]
    ]
    assert host.podman.ensure_internal_network("net", LABELS) is False
    assert len(host.calls("network create")) == 1


@pytest.mark.parametrize(("key", "value"), [("internal", False), ("dns_enabled", True)])
def test_a_network_with_a_hole_is_not_taken_for_ours(host: Host, key: str, value: bool) -> None:
    host.podman.ensure_internal_network("net", LABELS)
    host.change("networks", "net", key, value)
    with pytest.raises(PodmanError, match="network net exists and is not an internal network without DNS; remove it"):
        host.podman.ensure_internal_network("net", LABELS)


class Overtaken(Podman):
    """Somebody else makes the network between the look and the call."""

    internal = True

    def _create_network(self, name, args):  # type: ignore[no-untyped-def]
        self.run(["network", "create", *(["--internal"] if self.internal else []), "--disable-dns", name])
        return super()._create_network(name, args)


def test_a_network_that_somebody_else_made_meanwhile_is_judged_too(host: Host) -> None:
    host.fail("network create --internal --disable-dns --label", "Error: network name net already used", times=2)
    overtaken = Overtaken(host.executable)
    assert overtaken.ensure_internal_network("net", LABELS) is False
    overtaken.internal = False
    host.podman.remove_network("net")
    with pytest.raises(PodmanError, match="not an internal network"):
        overtaken.ensure_internal_network("net", LABELS)


def test_a_network_that_cannot_be_made_is_an_error(host: Host) -> None:
    host.fail("network create", "Error: subnet 10.90.0.0/24 is already used")
    with pytest.raises(PodmanError, match=r"podman network create failed .*already used"):
        host.podman.ensure_internal_network("net", LABELS, "10.90.0.0/24")


def test_the_bridge_has_no_dns_and_is_made_once(host: Host) -> None:
    assert host.podman.ensure_bridge_network("openshell", LABELS, "10.90.0.0/16") is True
    assert host.podman.ensure_bridge_network("openshell", LABELS) is False
    wanted = "network create --disable-dns --subnet 10.90.0.0/16 --label openshell.managed=true openshell"
    assert host.calls("network create") == [wanted.split()]


def test_the_subnet_is_the_networks_own_ipv4_one(host: Host) -> None:
    host.podman.ensure_internal_network("net", LABELS)
    host.change("networks", "net", "subnets", [{"subnet": "fd00::/64"}, {"subnet": "10.89.5.0/24"}])
    assert str(host.podman.network_subnet("net")) == "10.89.5.0/24"
    assert host.podman.network_subnet_base("net") == "10.89.5"
    host.change("networks", "net", "subnets", [{"subnet": "fd00::/64"}])
    for name in ("net", "absent"):
        with pytest.raises(PodmanError, match=f"network {name} has no IPv4 subnet"):
            host.podman.network_subnet(name)


def test_removal_tells_whether_it_was_there(host: Host) -> None:
    podman = host.podman
    podman.ensure_internal_network("net", LABELS)
    podman.ensure_volume("vol", LABELS)
    podman.create_secret("sec", b"x", LABELS)
    assert [podman.remove_network("net"), podman.remove_volume("vol"), podman.remove_secret("sec")] == [True] * 3
    assert [podman.remove_network("net"), podman.remove_volume("vol"), podman.remove_secret("sec")] == [False] * 3


def test_what_cannot_be_removed_is_an_error(host: Host) -> None:
    host.direct.ensure_volume("x", LABELS)
    for beginning in ("network rm", "volume rm", "secret rm"):
        host.fail(beginning, "Error: it is in use")
    for remove in (host.podman.remove_network, host.podman.remove_volume, host.podman.remove_secret):
        with pytest.raises(PodmanError, match=r"rm failed .*it is in use"):
            remove("x")


def test_connections(host: Host) -> None:
    make_container(host)
    host.podman.ensure_bridge_network("openshell", LABELS)
    host.podman.network_connect("openshell", "one", "10.89.1.9")
    assert host.podman.container_ip("one", "openshell") == "10.89.1.9"
    assert host.podman.container_ip("one", "net") == "10.89.0.2"
    host.podman.network_disconnect("net", "one")
    assert host.podman.container_ip("one", "net") is None
    assert host.calls("network disconnect") == [["network", "disconnect", "--force", "net", "one"]]


def test_networks_and_containers_by_label(host: Host) -> None:
    host.podman.ensure_internal_network("net", LABELS)
    host.podman.ensure_bridge_network("other", {})
    host.podman.run(["create", "--name", "b", "--label", "openshell.managed=true", *SPECIMEN[2:]])
    host.podman.run(["create", "--name", "a", "--label", "openshell.managed=true", *SPECIMEN[2:]])
    host.podman.run(["create", "--name", "c", *SPECIMEN[2:]])
    assert [found["name"] for found in host.podman.networks("openshell.managed=true")] == ["net"]
    assert [found["name"] for found in host.podman.networks()] == ["net", "other"]
    assert host.podman.container_names("openshell.managed=true") == ["a", "b"]


# -- containers ----------------------------------------------------------------------------------------------------


def test_a_container_that_ends_at_once_is_an_error_with_its_last_words(host: Host) -> None:
    make_container(host)
    host.change("ending", {"one": 127})
    (host.directory / "logs" / "one").write_text("exec: nonsense: not found\n")
    with pytest.raises(PodmanError, match=r"podman start failed \(127\): one ended at once: exec: nonsense: not found"):
        host.podman.start("one")


def test_one_with_a_restart_policy_is_left_to_it(host: Host) -> None:
    make_container(host)
    host.change("containers", "one", "HostConfig", "RestartPolicy", "Name", "on-failure")
    host.change("ending", {"one": 1})
    host.podman.start("one")


def test_one_that_stands_is_watched_for_its_time(host: Host) -> None:
    make_container(host)
    looks = len(host.calls("container inspect"))
    host.podman.start("one", settle=0.2)
    assert len(host.calls("container inspect")) > looks


def test_a_removal_that_was_busy_and_then_done_was_there(host: Host) -> None:
    host.fail("rm", "Error: device or resource busy", times=1)
    host.fail("rm", "Error: no such container one", times=1)
    assert host.podman.remove_container("one") is True
    host.fail("rm", "Error: no such container one", times=1)
    assert host.podman.remove_container("one") is False


def test_logs_are_the_last_lines(host: Host) -> None:
    make_container(host)
    (host.directory / "logs" / "one").write_text("1\n2\n3\n")
    quiet = Podman(host.command("quiet", f'exec {host.executable} "$@" 2>/dev/null'))
    assert quiet.logs("one", 3) == ["2", "3", ""]
    assert host.calls("logs") == [["logs", "--tail", "3", "one"]]


# -- secrets -------------------------------------------------------------------------------------------------------


def test_a_secret_travels_on_standard_input_only(host: Host) -> None:
    host.podman.create_secret("sec", b"hunter2\n", LABELS)
    assert host.stdin_of("secret create") == b"hunter2\n"
    assert host.calls("secret create") == [["secret", "create", "--label", "openshell.managed=true", "sec", "-"]]
    assert "hunter2" not in (host.directory / "calls.jsonl").read_text()
    found = host.podman.secret("sec")
    assert found is not None
    assert found["Spec"]["Labels"] == LABELS
    assert host.podman.secret_names() == [("sec", LABELS)]


def test_a_volume_is_known_by_its_whole_name(host: Host) -> None:
    """Podman takes the beginning of a name for it: one sandbox's volume must not go for another's."""
    host.podman.ensure_volume("vol-2", LABELS)
    assert host.podman.volume("vol") is None
    assert host.podman.remove_volume("vol") is False
    assert list(host.state["volumes"]) == ["vol-2"]


def test_volumes_are_made_once(host: Host) -> None:
    assert host.podman.ensure_volume("vol", LABELS) is True
    assert host.podman.ensure_volume("vol", LABELS) is False
    assert [found["Name"] for found in host.podman.volumes("openshell.managed=true")] == ["vol"]
    assert host.podman.volumes("openshell.managed=false") == []


# -- again ---------------------------------------------------------------------------------------------------------

BUSY = "Error: unmounting: device or resource busy"
PASSING = [
    BUSY,
    'Error: replacing mount point "/var/lib/x": resource busy',
    "Error: given PID did not die within timeout: container one could not be stopped",
    "Error: open /proc/4711/stat: no such file or directory",
    "Error: sending signal to container: no such process",
    "Error: layer not known",
    "Error: database is locked",
]
REPEATED = [
    "rm --force --time 10 --volumes one",
    "container inspect one",
    "network inspect one",
    "network rm one",
    "volume rm one",
    "secret rm one",
    "rmi one",
    "stop one",
    "ps --all --format json",
    "volume ls --format json",
    "network ls --format json",
]


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ansible_collections.openshell.sandbox.plugins.module_utils.podman.PAUSE", 0.0)


def make_one_of_each(host: Host) -> None:
    host.direct.ensure_internal_network("one", LABELS)
    host.direct.ensure_volume("one", LABELS)
    host.direct.create_secret("one", b"x", LABELS)
    host.direct.ensure_internal_network("net", LABELS)
    host.direct.run(["create", "--name", "one", *SPECIMEN[2:]])


@pytest.mark.parametrize("stderr", PASSING)
@pytest.mark.parametrize("command", REPEATED)
def test_what_passes_is_waited_for(host: Host, no_pause: None, command: str, stderr: str) -> None:
    make_one_of_each(host)
    before = len(host.calls(command))
    host.fail(command, stderr, times=2)
    result = host.direct.run(command.split())
    assert (result.rc, result.tries, len(host.calls(command)) - before) == (0, 3, 3)


@pytest.mark.parametrize("command", ["kill --signal HUP one", "rename one two", "cp - one:/", "create --name two"])
def test_what_cannot_be_repeated_is_not(host: Host, no_pause: None, command: str) -> None:
    make_one_of_each(host)
    host.fail(command, BUSY)
    with pytest.raises(PodmanError, match="busy"):
        host.direct.run(command.split())
    assert len(host.calls(command)) == 1


def test_what_does_not_pass_is_told_at_once_and_waiting_has_an_end(
    host: Host, no_pause: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_one_of_each(host)
    monkeypatch.setattr("ansible_collections.openshell.sandbox.plugins.module_utils.podman.ATTEMPTS", 3)
    host.fail("rm", "Error: out of order")
    with pytest.raises(PodmanError, match=r"podman rm failed .*out of order"):
        host.direct.remove_container("one")
    assert len(host.calls("rm")) == 1
    host.fail("network rm", BUSY, times=3)
    with pytest.raises(PodmanError, match=r"podman network rm failed .*busy"):
        host.direct.remove_network("one")
    assert len(host.calls("network rm")) == 3


@pytest.mark.parametrize("listing", ["ps", "network ls", "volume ls"])
def test_a_listing_is_not_upset_by_what_goes_away_meanwhile(host: Host, no_pause: None, listing: str) -> None:
    host.fail(listing, "Error: no volume with name x found: no such volume")
    assert host.direct.json([*listing.split(), "--format", "json"]) == []


def test_what_was_not_made_is_made_again_and_what_was_made_is_not(host: Host, no_pause: None) -> None:
    locked = "Error: database is locked"
    for beginning in ("network create", "volume create", "secret create"):
        host.fail(beginning, locked)
    make_one_of_each(host)
    found = [len(host.calls(f"{kind} create")) for kind in ("network", "volume", "secret")]
    assert found == [3, 2, 2]  # two networks
    host.fail("create", locked)
    with pytest.raises(PodmanError, match="locked"):
        host.direct.run(["create", "--name", "one"], unmade=lambda: host.direct.container("one") is None)


def test_an_image_that_is_not_there_was_not_removed(host: Host) -> None:
    host.fail("rmi", "Error: 1 error occurred:\n\t* one: image not known")
    assert host.direct.remove_image("one") is False
    host.fail("rmi", "Error: one: image not known")
    assert host.direct.remove_image("one") is False
    host.fail("rmi", "Error: 1 error occurred:\n\t* image is in use by a container")
    with pytest.raises(PodmanError, match="in use"):
        host.direct.remove_image("one")


# -- the lock ------------------------------------------------------------------------------------------------------


def _hold(name: str, held: multiprocessing.synchronize.Event) -> None:
    with Podman().lock(name):
        held.set()
        threading.Event().wait(60)


def test_the_lock_is_one_per_host_and_goes_with_its_holder() -> None:
    """A second taker waits for a living holder, and not for one that was killed."""
    name = f"test-{os.getpid()}"
    spawn = multiprocessing.get_context("spawn")
    held = spawn.Event()
    holder = spawn.Process(target=_hold, args=(name, held), daemon=True)
    holder.start()
    assert held.wait(30)
    taken = threading.Event()

    def take() -> None:
        with Podman().lock(name):
            taken.set()

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    assert not taken.wait(0.2)
    with Podman().lock(name + "-other"):
        pass
    holder.kill()
    assert taken.wait(30)
    taker.join()
    holder.join()


def test_a_lock_that_cannot_be_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    place = "ansible_collections.openshell.sandbox.plugins.module_utils.podman.runtime_directory"
    monkeypatch.setattr(place, lambda: str(file))
    sentence = re.escape(f"{file}/openshell cannot be used for locks: Not a directory")
    with pytest.raises(PodmanError, match=sentence), Podman().lock():
        pass


# -- the memory ----------------------------------------------------------------------------------------------------


@pytest.fixture
def remembering(host: Host) -> Podman:
    make_one_of_each(host)
    return Podman(host.executable, memory=new_memory())


def asked(host: Host, beginning: str) -> int:
    return len(host.calls(beginning))


def test_what_is_known_is_not_asked_for_again(host: Host, remembering: Podman) -> None:
    before = len(host.calls())
    for look in range(2):
        assert [found["Name"] for found in remembering.containers(["one", "absent"])] == ["one"], look
        assert remembering.container("absent") is None
        assert remembering.network("one") == remembering.networks_of(["one", "net"])[0]
        assert remembering.volume("one") is not None
        assert remembering.secret("one") is not None
    kinds = [" ".join(call[:2]) for call in host.calls()[before:]]
    assert kinds == ["container inspect", "network inspect", "network inspect", "volume ls", "secret inspect"]


@pytest.mark.parametrize(
    ("change", "kind"),
    [("stop one", "container"), ("network disconnect --force net one", "container"), ("kill one", "container")],
)
def test_what_a_command_changes_is_asked_for_again(host: Host, remembering: Podman, change: str, kind: str) -> None:
    remembering.start("one", settle=0)
    remembering.container("one")
    remembering.volume("one")
    looks = asked(host, f"{kind} inspect"), asked(host, "volume ls")
    remembering.run(change.split())
    remembering.container("one")
    remembering.volume("one")
    assert (asked(host, f"{kind} inspect"), asked(host, "volume ls")) == (looks[0] + 1, looks[1])


def test_a_volume_that_it_made_is_known_but_for_where_it_lies(host: Host, remembering: Podman) -> None:
    remembering.volume("one")
    before = asked(host, "volume ls")
    assert remembering.ensure_volume("new", {"openshell.managed": "true"}) is True
    assert [found["Name"] for found in remembering.volumes("openshell.managed=true")][-1] == "new"
    assert remembering.volume("one") is not None
    assert asked(host, "volume ls") == before
    assert remembering.volume_path("new") == host.state["volumes"]["new"]["Mountpoint"]
    assert remembering.volume_path("absent") == ""
    assert asked(host, "volume ls") == before + 1
    assert remembering.ensure_volume("new", {}) is False
    assert len([one for one in remembering.volumes("openshell.managed") if one["Name"] == "new"]) == 1


def test_a_command_that_nobody_knows_may_have_changed_everything(host: Host, remembering: Podman) -> None:
    remembering.volume("one")
    remembering.secret("one")
    before = asked(host, "volume ls"), asked(host, "secret inspect")
    remembering.run(["pull", "image"])
    remembering.volume("one")
    remembering.secret("one")
    assert (asked(host, "volume ls"), asked(host, "secret inspect")) == (before[0] + 1, before[1] + 1)


def test_what_a_command_does_not_name_stays_known(host: Host, remembering: Podman) -> None:
    make_container(host, "two")
    names = ["one", "two"]
    remembering.containers(names)
    remembering.container_names("openshell.managed")
    remembering.run(["start", "two"])
    assert [is_running(found) for found in remembering.containers(names)] == [False, True]
    remembering.container_names("openshell.managed")
    assert host.calls("container inspect")[-1] == ["container", "inspect", "two"]
    assert asked(host, "ps") == 2  # a listing names nobody, so it may have changed


def test_volumes_are_told_apart_by_label(host: Host, remembering: Podman) -> None:
    remembering.ensure_volume("v1", {"k": "1"})
    remembering.ensure_volume("v2", {"k": "2", "l": ""})

    def names(label: str) -> list[str]:
        return [volume["Name"] for volume in remembering.volumes(label)]

    assert (names("k"), names("k=2"), names("l"), names("l="), names("k=")) == (
        ["v1", "v2"],
        ["v2"],
        ["v2"],
        ["v2"],
        [],
    )


def test_what_is_foreseen_is_known(host: Host, remembering: Podman) -> None:
    before = len(host.calls())
    remembering.foresee(lambda: remembering.secret("one"), lambda: remembering.containers(["one", "absent"]))
    assert len(host.calls()) == before + 2
    assert remembering.secret("one") is not None
    assert remembering.container("absent") is None
    assert len(host.calls()) == before + 2
    host.direct.foresee(lambda: host.direct.secret("one"))  # it would remember nothing
    assert len(host.calls()) == before + 2


def test_what_cannot_be_foreseen_is_an_error(host: Host, remembering: Podman) -> None:
    def look() -> None:
        raise PodmanError("info", 1, "broken")

    with pytest.raises(PodmanError, match="broken"):
        remembering.foresee(look, lambda: remembering.secret("one"))


def test_one_object_is_looked_at_again(host: Host, remembering: Podman) -> None:
    make_container(host, "two")
    remembering.containers(["one", "two"])
    remembering.look_again("container", name="two")
    remembering.containers(["one", "two"])
    assert host.calls("container inspect")[-1] == ["container", "inspect", "two"]


def test_who_holds_a_lock_looks_again_at_what_it_is_about(host: Host, remembering: Podman) -> None:
    remembering.volume("one")
    remembering.secret("one")
    before = asked(host, "volume ls"), asked(host, "secret inspect")
    with remembering.lock(f"test-{os.getpid()}-looks", looks=["secret"]):
        remembering.volume("one")
        remembering.secret("one")
    assert (asked(host, "volume ls"), asked(host, "secret inspect")) == (before[0], before[1] + 1)


def test_who_waits_and_who_had_to_wait_look_again(host: Host, remembering: Podman) -> None:
    remembering.container("one")
    host.change("containers", "one", "Image", "other")
    assert remembering.container("one")["Image"] == "image"  # type: ignore[index]
    remembering.look_again("container")
    assert remembering.container("one")["Image"] == "other"  # type: ignore[index]
    host.change("containers", "one", "Image", "third")
    with remembering.lock(f"test-{os.getpid()}-memory"):
        assert remembering.container("one")["Image"] == "third"  # type: ignore[index]


def test_images_are_looked_up_in_one_call_where_all_are_there(host: Host) -> None:
    for name in ("a", "b"):
        host.direct.run(["pull", name])
    before = len(host.calls("image"))
    assert all(host.podman.image_ids(["a", "b"]).values())
    assert len(host.calls("image")) == before + 1
    assert host.podman.image_ids(["a", "absent"])["absent"] == ""
    assert host.podman.image_ids(["a", "absent"])["a"] == host.podman.image_id("a")


def test_images_that_are_known_are_not_asked_for_again(host: Host, remembering: Podman) -> None:
    host.change("images", "a", "a" * 64)
    assert remembering.image_ids(["a"]) == {"a": "a" * 64}
    assert remembering.image_ids(["a", "absent"]) == {"a": "a" * 64, "absent": ""}
    assert len(host.calls("image inspect")) == 2
    remembering.image_ids(["absent"])
    assert len(host.calls("image inspect")) == 2
    remembering.run(["pull", "absent"])
    assert remembering.image_id("absent") == host.podman.image_id("absent") is not None
