# SPDX-License-Identifier: Apache-2.0
"""What the running kernel has, where tests expect something else of older ones."""

from pathlib import Path

BTF = Path("/sys/kernel/btf/vmlinux")


def has_helper(name: str) -> bool:
    """Whether the kernel's BTF lists a helper function of BPF programs."""
    return f"\0BPF_FUNC_{name}\0".encode() in BTF.read_bytes()


def chooses_errno_of_connect() -> bool:
    """Whether a refused connect(2) can fail with ECONNREFUSED (Linux 5.18); before, it fails with EPERM."""
    return has_helper("set_retval")
