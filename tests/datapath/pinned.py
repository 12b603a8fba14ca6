# SPDX-License-Identifier: Apache-2.0
"""A bpffs directory of the test's own, removed with everything in it."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ciliumd.bpf.pins import ensure_bpffs, remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

numbers = itertools.count()


@contextlib.contextmanager
def own_directory() -> Iterator[Path]:
    """An empty directory on bpffs."""
    path = Path(f"/sys/fs/bpf/t-{os.getpid()}-{next(numbers)}")
    ensure_bpffs(path)
    path.mkdir()
    try:
        yield path
    finally:
        remove_tree(path)
