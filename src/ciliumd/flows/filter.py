# SPDX-License-Identifier: Apache-2.0
"""Which flows a watcher wants: by type and by endpoint.  Pure; every condition left empty holds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ciliumd.abi import EventType
from ciliumd.flows.enrich import Flow
from ciliumd.flows.render import TYPE_NAMES

TYPES: Final = tuple(TYPE_NAMES.values())


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """Conditions that must all hold; endpoint ids of *related* match on either side."""

    types: frozenset[str] = frozenset()
    source: frozenset[int] = frozenset()
    destination: frozenset[int] = frozenset()
    related: frozenset[int] = frozenset()

    def wants(self, kind: EventType) -> bool:
        """Whether any flow of *kind* can match; spares naming those nobody wants."""
        return not self.types or TYPE_NAMES[kind] in self.types

    def matches(self, flow: Flow) -> bool:
        """Whether the watcher wants *flow*."""
        return (
            self.wants(flow.event.type)
            and (not self.source or flow.source.id in self.source)
            and (not self.destination or flow.destination.id in self.destination)
            and (not self.related or not self.related.isdisjoint((flow.source.id, flow.destination.id)))
        )


def parse_types(names: Iterable[str]) -> frozenset[str]:
    """The event types in *names*, each a name or several with commas; ValueError names what is unknown."""
    types = frozenset(part for name in names for part in name.split(",") if part)
    if unknown := sorted(types.difference(TYPES)):
        raise ValueError(f"unknown event type {unknown[0]!r}; known are {', '.join(TYPES)}")
    return types
