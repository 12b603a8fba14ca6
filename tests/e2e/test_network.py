# SPDX-License-Identifier: Apache-2.0
"""Every way from one to another, with real sockets: pods, nodes, services and the world outside."""

from collections.abc import Callable, Iterator

import pytest

from lab import manifests
from lab.k8s import people
from lab.k8s.ciliumd import Ciliumd
from lab.k8s.cluster import Cluster
from lab.k8s.kubectl import Kubectl
from lab.k8s.people import NAMESPACE, SERVER, People, node_port_service
from lab.k8s.plan import API_SERVICE, FAR
from lab.netns import IP
from lab.process import run
from lab.waiting import eventually

PORT, NODE_SERVER_PORT, WORLD_PORT = 8000, 8001, 8002
NODE_PORT, HOST_PORT = 30080, 8088
OUTSIDE = "198.51.100.77"
MTU, VXLAN_OVERHEAD, IP_ICMP_HEADERS = 1500, 50, 28
PODS = ["client1", "client2"]
NODES = ["node1", "node2"]


@pytest.fixture(scope="module")
def stage(people: People, kubectl: Kubectl) -> People:
    """Servers serve, and a service in front of them has a port on every node."""
    for name in ("server1", "server2"):
        actor = people.actor(name)
        actor.call("serve_tcp", name=name, port=PORT)
        actor.call("serve_udp", name=name, port=PORT)
    for name in NODES:
        people.actor(name).call("serve_tcp", name=name, port=NODE_SERVER_PORT)
    people.actor("world").call("serve_tcp", name="world", port=WORLD_PORT)
    kubectl.apply(node_port_service("servers", target=PORT, node_port=NODE_PORT))
    address = cluster_ip(kubectl)
    for name in (*PODS, *NODES):
        eventually(
            lambda name=name: people.tcp(name, address, 80)["outcome"] == "answered",
            f"{name} reaches {address}",
        )
    return people


def cluster_ip(kubectl: Kubectl) -> str:
    """Address of the service."""
    return str(kubectl.get("service", "servers", NAMESPACE)["spec"]["clusterIP"])


@pytest.mark.parametrize("server", ["server1", "server2"])
@pytest.mark.parametrize("client", PODS)
def test_pod_to_pod(stage: People, client: str, server: str) -> None:
    """Same node and across nodes; the server sees the client's own address."""
    reply = stage.tcp(client, stage[server].address, PORT)

    assert reply["outcome"] == "answered"
    assert reply["answer"]["server"] == server
    assert reply["answer"]["client"][0] == stage[client].address


@pytest.mark.parametrize("verb", ["tcp_connect", "udp_exchange"])
@pytest.mark.parametrize("client", [*PODS, *NODES])
def test_service(stage: People, kubectl: Kubectl, client: str, verb: str) -> None:
    """A ClusterIP reaches both backends from pods and from nodes, by TCP and UDP."""
    assert stage.servers_seen(client, cluster_ip(kubectl), 80, verb) == {"server1", "server2"}


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("client", [*PODS, *NODES, "world"])
def test_node_port(stage: People, cluster: Cluster, client: str, node: str) -> None:
    """Any node's port reaches the backends on both nodes, from inside and from outside."""
    assert stage.servers_seen(client, cluster.node(node).address, NODE_PORT) == {"server1", "server2"}


def test_node_port_by_udp_from_outside(stage: People, cluster: Cluster) -> None:
    """The same by UDP: the answer comes from the address that was asked."""
    assert stage.servers_seen("world", cluster.nodes[0].address, NODE_PORT, "udp_exchange") == {
        "server1",
        "server2",
    }


@pytest.fixture(scope="module")
def host_port(stage: People, kubectl: Kubectl) -> Iterator[str]:
    """A pod on node1 with a port of the node, TCP and UDP; the node's address."""
    people.serve_host_port(stage, HOST_PORT)
    yield stage.cluster.node("node1").address
    kubectl.delete("pod", people.HOST_PORT_POD, namespace=NAMESPACE)


@pytest.mark.parametrize("verb", ["tcp_connect", "udp_exchange"])
@pytest.mark.parametrize("client", [*PODS, *NODES, "world"])
def test_host_port(stage: People, host_port: str, client: str, verb: str) -> None:
    """A container's port on its node, from everywhere; the pod sees who asks from outside."""
    reply = stage.actor(client).call(verb, address=host_port, port=HOST_PORT)

    assert reply["outcome"] == "answered", reply
    assert reply["answer"]["server"] == people.HOST_PORT_POD
    if client == "world":
        assert reply["answer"]["client"][0] == str(stage.cluster.plan.world)


def test_host_port_is_on_its_node_only(stage: People, cluster: Cluster, host_port: str) -> None:
    """The other node has none."""
    other = cluster.node("node2").address

    assert stage.tcp("world", host_port, HOST_PORT)["outcome"] == "answered"
    assert stage.tcp("world", other, HOST_PORT, timeout=1.0)["outcome"] != "answered"


def test_cluster_ip_is_nothing_outside(stage: People, cluster: Cluster, kubectl: Kubectl) -> None:
    """A ClusterIP routed to a node from outside is not served (CVE-2020-8558 and its like)."""
    address, via = cluster_ip(kubectl), cluster.nodes[0].address
    spec = {"selector": SERVER, "externalIPs": [OUTSIDE], "ports": [{"port": 80, "targetPort": PORT}]}
    metadata = {"name": "control", "namespace": NAMESPACE}
    kubectl.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    for routed in (address, OUTSIDE):
        run([IP, "-n", cluster.plan.netns("world").name, "route", "replace", f"{routed}/32", "via", via])

    # Control: what is served outside is reached by the same way, at the same port, of the same servers.
    eventually(
        lambda: stage.tcp("world", OUTSIDE, 80, timeout=1.0)["outcome"] == "answered", "the way is open"
    )
    assert stage.tcp("world", address, 80, timeout=1.0)["outcome"] != "answered"
    assert stage.tcp("client1", address, 80)["outcome"] == "answered"
    kubectl.delete("service", "control", namespace=NAMESPACE)


