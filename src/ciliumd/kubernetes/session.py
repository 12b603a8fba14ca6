# SPDX-License-Identifier: Apache-2.0
"""
The HTTP session the watch reads through, and what it shows of the API server's health.

The watch only reads.  kopf would also write: so every request that is not a GET is refused here, before
it leaves, whatever rights the token has.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from http import HTTPStatus

import aiohttp
from aiohttp.client_middlewares import ClientHandlerType
from lightkube.config.kubeconfig import SingleConfig

from ciliumd.kubernetes.client import Observe
from ciliumd.kubernetes.config import authorization, ssl_context
from ciliumd.kubernetes.pace import Pace

CONNECT_SECONDS = 5.0
DEFINITIONS = "definitions"
"""Failures under this name are of kinds that are not served yet."""
_SERVER_ERROR = 500
_CONTINUED = frozenset({"resourceVersion", "continue"})


class ReadOnly(Exception):
    """Somebody tried to write through the watch's session."""


class Health:
    """
    Whether the API server answers.  Written by one thread, read by any.

    *recovered* is called when it answers again after it did not.
    """

    def __init__(self, recovered: Callable[[], None]) -> None:
        self.server_version = ""
        self._recovered = recovered
        self._lock = threading.Lock()
        self._errors: dict[str, str] = {}
        self._answered = False

    @property
    def error(self) -> str | None:
        """What is wrong, None if nothing is; of several problems one that explains others."""
        with self._lock:
            return self._errors.get(DEFINITIONS) or next(iter(self._errors.values()), None)

    @property
    def connected(self) -> bool:
        """Whether it has answered, and nothing failed since that has not worked again."""
        with self._lock:
            return self._answered and not self._errors

    def failed(self, what: str, error: str) -> bool:
        """A request for *what* failed; whether nothing else fails for the same reason."""
        with self._lock:
            new = error not in self._errors.values()
            self._errors[what] = error
            return new

    def answered(self, what: str) -> None:
        """A request for *what* was answered as it should be."""
        with self._lock:
            self._answered = True
            healed = self._errors.pop(what, None) is not None and not self._errors
        if healed:
            self._recovered()


def read_session(
    config: SingleConfig,
    *,
    pace: Pace,
    health: Health,
    observe: Observe,
    failed: Callable[[str, str], None],
    listed: Callable[[str], None],
) -> aiohttp.ClientSession:
    """
    A session for reading from the API server; made and used in one loop.

    *failed* is told of problems that are new, as (what, error); *listed* of each path that is read from
    the beginning, not from where a watch left off.  Raises ConfigInvalid.
    """

    async def guard(request: aiohttp.ClientRequest, handler: ClientHandlerType) -> aiohttp.ClientResponse:
        if request.method != "GET":
            raise ReadOnly(f"{request.method} {request.url.path} is not for the watch to send")
        what = f"GET {request.url.path}"
        token = authorization(config)
        if token:
            request.headers["Authorization"] = token
        await asyncio.sleep(pace.reserve())
        began = time.monotonic()
        try:
            response = await handler(request)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            _note(what, str(error) or type(error).__name__)
            observe("GET", request.url.path, 0, time.monotonic() - began)
            raise
        observe("GET", request.url.path, response.status, time.monotonic() - began)
        if response.ok:
            health.answered(what)
            if not request.url.query.keys() & _CONTINUED:
                listed(request.url.path)
        else:
            # Of what passes one line is enough; which right or kind is missing has to be told for each.
            passes = response.status == HTTPStatus.TOO_MANY_REQUESTS or response.status >= _SERVER_ERROR
            _note(what, f"{response.status} {response.reason}{'' if passes else f': {what}'}")
        return response

    def _note(what: str, error: str) -> None:
        pace.slow_down()
        if health.failed(what, error):
            failed(what, error)

    connector = aiohttp.TCPConnector(limit=0, ssl=ssl_context(config))
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        middlewares=(guard,),
        headers={"User-Agent": "ciliumd"},
        trust_env=False,
    )
