# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A podman for tests: the subset of commands that the collection uses, on a JSON file instead of containers.

``fake_podman.py DIRECTORY ARGUMENT...``. JSON shapes and messages are recorded from Podman 4.3.1. A flag that the real
one would not get from us is an error, so no test passes with an unexpected one. A started container is a real process
without capabilities and with no_new_privs, because the audit and the readiness check look at /proc. The directory:

- ``state.json``: containers, networks, volumes, secrets, images; ``fail``: errors to tell, see :func:`injected`;
- ``calls.jsonl``: the arguments of every call; ``stdin/N``: what call N (from 0) got on standard input;
- ``volumes/``, ``rootfs/``, ``logs/``: contents by name.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from typing import Any, Dict, List, Tuple

NEVER = "0001-01-01T00:00:00Z"
VALUED = frozenset(
    """--name --hostname --cap-drop --cap-add --security-opt --uidmap --gidmap --ipc --network --dns --dns-search
    --dns-option --sysctl --ulimit --pids-limit --memory --cpus --volume --secret --tmpfs --env --label --user
    --workdir --restart --stop-timeout --log-driver --log-opt --pull --subnet --filter --format --time --tail --ip
    --signal --tag --build-arg --change --mac-address""".split()  # noqa: SIM905
)
PLAIN = frozenset(
    """--read-only --read-only-tmpfs=false --http-proxy=false --no-hosts --init --userns=nomap --internal --disable-dns
    --force --all --quiet --volumes --rm -i --pull=never --force-rm""".split()  # noqa: SIM905
)
MISSING = {
    "container": 'no container with name or ID "{0}" found: no such container',
    "network": "unable to find network with name or ID {0}: network not found",
    "volume": 'no volume with name "{0}" found: no such volume',
    "secret": 'no secret with name or id "{0}": no such secret',
    "image": "inspecting object: {0}: image not known",
}

Json = Dict[str, Any]


class Failure(Exception):
    """Exit status, the words on standard error, and those on standard output if any."""


