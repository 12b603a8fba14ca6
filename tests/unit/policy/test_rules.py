# SPDX-License-Identifier: Apache-2.0
"""Which identities a peer is, and which blocks of the rules map a port rule becomes."""

from ipaddress import ip_network

import pytest

from ciliumd.desired.policy.rules import (
    EVERYTHING,
    PortBlock,
    peer_matches,
    port_blocks,
    port_range_blocks,
)
from ciliumd.model.identity import Reserved, cidr_labels, reserved_labels
from ciliumd.model.policy import ENTITIES, NamedPort, Peer, PeerEntity, PortRule
from unit.policy.builders import CIDR_8, CIDR_16, DB, OTHER, WEB, app, cidr, identities

pytestmark = pytest.mark.unit

ALL_IDS = set(identities())
PODS = {WEB, DB, OTHER}


def _ids(peer: Peer) -> set[int]:
    return {identity for identity, labels in identities().items() if peer_matches(peer, labels)}


ENTITY_IDS = {
    "all": ALL_IDS,
    "none": set(),
    "world": {2, 9, 10, CIDR_8, CIDR_16},
    "world-ipv4": {2, 9, CIDR_8, CIDR_16},
    "world-ipv6": {10},
    "cluster": PODS | {1, 3, 4, 5, 6, 7, 8},
    "host": {1},
    "unmanaged": {3},
    "health": {4},
    "init": {5},
    "remote-node": {6, 7},
    "kube-apiserver": {7},
    "ingress": {8},
}


@pytest.mark.parametrize("name", sorted(ENTITIES))
def test_entity_is_the_group_its_name_promises(name: str) -> None:
    """World is outside (every CIDR too), cluster is inside (nodes too)."""
    assert ENTITY_IDS[name] == _ids(PeerEntity(name))


def test_world_of_a_family_is_every_prefix_of_it() -> None:
    """An identity of an IPv6 prefix carries the label of the world, but is none of IPv4's."""
    labels = cidr_labels(ip_network("2001:db8::/32"))

    assert [
        name for name in ("world", "world-ipv4", "world-ipv6") if peer_matches(PeerEntity(name), labels)
    ] == [
        "world",
        "world-ipv6",
    ]


@pytest.mark.parametrize("name", ["kube-apiserver", "host", "cluster"])
def test_node_that_runs_the_api_server_is_both(name: str) -> None:
    """An identity with several reserved labels is every entity it has the label of."""
    labels = reserved_labels(Reserved.HOST) | reserved_labels(Reserved.KUBE_APISERVER)

    assert peer_matches(PeerEntity(name), labels)
    assert not peer_matches(PeerEntity("world"), labels)


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        (cidr("10.0.0.0/8"), {CIDR_8, CIDR_16}),
        (cidr("10.0.0.0/8", "10.1.0.0/16"), {CIDR_8}),
        (cidr("10.1.0.0/16"), {CIDR_16}),
        (cidr("10.1.2.0/24"), set()),
        (cidr("11.0.0.0/8"), set()),
        (cidr("0.0.0.0/0"), {2, 9, CIDR_8, CIDR_16}),
        (cidr("0.0.0.0/0", "10.0.0.0/8"), {2, 9}),
        (cidr("0.0.0.0/0", "0.0.0.0/0"), set()),
        (cidr("::/0"), {10}),
        (cidr("fd00::/8"), set()),
    ],
)
def test_cidr_peer_is_the_cidr_identities_inside_it(peer: Peer, expected: set[int]) -> None:
    """A prefix belongs if it lies inside and in no exception; pods and nodes never do."""
    assert expected == _ids(peer)


def test_ipv6_prefixes_nest() -> None:
    """IPv6 CIDR identities match like IPv4 ones."""
    inside = cidr_labels(ip_network("fd00:1::/32"))

    assert peer_matches(cidr("fd00::/8"), inside)
    assert not peer_matches(cidr("fd00::/8", "fd00:1::/32"), inside)


def test_selector_peer_goes_by_labels() -> None:
    """Pods are selected by their labels, in whatever namespace unless that is a label too."""
    assert {WEB} == _ids(app("web"))


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (80, 80, [(48, 80)]),
        (80, 81, [(47, 80)]),
        (81, 82, [(48, 81), (48, 82)]),
        (1, 7, [(48, 1), (47, 2), (46, 4)]),
        (0, 65535, [(32, 0)]),
        (32768, 65535, [(33, 32768)]),
        (65535, 65535, [(48, 65535)]),
    ],
)
def test_port_range_takes_the_fewest_blocks(first: int, last: int, expected: list[tuple[int, int]]) -> None:
    """A range becomes the minimal set of power-of-two blocks."""
    assert [PortBlock(prefixlen, 6, port) for prefixlen, port in expected] == list(
        port_range_blocks(6, first, last)
    )


@pytest.mark.parametrize(("first", "last"), [(1, 65535), (1023, 1025), (8000, 9000), (12345, 54321)])
def test_port_range_covers_itself_and_nothing_else(first: int, last: int) -> None:
    """Inside and outside are told apart at the edges."""
    blocks = list(port_range_blocks(17, first, last))

    def covered(port: int) -> bool:
        return any(block.covers(17, port) for block in blocks)

    assert all(covered(port) for port in (first, (first + last) // 2, last))
    assert not covered(first - 1)
    assert last == 65535 or not covered(last + 1)
    assert not any(block.covers(6, first) for block in blocks)


def test_no_ports_means_all_traffic() -> None:
    """None is every protocol, not only those with ports."""
    assert frozenset({EVERYTHING}) == port_blocks(None)
    assert EVERYTHING.covers(47, 0)


def test_any_protocol_is_tcp_udp_and_sctp() -> None:
    """ANY does not include ICMP."""
    assert {PortBlock(48, p, 53) for p in (6, 17, 132)} == port_blocks((PortRule(port=53),))
    assert {PortBlock(32, p, 0) for p in (6, 17, 132)} == port_blocks((PortRule(),))


def test_icmp_type_is_one_block_of_its_protocol() -> None:
    """Type 0 is a type, not every type; without one the whole protocol is meant."""
    assert {PortBlock(48, 1, 0)} == port_blocks((PortRule("ICMP", icmp_type=0),))
    assert {PortBlock(48, 58, 128)} == port_blocks((PortRule("ICMPV6", icmp_type=128),))
    assert {PortBlock(32, 1, 0)} == port_blocks((PortRule("ICMP"),))


def test_named_port_is_what_the_pod_calls_so() -> None:
    """A name resolves per pod and protocol; one the pod does not have covers nothing."""
    named = frozenset({NamedPort("web", "TCP", 8080), NamedPort("dns", "UDP", 53)})

    assert {PortBlock(48, 6, 8080)} == port_blocks((PortRule(name="web"),), named)
    assert {PortBlock(48, 6, 8080)} == port_blocks((PortRule("TCP", name="web"),), named)
    assert frozenset() == port_blocks((PortRule("UDP", name="web"),), named)
    assert frozenset() == port_blocks((PortRule(name="gone"),), named)
    assert frozenset() == port_blocks((PortRule(name="web"),))


def test_enclosing_blocks_widen_to_everything() -> None:
    """From one port through ever larger blocks to the protocol and to all traffic."""
    around = list(PortBlock(48, 6, 0x1234).enclosing())

    assert around[0] == PortBlock(47, 6, 0x1234)
    assert around[-2:] == [PortBlock(32, 6, 0), EVERYTHING]
    assert len(around) == 17
    assert list(EVERYTHING.enclosing()) == []
