# SPDX-License-Identifier: Apache-2.0
"""What is done about memory once everything has been read."""

import gc

from ciliumd.daemon import memory


def test_what_there_is_by_now_is_left_alone_by_the_collector() -> None:
    """All of it, however old."""
    before = gc.get_freeze_count()
    try:
        memory.settle()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
