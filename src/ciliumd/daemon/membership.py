# SPDX-License-Identifier: Apache-2.0
"""
A node as a member of a cluster: joined before anything is wired, told of and telling as long as the agent.

Joining answers what the node's pods may be addressed with.  From then on objects come from the API server,
and the node publishes itself, its endpoints and label sets that have no number yet.
"""

import os
from collections.abc import Callable, Coroutine, Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any, Self

import structlog

from ciliumd.daemon.health import local_node
from ciliumd.daemon.origin import StartFailed
from ciliumd.daemon.plan import NodePlan
from ciliumd.daemon.settings import Settings
from ciliumd.desired.policy import EndpointRules
from ciliumd.kubernetes import config
from ciliumd.kubernetes.bootstrap import OwnNode, own_node
from ciliumd.kubernetes.claims import IdentityClaims
from ciliumd.kubernetes.client import Api, Observe
from ciliumd.kubernetes.endpoints import EndpointFacts, EndpointPublisher
from ciliumd.kubernetes.events import ProblemEvents
from ciliumd.kubernetes.identities import IdentityAllocator
from ciliumd.kubernetes.lastgood import LastGoodPolicies
from ciliumd.kubernetes.node import NodePublisher, Reachable
from ciliumd.kubernetes.pace import Pace
from ciliumd.kubernetes.source import KubernetesSource, Received
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.identity import NumericIdentity
from ciliumd.resources import parser
from ciliumd.tables.schema import Tables

if TYPE_CHECKING:
    from ciliumd.daemon.agent import Agent

NODE_FILE = "node.json"
POLICIES_FILE = "last-good-policies"

log = structlog.get_logger("agent")


class ClusterOrigin:
    """The cluster this node belongs to (``origin.Origin``)."""

    numbers_identities = False

    def __init__(
        self,
        api: Api,
        settings: Settings,
        tables: Tables,
        *,
        where: config.SingleConfig,
        pace: Pace,
        observe: Observe,
        received: Received,
    ) -> None:
        self.name = settings.node_name or os.uname().nodename
        self.api_server = where.cluster.server
        self._api = api
        self._settings = settings
        self._tables = tables
        self._where = where
        self._pace = pace
        self._observe = observe
        self._received = received
        self._own = OwnNode(self.name, (), ())
        self._publisher = NodePublisher(
            api,
            tables,
            name=self.name,
            mode=settings.ipam,
            pod_cidrs=lambda: self._own.pod_cidrs,
        )

    @classmethod
    async def join(cls, settings: Settings, tables: Tables, *, observe: Observe, received: Received) -> Self:
        """
        Wait until the cluster, or what is remembered of it, tells this node's pod CIDR.

        Raises StartFailed when there is no way to the API server, or the node lacks a pod CIDR it needs.
        """
        try:
            where = config.load(settings.kubeconfig, server=settings.k8s_api_server)
        except config.ConfigInvalid as error:
            raise StartFailed(str(error)) from error
        pace = Pace()
        api = Api(where, pace=pace, observe=observe)
        origin = cls(api, settings, tables, where=where, pace=pace, observe=observe, received=received)
        origin._own = await own_node(
            api,
            origin._publisher,
            name=origin.name,
            mode=settings.ipam,
            memory=settings.state_dir / NODE_FILE,
            ipv6=settings.enable_ipv6,
            waiting=lambda reason: log.debug("agent.waiting", reason=reason),
        )
        named = {"pod_cidr": origin.pod_cidr, "pod_cidr6": origin.pod_cidr6}
        told = {name: str(cidr) for name, cidr in named.items() if cidr is not None}
        log.info("agent.joined", node=origin.name, **told)
        return origin

    @property
    def pod_cidr(self) -> IPv4Network | None:
        """The network of this node's pods, None where they have no IPv4.  Raises StartFailed without one."""
        if not self._settings.enable_ipv4:
            return None
        for prefix in self._own.pod_cidrs:
            if isinstance(prefix, IPv4Network):
                return prefix
        shown = ", ".join(map(str, self._own.pod_cidrs)) or "none"
        raise StartFailed(f"node {self.name} has no IPv4 pod CIDR, but {shown}; enable-ipv4 needs one")

    @property
    def pod_cidr6(self) -> IPv6Network | None:
        """The same of IPv6, None where pods have none.  Raises StartFailed when it is missing."""
        if not self._settings.enable_ipv6:
            return None
        for prefix in self._own.pod_cidrs:
            if isinstance(prefix, IPv6Network):
                return prefix
        shown = ", ".join(map(str, self._own.pod_cidrs)) or "none"
        raise StartFailed(f"node {self.name} has no IPv6 pod CIDR, but {shown}; enable-ipv6 needs one")

    def source(self, tables: Tables) -> KubernetesSource:
        """The watch of the cluster."""
        return KubernetesSource(
            self._where,
            self._api,
            tables,
            node=self.name,
            pace=self._pace,
            observe=self._observe,
            last_good=LastGoodPolicies(self._settings.state_dir / POLICIES_FILE),
            node_changed=self._publisher.node_changed,
            received=self._received,
            parse=parser(node_selectors=self._settings.enable_node_selector_labels),
        )

    def work(self, agent: "Agent") -> Iterable[Coroutine[Any, Any, None]]:
        """Publish the node, its endpoints, new label sets, and what is wrong with services here."""
        source = agent.source
        assert isinstance(source, KubernetesSource)  # noqa: S101  it is the one made above
        numbers = Numbers(
            self._api, self._tables, agent.plan, self._publisher, plan_again=agent.reconciler.trigger
        )
        endpoints = EndpointPublisher(
            self._api,
            self._tables,
            facts=lambda endpoint: _facts(agent, endpoint),
            pod_uid=source.pod_uid,
            node=lambda: local_node(agent).tunnel_endpoint(agent.settings.underlay),
        )
        agent.after_round.append(endpoints.wake)

        def reachable() -> None:
            health = agent.health.address
            self._publisher.reachable(
                Reachable(router=agent.wiring.routers, health=() if health is None else (health,))
            )

        events = ProblemEvents(
            self._api, lambda: {**agent.unserved.problems, **agent.plan.unrealized}, node=self.name
        )
        agent.unserved.changed = agent.plan.on_unrealized = events.wake
        agent.health.address_changed = reachable
        reachable()
        publishers = (self._publisher, numbers.allocator, numbers.claims, endpoints, events)
        return [one.run() for one in publishers]

    async def close(self) -> None:
        """Close the connections."""
        await self._api.aclose()


