# SPDX-License-Identifier: Apache-2.0
"""
Which services an agent serves, by what it is told: restarted with other words on the same node.

Connections of one way in must not depend on another's being served.
"""

from collections.abc import Iterator

import pytest

from ciliumd.net.namespace import own_cookie
from lab import manifests
from lab.node import Node
from lab.waiting import eventually
from lab.world import World

pytestmark = pytest.mark.netns

VIP, NODE_PORT = "10.96.2.10", 30888


@pytest.fixture(scope="module")
def told(world: World) -> Iterator[Node]:
    """A node of this module's own, which serves node ports and nothing else: kube-proxy does the rest."""
    options = {"kube-proxy-replacement": "partial", "enable-node-port": "true"}
    with Node(world, name="told", pod_cidr="10.12.0.0/24", options=options) as node:
        node.start()
        node.pod("told-server", {"app": "told"}).serve(tcp=(8080,), udp=(5353,))
        node.pod("told-client", {})
        ports = [("TCP", 80, 8080), ("UDP", 53, 5353)]
        service = manifests.service("told", VIP, {"app": "told"}, ports=ports)
        service["spec"]["type"] = "NodePort"
        service["spec"]["ports"][0]["nodePort"] = NODE_PORT
        node.apply("service-told", service)
        for port in (80, 53):
            node.wait_service(f"{VIP}:{port}", 1)
        yield node


def replacement(node: Node) -> dict[str, object]:
    """What the status says: the word, what is served, and whether pods' sockets are left alone."""
    found = node.agent.get("healthz")["kube-proxy-replacement"]
    features = found["features"]
    switched = {
        name: features[name]["enabled"] for name in ("socketLB", "nodePort", "externalIPs", "hostPort")
    }
    return {"mode": found["mode"], **switched, "hostns": features["bpfSocketLBHostnsOnly"]}


def outcomes(node: Node) -> dict[str, str]:
    """How it ends to ask the service by each way in."""
    client = node.pods["default/told-client"]
    asks = {
        "outside": (node.world.actor, node.address, NODE_PORT),
        "node": (node.inside, VIP, 80),
        "pod's socket": (client.inside, VIP, 80),
        "pod's packets": (client.outside, VIP, 80),
    }
    return {
        name: actor.call("tcp_connect", address=address, port=port, timeout=0.6)["outcome"]
        for name, (actor, address, port) in asks.items()
    }


def sockets(node: Node) -> int:
    """How many sockets were translated so far."""
    return len(node.agent.get("map/cilium_lb_sock_v1"))


def restart(node: Node, **options: str) -> None:
    """The same agent with other words."""
    for name, value in options.items():
        node.agent.options[name.replace("_", "-")] = value
    node.agent.restart()
    for port in (80, 53):
        node.wait_service(f"{VIP}:{port}", 1)


def test_one_kind_alone(told: Node) -> None:
    """Node ports, without any program for sockets: the node's own processes are kube-proxy's."""
    assert replacement(told) == {
        "mode": "Partial",
        "socketLB": False,
        "nodePort": True,
        "externalIPs": False,
        "hostPort": False,
        "hostns": False,
    }
    found = outcomes(told)
    assert found.pop("node") != "answered"
    assert set(found.values()) == {"answered"}, found
    assert sockets(told) == 0
    assert "KubeProxyReplacement:    Partial" in told.agent.cilium("status")


def test_everything_by_its_old_word(told: Node) -> None:
    """The status says what was written; a line in the log says what is written today."""
    restart(told, kube_proxy_replacement="strict")
    assert replacement(told) == {
        "mode": "Strict",
        "socketLB": True,
        "nodePort": True,
        "externalIPs": True,
        "hostPort": True,
        "hostns": False,
    }
    assert set(outcomes(told).values()) == {"answered"}
    assert sockets(told) == 2, "by the node and by the pod"
    assert "write kube-proxy-replacement=true instead of strict" in told.agent.log_text()
    details = told.agent.cilium("status", "--verbose")
    for line in ("Status:", "Socket LB Tracing:", "Socket LB Coverage:", "NAT46/64 Support:", "- HostPort:"):
        assert line in details


def test_what_is_connected_outlives_the_agent(told: Node) -> None:
    """The first look of the next one ends nothing that still has its backend."""
    handles = {
        who: who.call("udp_open", address=VIP, port=53)["handle"]
        for who in (told.inside, told.pods["default/told-client"].inside)
    }
    told.agent.restart()
    eventually(lambda: _looked(told), "it has looked at all there is")
    assert [who.call("udp_say", handle=handle)["outcome"] for who, handle in handles.items()] == [
        "answered",
        "answered",
    ]


def _looked(node: Node) -> bool:
    """Whether the controller has succeeded since the agent started."""
    found = node.agent.get("healthz")["controllers"]
    looks = [one["status"]["last-success-timestamp"] for one in found if one["name"] == "lb-terminate"]
    return any(not str(when).startswith("0001") for when in looks)


def test_sockets_of_pods_left_alone(told: Node) -> None:
    """Their packets are translated; the node's own sockets are as before."""
    restart(told, kube_proxy_replacement="true", bpf_lb_sock_hostns_only="true")
    before = sockets(told)
    assert replacement(told)["hostns"] is True
    found = outcomes(told)
    if not own_cookie():
        # Before Linux 5.14 the node is taken to be where the kernel began, and this one is not.
        assert (found.pop("node") != "answered", sockets(told)) == (True, before)
    else:
        assert sockets(told) == before + 1
    assert set(found.values()) == {"answered"}


def test_nothing(told: Node) -> None:
    """Without a control group too: pods reach cluster addresses, and that is all."""
    restart(told, kube_proxy_replacement="false", bpf_lb_sock="false")
    found = outcomes(told)
    assert replacement(told)["mode"] == "False"
    assert {name for name, outcome in found.items() if outcome == "answered"} == {
        "pod's socket",
        "pod's packets",
    }
    eventually(lambda: told.inside.call("bind", port=NODE_PORT)["outcome"] == "bound", "the port is free")
