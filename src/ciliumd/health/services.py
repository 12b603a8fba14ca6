# SPDX-License-Identifier: Apache-2.0
"""
What kube-proxy answers to load balancers in front of the cluster, answered in its place.

A port for each service with ``healthCheckNodePort``: 200 as long as the node has a ready endpoint of it, else
503, and how many there are.  And kube-proxy's own ``/healthz``: whether services are served at all.  Sources:
the bodies and headers of kube-proxy's package healthcheck.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from aiohttp import web

from ciliumd.health.listener import Listener

WEIGHT: Final = "X-Load-Balancing-Endpoint-Weight"
_NO_SNIFFING: Final = {"X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True, slots=True)
class Answer:
    """The service behind a port, and how many endpoints of it the node has."""

    namespace: str
    name: str
    endpoints: int


class ServiceHealthServers:
    """Listens on a port for each service; *healthy* says whether services are served."""

    def __init__(self, healthy: Callable[[], bool]) -> None:
        self._healthy = healthy
        self._answers: dict[int, Answer] = {}
        self._sites: dict[int, web.TCPSite] = {}
        self._runner: web.AppRunner | None = None

    async def serve(self, wanted: Mapping[int, Answer]) -> None:
        """
        Answer so from now on, on these ports and no others.

        OSError names the ports that are taken; the others are served.
        """
        self._answers = dict(wanted)
        for port in self._sites.keys() - wanted.keys():
            await self._sites.pop(port).stop()
        failed: dict[int, str] = {}
        for port in sorted(wanted.keys() - self._sites.keys()):
            site = web.TCPSite(await self._listening(), None, port)
            try:
                await site.start()
            except OSError as error:
                await site.stop()
                failed[port] = error.strerror or str(error)
            else:
                self._sites[port] = site
        if failed:
            texts = (f"{port} of {_name(wanted[port])}: {why}" for port, why in failed.items())
            raise OSError(f"healthCheckNodePort {'; '.join(texts)}")

    async def stop(self) -> None:
        """Listen nowhere."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._sites.clear()

    async def _listening(self) -> web.AppRunner:
        if self._runner is None:
            app = web.Application()
            app.router.add_get("/{path:.*}", self._answer)
            self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
            await self._runner.setup()
        return self._runner

    async def _answer(self, request: web.Request) -> web.Response:
        transport = request.transport
        place = transport.get_extra_info("sockname") if transport is not None else None
        answer = self._answers.get(place[1]) if place else None
        if answer is None:
            return web.Response(status=HTTPStatus.NOT_FOUND)
        healthy = self._healthy()
        well = bool(answer.endpoints) and healthy
        return web.json_response(
            {
                "service": {"namespace": answer.namespace, "name": answer.name},
                "localEndpoints": answer.endpoints,
                "serviceProxyHealthy": healthy,
            },
            status=HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE,
            headers={WEIGHT: str(answer.endpoints), **_NO_SNIFFING},
        )


class ProxyHealthz(Listener):
    """
    kube-proxy's ``/healthz`` on *address* (``host:port``); an empty one serves nothing.

    *updated* is when services were last written, *now* the time, both as text.
    """

    def __init__(
        self, address: str, *, healthy: Callable[[], bool], updated: Callable[[], str], now: Callable[[], str]
    ) -> None:
        super().__init__(address, dict.fromkeys(("/healthz", "/livez"), self._healthz))
        self._healthy = healthy
        self._updated = updated
        self._now = now

    async def _healthz(self, _: web.Request) -> web.Response:
        healthy, now = self._healthy(), self._now()
        return web.json_response(
            {
                "lastUpdated": now if healthy else self._updated(),
                "currentTime": now,
                "nodeEligible": True,
            },
            status=HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE,
            headers=_NO_SNIFFING,
        )


def _name(answer: Answer) -> str:
    return f"{answer.namespace}/{answer.name}"
