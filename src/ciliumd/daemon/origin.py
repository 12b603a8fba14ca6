# SPDX-License-Identifier: Apache-2.0
"""
Where a node's objects come from: a directory of manifests, or a cluster (see ``membership``).

Whoever describes the pods also says which addresses they may have.
"""

from collections.abc import Coroutine, Iterable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ciliumd.resources import Parse, parse
from ciliumd.sources.directory import DirectorySource
from ciliumd.sources.lastgood import LastGoodFile
from ciliumd.tables.schema import Tables

if TYPE_CHECKING:
    from ciliumd.daemon.agent import Agent

LAST_GOOD_FILE = "last-good.json"


class StartFailed(Exception):
    """The agent cannot start; the text says what, where, and what to do."""


class Source(Protocol):
    """Keeps tables equal to what somebody wrote."""

    async def run(self) -> None:
        """Follow until cancelled."""

    def status(self) -> Any:
        """What it has seen: ``DirectoryStatus`` or ``KubernetesStatus``."""


class Origin(Protocol):
    """What the parts of an agent need to know of where its objects come from."""

    numbers_identities: bool
    """Whether this node gives label sets their numbers by itself."""

    api_server: str
    """URL of the API server objects come from; empty without one."""

    @property
    def pod_cidr(self) -> IPv4Network | None:
        """The network of this node's pods; None where they have no IPv4."""

    @property
    def pod_cidr6(self) -> IPv6Network | None:
        """The same of IPv6; None where pods have none."""

    def source(self, tables: Tables) -> Source:
        """What fills the *tables*."""

    def work(self, agent: "Agent") -> Iterable[Coroutine[Any, Any, None]]:
        """What else is to run as long as the agent."""


class DirectoryOrigin:
    """A directory of manifests; this node stands alone."""

    numbers_identities = True
    api_server = ""

    def __init__(
        self,
        directory: Path,
        *,
        pod_cidr: IPv4Network | None,
        state_dir: Path,
        pod_cidr6: IPv6Network | None = None,
        parse: Parse = parse,
    ) -> None:
        """StartFailed if there is no such *directory*."""
        if not directory.is_dir():
            raise StartFailed(f"--manifests {directory} is no directory; create it or name another")
        self.pod_cidr = pod_cidr
        self.pod_cidr6 = pod_cidr6
        self._directory = directory
        self._state_dir = state_dir
        self._parse = parse

    def source(self, tables: Tables) -> DirectorySource:
        """The directory, with what an earlier agent knew of it."""
        return DirectorySource(
            self._directory,
            tables,
            last_good=LastGoodFile(self._state_dir / LAST_GOOD_FILE),
            parse=self._parse,
        )

    def work(self, agent: "Agent") -> Iterable[Coroutine[Any, Any, None]]:  # noqa: ARG002  an Origin is asked so
        """Nothing: nobody is told."""
        return ()
