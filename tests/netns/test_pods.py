# SPDX-License-Identifier: Apache-2.0
"""Pods on one node reach each other and their node, and nothing of a pod stays when it goes."""

import pytest

from lab.node import Node
from lab.pod import Pod
from lab.waiting import eventually

pytestmark = pytest.mark.netns

PAGE = "x" * 200_000


@pytest.fixture(scope="module")
def server(node: Node) -> Pod:
    """A pod that answers on 80/TCP and 80/UDP."""
    return node.pod("server", {"app": "server"}).serve(tcp=(80,), udp=(80,))


@pytest.fixture(scope="module")
def client(node: Node) -> Pod:
    """A pod that asks."""
    return node.pod("client", {"app": "client"}).serve(tcp=(80,))


@pytest.fixture(scope="module")
def router(node: Node) -> str:
    """Address of cilium_host, the pods' gateway."""
    return node.pod_cidr.replace(".0/24", ".1")


def test_pods_reach_each_other_by_tcp(client: Pod, server: Pod) -> None:
    """A connection arrives with the client's own address, both ways round."""
    there = client.tcp(server.address, 80)
    back = server.tcp(client.address, 80)

    assert there["outcome"] == "answered", there
    assert there["answer"]["server"] == "server"
    assert there["answer"]["client"][0] == client.address
    assert back["outcome"] == "answered", back
    assert back["answer"]["client"][0] == server.address


def test_pods_reach_each_other_by_udp(client: Pod, server: Pod) -> None:
    """A datagram is answered by the pod it was sent to."""
    reply = client.udp(server.address, 80, payload="hello")

    assert reply["outcome"] == "answered", reply
    assert reply["answer"]["client"][0] == client.address
    assert reply["answer"]["payload"] == "hello"
    assert reply["sender"] == [server.address, 80]


def test_pods_ping_each_other(client: Pod, server: Pod) -> None:
    """Echo requests come back, both ways round."""
    assert client.ping(server.address, count=3)["answered"] == 3
    assert server.ping(client.address, count=3)["answered"] == 3


def test_closed_port_of_a_pod_refuses(client: Pod, server: Pod) -> None:
    """RST and ICMP port unreachable find their way back."""
    assert client.tcp(server.address, 4444)["outcome"] == "refused"
    assert client.udp(server.address, 4444)["outcome"] == "refused"


def test_much_data_arrives_whole(client: Pod, server: Pod) -> None:
    """Segments the kernel merges and cuts on the way arrive as they were sent."""
    kept = client.outside.call("tcp_open", address=server.address, port=80)
    said = client.outside.call("tcp_say", handle=kept["handle"], text=PAGE, timeout=5.0)
    client.outside.call("tcp_stop", handle=kept["handle"])

    assert said["outcome"] == "answered"
    assert said["echo"] == PAGE


def test_pod_reaches_its_node(node: Node, client: Pod, router: str) -> None:
    """The node's addresses answer, that of cilium_host and that of its uplink."""
    node.outside.call("serve_tcp", name="node", port=7000)
    for address in (router, node.address):
        reply = client.tcp(address, 7000)

        assert reply["outcome"] == "answered", (address, reply)
        assert reply["answer"]["client"][0] == client.address
        assert client.ping(address)["answered"] == 1


def test_node_reaches_its_pods(node: Node, server: Pod, router: str) -> None:
    """From the node, its pods see cilium_host's address."""
    tcp = node.outside.call("tcp_connect", address=server.address, port=80)
    udp = node.outside.call("udp_exchange", address=server.address, port=80)

    assert tcp["outcome"] == "answered", tcp
    assert tcp["answer"]["client"][0] == router
    assert udp["outcome"] == "answered", udp
    assert node.outside.call("ping", address=server.address, count=2)["answered"] == 2


