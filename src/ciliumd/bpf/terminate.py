# SPDX-License-Identifier: Apache-2.0
"""
Destroys connected sockets by an iterator over all sockets of a network namespace (Linux 6.5).

The programs are datapath/progs/terminate.bpf.c.  An iterator walks the namespace of the thread that makes
it, so whoever means another one enters it first.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from ciliumd.bpf._libbpf import lib
from ciliumd.bpf.errors import check
from ciliumd.bpf.features import has_kernel_function
from ciliumd.bpf.handle import Handle
from ciliumd.bpf.object import Object

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from ciliumd.bpf.map import Map
    from ciliumd.bpf.program import Program

OBJECT, DOOMED = "terminate", "doomed"
FUNCTION = "bpf_sock_destroy"
PROGRAMS = {6: "terminate_tcp", 17: "terminate_udp"}
_THERE = (1).to_bytes(4, "little")
_READ = 4096


class SocketIterator:
    """The loaded programs and the map that says which sockets they destroy; a context manager."""

    def __init__(self, programs: dict[int, Program], doomed: Map) -> None:
        self._programs = programs
        self._doomed = doomed

    @classmethod
    def load(cls) -> Self:
        """Raises BpfError; ask :func:`supported` first, for else nothing is ever destroyed."""
        with Object.open(OBJECT) as source:
            source.load()
            programs = {protocol: source.program(name) for protocol, name in PROGRAMS.items()}
            return cls(programs, source.map(DOOMED))

    def doom(self, keys: Iterable[bytes]) -> None:
        """Whom :meth:`destroy` destroys from now on: keys of ``cilium_lb_sock_v1``.  Raises BpfError."""
        self._doomed.delete_batch(list(self._doomed.keys()))
        for failure in self._doomed.update_batch(dict.fromkeys(keys, _THERE)).values():
            raise failure

    def destroy(self, protocol: int) -> int:
        """Destroy those of this thread's network namespace; how many there were.  Raises BpfError."""
        program = self._programs[protocol]
        link = check(lib.cil_link_create(program.fd, 0, program.attach_type), "attach", program.name)
        with Handle(link, program.name) as attached:
            walk = check(lib.bpf_iter_create(attached.fd), "iterate", program.name)
        count = 0
        with Handle(walk, program.name) as walked:
            while said := os.read(walked.fd, _READ):
                count += len(said)
        return count

    def close(self) -> None:
        """Unload everything."""
        for handle in (*self._programs.values(), self._doomed):
            handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def supported() -> bool:
    """Whether the kernel lets programs destroy sockets."""
    return has_kernel_function(FUNCTION)
