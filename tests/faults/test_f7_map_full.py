# SPDX-License-Identifier: Apache-2.0
"""
F7: each map full in turn.  What no longer fits is refused and named, what was there goes on as it was,
and all is well again when there is room.
"""

from collections.abc import Callable, Iterator

import pytest

from ciliumd.bpf.map import Map
from lab import manifests
from lab.figures import Figures
from lab.maps import dump
from lab.meaning import meaning
from lab.node import Node
from lab.pod import Pod
from lab.probers import Probers
from lab.waiting import eventually
from lab.workload import settled
from lab.world import World

ROWS = 256
TINY = {
    "bpf-lb-map-max": str(ROWS),
    "bpf-ipcache-max": str(ROWS),
    "bpf-ct-max": "1024",
    "bpf-nat-max": "1024",
}
VIP, FULL_VIP, NEW_VIP = "10.96.0.40", "10.96.0.41", "10.96.0.42"
WIDE, NARROW = "198.51.100.0/24", "198.51.100.64/26"
ALLOWED, EXCLUDED = "198.51.100.10", "198.51.100.70"
FLOWS, CROWDED = 10_000, 9009
PRESSURE_SECONDS = 40.0


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[Node]:
    """A node with maps as small as they may be."""
    with Node(world, options=TINY) as node:
        yield node.start()


@pytest.fixture
def figures(probers: Probers, request: pytest.FixtureRequest) -> Iterator[Figures]:
    """Figures of one test, with packets all the while."""
    figures = Figures(f"F7-{request.node.name.removeprefix('test_')} map full", injected=1)
    with probers:
        yield figures


def finish(figures: Figures, probers: Probers, record_property: Callable[[str, object], None]) -> None:
    """All is as it was: report it."""
    figures.survived = 1
    probers.stop(figures)
    figures.record(record_property)
    figures.assert_harmless()


def many_ports(name: str, vip: str, number: int) -> manifests.Object:
    """A Service that takes one row for each of its ports, and one for its address."""
    return manifests.service(
        name, vip, {"app": "nobody"}, ports=[("TCP", 1000 + port, 80) for port in range(number)]
    )


def test_services(
    node: Node, probers: Probers, figures: Figures, record_property: Callable[[str, object], None]
) -> None:
    """A backend more than fits: its frontend keeps what it had; a new service is refused; then both come."""
    pods = [node.pod(f"web-{number}", {"app": "web"}).serve(tcp=(80,)) for number in range(1)]
    node.apply("web", manifests.service("web", VIP, {"app": "web"}))
    node.wait_service(f"{VIP}:80", 1)
    # One row for each port, and one for the address.
    used = len(dump(node.bpf_root)["cilium_lb_services_v1"])
    node.apply("full", many_ports("full", FULL_VIP, ROWS - used - 2))
    eventually(lambda: len(dump(node.bpf_root)["cilium_lb_services_v1"]) == ROWS - 1, "one row is left")
    eventually(lambda: pressure(node, "lb_services") >= 0.9, "the metric warns", seconds=PRESSURE_SECONDS)
    pods += [node.pod(f"web-{number}", {"app": "web"}).serve(tcp=(80,)) for number in range(1, 4)]
    eventually(lambda: "cilium_lb_services_v1" in node.agent.status_or_error(), "status names the map")
    node.apply("new", manifests.service("new", NEW_VIP, {"app": "web"}))
    eventually(
        lambda: NEW_VIP in str(node.agent.get("service")) and not node.agent.healthy(), "status is degraded"
    )

    eventually(lambda: told(node, "new").startswith(f"{NEW_VIP}:80/TCP waits for room"), "its author is told")
    assert "cilium_lb_services_v1" in told(node, "new")
    assert f"{VIP}:80/TCP" in told(node, "web")
    assert told(node, "full") == ""
    assert meaning(dump(node.bpf_root)).broken == []
    answered = [probers.sender.reaches(VIP, 80) for _ in range(20)]
    assert all(answered), "the old service lost connections"
    node.delete("full")
    node.wait_service(f"{VIP}:80", 4)
    node.wait_service(f"{NEW_VIP}:80", 4)
    eventually(node.agent.healthy, "all is well again", seconds=40.0)
    assert (told(node, "new"), told(node, "web")) == ("", "")
    assert meaning(dump(node.bpf_root)).broken == []
    for pod in pods:
        node.remove_pod(pod)
    for name in ("web", "new"):
        node.delete(name)
    finish(figures, probers, record_property)


