# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A plugin for proxy.py: add the header, and leave the tunnel port alone."""

from __future__ import annotations

from proxy.http.parser import HttpParser
from proxy.http.proxy import HttpProxyBasePlugin
from world import INJECTED, TUNNEL_PORT


class Inject(HttpProxyBasePlugin):
    def handle_client_request(self, request: HttpParser) -> HttpParser:
        request.add_header(INJECTED[0].encode(), INJECTED[1].encode())
        return request

    def do_intercept(self, request: HttpParser) -> bool:
        return request.port != TUNNEL_PORT
