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
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog
import uvloop

from ciliumd.bpf.errors import BpfError
from ciliumd.bpf.generation import GRACE_SECONDS, retire
from ciliumd.cni.conf import Conf, conflist
from ciliumd.daemon import status
from ciliumd.daemon.agent import Agent
from ciliumd.daemon.answers import Answers
from ciliumd.daemon.api import Api
from ciliumd.daemon.assemble import QUEUE, build
from ciliumd.daemon.datapath import ipv6_problem
from ciliumd.daemon.logs import configure
from ciliumd.daemon.origin import DirectoryOrigin, Origin, StartFailed
from ciliumd.daemon.runtime_config import write_runtime_config
from ciliumd.daemon.service_health import SECONDS as SERVICE_HEALTH_SECONDS
from ciliumd.daemon.service_health import ServiceHealth
from ciliumd.daemon.settings import Settings, SettingsInvalid, config_directory, read_settings
from ciliumd.health.listener import Page
from ciliumd.health.server import HealthzServer
from ciliumd.ipam.hostscope import IpamError
from ciliumd.metrics.registry import CONTENT_TYPE
from ciliumd.metrics.tally import Tallies
from ciliumd.net import sysctl
from ciliumd.net.errors import NetError
from ciliumd.net.watch import Event, EventsLost, LinkWatch
from ciliumd.resources import parser
from ciliumd.tables.schema import Tables

PIN_CHECK_SECONDS = 10.0
MAP_PRESSURE_SECONDS = 30.0
NUMBERS_SECONDS = 10.0
CNI_QUEUE_SECONDS = 5.0
LINK_SECONDS = 1.0
TERMINATE_SECONDS = 0.5
RETIRED_SECONDS = 30.0
CNI_CONF_SECONDS = 5.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

T = TypeVar("T")

log = structlog.get_logger("agent")


def main(argv: list[str]) -> int:
    """Run the agent until a signal; the exit code."""
    try:
        settings = read_settings(argv)
    except SettingsInvalid as error:
        sys.stderr.write(f"ciliumd agent: {error}; see ciliumd agent --help\n")
        return EXIT_USAGE
    configure(level=settings.log_level, form=settings.log_format)
    _tell_of_options(settings)
    _tell_of_replacement(settings)
    raise_file_limit()
    try:
        uvloop.run(run(settings))
    except (StartFailed, BpfError, NetError, IpamError, OSError) as error:
        log.error("agent.failed", error=str(error))  # noqa: TRY400  the text says it all
        return EXIT_FAILED
    return EXIT_OK


def _tell_of_options(settings: Settings) -> None:
    """What the directory of options says that nobody reads, or that has another name today."""
    if settings.config_dir is None:
        return
    found = config_directory(settings.config_dir)
    for one in found.unknown:
        log.warning("agent.unknown_option", key=one.key, nearest=one.nearest)
    for one in found.deprecated:
        log.info("agent.deprecated_option", key=one.key, hint=one.text)


def _tell_of_replacement(settings: Settings) -> None:
    """One line about a word of Cilium 1.13 and before."""
    mode = settings.kube_proxy_replacement
    if mode.today:
        hint = f"write kube-proxy-replacement={mode.today} instead of {mode.value}"
        log.info("agent.deprecated_option", key="kube-proxy-replacement", hint=hint)


def _tell_of_audit(agent: Agent) -> None:
    """Whose policies drop nothing: nobody should find that out by accident."""
    audited = sorted(agent.plan.audited())
    if agent.settings.policy_audit_mode or audited:
        log.warning("agent.policies_are_audited", node=agent.settings.policy_audit_mode, endpoints=audited)


def raise_file_limit() -> None:
    """Every policy version is two open maps, so a large node needs more descriptors than a login shell."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def run(settings: Settings) -> None:
    """Build, run, take down."""
    started = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        settings.state_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        _tell_clients(settings)
        sysctl.write_below(settings.procfs)
        tables, tallies = Tables(), Tallies()
        origin = await _until_signal(find_origin(settings, stack, tables, tallies))
        if origin is None:
            return
        agent = await build(settings, stack, origin, tables=tables, tallies=tallies, started=started)
        _tell_of_audit(agent)
        await serve(agent, stack)


def _tell_clients(settings: Settings) -> None:
    """Say what this agent has; a disk that is full or read-only must not keep it from starting."""
    try:
        write_runtime_config(settings)
    except OSError as error:
        log.warning("agent.runtime_config_not_written", directory=str(settings.state_dir), error=str(error))


async def find_origin(
    settings: Settings, stack: contextlib.AsyncExitStack, tables: Tables, tallies: Tallies
) -> Origin:
    """Where this node's objects come from, once that is known.  Raises StartFailed."""
    if problem := ipv6_problem(settings.enable_ipv6, settings.procfs):
        raise StartFailed(problem)
    if settings.manifests is not None:
        return DirectoryOrigin(
            settings.manifests,
            pod_cidr=settings.pod_cidr if settings.enable_ipv4 else None,
            pod_cidr6=settings.pod_cidr_ipv6 if settings.enable_ipv6 else None,
            state_dir=settings.state_dir,
            parse=parser(node_selectors=settings.enable_node_selector_labels),
        )
    # A node that stands alone needs no client of an API server, and not the memory it takes.
    from ciliumd.daemon.membership import ClusterOrigin

    origin = await ClusterOrigin.join(
        settings, tables, observe=tallies.kubernetes_request, received=tallies.kubernetes_event
    )
    stack.push_async_callback(origin.close)
    return origin


