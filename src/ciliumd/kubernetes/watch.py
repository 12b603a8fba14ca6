# SPDX-License-Identifier: Apache-2.0
"""
Follows kinds of objects: kopf in a thread of its own, which hands small records to the agent's loop.

kopf lists, watches, reads bookmarks, begins again after 410 and survives dead connections.  It is used
for that alone: nothing is written, no diff is kept, no handler is retried.  It runs in its own thread
because it ends every task of the loop it runs in, and because parsing must not hold up the agent.

When a run of kopf ends (an answer that is no JSON, a kind that is gone, a token that is refused), a new
one begins after a pause; events say which run they are of.  Nothing is concluded from what a run does not
say: see ``store``.
"""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, cast

import aiohttp
import kopf
import structlog
import uvloop
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory  # of kopf.operator(memories=...)
from lightkube.config.kubeconfig import SingleConfig

from ciliumd.kubernetes.client import Observe
from ciliumd.kubernetes.kinds import Kind
from ciliumd.kubernetes.pace import Backoff, Pace
from ciliumd.kubernetes.read import Recalled, read_event
from ciliumd.kubernetes.session import DEFINITIONS, Health, read_session
from ciliumd.kubernetes.store import Event
from ciliumd.resources import Parse

# Records handed over at once: the agent's loop does something else in between.
BATCH = 500
# Since this version the server can stream what exists, so that neither side holds a whole list.
STREAMING_SINCE = (1, 34)
STOP_SECONDS = 5.0
_POLL_SECONDS = 2.0
# Connections that are closed need the loop for a moment more.
_CLOSE_SECONDS = 0.1
_TIMEOUT = aiohttp.ClientTimeout(total=10.0)

log = structlog.get_logger("k8s-watch")


class NoMemories(ResourceMemories):
    """
    Nothing of an object is kept between its events: it is a kibibyte each, of tens of thousands.

    What it is for (retries, daemons, what was handled once) is not asked for here.
    """

    async def recall(self, raw_body: kopf.RawBody, **how: Any) -> ResourceMemory:
        """One for this event alone."""
        return await super().recall(raw_body, **{**how, "ephemeral": True})


