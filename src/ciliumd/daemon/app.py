# SPDX-License-Identifier: Apache-2.0
"""
``ciliumd agent``: every part built in order, run together, taken down in reverse.

A signal ends the process; what is attached and pinned goes on without it.
"""

import asyncio
import contextlib
import os
import resource
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import structlog
import uvloop

from ciliumd import abi
from ciliumd.bpf import features
from ciliumd.bpf.errors import BpfError
from ciliumd.bpf.generation import GRACE_SECONDS, retire
from ciliumd.bpf.pins import Pins
from ciliumd.bpf.ringbuf import RingBuffer
from ciliumd.daemon import datapath as loader
from ciliumd.daemon import stages, state
from ciliumd.daemon.agent import Agent
from ciliumd.daemon.api import Api
from ciliumd.daemon.attachments import Attachments, host_device, native_device
from ciliumd.daemon.controllers import Controllers
from ciliumd.daemon.endpoints import Endpoints, PodNetwork
from ciliumd.daemon.exporter import Exporter
from ciliumd.daemon.gc import ConntrackGc
from ciliumd.daemon.logs import configure
from ciliumd.daemon.network import NodeNetwork
from ciliumd.daemon.plan import NodeFacts, NodePlan
from ciliumd.daemon.recovery import readable, remembered_endpoints, restore_numbers
from ciliumd.daemon.release import Release
from ciliumd.daemon.settings import Settings, SettingsInvalid, read_settings
from ciliumd.ipam.hostscope import HostScope, IpamError
from ciliumd.metrics.tally import Tallies
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.net import devices as net_devices
from ciliumd.net import links
from ciliumd.net.errors import NetError
from ciliumd.net.host import HostWiring, ensure_host
from ciliumd.net.thread import NetlinkThread
from ciliumd.net.watch import Event, EventsLost, LinkWatch
from ciliumd.reconcile import restore
from ciliumd.reconcile.loop import Reconciler
from ciliumd.sources.directory import DirectorySource
from ciliumd.sources.lastgood import LastGoodFile
from ciliumd.tables.schema import Tables

ATTACH_CHECK_SECONDS = 10.0
MAP_PRESSURE_SECONDS = 30.0
NUMBERS_SECONDS = 10.0
LAST_GOOD_FILE = "last-good.json"
EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

log = structlog.get_logger("agent")


class StartFailed(Exception):
    """The agent cannot start; the text says what, where, and what to do."""


def main(argv: list[str]) -> int:
    """Run the agent until a signal; the exit code."""
    try:
        settings = read_settings(argv)
    except SettingsInvalid as error:
        sys.stderr.write(f"ciliumd agent: {error}; see ciliumd agent --help\n")
        return EXIT_USAGE
    configure(level=settings.log_level, form=settings.log_format)
    raise_file_limit()
    try:
        uvloop.run(run(settings))
    except (StartFailed, BpfError, NetError, IpamError, OSError) as error:
        log.error("agent.failed", error=str(error))  # noqa: TRY400  the text says it all
        return EXIT_FAILED
    return EXIT_OK


