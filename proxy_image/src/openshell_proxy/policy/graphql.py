# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GraphQL operations of a request or of a WebSocket message (spec 1.13, 2.8; GraphQL over HTTP)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from openshell_proxy.policy.jsonbody import BodyError, read_json, refuse_lookalikes

MAX_TOKENS = 20_000
IDS = ("id", "queryId", "documentId")
_MEMBERS = ("query", "operationName", "variables", "extensions", *IDS)
# What a client may send on a WebSocket besides operations: graphql-transport-ws, then the older graphql-ws.
_CONTROL = frozenset(("connection_init", "ping", "pong", "complete", "stop", "connection_terminate"))
_OPERATION = frozenset(("subscribe", "start"))


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """One operation: its type, its name ("" for none), and its root fields without aliases, sorted.

    A persisted one without its document has no type and no fields, only ``hash`` or ``id``.
    """

    type: str
    name: str = ""
    fields: tuple[str, ...] = ()
    persisted: bool = False
    hash: str = ""
    id: str = ""


def operations_of_request(method: str, query: Mapping[str, tuple[str, ...]], body: bytes) -> tuple[Operation, ...]:
    """The operations of a GET (its query) or a POST (its JSON body; a batch has several). Raises :class:`BodyError`."""
    named = {key: values for key, values in query.items() if key in _MEMBERS}
    if method == "GET":
        for key, values in named.items():
            if len(values) > 1:
                raise BodyError(f"duplicate GraphQL query parameter '{key}'")
        envelope: dict[str, Any] = {key: values[0] for key, values in named.items()}
        if "extensions" in envelope:
            envelope["extensions"] = read_json(envelope["extensions"].encode("utf-8", "surrogatepass"))
        return (_operation(envelope),)
    if named:
        raise BodyError("GraphQL parameters in the URL must not be combined with a body")
    value = read_json(body)
    if isinstance(value, list):
        if not value:
            raise BodyError("empty batch of GraphQL operations")
        return tuple(_operation(one) for one in value)
    return (_operation(value),)


def operations_of_message(body: bytes) -> tuple[Operation, ...]:
    """The operations of one WebSocket text message; () for one that only controls the connection."""
    message = read_json(body)
    if not isinstance(message, dict):
        raise BodyError("a GraphQL WebSocket message must be an object")
    refuse_lookalikes(message, ("type", "payload", "id"))
    kind = message.get("type")
    if not isinstance(kind, str):
        raise BodyError("a GraphQL WebSocket message must have a text 'type'")
    if kind in _CONTROL:
        return ()
    if kind not in _OPERATION:
        raise BodyError("a GraphQL WebSocket message has an unknown type")
    return (_operation(message.get("payload")),)


def _operation(envelope: Any) -> Operation:
    """One operation of its JSON envelope ``{query, operationName, extensions, id}``."""
    if not isinstance(envelope, dict):
        raise BodyError("a GraphQL request must be an object")
    refuse_lookalikes(envelope, _MEMBERS)
    for key in ("query", "operationName", *IDS):
        if not isinstance(envelope.get(key, ""), (str, type(None))):
            raise BodyError(f"GraphQL '{key}' must be a string")
    ids = [key for key in IDS if envelope.get(key)]
    if len(ids) > 1:
        raise BodyError(f"GraphQL persisted query identifiers {' and '.join(ids)} must not be combined")
    name = envelope.get("operationName") or ""
    digest = _hash(envelope.get("extensions"))
    if envelope.get("query"):
        if ids:
            raise BodyError("a GraphQL document and a persisted query identifier must not be combined")
        return _document(envelope["query"], name, digest)
    if not ids and not digest:
        raise BodyError("missing GraphQL query")
    if ids and digest:
        raise BodyError("a persisted query's identifier and its hash must not be combined")
    return Operation("", name, (), True, digest, envelope[ids[0]] if ids else "")


def _hash(extensions: Any) -> str:
    """The hash of an automatic persisted query, or ""."""
    if extensions is None:
        return ""
    if not isinstance(extensions, dict):
        raise BodyError("GraphQL 'extensions' must be an object")
    refuse_lookalikes(extensions, ("persistedQuery",))
    persisted = extensions.get("persistedQuery")
    if persisted is None:
        return ""
    if not isinstance(persisted, dict):
        raise BodyError("GraphQL 'persistedQuery' must be an object")
    refuse_lookalikes(persisted, ("sha256Hash",))
    digest = persisted.get("sha256Hash")
    if not isinstance(digest, str) or not digest:
        raise BodyError("GraphQL 'persistedQuery' must have a text 'sha256Hash'")
    return digest


def _document(text: str, name: str, digest: str) -> Operation:
    """The one operation of a document that *name*, or there being only one, selects. *digest* came along with it."""
    from graphql import GraphQLError  # only a policy with GraphQL in it pays for the parser's memory
    from graphql.language import FragmentDefinitionNode, OperationDefinitionNode, parse

    try:
        document = parse(text, no_location=True, max_tokens=MAX_TOKENS)
    except GraphQLError:  # also for a document that is nested too deeply
        raise BodyError("invalid GraphQL document") from None
    operations: list[OperationDefinitionNode] = []
    fragments: dict[str, FragmentDefinitionNode] = {}
    for node in document.definitions:
        if isinstance(node, OperationDefinitionNode):
            operations.append(node)
        elif isinstance(node, FragmentDefinitionNode) and node.name.value not in fragments:
            fragments[node.name.value] = node
        else:
            raise BodyError("a GraphQL document holds only operations and fragments, each name once")
    chosen = _chosen(operations, name)
    fields = _root_fields(chosen.selection_set, fragments)
    name = chosen.name.value if chosen.name else ""
    return Operation(chosen.operation.value, name, tuple(sorted(fields)), False, digest)


def _chosen(operations: list[Any], name: str) -> Any:
    found = [one for one in operations if one.name and one.name.value == name] if name else operations
    if not found:
        raise BodyError("the GraphQL document has no operation of that name" if name else "no GraphQL operation")
    if len(found) > 1:
        raise BodyError("a GraphQL document with multiple operations needs operationName, and each name once")
    return found[0]


def _root_fields(selection_set: Any, fragments: Mapping[str, Any]) -> set[str]:
    """Names of the fields at the root, through fragments, each of which is looked at once."""
    from graphql.language import FieldNode, FragmentSpreadNode

    fields: set[str] = set()
    seen: set[str] = set()
    waiting = [selection_set]
    while waiting:
        for node in waiting.pop().selections:
            if isinstance(node, FieldNode):
                fields.add(node.name.value)
            elif isinstance(node, FragmentSpreadNode):
                name = node.name.value
                if name not in fragments:
                    raise BodyError("the GraphQL document uses a fragment that it does not define")
                if name not in seen:
                    seen.add(name)
                    waiting.append(fragments[name].selection_set)
            else:
                waiting.append(node.selection_set)
    return fields
