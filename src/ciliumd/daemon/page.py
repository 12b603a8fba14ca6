# SPDX-License-Identifier: Apache-2.0
"""What probes and Prometheus ask of agent and operator: one path on one TCP address, nothing else."""

from collections.abc import Callable

from aiohttp import web

TEXT = "text/plain; charset=utf-8"


class Page:
    """
    Serves *content* at *path* of *address* (``host:port``), without a host at every address of both families.

    An empty address serves nothing.
    """

    def __init__(
        self, address: str, path: str, content: Callable[[], bytes], *, content_type: str = TEXT
    ) -> None:
        self._address = address
        self._path = path
        self._content = content
        self._headers = {"Content-Type": content_type}
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen."""
        if not self._address:
            return
        app = web.Application()
        app.router.add_get(self._path, self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        host, _, port = self._address.rpartition(":")
        await web.TCPSite(self._runner, host.strip("[]") or None, int(port)).start()

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, _: web.Request) -> web.Response:
        return web.Response(body=self._content(), headers=self._headers)
