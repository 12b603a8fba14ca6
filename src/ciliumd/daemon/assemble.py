# SPDX-License-Identifier: Apache-2.0
"""
From settings to an agent: every part built in the order in which they need each other.

What is built here takes over from an earlier agent: devices, maps, numbers and endpoints as they are.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import structlog

from ciliumd import abi
from ciliumd.bpf import features
from ciliumd.bpf.pins import Pins
from ciliumd.bpf.ringbuf import RingBuffer
from ciliumd.cni.server import CniServer
from ciliumd.daemon import datapath as loader
from ciliumd.daemon import replacement, stages, state
from ciliumd.daemon.agent import Agent
from ciliumd.daemon.attachments import Attachments, host_device, native_device, overlay_device
from ciliumd.daemon.cni import LiveRows, RuntimeEndpoints
from ciliumd.daemon.controllers import Controllers
from ciliumd.daemon.endpoints import Endpoints, PodNetwork
from ciliumd.daemon.gc import ConntrackGc
from ciliumd.daemon.health import build_health
from ciliumd.daemon.limits import Limits
from ciliumd.daemon.network import NodeNetwork
from ciliumd.daemon.node_facts import NodeFacts
from ciliumd.daemon.origin import Origin, StartFailed
from ciliumd.daemon.plan import NodePlan
from ciliumd.daemon.protected import protected_addresses
from ciliumd.daemon.reaper import Reaper
from ciliumd.daemon.recovery import readable, remembered_endpoints, restore_numbers
from ciliumd.daemon.release import Release
from ciliumd.daemon.settings import Settings
from ciliumd.daemon.terminate import Terminator
from ciliumd.daemon.unserved import Unserved
from ciliumd.daemon.wiring import MtuFollower, NodeWiring, wire_node
from ciliumd.desired.departed import reachable
from ciliumd.ipam.hostscope import HostScope
from ciliumd.metrics.tally import Tallies
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.label_filter import DEFAULT_TERMS, LabelFilter, parse_label_filter
from ciliumd.model.policy import Enforcement
from ciliumd.net import links, sysctl
from ciliumd.net.cgroup import CgroupNotFound, find_group_of_all_pods
from ciliumd.net.devices import node_port_addresses
from ciliumd.net.errors import NetError
from ciliumd.net.thread import NetlinkThread
from ciliumd.reconcile import restore
from ciliumd.reconcile.loop import Reconciler
from ciliumd.tables.schema import Tables

QUEUE = "deleteQueue"
"""Beside the state directory: what the CNI executable could not have deleted."""

log = structlog.get_logger("agent")


async def build(
    settings: Settings,
    stack: contextlib.AsyncExitStack,
    origin: Origin,
    *,
    tables: Tables,
    tallies: Tallies,
    started: float,
) -> Agent:
    """Every part, in the order in which they need each other."""
    loop = asyncio.get_running_loop()
    writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
    stack.callback(writer.shutdown)
    # Attaching waits for the kernel: map writes must not wait with it.
    waiter = ThreadPoolExecutor(1, thread_name_prefix="attach")
    stack.callback(waiter.shutdown)

    found = features.probe()
    settings = _settled(settings)
    pins = Pins(settings.bpf_root, state_dir=settings.state_dir)
    stack.callback(pins.close)
    netlink = NetlinkThread()
    netlink.start()
    stack.push_async_callback(netlink.stop)

    ipam = HostScope(origin.pod_cidr) if origin.pod_cidr is not None else None
    _protect_node_ports(settings)
    ipam6 = HostScope(origin.pod_cidr6) if origin.pod_cidr6 is not None else None
    wiring = await wire_node(
        netlink,
        settings,
        router=IPv4Address(ipam.router) if ipam is not None else None,
        pod_cidr=origin.pod_cidr,
        router6=IPv6Address(ipam6.router) if ipam6 is not None else None,
        pod_cidr6=origin.pod_cidr6,
    )
    datapath = await loop.run_in_executor(writer, lambda: loader.load(pins, settings, wiring))
    stack.callback(datapath.close)
    for one in datapath.generation.carried:
        tallies.map_ops.add(one.new, "carry", "success", by=one.rows)
    tcx = found.tcx if settings.attach_mode == "auto" else settings.attach_mode == "tcx"
    attachments = Attachments(
        datapath.generation,
        netlink=netlink,
        executor=writer,
        waiter=waiter,
        tcx=tcx,
        cgroup=_cgroup(settings),
    )
    await _attach_node(attachments, wiring)
    log.info(
        "agent.datapath_attached",
        generation=datapath.generation.number,
        mode=attachments.mode,
        seconds=round(time.monotonic() - started, 3),
    )

    plan = NodePlan(
        tables,
        await _node_facts(settings, origin, wiring, writer),
        reserve_version=lambda number: datapath.set_word(
            abi.NodeState.NODE_STATE_NEXT_POLICY_VERSION, number
        ),
        next_version=max(1, datapath.word(abi.NodeState.NODE_STATE_NEXT_POLICY_VERSION)),
        clock=time.monotonic,
    )
    agent = Agent(
        settings=settings,
        started=started,
        origin=origin,
        kernel=found,
        tables=tables,
        plan=plan,
        datapath=datapath,
        attachments=attachments,
        pools=tuple(pool for pool in (ipam, ipam6) if pool is not None),
        netlink=netlink,
        tallies=tallies,
        controllers=Controllers(tallies),
        writer=writer,
        wiring=wiring,
        native=wiring.native,
    )
    network = PodNetwork(
        wiring.router, wiring.mtu, len(datapath.endpoint_states), wiring.route_mtu, wiring.router6
    )
    agent.reconciler = Reconciler(
        stages.stages(
            plan,
            tables,
            datapath.targets,
            devices=lambda: loader.device_rows(
                agent.native,
                plan.internal_addresses,
                agent.reconciler.tracker(stages.DEVICES).held,
            ),
            route_mtu=lambda: network.route_mtu,
        ),
        executor=writer,
        may_delete=lambda: tables.in_sync,
        unfinished=plan.unfinished,
        observer=agent.observer,
        drift_interval=settings.drift_interval,
    )
    await agent.reconciler.load()
    restore_numbers(tables, rows=lambda name: agent.reconciler.tracker(name).realized)
    _restore_plan(agent)
    removal = NetlinkThread("removal")
    removal.start()
    stack.push_async_callback(removal.stop)
    agent.reaper = Reaper(removal, detach=attachments.detach)
    agent.endpoints_owner = Endpoints(
        tables,
        network=network,
        ipam=ipam,
        ipam6=ipam6,
        netlink=netlink,
        attachments=attachments,
        reaper=agent.reaper,
        next_slot_gen=agent.next_slot_gen,
        realized=agent.endpoint_realized,
    )
    await agent.endpoints_owner.restore(await _restored_endpoints(agent))
    await attachments.detach_leftovers()
    tables.endpoints.mark_initialized()

    records = RingBuffer(datapath.generation.maps["cilium_events_v1"], record_size=abi.Event.SIZE)
    stack.callback(records.close)
    agent.follow_flows(records)
    stack.callback(agent.ring.stop)
    agent.health = build_health(agent)
    agent.cni = _cni_server(agent)
    _add_followers(agent)
    agent.gc = ConntrackGc(datapath.generation.maps, executor=writer)
    agent.terminator = _terminator(agent)
    agent.expose_metrics()
    tallies.bootstrap_seconds.set("datapath", "success", to=time.monotonic() - started)
    return agent


def _settled(settings: Settings) -> Settings:
    """The settings this kernel can do.  Raises StartFailed."""

    def tell(kind: str, what: str) -> None:
        log.info("agent.left_to_kube_proxy", services=kind, kernel_lacks=what)

    lacks = {kind: what for kind, what in features.service_lacks().items() if kind in settings.served_here}
    try:
        changes = replacement.settle(settings.kube_proxy_replacement, lacks, tell)
    except replacement.KernelLacks as error:
        raise StartFailed(str(error)) from error
    return settings.model_copy(update=changes)


async def _node_facts(
    settings: Settings, origin: Origin, wiring: NodeWiring, writer: ThreadPoolExecutor
) -> NodeFacts:
    """What the plan knows of the node; addresses nobody may take are read from files, in the *writer*."""
    protected = asyncio.get_running_loop().run_in_executor(writer, protected_addresses, origin.api_server)
    return NodeFacts(
        name=settings.node_name or os.uname().nodename,
        cluster=settings.cluster_name,
        addresses=wiring.addresses,
        node_port_addresses=node_port_addresses(wiring.native),
        tunnel=wiring.overlay is not None,
        underlay=settings.underlay,
        pod_cidrs=tuple(one for one in (origin.pod_cidr, origin.pod_cidr6) if one is not None),
        protected=await protected,
        allowed=settings.allow_external_addresses,
        external_cluster_ip=settings.bpf_lb_external_clusterip,
        serves=settings.kinds_served if wiring.router is not None else frozenset(),
        serves6=settings.kinds_served if wiring.router6 is not None else frozenset(),
        proxy=settings.k8s_service_proxy_name,
        families=frozenset(router.version for router in wiring.routers),
        allocates=origin.numbers_identities,
        enforcement=Enforcement(settings.enable_policy),
        audit=settings.policy_audit_mode,
        answers_denied=settings.policy_deny_response == "icmp",
        label_filter=_label_filter(settings.labels, option="labels"),
        node_labels=(
            _label_filter(settings.node_labels, option="node-labels", before=())
            if settings.enable_node_selector_labels
            else None
        ),
    )


async def _attach_node(attachments: Attachments, wiring: NodeWiring) -> None:
    """Hang the programs on everything but pods."""
    await attachments.attach(host_device(wiring.host.net.ifindex))
    if wiring.overlay is not None:
        await attachments.attach(overlay_device(wiring.overlay.ifindex))
    for device in wiring.native:
        await attachments.attach(native_device(device.ifindex, device.name))
    await attachments.attach_cgroup()


def _cgroup(settings: Settings) -> Path | None:
    """The control group whose sockets are served.  Raises StartFailed."""
    if not settings.translates_sockets:
        return None
    if settings.cgroup_root == "auto":
        try:
            return find_group_of_all_pods()
        except CgroupNotFound as error:
            raise StartFailed(str(error)) from error
    if problem := loader.cgroup_problem(settings.cgroup_root):
        raise StartFailed(problem)
    return settings.cgroup_root


def _label_filter(words: Iterable[str], *, option: str, before: Iterable[str] = DEFAULT_TERMS) -> LabelFilter:
    """Which labels identities are made of, by the *words* of an *option*.  Raises StartFailed."""
    try:
        return parse_label_filter(" ".join(words), before=before)
    except ValueError as error:
        raise StartFailed(f"--{option}: {error}") from error


def _restore_plan(agent: Agent) -> None:
    """What the plan goes on from: versions, who is under which, prefixes they tell apart, slots."""
    agent.plan.prefixes.identity_at = stages.prefixes_written(agent.reconciler)
    agent.plan.parts.restore(
        stages.judged_as_written(agent.reconciler), stages.judged_addresses(agent.reconciler)
    )
    agent.plan.services.restore_slots(stages.slots_made(agent.reconciler))
    tracker = agent.reconciler.tracker
    agent.plan.nodes.restore(restore.nodes(tracker(stages.IPCACHE).realized))
    live = restore.endpoints(tracker(stages.FACTS).realized, tracker(stages.STATES).realized)
    agent.plan.restore_versions(
        tracker(stages.POLICY).realized, versions={one.id: one.policy_version for one in live.values()}
    )


def _add_followers(agent: Agent) -> None:
    """The parts that follow manifests, the node's network, numbers nobody wants, and rows without room."""
    settings, tables, reconciler = agent.settings, agent.tables, agent.reconciler
    agent.source = agent.origin.source(tables)
    agent.network = NodeNetwork(
        settings.devices,
        native=agent.native,
        netlink=agent.netlink,
        attachments=agent.attachments,
        told=agent.network_is,
        follow_mtu=MtuFollower(
            settings, agent.wiring, agent.endpoints_owner.network, netlink=agent.netlink
        ).look,
    )
    agent.release = Release(
        tables,
        agent.plan,
        rows=lambda name: reconciler.tracker(name).realized,
        settled=lambda: reconciler.status().in_sync,
        readers={"problems": agent.problems_seen},
        clock=time.monotonic,
    )
    agent.limits = Limits(tables, agent.map_usage)
    agent.unserved = Unserved(
        reconciler,
        agent.plan,
        service_ids=tables.service_ids.live,
        backend_ids=tables.backend_ids.live,
    )
    agent.after_round.append(agent.unserved.look)


