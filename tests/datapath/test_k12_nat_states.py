# SPDX-License-Identifier: Apache-2.0
"""
K12: masqueraded flows in every state, in both families, against reference/masquerade.py.

Packets of pods and answers in any order, errors both ways, rows that the maps forget, conntrack rows that
expire, the agent's garbage collection.  Every packet that goes on is compared whole.  Every sequence of a few
steps is tried, and random ones of many, of flows that want one port.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from ciliumd.abi import CtKey, CtKind, NatDir, NatEntry, NatKey
from datapath.harness import DROP, PASS, REDIRECT, Datapath
from datapath.node import NAT_PORTS
from datapath.openworld6 import SIX_ONE, SIX_TWO
from datapath.rows import ONLY_OUT, a16
from datapath.talks import (
    FAMILIES,
    Family,
    MapTalk,
    alphabet,
    assert_right,
    cached,
    every_sequence,
    kinds,
    random_sequences,
)
from datapath.tally import Tally
from datapath.wire import GATEWAY
from fixtures import packets, packets6
from fixtures.packets import tcp, udp
from reference.conntrack import FLAGS
from reference.masquerade import DENIED, NO_MAPPING, STACK, Flow, Masquerade

pytestmark = pytest.mark.datapath

SERVER, SEED = 53, 22
# Two want one port, one cannot keep its own, one is in nobody's way.
FLOWS = (Flow("one", 40001), Flow("two", 40001), Flow("one", 7), Flow("two", 40002))
PODS = {"one": SIX_ONE, "two": SIX_TWO}
NUMBERS = {("tcp", "IPv4"): 6, ("tcp", "IPv6"): 6, ("udp", "IPv4"): 17, ("udp", "IPv6"): 17}
NUMBERS |= {("icmp", "IPv4"): 1, ("icmp", "IPv6"): 58}


ROUTER = {"IPv4": GATEWAY.ip, "IPv6": "2001:db8:77::1"}
STRANGER = {"IPv4": packets.world_two.ip, "IPv6": "2001:db8:77::9"}


@dataclass(frozen=True, slots=True)
class Frames:
    """All frames of one family and protocol."""

    family: Family
    protocol: str

    def _layer(self, source: int, destination: int, kind: str | None, *, asks: bool) -> Any:
        if self.protocol == "icmp":
            return (self.family.module.ping if asks else self.family.module.pong)(
                source if asks else destination
            )
        if self.protocol == "udp":
            return udp(source, destination)
        layer = tcp(source, destination)
        layer.flags = FLAGS["S" if kind is None else kind]
        return layer

    def sent(self, flow: Flow, kind: str | None, **ip: object) -> bytes:
        """By the pod."""
        own = self.family.module
        layer = self._layer(flow.port, SERVER, kind, asks=True)
        return bytes(own.from_pod(getattr(own, f"pod_{flow.pod}"), own.world_one.ip, layer, **ip))

    def wired(self, flow: Flow, kind: str | None, port: int) -> bytes:
        """The same, as it must leave the node."""
        own = self.family.module
        pod = getattr(own, f"pod_{flow.pod}")
        layer = self._layer(port, SERVER, kind, asks=True)
        return self.family.wire(
            pod.mac, pod.node_mac, own.node_one.ip, own.world_one.ip, layer, **{self.family.hops: 63}
        )

    def answer(self, port: int, kind: str | None, *, source: str | None = None, **ip: object) -> bytes:
        """From the server, or somebody else, to the node."""
        own = self.family.module
        layer = self._layer(SERVER, port, kind, asks=False)
        return self.family.wire(
            GATEWAY.mac, packets.node_one.mac, source or own.world_one.ip, own.node_one.ip, layer, **ip
        )

    def received(self, flow: Flow, kind: str | None) -> bytes:
        """The answer, as the pod must see it."""
        own = self.family.module
        layer = self._layer(SERVER, flow.port, kind, asks=False)
        return bytes(own.to_pod(getattr(own, f"pod_{flow.pod}"), own.world_one.ip, layer))

    def _mended(self, frame: bytes, other: bytes) -> bytes:
        """What errors quote keeps the sum that the router, or the pod, saw; an echo's of IPv4 is mended."""
        as_it_is = (self.protocol, self.family.name) == ("icmp", "IPv4")
        return frame if as_it_is else self.family.with_sum_of(self.protocol, frame, other)

    def error(self, port: int) -> bytes:
        """A router's, about what left with this port."""
        own = self.family.module
        wired = self.wired(FLOWS[0], "A", port)
        return self.family.wire(
            *(GATEWAY.mac, packets.node_one.mac, ROUTER[self.family.name], own.node_one.ip),
            own.unreachable(wired),
        )

    def error_received(self, flow: Flow, port: int) -> bytes:
        """The same, as the pod must see it."""
        own = self.family.module
        sent = self.sent(flow, "A", **{self.family.hops: 63})
        quoted = self._mended(sent, self.wired(flow, "A", port))
        pod = getattr(own, f"pod_{flow.pod}")
        return bytes(own.to_pod(pod, ROUTER[self.family.name], own.unreachable(quoted)))

    def complaint(self, flow: Flow) -> bytes:
        """The pod's own error, about an answer."""
        own = self.family.module
        pod = getattr(own, f"pod_{flow.pod}")
        return bytes(own.from_pod(pod, own.world_one.ip, own.unreachable(self.received(flow, "A"))))

    def complaint_wired(self, flow: Flow, port: int) -> bytes:
        """The same, as it must leave the node."""
        own = self.family.module
        pod = getattr(own, f"pod_{flow.pod}")
        answer = self.answer(port, "A", **{self.family.hops: 63})
        quoted = self._mended(answer, self.received(flow, "A"))
        return self.family.wire(
            *(pod.mac, pod.node_mac, own.node_one.ip, own.world_one.ip),
            own.unreachable(quoted),
            **{self.family.hops: 63},
        )