def told(node: Node, name: str) -> str:
    """What the author of a service is told; empty when nothing is wrong."""
    for one in node.agent.get("policy")["problems"]:
        if (one["kind"], one["name"]) == ("Service", name):
            return str(one["message"])
    return ""


def allow_from(name: str, app: str, *cidrs: str, excluded: str | None = None) -> manifests.Object:
    """Let the world in from these prefixes, but for one inside the last of them."""
    sets: list[manifests.Object] = [{"cidr": cidr} for cidr in cidrs]
    if excluded is not None:
        sets[-1]["except"] = [excluded]
    return manifests.cilium_policy(
        name,
        {"endpointSelector": {"matchLabels": {"app": app}}, "ingress": [{"fromCIDRSet": sets}]},
    )


def test_prefixes(
    node: Node,
    world: World,
    probers: Probers,
    figures: Figures,
    record_property: Callable[[str, object], None],
) -> None:
    """An exception that does not fit keeps out what it is an exception of: nobody excluded gets in."""
    server = node.pod("open", {"app": "open"}).serve(tcp=(80,))

    def from_world(address: str) -> bool:
        return answers(node, world, server, address)

    # Default deny, and an LPM map with room for one prefix more.
    fill(node, "open", leave=1)
    assert not from_world(ALLOWED)
    node.apply("wide", allow_from("wide", "open", WIDE, excluded=NARROW))
    eventually(lambda: "cilium_ipcache_lpm_v1" in node.agent.status_or_error(), "status names the map")
    figures.wrongly_allowed += sum(from_world(EXCLUDED) for _ in range(5))
    assert figures.wrongly_allowed == 0
    make_room(node, from_world, figures)
    node.delete("wide")
    node.remove_pod(node.pods["default/open"])
    finish(figures, probers, record_property)


def test_exceptions(
    node: Node,
    world: World,
    probers: Probers,
    figures: Figures,
    record_property: Callable[[str, object], None],
) -> None:
    """The world has a row always: an exception from it that does not fit shuts it out until there is room."""
    server = node.pod("but", {"app": "but"}).serve(tcp=(80,))

    def from_world(address: str) -> bool:
        return answers(node, world, server, address)

    fill(node, "but", leave=0)
    node.apply_policy("whole", allow_from("whole", "but", "0.0.0.0/0", excluded=NARROW))
    figures.wrongly_allowed += sum(from_world(EXCLUDED) for _ in range(5))
    assert figures.wrongly_allowed == 0
    assert "cilium_ipcache_lpm_v1" in node.agent.status_or_error()
    assert NARROW in str(node.problems()), "the prefix is named"
    make_room(node, from_world, figures)
    node.delete("whole")
    node.remove_pod(node.pods["default/but"])
    finish(figures, probers, record_property)


def fill(node: Node, app: str, *, leave: int) -> None:
    """Let only prefixes in that nobody has, as many as fit into the LPM map but for a few."""
    settled(node)  # rows of policies that are gone stay as long as their versions
    used = len(dump(node.bpf_root)["cilium_ipcache_lpm_v1"])
    fillers = [f"10.{200 + number // 256}.{number % 256}.0/24" for number in range(ROWS - used - leave)]
    node.apply_policy("filler", allow_from("filler", app, *fillers))
    eventually(lambda: len(dump(node.bpf_root)["cilium_ipcache_lpm_v1"]) == ROWS - leave, "few rows are left")


def make_room(node: Node, from_world: Callable[[str], bool], figures: Figures) -> None:
    """The others' prefixes go: who is allowed gets in, and still nobody else."""
    node.delete("filler")
    eventually(lambda: from_world(ALLOWED), "who is allowed gets in once there is room", seconds=40.0)
    figures.wrongly_allowed += sum(from_world(EXCLUDED) for _ in range(5))
    eventually(node.agent.healthy, "all is well again", seconds=40.0)


