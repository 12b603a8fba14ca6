# SPDX-License-Identifier: Apache-2.0
"""What the watch keeps of objects between their events."""

import asyncio

from ciliumd.kubernetes.watch import NoMemories


def test_nothing_is_kept_of_an_object():
    """Tens of thousands of them would be tens of MiB; each event has a memory of its own."""

    async def recalled():
        memories = NoMemories()
        body = {"metadata": {"uid": "u1"}}
        first = await memories.recall(body, noticed_by_listing=True)
        again = await memories.recall(body)
        await memories.forget(body)
        return first, again, list(memories.iter_all_memories())

    first, again, kept = asyncio.run(recalled())
    assert first is not again
    assert first.noticed_by_listing
    assert kept == []
