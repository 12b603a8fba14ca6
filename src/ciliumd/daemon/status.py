# SPDX-License-Identifier: Apache-2.0
"""
The agent's account of itself, as Cilium's ``models.StatusResponse``.

Each part is asked now: links and maps in the kernel, threads, tasks, tables.  What this version does
not have is absent, which the CLI shows as Disabled.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

from ciliumd import abi
from ciliumd.bpf.errors import BpfError
from ciliumd.daemon import stages, status_models
from ciliumd.daemon.controllers import rfc3339
from ciliumd.daemon.health import cluster_nodes, local_node
from ciliumd.kubernetes.source import KubernetesStatus
from ciliumd.model.identity import CLUSTER_MAX, CLUSTER_MIN, Reserved
from ciliumd.model.net import Addr, addr16
from ciliumd.net import devices as net_devices
from ciliumd.net import links
from ciliumd.net.errors import NetError
from ciliumd.version import CILIUM_VERSION, cilium_version

if TYPE_CHECKING:
    from ciliumd.daemon.agent import Agent
    from ciliumd.daemon.attachments import Missing
    from ciliumd.reconcile.loop import Reconciler, ReconcilerStatus

Json = dict[str, Any]

PAGE = 4096
HUNG_SECONDS = 5.0
"""A call of a worker thread that takes longer is reported."""
DEAD_SECONDS = 60.0
"""One that takes longer than this will not come back."""


async def status(agent: Agent) -> Json:
    """Everything, read now."""
    reconciler = agent.reconciler.status()
    native, host_links, problems = await _network(agent)
    missing, generation, sockets = await _programs(agent, reconciler)
    problems += [f"detached: {one.text}" for one in missing]
    problems += _problems(agent, reconciler, generation)
    active = generation["active"]
    ring = agent.ring.stats()
    answer: Json = {
        "cilium": {
            "state": "Failure" if problems else "Ok",
            "msg": "; ".join(problems) if problems else f"{CILIUM_VERSION} (v{cilium_version()})",
        },
        "kvstore": {"state": status_models.DISABLED, "msg": ""},
        "kubernetes": status_models.kubernetes(_kubernetes(agent)),
        "kube-proxy-replacement": status_models.kube_proxy_replacement(
            agent.settings, native, active=active, sockets=sockets
        ),
        "host-firewall": {"mode": status_models.DISABLED},
        "policy-audit": _audit(agent),
        "limits": agent.limits.model(),
        "cni-chaining": {"mode": agent.settings.cni_chaining_mode},
        "cni-file": status_models.cni_file(agent.settings),
        "nodeMonitor": {
            "cpus": os.cpu_count() or 1,
            "npages": agent.map("cilium_events_v1").info.max_entries // PAGE,
            "pagesize": PAGE,
            "lost": ring.lost,
            "unknown": ring.unknown,
        },
        **_health(agent),
        "ipam": _ipam(agent),
        "host-routing": {
            "mode": status_models.host_routing(agent.settings, active=active and bool(host_links))
        },
        "attach-mode": "TCX" if agent.attachments.mode == "TCX" else "TC",
        "datapath-mode": "veth",
        "routing": status_models.routing(agent.settings, active=active),
        "masquerading": _masquerading(agent, missing, native),
        "controllers": [one.model() for one in agent.controllers.all()] + _stage_controllers(reconciler),
        "identity-range": {"min-identity": CLUSTER_MIN, "max-identity": CLUSTER_MAX},
        "encryption": {"mode": status_models.DISABLED},
        "clock-source": {"mode": "ktime"},
        "bpf-maps": {
            "maps": [
                {"name": name, "size": found.info.max_entries}
                for name, found in sorted(agent.datapath.generation.maps.items())
            ]
        },
        "datapath": {
            **generation["details"],
            "attached": f"{len(agent.attachments.devices)} devices, {len(missing)} programs missing",
            _source_name(agent): _objects(agent),
            "netlink": _netlink(agent),
            "socket LB": str(agent.attachments.cgroup) if sockets else status_models.DISABLED,
            "drift repaired": f"{agent.observer.drifted_rows} rows",
            "conntrack gc": f"{agent.gc.totals.conntrack} rows, {agent.gc.totals.nat} NAT rows removed",
            "terminated": _terminated(agent),
            "kernel": agent.kernel.kernel,
            **_carried(agent),
        },
    }
    return {name: part for name, part in answer.items() if part is not None}


def _audit(agent: Agent) -> Json | None:
    """Whose policies drop nothing; None where all are in force."""
    node, endpoints = agent.plan.node.audit, sorted(agent.plan.audited())
    return {"node": node, "endpoints": endpoints} if node or endpoints else None


def _carried(agent: Agent) -> dict[str, str]:
    """Rows that this start took over into another layout; nothing after any other start."""
    found = [f"{one.new} {one.rows}" for one in agent.datapath.generation.carried if one.rows]
    return {"rows carried": ", ".join(found)} if found else {}


def _terminated(agent: Agent) -> str:
    """What was ended because its backend had gone."""
    totals = agent.terminator.totals
    return f"{totals.sockets} sockets by {totals.how}, {totals.flows} flows"


async def unready(agent: Agent) -> str:
    """What keeps pods from relying on this node; empty when nothing does."""
    answer = await status(agent)
    said = [answer[part]["msg"] for part in ("cilium", "kubernetes") if answer[part]["state"] == "Failure"]
    return "; ".join(said)


def lifeless(agent: Agent) -> str:
    """What only another start would mend; empty when nothing is like that.  Asks no thread anything."""
    said = []
    thread = agent.netlink.status()
    if not thread.alive:
        said.append("netlink thread has ended")
    elif thread.age > DEAD_SECONDS:
        said.append(f"netlink thread hangs in {thread.running}")
    running = agent.reconciler.status().running
    if running is not None and running.seconds > DEAD_SECONDS:
        said.append(f"writer thread hangs in {running.stage} {running.operation}")
    return "; ".join(said)


async def _programs(agent: Agent, reconciler: ReconcilerStatus) -> tuple[list[Missing], Json, bool]:
    """What is not attached, which programs run, whether sockets are served; the writer thread is asked."""
    running = reconciler.running
    try:
        # One that is known to hang is not waited for.
        hangs = running is not None and running.seconds > HUNG_SECONDS
        async with asyncio.timeout(0 if hangs else HUNG_SECONDS):
            missing = await agent.attachments.missing()
            sockets = await agent.attachments.socket_lb()
            return missing, await agent.in_writer(lambda: _generation(agent)), sockets
    except TimeoutError:
        where = f" in {running.stage} {running.operation}" if running is not None else ""
        problem = f"writer thread hangs{where}"
    except (BpfError, NetError) as error:
        problem = f"programs cannot be looked at: {error}"
    return [], {"active": False, "problem": problem, "details": {"generation": "unknown"}}, False


async def _network(agent: Agent) -> tuple[tuple[net_devices.NativeDevice, ...], bool, list[str]]:
    """Native devices, whether cilium_host and cilium_net are up, and what is wrong."""
    thread = agent.netlink.status()
    if not thread.alive:
        return (), False, ["netlink thread has ended"]
    try:
        async with asyncio.timeout(0 if thread.age > HUNG_SECONDS else HUNG_SECONDS):
            return await _read_network(agent)
    except TimeoutError:
        return (), False, [f"netlink thread hangs in {agent.netlink.status().running}"]
    except NetError as error:
        return (), False, [f"devices cannot be looked at: {error}"]


async def _read_network(agent: Agent) -> tuple[tuple[net_devices.NativeDevice, ...], bool, list[str]]:
    problems: list[str] = []
    try:
        native = await agent.netlink.call(net_devices.native_devices, agent.settings.devices)
    except NetError as error:
        native = ()
        problems.append(str(error))
    up = True
    for name, ifindex in (
        (links.HOST_LINK, agent.host.host.ifindex),
        (links.NET_LINK, agent.host.net.ifindex),
    ):
        link = await agent.netlink.call(links.link_by_index, ifindex)
        if link is None or not link.up:
            up = False
            problems.append(
                f"{name} is {'gone' if link is None else 'down'}; restart the agent to make it again"
            )
    if not agent.watch.alive:
        problems.append("link watch has ended")
    return native, up, problems


def _generation(agent: Agent) -> Json:
    """Which programs packets run through."""
    number = agent.datapath.word(abi.NodeState.NODE_STATE_GENERATION)
    ours = agent.datapath.generation.number
    half = (number & 1) * abi.Hook.HOOK_MAX
    hooks = agent.map("cilium_hooks_v1")
    try:
        filled = [
            hook.name
            for hook in abi.Hook
            if hook is not abi.Hook.HOOK_MAX and hooks.lookup((half + hook).to_bytes(4, "little")) is not None
        ]
    except BpfError as error:
        return {"active": False, "problem": str(error), "details": {"generation": str(error)}}
    expected = {one.upper() for one in agent.datapath.generation.programs if one.startswith("hook_")}
    missing = sorted(expected - set(filled))
    problem = ""
    if number != ours:
        problem = f"generation {number} is active, this agent loaded {ours}"
    elif missing:
        problem = f"no program in {', '.join(missing)}"
    return {
        "active": not problem,
        "problem": problem,
        "details": {"generation": number, "hooks": f"{len(filled)} filled"},
    }


def _problems(agent: Agent, reconciler: ReconcilerStatus, generation: Json) -> list[str]:
    problems = [generation["problem"]] if generation["problem"] else []
    if not agent.tables.in_sync:
        problems.append(f"waiting for {_source_name(agent)}")
    elif not agent.synced:
        problems.append(f"writing what the {_source_name(agent)} say")
    if agent.health.unready:
        problems.append(agent.health.unready)
    problems += [
        f"{one.name}: {one.last_error}" for one in reconciler.stages if not one.in_sync and one.last_error
    ]
    error = agent.source.status().error
    if error and agent.settings.manifests is not None:
        problems.append(f"manifests directory {agent.settings.manifests}: {error}")
    return problems


def _kubernetes(agent: Agent) -> KubernetesStatus | None:
    """What the source says of the API server; None when the objects come from a directory."""
    found = agent.source.status()
    return found if isinstance(found, KubernetesStatus) else None


def _source_name(agent: Agent) -> str:
    return "objects of the cluster" if agent.settings.manifests is None else "manifests"


def _health(agent: Agent) -> Json:
    counted = agent.health.summary()
    return {
        "cluster": {
            "ciliumHealth": status_models.cluster_health(
                agent.health.problem,
                counted,
                endpoints=agent.settings.enable_endpoint_health_checking,
            ),
            "nodes": status_models.node_elements(cluster_nodes(agent)),
            "self": local_node(agent).full_name,
        },
        "cluster-health": status_models.reachability(counted),
    }


def _ipam(agent: Agent) -> Json:
    usages = [pool.usage for pool in agent.pools]
    return {
        "status": "".join(
            f"IPv{one.cidr.version}: {one.used}/{one.used + one.free} allocated from {one.cidr}, "
            for one in usages
        ),
        "allocations": {
            str(address): owner for pool in agent.pools for address, owner in pool.owners().items()
        },
    }


def _masquerading(agent: Agent, missing: list[Missing], native: tuple[net_devices.NativeDevice, ...]) -> Json:
    """On when it is wanted, and every native device has an address and its programs."""
    broken = {one.ifindex for one in missing}
    settings = agent.settings
    works = bool(native) and not any(one.ifindex in broken for one in native)
    wanted = settings.enable_ipv4 and settings.enable_ipv4_masquerade
    ipv4 = wanted and works and all(one.ipv4 for one in native)
    wanted6 = settings.enable_ipv6 and settings.enable_ipv6_masquerade
    ipv6 = wanted6 and works and all(one.ipv6 for one in native)
    exclusion, exclusion6 = settings.ipv4_native_routing_cidr, settings.ipv6_native_routing_cidr
    return {
        "enabled": ipv4 or ipv6,
        "mode": "BPF",
        "enabledProtocols": {"ipv4": ipv4, "ipv6": ipv6},
        "snat-exclusion-cidr-v4": str(exclusion) if exclusion else "",
        "snat-exclusion-cidr-v6": str(exclusion6) if exclusion6 else "",
        "ports": status_models.nat_ports(agent.gc.ports),
    }


def _stage_controllers(reconciler: ReconcilerStatus) -> list[Json]:
    """Each stage of the reconciler as a controller."""
    now, monotonic = time.time(), time.monotonic()

    def wall(when: float | None) -> str:
        return rfc3339(now - (monotonic - when) if when is not None else 0)

    return [
        {
            "name": f"reconcile-{one.name}",
            "status": {
                "consecutive-failure-count": 0 if one.in_sync or not one.last_error else max(1, one.failing),
                "last-failure-msg": "" if one.in_sync else one.last_error or "",
                "last-failure-timestamp": wall(one.last_error_at),
                "last-success-timestamp": wall(one.last_success),
            },
        }
        for one in reconciler.stages
    ]


def _objects(agent: Agent) -> str:
    found = agent.source.status()
    objects = f"{found.objects} objects, {found.problems} problems"
    return objects if isinstance(found, KubernetesStatus) else f"{found.files} files, {objects}"


def _netlink(agent: Agent) -> str:
    thread = agent.netlink.status()
    return f"{thread.calls} calls, {thread.failures} failed, {thread.queued} queued"


def identity_of_address(reconciler: Reconciler, address: Addr) -> int:
    """Identity of an address as the realized ipcache has it: the single address, else the longest prefix."""
    packed = addr16(address)
    single = reconciler.tracker(stages.IPCACHE).realized.get(abi.IpcacheKey(packed, 0).pack())
    if single is not None:
        return abi.IpcacheEntry.unpack(single).identity
    bits = int.from_bytes(packed, "big")
    best, identity = -1, int(Reserved.WORLD)
    for raw_key, raw in reconciler.tracker(stages.IPCACHE_LPM).realized.items():
        key = abi.IpcacheLpmKey.unpack(raw_key)
        length = key.prefixlen - 32
        shift = 128 - length
        if length > best and int.from_bytes(key.addr, "big") >> shift == bits >> shift:
            best, identity = length, abi.IpcacheEntry.unpack(raw).identity
    return identity
