# SPDX-License-Identifier: Apache-2.0
"""
What becomes of masqueraded flows, packet by packet: said of flows and ports, without a look at the programs.

Flows share one address towards one server; pods may open flows, the server may not.  A flow is live while
conntrack remembers it; its rows in the NAT map may vanish any time, as that map forgets who was silent.
Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reference.conntrack import Tcp

STACK, DENIED, NO_MAPPING = "stack", "denied", "no mapping"


@dataclass(frozen=True, slots=True)
class Flow:
    """A pod's, and the port or echo id it uses itself."""

    pod: str
    port: int


@dataclass(slots=True)
class Masquerade:
    """All flows of one protocol; *ports* are those to give."""

    ports: range
    out: dict[Flow, int] = field(default_factory=dict)
    into: dict[int, Flow] = field(default_factory=dict)
    tracked: dict[Flow, Tcp] = field(default_factory=dict)

    def forget(self) -> None:
        """Nothing has happened yet."""
        for known in (self.out, self.into, self.tracked):
            known.clear()

    def is_live(self, flow: Flow) -> bool:
        """Whether it is remembered."""
        return flow in self.tracked

    def may_get(self, flow: Flow) -> set[int]:
        """The ports that its next packet may leave with."""
        own = flow.port if flow.port in self.ports else None
        wanted = self.out.get(flow, own)
        if wanted is not None and self.into.get(wanted, flow) == flow:
            return {wanted}
        return set(self.ports) - set(self.into)

    def left(self, flow: Flow, kind: str | None, port: int) -> None:
        """Its packet left with this port; *kind* of TCP."""
        self.out[flow] = port
        self.into[port] = flow
        before = self.tracked.get(flow, Tcp())
        self.tracked[flow] = before if kind is None else before.after(0, kind, may_open=frozenset({0}))[1]

    def answered(self, port: int, kind: str | None) -> Flow | str:
        """Who gets what the server sends to this port."""
        flow = self.told(port)
        if isinstance(flow, str) or kind is None:
            return flow
        went, after = self.tracked[flow].after(1, kind, may_open=frozenset({0}))
        if went:
            self.tracked[flow] = after
        return flow if went else DENIED

    def told(self, port: int) -> Flow | str:
        """Who gets an ICMP error that quotes a packet which left with this port."""
        flow = self.into.get(port)
        if flow is None:
            return STACK
        return flow if flow in self.tracked else DENIED

    def tells(self, flow: Flow) -> int | str:
        """Which port is quoted in an error that the pod sends about an answer."""
        return self.out.get(flow, NO_MAPPING)

    def forget_in(self, flow: Flow) -> None:
        """The NAT map forgets what answers go by."""
        self.into = {port: owner for port, owner in self.into.items() if owner != flow}

    def collect(self) -> None:
        """The garbage collection: rows of what is not remembered go."""
        self.out = {flow: port for flow, port in self.out.items() if flow in self.tracked}
        self.into = {port: flow for port, flow in self.into.items() if flow in self.tracked}
