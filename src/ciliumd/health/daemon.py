# SPDX-License-Identifier: Apache-2.0
"""The health of this node and its view of the others: all parts of this room, run together."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ciliumd.health import model
from ciliumd.health.endpoint import EndpointOwner, HealthEndpoint
from ciliumd.health.hello import Responder
from ciliumd.health.icmp import Pinger
from ciliumd.health.metrics import HealthMetrics
from ciliumd.health.prober import NetworkChecks, Prober
from ciliumd.health.selftest import SelfTest
from ciliumd.model.net import Addr
from ciliumd.model.objects import NodeRow

Json = dict[str, Any]

LISTEN_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthOptions:
    """*port* is TCP, *interval* in seconds; *procfs* is one whose sys/net may be written."""

    port: int = 4240
    interval: float = 60.0
    nodes: bool = True
    """Whether nodes are probed at all."""
    endpoints: bool = True
    """Whether this node has a health endpoint, and those of others are probed."""
    procfs: Path = Path("/proc")
    family: int = 4
    """Of the addresses that are probed."""


class HealthDaemon:
    """
    What the agent asks and tells in matters of health; :meth:`run` before anything else is asked.

    *nodes* are all nodes of the cluster, *local* is this one as it is now.
    """

    def __init__(
        self,
        options: HealthOptions,
        *,
        nodes: Callable[[], Iterable[NodeRow]],
        local: Callable[[], NodeRow],
        owner: EndpointOwner,
    ) -> None:
        self._options = options
        self._nodes = nodes
        self._local = local
        self._listening = asyncio.Event()
        self.address_changed: Callable[[], None] = lambda: None
        """Called when the health endpoint's address has changed, for whoever publishes it."""
        self._responder = Responder(options.port)
        self._endpoint = HealthEndpoint(
            owner,
            port=options.port,
            procfs=options.procfs,
            changed=self._address_changed,
            family=options.family,
        )
        self._pinger = Pinger(options.family)
        checks = NetworkChecks(self._pinger, options.port)
        self._prober = Prober(checks, targets=self._targets, interval=options.interval, probed=self._probed)
        self.metrics = HealthMetrics(local=local, results=self._prober.results)
        self._selftest = SelfTest(checks, lambda: self._endpoint.address)

    @property
    def address(self) -> Addr | None:
        """The health endpoint's address, while there is one."""
        return self._endpoint.address

    @property
    def problem(self) -> str:
        """What is wrong with the answers this node gives; empty when nothing is."""
        endpoint = self._endpoint.problem if self._options.endpoints else ""
        said = [f"health endpoint: {endpoint}" if endpoint else "", self._responder.problem]
        return "; ".join(filter(None, said))

    @property
    def unready(self) -> str:
        """What of the self test has not passed yet; empty once it has."""
        return (
            f"self test: {self._selftest.problem}"
            if self._options.endpoints and self._selftest.problem
            else ""
        )

    async def run(self) -> None:
        """Answer and probe until cancelled."""
        with contextlib.closing(self._pinger), contextlib.closing(self._responder):
            async with asyncio.TaskGroup() as group:
                if self._options.endpoints:
                    group.create_task(self._endpoint.run())
                    group.create_task(self._selftest.run())
                if self._options.nodes:
                    group.create_task(self._listen())
                    group.create_task(self._prober.run())

    def nodes_changed(self) -> None:
        """Nodes, or addresses of this one, are not what they were."""
        self._listening.set()
        self._prober.nodes_changed()

    async def probe(self) -> Json:
        """``models.HealthStatusResponse`` of a round made now."""
        await self._prober.probe()
        return self.report()

    def report(self) -> Json:
        """``models.HealthStatusResponse`` of what is known."""
        return model.report(
            self._prober.results(), local=self._own().full_name, interval=self._options.interval
        )

    def summary(self) -> model.Summary | None:
        """How many nodes are reachable; None when none is probed."""
        return model.summary(self._prober.results()) if self._options.nodes else None

    def _own(self) -> model.Target:
        (own,) = self._targets_of(())
        return own

    def _targets(self) -> tuple[model.Target, ...]:
        return self._targets_of(self._nodes())

    def _targets_of(self, nodes: Iterable[NodeRow]) -> tuple[model.Target, ...]:
        options = self._options
        return model.targets(
            nodes, self._local(), self.address, endpoints=options.endpoints, family=options.family
        )

    def _probed(self, result: model.NodeResult) -> None:
        self.metrics.probed(result)

    def _address_changed(self) -> None:
        self.address_changed()
        self.nodes_changed()

    async def _listen(self) -> None:
        """Listen where the node is; an address may be announced before it exists."""
        while True:
            self._listening.clear()
            await self._responder.listen(model.host_addresses(self._local(), self._options.family))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LISTEN_SECONDS):
                    await self._listening.wait()
