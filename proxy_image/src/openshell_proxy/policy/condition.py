# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``when:`` of a rule: a JMESPath condition over the request, compiled at load.

The expression sees ``{"network": {"host", "port"}, "request": {"method", "path", "query_params"}}``; ``query_params`` is
key → list of values. It holds unless its value is one of JMESPath's false values: ``false``, ``null``, ``""``, ``[]``
and ``{}``; the number 0 is true (JMESPath specification, "And, Or, Not expressions").
"""

from __future__ import annotations

from openshell_proxy.policy.model import Condition, Request


class ConditionError(ValueError):
    """An expression that is not JMESPath; one sentence."""


def compile_condition(text: str) -> Condition:
    """The compiled condition. Raises :class:`ConditionError`. The condition itself raises where it cannot be evaluated."""
    import jmespath
    from jmespath.exceptions import JMESPathError

    try:
        expression = jmespath.compile(text)
    except (JMESPathError, RecursionError, ValueError) as error:
        raise ConditionError(f"not JMESPath: {' '.join(str(error).split())}") from None

    def holds(host: str, port: int, request: Request) -> bool:
        value = expression.search(
            {
                "network": {"host": host, "port": port},
                "request": {
                    "method": request.method,
                    "path": request.path,
                    "query_params": {key: list(values) for key, values in request.query.items()},
                },
            }
        )
        return not (value is None or value is False or value in ("", [], {}))

    return holds
