# SPDX-License-Identifier: Apache-2.0
"""
K12: ports that two want.  Flows of two pods and of the node share one address towards one server.

Whoever comes first keeps its own port, whoever comes later gets another; answers find the one who asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any

import pytest
from scapy.packet import Packet

from datapath.harness import DROP, PASS, REDIRECT, Datapath
from datapath.node import NAT_PORTS
from datapath.openworld6 import SIX_ONE, SIX_TWO
from datapath.rows import ALLOW_ALL, POD_ONE, POD_TWO
from datapath.tally import Tally
from datapath.wire import GATEWAY, port_of
from fixtures import packets, packets6
from fixtures.packets import tcp, udp

pytestmark = pytest.mark.datapath

SERVER = 53
PORTS = (40001, 40002)
AT_ONCE = 3
WANTED = 200  # flows that want one of len(NAT_PORTS) ports


@dataclass(frozen=True, slots=True)
class Flow:
    """Somebody's own port; an echo's id."""

    owner: str
    port: int


PODS = {"one": POD_ONE, "two": POD_TWO}
FLOWS = tuple(Flow(owner, port) for owner in (*PODS, "node") for port in PORTS)


@dataclass(frozen=True, slots=True)
class Family:
    """How one family spells places and packets."""

    module: ModuleType
    on_wire: Callable[..., bytes]
    hosts: Mapping[str, Any]
    node: str
    world: str

    def asks(self, protocol: str, port: int) -> Packet:
        """To the server."""
        kinds = {"udp": udp(port, SERVER), "tcp": tcp(port, SERVER), "icmp": self.module.ping(port)}
        return kinds[protocol]

    def answers(self, protocol: str, port: int) -> Packet:
        """From it."""
        kinds = {"udp": udp(SERVER, port), "tcp": tcp(SERVER, port, "SA"), "icmp": self.module.pong(port)}
        return kinds[protocol]


FAMILIES = {
    name: Family(
        module,
        on_wire,
        {"one": module.pod_one, "two": module.pod_two},
        module.node_one.ip,
        module.world_one.ip,
    )
    for name, module, on_wire in (("IPv4", packets, packets.on_wire), ("IPv6", packets6, packets6.frame))
}


@cache
def _sent(name: str, protocol: str, flow: Flow) -> bytes:
    family = FAMILIES[name]
    layer = family.asks(protocol, flow.port)
    if flow.owner == "node":
        return family.on_wire(packets.node_one.mac, GATEWAY.mac, family.node, family.world, layer)
    return bytes(family.module.from_pod(family.hosts[flow.owner], family.world, layer))


@cache
def _answer(name: str, protocol: str, port: int) -> bytes:
    family = FAMILIES[name]
    layer = family.answers(protocol, port)
    return family.on_wire(GATEWAY.mac, packets.node_one.mac, family.world, family.node, layer)


@cache
def _received(name: str, protocol: str, flow: Flow) -> bytes:
    """What the one who asked must see."""
    if flow.owner == "node":
        return _answer(name, protocol, flow.port)
    family = FAMILIES[name]
    layer = family.answers(protocol, flow.port)
    return bytes(family.module.to_pod(family.hosts[flow.owner], family.world, layer))


def _port_on_wire(name: str, protocol: str, wired: bytes) -> int:
    """The source port, or echo id."""
    if name == "IPv4":
        return port_of(wired)
    at = 54 + (4 if protocol == "icmp" else 0)
    return int.from_bytes(wired[at : at + 2], "big")


class Wire:
    """Both programs of a native device, and the pods' behind them."""

    def __init__(self, datapath: Datapath, name: str) -> None:
        entries = datapath.generation.entries
        net0 = datapath.native_device("net0", packets.node_one.ip, ip6=packets6.node_one.ip)
        self.name = name
        self._pods = {
            owner: partial(entries["entry_from_container"].test_run, ifindex=pod.ifindex)
            for owner, pod in PODS.items()
        }
        self._out = partial(entries["entry_to_netdev"].test_run, ifindex=net0)
        self._in = partial(entries["entry_from_netdev"].test_run, ifindex=net0)
        self._maps = [datapath.map(name) for name in ("ct", "snat")]

    def forget(self) -> None:
        """No flow is known."""
        for rows in self._maps:
            rows.delete_batch(list(rows.keys()))

    def leave(self, protocol: str, flow: Flow) -> int | None:
        """The port on the wire; None when it was refused."""
        frame = _sent(self.name, protocol, flow)
        if flow.owner in self._pods:
            frame = self._pods[flow.owner](frame).data
        wired = self._out(frame)
        return None if wired.retval == DROP else _port_on_wire(self.name, protocol, wired.data)

    def returns(self, protocol: str, flow: Flow, port: int) -> bool:
        """Whether what the server answers to this port is what the one who asked must see."""
        run = self._in(_answer(self.name, protocol, port))
        there = PASS if flow.owner == "node" else REDIRECT
        return (run.retval, run.data) == (there, _received(self.name, protocol, flow))


