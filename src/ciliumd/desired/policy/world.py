# SPDX-License-Identifier: Apache-2.0
"""
What decides about the policy of a node besides the policies: its endpoints, and whom they may meet.

Plain data, and what changed between two of its states.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ciliumd.desired.policy.rules import NamedPorts
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.labels import Labels
from ciliumd.model.net import Prefix


@dataclass(frozen=True, slots=True)
class Subject:
    """What of an endpoint decides about its rules; who is *shut* is under none but that nobody passes."""

    labels: Labels
    named_ports: NamedPorts
    shut: bool = False


@dataclass(frozen=True, slots=True)
class WorldChanges:
    """Identities that appeared, that mean something else than before, and that are gone."""

    added: Mapping[NumericIdentity, Labels] = field(default_factory=dict)
    altered: Mapping[NumericIdentity, Labels] = field(default_factory=dict)
    removed: frozenset[NumericIdentity] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.added or self.altered or self.removed)


StandIns = Mapping[NumericIdentity, frozenset[NumericIdentity]]
"""By identity those of prefixes without a row, whose packets carry it instead of theirs; wider ones first."""


@dataclass(frozen=True, slots=True)
class World:
    """
    Every identity a packet may carry, and the named ports of the pods behind it.

    *awaited* are prefixes that are about to be told apart: rules that name one come into force afterwards.
    *stand_ins* are who packets of those, and of prefixes that could not be written, seem to come from;
    *unseen* those of them that no packet carries or is judged by so far.
    """

    identities: Mapping[NumericIdentity, Labels] = field(default_factory=dict)
    named_ports: Mapping[NumericIdentity, NamedPorts] = field(default_factory=dict)
    awaited: frozenset[Prefix] = frozenset()
    stand_ins: StandIns = field(default_factory=dict)
    unseen: frozenset[NumericIdentity] = frozenset()

    def changes_to(self, other: "World") -> WorldChanges:
        """
        Return what happened between this world and *other*.

        One pass over all identities, which may be every one of the cluster: what is the very same
        object as before is not compared.
        """
        if self is other:
            return WorldChanges()
        before, after = self.identities, other.identities
        renamed = {
            number
            for number, labels in after.items()
            if (known := before.get(number)) is not labels and known is not None and known != labels
        }
        ports, other_ports = self.named_ports, other.named_ports
        renamed |= {
            number
            for number in ports.keys() | other_ports.keys()
            if (old := ports.get(number)) is not (new := other_ports.get(number))
            and old != new
            and number in before
            and number in after
        }
        stand_ins, other_stand_ins = self.stand_ins, other.stand_ins
        renamed |= {
            number
            for number in stand_ins.keys() | other_stand_ins.keys()
            if stand_ins.get(number) != other_stand_ins.get(number) and number in before and number in after
        }
        return WorldChanges(
            added={number: after[number] for number in after.keys() - before.keys()},
            altered={number: after[number] for number in renamed},
            removed=frozenset(before.keys() - after.keys()),
        )
