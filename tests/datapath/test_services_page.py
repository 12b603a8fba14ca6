# SPDX-License-Identifier: Apache-2.0
"""
docs/services.md, executed: its objects give the rows it shows, and by these rows packets go where it says.

Objects, rows and problems are those of the agent's own plan; its rows go into real maps, and packets
through the programs.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

import pytest
import yaml

from ciliumd.daemon.node_facts import NodeFacts
from ciliumd.daemon.plan import NodePlan
from ciliumd.flows.reasons import reason_text
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.net import host_port
from ciliumd.model.service import EVERY_KIND
from ciliumd.net.namespace import own_cookie
from ciliumd.resources import parse
from datapath.harness import DROP, PASS, Datapath
from datapath.openworld6 import SIX_ONE, SIX_TWO
from datapath.rows import ALLOW_ALL, Pod
from datapath.sockets import connect
from datapath.wire import AWAY_IDENTITY, GATEWAY, asks, expose
from fixtures import packets6
from fixtures.packets import Ether, from_pod, node_one, router, tcp, udp
from lab.process import REPOSITORY
from stories.script import changes, map_lines
from unit.daemon import nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scapy.packet import Packet

    from ciliumd.desired.lbrows import LbRows
    from datapath.harness import Result
    from lab.cgroup import Cgroup

pytestmark = pytest.mark.datapath

PAGE = REPOSITORY / "docs/services.md"
PODS = {"pod one": (SIX_ONE, packets6.pod_one), "pod two": (SIX_TWO, packets6.pod_two)}
SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINE = re.compile(
    r"(?P<who>.+) asks \[?(?P<address>[\d.]+|[\da-f:]+)\]?:(?P<port>\d+)/(?P<protocol>TCP|UDP): .+"
)
EXECUTED = {"yaml", "rows", "packets", "problems"}


def sections() -> dict[str, list[tuple[str, str]]]:
    """Blocks of each section, by its title: what kind they are, and their text."""
    _, *parts = SECTION.split(PAGE.read_text())
    return {title: BLOCK.findall(text) for title, text in zip(parts[::2], parts[1::2], strict=True)}


@dataclass
class Walk:
    """One section on its way: the objects so far, and the maps."""

    datapath: Datapath
    group: Cgroup
    plan: NodePlan = field(init=False)
    shown: dict[str, list[str]] = field(default_factory=dict)
    ports: Iterator[int] = field(default_factory=lambda: itertools.count(45000))

    def __post_init__(self) -> None:
        self.tables = nodes.filled()
        self.plan = NodePlan(
            self.tables,
            NodeFacts(
                "here",
                "default",
                tuple(ip_address(one.ip) for one in (node_one, router, packets6.node_one, packets6.router)),
                node_port_addresses=(ip_address(node_one.ip), ip_address(packets6.node_one.ip)),
                pod_cidrs=(ip_network("10.0.1.0/24"),),
                serves6=EVERY_KIND,
                families=frozenset({4, 6}),
            ),
            reserve_version=lambda _: None,
            next_version=1,
            clock=lambda: 0.0,
        )
        for name, pod in (("one", SIX_ONE), ("two", SIX_TWO)):
            self.tables.endpoints.set(pod.id, wired(name, pod))
        self.apply("")

    def apply(self, text: str) -> None:
        """Take in objects, and write the rows they give."""
        for document in yaml.safe_load_all(text):
            for table, key, row in parse(document).rows():
                getattr(self.tables, table).set(key, row)
        self.plan.refresh()
        self.datapath.reset()
        expose(self.datapath)
        for rows in ("backends", "revnat", "affinity_match", "source_range", "services"):
            live = self.datapath.map(f"lb_{rows}")
            live.delete_batch(list(live.keys()))
            for key, value in by_map(self.plan.services.rows)[f"cilium_lb_{rows}_v1"].items():
                live.update(key, value)
        self.datapath.native_device("net0", node_one.ip, ip6=packets6.node_one.ip)
        self.datapath.host_address(packets6.node_one.ip)
        self.datapath.ipcache(f"{packets6.pod_away.ip}/128", AWAY_IDENTITY)
        for pod in (SIX_ONE, SIX_TWO):
            self.datapath.add_endpoint(pod, *ALLOW_ALL)

    def rows(self) -> str:
        """What changed in the maps since the rows before."""
        now = map_lines(by_map(self.plan.services.rows), cookies={})
        before, self.shown = self.shown, now
        return changes(before, now).strip() + "\n"

    def problems(self) -> str:
        """What the agent says of objects that are not in force as written."""
        return "".join(
            f"{kind} {namespace}/{name}: {problem.field} {problem.message}\n"
            for (kind, namespace, name), problem in sorted(self.tables.problems.items())
            if kind == "Service"
        )

    def packets(self, text: str) -> str:
        """The lines of a block with what really happens."""
        return "".join(self._line(line) + "\n" for line in text.splitlines())

    def _line(self, line: str) -> str:
        found = LINE.fullmatch(line)
        assert found, line
        who, address, port, protocol = found.group("who", "address", "port", "protocol")
        if who == "process":
            assert protocol == "UDP"
            refused, _, remote = connect(self.group, address, int(port))
            outcome = "refused" if refused else f"connected to {host_port(*remote)}"  # type: ignore[misc]
        else:
            layer = (tcp if protocol == "TCP" else udp)(next(self.ports), int(port))
            outcome = outcome_of(self._sent(who, address, layer))
        return f"{who} asks {host_port(address, int(port))}/{protocol}: {outcome}"

    def _sent(self, who: str, address: str, layer: Packet) -> Result:
        if who in PODS:
            pod, six = PODS[who]
            packet = (
                packets6.from_pod(six, address, layer)
                if ":" in address
                else from_pod(pod.place, address, layer)
            )
            return self.datapath.send(pod, packet)
        packet = (
            packets6.frame(GATEWAY.mac, node_one.mac, who, address, layer)
            if ":" in address
            else asks(who, layer, dst=address)
        )
        return self.datapath.run("from_netdev", packet, "net0")


def by_map(rows: LbRows) -> dict[str, dict[bytes, bytes]]:
    """Rows by the map they belong into, in the order of writes."""
    return {
        "cilium_lb_backends_v1": rows.backends,
        "cilium_lb_revnat_v1": rows.revnat,
        "cilium_lb_affinity_match_v1": rows.matches,
        "cilium_lb_source_range_v1": rows.sources,
        "cilium_lb_services_v1": rows.services,
    }


def wired(name: str, pod: Pod) -> EndpointSpec:
    """The endpoint of a pod of the tests' node."""
    return EndpointSpec(
        id=pod.id,
        slot=pod.slot,
        slot_gen=pod.generation,
        namespace="default",
        pod=name,
        container_id="",
        netns=f"/run/netns/{name}",
        ifname=pod.device,
        ifindex=pod.ifindex,
        mac=pod.place.mac,
        node_mac=pod.place.node_mac,
        ipv4=pod.place.address,
        ipv6=IPv6Address(pod.ip6),
    )


