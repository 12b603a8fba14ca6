# SPDX-License-Identifier: Apache-2.0
"""A node without IPv4, and its pods: pods, services, the world, policy, health, a restart, what is shown."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from lab import kinds, manifests
from lab.actor import Actor
from lab.cni import runtime_of
from lab.manifests import cilium_policy, to_ports
from lab.netns import Namespace
from lab.node import Node
from lab.pod import Pod
from lab.traffic import Flood, Flow
from lab.waiting import eventually
from lab.world import World
from netns.cni_state import known

pytestmark = pytest.mark.netns

CIDR: Final = "fd00:13::/112"
ROUTER, VIP, BALANCER = "fd00:13::1", "fd00:96::20", "2001:db8:42::8"
NODE_PORT = 30053
CILIUM_HEALTH = "ciliumd.cli.health"
PORTS = [("TCP", 53, 8080), ("UDP", 53, 5353)]
SERVER: Final = {"matchLabels": {"app": "server"}}
CLIENT: Final = {"matchLabels": {"app": "client"}}
BETWEEN, RATE = 500, 1000
HEALTH = {"enable-health-checking": "true", "enable-endpoint-health-checking": "true"}


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[Node]:
    """Without IPv4 but the loopback device's."""
    with Node(world, name="only-six", pod_cidr=CIDR, six=True, options=HEALTH) as node:
        runtime_of(node)
        node.start()
        # Answers to pods' own addresses: the world knows a way to services and pods.
        world.add_route(f"{BALANCER}/128", node.address)
        yield node


@pytest.fixture(scope="module")
def server(node: Node) -> Pod:
    """A pod that answers, behind a service of every kind."""
    server = node.pod("server", {"app": "server"}).serve(tcp=(80, 81, 8080), udp=(80, 5353), six=True)
    service = kinds.service("all", VIP, ports=PORTS, kind="LoadBalancer", balancer=[BALANCER])
    for port in service["spec"]["ports"]:
        port["nodePort"] = NODE_PORT
    found = [kinds.endpoint(server.address6, node.name)]
    node.apply("all", service, kinds.endpoints("all", *found, ports=PORTS))
    for address in (VIP, BALANCER):
        node.wait_service(f"[{address}]:53", 1)
    return server


@pytest.fixture(scope="module")
def client(node: Node) -> Pod:
    """A pod that asks."""
    return node.pod("client", {"app": "client"}).serve(tcp=(80,), six=True)


@pytest.fixture(scope="module")
def stranger(node: Node) -> Pod:
    """A pod that no policy names."""
    return node.pod("stranger", {"app": "stranger"})


def test_pods_have_ipv6_alone(node: Node, client: Pod) -> None:
    """One address, one default route, by the router; no IPv4 anywhere but on the loopback device."""
    assert client.address == ""
    (device,) = [link for link in client.netns.ip_json("address", "show", "dev", "eth0") if link]
    assert [(one["local"], one["prefixlen"]) for one in device["addr_info"]] == [(client.address6, 128)]
    assert client.netns.ip_json("-4", "route", "show") == []
    routes = {route["dst"]: route for route in client.netns.ip_json("-6", "route", "show")}
    assert (routes["default"]["gateway"], routes["default"]["dev"]) == (ROUTER, "eth0")
    (host,) = [link for link in node.netns.ip_json("address", "show", "dev", "cilium_host") if link]
    assert [one["local"] for one in host["addr_info"]] == [ROUTER]
    assert node.netns.ip_json("-4", "route", "show") == []


def test_a_runtime_is_answered_with_one_address(node: Node, server: Pod) -> None:
    """By the real executable; what it says is there, is checked, and goes."""
    runtime = runtime_of(node)
    with Namespace("pod") as netns:
        sandbox = known(node, runtime, netns)
        result = runtime.add(sandbox)
        (address,) = result["ips"]
        assert (address["address"].endswith("/128"), address["gateway"]) == (True, ROUTER)
        assert [route["dst"] for route in result["routes"]] == [f"{ROUTER}/128", "::/0"]
        (device,) = [link for link in netns.ip_json("address", "show", "dev", "eth0") if link]
        shown = [f"{one['local']}/{one['prefixlen']}" for one in device["addr_info"]]
        assert shown == [address["address"]]
        runtime.check(sandbox)
        with Actor(netns.path, who="made by a runtime") as actor:
            asked = actor.call("tcp_connect", address=server.address6, port=80)
            assert asked["outcome"] == "answered", asked
        runtime.delete(sandbox)
        eventually(lambda: "eth0" not in netns.links(), "its device is gone")


