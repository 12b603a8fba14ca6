# SPDX-License-Identifier: Apache-2.0
"""Whole cases for the policy property tests: a world, the policies in it, and traffic."""

from functools import cache

from hypothesis import strategies as st

from property.documents import OBJECTS, PORTS, cilium_policy, clusterwide_policy, kubernetes_policy
from property.reference.oracle import ALWAYS, DEFAULT, NEVER
from property.worlds import (
    FAMILIES,
    HOSTS,
    LABELS_OF_NAMESPACES,
    LABELS_OF_NODES,
    NAMESPACES,
    PODS,
    Case,
    namespace,
    pod,
    pod_address,
)

TRAFFIC_PORTS = (1, 22, 53, 79, 80, 81, 82, 442, 443, 444, 445, 1023, 1024, 8080, 8090, 8091, 65535)

_TRAFFIC = st.one_of(
    st.tuples(st.sampled_from(("TCP", "UDP", "SCTP")), st.sampled_from(TRAFFIC_PORTS)),
    st.tuples(st.sampled_from(("TCP", "UDP")), st.sampled_from(PORTS)),
    st.sampled_from((("ICMP", 8), ("ICMP", 0), ("ICMP", 13), ("ICMPV6", 128), ("ICMPV6", 8))),
)
_TRAFFIC_LIST = st.lists(_TRAFFIC, min_size=2, max_size=3, unique=True)
_POLICY_KINDS = st.sampled_from((cilium_policy, clusterwide_policy, kubernetes_policy))
# Never is never interesting for long: everything is allowed.
_ENFORCEMENT = st.sampled_from((*[DEFAULT] * 20, ALWAYS, ALWAYS, NEVER))


_HOSTS, _FAMILIES = st.permutations(HOSTS), st.sampled_from(FAMILIES)

# A strategy is checked when it is first drawn from: those that cases draw from are made once.
_policy = cache(lambda kind, number: kind(number))
_kinds = cache(lambda most: st.lists(_POLICY_KINDS, min_size=2, max_size=most))
_up_to = cache(lambda most: st.integers(0, most))


@st.composite
def cases(draw: st.DrawFn, *, most_policies: int = 5) -> Case:
    """A world with policies and traffic."""
    kinds = draw(_kinds(most_policies))
    pods = draw(PODS)
    named = pods[-1]["ports"][0]
    remote = draw(_up_to(len(pods) // 2))
    where = ["here"] * (len(pods) - remote) + ["there"] * remote
    hosts, families = draw(_HOSTS), draw(_FAMILIES)
    addresses = [
        [pod_address(place, family, host) for family in families]
        for place, host in zip(where, hosts, strict=False)
    ]
    return Case(
        namespaces=tuple(map(namespace, NAMESPACES, draw(LABELS_OF_NAMESPACES))),
        pods=tuple(map(pod, range(len(pods)), pods, addresses)),
        policies=tuple(draw(_policy(kind, number)) for number, kind in enumerate(kinds)),
        traffic=tuple(dict.fromkeys([(named["protocol"], named["containerPort"]), *draw(_TRAFFIC_LIST)])),
        remote=remote,
        enforcement=draw(_ENFORCEMENT),
        objects=draw(OBJECTS),
        machines=draw(LABELS_OF_NODES),
    )
