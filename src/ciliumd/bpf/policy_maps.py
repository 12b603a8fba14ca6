# SPDX-License-Identifier: Apache-2.0
"""
Policy versions in the kernel: two inner maps each, pinned, and hung into the outer maps.

To the reconciler this is one flat set of rows: version, which of the two maps, and the inner key.
A version is hung up, in both outer maps or in none, after the rows of the call; and no endpoint's state
word names it before every row of it is written.  So packets meet a version whole or not at all.

Inner maps are pinned so that a restarted agent reaches them by name: opening a map by its id
needs CAP_SYS_ADMIN.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from ciliumd import abi
from ciliumd.bpf.errors import BpfError
from ciliumd.bpf.handle import unpin
from ciliumd.bpf.keep import repin_all
from ciliumd.bpf.map import Map

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    Grouped = Mapping[int, Mapping[int, Mapping[bytes, bytes]]]

CLASSES, RULES = 0, 1
PREFIX = struct.Struct(">IB")
PIN_NAMES = {CLASSES: "classes", RULES: "rules"}


def flat_key(version: int, which: int, inner: bytes) -> bytes:
    """Key of one inner row among all rows of all versions."""
    return PREFIX.pack(version, which) + inner


def split_key(key: bytes) -> tuple[int, int, bytes]:
    """Version, :data:`CLASSES` or :data:`RULES`, and the inner key of a flat key."""
    version, which = PREFIX.unpack_from(key)
    return version, which, key[PREFIX.size :]


class PolicyMaps:
    """Every policy version of the node; *pins* is a directory of bpffs that is ours alone."""

    name = "cilium_policy"

    def __init__(self, classes: Map, rules: Map, pins: Path) -> None:
        self._outer = {CLASSES: classes, RULES: rules}
        self._pins = pins
        self._inner: dict[tuple[int, int], Map] = {}
        self._hung: set[int] = set()
        self._missing: dict[int, set[bytes]] = {}

    def versions(self) -> set[int]:
        """Versions that have maps, hung up or not."""
        return {version for version, _ in self._inner}

    def inner_ids(self) -> dict[tuple[int, int], int]:
        """Kernel ids of the inner maps by version and kind."""
        return {place: inner.info.id for place, inner in self._inner.items()}

    def load(self) -> dict[bytes, bytes]:
        """Every row of every version that packets can meet; what hangs half is taken down first."""
        self._open_pinned()
        hung = {which: {_version(key) for key in outer.keys()} for which, outer in self._outer.items()}  # noqa: SIM118
        whole = hung[CLASSES] & hung[RULES] & {v for v, w in self._inner if (v, 1 - w) in self._inner}
        self._drop((hung[CLASSES] | hung[RULES] | self.versions()) - whole)
        self._hung = whole
        return {
            flat_key(version, which, key): value
            for (version, which), inner in self._inner.items()
            if version in whole
            for key, value in inner.items()
        }

    def update(self, items: Mapping[bytes, bytes]) -> Mapping[bytes, Exception]:
        """Write rows, rules before the classes that lead to them; new versions are hung up last."""
        failed: dict[bytes, Exception] = {}
        whole: dict[int, Mapping[int, Mapping[bytes, bytes]]] = {}
        for version, rows in _by_version(items).items():
            if (version, RULES) not in self._inner:
                try:
                    self._create(version)
                except BpfError as error:
                    failed |= {key: error for which in rows for key in _flat(version, which, rows[which])}
                    continue
            broken = self._write(version, rows)
            failed |= broken
            if not broken:
                whole[version] = rows
        return failed | self._hang(whole)

    def _write(self, version: int, rows: Mapping[int, Mapping[bytes, bytes]]) -> dict[bytes, Exception]:
        """Rows of one version; no class is led to rules of which one is missing: it might be a deny."""
        rules = rows.get(RULES, {})
        broken: dict[bytes, Exception] = dict(self._inner[version, RULES].update_batch(rules))
        self._missing[version] = (self._missing.get(version, set()) - rules.keys()) | broken.keys()
        failed = {flat_key(version, RULES, key): error for key, error in broken.items()}
        classes = rows.get(CLASSES, {})
        if missing := len(self._missing[version]):
            error = BpfError(
                "update map", self._outer[CLASSES].name, errno.EAGAIN, f"{missing} rules are missing"
            )
            return failed | dict.fromkeys(_flat(version, CLASSES, classes), error)
        broken = dict(self._inner[version, CLASSES].update_batch(classes))
        return {flat_key(version, CLASSES, key): error for key, error in broken.items()}

    def delete(self, keys: Collection[bytes]) -> Mapping[bytes, Exception]:
        """Remove rows; a version without rules is taken down whole."""
        failed: dict[bytes, Exception] = {}
        empty: set[int] = set()
        grouped = _by_version(dict.fromkeys(keys, b""))
        for version, rows in grouped.items():
            if (version, RULES) not in self._inner:
                continue
            rules = self._inner[version, RULES]
            if not set(rules.keys()) - rows.get(RULES, {}).keys():
                empty.add(version)
                continue
            for which in (CLASSES, RULES):
                broken = self._inner[version, which].delete_batch(rows.get(which, {}))
                failed |= {flat_key(version, which, key): error for key, error in broken.items()}
        return failed | _by_row(self._drop(empty), grouped)

    def repin(self) -> list[Path]:
        """Have the pin of every inner map lead to it; those that did not."""
        return repin_all({self._pin(*place): inner for place, inner in self._inner.items()})

    def close(self) -> None:
        """Give the handles back; pins stay."""
        for inner in self._inner.values():
            inner.close()
        self._inner.clear()

    def _open_pinned(self) -> None:
        for path in sorted(self._pins.iterdir()):
            number, _, kind = path.name.partition("_")
            for which, name in PIN_NAMES.items():
                if kind == name and number.isdecimal() and (int(number), which) not in self._inner:
                    self._inner[int(number), which] = Map.from_pin(path)

    def _create(self, version: int) -> None:
        """Two empty inner maps, pinned; on failure none."""
        made: list[Map] = []
        try:
            for which, outer in self._outer.items():
                spec = abi.MAPS[outer.name].inner
                if spec is None:
                    raise ValueError(f"{outer.name} is no map of maps")
                inner = Map.create(spec)
                made.append(inner)
                inner.pin(self._pin(version, which))
                self._inner[version, which] = inner
        except BpfError:
            for which in self._outer:
                self._inner.pop((version, which), None)
                unpin(self._pin(version, which))
            for inner in made:
                inner.close()
            raise

    def _hang(self, grouped: Grouped) -> dict[bytes, Exception]:
        """Show new versions to packets, each outer map in one batch: a single write waits for RCU."""
        fresh = {version for version in grouped if (version, RULES) in self._inner} - self._hung
        broken: dict[int, Exception] = {}
        for which, outer in self._outer.items():
            items = {_key(version): self._inner[version, which] for version in fresh}
            if items:
                broken |= {_version(key): error for key, error in outer.update_inner(items).items()}
        if broken:
            for outer in self._outer.values():
                outer.delete_batch([_key(version) for version in broken])
        self._hung |= fresh - broken.keys()
        return _by_row(broken, grouped)

    def _drop(self, versions: set[int]) -> dict[int, Exception]:
        """Take versions down; those that could not be keep their maps, to be tried again."""
        broken: dict[int, Exception] = {}
        for outer in self._outer.values():
            failed = outer.delete_batch([_key(version) for version in versions])
            broken |= {_version(key): error for key, error in failed.items()}
        self._hung -= versions
        for version in versions - broken.keys():
            self._missing.pop(version, None)
            for which in self._outer:
                unpin(self._pin(version, which))
                inner = self._inner.pop((version, which), None)
                if inner is not None:
                    inner.close()
        return broken

    def _pin(self, version: int, which: int) -> Path:
        return self._pins / f"{version}_{PIN_NAMES[which]}"


def _key(version: int) -> bytes:
    return version.to_bytes(4, "little")


def _version(key: bytes) -> int:
    return int.from_bytes(key, "little")


def _flat(version: int, which: int, rows: Iterable[bytes]) -> list[bytes]:
    return [flat_key(version, which, key) for key in rows]


def _by_row(broken: Mapping[int, Exception], grouped: Grouped) -> dict[bytes, Exception]:
    """Failures of versions as failures of the rows that were asked for."""
    return {
        key: error
        for version, error in broken.items()
        for which, rows in grouped[version].items()
        for key in _flat(version, which, rows)
    }


def _by_version(items: Mapping[bytes, bytes]) -> dict[int, dict[int, dict[bytes, bytes]]]:
    grouped: dict[int, dict[int, dict[bytes, bytes]]] = {}
    for key, value in items.items():
        version, which, inner = split_key(key)
        grouped.setdefault(version, {}).setdefault(which, {})[inner] = value
    return grouped
