# SPDX-License-Identifier: Apache-2.0
"""
Worlds, policy documents and traffic for the policy property tests.

Everything comes from small pools, chosen so that rules and packets meet: nested prefixes, ports next to
the ends of ranges, labels shared across namespaces.  Documents are the mappings users write in YAML.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from hypothesis import strategies as st

from property.reference.oracle import EGRESS, INGRESS, Address, Node, Packet, Peer, Pod, Stranger

Document = Mapping[str, Any]

NAMESPACES = ("blue", "green", "default")
NODES = ("host", "remote-node", "health", "init", "unmanaged")
ADDRESSES = (
    "10.0.0.1",
    "10.1.2.3",
    "10.1.2.4",
    "192.0.2.9",
    "8.8.8.8",
    "fd00::1",
    "fd00:1::2",
    "2001:db8::5",
)
PREFIXES = (
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "192.0.2.0/24",
    "0.0.0.0/0",
    "::/0",
    "fd00::/8",
    "fd00:1::/32",
)
EXCEPTS = {
    "10.0.0.0/8": ("10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.0.0.0/8"),
    "10.1.0.0/16": ("10.1.2.0/24", "10.1.2.4/32"),
    "0.0.0.0/0": ("10.0.0.0/8", "192.0.2.9/32", "0.0.0.0/0"),
    "::/0": ("fd00::/8",),
    "fd00::/8": ("fd00:1::/32",),
}
ENTITIES = ("all", "world", "cluster", "host", "remote-node", "health", "init", "unmanaged", "none")
PORTS = (22, 53, 80, 443, 8080, 65535)
RANGES = ((1, 65535), (80, 443), (1024, 65535), (8080, 8090), (442, 444), (80, 81))
PORT_NAMES = ("http", "dns")
TRAFFIC_PORTS = (1, 22, 53, 79, 80, 81, 82, 442, 443, 444, 445, 1023, 1024, 8080, 8090, 8091, 65535)


@dataclass(frozen=True)
class Case:
    """A world, the policies in it, and packets: every (subject, packet) is judged."""

    namespaces: tuple[Document, ...]
    pods: tuple[Document, ...]
    policies: tuple[Document, ...]
    traffic: tuple[tuple[str, int], ...]

    def subjects(self) -> list[Pod]:
        """The pods as the oracle sees them."""
        labels = {ns["metadata"]["name"]: ns["metadata"].get("labels", {}) for ns in self.namespaces}
        return [
            Pod(
                namespace=pod["metadata"]["namespace"],
                name=pod["metadata"]["name"],
                labels=pod["metadata"]["labels"],
                namespace_labels=labels[pod["metadata"]["namespace"]],
                service_account=pod["spec"]["serviceAccountName"],
                ports={
                    port["name"]: (port["protocol"], port["containerPort"])
                    for port in pod["spec"]["containers"][0]["ports"]
                },
            )
            for pod in self.pods
        ]

    def peers(self) -> list[Peer]:
        """Everybody who may be at the other end."""
        others: list[Peer] = [*map(Node, NODES), *map(Address, ADDRESSES), Stranger()]
        return [*self.subjects(), *others]

    def packets(self) -> list[Packet]:
        """All traffic with all peers, both ways."""
        return [
            Packet(direction, peer, protocol, port)
            for direction, peer, (protocol, port) in product((INGRESS, EGRESS), self.peers(), self.traffic)
        ]


def _some(
    elements: st.SearchStrategy[Any], at_least: int = 1, at_most: int = 2
) -> st.SearchStrategy[list[Any]]:
    return st.lists(elements, min_size=at_least, max_size=at_most)


# ---- worlds ----------------------------------------------------------------------------------

_APPS = st.sampled_from(("web", "db"))
_TIERS = st.sampled_from(("front", "back", ""))
_TEAMS = st.sampled_from(("a", "b"))

_POD_LABELS = st.fixed_dictionaries(
    {"app": _APPS},
    optional={
        "tier": _TIERS,
        # What a pod must not get by claiming it.
        "io.kubernetes.pod.namespace": st.sampled_from(NAMESPACES),
        "io.cilium.k8s.policy.serviceaccount": st.just("robot"),
    },
)
_POD_PORTS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(PORT_NAMES),
            "protocol": st.sampled_from(("TCP", "UDP")),
            "containerPort": st.sampled_from((53, 80, 8080)),
        }
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda port: port["name"],
)


_POD = st.fixed_dictionaries(
    {
        "namespace": st.sampled_from(("blue", "blue", "green")),
        "labels": _POD_LABELS,
        "serviceAccountName": st.sampled_from(("default", "robot")),
        "ports": _POD_PORTS,
    }
)
_NAMESPACE_LABELS = st.fixed_dictionaries({}, optional={"team": _TEAMS})


def _pod(number: int, drawn: Mapping[str, Any]) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"pod-{number}", "namespace": drawn["namespace"], "labels": drawn["labels"]},
        "spec": {
            "serviceAccountName": drawn["serviceAccountName"],
            "containers": [{"name": "main", "ports": drawn["ports"]}],
        },
    }


def _namespace(name: str, labels: Mapping[str, str]) -> Document:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


# ---- selectors -------------------------------------------------------------------------------


def _expression(keys: Mapping[str, st.SearchStrategy[str]]) -> st.SearchStrategy[Document]:
    valued, bare = st.sampled_from(("In", "NotIn")), st.sampled_from(("Exists", "DoesNotExist"))
    return st.one_of(
        *(
            st.fixed_dictionaries({"key": st.just(key), "operator": valued, "values": _some(values)})
            for key, values in keys.items()
        ),
        *(st.fixed_dictionaries({"key": st.just(key), "operator": bare}) for key in keys),
    )


def _selector(keys: Mapping[str, st.SearchStrategy[str]]) -> st.SearchStrategy[Document]:
    label = st.one_of(*(st.tuples(st.just(key), values) for key, values in keys.items()))
    labels = st.lists(label, min_size=1, max_size=2).map(dict)
    expressions = _some(_expression(keys))
    return st.one_of(
        st.just({}),
        st.fixed_dictionaries({"matchLabels": labels}),
        st.fixed_dictionaries({"matchExpressions": expressions}),
        st.fixed_dictionaries({"matchLabels": labels, "matchExpressions": expressions}),
    )


_NS = st.sampled_from(NAMESPACES[:2])
_POLICY_NS = st.sampled_from(("blue", "blue", "green"))
_ACCOUNTS = st.sampled_from(("default", "robot"))
_PLAIN_KEYS = {"app": _APPS, "tier": _TIERS}
_CILIUM_KEYS = {
    **_PLAIN_KEYS,
    "k8s:app": _APPS,
    "any:tier": _TIERS,
    "io.cilium.k8s.policy.serviceaccount": _ACCOUNTS,
}
_PEER_KEYS = {
    **_CILIUM_KEYS,
    "k8s:io.kubernetes.pod.namespace": _NS,
    "io.kubernetes.pod.namespace": _NS,
    "k8s:io.cilium.k8s.namespace.labels.team": _TEAMS,
    "k8s:io.cilium.k8s.policy.cluster": st.just("default"),
    "reserved:host": st.just(""),
    "reserved:remote-node": st.just(""),
}
_NAMESPACE_KEYS = {"team": _TEAMS, "kubernetes.io/metadata.name": _NS}

_PLAIN_SELECTOR = _selector(_PLAIN_KEYS)
# Half of the policies select the whole namespace, so that most pods are under several.
_SUBJECT_SELECTOR = st.one_of(st.just({}), st.just({}), st.just({}), _selector(_CILIUM_KEYS))
_PEER_SELECTOR = st.one_of(_selector(_CILIUM_KEYS), _selector(_PEER_KEYS))
_NAMESPACE_SELECTOR = _selector(_NAMESPACE_KEYS)


# ---- prefixes and ports ----------------------------------------------------------------------


_CIDR_SET = st.one_of(
    st.fixed_dictionaries({"cidr": st.sampled_from(PREFIXES)}),
    *(
        st.fixed_dictionaries({"cidr": st.just(prefix), "except": _some(st.sampled_from(excepts))})
        for prefix, excepts in EXCEPTS.items()
    ),
)
_CILIUM_RANGE = st.one_of(
    *(
        st.fixed_dictionaries(
            {"port": st.just(str(first)), "endPort": st.just(last)},
            optional={"protocol": st.sampled_from(("TCP", "UDP", "ANY"))},
        )
        for first, last in RANGES
    ),
)
_CILIUM_PORT = st.one_of(
    st.fixed_dictionaries(
        {"port": st.sampled_from(PORTS).map(str)},
        optional={"protocol": st.sampled_from(("TCP", "UDP", "SCTP", "ANY"))},
    ),
    _CILIUM_RANGE,
    st.fixed_dictionaries(
        {"port": st.sampled_from((*PORT_NAMES, *PORT_NAMES, "0"))},
        optional={"protocol": st.sampled_from(("TCP", "UDP", "ANY"))},
    ),
)
_KUBERNETES_RANGE = st.one_of(
    *(
        st.fixed_dictionaries(
            {"port": st.just(first), "endPort": st.just(last)},
            optional={"protocol": st.sampled_from(("TCP", "UDP"))},
        )
        for first, last in RANGES
    ),
)
_KUBERNETES_PORT = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "protocol": st.sampled_from(("TCP", "UDP", "SCTP")),
            "port": st.sampled_from((*PORTS, *PORT_NAMES, *PORT_NAMES)),
        },
    ),
    _KUBERNETES_RANGE,
)

# ---- policies --------------------------------------------------------------------------------


def _section(rule: st.SearchStrategy[Document], most: int) -> st.SearchStrategy[list[Document]]:
    rules = _some(rule, 1, most)
    return st.one_of(rules, rules, rules, st.just([]))


def _cilium_rule(side: str) -> st.SearchStrategy[Document]:
    peers = {
        f"{side}Endpoints": _some(_PEER_SELECTOR),
        f"{side}CIDR": _some(st.sampled_from((*PREFIXES, "10.1.2.3", "fd00::1"))),
        f"{side}CIDRSet": _some(_CIDR_SET),
        f"{side}Entities": _some(st.sampled_from(ENTITIES)),
    }
    one_list = [st.fixed_dictionaries({key: values}) for key, values in peers.items()]
    empty_list = st.sampled_from([{key: []} for key in peers])
    two_lists = st.fixed_dictionaries({}, optional=peers)
    to_ports = _some(st.fixed_dictionaries({"ports": _some(_CILIUM_PORT)}))
    ports = st.one_of(st.just({}), st.fixed_dictionaries({"toPorts": to_ports}))
    chosen = st.one_of(*one_list, *one_list, two_lists, empty_list, st.just({}))
    return st.builds(_joined, chosen, ports)


def _joined(first: Document, second: Document) -> Document:
    return {**first, **second}


CILIUM_RULES = {INGRESS: _cilium_rule("from"), EGRESS: _cilium_rule("to")}
"""Rules of ingress and ingressDeny, of egress and egressDeny."""


def _cilium_spec(*, most_rules: int) -> st.SearchStrategy[Document]:
    ingress, egress = CILIUM_RULES[INGRESS], CILIUM_RULES[EGRESS]
    return st.fixed_dictionaries(
        {"endpointSelector": _SUBJECT_SELECTOR},
        optional={
            "ingress": _section(ingress, most_rules),
            "egress": _section(egress, most_rules),
            "ingressDeny": _section(ingress, most_rules),
            "egressDeny": _section(egress, most_rules),
            "enableDefaultDeny": st.fixed_dictionaries(
                {}, optional={"ingress": st.booleans(), "egress": st.booleans()}
            ),
            "description": st.just("drawn"),
            "labels": st.just([{"key": "drawn", "value": "yes"}]),
        },
    )


_SPEC = _cilium_spec(most_rules=2)
_SPECS = _some(_cilium_spec(most_rules=1))
_SPEC_FORMS = st.one_of(
    st.fixed_dictionaries({"spec": _SPEC}),
    st.fixed_dictionaries({"specs": _SPECS}),
    st.fixed_dictionaries({"spec": _SPEC, "specs": _SPECS}),
)


@st.composite
def cilium_policy(draw: st.DrawFn, number: int = 0) -> Document:
    """A CiliumNetworkPolicy with ``spec``, ``specs`` or both."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": f"cnp-{number}", "namespace": draw(_POLICY_NS)},
        **draw(_SPEC_FORMS),
    }


