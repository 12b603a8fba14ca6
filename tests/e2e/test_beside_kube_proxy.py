# SPDX-License-Identifier: Apache-2.0
"""
Beside kube-proxy, and uninstalled without its own cleanup: after everything else, on the same nodes.

kube-proxy does node ports and the nodes' own way to services; agents do pods and policy.  Then the release is
taken away under the agents' feet, and the nodes are cleaned by hand as the chart's page says.
"""

from collections.abc import Callable, Iterator

import pytest

from lab import manifests
from lab.k8s import baseline, pages
from lab.k8s.ciliumd import NAMESPACE as SYSTEM
from lab.k8s.ciliumd import PARTS, RELEASE, Ciliumd
from lab.k8s.cluster import Cluster
from lab.k8s.fingerprint import Installed, fingerprint
from lab.k8s.people import HOST_PORT_POD, NAMESPACE, SERVER, People, serve_host_port
from lab.waiting import eventually

PORT, NODE_PORT, HOST_PORT = 8000, 30081, 8089


@pytest.fixture(scope="module")
def before(installed: Installed) -> Iterator[dict[str, dict[str, str]]]:
    """The nodes with kube-proxy and without ciliumd or any other network of pods."""
    cluster = installed.ciliumd.cluster
    for node in cluster.nodes:
        for path in (node.directory / "etc/cni/net.d").iterdir():
            path.unlink()
    baseline.start_proxy(cluster.nodes, cluster.pki, cluster.programs, "nftables")
    for node in cluster.nodes:
        eventually(
            lambda node=node: "kube-proxy" in node.run(["/usr/sbin/nft", "list", "tables"]).stdout,
            f"kube-proxy works on {node.name}",
            seconds=30.0,
        )
    return fingerprint(cluster)


@pytest.fixture(scope="module")
def beside(installed: Installed, before: dict[str, dict[str, str]]) -> Ciliumd:
    """ciliumd beside it, by the command that the page shows."""
    ciliumd = installed.ciliumd
    pages.follow(ciliumd, pages.the("docs/install.md", pages.BESIDE_KUBE_PROXY))
    ciliumd.wait()
    ciliumd.kubectl("scale", "deploy/coredns", "-n", SYSTEM, "--replicas=1")
    ciliumd.kubectl.rollout("deploy/coredns", SYSTEM)
    return ciliumd


@pytest.fixture(scope="module")
def people(beside: Ciliumd) -> People:
    """Pods, a service with a node port, and a policy that lets only client1 in."""
    people = People.settle(beside.cluster)
    for name in ("server1", "server2"):
        people.actor(name).call("serve_tcp", name=name, port=PORT)
    ports = [{"protocol": "TCP", "port": 80, "targetPort": PORT, "nodePort": NODE_PORT}]
    spec = {"type": "NodePort", "selector": SERVER, "ports": ports}
    rules = [{"fromEndpoints": [{"matchLabels": {"on": "node1"}}]}, {"fromEntities": ["host", "remote-node"]}]
    beside.kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "servers", "namespace": NAMESPACE},
            "spec": spec,
        },
        manifests.cilium_policy(
            "on-node1",
            {"endpointSelector": {"matchLabels": SERVER}, "ingress": rules},
            namespace=NAMESPACE,
        ),
    )
    return people


def _outcome(people: People, who: str, address: str, port: int) -> Callable[[], bool]:
    def answered() -> bool:
        reply = people.tcp(who, address, port, timeout=1.0)
        return str(reply["outcome"]) == "answered"

    return answered


def test_agents_say_what_they_leave_to_kube_proxy(beside: Ciliumd, cluster: Cluster) -> None:
    """Status tells that services of the node are somebody else's."""
    for node in cluster.nodes:
        lines = beside.cilium(node, "status").splitlines()

        assert any(line.startswith("KubeProxyReplacement:") and "False" in line for line in lines), lines


