# SPDX-License-Identifier: Apache-2.0
"""What load balancers and others ask about services in kube-proxy's place, kept up to date and served."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ciliumd.daemon import status
from ciliumd.daemon.controllers import rfc3339
from ciliumd.desired.healthports import health_ports
from ciliumd.health.services import Answer, ProxyHealthz, ServiceHealthServers

if TYPE_CHECKING:
    from ciliumd.daemon.agent import Agent

SECONDS = 0.5
"""How often it is looked whether services have changed."""


@dataclass(slots=True)
class ServiceHealth:
    """The ports of services, and kube-proxy's ``/healthz`` where one is wanted."""

    agent: "Agent"
    _ports: ServiceHealthServers = field(init=False)
    _healthz: ProxyHealthz = field(init=False)
    _seen: int = -1
    _written: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self._ports = ServiceHealthServers(self.healthy)
        self._healthz = ProxyHealthz(
            self.agent.settings.kube_proxy_replacement_healthz_bind_address,
            healthy=self.healthy,
            updated=lambda: rfc3339(self._written),
            now=lambda: rfc3339(time.time()),
        )
        self.agent.after_round.append(self._round_done)

    def healthy(self) -> bool:
        """Whether services are in the maps, and changes get there."""
        return not (status.lifeless(self.agent) or self.agent.unready())

    async def start(self) -> None:
        """Listen.  OSError when kube-proxy's port is taken."""
        await self._healthz.start()

    async def stop(self) -> None:
        """Listen nowhere."""
        await self._healthz.stop()
        await self._ports.stop()

    async def look(self) -> None:
        """Serve the ports of the services as they are now.  OSError names those that are taken."""
        plan = self.agent.plan
        seen = plan.services.revision
        if self._seen == seen:
            return
        wanted = health_ports(plan.services.each(), node=plan.node.name) if self._wanted else {}
        await self._ports.serve(
            {port: Answer(one.namespace, one.name, one.count) for port, one in wanted.items()}
        )
        self._seen = seen

    @property
    def _wanted(self) -> bool:
        # Beside kube-proxy these ports are its own.
        settings = self.agent.settings
        return settings.enable_health_check_nodeport and settings.serves_node_ports

    def _round_done(self) -> None:
        self._written = time.time()