def _cni_server(agent: Agent) -> CniServer:
    """Where container runtimes have pods made."""
    settings = agent.settings
    rows = LiveRows(
        lambda name: agent.reconciler.tracker(name).desired,
        agent.datapath.generation.maps,
        settle=agent.reconciler.flush,
        executor=agent.writer,
    )
    return CniServer(
        settings.cni_socket,
        RuntimeEndpoints(agent.tables, agent.endpoints_owner, agent.attachments, rows.missing),
        ready=agent.unready,
        wait_for_pod=agent.pod_known,
        queue_dir=settings.state_dir.parent / QUEUE,
        observe=agent.tallies.cni_request,
    )


def _protect_node_ports(settings: Settings) -> None:
    """Keep sockets that name no port from node ports; that it cannot be done is told, and nothing else."""
    if not (settings.enable_auto_protect_node_port_range and settings.serves_node_ports):
        return
    first, last = settings.node_port_range
    try:
        if sysctl.reserve_ports(first, last):
            log.info("agent.node_ports_reserved", ports=f"{first}-{last}")
    except NetError as error:
        log.warning("agent.node_ports_not_reserved", ports=f"{first}-{last}", error=str(error))


def _terminator(agent: Agent) -> Terminator:
    """What ends connections to backends that are gone; it looks when a round had other services."""
    settings, tables, plan = agent.settings, agent.tables, agent.plan
    # Elsewhere than at the node's own nobody but CAP_SYS_ADMIN may look.
    enters = (
        settings.bpf_lb_sock_terminate_pod_connections
        and not settings.bpf_lb_sock_hostns_only
        and "CAP_SYS_ADMIN" in agent.kernel.capabilities
    )
    terminator = Terminator(
        maps=agent.datapath.generation.maps,
        executor=agent.writer,
        reachable=lambda: reachable(
            plan.services.each(),
            tables.service_ids.live(),
            tables.backend_ids.live(),
            all_protocols=settings.lb_sock_terminate_all_protos,
        ),
        namespaces=lambda: {one.netns for one in tables.endpoints.values() if enters and one.netns},
        sockets=agent.attachments.cgroup is not None,
        tally=agent.tallies.terminated,
    )
    seen = [0]

    def look() -> None:
        if seen[0] != plan.services.revision:
            seen[0] = plan.services.revision
            terminator.look()

    agent.after_round.append(look)
    return terminator


async def _restored_endpoints(agent: Agent) -> list[EndpointSpec]:
    """Those of the file, and those that only the kernel remembers."""
    tracker = agent.reconciler.tracker
    rows = tracker(stages.ENDPOINT_FILE).realized
    found = {
        one.id: one for one in readable(stages.ENDPOINT_FILE, rows, lambda _, row: state.endpoint_of(row))
    }
    devices = await agent.netlink.call(links.endpoint_links)
    remembered = remembered_endpoints(
        devices.values(),
        slots=tracker(stages.IFINDEX).realized,
        facts=tracker(stages.FACTS).realized,
        states=tracker(stages.STATES).realized,
    )
    for one in remembered:
        if one.id not in found:
            log.warning("endpoint.recovered", endpoint=one.id, reason="missing in the file of endpoints")
            found[one.id] = one
    return list(found.values())