class FakePodman:
    """One call. ``state`` is read before and written after it."""

    def __init__(self, directory: str, state: Json) -> None:
        self.directory = directory
        self.state = state
        self.stdin = b""
        self.args: List[str] = []

    def path(self, *parts: str) -> str:
        return os.path.join(self.directory, *parts)

    def get(self, kind: str, name: str) -> Json:
        found: Json | None = self.state[kind + "s"].get(name)
        if found is None:
            raise Failure(1 if kind == "network" else 125, "Error: " + MISSING[kind].format(name))
        return found

    # -- containers ------------------------------------------------------------------------------------------------

    def create(self, flags: Dict[str, List[str]], words: List[str]) -> str:
        name = flags["--name"][0]
        if name in self.state["containers"]:
            raise Failure(125, f'Error: creating container storage: the container name "{name}" is already in use')
        network, _, fixed = flags["--network"][0].partition(":ip=")
        address, _, hardware = fixed.partition(",mac=")
        self.get("network", network)
        self.state["containers"][name] = {
            "Name": name,
            "Created": moment(),
            "Image": words[0],
            "ImageName": "localhost/image:" + words[0][:6],
            "State": {"Status": "created", "Pid": 0, "ExitCode": 0, "StartedAt": NEVER},
            "OCIConfigPath": self.path("oci-" + name),
            "Config": {
                "Labels": dict(label.split("=", 1) for label in flags.get("--label", [])),
                "CreateCommand": ["podman", *self.args],
            },
            "GraphDriver": {"Name": "overlay", "Data": {"UpperDir": self.path("rootfs", name)}},
            "HostConfig": {
                "Privileged": False,
                "ReadonlyRootfs": "--read-only" in flags,
                "RestartPolicy": {"Name": flags.get("--restart", [""])[0]},
                "IDMappings": {"UidMap": flags["--uidmap"]} if "--uidmap" in flags else None,
            },
            "NetworkSettings": {"Networks": {network: {"IPAddress": address, "MacAddress": hardware}}},
            "Mounts": [self.mount(argument) for argument in flags.get("--volume", [])],
            "Sysctls": dict(sysctl.split("=", 1) for sysctl in flags.get("--sysctl", [])),
        }
        return name

    def mount(self, argument: str) -> Json:
        source, target, options = argument.split(":")
        writable = "rw" in options.split(",")
        if source.startswith("/"):
            return {"Type": "bind", "Source": source, "Destination": target, "RW": writable}
        mountpoint = self.get("volume", source)["Mountpoint"]
        return {"Type": "volume", "Name": source, "Source": mountpoint, "Destination": target, "RW": writable}

    def start(self, name: str) -> None:
        container = self.get("container", name)
        with open(container["OCIConfigPath"], "w", encoding="utf-8") as handle:
            json.dump({"linux": {"sysctl": container["Sysctls"]}}, handle)
        container["State"]["StartedAt"] = moment()
        if name in self.state["ending"]:
            container["State"].update(Status="exited", ExitCode=self.state["ending"][name], Pid=0)
            return
        container["State"].update(Status="running", Pid=confined_process())
        self.sidecar_speaks(container)

    def stop(self, name: str) -> None:
        container = self.get("container", name)
        if container["State"]["Status"] == "paused":
            raise Failure(125, f"Error: {name} is in state paused: container state improper")
        self.end(container)

    def end(self, container: Json) -> None:
        if container["State"]["Pid"]:
            os.kill(container["State"]["Pid"], 9)
        container["State"].update(Status="exited" if container["State"]["StartedAt"] != NEVER else "created", Pid=0)

    def sidecar_speaks(self, container: Json) -> None:
        """The sentinel that a sidecar writes when it starts and when it is told to read its configuration again."""
        mounts = {mount["Destination"]: mount["Source"] for mount in container["Mounts"]}
        if "/var/lib/openshell" not in mounts or self.state.get("silent_sidecar"):
            return
        import hashlib

        texts = {}
        for file in ("policy.yaml", "upstream-ca.pem", "inference.json", "secrets.json"):
            path = os.path.join(mounts["/var/lib/openshell"], "config", file)
            texts[file] = b""
            if os.path.exists(path):
                with open(path, "rb") as handle:
                    texts[file] = handle.read()
        with open(f"/proc/{container['State']['Pid']}/stat", encoding="ascii") as stat:
            ticks = int(stat.read().rsplit(")", 1)[1].split()[19])
        policy = hashlib.sha256(texts["policy.yaml"]).hexdigest() if texts["policy.yaml"] else ""
        upstream = hashlib.sha256(texts["upstream-ca.pem"]).hexdigest() if texts["upstream-ca.pem"] else ""
        error = "policy: line 1: wrong" if b"WRONG" in texts["policy.yaml"] else ""
        sentinel = {"started_ticks": ticks, "policy_digest": policy, "policy_error": error}
        sentinel["inference_error"] = "route: wrong" if b"WRONG" in texts["inference.json"] else ""
        sentinel["credentials_error"] = "secret: wrong" if b"WRONG" in texts["secrets.json"] else ""
        sentinel.update(read_policy_digest=policy, read_upstream_ca_digest=upstream)
        sentinel.update(self.state.get("misread", {}))
        container["Generation"] = sentinel["generation"] = container.get("Generation", 0) + 1
        with open(os.path.join(mounts["/openshell-tls"], ".ready"), "w", encoding="utf-8") as ready:
            json.dump(sentinel, ready)

    def copy_in(self, target: str) -> None:
        import io
        import tarfile

        name, _, directory = target.partition(":")
        mounts = {mount["Destination"]: mount["Source"] for mount in self.get("container", name)["Mounts"]}
        with tarfile.open(fileobj=io.BytesIO(self.stdin)) as archive:
            for member in archive.getmembers():
                destination = os.path.join(mounts.get(directory, self.path("rootfs", name)), member.name)
                os.makedirs(os.path.dirname(destination), exist_ok=True)
                content = archive.extractfile(member)
                with open(destination, "wb") as handle:
                    handle.write(content.read() if content else b"")

    def container_command(self, words: List[str], flags: Dict[str, List[str]]) -> str:
        command, names = words[0], words[1:]
        if command == "create":
            return self.create(flags, names)
        if command == "cp":
            self.copy_in(names[1])
        elif command == "rename":
            container = self.get("container", names[0])
            if names[1] in self.state["containers"]:
                raise Failure(125, f'Error: the container name "{names[1]}" is already in use')
            container["Name"] = names[1]
            self.state["containers"][names[1]] = self.state["containers"].pop(names[0])
        elif command == "rm":
            if names[0] not in self.state["containers"]:
                return ""  # with --force not an error
            self.end(self.state["containers"][names[0]])
            del self.state["containers"][names[0]]
            return names[0]
        elif command in ("pause", "unpause"):
            container = self.get("container", names[0])
            before, after = ("running", "paused") if command == "pause" else ("paused", "running")
            if container["State"]["Status"] != before:
                raise Failure(125, f"Error: {names[0]} is not {before}: container state improper")
            container["State"]["Status"] = after
        elif command == "kill":
            container = self.get("container", names[0])
            if container["State"]["Status"] != "running":
                raise Failure(125, "Error: can only kill running containers: container state improper")
            self.sidecar_speaks(container)
        elif command == "logs":
            self.get("container", names[0])
            return self.read("logs", names[0])
        elif command == "exec":
            return self.read("status", names[0])
        else:
            {"start": self.start, "stop": self.stop}[command](names[0])
        return ""

    def read(self, *parts: str) -> str:
        path = self.path(*parts)
        if not os.path.exists(path):
            return ""
        with open(path, encoding="utf-8") as handle:
            return handle.read()

    # -- networks, volumes, secrets, images ------------------------------------------------------------------------

    def network_command(self, command: str, names: List[str], flags: Dict[str, List[str]]) -> str:
        if command == "create":
            used = {entry["subnet"] for network in self.state["networks"].values() for entry in network["subnets"]}
            free = next(subnet for subnet in (f"10.89.{i}.0/24" for i in range(256)) if subnet not in used)
            self.state["networks"][names[0]] = {
                "name": names[0],
                "subnets": [{"subnet": flags.get("--subnet", [free])[0]}],
                "internal": "--internal" in flags,
                "dns_enabled": "--disable-dns" not in flags,
                "labels": dict(label.split("=", 1) for label in flags.get("--label", [])),
            }
        elif command == "rm":
            self.get("network", names[0])
            if any(names[0] in one["NetworkSettings"]["Networks"] for one in self.state["containers"].values()):
                raise Failure(2, f'Error: "{names[0]}" has associated containers with it: network is being used')
            del self.state["networks"][names[0]]
        else:
            self.get("network", names[0])
            networks = self.get("container", names[1])["NetworkSettings"]["Networks"]
            if command == "connect":
                fixed = {"IPAddress": "--ip", "MacAddress": "--mac-address"}
                networks[names[0]] = {key: flags.get(flag, [""])[0] for key, flag in fixed.items()}
            else:
                del networks[names[0]]
        return names[0]

    def volume_command(self, command: str, names: List[str], flags: Dict[str, List[str]]) -> str:
        if command == "create":
            if names[0] in self.state["volumes"]:
                raise Failure(125, f"Error: volume with name {names[0]} already exists: volume already exists")
            mountpoint = self.path("volumes", names[0])
            os.makedirs(mountpoint)
            labels = dict(label.split("=", 1) for label in flags.get("--label", []))
            self.state["volumes"][names[0]] = {"Name": names[0], "Mountpoint": mountpoint, "Labels": labels}
        else:
            known = [name for name in self.state["volumes"] if name.startswith(names[0])]  # as Podman 4.3.1 does
            gone = self.state["volumes"].pop(known[0] if len(known) == 1 else self.get("volume", names[0])["Name"])
            shutil.rmtree(gone["Mountpoint"], ignore_errors=True)
        return names[0]

    def secret_command(self, command: str, names: List[str], flags: Dict[str, List[str]]) -> str:
        if command == "create":
            labels = dict(label.split("=", 1) for label in flags.get("--label", []))
            spec = {"Name": names[0], "Driver": {"Name": "file"}, "Labels": labels}
            self.state["secrets"][names[0]] = {"ID": "id-" + names[0], "Spec": spec}
        elif command == "ls":
            return "\n".join(self.state["secrets"])
        else:
            self.get("secret", names[0])
            del self.state["secrets"][names[0]]
        return names[0]

    def image_command(self, command: str, names: List[str], flags: Dict[str, List[str]]) -> str:
        if command == "rmi":
            self.state["images"].pop(names[0], None)
            return ""
        import hashlib

        made = {"pull": names[0], "import": names[-1], "build": flags.get("--tag", [""])[0]}[command]
        self.state["images"][made] = hashlib.sha256(made.encode()).hexdigest()
        return self.state["images"][made]

    # -- all -------------------------------------------------------------------------------------------------------

    def inspect(self, kind: str, names: List[str]) -> str:
        found, missing = [], []
        for name in names:
            try:
                found.append(self.get(kind, name))
            except Failure as failure:
                missing.append(failure.args[1].replace("Error: ", "Error: inspecting object: "))
        told = json.dumps(found, indent=5)
        if missing:
            raise Failure(125, "\n".join(missing), told)
        return told

    def listed(self, kind: str, label: str) -> List[Json]:
        key, _, value = label.partition("=")
        chosen = []
        for entry in self.state[kind].values():
            labels = entry.get("labels") or entry.get("Labels") or (entry.get("Config") or {}).get("Labels") or {}
            if not label or (key in labels and value in ("", labels[key])):
                chosen.append({**entry, "Names": [entry["Name"]]} if kind == "containers" else entry)
        return chosen

    def call(self, args: List[str]) -> str:
        self.args = args
        args = args[2:] if args[0] == "--runtime" else args
        command = args[0]
        words, flags = parse(args)
        label = flags.get("--filter", [""])[0].partition("label=")[2]
        if command == "info":
            return json.dumps(self.state["info"])
        if command == "ps":
            return json.dumps(self.listed("containers", label))
        if command == "run":
            return str(self.state["run"])
        if command in ("pull", "build", "rmi", "import"):
            return self.image_command(command, words[1:], flags)
        if command == "image":
            return "\n".join(str(self.get("image", name) and self.state["images"][name]) for name in words[2:])
        if command not in ("network", "volume", "secret", "container"):
            return self.container_command(words, flags)
        if words[1] == "inspect":
            return self.inspect(command, words[2:])
        if words[1] == "ls" and command != "secret":
            return json.dumps(self.listed(command + "s", label))
        return str(getattr(self, command + "_command")(words[1], words[2:], flags))


