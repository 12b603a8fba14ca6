# SPDX-License-Identifier: Apache-2.0
"""
Policy documents for the policy property tests: the mappings users write in YAML, of every kind.

Everything comes from small pools, chosen so that rules and packets meet: nested prefixes, ports next to
the ends of ranges, labels shared across namespaces.
"""

from collections.abc import Collection, Mapping

from hypothesis import strategies as st

from property.reference.oracle import EGRESS, INGRESS
from property.worlds import (
    ADDRESSES,
    APPS,
    NAMESPACES,
    PORT_NAMES,
    ROLES,
    TEAMS,
    TIERS,
    ZONES,
    Document,
    often,
    some,
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
BLOCKS = {
    "10.0.0.0/24": ("10.0.0.0/30", "10.0.0.2/31", "10.0.0.2/32"),
    "10.0.0.0/30": ("10.0.0.2/31", "10.0.0.1/32", "10.0.0.0/30"),
    "10.0.0.4/30": ("10.0.0.5/32",),
    "10.0.0.3/32": ("10.0.0.3/32",),
    "10.0.0.0/15": ("10.0.0.0/24", "10.1.0.0/16", "10.1.0.2/31", "10.0.0.4/30"),
    "10.1.0.0/24": ("10.1.0.2/31", "10.1.0.1/32"),
    "0.0.0.0/0": ("10.0.0.0/15", "10.0.0.2/31", "10.1.0.0/24"),
    "fd00:1:0:1::/64": ("fd00:1:0:1::2/127", "fd00:1:0:1::1/128"),
    "fd00:1:0:1::2/127": ("fd00:1:0:1::2/128",),
    "fd00:0:0:2::/64": ("fd00:0:0:2::4/126",),
    "::/0": ("fd00:1:0:1::/64", "fd00:0:0:2::2/127"),
}
"""Blocks of addresses of pods, and what is taken from them."""
GROUPS = ("office", "lab", "spare")
"""CiliumCIDRGroups that there are; policies name another one, too."""
ENTITIES = (
    *("all", "none", "cluster", "world", "world-ipv4", "world-ipv6"),
    *("host", "remote-node", "kube-apiserver", "health", "init", "ingress", "unmanaged"),
)
PORTS = (22, 53, 80, 443, 8080, 65535)
RANGES = ((1, 65535), (80, 443), (1024, 65535), (8080, 8090), (442, 444), (80, 81))


def _expression(keys: Mapping[str, st.SearchStrategy[str]]) -> st.SearchStrategy[Document]:
    valued, bare = st.sampled_from(("In", "NotIn")), st.sampled_from(("Exists", "DoesNotExist"))
    return st.one_of(
        *(
            st.fixed_dictionaries({"key": st.just(key), "operator": valued, "values": some(values)})
            for key, values in keys.items()
        ),
        *(st.fixed_dictionaries({"key": st.just(key), "operator": bare}) for key in keys),
    )


def _selector(keys: Mapping[str, st.SearchStrategy[str]]) -> st.SearchStrategy[Document]:
    label = st.one_of(*(st.tuples(st.just(key), values) for key, values in keys.items()))
    labels = st.lists(label, min_size=1, max_size=2).map(dict)
    expressions = some(_expression(keys))
    return st.one_of(
        st.just({}),
        st.fixed_dictionaries({"matchLabels": labels}),
        st.fixed_dictionaries({"matchExpressions": expressions}),
        st.fixed_dictionaries({"matchLabels": labels, "matchExpressions": expressions}),
    )


_NS = st.sampled_from(NAMESPACES[:2])
_POLICY_NS = st.sampled_from(("blue", "blue", "green"))
_ACCOUNTS = st.sampled_from(("default", "robot"))
_PLAIN_KEYS = {"app": APPS, "tier": TIERS}
_CILIUM_KEYS = {
    **_PLAIN_KEYS,
    "k8s:app": APPS,
    "any:tier": TIERS,
    "io.cilium.k8s.policy.serviceaccount": _ACCOUNTS,
}
_PEER_KEYS = {
    **_CILIUM_KEYS,
    "k8s:io.kubernetes.pod.namespace": _NS,
    "io.kubernetes.pod.namespace": _NS,
    "k8s:io.cilium.k8s.namespace.labels.team": TEAMS,
    "k8s:io.cilium.k8s.policy.cluster": st.just("default"),
    "reserved:host": st.just(""),
    "reserved:remote-node": st.just(""),
}
_CLUSTERWIDE_KEYS = {
    **_CILIUM_KEYS,
    "k8s:io.kubernetes.pod.namespace": _NS,
    "io.kubernetes.pod.namespace": _NS,
    "k8s:io.cilium.k8s.namespace.labels.team": TEAMS,
    "reserved:health": st.just(""),
    "reserved:init": st.just(""),
}
_NAMESPACE_KEYS = {"team": TEAMS, "kubernetes.io/metadata.name": _NS}

_PLAIN_SELECTOR = _selector(_PLAIN_KEYS)
# Half of the policies select the whole namespace, so that most pods are under several.
_SUBJECT_SELECTOR = st.one_of(st.just({}), st.just({}), st.just({}), _selector(_CILIUM_KEYS))
_CLUSTERWIDE_SUBJECT = st.one_of(st.just({}), st.just({}), _selector(_CLUSTERWIDE_KEYS))
_NODE_KEYS = {"role": ROLES, "node:topology.kubernetes.io/zone": ZONES, "any:role": ROLES, "app": APPS}
_NODE_SELECTOR = _selector(_NODE_KEYS)
_PEER_SELECTOR = st.one_of(_selector(_CILIUM_KEYS), _selector(_PEER_KEYS))
_NAMESPACE_SELECTOR = _selector(_NAMESPACE_KEYS)


def _cidr_sets(
    prefixes: Collection[str], excepts: Mapping[str, tuple[str, ...]]
) -> st.SearchStrategy[Document]:
    return st.one_of(
        st.fixed_dictionaries({"cidr": st.sampled_from(tuple(prefixes))}),
        *(
            st.fixed_dictionaries({"cidr": st.just(prefix), "except": some(st.sampled_from(inner))})
            for prefix, inner in excepts.items()
        ),
    )


_CIDR_SET = _cidr_sets((*PREFIXES, *BLOCKS), EXCEPTS)
_IP_BLOCK = st.one_of(_cidr_sets(PREFIXES, EXCEPTS), _cidr_sets(BLOCKS, BLOCKS))
_GROUP_KEYS = {"site": st.sampled_from(("here", "there")), "role": st.sampled_from(("a", ""))}
_GROUP_EXCEPTS = some(
    st.sampled_from(("10.1.2.0/24", "10.1.0.0/16", "192.0.2.9/32", "fd00:1::/32", "0.0.0.0/0"))
)
_GROUP_BY_NAME = st.fixed_dictionaries(
    {"cidrGroupRef": st.sampled_from((*GROUPS, "gone"))}, optional={"except": _GROUP_EXCEPTS}
)
_GROUP_BY_LABELS = st.fixed_dictionaries(
    {"cidrGroupSelector": _selector(_GROUP_KEYS)}, optional={"except": _GROUP_EXCEPTS}
)
_CILIUM_CIDR_SET = st.one_of(_CIDR_SET, *often(_GROUP_BY_NAME, 6), *often(_GROUP_BY_LABELS, 6))
_NAMESPACE_OR_ANY = {"namespace": st.sampled_from(NAMESPACES)}
_SERVICE_BY_NAME = st.fixed_dictionaries(
    {
        "k8sService": st.fixed_dictionaries(
            {"serviceName": st.sampled_from(("front", "front", "kubernetes", "gone"))},
            optional=_NAMESPACE_OR_ANY,
        )
    }
)
_SERVICE_BY_LABELS = st.fixed_dictionaries(
    {
        "k8sServiceSelector": st.fixed_dictionaries(
            {"selector": _selector(_GROUP_KEYS)}, optional=_NAMESPACE_OR_ANY
        )
    }
)
_SERVICES = st.one_of(*often(_SERVICE_BY_NAME, 2), *often(_SERVICE_BY_LABELS, 3))
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
_ICMP = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from((0, 8, "13", "EchoRequest", "EchoReply"))},
        optional={"family": st.just("IPv4")},
    ),
    st.fixed_dictionaries({"type": st.sampled_from((8, 128, "EchoRequest")), "family": st.just("IPv6")}),
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


