# SPDX-License-Identifier: Apache-2.0
"""Nodes with numbers of their own: whatever holds for a node holds for these, in both families."""

from __future__ import annotations

from ipaddress import IPv6Network
from typing import TYPE_CHECKING

import pytest

from ciliumd.abi import CtFlags, DropReason, EventType, Identity
from ciliumd.daemon.datapath import network6
from datapath.harness import PASS
from datapath.openworld6 import POD_CIDR6, SIX_ONE
from datapath.rows import ALLOW, ALLOW_ALL, DEFAULT_DENY, EGRESS, INGRESS, POD_ONE, Rule
from datapath.tunnel import (
    AWAY,
    LABELLED,
    NODE_THREE,
    NODE_THREE_API,
    NODE_TWO,
    TUNNEL_PORT,
    Tunnel,
    Tunnelled,
    fill_cluster,
    inner,
    node_three,
    node_two,
    router_three,
    router_two,
    tunnel_node,
)
from datapath.wire import GATEWAY, NODE_PORT, asks
from fixtures import packets6
from fixtures.packets import from_pod, from_stack, node_one, pod_away, pod_one, router, tcp, udp
from fixtures.packets6 import Place6, frame
from reference.tunnel import NODE_CLIENT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.datapath

router_away6 = Place6("fd00:2::1", router_two)
node_two6 = "2001:db8:9::2"
OPTIONS = {"ipv6": 1, "masquerade_ipv6": 1, **network6("pod_cidr", IPv6Network(POD_CIDR6.with_prefixlen))}


@pytest.fixture
def labelled(tunnel: Tunnel) -> Tunnel:
    """A node whose other nodes have numbers by their labels."""
    fill_cluster(tunnel.datapath, LABELLED)
    return tunnel


def allow(tunnel: Tunnel, version: int, *places: tuple[int, int]) -> None:
    """Nobody but these identities, each in a direction, speaks with pod one."""
    rules = [Rule(direction, DEFAULT_DENY) for direction in (INGRESS, EGRESS)]
    rules += [Rule(direction, ALLOW, class_id=1) for direction in (INGRESS, EGRESS)]
    tunnel.datapath.policy(version, *rules, classes=dict.fromkeys(places, 1))
    tunnel.datapath.use_version(POD_ONE, version)


@pytest.mark.parametrize("source", [router_two, node_two], ids=["router", "node"])
def test_a_node_that_comes_through_the_tunnel_is_judged_as_itself(labelled: Tunnel, source: object) -> None:
    """The tunnel says that it is a node, its address which one; another one is not let in."""
    allow(labelled, 99, (NODE_TWO, INGRESS))
    asked = inner(source, pod_one.ip, tcp(30000, 80))
    outcome = labelled.tunnel_brings(node_two.ip, Identity.ID_REMOTE_NODE, asked)
    assert len(outcome.pod) == 1
    assert {event.src_identity for event in outcome.events} == {NODE_TWO}
    (row,) = labelled.datapath.ct().values()
    assert (row.peer_identity, row.flags & CtFlags.CT_F_CARRIED_PEER) == (NODE_TWO, 0)

    other = inner(router_three, pod_one.ip, tcp(30000, 80))
    refused = labelled.tunnel_brings(node_three.ip, Identity.ID_REMOTE_NODE, other)
    assert refused.reasons == [DropReason.DROP_POLICY]
    assert {event.src_identity for event in refused.events} == {NODE_THREE}
    claimed = labelled.tunnel_brings(node_three.ip, Identity.ID_REMOTE_NODE, asked)
    assert claimed.reasons == [DropReason.DROP_INVALID_SIP]


def test_a_nodes_client_is_a_node_and_not_that_node(labelled: Tunnel) -> None:
    """It has the node's address in the tunnel; answers are judged by who asked."""
    allow(labelled, 99, (NODE_TWO, INGRESS))
    asked = inner(router_two, pod_one.ip, tcp(40000, 80))
    refused = labelled.tunnel_brings(node_two.ip, NODE_CLIENT, asked)
    assert refused.reasons == [DropReason.DROP_POLICY]
    assert {event.src_identity for event in refused.events} == {Identity.ID_REMOTE_NODE}

    allow(labelled, 100, (Identity.ID_REMOTE_NODE, INGRESS))
    assert len(labelled.tunnel_brings(node_two.ip, NODE_CLIENT, asked).pod) == 1
    (row,) = labelled.datapath.ct().values()
    assert row.flags & CtFlags.CT_F_CARRIED_PEER
    answer = from_pod(pod_one, router_two.ip, tcp(80, 40000, "SA"))
    assert len(labelled.pod_sends(answer).wire) == 1
    allow(labelled, 101, (NODE_TWO, INGRESS))
    assert labelled.pod_sends(answer).reasons == [DropReason.DROP_POLICY]


def test_a_pod_reaches_the_nodes_it_may(labelled: Tunnel) -> None:
    """Past the tunnel, masqueraded, by the node's address; through it to the node's router."""
    allow(labelled, 99, (NODE_TWO, EGRESS))
    (wired,) = labelled.pod_sends(from_pod(pod_one, node_two.ip, tcp(30000, 443))).wire
    assert wired[26:30] == node_one.address.packed
    (wired,) = labelled.pod_sends(from_pod(pod_one, router_two.ip, tcp(30000, 443))).wire
    assert Tunnelled.read(wired).identity == POD_ONE.identity
    for place, identity in ((node_three, NODE_THREE_API), (router_three, NODE_THREE)):
        outcome = labelled.pod_sends(from_pod(pod_one, place.ip, tcp(30000, 443)))
        assert outcome.reasons == [DropReason.DROP_POLICY]
        assert {event.dst_identity for event in outcome.events} == {identity}


