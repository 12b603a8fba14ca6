# SPDX-License-Identifier: Apache-2.0
"""
A6: an external address that is somebody's takes nothing of his traffic, unless it is allowed to.

The victims serve all the while: a node, the API server, a resolver of the nodes, another service and a pod.
The thief is a service with a backend of its own that claims their addresses at their ports.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from lab import kinds
from lab.actor import Actor
from lab.cluster import Cluster
from lab.maps import Dump, differences, dump
from lab.pod import Pod
from lab.waiting import eventually

pytestmark = pytest.mark.netns

RESOLVER, EXTERNAL = "203.0.113.53", "198.51.100.9"
SERVICE_IP, THIEF_IP = "10.96.0.70", "10.96.0.71"
PORT: Final = 6443
PORTS = [("TCP", PORT, PORT)]
LB_MAPS = (
    "cilium_lb_services_v1",
    "cilium_lb_backends_v1",
    "cilium_lb_revnat_v1",
    "cilium_lb_affinity_match_v1",
    "cilium_lb_source_range_v1",
    "cilium_lb_bind_v1",
)
ALLOWED_NODE: Final = 1


@dataclass(frozen=True)
class Street:
    """Two nodes, whose addresses they are, who asks, and who would like to have them."""

    cluster: Cluster
    client: Pod
    thief: Pod
    victims: dict[str, tuple[str, str]]
    """Address and name of the server by whose it is."""

    def asks(self, address: str, who: Actor) -> str:
        """Who answers there."""
        reply = who.call("tcp_connect", address=address, port=PORT, timeout=1.0)
        return str(reply["answer"]["server"]) if reply["outcome"] == "answered" else str(reply["outcome"])

    def answers(self, victim: str) -> set[str]:
        """Who answers pods by socket and per packet, the node, and the world where it has a way."""
        address, _ = self.victims[victim]
        people = [self.client.inside, self.client.outside, self.cluster.nodes[0].inside]
        if victim in ("node", "API server", "resolver"):
            people.append(self.cluster.world.actor)
        return {self.asks(address, one) for one in people}

    def claim(self, *addresses: str, created: str = "2026-02-01T00:00:00Z") -> None:
        """The thief's service."""
        made = kinds.service("thief", THIEF_IP, ports=PORTS, externalIPs=list(addresses))
        made["metadata"]["creationTimestamp"] = created
        backend = kinds.endpoint(self.thief.address, "node1")
        self.cluster.apply("thief", made, kinds.endpoints("thief", backend, ports=PORTS))
        self.cluster.nodes[0].wait_service(f"{THIEF_IP}:{PORT}", 1)

    def give_up(self) -> None:
        """The thief's service goes."""
        for node in self.cluster.nodes:
            node.delete("thief")

    def rows(self) -> Dump:
        """Every row of the load balancer on the client's node."""
        whole = dump(self.cluster.nodes[0].bpf_root)
        return {name: whole[name] for name in LB_MAPS}


def own_resolver(directory: Path) -> list[str]:
    """What an agent is started by, so that it finds the resolver in /etc/resolv.conf."""
    path = directory / "resolv.conf"
    path.write_text(f"nameserver {RESOLVER}\n")
    script = f'mount --bind {path} /etc/resolv.conf && exec "$@"'
    # What is mounted later, as namespaces of pods are, is seen there, and nothing of it here.
    return ["/usr/bin/unshare", "--mount", "--propagation", "slave", "/bin/sh", "-c", script, "sh"]


