# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The description of a container that exists, read back from the arguments that it was created with.

Podman keeps these (``Config.CreateCommand``); the digest in the container's label proves that nothing was misread.
"""

from __future__ import annotations

from typing import Any, Dict, List, Sequence, Tuple

from ansible_collections.openshell.sandbox.plugins.module_utils.container_spec import ContainerSpec, Secret, Volume
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Json, container_labels
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import LABEL_ROLE, LABEL_SPEC

# What takes no value; ContainerSpec.create_args writes every other flag and its value as two words.
SWITCHES = frozenset({"--read-only", "--init", "--no-hosts"})


class Unreadable(ValueError):
    """The container was not created by this collection as it is now; one sentence."""


def described(inspected: Json) -> ContainerSpec:
    """What the container was asked to be. Raises :class:`Unreadable`."""
    name = str(inspected.get("Name"))
    words = list((inspected.get("Config") or {}).get("CreateCommand") or [])
    labels = container_labels(inspected)
    try:
        flags, image, command = parsed(words[words.index("create") + 1 :])
        spec = _spec(name, labels, flags, image, command)
    except (ValueError, IndexError, KeyError):
        spec = None
    if spec is None or spec.digest != labels.get(LABEL_SPEC):
        raise Unreadable(
            f"what container {name} was created with cannot be read back, so another version of this collection made it; "
            "run create_sandbox.yml with what the sandbox was created with first"
        )
    return spec


def parsed(words: Sequence[str]) -> Tuple[Dict[str, List[str]], str, Tuple[str, ...]]:
    """Flags (name → values), image and command of the arguments of ``podman create``."""
    flags: Dict[str, List[str]] = {}
    rest = list(words)
    while rest and rest[0].startswith("--"):
        flag, mark, value = rest.pop(0).partition("=")
        if not mark and flag not in SWITCHES:
            value = rest.pop(0)
        flags.setdefault(flag, []).append(value)
    return flags, rest[0], tuple(rest[1:])


def _spec(
    name: str, labels: Dict[str, str], flags: Dict[str, List[str]], image: str, command: Tuple[str, ...]
) -> ContainerSpec:
    def one(flag: str, default: str = "") -> str:
        return flags.get(flag, [default])[0]

    network, address = one("--network").split(":ip=")
    return ContainerSpec(
        name=name,
        role=labels[LABEL_ROLE],
        image=image,
        network=network,
        ip=address.partition(",")[0],
        labels={key: value for key, value in _pairs(flags, "--label").items() if key not in (LABEL_ROLE, LABEL_SPEC)},
        dns=tuple(flags.get("--dns", ())),
        uid_base=None if "--userns" in flags else int(one("--uidmap", "0:0:0").split(":")[1]),
        env=_pairs(flags, "--env"),
        command=command,
        user=one("--user"),
        workdir=one("--workdir"),
        volumes=tuple(_volume(argument) for argument in flags.get("--volume", ())),
        secrets=tuple(_secret(argument) for argument in flags.get("--secret", ())),
        tmpfs=tuple(flags.get("--tmpfs", ())),
        sysctls=_pairs(flags, "--sysctl"),
        capabilities=tuple(flags.get("--cap-add", ())),
        ulimits=tuple(flags.get("--ulimit", ())),
        pids_limit=int(one("--pids-limit")),
        memory=one("--memory"),
        cpus=one("--cpus"),
        read_only="--read-only" in flags,
        nested="unmask=/proc/*" in flags.get("--security-opt", ()),
        init="--init" in flags,
        restart=one("--restart"),
        stop_timeout=int(one("--stop-timeout")),
        log_max_size=one("--log-opt").partition("=")[2],
    )


def _pairs(flags: Dict[str, List[str]], flag: str) -> Dict[str, str]:
    return dict(value.partition("=")[::2] for value in flags.get(flag, ()))


def _volume(argument: str) -> Volume:
    source, target, options = argument.rsplit(":", 2)
    words = options.split(",")
    return Volume(
        source=source,
        target=target,
        read_only="ro" in words,
        kind="bind" if source.startswith("/") else "volume",
        relabel=next((word for word in words if word in ("z", "Z")), ""),
    )


def _secret(argument: str) -> Secret:
    source, rest = argument.split(",", 1)
    options: Dict[str, Any] = dict(word.partition("=")[::2] for word in rest.split(","))
    return Secret(source=source, target=options["target"], uid=int(options["uid"]))
