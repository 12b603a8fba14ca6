# SPDX-License-Identifier: Apache-2.0
"""A node's tables and its plan without a kernel: small pools, so that pods, policies and labels meet."""

from ipaddress import IPv4Address, ip_address, ip_network

from ciliumd.daemon.node_facts import NodeFacts
from ciliumd.daemon.plan import NodePlan
from ciliumd.desired.ipcache import IpcacheRows
from ciliumd.desired.policy import lookup
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.labels import K8S, POD_NAMESPACE
from ciliumd.model.policy import (
    Direction,
    NamedPort,
    PeerCIDR,
    PeerEntity,
    PeerSelector,
    Policy,
    PortRule,
    Rule,
    Selector,
)
from ciliumd.tables import NamespaceRow, PodRow, Tables

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS
TCP = 6
HTTP = {"http": ("TCP", 8080)}
SOURCES = (
    *("namespaces", "pods", "services", "slices", "policies", "cidr_groups"),
    *("nodes", "remote_endpoints", "cluster_identities", "endpoints"),
)


def endpoint(number, *, pod=None, namespace="shop", slot=None, address=None):
    """Endpoint *number* in a slot of its own; its pod is called after it."""
    return EndpointSpec(
        id=number,
        slot=number - 1 if slot is None else slot,
        slot_gen=number,
        namespace=namespace,
        pod=pod or f"pod-{number}",
        container_id="",
        netns=f"/run/netns/pod-{number}",
        ifname=f"lxc{number}",
        ifindex=1000 + number,
        mac="02:00:00:00:00:01",
        node_mac="02:00:00:00:00:02",
        ipv4=address or IPv4Address(f"10.0.{number // 250}.{number % 250 + 2}"),
        ipv6=None,
    )


def pod(name, labels, *, namespace="shop", named_ports=None):
    """A pod with everything else default."""
    return PodRow(namespace, name, labels, "default", None, False, None, named_ports or {})


def app(name):
    """Pods with this app label, whatever their namespace."""
    return PeerSelector(Selector(frozenset({(K8S, "app", name)})))


def cidr(text, *excepts):
    """A CIDR peer."""
    return PeerCIDR(ip_network(text), tuple(ip_network(one) for one in excepts))


def entity(name):
    """An entity peer."""
    return PeerEntity(name)


def subject(*, namespace="shop", **labels):
    """Pods of one namespace with these labels."""
    pairs = {(K8S, key, value) for key, value in labels.items()} | {(K8S, POD_NAMESPACE, namespace)}
    return Selector(frozenset(pairs))


def rule(*peers, direction=INGRESS, ports=None, deny=False, origin="0"):
    """A rule; no peers is anybody."""
    return Rule(direction, deny, peers or None, ports, origin)


def port(number=0, *, name=None, protocol="TCP"):
    """A port rule."""
    return PortRule(protocol=protocol, port=number, name=name)


def icmp(kind):
    """A port rule of one ICMP type."""
    return PortRule("ICMP", icmp_type=kind)


def policy(name, *rules, subject=Selector(), namespace="shop", ingress=True, egress=False):  # noqa: B008
    """A policy whose rules are named after it."""
    origin = f"cnp:{namespace}/{name}"
    numbered = (
        Rule(one.direction, one.deny, one.peers, one.ports, f"{origin}/{one.direction.name.lower()}/{i}")
        for i, one in enumerate(rules)
    )
    return Policy("CNP", namespace, name, "", subject, tuple(numbered), ingress, egress, origin)


def filled(*, in_sync=True):
    """Empty tables of a node with the namespace shop."""
    tables = Tables()
    tables.namespaces.set("shop", NamespaceRow("shop", {"kubernetes.io/metadata.name": "shop"}))
    if in_sync:
        mark_in_sync(tables)
    return tables


def mark_in_sync(tables):
    """Every source has told all it has."""
    for name in SOURCES:
        getattr(tables, name).mark_initialized()


