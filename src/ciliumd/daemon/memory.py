# SPDX-License-Identifier: Apache-2.0
"""
Memory after the start, when all that there is has been read for the first time.

Reading ten thousand objects leaves holes that the allocator keeps, and a million objects that stay: the
collector would look at all of them again and again, hundreds of milliseconds each time.
"""

import contextlib
import ctypes
import gc


def settle() -> None:
    """Give back what is free, and let the collector leave alone what there is by now."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError):  # a C library without it gives back by itself
        ctypes.CDLL(None).malloc_trim(0)