class NoDiff(kopf.DiffBaseStorage):
    """No memory of objects: the real one copies each object four times per event."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:  # noqa: ARG002
        """Nothing is compared."""
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Nothing was kept."""

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Nothing is kept."""


class _Missing(Exception):
    """The server does not serve this."""


class Watch:
    """
    Follows *kinds*, each with its field selector, from a thread of its own.

    *deliver* is called in the loop that called :meth:`start`, with at most :data:`BATCH` events; *listed*
    as well, with a kind that is told of from the beginning.  *recalled* and *parse* are asked in the thread.
    """

    def __init__(
        self,
        config: SingleConfig,
        kinds: Mapping[Kind, str],
        *,
        deliver: Callable[[list[Event]], None],
        listed: Callable[[Kind], None],
        health: Health,
        pace: Pace,
        observe: Observe,
        recalled: Recalled,
        parse: Parse,
    ) -> None:
        self._config = config
        self._kinds = dict(kinds)
        self._recalled = recalled
        self._parse = parse
        self._deliver = deliver
        self._listed = listed
        self._paths = {kind.path(): kind for kind in kinds}
        self._health = health
        self._pace = pace
        self._observe = observe
        self._streaming = True
        self._run = 1
        self._stopping = threading.Event()
        self._end_run: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._events: deque[Event] = deque()
        self._thread = threading.Thread(target=self._work, name="k8s", daemon=True)

    # ---- the agent's loop -------------------------------------------------------------------

    def start(self) -> None:
        """Begin; the running loop is the one that gets the events."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._end_run()
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    def restart(self) -> int:
        """Begin again from what exists; the number of the run that will tell it."""
        with self._lock:
            self._run += 1
            run = self._run
        self._end_run()
        return run

    def _hand_over(self) -> None:
        with self._lock:
            batch = [self._events.popleft() for _ in range(min(BATCH, len(self._events)))]
            more = bool(self._events)
        if more:
            self._loop.call_soon(self._hand_over)
        self._deliver(batch)

    # ---- the thread -------------------------------------------------------------------------

    def _work(self) -> None:
        # It reports each failed attempt as an error, and each login.
        logging.getLogger("kopf").setLevel(logging.CRITICAL)
        backoff = iter(Backoff(first=0.5, last=10.0))
        while not self._stopping.is_set():
            try:
                uvloop.run(self._one_run())
            except Exception as error:  # noqa: BLE001  edge of a thread that must not end: the next run may work
                self._failed("watch", f"{type(error).__name__}: {error}")
                if "sendInitialEvents" in str(error):
                    self._streaming = False
                self._stopping.wait(next(backoff))
            else:
                backoff = iter(Backoff(first=0.5, last=10.0))

    def _failed(self, what: str, error: str) -> None:
        if self._health.failed(what, error):
            self._tell(what, error)

    @staticmethod
    def _tell(what: str, error: str) -> None:
        log.warning("kubernetes.request_failed", request=what, error=error)

    async def _one_run(self) -> None:
        """Follow everything until told to end."""
        ending = asyncio.Event()
        loop = asyncio.get_running_loop()

        def end() -> None:
            with contextlib.suppress(RuntimeError):  # the run is over already
                loop.call_soon_threadsafe(ending.set)

        with self._lock:
            run = self._run
            self._end_run = end
        if self._stopping.is_set():
            return
        await first_of(self._wait_for_kinds(), ending.wait())
        if ending.is_set():
            return
        self._health.answered("watch")
        try:
            await kopf.operator(
                registry=self._registry(run),
                settings=self._settings(),
                memories=NoMemories(),
                clusterwide=True,
                standalone=True,
                identity=cast("Any", "ciliumd-agent"),  # else it is made of the user's name
                stop_flag=ending,
            )
        finally:
            await asyncio.sleep(_CLOSE_SECONDS)

    async def _wait_for_kinds(self) -> None:
        """Until the server serves every kind: the definitions of ours come from the operator."""
        try:
            async with self._session() as session:
                version = await self._get(session, "/version")
                self._health.server_version = str(version.get("gitVersion", ""))
                while missing := await self._missing(session):
                    self._failed(DEFINITIONS, f"waiting for the definition of {', '.join(missing)}")
                    await asyncio.sleep(_POLL_SECONDS)
                self._health.answered(DEFINITIONS)
        finally:
            await asyncio.sleep(_CLOSE_SECONDS)

    async def _missing(self, session: aiohttp.ClientSession) -> list[str]:
        served: set[tuple[str, str]] = set()
        for api_version in {kind.api_version for kind in self._kinds if kind.group}:
            with contextlib.suppress(_Missing):
                document = await self._get(session, f"/apis/{api_version}")
                served |= {(api_version, one["name"]) for one in document.get("resources", ())}
        return sorted(
            kind.kind for kind in self._kinds if kind.group and (kind.api_version, kind.plural) not in served
        )

    async def _get(self, session: aiohttp.ClientSession, path: str) -> dict[str, Any]:
        async with session.get(f"{self._config.cluster.server}{path}", timeout=_TIMEOUT) as response:
            if response.status == HTTPStatus.NOT_FOUND:
                raise _Missing(path)
            response.raise_for_status()
            document: dict[str, Any] = await response.json()
            return document

    def _session(self) -> aiohttp.ClientSession:
        return read_session(
            self._config,
            pace=self._pace,
            health=self._health,
            observe=self._observe,
            failed=self._tell,
            listed=self._told_all,
        )

    def _told_all(self, path: str) -> None:
        kind = self._paths.get(path)
        if kind is not None:
            self._in_agent(self._listed, kind)

    def _registry(self, run: int) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        async def login(**_: Any) -> kopf.AiohttpSession:
            return kopf.AiohttpSession(server=self._config.cluster.server, aiohttp_session=self._session())

        kopf.on.login(registry=registry)(login)
        for kind in self._kinds:
            on_event = kopf.on.event(kind.group, kind.version, kind.plural, registry=registry)
            on_event(self._handler(kind, run))
        return registry

    def _handler(self, kind: Kind, run: int) -> Callable[..., Coroutine[Any, Any, None]]:
        async def take(*, event: Mapping[str, Any], **_: Any) -> None:
            record = read_event(kind, event, recalled=self._recalled, parse=self._parse)
            self._add(replace(record, run=run))

        return take

    def _add(self, event: Event) -> None:
        with self._lock:
            self._events.append(event)
            first = len(self._events) == 1
        if first:
            self._in_agent(self._hand_over)

    def _in_agent(self, call: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the agent's loop is closed already
            self._loop.call_soon_threadsafe(call, *arguments)

    def _settings(self) -> kopf.OperatorSettings:
        settings = kopf.OperatorSettings()
        settings.process.ultimate_exiting_timeout = None  # it would kill the agent
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.persistence.diffbase_storage = NoDiff()
        settings.persistence.finalizer = "ciliumd.io/none"
        settings.queueing.idle_timeout = 0.05
        settings.watching.chunk_size = BATCH
        settings.watching.connect_timeout = 5.0
        settings.watching.reconnect_backoff = 1.0
        settings.watching.initial_streaming = self._streaming and self._can_stream()
        settings.networking.connect_timeout = 5.0
        settings.networking.request_timeout = 60.0
        settings.networking.error_backoffs = Backoff()
        for kind, selector in self._kinds.items():
            if selector:
                settings.watching.field_selectors[kind.group, kind.version, kind.plural] = selector
        return settings

    def _can_stream(self) -> bool:
        numbers = self._health.server_version.removeprefix("v").split(".")[:2]
        return all(part.isdigit() for part in numbers) and tuple(map(int, numbers)) >= STREAMING_SINCE


async def first_of(work: Coroutine[Any, Any, object], end: Coroutine[Any, Any, object]) -> None:
    """Do *work* until *end*, whichever comes first; an exception of *work* is raised."""
    tasks = [asyncio.create_task(work), asyncio.create_task(end)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    if not tasks[0].cancelled():
        tasks[0].result()
