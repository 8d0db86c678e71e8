# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What ansible-test calls get-pip.py: pip from Python's own ensurepip, then the packages that it names.

In processes of their own: ensurepip switches pip's configuration off for the one that it runs in.
"""

from __future__ import annotations

import subprocess
import sys

packages = [word for word in sys.argv[1:] if not word.startswith("-")]
subprocess.run([sys.executable, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *packages], check=True)
