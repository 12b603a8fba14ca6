# SPDX-License-Identifier: Apache-2.0
"""
F7: the maps that no option sizes, full in turn: of rows that nobody knows, written by hand.

The agent compares its maps once an hour here, so that it does not make room by itself.  What no longer fits
is refused and told, who was there notices nothing, and all is well once there is room.  Slots of endpoints
(cilium_endpoints_v1 and their words) are numbers that run out, which a unit test does.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from ciliumd import abi
from ciliumd.bpf.map import Map
from lab import manifests
from lab.figures import Figures
from lab.netns import veth
from lab.node import Node
from lab.pod import Pod
from lab.probers import Probers
from lab.waiting import eventually
from lab.world import World

OLD_VIP, VIP, BALANCER = "10.96.0.44", "10.96.0.43", "198.51.100.43"
NEW, ADDRESS = {"app": "new"}, "10.11.0.150"
OF_PODS = ("cilium_ifindex_v1", "cilium_lxc_v1", "cilium_ipcache_v1")
OF_SERVICES = ("cilium_lb_backends_v1", "cilium_lb_revnat_v1")
OF_POLICIES = ("cilium_policy_classes_v1", "cilium_policy_rules_v1")
# What a service depends on for its meaning, and the frontend of it that waits.
OF_KINDS = {
    "cilium_lb_affinity_match_v1": (f"{VIP}:80/TCP", 80),
    "cilium_lb_source_range_v1": (f"{BALANCER}:80/TCP", 80),
    "cilium_lb_bind_v1": ("NODE:30080/TCP", 30080),
}
OF_PACKETS = ("cilium_lb_affinity_v1", "cilium_snat_v1", "cilium_lb_sock_v1", "cilium_frags_v1")
WELL_SECONDS = 45.0
TRIES = 20
# More than one frame holds.
LARGE = "x" * 4000


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[Node]:
    """A node whose agent does not look at its maps again within the test."""
    with Node(world, options={"drift-interval": "3600"}) as node:
        yield node.start()


@pytest.fixture(scope="module")
def old(node: Node, probers: Probers, world: World) -> Pod:
    """A service, a policy and connections that were there before."""
    world.actor.call("serve_tcp", name="far", port=80, address=world.far)
    probers.receiver.serve(udp=(53,))
    # Its clients keep their backend: a row of cilium_lb_affinity_v1 for each.
    node.apply("old", manifests.service("old", OLD_VIP, {"app": "receiver"}, affinity_seconds=60))
    node.wait_service(f"{OLD_VIP}:80", 1)
    ports = manifests.to_ports((80, "TCP"))
    node.apply_policy(
        "new",
        manifests.cilium_policy(
            "new",
            {
                "endpointSelector": {"matchLabels": NEW},
                "ingress": [
                    {"fromEndpoints": [{"matchLabels": {"app": "sender"}}], "toPorts": ports},
                ],
            },
        ),
    )
    return probers.receiver


def junk(name: str) -> Iterator[bytes]:
    """Keys that no agent and no packet writes."""
    size = abi.MAPS[name].key_size
    # A trie refuses a prefix that is longer than its keys.
    length = (8 * (size - 4)).to_bytes(4, "little") if abi.MAPS[name].type is abi.MapType.LPM_TRIE else b""
    for number in range(abi.MAPS[name].max_entries):
        # No number of ours is that large, and no address begins so.
        yield (length + (0xF0000000 + number).to_bytes(4, "little")).ljust(size, b"\xfd")


@contextmanager
def full(node: Node, name: str) -> Iterator[int]:
    """No row fits into a map; how many were written for that."""
    with ExitStack() as stack:
        opened = stack.enter_context(Map.from_pin(node.bpf_root / "maps" / name))
        keys = list(junk(name))
        if spec := abi.MAPS[name].inner:
            one = stack.enter_context(Map.create(spec))
            failed = opened.update_inner(dict.fromkeys(keys, one))
        else:
            failed = opened.update_batch(dict.fromkeys(keys, bytes(abi.MAPS[name].value_size)))
        try:
            yield len(keys) - len(failed)
        finally:
            opened.delete_batch(keys)


def new_pod(node: Node) -> Pod:
    """A pod that is not yet part of the node."""
    node.apply("pod-default-new", manifests.pod("new", NEW))
    pod = Pod("new", "default", cgroup=node.cgroup.path)
    node.pods[pod.key] = pod
    return pod


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every map with ``--long``, one of each kind without."""
    if "waiting" in metafunc.fixturenames:
        kinds = (OF_PODS, OF_SERVICES, OF_POLICIES)
        whole = metafunc.config.getoption("--long")
        metafunc.parametrize("waiting", [name for kind in kinds for name in (kind if whole else kind[1:2])])


