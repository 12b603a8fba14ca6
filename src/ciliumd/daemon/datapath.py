# SPDX-License-Identifier: Apache-2.0
"""
From settings and the node's devices to a loaded datapath: options, map sizes, generation, targets.

Blocking; called once at start, in the writer thread.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import structlog

from ciliumd import abi
from ciliumd.bpf.generation import Generation
from ciliumd.bpf.pins import Pins
from ciliumd.bpf.policy_maps import CLASSES, RULES, PolicyMaps, split_key
from ciliumd.bpf.target import ArrayTarget, MapTarget, WordsTarget
from ciliumd.bpf.words import U64Array
from ciliumd.daemon import event_kinds, stages
from ciliumd.daemon.settings import Settings
from ciliumd.daemon.state import StateFile
from ciliumd.daemon.wiring import NodeWiring
from ciliumd.desired.lbrows import is_slot
from ciliumd.model.net import Addr, mac_bytes
from ciliumd.net.devices import NativeDevice
from ciliumd.net.namespace import own_cookie
from ciliumd.net.overlay import RemoteRoutes
from ciliumd.reconcile import nat_ports
from ciliumd.reconcile.target import Target

POLICY_PINS = "policies"
SOCK = "sock"

log = structlog.get_logger("agent")


@dataclass(slots=True)
class Datapath:
    """What is loaded, and how it is written to."""

    generation: Generation
    policies: PolicyMaps
    node_state: U64Array
    endpoint_states: U64Array
    targets: dict[str, Target]

    def word(self, row: abi.NodeState) -> int:
        """A word of the node's state."""
        return self.node_state[int(row)]

    def set_word(self, row: abi.NodeState, value: int) -> None:
        """Store a word of the node's state."""
        self.node_state[int(row)] = value

    def rows(self, name: str) -> list[tuple[bytes, bytes]]:
        """Every row of a live map; of a map of maps every inner row behind its outer key."""
        which = {"cilium_policy_classes_v1": CLASSES, "cilium_policy_rules_v1": RULES}.get(name)
        if which is None:
            return list(self.generation.maps[name].items())
        rows = []
        for key, value in self.policies.load().items():
            version, kind, inner = split_key(key)
            if kind == which:
                rows.append((version.to_bytes(4, "little") + inner, value))
        return rows

    def repin(self) -> list[Path]:
        """Make pins again that were removed or lead elsewhere: what packets run through is held open here."""
        return [*self.generation.repin(), *self.policies.repin()]

    def close(self) -> None:
        """Give handles back; everything pinned stays."""
        self.policies.close()
        self.node_state.close()
        self.endpoint_states.close()
        self.generation.close()


def load(pins: Pins, settings: Settings, wiring: NodeWiring) -> Datapath:
    """
    Load the next generation, carry rows whose layout changed, and open every target.

    Raises BpfError: then the programs and maps that were active are so, too.
    """
    generation = Generation.load(
        pins,
        config=options(settings, wiring),
        max_entries={
            "cilium_ct_v1": settings.bpf_ct_max,
            "cilium_snat_v1": settings.bpf_nat_max,
            "cilium_lb_services_v1": settings.bpf_lb_map_max,
            "cilium_lb_backends_v1": settings.bpf_lb_map_max,
            "cilium_lb_revnat_v1": settings.bpf_lb_map_max,
            "cilium_lb_affinity_v1": settings.bpf_lb_map_max,
            "cilium_lb_affinity_match_v1": settings.bpf_lb_map_max,
            "cilium_lb_source_range_v1": settings.bpf_lb_map_max,
            "cilium_lb_bind_v1": settings.bpf_lb_map_max,
            "cilium_ipcache_v1": settings.bpf_ipcache_max,
            "cilium_ipcache_lpm_v1": settings.bpf_ipcache_max,
            "cilium_events_v1": settings.bpf_events_size,
        },
        without=frozenset() if settings.translates_sockets else frozenset({SOCK}),
    )
    generation.activate()
    pins.commit()
    for one in generation.carried:
        log.info(
            "datapath.rows_carried",
            source=one.old,
            map=one.new,
            rows=one.rows,
            present=one.present,
            evicted=one.evicted,
        )
    directory = pins.root / POLICY_PINS
    directory.mkdir(mode=0o700, exist_ok=True)
    maps = generation.maps
    policies = PolicyMaps(maps["cilium_policy_classes_v1"], maps["cilium_policy_rules_v1"], directory)
    node_state = U64Array(maps["cilium_node_state_v1"])
    node_state[event_kinds.WORD] = event_kinds.configured(settings)
    endpoint_states = U64Array(maps[stages.STATES])
    hashes = (
        stages.IPCACHE,
        stages.IPCACHE_LPM,
        stages.LXC,
        stages.IFINDEX,
        stages.NETNS,
        stages.BACKENDS,
        stages.REVNAT,
        stages.AFFINITY_MATCH,
        stages.SOURCES,
        stages.BIND,
        stages.DEVICES,
        stages.NODES,
    )
    files = (stages.IDENTITY_FILE, stages.PREFIX_FILE, stages.PART_FILE, stages.ENDPOINT_FILE)
    # Prefixes are in the maps, and endpoints in their devices' names; which labels a number means is not.
    alone = {stages.IDENTITY_FILE}
    targets: dict[str, Target] = {name: MapTarget(maps[name]) for name in hashes}
    targets |= {name: StateFile(settings.state_dir / name, twice=name in alone) for name in files}
    services = maps[stages.SERVICES]
    targets[stages.SERVICE_SLOTS] = MapTarget(services, part=is_slot)
    targets[stages.SERVICES] = MapTarget(services, part=lambda key: not is_slot(key))
    targets[stages.POLICY] = policies
    targets[stages.FACTS] = ArrayTarget(maps[stages.FACTS])
    targets[stages.STATES] = WordsTarget(endpoint_states)
    targets[stages.ROUTES] = RemoteRoutes(
        wiring.host.host.ifindex,
        router=wiring.router,
        own=wiring.pod_cidr,
        router6=wiring.router6,
        own6=wiring.pod_cidr6,
    )
    return Datapath(generation, policies, node_state, endpoint_states, targets)