def _section(rule: st.SearchStrategy[Document], most: int) -> st.SearchStrategy[list[Document]]:
    rules = some(rule, 1, most)
    return st.one_of(rules, rules, rules, st.just([]))


def _cilium_rule(side: str) -> st.SearchStrategy[Document]:
    peers = {
        f"{side}Endpoints": some(_PEER_SELECTOR),
        f"{side}CIDR": some(st.sampled_from((*PREFIXES, "10.1.2.3", "fd00::1"))),
        f"{side}CIDRSet": some(_CILIUM_CIDR_SET),
        f"{side}Entities": some(st.sampled_from(ENTITIES)),
        f"{side}Nodes": some(_NODE_SELECTOR),
    }
    if side == "to":
        peers["toServices"] = some(_SERVICES)
    one_list = [st.fixed_dictionaries({key: values}) for key, values in peers.items()]
    empty_list = st.sampled_from([{key: []} for key in peers])
    two_lists = st.fixed_dictionaries({}, optional=peers)
    to_ports = some(st.fixed_dictionaries({"ports": some(_CILIUM_PORT)}))
    icmps = some(st.fixed_dictionaries({"fields": some(_ICMP)}))
    ports = st.one_of(
        st.just({}),
        st.fixed_dictionaries({"toPorts": to_ports}),
        st.fixed_dictionaries({"toPorts": to_ports}),
        st.fixed_dictionaries({"icmps": icmps}),
    )
    # Sets of CIDRs and services have the most fields.
    chosen = st.one_of(
        *one_list,
        *often(one_list[2], 3),
        *often(one_list[-1], 3),
        *often(two_lists, 3),
        empty_list,
        st.just({}),
    )
    return st.builds(_joined, chosen, ports)


