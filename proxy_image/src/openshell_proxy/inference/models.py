# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``/v1/models``: the names that a client may ask for, told from the routes and not by any destination (spec 2.10)."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from openshell_proxy.inference.errors import error_body
from openshell_proxy.inference.patterns import MODELS, Style
from openshell_proxy.inference.routes import Route, Routes

_MADE = "1970-01-01T00:00:00Z"  # nobody knows


def models_answer(routes: Routes, path: str, style: Style) -> tuple[int, dict[str, Any]]:
    """Status and JSON. Each member has what either API's library looks for, so that one list serves both."""
    listed = {name: _model(name, route) for name, route in routes.models()}
    wanted = unquote(path.removeprefix(MODELS.before).removeprefix("/"))
    if not wanted:
        names = list(listed)
        ends = {"first_id": names[0], "last_id": names[-1]} if names else {"first_id": None, "last_id": None}
        return 200, {"object": "list", "data": list(listed.values()), "has_more": False, **ends}
    if wanted not in listed:
        return 404, error_body(style, 404, "model_not_found", "no route of this sandbox has a model of that name")
    return 200, listed[wanted]


def _model(name: str, route: Route) -> dict[str, Any]:
    openai = {"id": name, "object": "model", "created": 0, "owned_by": route.provider}
    return {**openai, "type": "model", "display_name": name, "created_at": _MADE}
