# SPDX-License-Identifier: Apache-2.0
"""Loaded programs: what the kernel says of them, and single runs over a packet."""

from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ciliumd.bpf._libbpf import ffi, lib
from ciliumd.bpf.errors import check
from ciliumd.bpf.handle import Handle, open_pin

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

# struct __sk_buff: the fields a test run takes in, by offset.
SKB_SIZE = 192
SKB_MARK = 8
SKB_PRIORITY = 32
SKB_INGRESS_IFINDEX = 36
SKB_IFINDEX = 40
SKB_CB = 48
# Programs may grow a packet (encapsulation); the kernel refuses an output buffer that is too small.
HEADROOM = 512


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says of a program; run_* count while run-time statistics are on."""

    type: int
    id: int
    name: str
    verified_insns: int
    xlated_len: int
    jited_len: int
    run_time_ns: int
    run_cnt: int


@dataclass(frozen=True, slots=True)
class TestRun:
    """What one test run left behind: TC_ACT_UNSPEC shows as -1."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    retval: int
    data: bytes
    duration_ns: int
    ctx: bytes

    @property
    def mark(self) -> int:
        """skb->mark after the run."""
        return int(struct.unpack_from("=I", self.ctx, SKB_MARK)[0])

    @property
    def cb(self) -> tuple[int, ...]:
        """skb->cb after the run."""
        return struct.unpack_from("=5I", self.ctx, SKB_CB)


class Program(Handle):
    """A loaded program; owns one descriptor."""

    def __init__(self, fd: int, name: str, *, section: str = "", attach_type: int = 0) -> None:
        super().__init__(fd, name)
        self.section = section
        self.attach_type = attach_type

    @classmethod
    def from_pin(cls, path: Path) -> Self:
        """Open a pinned program."""
        return cls(open_pin(path), path.name)

    @property
    def info(self) -> ProgramInfo:
        """Read now, as counters move."""
        raw = ffi.new("struct cil_prog_info *")
        check(lib.cil_prog_info(self.fd, raw), "read info of program", self.name)
        name = ffi.string(raw.name).decode()
        return ProgramInfo(
            type=raw.type,
            id=raw.id,
            name=name,
            verified_insns=raw.verified_insns,
            xlated_len=raw.xlated_len,
            jited_len=raw.jited_len,
            run_time_ns=raw.run_time_ns,
            run_cnt=raw.run_cnt,
        )

    @property
    def verified_insns(self) -> int:
        """Instructions the verifier walked (0 before Linux 5.16)."""
        return self.info.verified_insns

    def test_run(
        self,
        packet: bytes,
        *,
        repeat: int = 1,
        mark: int = 0,
        priority: int = 0,
        ifindex: int = 0,
        ingress_ifindex: int = 0,
        cb: Sequence[int] = (),
        ctx: bytes | None = None,
    ) -> TestRun:
        """
        Run the program on a packet, without a device.

        *ctx* replaces the __sk_buff made of the other arguments, for program types with another
        context.  With repeat > 1 the packet is not restored between runs.
        """
        context = _skb(mark, priority, ifindex, ingress_ifindex, cb) if ctx is None else ctx
        out = ffi.new("char[]", len(packet) + HEADROOM)
        ctx_out = ffi.new("char[]", max(len(context), 1))
        run = ffi.new("struct cil_test_run *")
        data_in, ctx_in = ffi.from_buffer(packet), ffi.from_buffer(context)
        run.data_in, run.data_size_in = data_in, len(packet)
        run.data_out, run.data_size_out = out, len(packet) + HEADROOM
        run.ctx_in, run.ctx_size_in = ctx_in, len(context)
        run.ctx_out, run.ctx_size_out = ctx_out, len(context)
        run.repeat = repeat
        check(lib.cil_prog_test_run(self.fd, run), "test run of program", self.name)
        retval = int(run.retval) - (1 << 32) if run.retval >> 31 else int(run.retval)
        data = bytes(ffi.buffer(out, run.data_size_out))
        return TestRun(retval, data, run.duration, bytes(ffi.buffer(ctx_out, len(context))))


def _skb(mark: int, priority: int, ifindex: int, ingress_ifindex: int, cb: Sequence[int]) -> bytes:
    """Struct __sk_buff with what a test run accepts; everything else must be zero."""
    context = bytearray(SKB_SIZE)
    struct.pack_into("=I", context, SKB_MARK, mark)
    struct.pack_into("=I", context, SKB_PRIORITY, priority)
    struct.pack_into("=I", context, SKB_INGRESS_IFINDEX, ingress_ifindex)
    struct.pack_into("=I", context, SKB_IFINDEX, ifindex)
    struct.pack_into(f"={len(cb)}I", context, SKB_CB, *cb)
    return bytes(context)


@contextlib.contextmanager
def run_time_stats() -> Iterator[None]:
    """The kernel counts runs and time of every program while this is open (a few ns per run)."""
    fd = check(lib.cil_enable_run_time_stats(), "enable", "run-time statistics")
    try:
        yield
    finally:
        os.close(fd)