class Talk(MapTalk):
    """Pods that ask a server, and the reference, side by side."""

    def __init__(self, datapath: Datapath, family: Family, protocol: str) -> None:
        super().__init__(datapath, Masquerade(NAT_PORTS))
        self._frames = cached(Frames(family, protocol))
        self._kinds = protocol == "tcp"
        entries = datapath.generation.entries
        net0 = datapath.native_device("net0", packets.node_one.ip, ip6=packets6.node_one.ip)
        self._pods = {
            name: partial(entries["entry_from_container"].test_run, ifindex=pod.ifindex)
            for name, pod in PODS.items()
        }
        self._out = partial(entries["entry_to_netdev"].test_run, ifindex=net0)
        self._in = partial(entries["entry_from_netdev"].test_run, ifindex=net0)
        own = family.module
        self._node, self._world = a16(own.node_one.ip), a16(own.world_one.ip)
        self._addresses = {"one": a16(own.pod_one.ip), "two": a16(own.pod_two.ip)}
        self._number = NUMBERS[protocol, family.name]
        self._remote = 0 if protocol == "icmp" else SERVER
        self.stranger = STRANGER[family.name]

    def _sends(self, flow: Flow, kind: str | None) -> str:
        may_get = self.expected.may_get(flow)
        passed = self._pods[flow.pod](self._frames("sent", flow, kind))
        if passed.retval != REDIRECT:
            return "the pod's packet does not get out"
        wired = self._out(passed.data)
        if wired.retval != PASS:
            return "it does not leave the node"
        row = self._snat.lookup(self.out_key(flow))
        if row is None:
            return "it has no row"
        port = NatEntry.unpack(row).port
        if port not in may_get:
            return f"it leaves with {port}, not with one of {sorted(may_get)}"
        self.expected.left(flow, kind, port)
        self._last[flow] = port
        return "" if wired.data == self._frames("wired", flow, kind, port) else "it leaves otherwise"

    def _answered(self, flow: Flow, kind: str | None) -> str:
        port = self._last.get(flow, 40033)
        frame = self._frames("answer", port, kind)
        return self._arrives(frame, self.expected.answered(port, kind), "received", kind)

    def _strange(self, flow: Flow, kind: str | None) -> str:
        """Somebody else's packet to the flow's port: nobody's."""
        frame = self._frames("answer", self._last.get(flow, 40033), kind, source=self.stranger)
        return self._arrives(frame, STACK, "received", kind)

    def _told(self, flow: Flow, kind: str | None) -> str:
        del kind
        port = self._last.get(flow, 40033)
        return self._arrives(self._frames("error", port), self.expected.told(port), "error_received", port)

    def _arrives(self, frame: bytes, whose: Flow | str, how: str, *about: object) -> str:
        run = self._in(frame)
        if whose == STACK:
            return "" if (run.retval, run.data) == (PASS, frame) else "it is not left to the stack"
        if whose == DENIED:
            return "" if run.retval == DROP else "it is not refused"
        if run.retval != REDIRECT:
            return f"it does not reach {whose}"
        return "" if run.data == self._frames(how, whose, *about) else f"{whose} sees something else"

    def _complains(self, flow: Flow, kind: str | None) -> str:
        del kind
        passed = self._pods[flow.pod](self._frames("complaint", flow))
        if passed.retval != REDIRECT:
            return "the pod's error does not get out"
        wired, port = self._out(passed.data), self.expected.tells(flow)
        if port == NO_MAPPING:
            return "" if wired.retval == DROP else "an error about nothing known leaves the node"
        if wired.retval != PASS:
            return "the pod's error does not leave the node"
        right = wired.data == self._frames("complaint_wired", flow, port)
        return "" if right else "the pod's error leaves otherwise"

    def flow_of(self, address: bytes, port: int) -> Flow:
        """Whose address and port these are."""
        return next(flow for flow in FLOWS if (self._addresses[flow.pod], flow.port) == (address, port))

    def out_key(self, flow: Flow) -> bytes:
        """Of the row its packets go by."""
        address = self._addresses[flow.pod]
        return NatKey(address, self._world, flow.port, self._remote, self._number, NatDir.NAT_OUT, 0).pack()

    def in_key(self, port: int) -> bytes:
        """Of the row answers to a port go by."""
        return NatKey(self._world, self._node, self._remote, port, self._number, NatDir.NAT_IN, 0).pack()

    def ct_key(self, flow: Flow) -> bytes:
        """Of its row in conntrack."""
        address = self._addresses[flow.pod]
        return CtKey(
            address, self._world, flow.port, self._remote, self._number, CtKind.CT_KIND_FLOW, 0
        ).pack()


