# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sidecar of a sandbox that exists."""

from __future__ import annotations

from typing import Dict, Tuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils import sidecar_config
from ansible_collections.openshell.sandbox.plugins.module_utils.module import ModuleFailure
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Json, Podman, container_is_ours
from ansible_collections.openshell.sandbox.plugins.module_utils.removal import known_id
from ansible_collections.openshell.sandbox.plugins.module_utils.sandbox_names import SandboxNames


def existing_sidecar(podman: Podman, name: str) -> Tuple[SandboxNames, Json]:
    """The sandbox's names and its sidecar as inspected. Raises :class:`ModuleFailure` where there is none."""
    SandboxNames.of(name)
    names = SandboxNames.of(name, known_id(podman, name))
    sidecar = podman.container(names.proxy)
    if sidecar is None or not container_is_ours(sidecar):
        raise ModuleFailure(f"there is no sandbox '{name}' on this host; create it with create_sandbox.yml")
    return names, sidecar


def hand_over(
    module: AnsibleModule, podman: Podman, names: SandboxNames, config: sidecar_config.Config
) -> sidecar_config.Outcome:
    """Bring the sidecar's configuration to *config*, within the module's ``timeout``. Raises :class:`ModuleFailure`."""
    try:
        return sidecar_config.converge(
            podman, names.proxy, names.tls_volume, config, module.params["timeout"], module.check_mode
        )
    except sidecar_config.Rejected as rejected:
        raise ModuleFailure(str(rejected)) from None


def environment(inspected: Json) -> Dict[str, str]:
    """The container's environment."""
    return dict(entry.partition("=")[::2] for entry in (inspected.get("Config") or {}).get("Env") or [])
