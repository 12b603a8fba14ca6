# SPDX-License-Identifier: Apache-2.0
"""
The stages of a round, in the order of writes, and which rows of one refer to rows of another.

Identities and policies first, then the words that put endpoints under a policy, then endpoints' facts
(ignored while their slot generation is not that of the word); only then may addresses lead to identities
and endpoints.  So an identity is carried by nobody, neither as the source of an endpoint's packets nor
behind an address, before every endpoint is under a policy that knows it.  Deletions go the other way
round.  Rules that name a prefix come a round after its row (``daemon.prefixes``).
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from struct import Struct
from typing import TypeVar

from ciliumd import abi
from ciliumd.bpf.policy_maps import PolicyMaps
from ciliumd.daemon.plan import NodePlan
from ciliumd.daemon.state import endpoint_row, identity_row, part_row, prefix_row
from ciliumd.desired.bindports import bind_key
from ciliumd.desired.ipcache import address_key, identity_of, judged_by
from ciliumd.desired.lbrows import match_key, slot_keys
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.net import Addr, Prefix, addr16, addr_from16
from ciliumd.net.overlay import RemoteRoutes, route_rows
from ciliumd.reconcile.loop import Reconciler
from ciliumd.reconcile.target import BeforeSync, Changes, Compute, Rows, Stage, Target, Whole
from ciliumd.tables.schema import Tables
from ciliumd.tables.table import Table

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

ENDPOINT_FILE, IDENTITY_FILE, PREFIX_FILE = "endpoints.json", "identities.json", "prefixes.json"
PART_FILE = "parts.json"
POLICY = PolicyMaps.name
FACTS, STATES = "cilium_endpoints_v1", "cilium_endpoint_state_v1"
IPCACHE, IPCACHE_LPM = "cilium_ipcache_v1", "cilium_ipcache_lpm_v1"
LXC, IFINDEX, NETNS = "cilium_lxc_v1", "cilium_ifindex_v1", "cilium_netns_v1"
BACKENDS, REVNAT, SERVICES = "cilium_lb_backends_v1", "cilium_lb_revnat_v1", "cilium_lb_services_v1"
# Slots of cilium_lb_services_v1 are a stage of their own: a frontend that counts slots which did not fit
# into the map would lose the packets sent to them.
SERVICE_SLOTS = "cilium_lb_services_v1.slots"
AFFINITY_MATCH, SOURCES = "cilium_lb_affinity_match_v1", "cilium_lb_source_range_v1"
BIND = "cilium_lb_bind_v1"
DEVICES, NODES = "cilium_devices_v1", "cilium_nodes_v1"
ROUTES = RemoteRoutes.name


def stages(
    plan: NodePlan,
    tables: Tables,
    targets: Mapping[str, Target],
    *,
    devices: Callable[[], Mapping[bytes, bytes]],
    route_mtu: Callable[[], int],
) -> list[Stage]:
    """
    Every stage; *targets* by the names above, *devices* the rows of native devices.

    *route_mtu* is what the node's own packets to other nodes' pods may measure.
    """

    def whole(rows: Callable[[], Rows], part: str) -> Compute:
        return whole_rows(rows, lambda: plan.require(part))

    def services(part: str) -> Compute:
        def compute() -> Changes:
            plan.require("services")
            return plan.services.changes(part)

        return compute

    def policy() -> Changes:
        plan.require("policy")
        return plan.policy_changes()

    def addresses() -> Changes:
        plan.require("ipcache")
        return plan.addresses.take_changes()

    identities = of_table(tables.identities, identity_row)

    def first() -> Whole | Changes:
        # The first stage of a round brings the plan up to date for all of them.
        plan.refresh()
        return identities()

    return [
        Stage(name=IDENTITY_FILE, target=targets[IDENTITY_FILE], compute=first, before_sync=BeforeSync.WRITE),
        Stage(
            name=PREFIX_FILE,
            target=targets[PREFIX_FILE],
            compute=of_table(tables.prefixes, prefix_row),
            before_sync=BeforeSync.WRITE,
        ),
        Stage(
            name=PART_FILE,
            target=targets[PART_FILE],
            compute=of_table(tables.parts, part_row),
            before_sync=BeforeSync.WRITE,
        ),
        Stage(
            name=ENDPOINT_FILE,
            target=targets[ENDPOINT_FILE],
            compute=of_table(tables.endpoints, lambda _, endpoint: endpoint_row(endpoint)),
            before_sync=BeforeSync.WRITE,
        ),
        Stage(
            name=DEVICES, target=targets[DEVICES], compute=whole_rows(devices), before_sync=BeforeSync.WRITE
        ),
        # Who a packet comes from is judged by what is behind its sender: nodes before their pods.
        Stage(name=NODES, target=targets[NODES], compute=whole(lambda: plan.node_rows, "beyond")),
        Stage(name=POLICY, target=targets[POLICY], compute=policy),
        Stage(
            name=STATES,
            target=targets[STATES],
            compute=whole(lambda: plan.state_rows, "words"),
            needs=(POLICY,),
        ),
        Stage(
            name=FACTS,
            target=targets[FACTS],
            compute=whole(lambda: plan.endpoint_rows.facts, "rows"),
            needs=(STATES,),
        ),
        Stage(
            name=IPCACHE,
            target=targets[IPCACHE],
            compute=addresses,
            needs=(NODES, STATES),
            outlives=(STATES,),
        ),
        Stage(
            name=IPCACHE_LPM,
            target=targets[IPCACHE_LPM],
            compute=whole(lambda: plan.ipcache_rows.prefixes, "owners"),
            needs=(NODES, STATES),
            # A word that still names rules with an exception goes on needing the exception.
            outlives=(STATES,),
            # An exception that is not there yet would be let in with what it is an exception of.
            covers=lambda key: (
                (IPCACHE if single else IPCACHE_LPM, inner)
                for single, inner in plan.ipcache_rows.within.get(key, ())
            ),
        ),
        Stage(
            name=ROUTES,
            target=targets[ROUTES],
            compute=made_of(
                lambda: (plan.remote_routes, route_mtu()),
                lambda: route_rows(plan.remote_routes, route_mtu()),
                lambda: plan.require("beyond"),
            ),
            needs=(IPCACHE_LPM,),
        ),
        Stage(
            name=LXC,
            target=targets[LXC],
            compute=whole(lambda: plan.endpoint_rows.addresses, "rows"),
            needs=(FACTS,),
        ),
        Stage(
            name=IFINDEX,
            target=targets[IFINDEX],
            compute=whole(lambda: plan.endpoint_rows.devices, "rows"),
            needs=(FACTS,),
        ),
        Stage(
            name=NETNS,
            target=targets[NETNS],
            compute=whole(lambda: plan.endpoint_rows.namespaces, "rows"),
            needs=(FACTS,),
        ),
        Stage(
            name=BACKENDS,
            target=targets[BACKENDS],
            compute=services("backends"),
        ),
        Stage(name=REVNAT, target=targets[REVNAT], compute=services("revnat")),
        # Before the slots: what is chosen from them is to be kept from the first time on.
        Stage(
            name=AFFINITY_MATCH,
            target=targets[AFFINITY_MATCH],
            compute=services("matches"),
        ),
        # Before the frontends that are restricted to them, or from them.
        Stage(
            name=SOURCES,
            target=targets[SOURCES],
            compute=services("sources"),
            set_of=source_set,
        ),
        # Before the frontends: who binds while they are written is told.
        Stage(name=BIND, target=targets[BIND], compute=services("binds")),
        Stage(
            name=SERVICE_SLOTS,
            target=targets[SERVICE_SLOTS],
            compute=services("slots"),
            needs=(BACKENDS, REVNAT, AFFINITY_MATCH),
            refers=slot_refers,
        ),
        Stage(
            name=SERVICES,
            target=targets[SERVICES],
            compute=services("frontends"),
            needs=(REVNAT, SOURCES, BIND, SERVICE_SLOTS),
            refers=frontend_refers,
            reads=frontend_reads,
        ),
    ]


def whole_rows(rows: Callable[[], Rows], require: Callable[[], None] = lambda: None) -> Compute:
    """
    All of *rows* where they are others than last time.

    What is planned is never changed, only made anew: the same object says the same.  *require* raises while
    nothing is planned.
    """
    answered: Rows | None = None

    def compute() -> Whole | Changes:
        nonlocal answered
        require()
        wanted = rows()
        if wanted is answered:
            return Changes()
        answered = wanted
        return Whole(wanted)

    return compute


def made_of(seen: Callable[[], object], make: Callable[[], Rows], require: Callable[[], None]) -> Compute:
    """Rows that are made anew when what is *seen* is another."""
    made: tuple[object, Rows] | None = None

    def rows() -> Rows:
        nonlocal made
        now = seen()
        if made is None or made[0] != now:
            made = now, make()
        return made[1]

    return whole_rows(rows, require)


def of_table(table: Table[K, V], row: Callable[[K, V], tuple[bytes, bytes]]) -> Compute:
    """One row for each of a table."""
    return made_of(
        lambda: table.revision,
        lambda: dict(row(key, value) for key, value in table.items()),
        lambda: None,
    )


def slots_made(reconciler: Reconciler) -> Callable[[bytes], bytes | None]:
    """What answers the row of a slot as it is wanted, or as it was found where nothing is wanted yet."""
    tracker = reconciler.tracker(SERVICE_SLOTS)
    return lambda key: tracker.desired.get(key) or tracker.held(key)


def prefixes_written(reconciler: Reconciler) -> Callable[[Prefix], NumericIdentity | None]:
    """What answers the identity that a prefix has in the ipcache as it was written."""
    addresses, prefixes = reconciler.tracker(IPCACHE), reconciler.tracker(IPCACHE_LPM)
    return lambda prefix: identity_of(prefix, addresses.held, prefixes.held)


def judged_as_written(reconciler: Reconciler) -> Callable[[Addr], set[NumericIdentity]]:
    """What answers the numbers that an address is judged by, by the rows that were written of it."""
    addresses, slots, facts = (reconciler.tracker(name) for name in (IPCACHE, LXC, FACTS))

    def judged_as(addr: Addr) -> set[NumericIdentity]:
        found: set[NumericIdentity] = set()
        if (row := addresses.held(address_key(addr))) is not None:
            found.add(judged_by(row))
        if (value := slots.held(abi.LxcKey(addr16(addr)).pack())) is not None:
            slot = abi.LxcValue.unpack(value).slot
            if (row := facts.held(slot.to_bytes(4, "little"))) is not None:
                one = abi.Endpoint.unpack(row)
                found.add((one.judged_ipv4 if addr.version == 4 else one.judged_ipv6) or one.identity)
        return found

    return judged_as


def judged_addresses(reconciler: Reconciler) -> set[Addr]:
    """The addresses of endpoints, and others that policies judge by where they are, by the rows written."""
    rows = reconciler.tracker(IPCACHE).realized
    found = {
        abi.IpcacheKey.unpack(key).addr for key, row in rows.items() if abi.IpcacheEntry.unpack(row).judged
    }
    found.update(abi.LxcKey.unpack(key).addr for key in reconciler.tracker(LXC).realized)
    return set(map(addr_from16, found))


_SOURCE_SET = Struct("<HH")
_RESTRICTED = abi.LbServiceFlags.LB_F_SOURCES_ALLOW | abi.LbServiceFlags.LB_F_SOURCES_DENY


def slot_refers(_: bytes, value: bytes) -> Iterable[tuple[str, bytes]]:
    """The backend of a slot, the revNAT row of its frontend, and what lets clients with affinity keep it."""
    row = abi.LbService.unpack(value)
    yield REVNAT, row.rev_nat.to_bytes(4, "little")
    yield BACKENDS, row.target.to_bytes(4, "little")
    if row.flags & abi.LbServiceFlags.LB_F_AFFINITY:
        yield AFFINITY_MATCH, match_key(row.target, row.rev_nat)


def frontend_refers(key: bytes, value: bytes) -> Iterable[tuple[str, bytes]]:
    """The slots a frontend counts, its revNAT row, and what keeps sockets from a NodePort."""
    service, row = abi.LbServiceKey.unpack(key), abi.LbService.unpack(value)
    if not service.port:  # the whole address of a service, which leads nowhere
        return
    yield REVNAT, row.rev_nat.to_bytes(4, "little")
    for slot in slot_keys(service, row.target):
        yield SERVICE_SLOTS, slot
    if row.flags & abi.LbServiceFlags.LB_F_NODE_PORT:
        yield BIND, bind_key(service.port, service.protocol)


def frontend_reads(_: bytes, value: bytes) -> Iterable[tuple[str, bytes]]:
    """The source ranges a frontend is restricted to, or from; who is in none of them is judged, too."""
    row = abi.LbService.unpack(value)
    if policy := row.flags & _RESTRICTED:
        yield SOURCES, _SOURCE_SET.pack(row.rev_nat, policy)


def source_set(key: bytes) -> bytes:
    """The source ranges of one frontend under one policy."""
    row = abi.LbSourceKey.unpack(key)
    return _SOURCE_SET.pack(row.rev_nat, row.policy)
