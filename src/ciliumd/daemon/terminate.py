# SPDX-License-Identifier: Apache-2.0
"""
Ends what goes on to a backend that a service has given up: connected sockets, and flows of UDP.

A controller of its own, behind the reconciler: when a round has taken backends away, the rows that programs
wrote about sockets and flows are compared with who may be talked to (``desired.departed``).  Sockets are
destroyed in every network namespace this process can enter: by an iterator where the kernel has
bpf_sock_destroy, else by sock_diag.  A look a little later finds who was just about to connect.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

import structlog

from ciliumd import abi
from ciliumd.bpf import terminate as iterators
from ciliumd.bpf.errors import BpfError
from ciliumd.bpf.map import Map
from ciliumd.desired.departed import Reachable, departed_flows, doomed_sockets
from ciliumd.metrics.tally import Tally
from ciliumd.net import sockdiag
from ciliumd.net.errors import NamespaceGone
from ciliumd.net.namespace import run_in_namespace

T = TypeVar("T")

AGAIN_SECONDS = 1.0
"""Who read a service's rows before they changed has written about it by then."""

CHUNK = 4096
PROTOCOLS: Mapping[int, str] = {6: "TCP", 17: "UDP"}

log = structlog.get_logger("services")


class Destroyer(Protocol):
    """Destroys sockets of the calling thread's network namespace; the text says how."""

    name: str

    def __call__(self, protocol: int) -> int:
        """How many of the protocol's sockets were destroyed.  Raises BpfError or NetError."""


@dataclass(slots=True)
class ByIterator:
    """By the kernel's iterator."""

    iterator: iterators.SocketIterator
    name: str = "BPF iterator"

    def __call__(self, protocol: int) -> int:
        """See :class:`Destroyer`."""
        return self.iterator.destroy(protocol)


@dataclass(slots=True)
class ByDiag:
    """By sock_diag."""

    doomed: Mapping[int, Collection[sockdiag.Connected]]
    name: str = "sock_diag"

    def __call__(self, protocol: int) -> int:
        """See :class:`Destroyer`."""
        found = self.doomed.get(protocol)
        return sockdiag.destroy(protocol, found) if found else 0


@dataclass(slots=True)
class Terminated:
    """What was ended since start, and how sockets are."""

    sockets: int = 0
    flows: int = 0
    how: str = ""


@dataclass(slots=True, kw_only=True)
class Terminator:
    """
    *reachable* says who may be talked to now; *namespaces* the paths of pods' namespaces that can be entered.

    Without *sockets* only flows are ended: nobody's sockets are translated.
    """

    maps: Mapping[str, Map]
    executor: Executor
    reachable: Callable[[], Reachable]
    namespaces: Callable[[], Iterable[str]]
    sockets: bool
    tally: Tally
    by_iterator: bool = field(default_factory=iterators.supported)
    totals: Terminated = field(default_factory=Terminated)
    _before: Reachable | None = None
    _swept: set[bytes] = field(default_factory=set)
    _forced: bool = True
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.totals.how = "BPF iterator" if self.by_iterator else "sock_diag"

    def look(self) -> None:
        """Rows may have changed.  Call it on the loop's thread."""
        self._wake.set()

    async def work(self) -> None:
        """Wait until something may have changed; end what has to be ended.  Raises BpfError or NetError."""
        await self._wake.wait()
        self._wake.clear()
        now = self.reachable()
        lost = self._before is not None and now.lost(self._before)
        if not (lost or self._forced):
            self._before = now
            return
        self._forced = True
        try:
            await self._end(now)
        except BaseException:
            self._wake.set()
            raise
        self._before, self._forced = now, False
        if lost:
            asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._forced = True
        self.look()

    async def _end(self, now: Reachable) -> None:
        # Flows first: a client whose socket ends at once asks again.
        await self._end_flows(now)
        if self.sockets:
            await self._end_sockets(now)

    # ---- flows -----------------------------------------------------------------------------

    async def _end_flows(self, now: Reachable) -> None:
        conntrack = self.maps["cilium_ct_v1"]
        rows = conntrack.items()
        while piece := await self._in_writer(partial(_piece, rows)):
            departed = await self._in_writer(partial(_found, departed_flows(piece, now)))
            if departed:
                failed = await self._in_writer(partial(conntrack.delete_batch, departed))
                self._count("flow", "UDP", len(departed) - len(failed), len(failed))
                self.totals.flows += len(departed) - len(failed)
                for failure in failed.values():
                    raise failure

    # ---- sockets ---------------------------------------------------------------------------

    async def _end_sockets(self, now: Reachable) -> None:
        rows = self.maps["cilium_lb_sock_v1"].items()
        doomed: set[bytes] = set()
        while piece := await self._in_writer(partial(_piece, rows)):
            doomed.update(await self._in_writer(partial(_found, doomed_sockets(piece, now))))
        # What was looked for is not looked for again.  Rows stay: sockets without a peer get late answers.
        fresh = doomed - self._swept
        if fresh:
            ended = await asyncio.to_thread(self._destroy, fresh, tuple(self.namespaces()))
            for protocol, count in ended.items():
                self._count("socket", PROTOCOLS[protocol], count, 0)
                self.totals.sockets += count
            log.info("services.sockets_destroyed", sockets=sum(ended.values()), by=self.totals.how)
        self._swept = doomed

    def _destroy(self, doomed: Collection[bytes], namespaces: Iterable[str]) -> dict[int, int]:
        """In a thread of its own: how many sockets there were, by protocol."""
        by_protocol: dict[int, list[bytes]] = {}
        for packed in doomed:
            by_protocol.setdefault(abi.SockRevnatKey.unpack(packed).protocol, []).append(packed)
        ended = dict.fromkeys(by_protocol, 0)
        with ExitStack() as stack:
            destroy = self._destroyer(stack, by_protocol)

            def here() -> None:
                for protocol in by_protocol:
                    ended[protocol] += destroy(protocol)

            here()
            for path in namespaces:
                try:
                    run_in_namespace(path, here)
                except NamespaceGone:
                    continue  # with all its sockets
        return ended

    def _destroyer(self, stack: ExitStack, doomed: Mapping[int, list[bytes]]) -> Destroyer:
        if self.by_iterator:
            try:
                iterator = stack.enter_context(iterators.SocketIterator.load())
                iterator.doom(key for keys in doomed.values() for key in keys)
            except BpfError as error:
                # A kernel may have the function and still refuse the programs.
                log.warning("services.no_socket_iterator", error=str(error), instead="sock_diag")
                self.by_iterator = False
            else:
                return ByIterator(iterator)
        self.totals.how = "sock_diag"
        return ByDiag({number: [_connected(key) for key in keys] for number, keys in doomed.items()})

    def _count(self, what: str, protocol: str, done: int, failed: int) -> None:
        if done:
            self.tally.add(what, protocol, "success", by=done)
        if failed:
            self.tally.add(what, protocol, "fail", by=failed)

    async def _in_writer(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.executor, call)


def _piece(rows: Iterator[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return list(islice(rows, CHUNK))


def _found(keys: Iterator[bytes]) -> list[bytes]:
    return list(keys)


def _connected(packed: bytes) -> sockdiag.Connected:
    key = abi.SockRevnatKey.unpack(packed)
    return sockdiag.Connected(key.cookie, key.addr, key.port)