def options(settings: Settings, wiring: NodeWiring) -> dict[str, bool | int | bytes]:
    """Read-only data of the programs."""
    host = wiring.host.host
    values: dict[str, bool | int | bytes] = {
        "cilium_host_ifindex": host.ifindex,
        "cilium_host_mac": int.from_bytes(mac_bytes(host.mac), "little"),
        "nat_port_min": nat_ports.FIRST_PORT,
        "nat_port_max": nat_ports.LAST_PORT,
        "node_port": settings.serves_outside,
        "node_netns_cookie": own_cookie(),
        "host_legacy_routing": settings.host_legacy_routing,
        "sock_host_only": settings.bpf_lb_sock_hostns_only,
        # Beside kube-proxy it may be the one that binds.
        "bind_protection": settings.node_port_bind_protection and settings.serves_node_ports,
    }
    if wiring.router is not None:
        values |= {
            "masquerade": settings.enable_ipv4_masquerade,
            "router_ipv4": int(wiring.router),
            "loopback_ipv4": int(settings.loopback_ipv4),
        }
        if wiring.pod_cidr is not None:
            values |= _network("pod_cidr", wiring.pod_cidr)
        if settings.ipv4_native_routing_cidr is not None:
            values |= _network("native_cidr", settings.ipv4_native_routing_cidr)
    if wiring.router6 is not None:
        values |= {
            "ipv6": 1,
            "masquerade_ipv6": settings.enable_ipv6_masquerade,
            **halves6("router_ipv6", wiring.router6),
            **halves6("loopback_ipv6", settings.loopback_ipv6),
        }
        if wiring.pod_cidr6 is not None:
            values |= network6("pod_cidr", wiring.pod_cidr6)
        if settings.ipv6_native_routing_cidr is not None:
            values |= network6("native_cidr", settings.ipv6_native_routing_cidr)
    if wiring.overlay is not None:
        values |= {
            "tunnel": 1,
            "tunnel_ipv6": settings.underlay == 6,
            "overlay_ifindex": wiring.overlay.ifindex,
            "overlay_mtu": wiring.route_mtu,
            "tunnel_port": settings.tunnel_port,
        }
    return values


def _network(name: str, network: IPv4Network) -> dict[str, int]:
    return {f"{name}_ipv4": int(network.network_address), f"{name}_mask": int(network.netmask)}


def network6(name: str, network: IPv6Network) -> dict[str, int]:
    """The options that say an IPv6 network, eight bytes each in memory order."""
    address, mask = network.network_address, network.netmask
    return halves6(f"{name}_ipv6", address) | halves6(f"{name}_ipv6_mask", mask)


def halves6(name: str, address: IPv6Address) -> dict[str, int]:
    """The two options that say an IPv6 address."""
    return {
        f"{name}_{half}": int.from_bytes(address.packed[place], "little")
        for half, place in (("head", slice(8)), ("tail", slice(8, 16)))
    }


def device_rows(
    devices: tuple[NativeDevice, ...],
    internal: Collection[Addr] = (),
    held: Callable[[bytes], bytes | None] = lambda _: None,
) -> Mapping[bytes, bytes]:
    """
    Rows of ``cilium_devices_v1``: what pods are masqueraded as, by device.

    Of several addresses one that is *internal*: the cluster knows the node by it.  Where none is, or the node
    is not known yet, the one that the row *held* has, for flows that use it; else the kernel's first.
    """
    rows: dict[bytes, bytes] = {}
    for device in devices:
        key = device.ifindex.to_bytes(4, "little")
        row = held(key)
        before = () if row is None else _masquerades_as(abi.NativeDevice.unpack(row))
        ipv4, ipv6 = (
            next((addr for addr in (*internal, *before, *own) if addr in own), None)
            for own in (device.ipv4, device.ipv6)
        )
        rows[key] = abi.NativeDevice(
            ipv4=int(ipv4) if ipv4 else 0,
            check=device.ifindex,
            ipv6=ipv6.packed if ipv6 else bytes(16),
            mac=mac_bytes(device.mac),
            flags=0,
        ).pack()
    return rows


def _masquerades_as(row: abi.NativeDevice) -> tuple[Addr, Addr]:
    return IPv4Address(row.ipv4), IPv6Address(row.ipv6)


def ipv6_problem(wanted: bool, procfs: Path) -> str:
    """Why pods cannot have IPv6; empty when they can or need not."""
    if not wanted or (procfs / "sys/net/ipv6").is_dir():
        return ""
    return "--enable-ipv6: this kernel has no IPv6; boot it without ipv6.disable=1, or leave the option out"


def cgroup_problem(path: Path | None) -> str:
    """Why *path* cannot be the control group root; empty when it can or none is wanted."""
    if path is None or (path / "cgroup.controllers").exists():
        return ""
    return f"--cgroup-root {path} is no cgroup2 directory; mount cgroup2 or name another"
