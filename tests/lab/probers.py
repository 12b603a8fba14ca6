# SPDX-License-Identifier: Apache-2.0
"""
Numbered packets all the while something is broken: of flows every state allows, and of such that none does.

Three pods, a service and a policy that no fault's workload touches.
"""

from typing import Final, Self

from lab import manifests
from lab.figures import Figures
from lab.node import Node
from lab.traffic import Fate, Flood, Flow

VIP: Final = "10.96.0.20"
DIRECT, BEHIND_SERVICE, DENIED, STRANGE = 9000, 9001, 9002, 9003
RATE: Final = 1000


class Probers:
    """Flows that run from :meth:`start` to :meth:`stop`.  A context manager."""

    def __init__(self, node: Node) -> None:
        self.receiver = node.pod("receiver", {"app": "receiver"}).serve(tcp=(80,))
        self.sender = node.pod("sender", {"app": "sender"})
        self.stranger = node.pod("stranger", {"app": "stranger"})
        node.apply(
            "receiver-service",
            manifests.service("receiver", VIP, {"app": "receiver"}, ports=[("UDP", 9100, BEHIND_SERVICE)]),
        )
        node.wait_service(f"{VIP}:9100", 1)
        node.apply_policy("receiver", receiver_policy())
        self._floods: list[Flood] = []

    def start(self) -> Self:
        """Begin to send; all of them do when this returns."""
        address = self.receiver.address
        may = [
            Flow("pod to pod", address, DIRECT, DIRECT, rate=RATE),
            Flow("through ClusterIP", VIP, 9100, BEHIND_SERVICE, rate=RATE),
            Flow("denied port", address, DENIED, DENIED, rate=RATE),
        ]
        strange = [Flow("stranger", address, STRANGE, STRANGE, rate=RATE)]
        self._floods = [
            Flood(self.sender.outside, self.receiver.outside, may).start(),
            Flood(self.stranger.outside, self.receiver.outside, strange).start(),
        ]
        # What is broken from now on, each of them meets.
        self.wait_sent(1)
        return self

    def wait_sent(self, more: int) -> None:
        """Wait until every flow has sent this many more."""
        for flood in self._floods:
            flood.wait_sent(more)

    def stop(self, figures: Figures) -> dict[str, Fate]:
        """Stop, and add what became of the packets to *figures*."""
        fates: dict[str, Fate] = {}
        for flood in self._floods:
            fates |= flood.stop()
        self._floods.clear()
        figures.packets += sum(fate.sent for fate in fates.values())
        figures.lost += sum(fates[name].lost for name in ("pod to pod", "through ClusterIP"))
        figures.wrongly_allowed += sum(fates[name].received for name in ("denied port", "stranger"))
        figures.more["flows"] = {fate.name: str(fate) for fate in fates.values()}
        return fates

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        for flood in self._floods:
            flood.close()
        self._floods.clear()


def receiver_policy() -> manifests.Object:
    """The sender may, but for one port; nobody else may."""
    sender = {"matchLabels": {"app": "sender"}}
    return manifests.cilium_policy(
        "receiver",
        {
            "endpointSelector": {"matchLabels": {"app": "receiver"}},
            "ingress": [{"fromEndpoints": [sender]}],
            "ingressDeny": [{"fromEndpoints": [sender], "toPorts": manifests.to_ports((DENIED, "UDP"))}],
        },
    )
