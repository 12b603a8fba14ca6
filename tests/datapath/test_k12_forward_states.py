# SPDX-License-Identifier: Apache-2.0
"""
K12: clients of a node port whose backend is elsewhere, in both families, against reference/forwarded.py.

Packets of clients and of the backend in any order, errors both ways, rows that the maps forget, conntrack
rows that expire, the agent's garbage collection.  Every packet that goes on is compared whole, and how long
a flow is remembered with what its packets said.  Every sequence of a few steps is tried, and random ones of
many, of clients that want one port.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from ciliumd.abi import CtEntry, CtKey, CtKind, Mark, NatDir, NatEntry, NatKey
from datapath.harness import DROP, PASS, REDIRECT, Datapath
from datapath.node import NAT_PORTS
from datapath.rows import a16
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
from datapath.wire import AWAY, AWAY_DNS, GATEWAY
from fixtures import packets, packets6
from fixtures.packets import tcp, udp
from reference.conntrack import FLAGS, LIFETIME
from reference.forwarded import Forwarded
from reference.masquerade import DENIED, NO_MAPPING, STACK, Flow

pytestmark = pytest.mark.datapath

SEED = 23
# Two want one port, one cannot keep its own, one is in nobody's way.
FLOWS = (Flow("one", 40001), Flow("two", 40001), Flow("one", 7), Flow("two", 40002))
CLIENTS = {
    "IPv4": {"one": packets.world_one.ip, "two": packets.world_two.ip},
    "IPv6": {"one": packets6.world_one.ip, "two": "2001:db8:ffff::8"},
}
STRANGER = {"IPv4": "203.0.113.99", "IPv6": "2001:db8:77::9"}
FRONTENDS, TARGETS = {"tcp": AWAY, "udp": AWAY_DNS}, {"tcp": 80, "udp": 53}
NUMBERS = {"tcp": 6, "udp": 17}
NEVER_GIVEN = 40033


@dataclass(frozen=True, slots=True)
class Frames:
    """All frames of one family and protocol."""

    family: Family
    protocol: str

    def _between(self, source: str, destination: str, layer: Any, *, hops: int = 64) -> bytes:
        """On the wire between the node and its router, both ways: the kernel sets MACs behind us."""
        return self.family.wire(
            *(GATEWAY.mac, packets.node_one.mac, source, destination),
            layer,
            **{self.family.hops: hops},
        )

    def _layer(self, source: int, destination: int, kind: str | None) -> Any:
        if self.protocol == "udp":
            return udp(source, destination)
        layer = tcp(source, destination)
        layer.flags = FLAGS["S" if kind is None else kind]
        return layer

    @property
    def _node(self) -> str:
        return str(self.family.module.node_one.ip)

    @property
    def _backend(self) -> str:
        return str(self.family.module.pod_away.ip)

    def _client(self, flow: Flow) -> str:
        return CLIENTS[self.family.name][flow.pod]

    def sent(self, flow: Flow, kind: str | None, *, hops: int = 64) -> bytes:
        """By the client."""
        layer = self._layer(flow.port, FRONTENDS[self.protocol], kind)
        return self._between(self._client(flow), self._node, layer, hops=hops)

    def wired(self, port: int, kind: str | None) -> bytes:
        """The same, as the backend must see it."""
        layer = self._layer(port, TARGETS[self.protocol], kind)
        return self._between(self._node, self._backend, layer, hops=63)

    def answer(self, port: int, kind: str | None, *, source: str | None = None, hops: int = 64) -> bytes:
        """From the backend, or somebody else, to the node."""
        layer = self._layer(TARGETS[self.protocol], port, kind)
        return self._between(source or self._backend, self._node, layer, hops=hops)

    def received(self, flow: Flow, kind: str | None) -> bytes:
        """The answer, as the client must see it."""
        layer = self._layer(FRONTENDS[self.protocol], flow.port, kind)
        return self._between(self._node, self._client(flow), layer, hops=63)

    def error(self, port: int) -> bytes:
        """The backend's, about what it got from this port."""
        quoted = self.family.module.unreachable(self.wired(port, "A"))
        return self._between(self._backend, self._node, quoted)

    def error_received(self, flow: Flow, port: int) -> bytes:
        """The same, as the client must see it; what is quoted keeps its sum."""
        sent = self.sent(flow, "A", hops=63)
        quoted = self.family.with_sum_of(self.protocol, sent, self.wired(port, "A"))
        return self._between(self._node, self._client(flow), self.family.module.unreachable(quoted), hops=63)

    def complaint(self, flow: Flow) -> bytes:
        """The client's own error, about an answer."""
        quoted = self.family.module.unreachable(self.received(flow, "A"))
        return self._between(self._client(flow), self._node, quoted)

    def complaint_wired(self, flow: Flow, port: int) -> bytes:
        """The same, as the backend must see it."""
        answer = self.answer(port, "A", hops=63)
        quoted = self.family.with_sum_of(self.protocol, answer, self.received(flow, "A"))
        return self._between(self._node, self._backend, self.family.module.unreachable(quoted), hops=63)