def test_what_does_not_fit_waits_for_room(
    node: Node, probers: Probers, old: Pod, waiting: str, record_property: Callable[[str, object], None]
) -> None:
    """A pod under a policy of its own and a service of it come while the map is full."""
    figures = Figures(f"F7-{waiting} full", injected=1)
    with probers, ThreadPoolExecutor(1) as runtime:
        with full(node, waiting) as written:
            node.apply("new-service", manifests.service("new", VIP, NEW))
            pod = new_pod(node)
            # As a runtime does: it waits for the answer, which comes when the pod's rows are written.
            adding = runtime.submit(node.add_endpoint, pod, ip=ADDRESS)
            eventually(lambda: waiting in node.agent.status_or_error(), "status names the map")
            figures.wrongly_allowed += sum(probers.stranger.reaches(ADDRESS, 80) for _ in range(3))
            assert probers.sender.reaches(old.address, 80)
            assert (
                probers.sender.inside.call("tcp_connect", address=OLD_VIP, port=80)["outcome"] == "answered"
            )
            figures.more |= {"rows to fill it": written, "pod had to wait": int(not adding.done())}
        adding.result(timeout=WELL_SECONDS)
        pod.serve(tcp=(80,))
        node.wait_service(f"{VIP}:80", 1)
        eventually(lambda: probers.sender.reaches(VIP, 80), "the new service works", seconds=WELL_SECONDS)
        eventually(node.agent.healthy, "all is well again", seconds=WELL_SECONDS)
        figures.wrongly_allowed += probers.stranger.reaches(pod.address, 80)
        node.delete("new-service")
        node.remove_pod(pod)
        eventually(node.agent.healthy, "all is well again", seconds=WELL_SECONDS)
        figures.survived = 1
        probers.stop(figures)
    figures.record(record_property)

    figures.assert_harmless()


def of_kind(name: str, client: str) -> manifests.Object:
    """A service of pods that are there, with what takes a row of a map, which *client* may ask."""
    timeout = 60 if name == "cilium_lb_affinity_match_v1" else 0
    made = manifests.service("kind", VIP, {"app": "receiver"}, affinity_seconds=timeout)
    if name == "cilium_lb_source_range_v1":
        made["spec"] |= {"type": "LoadBalancer", "loadBalancerSourceRanges": [f"{client}/32"]}
        made["status"] = {"loadBalancer": {"ingress": [{"ip": BALANCER}]}}
    if name == "cilium_lb_bind_v1":
        made["spec"]["type"] = "NodePort"
        made["spec"]["ports"][0]["nodePort"] = 30080
    return made


