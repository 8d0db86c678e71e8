# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Print the variables with which image.yml has Ansible render what the role says of its sidecar, as JSON.

``bench_sidecar`` is the role's own task, untemplated; the rest is what a play around the role would have found out.
"""

from __future__ import annotations

import json

import yaml
from world import AGENT_IP, ORIGIN_IP, PROXY_IP, ROOT, SECRET

MODULE = "openshell.sandbox.sandbox_container"

tasks = yaml.safe_load((ROOT / "roles/proxy_sidecar/tasks/main.yml").read_text())
(task,) = [task[MODULE] for task in tasks if MODULE in task]
print(
    json.dumps(
        {
            "bench_sidecar": task,
            "openshell_sandbox_id": "bench",
            "openshell_proxy_ip": PROXY_IP,
            "openshell_agent_ip": AGENT_IP,
            "openshell_dns_servers": [ORIGIN_IP],
            "openshell_authority": {"secret": SECRET},
            "openshell_policy_text": "",
        }
    )
)
