# SPDX-License-Identifier: Apache-2.0
"""Endpoints as container runtimes know them (``cni.server.Endpoints``): by container and device."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor

import structlog
from pydantic import ValidationError

from ciliumd import abi
from ciliumd.bpf.map import Map
from ciliumd.cni.errors import CniError, Code
from ciliumd.cni.request import Attachment, PodName
from ciliumd.cni.result import Attached
from ciliumd.daemon import stages
from ciliumd.daemon.api import EndpointRequest, RequestRefused
from ciliumd.daemon.attachments import FAILURES, Attachments
from ciliumd.daemon.endpoint_wiring import pod_of
from ciliumd.daemon.endpoints import Endpoints
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.net import addr16
from ciliumd.net import links
from ciliumd.net.namespace import Sandbox
from ciliumd.tables.schema import Tables

SETTLE_ROUNDS = 3
"""How often rows are read before one that is not as wanted counts: what is wanted changes meanwhile."""

log = structlog.get_logger("cni")


class RuntimeEndpoints:
    """Answers what a runtime asks for from what the agent has."""

    def __init__(
        self,
        tables: Tables,
        endpoints: Endpoints,
        attachments: Attachments,
        missing_rows: Callable[[EndpointSpec], Awaitable[list[str]]],
    ) -> None:
        """*missing_rows* names the rows of an endpoint that the kernel's maps do not hold."""
        self._tables = tables
        self._endpoints = endpoints
        self._attachments = attachments
        self._missing_rows = missing_rows

    async def attach(self, attachment: Attachment, pod: PodName, sandbox: Sandbox) -> Attached:
        """Make the sandbox the pod."""
        try:
            request = EndpointRequest.model_validate(
                {
                    "netns": sandbox.path,
                    "pod": str(pod),
                    "ifname": attachment.ifname,
                    "container_id": attachment.container_id,
                }
            )
        except ValidationError as error:
            sandbox.close()
            raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_ARGS: {pod} cannot be a pod") from error
        try:
            return self._attached(await self._endpoints.add(request, sandbox))
        except RequestRefused as error:
            raise _refusal(error, Code.ADD_FAILED) from error

    async def detach(self, attachment: Attachment) -> None:
        """Take it away."""
        endpoint = self._endpoint(attachment)
        try:
            if endpoint is not None:
                await self._endpoints.delete(endpoint.id)
            else:
                await self._endpoints.delete_leftovers(links.lxc_name(attachment.container_id))
        except RequestRefused as error:
            raise _refusal(error, Code.DEL_FAILED) from error

    def attached(self, attachment: Attachment) -> Attached | None:
        """What was made."""
        endpoint = self._endpoint(attachment)
        return None if endpoint is None else self._attached(endpoint)

    async def faults(self, attachment: Attachment, sandbox: Sandbox) -> list[str]:
        """Devices, address, routes, programs and rows that are not as they were made."""
        endpoint = self._endpoint(attachment)
        if endpoint is None:
            sandbox.close()
            return ["the pod was deleted"]
        try:
            found = list(await self._endpoints.faults(endpoint, sandbox))
            found += [
                f"{one.text} is detached" for one in await self._attachments.missing_on(endpoint.ifindex)
            ]
            return found + await self._missing_rows(endpoint)
        except (RequestRefused, *FAILURES) as error:
            raise CniError(Code.CHECK_FAILED, str(error)) from error

    async def keep_only(self, valid: frozenset[Attachment]) -> None:
        """Take away what runtimes made and do not know any more."""
        names = {links.lxc_name(attachment.container_id) for attachment in valid}
        try:
            for endpoint in self._tables.endpoints.values():
                if _is_orphan(endpoint, valid, names):
                    log.info("cni.orphan", endpoint=endpoint.id, pod=pod_of(endpoint))
                    await self._endpoints.delete(endpoint.id)
            await self._endpoints.delete_leftovers(keep=names)
        except RequestRefused as error:
            raise _refusal(error, Code.DEL_FAILED) from error

    def _endpoint(self, attachment: Attachment) -> EndpointSpec | None:
        """Whose it is, if anybody's."""
        name = links.lxc_name(attachment.container_id)
        for endpoint in self._tables.endpoints.values():
            # Recovered from the kernel, one has nothing but the name of its device.
            if _attachment(endpoint) == attachment or (not endpoint.netns and endpoint.ifname == name):
                return endpoint
        return None

    def _attached(self, endpoint: EndpointSpec) -> Attached:
        network = self._endpoints.network
        address = endpoint.ipv4 if network.router is not None else None
        address6 = endpoint.ipv6 if network.router6 is not None else None
        if address is None and address6 is None:
            raise CniError(
                Code.INTERNAL,
                f"endpoint {endpoint.id} has no address of a family that pods of this node have",
            )
        return Attached(
            host_ifname=endpoint.ifname,
            host_mac=endpoint.node_mac,
            ifname=endpoint.ifname_in_pod,
            mac=endpoint.mac,
            sandbox=endpoint.netns,
            address=address,
            router=network.router,
            address6=address6,
            router6=network.router6,
            mtu=network.mtu,
            route_mtu=network.route_mtu or network.mtu,
        )


