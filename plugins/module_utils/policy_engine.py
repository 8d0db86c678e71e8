# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sidecar's own engine in a short-lived container that reaches nothing: one engine for every verdict."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman, Result


def ask_engine(podman: Podman, params: Mapping[str, Any], command: Sequence[str]) -> Result:
    """Run *command* of the image with the policy on standard input.

    *params*: ``policy``, ``image``, ``default_enforcement``, ``ulimits`` as the modules take them.
    """
    limits = [word for limit in params["ulimits"] for word in ("--ulimit", limit)]
    confined = ["--rm", "-i", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    settings = ["--env", f"OPENSHELL_DEFAULT_ENFORCEMENT={params['default_enforcement']}", "--http-proxy=false"]
    settings += ["--env", "OPENSHELL_POLICY_COMPOSED=true"]
    return podman.run(
        ["run", *confined, *settings, *limits, "--pull", "never", params["image"], *command],
        stdin=params["policy"].encode(),
        check=False,
    )
