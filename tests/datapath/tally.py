# SPDX-License-Identifier: Apache-2.0
"""How the packet suite reports: a line for people, and a row of JSON that `build/dev test --long` keeps."""

from __future__ import annotations

import json
from collections.abc import Callable


class Tally:
    """Records figures of one test; the case is the first word of what was injected, as K5."""

    def __init__(self, record_property: Callable[[str, str], None]) -> None:
        self._record = record_property
        self._rows: list[dict[str, object]] = []

    def __call__(self, what: str, *, injected: int, delivered: int, wrong: int, **more: object) -> None:
        """*delivered* of the *injected* packets went on, and *wrong* of all are not as they must be."""
        case, _, rest = what.partition(" ")
        row = {"case": case, "what": rest, "injected": injected, "delivered": delivered, "wrong": wrong}
        self._rows.append(row | more)
        told = "".join(f", {name} {value}" for name, value in more.items() if isinstance(value, int))
        line = f"{what}: injected {injected}, delivered {delivered}, wrong {wrong}{told}"
        self._record("figure", line)
        print(line)

    def close(self) -> None:
        """A test has one place for data: one row, or all of them."""
        if self._rows:
            self._record("data", json.dumps(self._rows[0] if len(self._rows) == 1 else self._rows))
