# SPDX-License-Identifier: Apache-2.0
"""
Ids and slots of endpoints: each one's own, and none given again while somebody may still know it.

Ids go round, so that one comes back only when all others had their turn; slots are few and dense, and a
freed one rests.
"""

import time
from collections.abc import Callable

from ciliumd.model.endpoint import ENDPOINT_ID_MAX
from ciliumd.tables.schema import Tables

SLOT_QUARANTINE = 30.0
"""Seconds a freed slot stays empty, so that nothing that still knows it meets a successor."""


class NumbersExhausted(Exception):
    """Every id or slot is in use or rests; the text says which."""


class EndpointNumbers:
    """Hands them out over what the table of endpoints holds."""

    def __init__(self, tables: Tables, *, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._tables = tables
        self._slots = slots
        self._clock = clock
        self._last_id = 0
        self._claimed: dict[int, int] = {}
        self._freed: dict[int, float] = {}

    def claim(self) -> tuple[int, int]:
        """An id and a slot; they are somebody's until :meth:`settle` or :meth:`rest` is told otherwise."""
        number, slot = self._free_id(), self._free_slot()
        self._claimed[number] = slot
        self._last_id = number
        return number, slot

    def settle(self, number: int) -> None:
        """The claim has ended: the table has its endpoint, or nothing ever knew its slot."""
        self._claimed.pop(number, None)

    def rest(self, slot: int) -> None:
        """The slot was in use until now."""
        self._freed[slot] = self._clock()

    def _free_id(self) -> int:
        """The next after the last one given; after a restart, after the highest in use."""
        start = self._last_id or max(self._tables.endpoints, default=0)
        for offset in range(ENDPOINT_ID_MAX):
            number = (start + offset) % ENDPOINT_ID_MAX + 1
            if number not in self._tables.endpoints and number not in self._claimed:
                return number
        raise NumbersExhausted(f"all {ENDPOINT_ID_MAX} endpoint ids are in use")

    def _free_slot(self) -> int:
        """The lowest slot nobody has or had a moment ago."""
        now = self._clock()
        self._freed = {slot: when for slot, when in self._freed.items() if now - when < SLOT_QUARANTINE}
        used = {endpoint.slot for endpoint in self._tables.endpoints.values()}
        used |= self._freed.keys() | set(self._claimed.values())
        for slot in range(self._slots):
            if slot not in used:
                return slot
        raise NumbersExhausted(f"all {self._slots} endpoint slots are in use")
