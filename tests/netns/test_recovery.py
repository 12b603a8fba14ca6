# SPDX-License-Identifier: Apache-2.0
"""What a start must put right: kills in the midst of work, lost files and devices, changed options."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from ciliumd.bpf.features import tcx_supported
from ciliumd.cli.errors import CommandError
from lab import manifests, maps
from lab.node import Node
from lab.pod import Pod
from lab.waiting import eventually
from lab.world import World

pytestmark = pytest.mark.netns

VIP = "10.96.0.70"
KILL_AFTER = (0.0, 0.01, 0.02, 0.04, 0.06, 0.1)


@pytest.fixture
def node(world: World) -> Iterator[Node]:
    """A node of its own for each test: it is treated badly."""
    with Node(world) as node:
        yield node.start()


@pytest.fixture
def pods(node: Node) -> tuple[Pod, Pod]:
    """A server behind a service, and a client."""
    server = node.pod("server", {"app": "server"}).serve(tcp=(80,), udp=(80,))
    client = node.pod("client", {"app": "client"})
    node.apply("service", manifests.service("server", VIP, {"app": "server"}))
    node.wait_service(f"{VIP}:80", 1)
    return server, client


def all_ways(node: Node, server: Pod, client: Pod) -> dict[str, str]:
    """What becomes of a connection on each way."""
    return {
        "pod to pod": client.tcp(server.address, 80)["outcome"],
        "per packet": client.tcp(VIP, 80)["outcome"],
        "by socket": client.inside.call("tcp_connect", address=VIP, port=80)["outcome"],
        "node to pod": node.outside.call("tcp_connect", address=server.address, port=80)["outcome"],
        "pod to node": client.ping(node.address)["outcome"],
    }


ALL_WELL = dict.fromkeys(("pod to pod", "per packet", "by socket", "node to pod", "pod to node"), "answered")


def test_kill_while_a_pod_is_made_leaves_all_or_nothing(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Killed at any moment of an addition, the next agent has the pod whole or can make it anew."""
    server, _ = pods
    for number, delay in enumerate(KILL_AFTER):
        name = f"hasty-{number}"
        node.apply(f"pod-default-{name}", manifests.pod(name, {"app": "hasty"}))
        pod = Pod(name, "default", cgroup=node.cgroup.path)
        node.pods[pod.key] = pod

        def add(pod: Pod = pod) -> None:
            with suppress(CommandError):
                node.agent.client.put("endpoint", {"netns": str(pod.netns.path), "pod": pod.key})

        adding = threading.Thread(target=add)
        adding.start()
        time.sleep(delay)
        node.agent.restart(signal.SIGKILL)
        adding.join()
        node.add_endpoint(pod)

        assert pod.reaches(server.address, 80), f"after a kill {delay} s into the addition"
        assert pod.reaches(VIP, 80)
        devices = {link for link in node.netns.links() if link.startswith("lxc")}
        endpoints = {one["status"]["networking"]["interface-name"] for one in node.agent.get("endpoint")}
        assert devices == endpoints
    addresses = [one["status"]["networking"]["addressing"][0]["ipv4"] for one in node.agent.get("endpoint")]
    assert len(set(addresses)) == len(addresses) == len(node.pods)


