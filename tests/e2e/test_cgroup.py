# SPDX-License-Identifier: Apache-2.0
"""The socket load balancer of a node is in the way of that node's processes and of nobody else's."""

import json

from lab.actor import Actor
from lab.cgroup import Cgroup, cgroup2_mount
from lab.k8s.ciliumd import Ciliumd
from lab.k8s.cluster import Cluster
from lab.k8s.kubectl import Kubectl
from lab.k8s.people import NAMESPACE, SERVER, People
from lab.process import run
from lab.waiting import eventually

BPFTOOL = "/usr/sbin/bpftool"
CONNECT = "cgroup_inet4_connect"
PORT, SOURCE = 8100, 45678
# Long enough to be a numbered datagram, which is what the silent server takes.
PAYLOAD = "is anybody there?"


def effective(group: str) -> dict[str, list[int]]:
    """Ids of the programs that processes of a control group pass, by kind."""
    shown = run([BPFTOOL, "-j", "cgroup", "show", cgroup2_mount() / group, "effective"]).stdout
    programs: dict[str, list[int]] = {}
    for program in json.loads(shown.strip() or "[]"):
        programs.setdefault(program["attach_type"], []).append(program["id"])
    return programs


def test_nothing_on_the_machine(ciliumd: Ciliumd) -> None:
    """The machine's own processes pass no program: neither its root group nor one beside the nodes'."""
    with Cgroup("bystander") as bystander:
        assert effective("") == {}
        assert effective(bystander.path.name) == {}


def test_each_node_passes_its_own(ciliumd: Ciliumd, people: People) -> None:
    """Pods of a node pass one connect4 program, and the nodes have not the same."""
    seen = [
        effective(str(people[f"client{index}"].cgroup.relative_to(cgroup2_mount())))[CONNECT]
        for index in (1, 2)
    ]

    assert [len(programs) for programs in seen] == [1, 1]
    assert seen[0] != seen[1]


def test_who_is_in_no_group_is_not_translated(cluster: Cluster, people: People, kubectl: Kubectl) -> None:
    """
    A process of the machine, in a node's network namespace, keeps the service's address as its peer.

    The same connect from the node's group has the backend as its peer: the kernel's table of sockets says so.
    """
    people.actor("server1").call("flood_receive", port=PORT)
    spec = {"selector": {**SERVER, "on": "node1"}, "ports": [{"protocol": "UDP", "port": PORT}]}
    metadata = {"name": "sockets", "namespace": NAMESPACE}
    kubectl.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    address = kubectl.get("service", "sockets", NAMESPACE)["spec"]["clusterIP"]
    node = cluster.nodes[0]
    with Actor(node.netns, who="machine") as machine:
        eventually(
            lambda: _peer(cluster, people.actor("node1"), address) == people["server1"].address,
            "the service is there",
        )

        assert _peer(cluster, machine, address) == address
    people.actor("server1").call("flood_close", port=PORT)


def _peer(cluster: Cluster, who: Actor, address: str) -> str:
    """Where the kernel sends what somebody's connected socket sends; nobody answers, so it stays a while."""
    waiting = who.start(
        "udp_exchange", address=address, port=PORT, source_port=SOURCE, timeout=1.0, payload=PAYLOAD
    )

    def listed() -> list[str]:
        words = ["/usr/bin/ss", "-Hnu", f"sport = :{SOURCE}"]
        return run(words, netns=cluster.nodes[0].netns).stdout.split()

    columns = eventually(listed, "the socket is listed", every=0.01)
    waiting.result(5)
    return columns[-1].rpartition(":")[0]