_KUBERNETES_PEER = st.one_of(
    st.fixed_dictionaries({"podSelector": _PLAIN_SELECTOR}),
    st.fixed_dictionaries({"namespaceSelector": _NAMESPACE_SELECTOR}),
    st.fixed_dictionaries({"podSelector": _PLAIN_SELECTOR, "namespaceSelector": _NAMESPACE_SELECTOR}),
    st.fixed_dictionaries({"ipBlock": _CIDR_SET}),
)


def _kubernetes_rule(side: str) -> st.SearchStrategy[Document]:
    return st.fixed_dictionaries(
        {}, optional={side: _some(_KUBERNETES_PEER, 0, 2), "ports": _some(_KUBERNETES_PORT, 0, 2)}
    )


_KUBERNETES_SPEC = st.fixed_dictionaries(
    {"podSelector": st.one_of(st.just({}), _PLAIN_SELECTOR)},
    optional={
        "policyTypes": _some(st.sampled_from(("Ingress", "Egress")), 0, 2),
        "ingress": _section(_kubernetes_rule("from"), 2),
        "egress": _section(_kubernetes_rule("to"), 2),
    },
)


@st.composite
def kubernetes_policy(draw: st.DrawFn, number: int = 0) -> Document:
    """A NetworkPolicy."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"knp-{number}", "namespace": draw(_POLICY_NS)},
        "spec": draw(_KUBERNETES_SPEC),
    }


# ---- cases -----------------------------------------------------------------------------------

_TRAFFIC = st.one_of(
    st.tuples(st.sampled_from(("TCP", "UDP", "SCTP")), st.sampled_from(TRAFFIC_PORTS)),
    st.tuples(st.sampled_from(("TCP", "UDP")), st.sampled_from(PORTS)),
    st.just(("ICMP", 8)),
)


_TRAFFIC_LIST = st.lists(_TRAFFIC, min_size=2, max_size=3, unique=True)
_PODS = st.lists(_POD, min_size=2, max_size=4)
_LABELS_OF_NAMESPACES = st.tuples(*(_NAMESPACE_LABELS for _ in NAMESPACES))
_POLICY_KINDS = st.sampled_from((cilium_policy, cilium_policy, kubernetes_policy))


@st.composite
def cases(draw: st.DrawFn, *, most_policies: int = 5) -> Case:
    """A world with policies and traffic."""
    kinds = draw(st.lists(_POLICY_KINDS, min_size=2, max_size=most_policies))
    pods = draw(_PODS)
    named = pods[0]["ports"][0]
    return Case(
        namespaces=tuple(map(_namespace, NAMESPACES, draw(_LABELS_OF_NAMESPACES))),
        pods=tuple(_pod(number, drawn) for number, drawn in enumerate(pods)),
        policies=tuple(draw(kind(number)) for number, kind in enumerate(kinds)),
        traffic=tuple(dict.fromkeys([(named["protocol"], named["containerPort"]), *draw(_TRAFFIC_LIST)])),
    )
