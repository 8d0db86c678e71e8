# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The messages of one WebSocket on their way through the pipeline: policy, audit, and the end of a policy's time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openshell_proxy.audit import Event
from openshell_proxy.credentials.passage import Passage
from openshell_proxy.policy import MESSAGE, Decision, Intent, Policy, Request
from openshell_proxy.relay.stream import Stream

if TYPE_CHECKING:
    from openshell_proxy.pipeline import Generation, Pipeline
    from openshell_proxy.relay.websocket import JudgedWebSocket

RELOADED = (1012, "the policy was reloaded; connect again")


class Messages:
    """Judges the text messages of the WebSocket that *intent* opens, under *policy* and for as long as it is in force.

    *event* is that of the upgrade and *decision* its decision: it says whether each message is judged; *passage* changes
    them. :meth:`end` must be called once, whether or not a socket was opened.
    """

    __slots__ = ("_decision", "_event", "_intent", "_passage", "_pipeline", "_policy", "_socket", "_unwatch")

    def __init__(
        self, pipeline: Pipeline, policy: Policy, intent: Intent, event: Event, decision: Decision, passage: Passage
    ) -> None:
        assert intent.request is not None
        self._pipeline, self._policy, self._event = pipeline, policy, event
        self._intent, self._decision, self._passage = intent, decision, passage
        self._socket: JudgedWebSocket | None = None
        self._unwatch = pipeline.watch(self._reloaded)

    def open(self, client: Stream, origin: Stream, deflate: bool) -> JudgedWebSocket:
        """The relay of the two sides once they have switched; its library is loaded with the first one."""
        from openshell_proxy.relay.websocket import JudgedWebSocket

        limits, assemblies = self._pipeline.limits.messages, self._pipeline.assemblies
        rewrites = self._decision.credentials.websocket_rewrite
        self._socket = JudgedWebSocket(
            client, origin, self._judge if self._decision.message_policy else self._admit, limits, assemblies, deflate,
            binary_allowed=not (rewrites and self._passage.guarded),
            rewrite=self._passage.message if self._passage.changes_messages else None,
        )  # fmt: skip
        if self._pipeline.generation.policy is not self._policy:
            self._socket.stop(*RELOADED)  # reloaded between the decision and the switch
        return self._socket

    def end(self) -> None:
        self._unwatch()

    def _reloaded(self, _: Generation) -> None:
        if self._socket is not None:
            self._socket.stop(*RELOADED)

    async def _admit(self, _text: bytes) -> Decision:
        """What admitted the WebSocket admits its messages."""
        return self._decision

    async def _judge(self, text: bytes) -> Decision:
        """One message's decision and its line in the audit log; nothing of the text is in either.

        A message that a middleware changes is judged as it came and as it goes on.
        """
        asked, upgrade = self._intent, self._intent.request
        assert upgrade is not None
        for content in dict.fromkeys((text, self._passage.redacted(text))):
            request = Request(MESSAGE, upgrade.path, upgrade.query, content)
            decision = await self._pipeline.decide(self._policy, Intent(asked.host, asked.port, request))
            if not decision.allowed:
                break
        event = Event(self._event.entrance, decision.allowed, asked.host, asked.port, MESSAGE, upgrade.path)
        event.decided(decision)
        event.bytes_out = len(text)
        self._pipeline.audit.event(event)
        return decision
