# SPDX-License-Identifier: Apache-2.0
"""The Prometheus endpoint: ``GET /metrics`` on a TCP address, nothing else."""

from collections.abc import Callable

from aiohttp import web

from ciliumd.metrics.registry import CONTENT_TYPE


class Exporter:
    """
    Serves metrics on *address* (``host:port``), without a host at every address of both families.

    An empty address serves nothing.
    """

    def __init__(self, address: str, exposition: Callable[[], bytes]) -> None:
        self._address = address
        self._exposition = exposition
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen."""
        if not self._address:
            return
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        host, _, port = self._address.rpartition(":")
        await web.TCPSite(self._runner, host.strip("[]") or None, int(port)).start()

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._exposition(), headers={"Content-Type": CONTENT_TYPE})
