# SPDX-License-Identifier: Apache-2.0
"""
Services of IPv6 at addresses outside the cluster: the world, two nodes and their pods, through the tunnel.

``inside`` and ``outside`` of a pod are translated by socket and per packet (see ``lab.pod``).
"""

from collections.abc import Iterator
from typing import Any

import pytest

from lab import kinds
from lab.cluster import Cluster
from lab.pod import Pod
from lab.waiting import eventually

pytestmark = pytest.mark.netns

BALANCER, CLUSTER_IP, FAR = "2001:db8:42::8", "fd00:96::20", "2001:db8:77::1"
NODE_PORT = 30053
PORTS = [("TCP", 53, 8080), ("UDP", 53, 5353)]
REFUSED_WITHIN = 1.0


def own(number: int) -> str:
    """The address of a node in the network."""
    return f"2001:db8:10{number}::2"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes whose pods have both families, as the nodes have themselves; nobody forwards for anybody."""
    with Cluster(ipv6=True) as cluster:
        world = cluster.world.netns
        world.sysctl("net/ipv6/conf/all/forwarding", "1")
        world.ip("address", "add", f"{FAR}/128", "dev", "lo", "nodad")
        for number, node in enumerate(cluster.nodes, 1):
            gateway = f"2001:db8:10{number}::1"
            world.ip("address", "add", f"{gateway}/64", "dev", f"node{number}", "nodad")
            node.netns.ip("address", "add", f"{own(number)}/64", "dev", "eth0", "nodad")
            node.netns.ip("route", "add", "default", "via", gateway, "dev", "eth0")
            assert node.netns.sysctl("net/ipv6/conf/all/forwarding") == "0"
        yield cluster.start()


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Pod:
    """Asks from the first node."""
    return cluster.pod(cluster.nodes[0], "client", {"app": "client"})


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Pod:
    """Answers on the second node."""
    made = cluster.pod(cluster.nodes[1], "server", {"app": "server"})
    return made.serve(tcp=(8080,), udp=(5353,), six=True)


def serve(cluster: Cluster, *addresses: str, **spec: Any) -> None:
    """A load balancer with a node port whose endpoints are at *addresses*, on the second node."""
    service = kinds.service(
        "outside", CLUSTER_IP, ports=PORTS, kind="LoadBalancer", balancer=[BALANCER], **spec
    )
    for port in service["spec"]["ports"]:
        port["nodePort"] = NODE_PORT
    found = [kinds.endpoint(address, "node2") for address in addresses]
    cluster.apply("outside", service, kinds.endpoints("outside", *found, ports=PORTS))
    for number, node in enumerate(cluster.nodes, 1):
        local = spec.get("externalTrafficPolicy") == "Local" and number == 1
        node.wait_service(f"[{CLUSTER_IP}]:53", len(addresses))
        node.wait_service(f"[{BALANCER}]:53", 0 if local else len(addresses))


def world_asks(cluster: Cluster, address: str, port: int = 53, **options: Any) -> dict[str, Any]:
    """Somebody out there connects."""
    return dict(cluster.world.actor.call("tcp_connect", address=address, port=port, **options))


def by_way_of(cluster: Cluster, number: int) -> None:
    """The world sends what is for the balancer to a node."""
    cluster.world.add_route(f"{BALANCER}/128", own(number))


def test_balancer_and_node_port_reach_a_backend_on_either_node(
    cluster: Cluster, client: Pod, server: Pod
) -> None:
    """The second node shows it the client, the first one itself; pods and the node are answered, too."""
    serve(cluster, server.address6)
    seen = []
    for number in (1, 2):
        by_way_of(cluster, number)
        for address, port in ((BALANCER, 53), (own(number), NODE_PORT)):
            tcp = world_asks(cluster, address, port)
            udp = cluster.world.actor.call("udp_exchange", address=address, port=port, payload="f" * 1200)
            assert [tcp["outcome"], udp["outcome"]] == ["answered"] * 2, (number, tcp, udp)
            assert (tcp["peer"][:2], udp["sender"][:2]) == ([address, port], [address, port])
            seen.append(tcp["answer"]["client"][0])
    assert seen[:2] == [cluster.router6(cluster.nodes[0])] * 2
    assert all(one.startswith("2001:db8:10") or one == FAR for one in seen[2:])
    for person in (client.inside, client.outside, cluster.nodes[0].inside):
        for address, port in ((BALANCER, 53), (own(1), NODE_PORT), (CLUSTER_IP, 53)):
            reply = person.call("tcp_connect", address=address, port=port)
            assert reply["outcome"] == "answered", (person.who, address, reply)
            assert (reply["answer"]["server"], reply["peer"][:2]) == ("server", [address, port])


def test_much_data_passes(cluster: Cluster, server: Pod) -> None:
    """Segments that are merged before the tunnel, and what does not fit it."""
    serve(cluster, server.address6)
    by_way_of(cluster, 1)
    kept = cluster.world.actor.call("tcp_open", address=BALANCER, port=53)
    page = "x" * 200_000
    said = cluster.world.actor.call("tcp_say", handle=kept["handle"], text=page, timeout=5.0)
    assert (said["outcome"], said.get("echo") == page) == ("answered", True)
    reply = cluster.world.actor.call("udp_exchange", address=BALANCER, port=53, payload="f" * 4000)
    assert reply["outcome"] == "answered", reply


def test_backend_beyond_the_cluster_is_reached_by_route(cluster: Cluster) -> None:
    """Under the node's own address."""
    cluster.world.actor.call("serve_tcp", name="far", port=8080, address=FAR)
    serve(cluster, FAR)
    by_way_of(cluster, 1)
    # There was one backend before, too: its number does not tell which it is.
    reply = eventually(
        lambda: (said := world_asks(cluster, BALANCER)).get("answer", {}).get("server") == "far" and said,
        "the backend beyond the cluster answers",
    )
    assert reply["answer"]["client"][0] == own(1)


