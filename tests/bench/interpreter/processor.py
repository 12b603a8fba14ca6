# SPDX-License-Identifier: Apache-2.0
"""
Instructions of BPF, version 3 of the set, without atomics and calls between functions: our objects have
neither.

A program ends by `exit`, or by a tail call, which the helpers tell by raising :class:`TailCall`.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Final

from bench.interpreter.elf import LD_IMM64, Instruction, Reference
from bench.interpreter.memory import Memory

LD, LDX, ST, STX, ALU, JMP, JMP32, ALU64 = range(8)
SIZES: Final = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}
FROM_REGISTER: Final = 0x08
ALU_NEG, ALU_ARSH, ALU_END = 0x8, 0xC, 0xD
JMP_ALWAYS, JMP_CALL, JMP_EXIT = 0x0, 0x8, 0x9
MASK: Final = {32: (1 << 32) - 1, 64: (1 << 64) - 1}
STACK_BYTES: Final = 512
MOST_INSTRUCTIONS: Final = 1_000_000

# Of operands that are cut to their width; the result is cut again.
UNSIGNED_ALU: Final[dict[int, Callable[[int, int], int]]] = {
    0x0: operator.add,
    0x1: operator.sub,
    0x2: operator.mul,
    0x3: lambda a, b: a // b if b else 0,
    0x4: operator.or_,
    0x5: operator.and_,
    0x9: lambda a, b: a % b if b else a,
    0xA: operator.xor,
    0xB: lambda _, b: b,
}
SHIFTS: Final[dict[int, Callable[[int, int], int]]] = {0x6: operator.lshift, 0x7: operator.rshift}
UNSIGNED: Final[dict[int, Callable[[int, int], bool]]] = {
    0x1: operator.eq,
    0x2: operator.gt,
    0x3: operator.ge,
    0x4: lambda a, b: bool(a & b),
    0x5: operator.ne,
    0xA: operator.lt,
    0xB: operator.le,
}
SIGNED: Final[dict[int, Callable[[int, int], bool]]] = {
    0x6: operator.gt,
    0x7: operator.ge,
    0xC: operator.lt,
    0xD: operator.le,
}
Helpers = Callable[[int, Sequence[int]], int]
Resolve = Callable[[Reference, int], int]


class TailCall(Exception):
    """The packet goes on in another program."""

    def __init__(self, program: str) -> None:
        super().__init__(program)
        self.program = program


class UnknownInstruction(Exception):
    """The compiler emitted something this interpreter does not know."""


def signed(value: int, bits: int) -> int:
    """Two's complement."""
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


class Processor:
    """Runs one program at a time; `executed` counts instructions over all of them."""

    def __init__(self, memory: Memory, *, helpers: Helpers, resolve: Resolve) -> None:
        self.executed = 0
        self._memory = memory
        self._helpers = helpers
        self._resolve = resolve

    def run(self, program: Sequence[Instruction], context: int) -> int:
        """Run to its end; the value of r0, signed."""
        registers = [0] * 11
        registers[1] = context
        registers[10] = self._memory.add(bytes(STACK_BYTES)) + STACK_BYTES
        at = 0
        while True:
            one = program[at]
            self.executed += 1
            if self.executed > MOST_INSTRUCTIONS:
                raise UnknownInstruction("the program does not end")
            kind, at = one.code & 7, at + 1
            if kind in {ALU, ALU64}:
                registers[one.dst] = _alu(one, registers, 64 if kind == ALU64 else 32)
            elif kind in {JMP, JMP32}:
                action = one.code >> 4
                if action == JMP_EXIT:
                    return signed(registers[0] & MASK[32], 32)
                if action == JMP_CALL:
                    registers[0] = self._helpers(one.imm, registers[1:6]) & MASK[64]
                elif action == JMP_ALWAYS or _taken(one, registers, 64 if kind == JMP else 32):
                    at += one.off
            elif one.code == LD_IMM64:
                upper = program[at].imm & MASK[32]
                value = upper << 32 | one.imm & MASK[32]
                registers[one.dst] = self._resolve(one.reference, one.imm) if one.reference else value
                at += 1
            else:
                self._move(one, kind, registers)

    def _move(self, one: Instruction, kind: int, registers: list[int]) -> None:
        if one.code & 0xE0 != 0x60:
            raise UnknownInstruction(f"{one}")
        size = SIZES[one.code & 0x18]
        if kind == LDX:
            registers[one.dst] = self._memory.load(registers[one.src] + one.off & MASK[64], size)
        else:
            value = registers[one.src] if kind == STX else one.imm
            self._memory.store(registers[one.dst] + one.off & MASK[64], size, value)


def _operand(one: Instruction, registers: list[int], bits: int) -> int:
    return (registers[one.src] if one.code & FROM_REGISTER else one.imm) & MASK[bits]


def _taken(one: Instruction, registers: list[int], bits: int) -> bool:
    left, right, action = registers[one.dst] & MASK[bits], _operand(one, registers, bits), one.code >> 4
    if action in SIGNED:
        return SIGNED[action](signed(left, bits), signed(right, bits))
    return UNSIGNED[action](left, right)


def _alu(one: Instruction, registers: list[int], bits: int) -> int:
    action, left = one.code >> 4, registers[one.dst] & MASK[bits]
    if action == ALU_END:
        size = one.imm // 8
        data = (registers[one.dst] & ((1 << one.imm) - 1)).to_bytes(size, "little")
        return int.from_bytes(data, "big" if one.code & FROM_REGISTER else "little")
    if action == ALU_NEG:
        return -left & MASK[bits]
    right = _operand(one, registers, bits)
    if action == ALU_ARSH:
        return signed(left, bits) >> (right & bits - 1) & MASK[bits]
    if action in SHIFTS:
        return SHIFTS[action](left, right & bits - 1) & MASK[bits]
    if action not in UNSIGNED_ALU:
        raise UnknownInstruction(f"{one}")
    return UNSIGNED_ALU[action](left, right) & MASK[bits]
