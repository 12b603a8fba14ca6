# SPDX-License-Identifier: Apache-2.0
"""Services asked from outside whose backend is behind the tunnel, frame by frame on real devices."""

from __future__ import annotations

import pytest

from ciliumd.abi import DropReason, Identity
from datapath.node import NAT_PORTS
from datapath.rows import POD_ONE
from datapath.tunnel import (
    AWAY,
    LABELLED,
    MTU,
    Tunnel,
    Tunnelled,
    fill_cluster,
    inner,
    node_three,
    node_two,
    packet_of,
)
from datapath.wire import GATEWAY, NODE_PORT, asks, assert_quotes
from fixtures.packets import (
    ICMP,
    IP,
    UDP,
    Ether,
    assert_frame,
    from_pod,
    from_stack,
    node_one,
    on_wire,
    pod_away,
    pod_one,
    router,
    tcp,
    to_pod,
    udp,
    unreachable,
    world_one,
    world_two,
)
from reference.tunnel import NODE_CLIENT

pytestmark = pytest.mark.datapath

WEB, DNS, CLIENT = 30080, 30053, 40010
ETHERNET, IPV4, ICMP_HEADER, UDP_HEADER = 14, 20, 8, 8


@pytest.fixture
def exposed(tunnel: Tunnel) -> Tunnel:
    """80/TCP and 53/UDP of the pod on node two, as node ports of this node."""
    tunnel.datapath.add_service(1, node_one.ip, WEB, 6, {101: (pod_away.ip, 80)}, flags=NODE_PORT)
    tunnel.datapath.add_service(2, node_one.ip, DNS, 17, {102: (pod_away.ip, 53)}, flags=NODE_PORT)
    return tunnel


def forwarded(exposed: Tunnel, frame: bytes) -> Tunnelled:
    """A client's packet in the tunnel."""
    (wired,) = exposed.arrives(frame).wire
    return Tunnelled.read(wired)


def told(exposed: Tunnel, frame: bytes) -> bytes:
    """What the pod on node two sends to this node's router, as the client gets it."""
    outcome = exposed.tunnel_brings(node_two.ip, AWAY, frame)
    (wired,) = outcome.wire
    assert (outcome.host, outcome.pod) == ((), ())
    return wired


def seen_port(carried: Tunnelled) -> int:
    """The port the backend is asked from."""
    return int(Ether(carried.inner)[IP].payload.sport)


@pytest.mark.parametrize(
    ("client", "mac", "identity"),
    [
        (world_one.ip, GATEWAY.mac, Identity.ID_WORLD),
        (node_three.ip, node_three.mac, Identity.ID_KUBE_APISERVER),
        (node_two.ip, node_two.mac, Identity.ID_REMOTE_NODE),
    ],
)
def test_client_reaches_a_backend_behind_the_tunnel_and_is_answered(
    exposed: Tunnel, client: str, mac: str, identity: int
) -> None:
    """As itself to policy, from the router's address; the answer comes through the tunnel."""
    carried = forwarded(exposed, asks(client, tcp(CLIENT, WEB)))
    assert (carried.src, carried.dst, carried.identity) == (node_one.ip, node_two.ip, identity)
    expected = on_wire(router.mac, router.mac, router.ip, pod_away.ip, tcp(CLIENT, 80), ttl=63)
    assert_frame(expected, carried.inner)
    answer = told(exposed, inner(pod_away, router.ip, tcp(80, CLIENT, "SA")))
    assert_frame(on_wire(node_one.mac, mac, node_one.ip, client, tcp(WEB, CLIENT, "SA"), ttl=62), answer)


def test_node_that_asks_a_pod_here_is_answered_past_the_tunnel(exposed: Tunnel) -> None:
    """As it came: from the node port, which the tunnel does not know."""
    exposed.datapath.add_service(3, node_one.ip, 30081, 6, {103: (pod_one.ip, 80)}, flags=NODE_PORT)
    asked = exposed.arrives(on_wire(node_two.mac, node_one.mac, node_two.ip, node_one.ip, tcp(CLIENT, 30081)))
    assert_frame(to_pod(pod_one, node_two.ip, tcp(CLIENT, 80)), asked.pod[0])
    (answer,) = exposed.pod_sends(from_pod(pod_one, node_two.ip, tcp(80, CLIENT, "SA"))).wire
    expected = tcp(30081, CLIENT, "SA")
    assert_frame(on_wire(node_one.mac, node_two.mac, node_one.ip, node_two.ip, expected, ttl=63), answer)


@pytest.mark.parametrize(
    ("client", "identity"),
    [
        (node_two.ip, NODE_CLIENT),
        (node_three.ip, Identity.ID_KUBE_APISERVER),
        (world_one.ip, Identity.ID_WORLD),
    ],
)
def test_no_number_of_a_node_leaves_this_one(exposed: Tunnel, client: str, identity: int) -> None:
    """A client that is a node is told as one, and not as this node, whose address it has in the tunnel."""
    fill_cluster(exposed.datapath, LABELLED)
    assert forwarded(exposed, asks(client, tcp(CLIENT, WEB))).identity == identity


