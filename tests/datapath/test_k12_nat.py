# SPDX-License-Identifier: Apache-2.0
"""
K12: ports that two want.  Flows of two pods and of the node share one address towards one server.

Whoever comes first keeps its own port, whoever comes later gets another; answers find the one who asked.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache, partial

import pytest
from scapy.packet import Packet

from datapath.harness import DROP, PASS, REDIRECT, Datapath
from datapath.node import NAT_PORTS
from datapath.rows import POD_ONE, POD_TWO
from datapath.tally import Tally
from datapath.wire import GATEWAY, port_of
from fixtures.packets import (
    Place,
    from_pod,
    node_one,
    on_wire,
    ping,
    pod_one,
    pod_two,
    pong,
    tcp,
    to_pod,
    udp,
    world_one,
)

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


PODS = {"one": (POD_ONE, pod_one), "two": (POD_TWO, pod_two)}
FLOWS = tuple(Flow(owner, port) for owner in (*PODS, "node") for port in PORTS)


def _asks(protocol: str, port: int) -> Packet:
    return {"udp": udp(port, SERVER), "tcp": tcp(port, SERVER), "icmp": ping(port)}[protocol]


def _answers(protocol: str, port: int) -> Packet:
    return {"udp": udp(SERVER, port), "tcp": tcp(SERVER, port, "SA"), "icmp": pong(port)}[protocol]


@cache
def _sent(protocol: str, flow: Flow) -> bytes:
    layer = _asks(protocol, flow.port)
    if flow.owner == "node":
        return on_wire(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, layer)
    return from_pod(PODS[flow.owner][1], world_one.ip, layer)


@cache
def _answer(protocol: str, port: int) -> bytes:
    return on_wire(GATEWAY.mac, node_one.mac, world_one.ip, node_one.ip, _answers(protocol, port))


@cache
def _received(protocol: str, flow: Flow) -> bytes:
    """What the one who asked must see."""
    if flow.owner == "node":
        return _answer(protocol, flow.port)
    place: Place = PODS[flow.owner][1]
    return to_pod(place, world_one.ip, _answers(protocol, flow.port))


class Wire:
    """Both programs of a native device, and the pods' behind them."""

    def __init__(self, datapath: Datapath) -> None:
        entries = datapath.generation.entries
        net0 = datapath.native_device("net0", node_one.ip)
        self._pods = {
            name: partial(entries["entry_from_container"].test_run, ifindex=pod.ifindex)
            for name, (pod, _) in PODS.items()
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
        frame = _sent(protocol, flow)
        if flow.owner in self._pods:
            frame = self._pods[flow.owner](frame).data
        wired = self._out(frame)
        return None if wired.retval == DROP else port_of(wired.data)

    def returns(self, protocol: str, flow: Flow, port: int) -> bool:
        """Whether what the server answers to this port is what the one who asked must see."""
        run = self._in(_answer(protocol, port))
        there = PASS if flow.owner == "node" else REDIRECT
        return (run.retval, run.data) == (there, _received(protocol, flow))


@pytest.fixture
def wire(world: Datapath) -> Wire:
    """A node with a way out, and no flows."""
    return Wire(world)


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
        f"K12 NAT, {protocol}",
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
        f"K12 NAT full, {protocol}",
        injected=WANTED,
        delivered=len(served),
        wrong=crossed,
        refused=WANTED - len(served),
    )
    assert crossed == 0
    assert again == served
    assert len(set(served.values())) == len(served) <= len(NAT_PORTS)
    assert set(served.values()) <= set(NAT_PORTS)
    # Sixteen tries find a free port nearly always while there are some.
    assert len(served) > len(NAT_PORTS) * 3 // 4


@pytest.mark.parametrize("protocol", ["udp", "tcp", "icmp"])
def test_node_goes_on_when_pods_have_every_port(wire: Wire, protocol: str) -> None:
    """Its own packet leaves, if need be as it is."""
    for number in range(WANTED):
        wire.leave(protocol, Flow("one", 40_000 + number))

    assert wire.leave(protocol, Flow("node", 40_001)) is not None
