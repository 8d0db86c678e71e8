# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run inside the image with a policy on standard input: microseconds of CPU time per decision, as JSON."""

import json
import sys
import time

from openshell_proxy.policy import Intent, Request, load_policy

COUNT = 20_000

text = sys.stdin.read()
begin = time.perf_counter()
policy = load_policy(text)
load_ms = (time.perf_counter() - begin) * 1e3
intent = Intent("origin.bench.test", 8443, Request("GET", "/some/path", {}))
assert policy.decide(intent).allowed
found = []
for _ in range(7):
    begin = time.process_time()
    for _ in range(COUNT):
        policy.decide(intent)
    found.append((time.process_time() - begin) / COUNT * 1e6)
print(json.dumps({"us": sorted(found)[len(found) // 2], "rounds": found, "load_ms": load_ms}))
