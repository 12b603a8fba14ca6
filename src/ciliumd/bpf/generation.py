# SPDX-License-Identifier: Apache-2.0
"""
One generation of programs: loaded aside, then made the active one by a single store.

What hangs on devices is the entry object, which jumps through cilium_hooks_v1 into the active
generation.  A generation brings its own tail-call table and scratch maps; state maps are pinned
and shared.  Old programs stay callable until `retire`, so packets in flight finish where they
began.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from ciliumd import abi
from ciliumd.bpf import carry, layout
from ciliumd.bpf.handle import unpin
from ciliumd.bpf.keep import HeldLinks, repin_all
from ciliumd.bpf.link import Link, TcxHook, attach_cgroup, attach_tcx, detach
from ciliumd.bpf.map import Map
from ciliumd.bpf.object import Object, embedded
from ciliumd.bpf.words import U64Array

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from ciliumd.bpf.pins import Pins
    from ciliumd.bpf.program import Program

ENTRY = "entry"
# Loaded by who uses them, for as long as they do: no packet and no call runs through them.
ASIDE = frozenset({"terminate"})
STATE = layout.STATE_PREFIX
NODE_STATE, HOOKS, CALLS = "cilium_node_state_v1", "cilium_hooks_v1", "calls"
# A packet leaves the programs within microseconds; a loaded machine gets this long.
GRACE_SECONDS = 1.0
ROW = struct.Struct("=I")
DESCRIPTOR = struct.Struct("=i")


@dataclass(slots=True)
class Generation:
    """Programs that were loaded together; `maps` are the pinned state maps by name."""

    number: int
    pins: Pins
    programs: dict[str, Program] = field(default_factory=dict)
    entries: dict[str, Program] = field(default_factory=dict)
    maps: dict[str, Map] = field(default_factory=dict)
    carried: list[carry.Carried] = field(default_factory=list)
    _own: dict[str, Map] = field(default_factory=dict)
    _fresh: set[str] = field(default_factory=set)
    _twins: dict[str, carry.Twin] = field(default_factory=dict)
    _links: HeldLinks = field(default_factory=HeldLinks)

    @classmethod
    def load(
        cls,
        pins: Pins,
        *,
        config: Mapping[str, bool | int | bytes],
        max_entries: Mapping[str, int] | None = None,
        without: frozenset[str] = frozenset(),
    ) -> Self:
        """
        Load every object against the pinned maps, one number after the active generation.

        Nothing runs through the new programs before activate().  Maps that are pinned already
        keep their size; *max_entries* is for those made now.  Of the objects *without* only the maps
        are loaded.  On failure what was made is gone.
        """
        unknown = sorted(set(config) - set(abi.CONFIG))
        if unknown:
            raise ValueError(
                f"no such option: {', '.join(unknown)}; there are {', '.join(sorted(abi.CONFIG))}"
            )
        before = active(pins)
        pinned = carry.take_stock(pins, before)
        layout.record(pins.maps, pinned)
        generation = cls(before + 1, pins)
        generation._fresh = {name for name in abi.MAPS if name.startswith(STATE)} - pinned
        try:
            sizes = _sizes(pins, pinned, max_entries or {})
            for name in sorted(embedded().keys() - ASIDE):
                generation._load_object(name, config, sizes, programs=name not in without)
            generation._pair()
            generation.carried = carry.before_flip(generation._twins.values(), generation._fresh)
            generation._fill()
        except BaseException:
            generation._abandon()
            raise
        return generation

    def _load_object(
        self, name: str, config: Mapping[str, bool | int | bytes], sizes: Mapping[str, int], *, programs: bool
    ) -> None:
        with Object.open(name) as source:
            for program_name in source.program_names:
                source.set_autoload(program_name, programs)
            for option in source.config_names:
                if option in config:
                    source.set_config(option, config[option])
            for map_name in source.map_names:
                self._place_map(source, map_name, sizes)
            source.load()
            for map_name in source.map_names:
                known = self.maps if map_name.startswith(STATE) else self._own
                if map_name not in known:
                    known[map_name] = source.map(map_name)
            target = self.entries if name == ENTRY else self.programs
            for program_name in source.program_names if programs else ():
                if program_name in self.programs or program_name in self.entries:
                    raise ValueError(f"two objects have a program called {program_name}")
                target[program_name] = source.program(program_name)

    def _place_map(self, source: Object, name: str, sizes: Mapping[str, int]) -> None:
        """State maps are the pinned ones; tail-call table and scratch maps are one per generation."""
        if name.startswith(STATE):
            source.set_pin_path(name, self.pins.maps / name)
            if name in sizes:
                source.set_max_entries(name, sizes[name])
        elif name in self._own:
            source.reuse_map(name, self._own[name])

    def _pair(self) -> None:
        """From here on who writes a map of a new layout writes the old one, too."""
        self._twins = carry.paired(self.maps)
        for name, twin in self._twins.items():
            self.maps[name].close()
            self.maps[name] = twin

    def _fill(self) -> None:
        """Programs called call_* and hook_* go where the enums of abi.h say."""
        directory = self.pins.make_generation(self.number)
        for name, used in self.maps.items():
            used.pin(directory / name)
        calls = self._own[CALLS]
        # The pin keeps the table filled when this process ends: the kernel empties unheld ones.
        calls.pin(directory / CALLS)
        half = (self.number & 1) * abi.Hook.HOOK_MAX
        for name, program in self.programs.items():
            value = DESCRIPTOR.pack(program.fd)
            if name.upper() in abi.Call.__members__:
                calls.update(ROW.pack(abi.Call[name.upper()]), value)
            elif name.upper() in abi.Hook.__members__:
                self.maps[HOOKS].update(ROW.pack(half + abi.Hook[name.upper()]), value)

    def activate(self) -> None:
        """
        Every hook of every device runs these programs from this store on.

        Where a layout changed, rows of programs follow.  MigrationFailed when they cannot: then the
        generation before is active again, and this one is gone.
        """
        before = active(self.pins)
        self._store(self.number)
        if not self._twins:
            return
        try:
            if self._fresh & self._twins.keys():
                # Until now a packet in an old program may have written the old map alone.
                time.sleep(GRACE_SECONDS)
            self.carried += carry.after_flip(self._twins.values())
        except BaseException:
            self._store(before)
            time.sleep(GRACE_SECONDS)
            self._abandon()
            raise

    def _store(self, number: int) -> None:
        with U64Array(self.maps[NODE_STATE]) as state:
            state[abi.NodeState.NODE_STATE_GENERATION] = number

    def _abandon(self) -> None:
        """Take back what load() made."""
        if HOOKS in self.maps:
            _clear_half(self.maps[HOOKS], self.number)
        self.close()
        self.pins.drop_generation(self.number)
        for name in self._fresh:
            unpin(self.pins.maps / name)

    def attach_device(self, ifindex: int, *, ingress: str | None = None, egress: str | None = None) -> None:
        """
        Hang entry programs on a device by pinned tcx links, or replace those that hang there.

        *ingress* and *egress* name entry programs, e.g. "entry_from_container".
        """
        for hook, name in ((TcxHook.INGRESS, ingress), (TcxHook.EGRESS, egress)):
            if name is not None:
                pin = device_pin(self.pins, ifindex, hook)
                self._links.restore(pin)
                attach_tcx(self.entries[name], ifindex=ifindex, hook=hook, pin=pin)
                self._links.hold(pin)

    def detach_device(self, ifindex: int) -> None:
        """Take our programs off a device, whether it still exists or not."""
        for hook in TcxHook:
            self._links.let_go(device_pin(self.pins, ifindex, hook))
        detach_device(self.pins, ifindex)

    def attach_cgroup(self, cgroup: Path) -> None:
        """Hang the socket programs on a control group, or replace those that hang there."""
        for name, program in self.programs.items():
            if program.section.startswith("cgroup/"):
                pin = self.pins.link("cgroup", name)
                self._links.restore(pin)
                attach_cgroup(program, cgroup=cgroup, pin=pin)
                self._links.hold(pin)

    def repin(self) -> list[Path]:
        """Have every map's pin lead to the map packets run through; those that did not."""
        own = self.pins.generation(self.number)
        places = (self.pins.maps, own)
        pinned = {place / name: one for place in places for name, one in self.maps.items()}
        return repin_all({**pinned, own / CALLS: self._own[CALLS]})

    def verified_insns(self) -> dict[str, int]:
        """Instructions the verifier walked, per program."""
        return {name: program.verified_insns for name, program in (self.entries | self.programs).items()}

    def close(self) -> None:
        """Give this process's handles back; what is pinned goes on running."""
        self._links.close()
        for handle in (
            *self.programs.values(),
            *self.entries.values(),
            *self.maps.values(),
            *self._own.values(),
        ):
            handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def active(pins: Pins) -> int:
    """The number of the generation packets run through; 0 before the first."""
    path = pins.maps / NODE_STATE
    if not path.exists():
        return 0
    with Map.from_pin(path) as pinned, U64Array(pinned) as state:
        return state[abi.NodeState.NODE_STATE_GENERATION]