def test_kill_while_policies_change_ends_as_written(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Killed at any moment of a change, the next agent holds what the files say, and nothing besides."""
    server, client = pods

    def policy(port: int) -> manifests.Object:
        return manifests.cilium_policy(
            "server",
            {
                "endpointSelector": {"matchLabels": {"app": "server"}},
                "ingress": [{"toPorts": manifests.to_ports((port, "TCP"))}],
            },
        )

    for number, delay in enumerate((0.05, 0.3, 0.35)):
        port = 80 if number % 2 else 81
        node.apply("policy", policy(port))
        time.sleep(delay)
        node.agent.restart(signal.SIGKILL)
        eventually(
            lambda port=port: client.reaches(server.address, 80) == (port == 80),
            "the last policy is in force",
        )
        eventually(
            lambda: len(maps.dump(node.bpf_root)["cilium_policy_rules_v1"]) == 2,
            "policy versions nobody uses are gone",
        )


def test_lost_endpoint_file_cuts_no_pod_off(node: Node, pods: tuple[Pod, Pod]) -> None:
    """The file of endpoints full of other bytes: pods keep their network, number and policy."""
    server, client = pods
    before = {one["id"] for one in node.agent.get("endpoint")}
    node.agent.stop()
    path = node.directory / "state" / "endpoints.json"
    path.write_bytes(os.urandom(300))
    node.agent.start()
    time.sleep(1.0)

    assert "endpoints.json" in node.agent.log_text()
    assert all_ways(node, server, client) == ALL_WELL
    assert {one["id"] for one in node.agent.get("endpoint")} == before


def test_deleted_host_device_is_made_again_at_the_next_start(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Without cilium_host, pods of the node still talk; a restart brings the rest back."""
    server, client = pods
    node.netns.ip("link", "del", "cilium_host")
    eventually(lambda: not node.agent.healthy(), "status tells")
    assert client.reaches(server.address, 80)
    node.agent.restart()

    assert all_ways(node, server, client) == ALL_WELL


@contextmanager
def option(node: Node, name: str, value: str | None) -> Iterator[None]:
    """Restart with one option changed, or without it; and back."""
    before = dict(node.agent.options)
    node.agent.stop()
    if value is None:
        del node.agent.options[name]
    else:
        node.agent.options[name] = value
    node.agent.start()
    yield
    node.agent.stop()
    node.agent.options = before
    node.agent.start()


def test_change_of_attach_mode_leaves_one_set_of_programs(node: Node, pods: tuple[Pod, Pod]) -> None:
    """From what the kernel has to clsact and back: traffic flows, and nothing of the other kind is left."""
    server, client = pods
    device = client.endpoint["status"]["networking"]["interface-name"]

    def filters() -> str:
        return node.netns.run(["/usr/sbin/tc", "filter", "show", "dev", device, "ingress"]).stdout

    with option(node, "attach-mode", "tc"):
        assert all_ways(node, server, client) == ALL_WELL
        assert filters()
        assert not [pin.name for pin in maps.link_pins(node.bpf_root) if pin.name.startswith("tcx")]
    assert all_ways(node, server, client) == ALL_WELL
    assert bool(filters()) is not tcx_supported()


def test_without_cgroup_root_no_socket_is_translated(node: Node, pods: tuple[Pod, Pod]) -> None:
    """The option is taken away: status says Disabled, and no program of an earlier agent stays."""
    server, client = pods
    with option(node, "cgroup-root", None):
        assert re.search(r"Socket LB: +Disabled", node.agent.cilium("status", "--verbose"))
        assert not [pin.name for pin in maps.link_pins(node.bpf_root) if pin.name.startswith("cgroup")]
        assert client.inside.call("tcp_connect", address=VIP, port=80)["outcome"] == "answered"
    assert all_ways(node, server, client) == ALL_WELL


def test_pod_nobody_has_described_yet_is_closed(node: Node, pods: tuple[Pod, Pod]) -> None:
    """A pod whose manifest is not known may neither be reached nor reach; then it is what its labels say."""
    server, _ = pods
    pod = Pod("unknown", "default", cgroup=node.cgroup.path)
    node.pods[pod.key] = pod
    pod.endpoint = node.agent.client.put("endpoint", {"netns": str(pod.netns.path), "pod": pod.key})
    pod.serve(tcp=(80,))

    assert pod.endpoint["status"]["identity"]["id"] == 5
    assert not server.reaches(pod.address, 80)
    assert not pod.reaches(server.address, 80)
    node.apply("pod-default-unknown", manifests.pod("unknown", {"app": "known"}))
    node.wait_endpoint(pod)
    assert server.reaches(pod.address, 80)
    assert pod.reaches(server.address, 80)


def test_many_pods_at_once(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Twenty pods asked for at the same time are all made, each with its own address, and all go again."""
    server, _ = pods
    crowd = [Pod(f"crowd-{number}", "default", cgroup=node.cgroup.path) for number in range(20)]
    node.apply("crowd", *(manifests.pod(pod.name, {"app": "crowd"}) for pod in crowd))
    node.pods |= {pod.key: pod for pod in crowd}
    before = maps.dump(node.bpf_root)["cilium_lxc_v1"]
    adding = [threading.Thread(target=node.add_endpoint, args=(pod,)) for pod in crowd]
    for one in adding:
        one.start()
    for one in adding:
        one.join()

    assert len({pod.address for pod in crowd}) == len({pod.id for pod in crowd}) == len(crowd)
    assert all(pod.reaches(server.address, 80) for pod in crowd[::5])
    going = [threading.Thread(target=node.agent.client.delete, args=(f"endpoint/{pod.id}",)) for pod in crowd]
    for one in going:
        one.start()
    for one in going:
        one.join()
    eventually(lambda: maps.dump(node.bpf_root)["cilium_lxc_v1"] == before, "no row of the crowd is left")


def test_datagrams_move_on_when_their_backend_goes(node: Node, pods: tuple[Pod, Pod]) -> None:
    """One UDP socket that keeps sending through a service reaches another backend when its own is gone."""
    _, client = pods
    service = manifests.service("dns", "10.96.0.71", {"app": "dns"}, ports=[("UDP", 53, 53)])
    backends = {name: node.pod(name, {"app": "dns"}).serve(udp=(53,)) for name in ("dns-a", "dns-b")}
    node.apply("dns", service)
    node.wait_service("10.96.0.71:53", 2)

    def ask() -> str:
        return str(client.udp("10.96.0.71", 53, source_port=5555)["answer"]["server"])

    first = ask()
    assert {ask() for _ in range(5)} == {first}
    node.remove_pod(backends[first])
    node.wait_service("10.96.0.71:53", 1)

    assert ask() != first
