# SPDX-License-Identifier: Apache-2.0
"""
Maps whose layout changed with this version, and how their rows become those of the other layout.

A map that changes gets a new version in its name, and for one version both maps live: rows are read
from the new one, then from the old one, and written to both.  So nothing is missing when programs
change over, and the version before this one finds its own map up to date when it comes back.
docs/decisions/0013 says why; datapath/README.md says what to write for a change.

Pure: a packed row comes in, a packed row goes out.  ValueError for a row that cannot be.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Row = tuple[bytes, bytes]

VERSIONED = re.compile(r"(cilium_\w+)_v(\d+)")


def same_key(key: bytes) -> bytes:
    """The key's layout did not change."""
    return key


@dataclass(frozen=True, slots=True)
class Succession:
    """
    *new* follows *old*.

    *forward* and *back* turn a row of one into the row of the other, *back_key* the key alone; None
    from *back*: the old layout has no place for such a row.  Rows *by_programs* are written while they
    are carried, all others by the agent only.
    """

    old: str
    new: str
    forward: Callable[[bytes, bytes], Row]
    back: Callable[[bytes, bytes], Row | None]
    back_key: Callable[[bytes], bytes] = same_key
    by_programs: bool = False


SUCCESSIONS: tuple[Succession, ...] = ()
"""What changed since the version before.  An entry goes, with its old map, one version later."""


def family(name: str) -> str:
    """``cilium_ct`` of ``cilium_ct_v1``; a name without version is its own."""
    found = VERSIONED.fullmatch(name)
    return found[1] if found else name


def _version(name: str) -> int:
    found = VERSIONED.fullmatch(name)
    return int(found[2]) if found else 0


def leftovers(pinned: Iterable[str], held: Iterable[str]) -> set[str]:
    """Maps of an earlier stay of this version: the active programs, who *held* others, use an older one."""
    oldest: dict[str, int] = {}
    names = set(held)
    for name in names:
        oldest[family(name)] = min(oldest.get(family(name), _version(name)), _version(name))
    return {name for name in set(pinned) - names if _version(name) > oldest.get(family(name), _version(name))}


def no_way_from(held: Iterable[str], known: Iterable[str]) -> tuple[str, tuple[str, ...]] | None:
    """
    A map of *held*, what the active programs write, whose rows no map of *known* would take over.

    With it the maps of its family that are known; None when every row has somewhere to go.  A family
    that is not known at all is no longer wanted.
    """
    names = set(known)
    held_names = sorted(held)
    kept = {family(name) for name in held_names if name in names}
    for name in held_names:
        relatives = tuple(sorted(one for one in names if family(one) == family(name)))
        if relatives and family(name) not in kept:
            return name, relatives
    return None