WITHOUT_KIND = ("told", "complains", "loses_out", "loses_in", "loses_track", "expires")


@pytest.fixture(params=sorted(NUMBERS), ids="-".join)
def talk(both_families: Datapath, request: pytest.FixtureRequest) -> tuple[Talk, str, str]:
    """Pods that may open flows, to whom nobody may open any."""
    protocol, name = request.param
    both_families.reset()
    both_families.host_address(packets.node_one.ip)
    both_families.host_address(packets6.node_one.ip)
    for pod in PODS.values():
        both_families.add_endpoint(pod, *ONLY_OUT)
    return Talk(both_families, FAMILIES[name], protocol), protocol, name


def test_every_sequence_of_steps(talk: tuple[Talk, str, str], tally: Tally, is_long: bool) -> None:
    """Of two flows that want one port; each begins with a packet of the first one."""
    talking, protocol, name = talk
    steps = alphabet(FLOWS[:2], kinds(protocol, "S", "SA", "A", "FA", "R"), *WITHOUT_KIND)
    sequences = every_sequence(steps, FLOWS[0], is_long=is_long)
    assert_right(talking, sequences, tally, f"K12 NAT states, {name}, {protocol}")


def test_random_sequences_of_steps(talk: tuple[Talk, str, str], tally: Tally, is_long: bool) -> None:
    """Of four flows; packets more often than losses."""
    talking, protocol, name = talk
    steps = alphabet(FLOWS, kinds(protocol, *FLAGS), *WITHOUT_KIND)
    sequences = random_sequences(steps, f"{SEED} {name} {protocol}", is_long=is_long)
    assert_right(talking, sequences, tally, f"K12 NAT random, {name}, {protocol}")
