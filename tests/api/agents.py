# SPDX-License-Identifier: Apache-2.0
"""The part of an agent that speaks to the API server, in a thread of its own, for synchronous tests."""

import asyncio
import concurrent.futures
import contextlib
import tempfile
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import uvloop

from ciliumd.kubernetes.client import Api
from ciliumd.kubernetes.config import load
from ciliumd.kubernetes.kinds import TABLES_OF
from ciliumd.kubernetes.lastgood import LastGoodPolicies
from ciliumd.kubernetes.pace import Pace
from ciliumd.kubernetes.source import KubernetesSource
from ciliumd.resources.crd.kinds import definitions
from ciliumd.resources.node import KubernetesNode
from ciliumd.tables import Tables
from lab.apiserver import ApiServer
from lab.confined import Confinement
from lab.waiting import eventually

T = TypeVar("T")

USER = "agent"
READ = ["get", "list", "watch"]
WRITE = ["create", "get", "update"]
RULES: list[dict[str, Any]] = [
    {"apiGroups": [""], "resources": ["namespaces", "nodes", "pods", "services"], "verbs": READ},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": READ},
    {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": READ},
    {
        "apiGroups": ["cilium.io"],
        "resources": ["ciliumcidrgroups", "ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies"],
        "verbs": READ,
    },
    {"apiGroups": ["cilium.io"], "resources": ["ciliumnodes"], "verbs": [*WRITE, "list", "watch"]},
    {"apiGroups": ["cilium.io"], "resources": ["ciliumidentities"], "verbs": ["create", *READ]},
    {
        "apiGroups": ["cilium.io"],
        "resources": ["ciliumendpoints"],
        "verbs": [*WRITE, "list", "watch", "delete"],
    },
    {"nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/version"], "verbs": ["get"]},
]
"""Everything an agent may do; the chart's ClusterRole says the same."""


def prepare(server: ApiServer) -> None:
    """A server that serves the agent's kinds, and lets *USER* do what an agent does."""
    server.grant(USER, RULES)
    for definition in definitions().values():
        server.define(definition)


class Follower:
    """
    A source and its tables, followed in a thread; a context manager.

    With a :attr:`confinement` that thread, and all that it starts, are under the chart's profile.
    """

    confinement: ClassVar[Confinement | None] = None

    def __init__(
        self, kubeconfig: Path, *, node: str = "n1", period: float = 300.0, state: Path | None = None
    ) -> None:
        """*state* is the state directory; without one the agent has no past and no future."""
        self.tables = Tables()
        self.nodes: list[KubernetesNode | None] = []
        self.events: list[tuple[str, str, bool, bool]] = []
        self.pace = Pace()
        self._config = load(kubeconfig)
        self._node = node
        self._period = period
        self._own_state = tempfile.TemporaryDirectory()
        self._state = state or Path(self._own_state.name)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._has_loop = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._has_loop.wait(10)
        self.call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
        self._own_state.cleanup()

    def call(self, work: Coroutine[Any, Any, T], *, seconds: float = 60.0) -> T:
        """Do *work* in the loop; its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    def spawn(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Begin *work* in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def look(self, what: Callable[[], T]) -> T:
        """What is so in the loop's thread."""

        async def looked() -> T:
            return what()

        return self.call(looked())

    def wait(self, condition: Callable[[Tables], object], what: str, *, seconds: float = 15.0) -> None:
        """Until the tables are as they should be."""
        eventually(lambda: self.look(lambda: condition(self.tables)), what, seconds=seconds, every=0.02)

    def wait_complete(self, *, seconds: float = 15.0) -> None:
        """Until every table holds all there is."""
        self.wait(
            lambda tables: all(getattr(tables, name).initialized for name in TABLES_OF.values() if name),
            f"all is known; {self.source.status().error}",
            seconds=seconds,
        )

    def _run(self) -> None:
        if self.confinement is not None:
            self.confinement.enter()
        # Here and not before: what a loop may use of the kernel is found out when it is made.
        self.loop = uvloop.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self._has_loop.set()
        self.loop.run_forever()

    async def _start(self) -> None:
        self.api = Api(self._config, pace=self.pace)
        self.source = KubernetesSource(
            self._config,
            self.api,
            self.tables,
            node=self._node,
            pace=self.pace,
            observe=lambda *_: None,
            last_good=LastGoodPolicies(self._state / "last-good-policies"),
            node_changed=self.nodes.append,
            received=lambda *event: self.events.append(event),
            period=self._period,
        )
        self._task = asyncio.create_task(self.source.run())

    async def _stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self.api.aclose()
