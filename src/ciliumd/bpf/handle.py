# SPDX-License-Identifier: Apache-2.0
"""A handle owns exactly one file descriptor and closes it once; it knows nothing of what it names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from ciliumd.bpf._libbpf import lib
from ciliumd.bpf.errors import check, error

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class Handle:
    """Base of Map, Program and Link."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self.name = name

    @property
    def fd(self) -> int:
        """The descriptor; an error after close()."""
        if self._fd < 0:
            raise ValueError(f"{type(self).__name__} {self.name} is closed")
        return self._fd

    def close(self) -> None:
        """Give the descriptor back; pins and attachments stay."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def pin(self, path: Path) -> None:
        """Give the kernel object a name in bpffs, which keeps it alive without this process."""
        check(lib.bpf_obj_pin(self.fd, os.fsencode(path)), "pin", str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A handle whose __init__ raised has no descriptor yet.
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} fd={self._fd}>"


def duplicate(fd: int) -> int:
    """A descriptor of its own for an object libbpf holds open."""
    return os.dup(fd)


def open_pin(path: Path) -> int:
    """The descriptor of what is pinned at *path*."""
    return check(lib.bpf_obj_get(os.fsencode(path)), "open pin", str(path))


def unpin(path: Path) -> bool:
    """Remove a pin; False when it was not there."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as failure:
        raise error("unpin", str(path), failure.errno or 0) from failure
    return True
