# SPDX-License-Identifier: Apache-2.0
"""
Watches of the API server: kopf in a thread of its own, with a loop and a registry of its own.

Its handlers only pass on what they see; they write nothing, so no object gets annotations, finalizers or
status from kopf.  It cancels every task of its loop when it ends, hence the thread.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import kopf
import structlog
import uvloop
from lightkube.config.kubeconfig import SingleConfig

from ciliumd.kubernetes.client import CHUNK, Json
from ciliumd.kubernetes.config import authorization
from ciliumd.kubernetes.kinds import Kind

_STOP_SECONDS: Final = 1.0
_IDLE_SECONDS: Final = 0.05

log = structlog.get_logger("watch")


@dataclass(frozen=True, slots=True)
class Followed:
    """A kind to follow, all of it or what the *labels* select."""

    kind: Kind
    labels: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One event: the object as it is now, or as it was when it was deleted."""

    kind: Kind
    document: Json
    deleted: bool


class _NoDiff(kopf.DiffBaseStorage):
    """Keeps no earlier versions: they would cost four copies of every object."""

    def build(self, **_: object) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: object) -> None: ...

    def store(self, **_: object) -> None: ...


class Watch:
    """
    Follows kinds and delivers changes to the loop it was made in, in batches.

    *failed* is called there when it ends without having been stopped.
    """

    def __init__(
        self,
        config: SingleConfig,
        kinds: Iterable[Followed],
        *,
        deliver: Callable[[Sequence[Change]], None],
        failed: Callable[[BaseException | None], None],
    ) -> None:
        self._config = config
        self._kinds = tuple(kinds)
        self._deliver = deliver
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._batch: list[Change] = []
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    async def stop(self) -> None:
        """Stop, and wait for the thread."""
        self._stopping.set()
        await asyncio.to_thread(self._thread.join, _STOP_SECONDS)

    def _main(self) -> None:
        error: BaseException | None = None
        try:
            uvloop.run(self._follow())
        except Exception as raised:  # noqa: BLE001  thread's edge: the main loop decides
            error = raised
        if not self._stopping.is_set():
            self._loop.call_soon_threadsafe(self._failed, error)

    async def _follow(self) -> None:
        registry = kopf.OperatorRegistry()
        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.watching.chunk_size = CHUNK
        settings.queueing.idle_timeout = _IDLE_SECONDS
        settings.persistence.diffbase_storage = _NoDiff()
        kopf.on.login(registry=registry)(self._login)
        for followed in self._kinds:
            one = followed.kind
            selector = (one.group, one.version, one.plural)
            if followed.labels:
                settings.watching.label_selectors[selector] = followed.labels
            kopf.on.event(*selector, registry=registry)(self._handler(one))
        await kopf.operator(
            registry=registry,
            settings=settings,
            clusterwide=True,
            standalone=True,
            # Else kopf asks for the name of the user, which a container's has none of.
            identity=cast("Any", "ciliumd-operator"),
            stop_flag=self._stopping,
            ready_flag=self._ready,
        )

    def _handler(self, kind: Kind) -> Callable[..., Any]:
        async def passed_on(event: Any, **_: object) -> None:
            change = Change(kind, dict(event["object"]), event["type"] == "DELETED")
            with self._lock:
                self._batch.append(change)
                first = len(self._batch) == 1
            if first:
                self._loop.call_soon_threadsafe(self._hand_over)

        return passed_on

    def _hand_over(self) -> None:
        with self._lock:
            batch, self._batch = self._batch, []
        self._deliver(batch)

    def _login(self, **_: object) -> kopf.ConnectionInfo:
        """Called at the start and whenever the server says that who we are has expired."""
        return connection_info(self._config)


def connection_info(config: SingleConfig) -> kopf.ConnectionInfo:
    """What kopf needs to know of a connection that lightkube has read."""
    cluster, user = config.cluster, config.user
    scheme, _, token = authorization(config).partition(" ")
    return kopf.ConnectionInfo(
        server=cluster.server,
        insecure=cluster.insecure,
        ca_path=_file(config, cluster.certificate_auth),
        ca_data=cluster.certificate_auth_data,
        scheme=scheme or None,
        token=token or None,
        certificate_path=_file(config, user.client_cert if user else None),
        certificate_data=user.client_cert_data if user else None,
        private_key_path=_file(config, user.client_key if user else None),
        private_key_data=user.client_key_data if user else None,
    )


def _file(config: SingleConfig, path: str | None) -> str | None:
    return str(config.abs_file(path)) if path else None
