# SPDX-License-Identifier: Apache-2.0
"""What a node is to its packets, and the ports it lends: the memory of reference/forwarding.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from reference.parser import Pod

Frontend = tuple[bytes, int, int]  # address, port, protocol
Backend = tuple[bytes, int]
FlowKey = tuple[bytes, int, bytes, int, int]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a hook returns, why it drops (0: it does not), and the frame behind it."""

    action: int
    reason: int
    frame: bytes


def _everybody(_address: bytes) -> bool:
    return True


def _nobody(_address: bytes) -> bool:
    return False


def _anybody(_source: bytes) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Node:
    """A node as packets meet it."""

    router: bytes
    router_mac: bytes
    address: bytes  # of its native device
    pods: Mapping[bytes, Pod]
    is_pod_address: Callable[[bytes], bool]
    leads_to: Callable[[bytes], int]  # 0: out of the native device; else the reason that it leads nowhere
    sender: Pod  # behind the device that is tried
    loopback: bytes
    cluster_ips: frozenset[bytes] = frozenset()
    services: Mapping[Frontend, Backend | None] = field(default_factory=dict)
    node_ports: Mapping[Frontend, Backend] = field(default_factory=dict)
    unmasked: frozenset[bytes] = frozenset()  # pods of other nodes, reached with a pod's own address
    nat_ports: range = range(32768, 65536)
    # Where the sender's policy lets it go, and the pods whose policies let nobody in.
    may_reach: Callable[[bytes], bool] = _everybody
    closed: frozenset[bytes] = frozenset()
    # With a tunnel: its port; which addresses it leads to, which of them are nodes'; who may bring what (0),
    # or the reason why not.
    tunnel_port: int = 0
    behind_tunnel: Callable[[bytes], bool] = _nobody
    is_other_node: Callable[[bytes], bool] = _nobody
    may_send: Callable[[bytes], int] = _anybody

    @property
    def own(self) -> frozenset[bytes]:
        """Addresses of the node itself."""
        return frozenset({self.router, self.address})


@dataclass(slots=True)
class Nat:
    """Masqueraded flows; a flow whose port nobody has seen yet has None."""

    ports: range
    out: dict[FlowKey, int | None] = field(default_factory=dict)
    taken: dict[FlowKey, FlowKey] = field(default_factory=dict)

    def port_of(self, flow: FlowKey, shown: int | None) -> int | None:
        """
        The port that this packet must have when it leaves; None: a fragment does not show it.

        *shown* is the one it has; for a flow without one it is accepted when a node may choose it.
        """
        port = self.out.get(flow)
        if port is not None or shown is None:
            self.out.setdefault(flow, None)
            return port
        _, wanted, dst, dport, protocol = flow
        if wanted in self.ports and self.taken.get((b"", wanted, dst, dport, protocol), flow) == flow:
            shown = wanted
        key = (b"", shown, dst, dport, protocol)
        if shown not in self.ports or key in self.taken:
            return None
        self.taken[key] = flow
        self.out[flow] = shown
        return shown
