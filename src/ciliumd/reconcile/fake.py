# SPDX-License-Identifier: Apache-2.0
"""
A target in memory whose failures are programmed, for tests of everything above the kernel.

Ships with the package so that whoever writes a stage tests it against the same fake.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Write:
    """One row written or deleted (*value* None), in the order the target saw them."""

    target: str
    key: bytes
    value: bytes | None


class FakeMap:
    """
    A map of packed rows.

    *fail* is asked before each row is touched and answers the error to report, or None; *capacity*
    makes creations beyond it fail like a full BPF map; *journal*, when shared between fakes, records
    the order of writes across all of them.
    """

    def __init__(
        self,
        name: str,
        *,
        rows: Mapping[bytes, bytes] | None = None,
        journal: list[Write] | None = None,
        capacity: int | None = None,
    ) -> None:
        self.name = name
        self.rows: dict[bytes, bytes] = dict(rows or {})
        self.journal: list[Write] = [] if journal is None else journal
        self.capacity = capacity
        self.failures: dict[bytes, Exception] = {}
        self.broken: Exception | None = None
        self.fail: Callable[[bytes], Exception | None] = self.failures.get
        self.calls = 0
        self.loads = 0

    def load(self) -> dict[bytes, bytes]:
        """Everything it holds."""
        self._enter()
        self.loads += 1
        return dict(self.rows)

    def fingerprint(self) -> bytes:
        """All of it: as exact as can be."""
        if self.broken is not None:
            raise self.broken
        return repr(self.rows).encode()

    def update(self, items: Mapping[bytes, bytes]) -> dict[bytes, Exception]:
        """Write *items* but those programmed to fail."""
        self._enter()
        failed: dict[bytes, Exception] = {}
        for key, value in items.items():
            error = self.fail(key)
            if error is None and self.capacity is not None and key not in self.rows:
                error = OSError(7, "map is full") if len(self.rows) >= self.capacity else None
            if error is not None:
                failed[key] = error
                continue
            self.rows[key] = value
            self.journal.append(Write(self.name, key, value))
        return failed

    def delete(self, keys: Collection[bytes]) -> dict[bytes, Exception]:
        """Delete *keys* but those programmed to fail; an absent one is success."""
        self._enter()
        failed: dict[bytes, Exception] = {}
        for key in keys:
            error = self.fail(key)
            if error is not None:
                failed[key] = error
                continue
            if self.rows.pop(key, None) is not None:
                self.journal.append(Write(self.name, key, None))
        return failed

    def _enter(self) -> None:
        """Count the call; raise as a whole when the target is programmed to be broken."""
        self.calls += 1
        if self.broken is not None:
            raise self.broken
