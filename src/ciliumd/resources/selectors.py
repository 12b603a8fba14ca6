# SPDX-License-Identifier: Apache-2.0
"""
Label selectors as users write them, and the namespaces they are confined to.

Kubernetes selectors name plain keys; Cilium's may say which source a label comes from (``k8s:app``,
``any:app``, ``reserved:host``; without one: any).  A namespaced policy selects its subjects in its own
namespace only, and its peers too unless a peer selector speaks about namespaces itself.  A policy of the
cluster selects subjects everywhere, and as peers pods of every namespace.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from ciliumd.model.identity import Reserved
from ciliumd.model.labels import (
    ANY,
    K8S,
    NAMESPACE_LABELS_PREFIX,
    NODE,
    POD_NAMESPACE,
    RESERVED,
    is_reserved_key,
)
from ciliumd.model.policy import Operator, Requirement, Selector, all_of
from ciliumd.resources.errors import FieldError, field_path
from ciliumd.resources.fields import Exact, LabelKey, LabelValue, label_key

SourceAndKey = tuple[str, str]
_SELECTABLE_SOURCES = (K8S, ANY, RESERVED)
_RESERVED_NAMES = frozenset(reserved.label for reserved in Reserved)
_VALUED = frozenset({"In", "NotIn"})
_VALUELESS = frozenset({"Exists", "DoesNotExist"})
_POSITIVE = frozenset({Operator.IN, Operator.EXISTS})
_OF_PODS = Selector(expressions=(Requirement(K8S, POD_NAMESPACE, Operator.EXISTS),))


def cilium_key(text: str) -> SourceAndKey:
    """Source and key of a label as a Cilium selector names it; ValueError when it could never match."""
    source, colon, key = text.partition(":")
    if not colon:
        source, key = ANY, text
    if source not in _SELECTABLE_SOURCES:
        raise ValueError(f"{text!r}: labels of endpoints have source k8s, any or reserved, not {source!r}")
    if source == RESERVED:
        if key not in _RESERVED_NAMES:
            raise ValueError(f"{text!r} is not a reserved label")
        return source, key
    # Labels of the namespace are embedded under a prefix of their own; the rest is the user's key.
    label_key(key.removeprefix(NAMESPACE_LABELS_PREFIX))
    return source, key


def node_key(text: str) -> SourceAndKey:
    """Source and key of a node's label as a selector names it; ValueError when it could never match."""
    source, colon, key = text.partition(":")
    if not colon:
        source, key = NODE, text
    if source not in (NODE, ANY):
        raise ValueError(f"{text!r}: labels of nodes have source node or any, not {source!r}")
    label_key(key)
    return NODE, key


def _is_node_key(text: str) -> str:
    node_key(text)
    return text


def _is_cilium_key(text: str) -> str:
    cilium_key(text)
    return text


def _is_pod_key(text: str) -> str:
    if is_reserved_key(label_key(text)):
        raise ValueError(f"{text!r} is a label the agent sets; select the namespace or account instead")
    return text


CiliumKey = Annotated[str, AfterValidator(_is_cilium_key)]
NodeKey = Annotated[str, AfterValidator(_is_node_key)]
PodKey = Annotated[str, AfterValidator(_is_pod_key)]


class MatchExpression(Exact):
    """One term of a selector's matchExpressions; what a key may be is said by the subclasses."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[LabelValue] | None = Field(None, validate_default=True)

    @field_validator("values")
    @classmethod
    def _fit_operator(cls, values: list[str] | None, info: ValidationInfo) -> list[str] | None:
        operator = info.data.get("operator")
        if operator in _VALUED and not values:
            raise ValueError(f"is missing: operator {operator} needs values")
        if operator in _VALUELESS and values:
            raise ValueError(f"must be empty: operator {operator} takes no values")
        return values


class CiliumExpression(MatchExpression):
    """A term about a label with or without a source."""

    key: CiliumKey


class NodeExpression(MatchExpression):
    """A term about the label of a node, with or without its source."""

    key: NodeKey


class PodExpression(MatchExpression):
    """A term about a pod's own label."""

    key: PodKey


class ObjectExpression(MatchExpression):
    """A term about the label of an object that is no endpoint: a namespace, a group."""

    key: LabelKey


class CiliumSelector(Exact):
    """A selector of Cilium's kinds, with or without label sources."""

    match_labels: dict[CiliumKey, LabelValue] | None = None
    match_expressions: list[CiliumExpression] | None = None

    def to_selector(self) -> Selector:
        """The selector as written, not confined to a namespace."""
        return _selector(self.match_labels, self.match_expressions, read=cilium_key)


class NodeSelector(Exact):
    """A selector of nodes in Cilium's kinds."""

    match_labels: dict[NodeKey, LabelValue] | None = None
    match_expressions: list[NodeExpression] | None = None

    def to_selector(self) -> Selector:
        """The nodes it selects: all when it is empty."""
        return _selector(self.match_labels, self.match_expressions, read=node_key)


