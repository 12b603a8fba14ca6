# SPDX-License-Identifier: Apache-2.0
"""
What ciliumd uses where the kernel has it, asked of the running kernel, and what it does without.

A probe tries the thing itself, or reads the list of helpers in the kernel's BTF, as the programs do.
"""

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass

from ciliumd import abi
from ciliumd.bpf import Map, Object, features, terminate
from ciliumd.bpf._libbpf import ffi, lib
from ciliumd.bpf.map import ENOTSUPP
from ciliumd.net.namespace import own_cookie
from lab.kernel import chooses_errno_of_connect, has_helper

OUTER = "cilium_policy_rules_v1"
INNER = abi.MAPS[OUTER].inner


@dataclass(frozen=True, slots=True)
class Feature:
    """Something newer kernels have; *without* is what happens on the others, in the words of the page."""

    name: str
    without: str
    probe: Callable[[], bool]


def writes_batches(target: Map, value: bytes) -> bool:
    """Whether the kernel takes several rows of this map in one call."""
    key = struct.pack("<I", 8) + bytes(target.key_size - 4)
    count = ffi.new("uint32_t *", 1)
    result = lib.cil_map_update_batch(target.fd, ffi.from_buffer(key), ffi.from_buffer(value), count, 0)
    assert result in {0, -ENOTSUPP, -errno.EOPNOTSUPP}, (target.name, result)
    return bool(result == 0)


def batches_on_prefixes() -> bool:
    """Whether LPM tries have them: the inner map of a policy is one."""
    with Map.create(INNER) as trie:
        return writes_batches(trie, bytes(trie.value_size))


def batches_on_maps() -> bool:
    """Whether maps of maps have them: the outer map of policies is one."""
    with Object.open("lxc") as source:
        for program in source.program_names:
            source.set_autoload(program, False)
        source.load()
        with source.map(OUTER) as outer, Map.create(INNER) as inner:
            return writes_batches(outer, struct.pack("=i", inner.fd))


FEATURES = (
    Feature(
        "tcx",
        "programs hang on clsact filters, set by netlink; they replace each other as atomically",
        features.tcx_supported,
    ),
    Feature(
        "bpf_set_retval",
        "connect(2) to a service without backends fails with EPERM, not with ECONNREFUSED",
        chooses_errno_of_connect,
    ),
    Feature(
        "batches on maps of maps",
        "policy versions are shown one by one, each write waiting for a grace period of RCU",
        batches_on_maps,
    ),
    Feature(
        "bpf_sock_destroy",
        "sockets to backends that are gone are destroyed by sock_diag (modules udp_diag and tcp_diag)",
        terminate.supported,
    ),
    Feature("batches on LPM tries", "prefixes are written and read one by one", batches_on_prefixes),
    Feature(
        "cookies of network namespaces",
        "the node's sockets are those of the namespace the kernel started with; no other's is a pod's",
        lambda: bool(own_cookie()),
    ),
    Feature(
        "memory of maps charged to control groups",
        "maps count as locked memory; the agent raises its limit, for which a container needs SYS_RESOURCE",
        # What libbpf asks too: both came with the same release.
        lambda: has_helper("ktime_get_coarse_ns"),
    ),
)
