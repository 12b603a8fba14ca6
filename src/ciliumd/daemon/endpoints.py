# SPDX-License-Identifier: Apache-2.0
"""
The life of an endpoint: from a network namespace to a pod of this node, and back.

Changes of one pod come one after the other, those of different pods side by side: most of what they
wait for is the kernel.  Each runs to its end even if whoever asked for it goes away: half a pod is worse
than one nobody waits for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import structlog

from ciliumd.bpf.errors import BpfError
from ciliumd.daemon.api import EndpointRequest, RequestRefused
from ciliumd.daemon.attachments import FAILURES, Attachments, pod_device
from ciliumd.daemon.endpoint_numbers import EndpointNumbers, NumbersExhausted
from ciliumd.daemon.endpoint_wiring import EndpointWirer, PodNetwork, pod_of
from ciliumd.daemon.reaper import Reaper
from ciliumd.daemon.turns import Turns
from ciliumd.ipam.hostscope import AddressInUse, AddressNotInPool, HostScope, IpamError
from ciliumd.model.endpoint import HEALTH_POD, EndpointSpec
from ciliumd.net import links
from ciliumd.net.errors import LinkConflict, NamespaceGone, NetError
from ciliumd.net.namespace import Sandbox, close_sandbox, open_sandbox
from ciliumd.net.thread import NetlinkThread
from ciliumd.tables.schema import Tables

__all__ = ["Endpoints", "PodNetwork"]

END_SECONDS = 5.0
"""How long the end of the agent waits for changes under way."""

T = TypeVar("T")

log = structlog.get_logger("endpoint")


class Endpoints:
    """Makes and removes endpoints; the only writer of the table of endpoints."""

    def __init__(
        self,
        tables: Tables,
        *,
        network: PodNetwork,
        ipam: HostScope | None,
        ipam6: HostScope | None = None,
        netlink: NetlinkThread,
        attachments: Attachments,
        reaper: Reaper,
        next_slot_gen: Callable[[], int],
        realized: Callable[[int], Awaitable[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        *next_slot_gen* hands out a generation never used; *realized* awaits an endpoint's rows.

        *ipam* is the pool of pods' IPv4 addresses, *ipam6* of those of IPv6, where they have any.
        """
        self.network = network
        self._tables = tables
        self._netlink = netlink
        self._attachments = attachments
        self._reaper = reaper
        self._realized = realized
        self._wirer = EndpointWirer(
            tables=tables,
            network=network,
            numbers=EndpointNumbers(tables, slots=network.slots, clock=clock),
            ipam=ipam,
            ipam6=ipam6,
            netlink=netlink,
            attachments=attachments,
            reaper=reaper,
            next_slot_gen=next_slot_gen,
            realized=realized,
        )
        self._turns = Turns()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._ending = False

    async def add(self, request: EndpointRequest, sandbox: Sandbox | None = None) -> EndpointSpec:
        """
        Make the namespace of *request* a pod; asking again for the same pod corrects what is there.

        A runtime passes its *sandbox*, which is closed in any case; the pod's sandbox of before, if it is
        another, is taken away.  RequestRefused when it cannot be done, with the reason.
        """
        if self._ending and sandbox is not None:
            sandbox.close()
        return await self._to_the_end(self._add(request, sandbox))

    def has(self, number: int) -> bool:
        """Whether endpoint *number* exists."""
        return number in self._tables.endpoints

    async def delete(self, number: int) -> None:
        """Take an endpoint away: nothing of it is left, whatever has become of its namespace."""
        await self._to_the_end(self._delete(number))

    async def set_audit(self, number: int, audit: bool | None) -> None:
        """
        Have what an endpoint's policies would drop let through and told of, or not; None: as the node has it.

        RequestRefused when there is no such endpoint, or packets are not treated so in time.
        """
        await self._to_the_end(self._set_audit(number, audit))

    async def faults(self, endpoint: EndpointSpec, sandbox: Sandbox) -> tuple[str, ...]:
        """
        What of an endpoint's address and devices is not as it was made; *sandbox* is closed.

        RequestRefused when that cannot be told.
        """
        if self._ending:
            sandbox.close()
        return await self._to_the_end(self._faults(endpoint, sandbox))

    async def delete_leftovers(self, name: str | None = None, *, keep: Collection[str] = ()) -> None:
        """
        Take away devices that no endpoint has: an agent died while it made or removed one.

        The one called *name*, or all but those called as *keep* says and those of pods made by hand.
        """
        await self._to_the_end(self._delete_leftovers(name, keep))

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
        await self._reaper.stop(END_SECONDS)

    async def restore(self, found: list[EndpointSpec]) -> None:
        """Take over the endpoints of an earlier agent whose devices still exist; drop the others."""
        for endpoint in found:
            if endpoint.pod_key == HEALTH_POD:
                # The process that makes its namespace ends with the agent; its address is kept for the next.
                self._reserve_again(endpoint)
                continue
            link = await self._netlink.call(links.link_by_index, endpoint.ifindex)
            owner = links.endpoint_owner(link.alias) if link is not None else None
            if owner is None or owner.endpoint_id != endpoint.id:
                log.warning(
                    "endpoint.lost", endpoint=endpoint.id, pod=pod_of(endpoint), reason="its device is gone"
                )
                if link is None:
                    await self._attachments.detach(endpoint.ifindex)
                continue
            try:
                self._reserve_again(endpoint)
            except AddressInUse as error:
                log.warning("endpoint.lost", endpoint=endpoint.id, pod=pod_of(endpoint), reason=str(error))
                continue
            self._tables.endpoints.set(endpoint.id, endpoint)
            try:
                await self._attachments.attach(pod_device(endpoint.ifindex, pod_of(endpoint)))
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

    async def _add(self, request: EndpointRequest, sandbox: Sandbox | None) -> EndpointSpec:
        namespace, _, pod = request.pod.partition("/")
        with _refusals():
            held = sandbox
            if held is None:
                six = self._wirer.ipam6 is not None
                held = await self._netlink.call(open_sandbox, request.netns, six)
            try:
                async with self._turns.of((namespace, pod)):
                    for number in self._tables.endpoints_of_pod.get((namespace, pod)):
                        existing = self._tables.endpoints.get(number)
                        if existing is None:
                            continue
                        if sandbox is None or _is_in(existing, request):
                            known = self._same(existing, request)
                            return await self._wirer.correct(known, request, held)
                        log.info("endpoint.sandbox_replaced", endpoint=number, pod=request.pod)
                        await self._wirer.remove(existing)
                    return await self._wirer.create(request, held)
            finally:
                # Behind whatever the thread still does with it.
                await self._netlink.call(close_sandbox, held)

    async def _delete(self, number: int) -> None:
        endpoint = self._tables.endpoints.get(number)
        if endpoint is None:
            return
        async with self._turns.of(endpoint.pod_key):
            if self._tables.endpoints.get(number) is not None:
                await self._wirer.remove(endpoint)

    async def _set_audit(self, number: int, audit: bool | None) -> None:
        endpoint = self._tables.endpoints.get(number)
        if endpoint is None:
            raise RequestRefused(404, f"no endpoint {number}")
        async with self._turns.of(endpoint.pod_key):
            endpoint = self._tables.endpoints.get(number)
            if endpoint is None:
                raise RequestRefused(404, f"no endpoint {number}")
            if endpoint.audit != audit:
                self._tables.endpoints.set(number, replace(endpoint, audit=audit))
                log.info("endpoint.audit_set", endpoint=number, pod=pod_of(endpoint), audit=audit)
            if problem := await self._realized(number):
                raise RequestRefused(500, f"endpoint {number}: {problem}")

    async def _faults(self, endpoint: EndpointSpec, sandbox: Sandbox) -> tuple[str, ...]:
        with _refusals():
            try:
                async with self._turns.of(endpoint.pod_key):
                    return await self._wirer.faults(endpoint, sandbox)
            finally:
                await self._netlink.call(close_sandbox, sandbox)

    async def _delete_leftovers(self, name: str | None, keep: Collection[str]) -> None:
        async with self._turns.of_all():
            with _refusals():
                known = {endpoint.ifindex for endpoint in self._tables.endpoints.values()}
                known |= self._reaper.pending
                for link in await self._netlink.call(links.leftovers, name):
                    owner = links.endpoint_owner(link.alias)
                    by_hand = owner is not None and link.name == links.lxc_name(owner.pod)
                    if link.ifindex not in known and link.name not in keep and not by_hand:
                        log.warning("endpoint.leftover_deleted", device=link.name, alias=link.alias)
                        await self._netlink.call(links.delete_link, link.ifindex)
                        await self._attachments.detach(link.ifindex)

    async def _finish(self) -> None:
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=END_SECONDS)

    async def _device_gone(self, ifindex: int) -> None:
        for endpoint in self._tables.endpoints.values():
            if endpoint.ifindex == ifindex:
                async with self._turns.of(endpoint.pod_key):
                    if self._tables.endpoints.get(endpoint.id) is not None:
                        log.warning("endpoint.device_gone", endpoint=endpoint.id, pod=pod_of(endpoint))
                        await self._wirer.remove(endpoint)

    async def _check_devices(self) -> None:
        async with self._turns.of_all():
            present = await self._netlink.call(links.all_links)
            owners = {link.ifindex: links.endpoint_owner(link.alias) for link in present}
            for endpoint in self._tables.endpoints.values():
                owner = owners.get(endpoint.ifindex)
                if owner is None or owner.endpoint_id != endpoint.id:
                    log.warning("endpoint.device_gone", endpoint=endpoint.id, pod=pod_of(endpoint))
                    await self._wirer.remove(endpoint)

    def _reserve_again(self, endpoint: EndpointSpec) -> None:
        """Keep a restored endpoint's addresses from others; one of another pod CIDR stays what it is."""
        for address in endpoint.addresses:
            pool = self._wirer.pool_of(address)
            if pool is None:
                continue
            try:
                pool.reserve(address, pod_of(endpoint))
            except AddressNotInPool as error:
                log.warning(
                    "endpoint.foreign_address", endpoint=endpoint.id, pod=pod_of(endpoint), reason=str(error)
                )

    def _same(self, endpoint: EndpointSpec, request: EndpointRequest) -> EndpointSpec:
        """The endpoint that *request* asks for again; RequestRefused when it asks for another."""
        if endpoint.netns and endpoint.netns != request.netns:
            where = f"in {endpoint.netns}"
        elif endpoint.netns and endpoint.ifname_in_pod != request.ifname:
            where = f"at device {endpoint.ifname_in_pod}"
        elif request.ip not in {None, endpoint.ipv4}:
            where = f"with address {endpoint.ipv4}"
        elif endpoint.netns:
            return endpoint
        else:
            # Recovered from the kernel, which does not know where the namespace is.
            endpoint = replace(
                endpoint,
                netns=request.netns,
                container_id=request.container_id,
                ifname_in_pod=request.ifname,
            )
            self._tables.endpoints.set(endpoint.id, endpoint)
            return endpoint
        raise RequestRefused(
            409,
            f"pod {request.pod} is endpoint {endpoint.id} {where}; run: ciliumd endpoint del {endpoint.id}",
        )


def _is_in(endpoint: EndpointSpec, request: EndpointRequest) -> bool:
    """Whether the sandbox of *request* is the one *endpoint* is in, as far as anybody remembers."""
    if not endpoint.netns:
        return endpoint.ifname == links.lxc_name(request.container_id)
    return (endpoint.container_id, endpoint.netns) == (request.container_id, request.netns)


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
    except NumbersExhausted as error:
        raise RequestRefused(507, str(error)) from error
    except (NetError, BpfError) as error:
        raise RequestRefused(500, str(error)) from error


def _tell_abandoned(task: asyncio.Task[Any]) -> None:
    """Whoever asked has gone: what became of it is in the log only."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("endpoint.abandoned_change_failed", error=str(error))
