# SPDX-License-Identifier: Apache-2.0
"""
The ring buffer drained, and its flows handed to whoever watches.

Runs on the agent's event loop.  Every event is delivered to a subscriber or counted as lost to it:
by the kernel when the ring buffer was full, or here when the subscriber was slow.  A slow subscriber
costs nobody else anything.  Without subscribers events are only counted.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

from ciliumd.flows.decode import RECORD_SIZE, decode_batch
from ciliumd.flows.enrich import Flow, Lookups, enrich
from ciliumd.flows.filter import FlowFilter
from ciliumd.flows.record import FlowRecord, RecordedFlow
from ciliumd.flows.wire import RING_BUFFER, SUBSCRIBER_QUEUE, LostEvents

BUSY_RECORDS: Final = 4096
DRAIN_INTERVAL: Final = 0.02
QUEUE_FLOWS: Final = 4096
EVERYTHING: Final = FlowFilter()


class Records(Protocol):
    """What is read of a ring buffer; fulfilled by ``ciliumd.bpf.ringbuf.RingBuffer``."""

    @property
    def fd(self) -> int:
        """The descriptor that becomes readable when there are records."""

    def drain(self) -> bytes:
        """The next records end to end, a bounded number of them; empty when there are none."""


@dataclass(frozen=True, slots=True)
class RingStats:
    """Totals since start."""

    seen: int
    unknown: int
    lost: int
    subscribers: int
    subscriber_lost: int
    last_event_ns: int


class Subscription:
    """
    Flows of one watcher, as an asynchronous iterator; closes as a context manager.

    The queue is bounded.  What does not fit is counted in ``lost`` and told in the stream, where the
    gap is, as :class:`LostEvents`.
    """

    def __init__(self, ring: "FlowRing", wanted: FlowFilter, capacity: int) -> None:
        self.delivered = 0
        self.lost = 0
        self._ring = ring
        self.wanted = wanted
        self._capacity = capacity
        self._queue: deque[Flow | LostEvents] = deque()
        self._gaps: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Flow | LostEvents:
        while not self._queue:
            if self._gaps:
                self._tell_gaps()
                break
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        item = self._queue.popleft()
        if isinstance(item, Flow):
            self.delivered += 1
        return item

    def close(self) -> None:
        """Take no more flows; what is queued can still be read."""
        self._closed = True
        self._ring._subscriptions.discard(self)  # noqa: SLF001 - one unit with the ring
        self._wake.set()

    def put(self, flow: Flow) -> None:
        """Queue *flow* if the watcher wants it and has room."""
        if not self.wanted.matches(flow):
            return
        if len(self._queue) >= self._capacity:
            self.lost += 1
            self._gap(SUBSCRIBER_QUEUE, 1)
            return
        self._tell_gaps()
        self._queue.append(flow)
        self._wake.set()

    def lose(self, count: int) -> None:
        """Tell the watcher that the kernel lost *count* events."""
        self._gap(RING_BUFFER, count)
        self._wake.set()

    def _gap(self, source: str, count: int) -> None:
        self._gaps[source] = self._gaps.get(source, 0) + count

    def _tell_gaps(self) -> None:
        self._queue.extend(LostEvents(source, count) for source, count in self._gaps.items())
        self._gaps.clear()


def clock_offset_ns() -> int:
    """Nanoseconds to add to CLOCK_MONOTONIC to get the wall clock, now."""
    return time.time_ns() - time.monotonic_ns()


class FlowRing:
    """
    Drains *records*, decodes and names them, and hands every flow to each subscription.

    What policies judged is kept in *record*, whether anybody subscribes or not.
    *losses* reads how many events the kernel dropped so far because the ring buffer was full.
    """

    def __init__(
        self,
        records: Records,
        lookups: Lookups,
        *,
        losses: Callable[[], int],
        clock_offset: Callable[[], int] = clock_offset_ns,
        interval: float = DRAIN_INTERVAL,
    ) -> None:
        self.record = FlowRecord()
        self._records = records
        self._lookups = lookups
        self._losses = losses
        self._clock_offset = clock_offset
        self._interval = interval
        self._subscriptions: set[Subscription] = set()
        self._seen = 0
        self._unknown = 0
        self._subscriber_lost = 0
        self._last_event_ns = 0
        self._lost_before = losses()
        self._lost = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Follow the ring buffer on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._watch()

    def stop(self) -> None:
        """Drain once more, stop following, and end every subscription."""
        if self._loop is not None:
            self._loop.remove_reader(self._records.fd)
            if self._timer is not None:
                self._timer.cancel()
            self._loop = None
            self.drain()
        for subscription in list(self._subscriptions):
            subscription.close()

    def subscribe(self, wanted: FlowFilter = EVERYTHING, *, capacity: int = QUEUE_FLOWS) -> Subscription:
        """A new watcher; it sees what is drained from now on."""
        self.drain()
        subscription = Subscription(self, wanted, capacity)
        self._subscriptions.add(subscription)
        return subscription

    def drain(self) -> int:
        """Hand out what the ring buffer holds now; returns how many records that were."""
        before = {subscription: subscription.lost for subscription in self._subscriptions}
        data = self._records.drain()
        count = len(data) // RECORD_SIZE
        if data:
            self._last_event_ns = time.time_ns()
            self._hand_out(data, count)
        self._tell_losses()
        self._subscriber_lost += sum(subscription.lost - lost for subscription, lost in before.items())
        return count

    def recorded(self) -> list[RecordedFlow]:
        """The flows that policies judged, up to now, that of the latest verdict first."""
        self.drain()
        return self.record.flows(offset_ns=self._clock_offset())

    def stats(self) -> RingStats:
        """Totals for status and metrics."""
        return RingStats(
            seen=self._seen,
            unknown=self._unknown,
            lost=self._lost,
            subscribers=len(self._subscriptions),
            subscriber_lost=self._subscriber_lost,
            last_event_ns=self._last_event_ns,
        )

    def _hand_out(self, data: bytes, count: int) -> None:
        self._seen += count
        self.record.take(data)
        if not self._subscriptions:
            return
        batch = decode_batch(data, offset_ns=self._clock_offset())
        self._unknown += batch.unknown
        for event in batch.events:
            watchers = [each for each in self._subscriptions if each.wanted.wants(event.type)]
            if watchers:
                flow = enrich(event, self._lookups)
                for subscription in watchers:
                    subscription.put(flow)

    def _tell_losses(self) -> None:
        total = self._losses()
        lost, self._lost_before = total - self._lost_before, total
        if lost > 0:
            self._lost += lost
            for subscription in self._subscriptions:
                subscription.lose(lost)

    def _watch(self) -> None:
        self._timer = None
        if self._loop is not None:
            self._loop.add_reader(self._records.fd, self._readable)

    def _readable(self) -> None:
        # Under load the ring buffer is readable all the time: one drain per interval bounds the
        # wake-ups; after a drain that took a lot the next one follows in the loop's next turn.
        if self._loop is None:
            return
        if self.drain() < BUSY_RECORDS:
            self._loop.remove_reader(self._records.fd)
            self._timer = self._loop.call_later(self._interval, self._watch)
