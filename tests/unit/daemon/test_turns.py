# SPDX-License-Identifier: Apache-2.0
"""Turns: one at a time per key, side by side otherwise, and now and then one alone."""

import asyncio
from contextlib import asynccontextmanager

from ciliumd.daemon.turns import Turns

SECONDS = 5.0


class Stage:
    """Who is in, in order of coming in, and how many at most were at once."""

    def __init__(self):
        self.turns = Turns()
        self.journal = []
        self.present = set()
        self.most = 0

    @asynccontextmanager
    async def entered(self, name, turn):
        """Be in for a while."""
        async with turn:
            self.journal.append(name)
            self.present.add(name)
            self.most = max(self.most, len(self.present))
            yield
            self.present.discard(name)

    async def visit(self, name, key, *, gate=None):
        """Come in with *key* and stay until the gate opens."""
        async with self.entered(name, self.turns.of(key)):
            await (gate.wait() if gate else asyncio.sleep(0))

    async def alone(self, name):
        """Come in for all."""
        async with self.entered(name, self.turns.of_all()):
            assert self.present == {name}
            await asyncio.sleep(0)
            assert self.present == {name}


def run(scenario):
    """Run ``scenario(stage)``."""

    async def timed():
        async with asyncio.timeout(SECONDS):
            await scenario(Stage())

    asyncio.run(timed())


def test_one_key_is_one_after_the_other_in_order():
    """First come, first served."""

    async def scenario(stage):
        await asyncio.gather(*(stage.visit(number, "key") for number in range(10)))
        assert stage.journal == list(range(10))
        assert stage.most == 1

    run(scenario)


def test_different_keys_are_side_by_side():
    """All of them at once."""

    async def scenario(stage):
        gate = asyncio.Event()
        visits = [asyncio.ensure_future(stage.visit(number, number, gate=gate)) for number in range(10)]
        await asyncio.sleep(0.01)
        assert stage.most == 10
        gate.set()
        await asyncio.gather(*visits)

    run(scenario)


def test_whoever_wants_all_waits_for_those_before_and_goes_before_those_after():
    """Many small changes never keep it out."""

    async def scenario(stage):
        gate = asyncio.Event()
        before = asyncio.ensure_future(stage.visit("before", 1, gate=gate))
        await asyncio.sleep(0)
        alone = asyncio.ensure_future(stage.alone("alone"))
        await asyncio.sleep(0)
        after = [asyncio.ensure_future(stage.visit(f"after {number}", number)) for number in range(3)]
        await asyncio.sleep(0.01)
        assert stage.journal == ["before"]
        gate.set()
        await asyncio.gather(before, alone, *after)
        assert stage.journal[:2] == ["before", "alone"]

    run(scenario)


def test_who_gives_up_or_fails_passes_the_turn_on():
    """Waiting, inside, for one or for all."""

    async def scenario(stage):
        gate = asyncio.Event()
        inside = asyncio.ensure_future(stage.visit("inside", 1, gate=gate))
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(stage.visit("waiting", 1))
        alone = asyncio.ensure_future(stage.alone("alone"))
        await asyncio.sleep(0.01)
        for task in (waiting, alone, inside):
            task.cancel()
        await asyncio.gather(waiting, alone, inside, return_exceptions=True)
        stage.present.clear()
        await stage.visit("next", 1)
        await stage.alone("last")
        assert stage.journal == ["inside", "next", "last"]

    run(scenario)
