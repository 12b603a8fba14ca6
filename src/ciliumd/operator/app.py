# SPDX-License-Identifier: Apache-2.0
"""
``ciliumd operator``: waits to be the leader, works as one, and ends when it is none any more.

A leader that lost its lease ends with an error and is started anew: nothing of what it was doing can
outlive its right to do it.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from functools import partial

import structlog
import uvloop

from ciliumd import __version__
from ciliumd.daemon.logs import configure
from ciliumd.health.listener import Page
from ciliumd.kubernetes.client import Api
from ciliumd.kubernetes.config import ConfigInvalid, SingleConfig, load
from ciliumd.kubernetes.pace import Pace
from ciliumd.metrics.registry import CONTENT_TYPE
from ciliumd.operator.definitions import DefinitionRefused, install
from ciliumd.operator.leader import Lease, LostLeadership, Terms
from ciliumd.operator.metrics import Metrics
from ciliumd.operator.settings import Settings, SettingsInvalid, read_settings
from ciliumd.operator.work import WatchEnded, Work

RATE, BURST = 50.0, 100.0
"""Requests per second, steady and at once: a thousand nodes that come together are settled in a minute."""
LEASE_SECONDS = 3.0
EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
_EXPECTED = (LostLeadership, DefinitionRefused, WatchEnded, OSError)

log = structlog.get_logger("operator")


def main(argv: list[str]) -> int:
    """Run the operator until a signal; the exit code."""
    try:
        settings = read_settings(argv)
    except SettingsInvalid as error:
        sys.stderr.write(f"ciliumd operator: {error}; see ciliumd operator --help\n")
        return EXIT_USAGE
    configure(level="debug" if settings.debug else "info", form=settings.log_format)
    quiet_libraries()
    try:
        config = load(settings.kubeconfig, server=settings.k8s_api_server)
    except ConfigInvalid as error:
        log.error("operator.failed", error=str(error))  # noqa: TRY400  the text says it all
        return EXIT_FAILED
    try:
        uvloop.run(run(settings, config))
    except (ExceptionGroup, *_EXPECTED) as failed:
        for cause in _causes(failed):
            if not isinstance(cause, _EXPECTED):
                raise
            log.error("operator.failed", error=str(cause))  # noqa: TRY400  the text says it all
        return EXIT_FAILED
    return EXIT_OK


def quiet_libraries() -> None:
    """Of libraries only what is wrong; that kopf gets no signals in its thread is as it should be."""
    for name in ("httpx2", "kopf"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)


def _causes(error: Exception) -> Iterator[Exception]:
    """The errors of the tasks that ended."""
    if isinstance(error, ExceptionGroup):
        for one in error.exceptions:
            yield from _causes(one)
    else:
        yield error


class Health:
    """
    What ``/healthz`` answers while the operator works or waits for its turn.

    That the API server is away is no fault of this process, and a restart would not bring it back.
    """

    def __init__(self) -> None:
        self.state = "starting"

    def text(self) -> bytes:
        """The answer."""
        return f"ok: {self.state}\n".encode()


async def run(settings: Settings, config: SingleConfig) -> None:
    """Serve health and metrics, lead, and stop at a signal."""
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    async with contextlib.AsyncExitStack() as stack:
        metrics = Metrics()
        health = Health()
        for page in (
            Page(settings.operator_api_serve_addr, "/healthz", health.text),
            Page(
                settings.operator_prometheus_serve_addr,
                "/metrics",
                metrics.exposition,
                content_type=CONTENT_TYPE,
            ),
        ):
            await page.start()
            stack.push_async_callback(page.stop)
        api = await stack.enter_async_context(Api(config, pace=Pace(rate=RATE, burst=BURST)))
        # The lease has a connection of its own: its requests wait for nothing, and are its own to repeat.
        lease_api = await stack.enter_async_context(Api(config, attempts=1, timeout=LEASE_SECONDS))
        log.info("operator.started", version=__version__, ipam=settings.ipam, pid=os.getpid())

        lease = _lease(lease_api, settings)
        leading = asyncio.create_task(
            _lead(lease, partial(_work, api, settings, config, metrics), metrics, health)
        )
        stopped = asyncio.create_task(ending.wait())
        await asyncio.wait([leading, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not leading.done():
            leading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leading
    log.info("operator.stopped")


def _lease(api: Api, settings: Settings) -> Lease:
    terms = Terms(
        settings.leader_election_lease_duration,
        settings.leader_election_renew_deadline,
        settings.leader_election_retry_period,
    )
    return Lease(api, settings.k8s_namespace, f"{os.uname().nodename}-{secrets.token_hex(5)}", terms)


async def _lead(
    lease: Lease, work: Callable[[], Coroutine[None, None, None]], metrics: Metrics, health: Health
) -> None:
    """Wait for the lease, work while it is held, and give it back."""
    health.state = "waiting for the lease"
    await lease.acquire()
    log.info("operator.leading", identity=lease.identity)
    health.state = "leading"
    metrics.leader.set(to=1)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(lease.hold())
            group.create_task(work())
    finally:
        metrics.leader.set(to=0)
        await lease.release()


async def _work(api: Api, settings: Settings, config: SingleConfig, metrics: Metrics) -> None:
    if not settings.skip_crd_creation:
        await install(api)
    await Work(api, config, settings, metrics).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