def test_network_that_only_this_node_numbers_is_the_world_elsewhere(exposed: Tunnel) -> None:
    """Identities of CIDR rules mean nothing to another node."""
    exposed.datapath.ipcache("203.0.113.0/24", 1 << 24)
    assert forwarded(exposed, asks(world_one.ip, udp(CLIENT, DNS))).identity == Identity.ID_WORLD


def test_node_and_clients_share_the_routers_ports(exposed: Tunnel) -> None:
    """The node's own connection keeps its answers, and the client gets another port."""
    own = exposed.host_sends(from_stack(router.ip, pod_away.ip, tcp(CLIENT, 80)))
    assert seen_port(Tunnelled.read(own.wire[0])) == CLIENT
    port = seen_port(forwarded(exposed, asks(world_one.ip, tcp(CLIENT, WEB))))
    assert port != CLIENT
    assert port in NAT_PORTS
    up = exposed.tunnel_brings(node_two.ip, AWAY, inner(pod_away, router.ip, tcp(80, CLIENT, "SA")))
    assert packet_of(up.host[0]) == packet_of(inner(pod_away, router.ip, tcp(80, CLIENT, "SA")))
    answer = told(exposed, inner(pod_away, router.ip, tcp(80, port, "SA")))
    assert (Ether(answer)[IP].dst, Ether(answer)[IP].payload.dport) == (world_one.ip, CLIENT)


def test_node_that_comes_second_gets_its_answers_too(exposed: Tunnel) -> None:
    """Its packet takes another port in the tunnel, and the answer is turned back for its socket."""
    forwarded(exposed, asks(world_two.ip, tcp(CLIENT, WEB)))
    own = exposed.host_sends(from_stack(router.ip, pod_away.ip, tcp(CLIENT, 80)))
    port = seen_port(Tunnelled.read(own.wire[0]))
    assert port != CLIENT
    up = exposed.tunnel_brings(node_two.ip, AWAY, inner(pod_away, router.ip, tcp(80, port, "SA")))
    assert packet_of(up.host[0]) == packet_of(inner(pod_away, router.ip, tcp(80, CLIENT, "SA")))


def test_too_big_for_the_tunnel_is_said_to_the_client(exposed: Tunnel) -> None:
    """By the address it asked, quoting what it sent."""
    big = asks(world_one.ip, udp(CLIENT, DNS, bytes(1472)), flags="DF")
    outcome = exposed.arrives(big, frames=1)
    assert outcome.reasons == [DropReason.DROP_FRAG_NOSUPPORT]
    (error,) = outcome.wire
    message = Ether(error)
    assert (message[IP].src, message[IP].dst) == (node_one.ip, world_one.ip)
    assert (message[ICMP].type, message[ICMP].code, message[ICMP].nexthopmtu) == (3, 4, MTU)
    quoted = error[ETHERNET + IPV4 + ICMP_HEADER :]
    assert quoted == big[ETHERNET : ETHERNET + len(quoted)]
    assert len(quoted) >= IPV4 + UDP_HEADER


def test_errors_pass_the_tunnel_both_ways(exposed: Tunnel) -> None:
    """The pod's refusal to the client, and what the network says about an answer to the pod."""
    carried = forwarded(exposed, asks(world_one.ip, udp(CLIENT, DNS)))
    refusal = told(exposed, inner(pod_away, router.ip, unreachable(carried.inner)))
    assert (Ether(refusal)[IP].src, Ether(refusal)[IP].dst) == (node_one.ip, world_one.ip)
    quoted = asks(world_one.ip, udp(CLIENT, DNS), ttl=63)
    assert_quotes(refusal, quoted)

    answer = told(exposed, inner(pod_away, router.ip, udp(53, CLIENT)))
    error = forwarded(exposed, asks("203.0.113.99", unreachable(answer, code=4, nexthopmtu=1300)))
    seen = Ether(error.inner)
    assert (error.dst, error.identity) == (node_two.ip, Identity.ID_WORLD)
    assert (seen[IP].src, seen[IP].dst, seen[ICMP].nexthopmtu) == (router.ip, pod_away.ip, 1300)
    sent = inner(pod_away, router.ip, udp(53, CLIENT), ttl=62)
    assert_quotes(error.inner, sent)


def test_pod_asks_a_node_port_and_its_backend_sees_the_pod(exposed: Tunnel) -> None:
    """Inside the cluster nothing is hidden: own address, own identity."""
    (wired,) = exposed.pod_sends(from_pod(pod_one, node_one.ip, udp(5000, DNS))).wire
    carried = Tunnelled.read(wired)
    assert carried.identity == POD_ONE.identity
    expected = on_wire(router.mac, router.mac, pod_one.ip, pod_away.ip, udp(5000, 53), ttl=63)
    assert_frame(expected, carried.inner)
    (answer,) = exposed.tunnel_brings(node_two.ip, AWAY, inner(pod_away, pod_one.ip, udp(53, 5000))).pod
    assert (Ether(answer)[IP].src, Ether(answer)[UDP].sport) == (node_one.ip, DNS)


def test_client_with_an_address_behind_the_tunnel_is_refused(exposed: Tunnel) -> None:
    """Pods of other nodes come through the tunnel, or as their node."""
    outcome = exposed.arrives(asks(pod_away.ip, udp(CLIENT, DNS)))
    assert (outcome.reasons, outcome.wire) == ([DropReason.DROP_INVALID_SIP], ())
    assert exposed.datapath.ct(None) == {}
