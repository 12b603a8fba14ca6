# SPDX-License-Identifier: Apache-2.0
"""What probes, load balancers and Prometheus ask agent and operator for: a few paths on one TCP address."""

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

TEXT = "text/plain; charset=utf-8"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Listener:
    """
    Answers at *address* (``host:port``) by *handlers*, by path; any other path is not found.

    Without a host it listens at every address of both families; an empty address listens nowhere.
    """

    def __init__(self, address: str, handlers: Mapping[str, Handler]) -> None:
        self._address = address
        self._handlers = handlers
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen.  OSError when the port is taken."""
        if not self._address:
            return
        app = web.Application()
        for path, handler in self._handlers.items():
            app.router.add_get(path, handler)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        host, _, port = self._address.rpartition(":")
        await web.TCPSite(self._runner, host.strip("[]") or None, int(port)).start()

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()


class Page(Listener):
    """Serves *content* at *path*, and nothing else."""

    def __init__(
        self, address: str, path: str, content: Callable[[], bytes], *, content_type: str = TEXT
    ) -> None:
        super().__init__(address, {path: self._answer})
        self._content = content
        self._headers = {"Content-Type": content_type}

    async def _answer(self, _: web.Request) -> web.Response:
        return web.Response(body=self._content(), headers=self._headers)
