# SPDX-License-Identifier: Apache-2.0
"""
What becomes of flows from outside to a node port whose backend is elsewhere, packet by packet.

To the backend they are the node's, so they share its ports as masqueraded flows do (masquerade.py).  Nobody
judges them: whatever either side sends goes through, as long as the node knows the flow.  Beside it the node
remembers which backend a client has, for as long as errors about answers may come.  Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reference.masquerade import NO_MAPPING, STACK, Flow, Masquerade


@dataclass(slots=True)
class Forwarded(Masquerade):
    """All flows of one protocol to one backend; *chosen* are those whose backend is remembered."""

    chosen: set[Flow] = field(default_factory=set)

    def forget(self) -> None:
        """Nothing has happened yet."""
        Masquerade.forget(self)
        self.chosen.clear()

    def left(self, flow: Flow, kind: str | None, port: int) -> None:
        """A client's packet left with this port."""
        Masquerade.left(self, flow, kind, port)
        self.chosen.add(flow)

    def answered(self, port: int, kind: str | None) -> Flow | str:
        """Who gets what the backend sends to this port: also what would open a flow."""
        flow = self.told(port)
        if isinstance(flow, Flow) and kind is not None:
            # A SYN of the backend's goes through, and changes nothing.
            self.tracked[flow] = self.tracked[flow].after(1, kind, may_open=frozenset())[1]
        return flow

    def tells(self, flow: Flow) -> int | str:
        """Which port is quoted in an error that the client sends about an answer."""
        return self.out.get(flow, NO_MAPPING) if flow in self.chosen else STACK