class PodSelector(Exact):
    """A Kubernetes selector of pods."""

    match_labels: dict[PodKey, LabelValue] | None = None
    match_expressions: list[PodExpression] | None = None

    def to_selector(self) -> Selector:
        """The pods it selects, in whichever namespace."""
        return _selector(self.match_labels, self.match_expressions, read=lambda key: (K8S, key))


class ObjectSelector(Exact):
    """A Kubernetes selector of objects that are no endpoints, by their own labels."""

    match_labels: dict[LabelKey, LabelValue] | None = None
    match_expressions: list[ObjectExpression] | None = None

    def to_selector(self) -> Selector:
        """The objects it selects: all when it is empty."""
        return _selector(self.match_labels, self.match_expressions, read=lambda key: (K8S, key))


class NamespaceSelector(ObjectSelector):
    """A Kubernetes selector of namespaces."""

    def to_selector(self) -> Selector:
        """The pods of the namespaces it selects: all pods when it is empty, never nodes or the world."""
        selector = _selector(
            self.match_labels,
            self.match_expressions,
            read=lambda key: (K8S, NAMESPACE_LABELS_PREFIX + key),
        )
        return all_of((selector, _OF_PODS))


def in_namespace(selector: Selector, namespace: str) -> Selector:
    """*selector* confined to the pods of *namespace*."""
    return Selector(selector.match_labels | {(K8S, POD_NAMESPACE, namespace)}, selector.expressions)


@dataclass(frozen=True, slots=True)
class Scope:
    """
    Where a policy of Cilium's kinds selects: *subject*, and peers of *namespace* (None: of any).

    *unconfined*: peers are not confined to pods, since the policy is about endpoints that have no
    namespace themselves (``reserved:init``).
    """

    namespace: str | None
    subject: Selector
    unconfined: bool = False

    @classmethod
    def of_policy(cls, namespace: str | None, selector: Selector, *, field: str) -> "Scope":
        """
        The scope of a policy in *namespace* whose endpointSelector, written in *field*, is *selector*.

        A namespaced policy has no subject outside its namespace, whatever the selector says.  One that
        names another namespace, or a reserved label, can select nobody; that is refused, not ignored.
        """
        if namespace is None:
            return cls(None, selector, unconfined=(RESERVED, Reserved.INIT.label) in _demands(selector))
        for source, key, value in selector.match_labels:
            if key == POD_NAMESPACE and value != namespace:
                where = f"{field}.{field_path(['matchLabels', key if source == ANY else f'{source}:{key}'])}"
                raise FieldError(
                    where, f"names namespace {value!r}: a policy selects in its own, {namespace!r}"
                )
        for source, key in _demands(selector):
            if source == RESERVED:
                message = f"demands reserved:{key}: only a CiliumClusterwideNetworkPolicy can select it"
                raise FieldError(field, message)
        return cls(namespace, in_namespace(selector, namespace))

    def peers(self, selector: Selector, *, deny: bool) -> Selector:
        """
        The peers *selector* means.

        A selector that demands a reserved label means no pod and stays as it is.  Only a demand counts:
        the mere absence of a reserved label (NotIn, DoesNotExist) is true for every pod anywhere and must
        not widen the selector.  One that names the pod's namespace, or labels of it, says for itself which
        namespaces it means; if it only excludes some, nodes and the world would slip into an allow, so
        there it is confined to pods, while a deny stays as wide as written.
        """
        if any(source == RESERVED for source, _ in _demands(selector)):
            return selector
        if any(_about_namespace(key) for _, key in _demands(selector)):
            return selector
        if any(_about_namespace(term.key) for term in selector.expressions):
            return selector if deny else all_of((selector, _OF_PODS))
        if self.namespace is not None:
            return in_namespace(selector, self.namespace)
        return selector if self.unconfined else all_of((selector, _OF_PODS))


def _demands(selector: Selector) -> Iterator[SourceAndKey]:
    for source, key, _ in selector.match_labels:
        yield source, key
    for term in selector.expressions:
        if term.op in _POSITIVE:
            yield term.source, term.key


def _about_namespace(key: str) -> bool:
    return key == POD_NAMESPACE or key.startswith(NAMESPACE_LABELS_PREFIX)


def _selector(
    labels: Mapping[str, str] | None,
    expressions: Sequence[MatchExpression] | None,
    *,
    read: Callable[[str], SourceAndKey],
) -> Selector:
    return Selector(
        match_labels=frozenset((*read(key), value) for key, value in (labels or {}).items()),
        expressions=tuple(
            Requirement(*read(term.key), Operator(term.operator), frozenset(term.values or ()))
            for term in expressions or ()
        ),
    )