def _joined(first: Document, second: Document) -> Document:
    return {**first, **second}


def _requiring(side: str, rule: st.SearchStrategy[Document]) -> st.SearchStrategy[Document]:
    """Rules of which some require something of the peers of all."""
    required = st.fixed_dictionaries({f"{side}Requires": some(_PEER_SELECTOR, 0, 1)})
    return st.one_of(*often(rule, 3), st.builds(_joined, rule, required))


CILIUM_RULES = {INGRESS: _cilium_rule("from"), EGRESS: _cilium_rule("to")}
"""Rules of ingress and ingressDeny, of egress and egressDeny; none that takes something from others."""


def _cilium_spec(subject: st.SearchStrategy[Document], *, most_rules: int) -> st.SearchStrategy[Document]:
    ingress, egress = CILIUM_RULES[INGRESS], CILIUM_RULES[EGRESS]
    requiring = {side: _requiring(side, rule) for side, rule in (("from", ingress), ("to", egress))}
    return st.fixed_dictionaries(
        {"endpointSelector": subject},
        optional={
            "ingress": _section(requiring["from"], most_rules),
            "egress": _section(requiring["to"], most_rules),
            "ingressDeny": _section(ingress, most_rules),
            "egressDeny": _section(egress, most_rules),
            "enableDefaultDeny": st.fixed_dictionaries(
                {}, optional={"ingress": st.booleans(), "egress": st.booleans()}
            ),
            "description": st.just("drawn"),
            "labels": st.just([{"key": "drawn", "value": "yes"}]),
        },
    )


def _spec_forms(subject: st.SearchStrategy[Document]) -> st.SearchStrategy[Document]:
    spec, specs = _cilium_spec(subject, most_rules=2), some(_cilium_spec(subject, most_rules=1))
    return st.one_of(
        st.fixed_dictionaries({"spec": spec}),
        st.fixed_dictionaries({"specs": specs}),
        st.fixed_dictionaries({"spec": spec, "specs": specs}),
    )


_SPEC_FORMS = _spec_forms(_SUBJECT_SELECTOR)
_CLUSTERWIDE_SPEC_FORMS = _spec_forms(_CLUSTERWIDE_SUBJECT)


# A strategy is checked when it is first drawn from: what every case draws from is made once.
_GROUP_LABELS = st.fixed_dictionaries({}, optional=_GROUP_KEYS)
_GROUP_VERSIONS = st.sampled_from(("cilium.io/v2", "cilium.io/v2alpha1"))
_GROUP_PREFIXES = some(st.sampled_from((*PREFIXES, "8.8.8.8/32")), 0, 3)
_SERVICE_SELECTOR = st.fixed_dictionaries({}, optional=_PLAIN_KEYS)
_SERVICE_ADDRESSES = some(st.sampled_from([one for one in ADDRESSES if "." in one]), 0, 3)


