# SPDX-License-Identifier: Apache-2.0
"""What a fault did, in the words every fault is reported with; a long run keeps it in docs/evidence."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Figures:
    """
    *survived*: after how many of the *injected* faults all was as it should be again.

    *lost* are packets of flows that every state allows, *wrongly_allowed* packets that none allows.
    """

    fault: str
    injected: int = 0
    survived: int = 0
    lost: int = 0
    wrongly_allowed: int = 0
    packets: int = 0
    more: dict[str, Any] = field(default_factory=dict)

    def record(self, record_property: Callable[[str, object], None]) -> None:
        """Give the line of the report, and what evidence keeps."""
        record_property("figure", str(self))
        record_property("data", json.dumps(asdict(self), default=str))

    def assert_harmless(self) -> None:
        """Everything survived, nothing lost, nothing wrongly allowed; and something was injected."""
        assert self.injected > 0, self
        assert (self.lost, self.wrongly_allowed) == (0, 0), self
        assert self.survived == self.injected, self

    def __str__(self) -> str:
        more = "".join(f", {name} {value}" for name, value in self.more.items() if isinstance(value, int))
        return (
            f"{self.fault}: injected {self.injected}, survived {self.survived}, packets lost {self.lost} "
            f"and wrongly allowed {self.wrongly_allowed} of {self.packets}{more}"
        )
