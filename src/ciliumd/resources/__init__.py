# SPDX-License-Identifier: Apache-2.0
"""
Objects as users write them: one document in, rows for the tables out, or an error that names the field.

Pure: reading files and watching clusters is done in ``sources``.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self

from pydantic import ValidationError

from ciliumd.resources.ciliumcidrgroup import CiliumCIDRGroup
from ciliumd.resources.ciliumclusterwidenetworkpolicy import CiliumClusterwideNetworkPolicy
from ciliumd.resources.ciliumendpoint import CiliumEndpoint
from ciliumd.resources.ciliumidentity import CiliumIdentity
from ciliumd.resources.ciliumnetworkpolicy import CiliumNetworkPolicy
from ciliumd.resources.ciliumnode import CiliumNode
from ciliumd.resources.ciliumrules import NODE_SELECTORS
from ciliumd.resources.core import Namespace, Pod
from ciliumd.resources.errors import (
    FieldError,
    InvalidResource,
    ResourceError,
    UnknownKind,
    validation_problems,
)
from ciliumd.resources.fields import ObjectMeta, Row
from ciliumd.resources.networkpolicy import NetworkPolicy
from ciliumd.resources.node import Node
from ciliumd.resources.services import EndpointSlice, ServiceResource

__all__ = [
    "InvalidResource",
    "Parse",
    "Resource",
    "ResourceError",
    "Row",
    "UnknownKind",
    "documents",
    "parse",
    "parser",
]


class _Kind(Protocol):
    """What each kind's model offers."""

    @property
    def metadata(self) -> ObjectMeta: ...

    @classmethod
    def model_validate(cls, obj: Any, *, context: Any = None) -> Self: ...

    def rows(self) -> list[Row]: ...


_KINDS: dict[tuple[str, str], type[Any]] = {
    ("v1", "Namespace"): Namespace,
    ("v1", "Node"): Node,
    ("v1", "Pod"): Pod,
    ("v1", "Service"): ServiceResource,
    ("discovery.k8s.io/v1", "EndpointSlice"): EndpointSlice,
    ("networking.k8s.io/v1", "NetworkPolicy"): NetworkPolicy,
    ("cilium.io/v2", "CiliumNetworkPolicy"): CiliumNetworkPolicy,
    ("cilium.io/v2", "CiliumClusterwideNetworkPolicy"): CiliumClusterwideNetworkPolicy,
    ("cilium.io/v2", "CiliumCIDRGroup"): CiliumCIDRGroup,
    ("cilium.io/v2alpha1", "CiliumCIDRGroup"): CiliumCIDRGroup,
    ("cilium.io/v2", "CiliumEndpoint"): CiliumEndpoint,
    ("cilium.io/v2", "CiliumIdentity"): CiliumIdentity,
    ("cilium.io/v2", "CiliumNode"): CiliumNode,
}
_CLUSTER_SCOPED = frozenset(
    {"Namespace", "Node", "CiliumCIDRGroup", "CiliumClusterwideNetworkPolicy", "CiliumIdentity", "CiliumNode"}
)


@dataclass(frozen=True, slots=True)
class Resource:
    """A valid object and the rows it stands for."""

    kind: str
    namespace: str
    name: str
    _rows: tuple[Row, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the object: (kind, namespace, name); the namespace is empty for cluster scope."""
        return (self.kind, self.namespace, self.name)

    def rows(self) -> list[Row]:
        """Its rows as (table name, key, row); none for an object that is valid but stands for nothing."""
        return list(self._rows)


Parse = Callable[[object], Resource]
"""Reads one document: :func:`parse`, with the options of who asks."""


def parser(*, node_selectors: bool) -> Parse:
    """What reads documents; with *node_selectors* policies may select nodes by their labels."""
    return partial(parse, options=(NODE_SELECTORS,)) if node_selectors else parse


def documents(document: object) -> Iterator[object]:
    """The objects in one YAML document: those of a ``List``, nothing for an empty document, else itself."""
    if document is None:
        return
    if isinstance(document, Mapping) and document.get("kind") == "List":
        for item in document.get("items") or ():
            yield from documents(item)
        return
    yield document


def parse(document: object, *, options: Collection[str] = ()) -> Resource:
    """
    The resource *document* describes, to an agent with these *options* (see :func:`parser`).

    Raises UnknownKind for kinds that are none of ours, and InvalidResource, which names the field, for
    an object that must not come into force.
    """
    if not isinstance(document, Mapping):
        shown = type(document).__name__
        raise InvalidResource("", "", "", [("", f"is not an object: a mapping is needed, not {shown}")])
    api_version, kind, namespace, name = _identity(document)
    for field, value in (("apiVersion", api_version), ("kind", kind)):
        if not value:
            raise InvalidResource(kind, namespace, name, [(field, "is missing")])
    model = _KINDS.get((api_version, kind))
    if model is None:
        raise UnknownKind(api_version, kind)
    try:
        parsed: _Kind = model.model_validate(dict(document), context=options)
        rows = parsed.rows()
    except ValidationError as error:
        raise InvalidResource(kind, namespace, name, validation_problems(error)) from None
    except FieldError as error:
        raise InvalidResource(kind, namespace, name, [(error.field, error.message)]) from None
    return Resource(kind, namespace, name, tuple(rows))


def _identity(document: Mapping[Any, Any]) -> tuple[str, str, str, str]:
    """apiVersion, kind, namespace and name as far as they can be told of a document not yet validated."""
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    kind = _text(document.get("kind"))
    namespace = "" if kind in _CLUSTER_SCOPED else _text(metadata.get("namespace")) or "default"
    return _text(document.get("apiVersion")), kind, namespace, _text(metadata.get("name"))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
