# SPDX-License-Identifier: Apache-2.0
"""
Programs of an object file: instructions by program, and what their 64-bit constants refer to.

Reads exactly what clang writes for our objects: 64-bit little-endian, programs in "tc" or in a section for
each hook of sockets, no calls between functions.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

HEADER: Final = struct.Struct("<40xQ10xHHH")  # e_shoff, e_shentsize, e_shnum, e_shstrndx
SECTION: Final = struct.Struct("<IIQQQQIIQQ")
SYMBOL: Final = struct.Struct("<IBBHQQ")
RELOCATION: Final = struct.Struct("<QQ")
INSTRUCTION: Final = struct.Struct("<BBhi")
TYPE_FUNCTION: Final = 2
R_BPF_64_64: Final = 1
LD_IMM64: Final = 0x18
MAPS, READ_ONLY = ".maps", ".rodata"
PROGRAMS: Final = ("tc", "cgroup/")


@dataclass(frozen=True, slots=True)
class Reference:
    """What a 64-bit constant stands for: a map by name, or a place in the read-only data."""

    section: str
    name: str
    offset: int


@dataclass(frozen=True, slots=True)
class Instruction:
    """One slot of eight bytes; the second slot of a 64-bit constant only holds its upper half."""

    code: int
    dst: int
    src: int
    off: int
    imm: int
    reference: Reference | None = None


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    data: bytes
    link: int


@dataclass(frozen=True, slots=True)
class _Symbol:
    name: str
    kind: int
    section: int
    value: int
    size: int


@dataclass(frozen=True, slots=True)
class Image:
    """Programs by name, defaults of the read-only data, and where each option lies in it."""

    programs: dict[str, tuple[Instruction, ...]]
    read_only: bytes
    options: dict[str, tuple[int, int]]


def read(data: bytes) -> Image:
    """Take an object apart."""
    sections = _sections(data)
    symbols = list(_symbols(sections))
    places = {section.name: index for index, section in enumerate(sections)}
    programs = {}
    for index, section in enumerate(sections):
        if section.name.startswith(PROGRAMS):
            references = _references(sections, symbols, places.get(f".rel{section.name}"))
            for symbol in symbols:
                if symbol.kind == TYPE_FUNCTION and symbol.section == index:
                    programs[symbol.name] = tuple(_instructions(section.data, symbol, references))
    read_only = places.get(READ_ONLY)
    return Image(
        programs,
        b"" if read_only is None else sections[read_only].data,
        {one.name: (one.value, one.size) for one in symbols if one.section == read_only and one.name},
    )


def _sections(data: bytes) -> list[_Section]:
    offset, entry, count, names_at = HEADER.unpack_from(data)
    raw = [SECTION.unpack_from(data, offset + number * entry) for number in range(count)]
    names = data[raw[names_at][4] :]
    return [_Section(_text(names, one[0]), data[one[4] : one[4] + one[5]], one[6]) for one in raw]


def _symbols(sections: list[_Section]) -> Iterator[_Symbol]:
    table = next(section for section in sections if section.name == ".symtab")
    names = sections[table.link].data
    for name, info, _, section, value, size in SYMBOL.iter_unpack(table.data):
        yield _Symbol(_text(names, name), info & 0xF, section, value, size)


def _references(sections: list[_Section], symbols: list[_Symbol], place: int | None) -> dict[int, Reference]:
    found: dict[int, Reference] = {}
    if place is None:
        return found
    for offset, info in RELOCATION.iter_unpack(sections[place].data):
        symbol = symbols[info >> 32]
        if info & 0xFFFFFFFF == R_BPF_64_64:
            found[offset] = Reference(sections[symbol.section].name, symbol.name, symbol.value)
    return found


def _instructions(code: bytes, symbol: _Symbol, references: dict[int, Reference]) -> Iterator[Instruction]:
    for at in range(symbol.value, symbol.value + symbol.size, INSTRUCTION.size):
        opcode, registers, off, imm = INSTRUCTION.unpack_from(code, at)
        yield Instruction(opcode, registers & 0xF, registers >> 4, off, imm, references.get(at))


def _text(names: bytes, at: int) -> str:
    return names[at : names.index(b"\0", at)].decode()
