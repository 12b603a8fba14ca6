# SPDX-License-Identifier: Apache-2.0
"""
What a flow is after each packet, said as a table: state, who sends what, whether it goes through, next state.

The promises of datapath/README.md, "Conntrack", without a look at the programs.  Sequence numbers and windows
are not looked at, so no state depends on them.  Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

NONE, HANDSHAKE, OPEN, OPENER_DONE, OTHER_DONE, CLOSED = (
    *("none", "handshake", "open", "opener done", "other done"),
    "closed",
)
# Seconds a silent flow is remembered.
LIFETIME = {HANDSHAKE: 60, OPEN: 8000, OPENER_DONE: 8000, OTHER_DONE: 8000, CLOSED: 10}
FLAGS = {"S": 0x02, "SA": 0x12, "A": 0x10, "FA": 0x11, "R": 0x04, "RA": 0x14, "": 0x00}

# By state, what follows a packet of the opener and of the other side; "-": it does not go through.  The other
# side may not open anything itself.  Columns as in FLAGS.
_OPENER = {
    #            S          SA         A            FA           R       RA      no flags
    NONE: (HANDSHAKE, HANDSHAKE, OPEN, OPENER_DONE, CLOSED, CLOSED, OPEN),
    HANDSHAKE: (HANDSHAKE, HANDSHAKE, OPEN, OPENER_DONE, CLOSED, CLOSED, OPEN),
    OPEN: (OPEN, OPEN, OPEN, OPENER_DONE, CLOSED, CLOSED, OPEN),
    # A SYN over what one side has closed begins anew: the port is used again.
    OPENER_DONE: (HANDSHAKE, OPENER_DONE, OPENER_DONE, OPENER_DONE, CLOSED, CLOSED, OPENER_DONE),
    OTHER_DONE: (HANDSHAKE, OTHER_DONE, OTHER_DONE, CLOSED, CLOSED, CLOSED, OTHER_DONE),
    CLOSED: (HANDSHAKE, CLOSED, CLOSED, CLOSED, CLOSED, CLOSED, CLOSED),
}
_OTHER = {
    NONE: ("-", "-", "-", "-", "-", "-", "-"),
    HANDSHAKE: ("-", HANDSHAKE, OPEN, OTHER_DONE, CLOSED, CLOSED, OPEN),
    OPEN: ("-", OPEN, OPEN, OTHER_DONE, CLOSED, CLOSED, OPEN),
    OPENER_DONE: ("-", OPENER_DONE, OPENER_DONE, CLOSED, CLOSED, CLOSED, OPENER_DONE),
    OTHER_DONE: ("-", OTHER_DONE, OTHER_DONE, OTHER_DONE, CLOSED, CLOSED, OTHER_DONE),
    CLOSED: ("-", CLOSED, CLOSED, CLOSED, CLOSED, CLOSED, CLOSED),
}


@dataclass(frozen=True, slots=True)
class Tcp:
    """A flow between two sides, 0 and 1; *opener* is who opened it, None while there is none."""

    state: str = NONE
    opener: int | None = None

    def after(self, side: int, kind: str, *, may_open: frozenset[int]) -> tuple[bool, Tcp]:
        """Whether *side*'s packet goes through, and what the flow is then."""
        column = list(FLAGS).index(kind)
        if self.opener is None:
            return (True, Tcp(_OPENER[NONE][column], side)) if side in may_open else (False, self)
        state = (_OPENER if side == self.opener else _OTHER)[self.state][column]
        if state != "-":
            return True, Tcp(state, self.opener)
        # A SYN against the flow's direction opens one of the other side's own.
        return (True, Tcp(HANDSHAKE, side)) if side in may_open else (False, self)
