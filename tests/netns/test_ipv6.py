# SPDX-License-Identifier: Apache-2.0
"""Pods with both families: between pods and with their node, policy, restarts; IPv4 beside it as ever."""

import json
import signal
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from lab.manifests import cilium_policy, to_ports
from lab.node import Node
from lab.pod import Pod
from lab.traffic import Flood, Flow
from lab.waiting import eventually
from lab.world import World

pytestmark = pytest.mark.netns

ROUTER: Final = "fd00:11::1"
CIDR: Final = "fd00:11::/112"
SERVER: Final = {"matchLabels": {"app": "server"}}
CLIENT: Final = {"matchLabels": {"app": "client"}}
OWN: Final = "2001:db8:101::2"
RESTARTS, BETWEEN, RATE = 4, 500, 1000


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[Node]:
    """A node whose pods have both families."""
    with Node(world, name="six", options={"enable-ipv6": "true", "pod-cidr-ipv6": CIDR}) as node:
        yield node.start()


@pytest.fixture(scope="module")
def server(node: Node) -> Pod:
    """A pod that answers on 80 and 81, both families."""
    return node.pod("server", {"app": "server"}).serve(tcp=(80, 81), udp=(80,), six=True)


@pytest.fixture(scope="module")
def client(node: Node) -> Pod:
    """A pod that asks."""
    return node.pod("client", {"app": "client"}).serve(tcp=(80,), six=True)


@pytest.fixture(scope="module")
def stranger(node: Node) -> Pod:
    """A pod that no policy names."""
    return node.pod("stranger", {"app": "stranger"})


def test_pods_reach_each_other_over_both_families(client: Pod, server: Pod) -> None:
    """With their own addresses, both ways round."""
    for there, back in ((server.address6, client.address6), (server.address, client.address)):
        tcp = client.tcp(there, 80)
        assert tcp["outcome"] == "answered", tcp
        assert tcp["answer"]["server"] == "server"
        assert tcp["answer"]["client"][0].endswith(back)
        udp = client.udp(there, 80, payload="hello")
        assert udp["outcome"] == "answered", udp
        assert server.tcp(back, 80)["outcome"] == "answered"
        assert client.ping(there, count=3)["answered"] == 3


def test_refusals_and_large_packets_find_their_way(client: Pod, server: Pod) -> None:
    """RST, ICMPv6 port unreachable, segments that the kernel merges, and fragments."""
    assert client.tcp(server.address6, 4444)["outcome"] == "refused"
    assert client.udp(server.address6, 4444)["outcome"] == "refused"
    kept = client.outside.call("tcp_open", address=server.address6, port=80)
    page = "x" * 200_000
    said = client.outside.call("tcp_say", handle=kept["handle"], text=page, timeout=5.0)
    assert (said["outcome"], said["echo"] == page) == ("answered", True)
    reply = client.udp(server.address6, 80, payload="f" * 4000)
    assert reply["outcome"] == "answered", reply
    assert len(reply["answer"]["payload"]) == 4000
    assert client.ping(server.address6, size=1452, dont_fragment=True)["outcome"] == "answered"
    assert client.ping(server.address6, size=1453, dont_fragment=True)["outcome"] == "too-big"


def test_pod_and_node_reach_each_other(node: Node, client: Pod, server: Pod) -> None:
    """The node by its router address; and from that, its pods."""
    node.outside.call("serve_tcp", name="node", port=7000, address="::")
    tcp = client.tcp(ROUTER, 7000)
    assert tcp["outcome"] == "answered", tcp
    assert tcp["answer"]["client"][0] == client.address6
    assert client.ping(ROUTER, count=2)["answered"] == 2
    back = node.outside.call("tcp_connect", address=server.address6, port=80)
    assert back["outcome"] == "answered", back
    assert back["answer"]["client"][0] == ROUTER
    assert node.outside.call("ping", address=server.address6, count=2)["answered"] == 2


def test_pod_sees_the_documented_network(node: Node, client: Pod) -> None:
    """A /128 usable at once, a default route by the router, whose MAC is the pod's lxc device's."""
    client.ping(ROUTER)
    (device,) = [link for link in client.netns.ip_json("address", "show", "dev", "eth0") if link]
    six = [one for one in device["addr_info"] if one["family"] == "inet6"]
    assert [(one["local"], one["prefixlen"]) for one in six] == [(client.address6, 128)]
    assert not any(one.get("tentative") or one.get("dadfailed") for one in six)
    routes = {route["dst"]: route for route in client.netns.ip_json("-6", "route", "show")}
    assert (routes["default"]["gateway"], routes["default"]["dev"]) == (ROUTER, "eth0")
    lxc = node.netns.links()[client.endpoint["status"]["networking"]["interface-name"]]
    neighbours = {one["dst"]: one.get("lladdr") for one in client.netns.ip_json("-6", "neighbour", "show")}
    assert neighbours == {ROUTER: lxc["address"]}
    assert client.netns.sysctl("net/ipv6/conf/eth0/accept_ra") == "0"


