# SPDX-License-Identifier: Apache-2.0
"""
From an event of a watch to the little that is kept of it.

Objects are read by the models of ``resources``: pydantic costs 12 microseconds per endpoint of a slice, of
which 8 go into the rows themselves, so a second set of models (msgspec) would not pay.
"""

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from ciliumd.kubernetes.kinds import NODE, Kind
from ciliumd.kubernetes.lastgood import REMEMBERED, essence
from ciliumd.kubernetes.store import Event
from ciliumd.model.objects import NamespacedName
from ciliumd.resources import InvalidResource, Parse, ResourceError, Row, parse
from ciliumd.resources.node import Node
from ciliumd.tables import Problem

NODE_OBJECTS = "node"
"""Pretended table of :class:`KubernetesNode` rows."""

# A version is a number of 64 bits.
_DIGITS = 20

Recalled = Callable[[Kind, NamespacedName, str], Mapping[str, Any] | None]
"""Last good document of the object with a kind, a key and a uid."""

log = structlog.get_logger("k8s-watch")


def _nothing(_kind: Kind, _key: NamespacedName, _uid: str) -> None:
    """Nothing is remembered."""


def read_event(
    kind: Kind, event: Mapping[str, Any], *, recalled: Recalled = _nothing, parse: Parse = parse
) -> Event:
    """The record of a raw watch event (``type``, ``object``); never raises for what an object holds."""
    document = event["object"]
    metadata = document["metadata"]
    gone = event["type"] == "DELETED"
    rows, problem = ((), None) if gone else _read(kind, document, parse)
    kept = document
    if problem is not None and kind in REMEMBERED:
        key = (metadata.get("namespace") or "", metadata["name"])
        kept = recalled(kind, key, metadata.get("uid") or "") or {}
        rows = _read_again(kind, key, kept, parse) if kept else ()
    return Event(
        kind=kind,
        namespace=metadata.get("namespace") or "",
        name=metadata["name"],
        uid=metadata.get("uid") or "",
        version=number(metadata.get("resourceVersion")),
        gone=gone,
        rows=rows,
        problem=problem,
        document=_essence(kind, kept) if rows and kind in REMEMBERED else "",
    )


def number(version: object) -> int:
    """A resourceVersion as a number; 0 if it is none."""
    if not isinstance(version, str) or len(version) > _DIGITS or not version.isascii():
        return 0
    return int(version) if version.isdigit() else 0


def _essence(kind: Kind, document: Mapping[str, Any]) -> str:
    """What is kept of *document* for the next agent; nothing if it cannot be."""
    try:
        return essence(document)
    except RecursionError:
        log.warning("lastgood.not_kept", kind=kind.kind, name=document["metadata"]["name"], error="too deep")
        return ""


def _read(kind: Kind, document: Mapping[str, Any], parse: Parse) -> tuple[tuple[Row, ...], Problem | None]:
    try:
        resource = parse(document)
        if kind == NODE:
            node = Node.model_validate(dict(document)).to_model()
            return ((NODE_OBJECTS, node.name, node),), None
        return tuple(resource.rows()), None
    except InvalidResource as error:
        return (), Problem(error.field, error.message)
    except ResourceError as error:
        return (), Problem("kind", str(error))
    except Exception:  # the edge of one object: a bug met by it must not take the others along
        log.exception("object.parse_failed", kind=kind.kind, name=document["metadata"].get("name"))
        return (), Problem("", "could not be read: internal error, see the log")


def _read_again(
    kind: Kind, key: NamespacedName, document: Mapping[str, Any], parse: Parse
) -> tuple[Row, ...]:
    """Rows of a last good *document*; none if it is not good to this agent."""
    rows, problem = _read(kind, document, parse)
    if problem is not None:
        # It was valid to the agent that stored it, which was another version.
        log.warning(
            "lastgood.document_refused",
            object="/".join(part for part in (kind.kind, *key) if part),
            field=problem.field,
            error=problem.message,
        )
    return rows
