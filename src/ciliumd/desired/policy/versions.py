# SPDX-License-Identifier: Apache-2.0
"""
Which policy version each endpoint gets: one that says the same already, or a fresh number.

Content decides, so endpoints share, a restarted agent keeps what its predecessor wrote, and a
version's content never turns into another's.  Writing, flipping and deleting is the reconciler's.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from ciliumd.desired.policy.mapstate import MapState

K = TypeVar("K", bound=Hashable)

VERSION_MAX = 0xFFFFFFFF


class VersionsExhaustedError(Exception):
    """Every 32-bit version number was used once; a node reboot starts over."""


@dataclass(frozen=True, slots=True)
class VersionPlan(Generic[K]):
    """
    What to do, in this order: write *create* whole, flip endpoints to *assigned*, delete *obsolete*.

    *states* is the content of every assigned version as it is in the maps: for a reused version that
    may number its classes differently from what was wanted, and later additions must start from it.
    """

    create: Mapping[int, MapState]
    assigned: Mapping[K, int]
    states: Mapping[int, MapState]
    obsolete: frozenset[int]
    next_version: int


def plan_versions(
    wanted: Mapping[K, MapState], existing: Mapping[int, MapState], *, next_version: int
) -> VersionPlan[K]:
    """
    Assign a version to every key of *wanted*, given the versions the maps hold.

    *next_version* is the first number never used so far.  *obsolete* versions may still be in
    front of a packet: they go once no endpoint's state word names them.
    """
    next_version = max(next_version, max(existing, default=0) + 1, 1)
    by_meaning = {existing[version].meaning(): version for version in sorted(existing, reverse=True)}
    create: dict[int, MapState] = {}
    assigned: dict[K, int] = {}
    states: dict[int, MapState] = {}
    for key, state in wanted.items():
        meaning = state.meaning()
        version = by_meaning.get(meaning)
        if version is None:
            if next_version > VERSION_MAX:
                raise VersionsExhaustedError(f"policy version {next_version} does not fit in 32 bits")
            version = next_version
            next_version += 1
            by_meaning[meaning] = version
            create[version] = state
        assigned[key] = version
        states[version] = create[version] if version in create else existing[version]
    return VersionPlan(create, assigned, states, frozenset(existing.keys() - states.keys()), next_version)
