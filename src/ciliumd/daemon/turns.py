# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is: changes of one thing one after the other, of different things side by side."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary


class Turns:
    """
    Locks by key, and one over all of them.

    Whoever asks for all waits for those under way; those who come later wait for it, so that many small
    changes never keep a large one out.
    """

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()
        self._gate = asyncio.Lock()
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def of(self, key: Hashable) -> AsyncIterator[None]:
        """The only one with this *key*, while nobody has all; first come, first served."""
        async with self._gate:
            self._under_way += 1
            self._idle.clear()
        try:
            # Kept by those who hold it or wait for it.
            lock = self._locks.setdefault(key, asyncio.Lock())
            async with lock:
                yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    @asynccontextmanager
    async def of_all(self) -> AsyncIterator[None]:
        """The only one at all."""
        async with self._gate:
            await self._idle.wait()
            yield
