# SPDX-License-Identifier: Apache-2.0
"""
The end of a backend, as clients of its services see it: those of UDP are with another at once.

``inside`` sockets are translated, ``outside`` packets (see ``lab.pod``).
"""

import json
from collections.abc import Iterator

import pytest

from ciliumd.net.namespace import own_cookie
from lab import manifests
from lab.actor import Actor
from lab.kernel import chooses_errno_of_connect
from lab.node import Node
from lab.pod import Pod
from lab.waiting import eventually

pytestmark = pytest.mark.netns

VIP, BALANCED = "10.96.1.10", "10.96.1.20"
PORTS = [("UDP", 53, 5353)]
NODE_PORT, HEALTH_PORT = 30777, 31777
READY = {"ready": True, "serving": True, "terminating": False}
TERMINATING = {"ready": False, "serving": True, "terminating": True}


@pytest.fixture(scope="module")
def backends(node: Node) -> dict[str, Pod]:
    """Two pods that answer, by name."""
    return {name: node.pod(name, {}).serve(udp=(5353,)) for name in ("life-one", "life-two")}


@pytest.fixture(scope="module")
def client(node: Node) -> Pod:
    """A pod that asks."""
    return node.pod("life-asker", {})


def offer(node: Node, backends: dict[str, Pod], **conditions: dict[str, bool]) -> None:
    """Write who is behind the service, with these conditions by name."""
    service = manifests.service("life", VIP, {}, ports=PORTS)
    del service["spec"]["selector"]
    endpoints = {backends[f"life-{name}"].address: given for name, given in conditions.items()}
    node.apply("service-life", service, manifests.endpoint_slice("life", endpoints, ports=PORTS))


@pytest.fixture
def both(node: Node, backends: dict[str, Pod]) -> Iterator[dict[str, Pod]]:
    """Both are behind the service."""
    offer(node, backends, one=READY, two=READY)
    node.wait_service(f"{VIP}:53", 2)
    yield backends
    node.delete("service-life")
    eventually(lambda: VIP not in str(node.agent.get("service")), "the service has gone")


def connected(who: Actor) -> dict[str, int]:
    """A connected socket to each of both, by the backend's name."""
    found: dict[str, int] = {}
    while set(found) != {"life-one", "life-two"}:
        handle = who.call("udp_open", address=VIP, port=53)["handle"]
        found[who.call("udp_say", handle=handle)["answer"]["server"]] = handle
    return found


@pytest.mark.parametrize("who", ["pod", "node"])
@pytest.mark.parametrize("end", ["terminates", "is removed"])
def test_connected_socket_ends_with_its_backend(
    node: Node, client: Pod, both: dict[str, Pod], who: str, end: str
) -> None:
    """In a pod's network namespace and the node's own; the other's socket goes on."""
    actor = client.inside if who == "pod" else node.inside
    handles = connected(actor)
    if end == "terminates":
        offer(node, both, one=TERMINATING, two=READY)
    else:
        offer(node, both, two=READY)

    def ended() -> bool:
        return actor.call("udp_say", handle=handles["life-one"])["outcome"] != "answered"

    eventually(ended, "the socket to the backend that goes has ended")
    assert actor.call("udp_say", handle=handles["life-two"])["outcome"] == "answered"
    again = actor.call("udp_exchange", address=VIP, port=53)
    assert (again["outcome"], again["answer"]["server"]) == ("answered", "life-two")
    assert "ciliumd_lb_terminated_total" in node.agent.cilium("metrics", "list")


def test_flow_per_packet_moves_while_another_is_active(node: Node, client: Pod, both: dict[str, Pod]) -> None:
    """A client that keeps its port is with the other from then on; back with the first when that is alone."""

    def asked() -> str:
        reply = client.outside.call("udp_exchange", address=VIP, port=53, source_port=4321)
        return str(reply["answer"]["server"]) if reply["outcome"] == "answered" else str(reply["outcome"])

    first = asked()
    assert {asked() for _ in range(5)} == {first}
    other = next(name for name in both if name != first)
    conditions = {name.removeprefix("life-"): TERMINATING if name == first else READY for name in both}
    offer(node, both, **conditions)
    eventually(lambda: asked() == other, "the flow has moved")

    offer(node, both, **{first.removeprefix("life-"): TERMINATING})
    eventually(lambda: asked() == first, "who terminates serves when there is nobody else")


@pytest.fixture
def balanced(node: Node, backends: dict[str, Pod]) -> Iterator[None]:
    """A service that a load balancer is in front of; nobody is behind it yet."""
    del backends
    service = manifests.service("balanced", BALANCED, {"app": "balanced"}, ports=[("TCP", 80, 8080)])
    service["spec"] |= {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": HEALTH_PORT,
    }
    service["spec"]["ports"][0]["nodePort"] = NODE_PORT
    node.apply("service-balanced", service)
    node.wait_service(f"{BALANCED}:80", 0)
    yield
    node.delete("service-balanced")


def test_load_balancer_is_told_whether_the_node_has_endpoints(node: Node, balanced: None) -> None:
    """At the port of its own that the service has on every node, from outside."""

    def told() -> tuple[int, int]:
        reply = node.world.actor.call("http_request", address=node.address, port=HEALTH_PORT)
        if reply["outcome"] != "answered":
            return 0, 0
        return reply["status"], json.loads(reply["body"])["localEndpoints"]

    eventually(lambda: told() == (503, 0), "the node says that it has none")
    pod = node.pod("balanced", {"app": "balanced"})
    eventually(lambda: told() == (200, 1), "the node says that it has one")
    node.remove_pod(pod)
    eventually(lambda: told() == (503, 0), "the node says that it has none any more")


def test_process_of_the_node_cannot_take_the_port_of_a_service(node: Node, balanced: None) -> None:
    """The next one is free."""
    taken = "in use" if chooses_errno_of_connect() else "forbidden"
    if not own_cookie():
        # Before Linux 5.14 the node is taken to be where the kernel began, and this one is not.
        taken = "bound"
    eventually(lambda: node.inside.call("bind", port=NODE_PORT)["outcome"] == taken, "the port is taken")
    assert node.inside.call("bind", port=NODE_PORT, address=node.address)["outcome"] == taken
    assert node.inside.call("bind", port=NODE_PORT + 1)["outcome"] == "bound"