def parse(args: List[str]) -> Tuple[List[str], Dict[str, List[str]]]:
    """Words and flags (name → values). What follows the image is the container's own."""
    words: List[str] = []
    flags: Dict[str, List[str]] = {}
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            words.append(word)
            if args[0] in ("create", "run", "exec") and len(words) == 2:
                return words + rest, flags
        elif word in VALUED:
            flags.setdefault(word, []).append(rest.pop(0))
        elif word in PLAIN:
            flags[word] = []
        else:
            raise Failure(125, f"Error: unknown flag: {word}")
    return words, flags


def moment() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000000Z", time.gmtime())


def confined_process() -> int:
    """A process of two minutes at most that is as confined as a container's first one; its pid."""
    import ctypes
    import subprocess

    libc = ctypes.CDLL(None, use_errno=True)

    def confine() -> None:
        if os.geteuid():
            libc.unshare(0x10000000)  # CLONE_NEWUSER: the bounding set is ours to shrink there
        for capability in range(64):
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        libc.capset(header, (ctypes.c_uint32 * 6)())

    # After the exec, root's capabilities are those of the bounding set, that is none.
    nothing = subprocess.DEVNULL
    return subprocess.Popen(
        ["sleep", "120"], preexec_fn=confine, start_new_session=True, stdin=nothing, stdout=nothing, stderr=nothing
    ).pid


