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

LOOPBACK: Final = "127.0.0.1"
REQUIRE_KUBERNETES: Final = "require-k8s-connectivity"


class HealthzServer:
    """
    *unready* says what keeps pods from relying on the agent, *lifeless* why it must be started again.

    Both are empty when nothing does.
    """

    def __init__(
        self, port: int, *, unready: Callable[[], Awaitable[str]], lifeless: Callable[[], str]
    ) -> None:
        self._port = port
        self._unready = unready
        self._lifeless = lifeless
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen.  OSError when the port is taken."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, self._port).start()

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:
        liveness = request.headers.get(REQUIRE_KUBERNETES, "").lower() == "false"
        problem = self._lifeless() if liveness else await self._unready()
        if problem:
            return web.Response(text=f"{problem}\n", status=HTTPStatus.SERVICE_UNAVAILABLE)
        return web.Response(text="OK\n")
