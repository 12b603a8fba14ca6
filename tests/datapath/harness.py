# SPDX-License-Identifier: Apache-2.0
"""
The real programs on a real kernel, fed with single packets: private pins, maps written through
the codecs of ciliumd.abi, everything a packet leaves behind.

Rows are written as a test asks for them, not as the agent would: what the agent writes is judged
elsewhere, here the rows are given and the packet is judged.  Where a redirect leads to is not
visible in a test run; tests/netns sends packets through devices for that.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from ciliumd import abi
from ciliumd.abi import CtEntry, CtKey, Direction, DropReason, Event, EventType, NodeState
from ciliumd.bpf import Generation, Map, Pins, RingBuffer, U64Array
from ciliumd.bpf.pins import remove_tree
from ciliumd.desired.policy.maprows import class_check
from ciliumd.model.net import fold32, is_single, mac_bytes, prefix_bits16
from datapath.node import node_config
from datapath.rows import Pod, Rule, a16, u32
from fixtures.packets import node_one

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from ciliumd.bpf import Program

PASS, DROP, REDIRECT = -1, 2, 7  # TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT
SMALL = {name: 4096 for name, spec in abi.MAPS.items() if spec.max_entries > 4096} | {
    "cilium_events_v1": 1 << 20,
    "cilium_endpoints_v1": 64,
    "cilium_endpoint_state_v1": 64,
    "cilium_policy_classes_v1": 256,
    "cilium_policy_rules_v1": 256,
}
# Emptied between tests; the other state maps are arrays, program tables or the ring.
EMPTIED = tuple(
    name
    for name, spec in abi.MAPS.items()
    if name.startswith("cilium_")
    and spec.type in {abi.MapType.HASH, abi.MapType.LRU_HASH, abi.MapType.LPM_TRIE, abi.MapType.HASH_OF_MAPS}
    and name not in {"cilium_layout_v1", "cilium_lb_sock_v1"}
)
COUNTED = [
    (reason, direction)
    for reason in DropReason
    for direction in (Direction.DIR_INGRESS, Direction.DIR_EGRESS)
]
POLICY_MAPS = ("policy_classes", "policy_rules")
HOOKS = {
    "from_container": "entry_from_container",
    "to_container": "entry_to_container",
    "from_host": "entry_from_host",
    "from_netdev": "entry_from_netdev",
    "to_netdev": "entry_to_netdev",
    "from_overlay": "entry_from_overlay",
    "to_overlay": "entry_to_overlay",
}
FILES = frozenset(abi.SourceFile) - {abi.SourceFile.FILE_UNKNOWN, abi.SourceFile.FILE_ENTRY}


def check_of(row: CtKey | abi.NatKey | abi.LxcKey) -> int:
    """The fold that a row's value must repeat."""
    return fold32(row.pack())


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one packet."""

    action: int
    packet: bytes
    mark: int
    events: tuple[Event, ...]
    counted: Mapping[tuple[DropReason, Direction], int]

    def of_type(self, kind: EventType) -> list[Event]:
        """Events of one type, in the order they happened."""
        return [event for event in self.events if event.type == kind]

    @property
    def drop(self) -> Event:
        """The one drop event; everything else about a drop is checked here too."""
        (event,) = self.of_type(EventType.EVENT_DROP)
        reason = DropReason(event.reason)
        assert self.counted == {**self.forwards, (reason, Direction(event.direction)): 1}
        assert event.line > 0
        assert event.file in FILES
        return event

    @property
    def forwards(self) -> dict[tuple[DropReason, Direction], int]:
        """Counted as forwarded, by direction."""
        return {key: count for key, count in self.counted.items() if key[0] == DropReason.FORWARDED}


def forwarded(*directions: Direction) -> dict[tuple[DropReason, Direction], int]:
    """What is counted when a packet is let through in these directions, and nothing else happens."""
    return {(DropReason.FORWARDED, direction): 1 for direction in directions}


# Where only drops count, or the time that packets take.
QUIET = (EventType.EVENT_TRACE, EventType.EVENT_POLICY_VERDICT)


@dataclass(slots=True)
class Datapath:
    """One loaded generation and its maps."""

    generation: Generation
    ring: RingBuffer
    state: U64Array
    silent: tuple[EventType, ...] = ()
    _inner: list[Map] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def loaded(
        cls,
        state_dir: Path,
        *,
        sizes: Mapping[str, int] | None = None,
        silent: Iterable[EventType] = (),
        **config: bool | int,
    ) -> Iterator[Datapath]:
        """
        Load the objects with these options beside the tests' usual ones; the node exists already.

        Maps have the tests' small sizes but for those in *sizes*; events of *silent* kinds are not sent.
        """
        root = Path(f"/sys/fs/bpf/t-{os.getpid()}-{next(_roots)}")
        options = node_config() | config
        try:
            with (
                Pins(root, state_dir=state_dir) as pins,
                Generation.load(pins, config=options, max_entries=SMALL | dict(sizes or {})) as generation,
                RingBuffer(generation.maps["cilium_events_v1"], record_size=Event.SIZE) as ring,
                U64Array(generation.maps["cilium_endpoint_state_v1"]) as state,
            ):
                generation.activate()
                made = cls(generation, ring, state, tuple(silent))
                made.silence(*made.silent)
                yield made
        finally:
            remove_tree(root)

    def map(self, name: str) -> Map:
        """A state map by its short name: ``ct`` is cilium_ct_v1."""
        return self.generation.maps[f"cilium_{name}_v1"]

    def silence(self, *kinds: EventType) -> None:
        """Events of these kinds, and of no other one, are not sent."""
        with U64Array(self.map("node_state")) as words:
            words[NodeState.NODE_STATE_SILENT_EVENTS] = sum(1 << kind for kind in kinds)

    def reset(self) -> None:
        """Empty every map, as after load."""
        self.silence(*self.silent)
        for name in EMPTIED:
            bpf_map = self.generation.maps[name]
            bpf_map.delete_batch(list(bpf_map.keys()))
        for inner in self._inner:
            inner.close()
        self._inner.clear()
        endpoints = self.map("endpoints")
        for slot in range(len(self.state)):
            if self.state[slot]:
                self.state[slot] = 0
                endpoints.update(u32(slot), bytes(abi.Endpoint.SIZE))
        while self.ring.drain():
            pass

    # -- rows ----------------------------------------------------------------------------------

    def add_endpoint(
        self, pod: Pod, *rules: Rule, classes: Mapping[tuple[int, Direction], int] | None = None
    ) -> Pod:
        """All rows of an endpoint, and of its policy version when rules are given."""
        if rules:
            self.policy(pod.version, *rules, classes=classes)
        place = pod.place
        row = abi.Endpoint(
            identity=pod.identity,
            id=pod.id,
            flags=pod.flags,
            ifindex=pod.ifindex,
            slot_gen=pod.generation,
            ipv4=int(place.address),
            ipv6=pod.ipv6,
            mac=mac_bytes(place.mac),
            node_mac=mac_bytes(place.node_mac),
            judged_ipv4=pod.judged_ipv4,
            judged_ipv6=pod.judged_ipv6,
        )
        self.map("endpoints").update(u32(pod.slot), row.pack())
        self.local_address(place.ip, pod.slot)
        if any(pod.ipv6):
            self.local_address(pod.ip6, pod.slot)
        self.map("ifindex").update(u32(pod.ifindex), u32(pod.slot))
        self.use_version(pod, pod.version)
        return pod

    def use_version(self, pod: Pod, version: int, *, generation: int | None = None) -> None:
        """The one store that switches an endpoint to another policy."""
        self.state[pod.slot] = (pod.generation if generation is None else generation) << 32 | version

    def policy(
        self,
        version: int,
        *rules: Rule,
        classes: Mapping[tuple[int, Direction], int] | None = None,
        recycled: Mapping[tuple[int, Direction], int] | None = None,
    ) -> None:
        """A policy version: rows, and classes by (identity, direction); *recycled* ones fail their check."""
        inner = self._policy_maps(rules)
        for spoil, rows in ((0, classes), (1, recycled)):
            for (identity, direction), number in (rows or {}).items():
                value = abi.PolicyClass(class_check(identity, direction, number) ^ spoil, number)
                inner["policy_classes"].update(abi.PolicyClassKey(identity, direction).pack(), value.pack())
        self._hang({version: inner})

    def policies(self, versions: Mapping[int, tuple[Rule, ...]]) -> None:
        """Several versions at once: each single write to an outer map waits for RCU."""
        self._hang({version: self._policy_maps(rules) for version, rules in versions.items()})

    def _policy_maps(self, rules: tuple[Rule, ...]) -> dict[str, Map]:
        made = {}
        for name in POLICY_MAPS:
            inner = abi.MAPS[self.map(name).name].inner
            assert inner is not None
            made[name] = Map.create(inner, max_entries=256)
        for rule in rules:
            made["policy_rules"].update(rule.key.pack(), rule.entry.pack())
        return made

    def _hang(self, versions: Mapping[int, Mapping[str, Map]]) -> None:
        for name in POLICY_MAPS:
            items = {u32(version): made[name] for version, made in versions.items()}
            assert self.map(name).update_inner(items) == {}
            self._inner += items.values()

    def drop_policy(self, version: int) -> None:
        """Take a version away: whoever asks it is refused."""
        for name in POLICY_MAPS:
            self.map(name).delete(u32(version))

    def local_address(self, ip: str, slot: int, *, check: int | None = None) -> None:
        """Address to slot."""
        key = abi.LxcKey(a16(ip))
        value = abi.LxcValue(check_of(key) if check is None else check, slot)
        self.map("lxc").update(key.pack(), value.pack())

    def host_address(self, ip: str) -> None:
        """An address of the node itself."""
        self.local_address(ip, abi.Slot.SLOT_HOST)

    def ipcache(
        self,
        prefix: str,
        identity: int,
        *,
        tunnel: str | None = None,
        check: int | None = None,
        judged: int = 0,
    ) -> None:
        """What an address or a prefix is, what it is *judged* by, and the node whose tunnel leads there."""
        network = ip_network(prefix)
        addr = a16(str(network.network_address))
        entry = abi.IpcacheEntry(0, identity, a16(tunnel) if tunnel else bytes(16), 0, 0, judged)
        if not is_single(network):
            key = abi.IpcacheLpmKey(32 + prefix_bits16(network), 0, addr)
            self.map("ipcache_lpm").update(key.pack(), entry.pack())
            return
        entry = replace(entry, check=fold32(addr) if check is None else check)
        self.map("ipcache").update(abi.IpcacheKey(addr, 0).pack(), entry.pack())

    def node_address(self, ip: str, node_id: int, *, check: int | None = None) -> None:
        """An address that a node of the cluster has in the network."""
        value = abi.NodeValue(fold32(a16(ip)) if check is None else check, node_id)
        self.map("nodes").update(abi.NodeKey(a16(ip)).pack(), value.pack())

    def native_device(self, name: str, ip: str, *, ip6: str = "::") -> int:
        """A device towards the world; returns its ifindex."""
        ifindex = socket.if_nametoindex(name)
        ipv4 = int(ip_network(ip).network_address)
        row = abi.NativeDevice(ipv4, ifindex, ip_address(ip6).packed, mac_bytes(node_one.mac), 0)
        # The first word holds address and check together; the codec must agree with the C about it.
        self.map("devices").update(u32(ifindex), row.pack())
        return ifindex

    def add_service(
        self,
        number: int,
        ip: str,
        port: int,
        protocol: int,
        backends: Mapping[int, tuple[str, int]],
        *,
        flags: int = abi.LbServiceFlags.LB_F_CLUSTER_IP,
        scope: int = abi.LbScope.LB_SCOPE_EXTERNAL,
        affinity: int = 0,
    ) -> None:
        """A frontend, its revNAT row, and its backends by id; *affinity*: seconds a client keeps one."""
        flags |= abi.LbServiceFlags.LB_F_AFFINITY if affinity else 0
        for backend_id, (addr, backend_port) in backends.items():
            row = abi.LbBackend(backend_id, backend_port, protocol, 0, a16(addr))
            self.map("lb_backends").update(u32(backend_id), row.pack())
        self.map("lb_revnat").update(u32(number), abi.LbRevnat(number, port, a16(ip)).pack())
        for slot, target in [*enumerate(backends, 1), (0, len(backends))]:
            key = abi.LbServiceKey(a16(ip), port, protocol, scope, slot)
            row = abi.LbService(target, number, flags, affinity)
            self.map("lb_services").update(key.pack(), row.pack())
        self._match(number, backends if affinity else ())

    def _match(self, number: int, backends: Collection[int]) -> None:
        """Which backends of frontend *number* a client may keep."""
        matches = self.map("lb_affinity_match")
        for key in [key for key, _ in matches.items() if abi.LbAffinityMatch.unpack(key).rev_nat == number]:
            matches.delete(key)
        for backend_id in backends:
            matches.update(abi.LbAffinityMatch(backend_id, number).pack(), u32(1))

    def cluster_ip(self, ip: str) -> None:
        """Say that a service has this address for itself."""
        row = abi.LbService(0, 0, abi.LbServiceFlags.LB_F_CLUSTER_IP, 0)
        self.map("lb_services").update(abi.LbServiceKey(a16(ip), 0, 0, 0, 0).pack(), row.pack())

    def remove_backend(self, backend_id: int) -> None:
        """A backend's own row; the frontend's slots are the test's business."""
        self.map("lb_backends").delete(u32(backend_id))

    @contextlib.contextmanager
    def without_call(self, call: abi.Call) -> Iterator[None]:
        """A tail-call target that is not there."""
        program = self.generation.programs[call.name.lower()]
        with _removed(self.generation._own["calls"], call, program):
            yield

    @contextlib.contextmanager
    def without_hook(self, hook: abi.Hook) -> Iterator[None]:
        """A hook without a program in the active generation."""
        row = (self.generation.number & 1) * abi.Hook.HOOK_MAX + hook
        with _removed(self.map("hooks"), row, self.generation.programs[hook.name.lower()]):
            yield

    # -- reading -------------------------------------------------------------------------------

    def ct(self, kind: abi.CtKind | None = abi.CtKind.CT_KIND_FLOW) -> dict[CtKey, CtEntry]:
        """Conntrack rows of one kind."""
        rows = {CtKey.unpack(key): CtEntry.unpack(value) for key, value in self.map("ct").items()}
        return {key: row for key, row in rows.items() if kind is None or key.kind == kind}

    def age(self, seconds: int) -> None:
        """Conntrack as it will be in so many seconds if no packet comes."""
        for key, row in self.ct(None).items():
            older = replace(
                row, expires=max(0, row.expires - seconds), last_report=max(0, row.last_report - seconds)
            )
            self.map("ct").update(key.pack(), older.pack())

    def snat(self) -> dict[abi.NatKey, abi.NatEntry]:
        """Masquerading rows."""
        rows = self.map("snat").items()
        return {abi.NatKey.unpack(key): abi.NatEntry.unpack(value) for key, value in rows}

    def add_snat(self, key: abi.NatKey, ip: str, port: int, *, check: int | None = None) -> None:
        """One masquerading row."""
        entry = abi.NatEntry(check_of(key) if check is None else check, port, 0, a16(ip), 0)
        self.map("snat").update(key.pack(), entry.pack())

    def counts(self) -> dict[tuple[DropReason, Direction], int]:
        """Packets so far, by reason and direction."""
        metrics = self.map("metrics")
        rows = {
            place: metrics.lookup_sums(u32(place[0] * Direction.DIR_MAX + place[1]))[0] for place in COUNTED
        }
        return {place: count for place, count in rows.items() if count}

    def events(self) -> list[Event]:
        """Events since the last call."""
        found: list[Event] = []
        while data := self.ring.drain():
            found += [Event.unpack(data[at : at + Event.SIZE]) for at in range(0, len(data), Event.SIZE)]
        return found

    # -- packets -------------------------------------------------------------------------------

    def run(self, hook: str, packet: bytes, device: str, *, mark: int = 0) -> Result:
        """Send one packet through the entry program of a hook, as if seen on *device*."""
        before = self.counts()
        self.events()
        program = self.generation.entries[HOOKS[hook]]
        done = program.test_run(packet, ifindex=socket.if_nametoindex(device), mark=mark)
        after = self.counts()
        moved = {place: after[place] - before.get(place, 0) for place in after}
        counted = {place: count for place, count in moved.items() if count}
        return Result(done.retval, done.data, done.mark, tuple(self.events()), counted)

    def send(self, pod: Pod, packet: bytes) -> Result:
        """A pod sends."""
        return self.run("from_container", packet, pod.device)


_roots = itertools.count()


@contextlib.contextmanager
def _removed(programs: Map, row: int, program: Program) -> Iterator[None]:
    assert programs.delete(u32(row))
    try:
        yield
    finally:
        programs.update(u32(row), u32(program.fd))