class Talk(MapTalk):
    """Clients that ask at a node port, and the reference, side by side."""

    expected: Forwarded

    def __init__(self, datapath: Datapath, family: Family, protocol: str) -> None:
        super().__init__(datapath, Forwarded(NAT_PORTS))
        self._frames = cached(Frames(family, protocol))
        self._kinds = protocol == "tcp"
        entries = datapath.generation.entries
        net0 = socket.if_nametoindex("net0")
        self._in = partial(entries["entry_from_netdev"].test_run, ifindex=net0)
        self._out = partial(entries["entry_to_netdev"].test_run, ifindex=net0)
        own = family.module
        self._node, self._backend = a16(own.node_one.ip), a16(own.pod_away.ip)
        self._clients = {name: a16(ip) for name, ip in CLIENTS[family.name].items()}
        self._number, self._frontend = NUMBERS[protocol], FRONTENDS[protocol]
        self._target = TARGETS[protocol]
        self.stranger = STRANGER[family.name]

    def _forwarded(self, frame: bytes) -> bytes | str:
        """What is on the wire again for a frame from there; or why nothing is."""
        run = self._in(frame)
        if run.retval != REDIRECT:
            return "it is not sent on"
        wired = self._out(run.data, mark=run.mark)
        if run.mark != Mark.MARK_SKIP_SNAT or (wired.retval, wired.data) != (PASS, run.data):
            return "it is changed on its way out"
        return bytes(run.data)

    def _sends(self, flow: Flow, kind: str | None) -> str:
        may_get = self.expected.may_get(flow)
        wired = self._forwarded(self._frames("sent", flow, kind))
        if isinstance(wired, str):
            return wired
        row = self._snat.lookup(self.out_key(flow))
        if row is None:
            return "it has no row"
        port = NatEntry.unpack(row).port
        if port not in may_get:
            return f"it leaves with {port}, not with one of {sorted(may_get)}"
        self.expected.left(flow, kind, port)
        self._last[flow] = port
        return "" if wired == self._frames("wired", port, kind) else "it leaves otherwise"

    def _answered(self, flow: Flow, kind: str | None) -> str:
        port = self._last.get(flow, NEVER_GIVEN)
        return self._arrives(
            self._frames("answer", port, kind), self.expected.answered(port, kind), "received", kind
        )

    def _strange(self, flow: Flow, kind: str | None) -> str:
        """Somebody else's packet to the flow's port: nobody's."""
        frame = self._frames("answer", self._last.get(flow, NEVER_GIVEN), kind, source=self.stranger)
        return self._arrives(frame, STACK, "received", kind)

    def _told(self, flow: Flow, kind: str | None) -> str:
        del kind
        port = self._last.get(flow, NEVER_GIVEN)
        return self._arrives(self._frames("error", port), self.expected.told(port), "error_received", port)

    def _arrives(self, frame: bytes, whose: Flow | str, how: str, *about: object) -> str:
        if isinstance(whose, str):
            run = self._in(frame)
            if whose == STACK:
                return "" if (run.retval, run.data) == (PASS, frame) else "it is not left to the stack"
            return "" if whose == DENIED and run.retval == DROP else "it is not refused"
        wired = self._forwarded(frame)
        if isinstance(wired, str):
            return f"{wired} to {whose}"
        return "" if wired == self._frames(how, whose, *about) else f"{whose} sees something else"

    def _complains(self, flow: Flow, kind: str | None) -> str:
        del kind
        frame, port = self._frames("complaint", flow), self.expected.tells(flow)
        if isinstance(port, str):
            return self._arrives(frame, DENIED if port == NO_MAPPING else STACK, "complaint_wired")
        wired = self._forwarded(frame)
        if isinstance(wired, str):
            return wired
        right = wired == self._frames("complaint_wired", flow, port)
        return "" if right else "the client's error leaves otherwise"

    def _loses_choice(self, flow: Flow, kind: str | None) -> str:
        """Which backend the client has is forgotten: the next packet chooses, and there is one."""
        del kind
        self._ct.delete(self._choice_key(flow))
        self.expected.chosen.discard(flow)
        return ""

    def wrong(self) -> str:
        """Rows of the NAT map, and how long flows are remembered."""
        if not self._kinds:
            return super().wrong()
        for flow, tcp_flow in self.expected.tracked.items():
            row = CtEntry.unpack(self._ct.lookup(self.ct_key(flow)) or bytes(CtEntry.SIZE))
            if row.expires - row.last_report != LIFETIME[tcp_flow.state]:
                return f"{flow} is remembered for {row.expires - row.last_report} s as {tcp_flow.state}"
        return super().wrong()

    def flow_of(self, address: bytes, port: int) -> Flow:
        """Whose address and port these are."""
        return next(flow for flow in FLOWS if (self._clients[flow.pod], flow.port) == (address, port))

    def out_key(self, flow: Flow) -> bytes:
        """Of the row its packets go by."""
        return NatKey(
            *(self._clients[flow.pod], self._backend, flow.port, self._target, self._number),
            *(NatDir.NAT_OUT, 0),
        ).pack()

    def in_key(self, port: int) -> bytes:
        """Of the row answers to a port go by."""
        return NatKey(self._backend, self._node, self._target, port, self._number, NatDir.NAT_IN, 0).pack()

    def ct_key(self, flow: Flow) -> bytes:
        """Of its row in conntrack."""
        return self._key(flow, self._backend, self._target, CtKind.CT_KIND_FLOW)

    def _choice_key(self, flow: Flow) -> bytes:
        return self._key(flow, self._node, self._frontend, CtKind.CT_KIND_SERVICE)

    def _key(self, flow: Flow, remote: bytes, port: int, kind: CtKind) -> bytes:
        return CtKey(self._clients[flow.pod], remote, flow.port, port, self._number, kind, 0).pack()