@pytest.mark.parametrize("who", ["client1", "node1", "node2"])
def test_services(people: People, who: str) -> None:
    """Pods by the agent, nodes by kube-proxy."""
    address = str(people.cluster.kubectl.get("service", "servers", NAMESPACE)["spec"]["clusterIP"])

    eventually(_outcome(people, who, address, 80), f"{who} reaches {address}", seconds=30.0)


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_node_port_from_a_node(people: People, node: str) -> None:
    """kube-proxy's."""
    address = people.cluster.node(node).address

    eventually(_outcome(people, node, address, NODE_PORT), f"{address}:{NODE_PORT}", seconds=30.0)


def test_who_comes_by_a_local_node_port_is_seen(people: People) -> None:
    """externalTrafficPolicy Local: kube-proxy hides nobody, and the answer finds its way back through it."""
    patch = '{"spec": {"externalTrafficPolicy": "Local"}}'
    people.cluster.kubectl("patch", "service", "servers", "-n", NAMESPACE, "-p", patch)
    world = str(people.cluster.plan.world)

    def seen() -> bool:
        reply = people.actor("world").call(
            "tcp_connect", address=people.cluster.node("node1").address, port=NODE_PORT, timeout=1.0
        )
        return reply["outcome"] == "answered" and reply["answer"]["client"][0] == world

    people.cluster.kubectl("label", "--overwrite", "pod", "server1", "-n", NAMESPACE, "open=yes")
    people.cluster.kubectl.apply(
        manifests.cilium_policy(
            "open",
            {"endpointSelector": {"matchLabels": {"open": "yes"}}, "ingress": [{"fromEntities": ["world"]}]},
            namespace=NAMESPACE,
        )
    )
    eventually(seen, "the server sees who asks", seconds=30.0)


@pytest.mark.parametrize("verb", ["tcp_connect", "udp_exchange"])
def test_host_port_by_portmap(people: People, verb: str) -> None:
    """Its turning of addresses is undone for the answer."""
    if not people.cluster.kubectl.exists("pod", HOST_PORT_POD, NAMESPACE):
        serve_host_port(people, HOST_PORT)
    address = people.cluster.node("node1").address
    for who in ("world", "node2", "client2"):
        reply = people.actor(who).call(verb, address=address, port=HOST_PORT)

        assert reply["outcome"] == "answered", (who, reply)
        assert reply["answer"]["server"] == HOST_PORT_POD


def test_policy(people: People) -> None:
    """The agent's, also for pods of the other node."""
    for server in ("server1", "server2"):
        address = people[server].address
        eventually(_outcome(people, "client1", address, PORT), f"client1 reaches {server}", seconds=30.0)
        eventually(
            lambda address=address: not _outcome(people, "client2", address, PORT)(),
            f"client2 does not reach {server}",
            seconds=30.0,
        )


def test_cleaned_by_hand(
    installed: Installed, people: People, before: dict[str, dict[str, str]], cluster: Cluster
) -> None:
    """`helm uninstall` alone, then the command of the chart's page on each node: the nodes are as before."""
    kubectl = installed.ciliumd.kubectl
    cluster.end_actors()
    kubectl("delete", "namespace", NAMESPACE, "--timeout=60s")
    kubectl("scale", "deploy/coredns", "-n", SYSTEM, "--replicas=0")
    kubectl("wait", "--for=delete", "pod", "-l", "k8s-app=kube-dns", "-n", SYSTEM, "--timeout=60s")
    cluster.helm("uninstall", RELEASE, "-n", SYSTEM)
    kubectl.wait("--for=delete", "pod", "-l", PARTS, namespace=SYSTEM)
    for node in cluster.nodes:
        assert "cilium_host" in node.run(["/bin/sh", "-c", "ls /sys/class/net"]).stdout
        pages.follow_on_node(node, "charts/ciliumd/README.md", "ctr -n k8s.io run")
    after = fingerprint(cluster)

    # kube-proxy goes on writing its rules; what is ours to leave alone there, it sees to itself.
    kinds = before["node1"].keys() - {"firewall"}
    changed = {
        (node, kind): (before[node][kind], after[node][kind])
        for node in after
        for kind in kinds
        if after[node][kind] != before[node][kind]
    }
    assert changed == {}