def test_policy_allows_and_denies(node: Node, client: Pod, server: Pod, stranger: Pod) -> None:
    """By label and port, whichever family carries it; without the policy all again."""
    policy = cilium_policy(
        "server",
        {
            "endpointSelector": SERVER,
            "ingress": [
                {"fromEndpoints": [CLIENT], "toPorts": to_ports((80, "TCP"))},
                {
                    "fromEndpoints": [CLIENT],
                    "icmps": [{"fields": [{"family": "IPv6", "type": "EchoRequest"}]}],
                },
            ],
        },
    )
    assert stranger.reaches(server.address6, 80)
    node.apply_policy("server", policy)
    try:
        for address in (server.address6, server.address):
            assert client.reaches(address, 80)
            assert not client.reaches(address, 81)
            assert not stranger.reaches(address, 80)
        assert client.ping(server.address6)["answered"] == 1
        assert client.ping(server.address, timeout=0.3)["answered"] == 0
        assert stranger.ping(server.address6, timeout=0.3)["answered"] == 0
    finally:
        node.delete_policy("server")
    assert stranger.reaches(server.address6, 80)


@pytest.fixture(scope="module")
def far(world: World, node: Node) -> tuple[str, str, str]:
    """Three addresses in the world, which knows the way to the node's pods, too."""
    addresses = ("2001:db8:77::1", "2001:db8:78::1", "2001:db9::1")
    gateway, own = "2001:db8:101::1", OWN
    (way,) = world.netns.ip_json("route", "get", node.address)
    uplink = way["dev"]
    world.netns.sysctl("net/ipv6/conf/all/forwarding", "1")
    world.netns.ip("address", "add", f"{gateway}/64", "dev", uplink, "nodad")
    node.netns.ip("address", "add", f"{own}/64", "dev", "eth0", "nodad")
    node.netns.ip("route", "add", "default", "via", gateway, "dev", "eth0")
    for address in addresses:
        world.netns.ip("address", "add", f"{address}/128", "dev", "lo", "nodad")
    world.netns.ip("route", "add", CIDR, "via", own, "dev", uplink)
    world.actor.call("serve_tcp", name="far", port=8006, address="::")
    return addresses


def test_pod_and_world_reach_each_other(world: World, client: Pod, far: tuple[str, str, str]) -> None:
    """A pod leaves under the node's address; who knows the way to it is answered under its own."""
    # The agent learns of the address that its device was given after its start.
    eventually(
        lambda: client.tcp(far[0], 8006).get("answer", {}).get("client", [""])[0] == OWN,
        "the pod leaves under the node's address",
    )
    reply = client.tcp(far[0], 8006)
    assert reply["outcome"] == "answered", reply
    assert reply["answer"]["client"][0] == OWN
    assert client.udp(far[0], 4444)["outcome"] == "refused"
    assert client.ping(far[0], count=3)["answered"] == 3
    back = world.actor.call("tcp_connect", address=client.address6, port=80)
    assert back["outcome"] == "answered", back


def test_policy_of_networks(node: Node, client: Pod, far: tuple[str, str, str]) -> None:
    """An IPv6 network in a rule, but for what it excepts; the rest of the world is closed."""
    rule = {"toCIDRSet": [{"cidr": "2001:db8::/32", "except": ["2001:db8:78::/48"]}]}
    assert all(client.reaches(address, 8006) for address in far)
    node.apply_policy("networks", cilium_policy("networks", {"endpointSelector": CLIENT, "egress": [rule]}))
    try:
        assert [client.reaches(address, 8006) for address in far] == [True, False, False]
    finally:
        node.delete_policy("networks")
    assert all(client.reaches(address, 8006) for address in far)


def test_pod_cannot_send_from_another_address(node: Node, client: Pod, stranger: Pod) -> None:
    """What a pod sends under a foreign address goes nowhere."""
    foreign = stranger.address6
    client.netns.ip("address", "add", f"{foreign}/128", "dev", "lo", "nodad")
    node.outside.call("serve_udp", name="node", port=7001, address="::")
    try:
        spoofed = client.udp(ROUTER, 7001, source=foreign, timeout=0.4)
    finally:
        client.netns.ip("address", "del", f"{foreign}/128", "dev", "lo")
    assert spoofed["outcome"] == "timeout"
    assert client.udp(ROUTER, 7001)["outcome"] == "answered"


