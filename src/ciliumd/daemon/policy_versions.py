# SPDX-License-Identifier: Apache-2.0
"""
The policy versions of the node as rows of the kernel's maps, told as changes.

Who is under which version, and what it holds, is decided in ``desired.policy``.  Here that becomes rows,
and a number is reserved before any row carries it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import structlog

from ciliumd import abi
from ciliumd.bpf.policy_maps import CLASSES, RULES, flat_key, split_key
from ciliumd.desired.policy import (
    RETIRE_AFTER,
    CorruptRowsError,
    EndpointRules,
    MapState,
    Selected,
    Subject,
    Versions,
    World,
    packed_classes,
    packed_rules,
    unpacked,
)
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.net import Prefix
from ciliumd.model.policy import Direction, Enforcement, Peer, Policy
from ciliumd.reconcile.target import Changes
from ciliumd.tables.schema import ObjectKey

__all__ = ["RETIRE_AFTER", "PolicyVersions", "Subject", "World"]

log = structlog.get_logger("policy")


class PolicyVersions:
    """All versions of the node; *rules*, *versions* and *problems* are by endpoint id."""

    def __init__(
        self,
        *,
        reserve_version: Callable[[int], None],
        next_version: int,
        enforcement: Enforcement = Enforcement.DEFAULT,
    ) -> None:
        self._reserve_version = reserve_version
        self._versions = Versions(next_version=next_version, enforcement=enforcement)
        self._packed: dict[int, dict[bytes, bytes]] = {}
        self._untold: dict[bytes, bytes | None] = {}

    @property
    def rules(self) -> dict[int, EndpointRules]:
        """The rules of each endpoint."""
        return self._versions.rules

    @property
    def versions(self) -> dict[int, int]:
        """The version of each endpoint that has one."""
        return self._versions.versions

    @property
    def problems(self) -> dict[int, str]:
        """Why an endpoint is not under its rules."""
        return self._versions.problems

    @property
    def waiting(self) -> frozenset[int]:
        """Endpoints whose rules are to come into force in a later round."""
        return self._versions.waiting

    @property
    def states(self) -> dict[int, MapState]:
        """What every version holds."""
        return self._versions.states

    def fullest(self) -> dict[str, int]:
        """Of each map of a version the most rows that any holds, or would hold if there were room."""
        return self._versions.fullest()

    @property
    def rows(self) -> dict[bytes, bytes]:
        """The flat rows of every version."""
        return {
            key: value for version in sorted(self._packed) for key, value in self._packed[version].items()
        }

    def take_changes(self) -> Changes:
        """How :attr:`rows` changed since this was last asked."""
        untold, self._untold = self._untold, {}
        return Changes(
            {key: value for key, value in untold.items() if value is not None},
            [key for key, value in untold.items() if value is None],
        )

    def restore(self, rows: Mapping[bytes, bytes], versions: Mapping[int, int]) -> None:
        """
        Start from the versions the kernel holds, and from those it judges endpoints by.

        A version that no agent wrote is left out.
        """
        grouped: dict[int, dict[int, dict[bytes, bytes]]] = {}
        for key, value in rows.items():
            version, which, inner = split_key(key)
            grouped.setdefault(version, {CLASSES: {}, RULES: {}})[which][inner] = value
        states: dict[int, MapState] = {}
        for version, maps in grouped.items():
            try:
                states[version] = unpacked(maps[CLASSES], maps[RULES])
            except CorruptRowsError as error:
                log.warning("policy.version_corrupt", version=version, error=str(error))
                continue
            self._write(
                (flat_key(version, which, key), value)
                for which in (RULES, CLASSES)
                for key, value in maps[which].items()
            )
        self._versions.next_version = max(self._versions.next_version, max(grouped, default=0) + 1)
        self._versions.restore(states, versions)

    def update(
        self,
        policies: Mapping[ObjectKey, Policy],
        subjects: Mapping[int, Subject],
        world: World,
        *,
        now: float,
    ) -> None:
        """
        Bring everything up to date; an endpoint whose rules do not fit is as closed as they are, or shut.

        If this raises, nothing has changed.
        """
        todo = self._versions.plan(policies, subjects, world)
        if todo.next_version != self._versions.next_version:
            # Before the number is in any map: a number is never used twice, even if we die here.
            self._reserve_version(todo.next_version)
        for version, places in todo.removed.items():
            self._write((_class_key(version, *place), None) for place in places)
        for version, state in todo.added.items():
            self._write(_packed(version, state))
        self._versions.commit(todo, now=now)

    def named(self) -> set[Prefix]:
        """The prefixes that rules in force name."""
        return self._versions.named()

    def parts(self) -> set[Prefix]:
        """Those of them by which rules in force tell pods apart."""
        return self._versions.parts()

    def selectors(self) -> dict[Peer, Selected]:
        """The peers of the rules in force."""
        return self._versions.selectors()

    def tell_apart(self, one: NumericIdentity, other: NumericIdentity) -> bool:
        """Whether a version of other rules than those in force judges the two differently."""
        return self._versions.tell_apart(one, other)

    def next_retirement(self) -> float | None:
        """When an unused version may go; None when there is none."""
        return self._versions.next_retirement()

    def retire(self, now: float) -> None:
        """Let go of the versions nobody has used for a while."""
        for version in self._versions.retire(now):
            self._untold.update(dict.fromkeys(self._packed.pop(version)))

    def _write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Rows by flat key; None takes one away."""
        for key, value in rows:
            packed = self._packed.setdefault(split_key(key)[0], {})
            if value is None:
                packed.pop(key, None)
            else:
                packed[key] = value
            self._untold[key] = value


def _packed(version: int, state: MapState) -> Iterator[tuple[bytes, bytes]]:
    """Flat rows, those of a class before the identities that lead to it."""
    for which, rows in ((RULES, packed_rules(state)), (CLASSES, packed_classes(state))):
        for key, value in rows.items():
            yield flat_key(version, which, key), value


def _class_key(version: int, identity: int, direction: Direction) -> bytes:
    return flat_key(version, CLASSES, abi.PolicyClassKey(identity=identity, direction=int(direction)).pack())