@contextmanager
def street(allowed: Callable[[Cluster], str] = lambda _: "") -> Iterator[Street]:
    """A street, whose agents let take what is *allowed*."""
    with Cluster() as cluster:
        for node in cluster.nodes:
            node.agent.wrapper = own_resolver(node.directory)
            if taken := allowed(cluster):
                node.agent.options["allow-external-addresses"] = taken
        cluster.start()
        world, far = cluster.world, cluster.world.far
        world.netns.ip("address", "add", f"{RESOLVER}/32", "dev", "lo")
        for name, address in (("API server", far), ("resolver", RESOLVER)):
            world.actor.call("serve_tcp", name=name, port=PORT, address=address)
        other = cluster.nodes[ALLOWED_NODE]
        other.outside.call("serve_tcp", name="node", port=PORT)
        cluster.apply(
            "kubernetes",
            kinds.endpoints("kubernetes", {"addresses": [far], "conditions": {"ready": True}}, ports=PORTS),
        )
        client = cluster.pod(cluster.nodes[0], "client", {"app": "client"})
        thief = cluster.pod(cluster.nodes[0], "thief", {"app": "thief"}).serve(tcp=(PORT,))
        honest = cluster.pod(other, "pod", {"app": "pod"}).serve(tcp=(PORT,))
        service = kinds.service("honest", SERVICE_IP, ports=PORTS, externalIPs=[EXTERNAL])
        service["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
        backend = kinds.endpoint(honest.address, "node2")
        cluster.apply("honest", service, kinds.endpoints("honest", backend, ports=PORTS))
        cluster.nodes[0].wait_service(f"{EXTERNAL}:{PORT}", 1)
        victims = {
            "node": (other.address, "node"),
            "API server": (far, "API server"),
            "resolver": (RESOLVER, "resolver"),
            "service": (SERVICE_IP, honest.name),
            "external address of a service": (EXTERNAL, honest.name),
            "pod": (honest.address, honest.name),
        }
        yield Street(cluster, client, thief, victims)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Street]:
    """Nothing is allowed, as by default."""
    with street() as one:
        yield one


VICTIMS = ("node", "API server", "resolver", "service", "external address of a service", "pod")


@pytest.mark.parametrize("victim", VICTIMS)
def test_it_takes_nothing(guarded: Street, victim: str) -> None:
    """The victim answers before, meanwhile and after; the author is told; only the thief's own rows come."""
    address, name = guarded.victims[victim]
    assert guarded.answers(victim) == {name}
    before = guarded.rows()
    guarded.claim(address)
    told = eventually(
        lambda: [one["message"] for one in guarded.cluster.nodes[0].problems() if one["name"] == "thief"],
        "the author is told",
    )
    assert address in told[0]
    assert guarded.asks(THIEF_IP, guarded.client.inside) == guarded.thief.name, "the thief serves"
    assert guarded.answers(victim) == {name}
    added = guarded.rows()
    assert {key: added["cilium_lb_services_v1"].get(key) for key in before["cilium_lb_services_v1"]} == (
        before["cilium_lb_services_v1"]
    )
    guarded.give_up()
    eventually(lambda: not differences(before, guarded.rows()), "every row is as before")
    assert guarded.answers(victim) == {name}


def test_an_address_that_nobody_has_is_taken(guarded: Street) -> None:
    """Control: the thief's claim works where there is no victim."""
    free = "198.51.100.10"
    before = guarded.rows()
    guarded.claim(free)
    guarded.cluster.nodes[0].wait_service(f"{free}:{PORT}", 1)
    assert guarded.asks(free, guarded.client.outside) == guarded.thief.name
    guarded.give_up()
    eventually(lambda: not differences(before, guarded.rows()), "every row is as before")


def test_the_younger_service_gets_back_what_the_older_one_gives_up(guarded: Street) -> None:
    """An older claim of an external address wins; when it goes, rows and traffic are the victim's again."""
    before = guarded.rows()
    guarded.claim(EXTERNAL, created="2025-01-01T00:00:00Z")
    eventually(
        lambda: guarded.answers("external address of a service") == {guarded.thief.name},
        "the older one has it",
    )
    assert before["cilium_lb_services_v1"].items() - guarded.rows()["cilium_lb_services_v1"].items()
    guarded.give_up()
    eventually(lambda: not differences(before, guarded.rows()), "every row is as before")
    _, name = guarded.victims["external address of a service"]
    assert guarded.answers("external address of a service") == {name}


def test_what_is_allowed_is_taken_and_given_back() -> None:
    """A node's address that the configuration lists is the thief's, for pods of the other node."""
    with street(lambda cluster: f"{cluster.nodes[ALLOWED_NODE].address}/32") as one:
        address, name = one.victims["node"]
        before = one.rows()
        assert one.asks(address, one.client.outside) == name
        one.claim(address)
        one.cluster.nodes[0].wait_service(f"{address}:{PORT}", 1)
        assert one.asks(address, one.client.outside) == one.thief.name
        one.give_up()
        eventually(lambda: not differences(before, one.rows()), "every row is as before")
        assert one.asks(address, one.client.outside) == name
