# SPDX-License-Identifier: Apache-2.0
"""
What this machine offers, asked once at start: kernel, capabilities, map types, tcx.

`require` turns what is missing and cannot be done without into one error that says what, where
and what to do; `tcx` only chooses how programs are attached.
"""

from __future__ import annotations

import errno
import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path

from ciliumd.abi import MapType
from ciliumd.bpf._libbpf import lib
from ciliumd.bpf.errors import KernelTooOld, NotPermitted, check

OLDEST_KERNEL = (5, 10)
# From here on maps are charged to control groups, before it to RLIMIT_MEMLOCK.
CHARGES_CONTROL_GROUPS = (5, 11)
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
# enum bpf_prog_type and enum bpf_func_id.
PROG_SCHED_CLS, PROG_CGROUP_SOCK, PROG_CGROUP_SOCK_ADDR = 3, 9, 18
NODE_PORT_HELPERS = {"bpf_fib_lookup": 69, "bpf_redirect_neigh": 152}


@dataclass(frozen=True, slots=True)
class Features:
    """Findings of one probe."""

    kernel: str
    capabilities: frozenset[str]
    ringbuf: bool
    tcx: bool

    @property
    def kernel_version(self) -> tuple[int, int]:
        """Major and minor number."""
        return kernel_version(self.kernel)


def kernel_version(release: str) -> tuple[int, int]:
    """(6, 1) of "6.1.0-18-amd64"."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None:
        raise KernelTooOld("Linux", release, "a release number like 6.1")
    return int(numbers[1]), int(numbers[2])


def effective_capabilities(status: str) -> frozenset[str]:
    """Names of the capabilities in the text of /proc/self/status that matter here."""
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    mask = int(line.split()[1], 16)
    held = {name for name, bit in CAPABILITIES.items() if mask >> bit & 1}
    # CAP_SYS_ADMIN still stands for the capabilities that were split off it.
    return frozenset(held | {"CAP_BPF", "CAP_PERFMON"} if "CAP_SYS_ADMIN" in held else held)


def require_capabilities(held: frozenset[str]) -> None:
    """Raise NotPermitted unless programs can be loaded and attached."""
    missing = sorted({"CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"} - held)
    if missing:
        named = f"{', '.join(missing[:-1])} and {missing[-1]}" if missing[1:] else missing[0]
        hint = f"missing {named}: run as root, or add them to the container's securityContext"
        raise NotPermitted("use", "BPF", errno.EPERM, hint)


def require_kernel(release: str) -> None:
    """Raise KernelTooOld before the oldest kernel the datapath is tested on."""
    if kernel_version(release) < OLDEST_KERNEL:
        raise KernelTooOld("Linux", release, f"{OLDEST_KERNEL[0]}.{OLDEST_KERNEL[1]} or newer")


def require_locked_memory(release: str) -> None:
    """Raise the limit that maps count against on kernels before 5.11; NotPermitted if that is not allowed."""
    if kernel_version(release) >= CHARGES_CONTROL_GROUPS:
        return
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        hint = (
            f"Linux {release} counts maps as locked memory, of which {limit // 1024} KiB are allowed here: "
            "add CAP_SYS_RESOURCE to the container's securityContext, or raise ulimit -l"
        )
        raise NotPermitted("use", "BPF", errno.EPERM, hint) from None


def tcx_supported() -> bool:
    """Whether programs can hang on devices by tcx links (Linux 6.6); touches no device."""
    return check(lib.cil_has_tcx(), "probe", "tcx") == 1


def service_lacks() -> dict[str, str]:
    """
    What the kernel lacks to serve services in kube-proxy's place, by the chart's names of their kinds.

    Both are configuration: Linux 5.10 has all of it.  NotPermitted when it cannot be asked.
    """
    lacks: dict[str, str] = {}
    if not all(_has_program_type(kind) for kind in (PROG_CGROUP_SOCK, PROG_CGROUP_SOCK_ADDR)):
        lacks["hostServices"] = "socket programs of control groups (CONFIG_CGROUP_BPF)"
    missing = [name for name, number in NODE_PORT_HELPERS.items() if not _has_helper(number)]
    if missing:
        lacks["nodePort"] = (
            f"{' and '.join(missing)} in programs of devices (CONFIG_INET, CONFIG_NET_CLS_ACT)"
        )
    return lacks


def _has_program_type(kind: int) -> bool:
    return check(lib.cil_has_prog_type(kind), "probe", f"program type {kind}") == 1


def _has_helper(number: int) -> bool:
    return check(lib.cil_has_helper(PROG_SCHED_CLS, number), "probe", f"helper {number}") == 1


def has_kernel_function(name: str) -> bool:
    """Whether the kernel's BTF has a function *name*; False where it has no BTF."""
    return bool(lib.cil_has_function(name.encode()) == 1)


def probe() -> Features:
    """Ask everything; NotPermitted and KernelTooOld come first, as all else fails obscurely then."""
    release = os.uname().release
    held = effective_capabilities(Path("/proc/self/status").read_text())
    require_kernel(release)
    require_capabilities(held)
    require_locked_memory(release)
    ringbuf = check(lib.cil_has_map_type(MapType.RINGBUF), "probe", "ring buffer") == 1
    if not ringbuf:
        raise KernelTooOld("ring buffer", release, "CONFIG_BPF_SYSCALL on Linux 5.8 or newer")
    return Features(release, held, ringbuf, tcx_supported())
