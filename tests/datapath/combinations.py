# SPDX-License-Identifier: Apache-2.0
"""
Which options each program reads, and the fewest loads that verify every program in every combination of them.

An option is read-only data, constant for the verifier.  So two combinations that differ only in options
which a program does not read are the same program to it, and one load stands for both.  What a program
reads is told by the relocations of its object, those of the functions it calls included.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ciliumd.bpf import BpfError, Map, Object, VerifierRejected
from ciliumd.bpf.object import embedded
from datapath.harness import SMALL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Options that switch code on and off, with both their values ...
SWITCHES: dict[str, tuple[int, int]] = {
    "ipv6": (0, 1),
    "masquerade": (0, 1),
    "masquerade_ipv6": (0, 1),
    "loopback_ipv4": (0, 0xA9FE2A01),
    "loopback_ipv6_head": (0, 1),
    "tunnel": (0, 1),
    "tunnel_ipv6": (0, 1),
    "node_port": (0, 1),
    "host_legacy_routing": (0, 1),
    "node_netns_cookie": (0, 7),
    "sock_host_only": (0, 1),
    "bind_protection": (0, 1),
}
# ... which the agent leaves as they are without the one they are about (``daemon.datapath.options``) ...
ABOUT = {"tunnel_ipv6": "tunnel", "masquerade_ipv6": "ipv6", "loopback_ipv6_head": "ipv6"}
# ... and those that are numbers to calculate with.
NUMBERS = {
    *("ct_timeout_any", "ct_timeout_tcp", "ct_timeout_tcp_fin", "ct_timeout_tcp_syn", "report_interval"),
    *("cilium_host_ifindex", "cilium_host_mac", "router_ipv4", "router_ipv6_head", "router_ipv6_tail"),
    "loopback_ipv6_tail",
    *(
        f"{network}_cidr_ipv6{part}_{half}"
        for network in ("pod", "native")
        for part in ("", "_mask")
        for half in ("head", "tail")
    ),
    *("native_cidr_ipv4", "native_cidr_mask", "pod_cidr_ipv4", "pod_cidr_mask"),
    *("nat_port_max", "nat_port_min"),
    *("tunnel_port", "overlay_ifindex", "overlay_mtu"),
}
PREFIX = "cfg_"
OUT = Path(__file__).resolve().parents[2] / "build" / "out"

# ELF64, little endian: elf(5).
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQ")
_SHT_SYMTAB, _SHT_REL, _STT_FUNC, _STT_SECTION = 2, 9, 2, 3


class _Place(NamedTuple):
    """A function: the section it is in, and where."""

    section: int
    start: int


class _Symbol(NamedTuple):
    name: str
    kind: int
    section: int
    value: int
    size: int


@dataclass(frozen=True, slots=True)
class Load:
    """One load of an object: the options' values, and the programs that nothing before verified so."""

    options: dict[str, int]
    programs: tuple[str, ...]


def options_read(data: bytes) -> dict[str, frozenset[str]]:
    """Options read by each function of an object file, by the function's name."""
    sections = [
        _SECTION.unpack_from(data, _HEADER.unpack_from(data)[6] + index * _SECTION.size)
        for index in range(_HEADER.unpack_from(data)[12])
    ]
    symbols = list(_symbols(data, sections))
    functions = {_Place(one.section, one.value): one for one in symbols if one.kind == _STT_FUNC}
    reads: dict[_Place, set[str]] = {place: set() for place in functions}
    calls: dict[_Place, set[_Place]] = {place: set() for place in functions}
    for _, kind, _, _, offset, size, _, target, _, _ in sections:
        if kind != _SHT_REL:
            continue
        for where, info in _RELOCATION.iter_unpack(data[offset : offset + size]):
            holder = _function_at(functions, target, where)
            symbol = symbols[info >> 32]
            if holder is None:
                continue
            if symbol.name.startswith(PREFIX):
                reads[holder].add(symbol.name.removeprefix(PREFIX))
            elif symbol.kind == _STT_SECTION and any(place.section == symbol.section for place in functions):
                # A call of a static function: the instruction holds its distance from the section's start.
                (distance,) = struct.unpack_from("<i", data, sections[target][4] + where + 4)
                calls[holder].add(_Place(symbol.section, (distance + 1) * 8))
            elif symbol.kind == _STT_FUNC:
                calls[holder].add(_Place(symbol.section, symbol.value))
    return {one.name: frozenset(_reached(place, reads, calls)) for place, one in functions.items()}