@st.composite
def cidr_group(draw: st.DrawFn, name: str) -> Document:
    """A CiliumCIDRGroup; one without prefixes is nobody."""
    return {
        "apiVersion": draw(_GROUP_VERSIONS),
        "kind": "CiliumCIDRGroup",
        "metadata": {"name": name, "labels": draw(_GROUP_LABELS)},
        "spec": {"externalCIDRs": draw(_GROUP_PREFIXES)},
    }


@st.composite
def service(draw: st.DrawFn, namespace: str, name: str) -> tuple[Document, Document]:
    """A service, with a selector or without, and endpoints that count in the latter case only."""
    key = {"name": name, "namespace": namespace}
    made = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**key, "labels": draw(_GROUP_LABELS)},
        "spec": {"clusterIP": "None", "ports": [{"port": 80}], "selector": draw(_SERVICE_SELECTOR)},
    }
    addresses = draw(_SERVICE_ADDRESSES)
    slice_ = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**key, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 80}],
        "endpoints": [{"addresses": [one]} for one in addresses],
    }
    return made, slice_


_SERVICE_OBJECTS = st.tuples(
    service("blue", "front"),
    service("green", "front"),
    service("blue", "back"),
    service("default", "kubernetes"),
)
OBJECTS = st.builds(
    lambda groups, services: (*groups, *(one for pair in services for one in pair)),
    st.tuples(*map(cidr_group, GROUPS)),
    _SERVICE_OBJECTS,
)
"""What policies refer to."""


@st.composite
def cilium_policy(draw: st.DrawFn, number: int = 0) -> Document:
    """A CiliumNetworkPolicy with ``spec``, ``specs`` or both."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": f"cnp-{number}", "namespace": draw(_POLICY_NS)},
        **draw(_SPEC_FORMS),
    }


@st.composite
def clusterwide_policy(draw: st.DrawFn, number: int = 0) -> Document:
    """A CiliumClusterwideNetworkPolicy with ``spec``, ``specs`` or both."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": f"ccnp-{number}"},
        **draw(_CLUSTERWIDE_SPEC_FORMS),
    }


_KUBERNETES_BLOCK = st.fixed_dictionaries({"ipBlock": _IP_BLOCK})
_KUBERNETES_PEER = st.one_of(
    st.fixed_dictionaries({"podSelector": _PLAIN_SELECTOR}),
    st.fixed_dictionaries({"namespaceSelector": _NAMESPACE_SELECTOR}),
    st.fixed_dictionaries({"podSelector": _PLAIN_SELECTOR, "namespaceSelector": _NAMESPACE_SELECTOR}),
    _KUBERNETES_BLOCK,
)


def _kubernetes_rule(side: str) -> st.SearchStrategy[Document]:
    return st.fixed_dictionaries(
        {}, optional={side: some(_KUBERNETES_PEER, 0, 2), "ports": some(_KUBERNETES_PORT, 0, 2)}
    )


def _kubernetes_block_rule(side: str) -> st.SearchStrategy[Document]:
    return st.fixed_dictionaries(
        {side: some(_KUBERNETES_BLOCK)}, optional={"ports": some(_KUBERNETES_PORT, 0, 1)}
    )


_KUBERNETES_SUBJECT = st.one_of(st.just({}), _PLAIN_SELECTOR)
_KUBERNETES_SPEC = st.fixed_dictionaries(
    {"podSelector": _KUBERNETES_SUBJECT},
    optional={
        "policyTypes": some(st.sampled_from(("Ingress", "Egress")), 0, 2),
        "ingress": _section(_kubernetes_rule("from"), 2),
        "egress": _section(_kubernetes_rule("to"), 2),
    },
)
# A rule of blocks has much to say, and is rarely met by chance.
_BLOCK_SPEC = st.one_of(
    *(
        st.fixed_dictionaries(
            {"podSelector": _KUBERNETES_SUBJECT, section: some(_kubernetes_block_rule(side))}
        )
        for section, side in (("ingress", "from"), ("egress", "to"))
    )
)


@st.composite
def kubernetes_policy(draw: st.DrawFn, number: int = 0) -> Document:
    """A NetworkPolicy."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"knp-{number}", "namespace": draw(_POLICY_NS)},
        "spec": draw(st.one_of(*often(_KUBERNETES_SPEC, 2), _BLOCK_SPEC)),
    }
