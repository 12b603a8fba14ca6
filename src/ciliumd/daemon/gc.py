# SPDX-License-Identifier: Apache-2.0
"""Removes conntrack and NAT rows that have had their time; what is over is decided in ``reconcile.gc``."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import ParamSpec, TypeVar

import structlog

from ciliumd.bpf.map import Map
from ciliumd.reconcile import gc, nat_ports

P = ParamSpec("P")
T = TypeVar("T")
log = structlog.get_logger("gc")


@dataclass(slots=True)
class GcTotals:
    """Rows removed since start."""

    conntrack: int = 0
    nat: int = 0
    runs: int = 0


class ConntrackGc:
    """Works in the writer thread, a chunk at a time, so that policy writes get in between."""

    def __init__(self, maps: Mapping[str, Map], *, executor: Executor) -> None:
        self.totals = GcTotals()
        self.ports = nat_ports.NOTHING
        self._ct = maps["cilium_ct_v1"]
        self._nat = maps["cilium_snat_v1"]
        self._executor = executor

    async def collect(self) -> None:
        """One walk over both maps."""
        expired: list[list[bytes]] = []
        async for piece in self._pieces(self._ct):
            expired += await self._in_writer(list, self._expired(piece))
        for chunk in expired:
            self.totals.conntrack += await self._in_writer(self._delete_expired, chunk)
        over: list[list[bytes]] = []
        count = nat_ports.Count()
        async for piece in self._pieces(self._nat):
            over += await self._in_writer(list, self._over(piece))
            await self._in_writer(count.add, piece, _now())
        for chunk in over:
            self.totals.nat += await self._in_writer(self._delete_over, chunk)
        self._tell(count.result())
        self.totals.runs += 1

    def _tell(self, ports: nat_ports.NatPorts) -> None:
        """Keep what was counted; warn of each destination that has no port left, once while that lasts."""
        known = {one.target for one in self.ports.full}
        for target, used in ports.full:
            if target not in known:
                log.warning("nat.ports_exhausted", ports=used, **target.shown())
        self.ports = ports

    async def _pieces(self, source: Map) -> AsyncIterator[list[gc.Row]]:
        """The rows of a map, read a chunk at a time."""
        rows = source.items()
        while piece := await self._in_writer(lambda: list(islice(rows, gc.CHUNK))):
            yield piece

    async def _in_writer(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, partial(call, *args, **kwargs)
        )

    def _expired(self, rows: Iterable[gc.Row], chunk: int = gc.CHUNK) -> Iterator[list[bytes]]:
        return gc.expired_ct(rows, _now(), chunk=chunk)

    def _over(self, rows: Iterable[gc.Row], chunk: int = gc.CHUNK) -> Iterator[list[bytes]]:
        return gc.expired_nat(rows, _now(), is_live_flow=self._is_live, chunk=chunk)

    def _delete_expired(self, keys: list[bytes]) -> int:
        """
        Delete what is still expired: a row may have been taken into use since it was read.

        One at a time, right after it was looked at: what is judged many rows earlier would be deleted from
        under a flow that began meanwhile, and its next answer be lost.
        """
        rows = ((key, value) for key in keys if (value := self._ct.lookup(key)) is not None)
        return sum(len(one) - len(self._ct.delete_batch(one)) for one in self._expired(rows, chunk=1))

    def _delete_over(self, keys: list[bytes]) -> int:
        rows = ((key, value) for key in keys if (value := self._nat.lookup(key)) is not None)
        return sum(len(one) - len(self._nat.delete_batch(one)) for one in self._over(rows, chunk=1))

    def _is_live(self, key: bytes) -> bool:
        value = self._ct.lookup(key)
        return value is not None and gc.is_live_ct(value, _now())


def _now() -> int:
    return int(time.monotonic())