class Numbers:
    """Numbers of *plan*'s label sets: made if the cluster has none, claimed in the CiliumNode, then used."""

    def __init__(
        self,
        api: Api,
        tables: Tables,
        plan: NodePlan,
        node: NodePublisher,
        *,
        plan_again: Callable[[], None],
    ) -> None:
        self.allocator = IdentityAllocator(api, tables, unallocated=lambda: plan.unallocated)
        self.claims = IdentityClaims(
            api,
            tables,
            wanted=lambda: plan.unclaimed,
            claimed=lambda: node.claimed,
            condemned_changed=plan_again,
        )

        def wanted() -> frozenset[NumericIdentity] | None:
            if not tables.in_sync:
                return None
            return frozenset({*tables.identities.values(), *plan.unclaimed.values()})

        def changed() -> None:
            self.allocator.wake()
            self.claims.wake()
            node.wake()

        plan.condemned = self.claims.condemned
        plan.refused = lambda: self.allocator.refused
        self.allocator.refused_changed = plan_again
        plan.on_unallocated = changed
        node.wanted_claims = wanted
        node.claims_changed = self.claims.wake


def _facts(agent: "Agent", endpoint: EndpointSpec) -> EndpointFacts | None:
    """What there is to tell of an endpoint; None before it has an identity."""
    identity = agent.plan.identities.get(endpoint.id)
    if identity is None:
        return None
    rules = agent.plan.policy.rules.get(endpoint.id)
    # Who is audited drops nothing, as who is under no policy.
    if rules is None or endpoint.is_audited(node=agent.plan.node.audit):
        rules = EndpointRules()
    pod = agent.tables.pods.get(endpoint.pod_key)
    return EndpointFacts(
        identity=identity,
        labels=agent.plan.labels.get(endpoint.id, frozenset()),
        state=agent.endpoint_state(endpoint),
        ingress=rules.ingress_enforced,
        egress=rules.egress_enforced,
        named_ports={} if pod is None else pod.named_ports,
    )
