# SPDX-License-Identifier: Apache-2.0
"""
``/healthz`` on the loopback address, for the kubelet's probes of the agent's container.

200 when all is well, 503 and the reason as text when not.  As with Cilium's agent, a probe that does not
care for the API server says so with the header ``require-k8s-connectivity: false``; that is the one of
liveness, which then fails only for what a restart would mend.  ``brief: true`` is taken for granted.
"""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

from aiohttp import web

from ciliumd.health.listener import Listener

LOOPBACK: Final = "127.0.0.1"
REQUIRE_KUBERNETES: Final = "require-k8s-connectivity"


class HealthzServer(Listener):
    """
    *unready* says what keeps pods from relying on the agent, *lifeless* why it must be started again.

    Both are empty when nothing does.
    """

    def __init__(
        self, port: int, *, unready: Callable[[], Awaitable[str]], lifeless: Callable[[], str]
    ) -> None:
        super().__init__(f"{LOOPBACK}:{port}", {"/healthz": self._healthz})
        self._unready = unready
        self._lifeless = lifeless

    async def _healthz(self, request: web.Request) -> web.Response:
        liveness = request.headers.get(REQUIRE_KUBERNETES, "").lower() == "false"
        problem = self._lifeless() if liveness else await self._unready()
        if problem:
            return web.Response(text=f"{problem}\n", status=HTTPStatus.SERVICE_UNAVAILABLE)
        return web.Response(text="OK\n")
