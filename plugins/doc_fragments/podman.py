# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  executable:
    description: Name or path of the C(podman) command on the host.
    type: str
    default: podman
  runtime:
    description:
      - OCI runtime that Podman is asked to use.
      - Empty means Podman's own choice. M(openshell.sandbox.host_preflight_info) tells what a host needs.
    type: str
    default: ""
requirements:
  - Podman 4.3 or newer with netavark
author:
  - The openshell.sandbox contributors (@openshell)
"""
