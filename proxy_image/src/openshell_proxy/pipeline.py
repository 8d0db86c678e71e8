# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The pipeline that every request takes: policy, destination, credentials, relay, audit. One screen of code.

The entrances translate into it; nothing reaches a destination around it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from openshell_proxy.audit import Audit, Event
from openshell_proxy.authority import UpstreamTls
from openshell_proxy.credentials.middleware import Redaction
from openshell_proxy.credentials.passage import Passage
from openshell_proxy.credentials.vault import Vault
from openshell_proxy.destination import DestinationError, Guard
from openshell_proxy.messages import Messages
from openshell_proxy.overrides import other_readings
from openshell_proxy.policy import Decision, Intent, Policy, Request
from openshell_proxy.refusal import (
    ENGINES,
    OwnAnswer,
    Refusal,
    denied_connection,
    denied_destination,
    denied_request,
    middleware_failed,
    uninspected_credentials,
)
from openshell_proxy.relay.dialer import Dialer
from openshell_proxy.relay.exchange import Broken, Exchange
from openshell_proxy.relay.form import post_form
from openshell_proxy.relay.http1 import Header, RequestHead, h2c_upgrade
from openshell_proxy.relay.inspect import read_body, read_stream
from openshell_proxy.relay.stream import Stream
from openshell_proxy.relay.upstream import Origin, Pool, UpstreamStream
from openshell_proxy.resolver import ResolveError
from openshell_proxy.settings import Limits
from openshell_proxy.under_way import UnderWay

if TYPE_CHECKING:
    from openshell_proxy.inference.routes import Routes
    from openshell_proxy.relay.http2 import Side
    from openshell_proxy.relay.websocket import Assemblies

PARSED_AT_ONCE = 512

OnNewGeneration = Callable[["Generation"], None]
ReadBody = Callable[[int], Awaitable[bytes]]
Named = Mapping[bytes, Sequence[bytes]]


@dataclasses.dataclass(frozen=True, slots=True)
class Generation:
    """What one load of the configuration made; swapped as a whole, never changed."""

    number: int
    policy: Policy
    tls: UpstreamTls
    dialer: Dialer
    vault: Vault
    inference: Routes | None = None


