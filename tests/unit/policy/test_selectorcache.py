# SPDX-License-Identifier: Apache-2.0
"""The cache answers like evaluating anew, and asks no more than it must."""

from ipaddress import IPv4Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciliumd.desired.policy import SelectorCache, selectorcache
from ciliumd.desired.policy.rules import peer_matches
from ciliumd.model.identity import Reserved, cidr_labels, reserved_labels
from ciliumd.model.labels import Labels, node_labels
from ciliumd.model.policy import (
    ENTITIES,
    Operator,
    Peer,
    PeerCIDR,
    PeerEntity,
    PeerNodes,
    PeerSelector,
    Requirement,
    Selector,
)
from unit.policy.builders import app, cidr, pod

pytestmark = pytest.mark.unit

PREFIXES = ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "11.0.0.0/8", "0.0.0.0/1", "fd00::/8")
LABELS: list[Labels] = [
    pod("web"),
    pod("db"),
    pod("web", "elsewhere"),
    *(cidr_labels(ip_network(prefix)) for prefix in PREFIXES),
    *(reserved_labels(reserved) for reserved in Reserved if reserved),
    reserved_labels(Reserved.HOST) | reserved_labels(Reserved.KUBE_APISERVER),
    reserved_labels(Reserved.HOST) | node_labels("here", {"role": "edge"}),
    reserved_labels(Reserved.REMOTE_NODE) | node_labels("edge-1", {"role": "edge"}),
    reserved_labels(Reserved.KUBE_APISERVER) | node_labels("core-1", {"role": "core"}),
]
PEERS: list[Peer] = [
    app("web"),
    PeerSelector(Selector()),
    PeerSelector(Selector(expressions=(Requirement("k8s", "app", Operator.NOT_IN, frozenset({"web"})),))),
    PeerSelector(Selector(frozenset({("any", "app", "db"), ("k8s", "gone", "")}))),
    PeerSelector(Selector(frozenset({("k8s", "io.kubernetes.pod.namespace", "elsewhere")}))),
    PeerSelector(Selector(frozenset({("reserved", "remote-node", "")}))),
    cidr("0.0.0.0/0"),
    cidr("0.0.0.0/0", "10.0.0.0/8"),
    cidr("0.0.0.0/0", "0.0.0.0/0"),
    cidr("::/0"),
    *(cidr(prefix) for prefix in PREFIXES),
    cidr("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "fd00::/8"),
    *(PeerEntity(name) for name in sorted(ENTITIES)),
    PeerNodes(Selector()),
    PeerNodes(Selector(frozenset({("node", "role", "edge")}))),
    PeerNodes(Selector(expressions=(Requirement("node", "role", Operator.NOT_IN, frozenset({"edge"})),))),
]
ADD = st.tuples(st.just("add"), st.integers(1, 6), st.sampled_from(LABELS))
REMOVE = st.tuples(st.just("remove"), st.integers(1, 6), st.none())
ASK = st.tuples(st.just("ask"), st.sampled_from(PEERS), st.none())
FORGET = st.tuples(st.just("forget"), st.lists(st.sampled_from(PEERS), max_size=4), st.none())


@given(st.lists(st.one_of(ADD, ADD, REMOVE, ASK, ASK, FORGET), max_size=30))
def test_cache_answers_like_evaluating_anew(steps: list[tuple[str, object, object]]) -> None:
    """Whatever comes and goes, every answer, kept views included, is that of asking each identity."""
    cache, known = SelectorCache(), dict[int, Labels]()
    views: dict[Peer, object] = {}
    for step in steps:
        match step:
            case "add", int(identity), frozenset() as labels:
                cache.add(identity, labels)
                known[identity] = labels
            case "remove", int(identity), None:
                cache.remove(identity)
                known.pop(identity, None)
            case "ask", (PeerSelector() | PeerCIDR() | PeerEntity() | PeerNodes()) as peer, None:
                views[peer] = cache.matching(peer)
            case "forget", list(peers), None:
                cache.forget(peers)
                views = {peer: view for peer, view in views.items() if peer not in peers}
        for peer, view in views.items():
            assert view == {identity for identity, labels in known.items() if peer_matches(peer, labels)}
    for peer in PEERS:
        expected = {identity for identity, labels in known.items() if peer_matches(peer, labels)}
        assert cache.matching(peer) == expected
    cache.forget(PEERS)
    for identity in list(known):
        cache.remove(identity)
    assert not any((cache._labels, cache._holders, cache._places, cache._matching, cache._interested))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Peer]:
    """Every question whether a peer matches, as they are asked."""
    questions: list[Peer] = []

    def counted(peer: Peer, labels: Labels) -> bool:
        questions.append(peer)
        return peer_matches(peer, labels)

    monkeypatch.setattr(selectorcache, "peer_matches", counted)
    return questions


def _many_prefixes() -> list[IPv4Network]:
    return list(ip_network("10.0.0.0/8").subnets(new_prefix=19))  # type: ignore[arg-type]


def test_each_of_many_prefixes_is_asked_once(asked: list[Peer]) -> None:
    """2,048 CIDR peers over as many prefixes, and pods beside them: as many questions, not their product."""
    prefixes = _many_prefixes()
    cache = SelectorCache({n: cidr_labels(prefix) for n, prefix in enumerate(prefixes, 1 << 24)})
    for number in range(500):
        cache.add(1000 + number, pod(f"app-{number}"))
    for prefix in prefixes:
        assert len(cache.matching(PeerCIDR(prefix))) == 1

    assert len(asked) == len(prefixes) == 2048


def test_a_new_identity_is_asked_of_those_who_may_mean_it(asked: list[Peer]) -> None:
    """Not of the other prefixes, and not of selectors that want a label it does not have."""
    cache = SelectorCache()
    for prefix in _many_prefixes():
        cache.matching(PeerCIDR(prefix))
    for number in range(500):
        cache.matching(app(f"app-{number}"))
    cache.matching(cidr("10.0.0.0/8"))
    cache.matching(cidr("0.0.0.0/0"))
    cache.matching(PeerEntity("cluster"))
    asked.clear()

    cache.add(1 << 24, cidr_labels(ip_network("10.0.32.7/32")))
    assert set(asked) == {cidr("10.0.0.0/8"), cidr("10.0.32.0/19"), cidr("0.0.0.0/0"), PeerEntity("cluster")}
    asked.clear()

    cache.add(1000, pod("app-7"))
    assert set(asked) == {app("app-7"), PeerEntity("cluster")}
    asked.clear()

    cache.remove(1000)
    assert asked == []


def test_exceptions_cost_their_lengths_not_their_number() -> None:
    """A prefix with a thousand holes: inside, in a hole, beside one, and around one."""
    holes = list(ip_network("10.0.0.0/10").subnets(new_prefix=20))
    peer = PeerCIDR(ip_network("10.0.0.0/8"), tuple(holes))

    assert len(peer._holes) == 1
    assert peer.covers(ip_network("10.64.0.0/20"))
    assert not peer.covers(ip_network("10.0.16.0/24"))
    assert not peer.covers(ip_network("10.0.16.0/20"))
    assert peer.covers(ip_network("10.0.0.0/9"))
    assert not peer.covers(ip_network("11.0.0.0/9"))
    assert not peer.covers(ip_network("fd00::/20"))