WITHOUT_KIND = ("told", "complains", "loses_out", "loses_in", "loses_track", "loses_choice", "expires")


@pytest.fixture(params=[(protocol, name) for protocol in NUMBERS for name in FAMILIES], ids="-".join)
def talk(request: pytest.FixtureRequest) -> tuple[Talk, str, str]:
    """A node with node ports, and clients outside."""
    protocol, name = request.param
    datapath: Datapath = request.getfixturevalue("outside" if name == "IPv4" else "exposed6")
    return Talk(datapath, FAMILIES[name], protocol), protocol, name


def test_every_sequence_of_steps(talk: tuple[Talk, str, str], tally: Tally, is_long: bool) -> None:
    """Of two clients that want one port; each begins with a packet of the first one."""
    talking, protocol, name = talk
    steps = alphabet(FLOWS[:2], kinds(protocol, "S", "SA", "A", "FA", "R"), *WITHOUT_KIND)
    sequences = every_sequence(steps, FLOWS[0], is_long=is_long)
    assert_right(talking, sequences, tally, f"K12 node port states, {name}, {protocol}")


def test_random_sequences_of_steps(talk: tuple[Talk, str, str], tally: Tally, is_long: bool) -> None:
    """Of four flows; packets more often than losses."""
    talking, protocol, name = talk
    steps = alphabet(FLOWS, kinds(protocol, *FLAGS), *WITHOUT_KIND)
    sequences = random_sequences(steps, f"{SEED} {name} {protocol}", is_long=is_long)
    assert_right(talking, sequences, tally, f"K12 node port random, {name}, {protocol}")