@pytest.mark.parametrize("name", OF_KINDS)
def test_a_frontend_waits_for_what_it_is_to_mean(
    node: Node, probers: Probers, old: Pod, name: str, record_property: Callable[[str, object], None]
) -> None:
    """It is not served without its affinity, its ranges or its port for itself; its author is told."""
    figures = Figures(f"F7-{name} full", injected=1)
    text, port = OF_KINDS[name]
    frontend = text.replace("NODE", node.address)
    with probers:
        with full(node, name) as written:
            node.apply("kind", of_kind(name, probers.sender.address))
            eventually(
                lambda: f"{frontend} waits for room in {name}" in told(node, "kind"), "its author is told"
            )
            assert name in node.agent.status_or_error()
            assert frontend.removesuffix("/TCP") not in realized(node)
            if name != "cilium_lb_affinity_match_v1":
                node.wait_service(f"{VIP}:80", 1)
            assert probers.sender.reaches(OLD_VIP, 80), old
            figures.more["rows to fill it"] = written
        node.wait_service(frontend.removesuffix("/TCP"), 1)
        eventually(lambda: told(node, "kind") == "", "nothing is wrong any more", seconds=WELL_SECONDS)
        eventually(node.agent.healthy, "all is well again", seconds=WELL_SECONDS)
        for person in (probers.sender.inside, probers.sender.outside):
            reply = person.call("tcp_connect", address=frontend.split(":")[0], port=port)
            assert reply["outcome"] == "answered", (person.who, reply)
        node.delete("kind")
        eventually(lambda: frontend.removesuffix("/TCP") not in realized(node), "it is gone")
        figures.survived = 1
        probers.stop(figures)
    figures.record(record_property)

    figures.assert_harmless()


def told(node: Node, name: str) -> str:
    """What the author of a service is told; empty when nothing is wrong."""
    found = [one["message"] for one in node.problems() if (one["kind"], one["name"]) == ("Service", name)]
    return "".join(found)


def realized(node: Node) -> list[str]:
    """Addresses and ports that the maps serve."""
    return [
        f"{one['spec']['frontend-address']['ip']}:{one['spec']['frontend-address']['port']}"
        for one in node.agent.get("service")
        if one["status"].get("realized")
    ]


def test_devices(
    node: Node, world: World, probers: Probers, old: Pod, record_property: Callable[[str, object], None]
) -> None:
    """A native device more than fits: status names the map, and pods reach the world as before."""
    figures = Figures("F7-cilium_devices_v1 full", injected=1)
    with probers, full(node, "cilium_devices_v1") as written:
        figures.more["rows to fill it"] = written
        veth(node.netns, "eth9", world.netns, "node-ninth", mtu=1500)
        node.netns.ip("address", "add", "192.168.209.2/24", "dev", "eth9")
        node.netns.ip("route", "add", "default", "via", "192.168.209.1", "dev", "eth9", "metric", "900")
        eventually(
            lambda: "cilium_devices_v1" in node.agent.status_or_error(), "status names the map", seconds=30.0
        )
        assert probers.sender.reaches(world.far, 80)
    node.netns.ip("link", "del", "eth9")
    eventually(node.agent.healthy, "all is well again", seconds=WELL_SECONDS)
    figures.survived = 1
    figures.record(record_property)

    figures.assert_harmless()


@pytest.mark.parametrize("name", OF_PACKETS)
def test_what_packets_write_makes_room(
    node: Node,
    world: World,
    probers: Probers,
    old: Pod,
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    """To the world, to a service by socket, in fragments: none of it is refused, the oldest row goes."""
    figures = Figures(f"F7-{name} full", injected=1)
    with probers, full(node, name) as written:
        outcomes = [probers.sender.reaches(world.far, 80) for _ in range(TRIES)]
        inside = probers.sender.inside
        outcomes += [
            inside.call("tcp_connect", address=OLD_VIP, port=80, timeout=1.0)["outcome"] == "answered"
            for _ in range(TRIES)
        ]
        outcomes += [
            probers.sender.udp(old.address, 53, payload=LARGE)["outcome"] == "answered" for _ in range(TRIES)
        ]
        figures.more |= {"rows to fill it": written, "refused": outcomes.count(False)}
        figures.survived = int(all(outcomes))
        probers.stop(figures)
    figures.record(record_property)

    figures.assert_harmless()