def outcome_of(result: Result) -> str:
    """What became of a packet, in the page's words."""
    if result.action == PASS:
        return "left to the node's stack"
    drops = result.of_type(1)
    if drops:
        said = "dropped" if result.action == DROP else "refused"
        return f"{said}, {reason_text(drops[0].reason)} ({int(drops[0].reason)})"
    ip = Ether(result.packet).payload
    return f"{ip.src} -> {host_port(ip.dst, ip.payload.dport)}"


@pytest.fixture(scope="module")
def loaded(node: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datapath]:
    """The programs of a node that serves both families."""
    with Datapath.loaded(tmp_path_factory.mktemp("services-page"), node_port=1, ipv6=1) as datapath:
        yield datapath


@pytest.fixture
def outside(loaded: Datapath) -> Datapath:
    """Those over empty maps."""
    loaded.reset()
    return loaded


@pytest.mark.parametrize("title", [title for title, blocks in sections().items() if blocks])
def test_section(outside: Datapath, group: Cgroup, title: str) -> None:
    """Block by block."""
    if title == "Host ports" and not own_cookie():
        pytest.skip("before Linux 5.14 a node that is no machine has no 127.0.0.1 of its own")
    walk = Walk(outside, group)
    for kind, text in sections()[title]:
        assert kind in EXECUTED
        if kind == "yaml":
            walk.apply(text)
        else:
            assert getattr(walk, kind)(*([text] if kind == "packets" else [])) == text


def test_every_section_but_the_first_shows_what_happens() -> None:
    """And every kind of block is there: a page that is not read proves nothing."""
    found = sections()
    assert [title for title, blocks in found.items() if not blocks] == ["Three places"]
    assert {kind for blocks in found.values() for kind, _ in blocks} == EXECUTED