def test_pod_sees_the_documented_network(node: Node, client: Pod, router: str) -> None:
    """A /32 address, a default route by cilium_host's, its MAC that of the pod's own lxc device."""
    client.ping(router)
    (device,) = [link for link in client.netns.ip_json("address", "show", "dev", "eth0") if link]
    (address,) = [one for one in device["addr_info"] if one["family"] == "inet"]
    routes = {route["dst"]: route for route in client.netns.ip_json("route", "show")}
    neighbours = {one["dst"]: one.get("lladdr") for one in client.netns.ip_json("neighbour", "show")}
    networking = client.endpoint["status"]["networking"]
    lxc = node.netns.links()[networking["interface-name"]]

    assert (address["local"], address["prefixlen"]) == (client.address, 32)
    assert routes["default"]["gateway"] == router
    assert routes["default"]["dev"] == "eth0"
    assert networking["interface-name"].startswith("lxc")
    assert networking["mac"] == device["address"]
    assert neighbours == {router: lxc["address"]}


def test_pod_has_the_uplinks_mtu(client: Pod, server: Pod) -> None:
    """1500 bytes go through without fragments, 1501 are refused in the pod itself."""
    assert client.netns.links()["eth0"]["mtu"] == 1500
    assert client.ping(server.address, size=1472, dont_fragment=True)["outcome"] == "answered"
    assert client.ping(server.address, size=1473, dont_fragment=True)["outcome"] == "too-big"


def test_fragments_are_put_together(client: Pod, server: Pod) -> None:
    """A datagram of several fragments is delivered and answered."""
    reply = client.udp(server.address, 80, payload="f" * 4000)

    assert reply["outcome"] == "answered", reply
    assert len(reply["answer"]["payload"]) == 4000


def test_pod_cannot_send_from_another_address(node: Node, client: Pod, server: Pod) -> None:
    """What a pod sends under a foreign address goes nowhere and is counted."""
    foreign = server.address
    client.netns.ip("address", "add", f"{foreign}/32", "dev", "lo")
    target = node.address
    node.outside.call("serve_udp", name="node", port=7001, address=target)
    try:
        spoofed = client.udp(target, 7001, source=foreign, timeout=0.4)
    finally:
        client.netns.ip("address", "del", f"{foreign}/32", "dev", "lo")

    assert spoofed["outcome"] == "timeout"
    assert client.udp(target, 7001)["outcome"] == "answered"


def test_nothing_of_a_removed_pod_stays(node: Node, client: Pod, server: Pod) -> None:
    """Device, map rows, pins and address are gone; the other pods do not notice."""

    def state() -> dict[str, object]:
        return {
            "links": sorted(node.netns.links()),
            "pins": sorted(str(path) for path in node.bpf_root.rglob("links/*")),
            **{
                name: sorted(map(str, node.agent.get(f"map/{name}")))
                for name in (
                    "cilium_lxc_v1",
                    "cilium_ifindex_v1",
                    "cilium_ipcache_v1",
                    "cilium_endpoint_state_v1",
                )
            },
        }

    client.ping(server.address)
    before = state()
    guest = node.pod("guest", {"app": "guest"}).serve(tcp=(80,))
    assert client.reaches(guest.address, 80)
    assert state() != before
    guest_device = guest.endpoint["status"]["networking"]["interface-name"]

    node.remove_pod(guest)

    eventually(lambda: guest_device not in node.netns.links(), "the guest's device is gone")
    eventually(lambda: state() == before, "all rows and pins of the guest are gone")
    assert client.reaches(server.address, 80)
    assert not client.reaches(guest.address, 80)


def test_address_is_given_again_and_its_new_owner_is_judged_as_itself(node: Node, client: Pod) -> None:
    """A pod that takes over an asked-for address gets its own identity, not its predecessor's."""
    first = node.pod("first", {"app": "first"}).serve(tcp=(80,))
    address, identity = first.address, first.endpoint["status"]["identity"]["id"]
    assert client.reaches(address, 80)
    node.remove_pod(first)
    eventually(
        lambda: address not in str(node.agent.get("map/cilium_lxc_v1")), "the first pod's address is free"
    )

    second = node.pod("second", {"app": "second"}, ip=address).serve(tcp=(80,))

    assert second.address == address
    assert second.endpoint["status"]["identity"]["id"] != identity
    assert client.tcp(address, 80)["answer"]["server"] == "second"
    node.remove_pod(second)