def _symbols(data: bytes, sections: list[tuple[int, ...]]) -> Iterator[_Symbol]:
    (table,) = [one for one in sections if one[1] == _SHT_SYMTAB]
    names = sections[table[6]][4]
    for name, info, _, section, value, size in _SYMBOL.iter_unpack(data[table[4] : table[4] + table[5]]):
        end = data.index(b"\0", names + name)
        yield _Symbol(data[names + name : end].decode(), info & 15, section, value, size)


def _function_at(functions: dict[_Place, _Symbol], section: int, offset: int) -> _Place | None:
    for place, one in functions.items():
        if place.section == section and place.start <= offset < place.start + one.size:
            return place
    return None


def _reached(start: _Place, reads: dict[_Place, set[str]], calls: dict[_Place, set[_Place]]) -> set[str]:
    """What a function reads, and whatever it calls: a call to an unknown place is a KeyError."""
    found, todo, seen = set[str](), [start], set[_Place]()
    while todo:
        place = todo.pop()
        if place not in seen:
            seen.add(place)
            found |= reads[place]
            todo += calls[place]
    return found


def loads(name: str) -> list[Load]:
    """The loads that verify every program of an object in every combination; the first is the usual one."""
    read = options_read(embedded()[name].data)
    with Object.open(name) as source:
        programs = source.program_names
    switches = sorted(set().union(*(read[program] for program in programs)) & set(SWITCHES))
    done: set[tuple[str, frozenset[tuple[str, int]]]] = set()
    wanted = [Load({}, tuple(programs))]
    for values in itertools.product(*(SWITCHES[option] for option in switches)):
        options = dict(zip(switches, values, strict=True))
        if not _happens(options):
            continue
        new = []
        for program in programs:
            key = program, frozenset((option, options[option]) for option in read[program] & set(options))
            if key not in done:
                done.add(key)
                new.append(program)
        if new:
            wanted.append(Load(options, tuple(new)))
    return wanted


def _happens(options: Mapping[str, int]) -> bool:
    """Whether an agent may set these options together."""
    return all(
        options.get(one, off) == off or options.get(other) != SWITCHES[other][0]
        for one, other in ABOUT.items()
        for off in [SWITCHES[one][0]]
    )


@contextlib.contextmanager
def maps_of(name: str) -> Iterator[dict[str, Map]]:
    """The maps of an object, made once for many loads of it."""
    with contextlib.ExitStack() as stack:
        with _opened(name, Load({}, ()), {}) as source:
            source.load()
            maps = {map_name: stack.enter_context(source.map(map_name)) for map_name in source.map_names}
        yield maps


def verify(name: str, load: Load, maps: Mapping[str, Map]) -> dict[str, int]:
    """Instructions walked per program; what the verifier refused is kept in build/out."""
    with _opened(name, load, maps) as source:
        # The verifier is asked, not the program: the kernel keeps the number since 5.16 only.
        for program in load.programs:
            source.ask_summary(program)
        try:
            source.load()
        except BpfError:
            _refused(name, load, maps)
            raise
        return {program: _walked(source.summary(program)) for program in load.programs}


def _opened(name: str, load: Load, maps: Mapping[str, Map]) -> Object:
    source = Object.open(name)
    for option, value in load.options.items():
        source.set_config(option, value)
    for map_name in source.map_names:
        if map_name in maps:
            source.reuse_map(map_name, maps[map_name])
        elif map_name in SMALL:
            source.set_max_entries(map_name, SMALL[map_name])
    for program in source.program_names:
        source.set_autoload(program, program in load.programs)
    return source


def _refused(name: str, load: Load, maps: Mapping[str, Map]) -> None:
    """Once more for the whole log: it is not there when only its summary was asked for."""
    with _opened(name, load, maps) as source:
        try:
            source.load()
        except VerifierRejected as refused:
            OUT.mkdir(parents=True, exist_ok=True)
            (OUT / f"verifier-{name}.log").write_text(f"{load.options}\n{refused.log}\n")
            (OUT / f"verifier-{name}.bpf.o").write_bytes(embedded()[name].data)
            raise


def _walked(summary: str) -> int:
    found = re.search(r"^processed (\d+) insns", summary, re.MULTILINE)
    assert found, summary
    return int(found[1])
