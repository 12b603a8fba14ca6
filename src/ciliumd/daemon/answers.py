# SPDX-License-Identifier: Apache-2.0
"""What the agent answers when asked (see ``api``): every value is read from its owner at that time."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import structlog

from ciliumd import __version__, abi
from ciliumd.daemon import event_kinds, health, stages, status, status_models, views
from ciliumd.daemon.agent import Agent
from ciliumd.daemon.api import ENABLED, EndpointOptions, EndpointRequest, RequestRefused
from ciliumd.daemon.proposal import (
    Difference,
    Node,
    Proposal,
    ProposalError,
    copied,
    difference,
    propose,
)
from ciliumd.daemon.suggestion import Side, suggestion
from ciliumd.desired.lbrows import backends_in_rows, service_model
from ciliumd.desired.policy import PROTOCOL_NUMBERS, Explanation, NamedPorts, Party, Subject, cookies, explain
from ciliumd.flows import maprows
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.identity import Reserved
from ciliumd.model.net import Addr, first_of
from ciliumd.model.policy import Direction
from ciliumd.resources import parser

Json = dict[str, Any]

log = structlog.get_logger("agent")

FLUSHABLE = frozenset({"cilium_ct_v1", "cilium_snat_v1"})


class Answers:
    """``api.Backend`` over a running agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.ring = agent.ring

    def metrics(self) -> list[Json]:
        """Every sample."""
        return self._agent.metrics()

    def endpoints(self) -> list[Json]:
        """Every endpoint."""
        return [
            self._endpoint_model(one)
            for one in sorted(self._agent.tables.endpoints.values(), key=lambda e: e.id)
        ]

    def _endpoint_model(self, endpoint: EndpointSpec) -> Json:
        policy = self._agent.plan.policy
        current = self._agent.plan.policy_revision if self._agent.endpoint_ready(endpoint) else 0
        return views.endpoint_model(
            endpoint,
            state=self._agent.endpoint_state(endpoint),
            identity=self._agent.plan.identities.get(endpoint.id),
            labels=self._agent.plan.labels.get(endpoint.id, frozenset()),
            rules=policy.rules.get(endpoint.id),
            version=policy.versions.get(endpoint.id),
            revision=current,
            audit=endpoint.is_audited(node=self._agent.plan.node.audit),
        )

    async def add_endpoint(self, request: EndpointRequest) -> Json:
        """Make a pod."""
        return self._endpoint_model(await self._agent.endpoints_owner.add(request))

    async def delete_endpoint(self, number: int) -> None:
        """Take a pod away."""
        await self._agent.endpoints_owner.delete(number)

    async def configure_endpoint(self, number: int, options: EndpointOptions) -> None:
        """Set options of an endpoint: what is as on the node follows the node from now on."""
        if options.audit is not None:
            wanted = options.audit == ENABLED
            node = self._agent.plan.node.audit
            await self._agent.endpoints_owner.set_audit(number, None if wanted == node else wanted)

    def endpoint_number(self, key: str) -> int | None:
        """Endpoint id by number or ``pod:namespace/name``."""
        if key.startswith("pod:"):
            namespace, _, pod = key.removeprefix("pod:").partition("/")
            numbers = self._agent.tables.endpoints_of_pod.get((namespace, pod))
            return numbers[0] if numbers else None
        if key.isdecimal() and int(key) in self._agent.tables.endpoints:
            return int(key)
        return None

    def identities(self) -> list[Json]:
        """Every identity."""
        return views.identity_models(self._agent.plan.known_identities)

    async def services(self) -> list[Json]:
        """Every service, its realized side read from the live maps."""

        def read() -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
            return dict(self._agent.map(stages.SERVICES).items()), dict(
                self._agent.map(stages.BACKENDS).items()
            )

        services, backends = await self._agent.in_writer(read)
        ids = self._agent.tables.service_ids
        return [
            service_model(
                one,
                ids.get(one.frontend.key) or 0,
                realized=backends_in_rows(one.frontend.key, services, backends),
            )
            for one in self._agent.plan.services.served
        ]

    def policy(self) -> Json:
        """Policies in force and refused."""
        return views.policy_answer(
            self._agent.plan.references.policies.values(),
            self._agent.tables.problems.view(),
            revision=self._agent.plan.policy_revision,
            cookies=self._agent.plan.policy.cookies,
        )

    def selectors(self) -> list[Json]:
        """Every peer of the rules in force."""
        return views.selector_models(self._agent.plan.selectors())

    def explain(self, source: str, destination: str, dport: str) -> Json:
        """Whether traffic passes, and why."""
        number, _, protocol = dport.partition("/")
        protocol = (protocol or "TCP").upper()
        is_port = number.isdecimal() and int(number) < 1 << 16
        if not is_port or protocol not in {"TCP", "UDP", "SCTP", "ICMP", "ICMPV6"}:
            raise RequestRefused(400, f"{dport!r} is no port; write 80/TCP")
        policy = self._agent.plan.policy
        policies = self._agent.plan.references.policies
        sides = self._by_address(self._side(source), self._side(destination))
        found = explain(
            policies.values(),
            source=sides[0].party,
            destination=sides[1].party,
            protocol=protocol,
            port=int(number),
            enforcement=self._agent.plan.node.enforcement,
            states={
                rules: policy.states[policy.versions[one]]
                for one, rules in policy.rules.items()
                if one in policy.versions
            },
        )
        suggested = suggestion(
            found, *sides, policies=policies, enforcement=self._agent.plan.node.enforcement
        )
        audited = self._agent.plan.audited()
        answer = views.explanation(
            found,
            suggested,
            source=source,
            destination=destination,
            audited=[side.text for side in sides if side.endpoint in audited],
        )
        for direction, counter in zip(answer["directions"], self._counters(found, *sides), strict=True):
            direction["counter"] = counter
        return {**answer, "events-lost": self._agent.ring.stats().lost}

    async def policy_diff(self, documents: list[Any], delete: list[str]) -> Json:
        """Which recorded flows would fare otherwise with other policies; nothing comes into force."""
        plan = self._agent.plan
        node = Node(
            endpoints={
                address: number
                for number, endpoint in self._agent.tables.endpoints.items()
                for address in endpoint.addresses
            },
            subjects={
                number: Subject(plan.labels[number], plan.named_ports_of(endpoint))
                for number, endpoint in self._agent.tables.endpoints.items()
                if number in plan.identities and number in plan.labels
            },
            identities=plan.identities,
            world=plan.policy.world,
            enforcement=plan.node.enforcement,
        )
        tables, flows, before = (
            copied(self._agent.tables),
            self._agent.ring.recorded(),
            plan.references.policies,
        )

        parse = parser(node_selectors=plan.node.node_labels is not None)
        pods = plan.pod_networks

        def judged() -> tuple[Proposal, Difference]:
            proposal = propose(tables, documents, delete, parse=parse, pods=pods)
            return proposal, difference(flows, before, proposal.policies, node=node)

        try:
            # Seconds, where thousands of policies meet hundreds of endpoints; what it reads never changes.
            proposal, found = await asyncio.to_thread(judged)
        except ProposalError as error:
            raise RequestRefused(400, str(error)) from error
        return views.difference(
            found,
            proposal.problems,
            lost=self._agent.ring.stats().lost,
            names=self._names(),
            before=cookies(before.values()),
            after=cookies(proposal.policies.values()),
        )

    def _names(self) -> dict[Addr, str]:
        """The pods of the cluster by address; of those of this node we know best."""
        tables = self._agent.tables
        names = {
            address: f"{row.namespace}/{row.name}"
            for row in tables.remote_endpoints.values()
            for address in row.addresses
        }
        for one in tables.endpoints.values():
            names.update(dict.fromkeys(one.addresses, f"{one.namespace}/{one.pod}"))
        return names

    def _side(self, text: str) -> Side:
        """A side of traffic: ``namespace/pod``, an address, or an entity."""
        for one in Reserved:
            if one and one.label == text.lower():
                return self._other(text, int(one))
        number = self.endpoint_number(f"pod:{text}")
        if number is not None:
            return self._local(text, number)
        namespace, _, name = text.partition("/")
        remote = self._agent.tables.remote_endpoints.get((namespace, name))
        if remote is not None:
            return self._other(text, remote.identity, remote.addresses)
        try:
            address = ip_address(text)
        except ValueError:
            raise RequestRefused(404, f"{text} is no pod we know, no address and no entity") from None
        pod = self._agent.pod_at(address)
        if pod is not None:
            return self._local(text, pod.id, (address,))
        return self._other(text, status.identity_of_address(self._agent.reconciler, address), (address,))

    def _by_address(self, source: Side, destination: Side) -> tuple[Side, Side]:
        """Both sides, pods under what policies judge them by at the addresses that meet."""
        families = [{int(one.version) for one in side.addresses} for side in (source, destination)]
        family = min(families[0] & families[1], default=0)

        def judged(side: Side) -> Side:
            plan = self._agent.plan
            addr = first_of(family, side.addresses)
            number = None if addr is None else plan.parts.judged.get(addr)
            if number is None or number not in plan.known_identities:
                return side
            party = replace(side.party, identity=number, labels=plan.known_identities[number])
            return replace(side, party=party)

        return judged(source), judged(destination)

    def _other(self, text: str, identity: int, addresses: tuple[Addr, ...] = ()) -> Side:
        """Whoever is no endpoint of this node."""
        plan = self._agent.plan
        labels = plan.known_identities.get(identity, frozenset())
        named: NamedPorts = plan.policy.world.named_ports.get(identity, frozenset())
        return Side(text, Party(identity, labels, is_endpoint=False, named_ports=named), addresses)

    def _local(self, text: str, number: int, addresses: tuple[Addr, ...] = ()) -> Side:
        """An endpoint of this node; asked for by one of its *addresses*, or by all."""
        endpoint = self._agent.tables.endpoints.get(number)
        identity = self._agent.plan.identities.get(number, int(Reserved.INIT))
        named: NamedPorts = frozenset()
        if endpoint is not None:
            named = self._agent.plan.named_ports_of(endpoint)
            addresses = addresses or tuple(endpoint.addresses)
        policy = self._agent.plan.policy
        rules = policy.rules.get(number) if number in policy.waiting and number in policy.versions else None
        labels = self._agent.plan.labels.get(number, frozenset())
        return Side(text, Party(identity, labels, named_ports=named, rules=rules), addresses, number)

    def _counters(self, found: Explanation, source: Side, destination: Side) -> list[Json]:
        """How often each deciding row decided, and judged this very traffic, as events tell."""
        flows = self._agent.ring.recorded()
        counters: list[Json] = []
        for one in found.directions:
            is_ingress = one.direction is Direction.INGRESS
            own, peer = (destination, source) if is_ingress else (source, destination)
            same = [
                flow
                for flow in flows
                if (flow.endpoint_id, flow.direction) == (own.endpoint, one.direction)
                and (flow.protocol, flow.port) == (PROTOCOL_NUMBERS[found.protocol], found.port)
                and (
                    (flow.source if is_ingress else flow.destination) in peer.addresses
                    if peer.addresses
                    else flow.peer_identity == peer.party.identity
                )
            ]
            by_row = self._agent.ring.record.verdicts(
                version=self._agent.plan.policy.versions.get(own.endpoint or 0, 0),
                direction=one.direction,
                verdict=one.verdict,
                rule_cookie=one.rule_cookie,
            )
            counters.append(views.counter(by_row, same))
        return counters

    async def map_rows(self, name: str) -> list[Json]:
        """Decoded rows of a live map."""
        full = name if name.startswith("cilium_") else f"cilium_{name}"
        if not maprows.readable(full) and maprows.readable(f"{full}_v1"):
            full = f"{full}_v1"
        if not maprows.readable(full):
            known = ", ".join(sorted(one for one in abi.MAPS if maprows.readable(one)))
            raise RequestRefused(404, f"no map {name}; there are {known}")
        rows = await self._agent.in_writer(lambda: self._agent.datapath.rows(full))
        return list(maprows.decode_rows(full, rows))

    async def maps(self) -> Json:
        """Every map and how full it was when last counted."""
        await self._agent.read_usage()
        return {
            "maps": [
                {
                    "path": str(self._agent.settings.bpf_root / "maps" / one.map_name),
                    "entries": one.entries,
                    "max-entries": one.max_entries,
                    "errors": 0,
                }
                for one in self._agent.usage
            ]
        }

    async def flush_map(self, name: str) -> int:
        """Empty a map that fills again by itself; how many rows it had."""
        full = {"ct": "cilium_ct_v1", "nat": "cilium_snat_v1"}.get(name, name)
        if full not in FLUSHABLE:
            raise RequestRefused(400, f"{name} cannot be flushed; {', '.join(sorted(FLUSHABLE))} can")
        opened = self._agent.map(full)

        def flush() -> int:
            keys = list(opened.keys())
            opened.delete_batch(keys)
            return len(keys)

        return await self._agent.in_writer(flush)

    def node_health(self) -> Json:
        """How the other nodes answered when last asked."""
        return self._agent.health.report()

    async def probe_nodes(self) -> Json:
        """The same of a round made now."""
        return await self._agent.health.probe()

    def cluster_nodes(self) -> Json:
        """Every node of the cluster."""
        nodes = status_models.node_elements(health.cluster_nodes(self._agent))
        return {"client-id": 0, "self": health.local_node(self._agent).name, "nodes-added": nodes}

    def config(self) -> Json:
        """Settings in force."""
        return {
            "spec": {"options": event_kinds.enabled(self._agent.datapath.word(event_kinds.WORD))},
            "status": {
                "version": __version__,
                "daemonConfigurationMap": {
                    name.replace("_", "-"): _text(value)
                    for name, value in self._agent.settings.model_dump().items()
                },
            },
        }

    def configure(self, options: Mapping[str, bool]) -> None:
        """Set options of the node until the agent's next start; programs see them at once."""
        datapath = self._agent.datapath
        datapath.set_word(event_kinds.WORD, event_kinds.changed(datapath.word(event_kinds.WORD), options))
        log.info("agent.options_changed", **options)

    async def health(self) -> Json:
        """``models.StatusResponse``."""
        return await status.status(self._agent)


def _text(value: object) -> Any:
    return value if isinstance(value, bool | int | float) or value is None else str(value)
