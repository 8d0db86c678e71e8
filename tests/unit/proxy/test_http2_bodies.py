# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bodies that the policy judges, over HTTP/2: read first, and sent on as they came if they are allowed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from h2.errors import ErrorCodes
from http2_peer import Peer, Two, echo, head
from loopback import SECONDS, rest
from openshell_proxy.relay import inspect
from openshell_proxy.settings import Limits

QUERY = json.dumps({"query": "query { viewer { id } }"}).encode()
MUTATION = json.dumps({"query": "mutation { drop }"}).encode()
JSON = (b"content-type", b"application/json")


def graphql(port: int = 0, **more: Any) -> dict[str, Any]:
    endpoint = rest(port, protocol="graphql", rules=[{"allow": {"operation_type": "query"}}], **more)
    del endpoint["access"]
    return endpoint


async def judged(two: Two, **more: Any) -> tuple[Peer, int]:
    """A client at an endpoint that allows queries of GraphQL."""
    there: list[Peer] = []
    port = await two.start(echo, there)
    two.world.write_policy([graphql(port, **more)])
    assert two.world.sidecar is not None
    assert two.world.sidecar.reload()["policy_error"] == ""
    return await two.peer(port), port


@pytest.mark.parametrize("told", [True, False])  # of the body's length
@pytest.mark.parametrize(("body", "status"), [(QUERY, b"200"), (MUTATION, b"403"), (b"no JSON", b"400")])
async def test_a_body_decides(two: Two, body: bytes, status: bytes, told: bool) -> None:
    client, port = await judged(two)
    length = [(b"content-length", b"%d" % len(body))] if told else []
    stream = client.ask(head(port, b"/graphql", b"POST", JSON, *length), end=False)
    await client.send(stream, body[:9], end=False)
    await client.send(stream, body[9:])
    await client.over(stream)
    assert client.heads[stream][0][b":status"] == status
    if status == b"200":
        assert (client.bodies[stream], client.trailers[stream]) == (body, {b"x-trailer": b"yes"})
    else:
        assert two.there.received < 1000  # what was dialled to learn what it speaks is all


async def test_nothing_is_sent_on_before_the_whole_is_there(two: Two) -> None:
    client, port = await judged(two)
    first = client.ask(head(port, b"/graphql", b"POST", JSON), end=False)
    await client.send(first, QUERY[:-1], end=False)
    other = client.ask(head(port, b"/graphql", b"POST", JSON), end=False)
    await client.send(other, QUERY)
    await client.over(other)
    assert first not in client.heads
    await client.send(first, QUERY[-1:])
    await client.over(first)
    assert client.bodies[first] == QUERY


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(("over", "status"), [(0, b"200"), (1, b"413")])
async def test_a_body_is_read_up_to_the_limit_which_may_be_more_than_a_window(
    two: Two, over: int, status: bytes, told: bool
) -> None:
    limit = 3_000_000
    client, port = await judged(two, graphql_max_body_bytes=limit)
    body = QUERY[:-1] + b" " * (limit + over - len(QUERY)) + b"}"
    length = [(b"content-length", b"%d" % len(body))] if told else []
    stream = client.ask(head(port, b"/graphql", b"POST", JSON, *length), end=False)
    sending = asyncio.create_task(client.send(stream, body))
    async with asyncio.timeout(SECONDS):
        while stream not in client.heads and not sending.done():
            await asyncio.sleep(0)
    if status == b"200":
        await sending
    else:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    await client.over(stream)
    assert client.heads[stream][0][b":status"] == status
    if status == b"200":
        assert client.bodies[stream] == body


async def test_a_body_that_will_be_too_large_is_not_waited_for(two: Two) -> None:
    client, port = await judged(two, graphql_max_body_bytes=1000)
    stream = client.ask(head(port, b"/graphql", b"POST", JSON, (b"content-length", b"1001")), end=False)
    await client.over(stream)
    assert client.heads[stream][0][b":status"] == b"413"


async def test_a_client_that_waits_for_leave_gets_it_and_the_destination_is_not_asked(two: Two) -> None:
    client, port = await judged(two)
    stream = client.ask(head(port, b"/graphql", b"POST", JSON, (b"expect", b"100-continue")), end=False)
    await client.until(lambda: client.heads.get(stream))
    assert client.heads[stream][0] == {b":status": b"100"}
    await client.send(stream, QUERY)
    await client.over(stream)
    assert client.heads[stream][1][b":status"] == b"200"


async def test_a_body_that_does_not_come_is_a_408(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "BODY_SECONDS", 0.2)
    client, port = await judged(two)
    stream = client.ask(head(port, b"/graphql", b"POST", JSON), end=False)
    await client.over(stream)
    assert client.heads[stream][0][b":status"] == b"408"


async def test_a_body_of_the_wrong_length_is_not_judged(two: Two) -> None:
    client, port = await judged(two)
    stream = client.ask(head(port, b"/graphql", b"POST", JSON, (b"content-length", b"9")), end=False)
    await client.send(stream, QUERY[:8])
    await client.over(stream)
    assert client.resets == {stream: ErrorCodes.PROTOCOL_ERROR}


async def test_bodies_that_were_refused_are_no_loss_to_the_connections_window(two: Two) -> None:
    client, port = await judged(two, graphql_max_body_bytes=2_000_000)
    body = MUTATION[:-1] + b" " * 900_000 + b"}"
    for _ in range(20):  # more than 16 MiB
        stream = client.ask(head(port, b"/graphql", b"POST", JSON), end=False)
        await client.send(stream, body)
        await client.over(stream)
        assert client.heads[stream][0][b":status"] == b"403"


async def test_mcp_knows_a_stream_of_events_from_a_get_with_a_body(two: Two) -> None:
    port = await two.start()
    endpoint = rest(port, protocol="mcp", rules=[{"allow": {"method": "initialize"}}])
    del endpoint["access"]
    two.world.write_policy([endpoint])
    assert two.world.sidecar is not None
    assert two.world.sidecar.reload()["policy_error"] == ""
    client = await two.peer(port)
    accept = (b"accept", b"text/event-stream")
    good = client.ask(head(port, b"/mcp", b"GET", accept))
    bad = client.ask(head(port, b"/mcp", b"GET", accept), end=False)
    await client.over(good)
    await client.over(bad)
    assert [client.heads[stream][0][b":status"] for stream in (good, bad)] == [b"200", b"403"]


async def test_a_request_that_is_read_counts_and_may_not_stand_still(two: Two) -> None:
    there: list[Peer] = []
    made_port = await two.start(echo, there)
    await two.world.stop()
    await two.world.start(graphql(made_port), limits=Limits(idle=1))
    client = await two.peer(made_port)
    stream = client.ask(head(made_port, b"/graphql", b"POST", JSON), end=False)
    await client.over(stream)
    assert client.heads[stream][0][b":status"] == b"504"