class LiveRows:
    """The rows of endpoints as the kernel's maps hold them now, not as they were written."""

    def __init__(
        self,
        desired: Callable[[str], Mapping[bytes, bytes]],
        maps: Mapping[str, Map],
        *,
        settle: Callable[[], Awaitable[object]],
        executor: Executor,
    ) -> None:
        """
        *desired* answers the wanted rows of a stage; maps are read in the *executor*.

        *settle* returns when all that is wanted has been written once.
        """
        self._desired = desired
        self._maps = maps
        self._settle = settle
        self._executor = executor

    async def missing(self, endpoint: EndpointSpec) -> list[str]:
        """What packets of the endpoint do not find.  Raises BpfError."""
        for _ in range(SETTLE_ROUNDS):
            await self._settle()
            missing = await self._missing(endpoint)
            if not missing:
                break
        return missing

    async def _missing(self, endpoint: EndpointSpec) -> list[str]:
        wanted = [(name, key, self._desired(name).get(key)) for name, key in endpoint_keys(endpoint)]
        loop = asyncio.get_running_loop()
        held = await loop.run_in_executor(
            self._executor, lambda: [self._maps[name].lookup(key) for name, key, _ in wanted]
        )
        return [
            f"row {key.hex()} of {name} is {'missing' if found is None else 'another'}"
            for (name, key, row), found in zip(wanted, held, strict=True)
            if row is None or found != row
        ]


def endpoint_keys(endpoint: EndpointSpec) -> list[tuple[str, bytes]]:
    """Stage and key of every row an endpoint has in a map of its own name."""
    slot = endpoint.slot.to_bytes(4, "little")
    addresses = [addr16(address) for address in endpoint.addresses]
    return [
        (stages.FACTS, slot),
        (stages.STATES, slot),
        (stages.IFINDEX, endpoint.ifindex.to_bytes(4, "little")),
        *((stages.LXC, abi.LxcKey(address).pack()) for address in addresses),
        *((stages.IPCACHE, abi.IpcacheKey(address, 0).pack()) for address in addresses),
    ]


def _attachment(endpoint: EndpointSpec) -> Attachment:
    return Attachment(endpoint.container_id, endpoint.ifname_in_pod)


def _is_orphan(endpoint: EndpointSpec, valid: frozenset[Attachment], names: set[str]) -> bool:
    """Whether a runtime made it and does not know it any more; *names* are the valid devices'."""
    if endpoint.container_id:
        return _attachment(endpoint) not in valid
    # Neither the node's own nor one made by hand: those are called after their pod.
    by_hand = not endpoint.namespace or endpoint.ifname == links.lxc_name(pod_of(endpoint))
    return not by_hand and endpoint.ifname not in names


def _refusal(error: RequestRefused, code: Code) -> CniError:
    """A refusal in CNI's words; an agent that is ending will be back."""
    return CniError(Code.TRY_AGAIN_LATER if error.status == 503 else code, str(error))
