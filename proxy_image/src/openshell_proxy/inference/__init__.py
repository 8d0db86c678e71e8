# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Inference: ``https://inference.local`` and the routes behind it, of this sandbox alone (spec 2.10).

Patterns say what a request is, routes where it goes and with which key; nothing here is loaded before a sandbox has
routes or asks.
"""

from __future__ import annotations

from openshell_proxy.relay.upstream import Origin

INFERENCE = Origin("inference.local", 443, True)  # what the sandbox's calls are made to
