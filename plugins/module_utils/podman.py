# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one client through which every module of this collection speaks to Podman.

It runs the ``podman`` command, parses its JSON and knows what the design needs: internal networks, static addresses,
a second network for a container that exists already. It holds no opinion on sandboxes; the modules do.

Source: design seed, "Podman client"; measured behaviour of Podman 4.3 to 5.4.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import ipaddress
import json
import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterator, List, Mapping, Sequence, Tuple

from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import is_ours

Json = Dict[str, Any]

MINIMUM_VERSION = (4, 3)

ATTEMPTS = 20
PAUSE = 0.25  # seconds

# What Podman says when something else is at work at this moment, and not when it is asked a moment later: a mount of a
# container that has just ended is busy in a namespace that is starting, a process ends while it is looked at.
TRANSIENT = re.compile(
    r"(device or )?resource busy|could not be stopped|/proc/\d+/\S*: no such file or directory|no such process"
    r"|layer not known|database is locked"
)
VANISHED = re.compile(r"no such (container|volume|network|secret)|network not found")
UNKNOWN_IMAGE = re.compile(r"image not known|no such image|^(Error: )?1 error occurred:$")

# Commands that say or do the same when they are repeated. A listing that meets an object which goes away meanwhile
# fails with that object's name.
LISTINGS = (("ps",), ("images",), *((kind, "ls") for kind in ("network", "volume", "secret")))
REPEATABLE = (
    *LISTINGS,
    *(("info",), ("logs",), ("rm",), ("rmi",), ("start",), ("stop",)),
    *((kind, verb) for kind in ("container", "network", "volume", "secret", "image") for verb in ("inspect", "rm")),
)

INFO = ("info", "--format", "json")
VOLUMES = ("volume", "ls", "--format", "json")
KINDS = ("container", "network", "volume", "secret", "image")
LONG = ("build", "pull", "run", "exec", "import", "save", "load")
READING = (*LISTINGS, ("info",), ("logs",), *((kind, "inspect") for kind in KINDS))
# What a command that changes something leaves as it was need not be asked for again. It changes those that it names,
# and their listing; one that is not here may change all.
AFFECTED: Dict[str, Tuple[str, ...]] = {
    **dict.fromkeys(("create", "run", "start", "stop", "rm", "rename", "kill", "pause", "unpause"), ("container",)),
    **dict.fromkeys(("cp", "exec"), ()),
    "network": ("network", "container"),
    "volume": ("volume",),
    "secret": ("secret",),
}

# kind → name (or the words of a listing) → what podman said; None for an object that does not exist
Memory = Dict[str, Dict[str, Any]]


def new_memory() -> Memory:
    return {kind: {} for kind in (*KINDS, "info")}


# What to do about errors whose words alone do not say it.
ADVICE = (
    (
        re.compile(r"^secret .*(unexpected end of JSON input|invalid character)", re.DOTALL),
        "Podman's secret store was damaged when something ended it while it wrote; remove secrets/secrets.json and "
        "secrets/filedriver/secretsdata.json below its graph root, what this collection keeps there is made anew",
    ),
    (
        re.compile(r"could not find free subnet", re.IGNORECASE),
        "every subnet that Podman may give away is in use; delete sandboxes, run prune.yml, or widen "
        "default_subnet_pools in containers.conf",
    ),
    (
        re.compile(r"^create .*no such secret", re.DOTALL),
        "the certificate authority is gone from Podman's secret store; create_sandbox.yml with what the sandbox was created "
        "with makes a new one",
    ),
    (
        re.compile(r"no space left on device", re.IGNORECASE),
        "the disk below Podman's storage is full; free some space, prune.yml removes what no sandbox needs",
    ),
)


class PodmanError(Exception):
    """A podman command that failed.

    ``rc`` is its exit status, ``stderr`` its last words without log noise. The message names the sub-command only:
    arguments may hold environment values that are nobody's business.
    """

    def __init__(self, command: str, rc: int, stderr: str) -> None:
        self.command = command
        self.rc = rc
        self.stderr = last_words(stderr)
        advice = [f"; {what}" for words, what in ADVICE if words.search(f"{command} {self.stderr}")]
        super().__init__(f"podman {command} failed ({rc}): {self.stderr or 'no message'}{''.join(advice)}")


