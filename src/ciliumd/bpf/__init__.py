# SPDX-License-Identifier: Apache-2.0
"""
The effect on the kernel's BPF: maps, programs, links, pins, ring buffers, generations.

Handles own one descriptor each and are context managers; every failure is a BpfError.  What the
bytes of keys and values mean is written in ciliumd.abi and used by other rooms.
"""

from ciliumd.bpf.carry import Carried, MigrationFailed, VersionSkipped
from ciliumd.bpf.errors import (
    AlreadyLoaded,
    BpfError,
    Busy,
    Detached,
    Exists,
    KernelTooOld,
    LayoutMismatch,
    NoSpace,
    NotFound,
    NotPermitted,
    ObjectRejected,
    VerifierRejected,
)
from ciliumd.bpf.features import Features, probe, tcx_supported
from ciliumd.bpf.generation import GRACE_SECONDS, Generation, detach_all, detach_device, retire
from ciliumd.bpf.link import CgroupLink, Link, LinkInfo, TcxHook, TcxLink
from ciliumd.bpf.map import Map, MapInfo
from ciliumd.bpf.object import Object
from ciliumd.bpf.pins import Pins, ensure_bpffs
from ciliumd.bpf.program import Program, ProgramInfo, TestRun, run_time_stats
from ciliumd.bpf.ringbuf import RingBuffer
from ciliumd.bpf.target import ArrayTarget, MapTarget, WordsTarget
from ciliumd.bpf.words import U64Array

__all__ = [
    "GRACE_SECONDS",
    "AlreadyLoaded",
    "ArrayTarget",
    "BpfError",
    "Busy",
    "Carried",
    "CgroupLink",
    "Detached",
    "Exists",
    "Features",
    "Generation",
    "KernelTooOld",
    "LayoutMismatch",
    "Link",
    "LinkInfo",
    "Map",
    "MapInfo",
    "MapTarget",
    "MigrationFailed",
    "NoSpace",
    "NotFound",
    "NotPermitted",
    "Object",
    "ObjectRejected",
    "Pins",
    "Program",
    "ProgramInfo",
    "RingBuffer",
    "TcxHook",
    "TcxLink",
    "TestRun",
    "U64Array",
    "VerifierRejected",
    "VersionSkipped",
    "WordsTarget",
    "detach_all",
    "detach_device",
    "ensure_bpffs",
    "probe",
    "retire",
    "run_time_stats",
    "tcx_supported",
]