def answers(node: Node, world: World, server: Pod, address: str) -> bool:
    """Whether a pod answers to one of the addresses of the world."""
    world.netns.ip("address", "replace", f"{address}/32", "dev", "lo")
    world.netns.ip("route", "replace", node.pod_cidr, "via", node.address, "src", address)
    reply = world.actor.call("tcp_connect", address=server.address, port=80, timeout=0.4)
    return bool(reply["outcome"] == "answered")


def ranges(app: str, number: int) -> manifests.Object:
    """An allow of very many ports: ranges that share no prefix."""
    ports = [
        {"port": str(start), "endPort": start + 97, "protocol": "ANY"}
        for start in range(1, 1 + 100 * number, 100)
    ]
    rules = [
        {"fromEndpoints": [{}], "toPorts": [{"ports": ports[at : at + 40]}]} for at in range(0, number, 40)
    ]
    return manifests.cilium_policy(
        "ranges", {"endpointSelector": {"matchLabels": {"app": app}}, "ingress": rules}
    )


def test_policy(
    node: Node, probers: Probers, figures: Figures, record_property: Callable[[str, object], None]
) -> None:
    """Rules that do not fit: who was there keeps the old ones, a newcomer is shut, status names both."""
    old = node.pod("strict", {"app": "strict"}).serve(tcp=(80, 101))
    node.apply_policy(
        "strict",
        manifests.cilium_policy(
            "strict",
            {
                "endpointSelector": {"matchLabels": {"app": "strict"}},
                "ingress": [{"fromEndpoints": [{}], "toPorts": manifests.to_ports((80, "TCP"))}],
            },
        ),
    )
    # Known before the pod is, so that it is under these rules from its first moment.
    node.apply("pod-default-newcomer", manifests.pod("newcomer", {"app": "strict"}))
    node.apply("ranges", ranges("strict", 655))
    eventually(lambda: "strict" in str(node.agent.get("policy").get("problems")), "status names the endpoint")
    new = node.pod("newcomer", {"app": "strict"}).serve(tcp=(80, 101))

    assert probers.sender.reaches(old.address, 80)
    figures.wrongly_allowed += probers.sender.reaches(old.address, 200)
    figures.wrongly_allowed += any(probers.sender.reaches(new.address, port) for port in (80, 101))
    node.apply("ranges", ranges("strict", 4))
    eventually(lambda: probers.sender.reaches(old.address, 101), "rules that fit are in force")
    assert probers.sender.reaches(new.address, 80)
    eventually(node.agent.healthy, "all is well again", seconds=40.0)
    for name in ("strict", "ranges"):
        node.delete(name)
    for pod in (old, new):
        node.remove_pod(pod)
    finish(figures, probers, record_property)


def test_conntrack(
    node: Node, probers: Probers, figures: Figures, record_property: Callable[[str, object], None]
) -> None:
    """Many times more flows than there are rows: the oldest make room, and every new connection works."""
    count = FLOWS
    refused = sum(
        probers.sender.tcp(probers.receiver.address, 80)["outcome"] != "answered" for _ in range(count // 100)
    )
    crowd = probers.sender.outside.call(
        "udp_crowd", address=probers.receiver.address, port=CROWDED, count=count, wait=60.0
    )
    refused += sum(
        probers.sender.tcp(probers.receiver.address, 80)["outcome"] != "answered" for _ in range(count // 100)
    )
    rows = len(list(flow_rows(node)))

    assert crowd["sent"] == count
    assert refused == 0
    assert rows <= int(TINY["bpf-ct-max"])
    figures.more |= {"flows opened": count, "connections refused": refused}
    finish(figures, probers, record_property)


def flow_rows(node: Node) -> list[bytes]:
    """Keys of the conntrack map."""
    with Map.from_pin(node.bpf_root / "maps" / "cilium_ct_v1") as opened:
        return list(opened.keys())


def pressure(node: Node, name: str) -> float:
    """The fill of a map as the metrics tell it."""
    for sample in node.agent.cilium_json("metrics", "list"):
        if sample["name"] == "cilium_bpf_map_pressure" and sample["labels"].get("map_name") == name:
            return float(sample["value"])
    return 0.0