async def _until_signal(work: Coroutine[Any, Any, T]) -> T | None:
    """The result of *work*; None when a signal ends the agent before that."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    for number in SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return None


async def serve(agent: Agent, stack: contextlib.AsyncExitStack) -> None:
    """Run every task until a signal or until one of them fails."""
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in SIGNALS:
        loop.add_signal_handler(number, ending.set)

    def on_event(event: Event) -> None:
        loop.call_soon_threadsafe(agent.network_changed, event)

    watch = LinkWatch(on_event)
    watch.start()
    stack.callback(watch.stop)
    agent.watch = watch
    # What happened between reading and watching is seen now.
    agent.network_changed(EventsLost())

    for table in (*agent.tables.sources, agent.tables.endpoints):
        table.subscribe(agent.reconciler.trigger)
    agent.tables.nodes.subscribe(agent.health.nodes_changed)
    agent.tables.problems.subscribe(agent.count_problems)
    agent.ring.start()
    api = Api(Answers(agent), agent.settings.api_socket)
    await api.start()
    stack.push_async_callback(api.stop)
    metrics = Page(agent.settings.metrics_address, "/metrics", agent.exposition, content_type=CONTENT_TYPE)
    await metrics.start()
    stack.push_async_callback(metrics.stop)

    services = ServiceHealth(agent)
    await services.start()
    stack.push_async_callback(services.stop)
    await agent.cni.start()
    stack.push_async_callback(agent.cni.stop)
    await _serve_health(agent, stack)

    repeat = agent.controllers.repeat
    work = [
        agent.source.run(),
        agent.reconciler.run(),
        agent.first_round(),
        agent.network.run(),
        agent.health.run(),
        repeat("cni-delete-queue", CNI_QUEUE_SECONDS, agent.cni.replay_queue),
        repeat("links", LINK_SECONDS, agent.attachments.catch_up),
        repeat("retired-devices", RETIRED_SECONDS, agent.reaper.sweep),
        repeat("attachments", agent.attachments.check_seconds, agent.repair_attachments),
        repeat("pins", PIN_CHECK_SECONDS, agent.repair_pins),
        repeat("conntrack-gc", agent.settings.conntrack_gc_interval, agent.gc.collect),
        repeat("policy-versions", 1.0, agent.retire_versions),
        repeat("service-health", SERVICE_HEALTH_SECONDS, services.look),
        repeat("numbers", NUMBERS_SECONDS, agent.release_numbers),
        repeat("map-pressure", MAP_PRESSURE_SECONDS, agent.read_usage),
        _end_departed(agent),
        _retire_generations(agent),
        _tell_ready(agent),
        _keep_cni_configuration(agent),
        *agent.origin.work(agent),
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


async def _serve_health(agent: Agent, stack: contextlib.AsyncExitStack) -> None:
    """Answer the kubelet; a node without a cluster has none, and may share the machine with others."""
    if agent.origin.numbers_identities:
        return

    server = HealthzServer(
        agent.settings.agent_health_port,
        unready=lambda: status.unready(agent),
        lifeless=lambda: status.lifeless(agent),
    )
    await server.start()
    stack.push_async_callback(server.stop)


async def _tell_ready(agent: Agent) -> None:
    """Say once how long it took until maps are what objects say: Cilium's metric with the scope `overall`."""
    await agent.ready()
    seconds = time.monotonic() - agent.started
    agent.tallies.bootstrap_seconds.set("overall", "success", to=seconds)
    log.info("agent.ready", seconds=round(seconds, 3))


async def _keep_cni_configuration(agent: Agent) -> None:
    """Once pods can be made runtimes are told so, and other configurations are kept aside."""
    settings = agent.settings
    if settings.write_cni_conf_when_ready is None:
        return
    content = conflist(
        portmap=not settings.serves_host_ports,
        debug=settings.debug,
        ipv6=agent.origin.pod_cidr6 is not None,
        socket=settings.cni_socket,
        queue=settings.state_dir.parent / QUEUE,
    )
    conf = Conf(settings.write_cni_conf_when_ready, content, exclusive=settings.cni_exclusive)
    await agent.ready()
    await agent.controllers.repeat(
        "cni-configuration", CNI_CONF_SECONDS, lambda: asyncio.to_thread(conf.enforce)
    )


async def _end_departed(agent: Agent) -> None:
    """From when all services are in the maps on, connections to backends that are gone are ended."""
    await agent.ready()
    agent.terminator.look()
    await agent.controllers.repeat("lb-terminate", TERMINATE_SECONDS, agent.terminator.work)


async def _retire_generations(agent: Agent) -> None:
    """Let the generation before this one go when no packet can be in it any more."""
    await asyncio.sleep(GRACE_SECONDS)
    pins = agent.datapath.generation.pins
    await agent.in_writer(lambda: retire(pins))
