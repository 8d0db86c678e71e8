# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Policy: what may leave the sandbox. Pure decisions on immutable snapshots; no I/O and nothing from the other rooms.

Source: OpenShell's policy schema (section 1 of its functional specification), without binaries.
"""

from openshell_proxy.policy.engine import Policy, deny_all, load_policy
from openshell_proxy.policy.model import MESSAGE, Decision, Intent, PolicyError, Request
from openshell_proxy.policy.path import TargetError, canonical_path, parse_query

__all__ = [
    "MESSAGE",
    "Decision",
    "Intent",
    "Policy",
    "PolicyError",
    "Request",
    "TargetError",
    "canonical_path",
    "deny_all",
    "load_policy",
    "parse_query",
]