class Pipeline:
    """Judges intents under the generation of the moment and carries out what is allowed.

    A request is judged by the generation that is in force when its head is complete, or its body where that is judged too.
    """

    def __init__(self, generation: Generation, guard: Guard, audit: Audit, limits: Limits) -> None:
        self.generation = generation
        self.guard = guard
        self.audit = audit
        self.limits = limits
        self.pool = Pool(limits, generation.tls, generation.dialer)
        self.under_way = UnderWay(limits)
        self.held = 0  # bytes of inference calls that lie in memory
        self._watchers: dict[object, OnNewGeneration] = {}

    def replace(self, generation: Generation) -> None:
        """Every request from now on is judged by *generation*; those under way end as they began."""
        before, self.generation = self.generation, generation
        if generation.tls is not before.tls or generation.dialer != before.dialer:
            self.pool.renew(generation.tls, generation.dialer)
        if generation.policy is not before.policy or generation.vault.bindings != before.vault.bindings:
            for watcher in list(self._watchers.values()):
                watcher(generation)

    def watch(self, on_new_generation: OnNewGeneration) -> Callable[[], None]:
        """Have *on_new_generation* called at every change of the policy, or of what secrets are bound to, until the function returned here is called.

        For whatever lasts longer than one request: a connection, a tunnel, a WebSocket (spec 2.5). It must not wait.
        """
        key = object()
        self._watchers[key] = on_new_generation

        def unwatch() -> None:
            self._watchers.pop(key, None)

        return unwatch

    @functools.cached_property
    def assemblies(self) -> Assemblies:
        """The places of WebSocket messages that are being gathered, for all connections together."""
        from openshell_proxy.relay.websocket import Assemblies

        return Assemblies(self.limits.messages)

    @functools.cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "judge")

    async def decide(self, policy: Policy, intent: Intent) -> Decision:
        """What *policy* says. A thread parses what takes long, one at a time: others are served meanwhile."""
        if _to_parse(intent.request) <= PARSED_AT_ONCE:
            return policy.decide(intent)
        return await asyncio.get_running_loop().run_in_executor(self._thread, policy.decide, intent)

    async def _decide_now(self, intent: Intent) -> Decision:
        """What the policy says that is in force afterwards too."""
        while True:
            policy = self.generation.policy
            decision = await self.decide(policy, intent)
            if policy is self.generation.policy:
                return decision

    async def admit(
        self, intent: Intent, event: Event, body: ReadBody | None = None, named: Named | None = None
    ) -> tuple[Decision, tuple[str, ...]]:
        """The decision and the validated addresses. Raises :class:`Refusal`; *event* gets what was found.

        *body* reads the request's body, up to a limit, where the policy needs it for a decision; without it that is a
        refusal. *named* are the request's fields, lower-case name → values.
        """
        decision = await self._decide_now(intent)
        if decision.body_limit and not decision.allowed and intent.request is not None and body is not None:
            read = await body(decision.body_limit)
            intent, decision = await self._with_body(intent, read)
            redaction = self.redaction(intent.host, named) if decision.allowed and named is not None else None
            if redaction is not None and (left := redaction.body(read)) != read:  # what is sent is allowed as well
                _, found = await self._with_body(intent, left)
                decision = decision if found.allowed else found
        if named is not None and decision.allowed and decision.inspects:
            intent, decision = self._as_overridden(intent, decision, named)
        event.decided(decision)
        if not decision.allowed:
            raise _denied(intent, decision)
        try:
            return decision, await self.guard.pin(intent, decision)
        except DestinationError as error:
            event.engine = "ssrf"
            what = intent.request.method if intent.request else "CONNECT"
            raise denied_destination(what, intent.host, intent.port, error.reason, error.why) from None

    async def _with_body(self, intent: Intent, body: bytes) -> tuple[Intent, Decision]:
        assert intent.request is not None
        intent = dataclasses.replace(intent, request=dataclasses.replace(intent.request, body=body))
        return intent, await self._decide_now(intent)

    def _as_overridden(self, intent: Intent, decision: Decision, named: Named) -> tuple[Intent, Decision]:
        """The first other reading of an allowed request that is not allowed, or else the request's own decision."""
        generation = self.generation
        judges_messages, secrets = decision.message_policy, generation.vault.site(intent.host, intent.port)
        for other in other_readings(intent, named, decision.allow_encoded_slash):
            found = generation.policy.decide(other)
            if not found.allowed:
                return other, found
            if judges_messages or found.message_policy:
                detail = "a WebSocket whose messages are judged is opened as what it is, without an overriding header"
                raise Refusal(403, "policy_denied", detail)
            if secrets is not None and _target(other) != _target(intent):
                detail = "secrets are bound to paths of this host, so no header may name another one"
                raise Refusal(403, "credential_endpoint_mismatch", detail)
            if found.audited and not decision.audited:
                decision = dataclasses.replace(decision, audited=True, reason=found.reason)
        return intent, decision

    def unseen(self, host: str, port: int, decision: Decision) -> Refusal | None:
        """What to refuse all with that would pass to this place unseen; None where it may.

        Credentials are bound to it (spec 2.3), or a middleware that fails closed could not see it.
        """
        if self.generation.vault.site(host, port) is not None and not decision.credentials.allow_uninspected:
            return uninspected_credentials(host, port)
        closed = (one.name for one in self.generation.policy.middlewares(host) if one.fails_closed)
        name = next(closed, None)
        return middleware_failed(name, "cannot search what is not HTTP") if name is not None else None

    def redaction(self, host: str, named: Named) -> Redaction | None:
        """What the policy's middlewares do to a request to *host* with the fields *named*; None where none covers it."""
        middlewares = self.generation.policy.middlewares(host)
        return Redaction(middlewares, named, self.generation.vault.randoms) if middlewares else None

    async def post(self, to: Origin, path: str, form: bytes) -> tuple[int, bytes]:
        """Ask a token endpoint, which the operator named and no request can."""
        try:
            addresses = await self.guard.resolver.resolve(to.host)
        except ResolveError as error:
            raise ConnectionError(str(error)) from None
        return await post_form(self.pool, addresses, to, path, form)

    async def request(
        self, client: Stream, intent: Intent, head: RequestHead, origin: Origin, fields: list[Header], target: str,
        event: Event,
    ) -> bool:  # fmt: skip
        """One request from decision to the response's last byte; True when the client may send another.

        *fields* and *target* are for the destination, with placeholders; *intent* is what policy and log may see.
        """
        generation = self.generation
        with _OneRequest(self, intent, event):
            body = functools.partial(read_body, client, head, fields)
            decision, addresses = await self.admit(intent, event, body, head.named)
            if decision.inspects and h2c_upgrade(head):
                raise Refusal(403, "unsupported_l7_protocol", "h2c cannot be inspected; use HTTP/1.1")
            passage = self._passage(generation, intent, head, decision)
            target, fields = await passage.head(target, fields, body)

            once = event.entrance == "forward"  # as in OpenShell (spec 2.4): no answer can be taken for another's

            async def connect(fresh: bool) -> UpstreamStream:
                return await self.pool.connect(origin, addresses, fresh or once)

            def upgraded(passed: Callable[[], int]) -> None:
                self.audit.event(dataclasses.replace(event))
                self.under_way.follow(event, passed)

            event.allowed, messages = True, None
            if decision.message_policy or passage.changes_messages:
                messages = Messages(self, generation.policy, intent, event, decision, passage)
            exchange = Exchange(
                client, head, target, fields, connect, self.pool, event, upgraded,
                messages.open if messages else None, changes=passage.changes, once=once,
            )  # fmt: skip
            try:
                return await exchange.run()
            finally:
                if messages is not None:
                    messages.end()

    async def stream(
        self, client: Side, intent: Intent, head: RequestHead, origin: Origin, target: str, event: Event
    ) -> None:
        """The same for one of HTTP/2, whose *head* is in the words of HTTP/1.1; its library is loaded with the first one."""
        from openshell_proxy.relay.http2_exchange import StreamExchange
        from openshell_proxy.relay.http2_head import in_http2

        generation = self.generation
        with _OneRequest(self, intent, event):
            self.under_way.follow(event, lambda: client.received + client.sent)
            fields = list(head.fields)
            body = functools.partial(read_stream, client, head, fields)
            decision, addresses = await self.admit(intent, event, body, head.named)
            passage = self._passage(generation, intent, head, decision)
            target, fields = await passage.head(target, fields, body)

            async def open_stream() -> Side:
                return await self.pool.open_stream(origin, addresses)

            event.allowed = True
            render = functools.partial(in_http2, head)
            exchange = StreamExchange(
                client, head.method, target, fields, render, open_stream, event, passage.changes
            )  # fmt: skip
            await exchange.run()

    def _passage(self, generation: Generation, intent: Intent, head: RequestHead, decision: Decision) -> Passage:
        assert intent.request is not None
        place = (intent.host, intent.port, intent.request.path)
        redaction = self.redaction(intent.host, head.named)
        return Passage(generation.vault, place, head, decision.credentials, self.post, redaction)


