# SPDX-License-Identifier: Apache-2.0
"""One packet through one hook, counted: from the entry program over every tail call to the verdict."""

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from socket import AF_INET, SOCK_STREAM, inet_aton, inet_ntoa
from typing import Final

from bench.interpreter.elf import MAPS, Image, Reference, read
from bench.interpreter.kernel import Kernel
from bench.interpreter.memory import Memory
from bench.interpreter.processor import Processor, TailCall
from ciliumd import abi
from ciliumd.bpf import Generation, Map
from ciliumd.bpf.object import embedded, encode_option

OBJECTS: Final = ("entry", "host", "lxc", "sock")
CALLS, HOOKS = "calls", "cilium_hooks_v1"
SKB_BYTES: Final = 192
LEN, MARK, IFINDEX = 0, 8, 40
# struct bpf_sock_addr
SOCK_ADDR_BYTES: Final = 72
USER_FAMILY, USER_IP4, USER_PORT, FAMILY, TYPE, PROTOCOL = 0, 4, 24, 28, 32, 36
TCP: Final = 6
MOST_PROGRAMS: Final = 33
POLICY_MAPS: Final = ("cilium_policy_classes_v1", "cilium_policy_rules_v1")
CONNTRACK: Final = "cilium_ct_v1"


@dataclass(frozen=True, slots=True)
class Counts:
    """What a packet cost."""

    programs: tuple[str, ...]
    instructions: int
    lookups: Mapping[str, int]
    updates: Mapping[str, int]
    kinds: Mapping[str, int]
    helpers: Mapping[str, int]

    @property
    def policy_lookups(self) -> int:
        """Lookups in policy maps, outer and inner."""
        return sum(count for name, count in self.lookups.items() if name.startswith(POLICY_MAPS))

    @property
    def conntrack_lookups(self) -> int:
        """Lookups in the conntrack map."""
        return self.lookups.get(CONNTRACK, 0)

    @property
    def map_lookups(self) -> int:
        """Lookups in all maps."""
        return sum(self.lookups.values())

    @property
    def hashed_lookups(self) -> int:
        """Those that are a call and a hash or a tree walk; an array's is an address computation."""
        return self.map_lookups - self.kinds.get("array", 0)


@dataclass(frozen=True, slots=True)
class Walked:
    """Verdict, packet and mark as the interpreter has them, and the counts."""

    action: int
    packet: bytes
    mark: int
    counts: Counts


@dataclass(frozen=True, slots=True)
class Connected:
    """Verdict on a connect(), where it goes, and the counts."""

    verdict: int
    address: str
    port: int
    counts: Counts


class Interpreter:
    """Programs of a loaded generation, read again from the objects they were loaded from."""

    def __init__(
        self, generation: Generation, *, config: Mapping[str, bool | int | bytes], route: int
    ) -> None:
        self._generation = generation
        self._config = dict(config)
        self._route = route
        self._images = {name: read(embedded()[name].data) for name in OBJECTS}
        self._home = {program: name for name, image in self._images.items() for program in image.programs}

    def walk(self, program: str, packet: bytes, *, ifindex: int, mark: int = 0) -> Walked:
        """Interpret one packet from an entry program on; the kernel's maps stay as they are."""
        data, context = bytearray(packet), bytearray(SKB_BYTES)
        for offset, value in ((LEN, len(packet)), (MARK, mark), (IFINDEX, ifindex)):
            struct.pack_into("=I", context, offset, value)
        action, counts = self._run(program, context, data)
        return Walked(action, bytes(data), struct.unpack_from("=I", context, MARK)[0], counts)

    def connect(self, address: str, port: int) -> Connected:
        """Interpret the hook of a TCP connection; the socket's cookie is 0, and its namespace's."""
        context = bytearray(SOCK_ADDR_BYTES)
        for offset, value in (
            (USER_FAMILY, AF_INET),
            (FAMILY, AF_INET),
            (TYPE, SOCK_STREAM),
            (PROTOCOL, TCP),
        ):
            struct.pack_into("=I", context, offset, value)
        context[USER_IP4 : USER_IP4 + 4] = inet_aton(address)
        struct.pack_into("!H", context, USER_PORT, port)
        verdict, counts = self._run("sock_connect4", context, bytearray())
        where = inet_ntoa(context[USER_IP4 : USER_IP4 + 4]), struct.unpack_from("!H", context, USER_PORT)[0]
        return Connected(verdict, *where, counts)

    def _run(self, program: str, context: bytearray, data: bytearray) -> tuple[int, Counts]:
        """What the last program of a walk ends with; context and data are as it left them."""
        memory = Memory()
        kernel = Kernel(memory, data, self._target, self._route)
        at = memory.add(context)
        read_only = {name: memory.add(self._read_only(image)) for name, image in self._images.items()}
        passed: list[str] = []
        executed = 0
        while True:
            passed.append(program)
            if len(passed) > MOST_PROGRAMS:
                raise RecursionError(f"tail calls without end: {passed}")
            home = self._home[program]

            def resolve(reference: Reference, addend: int, home: str = home) -> int:
                if reference.section != MAPS:
                    return read_only[home] + reference.offset + addend
                source = None if reference.name in {CALLS, HOOKS} else lambda: self._map(reference.name)
                return kernel.map_address(reference.name, source)

            processor = Processor(memory, helpers=kernel.call, resolve=resolve)
            try:
                action = processor.run(self._images[home].programs[program], at)
            except TailCall as onwards:
                program = onwards.program
                continue
            finally:
                executed += processor.executed
            break
        counts = Counts(
            tuple(passed), executed, kernel.lookups, kernel.updates, kernel.kinds, Counter(kernel.helpers)
        )
        return action, counts

    def _map(self, name: str) -> Map:
        known = self._generation.maps.get(name)
        return self._generation._own[name] if known is None else known

    def _target(self, table: str, row: int) -> str | None:
        names = abi.Call if table == CALLS else abi.Hook
        number = row if table == CALLS else row % abi.Hook.HOOK_MAX
        name = names(number).name.lower()
        return name if name in self._generation.programs else None

    def _read_only(self, image: Image) -> bytes:
        data = bytearray(image.read_only)
        for symbol, (offset, size) in image.options.items():
            option = symbol.removeprefix("cfg_")
            if option in self._config:
                data[offset : offset + size] = encode_option(abi.CONFIG[option], self._config[option])
        return bytes(data) or bytes(8)