@pytest.mark.parametrize("server", ["server1", "server2"])
@pytest.mark.parametrize("node", NODES)
def test_node_to_pod(stage: People, node: str, server: str) -> None:
    """A node reaches pods of its own and of the other node: kubelet's probes, and webhooks."""
    assert stage.tcp(node, stage[server].address, PORT)["answer"]["server"] == server


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("client", PODS)
def test_pod_to_node(stage: People, cluster: Cluster, client: str, node: str) -> None:
    """Pods reach servers on nodes' own network."""
    assert stage.tcp(client, cluster.node(node).address, NODE_SERVER_PORT)["answer"]["server"] == node


@pytest.mark.parametrize("client", PODS)
def test_pod_to_world(stage: People, cluster: Cluster, client: str) -> None:
    """The world does not know pods: it sees the node's address."""
    reply = stage.tcp(client, FAR, WORLD_PORT)

    assert reply["outcome"] == "answered"
    assert reply["answer"]["client"][0] == stage[client].node.address


@pytest.mark.parametrize("client", PODS)
def test_api_server(stage: People, client: str) -> None:
    """`kubernetes.default`, whose endpoint is a node's own address."""
    eventually(
        lambda: stage.actor(client).call("http_request", address=API_SERVICE, port=443).get("status") == 400,
        f"{client} speaks to the API server",
    )


@pytest.mark.parametrize("client", PODS)
def test_dns(stage: People, kubectl: Kubectl, client: str) -> None:
    """Services by name, with the pod's own resolver."""
    name = f"servers.{NAMESPACE}.svc.cluster.local"

    assert kubectl.exec(client, "dig", "+short", name, namespace=NAMESPACE).stdout.split() == [
        cluster_ip(kubectl)
    ]
    assert kubectl.exec(client, "dig", "+tcp", "+short", name, namespace=NAMESPACE).stdout.split() == [
        cluster_ip(kubectl)
    ]
    assert kubectl.exec(
        client, "curl", "-sk", "-m", "5", "https://kubernetes.default/version", namespace=NAMESPACE
    ).stdout


def test_mtu(stage: People, record_property: Callable[[str, object], None]) -> None:
    """The largest packet that fits into the tunnel passes whole; a byte more the pod's own route refuses."""
    largest = MTU - VXLAN_OVERHEAD - IP_ICMP_HEADERS
    actor, target = stage.actor("client1"), stage["server2"].address
    fits = actor.call("ping", address=target, size=largest, dont_fragment=True)
    too_big = actor.call("ping", address=target, size=largest + 1, dont_fragment=True)
    record_property("figure", f"pod MTU across nodes: {largest + IP_ICMP_HEADERS}")

    assert fits["outcome"] == "answered"
    assert too_big["outcome"] == "too-big"


@pytest.fixture
def denied(stage: People, kubectl: Kubectl) -> Iterator[None]:
    """A policy by which nobody reaches the servers but client1."""
    rule = {"fromEndpoints": [{"matchLabels": {"who": "client1"}}]}
    spec = {"endpointSelector": {"matchLabels": SERVER}, "ingress": [rule]}
    kubectl("label", "pod", "client1", "who=client1", "-n", NAMESPACE, "--overwrite")
    kubectl.apply(manifests.cilium_policy("only-client1", spec, namespace=NAMESPACE))
    for server in ("server1", "server2"):
        eventually(
            lambda server=server: (
                stage.tcp("client2", stage[server].address, PORT, timeout=0.5)["outcome"] == "timeout"
            ),
            f"client2 is denied at {server}",
        )
    yield
    kubectl.delete("ciliumnetworkpolicy", "only-client1", namespace=NAMESPACE)
    kubectl("label", "pod", "client1", "who-", "-n", NAMESPACE)
    for server in ("server1", "server2"):
        eventually(
            lambda server=server: stage.tcp("client2", stage[server].address, PORT)["outcome"] == "answered",
            f"client2 reaches {server} again",
        )


@pytest.mark.usefixtures("denied")
def test_policy(stage: People, cluster: Cluster, ciliumd: Ciliumd, kubectl: Kubectl) -> None:
    """Who is allowed gets through on every path, who is not on none, and the drop is counted by its name."""
    address = cluster_ip(kubectl)
    for server in ("server1", "server2"):
        eventually(
            lambda server=server: stage.tcp("client1", stage[server].address, PORT)["outcome"] == "answered",
            f"client1 reaches {server}",
        )
        assert stage.tcp("client2", stage[server].address, PORT, timeout=0.5)["outcome"] == "timeout"
        assert (
            stage.actor("client2").call("udp_exchange", address=stage[server].address, port=PORT)["outcome"]
            == "timeout"
        )
    assert stage.tcp("client1", address, 80)["outcome"] == "answered"
    assert stage.tcp("client2", address, 80, timeout=0.5)["outcome"] == "timeout"
    assert stage.tcp("world", cluster.nodes[0].address, NODE_PORT, timeout=0.5)["outcome"] == "timeout"
    assert "Policy denied" in ciliumd.cilium(stage["server1"].node, "bpf", "metrics", "list")