@dataclasses.dataclass(frozen=True, slots=True)
class _OneRequest:
    """The time of one request from decision to end: it counts as under way, may not stand still, and is logged."""

    pipeline: Pipeline
    intent: Intent
    event: Event

    def __enter__(self) -> None:
        try:
            self.pipeline.under_way.begin(self.event)
        except Refusal as refusal:
            self._end(refusal)
            raise

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        expired = isinstance(error, asyncio.CancelledError) and self.pipeline.under_way.expired(self.event)
        late = self._stood_still() if expired else error
        self._end(late)
        if late is not None and late is not error:
            raise late from None

    def _end(self, error: BaseException | None) -> None:
        event = self.event
        if isinstance(error, OwnAnswer):
            event.status, event.allowed, event.engine = error.status, True, "credentials"
        elif isinstance(error, Refusal):
            event.refused(error)
            if error.code in ENGINES:  # it may come after policy has allowed the request
                event.allowed, event.engine, event.reason = False, ENGINES[error.code], error.detail
        self.pipeline.under_way.end(event)
        if event.status == 101:
            self.pipeline.audit.ended(event)
        else:
            self.pipeline.audit.event(event)

    def _stood_still(self) -> Exception:
        """What a request ends with on which no byte came for too long."""
        event, intent = self.event, self.intent
        event.reason = f"no byte came for {self.pipeline.limits.idle:g} seconds"
        if event.status:
            return Broken(event.reason)
        return Refusal(504, "upstream_timeout", f"{intent.host}:{intent.port} did not answer: {event.reason}")


def _to_parse(request: Request | None) -> int:
    """How many bytes there are to parse before a decision, at most; a GET may bring a GraphQL document in its query."""
    if request is None:
        return 0
    return len(request.body or b"") + sum(map(len, request.query.get("query", ())))


def _target(intent: Intent) -> tuple[str, Mapping[str, Sequence[str]]]:
    assert intent.request is not None
    return intent.request.path, intent.request.query


def _denied(intent: Intent, decision: Decision) -> Refusal:
    if intent.request is None:
        return denied_connection(intent.host, intent.port, decision.reason)
    return denied_request(intent, decision)