def injected(state: Json, args: List[str]) -> None:
    """Fail as a test asked: ``fail`` is a list of [beginning of the arguments, times, status, words]."""
    for entry in state["fail"]:
        if entry[1] > 0 and " ".join(args).startswith(entry[0]):
            entry[1] -= 1
            raise Failure(entry[2], entry[3])


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as handle:
            return handle.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def refresh(state: Json) -> None:
    """A container whose process has ended is not running."""
    for container in state["containers"].values():
        pid = container["State"]["Pid"]
        if pid and not alive(pid):
            container["State"].update(Status="exited", Pid=0)


def answer(directory: str, args: List[str], stdin: bytes) -> Tuple[int, str, str]:
    """One call, alone with its state: exit status, standard output and standard error."""
    with open(os.path.join(directory, "lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(os.path.join(directory, "state.json"), encoding="utf-8") as handle:
            podman = FakePodman(directory, json.load(handle))
        podman.stdin = stdin
        with open(podman.path("calls.jsonl"), "a+", encoding="utf-8") as calls:
            calls.seek(0)
            number = sum(1 for _ in calls)
            calls.write(json.dumps(args) + "\n")
        with open(podman.path("stdin", str(number)), "wb") as handle:
            handle.write(stdin)
        refresh(podman.state)
        status, stdout, stderr = 0, "", 'time="2026-11-24T21:00:00Z" level=warning msg="noise of every call"\n'
        try:
            injected(podman.state, args)
            stdout = podman.call(args) + "\n"
        except Failure as failure:
            status, stdout = failure.args[0], "".join(failure.args[2:])
            stderr += failure.args[1] + "\n"
        with open(podman.path("state.json"), "w", encoding="utf-8") as handle:
            json.dump(podman.state, handle)
    return status, stdout, stderr


def main(directory: str, args: List[str]) -> int:
    """The command."""
    status, stdout, stderr = answer(directory, args, sys.stdin.buffer.read())
    sys.stdout.write(stdout)
    sys.stderr.write(stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
