# SPDX-License-Identifier: Apache-2.0
"""
The life of an endpoint: from a network namespace to a pod of this node, and back.

Order of birth: address, veth pair (down), programs attached, row in the table, all of its rows in the
maps, and only then the pair comes up.  A pod's first packet never precedes its policy.  Whatever
fails on the way is undone.

One change at a time, and each runs to its end even if whoever asked for it goes away: half a pod is
worse than one nobody waits for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any, TypeVar

import structlog

from ciliumd.bpf.errors import BpfError
from ciliumd.daemon.api import EndpointRequest, RequestRefused
from ciliumd.daemon.attachments import FAILURES, Attachments, pod_device
from ciliumd.ipam.hostscope import AddressInUse, AddressNotInPool, HostScope, IpamError
from ciliumd.model.endpoint import ENDPOINT_ID_MAX, EndpointSpec
from ciliumd.net import endpoint as wiring
from ciliumd.net import links
from ciliumd.net.errors import LinkConflict, NamespaceGone, NetError
from ciliumd.net.thread import NetlinkThread
from ciliumd.tables.schema import Tables

SLOT_QUARANTINE = 30.0
"""Seconds a freed slot stays empty, so that nothing that still knows it meets a successor."""

END_SECONDS = 5.0
"""How long the end of the agent waits for changes under way."""

T = TypeVar("T")

log = structlog.get_logger("endpoint")


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """What every pod of this node is configured with."""

    router: IPv4Address
    mtu: int
    slots: int


class Endpoints:
    """Makes and removes endpoints; the only writer of the table of endpoints."""

    def __init__(
        self,
        tables: Tables,
        *,
        network: PodNetwork,
        ipam: HostScope,
        netlink: NetlinkThread,
        attachments: Attachments,
        next_slot_gen: Callable[[], int],
        realized: Callable[[int], Awaitable[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*next_slot_gen* hands out a generation never used; *realized* awaits an endpoint's rows."""
        self._tables = tables
        self._network = network
        self._ipam = ipam
        self._netlink = netlink
        self._attachments = attachments
        self._next_slot_gen = next_slot_gen
        self._realized = realized
        self._clock = clock
        self._changing = asyncio.Lock()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._ending = False
        self._freed: dict[int, float] = {}

    async def add(self, request: EndpointRequest) -> EndpointSpec:
        """
        Make the namespace of *request* a pod; asking again for the same pod corrects what is there.

        RequestRefused when it cannot be done, with the reason.
        """
        return await self._to_the_end(self._add(request))

    async def delete(self, number: int) -> None:
        """Take an endpoint away: nothing of it is left, whatever has become of its namespace."""
        await self._to_the_end(self._delete(number))

    async def device_gone(self, ifindex: int) -> None:
        """A device vanished: if it was a pod's, so has the pod."""
        if not self._ending:
            await self._to_the_end(self._device_gone(ifindex))

    async def check_devices(self) -> None:
        """Events may have been missed: let go of every pod whose device is not there."""
        if not self._ending:
            await self._to_the_end(self._check_devices())

    async def stop(self) -> None:
        """Begin nothing more, finish what is under way; what cannot be finished in time is undone."""
        self._ending = True
        await self._finish()
        for task in self._under_way:
            task.cancel()
        await self._finish()

    async def restore(self, found: list[EndpointSpec]) -> None:
        """Take over the endpoints of an earlier agent whose devices still exist; drop the others."""
        for endpoint in found:
            link = await self._netlink.call(links.link_by_index, endpoint.ifindex)
            owner = links.endpoint_owner(link.alias) if link is not None else None
            if link is None or owner is None or owner.endpoint_id != endpoint.id:
                log.warning(
                    "endpoint.lost", endpoint=endpoint.id, pod=_pod(endpoint), reason="its device is gone"
                )
                continue
            try:
                self._reserve_again(endpoint)
            except AddressInUse as error:
                log.warning("endpoint.lost", endpoint=endpoint.id, pod=_pod(endpoint), reason=str(error))
                continue
            self._tables.endpoints.set(endpoint.id, endpoint)
            try:
                await self._attachments.attach(pod_device(endpoint.ifindex, _pod(endpoint)))
            except FAILURES as error:
                # What hangs there goes on; whoever looks after attachments will try again.
                log.warning("endpoint.not_attached", endpoint=endpoint.id, reason=str(error))
        log.info(
            "endpoint.restored",
            endpoints=len(self._tables.endpoints),
            lost=len(found) - len(self._tables.endpoints),
        )

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* as a task of its own, which the caller's end does not end."""
        if self._ending:
            work.close()
            raise RequestRefused(503, "the agent is ending; ask again when it runs")
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise RequestRefused(503, "the agent is ending; what was begun is undone") from None
            task.add_done_callback(_tell_abandoned)
            raise

    async def _add(self, request: EndpointRequest) -> EndpointSpec:
        namespace, _, pod = request.pod.partition("/")
        async with self._changing:
            with _refusals():
                for number in self._tables.endpoints_of_pod.get((namespace, pod)):
                    existing = self._tables.endpoints.get(number)
                    if existing is not None:
                        return await self._reconnect(self._same(existing, request), request)
                return await self._create(request, namespace, pod)

    async def _delete(self, number: int) -> None:
        async with self._changing:
            endpoint = self._tables.endpoints.get(number)
            if endpoint is not None:
                await self._remove(endpoint)

    async def _finish(self) -> None:
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=END_SECONDS)

    async def _device_gone(self, ifindex: int) -> None:
        async with self._changing:
            for endpoint in self._tables.endpoints.values():
                if endpoint.ifindex == ifindex:
                    log.warning("endpoint.device_gone", endpoint=endpoint.id, pod=_pod(endpoint))
                    await self._remove(endpoint)

    async def _check_devices(self) -> None:
        async with self._changing:
            present = await self._netlink.call(links.all_links)
            owners = {link.ifindex: links.endpoint_owner(link.alias) for link in present}
            for endpoint in self._tables.endpoints.values():
                owner = owners.get(endpoint.ifindex)
                if owner is None or owner.endpoint_id != endpoint.id:
                    log.warning("endpoint.device_gone", endpoint=endpoint.id, pod=_pod(endpoint))
                    await self._remove(endpoint)

    def _reserve_again(self, endpoint: EndpointSpec) -> None:
        """Keep a restored endpoint's address from others; one of another pod CIDR stays what it is."""
        if endpoint.ipv4 is None:
            return
        try:
            self._ipam.reserve(endpoint.ipv4, _pod(endpoint))
        except AddressNotInPool as error:
            log.warning(
                "endpoint.foreign_address", endpoint=endpoint.id, pod=_pod(endpoint), reason=str(error)
            )

    async def _create(self, request: EndpointRequest, namespace: str, pod: str) -> EndpointSpec:
        name = f"{namespace}/{pod}"
        number, slot = self._free_id(), self._free_slot()
        address = self._address(request, name)
        wanted = wiring.EndpointWiring(
            endpoint_id=number,
            pod=name,
            namespace=request.netns,
            name=links.lxc_name(request.container_id or name),
            address=address,
            router=self._network.router,
            mtu=self._network.mtu,
            ifname=request.ifname,
            mac=links.random_mac(),
            node_mac=links.random_mac(),
        )
        ifindex = 0
        try:
            prepared = await self._netlink.call(wiring.prepare_endpoint, wanted)
            ifindex = prepared.link.ifindex
            endpoint = EndpointSpec(
                id=number,
                slot=slot,
                slot_gen=self._next_slot_gen(),
                namespace=namespace,
                pod=pod,
                container_id=request.container_id,
                netns=request.netns,
                ifname=prepared.link.name,
                ifindex=ifindex,
                mac=str(wanted.mac),
                node_mac=prepared.link.mac,
                ipv4=address,
                ipv6=None,
            )
            await self._attachments.attach(pod_device(ifindex, name))
            self._tables.endpoints.set(number, endpoint)
            await self._written(endpoint)
            await self._netlink.call(wiring.connect_endpoint, wanted, prepared)
        except BaseException:
            await self._undo(wanted, slot, ifindex)
            raise
        log.info("endpoint.created", endpoint=number, pod=name, ipv4=str(address), device=endpoint.ifname)
        return endpoint

    def _address(self, request: EndpointRequest, owner: str) -> IPv4Address:
        address = self._ipam.reserve(request.ip, owner) if request.ip else self._ipam.allocate(owner)
        if not isinstance(address, IPv4Address):
            raise NetError(f"wire pod {owner}", f"{address} is no IPv4 address")
        return address

    async def _written(self, endpoint: EndpointSpec) -> None:
        """Wait until every row of the endpoint is in the maps."""
        problem = await self._realized(endpoint.id)
        if problem:
            raise NetError(f"program pod {_pod(endpoint)}", problem)

    async def _undo(self, wanted: wiring.EndpointWiring, slot: int, ifindex: int) -> None:
        """Take back whatever of an endpoint was made; each step as far as it can be taken."""
        number = wanted.endpoint_id
        if self._tables.endpoints.delete(number):
            self._freed[slot] = self._clock()
            await self._realized(number)
        if ifindex := ifindex or await self._unheard_of(wanted):
            await self._take_down(ifindex, number)
        self._ipam.release(wanted.address)

    async def _unheard_of(self, wanted: wiring.EndpointWiring) -> int:
        """The device that a call made after its caller was cancelled; 0 if there is none."""
        try:
            link = await self._netlink.call(links.link_by_name, wanted.name)
        except NetError as error:
            log.warning("endpoint.device_left", endpoint=wanted.endpoint_id, reason=str(error))
            return 0
        owner = links.endpoint_owner(link.alias) if link is not None else None
        if link is None or owner is None or owner.endpoint_id != wanted.endpoint_id:
            return 0
        return link.ifindex

    async def _take_down(self, ifindex: int, number: int) -> None:
        """Delete the device, then let its programs go: while it is there its packets meet them."""
        try:
            await self._netlink.call(links.delete_endpoint_link, ifindex, number)
        except LinkConflict as error:
            log.warning("endpoint.device_left", endpoint=number, reason=str(error))
        except NetError as error:
            log.warning("endpoint.device_left", endpoint=number, reason=str(error))
            return
        try:
            await self._attachments.detach(ifindex)
        except FAILURES as error:
            log.warning("endpoint.programs_left", endpoint=number, reason=str(error))

    def _same(self, endpoint: EndpointSpec, request: EndpointRequest) -> EndpointSpec:
        """The endpoint that *request* asks for again; RequestRefused when it asks for another."""
        if endpoint.netns and endpoint.netns != request.netns:
            where = f"in {endpoint.netns}"
        elif request.ip not in {None, endpoint.ipv4}:
            where = f"with address {endpoint.ipv4}"
        elif endpoint.netns:
            return endpoint
        else:
            # Recovered from the kernel, which does not know where the namespace is.
            endpoint = replace(endpoint, netns=request.netns, container_id=request.container_id)
            self._tables.endpoints.set(endpoint.id, endpoint)
            return endpoint
        raise RequestRefused(
            409,
            f"pod {request.pod} is endpoint {endpoint.id} {where}; run: ciliumd endpoint del {endpoint.id}",
        )

    async def _reconnect(self, endpoint: EndpointSpec, request: EndpointRequest) -> EndpointSpec:
        """Correct the wiring of an endpoint that exists."""
        wanted = wiring.EndpointWiring(
            endpoint_id=endpoint.id,
            pod=_pod(endpoint),
            namespace=endpoint.netns,
            name=endpoint.ifname,
            address=endpoint.ipv4 or IPv4Address(0),
            router=self._network.router,
            mtu=self._network.mtu,
            ifname=request.ifname,
            mac=endpoint.mac,
            node_mac=endpoint.node_mac,
        )
        prepared = await self._netlink.call(wiring.prepare_endpoint, wanted)
        if prepared.link.ifindex != endpoint.ifindex:
            # The old pair was broken and has been replaced: same pod, another device, another endpoint.
            log.warning("endpoint.device_replaced", endpoint=endpoint.id, pod=_pod(endpoint))
            await self._netlink.call(links.delete_link, prepared.link.ifindex)
            await self._remove(endpoint)
            again = request.model_copy(update={"ip": endpoint.ipv4})
            return await self._create(again, endpoint.namespace, endpoint.pod)
        await self._attachments.attach(pod_device(endpoint.ifindex, _pod(endpoint)))
        await self._written(endpoint)
        await self._netlink.call(wiring.connect_endpoint, wanted, prepared)
        return endpoint

    async def _remove(self, endpoint: EndpointSpec) -> None:
        self._tables.endpoints.delete(endpoint.id)
        self._freed[endpoint.slot] = self._clock()
        # Rows first, then the device: a device that moves to another namespace keeps its program.
        await self._realized(endpoint.id)
        self._freed[endpoint.slot] = self._clock()
        await self._take_down(endpoint.ifindex, endpoint.id)
        if endpoint.ipv4 is not None:
            self._ipam.release(endpoint.ipv4)
        log.info("endpoint.deleted", endpoint=endpoint.id, pod=_pod(endpoint))

    def _free_id(self) -> int:
        for number in range(1, ENDPOINT_ID_MAX + 1):
            if number not in self._tables.endpoints:
                return number
        raise RequestRefused(507, f"all {ENDPOINT_ID_MAX} endpoint ids are in use")

    def _free_slot(self) -> int:
        """The lowest slot nobody has or had a moment ago."""
        now = self._clock()
        self._freed = {slot: when for slot, when in self._freed.items() if now - when < SLOT_QUARANTINE}
        used = {endpoint.slot for endpoint in self._tables.endpoints.values()} | self._freed.keys()
        for slot in range(self._network.slots):
            if slot not in used:
                return slot
        raise RequestRefused(507, f"all {self._network.slots} endpoint slots are in use")


def _pod(endpoint: EndpointSpec) -> str:
    return f"{endpoint.namespace}/{endpoint.pod}"


@contextmanager
def _refusals() -> Iterator[None]:
    """What went wrong as an answer to whoever asked."""
    try:
        yield
    except NamespaceGone as error:
        raise RequestRefused(422, f"{error}; is the pod still running?") from error
    except LinkConflict as error:
        raise RequestRefused(409, str(error)) from error
    except IpamError as error:
        raise RequestRefused(409 if isinstance(error, AddressInUse) else 422, str(error)) from error
    except (NetError, BpfError) as error:
        raise RequestRefused(500, str(error)) from error


def _tell_abandoned(task: asyncio.Task[Any]) -> None:
    """Whoever asked has gone: what became of it is in the log only."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("endpoint.abandoned_change_failed", error=str(error))