def add_pod(tables, number, labels, *, named_ports=None, address=None):
    """A pod of the namespace shop and its endpoint; the endpoint."""
    made = endpoint(number, address=address)
    tables.pods.set(made.pod_key, pod(made.pod, labels, named_ports=named_ports))
    tables.endpoints.set(number, made)
    return made


def add_policy(tables, one):
    """Put a policy in force."""
    tables.policies.set((one.kind, one.namespace, one.name), one)


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        """The time."""
        return self.now


class Planned:
    """A plan over tables, what it reserved, and the policy rows as a kernel that does as told has them."""

    def __init__(
        self,
        tables,
        *,
        clock=None,
        next_version=1,
        restored=None,
        versions=None,
        addresses=(),
        ipcache=None,
        node_labels=None,
        pod_cidrs=(),
    ):
        self.tables = tables
        self.clock = clock or Clock()
        self.reserved = [next_version]
        self.plan = NodePlan(
            tables,
            NodeFacts(
                "node",
                "default",
                tuple(map(ip_address, addresses)),
                node_labels=node_labels,
                pod_cidrs=tuple(map(ip_network, pod_cidrs)),
            ),
            reserve_version=self.reserve,
            next_version=next_version,
            clock=self.clock,
        )
        self.kernel = dict(restored or {})
        self.ipcache = ipcache or IpcacheRows({}, {})
        self.plan.prefixes.identity_at = lambda prefix: self.ipcache.identity_of(prefix)  # noqa: PLW0108  it is replaced
        self.plan.restore_versions(self.kernel, versions=versions or {})

    def reserve(self, number):
        """Remember what was reserved, and that no row had the number before."""
        assert number > self.reserved[-1]
        assert all(version < self.reserved[-1] for version in self.plan.policy.states)
        self.reserved.append(number)

    def refresh(self):
        """Plan, and write the policy rows and the ipcache; prefixes first."""
        while True:
            self.plan.refresh()
            changes = self.plan.policy_changes()
            for key in changes.removals:
                self.kernel.pop(key, None)
            self.kernel.update(changes.updates)
            self.ipcache = self.plan.ipcache_rows
            if not (self.plan.prefixes.awaited or self.plan.parts.awaited):
                return self.plan

    def restarted(self):
        """The plan of the next agent: same tables, what the kernel holds, the counter as reserved."""
        return Planned(
            copied(self.tables),
            clock=self.clock,
            next_version=self.reserved[-1],
            restored=self.kernel,
            versions=self.plan.policy.versions,
            ipcache=self.ipcache,
        )


def copied(tables):
    """Tables with the same rows, as sources and restored numbers would fill them."""
    fresh = Tables()
    for name in (*SOURCES, "identities", "prefixes", "parts", "service_ids", "backend_ids"):
        for key, row in getattr(tables, name).items():
            getattr(fresh, name).set(key, row)
    mark_in_sync(fresh)
    return fresh


def two_pods():
    """A web pod that db pods may reach, and a db pod."""
    node = Planned(filled())
    add_pod(node.tables, 1, {"app": "web"})
    add_pod(node.tables, 2, {"app": "db"})
    add_policy(node.tables, policy("web", rule(app("db")), subject=subject(app="web")))
    node.refresh()
    return node


def says(node, number, peer, protocol=TCP, port=80, direction=INGRESS):
    """What the maps say about a peer's identity at an endpoint."""
    state = node.plan.policy.states[node.plan.policy.versions[number]]
    verdict, _ = lookup(state, peer, direction, protocol, port)
    return verdict.name.removeprefix("POLICY_VERDICT_")


def allow(name, *peers, app="web"):
    """What the pods of an app may reach."""
    rules = [rule(peer, direction=EGRESS) for peer in peers]
    return policy(name, *rules, subject=subject(app=app), ingress=False, egress=True)


def remote_ports(rows):
    """The named ports that rows of other nodes' pods give to identities, one by one."""
    ports = {}
    for row in rows:
        for name, (protocol, number) in row.named_ports.items():
            ports[row.identity] = ports.get(row.identity, frozenset()) | {NamedPort(name, protocol, number)}
    return ports
