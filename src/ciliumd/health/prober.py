# SPDX-License-Identifier: Apache-2.0
"""
Probes every node at an interval, and sooner what is new, has changed or did not answer.

Bounded: so many probes at a time, each with a deadline; a silent cluster costs waiting, not sockets.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from ciliumd.health import hello
from ciliumd.health.icmp import Pinger
from ciliumd.health.model import Check, NodeResult, PathResult, Target
from ciliumd.model.net import Addr

PROBE_SECONDS: Final = 5.0
CONCURRENCY: Final = 64
RETRY_SECONDS: Final = 1.0
TIMED_OUT: Final = "Connection timed out"


class Checks(Protocol):
    """How an address is asked; both answer with seconds, or raise OSError or ``hello.Unwell``."""

    async def icmp(self, address: Addr) -> float:
        """By an echo request."""

    async def http(self, address: Addr) -> float:
        """By ``GET /hello``."""


class NetworkChecks:
    """Asks over the network."""

    def __init__(self, pinger: Pinger, port: int) -> None:
        self._pinger = pinger
        self._port = port

    async def icmp(self, address: Addr) -> float:
        """By an echo request."""
        return await self._pinger.ping(address)

    async def http(self, address: Addr) -> float:
        """By ``GET /hello``."""
        return await hello.ask(address, self._port)


@dataclass(slots=True)
class _Node:
    """What is known of a node, and when it is asked again (monotonic seconds)."""

    result: NodeResult
    due: float
    failures: int


class Prober:
    """Keeps the newest result of each of *targets*; *probed* is told every one."""

    def __init__(
        self,
        checks: Checks,
        *,
        targets: Callable[[], Iterable[Target]],
        interval: float,
        probed: Callable[[NodeResult], None] = lambda _: None,
        seconds: float = PROBE_SECONDS,
    ) -> None:
        self._checks = checks
        self._targets = targets
        self._interval = interval
        self._probed = probed
        self._seconds = seconds
        self._nodes: dict[str, _Node] = {}
        self._changed = asyncio.Event()
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._turn = asyncio.Lock()

    def nodes_changed(self) -> None:
        """Look at the targets now."""
        self._changed.set()

    def results(self) -> Iterator[NodeResult]:
        """The newest result of every target, as far as there is one."""
        for target in self._targets():
            node = self._nodes.get(target.full_name)
            if node is not None and node.result.target == target:
                yield node.result

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            self._changed.clear()
            await self._round(self._due)
            wait = min((node.due for node in self._nodes.values()), default=time.monotonic() + self._interval)
            try:
                async with asyncio.timeout(max(0.0, wait - time.monotonic())):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def probe(self) -> None:
        """Probe every node now."""
        await self._round(lambda _: True)

    def _due(self, target: Target) -> bool:
        node = self._nodes.get(target.full_name)
        return node is None or node.result.target != target or node.due <= time.monotonic()

    async def _round(self, wanted: Callable[[Target], bool]) -> None:
        async with self._turn:
            current = list(self._targets())
            names = {target.full_name for target in current}
            self._nodes = {name: node for name, node in self._nodes.items() if name in names}
            async with asyncio.TaskGroup() as group:
                for target in filter(wanted, current):
                    group.create_task(self._node(target))

    async def _node(self, target: Target) -> None:
        paths = await asyncio.gather(*(self._path(one) for one in (*target.host, *target.endpoint)))
        hosts = len(target.host)
        result = NodeResult(target, tuple(paths[:hosts]), tuple(paths[hosts:]))
        before = self._nodes.get(target.full_name)
        failures = 0 if result.reachable else (before.failures if before else 0) + 1
        again = min(self._interval, RETRY_SECONDS * 2.0 ** min(failures, 16)) if failures else self._interval
        self._nodes[target.full_name] = _Node(result, time.monotonic() + again, failures)
        self._probed(result)

    async def _path(self, address: Addr) -> PathResult:
        icmp, http = await asyncio.gather(
            self._check(self._checks.icmp, address), self._check(self._checks.http, address)
        )
        return PathResult(address, icmp, http)

    async def _check(self, ask: Callable[[Addr], Awaitable[float]], address: Addr) -> Check:
        async with self._slots:
            return await check(ask, address, self._seconds)


async def check(ask: Callable[[Addr], Awaitable[float]], address: Addr, seconds: float) -> Check:
    """Ask once and wait *seconds* at most."""
    error, latency = "", 0.0
    try:
        async with asyncio.timeout(seconds):
            latency = await ask(address)
    except TimeoutError:
        error = TIMED_OUT
    except OSError as failure:
        error = failure.strerror or str(failure)
    except hello.Unwell as failure:
        error = str(failure)
    return Check(error, latency, time.time())
