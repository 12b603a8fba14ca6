# SPDX-License-Identifier: Apache-2.0
"""
What this node's maps must hold, from the tables: the pure core called once per round.

Numbers have memory, so they are rows: whatever needs one gets it here, before rows are computed.
Everything else is a function of the tables as they are now.  Each part is computed again only when
a table it reads has changed.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ciliumd.daemon.addresses import Addresses
from ciliumd.daemon.node_facts import NodeFacts
from ciliumd.daemon.node_identities import NodeIdentities
from ciliumd.daemon.parts import Parts
from ciliumd.daemon.planned import Planned
from ciliumd.daemon.policy_versions import PolicyVersions, Subject, World
from ciliumd.daemon.policy_view import PolicyView
from ciliumd.daemon.prefixes import Prefixes
from ciliumd.daemon.problem_board import ProblemBoard
from ciliumd.daemon.references import References
from ciliumd.daemon.service_plan import ServicePlan, Surroundings, object_of, place_of
from ciliumd.desired import cluster as cluster_stage
from ciliumd.desired import endpoints as endpoint_stage
from ciliumd.desired import identities as identity_stage
from ciliumd.desired.endpoints import EndpointRows
from ciliumd.desired.guard import NO_GUARD, guard
from ciliumd.desired.ipcache import IpcacheRows
from ciliumd.desired.policy import (
    NamedPorts,
    Selected,
    blocks,
    cidrs,
)
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.labels import Labels
from ciliumd.model.net import Addr, Prefix
from ciliumd.model.objects import API_SERVER, INTERNAL_IP
from ciliumd.model.policy import Peer
from ciliumd.model.service import Place
from ciliumd.reconcile.target import Changes
from ciliumd.tables.schema import ObjectKey, Problem, Tables

if TYPE_CHECKING:
    from ciliumd.model.identity import NumericIdentity


class NodePlan:
    """Desired rows of every stage; call :meth:`refresh` first."""

    def __init__(
        self,
        tables: Tables,
        node: NodeFacts,
        *,
        reserve_version: Callable[[int], None],
        next_version: int,
        clock: Callable[[], float],
    ) -> None:
        self.node = node
        self.references = References(tables)
        self.policy = PolicyView(self.references.names)
        self.labels: dict[int, Labels] = {}
        self.identities: dict[int, int] = {}
        self.services = ServicePlan(tables, external_cluster_ip=node.external_cluster_ip)
        self.endpoint_rows = EndpointRows()
        self.state_rows: Mapping[bytes, bytes] = {}
        self.addresses = Addresses(tables)
        self.node_rows: Mapping[bytes, bytes] = {}
        self.remote_routes: tuple[Prefix, ...] = ()
        self.unallocated: Mapping[Labels, int | None] = {}
        self.unclaimed: Mapping[Labels, int] = {}
        self.condemned: Callable[[], frozenset[int]] = frozenset
        self.refused: Callable[[], frozenset[Labels]] = frozenset
        self.on_unallocated: Callable[[], None] = _nobody_asks
        self.unrealized: Mapping[ObjectKey, Problem] = {}
        self.on_unrealized: Callable[[], None] = _nobody_asks
        self.policy_revision = 0
        # As if everything planned were written, for whoever has no maps.
        self.prefixes = Prefixes(lambda prefix: self.ipcache_rows.identity_of(prefix))  # noqa: PLW0108  they are replaced
        self.parts = Parts(tables, lambda addr: self.ipcache_rows.judged_as(addr))  # noqa: PLW0108  the rows are replaced, too
        self.nodes = NodeIdentities(tables, node.node_labels)
        self._tables = tables
        self._clock = clock
        self._policies = PolicyVersions(
            reserve_version=reserve_version, next_version=next_version, enforcement=node.enforcement
        )
        self._policy_rounds = 0
        self._guard = NO_GUARD
        self._named: dict[Prefix, NumericIdentity] = {}
        self._blocks: frozenset[Prefix] = frozenset()
        self._unnumbered: dict[Prefix, NumericIdentity] = {}
        self._numberless: frozenset[Labels] = frozenset()
        self._shut: frozenset[int] = frozenset()
        self._remote_pods: frozenset[Prefix] = frozenset()
        self._known: tuple[tuple[object, ...], dict[int, Labels]] | None = None
        self._planned = Planned(tables)
        self._plan = self._planned.plan
        self._problems = ProblemBoard(tables.problems)

    def restore_versions(self, rows: Mapping[bytes, bytes], *, versions: Mapping[int, int]) -> None:
        """Start from the policy versions the kernel holds, as flat rows, and those by endpoint id."""
        self._policies.restore(rows, versions)
        self.prefixes.restore(self._tables.prefixes.view())

    def set_addresses(self, addresses: tuple[Addr, ...], node_port_addresses: tuple[Addr, ...]) -> None:
        """The node's own addresses may have changed."""
        self.node = replace(self.node, addresses=addresses, node_port_addresses=node_port_addresses)

    @property
    def policy_rows(self) -> dict[bytes, bytes]:
        """The flat rows of every policy version."""
        return self._policies.rows

    def policy_changes(self) -> Changes:
        """How :attr:`policy_rows` changed since this was last asked."""
        return self._policies.take_changes()

    @property
    def ipcache_rows(self) -> IpcacheRows:
        """The rows of addresses and prefixes."""
        return self.addresses.rows

    @property
    def internal_addresses(self) -> tuple[Addr, ...]:
        """Those by which the cluster knows this node."""
        here = self._tables.nodes.get(self.node.name)
        return here.addresses_of(INTERNAL_IP) if here else ()

    @property
    def pod_networks(self) -> frozenset[Prefix]:
        """Where the pods of the cluster are."""
        others = (cidr for node in self._tables.nodes.values() for cidr in node.pod_cidrs)
        return frozenset((*self.node.pod_cidrs, *others))

    @property
    def known_identities(self) -> Mapping[int, Labels]:
        """Every identity of the node by number."""
        tables = self._tables
        read = (tables.identities, tables.prefixes, tables.cluster_identities, tables.parts)
        revisions = (*(table.revision for table in read), self.nodes.revision, self._remote_pods)
        if self._known is None or self._known[0] != revisions:
            known = identity_stage.known_identities(
                tables.identities.view(),
                tables.prefixes.view(),
                tables.cluster_identities.view(),
                self.nodes.labels,
                self._remote_pods,
            )
            known.update(self.parts.known(known))
            self._known = (revisions, known)
        return self._known[1]

    def refresh(self) -> None:
        """
        Bring every row up to date with the tables.

        Nothing is planned before every source has told all it has: half of the policies would be
        other policies, and use up version numbers.  What fails is planned again next time.
        """
        if not self._tables.in_sync:
            return
        self._plan(
            "networks", lambda: self.references.set_pods(self.pod_networks), "nodes", extra=(self.node,)
        )
        self.references.refresh()
        news = self.references.revision, self.references.missing
        self._plan("references", self._take_references, extra=news)
        self._plan(
            "identities",
            self._assign_identities,
            *("endpoints", "pods", "namespaces", "identities", "cluster_identities"),
            extra=(self.condemned(), self.refused()),
        )
        self._plan("CIDRs", self._assign_prefixes, "prefixes", extra=(self.references.revision,))
        api_servers = cluster_stage.api_server_addresses(self._tables.slices_behind(API_SERVER))
        self._plan(
            "nodes",
            lambda: self._assign_nodes(api_servers),
            *("nodes", "node_identities"),
            extra=(self.node.name, api_servers),
        )
        self._plan(
            "beyond",
            lambda: self._plan_beyond(api_servers),
            *("nodes", "node_identities"),
            extra=(self.node, api_servers),
        )
        self.addresses.pods.refresh()
        self.prefixes.look(self._named, self.addresses.beyond.prefixes, self._unnumbered)
        self.parts.look(
            self._blocks,
            lambda: self.addresses.of_pods(self._tables.endpoints.values(), self.identities),
            of=(*self.addresses.remote, self._tables.endpoints.revision, self.identities),
        )
        self._plan(
            "policy",
            self._plan_policies,
            *("endpoints", "pods", "namespaces", "identities", "prefixes"),
            *("cluster_identities", "parts"),
            extra=(
                self.references.revision,
                self.addresses.pods.ports_revision,
                self.nodes.revision,
                self.prefixes.awaited,
                self.prefixes.stand_ins,
                self.parts.awaited,
                self.parts.stand_ins,
                self._remote_pods,
                self._shut,
                self._numberless,
            ),
        )
        self._policies.retire(self._clock())
        self.prefixes.settle(self._tables.prefixes.view(), self._policies)
        self.parts.settle(self._policies)
        complete = endpoint_stage.complete_of(
            self._tables.endpoints.values(), self.identities, self.policy.versions
        )
        self._plan(
            "rows",
            lambda: self._plan_endpoints(complete),
            extra=(self.node, self.identities, complete, self.parts.judged),
        )
        self._plan(
            "owners",
            lambda: self.addresses.gather(
                self._tables.endpoints.values(),
                self.identities,
                host_addresses=self.node.addresses,
                prefixes=self.prefixes.carried,
            ),
            "endpoints",
            extra=(self.node, self.identities, self.addresses.beyond, self.prefixes.carried),
        )
        self._plan(
            "ipcache",
            lambda: self.addresses.write(self.parts.judged),
            extra=(self.addresses.owners, self.addresses.pods.revision, self.parts.judged),
        )
        self._plan("words", lambda: self._plan_words(complete), extra=(complete, self._policy_rounds))
        self._plan(
            "guard",
            lambda: self._plan_guard(api_servers),
            "nodes",
            extra=(self.node, api_servers),
        )
        here = place_of(self.node.name, self._tables.nodes.get(self.node.name))
        self._plan(
            "services",
            lambda: self._plan_services(here),
            *("services", "slices", "pods", "endpoints", "service_ids", "backend_ids"),
            extra=(self.node, self._guard, here),
        )
        self._problems.tell()

    def unfinished(self) -> bool:
        """Whether another round now would do more than the last one."""
        # Both are asked: each says so once.
        return self.prefixes.unfinished() | self.parts.unfinished()

    def require(self, part: str) -> None:
        """Raises NotPlanned while rows of *part* are empty because they could not be computed."""
        self._planned.require(part)

    def named_ports_of(self, endpoint: EndpointSpec) -> NamedPorts:
        """Named ports of the pod of *endpoint*."""
        return identity_stage.named_ports_of_pod(self._tables.pods.get(endpoint.pod_key))

    def audited(self) -> frozenset[int]:
        """Endpoints whose policies drop nothing, and only tell what they would."""
        return frozenset(
            number for number, one in self._tables.endpoints.items() if one.is_audited(node=self.node.audit)
        )

    def selectors(self) -> dict[Peer, Selected]:
        """The peers of the rules that endpoints are under, and whom each selects."""
        return self._policies.selectors()

    def fullest(self) -> dict[str, int]:
        """Of each map of a policy version the most rows that any takes, or would take."""
        return self._policies.fullest()

    def next_retirement(self) -> float | None:
        """When an unused policy version may go; None when there is none."""
        return self._policies.next_retirement()

    def _take_references(self) -> None:
        self._blocks = frozenset(blocks(self.references.policies.values()))
        self._problems.found("policy", self.references.problems())

    # ---- identities ------------------------------------------------------------------------

    def _assign_identities(self) -> None:
        tables = self._tables
        pods, namespaces = tables.pods.view(), tables.namespaces.view()
        relevant = self.node.label_filter.keep
        labels = {
            number: relevant(
                identity_stage.endpoint_labels(endpoint, pods, namespaces, cluster=self.node.cluster)
            )
            for number, endpoint in tables.endpoints.items()
        }
        # An endpoint whose labels change goes on under those it had until the new ones have a number.
        before = {
            number: old
            for number, old in self.labels.items()
            if old in tables.identities and number in labels and self._number_of(labels[number]) is None
        }
        self._number(identity_stage.wanted_identities([*labels.values(), *before.values()]))
        self.labels = {number: self._shown(new, before.get(number)) for number, new in labels.items()}
        # Unless none is left: it would be let in for what it is no more.
        self._shut = frozenset(number for number in before if labels[number] in self._numberless)
        self.identities = identity_stage.endpoint_identities(self.labels, tables.identities.view())

    def _assign_prefixes(self) -> None:
        tables = self._tables
        named = cidrs(self.references.policies.values())
        prefixes = identity_stage.allocate_prefixes(tables.prefixes.view(), named)
        for prefix, number in prefixes.assigned.items():
            tables.prefixes.set(prefix, number)
        numbers = tables.prefixes.view()
        self._named = {prefix: numbers[prefix] for prefix in named if prefix in numbers}
        self._unnumbered = identity_stage.unnumbered_prefixes(self._unnumbered, prefixes.refused)
        self._problems.found(
            "CIDR",
            {
                ("CIDR", "", str(prefix)): Problem("", "no identity is left: what is around it is as closed")
                for prefix in prefixes.refused
            },
        )

    def _number(self, wanted: set[Labels]) -> None:
        """Give the *wanted* label sets their numbers: the cluster's, or else new ones of our own."""
        tables, cluster = self._tables, self._tables.cluster_identities.view()
        existing = tables.identities.view()
        adoption = identity_stage.adopt_identities(existing, cluster, wanted, self.condemned())
        if self.node.allocates:
            for labels in identity_stage.found_again(existing, cluster):
                tables.identities.delete(labels)
            for labels, number in adoption.numbers.items():
                tables.identities.set(labels, number)
            new = wanted - tables.identities.view().keys()
            taken = {labels: number for number, labels in cluster.items()} if new else {}
            allocation = identity_stage.allocate_identities({**tables.identities.view(), **taken}, new)
            for labels, number in allocation.assigned.items():
                tables.identities.set(labels, number)
            self._numberless = frozenset(allocation.refused)
            return
        self._numberless = self.refused().intersection(adoption.missing)
        # Who takes a number up sets the row, once it is claimed: until then it may be deleted.
        unclaimed = {
            labels: number for labels, number in adoption.numbers.items() if existing.get(labels) != number
        }
        for labels in existing.keys() - (adoption.numbers.keys() - unclaimed.keys()):
            tables.identities.delete(labels)
        if (self.unallocated, self.unclaimed) != (adoption.missing, unclaimed):
            self.unallocated, self.unclaimed = adoption.missing, unclaimed
            self.on_unallocated()

    def _shown(self, new: Labels, before: Labels | None) -> Labels:
        """The *new* labels of an endpoint, or those *before* as long as only they have a number."""
        if before is None or self._number_of(new) is not None or self._number_of(before) is None:
            return new
        return before

    def _number_of(self, labels: Labels) -> int | None:
        return identity_stage.identity_of(labels, self._tables.identities.view())

    def _assign_nodes(self, api_servers: frozenset[Addr]) -> None:
        tells_apart = self.node.node_labels is not None
        holders = self._neighbours().holders(api_servers) if tells_apart else {}
        self.nodes.assign(holders, this=self.node.name)
        self._problems.found("CiliumNode", self.nodes.problems())

    def _neighbours(self) -> cluster_stage.Neighbours:
        return cluster_stage.Neighbours(
            self._tables.nodes.values(),
            this=self.node.name,
            tunnel=self.node.tunnel,
            underlay=self.node.underlay,
        )

    # ---- policy ----------------------------------------------------------------------------

    def _plan_policies(self) -> None:
        tables = self._tables
        pods = tables.pods.view()
        subjects = {
            number: Subject(
                self.labels[number],
                identity_stage.named_ports_of_pod(pods.get(endpoint.pod_key)),
                shut=number in self._shut,
            )
            for number, endpoint in tables.endpoints.items()
            if number in self.identities
        }
        named_ports = identity_stage.named_ports_by_identity(
            tables.endpoints.values(), pods, self.identities, self.addresses.pods.named_ports
        )
        known = self.known_identities
        if self._unnumbered:
            known = {**known, **identity_stage.labels_of_prefixes(self._unnumbered, self._remote_pods)}
        world = World(
            known,
            named_ports | self.parts.named_ports(named_ports),
            self.prefixes.awaited | self.parts.awaited,
            {**self.prefixes.stand_ins, **self.parts.stand_ins},
            self.prefixes.unseen | self.parts.unseen,
        )
        self._policies.update(self.references.policies, subjects, world, now=self._clock())
        self.policy.world = world
        self.policy.rules = self._policies.rules
        self.policy.versions = self._policies.versions
        self.policy.states = self._policies.states
        self.policy.waiting = self._policies.waiting
        self.policy_revision = tables.policies.revision + 1
        self._policy_rounds += 1
        self._tell_unrealized(dict(self._endpoint_problems()))
        self._problems.found("ipcache", self.parts.problems() | self.prefixes.problems())

    def _endpoint_problems(self) -> Iterator[tuple[ObjectKey, Problem]]:
        """Endpoints that are not under the policies as written."""
        for number, endpoint in self._tables.endpoints.items():
            key = ("Endpoint", *endpoint.pod_key)
            if number in self._shut or self.labels[number] in self._numberless:
                yield key, Problem("identity", "no identity is left for its labels: nothing passes")
            elif number in self._policies.problems:
                yield key, Problem("policy", self._policies.problems[number])

    def _tell_unrealized(self, found: Mapping[ObjectKey, Problem]) -> None:
        self._problems.found("Endpoint", found)
        if found != self.unrealized:
            self.unrealized = found
            self.on_unrealized()

    # ---- endpoints, ipcache, services --------------------------------------------------------

    def _plan_beyond(self, api_servers: frozenset[Addr]) -> None:
        tables = self._tables
        neighbours = self._neighbours()
        self.addresses.look_beyond(neighbours, api_servers=api_servers, nodes=self.nodes.numbers)
        # Replaced only by another one: identities are known by it.
        if self._remote_pods != (networks := frozenset(self.addresses.beyond.prefixes)):
            self._remote_pods = networks
        self.node_rows = cluster_stage.node_rows(tables.nodes.values(), underlay=self.node.underlay)
        self.remote_routes = neighbours.routes(families=self.node.families)

    def _plan_endpoints(self, complete: Collection[EndpointSpec]) -> None:
        self.endpoint_rows = endpoint_stage.endpoint_rows(
            complete,
            self.identities,
            host_addresses=self.node.addresses,
            audited=self.audited(),
            answers_denied=self.node.answers_denied,
            judged=self.parts.judged,
        )

    def _plan_words(self, complete: Collection[EndpointSpec]) -> None:
        self.state_rows = endpoint_stage.state_rows(complete, self.policy.versions)

    def _plan_guard(self, api_servers: frozenset[Addr]) -> None:
        node = self.node
        self._guard = guard(
            self._tables.nodes.values(),
            protected=(
                *((addr, "an address of the API server") for addr in api_servers),
                *((addr, "an address of this node") for addr in node.addresses),
                *node.protected,
            ),
            pods=node.pod_cidrs,
            allowed=node.allowed,
        )

    def _plan_services(self, here: Place) -> None:
        node = self.node
        self.services.refresh(
            Surroundings(
                node.node_port_addresses,
                node.serves,
                node.serves6,
                here=here,
                guard=self._guard,
                proxy=node.proxy,
            )
        )
        problems = self.services.problems()
        self._problems.found(
            "Service", {object_of(service): Problem(*found) for service, found in problems.items()}
        )

    def report(self, part: str, problems: Mapping[ObjectKey, Problem]) -> None:
        """Problems that others found, between two plans, instead of those of this *part* before."""
        self._problems.found(part, problems)
        self._problems.tell()


def _nobody_asks() -> None:
    """Until somebody waits for label sets without a number."""