def test_a_node_that_asks_past_the_tunnel_is_judged_as_itself(labelled: Tunnel) -> None:
    """At a pod behind a node port of this node; the API server by its address."""
    labelled.datapath.add_service(3, node_one.ip, 30081, 6, {103: (pod_one.ip, 80)}, flags=NODE_PORT)
    allow(labelled, 99, (NODE_THREE_API, INGRESS))
    asked = tcp(40010, 30081)
    refused = labelled.arrives(asks(node_two.ip, asked))
    (drop,) = (event for event in refused.events if event.type == EventType.EVENT_DROP)
    assert (drop.reason, drop.src_identity) == (DropReason.DROP_POLICY, NODE_TWO)
    assert len(labelled.arrives(asks(node_three.ip, asked)).pod) == 1


@pytest.mark.parametrize("place", [node_two, node_three, router_two], ids=lambda place: place.ip)
def test_a_pod_cannot_send_to_the_port_of_a_tunnel_of_such_a_node(labelled: Tunnel, place: object) -> None:
    """Masqueraded it would speak with its node's address."""
    outcome = labelled.pod_sends(from_pod(pod_one, place.ip, udp(5000, TUNNEL_PORT)))
    assert outcome.reasons == [DropReason.DROP_ENCAP_PROHIBITED]


def test_what_this_node_sends_is_a_nodes(labelled: Tunnel) -> None:
    """Whatever numbers it has for others, and whoever reads them."""
    (wired,) = labelled.host_sends(from_stack(router.ip, pod_away.ip, tcp(30000, 80))).wire
    assert Tunnelled.read(wired).identity == Identity.ID_REMOTE_NODE


@pytest.fixture(scope="module")
def loaded_six(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """A node with a tunnel whose pods have both families."""
    with tunnel_node(tmp_path_factory.mktemp("nodes6"), **OPTIONS) as made:
        yield made


@pytest.fixture
def six(loaded_six: Tunnel) -> Tunnel:
    """Other nodes with numbers under addresses of both families, and pod one."""
    loaded_six.reset()
    datapath = loaded_six.datapath
    fill_cluster(datapath, LABELLED)
    datapath.native_device("net0", node_one.ip, ip6=packets6.node_one.ip)
    datapath.add_endpoint(SIX_ONE, *ALLOW_ALL)
    for place in (packets6.router, packets6.node_one):
        datapath.host_address(place.ip)
    datapath.ipcache("fd00:2::/112", Identity.ID_UNMANAGED, tunnel=node_two.ip)
    datapath.ipcache(router_away6.ip, NODE_TWO, tunnel=node_two.ip)
    datapath.ipcache(packets6.pod_away.ip, AWAY, tunnel=node_two.ip)
    return loaded_six


def test_ipv6_through_the_tunnel(six: Tunnel) -> None:
    """As with IPv4: the router's address says which node it is; a client of it is any."""
    asked = frame(
        router_two.mac, router_two.mac, router_away6.ip, packets6.pod_one.ip, udp(40000, 53), hlim=63
    )
    for carried, judged in ((Identity.ID_REMOTE_NODE, NODE_TWO), (NODE_CLIENT, Identity.ID_REMOTE_NODE)):
        outcome = six.tunnel_brings(node_two.ip, carried, asked)
        assert len(outcome.pod) == 1
        assert outcome.events[0].src_identity == judged
    stranger = six.tunnel_brings(node_three.ip, Identity.ID_REMOTE_NODE, asked)
    assert stranger.reasons == [DropReason.DROP_INVALID_SIP]


@pytest.mark.parametrize(
    ("number", "identity"), [(NODE_TWO, NODE_CLIENT), (NODE_THREE_API, Identity.ID_KUBE_APISERVER)]
)
def test_ipv6_no_number_leaves_this_node(six: Tunnel, number: int, identity: int) -> None:
    """A client of a node port here whose backend is behind the tunnel."""
    six.datapath.ipcache(node_two6, number)
    six.datapath.add_service(
        1, packets6.node_one.ip, 30080, 6, {101: (packets6.pod_away.ip, 80)}, flags=NODE_PORT
    )
    asked = frame(GATEWAY.mac, node_one.mac, node_two6, packets6.node_one.ip, tcp(40010, 30080))
    (wired,) = six.arrives(asked).wire
    assert Tunnelled.read(wired).identity == identity


def test_ipv6_pods_reach_nodes_masqueraded_beside_the_tunnel(six: Tunnel) -> None:
    """The network between nodes has no way back to a pod."""
    six.datapath.ipcache(node_two6, NODE_TWO)
    sent = packets6.from_pod(packets6.pod_one, node_two6, tcp(30000, 443))
    wired = six.datapath.run("to_netdev", sent, "net0")
    assert wired.action == PASS
    assert wired.packet[22:38] == packets6.node_one.address.packed
