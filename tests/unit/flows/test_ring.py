# SPDX-License-Identifier: Apache-2.0
"""Every event reaches each subscriber or is counted as lost to it; nothing is delivered twice."""

import asyncio

import pytest

from ciliumd.flows.filter import FlowFilter
from ciliumd.flows.ring import FlowRing
from ciliumd.flows.wire import RING_BUFFER, SUBSCRIBER_QUEUE, LostEvents
from unit.flows.samples import OFFSET_NS, TRACE, FakeRecords, lookups, record


@pytest.fixture
def records():
    """A fake ring buffer."""
    fake = FakeRecords()
    yield fake
    fake.close()


def ring_of(records, **changes):
    """A ring over *records*."""
    return FlowRing(
        records,
        lookups(),
        losses=lambda: records.kernel_lost,
        clock_offset=lambda: OFFSET_NS,
        interval=0.001,
        **changes,
    )


async def take(subscription, count):
    """The next *count* items."""
    return [await asyncio.wait_for(anext(subscription), 5) for _ in range(count)]


def test_flows_arrive_at_every_subscriber_in_order(records):
    """Two watchers see the same flows, named, as the datapath sent them."""

    async def scenario():
        ring = ring_of(records)
        ring.start()
        one, two = ring.subscribe(), ring.subscribe()
        records.push(record(line=1), record(line=2))
        first = await take(one, 2)
        records.push(record(line=3))
        second = [*first, *await take(one, 1)]
        other = await take(two, 3)
        ring.stop()
        return second, other, ring.stats()

    first, other, stats = asyncio.run(scenario())
    assert [flow.event.line for flow in first] == [1, 2, 3]
    assert first == other
    assert first[0].source.pod_name == "xwing"
    assert (stats.seen, stats.lost, stats.subscriber_lost) == (3, 0, 0)


def test_subscriber_sees_only_what_comes_after_it(records):
    """What was drained or waiting before the subscription is nobody's."""

    async def scenario():
        ring = ring_of(records)
        records.push(record(line=1))
        subscription = ring.subscribe()
        records.push(record(line=2))
        ring.drain()
        return await take(subscription, 1), ring.stats().seen

    found, seen = asyncio.run(scenario())
    assert [flow.event.line for flow in found] == [2]
    assert seen == 2


def test_filter_is_applied_before_the_queue(records):
    """What a watcher does not want takes none of its room."""

    async def scenario():
        ring = ring_of(records)
        subscription = ring.subscribe(FlowFilter(types=frozenset({"drop"})), capacity=1)
        records.push(record(**TRACE), record(**TRACE), record(line=5))
        ring.drain()
        return await take(subscription, 1), subscription.lost

    found, lost = asyncio.run(scenario())
    assert [flow.event.line for flow in found] == [5]
    assert lost == 0


def test_slow_subscriber_loses_exactly_what_does_not_fit_and_is_told_where(records):
    """Delivered plus lost is what was sent; the gap stands where the missing flows would have been."""

    async def scenario():
        ring = ring_of(records)
        slow, fast = ring.subscribe(capacity=2), ring.subscribe()
        records.push(*(record(line=n) for n in range(1, 6)))
        ring.drain()
        got = await take(slow, 2)
        records.push(record(line=6))
        ring.drain()
        got += await take(slow, 2)
        return got, slow, await take(fast, 6), ring.stats()

    got, slow, fast, stats = asyncio.run(scenario())
    assert got[2] == LostEvents(SUBSCRIBER_QUEUE, 3)
    assert [item.event.line for item in got if item is not got[2]] == [1, 2, 6]
    assert (slow.delivered, slow.lost) == (3, 3)
    assert len(fast) == 6
    assert stats.subscriber_lost == 3


def test_gap_is_told_also_if_nothing_follows(records):
    """A watcher that catches up learns of the loss without waiting for another flow."""

    async def scenario():
        ring = ring_of(records)
        slow = ring.subscribe(capacity=1)
        records.push(record(line=1), record(line=2))
        ring.drain()
        return await take(slow, 2)

    assert asyncio.run(scenario())[1] == LostEvents(SUBSCRIBER_QUEUE, 1)


def test_kernel_losses_are_counted_from_the_start_and_told(records):
    """Losses before the ring was opened are nobody's; later ones reach every watcher once."""
    records.kernel_lost = 100

    async def scenario():
        ring = ring_of(records)
        subscription = ring.subscribe()
        records.kernel_lost = 107
        ring.drain()
        ring.drain()
        return await take(subscription, 1), ring.stats().lost

    assert asyncio.run(scenario()) == ([LostEvents(RING_BUFFER, 7)], 7)


def test_unknown_records_are_counted(records):
    """A record of no known type is seen and skipped."""

    async def scenario():
        ring = ring_of(records)
        with ring.subscribe():
            records.push(record(type=99), record())
            ring.drain()
        return ring.stats()

    stats = asyncio.run(scenario())
    assert (stats.seen, stats.unknown) == (2, 1)


def test_without_subscribers_events_are_drained_and_counted(records):
    """Nobody watching does not fill the ring buffer."""

    async def scenario():
        ring = ring_of(records)
        ring.start()
        for _ in range(3):
            records.push(record())
            await asyncio.sleep(0.02)
        ring.stop()
        return ring.stats()

    stats = asyncio.run(scenario())
    assert (stats.seen, stats.subscribers) == (3, 0)


def test_closed_subscription_ends_after_what_is_queued(records):
    """Leaving the context stops new flows; queued ones can be read to the end."""

    async def scenario():
        ring = ring_of(records)
        with ring.subscribe() as subscription:
            records.push(record(line=1))
            ring.drain()
        records.push(record(line=2))
        ring.drain()
        return [item.event.line async for item in subscription]

    assert asyncio.run(scenario()) == [1]


def test_stop_ends_every_stream(records):
    """A stopping agent leaves no watcher hanging, and hands out what was still waiting."""

    async def scenario():
        ring = ring_of(records)
        ring.start()
        subscription = ring.subscribe()
        reading = asyncio.create_task(collect(subscription))
        await asyncio.sleep(0)
        records.push(record(line=1))
        ring.stop()
        return await asyncio.wait_for(reading, 5)

    async def collect(subscription):
        return [item.event.line async for item in subscription]

    assert asyncio.run(scenario()) == [1]


def test_what_policy_judged_is_recorded_without_subscribers(records):
    """Up to the moment somebody asks."""
    ring = ring_of(records)
    records.push(record(line=1), record(**TRACE))
    assert [(one.endpoint_id, one.times) for one in ring.recorded()] == [(12, 1)]
