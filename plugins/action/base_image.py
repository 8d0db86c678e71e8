# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Module base_image with a line every few seconds while the image is pulled or bootstrapped."""

from __future__ import annotations

from ansible_collections.openshell.sandbox.plugins.plugin_utils.progress import ProgressAction


class ActionModule(ProgressAction):
    """``openshell.sandbox.base_image``: see the module."""