def test_restarts_under_load_lose_nothing(
    node: Node, client: Pod, server: Pod, stranger: Pod, record_property: Callable[[str, object], None]
) -> None:
    """Half of them by SIGKILL: both families' packets arrive, those that are denied do not."""
    rule = {
        "fromEndpoints": [CLIENT],
        "toPorts": [{"ports": [{"port": str(port), "protocol": "UDP"} for port in (9000, 9001)]}],
    }
    node.apply_policy("server", cilium_policy("server", {"endpointSelector": SERVER, "ingress": [rule]}))
    held = {pod.key: (pod.address, pod.address6) for pod in (client, server, stranger)}
    may = [
        Flow("IPv6", server.address6, 9000, 9000, rate=RATE),
        Flow("IPv4", server.address, 9001, 9001, rate=RATE),
        Flow("IPv6, denied port", server.address6, 9002, 9002, rate=RATE),
    ]
    strange = [Flow("IPv6, stranger", server.address6, 9003, 9003, rate=RATE)]
    own = [Flow("IPv6, node", server.address6, 9005, 9005, rate=RATE)]
    try:
        with (
            Flood(client.outside, server.outside, may).start() as flood,
            Flood(stranger.outside, server.outside, strange).start() as kept_out,
            Flood(node.outside, server.outside, own).start() as from_node,
        ):
            flood.wait_sent(BETWEEN)
            for number in range(RESTARTS):
                node.agent.restart((signal.SIGTERM, signal.SIGKILL)[number % 2])
                flood.wait_sent(BETWEEN)
            fates = flood.stop() | kept_out.stop() | from_node.stop()
        told = {name: str(fate) for name, fate in fates.items()}
        record_property("figure", f"restarts {RESTARTS}; " + "; ".join(told.values()))
        record_property("data", json.dumps({"case": "F1", "what": "IPv6", "restarts": RESTARTS, **told}))
        assert fates["IPv6"].lost == fates["IPv4"].lost == fates["IPv6, node"].lost == 0, told
        assert not fates["IPv6, node"].errors, told
        assert fates["IPv6, denied port"].received == fates["IPv6, stranger"].received == 0, told
        for pod in (client, server, stranger):
            node.wait_endpoint(pod)
            assert (pod.address, pod.address6) == held[pod.key]
        guest = node.pod("guest", {"app": "guest"})
        assert guest.address6 not in {six for _, six in held.values()}
        node.remove_pod(guest)
    finally:
        node.delete_policy("server")


def test_traffic_that_nobody_answers_outlives_the_neighbour_entry(client: Pod, server: Pod) -> None:
    """The pod's stack asks its gateway again every few seconds, and is answered: no packet waits in vain."""
    knobs = {"base_reachable_time_ms": "1000", "delay_first_probe_time": "1"}
    before = {knob: client.netns.sysctl(f"net/ipv6/neigh/eth0/{knob}") for knob in knobs}
    client.ping(ROUTER)
    try:
        for knob, value in knobs.items():
            client.netns.sysctl(f"net/ipv6/neigh/eth0/{knob}", value)
        one_way = [Flow("IPv6", server.address6, 9004, 9004, rate=RATE)]
        with Flood(client.outside, server.outside, one_way).start(limit=10 * RATE) as flood:
            flood.wait()
            (fate,) = flood.stop().values()
    finally:
        for knob, value in before.items():
            client.netns.sysctl(f"net/ipv6/neigh/eth0/{knob}", value)
    assert fate.lost == 0, str(fate)


def test_nothing_of_a_removed_pod_stays(node: Node, client: Pod) -> None:
    """Rows of both its addresses are gone, and both may be given again."""

    def rows() -> str:
        names = ("cilium_lxc_v1", "cilium_ipcache_v1", "cilium_endpoints_v1")
        return str([node.agent.get(f"map/{name}") for name in names])

    guest = node.pod("guest", {"app": "guest"}).serve(tcp=(80,), six=True)
    four, six = guest.address, guest.address6
    assert client.reaches(six, 80)
    assert f"'{six}'" in rows()
    node.remove_pod(guest)
    eventually(lambda: f"'{six}'" not in rows() and f"'{four}'" not in rows(), "the guest's rows are gone")
    again = node.pod("again", {"app": "guest"}, ip=four, ip6=six)
    assert (again.address, again.address6) == (four, six)
    node.remove_pod(again)


def test_monitor_names_both_families(node: Node, client: Pod, server: Pod) -> None:
    """Addresses, and types of ICMPv6 by their names."""
    output = node.directory / "monitor.txt"
    watching = node.agent.monitor(output)
    try:

        def seen() -> bool:
            client.ping(server.address6)
            return f"{client.address6} -> {server.address6} EchoRequest" in output.read_text()

        eventually(seen, "an echo of IPv6 in the monitor's output", seconds=20.0, every=0.5)
    finally:
        watching.end()
