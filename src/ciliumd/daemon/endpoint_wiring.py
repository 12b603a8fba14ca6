# SPDX-License-Identifier: Apache-2.0
"""
Making one endpoint and taking it away, step by step; who may do so and when is in ``endpoints``.

Order of birth: address, veth pair (down), row in the table, programs attached and all of its rows in the
maps, and only then the pair comes up.  A pod's first packet never precedes its policy.  Whatever
fails on the way is undone.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import structlog

from ciliumd.daemon.api import EndpointRequest
from ciliumd.daemon.attachments import FAILURES, Attachments, pod_device
from ciliumd.daemon.endpoint_numbers import EndpointNumbers
from ciliumd.daemon.reaper import Reaper
from ciliumd.ipam.hostscope import HostScope, IpamError
from ciliumd.model.endpoint import HEALTH_NAME, EndpointSpec
from ciliumd.model.net import Addr
from ciliumd.net import endpoint as wiring
from ciliumd.net import links
from ciliumd.net.errors import LinkConflict, NetError
from ciliumd.net.namespace import Sandbox
from ciliumd.net.thread import NetlinkThread
from ciliumd.tables.schema import Tables

log = structlog.get_logger("endpoint")


@dataclass(slots=True)
class PodNetwork:
    """
    What every pod of this node is configured with from now on.

    *mtu* is the devices', *route_mtu* what may leave the node (0: the same), both of which follow the
    uplink's; *slots* how many pods fit.  Without *router* pods have no IPv4, without *router6* no IPv6.
    """

    router: IPv4Address | None
    mtu: int
    slots: int
    route_mtu: int = 0
    router6: IPv6Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointWirer:
    """The steps; *next_slot_gen* and *realized* as in ``Endpoints``."""

    tables: Tables
    network: PodNetwork
    numbers: EndpointNumbers
    ipam: HostScope | None
    ipam6: HostScope | None
    netlink: NetlinkThread
    attachments: Attachments
    reaper: Reaper
    next_slot_gen: Callable[[], int]
    realized: Callable[[int], Awaitable[str]]

    async def create(self, request: EndpointRequest, sandbox: Sandbox) -> EndpointSpec:
        """Make the namespace a new pod.  Raises NetError, BpfError, IpamError or NumbersExhausted."""
        await self.reaper.leave(request.netns)
        number, slot = self.numbers.claim()
        try:
            return await self._create(request, sandbox, number, slot)
        finally:
            self.numbers.settle(number)

    async def correct(
        self, endpoint: EndpointSpec, request: EndpointRequest, sandbox: Sandbox
    ) -> EndpointSpec:
        """Correct the wiring of an endpoint that exists; one whose device was broken gets another."""
        wanted = self._wiring(endpoint)
        prepared = await self.netlink.call(wiring.prepare_endpoint, wanted, sandbox)
        if prepared.link.ifindex != endpoint.ifindex:
            # The old pair was broken and has been replaced: same pod, another device, another endpoint.
            log.warning("endpoint.device_replaced", endpoint=endpoint.id, pod=pod_of(endpoint))
            await self.netlink.call(links.delete_link, prepared.link.ifindex)
            await self.remove(endpoint)
            again = {"ip": endpoint.ipv4, "ip6": endpoint.ipv6}
            return await self.create(request.model_copy(update=again), sandbox)
        await self._program(endpoint)
        await self.netlink.call(wiring.connect_endpoint, wanted, sandbox, prepared)
        return endpoint

    async def remove(self, endpoint: EndpointSpec) -> None:
        """
        Take an endpoint away: row, rows, device, programs, address; each as far as it goes.

        The device is down and retired then; deleting it takes the kernel's time, not the caller's.
        """
        self.tables.endpoints.delete(endpoint.id)
        self.numbers.rest(endpoint.slot)
        # Rows first, then the device: a device that moves to another namespace keeps its program.
        await self.realized(endpoint.id)
        self.numbers.rest(endpoint.slot)
        await self._take_down(endpoint.ifindex, endpoint.id, endpoint.netns)
        self._release(endpoint.ipv4, endpoint.ipv6)
        log.info("endpoint.deleted", endpoint=endpoint.id, pod=pod_of(endpoint))

    async def faults(self, endpoint: EndpointSpec, sandbox: Sandbox) -> tuple[str, ...]:
        """What of an endpoint's address and devices is not as it was made."""
        found = await self.netlink.call(
            wiring.wiring_faults, self._wiring(endpoint), sandbox, endpoint.ifindex
        )
        for address in endpoint.addresses:
            pool = self.pool_of(address)
            if pool is None or address not in pool.cidr:
                continue
            holder = pool.owner(address)
            if holder != pod_of(endpoint):
                found += (f"address {address} is reserved for {holder or 'nobody'}",)
        return found

    def pool_of(self, address: Addr) -> HostScope | None:
        """The pool of addresses of its family; None where pods have none."""
        return self.ipam if address.version == 4 else self.ipam6

    async def _create(
        self, request: EndpointRequest, sandbox: Sandbox, number: int, slot: int
    ) -> EndpointSpec:
        address, address6 = self._addresses(request)
        wanted = wiring.EndpointWiring(
            endpoint_id=number,
            pod=request.pod,
            name=_device_name(request),
            address=address,
            router=self.network.router,
            mtu=self.network.mtu,
            route_mtu=self.network.route_mtu,
            ifname=request.ifname,
            mac=links.random_mac(),
            node_mac=links.random_mac(),
            address6=address6,
            router6=self.network.router6,
        )
        ifindex = 0
        try:
            prepared = await self.netlink.call(wiring.prepare_endpoint, wanted, sandbox)
            ifindex = prepared.link.ifindex
            namespace, _, pod = request.pod.partition("/")
            endpoint = EndpointSpec(
                id=number,
                slot=slot,
                slot_gen=self.next_slot_gen(),
                namespace=namespace,
                pod=pod,
                container_id=request.container_id,
                netns=request.netns,
                ifname=prepared.link.name,
                ifindex=ifindex,
                mac=str(wanted.mac),
                node_mac=prepared.link.mac,
                ipv4=address,
                ipv6=address6,
                ifname_in_pod=request.ifname,
                netns_cookie=sandbox.cookie,
            )
            self.tables.endpoints.set(number, endpoint)
            await self._program(endpoint, new=True)
            await self.netlink.call(wiring.connect_endpoint, wanted, sandbox, prepared)
        except BaseException:
            await self._undo(wanted, slot, ifindex)
            raise
        log.info(
            "endpoint.created",
            endpoint=number,
            pod=request.pod,
            **{f"ipv{one.version}": str(one) for one in endpoint.addresses},
            device=endpoint.ifname,
        )
        return endpoint

    def _addresses(self, request: EndpointRequest) -> tuple[IPv4Address | None, IPv6Address | None]:
        """One of each family that pods have; the node's own endpoint has one only, of IPv4 where they do."""
        owner = request.pod
        if self.ipam is None and request.ip is not None:
            raise IpamError(f"{request.ip} cannot be had: pods of this node have no IPv4")
        four = _one_of(self.ipam, request.ip, owner)
        if four is not None and owner == HEALTH_NAME:
            return IPv4Address(four), None
        try:
            six = _one_of(self.ipam6, request.ip6, owner)
        except IpamError:
            self._release(four)
            raise
        return None if four is None else IPv4Address(four), None if six is None else IPv6Address(six)

    def _release(self, *addresses: Addr | None) -> None:
        for address in addresses:
            if address is not None and (pool := self.pool_of(address)) is not None:
                pool.release(address)

    def _wiring(self, endpoint: EndpointSpec) -> wiring.EndpointWiring:
        """What an endpoint that exists is made of."""
        return wiring.EndpointWiring(
            endpoint_id=endpoint.id,
            pod=pod_of(endpoint),
            name=endpoint.ifname,
            address=endpoint.ipv4 if self.network.router is not None else None,
            router=self.network.router,
            mtu=self.network.mtu,
            route_mtu=self.network.route_mtu,
            ifname=endpoint.ifname_in_pod,
            mac=endpoint.mac,
            node_mac=endpoint.node_mac,
            address6=endpoint.ipv6 if self.network.router6 is not None else None,
            router6=self.network.router6,
        )

    async def _program(self, endpoint: EndpointSpec, *, new: bool = False) -> None:
        """
        Attach the programs and wait until every row of the endpoint is in the maps.

        Side by side: neither is seen by a packet before the pair is up.
        """
        name = pod_of(endpoint)
        device = pod_device(endpoint.ifindex, name)
        attaching = asyncio.ensure_future(
            self.attachments.attach_new(device) if new else self.attachments.attach(device)
        )
        try:
            # Asked for here and not in a task: the row's own round is about to begin, and is the one meant.
            problem = await self.realized(endpoint.id)
        finally:
            # Both to their ends, also when one fails: what is undone must not go on.
            await asyncio.wait([attaching])
        await attaching
        if problem:
            raise NetError(f"program pod {name}", str(problem))

    async def _undo(self, wanted: wiring.EndpointWiring, slot: int, ifindex: int) -> None:
        """Take back whatever of an endpoint was made; each step as far as it can be taken."""
        number = wanted.endpoint_id
        if self.tables.endpoints.delete(number):
            self.numbers.rest(slot)
            await self.realized(number)
        if ifindex := ifindex or await self._unheard_of(wanted):
            await self._take_down(ifindex, number, "")
            await self.reaper.leave("")
        self._release(wanted.address, wanted.address6)

    async def _unheard_of(self, wanted: wiring.EndpointWiring) -> int:
        """The device that a call made after its caller was cancelled; 0 if there is none."""
        try:
            link = await self.netlink.call(links.link_by_name, wanted.name)
        except NetError as error:
            log.warning("endpoint.device_left", endpoint=wanted.endpoint_id, reason=str(error))
            return 0
        owner = links.endpoint_owner(link.alias) if link is not None else None
        if link is None or owner is None or owner.endpoint_id != wanted.endpoint_id:
            return 0
        return link.ifindex

    async def _take_down(self, ifindex: int, number: int, netns: str) -> None:
        """Retire the device; its programs go behind it: while it is there its packets meet them."""
        try:
            if await self.netlink.call(links.retire_endpoint_link, ifindex, number):
                self.reaper.take(ifindex, netns=netns)
                return
        except LinkConflict as error:
            log.warning("endpoint.device_left", endpoint=number, reason=str(error))
        except NetError as error:
            log.warning("endpoint.device_left", endpoint=number, reason=str(error))
            return
        try:
            await self.attachments.detach(ifindex)
        except FAILURES as error:
            log.warning("endpoint.programs_left", endpoint=number, reason=str(error))


def _one_of(pool: HostScope | None, wanted: Addr | None, owner: str) -> Addr | None:
    """An address of *pool*, the *wanted* one if there is one; None where there is no pool."""
    if pool is None:
        return None
    return pool.allocate(owner) if wanted is None else pool.reserve(wanted, owner)


def _device_name(request: EndpointRequest) -> str:
    """By its runtime's id, else by its pod; the node's own endpoint has a name people know."""
    if request.pod == HEALTH_NAME:
        return links.HEALTH_LINK
    return links.lxc_name(request.container_id or request.pod)


def pod_of(endpoint: EndpointSpec) -> str:
    """``namespace/name`` of an endpoint's pod."""
    return f"{endpoint.namespace}/{endpoint.pod}"