@dataclasses.dataclass(frozen=True)
class Result:
    """``rc``, ``stdout`` and ``stderr`` of one podman command, as podman wrote them; *tries* of them until then."""

    rc: int
    stdout: str
    stderr: str
    tries: int = 1


def last_words(stderr: str) -> str:
    """The error of a podman command in one line: warnings and log levels left out, ``Error:`` prefixes cut."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    told = [line for line in lines if "level=" not in line] or lines[-1:]
    return " ".join(re.sub(r"^Error:\s*", "", line) for line in told[-3:])


class Podman:
    """One podman executable.

    *runtime* is an OCI runtime to ask for on every command that starts something (empty: Podman's own choice).
    With a *memory* the client asks once for what only its own commands have changed since; who waits for a change from
    elsewhere calls :meth:`look_again` before each look.
    """

    def __init__(self, executable: str = "podman", runtime: str = "", memory: Memory | None = None) -> None:
        self.executable = executable
        self.runtime = runtime
        self.memory = memory

    # -- running -----------------------------------------------------------------------------------------------

    def command(self) -> List[str]:
        """The words before a subcommand."""
        return [self.executable, *(["--runtime", self.runtime] if self.runtime else [])]

    def run(
        self,
        args: Sequence[str],
        stdin: bytes | None = None,
        check: bool = True,
        timeout: float | None = 600,
        unmade: Callable[[], bool] | None = None,
    ) -> Result:
        """Run ``podman ARGS`` without a shell; *stdin* is where secrets travel. Raises :class:`PodmanError`.

        A command that can be repeated is, for a few seconds, while Podman gives a reason that passes. One that makes
        something cannot, unless *unmade* says that it made nothing.
        """
        for attempt in range(1, ATTEMPTS + 1):
            result = dataclasses.replace(self._once(args, stdin, timeout), tries=attempt)
            self._changed(args)
            if result.rc == 0 or attempt == ATTEMPTS or not _passes(args, result.stderr, unmade):
                break
            time.sleep(PAUSE)
        if check and result.rc != 0:
            raise PodmanError(_subcommand(args), result.rc, result.stderr)
        return result

    def _once(self, args: Sequence[str], stdin: bytes | None, timeout: float | None) -> Result:
        command = _subcommand(args)
        try:
            done = subprocess.run(
                [*self.command(), *args],
                input=stdin if stdin is not None else b"",
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                timeout=timeout,
                check=False,
                # Whoever kills Ansible kills its group. Podman is not to die while it writes what it knows.
                start_new_session=_beginning(args) not in READING and args[0] not in LONG,
            )
        except FileNotFoundError:
            raise PodmanError(
                command, 127, f"'{self.executable}' was not found on this host; install Podman 4.3 or newer"
            ) from None
        except OSError as error:
            raise PodmanError(
                command, 126, f"'{self.executable}' cannot be run on this host: {error.strerror}"
            ) from None
        except subprocess.TimeoutExpired:
            raise PodmanError(command, 124, f"no answer within {timeout:.0f} seconds") from None
        return Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def _remove(self, command: Sequence[str], missing: re.Pattern[str] = VANISHED) -> Result | None:
        """Run one that removes; None when what it is about was not there."""
        result = self.run(command, check=False)
        if result.rc == 0:
            return result
        if _only_missing(result.stderr, missing):
            return result if result.tries > 1 else None  # it went while it was busy
        raise PodmanError(" ".join(_beginning(command)), result.rc, result.stderr)

    def json(self, args: Sequence[str]) -> Any:
        """The parsed JSON that a podman command printed; ``[]`` for an empty answer."""
        if self.memory is None or _beginning(args) not in (*LISTINGS, ("info",)):
            return _parsed(" ".join(args[:2]), self.run(args))
        known = self.memory[_kind(args)]
        key = " ".join(args)
        if key not in known:
            known[key] = _parsed(" ".join(args[:2]), self.run(args))
        return known[key]

    def foresee(self, *looks: Callable[[], Any]) -> None:
        """Take *looks*, which do not depend on each other, at the same time; what they find is known then."""
        if self.memory is not None:
            with ThreadPoolExecutor(len(looks)) as pool:
                for look in [pool.submit(look) for look in looks]:
                    look.result()

    def look_again(self, *kinds: str, name: str = "") -> None:
        """Forget what is known of *kinds* (container, network, volume, secret, image), or of the one with that *name*."""
        for known in ((self.memory or {}).get(kind, {}) for kind in kinds):
            for key in [name] if name else list(known):
                known.pop(key, None)

    def _changed(self, args: Sequence[str]) -> None:
        """Forget what *args* may have changed."""
        if self.memory is None or _beginning(args) in READING:
            return
        if args[0] not in AFFECTED:
            self.look_again(*KINDS)
        for kind in AFFECTED.get(args[0], ()):
            for known in [key for key in self.memory[kind] if key in args or " " in key]:  # a listing has several words
                del self.memory[kind][known]

    def _inspect(self, kind: str, names: Sequence[str]) -> List[Json]:
        """Objects of *kind* that exist among *names*, one podman call; absent ones are left out."""
        if self.memory is None:
            return self._inspect_now(kind, names)
        unknown = [name for name in names if name not in self.memory[kind]]
        found = {_name(kind, entry): entry for entry in self._inspect_now(kind, unknown)}
        self.memory[kind].update({name: found.get(name) for name in unknown})
        return [entry for entry in (self.memory[kind][name] for name in names) if entry is not None]

    def _inspect_now(self, kind: str, names: Sequence[str]) -> List[Json]:
        if not names:
            return []
        result = self.run([kind, "inspect", *names], check=False)
        if result.rc != 0 and not _only_missing(result.stderr):
            raise PodmanError(f"{kind} inspect", result.rc, result.stderr)
        found: List[Json] = _parsed(f"{kind} inspect", result)
        return found

    # -- facts of the host ---------------------------------------------------------------------------------------

    @functools.cached_property
    def info(self) -> Json:
        """``podman info``: host, store, version."""
        found: Json = self.json(INFO)
        return found

    def recall_info(self, found: Json) -> None:
        """Take *found* for what ``podman info`` says, here and in whatever shares this memory."""
        self.info = found
        if self.memory is not None:
            self.memory["info"][" ".join(INFO)] = found

    @property
    def rootless(self) -> bool:
        return bool(self.info["host"]["security"]["rootless"])

    @property
    def version(self) -> Tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", self.info["version"]["Version"])[:3])

    # -- networks ------------------------------------------------------------------------------------------------

    def network(self, name: str) -> Json | None:
        """``podman network inspect`` of one network, or None when there is none of that name."""
        found = self._inspect("network", [name])
        return found[0] if found else None

    def networks_of(self, names: Sequence[str]) -> List[Json]:
        """``podman network inspect`` of those of *names* that exist, in one call."""
        return self._inspect("network", names)

    def networks(self, label: str | None = None) -> List[Json]:
        """Every network (of one label ``key=value``)."""
        filters = ["--filter", f"label={label}"] if label else []
        found: List[Json] = self.json(["network", "ls", "--format", "json", *filters])
        return found

    def ensure_internal_network(
        self, name: str, labels: Mapping[str, str], subnet: str | None = None, options: Sequence[str] = ()
    ) -> bool:
        """Create an ``--internal`` network without aardvark; True when it was made now. Idempotent.

        ``--disable-dns`` is what keeps the host's address off the bridge and closes the exfiltration through
        aardvark-dns, so a network of that name that has DNS, or is not internal, is an error and not "present".
        """
        present = self.network(name)
        if present is None:
            args = ["--internal", "--disable-dns", *(["--subnet", subnet] if subnet else []), *options]
            if self._create_network(name, [*args, *_label_args(labels)]):
                return True
            present = self.network(name) or {}
        if not present.get("internal") or present.get("dns_enabled"):
            raise PodmanError(
                "network create", 1, f"network {name} exists and is not an internal network without DNS; remove it"
            )
        return False

    def ensure_bridge_network(self, name: str, labels: Mapping[str, str], subnet: str | None = None) -> bool:
        """Create the bridge on which sidecars reach the world; True when it was made now. Idempotent.

        Without DNS, so that a sidecar's resolvers are the host's and nothing else.
        """
        if self.network(name) is not None:
            return False
        args = ["--disable-dns", *(["--subnet", subnet] if subnet else []), *_label_args(labels)]
        return self._create_network(name, args)

    def _create_network(self, name: str, args: Sequence[str]) -> bool:
        command = ["network", "create", *args, name]
        result = self.run(command, check=False, unmade=lambda: self.network(name) is None)
        if result.rc == 0:
            return True
        if self.network(name) is not None:  # somebody else made it between our look and our call
            return False
        raise PodmanError("network create", result.rc, result.stderr)

    def network_subnet(self, name: str) -> ipaddress.IPv4Network:
        """The network's IPv4 subnet."""
        found = self.network(name)
        for entry in (found or {}).get("subnets") or []:
            subnet = ipaddress.ip_network(entry["subnet"])
            if isinstance(subnet, ipaddress.IPv4Network):
                return subnet
        raise PodmanError("network inspect", 1, f"network {name} has no IPv4 subnet")

    def network_subnet_base(self, name: str) -> str:
        """The first three octets of the network's subnet, e.g. ``10.89.5``, from which fixed addresses derive."""
        return str(self.network_subnet(name).network_address).rsplit(".", 1)[0]

    def remove_network(self, name: str) -> bool:
        """Remove a network that nobody uses; True when it was there. Idempotent."""
        return self._remove(["network", "rm", name]) is not None

    def network_connect(self, network: str, container: str, ip: str | None = None, mac: str | None = None) -> None:
        """Connect a container, running or not, to one more network."""
        fixed = [*(["--ip", ip] if ip else []), *(["--mac-address", mac] if mac else [])]
        self.run(["network", "connect", *fixed, network, container])

    def network_disconnect(self, network: str, container: str) -> None:
        self.run(["network", "disconnect", "--force", network, container])

    # -- containers ----------------------------------------------------------------------------------------------

    def container(self, name: str) -> Json | None:
        """``podman container inspect`` of one container, or None."""
        found = self._inspect("container", [name])
        return found[0] if found else None

    def containers(self, names: Sequence[str]) -> List[Json]:
        """``podman container inspect`` of those of *names* that exist, in one call."""
        return self._inspect("container", names)

    def container_names(self, label: str) -> List[str]:
        """Names of all containers, running or not, that carry *label* (``key`` or ``key=value``)."""
        rows = self.json(["ps", "--all", "--filter", f"label={label}", "--format", "json"])
        return sorted(row["Names"][0] for row in rows)

    def container_ip(self, container: str, network: str) -> str | None:
        """The container's IPv4 address on *network*, or None when it is not connected or not running."""
        found = self.container(container) or {}
        address = container_networks(found).get(network)
        return address or None

    def start(self, name: str, settle: float = 0.5) -> None:
        """Start a container and see that it stands for *settle* seconds.

        ``podman start`` succeeds when the init process stands, even if the command behind it does not exist. A
        container with a restart policy is left to it: readiness judges that one. Raises PodmanError with the
        container's last words.
        """
        self.run(["start", name])
        deadline = time.monotonic() + settle
        while time.monotonic() < deadline:
            self.look_again("container", name=name)
            found = self.container(name) or {}
            policy = found.get("HostConfig", {}).get("RestartPolicy", {}).get("Name") or "no"
            if policy != "no":
                return
            if not is_running(found):
                said = " | ".join(self.logs(name, 5)) or "it wrote nothing"
                raise PodmanError("start", found.get("State", {}).get("ExitCode", 0), f"{name} ended at once: {said}")
            time.sleep(0.1)

    def stop(self, name: str, timeout: int | None = None) -> None:
        """Stop a container, a paused one too; *timeout* in seconds, else the container's own."""
        if is_paused(self.container(name)):
            self.unpause(name)  # a frozen process hears no signal, and Podman refuses to stop it
        self.run(["stop", *(["--time", str(timeout)] if timeout is not None else []), name])

    def pause(self, name: str) -> None:
        """Freeze the container's processes; Podman takes running ones only."""
        self.run(["pause", name])

    def unpause(self, name: str) -> None:
        self.run(["unpause", name])

    def remove_container(self, name: str, stop_timeout: int = 10) -> bool:
        """Stop and remove a container; True when it was there. Idempotent."""
        done = self._remove(["rm", "--force", "--time", str(stop_timeout), "--volumes", name])
        # with --force a missing one is no error; podman prints what it removed
        return done is not None and (bool(done.stdout.strip()) or done.tries > 1)

    def logs(self, container: str, lines: int = 15) -> List[str]:
        """The last *lines* that a container wrote, oldest first; empty when it cannot be asked."""
        result = self.run(["logs", "--tail", str(lines), container], check=False)
        return (result.stdout + result.stderr).splitlines()[-lines:] if result.rc == 0 else []

    # -- volumes -------------------------------------------------------------------------------------------------

    def volume(self, name: str) -> Json | None:
        """The volume of exactly this name: ``podman volume inspect`` and ``rm`` take the beginning of one for it too."""
        return next((volume for volume in self._volumes() if volume["Name"] == name), None)

    def volumes(self, label: str) -> List[Json]:
        """Every volume that carries *label* (``key`` or ``key=value``)."""
        return [volume for volume in self._volumes() if _carries(volume.get("Labels") or {}, label)]

    def _volumes(self) -> List[Json]:
        found: List[Json] = self.json(VOLUMES)
        return found

    def volume_path(self, name: str) -> str:
        """The directory on this host that is the volume's content; "" when there is no such volume."""
        found = self.volume(name)
        if found is not None and "Mountpoint" not in found:  # see ensure_volume
            self.look_again("volume")
            found = self.volume(name)
        return str(found["Mountpoint"]) if found is not None else ""

    def ensure_volume(self, name: str, labels: Mapping[str, str]) -> bool:
        """Create a named volume; True when it was made now. Idempotent.

        What was known of the others is known still, and of the new one its name and labels: a sandbox has three.
        """
        known = ((self.memory or {}).get("volume") or {}).get(" ".join(VOLUMES))
        command = ["volume", "create", *_label_args(labels), name]
        result = self.run(command, check=False, unmade=lambda: self.volume(name) is None)
        if result.rc != 0 and self.volume(name) is None:
            raise PodmanError("volume create", result.rc, result.stderr)
        if result.rc == 0 and self.memory is not None and known is not None:
            self.memory["volume"][" ".join(VOLUMES)] = [*known, {"Name": name, "Labels": dict(labels)}]
        return result.rc == 0

    def remove_volume(self, name: str) -> bool:
        """Remove a volume that no container uses; True when it was there. Idempotent."""
        if self.volume(name) is None:
            return False
        return self._remove(["volume", "rm", name]) is not None

    # -- secrets -------------------------------------------------------------------------------------------------

    def secret(self, name: str) -> Json | None:
        """What Podman tells of a secret without its value, or None."""
        found = self._inspect("secret", [name])
        return found[0] if found else None

    def secret_names(self) -> List[Tuple[str, Dict[str, str]]]:
        """(name, labels) of every secret. ``podman secret ls`` filters by label only in newer versions."""
        ids = self.run(["secret", "ls", "--quiet"]).stdout.split()
        found = self._inspect_now("secret", ids)
        return [(one["Spec"]["Name"], one["Spec"].get("Labels") or {}) for one in found]

    def create_secret(self, name: str, value: bytes, labels: Mapping[str, str]) -> None:
        """Store *value*, which travels on standard input only."""
        command = ["secret", "create", *_label_args(labels), name, "-"]
        self.run(command, stdin=value, unmade=lambda: self.secret(name) is None)

    def remove_secret(self, name: str) -> bool:
        return self._remove(["secret", "rm", name]) is not None

    # -- images --------------------------------------------------------------------------------------------------

    def image_id(self, reference: str) -> str | None:
        """The id (64 hexadecimal digits) of a local image, or None."""
        return self.image_ids([reference])[reference] or None

    def image_ids(self, references: Sequence[str]) -> Dict[str, str]:
        """Reference → id of a local image, "" for one that is not there; one podman call where all are."""
        known = {} if self.memory is None else self.memory["image"]
        unknown = [one for one in references if one not in known]
        found = {**known, **(self._image_ids_now(unknown) if unknown else {})}
        if self.memory is not None:
            self.memory["image"].update({one: found[one] for one in unknown})
        return {one: found[one] for one in references}

    def _image_ids_now(self, references: Sequence[str]) -> Dict[str, str]:
        result = self.run(["image", "inspect", "--format", "{{.Id}}", *references], check=False)
        if result.rc == 0:
            return dict(zip(references, result.stdout.split()))  # noqa: B905 (Python 3.9 has no strict)
        if len(references) == 1:
            return {references[0]: ""}
        return {one: self._image_ids_now([one])[one] for one in references}

    def images(self) -> List[Json]:
        """Every image that has a name, and every one that lost its name; not the layers between."""
        found: List[Json] = self.json(["images", "--format", "json"])
        return found

    def remove_image(self, name: str) -> bool:
        """Remove an image's name, and the image with its last one; True when it was there. Idempotent."""
        return self._remove(["rmi", name], UNKNOWN_IMAGE) is not None

    # -- one at a time -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, name: str = "shared", looks: Sequence[str] = KINDS) -> Iterator[None]:
        """Hold a lock of this host and user; the kernel drops it when its holder dies.

        What several sandboxes share (bridge, authority, images) is made and removed under it. *looks* are the kinds
        that matter to the holder: others had their turn, so what is known of those is forgotten.
        """
        directory = os.path.join(runtime_directory(), "openshell")
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            handle = os.open(os.path.join(directory, f"{name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise PodmanError("lock", 1, f"{directory} cannot be used for locks: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            self.look_again(*looks)
            yield
        finally:
            os.close(handle)


def runtime_directory() -> str:
    """A directory that is this user's alone and is gone after a reboot."""
    if os.geteuid() == 0:
        return "/run"
    return os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"


def container_networks(inspected: Json) -> Dict[str, str]:
    """Network name → IPv4 address ("" while it has none) of an inspected container."""
    networks = (inspected.get("NetworkSettings") or {}).get("Networks") or {}
    return {name: (entry or {}).get("IPAddress") or "" for name, entry in networks.items()}


def container_labels(inspected: Json) -> Dict[str, str]:
    return (inspected.get("Config") or {}).get("Labels") or {}


def container_is_ours(inspected: Json) -> bool:
    return is_ours(container_labels(inspected))


def is_running(inspected: Json | None) -> bool:
    return bool(inspected) and (inspected or {}).get("State", {}).get("Status") == "running"


def is_paused(inspected: Json | None) -> bool:
    return bool(inspected) and (inspected or {}).get("State", {}).get("Status") == "paused"


def _carries(labels: Mapping[str, str], label: str) -> bool:
    key, with_value, value = label.partition("=")
    return key in labels and (not with_value or labels[key] == value)


def _label_args(labels: Mapping[str, str]) -> List[str]:
    return [word for key, value in sorted(labels.items()) for word in ("--label", f"{key}={value}")]


def _subcommand(args: Sequence[str]) -> str:
    return next((word for word in args if not word.startswith("-")), "")


def _beginning(args: Sequence[str]) -> Tuple[str, ...]:
    """The words that say what a command does: one, or two for ``network rm`` and its like."""
    return tuple(args[:2]) if tuple(args[:2]) in REPEATABLE else tuple(args[:1])


def _kind(args: Sequence[str]) -> str:
    """What a listing lists."""
    return {"ps": "container", "images": "image"}.get(args[0], args[0])


def _name(kind: str, entry: Json) -> str:
    """The name by which *entry* was asked for."""
    return str(entry["name"] if kind == "network" else entry["Spec"]["Name"] if kind == "secret" else entry["Name"])


def _passes(args: Sequence[str], stderr: str, unmade: Callable[[], bool] | None) -> bool:
    """Whether *stderr* says that it helps to run *args* again, and that may be done."""
    beginning = _beginning(args)
    if beginning in LISTINGS and VANISHED.search(stderr):
        return True
    if not TRANSIENT.search(stderr):
        return False
    return beginning in REPEATABLE or (unmade is not None and unmade())


def _only_missing(stderr: str, missing: re.Pattern[str] = VANISHED) -> bool:
    """Whether podman complained of nothing but objects that do not exist.

    A missing file ("no such file or directory") is not one of them: Podman itself is out of order then.
    """
    told = [line for line in stderr.splitlines() if line.strip() and "level=" not in line]
    return bool(told) and all(missing.search(line) for line in told)


def _parsed(command: str, result: Result) -> Any:
    try:
        return json.loads(result.stdout.strip() or "[]") or []
    except ValueError:
        raise PodmanError(command, result.rc, "its answer is not JSON") from None