def test_pods_and_their_node_reach_each_other(node: Node, client: Pod, server: Pod) -> None:
    """Both ways round, under their own addresses."""
    tcp, udp = client.tcp(server.address6, 80), client.udp(server.address6, 80)
    assert tcp["outcome"] == udp["outcome"] == "answered", (tcp, udp)
    assert tcp["answer"]["client"][0] == client.address6
    assert server.tcp(client.address6, 80)["outcome"] == "answered"
    assert client.ping(server.address6, count=3)["answered"] == 3
    assert client.tcp(server.address6, 4444)["outcome"] == "refused"
    node.outside.call("serve_tcp", name="node", port=7000, address="::")
    for address in (ROUTER, node.address):
        there = client.tcp(address, 7000)
        assert there["outcome"] == "answered", there
        assert there["answer"]["client"][0] == client.address6
    back = node.outside.call("tcp_connect", address=server.address6, port=80)
    assert back["outcome"] == "answered", back
    assert back["answer"]["client"][0] == ROUTER


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("side", ["inside", "outside"])
def test_services_are_reached_by_pods_and_the_node(node: Node, client: Pod, side: str) -> None:
    """Cluster address, load balancer, node port; by socket and packet by packet."""
    for address, port in ((VIP, 53), (BALANCER, 53), (node.address, NODE_PORT)):
        actors = [getattr(client, side), node.inside]
        for actor in actors:
            tcp = actor.call("tcp_connect", address=address, port=port)
            udp = actor.call("udp_exchange", address=address, port=port, payload="x")
            assert tcp["outcome"] == udp["outcome"] == "answered", (address, port, tcp, udp)
            assert tcp["answer"]["server"] == "server"


@pytest.mark.usefixtures("server")
def test_services_are_reached_from_outside(world: World, node: Node) -> None:
    """The backend here sees who asks."""
    for address, port in ((BALANCER, 53), (node.address, NODE_PORT)):
        tcp = world.actor.call("tcp_connect", address=address, port=port)
        assert tcp["outcome"] == "answered", (address, tcp)
        assert tcp["peer"][:2] == [address, port]
        assert tcp["answer"]["client"][0] not in {ROUTER, node.address}


def test_services_of_ipv4_are_not_served(node: Node, client: Pod) -> None:
    """As those of IPv6 are not where pods have IPv4 alone."""
    node.apply("four", manifests.service("four", "10.96.0.10", {"app": "server"}, ports=PORTS))
    node.apply("six", manifests.service("six", "fd00:96::30", {"app": "server"}, ports=PORTS))
    node.wait_service("[fd00:96::30]:53", 1)
    assert not [one for one in node.agent.get("service") if "." in one["spec"]["frontend-address"]["ip"]]
    assert client.inside.call("tcp_connect", address="10.96.0.10", port=53)["outcome"] != "answered"


def test_pods_leave_under_their_nodes_address(world: World, node: Node, client: Pod) -> None:
    """The world knows no way to them."""
    world.actor.call("serve_tcp", name="far", port=8006, address="::")
    reply = client.tcp(world.far6, 8006)
    assert reply["outcome"] == "answered", reply
    assert reply["answer"]["client"][0] == node.address
    assert client.ping(world.far6, count=3)["answered"] == 3


