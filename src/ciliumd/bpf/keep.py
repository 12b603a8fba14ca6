# SPDX-License-Identifier: Apache-2.0
"""
Pins that lead where they should while the agent runs, whoever removes or replaces them.

What is held open lives without its pin, and so goes on as it was until the pin is made again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ciliumd.bpf.errors import BpfError, error
from ciliumd.bpf.handle import unpin
from ciliumd.bpf.link import Link
from ciliumd.bpf.map import Map

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def repin(pin: Path, held: Map | Link) -> bool:
    """Have *pin* lead to what is held open; True when it did not."""
    try:
        with (Map if isinstance(held, Map) else Link).from_pin(pin) as found:
            if found.info == held.info:
                return False
    except BpfError:
        pass  # there is none, or it leads to something of another kind
    try:
        pin.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as failure:
        raise error("create", str(pin.parent), failure.errno or 0) from failure
    unpin(pin)
    held.pin(pin)
    return True


def repin_all(held: Mapping[Path, Map]) -> list[Path]:
    """The same for many; those that did not lead where they should."""
    return [pin for pin, one in held.items() if repin(pin, one)]


class HeldLinks:
    """Links by pin: a pin that somebody removes takes no program off."""

    def __init__(self) -> None:
        self._links: dict[Path, Link] = {}

    def restore(self, pin: Path) -> None:
        """Make the pin again, if the link is held and still hangs somewhere."""
        held = self._links.get(pin)
        if held is not None and not held.info.detached:
            repin(pin, held)

    def hold(self, pin: Path) -> None:
        """Hold what is pinned there from now on."""
        held, self._links[pin] = self._links.get(pin), Link.from_pin(pin)
        if held is not None:
            held.close()

    def let_go(self, pin: Path) -> None:
        """Take the program off, also if nothing is pinned there any more."""
        held = self._links.pop(pin, None)
        if held is not None:
            with held:
                if not held.info.detached:
                    held.detach()

    def close(self) -> None:
        """Give the handles back; what is pinned goes on running."""
        for held in self._links.values():
            held.close()
        self._links.clear()