def test_without_endpoints_the_world_is_refused_at_once(cluster: Cluster) -> None:
    """
    TCP and UDP, by both kinds of address; ports that nobody serves are the node's own to refuse.

    Here, where the world is on the same machine, an ICMPv6 error is there before connect(2) has let go of its
    socket, and counts when the SYN is sent again: the time of TCP's is the kernel's.
    """
    serve(cluster)
    by_way_of(cluster, 1)
    for address, port in ((BALANCER, 53), (own(1), NODE_PORT)):
        tcp = world_asks(cluster, address, port, timeout=5.0)
        udp = cluster.world.actor.call("udp_exchange", address=address, port=port, timeout=5.0)
        assert [tcp["outcome"], udp["outcome"]] == ["refused"] * 2, (tcp, udp)
        assert udp["seconds"] < REFUSED_WITHIN
    assert world_asks(cluster, own(1), 4444)["outcome"] == "refused"


def test_external_traffic_policy_local(cluster: Cluster, client: Pod, server: Pod) -> None:
    """The node without a backend is silent for the world, the other shows it the client; pods reach all."""
    serve(cluster, server.address6, externalTrafficPolicy="Local")
    by_way_of(cluster, 1)
    eventually(
        lambda: world_asks(cluster, BALANCER, timeout=0.3)["outcome"] == "timeout", "nobody is on the first"
    )
    by_way_of(cluster, 2)
    seen = world_asks(cluster, BALANCER)
    assert seen["outcome"] == "answered", seen
    assert seen["answer"]["client"][0].startswith("2001:db8:")
    for person in (client.inside, client.outside, cluster.nodes[0].inside):
        assert person.call("tcp_connect", address=BALANCER, port=53)["outcome"] == "answered", person.who


def test_source_ranges(cluster: Cluster, client: Pod, server: Pod) -> None:
    """Who is in none of them is not answered at the balancer's address, and at the others as ever."""
    by_way_of(cluster, 1)
    serve(cluster, server.address6, loadBalancerSourceRanges=["2001:db8:99::/48"])
    eventually(
        lambda: world_asks(cluster, BALANCER, timeout=0.3)["outcome"] == "timeout", "the world is kept out"
    )
    assert client.outside.call("tcp_connect", address=BALANCER, port=53, timeout=0.3)["outcome"] == "timeout"
    assert world_asks(cluster, own(1), NODE_PORT)["outcome"] == "answered"
    serve(cluster, server.address6, loadBalancerSourceRanges=["2001:db8::/32", f"{client.address6}/128"])
    eventually(lambda: world_asks(cluster, BALANCER)["outcome"] == "answered", "the world is let in")
    assert client.outside.call("tcp_connect", address=BALANCER, port=53)["outcome"] == "answered"