def test_policy_allows_and_denies(world: World, node: Node, client: Pod, server: Pod, stranger: Pod) -> None:
    """By label and port, and by network; the node itself is not kept from its pods."""
    rules = [{"fromEndpoints": [CLIENT], "toPorts": to_ports((80, "TCP"))}]
    assert stranger.reaches(server.address6, 80)
    node.apply_policy("server", cilium_policy("server", {"endpointSelector": SERVER, "ingress": rules}))
    egress = [{"toCIDR": [f"{world.far6}/128"]}]
    node.apply_policy("stranger", cilium_policy("stranger", {"endpointSelector": {}, "egress": egress}))
    try:
        assert not stranger.reaches(server.address6, 80)
        assert stranger.reaches(world.far6, 8006)
    finally:
        node.delete_policy("stranger")
    try:
        assert client.reaches(server.address6, 80)
        assert not client.reaches(server.address6, 81)
        assert not stranger.reaches(server.address6, 80)
        assert node.outside.call("tcp_connect", address=server.address6, port=81)["outcome"] == "answered"
    finally:
        node.delete_policy("server")
    assert stranger.reaches(server.address6, 80)


def test_health_is_asked_over_ipv6(node: Node) -> None:
    """The node at its own address, its health endpoint at that of a pod."""

    def healthy() -> bool:
        answer = json.loads(node.agent.cli("status", "--probe", "-o", "json", program=CILIUM_HEALTH).stdout)
        (found,) = answer["nodes"]
        host, endpoint = found["host"]["primary-address"], found["health-endpoint"]["primary-address"]
        assert (host["ip"], endpoint["ip"].startswith("fd00:13::")) == (node.address, True)
        return not any(one[kind]["status"] for one in (host, endpoint) for kind in ("icmp", "http"))

    eventually(healthy, "the node and its health endpoint answer")


def test_what_is_shown_knows_no_ipv4(node: Node, client: Pod) -> None:
    """Status, nodes, endpoints and metrics."""
    status = node.agent.cilium("status")
    (ipam,) = [line for line in status.splitlines() if line.startswith("IPAM:")]
    assert "IPv6: " in ipam
    assert "IPv4" not in ipam
    (masquerading,) = [line for line in status.splitlines() if line.startswith("Masquerading:")]
    assert "[IPv4: Disabled, IPv6: Enabled]" in masquerading
    (own,) = node.agent.get("healthz")["cluster"]["nodes"]
    assert own["primary-address"]["ipv4"] == {"enabled": False}
    assert own["primary-address"]["ipv6"]["ip"] == node.address
    assert own["primary-address"]["ipv6"]["alloc-range"] == CIDR
    assert client.address6 in node.agent.cilium("endpoint", "list")
    used = [row for row in node.agent.cilium_json("metrics", "list") if row["name"].endswith("ip_addresses")]
    assert {row["labels"]["family"] for row in used} == {"ipv6"}
    written = Path(node.agent.options["state-dir"]) / "agent-runtime-config.json"
    config = json.loads(written.read_text())
    assert (config["EnableIPv4"], config["EnableIPv6"]) == (False, True)


def test_restarts_under_load_lose_nothing(node: Node, client: Pod, server: Pod, stranger: Pod) -> None:
    """One by SIGTERM and one by SIGKILL; what is denied does not arrive."""
    rule = {"fromEndpoints": [CLIENT], "toPorts": to_ports((9000, "UDP"))}
    node.apply_policy("server", cilium_policy("server", {"endpointSelector": SERVER, "ingress": [rule]}))
    held = [pod.address6 for pod in (client, server)]
    may = [Flow("may", server.address6, 9000, 9000, rate=RATE)]
    may_not = [Flow("may not", server.address6, 9001, 9001, rate=RATE)]
    try:
        with (
            Flood(client.outside, server.outside, may).start() as flood,
            Flood(stranger.outside, server.outside, may_not).start() as kept_out,
        ):
            for number in (signal.SIGTERM, signal.SIGKILL):
                flood.wait_sent(BETWEEN)
                node.agent.restart(number)
            flood.wait_sent(BETWEEN)
            fates = flood.stop() | kept_out.stop()
    finally:
        node.delete_policy("server")
    assert fates["may"].lost == 0, str(fates["may"])
    assert fates["may not"].received == 0, str(fates["may not"])
    for pod in (client, server):
        node.wait_endpoint(pod)
    assert [pod.address6 for pod in (client, server)] == held