@pytest.fixture(params=sorted(FAMILIES))
def wire(both_families: Datapath, request: pytest.FixtureRequest) -> Wire:
    """A node with a way out, and no flows."""
    both_families.reset()
    both_families.host_address(packets.node_one.ip)
    both_families.host_address(packets6.node_one.ip)
    for pod in (SIX_ONE, SIX_TWO):
        both_families.add_endpoint(pod, *ALLOW_ALL)
    return Wire(both_families, request.param)


@pytest.mark.parametrize("protocol", ["udp", "tcp", "icmp"])
def test_ports_that_several_want(wire: Wire, protocol: str, tally: Tally) -> None:
    """In every order of three flows of six; answers come in that order, and turned round."""
    sequences = crossed = answers = 0
    for flows in itertools.permutations(FLOWS, AT_ONCE):
        wire.forget()
        sequences += 1
        ports = {flow: wire.leave(protocol, flow) for flow in flows}
        assert set(ports.values()) <= set(NAT_PORTS), ports
        assert len(set(ports.values())) == AT_ONCE, ports
        taken: set[int | None] = set()
        for flow, port in ports.items():
            assert port == flow.port or flow.port in taken, ports
            taken.add(port)
        # Asked again, it is the same flow.
        assert {flow: wire.leave(protocol, flow) for flow in flows} == ports
        for flow in (*flows, *reversed(flows)):
            answers += 1
            crossed += not wire.returns(protocol, flow, ports[flow] or 0)

    tally(
        f"K12 NAT, {wire.name}, {protocol}",
        injected=answers,
        delivered=answers - crossed,
        wrong=crossed,
        sequences=sequences,
    )
    assert crossed == 0


@pytest.mark.parametrize("protocol", ["udp", "tcp", "icmp"])
def test_more_flows_than_ports(wire: Wire, protocol: str, tally: Tally) -> None:
    """Who has a port keeps it and gets its answers; who has none is refused and takes nobody's."""
    flows = [Flow(("one", "two")[number % 2], 40_000 + number) for number in range(WANTED)]
    ports = {flow: wire.leave(protocol, flow) for flow in flows}
    served = {flow: port for flow, port in ports.items() if port is not None}
    again = {flow: wire.leave(protocol, flow) for flow in served}
    crossed = sum(not wire.returns(protocol, flow, port) for flow, port in served.items())

    tally(
        f"K12 NAT full, {wire.name}, {protocol}",
        injected=WANTED,
        delivered=len(served),
        wrong=crossed,
        refused=WANTED - len(served),
    )
    assert crossed == 0
    assert again == served
    assert len(set(served.values())) == len(served)
    assert set(served.values()) <= set(NAT_PORTS)
    # So few ports are walked as a whole: the last one is found, too.
    assert len(served) == len(NAT_PORTS)


@pytest.mark.parametrize("protocol", ["udp", "tcp", "icmp"])
def test_node_goes_on_when_pods_have_every_port(wire: Wire, protocol: str) -> None:
    """Its own packet leaves, if need be as it is."""
    for number in range(WANTED):
        wire.leave(protocol, Flow("one", 40_000 + number))

    assert wire.leave(protocol, Flow("node", 40_001)) is not None
