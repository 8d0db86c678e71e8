# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Create, change, break, repair, delete: nothing is lost, nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import time

from conftest import Origin, changed, inside, ours, playbook, podman

# An entry of a result's list of what was made, as the YAML form of a verbose run shows it.
CREATED = re.compile(r"kind: (\w+)\n\s+name: (\S+)")


def test_creating_twice_changes_nothing(sandbox: str, variables: dict[str, object]) -> None:
    again = playbook("create_sandbox", **variables)
    assert again.returncode == 0, again.stdout[-3000:]
    assert changed(again) == 0, again.stdout


def test_check_mode_tells_the_truth_before_the_first_creation() -> None:
    checked = playbook("create_sandbox", "--check", "--diff", sandbox_name="it-check")
    assert checked.returncode == 0, checked.stdout[-3000:]
    assert changed(checked) > 0
    assert all(ours(kind, "it-check") == [] for kind in ("container", "network", "volume", "secret"))


def test_check_mode_names_what_creation_then_creates() -> None:
    name = "it-truth"
    checked = playbook("create_sandbox", "--check", "--diff", "-v", sandbox_name=name)
    try:
        made = playbook("create_sandbox", "--diff", "-v", sandbox_name=name)
        assert made.returncode == 0, made.stdout[-3000:]
        exists = {(kind, one) for kind in ("container", "network", "volume", "secret") for one in ours(kind, name)}
        assert set(CREATED.findall(checked.stdout)) == exists, checked.stdout[-3000:]
        assert changed(checked) == changed(made)
    finally:
        playbook("delete_sandbox", sandbox_name=name)


def test_a_hand_made_connection_is_found_and_put_right(sandbox: str, variables: dict[str, object]) -> None:
    agent = f"openshell-agent-{sandbox}"
    podman("network", "create", "it-stray")
    try:
        podman("network", "connect", "it-stray", agent)
        repaired = playbook("create_sandbox", **variables)
        assert repaired.returncode == 0, repaired.stdout[-3000:]
        assert changed(repaired) >= 1
        networks = podman("inspect", "-f", "{{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{end}}", agent).stdout
        assert networks.split() == [f"openshell-sbx-{sandbox}"]
    finally:
        podman("network", "rm", "--force", "it-stray", check=False)


def test_a_killed_sidecar_comes_back(sandbox: str, origin: Origin) -> None:
    pid = podman("inspect", "-f", "{{.State.Pid}}", f"openshell-proxy-{sandbox}").stdout.strip()
    os.kill(int(pid), signal.SIGKILL)  # as the kernel would; "podman kill" would mean that it shall stay dead
    url = f"http://{origin.address}:{origin.http}/hello.txt"
    deadline = time.monotonic() + 20
    while inside(sandbox, "curl", "-fsS", "--max-time", "2", url).stdout != "hello from outside\n":
        assert time.monotonic() < deadline, podman("ps", "-a").stdout
    assert podman("inspect", "-f", "{{.State.Pid}}", f"openshell-proxy-{sandbox}").stdout.strip() != pid


def test_the_sidecar_ends_within_a_second(sandbox: str, variables: dict[str, object]) -> None:
    begun = time.monotonic()
    podman("stop", "--time", "10", f"openshell-proxy-{sandbox}")
    assert time.monotonic() - begun < 5  # podman's own work included; it would wait ten for one that hangs
    assert podman("inspect", "-f", "{{.State.ExitCode}}", f"openshell-proxy-{sandbox}").stdout.strip() == "0"
    again = playbook("create_sandbox", **variables)
    assert again.returncode == 0, again.stdout[-3000:]


def test_a_bad_policy_is_refused_before_anything_is_created() -> None:
    bad = {"version": 1, "network_policies": {"x": {"endpoints": [{"hots": "example.com", "port": 443}]}}}
    done = playbook("create_sandbox", sandbox_name="it-bad", openshell_policy=bad)
    assert done.returncode != 0
    assert "did you mean" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert all(ours(kind, "it-bad") == [] for kind in ("container", "network", "volume", "secret"))


def test_a_bad_name_is_refused() -> None:
    done = playbook("create_sandbox", sandbox_name="No_Such")
    assert done.returncode != 0
    assert "No_Such" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_stop_start_exec_list_delete() -> None:
    name = "it-life"
    try:
        wanted = {"openshell_capabilities": "packages", "openshell_allow_host_registries": True}
        assert playbook("create_sandbox", sandbox_name=name, **wanted).returncode == 0
        done = inside(name, "sh", "-c", "apt-get update -q && apt-get install -qy --no-install-recommends at")
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert inside(name, "stat", "-c", "%U", "/var/spool/cron/atjobs").stdout == "daemon\n"
        inside(name, "sh", "-c", "echo kept > /sandbox/file")
        assert playbook("stop_sandbox", sandbox_name=name).returncode == 0
        assert podman("inspect", "-f", "{{.State.Running}}", f"openshell-agent-{name}").stdout.strip() == "false"
        assert playbook("start_sandbox", sandbox_name=name).returncode == 0
        shown = playbook("exec_sandbox", sandbox_name=name, cmd="cat /sandbox/file")
        assert "kept" in shown.stdout, shown.stdout
        assert name in playbook("list_sandboxes").stdout
        failed = playbook("exec_sandbox", sandbox_name=name, cmd="exit 7")
        assert failed.returncode != 0
    finally:
        deleted = playbook("delete_sandbox", sandbox_name=name)
    assert deleted.returncode == 0, deleted.stdout[-3000:]
    assert all(ours(kind, name) == [] for kind in ("container", "network", "volume", "secret"))
    again = playbook("delete_sandbox", sandbox_name=name)
    assert again.returncode == 0
    assert changed(again) == 0


NESTED = """
set -e
apt-get update -q && apt-get install -qy --no-install-recommends podman crun busybox-static
useradd -m -K SUB_UID_COUNT=0 -K SUB_GID_COUNT=0 dev
mkdir -p /tmp/root/bin && cp /bin/busybox /tmp/root/bin/ && tar -C /tmp/root -cf /tmp/root.tar .
cat > /tmp/nested.sh <<'END'
mkdir -p ~/.config/containers
printf '[storage]\ndriver = "vfs"\n[storage.options.vfs]\nignore_chown_errors = "true"\n' > ~/.config/containers/storage.conf
podman --cgroup-manager=cgroupfs import -q /tmp/root.tar nested
podman --cgroup-manager=cgroupfs --runtime crun run --rm --cgroups=disabled --network=none --uts=host --ulimit=host nested \
    /bin/busybox echo from within
END
su dev -c 'sh /tmp/nested.sh'
"""


def test_containers_run_inside_where_asked() -> None:
    name = "it-nest"
    try:
        wanted = {"openshell_capabilities": ["containers"], "openshell_allow_host_registries": True}
        made = playbook("create_sandbox", sandbox_name=name, **wanted)
        assert made.returncode == 0, made.stdout[-3000:]
        done = inside(name, "bash", "-c", NESTED)
        assert done.stdout.endswith("from within\n"), done.stdout[-2000:] + done.stderr[-2000:]
        assert changed(playbook("create_sandbox", sandbox_name=name, **wanted)) == 0
    finally:
        playbook("delete_sandbox", sandbox_name=name)
