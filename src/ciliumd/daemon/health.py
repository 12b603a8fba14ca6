# SPDX-License-Identifier: Apache-2.0
"""The agent's side of ``health``: its endpoint is made like a pod's, its nodes are the tables'."""

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from ciliumd.daemon.api import EndpointRequest, RequestRefused
from ciliumd.health.daemon import HealthDaemon, HealthOptions
from ciliumd.health.endpoint import Refused
from ciliumd.model.endpoint import HEALTH_NAME, EndpointSpec
from ciliumd.model.objects import INTERNAL_IP, NodeRow
from ciliumd.net.namespace import Sandbox

if TYPE_CHECKING:
    from ciliumd.daemon.agent import Agent
    from ciliumd.daemon.endpoints import Endpoints
    from ciliumd.ipam.hostscope import HostScope


class HealthEndpoints:
    """``health.endpoint.EndpointOwner``: the health endpoint among those of pods."""

    def __init__(self, endpoints: "Endpoints", pool: "HostScope") -> None:
        """An address of *pool* reserved for the endpoint of an earlier agent is taken over."""
        self._endpoints = endpoints
        held = (address for address, owner in pool.owners().items() if owner == HEALTH_NAME)
        self._address = next(held, None)

    async def add_health(self, sandbox: Sandbox) -> EndpointSpec:
        """The endpoint, with its address of before unless a pod has it.  Raises Refused."""
        # No pod may be called like this, so none can ask for it.
        request = EndpointRequest.model_construct(
            netns=sandbox.path,
            pod=HEALTH_NAME,
            ip=self._address if isinstance(self._address, IPv4Address) else None,
            ip6=self._address if isinstance(self._address, IPv6Address) else None,
            ifname="eth0",
            container_id="",
        )
        try:
            endpoint = await self._endpoints.add(request, sandbox)
        except RequestRefused as error:
            self._address = None
            raise Refused(str(error)) from error
        self._address = next(iter(endpoint.addresses), None)
        return endpoint

    def has(self, number: int) -> bool:
        """Whether it exists."""
        return self._endpoints.has(number)


def local_node(agent: "Agent") -> NodeRow:
    """The row of this node: as it is published, else as its native devices show it."""
    published = agent.tables.nodes.get(agent.plan.node.name)
    if published is not None and published.addresses_of(INTERNAL_IP):
        return published
    own = [address for device in agent.native for address in device.addresses]
    first = {one.version: one for one in reversed(own)}
    pod_cidrs = tuple(pool.cidr for pool in agent.pools)
    # One that speaks none of its pods' families is still somewhere.
    shown = [first[cidr.version] for cidr in pod_cidrs if cidr.version in first] or own[:1]
    addresses = tuple((INTERNAL_IP, address) for address in shown)
    return NodeRow(agent.plan.node.name, agent.plan.node.cluster, addresses, pod_cidrs=pod_cidrs)


def cluster_nodes(agent: "Agent") -> list[NodeRow]:
    """Every node of the cluster, this one whether or not it is published."""
    local = local_node(agent)
    return [local, *(node for node in agent.tables.nodes.values() if node.name != local.name)]


def build_health(agent: "Agent") -> HealthDaemon:
    """The health daemon as the settings want it; in a running loop."""
    settings = agent.settings
    pool = agent.pools[0]
    return HealthDaemon(
        HealthOptions(
            port=settings.cluster_health_port,
            interval=settings.health_check_interval,
            nodes=settings.enable_health_checking,
            endpoints=settings.enable_endpoint_health_checking,
            procfs=settings.procfs,
            family=pool.cidr.version,
        ),
        nodes=agent.tables.nodes.values,
        local=lambda: local_node(agent),
        owner=HealthEndpoints(agent.endpoints_owner, pool),
    )
