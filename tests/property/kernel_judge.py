# SPDX-License-Identifier: Apache-2.0
"""
The kernel as a judge: the datapath's own lookup, compiled from datapath/lib/policy.h, over real maps.

Needs a built package, clang and CAP_BPF.  Pins nothing and attaches nothing.
"""

import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from ciliumd import abi
from ciliumd.bpf import Map, Object
from ciliumd.desired.policy import MapState, packed_classes, packed_rules
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.policy import Direction
from datapath.compiled import compiled

NAME = "policy_probe"
VERSION = 7
QUESTION = struct.Struct("<IIBB2sII")

CLASSES, RULES = "cilium_policy_classes_v1", "cilium_policy_rules_v1"


class KernelJudge:
    """One policy version in the kernel, rewritten for each state; a context manager."""

    name = "kernel"

    def __init__(self, scratch: Path) -> None:
        with Object(compiled(NAME, scratch), files=scratch) as probe:
            for outer in (CLASSES, RULES):
                probe.set_max_entries(outer, 1)
            probe.load()
            self._program = probe.program(NAME)
            self._outer = {outer: probe.map(outer) for outer in (CLASSES, RULES)}
        self._inner = {name: _inner(name) for name in self._outer}
        for name, outer in self._outer.items():
            failed = outer.update_inner({VERSION.to_bytes(4, "little"): self._inner[name]})
            if failed:
                raise next(iter(failed.values()))
        self._rows: dict[str, dict[bytes, bytes]] = {CLASSES: {}, RULES: {}}

    def load(self, state: MapState) -> None:
        """Make the version's maps hold *state* and nothing else."""
        wanted = {CLASSES: packed_classes(state), RULES: packed_rules(state)}
        for name, rows in wanted.items():
            inner = self._inner[name]
            failed = inner.delete_batch(self._rows[name].keys() - rows.keys()) | inner.update_batch(rows)
            if failed:
                raise next(iter(failed.values()))
        self._rows = wanted

    def verdict(
        self, identity: NumericIdentity, direction: Direction, protocol: int, port: int
    ) -> abi.PolicyVerdict:
        """Run the probe once."""
        question = QUESTION.pack(VERSION, identity, direction, protocol, port.to_bytes(2, "big"), 0xFF, 0)
        run = self._program.test_run(question)
        if run.retval != 0:
            raise AssertionError(f"the probe did not read its question: {run.retval}")
        return abi.PolicyVerdict(QUESTION.unpack(run.data)[5])

    def close(self) -> None:
        """Give every descriptor back."""
        for handle in (self._program, *self._outer.values(), *self._inner.values()):
            handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _inner(outer: str) -> Map:
    spec = abi.MAPS[outer].inner
    if spec is None:
        raise AssertionError(f"{outer} is no map of maps")
    return Map.create(spec, max_entries=4096)
