# SPDX-License-Identifier: Apache-2.0
"""
A proxy in front of an API server that spoils answers: refused, cut, or ended in the middle of a line.

It ends TLS with the server's own certificate, so clients need to know nothing of it.
"""

import asyncio
import json
import random
import ssl
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
from aiohttp import web

FAULTS: Final = ("410", "429", "500", "truncated", "half")
"""Three statuses; an answer that ends too early, and one whose connection ends too early."""
_REASONS: Final = {410: "Expired", 429: "TooManyRequests", 500: "InternalError"}


class FaultProxy:
    """
    Passes requests to 127.0.0.1:*target*, whose certificate and key are in *certificates*; a context manager.

    While :attr:`rate` is not 0, so many of the requests are spoilt, in every way in turn.
    """

    def __init__(self, target: int, certificates: Path, *, chance: random.Random) -> None:
        self.rate = 0.0
        self.injected: Counter[str] = Counter()
        self._target = f"https://127.0.0.1:{target}"
        self._pair = (certificates / "apiserver.crt", certificates / "apiserver.key")
        self._chance = chance
        self._times: list[float] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def requests_since(self, moment: float) -> int:
        """How many requests came since a moment of the monotonic clock."""
        return sum(at >= moment for at in list(self._times))

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        certificate, key = self._pair
        trust = ssl.create_default_context(cafile=certificate)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust, limit=0))
        serve = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serve.load_cert_chain(certificate, key)
        app = web.Application(client_max_size=16 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=serve).start()
        self.port: int = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()
        # Handlers of watches whose clients are gone wait for events that never come.
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self._times.append(time.monotonic())
        fault = ""
        if self._chance.random() < self.rate:
            fault = FAULTS[self.injected.total() % len(FAULTS)]
            self.injected[fault] += 1
        if fault.isdigit():
            return _refusal(int(fault))
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() in {"authorization", "accept", "content-type", "user-agent"}
        }
        url, body = f"{self._target}{request.path_qs}", await request.read() or None
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.request(
            request.method, url, headers=headers, data=body, timeout=timeout
        ) as answer:
            return await self._pass_on(request, answer, fault)

    async def _pass_on(
        self, request: web.Request, answer: aiohttp.ClientResponse, fault: str
    ) -> web.StreamResponse:
        """The answer, or the first half of what comes first: of a watch that is an event."""
        passed = web.StreamResponse(
            status=answer.status, headers={"Content-Type": answer.headers.get("Content-Type", "")}
        )
        watching = request.query.get("watch") in {"true", "1"}
        whole = b"" if watching else await answer.read()
        if fault == "half" and whole:
            passed.content_length = len(whole)
        await passed.prepare(request)
        if fault:
            whole = whole or await answer.content.readline()
            await passed.write(whole[: len(whole) // 2])
            if fault == "half" and request.transport is not None:
                request.transport.close()
                return passed
        elif watching:
            while data := await answer.content.readany():
                await passed.write(data)
        else:
            await passed.write(whole)
        await passed.write_eof()
        return passed


def _refusal(status: int) -> web.Response:
    reason = _REASONS[status]
    document = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": status}
    headers = {"Retry-After": "1"} if status == 429 else {}
    text = json.dumps({**document, "message": f"{reason}: injected"})
    return web.Response(status=status, text=text, content_type="application/json", headers=headers)