def raise_file_limit() -> None:
    """Every policy version is two open maps, so a large node needs more descriptors than a login shell."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def run(settings: Settings) -> None:
    """Build, run, take down."""
    started = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        agent = await build(settings, stack, started)
        await serve(agent, stack)


async def build(settings: Settings, stack: contextlib.AsyncExitStack, started: float) -> Agent:
    """Every part, in the order in which they need each other."""
    if not settings.manifests.is_dir():
        raise StartFailed(f"--manifests {settings.manifests} is no directory; create it or name another")
    if problem := loader.cgroup_problem(settings.cgroup_root):
        raise StartFailed(problem)
    loop = asyncio.get_running_loop()
    tallies = Tallies()
    writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
    stack.callback(writer.shutdown)

    found = features.probe()
    settings.state_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
    pins = Pins(settings.bpf_root, state_dir=settings.state_dir)
    stack.callback(pins.close)

    netlink = NetlinkThread()
    netlink.start()
    stack.push_async_callback(netlink.stop)
    ipam = HostScope(settings.pod_cidr)
    mtu = settings.mtu or await netlink.call(links.default_mtu)
    host = await netlink.call(
        ensure_host,
        HostWiring(router=ipam.router, pod_cidr=settings.pod_cidr, mtu=mtu),  # type: ignore[arg-type]
    )
    for warning in host.warnings:
        log.warning("agent.machine_setting", problem=warning)
    native = await netlink.call(net_devices.native_devices, settings.devices)
    addresses = await netlink.call(net_devices.node_addresses)

    datapath = await loop.run_in_executor(
        writer,
        lambda: loader.load(pins, settings, router=ipam.router, host=host),  # type: ignore[arg-type]
    )
    stack.callback(datapath.close)
    tcx = found.tcx if settings.attach_mode == "auto" else settings.attach_mode == "tcx"
    attachments = Attachments(
        datapath.generation, netlink=netlink, executor=writer, tcx=tcx, cgroup=settings.cgroup_root
    )
    await attachments.attach(host_device(host.net.ifindex))
    for device in native:
        await attachments.attach(native_device(device.ifindex, device.name))
    await attachments.attach_cgroup()
    log.info(
        "agent.datapath_attached",
        generation=datapath.generation.number,
        mode=attachments.mode,
        seconds=round(time.monotonic() - started, 3),
    )

    tables = Tables()
    plan = NodePlan(
        tables,
        NodeFacts(
            settings.node_name or os.uname().nodename,
            settings.cluster_name,
            tuple(sorted(addresses, key=str)),
        ),
        reserve_version=lambda number: datapath.set_word(
            abi.NodeState.NODE_STATE_NEXT_POLICY_VERSION, number
        ),
        next_version=max(1, datapath.word(abi.NodeState.NODE_STATE_NEXT_POLICY_VERSION)),
        clock=time.monotonic,
    )
    agent = Agent(
        settings=settings,
        started=started,
        kernel=found,
        tables=tables,
        plan=plan,
        datapath=datapath,
        attachments=attachments,
        ipam=ipam,
        netlink=netlink,
        tallies=tallies,
        controllers=Controllers(tallies),
        host=host,
        native=native,
    )
    agent.reconciler = Reconciler(
        stages.stages(plan, tables, datapath.targets, devices=lambda: loader.device_rows(agent.native)),
        executor=writer,
        may_delete=lambda: tables.in_sync,
        observer=agent.observer,
        drift_interval=settings.drift_interval,
    )
    await agent.reconciler.load()
    restore_numbers(tables, rows=lambda name: agent.reconciler.tracker(name).realized)
    _restore_versions(agent)
    agent.endpoints_owner = Endpoints(
        tables,
        network=PodNetwork(ipam.router, mtu, len(datapath.endpoint_states)),  # type: ignore[arg-type]
        ipam=ipam,
        netlink=netlink,
        attachments=attachments,
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
    _add_followers(agent)
    agent.gc = ConntrackGc(datapath.generation.maps, executor=writer)
    agent.expose_metrics()
    tallies.bootstrap_seconds.set("datapath", "success", to=time.monotonic() - started)
    return agent


def _restore_versions(agent: Agent) -> None:
    """Policy versions of an earlier agent, and who is under which."""
    tracker = agent.reconciler.tracker
    live = restore.endpoints(tracker(stages.FACTS).realized, tracker(stages.STATES).realized)
    agent.plan.restore_versions(
        tracker(stages.POLICY).realized, versions={one.id: one.policy_version for one in live.values()}
    )


def _add_followers(agent: Agent) -> None:
    """The parts that follow manifests, the node's network, and numbers nobody wants."""
    settings, tables, reconciler = agent.settings, agent.tables, agent.reconciler
    last_good = LastGoodFile(settings.state_dir / LAST_GOOD_FILE)
    agent.source = DirectorySource(settings.manifests, tables, last_good=last_good)
    agent.network = NodeNetwork(
        settings.devices,
        native=agent.native,
        netlink=agent.netlink,
        attachments=agent.attachments,
        told=agent.network_is,
    )
    agent.release = Release(
        tables,
        agent.plan,
        rows=lambda name: reconciler.tracker(name).realized,
        settled=lambda: reconciler.status().in_sync,
        readers={"problems": agent.problems_seen},
        clock=time.monotonic,
    )


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


async def serve(agent: Agent, stack: contextlib.AsyncExitStack) -> None:
    """Run every task until a signal or until one of them fails."""
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)

    def on_event(event: Event) -> None:
        loop.call_soon_threadsafe(agent.network_changed, event)

    watch = LinkWatch(on_event)
    watch.start()
    stack.callback(watch.stop)
    agent.watch = watch
    # What happened between reading and watching is seen now.
    agent.network_changed(EventsLost())

    for table in (
        agent.tables.namespaces,
        agent.tables.pods,
        agent.tables.services,
        agent.tables.slices,
        agent.tables.policies,
        agent.tables.endpoints,
    ):
        table.subscribe(agent.reconciler.trigger)
    agent.tables.problems.subscribe(agent.count_problems)
    agent.ring.start()
    api = Api(agent, agent.settings.api_socket)
    await api.start()
    stack.push_async_callback(api.stop)
    exporter = Exporter(agent.settings.metrics_address, agent.exposition)
    await exporter.start()
    stack.push_async_callback(exporter.stop)

    repeat = agent.controllers.repeat
    work = [
        agent.source.run(),
        agent.reconciler.run(),
        agent.first_round(),
        agent.network.run(),
        repeat("attachments", ATTACH_CHECK_SECONDS, agent.repair_attachments),
        repeat("conntrack-gc", agent.settings.conntrack_gc_interval, agent.gc.collect),
        repeat("policy-versions", 1.0, agent.retire_versions),
        repeat("numbers", NUMBERS_SECONDS, agent.release_numbers),
        repeat("map-pressure", MAP_PRESSURE_SECONDS, agent.read_usage),
        _retire_generations(agent),
    ]
    tasks = [asyncio.create_task(one) for one in work]
    stopped = asyncio.create_task(ending.wait())
    log.info("agent.started", pid=os.getpid(), seconds=round(time.monotonic() - agent.started, 3))
    try:
        done, _ = await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        while stopped not in done:
            for task in done:
                task.result()  # a task that ended by an exception ends the agent
            waiting = [task for task in (*tasks, stopped) if not task.done()]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # While the reconciler still runs: what is under way is finished or undone.
        await agent.endpoints_owner.stop()
        for task in (*tasks, stopped):
            task.cancel()
        await asyncio.gather(*tasks, stopped, return_exceptions=True)
    log.info("agent.stopped")


async def _retire_generations(agent: Agent) -> None:
    """Let the generation before this one go when no packet can be in it any more."""
    await asyncio.sleep(GRACE_SECONDS)
    pins = agent.datapath.generation.pins
    await agent.in_writer(lambda: retire(pins))
