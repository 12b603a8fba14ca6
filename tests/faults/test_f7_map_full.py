# SPDX-License-Identifier: Apache-2.0
"""
F7: each map full in turn.  What no longer fits is refused and named, what was there goes on as it was,
and all is well again when there is room.
"""

from collections.abc import Callable, Iterator

import pytest

from lab import manifests
from lab.figures import Figures
from lab.maps import dump
from lab.meaning import meaning
from lab.node import Node
from lab.probers import Probers
from lab.waiting import eventually
from lab.world import World

ROWS = 256
TINY = {
    "bpf-lb-map-max": str(ROWS),
    "bpf-ipcache-max": str(ROWS),
    "bpf-ct-max": "1024",
    "bpf-nat-max": "1024",
}
VIP, FULL_VIP, NEW_VIP = "10.96.0.40", "10.96.0.41", "10.96.0.42"
PRESSURE_SECONDS = 40.0


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[Node]:
    """A node with maps as small as they may be."""
    with Node(world, options=TINY) as node:
        yield node.start()


@pytest.fixture(scope="module")
def probers(node: Node) -> Probers:
    """Who must get through all the while, and who must not."""
    return Probers(node)


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

    assert meaning(dump(node.bpf_root)).broken == []
    answered = [probers.sender.reaches(VIP, 80) for _ in range(20)]
    assert all(answered), "the old service lost connections"
    node.delete("full")
    node.wait_service(f"{VIP}:80", 4)
    node.wait_service(f"{NEW_VIP}:80", 4)
    eventually(node.agent.healthy, "all is well again", seconds=40.0)
    assert meaning(dump(node.bpf_root)).broken == []
    for pod in pods:
        node.remove_pod(pod)
    for name in ("web", "new"):
        node.delete(name)
    finish(figures, probers, record_property)


def pressure(node: Node, name: str) -> float:
    """The fill of a map as the metrics tell it."""
    for sample in node.agent.cilium_json("metrics", "list"):
        if sample["name"] == "cilium_bpf_map_pressure" and sample["labels"].get("map_name") == name:
            return float(sample["value"])
    return 0.0
