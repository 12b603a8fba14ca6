# SPDX-License-Identifier: Apache-2.0
"""
From an event of a watch to the little that is kept of it.

Objects are read by the models of ``resources``: pydantic costs 12 microseconds per endpoint of a slice, of
which 8 go into the rows themselves, so a second set of models (msgspec) would not pay.
"""

from collections.abc import Mapping
from typing import Any

import structlog

from ciliumd.kubernetes.kinds import NODE, Kind
from ciliumd.kubernetes.store import Event
from ciliumd.resources import InvalidResource, ResourceError, Row, parse
from ciliumd.resources.node import Node
from ciliumd.tables import Problem

NODE_OBJECTS = "node"
"""Pretended table of :class:`KubernetesNode` rows."""

log = structlog.get_logger("k8s-watch")


def read_event(kind: Kind, event: Mapping[str, Any]) -> Event:
    """The record of a raw watch event (``type``, ``object``); never raises for what an object holds."""
    document = event["object"]
    metadata = document["metadata"]
    gone = event["type"] == "DELETED"
    rows, problem = ((), None) if gone else _read(kind, document)
    return Event(
        kind=kind,
        namespace=metadata.get("namespace") or "",
        name=metadata["name"],
        uid=metadata.get("uid") or "",
        version=number(metadata.get("resourceVersion")),
        gone=gone,
        rows=rows,
        problem=problem,
    )


def number(version: object) -> int:
    """A resourceVersion as a number; 0 if it is none."""
    return int(version) if isinstance(version, str) and version.isascii() and version.isdigit() else 0


def _read(kind: Kind, document: Mapping[str, Any]) -> tuple[tuple[Row, ...], Problem | None]:
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
