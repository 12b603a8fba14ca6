# SPDX-License-Identifier: Apache-2.0
"""What is done about memory once everything has been read."""

import gc

from ciliumd.daemon import memory


def test_what_there_is_by_now_is_left_alone_by_the_collector() -> None:
    """And garbage of before is gone, cycles too."""
    before = gc.get_freeze_count()
    cycle: list[object] = []
    cycle.append(cycle)
    del cycle
    try:
        memory.settle()
        assert gc.get_freeze_count() > before
        assert gc.collect() == 0
    finally:
        gc.unfreeze()