def retire(pins: Pins) -> list[int]:
    """
    Let go of every generation but the active one, and of maps that only they used.

    Call it GRACE_SECONDS after activate().

    Returns the numbers that had pins.
    """
    current = active(pins)
    retired = [number for number in pins.generations() if number != current]
    for number in retired:
        pins.drop_generation(number)
    with Map.from_pin(pins.maps / HOOKS) as hooks:
        _clear_half(hooks, current + 1)
    carry.drop_strangers(pins, current)
    return retired


def _clear_half(hooks: Map, number: int) -> None:
    """Empty the half of the hook table that generation *number* fills."""
    first = (number & 1) * abi.Hook.HOOK_MAX
    for row in range(first, first + abi.Hook.HOOK_MAX):
        hooks.delete(ROW.pack(row))


def device_pin(pins: Pins, ifindex: int, hook: TcxHook) -> Path:
    """The pin of a device's link."""
    return pins.link("tcx", ifindex, hook.name.lower())


def detach_device(pins: Pins, ifindex: int) -> None:
    """Take our programs off a device, whether it still exists or not."""
    for hook in TcxHook:
        detach(device_pin(pins, ifindex, hook))


def drop_detached(pins: Pins) -> list[Path]:
    """Let go of links whose device has gone while nobody looked; their pins."""
    dropped = []
    for pin in sorted(pins.links.glob("tcx_*")):
        with Link.from_pin(pin) as link:
            gone = link.info.detached
        if gone and detach(pin):
            dropped.append(pin)
    return dropped


def detach_cgroup(pins: Pins) -> None:
    """Take our programs off the control group."""
    for pin in sorted(pins.links.glob("cgroup_*")):
        detach(pin)


def detach_all(pins: Pins) -> None:
    """Take every link away, for an uninstall."""
    for pin in sorted(pins.links.iterdir()):
        detach(pin)


def _sizes(pins: Pins, pinned: set[str], wanted: Mapping[str, int]) -> dict[str, int]:
    """max_entries by map: of pinned maps what they have, of others what is wanted."""
    unknown = sorted(set(wanted) - set(abi.MAPS))
    if unknown:
        raise ValueError(f"no such map: {', '.join(unknown)}")
    found = {}
    for name in pinned:
        with Map.from_pin(pins.maps / name) as one:
            found[name] = one.info.max_entries
    return carry.sizes(wanted, found)
